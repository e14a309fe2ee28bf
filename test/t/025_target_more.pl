# More faults of the target, each alone: what it answers, what was done to it by hand, and rows it
# does not want.  Every time the status has a line that a person can act on, other tables go on,
# and both sides are equal at the end by themselves.
use strict;
use warnings;

# names that come and go need a hosts file of our own: in a namespace of our own, where that is
# allowed; before anything else is loaded, as all of this file moves there
my $hosts;

sub put_hosts
{
	my (@lines) = @_;
	# written over, not exchanged: the file itself is what is mounted
	open my $f, '>', $hosts or die "$hosts: $!";
	print $f join "\n", '# own hosts', '127.0.0.1 localhost', '::1 localhost', @lines, '';
	close $f;
}

BEGIN
{
	$hosts = $ENV{CRATE_SYNC_OWN_HOSTS};
	if (!$hosts && !$^C)
	{
		$hosts = ($ENV{TESTDIR} || $ENV{TMPDIR} || '/tmp') . "/hosts.$$";
		put_hosts();
		my @own = ('unshare', '--user', '--map-root-user', '--mount', 'sh', '-c',
			'mount --bind "$1" /etc/hosts && shift && user=$1 group=$2 && shift 2 &&'
			  . ' exec unshare --user --map-user="$user" --map-group="$group" -- "$@"',
			'sh', $hosts, $>, $) + 0);
		require IPC::Run;
		my ($out, $err) = ('', '');
		if (eval { IPC::Run::run([ @own, 'cat', '/etc/hosts' ], '<', \undef, '>', \$out, '2>', \$err) } && $out =~ /own hosts/)
		{
			$ENV{CRATE_SYNC_OWN_HOSTS} = $hosts;
			$ENV{PERL5LIB} = join ':', @INC;
			exec @own, $^X, $0;
		}
		unlink $hosts;
		$hosts = undef;
	}
}
END { unlink $hosts if $hosts }

use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $true  = JSON::PP::true();
my $false = JSON::PP::false();
my $node  = CrateSync::server('target_more', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 1s
crate_sync.interval = 100ms
EOC

# one column of crate_sync.tables
sub of_table
{
	my ($m, $table, $columns) = @_;
	return $m->sql("SELECT $columns FROM crate_sync.tables WHERE relname = '$table'");
}

# the most memory a process has had, in MB
sub peak
{
	my ($pid) = @_;
	my ($kb) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;
	return $kb / 1024;
}

# t is stopped and says why, u goes on, no row is given up
sub stopped
{
	my ($m, $name, $words, $hint) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 't'}), "$name: the table is stopped");
	# what is found out first need not be the last word
	CrateSync::wait_until('the words', sub { of_table($m, 't', 'last_error') =~ $words }, 10);
	like(of_table($m, 't', 'last_error'), $words, '... and says why');
	like(of_table($m, 't', 'hint'), $hint || qr/\w/, '... and what to do');
	ok($m->poll(q{SELECT state = 'table error' AND message ~ 't: .*\w' FROM crate_sync.status}), '... as status does, naming the table');
	$m->sql("INSERT INTO u SELECT coalesce(max(a), 0) + 1, '" . $name =~ s/'//gr . "' FROM u");
	ok($m->wait_sync('u'), '... while the other table goes on');
	is($m->status('n_failed_rows'), 0, '... and no row is given up');
}

sub well_again
{
	my ($m, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$m->equal([ 't', 'u' ], "$name: over");
	ok($m->poll('SELECT ok FROM crate_sync.status'), '... and all is well');
}

sub make_tables
{
	my ($m, $rows) = @_;
	$m->sql(qq{
		CREATE TABLE t (id int PRIMARY KEY, v text, w text DEFAULT 'w');
		CREATE TABLE u (a int PRIMARY KEY, v text);
		INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, $rows) i;
		INSERT INTO u VALUES (1, 'v');
	});
	$m->add('t', 'u');
	$m->equal([ 't', 'u' ], 'load');
}

# --- answers: each kind for as long as it takes to be noticed
{
	my $m = CrateSync::Mirror->new($node, 'standin');
	my $s = $m->standin;
	my $writes = '(INSERT INTO|DELETE FROM) "' . $m->{schema} . '"\."t"';
	make_tables($m, 300);
	my $before = peak($m->worker_pid);
	my $n = 0;
	my $no_crate = qr/no answer of CrateDB's/;

	foreach my $fault (
		[ '429', { status => 429 }, qr/too many requests/, qr/load/ ],
		[ '500 without words', { status => 500 }, qr/HTTP status 500 and an empty answer/ ],
		[ '503 without words', { status => 503 }, qr/HTTP status 503/ ],
		[ '503 in words', { error => [ 5030, 'MasterNotDiscoveredException[null]', 503 ] }, qr/MasterNotDiscovered/ ],
		[ 'a circuit breaker', { error => [ 5000, 'CircuitBreakingException[Allocating 20mb failed, breaker would use 130mb]', 500 ] },
			qr/CircuitBreaking/ ],
		[ 'the disk-full block', { error => [ 4037, 'ClusterBlockException[blocked by: [RELATION_READ_DELETE_ONLY/12/index read-only / allow delete (api)];]', 403 ] },
			qr/read-only/, qr/disk/ ],
		[ 'read-only', { error => [ 4007, 'OperationOnInaccessibleRelationException[The relation "t" doesn\'t support or allow INSERT operations, as it is read-only]', 400 ] },
			qr/read-only/, qr/blocks/ ],
		[ 'no right', { error => [ 4011, "MissingPrivilegeException[Missing 'DML' privilege for user 'mirror']", 401 ] }, qr/DML/, qr/GRANT/ ],
		[ 'unavailable shards', { error => [ 5002, 'UnavailableShardsException[[t] shard 3 is not available]', 500 ] }, qr/shard 3/, qr/node/ ],
		[ 'an error nobody knows', { error => [ 5999, 'StrangeException[what is this]', 500 ] }, qr/what is this/ ],
		[ 'an error of the target\'s own', { error => [ 5000, 'NullPointerException[Cannot invoke "x"]', 500 ] }, qr/NullPointer/, qr/log/ ],
		[ 'cut before it is carried out', { cut => 'before' }, qr/closed before an answer came/, qr/request_timeout/ ],
		[ 'cut instead of an answer', { cut => 'after' }, qr/closed before an answer came/ ],
		[ 'cut in the middle of the answer', { cut => 'middle' }, qr/outstanding|remaining|missing|closed/ ],
		[ 'an answer later than the timeout', { delay => 1.5 }, qr/timed out/, qr/request_timeout/ ],
		[ 'carried out later than the timeout', { delay_before => 1.5 }, qr/timed out|still run/ ],
		[ 'garbage', { garbage => $true }, qr/HTTP|closed/ ],
		[ 'a proxy\'s page', { html => $true }, qr/$no_crate.*Please sign in/ ],
		[ 'a proxy\'s 502', { status => 502, body => '<html>bad gateway</html>' }, qr/HTTP status 502 $no_crate|HTTP status 502 and $no_crate/ ],
		[ 'a redirect', { redirect => $true }, qr/a redirect, which is not followed/ ],
		[ '204', { status => 204 }, qr/HTTP status 204/ ],
		[ 'an empty body', { status => 200, body => '' }, qr/an empty answer/ ],
		[ 'JSON of something else', { wrong_json => '{"hello":"world"}' }, $no_crate ],
		[ 'an endless body', { endless => $true }, qr/longer than 16 MB/ ],
		[ 'an endless header', { endless_header => $true }, qr/header/ ],
		[ 'a huge header line', { status => 200, body => '{}', headers => { 'x-huge' => 'x' x 1_000_000 } }, qr/header|[Oo]ut of memory/ ],
		[ 'a compressed answer', { gzip => $true }, $no_crate ],
		)
	{
		my ($name, $f, $words, $hint) = @$fault;
		$n++;
		$s->fault({ match => $writes, times => -1, %$f });
		$m->sql("UPDATE t SET v = 'fault $n' WHERE id <= 20; DELETE FROM t WHERE id = 100 + $n");
		stopped($m, $name, $words, $hint);
		unlike(of_table($m, 't', 'last_error'), qr/callback/, '... in words of this world');
		$s->fault();
		well_again($m, $name);
		is($m->target_value("SELECT count(*) FROM {t} WHERE v = 'fault $n'"), 20, '... the rows are there');
	}
	# nothing of what came without an end was kept; the extension's own buffers are within work_mem
	cmp_ok(peak($m->worker_pid) - $before, '<', 64, 'the worker\'s memory is bounded');

	# --- one row that the target fails over for reasons of its own: its neighbours go through
	$s->fault({ match => $writes, args => '"poison"', times => -1, error => [ 5000, 'IllegalArgumentException[the poison is the problem]', 500 ] });
	$m->sql(q{UPDATE t SET v = CASE id WHEN 77 THEN 'poison' ELSE 'with poison' END});
	ok($m->poll('SELECT n_failed_rows = 1 AND queued_keys = 0 FROM crate_sync.status'), 'one row of many that the target fails over is parked');
	is($m->sql(q{SELECT (key->>'id') || ' ' || error_code FROM crate_sync.failed_rows}), '77 5000', '... the right one');
	like($m->sql('SELECT error_message FROM crate_sync.failed_rows'), qr/the poison is the problem/, '... with the target\'s words');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'with poison'}), $m->sql('SELECT count(*) - 1 FROM t'), '... its neighbours are through');
	is($m->status, 'failed rows', '... status says so');
	# alone it is nobody's fault but the table's, as far as anyone can know
	is($m->sql('SELECT crate_sync.retry_failed()'), 1, '... tried again alone');
	ok($m->poll(q{SELECT state = 'error' AND last_error LIKE '%the poison%' FROM crate_sync.tables WHERE relname = 't'}), '... the table waits for a neighbour');
	# one that arrives after the row was refused: those sent with it can be the earlier ones
	ok(CrateSync::wait_until('a neighbour comes', sub {
		$m->sql(q{UPDATE t SET v = 'a neighbour' WHERE id BETWEEN 1 AND 50});
		sleep 1;
		return $m->sql('SELECT attempts >= 2 FROM crate_sync.failed_rows') eq 't';
	}), '... which comes: it is the row');
	ok($m->poll('SELECT queued_keys = 0 FROM crate_sync.status'), '... and they are through');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'a neighbour'}), 50, '... and the neighbours are there');
	$s->fault();
	$m->sql('SELECT crate_sync.retry_failed()');
	well_again($m, 'a row that the target failed over');

	# --- shards that are out of reach: found out long before a request times out
	$m->sql(q{ALTER SYSTEM SET crate_sync.request_timeout = '60s'; SELECT pg_reload_conf()});
	$s->control(missing_shards => { "$m->{schema}.t" => 2 });
	$s->fault({ match => $writes, hold => 'before', times => -1 }, { match => 'REFRESH TABLE "' . $m->{schema} . '"\."t"', delay_before => 300, times => -1 });
	my $t0 = time();
	$m->sql(q{UPDATE t SET v = 'shards away'});
	stopped($m, 'shards that are away', qr/not all shards of .*t" are available/, qr/node .*drop the table/);
	cmp_ok(time() - $t0, '<', 50, '... before any request timed out');
	$s->fault();
	$s->control(release => $true, missing_shards => {});
	well_again($m, 'shards are back');
	# nothing to push, only to be searched
	$s->control(missing_shards => { "$m->{schema}.t" => 2 });
	$s->fault({ match => 'REFRESH TABLE "' . $m->{schema} . '"\."t"', delay_before => 300, times => -1 });
	$m->kill_worker('TERM');
	$m->wait_worker;
	$m->sql(q{UPDATE u SET v = 'not u'});
	ok($m->wait_sync('u'), 'a table that cannot be refreshed does not keep another one waiting');
	stopped($m, 'a table that cannot be refreshed', qr/shard/, qr/node/);
	$s->fault();
	$s->control(missing_shards => {});
	well_again($m, 'it can be refreshed');
	$m->sql(q{ALTER SYSTEM SET crate_sync.request_timeout = '1s'; SELECT pg_reload_conf()});

	# --- the writer goes on being alive after the target was away
	my $beat = sub { $m->target_value(q{SELECT max(beat) FROM crate_sync.claim WHERE target LIKE 'beat of %'}) };
	$s->control(listening => [$false]);
	$m->sql(q{UPDATE t SET v = 'away'});
	ok($m->poll(q{SELECT state = 'target unreachable' FROM crate_sync.status}), 'the target is away');
	like($m->status('message'), qr/refused|connect/i, '... and status says why');
	$s->control(listening => [$true]);
	well_again($m, 'the target is back');
	my $then = $beat->();
	ok(CrateSync::wait_until('a beat', sub { $m->target_post({ stmt => 'REFRESH TABLE crate_sync.claim' }); $beat->() > $then }, 60),
		'the writer shows that it is alive after an outage');

	# --- restored to an older state while all goes on: the writer notices by its own beat
	$s->control(save => $true);
	$then = $beat->();
	$m->sql(q{UPDATE t SET v = 'after the backup'; DELETE FROM t WHERE id = 50; INSERT INTO t VALUES (5050, 'new')});
	$m->equal([ 't', 'u' ], 'after the backup');
	CrateSync::wait_until('a beat', sub { $m->target_post({ stmt => 'REFRESH TABLE crate_sync.claim' }); $beat->() > $then }, 60);
	my $offset = CrateSync::log_size($node);
	$s->control(restore => $true);
	ok(CrateSync::wait_until('resynced', sub { ($m->compare('t', 'u'))[0] == 0 }, 60), 'a target restored from a backup is resynced, with nothing written meanwhile');
	cmp_ok(CrateSync::log_count($node, 'the target is older than it was left: all', $offset), '==', 1, '... and the log says so');
	well_again($m, 'restored to an older state');

	# --- removed with its target and added again, while the old one cannot be dropped
	$s->fault({ match => 'DROP TABLE IF EXISTS "' . $m->{schema} . '"\."t"', times => -1, error => [ 5000, 'IllegalStateException[not now]', 500 ] });
	$m->sql(q{SELECT crate_sync.remove_table('t', drop_target => true); SELECT crate_sync.add_table('t')});
	stopped($m, 'a former target table that cannot be dropped', qr/former target table is still to be dropped: .*not now/);
	$s->fault();
	well_again($m, 'a former target table that can be dropped');

	# --- only whose claim it is may drop a table
	$m->target_change(q{UPDATE crate_sync.claim SET place = 'elsewhere' WHERE target LIKE '%"u"'});
	$offset = CrateSync::log_size($node);
	$m->sql(q{SELECT crate_sync.remove_table('u', drop_target => true)});
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.removal'), 'a table that another one has claimed is removed here');
	ok(defined eval { $m->target_count('u') }, '... and not dropped there');
	cmp_ok(CrateSync::log_count($node, 'could not be dropped: another database writes it', $offset), '==', 1, '... and the log says so');
	$m->finish;
}

# --- hosts whose names are unknown
{
	my $s = CrateSync::Standin->new;
	my ($port) = @{ $s->{ports} };
	my $m = CrateSync::Mirror->new($node, 'standin', url => "http://no-such-host.invalid:4200,http://127.0.0.1:$port,http://neither.invalid:4200");
	$m->{ask} = 1;
	make_tables($m, 100);
	$m->sql(q{UPDATE t SET v = 'two of three hosts have no address'});
	$m->equal('t', 'two of three hosts have no address');
	is($m->status('ok'), 't', '... and all is well');
	$s->stop;
	$m->sql(q{UPDATE t SET v = 'nobody is there'});
	ok($m->poll(q{SELECT state = 'target unreachable' AND message ~ 'resolve|connect' FROM crate_sync.status}), 'the last one goes: status says so');
	$m->finish;
}

# --- a name that is unknown, then known
if ($hosts)
{
	my $s = CrateSync::Standin->new;
	my ($port) = @{ $s->{ports} };
	my $m = CrateSync::Mirror->new($node, 'standin', url => "http://later.test:$port");
	$m->{url} = "http://127.0.0.1:$port";
	$m->sql(q{SET client_min_messages = error;
		CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v'); SELECT crate_sync.add_table('t')});
	foreach my $round (1, 2)
	{
		ok($m->poll(q{SELECT state = 'target unreachable' AND message ~* 'resolv' AND hint <> '' FROM crate_sync.status}),
			'a name that is unknown: status says so') or diag($m->status('state, message'));
		$m->sql("INSERT INTO t VALUES (10 * $round, 'not known')");
		cmp_ok($m->status('queued_keys'), '>=', 1, '... changes queue');
		put_hosts('127.0.0.1 later.test');
		$m->equal('t', 'the name is known');
		ok($m->poll('SELECT ok FROM crate_sync.status'), '... and all is well');
		last if $round == 2;
		put_hosts();
		$s->control(listening => [$false]);
		sleep 0.5;
		$s->control(listening => [$true]);
		# what is known of a name is kept for a minute, but not by a new worker
		$m->kill_worker('TERM');
		$m->wait_worker;
	}
	$m->finish;
	$s->stop;
}
else
{
	CrateSync::skipped('a host name that is unknown, then known: no namespace of its own can be made here (unshare --user)');
}

# --- done by hand at the target, and rows that it does not want
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	# small pieces of time are for faults that are made; here the target is a real one
	$m->sql(q{ALTER SYSTEM SET crate_sync.request_timeout = '30s'; SELECT pg_reload_conf()});
	make_tables($m, 300);
	my $refused = $m->is_crate ? qr/is wanted/ : qr/has to be|not in its place|primary key/;

	# --- removed with its target and added again at once: a new one is made
	$m->sql(q{SELECT crate_sync.remove_table('t', drop_target => true); SELECT crate_sync.add_table('t', columns => '{id,v}')});
	$m->sql('INSERT INTO t VALUES (1000, $$after$$)');
	ok($m->wait_sync, 'removed and added in one transaction');
	my $names = sub {
		return join(',', sort map { $_->[0] } @{ $m->target_post({ stmt => 'SELECT column_name FROM information_schema.columns WHERE table_schema = ? AND table_name = ?', args => [ $m->{schema}, 't' ] })->{rows} }) if $m->is_crate;
		return join(',', sort map { $_->[1] } @{ $m->target_rows(sprintf q{PRAGMA table_info(%s)}, $m->target_table('t')) });
	};
	is($names->(), 'id,v', '... the target table is a new one');
	is($m->target_count('t'), 301, '... and loaded');
	$m->sql(q{SELECT crate_sync.remove_table('t', drop_target => true)});
	$m->sql(q{SELECT crate_sync.add_table('t')});
	$m->equal([ 't', 'u' ], 'removed and added one after the other');
	is($names->(), 'id,v,w', '... it has all columns');
	is($m->sql('SELECT count(*) FROM crate_sync.removal'), 0, '... nothing is left to remove');
	# kept: the rows stay where they are
	$m->sql(q{SELECT crate_sync.remove_table('t'); SELECT crate_sync.add_table('t')});
	$m->equal([ 't', 'u' ], 'removed and added, the target table kept');

	# --- a column dropped by hand, with one row to push: what the others had comes back
	$m->target_rows('ALTER TABLE {t} DROP COLUMN w');
	$m->sql(q{UPDATE t SET v = 'column gone' WHERE id = 1});
	ok(CrateSync::wait_until('resynced', sub { ($m->compare('t'))[0] == 0 }, 60), 'a dropped column is made again and filled');
	well_again($m, 'a dropped column');

	# --- a column added by hand is none of ours
	$m->target_rows('ALTER TABLE {t} ADD COLUMN extra TEXT');
	$m->sql(q{UPDATE t SET v = 'column more' WHERE id = 1});
	ok($m->wait_sync, 'a column added by hand');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'column more'}), 1, '... is in nobody\'s way');
	$m->target_rows('ALTER TABLE {t} DROP COLUMN extra');

	# --- made anew by hand with another type, another key
	my $numbers = $m->is_crate ? 'BIGINT' : 'INTEGER';
	foreach my $by_hand ($m->is_crate ? [ 'another type', "(id $numbers PRIMARY KEY, v $numbers, w TEXT)" ] : (),	# SQLite takes any
		[ 'another key', "(id $numbers NOT NULL, v TEXT PRIMARY KEY, w TEXT)" ])
	{
		my ($name, $columns) = @$by_hand;
		$m->target_rows('DROP TABLE {t}');
		$m->target_rows("CREATE TABLE {t} $columns");
		$m->sql(qq{UPDATE t SET v = 'made by hand with $name' WHERE id <= 150});
		stopped($m, "a table made by hand with $name", $refused, qr/drop it there/);
		$m->target_rows('DROP TABLE {t}');
		well_again($m, "dropped, as the hint says ($name)");
	}

	# --- everything dropped by hand, ours too; a real one is others' as well: 024_cluster.pl has its own
	if ($m->kind eq 'crate')
	{
		CrateSync::skipped('025: dropping all is not done to a CrateDB that may be shared: 024 does it to one of its own');
	}
	else
	{
		my @all = $m->is_crate
		  ? map { qq{"$_->[0]"."$_->[1]"} } grep { $_->[0] eq 'crate_sync' || $_->[0] eq $m->{schema} }
		  @{ $m->target_rows('SELECT table_schema, table_name FROM information_schema.tables') }
		  : map { qq{"$_->[0]"} } @{ $m->target_rows(q{SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'}) };
		$m->target_rows("DROP TABLE $_") foreach @all;
		$m->sql(q{UPDATE t SET v = 'wiped' WHERE id = 1});
		ok(CrateSync::wait_until('loaded', sub { (eval { ($m->compare('t', 'u'))[0] } // 1) == 0 }, 90), 'a wiped target is filled again');
		well_again($m, 'a wiped target');
	}

	# --- blocked for real
	if ($m->is_crate)
	{
		foreach my $block ('blocks.read_only_allow_delete', 'blocks.write', 'blocks.read_only')
		{
			my $t = $m->target_table('t');
			$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = true)} });
			$m->sql(qq{UPDATE t SET v = '$block' WHERE id <= 10; DELETE FROM t WHERE id = (SELECT max(id) FROM t)});
			stopped($m, $block, qr/read|block|INSERT|DELETE|UPDATE/i, qr/block|disk/);
			$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = false)} });
			well_again($m, $block);
			$m->sql(qq{UPDATE t SET v = 'one row, $block' WHERE id = 1});
			$m->wait_sync;
			$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = true)} });
			$m->sql(qq{UPDATE t SET v = 'one row blocked, $block' WHERE id = 1});
			stopped($m, "one row, $block", qr/read|block|INSERT|DELETE|UPDATE/i, qr/block|disk/);
			$m->target_post({ stmt => qq{ALTER TABLE $t SET ("$block" = false)} });
			well_again($m, "one row, $block");
		}
	}

	# --- rows that the target does not take: by type, by size, by what came before
	if ($m->is_crate)
	{
		$m->sql(q{
			CREATE TABLE typed (id int PRIMARY KEY, n numeric(10,2), at timestamptz, b bigint, v text);
			INSERT INTO typed SELECT i, i, now(), i, 'v' FROM generate_series(1, 10000) i;
			CREATE TABLE doc (id int PRIMARY KEY, d jsonb, v text);
			INSERT INTO doc SELECT i, jsonb_build_object('a', i), 'v' FROM generate_series(1, 100) i;
		});
		$m->add('typed');
		$m->sql(q{SELECT crate_sync.add_table('doc', options => '{"types": {"d": "OBJECT(DYNAMIC)"}}')});
		$m->equal([ 'typed' ], '10,000 rows');
		my $i = 0;
		foreach my $bad ([ 'NaN', q{n = 'NaN'}, 'n = 1' ], [ 'an infinite timestamp', q{at = 'infinity'}, 'at = now()' ],
			[ 'a bigint that it cannot hold', 'b = 9223372036854775807', 'b = 1' ],
			[ 'an immense term', q{v = repeat('x', 40000)}, q{v = 'short'} ],
			[ 'a string past its limit', q{v = repeat('x', 21000000)}, q{v = 'short'} ])
		{
			my ($name, $set, $mend) = @$bad;
			my $id = 1234 + ++$i;
			$m->sql("UPDATE typed SET n = $i WHERE id <> $id; UPDATE typed SET $set WHERE id = $id");
			ok($m->poll(q{SELECT n_failed_rows = 1 AND queued_keys = 0 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'typed'}),
				"$name, one row of 10,000: parked");
			is($m->sql(q{SELECT key->>'id' FROM crate_sync.failed_rows}), $id, '... the right one');
			like($m->sql('SELECT error_message FROM crate_sync.failed_rows'), qr/\w{4}/, '... with words: '
				. $m->sql('SELECT left(error_message, 80) FROM crate_sync.failed_rows'));
			is($m->target_value("SELECT count(*) FROM {typed} WHERE n = $i"), 9999, '... the others are through');
			like($m->status('hint'), qr/retry_failed/, '... status says what to do');
			$m->sql("UPDATE typed SET $mend WHERE id = $id");
			ok($m->poll('SELECT n_failed_rows = 0 FROM crate_sync.status'), '... mended, it is gone');
			$m->equal('typed', $name);
		}

		# a dynamic object takes its members' types from the first row
		$m->sql(q{UPDATE doc SET d = CASE id WHEN 42 THEN '{"a": "drifted"}' ELSE jsonb_build_object('a', id, 'b', 1) END});
		ok($m->poll(q{SELECT n_failed_rows = 1 AND queued_keys = 0 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'doc'}),
			'a dynamic object\'s type drift: parked');
		is($m->sql(q{SELECT key->>'id' FROM crate_sync.failed_rows}), 42, '... the right one');
		like($m->sql('SELECT error_message FROM crate_sync.failed_rows'), qr/cast|dropped the row without saying why/i, '... with words');
		is($m->target_value(q{SELECT count(*) FROM {doc} WHERE d['b'] = 1}), 99, '... the others are through');
		$m->sql(q{UPDATE doc SET d = '{"a": 7, "b": 1}' WHERE id = 42});
		ok($m->poll('SELECT n_failed_rows = 0 FROM crate_sync.status'), '... mended, it is gone');
		ok($m->wait_sync, '... in sync');
		is($m->target_value(q{SELECT count(*) FROM {doc} WHERE d['b'] = 1}), 100, '... all are there');

		# all of them bad: it is the table
		$m->sql(q{UPDATE typed SET n = 'NaN'; UPDATE u SET v = 'goes on'});
		ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 'typed'}), 'all rows bad: the table is stopped');
		like(of_table($m, 'typed', 'last_error'), qr/refused/, '... and says why');
		like(of_table($m, 'typed', 'hint'), qr/failed_rows/, '... and where to look');
		cmp_ok(of_table($m, 'typed', 'n_failed_rows'), '<', 1000, '... without giving them all up');
		ok($m->wait_sync('u'), '... the other table goes on');
		$m->sql(q{UPDATE typed SET n = 7});
		ok($m->poll(q{SELECT n_failed_rows = 0 AND state = 'ready' AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'typed'}), '... mended, it goes on by itself');
		$m->equal([ 'typed', 't', 'u' ], 'all rows bad, then good');
	}
	$m->sql(q{ALTER SYSTEM SET crate_sync.request_timeout = '1s'; SELECT pg_reload_conf()});
});

$node->stop;
done_testing();
