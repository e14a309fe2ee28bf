/*-------------------------------------------------------------------------
 *
 * fuzz_http.c
 *		target_http.h without a network: answers are the fuzzer's.
 *
 * An answer is a letter that says what became of the request, then its body;
 * FUZZ_SEP ends it.  Behind the last one every connection is lost.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"
#include "fuzz_http.h"

#include "fuzz.h"
#include "target/crate/http.h"

struct HttpPool
{
	int			nconns;
	HttpConn   *conns[64];
};

struct HttpHandle
{
	bool		done;
};

static const struct
{
	HttpFate	fate;
	int			status;
	bool		incomplete;
	bool		cut;
}			fates[] =
{
	{HTTP_ANSWERED, 200}, {HTTP_ANSWERED, 400}, {HTTP_ANSWERED, 401}, {HTTP_ANSWERED, 403},
	{HTTP_ANSWERED, 413}, {HTTP_ANSWERED, 429}, {HTTP_ANSWERED, 500}, {HTTP_ANSWERED, 503},
	{HTTP_ANSWERED, 200, true}, {HTTP_ANSWERED, 200, false, true}, {HTTP_ANSWERED, 400, false, true},
	{HTTP_LOST}, {HTTP_NOT_SENT}, {HTTP_UNUSABLE}
};

static const char *next;
static const char *end;

void		(*fuzz_http_request) (const char *body, int len) = NULL;
const char *(*fuzz_http_reply) (const char *body, int len) = NULL;

void
fuzz_http_answers(const char *p, const char *e)
{
	next = p;
	end = e;
}

HttpPool *
http_open(const char *conf, MemoryContext cxt)
{
	return MemoryContextAllocZero(cxt, sizeof(HttpPool));
}

HttpConn *
http_conn(HttpPool *pool)
{
	HttpConn   *conn = palloc0(sizeof(HttpConn));

	if (pool->nconns == lengthof(pool->conns))
		fuzz_fail("more than %d connections", pool->nconns);
	conn->handle = palloc0(sizeof(HttpHandle));
	initStringInfo(&conn->body);
	pool->conns[pool->nconns++] = conn;
	return conn;
}

void
http_start(HttpConn *conn)
{
	const char *text = "";
	int			len = 0;
	int			what = 11;

	if (conn->busy)
		fuzz_fail("a connection carries two requests");
	fuzz_check_json("request", conn->body.data, conn->body.len);
	if (fuzz_http_request)
		fuzz_http_request(conn->body.data, conn->body.len);

	if (next < end)
	{
		const char *stop = memchr(next, FUZZ_SEP, end - next);

		stop = stop ? stop : end;
		what = ((unsigned char) *next - 'a') & 0x7f;
		text = next + 1;
		len = Max(0, stop - text);
		next = Min(end, stop + 1);
	}
	else if (fuzz_http_reply)
	{
		text = fuzz_http_reply(conn->body.data, conn->body.len);
		len = strlen(text);
		what = 0;
	}
	what %= lengthof(fates);

	conn->busy = true;
	conn->handle->done = true;
	conn->fate = fates[what].fate;
	conn->status = fates[what].status;
	conn->complete = !fates[what].incomplete;
	conn->answer_cut = fates[what].cut;
	conn->error[0] = '\0';
	conn->bytes_sent = conn->body.len;
	conn->elapsed = 1;
	free(conn->answer);
	conn->answer = NULL;
	conn->answer_len = 0;
	if (conn->fate == HTTP_ANSWERED)
	{
		/* nothing was received at all: no buffer */
		if (len > 0)
		{
			conn->answer = malloc(len + 1);
			memcpy(conn->answer, text, len);
			conn->answer[len] = '\0';
			conn->answer_len = len;
		}
		else if (conn->answer_cut)
			conn->answer = calloc(1, 1);
	}
	else
	{
		/* libcurl's words can have some of the other side's in them */
		len = Min(len, (int) sizeof(conn->error) - 1);
		memcpy(conn->error, text, len);
		conn->error[len] = '\0';
	}
}

HttpConn *
http_next_done(HttpPool *pool)
{
	for (int i = 0; i < pool->nconns; i++)
	{
		if (pool->conns[i]->handle->done)
		{
			pool->conns[i]->handle->done = false;
			pool->conns[i]->busy = false;
			return pool->conns[i];
		}
	}
	return NULL;
}

int
http_wait(HttpPool *pool, long timeout, uint32 wait_event)
{
	for (int i = 0; i < pool->nconns; i++)
	{
		if (pool->conns[i]->handle->done)
			return HTTP_WAIT_DONE;
	}
	return 0;
}

void
http_cancel(HttpConn *conn)
{
	conn->handle->done = false;
	conn->busy = false;
}

/* the real one does that to large ones only: whoever reads on is found out */
void
http_trim(HttpConn *conn)
{
	free(conn->answer);
	conn->answer = NULL;
	conn->answer_len = 0;
}

void
http_blame_host(HttpConn *conn)
{
}

void
http_reconnect(HttpPool *pool)
{
}

void
http_close(HttpPool *pool)
{
	for (int i = 0; i < pool->nconns; i++)
		http_trim(pool->conns[i]);
	pool->nconns = 0;
}
