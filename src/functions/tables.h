/*-------------------------------------------------------------------------
 *
 * tables.h
 *		Our triggers on mirrored tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_ATTACH_H
#define CRATE_SYNC_ATTACH_H

#include "base/base.h"
#include "mirror/mirror.h"
#include "nodes/pg_list.h"

/*
 * Hands a mirror over to another relation, which has the name now that
 * spec->relid was added by: the catalog's row, our triggers, and a full load
 * that is asked for.  An error says what of the relation does not fit.  The
 * caller acts as a superuser with a fixed search_path, has seen to it that
 * this may be done, and ends the transaction if it is not.  wait: until locks
 * can be had; else false is returned if they cannot, or if things have
 * changed.  The triggers of a former table that is in use may stay: what they
 * queue is no mirrored table's.
 */
extern bool attach_follow(MirrorSpec *spec, Oid relid, bool wait);

/* the library is being loaded */
extern void tables_init(void);

#endif							/* CRATE_SYNC_ATTACH_H */
