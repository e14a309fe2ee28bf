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
done_testing();
