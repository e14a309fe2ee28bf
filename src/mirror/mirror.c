/*-------------------------------------------------------------------------
 *
 * mirror.c
 *		From a row of the catalog, or add_table's arguments, to a table that
 *		can be read and written: the one place that says what can be mirrored.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "base/bounded.h"
#include "base/session.h"
#include "base/text.h"
#include "catalog/dependency.h"
#include "catalog/heap.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "mirror/mirror.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_collate.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"

#define OPTIONS_LIST \
	"rename, types, shards, replicas, partitioned_by, clustered_by, refresh_interval, column_policy"

#define MAX_TARGET_NAME 254		/* bytes of schema and table together */
#define MAX_TARGET_COLUMNS 1000 /* CrateDB's mapping.total_fields.limit */
#define MAX_SHARDS 1000
#define MAX_REFRESH_INTERVAL 86400000	/* ms */

/* options of a table, unpacked; names are those of the source */
typedef struct MirrorOptions
{
	JsonbContainer *rename;		/* source column: target column */
	JsonbContainer *types;		/* source column: target type */
	int			shards;			/* 0: the target's default */
	char	   *replicas;
	List	   *partitioned_by; /* of char * */
	char	   *clustered_by;
	int			refresh_interval;	/* ms, -1: not given */
	char	   *column_policy;
} MirrorOptions;

/* the relation's name as one would type it, for messages and hints; palloc'd */
static char *
relation_name(Relation rel)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
									  RelationGetRelationName(rel));
}

/* ---------------------------------------------------------------------------
 * Keys
 * ------------------------------------------------------------------------ */

/*
 * The columns of an index that tells rows apart, else NIL.  *rank says how
 * good a key it is, lower is better.
 */
static List *
index_key(Relation rel, Oid indexoid, int *rank)
{
	TupleDesc	desc = RelationGetDescr(rel);
	HeapTuple	tup = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(indexoid));
	Form_pg_index index;
	List	   *names = NIL;

	if (!HeapTupleIsValid(tup))
		return NIL;
	index = (Form_pg_index) GETSTRUCT(tup);

	/*
	 * A deferrable primary key will do: the worker reads what is committed,
	 * and by then it holds.  Any other index must be one that REPLICA
	 * IDENTITY would take.
	 */
	if (!index->indisunique || !index->indisvalid ||
		(!index->indimmediate && !index->indisprimary) ||
		!heap_attisnull(tup, Anum_pg_index_indpred, NULL) ||
		!heap_attisnull(tup, Anum_pg_index_indexprs, NULL))
	{
		ReleaseSysCache(tup);
		return NIL;
	}

	for (int i = 0; i < index->indnkeyatts; i++)
	{
		AttrNumber	attnum = index->indkey.values[i];

		if (attnum <= 0 || !CS_ATT_NOT_NULL(desc, attnum - 1))
		{
			ReleaseSysCache(tup);
			return NIL;
		}
		names = lappend(names, pstrdup(NameStr(TupleDescAttr(desc, attnum - 1)->attname)));
	}

	if (index->indisprimary)
		*rank = 0;
	else if (index->indisreplident && rel->rd_rel->relreplident == REPLICA_IDENTITY_INDEX)
		*rank = 1;
	else
		*rank = 1 + index->indnkeyatts;
	ReleaseSysCache(tup);
	return names;
}

List *
mirror_find_key(Relation rel)
{
	List	   *best = NIL;
	int			best_rank = INT_MAX;
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		int			rank = INT_MAX;
		List	   *key = index_key(rel, lfirst_oid(lc), &rank);

		if (key != NIL && rank < best_rank)
		{
			best = key;
			best_rank = rank;
		}
	}
	list_free(indexes);
	return best;
}

static bool
name_in_list(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* is there still an index that makes exactly these columns a key? */
static bool
key_still_holds(Relation rel, List *names)
{
	bool		holds = false;
	List	   *indexes = RelationGetIndexList(rel);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		int			rank;
		List	   *key = index_key(rel, lfirst_oid(lc), &rank);
		ListCell   *lk;

		if (key == NIL || list_length(key) != list_length(names))
			continue;
		holds = true;
		foreach(lk, names)
			holds = holds && name_in_list(key, lfirst(lk));
		if (holds)
			break;
	}
	list_free(indexes);
	return holds;
}

/* ---------------------------------------------------------------------------
 * Filters
 * ------------------------------------------------------------------------ */

/* a syntax error's place is one in the filter, not in the user's statement */
static void
filter_error_context(void *arg)
{
	int			pos = geterrposition();

	if (pos > 0)
	{
		errposition(0);
		internalerrposition(pos);
		internalerrquery((const char *) arg);
	}
	errcontext("row filter of a mirrored table");
}

/* exactly one expression and nothing around it, else NULL */
static Node *
filter_expression(const char *filter)
{
	List	   *raw = raw_parser(filter, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *stmt;
	ResTarget  *res;

	if (list_length(raw) != 1 ||
		!IsA(linitial_node(RawStmt, raw)->stmt, SelectStmt))
		return NULL;
	stmt = (SelectStmt *) linitial_node(RawStmt, raw)->stmt;
	if (list_length(stmt->targetList) != 1 ||
		stmt->distinctClause || stmt->intoClause || stmt->fromClause ||
		stmt->whereClause || stmt->groupClause || stmt->havingClause ||
		stmt->windowClause || stmt->valuesLists || stmt->sortClause ||
		stmt->limitOffset || stmt->limitCount || stmt->lockingClause ||
		stmt->withClause || stmt->op != SETOP_NONE)
		return NULL;
	res = linitial_node(ResTarget, stmt->targetList);
	if (res->name != NULL || res->indirection != NIL)
		return NULL;
	/* a bare star parses here but is no expression */
	if (IsA(res->val, ColumnRef) &&
		IsA(llast(((ColumnRef *) res->val)->fields), A_Star))
		return NULL;
	return res->val;
}

bool
mirror_input_runs_code(Oid typid)
{
	Oid			elemtype;

	if (typid < FirstNormalObjectId)
		return false;
	elemtype = get_element_type(typid);
	if (OidIsValid(elemtype))
		return mirror_input_runs_code(elemtype);
	switch (get_typtype(typid))
	{
		case TYPTYPE_BASE:		/* only superusers make them */
		case TYPTYPE_ENUM:
			return false;
		default:
			return true;
	}
}

static bool
literal_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Const) && mirror_input_runs_code(((Const *) node)->consttype))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use a literal of type %s in a row filter",
						format_type_be(((Const *) node)->consttype)),
				 errhint("Compare the parts of the value instead.")));
	return expression_tree_walker(node, literal_walker, context);
}

static bool
note_function(Oid funcid, void *context)
{
	List	  **functions = context;

	if (funcid >= FirstNormalObjectId)
		*functions = list_append_unique_oid(*functions, funcid);
	return false;
}

static bool
function_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	(void) check_functions_in_node(node, note_function, context);
	return expression_tree_walker(node, function_walker, context);
}

static char *
filter_deparse(Relation rel, const char *filter, bool stored, List **functions)
{
	ParseState *pstate = make_parsestate(NULL);
	ParseNamespaceItem *nsitem;
	Node	   *expr;
	Bitmapset  *attrs = NULL;
	char	   *result;
	int			level = 0;
	int			attr = -1;

	expr = filter_expression(filter);
	if (expr == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("row filter is not a single expression"),
				 errhint("Give what would follow WHERE, such as 'price > 0'.")));

	if (stored)
		level = mirror_fixed_settings();

	pstate->p_sourcetext = filter;
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL, false, false);
	addNSItemToQuery(pstate, nsitem, true, true, true);
	expr = transformWhereClause(pstate, expr, EXPR_KIND_WHERE, "row filter");
	assign_expr_collations(pstate, expr);

	if (pstate->p_hasSubLinks)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot use a subquery in a row filter"),
				 errhint("A filter may look at nothing but the columns of its own row.")));

	pull_varattnos(expr, 1, &attrs);
	while ((attr = bms_next_member(attrs, attr)) >= 0)
	{
		if (attr + FirstLowInvalidHeapAttributeNumber <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("cannot use a system column or the whole row in a row filter")));
	}

	/*
	 * Default arguments show only after planning; but inlining hides that a
	 * function was declared stable, and its body may change.  What is stored
	 * was planned once; the worker shall run nothing here, and parsing runs
	 * nothing once literal_walker was satisfied.
	 */
	(void) literal_walker(expr, NULL);
	if (functions != NULL)
		(void) function_walker(expr, functions);
	if (contain_mutable_functions(expr) ||
		(!stored &&
		 contain_mutable_functions((Node *) expression_planner((Expr *) copyObject(expr)))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("functions in a row filter must be immutable"),
				 errhint("What the filter says of a row may depend on the row alone, not on time, settings or other tables.")));

	if (!stored)
		level = mirror_fixed_settings();
	result = deparse_expression(expr,
								deparse_context_for(RelationGetRelationName(rel),
													RelationGetRelid(rel)),
								false, false);
	AtEOXact_GUC(true, level);
	free_parsestate(pstate);
	return result;
}

/*
 * Checks a row filter and returns it in a form whose meaning no search_path
 * or setting changes; palloc'd.  stored: it is in that form already;
 * otherwise names in it are looked up as the session does.
 *
 * What this runs for a filter that is new (functions of constants, domains'
 * checks) it runs as the table's owner, in a restricted operation.
 */
char *
mirror_check_filter(Relation rel, const char *filter, bool stored, List **functions)
{
	ErrorContextCallback cb = {.callback = filter_error_context, .arg = (void *) filter};
	Elevation	e;
	char	   *result;

	/* what is stored runs nothing, unless a type in it is no longer what it was */
	if (stored)
		bounded_begin(RelationGetRelid(rel), rel->rd_rel->relowner, true, false);
	become_owner(&e, rel->rd_rel->relowner);
	cb.previous = error_context_stack;
	error_context_stack = &cb;

	result = filter_deparse(rel, filter, stored, functions);

	error_context_stack = cb.previous;
	be_oneself(&e);
	if (stored)
		bounded_end();
	return result;
}

/* ---------------------------------------------------------------------------
 * Options
 * ------------------------------------------------------------------------ */

pg_attribute_noreturn() static void
option_error(const char *name, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("option \"%s\" must be %s", name, wanted)));
}

static int
option_int(const char *name, const JsonbValue *v, int min, int max)
{
	char	   *end;
	long		n = 0;
	bool		ok = v->type == jbvNumeric;

	if (ok)
	{
		char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out,
															   NumericGetDatum(v->val.numeric)));

		errno = 0;
		n = strtol(text, &end, 10);
		ok = *end == '\0' && errno == 0 && n >= min && n <= max;
	}
	if (!ok)
		option_error(name, psprintf("an integer from %d to %d", min, max));
	return (int) n;
}

static char *
option_string(const char *name, const JsonbValue *v, const char *wanted)
{
	if (v->type != jbvString || v->val.string.len == 0)
		option_error(name, wanted);
	return pnstrdup(v->val.string.val, v->val.string.len);
}

/* {"column": "text", ...} */
static JsonbContainer *
option_map(const char *name, const JsonbValue *v)
{
	static const char wanted[] = "an object of source column names and strings";
	JsonbContainer *jc;
	JsonbIterator *it;
	JsonbValue	elem;
	JsonbIteratorToken tok;

	if (v->type != jbvBinary || !JsonContainerIsObject(v->val.binary.data))
		option_error(name, wanted);
	jc = v->val.binary.data;
	it = JsonbIteratorInit(jc);
	while ((tok = JsonbIteratorNext(&it, &elem, true)) != WJB_DONE)
	{
		if (tok == WJB_VALUE)
			(void) option_string(name, &elem, wanted);
	}
	return jc;
}

/* "column" or ["column", ...] */
static List *
option_names(const char *name, const JsonbValue *v)
{
	static const char wanted[] = "a column name or an array of column names";
	List	   *names = NIL;
	JsonbIterator *it;
	JsonbValue	elem;
	JsonbIteratorToken tok;

	if (v->type == jbvString)
		return list_make1(option_string(name, v, wanted));
	if (v->type != jbvBinary || !JsonContainerIsArray(v->val.binary.data) ||
		JsonContainerSize(v->val.binary.data) == 0)
		option_error(name, wanted);
	it = JsonbIteratorInit(v->val.binary.data);
	while ((tok = JsonbIteratorNext(&it, &elem, true)) != WJB_DONE)
	{
		if (tok == WJB_ELEM)
			names = lappend(names, option_string(name, &elem, wanted));
	}
	return names;
}

/* "2", "0-1", "0-all" */
static bool
replicas_ok(const char *s)
{
	Size		n = strspn(s, "0123456789");

	if (n == 0 || n > 4)
		return false;
	s += n;
	if (*s == '\0')
		return true;
	if (*s++ != '-')
		return false;
	if (strcmp(s, "all") == 0)
		return true;
	n = strspn(s, "0123456789");
	return n > 0 && n <= 4 && s[n] == '\0';
}

static void
parse_options(Jsonb *options, MirrorOptions *opt)
{
	JsonbIterator *it;
	JsonbIteratorToken tok;
	JsonbValue	v;
	char	   *key = NULL;

	memset(opt, 0, sizeof(MirrorOptions));
	opt->refresh_interval = -1;
	if (options == NULL)
		return;
	if (!JB_ROOT_IS_OBJECT(options))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("options must be a JSON object"),
				 errhint("Valid options are: %s.", OPTIONS_LIST)));

	it = JsonbIteratorInit(&options->root);
	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (tok == WJB_KEY)
			key = pnstrdup(v.val.string.val, v.val.string.len);
		if (tok != WJB_VALUE)
			continue;

		if (strcmp(key, "rename") == 0)
			opt->rename = option_map(key, &v);
		else if (strcmp(key, "types") == 0)
			opt->types = option_map(key, &v);
		else if (strcmp(key, "shards") == 0)
			opt->shards = option_int(key, &v, 1, MAX_SHARDS);
		else if (strcmp(key, "replicas") == 0)
		{
			static const char wanted[] = "a number, or text such as '0-1' or '0-all'";

			if (v.type == jbvNumeric)
				opt->replicas = psprintf("%d", option_int(key, &v, 0, 100));
			else
				opt->replicas = option_string(key, &v, wanted);
			if (!replicas_ok(opt->replicas))
				option_error(key, wanted);
		}
		else if (strcmp(key, "partitioned_by") == 0)
			opt->partitioned_by = option_names(key, &v);
		else if (strcmp(key, "clustered_by") == 0)
			opt->clustered_by = option_string(key, &v, "a column name");
		else if (strcmp(key, "refresh_interval") == 0)
			opt->refresh_interval = option_int(key, &v, 0, MAX_REFRESH_INTERVAL);
		else if (strcmp(key, "column_policy") == 0)
		{
			static const char wanted[] = "\"strict\" or \"dynamic\"";

			opt->column_policy = option_string(key, &v, wanted);
			if (strcmp(opt->column_policy, "strict") != 0 &&
				strcmp(opt->column_policy, "dynamic") != 0)
				option_error(key, wanted);
		}
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown option \"%s\"", key),
					 errhint("Valid options are: %s.", OPTIONS_LIST)));
	}
}

/* the text that a map of option_map has for a column, or NULL; palloc'd */
static char *
option_lookup(JsonbContainer *map, const char *column)
{
	JsonbValue	buf;
	JsonbValue *v;

	if (map == NULL)
		return NULL;
	v = getKeyJsonValueFromContainer(map, column, strlen(column), &buf);
	return v == NULL ? NULL : pnstrdup(v->val.string.val, v->val.string.len);
}

/* ---------------------------------------------------------------------------
 * Names in the target
 * ------------------------------------------------------------------------ */

/*
 * CrateDB's own rules; the SQLite target keeps to them too, so that what was
 * tried there works here.
 */
static void
check_target_table_name(const char *schema, const char *name)
{
	static const char *const reserved[] = {
		"sys", "information_schema", "pg_catalog", "blob", CS_SCHEMA
	};
	const char *parts[] = {schema, name};

	for (int i = 0; i < lengthof(parts); i++)
	{
		const char *bad = NULL;

		for (const char *p = parts[i]; *p != '\0' && bad == NULL; p++)
		{
			if ((unsigned char) *p < ' ')
				bad = "a control character";
			else if (strchr("\\/*?\"<>| ,#.", *p) != NULL)
				bad = *p == ' ' ? "a space" : psprintf("\"%c\"", *p);
		}
		if (parts[i][0] == '\0')
			bad = "nothing";
		if (bad == NULL && (parts[i][0] == '-' || parts[i][0] == '+'))
			bad = psprintf("a leading \"%c\"", parts[i][0]);
		if (bad != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_NAME),
					 errmsg("CrateDB cannot have a %s named \"%s\"",
							i == 0 ? "schema" : "table", parts[i]),
					 errdetail("The name has %s in it.", bad),
					 errhint("Choose another name with add_table's argument target.")));
	}
	if (strlen(schema) + strlen(name) > MAX_TARGET_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("target name \"%s.%s\" is too long", schema, name),
				 errdetail("Schema and table together may have %d bytes.", MAX_TARGET_NAME),
				 errhint("Choose another name with add_table's argument target.")));
	if (strlen(name) >= strlen(REBUILD_SUFFIX) &&
		strcmp(name + strlen(name) - strlen(REBUILD_SUFFIX), REBUILD_SUFFIX) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("target name \"%s\" is reserved", name),
				 errdetail("A table is called so while crate_sync rebuilds it."),
				 errhint("Choose another name with add_table's argument target.")));
	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (strcmp(schema, reserved[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("schema \"%s\" is reserved in the target", schema),
					 errhint("Choose another name with add_table's argument target.")));
	}
}

/* what is wrong with a column's name in CrateDB, or NULL */
static const char *
bad_column_name(const char *name)
{
	static const char *const reserved[] = {
		"_id", "_version", "_score", "_uid", "_doc", "_raw", "_seq_no",
		"_primary_term", "_tombstone", "_fetchid", "_docid"
	};

	if (*name == '\0')
		return "It is empty.";
	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (strcmp(name, reserved[i]) == 0)
			return "It is the name of a system column there.";
	}
	if (strpbrk(name, ".[\t\r\n") != NULL)
		return "It has a dot, an opening bracket, a tab or a line break in it.";
	return NULL;
}

/* the target is told names in UTF-8: an error, if that cannot say this one */
static void
check_name_encoding(const char *name)
{
	if (GetDatabaseEncoding() == PG_SQL_ASCII &&
		!pg_verify_mbstr(PG_UTF8, name, strlen(name), true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("name \"%s\" is not valid UTF-8", name),
				 errdetail("The target is told names in UTF-8.")));
	(void) pg_server_to_any(name, strlen(name), PG_UTF8);
}

/* adding: what a table that is mirrored already has been called goes on to be */
static void
check_target_column_name(const char *source, const char *name, bool adding)
{
	const char *bad = bad_column_name(name);
	StringInfoData hint;
	char	   *better;

	if (bad == NULL && adding && pg_strcasecmp(name, "char") == 0)
		bad = "It is the name of a type there: the column would have quotes in its name.";
	if (bad == NULL)
		return;

	better = *name == '_' ? psprintf("c%s", name) : pg_strcasecmp(name, "char") == 0 ?
		psprintf("%s_", name) : pstrdup(*name ? name : "c");
	for (char *p = better; *p != '\0'; p++)
	{
		if (strchr(".[\t\r\n", *p) != NULL)
			*p = '_';
	}
	initStringInfo(&hint);
	appendStringInfoString(&hint, "{\"rename\": {");
	escape_json(&hint, source);
	appendStringInfoString(&hint, ": ");
	escape_json(&hint, better);
	appendStringInfoString(&hint, "}}");
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_NAME),
			 errmsg("CrateDB cannot have a column named \"%s\"", name),
			 errdetail_internal("%s", bad),
			 adding ?
			 errhint("Rename it in the target: options => %s.", quote_literal_cstr(hint.data)) :
			 errhint("Rename the column. Or remove the table and add it again, with its options and these: %s.",
					 quote_literal_cstr(hint.data))));
}

void
mirror_check_target_column(const char *source, const char *name)
{
	const char *bad = bad_column_name(name);

	check_name_encoding(name);
	if (bad != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("CrateDB cannot have a column named \"%s\"", name),
				 errdetail_internal("%s", bad),
				 errhint("Give it another one: a node by \"label\", a column by \"transform\": {\"rename\": {...}}.")));
}

/* ---------------------------------------------------------------------------
 * Resolving
 * ------------------------------------------------------------------------ */

static void
refuse(Relation rel, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("cannot mirror \"%s\"", RelationGetRelationName(rel)),
			 errdetail_internal("%s", detail),
			 hint != NULL ? errhint("%s", hint) : 0));
}

void
mirror_check_relation(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	Oid			extension;

	switch (rel->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
			break;
		case RELKIND_VIEW:
			refuse(rel, "It is a view.", "Mirror the tables it is made of.");
			break;
		case RELKIND_MATVIEW:
			refuse(rel, "It is a materialized view.", "Mirror the tables it is made of.");
			break;
		case RELKIND_FOREIGN_TABLE:
			refuse(rel, "It is a foreign table: its changes cannot be seen here.",
				   "Mirror it from the server where it is a table.");
			break;
		default:
			refuse(rel, "It is not a table.", NULL);
	}

	if (relid < FirstNormalObjectId)
		refuse(rel, "It is a system table.", NULL);
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		refuse(rel, "It is a temporary table: only its own session can read it.", NULL);
	extension = getExtensionOfObject(RelationRelationId, relid);
	if (OidIsValid(extension))
		refuse(rel, psprintf("It belongs to extension \"%s\".", get_extension_name(extension)), NULL);
	if (RelationGetNamespace(rel) == get_namespace_oid(CS_SCHEMA, true))
		refuse(rel, "It is in the schema of crate_sync itself.", NULL);

	if (rel->rd_rel->relkind == RELKIND_RELATION &&
		find_inheritance_children(relid, NoLock) != NIL)
		refuse(rel, "Other tables inherit from it, and their rows would appear in its own.",
			   "Mirror the tables that inherit from it, or make it a partitioned table.");
	if (rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		List	   *tree = find_all_inheritors(relid, NoLock, NULL);
		ListCell   *lc;

		foreach(lc, tree)
		{
			if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_FOREIGN_TABLE)
				refuse(rel,
					   psprintf("Its partition \"%s\" is a foreign table: changes there cannot be seen here.",
								get_rel_name(lfirst_oid(lc))),
					   "Mirror the other partitions one by one.");
		}
	}

	if (check_enable_rls(relid, rel->rd_rel->relowner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row-level security hides rows of \"%s\" from its owner",
						RelationGetRelationName(rel)),
				 errdetail("Rows are read as the table's owner, and all of them have to be seen."),
				 errhint("It can be mirrored once row-level security is not forced on the owner any more; the owner sees all rows then.")));
}

/* attnum of a user column; else InvalidAttrNumber, or an error unless missing_ok */
static AttrNumber
find_column(Relation rel, const char *name, bool missing_ok)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attnum;
	}
	if (missing_ok)
		return InvalidAttrNumber;
	if (SystemAttributeByName(name) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("cannot mirror system column \"%s\"", name)));
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("column \"%s\" of relation \"%s\" does not exist", name,
					RelationGetRelationName(rel))));
}

/* place in columns of a mirrored column, -1 if it is not among them */
static int
column_place(const MirrorTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->columns[i].name, name) == 0)
			return i;
	}
	return -1;
}

static char *
list_of_names(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", quote_identifier(lfirst(lc)));
	return buf.data;
}

static List *
resolve_key(Relation rel, const MirrorSpec *spec)
{
	List	   *key = spec->key_columns;

	if (key == NIL)
	{
		key = mirror_find_key(rel);
		if (key == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table \"%s\" has no key", RelationGetRelationName(rel)),
					 errdetail("A primary key, or a unique index on NOT NULL columns that is neither partial, deferrable nor on expressions, has to tell its rows apart."),
					 errhint("ALTER TABLE %s ADD PRIMARY KEY (...);", relation_name(rel))));
	}
	else if (!key_still_holds(rel, key) && spec->relid != RelationGetRelid(rel))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the columns by which rows of the target table are told apart are no key of \"%s\"",
						RelationGetRelationName(rel)),
				 errdetail("They are: %s.", list_of_names(key)),
				 errhint("Make them one, or have the target made anew: remove_table with drop_target, then add_table.")));
	else if (!key_still_holds(rel, key))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key by which \"%s\" is mirrored is gone", RelationGetRelationName(rel)),
				 errdetail("Its columns were renamed or dropped, or no unique index covers exactly them any more."),
				 errhint("Make it a key again, or SELECT crate_sync.remove_table(%s), then add_table.",
						 quote_literal_cstr(relation_name(rel)))));
	return key;
}

/* the columns to mirror, of char *; what is stored may name dropped ones */
static List *
resolve_columns(Relation rel, const MirrorSpec *spec, List *key)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		stored = spec->mirror_id != 0;
	List	   *names = NIL;
	ListCell   *lc;

	if (spec->columns == NIL)
	{
		for (int i = 0; i < desc->natts; i++)
		{
			if (!TupleDescAttr(desc, i)->attisdropped)
				names = lappend(names, NameStr(TupleDescAttr(desc, i)->attname));
		}
		return names;
	}

	foreach(lc, spec->columns)
	{
		char	   *name = lfirst(lc);

		if (find_column(rel, name, stored) == InvalidAttrNumber)
			continue;
		if (name_in_list(names, name))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" is listed more than once", name)));
		names = lappend(names, name);
	}
	foreach(lc, key)
	{
		if (!name_in_list(names, lfirst(lc)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					 errmsg("column list of \"%s\" lacks key column \"%s\"",
							RelationGetRelationName(rel), (char *) lfirst(lc)),
					 errhint("The key's columns have to be among the mirrored ones.")));
	}
	return names;
}

/* every column that rename or types names has to be a mirrored one */
static void
check_option_columns(const MirrorTable *table, const char *option, JsonbContainer *map)
{
	JsonbIterator *it;
	JsonbIteratorToken tok;
	JsonbValue	v;

	if (map == NULL)
		return;
	it = JsonbIteratorInit(map);
	while ((tok = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *name;

		if (tok != WJB_KEY)
			continue;
		name = pnstrdup(v.val.string.val, v.val.string.len);
		if (column_place(table, name) < 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("option \"%s\" names \"%s\", which is not a mirrored column of \"%s\"",
							option, name, table->relname)));
	}
}

/* the target column of a key column that an option names */
static const char *
option_key_column(const MirrorTable *table, const char *option, const char *name)
{
	int			place = column_place(table, name);

	if (place < 0 || !table->target.cols[place].key)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("option \"%s\" names \"%s\", which is not a key column of \"%s\"",
						option, name, table->relname),
				 errhint("Rows are found by their key alone, so it has to be part of that.")));
	return target_quote_ident(table->target.cols[place].name);
}

static void
check_unique_target_name(const MirrorTable *table, int i)
{
	for (int j = 0; j < i; j++)
	{
		if (strcmp(table->target.cols[j].name, table->target.cols[i].name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("columns \"%s\" and \"%s\" would both be \"%s\" in the target",
							table->columns[j].name, table->columns[i].name, table->target.cols[i].name)));
	}
}

/* what is read by expressions, a column each, from place i on */
static void
resolve_nested(MirrorTable *table, const MirrorSpec *spec, int i)
{
	ListCell   *lc;

	foreach(lc, spec->nested)
	{
		const NestedColumn *nested = lfirst(lc);
		MirrorColumn *col = &table->columns[i];
		TargetColumn *tcol = &table->target.cols[i];

		col->name = nested->name;
		col->typid = nested->typid;
		col->typmod = -1;
		col->node = nested->node;
		tcol->name = nested->name;
		tcol->type = nested->type;
		tcol->storage = nested->storage;
		tcol->kind = nested->kind;
		tcol->nmembers = nested->nmembers;
		tcol->members = nested->members;
		check_unique_target_name(table, i);
		i++;
	}
}

List *
mirror_key_names(const MirrorTable *table)
{
	List	   *key = NIL;

	for (int k = 0; k < table->nkeys; k++)
		key = lappend(key, table->columns[table->keys[k]].name);
	return key;
}

static void
resolve_soft_delete(Relation rel, const char *name, MirrorTable *table)
{
	Form_pg_attribute att;
	AttrNumber	attnum = find_column(rel, name, false);

	att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	table->soft_delete_attnum = attnum;
	table->soft_delete_type = getBaseType(att->atttypid);
	switch (table->soft_delete_type)
	{
		case BOOLOID:
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			break;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("soft-delete column \"%s\" is of type %s", name,
							format_type_be(att->atttypid)),
					 errhint("It has to be a boolean, a date or a timestamp.")));
	}
}

static void
resolve_ddl(MirrorTable *table, const MirrorOptions *opt)
{
	TargetTable *target = &table->target;
	StringInfoData buf;

	initStringInfo(&buf);
	if (opt->clustered_by != NULL || opt->shards > 0)
	{
		appendStringInfoString(&buf, "CLUSTERED");
		if (opt->clustered_by != NULL)
			appendStringInfo(&buf, " BY (%s)",
							 option_key_column(table, "clustered_by", opt->clustered_by));
		if (opt->shards > 0)
			appendStringInfo(&buf, " INTO %d SHARDS", opt->shards);
		target->ddl_clustered = pstrdup(buf.data);
	}

	if (opt->partitioned_by != NIL)
	{
		List	   *seen = NIL;
		ListCell   *lc;

		resetStringInfo(&buf);
		appendStringInfoString(&buf, "PARTITIONED BY (");
		foreach(lc, opt->partitioned_by)
		{
			char	   *name = lfirst(lc);

			if (name_in_list(seen, name))
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("option \"partitioned_by\" names \"%s\" more than once", name)));
			if (opt->clustered_by != NULL && strcmp(name, opt->clustered_by) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("\"%s\" cannot be in \"clustered_by\" and \"partitioned_by\" at once",
								name)));
			if (seen != NIL)
				appendStringInfoString(&buf, ", ");
			appendStringInfoString(&buf, option_key_column(table, "partitioned_by", name));
			seen = lappend(seen, name);
		}
		appendStringInfoChar(&buf, ')');
		target->ddl_partitioned = pstrdup(buf.data);
	}

	resetStringInfo(&buf);
	if (opt->replicas != NULL)
		appendStringInfo(&buf, "number_of_replicas = '%s'", opt->replicas);
	if (opt->refresh_interval >= 0)
		appendStringInfo(&buf, "%srefresh_interval = %d", buf.len > 0 ? ", " : "",
						 opt->refresh_interval);
	if (opt->column_policy != NULL)
		appendStringInfo(&buf, "%scolumn_policy = '%s'", buf.len > 0 ? ", " : "",
						 opt->column_policy);
	target->ddl_with = buf.len > 0 ? pstrdup(buf.data) : NULL;
	pfree(buf.data);
}

MirrorTable *
mirror_resolve(Relation rel, MirrorSpec *spec)
{
	MirrorTable *table = palloc0(sizeof(MirrorTable));
	TargetTable *target = &table->target;
	MirrorOptions opt;
	List	   *key;
	List	   *names;
	ListCell   *lc;
	int			i;

	mirror_check_relation(rel);

	table->relid = RelationGetRelid(rel);
	table->schemaname = get_namespace_name(RelationGetNamespace(rel));
	table->relname = pstrdup(RelationGetRelationName(rel));
	table->owner = rel->rd_rel->relowner;
	table->relkind = rel->rd_rel->relkind;

	target->schema = pstrdup(spec->target_schema ? spec->target_schema :
							 strcmp(table->schemaname, "public") == 0 ? "doc" :
							 table->schemaname);
	target->name = pstrdup(spec->target_table ? spec->target_table : table->relname);
	check_name_encoding(target->schema);
	check_name_encoding(target->name);
	check_target_table_name(target->schema, target->name);
	target->qualified = psprintf("%s.%s", target_quote_ident(target->schema),
								 target_quote_ident(target->name));

	parse_options(spec->options, &opt);
	key = resolve_key(rel, spec);
	names = resolve_columns(rel, spec, key);

	table->ncols = target->ncols = list_length(names) + list_length(spec->nested);
	if (table->ncols > MAX_TARGET_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_TOO_MANY_COLUMNS),
				 errmsg("table \"%s\" has %d columns, the target takes %d", table->relname,
						table->ncols, MAX_TARGET_COLUMNS),
				 errhint("List those to mirror in add_table's argument columns.")));
	table->columns = palloc0(sizeof(MirrorColumn) * table->ncols);
	target->cols = palloc0(sizeof(TargetColumn) * table->ncols);

	i = 0;
	foreach(lc, names)
	{
		MirrorColumn *col = &table->columns[i];
		TargetColumn *tcol = &target->cols[i];
		Form_pg_attribute att;

		col->name = pstrdup(lfirst(lc));
		col->attnum = find_column(rel, col->name, false);
		att = TupleDescAttr(RelationGetDescr(rel), col->attnum - 1);
		col->typid = att->atttypid;
		col->typmod = att->atttypmod;
		tcol->key = name_in_list(key, col->name);
		if (tcol->key && !OidIsValid(get_array_type(getBaseType(col->typid))))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("cannot look rows up by key column \"%s\" of type %s", col->name,
							format_type_be(col->typid)),
					 errhint("Give the table a primary key of other types.")));
		types_map(col->name, col->typid, col->typmod, tcol->key,
				  option_lookup(opt.types, col->name), &col->map);

		tcol->name = option_lookup(opt.rename, col->name);
		if (tcol->name == NULL && spec->target_names != NIL)
			tcol->name = pstrdup(list_nth(spec->target_names, i));
		if (tcol->name == NULL)
			tcol->name = pstrdup(col->name);
		/* the source's own name is in failed_rows and differences */
		check_name_encoding(col->name);
		check_name_encoding(tcol->name);
		check_target_column_name(col->name, tcol->name, spec->mirror_id == 0);
		check_unique_target_name(table, i);
		tcol->type = col->map.type;
		tcol->storage = col->map.storage;
		tcol->kind = col->map.kind;
		i++;
	}
	resolve_nested(table, spec, i);

	/* a column that was dropped since takes its options with it */
	if (spec->mirror_id == 0)
	{
		check_option_columns(table, "rename", opt.rename);
		check_option_columns(table, "types", opt.types);
	}

	table->nkeys = target->nkeys = list_length(key);
	table->keys = palloc(sizeof(int) * table->nkeys);
	target->keys = palloc(sizeof(int) * table->nkeys);
	i = 0;
	foreach(lc, key)
	{
		table->keys[i] = target->keys[i] = column_place(table, lfirst(lc));
		i++;
	}
	resolve_ddl(table, &opt);

	if (spec->soft_delete_column != NULL)
		resolve_soft_delete(rel, spec->soft_delete_column, table);
	if (spec->row_filter != NULL)
		table->row_filter = mirror_check_filter(rel, spec->row_filter, spec->mirror_id != 0,
												&table->filter_functions);
	return table;
}

/* ---------------------------------------------------------------------------
 * The catalog
 * ------------------------------------------------------------------------ */

/* the elements of a name[] without NULLs, as char *, palloc'd */
List *
mirror_name_list(ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *names = NIL;

	deconstruct_array(array, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("a list of names must not contain nulls")));
		names = lappend(names, pstrdup(NameStr(*DatumGetName(elems[i]))));
	}
	return names;
}

List *
mirror_oid_list(ArrayType *array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *oids = NIL;

	deconstruct_array(array, OIDOID, sizeof(Oid), true, TYPALIGN_INT, &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
		oids = lappend_oid(oids, nulls[i] ? InvalidOid : DatumGetObjectId(elems[i]));
	return oids;
}

static char *
spi_text(HeapTuple tup, int col)
{
	bool		isnull;
	Datum		d = SPI_getbinval(tup, SPI_tuptable->tupdesc, col, &isnull);

	return isnull ? NULL : TextDatumGetCString(d);
}

/*
 * Is the catalog as this library wants it?  After a newer library was put in
 * the old one's place it is not, until ALTER EXTENSION.  The newest column
 * tells, and not the version's number: a later catalog has it, too.
 */
bool
mirror_catalog_is_current(void)
{
	Oid			nsp = get_namespace_oid(CS_SCHEMA, true);
	Oid			relid = OidIsValid(nsp) ? get_relname_relid("mirror", nsp) : InvalidOid;

	return OidIsValid(relid) && get_attnum(relid, "relations") != InvalidAttrNumber;
}

void
mirror_check_catalog(void)
{
	if (!mirror_catalog_is_current())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the catalog of extension crate_sync is older than its library"),
				 errdetail("Changes are queued, nothing is pushed until it is updated."),
				 errhint("%s", CS_UPDATE_HINT)));
}

/* the relations in the catalog, whatever its version */
List *
mirror_relids(void)
{
	MemoryContext cxt = CurrentMemoryContext;
	List	   *relids = NIL;

	SPI_connect();
	if (SPI_execute(get_attnum(get_relname_relid("mirror", get_namespace_oid(CS_SCHEMA, false)), "relations") != InvalidAttrNumber ?
					"SELECT relid::pg_catalog.oid FROM crate_sync.mirror UNION"
					" SELECT pg_catalog.unnest(relations)::pg_catalog.oid FROM crate_sync.mirror ORDER BY 1" :
					"SELECT relid::pg_catalog.oid FROM crate_sync.mirror ORDER BY 1", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.mirror");
	MemoryContextSwitchTo(cxt);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool		isnull;

		relids = lappend_oid(relids, DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i],
																	SPI_tuptable->tupdesc, 1, &isnull)));
	}
	SPI_finish();
	return relids;
}

/*
 * What is asked for of one table, of one mirror, or of all in the order in
 * which they were added: a List of MirrorSpec in the current memory context.
 * The caller may read the catalog and has a snapshot.
 */
static List *
load_specs(Oid relid, int mirror_id)
{
	static const char query[] =
		"SELECT target_schema, target_table, row_filter, resync_mode, resync_filter,"
		" mirror_id, relid, key_columns, columns, soft_delete_column, options, paused,"
		" resync_no, verify_no, verify_repair, follow, source_schema, source_name, source_owner,"
		" definition, relations::pg_catalog.oid[]"
		" FROM crate_sync.mirror WHERE (relid = $1 AND definition IS NULL) OR mirror_id = $2"
		" OR ($1 = 0 AND $2 = 0) ORDER BY mirror_id";
	MemoryContext cxt = CurrentMemoryContext;
	Oid			argtypes[] = {OIDOID, INT4OID};
	Datum		args[] = {ObjectIdGetDatum(relid), Int32GetDatum(mirror_id)};
	List	   *specs = NIL;

	mirror_check_catalog();
	SPI_connect();
	if (SPI_execute_with_args(query, 2, argtypes, args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read crate_sync.mirror");
	MemoryContextSwitchTo(cxt);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tup = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MirrorSpec *spec = palloc0(sizeof(MirrorSpec));
		Datum		d;
		bool		isnull;

		spec->target_schema = spi_text(tup, 1);
		spec->target_table = spi_text(tup, 2);
		spec->row_filter = spi_text(tup, 3);
		spec->resync_mode = spi_text(tup, 4);
		spec->resync_filter = spi_text(tup, 5);
		spec->mirror_id = DatumGetInt32(SPI_getbinval(tup, desc, 6, &isnull));
		spec->relid = DatumGetObjectId(SPI_getbinval(tup, desc, 7, &isnull));
		spec->key_columns = mirror_name_list(DatumGetArrayTypeP(SPI_getbinval(tup, desc, 8, &isnull)));
		d = SPI_getbinval(tup, desc, 9, &isnull);
		if (!isnull)
			spec->columns = mirror_name_list(DatumGetArrayTypeP(d));
		d = SPI_getbinval(tup, desc, 10, &isnull);
		if (!isnull)
			spec->soft_delete_column = pstrdup(NameStr(*DatumGetName(d)));
		spec->options = DatumGetJsonbPCopy(SPI_getbinval(tup, desc, 11, &isnull));
		spec->paused = DatumGetBool(SPI_getbinval(tup, desc, 12, &isnull));
		spec->resync_no = DatumGetInt32(SPI_getbinval(tup, desc, 13, &isnull));
		spec->verify_no = DatumGetInt32(SPI_getbinval(tup, desc, 14, &isnull));
		spec->verify_repair = DatumGetBool(SPI_getbinval(tup, desc, 15, &isnull));
		spec->follow_name = strcmp(spi_text(tup, 16), "name") == 0;
		d = SPI_getbinval(tup, desc, 17, &isnull);
		if (!isnull)
			spec->source_schema = pstrdup(NameStr(*DatumGetName(d)));
		d = SPI_getbinval(tup, desc, 18, &isnull);
		if (!isnull)
			spec->source_name = pstrdup(NameStr(*DatumGetName(d)));
		spec->source_owner = DatumGetObjectId(SPI_getbinval(tup, desc, 19, &isnull));
		d = SPI_getbinval(tup, desc, 20, &isnull);
		if (!isnull)
			spec->definition = DatumGetJsonbPCopy(d);
		d = SPI_getbinval(tup, desc, 21, &isnull);
		if (!isnull)
			spec->relations = mirror_oid_list(DatumGetArrayTypeP(d));
		specs = lappend(specs, spec);
	}
	SPI_finish();
	return specs;
}

List *
mirror_load(Oid relid)
{
	return load_specs(relid, 0);
}

MirrorSpec *
mirror_load_one(int mirror_id)
{
	List	   *specs = load_specs(InvalidOid, mirror_id);

	return specs == NIL ? NULL : linitial(specs);
}
