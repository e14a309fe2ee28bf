/*-------------------------------------------------------------------------
 *
 * main.c
 *		One worker a database: the loop that keeps all rooms going.
 *
 * Each turn: heed what was asked of us, look after the target and the
 * tables, read, send, take in answers, acknowledge; and if nothing was to be
 * done, wait for a latch, an answer or a moment.  No transaction is open
 * while it waits, and none of the user's locks is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <sys/stat.h>

#include "access/xact.h"
#include "access/xlog.h"
#include "base/bounded.h"
#include "base/point.h"
#include "base/session.h"
#include "base/settings.h"
#include "base/text.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "endpoint/claim.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "mirror/mirror.h"
#include "pgstat.h"
#include "pipeline/code.h"
#include "pipeline/table.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/pmsignal.h"
#include "storage/proc.h"
#include "storage/procarray.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "worker/history.h"
#include "worker/overflow.h"

/* deaths in a row without anything pushed, after which it stays down */
#define UNCLEAN_STARTS_LIMIT 10
/* whoever lived that long did not die of what it found at its start */
#define UNCLEAN_LIFE_MS 60000

/* ms of a turn for making tables ready, beyond one of them */
#define PREPARE_MS 20

Target	   *the_target = NULL;
bool		worker_target_ok = false;
Size		worker_held_bytes = 0;

static LiveDatabase *live_db = NULL;
static char *target_conf = NULL;	/* what the_target was opened with */
static char *target_login = NULL;	/* as it was last tried, see login_settings() */
static int	target_attempts = 0;
static TimestampTz target_retry_at = 0;
static char target_trouble_said[32];	/* the state that was logged last */
static bool stopped = false;	/* control.stopped */
static Oid	extension_oid = InvalidOid;
static bool restart_wanted = false;
static bool start_counted = false;	/* in worker_state.unclean_starts */
static bool progress_noted = false;
static bool table_blamed = false;	/* for the last one's end */

static void note_progress(void);

typedef struct Turn
{
	TimestampTz next_look;		/* at the catalog, whether we belong here */
	TimestampTz next_feed;		/* at the queue, woken or not */
	TimestampTz next_rotate;
	TimestampTz next_stats;
	bool		more;			/* the last visit to the queue took something */
	bool		hurry;			/* some table's reads take long */
} Turn;

static Turn turn;

/* ---------------------------------------------------------------------
 * What others are told
 * ------------------------------------------------------------------- */

/* what it waited for was no error; with the lock held */
static void
forget_waiting(void)
{
	if (strcmp(live_db->state, "waiting") != 0)
		return;
	live_db->last_error[0] = '\0';
	live_db->last_error_time = 0;
}

/* error, hint: may be NULL; a hint not given again is gone */
void
worker_tell_state(const char *state, const char *error, const char *hint)
{
	LiveShared *live = live_attach();

	if (live_db == NULL)
		return;
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	forget_waiting();
	strlcpy(live_db->state, state, sizeof(live_db->state));
	if (error != NULL)
	{
		/* not in the middle of a character */
		strlcpy(live_db->last_error, error,
				1 + pg_mbcliplen(error, strlen(error), sizeof(live_db->last_error) - 1));
		live_db->last_error_time = GetCurrentTimestamp();
	}
	strlcpy(live_db->hint, hint ? hint : "", sizeof(live_db->hint));
	LWLockRelease(&live->lock);
}

static void
tell_time(TimestampTz *when)
{
	LiveShared *live = live_attach();
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	*when = now;
	LWLockRelease(&live->lock);
}

void
live_note_ack(void)
{
	if (live_db != NULL)
		tell_time(&live_db->last_ack_time);
}

/* sessions may have begun with another one */
static void
tell_target(void)
{
	LiveShared *live = live_attach();
	const char *target = cs_target ? cs_target : "";

	if (live_db == NULL)
		return;
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	strlcpy(live_db->target, target,
			1 + pg_mbcliplen(target, strlen(target), sizeof(live_db->target) - 1));
	LWLockRelease(&live->lock);
}

/* the queue is to be looked at in the next turn, woken or not */
void
worker_feed_soon(void)
{
	turn.next_feed = 0;
}

static bool
room_to_feed(void)
{
	return worker_held_bytes < (Size) cs_work_mem * 1024 / 2;
}

/*
 * A table's batches may take three times of what is left then, so that whoever
 * waits long for his answers leaves room for others.
 */
bool
worker_has_room(const SyncTable *st)
{
	return room_to_feed() &&
		st->held_bytes / 3 < (Size) cs_work_mem * 1024 / 2 - worker_held_bytes;
}

bool
worker_may_feed(SyncTable *st)
{
	if (!worker_target_ok || st->in_error || !st->target_ready || st->spec.paused || st->gone)
		return false;
	if (!worker_has_room(st))
		return false;
	if (code_retry_at(st) != 0 || (code_runs(st) && !bounded_turn_has_time()))
		return false;			/* it has had its share */
	if (st->read_retry_at != 0 && GetCurrentTimestamp() < st->read_retry_at)
		return false;
	for (int i = 0; i < st->nlanes; i++)
	{
		if (st->lanes[i].nsealed >= 2)
			return false;
	}
	return true;
}

/* what may be wrong with the setting, if the target answers nothing; palloc'd */
static char *
unreachable_hint(const char *text)
{
	static const char *const hints[][2] = {
		{"wrong version number", "Does it speak TLS? If not, crate_sync.target begins with http://. "},
		{"SSL connection timeout", "Does it speak TLS? If not, crate_sync.target begins with http://. "},
		{"Could not resolve host", "Is the host's name in crate_sync.target right? "},
		{"closed before an answer", "Is the port in crate_sync.target that of CrateDB's HTTP endpoint, 4200 by default? "},
		{"HTTP/0.9", "Is the port in crate_sync.target that of CrateDB's HTTP endpoint, 4200 by default? "},
	};
	const char *more = "";

	for (int i = 0; i < lengthof(hints); i++)
	{
		if (strstr(text, hints[i][0]) != NULL)
			more = hints[i][1];
	}
	return psprintf("%sChanges go on queueing and are pushed when it answers.", more);
}

void
target_trouble(TargetOutcome outcome, const char *code, const char *message)
{
	char	   *hint;
	const char *state;
	const char *text = message ? message : "no reason given";

	worker_target_ok = false;
	target_attempts++;
	target_retry_at = backoff(target_attempts);
	if (outcome == TARGET_REFUSED_ALL)
	{
		state = "target refuses";
		hint = pstrdup(cs_target != NULL && pg_strncasecmp(cs_target, "sqlite:", 7) == 0 ?
					   "Check crate_sync.target: the server has to be able to write that file, and into its directory; changes go on queueing." :
					   "Check crate_sync.target, crate_sync.user and crate_sync.password_file; changes go on queueing.");
	}
	else
	{
		state = "target unreachable";
		hint = unreachable_hint(text);
	}
	/* a line per change of state, not per retry */
	if (strcmp(state, target_trouble_said) != 0)
	{
		strlcpy(target_trouble_said, state, sizeof(target_trouble_said));
		ereport(LOG,
				(errmsg("crate_sync: %s: %s", state, text),
				 errhint("%s", hint)));
	}
	worker_tell_state(state, text, hint);
	pfree(hint);
}

/* what a person can do about a table that is stopped for that reason */
static const char *
trouble_hint(const SyncTable *st, const char *code)
{
	static const char *const hints[][2] = {
		{"shards", "It goes on by itself when the node that has them is back. If they are lost for good, drop the table in the target: then it is made and loaded anew. Replicas avoid this."},
		{"5002", "It goes on by itself when the node that has the shards is back; see sys.health in the target."},
		{"4007", "The table is blocked in the target: see its settings blocks.*. It goes on by itself when the block is gone; changes go on queueing."},
		{"4037", "The target's disk is nearly full: make room there. It goes on by itself when the block is gone; changes go on queueing."},
		{"dropped", "Many rows may have values that are not of their column's type in the target, such as objects whose members have other types than there: mend them, or have the column be of another type. Or the table is blocked there, or the disk nearly full: then it goes on by itself. Changes go on queueing."},
		{"4011", "Give crate_sync.user its rights in the target: GRANT DQL, DML, DDL ON SCHEMA. Changes go on queueing."},
		{"http 429", "The target has no room for more: see its load. It is tried again by itself; changes go on queueing."},
		{"network", "The target answers, but not to this table's requests: see what keeps it there, or raise crate_sync.request_timeout or lower crate_sync.batch_rows. Changes go on queueing."},
		{"fence", "Older statements on the table still run in the target: see sys.jobs there. It goes on by itself when they end; changes go on queueing."},
		{"5000", "See the target's log. It is tried again by itself; changes go on queueing."},
	};

	if (code != NULL && st->def != NULL && (strcmp(code, "columns") == 0 || strcmp(code, "mismatch") == 0))
		return psprintf("SELECT crate_sync.resync(%s, 'rebuild'); loads a table that fits and has it take this one's place, with all that is in it. Or mend it in the target, or drop it there: then it is made and loaded anew. Changes go on queueing.",
						quote_literal_cstr(quote_qualified_identifier(st->def->schemaname, st->def->relname)));
	for (int i = 0; code != NULL && i < lengthof(hints); i++)
	{
		if (strcmp(hints[i][0], code) == 0)
			return hints[i][1];
	}
	return "It is tried again by itself; changes go on queueing.";
}

/* something is wrong with the table, and it goes on all the same */
void
table_warning(SyncTable *st, const char *code, const char *message, const char *hint)
{
	/* the source's words may be those of a user's function: any text at all */
	const char *text = message ? target_clean_text(message, strlen(message)) : "no reason given";

	if (st->error_message != NULL)
		pfree(st->error_message);
	if (st->error_hint != NULL)
		pfree(st->error_hint);
	st->error_message = MemoryContextStrdup(st->cxt, text);
	st->error_hint = MemoryContextStrdup(st->cxt, hint ?
										 target_clean_text(hint, strlen(hint)) : trouble_hint(st, code));
	strlcpy(st->error_code, code ? code : "", sizeof(st->error_code));
	st->error_changed = true;
	st->dirty = true;
}

void
table_trouble(SyncTable *st, const char *code, const char *message, const char *hint)
{
	const char *text;

	table_warning(st, code, message, hint);
	text = st->error_message;
	st->in_error = true;
	st->target_ready = false;
	st->error_attempts++;
	st->error_retry_at = Max(backoff(Min(st->error_attempts + 2, 30)), code_retry_at(st));
	st->parked_in_a_row = 0;
	if (strncmp(st->logged_error, text, sizeof(st->logged_error) - 1) != 0)
	{
		strlcpy(st->logged_error, text, sizeof(st->logged_error));
		ereport(LOG,
				(st->def ?
				 errmsg("crate_sync: table %s.%s is stopped: %s", st->def->schemaname, st->def->relname, text) :
				 errmsg("crate_sync: table %u is stopped: %s", st->relid, text),
				 errhint("%s", st->error_hint)));
	}
	state_hold_work(st);
}

static void table_recovered(SyncTable *st);

/* rows went through again */
void
table_goes_on(SyncTable *st)
{
	st->error_attempts = 0;
	if (st->error_message != NULL && !st->stale && st->read_timeouts == 0)
		table_recovered(st);
	if (st->logged_error[0] == '\0')
		return;
	st->logged_error[0] = '\0';
	ereport(LOG,
			(errmsg("crate_sync: table %s.%s goes on", st->def->schemaname, st->def->relname)));
}

/* what stopped it is gone */
static void
table_recovered(SyncTable *st)
{
	pfree(st->error_message);
	st->error_message = NULL;
	st->error_changed = true;
	st->dirty = true;
}

/* what may have been the remedy for the code that it runs was done */
static void
try_again(Oid relid)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (st->relid == relid && st->in_error)
			st->error_retry_at = code_retry_at(st);
	}
}

/* ---------------------------------------------------------------------
 * Ends and beginnings
 * ------------------------------------------------------------------- */

static void
on_exit_clear(int code, Datum arg)
{
	LiveShared *live = live_attach();
	bool		cut_short = bounded_exit();

	if (live_db == NULL)
		return;
	/* asked to leave, or leaving by itself: that is no unclean end */
	if (start_counted && !progress_noted && PostmasterIsAlive())
	{
		AbortOutOfAnyTransaction();
		note_progress();
	}
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	live_db->pid = 0;
	live_db->proc = NULL;
	live_db->start_time = 0;
	/* what it said last is true no more */
	forget_waiting();
	if (strcmp(live_db->state, "down") != 0)
		live_db->state[0] = live_db->hint[0] = '\0';
	if (cut_short)
		live_db->next_start = 0;	/* what it ended for is left out */
	else if (code != 0)
	{
		live_db->failures++;
		live_db->next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														  Min(60000, 1000 * live_db->failures));
	}
	LWLockRelease(&live->lock);
}

/* ends this worker; wanted says whether the launcher should start another */
static void
leave(LiveWanted wanted, int delay_ms)
{
	LiveShared *live = live_attach();

	if (live_db != NULL)
	{
		LWLockAcquire(&live->lock, LW_EXCLUSIVE);
		live_db->wanted = wanted;
		live_db->next_start = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay_ms);
		LWLockRelease(&live->lock);
	}
	proc_exit(0);
}

/*
 * DROP DATABASE, ALTER DATABASE ... RENAME and CREATE DATABASE ... TEMPLATE
 * lock the database's entry and then wait a few seconds for sessions to go.
 */
static void
leave_if_database_is_claimed(void)
{
	static TimestampTz next = 0;
	TimestampTz now = GetCurrentTimestamp();
	LOCKTAG		tag;

	if (now < next)
		return;
	next = now + 200 * INT64CONST(1000);
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		ereport(LOG,
				(errmsg("crate_sync: the database is being dropped, renamed or copied: leaving it for a moment")));
		leave(LIVE_WANTED, 1000);
	}
	LockRelease(&tag, RowExclusiveLock, true);
}

/* called by targets while they wait, so that nobody waits for us */
static void
worker_idle(void)
{
	if (MyBackendType == B_BG_WORKER && live_db != NULL && !IsTransactionState())
		leave_if_database_is_claimed();
}

/*
 * A newer library over an older catalog: nothing can be done but to say so, and
 * to begin anew when it is updated.
 */
static void
wait_for_catalog(void)
{
	bool		current;
	bool		said = false;

	for (;;)
	{
		Oid			extension;

		StartTransactionCommand();
		extension = get_extension_oid("crate_sync", true);
		current = !OidIsValid(extension) || mirror_catalog_is_current();
		CommitTransactionCommand();
		if (current)
			break;
		if (!said)
		{
			const char *message = "the extension's catalog is older than its library: changes are queued, nothing is pushed";

			ereport(LOG, (errmsg("crate_sync: %s", message), errhint("%s", CS_UPDATE_HINT)));
			worker_tell_state("update needed", message, CS_UPDATE_HINT);
			said = true;
		}
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 200,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		leave_if_database_is_claimed();
	}
	if (said)
		leave(LIVE_WANTED, 0);
}

/* is the extension there, and are we to run?  Notes the start. */
static bool
begin_work(void)
{
	bool		run = false;
	bool		isnull;
	int			unclean = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension_oid = get_extension_oid("crate_sync", true);
	if (OidIsValid(extension_oid) && !creating_extension)
	{
		run = true;
		claim_init();
		SPI_connect();
		SPI_execute("UPDATE crate_sync.worker_state SET unclean_starts = 0, start_done = start_no "
					"FROM crate_sync.control WHERE start_done IS DISTINCT FROM start_no", false, 0);
		SPI_execute("SELECT stopped FROM crate_sync.control", true, 1);
		if (SPI_processed == 1)
			stopped = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		if (!stopped)
		{
			/* what a table is to blame for is held against that table */
			SPI_execute(psprintf("UPDATE crate_sync.worker_state SET unclean_starts = unclean_starts + %d "
								 "RETURNING unclean_starts, timeline", table_blamed ? 0 : 1), false, 1);
			if (SPI_processed == 1)
			{
				int			timeline;

				unclean = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
													  SPI_tuptable->tupdesc, 1, &isnull));
				timeline = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0],
													   SPI_tuptable->tupdesc, 2, &isnull));
				if (isnull || timeline != (int) worker_timeline())
				{
					char	   *sql;

					/*
					 * Another history: what an earlier one had pushed and
					 * this one never knew has to leave the target.
					 */
					if (!isnull)
					{
						ereport(LOG,
								(errmsg("crate_sync: the server is on a new timeline: all tables are resynced")));
						/* a rebuild's new table has to go, too */
						SPI_execute("INSERT INTO crate_sync.removal (target_schema, target_table, drop_target) "
									"SELECT target_schema, target_table || '" REBUILD_SUFFIX "', true FROM crate_sync.mirror m "
									"JOIN crate_sync.mirror_state s USING (mirror_id) WHERE s.load_mode = 'rebuild'", false, 0);
						SPI_execute("UPDATE crate_sync.mirror_state SET load_mode = 'full', load_phase = 'load', "
									"load_rel = NULL, load_filenode = NULL, load_block = 0, load_rows = 0, "
									"load_start = pg_catalog.clock_timestamp(), sweep_key = NULL, "
									"last_load_time = NULL, due = 'the server is on a new timeline' WHERE resync_done >= 0 "
									"AND load_mode IS DISTINCT FROM '" LOAD_MODE_DETACHED "'", false, 0);
					}
					sql = psprintf("UPDATE crate_sync.worker_state SET timeline = %d", (int) worker_timeline());
					SPI_execute(sql, false, 0);
				}
			}
		}
		SPI_finish();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();

	if (!run)
		leave(LIVE_ABSENT, 0);
	if (stopped)
		leave(LIVE_ABSENT, 0);
	if (unclean <= UNCLEAN_STARTS_LIMIT)
		start_counted = true;
	else
	{
		const char *hint = "Look for the reason in the server's log, then SELECT crate_sync.start();";

		ereport(WARNING,
				(errmsg("crate_sync: the worker died %d times without pushing anything: it stays down",
						unclean - 1),
				 errhint("%s", hint)));
		worker_tell_state("down", "the worker died too often", hint);
		leave(LIVE_ABSENT, 0);
	}
	return true;
}

/* a clean end, or rows that went through: the start was not in vain */
static void
note_progress(void)
{
	if (progress_noted)
		return;
	progress_noted = true;
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (get_extension_oid("crate_sync", true) == extension_oid)
	{
		SPI_connect();
		SPI_execute("UPDATE crate_sync.worker_state SET unclean_starts = 0", false, 0);
		SPI_finish();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * The target that is set for this database or our role; NULL: for neither, so
 * it is the server's.  One that a session does not take counts as none.
 */
static char *
stored_target(void)
{
	Oid			types[2] = {OIDOID, OIDOID};
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), ObjectIdGetDatum(GetSessionUserId())};

	/* in the order in which a session heeds them */
	SPI_execute_with_args("SELECT pg_catalog.substr(s, pg_catalog.length('crate_sync.target=') + 1) "
						  "FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS s "
						  "WHERE setdatabase IN ($1, 0) AND setrole IN ($2, 0) "
						  "AND pg_catalog.strpos(pg_catalog.lower(s), 'crate_sync.target=') = 1 "
						  "ORDER BY setrole = 0, setdatabase = 0", 2, types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *target = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		char	   *why;

		if (target != NULL && (target[0] == '\0' || target_ops_for(target, &why) != NULL))
			return target;
	}
	return NULL;
}

/*
 * ALTER DATABASE ... SET counts from the next session on: ours has to be a new
 * one then.  What is stored now is compared with what this session has of it,
 * however early or late in its life that was changed.
 */
static void
heed_database_settings(void)
{
	static bool known = false;
	static char *ours = NULL;
	char	   *stored;

	if (!known)
	{
		/* a reload changes what comes from files, and not from where it comes */
		SPI_execute("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'crate_sync.target' "
					"AND source IN ('global', 'database', 'user', 'database user')", true, 1);
		if (SPI_processed == 1)
			ours = MemoryContextStrdup(TopMemoryContext,
									   SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
		known = true;
	}
	stored = stored_target();
	if ((stored == NULL) != (ours == NULL) ||
		(stored != NULL && strcmp(stored, ours) != 0))
		restart_wanted = true;
}

/* looks at what SQL functions asked for, and whether we still belong here */
static void
look_around(void)
{
	Oid			extension;
	bool		isnull;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	extension = get_extension_oid("crate_sync", true);
	if (extension == extension_oid)
	{
		SPI_connect();
		/* rows that came by COPY, as a restored dump's do, send no invalidation */
		SPI_execute("SELECT c.stopped, c.adopt_no, w.adopt_done, "
					"(SELECT pg_catalog.count(*) FROM crate_sync.mirror) "
					"FROM crate_sync.control c, crate_sync.worker_state w", true, 1);
		if (SPI_processed == 1)
		{
			HeapTuple	tup = SPI_tuptable->vals[0];
			TupleDesc	desc = SPI_tuptable->tupdesc;
			int			adopt_no = DatumGetInt32(SPI_getbinval(tup, desc, 2, &isnull));

			stopped = DatumGetBool(SPI_getbinval(tup, desc, 1, &isnull));
			if (adopt_no > DatumGetInt32(SPI_getbinval(tup, desc, 3, &isnull)))
				claim_adopt(adopt_no);
			if (DatumGetInt64(SPI_getbinval(tup, desc, 4, &isnull)) != state_count())
				state_changed();
		}
		heed_database_settings();
		SPI_finish();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (extension != extension_oid)
	{
		/* if it was made anew, all that we remember belongs to the old one */
		ereport(LOG, (errmsg("crate_sync: the extension was dropped, its worker ends")));
		leave(OidIsValid(extension) ? LIVE_WANTED : LIVE_ABSENT, 0);
	}
	if (restart_wanted)
		leave(LIVE_WANTED, 100);
	if (stopped)
	{
		state_drop_all_work();
		note_progress();
		ereport(LOG, (errmsg("crate_sync: the worker was stopped")));
		worker_tell_state("stopped", NULL, NULL);
		history_end();
		leave(LIVE_ABSENT, 0);
	}
}

/* ---------------------------------------------------------------------
 * The target
 * ------------------------------------------------------------------- */

/* opens the target that the settings name, closes one they no longer name */
static bool
target_open(void)
{
	const char *conf = cs_enabled && cs_target ? cs_target : "";
	const TargetOps *ops;
	char	   *errmsg_ = NULL;
	dlist_iter	it;

	if (target_conf != NULL && strcmp(target_conf, conf) == 0)
		return the_target != NULL;

	state_drop_all_work();
	if (the_target != NULL)
		the_target->ops->close(the_target);
	the_target = NULL;
	worker_target_ok = false;
	target_attempts = 0;
	target_retry_at = 0;
	target_trouble_said[0] = '\0';
	if (target_conf != NULL)
		pfree(target_conf);
	target_conf = MemoryContextStrdup(TopMemoryContext, conf);
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		st->target_ready = false;
		for (int i = 0; i < st->nlanes; i++)
			st->lanes[i].epoch = 0;
	}
	if (conf[0] == '\0')
	{
		worker_tell_state(cs_enabled ? "no target" : "disabled", NULL, NULL);
		return false;
	}
	ops = target_ops_for(conf, &errmsg_);
	if (ops == NULL)
	{
		ereport(LOG, (errmsg("crate_sync: invalid target: %s", errmsg_ ? errmsg_ : conf)));
		worker_tell_state("no target", errmsg_,
						  "Set crate_sync.target to http://host:4200, https://..., or sqlite:/path/file.db.");
		return false;
	}
	the_target = ops->open(target_conf);
	if (claim_is_successor())
		lanes_expect_late_deletes();
	return the_target != NULL;
}

/* all that decides as whom we come to the target, files as they are now */
static char *
login_settings(void)
{
	const char *files[] = {cs_password_file, cs_ssl_ca_file, cs_ssl_cert_file, cs_ssl_key_file};
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s %d", cs_user ? cs_user : "", cs_ssl_verify);
	for (int i = 0; i < lengthof(files); i++)
	{
		struct stat st;

		if (files[i] == NULL || files[i][0] == '\0' || stat(files[i], &st) != 0)
			memset(&st, 0, sizeof(st));
		appendStringInfo(&buf, " %s %llu %lld %lld %o %u", files[i] ? files[i] : "",
						 (unsigned long long) st.st_ino, (long long) st.st_size,
						 (long long) st.st_mtime, (unsigned) st.st_mode, (unsigned) st.st_uid);
	}
	return buf.data;
}

/*
 * Is the target there, and does it let us in?  A login that was changed is
 * tried at once, whether anything is to be sent or not; nothing more comes of
 * that if it works, as it is the same target.
 */
static bool
target_check(void)
{
	TargetInfo	info;
	TargetResult res;
	dlist_iter	it;

	if (worker_target_ok && target_login != NULL)
		return true;
	if (the_target->ops->came_back != NULL && the_target->ops->came_back(the_target))
		target_retry_at = 0;
	if (GetCurrentTimestamp() < target_retry_at)
		return false;
	if (target_login == NULL)
	{
		char	   *login = login_settings();

		target_login = MemoryContextStrdup(TopMemoryContext, login);
	}
	memset(&info, 0, sizeof(info));
	memset(&res, 0, sizeof(res));
	the_target->ops->check(the_target, &info, &res);
	if (res.outcome != TARGET_OK)
	{
		target_trouble(res.outcome, res.code, res.message);
		return false;
	}
	if (worker_target_ok)
	{
		worker_tell_state("ok", NULL, NULL);
		return true;
	}
	worker_target_ok = true;
	/* it may have been restored, wiped or exchanged meanwhile */
	claim_forget();
	dlist_foreach(it, &sync_tables)
		dlist_container(SyncTable, node, it.cur)->target_ready = false;
	target_attempts = 0;
	target_trouble_said[0] = '\0';
	if (live_db != NULL)
	{
		LiveShared *live = live_attach();

		LWLockAcquire(&live->lock, LW_EXCLUSIVE);
		snprintf(live_db->target_version, sizeof(live_db->target_version), "%s %s",
				 info.product, info.version);
		LWLockRelease(&live->lock);
	}
	worker_tell_state("ok", NULL, NULL);
	ereport(LOG,
			(errmsg("crate_sync: connected to %s %s", info.product, info.version)));
	return true;
}

/* makes what was acknowledged visible to searches; InvalidOid: of all tables; false: later */
static bool
refresh_tables(Oid relid)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		TargetResult res;

		if (OidIsValid(relid) && st->relid != relid)
			continue;
		/* what it is, or whose, is not known yet: perhaps it is to be resynced */
		if ((st->stale || (!st->target_ready && st->def != NULL)) && !st->in_error &&
			!st->spec.paused && !st->gone)
			return false;
		if (!st->unrefreshed || !st->target_ready || st->def == NULL)
			continue;
		memset(&res, 0, sizeof(res));
		the_target->ops->refresh(the_target, &st->def->target, &res);
		if (res.outcome == TARGET_OK)
		{
			st->unrefreshed = false;
			st->refresh_tries = 0;
		}
		else if (res.outcome == TARGET_UNREACHABLE || res.outcome == TARGET_REFUSED_ALL)
		{
			target_trouble(res.outcome, res.code, res.message);
			return false;
		}
		else if (res.outcome == TARGET_REFUSED_TABLE || ++st->refresh_tries > 2)
		{
			/* what nobody can search is that table's trouble, and no other's */
			st->refresh_tries = 0;
			table_trouble(st, res.code, res.message, NULL);
		}
		else if (!st->spec.paused)
			return false;		/* later */
	}
	return true;
}

/* waiters of wait_for_sync */
static void
serve_refreshes(void)
{
	LiveShared *live = live_attach();
	LiveRefresh asked[LIVE_REFRESHES];
	bool		looked = false;

	if (live_db == NULL)
		return;
	LWLockAcquire(&live->lock, LW_SHARED);
	memcpy(asked, live_db->refreshes, sizeof(asked));
	LWLockRelease(&live->lock);
	for (int i = 0; i < LIVE_REFRESHES && worker_target_ok; i++)
	{
		if (asked[i].wanted == asked[i].done)
			continue;
		/* what was altered before it was asked for may owe a load, or name another target: the waiter has to see that */
		if (!looked)
		{
			look_around();
			state_look();
		}
		looked = true;
		if (!refresh_tables(asked[i].relid))
			continue;
		LWLockAcquire(&live->lock, LW_EXCLUSIVE);
		live_db->refreshes[i].done = asked[i].wanted;
		LWLockRelease(&live->lock);
	}
}

/* ---------------------------------------------------------------------
 * The loop
 * ------------------------------------------------------------------- */

/* how long nothing has to be done, in ms */
static long
time_to_wait(void)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz next = turn.next_look;
	dlist_iter	it;

	/* without a target, or room, nothing is fed, and next_feed stays behind */
	if (worker_target_ok && room_to_feed())
	{
		next = Min(next, turn.next_feed);
		if (turn.more)
			next = Min(next, TimestampTzPlusMilliseconds(now, 10)); /* an answer wakes us sooner */
	}
	else if (!worker_target_ok && the_target != NULL)
		next = Min(next, target_retry_at);
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (!worker_target_ok)
			break;				/* none of them has its turn */
		if (st->in_error)
			next = Min(next, st->error_retry_at);
		else if (st->target_ready)
			next = Min(next, lanes_next_retry(st));
		else if (st->def != NULL && !st->spec.paused)
			next = Min(next, st->claim_retry_at);
	}
	if (next <= now)
		return 0;
	return Min((next - now) / 1000 + 1, 200);
}

/*
 * Tables whose target's side is to be made ready, or that ask for something there.
 * What that takes is no other table's trouble: after some time the rest is left
 * for the next turn, and rows move in between.
 */
static void
prepare_tables(void)
{
	static uint64 round = 1;
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PREPARE_MS);
	dlist_iter	it;
	bool		all_ready = true;

	for (int ready = 1; ready >= 0; ready--)
	{
		bool		any = false;
		bool		all = true;

		dlist_foreach(it, &sync_tables)
		{
			SyncTable  *st = dlist_container(SyncTable, node, it.cur);

			/* the others had their try in this round */
			if (st->target_ready != ready || (!ready && st->prepared == round))
				continue;
			all = worker_target_ok && !(any && GetCurrentTimestamp() > until);
			if (!all)
				break;
			if (claim_adopting() && st->in_error && strcmp(st->error_code, "claim") == 0)
				st->error_retry_at = 0;
			prepare_table(st);
			st->prepared = round;
			any = true;
		}
		if (!ready && all)
			round++;
	}
	if (!worker_target_ok)
		return;
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		all_ready &= st->target_ready || st->spec.paused;
	}
	if (claim_adopting() && all_ready)
		claim_adopted();
	if (claim_heartbeat())
		prepare_look();
}

/*
 * Connections are few: who got one comes last the next time.  Behind all others
 * come those whose rows take long to be read, and while there are any, the
 * others' batches do not wait to be filled.
 */
static void
take_turns(void)
{
	turn.hurry = false;
	for (int slow = 0; slow <= 1; slow++)
	{
		int64		n = state_count();
		dlist_mutable_iter it;

		dlist_foreach_modify(it, &sync_tables)
		{
			SyncTable  *st = dlist_container(SyncTable, node, it.cur);

			if (n-- == 0)
				break;			/* those were moved here */
			turn.hurry |= st->slow;
			if (slow ? !st->slow : !st->sent)
				continue;
			st->sent = false;
			dlist_delete(&st->node);
			dlist_push_tail(&sync_tables, &st->node);
		}
	}
}

/* one turn of the loop; true if there may be more to do at once */
static bool
take_turn(void)
{
	TimestampTz now = GetCurrentTimestamp();
	dlist_iter	it;
	bool		busy = false;
	bool		woken = false;

	bounded_new_turn();
	if (now >= turn.next_look)
	{
		look_around();
		turn.next_look = TimestampTzPlusMilliseconds(now, Min(cs_interval, 1000));
	}
	if (state_catalog_stale())
	{
		state_reload();
		cs_point("after reload");
	}
	if (!target_open() || !target_check())
		return false;

	process_removals();
	prepare_tables();

	if (live_db != NULL)
		woken = pg_atomic_exchange_u32(&live_db->wake, 0) != 0;
	turn.more |= woken;
	if (worker_target_ok && room_to_feed() &&
		(turn.more || now >= turn.next_feed || feed_awaited()))
	{
		turn.next_feed = TimestampTzPlusMilliseconds(now, cs_interval);
		turn.more = feed_queue(&turn.next_feed);
	}

	lanes_begin_turn();
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		Size		before = st->held_bytes;
		bool		got = false;
		TimestampTz start;

		st->slow = false;
		if (!worker_target_ok || st->def == NULL || st->in_error)
			continue;
		lanes_watch(st);
		if (st->in_error)
			continue;
		/* it fits again, and there is nothing that could show more than that */
		if (st->target_ready && !st->stale && lanes_idle(st) &&
			dlist_is_empty(&st->passes) && code_retry_at(st) == 0 &&
			now > TimestampTzPlusMilliseconds(st->ready_time, 500))
		{
			if (st->error_message != NULL)
				table_recovered(st);
			if (st->phase == LOAD_NONE)
				bounded_forgive(st->relid);
		}
		/* who has nothing to be read has nothing to wait for */
		if (st->error_message == NULL && st->target_ready &&
			(st->awaits_room || !dlist_is_empty(&st->passes) ||
			 st->phase == LOAD_ROWS || st->phase == LOAD_SWEEP))
		{
			char	   *hint;
			char	   *why = bounded_others_reproach(st->relid, code_owner(st), &hint);

			if (why != NULL)
			{
				table_warning(st, "reading", why, hint);
				pfree(why);
			}
		}
		start = GetCurrentTimestamp();
		got |= feed_rows(st);
		if (!st->in_error && !st->spec.paused && st->target_ready)
			got |= load_step(st);
		st->slow = got && GetCurrentTimestamp() > TimestampTzPlusMilliseconds(start, READ_TURN_MS);
		/* what is in lanes waits too, until it is known whose the table is */
		if (st->in_error || !st->target_ready)
			continue;
		/* a batch waits to be filled while input comes, and no longer */
		st->sent = lanes_dispatch(st, turn.hurry || !got || st->held_bytes == before || !worker_may_feed(st));
		busy |= st->sent || got;
	}
	take_turns();
	return busy;
}

/* takes in answers, acknowledges; true if anything came of it */
static bool
take_answers(void)
{
	dlist_iter	it;
	bool		any = false;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		any |= lanes_reap(st);
		if (st->swap_wanted && lanes_idle(st) && worker_target_ok && !st->in_error)
			swap_rebuilt(st);
	}
	if (any && live_db != NULL)
		tell_time(&live_db->last_send_time);
	if (state_ack_due())
	{
		state_ack(false);
		note_progress();
		any = true;
	}
	if (worker_target_ok)
		serve_refreshes();
	return any;
}

static void
write_stats_and_rotate(bool idle)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now >= turn.next_rotate)
	{
		queue_rotate();
		turn.next_rotate = TimestampTzPlusMilliseconds(now, idle ? 100 : 50);
	}
	if (now >= turn.next_stats)
	{
		detach_check();
		if (!progress_noted && live_db != NULL &&
			now > TimestampTzPlusMilliseconds(live_db->start_time, UNCLEAN_LIFE_MS))
			note_progress();
		pgstat_report_stat(true);
		turn.next_stats = TimestampTzPlusMilliseconds(now, 1000);
	}
}

static void
main_loop(MemoryContext turn_cxt)
{
	for (;;)
	{
		bool		busy;
		dlist_iter	it;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			tell_target();
			dlist_foreach(it, &sync_tables)
				dlist_container(SyncTable, node, it.cur)->batch_rows = cs_batch_rows;
			if (the_target != NULL)
				the_target->ops->reconnect(the_target);
			target_retry_at = 0;
			if (target_login != NULL && strcmp(target_login, login_settings()) != 0)
			{
				pfree(target_login);
				target_login = NULL;
				worker_tell_state("starting", NULL, NULL);
			}
		}
		leave_if_database_is_claimed();
		if (live_db != NULL &&
			TimestampDifferenceExceeds(live_db->last_turn_time, GetCurrentTimestamp(), 1000))
			tell_time(&live_db->last_turn_time);
		if (live_db != NULL && pg_atomic_exchange_u32(&live_db->let_go, 0) != 0)
		{
			/* DROP EXTENSION: out of its way until it is over */
			state_drop_all_work();
			(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000, PG_WAIT_EXTENSION);
			turn.next_look = 0;
		}

		MemoryContextSwitchTo(turn_cxt);
		MemoryContextReset(turn_cxt);
		busy = take_turn();
		busy |= take_answers();
		write_stats_and_rotate(!busy);
		history_turn();

		if (!busy)
		{
			if (the_target != NULL)
				the_target->ops->poll(the_target, time_to_wait(), PG_WAIT_EXTENSION);
			else
				(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
								 time_to_wait(), PG_WAIT_EXTENSION);
		}
		else if (the_target != NULL)
			the_target->ops->poll(the_target, 0, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

void
crate_sync_worker_main(Datum arg)
{
	Oid			dboid = DatumGetObjectId(arg);
	LiveShared *live;
	MemoryContext turn_cxt;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, bounded_die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(dboid, InvalidOid, 0);
	pgstat_report_appname("crate_sync");

	live = live_attach();
	live_db = live_database(MyDatabaseId, true);
	if (live_db == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("crate_sync: no room for another database's worker"),
				 errhint("Add crate_sync to shared_preload_libraries: it makes room for more.")));
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	if (live_db->pid != 0)
	{
		LWLockRelease(&live->lock);
		live_db = NULL;
		proc_exit(0);			/* there is one already */
	}
	live_db->pid = MyProcPid;
	live_db->proc = MyProc;
	live_db->start_time = GetCurrentTimestamp();
	strlcpy(live_db->state, "starting", sizeof(live_db->state));
	live_db->hint[0] = '\0';
	LWLockRelease(&live->lock);
	before_shmem_exit(on_exit_clear, (Datum) 0);
	tell_target();
	cs_point("worker start");

	worker_pin_settings();
	/* targets speak UTF-8: conversions are looked up now, in a transaction */
	StartTransactionCommand();
	SetConfigOption("client_encoding", "UTF8", PGC_USERSET, PGC_S_SESSION);
	CommitTransactionCommand();
	wait_for_catalog();
	table_blamed = bounded_init(try_again);
	target_set_idle(worker_idle);
	begin_work();
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	live_db->wanted = LIVE_WANTED;
	live_db->failures = 0;
	LWLockRelease(&live->lock);
	queue_worker_init();
	state_init();
	pg_atomic_write_u32(&live_db->wake, 1);
	ereport(LOG,
			(errmsg("crate_sync: worker for database \"%s\" started", MyBgworkerEntry->bgw_extra)));

	turn_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync turn", ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		ErrorData  *error = NULL;

		PG_TRY();
		{
			main_loop(turn_cxt);
		}
		PG_CATCH();
		{
			/*
			 * Something unforeseen in PostgreSQL: say it, forget what is in
			 * memory, which is all repeatable, and begin anew after a pause.
			 */
			error = worker_catch(TopMemoryContext);
			LWLockReleaseAll();
		}
		PG_END_TRY();

		ereport(LOG,
				(errmsg("crate_sync: %s", error->message),
				 error->detail ? errdetail("%s", error->detail) : 0,
				 errhint("The worker goes on after a second.")));
		worker_tell_state("worker error", error->message, "See the server's log.");
		FreeErrorData(error);
		queue_end_xact(false);
		state_drop_all_work();
		state_changed();
		worker_target_ok = false;
		turn.next_look = 0;
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 1000, PG_WAIT_EXTENSION);
	}
}
