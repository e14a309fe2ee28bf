/*-------------------------------------------------------------------------
 *
 * wake.c
 *		What other processes ask of the worker: to wake, to start, to let go.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xact.h"
#include "base/settings.h"
#include "postmaster/bgworker.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/latch.h"

static bool wake_at_commit = false;
static bool start_at_commit = false;

static void
describe_launcher(BackgroundWorker *bgw)
{
	memset(bgw, 0, sizeof(BackgroundWorker));
	snprintf(bgw->bgw_name, BGW_MAXLEN, "crate_sync launcher");
	snprintf(bgw->bgw_type, BGW_MAXLEN, "crate_sync launcher");
	snprintf(bgw->bgw_library_name, sizeof(bgw->bgw_library_name), "crate_sync");
	snprintf(bgw->bgw_function_name, sizeof(bgw->bgw_function_name), "crate_sync_launcher_main");
	bgw->bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw->bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw->bgw_restart_time = 5;
}

void
cs_register_launcher(void)
{
	BackgroundWorker bgw;

	describe_launcher(&bgw);
	RegisterBackgroundWorker(&bgw);
}

void
launcher_tell_no_slot(LiveShared *live, LiveDatabase *db)
{
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	strlcpy(db->hint, "No worker slot was free: raise max_worker_processes, restart the server.",
			sizeof(db->hint));
	LWLockRelease(&live->lock);
}

/* called when a transaction has committed: nothing in here may throw */
void
launcher_start_worker(void)
{
	LiveShared *live = live_attach();
	LiveDatabase *db = live_database(MyDatabaseId, true);
	BackgroundWorker bgw;
	PGPROC	   *launcher;

	if (live == NULL || db == NULL)
		return;
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	db->wanted = LIVE_WANTED;
	db->failures = 0;
	db->next_start = 0;
	launcher = live->launcher;
	LWLockRelease(&live->lock);

	if (launcher != NULL)
		SetLatch(&launcher->procLatch);
	else
	{
		describe_launcher(&bgw);
		if (!RegisterDynamicBackgroundWorker(&bgw, NULL))
			launcher_tell_no_slot(live, db);
	}
}

void
cs_wake_worker_now(void)
{
	live_wake();
}

bool
cs_worker_is_running(void)
{
	LiveDatabase db;

	return live_look(&db) && db.pid != 0;
}

char *
cs_worker_trouble(void)
{
	LiveDatabase db;

	if (!live_look(&db) || strncmp(db.state, "target", 6) != 0)
		return NULL;
	return psprintf("%s: %s", db.state, db.last_error);
}

void
cs_worker_let_go(void)
{
	LiveDatabase *db = live_database(MyDatabaseId, false);
	LiveDatabase copy;

	if (db != NULL && live_look(&copy) && copy.proc != NULL)
	{
		pg_atomic_write_u32(&db->let_go, 1);
		SetLatch(&copy.proc->procLatch);
	}
}

const char *
cs_target_hint(void)
{
	return cs_preloaded ?
		"ALTER SYSTEM SET crate_sync.target = 'http://host:4200'; SELECT pg_reload_conf();" :
		"LOAD 'crate_sync'; ALTER SYSTEM SET crate_sync.target = 'http://host:4200'; SELECT pg_reload_conf();";
}

/* this session's setting may be older than the worker's */
char *
cs_target_in_use(void)
{
	LiveDatabase db;

	if (live_look(&db) && db.pid != 0)
		return pstrdup(db.target);
	return pstrdup(cs_target ? cs_target : "");
}

void
cs_wake_worker_at_commit(void)
{
	wake_at_commit = true;
}

bool
cs_wakes_worker_at_commit(void)
{
	return wake_at_commit;
}

void
cs_start_worker_at_commit(void)
{
	start_at_commit = true;
}

static void
wake_forget(void)
{
	wake_at_commit = false;
	start_at_commit = false;
}

static void
wake_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			/* nothing in here may throw */
			if (start_at_commit)
				launcher_start_worker();
			if (wake_at_commit)
				live_wake();
			wake_forget();
			break;

		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			wake_forget();
			break;

		default:
			break;
	}
}

void
wake_init(void)
{
	RegisterXactCallback(wake_xact_callback, NULL);
}
