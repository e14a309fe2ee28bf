# Code of a table's owner that loops, sleeps, catches cancels or allocates: it costs
# its own table, for a bounded time, and nobody else.

use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/../lib";
use CrateSync;
use Test::More;

# all limits follow the first one: here they are a sixteenth of what they are elsewhere
my $node = CrateSync::server('user_code', conf => <<'EOC');
crate_sync.debug_read_limit = '250ms'
crate_sync.max_retry_interval = '1s'
crate_sync.interval = '100ms'
EOC
$node->safe_psql('postgres', 'CREATE ROLE shop LOGIN');

my $n = 0;

# a mirror in which shop may have tables of its own, beside another owner's
sub let_in
{
	my ($m) = @_;
	$m->sql(qq{GRANT USAGE, CREATE ON SCHEMA $m->{schema} TO shop; GRANT USAGE ON SCHEMA crate_sync TO shop;
		GRANT EXECUTE ON FUNCTION crate_sync.add_table, crate_sync.remove_table, crate_sync.resync, crate_sync.verify TO shop;
		CREATE TABLE other (id int PRIMARY KEY)});
	$m->add('other');
}

sub as_shop
{
	my ($m, $sql) = @_;
	return $m->sql("SET SESSION AUTHORIZATION shop; $sql");
}

# another owner's row arrives, and that before the table of the bad code is through
sub others_go_on
{
	my ($m, $table, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$n++;
	$m->sql("INSERT INTO other VALUES ($n)");
	ok(CrateSync::wait_until("row $n of other", sub { $m->target_value("SELECT count(*) FROM {other} WHERE id = $n") }), "$what: another table's row arrives");
	is($m->sql("SELECT queued_keys > 0 OR state IN ('loading', 'sweeping', 'verifying', 'error') FROM crate_sync.tables WHERE relname = '$table'"), 't',
		'... and this one is not through');
}

# status names the table, and says what to do; another table goes on meanwhile
sub blamed
{
	my ($m, $table, $what, $error) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($m->poll("SELECT state = 'error' AND last_error ~ '$error' AND hint ~ 'remove_table' FROM crate_sync.tables WHERE relname = '$table'"), "$what: the table says so");
	others_go_on($m, $table, $what);
	# while it goes well for a moment the message is gone
	ok($m->poll("SELECT NOT ok AND state = 'table error' AND message ~ '$table' FROM crate_sync.status"), "$what: so does status");
	others_go_on($m, $table, $what);
}

# what f(v) does for the row 'stop'
my %bad = (
	'a loop'                         => 'LOOP NULL; END LOOP;',
	'a loop that catches cancels'    => 'LOOP BEGIN LOOP NULL; END LOOP; EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;',
	'a sleep'                        => 'PERFORM pg_sleep(100000);',
	'a sleep that catches cancels'   => 'LOOP BEGIN PERFORM pg_sleep(100000); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP;',
	'a cancel that becomes an error' => q{BEGIN PERFORM pg_sleep(100000); EXCEPTION WHEN query_canceled THEN RAISE EXCEPTION 'mine' USING ERRCODE = '55000'; END;},
	'no limits of its own'           => q{PERFORM set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false), pg_sleep(100000);},
	'a lock that is not to be had'   => q{PERFORM set_config('lock_timeout', '0', false), pg_advisory_lock(4711);},
	'rows that take five times the limit' => 'PERFORM pg_sleep(1.25);',
);

sub function
{
	my ($body) = @_;
	return "CREATE OR REPLACE FUNCTION f(v text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS \$f\$ BEGIN
		IF v = 'stop' AND current_setting('application_name') = 'crate_sync' THEN $body END IF; RETURN true; END \$f\$;";
}

my $mended = function('NULL;');

# --- row filters of all kinds: while one row or all rows are so, and until the function is mended
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	my $holder = $m->background("SELECT pg_advisory_lock(4711); SELECT pg_sleep(1000)");
	foreach my $what (sort keys %bad)
	{
		as_shop($m, function($bad{$what}) . q{CREATE TABLE bad (id int PRIMARY KEY, v text); INSERT INTO bad SELECT i, 'fine' FROM generate_series(1, 300) i;
			SELECT crate_sync.add_table('bad', row_filter => 'f(v)')});
		$m->equal([ 'bad', 'other' ], "$what: loaded");
		my $pid = $m->worker_pid;
		as_shop($m, q{UPDATE bad SET v = 'stop' WHERE id % 10 = 7});
		my $swallows = $bad{$what} =~ /LOOP BEGIN/;
		blamed($m, 'bad', $what, $swallows ? 'does not end, and cannot be cancelled' : 'cancelled after');
		is($pid eq $m->worker_pid ? 'same' : 'another', $swallows ? 'another' : 'same', "$what: the worker " . ($swallows ? 'is another one' : 'stays'));
		as_shop($m, $mended);
		$m->sql(q{SELECT crate_sync.retry_failed()});
		$m->equal([ 'bad', 'other' ], "$what: mended");
		ok($m->poll('SELECT ok FROM crate_sync.status'), "$what: all is well");
		as_shop($m, q{SELECT crate_sync.remove_table('bad', drop_target => true); DROP TABLE bad});
	}
	is($m->sql('SELECT unclean_starts FROM crate_sync.worker_state'), 0, 'no start was in vain');
	$holder->{h}->kill_kill;
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

# --- code that is no filter: a domain in the key while a sweep and a verify read keys back, a cast, an
# operator, and what the planner evaluates of an index
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	foreach my $body ($bad{'a sleep'}, $bad{'a loop that catches cancels'})
	{
		my $what = $body =~ /EXCEPTION/ ? 'swallows' : 'sleeps';
		my $error = $body =~ /EXCEPTION/ ? 'does not end, and cannot be cancelled' : 'cancelled after';
		as_shop($m, function('NULL;') . q{
			CREATE DOMAIN d AS text CHECK (f(VALUE)); CREATE TYPE kt AS (a d, b int);
			CREATE TABLE keyed (id kt PRIMARY KEY, v text);
			INSERT INTO keyed SELECT ROW(CASE i WHEN 7 THEN 'stop' ELSE 'k' || i END, 1)::kt, 'v' FROM generate_series(1, 20) i;
			SELECT crate_sync.add_table('keyed')});
		$m->equal([ 'keyed', 'other' ], "a domain that $what: loaded");
		as_shop($m, function($body) . q{SELECT crate_sync.resync('keyed')});
		blamed($m, 'keyed', "a domain that $what, in a sweep", $error);
		is($m->target_count('keyed'), 20, '... and no row is taken for one that is gone');
		as_shop($m, $mended);
		$m->sql('SELECT crate_sync.retry_failed()');
		$m->equal([ 'keyed', 'other' ], '... mended');
		# an error instead is no proof either
		as_shop($m, function(q{RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation';}) . q{SELECT crate_sync.resync('keyed')});
		ok($m->poll(q{SELECT n_failed_rows = 1 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'keyed'}), 'a domain that refuses a key of the target: it is parked');
		is($m->target_count('keyed'), 20, '... and not deleted');
		as_shop($m, function('RETURN false;') . q{SELECT crate_sync.verify('keyed', true)});
		ok($m->poll(q{SELECT NOT last_verify_ok FROM crate_sync.tables WHERE relname = 'keyed'}), '... nor is it by a verify that repairs');
		is($m->target_count('keyed'), 20, '... the row is there');
		as_shop($m, $mended);
		$m->sql('SELECT crate_sync.retry_failed()');
		$m->equal([ 'keyed', 'other' ], '... mended');
		as_shop($m, q{SELECT crate_sync.remove_table('keyed', drop_target => true); DROP TABLE keyed; DROP TYPE kt; DROP DOMAIN d});
	}

	as_shop($m, function($bad{'a loop that catches cancels'}) . qq{
		CREATE FUNCTION same(a text, b text) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $m->{schema}.f(a) AND a = b';
		CREATE OPERATOR ~==~ (FUNCTION = same, LEFTARG = text, RIGHTARG = text);
		CREATE TYPE e AS ENUM ('go', 'stop');
		CREATE FUNCTION to_number(e) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT CASE WHEN $m->{schema}.f(\$1::text) THEN 1 ELSE 0 END';
		CREATE CAST (e AS int) WITH FUNCTION to_number(e);
		CREATE FUNCTION constant(text) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT CASE WHEN $m->{schema}.f(\$1) THEN 1 ELSE 0 END';
		CREATE TABLE operated (id int PRIMARY KEY, v text); CREATE TABLE casted (id int PRIMARY KEY, v e); CREATE TABLE indexed (id int PRIMARY KEY, v text);
		INSERT INTO operated SELECT i, 'fine' FROM generate_series(1, 20) i; INSERT INTO casted SELECT i, 'go' FROM generate_series(1, 20) i;
		INSERT INTO indexed SELECT i, 'fine' FROM generate_series(1, 20) i;
		CREATE INDEX ON indexed ((id + constant('stop')));
		SELECT crate_sync.add_table('operated', row_filter => 'v ~==~ v')});
	$m->equal([ 'operated', 'other' ], 'loaded with an operator');
	as_shop($m, q{UPDATE operated SET v = 'stop' WHERE id = 3});
	blamed($m, 'operated', 'an operator', 'does not end');
	as_shop($m, q{SELECT crate_sync.remove_table('operated')});
	as_shop($m, q{SELECT crate_sync.add_table('casted', row_filter => 'v::int = 1')});
	$m->equal([ 'casted', 'other' ], 'loaded with a cast');
	as_shop($m, q{UPDATE casted SET v = 'stop' WHERE id = 3});
	blamed($m, 'casted', 'a cast', 'does not end');
	as_shop($m, q{SELECT crate_sync.remove_table('casted'), crate_sync.add_table('indexed')});
	blamed($m, 'indexed', 'an expression of an index', 'does not end');
	as_shop($m, $mended);
	$m->equal([ 'indexed', 'other' ], 'mended');
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

# --- whoever it is that ends: the server in the middle of it, the worker by hand
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	as_shop($m, function($bad{'a sleep that catches cancels'}) . q{CREATE TABLE bad (id int PRIMARY KEY, v text); INSERT INTO bad SELECT i, 'fine' FROM generate_series(1, 300) i;
		SELECT crate_sync.add_table('bad', row_filter => 'f(v)')});
	$m->equal([ 'bad', 'other' ], 'loaded');
	# long enough for everything below to happen within one read
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '10s'; SELECT pg_reload_conf()});
	ok($m->poll(q{SELECT wait_event IS DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = (SELECT pid FROM crate_sync.status)}), 'the worker is idle');
	my $asleep = q{SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'crate_sync worker' AND datname = current_database() AND wait_event = 'PgSleep'};

	as_shop($m, q{UPDATE bad SET v = 'stop' WHERE id = 7});
	ok($m->poll($asleep), 'a read that hangs');
	my $pid = $m->worker_pid;
	is($m->sql("SELECT pg_terminate_backend($pid)"), 't', 'terminated by hand');
	ok($m->poll("SELECT pid <> $pid FROM crate_sync.status"), '... it ends, and another one starts');
	ok($m->poll($asleep), '... which hangs as well, as a read that was that short is nobody\'s fault');

	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
	$node->restart;
	blamed($m, 'bad', 'after a restart', 'does not end');

	# who was at it when the server was killed
	as_shop($m, $mended);
	$m->equal([ 'bad', 'other' ], 'mended');
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '10s'; SELECT pg_reload_conf()});
	as_shop($m, function('PERFORM pg_sleep(100000);'));
	ok($m->poll($asleep), 'it hangs');
	$m->kill_worker;
	blamed($m, 'bad', 'after a crash', 'went down');
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
	$node->restart;
	blamed($m, 'bad', 'after a crash and a restart', 'went down');
	as_shop($m, $mended);
	$m->equal([ 'bad', 'other' ], 'mended');
	cmp_ok($m->sql('SELECT unclean_starts FROM crate_sync.worker_state'), '<=', 1, 'no start was in vain for all');

	# who was at it by chance is read again at once
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '10s'; SELECT pg_reload_conf()});
	as_shop($m, q{SELECT crate_sync.remove_table('bad')});
	as_shop($m, function($bad{'a lock that is not to be had'}) . q{CREATE TABLE unlucky (id int PRIMARY KEY, v text); INSERT INTO unlucky VALUES (1, 'fine');
		SELECT crate_sync.add_table('unlucky', row_filter => 'f(v)')});
	foreach my $n (1 .. 2)
	{
		my $holder = $m->background("SELECT pg_advisory_lock(4711); SELECT pg_sleep(1000)");
		ok($m->poll("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"), 'a lock is held');
		as_shop($m, q{UPDATE unlucky SET v = 'stop'});
		ok($m->poll("SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted"), 'a read waits for it');
		$m->kill_worker;
		$holder->done;
		$m->equal([ 'unlucky', 'other' ], "read again after a crash ($n)");
	}
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
});

# --- an owner of many such tables, or of ever new ones: of each, the first read is not free
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	my $tables = 12;
	my $ends = sub { CrateSync::log_count($node, qr/could not be cancelled: the worker ends/, $_[0]) };
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '1s'; SELECT pg_reload_conf()});
	as_shop($m, $mended . qq{DO \$\$ BEGIN FOR i IN 1 .. $tables LOOP EXECUTE format('CREATE TABLE bad%s (id int PRIMARY KEY, v text); INSERT INTO bad%s VALUES (1, ''fine'')', i, i);
		PERFORM crate_sync.add_table(('bad' || i)::regclass, row_filter => 'f(v)'); END LOOP; END \$\$});
	$m->equal([ 'bad1', "bad$tables", 'other' ], 'many tables: loaded');

	my $log = CrateSync::log_size($node);
	as_shop($m, function($bad{'a sleep that catches cancels'}) . qq{DO \$\$ BEGIN FOR i IN 1 .. $tables LOOP EXECUTE format('UPDATE bad%s SET v = ''stop''', i); END LOOP; END \$\$});
	ok(CrateSync::wait_until('a worker ends', sub { $ends->($log) > 0 }), 'many tables: a read ends the worker');
	foreach my $i (1 .. 3)
	{
		my $before = CrateSync::log_size($node);
		others_go_on($m, "bad$tables", 'many tables');
		cmp_ok($ends->($before), '<=', 2, '... and no more than two reads came before it');
	}
	ok($m->poll(q{SELECT count(*) > 0 FROM crate_sync.tables WHERE relname LIKE 'bad%' AND last_error ~ 'code of its owner is not run' AND hint ~ 'crate_sync.tables' AND state = 'error'}),
		'those that wait for the others say so');
	ok($m->poll(q{SELECT NOT ok AND message ~ 'bad' FROM crate_sync.status}), '... and so does status');
	cmp_ok(CrateSync::log_count($node, qr/table \S+bad1 is stopped/, $log), '<=', 2, 'the log says it of a table once, not at each start');
	as_shop($m, $mended);
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
	$m->equal([ (map { "bad$_" } 1 .. $tables), 'other' ], 'many tables: mended');
	ok($m->poll('SELECT ok FROM crate_sync.status'), '... all is well');

	# tables that nobody knows yet
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '2s'; SELECT pg_reload_conf()});
	as_shop($m, function($bad{'a sleep that catches cancels'}));
	$log = CrateSync::log_size($node);
	foreach my $i (1 .. 10)
	{
		as_shop($m, qq{DROP TABLE IF EXISTS new@{[ $i - 1 ]}; CREATE TABLE new$i (id int PRIMARY KEY, v text); INSERT INTO new$i VALUES (1, 'stop');
			SELECT crate_sync.add_table('new$i', row_filter => 'f(v)')});
		$m->sql("INSERT INTO other VALUES (1000 + $i)");
		ok(CrateSync::wait_until("row $i", sub { $m->target_value("SELECT count(*) FROM {other} WHERE id = 1000 + $i") }), "a new table, and another one, $i: a row of others arrives");
	}
	cmp_ok($ends->($log), '<=', 5, 'not each new table ended the worker');
	as_shop($m, $mended);
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
	$m->equal([ 'new10', 'other' ], 'new tables: mended');
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

# --- many tables whose rows take long, but not too long: others' rows do not wait for all of them
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	my $tables = 6;
	my $each = sub { my ($what) = @_; return "DO \$\$ BEGIN FOR i IN 1 .. $tables LOOP EXECUTE format('$what', i, i, i); END LOOP; END \$\$;" };
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '4s'; SELECT pg_reload_conf()});
	as_shop($m, $mended . $each->(q{CREATE TABLE slow%s (id int PRIMARY KEY, v text); INSERT INTO slow%s VALUES (1, ''fine''); SELECT crate_sync.add_table(''slow%s'', row_filter => ''f(v)'')}));
	$m->equal([ 'slow1', "slow$tables", 'other' ], 'slow tables: loaded');
	as_shop($m, function('PERFORM pg_sleep(1.5);') . $each->(q{UPDATE slow%s SET v = ''stop''}));
	ok($m->poll(q{SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = (SELECT pid FROM crate_sync.status)}), 'one of them is read');
	$m->sql('INSERT INTO other VALUES (2000000)');
	ok(CrateSync::wait_until('a row', sub { $m->target_value('SELECT count(*) FROM {other} WHERE id = 2000000') }), 'another owner\'s row arrives');
	my $through = 0;
	$through += $m->target_value("SELECT count(*) FROM {slow$_} WHERE v = 'stop'") foreach 1 .. $tables;
	cmp_ok($through, '<=', 2, '... when most of them are still to be read');
	$m->equal([ (map { "slow$_" } 1 .. $tables), 'other' ], '... which all are in the end');
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

# --- memory, and what such code would leave behind
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	# 4 GB, if nobody says no
	as_shop($m, qq{SET search_path = $m->{schema}; } . q{CREATE FUNCTION eats(n int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql SET search_path FROM CURRENT AS $$ DECLARE v text := repeat('x', 100000000);
			BEGIN RETURN n = 0 OR length(v) > 0 AND eats(n - 1); END $$;
		CREATE FUNCTION hungry(v text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
			BEGIN RETURN CASE WHEN v = 'stop' AND current_setting('application_name') = 'crate_sync' THEN eats(10 * length(v)) ELSE true END; END $$});
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '20s'; SELECT pg_reload_conf()});
	as_shop($m, q{CREATE TABLE bad (id int PRIMARY KEY, v text); INSERT INTO bad SELECT i, CASE i WHEN 77 THEN 'stop' ELSE 'fine' END FROM generate_series(1, 300) i;
		SELECT crate_sync.add_table('bad', row_filter => 'hungry(v)')});
	ok($m->poll(q{SELECT n_failed_rows = 1 AND state = 'ready' FROM crate_sync.tables WHERE relname = 'bad'}), 'a row that takes too much memory is parked');
	is($m->sql(q{SELECT key->>'id' || ' ' || error_code FROM crate_sync.failed_rows}), '77 53200', 'it alone, and with the reason');
	is($m->target_count('bad'), 299, 'its neighbours are there');
	$m->sql('INSERT INTO other VALUES (1000000)');
	ok($m->wait_sync('other'), 'another table goes on');
	as_shop($m, q{UPDATE bad SET v = repeat('long', 20000000) WHERE id = 77});
	$m->equal([ 'bad', 'other' ], 'a long row is not too much');
	as_shop($m, q{SELECT crate_sync.remove_table('bad', drop_target => true); DROP TABLE bad});
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_read_limit = '250ms'; SELECT pg_reload_conf()});

	my $log = CrateSync::log_size($node);
	as_shop($m, function(q{
			PERFORM pg_advisory_lock(4712), set_config('search_path', 'public', false), set_config('row_security', 'on', false), set_config('work_mem', '64', false);
			FOR i IN 1 .. 1000 LOOP RAISE WARNING 'flood'; RAISE LOG 'flood'; END LOOP;}) . q{
		CREATE TABLE bad (id int PRIMARY KEY, v text); INSERT INTO bad VALUES (1, 'stop');
		SELECT crate_sync.add_table('bad', row_filter => 'f(v)')});
	$m->equal([ 'bad', 'other' ], 'a filter that leaves things behind');
	ok($m->poll(q{SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = (SELECT pid FROM crate_sync.status)}), 'no lock of it is left');
	is(CrateSync::log_count($node, qr/(?:WARNING|LOG):  flood/, $log), 0, '... nor has it written into the log');

	as_shop($m, 'CREATE TABLE notes (a int); CREATE SEQUENCE numbers');
	foreach my $write ('INSERT INTO notes VALUES (1)', q{SELECT nextval('numbers')}, 'CREATE TEMP TABLE mine (a int)', 'PREPARE p AS SELECT 1',
		'SET TRANSACTION READ WRITE', 'SET session_replication_role = replica', 'DECLARE c CURSOR WITH HOLD FOR SELECT 1')
	{
		as_shop($m, qq{CREATE OR REPLACE FUNCTION writes() RETURNS void VOLATILE LANGUAGE plpgsql AS \$w\$ BEGIN EXECUTE \$x\$$write\$x\$; END \$w\$;
			UPDATE bad SET v = 'fine'} . ';' . function("PERFORM $m->{schema}.writes();"));
		ok($m->wait_sync('bad'), 'the row is fine again');
		as_shop($m, q{UPDATE bad SET v = 'stop'});
		ok($m->poll(q{SELECT state = 'error' OR n_failed_rows = 1 FROM crate_sync.tables WHERE relname = 'bad'}), "not to be done in the worker: $write");
	}
	is($m->sql('SELECT count(*) FROM notes'), 0, 'nothing was written');
	as_shop($m, $mended);
	$m->sql('SELECT crate_sync.retry_failed()');
	$m->equal([ 'bad', 'other' ], 'mended');
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

# --- where no code of users is, a read that takes long is nobody's fault
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	let_in($m);
	$node->safe_psql('postgres', q{ALTER SYSTEM SET crate_sync.debug_points = on; SELECT pg_reload_conf()});
	$m->sql('CREATE TABLE plain (id int PRIMARY KEY, v text)');
	$m->add('plain');
	$m->equal('plain', 'loaded');
	my $stall = $m->background(q{SELECT pg_advisory_lock(28531, hashtext('in limits')); SELECT pg_sleep(1000)});
	ok($m->poll(q{SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = 28531 AND granted}), 'every read stalls');
	$m->sql(q{INSERT INTO plain SELECT i, 'x' FROM generate_series(1, 1000) i});
	ok($m->poll(q{SELECT state = 'error' AND last_error ~ 'cancelled after' AND hint !~ 'remove_table' FROM crate_sync.tables WHERE relname = 'plain'}), 'status says so');
	ok(CrateSync::wait_until('it is stopped', sub { CrateSync::log_count($node, qr/table \S+plain is stopped/) }), 'the table is stopped after a while');
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, '... and no row is parked');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 28531 AND granted AND pid <> (SELECT pid FROM crate_sync.status)});
	$stall->done;
	$m->equal('plain', 'when it stalls no more');
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, '... no row was parked');
	$node->safe_psql('postgres', q{ALTER SYSTEM RESET crate_sync.debug_points; ALTER SYSTEM SET crate_sync.debug_read_limit = '20s'; SELECT pg_reload_conf()});
	# neither is somebody's pg_cancel_backend
	my $pid = $m->worker_pid;
	foreach my $i (1 .. 20)
	{
		$m->sql("UPDATE plain SET v = '$i'; SELECT pg_cancel_backend($pid)");
	}
	$m->equal('plain', 'cancelled by hand');
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, '... none is parked');
}, only => 'sqlite', why => 'it is the reader\'s, which knows no target');

$node->stop;
done_testing();
