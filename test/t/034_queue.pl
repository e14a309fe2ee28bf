# The queue: what is thrown away, what is read and how often, what it costs.
use strict;
use warnings;
use CrateSync;
use CrateSync::Points;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('queue', conf => <<'EOC');
crate_sync.debug_points = on
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
EOC

# pages of queue tables that were read, by anybody; what a backend has read it tells when it has nothing else to do, or within a second
sub pages_read
{
	my ($m, $tables) = @_;
	sleep 1.5;
	return $m->sql("SELECT pg_stat_clear_snapshot(); SELECT sum(heap_blks_read + heap_blks_hit) FROM pg_statio_all_tables WHERE schemaname = 'crate_sync' AND relname ~ '$tables'") =~ s/^\s+//r;
}

# changes of a small table, each waited for at the target; nobody else looks into the queue
sub small_changes
{
	my ($m, $n, $from) = @_;
	foreach my $i ($from .. $from + $n - 1)
	{
		$m->sql("INSERT INTO small VALUES ($i)");
		CrateSync::wait_until('it arrives', sub { $m->target_value("SELECT count(*) FROM {small} WHERE id = $i") == 1 }) or return 0;
	}
	return 1;
}

# as equal(), while others are paused
sub equal_alone
{
	my ($m, $table, $name) = @_;
	ok($m->wait_sync($table), "$name: in sync");
	my ($ret, $report) = $m->compare($table);
	is($ret, 0, "$name: both sides are equal") or diag $report;
}

# --- a chunk of a table that is not known: the catalog as it was before the chunk's commit proves nothing
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(qq{CREATE TABLE t$_ (id int PRIMARY KEY, v text)}) foreach 1 .. 4;
	$m->add('t1');
	$m->equal('t1', 'the first table');

	# the worker is about to look into the queue; the catalog changes, so it is read again
	my $late = 0;
	foreach my $what ('a table that was added a moment ago', 'a table that a prepared transaction has added')
	{
		my ($new, $newer) = $late ? ('t3', 't4') : ('t2', 't3');
		my $add = "BEGIN; SELECT crate_sync.add_table('$newer', copy_data => false); INSERT INTO $newer VALUES (1, 'v')";
		my $ready = CrateSync::Points::hold($m, 'before ready');
		$m->sql("SELECT crate_sync.remove_table('$new', if_exists => true)");
		$m->add($new);
		ok($ready->wait, "$what: the worker makes another one ready");
		my $after = CrateSync::Points::hold($m, 'after reload');
		$m->sql("$add; PREPARE TRANSACTION 'late'") if $late;
		$m->sql(q{SELECT crate_sync.pause('t1'); SELECT crate_sync.resume('t1')});
		$ready->let_go;
		ok($after->wait, '... and has read the catalog, before it looks into the queue');
		$m->sql($late ? q{COMMIT PREPARED 'late'} : "$add; COMMIT");
		$after->let_go;
		$m->equal($newer, "$what: its keys arrive");
		$late = 1;
	}

	# where the catalog proves it, they go
	$m->sql(q{SELECT crate_sync.pause('t1'); UPDATE t1 SET v = 'x'; INSERT INTO t1 SELECT i FROM generate_series(100, 200) i});
	$m->sql(q{SELECT crate_sync.remove_table('t1')});
	ok($m->poll(q{SELECT coalesce(sum(queued_keys), 0) = 0 FROM crate_sync.queue_stats(true)}), 'the keys of a table that was removed are dropped');
});

# --- chunks that are held: those of a paused table cost others nothing, and are found when they are wanted
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $held = q{SELECT coalesce(sum(n), 0) FROM crate_sync.queue_hold WHERE relid = };
	my $not_elsewhere = q{SELECT count(*) = 0 FROM (SELECT 1 FROM crate_sync.queue_0 UNION ALL SELECT 1 FROM crate_sync.queue_1 UNION ALL SELECT 1 FROM crate_sync.queue_2) q};

	$m->sql(q{CREATE TABLE paused (id text PRIMARY KEY, v int); INSERT INTO paused SELECT repeat(md5(i::text), 6), 0 FROM generate_series(1, 15000) i;
		CREATE TABLE other (id text PRIMARY KEY, v int); INSERT INTO other SELECT repeat(md5(i::text), 6), 0 FROM generate_series(1, 3000) i;
		CREATE TABLE small (id int PRIMARY KEY)});
	$m->add('paused', 'other', 'small');
	$m->equal([ 'paused', 'other', 'small' ], 'loaded');
	$m->sql(q{SELECT crate_sync.pause('paused'); SELECT crate_sync.pause('other')});
	$m->sql(q{UPDATE paused SET v = 1});
	$m->sql(q{UPDATE other SET v = 1});
	$m->sql(q{UPDATE paused SET v = 2});
	ok($m->poll($not_elsewhere), 'the backlog of paused tables is held');
	is($m->sql("$held 'paused'::regclass"), 30000, '... all of it');
	my $pages = $m->sql(q{SELECT pg_relation_size('crate_sync.queue_hold') / 8192});
	cmp_ok($pages, '>', 500, "... and takes some room ($pages pages)");
	foreach my $when ('beside a paused table', 'and after a restart')
	{
		ok(small_changes($m, 3, $when =~ /restart/ ? 100 : 0), "changes of another table arrive $when");
		my $before = pages_read($m, 'hold');
		ok(small_changes($m, 20, $when =~ /restart/ ? 200 : 50), '... one by one');
		my $read = pages_read($m, 'hold') - $before;
		# the status that is told by NOTIFY looks at it each second, no change does
		cmp_ok($read, '<', 10 * $pages, "... without what is held being read again and again ($read pages)");
		last if $when =~ /restart/;
		$m->kill_worker('TERM');
		$m->wait_worker;
	}
	$m->sql(q{SELECT crate_sync.resume('other')});
	ok($m->poll("SELECT ($held 'other'::regclass) = 0"), 'one of them is resumed: its keys are found between the other\'s');
	equal_alone($m, 'other', '... all of them');
	is($m->sql("$held 'paused'::regclass"), 30000, '... and none of the other\'s');
	# chunks that come to lie where others were, before the place where reading goes on
	$m->sql('VACUUM crate_sync.queue_hold');
	$m->sql(q{SELECT crate_sync.pause('other'); UPDATE other SET v = 2});
	ok($m->poll($not_elsewhere), 'its keys are held again');
	$m->sql(q{SELECT crate_sync.resume('other')});
	equal_alone($m, 'other', '... and found again');
	$m->sql(q{UPDATE paused SET v = 3 WHERE id < '8'});
	$m->sql(q{SELECT crate_sync.resume('paused')});
	$m->equal([ 'paused', 'other', 'small' ], 'the other one is resumed');
	# a table that is removed while its chunks are held, and one that comes back
	$m->sql(q{SELECT crate_sync.pause('paused'); SELECT crate_sync.pause('other'); UPDATE paused SET v = 4; UPDATE other SET v = 4});
	ok($m->poll($not_elsewhere), 'held once more');
	$m->sql(q{SELECT crate_sync.remove_table('paused'); SELECT crate_sync.remove_table('other'); SELECT crate_sync.add_table('other')});
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.queue_hold'), 'what is held of tables that were removed is dropped');
	$m->equal([ 'other', 'small' ], 'one of them was added again');
});

# --- who waits looks through the queue once
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $not_elsewhere = q{SELECT count(*) = 0 FROM (SELECT 1 FROM crate_sync.queue_0 UNION ALL SELECT 1 FROM crate_sync.queue_1 UNION ALL SELECT 1 FROM crate_sync.queue_2) q};

	$m->sql(q{CREATE TABLE paused (id text PRIMARY KEY, v int); INSERT INTO paused SELECT repeat(md5(i::text), 6), 0 FROM generate_series(1, 15000) i;
		CREATE TABLE small (id int PRIMARY KEY)});
	$m->add('paused', 'small');
	$m->equal([ 'paused', 'small' ], 'loaded');
	$m->sql(q{SELECT crate_sync.pause(); UPDATE paused SET v = 1});
	$m->sql(q{UPDATE paused SET v = 2});
	ok($m->poll($not_elsewhere), 'a backlog is held');
	$m->sql('INSERT INTO small VALUES (1)');
	ok($m->poll(q{SELECT count(*) = 1 FROM crate_sync.queue_hold WHERE relid = 'small'::regclass}), 'and a key of another table, behind it');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql(q{SELECT crate_sync.resume('small')});
	my $pages = $m->sql(q{SELECT pg_relation_size('crate_sync.queue_hold') / 8192});
	my $before = pages_read($m, '^queue');
	my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync('small', '3s')});
	is($out, 'f', 'somebody waits for it');
	my $read = pages_read($m, '^queue') - $before;
	cmp_ok($read, '>', $pages / 2, "... the queue was looked through ($read of $pages pages)");
	cmp_ok($read, '<', 3 * $pages, '... once');
	$m->sql('SELECT crate_sync.start()');
	ok($m->wait_sync('small'), '... and waits until it has arrived');
	$m->sql('SELECT crate_sync.resume()');
	$m->equal([ 'paused', 'small' ], 'so has all');
}, only => 'sqlite', why => 'the target has nothing to do with it');

# --- who looks at the queue is in no writer's way, SERIALIZABLE or not
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i;
		CREATE TABLE x (id int PRIMARY KEY, v int); INSERT INTO x VALUES (1, 0)});
	$m->add('t');
	$m->equal('t', 'loaded');
	foreach my $look ('SELECT state FROM crate_sync.status', 'SELECT count(queued_keys) FROM crate_sync.tables', q{SELECT crate_sync.wait_for_sync('t')})
	{
		my $begin = 'BEGIN ISOLATION LEVEL SERIALIZABLE';
		# both stay open while a third one commits
		my $hold = CrateSync::Points::hold($m, 'commit');
		my $wait = q{SELECT pg_advisory_lock_shared(28531, hashtext('commit'))};
		my $waiting = sub { $m->poll("SELECT count(*) = $_[0] FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()") };
		my $monitor = $m->background("$begin;\n$look;\n$wait;\nCOMMIT;\n");
		ok($waiting->(1), "$look in a transaction");
		my $writer = $m->background("$begin;\nSELECT v FROM x WHERE id = 1;\nUPDATE t SET v = v + 1 WHERE id = 1;\n$wait;\nCOMMIT;\n");
		ok($waiting->(2), '... beside a writer');
		$m->sql("$begin; UPDATE x SET v = v + 1 WHERE id = 1; COMMIT");
		$hold->let_go;
		is($writer->done, '', '... who does not fail for it');
		is($monitor->done, '', '... nor does it');
	}
	$m->equal('t', 'and it goes on');
}, only => 'sqlite', why => 'the target has nothing to do with it');

# --- generations that an open transaction keeps from being emptied
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $gens = q{SELECT sum(pg_relation_size(oid)) / 8192 FROM pg_class WHERE oid::regclass::text ~ '^crate_sync.queue_[012]$'};

	$m->sql(q{CREATE TABLE t (id text PRIMARY KEY, v int); CREATE TABLE small (id int PRIMARY KEY);
		INSERT INTO t SELECT (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 78) j), 0 FROM generate_series(1, 4) i});
	$m->add('t', 'small');
	$m->equal([ 't', 'small' ], 'loaded');
	# one that has written, and is visible long after what others write behind it
	$m->sql(q{BEGIN; INSERT INTO small VALUES (-1); PREPARE TRANSACTION 'late'});
	my $dead = sub {
		$m->sql(q{DO $$ BEGIN FOR i IN 1 .. 5000 LOOP UPDATE t SET v = i WHERE id <= (SELECT id FROM t ORDER BY id OFFSET 2 LIMIT 1); COMMIT; END LOOP; END $$});
	};
	my $lock = $m->background("SET application_name = 'lock';\nBEGIN;\nSELECT pg_current_xact_id();\nLOCK TABLE crate_sync.queue_0, crate_sync.queue_1, crate_sync.queue_2 IN ROW EXCLUSIVE MODE;\nSELECT pg_sleep(3600);\n");
	$m->poll(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3600)%' AND application_name = 'lock' AND wait_event = 'PgSleep'});
	$dead->();
	$m->equal([ 't', 'small' ], 'what was queued has arrived');
	my $pages = $m->sql($gens);
	cmp_ok($pages, '>', 4000, "its pages stay ($pages)");
	my $before = pages_read($m, 'queue_[012]$');
	$m->sql(q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP INSERT INTO small VALUES (i); COMMIT; PERFORM pg_sleep(0.005); END LOOP; END $$});
	ok(CrateSync::wait_until('they arrive', sub { $m->target_value("SELECT count(*) FROM {small} WHERE id > 0") == 300 }), 'changes of another table arrive');
	my $read = pages_read($m, 'queue_[012]$') - $before;
	cmp_ok($read, '<', 100 * $pages, "... without all pages being read for each ($read)");
	$m->sql(q{COMMIT PREPARED 'late'});
	$m->equal([ 't', 'small' ], 'a prepared transaction whose keys lie before all that');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lock'});
	$lock->done;
	ok($m->poll("SELECT ($gens) <= 20"), 'the pages are freed when it ends');
	$m->sql(q{UPDATE t SET v = -1; INSERT INTO small VALUES (1000)});
	$m->equal([ 't', 'small' ], 'and it goes on');
}, only => 'sqlite', why => 'the target has nothing to do with it');

$node->stop;

# --- the worker's memory does not grow with the backlog of a table that takes none of it
my $small = CrateSync::server('memory', conf => <<'EOC');
crate_sync.work_mem = 16MB
crate_sync.interval = 100ms
shared_buffers = 1MB
EOC
CrateSync::on_targets($small, sub {
	my ($m) = @_;
	my $in_hold = q{(SELECT coalesce(sum(n), 0) FROM crate_sync.queue_hold)};
	my $elsewhere = q{(SELECT count(*) FROM (SELECT 1 FROM crate_sync.queue_0 UNION ALL SELECT 1 FROM crate_sync.queue_1 UNION ALL SELECT 1 FROM crate_sync.queue_2) q)};
	# the most that a worker has had which found that in the queue
	my $peak = sub {
		my ($name, $until, @before) = @_;
		$m->sql('SELECT crate_sync.stop()');
		$m->poll('SELECT pid IS NULL FROM crate_sync.status');
		$m->sql($_) foreach @before;
		$m->sql('SELECT crate_sync.start()');
		ok($m->poll("SELECT $until"), $name);
		my ($kb) = PostgreSQL::Test::Utils::slurp_file('/proc/' . $m->worker_pid . '/status') =~ /^VmHWM:\s+(\d+) kB/m;
		return $kb / 1024;
	};

	$m->sql(q{CREATE TABLE t (id uuid PRIMARY KEY, v int); INSERT INTO t SELECT gen_random_uuid(), 0 FROM generate_series(1, 400000)});
	$m->sql(q{SELECT crate_sync.add_table('t', copy_data => false)});
	ok($m->wait_sync, 'added');
	my $one = $peak->('a key of a paused table is put aside', "$in_hold = 1 AND $elsewhere = 0",
		q{SELECT crate_sync.pause('t')}, q{UPDATE t SET v = 1 WHERE id = (SELECT id FROM t LIMIT 1)});
	my $many = $peak->('so is its backlog, none of it thrown away', "$in_hold = 400001 AND $elsewhere = 0",
		q{UPDATE t SET v = v + 1});
	cmp_ok($many - $one, '<', 3, "... with as much memory as for one key ($one MB, $many MB)");
	$many = $peak->('the backlog of a table that was removed is thrown away', "$in_hold + $elsewhere = 0",
		q{UPDATE t SET v = v + 1}, q{SELECT crate_sync.remove_table('t')});
	cmp_ok($many - $one, '<', 3, "... with as much memory as for one key ($one MB, $many MB)");
}, only => 'sqlite', why => 'the target has nothing to do with it');
$small->stop;

done_testing();
