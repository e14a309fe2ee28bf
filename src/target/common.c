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
