# What a mirror may cost those who write: no memory that grows with the number of subtransactions, no error
# that is not their own.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use Test::More;

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

$node->stop;
done_testing();
