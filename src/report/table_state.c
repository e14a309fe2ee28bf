/*-------------------------------------------------------------------------
 *
 * table_state.c
 *		In which state each mirrored table is, for the views status and tables.
 *
 * What the worker wrote down of a table is not all there is to be told: it may
 * be paused, its relation renamed or dropped, the worker away.  One state for
 * each table, that which is most in the way, with what to do about it.  Not in
 * the views themselves, as planning it would take longer than all else there.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/session.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mirror/mirror.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(crate_sync_table_states);

/* states that are trouble, the worst first; the others are the worker's own words */
static const char *const troubles[] = {
	"error", "renamed", "dropped", "incomplete", "detached", "differences", "paused"
};

static const char query[] =
"SELECT m.mirror_id, m.relid::pg_catalog.oid, m.follow = 'name', m.paused, "
"m.source_schema::pg_catalog.text, m.source_name::pg_catalog.text, "
"coalesce(s.state, 'new'), s.load_phase IN ('load', 'sweep'), s.due, s.n_differences, s.last_error, s.hint "
"FROM crate_sync.mirror m LEFT JOIN crate_sync.mirror_state s USING (mirror_id)";

typedef struct TableState
{
	int			mirror_id;
	Oid			relid;
	bool		follow_name;
	bool		paused;
	char	   *source_schema;
	char	   *source_name;
	char	   *state;			/* the worker's */
	bool		loading;
	char	   *due;
	int64		n_differences;	/* -1: not known */
	char	   *last_error;
	char	   *hint;

	bool		gone;
	char	   *schemaname;
	char	   *relname;
} TableState;

static int
compare_oids(const void *a, const void *b)
{
	return oid_cmp(a, b);
}

/* another table that is called as the mirrored one was when it was added */
static bool
name_is_taken(const TableState *t, const Oid *mirrored, int n)
{
	Oid			nsp;
	Oid			relid;
	char		relkind;

	if (t->source_name == NULL ||
		(!t->gone && strcmp(t->source_name, t->relname) == 0 && strcmp(t->source_schema, t->schemaname) == 0))
		return false;
	nsp = get_namespace_oid(t->source_schema, true);
	relid = OidIsValid(nsp) ? get_relname_relid(t->source_name, nsp) : InvalidOid;
	if (!OidIsValid(relid) || relid == t->relid)
		return false;
	relkind = get_rel_relkind(relid);
	return (relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE) &&
		bsearch(&relid, mirrored, n, sizeof(Oid), compare_oids) == NULL;
}

static const char *
judge(const TableState *t, const Oid *mirrored, int n)
{
	bool		error = strcmp(t->state, "error") == 0;

	/* a table that follows its name does so by itself, unless something is in the way */
	if ((!t->follow_name || error) && name_is_taken(t, mirrored, n))
		return "renamed";
	if (t->gone)
		return "dropped";
	if (t->paused)
		return "paused";
	if (error || strcmp(t->state, "detached") == 0 || strcmp(t->state, "incomplete") == 0)
		return t->state;
	if (t->due != NULL && !t->loading && strcmp(t->state, "new") != 0)
		return "incomplete";
	if (t->n_differences > 0 && !t->loading)
		return "differences";
	return t->state;
}

static char *
qualified(const char *schema, const char *name, Oid relid)
{
	if (schema == NULL || name == NULL)
		return psprintf("%u", relid);
	return quote_qualified_identifier(schema, name);
}

/* was no other one called so as well?  Else nobody knows whose place the name's table would take. */
static bool
is_alone(const TableState *t, const TableState *tables, int n)
{
	for (int i = 0; i < n; i++)
	{
		const TableState *o = &tables[i];

		if (o != t && o->source_name != NULL && strcmp(o->source_name, t->source_name) == 0 &&
			strcmp(o->source_schema, t->source_schema) == 0)
			return false;
	}
	return true;
}

/* one mirrored table's trouble in words; each statement of a hint can be pasted, and the whole does no harm */
static void
explain(const TableState *t, const char *state, bool alone, char **message, char **hint)
{
	char	   *name = qualified(t->schemaname, t->relname, t->relid);
	char	   *former = qualified(t->source_schema, t->source_name, t->relid);

	*message = *hint = NULL;
	if (strcmp(state, "error") == 0)
	{
		*message = psprintf("%s: %s", name, t->last_error ? t->last_error : "no reason given");
		*hint = t->hint;
	}
	else if (strcmp(state, "renamed") == 0)
	{
		char	   *keep = t->gone ? psprintf("remove_table(%u)", t->relid) :
			psprintf("keep_table(%s)", quote_literal_cstr(name));

		*message = psprintf("%s %s, and another table, which is not mirrored, has its name%s%s", former,
							t->gone ? "was dropped" : psprintf("is called %s now", name),
							t->follow_name && t->last_error ? ": " : "",
							t->follow_name && t->last_error ? t->last_error : "");
		*hint = alone ?
			psprintf("Either SELECT crate_sync.follow_name(%s); or SELECT crate_sync.%s;",
					 quote_literal_cstr(former), keep) :
			psprintf("SELECT crate_sync.%s;", keep);
	}
	else if (strcmp(state, "dropped") == 0 && t->follow_name)
	{
		*message = psprintf("%s was dropped, and no table has its name", former);
		*hint = psprintf("Make a table of that name, or SELECT crate_sync.remove_table(%u);", t->relid);
	}
	else if (strcmp(state, "dropped") == 0)
		*message = psprintf("%s was dropped: it leaves the catalog as soon as the worker sees it", former);
	else if (strcmp(state, "incomplete") == 0)
	{
		*message = psprintf("%s: %s", name, t->due ? t->due : "its load was cancelled");
		*hint = psprintf("SELECT crate_sync.resync(%s);", quote_literal_cstr(name));
	}
	else if (strcmp(state, "detached") == 0)
	{
		*message = psprintf("%s: it queues nothing since the queue was full", name);
		*hint = "It is loaded anew by itself when the target takes rows again.";
	}
	else if (strcmp(state, "differences") == 0)
	{
		*message = psprintf("%s had " INT64_FORMAT " difference(s) from its target table, which verify found and nothing has mended since",
							name, t->n_differences);
		*hint = psprintf("See crate_sync.differences, then SELECT crate_sync.verify(%s, repair => true);",
						 quote_literal_cstr(name));
	}
	else if (strcmp(state, "paused") == 0)
	{
		*message = psprintf("%s is paused", name);
		*hint = psprintf("SELECT crate_sync.resume(%s);", quote_literal_cstr(name));
	}
}

static void
read_table(int row, TableState *t)
{
	HeapTuple	tup = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	HeapTuple	rel;
	Datum		d;
	bool		isnull;

	t->mirror_id = DatumGetInt32(SPI_getbinval(tup, desc, 1, &isnull));
	t->relid = DatumGetObjectId(SPI_getbinval(tup, desc, 2, &isnull));
	t->follow_name = DatumGetBool(SPI_getbinval(tup, desc, 3, &isnull));
	t->paused = DatumGetBool(SPI_getbinval(tup, desc, 4, &isnull));
	t->source_schema = SPI_getvalue(tup, desc, 5);
	t->source_name = SPI_getvalue(tup, desc, 6);
	t->state = SPI_getvalue(tup, desc, 7);
	d = SPI_getbinval(tup, desc, 8, &isnull);
	t->loading = !isnull && DatumGetBool(d);
	t->due = SPI_getvalue(tup, desc, 9);
	d = SPI_getbinval(tup, desc, 10, &isnull);
	t->n_differences = isnull ? -1 : DatumGetInt64(d);
	t->last_error = SPI_getvalue(tup, desc, 11);
	t->hint = SPI_getvalue(tup, desc, 12);

	rel = SearchSysCache1(RELOID, ObjectIdGetDatum(t->relid));
	t->gone = !HeapTupleIsValid(rel);
	t->schemaname = t->source_schema;
	t->relname = t->source_name;
	if (!t->gone)
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(rel);

		t->schemaname = get_namespace_name(form->relnamespace);
		t->relname = pstrdup(NameStr(form->relname));
		ReleaseSysCache(rel);
	}
}

Datum
crate_sync_table_states(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Elevation	e;
	TableState *tables;
	Oid		   *mirrored;
	int			n;

	InitMaterializedSRF(fcinfo, 0);
	elevate(&e);
	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare(query, 0, NULL);
		if (plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		SPI_keepplan(plan);
	}
	if (SPI_execute_plan(plan, NULL, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.mirror");

	n = SPI_processed;
	tables = palloc(sizeof(TableState) * (n + 1));
	mirrored = palloc(sizeof(Oid) * (n + 1));
	for (int i = 0; i < n; i++)
	{
		read_table(i, &tables[i]);
		mirrored[i] = tables[i].relid;
	}
	qsort(mirrored, n, sizeof(Oid), compare_oids);
	for (int i = 0; i < n; i++)
	{
		TableState *t = &tables[i];
		const char *state = judge(t, mirrored, n);
		int			trouble = 0;
		char	   *message;
		char	   *hint;
		Datum		values[8];
		bool		nulls[8] = {0};

		while (trouble < lengthof(troubles) && strcmp(troubles[trouble], state) != 0)
			trouble++;
		explain(t, state, strcmp(state, "renamed") != 0 || is_alone(t, tables, n), &message, &hint);
		values[0] = Int32GetDatum(t->mirror_id);
		nulls[1] = t->schemaname == NULL;
		values[1] = nulls[1] ? (Datum) 0 : DirectFunctionCall1(namein, CStringGetDatum(t->schemaname));
		nulls[2] = t->relname == NULL;
		values[2] = nulls[2] ? (Datum) 0 : DirectFunctionCall1(namein, CStringGetDatum(t->relname));
		values[3] = CStringGetTextDatum(state);
		values[4] = Int32GetDatum(trouble);
		nulls[4] = trouble == lengthof(troubles);
		nulls[5] = message == NULL;
		values[5] = nulls[5] ? (Datum) 0 : CStringGetTextDatum(message);
		nulls[6] = hint == NULL;
		values[6] = nulls[6] ? (Datum) 0 : CStringGetTextDatum(hint);
		values[7] = Int64GetDatum(t->n_differences);
		nulls[7] = t->n_differences < 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	SPI_finish();
	descend(&e);
	return (Datum) 0;
}
