--
-- What the extension brings, and that DROP EXTENSION takes it all away,
-- triggers on mirrored tables included.
--
SET client_min_messages = error;
DROP EXTENSION IF EXISTS crate_sync;
CREATE EXTENSION crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;

-- functions, with names and types of arguments as documented
SELECT p.proname, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
	FROM pg_proc p WHERE p.pronamespace = 'crate_sync'::regnamespace ORDER BY 1, 2;
-- the views' columns
SELECT c.relname, string_agg(a.attname, ' ' ORDER BY a.attnum) AS columns
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	WHERE c.relnamespace = 'crate_sync'::regnamespace AND c.relkind = 'v'
	GROUP BY c.relname ORDER BY c.relname;
-- all that a user may call or read is described
SELECT p.oid::regprocedure FROM pg_proc p
	WHERE p.pronamespace = 'crate_sync'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.oid::regclass FROM pg_class c
	WHERE c.relnamespace = 'crate_sync'::regnamespace AND c.relkind IN ('r', 'v')
	AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT c.oid::regclass, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
	WHERE c.relnamespace = 'crate_sync'::regnamespace AND c.relkind IN ('r', 'v')
	AND NOT a.attisdropped AND col_description(c.oid, a.attnum) IS NULL;
-- an empty installation
SELECT ok, state, n_tables, n_tables_not_ok, queued_keys, n_failed_rows FROM crate_sync.status;
SELECT count(*) FROM crate_sync.tables;
SELECT count(*) FROM crate_sync.progress;

CREATE SCHEMA ext;
SET search_path = ext;
CREATE TABLE flat (id int PRIMARY KEY);
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
SELECT crate_sync.add_table('flat');
SELECT crate_sync.add_table('parted');
SELECT schemaname, relname, target FROM crate_sync.tables ORDER BY relname;

-- the triggers do not stand in the way, and go along
BEGIN;
DROP EXTENSION crate_sync;
SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
	WHERE l.pid = pg_backend_pid() AND c.relnamespace = 'ext'::regnamespace AND c.relkind IN ('r', 'p')
	AND l.mode = 'AccessExclusiveLock' ORDER BY c.relname;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%';
ROLLBACK;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%';
-- a table that was dropped while mirrored does not stand in the way either
DROP TABLE flat;
DROP EXTENSION crate_sync;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%';
SELECT count(*) FROM pg_event_trigger WHERE evtname LIKE 'crate_sync%';
SELECT count(*) FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'crate_sync');
INSERT INTO parted VALUES (1);
TRUNCATE parted_1;

-- and it can come again
CREATE EXTENSION crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
SELECT crate_sync.add_table('parted');
-- not a thing for others
CREATE ROLE regress_cs_nobody;
SET ROLE regress_cs_nobody;
DROP EXTENSION crate_sync;
RESET ROLE;
DROP ROLE regress_cs_nobody;
SELECT crate_sync.remove_table('parted');
DROP SCHEMA ext CASCADE;
