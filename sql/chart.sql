--
-- What chart() draws.
--
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
CREATE SCHEMA chart;
SET search_path = chart;
CREATE TABLE a (id int PRIMARY KEY);
CREATE TABLE b (id int PRIMARY KEY);
SELECT crate_sync.add_table('a'), crate_sync.add_table('b');
INSERT INTO crate_sync.mirror_state (mirror_id, relid, n_tup_upserted, n_tup_deleted, n_tup_failed)
	SELECT mirror_id, relid, 1000, 50, 1 FROM crate_sync.mirror WHERE relid = 'a'::regclass
	ON CONFLICT (mirror_id) DO UPDATE SET n_tup_upserted = 1000, n_tup_deleted = 50, n_tup_failed = 1;
SELECT * FROM crate_sync.chart(20);
SELECT * FROM crate_sync.chart(0);
SELECT crate_sync.remove_table('a'), crate_sync.remove_table('b');
SELECT * FROM crate_sync.chart();
DROP SCHEMA chart CASCADE;
