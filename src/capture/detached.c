/*-------------------------------------------------------------------------
 *
 * detached.c
 *		Relations whose capture is off: the table crate_sync.detached.
 *
 * It is read by writers, once per cache entry, and written when the queue is
 * full (worker/overflow.c).
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "base/xact.h"
#include "capture/detached.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "storage/lmgr.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

bool
detached_is(Oid root)
{
	Oid			relid = get_relname_relid("detached", get_namespace_oid(CS_SCHEMA, true));
	Relation	rel;
	TableScanDesc scan;
	TupleTableSlot *slot;
	Snapshot	snapshot;
	bool		found = false;

	if (!OidIsValid(relid) || !ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return false;
	/* as of now: a writer's own snapshot may be older than the decision */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	scan = table_beginscan(rel, snapshot, 0, NULL);
	slot = table_slot_create(rel, NULL);
	while (!found && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		found = DatumGetObjectId(slot_getattr(slot, 1, &isnull)) == root;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, AccessShareLock);
	return found;
}

void
detached_forget(Oid root)
{
	List	   *tree = find_all_inheritors(root, NoLock, NULL);
	ListCell   *lc;

	foreach(lc, tree)
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

/*
 * What somebody is removing or adding at this moment is left to him: we would
 * wait for the end of his transaction.  Returns the rows processed.
 */
static uint64
run_on_mirror(const char *sql, Oid relid, int mirror_id)
{
	Oid			types[2] = {OIDOID, INT4OID};
	Datum		values[2] = {ObjectIdGetDatum(relid), Int32GetDatum(mirror_id)};
	uint64		n;

	SPI_connect();
	n = run_sql(sql, 2, types, values, NULL);
	SPI_finish();
	return n;
}

void
detached_add(Oid relid, int mirror_id)
{
	(void) run_on_mirror("INSERT INTO crate_sync.detached (relid) SELECT $1 FROM crate_sync.mirror"
						 " WHERE mirror_id = $2 AND relid = $1 FOR KEY SHARE SKIP LOCKED"
						 " ON CONFLICT DO NOTHING", relid, mirror_id);
	detached_forget(relid);
}

bool
detached_is_ours(Oid relid, int mirror_id)
{
	return run_on_mirror("SELECT FROM crate_sync.mirror WHERE mirror_id = $2 AND relid = $1"
						 " FOR KEY SHARE SKIP LOCKED", relid, mirror_id) > 0;
}

void
detached_remove(Oid relid, int mirror_id)
{
	(void) run_on_mirror("DELETE FROM crate_sync.detached WHERE relid IN (SELECT relid"
						 " FROM crate_sync.detached WHERE relid = $1 AND $2 > 0 FOR UPDATE SKIP LOCKED)",
						 relid, mirror_id);
	detached_forget(relid);
}

void
detached_remove_all(Oid relid)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relid)};

	SPI_connect();
	if (run_sql("DELETE FROM crate_sync.detached WHERE relid = $1", 1, types, values, NULL) > 0)
		detached_forget(relid);
	SPI_finish();
}
