# What a mirror may cost those who write: no memory that grows with the number of subtransactions, no error
# that is not their own.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use Test::More;
use Time::HiRes qw(sleep);

my $node = CrateSync::server('writers', conf => "crate_sync.max_retry_interval = 300ms\ncrate_sync.interval = 100ms\n");

my %loop = (
	'exception blocks' => q{BEGIN INSERT INTO %s SELECT * FROM make(i); EXCEPTION WHEN unique_violation THEN NULL; END;},
	'exception blocks that are left by an error' =>
	  q{BEGIN INSERT INTO %s SELECT * FROM make(i); PERFORM 1 / (i %% 2); EXCEPTION WHEN division_by_zero THEN NULL; END;},
	'blocks in blocks' => q{BEGIN BEGIN INSERT INTO %s SELECT * FROM make(i); EXCEPTION WHEN unique_violation THEN NULL; END;
		INSERT INTO %1$s SELECT * FROM make(-i); EXCEPTION WHEN unique_violation THEN NULL; END;});

# memory of the session inside of the transaction, in MB
sub memory
{
	my ($m, $script) = @_;
	my ($out) = $m->sql("BEGIN;\n$script\nSELECT 'MB: ' || sum(total_bytes) / 1048576 FROM pg_backend_memory_contexts;\nCOMMIT;") =~ /MB: (\d+)/;
	return $out;
}

# --- many subtransactions
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my %key = ('text' => q{'key ' || i}, 'uuid' => q{md5(i::text)::uuid}, 'numeric' => q{i / 7.0}, 'bigint' => 'i::bigint');
	foreach my $type (sort keys %key)
	{
		$m->sql("CREATE TABLE plain_$type (k $type PRIMARY KEY, v int); CREATE TABLE t_$type (k $type PRIMARY KEY, v int);");
		$m->sql("CREATE OR REPLACE FUNCTION make(i int, OUT k $type, OUT v int) LANGUAGE sql AS \$\$SELECT $key{$type}, i\$\$");
		$m->add("t_$type");
		foreach my $name (sort keys %loop)
		{
			my @mb = map {
				my $block = sprintf $loop{$name}, $_;
				memory($m, "DO \$\$ BEGIN FOR i IN 1..15000 LOOP $block END LOOP; END \$\$;");
			} "plain_$type", "t_$type";
			cmp_ok($mb[1], '<', $mb[0] + 20, "$name, key $type: $mb[1] MB, $mb[0] where nothing is mirrored");
			$m->sql("TRUNCATE plain_$type, t_$type");
		}
		my @mb = map {
			my $table = $_;
			memory($m, join '', map { "SAVEPOINT s; INSERT INTO $table SELECT * FROM make($_); RELEASE s;\n" } 1 .. 10000);
		} "plain_$type", "t_$type";
		cmp_ok($mb[1], '<', $mb[0] + 20, "savepoints, key $type: $mb[1] MB, $mb[0] where nothing is mirrored");
		$m->equal("t_$type", "$type: all of it");
		$m->sql("DROP FUNCTION make");
	}

	# what does not fit into memory is written in whole chunks, not one for each subtransaction
	$m->sql(q{CREATE TABLE many (k uuid PRIMARY KEY)});
	$m->add('many');
	$m->equal('many', 'a table to be filled');
	$m->sql(q{SELECT crate_sync.stop()});
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql(q{DO $$ BEGIN FOR i IN 1..40000 LOOP BEGIN INSERT INTO many VALUES (gen_random_uuid()); EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$});
	my $chunks = $m->sql(q{SELECT count(*) FROM (TABLE crate_sync.queue_0 UNION ALL TABLE crate_sync.queue_1 UNION ALL TABLE crate_sync.queue_2) q});
	cmp_ok($chunks, '<', 400, "40000 subtransactions of one key each: $chunks chunks");
	$m->sql(q{SELECT crate_sync.start()});
	$m->equal('many', 'filled');

	# the same mark again and again is one mark
	$m->sql(q{CREATE TABLE emptied (k text PRIMARY KEY)});
	$m->add('emptied');
	$m->equal('emptied', 'a table to be emptied');
	$m->sql(q{SELECT crate_sync.stop()});
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql(q{DO $$ BEGIN FOR i IN 1..500 LOOP BEGIN TRUNCATE emptied; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$});
	is($m->sql(q{SELECT count(*) FROM (TABLE crate_sync.queue_0 UNION ALL TABLE crate_sync.queue_1 UNION ALL TABLE crate_sync.queue_2) q WHERE n = -1}),
		1, 'a TRUNCATE in each of 500 subtransactions is queued once');
	$m->sql(q{INSERT INTO emptied VALUES ('one'); SELECT crate_sync.start()});
	$m->equal('emptied', 'emptied');
}, only => 'sqlite', why => 'it is the writer who is looked at');

# --- a trigger of somebody's own that calls our function beside ours
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE p (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
		INSERT INTO p SELECT i, 0 FROM generate_series(1, 50) i});
	$m->add('p');
	$m->equal('p', 'load');
	$m->sql(q{CREATE TRIGGER a_first AFTER INSERT OR UPDATE OR DELETE ON p1 FOR EACH ROW EXECUTE FUNCTION crate_sync.capture('v')});
	$m->equal('p', 'a trigger that is not ours');
	$m->sql('UPDATE p SET v = 1 WHERE id <= 20');
	$m->sql('DELETE FROM p1 WHERE id > 40');
	$m->equal('p', 'rows that both have seen');
	is($m->target_value('SELECT sum(v) FROM {p}'), 20, '... have arrived');
}, only => 'sqlite', why => 'it is about the queue');

# --- a table that stopped queueing, as the queue was full, is removed and added again
CrateSync::Faults::on_freezable($node, sub {
	my ($m) = @_;
	my $set = sub { $node->safe_psql('postgres', "ALTER SYSTEM $_[0]"); $node->reload };
	$m->sql(q{CREATE TABLE big (id text PRIMARY KEY, v text); INSERT INTO big SELECT repeat(md5(i::text), 3), 'v' FROM generate_series(1, 12000) i});
	$m->add('big');
	$m->equal('big', 'load');
	$set->(q{SET crate_sync.max_queue_size = '1MB'});
	$set->(q{SET crate_sync.queue_full_action = 'detach_and_resync'});
	CrateSync::Faults::freeze($m);
	$m->sql(q{UPDATE big SET v = 'full'});
	ok($m->poll('SELECT count(*) = 1 FROM crate_sync.detached'), 'it stops queueing');
	# in a session that has learnt so
	my $session = $m->background(<<'EOQ');
UPDATE big SET v = 'not queued' WHERE id < '1';
BEGIN;
SELECT crate_sync.remove_table('big');
SELECT crate_sync.add_table('big');
UPDATE big SET v = 'as it is added' WHERE id < '2';
COMMIT;
UPDATE big SET v = 'after' WHERE id < '1';
EOQ
	is($session->done =~ s/^.*(?:WARNING|DETAIL|HINT).*\n//gmr, '', 'removed and added');
	is($m->sql('SELECT count(*) FROM crate_sync.detached'), 0, 'it queues again');
	cmp_ok($m->sql('SELECT count(*) FROM (TABLE crate_sync.queue_0 UNION ALL TABLE crate_sync.queue_1 UNION ALL TABLE crate_sync.queue_2 UNION ALL TABLE crate_sync.queue_hold) q'), '>', 0, '... as can be seen');
	$set->('RESET crate_sync.max_queue_size');
	$set->('RESET crate_sync.queue_full_action');
	CrateSync::Faults::thaw($m);
	$m->equal('big', 'the target is back');
	$m->sql(q{UPDATE big SET v = 'later'; DELETE FROM big WHERE id < '1'});
	$m->equal('big', 'and later');
	is($m->target_value(q{SELECT count(*) FROM {big} WHERE v <> 'later'}), 0, 'all has arrived');
});

# --- keys that are longer than a chunk of the queue
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('k', 'ck');
	my $log = CrateSync::log_size($node);
	# CrateDB takes no text of more in a key
	my $lengths = $m->kind eq 'sqlite' ? '8001, 9000, 30000, 200000' : '8001, 9000, 30000';
	my $long = q{repeat('long ', 1800)};
	$m->sql(qq{CREATE TABLE k (k text PRIMARY KEY, v int); INSERT INTO k SELECT repeat('k', n) || n, 0 FROM unnest(ARRAY[1, 100, $lengths]) n;
		INSERT INTO k SELECT 'short ' || i, 0 FROM generate_series(1, 300) i; INSERT INTO k VALUES ($long, 0);
		CREATE TABLE ck (a int, k text, b uuid, v int, PRIMARY KEY (k, a, b));
		INSERT INTO ck SELECT i, repeat('x', n) || repeat('yz', n / 2), md5('u')::uuid, 0 FROM generate_series(-1, 1) i, unnest(ARRAY[1, 6000, 12000]) n});
	$m->add(@t);
	$m->equal(\@t, 'load');
	my $loaded = $m->sql('SELECT string_agg(last_load_time::text, $$ $$ ORDER BY relid) FROM crate_sync.tables');

	$m->sql('UPDATE k SET v = 1; UPDATE ck SET v = 1');
	$m->equal(\@t, 'all changed');
	$m->sql("UPDATE k SET v = 2 WHERE k = $long");
	$m->sql("BEGIN; UPDATE k SET v = 3 WHERE k = $long; UPDATE k SET v = 3 WHERE length(k) < 20; SAVEPOINT a; UPDATE k SET v = 4 WHERE k = $long; UPDATE ck SET v = 4;"
		. " ROLLBACK TO a; SAVEPOINT b; SAVEPOINT c; UPDATE k SET v = 5 WHERE length(k) > 8000; UPDATE k SET v = 5 WHERE k = 'short 7'; RELEASE b; UPDATE k SET v = v + 1 WHERE length(k) > 20000; COMMIT");
	$m->equal(\@t, 'by savepoints');
	is($m->target_value(q{SELECT v FROM {k} WHERE k = '} . ('long ' x 1800) . q{'}), 5, 'as can be seen');
	$m->sql(q{DO $$ BEGIN FOR i IN 1..200 LOOP BEGIN UPDATE k SET v = i WHERE length(k) > 8000; UPDATE k SET v = i WHERE k = 'short 1'; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$});
	$m->equal(\@t, 'in many subtransactions');
	$m->sql("UPDATE k SET k = 'was ' || k WHERE length(k) > 8000; UPDATE ck SET k = k || '!', a = a + 10; DELETE FROM k WHERE length(k) = 9008; INSERT INTO k VALUES (repeat('new ', 2500), 7)");
	$m->equal(\@t, 'keys changed, gone, new');
	$m->sql('SELECT crate_sync.pause()');
	$m->sql('UPDATE k SET v = 8; UPDATE ck SET v = 8; DELETE FROM ck WHERE length(k) > 15000');
	sleep 1;
	cmp_ok($m->status('queued_keys'), '>=', 300, 'held while paused');
	$m->sql('SELECT crate_sync.resume()');
	$m->equal(\@t, 'after a pause');

	# found by verify
	$m->target_change(q{UPDATE {k} SET v = 99 WHERE k LIKE 'was %'});
	$m->target_change(q{DELETE FROM {k} WHERE k LIKE 'new new %'});
	$m->target_change(q{INSERT INTO {k} (k, v) VALUES ('} . ('too much ' x 1000) . q{', 1)});
	$m->sql(q{SELECT crate_sync.verify('k', repair => true)});
	ok($m->poll(q{SELECT count(*) >= 4 FROM crate_sync.differences}), 'verify finds what differs') or diag($m->sql('SELECT kind, left(key::text, 40) FROM crate_sync.differences'));
	$m->equal(\@t, 'and mends it');
	is($m->sql('SELECT string_agg(last_load_time::text, $$ $$ ORDER BY relid) FROM crate_sync.tables'), $loaded, 'all of that without a load');
	is(CrateSync::log_count($node, qr/full resync of/, $log), 0, '... or the beginning of one');

	# a failed row with such a key can be tried again
	$m->sql(qq{CREATE TABLE broken (); INSERT INTO broken DEFAULT VALUES;
		CREATE FUNCTION fine(v int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS 'BEGIN IF v = 0 AND EXISTS (SELECT FROM $m->{schema}.broken) THEN RAISE division_by_zero; END IF; RETURN true; END';
		CREATE TABLE fk (k text PRIMARY KEY, v int); INSERT INTO fk SELECT repeat('f', 9000) || i, i FROM generate_series(0, 5) i});
	$m->sql(q{SELECT crate_sync.add_table('fk', row_filter => 'fine(v)')});
	ok($m->poll('SELECT count(*) = 1 FROM crate_sync.failed_rows'), 'a row that cannot be read is a failed row') or $m->tell_why;
	is($m->sql(q{SELECT length(key->>'k') || action FROM crate_sync.failed_rows}), '9001read', 'with its key');
	$m->sql('DELETE FROM broken');
	is($m->sql('SELECT crate_sync.retry_failed()'), 1, 'it is tried again');
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.failed_rows'), 'and arrives');
	$m->equal([ @t, 'fk' ], 'as do the others');
	$m->sql(q{CREATE TABLE refused (k text PRIMARY KEY, v text); INSERT INTO refused SELECT repeat('r', 9000) || i, i FROM generate_series(1, 3) i});
	$m->add('refused');
	$m->equal('refused', 'one that the target refuses');
	if ($m->kind eq 'sqlite')
	{
		$m->target_change(q{CREATE TRIGGER no BEFORE UPDATE ON {refused} WHEN new.v = 'no' BEGIN SELECT raise(ABORT, 'no'); END});
		$m->target_change(q{CREATE TRIGGER never BEFORE INSERT ON {refused} WHEN new.v = 'no' BEGIN SELECT raise(ABORT, 'no'); END});
		$m->sql(q{UPDATE refused SET v = CASE WHEN k LIKE '%2' THEN 'no' ELSE 'yes' END});
		ok($m->poll('SELECT count(*) = 1 FROM crate_sync.failed_rows'), 'is a failed row');
		$m->target_change('DROP TRIGGER no');
		$m->target_change('DROP TRIGGER never');
		is($m->sql('SELECT crate_sync.retry_failed()'), 1, 'it is tried again');
		$m->equal('refused', 'and arrives');
	}

	# chunks that are none hold nobody up
	foreach my $bad ('', '\x00', '\xffffffffff', '\xffffffff0f6162636465', '\x80808001', '\xa08d0661ff0f010102ff0f0101ff')
	{
		$m->sql(qq{SELECT crate_sync.pause('k')});
		$m->sql(qq{UPDATE k SET v = v + 1 WHERE k = 'short 2'});
		$m->sql(qq{INSERT INTO crate_sync.queue_0 SELECT pg_current_xact_id(), now(), relid, 1000 + seq, layout, -3, '$bad'
			FROM (TABLE crate_sync.queue_0 UNION ALL TABLE crate_sync.queue_1 UNION ALL TABLE crate_sync.queue_2 UNION ALL TABLE crate_sync.queue_hold) q WHERE relid = 'k'::regclass LIMIT 1});
		$m->sql(qq{SELECT crate_sync.resume('k')});
		$m->equal(\@t, "a chunk that is none: $bad");
		ok($m->poll(q{SELECT NOT EXISTS (SELECT FROM crate_sync.progress)}), '... a resync mends it');
	}
	cmp_ok(CrateSync::log_count($node, qr/queued keys of $m->{schema}\.k cannot be read: it is resynced/, $log), '>=', 5, '... as the log says');
	is(CrateSync::log_count($node, qr/was terminated by signal/, $log), 0, 'nothing has crashed');
});

$node->stop;
done_testing();
