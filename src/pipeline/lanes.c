/*-------------------------------------------------------------------------
 *
 * lanes.c
 *		From open batches to acknowledged ones.
 *
 * A table has as many lanes as there are connections; a key always takes the
 * same one, and a lane has one request under way at a time, so two writes of
 * one key are never in flight together and go out in the order in which their
 * rows were read.  A request of unknown outcome has the lane's fence raised
 * before anything newer is sent.
 *
 * A batch that is not taken whole is halved until the row that is refused
 * stands alone; that one is parked, its neighbours go through.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/point.h"
#include "base/settings.h"
#include "base/text.h"
#include "endpoint/claim.h"
#include "pipeline/keymap.h"
#include "pipeline/table.h"

/* that many refused in a row, none taken in between: it is not the rows */
#define PARK_LIMIT 100

/* failures in a row after which it is the table that is in trouble */
#define BUSY_LIMIT 6
#define LOST_LIMIT 3
#define SUSPECT_LIMIT 3
#define FENCE_LIMIT 20

/*
 * The keys that may be in failed_rows.  What was read before a row was parked
 * does not take it away from there when it arrives.  Where there are more than
 * a share of work_mem has room for, any key may be, and those that are known
 * are the ones of which something older is on its way.
 */
typedef struct FailedKey
{
	uint64		hash;			/* as in keymap.h; two keys may share it */
	uint64		behind;			/* batches up to that one were read before */
	char		status;			/* simplehash's own */
} FailedKey;

#define SH_PREFIX failedmap
#define SH_ELEMENT_TYPE FailedKey
#define SH_KEY_TYPE uint64
#define SH_KEY hash
#define SH_HASH_KEY(tb, key) ((uint32) (key))
#define SH_EQUAL(tb, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* ms after which a request is slow */
#define SLOW_REQUEST 2000

/* ms after which its connection counts for its own table only */
#define KEPT_REQUEST 1000

static int	kept = 0;			/* connections of such requests */

static uint64 current_read = 0;
static uint64 last_read = 0;
static TimestampTz late_deletes = 0;	/* see lanes_late_deletes() */

/* ---------------------------------------------------------------------
 * Filling batches
 * ------------------------------------------------------------------- */

void
lanes_setup(SyncTable *st)
{
	if (st->lanes != NULL && st->nlanes == cs_connections)
		return;
	Assert(st->lanes == NULL || lanes_idle(st));
	if (st->lanes != NULL)
		pfree(st->lanes);
	st->nlanes = cs_connections;
	st->next_lane = 0;
	st->lanes = MemoryContextAllocZero(st->cxt, sizeof(Lane) * st->nlanes);
	for (int i = 0; i < st->nlanes; i++)
	{
		st->lanes[i].table = st;
		st->lanes[i].no = i;
		dlist_init(&st->lanes[i].sealed);
	}
}

Lane *
lane_for_key(SyncTable *st, uint64 hash)
{
	/* the upper half: the lower one picks the place in a batch's hash */
	return &st->lanes[(hash >> 32) % st->nlanes];
}

static void
batch_hold_bytes(SyncTable *st, Batch *batch, ssize_t delta)
{
	batch->bytes += delta;
	st->held_bytes += delta;
	worker_held_bytes += delta;
}

static Batch *
batch_create(Lane *lane)
{
	SyncTable  *st = lane->table;
	MemoryContext cxt = AllocSetContextCreate(st->cxt, "crate_sync batch",
											  ALLOCSET_SMALL_SIZES);
	MemoryContext oldcxt = MemoryContextSwitchTo(cxt);
	Batch	   *batch = palloc0(sizeof(Batch));

	batch->cxt = cxt;
	batch->no = ++st->last_batch_no;
	batch->upserts = rowset_create(cxt, st->def->ncols);
	batch->deletes = rowset_create(cxt, st->def->nkeys);
	batch->maxshares = 4;
	batch->shares = palloc(sizeof(BatchShare) * batch->maxshares);
	batch->opened = GetCurrentTimestamp();
	MemoryContextSwitchTo(oldcxt);
	return batch;
}

static void
batch_free(SyncTable *st, Batch *batch)
{
	st->held_bytes -= batch->bytes;
	worker_held_bytes -= batch->bytes;
	MemoryContextDelete(batch->cxt);
}

/* a row's key cells, as lane_row_done gets them */
static void
batch_row_key(SyncTable *st, const Batch *batch, bool is_delete, int row, StringInfo buf)
{
	for (int k = 0; k < st->def->nkeys; k++)
	{
		int			len;
		const char *cell = is_delete ?
			rowset_get(batch->deletes, row, k, &len) :
			rowset_get(batch->upserts, row, st->def->keys[k], &len);

		if (k > 0)
			appendStringInfoChar(buf, ',');
		appendBinaryStringInfo(buf, cell, len);
	}
}

/* where a key's row is, as Batch.keys has it */
static inline uint32
map_value(bool is_delete, int row)
{
	return (uint32) row << 1 | is_delete;
}

static void
batch_index_rows(SyncTable *st, Batch *batch)
{
	StringInfoData key;

	batch->keys = keymap_create(batch->cxt, 256, NULL);
	initStringInfo(&key);
	for (int is_delete = 0; is_delete < 2; is_delete++)
	{
		RowSet	   *rs = is_delete ? batch->deletes : batch->upserts;

		for (int row = 0; row < rs->nrows; row++)
		{
			KeyMapEntry *entry;
			bool		found;

			if (rs->dead != NULL && rs->dead[row])
				continue;
			resetStringInfo(&key);
			batch_row_key(st, batch, is_delete, row, &key);
			entry = keymap_insert(batch->keys, key_hash(key.data, key.len), &found);
			entry->value = map_value(is_delete, row);
		}
	}
	pfree(key.data);
}

void
lane_begin_read(Pass *pass)
{
	/* text and the like: one row can come for each of its key's spellings */
	if (pass == NULL || pass->keys == NULL || !keyset_of_numbers(pass->keys))
		current_read = ++last_read;
	else
	{
		/* a number is settled once, in whichever of the set's reads */
		if (pass->read_no == 0)
			pass->read_no = ++last_read;
		current_read = pass->read_no;
	}
}

Batch *
lane_open_batch(Lane *lane)
{
	Batch	   *batch = lane->open;

	if (batch == NULL)
	{
		batch = lane->open = batch_create(lane);
		batch->read_no = current_read;
	}
	else if (batch->read_no != current_read)
	{
		/* from now on a key may come again: it has to be found */
		if (batch->keys == NULL)
			batch_index_rows(lane->table, batch);
		batch->read_no = current_read;
	}
	return batch;
}

static void
push_segment(Batch *batch, TargetRequestKind kind, int lo, int hi, bool explain)
{
	BatchSegment *seg;

	if (lo >= hi)
		return;
	if (batch->nsegments == batch->maxsegments)
	{
		batch->maxsegments = Max(8, batch->maxsegments * 2);
		if (batch->segments == NULL)
			batch->segments = MemoryContextAlloc(batch->cxt,
												 sizeof(BatchSegment) * batch->maxsegments);
		else
			batch->segments = repalloc(batch->segments,
									   sizeof(BatchSegment) * batch->maxsegments);
	}
	seg = &batch->segments[batch->nsegments++];
	seg->kind = kind;
	seg->lo = lo;
	seg->hi = hi;
	seg->explain = explain;
	seg->suspected = 0;
}

static void
lane_seal(Lane *lane)
{
	Batch	   *batch = lane->open;

	batch->sealed = true;
	push_segment(batch, TARGET_DELETE, 0, batch->deletes->nrows, false);
	push_segment(batch, TARGET_UPSERT, 0, batch->upserts->nrows, false);
	dlist_push_tail(&lane->sealed, &batch->node);
	lane->nsealed++;
	lane->open = NULL;
}

void
lane_row_done(Lane *lane, Batch *batch, Pass *pass, bool is_delete,
			  const char *key, int keylen, uint64 hash, Size rowbytes)
{
	SyncTable  *st = lane->table;
	RowSet	   *rs = is_delete ? batch->deletes : batch->upserts;
	int			row = rowset_end_row(rs);
	bool		collision = false;

	batch_hold_bytes(st, batch, rowbytes);

	if (batch->nshares == 0 || batch->shares[batch->nshares - 1].pass != pass)
	{
		if (batch->nshares == batch->maxshares)
		{
			batch->maxshares *= 2;
			batch->shares = repalloc(batch->shares, sizeof(BatchShare) * batch->maxshares);
		}
		batch->shares[batch->nshares].pass = pass;
		batch->shares[batch->nshares++].n = 0;
	}
	batch->shares[batch->nshares - 1].n++;
	pass->pending++;

	if (batch->keys != NULL)
	{
		bool		found;
		KeyMapEntry *entry = keymap_insert(batch->keys, hash, &found);

		if (found)
		{
			bool		deleted = entry->value & 1;
			int			other_row = entry->value >> 1;
			StringInfoData other;

			initStringInfo(&other);
			batch_row_key(st, batch, deleted, other_row, &other);
			if (other.len == keylen && memcmp(other.data, key, keylen) == 0)
				rowset_kill(deleted ? batch->deletes : batch->upserts, other_row);
			else
				collision = true;	/* two keys, one hash: this batch is over */
			pfree(other.data);
		}
		entry->value = map_value(is_delete, row);
	}

	if (collision ||
		batch->upserts->nrows + batch->deletes->nrows >= st->batch_rows ||
		batch->bytes >= (Size) cs_batch_bytes * 1024)
		lane_seal(lane);
}

/* ---------------------------------------------------------------------
 * Sending
 * ------------------------------------------------------------------- */

bool
lanes_idle(const SyncTable *st)
{
	for (int i = 0; i < st->nlanes; i++)
	{
		const Lane *lane = &st->lanes[i];

		if (lane->open != NULL || lane->current != NULL || lane->nsealed > 0)
			return false;
	}
	return true;
}

/* deletes of ours, or of a worker before us, may have got lost and arrive yet */
void
lanes_expect_late_deletes(void)
{
	if (the_target != NULL && the_target->ops->delete_life != NULL)
		late_deletes = Max(late_deletes,
						   TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   the_target->ops->delete_life(the_target) + 1000));
}

/* until when that is so; 0: it is not */
TimestampTz
lanes_late_deletes(void)
{
	return late_deletes > GetCurrentTimestamp() ? late_deletes : 0;
}

/* does the target keep this table waiting? */
bool
lanes_retrying(const SyncTable *st)
{
	for (int i = 0; i < st->nlanes; i++)
	{
		if (st->lanes[i].attempts > 1)
			return true;
	}
	return false;
}

TimestampTz
lanes_next_retry(const SyncTable *st)
{
	TimestampTz next = DT_NOEND;

	for (int i = 0; i < st->nlanes; i++)
	{
		const Lane *lane = &st->lanes[i];

		if (lane->current != NULL && !lane->busy && lane->retry_at != 0)
			next = Min(next, lane->retry_at);
	}
	return next;
}

/* forgets all batches; a request under way becomes one of unknown outcome */
void
lanes_drop(SyncTable *st)
{
	for (int i = 0; i < st->nlanes; i++)
	{
		Lane	   *lane = &st->lanes[i];

		if (lane->busy)
		{
			if (the_target != NULL)
				the_target->ops->abandon(the_target, &lane->req);
			if (lane->req.kind == TARGET_DELETE)
				lanes_expect_late_deletes();
			target_request_reset(&lane->req);
			lane->busy = false;
			lane->epoch = 0;
		}
		if (lane->current != NULL)
			batch_free(st, lane->current);
		lane->current = NULL;
		if (lane->open != NULL)
			batch_free(st, lane->open);
		lane->open = NULL;
		while (!dlist_is_empty(&lane->sealed))
			batch_free(st, dlist_container(Batch, node, dlist_pop_head_node(&lane->sealed)));
		lane->nsealed = 0;
		lane->attempts = 0;
		lane->retry_at = 0;
	}
}

static void
lane_retry_later(Lane *lane)
{
	lane->attempts++;
	lane->table->n_retries++;
	lane->table->dirty = true;
	lane->retry_at = backoff(lane->attempts);
}

/* a fence could not be raised, or not be asked for; tries counts how often in a row */
static void
fence_trouble(SyncTable *st, const TargetResult *res, int *tries, TimestampTz *retry_at)
{
	if (res->outcome == TARGET_REFUSED_ALL || res->outcome == TARGET_UNREACHABLE ||
		res->outcome == TARGET_UNKNOWN)
		target_trouble(res->outcome, res->code, res->message);
	else if (res->outcome != TARGET_BUSY)
		table_trouble(st, res->code, res->message, NULL);
	else if (++*tries >= FENCE_LIMIT)
	{
		*tries = 0;
		table_trouble(st, res->code, res->message, NULL);
	}
	else
		*retry_at = backoff(Min(*tries, 3));
}

/*
 * Whoever takes the table over writes its claim first and raises the fence
 * then: if the claim is still ours after we raised it, his fence will be above
 * this one.
 */
static bool
still_ours(SyncTable *st)
{
	if (claim_is_still_ours(st))
		return true;
	st->target_ready = false;
	return false;
}

/* false: not now */
static bool
lane_raise_fence(Lane *lane)
{
	SyncTable  *st = lane->table;
	TargetResult res;
	int64		epoch = 0;

	memset(&res, 0, sizeof(res));
	the_target->ops->raise_fence(the_target, &st->def->target, lane->no, &epoch, &res);
	if (res.outcome != TARGET_OK)
	{
		fence_trouble(st, &res, &lane->fence_tries, &lane->retry_at);
		return false;
	}
	if (!still_ours(st))
		return false;
	lane->epoch = epoch;
	lane->fence_tries = 0;
	return true;
}

/*
 * Whatever was sent to that table until now, by whichever lane of whichever
 * writer, leaves nothing there any more.  False: not now; *retry_at says when.
 */
bool
lanes_fence_all(SyncTable *st, const TargetTable *table, TimestampTz *retry_at)
{
	TargetResult res;
	int			n;

	memset(&res, 0, sizeof(res));
	the_target->ops->count_lanes(the_target, table, &n, &res);
	if (res.outcome == TARGET_OK)
		n = Max(n, Max(st->lanes_used, st->nlanes));
	for (int i = 0; res.outcome == TARGET_OK && i < n; i++)
	{
		int64		epoch = 0;

		the_target->ops->raise_fence(the_target, table, i, &epoch, &res);
		if (res.outcome == TARGET_OK && table == &st->def->target && i < st->nlanes &&
			!st->lanes[i].busy)
			st->lanes[i].epoch = epoch;
	}
	if (res.outcome != TARGET_OK)
	{
		fence_trouble(st, &res, &st->fence_tries, retry_at);
		return false;
	}
	st->fence_tries = 0;
	return still_ours(st);
}

bool
lanes_fence(SyncTable *st)
{
	for (int i = 0; i < st->nlanes; i++)
	{
		Lane	   *lane = &st->lanes[i];

		if (lane->epoch == 0 && !lane->busy &&
			((lane->retry_at != 0 && lane->retry_at > GetCurrentTimestamp()) ||
			 !lane_raise_fence(lane)))
			return false;
	}
	return true;
}

/* a batch is over: its passes are so much nearer to their end */
static void
lane_batch_done(Lane *lane)
{
	SyncTable  *st = lane->table;
	Batch	   *batch = lane->current;

	lane->current = NULL;
	for (int i = 0; i < batch->nshares; i++)
		pass_settle(st, batch->shares[i].pass, batch->shares[i].n);
	batch_free(st, batch);
}

/* before tables have their turn to send */
void
lanes_begin_turn(void)
{
	TimestampTz since = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), -KEPT_REQUEST);
	dlist_iter	it;

	kept = 0;
	dlist_foreach(it, &sync_tables)
	{
		const SyncTable *st = dlist_container(SyncTable, node, it.cur);

		for (int i = 0; i < st->nlanes; i++)
			kept += st->lanes[i].busy && st->lanes[i].sent_at < since;
	}
}

/*
 * One table's requests take long: that is nobody else's trouble.  Who has none
 * under way need not wait for the connections that they keep; so there may be
 * up to twice as many as are set.
 */
static int
connections_beside(const SyncTable *st)
{
	for (int i = 0; i < st->nlanes; i++)
	{
		if (st->lanes[i].busy)
			return 0;
	}
	return Min(kept, cs_connections);
}

/*
 * Sends what can be sent.  input_idle: nothing more is at hand to fill open
 * batches with, so they go as they are.  Returns true if anything was sent.
 */
bool
lanes_dispatch(SyncTable *st, bool input_idle)
{
	bool		sent = false;
	TimestampTz now = GetCurrentTimestamp();
	int			first = st->next_lane;

	/* where connections are few, lanes take turns in getting one */
	for (int i = 0; i < st->nlanes; i++)
	{
		Lane	   *lane = &st->lanes[(first + i) % st->nlanes];
		BatchSegment *seg;
		Batch	   *batch;

		if (lane->busy || (lane->retry_at != 0 && lane->retry_at > now))
			continue;
		if (lane->current == NULL)
		{
			if (dlist_is_empty(&lane->sealed))
			{
				if (lane->open == NULL || !input_idle)
					continue;
				lane_seal(lane);
			}
			lane->current = dlist_container(Batch, node, dlist_pop_head_node(&lane->sealed));
			lane->current->ready_no = st->ready_no;
			lane->nsealed--;
		}
		batch = lane->current;

		/* what a later row has replaced altogether need not be asked for */
		while (batch->nsegments > 0)
		{
			seg = &batch->segments[batch->nsegments - 1];
			if (rowset_live(seg->kind == TARGET_DELETE ? batch->deletes : batch->upserts,
							seg->lo, seg->hi) > 0)
				break;
			batch->nsegments--;
		}
		if (batch->nsegments == 0)
		{
			lane_batch_done(lane);
			i--;				/* the lane's next */
			continue;
		}

		if (lane->epoch == 0 && !lane_raise_fence(lane))
		{
			if (st->in_error || !worker_target_ok)
				return sent;
			continue;
		}

		seg = &batch->segments[batch->nsegments - 1];
		memset(&lane->req, 0, sizeof(TargetRequest));
		lane->req.kind = seg->kind;
		lane->req.table = &st->def->target;
		lane->req.lane = lane->no;
		lane->req.epoch = lane->epoch;
		lane->req.rows = seg->kind == TARGET_DELETE ? batch->deletes : batch->upserts;
		lane->req.lo = seg->lo;
		lane->req.hi = seg->hi;
		lane->req.explain = seg->explain;
		lane->req.arg = lane;
		lane->req.beside = connections_beside(st);
		cs_point("before send");
		if (!the_target->ops->submit(the_target, &lane->req))
			return sent;		/* no connection is free */
		lane->busy = true;
		lane->sent_at = now;
		st->n_submitted++;
		st->next_lane = (lane->no + 1) % st->nlanes;
		sent = true;
		cs_point("after send");
	}
	return sent;
}

/* the oldest batch there is, or the next one */
static uint64
oldest_batch(const SyncTable *st)
{
	uint64		no = st->last_batch_no + 1;

	for (int i = 0; i < st->nlanes; i++)
	{
		const Lane *lane = &st->lanes[i];

		if (lane->current != NULL)
			no = Min(no, lane->current->no);
		else if (lane->nsealed > 0)
			no = Min(no, dlist_container(Batch, node, lane->sealed.head.next)->no);
		else if (lane->open != NULL)
			no = Min(no, lane->open->no);
	}
	return no;
}

/* as many keys as may be known */
int
failed_key_limit(void)
{
	return (int) ((Size) cs_work_mem * 1024 / 16 / sizeof(FailedKey));
}

/* from now on any key may be in failed_rows; what matters of those that are known is kept */
static void
failed_too_many(SyncTable *st)
{
	struct failedmap_hash *old = st->failed;
	uint64		oldest = oldest_batch(st);
	failedmap_iterator it;
	FailedKey  *entry;
	bool		found;

	st->failed_all = true;
	st->failed = failedmap_create(st->cxt, 64, NULL);
	failedmap_start_iterate(old, &it);
	while ((entry = failedmap_iterate(old, &it)) != NULL)
	{
		if (entry->behind >= oldest)
			failedmap_insert(st->failed, entry->hash, &found)->behind = entry->behind;
	}
	failedmap_destroy(old);
	st->failed_room = 2 * (int) st->failed->members;
}

static FailedKey *
failed_key(SyncTable *st, const char *target_key, int len)
{
	FailedKey  *entry;
	bool		found;

	if (st->failed == NULL)
		st->failed = failedmap_create(st->cxt, 64, NULL);
	else if (st->failed->members >= Max(failed_key_limit(), st->failed_room))
		failed_too_many(st);
	entry = failedmap_insert(st->failed, key_hash(target_key, len), &found);
	if (!found)
		entry->behind = 0;
	return entry;
}

/* none is in failed_rows any more */
void
failed_none(SyncTable *st)
{
	st->failed_all = false;
}

void
failed_key_note(SyncTable *st, const char *target_key, int len)
{
	(void) failed_key(st, target_key, len);
}

bool
failed_key_known(const SyncTable *st, const char *target_key, int len)
{
	return st->failed_all ||
		(st->failed != NULL && failedmap_lookup(st->failed, key_hash(target_key, len)) != NULL);
}

/* a row leaves failed_rows, if it is there; it was read later than any that was parked */
void
unpark_row(SyncTable *st, const char *target_key, int len)
{
	MemoryContext oldcxt;
	ParkedRow  *arrived;

	if (!failed_key_known(st, target_key, len))
		return;
	oldcxt = MemoryContextSwitchTo(st->cxt);
	arrived = palloc0(sizeof(ParkedRow));
	/* the hash may lie: the statement that removes it compares the key */
	arrived->target_key = pnstrdup(target_key, len);
	st->parked = lappend(st->parked, arrived);
	MemoryContextSwitchTo(oldcxt);
}

/* the rows of a segment that has arrived leave failed_rows, but for those parked since they were read */
static void
unpark_arrived(SyncTable *st, Batch *batch, const BatchSegment *seg)
{
	RowSet	   *rs = seg->kind == TARGET_DELETE ? batch->deletes : batch->upserts;
	StringInfoData key;

	if (st->failed == NULL && !st->failed_all)
		return;
	initStringInfo(&key);
	for (int row = seg->lo; row < seg->hi; row++)
	{
		FailedKey  *entry;

		if (rs->dead != NULL && rs->dead[row])
			continue;
		resetStringInfo(&key);
		batch_row_key(st, batch, seg->kind == TARGET_DELETE, row, &key);
		entry = st->failed ? failedmap_lookup(st->failed, key_hash(key.data, key.len)) : NULL;
		if (entry != NULL ? batch->no > entry->behind : st->failed_all)
			unpark_row(st, key.data, key.len);
	}
	pfree(key.data);
}

/* behind: the last batch of which all was read before the row was */
static void
park_behind(SyncTable *st, uint64 behind, const char *target_key, int keylen,
			const char *packed, int packed_len,
			const char *action, const char *code, const char *message)
{
	FailedKey  *entry = failed_key(st, target_key, keylen);
	MemoryContext oldcxt;
	ParkedRow  *row;

	st->n_failed++;
	st->dirty = true;
	if (behind < entry->behind)
		return;					/* it was parked again since, and for what it is now */
	entry->behind = behind;
	oldcxt = MemoryContextSwitchTo(st->cxt);
	row = palloc0(sizeof(ParkedRow));
	row->target_key = pnstrdup(target_key, keylen);
	row->packed = palloc(packed_len + 1);
	memcpy(row->packed, packed, packed_len);
	row->packed_len = packed_len;
	row->action = action;
	strlcpy(row->code, code ? code : "", sizeof(row->code));
	row->message = message ? target_clean_text(message, strlen(message)) :
		pstrdup("refused without a reason");
	st->parked = lappend(st->parked, row);
	MemoryContextSwitchTo(oldcxt);
}

/* a row that could not be read just now: what is in batches is older */
void
park_row(SyncTable *st, const char *target_key, int keylen, const char *packed, int packed_len,
		 const char *action, const char *code, const char *message)
{
	Lane	   *lane = lane_for_key(st, key_hash(target_key, keylen));

	if (lane->open != NULL)
		lane_seal(lane);		/* what is read from now on is newer */
	park_behind(st, st->last_batch_no, target_key, keylen, packed, packed_len, action, code, message);
}

/* the one live row of a segment was refused */
static void
lane_park(Lane *lane, BatchSegment *seg, const char *code, const char *message)
{
	SyncTable  *st = lane->table;
	Batch	   *batch = lane->current;
	RowSet	   *rs = seg->kind == TARGET_DELETE ? batch->deletes : batch->upserts;
	int			row = seg->lo;
	StringInfoData key;
	char	   *packed;
	int			packed_len;

	while (rs->dead != NULL && rs->dead[row])
		row++;
	initStringInfo(&key);
	batch_row_key(st, batch, seg->kind == TARGET_DELETE, row, &key);
	packed = reader_pack_cells(st, key.data, &packed_len);
	park_behind(st, batch->no - 1, key.data, key.len, packed, packed_len,
				seg->kind == TARGET_DELETE ? "delete" : "upsert", code, message);
	pfree(packed);
	pfree(key.data);
	batch->nsegments--;

	st->parked_in_a_row++;
	if (st->parked_in_a_row >= PARK_LIMIT)
	{
		char	   *all = psprintf("%d rows in a row were refused, the last one: %s",
								   st->parked_in_a_row, message ? message : "");

		table_trouble(st, code, all,
					  "Not the rows but the table seems to be at fault: see crate_sync.failed_rows for each row's reason.");
		pfree(all);
	}
	else if (st->parked_in_a_row % 20 == 0 && batch->nsegments > 1)
	{
		/* perhaps only this corner is bad: try the other end */
		BatchSegment far = batch->segments[0];

		memmove(batch->segments, batch->segments + 1,
				sizeof(BatchSegment) * (batch->nsegments - 1));
		batch->segments[batch->nsegments - 1] = far;
	}
}

/* halves the segment on top of the stack by its live rows */
static void
lane_split(Lane *lane)
{
	Batch	   *batch = lane->current;
	BatchSegment seg = batch->segments[--batch->nsegments];
	int			mid = seg.lo + (seg.hi - seg.lo) / 2;

	push_segment(batch, seg.kind, mid, seg.hi, false);
	push_segment(batch, seg.kind, seg.lo, mid, false);
}

/*
 * Before a row is blamed: does the target table still fit, and is all of it
 * there?  True if that was seen since the batch began; else it is looked at
 * now, and the request repeated.
 */
static bool
table_was_checked(Lane *lane)
{
	SyncTable  *st = lane->table;

	if (st->ready_no != lane->current->ready_no)
		return true;
	st->target_ready = false;
	return false;
}

/*
 * A row alone was refused in a way that need not be its fault: dropped
 * without a reason, as a blocked table does too, or the target failed over
 * it.  It is the row's fault only if it is refused again after another one has gone
 * through; else it is the table that is in trouble.
 */
static void
lane_suspect(Lane *lane, const char *code, const char *message)
{
	SyncTable  *st = lane->table;
	Batch	   *batch = lane->current;
	BatchSegment *seg = &batch->segments[batch->nsegments - 1];
	uint64		arrived = st->n_arrived[seg->kind];
	int			other = 0;

	if (!table_was_checked(lane))
		return;
	if (seg->suspected != 0 && arrived >= seg->suspected)
	{
		lane_park(lane, seg, code, message);
		return;
	}
	if (seg->suspected == 0)
		seg->suspected = arrived + 1;

	while (other < batch->nsegments - 1 &&
		   (batch->segments[other].suspected != 0 || batch->segments[other].kind != seg->kind))
		other++;
	if (batch->suspects < PARK_LIMIT && other < batch->nsegments - 1)
	{
		/* ask another one first, far away: perhaps only this corner is bad */
		BatchSegment far = batch->segments[other];

		batch->suspects++;
		memmove(batch->segments + other, batch->segments + other + 1,
				sizeof(BatchSegment) * (batch->nsegments - 1 - other));
		batch->segments[batch->nsegments - 1] = far;
	}
	else if (batch->suspects < PARK_LIMIT && lane->attempts < SUSPECT_LIMIT)
		lane_retry_later(lane); /* other lanes may have something that arrives */
	else
		table_trouble(st, code, message, NULL);
}

static void
lane_complete(Lane *lane)
{
	SyncTable  *st = lane->table;
	Batch	   *batch = lane->current;
	BatchSegment *seg = &batch->segments[batch->nsegments - 1];
	RowSet	   *rs = seg->kind == TARGET_DELETE ? batch->deletes : batch->upserts;
	TargetRequest *req = &lane->req;
	int			live = rowset_live(rs, seg->lo, seg->hi);
	bool		single = live == 1;

	lane->busy = false;
	if (req->outcome != TARGET_OK && !req->over)
	{
		/* a part of it may wait at some shard, whatever the answer: fence before anything newer */
		lane->epoch = 0;
		if (seg->kind == TARGET_DELETE)
			lanes_expect_late_deletes();
	}
	st->n_requests += Max(req->nrequests, 1);
	st->n_bytes += req->bytes_sent;
	st->request_time += req->elapsed;
	st->dirty = true;
	if (cs_log_min_duration >= 0 && req->elapsed >= cs_log_min_duration)
		ereport(LOG,
				(errmsg("crate_sync: %s of %d rows of %s took %.1f ms",
						seg->kind == TARGET_DELETE ? "delete" : "upsert", live,
						st->def->target.qualified, req->elapsed)));

	switch (req->outcome)
	{
		case TARGET_OK:
			if (req->nwritten >= live)
			{
				if (seg->kind == TARGET_DELETE)
					st->n_deleted += live;
				else
					st->n_upserted += live;
				st->parked_in_a_row = 0;
				table_goes_on(st);
				if (st->batch_rows < cs_batch_rows)
					st->batch_rows = Min(cs_batch_rows, st->batch_rows + 1 + st->batch_rows / 8);
				st->unrefreshed = true;
				lane->attempts = 0;
				lane->retry_at = 0;
				lane->delete_tries = 0;
				unpark_arrived(st, batch, seg);
				batch->nsegments--;
				batch->suspects = 0;
				st->n_arrived[seg->kind]++;
			}
			else if (seg->kind == TARGET_DELETE)
			{
				/* somebody else changes the same rows there */
				if (++lane->delete_tries > 5)
				{
					lane->delete_tries = 0;
					if (single)
						lane_park(lane, seg, "conflict", "the row changes in the target all the time");
					else
						lane_split(lane);
				}
				else
					lane_retry_later(lane);
			}
			else
			{
				TargetResult res;
				int64		epoch = 0;

				/* dropped rows, or is the fence no longer ours? */
				memset(&res, 0, sizeof(res));
				the_target->ops->read_fence(the_target, &st->def->target, lane->no,
											&epoch, &res);
				if (res.outcome != TARGET_OK)
				{
					lane->epoch = 0;
					lane_retry_later(lane);
				}
				else if (epoch != lane->epoch)
				{
					lane->epoch = 0;
					st->target_ready = false;	/* look at the claim again */
					lane_retry_later(lane);
				}
				else if (!single)
					lane_split(lane);
				else if (!seg->explain)
					seg->explain = true;
				else
					lane_suspect(lane, "dropped", "the target drops rows without a reason");
			}
			break;

		case TARGET_REFUSED_ROWS:
			if (!single)
				lane_split(lane);
			else if (strcmp(req->code, "dropped") == 0)
				lane_suspect(lane, req->code, req->message);
			else if (table_was_checked(lane))
			{
				lane->attempts = 0;
				lane_park(lane, seg, req->code, req->message);
			}
			break;

		case TARGET_FAILED:
			if (single)
				lane_suspect(lane, req->code, req->message);
			else
				lane_split(lane);
			break;

		case TARGET_TOO_BIG:
			if (single)
				lane_park(lane, seg, req->code, req->message);
			else
			{
				st->batch_rows = Max(1, live / 2);
				lane_split(lane);
			}
			break;

		case TARGET_REFUSED_TABLE:
			lane->epoch = 0;
			table_trouble(st, req->code, req->message, NULL);
			break;

		case TARGET_REFUSED_ALL:
		case TARGET_UNREACHABLE:
			lane_retry_later(lane);
			lane->retry_at = 0;	/* when the target is back */
			/* the target answers all but this table's requests: no one else's trouble */
			if (req->outcome == TARGET_UNREACHABLE &&
				(st->error_message != NULL || lane->attempts > LOST_LIMIT))
				table_trouble(st, req->code, req->message, NULL);
			else
				target_trouble(req->outcome, req->code, req->message);
			break;

		case TARGET_BUSY:
			lane_retry_later(lane);
			if (lane->attempts > 1 && table_was_checked(lane) && lane->attempts >= BUSY_LIMIT)
				table_trouble(st, req->code, req->message, NULL);
			break;

		case TARGET_UNKNOWN:
			lane->epoch = 0;	/* or it was raised by another writer */
			lane_retry_later(lane);
			if (st->error_message != NULL || lane->attempts >= LOST_LIMIT)
				table_trouble(st, req->code, req->message, NULL);
			else if (lane->attempts > 1)
				target_trouble(req->outcome, req->code, req->message);
			break;
	}
	target_request_reset(req);
}

/*
 * A table that has lost a part of itself keeps requests for a minute, and
 * with them connections that others need: find out earlier.
 */
void
lanes_watch(SyncTable *st)
{
	TimestampTz now = GetCurrentTimestamp();
	TargetResult res;
	int			i = 0;

	if (the_target->ops->reachable == NULL || now < st->watch_at)
		return;
	while (i < st->nlanes && !(st->lanes[i].busy &&
							   now > TimestampTzPlusMilliseconds(st->lanes[i].sent_at, SLOW_REQUEST)))
		i++;
	if (i == st->nlanes)
		return;
	memset(&res, 0, sizeof(res));
	the_target->ops->reachable(the_target, &st->def->target, &res);
	st->watch_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), SLOW_REQUEST);
	if (res.outcome == TARGET_REFUSED_TABLE)
		table_trouble(st, res.code, res.message, NULL);
}

/* takes in the requests that are done; true if there were any */
bool
lanes_reap(SyncTable *st)
{
	bool		any = false;

	for (int i = 0; i < st->nlanes; i++)
	{
		Lane	   *lane = &st->lanes[i];

		if (lane->busy && lane->req.done)
		{
			any = true;
			lane_complete(lane);
		}
		if (lane->current != NULL && !lane->busy && lane->current->nsegments == 0)
			lane_batch_done(lane);
	}
	return any;
}
