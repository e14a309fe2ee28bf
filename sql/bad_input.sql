--
-- Each mistake is an error that names the thing, with an SQLSTATE that fits
-- and a hint where there is a remedy; and all stays as it was.
--
SET client_min_messages = error;
CREATE EXTENSION IF NOT EXISTS crate_sync;
SELECT crate_sync.stop() IS NOT NULL AS stopped;
CREATE SCHEMA bad_input;
SET search_path = bad_input, public;
\pset format unaligned
\pset tuples_only on

CREATE FUNCTION attempt(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	state text; message text; detail text; hint text;
BEGIN
	EXECUTE statement;
	RETURN NEXT 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN NEXT state || ' ' || message;
	IF detail <> '' THEN RETURN NEXT '  detail: ' || detail; END IF;
	IF hint <> '' THEN RETURN NEXT '  hint: ' || hint; END IF;
END $$;

CREATE TABLE items (id int PRIMARY KEY, name text, price float8, gone boolean, changed timestamptz);
CREATE TABLE other (id int PRIMARY KEY, name text);
CREATE TABLE keyless (a int, b text);

-- what cannot be mirrored
CREATE VIEW a_view AS SELECT * FROM items;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM items;
CREATE SEQUENCE a_sequence;
CREATE TYPE a_type AS (a int);
CREATE TEMPORARY TABLE a_temp (id int PRIMARY KEY);
CREATE FOREIGN DATA WRAPPER regress_bad_input_fdw;
CREATE SERVER regress_bad_input_server FOREIGN DATA WRAPPER regress_bad_input_fdw;
CREATE FOREIGN TABLE a_foreign (id int) SERVER regress_bad_input_server;
CREATE TABLE a_parent (id int PRIMARY KEY);
CREATE TABLE a_child (PRIMARY KEY (id)) INHERITS (a_parent);
CREATE TABLE measured (id int, v int) PARTITION BY RANGE (id);
CREATE TABLE measured_1 PARTITION OF measured FOR VALUES FROM (0) TO (10);
CREATE FOREIGN TABLE measured_2 PARTITION OF measured FOR VALUES FROM (10) TO (20)
	SERVER regress_bad_input_server;
ALTER TABLE measured_1 ADD PRIMARY KEY (id);
CREATE TABLE hidden (id int PRIMARY KEY);
CREATE ROLE regress_bad_input_owner;
GRANT ALL ON SCHEMA bad_input TO regress_bad_input_owner;
ALTER TABLE hidden OWNER TO regress_bad_input_owner;
ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
ALTER TABLE hidden FORCE ROW LEVEL SECURITY;

SELECT attempt($$SELECT crate_sync.add_table(NULL)$$);
SELECT attempt($$SELECT crate_sync.add_table('no_such_table')$$);
SELECT attempt($$SELECT crate_sync.add_table(1)$$);
SELECT attempt($$SELECT crate_sync.add_table('a_view')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_matview')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_sequence')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_type')$$);
SELECT attempt($$SELECT crate_sync.add_table('items_pkey')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_temp')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_foreign')$$);
SELECT attempt($$SELECT crate_sync.add_table('a_parent')$$);
SELECT attempt($$SELECT crate_sync.add_table('measured')$$);
SELECT attempt($$SELECT crate_sync.add_table('hidden')$$);
SELECT attempt($$SELECT crate_sync.add_table('pg_catalog.pg_class')$$);
SELECT attempt($$SELECT crate_sync.add_table('information_schema.sql_features')$$);
SELECT attempt($$SELECT crate_sync.add_table('crate_sync.mirror')$$);

-- keys
SELECT attempt($$SELECT crate_sync.add_table('keyless')$$);
CREATE TABLE "NoKey" (a int UNIQUE, b int NOT NULL, c int NOT NULL UNIQUE DEFERRABLE);
CREATE UNIQUE INDEX ON "NoKey" (b) WHERE b > 0;
CREATE UNIQUE INDEX ON "NoKey" ((b + c));
SELECT attempt($$SELECT crate_sync.add_table('"NoKey"')$$);

-- columns
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{id,nome}')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{name,price}')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{id,name,name}')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{id,xmin}')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{id,NULL}')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', columns => '{}')$$);

-- filters
CREATE FUNCTION unsteady(int) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 > 0';
SELECT attempt(format('SELECT crate_sync.add_table(''items'', row_filter => %L)', f)) AS result
	FROM (VALUES ('price'), ('price >'), (''), ('nosuch > 1'), ('id > 1; DROP TABLE items'),
				 ('id > 1) OR (true'), ('true FROM other'), ('true AS x'), ('id > 1, true'),
				 ('*'), ('items.*'), ('DISTINCT true'), ('true WHERE false'), ('true LIMIT 1'),
				 ('true UNION SELECT true'), ('id = $1'),
				 ('id = (SELECT max(id) FROM other)'), ('EXISTS (SELECT FROM other)'),
				 ('max(id) > 1'), ('row_number() OVER () > 1'), ('generate_series(1, 2) > 1'),
				 ('changed > now()'), ('random() > 0.5'), ('unsteady(id)'), ('name = current_user'),
				 ('changed::text = ''x'''), ('items IS NOT NULL'), ('ctid IS NOT NULL'),
				 ('tableoid > 0'), ('1 / 0 > id'), ('other.id = 1')) v(f);

-- soft deletes
SELECT attempt($$SELECT crate_sync.add_table('items', soft_delete_column => 'nosuch')$$);
SELECT attempt($$SELECT crate_sync.add_table('items', soft_delete_column => 'name')$$);

-- options
SELECT attempt(format('SELECT crate_sync.add_table(''items'', options => %L)', o)) AS result
	FROM (VALUES ('[]'), ('1'), ('{"shard": 4}'), ('{"shards": 0}'), ('{"shards": "4"}'), ('{"shards": 1.5}'),
				 ('{"shards": 1e9}'), ('{"shards": null}'), ('{"replicas": "many"}'), ('{"replicas": -1}'),
				 ('{"replicas": "0''; DROP TABLE x"}'),
				 ('{"refresh_interval": "1s"}'), ('{"refresh_interval": -5}'), ('{"column_policy": "lax"}'),
				 ('{"rename": "x"}'), ('{"rename": {"name": 1}}'), ('{"rename": {"name": ""}}'),
				 ('{"rename": {"nosuch": "x"}}'), ('{"rename": {"name": "price"}}'),
				 ('{"rename": {"name": "a.b"}}'), ('{"rename": {"name": "_id"}}'),
				 ('{"types": ["name"]}'), ('{"types": {"name": "TXT"}}'), ('{"types": {"name": ""}}'), ('{"types": {"name": "ARRAY(TXT)"}}'),
				 ('{"rename": {"name": "Char"}}'), ('{"types": {"nosuch": "TEXT"}}'),
				 ('{"clustered_by": "name"}'), ('{"clustered_by": "nosuch"}'), ('{"clustered_by": 1}'),
				 ('{"partitioned_by": "name"}'), ('{"partitioned_by": []}'), ('{"partitioned_by": [1]}'),
				 ('{"partitioned_by": ["id", "id"]}'),
				 ('{"partitioned_by": "id", "clustered_by": "id"}')) v(o);

-- names that CrateDB cannot have
SELECT attempt(format('SELECT crate_sync.add_table(''items'', %L)', t)) AS result
	FROM (VALUES (''), ('.'), ('a.'), ('.b'), ('a.b.c'), ('"a'), ('a"b'), ('a b'), ('"a b"'), ('"a.b"'), ('"-a"'),
				 ('"a*"'), ('"a/b"'), ('"a#b"'), ('sys.x'), ('information_schema.x'), ('pg_catalog.x'),
				 ('blob.x'), ('crate_sync.fence'), (repeat('x', 253) || '.yy')) v(t);
CREATE TABLE "odd name" (id int PRIMARY KEY);
CREATE TABLE odd_columns (id int PRIMARY KEY, "a.b[c" int, "_id" int);
CREATE SCHEMA "bad,input";
CREATE TABLE "bad,input".t (id int PRIMARY KEY);
SELECT attempt($$SELECT crate_sync.add_table('"odd name"')$$);
SELECT attempt($$SELECT crate_sync.add_table('odd_columns')$$);
SELECT attempt($$SELECT crate_sync.add_table('odd_columns', options => '{"rename": {"a.b[c": "a_b_c"}}')$$);
SELECT attempt($$SELECT crate_sync.add_table('"bad,input".t')$$);
CREATE TABLE "of char" (id int PRIMARY KEY, "char" int);
SELECT attempt($$SELECT crate_sync.add_table('"of char"', 'doc.of_char')$$);
CREATE TABLE of_arrays (id int[] PRIMARY KEY);
SELECT attempt($$SELECT crate_sync.add_table('of_arrays')$$);

-- nothing has come of all that
SELECT count(*) FROM crate_sync.mirror;
SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%';

-- twice, and two for one
SELECT crate_sync.add_table('items', 'doc.things');
SELECT attempt($$SELECT crate_sync.add_table('items')$$);
SELECT crate_sync.add_table('items', 'other.name', if_not_exists => true);
SELECT attempt($$SELECT crate_sync.add_table('other', 'doc.things')$$);
SELECT attempt($$SELECT crate_sync.add_table('other', 'Doc.Things')$$);
CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
SELECT crate_sync.add_table('parts_1');
SELECT attempt($$SELECT crate_sync.add_table('parts')$$);
SELECT crate_sync.remove_table('parts_1');
SELECT crate_sync.add_table('parts');
SELECT attempt($$SELECT crate_sync.add_table('parts_1')$$);
SELECT attempt($$SELECT crate_sync.pause('parts_1')$$);
SELECT crate_sync.remove_table('parts');

-- the worker sees what is committed
SELECT attempt($$DO $do$ BEGIN PERFORM crate_sync.resync('items'); PERFORM crate_sync.wait_for_sync(); END $do$ $$);

-- tables that are not mirrored
SELECT attempt($$SELECT crate_sync.remove_table('other', drop_target => true)$$);
SELECT attempt($$SELECT crate_sync.remove_table('other')$$);
SELECT crate_sync.remove_table('other', if_exists => true);
SELECT attempt($$SELECT crate_sync.remove_table(NULL)$$);
SELECT attempt($$SELECT crate_sync.remove_table(1)$$);
SELECT attempt($$SELECT crate_sync.resync('other')$$);
SELECT attempt($$SELECT crate_sync.cancel('other')$$);
SELECT attempt($$SELECT crate_sync.verify('other')$$);
SELECT attempt($$SELECT crate_sync.pause('other')$$);
SELECT attempt($$SELECT crate_sync.resume('other')$$);
SELECT attempt($$SELECT crate_sync.retry_failed('other')$$);
SELECT attempt($$SELECT crate_sync.discard_failed('other')$$);
SELECT attempt($$SELECT crate_sync.preview('keyless')$$);
SELECT attempt($$SELECT crate_sync.preview('a_view')$$);
SELECT attempt($$SELECT crate_sync.get_target_ddl('keyless')$$);
SELECT attempt($$SELECT crate_sync.add_all_tables('{nosuch}')$$);
SELECT attempt($$SELECT crate_sync.add_all_tables(NULL)$$);
SELECT attempt($$SELECT crate_sync.add_all_tables('{NULL}')$$);

-- resync
SELECT attempt($$SELECT crate_sync.resync('items', 'all')$$);
SELECT attempt($$SELECT crate_sync.resync('items', NULL)$$);
SELECT attempt($$SELECT crate_sync.resync('items', 'full', 'id > 1')$$);
SELECT attempt($$SELECT crate_sync.resync(NULL, 'upsert', 'id > 1')$$);
SELECT attempt($$SELECT crate_sync.resync('items', 'upsert', 'id')$$);
SELECT attempt($$SELECT crate_sync.resync('items', 'upsert', 'changed > now()')$$);
SELECT resync_no, resync_mode, resync_filter, verify_no, paused FROM crate_sync.mirror;

SELECT crate_sync.remove_table('items');
SELECT count(*) FROM crate_sync.mirror;
DROP SCHEMA bad_input CASCADE;
DROP SCHEMA "bad,input" CASCADE;
DROP SERVER regress_bad_input_server;
DROP FOREIGN DATA WRAPPER regress_bad_input_fdw;
DROP ROLE regress_bad_input_owner;
