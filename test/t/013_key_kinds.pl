# Keys of all kinds, near each other and far apart, are read as they are asked for.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('keys', conf => "crate_sync.interval = 100ms\n");

# a table each: type of the key, keys, values of the type
my @kinds = (
	[ small => 'smallint', q{SELECT i::smallint FROM generate_series(-32768, -32700) i UNION ALL SELECT i::smallint FROM generate_series(32700, 32767) i UNION ALL SELECT 0} ],
	[ plain => 'int', q{SELECT i FROM generate_series(-3000, 3000) i} ],
	[ wide => 'bigint', q{SELECT i FROM generate_series(-500, 500) i UNION ALL SELECT 9223372036854775806 - i FROM generate_series(0, 200) i UNION ALL SELECT -9223372036854775807 + i FROM generate_series(0, 200) i} ],
	[ sparse => 'bigint', q{SELECT i * 1000003 FROM generate_series(-700, 700) i} ],
	[ halves => 'int', q{SELECT i * 2 FROM generate_series(1, 2000) i} ],
	[ thirds => 'int', q{SELECT i * 3 FROM generate_series(1, 2000) i} ],
	[ dom => 'number_of_ours', q{SELECT i FROM generate_series(1, 500) i} ],
	[ days => 'date', q{SELECT date '2020-01-01' + i FROM generate_series(1, 300) i} ],
	[ yes => 'boolean', q{SELECT true UNION ALL SELECT false} ],
	[ named => 'text', q{SELECT 'k ' || i FROM generate_series(1, 500) i} ],
	[ ids => 'uuid', q{SELECT md5(i::text)::uuid FROM generate_series(1, 500) i} ]);

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @names = map { $_->[0] } @kinds;
	$m->sql('CREATE DOMAIN number_of_ours AS int CHECK (VALUE > 0)');
	foreach (@kinds)
	{
		my ($name, $type, $keys) = @$_;
		$m->sql("CREATE TABLE $name (before text DEFAULT 'b', id $type PRIMARY KEY, v int DEFAULT 0); INSERT INTO $name (id) $keys");
	}
	$m->add(@names);
	$m->equal(\@names, 'loaded');

	# all, every second, every third, a few; then some that come and go
	my @where = ('true', 'n % 2 = 0', 'n % 3 = 0', 'n IN (1, 2, 50, 51, 52, 60)', 'n % 10 < 4');
	foreach my $where (@where)
	{
		$m->sql("SELECT crate_sync.pause(); " . join ';', map {
				"UPDATE $_ SET v = v + 1 WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM $_) x WHERE $where)"
			} @names);
		# the same keys again, in another order, in transactions of their own
		$m->sql("UPDATE $_ SET v = v + 1 WHERE id IN (SELECT id FROM $_ ORDER BY random() LIMIT 20)") foreach @names, reverse @names;
		$m->sql('SELECT crate_sync.resume()');
		$m->equal(\@names, "changed where $where");
	}
	$m->sql('SELECT crate_sync.pause()');
	$m->sql("DELETE FROM $_ WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM $_) x WHERE n % 4 = 1)") foreach @names;
	$m->sql("UPDATE $_ SET v = -1 WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM $_) x WHERE n % 3 = 1)") foreach @names;
	$m->sql(q{UPDATE plain SET id = id + 100000 WHERE id % 7 = 0; UPDATE wide SET id = -id WHERE id BETWEEN 100 AND 500 AND NOT EXISTS (SELECT FROM wide o WHERE o.id = -wide.id)});
	$m->sql('SELECT crate_sync.resume()');
	$m->equal(\@names, 'with rows gone, and keys changed');

	# as long as a chunk of the queue, about so long, and longer
	$m->sql(qq{INSERT INTO named (id, v) SELECT repeat(c, n), n FROM unnest(ARRAY['c', 'x']) c, unnest(ARRAY[7988, 7989, 7990, 7991, 7999, 8000, 8001, 20000]) n;
		UPDATE plain SET v = 77 WHERE id < 0});
	$m->equal(\@names, 'with long keys');
	$m->sql(q{UPDATE named SET v = 78 WHERE id = repeat('c', 8000)});
	$m->equal(\@names, 'one changed');
	$m->sql(q{DELETE FROM named WHERE id = repeat('x', 8000)});
	$m->equal(\@names, 'one gone');

	# a chunk that is none holds nobody up
	$m->sql(q{SELECT crate_sync.pause('plain'); UPDATE plain SET v = 79 WHERE id < 10;
		INSERT INTO crate_sync.queue_0 SELECT pg_current_xact_id(), now(), relid, 1000 + seq, layout, n, '\xffffffffffffffffffffffff'
			FROM (SELECT * FROM crate_sync.queue_0 UNION ALL SELECT * FROM crate_sync.queue_1 UNION ALL SELECT * FROM crate_sync.queue_2
				UNION ALL SELECT * FROM crate_sync.queue_hold) q WHERE relid = 'plain'::regclass});
	$m->sql(q{SELECT crate_sync.resume('plain'); UPDATE days SET v = 80});
	$m->equal(\@names, 'a chunk that cannot be read');
	ok($m->poll(q{SELECT NOT EXISTS (SELECT FROM crate_sync.progress)}), '... the resync is over');
	cmp_ok(CrateSync::log_count($node, qr/queued keys of $m->{schema}\.plain cannot be read: it is resynced/), '>=', 1, '... of which the log speaks');

	# a filter that fails for a row in between does so for nobody who was asked for
	$m->sql(q{CREATE TABLE f (id int PRIMARY KEY, d int, v int DEFAULT 0);
		INSERT INTO f SELECT i, 1, 0 FROM generate_series(1, 1000) i;
		SELECT crate_sync.add_table('f', row_filter => '1 / d > 0')});
	ok($m->wait_sync, 'loaded with a filter');
	$m->sql(q{SELECT crate_sync.pause('f'); UPDATE f SET d = 0 WHERE id = 500});
	$m->sql(q{SELECT crate_sync.resume('f')});
	ok($m->poll(q{SELECT n_failed_rows = 1 FROM crate_sync.tables WHERE relname = 'f'}), 'a row fails in the filter');
	$m->sql(q{UPDATE f SET v = 1 WHERE id <> 500});
	ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.tables WHERE relname = 'f'}), 'the others do not');
	is($m->sql(q{SELECT n_failed_rows FROM crate_sync.tables WHERE relname = 'f'}), 1, 'it alone has failed');
	is($m->target_value('SELECT count(*) FROM {f} WHERE v = 1'), 999, 'and they arrived');
});

$node->stop;
done_testing();
