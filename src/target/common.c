/*-------------------------------------------------------------------------
 *
 * common.c
 *		What both targets need: choosing one, errors, names, safe messages.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "mb/pg_wchar.h"
#include "target/crate/http.h"
#include "target/target.h"

/* longest message kept, bytes */
#define MESSAGE_MAX 1000

#define SQLITE_PREFIX "sqlite:"

/*
 * Which implementation a setting names.  Nothing is raised, so that a check
 * hook may call it; *errmsg never repeats the value, which may hold a
 * password that belongs elsewhere.
 */
const TargetOps *
target_ops_for(const char *conf, char **errmsg)
{
	*errmsg = NULL;
	if (conf == NULL || conf[strspn(conf, " \t")] == '\0')
		return NULL;

	if (pg_strncasecmp(conf, SQLITE_PREFIX, strlen(SQLITE_PREFIX)) == 0)
	{
		const char *path = conf + strlen(SQLITE_PREFIX);

		/* the server's working directory is its data directory: no place for it */
		if (path[0] != '/' || path[strlen(path) - 1] == '/')
		{
			*errmsg = pstrdup("\"sqlite:\" must be followed by a file's absolute path, as in sqlite:/var/lib/mirror.db");
			return NULL;
		}
		return &target_sqlite_ops;
	}
	return http_conf_check(conf, errmsg) ? &target_crate_ops : NULL;
}

/* frees and clears a request's output */
void
target_request_reset(TargetRequest *req)
{
	free(req->message);
	req->message = NULL;
	req->done = false;
	req->outcome = TARGET_OK;
	req->over = false;
	req->nwritten = 0;
	req->code[0] = '\0';
	req->elapsed = 0;
	req->bytes_sent = 0;
	req->nrequests = 0;
	req->impl = NULL;
}

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

void
target_result_error(TargetResult *res, TargetOutcome outcome, const char *code,
					const char *fmt,...)
{
	StringInfoData buf;
	int			save_errno = errno;

	initStringInfo(&buf);
	for (;;)
	{
		va_list		args;
		int			needed;

		errno = save_errno;
		va_start(args, fmt);
		needed = appendStringInfoVA(&buf, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&buf, needed);
	}
	res->outcome = outcome;
	strlcpy(res->code, code ? code : "", sizeof(res->code));
	res->message = buf.data;
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
