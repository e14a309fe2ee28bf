# Whose a target table is: copies, and tables that have a name in common.
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use Test::More;
use Time::HiRes qw(sleep);

my $node = CrateSync::server('claims', conf => "crate_sync.max_retry_interval = 300ms\n");

# a database beside the first that has the same target
sub sibling
{
	my ($m, $name, $make) = @_;
	my $n = bless { %$m, db => $name, standin => undef }, ref $m;
	$node->safe_psql('postgres', $make);
	$node->safe_psql('postgres', "ALTER DATABASE $name SET crate_sync.target = '$m->{url}'; ALTER DATABASE $name SET search_path = $m->{schema}, public");
	return $n;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'first' FROM generate_series(1, 100) i});
	$m->add('t');
	$m->equal('t', 'the first database');

	# --- the beat goes with the only table, its claim stays: the worker has to come by a new one
	my $claims = $m->is_crate ? 'crate_sync.claim' : '"crate_sync.claim"';
	$m->target_change(qq{DELETE FROM $claims WHERE target LIKE 'beat of %'});
	$m->target_change('DROP TABLE {t}');
	$m->sql(q{UPDATE t SET v = 'after' WHERE id = 1});
	ok($m->poll(q{SELECT ok AND crate_sync.wait_for_sync(timeout => '1s') FROM crate_sync.status}, 't', 40), 'with its beat and its table taken away, the worker goes on');
	$m->equal('t', 'and all is there again');

	# --- another database's table of the same name
	my $name = "$m->{db}_" . '"odd' . q{'x};
	my $quoted = '"' . ($name =~ s/"/""/gr) . '"';
	$node->safe_psql('postgres', "CREATE DATABASE $quoted TEMPLATE template0; ALTER DATABASE $quoted SET crate_sync.target = '$m->{url}'");
	my $n = bless { %$m, db => $name, standin => undef }, ref $m;
	$n->sql("CREATE SCHEMA $s; CREATE EXTENSION crate_sync; CREATE TABLE $s.t (id int PRIMARY KEY, v text); INSERT INTO $s.t VALUES (1, 'second')");
	$n->sql("SELECT crate_sync.add_table('$s.t')");
	ok($n->poll(q{SELECT state = 'table error' FROM crate_sync.status}), 'a name that is taken stops the table');
	like($n->status('message'), qr/database "$m->{db}" of this server: two tables have that name/, 'and says whose it is, by name');
	unlike($n->status('hint'), qr/adopt/, 'adopt() is not what helps');
	is($m->target_count('t'), 100, 'nothing is written there');
	my ($hint) = $n->status('hint') =~ /^(SELECT .*?; SELECT .*?;)/;
	ok($hint, 'the hint has statements') or diag $n->status('hint');
	$n->sql($_) foreach split /(?<=;) /, $hint;
	ok($n->wait_sync, 'pasted, they help');
	$m->equal('t', 'and the first one is as it was');
	$n->sql(q{SELECT crate_sync.remove_table(relid, drop_target => true) FROM crate_sync.mirror});
	$n->poll('SELECT count(*) = 0 FROM crate_sync.removal');
	$node->safe_psql('postgres', "DROP DATABASE $quoted WITH (FORCE)");

	# --- a copy of the database in the same server that adopts, while the original goes on
	my $dir = PostgreSQL::Test::Utils::tempdir();
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	my $copy = sibling($m, "$m->{db}_copy", "CREATE DATABASE $m->{db}_copy TEMPLATE $m->{db}");
	$m->sql('SELECT crate_sync.start()');
	$copy->sql('SELECT crate_sync.start()');
	ok($copy->poll(q{SELECT state = 'table error' AND message LIKE '%looks like a copy%' FROM crate_sync.status}), 'a copy says so');
	$m->equal('t', 'the original goes on');
	$copy->sql(q{SELECT crate_sync.adopt()});
	my $w = $m->background(q{DO $$ BEGIN FOR i IN 1..60 LOOP UPDATE t SET v = 'original' WHERE id = i; COMMIT; PERFORM pg_sleep(0.05); END LOOP; END $$});
	ok($copy->poll(q{SELECT ok FROM crate_sync.status}), 'the copy takes over');
	is($w->done, '', 'the original writes meanwhile');
	ok($m->poll(q{SELECT state = 'table error' AND message LIKE '%looks like a copy%' FROM crate_sync.status}, 't', 60), 'the original is the copy now');
	$copy->equal('t', 'the target is the copy\'s');
	is($copy->target_count('t'), 100, 'whole');

	# --- the claim of a database that is no more
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$node->safe_psql('postgres', "DROP DATABASE $m->{db}_copy WITH (FORCE)");
	my $last = sibling($m, "$m->{db}_last", "CREATE DATABASE $m->{db}_last TEMPLATE template0");
	$last->sql("CREATE SCHEMA $s; CREATE EXTENSION crate_sync; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'last' FROM generate_series(1, 10) i; SELECT crate_sync.add_table('t')");
	ok($last->poll(q{SELECT state = 'ready' FROM crate_sync.tables}, 't', 60), 'a name whose owner is gone is free');
	$last->equal('t', 'and so is its table');
	$node->safe_psql('postgres', "DROP DATABASE $m->{db}_last WITH (FORCE)");
});
$node->stop;
done_testing();
