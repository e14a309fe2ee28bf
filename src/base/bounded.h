/*-------------------------------------------------------------------------
 *
 * bounded.h
 *		Code of users that the worker runs, within bounds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_BOUNDED_H
#define CRATE_SYNC_BOUNDED_H

#include "base/base.h"
#include "datatype/timestamp.h"

/*
 * At the worker's start.  True: the last one ended, and the server with it,
 * within such code, and the table whose it is has been blamed for it.
 * remedy() is called when something was altered that may be a remedy, for each
 * table that is left out, whose bounded_retry_at() may have become another.
 */
extern bool bounded_init(void (*remedy) (Oid relid));

/*
 * Between the two, a read of that relation is under way.  code: users' code
 * may run; else only the time is limited, and nobody blamed.  alone: it asks
 * for one row.  The end comes also after an error, and does nothing if there
 * was no beginning; bounded_cut() and bounded_ms() then say how it went.
 */
extern void bounded_begin(Oid relid, Oid owner, bool code, bool alone);
extern void bounded_end(void);
extern bool bounded_cut(void);	/* it ran into the limit */
extern int	bounded_ms(void);	/* it took so long */

/* the longest that a read may take until it is cut off, ms */
extern int	bounded_limit(void);

/* another turn of the main loop begins; has this one time left for such reads? */
extern void bounded_new_turn(void);
extern bool bounded_turn_has_time(void);

/* before that, the relation is not read; 0: now; owner: whose code runs then, if any */
extern TimestampTz bounded_retry_at(Oid relid, Oid owner);

/* nothing came of reading it, however often; or all of it was read after all */
extern void bounded_blame(Oid relid, Oid owner);
extern void bounded_forgive(Oid relid);

/*
 * Why it is not read yet, and what to do about it, palloc'd; in a transaction;
 * NULL: it may be.  told: the log has it already.
 */
extern char *bounded_reproach(Oid relid, char **hint, bool *told);

/* likewise, if it is for what other tables of its owner did; the hint is not palloc'd */
extern char *bounded_others_reproach(Oid relid, Oid owner, char **hint);

/* the hint, for a relation of that name */
extern char *bounded_hint(const char *schemaname, const char *relname);

/* SIGTERM */
extern void bounded_die(SIGNAL_ARGS);

/* the process ends; true: by a limit of ours */
extern bool bounded_exit(void);

/* the database is gone */
extern void bounded_unlink(Oid dboid);

#endif							/* CRATE_SYNC_BOUNDED_H */
