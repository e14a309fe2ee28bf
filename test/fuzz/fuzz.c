/*-------------------------------------------------------------------------
 *
 * fuzz.c
 *		The fuzzer's driver, and the checks that the harnesses share.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/jsonapi.h"
#include "fuzz.h"
#include "mb/pg_wchar.h"
#include "shared/wake.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/resowner.h"

extern int	LLVMFuzzerRunDriver(int *argc, char ***argv,
								int (*one) (const uint8_t *data, size_t size));

static const FuzzHarness *const harnesses[] = {
	&fuzz_answer, &fuzz_request, &fuzz_encode, &fuzz_key, &fuzz_setting, &fuzz_options,
	&fuzz_verify
};

extern size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
extern size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed);

#define MAX_EXACT 256

static const FuzzHarness *harness;
static bool must_not_throw;
static bool verbose;			/* one input: say what it came to */
static void *exact[MAX_EXACT];
static int	nexact;

void
fuzz_fail(const char *fmt,...)
{
	va_list		args;

	fprintf(stderr, "\nFUZZ FAILURE (%s): ", harness->name);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fprintf(stderr, "\n");
	abort();
}

void
fuzz_must_not_throw(void)
{
	must_not_throw = true;
}

void *
fuzz_exact(const void *data, int len)
{
	void	   *copy = malloc(len);

	if (nexact == MAX_EXACT)
		fuzz_fail("the harness makes too many copies");
	if (len > 0)
		memcpy(copy, data, len);
	exact[nexact++] = copy;
	return copy;
}

char *
fuzz_part(const char **p, const char *end, int *len)
{
	const char *start = *p;
	const char *stop = start < end ? memchr(start, FUZZ_SEP, end - start) : NULL;
	char	   *tmp;
	char	   *result;

	stop = stop ? stop : end;
	*p = Min(end, stop + 1);
	*len = stop - start;
	tmp = palloc(*len + 1);
	memcpy(tmp, start, *len);
	tmp[*len] = '\0';
	result = fuzz_exact(tmp, *len + 1);
	pfree(tmp);
	return result;
}

bool
fuzz_valid(int encoding, const char *text, int len)
{
	return memchr(text, '\0', len) == NULL && pg_verify_mbstr(encoding, text, len, true);
}

bool
fuzz_is_json(const char *json, int len)
{
	JsonLexContext *lex = CS_JSON_LEXER(unconstify(char *, json), len);

	return pg_verify_mbstr(PG_UTF8, json, len, true) &&
		pg_parse_json(lex, (void *) &nullSemAction) == JSON_SUCCESS;
}

void
fuzz_check_json(const char *what, const char *json, int len)
{
	/* a copy that ends where it says */
	if (!fuzz_is_json(fuzz_exact(json, len), len))
		fuzz_fail("%s is no JSON: %.*s", what, len, json);
	free(exact[--nexact]);
}

char *
fuzz_json_decode(const char *json, int len, int *outlen)
{
	char	   *result = palloc(len + 1);
	int			n = 0;

	if (len < 2 || json[0] != '"' || json[len - 1] != '"')
		fuzz_fail("no JSON string: %.*s", len, json);
	for (int i = 1; i < len - 1; i++)
	{
		unsigned int c = (unsigned char) json[i];

		if (c < 0x20 || c == '"')
			fuzz_fail("a byte %02x stands in a JSON string: %.*s", c, len, json);
		if (c != '\\')
		{
			result[n++] = json[i];
			continue;
		}
		switch (json[++i])
		{
			case '"':
			case '\\':
			case '/':
				result[n++] = json[i];
				break;
			case 'b':
				result[n++] = '\b';
				break;
			case 'f':
				result[n++] = '\f';
				break;
			case 'n':
				result[n++] = '\n';
				break;
			case 'r':
				result[n++] = '\r';
				break;
			case 't':
				result[n++] = '\t';
				break;
			case 'u':
				if (i + 4 >= len || sscanf(json + i + 1, "%4x", &c) != 1)
					fuzz_fail("a broken escape: %.*s", len, json);
				i += 4;
				if (c >= 0xd800 && c < 0xdc00)
				{
					unsigned int low;

					if (i + 6 >= len || sscanf(json + i + 1, "\\u%4x", &low) != 1 ||
						low < 0xdc00 || low > 0xdfff)
						fuzz_fail("half a surrogate pair: %.*s", len, json);
					c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
					i += 6;
				}
				unicode_to_utf8(c, (unsigned char *) result + n);
				n += pg_utf_mblen((unsigned char *) result + n);
				break;
			default:
				fuzz_fail("a broken escape: %.*s", len, json);
		}
	}
	result[n] = '\0';
	if (outlen)
		*outlen = n;
	return result;
}

void
fuzz_check_message(const char *message)
{
	int			len;

	if (message == NULL)
		return;
	len = strlen(message);
	if (len > 8000)
		fuzz_fail("a message of %d bytes", len);
	if (!fuzz_valid(GetDatabaseEncoding(), message, len))
		fuzz_fail("a message is not in the database's encoding: %s", message);
	for (int i = 0; i < len; i++)
	{
		if ((unsigned char) message[i] < 0x20 || message[i] == 0x7f)
			fuzz_fail("a message has byte %02x in it: %s", (unsigned char) message[i], message);
	}
}

static void
check_among(const char *sql, const char *what, const char *text, char **list, int n)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(list[i], text) == 0)
			return;
	}
	fuzz_fail("%s %s is nobody's, in: %s", what, text, sql);
}

void
fuzz_check_sql(const char *sql, char **idents, int nidents, char **literals, int nliterals)
{
	const char *p = sql;

	while (*p)
	{
		if (*p == '"' || *p == '\'')
		{
			char		quote = *p;
			char	   *text = palloc(strlen(p) + 1);
			int			n = 0;

			for (p++;; p++)
			{
				if (*p == '\0')
					fuzz_fail("a quote is not closed: %s", sql);
				if (*p == quote && *++p != quote)
					break;
				text[n++] = *p;
			}
			text[n] = '\0';
			if (quote == '"' && idents)
				check_among(sql, "identifier", text, idents, nidents);
			if (quote == '\'' && literals)
				check_among(sql, "literal", text, literals, nliterals);
		}
		else if (strncmp(p, "/*", 2) == 0)
		{
			for (p += 2; strncmp(p, "*/", 2) != 0; p++)
			{
				if (*p == '\0' || !(isalnum((unsigned char) *p) || strchr("_ %#-", *p)))
					fuzz_fail("something in a comment: %s", sql);
			}
			p += 2;
		}
		else if (strncmp(p, "--", 2) == 0 ||
				 !(isalnum((unsigned char) *p) || strchr("_ \t\n.,()[]=<>?:*+-", *p)))
			fuzz_fail("\"%c\" outside of quotes: %s", *p, sql);
		else
			p++;
	}
}

static void
run_protected(const char *data, int len)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContext cxt = AllocSetContextCreate(CurTransactionContext, "fuzz input",
												  ALLOCSET_DEFAULT_SIZES);

		MemoryContextSwitchTo(cxt);
		harness->one(data, len);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (must_not_throw || verbose)
		{
			ErrorData  *edata = CopyErrorData();
			char	   *text = psprintf("an error was thrown: %s: %s (%s, %s:%d)",
										unpack_sql_state(edata->sqlerrcode), edata->message,
										edata->funcname, edata->filename, edata->lineno);

			if (must_not_throw)
				fuzz_fail("%s", text);
			fprintf(stderr, "%s\n", text);
		}
		FlushErrorState();
	}
	PG_END_TRY();
	RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
}

static int
run_one(const uint8_t *data, size_t size)
{
	must_not_throw = !harness->may_throw;
	run_protected((const char *) data, (int) size);
	while (nexact > 0)
		free(exact[--nexact]);
	return 0;
}

/* where the JSON value that begins at from is over */
static size_t
value_end(const uint8_t *data, size_t size, size_t from)
{
	int			depth = 0;
	size_t		i = from;

	for (; i < size; i++)
	{
		if (data[i] == '"')
		{
			for (i++; i < size && data[i] != '"'; i++)
				i += data[i] == '\\';
		}
		else if (data[i] == '[' || data[i] == '{')
			depth++;
		else if (data[i] == ']' || data[i] == '}')
		{
			if (depth-- == 0)
				return i;
		}
		if (depth == 0 && i + 1 < size && strchr(",]}", data[i + 1]))
			return i + 1;
	}
	return Min(i, size);
}

/* libFuzzer calls this for its next input, made from one it has */
size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed)
{
	static const char *const values[] = {
		"null", "true", "{\"a\":1}", "[[\"x\"]]", "{}", "[]", "\"\"", "\"\\\"\"", "\"B'0\\\"\"", "-0",
		"1e999", "-9223372036854775808", "1.5", "\"\\u0000\"", "\"\\ud800\"", "{\"a\":1,\"a\":\"]\"}"
	};
	unsigned int r = seed / 2;
	size_t		starts[64];
	size_t		n = 0;
	size_t		from;
	size_t		to;
	const char *value;
	size_t		len;

	if (!harness->json || seed % 2 == 0)
		return LLVMFuzzerMutate(data, size, max);

	/* a value is where one of these was before; of many, some */
	for (size_t i = 1; i < size; i++)
	{
		if (strchr("[:,", data[i - 1]) == NULL || data[i - 1] == '\0')
			continue;
		if (n < lengthof(starts))
			starts[n++] = i;
		else if ((r = r * 1103515245 + 12345) >> 16 & 1)
			starts[(r >> 17) % lengthof(starts)] = i;
	}
	if (n == 0)
		return LLVMFuzzerMutate(data, size, max);
	r = r * 1103515245 + 12345;
	from = starts[(r >> 8) % n];
	to = value_end(data, size, from);
	value = values[(r >> 16) % lengthof(values)];
	len = strlen(value);
	if (size - (to - from) + len > max)
		return LLVMFuzzerMutate(data, size, max);
	memmove(data + from + len, data + to, size - to);
	memcpy(data + from, value, len);
	return size - (to - from) + len;
}

PG_FUNCTION_INFO_V1(crate_sync_fuzz);

/* crate_sync_fuzz(harness text, arguments of libFuzzer text[]); does not return */
Datum
crate_sync_fuzz(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum	   *elems;
	int			n;
	char	  **argv;

	for (int i = 0; i < lengthof(harnesses); i++)
	{
		if (strcmp(harnesses[i]->name, name) == 0)
			harness = harnesses[i];
	}
	if (harness == NULL)
		elog(ERROR, "there is no harness \"%s\"", name);
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &elems, NULL, &n);

	MemoryContextSwitchTo(TopMemoryContext);
	argv = palloc0(sizeof(char *) * (n + 2));
	argv[0] = name;
	for (int i = 0; i < n; i++)
		argv[i + 1] = TextDatumGetCString(elems[i]);
	n++;
	verbose = n == 2;
	if (harness->init)
		harness->init();

	/* the fuzzer takes over only what nobody handles */
	pqsignal(SIGALRM, SIG_DFL);
	pqsignal(SIGINT, SIG_DFL);
	pqsignal(SIGTERM, SIG_DFL);
	pqsignal(SIGFPE, SIG_DFL);
	LLVMFuzzerRunDriver(&n, &argv, run_one);
	fflush(NULL);
	_exit(0);
}
