/*-------------------------------------------------------------------------
 *
 * rows.c
 *		Rows read back: pages, fetches, what keeps them from being seen.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/text.h"

#define REFRESH_PATIENCE	2000	/* ms until the table's health is looked at */

/*
 * A table that has lost shards keeps whoever writes or refreshes it waiting
 * for a minute; this tells at once.  Who may not see it is told that all is
 * well.
 */
void
sync_reachable(CrateTarget *t, const TargetTable *table, TargetResult *res)
{
	char	   *missing = NULL;

	sync_rows(t, "SELECT sum(missing_shards) FROM sys.health WHERE table_schema = ? AND table_name = ?",
			  table_args(table->schema, table->name), 1, res);
	if (res->outcome == TARGET_OK && res->nrows == 1)
		missing = sync_cell_text(res->cells[0][0]);
	if (missing != NULL && atoi(missing) > 0)
		target_result_error(res, TARGET_REFUSED_TABLE, "shards",
							"not all shards of %s are available in the target", table->qualified);
	else if (res->outcome != TARGET_UNREACHABLE && res->outcome != TARGET_UNKNOWN)
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
}

void
crate_reachable(Target *target, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_reachable(t, table, res);
	sync_leave(t, caller, res);
}

static void
sync_refresh(CrateTarget *t, const TargetTable *table, TargetResult *res)
{
	Answer		answer;

	build_refresh(&t->sync->body, table);
	if (sync_send_patiently(t, REFRESH_PATIENCE, &answer, res))
		return;
	sync_reachable(t, table, res);
	if (res->outcome != TARGET_OK)
		return;
	build_refresh(&t->sync->body, table);
	sync_send(t, &answer, res);
}

/* appends an answer's rows to out, from each one's place skip on */
static void
append_rows(const Answer *answer, const TargetTable *table, const int *cols, int ncols,
			int skip, RowSet *out, TargetResult *res)
{
	JsonIter	rows;
	Slice		row;

	json_iter_start(&rows, answer->rows);
	while (json_iter_next(&rows, NULL, &row))
	{
		JsonIter	cells;
		Slice		cell;
		int			n = -skip;

		json_iter_start(&cells, row);
		while (json_iter_next(&cells, NULL, &cell))
		{
			if (n >= 0 && n < ncols)
				append_answer_cell(rowset_cell(out, n), &table->cols[cols[n]], cell);
			n++;
		}
		if (cells.lex != NULL)
			pfree(cells.lex);
		if (n != ncols)
		{
			rowset_undo_row(out);
			target_result_error(res, TARGET_UNKNOWN, "answer",
								"the target's answer does not fit the question");
			return;
		}
		rowset_end_row(out);
	}
}

/* these can be sorted but not compared, nor cast to TEXT: format() does that */
static inline bool
pages_as_text(const TargetColumn *col)
{
	return type_is(col->type, "UUID") || type_is(col->type, "BIT");
}

static void
append_page_key(StringInfo buf, const TargetTable *table, int k)
{
	bool		as_text = pages_as_text(&table->cols[table->keys[k]]);

	if (as_text)
		raw(buf, "format('%s',");
	sql_column(buf, table, table->keys[k]);
	if (as_text)
		raw(buf, ")");
}

static void
append_page_arg(StringInfo buf, const TargetTable *table, int k)
{
	const TargetColumn *col = &table->cols[table->keys[k]];

	if (pages_as_text(col))
		raw(buf, "format('%s',");
	raw(buf, "?::");
	sql_text(buf, sent_type(col));
	if (pages_as_text(col))
		raw(buf, ")");
}

void
crate_page(Target *target, const TargetTable *table, const int *cols, int ncols,
		   const RowSet *after, int limit, bool refresh, RowSet *out, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	StringInfo	buf = &t->sync->body;
	Answer		answer;

	if (refresh)
	{
		sync_refresh(t, table, res);
		if (res->outcome != TARGET_OK)
		{
			sync_leave(t, caller, res);
			return;
		}
	}

	begin_statement(buf);
	raw(buf, "SELECT ");
	for (int i = 0; i < ncols; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		sql_column(buf, table, cols[i]);
	}
	raw(buf, " FROM ");
	sql_text(buf, table->qualified);
	if (after != NULL)
	{
		/* (a, b) > (x, y): a >= x AND (a > x OR (a = x AND b > y)) */
		raw(buf, " WHERE ");
		append_page_key(buf, table, 0);
		appendStringInfoString(buf, table->nkeys > 1 ? " >= " : " > ");
		append_page_arg(buf, table, 0);
		for (int last = 0; table->nkeys > 1 && last < table->nkeys; last++)
		{
			appendStringInfoString(buf, last == 0 ? " AND (" : " OR ");
			for (int k = 0; k <= last; k++)
			{
				appendStringInfoString(buf, k == 0 ? "(" : " AND ");
				append_page_key(buf, table, k);
				appendStringInfoString(buf, k == last ? " > " : " = ");
				append_page_arg(buf, table, k);
			}
			appendStringInfoString(buf, last == table->nkeys - 1 ? "))" : ")");
		}
	}
	raw(buf, " ORDER BY ");
	for (int k = 0; k < table->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoChar(buf, ',');
		append_page_key(buf, table, k);
	}
	appendStringInfo(buf, " LIMIT %d\"", limit);
	if (after != NULL)
	{
		int			len;
		const char *cell;

		raw(buf, ",\"args\":[");
		cell = rowset_get(after, 0, 0, &len);
		appendBinaryStringInfo(buf, cell, len);
		for (int last = 0; table->nkeys > 1 && last < table->nkeys; last++)
		{
			for (int k = 0; k <= last; k++)
			{
				appendStringInfoChar(buf, ',');
				cell = rowset_get(after, 0, k, &len);
				appendBinaryStringInfo(buf, cell, len);
			}
		}
		raw(buf, "]");
	}
	raw(buf, "}");
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		append_rows(&answer, table, cols, ncols, 0, out, res);
	sync_leave(t, caller, res);
}

void
crate_fetch(Target *target, const TargetTable *table, const int *cols, int ncols,
			const RowSet *keys, int lo, int hi, bool fresh, RowSet *out, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	ColumnList	list = {cols, ncols};
	Answer		answer;

	memset(res, 0, sizeof(*res));
	if (table->nkeys > 1 && fresh)
		sync_refresh(t, table, res);
	while (res->outcome == TARGET_OK && lo < hi)
	{
		int			end = fresh ? lookup_chunk(table, keys, lo, hi) : hi;

		if (rowset_live(keys, lo, end) > 0)
		{
			if (table->nkeys == 1 && !fresh)
				build_search(&t->sync->body, table, keys, lo, end, &list);
			else
				build_lookup(&t->sync->body, table, keys, lo, end, NULL, what_columns, &list);
			sync_send(t, &answer, res);
			if (res->outcome == TARGET_OK)
				append_rows(&answer, table, cols, ncols, table->nkeys > 1 ? 1 : 0, out, res);
		}
		lo = end;
	}
	sync_leave(t, caller, res);
}

void
crate_refresh(Target *target, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_refresh(t, table, res);
	sync_leave(t, caller, res);
}
