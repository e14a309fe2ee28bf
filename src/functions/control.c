/*-------------------------------------------------------------------------
 *
 * control.c
 *		What a session asks of the worker, and what it can learn about it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xact.h"
#include "base/session.h"
#include "base/settings.h"
#include "capture/capture.h"
#include "catalog/namespace.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mirror/mirror.h"
#include "pgstat.h"
#include "queue/queue.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/latch.h"
#include "target/target.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

PG_FUNCTION_INFO_V1(crate_sync_start);
PG_FUNCTION_INFO_V1(crate_sync_stop);
PG_FUNCTION_INFO_V1(crate_sync_adopt);
PG_FUNCTION_INFO_V1(crate_sync_wait_for_sync);
PG_FUNCTION_INFO_V1(crate_sync_worker_status);
PG_FUNCTION_INFO_V1(crate_sync_heartbeat);

/* runs statements on the catalog as the extension */
static void
run_elevated(const char *const *sql, int n)
{
	Elevation	e;

	mirror_check_catalog();
	elevate(&e);
	SPI_connect();
	for (int i = 0; i < n; i++)
	{
		if (SPI_execute(sql[i], false, 0) < 0)
			elog(ERROR, "%s failed", sql[i]);
	}
	SPI_finish();
	descend(&e);
}

/* what is preloaded already has to stay, and each library needs its own quotes */
static char *
preload_hint(void)
{
	StringInfoData hint;
	List	   *libraries = NIL;
	ListCell   *lc;
	bool		pending;
	bool		isnull;

	SPI_connect();
	pending = SPI_execute("SELECT pending_restart FROM pg_catalog.pg_settings"
						  " WHERE name OPERATOR(pg_catalog.=) 'shared_preload_libraries'", true, 1) == SPI_OK_SELECT &&
		SPI_processed == 1 &&
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	/* others may not know what is there */
	if (pending || !superuser() ||
		!SplitDirectoriesString(pstrdup(GetConfigOption("shared_preload_libraries", false, false)),
								',', &libraries))
		return pending ? "shared_preload_libraries has been changed: restart the server, if crate_sync is in it now." :
			"Have crate_sync added to shared_preload_libraries, and the server restarted.";

	initStringInfo(&hint);
	appendStringInfoString(&hint, "ALTER SYSTEM SET shared_preload_libraries = ");
	foreach(lc, libraries)
		appendStringInfo(&hint, "%s, ", quote_literal_cstr(lfirst(lc)));
	appendStringInfoString(&hint, "'crate_sync'; and restart the server.");
	return hint.data;
}

Datum
crate_sync_start(PG_FUNCTION_ARGS)
{
	static const char *const sql[] = {
		/* not worker_state: the worker would wait for this transaction's end */
		"UPDATE crate_sync.control SET stopped = false, start_no = start_no + 1",
	};
	bool		running = cs_worker_is_running();

	/* the script of an older version calls this, too: its worker says what is to be done */
	if (!creating_extension || mirror_catalog_is_current())
		run_elevated(sql, lengthof(sql));
	cs_start_worker_at_commit();
	if (!cs_preloaded)
		ereport(WARNING,
				(errmsg("crate_sync is not in shared_preload_libraries"),
				 errdetail("The worker runs until the server stops, and does not start again with it."),
				 errhint("%s", preload_hint())));
	PG_RETURN_BOOL(!running);
}

Datum
crate_sync_stop(PG_FUNCTION_ARGS)
{
	static const char *const sql[] = {
		"UPDATE crate_sync.control SET stopped = true WHERE NOT stopped",
	};

	run_elevated(sql, lengthof(sql));
	cs_wake_worker_at_commit();
	PG_RETURN_BOOL(cs_worker_is_running());
}

Datum
crate_sync_adopt(PG_FUNCTION_ARGS)
{
	static const char *const sql[] = {
		"UPDATE crate_sync.control SET adopt_no = adopt_no + 1",
	};

	run_elevated(sql, lengthof(sql));
	cs_wake_worker_at_commit();
	PG_RETURN_BOOL(true);
}

/* ---------------------------------------------------------------------
 * wait_for_sync
 * ------------------------------------------------------------------- */

/* ms for which what cannot go on may do so after all: errors that are tried again, settings */
#define STUCK_GRACE 5000

/* a table that gets no rows through: it is paused, stopped by an error, or gone */
typedef struct StuckTable
{
	Oid			relid;
	List	   *relations;		/* of Oid: a document's; NIL: it is none */
	char	   *name;
	bool		paused;
	bool		behind;			/* though nothing of it may be queued */
	char	   *error;			/* NULL: in none */
} StuckTable;

typedef struct SyncWait
{
	Oid			relid;			/* InvalidOid: all */
	FullTransactionId before;	/* chunks of older transactions are waited for */
	MemoryContext cxt;			/* lives as long as the call */
	QueuePlace	place;			/* how far the queue has none of them */
	QueuePlace	moving_place;	/* and none but of stuck tables */
	QueueOf    *of;				/* chunks of what is waited for; NULL: all */
	QueueOf		stuck_of;		/* then; lives as long as the call */
	/* as it was at the last look */
	bool		moving;			/* something is on its way */
	bool		loading;		/* a load, among it */
	StuckTable *stuck;			/* that which is behind, or NULL */
	bool		stopped;		/* control.stopped */
	char	   *failed;			/* a table's name, or NULL */
	int64		n_failed;
	TimestampTz stuck_since;	/* nothing can go on; 0: something can */
} SyncWait;

static const char sync_query[] =
"SELECT m.relid::pg_catalog.oid, CASE WHEN c.oid IS NULL "
"  THEN pg_catalog.quote_ident(m.source_schema) || '.' || pg_catalog.quote_ident(m.source_name) "
"  ELSE m.relid::pg_catalog.text END, m.paused, s.state = 'error' OR c.oid IS NULL, "
"CASE WHEN s.state = 'error' THEN coalesce(s.last_error, '') END, "
"s.mirror_id IS NULL OR s.load_phase IN ('load', 'sweep') OR s.resync_done < m.resync_no "
"  OR s.due IS NOT NULL OR s.state IN ('incomplete', 'detached'), "
"(SELECT pg_catalog.count(*) FROM crate_sync.failed f WHERE f.mirror_id = m.mirror_id), "
"(SELECT stopped FROM crate_sync.control), m.relations::pg_catalog.oid[] "
"FROM crate_sync.mirror m LEFT JOIN crate_sync.mirror_state s USING (mirror_id) "
"LEFT JOIN pg_catalog.pg_class c ON c.oid = m.relid "
"WHERE $1 = 0 OR m.relid = $1 ORDER BY 2";

static bool
sync_bool(int row, int col)
{
	bool		isnull;
	Datum		d = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, col, &isnull);

	return !isnull && DatumGetBool(d);
}

/* the first stuck table that is behind, paused ones first: those do not heal */
static StuckTable *
first_behind(StuckTable *stuck, int n)
{
	StuckTable *first = NULL;

	for (int i = 0; i < n; i++)
	{
		if (stuck[i].behind && (first == NULL || (stuck[i].paused && !first->paused)))
			first = &stuck[i];
	}
	return first;
}

static int
sorted_oids(List *oids, Oid **array)
{
	ListCell   *lc;

	*array = palloc(sizeof(Oid) * (list_length(oids) + 1));
	foreach(lc, oids)
		(*array)[foreach_current_index(lc)] = lfirst_oid(lc);
	qsort(*array, list_length(oids), sizeof(Oid), oid_cmp);
	return list_length(oids);
}

static bool
same_oids(const Oid *a, int na, const Oid *b, int nb)
{
	return na == nb && (na == 0 || memcmp(a, b, sizeof(Oid) * na) == 0);
}

/* keys of those are skipped for good, so that a change of theirs begins anew */
static void
note_stuck(SyncWait *w, const StuckTable *stuck, int n)
{
	List	   *keys = NIL;
	List	   *links = NIL;
	QueueOf		now;
	QueueOf    *then = &w->stuck_of;
	MemoryContext oldcxt;

	for (int i = 0; i < n; i++)
	{
		if (stuck[i].relations == NIL)
			keys = lappend_oid(keys, stuck[i].relid);
		else
			links = list_concat(links, stuck[i].relations);
	}
	oldcxt = MemoryContextSwitchTo(w->cxt);
	now.nkeys = sorted_oids(keys, &now.keys);
	now.nlinks = sorted_oids(links, &now.links);
	MemoryContextSwitchTo(oldcxt);
	if (same_oids(now.keys, now.nkeys, then->keys, then->nkeys) &&
		same_oids(now.links, now.nlinks, then->links, then->nlinks))
	{
		pfree(now.keys);
		pfree(now.links);
		return;
	}
	memset(&w->moving_place, 0, sizeof(QueuePlace));
	pfree(then->keys);
	pfree(then->links);
	*then = now;
}

static void
look_at_sync(SyncWait *w)
{
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(w->relid)};
	StuckTable *stuck;
	int			n = 0;
	Elevation	e;
	bool		isnull;

	w->loading = w->stopped = false;
	w->failed = NULL;
	w->n_failed = 0;
	/* a snapshot of this moment, whatever the caller's transaction has */
	PushActiveSnapshot(GetLatestSnapshot());
	elevate(&e);
	SPI_connect();
	if (SPI_execute_with_args(sync_query, 1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.mirror");
	MemoryContextSwitchTo(cxt);
	stuck = palloc0(sizeof(StuckTable) * (SPI_processed + 1));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		char	   *name = SPI_getvalue(tup, desc, 2);
		int64		n_failed = DatumGetInt64(SPI_getbinval(tup, desc, 7, &isnull));
		bool		paused = sync_bool(i, 3);

		name = pstrdup(name ? name : "?");
		if (n_failed > 0 && w->failed == NULL)
			w->failed = name;
		w->n_failed += n_failed;
		w->stopped |= sync_bool(i, 8);
		if (paused || sync_bool(i, 4))
		{
			StuckTable *t = &stuck[n++];
			char	   *error = SPI_getvalue(tup, desc, 5);

			Datum		relations = SPI_getbinval(tup, desc, 9, &isnull);

			t->relations = isnull ? NIL : mirror_oid_list(DatumGetArrayTypeP(relations));
			t->relid = DatumGetObjectId(SPI_getbinval(tup, desc, 1, &isnull));
			t->name = name;
			t->paused = paused;
			t->error = error ? pstrdup(error) : NULL;
			/* a stopped table may lack what nobody has queued yet */
			t->behind = error != NULL || sync_bool(i, 6);
		}
		else
			w->loading |= sync_bool(i, 6);
	}
	SPI_finish();
	descend(&e);

	note_stuck(w, stuck, n);
	w->moving = w->loading;
	if (queue_has_before(w->before, w->of, NULL, &w->place))
	{
		if (n == 0 || queue_has_before(w->before, w->of, &w->stuck_of, &w->moving_place))
			w->moving = true;
		for (int i = 0; i < n; i++)
			stuck[i].behind |= w->place.link ? list_member_oid(stuck[i].relations, w->place.relid) :
				stuck[i].relations == NIL && stuck[i].relid == w->place.relid;
	}
	PopActiveSnapshot();
	w->stuck = first_behind(stuck, n);
}

/* what is behind and has no way to arrive: that which has to be done by somebody */
static bool
cannot_go_on(const SyncWait *w)
{
	LiveDatabase db;

	if (w->stuck != NULL && !w->moving)
		return true;
	if (!live_look(&db) || db.pid == 0)
		return w->stopped;
	return !cs_enabled || strcmp(db.state, "no target") == 0;
}

static void
warn_not_synced(const SyncWait *w)
{
	LiveDatabase db;
	bool		known = live_look(&db);

	if (w->stuck != NULL && w->stuck->paused)
		ereport(WARNING,
				(errmsg("table %s is paused", w->stuck->name),
				 errhint("SELECT crate_sync.resume(%s);", quote_literal_cstr(w->stuck->name))));
	else if (!known || db.pid == 0)
		ereport(WARNING,
				(errmsg("no crate_sync worker is running in this database"),
				 errhint("SELECT crate_sync.start();")));
	else if (!cs_enabled || strcmp(db.state, "ok") != 0)
		ereport(WARNING,
				(errmsg("the target cannot be written: %s", !cs_enabled ? "crate_sync.enabled is off" :
						strcmp(db.state, "no target") != 0 && db.last_error[0] ? db.last_error : db.state),
				 errhint("See crate_sync.status.")));
	else if (w->stuck != NULL && w->stuck->error != NULL)
		ereport(WARNING,
				(errmsg("table %s is stopped: %s", w->stuck->name, w->stuck->error),
				 errhint("See crate_sync.tables.")));
	else if (w->stuck != NULL)
		ereport(WARNING,
				(errmsg("table %s was dropped", w->stuck->name),
				 errhint("See crate_sync.status.")));
	else
		ereport(WARNING,
				(errmsg("not in sync when the timeout was over: %s",
						w->loading ? "a table is not loaded in full" : "changes are still queued"),
				 errhint("See crate_sync.tables and crate_sync.progress, or wait with a longer timeout.")));
}

Datum
crate_sync_wait_for_sync(PG_FUNCTION_ARGS)
{
	SyncWait	w;
	Interval   *timeout = PG_ARGISNULL(1) ? NULL : PG_GETARG_INTERVAL_P(1);
	TimestampTz deadline = DT_NOEND;
	uint64		refresh = 0;
	int			nap = 1;
	MemoryContext cxt;
	MemoryContext oldcxt;
	bool		result = false;

	if (capture_pending())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("this transaction has changed mirrored tables and is not committed"),
				 errhint("Commit first: the worker sees what is committed.")));
	if (cs_wakes_worker_at_commit())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("this transaction has asked the worker for something and is not committed"),
				 errhint("Commit first: the worker sees what is committed.")));
	mirror_check_catalog();
	memset(&w, 0, sizeof(w));
	w.cxt = CurrentMemoryContext;
	w.relid = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	if (OidIsValid(w.relid))
	{
		Elevation	e;
		bool		mirrored = false;
		List	   *keys = NIL;
		List	   *links = NIL;
		ListCell   *lc;

		elevate(&e);
		foreach(lc, mirror_load(InvalidOid))
		{
			MirrorSpec *spec = lfirst(lc);

			if (spec->relid != w.relid)
				continue;
			mirrored = true;
			if (spec->definition == NULL)
				keys = list_make1_oid(spec->relid);
			links = list_concat_unique_oid(links, spec->relations);
		}
		descend(&e);
		w.of = palloc(sizeof(QueueOf));
		w.of->nkeys = sorted_oids(keys, &w.of->keys);
		w.of->nlinks = sorted_oids(links, &w.of->links);
		if (!mirrored)
		{
			char	   *name = get_rel_name(w.relid);

			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 name != NULL ? errmsg("table \"%s\" is not mirrored", name) :
					 errmsg("relation with OID %u does not exist", w.relid)));
		}
	}
	if (timeout != NULL)
	{
		double		ms = timeout->time / 1000.0 + timeout->day * 86400000.0 +
			timeout->month * 30.0 * 86400000.0;

		if (ms < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("timeout must not be negative")));
		/* a longer one, an infinite one too, is none */
		if (ms < 1e12)
			deadline = GetCurrentTimestamp() + (int64) (ms * 1000.0);
	}
	w.before = ReadNextFullTransactionId();
	w.stuck_of.keys = palloc(sizeof(Oid));
	w.stuck_of.links = palloc(sizeof(Oid));
	cs_wake_worker_now();

	cxt = AllocSetContextCreate(CurrentMemoryContext, "wait_for_sync", ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(cxt);
	for (;;)
	{
		TimestampTz now = GetCurrentTimestamp();
		bool		refreshed;

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(cxt);
		/* before the look: what was found to be due until then is seen by it */
		refreshed = live_is_refreshed(w.relid, refresh);
		look_at_sync(&w);
		if (refreshed && w.moving)
			refresh = 0;		/* more has come of it: once more behind that */
		if (!w.moving && w.stuck == NULL)
		{
			/* all has arrived: now it has to be seen by searches too */
			if (refresh == 0)
			{
				refresh = live_want_refresh(w.relid);
				cs_wake_worker_now();
			}
			if (refreshed)
			{
				result = w.n_failed == 0;
				if (!result)
					ereport(WARNING,
							(errmsg(INT64_FORMAT " rows could not be pushed, the first of them in table %s",
									w.n_failed, w.failed),
							 errhint("See crate_sync.failed_rows; mend them and SELECT crate_sync.retry_failed();")));
				break;
			}
		}
		if (!cannot_go_on(&w))
			w.stuck_since = 0;
		else if (w.stuck_since == 0)
			w.stuck_since = now;
		if (now >= deadline || (w.stuck != NULL && w.stuck->paused && !w.moving) ||
			(w.stuck_since != 0 && now >= TimestampTzPlusMilliseconds(w.stuck_since, STUCK_GRACE)))
		{
			warn_not_synced(&w);
			break;
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, nap,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		nap = Min(nap * 2, 50);
	}
	MemoryContextSwitchTo(oldcxt);
	MemoryContextDelete(cxt);
	PG_RETURN_BOOL(result);
}

/* ---------------------------------------------------------------------
 * Status
 * ------------------------------------------------------------------- */

Datum
crate_sync_worker_status(PG_FUNCTION_ARGS)
{
	TupleDesc	tupdesc;
	Datum		values[11];
	bool		nulls[11];
	LiveDatabase copy;
	const char *target;
	const char *hint;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	live_look(&copy);

	memset(nulls, 0, sizeof(nulls));
	target = cs_target_in_use();
	hint = copy.hint;
	if (strcmp(copy.state, "down") != 0)
	{
		if (target[0] == '\0')
			hint = cs_target_hint();
		else if (copy.pid == 0 && hint[0] == '\0')
			hint = cs_preloaded ? "SELECT crate_sync.start();" :
				psprintf("SELECT crate_sync.start(); and to have it start with the server: %s", preload_hint());
	}
	values[0] = CStringGetTextDatum(target);
	nulls[1] = copy.target_version[0] == '\0';
	values[1] = CStringGetTextDatum(copy.target_version);
	nulls[2] = copy.pid == 0;
	values[2] = Int32GetDatum(copy.pid);
	nulls[3] = copy.start_time == 0;
	values[3] = TimestampTzGetDatum(copy.start_time);
	values[4] = BoolGetDatum(cs_preloaded);
	values[5] = CStringGetTextDatum(cs_enabled ? copy.state : "disabled");
	nulls[6] = copy.last_send_time == 0;
	values[6] = TimestampTzGetDatum(copy.last_send_time);
	nulls[7] = copy.last_ack_time == 0;
	values[7] = TimestampTzGetDatum(copy.last_ack_time);
	nulls[8] = copy.last_error[0] == '\0';
	values[8] = CStringGetTextDatum(copy.last_error);
	nulls[9] = copy.last_error_time == 0;
	values[9] = TimestampTzGetDatum(copy.last_error_time);
	nulls[10] = hint[0] == '\0';
	values[10] = CStringGetTextDatum(hint);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}

/* when the worker last went round its loop; NULL: it has not yet */
Datum
crate_sync_heartbeat(PG_FUNCTION_ARGS)
{
	LiveDatabase copy;

	if (!live_look(&copy) || copy.pid == 0 || copy.last_turn_time == 0)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(copy.last_turn_time);
}
