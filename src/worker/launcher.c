/*-------------------------------------------------------------------------
 *
 * launcher.c
 *		Starts a worker in every database that has the extension.
 *
 * It is connected to no database, so none can be kept from being dropped by
 * it, and a worker whose database is gone is simply not started again.  When
 * the library is preloaded it runs from the server's start (on a standby:
 * from its promotion); else from the first CREATE EXTENSION or start().
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/bounded.h"
#include "base/session.h"
#include "base/settings.h"
#include "catalog/pg_database.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/snapmgr.h"

/* how often new databases are looked for, in ms */
#define LAUNCHER_NAP 10000

/* databases nobody has looked into yet, started at one time */
#define LAUNCHER_PROBES 2

static void
launcher_exit(int code, Datum arg)
{
	LiveShared *live = live_attach();

	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	live->launcher = NULL;
	live->launcher_pid = 0;
	LWLockRelease(&live->lock);
}

static bool
start_database_worker(Oid dboid, const char *dbname)
{
	BackgroundWorker bgw;

	memset(&bgw, 0, sizeof(bgw));
	snprintf(bgw.bgw_name, BGW_MAXLEN, "crate_sync worker for %s", dbname);
	snprintf(bgw.bgw_type, BGW_MAXLEN, "crate_sync worker");
	snprintf(bgw.bgw_library_name, sizeof(bgw.bgw_library_name), "crate_sync");
	snprintf(bgw.bgw_function_name, sizeof(bgw.bgw_function_name), "crate_sync_worker_main");
	strlcpy(bgw.bgw_extra, dbname, sizeof(bgw.bgw_extra));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_main_arg = ObjectIdGetDatum(dboid);
	bgw.bgw_notify_pid = MyProcPid;
	return RegisterDynamicBackgroundWorker(&bgw, NULL);
}

/* one look at all databases; returns whether any has, or may have, a worker */
static bool
visit_databases(LiveShared *live)
{
	static bool said_no_slot = false;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tup;
	bool		seen[1024] = {0};
	bool		wanted = false;
	int			probes = 0;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tup = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tup);
		LiveDatabase *db;
		TimestampTz now = GetCurrentTimestamp();
		bool		start;
		bool		unknown;

		if (!form->datallowconn || form->datistemplate || form->datconnlimit == CS_INVALID_DATABASE)
			continue;
		db = live_database(form->oid, true);
		if (db == NULL)
			continue;			/* no room: the worker would say so */
		if (db - live->dbs < lengthof(seen))
			seen[db - live->dbs] = true;

		LWLockAcquire(&live->lock, LW_EXCLUSIVE);
		start = db->pid == 0 && db->wanted != LIVE_ABSENT && db->next_start <= now &&
			(db->wanted == LIVE_WANTED || probes < LAUNCHER_PROBES);
		if (start)
			db->next_start = TimestampTzPlusMilliseconds(now, 5000);
		wanted |= db->wanted != LIVE_ABSENT;
		unknown = db->wanted == LIVE_UNKNOWN;
		LWLockRelease(&live->lock);
		if (!start)
			continue;
		if (unknown)
			probes++;
		if (start_database_worker(form->oid, NameStr(form->datname)))
			said_no_slot = false;
		else
		{
			launcher_tell_no_slot(live, db);
			if (!said_no_slot)
				ereport(WARNING,
						(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
						 errmsg("crate_sync: no worker slot for database \"%s\"", NameStr(form->datname)),
						 errhint("Raise max_worker_processes and restart the server; it is tried again meanwhile.")));
			said_no_slot = true;
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();

	/* what was dropped */
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	for (int i = 0; i < live->ndbs && i < lengthof(seen); i++)
	{
		if (!seen[i] && live->dbs[i].pid == 0)
		{
			if (OidIsValid(live->dbs[i].dboid))
				bounded_unlink(live->dbs[i].dboid);
			live->dbs[i].dboid = InvalidOid;
		}
	}
	LWLockRelease(&live->lock);
	return wanted;
}

/* ms until something may have to be started */
static long
launcher_nap(LiveShared *live)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		nap = LAUNCHER_NAP;

	LWLockAcquire(&live->lock, LW_SHARED);
	for (int i = 0; i < live->ndbs; i++)
	{
		LiveDatabase *db = &live->dbs[i];

		if (OidIsValid(db->dboid) && db->pid == 0 && db->wanted != LIVE_ABSENT)
			nap = Min(nap, Max(50, (db->next_start - now) / 1000));
	}
	LWLockRelease(&live->lock);
	return (long) nap;
}

void
crate_sync_launcher_main(Datum arg)
{
	LiveShared *live;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	worker_pin_settings();

	live = live_attach();
	if (live == NULL)
		ereport(FATAL,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("crate_sync: no shared memory left"),
				 errhint("Add crate_sync to shared_preload_libraries and restart the server.")));
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	if (live->launcher != NULL)
	{
		LWLockRelease(&live->lock);
		proc_exit(0);
	}
	live->launcher = MyProc;
	live->launcher_pid = MyProcPid;
	LWLockRelease(&live->lock);
	before_shmem_exit(launcher_exit, (Datum) 0);

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (!visit_databases(live) && !cs_preloaded)
			proc_exit(0);		/* nothing to look after: give the slot back */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 launcher_nap(live), PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}
