/*-------------------------------------------------------------------------
 *
 * request.c
 *		Whatever names and values are: a request is JSON, and neither a name
 *		nor a value becomes a part of its SQL.
 *
 * The input: a letter for the call, one for the table, then parts: schema,
 * table, two columns, two values.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "base/settings.h"
#include "base/text.h"
#include "fuzz.h"
#include "mb/pg_wchar.h"
#include "mirror/types.h"
#include "target/rowset.h"
#include "target/target.h"

#define NPARTS 6

static char *idents[8];
static int	nidents;
static char *literals[16];
static int	nliterals;
static char *values[8];			/* strings that a request's args may have */
static int	nvalues;
static char *key_cell;			/* of the first row, JSON */
static int	nkeys;

static void
check_value(const char *text)
{
	for (int i = 0; i < nvalues; i++)
	{
		if (strcmp(values[i], text) == 0)
			return;
	}
	fuzz_fail("the arguments say \"%s\", which is nobody's value", text);
}

/* {"stmt": ..., "args": ...}: its first string value is SQL, others are values */
static void
check_request(const char *body, int len)
{
	int			n = 0;
	int			depth = 0;

	for (int i = 0; i < len; i++)
	{
		int			start = i;
		char	   *text;

		if (strchr("[{", body[i]))
			depth++;
		else if (strchr("]}", body[i]))
			depth--;
		if (body[i] != '"')
			continue;
		for (i++; body[i] != '"'; i++)
			i += body[i] == '\\';
		text = fuzz_json_decode(body + start, i + 1 - start, NULL);
		n++;
		if (n == 1 && strcmp(text, "stmt") != 0)
			fuzz_fail("no statement: %s", body);
		else if (n == 2)
			fuzz_check_sql(text, idents, nidents, literals, nliterals);
		else if (n > 2 && !(depth == 1 && (strcmp(text, "args") == 0 || strcmp(text, "bulk_args") == 0)))
			check_value(text);
	}
}

/* what a target would say to it */
static const char *
reply(const char *body, int len)
{
	if (strstr(body, "bulk_args"))
		return "{\"cols\":[],\"results\":[{\"rowcount\":1}],\"rowcount\":1}";
	if (strstr(body, "_seq_no"))
		return nkeys > 1 ? "{\"cols\":[\"i\",\"a\",\"b\"],\"rows\":[[0,3,1]],\"rowcount\":1}" :
			psprintf("{\"cols\":[\"i\",\"a\",\"b\"],\"rows\":[[%s,3,1]],\"rowcount\":1}", key_cell);
	return "{\"cols\":[],\"rows\":[],\"rowcount\":0,\"duration\":1.5}";
}

static void
request_one(const char *data, int len)
{
	static const struct
	{
		const char *type;
		CellKind	kind;
	}			types[] =
	{
		{"TEXT", CELL_TEXT}, {"UUID", CELL_TEXT}, {"IP", CELL_TEXT}, {"BIT(3)", CELL_TEXT},
		{"NUMERIC(5, 1)", CELL_NUMERIC}, {"VARCHAR(9)", CELL_TEXT}, {"DOUBLE PRECISION", CELL_FLOAT}
	};
	const char *p = data + 2;
	char	   *part[NPARTS];
	Target	   *t;
	TargetTable table;
	TargetColumn cols[2];
	TargetResult res;
	TargetRequest req;
	RowSet	   *rows;
	RowSet	   *keys;
	RowSet	   *out;
	bool		created;
	bool		altered;
	int64		epoch;
	int			both[] = {0, 1};
	int			variant;

	if (len < 3)
		return;
	for (int i = 0; i < NPARTS; i++)
	{
		int			n;

		part[i] = fuzz_part(&p, data + len, &n);
		if (!fuzz_valid(PG_UTF8, part[i], n))
			return;
	}
	variant = ((unsigned char) data[1] - 'a') & 0x3f;
	nkeys = variant % 2 + 1;

	memset(&table, 0, sizeof(table));
	memset(cols, 0, sizeof(cols));
	table.schema = part[0];
	table.name = part[1];
	table.qualified = psprintf("%s.%s", target_quote_ident(part[0]), target_quote_ident(part[1]));
	table.ncols = 2;
	table.cols = cols;
	table.nkeys = nkeys;
	table.keys = both;
	strlcpy(table.token, part[0], sizeof(table.token));
	for (int i = 0; i < 2; i++)
	{
		cols[i].name = part[2 + i];
		cols[i].type = unconstify(char *, types[variant / 2 % lengthof(types)].type);
		cols[i].kind = types[variant / 2 % lengthof(types)].kind;
		cols[i].key = i < nkeys;
	}

	nidents = 0;
	for (int i = 0; i < 4; i++)
		idents[nidents++] = part[i];
	nvalues = 0;
	values[nvalues++] = part[4];
	values[nvalues++] = part[5];
	values[nvalues++] = part[0];
	values[nvalues++] = part[1];
	values[nvalues++] = psprintf("%s#1", table.qualified);
	values[nvalues++] = "v";
	nliterals = 0;
	literals[nliterals++] = part[4];
	literals[nliterals++] = part[5];
	literals[nliterals++] = "%s";
	literals[nliterals++] = "0-1";
	literals[nliterals++] = "strict";

	rows = rowset_create(CurrentMemoryContext, 2);
	keys = rowset_create(CurrentMemoryContext, nkeys);
	out = rowset_create(CurrentMemoryContext, 2);
	for (int i = 0; i < 2; i++)
	{
		types_json_utf8(rowset_cell(rows, i), part[4 + i], strlen(part[4 + i]));
		if (i < nkeys)
			types_json_utf8(rowset_cell(keys, i), part[4 + i], strlen(part[4 + i]));
	}
	key_cell = pstrdup(rowset_cell(rows, 0)->data);
	rowset_end_row(rows);
	rowset_end_row(keys);

	fuzz_http_answers(NULL, NULL);
	fuzz_http_request = check_request;
	fuzz_http_reply = reply;
	cs_request_timeout = 0;
	t = target_crate_ops.open("http://localhost");
	memset(&res, 0, sizeof(res));
	memset(&req, 0, sizeof(req));
	switch (((unsigned char) data[0] - 'a') % 8)
	{
		case 0:
		case 1:
			req.kind = data[0] & 1 ? TARGET_UPSERT : TARGET_DELETE;
			req.table = &table;
			req.lane = 1;
			req.rows = req.kind == TARGET_UPSERT ? rows : keys;
			req.hi = 1;
			t->ops->submit(t, &req);
			for (int i = 0; !req.done; i++)
			{
				if (i > 50)
					fuzz_fail("a write does not end");
				t->ops->poll(t, 0, 0);
			}
			target_request_reset(&req);
			break;
		case 2:
			t->ops->page(t, &table, both, 2, keys, 10, true, out, &res);
			break;
		case 3:
			t->ops->fetch(t, &table, both, 2, keys, 0, 1, true, out, &res);
			break;
		case 4:
			t->ops->fetch(t, &table, both, 2, keys, 0, 1, false, out, &res);
			break;
		case 5:
			t->ops->read_fence(t, &table, 1, &epoch, &res);
			break;
		case 6:
			t->ops->ensure_table(t, &table, true, &created, &altered, &res);
			break;
		case 7:
			t->ops->drop_table(t, table.schema, table.name, &res);
			break;
	}
	fuzz_http_request = NULL;
	fuzz_http_reply = NULL;
	t->ops->close(t);
}

const FuzzHarness fuzz_request = {"request", NULL, request_one, false};
