/*-------------------------------------------------------------------------
 *
 * verify.h
 *		Comparing source and target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_VERIFY_H
#define CRATE_SYNC_VERIFY_H

#include "pipeline/table.h"

/* starts, or starts over, what the catalog asks for */
extern void verify_begin(SyncTable *st);

/* a step of a few ten milliseconds; false if there is nothing to do now */
extern bool verify_step(SyncTable *st);

/* drops what is in memory; it begins anew if it was under way */
extern void verify_forget(SyncTable *st);

/* the user wants it no longer */
extern void verify_cancel(SyncTable *st);

#endif							/* CRATE_SYNC_VERIFY_H */
