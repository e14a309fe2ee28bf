/*-------------------------------------------------------------------------
 *
 * encode.c
 *		Every encoder: a value becomes one JSON value that says the same.
 *
 * The input: a byte that names the case, a letter, and the value: as its
 * type's input function reads it (t), or its receive function (others).
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "fuzz.h"
#include "mb/pg_wchar.h"
#include "mirror/mirror.h"
#include "mirror/types.h"
#include "parser/parse_type.h"
#include "target/rowset.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* how to find out that a cell says what the value does */
typedef enum Check
{
	BACK,						/* the type reads it back */
	DATE_MS,
	TIMESTAMP_MS,
	AS_FLOAT8,					/* of a numeric */
	MICROSECONDS,
	JSON_VALUE,
	POINT_LIST,
	ELEMENTS,					/* an array of what an encoder of the element writes */
	REGOID
} Check;

/* at the end only: the corpus names cases by their place */
static const struct
{
	const char *type;
	const char *target;
	Check		check;
}			list[] =
{
	{"text", "TEXT", BACK},
	{"varchar(10)", "TEXT", BACK},
	{"character(5)", "TEXT", BACK},
	{"\"char\"", "TEXT", BACK},
	{"bytea", "TEXT", BACK},
	{"boolean", "BOOLEAN", BACK},
	{"boolean", "TEXT", BACK},
	{"smallint", "SMALLINT", BACK},
	{"integer", "BIGINT", BACK},
	{"bigint", "BIGINT", BACK},
	{"bigint", "TIMESTAMP WITH TIME ZONE", BACK},
	{"oid", "BIGINT", BACK},
	{"regtype", "BIGINT", REGOID},
	{"real", "REAL", BACK},
	{"real", "DOUBLE PRECISION", BACK},
	{"real", "TEXT", BACK},
	{"double precision", "DOUBLE PRECISION", BACK},
	{"double precision", "TEXT", BACK},
	{"numeric", "TEXT", BACK},
	{"numeric(10,2)", "NUMERIC(10, 2)", BACK},
	{"numeric(18,0)", "BIGINT", BACK},
	{"numeric", "DOUBLE PRECISION", AS_FLOAT8},
	{"date", "TIMESTAMP WITHOUT TIME ZONE", DATE_MS},
	{"date", "TEXT", BACK},
	{"timestamp", "TIMESTAMP WITHOUT TIME ZONE", TIMESTAMP_MS},
	{"timestamp", "TEXT", BACK},
	{"timestamptz", "TIMESTAMP WITH TIME ZONE", TIMESTAMP_MS},
	{"timestamptz", "TEXT", BACK},
	{"time", "TEXT", BACK},
	{"time", "BIGINT", MICROSECONDS},
	{"timetz", "TEXT", BACK},
	{"interval", "TEXT", BACK},
	{"uuid", "UUID", BACK},
	{"jsonb", "TEXT", BACK},
	{"jsonb", "OBJECT(DYNAMIC)", JSON_VALUE},
	{"json", "TEXT", BACK},
	{"json", "OBJECT(IGNORED)", JSON_VALUE},
	{"json", "GEO_SHAPE", JSON_VALUE},
	{"point", "ARRAY(DOUBLE PRECISION)", POINT_LIST},
	{"bit(5)", "BIT(5)", BACK},
	{"bit varying", "TEXT", BACK},
	{"inet", "IP", BACK},
	{"cidr", "TEXT", BACK},
	{"macaddr", "TEXT", BACK},
	{"name", "TEXT", BACK},
	{"int4range", "TEXT", BACK},
	{"tsvector", "TEXT", BACK},
	{"box", "TEXT", BACK},
	{"text[]", "ARRAY(TEXT)", ELEMENTS},
	{"bigint[]", "ARRAY(BIGINT)", ELEMENTS},
	{"smallint[]", "ARRAY(ARRAY(SMALLINT))", ELEMENTS},
	{"numeric[]", "ARRAY(TEXT)", ELEMENTS},
	{"real[]", "FLOAT_VECTOR(3)", ELEMENTS},
	{"jsonb[]", "ARRAY(TEXT)", ELEMENTS},
	{"boolean[]", "ARRAY(BOOLEAN)", ELEMENTS},
	{"timestamptz[]", "ARRAY(TIMESTAMP WITH TIME ZONE)", ELEMENTS},
	{"bytea[]", "ARRAY(TEXT)", ELEMENTS},
	{"\"char\"[]", "ARRAY(TEXT)", ELEMENTS},
	{"uuid[]", "ARRAY(TEXT)", ELEMENTS},
	{"text[]", "TEXT", BACK}
};

typedef struct Case
{
	Oid			typid;
	int32		typmod;
	int16		typlen;
	CellEncoder enc;
	FmgrInfo	input;
	FmgrInfo	receive;
	FmgrInfo	send;
	FmgrInfo	output;
	Oid			ioparam;
} Case;

static Case cases[lengthof(list)];

static void
encode_init(void)
{
	(void) mirror_fixed_settings();
	for (int i = 0; i < lengthof(list); i++)
	{
		Case	   *c = &cases[i];
		TypeMapping map;
		Oid			func;
		bool		varlena;

#if PG_VERSION_NUM >= 160000
		parseTypeString(list[i].type, &c->typid, &c->typmod, NULL);
#else
		parseTypeString(list[i].type, &c->typid, &c->typmod, false);
#endif
		c->typlen = get_typlen(c->typid);
		types_map("c", c->typid, c->typmod, false, list[i].target, &map);
		types_encoder(c->typid, c->typmod, &map, &c->enc);
		getTypeInputInfo(c->typid, &func, &c->ioparam);
		fmgr_info(func, &c->input);
		getTypeBinaryInputInfo(c->typid, &func, &c->ioparam);
		fmgr_info(func, &c->receive);
		getTypeBinaryOutputInfo(c->typid, &func, &varlena);
		fmgr_info(func, &c->send);
		getTypeOutputInfo(c->typid, &func, &varlena);
		fmgr_info(func, &c->output);
	}
}

/* what a cell says, as text in the database's encoding */
static char *
said(const char *cell, int len)
{
	char	   *text = *cell == '"' ? fuzz_json_decode(cell, len, &len) : pnstrdup(cell, len);

	return pg_any_to_server(text, len, PG_UTF8);
}

static void
check_back(Case *c, Datum value, const char *cell, int len)
{
	char	   *text = said(cell, len);
	Datum		again;
	bytea	   *a;
	bytea	   *b;

	/* its very own text, which a type may not read (the shortest interval) */
	if (strcmp(text, OutputFunctionCall(&c->output, value)) == 0)
		return;
	again = InputFunctionCall(&c->input, text, c->ioparam, c->typmod);
	a = SendFunctionCall(&c->send, value);
	b = SendFunctionCall(&c->send, again);
	/* there are many NaNs, and all of them are equal */
	if ((VARSIZE(a) != VARSIZE(b) || memcmp(a, b, VARSIZE(a)) != 0) &&
		!(strstr(text, "NaN") != NULL &&
		  strcmp(OutputFunctionCall(&c->output, value), OutputFunctionCall(&c->output, again)) == 0))
		fuzz_fail("%s %s became %.*s", format_type_be(c->typid),
				  OutputFunctionCall(&c->output, value), len, cell);
}

/* writes what an array has to become, from what deconstruct_array() finds */
static void
expect_dim(StringInfo buf, Case *c, int ndim, const int *dims, Datum *elems, bool *nulls, int *item)
{
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < dims[0]; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		if (ndim > 1)
			expect_dim(buf, c, ndim - 1, dims + 1, elems, nulls, item);
		else
		{
			if (nulls[*item])
				appendStringInfoString(buf, "null");
			else
				c->enc.elem->encode(buf, elems[*item], c->enc.elem);
			(*item)++;
		}
	}
	appendStringInfoChar(buf, ']');
}

static void
check_elements(Case *c, Datum value, const char *cell, int len)
{
	ArrayType  *a = DatumGetArrayTypeP(value);
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	int			item = 0;
	StringInfoData buf;

	deconstruct_array(a, ARR_ELEMTYPE(a), c->enc.elem_len, c->enc.elem_byval, c->enc.elem_align,
					  &elems, &nulls, &n);
	initStringInfo(&buf);
	if (ARR_NDIM(a) == 0)
		appendStringInfoString(&buf, "[]");
	else
		expect_dim(&buf, c, ARR_NDIM(a), ARR_DIMS(a), elems, nulls, &item);
	if (item != n || buf.len != len || memcmp(buf.data, cell, len) != 0)
		fuzz_fail("array %s became %.*s", OutputFunctionCall(&c->output, value), len, cell);
}

static int64
number(const char *cell, int len)
{
	char	   *end;
	char	   *text = pnstrdup(cell, len);
	int64		n = strtoll(text, &end, 10);

	if (*end != '\0' || len == 0)
		fuzz_fail("no number: %.*s", len, cell);
	return n;
}

static void
check_cell(Case *c, Check check, Datum value, const char *cell, int len)
{
	int64		n;

	switch (check)
	{
		case BACK:
			/* "char" writes \ooo, which it reads from 16 on only */
			if (c->typid == CHAROID && (DatumGetChar(value) & 0x80))
				break;
			check_back(c, value, cell, len);
			break;
		case DATE_MS:
			if (DATE_NOT_FINITE(DatumGetDateADT(value)))
				break;
			n = number(cell, len);
			if (n % INT64CONST(86400000) != 0 || n / INT64CONST(86400000) != DatumGetDateADT(value) + 10957)
				fuzz_fail("date %d became %.*s", DatumGetDateADT(value), len, cell);
			break;
		case TIMESTAMP_MS:
			if (TIMESTAMP_NOT_FINITE(DatumGetTimestamp(value)))
				break;
			n = number(cell, len) - INT64CONST(946684800000);
			if (n * 1000 > DatumGetTimestamp(value) || n * 1000 + 1000 <= DatumGetTimestamp(value))
				fuzz_fail("timestamp " INT64_FORMAT " became %.*s", DatumGetTimestamp(value), len, cell);
			break;
		case AS_FLOAT8:
			{
				double		want = DatumGetFloat8(DirectFunctionCall1(numeric_float8, value));
				double		got = DatumGetFloat8(DirectFunctionCall1(float8in, CStringGetDatum(said(cell, len))));

				if (want != got && !(isnan(want) && isnan(got)))
					fuzz_fail("numeric %g became %.*s", want, len, cell);
				break;
			}
		case MICROSECONDS:
			if (number(cell, len) != DatumGetTimeADT(value))
				fuzz_fail("time " INT64_FORMAT " became %.*s", DatumGetTimeADT(value), len, cell);
			break;
		case REGOID:
			if (number(cell, len) != DatumGetObjectId(value))
				fuzz_fail("oid %u became %.*s", DatumGetObjectId(value), len, cell);
			break;
		case JSON_VALUE:
			{
				Datum		want = DirectFunctionCall1(jsonb_in,
													   CStringGetDatum(OutputFunctionCall(&c->output, value)));
				Datum		got = DirectFunctionCall1(jsonb_in,
													  CStringGetDatum(pg_any_to_server(pnstrdup(cell, len), len, PG_UTF8)));

				if (!DatumGetBool(DirectFunctionCall2(jsonb_eq, want, got)))
					fuzz_fail("document %s became %.*s", OutputFunctionCall(&c->output, value), len, cell);
				break;
			}
		case POINT_LIST:
			{
				char	   *text = pnstrdup(cell, len);
				char	   *to = text;

				for (char *p = text; *p; p++)
				{
					if (*p != '"')
						*to++ = *p == '[' ? '(' : *p == ']' ? ')' : *p;
				}
				*to = '\0';
				check_back(c, value, text, strlen(text));
				break;
			}
		case ELEMENTS:
			check_elements(c, value, cell, len);
			break;
	}
}

/* the same bytes where reading past their end is noticed */
static Datum
exact_datum(Case *c, Datum value)
{
	if (c->enc.elem == NULL && c->typlen == -1)
	{
		struct varlena *v = PG_DETOAST_DATUM(value);

		return PointerGetDatum(fuzz_exact(v, VARSIZE(v)));
	}
	if (c->typlen == -1)
		return PointerGetDatum(fuzz_exact(DatumGetPointer(value), VARSIZE_ANY(DatumGetPointer(value))));
	if (c->typlen > 8)
		return PointerGetDatum(fuzz_exact(DatumGetPointer(value), c->typlen));
	return value;
}

static void
encode_one(const char *data, int len)
{
	int			which;
	Case	   *c;
	const char *p = data + 2;
	char	   *text;
	int			n;
	Datum		value;
	RowSet	   *rows;
	StringInfoData buf;
	const char *cell;

	if (len < 2)
		return;
	which = (unsigned char) data[0] % lengthof(list);
	c = &cases[which];
	if (data[1] == 't')
	{
		text = fuzz_part(&p, data + len, &n);
		if (!fuzz_valid(GetDatabaseEncoding(), text, n))
			return;
		value = InputFunctionCall(&c->input, text, c->ioparam, c->typmod);
	}
	else
	{
		initStringInfo(&buf);
		appendBinaryStringInfo(&buf, p, len - 2);
		value = ReceiveFunctionCall(&c->receive, &buf, c->ioparam, c->typmod);
	}
	value = exact_datum(c, value);

	/* as the reader does it: three rows, the one in the middle replaced */
	rows = rowset_create(CurrentMemoryContext, 1);
	for (int i = 0; i < 3; i++)
	{
		c->enc.encode(rowset_cell(rows, 0), value, &c->enc);
		rowset_end_row(rows);
	}
	/* past this only the harness could throw: the value had a text before */
	fuzz_must_not_throw();
	rowset_kill(rows, 1);
	cell = rowset_get(rows, 2, 0, &n);
	fuzz_check_json(format_type_be(c->typid), cell, n);
	check_cell(c, list[which].check, value, cell, n);

	initStringInfo(&buf);
	rowset_render_column(rows, 0, 0, 3, &buf);
	if (buf.len != 2 * n + 1 || memcmp(buf.data, cell, n) != 0 || buf.data[n] != ',' ||
		memcmp(buf.data + n + 1, cell, n) != 0)
		fuzz_fail("a column of two cells %.*s is %s", n, cell, buf.data);
}

const FuzzHarness fuzz_encode = {"encode", encode_init, encode_one, true};
