# Attach, load, and every kind of DML there is: each arrives.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('capture');
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

CrateSync::on_targets(
	$node,
	sub {
		my ($m) = @_;
		my @all = ('t', 'comp', '"MixedCase"', 'parent', 'child', 'part', 'ci');

		$m->sql(<<'EOQ');
CREATE TABLE t (id bigint PRIMARY KEY, v text, n int, at timestamptz, num numeric(10,2), d float8, b boolean);
CREATE TABLE comp (a int, b text, v text, PRIMARY KEY (a, b));
CREATE TABLE "MixedCase" ("Id" int PRIMARY KEY, "Some ""Col""" text, "select" int);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v text);
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE part_low (gone int, id int NOT NULL, v text, k int NOT NULL);
ALTER TABLE part_low DROP COLUMN gone;
ALTER TABLE part ATTACH PARTITION part_low FOR VALUES FROM (0) TO (100);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (100) TO (200) PARTITION BY LIST (k);
CREATE TABLE part_high_1 PARTITION OF part_high FOR VALUES IN (100, 101, 102);
CREATE TABLE part_high_2 PARTITION OF part_high DEFAULT;
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE ci (k text COLLATE nocase PRIMARY KEY, v int);
INSERT INTO t SELECT i, 'v' || i, i, '2024-01-01Z'::timestamptz + i * interval '1 minute 1 ms', i / 7.0, i / 3.0, i % 2 = 0
	FROM generate_series(1, 500) i;
INSERT INTO comp SELECT i, 'b' || i % 3, 'v' FROM generate_series(1, 300) i;
INSERT INTO "MixedCase" SELECT i, 'v''"' || i, i FROM generate_series(1, 50) i;
INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, i % 20 + 1, 'c' FROM generate_series(1, 100) i;
INSERT INTO part SELECT i, i, 'v' FROM generate_series(1, 199) i;
INSERT INTO ci SELECT 'key' || i, i FROM generate_series(1, 20) i;
EOQ
		$m->add(@all);
		$m->equal(\@all, 'load');
		is($m->target_count('t'), 500, 'rows in the target, asked for there');
		is($m->target_count('part'), 199, 'rows of all partitions are in the one target table');
		is($m->target_count('MixedCase'), 50, 'a quoted name');
		is($m->target_value('SELECT count(*) FROM {t} WHERE v = \'v77\''), 1, 'a value');

		# the comparison notices one changed row
		$m->target_change('UPDATE {t} SET v = \'tampered\' WHERE id = 7');
		$m->refresh('t');
		my ($ret, $report) = $m->compare('t');
		is($ret, 1, 'the comparison notices a row changed by hand in the target');
		$m->sql('UPDATE t SET v = v WHERE id = 7');
		$m->equal('t', 'an update without a change');

		my %dml = (
			'INSERT' => q{INSERT INTO t (id, v) VALUES (1000, 'new'), (1001, NULL);},
			'UPDATE' => q{UPDATE t SET v = 'changed' WHERE id BETWEEN 10 AND 20;},
			'DELETE' => q{DELETE FROM t WHERE id BETWEEN 30 AND 40;},
			'UPDATE of the key' => q{UPDATE t SET id = id + 5000 WHERE id BETWEEN 50 AND 60;},
			'keys that change places' =>
			  q{UPDATE t SET id = -id WHERE id IN (70, 71); UPDATE t SET id = CASE id WHEN -70 THEN 71 ELSE 70 END WHERE id IN (-70, -71);},
			'upsert' =>
			  q{INSERT INTO t (id, v) VALUES (80, 'up'), (2000, 'ins') ON CONFLICT (id) DO UPDATE SET v = excluded.v || '!';
				INSERT INTO t (id, v) VALUES (81, 'up'), (2001, 'ins') ON CONFLICT DO NOTHING;},
			'COPY' => qq{COPY t (id, v) FROM stdin;\n3000\tcopied\n3001\t\\N\n\\.\n},
			'composite key' =>
			  q{UPDATE comp SET b = 'moved' WHERE a < 10; DELETE FROM comp WHERE a = 50; INSERT INTO comp VALUES (1000, '', 'empty'), (1000, ' ', 'blank');},
			'quoted names' => q{UPDATE "MixedCase" SET "Some ""Col""" = E'a\nb\t\\\\"' WHERE "Id" < 5; DELETE FROM "MixedCase" WHERE "Id" = 10;},
			'FK cascade of DELETE' => q{DELETE FROM parent WHERE id = 3;},
			'FK cascade of UPDATE' => q{UPDATE parent SET id = 400 WHERE id = 4;},
			'writable CTE' => q{WITH d AS (DELETE FROM t WHERE id = 90 RETURNING *) INSERT INTO t SELECT id + 9000, v FROM d;},
			'insert and delete in one transaction' => q{BEGIN; INSERT INTO t (id) VALUES (7777); DELETE FROM t WHERE id = 7777; COMMIT;},
			'delete and insert in one transaction' => q{BEGIN; DELETE FROM t WHERE id = 100; INSERT INTO t (id, v) VALUES (100, 'again'); COMMIT;},
			'rolled back' => q{BEGIN; UPDATE t SET v = 'never'; ROLLBACK;},
			'savepoints' => q{BEGIN; UPDATE t SET v = 's0' WHERE id = 101; SAVEPOINT a; UPDATE t SET v = 's1' WHERE id = 102;
				SAVEPOINT b; UPDATE t SET v = 's2' WHERE id = 103; ROLLBACK TO b; UPDATE t SET v = 's3' WHERE id = 104; RELEASE a;
				SAVEPOINT c; DELETE FROM t WHERE id = 105; ROLLBACK TO c; COMMIT;},
			'exception block' => q{DO $$ BEGIN UPDATE t SET v = 'e0' WHERE id = 106;
				BEGIN UPDATE t SET v = 'e1' WHERE id = 107; PERFORM 1 / 0; EXCEPTION WHEN OTHERS THEN UPDATE t SET v = 'e2' WHERE id = 108; END; END $$;},
			'prepared transaction' => q{BEGIN; UPDATE t SET v = 'p' WHERE id = 110; INSERT INTO comp VALUES (110, 'p', 'p'); PREPARE TRANSACTION 'p1'; COMMIT PREPARED 'p1';},
			'prepared transaction, rolled back' => q{BEGIN; UPDATE t SET v = 'px' WHERE id = 111; PREPARE TRANSACTION 'p2'; ROLLBACK PREPARED 'p2';},
			'COMMIT in a procedure' => q{DO $$ BEGIN FOR i IN 120..125 LOOP UPDATE t SET v = 'proc' WHERE id = i; COMMIT; END LOOP; END $$;},
			'COMMIT AND CHAIN' => q{BEGIN; UPDATE t SET v = 'ch1' WHERE id = 126; COMMIT AND CHAIN; UPDATE t SET v = 'ch2' WHERE id = 127; COMMIT;},
			'SERIALIZABLE' => q{BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE t SET v = 'ser' WHERE id = 128; COMMIT;},
			'READ ONLY after writing' => q{BEGIN; UPDATE t SET v = 'ro' WHERE id = 129; SET TRANSACTION READ ONLY; COMMIT;},
			'session_replication_role = replica' => q{SET session_replication_role = replica; UPDATE t SET v = 'repl' WHERE id = 130; DELETE FROM t WHERE id = 131; INSERT INTO t (id) VALUES (1320000);},
			'asynchronous commit' => q{SET synchronous_commit = off; UPDATE t SET v = 'async' WHERE id = 133;},
			'deferred trigger that writes' => q{CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE t SET n = n + 1 WHERE id = 134; RETURN NULL; END';
				CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON parent DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION touch(); INSERT INTO parent VALUES (1000, 'x'); DROP TRIGGER deferred ON parent;},
			'BEFORE trigger that changes the row' => q{CREATE OR REPLACE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := upper(NEW.v); RETURN NEW; END';
				CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION shout(); UPDATE t SET v = 'loud' WHERE id = 135; DROP TRIGGER shout ON t;},
			'partitioned table' => q{INSERT INTO part VALUES (500, 50, 'x'), (600, 150, 'y'); UPDATE part SET v = 'root' WHERE k < 5; DELETE FROM part WHERE k = 6;},
			'row that moves to another partition' => q{UPDATE part SET k = k + 100 WHERE k BETWEEN 7 AND 9;},
			'DML straight to a leaf' => q{UPDATE part_low SET v = 'leaf' WHERE k = 10; DELETE FROM part_low WHERE k = 11; INSERT INTO part_high_1 (id, k, v) VALUES (700, 101, 'leaf');},
			'DML to a partition in between' => q{UPDATE part_high SET v = 'mid' WHERE k > 180;},
			'a key that changes its case only' => q{UPDATE ci SET k = upper(k) WHERE v <= 3; INSERT INTO ci VALUES ('KEY5', 0) ON CONFLICT (k) DO UPDATE SET k = excluded.k, v = 55;},
			'large transaction with rolled-back savepoint' => q{BEGIN; INSERT INTO t (id, v) SELECT i, 'big' FROM generate_series(100000, 140000) i;
				SAVEPOINT s; UPDATE t SET v = 'never' WHERE id >= 100000; DELETE FROM t WHERE id < 100000; ROLLBACK TO s;
				UPDATE t SET v = 'kept' WHERE id BETWEEN 100000 AND 101000; SAVEPOINT s2; INSERT INTO t (id, v) SELECT i, 'sub' FROM generate_series(200000, 240000) i; RELEASE s2; COMMIT;},
			'mass DELETE' => q{DELETE FROM t WHERE id >= 100000;},
			'view' => q{CREATE OR REPLACE VIEW tv AS SELECT id, v FROM t; UPDATE tv SET v = 'by view' WHERE id = 140; INSERT INTO tv VALUES (1410000, 'by view');},
			'rule' => q{CREATE TABLE log_of (id int); CREATE RULE r AS ON DELETE TO log_of DO ALSO DELETE FROM t WHERE id = 142; INSERT INTO log_of VALUES (1); DELETE FROM log_of; DROP TABLE log_of;},
		);
		$dml{'MERGE'} =
		  q{MERGE INTO t USING (VALUES (150, 'm'), (151, NULL), (1520000, 'ins')) s(id, v) ON t.id = s.id
			WHEN MATCHED AND s.v IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET v = s.v WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, s.v);}
		  if $version >= 150000;

		foreach my $name (sort keys %dml)
		{
			$m->sql($dml{$name});
			$m->equal(\@all, $name);
		}
		is($m->target_value('SELECT count(*) FROM {ci} WHERE v <= 3'), 3, 'no second row under the other case');
		is($m->target_value('SELECT v FROM {t} WHERE id = 104'), 's3', 'what a savepoint released');
		is($m->target_value('SELECT v FROM {t} WHERE id = 103'), 'v103', 'what a savepoint rolled back');
		is($m->target_value('SELECT v FROM {t} WHERE id = 130'), 'repl', 'a change as a replica');

		# a prepared transaction that stays open holds up nobody
		$m->sql(q{BEGIN; UPDATE t SET v = 'later' WHERE id = 160; PREPARE TRANSACTION 'open';});
		$m->sql(q{UPDATE t SET v = 'now' WHERE id = 161;});
		$m->equal(\@all, 'beside an open prepared transaction');
		is($m->target_value('SELECT v FROM {t} WHERE id = 160'), 'v160', 'its change is not there');
		$m->sql(q{COMMIT PREPARED 'open';});
		$m->equal(\@all, 'once it is committed');
		is($m->target_value('SELECT v FROM {t} WHERE id = 160'), 'later', 'its change is there');

		# TRUNCATE, with rows that come after it in the same transaction
		$m->sql(q{TRUNCATE part_low;});
		$m->equal(\@all, 'TRUNCATE of a leaf');
		is( $m->target_count('part'),
			$m->sql('SELECT count(*) FROM part'),
			'the other leaves are there');
		cmp_ok($m->target_count('part'), '>', 0, 'and they are not empty');
		$m->sql(q{BEGIN; TRUNCATE comp; INSERT INTO comp VALUES (1, 'after', 'x'); COMMIT;});
		$m->equal(\@all, 'TRUNCATE and INSERT');
		is($m->target_count('comp'), 1, 'the row after the TRUNCATE is there alone');
		$m->sql(q{BEGIN; INSERT INTO comp VALUES (2, 'before', 'x'); SAVEPOINT s; TRUNCATE comp; ROLLBACK TO s; COMMIT;});
		$m->equal(\@all, 'TRUNCATE that was rolled back');
		is($m->target_count('comp'), 2, 'nothing was removed');
		$m->sql(q{TRUNCATE parent CASCADE;});
		$m->equal(\@all, 'TRUNCATE CASCADE');
		is($m->target_count('child'), 0, 'the cascaded table is empty');
		$m->sql(q{TRUNCATE part;});
		$m->equal(\@all, 'TRUNCATE of a partitioned table');

		# partitions made later capture too
		$m->sql(q{CREATE TABLE part_new PARTITION OF part FOR VALUES FROM (200) TO (300); INSERT INTO part_new VALUES (1, 200, 'new');});
		$m->equal(\@all, 'a partition made later');
		is($m->target_count('part'), 1, 'its row is there');

		# remove_table leaves nothing behind
		$m->sql(q{SELECT crate_sync.remove_table(r::regclass) FROM unnest('{t,comp,"\"MixedCase\"",parent,child,ci}'::text[]) r;});
		$m->sql(q{SELECT crate_sync.remove_table('part', drop_target => true);});
		is($m->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%'}), 0, 'remove_table takes the triggers away');
		is($m->sql(q{SELECT count(*) FROM crate_sync.tables}), 0, 'no table is left');
		$m->sql(q{UPDATE t SET v = 'unseen' WHERE id = 161});
		ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.status}), 'the queue is empty');
		is($m->target_value('SELECT v FROM {t} WHERE id = 161'), 'now', 'a removed table is no longer pushed');
		ok( CrateSync::wait_until('dropped',
				sub { !eval { $m->target_rows('SELECT count(*) FROM {part}'); 1 } }),
			'drop_target drops the table');
	});

done_testing();
