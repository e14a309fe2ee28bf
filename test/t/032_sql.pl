# Every function of ours, called by anybody with any argument in any context: an answer or an error that
# has a proper SQLSTATE, and the server goes on.
use strict;
use warnings;
use CrateSync;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = CrateSync::server('sql', conf => <<'EOC');
crate_sync.max_retry_interval = 300ms
crate_sync.interval = 100ms
crate_sync.debug_points = on
log_min_messages = warning
EOC
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

# a script in a session that goes on after errors; its errors, each as "SQLSTATE: message"
sub errors_of
{
	my ($m, $role, $script) = @_;
	my ($out, $err) = ('', '');
	$node->psql($m->db, "\\set VERBOSITY verbose\nSET statement_timeout = '5s';\nSET client_min_messages = error;\n$script",
		stdout => \$out, stderr => \$err, on_error_stop => 0, extra_params => [ '-U', $role ]);
	return ($err, $err =~ /(?:ERROR|FATAL|PANIC):  (.*\n(?:DETAIL.*\n|HINT.*\n|CONTEXT.*\n|LOCATION.*\n)*)/g);
}

# none of them may be internal, and the session may not be lost
sub fine
{
	my ($m, $role, $script, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($err, @errors) = errors_of($m, $role, $script);
	my @bad = grep { /^XX|^(?![0-9A-Z]{5}:)/ } @errors;
	my $lost = $err =~ /server closed the connection|connection to server was lost/;
	my $ok = ok(!@bad && !$lost, "$name: " . @errors . ' errors, none of them internal');
	diag(join '', @bad[ 0 .. ($#bad < 9 ? $#bad : 9) ]) if @bad;
	diag($err =~ /((?:.*\n){0,3}.*server closed.*)/) if $lost;
	return $ok;
}

# numbers that are the same in each run
my $seed = 7;
sub any
{
	$seed = ($seed * 1103515245 + 12345) % 2147483648;
	return $_[ ($seed >> 8) % @_ ];
}

my %values = (
	'regclass' => [ map({"'$_'"} '"Odd ""Name"', qw(t m keyless v mv s t_pkey p p1 p1_1 p_pkey f inh inh_child added_to pg_class pg_toast.pg_toast_1255
			pg_authid information_schema.tables crate_sync.mirror crate_sync.status crate_sync.queue_0 crate_sync.queue_generation hers)),
		'NULL', '0', '1', '4294967295', q{'no_such_table'}, ':dropped', ':temp', ':type', q{'-'}, q{''} ],
	'text' => [ 'NULL', q{''}, q{'x'}, q{' '}, q{'"'}, q{'''; --'}, q{'full'}, q{'rebuild'}, q{'upsert'}, q{'id > 1'}, q{'name'}, q{'table'},
		q{E'\x01\x7f\n'}, q{repeat('x', 100000)}, q{repeat('(', 20000)}, q{'a.b.c'}, q{'doc.t'}, q{'SELECT 1'}, q{'SELECT * FROM t'},
		q{'SELECT 1; DROP TABLE t'}, q{'SELECT crate_sync.status'}, q{'INSERT INTO t VALUES (99)'}, q{'DO $$ BEGIN END $$'},
		q{'SELECT NULL::record'}, q{'SELECT pg_sleep(0.01)'}, q{'%s%n'}, q{U&'\FFFD\+01F600'} ],
	'name' => [ 'NULL', q{''}, q{'id'}, q{'v'}, q{'gone'}, q{'no_such'}, q{'ctid'}, q{repeat('n', 70)::name} ],
	'name[]' => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{id}'}, q{'{id,v}'}, q{'{{id,v},{v,id}}'}, q{'[5:6]={id,v}'}, q{'{id,id}'}, q{'{public}'}, q{'{no_such}'},
		q{'{pg_catalog,crate_sync}'}, q{array_fill('id'::name, ARRAY[2000])} ],
	'jsonb' => [ 'NULL', q{'{}'}, q{'[]'}, '\'1\'', q{'null'}, q{'"x"'}, q{'[1,2,3]'}, q{'{"types": {"v": "TXT"}}'}, q{'{"types": null}'}, q{'{"rename": [[]]}'},
		q{'{"shards": 1e300}'}, q{'{"replicas": {}}'}, q{'{"partitioned_by": [["id"]]}'}, q{(repeat('{"rename":', 300) || '1' || repeat('}', 300))::jsonb},
		q{'{"rename": {"v": "\u0001"}}'}, q{'{"": ""}'} ],
	'boolean' => [ 'NULL', 'true', 'false' ],
	'integer' => [ 'NULL', '0', '1', q{'-1'}, '2147483647', q{'-2147483648'} ],
	'bigint' => [ 'NULL', '0', '1', q{'-1'}, '9223372036854775807', q{'-9223372036854775808'} ],
	'text[]' => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{id}'}, q{'{a.b,"x y",""}'}, q{'{{id,v},{v,id}}'}, q{array_fill('x'::text, ARRAY[2000])} ],
	'timestamp with time zone' => [ 'NULL', 'now()', q{'epoch'}, q{'infinity'}, q{'-infinity'}, q{'4713-01-01 BC'}, q{'294276-12-31'} ],
	'timestamp with time zone[]' => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{epoch,infinity}'}, q{'{{epoch,epoch}}'} ],
	'double precision[]' => [ 'NULL', q{'{}'}, q{'{NULL}'}, q{'{1,2}'}, q{'{NaN,Infinity,-1e308}'}, q{'{{1,2}}'} ],
	'interval' => [ 'NULL', q{'0'}, q{'-1s'}, q{'1us'}, q{'20ms'}, q{'170000000 years -3000000 days'}, q{'-170000000 years'} ]);
push @{ $values{interval} }, q{'infinity'}, q{'-infinity'} if $version >= 170000;

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	$m->sql(<<"EOQ");
DO \$\$ BEGIN CREATE ROLE anybody LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END \$\$;
CREATE TABLE t (id int PRIMARY KEY, v text, gone boolean);
CREATE TABLE m (id int PRIMARY KEY, v text);
CREATE TABLE keyless (a int);
CREATE VIEW v AS SELECT * FROM t;
CREATE MATERIALIZED VIEW mv AS SELECT * FROM t;
CREATE SEQUENCE s;
CREATE TYPE comp AS (a int, b text);
CREATE TABLE p (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1, 2, 3) PARTITION BY LIST (k);
CREATE TABLE p1_1 PARTITION OF p1 FOR VALUES IN (1);
CREATE TABLE added_to (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE added_to_1 PARTITION OF added_to DEFAULT;
CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing;
CREATE FOREIGN TABLE f (id int) SERVER nowhere;
CREATE TABLE "Odd ""Name" ("i'd" int PRIMARY KEY);
CREATE TABLE inh (id int PRIMARY KEY); CREATE TABLE inh_child () INHERITS (inh);
GRANT ALL ON SCHEMA $s TO anybody;
CREATE TABLE hers (id text PRIMARY KEY, v int); ALTER TABLE hers OWNER TO anybody;
CREATE TABLE hers_too (id text PRIMARY KEY, v int); ALTER TABLE hers_too OWNER TO anybody;
GRANT USAGE ON SCHEMA crate_sync TO anybody;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crate_sync TO anybody;
GRANT SELECT ON ALL TABLES IN SCHEMA crate_sync TO anybody; GRANT SELECT ON t TO anybody;
INSERT INTO t SELECT i, i FROM generate_series(1, 50) i; INSERT INTO m SELECT i, i FROM generate_series(1, 50) i;
INSERT INTO added_to SELECT i, i FROM generate_series(1, 50) i; INSERT INTO hers_too SELECT i, i FROM generate_series(1, 50) i;
EOQ
	$m->add('m', 'added_to', 'hers_too');
	$m->equal([ 'm', 'added_to', 'hers_too' ], 'tables that are mirrored');

	# what there is to be called: arguments' types, and whether it is a trigger's
	my @functions = map { [ split /\|/, $_, -1 ] } split /\n/, $m->sql(<<'EOQ');
SELECT p.proname, oidvectortypes(p.proargtypes), p.prorettype::regtype, p.proretset, array_to_string(p.proargnames, ',') FROM pg_proc p
WHERE p.pronamespace = 'crate_sync'::regnamespace ORDER BY 1, 2
EOQ
	my @ours = grep { $_->[2] !~ /trigger/ } @functions;
	cmp_ok(@ours, '>', 20, 'functions to be called: ' . @ours);

	# for each function: each value of each argument, the others good, NULL or left out; then all at random
	my @calls;
	my %good = ('regclass' => [ q{'m'}, q{'t'}, q{'hers'}, q{'hers_too'}, q{'added_to'} ], 'interval' => [q{'20ms'}], 'boolean' => ['false'],
		'mode' => [ q{'full'}, q{'upsert'}, q{'rebuild'} ], 'query' => [ q{'SELECT 1'}, q{'SELECT count(*) FROM t'} ], 'statement' => [q{'SELECT 1'}],
		'iterations' => ['1'], 'warmup' => ['0'], 'last' => ['3'], 'width' => ['40'], 'failed_id' => [ 'NULL', '1' ], 'schema_names' => [qq{'{$s}'}]);
	foreach my $f (@ours)
	{
		my ($name, $types, undef, undef, $names) = @$f;
		my @types = split /, /, $types;
		my @names = split /,/, $names;
		die "no values of type $_" foreach grep { !$values{$_} } @types;
		my $good = sub { any(@{ $good{ $names[ $_[0] ] } || $good{ $types[ $_[0] ] } || ['NULL'] }) };
		my $call = sub {
			my @a = @_;
			push @calls, "crate_sync.$name(" . join(', ', map { "$a[$_]::$types[$_]" } 0 .. $#a) . ')';
		};
		$call->(map { 'NULL' } @types);
		foreach my $i (0 .. $#types)
		{
			foreach my $value (@{ $values{ $types[$i] } })
			{
				$call->(map { $_ == $i ? $value : $good->($_) } 0 .. $#types);
			}
		}
		for (1 .. (@types > 1 ? 60 : 0))
		{
			$call->(map { any(0, 0, 1) ? any(@{ $values{ $types[$_] } }) : $good->($_) } 0 .. $#types);
		}
	}
	note(scalar(@calls) . ' calls');

	# a relation that is no more, one of this session alone, and a row type
	my $begin = <<'EOQ';
CREATE TEMP TABLE only_here (id int PRIMARY KEY); CREATE TEMP TABLE goes (id int PRIMARY KEY);
SELECT 'goes'::regclass::oid AS dropped, 'only_here'::regclass::oid AS temp, 'comp'::regclass::oid AS type \gset
DROP TABLE goes;
EOQ
	my %context = (
		'in the select list' => sub { "BEGIN; SELECT $_[0]; ROLLBACK;" },
		'in FROM' => sub { "BEGIN; SELECT * FROM $_[0] AS x; ROLLBACK;" },
		'below a LIMIT' => sub { "BEGIN; SELECT * FROM (SELECT $_[0] FROM generate_series(1, 3)) x LIMIT 1; ROLLBACK;" },
		'in a join, again and again' => sub { "BEGIN; SELECT count(*) FROM generate_series(1, 2) i, LATERAL (SELECT $_[0], i OFFSET 0) x; ROLLBACK;" },
		'in a transaction that only reads' => sub { "BEGIN READ ONLY; SELECT $_[0]; ROLLBACK;" },
		'SERIALIZABLE' => sub { "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM t; SELECT $_[0]; ROLLBACK;" },
		'in an exception block' => sub {
			"BEGIN; DO \$do\$ BEGIN BEGIN PERFORM $_[0]; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; PERFORM 1; END \$do\$; ROLLBACK;";
		},
		'by a cursor that is left open' => sub { "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT $_[0]; FETCH 1 FROM c; CLOSE c; ROLLBACK;" },
		'as a default and in a condition' => sub { "BEGIN; SELECT count(*) FROM t WHERE ($_[0]) IS NOT NULL AND id < 3; ROLLBACK;" });
	my @contexts = sort keys %context;
	foreach my $role ('postgres', 'anybody')
	{
		foreach my $i (0 .. $#contexts)
		{
			# each call in two of the contexts; all of them in the first
			my @some = $i == 0 ? @calls : @calls[ grep { ($_ + $i) % 4 == 0 } 0 .. $#calls ];
			my $script = $begin;
			foreach my $call (@some)
			{
				my $sql = $context{ $contexts[$i] }->($call);
				# psql does not look into dollar quotes
				next if $sql =~ /\$do\$.*:(dropped|temp|type)/;
				$script .= "$sql\n";
			}
			fine($m, $role, $script, "$contexts[$i], by $role");
		}
	}
	# and where what was done stays
	foreach my $role ('postgres', 'anybody')
	{
		fine($m, $role, $begin . join('', map { 'SELECT ' . any(@calls) . ";\n" } 1 .. 300), "committed, by $role");
	}
	is(CrateSync::log_count($node, qr/was terminated by signal|TRAP:|PANIC:/), 0, 'nothing has crashed');
	$m->sql('SET client_min_messages = error; SELECT crate_sync.remove_table(relid) FROM crate_sync.mirror; SELECT crate_sync.start()');
	$m->wait_worker;

	# --- functions that are for triggers alone
	my @triggers = map { $_->[0] } grep { $_->[2] eq 'trigger' } @functions;
	my @event_triggers = map { $_->[0] } grep { $_->[2] eq 'event_trigger' } @functions;
	fine($m, 'postgres', join('', map { "SELECT crate_sync.$_(); SELECT * FROM crate_sync.$_();\n" } @triggers, @event_triggers), 'called directly');

	my $script = "SET search_path = $s;\n";
	foreach my $f (@triggers)
	{
		foreach my $table ('t', 'v', 'p', 'p1_1', 'f', 'inh', 'only_here')
		{
			foreach my $when ('BEFORE', 'AFTER', 'INSTEAD OF', 'DEFERRED')
			{
				foreach my $event ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'INSERT OR UPDATE OR DELETE')
				{
					foreach my $each ('ROW', 'STATEMENT')
					{
						my $args = any('', q{'id'}, q{'no_such'}, q{'id', 'id'}, q{'v'}, q{''}, join(', ', map { "'c$_'" } 1 .. 40));
						my $what = $when eq 'DEFERRED' ? "CONSTRAINT TRIGGER x AFTER $event ON $table DEFERRABLE INITIALLY DEFERRED"
						  : "TRIGGER x $when $event ON $table" . any('', '', $event =~ / OR |TRUN/ || $when ne 'AFTER' ? '' : $event eq 'INSERT' ? ' REFERENCING NEW TABLE AS n' : ' REFERENCING OLD TABLE AS o');
						$script .= "BEGIN; CREATE TEMP TABLE IF NOT EXISTS only_here (id int PRIMARY KEY, v text); CREATE $what FOR EACH $each EXECUTE FUNCTION crate_sync.$f($args);"
						  . " SAVEPOINT a; INSERT INTO $table (id" . ($table =~ /^p/ ? ', k) VALUES (1001, 1), (1002, 1)' : ') VALUES (1001), (1002)') . "; ROLLBACK TO a;"
						  . " SAVEPOINT b; UPDATE $table SET id = id + 2000; ROLLBACK TO b; SAVEPOINT c; DELETE FROM $table; ROLLBACK TO c;"
						  . ' ' . any("INSERT INTO t VALUES (3000); MERGE INTO t USING (VALUES (3000)) x(i) ON t.id = x.i WHEN MATCHED THEN UPDATE SET v = 1;", "DROP TABLE t CASCADE;", "TRUNCATE $table;", "ALTER TABLE $table DROP COLUMN id CASCADE; DELETE FROM $table;", "PREPARE TRANSACTION 'x'; ROLLBACK PREPARED 'x';")
						  . " COMMIT;\n";
					}
				}
			}
		}
	}
	$m->sql("INSERT INTO p SELECT i, 1, 'x' FROM generate_series(1, 5) i; INSERT INTO inh VALUES (1)");
	# the superuser's script ends as it began
	(my $undone = $script) =~ s/COMMIT;\n/ROLLBACK;\n/g;
	fine($m, 'postgres', $undone, 'as triggers of all kinds');
	$m->sql("ALTER TABLE $_ OWNER TO anybody") foreach qw(t p p1 p1_1 f inh inh_child);
	$m->sql('ALTER VIEW v OWNER TO anybody');
	fine($m, 'anybody', $script, 'as triggers of all kinds, by anybody, for good');
	is(CrateSync::log_count($node, qr/was terminated by signal|TRAP:|PANIC:/), 0, 'nothing has crashed');

	# event triggers are a superuser's to make
	$script = '';
	foreach my $f (@event_triggers)
	{
		foreach my $event ('ddl_command_start', 'ddl_command_end', 'sql_drop', 'table_rewrite', $version >= 170000 ? 'login' : ())
		{
			$script .= "CREATE EVENT TRIGGER x ON $event EXECUTE FUNCTION crate_sync.$f();\nCREATE TABLE e (id int);\nALTER TABLE e ALTER id TYPE bigint;\n"
			  . "ALTER TABLE e ADD c int, DROP c;\nDROP TABLE e;\nDROP TABLE IF EXISTS e;\nCOMMENT ON TABLE keyless IS 'x';\nSELECT 1 AS into_it INTO e;\nDROP TABLE e;\n"
			  . ($event eq 'login' ? "ALTER EVENT TRIGGER x ENABLE ALWAYS;\n\\c\n" : '') . "DROP EVENT TRIGGER x;\n";
		}
	}
	fine($m, 'postgres', $script, 'as event triggers of all kinds');
	is(CrateSync::log_count($node, qr/was terminated by signal|TRAP:|PANIC:/), 0, 'nothing has crashed');
	$m->wait_worker;
}, only => 'sqlite', why => 'what is called is the same for all');

# --- a table is removed while somebody asks for its failed rows
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	foreach my $function ('retry_failed', 'discard_failed')
	{
		$m->sql(q{CREATE TABLE r (id int PRIMARY KEY, v int); INSERT INTO r VALUES (1, 0); SELECT crate_sync.add_table('r', row_filter => '1 / v > 0')});
		ok($m->poll('SELECT count(*) = 1 FROM crate_sync.failed_rows'), 'a failed row');
		my $id = $m->sql('SELECT failed_id FROM crate_sync.failed_rows');
		my $holder = $m->background(q{SELECT pg_advisory_lock(28531, hashtext('failed row found')); SELECT pg_sleep(60);});
		$m->poll(q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted});
		my $asks = $m->background("SELECT crate_sync.$function(failed_id => $id);");
		ok($m->poll(q{SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'held at failed row found'}), "$function has found the table");
		$m->sql(q{SELECT crate_sync.remove_table('r')});
		$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted});
		is($asks->done, '', "$function goes on without an error when the table has been removed");
		$holder->done;
		is($asks->output, "0\n", '... and has done nothing');
		$m->sql('DROP TABLE r');
	}
	is(CrateSync::log_count($node, qr/was terminated by signal|TRAP:|PANIC:/), 0, 'nothing has crashed');
}, only => 'sqlite', why => 'it is about the catalog');

# --- DROP, CREATE and add_table, in one transaction or in three
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	my $anew = sub { "DROP TABLE r; CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r SELECT i, '$_[0]' FROM generate_series(1, 20) i; SELECT crate_sync.add_table('r')" };
	$m->sql(q{CREATE TABLE r (id int PRIMARY KEY, v text); INSERT INTO r SELECT i, 'old' FROM generate_series(1, 50) i});
	$m->add('r');
	$m->equal('r', 'load');
	my ($ret, $out, $err) = $m->try_sql('BEGIN; ' . $anew->('one') . '; COMMIT');
	is($ret, 0, 'in one transaction') or diag $err;
	$m->equal('r', 'in one transaction');
	foreach my $round (1 .. 3)
	{
		# before the worker has seen to it that the row goes, or while it does
		($ret, $out, $err) = $m->try_sql($anew->("three $round"));
		is($ret, 0, "in several transactions, round $round") or diag $err;
		$m->equal('r', "in several transactions, round $round");
	}
	is($m->target_value(q{SELECT count(*) FROM {r} WHERE v = 'three 3'}), 20, 'the rows are those of the last one');
	($ret, $out, $err) = $m->try_sql('BEGIN; ' . $anew->('never') . '; ROLLBACK');
	is($ret, 0, 'rolled back');
	$m->sql(q{UPDATE r SET v = 'still' WHERE id < 5});
	$m->equal('r', 'as if nothing had been');

	# an open transaction does not stop the other tables
	$m->sql('CREATE TABLE other (id int PRIMARY KEY)');
	$m->add('other');
	$m->equal('other', 'another table');
	my $open = $m->background('BEGIN; ' . $anew->('open') . '; SELECT pg_advisory_lock(1); SELECT pg_sleep(60); ROLLBACK;');
	$m->poll(q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'});
	$m->sql('INSERT INTO other SELECT generate_series(1, 100)');
	ok($m->wait_sync('other'), 'while it is open other tables go on');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'});
	$open->done;
	$m->equal([ 'r', 'other' ], 'and after its end');

	# another's table is not to be taken, dropped or not
	$m->sql("DO \$\$ BEGIN CREATE ROLE someone LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END \$\$; GRANT ALL ON SCHEMA $s TO someone; GRANT USAGE ON SCHEMA crate_sync TO someone; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crate_sync TO someone");
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	my $oid = $m->sql(q{SELECT 'r'::regclass::oid});
	$m->sql('DROP TABLE r; SET ROLE someone; CREATE TABLE r (id int PRIMARY KEY, v text)');
	($err) = errors_of($m, 'someone', q{SELECT crate_sync.add_table('r')});
	like($err, qr/42710: +target table \w+\.r is in use\nDETAIL:  A table that has been dropped is mirrored there, and it was not yours\.\nHINT:  Choose another name/, 'by another role than the owner');
	($err) = errors_of($m, 'someone', "SELECT crate_sync.remove_table($oid)");
	like($err, qr/42P01: +relation with OID $oid does not exist/, 'nor removed');
	$m->sql(q{SET client_min_messages = error; SELECT crate_sync.add_table('r')});
	is($m->sql(q{SELECT source_owner::regrole FROM crate_sync.mirror WHERE relid = 'r'::regclass}), 'someone', 'a superuser may');
	$oid = $m->sql(q{SELECT 'r'::regclass::oid});
	$m->sql('DROP TABLE r');
	($err) = errors_of($m, 'someone', "SELECT crate_sync.remove_table($oid)");
	is($err, '', 'whose table it was can remove it');
	is($m->sql('SELECT count(*) FROM crate_sync.mirror'), 1, 'and it is');
	$m->sql(q{CREATE TABLE r (id int PRIMARY KEY, v text); SET client_min_messages = error; SELECT crate_sync.add_table('r'); SELECT crate_sync.start()});
	$m->equal([ 'r', 'other' ], 'with a worker again');

	# it is whose it was last
	$m->sql(q{ALTER TABLE other OWNER TO someone});
	ok($m->poll(q{SELECT source_owner = 'someone'::regrole FROM crate_sync.mirror WHERE relid = 'other'::regclass}), 'a new owner is noticed');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('DROP TABLE other; SET ROLE someone; CREATE TABLE other (id int PRIMARY KEY)');
	is((errors_of($m, 'someone', q{SELECT crate_sync.add_table('other')}))[0], '', 'and may add another in its place');
	$m->sql('SET client_min_messages = error; SELECT crate_sync.start()');
	$m->equal([ 'r', 'other' ], 'which is mirrored');

	# renamed away: it is still there
	$m->sql('ALTER TABLE r RENAME TO r_old; CREATE TABLE r (id int PRIMARY KEY, v text)');
	($err) = errors_of($m, 'postgres', q{SELECT crate_sync.add_table('r')});
	like($err, qr/42710: +target table \w+\.r is in use\nDETAIL:  $s\.r_old is mirrored there\.\nHINT: .*SELECT crate_sync.follow_name\('$s\.r'\);.*argument target/, 'after a RENAME the error names the table and the ways out');
	$m->sql(q{CREATE TABLE r2 (id int PRIMARY KEY, v text)});
	($err) = errors_of($m, 'postgres', "SELECT crate_sync.add_table('r2', '$s.r')");
	like($err, qr/42710: +target table \w+\.r is in use\nDETAIL:  $s\.r_old is mirrored there\.\nHINT: (?!.*follow_name).*argument target/, 'a table of another name is not offered its place');
});

# --- another table has the name now
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	my $swap = 'BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT';
	my $new = q{CREATE TABLE t_new (id int PRIMARY KEY, v text); INSERT INTO t_new SELECT i, 'new' FROM generate_series(10, 40) i};
	my $ours = q{SELECT count(*) FROM pg_trigger WHERE tgfoid = 'crate_sync.capture'::regproc AND tgrelid = '%s'::regclass};
	my $error = sub { return (errors_of($m, @_))[0] };
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'old' FROM generate_series(1, 20) i});
	$m->sql(q{SELECT crate_sync.add_table('t', row_filter => 'id <> 15', options => '{"rename": {"v": "w"}}')});
	is($m->sql('SELECT follow FROM crate_sync.mirror'), 'table', 'a mirror follows its table');
	ok($m->wait_sync, 'load');
	my $id = $m->sql('SELECT mirror_id FROM crate_sync.mirror');
	$m->sql($new);
	$m->sql($swap);
	$m->sql(q{UPDATE t SET v = 'not seen' WHERE id = 11; UPDATE t_old SET v = 'seen' WHERE id = 11});
	is($m->sql(q{SELECT crate_sync.follow_name('t')}), "$s.t is loaded anew from $s.t, which takes the place of $s.t_old", 'follow_name says what it does');
	is($m->sql(q{SELECT mirror_id || ' ' || relid::regclass FROM crate_sync.mirror}), "$id t", 'the mirror is the new table\'s');
	is($m->sql(sprintf $ours, 't') . ' ' . $m->sql(sprintf $ours, 't_old'), '2 0', 'so are the triggers');
	$m->sql(q{INSERT INTO t VALUES (100, 'later'); UPDATE t_old SET v = 'nobody''s'; DELETE FROM t WHERE id = 12});
	ok($m->wait_sync, 'in sync');
	is($m->target_value('SELECT count(*) FROM {t}'), 30, 'its rows are there, and no others');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE w IN ('old', 'seen', 'nobody''s')}), 0, 'none of the former table');
	is($m->status('ok'), 't', 'all is well');

	# the former one dropped, in the same transaction
	$m->sql('DROP TABLE t_old');
	$m->sql($new);
	like($m->sql(q{BEGIN; DROP TABLE t; ALTER TABLE t_new RENAME TO t; SELECT crate_sync.follow_name('t'); COMMIT}), qr/takes the place of a table that was dropped/, 'of a table that was dropped');
	ok($m->wait_sync, 'in sync');
	is($m->target_value('SELECT count(*) FROM {t}'), 30, 'its rows');

	# a partitioned table that the former one becomes a part of
	$m->sql(q{BEGIN; ALTER TABLE t RENAME TO t_1; CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
		ALTER TABLE t ATTACH PARTITION t_1 FOR VALUES FROM (0) TO (50); CREATE TABLE t_2 PARTITION OF t DEFAULT; INSERT INTO t SELECT i, 'second' FROM generate_series(51, 60) i;
		SELECT crate_sync.follow_name('t'); COMMIT});
	ok($m->wait_sync, 'in sync');
	is($m->target_value('SELECT count(*) FROM {t}'), 40, 'rows of both of its partitions');
	$m->sql(q{UPDATE t SET v = 'seen'; TRUNCATE t_2});
	ok($m->wait_sync, 'in sync');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE w = 'seen'}), 30, 'changes in one, TRUNCATE of the other');

	# what does not fit is an error that names it
	my $try = sub {
		my ($t, $def, $expected) = @_;
		my $err = $error->('postgres', "BEGIN; ALTER TABLE $t RENAME TO former; CREATE TABLE $t $def; SELECT crate_sync.follow_name('$t'); ROLLBACK;");
		$expected ? like($err, $expected, "to $t $def") : is($err, '', "to $t $def");
	};
	$try->('t', '(id int, v text)', qr/55000: +the columns by which .* no key of "t"\nDETAIL:  They are: id\./);
	$try->('t', '(id2 int PRIMARY KEY, v text)', qr/55000: +the columns by which/);
	$try->('t', '(id int PRIMARY KEY)');
	$try->('t', '(id int PRIMARY KEY, v jsonb)');
	$m->sql(q{CREATE TABLE c (id int PRIMARY KEY, v text, w text, gone boolean); SELECT crate_sync.add_table('c', columns => '{id,w}', soft_delete_column => 'gone', row_filter => $$v <> 'x'$$)});
	$try->('c', '(id int PRIMARY KEY, v text, gone boolean)', qr/42703: +table "c" has no column "w", which is mirrored/);
	$try->('c', '(id int PRIMARY KEY, w text, gone boolean)', qr/42703: .*"?v"? does not exist/);
	$try->('c', '(id int PRIMARY KEY, v text, w text)', qr/42703: +column "gone" of relation "c" does not exist/);
	$try->('c', '(id int PRIMARY KEY, v text, w text, gone text)', qr/42804: +soft-delete column/);
	$try->('c', '(id int PRIMARY KEY, v text, w text, gone boolean) PARTITION BY RANGE (id)');
	like($error->('postgres', q{SELECT crate_sync.follow_name('t')}), qr/42710: +table "t" is mirrored already/, 'a table that is mirrored');
	like($error->('postgres', q{SELECT crate_sync.follow_name('t_2')}), qr/42704: +no other mirrored table was called "t_2"/, 'a name that was none');
	like($error->('postgres', q{BEGIN; CREATE TABLE x (id int PRIMARY KEY); SELECT crate_sync.add_table('x'); ALTER TABLE x RENAME TO x1; CREATE TABLE x (id int PRIMARY KEY);
		SELECT crate_sync.add_table('x', 'y'); ALTER TABLE x RENAME TO x2; CREATE TABLE x (id int PRIMARY KEY); SELECT crate_sync.follow_name('x'); ROLLBACK;}), qr/42P09: .*HINT:.*keep_table/s, 'a name that two had');

	# who goes on under another name
	$m->sql('ALTER TABLE c RENAME TO c_kept; CREATE TABLE c (id int PRIMARY KEY, v text, w text, gone boolean)');
	is($m->sql(q{SELECT crate_sync.keep_table('c_kept')}), "$s.c_kept goes on to be mirrored as $s.c", 'keep_table says what it does');
	is($m->sql(q{SELECT crate_sync.keep_table('c_kept')}), "$s.c_kept is mirrored as $s.c, by the name that it has", '... or that there is nothing to do');
	is($m->sql(q{SELECT source_schema || '.' || source_name FROM crate_sync.mirror WHERE relid = 'c_kept'::regclass}), "$s.c_kept", 'the name is remembered');
	like($error->('postgres', q{SELECT crate_sync.follow_name('c')}), qr/42704: +no other mirrored table was called/, 'its former name is nobody\'s');
	like($error->('postgres', q{SELECT crate_sync.keep_table('c')}), qr/42704: +table "c" is not mirrored/, 'a table that is not mirrored');

	# whose they are decides
	$m->sql("DO \$\$ BEGIN CREATE ROLE someone LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END \$\$; GRANT ALL ON SCHEMA $s TO someone; GRANT USAGE ON SCHEMA crate_sync TO someone; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA crate_sync TO someone");
	$m->sql('DROP TABLE c; ALTER TABLE c_kept RENAME TO c_2; CREATE TABLE c_kept (id int PRIMARY KEY, v text, w text, gone boolean)');
	like($error->('someone', q{SELECT crate_sync.follow_name('c_kept')}), qr/42501: +must be owner of table c_kept/, 'another\'s new table');
	$m->sql('ALTER TABLE c_kept OWNER TO someone');
	like($error->('someone', q{SELECT crate_sync.follow_name('c_kept')}), qr/42501: +must be owner of table c_2/, 'another\'s former table');
	like($error->('someone', q{SELECT crate_sync.keep_table('c_2')}), qr/42501: +must be owner of table c_2/, '... is not kept either');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	$m->sql('DROP TABLE c_2');
	like($error->('someone', q{SELECT crate_sync.follow_name('c_kept')}), qr/42501: +the table that was called "c_kept" before was not yours/, 'nor when it was dropped');
	$m->sql(q{UPDATE crate_sync.mirror SET source_owner = 'someone'::regrole WHERE source_name = 'c_kept'});
	is($error->('someone', q{SELECT crate_sync.follow_name('c_kept')}), '', 'one\'s own');
	$m->sql('SET client_min_messages = error; SELECT crate_sync.start()');
	ok($m->wait_sync, 'in sync');

	# asked for with the table
	$m->sql(q{CREATE TABLE f (id int PRIMARY KEY)});
	like($error->('postgres', q{SELECT crate_sync.add_table('f', follow => 'me')}), qr/22023: +follow must be 'table' or 'name', not 'me'/, 'what follow can be');
	$m->sql(q{SELECT crate_sync.add_table('f', follow => 'name')});
	is($m->sql(q{SELECT follow FROM crate_sync.mirror WHERE relid = 'f'::regclass}), 'name', 'is remembered');
});

# --- ATTACH PARTITION of what is mirrored by itself
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my $s = $m->{schema};
	my $error = sub { return (errors_of($m, @_))[0] };
	$m->sql("DO \$\$ BEGIN CREATE ROLE someone LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END \$\$; GRANT USAGE ON SCHEMA $s TO someone");
	$m->sql(q{CREATE TABLE p (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
		CREATE TABLE p5 PARTITION OF p FOR VALUES IN (5, 6) PARTITION BY LIST (k);
		CREATE TABLE "P two" (LIKE p INCLUDING ALL); CREATE TABLE plain (LIKE p INCLUDING ALL);
		CREATE TABLE sub (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k); CREATE TABLE sub3 PARTITION OF sub FOR VALUES IN (3); CREATE TABLE sub4 PARTITION OF sub FOR VALUES IN (4);
		CREATE TABLE unmirrored (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k)});
	$m->sql(q{INSERT INTO p VALUES (1, 1); INSERT INTO "P two" VALUES (2, 1); INSERT INTO sub VALUES (3, 1), (4, 1)});
	$m->sql(qq{SELECT crate_sync.add_table('p'); SELECT crate_sync.add_table('"P two"', 'p_two'); SELECT crate_sync.add_table('sub3')});
	ok($m->wait_sync, 'load');

	my $two = qr/55000: +"P two" is mirrored by itself and cannot become a part of "p", which is mirrored as a whole\nHINT:  SELECT crate_sync\.remove_table\('$s\."P two"'\); then attach it/;
	my $attach = q{ALTER TABLE %s ATTACH PARTITION %s FOR VALUES IN (%s)};
	like($error->('postgres', sprintf $attach, 'p', '"P two"', 2), $two, 'a mirrored table to a mirrored one');
	like($error->('postgres', sprintf $attach, "$s.p", qq{$s."P two"}, 2), $two, '... by its full name');
	like($error->('postgres', sprintf $attach, 'IF EXISTS ONLY p', '"P two"', 2), $two, '... IF EXISTS, ONLY');
	like($error->('postgres', sprintf "SET search_path = public, $s; $attach", 'p', '"P two"', 2), $two, '... by another way');
	like($error->('postgres', sprintf $attach, 'p5', '"P two"', 5), qr/55000: +"P two" is mirrored by itself and cannot become a part of "p5"/, '... to a part of one');
	like($error->('postgres', sprintf $attach, 'p', 'sub', '3, 4'), qr/55000: +"sub3" is mirrored by itself and cannot become a part of "p", .*\nHINT:  SELECT crate_sync\.remove_table\('$s\.sub3'\);/, 'a tree of which a part is mirrored by itself');

	# what is not ours to say is PostgreSQL's
	is($error->('postgres', sprintf $attach, 'unmirrored', '"P two"', 2), '', 'a mirrored table to one that is not');
	$m->sql('ALTER TABLE unmirrored DETACH PARTITION "P two"');
	is($error->('postgres', sprintf $attach, 'p', 'plain', 7), '', 'one that is not mirrored');
	like($error->('postgres', sprintf $attach, 'no_such', '"P two"', 2), qr/42P01: +relation "no_such" does not exist/, 'to a table that is not there');
	is($error->('postgres', sprintf $attach, 'IF EXISTS no_such', '"P two"', 2), '', '... IF EXISTS');
	is($error->('postgres', sprintf $attach, 'IF EXISTS no_such.no_such', 'no_such.either', 2), '', '... in no schema');
	like($error->('postgres', sprintf $attach, 'p', 'no_such', 2), qr/42P01: +relation "no_such" does not exist/, 'a table that is not there');
	like($error->('postgres', sprintf $attach, 'p', 'no_such.no_such', 2), qr/3F000|42P01/, '... in no schema');
	like($error->('postgres', sprintf $attach, 'x.y.p', '"P two"', 2), qr/0A000: +cross-database/, '... in another database');
	like($error->('postgres', sprintf $attach, 'plain', '"P two"', 2), qr/ERROR: +(?!55000)/, 'to a table that takes none');
	like($error->('someone', sprintf $attach, 'p', '"P two"', 2), qr/42501: +must be owner of table p/, 'by somebody who may not');
	like($error->('someone', 'ALTER TABLE crate_sync.mirror ATTACH PARTITION x DEFAULT'), qr/42501/, '... nor look there');
	foreach my $other ('ALTER TABLE p ADD COLUMN c int', 'ALTER TABLE p RENAME c TO d', 'ALTER TABLE p DROP COLUMN d', 'ALTER TABLE p DETACH PARTITION plain', 'ALTER TABLE IF EXISTS nowhere ADD c int',
		'CREATE TEMP TABLE tp (a int) PARTITION BY LIST (a); CREATE TEMP TABLE t1 (a int); ALTER TABLE tp ATTACH PARTITION pg_temp.t1 DEFAULT; ALTER TABLE pg_temp.tp DETACH PARTITION t1',
		'ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE pg_default', 'ALTER TABLE p SET SCHEMA ' . $s, 'ALTER INDEX p_pkey RENAME TO p_key', 'ALTER TABLE p OWNER TO CURRENT_USER')
	{
		is($error->('postgres', $other), '', $other);
	}
	# without a lock of ours
	my $holder = $m->background('BEGIN; LOCK "P two" IN ACCESS EXCLUSIVE MODE; SELECT pg_advisory_lock(2); SELECT pg_sleep(60)');
	$m->poll(q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'});
	like($error->('postgres', sprintf "SET lock_timeout = '5s'; $attach", 'p', '"P two"', 2), $two, 'while it is locked');
	$m->sql(q{SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'});
	$holder->done;

	# where the library is missing, others' tables can be altered all the same
	my $libraries = $m->sql(q{SELECT string_agg(DISTINCT probin, ' ') FROM pg_proc WHERE pronamespace = 'crate_sync'::regnamespace});
	$m->sql(q{UPDATE pg_proc SET probin = '$libdir/crate_sync_that_is_gone' WHERE pronamespace = 'crate_sync'::regnamespace AND probin IS NOT NULL});
	is($error->('postgres', 'CREATE TABLE apart (a int); ALTER TABLE apart ADD COLUMN b int; ALTER TABLE apart RENAME b TO c; DROP TABLE apart'), '', 'without the library');
	$m->sql(qq{UPDATE pg_proc SET probin = '$libraries' WHERE pronamespace = 'crate_sync'::regnamespace AND probin IS NOT NULL});

	# what the hint says does it
	$m->sql(qq{SELECT crate_sync.remove_table('$s."P two"')});
	$m->sql(sprintf $attach, 'p', '"P two"', 2);
	$m->equal('p', 'removed, then attached');
	is($m->target_value('SELECT count(*) FROM {p}'), 2, 'its rows are there');
});

# --- hints that are pasted do what they say, and no harm
{
	my $dir = PostgreSQL::Test::Utils::tempdir() . q{/it's, "a" place};
	mkdir $dir or die $!;
	my $lib = $node->safe_psql('postgres', q{SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'});
	my ($so) = glob "$lib/plpgsql.{so,dylib}";
	symlink $so, "$dir/other.so" or die $!;
	(my $quoted = "$dir/other.so") =~ s/"/""/g;
	(my $setting = qq{plpgsql, "$quoted"}) =~ s/'/''/g;
	my $late = CrateSync::server('late', preload => 0, conf => "shared_preload_libraries = '$setting'\n");
	my $before = $late->safe_psql('postgres', 'SHOW shared_preload_libraries');
	# where the statement is found, and what is to be done beside it
	my $hint = sub {
		my ($db, $sql, $role) = @_;
		my ($out, $err) = ('', '');
		$late->psql($db, $sql, stdout => \$out, stderr => \$err, extra_params => [ '-U', $role || 'postgres' ]);
		return $err =~ /HINT:  (.*)/ ? $1 : "no hint in: $err";
	};
	my $paste = sub {
		my ($db, $sql) = @_;
		my ($out, $err) = ('', '');
		my $ret = $late->psql($db, $sql, stdout => \$out, stderr => \$err);
		return $ret == 0 ? '' : $err;
	};
	$late->safe_psql('postgres', 'CREATE DATABASE hints; CREATE ROLE may LOGIN');
	$late->safe_psql('hints', 'CREATE TABLE t (id int PRIMARY KEY)');
	my $preload = $hint->('hints', 'CREATE EXTENSION crate_sync');
	like($preload, qr/^ALTER SYSTEM SET shared_preload_libraries = .*; and restart the server\.$/, 'CREATE EXTENSION says how to preload it');

	# set in a session that has not loaded the library
	my $target = $hint->('hints', q{SELECT crate_sync.add_table('t')});
	like($target, qr/ALTER SYSTEM SET crate_sync\.target = 'http:\/\/host:4200'/, 'add_table says how to set the target');
	my $path = $late->basedir . '/hints.db';
	$target =~ s{http://host:4200}{sqlite:$path};
	is($paste->('hints', join ";\n", split /; /, $target), '', 'in a new session');
	ok(CrateSync::poll($late, 'hints', 'SELECT target FROM crate_sync.status', "sqlite:$path"), 'it is set');
	is($late->safe_psql('hints', q{SELECT crate_sync.wait_for_sync('t')}), 't', 'and used');
	like($hint->('hints', q{SELECT crate_sync.start()}), qr/^\Q$preload\E$/, 'start() says it, too');
	$late->safe_psql('hints', 'GRANT USAGE ON SCHEMA crate_sync TO may; GRANT EXECUTE ON FUNCTION crate_sync.start TO may');
	unlike($hint->('hints', 'SELECT crate_sync.start()', 'may'), qr/plpgsql|place/, 'what is preloaded is told to no one who may not see it');

	is($paste->('hints', $preload =~ s/ and restart.*//r), '', 'pasted');
	$late->reload;
	ok($late->poll_query_until('hints', q{SELECT pending_restart FROM pg_settings WHERE name = 'shared_preload_libraries'}), 'the setting waits for a restart');
	like($hint->('hints', 'SELECT crate_sync.start()'), qr/^shared_preload_libraries has been changed: restart/, 'which is said');
	$late->restart;
	is($late->safe_psql('postgres', 'SHOW shared_preload_libraries'), "$before, crate_sync", 'what was preloaded still is');
	is($late->safe_psql('hints', 'SELECT preloaded FROM crate_sync.status'), 't', 'and so are we');
	like($hint->('hints', 'SELECT crate_sync.start()'), qr/^no hint/, 'nothing is left to be said');
	$late->stop;
}

# --- the queue is a heap, whatever tables are by default
{
	my $am = q{SELECT string_agg(DISTINCT amname, ',') FROM pg_class c JOIN pg_am a ON a.oid = relam WHERE relnamespace = 'crate_sync'::regnamespace AND relname LIKE 'queue\_%'};
	foreach my $first ('1.0', '')
	{
		my $m = CrateSync::Mirror->new($node, 'sqlite', extension => 0);
		$m->sql(q{CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler});
		$node->safe_psql('postgres', "ALTER DATABASE $m->{db} SET default_table_access_method = heap2");
		$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync' . ($first ? " VERSION '$first'" : ''));
		if ($first)
		{
			is($m->sql($am), 'heap2', 'what the first version made');
			$m->sql(q{INSERT INTO crate_sync.queue_hold VALUES (pg_current_xact_id(), now(), 1, 1, 1, 1, 'x')});
			my ($ret, $out, $err) = $m->try_sql('ALTER EXTENSION crate_sync UPDATE');
			if ($version < 150000)
			{
				like($err, qr/has an access method other than heap\n.*HINT:  Drop the extension/, 'cannot be mended');
				$m->finish;
				next;
			}
			is($ret, 0, 'is mended by the update') or diag $err;
		}
		is($m->sql($am), 'heap', 'the queue is a heap');
		$m->sql('CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i');
		$m->add('t');
		$m->equal('t', 'a table of that other kind');
		$m->sql(q{UPDATE t SET v = 'x'; DELETE FROM t WHERE id < 10});
		$m->equal('t', 'changes of it');
		$m->finish;
	}
}

# --- who could call add_table still can after the update, and nobody else
{
	my $m = CrateSync::Mirror->new($node, 'sqlite', extension => 0);
	$m->sql(q{CREATE ROLE may LOGIN; CREATE ROLE "may grant"; CREATE ROLE may_not; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO may_not});
	$m->sql(q{SET client_min_messages = error; CREATE EXTENSION crate_sync VERSION '1.0'});
	$m->sql(q{GRANT USAGE ON SCHEMA crate_sync TO may; GRANT EXECUTE ON FUNCTION crate_sync.add_table TO may; GRANT EXECUTE ON FUNCTION crate_sync.add_table TO "may grant" WITH GRANT OPTION});
	$m->sql('ALTER EXTENSION crate_sync UPDATE');
	is($m->sql(q{SELECT string_agg(proname || ' ' || a.grantee::regrole || ' ' || a.is_grantable, ', ' ORDER BY 1, a.grantee) FROM pg_proc p, aclexplode(proacl) a
		WHERE pronamespace = 'crate_sync'::regnamespace AND proname IN ('add_table', 'follow_name', 'keep_table') AND a.grantee <> proowner}),
		'add_table may false, add_table "may grant" true', 'grants are as they were');
	$m->sql("GRANT ALL ON SCHEMA $m->{schema} TO may");
	is(join('', errors_of($m, 'may', q{CREATE TABLE t (id int PRIMARY KEY); SELECT crate_sync.add_table('t')})), '', 'and can be used');
	$m->equal('t', 'mirrored');
	$m->sql('ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM may_not');
	$m->finish;
}

$node->stop;
done_testing();
