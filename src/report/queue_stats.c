/*-------------------------------------------------------------------------
 *
 * queue_stats.c
 *		How much is queued, for status and tables: cheap at any backlog.
 *
 * A queue of some thousand pages is counted.  Of a larger one so many pages,
 * spread evenly, are looked at and the rest is inferred, so that the answer
 * takes no longer whatever has piled up.  For all tables together fewer will
 * do than for each of them: what has little in a large queue may be met on
 * none of the pages, and then it is not known what it has.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "access/heapam.h"
#include "access/relation.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "funcapi.h"
#include "queue/queue.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(crate_sync_queue_stats);

/* pages of one queue table that are looked at; one of twice that size is counted */
#define STATS_PAGES 2000
#define STATS_PAGES_PER_TABLE 8000

/* nothing was met on them: then so many are read, for the last keys of a queue that is drained */
#define STATS_PAGES_EMPTY 100000

typedef struct RelStats
{
	Oid			relid;			/* hash key */
	double		keys;
	double		bytes;
	TimestampTz oldest;
} RelStats;

typedef struct StatsArg
{
	bool		per_table;
	HTAB	   *rels;			/* of RelStats, by relid */
	RelStats   *last;			/* chunks of a table come together */
	double		scale;			/* of the table being read */
	bool		met;			/* a chunk in it */
	bool		sampled;		/* any table was */
} StatsArg;

static void
count_chunk(const QueueChunk *chunk, void *arg)
{
	StatsArg   *stats = arg;
	Oid			relid = stats->per_table ? chunk->relid : InvalidOid;
	RelStats   *rel = stats->last;
	bool		found;

	if (rel == NULL || rel->relid != relid)
	{
		rel = hash_search(stats->rels, &relid, HASH_ENTER, &found);
		if (!found)
		{
			rel->keys = rel->bytes = 0;
			rel->oldest = DT_NOEND;
		}
		stats->last = rel;
	}
	stats->met = true;
	/* a mark (TRUNCATE, a lost key) counts as one */
	rel->keys += stats->scale * Max(chunk->n, 1);
	rel->bytes += stats->scale * chunk->len;
	rel->oldest = Min(rel->oldest, chunk->queued_at);
}

/* returns its size in bytes */
static int64
look_at_table(int table, StatsArg *stats)
{
	int64		bytes;

	stats->scale = 1.0;
	stats->met = false;
	bytes = queue_sample(table, stats->per_table ? STATS_PAGES_PER_TABLE : STATS_PAGES,
						 &stats->scale, count_chunk, stats);
	if (stats->scale > 1.0 && !stats->met && bytes / BLCKSZ <= STATS_PAGES_EMPTY)
		bytes = queue_sample(table, STATS_PAGES_EMPTY, &stats->scale, count_chunk, stats);
	stats->sampled |= stats->scale > 1.0;
	return bytes;
}

static void
put_row(Tuplestorestate *store, TupleDesc tupdesc, const StatsArg *stats, const RelStats *rel, int64 bytes)
{
	Datum		values[4];
	bool		nulls[4] = {0};

	values[0] = ObjectIdGetDatum(rel->relid);
	nulls[0] = !stats->per_table;
	values[1] = Int64GetDatum((int64) rint(rel->keys));
	values[2] = Int64GetDatum(bytes);
	values[3] = TimestampTzGetDatum(rel->oldest);
	nulls[3] = rel->oldest == DT_NOEND;
	tuplestore_putvalues(store, tupdesc, values, nulls);
}

/*
 * A row for each table that has keys, or one for all.  If some of the queue was
 * not looked at, the former have one more, of no table: those that are not
 * named may have keys, too.
 */
Datum
crate_sync_queue_stats(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	StatsArg	stats;
	HASHCTL		ctl;
	HASH_SEQ_STATUS seq;
	RelStats   *rel;
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
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(RelStats);
	ctl.hcxt = CurrentMemoryContext;
	stats.rels = hash_create("crate_sync queue stats", 64, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < QUEUE_TABLES; i++)
		table_bytes += look_at_table(i, &stats);

	oldcxt = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	tupdesc = CreateTupleDescCopy(tupdesc);
	store = tuplestore_begin_heap(true, false, work_mem);
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult = store;
	rsinfo->setDesc = tupdesc;
	MemoryContextSwitchTo(oldcxt);
	if (!stats.per_table && hash_get_num_entries(stats.rels) == 0)
	{
		RelStats	none = {.oldest = DT_NOEND};

		put_row(store, tupdesc, &stats, &none, table_bytes);
	}
	hash_seq_init(&seq, stats.rels);
	while ((rel = hash_seq_search(&seq)) != NULL)
		put_row(store, tupdesc, &stats, rel, stats.per_table ? (int64) rel->bytes : table_bytes);
	if (stats.per_table && stats.sampled)
	{
		Datum		values[4] = {ObjectIdGetDatum(InvalidOid)};
		bool		nulls[4] = {false, true, true, true};

		tuplestore_putvalues(store, tupdesc, values, nulls);
	}
	return (Datum) 0;
}
