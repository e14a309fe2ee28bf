# The worker's life: when it starts, when it ends, and that it never stands in the way.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $version;

# --- without preload
{
	my $node = CrateSync::server('plain', preload => 0);
	$version = $node->safe_psql('postgres', 'SHOW server_version_num');
	my $m = CrateSync::Mirror->new($node, 'sqlite', extension => 0);

	my ($ret, $out, $err) = $m->try_sql('CREATE EXTENSION crate_sync');
	is($ret, 0, 'CREATE EXTENSION without preload');
	like($err, qr/WARNING.*shared_preload_libraries/, 'warns that a restart ends the worker');
	like($err, qr/HINT/, 'with a hint');
	ok($m->wait_worker, 'the worker runs at once');
	is($m->status('preloaded'), 'f', 'status says it is not preloaded');

	$m->sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i');
	$m->add('t');
	$m->equal('t', 'load without preload');

	is($m->sql('SELECT crate_sync.stop()'), 't', 'stop() says it was running');
	ok($m->poll('SELECT pid IS NULL FROM crate_sync.status'), 'stop() stops the worker');
	is($m->status, 'stopped', 'status says so');
	is($m->status('ok'), 'f', 'and is not ok');
	like($m->status('hint'), qr/crate_sync\.start/, 'with a hint');
	$m->sql(q{UPDATE t SET v = 'while stopped' WHERE id <= 10});
	is($m->status('queued_keys'), 10, 'changes go on queueing');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'while stopped'}), 0, 'nothing is pushed');
	($ret, $out, $err) = $m->try_sql('SELECT crate_sync.start()');
	is($out, 't', 'start()');
	$m->equal('t', 'what was queued while it was stopped');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'while stopped'}), 10, 'it has arrived');

	$node->restart;
	is($m->status('pid'), '', 'after a restart no worker runs without preload');
	is($m->status, 'no worker', 'status says so');
	like($m->status('hint'), qr/shared_preload_libraries/, 'and how to change that');
	$m->sql(q{UPDATE t SET v = 'after restart' WHERE id = 20});
	$m->sql('SET client_min_messages = error; SELECT crate_sync.start()');
	$m->equal('t', 'start() after a restart');

	# a rolled back CREATE EXTENSION starts nothing
	$node->safe_psql('postgres', 'CREATE DATABASE other');
	$node->safe_psql('other', 'SET client_min_messages = error; BEGIN; CREATE EXTENSION crate_sync; ROLLBACK');
	sleep 1;
	is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'other'}),
		0, 'no worker after a rolled back CREATE EXTENSION');
	$node->stop;
}

# --- with preload
my $node = CrateSync::server('preloaded', streaming => 1, conf => "crate_sync.max_retry_interval = 500ms\n");
my @m = map { CrateSync::Mirror->new($node, 'sqlite') } 1 .. 2;
foreach my $m (@m)
{
	$m->sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i');
	$m->add('t');
	$m->equal('t', "load in $m->{db}");
}
is($m[0]->status('preloaded'), 't', 'status says it is preloaded');
$node->restart;
foreach my $m (@m)
{
	ok($m->wait_worker, "worker of $m->{db} runs after a restart");
	$m->sql(q{UPDATE t SET v = 'restarted' WHERE id = 1});
	$m->equal('t', "change after a restart in $m->{db}");
}
is($node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'crate_sync worker' AND datname NOT LIKE 'db%'}),
	0, 'no worker stays in a database without the extension');

# --- deaths
my $m = $m[0];
my $pid = $m->worker_pid;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
ok($m->poll("SELECT pid IS NOT NULL AND pid <> $pid FROM crate_sync.status"), 'a terminated worker is started again');
foreach my $i (1 .. 3)
{
	$m->sql("UPDATE t SET v = 'kill $i' WHERE id <= 500");
	ok($m->kill_worker, "kill -9 of the worker, $i");
	$m->sql("UPDATE t SET v = v || '!' WHERE id % 2 = 0");
	$m->equal('t', "after kill -9, $i");
}
is($m->target_value(q{SELECT count(*) FROM {t} WHERE v LIKE 'kill 3%'}), 500, 'the last change has arrived');
my $launcher = $node->safe_psql('postgres', q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'crate_sync launcher'});
like($launcher, qr/^\d+$/, 'one launcher');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
ok( CrateSync::poll($node, 'postgres',
		"SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'crate_sync launcher' AND pid <> $launcher"),
	'a terminated launcher is started again');
$m->sql(q{UPDATE t SET v = 'committed, then crash' WHERE id = 3});
$node->stop('immediate');
$node->start;
$m->wait_worker;
$m->equal('t', 'after an immediate shutdown');

# --- settings
$node->safe_psql('postgres', 'ALTER SYSTEM SET crate_sync.enabled = off');
$node->reload;
ok($m->poll(q{SELECT state = 'disabled' AND NOT ok FROM crate_sync.status}), 'enabled = off after a reload');
$m->sql(q{UPDATE t SET v = 'disabled' WHERE id = 5});
is($m->status('queued_keys'), 1, 'keys go on queueing');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET crate_sync.enabled');
$node->reload;
$m->equal('t', 'enabled again');
foreach my $bad (
	[ 'interval', '0' ], [ 'interval', '2h' ], [ 'interval', 'soon' ], [ 'batch_rows', '0' ], [ 'batch_rows', '100001' ],
	[ 'batch_bytes', '1kB' ], [ 'batch_bytes', '65MB' ], [ 'connections', '0' ], [ 'connections', '33' ],
	[ 'work_mem', '1MB' ], [ 'work_mem', '3GB' ], [ 'connect_timeout', '-1' ], [ 'request_timeout', '-1' ],
	[ 'max_retry_interval', '1ms' ], [ 'max_retry_interval', '2h' ], [ 'log_min_duration', '-2' ], [ 'enabled', 'maybe' ],
	[ 'target', 'ftp://host' ], [ 'target', 'http://' ], [ 'target', 'http://h:99999' ], [ 'target', 'http://u:p@h:4200' ],
	[ 'target', 'http://h:4200/path' ], [ 'target', 'sqlite:relative.db' ], [ 'target', 'localhost:4200' ],
	[ 'target', 'sqlite:' ], [ 'no_such_setting', '1' ])
{
	my ($name, $value) = @$bad;
	my ($ret, $out, $err) = $m->try_sql("ALTER SYSTEM SET crate_sync.$name = '$value'");
	isnt($ret, 0, "crate_sync.$name = '$value' is refused");
}
foreach my $good ([ 'interval', '10ms' ], [ 'interval', '1h' ], [ 'batch_bytes', '64MB' ], [ 'work_mem', '2GB' ],
	[ 'target', 'http://h1:4200,h2:4200' ], [ 'target', 'https://host' ], [ 'target', 'http://[::1]:4200' ])
{
	my ($name, $value) = @$good;
	my ($ret, $out, $err) = $m->try_sql("SET crate_sync.$name = '$value'");
	($ret, $out, $err) = $m->try_sql("ALTER SYSTEM SET crate_sync.$name = '$value'") if $err =~ /cannot be changed/;
	is($ret, 0, "crate_sync.$name = '$value' is taken") or diag $err;
	$m->sql("ALTER SYSTEM RESET crate_sync.$name");
}
$node->reload;
$m->sql('CREATE ROLE nobody_special LOGIN');
my ($ret, $out, $err) = $m->try_sql(q{SET ROLE nobody_special; SET crate_sync.target = 'http://127.0.0.1:1'});
like($err, qr/permission denied/, 'only a superuser says where it may connect to');

# --- a new target is loaded
{
	my $new = $node->basedir . '/second.db';
	$node->safe_psql('postgres', "CREATE DATABASE moving");
	$node->append_conf('postgresql.conf', "crate_sync.target = 'sqlite:$new.1'\n");
	$node->reload;
	$node->safe_psql('moving', q{SET client_min_messages = error; CREATE EXTENSION crate_sync; CREATE TABLE t (id int PRIMARY KEY);
		INSERT INTO t SELECT generate_series(1, 10); SELECT crate_sync.add_table('t');});
	is($node->safe_psql('moving', q{SELECT crate_sync.wait_for_sync()}), 't', 'in sync with a target');
	$node->append_conf('postgresql.conf', "crate_sync.target = 'sqlite:$new.2'\n");
	$node->reload;
	my $there = CrateSync::wait_until('rows in the new target', sub {
		my ($o, $e);
		IPC::Run::run([ 'python3', '-c', 'import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM t").fetchone()[0])', "$new.2" ],
			'>', \$o, '2>', \$e);
		return ($o || '') eq "10\n";
	}, 60);
	ok($there, 'a target that was changed gets what is there');
	$node->append_conf('postgresql.conf', "crate_sync.target = ''\n");
	$node->reload;
	ok(CrateSync::poll($node, 'moving', q{SELECT state = 'no target' FROM crate_sync.status}), 'no target');
	$node->safe_psql('moving', 'DROP EXTENSION crate_sync');
}

# --- DROP EXTENSION, DROP DATABASE and copies of a database are never blocked, also under load
sub load_of
{
	my ($m, $seconds) = @_;
	return map {
		$m->background(
			"DO \$\$ DECLARE until timestamptz := clock_timestamp() + interval '$seconds s'; BEGIN WHILE clock_timestamp() < until LOOP "
			  . "UPDATE t SET v = 'load $_' WHERE id BETWEEN $_ * 100 AND $_ * 100 + 20; COMMIT; "
			  . "DELETE FROM t WHERE id = $_; INSERT INTO t VALUES ($_, 'x'); COMMIT; END LOOP; END \$\$;")
	} 1 .. 3;
}

foreach my $kind (CrateSync::kinds_but('crate', 'what is dropped here does not reach the target'))
{
	my $m = CrateSync::Mirror->new($node, $kind);
	$m->sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i');
	$m->add('t');
	$m->wait_sync;
	foreach my $round (1 .. 3)
	{
		my @sessions = load_of($m, 4);
		sleep 1 + $round / 3;
		my ($ret, $out, $err) = $m->try_sql(q{SET statement_timeout = '30s'; DROP EXTENSION crate_sync});
		is($ret, 0, "DROP EXTENSION under load, $round") or diag $err;
		is($_->done, '', 'no writer failed') foreach @sessions;
		is($m->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%'}), 0, 'no trigger is left');
		is($m->sql(q{SELECT count(*) FROM pg_namespace WHERE nspname = 'crate_sync'}), 0, 'no schema is left');
		ok($m->poll(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'crate_sync%'}), 'the worker is gone');
		$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
		$m->add('t');
		$m->equal('t', 'created and added again');
	}

	# the target hangs: DROP EXTENSION and DROP DATABASE do not care
	if ($m->standin)
	{
		$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema}, hold => 'before', times => -1 });
		$m->sql(q{UPDATE t SET v = 'held'});
		$m->standin->wait_hits(1);
		my $t0 = time();
		my ($ret, $out, $err) = $m->try_sql(q{SET statement_timeout = '30s'; DROP EXTENSION crate_sync});
		is($ret, 0, 'DROP EXTENSION while a request hangs') or diag $err;
		$m->standin->control(reset => JSON::PP::true);
		$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
		$m->add('t');
		$m->equal('t', 'created and added again');
		$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema}, hold => 'before', times => -1 });
		$m->sql(q{UPDATE t SET v = 'held'});
		$m->standin->wait_hits(1);
	}
	else
	{
		$m->sql(q{UPDATE t SET v = 'work'});
	}
	my ($ret, $out, $err) = (0, '', '');
	$ret = $node->psql('postgres', "CREATE DATABASE copy_$kind TEMPLATE $m->{db}", stdout => \$out, stderr => \$err);
	is($ret, 0, 'CREATE DATABASE ... TEMPLATE') or diag $err;
	$ret = $node->psql('postgres', "ALTER DATABASE $m->{db} RENAME TO renamed_$kind", stdout => \$out, stderr => \$err);
	is($ret, 0, 'ALTER DATABASE ... RENAME') or diag $err;
	$m->standin->control(reset => JSON::PP::true) if $m->standin;
	$node->psql('postgres', "DROP DATABASE copy_$kind");
	$m->{db} = "renamed_$kind";
	ok($m->wait_worker, 'the worker comes back to a renamed database');
	$m->equal('t', 'after the renaming');
	$m->sql(q{UPDATE t SET v = v || '.'});
	$ret = $node->psql('postgres', "DROP DATABASE renamed_$kind", stdout => \$out, stderr => \$err);
	is($ret, 0, 'DROP DATABASE with keys queued') or diag $err;
	$m->finish;
}

# --- DROP TABLE, ALTER TABLE, VACUUM FULL and TRUNCATE are not blocked for long either
{
	my $m = $m[1];
	foreach my $stmt ('ALTER TABLE t ADD COLUMN extra int', 'VACUUM FULL t', 'TRUNCATE t', 'DROP TABLE t')
	{
		$m->sql(q{INSERT INTO t (id, v) SELECT i, 'x' FROM generate_series(1, 5000) i ON CONFLICT (id) DO UPDATE SET v = 'y'});
		my ($ret, $out, $err) = $m->try_sql("SET lock_timeout = '20s'; $stmt");
		is($ret, 0, "$stmt while its rows are pushed") or diag $err;
		$m->equal('t', "after $stmt") unless $stmt =~ /DROP/;
	}
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.tables'), 'a dropped table is no longer mirrored');
	ok($m->poll(q{SELECT state = 'nothing mirrored' FROM crate_sync.status}), 'and all is well');
}

# --- standby and promotion
{
	my $m = $m[0];
	$node->backup('b');
	my $class = ref $node;
	my $standby = $class->can('new') && $class =~ /Test::Cluster/ ? $class->new('standby') : $class->get_new_node('standby');
	$standby->init_from_backup($node, 'b', has_streaming => 1);
	$standby->start;
	$m->sql(q{INSERT INTO t VALUES (5000, 'to the standby')});
	$m->equal('t', 'primary of a standby');
	ok(CrateSync::poll($standby, $m->{db}, 'SELECT count(*) = 1 FROM t WHERE id = 5000'), 'the standby follows');
	is($standby->safe_psql($m->{db}, q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'crate_sync%'}), 0, 'it is quiet');
	is($standby->safe_psql($m->{db}, q{SELECT ok FROM crate_sync.status}), 'f', 'status can be read there');
	my $errors = CrateSync::log_count($standby, 'ERROR|PANIC|FATAL.*crate_sync');
	is($errors, 0, 'nothing in its log');
	$node->stop('immediate');
	$standby->promote;
	$m->{node} = $standby;
	ok($m->wait_worker, 'the worker starts after promotion');
	$m->sql(q{UPDATE t SET v = 'promoted' WHERE id <= 50});
	$m->equal('t', 'after promotion');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'promoted'}), 50, 'the change has arrived');
	$standby->stop;
}

# --- no slot for a worker
{
	my $node = CrateSync::server('tight', conf => "max_worker_processes = 3\n");
	my @m = map { CrateSync::Mirror->new($node, 'sqlite') } 1 .. 4;
	ok( CrateSync::wait_until('a hint', sub { grep { $_->status('hint') =~ /max_worker_processes/ } @m }, 60),
		'status says when max_worker_processes is too small');
	cmp_ok(CrateSync::log_count($node, 'no worker slot'), '>=', 1, 'and so does the log');
	$node->stop;
}

done_testing();
