/*-------------------------------------------------------------------------
 *
 * capture.h
 *		Keys of changed rows, gathered in the user's backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_CAPTURE_H
#define CRATE_SYNC_CAPTURE_H

#include "base/base.h"

#include "executor/tuptable.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"

typedef struct CaptureRel CaptureRel;

/* the function of our triggers; InvalidOid: none has fired in this backend */
extern Oid	capture_fnoid;

/*
 * Takes the key of a row that was inserted, deleted, or updated, which is
 * then the row as it was, and updated the row as it is.  trigger: the row
 * trigger of rel that is ours.  Returns what was found out about rel, to be
 * given to the next call; NULL: nothing is known yet.
 */
extern CaptureRel *capture_row(CaptureRel *entry, Relation rel, Trigger *trigger,
							   TupleTableSlot *row, TupleTableSlot *updated);

/* registers the transaction callbacks; once per process, from _PG_init */
extern void capture_init(void);

/* has this transaction queued keys? */
extern bool capture_pending(void);

#endif							/* CRATE_SYNC_CAPTURE_H */
