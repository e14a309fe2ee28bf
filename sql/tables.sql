--
-- Adding, describing, steering and removing mirrored tables: what the catalog
-- and the tables' triggers look like afterwards.  No target is set.
--
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
CREATE SCHEMA shop;
SET search_path = shop, public;

CREATE VIEW public.our_triggers AS
	SELECT t.tgrelid::regclass AS tab, t.tgname, t.tgenabled AS on, t.tgparentid <> 0 AS clone,
		   t.tgtype, replace(encode(t.tgargs, 'escape'), '\000', ' ') AS args,
		   EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_trigger'::regclass
				   AND d.objid = t.oid AND d.deptype = 'x') AS ext
	FROM pg_trigger t WHERE t.tgfoid = 'crate_sync.capture'::regproc
	ORDER BY t.tgrelid::regclass::text COLLATE "C", t.tgname;
CREATE VIEW public.mirrored AS
	SELECT relid, target_schema, target_table, key_columns AS key, columns, row_filter,
		   soft_delete_column AS soft, options, paused, resync_no AS rno, resync_mode AS mode,
		   resync_filter AS rfilter, verify_no AS vno, verify_repair AS repair
	FROM crate_sync.mirror ORDER BY relid::text COLLATE "C";

-- keys: primary key, else replica identity, else the smallest unique index
CREATE TABLE pk (id int PRIMARY KEY, other int NOT NULL UNIQUE);
CREATE TABLE composite (a int, b text, c int, PRIMARY KEY (b, a));
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE ident (a int NOT NULL UNIQUE, b int NOT NULL, c int NOT NULL);
CREATE UNIQUE INDEX ident_bc ON ident (b, c);
ALTER TABLE ident REPLICA IDENTITY USING INDEX ident_bc;
CREATE TABLE uniq (a int NOT NULL, b int NOT NULL, c int NOT NULL, d int UNIQUE,
				   UNIQUE (a, b), UNIQUE (c) INCLUDE (a));
CREATE TABLE "Mixed Case" ("Id" int, "it's" int, "q""q" int, PRIMARY KEY ("Id", "it's", "q""q"));
CREATE UNLOGGED TABLE fast (id bigint PRIMARY KEY);
CREATE TABLE public.in_public (id int PRIMARY KEY);
SELECT crate_sync.add_table('pk');
SELECT crate_sync.add_table('composite');
SELECT crate_sync.add_table('deferred');
SELECT crate_sync.add_table('ident');
SELECT crate_sync.add_table('uniq');
SELECT crate_sync.add_table('"Mixed Case"', '"Mixed".Case');
SELECT crate_sync.add_table('fast', 'quick');
SELECT crate_sync.add_table('public.in_public');
SELECT crate_sync.add_table('public.our_triggers');
SELECT relid, target_schema, target_table, key FROM mirrored;
SELECT * FROM our_triggers;

-- without a target or worker it says so
RESET client_min_messages;
CREATE TABLE warned (id int PRIMARY KEY);
SELECT crate_sync.add_table('warned');
SELECT crate_sync.add_table('warned', if_not_exists => true);
SELECT crate_sync.remove_table('warned', if_exists => true);
SELECT crate_sync.remove_table('warned', if_exists => true);
SET client_min_messages = error;

-- what is asked for is remembered
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE FUNCTION is_fine(int, level int DEFAULT 3) RETURNS boolean
	LANGUAGE sql IMMUTABLE AS 'SELECT $1 > $2';
CREATE TYPE colour AS ENUM ('red', 'green');
CREATE TABLE goods (id int, region text, name text, price numeric(10,2), tint colour,
					made timestamptz, gone boolean, n positive, twice int GENERATED ALWAYS AS (id * 2) STORED,
					PRIMARY KEY (region, id));
ALTER TABLE goods DROP COLUMN name;
ALTER TABLE goods ADD COLUMN name text;
SET DateStyle = 'SQL, DMY';
SELECT crate_sync.add_table('goods', 'doc.goods', '{name,region,id,twice,made}',
	$f$is_fine(id) AND tint = 'red' AND made > '01/02/2024 00:00:00+00' AND name <> E'it\'s; \\ " -- ' OR twice = NULL::int$f$,
	'gone', '{"rename": {"name": "Full \"Name\"", "region": "area"}, "types": {"made": "TEXT"},
			  "shards": 3, "replicas": "0-1", "clustered_by": "region", "refresh_interval": 500,
			  "column_policy": "dynamic"}', copy_data => false);
RESET DateStyle;
\pset format unaligned
\x on
SELECT * FROM mirrored WHERE relid = 'goods'::regclass;
\x off
\pset format aligned
-- the filter means the same to whoever reads it
SET search_path = pg_catalog;
SELECT crate_sync.get_target_ddl('shop.goods');
SET search_path = shop, public;
SELECT column_name, source_type, target_column, target_type, is_key, note
	FROM crate_sync.preview('goods');
SELECT column_name, target_column, is_key FROM crate_sync.preview('goods', '{id,region,tint}');

-- other options
CREATE TABLE parted_target (id int, day date, PRIMARY KEY (id, day));
SELECT crate_sync.add_table('parted_target', options =>
	'{"partitioned_by": ["day"], "replicas": 2, "shards": 1}');
SELECT crate_sync.get_target_ddl('parted_target');
CREATE TABLE plain (id int PRIMARY KEY, doc jsonb, tags text[]);
SELECT crate_sync.get_target_ddl('plain');
SELECT crate_sync.remove_table('goods');
SELECT crate_sync.remove_table('parted_target');

-- a column that was dropped leaves list and options; a key that went is an error
CREATE TABLE changing (id int PRIMARY KEY, a int, b int);
SELECT crate_sync.add_table('changing', columns => '{id,a,b}', options => '{"rename": {"a": "x"}}');
ALTER TABLE changing DROP COLUMN a;
SELECT column_name, target_column FROM crate_sync.preview('changing');
ALTER TABLE changing DROP CONSTRAINT changing_pkey;
SELECT crate_sync.preview('changing');
SELECT crate_sync.remove_table('changing');

-- partitions: one trigger to rule the rows, one on each for TRUNCATE
CREATE TABLE readings (id int, at date, v int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE readings_1 PARTITION OF readings FOR VALUES FROM ('2024-01-01') TO ('2024-07-01');
CREATE TABLE readings_2 PARTITION OF readings FOR VALUES FROM ('2024-07-01') TO ('2025-01-01')
	PARTITION BY LIST (id);
CREATE TABLE readings_2a PARTITION OF readings_2 FOR VALUES IN (1, 2);
SELECT crate_sync.add_table('readings');
SELECT tab, tgname, "on", clone, args, ext FROM our_triggers WHERE tab::text LIKE 'readings%';
CREATE TABLE readings_2b PARTITION OF readings_2 FOR VALUES IN (3);
SELECT tab, tgname, "on", clone FROM our_triggers
	WHERE tab::text = 'readings_2b' AND tgname = 'crate_sync_capture';
-- a former partition keeps nothing either
ALTER TABLE readings DETACH PARTITION readings_1;
SELECT tab, tgname FROM our_triggers WHERE tab::text = 'readings_1';
SELECT crate_sync.remove_table('readings');
SELECT * FROM our_triggers WHERE tab::text LIKE 'readings%';
SELECT relid FROM mirrored WHERE relid::text LIKE 'readings%';

-- triggers left from another life, as a restored table has them, are no obstacle
CREATE TABLE restored (id int, b int PRIMARY KEY);
CREATE TRIGGER crate_sync_capture AFTER INSERT ON restored FOR EACH ROW
	EXECUTE FUNCTION crate_sync.capture('id');
SELECT crate_sync.add_table('restored');
SELECT tab, tgname, "on", args, tgtype FROM our_triggers WHERE tab = 'restored'::regclass;
SELECT crate_sync.remove_table('restored');

-- steering
CREATE TABLE steered (id int PRIMARY KEY, v int);
SELECT crate_sync.add_table('steered');
SELECT crate_sync.pause('steered'), crate_sync.pause('steered');
SELECT relid, paused FROM mirrored WHERE paused;
SELECT crate_sync.resume('steered');
SELECT crate_sync.resume('steered');
SELECT crate_sync.resync('steered');
SELECT rno, mode, rfilter FROM mirrored WHERE relid = 'steered'::regclass;
SELECT crate_sync.resync('steered', 'upsert', 'v between 1 and 9');
SELECT rno, mode, rfilter FROM mirrored WHERE relid = 'steered'::regclass;
SELECT crate_sync.resync('steered', mode => 'rebuild');
SELECT rno, mode, rfilter FROM mirrored WHERE relid = 'steered'::regclass;
SELECT crate_sync.verify('steered', repair => true);
SELECT vno, repair FROM mirrored WHERE relid = 'steered'::regclass;
SELECT crate_sync.verify('steered');
SELECT vno, repair FROM mirrored WHERE relid = 'steered'::regclass;
SELECT crate_sync.cancel('steered');
SELECT rno, mode, rfilter FROM mirrored WHERE relid = 'steered'::regclass;
-- all of them
SELECT crate_sync.pause() = count(*) AS all_paused FROM mirrored;
SELECT crate_sync.resume() = count(*) AS all_resumed FROM mirrored;
SELECT crate_sync.resync(NULL, 'upsert') = count(*) AS all_resynced FROM mirrored;
SELECT crate_sync.verify() = count(*) AS all_verified FROM mirrored;
-- what is rolled back did not happen
BEGIN;
SELECT crate_sync.remove_table('steered');
ROLLBACK;
SELECT tab, tgname FROM our_triggers WHERE tab = 'steered'::regclass;
SELECT mode FROM mirrored WHERE relid = 'steered'::regclass;

-- failed rows: tried again, forgotten; the row stays until it has arrived
CREATE VIEW public.queued AS
	SELECT q.relid::regclass AS tab, q.layout, q.n, q.keys
	FROM (SELECT * FROM crate_sync.queue_0 UNION ALL SELECT * FROM crate_sync.queue_1
		  UNION ALL SELECT * FROM crate_sync.queue_2 UNION ALL SELECT * FROM crate_sync.queue_hold) q
	WHERE q.relid = 'shop.steered'::regclass ORDER BY q.xid, q.seq;
INSERT INTO crate_sync.failed (mirror_id, key, packed_key, layout, target_key, action, error_code, error_message)
	SELECT mirror_id, jsonb_build_object('id', i), ('\x0' || i * 2)::bytea, 4711, i || ',', 'upsert', '4000', 'too long'
	FROM crate_sync.mirror, generate_series(1, 3) i WHERE relid = 'steered'::regclass;
INSERT INTO crate_sync.difference (mirror_id, key, kind)
	SELECT mirror_id, '{"id": 1}', 'missing' FROM crate_sync.mirror WHERE relid = 'steered'::regclass;
SELECT schemaname, relname, key, action, error_code, error_message, attempts FROM crate_sync.failed_rows ORDER BY failed_id;
SELECT schemaname, relname, key, kind FROM crate_sync.differences;
SELECT crate_sync.retry_failed('steered');
SELECT tab, n, keys FROM queued WHERE layout = 4711;
SELECT crate_sync.retry_failed(failed_id => (SELECT max(failed_id) FROM crate_sync.failed));
SELECT crate_sync.retry_failed('pk');
SELECT crate_sync.retry_failed(failed_id => -1);
SELECT tab, n, keys FROM queued WHERE layout = 4711;
SELECT crate_sync.discard_failed('pk');
SELECT crate_sync.discard_failed('steered', (SELECT min(failed_id) FROM crate_sync.failed));
SELECT key FROM crate_sync.failed_rows ORDER BY failed_id;
SELECT crate_sync.discard_failed();
SELECT key FROM crate_sync.failed_rows;

-- removal leaves nothing behind but the target's part, which is the worker's
INSERT INTO crate_sync.failed (mirror_id, key, packed_key, layout, target_key, action)
	SELECT mirror_id, '{}', '\x02', 4711, '1,', 'upsert' FROM crate_sync.mirror WHERE relid = 'steered'::regclass;
SELECT crate_sync.remove_table('steered', drop_target => true);
SELECT target_schema, target_table, drop_target FROM crate_sync.removal WHERE target_table = 'steered';
SELECT count(*) FROM crate_sync.failed;
SELECT count(*) FROM crate_sync.difference;
SELECT * FROM our_triggers WHERE tab = 'steered'::regclass;
-- of a table that was dropped in the meantime, too
CREATE TABLE dropped (id int PRIMARY KEY);
SELECT crate_sync.add_table('dropped');
BEGIN;
SELECT 'dropped'::regclass::oid AS dropped \gset
DROP TABLE dropped;
SELECT crate_sync.remove_table(:dropped);
SELECT crate_sync.remove_table(:dropped, if_exists => true);
COMMIT;

-- every table of some schemas: added, or why not
CREATE SCHEMA other;
CREATE TABLE other.a (id int PRIMARY KEY);
CREATE TABLE other.b (id int);
CREATE TABLE other.p (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE other.p_1 PARTITION OF other.p DEFAULT;
CREATE VIEW other.v AS SELECT 1 AS one;
CREATE TABLE shop.a (id int PRIMARY KEY);
SELECT crate_sync.remove_table('pk');
SELECT crate_sync.add_table('shop.a', 'other.a');
\pset format unaligned
SELECT * FROM crate_sync.add_all_tables('{other,shop}');
\pset format aligned
SELECT relid, target_schema, target_table FROM mirrored WHERE target_schema IN ('other');

SELECT DISTINCT crate_sync.remove_table(relid) FROM mirrored;
SELECT count(*) FROM our_triggers;
DROP VIEW public.our_triggers, public.mirrored, public.queued;
DROP TABLE public.in_public;
DROP SCHEMA shop, other CASCADE;
