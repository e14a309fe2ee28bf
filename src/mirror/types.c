/*-------------------------------------------------------------------------
 *
 * types.c
 *		PostgreSQL types, what they become in the target, and their encoders.
 *
 * One table, type_rules, says which target types a source type can become,
 * how its values are written, whether that is one to one, and what it loses.
 * The encoder follows from the source type and the target type alone, so that
 * a mapping kept as text finds its encoder again.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <ctype.h>
#include <float.h>
#include <math.h>

#include "access/transam.h"
#include "access/tupmacs.h"
#include "base/text.h"
#include "catalog/dependency.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/shortest_dec.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/geo_decls.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "mirror/types.h"

/* ---------------------------------------------------------------------------
 * Target types
 * ------------------------------------------------------------------------ */

typedef enum TargetBase
{
	T_BOOLEAN, T_SMALLINT, T_INTEGER, T_BIGINT, T_REAL, T_DOUBLE, T_TEXT,
	T_VARCHAR, T_TIMESTAMP, T_TIMESTAMPTZ, T_NUMERIC, T_UUID, T_IP, T_BIT,
	T_OBJECT, T_ARRAY, T_GEO_POINT, T_GEO_SHAPE, T_FLOAT_VECTOR
} TargetBase;

/* in the order of TargetBase */
static const struct
{
	const char *name;
	CellKind	kind;
}			target_bases[] =
{
	{"BOOLEAN", CELL_BOOL},
	{"SMALLINT", CELL_INT},
	{"INTEGER", CELL_INT},
	{"BIGINT", CELL_INT},
	{"REAL", CELL_FLOAT},
	{"DOUBLE PRECISION", CELL_FLOAT},
	{"TEXT", CELL_TEXT},
	{"VARCHAR", CELL_TEXT},
	{"TIMESTAMP WITHOUT TIME ZONE", CELL_TIMESTAMP},
	{"TIMESTAMP WITH TIME ZONE", CELL_TIMESTAMP},
	{"NUMERIC", CELL_NUMERIC},
	{"UUID", CELL_TEXT},
	{"IP", CELL_TEXT},
	{"BIT", CELL_TEXT},
	{"OBJECT", CELL_JSON},
	{"ARRAY", CELL_ARRAY},
	{"GEO_POINT", CELL_ARRAY},
	{"GEO_SHAPE", CELL_JSON},
	{"FLOAT_VECTOR", CELL_ARRAY}
};

#define MAX_NUMERIC_PRECISION	38
#define MAX_VECTOR_DIMENSIONS	2048
#define MAX_ARRAY_DEPTH			6	/* PostgreSQL's MAXDIM */

typedef struct TargetType
{
	TargetBase	base;
	int			a;				/* precision, length, dimensions */
	int			b;				/* scale */
	const char *policy;			/* of OBJECT */
	struct TargetType *elem;	/* of ARRAY */
} TargetType;

/* one-word names a user may write; multi-word ones are in parse_type() */
static const struct
{
	const char *word;
	TargetBase	base;
}			type_words[] =
{
	{"BOOLEAN", T_BOOLEAN}, {"BOOL", T_BOOLEAN},
	{"SMALLINT", T_SMALLINT}, {"INT2", T_SMALLINT}, {"SHORT", T_SMALLINT},
	{"INTEGER", T_INTEGER}, {"INT", T_INTEGER}, {"INT4", T_INTEGER},
	{"BIGINT", T_BIGINT}, {"INT8", T_BIGINT}, {"LONG", T_BIGINT},
	{"REAL", T_REAL}, {"FLOAT4", T_REAL},
	{"DOUBLE", T_DOUBLE}, {"FLOAT8", T_DOUBLE},
	{"TEXT", T_TEXT}, {"STRING", T_TEXT}, {"VARCHAR", T_VARCHAR},
	{"TIMESTAMP", T_TIMESTAMP}, {"TIMESTAMPTZ", T_TIMESTAMPTZ},
	{"NUMERIC", T_NUMERIC}, {"DECIMAL", T_NUMERIC},
	{"UUID", T_UUID}, {"IP", T_IP}, {"BIT", T_BIT},
	{"OBJECT", T_OBJECT}, {"ARRAY", T_ARRAY},
	{"GEO_POINT", T_GEO_POINT}, {"GEO_SHAPE", T_GEO_SHAPE},
	{"FLOAT_VECTOR", T_FLOAT_VECTOR}
};

/* ---------------------------------------------------------------------------
 * JSON
 * ------------------------------------------------------------------------ */

/* appends JSON text in the database's encoding as it is */
static void
append_raw_json(StringInfo buf, const char *json, int len)
{
	char	   *utf8 = pg_server_to_any(json, len, PG_UTF8);

	appendBinaryStringInfo(buf, utf8, utf8 == json ? len : strlen(utf8));
	if (utf8 != json)
		pfree(utf8);
}

/* appends text of which no byte needs an escape */
static inline void
append_plain_string(StringInfo buf, const char *text, int len)
{
	enlargeStringInfo(buf, len + 2);
	appendStringInfoCharMacro(buf, '"');
	appendBinaryStringInfo(buf, text, len);
	appendStringInfoCharMacro(buf, '"');
}

/* ---------------------------------------------------------------------------
 * Encoders
 * ------------------------------------------------------------------------ */

static inline void
append_int64(StringInfo buf, int64 v)
{
	enlargeStringInfo(buf, MAXINT8LEN + 1);
	buf->len += pg_lltoa(v, buf->data + buf->len);
}

static void
encode_bool(StringInfo buf, Datum value, CellEncoder *enc)
{
	if (DatumGetBool(value))
		appendBinaryStringInfo(buf, "true", 4);
	else
		appendBinaryStringInfo(buf, "false", 5);
}

static void
encode_bool_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	appendStringInfoString(buf, DatumGetBool(value) ? "\"true\"" : "\"false\"");
}

static void
encode_int2(StringInfo buf, Datum value, CellEncoder *enc)
{
	enlargeStringInfo(buf, 12);
	buf->len += pg_ltoa(DatumGetInt16(value), buf->data + buf->len);
}

static void
encode_int4(StringInfo buf, Datum value, CellEncoder *enc)
{
	enlargeStringInfo(buf, 12);
	buf->len += pg_ltoa(DatumGetInt32(value), buf->data + buf->len);
}

static void
encode_int8(StringInfo buf, Datum value, CellEncoder *enc)
{
	append_int64(buf, DatumGetInt64(value));
}

static void
encode_oid(StringInfo buf, Datum value, CellEncoder *enc)
{
	append_int64(buf, DatumGetObjectId(value));
}

static void
encode_float8(StringInfo buf, Datum value, CellEncoder *enc)
{
	types_json_float8(buf, DatumGetFloat8(value));
}

static void
encode_float4(StringInfo buf, Datum value, CellEncoder *enc)
{
	float4		v = DatumGetFloat4(value);
	char		tmp[FLOAT_SHORTEST_DECIMAL_LEN + 1];
	int			len;

	if (unlikely(isnan(v) || isinf(v)))
	{
		types_json_float8(buf, v);
		return;
	}
	/*
	 * The digits of the float4, not those of the double it widens to; but
	 * with an exponent only where a double of these digits has one, so that
	 * the same number is always the same text.
	 */
	len = float_to_shortest_decimal_bufn(v, tmp);
	tmp[len] = '\0';
	if (memchr(tmp, 'e', len))
		types_json_float8(buf, strtod(tmp, NULL));
	else
		json_float_digits(buf, tmp, len);
}

static void
encode_float8_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	double		v = DatumGetFloat8(value);
	char		tmp[DOUBLE_SHORTEST_DECIMAL_LEN];

	if (isnan(v) || isinf(v))
		types_json_float8(buf, v);
	else
		append_plain_string(buf, tmp, double_to_shortest_decimal_bufn(v, tmp));
}

static void
encode_float4_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	float4		v = DatumGetFloat4(value);
	char		tmp[FLOAT_SHORTEST_DECIMAL_LEN];

	if (isnan(v) || isinf(v))
		types_json_float8(buf, v);
	else
		append_plain_string(buf, tmp, float_to_shortest_decimal_bufn(v, tmp));
}

static void
encode_numeric(StringInfo buf, Datum value, CellEncoder *enc)
{
	char	   *s = DatumGetCString(DirectFunctionCall1(numeric_out, value));

	append_plain_string(buf, s, strlen(s));
	pfree(s);
}

/* of scale 0 and at most 18 digits: see rule_fits() */
static void
encode_numeric_int8(StringInfo buf, Datum value, CellEncoder *enc)
{
	char	   *s;

	/* a string, for the target to refuse: no integer says NaN */
	if (numeric_is_nan(DatumGetNumeric(value)))
		appendBinaryStringInfo(buf, "\"NaN\"", 5);
	else
	{
		s = DatumGetCString(DirectFunctionCall1(numeric_out, value));
		appendStringInfoString(buf, s);
		pfree(s);
	}
}

static void
encode_numeric_float8(StringInfo buf, Datum value, CellEncoder *enc)
{
	types_json_float8(buf, DatumGetFloat8(DirectFunctionCall1(numeric_float8, value)));
}

static void
encode_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	text	   *t = DatumGetTextPP(value);

	types_json_string(buf, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
	if ((Pointer) t != DatumGetPointer(value))
		pfree(t);
}

/*
 * character(n) without its padding, as a cast to text gives it: PostgreSQL
 * calls values that differ in trailing blanks equal, so a key must not show
 * them, and a query on the target should not have to.
 */
static void
encode_bpchar(StringInfo buf, Datum value, CellEncoder *enc)
{
	BpChar	   *t = DatumGetBpCharPP(value);

	types_json_string(buf, VARDATA_ANY(t),
					  bpchartruelen(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t)));
	if ((Pointer) t != DatumGetPointer(value))
		pfree(t);
}

/* a single byte; past ASCII as \ooo, which is valid in every encoding */
static void
encode_char(StringInfo buf, Datum value, CellEncoder *enc)
{
	unsigned char c = (unsigned char) DatumGetChar(value);
	char		tmp[8];

	if (c >= 0x80)
		types_json_utf8(buf, tmp, snprintf(tmp, sizeof(tmp), "\\%03o", c));
	else
	{
		tmp[0] = c;
		types_json_utf8(buf, tmp, c ? 1 : 0);
	}
}

static void
encode_bytea(StringInfo buf, Datum value, CellEncoder *enc)
{
	bytea	   *b = DatumGetByteaPP(value);
	Size		len = VARSIZE_ANY_EXHDR(b);

	if (len > (MaxAllocSize - 16) / 2)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("value of %zu bytes is too long for a hexadecimal string", len)));
	enlargeStringInfo(buf, 2 * len + 6);
	appendBinaryStringInfo(buf, "\"\\\\x", 4);
	buf->len += hex_encode(VARDATA_ANY(b), len, buf->data + buf->len);
	appendStringInfoChar(buf, '"');
	if ((Pointer) b != DatumGetPointer(value))
		pfree(b);
}

static void
encode_uuid(StringInfo buf, Datum value, CellEncoder *enc)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *u = DatumGetUUIDP(value)->data;
	char	   *p;

	enlargeStringInfo(buf, 40);
	p = buf->data + buf->len;
	*p++ = '"';
	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*p++ = '-';
		*p++ = hex[u[i] >> 4];
		*p++ = hex[u[i] & 15];
	}
	*p++ = '"';
	*p = '\0';
	buf->len = p - buf->data;
}

/* the word PostgreSQL uses, which the target refuses as a timestamp */
static void
append_infinity(StringInfo buf, bool negative)
{
	appendStringInfoString(buf, negative ? "\"-infinity\"" : "\"infinity\"");
}

#define EPOCH_DIFF_DAYS (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)

static void
encode_date(StringInfo buf, Datum value, CellEncoder *enc)
{
	DateADT		d = DatumGetDateADT(value);

	if (DATE_NOT_FINITE(d))
		append_infinity(buf, DATE_IS_NOBEGIN(d));
	else
		append_int64(buf, ((int64) d + EPOCH_DIFF_DAYS) * (SECS_PER_DAY * INT64CONST(1000)));
}

/* microseconds are cut towards the past, before 1970 and before 2000 too */
static void
encode_timestamp(StringInfo buf, Datum value, CellEncoder *enc)
{
	Timestamp	ts = DatumGetTimestamp(value);
	int64		ms;

	if (TIMESTAMP_NOT_FINITE(ts))
	{
		append_infinity(buf, TIMESTAMP_IS_NOBEGIN(ts));
		return;
	}
	ms = ts / 1000;
	if (ts % 1000 < 0)
		ms--;
	append_int64(buf, ms + EPOCH_DIFF_DAYS * (SECS_PER_DAY * INT64CONST(1000)));
}

static void
append_iso_date(StringInfo buf, int year, int month, int day)
{
	appendStringInfo(buf, "%04d-%02d-%02d", year > 0 ? year : 1 - year, month, day);
}

static void
encode_date_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	DateADT		d = DatumGetDateADT(value);
	int			year,
				month,
				day;

	if (DATE_NOT_FINITE(d))
	{
		append_infinity(buf, DATE_IS_NOBEGIN(d));
		return;
	}
	j2date(d + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	appendStringInfoChar(buf, '"');
	append_iso_date(buf, year, month, day);
	appendStringInfoString(buf, year > 0 ? "\"" : " BC\"");
}

/*
 * ISO 8601 with all six digits of the microseconds, so that texts of years 1
 * to 9999 sort as the times do.  timestamptz is in UTC whatever TimeZone is.
 */
static void
append_timestamp_text(StringInfo buf, Timestamp ts, const char *zone)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (TIMESTAMP_NOT_FINITE(ts))
	{
		append_infinity(buf, TIMESTAMP_IS_NOBEGIN(ts));
		return;
	}
	if (timestamp2tm(ts, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	appendStringInfoChar(buf, '"');
	append_iso_date(buf, tm.tm_year, tm.tm_mon, tm.tm_mday);
	appendStringInfo(buf, "T%02d:%02d:%02d.%06d%s%s\"", tm.tm_hour, tm.tm_min,
					 tm.tm_sec, (int) fsec, zone, tm.tm_year > 0 ? "" : " BC");
}

static void
encode_timestamp_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	append_timestamp_text(buf, DatumGetTimestamp(value), "");
}

static void
encode_timestamptz_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	append_timestamp_text(buf, DatumGetTimestampTz(value), "Z");
}

/*
 * A JSON document as the target's object.  By way of jsonb, since a name
 * twice in one object makes the target refuse the whole request.
 */
static void
put_jsonb(StringInfo buf, Datum value, void (*put) (StringInfo buf, const char *s, int len))
{
	Jsonb	   *jb = DatumGetJsonbP(value);
	char	   *s = JsonbToCString(NULL, &jb->root, VARSIZE(jb));

	put(buf, s, strlen(s));
	pfree(s);
	if ((Pointer) jb != DatumGetPointer(value))
		pfree(jb);
}

static void
encode_jsonb(StringInfo buf, Datum value, CellEncoder *enc)
{
	put_jsonb(buf, value, append_raw_json);
}

/*
 * The text of an object as the target can take it: it fails over integers
 * past BIGINT, so these go as DOUBLE PRECISION.
 */
static void
append_object_json(StringInfo buf, const char *json, int len)
{
	const char *end = json + len;
	const char *done = json;
	bool		quoted = false;

	for (const char *p = json; p < end;)
	{
		int			n;
		char	   *number;
		double		value;

		if (quoted || (*p != '-' && !isdigit((unsigned char) *p)))
		{
			if (quoted && *p == '\\')
				p++;
			else if (*p == '"')
				quoted = !quoted;
			p++;
			continue;
		}
		n = strspn(p, "+-.0123456789Ee");
		p += n;
		if (n < 19 || (n < DBL_MAX_10_EXP && strcspn(p - n, ".Ee") < n))
			continue;
		number = pnstrdup(p - n, n);
		errno = 0;
		(void) strtoll(number, NULL, 10);
		if (errno == ERANGE)
		{
			value = strtod(number, NULL);
			if (isinf(value))
				ereport(ERROR,
						(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						 errmsg("a number in a JSON document is out of range of DOUBLE PRECISION")));
			append_raw_json(buf, done, p - n - done);
			types_json_float8(buf, value);
			done = p;
		}
		pfree(number);
	}
	append_raw_json(buf, done, end - done);
}

/* an OBJECT column would take anything else, too, and make {} of it */
static void
encode_jsonb_object(StringInfo buf, Datum value, CellEncoder *enc)
{
	Jsonb	   *jb = DatumGetJsonbP(value);
	JsonbValue	scalar;

	if (!JB_ROOT_IS_OBJECT(jb) &&
		!(JB_ROOT_IS_SCALAR(jb) && JsonbExtractScalar(&jb->root, &scalar) && scalar.type == jbvNull))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a JSON %s cannot be stored in an OBJECT column",
						JB_ROOT_IS_SCALAR(jb) ? "scalar" : "array")));
	put_jsonb(buf, JsonbPGetDatum(jb), append_object_json);
	if ((Pointer) jb != DatumGetPointer(value))
		pfree(jb);
}

/* by way of jsonb */
static void
put_json(StringInfo buf, Datum value, CellEncodeFunc put, CellEncoder *enc)
{
	char	   *s = TextDatumGetCString(value);
	Datum		jb = DirectFunctionCall1(jsonb_in, CStringGetDatum(s));

	pfree(s);
	put(buf, jb, enc);
	pfree(DatumGetPointer(jb));
}

static void
encode_json(StringInfo buf, Datum value, CellEncoder *enc)
{
	put_json(buf, value, encode_jsonb, enc);
}

static void
encode_json_object(StringInfo buf, Datum value, CellEncoder *enc)
{
	put_json(buf, value, encode_jsonb_object, enc);
}

static void
encode_jsonb_text(StringInfo buf, Datum value, CellEncoder *enc)
{
	put_jsonb(buf, value, types_json_string);
}

static void
encode_point(StringInfo buf, Datum value, CellEncoder *enc)
{
	Point	   *p = DatumGetPointP(value);

	appendStringInfoChar(buf, '[');
	types_json_float8(buf, p->x);
	appendStringInfoChar(buf, ',');
	types_json_float8(buf, p->y);
	appendStringInfoChar(buf, ']');
}

/* what has no encoder of its own: its output function's text */
static void
encode_output(StringInfo buf, Datum value, CellEncoder *enc)
{
	char	   *s = OutputFunctionCall(&enc->out, value);

	types_json_string(buf, s, strlen(s));
	pfree(s);
}

/* is s a JSON array of plain numbers, and nothing else? */
static bool
is_number_list(const char *s)
{
	if (*s++ != '[')
		return false;
	for (;;)
	{
		if (*s == '-')
			s++;
		if (*s == '0')
			s++;
		else if (*s >= '1' && *s <= '9')
			s += strspn(s, "0123456789");
		else
			return false;
		if (*s == '.')
		{
			s++;
			if (!isdigit((unsigned char) *s))
				return false;
			s += strspn(s, "0123456789");
		}
		if (*s == 'e' || *s == 'E')
		{
			s++;
			if (*s == '+' || *s == '-')
				s++;
			if (!isdigit((unsigned char) *s))
				return false;
			s += strspn(s, "0123456789");
		}
		if (*s == ']')
			return s[1] == '\0';
		if (*s++ != ',')
			return false;
	}
}

/*
 * pgvector's text is a JSON array already.  Looked at all the same: another
 * extension's text must not become part of a request unseen.
 */
static void
encode_vector(StringInfo buf, Datum value, CellEncoder *enc)
{
	char	   *s = OutputFunctionCall(&enc->out, value);

	if (is_number_list(s))
		appendStringInfoString(buf, s);
	else
		types_json_string(buf, s, strlen(s));
	pfree(s);
}

/* writes one dimension of an array; *item counts elements, *p walks the data */
static void
append_array_dim(StringInfo buf, CellEncoder *enc, int ndim, const int *dims,
				 char **p, const bits8 *nulls, int *item)
{
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < dims[0]; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		if (ndim > 1)
			append_array_dim(buf, enc, ndim - 1, dims + 1, p, nulls, item);
		else if (nulls && !(nulls[*item / 8] & (1 << (*item % 8))))
		{
			appendBinaryStringInfo(buf, "null", 4);
			(*item)++;
		}
		else
		{
			Datum		d = fetch_att(*p, enc->elem_byval, enc->elem_len);

			enc->elem->encode(buf, d, enc->elem);
			*p = att_addlength_pointer(*p, enc->elem_len, *p);
			*p = (char *) att_align_nominal(*p, enc->elem_align);
			(*item)++;
		}
	}
	appendStringInfoChar(buf, ']');
}

static void
encode_array(StringInfo buf, Datum value, CellEncoder *enc)
{
	ArrayType  *a = DatumGetArrayTypeP(value);
	char	   *p = ARR_DATA_PTR(a);
	int			item = 0;

	if (ARR_NDIM(a) == 0)
		appendBinaryStringInfo(buf, "[]", 2);
	else
		append_array_dim(buf, enc, ARR_NDIM(a), ARR_DIMS(a), &p, ARR_NULLBITMAP(a), &item);
	if ((Pointer) a != DatumGetPointer(value))
		pfree(a);
}

void
types_array_encoder(Oid elemtype, CellEncoder *elem, CellEncoder *enc)
{
	enc->encode = encode_array;
	enc->typid = get_array_type(elemtype);
	enc->elem = elem;
	get_typlenbyvalalign(elemtype, &enc->elem_len, &enc->elem_byval, &enc->elem_align);
}

/* ---------------------------------------------------------------------------
 * The table
 * ------------------------------------------------------------------------ */

/* source types that are not one OID; no type has these */
#define SRC_ANY		InvalidOid	/* whatever is not named */
#define SRC_ARRAY	((Oid) 1)
#define SRC_VECTOR	((Oid) 2)	/* of the extension pgvector */
#define SRC_REG		((Oid) 3)	/* regclass and its kin */

#define COL			0x01		/* what a column becomes if nobody says otherwise */
#define KEY			0x02		/* the same for a key column */
#define UNI			0x04		/* one to one: may be chosen for a key */

typedef struct TypeRule
{
	Oid			src;
	TargetBase	dst;
	int			flags;
	CellEncodeFunc encode;
	const char *loses;
} TypeRule;

#define LOSES_MICROS	"microseconds are cut to milliseconds; infinity is refused"
#define LOSES_DIGITS	"digits past a double's 15 to 17 are lost"
#define LOSES_JSON_TEXT "kept as JSON text; if every value is an object, choose OBJECT(IGNORED) for it to be queried by member"
#define LOSES_JSON		"values that are not objects are refused; numbers past BIGINT and DOUBLE PRECISION lose digits"
#define LOSES_SHAPE		"what the target does not take as a shape is refused"

/*
 * For every source type the first rule with COL, or with KEY, whose
 * rule_fits() agrees is its default.
 */
static const TypeRule type_rules[] =
{
	{BOOLOID, T_BOOLEAN, COL | KEY | UNI, encode_bool},
	{BOOLOID, T_TEXT, UNI, encode_bool_text},

	{INT2OID, T_SMALLINT, COL | KEY | UNI, encode_int2},
	{INT2OID, T_INTEGER, UNI, encode_int2},
	{INT2OID, T_BIGINT, UNI, encode_int2},
	{INT4OID, T_INTEGER, COL | KEY | UNI, encode_int4},
	{INT4OID, T_BIGINT, UNI, encode_int4},
	{INT8OID, T_BIGINT, COL | KEY | UNI, encode_int8},
	{INT8OID, T_TIMESTAMP, UNI, encode_int8, "taken as milliseconds since 1970"},
	{INT8OID, T_TIMESTAMPTZ, UNI, encode_int8, "taken as milliseconds since 1970"},
	{OIDOID, T_BIGINT, COL | KEY | UNI, encode_oid},
	/* a name in a key would change when the object is renamed */
	{SRC_REG, T_TEXT, COL, encode_output},
	{SRC_REG, T_BIGINT, KEY | UNI, encode_oid},

	{FLOAT4OID, T_REAL, COL | UNI, encode_float4},
	{FLOAT4OID, T_DOUBLE, UNI, encode_float4},
	{FLOAT4OID, T_TEXT, KEY | UNI, encode_float4_text},
	{FLOAT8OID, T_DOUBLE, COL | UNI, encode_float8},
	{FLOAT8OID, T_REAL, 0, encode_float8, "digits past a float's 6 to 9 are lost"},
	{FLOAT8OID, T_TEXT, KEY | UNI, encode_float8_text},

	{NUMERICOID, T_NUMERIC, COL | KEY | UNI, encode_numeric, "NaN is refused"},
	{NUMERICOID, T_BIGINT, UNI, encode_numeric_int8, "NaN is refused"},
	{NUMERICOID, T_TEXT, COL | KEY | UNI, encode_numeric,
	"kept as text, since the target's NUMERIC needs a precision; DOUBLE PRECISION can be chosen where 15 digits do"},
	{NUMERICOID, T_DOUBLE, 0, encode_numeric_float8, LOSES_DIGITS},
	{NUMERICOID, T_REAL, 0, encode_numeric_float8, "digits past a float's 6 to 9 are lost"},

	{TEXTOID, T_TEXT, COL | KEY | UNI, encode_text},
	{TEXTOID, T_GEO_SHAPE, 0, encode_text, LOSES_SHAPE},
	{VARCHAROID, T_TEXT, COL | KEY | UNI, encode_text},
	{VARCHAROID, T_GEO_SHAPE, 0, encode_text, LOSES_SHAPE},
	{BPCHAROID, T_TEXT, COL | KEY | UNI, encode_bpchar},
	{CHAROID, T_TEXT, COL | KEY | UNI, encode_char},
	{BYTEAOID, T_TEXT, COL | KEY | UNI, encode_bytea, "kept as \\x and hexadecimal digits"},
	{XMLOID, T_TEXT, COL | KEY | UNI, encode_output},
	{MONEYOID, T_TEXT, COL | KEY | UNI, encode_output, "kept as text in the form that lc_monetary gives it"},

	{DATEOID, T_TIMESTAMP, COL, encode_date, "becomes midnight of that day; infinity is refused"},
	{DATEOID, T_TIMESTAMPTZ, 0, encode_date, "becomes midnight UTC of that day; infinity is refused"},
	{DATEOID, T_TEXT, KEY | UNI, encode_date_text},
	{TIMESTAMPOID, T_TIMESTAMP, COL, encode_timestamp, LOSES_MICROS},
	{TIMESTAMPOID, T_TIMESTAMPTZ, 0, encode_timestamp, "taken as UTC; " LOSES_MICROS},
	{TIMESTAMPOID, T_TEXT, KEY | UNI, encode_timestamp_text},
	{TIMESTAMPTZOID, T_TIMESTAMPTZ, COL, encode_timestamp, LOSES_MICROS},
	{TIMESTAMPTZOID, T_TIMESTAMP, 0, encode_timestamp, "in UTC; " LOSES_MICROS},
	{TIMESTAMPTZOID, T_TEXT, KEY | UNI, encode_timestamptz_text},
	/* a time is its microseconds since midnight */
	{TIMEOID, T_TEXT, COL | KEY | UNI, encode_output},
	{TIMEOID, T_BIGINT, UNI, encode_int8, "microseconds since midnight"},

	{UUIDOID, T_TEXT, COL | KEY | UNI, encode_uuid},
	{UUIDOID, T_UUID, UNI, encode_uuid},

	{JSONBOID, T_TEXT, COL | KEY | UNI, encode_jsonb_text, LOSES_JSON_TEXT},
	{JSONBOID, T_OBJECT, 0, encode_jsonb_object, LOSES_JSON},
	{JSONBOID, T_ARRAY, 0, encode_jsonb, "values that are not such arrays are refused"},
	{JSONBOID, T_GEO_SHAPE, 0, encode_jsonb, LOSES_SHAPE},
	{JSONOID, T_TEXT, COL, encode_text, LOSES_JSON_TEXT},
	{JSONOID, T_OBJECT, 0, encode_json_object, "of a name given twice the last is kept; " LOSES_JSON},
	{JSONOID, T_ARRAY, 0, encode_json, "values that are not such arrays are refused"},
	{JSONOID, T_GEO_SHAPE, 0, encode_json, LOSES_SHAPE},

	{POINTOID, T_ARRAY, COL, encode_point},
	{POINTOID, T_GEO_POINT, 0, encode_point, "taken as longitude and latitude, and rounded; what is out of their range is refused"},
	{BITOID, T_TEXT, COL | KEY | UNI, encode_output},
	{BITOID, T_BIT, 0, encode_output},
	{INETOID, T_TEXT, COL | KEY | UNI, encode_output},
	{INETOID, T_IP, 0, encode_output, "addresses with a mask are refused"},

	{SRC_VECTOR, T_FLOAT_VECTOR, COL, encode_vector},

	{SRC_ARRAY, T_ARRAY, COL, encode_array},
	{SRC_ARRAY, T_FLOAT_VECTOR, 0, encode_array, "arrays of another length, or with a NULL in them, are refused"},

	{SRC_ANY, T_TEXT, COL | KEY | UNI, encode_output}
};

/* which source of the table a base type is */
static Oid
rule_source(Oid typid)
{
	switch (typid)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGCOLLATIONOID:
		case REGTYPEOID:
		case REGROLEOID:
		case REGNAMESPACEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
			return SRC_REG;
	}
	if (OidIsValid(get_element_type(typid)))
		return SRC_ARRAY;
	if (typid >= FirstNormalObjectId)
	{
		Oid			ext = getExtensionOfObject(TypeRelationId, typid);
		char	   *extname = OidIsValid(ext) ? get_extension_name(ext) : NULL;

		if (extname && strcmp(extname, "vector") == 0)
		{
			char	   *name = format_type_be(typid);
			char	   *dot = strrchr(name, '.');

			name = dot ? dot + 1 : name;
			if (strcmp(name, "vector") == 0 || strcmp(name, "halfvec") == 0)
				return SRC_VECTOR;
		}
	}
	return typid;
}

/* precision and scale of numeric(p, s); false without a typmod */
static bool
numeric_modifiers(int32 typmod, int *p, int *s)
{
	if (typmod < (int32) VARHDRSZ)
		return false;
	typmod -= VARHDRSZ;
	*p = (typmod >> 16) & 0xffff;
	*s = ((typmod & 0x7ff) ^ 1024) - 1024;	/* signed since 15 */
	return true;
}

/*
 * Whether a rule can give this target type to values of this type and
 * modifier; loses is replaced where this very pair loses more, uni cleared
 * where it is not one to one.
 */
static bool
rule_fits(const TypeRule *rule, const TargetType *dst, int32 typmod,
		  const char **loses, bool *uni)
{
	int			p,
				s;

	switch (dst->base)
	{
		case T_VARCHAR:
			*loses = "longer text is refused";
			return true;
		case T_BIT:
			return dst->a == typmod;
		case T_OBJECT:
			if (strcmp(dst->policy, "IGNORED") != 0)
				*loses = LOSES_JSON "; a member's values become what its first value was, 2.5 becomes 2 where that was 1, or are refused";
			return true;
		case T_NUMERIC:
			if (!numeric_modifiers(typmod, &p, &s) || dst->b < s || dst->a - dst->b < p - s)
			{
				*loses = "digits past the scale are rounded away; larger numbers, NaN and infinity are refused";
				*uni = false;
			}
			return true;
		case T_BIGINT:
			if (rule->src == NUMERICOID)
				return numeric_modifiers(typmod, &p, &s) && s == 0 && p <= 18;
			return true;
		case T_FLOAT_VECTOR:
			if (rule->src == SRC_VECTOR)
				return typmod < 0 || dst->a == typmod;
			return true;
		default:
			return true;
	}
}

static const TypeRule *find_rule(Oid typid, int32 typmod, const TargetType *dst,
								 CellEncoder *enc, const char **loses, bool *uni);

/*
 * Whether elements of an array can go into an ARRAY of this type.  PostgreSQL
 * declares no dimensions, so ARRAY(ARRAY(T)) is T nested, unless the element
 * is itself an array to the target (a point).
 */
static const TypeRule *
find_element_rule(Oid elemtype, int32 typmod, const TargetType *dst,
				  CellEncoder *enc, const char **loses, bool *uni)
{
	for (const TargetType *t = dst; t != NULL; t = t->elem)
	{
		const TypeRule *rule = find_rule(elemtype, typmod, t, enc, loses, uni);

		if (rule)
			return rule;
	}
	return NULL;
}

/*
 * The rule by which values of typid (a base type) become dst, or NULL.  Fills
 * in enc, unless that is NULL, but for the output function.
 */
static const TypeRule *
find_rule(Oid typid, int32 typmod, const TargetType *dst, CellEncoder *enc,
		  const char **loses, bool *uni)
{
	Oid			src = rule_source(typid);
	TargetBase	base = dst->base == T_VARCHAR ? T_TEXT : dst->base;

	for (int i = 0; i < lengthof(type_rules); i++)
	{
		const TypeRule *rule = &type_rules[i];

		if (rule->dst != base || (rule->src != src && rule->src != SRC_ANY))
			continue;
		*loses = rule->loses;
		*uni = (rule->flags & UNI) != 0;
		if (!rule_fits(rule, dst, typmod, loses, uni))
			continue;

		if (rule->src == POINTOID && base == T_ARRAY && dst->elem->base != T_DOUBLE)
			continue;
		if (rule->src == SRC_ARRAY)
		{
			Oid			elemtype = get_element_type(typid);
			int32		elemmod = typmod;
			const TypeRule *elemrule;
			const char *elemloses;
			bool		elemuni;
			CellEncoder *elemenc = enc ? palloc0(sizeof(CellEncoder)) : NULL;

			elemtype = getBaseTypeAndTypmod(elemtype, &elemmod);
			if (base == T_FLOAT_VECTOR)
			{
				static const TargetType real = {T_REAL};

				if (elemtype != FLOAT4OID && elemtype != FLOAT8OID)
					continue;
				elemrule = find_rule(elemtype, elemmod, &real, elemenc, &elemloses, &elemuni);
			}
			else
				elemrule = find_element_rule(elemtype, elemmod, dst->elem, elemenc,
											 &elemloses, &elemuni);
			if (!elemrule)
				continue;
			if (base == T_ARRAY)
				*loses = elemloses;
			if (enc)
			{
				enc->elem = elemenc;
				get_typlenbyvalalign(elemtype, &enc->elem_len, &enc->elem_byval,
									 &enc->elem_align);
			}
		}
		if (enc)
		{
			enc->encode = rule->encode;
			enc->typid = typid;
			if (rule->encode == encode_output || rule->encode == encode_vector)
			{
				Oid			outfunc;
				bool		isvarlena;

				getTypeOutputInfo(typid, &outfunc, &isvarlena);
				fmgr_info_cxt(outfunc, &enc->out, CurrentMemoryContext);
			}
		}
		return rule;
	}
	return NULL;
}

static TargetType *
make_type(TargetBase base)
{
	TargetType *t = palloc0(sizeof(TargetType));

	t->base = base;
	return t;
}

/* what a base type becomes if the user has chosen nothing; never NULL */
static TargetType *
default_type(Oid typid, int32 typmod, bool as_key)
{
	Oid			src = rule_source(typid);

	for (int i = 0; i < lengthof(type_rules); i++)
	{
		const TypeRule *rule = &type_rules[i];
		TargetType *t;

		if ((rule->src != src && rule->src != SRC_ANY) ||
			!(rule->flags & (as_key ? KEY : COL)))
			continue;
		t = make_type(rule->dst);
		switch (rule->dst)
		{
			case T_NUMERIC:
				if (!numeric_modifiers(typmod, &t->a, &t->b) ||
					t->a > MAX_NUMERIC_PRECISION || t->b < 0 || t->b > t->a)
					continue;
				break;
			case T_FLOAT_VECTOR:
				if (typmod < 1 || typmod > MAX_VECTOR_DIMENSIONS)
					continue;
				t->a = typmod;
				break;
			case T_ARRAY:
				if (src == SRC_ARRAY)
				{
					Oid			elemtype = get_element_type(typid);
					int32		elemmod = typmod;

					elemtype = getBaseTypeAndTypmod(elemtype, &elemmod);
					t->elem = default_type(elemtype, elemmod, false);
					/* the target has no arrays of vectors */
					if (t->elem->base == T_FLOAT_VECTOR)
						t->elem = make_type(T_TEXT);
				}
				else
					t->elem = make_type(T_DOUBLE);
				break;
			default:
				break;
		}
		return t;
	}
	elog(ERROR, "no target type for type %u", typid);
}

/* ---------------------------------------------------------------------------
 * Target types as text
 * ------------------------------------------------------------------------ */

static void
render_type(StringInfo buf, const TargetType *t)
{
	appendStringInfoString(buf, target_bases[t->base].name);
	switch (t->base)
	{
		case T_VARCHAR:
		case T_BIT:
		case T_FLOAT_VECTOR:
			appendStringInfo(buf, "(%d)", t->a);
			break;
		case T_NUMERIC:
			appendStringInfo(buf, "(%d, %d)", t->a, t->b);
			break;
		case T_OBJECT:
			appendStringInfo(buf, "(%s)", t->policy);
			break;
		case T_ARRAY:
			appendStringInfoChar(buf, '(');
			render_type(buf, t->elem);
			appendStringInfoChar(buf, ')');
			break;
		default:
			break;
	}
}

/*
 * A reader of "type [storage]".  The user's text goes no further than this:
 * what is put into DDL is rendered anew from what was understood.
 */
typedef struct TypeParser
{
	const char *p;
	char		word[64];		/* an upper-case word, digits, or one character */
	char		literal[64];	/* of a 'string', word is then "'" */
	const char *error;
} TypeParser;

static void
next_word(TypeParser *tp)
{
	const char *start;
	int			len;

	tp->p += strspn(tp->p, " \t\n\r");
	start = tp->p;
	tp->literal[0] = '\0';
	if (isalpha((unsigned char) *start) || *start == '_')
		while (isalnum((unsigned char) *tp->p) || *tp->p == '_')
			tp->p++;
	else if (isdigit((unsigned char) *start))
		while (isdigit((unsigned char) *tp->p))
			tp->p++;
	else if (*start == '\'')
	{
		const char *s = ++tp->p;

		/* names of analyzers only: nothing that would need quoting */
		while (isalnum((unsigned char) *tp->p) || *tp->p == '_')
			tp->p++;
		len = tp->p - s;
		if (*tp->p == '\'' && len > 0 && len < sizeof(tp->literal))
		{
			memcpy(tp->literal, s, len);
			tp->literal[len] = '\0';
			tp->p++;
		}
		else
			tp->error = "a string is not one word of letters, digits and underscores";
		strcpy(tp->word, "'");
		return;
	}
	else if (*start)
		tp->p++;
	len = Min(tp->p - start, sizeof(tp->word) - 1);
	for (int i = 0; i < len; i++)
		tp->word[i] = pg_ascii_toupper((unsigned char) start[i]);
	tp->word[len] = '\0';
}

static bool
accept_word(TypeParser *tp, const char *word)
{
	if (tp->error || strcmp(tp->word, word) != 0)
		return false;
	next_word(tp);
	return true;
}

static void
expect_word(TypeParser *tp, const char *word)
{
	if (!accept_word(tp, word) && !tp->error)
		tp->error = psprintf("\"%s\" is missing", word);
}

static int
expect_number(TypeParser *tp, int min, int max)
{
	int			n = 0;

	if (isdigit((unsigned char) tp->word[0]) && strlen(tp->word) < 10)
	{
		n = atoi(tp->word);
		next_word(tp);
		if (n >= min && n <= max)
			return n;
	}
	if (!tp->error)
		tp->error = psprintf("a number from %d to %d is missing", min, max);
	return min;
}

static TargetType *
parse_type(TypeParser *tp, int depth)
{
	TargetType *t = make_type(T_TEXT);
	int			i;

	for (i = 0; i < lengthof(type_words); i++)
		if (accept_word(tp, type_words[i].word))
			break;
	if (i < lengthof(type_words))
		t->base = type_words[i].base;
	else if (accept_word(tp, "CHARACTER"))
	{
		expect_word(tp, "VARYING");
		t->base = T_VARCHAR;
	}
	else
	{
		if (!tp->error)
			tp->error = tp->word[0] == '\0' ? "a type is missing" :
				psprintf("\"%s\" is no type that can be used", tp->word);
		return t;
	}

	switch (t->base)
	{
		case T_DOUBLE:
			(void) accept_word(tp, "PRECISION");
			break;
		case T_TIMESTAMP:
			if (accept_word(tp, "WITH"))
				t->base = T_TIMESTAMPTZ;
			else if (!accept_word(tp, "WITHOUT"))
				break;
			expect_word(tp, "TIME");
			expect_word(tp, "ZONE");
			break;
		case T_VARCHAR:
			if (strcmp(tp->word, "(") != 0)
			{
				t->base = T_TEXT;
				break;
			}
			expect_word(tp, "(");
			t->a = expect_number(tp, 1, PG_INT32_MAX);
			expect_word(tp, ")");
			break;
		case T_BIT:
			expect_word(tp, "(");
			t->a = expect_number(tp, 1, PG_INT32_MAX);
			expect_word(tp, ")");
			break;
		case T_FLOAT_VECTOR:
			expect_word(tp, "(");
			t->a = expect_number(tp, 1, MAX_VECTOR_DIMENSIONS);
			expect_word(tp, ")");
			break;
		case T_NUMERIC:
			expect_word(tp, "(");
			t->a = expect_number(tp, 1, MAX_NUMERIC_PRECISION);
			expect_word(tp, ",");
			t->b = expect_number(tp, 0, t->a);
			expect_word(tp, ")");
			break;
		case T_OBJECT:
			t->policy = "DYNAMIC";	/* the target's own default */
			if (accept_word(tp, "("))
			{
				if (accept_word(tp, "IGNORED"))
					t->policy = "IGNORED";
				else if (accept_word(tp, "STRICT"))
					t->policy = "STRICT";
				else if (!accept_word(tp, "DYNAMIC") && !tp->error)
					tp->error = "an object is IGNORED, DYNAMIC or STRICT";
				expect_word(tp, ")");
			}
			break;
		case T_ARRAY:
			expect_word(tp, "(");
			if (depth >= MAX_ARRAY_DEPTH)
			{
				tp->error = "arrays are nested too deep";
				break;
			}
			t->elem = parse_type(tp, depth + 1);
			if (t->elem->base == T_FLOAT_VECTOR && !tp->error)
				tp->error = "the target has no arrays of FLOAT_VECTOR";
			expect_word(tp, ")");
			break;
		default:
			break;
	}
	return t;
}

/* what may follow a type in DDL; NULL if nothing does */
static char *
parse_storage(TypeParser *tp)
{
	StringInfoData buf;

	initStringInfo(&buf);
	if (accept_word(tp, "INDEX"))
	{
		if (accept_word(tp, "OFF"))
			appendStringInfoString(&buf, "INDEX OFF");
		else
		{
			expect_word(tp, "USING");
			if (accept_word(tp, "PLAIN"))
				appendStringInfoString(&buf, "INDEX USING PLAIN");
			else
			{
				expect_word(tp, "FULLTEXT");
				appendStringInfoString(&buf, "INDEX USING FULLTEXT");
				if (accept_word(tp, "WITH"))
				{
					expect_word(tp, "(");
					expect_word(tp, "ANALYZER");
					expect_word(tp, "=");
					appendStringInfo(&buf, " WITH (analyzer = '%s')", tp->literal);
					expect_word(tp, "'");
					expect_word(tp, ")");
				}
			}
		}
	}
	if (accept_word(tp, "STORAGE"))
	{
		expect_word(tp, "WITH");
		expect_word(tp, "(");
		expect_word(tp, "COLUMNSTORE");
		expect_word(tp, "=");
		appendStringInfo(&buf, "%sSTORAGE WITH (columnstore = %s)", buf.len ? " " : "",
						 strcmp(tp->word, "TRUE") == 0 ? "true" : "false");
		if (!accept_word(tp, "TRUE"))
			expect_word(tp, "FALSE");
		expect_word(tp, ")");
	}
	return buf.len ? buf.data : NULL;
}

/*
 * Reads "type [storage]".  Result palloc'd; NULL, and why in *error, if it is
 * not in the grammar.
 */
static TargetType *
parse_target_type(const char *text, char **storage, const char **error)
{
	TypeParser	tp = {text};
	TargetType *t;

	next_word(&tp);
	t = parse_type(&tp, 1);
	*storage = parse_storage(&tp);
	if (!tp.error && tp.word[0] != '\0')
		tp.error = "there is something after its end";
	*error = tp.error;
	return tp.error ? NULL : t;
}

/* ---------------------------------------------------------------------------
 * For the other rooms
 * ------------------------------------------------------------------------ */

/* the target types that a source type can become, for a hint; palloc'd */
static char *
possible_types(Oid typid, bool as_key)
{
	StringInfoData buf;
	Oid			src = rule_source(typid);
	bool		text = false;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(type_rules); i++)
	{
		const TypeRule *rule = &type_rules[i];

		if ((rule->src != src && rule->src != SRC_ANY) ||
			(as_key && !(rule->flags & UNI)) ||
			(rule->dst == T_TEXT && text))
			continue;
		text |= rule->dst == T_TEXT;
		appendStringInfo(&buf, "%s%s", buf.len ? ", " : "", target_bases[rule->dst].name);
	}
	return buf.data;
}

static char *
join_losses(const char *a, const char *b)
{
	if (a && b)
		return psprintf("%s; %s", a, b);
	return a || b ? pstrdup(a ? a : b) : NULL;
}

void
types_map(const char *colname, Oid typid, int32 typmod, bool as_key,
		  const char *override, TypeMapping *map)
{
	Oid			basetype;
	TargetType *dst;
	const TypeRule *rule;
	const char *loses;
	bool		uni;
	StringInfoData buf;

	memset(map, 0, sizeof(*map));
	basetype = getBaseTypeAndTypmod(typid, &typmod);
	if (override)
	{
		const char *error;
		int			len = strlen(override);
		char	   *shown = pnstrdup(override, pg_mbcliplen(override, len, 200));

		dst = parse_target_type(override, &map->storage, &error);
		if (!dst)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid target type \"%s\" for column \"%s\"", shown, colname),
					 errdetail("In it, %s.", error),
					 errhint("Type %s can become: %s.", format_type_be(typid),
							 possible_types(basetype, as_key))));
		rule = find_rule(basetype, typmod, dst, NULL, &loses, &uni);
		if (!rule)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" of type %s cannot become \"%s\" in the target",
							colname, format_type_with_typemod(typid, typmod), shown),
					 errhint("Type %s can become: %s.", format_type_be(typid),
							 possible_types(basetype, as_key))));
		if (as_key && (!uni || map->storage))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("key column \"%s\" of type %s cannot become \"%s\" in the target",
							colname, format_type_with_typemod(typid, typmod), shown),
					 map->storage ?
					 errdetail("A key column is stored and indexed in the one way the target has for keys.") :
					 errdetail("Two different keys could become one."),
					 errhint("As a key, type %s can become: %s.", format_type_be(typid),
							 possible_types(basetype, true))));
	}
	else
	{
		dst = default_type(basetype, typmod, as_key);
		rule = find_rule(basetype, typmod, dst, NULL, &loses, &uni);
		if (!rule)
			elog(ERROR, "no rule for column \"%s\" of type %s", colname, format_type_be(typid));
	}

	initStringInfo(&buf);
	render_type(&buf, dst);
	map->type = buf.data;
	map->kind = target_bases[dst->base].kind;
	if (rule->src == SRC_ARRAY && dst->base == T_ARRAY)
		map->loses = join_losses(loses, dst->elem->base == T_ARRAY ?
								 "arrays of other dimensions are refused" :
								 "arrays of several dimensions are refused");
	else
		map->loses = join_losses(loses, NULL);
}

void
types_encoder(Oid typid, int32 typmod, const TypeMapping *map, CellEncoder *enc)
{
	Oid			basetype = getBaseTypeAndTypmod(typid, &typmod);
	char	   *storage;
	const char *error;
	TargetType *dst = parse_target_type(map->type, &storage, &error);
	const char *loses;
	bool		uni;

	memset(enc, 0, sizeof(*enc));
	if (!dst || !find_rule(basetype, typmod, dst, enc, &loses, &uni))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("type %s cannot become \"%s\" in the target",
						format_type_be(typid), map->type)));
}
