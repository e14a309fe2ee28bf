/*-------------------------------------------------------------------------
 *
 * answer.c
 *		Whatever a target answers: no crash, no error thrown, no nonsense let
 *		through.
 *
 * The input: a letter for the call, one for the table, then the answers (see
 * fuzz_http.c).
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "base/settings.h"
#include "fuzz.h"
#include "target/rowset.h"
#include "target/target.h"

#define NROWS 3

static TargetColumn columns[] = {
	{"id", "BIGINT", NULL, CELL_INT, true},
	{"na\"me's", "TEXT", NULL, CELL_TEXT},
	{"n", "NUMERIC(10, 2)", NULL, CELL_NUMERIC},
	{"bits", "BIT(3)", NULL, CELL_TEXT},
	{"list", "ARRAY(TEXT)", NULL, CELL_ARRAY},
	{"object", "OBJECT(DYNAMIC)", NULL, CELL_JSON},
	{"at", "TIMESTAMP WITH TIME ZONE", NULL, CELL_TIMESTAMP},
	{"f", "DOUBLE PRECISION", NULL, CELL_FLOAT}
};
static const char *const cells[][NROWS] = {
	{"1", "-2", "9223372036854775807"},
	{"\"a\"", "\"it's \\\"\\u0001\\\\\"", "\"\""},
	{"\"1.50\"", "\"-7\"", "\"0.00\""},
	{"\"010\"", "\"111\"", "\"000\""},
	{"[]", "[\"a\",null]", "[[\"]\"]]"},
	{"{}", "{\"a\":{\"b\":[1]}}", "null"},
	{"0", "-1", "null"},
	{"1.0", "\"NaN\"", "1e+300"}
};

/* the key columns of each variant */
static const struct
{
	int			nkeys;
	int			keys[3];
	bool		all;			/* nothing but the key */
}			variants[] =
{
	{1, {0}}, {1, {1}}, {1, {2}}, {1, {3}}, {3, {1, 2, 3}}, {2, {0, 6}}, {2, {0, 1}, true}
};

static void
make_table(TargetTable *table, int variant)
{
	memset(table, 0, sizeof(*table));
	table->schema = "doc";
	table->name = "t\"able";
	table->qualified = "\"doc\".\"t\"\"able\"";
	strcpy(table->token, "0123abc");
	table->nkeys = variants[variant].nkeys;
	table->keys = palloc(sizeof(int) * table->nkeys);
	table->cols = palloc(sizeof(columns));
	memcpy(table->cols, columns, sizeof(columns));
	table->ncols = variants[variant].all ? table->nkeys : lengthof(columns);
	for (int i = 0; i < table->ncols; i++)
		table->cols[i].key = false;
	for (int k = 0; k < table->nkeys; k++)
	{
		table->keys[k] = variants[variant].keys[k];
		table->cols[table->keys[k]].key = true;
	}
}

static RowSet *
make_rows(const TargetTable *table, bool keys_only)
{
	RowSet	   *rows = rowset_create(CurrentMemoryContext, keys_only ? table->nkeys : table->ncols);

	for (int r = 0; r < NROWS; r++)
	{
		for (int c = 0; c < rows->ncols; c++)
			appendStringInfoString(rowset_cell(rows, c), cells[keys_only ? table->keys[c] : c][r]);
		rowset_end_row(rows);
	}
	return rows;
}

static void
check_result(const TargetResult *res)
{
	if ((int) res->outcome < 0 || res->outcome > TARGET_UNKNOWN)
		fuzz_fail("outcome %d", (int) res->outcome);
	if (strnlen(res->code, sizeof(res->code)) == sizeof(res->code))
		fuzz_fail("a code without an end");
	if (res->outcome != TARGET_OK && (res->code[0] == '\0' || res->message == NULL))
		fuzz_fail("outcome %d without code or message", (int) res->outcome);
	fuzz_check_message(res->message);
	for (int c = 0; c < res->ncols; c++)
		fuzz_check_message(res->colnames[c]);
	for (int r = 0; r < res->nrows; r++)
	{
		for (int c = 0; c < res->ncols; c++)
			fuzz_check_json("a cell", res->cells[r][c], strlen(res->cells[r][c]));
	}
}

static void
check_rows(const RowSet *out)
{
	StringInfoData all;

	for (int c = 0; c < out->ncols; c++)
	{
		for (int r = 0; r < out->nrows; r++)
		{
			int			len;
			const char *cell = rowset_get(out, r, c, &len);

			fuzz_check_json("a cell read", cell, len);
		}
		initStringInfo(&all);
		appendStringInfoChar(&all, '[');
		rowset_render_column(out, c, 0, out->nrows, &all);
		appendStringInfoChar(&all, ']');
		fuzz_check_json("a column", all.data, all.len);
	}
}

static void
do_write(Target *t, const TargetTable *table, TargetRequestKind kind, bool explain)
{
	TargetRequest req;
	int			hi = explain ? 1 : NROWS;

	memset(&req, 0, sizeof(req));
	req.kind = kind;
	req.table = table;
	req.lane = 1;
	req.epoch = 7;
	req.rows = make_rows(table, kind == TARGET_DELETE);
	req.hi = hi;
	req.explain = explain;
	if (!t->ops->submit(t, &req))
		fuzz_fail("no connection is free");
	for (int i = 0; !req.done; i++)
	{
		if (i > 50)
			fuzz_fail("a write does not end");
		t->ops->poll(t, 0, 0);
	}
	if (req.nwritten < 0 || req.nwritten > hi)
		fuzz_fail("%lld of %d rows were written", (long long) req.nwritten, hi);
	if (strnlen(req.code, sizeof(req.code)) == sizeof(req.code))
		fuzz_fail("a code without an end");
	fuzz_check_message(req.message);
	target_request_reset(&req);
}

static void
answer_one(const char *data, int len)
{
	Target	   *t;
	TargetTable table;
	TargetResult res;
	TargetInfo	info;
	RowSet	   *out;
	int64		epoch = 0;
	bool		created;
	bool		altered;
	int			all[] = {0, 1, 2, 3, 4, 5, 6, 7};

	if (len < 3)
		return;
	make_table(&table, ((unsigned char) data[1] - 'a') % lengthof(variants));
	cs_request_timeout = 0;
	fuzz_http_answers(data + 2, data + len);
	t = target_crate_ops.open("http://localhost");
	out = rowset_create(CurrentMemoryContext, table.ncols);
	memset(&res, 0, sizeof(res));
	switch (((unsigned char) data[0] - 'a') % 14)
	{
		case 0:
			t->ops->check(t, &info, &res);
			if (res.outcome == TARGET_OK && info.version_num < 40200)
				fuzz_fail("version %d is accepted", info.version_num);
			break;
		case 1:
			t->ops->statement(t, "SELECT 'a\"' -- \\", "[1]", &res);
			break;
		case 2:
			do_write(t, &table, TARGET_UPSERT, false);
			break;
		case 3:
			do_write(t, &table, TARGET_UPSERT, true);
			break;
		case 4:
			do_write(t, &table, TARGET_DELETE, false);
			break;
		case 5:
			t->ops->ensure_table(t, &table, true, &created, &altered, &res);
			break;
		case 6:
			t->ops->raise_fence(t, &table, 1, &epoch, &res);
			if (res.outcome == TARGET_OK && epoch <= 0)
				fuzz_fail("a fence of epoch %lld", (long long) epoch);
			break;
		case 7:
			t->ops->read_fence(t, &table, 1, &epoch, &res);
			break;
		case 8:
			t->ops->page(t, &table, all, table.ncols, NULL, 10, true, out, &res);
			break;
		case 9:
			t->ops->page(t, &table, all, table.ncols, make_rows(&table, true), 10, false, out, &res);
			break;
		case 10:
			t->ops->fetch(t, &table, all, table.ncols, make_rows(&table, true), 0, NROWS, true,
						  out, &res);
			break;
		case 11:
			t->ops->fetch(t, &table, all, table.ncols, make_rows(&table, true), 0, NROWS, false,
						  out, &res);
			break;
		case 12:
			t->ops->drop_table(t, table.schema, table.name, &res);
			break;
		case 13:
			{
				TargetTable as = table;

				as.name = "other";
				as.qualified = "\"doc\".\"other\"";
				t->ops->swap_table(t, &as, &table, &res);
				break;
			}
	}
	check_result(&res);
	check_rows(out);
	t->ops->close(t);
}

const FuzzHarness fuzz_answer = {"answer", NULL, answer_one, false, true};
