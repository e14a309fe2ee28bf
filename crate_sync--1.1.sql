/* crate_sync 1.1 */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION crate_sync" to load this file. \quit

-- made here, and not by the control file, so that DROP EXTENSION takes it away
CREATE SCHEMA crate_sync;
SET LOCAL search_path TO crate_sync, pg_temp;

/* ---------------------------------------------------------------------------
 * Catalog.  What the user asked for is in mirror, written by the functions
 * below; what the worker has done about it is in mirror_state, written by the
 * worker alone, so that an open transaction of the user never blocks it.
 * ------------------------------------------------------------------------ */

CREATE TABLE mirror (
	mirror_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	relid regclass NOT NULL,           -- of a document: its root
	target_schema text NOT NULL,
	target_table text NOT NULL,
	key_columns name[] NOT NULL,
	columns name[],                    -- NULL: all, also those added later
	row_filter text,
	soft_delete_column name,
	options jsonb NOT NULL DEFAULT '{}',
	paused boolean NOT NULL DEFAULT false,
	resync_no int NOT NULL DEFAULT 0,  -- raised by each request
	resync_mode text,                  -- full, upsert, rebuild, cancel
	resync_filter text,
	verify_no int NOT NULL DEFAULT 0,
	verify_repair boolean NOT NULL DEFAULT false,
	follow text NOT NULL DEFAULT 'table', -- or 'name': whatever table has it
	source_schema name,                -- the name that the table was added by,
	source_name name,                  -- and its owner, as last seen
	source_owner oid,
	definition jsonb,                  -- of a document; NULL: the relation as it is
	relations regclass[],              -- of its nodes
	UNIQUE (target_schema, target_table)
);
CREATE UNIQUE INDEX mirror_relid ON mirror (relid) WHERE definition IS NULL;

CREATE TABLE mirror_state (
	mirror_id int PRIMARY KEY,
	relid oid NOT NULL,
	state text NOT NULL DEFAULT 'new', -- new, loading, sweeping, ready, error
	claimed boolean NOT NULL DEFAULT false,
	lanes_used int NOT NULL DEFAULT 0, -- fences there may be at the target
	shape text,                        -- fingerprint of table and triggers
	resync_done int NOT NULL DEFAULT -1,
	load_mode text,                    -- what is under way; NULL: nothing
	load_phase text,                   -- load, sweep, verify
	load_rel oid,                      -- leaf being read
	load_filenode oid,                 -- its storage: a rewrite starts it anew
	load_block bigint,                 -- first block not yet acknowledged
	load_rows bigint,
	load_total bigint,
	load_bytes bigint,
	load_start timestamptz,
	sweep_key text,                    -- last target key looked at
	verify_done int NOT NULL DEFAULT 0,
	n_tup_upserted bigint NOT NULL DEFAULT 0,
	n_tup_deleted bigint NOT NULL DEFAULT 0,
	n_tup_failed bigint NOT NULL DEFAULT 0,
	requests bigint NOT NULL DEFAULT 0,
	retries bigint NOT NULL DEFAULT 0,
	bytes_sent bigint NOT NULL DEFAULT 0,
	request_time float8 NOT NULL DEFAULT 0,
	last_ack_time timestamptz,
	last_load_time timestamptz,
	last_verify_time timestamptz,
	last_verify_ok boolean,
	last_error text,
	last_error_code text,
	last_error_time timestamptz,
	hint text,
	due text,                          -- why a load is owed; NULL: none is
	due_again boolean NOT NULL DEFAULT false, -- one more, behind that under way
	n_differences bigint,              -- of the last verify, not mended; NULL: there was none
	target_id text                     -- the target table's number, and its name; NULL: not known
) WITH (fillfactor = 50);

-- one row per key that the target, or the reading of the row, refused
CREATE TABLE failed (
	failed_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	mirror_id int NOT NULL,
	key jsonb NOT NULL,
	packed_key bytea NOT NULL,         -- as in a queue chunk
	layout int NOT NULL,
	target_key text NOT NULL,          -- the key as the target is told
	action text NOT NULL,              -- upsert, delete, read
	error_code text,
	error_message text,
	attempts int NOT NULL DEFAULT 1,
	first_failed_time timestamptz NOT NULL DEFAULT clock_timestamp(),
	last_failed_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX failed_mirror_key ON failed (mirror_id, md5(target_key));

-- tables that were removed: what is left to do at the target
CREATE TABLE removal (
	removal_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	target_schema text NOT NULL,
	target_table text NOT NULL,
	drop_target boolean NOT NULL
);

-- tables that queue nothing because the queue was full; read by the triggers
CREATE TABLE detached (
	relid oid PRIMARY KEY
);

CREATE TABLE control (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	stopped boolean NOT NULL DEFAULT false,
	adopt_no int NOT NULL DEFAULT 0,
	start_no int NOT NULL DEFAULT 0    -- raised by start()
);
INSERT INTO control DEFAULT VALUES;

CREATE TABLE worker_state (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	unclean_starts int NOT NULL DEFAULT 0,
	system_identifier text,
	timeline int,
	token text,
	beat bigint NOT NULL DEFAULT 0,    -- written here before it goes to the target
	beat_acked bigint NOT NULL DEFAULT 0,
	adopt_done int NOT NULL DEFAULT 0,
	start_done int NOT NULL DEFAULT 0,
	database oid,                      -- the token's; another one is a copy
	incarnation text,                  -- of the worker that goes on with the beat, written here first
	incarnation_acked text             -- as the target has it
) WITH (fillfactor = 50);
INSERT INTO worker_state DEFAULT VALUES;

CREATE TABLE difference (
	difference_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	mirror_id int NOT NULL,
	key jsonb NOT NULL,
	kind text NOT NULL,                -- missing, extra, different
	columns name[],
	found_time timestamptz NOT NULL DEFAULT clock_timestamp(),
	repaired boolean NOT NULL DEFAULT false
);
CREATE INDEX difference_mirror ON difference (mirror_id);

CREATE TABLE benchmark_results (
	benchmark_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	run_time timestamptz NOT NULL DEFAULT now(),
	run_by name NOT NULL DEFAULT current_user,
	target text NOT NULL,              -- crate 6.4.3, sqlite 3.40.1
	query text NOT NULL,
	target_sql text NOT NULL,
	iterations int NOT NULL,
	warmup int NOT NULL,
	source_min_time float8 NOT NULL,
	source_mean_time float8 NOT NULL,
	source_p50_time float8 NOT NULL,
	source_p95_time float8 NOT NULL,
	target_min_time float8 NOT NULL,
	target_mean_time float8 NOT NULL,
	target_p50_time float8 NOT NULL,
	target_p95_time float8 NOT NULL,
	target_server_time float8,         -- what the target itself says it took, p50
	speedup float8 NOT NULL,           -- source_p50_time / target_p50_time
	source_rows bigint NOT NULL,
	target_rows bigint NOT NULL,
	rows_match boolean NOT NULL,
	mismatch text
);

SELECT pg_catalog.pg_extension_config_dump('mirror', '');
SELECT pg_catalog.pg_extension_config_dump('mirror_mirror_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('benchmark_results', '');
SELECT pg_catalog.pg_extension_config_dump('benchmark_results_benchmark_id_seq', '');

/* ---------------------------------------------------------------------------
 * Queue: chunks of packed keys.  Three generations that rotate and one that
 * holds what belongs to paused or stopped tables; src/queue/queue.c has the rules.
 * No index, no default, no TOAST: a flush is one heap_insert per chunk.
 * ------------------------------------------------------------------------ */

CREATE TABLE queue_0 (
	xid xid8 NOT NULL,                 -- (xid, seq): the chunk's identity
	queued_at timestamptz NOT NULL,
	relid oid NOT NULL,                -- topmost relation with our trigger
	seq int NOT NULL,
	layout int NOT NULL,               -- hash of the key's columns and types
	n int NOT NULL,                    -- keys; -1: TRUNCATE, -2: a key not known, -3: a long one
	keys bytea NOT NULL
) USING heap WITH (autovacuum_enabled = off);
ALTER TABLE queue_0 ALTER COLUMN keys SET STORAGE PLAIN;
CREATE TABLE queue_1 (LIKE queue_0 INCLUDING STORAGE) USING heap WITH (autovacuum_enabled = off);
CREATE TABLE queue_2 (LIKE queue_0 INCLUDING STORAGE) USING heap WITH (autovacuum_enabled = off);
CREATE TABLE queue_hold (LIKE queue_0 INCLUDING STORAGE) USING heap;

-- which generation writers fill; read outside of transactions' rules
CREATE SEQUENCE queue_generation MINVALUE 0 MAXVALUE 2 START 0 CYCLE;
SELECT pg_catalog.setval('queue_generation', 0, true);

REVOKE ALL ON ALL TABLES IN SCHEMA crate_sync FROM PUBLIC;

/* ---------------------------------------------------------------------------
 * Capture
 * ------------------------------------------------------------------------ */

CREATE FUNCTION capture() RETURNS trigger
	AS 'MODULE_PATHNAME', 'crate_sync_capture' LANGUAGE C;
COMMENT ON FUNCTION capture() IS
	'trigger that queues the keys of changed rows, and TRUNCATE, for the mirror';
REVOKE ALL ON FUNCTION capture() FROM PUBLIC;

/* ---------------------------------------------------------------------------
 * Tables
 * ------------------------------------------------------------------------ */

CREATE FUNCTION add_table(relation regclass,
						  target text DEFAULT NULL,
						  columns name[] DEFAULT NULL,
						  row_filter text DEFAULT NULL,
						  soft_delete_column name DEFAULT NULL,
						  options jsonb DEFAULT NULL,
						  copy_data boolean DEFAULT true,
						  if_not_exists boolean DEFAULT false,
						  follow text DEFAULT 'table')
	RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_add_table' LANGUAGE C;
COMMENT ON FUNCTION add_table(regclass, text, name[], text, name, jsonb, boolean, boolean, text) IS
	'mirrors a table in the target; returns the target table''s name';

CREATE FUNCTION alter_table(relation regclass,
						    columns name[] DEFAULT NULL,
						    row_filter text DEFAULT NULL,
						    soft_delete_column name DEFAULT NULL,
						    options jsonb DEFAULT NULL,
						    rebuild boolean DEFAULT false)
	RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_alter_table' LANGUAGE C;
COMMENT ON FUNCTION alter_table(regclass, name[], text, name, jsonb, boolean) IS
	'changes what add_table was told about a mirrored table: NULL leaves a thing as it is, an empty value takes it back; says what is done';

CREATE FUNCTION remove_table(relation regclass,
							 drop_target boolean DEFAULT false,
							 if_exists boolean DEFAULT false)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_remove_table' LANGUAGE C;
COMMENT ON FUNCTION remove_table(regclass, boolean, boolean) IS
	'ends the mirroring of a table; the target table stays unless drop_target';

CREATE FUNCTION add_all_tables(schema_names name[] DEFAULT ARRAY['public']::name[],
							   OUT relation regclass, OUT added boolean, OUT message text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_add_all_tables' LANGUAGE C;
COMMENT ON FUNCTION add_all_tables(name[]) IS
	'adds every table of the schemas that can be mirrored; a row per table says which, or why not';

CREATE FUNCTION follow_name(relation regclass) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_follow_name' LANGUAGE C;
COMMENT ON FUNCTION follow_name(regclass) IS
	'has a table take the place of a mirrored one that was called so before; says what was done';

CREATE FUNCTION keep_table(relation regclass) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_keep_table' LANGUAGE C;
COMMENT ON FUNCTION keep_table(regclass) IS
	'goes on mirroring a table whose name was changed, as it is called now; says what was done';

CREATE FUNCTION preview(relation regclass,
						columns name[] DEFAULT NULL,
						soft_delete_column name DEFAULT NULL,
						options jsonb DEFAULT NULL,
						OUT column_name name, OUT source_type text, OUT target_column text,
						OUT target_type text, OUT is_key boolean, OUT note text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_preview' LANGUAGE C;
COMMENT ON FUNCTION preview(regclass, name[], name, jsonb) IS
	'shows each column''s type in the target and what it loses there; touches nothing';

CREATE FUNCTION get_target_ddl(relation regclass) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_get_target_ddl' LANGUAGE C STRICT;
COMMENT ON FUNCTION get_target_ddl(regclass) IS
	'the statement that creates the target table of a mirrored table, or of one that could be';

CREATE FUNCTION resync(relation regclass DEFAULT NULL,
					   mode text DEFAULT 'full',
					   row_filter text DEFAULT NULL)
	RETURNS int
	AS 'MODULE_PATHNAME', 'crate_sync_resync' LANGUAGE C;
COMMENT ON FUNCTION resync(regclass, text, text) IS
	'has the worker push a table, or all, again: upsert, full or rebuild; returns how many tables';

CREATE FUNCTION cancel(relation regclass) RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_cancel' LANGUAGE C STRICT;
COMMENT ON FUNCTION cancel(regclass) IS 'stops a running resync or verify of a table';

CREATE FUNCTION verify(relation regclass DEFAULT NULL, repair boolean DEFAULT false)
	RETURNS int
	AS 'MODULE_PATHNAME', 'crate_sync_verify' LANGUAGE C;
COMMENT ON FUNCTION verify(regclass, boolean) IS
	'has the worker compare source and target; findings in differences, outcome in tables';

CREATE FUNCTION pause(relation regclass DEFAULT NULL) RETURNS int
	AS 'MODULE_PATHNAME', 'crate_sync_pause' LANGUAGE C;
COMMENT ON FUNCTION pause(regclass) IS
	'stops pushing a table, or all; its changes go on queueing';

CREATE FUNCTION resume(relation regclass DEFAULT NULL) RETURNS int
	AS 'MODULE_PATHNAME', 'crate_sync_resume' LANGUAGE C;
COMMENT ON FUNCTION resume(regclass) IS 'takes up pushing a paused table, or all, again';

CREATE FUNCTION retry_failed(relation regclass DEFAULT NULL, failed_id bigint DEFAULT NULL)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'crate_sync_retry_failed' LANGUAGE C;
COMMENT ON FUNCTION retry_failed(regclass, bigint) IS
	'queues failed rows again; returns how many; a row leaves failed_rows when it has arrived';

CREATE FUNCTION discard_failed(relation regclass DEFAULT NULL, failed_id bigint DEFAULT NULL)
	RETURNS bigint
	AS 'MODULE_PATHNAME', 'crate_sync_discard_failed' LANGUAGE C;
COMMENT ON FUNCTION discard_failed(regclass, bigint) IS
	'forgets failed rows without pushing them; returns how many';

/* ---------------------------------------------------------------------------
 * Documents
 * ------------------------------------------------------------------------ */

CREATE FUNCTION add_document(schema jsonb,
							 target text DEFAULT NULL,
							 row_filter text DEFAULT NULL,
							 options jsonb DEFAULT NULL,
							 copy_data boolean DEFAULT true,
							 if_not_exists boolean DEFAULT false)
	RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_add_document' LANGUAGE C;
COMMENT ON FUNCTION add_document(jsonb, text, text, jsonb, boolean, boolean) IS
	'mirrors rows of a table with those of others nested in them, as a tree of nodes says; returns the target table''s name';

CREATE FUNCTION add_documents(schema jsonb, OUT target text, OUT added boolean, OUT message text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_add_documents' LANGUAGE C;
COMMENT ON FUNCTION add_documents(jsonb) IS
	'adds each document of an array of them, as files of PGSync are; a row per document says which, or why not';

CREATE FUNCTION remove_document(target text,
								drop_target boolean DEFAULT false,
								if_exists boolean DEFAULT false)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_remove_document' LANGUAGE C;
COMMENT ON FUNCTION remove_document(text, boolean, boolean) IS
	'ends the mirroring of a document; its target table stays unless drop_target';

CREATE FUNCTION preview_document(schema jsonb, options jsonb DEFAULT NULL,
								 OUT path text, OUT source text, OUT source_type text, OUT target_column text,
								 OUT target_type text, OUT is_key boolean, OUT note text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_preview_document' LANGUAGE C;
COMMENT ON FUNCTION preview_document(jsonb, jsonb) IS
	'shows each node''s link and each column''s type in the target, and what is amiss with them; touches nothing';

CREATE FUNCTION get_document_query(target text) RETURNS text
	AS 'MODULE_PATHNAME', 'crate_sync_get_document_query' LANGUAGE C STRICT;
COMMENT ON FUNCTION get_document_query(text) IS 'the query whose rows are the documents of a target table';

/* ---------------------------------------------------------------------------
 * Worker
 * ------------------------------------------------------------------------ */

CREATE FUNCTION start() RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_start' LANGUAGE C STRICT;
COMMENT ON FUNCTION start() IS 'starts this database''s worker';

CREATE FUNCTION stop() RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_stop' LANGUAGE C STRICT;
COMMENT ON FUNCTION stop() IS 'stops this database''s worker until start(); changes go on queueing';

CREATE FUNCTION adopt() RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_adopt' LANGUAGE C STRICT;
COMMENT ON FUNCTION adopt() IS
	'lets this database write target tables that another one has claimed';

CREATE FUNCTION wait_for_sync(relation regclass DEFAULT NULL,
							  timeout interval DEFAULT '1min')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'crate_sync_wait_for_sync' LANGUAGE C;
COMMENT ON FUNCTION wait_for_sync(regclass, interval) IS
	'waits until all that was committed before the call can be read and searched in the target';

/* ---------------------------------------------------------------------------
 * Target
 * ------------------------------------------------------------------------ */

CREATE FUNCTION target_query(statement text, args jsonb DEFAULT NULL)
	RETURNS SETOF jsonb
	AS 'MODULE_PATHNAME', 'crate_sync_target_query' LANGUAGE C;
COMMENT ON FUNCTION target_query(text, jsonb) IS
	'runs a statement on the target; each row of the answer as a JSON object';

CREATE FUNCTION benchmark(query text,
						  target_sql text DEFAULT NULL,
						  iterations int DEFAULT 20,
						  warmup int DEFAULT 2)
	RETURNS benchmark_results
	AS 'MODULE_PATHNAME', 'crate_sync_benchmark' LANGUAGE C;
COMMENT ON FUNCTION benchmark(text, text, int, int) IS
	'times the same question on both sides in turn and checks that the answers agree';

CREATE FUNCTION benchmark_chart(last int DEFAULT 10, width int DEFAULT 40)
	RETURNS SETOF text
	AS 'MODULE_PATHNAME', 'crate_sync_benchmark_chart' LANGUAGE C STRICT;
COMMENT ON FUNCTION benchmark_chart(int, int) IS
	'draws the latest benchmark results as bars';

/* ---------------------------------------------------------------------------
 * Status
 * ------------------------------------------------------------------------ */

-- n and age of queued keys per table, or of all; of a large queue an estimate from a sample
CREATE FUNCTION queue_stats(per_table boolean,
							OUT relid oid, OUT queued_keys bigint, OUT queue_bytes bigint,
							OUT oldest timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_queue_stats' LANGUAGE C STRICT ROWS 2;
COMMENT ON FUNCTION queue_stats(boolean) IS
	'size and age of the queue; of more than some thousand pages about, from a sample. A row of relid 0: others may have keys, too';

CREATE FUNCTION worker_status(OUT target text, OUT target_version text, OUT pid int,
							  OUT backend_start timestamptz, OUT preloaded boolean,
							  OUT target_state text, OUT last_send_time timestamptz,
							  OUT last_ack_time timestamptz, OUT last_error text,
							  OUT last_error_time timestamptz, OUT hint text)
	RETURNS record
	AS 'MODULE_PATHNAME', 'crate_sync_worker_status' LANGUAGE C STRICT;
COMMENT ON FUNCTION worker_status() IS 'what this database''s worker says of itself';

CREATE FUNCTION table_states(OUT mirror_id int, OUT schemaname name, OUT relname name, OUT state text,
							 OUT trouble int, OUT message text, OUT hint text, OUT n_differences bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_table_states' LANGUAGE C STRICT ROWS 10;
COMMENT ON FUNCTION table_states() IS
	'the state of each mirrored table; trouble: NULL if it is well, 0 is the worst';

CREATE FUNCTION heartbeat() RETURNS timestamptz
	AS 'MODULE_PATHNAME', 'crate_sync_heartbeat' LANGUAGE C STRICT;
COMMENT ON FUNCTION heartbeat() IS
	'when this database''s worker last went round its loop; NULL: none runs';

-- keys are values of a table: for those who may read it
CREATE VIEW failed_rows AS
	SELECT f.failed_id, m.relid, coalesce(n.nspname, m.source_schema) AS schemaname, coalesce(c.relname, m.source_name) AS relname,
		   CASE WHEN has_table_privilege(m.relid, 'SELECT') AND NOT row_security_active(m.relid)
			THEN f.key END AS key, f.action,
		   f.error_code, f.error_message, f.attempts, f.first_failed_time, f.last_failed_time
	FROM crate_sync.failed f
		JOIN crate_sync.mirror m USING (mirror_id)
		LEFT JOIN pg_catalog.pg_class c ON c.oid = m.relid
		LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
COMMENT ON VIEW failed_rows IS 'keys whose rows could not be pushed, with the target''s words';

CREATE VIEW differences AS
	SELECT m.relid, coalesce(n.nspname, m.source_schema) AS schemaname, coalesce(c.relname, m.source_name) AS relname,
		   CASE WHEN has_table_privilege(m.relid, 'SELECT') AND NOT row_security_active(m.relid)
			THEN d.key END AS key, d.kind, d.columns, d.found_time,
		   d.repaired OR coalesce(s.n_differences = 0, false) AS repaired
	FROM crate_sync.difference d
		JOIN crate_sync.mirror m USING (mirror_id)
		LEFT JOIN crate_sync.mirror_state s USING (mirror_id)
		LEFT JOIN pg_catalog.pg_class c ON c.oid = m.relid
		LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
COMMENT ON VIEW differences IS 'what the last verify of each table found';

CREATE VIEW tables AS
	WITH q AS MATERIALIZED (SELECT * FROM crate_sync.queue_stats(true))
	SELECT m.relid, t.schemaname, t.relname,
		   quote_ident(m.target_schema) || '.' || quote_ident(m.target_table) AS target,
		   t.state,
		   CASE WHEN q.relid IS NOT NULL THEN clock_timestamp() - q.oldest WHEN NOT u.others THEN interval '0' END AS lag,
		   CASE WHEN q.relid IS NOT NULL THEN q.queued_keys WHEN NOT u.others THEN 0 END AS queued_keys,
		   coalesce(s.n_tup_upserted, 0) AS n_tup_upserted,
		   coalesce(s.n_tup_deleted, 0) AS n_tup_deleted,
		   coalesce(s.n_tup_failed, 0) AS n_tup_failed,
		   (SELECT count(*) FROM crate_sync.failed f WHERE f.mirror_id = m.mirror_id) AS n_failed_rows,
		   coalesce(s.requests, 0) AS requests, coalesce(s.retries, 0) AS retries,
		   coalesce(s.bytes_sent, 0) AS bytes_sent, coalesce(s.request_time, 0) AS request_time,
		   s.last_ack_time, s.last_load_time, s.last_verify_time, s.last_verify_ok,
		   s.last_error, s.last_error_code, s.last_error_time, t.hint, s.due, s.n_differences,
		   CASE WHEN m.definition IS NULL THEN 'table' ELSE 'document' END AS kind
	FROM crate_sync.mirror m
		JOIN crate_sync.table_states() t USING (mirror_id)
		LEFT JOIN crate_sync.mirror_state s USING (mirror_id)
		CROSS JOIN (SELECT count(*) > 0 AS others FROM q WHERE q.relid = 0) u
		LEFT JOIN q ON q.relid = m.relid;
COMMENT ON VIEW tables IS 'mirrored tables: what each has pushed, how far behind it is, and why';

CREATE VIEW progress AS
	SELECT w.pid, m.relid, n.nspname AS schemaname, c.relname,
		   CASE s.load_phase WHEN 'verify' THEN 'verify'
			ELSE coalesce(s.load_mode, 'full') END AS command,
		   s.load_phase AS phase, s.load_total AS tuples_total, s.load_rows AS tuples_done,
		   s.load_bytes AS bytes_sent,
		   r.rate, s.load_start AS start_time,
		   CASE WHEN r.rate > 0 AND s.load_total > s.load_rows
				THEN pg_catalog.make_interval(secs => (s.load_total - s.load_rows) / r.rate)
		   END AS time_left,
		   e.percent, rpad(repeat('#', (e.percent / 5)::int), 20, '.') AS bar
	FROM crate_sync.mirror m
		JOIN crate_sync.mirror_state s USING (mirror_id)
		JOIN pg_catalog.pg_class c ON c.oid = m.relid
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		CROSS JOIN crate_sync.worker_status() w
		CROSS JOIN LATERAL (SELECT s.load_rows
			/ nullif(extract(epoch FROM clock_timestamp() - s.load_start), 0)::float8 AS rate) r
		CROSS JOIN LATERAL (SELECT round(least(100.0 * s.load_rows / nullif(s.load_total, 0), 100), 1) AS percent) e
	WHERE s.load_phase IS NOT NULL;
COMMENT ON VIEW progress IS 'loads, resyncs and verifies under way';

CREATE VIEW status AS
	WITH y AS MATERIALIZED (SELECT * FROM crate_sync.table_states())
	SELECT v.state = 'ok' AS ok, v.state, v.message, v.hint, w.target, w.target_version, w.pid,
		   w.backend_start, w.preloaded, t.n_tables, t.n_tables_not_ok,
		   coalesce(q.queued_keys, 0) AS queued_keys, coalesce(q.queue_bytes, 0) AS queue_bytes,
		   coalesce(l.lag, interval '0') AS lag,
		   f.n_failed_rows, w.last_send_time, w.last_ack_time, w.last_error, w.last_error_time,
		   t.n_differences, crate_sync.heartbeat() AS heartbeat_time
	FROM crate_sync.worker_status() w
		CROSS JOIN (SELECT count(*) AS n_tables, count(y.trouble) AS n_tables_not_ok,
						   count(*) FILTER (WHERE y.state IN ('new', 'loading', 'sweeping')) AS n_loading,
						   count(*) FILTER (WHERE y.state IN ('incomplete', 'detached')) AS n_incomplete,
						   count(*) FILTER (WHERE y.state = 'paused') AS n_paused,
						   coalesce(sum(y.n_differences), 0)::bigint AS n_differences
					FROM y) t
		LEFT JOIN (SELECT y.state, y.message, y.hint FROM y WHERE y.trouble IS NOT NULL ORDER BY y.trouble, y.schemaname, y.relname LIMIT 1) b ON true
		LEFT JOIN crate_sync.queue_stats(false) q ON true
		CROSS JOIN (SELECT count(*) AS n_failed_rows FROM crate_sync.failed) f
		CROSS JOIN LATERAL (SELECT (SELECT c.stopped FROM crate_sync.control c) AS stopped) k
		CROSS JOIN LATERAL (SELECT pg_catalog.current_setting('crate_sync.max_lag')::interval AS max_lag,
								   pg_catalog.clock_timestamp() - q.oldest AS lag) l
		CROSS JOIN LATERAL (SELECT
			x.state, x.message, x.hint
			FROM (VALUES
				(k.stopped, 'stopped', 'the worker was stopped', 'SELECT crate_sync.start();'),
				(w.pid IS NULL AND w.target_state = 'down', 'down', w.last_error, w.hint),
				(w.target = '', 'no target', 'no target is set', w.hint),
				(w.pid IS NULL, 'no worker', 'no worker is running in this database', w.hint),
				(w.target_state = 'disabled', 'disabled', 'crate_sync.enabled is off: nothing is pushed',
				 'ALTER SYSTEM SET crate_sync.enabled = on; SELECT pg_reload_conf();'),
				(w.target_state = 'starting', 'starting', 'the worker begins, or tries its settings', NULL),
				(w.target_state <> 'ok', w.target_state, w.last_error, w.hint),
				(b.state = 'error', 'table error', b.message, b.hint),
				(b.state IN ('renamed', 'dropped'), b.state, b.message, b.hint),
				(q.queue_bytes > pg_catalog.pg_size_bytes(pg_catalog.current_setting('crate_sync.max_queue_size')), 'queue full',
				 'the queue holds ' || pg_catalog.pg_size_pretty(q.queue_bytes) || ', more than crate_sync.max_queue_size',
				 'see crate_sync.tables for what is behind and why'),
				(l.max_lag > interval '0' AND l.lag > l.max_lag, 'lagging',
				 'the oldest queued change is ' || pg_catalog.date_trunc('second', l.lag) || ' old',
				 'see crate_sync.tables for what is behind and why'),
				(b.state IN ('incomplete', 'detached'), 'incomplete', t.n_incomplete || ' table(s) not loaded in full; ' || b.message, b.hint),
				(b.state = 'differences', b.state, b.message, b.hint),
				(b.state = 'paused', b.state, t.n_paused || ' table(s) paused', CASE t.n_paused WHEN 1 THEN b.hint ELSE 'SELECT crate_sync.resume();' END),
				(f.n_failed_rows > 0, 'failed rows', f.n_failed_rows || ' row(s) could not be pushed',
				 'see crate_sync.failed_rows; mend them and SELECT crate_sync.retry_failed();'),
				(t.n_tables = 0, 'nothing mirrored', 'no tables are mirrored yet', 'SELECT crate_sync.add_table(''schema.table'');'),
				(t.n_loading > 0, 'ok', t.n_loading || ' table(s) loading', NULL),
				(coalesce(q.queued_keys, 0) > 0, 'ok', q.queued_keys || ' key(s) queued', NULL),
				(true, 'ok', 'all changes are in the target', NULL)) AS x(holds, state, message, hint)
			WHERE x.holds LIMIT 1) v;
COMMENT ON VIEW status IS 'whether all is well, and if not, what to do';

COMMENT ON COLUMN status.ok IS 'whether all is well: state is ok';
COMMENT ON COLUMN status.state IS 'ok, or what is most in the way of that';
COMMENT ON COLUMN status.message IS 'the same in words; if ok, what is under way';
COMMENT ON COLUMN status.hint IS 'what to do about it';
COMMENT ON COLUMN status.target IS 'where the worker pushes; without a worker, this sessions crate_sync.target';
COMMENT ON COLUMN status.target_version IS 'product and version that the target named when it was last connected to';
COMMENT ON COLUMN status.pid IS 'the workers process; NULL: none runs in this database';
COMMENT ON COLUMN status.backend_start IS 'when the worker began';
COMMENT ON COLUMN status.preloaded IS 'whether crate_sync is in shared_preload_libraries, so that the worker starts with the server';
COMMENT ON COLUMN status.n_tables IS 'mirrored tables';
COMMENT ON COLUMN status.n_tables_not_ok IS 'those that are in error, renamed, dropped, incomplete, detached or paused, or have differences';
COMMENT ON COLUMN status.queued_keys IS 'keys that wait to be pushed; of a large queue about so many';
COMMENT ON COLUMN status.queue_bytes IS 'size of the queue on disk';
COMMENT ON COLUMN status.lag IS 'age of the oldest key in the queue; of a large queue about so much';
COMMENT ON COLUMN status.n_failed_rows IS 'rows in failed_rows';
COMMENT ON COLUMN status.last_send_time IS 'when the target last answered a request with rows';
COMMENT ON COLUMN status.last_ack_time IS 'when the worker last wrote down that rows have arrived';
COMMENT ON COLUMN status.last_error IS 'the workers or the targets last error, mended or not';
COMMENT ON COLUMN status.last_error_time IS 'when that was';
COMMENT ON COLUMN status.n_differences IS 'differences that the last verify of each table found, and that nothing has mended since';
COMMENT ON COLUMN status.heartbeat_time IS 'when the worker last went round its loop, to a second; moves when there is nothing to do, too';
COMMENT ON COLUMN tables.relid IS 'the mirrored table';
COMMENT ON COLUMN tables.schemaname IS 'its schema; of a table that was dropped, that which it was added by';
COMMENT ON COLUMN tables.relname IS 'its name, likewise';
COMMENT ON COLUMN tables.target IS 'its table in the target; public is doc there';
COMMENT ON COLUMN tables.state IS 'new, loading, sweeping, verifying, ready; or error, renamed, dropped, incomplete, detached, differences, paused';
COMMENT ON COLUMN tables.lag IS 'age of its oldest key in the queue; of a large queue about so much. NULL: not known';
COMMENT ON COLUMN tables.queued_keys IS 'its keys in the queue; of a large queue about so many. NULL: not known, as none was met in a sample';
COMMENT ON COLUMN tables.n_tup_upserted IS 'rows written to the target, ever';
COMMENT ON COLUMN tables.n_tup_deleted IS 'rows deleted in the target, ever';
COMMENT ON COLUMN tables.n_tup_failed IS 'rows set aside, ever';
COMMENT ON COLUMN tables.n_failed_rows IS 'its rows in failed_rows';
COMMENT ON COLUMN tables.requests IS 'requests with its rows, ever';
COMMENT ON COLUMN tables.retries IS 'requests that had to be sent again, ever';
COMMENT ON COLUMN tables.bytes_sent IS 'size of the requests, ever';
COMMENT ON COLUMN tables.request_time IS 'time that the requests took, in ms, ever';
COMMENT ON COLUMN tables.last_ack_time IS 'when queued changes of it were last written down as arrived';
COMMENT ON COLUMN tables.last_load_time IS 'when a load or resync of it ended last; NULL: none has, or what it has pushed since then may not be all';
COMMENT ON COLUMN tables.last_verify_time IS 'when a verify of it ended last';
COMMENT ON COLUMN tables.last_verify_ok IS 'whether that verify left no difference; false, too, if it was given up';
COMMENT ON COLUMN tables.last_error IS 'its last error, mended or not';
COMMENT ON COLUMN tables.last_error_code IS 'the targets code of that, or the SQLSTATE';
COMMENT ON COLUMN tables.last_error_time IS 'when that was';
COMMENT ON COLUMN tables.hint IS 'what to do about its state';
COMMENT ON COLUMN tables.due IS 'why a load of it is owed; NULL: none is';
COMMENT ON COLUMN tables.kind IS 'table: as it is; document: it is the root of one';
COMMENT ON COLUMN tables.n_differences IS 'differences that the last verify found and that neither repair nor a load has mended; NULL: no verify came to its end';
COMMENT ON COLUMN progress.pid IS 'the workers process';
COMMENT ON COLUMN progress.relid IS 'the table';
COMMENT ON COLUMN progress.schemaname IS 'its schema';
COMMENT ON COLUMN progress.relname IS 'its name';
COMMENT ON COLUMN progress.command IS 'initial, full, upsert, rebuild, sweep or verify';
COMMENT ON COLUMN progress.phase IS 'load: rows are pushed; sweep: the targets keys are looked up; verify: both sides are compared';
COMMENT ON COLUMN progress.tuples_total IS 'rows of the table, an estimate';
COMMENT ON COLUMN progress.tuples_done IS 'rows, or keys of the target, that are done with';
COMMENT ON COLUMN progress.bytes_sent IS 'size of the requests';
COMMENT ON COLUMN progress.rate IS 'rows per second since start_time';
COMMENT ON COLUMN progress.start_time IS 'when this phase began';
COMMENT ON COLUMN progress.time_left IS 'as long as it takes at this rate, if tuples_total is right';
COMMENT ON COLUMN progress.percent IS 'tuples_done of tuples_total';
COMMENT ON COLUMN progress.bar IS 'the same as a bar of 20 characters';
COMMENT ON COLUMN failed_rows.failed_id IS 'argument of retry_failed and discard_failed';
COMMENT ON COLUMN failed_rows.relid IS 'the mirrored table';
COMMENT ON COLUMN failed_rows.schemaname IS 'its schema';
COMMENT ON COLUMN failed_rows.relname IS 'its name';
COMMENT ON COLUMN failed_rows.key IS 'the rows key, for those who may read the table; a string where it cannot be said otherwise';
COMMENT ON COLUMN failed_rows.action IS 'what was refused: upsert or delete by the target, read by the source';
COMMENT ON COLUMN failed_rows.error_code IS 'the targets code, or the SQLSTATE';
COMMENT ON COLUMN failed_rows.error_message IS 'why, in the targets words or the sources';
COMMENT ON COLUMN failed_rows.attempts IS 'how often it was refused';
COMMENT ON COLUMN failed_rows.first_failed_time IS 'when it was refused first';
COMMENT ON COLUMN failed_rows.last_failed_time IS 'when it was refused last';
COMMENT ON COLUMN differences.relid IS 'the mirrored table';
COMMENT ON COLUMN differences.schemaname IS 'its schema';
COMMENT ON COLUMN differences.relname IS 'its name';
COMMENT ON COLUMN differences.key IS 'the rows key, for those who may read the table; a string where it cannot be said otherwise';
COMMENT ON COLUMN differences.kind IS 'missing in the target, extra there, or different';
COMMENT ON COLUMN differences.columns IS 'columns that differ; NULL if kind is not different, or the row could not be compared';
COMMENT ON COLUMN differences.found_time IS 'when it was found';
COMMENT ON COLUMN differences.repaired IS 'whether verify with repair has seen both sides equal afterwards, or a full load went over it';

COMMENT ON TABLE mirror IS 'catalog: tables mirrored, as asked for by add_table and its kin';
COMMENT ON TABLE mirror_state IS 'catalog: what the worker has done about each mirrored table';
COMMENT ON TABLE failed IS 'storage of failed_rows';
COMMENT ON TABLE difference IS 'storage of differences';
COMMENT ON TABLE removal IS 'removed tables whose target side is still to be cleaned up';
COMMENT ON TABLE detached IS 'tables that queue nothing since the queue was full; loaded anew when the target is back';
COMMENT ON TABLE control IS 'what start(), stop() and adopt() asked for';
COMMENT ON TABLE worker_state IS 'what the worker remembers between its starts';
COMMENT ON TABLE benchmark_results IS 'history of benchmark()';
COMMENT ON TABLE queue_0 IS 'queued keys, first generation';
COMMENT ON TABLE queue_1 IS 'queued keys, second generation';
COMMENT ON TABLE queue_2 IS 'queued keys, third generation';
COMMENT ON TABLE queue_hold IS 'queued keys of paused and stopped tables';
COMMENT ON SEQUENCE queue_generation IS 'the queue generation that writers fill';
COMMENT ON SCHEMA crate_sync IS 'tables mirrored in CrateDB';

/* ---------------------------------------------------------------------------
 * Before others' DDL.  DROP EXTENSION: lock sources before the queue, and let
 * the worker go
 * ------------------------------------------------------------------------ */

CREATE FUNCTION before_drop() RETURNS event_trigger
	AS 'MODULE_PATHNAME', 'crate_sync_before_drop' LANGUAGE C;
COMMENT ON FUNCTION before_drop() IS
	'event trigger: before DROP EXTENSION crate_sync, locks the mirrored tables and stops the worker';
REVOKE ALL ON FUNCTION before_drop() FROM PUBLIC;
CREATE EVENT TRIGGER crate_sync_before_drop ON ddl_command_start
	WHEN TAG IN ('DROP EXTENSION') EXECUTE FUNCTION crate_sync.before_drop();

/* ---------------------------------------------------------------------------
 * Privileges
 * ------------------------------------------------------------------------ */

REVOKE ALL ON FUNCTION add_table(regclass, text, name[], text, name, jsonb, boolean, boolean, text),
	follow_name(regclass), keep_table(regclass),
	alter_table(regclass, name[], text, name, jsonb, boolean),
	remove_table(regclass, boolean, boolean), add_all_tables(name[]),
	resync(regclass, text, text), cancel(regclass), verify(regclass, boolean),
	pause(regclass), resume(regclass), retry_failed(regclass, bigint),
	discard_failed(regclass, bigint), start(), stop(), adopt(),
	target_query(text, jsonb), benchmark(text, text, int, int),
	benchmark_chart(int, int), wait_for_sync(regclass, interval),
	queue_stats(boolean), worker_status(), table_states(), heartbeat(),
	preview(regclass, name[], name, jsonb), get_target_ddl(regclass),
	add_document(jsonb, text, text, jsonb, boolean, boolean), add_documents(jsonb),
	remove_document(text, boolean, boolean), preview_document(jsonb, jsonb), get_document_query(text) FROM PUBLIC;

-- what ALTER DEFAULT PRIVILEGES gave away: whoever can write the catalog acts as any table's owner
DO $$
DECLARE
	grantee pg_catalog.text;
BEGIN
	FOR grantee IN
		SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END
		FROM (SELECT nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = 'crate_sync'
			  UNION ALL SELECT c.relowner, c.relacl FROM pg_catalog.pg_class c
				JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'crate_sync'
			  UNION ALL SELECT p.proowner, p.proacl FROM pg_catalog.pg_proc p
				JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'crate_sync') AS o (owner, acl),
			pg_catalog.aclexplode(o.acl) AS a
		WHERE a.grantee <> o.owner
	LOOP
		EXECUTE 'REVOKE ALL ON SCHEMA crate_sync FROM ' || grantee || ' CASCADE';
		EXECUTE 'REVOKE ALL ON ALL TABLES IN SCHEMA crate_sync FROM ' || grantee || ' CASCADE';
		EXECUTE 'REVOKE ALL ON ALL SEQUENCES IN SCHEMA crate_sync FROM ' || grantee || ' CASCADE';
		EXECUTE 'REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crate_sync FROM ' || grantee || ' CASCADE';
	END LOOP;
END $$;

GRANT USAGE ON SCHEMA crate_sync TO pg_monitor;
GRANT SELECT ON status, tables, progress, failed_rows, differences, benchmark_results TO pg_monitor;
GRANT EXECUTE ON FUNCTION queue_stats(boolean), worker_status(), table_states(), heartbeat(), wait_for_sync(regclass, interval),
	benchmark_chart(int, int) TO pg_monitor;

/* --- reports: what tells how the mirror is, beyond the views above --- */

/* ---------------------------------------------------------------------------
 * Metrics.  Names and units are those of the Prometheus world: seconds, bytes,
 * counters in _total.  Labels are few, as each value makes a series.
 * ------------------------------------------------------------------------ */

CREATE FUNCTION metrics(format text DEFAULT 'openmetrics') RETURNS text
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
DECLARE
	result text;
BEGIN
	IF format IS NULL OR format NOT IN ('openmetrics', 'prometheus') THEN
		RAISE EXCEPTION 'format must be openmetrics or prometheus' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	WITH s AS MATERIALIZED (SELECT * FROM crate_sync.status),
	l AS (SELECT t.*, format('datname="%s",schema="%s",table="%s"', x.d, x.s, x.t)
			|| CASE t.kind WHEN 'document' THEN format(',document="%s"', x.u) ELSE '' END AS labels
		  FROM crate_sync.tables t CROSS JOIN LATERAL (SELECT
			replace(replace(replace(current_database(), '\', '\\'), '"', '\"'), E'\n', '\n') AS d,
			replace(replace(replace(t.schemaname, '\', '\\'), '"', '\"'), E'\n', '\n') AS s,
			replace(replace(replace(t.relname, '\', '\\'), '"', '\"'), E'\n', '\n') AS t,
			replace(replace(replace(t.target, '\', '\\'), '"', '\"'), E'\n', '\n') AS u) x),
	d AS (SELECT format('datname="%s"', replace(replace(replace(current_database(), '\', '\\'), '"', '\"'), E'\n', '\n')) AS labels),
	known(state) AS (VALUES ('ok'), ('starting'), ('nothing mirrored'), ('no target'), ('no worker'), ('stopped'), ('disabled'),
		('update needed'), ('target unreachable'), ('target refuses'), ('table error'), ('renamed'), ('dropped'), ('queue full'),
		('lagging'), ('incomplete'), ('differences'), ('paused'), ('failed rows'), ('worker error'), ('down')),
	m(n, name, type, unit, help, labels, value) AS (
		SELECT 1, 'up', 'gauge', NULL, 'Whether all is well: 1 if crate_sync.status is ok.', d.labels, s.ok::int::text FROM s, d
		UNION ALL SELECT 2, 'state', 'gauge', NULL, '1 for the state that crate_sync.status has.',
			format('%s,state="%s"', d.labels, k.state), (k.state = s.state)::int::text
			FROM s, d, (SELECT state FROM known UNION SELECT state FROM s) k
		UNION ALL SELECT 3, 'worker_running', 'gauge', NULL, 'Whether the worker runs.', d.labels, (s.pid IS NOT NULL)::int::text FROM s, d
		UNION ALL SELECT 4, 'heartbeat_timestamp_seconds', 'gauge', 'seconds', 'When the worker last went round its loop; moves when idle, too.',
			d.labels, extract(epoch FROM s.heartbeat_time)::text FROM s, d
		UNION ALL SELECT 5, 'tables', 'gauge', NULL, 'Mirrored tables.', d.labels, s.n_tables::text FROM s, d
		UNION ALL SELECT 6, 'tables_not_ok', 'gauge', NULL, 'Mirrored tables that are not well.', d.labels, s.n_tables_not_ok::text FROM s, d
		UNION ALL SELECT 7, 'lag_seconds', 'gauge', 'seconds', 'Age of the oldest queued change.', d.labels, round(extract(epoch FROM s.lag), 3)::text FROM s, d
		UNION ALL SELECT 8, 'queued_keys', 'gauge', NULL, 'Keys that wait to be pushed.', d.labels, s.queued_keys::text FROM s, d
		UNION ALL SELECT 9, 'queue_bytes', 'gauge', 'bytes', 'Size of the queue on disk.', d.labels, s.queue_bytes::text FROM s, d
		UNION ALL SELECT 10, 'failed_rows', 'gauge', NULL, 'Rows that the target refused and that are set aside.', d.labels, s.n_failed_rows::text FROM s, d
		UNION ALL SELECT 11, 'differences', 'gauge', NULL, 'Differences that the last verify of each table found and that nothing has mended.', d.labels, s.n_differences::text FROM s, d
		UNION ALL SELECT 12, 'last_ack_timestamp_seconds', 'gauge', 'seconds', 'When rows were last written down as arrived.',
			d.labels, round(extract(epoch FROM s.last_ack_time), 3)::text FROM s, d
		UNION ALL SELECT 20, 'table_ok', 'gauge', NULL, 'Whether the table is well.', l.labels,
			(l.state IN ('new', 'loading', 'sweeping', 'verifying', 'ready'))::int::text FROM l
		UNION ALL SELECT 21, 'table_lag_seconds', 'gauge', 'seconds', 'Age of the table''s oldest queued change.', l.labels, round(extract(epoch FROM l.lag), 3)::text FROM l
		UNION ALL SELECT 22, 'table_queued_keys', 'gauge', NULL, 'The table''s keys that wait to be pushed.', l.labels, l.queued_keys::text FROM l
		UNION ALL SELECT 23, 'table_failed_rows', 'gauge', NULL, 'The table''s rows that are set aside.', l.labels, l.n_failed_rows::text FROM l
		UNION ALL SELECT 24, 'rows_upserted', 'counter', NULL, 'Rows written to the target.', l.labels, l.n_tup_upserted::text FROM l
		UNION ALL SELECT 25, 'rows_deleted', 'counter', NULL, 'Rows deleted in the target.', l.labels, l.n_tup_deleted::text FROM l
		UNION ALL SELECT 26, 'rows_failed', 'counter', NULL, 'Rows set aside, ever.', l.labels, l.n_tup_failed::text FROM l
		UNION ALL SELECT 27, 'requests', 'counter', NULL, 'Requests with the table''s rows.', l.labels, l.requests::text FROM l
		UNION ALL SELECT 28, 'retries', 'counter', NULL, 'Requests that had to be sent again.', l.labels, l.retries::text FROM l
		UNION ALL SELECT 29, 'bytes_sent', 'counter', NULL, 'Size of the requests.', l.labels, l.bytes_sent::text FROM l
		UNION ALL SELECT 30, 'request_seconds', 'counter', 'seconds', 'Time that the requests took.', l.labels, (l.request_time / 1000)::text FROM l
		UNION ALL SELECT 31, 'verify_ok', 'gauge', NULL, 'Whether the last verify left no difference.', l.labels, l.last_verify_ok::int::text FROM l
		UNION ALL SELECT 32, 'last_verify_timestamp_seconds', 'gauge', 'seconds', 'When the last verify ended.',
			l.labels, round(extract(epoch FROM l.last_verify_time), 3)::text FROM l
		UNION ALL SELECT 33, 'last_load_timestamp_seconds', 'gauge', 'seconds', 'When the last load ended.',
			l.labels, round(extract(epoch FROM l.last_load_time), 3)::text FROM l),
	f AS (SELECT m.n, 'crate_sync_' || m.name AS family, 'crate_sync_' || m.name || CASE m.type WHEN 'counter' THEN '_total' ELSE '' END AS name,
			m.type, m.unit, m.help, m.labels, m.value
		  FROM m WHERE m.value IS NOT NULL),
	g AS (SELECT f.n, CASE metrics.format WHEN 'openmetrics' THEN f.family ELSE f.name END AS title, f.type, f.unit, f.help,
			string_agg(format(E'%s{%s} %s\n', f.name, f.labels, f.value), '' ORDER BY f.labels) AS samples
		  FROM f GROUP BY f.n, f.family, f.name, f.type, f.unit, f.help)
	-- without an end of line at its end, which psql puts there
	SELECT rtrim(string_agg(format(E'# HELP %s %s\n# TYPE %s %s\n', g.title, g.help, g.title, g.type)
			|| CASE WHEN g.unit IS NOT NULL AND metrics.format = 'openmetrics' THEN format(E'# UNIT %s %s\n', g.title, g.unit) ELSE '' END
			|| g.samples, '' ORDER BY g.n)
		|| CASE metrics.format WHEN 'openmetrics' THEN E'# EOF' ELSE '' END, E'\n')
		INTO result FROM g;
	RETURN result;
END $$;
COMMENT ON FUNCTION metrics(text) IS
	'what status and tables say, in the text format of OpenMetrics, or of prometheus for the textfile collector';

/* ---------------------------------------------------------------------------
 * Figures of both sides, and what verify has found
 * ------------------------------------------------------------------------ */

CREATE FUNCTION validate(relation regclass,
						 OUT what text, OUT column_name name, OUT source text, OUT target text,
						 OUT ok boolean, OUT note text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'crate_sync_validate' LANGUAGE C STRICT ROWS 20;
COMMENT ON FUNCTION validate(regclass) IS
	'figures of both sides of a mirrored table: rows, values not NULL, least and greatest of each column, rows without parent; the last row is the verdict';

CREATE TABLE verification (
	verification_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	relid oid NOT NULL,
	schemaname name NOT NULL,
	relname name NOT NULL,
	start_time timestamptz,
	end_time timestamptz NOT NULL DEFAULT clock_timestamp(),
	rows_compared bigint NOT NULL,
	n_found bigint,                    -- NULL: it was given up
	n_repaired bigint,
	repair boolean NOT NULL,
	ok boolean NOT NULL,
	message text                       -- why it was given up
);
COMMENT ON TABLE verification IS 'storage of verifications';

CREATE VIEW verifications AS
	SELECT v.relid, v.schemaname, v.relname, v.ok, v.rows_compared, v.n_found, v.n_repaired, v.repair,
		   v.start_time, v.end_time, v.message
	FROM crate_sync.verification v;
COMMENT ON VIEW verifications IS 'what each verify has found, the figures that its line in the log has; kept for history_retention';
COMMENT ON COLUMN verifications.relid IS 'the table';
COMMENT ON COLUMN verifications.schemaname IS 'its schema then';
COMMENT ON COLUMN verifications.relname IS 'its name then';
COMMENT ON COLUMN verifications.ok IS 'whether no difference was left';
COMMENT ON COLUMN verifications.rows_compared IS 'rows of the source that were compared';
COMMENT ON COLUMN verifications.n_found IS 'differences found; NULL: it was given up';
COMMENT ON COLUMN verifications.n_repaired IS 'those that were equal after repair';
COMMENT ON COLUMN verifications.repair IS 'whether it was to repair';
COMMENT ON COLUMN verifications.start_time IS 'when it began; NULL: not known, as the worker was started anew';
COMMENT ON COLUMN verifications.end_time IS 'when it ended';
COMMENT ON COLUMN verifications.message IS 'why it was given up';

/* ---------------------------------------------------------------------------
 * History.  A sample holds a table's counters as they were; the view says what
 * was added.
 * ------------------------------------------------------------------------ */

CREATE TABLE history_sample (
	time timestamptz NOT NULL,         -- when the minute, or hour, began
	span interval NOT NULL,            -- 1 min, 1 hour; 0: what is too old, but for the sums
	mirror_id int NOT NULL,
	relid oid NOT NULL,
	schemaname name NOT NULL,
	relname name NOT NULL,
	n_tup_upserted bigint NOT NULL,
	n_tup_deleted bigint NOT NULL,
	n_tup_failed bigint NOT NULL,
	requests bigint NOT NULL,
	retries bigint NOT NULL,
	bytes_sent bigint NOT NULL,
	request_time float8 NOT NULL,
	queued_keys bigint,
	lag interval,
	PRIMARY KEY (mirror_id, time, span)
);
COMMENT ON TABLE history_sample IS 'storage of history: counters as they were';

CREATE VIEW history AS
	SELECT d.time, d.span, d.relid, d.schemaname, d.relname, d.n_tup_upserted, d.n_tup_deleted, d.n_tup_failed,
		   d.requests, d.retries, d.bytes_sent, d.request_time, d.queued_keys, d.lag
	FROM (SELECT h.time, h.span, h.relid, h.schemaname, h.relname,
				 greatest(h.n_tup_upserted - coalesce(pg_catalog.lag(h.n_tup_upserted) OVER w, 0), 0) AS n_tup_upserted,
				 greatest(h.n_tup_deleted - coalesce(pg_catalog.lag(h.n_tup_deleted) OVER w, 0), 0) AS n_tup_deleted,
				 greatest(h.n_tup_failed - coalesce(pg_catalog.lag(h.n_tup_failed) OVER w, 0), 0) AS n_tup_failed,
				 greatest(h.requests - coalesce(pg_catalog.lag(h.requests) OVER w, 0), 0) AS requests,
				 greatest(h.retries - coalesce(pg_catalog.lag(h.retries) OVER w, 0), 0) AS retries,
				 greatest(h.bytes_sent - coalesce(pg_catalog.lag(h.bytes_sent) OVER w, 0), 0) AS bytes_sent,
				 greatest(h.request_time - coalesce(pg_catalog.lag(h.request_time) OVER w, 0), 0) AS request_time,
				 h.queued_keys, h.lag
		  FROM crate_sync.history_sample h
		  WINDOW w AS (PARTITION BY h.mirror_id ORDER BY h.time)) d
	WHERE d.span > interval '0';
COMMENT ON VIEW history IS 'what each table has pushed, a row a minute in which there was something, of more than a day ago a row an hour; kept for history_retention';
COMMENT ON COLUMN history.time IS 'when the minute, or hour, began';
COMMENT ON COLUMN history.span IS 'a minute or an hour';
COMMENT ON COLUMN history.relid IS 'the table';
COMMENT ON COLUMN history.schemaname IS 'its schema then';
COMMENT ON COLUMN history.relname IS 'its name then';
COMMENT ON COLUMN history.n_tup_upserted IS 'rows written to the target';
COMMENT ON COLUMN history.n_tup_deleted IS 'rows deleted in the target';
COMMENT ON COLUMN history.n_tup_failed IS 'rows set aside';
COMMENT ON COLUMN history.requests IS 'requests with its rows';
COMMENT ON COLUMN history.retries IS 'requests that had to be sent again';
COMMENT ON COLUMN history.bytes_sent IS 'size of the requests';
COMMENT ON COLUMN history.request_time IS 'time that the requests took, in ms';
COMMENT ON COLUMN history.queued_keys IS 'its keys in the queue at the end of the minute; of an hour, the most; NULL: not known';
COMMENT ON COLUMN history.lag IS 'age of its oldest key in the queue, likewise';
-- what was pushed before there was a history is none of it
INSERT INTO history_sample
	SELECT pg_catalog.now(), '0', s.mirror_id, s.relid, coalesce(m.source_schema, ''), coalesce(m.source_name, ''),
		   s.n_tup_upserted, s.n_tup_deleted, s.n_tup_failed, s.requests, s.retries, s.bytes_sent, s.request_time, NULL, NULL
	FROM mirror_state s JOIN mirror m USING (mirror_id);

/* ---------------------------------------------------------------------------
 * The report: one HTML file, for a person.  What comes from users (names,
 * errors, queries) goes through html().
 * ------------------------------------------------------------------------ */

CREATE FUNCTION html(value text) RETURNS text
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
	AS $$ SELECT coalesce(replace(replace(replace(replace(replace(regexp_replace(value, '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]', '?', 'g'),
		'&', '&amp;'), '<', '&lt;'), '>', '&gt;'), '"', '&quot;'), '''', '&#39;'), '') $$;
COMMENT ON FUNCTION html(text) IS 'a text as it stands in HTML, in an attribute, too';

CREATE FUNCTION report_bars(labels text[], bars float8[], shown text[], classes text[], width int DEFAULT 420) RETURNS text
	LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
	AS $$
	-- a bar never looks like none where there is something
	SELECT format('<svg viewBox="0 0 %s %s" role="img" class="bars">', width, 8 + 24 * count(*))
		|| string_agg(format('<text x="0" y="%s" class="lab">%s</text><rect x="112" y="%s" width="%s" height="14" rx="2" class="%s"><title>%s: %s</title></rect><text x="%s" y="%s" class="val">%s</text>',
			18 + 24 * (b.i - 1), crate_sync.html(CASE WHEN length(b.label) > 15 THEN left(b.label, 14) || '…' ELSE b.label END),
			7 + 24 * (b.i - 1), round(w.w::numeric, 1), b.class, crate_sync.html(b.label), crate_sync.html(b.shown),
			round((118 + w.w)::numeric, 1), 18 + 24 * (b.i - 1), crate_sync.html(b.shown)), '' ORDER BY b.i)
		|| '</svg>'
	FROM unnest(labels, bars, shown, classes) WITH ORDINALITY b(label, bar, shown, class, i)
		CROSS JOIN (SELECT nullif(max(m), 0) AS most FROM unnest(bars) m) t
		CROSS JOIN LATERAL (SELECT CASE WHEN coalesce(b.bar, 0) <= 0 OR t.most IS NULL THEN 0 ELSE greatest(2, (width - 212) * b.bar / t.most) END AS w) w
	$$;
COMMENT ON FUNCTION report_bars(text[], float8[], text[], text[], int) IS 'part of report(): bars as SVG';

CREATE FUNCTION report_line(times timestamptz[], figures float8[], since timestamptz, until timestamptz, unit text, class text) RETURNS text
	LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
	AS $$
	SELECT '<svg viewBox="0 0 420 176" role="img" class="line">'
		|| format('<line x1="52" y1="150" x2="412" y2="150" class="axis"/><line x1="52" y1="20" x2="412" y2="20" class="grid"/><line x1="52" y1="85" x2="412" y2="85" class="grid"/>')
		|| format('<text x="48" y="24" class="tick end">%s</text><text x="48" y="89" class="tick end">%s</text><text x="48" y="154" class="tick end">0</text><text x="52" y="10" class="tick">%s</text>',
			top.shown, half.shown, crate_sync.html(unit))
		|| (SELECT string_agg(format('<text x="%s" y="168" class="tick %s">%s</text>', round((52 + 360 * k / 4.0)::numeric), CASE k WHEN 0 THEN '' WHEN 4 THEN 'end' ELSE 'mid' END,
				to_char(since + (until - since) * (k / 4.0), CASE WHEN until - since > interval '2 days' THEN 'MM-DD HH24:MI' ELSE 'HH24:MI' END)), '' ORDER BY k)
			FROM generate_series(0, 4) k WHERE k % 2 = 0 OR until - since <= interval '2 days')
		|| CASE WHEN p.points IS NULL THEN '<text x="232" y="90" class="tick mid">nothing in this time</text>' ELSE p.points END
		|| '</svg>'
	FROM (SELECT greatest(coalesce(max(v), 0), 0) AS most FROM unnest(figures) v) m
		CROSS JOIN LATERAL (SELECT CASE WHEN m.most <= 0 THEN 1 ELSE m.most END AS y) s
		CROSS JOIN LATERAL (SELECT CASE WHEN s.y >= 10 THEN round(s.y::numeric)::text ELSE round(s.y::numeric, 2)::text END AS shown) top
		CROSS JOIN LATERAL (SELECT CASE WHEN s.y >= 20 THEN round(s.y::numeric / 2)::text ELSE round(s.y::numeric / 2, 2)::text END AS shown) half
		CROSS JOIN (SELECT string_agg(format('<rect x="%s" y="%s" width="%s" height="%s" class="%s"><title>%s UTC: %s</title></rect>',
				round((52 + 360 * extract(epoch FROM q.t - since)::numeric / greatest(extract(epoch FROM until - since)::numeric, 1)), 1),
				round((150 - 130 * q.v / q.y)::numeric, 1), greatest(round(360.0 / greatest(q.n, 120), 1), 1.5), round((130 * q.v / q.y)::numeric, 1), class,
				to_char(q.t, 'YYYY-MM-DD HH24:MI'), round(q.v::numeric, 2)), '' ORDER BY q.t) AS points
			FROM (SELECT u.t, greatest(u.v, 0) AS v, greatest(1e-9, (SELECT max(v) FROM unnest(figures) v)) AS y, count(*) OVER () AS n
				  FROM unnest(times, figures) u(t, v) WHERE u.v > 0 AND u.t >= since AND u.t < until) q) p
	$$;
COMMENT ON FUNCTION report_line(timestamptz[], float8[], timestamptz, timestamptz, text, text) IS 'part of report(): a figure over time as SVG';

CREATE FUNCTION report(since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL) RETURNS text
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres'
	AS $$
DECLARE
	until_ timestamptz := coalesce(until, clock_timestamp());
	since_ timestamptz := coalesce(since, coalesce(until, clock_timestamp()) - interval '1 day');
	step interval;
	s crate_sync.status%ROWTYPE;
	out text;
	part text;
	n int;
BEGIN
	IF since_ >= until_ THEN
		RAISE EXCEPTION 'since must be before until' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	SELECT * INTO s FROM crate_sync.status;
	-- about 240 points at most
	step := CASE WHEN until_ - since_ <= interval '4 hours' THEN interval '1 min'
				WHEN until_ - since_ <= interval '2 days' THEN interval '10 min'
				WHEN until_ - since_ <= interval '10 days' THEN interval '1 hour' ELSE interval '4 hours' END;

	out := format($h$<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>crate_sync: %1$s, %2$s</title>
<style>
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--dim:#5a6472;--line:#d8dee4;--card:#f6f8fa;--good:#1a7f37;--bad:#cf222e;--warn:#9a6700;--a:#0969da;--b:#bf8700;--c:#cf222e}
@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--dim:#9aa5b1;--line:#30363d;--card:#161b22;--good:#3fb950;--bad:#f85149;--warn:#d29922;--a:#58a6ff;--b:#d29922;--c:#f85149}}
*{box-sizing:border-box}body{margin:0 auto;padding:16px;max-width:1120px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:28px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}h3{font-size:14px;margin:12px 0 4px}
p{margin:6px 0;overflow-wrap:anywhere}.dim{color:var(--dim)}code,pre{font:13px/1.45 ui-monospace,Menlo,Consolas,monospace}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px;margin:6px 0}
.state{border:1px solid var(--line);border-left:6px solid var(--bad);background:var(--card);border-radius:6px;padding:10px 14px;margin:12px 0}.state.ok{border-left-color:var(--good)}.state b{font-size:18px}
.figs{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:8px;margin:10px 0}.figs div{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:8px 10px}.figs b{display:block;font-size:18px;overflow-wrap:anywhere}.figs span{color:var(--dim);font-size:12px}
.wrap{overflow-x:auto}table{border-collapse:collapse;width:100%%;font-size:13px}th,td{text-align:left;padding:5px 8px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere;min-width:56px}td:first-child{min-width:120px}th{color:var(--dim);font-weight:600;white-space:nowrap}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%%,420px),1fr));gap:16px}
svg{display:block;width:100%%;height:auto;max-width:560px}svg text{fill:var(--fg);font:12px ui-monospace,Menlo,Consolas,monospace}.tick{fill:var(--dim)!important;font-size:11px!important}.end{text-anchor:end}.mid{text-anchor:middle}.axis{stroke:var(--dim)}.grid{stroke:var(--line)}
.fa{fill:var(--a)}.fb{fill:var(--b)}.fc{fill:var(--c)}.fg{fill:var(--dim)}.sw{display:inline-block;width:10px;height:10px;border-radius:2px;margin:0 4px 0 12px}.sa{background:var(--a)}.sb{background:var(--b)}.sc{background:var(--c)}
footer{margin:32px 0 8px;color:var(--dim);font-size:12px}
@media print{body{max-width:none}}
</style></head><body>
<h1>crate_sync: %1$s</h1>
<p class="dim">%3$s to %4$s UTC. Into %5$s%6$s.</p>
<div class="state%7$s"><b>%8$s</b><p>%9$s</p>%10$s</div>
<div class="figs"><div><b>%11$s</b><span>tables, %12$s not well</span></div><div><b>%13$s</b><span>keys queued, %14$s</span></div><div><b>%15$s</b><span>lag</span></div>
<div><b>%16$s</b><span>failed rows</span></div><div><b>%17$s</b><span>differences</span></div><div><b>%18$s</b><span>last acknowledgement</span></div></div>
$h$, crate_sync.html(current_database()), to_char(until_, 'YYYY-MM-DD'), to_char(since_, 'YYYY-MM-DD HH24:MI'), to_char(until_, 'YYYY-MM-DD HH24:MI'),
		crate_sync.html(coalesce(nullif(s.target, ''), 'no target')), crate_sync.html(', ' || s.target_version),
		CASE WHEN s.ok THEN ' ok' ELSE '' END, crate_sync.html(s.state), crate_sync.html(s.message),
		CASE WHEN s.hint IS NOT NULL THEN '<p>What to do:</p><pre>' || crate_sync.html(s.hint) || '</pre>' ELSE '' END,
		s.n_tables, s.n_tables_not_ok, s.queued_keys, pg_size_pretty(s.queue_bytes), crate_sync.html(date_trunc('second', s.lag)::text),
		s.n_failed_rows, s.n_differences, coalesce(to_char(s.last_ack_time, 'YYYY-MM-DD HH24:MI:SS'), 'none'));

	-- tables
	SELECT '<h2>Tables</h2><div class="wrap"><table><tr><th>table</th><th>state</th><th class="n">upserted</th><th class="n">deleted</th><th class="n">failed</th><th class="n">queued</th><th class="n">lag</th><th>last proof</th><th>what to do</th></tr>'
		|| string_agg(format('<tr><td>%s</td><td class="%s">%s</td><td class="n">%s</td><td class="n">%s</td><td class="n">%s</td><td class="n">%s</td><td class="n">%s</td><td>%s</td><td>%s</td></tr>',
			crate_sync.html(t.schemaname || '.' || t.relname),
			CASE WHEN t.state IN ('new', 'loading', 'sweeping', 'verifying', 'ready') THEN 'good' ELSE 'bad' END, crate_sync.html(t.state),
			t.n_tup_upserted, t.n_tup_deleted, t.n_tup_failed, coalesce(t.queued_keys::text, '?'), coalesce(date_trunc('second', t.lag)::text, '?'),
			CASE WHEN v.end_time IS NULL THEN '<span class="dim">never compared</span>'
				WHEN v.ok THEN format('<span class="good">equal</span>, %s rows, %s', v.rows_compared, to_char(v.end_time, 'YYYY-MM-DD HH24:MI'))
				WHEN v.n_found IS NULL THEN format('<span class="bad">given up</span>: %s', crate_sync.html(v.message))
				ELSE format('<span class="bad">%s differ</span> of %s rows, %s', v.n_found - v.n_repaired, v.rows_compared, to_char(v.end_time, 'YYYY-MM-DD HH24:MI')) END,
			crate_sync.html(t.hint)), '' ORDER BY t.schemaname, t.relname) || '</table></div>'
		INTO part
		FROM crate_sync.tables t
			LEFT JOIN LATERAL (SELECT * FROM crate_sync.verifications v WHERE v.relid = t.relid ORDER BY v.end_time DESC LIMIT 1) v ON true;
	out := out || coalesce(part, '<h2>Tables</h2><p class="dim">none is mirrored</p>');

	-- rows pushed in that time
	SELECT '<h2>Rows pushed in this time</h2><p><span class="sw sa"></span>upserted<span class="sw sb"></span>deleted<span class="sw sc"></span>failed</p><div class="two">'
		|| string_agg('<div><h3>' || crate_sync.html(h.name) || '</h3>'
			|| crate_sync.report_bars(ARRAY['upserted', 'deleted', 'failed'], ARRAY[h.u, h.d, h.f]::float8[], ARRAY[h.u::text, h.d::text, h.f::text], '{fa,fb,fc}') || '</div>', '' ORDER BY h.name)
		|| '</div>'
		INTO part
		FROM (SELECT h.schemaname || '.' || h.relname AS name, sum(h.n_tup_upserted) AS u, sum(h.n_tup_deleted) AS d, sum(h.n_tup_failed) AS f
			  FROM crate_sync.history h WHERE h.time >= since_ - h.span AND h.time < until_ GROUP BY 1 ORDER BY sum(h.n_tup_upserted + h.n_tup_deleted + h.n_tup_failed) DESC LIMIT 40) h;
	out := out || coalesce(part, '<h2>Rows pushed in this time</h2><p class="dim">none, or no history is kept</p>');

	-- over time
	SELECT '<h2>Over time</h2><div class="two"><div><h3>Rows per second</h3>'
		|| crate_sync.report_line(array_agg(b.t ORDER BY b.t), array_agg(b.r ORDER BY b.t), since_, until_, 'rows/s', 'fa')
		|| '</div><div><h3>Lag</h3>' || crate_sync.report_line(array_agg(b.t ORDER BY b.t), array_agg(b.l ORDER BY b.t), since_, until_, 'seconds', 'fb') || '</div></div>'
		INTO part
		FROM (SELECT date_bin(step, h.time, since_) AS t, sum(h.n_tup_upserted + h.n_tup_deleted) / extract(epoch FROM greatest(step, max(h.span)))::float8 AS r,
				max(extract(epoch FROM h.lag))::float8 AS l
			  FROM crate_sync.history h WHERE h.time >= since_ AND h.time < until_ GROUP BY 1) b;
	out := out || coalesce(part, '');

	-- proof
	SELECT '<h2>Comparisons of both sides</h2><div class="wrap"><table><tr><th>table</th><th>ended</th><th class="n">rows compared</th><th class="n">differences</th><th class="n">repaired</th><th>outcome</th></tr>'
		|| string_agg(format('<tr><td>%s</td><td>%s</td><td class="n">%s</td><td class="n">%s</td><td class="n">%s</td><td class="%s">%s</td></tr>',
			crate_sync.html(v.schemaname || '.' || v.relname), to_char(v.end_time, 'YYYY-MM-DD HH24:MI:SS'), v.rows_compared, coalesce(v.n_found::text, ''), coalesce(v.n_repaired::text, ''),
			CASE WHEN v.ok THEN 'good' ELSE 'bad' END, CASE WHEN v.ok AND v.n_repaired > 0 THEN 'equal after repair' WHEN v.ok THEN 'equal' WHEN v.n_found IS NULL THEN 'given up: ' || crate_sync.html(v.message) ELSE 'differs' END), '' ORDER BY v.end_time DESC)
		|| '</table></div>'
		INTO part
		FROM (SELECT * FROM crate_sync.verifications v ORDER BY v.end_time DESC LIMIT 20) v;
	out := out || coalesce(part, '<h2>Comparisons of both sides</h2><p class="dim">none yet: <code>SELECT crate_sync.verify();</code></p>');

	-- failed rows by error
	SELECT '<h2>Failed rows</h2><div class="wrap"><table><tr><th>table</th><th class="n">rows</th><th>code</th><th>what was said</th><th>last</th></tr>'
		|| string_agg(format('<tr><td>%s</td><td class="n">%s</td><td>%s</td><td>%s</td><td>%s</td></tr>', crate_sync.html(f.name), f.n, crate_sync.html(f.error_code),
			crate_sync.html(left(f.message, 400)), to_char(f.last, 'YYYY-MM-DD HH24:MI')), '' ORDER BY f.n DESC, f.name)
		|| '</table></div><p>Mend them, then <code>SELECT crate_sync.retry_failed();</code></p>'
		INTO part
		FROM (SELECT f.schemaname || '.' || f.relname AS name, f.error_code, min(f.error_message) AS message, count(*) AS n, max(f.last_failed_time) AS last
			  FROM crate_sync.failed_rows f GROUP BY 1, 2 ORDER BY count(*) DESC LIMIT 20) f;
	out := out || coalesce(part, '<h2>Failed rows</h2><p class="good">none</p>');

	-- benchmarks: what is slower is as plain as what is faster
	SELECT '<h2>The same question to both</h2><p class="dim">Median times, the way to the target and back included. What is slower there is said as plainly as what is faster.</p><div class="two">'
		|| string_agg('<div><pre>' || crate_sync.html(left(b.query, 300)) || '</pre>'
			|| crate_sync.report_bars(ARRAY['PostgreSQL', b.target], ARRAY[b.source_p50_time, b.target_p50_time], ARRAY[round(b.source_p50_time::numeric, 2) || ' ms', round(b.target_p50_time::numeric, 2) || ' ms'], '{fg,fa}')
			|| format('<p>%s; p95 %s against %s ms; %s</p></div>',
				CASE WHEN b.speedup >= 1.05 THEN format('<span class="good">%s is %s times faster</span>', crate_sync.html(b.target), round(b.speedup::numeric, 1))
					WHEN b.speedup <= 1 / 1.05 THEN format('<span class="bad">%s is %s times slower</span>', crate_sync.html(b.target), round((1 / greatest(b.speedup, 1e-9))::numeric, 1))
					ELSE 'both take as long' END,
				round(b.source_p95_time::numeric, 2), round(b.target_p95_time::numeric, 2),
				CASE WHEN b.rows_match THEN 'answers agree (' || b.source_rows || ' rows)' ELSE '<span class="bad">answers differ: ' || crate_sync.html(left(b.mismatch, 200)) || '</span>' END), '' ORDER BY b.benchmark_id DESC)
		|| '</div>'
		INTO part
		FROM (SELECT * FROM crate_sync.benchmark_results b WHERE b.run_time < until_ ORDER BY b.benchmark_id DESC LIMIT 10) b;
	out := out || coalesce(part, '<h2>The same question to both</h2><p class="dim">not asked yet: <code>SELECT * FROM crate_sync.benchmark(&#39;SELECT ...&#39;);</code></p>');

	-- settings that are not the default
	SELECT '<h2>Settings that differ from the default</h2><div class="wrap"><table><tr><th>setting</th><th>value</th><th>default</th><th>from</th></tr>'
		|| string_agg(format('<tr><td><code>%s</code></td><td>%s</td><td>%s</td><td>%s</td></tr>', crate_sync.html(g.name), crate_sync.html(g.setting || coalesce(' ' || g.unit, '')),
			crate_sync.html(g.boot_val || coalesce(' ' || g.unit, '')), crate_sync.html(g.source)), '' ORDER BY g.name)
		|| '</table></div>'
		INTO part
		FROM pg_settings g WHERE g.name LIKE 'crate\_sync.%' AND g.setting IS DISTINCT FROM g.boot_val AND g.name NOT LIKE '%password%' AND g.name NOT LIKE '%.debug\_%';
	out := out || coalesce(part, '<h2>Settings that differ from the default</h2><p class="dim">none</p>');

	SELECT extversion INTO part FROM pg_extension WHERE extname = 'crate_sync';
	RETURN out || format(E'<footer>crate_sync %s on PostgreSQL %s. Times are UTC. psql -Aqtc "SELECT crate_sync.report()" -o report.html</footer>\n</body></html>',
		crate_sync.html(part), crate_sync.html(current_setting('server_version')));
END $$;
COMMENT ON FUNCTION report(timestamptz, timestamptz) IS
	'an HTML page about the last day, or another time: psql -Aqtc "SELECT crate_sync.report()" -o report.html';

/* ---------------------------------------------------------------------------
 * In psql
 * ------------------------------------------------------------------------ */

CREATE FUNCTION chart(width int DEFAULT 30, OUT relname text, OUT what text, OUT n bigint, OUT bar text)
	RETURNS SETOF record
	LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
	AS $$
BEGIN
	IF width IS NULL OR width NOT BETWEEN 5 AND 200 THEN
		RAISE EXCEPTION 'width must be between 5 and 200 characters' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	-- one scale for all; where there is something a bar is at least one character long
	RETURN QUERY SELECT CASE x.i WHEN 1 THEN t.schemaname || '.' || t.relname ELSE '' END, x.what, x.n,
			repeat('#', CASE WHEN x.n > 0 THEN greatest(1, (width * x.n / max(x.n) OVER ())::int) ELSE 0 END)
		FROM crate_sync.tables t CROSS JOIN LATERAL (VALUES (1, 'upserted', t.n_tup_upserted), (2, 'deleted', t.n_tup_deleted),
			(3, 'failed', t.n_tup_failed), (4, 'queued', t.queued_keys)) x(i, what, n)
		ORDER BY t.schemaname, t.relname, x.i;
END $$;
COMMENT ON FUNCTION chart(int) IS
	'what each table has pushed, ever, and what waits, as bars of characters';

COMMENT ON COLUMN mirror.mirror_id IS 'its number here';
COMMENT ON COLUMN mirror.relid IS 'the mirrored relation';
COMMENT ON COLUMN mirror.target_schema IS 'its schema in the target';
COMMENT ON COLUMN mirror.target_table IS 'its table in the target';
COMMENT ON COLUMN mirror.key_columns IS 'columns that identify a row';
COMMENT ON COLUMN mirror.columns IS 'columns that are mirrored; NULL: all, those added later too';
COMMENT ON COLUMN mirror.row_filter IS 'rows that are mirrored; NULL: all';
COMMENT ON COLUMN mirror.soft_delete_column IS 'marks rows that are gone';
COMMENT ON COLUMN mirror.options IS 'as given to add_table';
COMMENT ON COLUMN mirror.paused IS 'whether pause() was called';
COMMENT ON COLUMN mirror.resync_no IS 'raised by each resync()';
COMMENT ON COLUMN mirror.resync_mode IS 'what the last one asked for';
COMMENT ON COLUMN mirror.resync_filter IS 'for which rows';
COMMENT ON COLUMN mirror.verify_no IS 'raised by each verify()';
COMMENT ON COLUMN mirror.verify_repair IS 'whether the last one was to repair';
COMMENT ON COLUMN mirror.follow IS 'table, or name: whatever relation has it';
COMMENT ON COLUMN mirror.source_schema IS 'schema that it was added by';
COMMENT ON COLUMN mirror.source_name IS 'name that it was added by';
COMMENT ON COLUMN mirror.source_owner IS 'owner as last seen';
COMMENT ON COLUMN mirror_state.mirror_id IS 'the table in mirror';
COMMENT ON COLUMN mirror_state.relid IS 'its relation then';
COMMENT ON COLUMN mirror_state.state IS 'new, loading, sweeping, verifying, ready, error and so on';
COMMENT ON COLUMN mirror_state.claimed IS 'whether the target table was claimed';
COMMENT ON COLUMN mirror_state.lanes_used IS 'fences that there may be at the target';
COMMENT ON COLUMN mirror_state.shape IS 'fingerprint of table and triggers';
COMMENT ON COLUMN mirror_state.resync_done IS 'the last resync_no that is done with';
COMMENT ON COLUMN mirror_state.load_mode IS 'what is under way; NULL: nothing';
COMMENT ON COLUMN mirror_state.load_phase IS 'load, sweep or verify';
COMMENT ON COLUMN mirror_state.load_rel IS 'leaf that is read';
COMMENT ON COLUMN mirror_state.load_filenode IS 'its storage';
COMMENT ON COLUMN mirror_state.load_block IS 'first block not yet acknowledged';
COMMENT ON COLUMN mirror_state.load_rows IS 'rows done with';
COMMENT ON COLUMN mirror_state.load_total IS 'rows of the table, an estimate';
COMMENT ON COLUMN mirror_state.load_bytes IS 'size of the requests';
COMMENT ON COLUMN mirror_state.load_start IS 'when the phase began';
COMMENT ON COLUMN mirror_state.sweep_key IS 'last key of the target that was looked at';
COMMENT ON COLUMN mirror_state.verify_done IS 'the last verify_no that is done with';
COMMENT ON COLUMN mirror_state.n_tup_upserted IS 'rows written';
COMMENT ON COLUMN mirror_state.n_tup_deleted IS 'rows deleted';
COMMENT ON COLUMN mirror_state.n_tup_failed IS 'rows set aside';
COMMENT ON COLUMN mirror_state.requests IS 'requests';
COMMENT ON COLUMN mirror_state.retries IS 'requests sent again';
COMMENT ON COLUMN mirror_state.bytes_sent IS 'size of the requests';
COMMENT ON COLUMN mirror_state.request_time IS 'time that they took, in ms';
COMMENT ON COLUMN mirror_state.last_ack_time IS 'last acknowledgement';
COMMENT ON COLUMN mirror_state.last_load_time IS 'end of the last load';
COMMENT ON COLUMN mirror_state.last_verify_time IS 'end of the last verify';
COMMENT ON COLUMN mirror_state.last_verify_ok IS 'its outcome';
COMMENT ON COLUMN mirror_state.last_error IS 'last error';
COMMENT ON COLUMN mirror_state.last_error_code IS 'its code';
COMMENT ON COLUMN mirror_state.last_error_time IS 'its time';
COMMENT ON COLUMN mirror_state.hint IS 'what to do about it';
COMMENT ON COLUMN mirror_state.due IS 'why a load is owed';
COMMENT ON COLUMN mirror_state.due_again IS 'one more is, behind that under way';
COMMENT ON COLUMN mirror_state.n_differences IS 'differences that the last verify left';
COMMENT ON COLUMN failed.failed_id IS 'its number';
COMMENT ON COLUMN failed.mirror_id IS 'the table in mirror';
COMMENT ON COLUMN failed.key IS 'the key';
COMMENT ON COLUMN failed.packed_key IS 'the key as in a chunk of the queue';
COMMENT ON COLUMN failed.layout IS 'of that';
COMMENT ON COLUMN failed.target_key IS 'the key as the target is told';
COMMENT ON COLUMN failed.action IS 'upsert, delete or read';
COMMENT ON COLUMN failed.error_code IS 'the code';
COMMENT ON COLUMN failed.error_message IS 'why';
COMMENT ON COLUMN failed.attempts IS 'how often';
COMMENT ON COLUMN failed.first_failed_time IS 'first time';
COMMENT ON COLUMN failed.last_failed_time IS 'last time';
COMMENT ON COLUMN removal.removal_id IS 'its number';
COMMENT ON COLUMN removal.target_schema IS 'schema in the target';
COMMENT ON COLUMN removal.target_table IS 'table in the target';
COMMENT ON COLUMN removal.drop_target IS 'whether it is to be dropped there';
COMMENT ON COLUMN detached.relid IS 'the relation';
COMMENT ON COLUMN control.singleton IS 'there is one row';
COMMENT ON COLUMN control.stopped IS 'whether stop() was called';
COMMENT ON COLUMN control.adopt_no IS 'raised by adopt()';
COMMENT ON COLUMN control.start_no IS 'raised by start()';
COMMENT ON COLUMN worker_state.singleton IS 'there is one row';
COMMENT ON COLUMN worker_state.unclean_starts IS 'deaths in a row';
COMMENT ON COLUMN worker_state.system_identifier IS 'the server that wrote this';
COMMENT ON COLUMN worker_state.timeline IS 'its timeline';
COMMENT ON COLUMN worker_state.token IS 'names this writer at the target';
COMMENT ON COLUMN worker_state.beat IS 'last beat, written before it goes to the target';
COMMENT ON COLUMN worker_state.beat_acked IS 'last beat that the target has';
COMMENT ON COLUMN worker_state.adopt_done IS 'the last adopt_no that is done with';
COMMENT ON COLUMN worker_state.start_done IS 'the last start_no that is done with';
COMMENT ON COLUMN worker_state.database IS 'whose token it is';
COMMENT ON COLUMN difference.difference_id IS 'its number';
COMMENT ON COLUMN difference.mirror_id IS 'the table in mirror';
COMMENT ON COLUMN difference.key IS 'the key';
COMMENT ON COLUMN difference.kind IS 'missing, extra or different';
COMMENT ON COLUMN difference.columns IS 'columns that differ';
COMMENT ON COLUMN difference.found_time IS 'when it was found';
COMMENT ON COLUMN difference.repaired IS 'whether it is none any more';
COMMENT ON COLUMN benchmark_results.benchmark_id IS 'its number';
COMMENT ON COLUMN benchmark_results.run_time IS 'when it was run';
COMMENT ON COLUMN benchmark_results.run_by IS 'by whom';
COMMENT ON COLUMN benchmark_results.target IS 'product and version of the target';
COMMENT ON COLUMN benchmark_results.query IS 'the question';
COMMENT ON COLUMN benchmark_results.target_sql IS 'as it was put to the target';
COMMENT ON COLUMN benchmark_results.iterations IS 'how often it was asked';
COMMENT ON COLUMN benchmark_results.warmup IS 'how often before that';
COMMENT ON COLUMN benchmark_results.source_min_time IS 'least time here, in ms';
COMMENT ON COLUMN benchmark_results.source_mean_time IS 'mean time here';
COMMENT ON COLUMN benchmark_results.source_p50_time IS 'median time here';
COMMENT ON COLUMN benchmark_results.source_p95_time IS 'time here that 95 of 100 stay below';
COMMENT ON COLUMN benchmark_results.target_min_time IS 'least time there, the way there and back included';
COMMENT ON COLUMN benchmark_results.target_mean_time IS 'mean time there';
COMMENT ON COLUMN benchmark_results.target_p50_time IS 'median time there';
COMMENT ON COLUMN benchmark_results.target_p95_time IS 'time there that 95 of 100 stay below';
COMMENT ON COLUMN benchmark_results.target_server_time IS 'median of what the target itself says that it took';
COMMENT ON COLUMN benchmark_results.speedup IS 'source_p50_time / target_p50_time: above 1 the target is faster';
COMMENT ON COLUMN benchmark_results.source_rows IS 'rows of the answer here';
COMMENT ON COLUMN benchmark_results.target_rows IS 'rows of the answer there';
COMMENT ON COLUMN benchmark_results.rows_match IS 'whether the answers agree';
COMMENT ON COLUMN benchmark_results.mismatch IS 'where they do not';
COMMENT ON COLUMN verification.verification_id IS 'its number';
COMMENT ON COLUMN verification.relid IS 'the table';
COMMENT ON COLUMN verification.schemaname IS 'its schema then';
COMMENT ON COLUMN verification.relname IS 'its name then';
COMMENT ON COLUMN verification.start_time IS 'when it began';
COMMENT ON COLUMN verification.end_time IS 'when it ended';
COMMENT ON COLUMN verification.rows_compared IS 'rows compared';
COMMENT ON COLUMN verification.n_found IS 'differences; NULL: it was given up';
COMMENT ON COLUMN verification.n_repaired IS 'those that were repaired';
COMMENT ON COLUMN verification.repair IS 'whether it was to repair';
COMMENT ON COLUMN verification.ok IS 'whether none was left';
COMMENT ON COLUMN verification.message IS 'why it was given up';
COMMENT ON COLUMN history_sample.time IS 'when the minute, or hour, began';
COMMENT ON COLUMN history_sample.span IS 'how long it is; 0: only for the sums';
COMMENT ON COLUMN history_sample.mirror_id IS 'the table in mirror';
COMMENT ON COLUMN history_sample.relid IS 'its relation';
COMMENT ON COLUMN history_sample.schemaname IS 'its schema then';
COMMENT ON COLUMN history_sample.relname IS 'its name then';
COMMENT ON COLUMN history_sample.n_tup_upserted IS 'rows written, ever';
COMMENT ON COLUMN history_sample.n_tup_deleted IS 'rows deleted, ever';
COMMENT ON COLUMN history_sample.n_tup_failed IS 'rows set aside, ever';
COMMENT ON COLUMN history_sample.requests IS 'requests, ever';
COMMENT ON COLUMN history_sample.retries IS 'requests sent again, ever';
COMMENT ON COLUMN history_sample.bytes_sent IS 'size of the requests, ever';
COMMENT ON COLUMN history_sample.request_time IS 'time that they took, ever, in ms';
COMMENT ON COLUMN history_sample.queued_keys IS 'keys in the queue';
COMMENT ON COLUMN history_sample.lag IS 'age of the oldest';
COMMENT ON COLUMN queue_0.xid IS 'transaction that queued the chunk';
COMMENT ON COLUMN queue_0.queued_at IS 'when';
COMMENT ON COLUMN queue_0.relid IS 'topmost relation with our trigger';
COMMENT ON COLUMN queue_0.seq IS 'number of the chunk in its transaction';
COMMENT ON COLUMN queue_0.layout IS 'hash of the columns and types of the key';
COMMENT ON COLUMN queue_0.n IS 'keys; below 0: TRUNCATE, a key not known, a long one';
COMMENT ON COLUMN queue_0.keys IS 'packed keys';
COMMENT ON COLUMN queue_1.xid IS 'transaction that queued the chunk';
COMMENT ON COLUMN queue_1.queued_at IS 'when';
COMMENT ON COLUMN queue_1.relid IS 'topmost relation with our trigger';
COMMENT ON COLUMN queue_1.seq IS 'number of the chunk in its transaction';
COMMENT ON COLUMN queue_1.layout IS 'hash of the columns and types of the key';
COMMENT ON COLUMN queue_1.n IS 'keys; below 0: TRUNCATE, a key not known, a long one';
COMMENT ON COLUMN queue_1.keys IS 'packed keys';
COMMENT ON COLUMN queue_2.xid IS 'transaction that queued the chunk';
COMMENT ON COLUMN queue_2.queued_at IS 'when';
COMMENT ON COLUMN queue_2.relid IS 'topmost relation with our trigger';
COMMENT ON COLUMN queue_2.seq IS 'number of the chunk in its transaction';
COMMENT ON COLUMN queue_2.layout IS 'hash of the columns and types of the key';
COMMENT ON COLUMN queue_2.n IS 'keys; below 0: TRUNCATE, a key not known, a long one';
COMMENT ON COLUMN queue_2.keys IS 'packed keys';
COMMENT ON COLUMN queue_hold.xid IS 'transaction that queued the chunk';
COMMENT ON COLUMN queue_hold.queued_at IS 'when';
COMMENT ON COLUMN queue_hold.relid IS 'topmost relation with our trigger';
COMMENT ON COLUMN queue_hold.seq IS 'number of the chunk in its transaction';
COMMENT ON COLUMN queue_hold.layout IS 'hash of the columns and types of the key';
COMMENT ON COLUMN queue_hold.n IS 'keys; below 0: TRUNCATE, a key not known, a long one';
COMMENT ON COLUMN queue_hold.keys IS 'packed keys';
COMMENT ON COLUMN mirror_state.target_id IS 'which table that is in the target, as last seen';
COMMENT ON COLUMN worker_state.incarnation IS 'of the worker that goes on with the beat, written here before it goes to the target';
COMMENT ON COLUMN worker_state.incarnation_acked IS 'as the target has it';

/* whose all of this is: the views' readers', and nobody else's, whatever ALTER DEFAULT PRIVILEGES says */
DO $$
DECLARE
	o pg_catalog.text;
	grantee pg_catalog.text;
BEGIN
	FOREACH o IN ARRAY ARRAY['metrics(text)',
			'chart(integer)',
			'validate(regclass)',
			'html(text)',
			'report_bars(text[], double precision[], text[], text[], integer)',
			'report_line(timestamptz[], double precision[], timestamptz, timestamptz, text, text)',
			'report(timestamptz, timestamptz)']
	LOOP
		FOR grantee IN
			SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END
			FROM pg_catalog.pg_proc p,
				pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
			WHERE p.oid = o::pg_catalog.regprocedure AND a.grantee <> p.proowner
		LOOP
			EXECUTE 'REVOKE ALL ON FUNCTION ' || o || ' FROM ' || grantee || ' CASCADE';
		END LOOP;
	END LOOP;
	FOREACH o IN ARRAY ARRAY['verification', 'verification_verification_id_seq', 'verifications', 'history_sample', 'history']::pg_catalog.text[]
	LOOP
		FOR grantee IN
			SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::pg_catalog.text END
			FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) AS a
			WHERE c.oid = o::pg_catalog.regclass AND a.grantee <> c.relowner
		LOOP
			EXECUTE 'REVOKE ALL ON ' || o || ' FROM ' || grantee || ' CASCADE';
		END LOOP;
	END LOOP;
END $$;
GRANT SELECT ON verifications, history TO pg_monitor;
GRANT EXECUTE ON FUNCTION metrics(text), chart(int), html(text), report(timestamptz, timestamptz),
	report_bars(text[], double precision[], text[], text[], integer),
	report_line(timestamptz[], double precision[], timestamptz, timestamptz, text, text) TO pg_monitor;
/* --- end of reports --- */

-- the worker starts when this transaction commits
SELECT crate_sync.start();
