# Watching: metrics(), and each file of monitoring/ loaded by the program that it is for, where there is one.
use strict;
use warnings;
use CrateSync;
use File::Basename qw(basename dirname);
use JSON::PP ();
use Test::More;

my $top = -d "$CrateSync::TOP/../monitoring" ? "$CrateSync::TOP/.." : $CrateSync::TOP;
my $monitoring = "$top/monitoring";
my $tmp = PostgreSQL::Test::Utils::tempdir();

# have(PROGRAM): is it on PATH?  Says so if not.
sub have
{
	my ($program, $what) = @_;
	return 1 if grep { -x "$_/$program" } split /:/, $ENV{PATH};
	CrateSync::skipped(basename($0) . ": $what: there is no $program");
	return 0;
}

sub run_in
{
	my ($in, @command) = @_;
	my $out = '';
	my $ok = IPC::Run::run(\@command, '<', \$in, '>&', \$out);
	return ($ok, $out);
}

sub slurp { return PostgreSQL::Test::Utils::slurp_file($_[0]) }

my $node = CrateSync::server('watch', conf => "crate_sync.max_retry_interval = 300ms\n");
$node->safe_psql('postgres', 'CREATE ROLE monitor LOGIN IN ROLE pg_monitor; CREATE ROLE nobody_here LOGIN');

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $as_monitor = sub { return $m->sql("SET SESSION AUTHORIZATION monitor; SET default_transaction_read_only = on; $_[0]") };

	# nothing mirrored yet
	my $text = $as_monitor->('SELECT crate_sync.metrics()');
	like($text, qr/^crate_sync_tables\{datname="$m->{db}"\} 0$/m, 'metrics of an empty installation, by a member of pg_monitor who only reads');
	like($text, qr/^crate_sync_up\{[^}]*\} 0$/m, 'which is not well');
	$m->sql(q{CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' FROM generate_series(1, 1000) i;
		CREATE TABLE "we""ird\\" (id int PRIMARY KEY, v text); INSERT INTO "we""ird\\" VALUES (1, 'x')});
	$m->add('a');
	$m->sql(qq{SELECT crate_sync.add_table('$m->{schema}."we""ird\\"', '$m->{schema}.weird')});
	push @{ $m->{created} }, 'weird';
	ok($m->wait_sync, 'in sync');
	$m->sql('DELETE FROM a WHERE id > 993');
	$m->wait_sync;
	$m->sql(q{SELECT crate_sync.verify('a')});
	ok($m->poll(q{SELECT last_verify_ok FROM crate_sync.tables WHERE relname = 'a'}), 'verified');
	ok($m->poll(q{SELECT n_tup_upserted, n_tup_deleted FROM crate_sync.tables WHERE relname = 'a'}, '1000|7'), 'counted');

	$text = $as_monitor->('SELECT crate_sync.metrics()');
	my $labels = qq{datname="$m->{db}",schema="$m->{schema}",table="a"};
	like($text, qr/^crate_sync_rows_upserted_total\{\Q$labels\E\} 1000$/m, 'rows upserted');
	like($text, qr/^crate_sync_rows_deleted_total\{\Q$labels\E\} 7$/m, 'rows deleted');
	like($text, qr/^crate_sync_verify_ok\{\Q$labels\E\} 1$/m, 'the last verify');
	like($text, qr/^crate_sync_up\{datname="$m->{db}"\} 1$/m, 'up');
	like($text, qr/^crate_sync_state\{datname="$m->{db}",state="ok"\} 1$/m, 'the state that is');
	like($text, qr/^crate_sync_state\{datname="$m->{db}",state="lagging"\} 0$/m, 'those that are not');
	like($text, qr/table="we\\"ird\\\\"/, 'names are escaped');
	like($text, qr/\n# EOF\z/, 'the end of an OpenMetrics text');
	unlike($as_monitor->(q{SELECT crate_sync.metrics('prometheus')}), qr/# (EOF|UNIT)/, 'which the older format has not');
	my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.metrics('xml')});
	like($err, qr/format must be openmetrics or prometheus/, 'other formats there are none');
	($ret, $out, $err) = $m->try_sql(q{SET SESSION AUTHORIZATION nobody_here; SELECT crate_sync.metrics()});
	like($err, qr/permission denied/, 'nothing for everybody');

	# a clock that moves when nothing happens
	my $first = $m->sql('SELECT extract(epoch FROM heartbeat_time) FROM crate_sync.status');
	ok($m->poll("SELECT extract(epoch FROM heartbeat_time) > $first FROM crate_sync.status"), 'the heartbeat moves when idle');

	# every state that the worker or status may be in is one that metrics() lists
	my ($ok, $said);
	if (have('promtool', 'metrics() is not shown to Prometheus'))
	{
		($ok, $said) = run_in($as_monitor->(q{SELECT crate_sync.metrics('prometheus')}) . "\n", 'promtool', 'check', 'metrics');
		ok($ok && $said eq '', 'promtool has nothing to say about metrics()') or diag $said;
	}
	my ($python) = grep { -x $_ && system("$_ -c 'import prometheus_client.openmetrics.parser' 2>/dev/null") == 0 }
	  ('/usr/bin/python3', map { "$_/python3" } split /:/, $ENV{PATH});
	if ($python)
	{
		($ok, $said) = run_in("$text\n", $python, '-c', <<'EOP');
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
n = sum(len(f.samples) for f in parse(sys.stdin.read()))
print(n)
EOP
		ok($ok && $said > 30, 'the OpenMetrics parser takes it') or diag $said;
	}
	else
	{
		CrateSync::skipped(basename($0) . ': metrics() is not shown to an OpenMetrics parser: there is no python3-prometheus-client');
	}

	# every query of every file runs, as a member of pg_monitor who only reads
	foreach my $file (map { "$monitoring/$_" } 'crate_sync.collector.yml', 'crate_sync.justwatch.yml', 'crate_sync_queries.yml', 'crate_sync.pgwatch.yaml')
	{
		my (@queries, $indent);
		foreach my $line (split /\n/, slurp($file))
		{
			if ($line =~ /^(\s*)(?:query|14): \|$/) { $indent = length $1; push @queries, ''; }
			elsif (defined $indent && $line =~ /^(\s*)\S/ && length($1) > $indent) { $queries[-1] .= "$line\n"; }
			else { undef $indent }
		}
		cmp_ok(scalar @queries, '>=', 2, basename($file) . ' has queries');
		foreach my $q (@queries)
		{
			my ($r, $o, $e) = $m->try_sql("SET SESSION AUTHORIZATION monitor; SET default_transaction_read_only = on; $q");
			ok($r == 0 && $o ne '', basename($file) . ': a query runs') or diag "$q\n$e";
		}
		# and what it calls values are columns of them
		my $all = join("\n", @queries);
		foreach my $value (map { split /[^a-z_0-9]+/ } slurp($file) =~ /values: \[([^\]]*)\]/g)
		{
			next if $value eq '';
			like($all, qr/\b$value\b/, "$value is selected");
		}
	}

	if (have('prometheus-sql-exporter', 'monitoring/crate_sync.justwatch.yml is not loaded'))
	{
		my $port = CrateSync::free_port();
		my $conf = slurp("$monitoring/crate_sync.justwatch.yml");
		my $host = $node->host;
		my $pg_port = $node->port;
		$conf =~ s{postgres://[^"]*}{postgres://monitor\@/$m->{db}?host=$host&port=$pg_port&sslmode=disable} or die;
		$conf =~ s/interval: 15s/interval: 1s/ or die;
		open my $f, '>', "$tmp/justwatch.yml" or die; print $f $conf; close $f;
		exporter('sql_exporter', qr/col="rows_upserted_total"[^\n]*table="a"[^\n]* 1000$/m, $port,
			'prometheus-sql-exporter', '-config.file', "$tmp/justwatch.yml", '-web.listen-address', "127.0.0.1:$port");
	}
	if (have('prometheus-postgres-exporter', 'monitoring/crate_sync_queries.yml is not loaded'))
	{
		my $port = CrateSync::free_port();
		local $ENV{DATA_SOURCE_NAME} = sprintf('user=monitor dbname=%s host=%s port=%s sslmode=disable', $m->{db}, $node->host, $node->port);
		exporter('postgres_exporter', qr/^crate_sync_table_rows_upserted_total\{[^\n]*table="a"\} 1000$/m, $port,
			'prometheus-postgres-exporter', '--disable-default-metrics', '--disable-settings-metrics',
			"--extend.query-path=$monitoring/crate_sync_queries.yml", "--web.listen-address=127.0.0.1:$port");
	}
});

# starts a program that listens, and waits until it says what it should
sub exporter
{
	my ($name, $pattern, $port, @command) = @_;
	my $out = '';
	my $h = IPC::Run::start(\@command, '<', \undef, '>&', \$out);
	my $got = '';
	my $http = HTTP::Tiny->new(timeout => 10);
	ok(CrateSync::wait_until("$name says $pattern", sub {
		$h->pump_nb;
		my $r = $http->get("http://127.0.0.1:$port/metrics");
		$got = $r->{content} if $r->{success};
		return $got =~ $pattern;
	}, 60), "$name has loaded its file") or diag substr($got, 0, 3000) . $out;
	$h->kill_kill;
}

if (have('promtool', 'monitoring/alerts.yml is not loaded'))
{
	my ($ok, $said) = run_in('', 'promtool', 'check', 'rules', "$monitoring/alerts.yml");
	ok($ok, 'promtool takes the alert rules') or diag $said;
	# they fire: a target that does not answer for long enough, a row that was refused
	open my $f, '>', "$tmp/alerts_test.yml" or die;
	print $f <<"EOY";
rule_files: [$monitoring/alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'crate_sync_up{datname="shop"}'
        values: '0x20'
      - series: 'crate_sync_state{datname="shop",state="target unreachable"}'
        values: '1x20'
      - series: 'crate_sync_failed_rows{datname="shop"}'
        values: '0x20'
    alert_rule_test:
      - eval_time: 10m
        alertname: CrateSyncTargetUnreachable
        exp_alerts:
          - exp_labels: {severity: critical, datname: shop, state: target unreachable}
            exp_annotations:
              summary: "the target of shop does not answer"
              remedy: "Nothing, if it comes back: changes go on queueing, up to crate_sync.max_queue_size. Else see crate_sync.target, and last_error in crate_sync.status."
      - eval_time: 2m
        alertname: CrateSyncTargetUnreachable
        exp_alerts: []
      - eval_time: 10m
        alertname: CrateSyncFailedRows
        exp_alerts: []
EOY
	close $f;
	($ok, $said) = run_in('', 'promtool', 'test', 'rules', "$tmp/alerts_test.yml");
	ok($ok, 'they fire when they should, and not before') or diag $said;
}

# every state that status may have is in metrics(), and has a rule or is well
my $alerts = slurp("$monitoring/alerts.yml");
my $sql = slurp("$top/crate_sync--1.1.sql");
my ($known) = $sql =~ /known\(state\) AS \(VALUES (.*?)\),\n\s*m\(/s;
my @known = $known =~ /'([^']*)'/g;
my ($view) = $sql =~ /CREATE VIEW status AS(.*?);\nCOMMENT/s;
foreach my $state ($view =~ /^\s*\([^\n]*?, '([a-z ]+)',/mg)
{
	ok((grep { $_ eq $state } @known), "metrics() knows the state $state");
}
foreach my $state (grep { !/^(ok|starting|nothing mirrored|differences|failed rows|table error)$/ } @known)
{
	like($alerts, qr/[\"|]\Q$state\E[\\"|]/, "there is a rule for $state");
}

my $dashboard = JSON::PP->new->decode(slurp("$monitoring/grafana_dashboard.json"));
my @expr = map { $_->{expr} } map { @{ $_->{targets} } } @{ $dashboard->{panels} };
cmp_ok(scalar @expr, '>', 10, 'the dashboard has panels');
my %metric = map { $_ => 1 } ($sql =~ /UNION ALL SELECT \d+, '(\w+)'/g), 'up';
foreach my $name (map { /crate_sync_(\w+)/g } @expr, $alerts =~ /expr: (.*)/g)
{
	next if $name =~ /^(status|tables)$/;
	(my $family = $name) =~ s/_total$//;
	ok($metric{$family}, "metrics() has $name");
}

$node->stop;
done_testing();
