/*-------------------------------------------------------------------------
 *
 * detached.h
 *		Relations whose capture is off: the table crate_sync.detached.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_DETACHED_H
#define CRATE_SYNC_DETACHED_H

#include "base/base.h"

/* is capture of this relation off?  Asked by triggers, once per cache entry. */
extern bool detached_is(Oid root);

/* has every backend look again whether the relation is captured */
extern void detached_forget(Oid root);

/*
 * Capture of a mirrored relation off and on, from the transaction's commit
 * on.  A mirror that somebody is removing or adding is left to him.
 */
extern void detached_add(Oid relid, int mirror_id);
extern void detached_remove(Oid relid, int mirror_id);

/* is the mirror there still, and not on its way out or just made? */
extern bool detached_is_ours(Oid relid, int mirror_id);

/* whatever a former mirror of a relation has left: it is captured */
extern void detached_remove_all(Oid relid);

#endif							/* CRATE_SYNC_DETACHED_H */
