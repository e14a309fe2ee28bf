/*-------------------------------------------------------------------------
 *
 * attach.h
 *		Our triggers on mirrored tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_ATTACH_H
#define CRATE_SYNC_ATTACH_H

#include "crate_sync.h"
#include "nodes/pg_list.h"

/*
 * Mends our triggers on a mirrored table and, for TRUNCATE, on each of its
 * partitions: those missing, not ENABLE ALWAYS or made for another key.
 * Locks only what needs mending, and waits for no lock: what is in use is
 * left for another time.  The caller holds AccessShareLock on relid and acts
 * as a superuser with a fixed search_path.  Returns whether anything was
 * mended, that is, whether changes may have gone unseen.
 */
extern bool attach_ensure_triggers(Oid relid, List *key_columns);

#endif							/* CRATE_SYNC_ATTACH_H */
