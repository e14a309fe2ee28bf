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

# --- keys that are spelled otherwise, or not at all

# verify, and waits for its end
sub verify
{
	my ($m, $table, $repair) = @_;
	$m->sql(sprintf q{SELECT crate_sync.verify('%s', repair => %s)}, $table, $repair ? 'true' : 'false');
	return $m->poll("SELECT verify_no = verify_done FROM crate_sync.mirror JOIN crate_sync.mirror_state USING (mirror_id) WHERE mirror.relid = '$table'::regclass");
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(<<'EOQ');
CREATE TABLE r4 (id float4 PRIMARY KEY, v text);
INSERT INTO r4 SELECT x::float4, 'v' FROM unnest(ARRAY['0.1', '1e10', '16777217', '3.4e38', '1e-40', '123456.7', '0.3', '-1e15', '100000', '1e-5']) x;
CREATE TABLE r8 (id float8, n int, v text, PRIMARY KEY (n, id));
INSERT INTO r8 SELECT x::float8, 1, 'v' FROM unnest(ARRAY['0.1', '1e10', '9007199254740993', '1e308', '5e-324', '123456789012345680', '-1e15', '1e21', '0.3', '100000', '1e-5']) x;
EOQ
	$m->sql(q{SELECT crate_sync.add_table('r4', options => '{"types": {"id": "REAL"}}'); SELECT crate_sync.add_table('r8', options => '{"types": {"id": "DOUBLE PRECISION"}}')});
	ok($m->wait_sync, 'float keys');
	is($m->target_count('r4') . ' ' . $m->target_count('r8'), '10 11', 'as many rows');
	foreach my $t ('r4', 'r8')
	{
		ok(verify($m, $t), "verify of $t");
		is($m->sql("SELECT string_agg(kind || ' ' || key, ', ') FROM crate_sync.differences WHERE relname = '$t'"), '', "$t: no key is called missing for being spelled with an exponent");
		is($m->sql("SELECT last_verify_ok FROM crate_sync.tables WHERE relname = '$t'"), 't', "$t: last_verify_ok");
		# what is so is found
		$m->target_change("DELETE FROM {$t} WHERE id > 1e9 AND id < 1e11");
		$m->target_change("UPDATE {$t} SET v = 'other' WHERE id > 1e20");
		ok(verify($m, $t, 1), "verify with repair of $t");
		is($m->sql("SELECT string_agg(kind || ' ' || (key->>'id')::float8, ', ' ORDER BY (key->>'id')::float8) FROM crate_sync.differences WHERE relname = '$t'"),
			$t eq 'r4' ? 'missing 10000000000, different 3.4e+38' : 'missing 10000000000, different 1e+21, different 1e+308', "$t: what differs is found");
		$m->equal($t, "$t, repaired");
	}
});

# a key that the database cannot spell, and that stays in the target
{
	my $encoding = 'LATIN1';
	my $db = 'spell';
	my $path = $node->basedir . "/$db.db";
	$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	$node->safe_psql('postgres', "ALTER DATABASE $db SET crate_sync.target = 'sqlite:$path'");
	$node->safe_psql($db, q{SET client_min_messages = error; CREATE EXTENSION crate_sync; CREATE TABLE t (id text PRIMARY KEY, v text); INSERT INTO t VALUES ('a', '1');
		CREATE TABLE other (id int PRIMARY KEY, v text); SELECT crate_sync.add_table('t'); SELECT crate_sync.add_table('other')});
	is($node->safe_psql($db, q{SELECT crate_sync.wait_for_sync(timeout => '60s')}), 't', "$encoding: in sync");
	my $err = '';
	IPC::Run::run([ 'python3', '-c', <<'EOP', $path ], '<', \undef, '2>', \$err) or die $err;
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
key = b'\xe6\x97\xa5\xe6\x9c\xac'.decode()
db.execute("INSERT INTO t VALUES (?, 'x')", (key,))
db.execute("CREATE TRIGGER keep BEFORE DELETE ON t WHEN length(old.v) = 1 AND old.v = 'x' BEGIN SELECT raise(ignore); END")
db.commit()
EOP
	$node->safe_psql($db, q{SELECT crate_sync.resync('t')});
	ok(CrateSync::poll($node, $db, q{SELECT n_failed_rows > 0 AND state = 'ready' FROM crate_sync.tables WHERE relname = 't'}, 't', 60), "$encoding: a key of the target that cannot be spelled here is set aside");
	is($node->safe_psql($db, q{SELECT jsonb_typeof(key) || ' ' || action FROM crate_sync.failed_rows}), 'string delete', "$encoding: as a string, for what there is");
	$node->safe_psql($db, q{INSERT INTO other VALUES (1, 'x')});
	is($node->safe_psql($db, q{SELECT crate_sync.wait_for_sync('other', '60s')}), 't', "$encoding: the other tables go on");
	is($node->safe_psql($db, q{SELECT state FROM crate_sync.status}), 'failed rows', "$encoding: the state is that");
	$node->safe_psql('postgres', "DROP DATABASE $db WITH (FORCE)");
}

$node->stop;
done_testing();
