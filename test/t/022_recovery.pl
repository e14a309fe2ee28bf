# Recovery: to a point in time, after crashes of every kind, to another major version's cluster, to
# a newer version of the extension.  Nothing that the source lost stays in the target.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use File::Basename qw(dirname);
use Test::More;
use Time::HiRes qw(sleep time);

my $conf = <<'EOC';
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 2s
crate_sync.interval = 100ms
EOC

# --- point-in-time recovery: what was pushed after the recovery target leaves the target
my $node = CrateSync::server('recovery', streaming => 1, conf => $conf);
$node->append_conf('postgresql.conf',
	"archive_mode = on\narchive_command = 'cp \"%p\" \"" . $node->archive_dir . "/%f\"'\n");
$node->restart;

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('t', 'u');
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 2000) i;
		CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u SELECT i, 'v' FROM generate_series(1, 300) i});
	$m->add(@t);
	$m->equal(\@t, 'load');
	# the first beat has to be there before the copy is made, as it is after a few seconds
	sleep 1;
	$node->backup("pitr_$m->{kind}");
	$m->sql(q{UPDATE t SET v = 'kept' WHERE id % 7 = 0});
	my $before = $m->sql(q{SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t});
	$node->safe_psql('postgres', "SELECT pg_create_restore_point('before_$m->{kind}')");
	# the original is alive for longer than the recovered one will be
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('UPDATE crate_sync.worker_state SET beat = beat + 1000; SELECT crate_sync.start()');
	$m->wait_worker;
	$m->sql(q{INSERT INTO t SELECT i, 'lost' FROM generate_series(100001, 100500) i; UPDATE t SET v = 'lost' WHERE id <= 100;
		DELETE FROM t WHERE id BETWEEN 1000 AND 1100; TRUNCATE u; INSERT INTO u VALUES (7, 'lost')});
	$m->equal(\@t, 'what is done after the recovery target is pushed');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'lost'}), 600, 'it is there');
	$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
	$node->stop;

	my $recovered = CrateSync::Faults::new_node("recovered_$m->{kind}");
	$recovered->init_from_backup($node, "pitr_$m->{kind}", has_restoring => 1, standby => 0);
	$recovered->append_conf('postgresql.conf',
		"recovery_target_name = 'before_$m->{kind}'\nrecovery_target_action = 'promote'\narchive_mode = off\n");
	$recovered->start;
	my $r = CrateSync::Faults::beside($m, $recovered);
	CrateSync::poll($recovered, 'postgres', 'SELECT NOT pg_is_in_recovery()');
	is($r->sql(q{SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM t}), $before, 'recovered to the point in time');
	ok($r->poll(q{SELECT state = 'waiting' AND message <> '' FROM crate_sync.status}, 't', 60), 'status says that it looks whether another writer is alive');
	ok( CrateSync::wait_until('the lost rows leave the target', sub {
			$r->target_value(q{SELECT count(*) FROM {t} WHERE v = 'lost'}) == 0 && $r->target_count('u') == 300 }),
		'what the recovery undid leaves the target by itself');
	$r->equal(\@t, 'after a point-in-time recovery');
	is($r->target_count('t'), 2000, 'as many rows as at that point');
	is($r->status(q{ok AND coalesce(last_error, '') !~ 'looking whether'}), 't', 'all is well, and no wait is called an error');
	cmp_ok(CrateSync::log_count($recovered, 'new timeline: all tables are resynced'), '>=', 1, 'the log says why');
	$r->sql(q{INSERT INTO t VALUES (100001, 'again')});
	$r->equal(\@t, 'it goes on');

	# the original, started again while the recovered one is down, must not take the target back
	sleep 6;				# a beat or two
	$recovered->stop;
	$node->start;
	$m->wait_worker;
	ok($m->poll(q{SELECT NOT ok AND message LIKE '%looks like a copy%' FROM crate_sync.status}, 't', 90), 'the original is the copy now and says so');
	like($m->status('hint'), qr/crate_sync\.adopt\(\)/, 'and what to do');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'again'}), 1, 'it has written nothing');
	$m->sql('SELECT crate_sync.adopt()');
	$m->equal(\@t, 'adopted back');
	$recovered->clean_node;
});
$node->stop;
$node->clean_node;

# --- asynchronous commits and crashes: the target has nothing that the source lost
$node = CrateSync::server('crashes', conf => $conf . "wal_writer_delay = 10s\ncrate_sync.interval = 20ms\nmax_wal_senders = 0\nwal_level = minimal\n");
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i});
	$m->add('t');
	$m->equal('t', 'load');

	my ($id, $lost) = (10000, 0);
	foreach my $how (('immediate shutdown', 'kill -9 of the postmaster', 'kill -9 of a backend', 'kill -9 of the worker') x 2)
	{
		my $victim = $m->background('SELECT pg_sleep(300);');
		$m->poll(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND state = 'active' AND pid <> pg_backend_pid()});
		my $pid = $m->sql(q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND pid <> pg_backend_pid()});
		my $worker = $m->worker_pid;
		# many small ones, so that some have arrived and some are not flushed when it goes down
		my $writer = $m->background(join '', 'SET synchronous_commit = off;', map {
			my $i = $id + $_;
			"INSERT INTO t VALUES ($i, 'async'); UPDATE t SET v = 'async $i' WHERE id = 1 + $i % 1000; DELETE FROM t WHERE id = $i - 50;" } 1 .. 20000);
		CrateSync::wait_until('some have arrived', sub { ($m->target_value('SELECT max(id) FROM {t}') || 0) > $id });
		if ($how eq 'immediate shutdown') { $node->stop('immediate') }
		elsif ($how eq 'kill -9 of the postmaster') { CrateSync::Faults::kill_postmaster($node) }
		else { kill 'KILL', $how eq 'kill -9 of a backend' ? $pid : $worker }
		$writer->done;
		$victim->done;
		my $there = $m->target_value('SELECT max(id) FROM {t}');
		$node->start if $how =~ /shutdown|postmaster/;
		CrateSync::poll($node, 'postgres', 'SELECT NOT pg_is_in_recovery()');
		my $here = $m->sql('SELECT max(id) FROM t');
		cmp_ok($here, '>=', $there, "$how: the source has what the target had ($here, $there)");
		$m->equal('t', "$how with asynchronous commits");
		is($m->status('ok'), 't', '... and all is well');
		$lost += $m->sql('SELECT pg_catalog.max(id) FROM t') < $id + 20000;
		$id += 30000;
	}
	cmp_ok($lost, '>', 0, 'writers were cut off');

	# a server that is restarted again and again with nothing to push is not one whose worker dies
	foreach my $i (1 .. 12)
	{
		$node->restart;
		$m->wait_worker if $i % 4 == 0;
	}
	ok($m->wait_worker, 'a worker after many restarts');
	$m->sql(q{UPDATE t SET v = 'restarted' WHERE id % 10 = 0});
	$m->equal('t', 'many restarts');
});
$node->stop;
$node->clean_node;

# --- kill -9 of everything while the target is frozen
$node = CrateSync::server('frozen_pg', conf => $conf);
CrateSync::Faults::on_freezable($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i});
	$m->add('t');
	$m->equal('t', 'load');
	foreach my $who ('worker', 'backend', 'postmaster')
	{
		CrateSync::Faults::freeze($m);
		$m->sql("UPDATE t SET v = 'before $who' WHERE id <= 500");
		sleep 0.5;				# its request is under way
		$m->sql("SET synchronous_commit = off; UPDATE t SET v = 'unflushed $who' WHERE id <= 10; DELETE FROM t WHERE id > 900");
		my $idle = $m->background('BEGIN; UPDATE t SET v = $$never$$ WHERE id BETWEEN 600 AND 700; SELECT pg_sleep(300);');
		$m->poll(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND state = 'active' AND pid <> pg_backend_pid()});
		my $pid = $m->sql($who eq 'worker' ? 'SELECT pid FROM crate_sync.status'
			: q{SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(300)%' AND pid <> pg_backend_pid()});
		if ($who eq 'postmaster')
		{
			ok(CrateSync::Faults::kill_postmaster($node), 'the worker does not outlive its postmaster while the target is frozen');
			$node->start;
		}
		else
		{
			kill 'KILL', $pid;
		}
		$idle->done;
		CrateSync::poll($node, 'postgres', 'SELECT NOT pg_is_in_recovery()');
		my $t0 = time();
		$m->sql("UPDATE t SET v = 'after $who' WHERE id BETWEEN 100 AND 200; INSERT INTO t SELECT i, 'back' FROM generate_series(950, 960) i ON CONFLICT DO NOTHING");
		note(sprintf 'a writer took %.1f s', time() - $t0);
		$m->wait_worker;
		sleep 1;
		CrateSync::Faults::thaw($m);
		$m->equal('t', "kill -9 of the $who while the target is frozen");
		is($m->status('ok'), 't', '... and all is well');
		is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'never'}), 0, '... nothing that was not committed');
		$m->sql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i ON CONFLICT DO NOTHING});
	}

	# TRUNCATE in the middle of a load, then a new worker: what was loaded before it has to go
	$node->append_conf('postgresql.conf', "crate_sync.batch_rows = 100\n");
	$node->reload;
	foreach my $mode ('upsert', 'rebuild', 'full')
	{
		$m->sql(q{INSERT INTO t SELECT i, 'v' FROM generate_series(1, 10000) i ON CONFLICT DO NOTHING});
		$m->equal('t', "before $mode");
		$m->sql("SELECT crate_sync.resync('t', '$mode')");
		CrateSync::wait_until('some are done', sub { $m->sql(q{SELECT coalesce((SELECT tuples_done > 0 FROM crate_sync.progress), (SELECT s.resync_done >= m.resync_no FROM crate_sync.mirror m JOIN crate_sync.mirror_state s USING (mirror_id)))}) eq 't' });
		$m->sql(q{TRUNCATE t; INSERT INTO t SELECT i, 'after' FROM generate_series(5000, 5010) i});
		sleep 0.2;
		$m->kill_worker('TERM');
		$m->equal('t', "TRUNCATE in the middle of $mode, then a new worker");
		is($m->target_count('t'), 11, '... nothing older is left');
	}
	$node->append_conf('postgresql.conf', "crate_sync.batch_rows = 5000\n");
	$node->reload;
});
$node->stop;
$node->clean_node;
done_testing();
