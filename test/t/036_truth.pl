# What status, tables, progress, wait_for_sync and the hints say is so, in states in which it is easily not.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('truth', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
crate_sync.debug_points = on
EOC

# holds the worker of a database where it comes to next; ->() lets it go on
sub hold
{
	my ($db, $point) = @_;
	my ($in, $out) = ("SELECT pg_advisory_lock(28531, hashtext('$point'));\n", '');
	my $h = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($db) ], '<', \$in, '>', \$out);
	$h->pump until $in eq '';
	CrateSync::poll($node, $db, qq{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND classid = 28531 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = '$db')});
	return sub { $h->finish };
}

sub held
{
	my ($db, $point) = @_;
	return CrateSync::poll($node, $db, "SELECT count(*) FROM pg_stat_activity WHERE datname = '$db' AND query = 'held at $point'", 1);
}

# --- whose settings the worker has

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->wait_worker;
	is($m->status('target'), $m->{url}, 'the target is the worker\'s');
	my ($ret, $out, $err) = $m->try_sql(q{SET crate_sync.target = 'http://127.0.0.1:9'});
	like($err, qr/ERROR.*cannot be changed for a session.*HINT.*connect again/s, 'a session cannot have one of its own');
	($ret, $out, $err) = $m->try_sql(q{SELECT set_config('crate_sync.target', 'http://127.0.0.1:9', false)});
	like($err, qr/cannot be changed for a session/, 'by no way');
	# a session that began before it was changed
	my $other = "sqlite:" . $node->basedir . "/elsewhere_$m->{schema}.db";
	is($m->sql("SET statement_timeout = '30s'; ALTER DATABASE $m->{db} SET crate_sync.target = '$other'; "
		. "DO \$\$ BEGIN WHILE (SELECT target <> '$other' OR pid IS NULL FROM crate_sync.worker_status()) LOOP PERFORM pg_sleep(0.01); END LOOP; END \$\$; "
		. "SELECT target, current_setting('crate_sync.target') = '$m->{url}' FROM crate_sync.status"), "$other|t", 'in an old session, too');
});

$node->stop;
done_testing();
