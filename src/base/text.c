/*-------------------------------------------------------------------------
 *
 * text.c
 *		Quoting, JSON strings, safe messages.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <math.h>

#include "base/text.h"
#include "common/shortest_dec.h"
#include "mb/pg_wchar.h"

/* longest message kept, bytes */
#define MESSAGE_MAX 1000

/* an identifier in double quotes; palloc'd */
char *
target_quote_ident(const char *name)
{
	char	   *result = palloc(2 * strlen(name) + 3);
	char	   *p = result;

	*p++ = '"';
	for (; *name; name++)
	{
		if (*name == '"')
			*p++ = '"';
		*p++ = *name;
	}
	*p++ = '"';
	*p = '\0';
	return result;
}

/*
 * Text of unknown making (UTF-8, if it is well-formed at all) for a message
 * in the database's encoding: bounded, one line, printable, and valid.  Where
 * the encoding is another one, what is not ASCII becomes '?': converting may
 * need the catalog, and no transaction is open here.
 */
char *
target_clean_text(const char *text, int len)
{
	bool		utf8 = GetDatabaseEncoding() == PG_UTF8;
	char	   *result = palloc(Min(len, MESSAGE_MAX) + 4);
	int			n = 0;
	int			i = 0;

	while (i < len)
	{
		unsigned char c = text[i];

		if (n >= MESSAGE_MAX)
		{
			memcpy(result + n, "...", 3);
			n += 3;
			break;
		}
		if (!IS_HIGHBIT_SET(c))
		{
			/* white space and controls: one blank for each run of them */
			if (c > ' ' && c != 0x7f)
				result[n++] = c;
			else if (n > 0 && result[n - 1] != ' ')
				result[n++] = ' ';
			i++;
		}
		else
		{
			int			mblen = pg_utf_mblen((const unsigned char *) text + i);

			if (mblen <= len - i && n + mblen <= MESSAGE_MAX &&
				pg_utf8_islegal((const unsigned char *) text + i, mblen))
			{
				/* C1 controls can steer a terminal */
				bool		c1 = c == 0xc2 && (unsigned char) text[i + 1] < 0xa0;

				if (utf8 && !c1)
				{
					memcpy(result + n, text + i, mblen);
					n += mblen;
				}
				else
					result[n++] = '?';
				i += mblen;
			}
			else
			{
				result[n++] = '?';
				i++;
			}
		}
	}
	while (n > 0 && result[n - 1] == ' ')
		n--;
	result[n] = '\0';
	return result;
}

#define ONES			UINT64CONST(0x0101010101010101)
#define HIGHS			UINT64CONST(0x8080808080808080)
#define HAS_ZERO(w)		(((w) - ONES) & ~(w) & HIGHS)

/* may report a byte that follows a special one; never misses one */
static inline bool
word_has_special(uint64 w)
{
	return ((((w) - ONES * 0x20) & ~(w) & HIGHS) |
			HAS_ZERO(w ^ (ONES * '"')) |
			HAS_ZERO(w ^ (ONES * '\\'))) != 0;
}

static inline bool
byte_is_special(unsigned char c)
{
	return c < 0x20 || c == '"' || c == '\\';
}

/*
 * Appends UTF-8 text as a JSON string with its quotes.  Runs of bytes that
 * need no escape are copied at once.
 */
void
types_json_utf8(StringInfo buf, const char *text, int len)
{
	const char *p = text;
	const char *end = text + len;

	enlargeStringInfo(buf, len + 3);
	appendStringInfoCharMacro(buf, '"');
	for (;;)
	{
		const char *run = p;

		while (end - p >= 8)
		{
			uint64		w;

			memcpy(&w, p, 8);
			if (word_has_special(w))
				break;
			p += 8;
		}
		while (p < end && !byte_is_special((unsigned char) *p))
			p++;
		if (p > run)
			appendBinaryStringInfo(buf, run, p - run);
		if (p >= end)
			break;
		switch (*p)
		{
			case '"':
				appendBinaryStringInfo(buf, "\\\"", 2);
				break;
			case '\\':
				appendBinaryStringInfo(buf, "\\\\", 2);
				break;
			case '\n':
				appendBinaryStringInfo(buf, "\\n", 2);
				break;
			case '\r':
				appendBinaryStringInfo(buf, "\\r", 2);
				break;
			case '\t':
				appendBinaryStringInfo(buf, "\\t", 2);
				break;
			default:
				{
					static const char hex[] = "0123456789abcdef";
					unsigned char c = (unsigned char) *p;
					char		esc[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};

					appendBinaryStringInfo(buf, esc, 6);
				}
		}
		p++;
	}
	appendStringInfoCharMacro(buf, '"');
}

/*
 * Appends text in the database's encoding as a JSON string.  Errors: text
 * that is no valid UTF-8 in a database of SQL_ASCII.
 */
void
types_json_string(StringInfo buf, const char *text, int len)
{
	if (GetDatabaseEncoding() != PG_UTF8)
	{
		char	   *utf8 = pg_server_to_any(text, len, PG_UTF8);

		/* the very same pointer: needed no conversion, need not end in NUL */
		if (utf8 != text)
		{
			types_json_utf8(buf, utf8, strlen(utf8));
			pfree(utf8);
			return;
		}
	}
	types_json_utf8(buf, text, len);
}

/*
 * Shortest digits that read back as the same number.  Integers get a ".0": a
 * JSON integer is another type to the target, and -0 would lose its sign.
 */
void
json_float_digits(StringInfo buf, char *digits, int len)
{
	bool		integer = true;

	for (int i = 0; i < len && integer; i++)
		integer = digits[i] != '.' && digits[i] != 'e';
	appendBinaryStringInfo(buf, digits, len);
	if (integer)
		appendBinaryStringInfo(buf, ".0", 2);
}

void
types_json_float8(StringInfo buf, double v)
{
	char		tmp[DOUBLE_SHORTEST_DECIMAL_LEN];

	if (unlikely(isnan(v)))
	{
		appendBinaryStringInfo(buf, "\"NaN\"", 5);
		return;
	}
	if (unlikely(isinf(v)))
	{
		appendStringInfoString(buf, v > 0 ? "\"Infinity\"" : "\"-Infinity\"");
		return;
	}
	json_float_digits(buf, tmp, double_to_shortest_decimal_bufn(v, tmp));
}
