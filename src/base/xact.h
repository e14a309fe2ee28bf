/*-------------------------------------------------------------------------
 *
 * xact.h
 *		Transactions and statements: frames, errors caught, pauses.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_XACT_H
#define CRATE_SYNC_XACT_H

#include "base/base.h"
#include "access/xact.h"
#include "utils/timestamp.h"

/*
 * The worker's transactions begin when they do, and not when its process did:
 * in a background worker nobody else sets that clock.
 */
#define StartTransactionCommand() \
	(SetCurrentStatementStartTimestamp(), StartTransactionCommand())

/* when to try again after so many failures in a row */
extern TimestampTz backoff(int attempts);

/* in PG_CATCH: ends the transaction; returns the error, in cxt */
extern ErrorData *worker_catch(MemoryContext cxt);

/* statements of ours, SPI is connected; an error if they cannot be run */
extern uint64 run_sql(const char *sql, int nargs, Oid *types, Datum *values, const char *nulls);
extern void run_utility(const char *sql);

/* a relation's name as one would type it; palloc'd */
extern char *qualified_name(Oid relid);

#endif							/* CRATE_SYNC_XACT_H */
