--
-- Who may do what, and as whom a table owner's expressions run.
--
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
CREATE ROLE regress_cs_owner;
CREATE ROLE regress_cs_other;
CREATE ROLE regress_cs_writer;
CREATE ROLE regress_cs_monitor;
GRANT pg_monitor TO regress_cs_monitor;
GRANT USAGE ON SCHEMA crate_sync TO regress_cs_owner, regress_cs_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crate_sync TO regress_cs_owner, regress_cs_other;
CREATE SCHEMA priv;
GRANT USAGE, CREATE ON SCHEMA priv TO regress_cs_owner, regress_cs_other;
GRANT USAGE ON SCHEMA priv TO regress_cs_writer;
SET search_path = priv;

-- nobody has anything by default
SELECT DISTINCT p.proname FROM pg_proc p
	WHERE p.pronamespace = 'crate_sync'::regnamespace
	AND has_function_privilege('public', p.oid, 'EXECUTE');
SELECT c.relname FROM pg_class c
	WHERE c.relnamespace = 'crate_sync'::regnamespace AND c.relkind IN ('r', 'v', 'S')
	AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege('public', c.oid, 'USAGE, SELECT, UPDATE')
		ELSE has_table_privilege('public', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES') END;
SELECT has_schema_privilege('public', 'crate_sync', 'USAGE');
SET ROLE regress_cs_writer;
SELECT crate_sync.add_table('pg_class');
SELECT * FROM crate_sync.mirror;
RESET ROLE;

-- the owner's calls
SET ROLE regress_cs_owner;
CREATE TABLE mine (id int PRIMARY KEY, v int);
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON mine TO regress_cs_writer;
CREATE TABLE mine_too (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE mine_too_1 PARTITION OF mine_too DEFAULT;
SELECT crate_sync.add_table('mine');
SELECT crate_sync.add_table('mine_too');
SELECT current_user, crate_sync.pause('mine'), current_user, current_setting('search_path');

-- another's
SET ROLE regress_cs_other;
CREATE TABLE theirs (id int PRIMARY KEY);
SELECT crate_sync.add_table('mine');
SELECT crate_sync.add_table('mine', if_not_exists => true);
SELECT crate_sync.remove_table('mine', if_exists => true);
SELECT crate_sync.resync('mine');
SELECT crate_sync.cancel('mine');
SELECT crate_sync.verify('mine');
SELECT crate_sync.pause('mine');
SELECT crate_sync.resume('mine');
SELECT crate_sync.retry_failed('mine');
SELECT crate_sync.discard_failed('mine');
SELECT crate_sync.add_table('theirs', 'priv.mine');
SELECT crate_sync.add_table('theirs');
-- without a table: all of one's own
SELECT crate_sync.pause();
SELECT crate_sync.resume();
SELECT crate_sync.resync();
SELECT relation, added, message FROM crate_sync.add_all_tables('{priv}');
RESET ROLE;
SELECT relid, paused, resync_no FROM crate_sync.mirror ORDER BY relid::text;
INSERT INTO crate_sync.failed (mirror_id, key, packed_key, layout, target_key, action)
	SELECT mirror_id, '{"id": 1}', '\x02', 1, '1,', 'upsert' FROM crate_sync.mirror WHERE relid = 'mine'::regclass;
SELECT max(failed_id) AS failed_id FROM crate_sync.failed \gset
SET ROLE regress_cs_other;
SELECT crate_sync.discard_failed(failed_id => :failed_id);
SELECT crate_sync.retry_failed(failed_id => :failed_id);
SELECT crate_sync.discard_failed(), crate_sync.retry_failed();
SELECT * FROM crate_sync.failed_rows;
SET ROLE regress_cs_owner;
SELECT crate_sync.discard_failed(failed_id => :failed_id);

-- who may write the table needs to know nothing of all this
SET ROLE regress_cs_writer;
INSERT INTO mine VALUES (1, 1), (2, 2);
UPDATE mine SET v = 3 WHERE id = 1;
DELETE FROM mine WHERE id = 2;
TRUNCATE mine;
INSERT INTO mine VALUES (5, 5);
SELECT * FROM crate_sync.queue_0;
SELECT crate_sync.queue_stats(true);
RESET ROLE;

-- pg_monitor looks, and does nothing
SET ROLE regress_cs_monitor;
SELECT n_tables FROM crate_sync.status;
SELECT count(*) FROM crate_sync.tables;
SELECT count(*) FROM crate_sync.progress;
SELECT count(*) FROM crate_sync.failed_rows;
SELECT count(*) FROM crate_sync.differences;
SELECT count(*) FROM crate_sync.benchmark_results;
SELECT * FROM crate_sync.failed;
SELECT * FROM crate_sync.mirror;
SELECT crate_sync.pause();
RESET ROLE;

-- a filter runs as the table's owner, whoever adds the table, with no way out
SET ROLE regress_cs_owner;
CREATE FUNCTION spy(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RAISE WARNING 'running as %', current_user;
	RETURN true;
END $$;
CREATE FUNCTION escape(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM set_config('role', 'none', false);
	RETURN true;
END $$;
CREATE DOMAIN watched AS int CHECK (spy(value));
CREATE TYPE pair AS (w watched);
CREATE TABLE bait (id int PRIMARY KEY);
CREATE TABLE bait_2 (id int PRIMARY KEY);
RESET ROLE;
SET client_min_messages = warning;
SELECT crate_sync.add_table('bait', row_filter => 'spy(1)') IS NOT NULL AS added;
SELECT crate_sync.add_table('bait_2', row_filter => '''(1)''::priv.pair IS NOT NULL') IS NOT NULL AS added;
SELECT count(*) FROM crate_sync.preview('bait');
SELECT crate_sync.resync('bait', 'upsert', 'escape(1)');
SELECT current_user = session_user AS back, current_setting('search_path');
SET client_min_messages = error;

-- objects of our names in the caller's search_path do not come into play
SET ROLE regress_cs_owner;
CREATE TABLE mirror (relid regclass, paused boolean);
CREATE FUNCTION equals(regclass, oid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR = (FUNCTION = equals, LEFTARG = regclass, RIGHTARG = oid);
SET search_path = priv, pg_catalog;
SELECT crate_sync.remove_table('mine');
RESET ROLE;
SET search_path = priv;
SELECT relid FROM crate_sync.mirror ORDER BY relid::text;

SELECT DISTINCT crate_sync.remove_table(relid) FROM crate_sync.mirror;
DROP SCHEMA priv CASCADE;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crate_sync FROM regress_cs_owner, regress_cs_other;
REVOKE ALL ON SCHEMA crate_sync FROM regress_cs_owner, regress_cs_other;
DROP ROLE regress_cs_owner, regress_cs_other, regress_cs_writer, regress_cs_monitor;
