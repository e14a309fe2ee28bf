# Faults on PostgreSQL's side, each alone: copies, failover, DDL, locks, crashes, rows that cannot be read.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $conf = "crate_sync.max_retry_interval = 300ms\ncrate_sync.interval = 100ms\ncrate_sync.debug_read_limit = 1s\n";
my $node = CrateSync::server('faults_pg', streaming => 1, conf => $conf);
my $new_node = sub {
	my ($name) = @_;
	my $class = ref $node;
	return $class->can('new') && $class =~ /Test::Cluster/ ? $class->new($name) : $class->get_new_node($name);
};

sub fill
{
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text);
		INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 500) i});
	$m->add('t');
	$m->equal('t', 'load');
}

# the same database on another server
sub beside
{
	my ($m, $node) = @_;
	my %copy = (%$m, node => $node);
	delete $copy{standin};
	return bless \%copy, ref $m;
}

# --- a copy beside the original writes nothing until it is told to
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	fill($m);
	# the first beat has to be there before the copy is made, as it is after a few seconds
	sleep 1;
	$node->backup("clone_$m->{kind}");
	my $clone = $new_node->("clone_$m->{kind}");
	$clone->init_from_backup($node, "clone_$m->{kind}");
	$clone->append_conf('postgresql.conf', "hot_standby = on\n");
	$clone->start;
	my $c = beside($m, $clone);
	ok($c->wait_worker, 'the copy has a worker');
	$c->sql(q{UPDATE t SET v = 'written by the copy'; DELETE FROM t WHERE id > 100; INSERT INTO t VALUES (9999, 'copy')});
	$m->sql(q{UPDATE t SET v = 'original' WHERE id <= 10});
	$m->equal('t', 'the original goes on beside its copy');
	ok($c->poll(q{SELECT NOT ok AND message LIKE '%looks like a copy%' FROM crate_sync.status}, 't', 60), 'status of the copy says what it is');
	# while it looks again it says that it does
	ok($c->poll(q{SELECT message LIKE '%looks like a copy%' AND hint LIKE '%crate_sync.adopt()%' FROM crate_sync.status}, 't', 60), 'and what to do');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'written by the copy'}), 0, 'it has written nothing');
	$m->sql(q{INSERT INTO t VALUES (7777, 'after')});
	$m->equal('t', 'the original still goes on');
	is($m->status('ok'), 't', 'and is well');

	$c->sql('SELECT crate_sync.adopt()');
	$c->equal('t', 'after adopt() the target is the copy\'s');
	$m->sql(q{UPDATE t SET v = 'too late'});
	ok($m->poll(q{SELECT NOT ok FROM crate_sync.status}, 't', 60), 'the original notices');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'too late'}), 0, 'and writes no more');
	$c->sql(q{INSERT INTO t VALUES (8888, 'owner')});
	$c->equal('t', 'the copy goes on');
	# and back
	$clone->stop;
	$m->sql('SELECT crate_sync.adopt()');
	$m->equal('t', 'adopted back');
});

# --- CREATE DATABASE ... TEMPLATE
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	fill($m);
	my $name = "copy_of_$m->{db}";
	my ($ret, $out, $err) = (0, '', '');
	$ret = $node->psql('postgres', "CREATE DATABASE $name TEMPLATE $m->{db}", stdout => \$out, stderr => \$err);
	is($ret, 0, 'CREATE DATABASE ... TEMPLATE') or diag $err;
	$node->safe_psql('postgres', "ALTER DATABASE $name SET crate_sync.target = '$m->{url}'; ALTER DATABASE $name SET search_path = $m->{schema}");
	my %copy = (%$m, db => $name);
	delete $copy{standin};
	my $c = bless \%copy, ref $m;
	$c->sql('SELECT crate_sync.start()');
	ok($c->wait_worker, 'the copy has a worker');
	$c->sql(q{UPDATE t SET v = 'copy'; DELETE FROM t WHERE id > 50});
	ok($c->poll(q{SELECT NOT ok AND message LIKE '%looks like a copy%' FROM crate_sync.status}, 't', 60), 'status says that it looks like a copy');
	$m->sql(q{UPDATE t SET v = 'original' WHERE id < 10});
	$m->equal('t', 'the original goes on');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'copy'}), 0, 'the copy has written nothing');
	$node->safe_psql('postgres', "DROP DATABASE $name WITH (FORCE)");
});

# --- a standby is promoted: what the old primary had pushed and the new one never got leaves the target
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	fill($m);
	$node->backup("standby_$m->{kind}");
	my $standby = $new_node->("standby_$m->{kind}");
	$standby->init_from_backup($node, "standby_$m->{kind}", has_streaming => 1);
	$standby->start;
	$node->wait_for_catchup($standby);
	$standby->append_conf('postgresql.conf', "primary_conninfo = ''\n");
	$standby->restart;
	$m->sql(q{INSERT INTO t VALUES (100001, 'never replicated'); UPDATE t SET v = 'never replicated' WHERE id <= 20});
	$m->equal('t', 'the old primary pushes what its standby does not get');
	$node->stop('immediate');
	$standby->promote;
	my $s = beside($m, $standby);
	ok($s->wait_worker, 'the worker starts after the promotion');
	ok( CrateSync::wait_until('the lost rows leave the target',
			sub { $s->target_value(q{SELECT count(*) FROM {t} WHERE v = 'never replicated'}) == 0 }, 120),
		'what the failover lost leaves the target by itself');
	$s->equal('t', 'after the promotion');
	like($standby->safe_psql($m->{db}, q{SELECT state FROM crate_sync.status}), qr/^ok$/, 'all is well');
	cmp_ok(CrateSync::log_count($standby, 'new timeline'), '>=', 1, 'the log says why');
	$standby->stop;
	$node->start;
});

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('t', 'p');
	$m->sql(q{
		CREATE TABLE t (id int PRIMARY KEY, v text);
		CREATE TABLE p (id int, r int, v text, PRIMARY KEY (r, id)) PARTITION BY LIST (r);
		CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
		INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i;
		INSERT INTO p SELECT i, i % 2, 'v' FROM generate_series(1, 1000) i;
	});
	$m->add(@t);
	$m->equal(\@t, 'load');

	# --- TRUNCATE of a partition
	$m->sql('TRUNCATE p1; INSERT INTO p VALUES (1, 1, \'after\')');
	$m->equal(\@t, 'TRUNCATE of a partition');
	is($m->target_count('p'), 501, 'its rows are gone from the target');

	# --- triggers that were off for a while
	foreach my $how ([ 'DISABLE TRIGGER ALL', 'ENABLE TRIGGER ALL' ], [ 'DISABLE TRIGGER crate_sync_capture', undef ],
		[ 'DISABLE TRIGGER crate_sync_capture', 'ENABLE ALWAYS TRIGGER crate_sync_capture' ])
	{
		my ($off, $on) = @$how;
		$m->sql("BEGIN; ALTER TABLE t $off; UPDATE t SET v = v || 'unseen' WHERE id <= 100; DELETE FROM t WHERE id = (SELECT max(id) FROM t);"
			  . ($on ? "ALTER TABLE t $on;" : '') . ' COMMIT');
		ok( CrateSync::wait_until('resync', sub { ($m->compare(@t))[0] == 0 }, 60),
			"$off" . ($on ? ", $on" : ', left so') . ': found out and resynced');
		ok($m->poll(q{SELECT bool_and(tgenabled = 'A') FROM pg_trigger WHERE tgrelid = 't'::regclass AND NOT tgisinternal}), 'triggers are as they should be');
		$m->sql(q{UPDATE t SET v = 'seen' WHERE id <= 50});
		$m->equal(\@t, 'captured again');
	}
	$m->sql('DROP TRIGGER crate_sync_capture ON t; UPDATE t SET v = $$no trigger$$ WHERE id <= 10');
	ok(CrateSync::wait_until('resync', sub { ($m->compare(@t))[0] == 0 }, 60), 'a dropped trigger is put back, the table resynced');

	# --- VACUUM FULL of the queue and of the source while keys are queued
	$m->sql('SELECT crate_sync.pause()');
	$m->sql(q{UPDATE t SET v = 'held'; UPDATE p SET v = 'held'});
	$m->sql("VACUUM FULL crate_sync.$_") foreach qw(queue_0 queue_1 queue_2 queue_hold);
	$m->sql('VACUUM FULL t; VACUUM FULL p; CLUSTER t USING t_pkey');
	$m->sql('SELECT crate_sync.resume()');
	$m->equal(\@t, 'VACUUM FULL of queue and source');

	# --- FOR ALL TABLES publication
	$m->sql('CREATE PUBLICATION everything FOR ALL TABLES');
	$m->sql(q{UPDATE t SET v = 'published'; DELETE FROM p WHERE id < 20});
	$m->equal(\@t, 'FOR ALL TABLES publication');
	$m->sql('DROP PUBLICATION everything');

	# --- an open prepared transaction, and a session idle in transaction
	$m->sql(q{BEGIN; UPDATE t SET v = 'prepared' WHERE id = 1; PREPARE TRANSACTION 'open'});
	my $idle = $m->background("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; SELECT pg_sleep(4); COMMIT;");
	sleep 0.5;
	$m->sql(q{UPDATE t SET v = 'meanwhile' WHERE id BETWEEN 2 AND 900});
	$m->equal(\@t, 'beside an open prepared transaction and an idle session');
	ok($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'prepared'}) == 0, 'what is not committed is not there');
	$node->stop('immediate');
	$node->start;
	$m->sql(q{COMMIT PREPARED 'open'});
	$m->equal(\@t, 'COMMIT PREPARED after a crash');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'prepared'}), 1, 'it has arrived');
	$idle->done;

	# --- limits and output settings set low, or odd, for everybody
	$node->safe_psql('postgres', q{ALTER ROLE ALL SET lock_timeout = '1ms'; ALTER ROLE ALL SET statement_timeout = '5ms';
		ALTER ROLE ALL SET idle_in_transaction_session_timeout = '5ms'; ALTER ROLE ALL SET DateStyle = 'German';
		ALTER ROLE ALL SET TimeZone = 'Asia/Kathmandu'; ALTER ROLE ALL SET extra_float_digits = -15;
		ALTER ROLE ALL SET default_transaction_read_only = on; ALTER ROLE ALL SET row_security = off});
	{
		# not for us
		local $ENV{PGOPTIONS} = '-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off';
		$m->kill_worker('TERM');
		$m->sql("CREATE TABLE f (id int PRIMARY KEY, x float8, at timestamptz); INSERT INTO f SELECT i, 1.0 / i, '2024-02-03 04:05:06.789+00'::timestamptz + i * interval '1 ms' FROM generate_series(1, 3000) i;"
			  . "SELECT crate_sync.add_table('f')");
		ok($m->wait_sync, 'a worker that starts with them');
		$node->safe_psql('postgres', 'ALTER ROLE ALL RESET ALL');
	}
	$m->equal([ @t, 'f' ], 'low limits and odd output settings of all roles');

	# --- DROP TABLE
	$m->sql(q{UPDATE f SET x = 0; DROP TABLE f});
	ok($m->poll(q{SELECT count(*) = 2 FROM crate_sync.tables}), 'a dropped table is no longer mirrored');
	ok($m->poll(q{SELECT ok FROM crate_sync.status}), 'and all is well');
	$m->sql(q{UPDATE t SET v = 'others'});
	$m->equal(\@t, 'the others go on');

	# --- kill -9 of a backend and of the postmaster, asynchronous commits
	$m->sql(q{SET synchronous_commit = off; UPDATE t SET v = 'async ' || id});
	my $victim = $m->background('SELECT pg_sleep(100);');
	$m->poll(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)%' AND state = 'active' AND pid <> pg_backend_pid()});
	kill 'KILL', $m->sql(q{SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_sleep(100)%' AND pid <> pg_backend_pid() LIMIT 1});
	$victim->done;
	CrateSync::poll($node, 'postgres', 'SELECT true');
	$m->equal(\@t, 'kill -9 of a backend');
	$m->sql(q{SET synchronous_commit = off; UPDATE t SET v = 'async again ' || id});
	my @children = split /\n/, $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
	$node->kill9;
	# they hold its shared memory until they have noticed
	CrateSync::wait_until('its children are gone', sub { !grep { kill 0, $_ } @children });
	$node->start;
	$m->equal(\@t, 'kill -9 of the postmaster after asynchronous commits');
});

# --- rows that cannot be read: a filter that divides by zero
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE z (id int PRIMARY KEY, d int, v text); INSERT INTO z SELECT i, i - 500, 'v' FROM generate_series(1, 3000) i;
		CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)});
	$m->sql(q{SELECT crate_sync.add_table('z', row_filter => '1000000 / d <> 77')});
	$m->add('other');
	$m->wait_sync('other');
	ok($m->poll(q{SELECT n_failed_rows = 1 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'z'}), 'the one row that its filter cannot take is parked');
	is($m->sql(q{SELECT key->>'id' || ' ' || action || ' ' || error_message FROM crate_sync.failed_rows}), '500 read division by zero', 'with the reason');
	is($m->target_count('z'), 2999, 'its neighbours are there');
	$m->sql('UPDATE z SET d = 1 WHERE d = 0');
	$m->equal([ 'z', 'other' ], 'mended');
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, 'it has left failed_rows');
	$m->sql('UPDATE z SET d = 0');
	ok($m->poll(q{SELECT n_failed_rows > 0 FROM crate_sync.tables WHERE relname = 'z'}), 'all rows bad');
	$m->sql('INSERT INTO other SELECT generate_series(2, 100)');
	ok($m->wait_sync('other'), 'another table goes on');
	is($m->target_count('other'), 100, 'and arrives');
	isnt($m->status('ok'), 't', 'status says that something is wrong');
	$m->sql(q{UPDATE z SET d = 3; SELECT crate_sync.retry_failed()});
	ok($m->poll(q{SELECT n_failed_rows = 0 AND state = 'ready' AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 'z'}), 'mended, it comes back by itself');
	$m->equal([ 'z', 'other' ], 'all rows mended');
});

# --- a filter that does not end on one row: that row is parked, and other tables do not wait for it for long
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(<<'EOQ');
CREATE FUNCTION endless(i int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS
	$$ BEGIN IF i = 500 THEN PERFORM pg_sleep(100000); END IF; RETURN true; END $$;
CREATE TABLE e (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY, v text);
INSERT INTO e SELECT i, 'x' FROM generate_series(1, 1000) i;
EOQ
	$m->add('other');
	$m->sql(q{SELECT crate_sync.add_table('e', row_filter => 'endless(id)')});
	ok($m->poll(q{SELECT n_failed_rows = 1 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'e'}), 'the one row is parked');
	is($m->sql(q{SELECT key->>'id' || ' ' || action FROM crate_sync.failed_rows}), '500 read', 'the right one');
	is($m->target_count('e'), 999, 'its neighbours are there');
	$m->sql(q{INSERT INTO other VALUES (1, 'a'); UPDATE e SET v = 'y' WHERE id IN (499, 500, 501)});
	ok($m->wait_sync('other'), 'another table goes on');
	ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.tables WHERE relname = 'e'}), 'nothing stays in the queue');
	is($m->target_value(q{SELECT count(*) FROM {e} WHERE v = 'y'}), 2, 'its neighbours once more');
	$m->sql('DELETE FROM e WHERE id = 500');
	ok($m->poll('SELECT ok FROM crate_sync.status'), 'gone, all is well');
}, only => 'sqlite', why => 'a filter that does not end is the reader\'s, which knows no target');

# --- pg_dump and restore: the tables come with their mirrors, as a copy that waits to be adopted
{
	my $m = CrateSync::Mirror->new($node, 'sqlite');
	fill($m);
	my $dump = $node->basedir . '/dump.sql';
	$node->command_ok([ 'pg_dump', '-d', $node->connstr($m->db), '-f', $dump ], 'pg_dump');
	$node->safe_psql('postgres', "CREATE DATABASE restored TEMPLATE template0; ALTER DATABASE restored SET search_path = $m->{schema}, public;"
		. "ALTER DATABASE restored SET crate_sync.target = '$m->{url}'");
	$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('restored'), '-f', $dump ], 'restore');
	my %copy = (%$m, db => 'restored');
	my $c = bless \%copy, ref $m;
	is($c->sql('SELECT count(*) FROM crate_sync.tables'), 1, 'its mirror is there');
	is($c->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%' AND tgenabled = 'A'}), 2, 'with its triggers');
	ok($c->poll(q{SELECT NOT ok AND message LIKE '%copy%' FROM crate_sync.status}, 't', 60), 'it is a copy and says so');
	$m->equal('t', 'the original is not disturbed');
	$m->sql('SELECT crate_sync.stop()');
	$c->sql(q{UPDATE t SET v = 'restored' WHERE id < 100; SELECT crate_sync.adopt()});
	$c->equal('t', 'adopted');
	$node->safe_psql('postgres', 'DROP DATABASE restored WITH (FORCE)');
	$m->finish;
}

$node->stop;

# --- no worker slot is left
{
	my $tight = CrateSync::server('tight_pg', conf => "max_worker_processes = 2\n");
	my @m = map { CrateSync::Mirror->new($tight, 'sqlite') } 1 .. 3;
	ok( CrateSync::wait_until('a hint', sub { grep { $_->status('hint') =~ /max_worker_processes/ } @m }, 60),
		'status says that max_worker_processes is too small');
	$_->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)') foreach @m;
	$_->add('t') foreach @m;
	pass('writing goes on');
	$tight->append_conf('postgresql.conf', "max_worker_processes = 20\n");
	$tight->restart;
	$_->equal('t', 'with more slots') foreach @m;
	$tight->stop;
}

done_testing();
