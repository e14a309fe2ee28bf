# Many tables: what one of them costs does not grow with how many there are.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $node = CrateSync::server('many');

# --- what is written down of each table while all are loaded
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $n = 60;

	# statistics come late, a trigger counts at once
	$m->sql(<<'EOQ');
CREATE TABLE public.written (mirror_id int);
CREATE FUNCTION public.count_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.written VALUES (new.mirror_id); RETURN new; END $$;
CREATE TRIGGER count_it AFTER UPDATE ON crate_sync.mirror_state FOR EACH ROW EXECUTE FUNCTION public.count_it();
EOQ
	$m->sql(qq{DO \$\$ BEGIN FOR i IN 1 .. $n LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, v text); INSERT INTO t%s VALUES (1, ''a'')', i, i); END LOOP; END \$\$;
		SELECT crate_sync.add_all_tables('{$m->{schema}}')});
	$m->equal([ map { "t$_" } 1, $n ], 'all are loaded');
	is($m->sql(q{SELECT count(*) FROM crate_sync.tables WHERE state = 'ready' AND last_load_time IS NOT NULL}), $n, 'and it was written down of each');
	cmp_ok($m->sql('SELECT max(c) FROM (SELECT count(*) AS c FROM public.written GROUP BY mirror_id) AS x'), '<=', 20, 'each was written down some times only');
}, only => 'sqlite', why => 'it is what the worker writes down, which is the same for each');

$node->stop;
done_testing();
