# Several hosts: all of them get their share of the requests, one that left costs
# nothing while it is away and is used again soon after it came back, and so is a
# target that was away as a whole.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $true  = JSON::PP::true();
my $false = JSON::PP::false();
my $node  = CrateSync::server('hosts', conf => <<'EOC');
crate_sync.max_retry_interval = 1h
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 20s
crate_sync.connections = 2
crate_sync.interval = 100ms
EOC

my $m = CrateSync::Mirror->new($node, 'standin', standin => [ '--listeners', '3' ]);
my $s = $m->standin;
my $writes = qr/INSERT INTO "$m->{schema}"\."t"/i;

$m->sql(q{CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 200) i});
$m->add('t');
$m->equal('t', 'load');

# writes that each host got since the log was cleared
sub shares
{
	my @n = (0, 0, 0);
	$n[ $_->{port} ]++ foreach $s->statements($writes);
	return @n;
}

sub write_some
{
	my ($n, $what) = @_;
	$s->control(clear_log => $true);
	foreach my $i (1 .. $n)
	{
		$m->sql("UPDATE t SET v = '$what $i' WHERE id = $i");
		$m->wait_sync;
	}
	return shares();
}

my @n = write_some(24, 'all');
note "writes: @n";
cmp_ok($_, '>=', 4, 'a third of the writes goes to each of three hosts, with two connections') foreach @n;

# --- one that leaves, and comes back
$s->control(listening => [ $true, $false, $true ]);
@n = write_some(12, 'without one');
note "writes: @n";
is($n[1], 0, 'a host that left gets nothing');
cmp_ok($n[$_], '>=', 3, '... and the others share') foreach 0, 2;
is($m->status('ok'), 't', '... and all is well');
$s->control(listening => [ $true, $true, $true ]);
ok(CrateSync::wait_until('the host is used again', sub { my @n = write_some(6, 'back'); return $n[1] > 0 }, 30),
	'back again, it is used again');

# --- one that takes connections and answers nothing
$s->fault({ port => 1, match => '.', hold => 'before', times => -1 }, { port => 1, match => '^GET /', delay => 60, times => -1 });
$m->sql(q{UPDATE t SET v = 'one is stuck'});
$s->fault();
$s->control(release => $true);
$m->equal('t', 'a host that was stuck loses nothing');

# --- all of them away for longer than a few tries take
$s->control(listening => [ $false, $false, $false ]);
$m->sql(q{UPDATE t SET v = 'nobody there'});
ok($m->poll(q{SELECT NOT ok AND state = 'target unreachable' FROM crate_sync.status}), 'nobody is there: status says so');
sleep 28;
$s->control(listening => [ $true, $true, $true ]);
ok(CrateSync::wait_until('the target is found', sub { $m->status('ok') eq 't' }, 8),
	'found again without waiting for the next of ever longer pauses');
$m->equal('t', 'and all is there');

$m->finish;

# --- hosts that are learnt from the cluster, and what it may say instead
$s = CrateSync::Standin->new('--listeners', '3');
my ($first) = split /,/, $s->url;
my @nodes = map { "127.0.0.1:$_" } @{ $s->{ports} };
$s->control(nodes => [ @nodes, undef, '', 'http://127.0.0.1:1', 'user@h:1', "a b:1\n", 'h/x:1', "h:99999", ('x' x 70000) . ':1', map { "127.0.0.1:$_" } 1 .. 40 ]);
$m = CrateSync::Mirror->new($node, 'crate', url => $first);
$m->{standin} = $s;
$m->sql(q{CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 200) i});
$writes = qr/INSERT INTO "$m->{schema}"\."t"/i;
$m->add('t');
$m->equal('t', 'one host, others not asked for');
@n = write_some(6, 'one');
is("$n[1] $n[2]", '0 0', '... which get nothing');
$node->append_conf('postgresql.conf', 'crate_sync.target_discovery = on');
$node->reload;
ok(CrateSync::wait_until('hosts are learnt', sub { @n = write_some(6, 'learnt'); return $n[1] > 0 && $n[2] > 0 }, 60),
	'target_discovery: all hosts of the cluster get their share');
$m->equal('t', '... also where some that it names are not there, or are no hosts');
is($m->status('ok'), 't', '... and all is well');
$node->append_conf('postgresql.conf', 'crate_sync.target_discovery = off');
$node->reload;
ok(CrateSync::wait_until('hosts are forgotten', sub { @n = write_some(6, 'off'); return $n[1] + $n[2] == 0 }, 60), 'off again: only those of the setting');

$m->finish;
$node->stop;
done_testing();
