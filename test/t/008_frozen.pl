# A server frozen (SIGSTOP) while a request waits, thawed after newer rows were committed: the
# newer ones win, 40 times of 40.  Needs a CrateDB of its own, as a shared one must not be frozen.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my ($crate) = grep { -x $_ } map { "$_/crate" } split /:/, $ENV{PATH};
if (!$crate || $> == 0)
{
	my $why = $crate ? 'CrateDB refuses to run as root' : 'there is no crate on PATH to start a private one with';
	plan skip_all => $why;
}

# --- a private one
my $dir = PostgreSQL::Test::Utils::tempdir();
my @port = map { CrateSync::free_port() } 1 .. 3;
my $pid = fork();
die "fork: $!" unless defined $pid;
if ($pid == 0)
{
	POSIX::setsid();
	open STDIN, '<', '/dev/null';
	open STDOUT, '>', "$dir/out";
	open STDERR, '>&', \*STDOUT;
	$ENV{CRATE_HEAP_SIZE} = '512m';
	$ENV{CRATE_DISABLE_GC_LOGGING} = 1;	# its directory may be another's
	exec $crate, "-Cpath.data=$dir/data", "-Cpath.logs=$dir/logs", '-Cnetwork.host=127.0.0.1', "-Chttp.port=$port[0]",
	  "-Ctransport.tcp.port=$port[1]", "-Cpsql.port=$port[2]", '-Cdiscovery.type=single-node', '-Cauth.host_based.enabled=false',
	  '-Ccluster.routing.allocation.disk.threshold_enabled=false'
	  or POSIX::_exit(127);
}

sub stop_crate
{
	return unless $pid;
	local $?;
	kill 'CONT', -$pid;
	kill 'KILL', -$pid;
	waitpid($pid, 0);
	$pid = 0;
}
END { stop_crate() }

my $url = "http://127.0.0.1:$port[0]";
my $http = HTTP::Tiny->new(timeout => 5);
my $up = CrateSync::wait_until('a private CrateDB', sub {
	return 1 if waitpid($pid, POSIX::WNOHANG()) == $pid;
	return $http->post("$url/_sql", { content => '{"stmt":"SELECT 1 FROM sys.cluster"}', headers => { 'Content-Type' => 'application/json' } })->{success} });
if (!$up || !kill(0, $pid))
{
	diag(PostgreSQL::Test::Utils::slurp_file("$dir/out"));
	plan skip_all => 'the private CrateDB did not start';
}

my $node = CrateSync::server('frozen', conf => <<'EOC');
crate_sync.request_timeout = 700ms
crate_sync.connect_timeout = 700ms
crate_sync.max_retry_interval = 200ms
crate_sync.interval = 50ms
EOC
my $m = CrateSync::Mirror->new($node, 'crate', url => $url);
$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50) i});
$m->add('t');
$m->equal('t', 'load');

my ($fresh, $waited) = (0, 0);
my $rounds = $ENV{CRATE_SYNC_ROUNDS} || 40;
foreach my $i (1 .. $rounds)
{
	kill 'STOP', -$pid;
	my $ack = $m->status('last_ack_time');
	$m->sql("UPDATE t SET v = 'older $i' WHERE id <= 20");
	# it is sent, and waits at the frozen server
	$waited += CrateSync::wait_until('a request waits', sub {
		$m->sql("SELECT last_send_time > last_ack_time FROM crate_sync.status") eq 't' }, 10);
	# on odd rounds the newer rows come after the timeout, on even ones before it
	CrateSync::wait_until('the request has timed out', sub { $m->status('ok') eq 'f' }, 10) if $i % 2;
	$m->sql("UPDATE t SET v = 'newer $i' WHERE id <= 20");
	sleep 0.3 + 0.05 * ($i % 20);
	kill 'CONT', -$pid;
	if (!$m->wait_sync)
	{
		last;
	}
	# late ones would come now
	sleep 0.3;
	my $stale = $m->target_value("SELECT count(*) FROM {t} WHERE id <= 20 AND v <> 'newer $i'");
	$fresh++ if $stale == 0;
	diag("round $i: $stale stale") if $stale;
}
is($waited, $rounds, 'each time a request was waiting when the server was frozen');
is($fresh, $rounds, "the newer rows won $fresh of $rounds times");
$m->equal('t', 'at the end');
$m->{kind} = 'standin';		# nothing to tidy up in a CrateDB that goes away
$m->finish;
stop_crate();
$node->stop;
done_testing();
