/*-------------------------------------------------------------------------
 *
 * benchmark.c
 *		Questions to the target from SQL: target_query(), benchmark() and its
 *		chart.
 *
 * They run in the caller's backend with a target of their own, apart from the
 * worker's.  The source is asked as the calling user, read-only; what the
 * target may be asked is for its own rights and for EXECUTE on these
 * functions to say.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "base/session.h"
#include "base/settings.h"
#include "base/text.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "mirror/mirror.h"
#include "nodes/nodeFuncs.h"
#include "parser/parser.h"
#include "parser/scansup.h"
#include "portability/instr_time.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"

#include "mirror/types.h"
#include "shared/wake.h"
#include "target/target.h"

PG_FUNCTION_INFO_V1(crate_sync_target_query);
PG_FUNCTION_INFO_V1(crate_sync_benchmark);
PG_FUNCTION_INFO_V1(crate_sync_benchmark_chart);

#define MAX_ANSWER_ROWS		1000000 /* both answers are compared in memory */
#define MAX_ITERATIONS		100000
#define FLOAT_TOLERANCE		1e-9	/* relative: sums depend on their order */
#define SHOWN_BYTES			200		/* of a value, in a mismatch */

/* ---------------------------------------------------------------------------
 * The target
 * ------------------------------------------------------------------------ */

/* which target is set; errors: ereport */
static const TargetOps *
target_ops(void)
{
	char	   *why = NULL;
	const TargetOps *ops = target_ops_for(cs_target, &why);

	if (ops == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 why ? errmsg("crate_sync.target cannot be used: %s", why) :
				 errmsg("no target is set"),
				 errhint("A superuser sets it: %s", cs_target_hint())));
	return ops;
}

/* ereports unless res is fine; what: the statement, the target */
static void
check_result(const TargetResult *res, const char *what)
{
	const char *message = res->message ? res->message : "no reason given";

	CHECK_FOR_INTERRUPTS();
	switch (res->outcome)
	{
		case TARGET_OK:
			return;
		case TARGET_UNREACHABLE:
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the target cannot be reached: %s", message)));
			break;
		case TARGET_UNKNOWN:
			ereport(ERROR,
					(errcode(ERRCODE_CONNECTION_FAILURE),
					 errmsg("the target gave no answer: %s", message),
					 errdetail("It may carry out %s all the same.", what)));
			break;
		case TARGET_BUSY:
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("the target could not carry out %s now: %s", what, message),
					 errdetail("Code %s.", res->code)));
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
					 errmsg("the target refused %s: %s", what, message),
					 errdetail("Code %s.", res->code),
					 strcmp(what, "the query") == 0 ?
					 errhint("Where the target wants other words than PostgreSQL, pass its query as target_sql.") : 0));
	}
}

/* UTF-8 JSON as jsonb */
static Jsonb *
json_to_jsonb(const char *json)
{
	char	   *server = pg_any_to_server(json, strlen(json), PG_UTF8);

	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(server)));
}

/* a row of the answer as an object; a name that comes again gets a number */
static Jsonb *
row_to_jsonb(const TargetResult *res, int row)
{
	StringInfoData buf;
	Jsonb	   *result;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '{');
	for (int i = 0; i < res->ncols; i++)
	{
		char	   *name = res->colnames[i];
		int			same = 1;

		for (int j = 0; j < i; j++)
			if (strcmp(res->colnames[j], name) == 0)
				same++;
		if (same > 1)
			name = psprintf("%s_%d", name, same);
		if (i > 0)
			appendStringInfoChar(&buf, ',');
		types_json_string(&buf, name, strlen(name));
		appendStringInfoChar(&buf, ':');
		appendStringInfoString(&buf, res->cells[row][i]);
	}
	appendStringInfoChar(&buf, '}');
	result = json_to_jsonb(buf.data);
	pfree(buf.data);
	return result;
}

/* one statement over a connection of its own; errors: ereport */
static pg_noinline void
ask_once(const char *sql, const char *args_json, TargetResult *res)
{
	Target	   *t = target_ops()->open(cs_target);

	PG_TRY();
	{
		t->ops->statement(t, sql, args_json, res);
		check_result(res, "the statement");
	}
	PG_FINALLY();
	{
		t->ops->close(t);
	}
	PG_END_TRY();
}

Datum
crate_sync_target_query(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	TargetResult *res;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext oldcxt;
		char	   *sql;
		char	   *args = NULL;

		funcctx = SRF_FIRSTCALL_INIT();
		if (PG_ARGISNULL(0))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("statement must not be null")));
		oldcxt = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
		if (!PG_ARGISNULL(1))
		{
			Jsonb	   *jb = PG_GETARG_JSONB_P(1);

			if (!JB_ROOT_IS_ARRAY(jb) || JB_ROOT_IS_SCALAR(jb))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("args must be a JSON array"),
						 errhint("One element for each parameter, as in '[1, \"a\"]'.")));
			args = JsonbToCString(NULL, &jb->root, VARSIZE(jb));
			args = pg_server_to_any(args, strlen(args), PG_UTF8);
		}
		res = palloc0(sizeof(TargetResult));
		ask_once(sql, args, res);
		/* a statement without an answer, such as DDL, may come with an empty row */
		if (res->ncols == 0)
			res->nrows = 0;
		funcctx->user_fctx = res;
		MemoryContextSwitchTo(oldcxt);
	}

	funcctx = SRF_PERCALL_SETUP();
	res = funcctx->user_fctx;
	if (funcctx->call_cntr < res->nrows)
	{
		Jsonb	   *row = row_to_jsonb(res, funcctx->call_cntr);

		SRF_RETURN_NEXT(funcctx, JsonbPGetDatum(row));
	}
	SRF_RETURN_DONE(funcctx);
}

/* ---------------------------------------------------------------------------
 * The same question in the target's names
 * ------------------------------------------------------------------------ */

/* a piece of the query to be replaced */
typedef struct Edit
{
	int			start;
	int			end;
	char	   *text;
} Edit;

typedef struct QueryNames
{
	List	   *rangevars;		/* of RangeVar * */
	List	   *columnrefs;		/* of ColumnRef * */
	List	   *ctes;			/* of char *: names of WITH queries */
} QueryNames;

static bool
collect_names(Node *node, void *context)
{
	QueryNames *names = context;

	if (node == NULL)
		return false;
	if (IsA(node, RangeVar))
		names->rangevars = lappend(names->rangevars, node);
	else if (IsA(node, ColumnRef))
	{
		names->columnrefs = lappend(names->columnrefs, node);
		return false;
	}
	else if (IsA(node, CommonTableExpr))
		names->ctes = lappend(names->ctes, ((CommonTableExpr *) node)->ctename);
	return raw_expression_tree_walker(node, collect_names, context);
}

/*
 * The end of a name of so many parts that begins at sql[pos], -1 if it is not
 * written as plainly as that.  The parser has accepted it already.
 */
static int
name_end(const char *sql, int pos, int nparts)
{
	while (nparts > 0)
	{
		if (sql[pos] == '"')
		{
			pos++;
			while (sql[pos] && (sql[pos] != '"' || sql[pos + 1] == '"'))
				pos += sql[pos] == '"' ? 2 : 1;
			if (sql[pos++] != '"')
				return -1;
		}
		else
		{
			int			start = pos;

			while (isalnum((unsigned char) sql[pos]) || sql[pos] == '_' || sql[pos] == '$' ||
				   IS_HIGHBIT_SET(sql[pos]))
				pos++;
			if (pos == start || sql[pos] == '&')	/* U&"..." */
				return -1;
		}
		if (--nparts > 0)
		{
			pos += strspn(sql + pos, " \t\r\n");
			if (sql[pos++] != '.')
				return -1;
			pos += strspn(sql + pos, " \t\r\n");
		}
	}
	return pos;
}

static int
compare_edits(const ListCell *a, const ListCell *b)
{
	return ((Edit *) lfirst(a))->start - ((Edit *) lfirst(b))->start;
}

static List *
add_edit(List *edits, const char *sql, int start, int nparts, char *text)
{
	Edit	   *edit = palloc(sizeof(Edit));

	edit->start = start;
	edit->end = name_end(sql, start, nparts);
	edit->text = text;
	if (start < 0 || edit->end < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a table's name in the query cannot be replaced by the target's"),
				 errhint("Pass the target's query as target_sql.")));
	return lappend(edits, edit);
}

/* is it the name of a query in WITH? */
static bool
is_cte(const QueryNames *names, const RangeVar *rv)
{
	ListCell   *lc;

	if (rv->schemaname)
		return false;
	foreach(lc, names->ctes)
		if (strcmp(lfirst(lc), rv->relname) == 0)
			return true;
	return false;
}

/* checks that the query is one SELECT; its tree, and its text without ';' */
static SelectStmt *
parse_query(char **query)
{
	List	   *stmts = raw_parser(*query, RAW_PARSE_DEFAULT);
	RawStmt    *raw;
	WithClause *with;
	ListCell   *lc;
	int			len;

	if (list_length(stmts) != 1 || !IsA(linitial_node(RawStmt, stmts)->stmt, SelectStmt) ||
		castNode(SelectStmt, linitial_node(RawStmt, stmts)->stmt)->intoClause)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the query to be timed must be one SELECT")));
	raw = linitial_node(RawStmt, stmts);
	with = castNode(SelectStmt, raw->stmt)->withClause;
	foreach(lc, with ? with->ctes : NIL)
		if (!IsA(lfirst_node(CommonTableExpr, lc)->ctequery, SelectStmt))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the query to be timed must change nothing")));
	len = raw->stmt_len > 0 ? raw->stmt_location + raw->stmt_len : strlen(*query);
	while (len > 0 && scanner_isspace((*query)[len - 1]))
		len--;
	*query = pnstrdup(*query, len);
	return castNode(SelectStmt, raw->stmt);
}

/*
 * The query with the names of mirrored tables replaced by the target's; *note
 * tells which of them have not all of their rows there, or is NULL.
 * Where the query gives a table no alias it gets its own name as one, since
 * columns may be qualified by it.
 */
static char *
translate_query(const char *query, SelectStmt *stmt, const TargetOps *ops, char **note)
{
	QueryNames	names = {0};
	List	   *specs;
	List	   *edits = NIL;
	List	   *renamed = NIL;
	ListCell   *lc;
	Elevation	e;
	StringInfoData buf;
	int			pos = 0;

	(void) collect_names((Node *) stmt, &names);
	elevate(&e);
	specs = mirror_load(InvalidOid);
	descend(&e);

	foreach(lc, names.rangevars)
	{
		RangeVar   *rv = lfirst(lc);
		Oid			relid;
		ListCell   *lc2;
		bool		mirrored = false;

		if (is_cte(&names, rv))
			continue;
		relid = RangeVarGetRelid(rv, NoLock, true);
		foreach(lc2, specs)
		{
			MirrorSpec *spec = lfirst(lc2);
			char	   *name;

			if (spec->relid != relid)
				continue;
			mirrored = true;
			if (spec->row_filter != NULL || spec->soft_delete_column != NULL)
				*note = psprintf("%s is mirrored with a %s", rv->relname,
								 spec->row_filter ? "row filter" : "soft_delete_column");
			name = ops->sql_name ? ops->sql_name(spec->target_schema, spec->target_table) :
				psprintf("%s.%s", target_quote_ident(spec->target_schema),
						 target_quote_ident(spec->target_table));
			if (rv->alias == NULL)
				name = psprintf("%s AS %s", name, target_quote_ident(rv->relname));
			edits = add_edit(edits, query, rv->location,
							 1 + (rv->schemaname != NULL) + (rv->catalogname != NULL), name);
			if (rv->alias == NULL && rv->schemaname)
				renamed = lappend(renamed, rv);
		}
		/* what PostgreSQL brings along the target may have, too */
		if (!mirrored && OidIsValid(relid) && relid >= FirstNormalObjectId)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("\"%s\" is not mirrored", rv->relname),
					 errhint("Mirror it, or pass the target's query as target_sql.")));
	}

	/* schema.table.column: the alias takes the place of schema.table */
	foreach(lc, names.columnrefs)
	{
		ColumnRef  *ref = lfirst(lc);
		ListCell   *lc2;

		if (list_length(ref->fields) != 3)
			continue;
		foreach(lc2, renamed)
		{
			RangeVar   *rv = lfirst(lc2);

			if (strcmp(strVal(linitial(ref->fields)), rv->schemaname) == 0 &&
				strcmp(strVal(lsecond(ref->fields)), rv->relname) == 0)
			{
				edits = add_edit(edits, query, ref->location, 2,
								 target_quote_ident(rv->relname));
				break;
			}
		}
	}

	list_sort(edits, compare_edits);
	initStringInfo(&buf);
	foreach(lc, edits)
	{
		Edit	   *edit = lfirst(lc);

		if (edit->start < pos)
			continue;
		appendBinaryStringInfo(&buf, query + pos, edit->start - pos);
		appendStringInfoString(&buf, edit->text);
		pos = edit->end;
	}
	appendStringInfoString(&buf, query + pos);
	return buf.data;
}

/* ---------------------------------------------------------------------------
 * Do the answers agree?
 * ------------------------------------------------------------------------ */

typedef enum ValueKind
{
	VALUE_NULL, VALUE_BOOL, VALUE_NUMBER, VALUE_STRING, VALUE_JSON
} ValueKind;

/* a cell of either side */
typedef struct CellValue
{
	ValueKind	kind;
	bool		boolean;
	double		number;
	Numeric		numeric;		/* the same, exactly */
	char	   *string;
	int			len;
	Jsonb	   *json;
} CellValue;

typedef struct Answer
{
	int			ncols;
	int64		nrows;
	CellValue **rows;
} Answer;

typedef struct AnswerColumn
{
	char	   *name;
	CellKind	kind;
	bool		approximate;	/* a float, or a sum or mean of who knows what */
	bool		boolean;
	CellEncoder enc;
} AnswerColumn;

static void
set_number(CellValue *v, Datum numeric)
{
	v->kind = VALUE_NUMBER;
	v->numeric = DatumGetNumeric(numeric);
	v->number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, numeric));
}

/* a string that holds a number, where the source says it is one */
static void
number_from_string(CellValue *v)
{
	char	   *s = pnstrdup(v->string, v->len);
	char	   *end;

	if (*s && strspn(s, "0123456789+-.eE") == v->len)
	{
		(void) strtod(s, &end);
		if (*end == '\0')
			set_number(v, DirectFunctionCall3(numeric_in, CStringGetDatum(s),
											  ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	pfree(s);
}

/* json is UTF-8 */
static void
read_value(CellValue *v, const char *json, const AnswerColumn *col)
{
	Jsonb	   *jb = json_to_jsonb(json);
	JsonbValue	scalar;

	memset(v, 0, sizeof(*v));
	if (!JsonbExtractScalar(&jb->root, &scalar))
	{
		v->kind = VALUE_JSON;
		v->json = jb;
		return;
	}
	switch (scalar.type)
	{
		case jbvBool:
			v->kind = VALUE_BOOL;
			v->boolean = scalar.val.boolean;
			break;
		case jbvNumeric:
			set_number(v, NumericGetDatum(scalar.val.numeric));
			/* SQLite has no booleans */
			if (col->boolean && (v->number == 0 || v->number == 1))
			{
				v->kind = VALUE_BOOL;
				v->boolean = v->number == 1;
			}
			break;
		case jbvString:
			v->kind = VALUE_STRING;
			v->string = scalar.val.string.val;
			v->len = scalar.val.string.len;
			if (col->approximate)
				number_from_string(v);
			break;
		default:
			v->kind = VALUE_NULL;
	}
}

static int
compare_values(const CellValue *a, const CellValue *b)
{
	int			c;

	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	switch (a->kind)
	{
		case VALUE_BOOL:
			return (int) a->boolean - (int) b->boolean;
		case VALUE_NUMBER:
			return DatumGetInt32(DirectFunctionCall2(numeric_cmp, NumericGetDatum(a->numeric),
													 NumericGetDatum(b->numeric)));
		case VALUE_STRING:
			c = memcmp(a->string, b->string, Min(a->len, b->len));
			return c ? c : (a->len > b->len) - (a->len < b->len);
		case VALUE_JSON:
			return compareJsonbContainers(&a->json->root, &b->json->root);
		default:
			return 0;
	}
}

static bool
values_agree(const CellValue *a, const CellValue *b, const AnswerColumn *col)
{
	if (a->kind == VALUE_NUMBER && b->kind == VALUE_NUMBER && col->approximate &&
		fabs(a->number - b->number) <= FLOAT_TOLERANCE * Max(fabs(a->number), fabs(b->number)))
		return true;
	return compare_values(a, b) == 0;
}

typedef struct SortContext
{
	int			ncols;
	const AnswerColumn *cols;
} SortContext;

/* exact columns first, lest the last digit of a float changes the order */
static int
compare_rows(const void *a, const void *b, void *arg)
{
	const CellValue *ra = *(CellValue *const *) a;
	const CellValue *rb = *(CellValue *const *) b;
	const SortContext *ctx = arg;

	for (int approximate = 0; approximate <= 1; approximate++)
		for (int i = 0; i < ctx->ncols; i++)
		{
			int			c = ctx->cols[i].approximate == approximate ?
				compare_values(&ra[i], &rb[i]) : 0;

			if (c != 0)
				return c;
		}
	return 0;
}

/* for a message: bounded, one line; palloc'd */
static char *
shown(const char *json)
{
	char	   *text = target_clean_text(json, strlen(json));
	int			len = strlen(text);

	if (len > SHOWN_BYTES)
		text[pg_mbcliplen(text, len, SHOWN_BYTES)] = '\0';
	return text;
}

static char *
shown_value(const CellValue *v)
{
	switch (v->kind)
	{
		case VALUE_BOOL:
			return v->boolean ? "true" : "false";
		case VALUE_NUMBER:
			return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v->numeric)));
		case VALUE_STRING:
			return shown(psprintf("\"%s\"", pnstrdup(v->string, v->len)));
		case VALUE_JSON:
			return shown(JsonbToCString(NULL, &v->json->root, VARSIZE(v->json)));
		default:
			return "null";
	}
}

/* row by row; says how many and which differ; NULL if none does */
static char *
compare_in_order(const Answer *s, const Answer *t, const AnswerColumn *cols)
{
	int64		differing = 0;
	char	   *first = NULL;

	for (int64 row = 0; row < s->nrows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < s->ncols; i++)
		{
			const CellValue *a = &s->rows[row][i];
			const CellValue *b = &t->rows[row][i];

			if (values_agree(a, b, &cols[i]))
				continue;
			if (!first)
				first = psprintf("column \"%s\": source %s, target %s", cols[i].name,
								 shown_value(a), shown_value(b));
			differing++;
			break;
		}
	}
	if (differing == 0)
		return NULL;
	return psprintf(INT64_FORMAT " of " INT64_FORMAT " rows differ, first in %s",
					differing, s->nrows, first);
}

/* NULL if the answers agree, else how they do not */
static char *
compare_answers(Answer *s, Answer *t, const AnswerColumn *cols, bool ordered)
{
	SortContext ctx = {s->ncols, cols};
	char	   *mismatch;

	if (s->ncols != t->ncols && t->nrows > 0)
		return psprintf("the source gives %d columns, the target %d", s->ncols, t->ncols);
	if (s->nrows != t->nrows)
		return psprintf("the source gives " INT64_FORMAT " rows, the target " INT64_FORMAT,
						s->nrows, t->nrows);
	if (ordered)
	{
		mismatch = compare_in_order(s, t, cols);
		if (!mismatch)
			return NULL;
	}
	qsort_arg(s->rows, s->nrows, sizeof(CellValue *), compare_rows, &ctx);
	qsort_arg(t->rows, t->nrows, sizeof(CellValue *), compare_rows, &ctx);
	mismatch = compare_in_order(s, t, cols);
	if (!mismatch && ordered)
		mismatch = "the same rows in another order (equal sort keys, or another collation)";
	return mismatch;
}

/* how values of the answer's columns are compared */
static AnswerColumn *
describe_columns(TupleDesc desc)
{
	AnswerColumn *cols = palloc0(sizeof(AnswerColumn) * Max(desc->natts, 1));

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid			type = getBaseType(att->atttypid);
		TypeMapping map;

		cols[i].name = pstrdup(NameStr(att->attname));
		/* documents are compared as such, not as text */
		types_map(cols[i].name, att->atttypid, att->atttypmod, false,
				  type == JSONOID || type == JSONBOID ? "OBJECT(IGNORED)" : NULL, &map);
		types_encoder(att->atttypid, att->atttypmod, &map, &cols[i].enc);
		cols[i].kind = map.kind;
		cols[i].boolean = map.kind == CELL_BOOL;
		cols[i].approximate = type == FLOAT4OID || type == FLOAT8OID || type == NUMERICOID;
	}
	return cols;
}

static void
read_source(SPITupleTable *table, uint64 nrows, AnswerColumn *cols, Answer *answer)
{
	TupleDesc	desc = table->tupdesc;
	StringInfoData buf;
	int			level = mirror_fixed_settings();

	initStringInfo(&buf);
	answer->ncols = desc->natts;
	answer->nrows = nrows;
	answer->rows = palloc_extended(sizeof(CellValue *) * Max(nrows, 1), MCXT_ALLOC_HUGE);
	for (uint64 row = 0; row < nrows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		answer->rows[row] = palloc(sizeof(CellValue) * Max(desc->natts, 1));
		for (int i = 0; i < desc->natts; i++)
		{
			bool		isnull;
			Datum		d = SPI_getbinval(table->vals[row], desc, i + 1, &isnull);

			resetStringInfo(&buf);
			if (isnull)
				appendStringInfoString(&buf, "null");
			else
				cols[i].enc.encode(&buf, d, &cols[i].enc);
			read_value(&answer->rows[row][i], buf.data, &cols[i]);
		}
	}
	AtEOXact_GUC(true, level);
}

static void
read_target(const TargetResult *res, const AnswerColumn *cols, int ncols, Answer *answer)
{
	answer->ncols = res->ncols;
	answer->nrows = res->nrows;
	if (res->ncols != ncols)
		return;					/* nothing to compare */
	answer->rows = palloc_extended(sizeof(CellValue *) * Max(res->nrows, 1), MCXT_ALLOC_HUGE);
	for (int row = 0; row < res->nrows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		answer->rows[row] = palloc(sizeof(CellValue) * Max(ncols, 1));
		for (int i = 0; i < ncols; i++)
		{
			CellValue  *v = &answer->rows[row][i];

			read_value(v, res->cells[row][i], &cols[i]);

			/* SQLite keeps documents and arrays as their text */
			if (v->kind == VALUE_STRING && v->len > 0 &&
				(cols[i].kind == CELL_JSON || cols[i].kind == CELL_ARRAY) &&
				strchr("[{", v->string[0]))
			{
				CellValue	inner;

				read_value(&inner, pg_server_to_any(pnstrdup(v->string, v->len), v->len, PG_UTF8),
						   &cols[i]);
				*v = inner;
			}
		}
	}
}

/* ---------------------------------------------------------------------------
 * benchmark()
 * ------------------------------------------------------------------------ */

typedef struct Timing
{
	double	   *ms;
	int			n;
	double		min;
	double		mean;
	double		p50;
	double		p95;
} Timing;

static int
compare_doubles(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
summarize(Timing *t)
{
	double		sum = 0;

	qsort(t->ms, t->n, sizeof(double), compare_doubles);
	for (int i = 0; i < t->n; i++)
		sum += t->ms[i];
	t->min = t->ms[0];
	t->mean = sum / t->n;
	t->p50 = (t->ms[(t->n - 1) / 2] + t->ms[t->n / 2]) / 2;
	t->p95 = t->ms[(int) ceil(0.95 * t->n) - 1];
}

typedef struct Run
{
	SPIPlanPtr	plan;
	const TargetOps *ops;
	Target	   *target;
	char	   *target_sql;
	char	   *note;			/* why answers may differ, or NULL */
	int			iterations;
	int			warmup;
	bool		ordered;

	Timing		source;
	Timing		answer;			/* the target's, as seen from here */
	Timing		server;			/* the target's, as it says itself; n may be 0 */
	int64		source_rows;
	int64		target_rows;
	char	   *mismatch;
	TargetInfo	info;
} Run;

static double
ask_source(Run *run)
{
	instr_time	start,
				end;

	INSTR_TIME_SET_CURRENT(start);
	if (SPI_execute_plan(run->plan, NULL, NULL, true, MAX_ANSWER_ROWS + 1) != SPI_OK_SELECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the query to be timed must be one SELECT")));
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	if (SPI_processed > MAX_ANSWER_ROWS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the query gives more than %d rows", MAX_ANSWER_ROWS),
				 errhint("Aggregate, or put a LIMIT and an ORDER BY on it.")));
	return INSTR_TIME_GET_MILLISEC(end);
}

static double
ask_target(Run *run, TargetResult *res)
{
	instr_time	start,
				end;

	memset(res, 0, sizeof(*res));
	INSTR_TIME_SET_CURRENT(start);
	run->target->ops->statement(run->target, run->target_sql, NULL, res);
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	check_result(res, "the query");
	return INSTR_TIME_GET_MILLISEC(end);
}

/*
 * Both sides in turn, so that what else the machine does meets both alike;
 * the answers of the last turn are compared.
 */
static void
measure(Run *run)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "crate_sync benchmark",
											  ALLOCSET_DEFAULT_SIZES);
	MemoryContext oldcxt;
	TargetResult res;

	run->target->ops->check(run->target, &run->info, &res);
	check_result(&res, "the connection");

	for (int i = -run->warmup; i < run->iterations; i++)
	{
		bool		last = i == run->iterations - 1;
		SPITupleTable *table;
		uint64		nrows;
		double		ms;

		CHECK_FOR_INTERRUPTS();
		ms = ask_source(run);
		table = SPI_tuptable;
		nrows = SPI_processed;
		if (i >= 0)
			run->source.ms[run->source.n++] = ms;

		oldcxt = MemoryContextSwitchTo(cxt);
		if (!last)
			SPI_freetuptable(table);
		ms = ask_target(run, &res);
		if (i >= 0)
		{
			run->answer.ms[run->answer.n++] = ms;
			if (res.server_time >= 0)
				run->server.ms[run->server.n++] = res.server_time;
		}
		if (last)
		{
			Answer		s = {0};
			Answer		t = {0};
			AnswerColumn *cols = describe_columns(table->tupdesc);

			read_source(table, nrows, cols, &s);
			read_target(&res, cols, s.ncols, &t);
			run->source_rows = s.nrows;
			run->target_rows = t.nrows;
			run->mismatch = compare_answers(&s, &t, cols, run->ordered);
		}
		MemoryContextSwitchTo(oldcxt);
		if (run->mismatch)
			run->mismatch = run->note ? psprintf("%s (%s)", run->mismatch, run->note) :
				pstrdup(run->mismatch);
		MemoryContextReset(cxt);
	}
	MemoryContextDelete(cxt);
	summarize(&run->source);
	summarize(&run->answer);
	if (run->server.n > 0)
		summarize(&run->server);
}

static int
count_argument(FunctionCallInfo fcinfo, int arg, const char *name, int min)
{
	int			n;

	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
	n = PG_GETARG_INT32(arg);
	if (n < min || n > MAX_ITERATIONS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %d and %d", name, min, MAX_ITERATIONS)));
	return n;
}

/* keeps the result; the row as a datum of benchmark()'s result type */
static Datum
keep_result(const Run *run, const char *query, const char *user, TupleDesc desc,
			MemoryContext cxt)
{
	static const char sql[] =
		"INSERT INTO crate_sync.benchmark_results (run_by, target, query, target_sql,"
		" iterations, warmup,"
		" source_min_time, source_mean_time, source_p50_time, source_p95_time,"
		" target_min_time, target_mean_time, target_p50_time, target_p95_time,"
		" target_server_time, speedup, source_rows, target_rows, rows_match, mismatch)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,"
		" $17, $18, $19, $20) RETURNING *";
	Oid			types[20] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, INT4OID,
		FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID, FLOAT8OID,
	FLOAT8OID, FLOAT8OID, INT8OID, INT8OID, BOOLOID, TEXTOID};
	Datum		v[20];
	char		nulls[21] = "                    ";
	char	   *target = psprintf("%s %s", run->ops->name, run->info.version);
	Elevation	e;
	MemoryContext oldcxt;
	Datum		result;

	v[0] = CStringGetTextDatum(user);
	v[1] = CStringGetTextDatum(target);
	v[2] = CStringGetTextDatum(query);
	v[3] = CStringGetTextDatum(run->target_sql);
	v[4] = Int32GetDatum(run->iterations);
	v[5] = Int32GetDatum(run->warmup);
	v[6] = Float8GetDatum(run->source.min);
	v[7] = Float8GetDatum(run->source.mean);
	v[8] = Float8GetDatum(run->source.p50);
	v[9] = Float8GetDatum(run->source.p95);
	v[10] = Float8GetDatum(run->answer.min);
	v[11] = Float8GetDatum(run->answer.mean);
	v[12] = Float8GetDatum(run->answer.p50);
	v[13] = Float8GetDatum(run->answer.p95);
	v[14] = Float8GetDatum(run->server.p50);
	if (run->server.n == 0)
		nulls[14] = 'n';
	/* the clock may not see a time as short as that */
	v[15] = Float8GetDatum(run->source.p50 / Max(run->answer.p50, 1e-6));
	v[16] = Int64GetDatum(run->source_rows);
	v[17] = Int64GetDatum(run->target_rows);
	v[18] = BoolGetDatum(run->mismatch == NULL);
	v[19] = run->mismatch ? CStringGetTextDatum(run->mismatch) : (Datum) 0;
	if (!run->mismatch)
		nulls[19] = 'n';

	elevate(&e);
	if (SPI_execute_with_args(sql, 20, types, v, nulls, false, 0) != SPI_OK_INSERT_RETURNING ||
		SPI_processed != 1)
		elog(ERROR, "could not write to crate_sync.benchmark_results");
	descend(&e);
	oldcxt = MemoryContextSwitchTo(cxt);
	result = heap_copy_tuple_as_datum(SPI_tuptable->vals[0], desc);
	MemoryContextSwitchTo(oldcxt);
	return result;
}

/* carries out a benchmark that has been checked, and keeps its result */
static pg_noinline void
run_benchmark(Run *run, const char *query, const char *user, TupleDesc desc, Datum *result)
{
	MemoryContext cxt = CurrentMemoryContext;
	bool		save_read_only = XactReadOnly;

	SPI_connect();
	PG_TRY();
	{
		/* functions that the query calls write nothing either */
		XactReadOnly = true;
		run->plan = SPI_prepare(query, 0, NULL);
		if (run->plan == NULL)
			elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
		measure(run);
	}
	PG_FINALLY();
	{
		XactReadOnly = save_read_only;
		run->target->ops->close(run->target);
	}
	PG_END_TRY();
	*result = keep_result(run, query, user, desc, cxt);
	SPI_finish();
}

Datum
crate_sync_benchmark(PG_FUNCTION_ARGS)
{
	Run			run = {0};
	TupleDesc	desc;
	char	   *query;
	char	   *user;
	SelectStmt *stmt;
	Datum		result;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("query must not be null")));
	run.iterations = count_argument(fcinfo, 2, "iterations", 1);
	run.warmup = count_argument(fcinfo, 3, "warmup", 0);
	PreventCommandIfReadOnly("crate_sync.benchmark()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	query = text_to_cstring(PG_GETARG_TEXT_PP(0));
	stmt = parse_query(&query);
	user = GetUserNameFromId(GetUserId(), false);
	run.ordered = stmt->sortClause != NIL;
	run.ops = target_ops();
	run.target_sql = PG_ARGISNULL(1) ?
		translate_query(query, stmt, run.ops, &run.note) :
		text_to_cstring(PG_GETARG_TEXT_PP(1));
	run.source.ms = palloc(sizeof(double) * run.iterations);
	run.answer.ms = palloc(sizeof(double) * run.iterations);
	run.server.ms = palloc(sizeof(double) * run.iterations);
	run.target = run.ops->open(cs_target);
	run_benchmark(&run, query, user, desc, &result);
	PG_RETURN_DATUM(result);
}

/* ---------------------------------------------------------------------------
 * benchmark_chart()
 * ------------------------------------------------------------------------ */

#define LABEL_WIDTH 16			/* characters before the figures */
#define MAX_SHOWN_QUERY 300		/* bytes */

/* a bar of so many characters, to an eighth of one where the encoding can */
static char *
draw_bar(double share, int width)
{
	static const char *const eighths[] = {"", "\xe2\x96\x8f", "\xe2\x96\x8e", "\xe2\x96\x8d", "\xe2\x96\x8c",
	"\xe2\x96\x8b", "\xe2\x96\x8a", "\xe2\x96\x89"};
	StringInfoData buf;
	int			units = (int) rint(share * width * 8);

	initStringInfo(&buf);
	if (GetDatabaseEncoding() == PG_UTF8)
	{
		units = Max(units, 1);
		for (int i = 0; i < units / 8; i++)
			appendStringInfoString(&buf, "\xe2\x96\x88");
		appendStringInfoString(&buf, eighths[units % 8]);
	}
	else
		for (int i = 0; i < Max((units + 4) / 8, 1); i++)
			appendStringInfoChar(&buf, '#');
	return buf.data;
}

static char *
format_ms(double ms)
{
	return psprintf("%.*f ms", ms >= 1000 ? 0 : ms >= 100 ? 1 : ms >= 1 ? 2 : 3, ms);
}

/* the target's column of benchmark_results as one would say it */
static char *
product_name(const char *target)
{
	if (strncmp(target, "crate ", 6) == 0)
		return psprintf("CrateDB %s", target + 6);
	if (strncmp(target, "sqlite ", 7) == 0)
		return psprintf("SQLite %s", target + 7);
	return pstrdup(target);
}

/* a query on one line, safe for a terminal */
static char *
one_line(const char *query)
{
	StringInfoData buf;
	int			len = strlen(query);
	int			clipped = pg_mbcliplen(query, len, MAX_SHOWN_QUERY);

	initStringInfo(&buf);
	for (int i = 0; i < clipped; i++)
	{
		unsigned char c = query[i];

		/* the second byte of a C1 control, in UTF-8 */
		if (c >= 0x80 && c < 0xa0 && i > 0 && (unsigned char) query[i - 1] == 0xc2 &&
			GetDatabaseEncoding() == PG_UTF8)
			buf.data[--buf.len] = '\0';
		else if (c > ' ' && c != 0x7f)
			appendStringInfoChar(&buf, c);
		else if (buf.len > 0 && buf.data[buf.len - 1] != ' ')
			appendStringInfoChar(&buf, ' ');
	}
	if (clipped < len)
		appendStringInfoString(&buf, "...");
	return buf.data;
}

static List *
chart_lines(int last, int width)
{
	static const char sql[] =
		"SELECT query, target, source_p50_time, target_p50_time, iterations, source_rows,"
		" rows_match, mismatch, target_server_time FROM crate_sync.benchmark_results"
		" ORDER BY benchmark_id DESC LIMIT $1";
	MemoryContext cxt = CurrentMemoryContext;
	Oid			types[] = {INT4OID};
	Datum		args[] = {Int32GetDatum(last)};
	Elevation	e;
	List	   *lines = NIL;
	bool		sqlite = false;
	bool		crate = false;

	SPI_connect();
	elevate(&e);
	if (SPI_execute_with_args(sql, 1, types, args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.benchmark_results");
	descend(&e);
	MemoryContextSwitchTo(cxt);

	/* the newest come last, next to the prompt */
	for (int i = (int) SPI_processed - 1; i >= 0; i--)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;
		char	   *target = SPI_getvalue(tup, desc, 2);
		char	   *product = product_name(target);
		double		source_ms = DatumGetFloat8(SPI_getbinval(tup, desc, 3, &isnull));
		double		target_ms = DatumGetFloat8(SPI_getbinval(tup, desc, 4, &isnull));
		int			iterations = DatumGetInt32(SPI_getbinval(tup, desc, 5, &isnull));
		int64		rows = DatumGetInt64(SPI_getbinval(tup, desc, 6, &isnull));
		bool		match = DatumGetBool(SPI_getbinval(tup, desc, 7, &isnull));
		double		server_ms = DatumGetFloat8(SPI_getbinval(tup, desc, 9, &isnull));
		double		longer = Max(Max(source_ms, target_ms), 1e-6);
		double		ratio = source_ms / Max(target_ms, 1e-6);
		StringInfoData buf;

		if (strncmp(target, "sqlite", 6) == 0)
			sqlite = true;
		else
			crate = true;
		lines = lappend(lines, one_line(SPI_getvalue(tup, desc, 1)));
		lines = lappend(lines, psprintf("  %-*s %11s  %s", LABEL_WIDTH, "PostgreSQL",
										format_ms(source_ms), draw_bar(source_ms / longer, width)));
		lines = lappend(lines, psprintf("  %-*s %11s  %s", LABEL_WIDTH, product,
										format_ms(target_ms), draw_bar(target_ms / longer, width)));
		initStringInfo(&buf);
		if (ratio >= 1.05)
			appendStringInfo(&buf, "  %s is %.1f times faster", product, ratio);
		else if (ratio <= 1 / 1.05)
			appendStringInfo(&buf, "  %s is %.1f times slower", product, 1 / ratio);
		else
			appendStringInfo(&buf, "  %s is as fast", product);
		appendStringInfo(&buf, ", median of %d run%s", iterations, iterations == 1 ? "" : "s");
		if (!isnull)
			appendStringInfo(&buf, " (%s within it)", format_ms(server_ms));
		if (match)
			appendStringInfo(&buf, "; answers agree (" INT64_FORMAT " row%s)", rows,
							 rows == 1 ? "" : "s");
		else
		{
			char	   *mismatch = SPI_getvalue(tup, desc, 8);

			appendStringInfo(&buf, "; ANSWERS DIFFER: %s", mismatch ? one_line(mismatch) : "?");
		}
		lines = lappend(lines, buf.data);
		lines = lappend(lines, "");
	}
	SPI_finish();

	if (lines == NIL)
		return list_make1("no benchmark has been run yet: SELECT * FROM crate_sync.benchmark('SELECT ...');");
	lines = lappend(lines, "Bars compare the two sides of one query. The target's time includes the way there and back.");
	if (sqlite)
		lines = lappend(lines, crate ? "Figures marked SQLite are SQLite's and not CrateDB's." :
						"These figures are SQLite's and not CrateDB's.");
	return lines;
}

Datum
crate_sync_benchmark_chart(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	List	   *lines;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext oldcxt;
		int			last = PG_GETARG_INT32(0);
		int			width = PG_GETARG_INT32(1);

		if (last < 1 || last > 1000)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("last must be between 1 and 1000")));
		if (width < 5 || width > 200)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("width must be between 5 and 200 characters")));
		funcctx = SRF_FIRSTCALL_INIT();
		oldcxt = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		funcctx->user_fctx = chart_lines(last, width);
		MemoryContextSwitchTo(oldcxt);
	}

	funcctx = SRF_PERCALL_SETUP();
	lines = funcctx->user_fctx;
	if (funcctx->call_cntr < list_length(lines))
	{
		text	   *line = cstring_to_text(list_nth(lines, funcctx->call_cntr));

		SRF_RETURN_NEXT(funcctx, PointerGetDatum(line));
	}
	SRF_RETURN_DONE(funcctx);
}
