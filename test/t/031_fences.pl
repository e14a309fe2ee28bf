# Requests that are carried out late, after the target's side of their table has changed: swapped by a rebuild,
# made anew, claimed by a copy.  None of them leaves anything.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $true = JSON::PP::true();
my $node = CrateSync::server('fences', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 3s
crate_sync.interval = 100ms
crate_sync.debug_points = on
EOC

# the stand-in only: it can hold a request and carry it out long after its client has gone
my $m = CrateSync::Mirror->new($node, 'standin');
my $s = $m->standin;

sub release
{
	$s->control(release => $true);
	CrateSync::wait_until('the held one is over', sub { my $c = $s->control; $c->{held} == 0 && $c->{running} == 0 }, 30);
}

# a rebuild from its request to its end
sub rebuild
{
	my ($name, $meanwhile) = @_;
	my $offset = CrateSync::log_size($node);
	$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
	$meanwhile->() if $meanwhile;
	return ok(CrateSync::wait_until("$name: the end of the rebuild", sub { CrateSync::log_count($node, 'rebuild of [^ ]*\.t finished', $offset) }),
		"$name: rebuilt");
}

# the worker waits at a point until let_go
sub hold
{
	my ($point) = @_;
	my $session = $m->background("SELECT pg_advisory_lock(28531, hashtext('$point')); SELECT pg_sleep(600) /* holds $point */;");
	$m->poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%/* holds $point */%' AND pid <> pg_backend_pid()");
	return [ $session, $point ];
}

sub wait_held
{
	my ($held) = @_;
	return ok($m->poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'held at $held->[1]'"), "the worker is held $held->[1]");
}

sub let_go
{
	my ($held) = @_;
	$m->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%/* holds $held->[1] */%' AND pid <> pg_backend_pid()");
	$held->[0]->done;
}

$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 10) i});
$m->add('t');
$m->equal('t', 'load');

# --- an upsert that was sent before a rebuild and arrives after it
foreach my $connections (2, 1, 3)
{
	# what a lane that is no longer used has sent is late as well
	$node->append_conf('postgresql.conf', "crate_sync.connections = $connections\n");
	$s->fault({ match => "INSERT INTO \"$m->{schema}\"\\.\"t\"", hold => 'before', times => 1 });
	$m->sql(q{UPDATE t SET v = 'older'});
	$s->wait_hits(1);
	$node->reload;
	rebuild("$connections connections", sub { $m->sql(q{UPDATE t SET v = 'newer'}) });
	ok($m->wait_sync, '... in sync');
	release();
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'newer'}), 10, '... a late upsert for its name leaves the new table alone');
	$m->equal('t', "... with $connections connections");
}

# --- one that was sent to the new table of a rebuild that was given up, and arrives in that of the next
{
	my $held;
	$s->fault({ match => "INSERT INTO \"$m->{schema}\"\\.\"t__crate_sync_new\"", hold => 'before', times => 3 });
	$m->sql(q{INSERT INTO t VALUES (101, 'gone'); SELECT crate_sync.resync('t', 'rebuild')});
	$s->wait_hits(3);
	$m->sql(q{SELECT crate_sync.cancel('t'); DELETE FROM t WHERE id = 101});
	CrateSync::wait_until('given up', sub { $m->sql(q{SELECT resync_done = resync_no AND load_mode IS DISTINCT FROM 'rebuild'
		FROM crate_sync.mirror JOIN crate_sync.mirror_state USING (mirror_id)}) eq 't' });
	$m->sql(q{SELECT crate_sync.resync('t')});
	$m->equal('t', 'a rebuild that was given up');
	$held = hold('before ready');
	rebuild('the next one', sub {
		wait_held($held);
		release();
		let_go($held);
	});
	$m->equal('t', 'a late upsert for the new table of an earlier rebuild');
}

# --- a new table that goes away before it could take the old one's place is loaded again, not swapped in as it is
{
	my $held = hold('before swap');
	my $locker;
	rebuild('gone before the swap', sub {
		wait_held($held);
		$m->target_post({ stmt => 'DROP TABLE ' . $m->target_table('t__crate_sync_new') });
		# it cannot be read for a while
		$locker = $m->background("BEGIN; LOCK TABLE t; SELECT pg_sleep(5) /* locks t */;");
		$m->poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%/* locks t */%' AND pid <> pg_backend_pid()");
		let_go($held);
	});
	$locker->done;
	$m->equal('t', 'rebuilt although the new table went away');
	is($m->target_count('t'), 10, '... all rows are there');
}

# --- a fence that cannot be raised: no swap, until it can
{
	my $offset = CrateSync::log_size($node);
	$s->fault({ match => 'INSERT INTO crate_sync.fence', args => '\.\\\\"t\\\\"#', times => -1, error => [ 5000, 'CircuitBreakingException[Allocating 1mb for x failed, breaker would use 1gb]', 500 ] });
	$s->control(clear_log => $true);
	$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
	$s->wait_hits(3);
	is(scalar($s->statements('SWAP TABLE')), 0, 'no swap while the fence cannot be raised');
	$m->sql(q{UPDATE t SET v = 'meanwhile'});
	$s->fault();
	ok(CrateSync::wait_until('the end of the rebuild', sub { CrateSync::log_count($node, 'rebuild of [^ ]*\.t finished', $offset) }), 'swapped when it can');
	$m->equal('t', 'a rebuild that had to wait');
}

# --- an error that says nothing of what becomes of the statement's other parts: newer values go out behind the fence
foreach my $error (
	[ 5002, 'UnavailableShardsException[[x] primary shard is not active]', 500 ],
	[ 5000, 'CircuitBreakingException[Allocating 1mb for x failed, breaker would use 1gb]', 500 ],
	[ 5000, 'EsRejectedExecutionException[rejected execution of X]', 500 ],
	[ 5005, 'JobKilledException[Job killed. KILL ALL]', 500 ],
	[ 5030, 'ClusterBlockException[blocked by: [SERVICE_UNAVAILABLE/1/state not recovered];]', 503 ],
	[ 5000, 'IllegalStateException[something else]', 500 ])
{
	$s->fault({ match => "INSERT INTO \"$m->{schema}\"\\.\"t\"", early => $error, times => 1 });
	$m->sql(q{UPDATE t SET v = 'older' WHERE id = 1});
	$s->wait_hits(1);
	$m->sql(q{UPDATE t SET v = 'newer' WHERE id = 1});
	$m->equal('t', $error->[1]);
	release();
	is($m->target_value(q{SELECT v FROM {t} WHERE id = 1}), 'newer', '... and what was left of it comes to nothing');
}
# ... and a late delete finds the row that came back
$m->sql(q{CREATE TABLE one (id int PRIMARY KEY, v text); INSERT INTO one VALUES (1, 'older')});
$m->add('one');
$m->equal('one', 'load of one row');
foreach my $fault ({ hold => 'before' }, { early => [ 5002, 'UnavailableShardsException[[x] primary shard is not active]', 500 ] })
{
	my $offset = CrateSync::log_size($node);
	$s->fault({ match => "DELETE FROM \"$m->{schema}\"\\.\"one\"", times => 1, %$fault });
	$m->sql(q{DELETE FROM one});
	$s->wait_hits(1);
	$m->sql(q{INSERT INTO one VALUES (1, 'newer'); SELECT crate_sync.resync('one', 'rebuild')});
	ok(CrateSync::wait_until('the end of the rebuild', sub { CrateSync::log_count($node, 'rebuild of [^ ]*\.one finished', $offset) }), 'rebuilt after a delete that got lost');
	$m->equal('one', '... in sync');
	release();
	is($m->target_value(q{SELECT v FROM {one} WHERE id = 1}), 'newer', '... it does not take the row that looks the same in the new table');
}

$m->finish;
$node->stop;
done_testing();
