/*-------------------------------------------------------------------------
 *
 * triggers.h
 *		Our triggers on mirrored tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_TRIGGERS_H
#define CRATE_SYNC_TRIGGERS_H

#include "base/base.h"
#include "nodes/pg_list.h"
#include "storage/lockdefs.h"

/*
 * Mends our triggers on a mirrored table and, for TRUNCATE, on each of its
 * partitions: those missing, not ENABLE ALWAYS or made for another key.
 * Locks only what needs mending.  A table that always has some writer is never
 * free by itself, so its lock is waited for, for a moment: writers that come
 * behind wait as long.  Then it throws, or leaves the rest for another time.
 * The caller acts as a superuser with a fixed search_path.  Returns whether
 * anything was mended, that is, whether changes may have gone unseen.
 */
extern bool triggers_mend(Oid relid, List *key_columns);

/*
 * Likewise, for a table that is being added or handed over; wait: until locks
 * can be had, else what is not free stays as it is.
 */
extern bool triggers_ensure(Oid relid, List *key, bool wait);

/* takes them off a table and its partitions; and what others have left of them that nobody needs */
extern void triggers_drop(Oid relid);

/* the OID of crate_sync.capture() */
extern Oid	triggers_function(void);

/* locks these relations; false: some is not free, without wait, or not in time */
extern bool triggers_lock(List *members, LOCKMODE lockmode, bool wait);

#endif							/* CRATE_SYNC_TRIGGERS_H */
