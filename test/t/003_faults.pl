# A target that fails in every way HTTP allows: nothing is lost, nothing older wins,
# nobody waits, and one bad row or table is nobody else's trouble.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $true  = JSON::PP::true();
my $false = JSON::PP::false();
my $node  = CrateSync::server('faults', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 1s
crate_sync.interval = 100ms
EOC

my $m = CrateSync::Mirror->new($node, 'standin', standin => [ '--listeners', '3' ]);
my $s = $m->standin;
my $writes = 'INSERT INTO "' . $m->{schema} . '"\."t"';
my $deletes = 'DELETE FROM "' . $m->{schema} . '"\."t"';

$m->sql(<<'EOQ');
CREATE TABLE t (id bigint PRIMARY KEY, v text);
CREATE TABLE other (a int, b text, v text, PRIMARY KEY (a, b));
INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 2000) i;
INSERT INTO other SELECT i, 'b', 'v' FROM generate_series(1, 100) i;
EOQ
$m->add('t', 'other');
$m->equal([ 't', 'other' ], 'load');

sub epochs
{
	$m->target_post({ stmt => 'REFRESH TABLE crate_sync.fence' });
	return $m->target_rows(q{SELECT id, epoch FROM crate_sync.fence ORDER BY id});
}

# --- a fault of each kind, for a few requests: then all is there
my $n = 0;
foreach my $fault (
	[ '503', { status => 503, body => { error => { message => 'x', code => 5030 } } } ],
	[ '503 without words', { status => 503 } ],
	[ '502 of a proxy', { status => 502, body => '<html>bad gateway</html>' } ],
	[ 'bare 429', { status => 429 } ],
	[ '500 of a circuit breaker', { error => [ 5000, 'CircuitBreakingException[Allocating 1mb for x failed, breaker would use 1gb]', 500 ] } ],
	[ 'rejected execution', { error => [ 5000, 'EsRejectedExecutionException[rejected execution of X]', 500 ] } ],
	[ 'shard unavailable', { error => [ 5002, 'UnavailableShardsException[[x] primary shard is not active]', 500 ] } ],
	[ 'killed', { error => [ 5005, 'JobKilledException[Job killed. KILL ALL]', 500 ] } ],
	[ 'cut before', { cut => 'before' } ],
	[ 'cut after', { cut => 'after' } ],
	[ 'cut in the middle', { cut => 'middle' } ],
	[ 'garbage', { garbage => $true } ],
	[ 'an HTML page', { html => $true } ],
	[ 'wrong JSON', { wrong_json => $true } ],
	[ 'JSON of something else', { wrong_json => '{"hello":"world"}' } ],
	[ 'a list', { wrong_json => '[1,2,3]' } ],
	[ 'an error without a code', { wrong_json => '{"error":{"message":"x"}}' } ],
	[ 'a negative rowcount', { wrong_json => '{"cols":[],"rows":[[]],"rowcount":-1,"duration":1}' } ],
	[ 'too large a rowcount', { wrong_json => '{"cols":[],"rows":[[]],"rowcount":99999999,"duration":1}' } ],
	[ 'an endless body', { endless => $true, times => 1 } ],
	[ 'an answer after the timeout', { delay => 1.6, times => 1 } ],
	[ 'carried out late', { delay_before => 1.6, times => 1 } ],
	[ '413', { status => 413, times => 1 } ],
	)
{
	my ($name, $f) = @$fault;
	$n++;
	foreach my $what ('upsert', 'delete')
	{
		# one row that is too large is a row that is refused
		next if $name eq '413' && $what eq 'delete';
		$s->fault({ times => 2, match => $what eq 'upsert' ? $writes : $deletes, %$f });
		$m->sql($what eq 'upsert' ? "UPDATE t SET v = 'fault $n' WHERE id <= 50" : "DELETE FROM t WHERE id = 100 + $n");
		$m->equal('t', "$name of an $what");
		cmp_ok($s->control->{faults}[0]{hits}, '>=', 1, '... which it met');
	}
	is($m->target_value("SELECT count(*) FROM {t} WHERE v = 'fault $n'"), 50, '... the values are there');
	is($m->status('n_failed_rows'), 0, '... and no row was given up');
}

# --- an error that nobody knows: tried again or parked, but not lost
foreach my $what ($writes, $deletes)
{
	$s->fault({ match => $what, times => 2, error => [ 5999, 'StrangeException[what is this]', 500 ] });
	$m->sql($what eq $writes ? q{UPDATE t SET v = 'strange' WHERE id = 1} : 'DELETE FROM t WHERE id = 300');
	ok($m->poll('SELECT queued_keys = 0 FROM crate_sync.status'), 'an error nobody knows does not stop the queue');
	$s->fault();
	$m->sql('SELECT crate_sync.retry_failed()');
	$m->equal('t', 'an error nobody knows');
}

# --- no redirect is followed
{
	my $elsewhere = CrateSync::Standin->new;
	$s->fault({ match => $writes, times => 2, redirect => $elsewhere->url . '/_sql' });
	$m->sql(q{UPDATE t SET v = 'redirected' WHERE id = 1});
	$m->equal('t', 'a redirect');
	is($elsewhere->control->{requests}, 0, 'it was not followed');
	$elsewhere->stop;
}

# --- a request whose fate is unknown raises the fence
{
	my %before = map { $_->[0] => $_->[1] } @{ epochs() };
	$s->fault({ match => $writes, cut => 'before', times => 1 });
	$m->sql(q{UPDATE t SET v = 'fenced' WHERE id = 1});
	$m->equal('t', 'cut off');
	my %after = map { $_->[0] => $_->[1] } @{ epochs() };
	ok((grep { ($before{$_} || 0) < $after{$_} } keys %after), 'the fence was raised');
}

# --- nothing older wins: a request is held, times out, and goes on after newer values were sent
foreach my $phase ('before', 'fenced')
{
	my $rounds = 5;
	my $good = 0;
	# rows of one lane only, where another's may go on
	my $last = $phase eq 'before' ? 20 : 1;
	foreach my $i (1 .. $rounds)
	{
		$s->fault({ match => $writes, hold => $phase, times => 1 });
		$m->sql("UPDATE t SET v = 'older $phase $i' WHERE id BETWEEN 1 AND $last");
		$s->wait_hits(1);
		$s->control(clear_log => $true);
		$m->sql("UPDATE t SET v = 'newer $phase $i' WHERE id BETWEEN 1 AND $last");
		if ($phase eq 'before')
		{
			# the newer values go through while the older request still waits
			$good += CrateSync::wait_until('newer values', sub {
				$m->target_value("SELECT count(*) FROM {t} WHERE v = 'newer $phase $i'") == 20 }, 30);
		}
		else
		{
			# it has passed the fence: the worker has to see it end first
			CrateSync::wait_until('a look at sys.jobs', sub { $s->statements('sys\.jobs') }, 30);
			sleep 0.3;
			my $sent = grep { ($_->{rowcount} || 0) > 0 } $s->statements($writes);
			$good += $sent == 0;
		}
		$s->control(release => $true);
		CrateSync::wait_until('the held one is over', sub { my $c = $s->control; $c->{held} == 0 && $c->{running} == 0 }, 30);
		$m->wait_sync;
		my $stale = $m->target_value("SELECT count(*) FROM {t} WHERE id BETWEEN 1 AND $last AND v <> 'newer $phase $i'");
		is($stale, 0, "nothing older won, held $phase, round $i");
	}
	is($good, $rounds, $phase eq 'before' ? 'newer values did not wait for a request that hangs'
		: 'newer values waited for a request that had passed the fence');
	$m->equal('t', "held $phase");
}

# a TRUNCATE right behind rows that are slow on their way: none of them is left over
foreach my $i (1 .. 3)
{
	$s->fault({ match => $writes, delay_before => 0.3, times => -1 });
	$m->sql("INSERT INTO t VALUES (90000 + $i, 'to be truncated')");
	$s->wait_hits(1);
	$m->sql('TRUNCATE t');
	$m->sql("INSERT INTO t VALUES (1, 'after')");
	ok($m->wait_sync, 'in sync after a TRUNCATE');
	is($m->target_count('t'), 1, "TRUNCATE right behind a slow upsert, $i");
}
$s->fault();
$m->sql(q{INSERT INTO t SELECT i, 'v' || i FROM generate_series(2, 2000) i});
$m->equal('t', 'filled again');

# a delete that hangs while the row comes back
foreach my $i (1 .. 3)
{
	$s->fault({ match => $deletes, hold => 'before', times => 1 });
	$m->sql("DELETE FROM t WHERE id = 500");
	$s->wait_hits(1);
	$m->sql("INSERT INTO t VALUES (500, 'back $i')");
	CrateSync::wait_until('it is back', sub { $m->target_value("SELECT count(*) FROM {t} WHERE v = 'back $i'") == 1 }, 20);
	$s->control(release => $true);
	CrateSync::wait_until('the held one is over', sub { $s->control->{running} == 0 }, 30);
	$m->equal('t', "a delete that comes late, $i");
	is($m->target_value("SELECT v FROM {t} WHERE id = 500"), "back $i", 'the row that came back is there');
}

# an upsert that hangs while the row is deleted
foreach my $phase ('before', 'fenced')
{
	$s->fault({ match => $writes, hold => $phase, times => 1 });
	$m->sql("UPDATE t SET v = 'zombie' WHERE id = 501");
	$s->wait_hits(1);
	$m->sql("DELETE FROM t WHERE id = 501");
	sleep 2;
	$s->control(release => $true);
	CrateSync::wait_until('the held one is over', sub { my $c = $s->control; $c->{held} == 0 }, 30);
	$m->equal('t', "an upsert that comes after its delete, held $phase");
	$m->sql("INSERT INTO t VALUES (501, 'alive')");
}

# the worker dies while a request hangs
{
	$s->fault({ match => $writes, hold => 'before', times => 1 });
	$m->sql(q{UPDATE t SET v = 'of the dead worker' WHERE id <= 20});
	$s->wait_hits(1);
	$m->kill_worker;
	$m->sql(q{UPDATE t SET v = 'of the next worker' WHERE id <= 20});
	CrateSync::wait_until('newer values', sub {
		$m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'of the next worker'}) == 20 }, 60);
	$s->control(release => $true);
	CrateSync::wait_until('the held one is over', sub { $s->control->{held} == 0 }, 30);
	$m->equal('t', 'kill -9 while a request hangs');
}

# --- unreachable
{
	my $offset = CrateSync::log_size($node);
	$s->control(reset => $true, listening => [ $false, $false, $false ]);
	my $slowest = 0;
	foreach my $i (1 .. 30)
	{
		my $t0 = time();
		$m->sql("UPDATE t SET v = 'away $i' WHERE id = $i");
		$slowest = time() - $t0 if time() - $t0 > $slowest;
	}
	ok($m->poll(q{SELECT state = 'target unreachable' AND NOT ok AND hint IS NOT NULL FROM crate_sync.status}), 'status says unreachable');
	cmp_ok($m->status('queued_keys'), '>=', 30, 'keys queue');
	note("slowest writer: $slowest s");
	my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync(timeout => '100ms')});
	is($out, 'f', 'wait_for_sync is false');
	like($err, qr/WARNING.*target/, 'and says why');
	sleep 2;
	$s->control(listening => [ $true, $true, $true ]);
	$m->equal([ 't', 'other' ], 'reachable again');
	is($m->status('ok'), 't', 'status is ok again');
	cmp_ok(CrateSync::log_count($node, 'target unreachable', $offset), '<=', 4, 'no log line per retry');
	cmp_ok(CrateSync::log_count($node, 'target unreachable', $offset), '>=', 1, 'but one for the change of state');
}

# --- several hosts
foreach my $down (0 .. 2)
{
	my @alive = grep { $_ != $down } 0 .. 2;
	$m->{ask} = $alive[1];
	$s->control(reset => $true, listening => [ map { $_ == $down ? $false : $true } 0 .. 2 ]);
	$m->sql("UPDATE t SET v = 'host $down down' WHERE id <= 30");
	$m->equal('t', "host $down is away");
	$s->control(listening => [ map { $_ == $alive[1] ? $true : $false } 0 .. 2 ]);
	$m->sql("UPDATE t SET v = 'only $alive[1]' WHERE id <= 30");
	$m->equal('t', "only host $alive[1] is there");
}
$s->control(reset => $true, listening => [ $true, $true, $true ]);
$m->{ask} = 2;
# one of them is a proxy that answers with a page
$s->fault({ port => 0, html => $true, times => -1 });
$m->sql(q{UPDATE t SET v = 'page' WHERE id <= 30});
$m->equal('t', 'one host answers with a page');
$s->fault({ port => 1, status => 503, times => -1 });
$m->sql(q{UPDATE t SET v = 'one 503' WHERE id <= 30});
$m->equal('t', 'one host answers with 503');
$s->fault();
$m->{ask} = 0;

# --- not a CrateDB, and a CrateDB that refuses us
{
	$s->fault({ not_crate => $true, times => -1 });
	$m->sql(q{UPDATE t SET v = 'not crate' WHERE id = 1});
	$m->kill_worker('TERM');
	ok($m->poll(q{SELECT NOT ok AND state LIKE 'target%' AND message <> '' FROM crate_sync.status}), 'not a CrateDB: status says so');
	cmp_ok($m->status('queued_keys'), '>=', 1, 'keys queue');
	$s->fault();
	$m->equal('t', 'a CrateDB again');
}

# --- rows that are refused
sub refused
{
	my ($name, $make, $mend, $words) = @_;
	$make->();
	ok($m->poll('SELECT n_failed_rows = 1 FROM crate_sync.status'), "$name: one failed row");
	is($m->status('state'), 'failed rows', '... status says so');
	like($m->status('hint'), qr/retry_failed/, '... and what to do');
	my ($ret, $out, $err) = $m->try_sql('SELECT crate_sync.wait_for_sync()');
	is($out, 'f', '... wait_for_sync is false');
	like($err, qr/WARNING.*table .*t/s, '... and names the table');
	like($m->sql('SELECT error_message FROM crate_sync.failed_rows'), $words, '... with the words of the target');
	is($m->sql('SELECT error_code FROM crate_sync.failed_rows'), '4000', '... and its code');
	is($m->sql(q{SELECT key->>'id' FROM crate_sync.failed_rows}), 7, '... and the key');
	is($m->sql(q{SELECT state FROM crate_sync.tables WHERE relname = 't'}), 'ready', '... the table goes on');
	ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.status}), '... nothing stays in the queue');

	# tried again as it is, it stays
	is($m->sql('SELECT crate_sync.retry_failed()'), 1, '... retry_failed says how many');
	ok($m->poll('SELECT attempts >= 2 FROM crate_sync.failed_rows'), '... it failed again');
	is($m->status('n_failed_rows'), 1, '... and is there once');
	$mend->();
	ok($m->poll('SELECT n_failed_rows = 0 FROM crate_sync.status'), '... mended, it is gone');
	$m->equal('t', $name);
}

$m->sql(q{DELETE FROM t; INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 5000) i});
$m->wait_sync;
refused(
	'an immense term',
	sub { $m->sql(q{UPDATE t SET v = CASE WHEN id = 7 THEN repeat('x', 40000) ELSE 'bulk 1' END}) },
	sub { $m->sql(q{UPDATE t SET v = 'short' WHERE id = 7}) },
	qr/column "v".*immense term/);
is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'bulk 1'}), 4999, 'its neighbours went through');
$s->fault({ match => $writes, refuse => 'poison', refuse_message => 'PoisonException[no poison here]', times => -1 });
refused(
	'a row refused by the shard',
	sub { $m->sql(q{UPDATE t SET v = CASE WHEN id = 7 THEN 'poison' ELSE 'bulk 2' END}) },
	sub { $s->fault(); $m->sql('SELECT crate_sync.retry_failed()') },
	qr/no poison here/);
is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'bulk 2'}), 4999, 'its neighbours went through');

# a bigint that CrateDB cannot hold
$m->sql(q{CREATE TABLE big (id int PRIMARY KEY, n bigint); INSERT INTO big SELECT i, i FROM generate_series(1, 100) i});
$m->add('big');
$m->equal('big', 'load of big');
$m->sql(q{UPDATE big SET n = 9223372036854775807 WHERE id = 50; UPDATE big SET n = 7 WHERE id <> 50});
ok($m->poll('SELECT n_failed_rows = 1 FROM crate_sync.status'), 'a bigint past what CrateDB takes');
is($m->target_value(q{SELECT count(*) FROM {big} WHERE n = 7}), 99, 'its neighbours went through');
is($m->sql(q{SELECT crate_sync.discard_failed('big')}), 1, 'discard_failed says how many');
is($m->status('n_failed_rows'), 0, 'and they are gone');
$m->sql(q{SELECT crate_sync.remove_table('big')});

# several of many, in all lanes
$s->fault({ match => $writes, refuse => 'poison', times => -1 });
$m->sql(q{UPDATE t SET v = CASE WHEN id % 1000 = 0 THEN 'poison' ELSE 'bulk 3' END});
ok($m->poll('SELECT n_failed_rows = 5 FROM crate_sync.status'), 'five of 5000');
ok($m->poll('SELECT queued_keys = 0 FROM crate_sync.status'), 'and nothing left in the queue');
is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'bulk 3'}), 4995, 'the others went through');
is($m->sql(q{SELECT crate_sync.retry_failed('t', (SELECT min(failed_id) FROM crate_sync.failed_rows))}), 1, 'retry_failed of one row');
# a failed row that is deleted is nobody's trouble any more
$m->sql(q{DELETE FROM t WHERE id % 1000 = 0});
ok($m->poll('SELECT n_failed_rows = 0 FROM crate_sync.status'), 'deleted rows are no failed rows');
$s->fault();
$m->equal('t', 'several refused rows');

# rows that vanish from UNNEST without a word, as before 6.0
foreach my $version ('5.10.10', '5.9.3', '6.4.3')
{
	$s->control(reset => $true, version => $version);
	$m->kill_worker('TERM');
	$m->wait_worker;
	$s->fault({ match => $writes, drop => [ 3, 700 ], times => 1 });
	$m->sql("UPDATE t SET v = 'drop $version'");
	$m->equal('t', "CrateDB $version: rows dropped once are sent again");
	is($m->status('n_failed_rows'), 0, '... and are not given up');
	$s->fault({ match => $writes, refuse => 'poison', times => -1 });
	$m->sql("UPDATE t SET v = CASE WHEN id = 7 THEN 'poison' ELSE 'parked $version' END");
	ok($m->poll('SELECT n_failed_rows = 1 FROM crate_sync.status'), "CrateDB $version: a row dropped for good is parked");
	is($m->sql(q{SELECT key->>'id' FROM crate_sync.failed_rows}), 7, '... the right one');
	$s->fault();
	$m->sql('SELECT crate_sync.retry_failed()');
	$m->equal('t', "CrateDB $version");
	$m->sql(q{DELETE FROM t WHERE id = 40; DELETE FROM other WHERE a = 40});
	$m->equal([ 't', 'other' ], "CrateDB $version: a delete of one row");
	$m->sql(q{INSERT INTO t VALUES (40, 'x'); INSERT INTO other VALUES (40, 'b', 'v')});
}

# --- all rows refused: that table stops, the other goes on
{
	$s->fault({ match => $writes, error => [ 4000, 'SQLParseException[every one of them]', 400 ], times => -1 });
	$m->sql(q{UPDATE t SET v = 'all bad'; UPDATE other SET v = 'while t is stopped'});
	ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 't'}), 'all refused: the table is stopped');
	cmp_ok($m->status('n_failed_rows'), '<', 500, 'its rows are not all given up');
	ok($m->poll(q{SELECT state = 'ready' AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'other'}), 'the other table goes on');
	is($m->target_value(q{SELECT count(*) FROM {other} WHERE v = 'while t is stopped'}), 100, 'its rows are there');
	is($m->status, 'table error', 'status says so');
	$m->sql(q{UPDATE t SET v = 'then good'});
	$s->fault();
	ok($m->poll(q{SELECT state = 'ready' FROM crate_sync.tables WHERE relname = 't'}), 'the table goes on by itself');
	$m->sql(q{SELECT crate_sync.retry_failed()});
	$m->equal([ 't', 'other' ], 'after the table was stopped');
}

# --- a table that cannot be written
foreach my $block ('blocks.read_only_allow_delete', 'blocks.write', 'blocks.read_only')
{
	my $t = $m->target_table('t');
	$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = true)} });
	$m->sql(qq{UPDATE t SET v = 'blocked $block' WHERE id <= 100; DELETE FROM t WHERE id = 2500; UPDATE other SET v = '$block'});
	ok($m->poll(q{SELECT state = 'error' AND last_error IS NOT NULL FROM crate_sync.tables WHERE relname = 't'}), "$block: the table is stopped");
	ok($m->poll(q{SELECT state = 'ready' AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'other'}), '... the other goes on');
	is($m->status('n_failed_rows'), 0, '... no row is given up');
	$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = false)} });
	$m->equal([ 't', 'other' ], "$block: taken away");
	$m->sql(q{INSERT INTO t VALUES (2500, 'x')});
}

# --- a table dropped, or changed, by hand in the target
$m->target_post({ stmt => 'DROP TABLE ' . $m->target_table('t') });
$m->sql(q{UPDATE t SET v = 'dropped' WHERE id = 1});
ok(CrateSync::wait_until('all rows are there again', sub {
	(eval { $m->target_count('t') } || 0) == $m->sql('SELECT count(*) FROM t') }), 'a dropped target table is made and loaded again');
$m->equal([ 't', 'other' ], 'after a dropped table');
$s->control(wipe => $true);
$m->sql(q{UPDATE t SET v = 'wiped' WHERE id = 1; UPDATE other SET v = 'wiped'});
ok(CrateSync::wait_until('all rows are there again', sub {
	(eval { $m->target_count('t') } || 0) == $m->sql('SELECT count(*) FROM t') }), 'a wiped target is filled again');
$m->equal([ 't', 'other' ], 'after a wipe');
$m->target_post({ stmt => 'ALTER TABLE ' . $m->target_table('other') . ' DROP COLUMN v' });
$m->sql(q{UPDATE other SET v = 'column gone'});
ok(CrateSync::wait_until('values are there', sub {
	(eval { $m->target_value(q{SELECT count(*) FROM {other} WHERE v = 'column gone'}) } || 0) == 100 }), 'a dropped column is made again');

# --- one request at a time on a connection, and no more than allowed
$s->control(clear_log => $true);
$m->sql(q{UPDATE t SET v = 'count'});
$m->wait_sync;
cmp_ok($s->control->{max_concurrent}, '<=', 3, 'no more requests at a time than connections');

$m->finish;
$node->stop;
done_testing();
