# Keys that somebody put into the target by hand, and that no source could have: a full
# resync takes them away, verify finds them.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('foreign_keys');

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	# a table, its key column, and values of no key of it
	my %tables = (
		words => [ 'w text PRIMARY KEY', q{x'00ff'}, q{CAST(x'6100' AS TEXT)}, q{CAST(x'610062' AS TEXT)}, q{CAST(x'c328' AS TEXT)}, q{CAST(x'ff' AS TEXT)}, q{x'61'} ],
		numbers => [ 'w bigint, n int, PRIMARY KEY (w, n)', q{'a'}, '1.5', q{x'01'}, q{CAST(x'3100' AS TEXT)} ],
		decimals => [ 'w numeric PRIMARY KEY', q{x'31'}, q{CAST(x'3100' AS TEXT)}, q{'one'} ],
		floats => [ 'w float8 PRIMARY KEY', q{'a'}, q{x'31'} ],
		times => [ 'w timestamptz PRIMARY KEY', q{'a'}, q{x'31'}, '1.5' ],
		documents => [ 'w jsonb PRIMARY KEY', q{x'31'}, q{CAST(x'ff' AS TEXT)} ]);
	my %rows = (
		words => q[('a'), ('{"text":"6100"}'), ('{')], numbers => '(1)', decimals => '(1), (1.50)', floats => q{(1), ('NaN'), (1e300)},
		times => q{('2020-01-01')}, documents => q{('{"a": 1}'), ('{}')});
	my $verified = sub {
		return $m->poll("SELECT s.verify_done = m.verify_no AND s.load_phase IS NULL FROM crate_sync.mirror m
			JOIN crate_sync.mirror_state s USING (mirror_id) WHERE m.relid = '$_[0]'::regclass");
	};
	foreach my $t (sort keys %tables)
	{
		my ($columns, @bad) = @{ $tables{$t} };
		my $composite = $columns =~ /n int/;
		$m->sql("CREATE TABLE $t ($columns, v text" . ($composite ? '); ALTER TABLE numbers ALTER n SET DEFAULT 1' : ')') . "; INSERT INTO $t (w) VALUES $rows{$t}");
		$m->add($t);
		$m->equal($t, "$t: loaded");
		my $good = $m->target_count($t);
		my $put = sub {
			$m->target_change("INSERT INTO {$t} (w" . ($composite ? ', n' : '') . ", v) VALUES ($_" . ($composite ? ', 1' : '') . ", 'by hand')") foreach @bad;
			is($m->target_count($t), $good + @bad, "$t: keys put in by hand");
		};
		$put->();
		$m->sql("SELECT crate_sync.verify('$t')");
		ok($verified->($t), 'verified');
		is($m->sql(qq{SELECT NOT last_verify_ok, (SELECT count(*) FROM crate_sync.differences WHERE relname = '$t' AND kind = 'extra') FROM crate_sync.tables WHERE relname = '$t'}),
			't|' . @bad, "$t: verify finds each");
		$m->sql("SELECT crate_sync.resync('$t')");
		ok($m->wait_sync, 'resynced');
		is($m->target_count($t), $good, "$t: a full resync takes them away");
		$put->();
		$m->sql("SELECT crate_sync.verify('$t', repair => true)");
		ok($verified->($t), 'repaired');
		ok($m->wait_sync, 'in sync');
		is($m->target_count($t), $good, "$t: so does a verify that repairs");
		is($m->target_value("SELECT count(*) FROM {$t} WHERE v = 'by hand'"), 0, "$t: and no row else");
	}
}, only => 'sqlite', why => 'columns of CrateDB hold values of their types only');

$node->stop;
done_testing();
