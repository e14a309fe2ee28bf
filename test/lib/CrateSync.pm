# What the TAP tests share: a server with the extension, targets, databases that
# mirror into them, and a comparison of both sides that is not the extension's.
#
#	my $node = CrateSync::server('name');
#	CrateSync::on_targets($node, sub {
#		my ($m) = @_;					# a CrateSync::Mirror: one database, one target
#		$m->sql('CREATE TABLE t ...');
#		$m->add('t');
#		$m->equal('t', 'what this is about');
#	});
package CrateSync;

use strict;
use warnings;

use File::Basename qw(basename dirname);
use HTTP::Tiny;
use IPC::Run ();
use JSON::PP ();
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

BEGIN
{
	# PostgreSQL 14 calls them otherwise
	if (eval { require PostgreSQL::Test::Cluster; 1 })
	{
		require PostgreSQL::Test::Utils;
	}
	else
	{
		require PostgresNode;
		require TestLib;
		no warnings 'once';
		*PostgreSQL::Test::Utils::system_log = \&TestLib::system_log;
		*PostgreSQL::Test::Utils::slurp_file = \&TestLib::slurp_file;
		*PostgreSQL::Test::Utils::tempdir    = \&TestLib::tempdir;
	}
}

our $TOP     = dirname(dirname(__FILE__));
our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;
my $json = JSON::PP->new->utf8->allow_nonref->canonical;
my $http = HTTP::Tiny->new(timeout => $timeout);
my $serial = 0;

# ---------------------------------------------------------------------------
# servers

# a server that is running; options: preload => 0, conf => "...", streaming => 1
sub server
{
	my ($name, %o) = @_;
	my $node =
	  PostgreSQL::Test::Cluster->can('new')
	  ? PostgreSQL::Test::Cluster->new($name)
	  : PostgresNode->get_new_node($name);

	$node->init(allows_streaming => ($o{streaming} || 0), extra => [ '-E', 'UTF8', '--locale', 'C' ]);
	$node->append_conf('postgresql.conf', settings());
	$node->append_conf('postgresql.conf', "shared_preload_libraries = 'crate_sync'\n")
	  unless defined $o{preload} && !$o{preload};
	$node->append_conf('postgresql.conf', $o{conf}) if $o{conf};
	$node->start;
	return $node;
}

sub settings
{
	return <<'EOC';
max_worker_processes = 32
max_connections = 50
max_prepared_transactions = 10
autovacuum_naptime = 1s
restart_after_crash = on
EOC
}

# waits until a query gives what is expected; says what it gave instead
sub poll
{
	my ($node, $db, $query, $expected, $seconds) = @_;
	$expected = 't' unless defined $expected;
	my $until = time() + ($seconds || $timeout);
	my ($got, $err) = ('', '');

	while (1)
	{
		# where nobody can connect, psql may be gone before it has read the query: that is an error of IPC::Run's
		my $ret = eval { $node->psql($db, $query, stdout => \$got, stderr => \$err) };
		$err = $@ unless defined $ret;
		return 1 if defined $ret && $ret == 0 && $got eq $expected;
		last if time() > $until;
		sleep 0.1;
	}
	diag("after $timeout s \"$query\" in $db still gives \"$got\" ($err), expected \"$expected\"");
	return 0;
}

# any condition
sub wait_until
{
	my ($what, $cond, $seconds) = @_;
	my $until = time() + ($seconds || $timeout);

	while (time() < $until)
	{
		return 1 if $cond->();
		sleep 0.1;
	}
	diag("did not come true: $what");
	return 0;
}

# how many times a pattern is in the server's log from an offset on
sub log_count
{
	my ($node, $pattern, $offset) = @_;
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
	my $n = () = substr($log, $offset || 0) =~ /$pattern/g;
	return $n;
}

sub log_size
{
	my ($node) = @_;
	return -s $node->logfile || 0;
}

# ---------------------------------------------------------------------------
# targets

# sqlite and the stand-in always; a real CrateDB where there is one
sub kinds
{
	return split(/,/, $ENV{CRATE_SYNC_TEST_TARGETS}) if $ENV{CRATE_SYNC_TEST_TARGETS};
	return ('sqlite', 'standin', $ENV{CRATE_URL} ? ('crate') : ());
}

# the targets, one kind (or those of which the code is true) left out, and said so
sub kinds_but
{
	my ($which, $why) = @_;
	$which = do { my $kind = $which; sub { $_[0] eq $kind } } unless ref $which;
	my @out = grep { $which->($_) } kinds();
	skipped(basename($0) . ': a part is not run on ' . join(' and ', @out) . ": $why") if @out;
	return grep { !$which->($_) } kinds();
}

# runs a subtest for each target, each in a database of its own; only => or but => KIND, why => REASON
sub on_targets
{
	my ($node, $code, %o) = @_;

	my $only = delete $o{only};
	my $but = delete $o{but};
	my $why = delete $o{why};
	my @kinds =
	    $o{kinds}     ? @{ $o{kinds} }
	  : $only || $but ? kinds_but(sub { $only ? $_[0] ne $only : $_[0] eq $but }, $why)
	  :                 kinds();
	SKIP: { skip($why, 1) unless @kinds; }
	foreach my $kind (@kinds)
	{
		subtest "on $kind" => sub {
			my $m;
			# what dies here ends this target's turn, not the others'
			if (!eval { $m = CrateSync::Mirror->new($node, $kind, %o); $code->($m); 1 })
			{
				fail("ran to its end: $@");
				$m->tell_why if $m && eval { $m->status };
			}
			$m->finish if $m;
		};
	}
}

# what was left out goes into the summary of test/run
sub skipped
{
	my ($why) = @_;
	note("skipped: $why");
	return unless $ENV{TESTDIR} && open my $f, '>>', "$ENV{TESTDIR}/skipped";
	print $f "$why\n";
	close $f;
}

sub free_port
{
	require IO::Socket::INET;
	my $s = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1);
	return $s->sockport;
}

# ---------------------------------------------------------------------------
package CrateSync::Standin;

use strict;
use warnings;
use Test::More;

# arguments: those of cratedb.py
sub new
{
	my ($class, @args) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $self = bless { ports_file => "$dir/ports", log_file => "$dir/log" }, $class;

	$self->{pid} = fork();
	die "fork: $!" unless defined $self->{pid};
	if ($self->{pid} == 0)
	{
		open STDOUT, '>', $self->{log_file};
		open STDERR, '>&', \*STDOUT;
		exec 'python3', "$CrateSync::TOP/standin/cratedb.py", '--ports-file', $self->{ports_file}, @args
		  or POSIX::_exit(127);
	}
	CrateSync::wait_until('the stand-in listens', sub { -s $self->{ports_file} }, 60)
	  or die PostgreSQL::Test::Utils::slurp_file($self->{log_file});
	my $p = $json->decode(PostgreSQL::Test::Utils::slurp_file($self->{ports_file}));
	$self->{ports} = $p->{ports};
	$self->{control} = "http://127.0.0.1:$p->{control}/";
	$self->{scheme} = (grep { $_ eq '--tls' } @args) ? 'https' : 'http';
	return $self;
}

sub url
{
	my ($self) = @_;
	my $scheme = $self->{scheme};
	my $host = $scheme eq 'https' ? 'localhost' : '127.0.0.1';
	return join(',', map { "$scheme://$host:$_" } @{ $self->{ports} });
}

sub control
{
	my ($self, %msg) = @_;
	my $r = $http->post($self->{control}, { content => $json->encode(\%msg) });
	die "stand-in: $r->{status} $r->{content}" unless $r->{success};
	return $json->decode($r->{content});
}

sub fault
{
	my ($self, @faults) = @_;
	return $self->control(faults => \@faults);
}

# statements that came, but for what a worker asks all the time
sub statements
{
	my ($self, $pattern) = @_;
	return grep { defined $_->{stmt} && $_->{stmt} =~ /$pattern/ }
	  @{ $self->control(log => JSON::PP::true)->{log} };
}

# waits until a fault was met that many times
sub wait_hits
{
	my ($self, $n, $i) = @_;
	my $faults;
	return CrateSync::wait_until(
		"fault met $n times",
		sub {
			$faults = $self->control()->{faults};
			return $faults->[ $i || 0 ]{hits} >= $n;
		});
}

sub stop
{
	my ($self) = @_;
	return unless $self->{pid};
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	delete $self->{pid};
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	$self->stop;
}

# ---------------------------------------------------------------------------
package CrateSync::Mirror;

use strict;
use warnings;
use Test::More;
use Time::HiRes qw(sleep time);

# a database with the extension and a target; options:
#	url: instead of the kind's own; standin: arguments of cratedb.py; settings: of the database;
#	extension: 0 leaves CREATE EXTENSION to the caller
sub new
{
	my ($class, $node, $kind, %o) = @_;
	my $n = ++$serial;
	# names that no other run has in a CrateDB that is shared
	my $schema = sprintf('t%d_%d', $$, $n);
	my $self = bless {
		node => $node, kind => $kind, db => "db$n", schema => $schema, created => [] }, $class;

	if ($kind eq 'sqlite')
	{
		$self->{url} = 'sqlite:' . $node->basedir . "/$schema.db";
	}
	elsif ($kind eq 'standin')
	{
		$self->{standin} = CrateSync::Standin->new(@{ $o{standin} || [] });
		$self->{url} = $self->{standin}->url;
	}
	elsif ($kind eq 'crate')
	{
		$self->{url} = $ENV{CRATE_URL};
	}
	$self->{url} = $o{url} if $o{url};
	$node->safe_psql('postgres', "CREATE DATABASE $self->{db} TEMPLATE template0");
	$node->safe_psql('postgres', "ALTER DATABASE $self->{db} SET crate_sync.target = '$self->{url}';"
		. " ALTER DATABASE $self->{db} SET search_path = $schema, public;");
	$self->sql("CREATE SCHEMA $schema");
	$self->sql("SET client_min_messages = error; CREATE EXTENSION crate_sync")
	  unless defined $o{extension} && !$o{extension};
	return $self;
}

sub node { return $_[0]->{node} }
sub db { return $_[0]->{db} }
sub kind { return $_[0]->{kind} }
sub standin { return $_[0]->{standin} }
sub is_crate { return $_[0]->{kind} ne 'sqlite' }

sub sql
{
	my ($self, $sql) = @_;
	return $self->{node}->safe_psql($self->{db}, $sql);
}

# -> (exit status, stdout, stderr); errors are no end
sub try_sql
{
	my ($self, $sql) = @_;
	my ($out, $err) = ('', '');
	my $ret = $self->{node}->psql($self->{db}, $sql, stdout => \$out, stderr => \$err);
	return ($ret, $out, $err);
}

sub poll
{
	my ($self, $query, $expected, $seconds) = @_;
	return CrateSync::poll($self->{node}, $self->{db}, $query, $expected, $seconds);
}

sub add
{
	my ($self, @tables) = @_;
	$self->sql("SELECT crate_sync.add_table('$_')") foreach @tables;
}

sub status
{
	my ($self, $columns) = @_;
	return $self->sql('SELECT ' . ($columns || 'state') . ' FROM crate_sync.status');
}

# all that was committed has arrived
sub wait_sync
{
	my ($self, $table) = @_;
	my $until = time() + $CrateSync::timeout;
	my ($ret, $out, $err);
	# it gives up on what is stopped by an error for a while: here that may heal
	do
	{
		($ret, $out, $err) = $self->try_sql(sprintf "SELECT crate_sync.wait_for_sync(%s'%d s')",
			$table ? "'$table', " : 'timeout => ', $CrateSync::timeout);
		return 1 if $ret == 0 && $out eq 't';
	} while ($ret == 0 && $err =~ / is stopped: |cannot be written/ && time() < $until);
	diag("wait_for_sync: $out $err");
	$self->tell_why;
	return 0;
}

sub tell_why
{
	my ($self) = @_;
	diag($self->{node}->safe_psql($self->{db}, <<'EOQ'));
\x on
SELECT * FROM crate_sync.status;
SELECT relname, state, queued_keys, n_failed_rows, last_error, hint FROM crate_sync.tables WHERE state <> 'ready' OR queued_keys > 0 OR n_failed_rows > 0;
SELECT key, action, error_code, error_message FROM crate_sync.failed_rows LIMIT 3;
EOQ
	my @log = split /\n/, PostgreSQL::Test::Utils::slurp_file($self->{node}->logfile);
	my @last = grep { defined } (grep { /crate_sync|PANIC|TRAP|terminated by/ && !/statement: | HINT: / } @log)[-8 .. -1];
	diag(join("\n", @last));
}

# --- the target's side

sub target_table
{
	my ($self, $table) = @_;
	return sprintf('"%s"."%s"', $self->{schema}, $table) if $self->is_crate;
	return sprintf('"%s.%s"', $self->{schema}, $table);
}

# rows of a query at the target, asked without the extension; "{t}" is table t there
sub target_rows
{
	my ($self, $query) = @_;
	$query =~ s/\{([^}]+)\}/$self->target_table($1)/ge;
	if (!$self->is_crate)
	{
		my ($path) = $self->{url} =~ /^sqlite:(.*)/;
		my ($out, $err);
		IPC::Run::run(
			[ 'python3', '-c', <<'EOP', $path, $query ], '<', \undef, '>', \$out, '2>', \$err) or die "sqlite: $err";
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
with db:
    print(json.dumps(db.execute(sys.argv[2]).fetchall()))
EOP
		return $json->decode($out);
	}
	return $self->target_post({ stmt => $query })->{rows};
}

# of several hosts, the one that tests ask: {ask} is its number
sub ask_url
{
	my ($self) = @_;
	return (split /,/, $self->{url})[ $self->{ask} || 0 ];
}

sub target_post
{
	my ($self, $msg) = @_;
	my $url = $self->ask_url;
	my $r = $http->post("$url/_sql",
		{ content => $json->encode($msg), headers => { 'Content-Type' => 'application/json' } });
	die "target: $r->{status} $r->{content} for $msg->{stmt}" unless $r->{success};
	return $json->decode($r->{content});
}

sub refresh
{
	my ($self, @tables) = @_;
	return unless $self->is_crate;
	$self->target_post({ stmt => 'REFRESH TABLE ' . $self->target_table($_) }) foreach @tables;
}

# one value
sub target_value
{
	my ($self, $query) = @_;
	if ($self->is_crate)
	{
		$self->refresh($_) foreach $query =~ /\{([^}]+)\}/g;
	}
	my $rows = $self->target_rows($query);
	return $rows->[0][0];
}

sub target_count
{
	my ($self, $table) = @_;
	return $self->target_value("SELECT count(*) FROM {$table}");
}

# carries a change out at the target behind the extension's back
sub target_change
{
	my ($self, $statement) = @_;
	if ($self->is_crate)
	{
		$self->refresh($_) foreach $statement =~ /\{([^}]+)\}/g;
	}
	$self->target_rows($statement);
}

# the comparison's exit status and report; equal if 0
sub compare
{
	my ($self, @tables) = @_;
	my ($out, $err) = ('', '');
	my $url = $self->ask_url;
	my $conninfo = $self->{node}->connstr($self->{db});
	my @args;
	foreach (@tables)
	{
		# SOURCE, as a regclass reads it, and the target's own schema
		push @args, $_;
	}
	IPC::Run::run(
		[
			'python3', "$CrateSync::TOP/lib/compare.py", '--source', $conninfo, '--target', $url,
			'--search-path', $self->{schema}, @{ $self->{compare_options} || [] }, @args
		],
		'<', \undef, '>', \$out, '2>', \$err);
	return ($? >> 8, $out . $err);
}

# waits, then compares: one test
sub equal
{
	my ($self, $tables, $name) = @_;
	my @tables = ref $tables ? @$tables : ($tables);
	local $Test::Builder::Level = $Test::Builder::Level + 1;

	if (!$self->wait_sync)
	{
		return fail("$name: in sync");
	}
	my ($ret, $report) = $self->compare(@tables);
	my $ok = ok($ret == 0, "$name: both sides are equal");
	diag($report) unless $ok;
	return $ok;
}

# --- sessions beside this one

# runs a script in a session of its own; ->done gives its errors once it is over
sub background
{
	my ($self, $script) = @_;
	return CrateSync::Session->new($self->{node}->connstr($self->{db}), $script);
}

# --- the worker

sub worker_pid
{
	my ($self) = @_;
	my $pid = $self->sql('SELECT pid FROM crate_sync.status');
	return $pid;
}

sub wait_worker
{
	my ($self) = @_;
	return $self->poll('SELECT pid IS NOT NULL FROM crate_sync.status');
}

# kill -9, which makes the postmaster restart every backend
sub kill_worker
{
	my ($self, $signal) = @_;
	my $pid = $self->worker_pid;
	return 0 unless $pid;
	kill $signal || 'KILL', $pid;
	CrateSync::wait_until('the worker is dead', sub { !kill(0, $pid) });
	CrateSync::poll($self->{node}, 'postgres', 'SELECT NOT pg_is_in_recovery()');
	return $pid;
}

# takes away what was made; the target's tables too, as a CrateDB may be shared
sub finish
{
	my ($self) = @_;

	if ($self->{kind} eq 'crate')
	{
		my $rows = $self->target_post(
			{
				stmt => 'SELECT table_name FROM information_schema.tables WHERE table_schema = ?',
				args => [ $self->{schema} ] })->{rows};
		$self->{node}->psql('postgres', "DROP DATABASE $self->{db} WITH (FORCE)");
		$self->target_post({ stmt => 'DROP TABLE IF EXISTS ' . $self->target_table($_->[0]) }) foreach @$rows;
		# not there if no table got that far
		eval {
			$self->target_post(
				{ stmt => 'DELETE FROM crate_sync.fence WHERE id LIKE ?', args => ["\"$self->{schema}\".%"] });
		};
	}
	else
	{
		$self->{node}->psql('postgres', "DROP DATABASE $self->{db} WITH (FORCE)");
	}
	$self->{standin}->stop if $self->{standin};
}

# ---------------------------------------------------------------------------
package CrateSync::Session;

use strict;
use warnings;

# a psql of its own that runs a script and goes on after errors; through files, as
# nobody pumps here while it runs
sub new
{
	my ($class, $connstr, $script) = @_;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	my $self = bless { dir => $dir }, $class;

	open my $f, '>', "$dir/in" or die "$dir/in: $!";
	print $f $script;
	close $f;
	$self->{h} = IPC::Run::start([ 'psql', '-XAtq', '-d', $connstr, '-f', "$dir/in" ],
		'<', '/dev/null', '>', "$dir/out", '2>', "$dir/err");
	return $self;
}

# waits for its end; what it complained about
sub done
{
	my ($self) = @_;
	$self->{h}->finish;
	return PostgreSQL::Test::Utils::slurp_file("$self->{dir}/err");
}

sub output
{
	my ($self) = @_;
	return PostgreSQL::Test::Utils::slurp_file("$self->{dir}/out");
}

1;
