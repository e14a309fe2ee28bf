/*-------------------------------------------------------------------------
 *
 * feed.c
 *		From the queue's chunks to passes: which table, which keys.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xact.h"
#include "base/point.h"
#include "base/settings.h"
#include "catalog/pg_class.h"
#include "document/document.h"
#include "pipeline/code.h"
#include "pipeline/table.h"
#include "utils/snapmgr.h"

/*
 * One visit to the queue takes about that many keys into memory, or an eighth
 * of work_mem; where many tables' keys wait to be read, only the lesser number.
 * Of what came last, behind what the visit has not got to, it takes the lesser
 * number, too.
 */
#define FEED_KEYS 40000
#define FEED_KEYS_LEAST 1000

/* and puts that many chunks out of the way, held or dropped */
#define FEED_ASIDE_CHUNKS 2000
#define FEED_ASIDE_BYTES (4 * 1024 * 1024)

/* ms without room after which a table's chunks are put out of the others' way */
#define FEED_SLOW 2000

typedef struct FeedArg
{
	int64		keys;
	int64		max_keys;
	Size		max_bytes;		/* of worker_unread_bytes */
	bool		newest;			/* what came last: not for whoever got some already */
	bool		unknown;		/* met a table that may be a new one */
	int			taken;
	int			aside;			/* chunks held or dropped, and their size */
	Size		aside_bytes;
} FeedArg;

/* chunks whose table cannot take them now; moved at the next acknowledgement */
static List *held = NIL;
static MemoryContext held_cxt = NULL;

static MemoryContext unpack_cxt = NULL; /* emptied after each chunk */

/*
 * A chunk of links may be of several documents, each with a pass of its own: it
 * is deleted when the last of them is through with it.
 */
typedef struct SharedChunk
{
	int			refs;			/* passes */
	int			acking;			/* those in the acknowledgement under way */
	bool		hold;			/* some document cannot take it now: to be held */
	bool		release;		/* some has not done with it: to be read again */
} SharedChunk;

/* its keys stay where they are stored */
static QueueChunk *
copy_chunk(const QueueChunk *chunk)
{
	QueueChunk *copy = palloc(sizeof(QueueChunk));

	*copy = *chunk;
	copy->keys = NULL;
	copy->shared = NULL;
	return copy;
}

void
feed_hold(const QueueChunk *chunk)
{
	MemoryContext oldcxt;

	if (held_cxt == NULL)
		held_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync held chunks",
										 ALLOCSET_DEFAULT_SIZES);
	oldcxt = MemoryContextSwitchTo(held_cxt);
	held = lappend(held, copy_chunk(chunk));
	MemoryContextSwitchTo(oldcxt);
}

List *
feed_held(void)
{
	return held;
}

void
feed_held_reset(void)
{
	held = NIL;
	if (held_cxt != NULL)
		MemoryContextReset(held_cxt);
}

/* in the transaction of an acknowledgement: before it, and for each chunk of a pass that is done */
void
feed_ack_begin(const QueueChunk *chunk)
{
	if (chunk->shared != NULL)
		chunk->shared->acking = 0;
}

void
feed_ack(const QueueChunk *chunk)
{
	SharedChunk *shared = chunk->shared;

	if (shared == NULL)
		queue_delete(chunk);
	else if (++shared->acking < shared->refs)
		return;					/* others need it still */
	else if (shared->hold)
		queue_hold(chunk);
	else if (!shared->release)
		queue_delete(chunk);
}

/* once that is committed */
void
feed_acked(const QueueChunk *chunk)
{
	SharedChunk *shared = chunk->shared;

	if (shared == NULL || --shared->refs > 0)
		return;
	if (shared->release && !shared->hold)
		queue_release(chunk);
	pfree(shared);
}

/* a pass is given up: its chunk is held, or read again */
void
feed_give_up(const QueueChunk *chunk, bool hold)
{
	SharedChunk *shared = chunk->shared;

	if (shared != NULL)
	{
		if (hold)
			shared->hold = true;
		else
			shared->release = true;
		if (--shared->refs > 0)
			return;
		hold = shared->hold;
		pfree(shared);
	}
	if (hold)
		feed_hold(chunk);
	else
		queue_release(chunk);
}

static bool
table_takes_chunks(const SyncTable *st)
{
	return st->def != NULL && !st->spec.paused && !st->in_error && st->target_ready;
}

static bool
has_unread_keys(SyncTable *st)
{
	dlist_iter	it;

	dlist_foreach(it, &st->passes)
	{
		const Pass *pass = dlist_container(Pass, node, it.cur);

		if ((pass->keys != NULL || pass->walks != NIL) && !pass->fed)
			return true;
	}
	return false;
}

static bool
table_has_room(SyncTable *st)
{
	/* keys of an earlier visit come first: memory is for one visit's */
	return table_takes_chunks(st) && worker_may_feed(st) && !has_unread_keys(st);
}

/* what this visit does with a table's chunks */
static FeedWay
feed_way(SyncTable *st, bool alone)
{
	bool		room = table_has_room(st);

	if (room || !st->awaits_room)
		st->full_since = 0;
	if (room)
		return FEED_TAKE;
	if (!table_takes_chunks(st) || lanes_retrying(st) || st->read_retry_at != 0 ||
		code_retry_at(st) != 0)
		return FEED_HOLD;		/* it may take long */
	if (!alone && st->full_since != 0 &&
		GetCurrentTimestamp() > TimestampTzPlusMilliseconds(st->full_since, FEED_SLOW))
		return FEED_HOLD;
	return FEED_LATER;
}

static bool
hold_filter(Oid relid, void *arg)
{
	SyncTable  *st = state_find(relid);
	bool		any = false;
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *doc = dlist_container(SyncTable, node, it.cur);

		if (!list_member_oid(doc->spec.relations, relid))
			continue;
		any = true;
		if (doc->way == FEED_TAKE)
			return true;
	}
	return st == NULL ? !any : st->gone || st->way == FEED_TAKE;
}

/* the pass that is being filled for a table in this visit, or NULL */
static Pass *
filling_pass(SyncTable *st)
{
	Pass	   *pass = NULL;

	if (!dlist_is_empty(&st->passes))
		pass = dlist_container(Pass, node, dlist_tail_node(&st->passes));
	return pass != NULL && pass->filling ? pass : NULL;
}

/* has it held, or dropped, if it was not enough yet for this visit */
static QueueAnswer
put_aside(FeedArg *feed, const QueueChunk *chunk, void (*how) (const QueueChunk *))
{
	if (feed->aside >= FEED_ASIDE_CHUNKS || feed->aside_bytes >= FEED_ASIDE_BYTES)
		return QUEUE_LATER;
	how(chunk);
	feed->aside++;
	feed->aside_bytes += chunk->len;
	feed->taken++;
	return QUEUE_TAKEN;
}

/* the document's pass of this visit, which the chunk is one of */
static Pass *
pass_with_chunk(SyncTable *st, QueueChunk *chunk, SharedChunk *shared)
{
	Pass	   *pass = filling_pass(st);
	MemoryContext oldcxt;
	QueueChunk *copy;

	if (pass == NULL)
	{
		pass = pass_create(st, PASS_QUEUE);
		pass->filling = true;
		pass->keys = keyset_create(pass->cxt, st);
	}
	oldcxt = MemoryContextSwitchTo(pass->cxt);
	copy = copy_chunk(chunk);
	copy->shared = shared;
	pass->chunks = lappend(pass->chunks, copy);
	MemoryContextSwitchTo(oldcxt);
	if (shared != NULL)
		shared->refs++;
	return pass;
}

/* what a chunk of links says to one document */
static void
take_links(SyncTable *st, Pass *pass, const QueueChunk *chunk)
{
	DocLink    *link = document_has_link(st->def->doc, chunk->relid, chunk->layout);
	MemoryContext oldcxt;

	if (chunk->n == KEY_UNKNOWN || link == NULL)
		load_look_at_all(st, "a changed link was not known");
	else if (chunk->n == KEY_TRUNCATE && linitial(link->nodes) == st->def->doc->root)
	{
		load_want_sweep(st);
		if (list_length(link->nodes) > 1)
			load_look_at_all(st, "rows of one of its tables were truncated");
	}
	else if (chunk->n == KEY_TRUNCATE)
		load_look_at_all(st, "rows of one of its tables were truncated");
	else
	{
		bool		ok;

		if (unpack_cxt == NULL)
			unpack_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync unpacked keys",
											   ALLOCSET_DEFAULT_SIZES);
		oldcxt = MemoryContextSwitchTo(unpack_cxt);
		ok = walk_take(st, pass, link, chunk);
		MemoryContextSwitchTo(oldcxt);
		MemoryContextReset(unpack_cxt);
		if (!ok)
		{
			ereport(LOG,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("crate_sync: queued links of %s.%s cannot be read: it is resynced",
							st->def->schemaname, st->def->relname)));
			load_look_at_all(st, "queued links could not be read");
		}
	}
}

/* is the chunk, of links, this document's? */
static bool
wants_links(const SyncTable *st, const QueueChunk *chunk)
{
	if (!list_member_oid(st->spec.relations, chunk->relid) || st->gone)
		return false;
	/* without a definition nobody knows; nor by a layout that cannot be read */
	return st->def == NULL || chunk->n == KEY_UNKNOWN || document_has_link(st->def->doc, chunk->relid, chunk->layout) != NULL;
}

/*
 * A chunk of links.  Each document that wants it and can take it now does; if
 * some cannot, it is held for it when the others are through, and then the
 * others get it once more, which is for nothing and does no harm.
 */
static QueueAnswer
take_link_chunk(QueueChunk *chunk, FeedArg *feed)
{
	int			nwanting = 0;
	int			ntaking = 0;
	SharedChunk *shared = NULL;
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (!wants_links(st, chunk))
			continue;
		nwanting++;
		if (st->way == FEED_LATER)
		{
			st->awaits_room = true;
			if (st->full_since == 0)
				st->full_since = GetCurrentTimestamp();
			return QUEUE_LATER;
		}
		if (st->way == FEED_HOLD)
			continue;
		if (feed->newest && filling_pass(st) != NULL)
			return QUEUE_LATER;
		ntaking++;
	}
	if (nwanting == 0)
	{
		/* as of a table that is not known */
		if (!state_reload_saw(chunk->id.xid))
		{
			feed->unknown = true;
			return QUEUE_LATER;
		}
		return put_aside(feed, chunk, state_drop_chunk);
	}
	if (chunk->table == QUEUE_HOLD && ntaking < nwanting)
		return QUEUE_LATER;		/* the others had it already */
	if (ntaking == 0)
		return put_aside(feed, chunk, feed_hold);
	if (nwanting > 1)
	{
		shared = MemoryContextAllocZero(TopMemoryContext, sizeof(SharedChunk));
		shared->hold = ntaking < nwanting;
	}
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (wants_links(st, chunk) && st->way == FEED_TAKE)
			take_links(st, pass_with_chunk(st, chunk, shared), chunk);
	}
	feed->taken++;
	feed->keys += Max(chunk->n, 1);
	return QUEUE_TAKEN;
}

/*
 * A mark among keys.  A session that has had an older library loaded since
 * before there were documents knows no links, and says of them that it knows
 * no key.
 */
static void
mark_documents(const QueueChunk *chunk)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (st->def != NULL && list_member_oid(st->spec.relations, chunk->relid))
			load_look_at_all(st, "a changed link was not known");
	}
}

static QueueAnswer
take_chunk(QueueChunk *chunk, void *arg)
{
	FeedArg    *feed = arg;
	SyncTable  *st = state_find(chunk->relid);
	Pass	   *pass;
	MemoryContext oldcxt;

	if (feed->keys >= feed->max_keys || worker_unread_bytes >= feed->max_bytes)
		return QUEUE_STOP;
	if (queue_chunk_is_link(chunk))
		return take_link_chunk(chunk, feed);

	if (st == NULL)
	{
		/*
		 * A table added a moment ago, or one that was removed.  The catalog
		 * tells, if it was read when the chunk was committed; else it is read
		 * anew, which sees that, as the chunk is seen already.
		 */
		if (!state_reload_saw(chunk->id.xid))
		{
			feed->unknown = true;
			return QUEUE_LATER;
		}
		if (chunk->n == KEY_UNKNOWN || chunk->n == KEY_TRUNCATE)
			mark_documents(chunk);
		return put_aside(feed, chunk, state_drop_chunk);
	}
	if (st->gone)
	{
		/* rows of a table that is no more: nobody reads them */
		return put_aside(feed, chunk, state_drop_chunk);
	}
	pass = filling_pass(st);
	if (pass != NULL && feed->newest)
		return QUEUE_LATER;
	switch (st->way)
	{
		case FEED_HOLD:
			Assert(chunk->table != QUEUE_HOLD);
			return put_aside(feed, chunk, feed_hold);
		case FEED_LATER:
			st->awaits_room = true;
			if (st->full_since == 0)
				st->full_since = GetCurrentTimestamp();
			return QUEUE_LATER;
		case FEED_TAKE:
			break;
	}

	if (load_is_detached(st) && !st->attached_again)
	{
		/* from a writer that had not noticed yet: the load will see its row */
		return put_aside(feed, chunk, state_drop_chunk);
	}

	if (pass == NULL)
	{
		pass = pass_create(st, PASS_QUEUE);
		pass->filling = true;
		pass->keys = keyset_create(pass->cxt, st);
	}
	oldcxt = MemoryContextSwitchTo(pass->cxt);
	pass->chunks = lappend(pass->chunks, copy_chunk(chunk));
	MemoryContextSwitchTo(oldcxt);
	feed->taken++;
	feed->keys += Max(chunk->n, 1);

	if (chunk->n == KEY_TRUNCATE)
	{
		load_want_sweep(st);
		if (chunk->layout != st->layout.id)
			mark_documents(chunk);
	}
	else if (chunk->n == KEY_UNKNOWN || chunk->layout != st->layout.id)
	{
		load_look_at_all(st, "a changed key was not known");	/* keys of a former layout name nothing */
		if (chunk->n == KEY_UNKNOWN)
			mark_documents(chunk);
	}
	else
	{
		const char *p;
		const char *end;
		KeyRun		run;
		Datum		values[INDEX_MAX_KEYS];

		/* a key that comes again and again takes no memory in the set, nor here */
		if (unpack_cxt == NULL)
			unpack_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync unpacked keys",
											   ALLOCSET_DEFAULT_SIZES);
		oldcxt = MemoryContextSwitchTo(unpack_cxt);
		key_run_start(&run, &st->layout);
		if (!key_chunk_read(chunk->n, chunk->keys, chunk->len, &p, &end))
			run.broken = true;
		while (!run.broken && key_unpack(&run, &p, end, values))
			keyset_add(pass->keys, values);
		MemoryContextSwitchTo(oldcxt);
		MemoryContextReset(unpack_cxt);
		if (run.broken)
		{
			ereport(LOG,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("crate_sync: queued keys of %s.%s cannot be read: it is resynced",
							st->def->schemaname, st->def->relname)));
			load_look_at_all(st, "queued keys could not be read");
		}
	}
	return QUEUE_TAKEN;
}

/*
 * One visit to the queue.  Returns true if there may be more to take; *next is
 * made earlier if one is due before.  The rows of what was taken are then read
 * by feed_rows.
 */
bool
feed_queue(TimestampTz *next)
{
	FeedArg		feed;
	Size		memory = (Size) cs_work_mem * 1024;
	dlist_iter	it;
	TimestampTz due;
	bool		alone;

	memset(&feed, 0, sizeof(feed));
	feed.max_keys = worker_unread_bytes < memory / 4 ? FEED_KEYS : FEED_KEYS_LEAST;
	feed.max_bytes = worker_unread_bytes + memory / 8;
	StartTransactionCommand();
	if (state_catalog_stale())
	{
		/* tables first: their chunks are only understood with them */
		CommitTransactionCommand();
		state_reload();
		cs_point("after reload");
		StartTransactionCommand();
	}
	alone = state_count() == 1;
	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		st->way = feed_way(st, alone);
		st->awaits_room = st->way != FEED_TAKE && queue_may_hold(st->relid);
		for (int i = 0; st->way != FEED_TAKE && i < list_length(st->spec.relations); i++)
			st->awaits_room |= queue_may_hold(list_nth_oid(st->spec.relations, i));
	}
	cs_point("before queue");
	PushActiveSnapshot(GetTransactionSnapshot());
	due = queue_read(GetActiveSnapshot(), hold_filter, take_chunk, &feed);
	feed.newest = true;
	feed.max_keys = feed.keys + FEED_KEYS_LEAST;
	feed.max_bytes = worker_unread_bytes + memory / 32;
	queue_read_newest(GetActiveSnapshot(), take_chunk, &feed);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (feed.unknown)
		state_changed();		/* before the next visit, which is soon */

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);
		dlist_iter	p;

		dlist_foreach(p, &st->passes)
			dlist_container(Pass, node, p.cur)->filling = false;
	}
	*next = Min(*next, due);
	return feed.taken > 0 || feed.unknown;
}

/* has a table room again for what it had to leave in the queue? */
bool
feed_awaited(void)
{
	dlist_iter	it;

	dlist_foreach(it, &sync_tables)
	{
		SyncTable  *st = dlist_container(SyncTable, node, it.cur);

		if (st->awaits_room && table_has_room(st))
			return true;
	}
	return false;
}

/* reads rows for keys that wait for it; true if there were any */
bool
feed_rows(SyncTable *st)
{
	dlist_mutable_iter it;
	bool		any = false;

	dlist_foreach_modify(it, &st->passes)
	{
		Pass	   *pass = dlist_container(Pass, node, it.cur);

		if ((pass->keys == NULL && pass->walks == NIL) || pass->fed)
			continue;
		if (!worker_may_feed(st))
			break;
		any = true;
		if (pass->walks != NIL && !pass->reading)
			walk_step(st, pass);
		if (st->in_error)
			break;
		/* what the walks have found so far waits for more, unless that is long in coming */
		if (pass->walks == NIL || keyset_nopen(pass->keys) > 0)
		{
			pass->reading = true;
			cs_point("before read");
			reader_feed_keys(st, pass);
		}
		if (st->in_error)
			break;				/* its passes are gone */
		if (!pass->fed)
			break;				/* the others' turn */
	}
	return any;
}
