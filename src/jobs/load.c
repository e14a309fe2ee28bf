/*-------------------------------------------------------------------------
 *
 * load.c
 *		Loads, resyncs and sweeps: another reader in front of the same lanes.
 *
 * A load goes through the table in pieces by ctid, each in its own snapshot;
 * what changes meanwhile is queued by the triggers and pushed by the same
 * lanes, so neither can overtake the other.  A sweep goes through the
 * target's keys and deletes those that the source does not have.  Both know
 * how far they were acknowledged and go on from there after a restart.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xact.h"
#include "base/point.h"
#include "jobs/verify.h"
#include "pipeline/plans.h"
#include "pipeline/table.h"
#include "utils/builtins.h"

/* keys in a page of a sweep */
#define SWEEP_KEYS 5000

/* sweep_key while rows are loaded: rows may have to go once they are */
#define SWEEP_WANTED "wanted"

static void
set_string(SyncTable *st, char **place, const char *value)
{
	char	   *copy = value ? MemoryContextStrdup(st->cxt, value) : NULL;

	if (*place != NULL)
		pfree(*place);
	*place = copy;
}

/* feeding goes on behind what was acknowledged */
void
load_restart(SyncTable *st)
{
	st->feed_rel = st->load_rel;
	st->feed_filenode = st->load_filenode;
	st->feed_pos = st->load_pos;
	st->feed_done = false;
	st->feed_blocks = 32;
	set_string(st, &st->feed_sweep_key, st->sweep_key);
	st->sweep_started = false;
	st->sweep_barrier = pass_last_no();
}

void
load_enter_phase(SyncTable *st, LoadPhase phase)
{
	dlist_iter	it;

	/* pieces of an earlier one still in lanes push rows, and end nothing */
	dlist_foreach(it, &st->passes)
	{
		Pass	   *pass = dlist_container(Pass, node, it.cur);

		if (pass->kind != PASS_QUEUE)
			pass->load_pos = -1;
	}
	st->urgent = true;
	st->swap_wanted = false;
	st->phase = phase;
	st->load_rel = InvalidOid;
	st->load_filenode = InvalidOid;
	st->load_pos = 0;
	set_string(st, &st->sweep_key, NULL);
	st->load_rows = 0;
	st->load_bytes = 0;
	st->load_start = GetCurrentTimestamp();
	st->dirty = true;
	load_restart(st);
}

/* how the log calls it */
static const char *
load_title(const char *mode)
{
	if (strcmp(mode, "initial") == 0)
		return "load";
	if (strcmp(mode, "sweep") == 0)
		return "sweep";
	return strcmp(mode, "full") == 0 ? "full resync" :
		strcmp(mode, "upsert") == 0 ? "upserting resync" : "rebuild";
}

static void
finish(SyncTable *st)
{
	bool		all = strcmp(st->load_mode, "upsert") != 0 && strcmp(st->load_mode, "sweep") != 0;

	ereport(LOG,
			(errmsg("crate_sync: %s of %s.%s finished", load_title(st->load_mode),
					st->def->schemaname, st->def->relname)));
	load_enter_phase(st, LOAD_NONE);
	set_string(st, &st->load_mode, NULL);
	if (st->due_again)
	{
		/* what it may have missed is owed still */
		st->due_again = false;
		load_begin(st, "full");
		return;
	}
	set_string(st, &st->due, NULL);
	st->load_finished = true;
	st->loaded_once = true;
	/* every row of both sides was written or deleted, whatever verify had found */
	if (all && st->n_differences > 0)
		st->n_differences = 0;
}

/*
 * Starts a load.  mode: initial (into a table that was made for it), full,
 * upsert, rebuild; or sweep alone.
 */
void
load_begin(SyncTable *st, const char *mode)
{
	if (load_is_rebuild(st) && strcmp(mode, "rebuild") != 0)
		give_up_rebuild(st);
	set_string(st, &st->load_mode, mode);
	load_enter_phase(st, strcmp(mode, "sweep") == 0 ? LOAD_SWEEP : LOAD_ROWS);
	/* not a row before it has a new table: see make_room_for_rebuild() */
	st->rebuild_begun = false;
	if (load_is_rebuild(st))
		st->target_ready = false;
	plans_forget_leaf(st);		/* its filter may be another one */
	if (st->def != NULL)
		ereport(LOG,
				(errmsg("crate_sync: %s of %s.%s begins%s%s", load_title(mode),
						st->def->schemaname, st->def->relname,
						st->due ? ": " : "", st->due ? st->due : "")));
}

/*
 * A load without which the table is not whole, as changes may have been missed:
 * whoever cancels it has an incomplete table.  That it is owed, and why, is
 * written down with the next acknowledgement, and cleared by nothing but the
 * end of a load that began later.
 */
void
load_need(SyncTable *st, const char *mode, const char *why)
{
	st->loaded_once = false;
	set_string(st, &st->due, why);
	st->due_again = false;		/* the one that begins now sees it all */
	load_begin(st, mode);
}

/*
 * Rows of any key may have changed.  A load that has not read anything yet
 * will see them; behind one that has, one more is owed.  To begin it anew each
 * time could mean that none is ever finished.
 */
void
load_look_at_all(SyncTable *st, const char *why)
{
	bool		nothing_read = st->feed_rel == InvalidOid && st->load_rel == InvalidOid &&
		!st->feed_done;
	dlist_iter	it;

	if (load_is_detached(st))
		return;					/* a full load is to come anyway */
	if (st->phase != LOAD_ROWS && st->phase != LOAD_SWEEP)
	{
		load_need(st, "full", why);
		return;
	}
	dlist_foreach(it, &st->passes)
		nothing_read &= dlist_container(Pass, node, it.cur)->kind == PASS_QUEUE;
	st->loaded_once = false;
	if (st->due == NULL)
		set_string(st, &st->due, why);
	if (st->phase == LOAD_ROWS && nothing_read && strcmp(st->load_mode, "upsert") != 0)
	{
		/* it had nothing to remove yet */
		if (strcmp(st->load_mode, "initial") == 0)
			set_string(st, &st->load_mode, "full");
	}
	else
		st->due_again = true;
	st->urgent = st->dirty = true;
}

/* nothing is known any more of what the target has, of any table */
void
load_all_again(const char *why)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		bool		rebuild = load_is_rebuild(st);

		if (!st->state_known || st->resync_done < 0 || load_is_detached(st))
			continue;			/* it will be loaded anyway */
		load_need(st, rebuild ? "rebuild" : "full", why);
	}
}

void
load_cancel(SyncTable *st)
{
	st->urgent = true;
	verify_cancel(st);
	if (st->phase == LOAD_NONE)
		return;
	if (load_is_rebuild(st))
	{
		give_up_rebuild(st);
		st->loaded_once = false;
		set_string(st, &st->due, "a rebuild was cancelled: the old table has missed what went to the new one");
	}
	load_enter_phase(st, LOAD_NONE);
	/* a table that was loaded once is as whole as it was before */
	set_string(st, &st->load_mode, st->loaded_once ? NULL : "cancelled");
	ereport(LOG,
			(errmsg("crate_sync: resync of %s.%s cancelled",
					st->def->schemaname, st->def->relname)));
}

bool
load_is_rebuild(const SyncTable *st)
{
	return st->phase == LOAD_ROWS && st->load_mode != NULL && strcmp(st->load_mode, "rebuild") == 0;
}

bool
load_is_detached(const SyncTable *st)
{
	return st->load_mode != NULL && strcmp(st->load_mode, LOAD_MODE_DETACHED) == 0;
}

/* the table queues nothing any more: only a full load can make it good */
void
load_detach(SyncTable *st)
{
	st->urgent = true;
	if (load_is_rebuild(st))
		give_up_rebuild(st);
	load_enter_phase(st, LOAD_NONE);
	set_string(st, &st->load_mode, LOAD_MODE_DETACHED);
	st->attached_again = false;
	st->target_ready = false;	/* to be seen anew before it is captured again */
}

/* after TRUNCATE, or when keys were lost: rows may have to go */
void
load_want_sweep(SyncTable *st)
{
	if (load_is_detached(st))
		return;					/* a full load is to come anyway */
	if (st->phase == LOAD_ROWS)
	{
		/* every row is on its way anyway; the sweep comes behind */
		if (strcmp(st->load_mode, "initial") == 0)
			set_string(st, &st->load_mode, "full");
		else if (st->sweep_key == NULL)
			set_string(st, &st->sweep_key, SWEEP_WANTED);
		st->urgent = true;
	}
	else if (st->phase == LOAD_SWEEP)
		load_enter_phase(st, LOAD_SWEEP);	/* from the start */
	else if (st->due != NULL || (!st->loaded_once && st->load_mode != NULL))
		load_need(st, "full", st->due ? st->due : "a load was cancelled");	/* a sweep is not enough */
	else
		load_need(st, "sweep", "rows were truncated");
	st->loaded_once = false;
	st->dirty = true;
}

/*
 * Rows that were read before the TRUNCATE may still be on their way: a sweep
 * that looked before they arrive would leave them there for good.  So it
 * begins when all that was read before is acknowledged, and fenced as far as
 * an earlier worker sent it.
 */
static bool
sweep_may_start(SyncTable *st)
{
	dlist_iter	it;

	dlist_foreach(it, &st->passes)
	{
		Pass	   *pass = dlist_container(Pass, node, it.cur);

		if (pass->no <= st->sweep_barrier && !pass->done)
			return false;
	}
	return lanes_fence(st);
}

static void
sweep_step(SyncTable *st)
{
	MemoryContext oldcxt = CurrentMemoryContext;
	Pass	   *pass = pass_create(st, PASS_SWEEP);
	RowSet	   *page;
	RowSet	   *after = NULL;
	TargetResult res;
	int			wanted = st->sweep_limit > 0 ? Min(st->sweep_limit, SWEEP_KEYS) : SWEEP_KEYS;

	MemoryContextSwitchTo(pass->cxt);
	page = rowset_create(pass->cxt, st->def->nkeys);
	if (st->feed_sweep_key != NULL)
		after = reader_key_rowset(st, st->feed_sweep_key);
	memset(&res, 0, sizeof(res));
	cs_point("before page");
	the_target->ops->page(the_target, &st->def->target, st->def->target.keys, st->def->nkeys,
						  after, wanted, !st->sweep_started, page, &res);
	if (res.outcome != TARGET_OK)
	{
		MemoryContextSwitchTo(oldcxt);
		if (res.outcome == TARGET_REFUSED_ALL || res.outcome == TARGET_UNREACHABLE)
			target_trouble(res.outcome, res.code, res.message);
		else
			table_trouble(st, res.code, res.message, NULL);	/* frees the pass */
		if (!st->in_error)
		{
			pass->load_pos = -1;
			pass->fed = true;
			pass_settle(st, pass, 0);
		}
		return;
	}
	st->sweep_started = true;
	cs_point("after page");

	if (page->nrows > 0 && !reader_take_page(st, pass, page))
	{
		MemoryContextSwitchTo(oldcxt);
		if (!st->in_error)
		{
			/* no step forward */
			pass->load_pos = -1;
			pass->fed = true;
			keyset_free(pass->keys);
			pass->keys = NULL;
			pass_settle(st, pass, 0);
		}
		return;
	}
	if (page->nrows > 0)
	{
		StringInfoData last;

		initStringInfo(&last);
		for (int k = 0; k < st->def->nkeys; k++)
		{
			int			len;
			const char *cell = rowset_get(page, page->nrows - 1, k, &len);

			if (k > 0)
				appendStringInfoChar(&last, ',');
			appendBinaryStringInfo(&last, cell, len);
		}
		pass->sweep_key = last.data;
		set_string(st, &st->feed_sweep_key, last.data);
	}
	pass->rows = page->nrows;
	if (page->nrows < wanted)
	{
		pass->last = true;
		st->feed_done = true;
	}
	pass->fed = pass->keys == NULL || keyset_nopen(pass->keys) == 0;
	rowset_free(page);
	MemoryContextSwitchTo(oldcxt);
	if (!pass->fed)
		reader_feed_keys(st, pass);
	else
		pass_settle(st, pass, 0);
}

bool
load_step(SyncTable *st)
{
	if (st->phase == LOAD_VERIFY)
		return worker_may_feed(st) && verify_step(st);
	if (st->phase == LOAD_NONE || st->feed_done || !worker_may_feed(st))
		return false;
	if (st->phase == LOAD_ROWS)
	{
		cs_point("before piece");
		reader_feed_range(st);
	}
	else if (st->sweep_started || sweep_may_start(st))
		sweep_step(st);
	else
		return false;
	return true;
}

/* a piece is acknowledged; called in the order of pieces */
void
load_pass_done(SyncTable *st, Pass *pass)
{
	if (pass->load_pos == -1 || st->phase == LOAD_NONE)
		return;					/* of a load that was begun anew */
	st->load_rows += pass->rows;
	st->load_bytes += pass->bytes;
	st->dirty = true;
	if (pass->kind == PASS_LOAD && st->phase == LOAD_ROWS)
	{
		st->load_rel = pass->load_rel;
		st->load_filenode = pass->load_filenode;
		st->load_pos = pass->load_pos;
		if (!pass->last)
			return;
		if (strcmp(st->load_mode, "rebuild") == 0)
			st->swap_wanted = true;
		else if (strcmp(st->load_mode, "full") == 0 || st->sweep_key != NULL)
			load_enter_phase(st, LOAD_SWEEP);
		else
			finish(st);
	}
	else if (pass->kind == PASS_SWEEP && st->phase == LOAD_SWEEP)
	{
		set_string(st, &st->sweep_key, pass->sweep_key);
		if (pass->last)
			finish(st);
	}
}

/* the new table took the old one's place */
void
load_swapped(SyncTable *st)
{
	bool		sweep = st->sweep_key != NULL;

	st->swap_wanted = false;
	finish(st);
	if (sweep)
		load_need(st, "sweep", "rows were truncated");	/* they came along */
}
