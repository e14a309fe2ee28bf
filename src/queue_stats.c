/*-------------------------------------------------------------------------
 *
 * queue_stats.c
 *		How much is queued, for status and tables: cheap at any backlog.
 *
 * A small queue is counted.  Of a large one a few dozen pages, spread evenly,
 * are looked at and the rest is inferred, so the answer takes about the same
 * time whatever has piled up.
 *
 *-------------------------------------------------------------------------
 */
#include "crate_sync.h"

#include "access/heapam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "funcapi.h"
#include "queue.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(crate_sync_queue_stats);

/* pages of one queue table that are looked at, at most */
#define STATS_PAGES 48

typedef struct RelStats
{
	Oid			relid;
	double		keys;
	double		bytes;
	TimestampTz oldest;
} RelStats;

typedef struct StatsArg
{
	bool		per_table;
	int			n;
	int			max;
	RelStats   *rels;
	double		scale;			/* of the table being read */
} StatsArg;

static void
count_chunk(const QueueChunk *chunk, void *arg)
{
	StatsArg   *stats = arg;
	Oid			relid = stats->per_table ? chunk->relid : InvalidOid;
	RelStats   *rel = NULL;

	for (int i = 0; i < stats->n; i++)
	{
		if (stats->rels[i].relid == relid)
			rel = &stats->rels[i];
	}
	if (rel == NULL)
	{
		if (stats->n == stats->max)
		{
			stats->max *= 2;
			stats->rels = repalloc(stats->rels, sizeof(RelStats) * stats->max);
		}
		rel = &stats->rels[stats->n++];
		memset(rel, 0, sizeof(RelStats));
		rel->relid = relid;
		rel->oldest = DT_NOEND;
	}
	/* a mark (TRUNCATE, a lost key) counts as one */
	rel->keys += stats->scale * Max(chunk->n, 1);
	rel->bytes += stats->scale * chunk->len;
	rel->oldest = Min(rel->oldest, chunk->queued_at);
}

Datum
crate_sync_queue_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StatsArg	stats;
	TupleDesc	tupdesc;
	Tuplestorestate *store;
	MemoryContext oldcxt;
	int64		table_bytes = 0;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo) ||
		(rsinfo->allowedModes & SFRM_Materialize) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	memset(&stats, 0, sizeof(stats));
	stats.per_table = PG_GETARG_BOOL(0);
	stats.max = 16;
	stats.rels = palloc(sizeof(RelStats) * stats.max);
	for (int i = 0; i < QUEUE_TABLES; i++)
		table_bytes += queue_sample(i, STATS_PAGES, &stats.scale, count_chunk, &stats);

	oldcxt = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	tupdesc = CreateTupleDescCopy(tupdesc);
	store = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = store;
	rsinfo->setDesc = tupdesc;
	MemoryContextSwitchTo(oldcxt);
	if (!stats.per_table && stats.n == 0)
	{
		stats.n = 1;
		memset(&stats.rels[0], 0, sizeof(RelStats));
		stats.rels[0].oldest = DT_NOEND;
	}
	for (int i = 0; i < stats.n; i++)
	{
		Datum		values[4];
		bool		nulls[4] = {0};

		values[0] = ObjectIdGetDatum(stats.rels[i].relid);
		nulls[0] = !stats.per_table;
		values[1] = Int64GetDatum((int64) stats.rels[i].keys);
		values[2] = Int64GetDatum(stats.per_table ? (int64) stats.rels[i].bytes : table_bytes);
		values[3] = TimestampTzGetDatum(stats.rels[i].oldest);
		nulls[3] = stats.rels[i].oldest == DT_NOEND;
		tuplestore_putvalues(store, tupdesc, values, nulls);
	}
	return (Datum) 0;
}
