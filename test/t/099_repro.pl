use strict; use warnings; use CrateSync; use Test::More;
my $node = CrateSync::server('repro', conf => "crate_sync.max_retry_interval = 300ms\n");
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql('CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i FROM generate_series(1,990) i');
	$m->add('a'); $m->wait_sync;
	my $bad = 0;
	foreach my $i (1 .. 40)
	{
		$m->sql("INSERT INTO a SELECT i FROM generate_series(1,990) i ON CONFLICT DO NOTHING"); $m->wait_sync;
		$m->sql("UPDATE a SET v = 'by writer' WHERE id = 3"); $m->sql("DELETE FROM a WHERE id = 4"); $m->sql("INSERT INTO a VALUES (5000+$i, 'w')"); $m->sql("TRUNCATE a");
		$m->sql("INSERT INTO a VALUES (1, 'low')");
		$m->wait_sync;
		my $c = $m->target_count('a');
		if ($c != 1) { $bad++; diag("round $i: $c rows: " . join(',', map { $_->[0] } @{$m->target_rows('SELECT id FROM {a} ORDER BY id LIMIT 10')}));
			sleep 2; diag("2 s later: " . $m->target_count('a')); }
	}
	is($bad, 0, 'no row survives a TRUNCATE');
});
done_testing();
