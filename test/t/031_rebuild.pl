# A rebuild that does not come to its end leaves nothing behind and starts nothing.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('rebuild', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.request_timeout = 5s
crate_sync.interval = 100ms
crate_sync.batch_rows = 500
crate_sync.debug_points = on
EOC

# is a table there in the target?
sub is_there
{
	my ($m, $table) = @_;
	return $m->target_rows("SELECT count(*) FROM sqlite_master WHERE name = '$m->{schema}.$table'")->[0][0] unless $m->is_crate;
	return $m->target_rows("SELECT count(*) FROM information_schema.tables WHERE table_schema = '$m->{schema}' AND table_name = '$table'")->[0][0];
}

# a rebuild that has its new table and has not read a row when the code is called
sub begun
{
	my ($m, $code) = @_;
	my $s = $m->background("SELECT pg_advisory_lock(28531, hashtext('before piece')); SELECT pg_sleep(600) /* holds it */;");
	$m->poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE '%/* holds it */%' AND pid <> pg_backend_pid()");
	$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
	ok($m->poll("SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'held at before piece'"), 'a rebuild is under way');
	is(is_there($m, 't__crate_sync_new'), 1, '... with its new table');
	$code->();
	$m->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%/* holds it */%' AND pid <> pg_backend_pid()");
	$s->done;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $rows = $m->kind eq 'standin' ? 8000 : 20000;
	my $offset;

	$m->sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, $rows) i");
	$m->add('t');
	$m->equal('t', 'load');

	# --- cancelled
	begun($m, sub {
		# what goes to the new table is missed by the old one
		$m->sql(q{UPDATE t SET v = 'while it was rebuilt' WHERE id <= 10; SELECT crate_sync.cancel('t')});
		$offset = CrateSync::log_size($node);
	});
	ok($m->poll(q{SELECT state = 'incomplete' FROM crate_sync.tables}), 'cancelled: the old table is incomplete');
	is($m->status, 'incomplete', '... and status says so');
	like($m->status('hint'), qr/crate_sync\.resync\(/, '... and what to do');
	ok(CrateSync::wait_until('dropped', sub { !is_there($m, 't__crate_sync_new') }), '... the new table is gone');
	ok($m->poll('SELECT count(*) = 0 FROM crate_sync.removal'), '... and nothing is left to do');
	$m->sql(q{UPDATE t SET v = 'after it' WHERE id BETWEEN 101 AND 110});
	ok(CrateSync::wait_until('pushed', sub { $m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'after it'}) == 10 }), '... the old one goes on');
	is($m->target_count('t'), $rows, '... with all its rows');
	is(CrateSync::log_count($node, '(resync|rebuild|load) of [^ ]* begins', $offset), 0, '... and nothing was begun by itself');
	is($m->sql('SELECT state FROM crate_sync.tables'), 'incomplete', '... so it stays incomplete');
	$m->kill_worker('TERM');
	$m->wait_worker;
	is($m->sql('SELECT state FROM crate_sync.tables'), 'incomplete', '... after a restart as well');
	$m->sql(q{SELECT crate_sync.resync()});
	$m->equal('t', 'resynced');
	is($m->status('ok'), 't', 'all is well');

	# --- overtaken by something else
	foreach my $mode ('full', 'upsert')
	{
		begun($m, sub { $m->sql(qq{UPDATE t SET v = 'overtaken by $mode' WHERE id <= 10; SELECT crate_sync.resync('t', '$mode')}) });
		$m->equal('t', "a rebuild overtaken by $mode");
		ok(CrateSync::wait_until('dropped', sub { !is_there($m, 't__crate_sync_new') }), '... the new table is gone');
	}

	if (my $s = $m->standin)
	{
		# the new table has it all, but cannot take its place; what goes to it now is missed by the old one
		$offset = CrateSync::log_size($node);
		$s->fault({ match => 'INSERT INTO crate_sync.fence', args => '\.\\\\"t\\\\"#', times => -1, error => [ 5000, 'CircuitBreakingException[Allocating 1mb for x failed, breaker would use 1gb]', 500 ] });
		$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
		$s->wait_hits(1);
		$m->sql(q{DELETE FROM t WHERE id = 50});
		ok($m->poll('SELECT queued_keys = 0 FROM crate_sync.status'), 'a delete goes to the new table');
		$m->sql(q{SELECT crate_sync.resync('t', 'upsert')});
		CrateSync::wait_until('given up', sub { CrateSync::log_count($node, '(resync|rebuild) of [^ ]* begins', $offset) > 1 });
		$s->fault();
		$m->equal('t', 'what the old table has missed is made good, were it a delete');
		is($m->target_value('SELECT count(*) FROM {t} WHERE id = 50'), 0, '... which it was');
	}

	# --- and one that comes to its end
	begun($m, sub { $m->sql(q{SELECT crate_sync.resync('t', 'rebuild')}) });
	$m->equal('t', 'a rebuild overtaken by a rebuild');
	is(is_there($m, 't__crate_sync_new'), 0, '... the new table has taken its place');

	# --- an old one that cannot be dropped is not swapped in
	$m->sql(q{INSERT INTO t VALUES (-1, 'soon gone')});
	$m->equal('t', 'one more');
	if (my $s = $m->standin)
	{
		my $new = $m->target_table('t__crate_sync_new');
		my $swaps = $s->statements('SWAP TABLE');
		$m->target_post({ stmt => "CREATE TABLE $new (id INTEGER PRIMARY KEY, v TEXT)" });
		$m->target_post({ stmt => "INSERT INTO $new (id, v) VALUES (-7, 'of an earlier one')" });
		$s->fault({ match => 'DROP TABLE IF EXISTS ' . quotemeta($new), times => -1, error => [ 5000, 'IllegalStateException[not now]', 500 ] });
		$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
		ok($m->poll(q{SELECT state = 'error' AND last_error LIKE '%not now%' FROM crate_sync.tables}), 'an old new table that cannot be dropped: status says so');
		is(scalar($s->statements('SWAP TABLE')), $swaps, '... it is not swapped in');
		foreach my $way (q{cancel('t')}, q{resync('t')})
		{
			$m->sql("SELECT crate_sync.$way");
			ok($m->poll(q{SELECT state <> 'error' FROM crate_sync.tables}), "... $way gets out of that");
			$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
			ok($m->poll(q{SELECT state = 'error' FROM crate_sync.tables}), '... which the next one is in again');
		}
		$s->fault();
		ok($m->poll(q{SELECT resync_done = resync_no AND load_phase IS NULL FROM crate_sync.mirror JOIN crate_sync.mirror_state USING (mirror_id)}), '... until it can');
		$m->equal('t', 'rebuilt without its rows');
	}
});

$node->stop;
done_testing();
