# What status, tables and wait_for_sync say; pause and resume; who may see what.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('status', conf => "crate_sync.max_retry_interval = 300ms\n");

CrateSync::on_targets(
	$node,
	sub {
		my ($m) = @_;
		ok($m->poll(q{SELECT state = 'nothing mirrored' FROM crate_sync.status}), 'an empty installation mirrors nothing');
		is($m->sql('SELECT ok, message, hint FROM crate_sync.status'), q{f|no tables are mirrored yet|SELECT crate_sync.add_table('schema.table');}, 'and says what to do');
		is($m->sql('SELECT crate_sync.wait_for_sync()'), 't', 'with nothing to wait for, wait_for_sync is true');
		$m->sql(<<'EOQ');
CREATE TABLE a (id int PRIMARY KEY, v text);
CREATE TABLE b (id int PRIMARY KEY, v text);
INSERT INTO a SELECT i, 'v' FROM generate_series(1, 1000) i;
INSERT INTO b SELECT i, 'v' FROM generate_series(1, 10) i;
EOQ
		$m->add('a', 'b');
		ok($m->wait_sync, 'in sync');
		is($m->sql('SELECT ok, state, n_tables, n_tables_not_ok, queued_keys, n_failed_rows, target FROM crate_sync.status'),
			"t|ok|2|0|0|0|$m->{url}", 'status');
		like($m->status('target_version'), $m->is_crate ? qr/CrateDB \d/ : qr/SQLite \d/, 'the version of the target');
		is($m->sql(q{SELECT n_tup_upserted, n_tup_deleted, n_failed_rows, state FROM crate_sync.tables WHERE relname = 'a'}),
			'1000|0|0|ready', 'counts of the load');
		$m->sql('UPDATE a SET v = v WHERE id <= 7; DELETE FROM a WHERE id > 990');
		$m->wait_sync;
		ok($m->poll(q{SELECT n_tup_upserted, n_tup_deleted FROM crate_sync.tables WHERE relname = 'a'}, '1007|10'), 'counts of changes');
		ok($m->sql(q{SELECT last_send_time IS NOT NULL AND last_ack_time >= last_send_time - interval '1 min' FROM crate_sync.status}) eq 't', 'times');
		cmp_ok($m->sql(q{SELECT requests FROM crate_sync.tables WHERE relname = 'a'}), '>', 0, 'requests are counted');

		# what wait_for_sync has said to be there is found by a search at once
		my $missed = 0;
		foreach my $i (1 .. 20)
		{
			$m->sql("UPDATE b SET v = 'search $i'");
			is($m->sql('SELECT crate_sync.wait_for_sync()'), 't', "wait $i") if $i == 1;
			$m->sql('SELECT crate_sync.wait_for_sync()') if $i > 1;
			my $rows = $m->target_rows("SELECT count(*) FROM {b} WHERE v = 'search $i'");
			$missed++ if $rows->[0][0] != 10;
		}
		is($missed, 0, 'a search finds what wait_for_sync waited for, without REFRESH');

		# --- errors of wait_for_sync
		my ($ret, $out, $err) = $m->try_sql(q{BEGIN; UPDATE a SET v = 'x' WHERE id = 1; SELECT crate_sync.wait_for_sync(); COMMIT;});
		like($err, qr/ERROR.*changed mirrored tables/, 'an error if the caller itself has queued keys');
		like($err, qr/HINT/, 'with a hint');
		($ret, $out, $err) = $m->try_sql(q{BEGIN; SAVEPOINT s; UPDATE a SET v = 'x' WHERE id = 1; ROLLBACK TO s; SELECT crate_sync.wait_for_sync(); COMMIT;});
		is($out, 't', 'but not for keys that were rolled back');
		($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync('pg_class')});
		like($err, qr/ERROR.*pg_class/, 'an error for a table that is not mirrored');
		($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync(timeout => '-1 s')});
		like($err, qr/ERROR/, 'an error for a negative timeout');

		# changes of others that are not committed yet are not waited for
		my $open = $m->background(q{BEGIN; UPDATE a SET v = 'open' WHERE id = 2; SELECT pg_sleep(4); COMMIT;});
		$m->poll(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND pid <> pg_backend_pid()});
		is($m->sql(q{SELECT crate_sync.wait_for_sync(timeout => '3 s')}), 't', 'an open transaction is not waited for');
		$open->done;

		# --- pause and resume
		is($m->sql(q{SELECT crate_sync.pause('a')}), 1, 'pause says how many');
		ok($m->poll(q{SELECT state = 'paused' FROM crate_sync.tables WHERE relname = 'a'}), 'the table is paused');
		sleep 0.5;
		$m->sql(q{UPDATE a SET v = 'paused'; UPDATE b SET v = 'beside'});
		is($m->sql(q{SELECT crate_sync.wait_for_sync('b')}), 't', 'the other goes on');
		is($m->target_value(q{SELECT count(*) FROM {b} WHERE v = 'beside'}), 10, 'its rows are there');
		is($m->target_value(q{SELECT count(*) FROM {a} WHERE v = 'paused'}), 0, 'those of the paused one are not');
		ok($m->poll(q{SELECT queued_keys = 990 FROM crate_sync.tables WHERE relname = 'a'}), 'they are queued');
		ok($m->sql(q{SELECT lag > '0' FROM crate_sync.tables WHERE relname = 'a'}) eq 't', 'with a lag');
		is($m->sql('SELECT ok, state FROM crate_sync.status'), 'f|paused', 'status says so');
		like($m->status('hint'), qr/resume/, 'and what to do');
		($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync()});
		is($out, 'f', 'wait_for_sync is false');
		like($err, qr/WARNING.*\ba\b.*paused/, 'and names the paused table');
		$m->kill_worker('TERM');
		$m->wait_worker;
		sleep 0.5;
		is($m->target_value(q{SELECT count(*) FROM {a} WHERE v = 'paused'}), 0, 'a pause survives the worker');
		$m->sql('TRUNCATE b');
		is($m->sql(q{SELECT crate_sync.wait_for_sync('b')}), 't', 'the queue goes on rotating');
		is($m->sql(q{SELECT crate_sync.resume('a')}), 1, 'resume says how many');
		$m->equal([ 'a', 'b' ], 'resumed');
		is($m->target_value(q{SELECT count(*) FROM {a} WHERE v = 'paused'}), 990, 'the rows are there');
		is($m->sql('SELECT crate_sync.pause()'), 2, 'pause all');
		$m->sql(q{UPDATE a SET v = 'all paused' WHERE id = 1; INSERT INTO b VALUES (1, 'x')});
		sleep 0.5;
		is($m->target_value('SELECT count(*) FROM {b}'), 0, 'nothing is pushed');
		is($m->sql('SELECT crate_sync.resume()'), 2, 'resume all');
		$m->equal([ 'a', 'b' ], 'all resumed');

		# a table paused before its load
		$m->sql(q{CREATE TABLE c (id int PRIMARY KEY); INSERT INTO c SELECT generate_series(1, 100); BEGIN; SELECT crate_sync.add_table('c'); SELECT crate_sync.pause('c'); COMMIT;});
		sleep 0.5;
		$m->sql(q{INSERT INTO c VALUES (101); SELECT crate_sync.resume('c')});
		$m->equal('c', 'paused before its load');

		# --- rights
		$m->sql(<<'EOQ');
DROP ROLE IF EXISTS watcher; DROP ROLE IF EXISTS writer;
CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; CREATE ROLE writer LOGIN;
EOQ
		$m->sql("GRANT USAGE ON SCHEMA $m->{schema} TO watcher, writer; GRANT ALL ON a TO writer");
		($ret, $out, $err) = $m->try_sql('SET ROLE watcher; SELECT ok FROM crate_sync.status');
		is($out, 't', 'pg_monitor reads status') or diag $err;
		($ret, $out, $err) = $m->try_sql('SET ROLE watcher; SELECT count(*) FROM crate_sync.tables, crate_sync.progress, crate_sync.failed_rows, crate_sync.differences, crate_sync.benchmark_results');
		is($out, '0', '... and the other views') or diag $err;
		($ret, $out, $err) = $m->try_sql('SET ROLE watcher; SELECT crate_sync.wait_for_sync()');
		is($out, 't', '... and waits') or diag $err;
		foreach my $call ('crate_sync.stop()', 'crate_sync.start()', q{crate_sync.pause('a')}, q{crate_sync.resume('a')},
			q{crate_sync.resync('a')}, q{crate_sync.remove_table('a')}, q{crate_sync.add_table('a')},
			q{crate_sync.target_query('SELECT 1')}, q{crate_sync.retry_failed()}, q{crate_sync.discard_failed()}, 'crate_sync.adopt()')
		{
			foreach my $role ('watcher', 'writer')
			{
				($ret, $out, $err) = $m->try_sql("SET ROLE $role; SELECT $call");
				like($err, qr/ERROR.*(permission denied|must be owner)/, "$role may not call $call");
			}
		}
		foreach my $rel ('queue_0', 'queue_hold', 'failed', 'mirror', 'mirror_state', 'worker_state', 'status', 'failed_rows')
		{
			($ret, $out, $err) = $m->try_sql("SET ROLE writer; SELECT * FROM crate_sync.$rel");
			like($err, qr/ERROR.*permission denied/, "a writer may not read $rel");
		}
		($ret, $out, $err) = $m->try_sql(q{SET ROLE writer; UPDATE a SET v = 'by writer' WHERE id = 3; DELETE FROM a WHERE id = 4; INSERT INTO a VALUES (5000, 'w'); TRUNCATE a;});
		is($ret, 0, 'a writer who knows nothing of all this writes as before') or diag $err;
		($ret, $out, $err) = $m->try_sql(q{SET ROLE writer; SET lock_timeout = '1ms'; SET statement_timeout = '2s'; INSERT INTO a VALUES (1, 'low timeouts')});
		is($ret, 0, '... with low timeouts too') or diag $err;
		$m->equal('a', 'changes by a role without rights');

		# --- the target, asked through the extension
		is($m->sql(sprintf q{SELECT r->>'n' FROM crate_sync.target_query('SELECT count(*) AS n FROM %s') r}, $m->target_table('b')), 1, 'target_query');
		($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.target_query('SELECT nonsense FROM nowhere')});
		like($err, qr/ERROR/, 'target_query with an error of the target');
		is($m->sql('SELECT rows_match FROM crate_sync.benchmark(\'SELECT count(*) FROM a\', iterations => 3, warmup => 1)'), 't', 'benchmark');
		is($m->sql('SELECT count(*) FROM crate_sync.benchmark_results'), 1, 'its result is kept');
		cmp_ok($m->sql('SELECT count(*) FROM crate_sync.benchmark_chart()'), '>', 0, 'and drawn');

		# --- a table without a worker
		$m->sql('SELECT crate_sync.stop()');
		$m->poll('SELECT pid IS NULL FROM crate_sync.status');
		($ret, $out, $err) = $m->try_sql(q{CREATE TABLE d (id int PRIMARY KEY); INSERT INTO d VALUES (1); SELECT crate_sync.add_table('d')});
		is($ret, 0, 'add_table without a worker');
		($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync('d', '200ms')});
		is($out, 'f', 'wait_for_sync without a worker is false');
		like($err, qr/WARNING.*worker/, 'and says why');
		$m->sql('SELECT crate_sync.start()');
		$m->equal('d', 'the load starts with the worker');

		$m->sql("DROP OWNED BY watcher, writer; DROP ROLE watcher, writer");
	});

# --- the target is away when a table is added
{
	my $port = CrateSync::free_port();
	my $m = CrateSync::Mirror->new($node, 'standin', url => "http://127.0.0.1:$port");
	$m->standin->stop;
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50)');
	my $t0 = time();
	my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.add_table('t')});
	is($ret, 0, 'add_table with the target away') or diag $err;
	$m->poll(q{SELECT state = 'target unreachable' FROM crate_sync.status});
	$m->sql('CREATE TABLE t2 (id int PRIMARY KEY); INSERT INTO t2 SELECT generate_series(1, 50)');
	($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.add_table('t2')});
	is($ret, 0, 'add_table with a target known to be away') or diag $err;
	like($err, qr/WARNING/, 'warns');
	$m->sql('INSERT INTO t VALUES (51)');
	cmp_ok($m->status('queued_keys'), '>=', 1, 'keys queue');
	$m->{standin} = CrateSync::Standin->new('--port', $port);
	$m->equal([ 't', 't2' ], 'works as soon as the target is there');
	$m->finish;
}

# --- a target table that does not fit
{
	my $m = CrateSync::Mirror->new($node, 'standin');
	$m->sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 50) i; CREATE TABLE good (id int PRIMARY KEY)');
	$m->target_post({ stmt => "CREATE TABLE $m->{schema}.t (id INTEGER PRIMARY KEY, v BIGINT)" });
	$m->add('t', 'good');
	ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 't'}), 'a table that does not fit: its state says so');
	like($m->sql(q{SELECT last_error FROM crate_sync.tables WHERE relname = 't'}), qr/"v".*bigint/i, 'with column and type');
	$m->sql(q{UPDATE t SET v = 'x'; INSERT INTO good VALUES (1)});
	is($m->sql(q{SELECT crate_sync.wait_for_sync('good')}), 't', 'others go on');
	$m->target_post({ stmt => "DROP TABLE $m->{schema}.t" });
	$m->equal([ 't', 'good' ], 'it works as soon as the cause is gone');
	$m->finish;
}

$node->stop;
done_testing();
