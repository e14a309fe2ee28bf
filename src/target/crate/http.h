/*-------------------------------------------------------------------------
 *
 * http.h
 *		POST requests over kept-alive connections, driven by a WaitEventSet.
 *
 * Knows hosts, failover, TLS, passwords and bounds; nothing of SQL.  A
 * connection carries one request at a time, always over the same TCP
 * connection while that lasts, since the target's session hangs on it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CRATE_SYNC_TARGET_HTTP_H
#define CRATE_SYNC_TARGET_HTTP_H

#include "base/base.h"

typedef struct HttpPool HttpPool;
typedef struct HttpHandle HttpHandle;	/* libcurl's side of a connection */

typedef enum HttpFate
{
	HTTP_ANSWERED,				/* status and answer are set */
	HTTP_NOT_SENT,				/* nothing of the body left this machine */
	HTTP_LOST,					/* part of the body was sent, no full answer came */
	HTTP_UNUSABLE				/* our own settings forbid to try */
} HttpFate;

typedef struct HttpConn
{
	/* set before http_start() */
	StringInfoData body;		/* reset it, then append; ours to free */
	Size		max_answer;		/* bytes; what is longer cuts the answer */
	bool		close_after;	/* the session is not to be used again */
	bool		same_host;		/* as the request before, if that is not away; else
								 * whose turn it is */
	void	   *arg;			/* the caller's */

	/* set once the connection came out of http_next_done() */
	HttpFate	fate;
	int			status;			/* HTTP's */
	char	   *answer;			/* malloc'd, NUL-terminated, ours */
	Size		answer_len;
	bool		answer_cut;		/* longer than max_answer */
	bool		complete;		/* the whole body was handed over */
	char		error[400];		/* says what went wrong unless HTTP_ANSWERED */
	uint64		bytes_sent;		/* of the body */
	double		elapsed;		/* ms */

	bool		busy;			/* started and not yet handed back */
	HttpHandle *handle;
} HttpConn;

#define HTTP_WAIT_DONE		1	/* http_next_done() has something */
#define HTTP_WAIT_LATCH		2	/* MyLatch is set; not reset here */
#define HTTP_WAIT_HOST		4	/* a host that was away is back; said once */

/* is that a list of hosts we can work with?  if not, *errmsg is palloc'd */
extern bool http_conf_check(const char *conf, char **errmsg);

/* everything lives in cxt, which outlives the pool; errors: ereport */
extern HttpPool *http_open(const char *conf, MemoryContext cxt);
extern void http_close(HttpPool *pool);

/* settings may have changed: connections are made anew as they become idle */
extern void http_reconnect(HttpPool *pool);

/* what the cluster says of its hosts, as host:port; takes the place of what it said before */
extern void http_learn_hosts(HttpPool *pool, char **names, int n);

extern HttpConn *http_conn(HttpPool *pool);
extern void http_start(HttpConn *conn);
extern void http_cancel(HttpConn *conn);

/* waits at most timeout ms (-1: forever); returns HTTP_WAIT_* bits, 0: timeout */
extern int	http_wait(HttpPool *pool, long timeout, uint32 wait_event);
extern HttpConn *http_next_done(HttpPool *pool);

/* drops buffers that a large request has left behind */
extern void http_trim(HttpConn *conn);

#endif							/* CRATE_SYNC_TARGET_HTTP_H */
