/*-------------------------------------------------------------------------
 *
 * code.c
 *		Whether users' code may run when a table's rows are read.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/relation.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "base/bounded.h"
#include "pipeline/code.h"
#include "pipeline/table.h"
#include "utils/rel.h"
#include "utils/syscache.h"

/*
 * Whether users' code may run when rows are read.  Besides filters and key
 * input, that is what the planner evaluates once: functions of constants in
 * indexes, CHECK constraints and partition keys, of any partition.
 */
void
code_look(SyncTable *st)
{
	Oid			types[1] = {OIDOID};
	Datum		values[1] = {ObjectIdGetDatum(st->relid)};
	Relation	rel = relation_open(st->relid, AccessShareLock);

	/* of generated columns that are computed when they are read, PostgreSQL allows its own functions */
	st->rows_run_code = false;
	for (int i = 0; i < RelationGetNumberOfAttributes(rel); i++)
		st->rows_run_code |= TupleDescAttr(RelationGetDescr(rel), i)->attgenerated == 'v';
	relation_close(rel, AccessShareLock);

	SPI_connect();
	SPI_execute_with_args("WITH RECURSIVE tree (oid) AS (SELECT $1 UNION ALL "
						  "  SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.oid), "
						  "code (classid, objid) AS ("
						  "  SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, indexrelid FROM tree JOIN pg_catalog.pg_index ON indrelid = tree.oid "
						  "    WHERE indexprs IS NOT NULL OR indpred IS NOT NULL "
						  "  UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass, partrelid FROM tree JOIN pg_catalog.pg_partitioned_table ON partrelid = tree.oid "
						  "    WHERE partexprs IS NOT NULL "
						  "  UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass, c.oid FROM tree JOIN pg_catalog.pg_constraint c ON conrelid = tree.oid "
						  "    WHERE contype = 'c') "
						  "SELECT FROM code JOIN pg_catalog.pg_depend d ON d.classid = code.classid AND d.objid = code.objid "
						  "WHERE d.refobjid >= 16384 AND d.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, "
						  "  'pg_catalog.pg_operator'::pg_catalog.regclass, 'pg_catalog.pg_type'::pg_catalog.regclass)",
						  1, types, values, NULL, true, 1);
	st->runs_code = SPI_processed > 0 || st->rows_run_code;
	SPI_finish();
}

bool
code_runs(const SyncTable *st)
{
	return st->runs_code || st->key_runs_code || st->spec.resync_filter != NULL ||
		(st->def != NULL && st->def->row_filter != NULL);
}

/* whose code that is */
Oid
code_owner(const SyncTable *st)
{
	return st->def != NULL && code_runs(st) ? st->def->owner : InvalidOid;
}

/* before that, its code has cost the others too much for it to be read; 0: it may be */
TimestampTz
code_retry_at(const SyncTable *st)
{
	return bounded_retry_at(st->relid, code_owner(st));
}
