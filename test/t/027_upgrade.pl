# pg_upgrade, and ALTER EXTENSION UPDATE to a version that is made up here, while the worker and writers go
# on.  (From the first version, whose catalog this library does not work with: 037.)
use strict;
use warnings;
use CrateSync;
use CrateSync::Faults;
use File::Basename qw(basename dirname);
use Test::More;
use Time::HiRes qw(sleep time);

my $conf = "crate_sync.max_retry_interval = 300ms\ncrate_sync.interval = 100ms\n";

sub bindir
{
	my ($postgres) = grep { -x $_ } map { "$_/postgres" } split /:/, $ENV{PATH};
	return dirname($postgres);
}

# --- pg_upgrade: to a new cluster, here of the same version; then adopt(), as the README says
my $old = CrateSync::server('before_upgrade', conf => $conf);
CrateSync::on_targets($old, sub {
	my ($m) = @_;
	my @t = ('t', 'p');
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i;
		CREATE TABLE p (id int, r int, PRIMARY KEY (id, r)) PARTITION BY LIST (r); CREATE TABLE p0 PARTITION OF p DEFAULT; INSERT INTO p SELECT i, i FROM generate_series(1, 300) i});
	$m->add(@t);
	$m->equal(\@t, 'load');
	sleep 1;
	$m->sql('SELECT crate_sync.pause()');
	$m->sql(q{UPDATE t SET v = 'queued' WHERE id <= 100; DELETE FROM t WHERE id > 990});
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('SELECT crate_sync.resume()');
	$m->sql(q{UPDATE t SET v = 'queued too' WHERE id BETWEEN 101 AND 200; INSERT INTO p VALUES (1000, 1000); UPDATE crate_sync.control SET stopped = false});
	my $keys = $m->status('queued_keys');
	cmp_ok($keys, '>', 200, 'keys are queued');
	$old->stop;

	my $new = CrateSync::Faults::new_node("upgraded_$m->{kind}");
	$new->init(extra => [ '-E', 'UTF8', '--locale', 'C' ]);
	$new->append_conf('postgresql.conf', CrateSync::settings() . "shared_preload_libraries = 'crate_sync'\n$conf");
	my $out = PostgreSQL::Test::Utils::tempdir();
	my $said = '';
	my $ok = do {
		# it writes into the current directory
		my $here = POSIX::getcwd();
		chdir $out;
		my $run = IPC::Run::run([ 'pg_upgrade', '-d', $old->data_dir, '-D', $new->data_dir, '-b', bindir(), '-B', bindir(),
				'-s', $new->host, '-p', $old->port, '-P', $new->port ], '<', \undef, '>', \$said, '2>&1');
		chdir $here;
		$run;
	};
	ok($ok, 'pg_upgrade') or diag $said;
	$new->start;
	my $n = CrateSync::Faults::beside($m, $new);
	ok($n->wait_worker, 'the new cluster has a worker');
	ok($n->poll(q{SELECT NOT ok AND message LIKE '%looks like a copy%' FROM crate_sync.status}, 't', 60), 'it is a copy and says so');
	like($n->status('hint'), qr/crate_sync\.adopt\(\)/, 'and what to do');
	is($n->status('queued_keys'), $keys, 'what was queued still is');
	is($n->target_value(q{SELECT count(*) FROM {t} WHERE v LIKE 'queued%'}), 0, 'nothing is written');
	is($n->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%' AND tgenabled = 'A'}), $n->sql(q{SELECT 2 * count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relname IN ('t', 'p', 'p0')}), 'triggers are as they were');
	$n->sql('SELECT crate_sync.adopt()');
	$n->equal(\@t, 'adopted');
	is($n->target_value(q{SELECT count(*) FROM {t} WHERE v LIKE 'queued%'}), 200, 'what was queued has arrived');
	$n->sql(q{UPDATE t SET v = 'upgraded'; TRUNCATE p; INSERT INTO p VALUES (1, 1)});
	$n->equal(\@t, 'it goes on');
	is($n->status('ok'), 't', 'and is well');
	is($n->sql(q{SELECT count(*) FROM pg_depend d JOIN pg_extension e ON d.refobjid = e.oid WHERE extname = 'crate_sync' AND deptype = 'e'}) > 10 ? 1 : 0, 1, 'its objects are the extension\'s');
	($ok) = $n->try_sql('DROP EXTENSION crate_sync');
	is($ok, 0, 'which can be dropped');
	$new->stop;
	$new->clean_node;
	$old->start;
});
$old->stop;
$old->clean_node;

# --- ALTER EXTENSION UPDATE.  The script of the newer version is put into a tree of our own: copies of the
# programs, links to the rest.
my $bin = bindir();
my $dir = PostgreSQL::Test::Utils::tempdir();
my $share = do {
	my $probe = CrateSync::Faults::new_node('probe');
	$probe->init;
	$probe->start;
	my $s = $probe->safe_psql('postgres', q{SELECT setting FROM pg_config WHERE name = 'SHAREDIR'});
	$probe->stop;
	$probe->clean_node;
	$s;
};
my ($top, @b) = ('', split(m{/}, $bin));
my @s = split(m{/}, $share);
shift @b, shift @s while @b && @s && $b[0] eq $s[0];
$top = substr($bin, 0, length($bin) - length(join('/', @b)));
my $private = "$dir/" . join('/', @b);
my $private_share = "$dir/" . join('/', @s);
system('mkdir', '-p', $private, "$private_share/extension") == 0 or die 'mkdir';
system('cp', '-L', (grep { -e $_ } map { "$bin/$_" } qw(postgres pg_ctl initdb psql pg_basebackup)), $private) == 0 or die 'cp';
# what lies beside them is found by the way from the programs
foreach my $from (glob(dirname($bin) . '/*'))
{
	symlink $from, dirname($private) . '/' . basename($from) unless -e dirname($private) . '/' . basename($from);
}
foreach my $from (glob("$share/*"), glob("$share/extension/*"))
{
	(my $to = $from) =~ s/^\Q$share\E/$private_share/;
	symlink $from, $to unless -e $to;
}
my ($default) = PostgreSQL::Test::Utils::slurp_file("$share/extension/crate_sync.control") =~ /default_version\s*=\s*'([^']+)'/;
my $first = '1.0';
open my $f, '>', "$private_share/extension/crate_sync--$default--999.sql" or die "crate_sync--$default--999.sql: $!";
print $f <<'EOS';
\echo Use "ALTER EXTENSION crate_sync UPDATE" to load this file. \quit
ALTER TABLE crate_sync.mirror_state ADD COLUMN made_up int DEFAULT 7;
ALTER TABLE crate_sync.worker_state ADD COLUMN made_up text;
CREATE FUNCTION crate_sync.made_up() RETURNS int LANGUAGE sql AS 'SELECT 999';
CREATE OR REPLACE VIEW crate_sync.differences AS
	SELECT m.relid, n.nspname AS schemaname, c.relname, d.key, d.kind, d.columns, d.found_time, d.repaired, 999 AS made_up
	FROM crate_sync.difference d JOIN crate_sync.mirror m USING (mirror_id)
		JOIN pg_catalog.pg_class c ON c.oid = m.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
EOS
close $f;

{
	local $ENV{PATH} = "$private:$ENV{PATH}";
	my $node = CrateSync::server('extension_update', conf => $conf);
	is($node->safe_psql('postgres', q{SELECT setting FROM pg_config WHERE name = 'SHAREDIR'}), $private_share, 'a server with an extension directory of its own');
	CrateSync::on_targets($node, sub {
		my ($m) = @_;
		$m->sql("SET client_min_messages = error; CREATE EXTENSION crate_sync VERSION '$first'");
		is($m->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}), $first, 'the first version');
		$m->sql('ALTER EXTENSION crate_sync UPDATE');
		is($m->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}), $default, 'brought up to date');
		$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i; CREATE TABLE stop (now bool)});
		$m->add('t');
		$m->equal('t', 'load');
		my @w = map { $m->background(<<"EOQ") } 1 .. 3;
DO \$\$
DECLARE i int := 0;
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		i := i + 1;
		UPDATE t SET v = 'w' || i WHERE id % 97 = i % 97 AND id % 3 = $_ - 1;
		INSERT INTO t VALUES ($_ * 1000000 + i, 'new');
		DELETE FROM t WHERE id = $_ * 1000000 + i - 5;
		COMMIT;
		PERFORM pg_sleep(0.005);
	END LOOP;
END \$\$;
EOQ
		my ($ret, $out, $err) = $m->try_sql(q{ALTER EXTENSION crate_sync UPDATE TO '999'});
		is($ret, 0, 'ALTER EXTENSION UPDATE while writers and worker go on') or diag $err;
		is($m->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}), '999', 'it has that version');
		sleep 0.5;
		ok($m->wait_sync, 'in sync after it') foreach 1 .. 2;
		is($m->sql('SELECT crate_sync.made_up()'), 999, 'the new version is there');
		is($m->sql('SELECT count(*) FROM crate_sync.mirror_state WHERE made_up = 7'), 1, 'with its column');
		$m->sql('INSERT INTO stop VALUES (true)');
		is(join('', map { $_->done } @w), '', 'no writer failed');
		$m->equal('t', 'after the updates');
		$m->sql(q{SELECT crate_sync.resync('t')});
		$m->kill_worker('TERM');
		$m->sql(q{UPDATE t SET v = 'next worker' WHERE id < 10});
		$m->equal('t', 'by a worker that started after them');
		is($m->status('ok'), 't', 'all is well') or $m->tell_why;
	}, extension => 0);
	$node->stop;
}
done_testing();
