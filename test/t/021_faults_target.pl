# Faults of the target that only time or a person mends, each alone; 003_faults.pl has those of the wire.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('faults_target', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 2s
crate_sync.interval = 100ms
EOC

# everything of ours at the target
sub wipe
{
	my ($m) = @_;
	if ($m->standin)
	{
		$m->standin->control(wipe => JSON::PP::true());
	}
	elsif ($m->kind eq 'sqlite')
	{
		my ($path) = $m->{url} =~ /^sqlite:(.*)/;
		IPC::Run::run([ 'python3', '-c', <<'EOP', $path ]) or die 'wipe';
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30)
with db:
    for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall():
        db.execute('DROP TABLE "%s"' % name)
EOP
	}
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('t', 'u');
	$m->sql(q{
		CREATE TABLE t (id int PRIMARY KEY, v text);
		CREATE TABLE u (a text, b numeric(10,2), v jsonb, PRIMARY KEY (a, b));
		INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 3000) i;
		INSERT INTO u SELECT 'k' || i, i / 4.0, jsonb_build_object('i', i) FROM generate_series(1, 1000) i;
	});
	$m->add(@t);
	$m->equal(\@t, 'load');

	# --- wiped
	if ($m->kind eq 'crate')
	{
		CrateSync::skipped('021: wiping is not done to a CrateDB that may be shared: 024 does it to one of its own');
	}
	else
	{
		wipe($m);
		$m->sql(q{UPDATE t SET v = 'after the wipe' WHERE id < 10});
		ok(CrateSync::wait_until('reloaded', sub { ($m->compare(@t))[0] == 0 }, 60), 'a wiped target is loaded anew');
		$m->equal(\@t, 'wiped while the worker ran');
		$m->sql('SELECT crate_sync.stop()');
		$m->poll('SELECT pid IS NULL FROM crate_sync.status');
		wipe($m);
		$m->sql('SELECT crate_sync.start()');
		$m->equal(\@t, 'wiped while no worker ran');
	}

	# --- emptied while no worker ran; so it looks, too, if one had made a lost table anew and was killed just then
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->target_change('DELETE FROM {t}');
	$m->sql('SELECT crate_sync.start()');
	$m->equal(\@t, 'emptied while no worker ran');

	# --- the whole table dropped by hand, with nothing to push: noticed at the next write
	$m->target_rows('DROP TABLE {t}');
	$m->sql(q{UPDATE t SET v = 'one' WHERE id = 1});
	$m->equal(\@t, 'dropped by hand');

	# --- emptied by hand: that is for a resync
	$m->target_change('DELETE FROM {t}');
	$m->sql(q{SELECT crate_sync.resync('t')});
	$m->equal(\@t, 'emptied by hand, resynced');
	$m->target_change(q{UPDATE {t} SET v = 'by hand'});
	$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
	$m->equal(\@t, 'changed by hand, rebuilt');

	# --- one bad row in 10,000
	$m->sql(q{CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT i, 'v' FROM generate_series(1, 10000) i});
	$m->add('big');
	$m->equal('big', 'load of 10,000');
	if ($m->standin)
	{
		$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema} . '"\."big"', refuse => 'poison', times => -1 });
		$m->sql(q{UPDATE big SET v = CASE id WHEN 5432 THEN 'poison' ELSE 'w' END});
		ok($m->poll(q{SELECT n_failed_rows = 1 AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'big'}), 'one row in 10,000 is parked');
		is($m->target_value(q{SELECT count(*) FROM {big} WHERE v = 'w'}), 9999, 'its neighbours are through');
		is($m->sql(q{SELECT key->>'id' FROM crate_sync.failed_rows}), 5432, 'it is the right one');
		is($m->status('ok'), 'f', 'status is not ok');
		like($m->status('hint'), qr/retry_failed/, 'and says what to do');
		$m->standin->control(reset => JSON::PP::true());
		is($m->sql('SELECT crate_sync.retry_failed()'), 1, 'retried');
		$m->equal('big', 'after the retry');
		is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, 'it has left failed_rows');

		# --- all rows bad: the table stops and says so, others go on
		$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema} . '"\."big"', refuse => 'v2', times => -1 });
		$m->sql(q{UPDATE big SET v = 'v2'});
		ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 'big'}), 'a table whose rows are all refused stops');
		like($m->sql(q{SELECT last_error FROM crate_sync.tables WHERE relname = 'big'}), qr/refused/, 'and says why');
		cmp_ok($m->sql(q{SELECT n_failed_rows FROM crate_sync.tables WHERE relname = 'big'}), '<', 1000, 'without parking them all');
		$m->sql(q{UPDATE t SET v = 'goes on'});
		ok($m->wait_sync('t'), 'another table goes on');
		is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'goes on'}), 3000, 'all of it');
		$m->standin->control(reset => JSON::PP::true());
		$m->sql('SELECT crate_sync.retry_failed()');
		ok($m->poll(q{SELECT state = 'ready' AND n_failed_rows = 0 AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'big'}), 'mended, it goes on by itself');
		$m->equal([ @t, 'big' ], 'all rows are there');

		# --- an answer delayed past the timeout although applied, and one that never ends
		foreach my $fault ({ delay => 3 }, { delay_before => 3 }, { endless => JSON::PP::true() }, { garbage => JSON::PP::true() },
			{ html => JSON::PP::true() }, { status => 429 }, { status => 500 }, { status => 503 },
			{ error => [ 4037, 'Table or partition preparation exceeds all disk watermarks', 403 ] },
			{ error => [ 5000, 'CircuitBreakingException[Allocating 20mb failed, breaker would use 130mb]', 500 ] },
			{ cut => 'before' }, { cut => 'middle' }, { cut => 'after' })
		{
			my ($what) = %$fault;
			$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema} . '"', times => 2, %$fault });
			$m->sql(qq{UPDATE t SET v = '$what ' || id});
			$m->standin->wait_hits(1);
			$m->sql(qq{UPDATE t SET v = '$what again ' || id WHERE id % 2 = 0; DELETE FROM t WHERE id % 100 = 7});
			$m->equal(\@t, "$what" . (ref $fault->{$what} || !$fault->{$what} ? '' : " $fault->{$what}"));
			$m->standin->control(reset => JSON::PP::true());
			$m->sql(q{INSERT INTO t SELECT i, 'back' FROM generate_series(1, 3000) i ON CONFLICT DO NOTHING});
		}
	}

	# --- the target's file
	if ($m->kind eq 'sqlite')
	{
		my ($path) = $m->{url} =~ /^sqlite:(.*)/;
		my $done = "$path.done";
		my $locker = IPC::Run::start([ 'python3', '-c', <<'EOP', $path, $done ], '<', \undef);
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
open(sys.argv[2], "w").close()
time.sleep(4)
EOP
		CrateSync::wait_until('locked', sub { -e $done });
		my $t0 = time();
		$m->sql(q{UPDATE t SET v = 'while locked'});
		cmp_ok(time() - $t0, '<', 2, 'a writer does not wait for a locked file');
		$m->equal(\@t, 'a file that was locked by another program');
		$locker->finish;
	SKIP:
		{
			skip 'root may write any file', 1 if $> == 0;
			chmod 0444, $path;
			$m->kill_worker('TERM');
			$m->sql(q{UPDATE t SET v = 'read-only'});
			ok($m->poll('SELECT NOT ok FROM crate_sync.status'), 'a file that cannot be written: status says so');
			chmod 0644, $path;
			$m->equal(\@t, 'writable again');
		}
	}
});

$node->stop;
done_testing();
