# Rows taken before their triggers fire: the same keys as when they fire.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('early');
my $merge = $node->safe_psql('postgres', 'SHOW server_version_num') >= 150000;

# statements, each on tables as made below; a session that has met the trigger takes its rows early
my @statements = (
	[ 'insert' => q{INSERT INTO t SELECT i, i FROM generate_series(100, 120) i} ],
	[ 'update' => q{UPDATE t SET v = v + 1 WHERE id < 50} ],
	[ 'update of keys' => q{UPDATE t SET id = id + 1000 WHERE id < 20} ],
	[ 'delete' => q{DELETE FROM t WHERE id % 3 = 0} ],
	[ 'nothing' => q{UPDATE t SET v = 1 WHERE id < 0} ],
	[ 'prepared, many times' => q{PREPARE p AS UPDATE t SET v = v + 1 WHERE id = $1; EXECUTE p(1); EXECUTE p(2); EXECUTE p(3); EXECUTE p(4); EXECUTE p(5); EXECUTE p(6); EXECUTE p(7)} ],
	[ 'on conflict' => q{INSERT INTO t SELECT i, 0 FROM generate_series(90, 110) i ON CONFLICT (id) DO UPDATE SET v = -excluded.v} ],
	[ 'on conflict do nothing' => q{INSERT INTO t SELECT i, 0 FROM generate_series(90, 110) i ON CONFLICT DO NOTHING} ],
	[ 'a WITH that writes' => q{WITH d AS (DELETE FROM t WHERE id <= 5 RETURNING *), u AS (UPDATE k SET v = 0 WHERE a = 1 RETURNING *) INSERT INTO t SELECT id + 500, v FROM d} ],
	[ 'a BEFORE trigger that changes the key' => q{INSERT INTO b SELECT i, 1 FROM generate_series(1, 5) i; UPDATE b SET v = 2; DELETE FROM b WHERE id > 1003} ],
	[ 'a BEFORE trigger that has nothing done' => q{INSERT INTO b VALUES (13, 1), (14, 1); UPDATE b SET v = 13; DELETE FROM b} ],
	[ 'composite keys' => q{UPDATE k SET b = b || 'x' WHERE a % 2 = 0; UPDATE k SET v = 1; DELETE FROM k WHERE a = 3} ],
	[ 'a referenced row goes' => q{DELETE FROM parent WHERE id = 1; UPDATE parent SET id = 20 WHERE id = 2} ],
	[ 'partitions' => q{INSERT INTO p SELECT i, i % 3, i FROM generate_series(1000, 1020) i; UPDATE p SET v = v + 1; DELETE FROM p WHERE id % 4 = 0} ],
	[ 'a row that moves' => q{UPDATE p SET part = (part + 1) % 3 WHERE id < 10; UPDATE p2 SET v = 0; DELETE FROM p1 WHERE id = 4} ],
	[ 'a partition with columns elsewhere' => q{UPDATE p0 SET v = 5; UPDATE p SET id = id + 5000 WHERE part = 0} ],
	[ 'a savepoint' => q{BEGIN; UPDATE t SET v = 0 WHERE id = 1; SAVEPOINT a; UPDATE t SET v = 0 WHERE id = 2; ROLLBACK TO a; UPDATE t SET v = 0 WHERE id = 3; SAVEPOINT b; UPDATE t SET v = 0 WHERE id = 4; RELEASE b; COMMIT} ],
	[ 'a statement that fails' => q{BEGIN; UPDATE t SET v = 0 WHERE id = 1; SAVEPOINT a; UPDATE t SET v = 1 / (id - 50) WHERE id > 40; ROLLBACK TO a; COMMIT} ],
	[ 'a function that catches' => q{DO $$ BEGIN FOR i IN 1 .. 10 LOOP BEGIN UPDATE t SET v = v / (i % 2) WHERE id = i; EXCEPTION WHEN division_by_zero THEN UPDATE t SET v = -1 WHERE id = i + 50; END; END LOOP; END $$} ],
	[ 'COMMIT in a procedure' => q{DO $$ BEGIN FOR i IN 1 .. 5 LOOP UPDATE t SET v = 0 WHERE id = i; COMMIT; END LOOP; END $$} ],
	[ 'a rule' => q{UPDATE view_t SET v = 7 WHERE id = 7; DELETE FROM view_t WHERE id = 8} ],
	[ 'not captured' => q{SET crate_sync.capture = off; UPDATE t SET v = 0; SET crate_sync.capture = on; UPDATE t SET v = 1 WHERE id = 1} ],
	[ 'a replica' => q{SET session_replication_role = replica; UPDATE t SET v = 1 WHERE id = 2} ],
	[ 'TRUNCATE' => q{TRUNCATE t; INSERT INTO t VALUES (1, 1)} ],
	[ 'a deferred constraint' => q{BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE u SET o = 21 - o WHERE o IN (10, 11); COMMIT} ],
	[ 'a trigger with a condition of its owner' => q{UPDATE w SET v = id} ],
	[ 'a column of the key that comes later' => q{ALTER TABLE late ADD COLUMN x int DEFAULT 1; UPDATE late SET x = 2; UPDATE late SET id = id + 10} ],
	$merge ? [ 'MERGE' => q{MERGE INTO t USING generate_series(95, 105) s(i) ON t.id = s.i WHEN MATCHED AND s.i % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET v = 0 WHEN NOT MATCHED THEN INSERT VALUES (s.i, 1)} ] : ());
CrateSync::skipped('012_early.pl: MERGE, which PostgreSQL 14 has not') unless $merge;

my $m = CrateSync::Mirror->new($node, 'sqlite');
$m->sql(q{SELECT crate_sync.stop()});
$m->poll(q{SELECT pid IS NULL FROM crate_sync.status});
my @tables = qw(t k b parent child p u w late);
my $made = 0;
my $make = sub {
	$made++;
	$m->sql(q{
		SET client_min_messages = error;
		DROP VIEW IF EXISTS view_t;
		DROP TABLE IF EXISTS warm, t, k, b, parent, child, p, u, w, late CASCADE;
		CREATE TABLE warm (id int PRIMARY KEY);
		CREATE TABLE t (id int PRIMARY KEY, v int);
		CREATE TABLE k (a int, b text, v int, PRIMARY KEY (b, a));
		CREATE TABLE b (id int PRIMARY KEY, v int);
		CREATE FUNCTION before_b() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN
				IF coalesce(NEW.id, OLD.id) % 1000 = 14 OR NEW.v = 13 THEN RETURN NULL; END IF;
				IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
				NEW.id := NEW.id % 1000 + 1000;
				RETURN NEW;
			END $$;
		CREATE TRIGGER before_b BEFORE INSERT OR UPDATE OR DELETE ON b FOR EACH ROW EXECUTE FUNCTION before_b();
		CREATE TABLE parent (id int PRIMARY KEY);
		CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON UPDATE CASCADE ON DELETE CASCADE);
		CREATE TABLE p (id int, part int, v int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
		CREATE TABLE p0 (gone int, v int, part int NOT NULL, id int NOT NULL);
		ALTER TABLE p0 DROP COLUMN gone;
		ALTER TABLE p ATTACH PARTITION p0 FOR VALUES IN (0);
		CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
		CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
		CREATE TABLE u (id int PRIMARY KEY, o int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
		CREATE TABLE w (id int PRIMARY KEY, v int);
		CREATE TABLE late (id int PRIMARY KEY);
		CREATE VIEW view_t AS SELECT * FROM t;
		INSERT INTO t SELECT i, i FROM generate_series(1, 99) i;
		INSERT INTO k SELECT i, 'k' || i, i FROM generate_series(1, 9) i;
		INSERT INTO parent VALUES (1), (2), (3);
		INSERT INTO child SELECT i, 1 + i % 3 FROM generate_series(1, 30) i;
		INSERT INTO p SELECT i, i % 3, i FROM generate_series(1, 30) i;
		INSERT INTO u SELECT i, i FROM generate_series(10, 12) i;
		INSERT INTO w SELECT i, 0 FROM generate_series(1, 9) i;
		INSERT INTO late SELECT generate_series(1, 3)} =~ s/CREATE FUNCTION/CREATE OR REPLACE FUNCTION/r);
	$m->sql("SELECT crate_sync.add_table('$_', target => '${_}_$made', copy_data => false)") foreach 'warm', @tables;
	# as somebody may have made it
	$m->sql(q{ALTER TABLE w DISABLE TRIGGER crate_sync_capture;
		CREATE TRIGGER own AFTER UPDATE ON w FOR EACH ROW WHEN (NEW.v > 5) EXECUTE FUNCTION crate_sync.capture('id')});
};

# what a session queues, table by table; their OIDs differ from run to run
my $queue = join ' UNION ALL ', map { "SELECT * FROM crate_sync.queue_$_" } 0 .. 2;
my $run = sub {
	my ($warm, $sql) = @_;
	$make->();
	$m->sql('DELETE FROM crate_sync.queue_0; DELETE FROM crate_sync.queue_1; DELETE FROM crate_sync.queue_2');
	my ($out, $err) = ('', '');
	$node->psql($m->db, ($warm ? "INSERT INTO warm VALUES (1);\n" : '') . join("\n", $sql, ''),
		stdout => \$out, stderr => \$err, on_error_stop => 0);
	my $keys = $m->sql(qq{SELECT c.relname || ' ' || n || ' ' || encode(keys, 'hex') FROM ($queue) q
		JOIN pg_class c ON c.oid = q.relid WHERE c.relname <> 'warm' ORDER BY c.relname, xid, seq});
	my $rows = join "\n", map { $m->sql("SELECT '$_', x FROM $_ x ORDER BY x::text") } @tables;
	return ($keys, $rows, $err);
};

foreach (@statements)
{
	my ($name, $sql) = @$_;
	my ($fired, $rows, $err) = $run->(0, $sql);
	my ($early, $rows_early, $err_early) = $run->(1, $sql);
	is($rows_early, $rows, "$name: the same rows");
	is($early, $fired, "$name: the same keys");
	isnt($fired, '', "$name: there are some") unless $name eq 'nothing';
	is($err_early =~ s/psql:<stdin>:\d+: //gr, $err =~ s/psql:<stdin>:\d+: //gr, "$name: the same errors");
}

# and that it is taken early at all
my $plan = $m->sql(q{EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY on) UPDATE t SET v = 0 WHERE id = 9});
like($plan, qr/Trigger crate_sync_capture: calls=1/, 'the first time the trigger fires');
$plan = $m->sql(q{UPDATE t SET v = 1 WHERE id = 9; EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY on) UPDATE t SET v = 0 WHERE id = 9});
unlike($plan, qr/Trigger crate_sync_capture/, 'then it need not');

$m->finish;
$node->stop;
done_testing();
