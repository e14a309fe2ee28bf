# Documents: a row of a table with rows of others nested in it is as the tables are, whichever of them changes, and nothing
# else is pushed.  Twice compared: with what a query written by hand says, and each change with the documents it is of.
use strict;
use warnings;
use CrateSync;
use JSON::PP ();
use Test::More;

my $node = CrateSync::server('documents', conf => "crate_sync.max_retry_interval = 300ms\n");
my $json = JSON::PP->new->utf8->allow_nonref->canonical;

# region <- customer <- orders <- item -> product -> category; tags through customer_tag
my $shop = q{
	CREATE TABLE region (id int PRIMARY KEY, name text, note text);
	CREATE TABLE customer (id int PRIMARY KEY, name text, region_id int REFERENCES region ON UPDATE CASCADE ON DELETE SET NULL, note text);
	CREATE INDEX ON customer (region_id);
	CREATE TABLE category (id int PRIMARY KEY, name text);
	CREATE TABLE product (id int PRIMARY KEY, name text, price numeric(10,2), category_id int REFERENCES category ON UPDATE CASCADE ON DELETE SET NULL);
	CREATE INDEX ON product (category_id);
	CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customer ON UPDATE CASCADE ON DELETE CASCADE, note text, unshown text,
		at timestamptz);
	CREATE INDEX ON orders (customer_id);
	CREATE TABLE item (id int PRIMARY KEY, order_id int REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE,
		product_id int REFERENCES product ON UPDATE CASCADE ON DELETE SET NULL, qty int);
	CREATE INDEX ON item (order_id);
	CREATE INDEX ON item (product_id);
	CREATE TABLE tag (id int PRIMARY KEY, name text);
	CREATE TABLE customer_tag (customer_id int REFERENCES customer ON UPDATE CASCADE ON DELETE CASCADE,
		tag_id int REFERENCES tag ON UPDATE CASCADE ON DELETE CASCADE, PRIMARY KEY (customer_id, tag_id));
	CREATE INDEX ON customer_tag (tag_id);

	INSERT INTO region SELECT i, 'region ' || i FROM generate_series(1, 3) i;
	INSERT INTO customer SELECT i, 'customer ' || i, CASE WHEN i % 4 > 0 THEN i % 4 END FROM generate_series(1, 12) i;
	INSERT INTO category SELECT i, 'category ' || i FROM generate_series(1, 3) i;
	INSERT INTO product SELECT i, 'product ' || i, i * 1.25, 1 + i % 3 FROM generate_series(1, 9) i;
	INSERT INTO orders SELECT i, 1 + i % 10, 'order "' || i || '"', NULL, '2026-01-01 00:00:00.123Z'::timestamptz + i * interval '1 h' FROM generate_series(1, 30) i;
	INSERT INTO item SELECT i, 1 + i % 25, CASE WHEN i % 7 > 0 THEN 1 + i % 9 END, i FROM generate_series(1, 80) i;
	INSERT INTO tag SELECT i, 'tag ' || i FROM generate_series(1, 5) i;
	INSERT INTO customer_tag SELECT DISTINCT 1 + i % 9, 1 + i % 5 FROM generate_series(1, 20) i;
};

my $definition = q{{"table": "customer", "columns": ["name"], "children": [
	{"table": "region", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "object"}},
	{"table": "orders", "columns": ["id", "note", "at"], "relationship": {"type": "one_to_many", "variant": "object"}, "children": [
		{"table": "item", "label": "items", "columns": ["id", "qty"], "relationship": {"type": "one_to_many", "variant": "object"}, "children": [
			{"table": "product", "columns": ["id", "name", "price"], "relationship": {"type": "one_to_one", "variant": "object"}, "children": [
				{"table": "category", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "scalar"}}]}]}]},
	{"table": "tag", "label": "tags", "columns": ["name"],
		"relationship": {"type": "one_to_many", "variant": "scalar", "through_tables": ["customer_tag"]}}]}};

# by hand, what each document has to be
my $by_hand = q{
	SELECT c.id, json_build_object('id', c.id, 'name', c.name,
		'region', (SELECT json_build_object('name', r.name) FROM region r WHERE r.id = c.region_id),
		'orders', coalesce((SELECT json_agg(json_build_object('id', o.id, 'note', o.note, 'at', (extract(epoch FROM o.at) * 1000)::bigint,
			'items', coalesce((SELECT json_agg(json_build_object('id', i.id, 'qty', i.qty,
				'product', (SELECT json_build_object('id', p.id, 'name', p.name, 'price', p.price,
					'category', (SELECT y.name FROM category y WHERE y.id = p.category_id)) FROM product p WHERE p.id = i.product_id)) ORDER BY i.id)
				FROM item i WHERE i.order_id = o.id), '[]')) ORDER BY o.id) FROM orders o WHERE o.customer_id = c.id), '[]'),
		'tags', coalesce((SELECT json_agg(g.name ORDER BY g.id) FROM customer_tag t JOIN tag g ON g.id = t.tag_id
			WHERE t.customer_id = c.id), '[]')) FROM customer c};

sub definition
{
	my ($m, $text) = @_;
	$text ||= $definition;
	# every table is in the schema of this run
	$text =~ s/("table": "\w+")/"schema": "$m->{schema}", $1/g;
	return $text;
}

# numbers and strings that say the same number are the same
sub plain
{
	my ($v) = @_;
	return { map { $_ => plain($v->{$_}) } keys %$v } if ref $v eq 'HASH';
	return [ map { plain($_) } @$v ] if ref $v eq 'ARRAY';
	return $v + 0 . '' if defined $v && $v =~ /^-?\d+(\.\d+)?$/;
	return $v;
}

# the source's documents by key, as text
sub source_documents
{
	my ($m, $query) = @_;
	my %d;
	foreach (split /\n/, $m->sql("SELECT id, replace(j::text, chr(10), '') FROM ($query) AS x (id, j)"))
	{
		my ($id, $text) = split /\|/, $_, 2;
		$d{$id} = $json->encode(plain($json->decode($text)));
	}
	return \%d;
}

sub target_documents
{
	my ($m, $table, @columns) = @_;
	my %d;
	$m->refresh($table);
	foreach my $row (@{ $m->target_rows('SELECT ' . join(', ', map { qq("$_") } @columns) . " FROM {$table}") })
	{
		my %doc;
		@doc{@columns} = map { defined $_ && !ref $_ && /^[\[{]/ ? $json->decode($_) : $_ } @$row;
		$d{ $doc{id} } = $json->encode(plain(\%doc));
	}
	return \%d;
}

my @columns = ('id', 'name', 'region', 'orders', 'tags');

sub documents_equal
{
	my ($m, $name, $query, $table, @cols) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return fail("$name: in sync") unless $m->wait_sync;
	is_deeply(target_documents($m, $table || 'customer', @cols ? @cols : @columns), source_documents($m, $query || $by_hand),
		"$name: documents are as the tables");
}

# starts one and waits for its end; whether both sides are equal
sub verified
{
	my ($m, $table, $repair) = @_;
	$m->sql("SELECT crate_sync.verify('$table', " . ($repair ? 'true' : 'false') . ')');
	$m->poll("SELECT s.verify_done = m.verify_no AND s.load_phase IS NULL FROM crate_sync.mirror m "
		  . "JOIN crate_sync.mirror_state s USING (mirror_id) WHERE m.target_table = '$table'");
	return $m->sql("SELECT last_verify_ok FROM crate_sync.tables WHERE target LIKE '%.$table'");
}

# pushed since the last call, from what the worker has written down
my %pushed;
sub pushed
{
	my ($m) = @_;
	my $now = $m->sql("SELECT n_tup_upserted || ' ' || n_tup_deleted FROM crate_sync.tables WHERE target LIKE '%.customer'");
	my ($u, $d) = split / /, $now;
	my $before = $pushed{ $m->db } || [ 0, 0 ];
	$pushed{ $m->db } = [ $u, $d ];
	return ($u - $before->[0], $d - $before->[1]);
}

# a statement: the documents that the query by hand says it changes are pushed, and no others
sub change
{
	my ($m, $sql, %o) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $before = source_documents($m, $by_hand);
	pushed($m);
	$m->sql($sql);
	my $after = source_documents($m, $by_hand);
	my $changed = grep { !defined $before->{$_} || $before->{$_} ne $after->{$_} } keys %$after;
	my $gone = grep { !defined $after->{$_} } keys %$before;
	documents_equal($m, $sql);
	my ($u, $d) = pushed($m);
	return if $o{all};
	# a root that moved to another page is pushed as well
	ok($u >= $changed && $u <= $changed + ($o{more} || 0), "$sql: $changed changed, $u pushed");
	is($d, $gone, "$sql: $gone gone");
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql($shop);
	is($m->sql("SELECT crate_sync.add_document('" . definition($m) . "')"), "$m->{schema}.customer", 'added');
	documents_equal($m, 'loaded');

	# what is gone before the end touches more than is seen to change
	my %more = (
		q{UPDATE category SET id = 50 WHERE id = 2} => 20,
		q{WITH moved AS (UPDATE orders SET customer_id = 5 WHERE customer_id = 6 RETURNING id) UPDATE item SET qty = 0 FROM moved WHERE order_id = moved.id} => 1,
		q{BEGIN; UPDATE item SET order_id = 9 WHERE id = 1; SAVEPOINT a; UPDATE item SET order_id = 10 WHERE id = 1; RELEASE a; COMMIT} => 1);
	change($m, $_, more => $more{$_}) foreach (
		q{UPDATE region SET name = 'X' WHERE id = 2},
		q{UPDATE region SET note = 'not shown' WHERE id = 2},
		q{UPDATE orders SET unshown = 'not shown'},
		q{UPDATE category SET name = 'Y' WHERE id = 1},
		q{UPDATE product SET price = 99.5 WHERE id = 3},
		q{INSERT INTO item VALUES (1000, 5, 2, 7)},
		q{UPDATE item SET qty = 8 WHERE id = 1000},
		q{UPDATE item SET order_id = 7 WHERE id = 1000},
		q{UPDATE item SET product_id = 4 WHERE id = 1000},
		q{DELETE FROM item WHERE id = 1000},
		q{INSERT INTO orders VALUES (500, 3, 'new')},
		q{UPDATE orders SET customer_id = 4 WHERE id = 500},
		q{UPDATE orders SET customer_id = NULL WHERE id = 500},
		q{DELETE FROM orders WHERE id = 500},
		q{INSERT INTO customer_tag VALUES (11, 2)},
		q{UPDATE customer_tag SET customer_id = 12 WHERE customer_id = 11},
		q{UPDATE customer_tag SET tag_id = 3 WHERE customer_id = 12},
		q{UPDATE tag SET name = 'T' WHERE id = 3},
		q{DELETE FROM customer_tag WHERE customer_id = 12},
		q{UPDATE product SET category_id = 3 WHERE id = 6},
		q{UPDATE product SET id = 777 WHERE id = 3},
		q{UPDATE category SET id = 50 WHERE id = 2},
		q{UPDATE customer SET id = 99 WHERE id = 1},
		q{UPDATE customer SET region_id = 3 WHERE id = 99},
		q{DELETE FROM region WHERE id = 3},
		q{DELETE FROM tag WHERE id = 1},
		q{DELETE FROM product WHERE id = 777},
		q{DELETE FROM customer WHERE id = 2},
		q{INSERT INTO customer VALUES (1, 'again', 1) ON CONFLICT (id) DO UPDATE SET name = 'never'},
		q{INSERT INTO customer VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET name = 'always'},
		q{WITH moved AS (UPDATE orders SET customer_id = 5 WHERE customer_id = 6 RETURNING id) UPDATE item SET qty = 0 FROM moved WHERE order_id = moved.id},
		q{BEGIN; SAVEPOINT a; UPDATE product SET name = 'no'; ROLLBACK TO a; COMMIT},
		q{BEGIN; UPDATE item SET order_id = 9 WHERE id = 1; SAVEPOINT a; UPDATE item SET order_id = 10 WHERE id = 1; RELEASE a; COMMIT});

	is(verified($m, 'customer'), 't', 'verify finds them equal');
	$m->target_change(q{UPDATE {customer} SET name = 'by hand' WHERE id = 5});
	$m->target_change(q{UPDATE {customer} SET tags = } . ($m->is_crate ? q{['by hand']} : q{'["by hand"]'}) . q{ WHERE id = 7});
	is(verified($m, 'customer', 1), 't', 'verify mends what was changed by hand');
	is($m->sql(q{SELECT key, kind, columns FROM crate_sync.differences ORDER BY 1}),
		qq({"id": 5}|different|{name}\n{"id": 7}|different|{tags}), 'and says what');
	documents_equal($m, 'after verify');

	# --- beside it: the tables as they are, and another document over them
	$m->sql("SELECT crate_sync.add_table('customer', target => '$m->{schema}.customer_flat'); SELECT crate_sync.add_table('item')");
	$m->sql("SELECT crate_sync.add_document('" . definition($m, q({"table": "product", "label": "products", "columns": ["name"], "children": [
		{"table": "item", "label": "items", "columns": ["qty"], "relationship": {"type": "one_to_many", "variant": "scalar"}}]})) . "')");
	my $products = q{SELECT p.id, json_build_object('id', p.id, 'name', p.name,
		'items', coalesce((SELECT json_agg(i.qty ORDER BY i.id) FROM item i WHERE i.product_id = p.id), '[]')) FROM product p};
	my @products = ($products, 'products', 'id', 'name', 'items');
	documents_equal($m, 'a second document', @products);
	foreach (q{UPDATE item SET qty = qty + 1 WHERE id < 20}, q{UPDATE item SET product_id = 5 WHERE id = 3}, q{DELETE FROM item WHERE id = 4},
		q{UPDATE product SET name = 'both' WHERE id = 5})
	{
		change($m, $_, more => 20);
		documents_equal($m, "$_, both", @products);
		$m->equal('item', "$_, flat");
	}

	# --- one of them cannot go on: the other does, and it catches up
	$m->sql("UPDATE crate_sync.mirror SET paused = true WHERE target_table = 'customer'; SELECT crate_sync.start()");
	$m->sql(q{UPDATE item SET qty = 4711 WHERE id = 5; UPDATE item SET product_id = 6 WHERE id = 6});
	ok($m->wait_sync('product'), 'a document goes on while another is paused');
	is_deeply(target_documents($m, @products[1 .. 4]), source_documents($m, $products), 'and is as the tables');
	ok($m->wait_sync('item'), 'so does the flat table');
	$m->sql("SELECT crate_sync.resume('customer')");
	documents_equal($m, 'resumed');

	# --- removed
	$m->sql("SELECT crate_sync.remove_document('$m->{schema}.products', drop_target => true)");
	is($m->sql(q{SELECT count(*) FROM pg_trigger t WHERE tgname LIKE 'crate\_sync\_link\_%' AND NOT EXISTS
		(SELECT FROM crate_sync.mirror m WHERE t.tgname LIKE 'crate\_sync\_link\_' || m.mirror_id || '\_%')}), 0, 'its triggers are gone');
	change($m, q{UPDATE item SET qty = 4 WHERE id = 7});
	$m->sql("SELECT crate_sync.remove_table('item'); SELECT crate_sync.remove_table('customer')");
	change($m, q{UPDATE item SET qty = 5 WHERE id = 7});

	# --- a table of it is altered: the document is loaded anew, with what is new if all columns are asked for
	$m->sql("SELECT crate_sync.add_document('" . definition($m, q({"table": "orders", "label": "whole", "columns": ["id"], "children": [
		{"table": "item", "label": "items", "relationship": {"type": "one_to_many", "variant": "object"}}]})) . "')");
	my $whole = q{SELECT o.id, json_build_object('id', o.id, 'items',
		coalesce((SELECT json_agg(to_json(i) ORDER BY i.id) FROM item i WHERE i.order_id = o.id), '[]')) FROM orders o};
	my @whole = ($whole, 'whole', 'id', 'items');
	documents_equal($m, 'all columns', @whole);
	$m->sql(q{ALTER TABLE item ADD COLUMN more text DEFAULT 'm'; UPDATE item SET more = 'changed' WHERE id = 10});
	$m->poll(q{SELECT s.shape IS NOT NULL AND s.due IS NULL AND s.load_phase IS NULL FROM crate_sync.mirror JOIN crate_sync.mirror_state s USING (mirror_id)
		WHERE target_table = 'whole'});
	documents_equal($m, 'a column more', @whole);
	documents_equal($m, 'a column more, not asked for');
	$m->sql(q{ALTER TABLE item ALTER COLUMN qty TYPE bigint USING qty * 2});
	documents_equal($m, 'another type, not asked for') if !$m->is_crate;
	$m->sql("SELECT crate_sync.resync('customer', 'rebuild'), crate_sync.resync('orders', 'rebuild')") if $m->is_crate;
	documents_equal($m, 'another type', @whole);
	documents_equal($m, 'another type, loaded anew');
	$m->sql("SELECT crate_sync.remove_document('$m->{schema}.whole')");
	change($m, q{UPDATE item SET qty = 6 WHERE id = 7});

	# --- all of it again
	foreach my $mode ('full', 'upsert', 'rebuild')
	{
		$m->sql("SELECT crate_sync.resync('customer', '$mode')");
		documents_equal($m, "resync: $mode");
	}

	change($m, q{TRUNCATE customer_tag}, all => 1);
	change($m, q{TRUNCATE item}, all => 1);
	change($m, q{INSERT INTO item SELECT i, 1 + i % 25, 1, i FROM generate_series(1, 50) i WHERE EXISTS (SELECT FROM orders WHERE id = 1 + i % 25)}, all => 1);
	change($m, q{TRUNCATE customer CASCADE}, all => 1);
	is($m->target_count('customer'), 0, 'nothing is left');

	# --- a table of it is dropped: the document alone is stopped; its root: it is no more, and leaves nothing behind
	$m->sql("SELECT crate_sync.add_table('product', target => '$m->{schema}.product_flat')");
	$m->sql('DROP TABLE customer_tag');
	ok($m->poll(q{SELECT state || ' ' || (last_error LIKE '%the table of customer.tags%was dropped%') FROM crate_sync.tables WHERE kind = 'document'}, 'error true'),
		'a document of which a table was dropped says so');
	$m->sql(q{UPDATE product SET name = 'goes on'});
	ok($m->wait_sync('product'), 'another table goes on');
	$m->sql('DROP TABLE customer CASCADE');
	ok($m->poll(q{SELECT count(*) = 0 FROM crate_sync.tables WHERE kind = 'document'}), 'a document without a root is none');
	is($m->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate\_sync\_link\_%'}), 0, 'and leaves no triggers');
}, but => 'standin', why => 'it does not tell the types of nested members again, as CrateDB does');

done_testing();
