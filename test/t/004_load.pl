# Loads and resyncs: each mode does what it says, while changes go on, and goes on where it was
# after a restart in the middle.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('load', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
EOC

# writes that go on until the table "stop" has a row
sub writer
{
	my ($m) = @_;
	$m->sql('CREATE TABLE IF NOT EXISTS stop (now bool); TRUNCATE stop');
	return $m->background(<<'EOQ');
DO $$
DECLARE i int := 0;
BEGIN
	WHILE NOT EXISTS (SELECT FROM stop) LOOP
		i := i + 1;
		UPDATE t SET v = 'w' || i WHERE id % 997 = i % 997;
		INSERT INTO t VALUES (10000000 + i, 'new', 0) ON CONFLICT DO NOTHING;
		DELETE FROM t WHERE id = i * 3;
		UPDATE t SET id = id + 20000000 WHERE id = i * 7 + 1;
		COMMIT;
		PERFORM pg_sleep(0.005);
	END LOOP;
END $$;
EOQ
}

sub stop_writer
{
	my ($m, $w) = @_;
	$m->sql('INSERT INTO stop VALUES (true)');
	return $w->done;
}

CrateSync::on_targets(
	$node,
	sub {
		my ($m) = @_;
		my $rows = { standin => 15000, sqlite => 60000, crate => 40000 }->{ $m->kind };

		$m->sql("CREATE TABLE t (id bigint PRIMARY KEY, v text, n int);"
			  . "INSERT INTO t SELECT i, repeat('v', 20) || i, i FROM generate_series(1, $rows) i; ANALYZE t");

		# --- a load while changes go on
		my $w = writer($m);
		$m->add('t');
		ok($m->wait_sync, 'in sync while changes go on');
		is(stop_writer($m, $w), '', 'no writer failed');
		$m->equal('t', 'load while changes go on');
		cmp_ok($m->target_count('t'), '>', $rows / 2, 'its rows are there');
		is($m->sql('SELECT count(*) FROM crate_sync.progress'), 0, 'no progress when nothing is under way');
		ok($m->sql(q{SELECT last_load_time IS NOT NULL AND state = 'ready' FROM crate_sync.tables}) eq 't', 'the load is noted');

		# --- a load that is interrupted goes on where it was
		$m->node->append_conf('postgresql.conf', "crate_sync.batch_rows = 200\n");
		$m->node->reload;
		foreach my $signal ('KILL', 'TERM', 'restart')
		{
			my $before = 0;
			$m->target_change('DELETE FROM {t} WHERE id % 2 = 0');
			$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema}, delay_before => 0.05, times => -1 }) if $m->standin;
			$m->sql(q{SELECT crate_sync.resync('t', 'upsert')});
			ok( CrateSync::wait_until(
					'some rows done',
					sub {
						my $done = $m->sql(q{SELECT coalesce(max(tuples_done), 0) FROM crate_sync.progress});
						$before = $done if $done > $before;
						return $before > 0;
					}),
				"progress shows rows done ($before)");
			# the worker commits without waiting for the disk: a commit that waits takes its own along
			$m->sql(q{SELECT pg_current_xact_id()});
			my $w = $signal eq 'TERM' ? writer($m) : undef;
			if ($signal eq 'restart') { $m->node->stop('immediate'); $m->node->start }
			else { $m->kill_worker($signal) }
			$m->wait_worker;
			# what progress said was durable
			my $after = $m->sql(q{SELECT coalesce(max(tuples_done), -1) FROM crate_sync.progress});
			cmp_ok($after, '>=', $before, "goes on where it was after $signal ($before, then $after)") if $after >= 0;
			$m->standin->fault() if $m->standin;
			ok($m->wait_sync, "in sync after $signal");
			is(stop_writer($m, $w), '', 'no writer failed') if $w;
			$m->equal('t', "load interrupted by $signal");
			is($m->sql('SELECT count(*) FROM crate_sync.progress'), 0, 'and is over');
		}
		$m->node->append_conf('postgresql.conf', "crate_sync.batch_rows = 5000\n");
		$m->node->reload;

		# --- the modes
		my $count = $m->sql('SELECT count(*) FROM t');
		my $spoil = sub {
			$m->target_change(q{UPDATE {t} SET v = 'spoilt' WHERE id IN (SELECT id FROM {t} WHERE n > 0 ORDER BY id LIMIT 10)}) if !$m->is_crate;
			if ($m->is_crate)
			{
				my $ids = join ',', map { $_->[0] } @{ $m->target_rows('SELECT id FROM {t} WHERE n > 0 ORDER BY id LIMIT 10') };
				$m->target_change("UPDATE {t} SET v = 'spoilt' WHERE id IN ($ids)");
			}
			$m->target_change(q{INSERT INTO {t} (id, v, n) VALUES (-5, 'extra', 1), (99999999, 'extra', 1)});
			$m->target_change(q{DELETE FROM {t} WHERE n = 500});
			$m->refresh('t');
			my ($ret) = $m->compare('t');
			is($ret, 1, 'the target was spoilt');
		};
		$spoil->();
		$m->sql(q{SELECT crate_sync.resync('t', 'upsert')});
		ok($m->wait_sync, 'resync upsert');
		is($m->target_count('t'), $count + 2, 'upsert removes nothing');
		is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'spoilt'}), 0, 'and mends what is there');
		$m->sql(q{SELECT crate_sync.resync('t')});
		$m->equal('t', 'resync full');
		is($m->target_count('t'), $count, 'full removes what the source does not have');
		$spoil->();
		my $w2 = writer($m);
		$m->sql(q{SELECT crate_sync.resync('t', 'full')});
		ok($m->wait_sync, 'resync full while changes go on');
		stop_writer($m, $w2);
		$m->equal('t', 'resync full while changes go on');
		$spoil->();
		$w2 = writer($m);
		$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
		ok($m->wait_sync, 'resync rebuild while changes go on');
		stop_writer($m, $w2);
		$m->equal('t', 'resync rebuild while changes go on');
		if ($m->is_crate)
		{
			is($m->target_post({ stmt => 'SELECT count(*) FROM information_schema.tables WHERE table_schema = ?',
						args => [ $m->{schema} ] })->{rows}[0][0], 1, 'no second table is left');
		}
		$m->sql(q{UPDATE t SET v = 'after the rebuild' WHERE n BETWEEN 1000 AND 1100});
		$m->equal('t', 'changes after a rebuild');

		# a rebuild that is interrupted
		$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
		sleep 0.1;
		$m->kill_worker;
		$m->equal('t', 'rebuild interrupted');

		# some rows only
		$m->target_change(q{UPDATE {t} SET v = 'spoilt' WHERE n IN (2001, 2002, 3001)});
		$m->sql(q{SELECT crate_sync.resync('t', 'upsert', 'n BETWEEN 2000 AND 2999')});
		ok($m->wait_sync, 'resync of some rows');
		is($m->target_value(q{SELECT count(*) FROM {t} WHERE v = 'spoilt'}), $m->sql('SELECT count(*) FROM t WHERE n = 3001'), 'only those');
		$m->sql(q{SELECT crate_sync.resync()});
		$m->equal('t', 'resync of all tables');

		# cancelled
		$m->standin->fault({ match => 'INSERT INTO "' . $m->{schema}, delay_before => 0.3, times => -1 }) if $m->standin;
		$m->sql(q{SELECT crate_sync.resync('t', 'upsert')});
		$m->sql(q{SELECT crate_sync.cancel('t')});
		$m->standin->fault() if $m->standin;
		ok($m->poll('SELECT count(*) = 0 FROM crate_sync.progress'), 'cancel ends it');
		# whether it was in the middle or not: changes still arrive, and another resync makes it good
		$m->sql(q{UPDATE t SET v = 'after cancel' WHERE n < 50});
		ok($m->poll(q{SELECT queued_keys = 0 FROM crate_sync.tables WHERE relname = 't'}), 'changes after a cancel');
		$m->sql(q{SELECT crate_sync.resync('t')});
		$m->equal('t', 'a resync after a cancel');
		my ($ret, $out, $err) = $m->try_sql(q{SELECT crate_sync.resync('t', 'sideways')});
		like($err, qr/ERROR.*sideways/, 'an unknown mode is an error');

		# --- shapes of tables
		$m->sql(<<'EOQ');
CREATE TABLE f (id int PRIMARY KEY, v text, gone bool, secret text);
INSERT INTO f SELECT i, 'v' || i, i % 10 = 0, 's' FROM generate_series(1, 1000) i;
CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late SELECT generate_series(1, 100);
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE wide (id int PRIMARY KEY, v text);
INSERT INTO wide SELECT i, repeat(md5(i::text), 900) FROM generate_series(1, 300) i;
SELECT crate_sync.add_table('f', columns => '{id,v,gone}', row_filter => 'id <= 500', soft_delete_column => 'gone');
SELECT crate_sync.add_table('late', copy_data => false);
SELECT crate_sync.add_table('empty');
SELECT crate_sync.add_table('wide');
EOQ
		ok($m->wait_sync, 'tables of other shapes');
		is($m->target_count('f'), 450, 'row_filter and soft_delete_column');
		is($m->target_count('late'), 0, 'copy_data => false');
		is($m->target_count('empty'), 0, 'an empty table');
		$m->equal('wide', 'wide rows');
		$m->sql(q{UPDATE f SET gone = true WHERE id = 1; UPDATE f SET gone = false WHERE id = 10; UPDATE f SET id = 6000 WHERE id = 2; UPDATE f SET id = 499 WHERE id = 499; INSERT INTO late VALUES (101);});
		$m->wait_sync;
		is($m->target_count('f'), 449, 'a row marked, one no longer marked, one that left the filter');
		is($m->target_value('SELECT count(*) FROM {f} WHERE id IN (1, 2, 6000)'), 0, 'the right ones');
		is($m->target_count('late'), 1, 'only what was changed since');
		ok(!eval { $m->target_rows('SELECT secret FROM {f}'); 1 }, 'a column that was left out is not there');
		$m->sql(q{TRUNCATE f; INSERT INTO f VALUES (3, 'x', false, 's')});
		$m->wait_sync;
		is($m->target_count('f'), 1, 'TRUNCATE with a filter');
	});

done_testing();
