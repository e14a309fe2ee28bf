/*-------------------------------------------------------------------------
 *
 * statement.c
 *		What CrateDB is asked: statements and their arguments.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "common/hashfn.h"
#include "base/text.h"

#define MAX_LOOKUP_KEYS		1000	/* far more in one IN silently find nothing */
#define MAX_LOOKUP_BYTES	190000	/* of keys in a statement, which may have 262144 */

/* ---------------------------------------------------------------------
 * Writing statements: a request's body is JSON, {"stmt":"...","args":[...]},
 * and is built front to back in one buffer
 * ------------------------------------------------------------------- */

void
begin_statement(StringInfo buf)
{
	resetStringInfo(buf);
	raw(buf, "{\"stmt\":\"");
}

/* text that needs JSON's escapes, inside of the statement */
void
sql_text(StringInfo buf, const char *text)
{
	int			at = buf->len;

	types_json_string(buf, text, strlen(text));
	buf->len -= 2;
	memmove(buf->data + at, buf->data + at + 1, buf->len - at);
	buf->data[buf->len] = '\0';
}

void
sql_column(StringInfo buf, const TargetTable *table, int col)
{
	char	   *quoted = target_quote_ident(table->cols[col].name);

	sql_text(buf, quoted);
	pfree(quoted);
}

bool
type_is(const char *type, const char *word)
{
	int			len = strlen(word);

	return pg_strncasecmp(type, word, len) == 0 && !isalnum((unsigned char) type[len]) && type[len] != '_';
}

/* UNNEST would flatten these; a member of an object passes as it is */
static inline bool
wrapped(const TargetColumn *col)
{
	return col->kind == CELL_ARRAY;
}

/*
 * Objects go as text and are parsed row by row: as ARRAY(OBJECT) all of a request
 * would have to agree on a type for each member, 1 beside 1.5 becomes 1.0,
 * and 1 beside "x" is refused.
 */
static inline bool
has_objects(const TargetColumn *col)
{
	const char *type = col->type;

	while (type_is(type, "ARRAY") && strchr(type, '(') != NULL)
		type = strchr(type, '(') + 1;
	return type_is(type, "OBJECT");
}

/* the type a cell is sent as: a cast must neither cut nor reshape it */
const char *
sent_type(const TargetColumn *col)
{
	if (has_objects(col))
		return "TEXT";
	if (wrapped(col))
		return "OBJECT";
	if (type_is(col->type, "VARCHAR") || type_is(col->type, "CHARACTER") || type_is(col->type, "CHAR"))
		return "TEXT";
	return col->type;
}

static void
sql_array_arg(StringInfo buf, const TargetColumn *col)
{
	raw(buf, "?::ARRAY(");
	sql_text(buf, sent_type(col));
	raw(buf, ")");
}

/* names table and lane, the same for every epoch; 16 hex digits and the lane */
void
append_marker_id(StringInfo buf, const TargetTable *table, int lane)
{
	appendStringInfo(buf, "%016llx %d ",
					 (unsigned long long) hash_bytes_extended((const unsigned char *) table->qualified,
															  strlen(table->qualified), 0),
					 lane);
}

/* nothing that a user has written: it could end the comment */
void
append_marker(StringInfo buf, const TargetRequest *req)
{
	raw(buf, MARKER);
	for (const char *p = req->table->token; *p; p++)
	{
		if (isalnum((unsigned char) *p))
			appendStringInfoChar(buf, *p);
	}
	appendStringInfoChar(buf, ' ');
	append_marker_id(buf, req->table, req->lane);
	appendStringInfo(buf, INT64_FORMAT " */ ", req->epoch);
}

static char *
fence_id(const TargetTable *table, int lane)
{
	return psprintf("%s#%d", table->qualified, lane);
}

void
append_fence_id(StringInfo buf, const TargetTable *table, int lane)
{
	char	   *id = fence_id(table, lane);

	types_json_string(buf, id, strlen(id));
	pfree(id);
}

/* what all its fences' names begin with, as a JSON string; end: what comes behind all of them */
void
append_fence_prefix(StringInfo buf, const TargetTable *table, bool end)
{
	char	   *id = psprintf("%s%c", table->qualified, end ? '#' + 1 : '#');

	types_json_string(buf, id, strlen(id));
	pfree(id);
}

/* a column's cells as a JSON array */
static void
append_cells(StringInfo buf, const RowSet *rows, int place, const TargetColumn *col, int lo, int hi)
{
	bool		as_text = has_objects(col);

	appendStringInfoChar(buf, '[');
	if (!wrapped(col) && !as_text)
		rowset_render_column(rows, place, lo, hi, buf);
	else
	{
		bool		first = true;
		StringInfoData whole;

		initStringInfo(&whole);

		for (int i = lo; i < hi; i++)
		{
			int			len;
			const char *cell;

			if (rows->dead != NULL && rows->dead[i])
				continue;
			if (!first)
				appendStringInfoChar(buf, ',');
			first = false;
			cell = rowset_get(rows, i, place, &len);
			if (len == 4 && memcmp(cell, "null", 4) == 0)
			{
				raw(buf, "null");
				continue;
			}
			if (wrapped(col))
			{
				resetStringInfo(&whole);
				raw(&whole, "{\"v\":");
				appendBinaryStringInfo(&whole, cell, len);
				appendStringInfoChar(&whole, '}');
				cell = whole.data;
				len = whole.len;
			}
			if (as_text)
				types_json_utf8(buf, cell, len);
			else
				appendBinaryStringInfo(buf, cell, len);
		}
		pfree(whole.data);
	}
	appendStringInfoChar(buf, ']');
}

/* bytes that rows lo <= i < hi take as cells, dead ones included */
Size
cells_size(const RowSet *rows, int lo, int hi)
{
	Size		size = 0;

	if (hi <= lo)
		return 0;
	for (int c = 0; c < rows->ncols; c++)
	{
		const uint32 *end = rows->cols[c].end;

		/* "{"v":}" at most comes on top of a cell */
		size += end[hi - 1] - (lo > 0 ? end[lo - 1] : 0) + (Size) (hi - lo) * 6;
	}
	return size;
}

void
build_upsert(StringInfo buf, const TargetRequest *req)
{
	const TargetTable *table = req->table;
	bool		first = true;

	begin_statement(buf);
	append_marker(buf, req);
	raw(buf, "INSERT INTO ");
	sql_text(buf, table->qualified);
	for (int i = 0; i < table->ncols; i++)
	{
		appendStringInfoString(buf, i == 0 ? " (" : ",");
		sql_column(buf, table, i);
	}
	raw(buf, ") (SELECT ");
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(buf, "%s(u.c%d%s)%s", i == 0 ? "" : ",", i,
						 has_objects(&table->cols[i]) ? "::OBJECT(IGNORED)" : "",
						 wrapped(&table->cols[i]) ? "['v']" : "");
	raw(buf, " FROM UNNEST(");
	for (int i = 0; i < table->ncols; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		sql_array_arg(buf, &table->cols[i]);
	}
	raw(buf, ") AS u (");
	for (int i = 0; i < table->ncols; i++)
		appendStringInfo(buf, "%sc%d", i == 0 ? "" : ",", i);
	raw(buf, ") WHERE (SELECT epoch FROM " FENCE_TABLE " WHERE id = ?) = ?) ON CONFLICT (");
	for (int i = 0; i < table->nkeys; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		sql_column(buf, table, table->keys[i]);
	}
	if (table->nkeys == table->ncols)
		raw(buf, ") DO NOTHING");
	else
	{
		raw(buf, ") DO UPDATE SET ");
		for (int i = 0; i < table->ncols; i++)
		{
			/* partitioned and clustered by columns are key columns, too */
			if (table->cols[i].key)
				continue;
			if (!first)
				appendStringInfoChar(buf, ',');
			first = false;
			sql_column(buf, table, i);
			raw(buf, " = excluded.");
			sql_column(buf, table, i);
		}
	}
	raw(buf, "\",\"args\":[");
	for (int i = 0; i < table->ncols; i++)
	{
		append_cells(buf, req->rows, i, &table->cols[i], req->lo, req->hi);
		appendStringInfoChar(buf, ',');
	}
	append_fence_id(buf, table, req->lane);
	appendStringInfo(buf, "," INT64_FORMAT "]}", req->epoch);
}

/*
 * A key cell as a literal.  A cell's text has JSON's escapes already, and so
 * has the statement around it; SQL asks for doubled quotes on top.
 */
static void
append_literal(StringInfo buf, const TargetColumn *col, const char *cell, int len)
{
	bool		plain = false;

	if (col->kind == CELL_INT || col->kind == CELL_TIMESTAMP)
		plain = strspn(cell, "-0123456789") >= len;
	else if (col->kind == CELL_BOOL)
		plain = (len == 4 && memcmp(cell, "true", 4) == 0) ||
			(len == 5 && memcmp(cell, "false", 5) == 0);
	if (plain)
	{
		appendBinaryStringInfo(buf, cell, len);
		return;
	}

	if (len >= 2 && *cell == '"')
	{
		cell++;
		len -= 2;
	}
	else if (memchr(cell, '"', len) != NULL)
	{
		/* no value of a key: there is no such row, and its quotes would end the statement */
		raw(buf, "NULL");
		return;
	}
	if (type_is(col->type, "BIT"))
		appendStringInfoChar(buf, 'B');
	appendStringInfoChar(buf, '\'');
	for (int i = 0; i < len; i++)
	{
		if (cell[i] == '\\' && len - i >= 6 && memcmp(cell + i, "\\u0027", 6) == 0)
		{
			raw(buf, "''");
			i += 5;
		}
		else if (cell[i] == '\\' && i + 1 < len)
		{
			appendBinaryStringInfo(buf, cell + i, 2);
			i++;
		}
		else
		{
			if (cell[i] == '\'')
				appendStringInfoChar(buf, '\'');
			appendStringInfoChar(buf, cell[i]);
		}
	}
	appendStringInfoChar(buf, '\'');
	if (col->kind != CELL_TEXT)
	{
		raw(buf, "::");
		sql_text(buf, col->type);
	}
}

/* where key k's cells are in a row set of all columns, or of keys only */
int
key_place(const TargetTable *table, const RowSet *rows, int k)
{
	return rows->ncols == table->nkeys ? k : table->keys[k];
}

/* the end of a chunk of keys that one lookup can take */
int
lookup_chunk(const TargetTable *table, const RowSet *rows, int lo, int hi)
{
	int			n = 0;
	Size		bytes = 0;
	int			i;

	for (i = lo; i < hi && n < MAX_LOOKUP_KEYS; i++)
	{
		if (rows->dead != NULL && rows->dead[i])
			continue;
		for (int k = 0; k < table->nkeys; k++)
		{
			int			len;

			rowset_get(rows, i, key_place(table, rows, k), &len);
			bytes += 2 * len + 40;
		}
		if (n > 0 && bytes > MAX_LOOKUP_BYTES)
			break;
		n++;
	}
	return i;
}

/*
 * Looks rows up by key.  The select list is what(), from t, or, for a
 * composite key, the number of the key looked for (live ones counted from 0)
 * and then what().  With a request, its fence's epoch and the target's clock
 * follow; it is marked as a write is, so that who raises the fence waits until
 * the versions found under an older one are none of his.
 *
 * One key column: literals, which find rows not yet refreshed.  Several: that
 * way costs seconds, so the caller refreshes first, and the keys come as
 * arrays to be joined with; the IN-like conditions keep the join from
 * reading the whole table.
 */
void
build_lookup(StringInfo buf, const TargetTable *table, const RowSet *rows, int lo, int hi,
			 const TargetRequest *req,
			 void (*what) (StringInfo buf, const TargetTable *table, void *arg), void *arg)
{
	bool		first = true;

	begin_statement(buf);
	if (req != NULL)
		append_marker(buf, req);
	raw(buf, "SELECT ");
	if (table->nkeys > 1)
		raw(buf, "u.i,");
	what(buf, table, arg);
	if (req != NULL)
		raw(buf, ",(SELECT epoch FROM " FENCE_TABLE " WHERE id = ?),CURRENT_TIMESTAMP");
	raw(buf, " FROM ");
	sql_text(buf, table->qualified);
	raw(buf, " AS t");

	if (table->nkeys == 1)
	{
		const TargetColumn *col = &table->cols[table->keys[0]];

		raw(buf, " WHERE t.");
		sql_column(buf, table, table->keys[0]);
		raw(buf, " IN (");
		for (int i = lo; i < hi; i++)
		{
			int			len;
			const char *cell;

			if (rows->dead != NULL && rows->dead[i])
				continue;
			if (!first)
				appendStringInfoChar(buf, ',');
			first = false;
			cell = rowset_get(rows, i, key_place(table, rows, 0), &len);
			append_literal(buf, col, cell, len);
		}
		raw(buf, ")\"");
		if (req != NULL)
		{
			raw(buf, ",\"args\":[");
			append_fence_id(buf, table, req->lane);
			raw(buf, "]");
		}
		raw(buf, "}");
		return;
	}

	raw(buf, " JOIN UNNEST(");
	for (int k = 0; k < table->nkeys; k++)
	{
		sql_array_arg(buf, &table->cols[table->keys[k]]);
		appendStringInfoChar(buf, ',');
	}
	raw(buf, "?::ARRAY(INTEGER)) AS u (");
	for (int k = 0; k < table->nkeys; k++)
		appendStringInfo(buf, "k%d,", k);
	raw(buf, "i) ON ");
	for (int k = 0; k < table->nkeys; k++)
	{
		appendStringInfoString(buf, k == 0 ? "t." : " AND t.");
		sql_column(buf, table, table->keys[k]);
		appendStringInfo(buf, " = u.k%d", k);
	}
	for (int k = 0; k < table->nkeys; k++)
	{
		appendStringInfoString(buf, k == 0 ? " WHERE t." : " AND t.");
		sql_column(buf, table, table->keys[k]);
		raw(buf, " = ANY(");
		sql_array_arg(buf, &table->cols[table->keys[k]]);
		raw(buf, ")");
	}
	raw(buf, "\",\"args\":[");
	if (req != NULL)
	{
		append_fence_id(buf, table, req->lane);
		raw(buf, ",");
	}
	for (int k = 0; k < table->nkeys; k++)
	{
		append_cells(buf, rows, key_place(table, rows, k), &table->cols[table->keys[k]], lo, hi);
		appendStringInfoChar(buf, ',');
	}
	for (int i = 0, n = rowset_live(rows, lo, hi); i < n; i++)
		appendStringInfo(buf, "%c%d", i == 0 ? '[' : ',', i);
	raw(buf, "]");
	for (int k = 0; k < table->nkeys; k++)
	{
		appendStringInfoChar(buf, ',');
		append_cells(buf, rows, key_place(table, rows, k), &table->cols[table->keys[k]], lo, hi);
	}
	raw(buf, "]}");
}

void
what_version(StringInfo buf, const TargetTable *table, void *arg)
{
	if (table->nkeys == 1)
	{
		raw(buf, "t.");
		sql_column(buf, table, table->keys[0]);
		raw(buf, ",");
	}
	raw(buf, "t._seq_no,t._primary_term");
}

void
what_columns(StringInfo buf, const TargetTable *table, void *arg)
{
	const ColumnList *list = arg;

	for (int i = 0; i < list->ncols; i++)
	{
		appendStringInfoString(buf, i == 0 ? "t." : ",t.");
		sql_column(buf, table, list->cols[i]);
	}
}

/*
 * Columns of the rows with these keys, of one column, as a search: it takes
 * thousands of keys as fast as the target answers, but misses rows that are
 * not refreshed.
 */
void
build_search(StringInfo buf, const TargetTable *table, const RowSet *rows, int lo, int hi,
			 ColumnList *list)
{
	const TargetColumn *col = &table->cols[table->keys[0]];

	begin_statement(buf);
	raw(buf, "SELECT ");
	what_columns(buf, table, list);
	raw(buf, " FROM ");
	sql_text(buf, table->qualified);
	raw(buf, " AS t WHERE t.");
	sql_column(buf, table, table->keys[0]);
	raw(buf, " = ANY(");
	sql_array_arg(buf, col);
	raw(buf, ")\",\"args\":[");
	append_cells(buf, rows, key_place(table, rows, 0), col, lo, hi);
	raw(buf, "]}");
}

void
build_refresh(StringInfo buf, const TargetTable *table)
{
	begin_statement(buf);
	raw(buf, "REFRESH TABLE ");
	sql_text(buf, table->qualified);
	raw(buf, "\"}");
}

void
build_count_columns(StringInfo buf, const TargetTable *table)
{
	begin_statement(buf);
	raw(buf, "SELECT count(*) FROM information_schema.columns WHERE table_schema = ? AND table_name = ?\",\"args\":[");
	types_json_string(buf, table->schema, strlen(table->schema));
	appendStringInfoChar(buf, ',');
	types_json_string(buf, table->name, strlen(table->name));
	raw(buf, "]}");
}

/* the beginning of a DELETE of one row; what else it has to be follows */
void
append_delete_of_key(StringInfo buf, const TargetTable *table)
{
	raw(buf, "DELETE FROM ");
	sql_text(buf, table->qualified);
	raw(buf, " WHERE ");
	for (int k = 0; k < table->nkeys; k++)
	{
		sql_column(buf, table, table->keys[k]);
		raw(buf, " = ? AND ");
	}
}

/*
 * Deletes a version of the row that no row ever has: it changes nothing, but
 * a blocked table, which drops rows without a word, says here why.
 */
void
build_probe(StringInfo buf, const TargetRequest *req)
{
	const TargetTable *table = req->table;
	int			row = req->lo;

	while (req->rows->dead != NULL && req->rows->dead[row])
		row++;
	begin_statement(buf);
	append_delete_of_key(buf, table);
	raw(buf, "_seq_no = 9007199254740991 AND _primary_term = 1\",\"args\":[");
	for (int k = 0; k < table->nkeys; k++)
	{
		int			len;
		const char *cell = rowset_get(req->rows, row, key_place(table, req->rows, k), &len);

		if (k > 0)
			appendStringInfoChar(buf, ',');
		appendBinaryStringInfo(buf, cell, len);
	}
	raw(buf, "]}");
}

void
build_read_fence(StringInfo buf, const TargetTable *table, int lane)
{
	begin_statement(buf);
	raw(buf, "SELECT epoch FROM " FENCE_TABLE " WHERE id = ?\",\"args\":[");
	append_fence_id(buf, table, lane);
	raw(buf, "]}");
}
