/*-------------------------------------------------------------------------
 *
 * history.h
 *		What the worker writes down and tells about itself, beside its work.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_HISTORY_H
#define CRATE_SYNC_HISTORY_H

#include "base/base.h"

/*
 * Once a second: has the state that crate_sync.status shows changed?  Then
 * NOTIFY crate_sync says so.  Once a minute: what each table has pushed goes
 * into crate_sync.history.  No transaction is open.  Never throws.
 */
extern void history_turn(void);

/* the same at the end: as the worker was stopped */
extern void history_end(void);

#endif							/* CRATE_SYNC_HISTORY_H */
