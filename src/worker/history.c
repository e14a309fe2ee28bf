/*-------------------------------------------------------------------------
 *
 * history.c
 *		What the worker writes down and tells about itself, beside its work.
 *
 * Samples hold the counters as they are, not what was added: so none is lost
 * by a restart or by a minute that was missed.  A table that has done nothing
 * and waits for nothing leaves no sample.  Minutes become hours after a day.
 *
 *-------------------------------------------------------------------------
 */
#include "base/base.h"

#include "access/xact.h"
#include "base/settings.h"
#include "base/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "worker/history.h"

#define STATUS_INTERVAL	1000	/* ms */
#define STATUS_SHARE	20		/* at least so many times as long as a look takes, to the next */
#define PAYLOAD_BYTES	7900	/* of 8000 */

static TimestampTz next_status = 0;
static TimestampTz next_sample = 0;
static TimestampTz next_cleaning = 0;
static TimestampTz quiet_until = 0; /* an error was said */
static char last_state[64] = "";

static const char status_sql[] =
"SELECT s.state, CASE WHEN pg_catalog.octet_length(p.long) < $2 THEN p.long ELSE p.short END "
"FROM crate_sync.status s CROSS JOIN LATERAL (SELECT "
"pg_catalog.json_build_object('database', pg_catalog.current_database(), 'state', s.state, 'was', nullif($1, ''), 'ok', s.ok, "
"'time', pg_catalog.clock_timestamp(), 'message', s.message, 'hint', s.hint)::pg_catalog.text AS long, "
"pg_catalog.json_build_object('database', pg_catalog.current_database(), 'state', s.state, 'was', nullif($1, ''), 'ok', s.ok, "
"'time', pg_catalog.clock_timestamp(), 'message', pg_catalog.left(s.message, 300), 'hint', null)::pg_catalog.text AS short) p";

static const char sample_sql[] =
"INSERT INTO crate_sync.history_sample AS h (time, span, mirror_id, relid, schemaname, relname, n_tup_upserted, n_tup_deleted, "
"n_tup_failed, requests, retries, bytes_sent, request_time, queued_keys, lag) "
"SELECT $1, '1 min', m.mirror_id, t.relid, t.schemaname, t.relname, t.n_tup_upserted, t.n_tup_deleted, t.n_tup_failed, "
"t.requests, t.retries, t.bytes_sent, t.request_time, t.queued_keys, t.lag "
"FROM crate_sync.tables t JOIN crate_sync.mirror m ON m.relid = t.relid "
"LEFT JOIN LATERAL (SELECT * FROM crate_sync.history_sample l WHERE l.mirror_id = m.mirror_id ORDER BY l.time DESC LIMIT 1) l ON true "
/* what waited in the last sample and does not any more is worth one, too */
"WHERE t.queued_keys OPERATOR(pg_catalog.>) 0 OR l.queued_keys OPERATOR(pg_catalog.>) 0 "
"OR (t.n_tup_upserted, t.n_tup_deleted, t.n_tup_failed, t.requests) "
"IS DISTINCT FROM (coalesce(l.n_tup_upserted, 0), coalesce(l.n_tup_deleted, 0), coalesce(l.n_tup_failed, 0), coalesce(l.requests, 0)) "
"ON CONFLICT (mirror_id, time, span) DO UPDATE SET n_tup_upserted = excluded.n_tup_upserted, n_tup_deleted = excluded.n_tup_deleted, "
"n_tup_failed = excluded.n_tup_failed, requests = excluded.requests, retries = excluded.retries, bytes_sent = excluded.bytes_sent, "
"request_time = excluded.request_time, queued_keys = greatest(h.queued_keys, excluded.queued_keys), lag = greatest(h.lag, excluded.lag)";

static const char *const cleaning_sql[] = {
	/* minutes of whole hours become hours: $1 */
	"WITH d AS (DELETE FROM crate_sync.history_sample WHERE span OPERATOR(pg_catalog.=) '1 min' "
	"AND time OPERATOR(pg_catalog.<) $1 RETURNING *) "
	"INSERT INTO crate_sync.history_sample AS h (time, span, mirror_id, relid, schemaname, relname, n_tup_upserted, n_tup_deleted, "
	"n_tup_failed, requests, retries, bytes_sent, request_time, queued_keys, lag) "
	"SELECT pg_catalog.date_trunc('hour', d.time), '1 hour', d.mirror_id, "
	"(pg_catalog.array_agg(d.relid ORDER BY d.time DESC))[1], (pg_catalog.array_agg(d.schemaname ORDER BY d.time DESC))[1], "
	"(pg_catalog.array_agg(d.relname ORDER BY d.time DESC))[1], pg_catalog.max(d.n_tup_upserted), pg_catalog.max(d.n_tup_deleted), "
	"pg_catalog.max(d.n_tup_failed), pg_catalog.max(d.requests), pg_catalog.max(d.retries), pg_catalog.max(d.bytes_sent), "
	"pg_catalog.max(d.request_time), pg_catalog.max(d.queued_keys), pg_catalog.max(d.lag) "
	"FROM d GROUP BY d.mirror_id, pg_catalog.date_trunc('hour', d.time) "
	"ON CONFLICT (mirror_id, time, span) DO UPDATE SET n_tup_upserted = excluded.n_tup_upserted, n_tup_deleted = excluded.n_tup_deleted, "
	"n_tup_failed = excluded.n_tup_failed, requests = excluded.requests, retries = excluded.retries, bytes_sent = excluded.bytes_sent, "
	"request_time = excluded.request_time, queued_keys = greatest(h.queued_keys, excluded.queued_keys), lag = greatest(h.lag, excluded.lag)",
	/* of what is too old, the last stays unseen, for the next one to be told from it: $2 */
	"DELETE FROM crate_sync.history_sample h WHERE h.time OPERATOR(pg_catalog.<) $2 AND "
	"(EXISTS (SELECT FROM crate_sync.history_sample n WHERE n.mirror_id OPERATOR(pg_catalog.=) h.mirror_id "
	"AND n.time OPERATOR(pg_catalog.>) h.time AND n.time OPERATOR(pg_catalog.<) $2) "
	"OR NOT EXISTS (SELECT FROM crate_sync.mirror m WHERE m.mirror_id OPERATOR(pg_catalog.=) h.mirror_id))",
	"UPDATE crate_sync.history_sample SET span = '0' WHERE time OPERATOR(pg_catalog.<) $2 AND span OPERATOR(pg_catalog.<>) '0'",
	"DELETE FROM crate_sync.verification WHERE end_time OPERATOR(pg_catalog.<) $2",
};

static void
run(const char *sql, int nargs, Oid *types, Datum *values)
{
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) < 0)
		elog(ERROR, "history: a statement failed");
}

/* has the state changed?  In a transaction. */
static void
look_at_status(void)
{
	Oid			types[] = {TEXTOID, INT4OID};
	Datum		values[] = {CStringGetTextDatum(last_state), Int32GetDatum(PAYLOAD_BYTES)};
	char	   *state;
	char	   *payload;

	run(status_sql, 2, types, values);
	if (SPI_processed != 1)
		return;
	state = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	payload = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);

	/* that it begins is nothing to be told: what comes of it is */
	if (state == NULL || payload == NULL || strcmp(state, "starting") == 0 || strcmp(state, last_state) == 0)
		return;
	strlcpy(last_state, state, sizeof(last_state));
	types[0] = TEXTOID;
	values[0] = CStringGetTextDatum(payload);
	run("SELECT pg_catalog.pg_notify('crate_sync', $1)", 1, types, values);
}

static void
sample(TimestampTz now)
{
	Oid			types[] = {TIMESTAMPTZOID};
	/* in the minute that is over; all of it in UTC, as the worker is */
	Datum		values[] = {TimestampTzGetDatum((now / USECS_PER_MINUTE - 1) * USECS_PER_MINUTE)};

	run(sample_sql, 1, types, values);
}

static void
clean(TimestampTz now)
{
	Oid			types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[] = {
		TimestampTzGetDatum((now - USECS_PER_DAY) / USECS_PER_HOUR * USECS_PER_HOUR),
		TimestampTzGetDatum(now - cs_history_retention * USECS_PER_MINUTE)
	};

	for (int i = 0; i < lengthof(cleaning_sql); i++)
		run(cleaning_sql[i], 2, types, values);
}

/* what is due, in a transaction of its own */
static void
take_turn(bool at_end)
{
	MemoryContext cxt = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	bool		begun = next_sample != 0;
	bool		status_due = at_end || now >= next_status;
	bool		sample_due = cs_history_retention > 0 && (at_end || (begun && now >= next_sample));
	bool		cleaning_due = !at_end && now >= next_cleaning;

	if (!begun || sample_due)
		next_sample = (now / USECS_PER_MINUTE + 1) * USECS_PER_MINUTE;
	if (!status_due && !sample_due && !cleaning_due)
		return;
	/* whatever comes of it, not again at once */
	next_status = TimestampTzPlusMilliseconds(now, Max(STATUS_INTERVAL, cs_interval));
	if (cleaning_due)
		next_cleaning = now + USECS_PER_HOUR;

	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		SPI_connect();
		if (status_due)
		{
			look_at_status();
			/* many tables, or a large queue: rows come first */
			next_status = Max(next_status, now + (GetCurrentTimestamp() - now) * STATUS_SHARE);
		}
		if (sample_due)
			sample(at_end ? now + USECS_PER_MINUTE : now);
		if (cleaning_due)
			clean(now);
		SPI_finish();
		PopActiveSnapshot();
		CommitTransactionCommand();
		MemoryContextSwitchTo(cxt);
	}
	PG_CATCH();
	{
		ErrorData  *error = worker_catch(cxt);

		/* it is not worth more: somebody has locked a table of ours, as a rule */
		if (now >= quiet_until)
			ereport(LOG,
					(errmsg("crate_sync: the history has a gap: %s", error->message)));
		quiet_until = now + USECS_PER_HOUR;
		FreeErrorData(error);
	}
	PG_END_TRY();
}

void
history_turn(void)
{
	take_turn(false);
}

void
history_end(void)
{
	take_turn(true);
}
