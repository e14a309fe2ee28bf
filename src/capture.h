/*-------------------------------------------------------------------------
 *
 * capture.h
 *		Keys of changed rows, gathered in the user's backend.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_CAPTURE_H
#define CRATE_SYNC_CAPTURE_H

#include "crate_sync.h"

/* registers the transaction callbacks; once per process, from _PG_init */
extern void capture_init(void);

/*
 * Queues n keys that are packed already, in this transaction.  One call makes
 * one chunk: len is at most KEY_CHUNK_BYTES.
 */
extern void capture_queue_packed(Oid relid, int32 layout, const char *keys, int len, int n);

/* has this transaction queued keys? */
extern bool capture_pending(void);

#endif							/* CRATE_SYNC_CAPTURE_H */
