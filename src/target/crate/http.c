/*-------------------------------------------------------------------------
 *
 * http.c
 *		POST requests over kept-alive connections, driven by a WaitEventSet.
 *
 * libcurl does the protocol, this file the waiting.  Each connection has a
 * multi handle of its own: libcurl shares the connections of one multi handle
 * among its transfers, but a target's session settings belong to one TCP
 * connection.
 *
 * libcurl never gets to decide about a repetition: the body's source cannot
 * be rewound, so a request of which anything was sent is sent once or fails.
 * Its callbacks raise no errors and allocate with malloc.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/settings.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "target/crate/http.h"
#include "target/target.h"
#include "utils/timestamp.h"

#define DEFAULT_PORT	4200
#define MAX_HOSTS		32		/* tried hosts are a bit mask */
#define MAX_PASSWORD	1024
#define MAX_EVENTS		16
#define FIRST_DELAY		1000	/* ms until a host that failed is probed */
#define PROBE_DELAY		2000	/* ms between probes of one that can't be reached, at most */
#define KEPT_BUFFER		(1024 * 1024)	/* an answer's buffer kept for the next */
#define MAX_HEADER		(256 * 1024)	/* bytes of an answer's header lines */

/* every address is one of ours: paths and protocols are not for the setting */
#define URL_PATH		"/_sql"
#define PROBE_PATH		"/"
#define PROTOCOLS		"http,https"

typedef struct HttpHost
{
	char	   *url;
	char	   *probe_url;
	char	   *name;			/* host:port */
	bool		gone;			/* the cluster does not name it any more */
	int			failures;		/* in a row */
	bool		away;			/* others are preferred until a probe gets through */
	TimestampTz probe_at;		/* if away */
} HttpHost;

typedef struct HttpSocket
{
	curl_socket_t fd;
	HttpConn   *conn;
	uint32		events;			/* WL_SOCKET_* asked for */
	uint32		set_events;		/* those the WaitEventSet has */
	int			pos;			/* in the WaitEventSet */
} HttpSocket;

struct HttpHandle
{
	HttpPool   *pool;
	CURLM	   *multi;
	CURL	   *easy;
	char		errbuf[CURL_ERROR_SIZE];
	int			generation;		/* of the settings it was made with */
	bool		attached;		/* easy is in multi */
	bool		done;			/* waits for http_next_done */
	TimestampTz timer_at;		/* when libcurl wants to be called; 0: not */
	int			host;
	uint32		tried;			/* hosts this request has been to */
	Size		body_pos;		/* handed to libcurl so far */
	Size		answer_size;	/* allocated */
	Size		header_len;
	bool		out_of_memory;
	instr_time	start;
};

struct HttpPool
{
	MemoryContext cxt;
	int			nhosts;
	int			nconfigured;	/* the first of them; the rest was learnt */
	bool		https;			/* of the first */
	HttpHost   *hosts;
	int			next_host;		/* whose turn it is */

	int			nconns;
	HttpConn  **conns;

	/* asks a host that is away whether it is back, so that no row has to */
	HttpConn   *probe;
	bool		came_back;		/* one is, and http_wait() has to say so */

	/* sockets libcurl wants watched; malloc'd, callbacks change them */
	HttpSocket *sockets;
	int			nsockets;
	int			maxsockets;
	WaitEventSet *set;
	bool		set_stale;		/* sockets came or went */
	bool		events_stale;	/* only what they wait for changed */

	/* from the settings; read when first needed after a change */
	int			generation;
	int			password_generation;	/* of password; 0: not read */
	char	   *password;		/* malloc'd */
	struct curl_slist *headers;
};

static void conn_attempt(HttpConn *conn);

/* ---------------------------------------------------------------------
 * The setting
 * ------------------------------------------------------------------- */

static bool
conf_error(char **errmsg, const char *fmt,...) pg_attribute_printf(2, 3);

static bool
conf_error(char **errmsg, const char *fmt,...)
{
	char		buf[300];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(buf, sizeof(buf), fmt, args);
	va_end(args);
	*errmsg = pstrdup(buf);
	return false;
}

/*
 * One member of the list, trimmed.  *https is the scheme of the member before
 * and becomes this one's.  Messages repeat nothing of what they refuse: it may
 * be a password.
 */
static bool
conf_parse_host(const char *item, int len, bool first, bool *https, HttpHost *host,
				char **errmsg)
{
	const char *p = item;
	const char *end = item + len;
	const char *name;
	int			namelen;
	long		port = DEFAULT_PORT;
	bool		ipv6 = false;

	for (const char *c = p; c + 2 < end; c++)
	{
		if (memcmp(c, "://", 3) != 0)
			continue;
		if (c - p == 4 && pg_strncasecmp(p, "http", 4) == 0)
			*https = false;
		else if (c - p == 5 && pg_strncasecmp(p, "https", 5) == 0)
			*https = true;
		else
			return conf_error(errmsg, "the scheme must be http, https or sqlite");
		p = c + 3;
		first = false;
		break;
	}
	if (first)
		return conf_error(errmsg, "it must begin with http://, https:// or sqlite:");

	if (memchr(p, '@', end - p) != NULL)
		return conf_error(errmsg, "a user and a password do not belong there: set crate_sync.user and crate_sync.password_file");

	if (p < end && *p == '[')
	{
		name = ++p;
		while (p < end && (isxdigit((unsigned char) *p) || *p == ':' || *p == '.'))
			p++;
		if (p == end || *p != ']' || p == name)
			return conf_error(errmsg, "an IPv6 address must stand in brackets, as in http://[::1]:4200");
		namelen = p++ - name;
		ipv6 = true;
	}
	else
	{
		name = p;
		while (p < end && (isalnum((unsigned char) *p) || *p == '.' || *p == '-' || *p == '_'))
			p++;
		namelen = p - name;
	}
	if (namelen == 0)
		return conf_error(errmsg, "a host name is missing");
	if (namelen > 253)
		return conf_error(errmsg, "a host name is too long");

	if (p < end && *p == ':')
	{
		const char *digits = ++p;

		for (port = 0; p < end && isdigit((unsigned char) *p) && port <= 65535; p++)
			port = port * 10 + (*p - '0');
		if (p == digits || port < 1 || port > 65535)
			return conf_error(errmsg, "a port must be a number from 1 to 65535");
	}
	if (p < end && *p == '/' && p + 1 == end)
		p++;					/* as copied from a browser */
	if (p < end)
	{
		if (*p == '/' || *p == '?' || *p == '#')
			return conf_error(errmsg, "only hosts and ports can be given, no path and no query");
		return conf_error(errmsg, "a host name has a character that it cannot have");
	}

	host->name = psprintf("%s%.*s%s:%ld", ipv6 ? "[" : "", namelen, name,
						  ipv6 ? "]" : "", port);
	host->url = psprintf("%s://%s" URL_PATH, *https ? "https" : "http", host->name);
	host->probe_url = psprintf("%s://%s" PROBE_PATH, *https ? "https" : "http", host->name);
	return true;
}

/* fills up to MAX_HOSTS hosts */
static bool
conf_parse(const char *conf, HttpHost *hosts, int *nhosts, char **errmsg)
{
	bool		https = false;

	*nhosts = 0;
	*errmsg = NULL;
	for (;;)
	{
		const char *end = conf + strcspn(conf, ",");
		const char *last = end;

		while (conf < last && isspace((unsigned char) *conf))
			conf++;
		while (conf < last && isspace((unsigned char) last[-1]))
			last--;
		if (*nhosts == MAX_HOSTS)
			return conf_error(errmsg, "more than %d hosts", MAX_HOSTS);
		memset(&hosts[*nhosts], 0, sizeof(HttpHost));
		if (!conf_parse_host(conf, last - conf, *nhosts == 0, &https, &hosts[*nhosts], errmsg))
			return false;
		(*nhosts)++;
		if (*end == '\0')
			return true;
		conf = end + 1;
	}
}

bool
http_conf_check(const char *conf, char **errmsg)
{
	HttpHost	hosts[MAX_HOSTS];
	int			nhosts;

	return conf_parse(conf, hosts, &nhosts, errmsg);
}

/* ---------------------------------------------------------------------
 * libcurl's callbacks: no ereport in here
 * ------------------------------------------------------------------- */

static size_t
read_callback(char *buffer, size_t size, size_t nitems, void *userp)
{
	HttpConn   *conn = userp;
	HttpHandle *h = conn->handle;
	Size		n = Min(size * nitems, (Size) conn->body.len - h->body_pos);

	memcpy(buffer, conn->body.data + h->body_pos, n);
	h->body_pos += n;
	return n;
}

/*
 * libcurl rewinds in order to send again: never behind our back.  From 8.7 on
 * it also does so before the request that follows such a failure, when
 * nothing of that one's body has been handed out yet.
 */
static int
seek_callback(void *userp, curl_off_t offset, int origin)
{
	HttpConn   *conn = userp;

	return origin == SEEK_SET && offset == 0 && conn->handle->body_pos == 0 ?
		CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

static size_t
write_callback(char *data, size_t size, size_t nmemb, void *userp)
{
	HttpConn   *conn = userp;
	HttpHandle *h = conn->handle;
	size_t		n = size * nmemb;

	if (n > conn->max_answer - conn->answer_len)
	{
		conn->answer_cut = true;
		n = conn->max_answer - conn->answer_len;
	}
	if (conn->answer_len + n + 1 > h->answer_size)
	{
		Size		want = Max(Max(h->answer_size * 2, 4096), conn->answer_len + n + 1);
		char	   *bigger;

		want = Min(want, conn->max_answer + 1);
		bigger = realloc(conn->answer, want);
		if (bigger == NULL)
		{
			h->out_of_memory = true;
			return 0;
		}
		conn->answer = bigger;
		h->answer_size = want;
	}
	memcpy(conn->answer + conn->answer_len, data, n);
	conn->answer_len += n;
	conn->answer[conn->answer_len] = '\0';
	return conn->answer_cut ? 0 : size * nmemb;
}

/* libcurl keeps all header lines, however many come */
static size_t
header_callback(char *data, size_t size, size_t nitems, void *userp)
{
	HttpConn   *conn = userp;
	HttpHandle *h = conn->handle;

	h->header_len += size * nitems;
	return h->header_len > MAX_HEADER ? 0 : size * nitems;
}

static int
socket_callback(CURL *easy, curl_socket_t fd, int what, void *userp, void *socketp)
{
	HttpConn   *conn = userp;
	HttpPool   *pool = conn->handle->pool;
	HttpSocket *s = NULL;
	int			i;

	for (i = 0; i < pool->nsockets; i++)
	{
		if (pool->sockets[i].fd == fd && pool->sockets[i].conn == conn)
		{
			s = &pool->sockets[i];
			break;
		}
	}
	if (what == CURL_POLL_REMOVE || what == CURL_POLL_NONE)
	{
		if (s != NULL)
		{
			pool->sockets[i] = pool->sockets[--pool->nsockets];
			pool->set_stale = true;
		}
		return 0;
	}
	if (s == NULL)
	{
		if (pool->nsockets == pool->maxsockets)
		{
			int			n = Max(8, pool->maxsockets * 2);
			HttpSocket *bigger = realloc(pool->sockets, sizeof(HttpSocket) * n);

			if (bigger == NULL)
				return -1;
			pool->sockets = bigger;
			pool->maxsockets = n;
		}
		s = &pool->sockets[pool->nsockets++];
		s->fd = fd;
		s->conn = conn;
		pool->set_stale = true;
	}
	s->events = (what & CURL_POLL_IN ? WL_SOCKET_READABLE : 0) |
		(what & CURL_POLL_OUT ? WL_SOCKET_WRITEABLE : 0);
	pool->events_stale = true;
	return 0;
}

static int
timer_callback(CURLM *multi, long timeout_ms, void *userp)
{
	HttpConn   *conn = userp;

	conn->handle->timer_at = timeout_ms < 0 ? 0 :
		GetCurrentTimestamp() + timeout_ms * INT64CONST(1000);
	return 0;
}

/* ---------------------------------------------------------------------
 * Settings
 * ------------------------------------------------------------------- */

/*
 * Reads the password file; false with conn->error set if it cannot be used.
 * The message names the file, never its contents.
 */
static bool
read_password(HttpPool *pool, HttpConn *conn)
{
	char		buf[MAX_PASSWORD + 2];
	struct stat st;
	ssize_t		n = -1;
	int			fd;

	if (pool->password_generation == pool->generation)
		return true;
	if (pool->password != NULL)
	{
		explicit_bzero(pool->password, strlen(pool->password));
		free(pool->password);
		pool->password = NULL;
	}
	if (cs_password_file == NULL || cs_password_file[0] == '\0')
	{
		pool->password_generation = pool->generation;
		return true;
	}

	/* not blocking: the name could be a pipe's */
	fd = open(cs_password_file, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
	{
		snprintf(conn->error, sizeof(conn->error),
				 "could not open crate_sync.password_file \"%s\": %s",
				 cs_password_file, strerror(errno));
		return false;
	}
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		snprintf(conn->error, sizeof(conn->error),
				 "crate_sync.password_file \"%s\" is not a regular file", cs_password_file);
	else if (st.st_uid != geteuid() && st.st_uid != 0)
		snprintf(conn->error, sizeof(conn->error),
				 "crate_sync.password_file \"%s\" must belong to the server's user or root (hint: chown it)",
				 cs_password_file);
	else if (st.st_mode & (S_IRWXG | S_IRWXO))
		snprintf(conn->error, sizeof(conn->error),
				 "crate_sync.password_file \"%s\" is accessible to group or others (hint: chmod 600 \"%s\")",
				 cs_password_file, cs_password_file);
	else if ((n = read(fd, buf, MAX_PASSWORD + 1)) < 0)
		snprintf(conn->error, sizeof(conn->error),
				 "could not read crate_sync.password_file \"%s\": %s",
				 cs_password_file, strerror(errno));
	else if (n > MAX_PASSWORD)
	{
		snprintf(conn->error, sizeof(conn->error),
				 "crate_sync.password_file \"%s\" holds more than %d bytes",
				 cs_password_file, MAX_PASSWORD);
		n = -1;
	}
	close(fd);
	if (n >= 0)
	{
		/* the line's end that editors add */
		while (n > 0 && (buf[n - 1] == '\n' || buf[n - 1] == '\r'))
			n--;
		buf[n] = '\0';
		pool->password = strdup(buf);
		if (pool->password != NULL)
			pool->password_generation = pool->generation;
		else
			strlcpy(conn->error, "out of memory", sizeof(conn->error));
	}
	explicit_bzero(buf, sizeof(buf));
	return pool->password != NULL;
}

static void
handle_detach(HttpHandle *h)
{
	if (h->attached)
		curl_multi_remove_handle(h->multi, h->easy);
	h->attached = false;
	h->timer_at = 0;
}

static void
handle_free(HttpConn *conn)
{
	HttpHandle *h = conn->handle;

	handle_detach(h);
	if (h->easy != NULL)
		curl_easy_cleanup(h->easy);
	if (h->multi != NULL)
		curl_multi_cleanup(h->multi);
	h->easy = NULL;
	h->multi = NULL;
	h->timer_at = 0;
}

/*
 * Makes the connection's handles for the present settings.  False with
 * conn->error set if that cannot be done.
 */
static bool
handle_prepare(HttpConn *conn)
{
	static bool curl_ready = false;
	HttpHandle *h = conn->handle;
	HttpPool   *pool = h->pool;
	CURLcode	rc = CURLE_OK;

	if (h->easy != NULL && h->generation == pool->generation)
		return true;
	handle_free(conn);
	if (!read_password(pool, conn))
		return false;

	if (!curl_ready)
	{
		if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		{
			strlcpy(conn->error, "could not initialize libcurl", sizeof(conn->error));
			return false;
		}
		curl_ready = true;
	}
	if (pool->headers == NULL)
	{
		/* an empty value takes libcurl's own header out */
		static const char *const lines[] = {
			"Content-Type: application/json", "Accept: application/json", "Expect:"
		};

		for (int i = 0; i < lengthof(lines); i++)
		{
			struct curl_slist *longer = curl_slist_append(pool->headers, lines[i]);

			if (longer == NULL)
			{
				curl_slist_free_all(pool->headers);
				pool->headers = NULL;
				strlcpy(conn->error, "out of memory", sizeof(conn->error));
				return false;
			}
			pool->headers = longer;
		}
	}

	h->multi = curl_multi_init();
	h->easy = curl_easy_init();
	if (h->multi == NULL || h->easy == NULL)
	{
		handle_free(conn);
		strlcpy(conn->error, "out of memory", sizeof(conn->error));
		return false;
	}
	curl_multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, socket_callback);
	curl_multi_setopt(h->multi, CURLMOPT_SOCKETDATA, conn);
	curl_multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, timer_callback);
	curl_multi_setopt(h->multi, CURLMOPT_TIMERDATA, conn);
	curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, conn == pool->probe ? 1L : (long) MAX_HOSTS);

#define SET(option, value) \
	do { \
		if (rc == CURLE_OK) \
			rc = curl_easy_setopt(h->easy, option, value); \
	} while (0)

	SET(CURLOPT_PRIVATE, conn);
	SET(CURLOPT_ERRORBUFFER, h->errbuf);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_NOPROGRESS, 1L);
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(CURLOPT_PROTOCOLS_STR, PROTOCOLS);
#else
	SET(CURLOPT_PROTOCOLS, (long) (CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(CURLOPT_QUICK_EXIT, 1L);	/* a name lookup must not delay our end */
#endif
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(CURLOPT_TCP_NODELAY, 1L);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	SET(CURLOPT_BUFFERSIZE, 65536L);
	SET(CURLOPT_UPLOAD_BUFFERSIZE, 262144L);
	SET(CURLOPT_USERAGENT, "crate_sync");
	SET(CURLOPT_HTTPHEADER, pool->headers);
	SET(CURLOPT_POST, 1L);
	SET(CURLOPT_READFUNCTION, read_callback);
	SET(CURLOPT_READDATA, conn);
	SET(CURLOPT_SEEKFUNCTION, seek_callback);
	SET(CURLOPT_SEEKDATA, conn);
	SET(CURLOPT_WRITEFUNCTION, write_callback);
	SET(CURLOPT_WRITEDATA, conn);
	SET(CURLOPT_HEADERFUNCTION, header_callback);
	SET(CURLOPT_HEADERDATA, conn);

	if (cs_user != NULL && cs_user[0] != '\0')
	{
		SET(CURLOPT_HTTPAUTH, (long) CURLAUTH_BASIC);
		SET(CURLOPT_USERNAME, cs_user);
		SET(CURLOPT_PASSWORD, pool->password ? pool->password : "");
	}

	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, cs_ssl_verify ? 1L : 0L);
	SET(CURLOPT_SSL_VERIFYHOST, cs_ssl_verify ? 2L : 0L);
	if (cs_ssl_ca_file != NULL && cs_ssl_ca_file[0] != '\0')
	{
		SET(CURLOPT_CAINFO, cs_ssl_ca_file);
		SET(CURLOPT_CAPATH, NULL);	/* that one and no other */
	}
	if (cs_ssl_cert_file != NULL && cs_ssl_cert_file[0] != '\0')
		SET(CURLOPT_SSLCERT, cs_ssl_cert_file);
	if (cs_ssl_key_file != NULL && cs_ssl_key_file[0] != '\0')
		SET(CURLOPT_SSLKEY, cs_ssl_key_file);
#undef SET

	if (rc != CURLE_OK)
	{
		handle_free(conn);
		snprintf(conn->error, sizeof(conn->error), "could not set up libcurl: %s",
				 curl_easy_strerror(rc));
		return false;
	}
	h->generation = pool->generation;
	return true;
}

/* ---------------------------------------------------------------------
 * Hosts
 * ------------------------------------------------------------------- */

/*
 * The next host to try, from the given one on, or -1 when this request has been
 * to all.
 */
static int
choose_host(HttpPool *pool, HttpHandle *h, int from)
{
	int			soonest = -1;

	for (int k = 0; k < pool->nhosts; k++)
	{
		int			i = (from + k) % pool->nhosts;
		HttpHost   *host = &pool->hosts[i];

		if (host->gone || (h->tried & ((uint32) 1 << i)))
			continue;
		if (!host->away)
			return i;
		if (soonest < 0 || host->probe_at < pool->hosts[soonest].probe_at)
			soonest = i;
	}
	/* all of them failed lately: rather that than nothing */
	return soonest;
}

/*
 * The longer it fails, the later it is asked again.  One that can't be reached is
 * asked often all the same: that costs next to nothing, and nobody has to wait
 * for it.  One that answers our question and no statement would take one each time.
 */
static void
host_failed(HttpHost *host, bool reached)
{
	int64		most = reached ? cs_max_retry_interval : Min(PROBE_DELAY, cs_max_retry_interval);
	int64		delay = FIRST_DELAY;

	for (int i = 0; i < host->failures && delay < most; i++)
		delay *= 2;
	host->failures++;
	host->away = true;
	host->probe_at = GetCurrentTimestamp() + Min(delay, most) * INT64CONST(1000);
}

/* ---------------------------------------------------------------------
 * Requests
 * ------------------------------------------------------------------- */

static void
conn_done(HttpConn *conn, HttpFate fate)
{
	HttpHandle *h = conn->handle;
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, h->start);
	conn->elapsed = INSTR_TIME_GET_MILLISEC(now);
	conn->fate = fate;
	h->done = true;
}

/* the host is in trouble, or nobody stands behind it: others may do better */
static bool
is_gateway_error(long status)
{
	return status >= 502 && status <= 504;
}

/* libcurl's words for a failure, or better ones */
static const char *
failure_text(const HttpHandle *h, CURLcode rc)
{
	if (h->out_of_memory)
		return "out of memory for the answer";
	if (h->header_len > MAX_HEADER)
		return "the header of the answer is too long";
#if LIBCURL_VERSION_NUM >= 0x080600
	if (rc == CURLE_TOO_LARGE)
		return "the header of the answer is too long";
#endif
	/* it wanted to send again, which our seek_callback does not let it */
	if (rc == CURLE_SEND_FAIL_REWIND || (rc == CURLE_GOT_NOTHING && h->body_pos > 0) ||
		(rc == CURLE_SEND_ERROR && strncmp(h->errbuf, "Connection died", 15) == 0))
		return "the connection was closed before an answer came";
	return h->errbuf[0] ? h->errbuf : curl_easy_strerror(rc);
}

static void
conn_answered(HttpConn *conn, CURLcode rc)
{
	HttpHandle *h = conn->handle;
	HttpHost   *host = &h->pool->hosts[h->host];
	long		status = 0;

	curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
	handle_detach(h);
	conn->bytes_sent += h->body_pos;
	conn->complete = h->body_pos == conn->body.len;
	conn->status = (int) status;

	if (rc == CURLE_OK || (conn->answer_cut && !h->out_of_memory))
	{
		if (is_gateway_error(status))
			host_failed(host, true);
		else
		{
			host->failures = 0;
			host->away = false;
		}
		conn_done(conn, HTTP_ANSWERED);
		return;
	}

	snprintf(conn->error, sizeof(conn->error), "%s: %s", host->name, failure_text(h, rc));

	if (h->body_pos > 0)
	{
		host_failed(host, false);
		conn_done(conn, HTTP_LOST);
	}
	else if (rc == CURLE_SSL_CERTPROBLEM || rc == CURLE_SSL_CACERT_BADFILE ||
			 rc == CURLE_SSL_CIPHER || rc == CURLE_UNSUPPORTED_PROTOCOL)
		conn_done(conn, HTTP_UNUSABLE);
	else
	{
		host_failed(host, false);
		if (choose_host(h->pool, h, h->host) >= 0)
			conn_attempt(conn);
		else
			conn_done(conn, HTTP_NOT_SENT);
	}
}

/*
 * One that answers is used like the others, but what it did before is held
 * against it until it has answered a request.
 */
static void
probe_done(HttpConn *conn, CURLcode rc)
{
	HttpHandle *h = conn->handle;
	HttpHost   *host = &h->pool->hosts[h->host];
	long		status = 0;

	curl_easy_getinfo(h->easy, CURLINFO_RESPONSE_CODE, &status);
	handle_detach(h);
	conn->busy = false;
	if (!host->away)
		return;					/* a request was faster */
	if ((rc == CURLE_OK || conn->answer_cut) && !is_gateway_error(status))
	{
		host->away = false;
		h->pool->came_back = true;
	}
	else
		host_failed(host, false);
}

/*
 * Lets libcurl work on a connection: fd is ready, or CURL_SOCKET_TIMEOUT.
 * Name lookups run in a thread that libcurl starts; it inherits the signal
 * mask, and none of the server's handlers may ever run in there.
 */
static void
conn_drive(HttpConn *conn, curl_socket_t fd, int ready)
{
	HttpHandle *h = conn->handle;
	sigset_t	all;
	sigset_t	before;
	CURLMsg    *msg;
	int			running;
	int			left;

	if (!h->attached)
		return;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	curl_multi_socket_action(h->multi, fd, ready, &running);
	sigprocmask(SIG_SETMASK, &before, NULL);

	while ((msg = curl_multi_info_read(h->multi, &left)) != NULL)
	{
		if (msg->msg == CURLMSG_DONE)
		{
			if (conn == h->pool->probe)
				probe_done(conn, msg->data.result);
			else
				conn_answered(conn, msg->data.result);
			break;
		}
	}
}

static void
conn_attempt(HttpConn *conn)
{
	HttpHandle *h = conn->handle;
	HttpPool   *pool = h->pool;

	if (h->tried == 0 && !conn->same_host)
	{
		h->host = choose_host(pool, h, pool->next_host);
		pool->next_host = (h->host + 1) % pool->nhosts;
	}
	else
		h->host = choose_host(pool, h, h->host);
	h->tried |= (uint32) 1 << h->host;
	h->body_pos = 0;
	h->out_of_memory = false;
	h->header_len = 0;
	h->errbuf[0] = '\0';
	conn->answer_len = 0;
	conn->answer_cut = false;
	if (conn->answer != NULL)
		conn->answer[0] = '\0';

	if (curl_easy_setopt(h->easy, CURLOPT_URL, pool->hosts[h->host].url) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) conn->body.len) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_CONNECTTIMEOUT_MS, (long) cs_connect_timeout) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_TIMEOUT_MS, (long) cs_request_timeout) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_FORBID_REUSE, conn->close_after ? 1L : 0L) != CURLE_OK ||
		curl_multi_add_handle(h->multi, h->easy) != CURLM_OK)
	{
		strlcpy(conn->error, "libcurl refused the request", sizeof(conn->error));
		conn_done(conn, HTTP_UNUSABLE);
		return;
	}
	h->attached = true;
	conn_drive(conn, CURL_SOCKET_TIMEOUT, 0);
}

/* asks the host that has been away for long enough whether it is back */
static void
probe_hosts(HttpPool *pool, TimestampTz now)
{
	HttpConn   *conn = pool->probe;
	HttpHandle *h;
	int			i = 0;

	while (i < pool->nhosts && !(pool->hosts[i].away && !pool->hosts[i].gone &&
								 pool->hosts[i].probe_at <= now))
		i++;
	if (i == pool->nhosts || (conn != NULL && conn->busy))
		return;
	if (conn == NULL)
	{
		conn = pool->probe = http_conn(pool);
		conn->max_answer = 4096;
	}
	h = conn->handle;
	h->host = i;
	h->header_len = 0;
	conn->answer_len = 0;
	conn->answer_cut = false;
	if (!handle_prepare(conn) ||
		curl_easy_setopt(h->easy, CURLOPT_HTTPGET, 1L) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_URL, pool->hosts[i].probe_url) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_TIMEOUT_MS, (long) cs_connect_timeout) != CURLE_OK ||
		curl_easy_setopt(h->easy, CURLOPT_FORBID_REUSE, 1L) != CURLE_OK ||
		curl_multi_add_handle(h->multi, h->easy) != CURLM_OK)
	{
		host_failed(&pool->hosts[i], false);
		return;
	}
	conn->busy = true;
	h->attached = true;
	conn_drive(conn, CURL_SOCKET_TIMEOUT, 0);
}

/*
 * Sends conn->body.  What comes of it is told by http_next_done(), even if it
 * is known at once.
 */
void
http_start(HttpConn *conn)
{
	HttpHandle *h = conn->handle;

	Assert(!conn->busy);
	conn->busy = true;
	conn->status = 0;
	conn->error[0] = '\0';
	conn->bytes_sent = 0;
	conn->complete = false;
	conn->answer_len = 0;
	conn->answer_cut = false;
	h->done = false;
	h->tried = 0;
	INSTR_TIME_SET_CURRENT(h->start);
	if (handle_prepare(conn))
		conn_attempt(conn);
	else
		conn_done(conn, HTTP_UNUSABLE);
}

/* forgets the request under way, and its TCP connection with it */
void
http_cancel(HttpConn *conn)
{
	handle_detach(conn->handle);
	conn->handle->done = false;
	conn->busy = false;
}

HttpConn *
http_next_done(HttpPool *pool)
{
	for (int i = 0; i < pool->nconns; i++)
	{
		HttpConn   *conn = pool->conns[i];

		if (conn->handle->done)
		{
			conn->handle->done = false;
			conn->busy = false;
			return conn;
		}
	}
	return NULL;
}

void
http_trim(HttpConn *conn)
{
	if (conn->handle->answer_size > KEPT_BUFFER)
	{
		free(conn->answer);
		conn->answer = NULL;
		conn->answer_len = 0;
		conn->handle->answer_size = 0;
	}
	if (conn->body.maxlen > cs_batch_bytes * INT64CONST(1024) * 2 + KEPT_BUFFER)
	{
		MemoryContext oldcxt = MemoryContextSwitchTo(conn->handle->pool->cxt);

		pfree(conn->body.data);
		initStringInfo(&conn->body);
		MemoryContextSwitchTo(oldcxt);
	}
}

/* ---------------------------------------------------------------------
 * Waiting
 * ------------------------------------------------------------------- */

static void
pool_prepare_set(HttpPool *pool)
{
	if (pool->set == NULL || pool->set_stale)
	{
		if (pool->set != NULL)
			FreeWaitEventSet(pool->set);
		pool->set = NULL;
		pool->set = CS_CREATE_WAIT_EVENT_SET(pool->nsockets + 2);
		AddWaitEventToSet(pool->set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
		if (IsUnderPostmaster)
			AddWaitEventToSet(pool->set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
		for (int i = 0; i < pool->nsockets; i++)
		{
			HttpSocket *s = &pool->sockets[i];

			s->pos = AddWaitEventToSet(pool->set, s->events, s->fd, NULL, s->conn);
			s->set_events = s->events;
		}
		pool->set_stale = false;
	}
	else if (pool->events_stale)
	{
		for (int i = 0; i < pool->nsockets; i++)
		{
			HttpSocket *s = &pool->sockets[i];

			if (s->set_events != s->events)
				ModifyWaitEvent(pool->set, s->pos, s->events, NULL);
			s->set_events = s->events;
		}
	}
	pool->events_stale = false;
}

static bool
pool_has_done(HttpPool *pool)
{
	for (int i = 0; i < pool->nconns; i++)
	{
		if (pool->conns[i]->handle->done)
			return true;
	}
	return false;
}

int
http_wait(HttpPool *pool, long timeout, uint32 wait_event)
{
	TimestampTz deadline = timeout < 0 ? 0 :
		GetCurrentTimestamp() + timeout * INT64CONST(1000);

	for (;;)
	{
		WaitEvent	events[MAX_EVENTS];
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz wake = deadline;
		long		wait = -1;
		int			result = 0;
		int			n;

		probe_hosts(pool, now);
		for (int i = 0; i < pool->nhosts && (pool->probe == NULL || !pool->probe->busy); i++)
		{
			if (pool->hosts[i].away && !pool->hosts[i].gone && (wake == 0 || pool->hosts[i].probe_at < wake))
				wake = pool->hosts[i].probe_at;
		}
		for (int i = 0; i < pool->nconns; i++)
		{
			HttpHandle *h = pool->conns[i]->handle;

			if (h->timer_at != 0 && h->timer_at <= now)
			{
				h->timer_at = 0;
				conn_drive(pool->conns[i], CURL_SOCKET_TIMEOUT, 0);
			}
			if (h->timer_at != 0 && (wake == 0 || h->timer_at < wake))
				wake = h->timer_at;
		}
		if (pool_has_done(pool))
			return HTTP_WAIT_DONE;

		if (wake != 0)
			wait = wake <= now ? 0 : Min((wake - now + 999) / 1000, INT_MAX / 2);
		pool_prepare_set(pool);
		n = WaitEventSetWait(pool->set, wait, events, MAX_EVENTS, wait_event);
		for (int i = 0; i < n; i++)
		{
			if (events[i].events & WL_LATCH_SET)
				result |= HTTP_WAIT_LATCH;
			else if (events[i].events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
				conn_drive(events[i].user_data, events[i].fd,
						   (events[i].events & WL_SOCKET_READABLE ? CURL_CSELECT_IN : 0) |
						   (events[i].events & WL_SOCKET_WRITEABLE ? CURL_CSELECT_OUT : 0));
		}
		if (pool_has_done(pool))
			result |= HTTP_WAIT_DONE;
		if (pool->came_back)
			result |= HTTP_WAIT_HOST;
		pool->came_back = false;
		if (result != 0)
			return result;
		if (deadline != 0 && GetCurrentTimestamp() >= deadline)
			return 0;
	}
}

/* ---------------------------------------------------------------------
 * Pools
 * ------------------------------------------------------------------- */

HttpPool *
http_open(const char *conf, MemoryContext cxt)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(cxt);
	HttpPool   *pool = palloc0(sizeof(HttpPool));
	char	   *problem;

	pool->cxt = cxt;
	pool->hosts = palloc(sizeof(HttpHost) * MAX_HOSTS);
	if (!conf_parse(conf, pool->hosts, &pool->nhosts, &problem))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for parameter \"%s\"", "crate_sync.target"),
				 errdetail_internal("%s", problem)));
	pool->nconfigured = pool->nhosts;
	pool->https = strncmp(pool->hosts[0].url, "https:", 6) == 0;
	pool->generation = 1;
	MemoryContextSwitchTo(oldcxt);
	return pool;
}

static void
learn_host(HttpPool *pool, const char *name)
{
	HttpHost	host;
	bool		https = pool->https;
	char	   *problem;
	int			i = 0;

	/* it comes from the target: no more than the setting can it be anything else */
	memset(&host, 0, sizeof(host));
	if (strstr(name, "://") != NULL ||
		!conf_parse_host(name, strlen(name), false, &https, &host, &problem))
		return;
	while (i < pool->nhosts && strcmp(pool->hosts[i].name, host.name) != 0)
		i++;
	if (i == pool->nhosts)
	{
		for (i = pool->nconfigured; i < pool->nhosts && !pool->hosts[i].gone;)
			i++;
		if (i == MAX_HOSTS)
			return;
		if (i == pool->nhosts)
			pool->nhosts++;
		host.url = MemoryContextStrdup(pool->cxt, host.url);
		host.probe_url = MemoryContextStrdup(pool->cxt, host.probe_url);
		host.name = MemoryContextStrdup(pool->cxt, host.name);
		pool->hosts[i] = host;
	}
	pool->hosts[i].gone = false;
}

/*
 * The hosts that the cluster names ("host:port") are used beside those of the
 * setting, as many as fit, until they are named no more.
 */
void
http_learn_hosts(HttpPool *pool, char **names, int n)
{
	for (int i = pool->nconfigured; i < pool->nhosts; i++)
		pool->hosts[i].gone = true;
	for (int i = 0; i < n; i++)
	{
		if (names[i] != NULL)
			learn_host(pool, names[i]);
	}
}

HttpConn *
http_conn(HttpPool *pool)
{
	MemoryContext oldcxt = MemoryContextSwitchTo(pool->cxt);
	HttpConn   *conn = palloc0(sizeof(HttpConn));

	conn->handle = palloc0(sizeof(HttpHandle));
	conn->handle->pool = pool;
	initStringInfo(&conn->body);
	if (pool->conns == NULL)
		pool->conns = palloc(sizeof(HttpConn *));
	else
		pool->conns = repalloc(pool->conns, sizeof(HttpConn *) * (pool->nconns + 1));
	pool->conns[pool->nconns++] = conn;
	MemoryContextSwitchTo(oldcxt);
	return conn;
}

void
http_reconnect(HttpPool *pool)
{
	pool->generation++;
	for (int i = 0; i < pool->nhosts; i++)
	{
		pool->hosts[i].failures = 0;
		pool->hosts[i].away = false;
	}
}

/* requests under way are forgotten; memory goes with the pool's context */
void
http_close(HttpPool *pool)
{
	for (int i = 0; i < pool->nconns; i++)
	{
		handle_free(pool->conns[i]);
		free(pool->conns[i]->answer);
		pool->conns[i]->answer = NULL;
	}
	pool->nconns = 0;
	if (pool->set != NULL)
		FreeWaitEventSet(pool->set);
	pool->set = NULL;
	free(pool->sockets);
	pool->sockets = NULL;
	pool->nsockets = 0;
	curl_slist_free_all(pool->headers);
	pool->headers = NULL;
	if (pool->password != NULL)
	{
		explicit_bzero(pool->password, strlen(pool->password));
		free(pool->password);
		pool->password = NULL;
	}
}
