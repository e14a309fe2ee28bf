# A failed row is one that the target does not have as it is: what was read before
# it failed does not take it out of failed_rows, whenever it arrives; what was read
# later does.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('parked', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
EOC

# --- an older write is under way while a newer one fails to be read
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->standin;
	my $writes = 'INSERT INTO "' . $m->{schema} . '"\."t"';
	my $deletes = 'DELETE FROM "' . $m->{schema} . '"\."t"';

	$m->sql(<<'EOQ');
CREATE TABLE t (id int PRIMARY KEY, n int, v text, j jsonb);
INSERT INTO t SELECT i, 1, 'old' FROM generate_series(1, 5) i;
SELECT crate_sync.add_table('t', row_filter => '100 / (n - 3) < 1000', options => '{"types": {"j": "OBJECT(DYNAMIC)"}}');
EOQ
	$m->equal('t', 'loaded');

	# both are the newest there is, for the reader: by the filter, and by what no target has
	my %fails = ('the filter' => 'n = 3', 'a value that cannot be written' => q{n = 2, j = '[1]'});
	my $nothing = 'n = 2, j = NULL';
	my $failed = 'SELECT count(*) FROM crate_sync.failed_rows';

	# until the one request that waits is carried out, and its outcome was taken in
	my $release = sub {
		my ($until) = @_;
		my $requests = $m->sql(q{SELECT requests FROM crate_sync.tables WHERE relname = 't'});
		$s->control(release => JSON::PP::true());
		$s->fault();
		ok(CrateSync::wait_until('it arrives', $until), 'the older write arrives');
		ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.tables WHERE relname = 't'}), '... and is acknowledged');
	};
	my $stays = sub {
		my ($what) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		is($m->sql($failed), 1, "$what: the newer row stays in failed_rows");
		my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.wait_for_sync(timeout => '30s')});
		is($out, 'f', "$what: ... and wait_for_sync says so");
		like($err, qr/1 row/, "$what: ... with the reason");
	};
	my $mended = sub {
		my ($what) = @_;
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		$m->sql("UPDATE t SET v = 'fine', $nothing");
		$m->equal('t', "$what, mended");
		is($m->sql($failed), 0, "$what: no failed row is left");
	};

	foreach my $what (sort keys %fails)
	{
		my $fail = $fails{$what};

		$s->fault({ match => $writes, hold => 'before', times => 1 });
		$m->sql("UPDATE t SET v = 'before', $nothing WHERE id = 1");
		$s->wait_hits(1);
		$m->sql("UPDATE t SET v = 'fails', $fail WHERE id = 1");
		ok($m->poll($failed, 1), "$what: the newer one is parked");
		$release->(sub { $m->target_value('SELECT v FROM {t} WHERE id = 1') eq 'before' });
		$stays->($what);
		$mended->($what);

		# two older ones, of which the second waits in its lane
		$s->fault({ match => $writes, hold => 'before', times => 1 });
		$m->sql("UPDATE t SET v = 'first', $nothing WHERE id = 1");
		$s->wait_hits(1);
		$m->sql("UPDATE t SET v = 'second', $nothing WHERE id = 1");
		ok($m->poll('SELECT wait_event IS NOT NULL FROM pg_stat_activity WHERE pid = (SELECT pid FROM crate_sync.status)'), 'it was read');
		select(undef, undef, undef, 0.5);
		$m->sql("UPDATE t SET v = 'fails', $fail WHERE id = 1");
		ok($m->poll($failed, 1), "$what, two older ones: the newest one is parked");
		$release->(sub { $m->target_value('SELECT v FROM {t} WHERE id = 1') eq 'second' });
		$stays->("$what, two older ones");
		$mended->("$what, two older ones");

		# a delete, and the row comes back
		$s->fault({ match => $deletes, hold => 'before', times => 1 });
		$m->sql('DELETE FROM t WHERE id = 1');
		$s->wait_hits(1);
		$m->sql("INSERT INTO t (id) VALUES (1); UPDATE t SET v = 'back', $fail WHERE id = 1");
		ok($m->poll($failed, 1), "$what, a delete before: the row that came back is parked");
		$release->(sub { $m->target_value('SELECT count(*) FROM {t} WHERE id = 1') == 0 });
		$stays->("$what, a delete before");
		$mended->("$what, a delete before");

		# a failed row is mended and tried again, and fails again meanwhile
		$m->sql("UPDATE t SET $fail WHERE id = 1");
		ok($m->poll($failed, 1), "$what: a failed row");
		$s->fault({ match => $writes, hold => 'before', times => 1 });
		$m->sql("UPDATE t SET v = 'again', $nothing WHERE id = 1; SELECT crate_sync.retry_failed()");
		$s->wait_hits(1);
		$m->sql("UPDATE t SET v = 'fails', $fail WHERE id = 1");
		ok($m->poll('SELECT attempts FROM crate_sync.failed_rows', 2), "$what: it fails again while it is tried again");
		$release->(sub { $m->target_value('SELECT v FROM {t} WHERE id = 1') eq 'again' });
		$stays->("$what, tried again");

		# and what the worker that comes next knows of it
		my $pid = $m->worker_pid;
		$m->sql("SELECT pg_terminate_backend($pid)");
		ok($m->poll("SELECT pid <> $pid FROM crate_sync.status"), 'another worker');
		$m->sql("UPDATE t SET v = 'beside' WHERE id = 2");
		ok($m->poll(q{SELECT queued_keys = 0 AND state = 'ready' FROM crate_sync.tables WHERE relname = 't'}), '... is at work');
		$stays->("$what, another worker");
		$mended->("$what, another worker");

		# the worker ends while the older one is under way
		$s->fault({ match => $writes, hold => 'before', times => 1 });
		$m->sql("UPDATE t SET v = 'before', $nothing WHERE id = 1");
		$s->wait_hits(1);
		$m->sql("UPDATE t SET v = 'fails', $fail WHERE id = 1");
		ok($m->poll($failed, 1), "$what: parked before the worker ends");
		$pid = $m->worker_pid;
		$m->sql("SELECT pg_terminate_backend($pid)");
		$s->control(release => JSON::PP::true());
		$s->fault();
		ok($m->poll("SELECT pid <> $pid FROM crate_sync.status"), 'another worker');
		ok($m->poll(q{SELECT queued_keys = 0 AND state = 'ready' FROM crate_sync.tables WHERE relname = 't'}), '... has read the older change as well');
		$stays->("$what, the worker ended meanwhile");
		$mended->("$what, the worker ended meanwhile");
	}

	# the target refuses the older one, the reader the newer one: what is true now stays
	$s->fault({ match => $writes, hold => 'before', times => 1 }, { match => $writes, refuse => 'refused', times => -1 });
	$m->sql("UPDATE t SET v = 'refused' WHERE id = 1");
	$s->wait_hits(1);
	$m->sql("UPDATE t SET n = 3 WHERE id = 1");
	ok($m->poll($failed, 1), 'the newer one is parked');
	$s->control(release => JSON::PP::true());
	ok($m->poll(q{SELECT n_tup_failed >= 2 AND queued_keys = 0 FROM crate_sync.tables WHERE relname = 't' AND n_failed_rows = 1}), 'the older one is refused');
	is($m->sql('SELECT action FROM crate_sync.failed_rows'), 'read', '... which is not said of the newer one');
	$mended->('refused');

	# of the same batch's neighbours, and of rows read right after it, none stays
	$m->sql("UPDATE t SET n = 3 WHERE id = 3; UPDATE t SET v = 'with it'");
	ok($m->poll($failed, 1), 'one of five fails');
	$m->sql('UPDATE t SET n = 3; UPDATE t SET n = 4 WHERE id <> 3');
	$m->sql('UPDATE t SET n = 5 WHERE id = 3');
	$m->equal('t', 'all are fine');
	is($m->sql($failed), 0, 'none is left in failed_rows');
}, only => 'standin', why => 'requests are held there');

# --- more failed rows than anybody keeps in mind
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $of = sub { $m->sql("SELECT count(*) FROM crate_sync.failed WHERE target_key = '$_[0]'") };

	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, 1, 'old' FROM generate_series(1, 10) i;
		SELECT crate_sync.add_table('t', row_filter => '100 / (n - 3) < 1000')});
	$m->equal('t', 'loaded');
	$m->sql('SELECT crate_sync.stop()');
	ok($m->poll('SELECT pid IS NULL FROM crate_sync.status'), 'stopped');
	$m->sql(q{INSERT INTO crate_sync.failed (mirror_id, target_key, key, packed_key, layout, action, error_code, error_message)
		SELECT mirror_id, k, '{}', '', 1, 'upsert', 'x', 'x' FROM crate_sync.mirror, (SELECT 'no' || i FROM generate_series(1, 1000000) i UNION ALL SELECT unnest(ARRAY['5', '6'])) AS x (k)});
	$m->sql(q{SET client_min_messages = error; SELECT crate_sync.start()});
	$m->wait_worker;
	$m->sql(q{UPDATE t SET v = 'new' WHERE id = 5});
	ok($m->poll(q{SELECT count(*) = 0 FROM crate_sync.failed WHERE target_key = '5'}), 'the last of a million: it arrives, and is no failed row any more');
	is($of->('6'), 1, '... the other one still is');
	$m->sql(q{UPDATE t SET n = 3 WHERE id = 5});
	ok($m->poll(q{SELECT count(*) = 1 FROM crate_sync.failed WHERE target_key = '5'}), 'it fails again');
	$m->sql(q{UPDATE t SET n = 2});
	ok($m->poll(q{SELECT count(*) = 0 FROM crate_sync.failed WHERE target_key IN ('5', '6')}), 'both are fine');
	is($m->sql(q{SELECT crate_sync.discard_failed('t')}), 1000000, 'the others are given up');
	$m->equal('t', 'all is well');
	$m->sql(q{UPDATE t SET n = 3 WHERE id = 7});
	ok($m->poll('SELECT count(*) FROM crate_sync.failed_rows', 1), 'a row fails when there are few again');
	$m->sql(q{UPDATE t SET n = 4 WHERE id = 7});
	ok($m->poll('SELECT count(*) FROM crate_sync.failed_rows', 0), '... and is mended');
}, only => 'sqlite', why => 'it is what the worker keeps in mind');

$node->stop;
done_testing();
