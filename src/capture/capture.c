/*-------------------------------------------------------------------------
 *
 * capture.c
 *		Row and TRUNCATE triggers: keys of changed rows, packed in backend
 *		memory, written to the queue just before the transaction commits.
 *		(early.c hands rows over before their triggers fire, where it can.)
 *
 * Nothing in here may make a writer fail or wait for want of anything of
 * ours: what cannot be packed becomes a mark that has the worker look at the
 * whole table again.
 *
 * Keys are kept per subtransaction level.  A level that commits hands its
 * keys to its parent, one that aborts drops them, and an early flush writes
 * only the current level's, as rows of that very subtransaction; so a
 * rollback to a savepoint takes back exactly the keys of what it undoes.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "base/settings.h"
#include "capture/capture.h"
#include "capture/detached.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "queue/key.h"
#include "queue/queue.h"
#include "shared/live.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(crate_sync_capture);

/* a level's keys beyond this many bytes are flushed before its end */
#define CAPTURE_FLUSH_BYTES (256 * 1024)

/* what a backend remembers of a trigger of ours */
struct CaptureRel
{
	Oid			relid;			/* hash key */
	struct CaptureRel *next;	/* another trigger of the relation */
	bool		valid;
	Oid			trigger;		/* the one it was learnt from */
	Oid			root;			/* topmost relation with the trigger */
	bool		detached;		/* nothing is to be queued */
	KeyLayout	layout;			/* ncols 0: a key column is missing */
	/* of a link: the columns whose change matters */
	bool		places;			/* and so does a row's move to another page */
	int			nused;			/* -1: any may */
	AttrNumber *used;			/* malloc'd */
};

Oid			capture_fnoid = InvalidOid;

/* keys of one mirrored table at one level */
typedef struct Pending
{
	struct Pending *next;
	Oid			root;
	int			n;				/* keys in buf, or one of the KEY_ marks */
	StringInfoData buf;
	KeyRun		run;
	int			last_at;		/* where the last key begins in buf */
	KeyLayout	layout;			/* own copy: the cache may be emptied */
} Pending;

typedef struct Level
{
	struct Level *parent;
	int			nest;			/* GetCurrentTransactionNestLevel() */
	Size		bytes;			/* in all of its runs */
	bool		written;		/* by a subtransaction that is about to commit */
	Pending    *open;			/* most recently used first */
	Pending    *full;			/* chunks that take no more keys, latest first */
} Level;

static HTAB *capture_rels = NULL;
static uint32 n_changes = 0;	/* that relation_changed() was told of */
static MemoryContext capture_cxt = NULL;	/* emptied at the transaction's end */
static MemoryContext work_cxt = NULL;	/* emptied after each use */
static Level *current_level = NULL;
static bool write_through = false;	/* the pre-commit flush is over */

/* the only callback of a writer's: there are few places for them */
static void
relation_changed(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS seq;
	CaptureRel *entry;

	n_changes++;
	queue_forget_relid(relid);
	if (capture_rels == NULL)
		return;
	if (OidIsValid(relid))
	{
		for (entry = hash_search(capture_rels, &relid, HASH_FIND, NULL); entry != NULL; entry = entry->next)
			entry->valid = false;
		return;
	}
	hash_seq_init(&seq, capture_rels);
	while ((entry = hash_seq_search(&seq)) != NULL)
	{
		for (; entry != NULL; entry = entry->next)
			entry->valid = false;
	}
}

/* the relation where a trigger that was cloned to partitions comes from */
static Oid
trigger_root(Oid tgoid, Oid relid)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);

	while (OidIsValid(tgoid))
	{
		ScanKeyData key;
		SysScanDesc scan;
		HeapTuple	tup;

		ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(tgoid));
		scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
		tup = systable_getnext(scan);
		tgoid = InvalidOid;
		if (HeapTupleIsValid(tup))
		{
			relid = ((Form_pg_trigger) GETSTRUCT(tup))->tgrelid;
			tgoid = ((Form_pg_trigger) GETSTRUCT(tup))->tgparentid;
		}
		systable_endscan(scan);
	}
	table_close(rel, AccessShareLock);
	return relid;
}

/* an empty argument in front: what follows are the columns of a link, and not of a key; two: of a root's */
static bool
is_link(const Trigger *trigger)
{
	return trigger->tgnargs > 0 && trigger->tgargs[0][0] == '\0';
}

static bool
same_args(const Trigger *a, const Trigger *b)
{
	if (a->tgfoid != b->tgfoid || a->tgnargs != b->tgnargs)
		return false;
	for (int i = 0; i < a->tgnargs; i++)
	{
		if (strcmp(a->tgargs[i], b->tgargs[i]) != 0)
			return false;
	}
	return true;
}

/*
 * TRUNCATE triggers are not cloned: each partition has its own.  The root is
 * found through the row trigger beside it.
 */
static Oid
truncate_root(Relation rel, const Trigger *trigger)
{
	TriggerDesc *desc = rel->trigdesc;

	for (int i = 0; desc != NULL && i < desc->numtriggers; i++)
	{
		const Trigger *other = &desc->triggers[i];

		if (is_link(trigger) ? TRIGGER_FOR_ROW(other->tgtype) && same_args(trigger, other) :
			strcmp(other->tgname, CS_TRIGGER) == 0)
			return trigger_root(other->tgoid, RelationGetRelid(rel));
	}
	return RelationGetRelid(rel);
}

/* an entry for this trigger: its own, or one that is free; later ones may be on the way to it */
static CaptureRel *
entry_of(CaptureRel *first, Oid trigger)
{
	CaptureRel *unused = NULL;
	CaptureRel *last = first;

	for (CaptureRel *e = first; e != NULL; e = e->next)
	{
		if (e->trigger == trigger)
			return e;
		if (!e->valid && unused == NULL)
			unused = e;
		last = e;
	}
	if (unused == NULL)
	{
		unused = MemoryContextAllocZero(TopMemoryContext, sizeof(CaptureRel));
		unused->relid = first->relid;
		last->next = unused;
	}
	return unused;
}

/* a virtual column has no value to be compared */
static bool
learn_used(CaptureRel *entry, TupleDesc desc, int n, char **names)
{
	entry->used = realloc(entry->used, sizeof(AttrNumber) * Max(n, 1));
	if (entry->used == NULL)
		return false;
	for (int i = 0; i < n; i++)
	{
		int			a = 0;

		while (a < desc->natts && (TupleDescAttr(desc, a)->attisdropped ||
								   strcmp(NameStr(TupleDescAttr(desc, a)->attname), names[i]) != 0))
			a++;
		if (a == desc->natts || TupleDescAttr(desc, a)->attgenerated == 'v')
			return false;
		entry->used[i] = a + 1;
	}
	entry->nused = n;
	return true;
}

/* columns of the key or link, and of what is compared, from the trigger's arguments */
static void
learn_columns(CaptureRel *entry, Relation rel, const Trigger *trigger)
{
	bool		link = is_link(trigger);
	int			first = link ? 1 : 0;
	int			n;

	entry->places = link && trigger->tgnargs > 1 && trigger->tgargs[1][0] == '\0';
	if (entry->places)
		first++;
	n = first;
	while (n < trigger->tgnargs && trigger->tgargs[n][0] != '\0')
		n++;
	if (!key_layout(RelationGetDescr(rel), n - first, trigger->tgargs + first, &entry->layout))
		entry->layout.ncols = 0;
	entry->layout.link = link;
	entry->nused = -1;
	if (link && n < trigger->tgnargs &&
		!learn_used(entry, RelationGetDescr(rel), trigger->tgnargs - n - 1, trigger->tgargs + n + 1))
		entry->nused = -1;
}

/*
 * Entries are never taken away, only invalidated: the caller's may be the one.
 * A trigger that somebody has made of our function beside ours may name other
 * columns and belong to the partition alone: what is known is one trigger's.
 */
static CaptureRel *
capture_rel(Relation rel, Trigger *trigger, CaptureRel *entry)
{
	Oid			relid = RelationGetRelid(rel);
	bool		found;

	if (likely(entry != NULL && entry->valid && entry->relid == relid &&
			   entry->trigger == trigger->tgoid))
		return entry;

	if (capture_rels == NULL)
	{
		HASHCTL		ctl;

		memset(&ctl, 0, sizeof(ctl));
		ctl.keysize = sizeof(Oid);
		ctl.entrysize = sizeof(CaptureRel);
		ctl.hcxt = TopMemoryContext;
		capture_rels = hash_create("crate_sync captured relations", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}

	entry = hash_search(capture_rels, &relid, HASH_ENTER, &found);
	if (!found)
		memset((char *) entry + sizeof(Oid), 0, sizeof(CaptureRel) - sizeof(Oid));
	entry = entry_of(entry, trigger->tgoid);
	if (!entry->valid || entry->trigger != trigger->tgoid)
	{
		uint32		changes = n_changes;
		Oid			root = TRIGGER_FOR_ROW(trigger->tgtype) ?
			trigger_root(trigger->tgoid, relid) : truncate_root(rel, trigger);

		entry->valid = false;
		entry->trigger = trigger->tgoid;
		entry->root = root;
		learn_columns(entry, rel, trigger);
		/* documents go on queueing: see overflow.c */
		entry->detached = !entry->layout.link && detached_is(root);
		/* what has changed while we looked is looked at again */
		entry->valid = changes == n_changes;
	}
	return entry;
}

static Level *
capture_level(void)
{
	int			nest = GetCurrentTransactionNestLevel();
	Level	   *level = current_level;

	if (likely(level != NULL && level->nest == nest))
		return level;

	if (capture_cxt == NULL)
		capture_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync capture",
											ALLOCSET_DEFAULT_SIZES);
	level = MemoryContextAllocZero(capture_cxt, sizeof(Level));
	level->nest = nest;
	level->parent = current_level;
	current_level = level;
	return level;
}

static void
free_pending(Pending *p)
{
	pfree(p->buf.data);
	pfree(p);
}

static void
free_level_keys(Level *level)
{
	Pending    *p;

	while ((p = level->open) != NULL)
	{
		level->open = p->next;
		free_pending(p);
	}
	while ((p = level->full) != NULL)
	{
		level->full = p->next;
		free_pending(p);
	}
	level->bytes = 0;
}

/*
 * What is allocated between the two goes to memory of our own: that of a
 * subtransaction is kept until the transaction's end, unless it is empty.
 */
static MemoryContext
work_begin(void)
{
	if (work_cxt == NULL)
		work_cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync capture work",
										 ALLOCSET_DEFAULT_SIZES);
	return MemoryContextSwitchTo(work_cxt);
}

static void
work_end(MemoryContext oldcxt)
{
	MemoryContextSwitchTo(oldcxt);
	MemoryContextReset(work_cxt);
}

/* writes a level's keys to the queue, as part of the current (sub)transaction */
static void
write_level(Level *level)
{
	Relation	queue;
	Pending    *oldest = NULL;
	Pending    *p;
	MemoryContext oldcxt;

	if (level->open == NULL && level->full == NULL)
		return;

	/* as they came: keys that ascend are read the faster for it */
	while ((p = level->full) != NULL)
	{
		level->full = p->next;
		p->next = oldest;
		oldest = p;
	}
	level->full = oldest;

	oldcxt = work_begin();
	live_attach();				/* now, that waking at commit need not */
	queue = queue_open_for_write();
	if (queue != NULL)
	{
		for (int i = 0; i < 2; i++)
		{
			for (p = i ? level->open : level->full; p != NULL; p = p->next)
			{
				if (p->n == 0)
					continue;	/* its keys were too long */
				queue_insert(queue, p->root, p->layout.link, p->layout.id, p->n, p->buf.data, p->buf.len);
			}
		}
		table_close(queue, NoLock);
	}
	/* without a queue the extension has just been dropped: nothing to keep */
	work_end(oldcxt);
}

static void
flush_level(Level *level)
{
	write_level(level);
	free_level_keys(level);
}

static Pending *
new_pending(Level *level, Oid root, const KeyLayout *layout)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(capture_cxt);
	Pending    *p = palloc(sizeof(Pending));

	p->root = root;
	p->n = 0;
	p->layout = *layout;
	initStringInfo(&p->buf);
	key_run_start(&p->run, &p->layout);
	p->next = level->open;
	level->open = p;
	MemoryContextSwitchTo(oldcxt);
	return p;
}

/* the open run of a table at this level, moved to the front */
static inline Pending *
open_pending(Level *level, Oid root, const KeyLayout *layout)
{
	Pending   **link;

	for (link = &level->open; *link != NULL; link = &(*link)->next)
	{
		Pending    *p = *link;

		if (p->root != root || p->layout.id != layout->id || p->layout.link != layout->link || p->n < 0)
			continue;
		if (p != level->open)
		{
			*link = p->next;
			p->next = level->open;
			level->open = p;
		}
		return p;
	}
	return new_pending(level, root, layout);
}

/* a mark is written once per level; more would say nothing new */
static void
level_mark(Level *level, Oid root, const KeyLayout *layout, int mark)
{
	for (Pending *p = level->open; p != NULL; p = p->next)
	{
		if (p->root == root && p->n == mark && p->layout.id == layout->id &&
			p->layout.link == layout->link)
			return;
	}
	new_pending(level, root, layout)->n = mark;
}

static void
capture_mark(Oid root, const KeyLayout *layout, int mark)
{
	level_mark(capture_level(), root, layout, mark);
}

/* a key that is longer than a chunk: one of its own, else a mark */
static void
append_long_key(Level *level, Oid root, const KeyLayout *layout, const Datum *values)
{
	StringInfoData raw;
	const char *keys;
	int			len = 0;
	int			n = KEY_UNKNOWN;

	initStringInfo(&raw);
	if (key_pack_alone(layout, &raw, values))
		n = key_chunk(raw.data, raw.len, &keys, &len);
	if (n == KEY_UNKNOWN)
		level_mark(level, root, layout, n);
	else
	{
		Pending    *p = new_pending(level, root, layout);

		p->n = n;
		appendBinaryStringInfo(&p->buf, keys, len);
		level->open = p->next;
		p->next = level->full;
		level->full = p;
		level->bytes += len + sizeof(Pending);
	}
	if (n == KEY_LONG)
		pfree(unconstify(char *, keys));
	pfree(raw.data);
}

/*
 * Is what was packed behind there the same once more?  Rows of one parent come
 * one after the other, and a link's value need not be told twice.
 */
static bool
repeats_last(const Pending *p, int before)
{
	int			len = p->buf.len - before;
	bool		numbers = true;

	if (p->n == 0)
		return false;
	for (int i = 0; i < p->layout.ncols; i++)
		numbers &= p->layout.cols[i].byval;
	if (!numbers)
		return p->layout.ncols == 1 && len == before - p->last_at &&
			memcmp(p->buf.data + before, p->buf.data + p->last_at, len) == 0;
	/* no difference to the one before */
	for (int i = before; i < p->buf.len; i++)
	{
		if (p->buf.data[i] != 0)
			return false;
	}
	return true;
}

/* appends a key to a run, or to a new one where it is full; returns that run */
static Pending *
append_key(Level *level, Pending *p, const Datum *values)
{
	int			before = p->buf.len;

	if (!key_pack(&p->run, &p->buf, values))
	{
		Pending   **link = &level->open;
		Pending    *fresh = p;

		if (p->n > 0)
		{
			fresh = new_pending(level, p->root, &p->layout);
			before = 0;
		}
		if (fresh == p || !key_pack(&fresh->run, &fresh->buf, values))
		{
			if (fresh != p)
			{
				level->open = fresh->next;
				free_pending(fresh);
			}
			append_long_key(level, p->root, &p->layout, values);
			return p;
		}
		while (*link != p)
			link = &(*link)->next;
		*link = p->next;
		p->next = level->full;
		level->full = p;
		level->bytes += sizeof(Pending);
		p = fresh;
	}
	if (p->layout.link && repeats_last(p, before))
	{
		p->buf.len = before;
		return p;
	}
	p->last_at = before;
	p->n++;
	level->bytes += p->buf.len - before;
	return p;
}

static void
capture_values(CaptureRel *entry, const Datum *values)
{
	Level	   *level = capture_level();

	append_key(level, open_pending(level, entry->root, &entry->layout), values);
	if (unlikely(level->bytes > CAPTURE_FLUSH_BYTES))
		flush_level(level);
}

/* the key columns of a tuple; false if one is NULL, which no key can be */
static inline bool
slot_key(TupleTableSlot *slot, const KeyLayout *layout, Datum *values)
{
	for (int i = 0; i < layout->ncols; i++)
	{
		bool		isnull;

		values[i] = slot_getattr(slot, layout->cols[i].attnum, &isnull);
		if (isnull)
			return false;
	}
	return true;
}

static bool
same_key(const KeyLayout *layout, const Datum *a, const Datum *b)
{
	for (int i = 0; i < layout->ncols; i++)
	{
		const KeyColumn *col = &layout->cols[i];

		if (col->byval ? a[i] != b[i] : !datumIsEqual(a[i], b[i], false, col->len))
			return false;
	}
	return true;
}

/*
 * Has a column changed that some document makes use of?  A load reads roots
 * page by page: one that moves may have been missed by it.
 */
static bool
used_differs(const CaptureRel *entry, TupleTableSlot *row, TupleTableSlot *updated)
{
	TupleDesc	desc = row->tts_tupleDescriptor;

	if (entry->places &&
		ItemPointerGetBlockNumberNoCheck(&row->tts_tid) != ItemPointerGetBlockNumberNoCheck(&updated->tts_tid))
		return true;
	for (int i = 0; i < entry->nused; i++)
	{
		AttrNumber	attnum = entry->used[i];
		bool		null_a;
		bool		null_b;
		Datum		a = slot_getattr(row, attnum, &null_a);
		Datum		b = slot_getattr(updated, attnum, &null_b);
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

		if (null_a != null_b || (!null_a && !datumIsEqual(a, b, att->attbyval, att->attlen)))
			return true;
	}
	return entry->nused < 0;
}

/* the values that link a row to others, as it was and as it is; NULL links to none */
static void
capture_link(CaptureRel *entry, TupleTableSlot *row, TupleTableSlot *updated)
{
	Datum		values[INDEX_MAX_KEYS];
	Datum		newvalues[INDEX_MAX_KEYS];
	bool		old;

	if (unlikely(entry->layout.ncols == 0))
	{
		capture_mark(entry->root, &entry->layout, KEY_UNKNOWN);
		return;
	}
	if (updated != NULL && !used_differs(entry, row, updated))
		return;
	old = slot_key(row, &entry->layout, values) && !(cs_debug_new_links_only && updated != NULL);
	if (old)
		capture_values(entry, values);
	if (updated != NULL && slot_key(updated, &entry->layout, newvalues) &&
		!(old && same_key(&entry->layout, values, newvalues)))
		capture_values(entry, newvalues);
}

CaptureRel *
capture_row(CaptureRel *entry, Relation rel, Trigger *trigger,
			TupleTableSlot *row, TupleTableSlot *updated)
{
	Datum		key[INDEX_MAX_KEYS];
	Datum		newkey[INDEX_MAX_KEYS];

	entry = capture_rel(rel, trigger, entry);
	if (unlikely(entry->detached))
		return entry;

	if (entry->layout.link)
		capture_link(entry, row, updated);
	else if (unlikely(entry->layout.ncols == 0) || !slot_key(row, &entry->layout, key))
		capture_mark(entry->root, &entry->layout, KEY_UNKNOWN);
	else
	{
		capture_values(entry, key);
		if (updated != NULL)
		{
			if (!slot_key(updated, &entry->layout, newkey))
				capture_mark(entry->root, &entry->layout, KEY_UNKNOWN);
			else if (!same_key(&entry->layout, key, newkey))
				capture_values(entry, newkey);
		}
	}
	if (unlikely(write_through))
		flush_level(capture_level());
	return entry;
}

static void
capture_truncate(Relation rel, Trigger *trigger)
{
	CaptureRel *entry = capture_rel(rel, trigger, NULL);

	if (entry->detached)
		return;
	/* of a link that is not known nobody could tell whose it is */
	capture_mark(entry->root, &entry->layout,
				 entry->layout.link && entry->layout.ncols == 0 ? KEY_UNKNOWN : KEY_TRUNCATE);
	if (write_through)
		flush_level(capture_level());
}

Datum
crate_sync_capture(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function %s was not called by trigger manager",
						CS_SCHEMA ".capture()")));
	if (!TRIGGER_FIRED_AFTER(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function %s must be fired AFTER the event",
						CS_SCHEMA ".capture()")));
	/* anybody with the right to call it can make a trigger of it */
	if (!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) && !TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function %s must be fired FOR EACH ROW",
						CS_SCHEMA ".capture()")));

	capture_fnoid = fcinfo->flinfo->fn_oid;
	if (unlikely(!cs_capture))
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event))
		capture_truncate(trigdata->tg_relation, trigdata->tg_trigger);
	else
		fcinfo->flinfo->fn_extra =
			capture_row(fcinfo->flinfo->fn_extra, trigdata->tg_relation, trigdata->tg_trigger,
						trigdata->tg_trigslot,
						TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newslot : NULL);
	return PointerGetDatum(NULL);
}

bool
capture_pending(void)
{
	if (queue_wrote())
		return true;
	for (Level *level = current_level; level != NULL; level = level->parent)
	{
		if (level->open != NULL || level->full != NULL)
			return true;
	}
	return false;
}

static void
capture_forget(void)
{
	current_level = NULL;
	if (capture_cxt != NULL)
		MemoryContextReset(capture_cxt);
	write_through = false;
	queue_writer_end();
}

static void
capture_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (current_level != NULL)
				flush_level(current_level);
			/* others' callbacks may still write rows */
			write_through = true;
			break;

		case XACT_EVENT_COMMIT:
			/* nothing in here may throw */
			if (cs_sync_on_commit && queue_wrote())
				live_wake();
			capture_forget();
			break;

		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			capture_forget();
			break;

		default:
			break;				/* parallel workers write nothing */
	}
}

/* packs a run anew behind the parent's */
static void
merge_run(Pending *p, Level *parent)
{
	Datum		values[INDEX_MAX_KEYS];
	const char *pos = p->buf.data;
	const char *end = pos + p->buf.len;
	KeyRun		run;
	Pending    *to = open_pending(parent, p->root, &p->layout);
	MemoryContext oldcxt;

	oldcxt = work_begin();
	key_run_start(&run, &p->layout);
	while (key_unpack(&run, &pos, end, values))
		to = append_key(parent, to, values);
	work_end(oldcxt);
}

/*
 * Hands a level's keys to its parent.  Short runs are packed anew behind the
 * parent's, so that a loop of many small subtransactions does not end as as
 * many chunks.
 */
static void
merge_level(Level *level, Level *parent)
{
	Pending    *p;

	while ((p = level->full) != NULL || (p = level->open) != NULL)
	{
		if (p == level->full)
			level->full = p->next;
		else
			level->open = p->next;

		if (p->n > 0 && p->buf.len < KEY_CHUNK_BYTES / 4)
		{
			merge_run(p, parent);
			free_pending(p);
		}
		else if (p->n == 0)
			free_pending(p);
		else if (p->n == KEY_TRUNCATE || p->n == KEY_UNKNOWN)
		{
			level_mark(parent, p->root, &p->layout, p->n);
			free_pending(p);
		}
		else
		{
			p->next = parent->full;
			parent->full = p;
			parent->bytes += p->buf.len + sizeof(Pending);
		}
	}
	level->bytes = 0;
}

static void
capture_subxact_callback(SubXactEvent event, SubTransactionId mySubid,
						 SubTransactionId parentSubid, void *arg)
{
	Level	   *level = current_level;
	int			nest = GetCurrentTransactionNestLevel();
	Level	   *parent;
	Pending   **tail;

	if (level == NULL || level->nest != nest)
		return;

	switch (event)
	{
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			parent = level->parent;
			if (parent == NULL || parent->nest != nest - 1)
				break;

			/*
			 * What would take the parent past the limit is written now, while
			 * this subtransaction can still write; the parent's keys along
			 * with it, or each subtransaction to come would write a chunk of
			 * its own.  Should this one abort after all, the parent still has
			 * them; keys that were merged are a few too many, and harmless.
			 */
			if (level->bytes + parent->bytes > CAPTURE_FLUSH_BYTES)
			{
				write_level(parent);
				parent->written = true;
				flush_level(level);
			}
			else
				merge_level(level, parent);
			break;

		case SUBXACT_EVENT_COMMIT_SUB:
			parent = level->parent;
			if (parent == NULL || parent->nest != nest - 1)
			{
				level->nest = nest - 1; /* the parent has none yet: become its */
				break;
			}
			if (parent->written)
				free_level_keys(parent);
			parent->written = false;
			/* what other callbacks have queued since PRE_COMMIT_SUB */
			for (tail = &parent->full; *tail != NULL; tail = &(*tail)->next)
				;
			*tail = level->full;
			for (; *tail != NULL; tail = &(*tail)->next)
				;
			*tail = level->open;
			parent->bytes += level->bytes;
			current_level = parent;
			pfree(level);
			break;

		case SUBXACT_EVENT_ABORT_SUB:
			free_level_keys(level);
			current_level = level->parent;
			if (current_level != NULL)
				current_level->written = false;
			pfree(level);
			break;

		default:
			break;
	}
}

void
capture_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	RegisterXactCallback(capture_xact_callback, NULL);
	RegisterSubXactCallback(capture_subxact_callback, NULL);
}
