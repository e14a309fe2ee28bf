/*-------------------------------------------------------------------------
 *
 * writes.c
 *		Writes: one step after the other.
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
#include "mb/pg_wchar.h"
#include "portability/instr_time.h"
#include "utils/timestamp.h"

#define MAX_WRITE_ANSWER	(16 * 1024 * 1024)
#define DELETE_LIFE			10000	/* ms a delete is good for, unless the target is slower */
#define MAX_BODY			(100 * 1024 * 1024) /* http.max_content_length */

#define MAX_TERM			32766	/* bytes of a value that can be searched */

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

struct Slot
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
};

/* how many columns a table has there, members of objects counted */
typedef struct ColumnCount
{
	char	   *qualified;
	int64		n;
} ColumnCount;

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

/*
 * The target's words for a value that is too long to be searched have a number
 * for the column: which is it?  Palloc'd, or NULL.
 */
static char *
name_long_columns(const TargetRequest *req, const Verdict *v)
{
	StringInfoData buf;
	int			row = req->lo;

	if (v->outcome != TARGET_REFUSED_ROWS || v->message == NULL || req->kind != TARGET_UPSERT ||
		strstr(v->message, "immense term") == NULL || rowset_live(req->rows, req->lo, req->hi) != 1)
		return NULL;
	while (req->rows->dead != NULL && req->rows->dead[row])
		row++;
	initStringInfo(&buf);
	for (int i = 0; i < req->table->ncols; i++)
	{
		const char *name = req->table->cols[i].name;
		int			len;

		(void) rowset_get(req->rows, row, i, &len);
		if (len > MAX_TERM)
			appendStringInfo(&buf, "%s\"%s\"", buf.len > 0 ? ", " : "",
							 pg_server_to_any(name, strlen(name), PG_UTF8));
	}
	return buf.len > 0 ? psprintf("too long to be searched: column %s: %s", buf.data, v->message) : NULL;
}

static void
slot_finish(Slot *slot, const Verdict *v)
{
	TargetRequest *req = slot->req;
	char	   *named = name_long_columns(req, v);
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	INSTR_TIME_SUBTRACT(now, slot->start);
	req->elapsed = INSTR_TIME_GET_MILLISEC(now);
	req->outcome = v->outcome;
	req->over = v->over;
	req->nwritten = slot->nwritten;
	strlcpy(req->code, v->code, sizeof(req->code));
	free(req->message);
	req->message = named ? strdup(named) : v->message ? strdup(v->message) : NULL;
	req->impl = NULL;
	req->done = true;
	slot->req = NULL;
	slot->target->nbusy--;
	slot->target->nfinished++;
	http_trim(slot->conn);
}

static void slot_send(Slot *slot, Step step);

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

void
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

bool
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

/* see build_delete(); of a former worker's it is taken that the target was no slower */
int
crate_delete_life(Target *target)
{
	return Max(((CrateTarget *) target)->longest_life, Min(DELETE_LIFE, cs_request_timeout));
}

void
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
