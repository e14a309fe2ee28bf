/*-------------------------------------------------------------------------
 *
 * walk.c
 *		From values that link a row to its parent up to the roots of documents.
 *
 * A trigger queues what links a row, as it was and as it is, and nothing of
 * what is above.  We look that up, in a snapshot later than the chunk's
 * commit: whoever moves a row above meanwhile has queued both of its links
 * himself.  What is found are root keys, which are read as any others are.
 *
 * A value may belong to any number of documents.  It is asked for a bounded
 * number of them; where there are more, the root's pages are gone through, so
 * many at a time, and their keys are read before the next ones are looked for.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/point.h"
#include "document/document.h"
#include "pipeline/table.h"
#include "utils/datum.h"

/* values that are asked for together */
#define WALK_VALUES		1000

/* where there are too many roots of so many values, the root is gone through */
#define WALK_FEW_VALUES	16

/* roots found together */
#define WALK_KEYS		20000

/* pages of the root gone through together */
#define WALK_BLOCKS		128

typedef struct Walk
{
	const DocNode *node;
	const KeyLayout *layout;
	KeyRun		run;
	const char *pos;			/* what of the chunk is left */
	const char *end;
	MemoryContext cxt;			/* of values */
	Datum	   *values[INDEX_MAX_KEYS];
	int			nvalues;		/* unpacked */
	int			lo;				/* from here on still to be asked for, */
	int			hi;				/* and up to here together */
	/* the root is gone through */
	bool		wide;
	Oid			leaf;
	Oid			filenode;
	BlockNumber block;
} Walk;

/* its share of worker_unread_bytes */
typedef struct WalkBytes
{
	MemoryContextCallback freed;
	Size		bytes;
} WalkBytes;

static void
bytes_freed(void *arg)
{
	worker_unread_bytes -= ((WalkBytes *) arg)->bytes;
}

static void
take_keys(SyncTable *st, Pass *pass, const DocLink *link, const int *place,
		  const char *p, const char *end, KeyRun *run)
{
	Datum		values[INDEX_MAX_KEYS];
	Datum		key[INDEX_MAX_KEYS];

	while (key_unpack(run, &p, end, values))
	{
		for (int k = 0; k < st->def->nkeys; k++)
			key[k] = values[place[k]];
		keyset_add(pass->keys, key);
	}
}

bool
walk_take(SyncTable *st, Pass *pass, const DocLink *link, const QueueChunk *chunk)
{
	List	   *key = mirror_key_names(st->def);
	const char *p;
	const char *end;
	char	   *copy = NULL;
	ListCell   *lc;

	if (!key_chunk_read(chunk->n, chunk->keys, chunk->len, &p, &end))
		return false;
	foreach(lc, link->nodes)
	{
		const DocNode *node = lfirst(lc);
		int			place[INDEX_MAX_KEYS];
		KeyRun		run;

		key_run_start(&run, &link->layout);
		if (document_is_identity(st->def->doc, node, key, place))
		{
			take_keys(st, pass, link, place, p, end, &run);
			if (run.broken)
				return false;
		}
		else
		{
			MemoryContext oldcxt = MemoryContextSwitchTo(pass->cxt);
			Walk	   *walk = palloc0(sizeof(Walk));

			if (copy == NULL)
			{
				WalkBytes  *mine = palloc(sizeof(WalkBytes));

				copy = palloc(end - p + 1);
				memcpy(copy, p, end - p);
				mine->bytes = end - p + sizeof(Walk);
				mine->freed.func = bytes_freed;
				mine->freed.arg = mine;
				MemoryContextRegisterResetCallback(pass->cxt, &mine->freed);
				worker_unread_bytes += mine->bytes;
			}
			walk->node = node;
			walk->layout = &link->layout;
			walk->run = run;
			walk->run.layout = &link->layout;
			walk->pos = copy;
			walk->end = copy + (end - p);
			walk->cxt = AllocSetContextCreate(pass->cxt, "crate_sync walk", ALLOCSET_SMALL_SIZES);
			pass->walks = lappend(pass->walks, walk);
			MemoryContextSwitchTo(oldcxt);
		}
	}
	return true;
}

/* the next values; false: there are none */
static bool
next_values(Walk *walk)
{
	MemoryContext oldcxt;
	Datum		values[INDEX_MAX_KEYS];

	MemoryContextReset(walk->cxt);
	oldcxt = MemoryContextSwitchTo(walk->cxt);
	for (int i = 0; i < walk->layout->ncols; i++)
		walk->values[i] = palloc(sizeof(Datum) * WALK_VALUES);
	walk->nvalues = walk->lo = 0;
	while (walk->nvalues < WALK_VALUES && key_unpack(&walk->run, &walk->pos, walk->end, values))
	{
		for (int i = 0; i < walk->layout->ncols; i++)
			walk->values[i][walk->nvalues] = values[i];
		walk->nvalues++;
	}
	walk->hi = walk->nvalues;
	MemoryContextSwitchTo(oldcxt);
	return walk->nvalues > 0;
}

static Oid
leaf_behind(SyncTable *st, Oid leaf)
{
	ListCell   *lc;

	foreach(lc, st->feed_leaves)
	{
		if (lfirst_oid(lc) > leaf)
			return lfirst_oid(lc);
	}
	return InvalidOid;
}

/* what was asked for is found; on to the values behind */
static void
walked(Walk *walk)
{
	walk->wide = false;
	walk->lo = walk->hi;
	walk->hi = walk->nvalues;
}

/* one query; false: not now */
static bool
ask_roots(SyncTable *st, Walk *walk, KeySet *ks)
{
	RootsAsked	asked;

	memset(&asked, 0, sizeof(asked));
	asked.node = walk->node;
	for (int i = 0; i < walk->layout->ncols; i++)
		asked.values[i] = walk->values[i] + walk->lo;
	asked.nvalues = walk->hi - walk->lo;
	if (walk->wide)
	{
		asked.leaf = walk->leaf;
		asked.filenode = walk->filenode;
		asked.from = walk->block;
		asked.blocks = WALK_BLOCKS;
		cs_point("in wide walk");
		if (!reader_walk(st, &asked, ks, INT_MAX))
			return false;
		walk->filenode = asked.filenode;
		walk->block = asked.from;
		if (walk->block >= asked.nblocks)
		{
			walk->leaf = leaf_behind(st, walk->leaf);
			walk->filenode = InvalidOid;
			walk->block = 0;
			if (!OidIsValid(walk->leaf))
				walked(walk);
		}
		return true;
	}
	if (!reader_walk(st, &asked, ks, WALK_KEYS))
		return false;
	/* what was found of too many is found once more */
	if (!asked.more)
		walked(walk);
	else if (asked.nvalues > WALK_FEW_VALUES)
		walk->hi = walk->lo + asked.nvalues / 2;
	else
	{
		walk->wide = true;
		walk->leaf = leaf_behind(st, InvalidOid);
		walk->filenode = InvalidOid;
		walk->block = 0;
		if (!OidIsValid(walk->leaf))
			walked(walk);
	}
	return true;
}

void
walk_step(SyncTable *st, Pass *pass)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), READ_TURN_MS);

	if (pass->keys == NULL)
		pass->keys = keyset_create(pass->cxt, st);
	while (pass->walks != NIL && keyset_nopen(pass->keys) < WALK_KEYS &&
		   worker_may_feed(st) && GetCurrentTimestamp() < until)
	{
		Walk	   *walk = linitial(pass->walks);

		if (walk->lo == walk->hi && !next_values(walk))
		{
			MemoryContextDelete(walk->cxt);
			pass->walks = list_delete_first(pass->walks);
			continue;
		}
		cs_point("before walk");
		if (!ask_roots(st, walk, pass->keys))
			return;				/* later; or, in trouble, the pass is gone */
	}
}
