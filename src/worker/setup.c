/*-------------------------------------------------------------------------
 *
 * setup.c
 *		The target's side of a table, before and beside its rows: made to fit,
 *		claimed, its former lanes fenced, swapped after a rebuild, removed.
 *
 * All of it happens between the requests of the lanes, in the worker's turn.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/relation.h"
#include "access/xact.h"
#include "base/point.h"
#include "base/settings.h"
#include "base/text.h"
#include "catalog/pg_type.h"
#include "endpoint/claim.h"
#include "executor/spi.h"
#include "jobs/verify.h"
#include "pipeline/table.h"
#include "shared/wake.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "worker/overflow.h"

static TimestampTz next_removal = 0;
static char removal_error[256];	/* why the first one in line is not done */

/* whose new table a rebuild has called so; NULL: nobody's */
static char *
rebuilt_table(const char *name)
{
	int			len = strlen(name) - strlen(REBUILD_SUFFIX);

	return len > 0 && strcmp(name + len, REBUILD_SUFFIX) == 0 ? pnstrdup(name, len) : NULL;
}

/*
 * The new table of a rebuild that does not come to its end is removed like one
 * that remove_table was told to drop.  That is written down before the rebuild
 * is forgotten: if we die in between, the rebuild begins anew behind it.
 */
void
give_up_rebuild(SyncTable *st)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	Oid			types[2] = {TEXTOID, TEXTOID};
	Datum		values[2];

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = CStringGetTextDatum(st->spec.target_schema);
	values[1] = CStringGetTextDatum(psprintf("%s" REBUILD_SUFFIX, st->spec.target_table));
	SPI_execute_with_args("INSERT INTO crate_sync.removal (target_schema, target_table, drop_target) "
						  "VALUES ($1, $2, true)", 2, types, values, NULL, false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	next_removal = 0;
}

/*
 * Drops a table and its fences.  While a delete may be late, they stay: who
 * makes the table anew has to know that there was one.
 */
static void
drop_with_fences(const char *schema, char *name, TargetResult *res)
{
	TargetTable table;

	the_target->ops->drop_table(the_target, schema, name, res);
	if (res->outcome != TARGET_OK || lanes_late_deletes() != 0)
		return;
	memset(&table, 0, sizeof(table));
	table.schema = pstrdup(schema);
	table.name = name;
	table.qualified = psprintf("%s.%s", target_quote_ident(schema), target_quote_ident(name));
	the_target->ops->drop_fence(the_target, &table, -1, res);
}

/* what remove_table left to do there */
void
process_removals(void)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	int			id = 0;
	bool		isnull;
	char	   *schema = NULL;
	char	   *table = NULL;
	char	   *whole;
	bool		drop = false;
	bool		last = false;	/* then nothing of ours is to be left there */
	bool		foreign = false;
	TargetResult res;

	if (GetCurrentTimestamp() < next_removal)
		return;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	/* a table added again meanwhile waits for it: see removal_pending() */
	SPI_execute("SELECT removal_id, target_schema, target_table, drop_target, "
				"NOT EXISTS (SELECT FROM crate_sync.mirror) AND pg_catalog.count(*) OVER () = 1 "
				"FROM crate_sync.removal ORDER BY 1 LIMIT 1", true, 1);
	if (SPI_processed == 1)
	{
		id = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		schema = MemoryContextStrdup(oldcxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
		table = MemoryContextStrdup(oldcxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3));
		drop = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4, &isnull));
		last = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 5, &isnull));
	}
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	if (id == 0)
	{
		next_removal = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), cs_interval);
		return;
	}

	memset(&res, 0, sizeof(res));
	cs_point("before removal");
	whole = rebuilt_table(table);
	claim_look(schema, whole ? whole : table, &foreign, &res);
	if (foreign)
		target_result_error(&res, TARGET_REFUSED_TABLE, "claim", "another database writes it");
	else
	{
		if (res.outcome == TARGET_OK && whole == NULL)	/* what a rebuild may have left */
			drop_with_fences(schema, psprintf("%s" REBUILD_SUFFIX, table), &res);
		if (res.outcome == TARGET_OK && drop)
			drop_with_fences(schema, table, &res);
		/* last of all: as long as it is ours, nobody else has made one of that name */
		if (whole == NULL && (res.outcome == TARGET_OK || res.outcome == TARGET_REFUSED_TABLE))
		{
			TargetResult released;

			claim_release(schema, table, &released);
			if (released.outcome == TARGET_OK && last)
				claim_leave(&released);
			if (released.outcome != TARGET_OK)
				res = released;
		}
	}
	if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL ||
		res.outcome == TARGET_BUSY || res.outcome == TARGET_UNKNOWN || res.outcome == TARGET_FAILED)
	{
		strlcpy(removal_error, res.message ? res.message : "no reason given", sizeof(removal_error));
		next_removal = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
		return;
	}
	removal_error[0] = '\0';
	if (res.outcome != TARGET_OK && drop)
		ereport(LOG, (errmsg("crate_sync: target table %s.%s could not be dropped: %s",
							 schema, table, res.message)));
	cs_point("after removal");
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	SPI_execute(psprintf("DELETE FROM crate_sync.removal WHERE removal_id = %d", id), false, 0);
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
}

/* while a table is rebuilt, all of its rows go to the new one */
static void
set_target_name(SyncTable *st)
{
	TargetTable *t = &st->def->target;
	char	   *name = load_is_rebuild(st) ? psprintf("%s" REBUILD_SUFFIX, st->spec.target_table) :
		st->spec.target_table;

	if (strcmp(t->name, name) == 0)
		return;
	t->name = MemoryContextStrdup(st->def_cxt, name);
	t->qualified = MemoryContextStrdup(st->def_cxt,
									   psprintf("%s.%s", target_quote_ident(t->schema),
												target_quote_ident(t->name)));
	for (int i = 0; i < st->nlanes; i++)
		st->lanes[i].epoch = 0;
	st->target_ready = false;
	/* what was found was the other's */
	st->found_missing = st->found_altered = st->found_other = false;
}

/* is the table ours to write? */
static bool
claim_for(SyncTable *st)
{
	static bool waiting = false;
	TargetResult res;
	char	   *who = NULL;
	char	   *hint = NULL;

	switch (claim_table(st, &who, &hint, &res))
	{
		case CLAIM_OURS_AGAIN:
			st->claimed_again = true;
			lanes_expect_late_deletes();
			/* FALLTHROUGH */
		case CLAIM_OURS:
			if (waiting)
				worker_tell_state("ok", NULL, NULL);
			waiting = false;
			return true;
		case CLAIM_WAIT:
			/* no trouble yet, but nothing is written either */
			if (!waiting)
				worker_tell_state("waiting", "looking whether another writer of these target tables is alive",
						   "This takes some seconds after a promotion, a restore or a move.");
			waiting = true;
			st->claim_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
			return false;
		case CLAIM_FOREIGN:
			if (waiting)
				worker_tell_state("ok", NULL, NULL);	/* the table says the rest */
			waiting = false;
			table_trouble(st, "claim",
						  psprintf("%s is written by %s", st->def->target.qualified, who), hint);
			return false;
		case CLAIM_TROUBLE:
			if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
				target_trouble(res.outcome, res.code, res.message);
			else if (res.outcome == TARGET_BUSY || res.outcome == TARGET_UNKNOWN)
				st->claim_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 200);
			else
				table_trouble(st, res.code, res.message,
							  "The claim table crate_sync.claim of the target has to be readable and writable.");
			return false;
	}
	return false;
}

/*
 * A rebuild that begins, or begins anew, does so in a new table: what an
 * earlier one has put there nobody would take out again.  False: not now.
 */
static bool
make_room_for_rebuild(SyncTable *st)
{
	TargetResult res;

	if (!load_is_rebuild(st) || st->rebuild_begun || st->load_rel != InvalidOid)
		return true;
	/* another's new table is not ours to drop */
	if (GetCurrentTimestamp() < st->claim_retry_at || (claim_is_anothers(st) && !claim_for(st)))
		return false;
	memset(&res, 0, sizeof(res));
	the_target->ops->drop_table(the_target, st->def->target.schema,
								psprintf("%s" REBUILD_SUFFIX, st->spec.target_table), &res);
	if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
		target_trouble(res.outcome, res.code, res.message);
	else if (res.outcome != TARGET_OK)
		table_trouble(st, res.code, res.message, NULL);
	if (res.outcome != TARGET_OK)
		return false;
	state_ack(true);			/* before there is a table that could be left */
	st->rebuild_begun = true;
	st->target_ready = false;
	return true;
}

/* has the target table any row? */
static bool
target_is_empty(SyncTable *st)
{
	TargetResult res;
	RowSet	   *rows = rowset_create(CurrentMemoryContext, st->def->nkeys);
	bool		empty;

	memset(&res, 0, sizeof(res));
	the_target->ops->page(the_target, &st->def->target, st->def->target.keys, st->def->nkeys,
						  NULL, 1, true, rows, &res);
	empty = res.outcome == TARGET_OK && rows->nrows == 0;
	rowset_free(rows);
	return empty;
}

/* false: all of its storage is empty */
static bool
source_may_have_rows(SyncTable *st)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	bool		may = false;
	ListCell   *lc;

	StartTransactionCommand();
	foreach(lc, st->feed_leaves)
	{
		Relation	rel;

		/* who has it locked may be filling it */
		if (!ConditionalLockRelationOid(lfirst_oid(lc), AccessShareLock))
			may = true;
		else if ((rel = try_relation_open(lfirst_oid(lc), NoLock)) != NULL)
		{
			may |= RelationGetNumberOfBlocks(rel) > 0;
			relation_close(rel, NoLock);
		}
	}
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	return may;
}

/*
 * A lane's fence is raised before its first row is sent.  That is too late if a
 * key may take another lane than before, if another writer had lanes that we
 * have not, or if the table was made anew: what was sent to its former self
 * must not arrive in it, as nothing would take it away again.  Then all lanes
 * there ever were are fenced at once.  How many there are is written down
 * before they are used.
 */
static bool
fence_former_lanes(SyncTable *st)
{
	if (st->lanes_used == st->nlanes && !st->found_missing && !st->claimed_again && !st->found_other)
		return true;
	if ((st->found_missing || st->found_other) && lanes_late_deletes() != 0)
	{
		TargetResult res;
		int			n;

		/* no fence holds these up: until they can arrive no more, if there was another table before */
		memset(&res, 0, sizeof(res));
		the_target->ops->count_lanes(the_target, &st->def->target, &n, &res);
		if (res.outcome == TARGET_OK && n > 0)
		{
			st->claim_retry_at = lanes_late_deletes();
			return false;
		}
	}
	if (!lanes_fence_all(st, &st->def->target, &st->claim_retry_at))
		return false;
	if (st->lanes_used != st->nlanes)
	{
		st->lanes_used = st->nlanes;
		st->dirty = true;
		state_ack(true);
	}
	return true;
}

static void
set_id(SyncTable *st, char **place, const char *id)
{
	char	   *copy = id ? MemoryContextStrdup(st->cxt, id) : NULL;

	if (*place != NULL)
		pfree(*place);
	*place = copy;
}

/* what is kept of an id: the table's own word, and under which name it was */
static char *
kept_id(SyncTable *st)
{
	return st->seen_id ? psprintf("%.*s %s", (int) strcspn(st->seen_id, " "), st->seen_id,
								  st->def->target.name) : NULL;
}

/*
 * Which table is it?  One that was dropped and made by somebody else, restored
 * or exchanged has the name and perhaps the columns, but not the rows.
 */
static void
see_which_table(SyncTable *st, TargetResult *res)
{
	const TargetTable *table = &st->def->target;
	char	   *id;
	char	   *now;

	the_target->ops->identify(the_target, &table, 1, &id, res);
	set_id(st, &st->seen_id, res->outcome == TARGET_OK ? id : NULL);
	now = kept_id(st);
	if (now == NULL || st->target_id == NULL)
		return;
	/* another name's: while a table is rebuilt there are two */
	if (strcmp(strchr(now, ' '), strchr(st->target_id, ' ')) == 0 && strcmp(now, st->target_id) != 0)
		st->found_other = true;
}

/*
 * A table with nothing to send would never hear that its target is no longer
 * the one that it was.
 */
void
prepare_look(void)
{
	TargetResult res;
	int			n = 0;
	dlist_iter	it;
	const TargetTable **tables = palloc(sizeof(TargetTable *) * Max(state_count(), 1));
	SyncTable **which = palloc(sizeof(SyncTable *) * Max(state_count(), 1));
	char	  **ids = palloc0(sizeof(char *) * Max(state_count(), 1));

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (!st->target_ready || st->seen_id == NULL)
			continue;
		which[n] = st;
		tables[n++] = &st->def->target;
	}
	memset(&res, 0, sizeof(res));
	if (n > 0)
		the_target->ops->identify(the_target, tables, n, ids, &res);
	for (int i = 0; i < n && res.outcome == TARGET_OK; i++)
	{
		if (ids[i] == NULL || strcmp(ids[i], which[i]->seen_id) != 0)
			which[i]->target_ready = false;
	}
}

/* is a table that we are about to write still to be removed, as one of an earlier time? */
static bool
removal_pending(SyncTable *st)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3];
	bool		pending;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	SPI_connect();
	values[0] = CStringGetTextDatum(st->spec.target_schema);
	values[1] = CStringGetTextDatum(st->spec.target_table);
	values[2] = CStringGetTextDatum(st->def->target.name);
	SPI_execute_with_args("SELECT FROM crate_sync.removal WHERE target_schema = $1 AND target_table IN ($2, $3)",
						  3, types, values, NULL, true, 1);
	pending = SPI_processed > 0;
	SPI_finish();
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(oldcxt);
	if (pending)
		next_removal = 0;
	return pending;
}

/* has the target's side ready, takes up what was asked for; false: not now */
/* columns are to be added to the target table: a load that sees every row is due, and durable */
static void
owe_columns(SyncTable *st)
{
	if (load_is_detached(st) || load_is_rebuild(st) || st->spec.resync_no > st->resync_done)
		return;					/* one comes anyway */
	if (st->phase == LOAD_ROWS && st->load_rows > 0)
		load_begin(st, "full");
	else if (st->phase != LOAD_ROWS)
	{
		ereport(LOG,
				(errmsg("crate_sync: %s has not all of its columns: %s.%s is resynced",
						st->def->target.qualified, st->def->schemaname, st->def->relname)));
		load_need(st, "full", "the target table was not as it was left");
	}
	state_ack(true);
}

bool
prepare_table(SyncTable *st)
{
	TargetResult res;
	bool		created;
	bool		altered;
	bool		again;

	if (st->in_error)
	{
		if (GetCurrentTimestamp() < st->error_retry_at)
			return false;
		if (st->stale || st->def == NULL)
		{
			/* what it is comes first: see state_reload() */
			state_changed();
			return false;
		}
		st->in_error = false;
	}
	if (st->def == NULL || st->spec.paused)
		return false;

	if (lanes_idle(st) && st->nlanes != cs_connections)
	{
		lanes_setup(st);
		st->target_ready = false;	/* the lanes that were are to be fenced */
	}
	if (st->spec.resync_no > st->resync_done && st->spec.resync_mode != NULL &&
		strcmp(st->spec.resync_mode, "rebuild") == 0 && !load_is_detached(st))
	{
		/* first of all: the old table may not even fit */
		st->resync_done = st->spec.resync_no;
		load_begin(st, "rebuild");
	}
	else if (st->spec.resync_no > st->resync_done && load_is_rebuild(st) && st->spec.resync_mode != NULL &&
			 strcmp(st->spec.resync_mode, "upsert") != 0)
	{
		/* nor may the new one be to be had */
		st->resync_done = st->spec.resync_no;
		if (strcmp(st->spec.resync_mode, "cancel") == 0)
			load_cancel(st);
		else
			load_begin(st, st->spec.resync_mode);
	}
	set_target_name(st);
	strlcpy(st->def->target.token, claim_token(), sizeof(st->def->target.token));
	if (!make_room_for_rebuild(st))
		return false;

	if (!st->target_ready)
	{
		if (GetCurrentTimestamp() < st->claim_retry_at)
			return false;
		memset(&res, 0, sizeof(res));
		if (removal_pending(st))
		{
			/* what was asked for first is done first */
			if (removal_error[0] != '\0')
				table_trouble(st, "removal",
							  psprintf("its former target table is still to be dropped: %s", removal_error),
							  NULL);
			else
				st->claim_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 100);
			return false;
		}
		/* another's table is not even altered */
		if (claim_is_anothers(st) && !claim_for(st))
			return false;
		created = altered = false;
		cs_point("before ensure");
		the_target->ops->ensure_table(the_target, &st->def->target, false, &created, &altered, &res);
		if (res.outcome == TARGET_OK && altered)
		{
			/* once the columns are there, nothing else tells that their values are not */
			owe_columns(st);
			the_target->ops->ensure_table(the_target, &st->def->target, true, &created, &altered, &res);
		}
		st->found_missing |= created;
		st->found_altered |= altered;
		if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
		{
			target_trouble(res.outcome, res.code, res.message);
			return false;
		}
		if (res.outcome != TARGET_OK)
		{
			table_trouble(st, res.code, res.message, NULL);
			return false;
		}
		see_which_table(st, &res);
		if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
		{
			target_trouble(res.outcome, res.code, res.message);
			return false;
		}
		if (res.outcome == TARGET_BUSY || res.outcome == TARGET_UNKNOWN)
		{
			st->claim_retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 200);
			return false;
		}
		cs_point("before claim");
		if (!claim_for(st))
			return false;
		cs_point("after claim");
		for (int i = 0; i < st->nlanes; i++)
			st->lanes[i].epoch = 0;
		if (!fence_former_lanes(st))
			return false;
		if (st->found_missing || st->found_other || st->ready_no == 0)
		{
			bool		empty = target_is_empty(st);

			/* a new table that has rows of an earlier one already */
			if ((st->found_missing || st->found_other) && !empty && load_is_rebuild(st))
			{
				load_begin(st, "rebuild");
				return false;
			}
			/* it was there before us: what it has too much must go */
			if (st->found_missing && !empty)
				st->found_altered = true;
			/* or a former worker made it, and died before it could write that down */
			st->found_missing = empty && (st->found_missing || source_may_have_rows(st));
		}
		cs_point("before ready");
		st->target_ready = true;
		st->ready_time = GetCurrentTimestamp();
		st->ready_no++;
		worker_feed_soon();
	}

	if (detach_reattach(st))
		return false;

	created = st->found_missing;
	altered = st->found_altered;
	again = st->claimed_again || st->found_other;

	if (st->spec.resync_no > st->resync_done)
	{
		const char *mode = st->spec.resync_mode ? st->spec.resync_mode : "full";
		bool		first = st->resync_done < 0;

		st->resync_done = st->spec.resync_no;
		st->urgent = true;
		if (strcmp(mode, "cancel") == 0)
		{
			if (first && st->phase == LOAD_NONE)
				load_begin(st, "initial");	/* what is cancelled */
			load_cancel(st);
			return true;		/* what was found is dealt with in the next turn */
		}
		else if (strcmp(mode, "none") == 0)
			;					/* the user has seen to it that both are equal */
		else
		{
			/* more than that may be due, or under way, and must not end by being asked for less */
			if (strcmp(mode, "upsert") == 0 &&
				(again || altered || (!st->loaded_once && st->load_mode != NULL) ||
				 st->phase == LOAD_ROWS || st->phase == LOAD_SWEEP))
				mode = load_is_rebuild(st) ? "rebuild" : "full";
			if (created && strcmp(mode, "full") == 0)
				mode = "initial";
			if (created || altered || again)
				load_need(st, mode, first ? "the table was added" : "the target table was not as it was left");
			else
				load_begin(st, mode);
		}
	}
	else if (created && (st->phase == LOAD_NONE || st->phase == LOAD_VERIFY) && st->load_mode == NULL)
	{
		ereport(LOG,
				(errmsg("crate_sync: target table %s was gone, or empty: it is loaded anew",
						st->def->target.qualified)));
		load_need(st, "initial", "the target table was gone, or empty");
	}
	else if (created && st->phase != LOAD_NONE && strcmp(st->load_mode, "rebuild") != 0)
		load_need(st, "initial", "the target table was gone, or empty");
	else if (created && st->phase == LOAD_ROWS && st->load_rows > 0)
		load_begin(st, "rebuild");
	else if (altered && !created && st->phase == LOAD_ROWS && st->load_rows > 0)
		load_begin(st, strcmp(st->load_mode, "rebuild") == 0 ? "rebuild" : "full");
	else if ((again || altered) && !created && (again || st->phase != LOAD_ROWS))
	{
		ereport(LOG,
				(errmsg("crate_sync: %s is not as it was left: %s.%s is resynced",
						st->def->target.qualified, st->def->schemaname, st->def->relname)));
		load_need(st, "full", st->found_other ? "another table has taken the place of the target table" :
				  "the target table was not as it was left");
	}

	if (st->seen_id != NULL && (st->target_id == NULL || strcmp(kept_id(st), st->target_id) != 0))
	{
		set_id(st, &st->target_id, kept_id(st));
		st->dirty = true;
	}
	/* the load is written down before a row is sent: that would hide that it is due */
	if (created || altered || again)
		state_ack(true);
	st->found_missing = st->found_altered = st->claimed_again = st->found_other = false;

	if (st->phase == LOAD_NONE && st->spec.verify_no > st->verify_done)
		verify_begin(st);
	return true;
}

/* the rebuilt table takes the old one's place */
void
swap_rebuilt(SyncTable *st)
{
	TargetResult res;
	TargetTable as = st->def->target;
	TargetTable final = st->def->target;

	if (!st->target_ready || GetCurrentTimestamp() < st->swap_retry_at)
		return;
	if (lanes_late_deletes() != 0)
	{
		/* they know nothing of fences, and would find rows that look the same */
		ereport(LOG,
				(errmsg("crate_sync: rebuild of %s.%s waits for some seconds: a delete that got lost may still arrive",
						st->def->schemaname, st->def->relname)));
		st->swap_retry_at = lanes_late_deletes();
		return;
	}
	final.name = st->spec.target_table;
	final.qualified = psprintf("%s.%s", target_quote_ident(final.schema), target_quote_ident(final.name));
	memset(&res, 0, sizeof(res));
	cs_point("before swap");
	/* what is on its way to the old table would find the new one in its place */
	if (!lanes_fence_all(st, &final, &st->swap_retry_at))
		return;
	/* its readers are to find all rows at once, and not as of the next refresh */
	the_target->ops->refresh(the_target, &as, &res);
	if (res.outcome == TARGET_OK)
		the_target->ops->swap_table(the_target, &as, &final, &res);
	cs_point("after swap");
	if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
		target_trouble(res.outcome, res.code, res.message);
	else if (res.outcome != TARGET_OK)
		table_trouble(st, res.code, res.message, NULL);
	else
	{
		load_swapped(st);
		set_target_name(st);
	}
}
