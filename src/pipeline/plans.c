/*-------------------------------------------------------------------------
 *
 * plans.c
 *		The SQL by which rows are read, and whose rows they are.
 *
 * A table is its OID.  SQL can only name it, and a plan that was invalidated
 * looks the name up again: by then it may be another table's, since renames,
 * above all of schemas, ask nobody who reads.  So a plan is made with the
 * names that the OID has at the moment; it is executed by us, and not by SPI,
 * so that what is executed is what was looked at: a plan of that very OID.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "document/document.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "parser/parsetree.h"
#include "pipeline/plans.h"
#include "pipeline/table.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* how often names may change while a plan is made */
#define NAME_TRIES 10

/* a plan, and what it was made for; in SyncTable.cxt */
typedef struct ReadPlan
{
	SPIPlanPtr	spi;			/* NULL: none */
	Oid			relid;
	char	   *nspname;
	char	   *relname;
	char	   *names;			/* of a document's relations, or NULL */
} ReadPlan;

struct ReadPlans
{
	ReadPlan	by_key[KEY_PLANS];
	ReadPlan	leaf;			/* rows of one leaf */
	ReadPlan	leaf_keys;
	int			nwalks;			/* two for each node of a document: of all roots, of a leaf's */
	ReadPlan   *walks;
};

typedef SPIPlanPtr (*PlanMaker) (SyncTable *st, const char *from, int kind);

static void
forget_plan(ReadPlan *rp)
{
	if (rp->spi != NULL)
		SPI_freeplan(rp->spi);
	if (rp->nspname != NULL)
		pfree(rp->nspname);
	if (rp->relname != NULL)
		pfree(rp->relname);
	if (rp->names != NULL)
		pfree(rp->names);
	memset(rp, 0, sizeof(ReadPlan));
}

void
plans_forget_leaf(SyncTable *st)
{
	if (st->plans == NULL)
		return;
	forget_plan(&st->plans->leaf);
	forget_plan(&st->plans->leaf_keys);
}

void
plans_forget(SyncTable *st)
{
	if (st->plans == NULL)
		return;
	for (int i = 0; i < KEY_PLANS; i++)
		forget_plan(&st->plans->by_key[i]);
	plans_forget_leaf(st);
	for (int i = 0; i < st->plans->nwalks; i++)
		forget_plan(&st->plans->walks[i]);
	if (st->plans->walks != NULL)
		pfree(st->plans->walks);
	st->plans->walks = NULL;
	st->plans->nwalks = 0;
}

static ReadPlans *
plans_of(SyncTable *st)
{
	if (st->plans == NULL)
		st->plans = MemoryContextAllocZero(st->cxt, sizeof(ReadPlans));
	return st->plans;
}

/* ---------------------------------------------------------------------
 * Their text
 * ------------------------------------------------------------------- */

static void
append_equality(StringInfo sql, Oid typid)
{
	TypeCacheEntry *tc = lookup_type_cache(getBaseType(typid), TYPECACHE_EQ_OPR);
	HeapTuple	tup;

	if (!OidIsValid(tc->eq_opr))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("could not identify an equality operator for type %s",
						format_type_be(typid))));
	tup = SearchSysCache1(OPEROID, ObjectIdGetDatum(tc->eq_opr));
	appendStringInfo(sql, " OPERATOR(%s.%s) ",
					 quote_identifier(get_namespace_name(((Form_pg_operator) GETSTRUCT(tup))->oprnamespace)),
					 NameStr(((Form_pg_operator) GETSTRUCT(tup))->oprname));
	ReleaseSysCache(tup);
}

static void
append_conditions(StringInfo sql, SyncTable *st)
{
	MirrorTable *def = st->def;

	if (def->row_filter != NULL)
		appendStringInfo(sql, " AND (%s)", def->row_filter);
	if (def->soft_delete_attnum != 0)
	{
		const char *col = quote_identifier(st->spec.soft_delete_column);

		if (def->soft_delete_type == BOOLOID)
			appendStringInfo(sql, " AND %s IS NOT TRUE", col);
		else
			appendStringInfo(sql, " AND %s IS NULL", col);
	}
}

/* a column, of the row that is read */
static void
append_column(StringInfo sql, const MirrorColumn *col)
{
	if (col->node != NULL)
		document_append_column(sql, col->node, "\"crate_sync t\"");
	else
		appendStringInfo(sql, "\"crate_sync t\".%s", quote_identifier(col->name));
}

static SPIPlanPtr
prepare_kept(const char *sql, int nargs, Oid *argtypes)
{
	SPIPlanPtr	plan;

	/*
	 * Whatever the statistics say, a few keys of a large table are looked up
	 * in its index, and a run of blocks by their numbers: the worker has the
	 * other ways switched off, and one plan serves all sizes.
	 */
	plan = SPI_prepare_cursor(sql, nargs, argtypes, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	SPI_keepplan(plan);
	return plan;
}

/* rows, or keys, by keys: kind as of KEY_PLAN_ */
static SPIPlanPtr
make_key_plan(SyncTable *st, const char *from, int kind)
{
	MirrorTable *def = st->def;
	const char *key = quote_identifier(def->columns[def->keys[0]].name);
	StringInfoData sql;
	Oid			argtypes[INDEX_MAX_KEYS + 1];
	int			nargs = def->nkeys;
	bool		first = true;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	for (int i = 0; i < def->ncols; i++)
	{
		bool		is_key = false;

		for (int k = 0; k < def->nkeys; k++)
			is_key |= def->keys[k] == i;
		if ((kind & KEY_PLAN_EXISTS) && !is_key)
			continue;
		if (!first)
			appendStringInfoString(&sql, ", ");
		append_column(&sql, &def->columns[i]);
		first = false;
	}
	appendStringInfo(&sql, " FROM %s AS \"crate_sync t\" WHERE ", from);
	for (int k = 0; k < def->nkeys; k++)
		argtypes[k] = get_array_type(getBaseType(st->layout.cols[k].typid));
	if (kind & KEY_PLAN_RANGE)
	{
		nargs = 2;
		argtypes[0] = argtypes[1] = getBaseType(st->layout.cols[0].typid);
		appendStringInfo(&sql, "\"crate_sync t\".%s OPERATOR(pg_catalog.>=) $1"
						 " AND \"crate_sync t\".%s OPERATOR(pg_catalog.<=) $2", key, key);
	}
	else if (def->nkeys == 1)
	{
		appendStringInfo(&sql, "\"crate_sync t\".%s", key);
		append_equality(&sql, st->layout.cols[0].typid);
		appendStringInfoString(&sql, "ANY ($1)");
	}
	else
	{
		appendStringInfoString(&sql, "EXISTS (SELECT FROM ROWS FROM (");
		for (int k = 0; k < def->nkeys; k++)
			appendStringInfo(&sql, "%spg_catalog.unnest($%d)", k ? ", " : "", k + 1);
		appendStringInfoString(&sql, ") AS \"crate_sync q\" (");
		for (int k = 0; k < def->nkeys; k++)
			appendStringInfo(&sql, "%sk%d", k ? ", " : "", k);
		appendStringInfoString(&sql, ") WHERE ");
		for (int k = 0; k < def->nkeys; k++)
		{
			appendStringInfo(&sql, "%s\"crate_sync t\".%s", k ? " AND " : "",
							 quote_identifier(def->columns[def->keys[k]].name));
			append_equality(&sql, st->layout.cols[k].typid);
			appendStringInfo(&sql, "\"crate_sync q\".k%d", k);
		}
		appendStringInfoChar(&sql, ')');
	}
	append_conditions(&sql, st);
	return prepare_kept(sql.data, nargs, argtypes);
}

/* rows of one leaf between two places, the place last; kind: of KEY_PLAN_EXISTS */
static SPIPlanPtr
make_leaf_plan(SyncTable *st, const char *from, int kind)
{
	MirrorTable *def = st->def;
	StringInfoData sql;
	Oid			argtypes[2] = {TIDOID, TIDOID};

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT ");
	if (kind & KEY_PLAN_EXISTS)
	{
		for (int k = 0; k < def->nkeys; k++)
			appendStringInfo(&sql, "%s, ", quote_identifier(def->columns[def->keys[k]].name));
	}
	else
	{
		for (int i = 0; i < def->ncols; i++)
		{
			append_column(&sql, &def->columns[i]);
			appendStringInfoString(&sql, ", ");
		}
	}
	appendStringInfo(&sql, "\"crate_sync t\".ctid FROM ONLY %s AS \"crate_sync t\" WHERE \"crate_sync t\".ctid > $1 AND \"crate_sync t\".ctid < $2",
					 from);
	if (!(kind & KEY_PLAN_EXISTS))
	{
		append_conditions(&sql, st);
		if (st->spec.resync_filter != NULL && st->load_mode != NULL &&
			strcmp(st->load_mode, "upsert") == 0)
			appendStringInfo(&sql, " AND (%s)", st->spec.resync_filter);
	}
	return prepare_kept(sql.data, 2, argtypes);
}

/* root keys by link values; kind: twice the node's number, and one for those of a leaf */
static SPIPlanPtr
make_walk_plan(SyncTable *st, const char *from, int kind)
{
	const DocNode *node = st->def->doc->nodes[kind / 2];
	int			n = list_length(node->up);
	StringInfoData sql;
	Oid			argtypes[INDEX_MAX_KEYS + 2];
	ListCell   *lc;

	initStringInfo(&sql);
	foreach(lc, node->up)
		argtypes[foreach_current_index(lc)] =
			get_array_type(getBaseType(get_atttype(node->relid, get_attnum(node->relid, lfirst(lc)))));
	argtypes[n] = argtypes[n + 1] = TIDOID;
	document_append_walk(&sql, node, kind & 1 ? psprintf("ONLY %s", from) : from,
						 kind & 1 ? psprintf("\"crate_sync t\".ctid > $%d AND \"crate_sync t\".ctid < $%d", n + 1, n + 2) : NULL,
						 mirror_key_names(st->def));
	return prepare_kept(sql.data, kind & 1 ? n + 2 : n, argtypes);
}

/* ---------------------------------------------------------------------
 * Whose rows they give
 * ------------------------------------------------------------------- */

static void
not_now(Oid relid)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("relation %u is being renamed or dropped", relid)));
}

static bool
is_partition_of(Oid relid, List *roots)
{
	ListCell   *lc;

	if (!get_rel_relispartition(relid))
		return false;
	foreach(lc, get_partition_ancestors(relid))
	{
		if (list_member_oid(roots, lfirst_oid(lc)))
			return true;
	}
	return false;
}

/*
 * Of a document, too: every relation that the plan reads is one of its own, or
 * a partition of one, and they are called as they were when it was written.
 */
static bool
reads_document(SyncTable *st, const ReadPlan *rp, PlannedStmt *stmt)
{
	Document   *doc = st->def->doc;
	char	   *names = document_names(doc);
	ListCell   *lc;

	if (names == NULL || strcmp(names, rp->names) != 0)
		return false;
	foreach(lc, stmt->rtable)
	{
		RangeTblEntry *rte = lfirst(lc);

		if (rte->rtekind == RTE_RELATION && !list_member_oid(doc->relids, rte->relid) &&
			!is_partition_of(rte->relid, doc->relids))
			return false;
	}
	return true;
}

/*
 * A plan of the relation with that OID, its locks taken, to be released.  The
 * relation in FROM is the first of the range table, whatever became of the
 * rest: its members follow it.
 */
static CachedPlan *
get_plan(SyncTable *st, ReadPlan *rp, Oid relid, PlanMaker make, int kind)
{
	for (int try = 0; try < NAME_TRIES; try++)
	{
		char	   *relname = get_rel_name(relid);
		char	   *nspname = relname ? get_namespace_name(get_rel_namespace(relid)) : NULL;
		char	   *names = st->def->doc ? document_names(st->def->doc) : "";
		CachedPlan *cplan;

		if (nspname == NULL || names == NULL)
			break;
		if (rp->spi == NULL || rp->relid != relid || strcmp(rp->names, names) != 0 ||
			strcmp(rp->relname, relname) != 0 || strcmp(rp->nspname, nspname) != 0)
		{
			forget_plan(rp);
			rp->spi = make(st, quote_qualified_identifier(nspname, relname), kind);
			rp->relid = relid;
			rp->relname = MemoryContextStrdup(st->cxt, relname);
			rp->names = MemoryContextStrdup(st->cxt, names);
			rp->nspname = MemoryContextStrdup(st->cxt, nspname);
		}
		cplan = SPI_plan_get_cached_plan(rp->spi);
		if (cplan != NULL && list_length(cplan->stmt_list) == 1)
		{
			PlannedStmt *stmt = linitial_node(PlannedStmt, cplan->stmt_list);

			if (stmt->rtable != NIL && rt_fetch(1, stmt->rtable)->rtekind == RTE_RELATION &&
				rt_fetch(1, stmt->rtable)->relid == relid &&
				(st->def->doc == NULL || reads_document(st, rp, stmt)))
				return cplan;
		}
		/* the name was another's when it was looked up */
		if (cplan != NULL)
			ReleaseCachedPlan(cplan, CurrentResourceOwner);
		forget_plan(rp);
	}
	not_now(relid);
	return NULL;
}

/* its columns are of the types that rows are encoded as */
static void
check_types(SyncTable *st, TupleDesc desc, PlanMaker make, int kind)
{
	MirrorTable *def = st->def;
	int			n = 0;
	bool		same = true;

	if (make == make_walk_plan || ((kind & KEY_PLAN_EXISTS) && make == make_leaf_plan))
	{
		/* in the key's order */
		for (; n < def->nkeys; n++)
			same &= n < desc->natts &&
				TupleDescAttr(desc, n)->atttypid == def->columns[def->keys[n]].typid;
	}
	else
	{
		for (int i = 0; i < def->ncols; i++)
		{
			if ((kind & KEY_PLAN_EXISTS) && !def->target.cols[i].key)
				continue;
			same &= n < desc->natts && TupleDescAttr(desc, n)->atttypid == def->columns[i].typid;
			n++;
		}
	}
	if (!same)
	{
		st->stale = true;
		not_now(def->relid);
	}
}

static void
run_plan(SyncTable *st, ReadPlan *rp, Oid relid, PlanMaker make, int kind, DestReceiver *dest,
		 int nparams, const Oid *types, const Datum *values)
{
	CachedPlan *cplan = get_plan(st, rp, relid, make, kind);
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(rp->spi));
	ParamListInfo params = makeParamList(nparams);
	QueryDesc  *query;

	for (int i = 0; i < nparams; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = false;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = types[i];
	}
	query = CreateQueryDesc(linitial_node(PlannedStmt, cplan->stmt_list), source->query_string,
							GetActiveSnapshot(), InvalidSnapshot, dest, params, NULL, 0);
	ExecutorStart(query, 0);
	check_types(st, query->tupDesc, make, kind);
	CS_EXECUTOR_RUN(query);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
	ReleaseCachedPlan(cplan, CurrentResourceOwner);
}

void
plans_read_keys(SyncTable *st, int kind, DestReceiver *dest,
				int nparams, const Oid *types, const Datum *values)
{
	Assert(kind >= 0 && kind < KEY_PLANS);
	run_plan(st, &plans_of(st)->by_key[kind], st->relid, make_key_plan, kind, dest,
			 nparams, types, values);
}

bool
plans_leaf_belongs(const SyncTable *st, Oid leaf)
{
	return leaf == st->relid ||
		(get_rel_relispartition(leaf) && list_member_oid(get_partition_ancestors(leaf), st->relid));
}

bool
plans_read_leaf(SyncTable *st, Oid leaf, bool keys_only, DestReceiver *dest,
				ItemPointer from, ItemPointer to)
{
	static const Oid types[2] = {TIDOID, TIDOID};
	Datum		values[2] = {PointerGetDatum(from), PointerGetDatum(to)};
	ReadPlans  *plans = plans_of(st);

	if (!plans_leaf_belongs(st, leaf))
		return false;
	run_plan(st, keys_only ? &plans->leaf_keys : &plans->leaf, leaf, make_leaf_plan,
			 keys_only ? KEY_PLAN_EXISTS : 0, dest, 2, types, values);
	return true;
}

void
plans_walk(SyncTable *st, const DocNode *node, DestReceiver *dest, Datum *const *values, int nvalues,
		   Oid leaf, ItemPointer from, ItemPointer to)
{
	ReadPlans  *plans = plans_of(st);
	int			n = list_length(node->up);
	bool		indexed = document_has_index(node->parent->relid, node->down);
	int			kind = node->no * 2 + (OidIsValid(leaf) ? 1 : 0);
	int			level = 0;
	Datum		params[INDEX_MAX_KEYS + 2];
	Oid			types[INDEX_MAX_KEYS + 2];

	if (plans->walks == NULL)
	{
		plans->walks = MemoryContextAllocZero(st->cxt, sizeof(ReadPlan) * 2 * st->def->doc->nnodes);
		plans->nwalks = 2 * st->def->doc->nnodes;
	}
	for (int i = 0; i < n; i++)
	{
		Oid			typid = getBaseType(get_atttype(node->relid, get_attnum(node->relid, list_nth(node->up, i))));
		int16		len;
		bool		byval;
		char		align;

		get_typlenbyvalalign(typid, &len, &byval, &align);
		types[i] = get_array_type(typid);
		params[i] = PointerGetDatum(construct_array(values[i], nvalues, typid, len, byval, align));
	}
	types[n] = types[n + 1] = TIDOID;
	params[n] = PointerGetDatum(from);
	params[n + 1] = PointerGetDatum(to);

	/* without an index each row of the parent would be compared with each value */
	if (!indexed)
	{
		level = NewGUCNestLevel();
		(void) set_config_option("enable_hashjoin", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	}
	run_plan(st, &plans->walks[kind], OidIsValid(leaf) ? leaf : st->relid, make_walk_plan, kind, dest,
			 OidIsValid(leaf) ? n + 2 : n, types, params);
	if (!indexed)
		AtEOXact_GUC(true, level);
}
