/*-------------------------------------------------------------------------
 *
 * live.c
 *		Shared memory: who the workers are, how to wake them.
 *
 * When the library is preloaded the memory is reserved at start.  Without
 * that, a few kB come out of the slack that every server sets aside, so that
 * CREATE EXTENSION alone is enough to run.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/settings.h"
#include "shared/live.h"
#include "shared/wake.h"
#include "storage/latch.h"
#include "storage/shmem.h"

#define LIVE_DATABASES_PRELOADED 128
#define LIVE_DATABASES_SLACK	 16

static LiveShared *live = NULL;

static int
live_databases(void)
{
	return cs_preloaded ? LIVE_DATABASES_PRELOADED : LIVE_DATABASES_SLACK;
}

Size
live_size(void)
{
	return offsetof(LiveShared, dbs) + live_databases() * sizeof(LiveDatabase);
}

LiveShared *
live_attach(void)
{
	static bool failed = false;
	LiveShared *volatile result = NULL;
	MemoryContext oldcxt = CurrentMemoryContext;
	bool		found;

	if (live != NULL || failed)
		return live;

	/*
	 * A writer must never fail for want of this memory: it only means that
	 * nobody can be woken and the worker looks at its interval.
	 */
	PG_TRY();
	{
		LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
		result = ShmemInitStruct("crate_sync", live_size(), &found);
		if (!found)
		{
			memset(result, 0, live_size());
			LWLockInitialize(&result->lock, LWLockNewTrancheId());
			result->ndbs = live_databases();
			for (int i = 0; i < result->ndbs; i++)
			{
				pg_atomic_init_u32(&result->dbs[i].wake, 0);
				pg_atomic_init_u32(&result->dbs[i].let_go, 0);
			}
		}
		LWLockRelease(AddinShmemInitLock);
	}
	PG_CATCH();
	{
		LWLockRelease(AddinShmemInitLock);
		MemoryContextSwitchTo(oldcxt);
		FlushErrorState();
		failed = true;
		result = NULL;
	}
	PG_END_TRY();

	live = result;
	if (live != NULL)
		LWLockRegisterTranche(live->lock.tranche, "crate_sync");
	return live;
}

/* with the lock held, but for live_wake() */
static LiveDatabase *
slot_of(Oid dboid)
{
	for (int i = 0; i < live->ndbs; i++)
	{
		if (live->dbs[i].dboid == dboid)
			return &live->dbs[i];
	}
	return NULL;
}

bool
live_look(LiveDatabase *copy)
{
	LiveDatabase *db = NULL;

	if (live_attach() != NULL)
	{
		LWLockAcquire(&live->lock, LW_SHARED);
		db = slot_of(MyDatabaseId);
		if (db != NULL)
			memcpy(copy, db, sizeof(LiveDatabase));
		LWLockRelease(&live->lock);
	}
	if (db == NULL)
		memset(copy, 0, sizeof(LiveDatabase));
	return db != NULL;
}

/* where a table's refreshes are waited for */
static LiveRefresh *
refresh_place(LiveDatabase *db, Oid relid)
{
	return &db->refreshes[OidIsValid(relid) ? 1 + relid % (LIVE_REFRESHES - 1) : 0];
}

uint64
live_want_refresh(Oid relid)
{
	LiveDatabase *db;
	uint64		wanted = 0;

	if (live_attach() == NULL)
		return 0;
	LWLockAcquire(&live->lock, LW_EXCLUSIVE);
	db = slot_of(MyDatabaseId);
	if (db != NULL)
	{
		LiveRefresh *refresh = refresh_place(db, relid);

		if (refresh->wanted == refresh->done)
			refresh->relid = relid;
		else if (refresh->relid != relid)
			refresh->relid = InvalidOid;
		wanted = ++refresh->wanted;
	}
	LWLockRelease(&live->lock);
	return wanted;
}

bool
live_is_refreshed(Oid relid, uint64 wanted)
{
	LiveDatabase *db;
	bool		done;

	if (wanted == 0 || live_attach() == NULL)
		return false;
	LWLockAcquire(&live->lock, LW_SHARED);
	db = slot_of(MyDatabaseId);
	done = db != NULL && refresh_place(db, relid)->done >= wanted;
	LWLockRelease(&live->lock);
	return done;
}

LiveDatabase *
live_database(Oid dboid, bool create)
{
	LiveDatabase *result;
	LiveDatabase *unused = NULL;

	if (live_attach() == NULL)
		return NULL;

	LWLockAcquire(&live->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	result = slot_of(dboid);
	for (int i = 0; i < live->ndbs && result == NULL; i++)
	{
		LiveDatabase *db = &live->dbs[i];

		/* a database that has no worker and wants none can make room */
		if (unused == NULL &&
			(db->dboid == InvalidOid || (db->wanted == LIVE_ABSENT && db->pid == 0)))
			unused = db;
	}
	if (result == NULL && create && unused != NULL)
	{
		memset(unused, 0, sizeof(LiveDatabase));
		pg_atomic_init_u32(&unused->wake, 0);
		pg_atomic_init_u32(&unused->let_go, 0);
		unused->dboid = dboid;
		result = unused;
	}
	LWLockRelease(&live->lock);
	return result;
}

void
live_wake(void)
{
	LiveDatabase *db;
	PGPROC	   *proc;

	if (live_attach() == NULL)
		return;

	/*
	 * No lock, for it is every commit that comes here: slots are not taken
	 * away from a database whose worker runs, a PGPROC stays where it is, and
	 * a latch set for nothing does no harm.
	 */
	db = slot_of(MyDatabaseId);
	if (db == NULL)
		return;
	proc = db->proc;
	if (proc != NULL && pg_atomic_exchange_u32(&db->wake, 1) == 0)
		SetLatch(&proc->procLatch);
}
