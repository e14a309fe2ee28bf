# Every common type, odd keys and odd names: loaded, changed, deleted, and both sides equal; documents whose
# members have many types; what a type cannot hold is parked alone.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('types', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
EOC

my $all_types = <<'EOQ';
CREATE TYPE mood AS ENUM ('sad', 'o''k', 'ha"ppy', 'ümlaut');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN texts AS text[];
CREATE TABLE all_types (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	b bool, i2 smallint, i4 int, i8 bigint, f4 real, f8 float8, n numeric, n2 numeric(12,3), n3 numeric(40,20),
	t text, vc varchar(20), ch char(7), nm name, c1 "char", by bytea,
	ts timestamp, tz timestamptz, d date, tm time, tmz timetz, iv interval,
	u uuid, j json, jb jsonb, x xml, m money, ip inet, ci cidr, mac macaddr, mac8 macaddr8,
	bt bit(5), vb bit varying(10), pt point, ln line, bx box, pa path, cc circle,
	tsv tsvector, tsq tsquery, r4 int4range, rn numrange, rts tstzrange, mr int4multirange,
	o oid, rc regclass, lsn pg_lsn, jp jsonpath, e mood, c pair, dm posint, dt texts,
	ai int[], at text[], ab bool[], af float8[], an numeric[], ats timestamptz[], ae mood[], au uuid[], ad date[],
	gen bigint GENERATED ALWAYS AS (i4::bigint * 2) STORED
);
INSERT INTO all_types (b, i2, i4, i8, f4, f8, n, n2, n3, t, vc, ch, nm, c1, by, ts, tz, d, tm, tmz, iv, u, j, jb, x, m, ip,
	ci, mac, mac8, bt, vb, pt, ln, bx, pa, cc, tsv, tsq, r4, rn, rts, mr, o, rc, lsn, jp, e, c, dm, dt,
	ai, at, ab, af, an, ats, ae, au, ad)
SELECT i % 2 = 0, (i * 1000) % 32767, i * 100000, i * 10000000000, i * 0.1::real, i / 3.0::float8, i / 7.0, i * 1.001,
	i * 1.00000000000000000001, 'text ' || i, 'v' || i, 'c' || i, 'n' || i, 'x', decode(md5(i::text), 'hex'),
	timestamp '2020-01-01 00:00:00.123' + i * interval '1 hour', timestamptz '2020-01-01 00:00:00.5+02' + i * interval '1 day',
	date '1999-12-31' + i, '23:59:59.999999', '12:00:00.5+05:30', interval '1 year 2 mons 3 days 04:05:06.789' * i,
	md5(i::text)::uuid, json_build_object('a', i, 'b', ARRAY[1, 2, NULL]),
	jsonb_build_object('k', i, 'nested', jsonb_build_object('x', 1.5, 'y', NULL, 'z', ARRAY['a', 'b'])), '<a>x</a>',
	(i * 1.5)::numeric::money, ('10.0.0.' || i)::inet, '10.1.0.0/16', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
	B'10101', B'110', point(i, i + 0.5), '{1,2,3}', '((0,0),(1,1))', '((0,0),(1,1))', '<(0,0),1>', 'a b c', 'a & b',
	int4range(i, i + 5), numrange(0.5, i), tstzrange('2020-01-01', '2021-01-01'), '{[1,2],[5,7)}', i, 'pg_class',
	'16/B374D848', '$.a[*]', 'o''k', ROW(i, 'x"y')::pair, i, ARRAY['a', 'b'], ARRAY[1, NULL, i],
	ARRAY['a"b', 'c\d', NULL, '', 'ü'], ARRAY[true, false, NULL], ARRAY[1.5, -0.0, 1e300], ARRAY[1.5, 2.25],
	ARRAY[timestamptz '2020-01-01'], ARRAY['sad', 'ha"ppy']::mood[], ARRAY[md5(i::text)::uuid], ARRAY[date '2020-02-29']
FROM generate_series(1, 50) i;
INSERT INTO all_types DEFAULT VALUES;
INSERT INTO all_types (t, j, jb, ai, at, f4, f8, n, ts, d)
VALUES ('', '{}', '{}', '{}', '{}', '-0', '-0', 0, '0001-01-01 00:00:00', '9999-12-31');
INSERT INTO all_types (i2, i4, i8, f4, f8, t, jb)
VALUES (-32768, -2147483648, -9223372036854775807, '3.4e38', '1.7976931348623157e308', E'\U0001F600 \u200b \x01 \x7f end',
	'{"": 1, "a b": 2, "quote\"": 3, "ü": 4, "dot.ted": 5}');
INSERT INTO all_types (i8, f8, f4, n, t) VALUES (9223372036854775806, '4.9e-324', '1.4e-45', 1e-30, repeat('x', 32766));
INSERT INTO all_types (jb) VALUES ('[1, "a", null, {"x": []}]'), ('"str"'), ('12345678901234567890123'), ('true'),
	('null'), ('1.10'), ('{"a": {"b": {"c": {"d": [[[1]]]}}}}');
EOQ

my $keys = <<'EOQ';
CREATE TABLE text_key (k text PRIMARY KEY, v int);
INSERT INTO text_key VALUES ('', 1), (' ', 2), ('A', 3), ('a', 4), ('ü', 5), ('u' || chr(776), 6), ('x''y"z', 7), (E'tab\t', 8),
	('/slash?&=', 9), (repeat('k', 400), 10), (E'new\nline', 11), ('\', 12), ('null', 13), ('NULL', 14), ('0', 15), ('00', 16);
CREATE TABLE composite_key (a int, b text, c date, d uuid, v jsonb, PRIMARY KEY (c, a, d, b));
INSERT INTO composite_key SELECT i % 5, 'b' || i, date '2020-01-01' + i % 3, md5(i::text)::uuid, '{"a": 1}' FROM generate_series(1, 100) i;
CREATE TABLE unique_key (id int NOT NULL, v text);
CREATE UNIQUE INDEX unique_key_id ON unique_key (id);
INSERT INTO unique_key SELECT i, 'u' FROM generate_series(1, 10) i;
CREATE TABLE parted (id int, at timestamptz NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parted_2 (v text, at timestamptz NOT NULL, extra int, id int NOT NULL);
ALTER TABLE parted_2 DROP COLUMN extra;
ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
INSERT INTO parted SELECT i, timestamptz '2019-12-25 10:00:00.123456' + i * interval '10 days', 'p' || i FROM generate_series(1, 100) i;
CREATE TABLE empty_one (id int PRIMARY KEY);
CREATE TABLE only_key (a int, b int, PRIMARY KEY (a, b));
INSERT INTO only_key SELECT i, i * 2 FROM generate_series(1, 100) i;
CREATE TABLE numeric_key (n numeric PRIMARY KEY, v text);
INSERT INTO numeric_key VALUES (1, 'a'), (1.50, 'b'), (-0.001, 'c'), (1e20, 'd'), ('NaN', 'e');
CREATE TABLE time_key (t timestamptz PRIMARY KEY, v int);
INSERT INTO time_key VALUES ('2020-01-01 00:00:00.123456+00', 1), ('2020-01-01 00:00:00.123457+00', 2), ('infinity', 3),
	('-infinity', 4), ('4713-01-01 BC', 5);
CREATE TABLE bool_key (b bool PRIMARY KEY, v int);
INSERT INTO bool_key VALUES (true, 1), (false, 2);
CREATE TABLE float_key (f float8 PRIMARY KEY, v int);
INSERT INTO float_key VALUES (0.1, 1), ('-0', 2), ('NaN', 3), ('Infinity', 4), (1e-320, 5);
CREATE TABLE bytea_key (b bytea PRIMARY KEY, v int);
INSERT INTO bytea_key VALUES ('\x', 1), ('\x00ff', 2), ('a''b', 3);
CREATE TABLE range_key (r int4range PRIMARY KEY, v int);
INSERT INTO range_key VALUES ('[1,5)', 1), ('empty', 2);
CREATE TABLE dropped_column (id int PRIMARY KEY, a int, b text, c int);
ALTER TABLE dropped_column DROP COLUMN a;
INSERT INTO dropped_column SELECT i, 'b', i FROM generate_series(1, 10) i;
CREATE TABLE wide (id int PRIMARY KEY);
DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('ALTER TABLE wide ADD c%s int DEFAULT %s', i, i); END LOOP; END $$;
INSERT INTO wide SELECT i FROM generate_series(1, 20) i;
EOQ
my @key_tables = qw(text_key composite_key unique_key parted empty_one only_key numeric_key time_key bool_key float_key
  bytea_key range_key dropped_column wide);

CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql($all_types);
	$m->sql($keys);
	my @tables = ('all_types', @key_tables);
	$m->add(@tables);
	$m->equal(\@tables, 'loaded');

	# the same rows by way of the queue
	$m->sql(<<'EOQ');
UPDATE all_types SET t = t || ' changed', b = NOT b, jb = jb || '{"new": [1, "x"]}', at = at || 'more'::text WHERE id <= 50;
DELETE FROM all_types WHERE id % 7 = 0;
INSERT INTO all_types (t, f8, ab) VALUES ('late', 'NaN', '{t,NULL}');
UPDATE text_key SET k = k || '!', v = -v WHERE v % 3 = 0;
DELETE FROM text_key WHERE v % 5 = 0;
UPDATE composite_key SET a = a + 10 WHERE a = 1;
DELETE FROM composite_key WHERE a = 2;
UPDATE parted SET at = at + interval '1 year' WHERE id % 4 = 0;
DELETE FROM parted WHERE id % 9 = 0;
UPDATE only_key SET b = b + 1 WHERE a > 50;
DELETE FROM numeric_key WHERE n = 'NaN'; UPDATE numeric_key SET n = 1.0 WHERE n = 1; UPDATE numeric_key SET n = 2 WHERE n = 1.5;
UPDATE time_key SET t = t + interval '5 microseconds' WHERE v = 1; DELETE FROM time_key WHERE v IN (3, 5);
UPDATE bool_key SET v = 7; DELETE FROM bool_key WHERE NOT b;
DELETE FROM float_key WHERE f = 'NaN' OR f = 0; UPDATE float_key SET v = 9;
DELETE FROM bytea_key WHERE b = '\x'; UPDATE bytea_key SET b = b || '\x00'::bytea WHERE v = 2;
UPDATE range_key SET r = '[1,6)' WHERE v = 1;
UPDATE dropped_column SET b = 'x' WHERE id > 5;
UPDATE wide SET c7 = id;
EOQ
	$m->equal(\@tables, 'changed');
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, 'no row was given up');

	$m->sql("SELECT crate_sync.verify('$_')") foreach @tables;
	ok($m->poll('SELECT bool_and(coalesce(last_verify_ok, false)) FROM crate_sync.tables'), 'verify says so, too');
	is($m->sql('SELECT count(*) FROM crate_sync.differences'), 0, 'and finds no difference');
});

# documents as objects: each row's members have types of their own
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(<<'EOQ');
CREATE TABLE docs (id bigint PRIMARY KEY, d jsonb, j json, ad jsonb[]);
INSERT INTO docs SELECT i, CASE i % 6 WHEN 0 THEN '{"a": 1}' WHEN 1 THEN '{"a": 1.5}' WHEN 2 THEN '{"a": "x"}'
		WHEN 3 THEN '{"a": [1, "x", {"b": 2}]}'
		WHEN 4 THEN jsonb_build_object('big', 9007199254740993 + i, 'q"uo\te', E'new\nline', 'ü', '😀') ELSE '{}' END::jsonb,
	'{"x": 1, "x": 2}', ARRAY['{"a": 1}', '{"a": "s"}']::jsonb[]
FROM generate_series(1, 3000) i;
INSERT INTO docs VALUES (4001, 'null'), (4002, NULL), (4003, '{"n": 12345678901234567890123}'),
	(4004, '{"m": -9223372036854775808, "M": 9223372036854775807, "s": "12345678901234567890123"}');
EOQ
	$m->sql(q{SELECT crate_sync.add_table('docs', options =>
		'{"types": {"d": "OBJECT(IGNORED)", "j": "OBJECT(IGNORED)", "ad": "ARRAY(OBJECT(IGNORED))"}}')});
	ok($m->wait_sync, 'documents of many types');
	is($m->status('n_failed_rows'), 0, 'none was given up');
	cmp_ok($m->sql('SELECT requests FROM crate_sync.tables'), '<', 50, 'nor were they asked for one by one');
	$m->{compare_options} = [ '--columns', 'docs=id,d,j' ];
	# a number past BIGINT is the one thing that the target cannot keep to the digit
	$m->sql('DELETE FROM docs WHERE id = 4003');
	$m->equal('docs', 'documents');

	# what is no object has no place in such a column; its neighbours have
	$m->sql(q{INSERT INTO docs VALUES (5001, '[1]'), (5002, '{"ok": true}'), (5003, '"str"'),
		(5004, ('{"x": 1' || repeat('0', 400) || '}')::jsonb), (5005, '{"ok": false}')});
	ok($m->poll('SELECT n_failed_rows = 3 AND queued_keys = 0 FROM crate_sync.tables'), 'three cannot be stored');
	is($m->sql(q{SELECT string_agg(key->>'id', ' ' ORDER BY key->>'id') FROM crate_sync.failed_rows}), '5001 5003 5004', 'the right ones');
	is($m->target_value('SELECT count(*) FROM {docs} WHERE id > 5000'), 2, 'their neighbours are there');
	$m->sql('DELETE FROM docs WHERE id IN (5001, 5003, 5004)');
	ok($m->poll('SELECT n_failed_rows = 0 FROM crate_sync.status'), 'gone, they are no failed rows');
	$m->equal('docs', 'at last');
});

done_testing();
