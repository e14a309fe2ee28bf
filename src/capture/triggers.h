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

/* triggers of another name, with these arguments: those of a document's links */
typedef struct LinkTriggers
{
	Oid			relid;
	char	   *name;
	char	   *truncate_name;
	List	   *args;			/* of char * */
} LinkTriggers;

/* Lists of LinkTriggers *: as above; and are they there as they should be, ENABLE or not? */
extern bool triggers_mend_links(List *links);
extern bool triggers_ensure_links(List *links);
extern bool triggers_fit(List *links);

/* takes those off relations whose names begin so; without wait, false: not all of them, as some is not free */
extern bool triggers_drop_links(List *relids, const char *prefix, bool wait);

/* the OID of crate_sync.capture() */
extern Oid	triggers_function(void);

/* locks these relations; false: some is not free, without wait, or not in time */
extern bool triggers_lock(List *members, LOCKMODE lockmode, bool wait);

#endif							/* CRATE_SYNC_TRIGGERS_H */
