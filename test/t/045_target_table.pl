# A target table that was dropped, exchanged or altered there by hand, with no
# write at the source: it is noticed, and made whole again.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('targettable', conf => "crate_sync.max_retry_interval = 300ms\n");

# when each table was loaded last
sub loads
{
	my ($m) = @_;
	return $m->sql(q{SELECT string_agg(relname || ' ' || last_load_time::text, ', ' ORDER BY relname) FROM crate_sync.tables});
}

# true once a load has ended since
sub loaded_anew
{
	my ($m, $table, $since, $name) = @_;
	return ok($m->poll(qq{SELECT last_load_time > '$since' AND state = 'ready' FROM crate_sync.tables WHERE relname = '$table'}, 't', 60), $name);
}

sub now { return $_[0]->sql('SELECT clock_timestamp()') }

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my ($key, $text) = $m->is_crate ? ('INTEGER PRIMARY KEY', 'TEXT') : ('INTEGER NOT NULL PRIMARY KEY', 'TEXT');

	# another table takes the place of the mirrored one
	my $exchange = sub
	{
		my ($table) = @_;
		my $other = $m->is_crate ? "\"$m->{schema}\".\"other\"" : 'other';
		$m->target_change("CREATE TABLE $other (id $key, v $text)");
		$m->target_change("INSERT INTO $other VALUES (2, 'other'), (-5, 'other')");
		if ($m->is_crate)
		{
			$m->target_change("ALTER CLUSTER SWAP TABLE $other TO {$table} WITH (drop_source = true)");
		}
		else
		{
			$m->target_change("DROP TABLE {$table}");
			$m->target_change("ALTER TABLE $other RENAME TO {$table}");
		}
	};

	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'row' FROM generate_series(1, 100) i;
		CREATE TABLE e (id int PRIMARY KEY, v text);
		CREATE TABLE still (id int PRIMARY KEY, v text); INSERT INTO still VALUES (1, 'still')});
	$m->add('t', 'e', 'still');
	$m->equal(['t', 'e', 'still'], 'before');
	my $still = $m->sql(q{SELECT last_load_time FROM crate_sync.tables WHERE relname = 'still'});

	# --- dropped
	my $t = now($m);
	$m->target_change('DROP TABLE {t}');
	$m->target_change('DROP TABLE {e}');
	loaded_anew($m, 't', $t, 'a table that was dropped is made and loaded');
	$m->equal('t', 'dropped');
	ok($m->poll(q{SELECT n_tables_not_ok = 0 FROM crate_sync.status}), 'all is well');
	is(eval { $m->target_count('e') }, 0, 'an empty one is made, too');

	# --- dropped, and made again as it was
	my $ddl = $m->sql(q{SELECT crate_sync.get_target_ddl('t')});
	$t = now($m);
	$m->target_change('DROP TABLE {t}');
	$m->target_change($ddl);
	loaded_anew($m, 't', $t, 'one that was made again by hand is loaded');
	$m->equal('t', 'made again');

	# --- exchanged
	$t = now($m);
	$exchange->('t');
	loaded_anew($m, 't', $t, 'a table that another one took the place of is resynced');
	$m->equal('t', 'exchanged');
	like(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/full resync of $m->{schema}\.t begins: another table has taken the place/, 'and the log says why');

	# --- while no worker looks
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$exchange->('t');
	$t = now($m);
	$m->sql('SELECT crate_sync.start()');
	loaded_anew($m, 't', $t, 'exchanged while the worker was stopped: resynced');
	$m->equal('t', 'exchanged while stopped');

	# --- a column
	$t = now($m);
	$m->target_change('ALTER TABLE {t} DROP COLUMN v');
	loaded_anew($m, 't', $t, 'a column that was dropped comes back');
	$m->equal('t', 'column dropped');

	# --- a rebuild is our own doing, and another's column nobody's business
	$m->sql(q{SELECT crate_sync.resync('t', 'rebuild')});
	$m->equal('t', 'rebuilt');
	my $before = loads($m);
	$m->target_change('ALTER TABLE {t} ADD COLUMN theirs INTEGER');
	my $beat = 'SELECT beat_acked FROM crate_sync.worker_state';
	my $n = $m->sql($beat);
	ok($m->poll("SELECT beat_acked > $n + 2 FROM crate_sync.worker_state", "t", 60), "some beats later");
	is(loads($m), $before, 'nothing is loaded for a column that is not ours');
	$m->sql(q{UPDATE t SET v = 'again' WHERE id = 7});
	ok($m->wait_sync, 'in sync');
	is($m->target_value('SELECT v FROM {t} WHERE id = 7'), 'again', 'changes go on');
	is($m->sql(q{SELECT last_load_time FROM crate_sync.tables WHERE relname = 'still'}), $still,
		'a table that nobody touched is not loaded');
});
$node->stop;
done_testing();
