/*-------------------------------------------------------------------------
 *
 * crate.c
 *		CrateDB as a target: requests sent, waited for, and followed up.
 *
 * Every write is one INSERT ... (SELECT ... FROM UNNEST ...) guarded by the
 * fence, or a DELETE of one version of a row: either may arrive late and do
 * no harm.  A write's text begins with a comment that names table, lane and
 * epoch, so that raise_fence can see in sys.jobs when the last one that has
 * passed an older fence is over.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/settings.h"
#include "base/text.h"
#include "mb/pg_wchar.h"
#include "mirror/types.h"
#include "nodes/pg_list.h"
#include "portability/instr_time.h"
#include "postmaster/interrupt.h"
#include "shared/wake.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#define MAX_CONNECTIONS		32
#define MIN_VERSION			40200	/* INSERT ... RETURNING */
#define DISCOVERY_INTERVAL	60000	/* ms between two questions for the cluster's hosts */
#define MAX_WRITE_ANSWER	(16 * 1024 * 1024)
#define MAX_QUERY_ANSWER	(64 * 1024 * 1024)
#define FIRST_POLL			10		/* ms between looks at sys.jobs, doubling */
#define LAST_POLL			250
#define FENCE_WAIT			500		/* ms that older statements are waited for */
#define REFRESH_PATIENCE	2000	/* ms until the table's health is looked at */
#define DELETE_LIFE			10000	/* ms a delete is good for, unless the target is slower */
#define MAX_BODY			(100 * 1024 * 1024) /* http.max_content_length */

/* where a write is; each step is one round trip */
typedef enum Step
{
	STEP_FAIL_FAST,				/* SET insert_select_fail_fast */
	STEP_UPSERT,
	STEP_COLUMNS,				/* did it add members to a dynamic object? */
	STEP_REFRESH,				/* before lookups by composite key */
	STEP_LOOKUP,				/* of a chunk of keys */
	STEP_DELETE,				/* of the versions found */
	STEP_FENCE,					/* is it still ours? */
	STEP_PROBE					/* does the table take anything at all? */
} Step;

typedef struct Slot
{
	CrateTarget *target;
	HttpConn   *conn;
	TargetRequest *req;			/* NULL: free */
	Step		step;
	instr_time	start;
	TimestampTz sent_at;		/* of this step */
	int			live;			/* rows or keys to write */
	int64		nwritten;
	int64		columns;		/* of the table when it was sent; 0: not known */
	int			chunk_lo;		/* rows looked up now */
	int			chunk_hi;
	int			chunk_live;
	int			chunk_found;
} Slot;

/* how many columns a table has there, members of objects counted */
typedef struct ColumnCount
{
	char	   *qualified;
	int64		n;
} ColumnCount;

struct CrateTarget
{
	Target		base;
	MemoryContext cxt;
	MemoryContext work;			/* of one step of a write */
	MemoryContext sync_work;	/* of one synchronous call */
	HttpPool   *pool;
	Slot	   *slots[2 * MAX_CONNECTIONS + 1];
	int			nslots;
	int			nbusy;
	int			nfinished;		/* requests done since poll last returned */
	TimestampTz hosts_learnt;	/* when they were last asked for; 0: not */
	bool		came_back;		/* a host did, since crate_came_back() was asked */
	List	   *columns;		/* of ColumnCount *, in cxt */
	int			longest_life;	/* of a delete, that this worker has sent */
	HttpConn   *sync;			/* synchronous calls have a connection of their own */
	bool		sync_done;
	bool		latch_eaten;	/* reset by us: to be set again */
};

static void slot_send(Slot *slot, Step step);

/* ---------------------------------------------------------------------
 * Writes: one step after the other
 * ------------------------------------------------------------------- */

/* a target that takes long to look the rows up may take long to begin with the delete as well */
static int
delete_life(Slot *slot)
{
	int			life = Min(DELETE_LIFE, cs_request_timeout);

	if (GetCurrentTimestamp() > TimestampTzPlusMilliseconds(slot->sent_at, life / 2))
		life = cs_request_timeout;
	slot->target->longest_life = Max(slot->target->longest_life, life);
	return life;
}

typedef enum Found
{
	FOUND_NONE,
	FOUND_SOME,
	FOUND_RAISED,				/* another writer has raised the fence */
	FOUND_NONSENSE
} Found;

/*
 * Deletes the versions that a lookup has found, and says in *found how many
 * those are.  The fence was looked at before the rows were: what another
 * writer does after he has raised it is a later version, and stays.  In a
 * table that was made anew the same version may come again: so a delete is
 * good for some seconds only, by the target's clock.
 */
static Found
build_delete(Slot *slot, const Answer *answer, int *found)
{
	const TargetRequest *req = slot->req;
	const TargetTable *table = req->table;
	StringInfo	buf = &slot->conn->body;
	int		   *live = palloc(sizeof(int) * slot->chunk_live);
	int			nlive = 0;
	JsonIter	rows;
	Slice		row;
	int64		epoch;
	int64		now = 0;

	*found = 0;
	if (answer->rows.start == NULL)
		return FOUND_NONSENSE;
	json_iter_start(&rows, answer->rows);
	if (!json_iter_next(&rows, NULL, &row))
		return rows.failed ? FOUND_NONSENSE : FOUND_NONE;
	{
		Slice		cell[5];
		JsonIter	cells;
		int			n = 0;

		json_iter_start(&cells, row);
		while (n < 5 && json_iter_next(&cells, NULL, &cell[n]))
			n++;
		if (n != 5 || !slice_int(cell[4], &now))
			return FOUND_NONSENSE;
		if (!slice_int(cell[3], &epoch) || epoch != req->epoch)
			return FOUND_RAISED;
	}

	for (int i = slot->chunk_lo; i < slot->chunk_hi; i++)
	{
		if (req->rows->dead == NULL || !req->rows->dead[i])
			live[nlive++] = i;
	}

	begin_statement(buf);
	append_marker(buf, req);
	append_delete_of_key(buf, table);
	appendStringInfo(buf, "_seq_no = ? AND _primary_term = ? AND CURRENT_TIMESTAMP < "
					 INT64_FORMAT "::TIMESTAMP WITH TIME ZONE\",\"bulk_args\":[",
					 now + delete_life(slot));

	json_iter_start(&rows, answer->rows);
	while (json_iter_next(&rows, NULL, &row))
	{
		JsonIter	cells;
		Slice		cell[3];
		int			n = 0;
		int64		i;

		json_iter_start(&cells, row);
		while (n < 3 && json_iter_next(&cells, NULL, &cell[n]))
			n++;
		if (n != 3 || cells.failed)
			return FOUND_NONSENSE;
		if (++*found > slot->chunk_live)
			return FOUND_NONSENSE;
		appendStringInfoString(buf, *found == 1 ? "[" : ",[");
		if (table->nkeys == 1)
			append_answer_cell(buf, &table->cols[table->keys[0]], cell[0]);
		else
		{
			if (!slice_int(cell[0], &i) || i < 0 || i >= nlive)
				return FOUND_NONSENSE;
			for (int k = 0; k < table->nkeys; k++)
			{
				int			len;
				const char *key = rowset_get(req->rows, live[i],
											 key_place(table, req->rows, k), &len);

				if (k > 0)
					appendStringInfoChar(buf, ',');
				appendBinaryStringInfo(buf, key, len);
			}
		}
		appendStringInfo(buf, ",%.*s,%.*s]", cell[1].len, cell[1].start, cell[2].len, cell[2].start);
	}
	raw(buf, "]}");
	return rows.failed ? FOUND_NONSENSE : FOUND_SOME;
}

static void
slot_finish(Slot *slot, const Verdict *v)
{
	TargetRequest *req = slot->req;
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, slot->start);
	req->elapsed = INSTR_TIME_GET_MILLISEC(now);
	req->outcome = v->outcome;
	req->over = v->over;
	req->nwritten = slot->nwritten;
	strlcpy(req->code, v->code, sizeof(req->code));
	free(req->message);
	req->message = v->message ? strdup(v->message) : NULL;
	req->impl = NULL;
	req->done = true;
	slot->req = NULL;
	slot->target->nbusy--;
	slot->target->nfinished++;
	http_trim(slot->conn);
}

static void
slot_finish_with(Slot *slot, TargetOutcome outcome, const char *code, const char *message)
{
	Verdict		v;

	v.outcome = outcome;
	/* what was asked last was answered, or was a question */
	v.over = outcome != TARGET_UNKNOWN || (slot->step != STEP_UPSERT && slot->step != STEP_DELETE);
	strlcpy(v.code, code, sizeof(v.code));
	v.message = message ? pstrdup(message) : NULL;
	slot_finish(slot, &v);
}

/* the next chunk of keys to look up, or the end of the request */
static void
slot_next_chunk(Slot *slot)
{
	TargetRequest *req = slot->req;

	slot->chunk_lo = slot->chunk_hi;
	slot->chunk_hi = lookup_chunk(req->table, req->rows, slot->chunk_lo, req->hi);
	slot->chunk_live = rowset_live(req->rows, slot->chunk_lo, slot->chunk_hi);
	if (slot->chunk_live > 0)
		slot_send(slot, STEP_LOOKUP);
	else if (req->kind == TARGET_UPSERT)
		slot_send(slot, STEP_FENCE);	/* what is there must not hide a raised fence */
	else
		slot_finish_with(slot, TARGET_OK, "", NULL);
}

/* key by key: several columns need a refresh to be found */
static void
slot_begin_lookups(Slot *slot)
{
	slot->chunk_hi = slot->req->lo;
	if (slot->req->table->nkeys > 1)
		slot_send(slot, STEP_REFRESH);
	else
		slot_next_chunk(slot);
}

/* STEP_DELETE's body is there already: it was made from the lookup's answer */
static void
slot_send(Slot *slot, Step step)
{
	TargetRequest *req = slot->req;
	HttpConn   *conn = slot->conn;

	slot->step = step;
	conn->max_answer = step == STEP_LOOKUP ? MAX_QUERY_ANSWER : MAX_WRITE_ANSWER;
	conn->close_after = false;
	switch (step)
	{
		case STEP_FAIL_FAST:
			begin_statement(&conn->body);
			raw(&conn->body, "SET insert_select_fail_fast = true\"}");
			break;
		case STEP_UPSERT:
			build_upsert(&conn->body, req);
			/* what was set goes away with the session, for sure */
			conn->close_after = req->explain;
			break;
		case STEP_COLUMNS:
			build_count_columns(&conn->body, req->table);
			break;
		case STEP_REFRESH:
			build_refresh(&conn->body, req->table);
			break;
		case STEP_LOOKUP:
			build_lookup(&conn->body, req->table, req->rows, slot->chunk_lo, slot->chunk_hi,
						 req, what_version, NULL);
			break;
		case STEP_DELETE:
			break;
		case STEP_FENCE:
			build_read_fence(&conn->body, req->table, req->lane);
			break;
		case STEP_PROBE:
			build_probe(&conn->body, req);
			break;
	}
	req->nrequests++;
	slot->sent_at = GetCurrentTimestamp();
	http_start(conn);
	conn->same_host = true;		/* until the request is over: its session lives there */
}

/* type_is() of any word in a type */
static bool
has_word(const char *type, const char *word)
{
	for (; *type; type++)
	{
		if (type_is(type, word))
			return true;
	}
	return false;
}

/*
 * Where an update brings a dynamic object its first value of a new member,
 * CrateDB (6.4.3) makes a column of it and forgets the member of other rows of the
 * same request, which it counts as written.  Sent again, they keep it.
 */
static bool
may_forget_members(const TargetTable *table)
{
	for (int i = 0; i < table->ncols; i++)
	{
		const char *type = table->cols[i].type;

		if (has_word(type, "OBJECT") && !has_word(type, "IGNORED") &&
			!has_word(type, "STRICT"))
			return true;
	}
	return false;
}

static ColumnCount *
column_count(CrateTarget *t, const TargetTable *table)
{
	MemoryContext oldcxt;
	ColumnCount *count;
	ListCell   *lc;

	foreach(lc, t->columns)
	{
		count = lfirst(lc);
		if (strcmp(count->qualified, table->qualified) == 0)
			return count;
	}
	oldcxt = MemoryContextSwitchTo(t->cxt);
	count = palloc0(sizeof(ColumnCount));
	count->qualified = pstrdup(table->qualified);
	t->columns = lappend(t->columns, count);
	MemoryContextSwitchTo(oldcxt);
	return count;
}

/* an upsert wrote fewer rows than were sent */
static void
slot_fell_short(Slot *slot)
{
	TargetRequest *req = slot->req;

	if (req->table->nkeys == req->table->ncols)
	{
		/* DO NOTHING does not count rows that were there: look */
		slot->nwritten = 0;
		slot_begin_lookups(slot);
	}
	else if (req->explain)
		slot_send(slot, STEP_FENCE);
	else
		slot_finish_with(slot, TARGET_OK, "", NULL);
}

static void
slot_advance(Slot *slot)
{
	TargetRequest *req = slot->req;
	Answer		answer;
	Verdict		v;
	int			n;
	int64		epoch;
	int64		columns;

	req->bytes_sent += slot->conn->bytes_sent;
	answer_judge(slot->conn, &answer, &v);

	if (slot->step == STEP_DELETE && v.outcome != TARGET_OK && slot->chunk_found == 1 &&
		(strcmp(v.code, "40411") == 0 || strcmp(v.code, "4092") == 0))
	{
		/* before 5.10.10 a bulk of one row failed as a whole */
		slot->nwritten += slot->chunk_live - 1 + (strcmp(v.code, "40411") == 0 ? 1 : 0);
		slot_next_chunk(slot);
		return;
	}
	if (v.outcome != TARGET_OK &&
		!((slot->step == STEP_FAIL_FAST || slot->step == STEP_PROBE) &&
		  (v.outcome == TARGET_REFUSED_ROWS || v.outcome == TARGET_FAILED)))
	{
		/* a question that was lost has written nothing, now or later */
		if (slot->step != STEP_UPSERT && slot->step != STEP_DELETE)
		{
			v.over = true;
			if (v.outcome == TARGET_UNKNOWN)
				v.outcome = TARGET_UNREACHABLE;
		}
		slot_finish(slot, &v);
		return;
	}

	switch (slot->step)
	{
		case STEP_FAIL_FAST:
			slot_send(slot, STEP_UPSERT);
			return;

		case STEP_UPSERT:
			if (!answer.has_rowcount || answer.rowcount < 0 || answer.rowcount > slot->live)
				break;
			slot->nwritten = answer.rowcount;
			if (slot->nwritten < slot->live)
				slot_fell_short(slot);
			else if (may_forget_members(req->table))
				slot_send(slot, STEP_COLUMNS);
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_COLUMNS:
			if (!answer_int(&answer, &columns))
				break;
			column_count(slot->target, req->table)->n = columns;
			if (columns != slot->columns)
			{
				slot->columns = columns;
				slot_send(slot, STEP_UPSERT);
			}
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_REFRESH:
			slot_next_chunk(slot);
			return;

		case STEP_LOOKUP:
			if (req->kind == TARGET_UPSERT)
			{
				slot->nwritten += Min(answer_nrows(&answer), slot->chunk_live);
				slot_next_chunk(slot);
				return;
			}
			switch (build_delete(slot, &answer, &slot->chunk_found))
			{
				case FOUND_SOME:
					slot_send(slot, STEP_DELETE);
					return;
				case FOUND_NONE:
					slot->nwritten += slot->chunk_live;
					slot_next_chunk(slot);
					return;
				case FOUND_RAISED:
					slot_finish_with(slot, TARGET_UNKNOWN, "fence", "another writer has raised the fence");
					return;
				case FOUND_NONSENSE:
					break;
			}
			break;

		case STEP_DELETE:
			n = count_deleted(&answer, slot->chunk_found);
			if (n < 0)
				break;
			slot->nwritten += slot->chunk_live - slot->chunk_found + n;
			slot_next_chunk(slot);
			return;

		case STEP_FENCE:
			if (!answer_int(&answer, &epoch) || epoch != req->epoch)
			{
				slot->nwritten = 0;
				slot_finish_with(slot, TARGET_OK, "", NULL);
			}
			else if (req->explain && slot->nwritten < slot->live)
				slot_send(slot, STEP_PROBE);
			else
				slot_finish_with(slot, TARGET_OK, "", NULL);
			return;

		case STEP_PROBE:
			slot_finish_with(slot, TARGET_REFUSED_ROWS, "dropped",
							 "the target dropped the row without saying why: one of its values may be none of its column's type");
			return;
	}
	slot_finish_with(slot, slot->step == STEP_UPSERT || slot->step == STEP_DELETE ?
					 TARGET_UNKNOWN : TARGET_UNREACHABLE,
					 "answer", "the target's answer does not fit the request");
}

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

static bool
crate_submit(Target *target, TargetRequest *req)
{
	CrateTarget *t = (CrateTarget *) target;
	Slot	   *slot = NULL;
	MemoryContext oldcxt;

	if (t->nbusy >= Min(Min(cs_connections, MAX_CONNECTIONS) + req->beside, lengthof(t->slots)))
		return false;
	for (int i = 0; i < t->nslots && slot == NULL; i++)
	{
		if (t->slots[i]->req == NULL)
			slot = t->slots[i];
	}
	if (slot == NULL)
	{
		slot = MemoryContextAllocZero(t->cxt, sizeof(Slot));
		slot->target = t;
		slot->conn = http_conn(t->pool);
		slot->conn->arg = slot;
		t->slots[t->nslots++] = slot;
	}

	target_request_reset(req);
	slot->conn->same_host = false;
	slot->live = rowset_live(req->rows, req->lo, req->hi);
	slot->nwritten = 0;
	slot->columns = may_forget_members(req->table) ? column_count(t, req->table)->n : 0;
	slot->chunk_found = 0;
	INSTR_TIME_SET_CURRENT(slot->start);
	MemoryContextReset(t->work);
	oldcxt = MemoryContextSwitchTo(t->work);
	slot->req = req;
	req->impl = slot;
	t->nbusy++;

	if (slot->live == 0)
		slot_finish_with(slot, TARGET_OK, "", NULL);
	else if (req->kind == TARGET_DELETE)
		slot_begin_lookups(slot);
	else if (cells_size(req->rows, req->lo, req->hi) > MAX_BODY)
		slot_finish_with(slot, TARGET_TOO_BIG, "", "the request would be larger than 100 MB");
	else
		slot_send(slot, req->explain ? STEP_FAIL_FAST : STEP_UPSERT);
	MemoryContextSwitchTo(oldcxt);
	return true;
}

static void
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

static bool
crate_came_back(Target *target)
{
	CrateTarget *t = (CrateTarget *) target;
	bool		came_back = t->came_back;

	t->came_back = false;
	return came_back;
}

/* see build_delete(); of a former worker's it is taken that the target was no slower */
static int
crate_delete_life(Target *target)
{
	return Max(((CrateTarget *) target)->longest_life, Min(DELETE_LIFE, cs_request_timeout));
}

static void
crate_abandon(Target *target, TargetRequest *req)
{
	CrateTarget *t = (CrateTarget *) target;
	Slot	   *slot = req->impl;

	if (slot == NULL || slot->req != req)
		return;
	http_cancel(slot->conn);
	http_trim(slot->conn);
	slot->req = NULL;
	req->impl = NULL;
	t->nbusy--;
}

/* ---------------------------------------------------------------------
 * Synchronous calls
 * ------------------------------------------------------------------- */

/*
 * Waits for the answer to the synchronous request, if for_answer, but no longer
 * than ms milliseconds (-1: as long as it takes); drives the writes
 * meanwhile.  False: the server shuts down.
 */
static bool
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
			worker_idle();
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
static bool
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

static void
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

static void
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

/* "6.4.3..." as 60403; 0 if it is none */
static int
version_number(const char *text)
{
	int			major;
	int			minor;
	int			patch = 0;

	if (sscanf(text, "%d.%d.%d", &major, &minor, &patch) < 2)
		return 0;
	if (major < 0 || major > 999 || minor < 0 || minor > 99 || patch < 0)
		return 0;
	return major * 10000 + minor * 100 + Min(patch, 99);
}

static void
crate_check(Target *target, TargetInfo *info, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	char	   *text = NULL;

	memset(info, 0, sizeof(*info));
	/* asks for no right at all, unlike the sys tables */
	sync_query(t, "SELECT version()", NULL, res);
	if (res->outcome == TARGET_OK && res->nrows == 1 && res->ncols == 1)
		text = sync_cell_text(res->cells[0][0]);

	if (text != NULL && strncmp(text, "CrateDB ", 8) == 0)
	{
		strlcpy(info->product, "CrateDB", sizeof(info->product));
		strlcpy(info->version, target_clean_text(text + 8, strcspn(text + 8, " ")),
				sizeof(info->version));
		info->version_num = version_number(info->version);
		if (info->version_num < MIN_VERSION)
			target_result_error(res, TARGET_REFUSED_ALL, "version",
								"CrateDB %s is too old: 4.2 or later is needed", info->version);
		else
			sync_learn_hosts(t);
	}
	else if (res->outcome == TARGET_OK)
		target_result_error(res, TARGET_REFUSED_ALL, "product", "the target is not a CrateDB");
	else if (res->outcome == TARGET_UNKNOWN)
	{
		/* it was a question: it has changed nothing, whatever became of it */
		if (t->sync->fate == HTTP_ANSWERED && strcmp(res->code, "shutdown") != 0)
		{
			res->outcome = t->sync->status >= 500 ? TARGET_UNREACHABLE : TARGET_REFUSED_ALL;
			res->message = psprintf("the target is not a CrateDB, or something stands before it: %s",
									res->message);
		}
		else
			res->outcome = TARGET_UNREACHABLE;
	}
	else if (res->outcome == TARGET_REFUSED_ROWS || res->outcome == TARGET_REFUSED_TABLE ||
			 res->outcome == TARGET_TOO_BIG)
		res->outcome = TARGET_REFUSED_ALL;
	else if (res->outcome == TARGET_FAILED)
		res->outcome = TARGET_UNREACHABLE;
	res->ncols = res->nrows = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

/* ---------------------------------------------------------------------
 * The fence
 * ------------------------------------------------------------------- */

static void
create_fence_table(CrateTarget *t, TargetResult *res)
{
	sync_query(t, "CREATE TABLE IF NOT EXISTS " FENCE_TABLE
			   " (id TEXT PRIMARY KEY, epoch BIGINT) CLUSTERED INTO 1 SHARDS"
			   " WITH (number_of_replicas = '0-1')", NULL, res);
}

static inline bool
is_unknown_table(const TargetResult *res)
{
	return strcmp(res->code, "4041") == 0 || strcmp(res->code, "4045") == 0;
}

/*
 * How many statements marked with an older epoch of that table and lane are
 * running; -1: res says why that is not known.  Our own query has to show up,
 * or what does not show up proves nothing.
 */
static int
count_older_jobs(CrateTarget *t, const TargetTable *table, int lane, int64 epoch, TargetResult *res)
{
	StringInfoData id;
	StringInfoData args;
	bool		seen_self = false;
	int			n = 0;

	initStringInfo(&id);
	append_marker_id(&id, table, lane);
	initStringInfo(&args);
	appendStringInfo(&args, "[\"" MARKER "%% %s%%\",\"" POLL_MARKER "%%\"]", id.data);
	sync_rows(t, POLL_MARKER "SELECT substr(stmt, 1, 160) FROM sys.jobs WHERE stmt LIKE ? OR stmt LIKE ?",
			  args.data, 1, res);
	if (res->outcome != TARGET_OK)
	{
		if (is_unknown_table(res))
			target_result_error(res, TARGET_REFUSED_TABLE, res->code,
								"cannot read sys.jobs in the target: its user needs GRANT DQL ON SCHEMA sys");
		return -1;
	}
	for (int i = 0; i < res->nrows; i++)
	{
		char	   *text = sync_cell_text(res->cells[i][0]);
		char	   *found;
		int64		other;

		if (text == NULL)
			continue;
		if (strncmp(text, POLL_MARKER, strlen(POLL_MARKER)) == 0)
			seen_self = true;
		else if ((found = strstr(text, id.data)) != NULL)
		{
			/* no number: not a marker of ours, but waiting for it is safe */
			if (sscanf(found + id.len, INT64_FORMAT, &other) != 1 || other < epoch)
				n++;
		}
	}
	if (!seen_self)
	{
		target_result_error(res, TARGET_REFUSED_TABLE, "stats",
							"the target does not show running statements in sys.jobs: SET GLOBAL stats.enabled = true");
		return -1;
	}
	return n;
}

static void
crate_raise_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				  TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	TimestampTz give_up = GetCurrentTimestamp() +
		Min(cs_request_timeout, FENCE_WAIT) * INT64CONST(1000);
	StringInfoData args;
	char	   *text;
	long		pause = FIRST_POLL;

	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	append_fence_id(&args, table, lane);
	appendStringInfoChar(&args, ']');
	for (int attempt = 0; attempt < 2; attempt++)
	{
		sync_rows(t, "INSERT INTO " FENCE_TABLE " (id, epoch) VALUES (?, CURRENT_TIMESTAMP::BIGINT)"
				  " ON CONFLICT (id) DO UPDATE SET epoch = greatest(epoch + 1, excluded.epoch) RETURNING epoch",
				  args.data, 1, res);
		if (attempt > 0 || !is_unknown_table(res))
			break;
		create_fence_table(t, res);
		if (res->outcome == TARGET_REFUSED_TABLE)
			target_result_error(res, TARGET_REFUSED_TABLE, res->code,
								"cannot make " FENCE_TABLE " in the target: its user needs GRANT DQL, DML, DDL ON SCHEMA " CS_SCHEMA " (%s)",
								res->message);
		if (res->outcome != TARGET_OK)
			break;
	}
	if (res->outcome == TARGET_OK)
	{
		*epoch = 0;
		if (res->nrows == 1 && res->ncols == 1 && (text = sync_cell_text(res->cells[0][0])) != NULL)
			*epoch = strtoll(text, NULL, 10);
		if (*epoch <= 0)
			target_result_error(res, TARGET_REFUSED_TABLE, "epoch",
								"the fence table " FENCE_TABLE " in the target does not work as one");
	}
	while (res->outcome == TARGET_OK)
	{
		int			n = count_older_jobs(t, table, lane, *epoch, res);

		if (n == 0)
			break;
		if (n < 0)
			continue;			/* res says so */
		if (GetCurrentTimestamp() >= give_up)
			target_result_error(res, TARGET_BUSY, "fence",
								"%d older statement(s) on %s still run at the target", n, table->qualified);
		else if (!sync_wait(t, false, pause))
			target_result_error(res, TARGET_UNKNOWN, "shutdown", "interrupted: the worker is shutting down");
		pause = Min(pause * 2, LAST_POLL);
	}
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

static void
crate_count_lanes(Target *target, const TargetTable *table, int *n, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	StringInfoData args;

	*n = 0;
	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	append_fence_prefix(&args, table, false);
	appendStringInfoChar(&args, ',');
	append_fence_prefix(&args, table, true);
	appendStringInfoChar(&args, ']');
	sync_query(t, "REFRESH TABLE " FENCE_TABLE, NULL, res);
	if (res->outcome == TARGET_OK)
		sync_rows(t, "SELECT id FROM " FENCE_TABLE " WHERE id >= ? AND id < ?", args.data, 1, res);
	if (is_unknown_table(res))
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
	for (int i = 0; i < res->nrows; i++)
	{
		char	   *id = sync_cell_text(res->cells[i][0]);
		char	   *lane = id ? strrchr(id, '#') : NULL;

		if (lane != NULL)
			*n = Max(*n, atoi(lane + 1) + 1);
	}
	res->nrows = res->ncols = 0;
	res->cells = NULL;
	res->colnames = NULL;
	sync_leave(t, caller, res);
}

static void
crate_drop_fence(Target *target, const TargetTable *table, int lane, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	StringInfoData args;

	initStringInfo(&args);
	appendStringInfoChar(&args, '[');
	if (lane >= 0)
	{
		append_fence_id(&args, table, lane);
		appendStringInfoChar(&args, ']');
		sync_query(t, "DELETE FROM " FENCE_TABLE " WHERE id = ?", args.data, res);
	}
	else
	{
		append_fence_prefix(&args, table, false);
		appendStringInfoChar(&args, ',');
		append_fence_prefix(&args, table, true);
		appendStringInfoChar(&args, ']');
		/* a search: it misses what is not refreshed */
		sync_query(t, "REFRESH TABLE " FENCE_TABLE, NULL, res);
		if (res->outcome == TARGET_OK)
			sync_query(t, "DELETE FROM " FENCE_TABLE " WHERE id >= ? AND id < ?", args.data, res);
	}
	if (is_unknown_table(res))
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
	sync_leave(t, caller, res);
}

/* no fence: epoch 0 */
void
sync_read_fence(CrateTarget *t, const TargetTable *table, int lane, int64 *epoch, TargetResult *res)
{
	Answer		answer;

	*epoch = 0;
	build_read_fence(&t->sync->body, table, lane);
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		answer_int(&answer, epoch);
	else if (is_unknown_table(res))
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
}

static void
crate_read_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				 TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_read_fence(t, table, lane, epoch, res);
	sync_leave(t, caller, res);
}

/* ---------------------------------------------------------------------
 * Reading rows
 * ------------------------------------------------------------------- */

/*
 * A table that has lost shards keeps whoever writes or refreshes it waiting
 * for a minute; this tells at once.  Who may not see it is told that all is
 * well.
 */
void
sync_reachable(CrateTarget *t, const TargetTable *table, TargetResult *res)
{
	char	   *missing = NULL;

	sync_rows(t, "SELECT sum(missing_shards) FROM sys.health WHERE table_schema = ? AND table_name = ?",
			  table_args(table->schema, table->name), 1, res);
	if (res->outcome == TARGET_OK && res->nrows == 1)
		missing = sync_cell_text(res->cells[0][0]);
	if (missing != NULL && atoi(missing) > 0)
		target_result_error(res, TARGET_REFUSED_TABLE, "shards",
							"not all shards of %s are available in the target", table->qualified);
	else if (res->outcome != TARGET_UNREACHABLE && res->outcome != TARGET_UNKNOWN)
	{
		memset(res, 0, sizeof(*res));
		res->server_time = -1;
	}
}

static void
crate_reachable(Target *target, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_reachable(t, table, res);
	sync_leave(t, caller, res);
}

static void
sync_refresh(CrateTarget *t, const TargetTable *table, TargetResult *res)
{
	Answer		answer;

	build_refresh(&t->sync->body, table);
	if (sync_send_patiently(t, REFRESH_PATIENCE, &answer, res))
		return;
	sync_reachable(t, table, res);
	if (res->outcome != TARGET_OK)
		return;
	build_refresh(&t->sync->body, table);
	sync_send(t, &answer, res);
}

/* appends an answer's rows to out, from each one's place skip on */
static void
append_rows(const Answer *answer, const TargetTable *table, const int *cols, int ncols,
			int skip, RowSet *out, TargetResult *res)
{
	JsonIter	rows;
	Slice		row;

	json_iter_start(&rows, answer->rows);
	while (json_iter_next(&rows, NULL, &row))
	{
		JsonIter	cells;
		Slice		cell;
		int			n = -skip;

		json_iter_start(&cells, row);
		while (json_iter_next(&cells, NULL, &cell))
		{
			if (n >= 0 && n < ncols)
				append_answer_cell(rowset_cell(out, n), &table->cols[cols[n]], cell);
			n++;
		}
		if (cells.lex != NULL)
			pfree(cells.lex);
		if (n != ncols)
		{
			rowset_undo_row(out);
			target_result_error(res, TARGET_UNKNOWN, "answer",
								"the target's answer does not fit the question");
			return;
		}
		rowset_end_row(out);
	}
}

/* these can be sorted but not compared, nor cast to TEXT: format() does that */
static inline bool
pages_as_text(const TargetColumn *col)
{
	return type_is(col->type, "UUID") || type_is(col->type, "BIT");
}

static void
append_page_key(StringInfo buf, const TargetTable *table, int k)
{
	bool		as_text = pages_as_text(&table->cols[table->keys[k]]);

	if (as_text)
		raw(buf, "format('%s',");
	sql_column(buf, table, table->keys[k]);
	if (as_text)
		raw(buf, ")");
}

static void
append_page_arg(StringInfo buf, const TargetTable *table, int k)
{
	const TargetColumn *col = &table->cols[table->keys[k]];

	if (pages_as_text(col))
		raw(buf, "format('%s',");
	raw(buf, "?::");
	sql_text(buf, sent_type(col));
	if (pages_as_text(col))
		raw(buf, ")");
}

static void
crate_page(Target *target, const TargetTable *table, const int *cols, int ncols,
		   const RowSet *after, int limit, bool refresh, RowSet *out, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	StringInfo	buf = &t->sync->body;
	Answer		answer;

	if (refresh)
	{
		sync_refresh(t, table, res);
		if (res->outcome != TARGET_OK)
		{
			sync_leave(t, caller, res);
			return;
		}
	}

	begin_statement(buf);
	raw(buf, "SELECT ");
	for (int i = 0; i < ncols; i++)
	{
		if (i > 0)
			appendStringInfoChar(buf, ',');
		sql_column(buf, table, cols[i]);
	}
	raw(buf, " FROM ");
	sql_text(buf, table->qualified);
	if (after != NULL)
	{
		/* (a, b) > (x, y): a >= x AND (a > x OR (a = x AND b > y)) */
		raw(buf, " WHERE ");
		append_page_key(buf, table, 0);
		appendStringInfoString(buf, table->nkeys > 1 ? " >= " : " > ");
		append_page_arg(buf, table, 0);
		for (int last = 0; table->nkeys > 1 && last < table->nkeys; last++)
		{
			appendStringInfoString(buf, last == 0 ? " AND (" : " OR ");
			for (int k = 0; k <= last; k++)
			{
				appendStringInfoString(buf, k == 0 ? "(" : " AND ");
				append_page_key(buf, table, k);
				appendStringInfoString(buf, k == last ? " > " : " = ");
				append_page_arg(buf, table, k);
			}
			appendStringInfoString(buf, last == table->nkeys - 1 ? "))" : ")");
		}
	}
	raw(buf, " ORDER BY ");
	for (int k = 0; k < table->nkeys; k++)
	{
		if (k > 0)
			appendStringInfoChar(buf, ',');
		append_page_key(buf, table, k);
	}
	appendStringInfo(buf, " LIMIT %d\"", limit);
	if (after != NULL)
	{
		int			len;
		const char *cell;

		raw(buf, ",\"args\":[");
		cell = rowset_get(after, 0, 0, &len);
		appendBinaryStringInfo(buf, cell, len);
		for (int last = 0; table->nkeys > 1 && last < table->nkeys; last++)
		{
			for (int k = 0; k <= last; k++)
			{
				appendStringInfoChar(buf, ',');
				cell = rowset_get(after, 0, k, &len);
				appendBinaryStringInfo(buf, cell, len);
			}
		}
		raw(buf, "]");
	}
	raw(buf, "}");
	sync_send(t, &answer, res);
	if (res->outcome == TARGET_OK)
		append_rows(&answer, table, cols, ncols, 0, out, res);
	sync_leave(t, caller, res);
}

static void
crate_fetch(Target *target, const TargetTable *table, const int *cols, int ncols,
			const RowSet *keys, int lo, int hi, bool fresh, RowSet *out, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);
	ColumnList	list = {cols, ncols};
	Answer		answer;

	memset(res, 0, sizeof(*res));
	if (table->nkeys > 1 && fresh)
		sync_refresh(t, table, res);
	while (res->outcome == TARGET_OK && lo < hi)
	{
		int			end = fresh ? lookup_chunk(table, keys, lo, hi) : hi;

		if (rowset_live(keys, lo, end) > 0)
		{
			if (table->nkeys == 1 && !fresh)
				build_search(&t->sync->body, table, keys, lo, end, &list);
			else
				build_lookup(&t->sync->body, table, keys, lo, end, NULL, what_columns, &list);
			sync_send(t, &answer, res);
			if (res->outcome == TARGET_OK)
				append_rows(&answer, table, cols, ncols, table->nkeys > 1 ? 1 : 0, out, res);
		}
		lo = end;
	}
	sync_leave(t, caller, res);
}

static void
crate_refresh(Target *target, const TargetTable *table, TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_refresh(t, table, res);
	sync_leave(t, caller, res);
}

/* ---------------------------------------------------------------------
 * The target itself
 * ------------------------------------------------------------------- */

static Target *
crate_open(const char *conf)
{
	MemoryContext cxt = AllocSetContextCreate(TopMemoryContext, "crate_sync target",
											  ALLOCSET_DEFAULT_SIZES);
	CrateTarget *t;

	PG_TRY();
	{
		t = MemoryContextAllocZero(cxt, sizeof(CrateTarget));
		t->base.ops = &target_crate_ops;
		t->cxt = cxt;
		t->work = AllocSetContextCreate(cxt, "crate_sync write", ALLOCSET_DEFAULT_SIZES);
		t->sync_work = AllocSetContextCreate(cxt, "crate_sync call", ALLOCSET_DEFAULT_SIZES);
		t->pool = http_open(conf, cxt);
		t->sync = http_conn(t->pool);
		t->sync->same_host = true;
	}
	PG_CATCH();
	{
		MemoryContextDelete(cxt);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return &t->base;
}

static void
crate_close(Target *target)
{
	CrateTarget *t = (CrateTarget *) target;

	http_close(t->pool);
	MemoryContextDelete(t->cxt);
}

static void
crate_reconnect(Target *target)
{
	http_reconnect(((CrateTarget *) target)->pool);
}

const TargetOps target_crate_ops = {
	.name = "crate",
	.open = crate_open,
	.close = crate_close,
	.reconnect = crate_reconnect,
	.submit = crate_submit,
	.poll = crate_poll,
	.came_back = crate_came_back,
	.abandon = crate_abandon,
	.delete_life = crate_delete_life,
	.statement = crate_statement,
	.check = crate_check,
	.ensure_table = crate_ensure_table,
	.identify = crate_identify,
	.reachable = crate_reachable,
	.drop_table = crate_drop_table,
	.swap_table = crate_swap_table,
	.raise_fence = crate_raise_fence,
	.count_lanes = crate_count_lanes,
	.drop_fence = crate_drop_fence,
	.read_fence = crate_read_fence,
	.page = crate_page,
	.fetch = crate_fetch,
	.refresh = crate_refresh,
	.ddl = crate_ddl
};
