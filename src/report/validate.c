/*-------------------------------------------------------------------------
 *
 * validate.c
 *		Figures of both sides of a mirrored table beside each other: rows,
 *		values that are not NULL, the least and the greatest of each column,
 *		rows whose parent is not there.
 *
 * verify compares each row; this asks each side a question, so that a person
 * sees how much there is.  The source is read as the table's owner, in a
 * restricted operation, as its filter is code of his.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/relation.h"
#include "base/session.h"
#include "base/settings.h"
#include "base/text.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "mirror/mirror.h"
#include "shared/wake.h"
#include "target/target.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(crate_sync_validate);

#define COLUMNS_AT_ONCE 300		/* three figures each, and 1664 to a SELECT */
#define TOLERANCE		1e-9	/* relative, where one side's figure is a double */

/* one figure, of both sides */
typedef struct Figure
{
	const char *what;			/* rows, not null, min, max, without parent */
	char	   *column;			/* or NULL */
	char	   *note;			/* or NULL */
	bool		is_double;
	bool		is_text;
	char	   *source;			/* NULL: none */
	char	   *target;
} Figure;

typedef struct Validation
{
	MirrorSpec *spec;
	MirrorTable *table;
	const TargetOps *ops;
	Target	   *target;
	char	   *source_name;
	char	   *target_name;
	char	   *condition;		/* of the source, with its WHERE; or empty */
	List	   *figures;
} Validation;

static char *
name_in_target(const TargetOps *ops, const char *schema, const char *table)
{
	if (ops->sql_name != NULL)
		return ops->sql_name(schema, table);
	return psprintf("%s.%s", target_quote_ident(schema), target_quote_ident(table));
}

static Figure *
add_figure(Validation *v, const char *what, char *column)
{
	Figure	   *f = palloc0(sizeof(Figure));

	f->what = what;
	f->column = column;
	v->figures = lappend(v->figures, f);
	return f;
}

/* a JSON cell as text; NULL if it is null */
static char *
cell_text(const char *json)
{
	char	   *server = pg_any_to_server(json, strlen(json), PG_UTF8);
	Jsonb	   *jb = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(server)));
	JsonbValue	v;

	if (!JsonbExtractScalar(&jb->root, &v))
		return JsonbToCString(NULL, &jb->root, VARSIZE(jb));
	switch (v.type)
	{
		case jbvNull:
			return NULL;
		case jbvString:
			return pnstrdup(v.val.string.val, v.val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v.val.numeric)));
		default:
			return pstrdup(v.val.boolean ? "true" : "false");
	}
}

/* both sides' answer to a query of one row, into n figures from the given one on */
static void
ask_both(Validation *v, const char *source_sql, const char *target_sql, int first, int n)
{
	MemoryContext cxt = CurrentMemoryContext;
	TargetResult res;
	Elevation	pinned;
	Elevation	owner;

	elevate(&pinned);
	become_owner(&owner, v->table->owner);
	SPI_connect();
	if (SPI_execute(source_sql, true, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not read table \"%s\"", v->table->relname);
	for (int i = 0; i < n; i++)
	{
		Figure	   *f = list_nth(v->figures, first + i);
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i + 1);

		f->source = value ? MemoryContextStrdup(cxt, value) : NULL;
	}
	SPI_finish();
	be_oneself(&owner);
	descend(&pinned);

	memset(&res, 0, sizeof(res));
	v->ops->statement(v->target, target_sql, NULL, &res);
	CHECK_FOR_INTERRUPTS();
	if (res.outcome != TARGET_OK)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("the target did not answer: %s", res.message ? res.message : "no reason given"),
				 errdetail("Code %s.", res.code)));
	if (res.nrows != 1 || res.ncols < n)
		elog(ERROR, "the target gave an answer of another form");
	for (int i = 0; i < n; i++)
		((Figure *) list_nth(v->figures, first + i))->target = cell_text(res.cells[0][i]);
}

/* figures of some columns; the first time of the rows, too */
static void
ask_columns(Validation *v, int from, int to)
{
	StringInfoData s;
	StringInfoData t;
	int			first = list_length(v->figures);

	initStringInfo(&s);
	initStringInfo(&t);
	appendStringInfoString(&s, "SELECT ");
	appendStringInfoString(&t, "SELECT ");
	if (from == 0)
	{
		add_figure(v, "rows", NULL);
		appendStringInfoString(&s, "count(*)");
		appendStringInfoString(&t, "count(*)");
	}
	for (int i = from; i < to; i++)
	{
		MirrorColumn *col = &v->table->columns[i];
		Oid			typid = getBaseType(col->typid);
		const char *name = quote_identifier(col->name);
		const char *there = target_quote_ident(v->table->target.cols[i].name);
		bool		is_double = false;
		bool		is_text = false;
		bool		orders = true;
		char	   *filter = "";

		if (s.data[s.len - 1] != ' ')
		{
			appendStringInfoString(&s, ", ");
			appendStringInfoString(&t, ", ");
		}
		add_figure(v, "not null", col->name);
		appendStringInfo(&s, "count(%s)", name);
		appendStringInfo(&t, "count(%s)", there);

		/* the least and the greatest, where both sides order values alike */
		switch (col->map.kind)
		{
			case CELL_INT:
				orders = typid == INT2OID || typid == INT4OID || typid == INT8OID || typid == OIDOID;
				break;
			case CELL_FLOAT:
			case CELL_NUMERIC:
				orders = typid == INT2OID || typid == INT4OID || typid == INT8OID || typid == NUMERICOID ||
					typid == FLOAT4OID || typid == FLOAT8OID;
				is_double = true;
				break;
			case CELL_TIMESTAMP:
				orders = typid == TIMESTAMPOID || typid == TIMESTAMPTZOID || typid == DATEOID;
				filter = psprintf(" FILTER (WHERE isfinite(%s))", name);
				break;
			case CELL_TEXT:
				orders = typid == TEXTOID || typid == VARCHAROID;
				is_text = true;
				break;
			default:
				orders = false;
		}
		for (int k = 0; k < 2 && orders; k++)
		{
			const char *which = k == 0 ? "min" : "max";
			Figure	   *f = add_figure(v, which, col->name);

			f->is_double = is_double;
			f->is_text = is_text;
			if (col->map.kind == CELL_TIMESTAMP)
				f->note = "ms since 1970";
			appendStringInfoString(&s, ", ");
			appendStringInfoString(&t, ", ");
			/* the formats are ours, above */
			if (is_double)
			{
				appendStringInfo(&s, "%s(%s::double precision)::text", which, name);
				appendStringInfo(&t, "%s(CAST(%s AS DOUBLE PRECISION))", which, there);
			}
			else
			{
				if (col->map.kind == CELL_INT)
					appendStringInfo(&s, "%s(%s)::text", which, name);
				else if (is_text)
					appendStringInfo(&s, "%s(%s COLLATE \"C\")::text", which, name);
				else
					appendStringInfo(&s, "floor(extract(epoch FROM %s(%s)%s) * 1000)::bigint::text", which, name, filter);
				appendStringInfo(&t, "%s(%s)", which, there);
			}
		}
	}
	appendStringInfo(&s, " FROM %s%s", v->source_name, v->condition);
	appendStringInfo(&t, " FROM %s", v->target_name);
	ask_both(v, s.data, t.data, first, list_length(v->figures) - first);
}

/* the column's name in the target; NULL: it is not mirrored */
static char *
column_in_target(const MirrorTable *table, AttrNumber attnum)
{
	for (int i = 0; i < table->ncols; i++)
		if (table->columns[i].attnum == attnum)
			return table->target.cols[i].name;
	return NULL;
}

static MirrorTable *
resolve(Oid relid, MirrorSpec **spec)
{
	Elevation	e;
	List	   *specs;
	Relation	rel;
	MirrorTable *table;

	elevate(&e);
	specs = mirror_load(relid);
	descend(&e);
	if (specs == NIL)
		return NULL;
	*spec = linitial(specs);
	rel = try_relation_open(relid, AccessShareLock);
	if (rel == NULL)
		return NULL;
	table = mirror_resolve(rel, *spec);
	relation_close(rel, NoLock);
	return table;
}

/* rows whose parent is not there, for each foreign key to a table that is mirrored, too */
static void
ask_parents(Validation *v)
{
	Oid			relid = v->spec->relid;
	Oid			types[] = {OIDOID};
	Datum		args[] = {ObjectIdGetDatum(relid)};
	MemoryContext cxt = CurrentMemoryContext;
	Elevation	e;
	int			n;
	Oid		   *parents;
	ArrayType **from;
	ArrayType **to;
	char	  **names;

	SPI_connect();
	elevate(&e);
	if (SPI_execute_with_args("SELECT c.conname::pg_catalog.text, c.confrelid, c.conkey, c.confkey FROM pg_catalog.pg_constraint c"
							  " WHERE c.conrelid = $1 AND c.contype = 'f' ORDER BY c.conname",
							  1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read pg_constraint");
	descend(&e);
	n = SPI_processed;
	MemoryContextSwitchTo(cxt);
	parents = palloc(sizeof(Oid) * (n + 1));
	from = palloc(sizeof(ArrayType *) * (n + 1));
	to = palloc(sizeof(ArrayType *) * (n + 1));
	names = palloc(sizeof(char *) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		names[i] = pstrdup(SPI_getvalue(tup, desc, 1));
		parents[i] = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
		from[i] = DatumGetArrayTypePCopy(SPI_getbinval(tup, desc, 3, &isnull));
		to[i] = DatumGetArrayTypePCopy(SPI_getbinval(tup, desc, 4, &isnull));
	}
	SPI_finish();

	for (int i = 0; i < n; i++)
	{
		MirrorSpec *spec = NULL;
		MirrorTable *parent = resolve(parents[i], &spec);
		int			nkeys = ArrayGetNItems(ARR_NDIM(from[i]), ARR_DIMS(from[i]));
		int16	   *child_attnums = (int16 *) ARR_DATA_PTR(from[i]);
		int16	   *parent_attnums = (int16 *) ARR_DATA_PTR(to[i]);
		StringInfoData s;
		StringInfoData t;
		StringInfoData here;
		StringInfoData there;
		Figure	   *f;
		bool		usable = parent != NULL;
		char	   *first_parent = NULL;

		initStringInfo(&s);
		initStringInfo(&t);
		initStringInfo(&here);
		initStringInfo(&there);
		for (int k = 0; k < nkeys && usable; k++)
		{
			char	   *child_col = column_in_target(v->table, child_attnums[k]);
			char	   *parent_col = column_in_target(parent, parent_attnums[k]);

			usable = child_col != NULL && parent_col != NULL;
			if (!usable)
				break;
			if (k == 0)
				first_parent = target_quote_ident(parent_col);
			appendStringInfo(&there, "%sp.%s = c.%s", k > 0 ? " AND " : "", target_quote_ident(parent_col), target_quote_ident(child_col));
			appendStringInfo(&t, " AND c.%s IS NOT NULL", target_quote_ident(child_col));
			child_col = get_attname(relid, child_attnums[k], false);
			appendStringInfo(&s, "c.%s IS NOT NULL AND ", quote_identifier(child_col));
			appendStringInfo(&here, "%sp.%s = c.%s", k > 0 ? " AND " : "",
							 quote_identifier(get_attname(parents[i], parent_attnums[k], false)), quote_identifier(child_col));
		}
		if (!usable)
			continue;
		f = add_figure(v, "without parent", NULL);
		f->note = psprintf("%s, rows of %s%s", names[i],
						   quote_qualified_identifier(parent->schemaname, parent->relname),
						   spec->row_filter || spec->soft_delete_column ? ", which is mirrored in part" : "");
		ask_both(v, psprintf("SELECT count(*) FROM (SELECT * FROM %s%s) c WHERE %sNOT EXISTS (SELECT FROM %s p WHERE %s)",
							 v->source_name, v->condition, s.data,
							 quote_qualified_identifier(parent->schemaname, parent->relname), here.data),
				 psprintf("SELECT count(*) FROM %s c LEFT JOIN %s p ON %s WHERE p.%s IS NULL%s",
						  v->target_name, name_in_target(v->ops, spec->target_schema, spec->target_table),
						  there.data, first_parent, t.data),
				 list_length(v->figures) - 1, 1);
	}
}

/* do both figures say the same?  unsure: they cannot be told apart from an order of another kind */
static bool
agree(const Figure *f, bool *unsure)
{
	*unsure = false;
	if (f->source == NULL || f->target == NULL)
		return f->source == f->target;
	if (strcmp(f->source, f->target) == 0)
		return true;
	if (f->is_double)
	{
		double		a = strtod(f->source, NULL);
		double		b = strtod(f->target, NULL);

		return (isnan(a) && isnan(b)) || fabs(a - b) <= TOLERANCE * Max(fabs(a), fabs(b));
	}
	if (f->is_text && GetDatabaseEncoding() == PG_UTF8)
		/* CrateDB orders by UTF-16 units, in which what is beyond 0xFFFF comes earlier */
		for (int k = 0; k < 2; k++)
			for (const unsigned char *c = (const unsigned char *) (k ? f->source : f->target); *c; c++)
				if (*c >= 0xf0)
					*unsure = true;
	return false;
}

/* what of the table is on its way; NULL: nothing */
static char *
unsettled(Oid relid, int64 *failed)
{
	Oid			types[] = {OIDOID};
	Datum		args[] = {ObjectIdGetDatum(relid)};
	MemoryContext cxt = CurrentMemoryContext;
	char	   *result = NULL;
	Elevation	e;

	SPI_connect();
	elevate(&e);
	if (SPI_execute_with_args("SELECT CASE WHEN t.state IN ('new', 'loading', 'sweeping') THEN 'it is being loaded'"
							  " WHEN t.state NOT IN ('ready', 'verifying', 'differences') THEN 'it is ' OPERATOR(pg_catalog.||) t.state"
							  " WHEN t.queued_keys OPERATOR(pg_catalog.<>) 0 THEN t.queued_keys OPERATOR(pg_catalog.||) ' key(s) are queued' END,"
							  " t.n_failed_rows"
							  " FROM crate_sync.tables t WHERE t.relid = $1",
							  1, types, args, NULL, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.tables");
	if (SPI_processed == 1)
	{
		bool		isnull;
		char	   *why = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		*failed = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		if (why != NULL)
			result = MemoryContextStrdup(cxt, why);
	}
	descend(&e);
	SPI_finish();
	return result;
}

static void
put_row(ReturnSetInfo *rsinfo, const char *what, const char *column, const char *source,
		const char *target, int ok, const char *note)
{
	Datum		values[6];
	bool		nulls[6] = {false, column == NULL, source == NULL, target == NULL, ok < 0, note == NULL};
	NameData	name;

	values[0] = CStringGetTextDatum(what);
	if (column != NULL)
		namestrcpy(&name, column);
	values[1] = NameGetDatum(&name);
	values[2] = source ? CStringGetTextDatum(source) : (Datum) 0;
	values[3] = target ? CStringGetTextDatum(target) : (Datum) 0;
	values[4] = BoolGetDatum(ok > 0);
	values[5] = note ? CStringGetTextDatum(note) : (Datum) 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/* the figures, and what is to be said of them all; why: nothing is settled, as that is */
static void
tell(Validation *v, ReturnSetInfo *rsinfo, const char *why, int64 failed)
{
	int			n_bad = 0;
	ListCell   *lc;

	foreach(lc, v->figures)
	{
		Figure	   *f = lfirst(lc);
		bool		unsure;
		bool		ok = agree(f, &unsure);

		n_bad += !ok && !unsure;
		put_row(rsinfo, f->what, f->column, f->source, f->target, unsure ? -1 : ok,
				unsure ? "the two sides order such characters in different ways" : f->note);
	}
	put_row(rsinfo, "verdict", NULL, NULL, NULL, n_bad == 0 ? 1 : why ? -1 : 0,
			n_bad == 0 ? "all figures agree; crate_sync.verify compares each row" :
			why ? psprintf("%d figure(s) differ, but nothing is settled: %s", n_bad, why) :
			failed > 0 ?
			psprintf("%d figure(s) differ; " INT64_FORMAT " row(s) are in crate_sync.failed_rows", n_bad, failed) :
			psprintf("%d figure(s) differ; crate_sync.verify says which rows", n_bad));
}

Datum
crate_sync_validate(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			relid = PG_GETARG_OID(0);
	Validation	v = {0};
	char	   *why = NULL;
	char	   *before;
	char	   *after;
	int64		failed = 0;

	mirror_check_catalog();
	if (!cs_table_owner_ok(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)), get_rel_name(relid));
	v.table = resolve(relid, &v.spec);
	if (v.table == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not mirrored", get_rel_name(relid))));
	v.ops = target_ops_for(cs_target, &why);
	if (v.ops == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 why ? errmsg("crate_sync.target cannot be used: %s", why) : errmsg("no target is set"),
				 errhint("A superuser sets it: %s", cs_target_hint())));
	v.source_name = quote_qualified_identifier(v.table->schemaname, v.table->relname);
	v.target_name = name_in_target(v.ops, v.spec->target_schema, v.spec->target_table);
	v.condition = "";
	if (v.table->row_filter != NULL || v.table->soft_delete_attnum != 0)
	{
		StringInfoData where;

		initStringInfo(&where);
		appendStringInfoString(&where, " WHERE ");
		if (v.table->row_filter != NULL)
			appendStringInfo(&where, "(%s)", v.table->row_filter);
		if (v.table->soft_delete_attnum != 0)
			appendStringInfo(&where, v.table->soft_delete_type == BOOLOID ? "%s%s IS NOT TRUE" : "%s%s IS NULL",
							 v.table->row_filter ? " AND " : "", quote_identifier(v.spec->soft_delete_column));
		v.condition = where.data;
	}

	before = unsettled(relid, &failed);
	v.target = v.ops->open(cs_target);
	PG_TRY();
	{
		TargetResult res;

		/* what it has acknowledged is in its answers, too */
		memset(&res, 0, sizeof(res));
		if (v.ops->refresh != NULL)
			v.ops->refresh(v.target, &v.table->target, &res);
		for (int i = 0; i < v.table->ncols; i += COLUMNS_AT_ONCE)
			ask_columns(&v, i, Min(i + COLUMNS_AT_ONCE, v.table->ncols));
		ask_parents(&v);
	}
	PG_FINALLY();
	{
		v.target->ops->close(v.target);
	}
	PG_END_TRY();
	after = unsettled(relid, &failed);

	InitMaterializedSRF(fcinfo, 0);
	tell(&v, rsinfo, after ? after : before, failed);
	return (Datum) 0;
}
