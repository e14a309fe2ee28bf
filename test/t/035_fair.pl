# One table's trouble, size or start is nobody else's: what one waits for, others do not.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('fair', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
crate_sync.batch_rows = 100
crate_sync.work_mem = 16MB
EOC

# a row is there, within what a busy machine may take
sub arrives
{
	my ($m, $table, $id) = @_;
	return CrateSync::wait_until("row $id of $table is there",
		sub { $m->target_value("SELECT count(*) FROM {$table} WHERE id = $id") == 1 }, 40);
}

# --- requests of one table are not answered: its keys, rows and connections are its own
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->standin;

	$m->sql(q{CREATE TABLE slow (id text PRIMARY KEY, v text); INSERT INTO slow SELECT repeat(md5(i::text), 6), repeat('x', 1000) FROM generate_series(1, 12000) i;
		CREATE TABLE quick (id int PRIMARY KEY)});
	$m->add('slow', 'quick');
	$m->equal([ 'slow', 'quick' ], 'loaded');
	my $hold = sub { $s->fault({ match => '^(/\*.*\*/ )?INSERT INTO "' . $m->{schema} . '"\."slow"', hold => 'before', times => -1 }) };
	my $held = sub { CrateSync::wait_until('held', sub { $s->control->{held} == 2 }, 40) };
	my $let_go = sub { $s->fault(); $s->control(release => JSON::PP::true()) };

	$hold->();
	$m->sql(q{UPDATE slow SET v = 'b'});
	ok($held->(), 'two connections wait for one table');
	foreach my $i (1 .. 3)
	{
		$m->sql("INSERT INTO quick VALUES ($i)");
		ok(arrives($m, 'quick', $i), "... another one's changes arrive ($i)");
	}
	$m->sql('DELETE FROM quick WHERE id = 1');
	ok(CrateSync::wait_until('it goes', sub { $m->target_value('SELECT count(*) FROM {quick} WHERE id = 1') == 0 }, 40), '... and go');
	is($s->control->{held}, 2, '... meanwhile');
	$let_go->();
	$m->equal([ 'slow', 'quick' ], 'they are answered');

	# what came in between, of a backlog
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql(q{UPDATE slow SET v = 'c'});
	$m->sql('INSERT INTO quick VALUES (10)');
	$m->sql(q{UPDATE slow SET v = repeat('d', 5000)});
	$hold->();
	$m->sql('SELECT crate_sync.start()');
	ok($held->(), 'a backlog, and the same');
	ok(arrives($m, 'quick', 10), '... what is in the middle of it arrives');
	$m->sql('INSERT INTO quick VALUES (11)');
	ok(arrives($m, 'quick', 11), '... and what is added');
	is($s->control->{held}, 2, '... meanwhile');
	$m->sql(q{UPDATE slow SET v = 'e' WHERE id < '8'});
	$let_go->();
	$m->equal([ 'slow', 'quick' ], 'they are answered');
	ok($m->poll(q{SELECT sum(pg_relation_size(oid)) / 8192 < 64 FROM pg_class WHERE oid::regclass::text ~ '^crate_sync.queue_[012]$'}), 'the queue is emptied');
}, only => 'standin', why => 'it takes a target that keeps requests waiting');

# --- more busy tables than connections: tables and their lanes take turns
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->standin;
	my @tables = map { "t$_" } 1 .. 6;

	$m->sql("CREATE TABLE $_ (id int PRIMARY KEY, v int); INSERT INTO $_ SELECT i, 0 FROM generate_series(1, 200) i") foreach @tables;
	$m->add(@tables);
	$m->equal(\@tables, 'loaded');
	$s->fault({ match => 'INSERT INTO "' . $m->{schema}, delay => 0.05, times => -1 });
	$s->control(clear_log => JSON::PP::true());
	$m->sql(q{DO $$ BEGIN FOR i IN 1 .. 1500 LOOP
		EXECUTE format('UPDATE t%s SET v = %s WHERE id = %s', 1 + i % 6, i, 1 + (i * 7) % 200);
		COMMIT; PERFORM pg_sleep(0.003); END LOOP; END $$});
	my (%lane, %table);
	foreach ($s->statements('INSERT INTO "' . $m->{schema}))
	{
		my ($n, $name) = $_->{stmt} =~ m{^/\*.* (\d+) \d+ \*/ INSERT INTO "[^"]+"\."(t\d)"} or next;
		$lane{$n}++;
		$table{$name}++;
	}
	$s->fault();
	$m->equal(\@tables, 'all of it arrives');
	my $said = join(', ', map { "lane $_: $lane{$_}" } sort keys %lane) . '; ' . join(', ', map { "$_: $table{$_}" } sort keys %table);
	cmp_ok($lane{0} + $lane{1}, '>', 40, "requests were counted ($said)");
	cmp_ok($lane{1} / $lane{0}, '>', 0.7, 'a lane gets as many connections as the other');
	cmp_ok($lane{0} / $lane{1}, '>', 0.7, '... and the other as many');
	my ($least, $most) = (sort { $a <=> $b } map { $table{$_} || 0 } @tables)[ 0, -1 ];
	cmp_ok($least / $most, '>', 0.7, 'so do tables');
}, only => 'standin', why => 'it takes a target that is slow');

# --- tables are made ready beside the rows of those that are, new ones, and ones that cannot be made
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->standin;
	my @tables = map { "new$_" } 1 .. 30;

	$m->sql('CREATE TABLE ready (id int PRIMARY KEY)');
	$m->sql("CREATE TABLE $_ (id int PRIMARY KEY, v int); INSERT INTO $_ SELECT i, i FROM generate_series(1, 10) i") foreach @tables;
	$m->add('ready');
	$m->equal('ready', 'one is ready');

	foreach my $what ('are being made', 'cannot be made')
	{
		my $broken = $what eq 'cannot be made';
		$s->fault({ match => 'CREATE TABLE IF NOT EXISTS "' . $m->{schema}, delay_before => 0.25, times => -1,
				$broken ? (error => [ 5000, 'SQLActionException[no room for more shards]', 500 ]) : () });
		$s->control(clear_log => JSON::PP::true());
		my $made = sub { scalar $s->statements('CREATE TABLE IF NOT EXISTS "' . $m->{schema}) };
		$m->sql(q{SELECT count(crate_sync.add_table(('new' || i)::regclass)) FROM generate_series(1, 30) i});
		ok(CrateSync::wait_until('it begins', sub { $made->() > 0 }), "tables $what");
		my @seen;
		foreach my $i (1 .. 4)
		{
			$m->sql('INSERT INTO ready VALUES (' . ($i + 10 * $broken) . ')');
			ok($m->wait_sync('ready'), '... meanwhile another one is in sync');
			push @seen, $made->();
		}
		cmp_ok($seen[0], '<', 20, "... while the first ones were made ($seen[0])");
		if ($broken)
		{
			ok($m->poll(q{SELECT count(*) = 30 FROM crate_sync.tables WHERE relname LIKE 'new%' AND state = 'error'}), '... all of them say so');
			# they are tried again and again, all about the same time
			my @before = ($made->());
			foreach my $i (5 .. 12)
			{
				$m->sql('INSERT INTO ready VALUES (' . ($i + 10) . ')');
				ok($m->wait_sync('ready'), '... meanwhile another one is in sync');
				push @before, $made->();
			}
			my ($most) = sort { $b <=> $a } map { $before[$_] - $before[ $_ - 1 ] } 1 .. $#before;
			cmp_ok($most, '<', 15, "... with few tries in between (@before)");
			$s->fault();
		}
		else
		{
			ok($m->wait_sync, 'then all are');
			my @log = grep { $_->{stmt} =~ /CREATE TABLE IF NOT EXISTS "$m->{schema}|INSERT INTO "$m->{schema}"\."new1"/ } $s->statements('.');
			my ($loaded) = grep { $log[$_]{stmt} =~ /INSERT/ } 0 .. $#log;
			cmp_ok($loaded, '<', 20, 'the first one was loaded before the last one was made');
			$m->sql(q{SELECT count(crate_sync.remove_table(('new' || i)::regclass, drop_target => true)) FROM generate_series(1, 30) i});
			ok($m->poll('SELECT count(*) = 0 FROM crate_sync.removal'), 'removed');
		}
	}
	$m->equal([ 'ready', @tables ], 'all can be made');
}, only => 'standin', why => 'it takes a target that is slow');

# --- rows that take long to be read
CrateSync::on_targets($node, sub {
	my ($m) = @_;

	$m->sql(q{CREATE FUNCTION slowly(int) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN true; END $$;
		CREATE TABLE slow (id int PRIMARY KEY, v int, n int); CREATE TABLE quick (id int PRIMARY KEY);
		INSERT INTO slow SELECT i, 0, i FROM generate_series(1, 60) i;
		SELECT crate_sync.add_table('slow', copy_data => false, row_filter => 'slowly(n)'); SELECT crate_sync.add_table('quick')});
	$m->equal('quick', 'one that is quick');
	$m->sql(q{UPDATE slow SET v = 1});
	ok($m->poll(q{SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'crate_sync' AND wait_event = 'PgSleep' AND datname = current_database()}), 'a table is read, slowly');
	my @left;
	foreach my $i (1 .. 3)
	{
		$m->sql("INSERT INTO quick VALUES ($i)");
		ok(arrives($m, 'quick', $i), "... another one's change arrives ($i)");
		push @left, 60 - ($m->target_value('SELECT count(*) FROM {slow} WHERE v = 1') || 0);
	}
	cmp_ok($left[0], '>', 25, "... while many of its rows are still to be read ($left[0])");
	cmp_ok($left[1], '>', 0, "... and while it goes on ($left[1])");
	ok($m->wait_sync, 'then all have arrived');
	is($m->target_value('SELECT count(*) FROM {slow} WHERE v = 1'), 60, '... each of them');
});

$node->stop;
done_testing();
