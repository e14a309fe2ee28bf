/*-------------------------------------------------------------------------
 *
 * wake.h
 *		What other processes may ask of the worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_WAKE_H
#define CRATE_SYNC_WAKE_H

#include "base/base.h"
#include "shared/live.h"

/* at the end of this transaction, if it commits: wake this database's worker */
extern void cs_wake_worker_at_commit(void);
extern bool cs_wakes_worker_at_commit(void);

/* right now; for one who changed nothing but waits */
extern void cs_wake_worker_now(void);

/* likewise: have a worker started in this database, if none runs */
extern void cs_start_worker_at_commit(void);

/* asks the launcher for a worker here, starting a launcher too; never throws */
extern void launcher_start_worker(void);

/* notes in a database's slot that there is no room for another process */
extern void launcher_tell_no_slot(LiveShared *live, LiveDatabase *db);

extern bool cs_worker_is_running(void);

/* how crate_sync.target is set, to be pasted into any session of a superuser's */
extern const char *cs_target_hint(void);

/* why the worker cannot push now, palloc'd; NULL: no reason is known */
extern char *cs_worker_trouble(void);

/* crate_sync.target as this database's worker has it, palloc'd; without one, the session's */
extern char *cs_target_in_use(void);

/*
 * Asks this database's worker to end what it is doing and stay away from the
 * extension's tables for a moment (DROP EXTENSION).  Returns at once.
 */
extern void cs_worker_let_go(void);

/* entry points, named in BackgroundWorker */
extern PGDLLEXPORT void crate_sync_launcher_main(Datum arg);
extern PGDLLEXPORT void crate_sync_worker_main(Datum arg);

extern void cs_register_launcher(void); /* at preload */

/* registers the transaction callback; once per process, from _PG_init */
extern void wake_init(void);

#endif							/* CRATE_SYNC_WAKE_H */
