# Random changes on five tables by several sessions, the worker killed in between: at the
# end both sides are equal.  CRATE_SYNC_SEED repeats the choices, CRATE_SYNC_SECONDS says how long.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $seed = $ENV{CRATE_SYNC_SEED} || time() % 100000 | 0;
my $seconds = $ENV{CRATE_SYNC_SECONDS} || 20;
srand($seed);
diag("CRATE_SYNC_SEED=$seed");

my $node = CrateSync::server('random', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 200ms
crate_sync.request_timeout = 5s
EOC

# an integer below n
sub r { return int(rand($_[0])) }

# one random transaction
sub transaction
{
	my ($id) = @_;
	my @stmts;
	my $n = 1 + r(4);
	foreach (1 .. $n)
	{
		my $k = 1 + r(400);
		my $x = r(1000000);
		my $what = r(20);
		push @stmts,
		    $what == 0 ? "DELETE FROM customers WHERE id = $k"
		  : $what == 1 ? "INSERT INTO customers VALUES ($k, 'c$x', now()) ON CONFLICT (id) DO UPDATE SET name = excluded.name"
		  : $what == 2 ? "UPDATE customers SET id = " . (1 + r(400)) . " WHERE id = $k AND NOT EXISTS (SELECT FROM customers WHERE id = " . (1 + r(400)) . ")"
		  : $what == 3 ? "INSERT INTO orders SELECT $k, id, $x / 7.0, now() FROM customers ORDER BY id OFFSET " . r(50) . " LIMIT 1 ON CONFLICT (id) DO UPDATE SET total = excluded.total"
		  : $what == 4 ? "DELETE FROM orders WHERE id BETWEEN $k AND " . ($k + r(5))
		  : $what == 5 ? "UPDATE orders SET total = total + 1 WHERE id % 37 = " . r(37)
		  : $what == 6 ? "INSERT INTO items SELECT $k, l, 'item $x' FROM generate_series(1, " . (1 + r(5)) . ") l ON CONFLICT (order_id, line) DO UPDATE SET what = excluded.what"
		  : $what == 7 ? "DELETE FROM items WHERE order_id = $k"
		  : $what == 8 ? "UPDATE items SET line = line + 100 WHERE order_id = $k AND line < 100 AND NOT EXISTS (SELECT FROM items i WHERE i.order_id = $k AND i.line > 100)"
		  : $what == 9 ? "INSERT INTO parts VALUES ($k, " . r(300) . ", 'p$x') ON CONFLICT (id, k) DO UPDATE SET v = excluded.v"
		  : $what == 10 ? "UPDATE parts SET k = " . r(300) . " WHERE id = $k AND NOT EXISTS (SELECT FROM parts p WHERE p.id = $k AND p.k <> parts.k)"
		  : $what == 11 ? "DELETE FROM parts_low WHERE id = $k"
		  : $what == 12 ? "INSERT INTO names VALUES ('n$k', $x) ON CONFLICT (name) DO UPDATE SET n = excluded.n"
		  : $what == 13 ? "UPDATE names SET name = name || '''' WHERE name = 'n$k'"
		  : $what == 14 ? "DELETE FROM names WHERE name LIKE 'n$k%'"
		  : $what == 15 && r(15) == 0 ? 'TRUNCATE ' . ('names', 'items', 'parts_low', 'parts')[ r(4) ]
		  : $what == 16 ? "INSERT INTO customers SELECT i, 'bulk $x', now() FROM generate_series(" . (1000 + r(1000)) . ", 2000) i ON CONFLICT (id) DO UPDATE SET name = excluded.name"
		  : $what == 17 ? "DELETE FROM customers WHERE id BETWEEN " . (1000 + r(500)) . " AND " . (1500 + r(500))
		  : $what == 18 ? "SAVEPOINT s; UPDATE names SET n = n + 1 WHERE name = 'n$k'; ROLLBACK TO s; UPDATE customers SET name = 'sp $x' WHERE id = $k"
		  : "UPDATE customers SET name = 'u$x', at = now() WHERE id = $k";
	}
	my $end = r(10) == 0 ? 'ROLLBACK' : 'COMMIT';
	my $pre = r(6) == 0 ? 'SET synchronous_commit = off; ' : '';
	if (r(25) == 0)
	{
		my $gid = "g$id";
		return "BEGIN; " . join('; ', @stmts) . "; PREPARE TRANSACTION '$gid'; SELECT pg_sleep(0.02); " . (r(2) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$gid';\n";
	}
	return "${pre}BEGIN; " . join('; ', @stmts) . "; " . (r(8) == 0 ? 'SELECT pg_sleep(0.05); ' : '') . "$end; RESET synchronous_commit;\n";
}

CrateSync::on_targets(
	$node,
	sub {
		my ($m) = @_;
		my @all = qw(customers orders items parts names);
		$m->sql(<<'EOQ');
CREATE TABLE customers (id int PRIMARY KEY, name text, at timestamptz);
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers ON DELETE CASCADE ON UPDATE CASCADE, total double precision, at timestamptz);
CREATE TABLE items (order_id int, line int, what text, PRIMARY KEY (order_id, line));
CREATE TABLE parts (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000);
CREATE TABLE names (name text PRIMARY KEY, n bigint);
INSERT INTO customers SELECT i, 'first', now() FROM generate_series(1, 300) i;
INSERT INTO orders SELECT i, i, i, now() FROM generate_series(1, 200) i;
EOQ
		$m->add(@all);
		my $t0 = time();
		my $kills = 0;
		my $round = 0;
		while (time() - $t0 < $seconds)
		{
			# scripts long enough for a while; errors (deadlocks, and a restart) are part of it
			my @w;
			foreach my $w (1 .. 3)
			{
				my $n = 250;
				push @w, $m->background("SET lock_timeout = '2s';\n" . join('', map { transaction("$round.$w.$_") } 1 .. $n));
			}
			sleep 0.5 + rand(1.5);
			if ($round % 2 == 0)
			{
				$kills++ if $m->kill_worker(r(3) == 0 ? 'TERM' : 'KILL');
			}
			elsif (r(3) == 0)
			{
				$m->sql(q{SELECT crate_sync.resync('customers', 'full')});
			}
			$_->done foreach @w;
			$m->sql(q{SELECT gid FROM pg_prepared_xacts}) and
			  $m->sql("ROLLBACK PREPARED '$_'") foreach split /\n/, $m->sql(q{SELECT gid FROM pg_prepared_xacts WHERE database = current_database()});
			$round++;
		}
		cmp_ok($kills, '>', 0, "the worker was killed $kills times in $round rounds");
		$m->wait_worker;
		$m->equal(\@all, "seed $seed");
		foreach my $t ('customers', 'orders')
		{
			cmp_ok($m->target_count($t), '>', 0, "$t is not empty");
		}
		is($m->status('n_failed_rows'), 0, 'no row was given up');
		# and it goes on
		$m->sql(q{UPDATE customers SET name = 'at last'});
		$m->equal(\@all, 'after one more change');
	});

done_testing();
