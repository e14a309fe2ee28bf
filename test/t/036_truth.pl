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

# --- what verify found

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(<<'EOQ');
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
CREATE TABLE "o'dd" (id int PRIMARY KEY); INSERT INTO "o'dd" VALUES (1);
EOQ
	$m->sql(q{SELECT crate_sync.add_table('t'); SELECT crate_sync.add_table('"o''dd"', 'odd')});
	ok($m->wait_sync, 'in sync');
	is($m->status('ok, n_differences'), 't|0', 'nothing is known to differ');
	is($m->sql(q{SELECT n_differences IS NULL FROM crate_sync.tables WHERE relname = 't'}), 't', 'nothing was looked for either');
	$m->target_change(q{DELETE FROM {t} WHERE id = 1});
	$m->target_change(q{UPDATE {t} SET v = 'other' WHERE id = 2});
	$m->target_change(q{INSERT INTO {t} (id, v) VALUES (1000, 'extra')});
	ok(verify($m, 't'), 'verify');
	is($m->status('ok, state, n_tables_not_ok, n_differences'), 'f|differences|1|3', 'status is not ok while verify has found differences');
	like($m->status('message'), qr/^\S+\.t had 3 difference\(s\)/, 'it says of which table');
	is($m->sql(q{SELECT state, n_differences, last_verify_ok FROM crate_sync.tables WHERE relname = 't'}), 'differences|3|f', 'so does tables');
	$m->kill_worker('TERM');
	$m->wait_worker;
	$m->poll(q{SELECT state <> 'starting' FROM crate_sync.status});
	is($m->status('state'), 'differences', 'a new worker has not forgotten it');
	# a resync that does not remove leaves it, as does one of other rows
	$m->sql(q{SELECT crate_sync.resync('t', 'upsert', 'id > 50')});
	ok($m->poll(q{SELECT resync_done = resync_no AND load_phase IS NULL FROM crate_sync.mirror JOIN crate_sync.mirror_state USING (mirror_id) WHERE mirror.relid = 't'::regclass}), 'a resync of some rows');
	is($m->status('state'), 'differences', 'does not mend it');
	# the hint's statement, as it stands there
	my ($statement) = $m->status('hint') =~ /(SELECT .*;)/;
	like($statement, qr/verify\('\S+\.t', repair => true\)/, 'what to do');
	is($m->sql($statement), 1, 'it can be pasted');
	ok($m->poll(q{SELECT state = 'ok' FROM crate_sync.status}), 'repaired: ok') or $m->tell_why;
	is($m->sql(q{SELECT last_verify_ok, n_differences FROM crate_sync.tables WHERE relname = 't'}), 't|0', 'none is left');
	is($m->sql(q{SELECT string_agg(key ->> 'id' || ' ' || kind || ' ' || repaired, ', ' ORDER BY (key ->> 'id')::int) FROM crate_sync.differences}),
		'1 missing true, 2 different true, 1000 extra true', 'what was found is told, and that it was repaired');
	$m->equal('t', 'repaired');

	# what cannot be repaired is told from what was
	if ($m->kind eq 'sqlite')
	{
		$m->target_change(q{CREATE TRIGGER keep BEFORE DELETE ON {t} WHEN old.id = 2000 BEGIN SELECT raise(ignore); END});
		$m->target_change(q{INSERT INTO {t} (id, v) VALUES (2000, 'stays')});
		$m->target_change(q{DELETE FROM {t} WHERE id = 3});
		ok(verify($m, 't', 1), 'verify with repair');
		is($m->sql(q{SELECT string_agg(key ->> 'id' || ' ' || repaired, ', ' ORDER BY (key ->> 'id')::int) FROM crate_sync.differences}), '3 true, 2000 false', 'one was repaired, one was not');
		is($m->sql('SELECT state, n_differences FROM crate_sync.status'), 'differences|1', 'status counts that one');
		$m->target_change(q{DROP TRIGGER keep});
		$m->sql(q{SELECT crate_sync.retry_failed()});
	}
	else
	{
		$m->target_change(q{DELETE FROM {t} WHERE id = 3});
		ok(verify($m, 't'), 'verify');
		is($m->status('state'), 'differences', 'found');
	}
	# a full load goes over all of it
	$m->sql(q{SELECT crate_sync.resync('t')});
	$m->equal('t', 'resynced');
	is($m->sql('SELECT state, n_differences FROM crate_sync.status'), 'ok|0', 'a full resync mends it');
	is($m->sql(q{SELECT count(*) FROM crate_sync.differences WHERE NOT repaired}), 0, 'nothing is called unrepaired');
	# a hint for a name that wants quotes
	$m->target_change(q{DELETE FROM {odd}});
	ok(verify($m, q{"o''dd"}), 'verify of another');
	($statement) = $m->status('hint') =~ /(SELECT .*;)/;
	is($m->sql($statement), 1, 'its hint can be pasted');
	ok($m->poll(q{SELECT state = 'ok' FROM crate_sync.status}), 'and helps');
});

# --- a name that another table has

# the statements of a hint, each in quotes as they are to be pasted
sub statements
{
	my ($m) = @_;
	return $m->status('hint') =~ /(SELECT [^;]*;)/g;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	$m->sql(<<'EOQ');
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old');
CREATE TABLE "we'ird T" (id int PRIMARY KEY, v text); INSERT INTO "we'ird T" VALUES (1, 'old');
CREATE ROLE looker; GRANT pg_monitor TO looker;
EOQ
	$m->sql(q{SELECT crate_sync.add_table('t'); SELECT crate_sync.add_table('"we''ird T"', 'weird')});
	ok($m->wait_sync, 'in sync');
	$m->sql('ALTER TABLE t RENAME TO t_1; ALTER TABLE t_1 RENAME TO t_2');
	ok($m->wait_sync, 'renamed');
	is($m->status('state'), 'ok', 'a name that nobody else has is no trouble');
	# the swap that everybody does
	$m->sql(q{CREATE TABLE t (LIKE t_2 INCLUDING ALL); INSERT INTO t VALUES (1, 'new'), (2, 'new')});
	is($m->status('ok, state'), 'f|renamed', 'another table has the name that a mirrored one was added by');
	is($m->status('message'), "$s.t is called $s.t_2 now, and another table, which is not mirrored, has its name", 'the message names both');
	is($m->status('hint'), "Either SELECT crate_sync.follow_name('$s.t'); or SELECT crate_sync.keep_table('$s.t_2');", 'the hint says both ways out');
	is($m->sql(q{SELECT state, hint FROM crate_sync.tables WHERE relname = 't_2'}), 'renamed|' . $m->status('hint'), 'so does tables');
	my ($ret, $out, $err) = $m->try_sql('SET ROLE looker; SELECT state FROM crate_sync.status');
	is($out . $err, 'renamed', 'pg_monitor sees it, without a right on the schema');
	($ret, $out, $err) = $m->try_sql($m->status('hint'));
	like($err, qr/syntax error/, 'who pastes the whole hint');
	is($m->status('state'), 'renamed', 'has chosen nothing');
	my ($follow, $keep) = statements($m);
	$m->sql($keep);
	is($m->status('state'), 'ok', 'kept');
	is($m->target_value(q{SELECT v FROM {t} WHERE id = 1}), 'old', 'it is as before');
	# two were called so, and a third one is: which of them it would follow, nobody knows
	$m->sql(q{CREATE TABLE u (id int PRIMARY KEY); SELECT crate_sync.add_table('u'); ALTER TABLE u RENAME TO u_1});
	$m->sql(q{CREATE TABLE u (id int PRIMARY KEY); SELECT crate_sync.add_table('u', 'u_too'); ALTER TABLE u RENAME TO u_2});
	$m->sql('CREATE TABLE u (id int PRIMARY KEY)');
	is($m->sql(q{SELECT hint FROM crate_sync.tables WHERE state = 'renamed' ORDER BY relname}),
		"SELECT crate_sync.keep_table('$s.u_1');\nSELECT crate_sync.keep_table('$s.u_2');", 'of two that had the name, each can be kept');
	$m->sql(q{SELECT crate_sync.keep_table('u_2')});
	is($m->status('hint'), "Either SELECT crate_sync.follow_name('$s.u'); or SELECT crate_sync.keep_table('$s.u_1');", 'the last one has both ways out');
	$m->sql(q{SELECT crate_sync.remove_table('u_1'); SELECT crate_sync.remove_table('u_2'); DROP TABLE u, u_1, u_2});
	# a name that takes quotes; the table is dropped
	$m->sql(q{BEGIN; DROP TABLE "we'ird T"; CREATE TABLE "we'ird T" (id int PRIMARY KEY, v text); INSERT INTO "we'ird T" VALUES (7, 'next'); COMMIT});
	ok($m->poll(q{SELECT state = 'renamed' FROM crate_sync.status}), 'dropped, and the name taken');
	sleep 1;
	is($m->status('state'), 'renamed', 'and so it stays');
	is($m->status('message'), qq{$s."we'ird T" was dropped, and another table, which is not mirrored, has its name}, 'the message');
	is($m->sql(q{SELECT schemaname || ' ' || relname || ' ' || state FROM crate_sync.tables ORDER BY 1 LIMIT 1 OFFSET 1}), "$s we'ird T renamed", 'tables shows it by the name that it had');
	my @ways = statements($m);
	like($ways[1], qr/^SELECT crate_sync\.remove_table\(\d+\);$/, 'to remove it by its OID is one way');
	$m->sql($ways[0]);
	ok($m->wait_sync, 'to follow is the other');
	is($m->target_count('weird') . $m->target_value(q{SELECT v FROM {weird} WHERE id = 7}), '1next', 'the table that has the name is there');
	is($m->status('state'), 'ok', 'and all is well');
	$m->sql(q{BEGIN; DROP TABLE "we'ird T"; CREATE TABLE "we'ird T" (id int PRIMARY KEY, v text); COMMIT});
	ok($m->poll(q{SELECT state = 'renamed' FROM crate_sync.status}), 'once more');
	is($m->sql((statements($m))[1]), 't', 'remove_table of the hint');
	is($m->status('state'), 'ok', 'that is well, too');
	# what has the name has to be a table that is not mirrored
	$m->sql('CREATE VIEW t_3 AS SELECT 1; ALTER TABLE t_2 RENAME TO t_9; CREATE SEQUENCE t_2');
	is($m->status('state'), 'ok', 'a sequence is no table');
	$m->sql('DROP SEQUENCE t_2; CREATE TABLE t_2 (id int PRIMARY KEY); SELECT crate_sync.add_table(\'t_2\', \'other\')');
	ok($m->wait_sync, 'one that is mirrored itself');
	is($m->status('state'), 'ok', 'is no trouble');
	# two schemas that change places
	$m->sql("CREATE SCHEMA ${s}_live; CREATE SCHEMA ${s}_next; CREATE TABLE ${s}_live.s (id int PRIMARY KEY); CREATE TABLE ${s}_next.s (id int PRIMARY KEY); SELECT crate_sync.add_table('${s}_live.s', 's')");
	ok($m->wait_sync, 'in sync');
	$m->sql("ALTER SCHEMA ${s}_live RENAME TO ${s}_old; ALTER SCHEMA ${s}_next RENAME TO ${s}_live");
	is($m->status('state, hint'), "renamed|Either SELECT crate_sync.follow_name('${s}_live.s'); or SELECT crate_sync.keep_table('${s}_old.s');", 'schemas that were renamed');
	$m->sql('DROP OWNED BY looker; DROP ROLE looker');
});

# --- clocks

{
	my $m = CrateSync::Mirror->new($node, 'sqlite');
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')});
	$m->add('t');
	ok($m->wait_sync, 'in sync');
	sleep 2;
	my $release = hold($m->{db}, 'in read');
	$m->sql(q{UPDATE t SET v = 'w'});
	held($m->{db}, 'in read');
	is($m->sql(q{SELECT backend_start < now() - interval '1.5 s', xact_start > backend_start + interval '1.5 s' AND xact_start <= clock_timestamp()
		FROM pg_stat_activity WHERE backend_type = 'crate_sync worker' AND datname = current_database()}), 't|t', 'a transaction of the worker begins when it does, not when the worker did');
	$release->();
	# what it writes down is dated then, too
	$m->target_change(q{CREATE TRIGGER keep BEFORE DELETE ON {t} BEGIN SELECT raise(ignore); END});
	$m->sql('DELETE FROM t');
	ok($m->poll('SELECT n_failed_rows = 1 FROM crate_sync.status'), 'a row that is refused');
	is($m->sql(q{SELECT first_failed_time > backend_start + interval '1.5 s' AND last_failed_time >= first_failed_time FROM crate_sync.failed_rows, crate_sync.status}), 't', 'it failed when it did');
	ok(verify($m, 't'), 'verify');
	is($m->sql(q{SELECT bool_and(found_time > backend_start + interval '1.5 s') FROM crate_sync.differences, crate_sync.status}), 't', 'and so with differences');
	$m->finish;
}

# --- what is queued, of a queue that is large

{
	# keys so long that a few of them fill a page, and no worker that turns writers to another of the queue's tables
	my $m = CrateSync::Mirror->new($node, 'sqlite');
	$m->sql("CREATE TABLE $_ (id text PRIMARY KEY)") foreach 'early', 'large', 'middle', 'late';
	$m->add('early', 'large', 'middle', 'late');
	ok($m->wait_sync, 'in sync');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	my $fill = sub { my ($n) = @_; $m->sql("INSERT INTO large SELECT repeat('x', 2500) || i || ' $n' FROM generate_series(1, $n) i") };
	my $pages = sub { $m->sql('SELECT max(pg_relation_size(oid)) / 8192 FROM pg_class WHERE relname LIKE \'queue\_%\' AND relkind = \'r\'') };
	my $seen = sub { $m->sql("SELECT string_agg(relname || ' ' || coalesce(queued_keys::text, '?') || ' ' || coalesce((lag > '0')::text, '?'), ', ' ORDER BY relname) FROM crate_sync.tables") };
	$m->sql(q{INSERT INTO early SELECT i FROM generate_series(1, 3) i});
	$fill->(11000);
	$m->sql(q{INSERT INTO middle SELECT i FROM generate_series(1, 70) i});
	$fill->(11001);
	$m->sql(q{INSERT INTO late VALUES (1)});
	cmp_ok($pages->(), '>', 5000, 'thousands of pages');
	is($seen->(), 'early 3 true, large 22001 true, late 1 true, middle 70 true', 'each table\'s keys are counted');
	my $n = $m->status('queued_keys');
	cmp_ok(abs($n - 22075), '<', 22075 * 0.05, "those of all are about right: $n");
	# past what is counted: which of the small ones are met is chance, but not what is said of them
	my @small = map { "small_$_" } 1 .. 20;
	foreach my $t (@small)
	{
		$m->sql("CREATE TABLE $t (id text PRIMARY KEY); SET client_min_messages = error; SELECT crate_sync.add_table('$t')");
	}
	foreach my $t (@small)
	{
		$fill->(2000 + $1) if $t =~ /(\d+)/;
		$m->sql("INSERT INTO $t VALUES (1)");
	}
	cmp_ok($pages->(), '>', 16000, 'more than are counted');
	my $keys = $m->sql('SELECT sum(greatest(n, 1)) FROM (SELECT n FROM crate_sync.queue_0 UNION ALL SELECT n FROM crate_sync.queue_1 UNION ALL SELECT n FROM crate_sync.queue_2) q');
	$n = $m->status('queued_keys');
	cmp_ok(abs($n - $keys), '<', $keys * 0.05, "about as many as there are: $n of $keys");
	$n = $m->sql(q{SELECT queued_keys FROM crate_sync.tables WHERE relname = 'large'});
	cmp_ok(abs($n - $keys), '<', $keys * 0.05, "those of the large table are about right: $n");
	is($m->sql(q{SELECT count(*) FROM crate_sync.tables WHERE queued_keys = 0 OR lag = '0'}), 0, 'of none it is said that it has none');
	my ($missed) = split /\n/, $m->sql(q{SELECT relname FROM crate_sync.tables WHERE queued_keys IS NULL AND lag IS NULL AND relname LIKE 'small%'});
	like($missed, qr/small/, 'what is not known is NULL');
	# the last keys of a queue that was large are found
	$m->sql("DELETE FROM crate_sync.queue_$_ WHERE relid <> '$missed'::regclass") foreach 0 .. 2;
	cmp_ok($pages->(), '>', 16000, 'a large queue with one key in it');
	is($m->sql(q{SELECT string_agg(relname || ' ' || queued_keys, ', ') FROM crate_sync.tables WHERE queued_keys > 0 OR lag > '0'}), "$missed 1", 'which is found');
	is($m->sql(q{SELECT count(*) FROM crate_sync.tables WHERE queued_keys = 0}), 23, 'and nothing else');
	is($m->status('queued_keys'), 1, 'by status, too');
	$m->finish;
}

# --- what wait_for_sync waits for

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	$m->sql("CREATE TABLE $_ (id int PRIMARY KEY, v int); INSERT INTO $_ VALUES (0, 0)") foreach 'a', 'b', 'w1', 'w2';
	$m->add('a', 'b', 'w1', 'w2');
	ok($m->wait_sync, 'in sync');
	# far longer than anybody has patience here
	my $wait = sub { my ($table) = @_; my @r = $m->try_sql("SET statement_timeout = '60s'; SELECT crate_sync.wait_for_sync(" . ($table ? "'$table', " : '') . "timeout => '1 hour')"); return "$r[1] $r[2]"; };
	$m->sql(q{SELECT crate_sync.pause('a')});
	$m->sql('INSERT INTO b VALUES (1, 1)');
	is($wait->(), 't ', 'a paused table that is not behind is in nobody\'s way');
	$m->sql('INSERT INTO a VALUES (1, 1)');
	is($wait->('b'), 't ', 'nor is one that is, for another');
	like($wait->(), qr/^f .*WARNING:  table $s\.a is paused.*HINT:  SELECT crate_sync\.resume\('$s\.a'\);/s, 'but for all: at once, and which');
	$m->sql(q{SELECT crate_sync.resume('a')});
	is($wait->(), 't ', 'resumed');

	# two tables that are stopped, each for its own reason
	$m->sql('ALTER TABLE w1 DROP CONSTRAINT w1_pkey; ALTER TABLE w2 DROP COLUMN id; INSERT INTO w1 VALUES (1, 1)');
	ok($m->poll(q{SELECT count(*) = 2 FROM crate_sync.tables WHERE state = 'error'}), 'two tables are stopped');
	my %error = map { /(\w+) (.*)/ } split /\n/, $m->sql(q{SELECT relname || ' ' || last_error FROM crate_sync.tables WHERE state = 'error'});
	isnt($error{w1}, $error{w2}, 'for different reasons');
	like($wait->(), qr/^f .*WARNING:  table $s\.w1 is stopped: \Q$error{w1}\E$/m, 'only stopped tables are behind: the warning has the first one\'s name and its error');
	like($wait->('w2'), qr/^f .*WARNING:  table $s\.w2 is stopped: \Q$error{w2}\E$/m, 'or that of the one that was asked for');
	is($wait->('b'), 't ', 'others are in sync');
	# what heals is waited for
	my $waiting = $m->background(q{SELECT crate_sync.wait_for_sync('w1', '1 hour')});
	$m->poll(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%wait_for_sync(''w1%' AND pid <> pg_backend_pid()});
	$m->sql('ALTER TABLE w1 ADD PRIMARY KEY (id); SELECT crate_sync.resync(\'w1\')');
	is($waiting->done, '', 'one that is mended meanwhile');
	is($waiting->output, "t\n", 'is waited for');

	# nobody is there to do it
	$m->sql('SELECT crate_sync.remove_table(\'w2\')');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('INSERT INTO a VALUES (2, 2)');
	like($wait->(), qr/^f .*WARNING:  no crate_sync worker is running/s, 'a worker that was stopped is not waited for');
	$m->sql('SELECT crate_sync.start()');
	is($wait->(), 't ', 'one that starts is');
	$node->safe_psql('postgres', "ALTER DATABASE $m->{db} RESET crate_sync.target");
	$m->poll(q{SELECT state = 'no target' AND pid IS NOT NULL FROM crate_sync.status});
	$m->sql('INSERT INTO a VALUES (3, 3)');
	like($wait->(), qr/^f .*WARNING:  the target cannot be written: no target/s, 'nor is a target that nobody has set');
});

# --- settings that nobody has tried yet

{
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $put = sub { open my $f, '>', "$dir/$_[0]" or die; print $f $_[1]; close $f; chmod $_[2], "$dir/$_[0]"; return "$dir/$_[0]" };
	my $file = $put->('password', "secret\n", 0600);
	my $set = sub { my ($name, $value) = @_; $node->safe_psql('postgres', "ALTER SYSTEM SET crate_sync.\"$name\" = '$value'"); $node->reload; };
	my $m = CrateSync::Mirror->new($node, 'standin', standin => [ '--user', 'mirror', 'secret' ]);
	ok($m->poll(q{SELECT state = 'target refuses' FROM crate_sync.status}), 'no user: the target refuses, though nothing is mirrored');
	$set->(user => 'mirror');
	$set->(password_file => $file);
	ok($m->poll(q{SELECT state = 'nothing mirrored' FROM crate_sync.status}), 'right ones: nothing is mirrored');
	my $refused = sub { ok($m->poll(q{SELECT state = 'target refuses' FROM crate_sync.status}, 't', 30), "$_[0]: the target refuses at once, with nothing to be sent") };
	my $tried = sub {
		my ($well) = @_;
		my $well_again = sub { ok($m->poll(qq{SELECT state = '$well' FROM crate_sync.status}, 't', 30), "$_[0]: $well") or $m->tell_why };
		chmod 0644, $file;
		$node->reload;
		$refused->('a file that others may read');
		chmod 0600, $file;
		$node->reload;
		$well_again->('readable by its owner only');
		$put->('password', "another\n", 0600);
		$node->reload;
		$refused->('another password in the same file');
		$put->('password', "secret\n", 0600);
		$node->reload;
		$well_again->('the right password');
		$set->(password_file => "$dir/nosuch");
		$refused->('no such file');
		$set->(password_file => $file);
		$set->(user => 'nobody');
		$refused->('another user');
		$set->(user => 'mirror');
		$well_again->('the right user');
	};
	$tried->('nothing mirrored');
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)');
	$m->add('t');
	ok($m->wait_sync, 'a table');
	sleep 0.5;
	$tried->('ok');
	# a reload that changes nothing of it costs nothing
	$m->sql('INSERT INTO t VALUES (3)');
	ok($m->wait_sync, 'in sync');
	sleep 0.5;
	my $n = () = $m->standin->statements('information_schema');
	cmp_ok($n, '>', 0, 'a table that is prepared is looked up in the target');
	$set->(batch_rows => 4000);
	$node->reload;
	sleep 1;
	$m->sql('INSERT INTO t VALUES (4)');
	ok($m->wait_sync, 'after other settings were changed');
	is(scalar(() = $m->standin->statements('information_schema')), $n, 'no table is prepared anew for that');
	# a login that was changed and works is tried, and that is all
	$put->('password', "secret\n\n", 0600);
	$node->reload;
	sleep 1;
	$m->sql('INSERT INTO t VALUES (5)');
	ok($m->wait_sync, 'after the login was changed');
	is(scalar(() = $m->standin->statements('information_schema')), $n, 'nor for that');
	$node->safe_psql('postgres', "ALTER SYSTEM RESET crate_sync.\"$_\"") foreach 'user', 'password_file', 'batch_rows';
	$node->reload;
	$m->finish;
}

# --- the worker's own states

{
	my $m = CrateSync::Mirror->new($node, 'sqlite', extension => 0);
	my $release = hold($m->{db}, 'worker start');
	$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
	held($m->{db}, 'worker start');
	is($m->status('ok, state'), 'f|starting', 'a worker that begins is not ok yet');
	$release->();
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)');
	$m->add('t');
	ok($m->wait_sync, 'in sync');
	# a transaction that began long ago looks at the clock
	$m->sql('SELECT crate_sync.pause()');
	my $out = $m->sql(q{BEGIN; SELECT now(); SELECT pg_sleep(0.3); COMMIT; INSERT INTO t VALUES (2); SELECT pg_sleep(1); SELECT lag BETWEEN '1 s' AND '1 min' FROM crate_sync.status; SELECT lag BETWEEN '1 s' AND '1 min' FROM crate_sync.tables});
	is(join(' ', (split /\n/, $out)[-2, -1]), 't t', 'the lag is as of now');
	$out = $m->background(q{BEGIN; SELECT 1; SELECT pg_sleep(2); SELECT min(lag) >= '0' FROM (SELECT lag FROM crate_sync.status UNION ALL SELECT lag FROM crate_sync.tables) x; COMMIT;});
	sleep 1;
	$m->sql('TRUNCATE t; INSERT INTO t VALUES (3)');
	$out->done;
	like($out->output, qr/^t$/m, 'and not negative in a transaction that began before the change');
	is($m->status('state, hint'), "paused|SELECT crate_sync.resume('$m->{schema}.t');", 'which table is paused is said');
	$m->sql((statements($m))[0]);
	ok($m->wait_sync, 'resumed');
	# a load that is owed and does not run
	my $before = $m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	is($m->status('state, hint'), 'stopped|SELECT crate_sync.start();', 'stopped');
	$m->sql(q{UPDATE crate_sync.mirror_state SET due = 'a reason'});
	is($m->sql('SELECT state, due, hint FROM crate_sync.tables'), "incomplete|a reason|SELECT crate_sync.resync('$m->{schema}.t');", 'a table that owes a load');
	is($m->status('n_tables_not_ok'), 1, 'is not ok');
	$m->sql(q{UPDATE crate_sync.mirror_state SET due = NULL});
	# it died too often: that is what status says, and not that none is there
	$m->sql('UPDATE crate_sync.worker_state SET unclean_starts = 99; UPDATE crate_sync.control SET stopped = false');
	$node->restart;
	ok($m->poll(q{SELECT state = 'down' FROM crate_sync.status}, 't', 60), 'down') or $m->tell_why;
	like($m->status('hint'), qr/log, then SELECT crate_sync\.start\(\);/, 'and what to do');
	$m->sql('SELECT crate_sync.start()');
	$m->sql('INSERT INTO t VALUES (8)');
	ok($m->wait_sync, 'started again');
	is($m->status('ok'), 't', 'well again');
	# what it said before it ended is nothing to go by
	$node->safe_psql('postgres', "ALTER DATABASE $m->{db} SET crate_sync.target = 'sqlite:/no/such/directory/x.db'");
	ok($m->poll(q{SELECT state = 'target refuses' OR state = 'target unreachable' FROM crate_sync.status}), 'a target that is none');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('UPDATE crate_sync.control SET stopped = false');
	is($m->status('state, hint'), 'no worker|SELECT crate_sync.start();', 'no worker, and what to do about that');
	$m->finish;
}

# --- without shared_preload_libraries: statements that work in any session, and take nothing away

{
	my $other = CrateSync::server('other_libraries', preload => 0, conf => "shared_preload_libraries = 'auto_explain, \"\$libdir/passwordcheck\"'\n");
	my ($ret, $out, $err) = $other->psql('postgres', 'CREATE EXTENSION crate_sync', on_error_stop => 0);
	$other->psql('postgres', 'CREATE EXTENSION IF NOT EXISTS crate_sync; SELECT crate_sync.start()', stderr => \$err);
	my ($hint) = $err =~ /HINT:  (ALTER SYSTEM SET shared_preload_libraries = [^;]*;)/;
	is($hint, q{ALTER SYSTEM SET shared_preload_libraries = 'auto_explain', '$libdir/passwordcheck', 'crate_sync';}, 'the hint keeps what is loaded already');
	is($other->safe_psql('postgres', 'SELECT state FROM crate_sync.status'), 'no target', 'no target');
	my @do = $other->safe_psql('postgres', 'SELECT hint FROM crate_sync.status') =~ /((?:LOAD|ALTER|SELECT) [^;]*;)/g;
	is(scalar(@do), 3, 'its hint has three statements');
	$do[1] =~ s{http://host:4200}{'sqlite:' . $other->basedir . '/x.db'}e;
	is($other->psql('postgres', join("\n", @do)), 0, 'which work in a session that has not loaded the library');
	ok(CrateSync::poll($other, 'postgres', q{SELECT state = 'nothing mirrored' FROM crate_sync.status}), 'and help');
	$other->safe_psql('postgres', 'CREATE ROLE plain LOGIN; GRANT USAGE ON SCHEMA crate_sync TO plain; GRANT SELECT ON crate_sync.status TO plain;'
		. ' GRANT EXECUTE ON FUNCTION crate_sync.worker_status, crate_sync.queue_stats, crate_sync.table_states, crate_sync.start TO plain');
	$other->psql('postgres', 'SET ROLE plain; SELECT crate_sync.start()', stderr => \$err);
	unlike($err, qr/auto_explain/, 'which libraries are loaded is told only to who may see that');
	is($other->psql('postgres', $hint), 0, 'the hint is a statement');
	$other->restart;
	is($other->safe_psql('postgres', 'SHOW shared_preload_libraries'), q{auto_explain, "$libdir/passwordcheck", crate_sync}, 'and the server starts with it');
	ok(CrateSync::poll($other, 'postgres', 'SELECT preloaded AND pid IS NOT NULL FROM crate_sync.status'), 'the worker, too');
	$other->stop;
}

# --- a demo that is broken off leaves nothing in a CrateDB that is not its own

foreach my $kind (grep { $_ ne 'sqlite' } CrateSync::kinds())
{
	my $d = CrateSync::server("demo_$kind", conf => "crate_sync.interval = 100ms\n");
	my $standin = $kind eq 'standin' ? CrateSync::Standin->new : undef;
	my $url = $standin ? $standin->url : $ENV{CRATE_URL};
	my $ask = bless { kind => $kind, url => $url }, 'CrateSync::Mirror';
	$d->append_conf('postgresql.conf', "crate_sync.target = '$url'\n");
	$d->reload;
	my $before = $ask->target_rows(q{SELECT count(*) FROM information_schema.tables WHERE table_schema LIKE 'demo\_%'})->[0][0];
	my ($out, $schema) = ('');
	my $h = IPC::Run::start([ 'python3', "$CrateSync::TOP/demo.d/demo.py", '--work', $d->basedir, '--psql', 'psql', '--conninfo', $d->connstr('postgres'),
			'--target', $url, '--rows', '20000', '--fast' ], '<', \undef, '>&', \$out);
	# while it loads
	my $loading = CrateSync::wait_until('rows are loaded', sub {
		$h->pump_nb;
		($schema) = $out =~ /schema of its own there, (demo_\w+)/;
		return $schema && @{ $ask->target_rows("SELECT table_name FROM information_schema.tables WHERE table_schema = '$schema'") } >= 2;
	}, 120);
	ok($loading, "$kind: the demo loads into a schema of its own") or diag $out;
	$h->signal('INT');
	$h->finish;
	is($? >> 8, 130, "$kind: it was broken off");
	like($out, qr/taking what is the shop's out of the CrateDB/, "$kind: it says that it cleans up");
	sleep 2;
	is(join(' ', map { $_->[0] } @{ $ask->target_rows("SELECT table_name FROM information_schema.tables WHERE table_schema = '$schema'") }), '', "$kind: no table of it is left");
	my $prefix = "\"$schema\".";
	$ask->target_rows('REFRESH TABLE crate_sync.claim, crate_sync.fence');
	is($ask->target_rows(sprintf q{SELECT count(*) FROM crate_sync.fence WHERE substr(id, 1, %d) = '%s'}, length $prefix, $prefix)->[0][0], 0, "$kind: no fence");
	is($ask->target_rows(sprintf q{SELECT count(*) FROM crate_sync.claim WHERE system_identifier = '%s'}, $d->safe_psql('postgres', 'SELECT system_identifier FROM pg_control_system()'))->[0][0], 0, "$kind: nor a claim");
	$d->stop;
	$standin->stop if $standin;
}

$node->stop;
done_testing();
