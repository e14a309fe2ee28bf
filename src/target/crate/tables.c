/*-------------------------------------------------------------------------
 *
 * tables.c
 *		Tables in CrateDB: DDL, what is there already, rebuilds.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/text.h"

/* ---------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------- */

static void
append_column_def(StringInfo buf, const TargetColumn *col)
{
	appendStringInfo(buf, "%s %s", target_quote_ident(col->name), col->type);
	if (col->storage != NULL)
		appendStringInfo(buf, " %s", col->storage);
}

char *
crate_ddl(const TargetTable *table)
{
	StringInfoData buf;
	bool		policy = false;

	initStringInfo(&buf);
	appendStringInfo(&buf, "CREATE TABLE IF NOT EXISTS %s (\n", table->qualified);
	for (int i = 0; i < table->ncols; i++)
	{
		raw(&buf, "\t");
		append_column_def(&buf, &table->cols[i]);
		raw(&buf, ",\n");
	}
	for (int k = 0; k < table->nkeys; k++)
		appendStringInfo(&buf, "%s%s", k == 0 ? "\tPRIMARY KEY (" : ", ",
						 target_quote_ident(table->cols[table->keys[k]].name));
	raw(&buf, ")\n)");
	if (table->ddl_partitioned != NULL)
		appendStringInfo(&buf, " %s", table->ddl_partitioned);
	if (table->ddl_clustered != NULL)
		appendStringInfo(&buf, " %s", table->ddl_clustered);
	if (table->ddl_with != NULL)
	{
		for (const char *p = table->ddl_with; *p && !policy; p++)
			policy = pg_strncasecmp(p, "column_policy", 13) == 0;
	}
	appendStringInfo(&buf, " WITH (%s%s%s)", policy ? "" : "column_policy = 'strict'",
					 !policy && table->ddl_with ? ", " : "", table->ddl_with ? table->ddl_with : "");
	return buf.data;
}

/* a type as information_schema tells it */
typedef struct FoundType
{
	char		name[64];		/* bigint, text_array */
	int			params[2];		/* -1: none, or not known */
} FoundType;

static void
normalize_type(const char *type, FoundType *found)
{
	static const char *const aliases[][2] = {
		{"long", "bigint"}, {"int8", "bigint"}, {"int", "integer"}, {"int4", "integer"},
		{"short", "smallint"}, {"int2", "smallint"}, {"string", "text"}, {"varchar", "text"},
		{"character varying", "text"}, {"char", "character"}, {"double", "double precision"},
		{"float8", "double precision"}, {"float", "real"}, {"float4", "real"}, {"bool", "boolean"},
		{"timestamptz", "timestamp with time zone"}, {"timestamp", "timestamp without time zone"},
		{"decimal", "numeric"}, {"json", "object"}, {"ip_address", "ip"}
	};
	char		name[64];
	int			depth = 0;
	int			n = 0;

	found->params[0] = found->params[1] = -1;
	while (*type == ' ')
		type++;
	while (type_is(type, "ARRAY"))
	{
		type += 5;
		type += strspn(type, " (");
		depth++;
	}
	for (; *type && *type != '(' && *type != ')' && n < (int) sizeof(name) - 1; type++)
	{
		/* one blank between words */
		if (*type != ' ' || (n > 0 && name[n - 1] != ' '))
			name[n++] = pg_tolower((unsigned char) *type);
	}
	while (n > 0 && name[n - 1] == ' ')
		n--;
	name[n] = '\0';
	if (*type == '(')
		sscanf(type, "( %d , %d", &found->params[0], &found->params[1]);
	for (int i = 0; i < lengthof(aliases); i++)
	{
		if (strcmp(name, aliases[i][0]) == 0)
			strlcpy(name, aliases[i][1], sizeof(name));
	}
	strlcpy(found->name, name, sizeof(found->name));
	while (depth-- > 0)
		strlcat(found->name, "_array", sizeof(found->name));
}

/* can a column found hold all that one wanted can? */
static bool
type_fits(const FoundType *wanted, const FoundType *found)
{
	static const char *const integers[] = {"smallint", "integer", "bigint"};

	if (strcmp(wanted->name, found->name) == 0)
	{
		if (found->params[0] < 0)
			return true;		/* no limit, or none that is told */
		if (strcmp(found->name, "text") == 0)
			return wanted->params[0] >= 0 && wanted->params[0] <= found->params[0];
		return wanted->params[0] < 0 ? false : wanted->params[0] == found->params[0];
	}
	for (int w = 0; w < lengthof(integers); w++)
	{
		if (strcmp(wanted->name, integers[w]) != 0)
			continue;
		for (int f = w; f < lengthof(integers); f++)
		{
			if (strcmp(found->name, integers[f]) == 0)
				return true;
		}
	}
	return false;
}

/*
 * The scale of a NUMERIC column is told by SHOW CREATE TABLE only; one that is
 * too small rounds silently.  -1: not found.
 */
static int
shown_scale(const char *shown, const char *colname)
{
	char	   *line = psprintf("\n   %s ", target_quote_ident(colname));
	const char *p = strstr(shown, line);
	const char *end;
	int			precision;
	int			scale;

	if (p == NULL)
		return -1;
	p += strlen(line);
	end = strchr(p, '\n');
	p = strstr(p, "NUMERIC(");
	if (p == NULL || (end != NULL && p > end) || sscanf(p, "NUMERIC(%d, %d", &precision, &scale) != 2)
		return -1;
	return scale;
}

static int
find_column(const TargetTable *table, const char *name)
{
	for (int i = 0; i < table->ncols; i++)
	{
		if (strcmp(table->cols[i].name, name) == 0)
			return i;
	}
	return -1;
}

/* a column's name as information_schema tells it: one that is a type's word comes in quotes */
static char *
told_name(const char *cell)
{
	char	   *name = sync_cell_text(cell);

	if (name != NULL && pg_strcasecmp(name, "\"char\"") == 0)
	{
		name++;
		name[4] = '\0';
	}
	return name;
}

static int
int_or(const char *cell, int otherwise)
{
	char	   *text = sync_cell_text(cell);

	return text ? atoi(text) : otherwise;
}

/* the table is there with these columns: does it do?  missing[]: to be added */
static void
check_columns(CrateTarget *t, const TargetTable *table, const TargetResult *columns,
			  const char *args, bool *missing, TargetResult *res)
{
	TargetResult shown;
	char	   *shown_text = NULL;

	for (int i = 0; i < table->ncols; i++)
		missing[i] = true;
	memset(res, 0, sizeof(*res));

	for (int r = 0; r < columns->nrows; r++)
	{
		char	  **row = columns->cells[r];
		char	   *name = told_name(row[0]);
		char	   *type = sync_cell_text(row[1]);
		FoundType	found;
		FoundType	wanted;
		int			i;

		if (name == NULL || type == NULL || strchr(name, '[') != NULL)
			continue;			/* a member of an object */
		i = find_column(table, name);
		if (i < 0)
		{
			if (strcmp(row[4], "\"NO\"") == 0 && strcmp(row[5], "null") == 0 &&
				strcmp(row[6], "\"ALWAYS\"") != 0)
			{
				target_result_error(res, TARGET_REFUSED_TABLE, "columns",
									"column \"%s\" of %s in the target is NOT NULL and has no counterpart in the source",
									name, table->qualified);
				return;
			}
			continue;
		}
		missing[i] = false;
		strlcpy(found.name, type, sizeof(found.name));
		found.params[0] = int_or(row[2], -1);
		found.params[1] = -1;
		normalize_type(table->cols[i].type, &wanted);
		if (strncmp(found.name, "numeric", 7) == 0)
			found.params[0] = int_or(row[3], -1);
		if (!type_fits(&wanted, &found))
		{
			target_result_error(res, TARGET_REFUSED_TABLE, "columns",
								found.params[0] >= 0 ?
								"column \"%s\" of %s in the target is %s(%d), %s is wanted" :
								"column \"%s\" of %s in the target is %s%.0d, %s is wanted",
								name, table->qualified, type,
								found.params[0] >= 0 ? found.params[0] : 0, table->cols[i].type);
			return;
		}
		if (strncmp(wanted.name, "numeric", 7) == 0 && wanted.params[1] >= 0)
		{
			int			scale;

			if (shown_text == NULL)
			{
				sync_query(t, psprintf("SHOW CREATE TABLE %s", table->qualified), NULL, &shown);
				if (shown.outcome == TARGET_OK && shown.nrows == 1 && shown.ncols == 1)
					shown_text = sync_cell_text(shown.cells[0][0]);
				if (shown_text == NULL)
					shown_text = pstrdup("");
			}
			scale = shown_scale(shown_text, name);
			if (scale >= 0 && scale != wanted.params[1])
			{
				target_result_error(res, TARGET_REFUSED_TABLE, "columns",
									"column \"%s\" of %s in the target has scale %d, %s is wanted",
									name, table->qualified, scale, table->cols[i].type);
				return;
			}
		}
	}

	/* the key: rows are found by it, so it must be the very same */
	{
		TargetResult keys;
		StringInfoData list;
		bool		same;

		sync_rows(t, "SELECT column_name FROM information_schema.key_column_usage"
				  " WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position", args, 1, &keys);
		if (keys.outcome != TARGET_OK)
		{
			*res = keys;
			return;
		}
		initStringInfo(&list);
		same = keys.nrows == table->nkeys;
		for (int k = 0; k < keys.nrows; k++)
		{
			char	   *name = told_name(keys.cells[k][0]);
			int			i = name ? find_column(table, name) : -1;

			same = same && i >= 0 && table->cols[i].key;
			appendStringInfo(&list, "%s%s", k > 0 ? ", " : "", name ? name : "?");
		}
		if (!same)
		{
			StringInfoData want;

			initStringInfo(&want);
			for (int k = 0; k < table->nkeys; k++)
				appendStringInfo(&want, "%s%s", k > 0 ? ", " : "", table->cols[table->keys[k]].name);
			target_result_error(res, TARGET_REFUSED_TABLE, "columns",
								"the primary key of %s in the target is (%s), (%s) is wanted",
								table->qualified, list.data, want.data);
		}
	}
}

/*
 * What a strict object lacks is added to it, at any depth, as columns are to the
 * table: listed and ddl are how the object is called in the list of columns and
 * in a statement.
 */
static void
fit_members(CrateTarget *t, const TargetTable *table, const TargetResult *columns, const TargetColumn *object,
			const char *listed, const char *ddl, bool add, bool *altered, TargetResult *res)
{
	for (int i = 0; i < object->nmembers && res->outcome == TARGET_OK; i++)
	{
		const TargetColumn *member = &object->members[i];
		char	   *name = psprintf("%s['%s']", listed, member->name);
		char	   *path;
		StringInfoData buf;
		const char *type = NULL;

		if (strchr(member->name, '\'') != NULL)
			continue;			/* not to be told apart in the list */
		for (int r = 0; r < columns->nrows && type == NULL; r++)
		{
			char	   *column = sync_cell_text(columns->cells[r][0]);

			if (column != NULL && strcmp(column, name) == 0)
				type = sync_cell_text(columns->cells[r][1]);
		}
		path = psprintf("%s['%s']", ddl, member->name);
		if (type != NULL)
		{
			FoundType	found;
			FoundType	wanted;

			strlcpy(found.name, type, sizeof(found.name));
			found.params[0] = found.params[1] = -1;
			normalize_type(member->type, &wanted);
			if (!type_fits(&wanted, &found))
				target_result_error(res, TARGET_REFUSED_TABLE, "columns",
									"%s of %s in the target is %s, %s is wanted", name, table->qualified, type,
									member->type);
			else
				fit_members(t, table, columns, member, name, path, add, altered, res);
			continue;
		}
		*altered = true;
		if (!add)
			return;
		initStringInfo(&buf);
		appendStringInfo(&buf, "ALTER TABLE %s ADD COLUMN %s %s%s%s", table->qualified, path, member->type,
						 member->storage ? " " : "", member->storage ? member->storage : "");
		sync_query(t, buf.data, NULL, res);
		if (res->outcome == TARGET_REFUSED_ROWS)
			res->outcome = TARGET_REFUSED_TABLE;
	}
}

static void
sync_ensure_table(CrateTarget *t, const TargetTable *table, bool add, bool *created, bool *altered,
				  TargetResult *res)
{
	char	   *args = table_args(table->schema, table->name);
	bool	   *missing = palloc(sizeof(bool) * table->ncols);
	TargetResult columns;
	int64		epoch;

	*created = *altered = false;
	for (int attempt = 0;; attempt++)
	{
		sync_rows(t, "SELECT column_name, data_type, character_maximum_length, numeric_precision,"
				  " is_nullable, column_default, is_generated FROM information_schema.columns"
				  " WHERE table_schema = ? AND table_name = ?", args, 7, &columns);
		*res = columns;
		if (res->outcome != TARGET_OK || columns.nrows > 0)
			break;
		if (attempt > 0)
		{
			target_result_error(res, TARGET_REFUSED_TABLE, "columns",
								"%s is there in the target, but its columns cannot be seen", table->qualified);
			break;
		}
		sync_query(t, crate_ddl(table), NULL, res);
		if (res->outcome != TARGET_OK)
		{
			/* no row is involved: it is the table that cannot be made */
			if (res->outcome == TARGET_REFUSED_ROWS)
				res->outcome = TARGET_REFUSED_TABLE;
			return;
		}
		if (res->rowcount == 1)
		{
			*created = true;
			return;
		}
	}
	if (res->outcome != TARGET_OK)
		return;

	sync_rows(t, "SELECT table_type FROM information_schema.tables"
			  " WHERE table_schema = ? AND table_name = ?", args, 1, res);
	if (res->outcome != TARGET_OK)
		return;
	if (res->nrows == 1 && strcmp(res->cells[0][0], "\"BASE TABLE\"") != 0)
	{
		target_result_error(res, TARGET_REFUSED_TABLE, "columns",
							"%s in the target is not a table", table->qualified);
		return;
	}

	check_columns(t, table, &columns, args, missing, res);
	for (int i = 0; i < table->ncols && res->outcome == TARGET_OK; i++)
	{
		StringInfoData ddl;

		if (!missing[i])
			continue;
		*altered = true;
		if (!add)
			break;
		initStringInfo(&ddl);
		appendStringInfo(&ddl, "ALTER TABLE %s ADD COLUMN ", table->qualified);
		append_column_def(&ddl, &table->cols[i]);
		sync_query(t, ddl.data, NULL, res);
		if (res->outcome == TARGET_REFUSED_ROWS)
			res->outcome = TARGET_REFUSED_TABLE;
	}
	for (int i = 0; i < table->ncols && res->outcome == TARGET_OK; i++)
	{
		if (!missing[i])
			fit_members(t, table, &columns, &table->cols[i], table->cols[i].name,
						target_quote_ident(table->cols[i].name), add, altered, res);
	}
	if (res->outcome == TARGET_OK)
		sync_reachable(t, table, res);
	if (res->outcome == TARGET_OK)
	{
		/* whatever we write is fenced, and lane 0 is always there */
		sync_read_fence(t, table, 0, &epoch, res);
		*created = res->outcome == TARGET_OK && epoch == 0;
	}
}

void
crate_ensure_table(Target *target, const TargetTable *table, bool add, bool *created, bool *altered,
				   TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_ensure_table(t, table, add, created, altered, res);
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

/* one question, however many they are: answered from the cluster's state */
void
crate_identify(Target *target, const TargetTable *const *tables, int n, char **ids,
			   TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	StringInfoData args;

	initStringInfo(&args);
	raw(&args, "[[");
	for (int i = 0; i < n; i++)
	{
		int			j = 0;

		ids[i] = NULL;
		while (j < i && strcmp(tables[j]->schema, tables[i]->schema) != 0)
			j++;
		if (j < i)
			continue;
		if (i > 0)
			raw(&args, ",");
		types_json_string(&args, tables[i]->schema, strlen(tables[i]->schema));
	}
	raw(&args, "]]");
	sync_rows(t, "SELECT n.nspname, c.relname, c.oid, c.relnatts FROM pg_catalog.pg_class c"
			  " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
			  " WHERE c.relkind = 'r' AND n.nspname = ANY(?)", args.data, 4, res);
	for (int r = 0; r < res->nrows && res->outcome == TARGET_OK; r++)
	{
		char	   *schema = sync_cell_text(res->cells[r][0]);
		char	   *name = sync_cell_text(res->cells[r][1]);

		for (int i = 0; i < n && schema != NULL && name != NULL; i++)
		{
			if (ids[i] == NULL && strcmp(tables[i]->name, name) == 0 &&
				strcmp(tables[i]->schema, schema) == 0)
				ids[i] = MemoryContextStrdup(caller, psprintf("%s %s", res->cells[r][2], res->cells[r][3]));
		}
	}
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	if (res->outcome == TARGET_OK)
		sync_learn_hosts(t);
	sync_leave(t, caller, res);
}

/* the fence stays: see drop_fence */
void
crate_drop_table(Target *target, const char *schema, const char *name, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_query(t, psprintf("DROP TABLE IF EXISTS %s.%s", target_quote_ident(schema),
						   target_quote_ident(name)), NULL, res);
	sync_leave(t, caller, res);
}

/* grants belong to the table that is replaced and would go away with it */
static void
copy_grants(CrateTarget *t, const TargetTable *from, const TargetTable *to, TargetResult *res)
{
	StringInfoData args;
	StringInfoData ident;
	TargetResult grants;

	initStringInfo(&ident);
	appendStringInfo(&ident, "%s.%s", from->schema, from->name);
	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	types_json_string(&args, ident.data, ident.len);
	appendStringInfoChar(&args, ']');
	sync_rows(t, "SELECT state, type, grantee FROM sys.privileges WHERE class = 'TABLE' AND ident = ?",
			  args.data, 3, &grants);
	*res = grants;
	for (int i = 0; i < grants.nrows && res->outcome == TARGET_OK; i++)
	{
		char	   *state = sync_cell_text(grants.cells[i][0]);
		char	   *type = sync_cell_text(grants.cells[i][1]);
		char	   *grantee = sync_cell_text(grants.cells[i][2]);

		if (state == NULL || type == NULL || grantee == NULL ||
			(strcmp(state, "GRANT") != 0 && strcmp(state, "DENY") != 0) ||
			type[strspn(type, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] != '\0')
			continue;
		sync_query(t, psprintf("%s %s ON TABLE %s TO %s", state, type, to->qualified,
							   target_quote_ident(grantee)), NULL, res);
	}
	if (res->outcome == TARGET_REFUSED_ROWS)
		res->outcome = TARGET_REFUSED_TABLE;
}

void
crate_swap_table(Target *target, const TargetTable *as, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_rows(t, "SELECT table_name FROM information_schema.tables"
			  " WHERE table_schema = ? AND table_name = ?", table_args(table->schema, table->name), 1, res);
	if (res->outcome == TARGET_OK)
	{
		if (res->nrows > 0)
		{
			copy_grants(t, table, as, res);
			if (res->outcome == TARGET_OK)
				sync_query(t, psprintf("ALTER CLUSTER SWAP TABLE %s TO %s WITH (drop_source = true)",
									   as->qualified, table->qualified), NULL, res);
		}
		else
			sync_query(t, psprintf("ALTER TABLE %s RENAME TO %s", as->qualified,
								   target_quote_ident(table->name)), NULL, res);
		if (res->outcome == TARGET_REFUSED_ROWS)
			res->outcome = TARGET_REFUSED_TABLE;
	}
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}
