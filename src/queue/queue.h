/*-------------------------------------------------------------------------
 *
 * queue.h
 *		The queue: chunks of packed keys in tables that rotate.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_QUEUE_H
#define CRATE_SYNC_QUEUE_H

#include "base/base.h"
#include "access/transam.h"
#include "storage/itemptr.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#define QUEUE_GENERATIONS 3
#define QUEUE_HOLD		  QUEUE_GENERATIONS
#define QUEUE_TABLES	  (QUEUE_GENERATIONS + 1)

/* a chunk's name for good: nothing else is ever called so */
typedef struct ChunkId
{
	FullTransactionId xid;		/* of the topmost transaction that wrote it */
	int32		seq;			/* negative: its keys are values of a link */
	int32		unused;			/* 0: the struct is hashed as bytes */
} ChunkId;

typedef struct QueueChunk
{
	ChunkId		id;
	int			table;			/* generation, or QUEUE_HOLD */
	ItemPointerData tid;		/* where it was seen; its id decides */
	Oid			relid;
	int32		layout;
	int			n;
	TimestampTz queued_at;
	const char *keys;			/* while it is shown, else NULL */
	int			len;
	struct SharedChunk *shared;	/* with others, see feed.c; or NULL */
} QueueChunk;

/* links of documents' tables, and not keys of a table? */
static inline bool
queue_chunk_is_link(const QueueChunk *chunk)
{
	return chunk->id.seq < 0;
}

/* ---- writers ---- */

/* a relation was changed: its OID may be another now; InvalidOid: any */
extern void queue_forget_relid(Oid relid);

/*
 * A generation to write to, open and locked until the transaction ends; NULL
 * if there is no queue.
 */
extern Relation queue_open_for_write(void);
extern void queue_insert(Relation queue, Oid relid, bool link, int32 layout, int n, const char *keys, int len);

/*
 * Queues n keys that are packed already, in this transaction.  One call makes
 * one chunk: len is at most KEY_CHUNK_BYTES.
 */
extern void queue_put(Oid relid, bool link, int32 layout, const char *keys, int len, int n);

/* the same with one key that was packed alone, however long it is */
extern void queue_put_key(Oid relid, bool link, int32 layout, const char *packed, int packed_len);

/* has this transaction written chunks?  Until it is told that it has ended. */
extern bool queue_wrote(void);
extern void queue_writer_end(void);

/* ---- the worker; each call in a transaction of its caller ---- */

/* shown a chunk; returns false to stop there */
typedef bool (*QueueChunkCallback) (QueueChunk *chunk, void *arg);

/* shown a chunk that is not in the worker's hands */
typedef enum QueueAnswer
{
	QUEUE_TAKEN,				/* it is the caller's, until queue_delete,
								 * queue_hold or queue_release */
	QUEUE_LATER,				/* not now: the next visit begins there */
	QUEUE_STOP					/* nor anything else */
} QueueAnswer;

typedef QueueAnswer (*QueueReadCallback) (QueueChunk *chunk, void *arg);

/* would it take a relation's chunks that were held? */
typedef bool (*QueueRelFilter) (Oid relid, void *arg);

extern void queue_worker_init(void);

/*
 * A visit: shows chunks from where the last one left off.  A table of the
 * queue is left for this time after some pages of which nothing was taken.
 * Returns when another visit is due to look at the rest, DT_NOEND: none is;
 * what was answered QUEUE_LATER is the caller's to come back for.
 */
extern TimestampTz queue_read(Snapshot snapshot, QueueRelFilter hold_filter,
					   QueueReadCallback callback, void *arg);

/* then: the end of each generation, where what came last is, if that was not reached */
extern void queue_read_newest(Snapshot snapshot, QueueReadCallback callback, void *arg);

/* may chunks of the relation be held? */
extern bool queue_may_hold(Oid relid);

/* removes a chunk that was handed out; at commit it is forgotten */
extern void queue_delete(const QueueChunk *chunk);

/* moves a chunk to the hold table */
extern void queue_hold(const QueueChunk *chunk);

/* lets go of a chunk: a later visit shows it again */
extern void queue_release(const QueueChunk *chunk);

/* to be called after the transaction of queue_delete and queue_hold ended */
extern void queue_end_xact(bool committed);

/* removes all chunks of keys of a relation, those not handed out */
extern void queue_delete_relation(Oid relid);

/*
 * Empties generations that are read to the end, and has writers turn to
 * another one when the present one has grown.  Runs transactions of its own.
 */
extern void queue_rotate(void);

/* where a look at the queue stopped; at first zeroed */
typedef struct QueuePlace
{
	int			table;
	Oid			filenode;
	BlockNumber block;
	Oid			relid;			/* of the chunk found */
	bool		link;			/* and whether it is one of links */
} QueuePlace;

/* some relations' chunks: of keys, and of links; both sorted */
typedef struct QueueOf
{
	Oid		   *keys;
	int			nkeys;
	Oid		   *links;
	int			nlinks;
} QueueOf;

/*
 * Is there a committed chunk written before xid, one of those (NULL: of any) and
 * none of but (NULL)?
 * Looks on from *place: there are none before it that were committed when the
 * first look began.
 */
extern bool queue_has_before(FullTransactionId xid, const QueueOf *of, const QueueOf *but,
							 QueuePlace *place);

/*
 * Shows the callback the stored chunks of a relation, those handed out
 * included, keys and all; it returns false to stop there.
 */
extern void queue_look(Oid relid, Snapshot snapshot, QueueChunkCallback callback, void *arg);

/*
 * Looks at no more than about max_pages pages of a queue table, evenly spread;
 * *scale is set to what each chunk seen stands for.  Returns the table's size
 * in bytes.
 */
extern int64 queue_sample(int table, int max_pages, double *scale,
						  void (*callback) (const QueueChunk *chunk, void *arg), void *arg);

#endif							/* CRATE_SYNC_QUEUE_H */
