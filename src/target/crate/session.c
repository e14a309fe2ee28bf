/*-------------------------------------------------------------------------
 *
 * session.c
 *		Waiting for CrateDB: writes driven, questions asked.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/text.h"
#include "base/settings.h"
#include "mb/pg_wchar.h"
#include "postmaster/interrupt.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define DISCOVERY_INTERVAL	60000	/* ms between two questions for the cluster's hosts */

/* takes up what has been answered */
static void
crate_collect(CrateTarget *t)
{
	HttpConn   *conn;

	while ((conn = http_next_done(t->pool)) != NULL)
	{
		if (conn == t->sync)
			t->sync_done = true;
		else
		{
			Slot	   *slot = conn->arg;
			MemoryContext oldcxt;

			MemoryContextReset(t->work);
			oldcxt = MemoryContextSwitchTo(t->work);
			slot_advance(slot);
			MemoryContextSwitchTo(oldcxt);
		}
	}
}

void
crate_poll(Target *target, long timeout, uint32 wait_event)
{
	CrateTarget *t = (CrateTarget *) target;
	TimestampTz deadline = timeout < 0 ? 0 :
		GetCurrentTimestamp() + timeout * INT64CONST(1000);

	for (;;)
	{
		long		wait = -1;
		int			r;

		crate_collect(t);
		if (t->nfinished > 0)
		{
			t->nfinished = 0;
			return;
		}
		if (deadline != 0)
		{
			/* apart: Max evaluates twice, and the clock goes on in between */
			wait = (deadline - GetCurrentTimestamp() + 999) / 1000;
			wait = Max(0, wait);
		}
		r = http_wait(t->pool, wait, wait_event);
		if (r & HTTP_WAIT_HOST)
			t->came_back = true;
		if (r == 0 || (r & (HTTP_WAIT_LATCH | HTTP_WAIT_HOST)))
		{
			crate_collect(t);
			t->nfinished = 0;
			return;
		}
	}
}

bool
crate_came_back(Target *target)
{
	CrateTarget *t = (CrateTarget *) target;
	bool		came_back = t->came_back;

	t->came_back = false;
	return came_back;
}

/*
 * Waits for the answer to the synchronous request, if for_answer, but no longer
 * than ms milliseconds (-1: as long as it takes); drives the writes
 * meanwhile.  False: the server shuts down.
 */
bool
sync_wait(CrateTarget *t, bool for_answer, long ms)
{
	TimestampTz deadline = ms < 0 ? 0 : GetCurrentTimestamp() + ms * INT64CONST(1000);
	bool		going = true;

	t->latch_eaten = false;
	PG_TRY();
	{
		for (;;)
		{
			long		wait = -1;
			int			r;

			crate_collect(t);
			if (for_answer && t->sync_done)
				break;
			if (ms >= 0 && (wait = (deadline - GetCurrentTimestamp() + 999) / 1000) <= 0)
				break;
			/* in short naps: nobody has to wait for us to notice him */
			target_idle();
			r = http_wait(t->pool, wait < 0 ? 200 : Min(wait, 200), PG_WAIT_EXTENSION);
			if (r & HTTP_WAIT_HOST)
				t->came_back = true;
			if (r & HTTP_WAIT_LATCH)
			{
				/* whoever else it was set for hears of it afterwards */
				t->latch_eaten = true;
				ResetLatch(MyLatch);
				CHECK_FOR_INTERRUPTS();
				if (ShutdownRequestPending)
				{
					going = false;
					break;
				}
			}
		}
	}
	PG_CATCH();
	{
		http_cancel(t->sync);
		if (t->latch_eaten)
			SetLatch(MyLatch);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (t->latch_eaten)
		SetLatch(MyLatch);
	return going;
}

static void
verdict_to_result(const Verdict *v, TargetResult *res)
{
	res->outcome = v->outcome;
	strlcpy(res->code, v->code, sizeof(res->code));
	res->message = v->message;
}

/*
 * Sends what was built in t->sync's body and judges the answer, which stays
 * in t->sync until the next call.  In the current memory context.  False: no
 * answer came within patience (ms, -1: no limit but the request's), and the
 * request is forgotten.
 */
bool
sync_send_patiently(CrateTarget *t, long patience, Answer *answer, TargetResult *res)
{
	Verdict		v;

	memset(res, 0, sizeof(*res));
	memset(answer, 0, sizeof(*answer));
	res->server_time = -1;
	t->sync->max_answer = MAX_QUERY_ANSWER;
	t->sync->close_after = false;
	t->sync_done = false;
	http_start(t->sync);
	if (!sync_wait(t, true, patience))
	{
		http_cancel(t->sync);
		target_result_error(res, TARGET_UNKNOWN, "shutdown", "interrupted: the worker is shutting down");
		return true;
	}
	if (!t->sync_done)
	{
		http_cancel(t->sync);
		return false;
	}
	answer_judge(t->sync, answer, &v);
	/* for a question it is only that: one too large to be answered */
	if (t->sync->answer_cut && v.outcome == TARGET_UNKNOWN)
		v.outcome = TARGET_TOO_BIG;
	verdict_to_result(&v, res);
	if (res->outcome == TARGET_OK)
	{
		res->rowcount = answer->rowcount;
		res->server_time = answer->duration;
	}
	return true;
}

void
sync_send(CrateTarget *t, Answer *answer, TargetResult *res)
{
	(void) sync_send_patiently(t, -1, answer, res);
}

/* JSON text that is valid in the database's encoding, whatever that is */
static char *
result_cell(Slice s)
{
	StringInfoData buf;
	const char *end = s.start + s.len;

	if (GetDatabaseEncoding() == PG_UTF8)
		return pnstrdup(s.start, s.len);
	initStringInfo(&buf);
	for (const char *p = s.start; p < end; p++)
	{
		pg_wchar	c;

		if (!IS_HIGHBIT_SET(*p))
		{
			appendStringInfoChar(&buf, *p);
			continue;
		}
		c = utf8_to_unicode((const unsigned char *) p);
		p += pg_utf_mblen((const unsigned char *) p) - 1;
		if (c > 0xFFFF)
			appendStringInfo(&buf, "\\u%04x\\u%04x", 0xD800 + ((c - 0x10000) >> 10),
							 0xDC00 + ((c - 0x10000) & 0x3FF));
		else
			appendStringInfo(&buf, "\\u%04x", c);
	}
	return buf.data;
}

/* what answer has in cols and rows, into res, in the current memory context */
static void
result_fill(const Answer *answer, TargetResult *res)
{
	JsonIter	it;
	Slice		value;
	int			max = 64;

	if (answer->cols.start == NULL)
		return;
	json_iter_start(&it, answer->cols);
	while (json_iter_next(&it, NULL, &value))
		res->ncols++;
	if (res->ncols == 0)
		return;
	res->colnames = palloc(sizeof(char *) * res->ncols);
	json_iter_start(&it, answer->cols);
	for (int i = 0; json_iter_next(&it, NULL, &value); i++)
	{
		int			len;
		char	   *name = slice_text(value, &len);

		res->colnames[i] = target_clean_text(name, len);
	}

	res->cells = palloc(sizeof(char **) * max);
	json_iter_start(&it, answer->rows);
	while (json_iter_next(&it, NULL, &value))
	{
		JsonIter	cells;
		Slice		cell;
		char	  **row = palloc0(sizeof(char *) * res->ncols);
		int			n = 0;

		if (res->nrows == max)
		{
			max *= 2;
			res->cells = repalloc_huge(res->cells, sizeof(char **) * max);
		}
		json_iter_start(&cells, value);
		while (json_iter_next(&cells, NULL, &cell) && n < res->ncols)
			row[n++] = result_cell(cell);
		while (n < res->ncols)
			row[n++] = pstrdup("null");
		if (cells.lex != NULL)
			pfree(cells.lex);
		res->cells[res->nrows++] = row;
	}
}

/* a call's garbage goes to a context of its own; its result to the caller's */
MemoryContext
sync_enter(CrateTarget *t)
{
	if (t->sync->busy)
		http_cancel(t->sync);
	MemoryContextReset(t->sync_work);
	return MemoryContextSwitchTo(t->sync_work);
}

void
sync_leave(CrateTarget *t, MemoryContext caller, TargetResult *res)
{
	MemoryContextSwitchTo(caller);
	if (res->message != NULL)
		res->message = pstrdup(res->message);
	http_trim(t->sync);
}

/* args_json: a JSON array, or NULL */
static void
build_plain(StringInfo buf, const char *sql, const char *args_json)
{
	resetStringInfo(buf);
	raw(buf, "{\"stmt\":");
	types_json_string(buf, sql, strlen(sql));
	if (args_json != NULL)
		appendStringInfo(buf, ",\"args\":%s", args_json);
	appendStringInfoChar(buf, '}');
}

void
sync_query(CrateTarget *t, const char *sql, const char *args_json, TargetResult *res)
{
	Answer		answer;

	build_plain(&t->sync->body, sql, args_json);
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		result_fill(&answer, res);
}

/* the same for a question of ours, whose answer has ncols columns or is none */
void
sync_rows(CrateTarget *t, const char *sql, const char *args_json, int ncols, TargetResult *res)
{
	sync_query(t, sql, args_json, res);
	if (res->outcome == TARGET_OK && res->nrows > 0 && res->ncols != ncols)
	{
		res->nrows = 0;
		target_result_error(res, TARGET_UNKNOWN, "answer",
							"the target's answer does not fit the question");
	}
}

void
crate_statement(Target *target, const char *sql, const char *args_json, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	Answer		answer;

	build_plain(&t->sync->body, sql, args_json);
	sync_send(t, &answer, res);
	MemoryContextSwitchTo(caller);
	if (res->outcome == TARGET_OK)
		result_fill(&answer, res);
	sync_leave(t, caller, res);
}

/*
 * Asks the cluster for its hosts, each minute.  That it may not be asked, or
 * names none that can be reached, is no trouble: there are those of the setting.
 */
void
sync_learn_hosts(CrateTarget *t)
{
	TimestampTz now = GetCurrentTimestamp();
	TargetResult res;
	char	  **names;

	if (!cs_target_discovery)
	{
		if (t->hosts_learnt != 0)
			http_learn_hosts(t->pool, NULL, 0);
		t->hosts_learnt = 0;
		return;
	}
	if (t->hosts_learnt != 0 && now < t->hosts_learnt + DISCOVERY_INTERVAL * INT64CONST(1000))
		return;
	t->hosts_learnt = now;
	sync_rows(t, "SELECT rest_url FROM sys.nodes", NULL, 1, &res);
	if (res.outcome != TARGET_OK || res.nrows == 0)
		return;
	names = palloc(sizeof(char *) * res.nrows);
	for (int i = 0; i < res.nrows; i++)
		names[i] = sync_cell_text(res.cells[i][0]);
	http_learn_hosts(t->pool, names, res.nrows);
}

/* what a cell of a result says; NULL for null */
char *
sync_cell_text(const char *cell)
{
	Slice		s = {cell, strlen(cell)};

	return strcmp(cell, "null") == 0 ? NULL : slice_text(s, NULL);
}

char *
table_args(const char *schema, const char *name)
{
	StringInfoData args;

	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	types_json_string(&args, schema, strlen(schema));
	appendStringInfoChar(&args, ',');
	types_json_string(&args, name, strlen(name));
	appendStringInfoChar(&args, ']');
	return args.data;
}
