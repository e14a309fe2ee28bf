/*-------------------------------------------------------------------------
 *
 * sink.c
 *		An HTTP server that answers POST /_sql as CrateDB would, at once.
 *
 * usage: sink [-p port] [-r dir] [-u host:port]
 *
 * It stores no rows: an INSERT ... UNNEST gets the number of elements of its
 * first array as rowcount, a bulk request a 1 for each row, a fence its epoch,
 * a claim what was last written, catalogs the tables that were made; everything
 * else gets an answer that lets the sender go on.  What follows the first array
 * is thrown away unread (MSG_TRUNC), so that the sender is what is measured.
 *
 * -r: every body that writes rows goes to a file of its own, 00000001.body ...
 * -u: forward to a real server instead of answering; with -r, a recorder.
 *
 * GET /_stats tells what came since the start or GET /_reset; its times are
 * CLOCK_MONOTONIC seconds.  SINK_TRACE=1 in the environment prints statements.
 * One thread; the first line of standard output is the port.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_HEADER	65536
#define MAX_STMT	262144
#define MAX_FENCES	4096
#define MAX_NOTES	256
#define NOTE_COLS	32
#define MAX_TABLES	16
#define TABLE_COLS	64
#define MAX_NAME	64
#define KEEP_BODY	65536		/* bodies up to that are kept, to be looked at */
#define RECV_SIZE	(256 * 1024)

/* how far a body's JSON has been understood; fed piece by piece */
typedef struct Scan
{
	int			depth;
	bool		instring;
	bool		escape;
	bool		iskey;			/* this string at depth 1 is a member's name */
	bool		expectkey;
	char		key[32];
	int			keylen;
	char	   *stmt;			/* MAX_STMT, unescaped but for \uXXXX */
	int			stmtlen;
	bool		stmtdone;
	char		arg0[128];		/* raw text of args' first element, if scalar */
	int			arg0len;
	bool		arg0done;
	int			countdepth;		/* elements at this depth are rows; 0: none yet */
	bool		nonempty;
	int64_t		rows;
	bool		rowsdone;
	bool		bulk;
} Scan;

typedef enum
{
	ST_HEADER, ST_BODY, ST_DROP
} State;

typedef struct Conn
{
	int			fd;
	struct Conn *peer;			/* -u: the other side */
	bool		upstream;		/* is that other side */
	State		state;
	char	   *head;
	int			headlen;
	bool		ispost;
	char		path[256];
	int64_t		length;			/* of the body */
	int64_t		got;
	char	   *body;			/* kept if small, or with -r */
	size_t		bodycap;
	bool		keep;
	double		begin;
	Scan		scan;
} Conn;

typedef struct Fence
{
	char		id[128];
	int64_t		epoch;
} Fence;

/* a row of the sender's own bookkeeping (schema crate_sync), as JSON texts */
typedef struct Note
{
	char	   *table;
	char	   *key;			/* unescaped */
	int			ncols;
	char	   *cell[NOTE_COLS];
} Note;

/* a table that the sender has made, or wrote to: what catalogs tell of it */
typedef struct Table
{
	char		schema[MAX_NAME];
	char		name[MAX_NAME];
	int			ncols;
	char		col[TABLE_COLS][MAX_NAME];
	char		type[TABLE_COLS][MAX_NAME];
	char		key[MAX_NAME * 4];	/* "a","b" */
	bool		written;
} Table;

static int	epfd;
static const char *record_dir;
static const char *upstream_host;
static const char *upstream_port;
static char scratch[RECV_SIZE + 1];

static int64_t n_requests,
			n_upserts,
			n_deletes,
			n_rows,
			n_bytes,
			n_other,
			max_body,
			n_recorded;
static double t_ready,
			t_first,
			t_last;
static bool fencing;			/* the fence of a mirrored table has been raised */
static Fence fences[MAX_FENCES];
static int	nfences;
static Note notes[MAX_NOTES];
static int	nnotes;
static Table tables[MAX_TABLES];
static int	ntables;

static void
die(const char *what)
{
	perror(what);
	exit(1);
}

static double
now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* ---------------------------------------------------------------- the body */

static void
scan_reset(Scan *s)
{
	char	   *stmt = s->stmt;

	memset(s, 0, sizeof(*s));
	s->stmt = stmt;
}

static void
scan_string_char(Scan *s, char c)
{
	if (s->depth != 1)
		return;
	if (s->iskey)
	{
		if (s->keylen < (int) sizeof(s->key) - 1)
			s->key[s->keylen++] = c;
	}
	else if (strcmp(s->key, "stmt") == 0 && s->stmtlen < MAX_STMT - 1)
		s->stmt[s->stmtlen++] = c;
}

static void
scan_feed(Scan *s, const char *p, size_t len)
{
	const char *end = p + len;

	/* once the rows are counted, the rest says nothing */
	for (; p < end && !(s->rowsdone && s->stmtdone); p++)
	{
		char		c = *p;

		/* bare numbers of the array being counted: the common case */
		if (s->countdepth != 0 && s->depth == s->countdepth && !s->rowsdone && !s->instring)
		{
			int64_t		n = 0;
			const char *start = p;

			while (p < end && *p != '"' && *p != '[' && *p != ']' && *p != '{' && *p != '}')
				n += (*p++ == ',');
			s->rows += n;
			if (p > start)
				s->nonempty = true;
			if (p == end)
				return;
			c = *p;
			if (c != ']')
				s->nonempty = true;
		}

		if (s->instring)
		{
			if (s->escape)
			{
				s->escape = false;
				scan_string_char(s, c == 'n' || c == 't' || c == 'r' ? ' ' : c);
			}
			else if (c == '\\')
				s->escape = true;
			else if (c == '"')
			{
				s->instring = false;
				if (s->depth == 1 && s->iskey)
					s->key[s->keylen] = '\0';
				else if (s->depth == 1 && strcmp(s->key, "stmt") == 0)
				{
					s->stmt[s->stmtlen] = '\0';
					s->stmtdone = true;
				}
			}
			else if (s->depth > 1)
			{
				/* hurry through a value's text */
				if (!s->arg0done && s->depth == 2 && s->arg0len < (int) sizeof(s->arg0) - 1)
					s->arg0[s->arg0len++] = c;
				while (p + 1 < end && p[1] != '"' && p[1] != '\\' && s->arg0done)
					p++;
			}
			else
				scan_string_char(s, c);
			continue;
		}

		switch (c)
		{
			case '"':
				s->instring = true;
				if (s->depth == 1)
				{
					s->iskey = s->expectkey;
					s->expectkey = false;
					if (s->iskey)
						s->keylen = 0;
				}
				break;
			case '{':
			case '[':
				if (s->depth == 2 && s->arg0len == 0)
					s->arg0done = true;
				s->depth++;
				if (s->depth == 1)
					s->expectkey = true;
				else if (c == '[' && s->countdepth == 0)
				{
					if (s->depth == 2 && strcmp(s->key, "bulk_args") == 0)
					{
						s->bulk = true;
						s->countdepth = 2;
					}
					else if (s->depth == 3 && strcmp(s->key, "args") == 0)
						s->countdepth = 3;
				}
				break;
			case '}':
			case ']':
				if (s->countdepth != 0 && s->depth == s->countdepth && !s->rowsdone)
				{
					s->rows += s->nonempty;
					s->rowsdone = true;
				}
				if (s->depth == 2 && strcmp(s->key, "args") == 0)
					s->arg0done = true;
				s->depth--;
				break;
			case ',':
				if (s->depth == 1)
					s->expectkey = true;
				else if (s->depth == 2)
					s->arg0done = true;
				break;
			default:
				if (s->depth == 2 && !s->arg0done && c > ' ' &&
					s->arg0len < (int) sizeof(s->arg0) - 1)
					s->arg0[s->arg0len++] = c;
				break;
		}
	}
}

/* ------------------------------------------------------------- the answers */

/* waits: what is sent from here is small, or goes to a server that reads */
static bool
send_all(int fd, const char *p, size_t len)
{
	while (len > 0)
	{
		ssize_t		n = send(fd, p, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		len -= n;
	}
	return true;
}

static void
answer(Conn *c, const char *json, size_t len)
{
	static char *out;
	static size_t cap;
	int			n;

	if (cap < len + 256)
	{
		cap = len * 2 + 4096;
		out = realloc(out, cap);
		if (out == NULL)
			die("realloc");
	}
	n = snprintf(out, cap, "HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=UTF-8\r\n"
				 "content-length: %zu\r\n\r\n", len);
	memcpy(out + n, json, len);
	(void) send_all(c->fd, out, n + len);
}

static void
answer_text(Conn *c, const char *json)
{
	answer(c, json, strlen(json));
}

static void
answer_cell(Conn *c, const char *col, int64_t value)
{
	char		buf[256];

	snprintf(buf, sizeof(buf),
			 "{\"cols\":[\"%s\"],\"rows\":[[%lld]],\"rowcount\":1,\"duration\":0.1}",
			 col, (long long) value);
	answer_text(c, buf);
}

static Fence *
fence_of(const char *id)
{
	for (int i = 0; i < nfences; i++)
		if (strcmp(fences[i].id, id) == 0)
			return &fences[i];
	if (nfences == MAX_FENCES)
		nfences--;
	snprintf(fences[nfences].id, sizeof(fences[0].id), "%s", id);
	fences[nfences].epoch = 0;
	return &fences[nfences++];
}

static void
answer_stats(Conn *c)
{
	char		buf[1024];

	snprintf(buf, sizeof(buf),
			 "{\"requests\":%lld,\"upserts\":%lld,\"deletes\":%lld,\"rows\":%lld,\"bytes\":%lld,"
			 "\"other\":%lld,\"max_body\":%lld,\"ready\":%.6f,\"first\":%.6f,\"last\":%.6f}",
			 (long long) n_requests, (long long) n_upserts, (long long) n_deletes,
			 (long long) n_rows, (long long) n_bytes, (long long) n_other,
			 (long long) max_body, t_ready, t_first, t_last);
	answer_text(c, buf);
}

static void
answer_bulk(Conn *c)
{
	static const char one[] = "{\"rowcount\":1},";
	size_t		each = sizeof(one) - 1;
	char	   *buf = malloc(64 + each * (c->scan.rows + 1));
	char	   *p = buf;

	if (buf == NULL)
		die("malloc");
	p += sprintf(p, "{\"cols\":[],\"duration\":0.1,\"results\":[");
	for (int64_t i = 0; i < c->scan.rows; i++, p += each)
		memcpy(p, one, each);
	if (c->scan.rows > 0)
		p--;
	p += sprintf(p, "]}");
	answer(c, buf, p - buf);
	free(buf);
}

static bool
is_insert(Scan *s)
{
	return !s->bulk && s->countdepth == 3 && strcasestr(s->stmt, "insert") != NULL &&
		strcasestr(s->stmt, "unnest") != NULL;
}

/* the table of the sender's own that a statement names, or NULL: text until the next quote */
static const char *
own_table(Scan *s)
{
	const char *p = strstr(s->stmt, " \"crate_sync\".\"");

	return p ? p + strlen(" \"crate_sync\".\"") : NULL;
}

/* does it write rows of a mirrored table? */
static bool
is_upsert(Scan *s)
{
	return is_insert(s) && own_table(s) == NULL;
}

/* where a JSON value ends: at a comma or bracket of its own level */
static const char *
value_end(const char *p, const char *end)
{
	int			depth = 0;

	for (; p < end; p++)
	{
		if (*p == '"')
			for (p++; p < end && *p != '"'; p++)
				p += *p == '\\';
		else if (*p == '[' || *p == '{')
			depth++;
		else if ((*p == ']' || *p == '}' || *p == ',') && depth == 0)
			return p;
		else if (*p == ']' || *p == '}')
			depth--;
	}
	return end;
}

static char *
unescaped(const char *json)
{
	char	   *out = strdup(json + 1),
			   *to = out;

	for (char *p = out; *p != '\0' && *p != '"'; p++)
	{
		if (*p == '\\')
			p++;
		*to++ = *p;
	}
	*to = '\0';
	return out;
}

/* one row of its own that the sender will want to read again; false: not understood */
static bool
note_keep(Conn *c)
{
	const char *end = c->body + c->length,
			   *p = c->keep ? memmem(c->body, c->length, "\"args\":[[", 9) : NULL,
			   *table = own_table(&c->scan);
	Note		note = {0};
	Note	   *place = &notes[nnotes];

	if (p == NULL || c->scan.rows != 1)
		return false;
	for (p += 8; p < end && *p == '[' && note.ncols < NOTE_COLS; p++)
	{
		const char *stop = value_end(p + 1, end);

		note.cell[note.ncols++] = strndup(p + 1, stop - p - 1);
		p = stop + 1;
	}
	if (note.ncols == 0 || note.cell[0][0] != '"')
		return false;
	note.table = strndup(table, strcspn(table, "\""));
	note.key = unescaped(note.cell[0]);
	for (int i = 0; i < nnotes; i++)
		if (strcmp(notes[i].table, note.table) == 0 && strcmp(notes[i].key, note.key) == 0)
			place = &notes[i];
	if (place == &notes[nnotes] && ++nnotes == MAX_NOTES)
		return false;
	*place = note;				/* an old one is small */
	return true;
}

/* a lookup of such rows; one that asks for _seq_no is about to delete them */
static void
note_answer(Conn *c)
{
	const char *table = own_table(&c->scan);
	bool		delete = strstr(c->scan.stmt, "_seq_no") != NULL;
	static char buf[MAX_NOTES * 64 + 65536 * 2];
	int			n = snprintf(buf, sizeof(buf), "{\"cols\":[],\"rows\":["),
				rows = 0;

	for (int i = 0; i < nnotes; i++)
	{
		Note	   *note = &notes[i];
		char		literal[1024];

		snprintf(literal, sizeof(literal), "'%s'", note->key);
		if (strncmp(table, note->table, strlen(note->table)) != 0 ||
			strstr(c->scan.stmt, literal) == NULL)
			continue;
		if (delete)
		{
			notes[i--] = notes[--nnotes];
			continue;
		}
		n += snprintf(buf + n, sizeof(buf) - n, "%s[", rows++ ? "," : "");
		for (int k = 0; k < note->ncols && n < 65536; k++)
			n += snprintf(buf + n, sizeof(buf) - n, "%s%s", k ? "," : "", note->cell[k]);
		n += snprintf(buf + n, sizeof(buf) - n, "]");
	}
	snprintf(buf + n, sizeof(buf) - n, "],\"rowcount\":%d,\"duration\":0.1}", rows);
	answer_text(c, buf);
}

static Table *
find_table(const char *schema, const char *name)
{
	for (int i = 0; i < ntables; i++)
		if (strcmp(tables[i].schema, schema) == 0 && strcmp(tables[i].name, name) == 0)
			return &tables[i];
	return NULL;
}

/* the table named behind a word of a statement, "schema"."name"; *rest: what follows */
static Table *
named_table(const char *stmt, const char *word, bool make, const char **rest)
{
	const char *p = strstr(stmt, word);
	Table	   *t;
	char		schema[MAX_NAME],
				name[MAX_NAME];
	int			n = 0;

	if (p == NULL || sscanf(p + strlen(word), " \"%63[^\"]\".\"%63[^\"]\"%n", schema, name, &n) != 2 || n == 0)
		return NULL;
	if (rest != NULL)
		*rest = p + strlen(word) + n;
	t = find_table(schema, name);
	if (t == NULL && make && ntables < MAX_TABLES)
	{
		t = &tables[ntables++];
		memset(t, 0, sizeof(*t));
		strcpy(t->schema, schema);
		strcpy(t->name, name);
	}
	return t;
}

/* CREATE TABLE IF NOT EXISTS "s"."t" ( "c" TYPE, ... PRIMARY KEY ("c") ) ... */
static void
table_made(const char *stmt)
{
	const char *p;
	Table	   *t = named_table(stmt, "EXISTS", true, &p);

	if (t == NULL || t->ncols > 0 || (p = strchr(p, '(')) == NULL)
		return;
	p++;
	while (t->ncols < TABLE_COLS)
	{
		char	   *type = t->type[t->ncols];
		int			n = 0;

		if (sscanf(p, " \"%63[^\"]\" %63[^,(]%n", t->col[t->ncols], type, &n) != 2 || n == 0)
			break;
		for (char *q = type; *q != '\0'; q++)
			*q = *q >= 'A' && *q <= 'Z' ? *q + 32 : *q;
		t->ncols++;
		p = value_end(p + n, p + strlen(p));
		p += *p == ',';
	}
	p = strstr(p, "PRIMARY KEY (");
	if (p != NULL)
		sscanf(p, "PRIMARY KEY (%255[^)])", t->key);
}

/* information_schema: of columns, or of the key's */
static void
answer_catalog(Conn *c, bool key)
{
	char		schema[MAX_NAME] = "",
				name[MAX_NAME] = "";
	char		buf[TABLE_COLS * (2 * MAX_NAME + 64) + 256],
			   *p = buf;
	const char *args = c->keep ? memmem(c->body, c->length, "\"args\":", 7) : NULL;
	Table	   *t = NULL;
	int			rows = 0;

	if (args != NULL && sscanf(args, "\"args\": [\"%63[^\"]\",\"%63[^\"]\"", schema, name) == 2)
		t = find_table(schema, name);
	p += sprintf(p, "{\"cols\":[%s],\"rows\":[", key ? "\"k\"" : "\"c\",\"t\",\"l\",\"p\",\"n\",\"d\",\"g\"");
	if (t != NULL && key)
		for (const char *k = t->key; *k == '"'; k += strcspn(k, ",") + (strchr(k, ',') != NULL))
			p += sprintf(p, "%s[%.*s]", rows++ ? "," : "", (int) strcspn(k, ","), k);
	else if (t != NULL)
		for (; rows < t->ncols; rows++)
			p += sprintf(p, "%s[\"%s\",\"%s\",null,null,\"YES\",null,\"NEVER\"]",
						 rows ? "," : "", t->col[rows], t->type[rows]);
	sprintf(p, "],\"rowcount\":%d,\"duration\":0.1}", rows);
	answer_text(c, buf);
}

/* is there a row?  What was written is gone, but that it was is known */
static void
answer_first(Conn *c)
{
	Table	   *t = named_table(c->scan.stmt, "FROM", false, NULL);

	if (t != NULL && t->written)
		answer_cell(c, "id", 1);
	else
		answer_text(c, "{\"cols\":[],\"rows\":[],\"rowcount\":0,\"duration\":0.1}");
}

/* the statements that run: only the one that asks */
static void
answer_jobs(Conn *c)
{
	char		buf[1024],
			   *p = buf;

	p += sprintf(p, "{\"cols\":[\"stmt\"],\"rows\":[[\"");
	for (char *q = c->scan.stmt; *q != '\0' && q < c->scan.stmt + 160; q++)
	{
		if (*q == '"' || *q == '\\')
			*p++ = '\\';
		*p++ = *q;
	}
	strcpy(p, "\"]],\"rowcount\":1,\"duration\":0.1}");
	answer_text(c, buf);
}

static void
answer_statement(Conn *c)
{
	Scan	   *s = &c->scan;
	char	   *q = s->stmt;
	size_t		len = strlen(q);
	Table	   *t;

	if (s->bulk)
		answer_bulk(c);
	else if (is_insert(s) && (is_upsert(s) || note_keep(c)))
	{
		char		buf[128];

		t = named_table(q, "INSERT INTO", true, NULL);
		if (t != NULL)
			t->written = true;
		snprintf(buf, sizeof(buf), "{\"cols\":[],\"rows\":[[]],\"rowcount\":%lld,\"duration\":0.1}",
				 (long long) s->rows);
		answer_text(c, buf);
	}
	else if (strcasestr(q, "returning epoch") != NULL)
		answer_cell(c, "epoch", ++fence_of(s->arg0)->epoch);
	else if (strcasestr(q, "select epoch") != NULL)
		answer_cell(c, "epoch", fence_of(s->arg0)->epoch);
	else if (strcasestr(q, "select version()") != NULL)
		answer_text(c, "{\"cols\":[\"version()\"],\"rows\":[[\"CrateDB 6.4.3 (built 0000000/NA, "
					"Linux 6.1 amd64, a sink)\"]],\"rowcount\":1,\"duration\":0.1}");
	else if (strcasestr(q, "from sys.jobs") != NULL)
		answer_jobs(c);
	else if (strcasestr(q, "information_schema.columns") != NULL)
		answer_catalog(c, false);
	else if (strcasestr(q, "information_schema.key_column_usage") != NULL)
		answer_catalog(c, true);
	else if (own_table(s) != NULL && strncasecmp(q, "select ", 7) == 0)
		note_answer(c);
	else if (len > 8 && strcmp(q + len - 8, " LIMIT 1") == 0)
		answer_first(c);
	else if (strcasestr(q, "count(*)") != NULL)
		answer_cell(c, "count(*)", 0);
	else if (strcasestr(q, "select 1") != NULL)
		answer_cell(c, "1", 1);
	else if (strcasestr(q, "select ") != NULL && strcasestr(q, "create ") == NULL)
		answer_text(c, "{\"cols\":[],\"rows\":[],\"rowcount\":0,\"duration\":0.1}");
	else
	{
		if (strcasestr(q, "create table") != NULL)
			table_made(q);
		else if (strcasestr(q, "drop table") != NULL &&
				 (t = named_table(q, "EXISTS", false, NULL)) != NULL)
			*t = tables[--ntables];
		answer_text(c, "{\"cols\":[],\"rows\":[[]],\"rowcount\":1,\"duration\":0.1}");
	}
}

/* ------------------------------------------------------------- connections */

static void
record(Conn *c)
{
	char		path[4096];
	FILE	   *f;

	snprintf(path, sizeof(path), "%s/%08lld.body", record_dir, (long long) ++n_recorded);
	f = fopen(path, "w");
	if (f == NULL || fwrite(c->body, 1, c->length, f) != (size_t) c->length || fclose(f) != 0)
		die(path);
}

/* a whole request has arrived */
static void
request_done(Conn *c)
{
	Scan	   *s = &c->scan;
	double		t = now();

	c->state = ST_HEADER;
	c->headlen = 0;
	if (!c->ispost)
	{
		if (strcmp(c->path, "/_stats") == 0)
			answer_stats(c);
		else if (strcmp(c->path, "/_reset") == 0)
		{
			n_requests = n_upserts = n_deletes = n_rows = n_bytes = n_other = 0;
			max_body = 0;
			t_ready = t_first = t_last = 0;
			fencing = false;
			answer_text(c, "{}");
		}
		else if (c->peer == NULL)
			answer_text(c, "{\"ok\":true,\"status\":200,\"name\":\"sink\",\"cluster_name\":\"sink\","
						"\"version\":{\"number\":\"6.4.3\",\"build_hash\":\"0\",\"build_snapshot\":false,"
						"\"lucene_version\":\"10\"}}");
		return;
	}
	s->stmt[s->stmtlen] = '\0';
	n_requests++;
	n_bytes += c->length;
	if (c->length > max_body)
		max_body = c->length;
	if (getenv("SINK_TRACE") != NULL)
		fprintf(stderr, "%.6f rows=%lld arg0=%s %.500s\n", t, (long long) s->rows, s->arg0, s->stmt);
	if (is_upsert(s))
	{
		n_upserts++;
		n_rows += s->rows;
		if (t_first == 0)
			t_first = c->begin;
		if (record_dir != NULL)
			record(c);
	}
	else if (s->bulk)
		n_deletes += s->rows;
	else
		n_other++;
	if (c->peer == NULL)
		answer_statement(c);
	if (is_upsert(s) || s->bulk)
		t_last = now();
	else if (t_first == 0 && !fencing)
	{
		/* what it asked before it began to read rows: it raises their fences behind that */
		fencing = strstr(s->stmt, "INSERT INTO crate_sync.fence") != NULL &&
			strncmp(s->arg0, "crate_sync.", 11) != 0;
		if (!fencing)
			t_ready = now();
	}
}

static void
conn_close(Conn *c)
{
	Conn	   *peer = c->peer;

	close(c->fd);
	c->fd = -1;
	if (peer != NULL)
	{
		/* freed on its own event, which this brings about */
		peer->peer = NULL;
		shutdown(peer->fd, SHUT_RDWR);
	}
	free(c->head);
	free(c->body);
	free(c->scan.stmt);
	free(c);
}

static Conn *
conn_new(int fd, bool upstream)
{
	Conn	   *c = calloc(1, sizeof(Conn));
	struct epoll_event ev = {.events = EPOLLIN,.data.ptr = c};
	int			on = 1;

	if (c == NULL || (c->scan.stmt = malloc(MAX_STMT)) == NULL ||
		(c->head = malloc(MAX_HEADER + 1)) == NULL)
		die("malloc");
	c->fd = fd;
	c->upstream = upstream;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
		die("epoll_ctl");
	return c;
}

static int
connect_upstream(void)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM},
			   *ai;
	int			fd;

	if (getaddrinfo(upstream_host, upstream_port, &hints, &ai) != 0)
		return -1;
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen) < 0)
	{
		close(fd);
		fd = -1;
	}
	freeaddrinfo(ai);
	return fd;
}

static const char *
header_value(const char *head, const char *name)
{
	size_t		n = strlen(name);

	for (const char *p = strstr(head, "\r\n"); p != NULL; p = strstr(p + 2, "\r\n"))
		if (strncasecmp(p + 2, name, n) == 0 && p[2 + n] == ':')
		{
			p += 3 + n;
			while (*p == ' ')
				p++;
			return p;
		}
	return NULL;
}

/* false: not something we can follow */
static bool
header_done(Conn *c)
{
	const char *v;
	char		method[16];

	if (sscanf(c->head, "%15s %255s", method, c->path) != 2)
		return false;
	c->ispost = strcmp(method, "POST") == 0;
	v = header_value(c->head, "content-length");
	c->length = v ? strtoll(v, NULL, 10) : 0;
	if (header_value(c->head, "transfer-encoding") || header_value(c->head, "content-encoding"))
	{
		fprintf(stderr, "sink: encoded bodies are not understood\n");
		return false;
	}
	c->got = 0;
	c->begin = now();
	scan_reset(&c->scan);
	c->keep = record_dir != NULL || c->length <= KEEP_BODY;
	if (c->keep && c->bodycap < (size_t) c->length)
	{
		c->bodycap = c->length;
		c->body = realloc(c->body, c->bodycap);
		if (c->body == NULL)
			die("realloc");
	}
	v = header_value(c->head, "expect");
	if (v != NULL && c->peer == NULL)
		(void) send_all(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
	c->state = ST_BODY;
	return true;
}

/* takes in what a client sent; false: give the connection up */
static bool
conn_feed(Conn *c, const char *p, size_t len)
{
	while (len > 0 || (c->state != ST_HEADER && c->got == c->length))
	{
		size_t		n;

		if (c->state == ST_HEADER)
		{
			char	   *eoh;

			n = MAX_HEADER - c->headlen;
			if (n > len)
				n = len;
			if (n == 0)
				return false;
			memcpy(c->head + c->headlen, p, n);
			c->head[c->headlen + n] = '\0';
			eoh = strstr(c->head, "\r\n\r\n");
			if (eoh == NULL)
			{
				c->headlen += n;
				return len == n;
			}
			n = (eoh + 4 - c->head) - c->headlen;
			c->head[eoh + 4 - c->head] = '\0';
			p += n;
			len -= n;
			if (!header_done(c))
				return false;
			continue;
		}

		n = len;
		if ((int64_t) n > c->length - c->got)
			n = c->length - c->got;
		if (c->state == ST_BODY)
		{
			scan_feed(&c->scan, p, n);
			if (c->keep && n > 0)
				memcpy(c->body + c->got, p, n);
			else if (c->peer == NULL && c->scan.stmtdone && c->scan.rowsdone)
				c->state = ST_DROP;
		}
		c->got += n;
		p += n;
		len -= n;
		if (c->got == c->length)
			request_done(c);
	}
	return true;
}

static bool
conn_readable(Conn *c)
{
	ssize_t		n;

	if (c->state == ST_DROP)
	{
		int64_t		left = c->length - c->got;

		n = recv(c->fd, scratch, left < (1 << 30) ? left : (1 << 30), MSG_TRUNC | MSG_DONTWAIT);
		if (n <= 0)
			return n < 0 && (errno == EAGAIN || errno == EINTR);
		c->got += n;
		if (c->got == c->length)
			request_done(c);
		return true;
	}
	n = recv(c->fd, scratch, RECV_SIZE, MSG_DONTWAIT);
	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR);
	if (c->upstream)
		return c->peer != NULL && send_all(c->peer->fd, scratch, n);
	if (upstream_host != NULL && (c->peer == NULL || !send_all(c->peer->fd, scratch, n)))
		return false;
	return conn_feed(c, scratch, n);
}

int
main(int argc, char **argv)
{
	int			opt,
				lfd,
				on = 1,
				port = 0;
	struct sockaddr_in addr = {.sin_family = AF_INET};
	socklen_t	addrlen = sizeof(addr);
	struct epoll_event ev = {.events = EPOLLIN,.data.ptr = NULL};

	while ((opt = getopt(argc, argv, "p:r:u:")) != -1)
	{
		if (opt == 'p')
			port = atoi(optarg);
		else if (opt == 'r')
			record_dir = optarg;
		else if (opt == 'u')
		{
			upstream_host = strdup(optarg);
			upstream_port = strrchr(upstream_host, ':');
			if (upstream_port == NULL)
				return 2;
			*(char *) upstream_port++ = '\0';
		}
		else
			return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGTERM);	/* never outlives the bench */
	epfd = epoll_create1(EPOLL_CLOEXEC);
	lfd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(lfd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	addr.sin_port = htons(port);
	if (bind(lfd, (struct sockaddr *) &addr, sizeof(addr)) < 0 || listen(lfd, 128) < 0)
		die("listen");
	getsockname(lfd, (struct sockaddr *) &addr, &addrlen);
	printf("%d\n", ntohs(addr.sin_port));
	fflush(stdout);
	epoll_ctl(epfd, EPOLL_CTL_ADD, lfd, &ev);

	for (;;)
	{
		/* one at a time: closing a connection may free its peer's event */
		if (epoll_wait(epfd, &ev, 1, -1) < 1)
			continue;
		if (ev.data.ptr == NULL)
		{
			int			fd = accept4(lfd, NULL, NULL, SOCK_CLOEXEC);
			Conn	   *c;

			if (fd < 0)
				continue;
			c = conn_new(fd, false);
			if (upstream_host != NULL)
			{
				int			up = connect_upstream();

				if (up < 0)
				{
					conn_close(c);
					continue;
				}
				c->peer = conn_new(up, true);
				c->peer->peer = c;
			}
		}
		else if (!conn_readable(ev.data.ptr))
			conn_close(ev.data.ptr);
	}
}
