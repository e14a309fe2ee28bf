# Two catalogs: one made anew and one brought up from the first version are the same, to the comment; a
# newer library over an older catalog says what to do and loses nothing until it was done.
use strict;
use warnings;
use CrateSync;
use Sys::Hostname;
use Test::More;
use Time::HiRes qw(sleep);

my $first = '1.0';
my $node = CrateSync::server('catalogs', conf => "crate_sync.max_retry_interval = 300ms\ncrate_sync.interval = 100ms\n");

# --- fresh and upgraded, line by line

# all that makes an extension what it is; no OIDs, no order but that of columns
my $describe = <<'EOQ';
WITH ext AS (SELECT oid FROM pg_extension WHERE extname = 'crate_sync'),
rels AS (
	SELECT c.*, c.oid::regclass::text AS name FROM pg_class c
	WHERE c.relnamespace = 'crate_sync'::regnamespace),
acls (kind, name, sub, acl, owner) AS (
	SELECT 'schema', nspname::text, '', coalesce(nspacl, acldefault('n', nspowner)), nspowner FROM pg_namespace WHERE nspname = 'crate_sync'
	UNION ALL SELECT 'relation', name, '', coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)), relowner FROM rels
	UNION ALL SELECT 'column', r.name, a.attname, a.attacl, r.relowner FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid
	UNION ALL SELECT 'function', oid::regprocedure::text, '', coalesce(proacl, acldefault('f', proowner)), proowner FROM pg_proc WHERE pronamespace = 'crate_sync'::regnamespace
	UNION ALL SELECT 'type', oid::regtype::text, '', coalesce(typacl, acldefault('T', typowner)), typowner FROM pg_type WHERE typnamespace = 'crate_sync'::regnamespace),
lines (line) AS (
	SELECT concat_ws(' ', 'relation', name, relkind, relpersistence, 'am', (SELECT amname FROM pg_am WHERE oid = relam),
			'options', reloptions, 'rls', relrowsecurity, 'identity', relreplident, 'toast', reltoastrelid <> 0,
			'owner is the extension''s', relowner = (SELECT extowner FROM pg_extension WHERE extname = 'crate_sync'))
		FROM rels
	UNION ALL
	SELECT concat_ws(' ', 'column', r.name, row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), a.attname,
			format_type(a.atttypid, a.atttypmod), a.attnotnull, 'default', pg_get_expr(d.adbin, d.adrelid), 'generated', a.attgenerated,
			'identity', a.attidentity, 'storage', a.attstorage, 'options', (SELECT string_agg(o, ',') FROM unnest(a.attoptions) o WHERE o NOT LIKE 'pg_attver=%'), 'collation', a.attcollation::regcollation,
			'compression', to_jsonb(a) ->> 'attcompression', 'statistics', nullif(a.attstattarget, -1))
		FROM rels r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
	UNION ALL
	SELECT concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisclustered, i.indisreplident) FROM rels r JOIN pg_index i ON i.indrelid = r.oid
	UNION ALL
	SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated) FROM pg_constraint WHERE connamespace = 'crate_sync'::regnamespace
	UNION ALL
	SELECT concat_ws(' ', 'view', name, pg_get_viewdef(oid)) FROM rels WHERE relkind = 'v'
	UNION ALL
	SELECT concat_ws(' ', 'rule', r.name, w.rulename) FROM rels r JOIN pg_rewrite w ON w.ev_class = r.oid
	UNION ALL
	SELECT concat_ws(' ', 'sequence', r.name, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle,
			'of', (SELECT d.refobjid::regclass || '.' || d.refobjsubid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = r.oid AND d.deptype IN ('a', 'i')))
		FROM rels r JOIN pg_sequence s ON s.seqrelid = r.oid
	UNION ALL
	SELECT concat_ws(' ', 'function', pg_get_functiondef(oid), 'result', pg_get_function_result(oid), 'cost', procost, 'rows', prorows, 'kind', prokind,
			'volatile', provolatile, 'strict', proisstrict, 'leakproof', proleakproof, 'secdef', prosecdef, 'parallel', proparallel, 'support', prosupport,
			'config', proconfig, 'names', proargnames, 'modes', proargmodes)
		FROM pg_proc WHERE pronamespace = 'crate_sync'::regnamespace
	UNION ALL
	SELECT concat_ws(' ', 'trigger', tgrelid::regclass, pg_get_triggerdef(g.oid)) FROM pg_trigger g JOIN rels r ON r.oid = g.tgrelid
	UNION ALL
	SELECT concat_ws(' ', 'event trigger', evtname, evtevent, evtfoid::regprocedure, evtenabled, evttags) FROM pg_event_trigger
	UNION ALL
	SELECT concat_ws(' ', 'dumped', c::regclass, 'where', w) FROM pg_extension, unnest(extconfig, extcondition) AS u (c, w) WHERE extname = 'crate_sync'
	UNION ALL
	SELECT concat_ws(' ', 'grant', a.kind, a.name, a.sub, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END, x.privilege_type, x.is_grantable)
		FROM acls a, aclexplode(a.acl) x
	UNION ALL
	SELECT concat_ws(' ', 'comment', (i).type, (i).identity, description)
		FROM (SELECT pg_identify_object(classoid, objoid, objsubid) AS i, description FROM pg_description) d
		WHERE (i).schema = 'crate_sync' OR (i).type IN ('extension', 'event trigger') OR (i).identity LIKE 'crate_sync%'
	UNION ALL
	SELECT concat_ws(' ', 'member', (i).type, (i).identity)
		FROM (SELECT pg_identify_object(classid, objid, objsubid) AS i FROM pg_depend, ext WHERE refclassid = 'pg_extension'::regclass AND refobjid = ext.oid AND deptype = 'e') m
	UNION ALL
	SELECT concat_ws(' ', 'not a member', name) FROM rels, ext WHERE relkind IN ('r', 'v', 'S') AND NOT EXISTS
		(SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = rels.oid
			AND (refclassid = 'pg_extension'::regclass AND refobjid = ext.oid AND deptype = 'e' OR deptype = 'i'))
	UNION ALL
	SELECT concat_ws(' ', 'function that is not a member', p.oid::regprocedure) FROM pg_proc p, ext WHERE pronamespace = 'crate_sync'::regnamespace AND NOT EXISTS
		(SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND refobjid = ext.oid AND deptype = 'e')
	UNION ALL
	SELECT concat_ws(' ', 'type', t.oid::regtype, typtype) FROM pg_type t WHERE typnamespace = 'crate_sync'::regnamespace
	UNION ALL
	SELECT concat_ws(' ', 'row of', 'control', to_jsonb(c) - 'start_no') FROM crate_sync.control c
	UNION ALL
	SELECT concat_ws(' ', 'columns of', 'worker_state', (SELECT string_agg(k, ' ') FROM jsonb_object_keys(to_jsonb(w)) k)) FROM crate_sync.worker_state w)
SELECT DISTINCT replace(line, E'\n', ' ') AS line FROM lines ORDER BY 1;
EOQ

foreach my $db ('fresh', 'upgraded', 'upgraded_of_others')
{
	$node->safe_psql('postgres', "CREATE DATABASE $db TEMPLATE template0");
	my $version = $db eq 'fresh' ? '' : " VERSION '$first'";
	# what is granted by default to others is nothing for us, in either way of coming here
	$node->safe_psql($db, 'CREATE ROLE granted; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO granted; '
		. 'ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO granted; ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO granted')
	  if $db eq 'upgraded_of_others';
	$node->safe_psql($db, "SET client_min_messages = error; CREATE EXTENSION crate_sync$version")
	  if $db eq 'fresh';
	$node->safe_psql($db, "SET client_min_messages = error; CREATE EXTENSION crate_sync$version; ALTER EXTENSION crate_sync UPDATE")
	  if $db ne 'fresh';
}

# who was given a function that the update makes anew keeps it, as the user's grant: a dump has it
{
	my $own = q{SELECT i.initprivs FROM pg_init_privs i JOIN pg_proc p ON p.oid = i.objoid AND i.classoid = 'pg_proc'::regclass WHERE p.proname = 'add_table'};
	my $given = q{SELECT has_function_privilege('given', 'crate_sync.add_table(regclass, text, name[], text, name, jsonb, boolean, boolean, text)', 'EXECUTE')};
	$node->safe_psql('postgres', 'CREATE DATABASE given TEMPLATE template0');
	$node->safe_psql('given', "SET client_min_messages = error; CREATE EXTENSION crate_sync VERSION '$first'; CREATE ROLE given;
		GRANT USAGE ON SCHEMA crate_sync TO given; GRANT EXECUTE ON FUNCTION crate_sync.add_table TO given; ALTER EXTENSION crate_sync UPDATE");
	is($node->safe_psql('given', $given), 't', 'a grant survives the update');
	is($node->safe_psql('given', $own), $node->safe_psql('fresh', $own), '... and is not the extension\'s own');
	like(`pg_dump -d "@{[ $node->connstr('given') ]}"`, qr/GRANT .* ON FUNCTION crate_sync\.add_table\(.*TO given/, '... and a dump has it');
	$node->safe_psql('given', 'DROP OWNED BY given');
	$node->safe_psql('postgres', 'DROP DATABASE given WITH (FORCE)');
}
my @fresh = split /\n/, $node->safe_psql('fresh', $describe);
cmp_ok(scalar(@fresh), '>', 300, 'a catalog is described by ' . scalar(@fresh) . ' lines');
foreach my $db ('upgraded', 'upgraded_of_others')
{
	my @lines = split /\n/, $node->safe_psql($db, $describe);
	my (%in_fresh, %in_other);
	$in_fresh{$_}++ foreach @fresh;
	$in_other{$_}++ foreach @lines;
	is(join("\n", grep { !$in_other{$_} } @fresh), '', "$db: nothing that a fresh catalog has is missing");
	is(join("\n", grep { !$in_fresh{$_} } @lines), '', "$db: nothing is there that a fresh one has not");
	is($node->safe_psql($db, q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}),
		$node->safe_psql('fresh', q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}), "$db: the version");
}

# --- this library over a catalog of the first version, with tables that are mirrored since long

# what the first version wrote down of a table: nothing was altered since
my $shape = <<'EOQ';
(WITH RECURSIVE tree (oid) AS (SELECT relid::oid UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid)
SELECT md5(string_agg(x, '|' ORDER BY x)) FROM (
	SELECT 'a' || a.attname::text || ' ' || a.atttypid || ' ' || a.atttypmod || ' ' || a.xmin::text AS x FROM pg_attribute a
		WHERE a.attrelid = relid AND a.attnum > 0 AND NOT a.attisdropped
	UNION ALL SELECT 't' || g.tgrelid || g.tgname::text || g.tgenabled::text || g.xmin::text FROM pg_trigger g JOIN tree ON g.tgrelid = tree.oid
		WHERE g.tgname IN ('crate_sync_capture', 'crate_sync_capture_truncate')
	UNION ALL SELECT 'p' || tree.oid FROM tree) AS parts)
EOQ

sub depends
{
	return "DO \$\$ DECLARE g record; BEGIN FOR g IN SELECT tgrelid::regclass AS rel, tgname FROM pg_trigger WHERE tgname LIKE 'crate_sync%' LOOP "
	  . "EXECUTE format('ALTER TRIGGER %I ON %s $_[0] DEPENDS ON EXTENSION crate_sync', g.tgname, g.rel); END LOOP; END \$\$";
}

# tables are added by the catalog of today, then that is exchanged; triggers stay, with the function they call
# the first version named a place by its host, device and file, and its beats had no more
sub former_place
{
	my ($m) = @_;
	my $dir = $m->sql('SHOW data_directory');
	my @st = stat "$dir/PG_VERSION";
	my $place = $m->sql(sprintf q{SELECT lpad(to_hex(hashtextextended('%s %s %s %s' COLLATE "C", 0)), 16, '0')},
		hostname(), $dir, $st[0], $st[1]);
	my $claim = $m->is_crate ? '"crate_sync"."claim"' : '"crate_sync.claim"';
	my ($token) = $m->sql('SELECT token FROM crate_sync.worker_state');
	my $refresh = sub { $m->target_post({ stmt => "REFRESH TABLE $claim" }) if $m->is_crate };
	$refresh->();
	my ($now) = map { $_->[0] } @{ $m->target_rows("SELECT place FROM $claim WHERE token = '$token' AND target NOT LIKE 'beat of %'") };
	# the key of a row stays what it is: one is put in the other's place
	$m->target_rows("INSERT INTO $claim (target, system_identifier, database, timeline, token, place, beat)"
		. " SELECT 'beat of $token at $place', system_identifier, database, timeline, token, '$place', beat FROM $claim WHERE target = 'beat of $token at $now'");
	$refresh->();
	$m->target_rows("DELETE FROM $claim WHERE target = 'beat of $token at $now'");
	$m->target_rows("UPDATE $claim SET place = '$place' WHERE token = '$token'");
	$refresh->();
}

sub first_version
{
	my ($m, @tables) = @_;
	$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
	$m->add(@tables);
	$m->equal(\@tables, 'load');
	$m->sql('SELECT crate_sync.stop()');
	$m->poll('SELECT pid IS NULL FROM crate_sync.status');
	is($m->sql('SELECT count(*) FROM crate_sync.queue_0') + $m->sql('SELECT count(*) FROM crate_sync.queue_1'), 0, 'nothing is queued');
	my @keep = ('mirror', 'mirror_state', 'worker_state');
	$m->sql(join ";\n", 'SET client_min_messages = error; BEGIN; CREATE SCHEMA kept',
		(map { "CREATE TABLE kept.$_ AS SELECT * FROM crate_sync.$_" } @keep), "UPDATE kept.mirror_state SET shape = $shape",
		depends('NO'), 'ALTER EXTENSION crate_sync DROP FUNCTION crate_sync.capture(); ALTER FUNCTION crate_sync.capture() SET SCHEMA kept',
		'DROP EXTENSION crate_sync', "CREATE EXTENSION crate_sync VERSION '$first'",
		'ALTER EXTENSION crate_sync DROP FUNCTION crate_sync.capture(); DROP FUNCTION crate_sync.capture(); ALTER FUNCTION kept.capture() SET SCHEMA crate_sync; ALTER EXTENSION crate_sync ADD FUNCTION crate_sync.capture()',
		depends(''), (map { <<"EOQ" } @keep), q{SELECT setval('crate_sync.mirror_mirror_id_seq', max(mirror_id)) FROM crate_sync.mirror}, 'DROP SCHEMA kept CASCADE; COMMIT');
DO \$\$ BEGIN EXECUTE (SELECT 'DELETE FROM crate_sync.$_; INSERT INTO crate_sync.$_ (' || c || ') OVERRIDING SYSTEM VALUE SELECT ' || c || ' FROM kept.$_'
	FROM (SELECT string_agg(quote_ident(attname), ', ') AS c FROM pg_attribute WHERE attrelid = 'crate_sync.$_'::regclass AND attnum > 0 AND NOT attisdropped) a); END \$\$
EOQ
	former_place($m);
	is($m->sql(q{SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'}), $first, 'the catalog is of the first version');
	is($m->sql('SELECT count(*) FROM crate_sync.mirror JOIN crate_sync.mirror_state USING (mirror_id)'), scalar(@tables), 'with tables that are mirrored');
}

my $hint = qr/ALTER EXTENSION crate_sync UPDATE/;
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	my @t = ('t', 'p', '"Ky"');
	$m->sql(<<'EOQ');
CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 3000) i;
CREATE TABLE p (id int, r int, v text, PRIMARY KEY (id, r)) PARTITION BY LIST (r);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p DEFAULT;
INSERT INTO p SELECT i, i % 3, 'v' FROM generate_series(1, 300) i;
CREATE TABLE "Ky" (k text PRIMARY KEY); INSERT INTO "Ky" SELECT 'key ' || i FROM generate_series(1, 50) i;
EOQ
	first_version($m, @t);
	my $log = CrateSync::log_size($node);
	ok($m->poll(q{SELECT state = 'update needed' FROM crate_sync.status}), 'status says that an update is needed') or $m->tell_why;
	is($m->status('ok'), 'f', 'and that it is not well');
	like($m->status('hint'), $hint, 'and how');
	foreach my $i (1, 2)
	{
		my ($ret, $out, $err) = $m->try_sql(qq{UPDATE t SET v = 'old $i' WHERE id % 3 = $i; DELETE FROM t WHERE id % 100 = $i; INSERT INTO t VALUES (1000000 + $i, 'new');
			UPDATE p SET v = 'old $i' WHERE r = $i; INSERT INTO "Ky" VALUES ('another $i')});
		is($ret . $err, '0', "a writer goes on, round $i");
		($ret, $out, $err) = $m->try_sql('BEGIN; TRUNCATE p1; INSERT INTO p VALUES (7, 1, \'after\'); COMMIT');
		is($ret . $err, '0', '... and TRUNCATE');
		($ret, $out, $err) = $m->try_sql(q{BEGIN; SAVEPOINT s; UPDATE t SET v = 'x'; ROLLBACK TO s; INSERT INTO t VALUES (1, 'y') ON CONFLICT (id) DO UPDATE SET v = 'upsert'; COMMIT});
		is($ret . $err, '0', '... and with a savepoint');
		next if $i == 2;
		# as long as it is: over deaths of the worker, and of the server
		$node->restart;
		ok($m->poll(q{SELECT state = 'update needed' FROM crate_sync.status}), 'it says so after a restart, too');
	}
	cmp_ok($m->status('queued_keys'), '>', 1000, 'keys are queued');
	is($m->target_value(q{SELECT count(*) FROM {t} WHERE v LIKE 'old%'}), 0, 'nothing is pushed');
	$m->sql("SELECT * FROM crate_sync.$_") foreach 'tables', 'progress', 'failed_rows', 'differences', 'status', 'worker_status()', 'queue_stats(true)', 'queue_stats(false)';
	$m->sql('CREATE TABLE other (id int PRIMARY KEY)');
	foreach my $call (q{add_table('other')}, q{add_table('t')}, q{remove_table('t')}, q{resync('t')}, 'resync()', q{cancel('t')}, q{verify('t')}, 'verify()',
		q{pause('t')}, 'pause()', q{resume('t')}, 'resume()', 'retry_failed()', 'discard_failed()', 'start()', 'stop()', 'adopt()', 'wait_for_sync()', q{wait_for_sync('t')})
	{
		my ($ret, $out, $err) = $m->try_sql("\\set VERBOSITY verbose\nSET statement_timeout = '20s'; SELECT crate_sync.$call");
		like($err, qr/ERROR: +55000: .*HINT:  ALTER EXTENSION crate_sync UPDATE;/s, "$call says it, too");
	}
	like($m->sql(q{SELECT message FROM crate_sync.add_all_tables(ARRAY[current_schema()]) WHERE relation = 'other'::regclass}), qr/older than its library/, 'and add_all_tables');
	is($m->sql(q{SELECT count(*) FROM crate_sync.mirror m JOIN crate_sync.mirror_state s USING (mirror_id) WHERE s.state = 'ready'}), 3, 'the tables are as they were');

	# p is swept for the sake of its TRUNCATE
	my $loaded = q{SELECT string_agg(relid::regclass || ' ' || last_load_time, ', ' ORDER BY mirror_id) FROM crate_sync.mirror_state WHERE relid <> 'p'::regclass};
	my $before = $m->sql($loaded);
	my ($ret, $out, $err) = $m->try_sql('ALTER EXTENSION crate_sync UPDATE');
	is($ret . $err, '0', 'ALTER EXTENSION crate_sync UPDATE');
	$m->equal(\@t, 'after the update all that was queued');
	is($m->status('ok'), 't', 'and all is well') or $m->tell_why;
	is(CrateSync::log_count($node, qr/crate_sync: (?:load|full resync|upserting resync|rebuild) of/, $log), 0, 'without a load');
	is($m->sql($loaded), $before, 'each table\'s last load is the one before');
	is($m->sql(q{SELECT count(*) FROM crate_sync.mirror m JOIN pg_class c ON c.oid = m.relid WHERE m.source_name = c.relname AND m.source_schema = c.relnamespace::regnamespace::text AND m.source_owner = c.relowner}), 3, 'their names are known');
	$m->sql(q{UPDATE t SET v = 'goes on' WHERE id < 10; DROP TABLE "Ky"; CREATE TABLE "Ky" (k text PRIMARY KEY)});
	$m->equal(['t', 'p'], 'it goes on');
	is($m->sql('SELECT crate_sync.add_table(\'other\') IS NOT NULL'), 't', 'and takes tables');
}, extension => 0);

# dropped instead of updated
CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
		CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p DEFAULT; INSERT INTO p SELECT generate_series(1, 30)});
	first_version($m, 't', 'p');
	$m->poll(q{SELECT state = 'update needed' FROM crate_sync.status});
	$m->sql(q{UPDATE t SET v = 'queued'});
	my ($ret, $out, $err) = $m->try_sql('DROP EXTENSION crate_sync');
	is($ret, 0, 'DROP EXTENSION of the first version') or diag $err;
	is($m->sql(q{SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crate_sync%'}), 0, 'no trigger is left');
	is($m->sql(q{SELECT count(*) FROM pg_namespace WHERE nspname = 'crate_sync'}), 0, 'nor the schema');
	ok($m->poll(q{SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'crate_sync worker' AND datname = current_database()}), 'nor the worker');
	$m->sql('UPDATE t SET v = id; TRUNCATE p');
	$m->sql('SET client_min_messages = error; CREATE EXTENSION crate_sync');
	$m->add('t', 'p');
	$m->equal(['t', 'p'], 'made anew');
}, extension => 0);
$node->stop;
done_testing();
