/*-------------------------------------------------------------------------
 *
 * fence.c
 *		Fences: nothing older than now can still arrive.
 *
 *-------------------------------------------------------------------------
 */
#include "target/crate/crate.h"

#include "base/settings.h"
#include "base/text.h"
#include "utils/timestamp.h"

#define FIRST_POLL			10		/* ms between looks at sys.jobs, doubling */
#define LAST_POLL			250
#define FENCE_WAIT			500		/* ms that older statements are waited for */

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

void
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

void
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

void
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

void
crate_read_fence(Target *target, const TargetTable *table, int lane, int64 *epoch,
				 TargetResult *res)
{
	CrateTarget *t = (CrateTarget *) target;
	MemoryContext caller = sync_enter(t);

	sync_read_fence(t, table, lane, epoch, res);
	sync_leave(t, caller, res);
}
