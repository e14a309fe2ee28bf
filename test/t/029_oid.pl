# A table is its OID: names, schemas, leaves and trees change before, during and after reads, loads and
# sweeps; what changes values without touching a row; what open transactions of users hold.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep);

my $node = CrateSync::server('oid', conf => "crate_sync.debug_points = on\ncrate_sync.max_retry_interval = 300ms\n");

# a session that holds the worker at a point, from now until it is let go
sub hold
{
	my ($m, $point) = @_;
	my $s = $m->background("SELECT pg_advisory_lock(28531, hashtext('$point')); SELECT pg_sleep(600);");
	$m->poll(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 28531
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mode = 'ExclusiveLock'}, 1);
	return sub {
		$m->sql(q{SELECT pg_terminate_backend(l.pid) FROM pg_locks l WHERE locktype = 'advisory' AND classid = 28531
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())});
		$s->done;
	};
}

sub held
{
	my ($m, $point) = @_;
	return $m->poll("SELECT count(*) FROM pg_stat_activity WHERE query = 'held at $point' AND datname = current_database()", 1);
}

# values of the target's column v, of whichever table the target was made for
sub values_there
{
	my ($m, $table) = @_;
	$m->refresh($table);
	return join(' ', map { "$_->[0]:$_->[1]" } sort { $a->[0] cmp $b->[0] }
		@{ $m->target_rows("SELECT v, count(*) FROM {$table} GROUP BY v") });
}

sub done_loads
{
	my ($m) = @_;
	return $m->sql("SELECT coalesce(sum(n_tup_upserted), 0) FROM crate_sync.tables");
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $let_go;
	my $s = $m->{schema};

	# --- two schemas change places
	$m->sql(q{CREATE SCHEMA live; CREATE SCHEMA next;
		CREATE TABLE live.t (id int PRIMARY KEY, v text); INSERT INTO live.t SELECT i, 'mine' FROM generate_series(1, 10) i;
		CREATE TABLE next.t (id int PRIMARY KEY, v text); INSERT INTO next.t SELECT i, 'foreign' FROM generate_series(1, 5) i});
	$m->sql("SELECT crate_sync.add_table('live.t', target => '$s.swapped')");
	ok($m->wait_sync, 'before the schemas change places');
	$m->sql('BEGIN; ALTER SCHEMA live RENAME TO old; ALTER SCHEMA next RENAME TO live; COMMIT');
	$m->sql(q{UPDATE old.t SET v = 'changed'});
	ok($m->wait_sync, 'after it');
	is(values_there($m, 'swapped'), 'changed:10', 'rows are of the table that was added, not of the one that has its name');
	$let_go = hold($m, 'in read');
	$m->sql(q{UPDATE old.t SET v = 'again'});
	held($m, 'in read');
	$m->sql('BEGIN; ALTER SCHEMA live RENAME TO next; ALTER SCHEMA old RENAME TO live; COMMIT');
	$let_go->();
	ok($m->wait_sync, 'schemas change places within a read');
	is(values_there($m, 'swapped'), 'again:10', 'its rows are the right ones, too');

	# --- two tables change places while one is loaded, and while it is swept
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'mine' FROM generate_series(1, 20000) i;
		CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new SELECT i, 'foreign' FROM generate_series(1, 50) i});
	$let_go = hold($m, 'before piece');
	$m->sql("SELECT crate_sync.add_table('t', target => '$s.t')");
	held($m, 'before piece');
	$m->sql('BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT');
	$let_go->();
	ok($m->wait_sync, 'tables change places within a load');
	is(values_there($m, 't'), 'mine:20000', 'all rows are of the table that was added');
	$let_go = hold($m, 'after page');
	$m->sql(q{SELECT crate_sync.resync('t_old')});
	held($m, 'after page');
	$m->sql('BEGIN; ALTER TABLE t RENAME TO t_new; ALTER TABLE t_old RENAME TO t; TRUNCATE t_new; COMMIT');
	$let_go->();
	ok($m->wait_sync, 'tables change places within a sweep');
	is(values_there($m, 't'), 'mine:20000', 'nothing is deleted for want of a row in another table');

	# --- columns of two types change names within a read
	$m->sql(q{CREATE TABLE c (id int PRIMARY KEY, a int, b text); INSERT INTO c SELECT i, i, 'text ' || i FROM generate_series(1, 100) i});
	$m->add('c');
	$m->equal('c', 'before columns change names');
	my $pid = $m->worker_pid;
	$let_go = hold($m, 'before read');
	$m->sql('UPDATE c SET a = a + 1000');
	held($m, 'before read');
	$m->sql('BEGIN; ALTER TABLE c RENAME a TO x; ALTER TABLE c RENAME b TO a; ALTER TABLE c RENAME x TO b; COMMIT');
	$let_go->();
	$m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 'c'});
	is($m->worker_pid, $pid, 'the worker lives');
	like($m->sql(q{SELECT last_error FROM crate_sync.tables WHERE relname = 'c'}), qr/column "[ab]"/, 'and says what does not fit in the target');
	$m->sql(q{SELECT crate_sync.remove_table('c', drop_target => true)});

	# --- partitions of partitions
	$m->sql(q{CREATE TABLE r (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
		CREATE TABLE r1 PARTITION OF r FOR VALUES IN (1, 2, 3, 4) PARTITION BY LIST (k);
		CREATE TABLE r1a PARTITION OF r1 FOR VALUES IN (1);
		CREATE TABLE r1d PARTITION OF r1 FOR VALUES IN (4);
		CREATE TABLE r1b (LIKE r1 INCLUDING ALL); INSERT INTO r1b SELECT i, 2, 'attached' FROM generate_series(1, 100) i;
		INSERT INTO r SELECT i, 1, 'v' FROM generate_series(1, 10) i; INSERT INTO r SELECT i, 4, 'v' FROM generate_series(1, 30) i});
	$m->add('r');
	$m->equal('r', 'a tree of three levels');
	$m->sql('ALTER TABLE r1 ATTACH PARTITION r1b FOR VALUES IN (2)');
	$m->equal('r', 'ATTACH at its second level');
	$m->sql(q{CREATE TABLE r1c PARTITION OF r1 FOR VALUES IN (3); INSERT INTO r SELECT i, 3, 'v' FROM generate_series(1, 20) i});
	$m->equal('r', 'a partition made there');
	$m->sql('TRUNCATE r1c');
	$m->equal('r', 'and truncated');
	$m->sql('ALTER TABLE r1 DETACH PARTITION r1d');
	$m->equal('r', 'DETACH there');
	is($m->target_value('SELECT count(*) FROM {r} WHERE k = 4'), 0, 'its rows are gone');
	$m->sql('DROP TABLE r1c; ALTER TABLE r1 DETACH PARTITION r1a CONCURRENTLY');
	$m->equal('r', 'DROP and DETACH CONCURRENTLY');

	# --- a leaf changes names with a private table while it is loaded; a leaf is renamed
	$m->sql(q{CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); INSERT INTO p SELECT i, 1, 'mine' FROM generate_series(1, 20000) i;
		CREATE TABLE private (id int, k int, v text, PRIMARY KEY (id, k)); INSERT INTO private SELECT i, 1, 'foreign' FROM generate_series(1, 50) i});
	$let_go = hold($m, 'before piece');
	$m->sql("SELECT crate_sync.add_table('p', target => '$s.p')");
	held($m, 'before piece');
	$m->sql('BEGIN; ALTER TABLE p1 RENAME TO p1_2023; ALTER TABLE private RENAME TO p1; COMMIT');
	$let_go->();
	ok($m->wait_sync, 'a leaf gives its name away within a load');
	is(values_there($m, 'p'), 'mine:20000', 'no row of the private table');

	# --- a partition made before the worker has looked, by a session that stays
	$let_go = hold($m, 'before queue');
	$m->sql('UPDATE t SET v = v WHERE id = 1');
	held($m, 'before queue');
	$m->sql(q{CREATE TABLE g (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k); CREATE TABLE g1 PARTITION OF g FOR VALUES IN (1)});
	my $stays = $m->background(q{SELECT crate_sync.add_table('g'); CREATE TABLE g2 PARTITION OF g FOR VALUES IN (2); INSERT INTO g VALUES (1, 1), (2, 2); SELECT pg_sleep(600);});
	$m->poll(q{SELECT to_regclass('g2') IS NOT NULL});
	$let_go->();
	$m->equal('g', 'a partition made behind add_table, before the worker looked');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND datname = current_database() AND pid <> pg_backend_pid()});
	$stays->done;

	# --- DETACH while another session has a leaf locked: what is owed is not forgotten
	$m->sql(q{CREATE TABLE d (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
		CREATE TABLE d1 PARTITION OF d FOR VALUES IN (1); CREATE TABLE d2 PARTITION OF d FOR VALUES IN (2);
		INSERT INTO d SELECT i, 1 + i % 2, 'v' FROM generate_series(1, 200) i});
	$m->add('d');
	$m->equal('d', 'before a DETACH');
	my $lock = $m->background('BEGIN; LOCK TABLE d1 IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600);');
	$m->poll(q{SELECT count(*) FROM pg_locks WHERE relation = 'd1'::regclass AND mode = 'AccessExclusiveLock' AND granted}, 1);
	$m->sql('ALTER TABLE d DETACH PARTITION d2');
	sleep 2;
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'd1'::regclass AND mode = 'AccessExclusiveLock'});
	$lock->done;
	$m->equal('d', 'DETACH while a leaf is locked');

	# --- ATTACH within the look at the table
	$let_go = hold($m, 'in resolve');
	$m->sql(q{CREATE TABLE d3 PARTITION OF d FOR VALUES IN (3)});
	held($m, 'in resolve');
	$m->sql(q{CREATE TABLE d4 (LIKE d INCLUDING ALL); INSERT INTO d4 SELECT i, 4, 'v' FROM generate_series(1, 10) i; ALTER TABLE d ATTACH PARTITION d4 FOR VALUES IN (4)});
	$let_go->();
	$m->equal('d', 'ATTACH while the table is looked at');

	# --- values that change, and no row is touched
	$m->sql(q{CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (a int, b int);
		CREATE FUNCTION wanted(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 < 5; END';
		CREATE TABLE e (m mood PRIMARY KEY, p pair, ms mood[]); INSERT INTO e VALUES ('sad', (1, 2), '{sad,happy}'), ('happy', (3, 4), '{}');
		CREATE TABLE f (id int PRIMARY KEY, v text); INSERT INTO f SELECT i, 'v' FROM generate_series(1, 10) i});
	$m->add('e');
	$m->sql(q{SELECT crate_sync.add_table('f', row_filter => 'wanted(id)')});
	$m->equal('e', 'enums and composites');
	is($m->target_count('f'), 4, 'a filter');
	my $before = done_loads($m);
	$m->sql(q{ALTER TYPE mood ADD VALUE 'bored'});
	$m->sql('UPDATE t SET v = v WHERE id = 1');
	ok($m->wait_sync, 'a label more');
	is(done_loads($m) - $before, 1, 'loads nothing');
	$m->sql(q{ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'});
	ok($m->wait_sync('e'), 'a label renamed, and waited for at once');
	is($m->target_value(q{SELECT count(*) FROM {e} WHERE m = 'sad'}), 0, 'is nowhere any more');
	$m->equal('e', 'a label renamed, which is a key, too');
	is($m->target_count('e'), 2, 'no row is there twice');
	$m->sql(q{ALTER TYPE pair ADD ATTRIBUTE c int});
	$m->equal('e', 'a composite type with an attribute more');
	$m->sql(q{CREATE OR REPLACE FUNCTION wanted(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 < 8; END'});
	ok($m->poll(q{SELECT n_tup_upserted >= 11 FROM crate_sync.tables WHERE relname = 'f'}), 'the filter lets other rows through');
	ok($m->wait_sync, 'and they are pushed');
	is($m->target_count('f'), 7, 'all of them');

	# --- what changes no row loads none
	$before = done_loads($m);
	$m->sql(q{ALTER TABLE t ALTER v SET STATISTICS 10; ALTER TABLE t ALTER v SET DEFAULT 'q'; ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
		GRANT SELECT (v) ON t TO pg_monitor; ALTER TABLE t SET (fillfactor = 90)});
	$m->sql('UPDATE t SET v = v WHERE id = 1');
	ok($m->wait_sync, 'statistics targets, defaults, storage, grants');
	is(done_loads($m) - $before, 1, 'load nothing');
	$m->sql(q{ALTER TABLE t ALTER v TYPE text USING v || '!'});
	ok($m->wait_sync, 'a column rewritten');
	is(values_there($m, 't'), 'mine!:20000', 'is pushed anew');

	# --- triggers put off and on again under writers that never pause
	my @w = map { $m->background("DO \$\$ BEGIN FOR i IN 1..100000 LOOP UPDATE t SET v = 'w' WHERE id = $_ + i % 50; COMMIT; EXIT WHEN to_regclass('stop') IS NOT NULL; END LOOP; END \$\$") } map { $_ * 100 } 1 .. 4;
	$m->sql(q{ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE t ENABLE TRIGGER ALL});
	ok($m->poll(q{SELECT count(*) = 2 FROM pg_trigger WHERE tgrelid = 't'::regclass AND tgname LIKE 'crate_sync%' AND tgenabled = 'A'}), 'triggers are mended beside writers');
	$m->sql('CREATE TABLE stop ()');
	is(join('', map { $_->done } @w), '', 'none of them fails');
	$m->equal('t', 'and after them');

	# --- added, and its triggers off and on before the worker has looked
	$let_go = hold($m, 'before queue');
	$m->sql('UPDATE t SET v = v WHERE id = 1');
	held($m, 'before queue');
	$m->sql(q{CREATE TABLE h (id int PRIMARY KEY); SELECT crate_sync.add_table('h'); ALTER TABLE h DISABLE TRIGGER USER; ALTER TABLE h ENABLE TRIGGER USER; INSERT INTO h VALUES (1)});
	$let_go->();
	$m->equal('h', 'triggers off and on behind add_table');

	# --- dropped after its rows were read into the worker's hands
	$m->sql(q{CREATE TABLE z (id int PRIMARY KEY, v text); CREATE TABLE z_new (LIKE z INCLUDING ALL)});
	$m->add('z');
	$m->equal('z', 'before it is dropped');
	$let_go = hold($m, 'before read');
	$m->sql(q{INSERT INTO z VALUES (1, 'v')});
	held($m, 'before read');
	$m->sql('BEGIN; DROP TABLE z; ALTER TABLE z_new RENAME TO z; COMMIT');
	$let_go->();
	ok($m->poll('SELECT queued_keys FROM crate_sync.status', 0), 'its keys leave the queue');
	ok($m->wait_sync, 'nobody waits for them');
	$m->sql('SELECT crate_sync.remove_table(relid) FROM crate_sync.mirror WHERE source_name = $$z$$');

	# --- who follows the name: a swap, and DROP and RENAME
	$m->sql(q{CREATE TABLE n (id int PRIMARY KEY, v text); INSERT INTO n SELECT i, 'first' FROM generate_series(1, 10) i;
		CREATE TABLE n_new (LIKE n INCLUDING ALL); INSERT INTO n_new SELECT i, 'second' FROM generate_series(1, 5) i});
	$m->sql("SELECT crate_sync.add_table('n', target => '$s.n', follow => 'name')");
	ok($m->wait_sync, 'mirrored by its name');
	$m->sql('BEGIN; ALTER TABLE n RENAME TO n_old; ALTER TABLE n_new RENAME TO n; COMMIT');
	ok($m->poll(q{SELECT relid = 'n'::regclass FROM crate_sync.mirror WHERE source_name = 'n'}), 'the mirror goes to the table that has the name');
	$m->sql(q{INSERT INTO n VALUES (100, 'second')});
	ok($m->wait_sync, 'and its rows');
	is(values_there($m, 'n'), 'second:6', 'are in the target, the former one\'s are not');
	$m->sql(q{CREATE TABLE n_new (LIKE n INCLUDING ALL); INSERT INTO n_new VALUES (1, 'third'); BEGIN; DROP TABLE n; ALTER TABLE n_new RENAME TO n; COMMIT});
	ok($m->poll(q{SELECT relid = 'n'::regclass FROM crate_sync.mirror WHERE source_name = 'n'}), 'after DROP and RENAME, too');
	ok($m->wait_sync, 'in sync');
	is(values_there($m, 'n'), 'third:1', 'with its rows');

	# --- a rebuild that begins anew has nothing of what it had loaded before
	$m->sql(q{CREATE TABLE b (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
		CREATE TABLE b1 PARTITION OF b FOR VALUES IN (1); CREATE TABLE b2 PARTITION OF b FOR VALUES IN (2);
		INSERT INTO b SELECT i, 1 + i % 2, 'v' FROM generate_series(1, 2000) i});
	$m->add('b');
	$m->equal('b', 'before a rebuild');
	$let_go = hold($m, 'before swap');
	$m->sql(q{SELECT crate_sync.resync('b', 'rebuild')});
	held($m, 'before swap');
	$m->sql('ALTER TABLE b DETACH PARTITION b1');
	$let_go->();
	$m->equal('b', 'a partition is detached before the swap');
	$let_go = hold($m, 'before piece');
	$m->sql(q{SELECT crate_sync.resync('b', 'rebuild')});
	held($m, 'before piece');
	$m->sql(q{INSERT INTO b SELECT i, 2, 'more' FROM generate_series(10001, 10100) i; ALTER TABLE b1 RENAME TO b1_gone;
		CREATE TABLE b3 PARTITION OF b FOR VALUES IN (3); INSERT INTO b VALUES (1, 3, 'third')});
	$let_go->();
	$m->equal('b', 'a partition is made before its first piece is read');

	# --- a type that the target's column cannot be altered to
	$m->sql(q{CREATE TABLE w (id int PRIMARY KEY, v int); INSERT INTO w SELECT i, i FROM generate_series(1, 100) i});
	$m->add('w');
	$m->equal('w', 'before a column gets another type');
	$m->sql('ALTER TABLE w ALTER v TYPE text');
	ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables WHERE relname = 'w'}), 'it does not fit any more');
	$m->sql(q{SELECT crate_sync.resync('w', 'rebuild')});
	ok($m->poll(q{SELECT state = 'ready' FROM crate_sync.tables WHERE relname = 'w'}), 'a rebuild makes it fit');
	$m->equal('w', 'and equal');

	# --- transactions of users that stay open
	my $open = $m->background(q{BEGIN; SELECT crate_sync.start(); SELECT crate_sync.resync('e'); SELECT crate_sync.resync('d'); SELECT pg_sleep(600);});
	$m->poll(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND wait_event = 'PgSleep' AND datname = current_database()});
	$m->sql('DROP TABLE d');
	$m->sql(q{UPDATE p SET v = 'while open' WHERE id < 10});
	ok($m->wait_sync('p'), 'others go on while a session holds rows of the catalog');
	is($m->target_value(q{SELECT count(*) FROM {p} WHERE v = 'while open'}), 9, 'their rows arrive');
	unlike($m->status('coalesce(last_error, $$$$)'), qr/lock timeout/, 'and nothing waits for its locks');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()});
	$open->done;
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.mirror m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.relid)'), 'the dropped one leaves the catalog');
}, but => 'crate', why => 'whose rows are read is the reader\'s, which knows no target');

# --- an unlogged leaf of a logged table that a crash empties
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE u (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
		CREATE TABLE u1 PARTITION OF u FOR VALUES IN (1) PARTITION BY LIST (k);
		CREATE UNLOGGED TABLE u11 PARTITION OF u1 FOR VALUES IN (1); CREATE TABLE u2 PARTITION OF u FOR VALUES IN (2);
		INSERT INTO u SELECT i, 1 + i % 2 FROM generate_series(1, 100) i});
	$m->add('u');
	$m->equal('u', 'an unlogged leaf');
	$m->kill_worker('KILL');
	is($m->sql('SELECT count(*) FROM u'), 50, 'is emptied by a crash');
	$m->equal('u', 'and so in the target');
}, kinds => ['sqlite']);

# --- dumps are restored to their end
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = map { "t$_" } 1 .. 4;
	$m->sql("CREATE TABLE $_ (id int PRIMARY KEY, v text); INSERT INTO $_ SELECT i, 'v' FROM generate_series(1, 200) i") foreach @t;
	$m->add(@t);
	$m->equal(\@t, 'before a dump');
	my $dir = PostgreSQL::Test::Utils::tempdir();
	$node->command_ok([ 'pg_dump', '-d', $node->connstr($m->db), '-f', "$dir/dump.sql" ], 'pg_dump');
	# time for the worker to look in between: each statement of the end is followed by a pause
	open my $in, '<', "$dir/dump.sql"; open my $out, '>', "$dir/slow.sql";
	while (<$in>) { print $out $_; print $out "SELECT pg_sleep(0.3);\n" if /^(ALTER|CREATE) (TABLE|TRIGGER).*;$/ && /crate_sync_capture|PRIMARY KEY/; }
	close $out;
	my $n = bless { %$m, db => "$m->{db}_restored" }, ref $m;
	$node->safe_psql('postgres', "CREATE DATABASE $n->{db} TEMPLATE template0; ALTER DATABASE $n->{db} SET crate_sync.target = 'sqlite:$dir/other.db'; ALTER DATABASE $n->{db} SET search_path = $m->{schema}, public");
	$n->{url} = "sqlite:$dir/other.db"; $n->{kind} = 'sqlite';
	my ($o, $e) = ('', '');
	my $ok = IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr($n->{db}), '-f', "$dir/slow.sql" ], '<', \undef, '>', \$o, '2>', \$e);
	ok($ok, 'it is restored with ON_ERROR_STOP') or diag $e;
	$n->equal(\@t, 'the restored database mirrors, too');
	is($n->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%' AND tgenabled = 'A'}), 8, 'each trigger is there once');
	$node->safe_psql('postgres', "DROP DATABASE $n->{db} WITH (FORCE)");
}, kinds => ['sqlite']);

$node->stop;
done_testing();
