# Documents under many writers at once, in every isolation level, with moves, key changes, cascades, rollbacks, and the worker
# killed now and then: in the end each document is as the tables are.  And the test can fail: without what a row was linked to
# before, documents stay that should have changed.
use strict;
use warnings;
use CrateSync;
use JSON::PP ();
use Test::More;
use Time::HiRes qw(sleep time);

my $seed = $ENV{SEED} || $$;
note("SEED=$seed");
my $node = CrateSync::server('documents_random', conf => "crate_sync.max_retry_interval = 300ms\n");
my $json = JSON::PP->new->utf8->allow_nonref->canonical;
my $writers = 4;
my $seconds = $ENV{DOCUMENT_SECONDS} || 15;

my $shop = q{
	CREATE TABLE region (id int PRIMARY KEY, name text);
	CREATE TABLE customer (id int PRIMARY KEY, name text, region_id int REFERENCES region ON UPDATE CASCADE ON DELETE SET NULL);
	CREATE INDEX ON customer (region_id);
	CREATE TABLE category (id int PRIMARY KEY, name text, parent_id int REFERENCES category ON UPDATE CASCADE ON DELETE SET NULL);
	CREATE INDEX ON category (parent_id);
	CREATE TABLE product (id int PRIMARY KEY, name text, category_id int REFERENCES category ON UPDATE CASCADE ON DELETE SET NULL);
	CREATE INDEX ON product (category_id);
	CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customer ON UPDATE CASCADE ON DELETE CASCADE, note text, unshown int);
	CREATE INDEX ON orders (customer_id);
	CREATE TABLE item (id serial PRIMARY KEY, order_id int REFERENCES orders ON UPDATE CASCADE ON DELETE CASCADE,
		product_id int REFERENCES product ON UPDATE CASCADE ON DELETE SET NULL, qty int);
	CREATE INDEX ON item (order_id);
	CREATE INDEX ON item (product_id);
	CREATE TABLE tag (id int PRIMARY KEY, name text);
	CREATE TABLE customer_tag (customer_id int REFERENCES customer ON UPDATE CASCADE ON DELETE CASCADE,
		tag_id int REFERENCES tag ON UPDATE CASCADE ON DELETE CASCADE, PRIMARY KEY (customer_id, tag_id));
	CREATE INDEX ON customer_tag (tag_id);
	INSERT INTO region SELECT i, 'r' || i FROM generate_series(1, 8) i;
	INSERT INTO customer SELECT i, 'c' || i, 1 + i % 8 FROM generate_series(1, 100) i;
	INSERT INTO category SELECT i, 'y' || i, CASE WHEN i > 2 THEN i / 2 END FROM generate_series(1, 10) i;
	INSERT INTO product SELECT i, 'p' || i, 1 + i % 10 FROM generate_series(1, 40) i;
	INSERT INTO orders SELECT i, 1 + i % 100, 'o' || i, 0 FROM generate_series(1, 250) i;
	INSERT INTO item (order_id, product_id, qty) SELECT 1 + i % 250, 1 + i % 40, i FROM generate_series(1, 800) i;
	INSERT INTO tag SELECT i, 't' || i FROM generate_series(1, 10) i;
	INSERT INTO customer_tag SELECT DISTINCT 1 + i % 100, 1 + i % 10 FROM generate_series(1, 150) i;
};

my $definition = q{{"table": "customer", "columns": ["name"], "children": [
	{"table": "region", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "scalar"}},
	{"table": "orders", "columns": ["id", "note"], "relationship": {"type": "one_to_many", "variant": "object"}, "children": [
		{"table": "item", "label": "items", "columns": ["id", "qty"], "relationship": {"type": "one_to_many", "variant": "object"}, "children": [
			{"table": "product", "columns": ["id", "name"], "relationship": {"type": "one_to_one", "variant": "object"}, "children": [
				{"table": "category", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "object"}, "children": [
					{"table": "category", "label": "parent", "columns": ["name"], "relationship": {"type": "one_to_one", "variant": "scalar",
						"foreign_key": {"parent": ["parent_id"], "child": ["id"]}}}]}]}]}]},
	{"table": "tag", "label": "tags", "columns": ["name"],
		"relationship": {"type": "one_to_many", "variant": "scalar", "through_tables": ["customer_tag"]}}]}};

my $by_hand = q{
	SELECT c.id, json_build_object('id', c.id, 'name', c.name,
		'region', (SELECT r.name FROM region r WHERE r.id = c.region_id),
		'orders', coalesce((SELECT json_agg(json_build_object('id', o.id, 'note', o.note,
			'items', coalesce((SELECT json_agg(json_build_object('id', i.id, 'qty', i.qty,
				'product', (SELECT json_build_object('id', p.id, 'name', p.name,
					'category', (SELECT json_build_object('name', y.name, 'parent', (SELECT z.name FROM category z WHERE z.id = y.parent_id))
						FROM category y WHERE y.id = p.category_id)) FROM product p WHERE p.id = i.product_id)) ORDER BY i.id)
				FROM item i WHERE i.order_id = o.id), '[]')) ORDER BY o.id) FROM orders o WHERE o.customer_id = c.id), '[]'),
		'tags', coalesce((SELECT json_agg(g.name ORDER BY g.id) FROM customer_tag t JOIN tag g ON g.id = t.tag_id
			WHERE t.customer_id = c.id), '[]')) FROM customer c};
my @columns = ('id', 'name', 'region', 'orders', 'tags');

sub definition
{
	my ($m) = @_;
	(my $text = $definition) =~ s/("table": "\w+")/"schema": "$m->{schema}", $1/g;
	return $text;
}

sub source_documents
{
	my ($m) = @_;
	my %d;
	foreach (split /\n/, $m->sql("SELECT id, replace(j::text, chr(10), '') FROM ($by_hand) AS x (id, j)"))
	{
		my ($id, $text) = split /\|/, $_, 2;
		$d{$id} = $json->encode($json->decode($text));
	}
	return \%d;
}

sub target_documents
{
	my ($m) = @_;
	my %d;
	$m->refresh('customer');
	foreach my $row (@{ $m->target_rows('SELECT ' . join(', ', map { qq("$_") } @columns) . ' FROM {customer}') })
	{
		my %doc;
		@doc{@columns} = map { defined $_ && !ref $_ && /^[\[{]/ ? $json->decode($_) : $_ } @$row;
		$d{ $doc{id} } = $json->encode(\%doc);
	}
	return \%d;
}

# how many differ, and some of them in words
sub wrong
{
	my ($m) = @_;
	my ($s, $t) = (source_documents($m), target_documents($m));
	my %all = (%$s, %$t);
	my @wrong = grep { ($s->{$_} // '-') ne ($t->{$_} // '-') } sort { $a <=> $b } keys %all;
	my @words = map { "$_: " . ($s->{$_} // '-') . "\n  is " . ($t->{$_} // '-') } @wrong[ 0 .. ($#wrong > 1 ? 1 : $#wrong) ];
	return (scalar @wrong, join("\n", @words), scalar keys %$s);
}

# one change of some kind
sub statement
{
	my $c = 1 + int rand 110;
	my $o = 1 + int rand 270;
	my $i = 1 + int rand 900;
	my $p = 1 + int rand 45;
	my $y = 1 + int rand 11;
	my $r = 1 + int rand 9;
	my $g = 1 + int rand 11;
	my $n = int rand 1000000;
	my @kinds = (
		"UPDATE item SET qty = $n WHERE id = $i",
		"UPDATE item SET order_id = $o WHERE id = $i",
		"UPDATE item SET product_id = $p WHERE id = $i",
		"UPDATE item SET product_id = NULL WHERE id = $i",
		"UPDATE item SET qty = $n, order_id = $o WHERE id BETWEEN $i AND $i + 5",
		"DELETE FROM item WHERE id = $i",
		"INSERT INTO item (order_id, product_id, qty) VALUES ($o, $p, $n)",
		"INSERT INTO item (order_id, product_id, qty) SELECT $o, 1 + x % 40, $n FROM generate_series(1, 5) x",
		"UPDATE orders SET customer_id = $c WHERE id = $o",
		"UPDATE orders SET customer_id = NULL WHERE id = $o",
		"UPDATE orders SET note = 'n$n' WHERE id = $o",
		"UPDATE orders SET unshown = $n WHERE id BETWEEN $o AND $o + 20",
		"UPDATE orders SET id = 1000000 + $n WHERE id = $o",
		"DELETE FROM orders WHERE id = $o",
		"INSERT INTO orders VALUES ($o, $c, 'new') ON CONFLICT (id) DO UPDATE SET customer_id = excluded.customer_id",
		"UPDATE product SET name = 'p$n' WHERE id = $p",
		"UPDATE product SET category_id = $y WHERE id = $p",
		"UPDATE product SET id = 1000 + $n WHERE id = $p",
		"DELETE FROM product WHERE id = $p",
		"INSERT INTO product VALUES ($p, 'again', $y) ON CONFLICT (id) DO NOTHING",
		"UPDATE category SET name = 'y$n' WHERE id = $y",
		"UPDATE category SET parent_id = 1 + $n % 10 WHERE id = $y",
		"UPDATE customer SET name = 'c$n' WHERE id = $c",
		"UPDATE customer SET region_id = $r WHERE id = $c",
		"UPDATE customer SET id = 1000 + $n WHERE id = $c",
		"DELETE FROM customer WHERE id = $c",
		"INSERT INTO customer VALUES ($c, 'again', $r) ON CONFLICT (id) DO UPDATE SET name = 'there'",
		"UPDATE region SET name = 'r$n' WHERE id = $r",
		"INSERT INTO customer_tag VALUES ($c, $g) ON CONFLICT DO NOTHING",
		"UPDATE customer_tag SET customer_id = $c WHERE customer_id = $c + 1 AND tag_id = $g",
		"UPDATE customer_tag SET tag_id = $g WHERE customer_id = $c",
		"DELETE FROM customer_tag WHERE customer_id = $c",
		"UPDATE tag SET name = 't$n' WHERE id = $g");
	return $kinds[ rand @kinds ];
}

sub script
{
	my $text = '';
	foreach (1 .. 20000)
	{
		my $level = ('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')[ rand 4 ];
		$text .= "BEGIN ISOLATION LEVEL $level;\n";
		foreach (0 .. rand 3)
		{
			my $sub = rand() < 0.2;
			$text .= "SAVEPOINT a;\n" if $sub;
			$text .= statement() . ";\n";
			$text .= (rand() < 0.5 ? 'ROLLBACK TO a' : 'RELEASE a') . ";\n" if $sub;
			$text .= sprintf "SELECT pg_sleep(%f);\n", rand() * 0.03 if rand() < 0.5;
		}
		$text .= (rand() < 0.1 ? 'ROLLBACK' : 'COMMIT') . ";\n";
	}
	return $text;
}

sub run_writers
{
	my ($m, $kill) = @_;
	my $until = time() + $seconds;
	my @sessions = map { $m->background("SET application_name = 'writer';\n" . script()) } 1 .. $writers;
	while (time() < $until)
	{
		sleep 2;
		# gently: a worker that is killed takes the writers along
		$m->sql("SELECT pg_terminate_backend(pid) FROM crate_sync.status") if $kill && rand() < 0.5;
	}
	$m->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'writer'");
	$_->done foreach @sessions;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	srand($seed);
	$m->sql($shop);
	$m->sql("SELECT crate_sync.add_document('" . definition($m) . "')");
	ok($m->wait_sync, 'loaded');
	run_writers($m, 1);
	ok($m->wait_sync, 'in sync');
	my ($wrong, $words, $n) = wrong($m);
	is($wrong, 0, "none of $n documents is wrong") or diag($words);
	is($m->sql('SELECT count(*) FROM crate_sync.failed_rows'), 0, 'none is parked');
}, but => 'standin', why => 'it does not tell the types of nested members again, as CrateDB does');

# teeth: what was queued of rows as they were is left out
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	srand($seed);
	$m->sql($shop);
	$m->sql("SELECT crate_sync.add_document('" . definition($m) . "')");
	ok($m->wait_sync, 'loaded');
	$m->sql("ALTER DATABASE " . $m->db . " SET crate_sync.debug_new_links_only = on");
	run_writers($m, 0);
	ok($m->wait_sync, 'in sync');
	my ($wrong, undef, $n) = wrong($m);
	cmp_ok($wrong, '>', 0, "without links as they were, $wrong of $n documents are wrong");
}, only => 'sqlite', why => 'the fault is at the source');

done_testing();
