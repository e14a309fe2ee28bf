# report(): one HTML file; what is in it, that nothing of users' gets out of its place, and how a browser shows it.
use strict;
use warnings;
use CrateSync;
use File::Basename qw(basename);
use Test::More;

my $node = CrateSync::server('report', conf => "crate_sync.max_retry_interval = 300ms\n");
my $tmp = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', 'CREATE ROLE report_monitor LOGIN IN ROLE pg_monitor');
my $evil = q{<script>alert(1)</script>"' onload=x &};

# well-formed as XML, but for what HTML leaves open
sub well_formed
{
	my ($html, $what) = @_;
	my (@open, @bad);
	while ($html =~ /<(\/?)([a-z0-9]+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>|<!DOCTYPE html>|(<)/gi)
	{
		push @bad, substr($html, pos($html) - 1, 80), next if defined $5;
		next unless defined $2;
		next if $4 || lc $2 eq 'meta';
		if ($1 eq '') { push @open, $2; next }
		push @bad, "</$2> closes <" . ($open[-1] // '') . ">" unless @open && $open[-1] eq $2;
		pop @open;
	}
	is(join("\n", @bad, @open), '', $what);
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $report = sub { return $m->sql('SET SESSION AUTHORIZATION report_monitor; SET default_transaction_read_only = on; SELECT crate_sync.report(' . ($_[0] // '') . ')') };
	my $empty = $report->();
	like($empty, qr/^<!DOCTYPE html>.*<\/html>$/s, 'a page, for a member of pg_monitor who only reads');
	like($empty, qr/nothing mirrored/, 'of an empty installation');
	well_formed($empty, 'in which every tag is closed');

	$m->sql(qq{CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'v' FROM generate_series(1, 3000) i;
		CREATE TABLE "$evil" (id int PRIMARY KEY)} =~ s/"' onload/""' onload/r);
	$m->add('orders');
	my $quoted = '"' . ($evil =~ s/"/""/gr) . '"';
	$m->sql(q{SELECT crate_sync.add_table('} . ($quoted =~ s/'/''/gr) . qq{', '$m->{schema}.evil')});
	push @{ $m->{created} }, 'evil';
	$m->wait_sync;
	$m->sql('DELETE FROM orders WHERE id > 2900');
	$m->wait_sync;
	$m->sql(q{SELECT crate_sync.verify('orders')});
	$m->poll('SELECT count(*) FROM crate_sync.verifications', 1);
	# history of a day, results, failed rows, texts of others
	$m->sql(q{INSERT INTO crate_sync.history_sample SELECT date_trunc('minute', now()) - interval '24 hours' + i * interval '5 min', '1 min', mirror_id, relid, 'public', 'orders',
			(sum((1 + sin(i / 20.0)) * 40000) OVER (ORDER BY i))::bigint, i * 300, i / 50, i, 0, i, i, 10, CASE WHEN i BETWEEN 100 AND 120 THEN i * interval '1 s' ELSE '0.2 s' END
			FROM crate_sync.mirror, generate_series(1, 280) i WHERE target_table = 'orders'
			ON CONFLICT DO NOTHING;
		INSERT INTO crate_sync.failed (mirror_id, key, packed_key, layout, target_key, action, error_code, error_message)
			SELECT mirror_id, '{"id": 1}', '', 0, 'x', 'upsert', '<b>4000</b>', '<img src=x onerror=alert(2)> $$ %s %1$s' FROM crate_sync.mirror LIMIT 1;
		INSERT INTO crate_sync.benchmark_results (target, query, target_sql, iterations, warmup, source_min_time, source_mean_time, source_p50_time, source_p95_time,
			target_min_time, target_mean_time, target_p50_time, target_p95_time, speedup, source_rows, target_rows, rows_match, mismatch)
			VALUES ('crate 6.4.3', 'SELECT status, count(*) FROM orders WHERE v < ''</pre><script>'' GROUP BY status', 'x', 20, 2, 1, 1, 84.2, 90, 1, 1, 12.1, 15, 6.96, 5, 5, true, NULL),
			('crate 6.4.3', 'SELECT * FROM orders WHERE id = 7', 'x', 20, 2, 1, 1, 0.2, 0.3, 1, 1, 2.8, 4, 0.07, 1, 1, true, NULL),
			('crate 6.4.3', 'SELECT sum(total) FROM orders', 'x', 20, 2, 1, 1, 2.2, 2.3, 1, 1, 2.2, 4, 1.0, 1, 1, false, 'row 1: <i>1</i> and 2')});
	my $html = $report->();
	open my $f, '>:raw', "$tmp/report.html" or die;
	print $f "$html\n";
	close $f;

	well_formed($html, 'every tag is closed, and nothing of users is one');
	unlike($html, qr/<(script|img|link|iframe|b>4000|i>1)/i, 'no script, no picture from elsewhere, no tag of users');
	unlike($html, qr/<[^>]*\b(?:src|href)=/, 'it needs nothing from outside');
	like($html, qr/&lt;script&gt;alert\(1\)&lt;\/script&gt;&quot;&#39; onload=x &amp;/, 'a hostile name is shown as it is');
	like($html, qr/&lt;img src=x onerror=alert\(2\)&gt; \$\$ %s %1\$s/, 'and a hostile error');
	like($html, qr/7\.0 times faster/, 'what is faster');
	like($html, qr/<span class="bad">crate 6\.4\.3 is 14\.3 times slower/, 'what is slower');
	like($html, qr/answers differ: row 1: &lt;i&gt;1/, 'what differs');
	like($html, qr/<td class="good">ready<\/td><td class="n">3000<\/td><td class="n">100</, 'counts of a table');
	like($html, qr/<span class="good">equal<\/span>, 2900 rows/, 'the last proof');
	like($html, qr/failed rows.*SELECT crate_sync\.retry_failed\(\);/s, 'state and remedy');
	like($html, qr/max_retry_interval<\/code><\/td><td>300 ms<\/td><td>60000 ms/, 'a setting that differs');
	cmp_ok(scalar(() = $html =~ /<rect [^>]*class="fa"/g), '>', 50, 'a line of rows per second');
	cmp_ok(length $html, '<', 300_000, 'of a size that mails well');
	like($report->(q{now() - interval '30 days'}), qr/Over time/, 'of 30 days');
	my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.report(now(), now() - interval '1 day')});
	like($err, qr/since must be before until/, 'a time that ends before it begins is refused');

	# in a browser: as wide as the window and no wider, from a telephone to a large screen, light and dark
	my ($chromium) = grep { -x $_ } map { "$_/chromium" } split /:/, $ENV{PATH};
	if (!$chromium)
	{
		CrateSync::skipped(basename($0) . ': the report is not shown in a browser: there is no chromium');
		return;
	}
	# the browser says how wide the page is: in its title, by a script that only the test adds
	(my $probe = $html) =~ s/<meta http-equiv[^>]*>//;
	$probe =~ s{</body>}{<script>const d=document.documentElement;document.title='wide '+d.scrollWidth+' of '+d.clientWidth+' svg '+document.querySelectorAll('svg rect').length;</script></body>};
	open $f, '>:raw', "$tmp/probe.html" or die;
	print $f $probe;
	close $f;
	foreach my $width (500, 1024, 1600)
	{
		my $said = '';
		IPC::Run::run([ 'timeout', '60', $chromium, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', "--user-data-dir=$tmp/chromium",
			"--window-size=$width,900", '--dump-dom', "file://$tmp/probe.html" ], '<', \undef, '>', \$said, '2>', \my $err);
		my ($wide, $of, $rects) = $said =~ /<title>wide (\d+) of (\d+) svg (\d+)</;
		ok(defined $wide && $wide <= $of, "at $width pixels nothing is wider than the window") or diag(($wide // '?') . ' of ' . ($of // '?') . $err);
		cmp_ok($rects // 0, '>', 50, 'the pictures are drawn');
	}
	if ($ENV{REPORT_SHOTS})
	{
		foreach my $width (360, 800, 1600)
		{
			foreach my $dark (0, 1)
			{
				IPC::Run::run([ 'timeout', '60', $chromium, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', "--user-data-dir=$tmp/chromium",
					'--hide-scrollbars', ($dark ? '--blink-settings=preferredColorScheme=0' : ()), "--window-size=$width," . ($width < 500 ? 4200 : 2600),
					"--screenshot=$ENV{REPORT_SHOTS}/$m->{kind}.$width.$dark.png", "file://$tmp/report.html" ], '<', \undef, '>', \my $said, '2>&1');
			}
		}
	}
});

$node->stop;
done_testing();
