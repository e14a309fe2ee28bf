# Conditions in PostgreSQL that are none of our doing: old snapshots, prepared transactions, settings of
# all roles, partitions that come and go, publications, DDL under load, no room for the queue's locks.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('conditions', streaming => 1, conf => <<'EOC');
wal_level = logical
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
EOC

# for sessions that the settings of all roles are not meant for
my $quiet = '-c idle_in_transaction_session_timeout=0 -c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off -c standard_conforming_strings=on';

my $base = 0;
# writers of t that go on until the table "stop" has a row; errors of DDL on t itself are not ours
sub writers
{
	my ($m, $n) = @_;
	$m->sql('CREATE TABLE IF NOT EXISTS stop (now bool); TRUNCATE stop');
	$base += 10000000;
	return map { $m->background(<<"EOQ") } 1 .. $n;
DO \$\$
DECLARE
	i int := $base + $_ * 1000000;
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		i := i + 1;
		UPDATE t SET v = 'w' || i WHERE id % 97 = i % 97 AND id % $n = $_ - 1;
		INSERT INTO t (id, v) VALUES (i, 'new'), (-i, 'new');
		DELETE FROM t WHERE id = -i + 3;
		COMMIT;
		PERFORM pg_sleep(0.002);
	END LOOP;
END \$\$;
EOQ
}

sub stop_writers
{
	my ($m, $name, @w) = @_;
	$m->sql('INSERT INTO stop VALUES (true)');
	is(join('', map { $_->done } @w), '', "$name: no writer failed");
}

# --- a session idle in transaction with an old snapshot, one that has written and stays, and a prepared
# transaction, all of them for the whole run
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 20000) i});
	$m->add('t');
	$m->equal('t', 'load');
	CrateSync::Faults::steps($m);
	my $old = $m->background("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; SELECT count(*) FROM crate_sync.status;\n"
		. "SAVEPOINT s; DO 'BEGIN FOR i IN 1 .. 100000 LOOP PERFORM pg_sleep(0.05); END LOOP; END';\n");
	# enough to be flushed to the queue before its end, so that it holds the lock of a generation
	my $writer = $m->background("BEGIN; UPDATE t SET v = 'open'; UPDATE t SET v = 'open again';\nSELECT step(1);\nCOMMIT;\n");
	ok(CrateSync::Faults::wait_step($m, 1), 'a writer stays in the middle');
	$m->sql(q{BEGIN; INSERT INTO t SELECT i, 'prepared' FROM generate_series(50001, 50010) i; PREPARE TRANSACTION 'stays'});
	my $small = 0;
	foreach my $round (1 .. 8)
	{
		$m->sql(qq{INSERT INTO t SELECT i, 'round $round' FROM generate_series(100001, 120000) i ON CONFLICT (id) DO UPDATE SET v = excluded.v;
			DELETE FROM t WHERE id BETWEEN 110001 AND 115000});
		$m->kill_worker('TERM') if $round == 3;
		$m->sql(q{SELECT crate_sync.resync('t')}) if $round == 5;
		ok($m->wait_sync, "in sync beside them, round $round");
	}
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'round 8'}), 15000, 'the last round has arrived');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v LIKE 'open%' OR v = 'prepared'}), 0, 'nothing that is not committed has');
	ok($m->poll(q{SELECT sum(pg_relation_size(c.oid)) < 1000000 FROM pg_class c WHERE relname LIKE 'queue\__'}), 'the queue gives its space back beside an old snapshot');
	is($m->status('ok'), 't', 'status is ok');
	CrateSync::Faults::step_to($m, 1);
	is($writer->done, '', 'the writer commits');
	$m->equal('t', 'once it has');
	$m->sql(q{COMMIT PREPARED 'stays'});
	$m->equal('t', 'the prepared one too');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'prepared'}), 10, 'its rows are there');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'DO%pg_sleep(0.05)%' AND pid <> pg_backend_pid()});
	$old->done;
	is($m->status('ok'), 't', 'status is ok at the end');
});

# --- settings of all roles, of the database and of the server: a worker that runs, one that starts, writers
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('f', 'g');
	$m->sql(q{CREATE TABLE f (id timestamptz PRIMARY KEY, x float8, y real, b bytea, i interval, d date, n numeric, a float8[], at timestamp);
		CREATE TABLE g (id text PRIMARY KEY, v text, p text);
		CREATE SCHEMA evil;
		CREATE FUNCTION evil.md5(text) RETURNS text LANGUAGE sql AS $$SELECT 'evil'$$;
		CREATE FUNCTION evil.count(int) RETURNS bigint LANGUAGE sql AS $$SELECT 1 / 0::bigint$$;
		CREATE FUNCTION evil.never(int, int) RETURNS boolean LANGUAGE sql AS $$SELECT false$$;
		CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never);
		CREATE TABLE evil.mirror (x int); CREATE TABLE evil.f (x int)});
	my $fill = q{INSERT INTO f SELECT '2024-03-31 00:30:00+01'::timestamptz + i * interval '10 min 1 ms', 1.0 / i, 1.0 / i, decode(md5(i::text), 'hex'),
			i * interval '1 day 1 min', '2024-02-03'::date + i, i / 7.0, array[i / 3.0, NULL], '2024-02-03 04:05:06.789'::timestamp + i * interval '1 day'
			FROM generate_series(%d, %d) i; INSERT INTO g SELECT 'k\\' || i, E'a\\\\b', CASE i %% 3 WHEN 0 THEN 'a\b' END FROM generate_series(%d, %d) i;};
	my $more = sub { my ($n) = @_; $m->sql(sprintf $fill, $n, $n + 299, $n, $n + 299) };
	$more->(1);
	$m->add('f');
	$m->sql(q{SET standard_conforming_strings = on; SELECT crate_sync.add_table('g', row_filter => $$p IS DISTINCT FROM 'a\b'$$)});
	ok($m->wait_sync, 'load');
	is($m->target_count('g'), 200, 'a filter with a backslash');

	my @settings = ([ 'lock_timeout', '1ms' ], [ 'statement_timeout', '20ms' ], [ 'idle_in_transaction_session_timeout', '5ms' ],
		[ 'DateStyle', 'German' ], [ 'TimeZone', 'Asia/Kathmandu' ], [ 'IntervalStyle', 'sql_standard' ],
		[ 'bytea_output', 'escape' ], [ 'extra_float_digits', '-15' ], [ 'default_transaction_read_only', 'on' ],
		[ 'default_transaction_isolation', 'serializable' ], [ 'default_transaction_deferrable', 'on' ], [ 'row_security', 'off' ],
		[ 'session_replication_role', 'replica' ], [ 'standard_conforming_strings', 'off' ], [ 'transform_null_equals', 'on' ],
		[ 'enable_indexscan', 'off' ], [ 'enable_bitmapscan', 'off' ], [ 'array_nulls', 'off' ], [ 'client_encoding', 'LATIN1' ], [ 'synchronous_commit', 'off' ]);
	local $ENV{PGOPTIONS} = $quiet;
	my $n = 1000;
	my $unset = sub {
		my ($where) = @_;
		local $ENV{PGOPTIONS} = $quiet;
		$node->safe_psql('postgres', "$where RESET $_") foreach map { $_->[0] } @settings;
		$node->safe_psql('postgres', "$where SET search_path = $m->{schema}, public") if $where =~ /DATABASE/;
		$node->safe_psql('postgres', "$where RESET search_path") if $where =~ /ROLE/;
		$node->reload;
	};
	foreach my $where ('ALTER SYSTEM', 'ALTER ROLE ALL', "ALTER DATABASE $m->{db}")
	{
		eval {
			foreach my $s (@settings)
			{
				$node->safe_psql('postgres', "$where SET $s->[0] = '$s->[1]'");
			}
			$node->safe_psql('postgres', "$where SET search_path = evil, pg_catalog, $m->{schema}, public") unless $where eq 'ALTER SYSTEM';
			$node->reload;
			# a worker that runs, then one that starts; sessions with their own time and order of schemas
			foreach my $when ('runs', 'starts')
			{
				$m->kill_worker('TERM') if $when eq 'starts';
				$m->sql("SET search_path = $m->{schema}, public; " . sprintf($fill, $n, $n + 99, $n, $n + 99));
				# one with all of it, but for what makes PostgreSQL itself refuse
				local $ENV{PGOPTIONS} = '-c statement_timeout=0 -c default_transaction_read_only=off -c idle_in_transaction_session_timeout=0';
				my ($ret, $out, $err) = $m->try_sql("UPDATE $m->{schema}.f SET x = x + 1 WHERE b IS NOT NULL; DELETE FROM $m->{schema}.g WHERE id LIKE '%9'; SELECT crate_sync.resync('$m->{schema}.g')");
				is($ret, 0, "$where: a writer with the settings, a worker that $when") or diag $err;
				local $ENV{PGOPTIONS} = $quiet . " -c search_path=$m->{schema},public";
				ok($m->wait_sync, "$where: in sync");
				my ($status, $report) = $m->compare('f');
				is($status, 0, "$where: both sides are equal, a worker that $when") or diag $report;
				is($m->target_count('g'), $m->sql(q{SELECT count(*) FROM g WHERE p IS DISTINCT FROM 'a\b'}), '... and the filter reads as it was given');
				is($m->status('ok'), 't', '... status is ok');
				$n += 100;
			}
			$m->sql("SET search_path = evil, pg_catalog; CREATE TABLE $m->{schema}.h$n (id pg_catalog.int4 PRIMARY KEY); SELECT crate_sync.add_table('$m->{schema}.h$n'); "
				  . "SELECT crate_sync.verify('$m->{schema}.f'); SELECT crate_sync.pause(); SELECT crate_sync.resume(); SELECT crate_sync.preview('$m->{schema}.f')");
			ok($m->wait_sync, "$where: add_table, verify, pause and resume");
			ok($m->poll(q{SELECT s.verify_done OPERATOR(pg_catalog.=) m.verify_no FROM crate_sync.mirror m JOIN crate_sync.mirror_state s ON m.mirror_id OPERATOR(pg_catalog.=) s.mirror_id WHERE m.verify_no OPERATOR(pg_catalog.>) 0}), '... the verify is done');
			is($m->sql(q{SELECT last_verify_ok FROM crate_sync.tables WHERE relname::text OPERATOR(pg_catalog.=) 'f'}), 't', '... and finds both equal');
		};
		fail("$where: ran to its end: $@") if $@;
		$unset->($where);
	}
	delete local $ENV{PGOPTIONS};
	$m->equal('f', 'with none of them');
});

# --- partitions come and go, triggers of a leaf are off, a FOR ALL TABLES publication with wal_level = logical
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE p (id int, r int, v text, PRIMARY KEY (r, id)) PARTITION BY LIST (r);
		CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
		CREATE TABLE p2 (v text, junk int, r int NOT NULL, id int NOT NULL); ALTER TABLE p2 DROP COLUMN junk;
		CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i;
		INSERT INTO p SELECT i, i % 2, 'v' FROM generate_series(1, 1000) i; INSERT INTO p2 SELECT 'v', 2, i FROM generate_series(1, 500) i});
	$m->add('p', 't');
	$m->equal([ 'p', 't' ], 'load');
	$m->sql(q{BEGIN; ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2); UPDATE p SET v = 'attached' WHERE r = 2 AND id <= 10; COMMIT; UPDATE p2 SET v = 'leaf' WHERE id = 11});
	ok(CrateSync::wait_until('resynced', sub { $m->target_count('p') == 1500 }), 'the rows of an attached partition arrive');
	$m->equal('p', 'ATTACH PARTITION');
	$m->sql(q{TRUNCATE p2; INSERT INTO p2 VALUES ('after', 2, 1)});
	$m->equal('p', 'TRUNCATE of a partition that was attached');
	is($m->target_count('p'), 1001, 'its rows are gone');
	$m->sql(q{ALTER TABLE p DETACH PARTITION p1; UPDATE p1 SET v = 'nobody cares'; INSERT INTO p SELECT i, 0, 'beside' FROM generate_series(5001, 5100) i});
	ok(CrateSync::wait_until('resynced', sub { $m->target_count('p') == 601 }), 'the rows of a detached partition leave');
	$m->equal('p', 'DETACH PARTITION');
	is($m->sql(q{SELECT count(*) FROM pg_trigger WHERE tgrelid = 'p1'::regclass AND tgname LIKE 'crate_sync%' AND tgname NOT LIKE '%truncate%'}), 0, 'it is no longer captured');
	$m->add('p1');
	$m->equal([ 'p', 'p1' ], 'the detached one mirrored by itself');
	$m->sql(q{ALTER TABLE p DETACH PARTITION p2 CONCURRENTLY});
	$m->sql(q{DROP TABLE p2; UPDATE p SET v = 'left'});
	ok(CrateSync::wait_until('resynced', sub { $m->target_count('p') == 600 }), 'DETACH CONCURRENTLY and DROP');
	$m->equal('p', 'after it');
	$m->sql(q{BEGIN; ALTER TABLE p0 DISABLE TRIGGER ALL; UPDATE p SET v = 'unseen' WHERE id < 100; DELETE FROM p0 WHERE id = 200; ALTER TABLE p0 ENABLE TRIGGER ALL; COMMIT});
	ok(CrateSync::wait_until('resynced', sub { ($m->compare('p'))[0] == 0 }), 'triggers of a leaf that were off are noticed');

	# everything is published, and decoded somewhere
	$m->sql('CREATE PUBLICATION everything FOR ALL TABLES');
	my ($ret, $out, $err) = $m->try_sql(q{SELECT 1 FROM pg_create_logical_replication_slot('decoded', 'test_decoding')});
	my $decoded = $ret == 0;
	CrateSync::skipped("what a FOR ALL TABLES publication decodes: $err") unless $decoded;
	my @w = writers($m, 2);
	foreach my $round (1 .. 4)
	{
		($ret, $out, $err) = $m->try_sql(q{UPDATE p SET v = v || '.'; DELETE FROM p WHERE id = (SELECT max(id) FROM p); UPDATE p1 SET v = v || '.' WHERE id < 50; TRUNCATE stop});
		is($ret, 0, 'UPDATE, DELETE and TRUNCATE beside a FOR ALL TABLES publication') or diag $err;
		$m->sql('SELECT crate_sync.pause(); SELECT crate_sync.resume()') if $round == 2;
		$m->sql(q{SELECT crate_sync.resync()}) if $round == 3;
		sleep 0.5;
	}
	stop_writers($m, 'FOR ALL TABLES', @w);
	$m->equal([ 'p', 'p1', 't' ], 'FOR ALL TABLES publication, wal_level = logical');
	is($m->status('ok'), 't', 'all is well');
	is(CrateSync::log_count($node, 'does not have a replica identity'), 0, 'nobody missed a replica identity');
	if ($decoded)
	{
		is($m->sql(q{SELECT count(*) FROM pg_logical_slot_get_changes('decoded', NULL, NULL) WHERE data ~ 'table crate_sync.queue_\w+: (INSERT|UPDATE|TRUNCATE)'}), 0, 'queued keys are not decoded');
		$m->sql(q{SELECT pg_drop_replication_slot('decoded')});
	}
	$m->sql('DROP PUBLICATION everything');
});

# --- DDL of source and queue under load, with a lock_timeout that lets nobody wait; then all is dropped
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text, w int DEFAULT 0); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 2000) i;
		CREATE TABLE doomed (id int PRIMARY KEY, v text); INSERT INTO doomed SELECT i, 'v' FROM generate_series(1, 500) i});
	$m->add('t', 'doomed');
	$m->equal([ 't', 'doomed' ], 'load');
	# writers may not wait for the queue; the source's own DDL is PostgreSQL's own matter
	my @w = writers($m, 3);
	my $impatient = $m->background(q{SET lock_timeout = '1ms';} . "BEGIN; UPDATE doomed SET v = 'x' WHERE id = 1; COMMIT; SELECT pg_sleep(0.002);\n" x 500);
	foreach my $round (1 .. 3)
	{
		foreach my $queue (qw(queue_0 queue_1 queue_2 queue_hold))
		{
			$m->sql("VACUUM FULL crate_sync.$queue");
			$m->sql("BEGIN; LOCK TABLE crate_sync.$queue IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(0.05); COMMIT");
			$m->sql("ALTER TABLE crate_sync.$queue SET (toast_tuple_target = 4000)");
		}
		$m->sql('REINDEX TABLE crate_sync.mirror_state; VACUUM FULL crate_sync.mirror_state; VACUUM FULL crate_sync.mirror') foreach 1;
	}
	is($impatient->done, '', 'a writer with a lock_timeout of 1 ms does not notice');
	foreach my $ddl ('VACUUM FULL t', 'ALTER TABLE t ADD COLUMN x int DEFAULT 5', 'CLUSTER t USING t_pkey', 'ALTER TABLE t ALTER COLUMN v TYPE varchar(200)',
		'ALTER TABLE t DROP COLUMN x', 'CREATE INDEX ON t (v)', 'ALTER TABLE t SET UNLOGGED', 'ALTER TABLE t SET LOGGED', 'BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_old RENAME TO t; COMMIT')
	{
		my ($ret, $out, $err) = $m->try_sql("SET lock_timeout = '30s'; SET deadlock_timeout = '5s'; $ddl");
		is($ret, 0, "$ddl under load") or diag $err;
	}
	stop_writers($m, 'DDL', @w);
	$m->equal([ 't', 'doomed' ], 'DDL under load');
	is($m->status('ok'), 't', 'all is well') or $m->tell_why;

	@w = writers($m, 2);
	my $doomed = $m->background("UPDATE doomed SET v = v || 'x' WHERE id % 7 = 1;\n" x 300);
	sleep 0.3;
	my ($ret, $out, $err) = $m->try_sql(q{SET lock_timeout = '30s'; DROP TABLE doomed});
	is($ret, 0, 'DROP TABLE under load') or diag $err;
	unlike($doomed->done, qr/crate_sync\.(capture|queue|mirror)|deadlock/, 'its writers hear of nothing but their table');
	ok($m->poll(q{SELECT count(*) = 1 FROM crate_sync.tables}), 'it is no longer mirrored');
	stop_writers($m, 'DROP TABLE', @w);
	$m->equal('t', 'the other one goes on');

	@w = writers($m, 2);
	sleep 0.3;
	($ret, $out, $err) = $m->try_sql(q{SET statement_timeout = '60s'; DROP EXTENSION crate_sync});
	is($ret, 0, 'DROP EXTENSION under load') or diag $err;
	stop_writers($m, 'DROP EXTENSION', @w);
	$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
	$m->add('t');
	$m->equal('t', 'created and added again');
	@w = writers($m, 2);
	sleep 0.3;
	$ret = $node->psql('postgres', "DROP DATABASE $m->{db} WITH (FORCE)", stderr => \$err);
	is($ret, 0, 'DROP DATABASE WITH (FORCE) under load') or diag $err;
	$_->done foreach @w;
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE datname = '$m->{db}'"), 0, 'nobody is left in it');
});

$node->stop;
done_testing();
