# history: what each table has pushed, by minute and hour; NOTIFY crate_sync at each change of state.
use strict;
use warnings;
use CrateSync;
use JSON::PP ();
use Test::More;

my $node = CrateSync::server('history', conf => "crate_sync.max_retry_interval = 300ms\ncrate_sync.interval = 200ms\n");

# notifications that a session hears until a condition holds; in order, decoded
sub hear
{
	my ($m, $code, $until) = @_;
	my ($in, $out) = ('', '');
	my $h = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr($m->db) ], '<', \$in, '>', \$out, '2>', \my $err);
	my $ask = sub { $in .= "LISTEN crate_sync;\nSELECT 'turn ' || clock_timestamp();\n"; my $n = () = $out =~ /^turn /mg; CrateSync::wait_until('psql answers', sub { $h->pump_nb; my $k = () = $out =~ /^turn /mg; return $k > $n }) };
	$ask->();
	$code->();
	CrateSync::wait_until('it is heard', sub { $ask->(); return $until->($out) });
	$in .= "\\q\n";
	$h->finish;
	return map { JSON::PP->new->decode($_) } $out =~ /with payload "(\{.*\})" received/g;
}

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY)});
	$m->add('a', 'b');
	ok($m->wait_sync, 'in sync');
	$m->sql(q{INSERT INTO a SELECT i, 'v' FROM generate_series(1, 500) i; INSERT INTO b VALUES (1)});
	$m->wait_sync;
	$m->sql('DELETE FROM a WHERE id <= 20');
	$m->wait_sync;

	sleep 2;					# it looks once a second
	# a stopped worker writes down the minute that it is in
	my @said = hear($m, sub { $m->sql('SELECT crate_sync.stop()') }, sub { $_[0] =~ /"state" : "stopped"/ });
	is($said[-1]{state}, 'stopped', 'a change of state is told');
	is($said[-1]{was}, 'ok', 'with the state before');
	is($said[-1]{ok} ? 1 : 0, 0, 'that this is not well');
	is($said[-1]{hint}, 'SELECT crate_sync.start();', 'what to do');
	is($said[-1]{database}, $m->db, 'and where');
	ok($m->poll('SELECT pid IS NULL FROM crate_sync.status'), 'the worker has gone');
	is($m->sql(q{SELECT relname, sum(n_tup_upserted), sum(n_tup_deleted) FROM crate_sync.history GROUP BY relname ORDER BY relname}),
		"a|500|20\nb|1|0", 'what was pushed is in the history');
	is($m->sql(q{SELECT bool_and(span = '1 min' AND date_trunc('minute', time) = time AND requests > 0 AND bytes_sent > 0) FROM crate_sync.history}), 't', 'by the minute');
	my $rows = $m->sql('SELECT count(*) FROM crate_sync.history');

	# nothing is written where nothing happens; only what was added counts
	@said = hear($m, sub { $m->sql('SELECT crate_sync.start()') }, sub { $_[0] =~ /"state" : "ok"/ });
	is(join(' ', map { $_->{state} } @said), 'ok', 'that it begins is not told, that it is well is');
	$m->sql('INSERT INTO b VALUES (2), (3)');
	$m->wait_sync;
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	is($m->sql(q{SELECT relname, sum(n_tup_upserted), sum(n_tup_deleted) FROM crate_sync.history GROUP BY relname ORDER BY relname}),
		"a|500|20\nb|3|0", 'what is added is added');
	is($m->sql(q{SELECT count(*) FROM crate_sync.history WHERE relname = 'a'}) <= $rows ? 1 : 0, 1, 'an idle table has no new row');

	# minutes become hours, hours go: samples of the past
	$m->sql(q{DELETE FROM crate_sync.history_sample;
		INSERT INTO crate_sync.history_sample SELECT date_trunc('hour', now()) - interval '50 hours' + i * interval '1 min', '1 min', mirror_id, relid, 'old', 'a',
			i * 10, i, 0, i, 0, i, i, i % 60, i * interval '1 s' FROM crate_sync.mirror, generate_series(1, 300) i WHERE target_table = 'a';
		INSERT INTO crate_sync.history_sample SELECT now() - interval '40 days' + i * interval '1 hour', '1 hour', mirror_id, relid, 'older', 'b',
			i * 10, 0, 0, 0, 0, 0, 0, 0, '0' FROM crate_sync.mirror, generate_series(1, 5) i WHERE target_table = 'b';
		INSERT INTO crate_sync.verification (relid, schemaname, relname, end_time, rows_compared, repair, ok) VALUES (0, 'x', 'x', now() - interval '31 days', 1, false, true)});
	my $before = $m->sql(q{SELECT sum(n_tup_upserted) FROM crate_sync.history WHERE relname = 'a'});
	$m->sql('SELECT crate_sync.start()');
	ok($m->poll(q{SELECT count(*) FROM crate_sync.history WHERE span = '1 min' AND schemaname = 'old'}, 0), 'after a day minutes become hours');
	is($m->sql(q{SELECT count(*), sum(n_tup_upserted), max(lag) FROM crate_sync.history WHERE schemaname = 'old'}), "6|$before|00:05:00", 'which say the same');
	ok($m->poll(q{SELECT count(*) FROM crate_sync.history WHERE schemaname = 'older'}, 0), 'what is too old goes');
	is($m->sql(q{SELECT n_tup_upserted, span FROM crate_sync.history_sample WHERE schemaname = 'older'}), '50|00:00:00', 'but for the last sums');
	is($m->sql('SELECT count(*) FROM crate_sync.verifications'), 0, 'so do verifications');

	# a table that cannot be written to stops nobody
	my $lock = $m->background('BEGIN; LOCK TABLE crate_sync.history_sample; SELECT pg_sleep(3); COMMIT');
	$m->poll(q{SELECT count(*) > 0 FROM pg_locks WHERE relation = 'crate_sync.history_sample'::regclass AND mode = 'AccessExclusiveLock'});
	$m->sql('UPDATE a SET v = $$w$$');
	ok($m->wait_sync, 'a locked history holds nothing up');
	$lock->done;
	is($m->sql('SELECT ok FROM crate_sync.status'), 't', 'and is no trouble');
});

$node->append_conf('postgresql.conf', 'crate_sync.history_retention = 0');
$node->reload;
is($node->safe_psql('postgres', q{LOAD 'crate_sync'; SHOW crate_sync.history_retention}), '0', 'no history, if it is not wanted');

$node->stop;
done_testing();
