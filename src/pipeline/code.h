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

#endif							/* CRATE_SYNC_CODE_H */
