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

# what is set for the database while its worker begins, and what is set otherwise
{
	my $file = 'sqlite:' . $node->basedir;
	my $started = sub {
		my ($m, $what, $sql, $target) = @_;
		my $release = hold($m->{db}, 'worker start');
		$m->sql('SELECT pg_terminate_backend(pid) FROM crate_sync.status');
		held($m->{db}, 'worker start');
		$node->safe_psql('postgres', $sql);
		$release->();
		ok($m->poll(q{SELECT target FROM crate_sync.status WHERE state <> 'starting' AND pid IS NOT NULL}, $target, 30), "$what, while the worker begins");
	};
	my $m = CrateSync::Mirror->new($node, 'sqlite', extension => 0);
	$node->safe_psql('postgres', "ALTER DATABASE $m->{db} RESET crate_sync.target");
	my $release = hold($m->{db}, 'worker start');
	$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
	held($m->{db}, 'worker start');
	$node->safe_psql('postgres', "ALTER DATABASE $m->{db} SET crate_sync.target = '$m->{url}'");
	$release->();
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)');
	$m->add('t');
	$m->equal('t', 'a target that is set right after CREATE EXTENSION');
	my $user = $m->sql('SELECT current_user');
	$started->($m, 'ALTER ROLE ... IN DATABASE', "ALTER ROLE $user IN DATABASE $m->{db} SET crate_sync.target = '$file/of_role.db'", "$file/of_role.db");
	$started->($m, 'its RESET', "ALTER ROLE $user IN DATABASE $m->{db} RESET crate_sync.target", $m->{url});
	$started->($m, 'ALTER DATABASE ... RESET', "ALTER DATABASE $m->{db} RESET crate_sync.target; ALTER SYSTEM SET crate_sync.target = '$file/of_server.db'; SELECT pg_reload_conf()", "$file/of_server.db");
	$started->($m, 'ALTER DATABASE ... SET to the same', "ALTER DATABASE $m->{db} SET crate_sync.target = '$file/of_server.db'", "$file/of_server.db");
	$started->($m, 'ALTER DATABASE ... SET of the others', "ALTER DATABASE $m->{db} SET work_mem = '1MB'; ALTER ROLE ALL SET crate_sync.target = '$file/of_all.db'", "$file/of_server.db");
	my $pid = $m->worker_pid;
	sleep 1.5;
	is($m->worker_pid, $pid, 'no worker that begins again and again');
	$node->safe_psql('postgres', "ALTER DATABASE $m->{db} RESET ALL");
	ok($m->poll('SELECT target FROM crate_sync.status WHERE pid IS NOT NULL', "$file/of_all.db", 30), 'and while it runs');
	$node->safe_psql('postgres', 'ALTER ROLE ALL RESET crate_sync.target; ALTER SYSTEM RESET crate_sync.target; SELECT pg_reload_conf()');
	ok($m->poll(q{SELECT target = '' AND state = 'no target' FROM crate_sync.status WHERE pid IS NOT NULL}, 't', 30), 'none at all');
	# stored by a session that did not know the setting: no session takes it, and none begins anew for its sake
	$node->safe_psql('postgres', "SET allow_system_table_mods = on; INSERT INTO pg_db_role_setting SELECT oid, 0, ARRAY['crate_sync.target=nonsense'] FROM pg_database WHERE datname = '$m->{db}'");
	$m->sql('SELECT pg_terminate_backend(pid) FROM crate_sync.status');
	$m->wait_worker;
	$pid = $m->worker_pid;
	sleep 1.5;
	is($m->worker_pid, $pid, 'one that is no target changes nothing');
	$m->finish;
}

$node->stop;
done_testing();
