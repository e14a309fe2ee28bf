/*-------------------------------------------------------------------------
 *
 * overflow.h
 *		When the queue is full: a table that queues nothing for a while.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_DETACH_H
#define CRATE_SYNC_DETACH_H

#include "pipeline/table.h"

/* is capture of this relation off?  Asked by triggers, once per cache entry. */
extern bool detach_is_detached(Oid root);

/* has every backend look again whether the relation is captured */
extern void detach_forget(Oid root);

/* looks at the queue's size and acts on it; cheap, every second or so */
extern void detach_check(void);

/*
 * Takes up a detached table again: capture on, then, once every writer that
 * may not have noticed is gone, a full load.  True if the table is detached
 * still.
 */
extern bool detach_reattach(SyncTable *st);

#endif							/* CRATE_SYNC_DETACH_H */
