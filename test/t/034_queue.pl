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
