# No more than there is: disk, queue, lag, memory.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use Test::More;
use POSIX ();
use Time::HiRes qw(sleep time);

my $conf = <<'EOC';
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 5s
crate_sync.batch_rows = 2000
crate_sync.interval = 100ms
max_wal_size = 4GB
EOC

# --- the disk is full: of the queue alone, then of the whole database
my $disk = CrateSync::Faults::small_disk();
if (!$disk)
{
	CrateSync::skipped('a full disk: there is no C compiler to make one with');
}
else
{
	my $node = do {
		my %env = CrateSync::Faults::disk_env($disk);
		local @ENV{ keys %env } = values %env;
		CrateSync::server('disk', conf => $conf);
	};
	CrateSync::on_targets($node, sub {
		my ($m) = @_;
		my $dir = $node->basedir . "/small_$m->{db}";
		mkdir $dir or die "$dir: $!";
		$m->sql(qq{CREATE TABLESPACE small_$m->{db} LOCATION '$dir'});
		$m->sql(qq{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i;
			CREATE TABLE k (id text PRIMARY KEY, v int); INSERT INTO k SELECT md5(i::text), i FROM generate_series(1, 20000) i; CREATE TABLE beside (id int)});
		$m->sql("ALTER TABLE crate_sync.$_ SET TABLESPACE small_$m->{db}") foreach qw(queue_0 queue_1 queue_2 queue_hold);
		$m->add('t', 'k');
		$m->equal([ 't', 'k' ], 'with the queue in a tablespace of its own');
		my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');

		ok($m->poll(q{SELECT sum(pg_relation_size(c.oid)) = 0 FROM pg_class c WHERE relname LIKE 'queue\__' AND relkind = 'r'})
			|| $m->sql(q{VACUUM crate_sync.queue_0; VACUUM crate_sync.queue_1; VACUUM crate_sync.queue_2}) eq '', 'the queue is small');
		CrateSync::Faults::disk_full($disk, $dir);
		my ($ret, $out, $err) = $m->try_sql(q{BEGIN; UPDATE k SET v = -1; COMMIT});
		isnt($ret, 0, 'a transaction whose keys find no room fails');
		like($err, qr/ERROR:  could not extend file .*No space left on device/, "with PostgreSQL's own error");
		like($err, qr/HINT:  Check free disk space/, 'and its hint');
		is($m->sql('SELECT count(*) FROM k WHERE v = -1'), 0, 'it is rolled back as a whole');
		($ret, $out, $err) = $m->try_sql(q{INSERT INTO beside VALUES (1); SELECT count(*) FROM k; SELECT state FROM crate_sync.status});
		is($ret, 0, 'others can write, read and ask for the status') or diag $err;

		# in the middle of a transaction that goes on after the error, and has room at its end
		CrateSync::Faults::steps($m);
		my $session = $m->background("BEGIN;\nUPDATE t SET v = 'kept' WHERE id <= 10;\nSAVEPOINT s;\nUPDATE k SET v = -2;\nROLLBACK TO s;\n"
			. "DO \$\$ BEGIN UPDATE k SET v = -3; RAISE EXCEPTION 'there was room'; EXCEPTION WHEN disk_full THEN UPDATE t SET v = 'handled' WHERE id = 11; END \$\$;\n"
			. "SELECT step(1);\nUPDATE t SET v = 'kept too' WHERE id = 12;\nCOMMIT;\n");
		ok(CrateSync::Faults::wait_step($m, 1), 'a transaction goes on behind a savepoint');
		$m->kill_worker('TERM');
		$m->wait_worker;
		sleep 1.5;
		CrateSync::Faults::disk_has_room($disk);
		CrateSync::Faults::step_to($m, 1);
		my $said = $session->done;
		is(() = $said =~ /ERROR/g, 1, 'one error, that of its savepoint') or diag $said;
		$m->equal([ 't', 'k' ], 'once there is room');
		is($m->target_value(q{SELECT count(*) FROM {t} WHERE v IN ('kept', 'handled', 'kept too')}), 12, 'what it kept has arrived');
		is($m->target_value(q{SELECT count(*) FROM {k} WHERE v < 0}), 0, 'what failed has not');
		is($m->status('ok'), 't', 'all is well');

		# nothing in the database can grow: the worker cannot write down what it did either
		my $oid = $m->sql('SELECT oid FROM pg_database WHERE datname = current_database()');
		$m->sql(q{SELECT crate_sync.pause('k'); UPDATE k SET v = v + 1 WHERE v % 10 = 0});
		$m->sql(q{UPDATE t SET v = 'queued before'});
		CrateSync::Faults::disk_full($disk, "/base/$oid/");
		my $failed = 0;
		foreach my $i (1 .. 30)
		{
			($ret, $out, $err) = $m->try_sql("UPDATE t SET v = 'full $i ' || repeat('x', 100); INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(10000 * $i, 10000 * $i + 100) i");
			$failed++ if $ret != 0;
			unlike($err, qr/ERROR(?!.*No space left)/, 'no other error') if $ret != 0 && $failed == 1;
		}
		cmp_ok($failed, '>', 0, "writers find no room ($failed of 30)");
		sleep 2;
		CrateSync::Faults::disk_has_room($disk);
		$m->sql(q{SELECT crate_sync.resume('k'); UPDATE t SET v = 'room' WHERE id < 100});
		$m->equal([ 't', 'k' ], 'the whole database was full, and has room again');
		ok($m->poll('SELECT ok FROM crate_sync.status'), 'all is well by itself') or $m->tell_why;
		is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'the server never went down');
	});
	CrateSync::Faults::disk_has_room($disk);
	$node->stop;
	$node->clean_node;
}

# --- max_queue_size with detach_and_resync, and writers in the middle of it
my $node = CrateSync::server('limits', streaming => 1, conf => $conf);

sub set
{
	my (%s) = @_;
	$node->safe_psql('postgres', defined $s{$_} ? "ALTER SYSTEM SET crate_sync.$_ = '$s{$_}'" : "ALTER SYSTEM RESET crate_sync.$_") foreach keys %s;
	$node->reload;
}

sub new_timeline
{
	my ($node) = @_;
	$node->stop;
	open my $f, '>', $node->data_dir . '/standby.signal' or die $!;
	close $f;
	$node->start;
	$node->promote;
	CrateSync::poll($node, 'postgres', 'SELECT NOT pg_is_in_recovery()');
}

CrateSync::Faults::on_freezable($node, sub {
	my ($m) = @_;
	my $state = q{SELECT state FROM crate_sync.tables WHERE relname = 'big'};
	# what is written down, whatever error hides it
	my $mode = q{SELECT load_mode FROM crate_sync.mirror_state WHERE relid = 'big'::regclass};
	$m->sql(q{CREATE TABLE big (id text PRIMARY KEY, v text); INSERT INTO big SELECT repeat(md5(i::text), 3), 'v' FROM generate_series(1, 12000) i;
		CREATE TABLE small (id int PRIMARY KEY, v text); INSERT INTO small SELECT i, 'v' FROM generate_series(1, 500) i;
		CREATE TABLE mine (id text PRIMARY KEY); INSERT INTO mine SELECT repeat(md5(i::text), 3) FROM generate_series(1, 20) i});
	$m->add('big', 'small');
	$m->equal([ 'big', 'small' ], 'load');
	# its own rows, which the others leave alone
	my $row = sub { "id = repeat(md5('$_[0]'), 3)" };
	my $others = q{id NOT IN (SELECT id FROM mine)};

	# --- warn: it is said, nothing else
	set(max_queue_size => '1MB');
	CrateSync::Faults::freeze($m);
	$m->sql("UPDATE big SET v = 'warn' WHERE $others");
	ok( CrateSync::wait_until('it is in the log', sub { CrateSync::log_count($node, 'beyond crate_sync.max_queue_size') > 0 }), 'a full queue is in the log');
	isnt($m->sql($state), 'detached', 'with warn nothing is detached');
	cmp_ok($m->status('queue_bytes'), '>', 1024 * 1024, 'it goes on growing');
	CrateSync::Faults::thaw($m);
	$m->equal([ 'big', 'small' ], 'warn: all of it arrives');

	foreach my $between ('nothing', 'kill of the worker', 'a resync is asked for and cancelled', 'a new timeline')
	{
		set(queue_full_action => 'detach_and_resync');
		CrateSync::Faults::freeze($m);
		CrateSync::Faults::steps($m);
		my @w = $between eq 'a new timeline' ? () : (
			$m->background("BEGIN;\nUPDATE big SET v = 'early' WHERE ${\$row->(1)};\nSELECT step(1);\nUPDATE big SET v = 'while detached' WHERE ${\$row->(2)};\n"
				. "DELETE FROM big WHERE ${\$row->(3)};\nSELECT step(2);\nUPDATE big SET v = 'after' WHERE ${\$row->(4)};\nDELETE FROM big WHERE ${\$row->(5)};\nINSERT INTO big VALUES ('brand new $between', 'x');\nCOMMIT;\n"),
			$m->background("BEGIN;\nSELECT step(1);\nSAVEPOINT s;\nUPDATE big SET v = 'never' WHERE ${\$row->(6)};\nROLLBACK TO s;\nUPDATE big SET v = 'second' WHERE ${\$row->(7)};\nSELECT step(2);\nCOMMIT;\n"));
		CrateSync::Faults::wait_step($m, 1, 2) if @w;
		my $deleted = $m->sql(qq{WITH d AS (DELETE FROM big WHERE id IN (SELECT id FROM big WHERE $others ORDER BY id LIMIT 50) RETURNING 1) SELECT count(*) FROM d});
		$m->sql("UPDATE big SET v = '$between' WHERE $others; UPDATE small SET v = '$between'");
		ok($m->poll(q{SELECT count(*) = 1 FROM crate_sync.detached}), "$between: the table that fills the queue stops queueing");
		# files are emptied once the others' keys have left them
		ok($m->poll(q{SELECT coalesce(sum(queue_bytes), 0) < 100000 FROM crate_sync.queue_stats(true)}), 'the queue holds little again');
		is($m->status('ok'), 'f', 'status is not ok');
		my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync('big', '100ms')});
		is($out, 'f', 'nor is it in sync');
		my $before = $m->status('queued_keys');
		$m->sql("UPDATE big SET v = '$between again' WHERE $others");
		cmp_ok($m->status('queued_keys'), '<=', $before, 'it queues nothing');
		sleep 1.5;
		is($m->sql(q{SELECT string_agg(relid::regclass::text, ',') FROM crate_sync.detached}), 'big', 'no other table is detached for it');
		CrateSync::Faults::step_to($m, 1);
		CrateSync::Faults::wait_step($m, 2, 2) if @w;
		$m->sql(q{BEGIN; UPDATE big SET v = 'prepared' WHERE id = repeat(md5('8'), 3); DELETE FROM big WHERE id = repeat(md5('9'), 3); PREPARE TRANSACTION 'detached'}) if @w;
		new_timeline($node) if $between eq 'a new timeline';
		CrateSync::Faults::thaw($m);
		if (@w)
		{
			ok($m->poll('SELECT count(*) = 0 FROM crate_sync.detached'), 'the target is back: it is captured again');
			$m->kill_worker('TERM') if $between eq 'kill of the worker';
			sleep 1;
			is($m->sql($mode), 'detached', 'but not loaded before who was in the middle has ended');
			$m->sql(qq{SET lock_timeout = '1s'; INSERT INTO big VALUES ('beside $between', 'x')});
			$m->sql(q{SELECT crate_sync.resync('big', 'upsert')}) if $between =~ /cancelled/;
			CrateSync::Faults::step_to($m, 2);
			is($_->done, '', 'they commit') foreach @w;
			sleep 0.5;
			is($m->sql($mode), 'detached', 'nor before a prepared transaction has');
			$m->sql(q{COMMIT PREPARED 'detached'});
		}
		ok($m->wait_sync && $m->poll('SELECT queue_bytes < 1024 * 1024 FROM crate_sync.status'), 'the queue gives its space back');
		$m->equal([ 'big', 'small' ], "$between: loaded anew, with the changes of those in the middle");
		is($m->target_value(qq{SELECT count(*) FROM {big} WHERE v = 'prepared'}), 1, 'the prepared one\'s too') if @w;
		$m->sql(q{INSERT INTO big SELECT id, 'v' FROM mine ON CONFLICT (id) DO UPDATE SET v = 'v'});
		$m->equal([ 'big', 'small' ], 'captured again');
		is($m->status('ok'), 't', 'all is well') or $m->tell_why;
		set(queue_full_action => undef);
	}
	set(max_queue_size => undef);

	# --- a resync that is needed, cancelled: the table says that it is incomplete until it is loaded
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql(q{ALTER TABLE big DISABLE TRIGGER ALL; DELETE FROM big WHERE id < '1'; ALTER TABLE big ENABLE TRIGGER ALL;
		SELECT crate_sync.resync('big', 'upsert'); SELECT crate_sync.cancel('big'); SELECT crate_sync.start()});
	ok($m->poll($state, 'incomplete'), 'a resync for want of triggers, cancelled: incomplete');
	like($m->status('hint'), qr/crate_sync\.resync/, 'status says what to do');
	$m->sql(q{SELECT crate_sync.resync('big', 'upsert')});
	$m->equal('big', 'an upserting resync does what is due');
	is($m->status('ok'), 't', 'and all is well');
});

# --- max_lag
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i});
	$m->add('t');
	$m->equal('t', 'load');
	set(max_lag => '1s');
	is($m->status('ok'), 't', 'nothing queued is no lag');
	$m->sql(q{SELECT crate_sync.pause('t'); UPDATE t SET v = 'late'});
	ok($m->poll(q{SELECT NOT ok AND state = 'lagging' AND message LIKE 'the oldest queued change is%' AND hint <> '' AND lag > '1s' FROM crate_sync.status}), 'a lag beyond max_lag is not ok');
	set(max_lag => '0');
	ok($m->poll(q{SELECT state = 'paused' FROM crate_sync.status}), '0: never');
	set(max_lag => '1s');
	$m->sql(q{SELECT crate_sync.resume('t')});
	$m->equal('t', 'caught up');
	ok($m->poll('SELECT ok FROM crate_sync.status'), 'ok again');
	set(max_lag => undef);
});

# --- memory of a backend that changes millions of rows in one transaction
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE k (id text PRIMARY KEY, v int)});
	$m->add('t', 'k');
	ok($m->wait_sync, 'load');
	my $fresh = q{SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name = 'crate_sync capture'};
	my $session = $m->background(<<"EOQ");
BEGIN;
INSERT INTO t SELECT i, 0 FROM generate_series(1, 50000) i;
CREATE TEMP TABLE seen (bytes bigint, all_bytes bigint);
DO \$\$
BEGIN
	FOR i IN 1 .. 36 LOOP
		IF i % 3 = 0 THEN
			DELETE FROM t; INSERT INTO t SELECT j, i FROM generate_series(1, 50000) j;
		ELSIF i % 3 = 1 THEN
			BEGIN
				INSERT INTO k SELECT md5((i * 100000 + j)::text), j FROM generate_series(1, 20000) j;
				DELETE FROM k;
			EXCEPTION WHEN division_by_zero THEN NULL;
			END;
		ELSE
			DELETE FROM t WHERE id % 2 = 0; INSERT INTO t SELECT j * 2, i FROM generate_series(1, 25000) j;
		END IF;
		INSERT INTO seen SELECT sum(total_bytes) FILTER (WHERE name = 'crate_sync capture'), sum(total_bytes) FROM pg_backend_memory_contexts;
	END LOOP;
END \$\$;
SELECT max(bytes), max(all_bytes) FILTER (WHERE n > 18) - max(all_bytes) FILTER (WHERE n <= 18), count(*)
	FROM (SELECT *, row_number() OVER () AS n FROM seen) s;
SAVEPOINT s;
INSERT INTO t SELECT i, 0 FROM generate_series(100001, 1100000) i;
SELECT coalesce(sum(total_bytes), 0) FROM pg_backend_memory_contexts WHERE name = 'crate_sync capture';
ROLLBACK;
EOQ
	is($session->done, '', 'millions of rows in one transaction');
	my ($loop, $one) = split /\n/, $session->output;
	my ($most, $growth, $rounds) = split /\|/, $loop;
	is($rounds, 36, 'it was measured');
	cmp_ok($most, '>', 0, "the keys' memory is known ($most bytes)");
	cmp_ok($most, '<', 2 * 1024 * 1024, 'and bounded');
	cmp_ok($growth, '<', 1024 * 1024, "the backend as a whole does not grow ($growth bytes)");
	cmp_ok($one, '<', 2 * 1024 * 1024, "nor for one statement of a million rows ($one bytes)");
	$m->sql(q{INSERT INTO t SELECT i, 1 FROM generate_series(1, 20000) i; UPDATE t SET v = 2});
	$m->equal([ 't', 'k' ], 'it goes on');
}, only => 'sqlite', why => 'the memory of a writer has nothing to do with the target');

# --- processor time of a worker that has nothing to do
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $idle = sub {
		my ($what) = @_;
		my $pid = $m->worker_pid;
		my $ticks = sub {
			my @f = split ' ', PostgreSQL::Test::Utils::slurp_file("/proc/$pid/stat") =~ s/^.*\) //r;
			return $f[11] + $f[12];
		};
		# what went before comes to its end
		sleep 1;
		my $before = $ticks->();
		sleep 3;
		my $share = ($ticks->() - $before) / (3 * POSIX::sysconf(POSIX::_SC_CLK_TCK()));
		# of a processor; one that spins takes all of it, or half where there are few
		cmp_ok($share, '<', 0.15, "$what: the worker sleeps");
	};
	$m->sql('CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE bad (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i');
	$idle->('no table');
	$m->add('t', 'bad');
	$m->equal([ 't', 'bad' ], 'loaded');
	$idle->('all equal');
	$m->sql(q{SELECT crate_sync.pause('t'); UPDATE t SET v = 0});
	$idle->('a paused table with changes');
	$m->sql(q{SELECT crate_sync.resume('t'); ALTER TABLE bad RENAME TO worse; ALTER TABLE worse RENAME id TO no; INSERT INTO worse VALUES (1, 1)});
	$idle->('a table that is altered');
	if ($m->standin)
	{
		$m->standin->stop;
		$m->sql('UPDATE t SET v = 2');
		$idle->('the target is away');
	}
	$node->safe_psql('postgres', 'ALTER SYSTEM SET crate_sync.enabled = off');
	$node->reload;
	ok($m->poll(q{SELECT state = 'disabled' FROM crate_sync.status}), 'switched off');
	$m->sql('UPDATE t SET v = 3');
	$idle->('switched off, with changes');
	$node->safe_psql('postgres', 'ALTER SYSTEM RESET crate_sync.enabled');
	$node->reload;
	$m->sql(q{SELECT crate_sync.remove_table('worse')});
	$m->equal([ 't' ], 'switched on again') unless $m->standin;
});

$node->stop;
done_testing();
