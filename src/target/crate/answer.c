/*-------------------------------------------------------------------------
 *
 * answer.c
 *		What CrateDB answers: JSON taken apart, and judged.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/text.h"
#include "mb/pg_wchar.h"

#define MAX_JSON_DEPTH		2048	/* CrateDB itself takes 1000 */

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
/* lexers and results live in the current memory context */
void
json_iter_start(JsonIter *it, Slice value)
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
bool
json_iter_next(JsonIter *it, Slice *key, Slice *value)
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

bool
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
char *
slice_text(Slice s, int *len)
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

	json_iter_start(&it, all);
	while (json_iter_next(&it, &key, &value))
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
			json_iter_start(&members, value);
			while (json_iter_next(&members, &name, &member))
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
void
answer_judge(HttpConn *conn, Answer *answer, Verdict *v)
{
	bool		valid;

	memset(answer, 0, sizeof(*answer));
	memset(v, 0, sizeof(*v));
	if (conn->fate != HTTP_ANSWERED)
	{
		v->outcome = conn->fate == HTTP_LOST ? TARGET_UNKNOWN :
			conn->fate == HTTP_NOT_SENT ? TARGET_UNREACHABLE : TARGET_REFUSED_ALL;
		v->over = conn->fate != HTTP_LOST;
		strlcpy(v->code, conn->fate == HTTP_UNUSABLE ? "settings" : "network", sizeof(v->code));
		v->message = target_clean_text(conn->error, strlen(conn->error));
		return;
	}

	valid = answer_read(conn, answer);
	snprintf(v->code, sizeof(v->code), "http %d", conn->status);

	if (valid && answer->is_error)
	{
		int			len = 0;
		char	   *message = answer->error_message.start ?
			slice_text(answer->error_message, &len) : pstrdup("");

		snprintf(v->code, sizeof(v->code), "%d", answer->error_code);
		v->outcome = classify_error(conn->status, answer->error_code, message);

		/*
		 * Refused for what it says, before any of it was carried out.  What else
		 * goes wrong does so at one shard: others may go on with their part.
		 */
		v->over = v->outcome == TARGET_REFUSED_ROWS || v->outcome == TARGET_TOO_BIG ||
			v->outcome == TARGET_REFUSED_ALL;
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
			v->over = true;
			strlcpy(v->code, "4000", sizeof(v->code));
			v->message = target_clean_text(conn->answer + 21, 200);
			return;
		}
		v->outcome = TARGET_UNKNOWN;
		v->message = psprintf("the answer is longer than %zu MB", conn->max_answer / (1024 * 1024));
		return;
	}
	/* without CrateDB's words: whatever stands before its SQL did not let it in */
	v->over = true;
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
			v->over = false;
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
void
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

/* how many rows an answer has */
int
answer_nrows(const Answer *answer)
{
	JsonIter	rows;
	Slice		row;
	int			n = 0;

	json_iter_start(&rows, answer->rows);
	while (json_iter_next(&rows, NULL, &row))
		n++;
	return n;
}

/* the first cell of the first row as a number */
bool
answer_int(const Answer *answer, int64 *value)
{
	JsonIter	rows;
	JsonIter	cells;
	Slice		row;
	Slice		cell;

	json_iter_start(&rows, answer->rows);
	if (!json_iter_next(&rows, NULL, &row))
		return false;
	json_iter_start(&cells, row);
	return json_iter_next(&cells, NULL, &cell) && slice_int(cell, value);
}

/* bulk rows that are gone; -1 if the answer makes no sense */
int
count_deleted(const Answer *answer, int sent)
{
	JsonIter	results;
	Slice		result;
	int			n = 0;
	int			gone = 0;

	json_iter_start(&results, answer->results);
	while (json_iter_next(&results, NULL, &result))
	{
		JsonIter	members;
		Slice		key;
		Slice		value;
		int64		rowcount = -2;
		bool		missing = false;

		n++;
		json_iter_start(&members, result);
		while (json_iter_next(&members, &key, &value))
		{
			if (slice_is(key, "\"rowcount\""))
				slice_int(value, &rowcount);
			else if (slice_is(key, "\"error\"") && *value.start == '{')
			{
				JsonIter	errors;

				json_iter_start(&errors, value);
				while (json_iter_next(&errors, &key, &value))
				{
					if (slice_is(key, "\"code\"") && slice_is(value, "40411"))
						missing = true;
				}
			}
		}
		/* 0: its partition is gone, or the request came too late: to be looked at again */
		if (rowcount > 0 || missing)
			gone++;
	}
	return n == sent ? gone : -1;
}
