# verify: what is equal is called equal, whatever goes on meanwhile; what differs is found, named and mended.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('verify', conf => "crate_sync.max_retry_interval = 300ms\n");

# starts one and waits for its end; whether both sides are equal
sub verify
{
	my ($m, $table, $repair) = @_;
	$m->sql("SELECT crate_sync.verify('$table', " . ($repair ? 'true' : 'false') . ')');
	wait_verified($m, $table);
	return $m->sql("SELECT last_verify_ok FROM crate_sync.tables WHERE relid = '$table'::regclass");
}

sub wait_verified
{
	my ($m, $table) = @_;
	return $m->poll("SELECT s.verify_done = m.verify_no AND s.load_phase IS NULL FROM crate_sync.mirror m "
		  . "JOIN crate_sync.mirror_state s USING (mirror_id) WHERE m.relid = '$table'::regclass");
}

# "key kind columns" of each, in order
sub differences
{
	my ($m, $table) = @_;
	return $m->sql("SELECT key, kind, columns FROM crate_sync.differences WHERE relid = '$table'::regclass ORDER BY key, kind");
}

sub is_equal
{
	my ($m, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $ok = is(verify($m, $table), 't', "$name: verify finds both sides equal");
	$ok &= is(differences($m, $table), '', "$name: no differences");
	$m->explain unless $ok;
	return $ok;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;

	# --- equal, then changed by hand
	$m->sql(q{
		CREATE TABLE t (id int PRIMARY KEY, v text, p float8, n numeric(10,2), at timestamptz);
		INSERT INTO t SELECT i, 'row ' || i, i * 1.1, i * 1.01, '2024-01-01'::timestamptz + i * interval '1.234567 s'
			FROM generate_series(1, 12000) i;
		CREATE TABLE nothing (id int PRIMARY KEY)});
	$m->add('t', 'nothing');
	ok($m->wait_sync, 'loaded');
	is_equal($m, 't', 'after a load');
	is_equal($m, 'nothing', 'an empty table');
	my $logged = CrateSync::log_size($node);
	verify($m, 't');
	is(CrateSync::log_count($node, 'verify of \S+\.t begins', $logged), 1, 'one line when it begins');
	is(CrateSync::log_count($node, 'verify of \S+\.t finished: 12000 rows compared, 0 differences found', $logged),
		1, 'one line at its end');
	is($m->sql(q{SELECT last_verify_time > now() - interval '1 min' FROM crate_sync.tables WHERE relname = 't'}),
		't', 'its time is in tables');

	$m->target_change(q{UPDATE {t} SET v = 'by hand' WHERE id = 7});
	$m->target_change(q{UPDATE {t} SET p = 0.5, n = NULL WHERE id IN (8, 11999)});
	$m->target_change(q{DELETE FROM {t} WHERE id IN (1, 12000)});
	$m->target_change(q{INSERT INTO {t} (id, v) VALUES (-3, 'extra'), (50000, 'extra')});
	my $expected = join("\n",
		'{"id": -3}|extra|', '{"id": 1}|missing|', '{"id": 7}|different|{v}', '{"id": 8}|different|{p,n}',
		'{"id": 11999}|different|{p,n}', '{"id": 12000}|missing|', '{"id": 50000}|extra|');
	is(verify($m, 't'), 'f', 'changes by hand are noticed');
	is(differences($m, 't'), $expected, 'each with its kind and columns');
	is($m->target_count('t'), 12000, 'without repair nothing is changed');
	is(verify($m, 't', 1), 't', 'repair mends them');
	is(differences($m, 't'), $expected, 'what was found stays to be read');
	$m->equal('t', 'after repair');
	is_equal($m, 't', 'after repair');

	# one extra among as many missing: the counts alone say nothing
	$m->target_change(q{DELETE FROM {t} WHERE id = 5});
	$m->target_change(q{INSERT INTO {t} (id, v) VALUES (60000, 'extra')});
	is(verify($m, 't'), 'f', 'one missing, one extra');
	is(differences($m, 't'), qq({"id": 5}|missing|\n{"id": 60000}|extra|), 'both are named');
	verify($m, 't', 1);

	# --- keys of several columns, in orders that the sides do not share
	$m->sql(q{
		CREATE TABLE c (a text COLLATE "C", b int, "Some Col" jsonb, PRIMARY KEY (b, a));
		INSERT INTO c SELECT chr(64 + i % 60) || '"\\' || i, i % 5, jsonb_build_object('b', i, 'a', NULL, 'f', i * 1.0)
			FROM generate_series(1, 3000) i;
		CREATE TABLE k (k text PRIMARY KEY, v bool[]);
		INSERT INTO k SELECT chr(200 + i % 1000) || i, ARRAY[i % 2 = 0, NULL] FROM generate_series(1, 3000) i});
	$m->add('c', 'k');
	ok($m->wait_sync, 'loaded');
	is_equal($m, 'c', 'a composite key');
	is_equal($m, 'k', 'a text key');
	$m->target_change(q{DELETE FROM {c} WHERE b = 3});
	$m->target_change(q{DELETE FROM {k} WHERE k LIKE '%99'});
	$m->target_change(q{INSERT INTO {k} (k) VALUES ('zz"top')});
	is(verify($m, 'c', 1), 't', 'a composite key: repaired');
	is($m->sql(q{SELECT count(*), min(kind), max(kind) FROM crate_sync.differences WHERE relname = 'c'}),
		'600|missing|missing', 'a composite key: what was missing');
	is(verify($m, 'k', 1), 't', 'a text key: repaired');
	is($m->sql(q{SELECT kind, count(*) FROM crate_sync.differences WHERE relname = 'k' GROUP BY 1 ORDER BY 1}),
		"extra|1\nmissing|30", 'a text key: what was found');
	$m->equal([ 'c', 'k' ], 'after repair');

	# --- filter and soft delete
	$m->sql(q{
		CREATE TABLE f (id int PRIMARY KEY, v int, gone boolean NOT NULL DEFAULT false);
		INSERT INTO f SELECT i, i % 10, i % 7 = 0 FROM generate_series(1, 2000) i;
		SELECT crate_sync.add_table('f', row_filter => 'v < 5', soft_delete_column => 'gone')});
	ok($m->wait_sync, 'loaded');
	is_equal($m, 'f', 'filter and soft delete');
	$m->target_change(q{INSERT INTO {f} (id, v, gone) VALUES (7, 7, false), (14, 4, true)});
	is(verify($m, 'f'), 'f', 'rows that should not be there');
	is(differences($m, 'f'), qq({"id": 7}|extra|\n{"id": 14}|extra|), 'are extra');
	is(verify($m, 'f', 1), 't', 'and repaired');

	# --- a partitioned table
	$m->sql(q{
		CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
		CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (9000);
		INSERT INTO p SELECT i, i FROM generate_series(1, 3000) i});
	$m->add('p');
	ok($m->wait_sync, 'loaded');
	is_equal($m, 'p', 'a partitioned table');
	$m->target_change(q{DELETE FROM {p} WHERE id IN (10, 2010)});
	is(verify($m, 'p', 1), 't', 'a partitioned table: repaired');
	is(differences($m, 'p'), qq({"id": 10}|missing|\n{"id": 2010}|missing|), 'a partitioned table: what was missing');

	# --- while others write: never a false difference
	$m->sql(q{
		CREATE PROCEDURE churn(seconds float8) LANGUAGE plpgsql AS $$
		DECLARE
			until timestamptz := clock_timestamp() + seconds * interval '1 s';
			i int;
		BEGIN
			WHILE clock_timestamp() < until LOOP
				i := 1 + random() * 15000;
				CASE (random() * 5)::int
					WHEN 0 THEN DELETE FROM t WHERE id = i;
					WHEN 1 THEN DELETE FROM t WHERE id BETWEEN i AND i + 50;
					WHEN 2 THEN UPDATE t SET id = id + 100000 WHERE id = i AND NOT EXISTS (SELECT FROM t x WHERE x.id = t.id + 100000);
					ELSE INSERT INTO t SELECT j, 'churn ' || random(), random(), random() * 1000, clock_timestamp()
							FROM generate_series(i, i + 30) j
						ON CONFLICT (id) DO UPDATE SET v = excluded.v, p = excluded.p, at = excluded.at;
				END CASE;
				IF random() < 0.2 THEN ROLLBACK; ELSE COMMIT; END IF;
			END LOOP;
		END $$});
	my @writers = map { $m->background('CALL churn(8)') } 1 .. 2;
	my $runs = 0;
	my $good = 0;
	my $until = time() + 7;
	while (time() < $until)
	{
		$runs++;
		$good++ if verify($m, 't') eq 't' && differences($m, 't') eq '';
	}
	diag(differences($m, 't')) if $good < $runs;
	is($good, $runs, "$runs runs beside writers: no false difference");
	is($_->done, '', 'a writer had no trouble') foreach @writers;
	is_equal($m, 't', 'after the writers');
	# a true one is found beside writers too
	@writers = map { $m->background('CALL churn(4)') } 1 .. 2;
	$m->target_change(q{INSERT INTO {t} (id, v) VALUES (-77, 'extra')});
	is(verify($m, 't'), 'f', 'an extra row beside writers');
	is(differences($m, 't'), '{"id": -77}|extra|', 'it alone is named');
	is(verify($m, 't', 1), 't', 'repaired beside writers');
	$_->done foreach @writers;
	$m->equal('t', 'after writers and repair');

	# --- it survives what a worker survives
	$m->sql(q{CREATE TABLE big (id int PRIMARY KEY, v text);
		INSERT INTO big SELECT i, repeat('x', 200) || i FROM generate_series(1, 60000) i});
	$m->add('big');
	ok($m->wait_sync, 'loaded');
	$m->sql(q{SELECT crate_sync.verify('big')});
	$node->restart;
	ok(wait_verified($m, 'big'), 'a restart in its middle: it is done all the same');
	is($m->sql(q{SELECT last_verify_ok FROM crate_sync.tables WHERE relname = 'big'}), 't', 'and says so');
	$m->sql(q{SELECT crate_sync.verify('big'); });
	$m->sql(q{SELECT crate_sync.cancel('big')});
	ok(wait_verified($m, 'big'), 'cancel ends it');
	is($m->sql(q{SELECT state FROM crate_sync.tables WHERE relname = 'big'}), 'ready', 'the table is as ready as before');
	$m->sql(q{SELECT crate_sync.verify('big'); SELECT crate_sync.resync('big', 'upsert')});
	ok(wait_verified($m, 'big'), 'a resync and a verify at once: both are done');
	is($m->sql(q{SELECT last_verify_ok FROM crate_sync.tables WHERE relname = 'big'}), 't', 'and it is equal');
	$m->sql(q{SELECT crate_sync.pause('big'); SELECT crate_sync.verify('big')});
	sleep 1;
	is($m->sql(q{SELECT s.verify_done < m.verify_no FROM crate_sync.mirror m JOIN crate_sync.mirror_state s USING (mirror_id) WHERE m.relid = 'big'::regclass}),
		't', 'a paused table waits');
	$m->sql(q{SELECT crate_sync.resume('big')});
	ok(wait_verified($m, 'big'), 'and goes on');

	# --- many differences: bounded, but counted
	$m->target_change(q{DELETE FROM {big} WHERE id > 30000});
	$logged = CrateSync::log_size($node);
	is(verify($m, 'big'), 'f', 'half of a table is missing');
	is($m->sql(q{SELECT count(*) FROM crate_sync.differences WHERE relname = 'big'}), 10000, 'ten thousand are written down');
	is(CrateSync::log_count($node, '60000 rows compared, 30000 differences found', $logged), 1, 'all are counted');
	is(verify($m, 'big', 1), 't', 'all are repaired');
	$m->equal('big', 'after the repair of many');
	is_equal($m, 'big', 'after the repair of many');
	is($m->sql(q{SELECT count(*) FROM crate_sync.differences WHERE relname = 'big'}), 0, 'old findings go when a new run begins');
});

# what only CrateDB's own types need
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(q{
		CREATE TABLE ty (id uuid PRIMARY KEY, f4 float4, f8 float8, n numeric(12,3), r numeric, t text, c char(5), ts timestamp,
			d date, jo jsonb, j json, ia int[], ta text[], fa float8[], na numeric(8,2)[], tsa timestamptz[], ia2 int[][],
			pt point, bt bit(4), ip inet, by bytea);
		INSERT INTO ty (id) VALUES ('00000000-0000-0000-0000-000000000001');
		INSERT INTO ty SELECT md5(i::text)::uuid, i * 0.1, i * 1.1e10, i * 1.234, i * 0.0000012345, E'q" \\\\ \u00e9\n\b ' || i, 'c',
			'1969-12-31 23:59:59.999999'::timestamp + i * interval '1.000123 s', '2020-01-01'::date + i,
			jsonb_build_object('z', 1.0, 'a', NULL, 'arr', '[]'::jsonb, 'in', jsonb_build_object('y', 0.12345678901234567890123), 'f', i * 0.1),
			'{"b":1,  "a":2}', ARRAY[i, NULL, 2], ARRAY['a"b', NULL, ''], ARRAY[0.1, 'NaN'::float8, 1e300, '-0'::float8],
			ARRAY[1.10, NULL, 2], ARRAY['2020-01-01 00:00:00.123456+00'::timestamptz], ARRAY[[1, 2], [3, 4]],
			point(1.123456789, 2.2), B'0101', '2001:DB8::0:1', decode(md5(i::text), 'hex')
			FROM generate_series(1, 500) i;
		INSERT INTO ty (id, f4, f8, fa, ia, ta, jo, n) VALUES
			('00000000-0000-0000-0000-000000000002', 'NaN', '-Infinity', '{}', '{}', '{}', '{}', -0.001),
			('00000000-0000-0000-0000-000000000003', '-0', '-0', '{Infinity}', '{NULL}', '{NULL,NULL}', '{"a": [null, {"b": null}]}', 999999999.999);
		SELECT crate_sync.add_table('ty', options => '{"types": {"jo": "OBJECT(IGNORED)", "bt": "BIT(4)", "ip": "IP", "id": "UUID",
			"r": "NUMERIC(20,5)", "ia2": "ARRAY(ARRAY(INTEGER))"}}')});
	ok($m->wait_sync, 'loaded');
	is_equal($m, 'ty', 'values that the target stores in its own way');

	# a row that was refused is a difference
	$m->sql(q{UPDATE ty SET ts = 'infinity' WHERE id = '00000000-0000-0000-0000-000000000001'});
	$m->poll('SELECT count(*) = 1 FROM crate_sync.failed_rows');
	is(verify($m, 'ty'), 'f', 'a row in failed_rows');
	is(differences($m, 'ty'), '{"id": "00000000-0000-0000-0000-000000000001"}|different|{ts}', 'is a difference');
	is(verify($m, 'ty', 1), 'f', 'that repair cannot mend');
	$m->sql(q{UPDATE ty SET ts = '2020-01-01' WHERE id = '00000000-0000-0000-0000-000000000001'});
	is_equal($m, 'ty', 'mended');
}, only => 'crate', why => 'values as CrateDB stores them are its own');

# the target goes away in the middle
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 40000) i});
	$m->add('t');
	ok($m->wait_sync, 'loaded');
	$m->target_change(q{DELETE FROM {t} WHERE id = 39999});
	$m->standin->fault({ match => 'ANY', times => 3, status => 503 });
	is(verify($m, 't'), 'f', 'a target that is busy now and then is asked again');
	is(differences($m, 't'), '{"id": 39999}|missing|', 'and the answer is whole');
}, only => 'standin', why => 'only the stand-in can be told to be busy');

$node->stop;
done_testing();
