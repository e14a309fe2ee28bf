/*-------------------------------------------------------------------------
 *
 * overflow.c
 *		When the queue is full: a table that queues nothing for a while.
 *
 * With queue_full_action = detach_and_resync the table that fills the queue
 * most stops queueing and its chunks are thrown away; when the target is
 * back it is captured again and loaded in full.  The triggers stay where
 * they are, so neither end takes a lock that a writer would feel: a row in
 * crate_sync.detached tells them, and a relcache invalidation makes them look.
 *
 * A writer that began while capture was off may go on without having looked.
 * So the load begins only when everyone who had the table open at the moment
 * capture was switched on again has ended; what he changed is read by it.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "base/settings.h"
#include "capture/detached.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "pipeline/table.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "worker/overflow.h"

typedef struct Fullest
{
	Oid			relid[64];
	double		bytes[64];
	int			n;
	double		scale;
} Fullest;

static void
add_chunk(const QueueChunk *chunk, void *arg)
{
	Fullest    *f = arg;
	int			i;

	for (i = 0; i < f->n && f->relid[i] != chunk->relid; i++)
		;
	if (i == lengthof(f->relid))
		return;
	if (i == f->n)
	{
		f->relid[f->n++] = chunk->relid;
		f->bytes[i] = 0;
	}
	f->bytes[i] += f->scale * (chunk->len + 64);
}

void
detach_check(void)
{
	static bool said_full = false;
	Fullest		f;
	int64		bytes = 0;
	SyncTable  *st = NULL;
	double		most = 0;
	double		live = 0;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	memset(&f, 0, sizeof(f));
	for (int i = 0; i < QUEUE_TABLES; i++)
		bytes += queue_sample(i, 16, &f.scale, add_chunk, &f);
	PopActiveSnapshot();
	CommitTransactionCommand();

	if (bytes <= (int64) cs_max_queue_size * 1024 * 1024)
	{
		said_full = false;
		return;
	}
	if (!said_full)
		ereport(LOG,
				(errmsg("crate_sync: the queue has grown to %lld MB, beyond crate_sync.max_queue_size",
						(long long) (bytes / (1024 * 1024))),
				 errhint("See crate_sync.status for why it is not drained.")));
	said_full = true;
	if (cs_queue_full_action != QUEUE_FULL_DETACH)
		return;

	/*
	 * The files may be large for what was in them: they are emptied once
	 * nothing of other tables is left there, which detaching those would not
	 * make any sooner.
	 */
	for (int i = 0; i < f.n; i++)
		live += f.bytes[i];
	if (live <= (double) cs_max_queue_size * 1024 * 1024)
		return;

	for (int i = 0; i < f.n; i++)
	{
		SyncTable  *candidate = state_find(f.relid[i]);

		if (candidate != NULL && candidate->def != NULL && candidate->state_known &&
			!load_is_detached(candidate) &&
			f.bytes[i] > most)
		{
			st = candidate;
			most = f.bytes[i];
		}
	}
	if (st == NULL)
		return;

	ereport(LOG,
			(errmsg("crate_sync: table %s.%s stops queueing: it is loaded anew when the target takes rows again",
					st->def->schemaname, st->def->relname)));
	state_forget_work(st);
	load_detach(st);
	state_ack(true);			/* what it is, before anything is missed */
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	detached_add(st->relid, st->spec.mirror_id);
	PopActiveSnapshot();
	CommitTransactionCommand();

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	/* not those of a mirror that has taken this one's place */
	if (detached_is_ours(st->relid, st->spec.mirror_id))
		queue_delete_relation(st->relid);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

bool
detach_reattach(SyncTable *st)
{
	ListCell   *lc;

	if (!load_is_detached(st))
		return false;
	/* a target that does not take as much as a fence takes no rows either */
	if (!st->attached_again && !lanes_fence(st))
		return true;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!st->attached_again)
	{
		/* switch capture on; committed before we look who is writing */
		detached_remove(st->relid, st->spec.mirror_id);
		PopActiveSnapshot();
		CommitTransactionCommand();
		st->attached_again = true;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		st->writers = NIL;
		foreach(lc, find_all_inheritors(st->relid, NoLock, NULL))
		{
			LOCKTAG		tag;
			VirtualTransactionId *holders;
			MemoryContext oldcxt = MemoryContextSwitchTo(st->cxt);

			SET_LOCKTAG_RELATION(tag, MyDatabaseId, lfirst_oid(lc));
			holders = GetLockConflicts(&tag, ShareLock, NULL);
			for (; VirtualTransactionIdIsValid(*holders); holders++)
			{
				VirtualTransactionId *copy = palloc(sizeof(VirtualTransactionId));

				*copy = *holders;
				st->writers = lappend(st->writers, copy);
			}
			MemoryContextSwitchTo(oldcxt);
		}
	}

	while (st->writers != NIL && VirtualXactLock(*(VirtualTransactionId *) linitial(st->writers), false))
		st->writers = list_delete_first(st->writers);
	PopActiveSnapshot();
	CommitTransactionCommand();
	if (st->writers != NIL)
		return true;

	st->attached_again = false;
	load_need(st, "full", "the queue was full and its changes were not queued");
	return false;
}
