# A CrateDB cluster of three nodes that loses some of itself while writers go on: nodes killed,
# frozen, gone for good, the disk full, a backup restored.  Private nodes, as a shared one must not
# be treated like that.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my ($crate) = grep { -x $_ } map { "$_/crate" } split /:/, $ENV{PATH};
my ($available) = -r '/proc/meminfo' ? PostgreSQL::Test::Utils::slurp_file('/proc/meminfo') =~ /^MemAvailable:\s+(\d+) kB/m : (0);
my $why =
    !$crate ? 'there is no crate on PATH to start a private cluster with'
  : $> == 0 ? 'CrateDB refuses to run as root'
  : $available < 4 * 1024 * 1024 ? sprintf('three nodes need 4 GB of memory, %d MB are available', $available / 1024)
  :           undef;
plan skip_all => $why if $why;

my $dir  = PostgreSQL::Test::Utils::tempdir();
my @http = map { CrateSync::free_port() } 0 .. 2;
my @transport = map { CrateSync::free_port() } 0 .. 2;
my @pgwire = map { CrateSync::free_port() } 0 .. 2;
my @pid  = (0, 0, 0);
my $http = HTTP::Tiny->new(timeout => 60);
my $json = JSON::PP->new->utf8;

sub start_crate
{
	foreach my $i (@_)
	{
		$pid[$i] = fork();
		die "fork: $!" unless defined $pid[$i];
		next if $pid[$i];
		POSIX::setsid();
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$dir/out$i";
		open STDERR, '>&', \*STDOUT;
		$ENV{CRATE_HEAP_SIZE} = '512m';
		$ENV{CRATE_DISABLE_GC_LOGGING} = 1;	# its directory may be another's
		exec $crate, "-Cpath.data=$dir/data$i", "-Cpath.logs=$dir/logs$i", "-Cpath.repo=$dir/repo", '-Cnetwork.host=127.0.0.1',
		  "-Chttp.port=$http[$i]", "-Ctransport.tcp.port=$transport[$i]", "-Cpsql.port=$pgwire[$i]", "-Cnode.name=n$i",
		  '-Ccluster.name=crate_sync_test', '-Cdiscovery.seed_hosts=' . join(',', map { "127.0.0.1:$_" } @transport),
		  '-Ccluster.initial_master_nodes=n0,n1,n2', '-Cgateway.expected_data_nodes=3', '-Cgateway.recover_after_data_nodes=2',
		  '-Cgateway.recover_after_time=1s', '-Cauth.host_based.enabled=false'
		  or POSIX::_exit(127);
	}
}

sub kill_crate
{
	foreach my $i (@_)
	{
		next unless $pid[$i];
		local $?;
		kill 'CONT', -$pid[$i];
		kill 'KILL', -$pid[$i];
		waitpid($pid[$i], 0);
		$pid[$i] = 0;
	}
}
END { kill_crate(0 .. 2) }

# asks a node; undef if there is no good answer
sub ask
{
	my ($i, $stmt) = @_;
	my $r = $http->post("http://127.0.0.1:$http[$i]/_sql",
		{ content => $json->encode({ stmt => $stmt }), headers => { 'Content-Type' => 'application/json' } });
	diag("node $i: $r->{content} for $stmt") if !$r->{success} && $r->{status} != 599;
	return $r->{success} ? $json->decode($r->{content})->{rows} : undef;
}

sub wait_nodes
{
	my ($n, $i) = @_;
	return CrateSync::wait_until("$n nodes", sub {
		my $r = HTTP::Tiny->new(timeout => 5)->post("http://127.0.0.1:$http[$i || 0]/_sql",
			{ content => '{"stmt":"SELECT count(*) FROM sys.nodes"}', headers => { 'Content-Type' => 'application/json' } });
		return $r->{success} && $json->decode($r->{content})->{rows}[0][0] == $n }, 120);
}

sub wait_green
{
	return CrateSync::wait_until('all shards', sub {
		my $r = ask(0, q{SELECT sum(missing_shards) + sum(underreplicated_shards) FROM sys.health});
		return $r && ($r->[0][0] || 0) == 0 }, 120);
}

# --- one of three is not there yet
start_crate(0, 1);
if (!wait_nodes(2))
{
	diag(map { PostgreSQL::Test::Utils::slurp_file("$dir/out$_") } 0 .. 1);
	plan skip_all => 'the private cluster did not start';
}

my $node = CrateSync::server('cluster', conf => <<'EOC');
crate_sync.request_timeout = 20s
crate_sync.connect_timeout = 3s
crate_sync.max_retry_interval = 500ms
crate_sync.interval = 100ms
EOC
my $m = CrateSync::Mirror->new($node, 'crate', url => join(',', map { "http://127.0.0.1:$_" } @http));
my @all = ('r', 'c', 'z');
$m->sql(q{
	CREATE TABLE r (id int PRIMARY KEY, v text);
	CREATE TABLE c (a int, b text, v text, PRIMARY KEY (a, b));
	CREATE TABLE z (id int PRIMARY KEY, v text);
	INSERT INTO r SELECT i, 'v' FROM generate_series(1, 2000) i;
	INSERT INTO c SELECT i, 'b' || i % 7, 'v' FROM generate_series(1, 1000) i;
	INSERT INTO z SELECT i, 'v' FROM generate_series(1, 1000) i;
});
$m->sql(qq{SELECT crate_sync.add_table('$_', options => '{"replicas": "1", "shards": 3}')}) foreach 'r', 'c';
$m->equal([ 'r', 'c' ], 'one of three hosts is away from the start');
is($m->status('ok'), 't', '... and all is well');
start_crate(2);
ok(wait_nodes(3), 'it comes');
$m->sql(q{SELECT crate_sync.add_table('z', options => '{"replicas": "0", "shards": 6}')});
$m->equal(\@all, 'all three are there');
wait_green();

# sessions that change the tables until they are told to end
my $stop = "$dir/stop";
sub writers
{
	unlink $stop;
	$m->sql(q{CREATE TABLE IF NOT EXISTS tell (stop boolean); TRUNCATE tell});
	return map {
		my $w = $_;
		$m->background(join("\n", map { "DO \$\$ BEGIN IF EXISTS (SELECT FROM tell) THEN RETURN; END IF; $_ PERFORM pg_sleep(0.05); END \$\$;" } map { (
			"UPDATE r SET v = 'w$w round $_' WHERE id % 97 = ($_ + $w) % 97;",
			"INSERT INTO r SELECT 10000 * ($w + 1) + $_, 'new' ON CONFLICT (id) DO UPDATE SET v = 'again'; DELETE FROM r WHERE id = 10000 * ($w + 1) + $_ - 5;",
			"UPDATE c SET v = 'w$w round $_' WHERE a % 89 = ($_ + $w) % 89; DELETE FROM c WHERE a = $_ % 1000 + 1;",
			"INSERT INTO c VALUES ($_ % 1000 + 1, 'w$w', 'again') ON CONFLICT DO NOTHING;",
		) } 1 .. 3000));
	} 1 .. 2;
}

sub end_writers
{
	$m->sql('INSERT INTO tell VALUES (true)');
	my $errors = join '', map { $_->done } @_;
	# they may stand in each other's way, and in nobody else's
	unlike($errors, qr/ERROR:  (?!deadlock detected)/, 'no writer had an error');
}

# --- a node killed while writers go on
foreach my $i (1, 2)
{
	my @w = writers();
	sleep 2;
	kill_crate($i);
	$m->{ask} = 0;
	$m->sql(qq{INSERT INTO r VALUES (100000 + $i, 'while a node is away')});
	ok($m->wait_sync('r'), "a node (n$i) is killed: changes arrive while it is away");
	is($m->target_value(qq{SELECT count(*) FROM {r} WHERE id = 100000 + $i}), 1, '... and are there');
	start_crate($i);
	ok(wait_nodes(3), '... it comes back');
	sleep 2;
	end_writers(@w);
	wait_green();
	$m->equal(\@all, "a node (n$i) was killed while writers went on");
	is($m->status('ok'), 't', '... and all is well');
	is($m->status('n_failed_rows'), 0, '... no row was given up');
}

# --- a table without replicas loses shards
sub lose_shards
{
	my ($name) = @_;
	kill_crate(2);
	my $t0 = time();
	$m->sql(qq{UPDATE z SET v = '$name'; DELETE FROM z WHERE id > 990; UPDATE r SET v = '$name' WHERE id < 100});
	ok($m->wait_sync('r'), "$name: the other table goes on");
	note(sprintf 'after %.1f s', time() - $t0);
	is($m->target_value(qq{SELECT count(*) FROM {r} WHERE v = '$name'}), 99, '... its rows are there');
	ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 'z'}), '... the table without replicas is stopped');
	like($m->sql(q{SELECT last_error FROM crate_sync.tables WHERE relname = 'z'}), qr/not all shards of .*"z" are available/, '... and says why');
	like($m->sql(q{SELECT hint FROM crate_sync.tables WHERE relname = 'z'}), qr/node .*drop the table/, '... and what to do');
	is($m->status, 'table error', '... as status does');
	like($m->status('message'), qr/^\S*\bz: .*shard/, '... naming the table');
	$m->sql(qq{UPDATE c SET v = '$name' WHERE a < 100});
	ok($m->wait_sync('c'), '... yet another table goes on');
	is($m->status('n_failed_rows'), 0, '... no row is given up');
}
lose_shards('a node is lost');
start_crate(2);
ok(wait_nodes(3), 'the node is back');
$m->equal(\@all, 'a table whose shards are back');
is($m->sql(q{SELECT state FROM crate_sync.tables WHERE relname = 'z'}), 'ready', '... goes on by itself');
$m->sql(q{INSERT INTO z SELECT i, 'again' FROM generate_series(991, 1000) i});
$m->equal('z', '... and takes changes');

lose_shards('a node is lost for good');
rename "$dir/data2", "$dir/data2.lost";
start_crate(2);
ok(wait_nodes(3), 'an empty node takes its place');
sleep 3;
is($m->sql(q{SELECT state FROM crate_sync.tables WHERE relname = 'z'}), 'error', 'the table still says so');
$m->target_rows('DROP TABLE {z}');
$m->equal(\@all, 'dropped in the target as the hint says, it is made and loaded anew');
is($m->status('ok'), 't', '... and all is well');
wait_green();

# --- a node that hangs for longer than a request may take
{
	my @w = writers();
	sleep 1;
	kill 'STOP', -$pid[1];
	sleep 25;
	kill 'CONT', -$pid[1];
	sleep 1;
	end_writers(@w);
	ok(wait_nodes(3), 'a node hung for a while');
	wait_green();
	$m->equal(\@all, 'a node hung while writers went on');
	is($m->status('n_failed_rows'), 0, '... no row was given up');
}

# --- the disk is full, as the cluster sees it
{
	ask(0, q{SET GLOBAL TRANSIENT cluster['info']['update']['interval'] = '10s'});
	ask(0, q{SET GLOBAL TRANSIENT cluster.routing.allocation.disk.watermark.low = '900000gb',
		cluster.routing.allocation.disk.watermark.high = '800000gb', cluster.routing.allocation.disk.watermark.flood_stage = '700000gb'});
	ok( CrateSync::wait_until('the block', sub {
			$m->sql(q{UPDATE r SET v = 'disk full ' || random() WHERE id < 50; UPDATE z SET v = 'disk full'});
			sleep 0.5;
			$m->status eq 'table error' }, 60),
		'the disk is full: tables are stopped');
	ok($m->poll(q{SELECT count(*) = 2 FROM crate_sync.tables WHERE relname IN ('r', 'z') AND state = 'error' AND last_error ~ 'read-only' AND hint ~ 'disk'}),
		'... and say why and what to do')
	  or diag($m->sql(q{SELECT relname, state, last_error, hint FROM crate_sync.tables}));
	is($m->status('n_failed_rows'), 0, '... no row is given up');
	my $t0 = time();
	$m->sql(q{UPDATE r SET v = 'disk full'; DELETE FROM c WHERE a < 10});
	cmp_ok(time() - $t0, '<', 10, '... a writer does not wait');
	ask(0, q{RESET GLOBAL cluster.routing.allocation.disk.watermark.low, cluster.routing.allocation.disk.watermark.high,
		cluster.routing.allocation.disk.watermark.flood_stage});
	$m->equal(\@all, 'the disk has room again');
	is($m->status('ok'), 't', '... and all is well');
}

# --- all of them killed, and started again
{
	my @w = writers();
	sleep 1;
	kill_crate(0 .. 2);
	ok($m->poll(q{SELECT state = 'target unreachable' AND message <> '' AND hint <> '' FROM crate_sync.status}), 'all nodes are killed: status says so');
	sleep 2;
	start_crate(0 .. 2);
	ok(wait_nodes(3), 'all are back');
	sleep 2;
	end_writers(@w);
	wait_green();
	$m->equal(\@all, 'all nodes were killed while writers went on');
	ok($m->poll('SELECT ok FROM crate_sync.status'), '... and all is well');
}

# --- a backup is restored
{
	ask(0, qq{CREATE REPOSITORY backup TYPE fs WITH (location = '$dir/repo/backup')});
	# the beat has to be in it
	sleep 6;
	ask(0, q{CREATE SNAPSHOT backup.s1 ALL WITH (wait_for_completion = true)});
	$m->sql(q{UPDATE r SET v = 'after the backup' WHERE id < 200; DELETE FROM z WHERE id < 50; INSERT INTO c VALUES (5000, 'new', 'after the backup')});
	$m->equal(\@all, 'after the backup');
	sleep 6;
	my $tables = ask(0, q{SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema NOT IN ('sys', 'information_schema', 'pg_catalog', 'blob')});
	ask(0, qq{DROP TABLE "$_->[0]"."$_->[1]"}) foreach @$tables;
	ask(0, q{RESTORE SNAPSHOT backup.s1 ALL WITH (wait_for_completion = true)});
	ok(CrateSync::wait_until('resynced', sub { (eval { ($m->compare(@all))[0] } // 1) == 0 }, 120), 'a target restored from a backup is resynced by itself');
	$m->equal(\@all, 'restored to an older state');
	ok($m->poll('SELECT ok FROM crate_sync.status'), '... and all is well');
}

# --- everything dropped, ours too
{
	my $tables = ask(0, q{SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema NOT IN ('sys', 'information_schema', 'pg_catalog', 'blob')});
	ask(0, qq{DROP TABLE "$_->[0]"."$_->[1]"}) foreach @$tables;
	$m->sql(q{UPDATE r SET v = 'wiped' WHERE id = 1});
	ok(CrateSync::wait_until('loaded', sub { (eval { ($m->compare(@all))[0] } // 1) == 0 }, 120), 'a wiped target is filled again');
	$m->equal(\@all, 'wiped');
}

$m->{kind} = 'standin';		# nothing to tidy up in a cluster that goes away
$m->finish;
kill_crate(0 .. 2);
$node->stop;
done_testing();
