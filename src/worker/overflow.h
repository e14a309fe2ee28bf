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

/* looks at the queue's size and acts on it; cheap, every second or so */
extern void detach_check(void);

/*
 * Takes up a detached table again: capture on, then, once every writer that
 * may not have noticed is gone, a full load.  True if the table is detached
 * still.
 */
extern bool detach_reattach(SyncTable *st);

#endif							/* CRATE_SYNC_DETACH_H */
