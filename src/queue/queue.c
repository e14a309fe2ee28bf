/*-------------------------------------------------------------------------
 *
 * queue.c
 *		The queue: chunks of packed keys in tables that rotate.
 *
 * Three generations.  Writers fill the one that the sequence queue_generation
 * names; where they cannot lock it at once they take the next, so they never
 * wait for the worker.  The worker reads all of them, removes the chunks
 * whose rows have arrived, and empties a generation when it can have it for
 * itself for a moment and a fresh snapshot sees nothing in it.  A generation
 * that has grown is left to be read to its end: writers are sent to an empty
 * one.  Emptying frees the space whatever old snapshots others hold, for
 * nobody but the worker reads a generation.
 *
 * There is no index and no order: a chunk is found by where it was seen, and
 * recognised by its id.  Tables are read in rounds, from start to end, each over
 * as many visits as it takes.  A round does not pass a chunk that was left; what
 * was committed behind its back (by a transaction that wrote it long before, or
 * was prepared) is found by the next round.
 *
 * In the hold table each relation has a round of its own, which passes others'
 * chunks: those of a paused one cost nobody anything.  A relation that was not
 * met in a whole round has nothing there, and it is not read for it again.
 *
 * Chunks are written and removed by the heap's own functions, not by SQL:
 * neither grants nor search_path, triggers, read-only transactions or
 * publications have a say in it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/sequence.h"
#include "executor/tuptable.h"
#include "queue/key.h"
#include "queue/queue.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* columns, as in the extension's script */
enum
{
	Q_XID, Q_QUEUED_AT, Q_RELID, Q_SEQ, Q_LAYOUT, Q_N, Q_KEYS, Q_NATTS
};

/* a generation larger than this is left behind by the writers (pages) */
#define QUEUE_ROTATE_PAGES 16

/* ms for which a writer stays with a generation */
#define ASK_GENERATION_MS 20

static const char *const queue_names[QUEUE_TABLES] =
{
	"queue_0", "queue_1", "queue_2", "queue_hold"
};

static Oid	queue_relids[QUEUE_TABLES]; /* InvalidOid: to be looked up */

/* in this transaction */
static int32 chunk_seq = 0;
static bool wrote_chunks = false;

void
queue_forget_relid(Oid relid)
{
	for (int i = 0; i < QUEUE_TABLES; i++)
	{
		if (relid == InvalidOid || relid == queue_relids[i])
			queue_relids[i] = InvalidOid;
	}
}

/* for writers of one row a time, two lookups by name are worth to be spared */
static Oid
queue_relid(int table)
{
	Oid			nsp;

	if (likely(OidIsValid(queue_relids[table])))
		return queue_relids[table];
	nsp = get_namespace_oid(CS_SCHEMA, true);
	if (OidIsValid(nsp))
		queue_relids[table] = get_relname_relid(queue_names[table], nsp);
	return queue_relids[table];
}

/* ---------------------------------------------------------------------
 * Writers
 * ------------------------------------------------------------------- */

/*
 * The generation writers are to fill.  Read straight from the sequence's
 * page: no snapshot, no lock that could make us wait.
 */
static int
current_generation(void)
{
	Oid			nsp = get_namespace_oid(CS_SCHEMA, true);
	Oid			relid = OidIsValid(nsp) ? get_relname_relid("queue_generation", nsp) : InvalidOid;
	Relation	rel;
	Buffer		buf;
	Page		page;
	ItemId		lp;
	int64		value = 0;

	if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, AccessShareLock))
		return 0;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return 0;
	buf = ReadBuffer(rel, 0);
	LockBuffer(buf, BUFFER_LOCK_SHARE);
	page = BufferGetPage(buf);
	lp = PageGetItemId(page, FirstOffsetNumber);
	if (ItemIdIsNormal(lp))
	{
		HeapTupleHeader tup = (HeapTupleHeader) PageGetItem(page, lp);

		value = ((Form_pg_sequence_data) ((char *) tup + tup->t_hoff))->last_value;
	}
	UnlockReleaseBuffer(buf);
	relation_close(rel, AccessShareLock);
	return (int) (((uint64) value) % QUEUE_GENERATIONS);
}

/*
 * Which one it is, is asked once in a while: any would do, and rotation only
 * has to be noticed some time.
 */
static int
generation_to_fill(void)
{
	static int	generation = 0;
	static TimestampTz asked_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (now - asked_at > ASK_GENERATION_MS * INT64CONST(1000) || now < asked_at)
	{
		generation = current_generation();
		asked_at = now;
	}
	return generation;
}

Relation
queue_open_for_write(void)
{
	int			first = generation_to_fill();

	for (;;)
	{
		bool		exists = false;

		for (int i = 0; i < QUEUE_GENERATIONS; i++)
		{
			Oid			relid = queue_relid((first + i) % QUEUE_GENERATIONS);

			if (!OidIsValid(relid))
				continue;
			exists = true;
			if (ConditionalLockRelationOid(relid, RowExclusiveLock))
			{
				Relation	rel = try_relation_open(relid, NoLock);

				if (rel != NULL)
					return rel;
			}
		}
		if (!exists)
			return NULL;

		/*
		 * Somebody holds all three, by hand or in DROP EXTENSION.  Waiting in
		 * the lock's queue could end in a deadlock and lock_timeout could end
		 * the writer; so ask again until it is over.
		 */
		CHECK_FOR_INTERRUPTS();
		pg_usleep(1000L);
	}
}

static BlockNumber
insert_tuple(Relation queue, Datum *values)
{
	bool		nulls[Q_NATTS] = {0};
	HeapTuple	tup = heap_form_tuple(RelationGetDescr(queue), values, nulls);
	BlockNumber block;

	heap_insert(queue, tup, GetCurrentCommandId(true), HEAP_INSERT_NO_LOGICAL, NULL);
	block = ItemPointerGetBlockNumber(&tup->t_self);
	heap_freetuple(tup);
	return block;
}

void
queue_insert(Relation queue, Oid relid, bool link, int32 layout, int n, const char *keys, int len)
{
	Datum		values[Q_NATTS];
	bytea	   *packed = palloc(VARHDRSZ + len);
	int			lock_timeout = LockTimeout;

	/* header, the columns before the keys, and those */
	StaticAssertStmt(MAXALIGN(SizeofHeapTupleHeader) + 2 * sizeof(int64) + 4 * sizeof(int32) +
					 VARHDRSZ + KEY_CHUNK_BYTES <= MaxHeapTupleSize,
					 "a chunk of the queue has to fit a page");
	Assert(len <= KEY_CHUNK_BYTES);

	SET_VARSIZE(packed, VARHDRSZ + len);
	memcpy(VARDATA(packed), keys, len);

	values[Q_XID] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[Q_QUEUED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[Q_RELID] = ObjectIdGetDatum(relid);
	values[Q_SEQ] = Int32GetDatum((chunk_seq++ & PG_INT32_MAX) | (link ? PG_INT32_MIN : 0));
	values[Q_LAYOUT] = Int32GetDatum(layout);
	values[Q_N] = Int32GetDatum(n);
	values[Q_KEYS] = PointerGetDatum(packed);

	/*
	 * Others extend the same queue: that lock is held for no longer than it
	 * takes to write a page, but a low lock_timeout would end the writer.
	 */
	LockTimeout = 0;
	PG_TRY();
	{
		insert_tuple(queue, values);
	}
	PG_FINALLY();
	{
		LockTimeout = lock_timeout;
	}
	PG_END_TRY();
	pfree(packed);
	wrote_chunks = true;
}

void
queue_put_key(Oid relid, bool link, int32 layout, const char *packed, int packed_len)
{
	const char *keys;
	int			len;
	int			n = key_chunk(packed, packed_len, &keys, &len);

	queue_put(relid, link, layout, keys, len, n);
	if (n == KEY_LONG)
		pfree(unconstify(char *, keys));
}

void
queue_put(Oid relid, bool link, int32 layout, const char *keys, int len, int n)
{
	Relation	queue = queue_open_for_write();

	if (queue == NULL)
		return;
	queue_insert(queue, relid, link, layout, n, keys, len);
	table_close(queue, NoLock);
}

bool
queue_wrote(void)
{
	return wrote_chunks;
}

void
queue_writer_end(void)
{
	wrote_chunks = false;
	chunk_seq = 0;
}

/* ---------------------------------------------------------------------
 * The worker
 * ------------------------------------------------------------------- */

/* pages without anything to take, after which a visit leaves a table */
#define LOOK_PAGES 256

/*
 * ms until the next of them, and in multiples of what they cost, once a round
 * went through the table: pages that others keep from being freed, or that are full
 * of chunks nobody takes now, cost little.
 */
#define LOOK_PAUSE 20
#define LOOK_PAUSE_FACTOR 10

/* pages at a generation's end where writers fill it */
#define NEWEST_PAGES 64

/* chunks in the worker's hands */
typedef struct TakenChunk
{
	ChunkId		id;				/* hash key */
	int			table;
} TakenChunk;

/* a table's round */
typedef struct Round
{
	BlockNumber next;			/* where it goes on: nothing was left before */
	BlockNumber seen_to;		/* where this visit left off */
	bool		complete;		/* the last one came to the end, leaving nothing */
	int			in_hand;		/* chunks of the table that are taken */
	bool		known;			/* some round came to the end */
	TimestampTz pause_until;	/* when it goes on, if nothing was left; else 0 */
} Round;

/* a relation of which the hold table may have chunks */
typedef struct HeldRelation
{
	Oid			relid;			/* hash key; InvalidOid: whoever is not known yet */
	BlockNumber next;			/* where its round goes on */
	bool		met;			/* in this round */
	bool		wanted;			/* in this visit */
	BlockNumber left;			/* in this visit: the first block with a chunk left */
} HeldRelation;

static HTAB *taken = NULL;
static HTAB *held_relations = NULL;
static Round rounds[QUEUE_TABLES];	/* the hold table's goes on elsewhere, see HeldRelation */
static List *deleted_in_xact = NIL; /* of TakenChunk * */
static MemoryContext queue_cxt = NULL;

/* chunks may be there, from that block on */
static HeldRelation *
note_held(Oid relid, BlockNumber block)
{
	bool		found;
	HeldRelation *held = hash_search(held_relations, &relid, HASH_ENTER, &found);

	if (!found)
	{
		held->next = block;
		held->wanted = false;
	}
	held->next = Min(held->next, block);
	held->met = true;
	return held;
}

void
queue_worker_init(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(ChunkId);
	ctl.entrysize = sizeof(TakenChunk);
	queue_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync queue",
									  ALLOCSET_DEFAULT_SIZES);
	ctl.hcxt = queue_cxt;
	taken = hash_create("crate_sync chunks in hand", 1024, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(HeldRelation);
	held_relations = hash_create("crate_sync held relations", 64, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	note_held(InvalidOid, 0)->met = false;	/* one round finds out */
	memset(rounds, 0, sizeof(rounds));
}

/* opens a queue table for the worker; NULL if it is not there or not to be had */
static Relation
queue_open(int table, LOCKMODE mode, bool wait)
{
	Oid			relid = queue_relid(table);
	Relation	rel;

	if (!OidIsValid(relid))
		return NULL;
	if (wait)
		LockRelationOid(relid, mode);
	else if (!ConditionalLockRelationOid(relid, mode))
		return NULL;
	rel = try_relation_open(relid, NoLock);
	return rel;
}

static void
chunk_from_slot(TupleTableSlot *slot, int table, QueueChunk *chunk)
{
	slot_getallattrs(slot);
	memset(chunk, 0, sizeof(QueueChunk));
	chunk->id.xid = DatumGetFullTransactionId(slot->tts_values[Q_XID]);
	chunk->id.seq = DatumGetInt32(slot->tts_values[Q_SEQ]);
	chunk->table = table;
	chunk->tid = slot->tts_tid;
	chunk->relid = DatumGetObjectId(slot->tts_values[Q_RELID]);
	chunk->layout = DatumGetInt32(slot->tts_values[Q_LAYOUT]);
	chunk->n = DatumGetInt32(slot->tts_values[Q_N]);
	chunk->queued_at = DatumGetTimestampTz(slot->tts_values[Q_QUEUED_AT]);
}

/* a visit */
typedef struct Look
{
	Snapshot	snapshot;
	QueueReadCallback callback;
	void	   *arg;
	int			taken;
	BlockNumber left;			/* the first block of the generation where one was left */
	bool		stopped;
} Look;

static void
look_at_blocks(Look *look, Relation rel, int table, BlockNumber from, BlockNumber to)
{
	TableScanDesc scan = table_beginscan_strat(rel, look->snapshot, 0, NULL, true, false);
	TupleTableSlot *slot = table_slot_create(rel, NULL);

	heap_setscanlimits(scan, from, to - from);
	while (!look->stopped && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		QueueChunk	chunk;
		BlockNumber block;
		HeldRelation *held = NULL;
		bytea	   *keys;
		TakenChunk *entry;
		QueueAnswer answer;

		chunk_from_slot(slot, table, &chunk);
		block = ItemPointerGetBlockNumber(&chunk.tid);
		if (table == QUEUE_HOLD)
		{
			bool		found;

			held = hash_search(held_relations, &chunk.relid, HASH_FIND, &found);
			if (!found)
				held = note_held(chunk.relid, block);
			held->met = true;
			if (!held->wanted || block < held->next)
				continue;
		}
		if (hash_search(taken, &chunk.id, HASH_FIND, NULL) != NULL)
			continue;

		/* where they are stored: a backlog of any size is looked through */
		keys = DatumGetByteaPP(slot->tts_values[Q_KEYS]);
		chunk.len = VARSIZE_ANY_EXHDR(keys);
		chunk.keys = VARDATA_ANY(keys);
		answer = look->callback(&chunk, look->arg);
		if (answer == QUEUE_TAKEN)
		{
			entry = hash_search(taken, &chunk.id, HASH_ENTER, NULL);
			entry->table = table;
			rounds[table].in_hand++;
			look->taken++;
			continue;
		}
		if (!BlockNumberIsValid(look->left))
			look->left = block;
		if (held != NULL && !BlockNumberIsValid(held->left))
			held->left = block;
		look->stopped = answer == QUEUE_STOP;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
}

/* looks from there on, as long as there is something to take; returns how far it came */
static BlockNumber
look_from(Look *look, Relation rel, int table, BlockNumber from, BlockNumber nblocks)
{
	TimestampTz start = 0;
	int			before;

	look->left = InvalidBlockNumber;
	do
	{
		BlockNumber to = nblocks - from > LOOK_PAGES ? from + LOOK_PAGES : nblocks;

		if (from >= nblocks)
			break;
		before = look->taken;
		start = GetCurrentTimestamp();
		look_at_blocks(look, rel, table, from, to);
		if (look->stopped)
			return look->left;
		from = to;
	} while (look->taken > before);

	if (from < nblocks && !BlockNumberIsValid(look->left))
	{
		TimestampTz now = GetCurrentTimestamp();

		rounds[table].pause_until = now;
		if (rounds[table].known)
			rounds[table].pause_until = TimestampTzPlusMilliseconds(now, LOOK_PAUSE) +
				LOOK_PAUSE_FACTOR * Max(0, now - start);
	}
	return from;
}

static void
read_generation(Look *look, int table)
{
	Round	   *round = &rounds[table];
	Relation	rel;
	BlockNumber nblocks;

	round->seen_to = round->next;
	if (round->pause_until > GetCurrentTimestamp())
		return;
	round->pause_until = 0;
	rel = queue_open(table, AccessShareLock, false);
	if (rel == NULL)
		return;
	nblocks = RelationGetNumberOfBlocks(rel);
	if (round->next > nblocks)
		round->next = 0;		/* emptied, but not by us */
	round->seen_to = look_from(look, rel, table, round->next, nblocks);
	round->next = BlockNumberIsValid(look->left) ? look->left : round->seen_to;
	round->complete = round->next == nblocks;
	if (round->complete)
	{
		round->next = 0;
		round->known = true;
	}
	relation_close(rel, AccessShareLock);
}

static void
read_held(Look *look, QueueRelFilter filter)
{
	HASH_SEQ_STATUS seq;
	HeldRelation *held;
	Relation	rel;
	BlockNumber nblocks;
	BlockNumber from = InvalidBlockNumber;

	hash_seq_init(&seq, held_relations);
	while ((held = hash_seq_search(&seq)) != NULL)
	{
		held->wanted = !OidIsValid(held->relid) || filter(held->relid, look->arg);
		held->left = InvalidBlockNumber;
		/* whoever is behind the others catches up with them */
		if (held->wanted)
			from = Min(from, held->next);
	}
	if (BlockNumberIsValid(from) && rounds[QUEUE_HOLD].pause_until > GetCurrentTimestamp())
		return;
	rounds[QUEUE_HOLD].pause_until = 0;
	if (!BlockNumberIsValid(from))
		return;
	rel = queue_open(QUEUE_HOLD, AccessShareLock, false);
	if (rel == NULL)
		return;
	nblocks = RelationGetNumberOfBlocks(rel);
	from = look_from(look, rel, QUEUE_HOLD, Min(from, nblocks), nblocks);
	relation_close(rel, AccessShareLock);

	hash_seq_init(&seq, held_relations);
	while ((held = hash_seq_search(&seq)) != NULL)
	{
		if (!held->wanted || (held->next > from && from < nblocks))
			continue;
		if (BlockNumberIsValid(held->left))
			held->next = held->left;
		else if (from < nblocks)
			held->next = from;
		else if (!held->met)
		{
			if (!OidIsValid(held->relid))
				rounds[QUEUE_HOLD].known = true;
			hash_search(held_relations, &held->relid, HASH_REMOVE, NULL);
		}
		else
		{
			held->next = 0;		/* another round */
			held->met = false;
		}
	}
}

TimestampTz
queue_read(Snapshot snapshot, QueueRelFilter hold_filter,
		   QueueReadCallback callback, void *arg)
{
	Look		look = {.snapshot = snapshot,.callback = callback,.arg = arg};
	int			current = current_generation();
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < QUEUE_GENERATIONS; i++)
		rounds[i].seen_to = 0;
	/* oldest first: the held, then those the writers have left */
	read_held(&look, hold_filter);
	for (int i = 1; i <= QUEUE_GENERATIONS && !look.stopped; i++)
		read_generation(&look, (current + i) % QUEUE_GENERATIONS);
	if (look.stopped)
		return 0;
	for (int i = 0; i < QUEUE_TABLES; i++)
	{
		if (rounds[i].pause_until != 0)
			next = Min(next, rounds[i].pause_until);
	}
	return next;
}

/*
 * Of a large backlog, or one whose emptied pages somebody's open transaction
 * keeps from being freed, a visit sees but a part: what was queued just now is not
 * made to wait for the rest.
 */
void
queue_read_newest(Snapshot snapshot, QueueReadCallback callback, void *arg)
{
	Look		look = {.snapshot = snapshot,.callback = callback,.arg = arg};

	for (int i = 0; i < QUEUE_GENERATIONS && !look.stopped; i++)
	{
		Relation	rel = queue_open(i, AccessShareLock, false);
		BlockNumber nblocks;
		BlockNumber from;

		if (rel == NULL)
			continue;
		nblocks = RelationGetNumberOfBlocks(rel);
		from = Max(rounds[i].seen_to, nblocks > NEWEST_PAGES ? nblocks - NEWEST_PAGES : 0);
		if (from < nblocks)
			look_at_blocks(&look, rel, i, from, nblocks);
		relation_close(rel, AccessShareLock);
	}
}

bool
queue_may_hold(Oid relid)
{
	return hash_search(held_relations, &relid, HASH_FIND, NULL) != NULL;
}

/*
 * Removes the stored row of a chunk, which is left in the slot.  If it is not
 * where it was seen, the table was rewritten: then it is read, and pushed, once
 * more.
 */
static bool
delete_stored(Relation rel, const QueueChunk *chunk, TupleTableSlot *slot)
{
	ItemPointerData tid = chunk->tid;
	TM_FailureData tmfd;
	QueueChunk	there;

	if (ItemPointerGetBlockNumber(&tid) >= RelationGetNumberOfBlocks(rel) ||
		!table_tuple_fetch_row_version(rel, &tid, GetActiveSnapshot(), slot))
		return false;
	chunk_from_slot(slot, chunk->table, &there);
	if (memcmp(&there.id, &chunk->id, sizeof(ChunkId)) != 0)
		return false;
	return heap_delete(rel, &tid, GetCurrentCommandId(true), InvalidSnapshot, false,
					   &tmfd, false) == TM_Ok;
}

void
queue_delete(const QueueChunk *chunk)
{
	Relation	rel = queue_open(chunk->table, RowExclusiveLock, true);
	TakenChunk *entry = hash_search(taken, &chunk->id, HASH_FIND, NULL);

	if (rel != NULL)
	{
		TupleTableSlot *slot = table_slot_create(rel, NULL);

		delete_stored(rel, chunk, slot);
		ExecDropSingleTupleTableSlot(slot);
		relation_close(rel, NoLock);
	}
	if (entry != NULL)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(queue_cxt);

		deleted_in_xact = lappend(deleted_in_xact, entry);
		MemoryContextSwitchTo(oldcxt);
	}
}

/* true if it was in our hands */
static bool
let_go(const QueueChunk *chunk)
{
	TakenChunk *entry = hash_search(taken, &chunk->id, HASH_FIND, NULL);

	if (entry == NULL)
		return false;
	rounds[entry->table].in_hand--;
	Assert(rounds[entry->table].in_hand >= 0);
	hash_search(taken, &chunk->id, HASH_REMOVE, NULL);
	return true;
}

void
queue_hold(const QueueChunk *chunk)
{
	Relation	hold;
	Relation	rel;

	if (chunk->table == QUEUE_HOLD)
	{
		queue_release(chunk);
		return;
	}
	hold = queue_open(QUEUE_HOLD, RowExclusiveLock, true);
	rel = queue_open(chunk->table, RowExclusiveLock, true);
	if (hold != NULL && rel != NULL)
	{
		TupleTableSlot *slot = table_slot_create(rel, NULL);

		/* noted though this may be rolled back: a round more, for nothing */
		if (delete_stored(rel, chunk, slot))
			note_held(chunk->relid, insert_tuple(hold, slot->tts_values));
		ExecDropSingleTupleTableSlot(slot);
	}
	if (rel != NULL)
		relation_close(rel, NoLock);
	if (hold != NULL)
		relation_close(hold, NoLock);
	let_go(chunk);
}

void
queue_release(const QueueChunk *chunk)
{
	BlockNumber block = ItemPointerGetBlockNumber(&chunk->tid);

	if (!let_go(chunk))
		return;
	if (chunk->table == QUEUE_HOLD)
		note_held(chunk->relid, block);
	else
	{
		rounds[chunk->table].next = Min(rounds[chunk->table].next, block);
		rounds[chunk->table].complete = false;
		rounds[chunk->table].known = false;
	}
}

void
queue_end_xact(bool committed)
{
	ListCell   *lc;

	foreach(lc, deleted_in_xact)
	{
		TakenChunk *entry = lfirst(lc);

		if (committed)
		{
			rounds[entry->table].in_hand--;
			Assert(rounds[entry->table].in_hand >= 0);
			hash_search(taken, &entry->id, HASH_REMOVE, NULL);
		}
	}
	list_free(deleted_in_xact);
	deleted_in_xact = NIL;
}

/* calls back for every visible chunk of a table, taken or not */
typedef bool (*StoredCallback) (Relation rel, QueueChunk *chunk, void *arg);

static bool
walk_stored(int table, Snapshot snapshot, LOCKMODE mode, StoredCallback callback, void *arg)
{
	Relation	rel = queue_open(table, mode, true);
	TableScanDesc scan;
	TupleTableSlot *slot;
	bool		stopped = false;

	if (rel == NULL)
		return false;
	scan = table_beginscan(rel, snapshot, 0, NULL);
	slot = table_slot_create(rel, NULL);
	while (!stopped && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		QueueChunk	chunk;

		CHECK_FOR_INTERRUPTS();
		chunk_from_slot(slot, table, &chunk);
		stopped = callback(rel, &chunk, arg);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	relation_close(rel, mode == AccessShareLock ? mode : NoLock);
	return stopped;
}

static bool
delete_of_relation(Relation rel, QueueChunk *chunk, void *arg)
{
	TM_FailureData tmfd;

	if (chunk->relid == *(Oid *) arg && !queue_chunk_is_link(chunk) &&
		hash_search(taken, &chunk->id, HASH_FIND, NULL) == NULL)
		heap_delete(rel, &chunk->tid, GetCurrentCommandId(true), InvalidSnapshot,
					false, &tmfd, false);
	return false;
}

void
queue_delete_relation(Oid relid)
{
	for (int i = 0; i < QUEUE_TABLES; i++)
	{
		walk_stored(i, GetActiveSnapshot(), RowExclusiveLock, delete_of_relation, &relid);
		rounds[i].next = 0;		/* perhaps nothing is left */
	}
}

static bool
is_of(const QueueChunk *chunk, const QueueOf *of)
{
	bool		link = queue_chunk_is_link(chunk);
	int			n = link ? of->nlinks : of->nkeys;

	return n > 0 && bsearch(&chunk->relid, link ? of->links : of->keys, n, sizeof(Oid), oid_cmp) != NULL;
}

/*
 * What sessions see of the queue is how it is now, not a snapshot of theirs: one of
 * a SERIALIZABLE transaction would leave predicate locks, for which writers fail.
 */
bool
queue_has_before(FullTransactionId xid, const QueueOf *of, const QueueOf *but,
				 QueuePlace *place)
{
	/* chunks move to the hold table only, which is the last one, and nowhere else */
	for (; place->table < QUEUE_TABLES; place->table++)
	{
		Relation	rel = queue_open(place->table, AccessShareLock, true);
		BlockNumber nblocks;
		TableScanDesc scan;
		TupleTableSlot *slot;
		bool		found = false;

		if (rel == NULL)
			continue;
		if (place->filenode != CS_RELFILENUMBER(rel))
		{
			place->filenode = CS_RELFILENUMBER(rel);
			place->block = 0;
		}
		nblocks = RelationGetNumberOfBlocks(rel);
		if (place->block < nblocks)
		{
			scan = table_beginscan_strat(rel, SnapshotSelf, 0, NULL, true, false);
			heap_setscanlimits(scan, place->block, nblocks - place->block);
			slot = table_slot_create(rel, NULL);
			while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
			{
				QueueChunk	chunk;

				CHECK_FOR_INTERRUPTS();
				chunk_from_slot(slot, place->table, &chunk);
				found = FullTransactionIdPrecedes(chunk.id.xid, xid) &&
					(of == NULL || is_of(&chunk, of)) && (but == NULL || !is_of(&chunk, but));
				if (found)
				{
					place->block = ItemPointerGetBlockNumber(&chunk.tid);
					place->relid = chunk.relid;
					place->link = queue_chunk_is_link(&chunk);
				}
			}
			ExecDropSingleTupleTableSlot(slot);
			table_endscan(scan);
		}
		relation_close(rel, AccessShareLock);
		if (found)
			return true;
	}
	return false;
}

void
queue_look(Oid relid, Snapshot snapshot, QueueChunkCallback callback, void *arg)
{
	bool		going = true;

	for (int i = 0; i < QUEUE_TABLES && going; i++)
	{
		Relation	rel = queue_open(i, AccessShareLock, true);
		TableScanDesc scan;
		TupleTableSlot *slot;

		if (rel == NULL)
			continue;
		scan = table_beginscan(rel, snapshot, 0, NULL);
		slot = table_slot_create(rel, NULL);
		while (going && table_scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			QueueChunk	chunk;
			bytea	   *keys;

			CHECK_FOR_INTERRUPTS();
			chunk_from_slot(slot, i, &chunk);
			if (chunk.relid != relid)
				continue;
			keys = DatumGetByteaPP(slot->tts_values[Q_KEYS]);
			chunk.keys = VARDATA_ANY(keys);
			chunk.len = VARSIZE_ANY_EXHDR(keys);
			going = callback(&chunk, arg);
		}
		ExecDropSingleTupleTableSlot(slot);
		table_endscan(scan);
		relation_close(rel, AccessShareLock);
	}
}

int64
queue_sample(int table, int max_pages, double *scale,
			 void (*callback) (const QueueChunk *chunk, void *arg), void *arg)
{
	Relation	rel = queue_open(table, AccessShareLock, false);
	BlockNumber nblocks;
	TableScanDesc scan;
	TupleTableSlot *slot;
	int			npages;

	if (rel == NULL)
		return 0;
	nblocks = RelationGetNumberOfBlocks(rel);
	npages = nblocks > max_pages * 2 ? max_pages : nblocks;
	*scale = npages > 0 ? (double) nblocks / npages : 1.0;
	slot = table_slot_create(rel, NULL);
	for (int i = 0; i < npages; i++)
	{
		BlockNumber block = npages == nblocks ? i :
			(BlockNumber) ((double) i * (nblocks - 1) / (npages - 1));

		scan = table_beginscan_strat(rel, SnapshotSelf, 0, NULL, true, false);
		heap_setscanlimits(scan, block, npages == nblocks ? nblocks : 1);
		while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		{
			QueueChunk	chunk;
			bool		isnull;
			Datum		keys = slot_getattr(slot, Q_KEYS + 1, &isnull);

			chunk_from_slot(slot, table, &chunk);
			chunk.len = VARSIZE_ANY_EXHDR(DatumGetPointer(keys));
			callback(&chunk, arg);
		}
		table_endscan(scan);
		if (npages == nblocks)
			break;				/* one scan read them all */
	}
	ExecDropSingleTupleTableSlot(slot);
	relation_close(rel, AccessShareLock);
	return (int64) nblocks * BLCKSZ;
}

static bool
any_chunk(Relation rel, QueueChunk *chunk, void *arg)
{
	return true;
}

/*
 * Empties a generation if nobody is writing to it and nothing is left in it.
 *
 * READ COMMITTED, and the snapshot younger than the lock: an older one would
 * not see what was committed just before we got the lock, and wipe it.
 */
static void
queue_empty(int table)
{
	Relation	rel;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	rel = queue_open(table, AccessExclusiveLock, false);
	if (rel != NULL)
	{
		bool		occupied;

		PushActiveSnapshot(GetLatestSnapshot());
		occupied = walk_stored(table, GetActiveSnapshot(), AccessExclusiveLock, any_chunk, NULL);
		PopActiveSnapshot();
		/* if it is, some chunk was not seen yet: it is looked for from the start */
		rounds[table].next = 0;
		rounds[table].complete = !occupied;
		rounds[table].known = false;
		if (!occupied)
		{
			Assert(rounds[table].in_hand == 0);
			heap_truncate_one_rel(rel);
		}
		relation_close(rel, NoLock);
	}
	CommitTransactionCommand();
}

static BlockNumber
queue_blocks(int table)
{
	Relation	rel = queue_open(table, AccessShareLock, false);
	BlockNumber n = 0;

	if (rel != NULL)
	{
		n = RelationGetNumberOfBlocks(rel);
		relation_close(rel, AccessShareLock);
	}
	return n;
}

/*
 * A transaction that has queued something and stays open keeps its generation
 * from being emptied, and three of them can keep all.  Nothing else would give
 * the room back meanwhile: what is deleted while it is open VACUUM leaves, too.
 */
void
queue_rotate(void)
{
	BlockNumber blocks[QUEUE_GENERATIONS];
	int			current;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	current = current_generation();
	for (int i = 0; i < QUEUE_GENERATIONS; i++)
		blocks[i] = queue_blocks(i);

	if (blocks[current] > QUEUE_ROTATE_PAGES)
	{
		for (int i = 1; i < QUEUE_GENERATIONS; i++)
		{
			int			next = (current + i) % QUEUE_GENERATIONS;

			if (blocks[next] == 0)
			{
				Oid			seq = get_relname_relid("queue_generation",
													get_namespace_oid(CS_SCHEMA, false));

				DirectFunctionCall2(setval_oid, ObjectIdGetDatum(seq), Int64GetDatum(next));
				current = next;
				break;
			}
		}
	}
	CommitTransactionCommand();

	/* only where a round left nothing, and all that it took is gone, can nothing be left */
	for (int i = 0; i < QUEUE_GENERATIONS; i++)
	{
		if (blocks[i] > (i == current ? QUEUE_ROTATE_PAGES : 0) &&
			rounds[i].complete && rounds[i].in_hand == 0)
			queue_empty(i);
	}
}
