# Two copies of a server that lie in the same place, one after the other and at
# the same time: path and inode do not tell them apart.  And the reverse: a host
# that is called otherwise is no other place.
use strict;
use warnings;
use CrateSync;
use File::Copy qw(move);
use Test::More;

my $node = CrateSync::server('twins', streaming => 1, conf => "crate_sync.max_retry_interval = 300ms\n");
my $bin = $node->config_data('--bindir');
my $serial = 0;

# starts what lies in a directory as a server of its own, on another port
sub start_at
{
	my ($dir, $port) = @_;
	my $sockets = $node->host;
	return PostgreSQL::Test::Utils::system_or_bail("$bin/pg_ctl", '-w', '-D', $dir, '-l', "$dir/../twin.log",
		'-o', "-p $port -c listen_addresses='' -c unix_socket_directories='$sockets'", 'start');
}

# SQL there
sub there
{
	my ($m, $port, $sql) = @_;
	my $out = '';
	IPC::Run::run([ "$bin/psql", '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($m->{db}) =~ s/port=\d+/port=$port/r ],
		'<', \$sql, '>', \$out) or die "psql: $sql";
	chomp $out;
	return $out;
}

sub poll_there
{
	my ($m, $port, $sql, $seconds) = @_;
	return CrateSync::wait_until($sql, sub { there($m, $port, $sql) eq 't' }, $seconds || 60);
}

# two directories change places; the inode stays that of the place
sub exchange
{
	my ($in, $out, $keep) = @_;
	my $place = $node->data_dir;
	move($place, $keep) or die "move: $!";
	move($in, $place) or die "move: $!";
	unlink "$place/PG_VERSION" or die "unlink: $!";
	link("$keep/PG_VERSION", "$place/PG_VERSION") or die "link: $!";
	return;
}

# the server alone, as a copy to be started
sub copy_of
{
	my ($m) = @_;
	$node->backup('twin' . ++$serial);
	return $node->backup_dir . "/twin$serial";
}

sub fill
{
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'first' FROM generate_series(1, 100) i;
		CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u SELECT i, 'first' FROM generate_series(1, 100) i});
	$m->add('t', 'u');
	$m->equal([ 't', 'u' ], 'at first');
	ok($m->poll('SELECT beat_acked > 0 FROM crate_sync.worker_state'), 'a beat is there');
}

my $stopped = q{SELECT NOT ok AND message LIKE '%looks like a copy%' FROM crate_sync.status};

# --- one after the other
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	fill($m);
	my $copy = copy_of($m);
	$node->stop;
	my $away = $node->data_dir . '_away';
	exchange($copy, undef, $away);
	my $port = CrateSync::free_port();
	start_at($node->data_dir, $port);
	ok(poll_there($m, $port, q{SELECT state = 'ok' FROM crate_sync.status}), 'a copy in the place of an original that is gone goes on');
	there($m, $port, q{SET search_path = } . $m->{schema} . q{; UPDATE t SET v = 'twin' WHERE id <= 50; DELETE FROM u WHERE id > 50});
	is(there($m, $port, 'SELECT crate_sync.wait_for_sync()'), 't', 'the copy writes');
	PostgreSQL::Test::Utils::system_or_bail("$bin/pg_ctl", '-w', '-D', $node->data_dir, '-m', 'fast', 'stop');
	exchange($away, undef, $copy);
	$node->start;
	ok($m->poll($stopped, 't', 90), 'the original, back in its place, finds that another one was at work');
	like($m->status('hint'), qr/adopt\(\)/, 'and says what to do');
	$m->sql(q{UPDATE t SET v = 'original' WHERE id = 99; SELECT crate_sync.adopt()});
	ok($m->poll(q{SELECT ok FROM crate_sync.status}, 't', 60), 'adopted');
	$m->equal([ 't', 'u' ], 'what the other one wrote is gone');
	$node->restart;
	$m->sql(q{UPDATE t SET v = 'again' WHERE id = 98});
	$m->equal([ 't', 'u' ], 'after a restart');
});

# --- at the same time
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	fill($m);
	my $copy = copy_of($m);
	my $away = $node->data_dir . '_alive';
	# the original runs on; to it, its place is what it was
	my $n = $m->sql('SELECT beat FROM crate_sync.worker_state');
	ok($m->poll("SELECT beat_acked > $n FROM crate_sync.worker_state"), 'it is heard of after the copy was made');
	exchange($copy, undef, $away);
	my $port = CrateSync::free_port();
	start_at($node->data_dir, $port);
	there($m, $port, q{SET search_path = } . $m->{schema} . q{; UPDATE t SET v = 'twin'; DELETE FROM u});
	ok(poll_there($m, $port, $stopped, 90), 'a copy in the same place says that it is one');
	$m->sql(q{UPDATE t SET v = 'original' WHERE id <= 10});
	$m->equal([ 't', 'u' ], 'the original goes on');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'twin'}), 0, 'nothing of the copy\'s is there');
	is($m->status('ok'), 't', 'and is well');

	there($m, $port, 'SELECT crate_sync.adopt()');
	ok(poll_there($m, $port, 'SELECT crate_sync.wait_for_sync()', 60), 'the copy adopts');
	$m->sql(q{UPDATE t SET v = 'too late'});
	ok($m->poll($stopped, 't', 60), 'the original notices');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'too late'}), 0, 'and writes no more');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'twin'}), 100, 'the target is the copy\'s');
	is($m->target_value(q{SELECT count(*) FROM {u}}), 0, 'all of it');
	PostgreSQL::Test::Utils::system_or_bail("$bin/pg_ctl", '-w', '-D', $node->data_dir, '-m', 'immediate', 'stop');
	# the original's directory back where it was
	move($node->data_dir, $copy) or die "move: $!";
	move($away, $node->data_dir) or die "move: $!";
	$m->sql('SELECT crate_sync.adopt()');
	$m->equal([ 't', 'u' ], 'adopted back');
});

# --- another host name
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $uid = $<;
	my @other = ('unshare', '-r', '-u', 'sh', '-c', 'hostname somewhere-else; exec unshare -U --map-user="$0" "$@"', $uid);
	my $out = '';
	return CrateSync::skipped('no name spaces here')
	  unless IPC::Run::run([ @other, 'hostname' ], '<', \undef, '>', \$out, '2>', \my $err) && $out =~ /somewhere-else/;
	fill($m);
	my $loads = q{SELECT string_agg(relname || last_load_time::text, ' ' ORDER BY relname) FROM crate_sync.tables};
	my $before = $m->sql($loads);
	$node->stop;
	my $offset = CrateSync::log_size($node);
	PostgreSQL::Test::Utils::system_or_bail(@other, "$bin/pg_ctl", '-w', '-D', $node->data_dir, '-l', $node->logfile, 'start');
	$m->sql(q{UPDATE t SET v = 'renamed host' WHERE id = 5});
	$m->equal([ 't', 'u' ], 'with another host name');
	is($m->sql($loads), $before, 'nothing was loaded for it');
	unlike(substr(PostgreSQL::Test::Utils::slurp_file($node->logfile), $offset), qr/resync/, 'nor is there a word of it');
	PostgreSQL::Test::Utils::system_or_bail("$bin/pg_ctl", '-w', '-D', $node->data_dir, '-m', 'fast', 'stop');
	$node->{_pid} = undef;
	$node->start;
});
$node->stop;
done_testing();
