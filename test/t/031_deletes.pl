# Deletes ask whose the table is, as upserts do: one that is sent after another writer took over deletes nothing,
# nor does one that arrives long after it was sent.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $true = JSON::PP::true();
my $node = CrateSync::server('deletes', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.connect_timeout = 2s
crate_sync.request_timeout = 3s
crate_sync.interval = 100ms
EOC

# another writer claims the table and raises its fences
sub taken_over
{
	my ($m, $table) = @_;
	my $claim = $m->is_crate ? 'crate_sync.claim' : '"crate_sync.claim"';
	my $name = sprintf '"%s"."%s"', $m->{schema}, $table;
	$m->target_rows(qq{UPDATE $claim SET token = 'anothers', system_identifier = '1', place = 'elsewhere' WHERE target = '$name'});
	if ($m->is_crate)
	{
		$m->target_post({ stmt => 'REFRESH TABLE crate_sync.fence' });
		$m->target_post({ stmt => 'UPDATE crate_sync.fence SET epoch = epoch + 1 WHERE id >= ? AND id < ?', args => [ "$name#", "$name\$" ] });
	}
	else
	{
		$m->target_rows("UPDATE crate_sync_fence SET epoch = epoch + 1 WHERE table_name = '$m->{schema}.$table'");
	}
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my %key = (n => 'id int PRIMARY KEY, v text', c => q{id int, v text, PRIMARY KEY (id, v)});
	foreach my $t (sort keys %key)
	{
		$m->sql("CREATE TABLE $t ($key{$t}); INSERT INTO $t SELECT i, 'v' || i FROM generate_series(1, 50) i");
		$m->add($t);
	}
	$m->equal([ 'n', 'c' ], 'load');
	$m->sql("DELETE FROM $_ WHERE id > 40") foreach keys %key;
	$m->equal([ 'n', 'c' ], 'deletes');
	foreach my $t (sort keys %key)
	{
		taken_over($m, $t);
		$m->sql("DELETE FROM $t WHERE id <= 20");
		ok($m->poll(qq{SELECT state = 'error' AND last_error LIKE '%is written by%' FROM crate_sync.tables WHERE relname = '$t'}),
			"$t: deletes notice that another writer took over");
		is($m->target_count($t), 40, '... and nothing was deleted');
	}
	$m->sql('SELECT crate_sync.adopt()');
	$m->equal([ 'n', 'c' ], 'adopted');
});

$node->stop;
done_testing();
