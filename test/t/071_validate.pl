# validate(): figures of both sides; verifications: what each verify has found.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('validate', conf => "crate_sync.max_retry_interval = 300ms\n");
$node->safe_psql('postgres', 'CREATE ROLE val_owner LOGIN; CREATE ROLE val_monitor LOGIN IN ROLE pg_monitor');

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(<<'EOQ');
CREATE TABLE customers (id int PRIMARY KEY, name text);
CREATE TABLE orders (id bigint PRIMARY KEY, customer int REFERENCES customers, note text, total numeric(12,2), made timestamptz,
	weight double precision, paid boolean, data jsonb, gone boolean DEFAULT false);
INSERT INTO customers SELECT i, 'c' || i FROM generate_series(1, 50) i;
INSERT INTO orders SELECT i, CASE WHEN i % 10 > 0 THEN 1 + i % 50 END, 'note ' || i, i * 1.25, '2024-01-01 00:00:00.123456+00'::timestamptz + i * interval '1 hour',
	i / 3.0, i % 2 = 0, '{"a": 1}', i % 100 = 0 FROM generate_series(1, 1000) i;
INSERT INTO orders (id, made, weight, total) VALUES (-5, 'infinity', '-1e300', '-0.01') ON CONFLICT DO NOTHING;
DELETE FROM orders WHERE made = 'infinity';
EOQ
	$m->add('customers');
	$m->sql(qq{SELECT crate_sync.add_table('orders', row_filter => 'id <= 900', soft_delete_column => 'gone')});
	push @{ $m->{created} }, 'orders';
	ok($m->wait_sync, 'in sync');

	my $validate = sub { return $m->sql(qq{SELECT what, column_name, source, target, ok FROM crate_sync.validate('$_[0]') WHERE $_[1]}) };
	is($validate->('orders', q{what = 'rows'}), 'rows||891|891|t', 'rows on both sides, filter and marked rows apart');
	is($validate->('orders', q{what = 'verdict'}), 'verdict||||t', 'the verdict');
	is($validate->('orders', q{NOT ok OR ok IS NULL}), '', 'nothing differs');
	is($validate->('orders', q{column_name = 'id'}), "not null|id|891|891|t\nmin|id|1|1|t\nmax|id|899|899|t", 'a column, its range');
	is($validate->('orders', q{what = 'not null' AND column_name = 'customer'}), 'not null|customer|810|810|t', 'values that are not NULL');
	is($validate->('orders', q{what = 'min' AND column_name = 'made'}), 'min|made|1704070800123|1704070800123|t', 'times, cut to ms');
	is($validate->('orders', q{what = 'max' AND column_name = 'note'}), 'max|note|note 99|note 99|t', 'text in the order of its bytes');
	is($validate->('orders', q{what = 'without parent'}), 'without parent||0|0|t', 'no row without parent');
	is($m->sql(q{SELECT count(*) FROM crate_sync.validate('customers')}), 1 + 3 * 2 + 1, 'a table without foreign keys');

	# something else is there
	$m->target_change('DELETE FROM {customers} WHERE id = 7');
	$m->refresh;
	is($validate->('customers', q{what = 'rows'}), 'rows||50|49|f', 'a row less is seen');
	is($m->sql(q{SELECT ok, note FROM crate_sync.validate('customers') WHERE what = 'verdict'}), 'f|3 figure(s) differ; crate_sync.verify says which rows', 'and is the verdict');
	is($validate->('orders', q{what = 'without parent'}), 'without parent||0|' . $m->target_value('SELECT count(*) FROM {orders} WHERE customer = 7') . '|f', 'its children have no parent there');

	# verify and its figures
	$m->sql(q{SELECT crate_sync.verify('customers')});
	ok($m->poll(q{SELECT count(*) FROM crate_sync.verifications}, 1), 'verify leaves a row');
	is($m->sql(q{SELECT relname, ok, rows_compared, n_found, n_repaired, repair, start_time <= end_time, message IS NULL FROM crate_sync.verifications}),
		'customers|f|50|1|0|f|t|t', 'with its figures');
	$m->sql(q{SELECT crate_sync.verify('customers', repair => true)});
	ok($m->poll(q{SELECT count(*) FROM crate_sync.verifications}, 2), 'the next one');
	is($m->sql(q{SET SESSION AUTHORIZATION val_monitor; SELECT ok, n_found, n_repaired, repair FROM crate_sync.verifications ORDER BY end_time DESC LIMIT 1}), 't|1|1|t', 'with what it has repaired, for a member of pg_monitor');
	$m->wait_sync;
	$m->refresh;
	is($validate->('customers', q{what = 'verdict'}), 'verdict||||t', 'all agrees again');

	# what is on its way is said
	$m->sql(q{SELECT crate_sync.pause('customers')});
	$m->sql(q{INSERT INTO customers VALUES (100, 'x')});
	is($m->sql(q{SELECT ok, note LIKE '%nothing is settled: it is paused' FROM crate_sync.validate('customers') WHERE what = 'verdict'}), '|t', 'a paused table is not judged');
	$m->sql(q{SELECT crate_sync.resume()});
	$m->wait_sync;

	# a filter is its owner's code
	$m->sql(<<'EOQ');
CREATE SCHEMA own AUTHORIZATION val_owner;
SET SESSION AUTHORIZATION val_owner;
CREATE TABLE own.seen (who text);
CREATE FUNCTION own.spy(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
	IF current_user <> 'val_owner' THEN RAISE EXCEPTION 'run as %', current_user; END IF;
	IF current_setting('transaction_read_only') = 'off' AND $1 = -99 THEN INSERT INTO own.seen VALUES (current_user); END IF;
	RETURN true; END $$;
CREATE TABLE own.t (id int PRIMARY KEY);
INSERT INTO own.t VALUES (1), (2);
EOQ
	$m->sql(qq{SELECT crate_sync.add_table('own.t', '$m->{schema}.own_t', row_filter => 'own.spy(id)')});
	push @{ $m->{created} }, 'own_t';
	ok($m->wait_sync, 'a table of another owner, with a filter that looks who runs it');
	is($m->sql(q{SELECT source, target, ok FROM crate_sync.validate('own.t') WHERE what = 'rows'}), '2|2|t', 'is read as its owner');

	# names and texts that are hostile
	$m->sql(q{CREATE TABLE "o'dd ""t" ("a b" int PRIMARY KEY, "c'" text); INSERT INTO "o'dd ""t" VALUES (1, 'it''s "x" \\'), (2, U&'\+01F600'), (3, U&'\FFE6')});
	$m->sql(qq{SELECT crate_sync.add_table('"o''dd ""t"', '$m->{schema}.odd', options => '{"rename": {"a b": "a", "c''": "c"}}')});
	push @{ $m->{created} }, 'odd';
	ok($m->wait_sync, 'odd names');
	is($m->sql(q{SELECT ok FROM crate_sync.validate('"o''dd ""t"') WHERE what = 'verdict'}), 't', 'are no trouble');
	is($m->sql(q{SELECT count(*) FROM crate_sync.validate('"o''dd ""t"') WHERE NOT ok}), 0, 'characters beyond 0xFFFF are no difference');

	my ($ret, $out, $err) = $m->try_sql(q{SELECT * FROM crate_sync.validate('pg_class')});
	like($err, qr/table "pg_class" is not mirrored/, 'of what is not mirrored there is nothing to say');
});

$node->stop;
done_testing();
