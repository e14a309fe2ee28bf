/*-------------------------------------------------------------------------
 *
 * common.c
 *		What both targets need: requests reset, errors, who waits meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "mb/pg_wchar.h"
#include "target/target.h"

static void (*idle) (void) = NULL;

void
target_set_idle(void (*hook) (void))
{
	idle = hook;
}

void
target_idle(void)
{
	if (idle != NULL)
		idle();
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
