/*-------------------------------------------------------------------------
 *
 * live.h
 *		What is shared while the server runs: who the workers are, how to wake
 *		them, what they last said.  Nothing in here has to survive a crash.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_LIVE_H
#define CRATE_SYNC_LIVE_H

#include "base/base.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

typedef enum LiveWanted
{
	LIVE_UNKNOWN,				/* nobody looked yet whether it has the extension */
	LIVE_WANTED,				/* it has: a worker should run */
	LIVE_ABSENT					/* it has not, or its worker is not to run */
} LiveWanted;

/*
 * Refreshes at the target that are waited for, of one table each, or of those that
 * fall on the same place: then of all.
 */
#define LIVE_REFRESHES 16

typedef struct LiveRefresh
{
	Oid			relid;			/* InvalidOid: of all tables */
	uint64		wanted;			/* counts them */
	uint64		done;
} LiveRefresh;

typedef struct LiveDatabase
{
	Oid			dboid;			/* InvalidOid: free slot */
	LiveWanted	wanted;
	int			pid;			/* of the worker, 0: none */
	PGPROC	   *proc;
	pg_atomic_uint32 wake;		/* raised by committers, lowered by the worker */
	pg_atomic_uint32 let_go;	/* the worker should end its transaction and pause */
	TimestampTz start_time;
	TimestampTz next_start;		/* not before, after an unclean death */
	int			failures;

	/* waiters of wait_for_sync */
	LiveRefresh refreshes[LIVE_REFRESHES];

	char		target[512];	/* crate_sync.target as the worker has it */
	TimestampTz last_send_time;
	TimestampTz last_ack_time;
	TimestampTz last_error_time;
	TimestampTz last_turn_time; /* the worker went round its loop; about, to a second */
	char		state[24];		/* ok, or a few words */
	char		target_version[64];
	char		last_error[512];
	char		hint[256];
} LiveDatabase;

typedef struct LiveShared
{
	/*
	 * Guards all but the atomics.  Without it: live_wake(), and a worker that
	 * reads what none but itself writes.
	 */
	LWLock		lock;
	int			ndbs;
	int			launcher_pid;
	PGPROC	   *launcher;
	LiveDatabase dbs[FLEXIBLE_ARRAY_MEMBER];
} LiveShared;

extern Size live_size(void);

/* attaches, making it if need be; NULL if the server has no memory left for it */
extern LiveShared *live_attach(void);

/* this or another database's slot, made if create; NULL if there is none.
 * Call without the lock. */
extern LiveDatabase *live_database(Oid dboid, bool create);

/* this database's slot as it is now, in one piece; false: it has none, all is zero */
extern bool live_look(LiveDatabase *copy);

/* asks for a refresh at the target, of a table or (InvalidOid) of all; 0: nobody to ask */
extern uint64 live_want_refresh(Oid relid);
extern bool live_is_refreshed(Oid relid, uint64 wanted);

/* wakes this database's worker, if there is one; safe in any callback */
extern void live_wake(void);

#endif							/* CRATE_SYNC_LIVE_H */
