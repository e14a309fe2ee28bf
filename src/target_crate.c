/*-------------------------------------------------------------------------
 *
 * target_crate.c
 *		CrateDB as a target: its statements, and what its answers mean.
 *
 * Every write is one INSERT ... (SELECT ... FROM UNNEST ...) guarded by the
 * fence, or a DELETE of one version of a row: either may arrive late and do
 * no harm.  A write's text begins with a comment that names table, lane and
 * epoch, so that raise_fence can see in sys.jobs when the last one that has
 * passed an older fence is over.
 *
 *-------------------------------------------------------------------------
 */
#include "crate_sync.h"

#include "common/hashfn.h"
#include "common/jsonapi.h"
#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "target.h"
#include "target_http.h"
#include "types.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
#include "worker.h"

#define MAX_CONNECTIONS		32
#define MIN_VERSION			40200	/* INSERT ... RETURNING */
#define MAX_BODY			(100 * 1024 * 1024) /* http.max_content_length */
#define MAX_WRITE_ANSWER	(16 * 1024 * 1024)
#define MAX_QUERY_ANSWER	(64 * 1024 * 1024)
#define MAX_LOOKUP_KEYS		1000	/* far more in one IN silently find nothing */
#define MAX_LOOKUP_BYTES	190000	/* of keys in a statement, which may have 262144 */
#define MAX_JSON_DEPTH		2048	/* CrateDB itself takes 1000 */
#define FIRST_POLL			10		/* ms between looks at sys.jobs, doubling */
#define LAST_POLL			250
#define FENCE_WAIT			500		/* ms that older statements are waited for */
#define REFRESH_PATIENCE	2000	/* ms until the table's health is looked at */

#define FENCE_TABLE			CS_SCHEMA ".fence"
#define MARKER				"/* crate_sync "
#define POLL_MARKER			"/* fence poll */ "

/* a piece of an answer: JSON text, not terminated; start NULL: not there */
typedef struct Slice
{
	const char *start;
	int			len;
} Slice;

typedef struct Answer
{
	Slice		cols;
	Slice		rows;
	Slice		results;
	bool		has_rowcount;
	int64		rowcount;
	double		duration;
	bool		is_error;
	int			error_code;
	Slice		error_message;
} Answer;

/* what a round trip came to; message is palloc'd or NULL */
typedef struct Verdict
{
	TargetOutcome outcome;
	char		code[16];
	char	   *message;
} Verdict;

/* where a write is; each step is one round trip */
typedef enum Step
{
	STEP_FAIL_FAST,				/* SET insert_select_fail_fast */
	STEP_UPSERT,
	STEP_COLUMNS,				/* did it add members to a dynamic object? */
	STEP_REFRESH,				/* before lookups by composite key */
	STEP_LOOKUP,				/* of a chunk of keys */
	STEP_DELETE,				/* of the versions found */
	STEP_FENCE,					/* is it still ours? */
	STEP_PROBE					/* does the table take anything at all? */
} Step;

typedef struct CrateTarget CrateTarget;

typedef struct Slot
{
	CrateTarget *target;
	HttpConn   *conn;
	TargetRequest *req;			/* NULL: free */
	Step		step;
	instr_time	start;
	int			live;			/* rows or keys to write */
	int64		nwritten;
	int64		columns;		/* of the table when it was sent; 0: not known */
	int			chunk_lo;		/* rows looked up now */
	int			chunk_hi;
	int			chunk_live;
	int			chunk_found;
} Slot;

/* how many columns a table has there, members of objects counted */
typedef struct ColumnCount
{
	char	   *qualified;
	int64		n;
} ColumnCount;

struct CrateTarget
{
	Target		base;
	MemoryContext cxt;
	MemoryContext work;			/* of one step of a write */
	MemoryContext sync_work;	/* of one synchronous call */
	HttpPool   *pool;
	Slot	   *slots[MAX_CONNECTIONS + 1];
	int			nslots;
	int			nbusy;
	int			nfinished;		/* requests done since poll last returned */
	List	   *columns;		/* of ColumnCount *, in cxt */
	HttpConn   *sync;			/* synchronous calls have a connection of their own */
	bool		sync_done;
	bool		latch_eaten;	/* reset by us: to be set again */
};

static void slot_send(Slot *slot, Step step);

/* ---------------------------------------------------------------------
 * Reading JSON, with the server's lexer: it raises no errors, converts
 * nothing and leaves the text of every value as the target wrote it
 * ------------------------------------------------------------------- */

/*
 * The lexer stands on the first token of a value; moves it to the last one.
 * False if that is no JSON.
 */
static bool
json_skip(JsonLexContext *lex, Slice *value)
{
	char		stack[MAX_JSON_DEPTH];
	int			depth = 0;

	value->start = lex->token_start;
	for (;;)
	{
		bool		ended = true;

		switch (lex->token_type)
		{
			case JSON_TOKEN_OBJECT_START:
			case JSON_TOKEN_ARRAY_START:
				{
					bool		object = lex->token_type == JSON_TOKEN_OBJECT_START;

					if (depth == MAX_JSON_DEPTH)
						return false;
					stack[depth++] = object ? '{' : '[';
					if (json_lex(lex) != JSON_SUCCESS)
						return false;
					if (lex->token_type == (object ? JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END))
					{
						depth--;
						break;
					}
					if (object &&
						(lex->token_type != JSON_TOKEN_STRING ||
						 json_lex(lex) != JSON_SUCCESS ||
						 lex->token_type != JSON_TOKEN_COLON ||
						 json_lex(lex) != JSON_SUCCESS))
						return false;
					ended = false;
					break;
				}
			case JSON_TOKEN_STRING:
			case JSON_TOKEN_NUMBER:
			case JSON_TOKEN_TRUE:
			case JSON_TOKEN_FALSE:
			case JSON_TOKEN_NULL:
				break;
			default:
				return false;
		}

		/* after a value: the next one of what it is in, or that one's end */
		while (ended)
		{
			if (depth == 0)
			{
				value->len = lex->token_terminator - value->start;
				return true;
			}
			if (json_lex(lex) != JSON_SUCCESS)
				return false;
			if (lex->token_type == JSON_TOKEN_COMMA)
			{
				if (json_lex(lex) != JSON_SUCCESS)
					return false;
				if (stack[depth - 1] == '{' &&
					(lex->token_type != JSON_TOKEN_STRING ||
					 json_lex(lex) != JSON_SUCCESS ||
					 lex->token_type != JSON_TOKEN_COLON ||
					 json_lex(lex) != JSON_SUCCESS))
					return false;
				ended = false;
			}
			else if (lex->token_type == (stack[depth - 1] == '{' ?
										 JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END))
				depth--;
			else
				return false;
		}
	}
}

/* members of an object or elements of an array, one after the other */
typedef struct JsonIter
{
	JsonLexContext *lex;
	JsonTokenType end;
	bool		failed;
	bool		over;
} JsonIter;

/* lexers and results live in the current memory context */
static void
json_iterate(JsonIter *it, Slice value)
{
	it->failed = false;
	it->over = value.start == NULL;
	if (it->over)
		return;
	it->lex = CS_JSON_LEXER(unconstify(char *, value.start), value.len);
	it->end = value.len > 0 && *value.start == '{' ? JSON_TOKEN_OBJECT_END : JSON_TOKEN_ARRAY_END;
	if (json_lex(it->lex) != JSON_SUCCESS ||
		it->lex->token_type != (it->end == JSON_TOKEN_OBJECT_END ?
								JSON_TOKEN_OBJECT_START : JSON_TOKEN_ARRAY_START) ||
		json_lex(it->lex) != JSON_SUCCESS)
		it->failed = it->over = true;
	else if (it->lex->token_type == it->end)
		it->over = true;
}

/* key: with its quotes; NULL for arrays.  False at the end, or if failed is set */
static bool
json_next(JsonIter *it, Slice *key, Slice *value)
{
	JsonLexContext *lex = it->lex;

	if (it->over)
		return false;
	it->failed = it->over = true;
	if (it->end == JSON_TOKEN_OBJECT_END)
	{
		if (lex->token_type != JSON_TOKEN_STRING)
			return false;
		if (key != NULL)
		{
			key->start = lex->token_start;
			key->len = lex->token_terminator - lex->token_start;
		}
		if (json_lex(lex) != JSON_SUCCESS || lex->token_type != JSON_TOKEN_COLON ||
			json_lex(lex) != JSON_SUCCESS)
			return false;
	}
	if (!json_skip(lex, value) || json_lex(lex) != JSON_SUCCESS)
		return false;
	if (lex->token_type == JSON_TOKEN_COMMA)
	{
		if (json_lex(lex) != JSON_SUCCESS)
			return false;
		it->over = false;
	}
	else if (lex->token_type != it->end)
		return false;
	it->failed = false;
	return true;
}

static inline bool
slice_is(Slice s, const char *text)
{
	return s.start != NULL && s.len == strlen(text) && memcmp(s.start, text, s.len) == 0;
}

static bool
slice_int(Slice s, int64 *result)
{
	char		buf[24];
	char	   *end;

	if (s.start == NULL || s.len == 0 || s.len >= sizeof(buf))
		return false;
	memcpy(buf, s.start, s.len);
	buf[s.len] = '\0';
	errno = 0;
	*result = strtoll(buf, &end, 10);
	return errno == 0 && *end == '\0';
}

static int
hex4(const char *p)
{
	int			result = 0;

	for (int i = 0; i < 4; i++)
	{
		int			c = (unsigned char) p[i];

		result = result * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
	}
	return result;
}

/*
 * What a JSON string says, in UTF-8; any other value's own text.  The lexer
 * has been over it, so escapes are whole.  What cannot be a character of a
 * text becomes U+FFFD.  palloc'd; *len may be NULL.
 */
static char *
json_text(Slice s, int *len)
{
	char	   *result = palloc(s.len + 1);
	char	   *out = result;
	const char *p = s.start;
	const char *end = s.start + s.len;

	if (s.len < 2 || *p != '"')
	{
		memcpy(result, p, s.len);
		out += s.len;
	}
	else
	{
		for (p++, end--; p < end; p++)
		{
			pg_wchar	c;

			if (*p != '\\')
			{
				*out++ = *p;
				continue;
			}
			switch (*++p)
			{
				case 'b':
					*out++ = '\b';
					break;
				case 'f':
					*out++ = '\f';
					break;
				case 'n':
					*out++ = '\n';
					break;
				case 'r':
					*out++ = '\r';
					break;
				case 't':
					*out++ = '\t';
					break;
				case 'u':
					c = hex4(p + 1);
					p += 4;
					if (is_utf16_surrogate_first(c) && end - p > 6 && p[1] == '\\' && p[2] == 'u' &&
						is_utf16_surrogate_second(hex4(p + 3)))
					{
						c = surrogate_pair_to_codepoint(c, hex4(p + 3));
						p += 6;
					}
					if (c == 0 || (c >= 0xD800 && c <= 0xDFFF))
						c = 0xFFFD;
					unicode_to_utf8(c, (unsigned char *) out);
					out += pg_utf_mblen((unsigned char *) out);
					break;
				default:
					*out++ = *p;
			}
		}
	}
	*out = '\0';
	if (len != NULL)
		*len = out - result;
	return result;
}

/* ---------------------------------------------------------------------
 * Answers
 * ------------------------------------------------------------------- */

/* takes an answer apart; false if it is no complete answer of CrateDB's */
static bool
answer_read(const HttpConn *conn, Answer *answer)
{
	JsonIter	it;
	Slice		all;
	Slice		key;
	Slice		value;

	memset(answer, 0, sizeof(*answer));
	answer->duration = -1;
	all.start = conn->answer;
	all.len = (int) conn->answer_len;
	if (conn->answer_len == 0 || conn->answer_cut || *all.start != '{' ||
		!pg_verify_mbstr(PG_UTF8, all.start, all.len, true))
		return false;

	json_iterate(&it, all);
	while (json_next(&it, &key, &value))
	{
		if (slice_is(key, "\"cols\""))
			answer->cols = value;
		else if (slice_is(key, "\"rows\""))
			answer->rows = value;
		else if (slice_is(key, "\"results\""))
			answer->results = value;
		else if (slice_is(key, "\"rowcount\""))
			answer->has_rowcount = slice_int(value, &answer->rowcount);
		else if (slice_is(key, "\"duration\""))
			answer->duration = strtod(value.start, NULL);	/* the text goes on: it ends in } */
		else if (slice_is(key, "\"error\"") && *value.start == '{')
		{
			JsonIter	members;
			Slice		name;
			Slice		member;
			int64		code;

			answer->is_error = true;
			json_iterate(&members, value);
			while (json_next(&members, &name, &member))
			{
				if (slice_is(name, "\"message\"") && *member.start == '"')
					answer->error_message = member;
				else if (slice_is(name, "\"code\"") && slice_int(member, &code))
					answer->error_code = (int) code;
			}
		}
	}
	if (it.failed || json_lex(it.lex) != JSON_SUCCESS || it.lex->token_type != JSON_TOKEN_END)
		return false;
	return answer->is_error ? answer->error_code != 0 :
		answer->has_rowcount || answer->results.start != NULL;
}

/* an error code of CrateDB's, see cratedb.md; name is the exception's */
static TargetOutcome
classify_error(int status, int code, const char *message)
{
	switch (code)
	{
		case 4000:
			/* the one limit of theirs that is about the request and not a value */
			return strstr(message, "statement_max_length") ? TARGET_TOO_BIG : TARGET_REFUSED_ROWS;
		case 4007:				/* blocked, closed, read only */
		case 4011:				/* no right to this table */
		case 4037:				/* disk nearly full */
			return TARGET_REFUSED_TABLE;
		case 4010:
			return TARGET_REFUSED_ALL;
		case 4041:
		case 4042:
		case 4043:
		case 4044:
		case 4045:
		case 4046:
		case 4047:
			return TARGET_REFUSED_TABLE;
		case 4040:				/* a shard that is looked for and not there */
		case 5002:				/* shard unavailable */
		case 5005:				/* killed, or the target's own timeout */
			return TARGET_BUSY;
		case 5000:
			{
				int			name = strcspn(message, "[");

				/* only where the target's own words stand: values come after */
				if (memmem(message, name, "CircuitBreaking", 15) ||
					memmem(message, name, "Rejected", 8) ||
					strncmp(message + name, "[[parent] Data too large", 24) == 0 ||
					strncmp(message + name, "[rejected execution", 19) == 0)
					return TARGET_BUSY;
				return TARGET_FAILED;
			}
	}
	if (status == 503 || (code >= 5030 && code <= 5039))
		return TARGET_BUSY;
	if (status == 401)
		return TARGET_REFUSED_ALL;
	return status >= 500 ? TARGET_FAILED : TARGET_REFUSED_ROWS;
}

/*
 * What became of a round trip.  Fills answer if it is one of CrateDB's.  In
 * the current memory context.
 */
static void
judge(HttpConn *conn, Answer *answer, Verdict *v)
{
	bool		valid;

	memset(answer, 0, sizeof(*answer));
	memset(v, 0, sizeof(*v));
	if (conn->fate != HTTP_ANSWERED)
	{
		v->outcome = conn->fate == HTTP_LOST ? TARGET_UNKNOWN :
			conn->fate == HTTP_NOT_SENT ? TARGET_UNREACHABLE : TARGET_REFUSED_ALL;
		strlcpy(v->code, conn->fate == HTTP_UNUSABLE ? "settings" : "network", sizeof(v->code));
		v->message = target_clean_text(conn->error, strlen(conn->error));
		return;
	}

	if (conn->status >= 502 && conn->status <= 504)
		http_blame_host(conn);
	valid = answer_read(conn, answer);
	snprintf(v->code, sizeof(v->code), "http %d", conn->status);

	if (valid && answer->is_error)
	{
		int			len = 0;
		char	   *message = answer->error_message.start ?
			json_text(answer->error_message, &len) : pstrdup("");

		snprintf(v->code, sizeof(v->code), "%d", answer->error_code);
		v->outcome = classify_error(conn->status, answer->error_code, message);
		v->message = target_clean_text(message, len);
		return;
	}
	if (valid && conn->status == 200 && conn->complete)
	{
		v->outcome = TARGET_OK;
		v->code[0] = '\0';
		return;
	}

	if (conn->answer_cut)
	{
		/* a request it cannot read comes back whole in its error message */
		if (conn->status == 400 &&
			strncmp(conn->answer, "{\"error\":{\"message\":\"SQLParseException[Can't parse", 50) == 0)
		{
			v->outcome = TARGET_REFUSED_ROWS;
			strlcpy(v->code, "4000", sizeof(v->code));
			v->message = target_clean_text(conn->answer + 21, 200);
			return;
		}
		v->outcome = TARGET_UNKNOWN;
		v->message = psprintf("the answer is longer than %zu MB", conn->max_answer / (1024 * 1024));
		return;
	}
	switch (conn->status)
	{
		case 401:
		case 403:
			v->outcome = TARGET_REFUSED_ALL;
			break;
		case 413:
			v->outcome = TARGET_TOO_BIG;
			break;
		case 429:
			v->outcome = TARGET_BUSY;
			break;
		default:
			v->outcome = TARGET_UNKNOWN;
	}
	if (conn->status == 413 || conn->status == 429)
		v->message = pstrdup(conn->status == 413 ? "the request is too large" : "too many requests");
	else if (conn->status >= 300 && conn->status < 400)
		v->message = psprintf("HTTP status %d: a redirect, which is not followed", conn->status);
	else
	{
		char	   *words = target_clean_text(conn->answer ? conn->answer : "",
											  Min((int) conn->answer_len, 200));

		v->message = psprintf("HTTP status %d%s%s%s", conn->status,
							  conn->status == 401 || conn->status == 403 ? "" :
							  conn->answer_len == 0 ? " and an empty answer" :
							  " and no answer of CrateDB's",
							  words[0] ? ": " : "", words);
	}
}

/* ---------------------------------------------------------------------
 * Writing statements: a request's body is JSON, {"stmt":"...","args":[...]},
 * and is built front to back in one buffer
 * ------------------------------------------------------------------- */

#define raw(buf, literal) appendBinaryStringInfo(buf, literal, sizeof(literal) - 1)

static void
begin_statement(StringInfo buf)
{
	resetStringInfo(buf);
	raw(buf, "{\"stmt\":\"");
}

/* text that needs JSON's escapes, inside of the statement */
static void
sql_text(StringInfo buf, const char *text)
{
	int			at = buf->len;

	types_json_string(buf, text, strlen(text));
	buf->len -= 2;
	memmove(buf->data + at, buf->data + at + 1, buf->len - at);
	buf->data[buf->len] = '\0';
}

static void
sql_column(StringInfo buf, const TargetTable *table, int col)
{
	char	   *quoted = target_quote_ident(table->cols[col].name);

	sql_text(buf, quoted);
	pfree(quoted);
}

static inline bool
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
static const char *
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
static void
append_marker_id(StringInfo buf, const TargetTable *table, int lane)
{
	appendStringInfo(buf, "%016llx %d ",
					 (unsigned long long) hash_bytes_extended((const unsigned char *) table->qualified,
															  strlen(table->qualified), 0),
					 lane);
}

/* nothing that a user has written: it could end the comment */
static void
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

static void
append_fence_id(StringInfo buf, const TargetTable *table, int lane)
{
	char	   *id = fence_id(table, lane);

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
static Size
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

static void
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
static inline int
key_place(const TargetTable *table, const RowSet *rows, int k)
{
	return rows->ncols == table->nkeys ? k : table->keys[k];
}

/* the end of a chunk of keys that one lookup can take */
static int
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
 * and then what().
 *
 * One key column: literals, which find rows not yet refreshed.  Several: that
 * way costs seconds, so the caller refreshes first, and the keys come as
 * arrays to be joined with; the IN-like conditions keep the join from
 * reading the whole table.
 */
static void
build_lookup(StringInfo buf, const TargetTable *table, const RowSet *rows, int lo, int hi,
			 void (*what) (StringInfo buf, const TargetTable *table, void *arg), void *arg)
{
	bool		first = true;

	begin_statement(buf);
	raw(buf, "SELECT ");
	if (table->nkeys > 1)
		raw(buf, "u.i,");
	what(buf, table, arg);
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
		raw(buf, ")\"}");
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

static void
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

typedef struct ColumnList
{
	const int  *cols;
	int			ncols;
} ColumnList;

static void
what_columns(StringInfo buf, const TargetTable *table, void *arg)
{
	const ColumnList *list = arg;

	for (int i = 0; i < list->ncols; i++)
	{
		appendStringInfoString(buf, i == 0 ? "t." : ",t.");
		sql_column(buf, table, list->cols[i]);
	}
}

/* "B'01'", with its quotes: how the target answers bits; it takes 01 */
static bool
is_bit_text(Slice value)
{
	return value.len >= 5 && memcmp(value.start, "\"B'", 3) == 0 &&
		strspn(value.start + 3, "01") == value.len - 5 && value.start[value.len - 2] == '\'';
}

/*
 * A value of an answer as a cell: as the column's encoder would have written
 * it.  What is none of that column's type stays as it is: it is JSON, at least.
 */
static void
append_answer_cell(StringInfo buf, const TargetColumn *col, Slice value)
{
	if (col->kind == CELL_NUMERIC && (*value.start == '-' || isdigit((unsigned char) *value.start)))
	{
		/* sent back as a number it would pass through a double */
		appendStringInfoChar(buf, '"');
		appendBinaryStringInfo(buf, value.start, value.len);
		appendStringInfoChar(buf, '"');
	}
	else if (type_is(col->type, "BIT") && is_bit_text(value))
	{
		appendStringInfoChar(buf, '"');
		appendBinaryStringInfo(buf, value.start + 3, value.len - 5);
		appendStringInfoChar(buf, '"');
	}
	else
		appendBinaryStringInfo(buf, value.start, value.len);
}

/*
 * Columns of the rows with these keys, of one column, as a search: it takes
 * thousands of keys as fast as the target answers, but misses rows that are
 * not refreshed.
 */
static void
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

static void
build_refresh(StringInfo buf, const TargetTable *table)
{
	begin_statement(buf);
	raw(buf, "REFRESH TABLE ");
	sql_text(buf, table->qualified);
	raw(buf, "\"}");
}

static void
build_count_columns(StringInfo buf, const TargetTable *table)
{
	begin_statement(buf);
	raw(buf, "SELECT count(*) FROM information_schema.columns WHERE table_schema = ? AND table_name = ?\",\"args\":[");
	types_json_string(buf, table->schema, strlen(table->schema));
	appendStringInfoChar(buf, ',');
	types_json_string(buf, table->name, strlen(table->name));
	raw(buf, "]}");
}

/*
 * Deletes a version of the row that no row ever has: it changes nothing, but
 * a blocked table, which drops rows without a word, says here why.
 */
static void
build_probe(StringInfo buf, const TargetRequest *req)
{
	const TargetTable *table = req->table;
	int			row = req->lo;

	while (req->rows->dead != NULL && req->rows->dead[row])
		row++;
	begin_statement(buf);
	raw(buf, "DELETE FROM ");
	sql_text(buf, table->qualified);
	raw(buf, " WHERE ");
	for (int k = 0; k < table->nkeys; k++)
	{
		sql_column(buf, table, table->keys[k]);
		raw(buf, " = ? AND ");
	}
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

static void
build_read_fence(StringInfo buf, const TargetTable *table, int lane)
{
	begin_statement(buf);
	raw(buf, "SELECT epoch FROM " FENCE_TABLE " WHERE id = ?\",\"args\":[");
	append_fence_id(buf, table, lane);
	raw(buf, "]}");
}

/*
 * Deletes the versions that a lookup has found, and says in *found how many
 * those are; 0: there is nothing to send.  False if the answer makes no sense.
 */
static bool
build_delete(Slot *slot, const Answer *answer, int *found)
{
	const TargetRequest *req = slot->req;
	const TargetTable *table = req->table;
	StringInfo	buf = &slot->conn->body;
	int		   *live = palloc(sizeof(int) * slot->chunk_live);
	int			nlive = 0;
	JsonIter	rows;
	Slice		row;

	for (int i = slot->chunk_lo; i < slot->chunk_hi; i++)
	{
		if (req->rows->dead == NULL || !req->rows->dead[i])
			live[nlive++] = i;
	}

	begin_statement(buf);
	append_marker(buf, req);
	raw(buf, "DELETE FROM ");
	sql_text(buf, table->qualified);
	raw(buf, " WHERE ");
	for (int k = 0; k < table->nkeys; k++)
	{
		sql_column(buf, table, table->keys[k]);
		raw(buf, " = ? AND ");
	}
	raw(buf, "_seq_no = ? AND _primary_term = ?\",\"bulk_args\":[");

	*found = 0;
	json_iterate(&rows, answer->rows);
	while (json_next(&rows, NULL, &row))
	{
		JsonIter	cells;
		Slice		cell[3];
		int			n = 0;
		int64		i;

		json_iterate(&cells, row);
		while (n < 3 && json_next(&cells, NULL, &cell[n]))
			n++;
		if (n != 3 || cells.failed)
			return false;
		if (++*found > slot->chunk_live)
			return false;
		appendStringInfoString(buf, *found == 1 ? "[" : ",[");
		if (table->nkeys == 1)
			append_answer_cell(buf, &table->cols[table->keys[0]], cell[0]);
		else
		{
			if (!slice_int(cell[0], &i) || i < 0 || i >= nlive)
				return false;
			for (int k = 0; k < table->nkeys; k++)
			{
				int			len;
				const char *key = rowset_get(req->rows, live[i],
											 key_place(table, req->rows, k), &len);

				if (k > 0)
					appendStringInfoChar(buf, ',');
				appendBinaryStringInfo(buf, key, len);
			}
		}
		appendStringInfo(buf, ",%.*s,%.*s]", cell[1].len, cell[1].start, cell[2].len, cell[2].start);
	}
	raw(buf, "]}");
	return !rows.failed && answer->rows.start != NULL;
}

/* how many rows an answer has */
static int
answer_nrows(const Answer *answer)
{
	JsonIter	rows;
	Slice		row;
	int			n = 0;

	json_iterate(&rows, answer->rows);
	while (json_next(&rows, NULL, &row))
		n++;
	return n;
}

/* the first cell of the first row as a number */
static bool
answer_int(const Answer *answer, int64 *value)
{
	JsonIter	rows;
	JsonIter	cells;
	Slice		row;
	Slice		cell;

	json_iterate(&rows, answer->rows);
	if (!json_next(&rows, NULL, &row))
		return false;
	json_iterate(&cells, row);
	return json_next(&cells, NULL, &cell) && slice_int(cell, value);
}

/* bulk rows that are gone; -1 if the answer makes no sense */
static int
count_deleted(const Answer *answer, int sent)
{
	JsonIter	results;
	Slice		result;
	int			n = 0;
	int			gone = 0;

	json_iterate(&results, answer->results);
	while (json_next(&results, NULL, &result))
	{
		JsonIter	members;
		Slice		key;
		Slice		value;
		int64		rowcount = -2;
		bool		missing = false;

		n++;
		json_iterate(&members, result);
		while (json_next(&members, &key, &value))
		{
			if (slice_is(key, "\"rowcount\""))
				slice_int(value, &rowcount);
			else if (slice_is(key, "\"error\"") && *value.start == '{')
			{
				JsonIter	errors;

				json_iterate(&errors, value);
				while (json_next(&errors, &key, &value))
				{
					if (slice_is(key, "\"code\"") && slice_is(value, "40411"))
						missing = true;
				}
			}
		}
		/* 0: its partition is gone, and it with that */
		if (rowcount >= 0 || missing)
			gone++;
	}
	return n == sent ? gone : -1;
}

/* ---------------------------------------------------------------------
 * Writes: one step after the other
 * ------------------------------------------------------------------- */

static void
slot_finish(Slot *slot, const Verdict *v)
{
	TargetRequest *req = slot->req;
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, slot->start);
	req->elapsed = INSTR_TIME_GET_MILLISEC(now);
	req->outcome = v->outcome;
	req->nwritten = slot->nwritten;
	strlcpy(req->code, v->code, sizeof(req->code));
	free(req->message);
	req->message = v->message ? strdup(v->message) : NULL;
	req->impl = NULL;
	req->done = true;
	slot->req = NULL;
	slot->target->nbusy--;
	slot->target->nfinished++;
	http_trim(slot->conn);
}

static void
slot_finish_with(Slot *slot, TargetOutcome outcome, const char *code, const char *message)
{
	Verdict		v;

	v.outcome = outcome;
	strlcpy(v.code, code, sizeof(v.code));
	v.message = message ? pstrdup(message) : NULL;
	slot_finish(slot, &v);
}

/* the next chunk of keys to look up, or the end of the request */
static void
slot_next_chunk(Slot *slot)
{
	TargetRequest *req = slot->req;

	slot->chunk_lo = slot->chunk_hi;
	slot->chunk_hi = lookup_chunk(req->table, req->rows, slot->chunk_lo, req->hi);
	slot->chunk_live = rowset_live(req->rows, slot->chunk_lo, slot->chunk_hi);
	if (slot->chunk_live > 0)
		slot_send(slot, STEP_LOOKUP);
	else if (req->kind == TARGET_UPSERT)
		slot_send(slot, STEP_FENCE);	/* what is there must not hide a raised fence */
	else
		slot_finish_with(slot, TARGET_OK, "", NULL);
}

/* key by key: several columns need a refresh to be found */
static void
slot_begin_lookups(Slot *slot)
{
	slot->chunk_hi = slot->req->lo;
	if (slot->req->table->nkeys > 1)
		slot_send(slot, STEP_REFRESH);
	else
		slot_next_chunk(slot);
}

/* STEP_DELETE's body is there already: it was made from the lookup's answer */
static void
slot_send(Slot *slot, Step step)
{
	TargetRequest *req = slot->req;
	HttpConn   *conn = slot->conn;

	slot->step = step;
	conn->max_answer = step == STEP_LOOKUP ? MAX_QUERY_ANSWER : MAX_WRITE_ANSWER;
	conn->close_after = false;
	switch (step)
	{
		case STEP_FAIL_FAST:
			begin_statement(&conn->body);
			raw(&conn->body, "SET insert_select_fail_fast = true\"}");
			break;
		case STEP_UPSERT:
			build_upsert(&conn->body, req);
			/* what was set goes away with the session, for sure */
			conn->close_after = req->explain;
			break;
		case STEP_COLUMNS:
			build_count_columns(&conn->body, req->table);
			break;
		case STEP_REFRESH:
			build_refresh(&conn->body, req->table);
			break;
		case STEP_LOOKUP:
			build_lookup(&conn->body, req->table, req->rows, slot->chunk_lo, slot->chunk_hi,
						 what_version, NULL);
			break;
		case STEP_DELETE:
			break;
		case STEP_FENCE:
			build_read_fence(&conn->body, req->table, req->lane);
			break;
		case STEP_PROBE:
			build_probe(&conn->body, req);
			break;
	}
	req->nrequests++;
	http_start(conn);
}

/* type_is() of any word in a type */
static bool
has_word(const char *type, const char *word)
{
	for (; *type; type++)
	{
		if (type_is(type, word))
			return true;
	}
	return false;
}

/*
 * Where an update brings a dynamic object its first value of a new member,
 * CrateDB (6.4.3) makes a column of it and forgets the member of other rows of the
 * same request, which it counts as written.  Sent again, they keep it.
 */
static bool
may_forget_members(const TargetTable *table)
{
	for (int i = 0; i < table->ncols; i++)
	{
		const char *type = table->cols[i].type;

		if (has_word(type, "OBJECT") && !has_word(type, "IGNORED") &&
			!has_word(type, "STRICT"))
			return true;
	}
	return false;
}

static ColumnCount *
column_count(CrateTarget *t, const TargetTable *table)
{
	MemoryContext oldcxt;
	ColumnCount *count;
	ListCell   *lc;

	foreach(lc, t->columns)
	{
		count = lfirst(lc);
		if (strcmp(count->qualified, table->qualified) == 0)
			return count;
	}
	oldcxt = MemoryContextSwitchTo(t->cxt);
	count = palloc0(sizeof(ColumnCount));
	count->qualified = pstrdup(table->qualified);
	t->columns = lappend(t->columns, count);
	MemoryContextSwitchTo(oldcxt);
	return count;
}

/* an upsert wrote fewer rows than were sent */
static void
slot_fell_short(Slot *slot)
{
	TargetRequest *req = slot->req;

	if (req->table->nkeys == req->table->ncols)
	{
		/* DO NOTHING does not count rows that were there: look */
		slot->nwritten = 0;
		slot_begin_lookups(slot);
	}
	else if (req->explain)
		slot_send(slot, STEP_FENCE);
	else
		slot_finish_with(slot, TARGET_OK, "", NULL);
}

static void
slot_advance(Slot *slot)
{
	TargetRequest *req = slot->req;
	Answer		answer;
	Verdict		v;
	int			n;
	int64		epoch;
	int64		columns;

	req->bytes_sent += slot->conn->bytes_sent;
	judge(slot->conn, &answer, &v);

	if (slot->step == STEP_DELETE && v.outcome != TARGET_OK && slot->chunk_found == 1 &&
		(strcmp(v.code, "40411") == 0 || strcmp(v.code, "4092") == 0))
	{
		/* before 5.10.10 a bulk of one row failed as a whole */
		slot->nwritten += slot->chunk_live - 1 + (strcmp(v.code, "40411") == 0 ? 1 : 0);
		slot_next_chunk(slot);
		return;
	}
	if (v.outcome != TARGET_OK &&
		!((slot->step == STEP_FAIL_FAST || slot->step == STEP_PROBE) &&
		  (v.outcome == TARGET_REFUSED_ROWS || v.outcome == TARGET_FAILED)))
	{
		/* a question that was lost has written nothing, now or later */
		if (slot->step != STEP_UPSERT && slot->step != STEP_DELETE && v.outcome == TARGET_UNKNOWN)
			v.outcome = TARGET_UNREACHABLE;
		slot_finish(slot, &v);
		return;
	}

	switch (slot->step)
	{
		case STEP_FAIL_FAST:
			slot_send(slot, STEP_UPSERT);
			return;

		case STEP_UPSERT:
			if (!answer.has_rowcount || answer.rowcount < 0 || answer.rowcount > slot->live)
				break;
			slot->nwritten = answer.rowcount;
			if (slot->nwritten < slot->live)
				slot_fell_short(slot);
			else if (may_forget_members(req->table))
				slot_send(slot, STEP_COLUMNS);
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_COLUMNS:
			if (!answer_int(&answer, &columns))
				break;
			column_count(slot->target, req->table)->n = columns;
			if (columns != slot->columns)
			{
				slot->columns = columns;
				slot_send(slot, STEP_UPSERT);
			}
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_REFRESH:
			slot_next_chunk(slot);
			return;

		case STEP_LOOKUP:
			if (req->kind == TARGET_UPSERT)
			{
				slot->nwritten += Min(answer_nrows(&answer), slot->chunk_live);
				slot_next_chunk(slot);
				return;
			}
			if (!build_delete(slot, &answer, &slot->chunk_found))
				break;
			if (slot->chunk_found > 0)
				slot_send(slot, STEP_DELETE);
			else
			{
				slot->nwritten += slot->chunk_live;
				slot_next_chunk(slot);
			}
			return;

		case STEP_DELETE:
			n = count_deleted(&answer, slot->chunk_found);
			if (n < 0)
				break;
			slot->nwritten += slot->chunk_live - slot->chunk_found + n;
			slot_next_chunk(slot);
			return;

		case STEP_FENCE:
			if (!answer_int(&answer, &epoch) || epoch != req->epoch)
			{
				slot->nwritten = 0;
				slot_finish_with(slot, TARGET_OK, "", NULL);
			}
			else if (req->explain && slot->nwritten < slot->live)
				slot_send(slot, STEP_PROBE);
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_PROBE:
			slot_finish_with(slot, TARGET_REFUSED_ROWS, "dropped",
							 "the target dropped the row without saying why, as CrateDB does before 6.0");
			return;
	}
	slot_finish_with(slot, slot->step == STEP_UPSERT || slot->step == STEP_DELETE ?
					 TARGET_UNKNOWN : TARGET_UNREACHABLE,
					 "answer", "the target's answer does not fit the request");
}

/* takes up what has been answered */
static void
crate_collect(CrateTarget *t)
{
	HttpConn   *conn;

	while ((conn = http_next_done(t->pool)) != NULL)
	{
		if (conn == t->sync)
			t->sync_done = true;
		else
		{
			Slot	   *slot = conn->arg;
			MemoryContext oldcxt;

			MemoryContextReset(t->work);
			oldcxt = MemoryContextSwitchTo(t->work);
			slot_advance(slot);
			MemoryContextSwitchTo(oldcxt);
		}
	}
}

static bool
crate_submit(Target *target, TargetRequest *req)
{
	CrateTarget *t = (CrateTarget *) target;
	Slot	   *slot = NULL;
	MemoryContext oldcxt;

	if (t->nbusy >= Min(cs_connections, MAX_CONNECTIONS) + (req->beside ? 1 : 0))
		return false;
	for (int i = 0; i < t->nslots && slot == NULL; i++)
	{
		if (t->slots[i]->req == NULL)
			slot = t->slots[i];
	}
	if (slot == NULL)
	{
		slot = MemoryContextAllocZero(t->cxt, sizeof(Slot));
		slot->target = t;
		slot->conn = http_conn(t->pool);
		slot->conn->arg = slot;
		t->slots[t->nslots++] = slot;
	}

	target_request_reset(req);
	slot->live = rowset_live(req->rows, req->lo, req->hi);
	slot->nwritten = 0;
	slot->columns = may_forget_members(req->table) ? column_count(t, req->table)->n : 0;
	slot->chunk_found = 0;
	INSTR_TIME_SET_CURRENT(slot->start);
	MemoryContextReset(t->work);
	oldcxt = MemoryContextSwitchTo(t->work);
	slot->req = req;
	req->impl = slot;
	t->nbusy++;

	if (slot->live == 0)
		slot_finish_with(slot, TARGET_OK, "", NULL);
	else if (req->kind == TARGET_DELETE)
		slot_begin_lookups(slot);
	else if (cells_size(req->rows, req->lo, req->hi) > MAX_BODY)
		slot_finish_with(slot, TARGET_TOO_BIG, "", "the request would be larger than 100 MB");
	else
		slot_send(slot, req->explain ? STEP_FAIL_FAST : STEP_UPSERT);
	MemoryContextSwitchTo(oldcxt);
	return true;
}

static void
crate_poll(Target *target, long timeout, uint32 wait_event)
{
	CrateTarget *t = (CrateTarget *) target;
	TimestampTz deadline = timeout < 0 ? 0 :
		GetCurrentTimestamp() + timeout * INT64CONST(1000);

	for (;;)
	{
		long		wait = -1;
		int			r;

		crate_collect(t);
		if (t->nfinished > 0)
		{
			t->nfinished = 0;
			return;
		}
		if (deadline != 0)
		{
			/* apart: Max evaluates twice, and the clock goes on in between */
			wait = (deadline - GetCurrentTimestamp() + 999) / 1000;
			wait = Max(0, wait);
		}
		r = http_wait(t->pool, wait, wait_event);
		if (r == 0 || (r & HTTP_WAIT_LATCH))
		{
			crate_collect(t);
			t->nfinished = 0;
			return;
		}
	}
}

static void
crate_abandon(Target *target, TargetRequest *req)
{
	CrateTarget *t = (CrateTarget *) target;
	Slot	   *slot = req->impl;

	if (slot == NULL || slot->req != req)
		return;
	http_cancel(slot->conn);
	http_trim(slot->conn);
	slot->req = NULL;
	req->impl = NULL;
	t->nbusy--;
}

/* ---------------------------------------------------------------------
 * Synchronous calls
 * ------------------------------------------------------------------- */

/*
 * Waits for the answer to the synchronous request, if for_answer, but no longer
 * than ms milliseconds (-1: as long as it takes); drives the writes
 * meanwhile.  False: the server shuts down.
 */
static bool
sync_wait(CrateTarget *t, bool for_answer, long ms)
{
	TimestampTz deadline = ms < 0 ? 0 : GetCurrentTimestamp() + ms * INT64CONST(1000);
	bool		going = true;

	t->latch_eaten = false;
	PG_TRY();
	{
		for (;;)
		{
			long		wait = -1;
			int			r;

			crate_collect(t);
			if (for_answer && t->sync_done)
				break;
			if (ms >= 0 && (wait = (deadline - GetCurrentTimestamp() + 999) / 1000) <= 0)
				break;
			/* in short naps: nobody has to wait for us to notice him */
			worker_idle();
			r = http_wait(t->pool, wait < 0 ? 200 : Min(wait, 200), PG_WAIT_EXTENSION);
			if (r & HTTP_WAIT_LATCH)
			{
				/* whoever else it was set for hears of it afterwards */
				t->latch_eaten = true;
				ResetLatch(MyLatch);
				CHECK_FOR_INTERRUPTS();
				if (ShutdownRequestPending)
				{
					going = false;
					break;
				}
			}
		}
	}
	PG_CATCH();
	{
		http_cancel(t->sync);
		if (t->latch_eaten)
			SetLatch(MyLatch);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (t->latch_eaten)
		SetLatch(MyLatch);
	return going;
}

static void
verdict_to_result(const Verdict *v, TargetResult *res)
{
	res->outcome = v->outcome;
	strlcpy(res->code, v->code, sizeof(res->code));
	res->message = v->message;
}

/*
 * Sends what was built in t->sync's body and judges the answer, which stays
 * in t->sync until the next call.  In the current memory context.  False: no
 * answer came within patience (ms, -1: no limit but the request's), and the
 * request is forgotten.
 */
static bool
sync_send_patiently(CrateTarget *t, long patience, Answer *answer, TargetResult *res)
{
	Verdict		v;

	memset(res, 0, sizeof(*res));
	memset(answer, 0, sizeof(*answer));
	res->server_time = -1;
	t->sync->max_answer = MAX_QUERY_ANSWER;
	t->sync->close_after = false;
	t->sync_done = false;
	http_start(t->sync);
	if (!sync_wait(t, true, patience))
	{
		http_cancel(t->sync);
		target_result_error(res, TARGET_UNKNOWN, "shutdown", "interrupted: the worker is shutting down");
		return true;
	}
	if (!t->sync_done)
	{
		http_cancel(t->sync);
		return false;
	}
	judge(t->sync, answer, &v);
	/* for a question it is only that: one too large to be answered */
	if (t->sync->answer_cut && v.outcome == TARGET_UNKNOWN)
		v.outcome = TARGET_TOO_BIG;
	verdict_to_result(&v, res);
	if (res->outcome == TARGET_OK)
	{
		res->rowcount = answer->rowcount;
		res->server_time = answer->duration;
	}
	return true;
}

static void
sync_send(CrateTarget *t, Answer *answer, TargetResult *res)
{
	(void) sync_send_patiently(t, -1, answer, res);
}

/* JSON text that is valid in the database's encoding, whatever that is */
static char *
result_cell(Slice s)
{
	StringInfoData buf;
	const char *end = s.start + s.len;

	if (GetDatabaseEncoding() == PG_UTF8)
		return pnstrdup(s.start, s.len);
	initStringInfo(&buf);
	for (const char *p = s.start; p < end; p++)
	{
		pg_wchar	c;

		if (!IS_HIGHBIT_SET(*p))
		{
			appendStringInfoChar(&buf, *p);
			continue;
		}
		c = utf8_to_unicode((const unsigned char *) p);
		p += pg_utf_mblen((const unsigned char *) p) - 1;
		if (c > 0xFFFF)
			appendStringInfo(&buf, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
							 0xDC00 + ((c - 0x10000) & 0x3FF));
		else
			appendStringInfo(&buf, "\\u%04x", c);
	}
	return buf.data;
}

/* what answer has in cols and rows, into res, in the current memory context */
static void
result_fill(const Answer *answer, TargetResult *res)
{
	JsonIter	it;
	Slice		value;
	int			max = 64;

	if (answer->cols.start == NULL)
		return;
	json_iterate(&it, answer->cols);
	while (json_next(&it, NULL, &value))
		res->ncols++;
	if (res->ncols == 0)
		return;
	res->colnames = palloc(sizeof(char *) * res->ncols);
	json_iterate(&it, answer->cols);
	for (int i = 0; json_next(&it, NULL, &value); i++)
	{
		int			len;
		char	   *name = json_text(value, &len);

		res->colnames[i] = target_clean_text(name, len);
	}

	res->cells = palloc(sizeof(char **) * max);
	json_iterate(&it, answer->rows);
	while (json_next(&it, NULL, &value))
	{
		JsonIter	cells;
		Slice		cell;
		char	  **row = palloc0(sizeof(char *) * res->ncols);
		int			n = 0;

		if (res->nrows == max)
		{
			max *= 2;
			res->cells = repalloc_huge(res->cells, sizeof(char **) * max);
		}
		json_iterate(&cells, value);
		while (json_next(&cells, NULL, &cell) && n < res->ncols)
			row[n++] = result_cell(cell);
		while (n < res->ncols)
			row[n++] = pstrdup("null");
		if (cells.lex != NULL)
			pfree(cells.lex);
		res->cells[res->nrows++] = row;
	}
}

/* a call's garbage goes to a context of its own; its result to the caller's */
static MemoryContext
sync_enter(CrateTarget *t)
{
	if (t->sync->busy)
		http_cancel(t->sync);
	MemoryContextReset(t->sync_work);
	return MemoryContextSwitchTo(t->sync_work);
}

static void
sync_leave(CrateTarget *t, MemoryContext caller, TargetResult *res)
{
	MemoryContextSwitchTo(caller);
	if (res->message != NULL)
		res->message = pstrdup(res->message);
	http_trim(t->sync);
}

/* args_json: a JSON array, or NULL */
static void
build_plain(StringInfo buf, const char *sql, const char *args_json)
{
	resetStringInfo(buf);
	raw(buf, "{\"stmt\":");
	types_json_string(buf, sql, strlen(sql));
	if (args_json != NULL)
		appendStringInfo(buf, ",\"args\":%s", args_json);
	appendStringInfoChar(buf, '}');
}

static void
sync_query(CrateTarget *t, const char *sql, const char *args_json, TargetResult *res)
{
	Answer		answer;

	build_plain(&t->sync->body, sql, args_json);
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		result_fill(&answer, res);
}

/* the same for a question of ours, whose answer has ncols columns or is none */
static void
sync_rows(CrateTarget *t, const char *sql, const char *args_json, int ncols, TargetResult *res)
{
	sync_query(t, sql, args_json, res);
	if (res->outcome == TARGET_OK && res->nrows > 0 && res->ncols != ncols)
	{
		res->nrows = 0;
		target_result_error(res, TARGET_UNKNOWN, "answer",
							"the target's answer does not fit the question");
	}
}

static void
crate_statement(Target *target, const char *sql, const char *args_json, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	Answer		answer;

	build_plain(&t->sync->body, sql, args_json);
	sync_send(t, &answer, res);
	MemoryContextSwitchTo(caller);
	if (res->outcome == TARGET_OK)
		result_fill(&answer, res);
	sync_leave(t, caller, res);
}

/* what a cell of a result says; NULL for null */
static char *
cell_text(const char *cell)
{
	Slice		s = {cell, strlen(cell)};

	return strcmp(cell, "null") == 0 ? NULL : json_text(s, NULL);
}

/* "6.4.3..." as 60403; 0 if it is none */
static int
version_number(const char *text)
{
	int			major;
	int			minor;
	int			patch = 0;

	if (sscanf(text, "%d.%d.%d", &major, &minor, &patch) < 2)
		return 0;
	if (major < 0 || major > 999 || minor < 0 || minor > 99 || patch < 0)
		return 0;
	return major * 10000 + minor * 100 + Min(patch, 99);
}

static void
crate_check(Target *target, TargetInfo *info, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	char	   *text = NULL;

	memset(info, 0, sizeof(*info));
	/* asks for no right at all, unlike the sys tables */
	sync_query(t, "SELECT version()", NULL, res);
	if (res->outcome == TARGET_OK && res->nrows == 1 && res->ncols == 1)
		text = cell_text(res->cells[0][0]);

	if (text != NULL && strncmp(text, "CrateDB ", 8) == 0)
	{
		strlcpy(info->product, "CrateDB", sizeof(info->product));
		strlcpy(info->version, target_clean_text(text + 8, strcspn(text + 8, " ")),
				sizeof(info->version));
		info->version_num = version_number(info->version);
		if (info->version_num < MIN_VERSION)
			target_result_error(res, TARGET_REFUSED_ALL, "version",
								"CrateDB %s is too old: 4.2 or later is needed", info->version);
	}
	else if (res->outcome == TARGET_OK)
		target_result_error(res, TARGET_REFUSED_ALL, "product", "the target is not a CrateDB");
	else if (res->outcome == TARGET_UNKNOWN)
	{
		/* it was a question: it has changed nothing, whatever became of it */
		if (t->sync->fate == HTTP_ANSWERED && strcmp(res->code, "shutdown") != 0)
		{
			res->outcome = t->sync->status >= 500 ? TARGET_UNREACHABLE : TARGET_REFUSED_ALL;
			res->message = psprintf("the target is not a CrateDB, or something stands before it: %s",
									res->message);
		}
		else
			res->outcome = TARGET_UNREACHABLE;
	}
	else if (res->outcome == TARGET_REFUSED_ROWS || res->outcome == TARGET_REFUSED_TABLE ||
			 res->outcome == TARGET_TOO_BIG)
		res->outcome = TARGET_REFUSED_ALL;
	else if (res->outcome == TARGET_FAILED)
		res->outcome = TARGET_UNREACHABLE;
	res->ncols = res->nrows = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

/* ---------------------------------------------------------------------
 * The fence
 * ------------------------------------------------------------------- */

static void
create_fence_table(CrateTarget *t, TargetResult *res)
{
	sync_query(t, "CREATE TABLE IF NOT EXISTS " FENCE_TABLE
			   " (id TEXT PRIMARY KEY, epoch BIGINT) CLUSTERED INTO 1 SHARDS"
			   " WITH (number_of_replicas = '0-1')", NULL, res);
}

static inline bool
is_unknown_table(const TargetResult *res)
{
	return strcmp(res->code, "4041") == 0 || strcmp(res->code, "4045") == 0;
}

/*
 * How many statements marked with an older epoch of that table and lane are
 * running; -1: res says why that is not known.  Our own query has to show up,
 * or what does not show up proves nothing.
 */
static int
count_older_jobs(CrateTarget *t, const TargetTable *table, int lane, int64 epoch, TargetResult *res)
{
	StringInfoData id;
	StringInfoData args;
	bool		seen_self = false;
	int			n = 0;

	initStringInfo(&id);
	append_marker_id(&id, table, lane);
	initStringInfo(&args);
	appendStringInfo(&args, "[\"" MARKER "%% %s%%\",\"" POLL_MARKER "%%\"]", id.data);
	sync_rows(t, POLL_MARKER "SELECT substr(stmt, 1, 160) FROM sys.jobs WHERE stmt LIKE ? OR stmt LIKE ?",
			  args.data, 1, res);
	if (res->outcome != TARGET_OK)
	{
		if (is_unknown_table(res))
			target_result_error(res, TARGET_REFUSED_TABLE, res->code,
								"cannot read sys.jobs in the target: its user needs GRANT DQL ON SCHEMA sys");
		return -1;
	}
	for (int i = 0; i < res->nrows; i++)
	{
		char	   *text = cell_text(res->cells[i][0]);
		char	   *found;
		int64		other;

		if (text == NULL)
			continue;
		if (strncmp(text, POLL_MARKER, strlen(POLL_MARKER)) == 0)
			seen_self = true;
		else if ((found = strstr(text, id.data)) != NULL)
		{
			/* no number: not a marker of ours, but waiting for it is safe */
			if (sscanf(found + id.len, INT64_FORMAT, &other) != 1 || other < epoch)
				n++;
		}
	}
	if (!seen_self)
	{
		target_result_error(res, TARGET_REFUSED_TABLE, "stats",
							"the target does not show running statements in sys.jobs: SET GLOBAL stats.enabled = true");
		return -1;
	}
	return n;
}

static void
crate_raise_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				  TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	TimestampTz give_up = GetCurrentTimestamp() +
		Min(cs_request_timeout, FENCE_WAIT) * INT64CONST(1000);
	StringInfoData args;
	char	   *text;
	long		pause = FIRST_POLL;

	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	append_fence_id(&args, table, lane);
	appendStringInfoChar(&args, ']');
	for (int attempt = 0; attempt < 2; attempt++)
	{
		sync_rows(t, "INSERT INTO " FENCE_TABLE " (id, epoch) VALUES (?, 1)"
				  " ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
				  args.data, 1, res);
		if (attempt > 0 || !is_unknown_table(res))
			break;
		create_fence_table(t, res);
		if (res->outcome == TARGET_REFUSED_TABLE)
			target_result_error(res, TARGET_REFUSED_TABLE, res->code,
								"cannot make " FENCE_TABLE " in the target: its user needs GRANT DQL, DML, DDL ON SCHEMA " CS_SCHEMA " (%s)",
								res->message);
		if (res->outcome != TARGET_OK)
			break;
	}
	if (res->outcome == TARGET_OK)
	{
		*epoch = 0;
		if (res->nrows == 1 && res->ncols == 1 && (text = cell_text(res->cells[0][0])) != NULL)
			*epoch = strtoll(text, NULL, 10);
		if (*epoch <= 0)
			target_result_error(res, TARGET_REFUSED_TABLE, "epoch",
								"the fence table " FENCE_TABLE " in the target does not work as one");
	}
	while (res->outcome == TARGET_OK)
	{
		int			n = count_older_jobs(t, table, lane, *epoch, res);

		if (n == 0)
			break;
		if (n < 0)
			continue;			/* res says so */
		if (GetCurrentTimestamp() >= give_up)
			target_result_error(res, TARGET_BUSY, "fence",
								"%d older statement(s) on %s still run at the target", n, table->qualified);
		else if (!sync_wait(t, false, pause))
			target_result_error(res, TARGET_UNKNOWN, "shutdown", "interrupted: the worker is shutting down");
		pause = Min(pause * 2, LAST_POLL);
	}
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

/* no fence: epoch 0 */
static void
sync_read_fence(CrateTarget *t, const TargetTable *table, int lane, int64 *epoch, TargetResult *res)
{
	Answer		answer;

	*epoch = 0;
	build_read_fence(&t->sync->body, table, lane);
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		answer_int(&answer, epoch);
	else if (is_unknown_table(res))
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
}

static void
crate_read_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				 TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_read_fence(t, table, lane, epoch, res);
	sync_leave(t, caller, res);
}

/* ---------------------------------------------------------------------
 * Reading rows
 * ------------------------------------------------------------------- */

static char *table_args(const char *schema, const char *name);

/*
 * A table that has lost shards keeps whoever writes or refreshes it waiting
 * for a minute; this tells at once.  Who may not see it is told that all is
 * well.
 */
static void
sync_reachable(CrateTarget *t, const TargetTable *table, TargetResult *res)
{
	char	   *missing = NULL;

	sync_rows(t, "SELECT sum(missing_shards) FROM sys.health WHERE table_schema = ? AND table_name = ?",
			  table_args(table->schema, table->name), 1, res);
	if (res->outcome == TARGET_OK && res->nrows == 1)
		missing = cell_text(res->cells[0][0]);
	if (missing != NULL && atoi(missing) > 0)
		target_result_error(res, TARGET_REFUSED_TABLE, "shards",
							"not all shards of %s are available in the target", table->qualified);
	else if (res->outcome != TARGET_UNREACHABLE && res->outcome != TARGET_UNKNOWN)
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
}

static void
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

	json_iterate(&rows, answer->rows);
	while (json_next(&rows, NULL, &row))
	{
		JsonIter	cells;
		Slice		cell;
		int			n = -skip;

		json_iterate(&cells, row);
		while (json_next(&cells, NULL, &cell))
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

static void
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

static void
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
				build_lookup(&t->sync->body, table, keys, lo, end, what_columns, &list);
			sync_send(t, &answer, res);
			if (res->outcome == TARGET_OK)
				append_rows(&answer, table, cols, ncols, table->nkeys > 1 ? 1 : 0, out, res);
		}
		lo = end;
	}
	sync_leave(t, caller, res);
}

static void
crate_refresh(Target *target, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_refresh(t, table, res);
	sync_leave(t, caller, res);
}

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

static char *
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

static int
int_or(const char *cell, int otherwise)
{
	char	   *text = cell_text(cell);

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
		char	   *name = cell_text(row[0]);
		char	   *type = cell_text(row[1]);
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
					shown_text = cell_text(shown.cells[0][0]);
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
			char	   *name = cell_text(keys.cells[k][0]);
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

static char *
table_args(const char *schema, const char *name)
{
	StringInfoData args;

	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	types_json_string(&args, schema, strlen(schema));
	appendStringInfoChar(&args, ',');
	types_json_string(&args, name, strlen(name));
	appendStringInfoChar(&args, ']');
	return args.data;
}

static void
sync_ensure_table(CrateTarget *t, const TargetTable *table, bool *created, bool *altered,
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
		initStringInfo(&ddl);
		appendStringInfo(&ddl, "ALTER TABLE %s ADD COLUMN ", table->qualified);
		append_column_def(&ddl, &table->cols[i]);
		sync_query(t, ddl.data, NULL, res);
		if (res->outcome == TARGET_REFUSED_ROWS)
			res->outcome = TARGET_REFUSED_TABLE;
		*altered = true;
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

static void
crate_ensure_table(Target *target, const TargetTable *table, bool *created, bool *altered,
				   TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_ensure_table(t, table, created, altered, res);
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

/*
 * The fence stays: its epoch must not begin anew while an old request may
 * still be on its way to a table of that name.
 */
static void
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
		char	   *state = cell_text(grants.cells[i][0]);
		char	   *type = cell_text(grants.cells[i][1]);
		char	   *grantee = cell_text(grants.cells[i][2]);

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

static void
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

/* ---------------------------------------------------------------------
 * The target itself
 * ------------------------------------------------------------------- */

static Target *
crate_open(const char *conf)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync target",
											  ALLOCSET_DEFAULT_SIZES);
	CrateTarget *t;

	PG_TRY();
	{
		t = MemoryContextAllocZero(cxt, sizeof(CrateTarget));
		t->base.ops = &target_crate_ops;
		t->cxt = cxt;
		t->work = AllocSetContextCreate(cxt, "crate_sync write", ALLOCSET_DEFAULT_SIZES);
		t->sync_work = AllocSetContextCreate(cxt, "crate_sync call", ALLOCSET_DEFAULT_SIZES);
		t->pool = http_open(conf, cxt);
		t->sync = http_conn(t->pool);
	}
	PG_CATCH();
	{
		MemoryContextDelete(cxt);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return &t->base;
}

static void
crate_close(Target *target)
{
	CrateTarget *t = (CrateTarget *) target;

	http_close(t->pool);
	MemoryContextDelete(t->cxt);
}

static void
crate_reconnect(Target *target)
{
	http_reconnect(((CrateTarget *) target)->pool);
}

const TargetOps target_crate_ops = {
	.name = "crate",
	.open = crate_open,
	.close = crate_close,
	.reconnect = crate_reconnect,
	.submit = crate_submit,
	.poll = crate_poll,
	.abandon = crate_abandon,
	.statement = crate_statement,
	.check = crate_check,
	.ensure_table = crate_ensure_table,
	.reachable = crate_reachable,
	.drop_table = crate_drop_table,
	.swap_table = crate_swap_table,
	.raise_fence = crate_raise_fence,
	.read_fence = crate_read_fence,
	.page = crate_page,
	.fetch = crate_fetch,
	.refresh = crate_refresh,
	.ddl = crate_ddl
};
