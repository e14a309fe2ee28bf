/*-------------------------------------------------------------------------
 *
 * code.h
 *		Whether users' code may run when a table's rows are read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_CODE_H
#define CRATE_SYNC_CODE_H

#include "pipeline/table.h"

/* may reading it run code of users'?  The first one looks at the catalog, in a transaction */
extern void code_look(SyncTable *st);
extern bool code_runs(const SyncTable *st);

/* whose it is, if any; before when it is not run (0: now) */
extern Oid	code_owner(const SyncTable *st);
extern TimestampTz code_retry_at(const SyncTable *st);

#endif							/* CRATE_SYNC_CODE_H */
