# What the target calls things, and what the status says when all is well again.
use strict;
use warnings;
use CrateSync;
use CrateSync::Points;
use Test::More;

my $node = CrateSync::server('words', conf => "crate_sync.max_retry_interval = 300ms\ncrate_sync.debug_points = on\n");

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	# the name that comes back can be used in a statement at the target
	$m->sql(q{CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'one')});
	my $name = $m->sql(q{SELECT crate_sync.add_table('orders')});
	ok($m->wait_sync, 'loaded');
	is($m->sql(qq{SELECT q->>'v' FROM crate_sync.target_query('SELECT v FROM $name') AS q}), 'one', 'add_table says what the table is called at the target');
	is($m->sql(q{SELECT crate_sync.add_table('orders', if_not_exists => true)}), $name, '... and says it again');

	# a column whose name is a type's word comes later: information_schema has it in quotes
	$m->sql(q{ALTER TABLE orders ADD COLUMN "char" text; UPDATE orders SET "char" = 'c'});
	$m->equal('orders', 'a column "char"');
	$m->sql(q{ALTER TABLE orders ADD COLUMN more int; UPDATE orders SET more = 2});
	$m->equal('orders', '... and another one behind it');
	my $pid = $m->worker_pid;
	$m->sql("SELECT pg_terminate_backend($pid)");
	ok($m->poll("SELECT pid <> $pid FROM crate_sync.status"), 'another worker');
	$m->sql(q{UPDATE orders SET "char" = 'd'});
	$m->equal('orders', '... finds it as it is');
	is($m->sql(q{SELECT state || coalesce(last_error, '') FROM crate_sync.tables WHERE relname = 'orders'}), 'ready', '... and has nothing to complain about');
});

# --- errors that say what is wrong, and what to do
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $error = sub { return ($m->try_sql($_[0]))[2] };
	$m->sql(q{CREATE TABLE here (id int PRIMARY KEY, v int); INSERT INTO here SELECT i, i FROM generate_series(1, 10) i;
		CREATE TABLE elsewhere (id int PRIMARY KEY); CREATE VIEW seen AS SELECT * FROM here;
		CREATE TABLE part (id int PRIMARY KEY, v int); INSERT INTO part SELECT i, i FROM generate_series(1, 10) i;
		SELECT crate_sync.add_table('here'); SELECT crate_sync.add_table('part', row_filter => 'v > 5')});
	$m->equal('here', 'loaded');
	like($error->(q{SELECT * FROM crate_sync.benchmark('SELECT count(*) FROM elsewhere')}), qr/"elsewhere" is not mirrored\nHINT:  Mirror it, or pass .* target_sql/, 'benchmark: a table that is not mirrored');
	like($error->(q{SELECT * FROM crate_sync.benchmark('SELECT count(*) FROM seen')}), qr/"seen" is not mirrored/, '... a view');
	like($error->(q{SELECT * FROM crate_sync.benchmark('SELECT count(*) FROM here WHERE v::text ~ ''^1'' AND to_char(now(), ''YYYY'') > ''1'' ')}), qr/the target refused the query: .*HINT:  .* pass its query as target_sql/s,
		'... words that the target does not have') unless $m->is_crate;
	is($m->sql(q{SELECT rows_match FROM crate_sync.benchmark('SELECT count(*) FROM (SELECT * FROM here) AS x', iterations => 1, warmup => 0)}), 't', '... and what is mirrored');
	like($m->sql(q{SELECT mismatch FROM crate_sync.benchmark('SELECT count(*) FROM part', iterations => 1, warmup => 0)}), qr/\(part is mirrored with a row filter\)$/, '... with a filter');
});

# --- targets that are none
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $says = sub {
		my ($target, $error, $hint, $what) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		$m->sql("ALTER DATABASE $m->{db} SET crate_sync.target = '$target'");
		my $status = q{SELECT last_error || ' | ' || hint FROM crate_sync.status WHERE target = '} . $target . q{'};
		ok($m->poll("SELECT EXISTS (SELECT FROM crate_sync.status WHERE target = '$target' AND last_error ~ '$error' AND hint ~ '$hint')"), $what)
		  or diag($m->sql($status));
	};
	$m->sql('CREATE TABLE t (id int PRIMARY KEY)');
	$m->add('t');
	ok($m->wait_sync, 'loaded');
	# who waits right after it was changed waits for the new one
	foreach my $file ('one', 'two', 'three')
	{
		local $m->{url} = "sqlite:$dir/$file.db";
		is($m->sql("INSERT INTO t SELECT count(*) FROM t; ALTER DATABASE $m->{db} SET crate_sync.target = '$m->{url}'; SELECT crate_sync.wait_for_sync()"), 't', "in sync with target $file");
		is(eval { $m->target_count('t') } // $@, $m->sql('SELECT count(*) FROM t'), '... which has the rows');
	}
	$says->("sqlite:$dir/no/such/file.db", 'unable to open database file: No such file or directory', 'write that file, and into its directory', 'a directory that is not there');
	$says->('http://no-such-host.invalid:4200', 'no-such-host', 'name in crate_sync.target', 'a host that is not there');
	my $standin = CrateSync::Standin->new;
	(my $tls = $standin->url) =~ s/^http:/https:/;
	$says->($tls, '.', 'TLS', 'a target that speaks no TLS');
}, only => 'sqlite', why => 'the target is another one each time');

# --- a column that somebody dropped at the target: the worker ends when it has added it again
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text, w text); INSERT INTO t SELECT i, 'v', 'w' FROM generate_series(1, 100) i});
	$m->add('t');
	$m->equal('t', 'loaded');
	$m->sql('SELECT crate_sync.stop()');
	ok($m->poll('SELECT pid IS NULL FROM crate_sync.status'), 'stopped');
	# renamed, as older versions of SQLite drop none
	$m->target_change(q{CREATE TABLE kept AS SELECT id, v FROM {t}});
	$m->target_change(q{DELETE FROM {t}});
	$m->target_change(q{ALTER TABLE {t} RENAME COLUMN w TO gone});
	$m->target_change(q{INSERT INTO {t} (id, v) SELECT id, v FROM kept});
	my $hold = CrateSync::Points::hold($m, 'before claim');
	$m->sql('SET client_min_messages = error; SELECT crate_sync.start()');
	ok($hold->wait, 'the column is there again');
	my $pid = $m->worker_pid;
	$m->sql("SELECT pg_terminate_backend($pid)");
	ok($m->poll("SELECT pid IS DISTINCT FROM $pid FROM crate_sync.status"), 'the worker ends');
	$hold->let_go;
	ok($m->wait_worker, 'another one starts');
	$m->equal('t', 'its values come');
}, only => 'sqlite', why => 'columns cannot be dropped there by hand in all versions');

$node->stop;
done_testing();
