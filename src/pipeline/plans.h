/*-------------------------------------------------------------------------
 *
 * plans.h
 *		The SQL by which rows are read, and whose rows they are.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_PLANS_H
#define CRATE_SYNC_PLANS_H

#include "base/base.h"
#include "tcop/dest.h"

typedef struct SyncTable SyncTable;
typedef struct ReadPlans ReadPlans;
struct DocNode;

/* queries for keys: how they say which, and what they give */
#define KEY_PLAN_RANGE	1		/* between two numbers; else by arrays of values */
#define KEY_PLAN_EXISTS 2		/* key columns only; else rows */
#define KEY_PLANS		4

/*
 * Both run a query in the transaction, the snapshot and as the user of the
 * caller, who is connected to SPI and holds the mirrored table locked.  What
 * is read is the relation with that OID, whatever its name is now and
 * whatever else has the name it had: who cannot be sure throws
 * ERRCODE_LOCK_NOT_AVAILABLE, before the receiver has seen a row.
 */

/* rows, or keys, by keys, of the whole table; kind as of KEY_PLAN_ */
extern void plans_read_keys(SyncTable *st, int kind, DestReceiver *dest,
							int nparams, const Oid *types, const Datum *values);

/*
 * Rows, or keys, of a leaf between two places (both excluded), each with its
 * ctid last.  False if the leaf is none, or none of the table's any more.
 */
extern bool plans_read_leaf(SyncTable *st, Oid leaf, bool keys_only, DestReceiver *dest,
							ItemPointer from, ItemPointer to);

/*
 * Root keys of a document, in the key's order, by values of a node's link:
 * values[i] are nvalues of its i-th column.  With leaf: roots of that one,
 * between two places (both excluded).
 */
extern void plans_walk(SyncTable *st, const struct DocNode *node, DestReceiver *dest, Datum *const *values,
					   int nvalues, Oid leaf, ItemPointer from, ItemPointer to);

/* is the leaf, which is locked, the table or in its tree? */
extern bool plans_leaf_belongs(const SyncTable *st, Oid leaf);

/* all of a table's, or those with the filter of a load that is over */
extern void plans_forget(SyncTable *st);
extern void plans_forget_leaf(SyncTable *st);

#endif							/* CRATE_SYNC_PLANS_H */
