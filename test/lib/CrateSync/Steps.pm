# The worker, stepped: held at a named place (src/base/point.h) while statements that change what is
# mirrored are run beside it, let go, and both sides compared by content.  A pair is a place and a
# statement; each has a table of its own, in schemas of its own.
#
#	CrateSync::Steps::run($node, \@places, \@statements, kinds => [...]);
#
# Pairs are dealt out to lanes: processes with a database each, and so a worker and a target.
# What is said of places and statements stands where they are made (test/t/040_steps.pl).
#
# In SQL, %S is the pair's schema; its mirrored table is %S.t.
package CrateSync::Steps;

use strict;
use warnings;

use CrateSync;
use IO::Select;
use IO::Socket::UNIX;
use JSON::PP ();
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->utf8->allow_nonref->canonical;

# how long anything may take: a busy machine is no fault
our $patience = $ENV{STEP_PATIENCE} || 60;
# how long a state lasts before its hint is followed: much passes by itself
my $hint_after = 1;
# how long both sides may differ although in sync is said, before it is given up
my $differs_for = 4;

# ---------------------------------------------------------------------------
# all pairs; options:
#	kinds: of targets
#	left_out: code that says of a place, a statement and a kind why not, if so
#	lanes: how many
sub run
{
	my ($node, $places, $statements, %o) = @_;
	my (@jobs, %left_out, %ran, @report, %lane_of);
	my ($only_place, $only_statement) = split m{/}, $ENV{STEP} || '', 2;
	my $begin = time();

	foreach my $kind (@{ $o{kinds} })
	{
		foreach my $statement (@$statements)
		{
			foreach my $place (@$places)
			{
				next if $only_place && $place->{name} ne $only_place;
				next if $only_statement && $statement->{name} ne $only_statement;
				if (my $why = !($only_place && $only_statement) && $o{left_out} && $o{left_out}->($place, $statement, $kind))
				{
					$left_out{"on $kind: $why"}++;
					next;
				}
				push @jobs,
				  { kind => $kind, place => $place, statement => $statement, number => scalar @jobs };
			}
		}
	}
	BAIL_OUT("no pair is called $ENV{STEP}") unless @jobs;

	my @all = @jobs;
	my @kinds = grep { my $k = $_; grep { $_->{kind} eq $k } @jobs } @{ $o{kinds} };
	my $lanes = $ENV{STEP_LANES} || $o{lanes} || 5 * @kinds;
	$lanes = @jobs if @jobs < $lanes;
	$lanes = @kinds if $lanes < @kinds;
	my $select = IO::Select->new;
	for my $n (1 .. $lanes)
	{
		my $kind = $kinds[ ($n - 1) % @kinds ];
		socketpair(my $mine, my $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!";
		my $pid = fork();
		die "fork: $!" unless defined $pid;
		if ($pid == 0)
		{
			close $mine;
			eval { lane_process($node, $kind, $n, $its, \@all); 1 } or print STDERR "# lane $n: $@";
			POSIX::_exit(0);
		}
		close $its;
		$lane_of{ fileno $mine } = { kind => $kind, pid => $pid, buf => '' };
		$select->add($mine);
	}

	# whoever is ready gets the next pair of its target
	while ($select->count)
	{
		foreach my $fh ($select->can_read)
		{
			my $lane = $lane_of{ fileno $fh };
			if (!sysread($fh, $lane->{buf}, 65536, length $lane->{buf}))
			{
				fail(pair_name($lane->{job}) . ': its lane ended') if $lane->{job};
				$select->remove($fh);
				waitpid($lane->{pid}, 0);
				next;
			}
			while ($lane->{buf} =~ s/^([^\n]*)\n//)
			{
				my $result = $json->decode($1);
				if (my $job = $lane->{job})
				{
					say_result($job, $result);
					$ran{ $job->{kind} }++;
					push @report, { place => $job->{place}{name}, statement => $job->{statement}{name},
						kind => $job->{kind}, %$result };
				}
				my ($i) = grep { $jobs[$_]{kind} eq $lane->{kind} } 0 .. $#jobs;
				if (!defined $i && @jobs > $lanes)
				{
					# it helps with another kind's
					$lane->{job} = undef;
					$lane->{kind} = $jobs[0]{kind};
					syswrite($fh, "kind $lane->{kind}\n");
					next;
				}
				$lane->{job} = defined $i ? splice(@jobs, $i, 1) : undef;
				syswrite($fh, ($lane->{job} ? $lane->{job}{number} : 'end') . "\n");
			}
		}
	}
	fail(pair_name($_) . ': was not run') foreach @jobs;

	diag(sprintf 'pairs of %d places and %d statements: %s; %d s, %d lanes', scalar @$places,
		scalar @$statements, join(', ', map { "$ran{$_} on $_" } sort keys %ran), time() - $begin, $lanes);
	CrateSync::skipped(basename0() . ": $left_out{$_} pairs $_") foreach sort keys %left_out;
	if ($ENV{STEP_REPORT})
	{
		open my $f, '>', $ENV{STEP_REPORT} or die "$ENV{STEP_REPORT}: $!";
		print $f $json->encode($_), "\n" foreach @report;
		close $f;
	}
	return;
}

sub basename0
{
	return $0 =~ m{([^/]*)$} ? $1 : $0;
}

sub pair_name
{
	my ($job) = @_;
	return "$job->{place}{name}/$job->{statement}{name} on $job->{kind}";
}

sub say_result
{
	my ($job, $result) = @_;
	my $name = pair_name($job);

	ok(!@{ $result->{failures} }, $name)
	  or diag("STEP='$job->{place}{name}/$job->{statement}{name}'\n" . join("\n", @{ $result->{failures} }));
	diag("$name: $_") foreach @{ $result->{notes} };
}

sub lane_process
{
	my ($node, $kind, $n, $fh, $jobs) = @_;
	my $lane = CrateSync::Steps::Lane->new($node, $kind, $n);

	$fh->autoflush(1);
	print $fh "{}\n";
	while (defined(my $line = <$fh>))
	{
		chomp $line;
		last if $line eq 'end';
		if ($line =~ /^kind (.*)/)
		{
			$lane->finish;
			$lane = CrateSync::Steps::Lane->new($node, $1, $n);
			print $fh "{}\n";
			next;
		}
		my $job = $jobs->[$line];
		print $fh $json->encode($lane->pair($job->{place}, $job->{statement})) . "\n";
	}
	$lane->finish;
}

# ---------------------------------------------------------------------------
# a session: PostgreSQL's own protocol, as several are waited for at once, and many a second used
package CrateSync::Steps::Session;

use strict;
use warnings;

use Time::HiRes qw(sleep time);

sub new
{
	my ($class, $node, $db) = @_;
	my $self = bless { buf => '', result => { rows => [], sql => 'connect' } }, $class;

	if ($node->host =~ m{^/})
	{
		$self->{fh} = IO::Socket::UNIX->new(Peer => $node->host . '/.s.PGSQL.' . $node->port);
	}
	else
	{
		require IO::Socket::INET;
		$self->{fh} = IO::Socket::INET->new(PeerAddr => $node->host, PeerPort => $node->port);
	}
	die "refused: $!\n" unless $self->{fh};
	my $options = join("\0", 'user', scalar getpwuid($<), 'database', $db, 'application_name', 'steps',
		'client_encoding', 'UTF8', '', '');
	$self->put(pack('NN', length($options) + 8, 196608) . $options);
	my $r = $self->result;
	die "$r->{error}{M}\n" if $r->{error};
	return $self;
}

sub put
{
	my ($self, $bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';
	while (length $bytes)
	{
		my $n = syswrite($self->{fh}, $bytes);
		die "connection lost\n" unless $n;
		substr($bytes, 0, $n, '');
	}
}

# takes in what comes in that time; true once the answer is complete
sub ready
{
	my ($self, $seconds) = @_;
	my $until = time() + ($seconds || 0);
	my $r = $self->{result};

	while ($r && !$r->{done})
	{
		while (length $self->{buf} >= 5)
		{
			my ($type, $len) = unpack('aN', $self->{buf});
			last if length $self->{buf} < $len + 1;
			my $body = substr($self->{buf}, 5, $len - 4);
			substr($self->{buf}, 0, $len + 1, '');
			take_in($self, $r, $type, $body);
		}
		last if $r->{done};
		my $left = $until - time();
		my $in = '';
		vec($in, fileno($self->{fh}), 1) = 1;
		return 0 unless select($in, undef, undef, $left > 0 ? $left : 0) > 0;
		sysread($self->{fh}, $self->{buf}, 65536, length $self->{buf}) or die "connection lost\n";
	}
	return 1;
}

sub take_in
{
	my ($self, $r, $type, $body) = @_;

	if ($type eq 'D')
	{
		my @row;
		my $at = 2;
		for (1 .. unpack('n', $body))
		{
			my $n = unpack('N', substr($body, $at, 4));
			$at += 4;
			push @row, $n == 0xffffffff ? undef : substr($body, $at, $n);
			$at += $n if $n != 0xffffffff;
		}
		push @{ $r->{rows} }, \@row;
	}
	elsif ($type eq 'T')
	{
		$r->{rows} = [];
	}
	elsif ($type eq 'E' || $type eq 'N')
	{
		my %f = map { /^(.)(.*)/s ? ($1, $2) : () } split /\0/, $body;
		if ($type eq 'E') { $r->{error} = \%f; }
		else { push @{ $r->{notices} }, \%f; }
	}
	elsif ($type eq 'K')
	{
		$self->{pid} = unpack('N', $body);
	}
	elsif ($type eq 'R')
	{
		die "the server wants a password\n" if unpack('N', $body) != 0;
	}
	elsif ($type eq 'Z')
	{
		$r->{done} = 1;
	}
}

# sends, and does not wait
sub start
{
	my ($self, $sql) = @_;
	$self->{result} = { rows => [], notices => [], sql => $sql };
	$self->put('Q' . pack('N', length($sql) + 5) . $sql . "\0");
}

sub result
{
	my ($self) = @_;
	$self->ready($CrateSync::Steps::patience + 10) or die "no answer: $self->{result}{sql}\n";
	return delete $self->{result};
}

# an error is in the result
sub try
{
	my ($self, $sql) = @_;
	$self->start($sql);
	return $self->result;
}

sub query
{
	my ($self, $sql) = @_;
	my $r = $self->try($sql);
	die "$r->{error}{M}: $sql\n" if $r->{error};
	return $r->{rows};
}

sub value
{
	my ($self, $sql) = @_;
	my $rows = $self->query($sql);
	return @$rows ? $rows->[0][0] : undef;
}

sub close
{
	my ($self) = @_;
	eval { $self->put('X' . pack('N', 4)) };
	CORE::close($self->{fh});
}

# ---------------------------------------------------------------------------
# a lane: one database, one target, one pair after the other
package CrateSync::Steps::Lane;

use strict;
use warnings;

use Time::HiRes qw(sleep time);

my $sqlite_reader = <<'EOC';
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for line in sys.stdin:
    try:
        answer = {"rows": db.execute(json.loads(line)).fetchall()}
    except Exception as e:
        answer = {"error": str(e)}
    print(json.dumps(answer), flush=True)
EOC

sub new
{
	my ($class, $node, $kind, $n) = @_;
	my $self = bless { node => $node, kind => $kind, n => $n, serial => 0, databases => 0 }, $class;

	$self->{standin} = CrateSync::Standin->new if $kind eq 'standin';
	$self->{http} = HTTP::Tiny->new(timeout => $CrateSync::timeout);
	return $self;
}

sub finish
{
	my ($self) = @_;
	$self->leave_database;
	$self->{standin}->stop if $self->{standin};
}

# after a failure nothing of it may be in the next pair's way
sub enter_database
{
	my ($self) = @_;
	my $db = sprintf 'lane%d_%s_%d', $self->{n}, $self->{kind}, ++$self->{databases};
	my $s = CrateSync::Steps::Session->new($self->{node}, 'postgres');

	$self->{url} =
	    $self->{kind} eq 'sqlite'  ? 'sqlite:' . $self->{node}->basedir . "/$db.sqlite"
	  : $self->{kind} eq 'standin' ? $self->{standin}->url
	  :                              $ENV{CRATE_URL};
	$s->query("CREATE DATABASE $db TEMPLATE template0");
	$s->query("ALTER DATABASE $db SET crate_sync.target = '$self->{url}'");
	$s->close;
	$self->{db} = $db;
	$self->{pairs} = 0;
	foreach (qw(ctl ddl writer aux))
	{
		$self->{$_} = CrateSync::Steps::Session->new($self->{node}, $db);
		$self->{$_}->query('SET client_min_messages = warning');
		$self->{$_}->query(sprintf "SET statement_timeout = '%d s'", $CrateSync::Steps::patience);
	}
	$self->{ctl}->query('CREATE EXTENSION crate_sync');
	CrateSync::wait_until('a worker runs',
		sub { $self->{worker} = $self->{ctl}->value('SELECT pid FROM crate_sync.status WHERE target_version IS NOT NULL') })
	  or die "there is no worker\n";
}

sub leave_database
{
	my ($self) = @_;

	foreach (qw(ctl ddl writer aux))
	{
		my $s = delete $self->{$_};
		$s->close if $s;
	}
	if (my $reader = delete $self->{reader})
	{
		CORE::close($reader->{$_}) foreach qw(in out);
		waitpid($reader->{pid}, 0);
	}
	if (my $db = delete $self->{db})
	{
		eval {
			my $s = CrateSync::Steps::Session->new($self->{node}, 'postgres');
			$s->try("DROP DATABASE $db WITH (FORCE)");
			$s->close;
		};
	}
}

# --- the target's side, asked without the extension

sub target_rows
{
	my ($self, $sql) = @_;

	if ($self->{kind} ne 'sqlite')
	{
		my ($url) = split /,/, $self->{url};
		my $r = $self->{http}->post("$url/_sql",
			{ content => $json->encode({ stmt => $sql }), headers => { 'Content-Type' => 'application/json' } });
		die "target: $r->{status} $r->{content}\n" unless $r->{success};
		return $json->decode($r->{content})->{rows};
	}
	my $reader = $self->{reader} ||= $self->start_reader;
	print { $reader->{in} } $json->encode($sql) . "\n";
	my $answer = $json->decode(scalar readline $reader->{out});
	die "target: $answer->{error}\n" if $answer->{error};
	return $answer->{rows};
}

sub start_reader
{
	my ($self) = @_;
	my ($path) = $self->{url} =~ /^sqlite:(.*)/;

	pipe(my $its_in, my $in) or die "pipe: $!";
	pipe(my $out, my $its_out) or die "pipe: $!";
	my $pid = fork();
	die "fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		open STDIN, '<&', $its_in;
		open STDOUT, '>&', $its_out;
		CORE::close($_) foreach $its_in, $its_out, $in, $out;
		exec 'python3', '-c', $sqlite_reader, $path or POSIX::_exit(127);
	}
	CORE::close($_) foreach $its_in, $its_out;
	$in->autoflush(1);
	return { in => $in, out => $out, pid => $pid };
}

sub target_name
{
	my ($self, $schema, $table) = @_;
	return qq{"$schema"."$table"} if $self->{kind} ne 'sqlite';
	return $schema eq 'doc' ? qq{"$table"} : qq{"$schema.$table"};
}

# --- a pair

# what happens to a lane when the server goes down
my $down = qr/connection lost|shutting down|starting up|recovery mode|refused|terminating connection/;

sub pair
{
	my ($self, $place, $statement) = @_;
	my $result = { failures => [], notes => [] };
	my $begin = time();

	for my $try (1 .. 10)
	{
		last if eval {
			$self->leave_database if $self->{db} && $self->{pairs} >= 150;
			$self->enter_database unless $self->{db};
			$self->{pairs}++;
			$result = CrateSync::Steps::Pair->new($self, $place, $statement)->run;
			1;
		};
		my $error = $@;
		print STDERR "# $error" if $ENV{STEP_DEBUG};
		if ($error !~ $down)
		{
			$result->{failures} = ["the pair could not be run: $error"];
			last;
		}
		# this lane's pair may have brought the server down, or another's
		CrateSync::wait_until('the server is back',
			sub { eval { CrateSync::Steps::Session->new($self->{node}, 'postgres')->close; 1 } });
		my $worker = $self->{worker} || 0;
		$self->leave_database;
		if (PostgreSQL::Test::Utils::slurp_file($self->{node}->logfile) =~
			/\(PID $worker\) (was terminated by [^\n]*)/)
		{
			$result->{failures} = ["the worker $1"];
			last;
		}
		$result->{failures} = ["the server goes down again and again, and not by this pair's worker: $error"];
	}
	$self->leave_database if @{ $result->{failures} };
	$result->{seconds} = sprintf '%.2f', time() - $begin;
	return $result;
}

# ---------------------------------------------------------------------------
package CrateSync::Steps::Pair;

use strict;
use warnings;

use Time::HiRes qw(sleep time);

# no text, as tables that need no TOAST are made and dropped in half the time
my $columns = 'k int NOT NULL, j int NOT NULL, id int NOT NULL, v varchar(20), n int, s varchar(20), a int, b int, c varchar(20), '
  . 'd int DEFAULT 1, m %S.mood, p %S.pair';

# eight rows, or so, of one leaf
sub rows_sql
{
	my ($table, $k, $j, $v, $n) = @_;
	return "INSERT INTO $table (k, j, id, v, n, s, a, b, c, m, p) SELECT $k, $j, i, '$v', i, 's' || i, i, "
	  . "100 + i, 'c' || i, 'sad', ROW(i, 2)::%S.pair FROM generate_series(1, $n) i;\n";
}

my @leaves = ([ 1, 1 ], [ 1, 2 ], [ 2, 1 ]);

my $base = <<'EOS';
CREATE SCHEMA %S;
CREATE SCHEMA %S_next;
CREATE SCHEMA %S_else;
CREATE TYPE %S.mood AS ENUM ('ok', 'sad');
CREATE TYPE %S.pair AS (x int, y int);
EOS

# the mirrored table
my %table = (
	tree => <<"EOS" . join('', map { rows_sql('%S.t', @$_, 'mine', 8) } @leaves),
CREATE TABLE %S.t ($columns, PRIMARY KEY (k, j, id)) PARTITION BY LIST (k);
CREATE TABLE %S.t1 PARTITION OF %S.t FOR VALUES IN (1) PARTITION BY LIST (j);
CREATE TABLE %S.t1a PARTITION OF %S.t1 FOR VALUES IN (1);
CREATE TABLE %S.t1b PARTITION OF %S.t1 FOR VALUES IN (2);
CREATE TABLE %S.t2 PARTITION OF %S.t FOR VALUES IN (2);
EOS
	plain => "CREATE TABLE %S.t ($columns, PRIMARY KEY (k, j, id));\n"
	  . join('', map { rows_sql('%S.t', @$_, 'mine', 8) } @leaves));

# f and next.t are another's, with the same keys; s... may become partitions of t
my %spare = (
	f => "CREATE TABLE %S.f ($columns, PRIMARY KEY (k, j, id));\n"
	  . join('', map { rows_sql('%S.f', @$_, 'foreign', 4) } @leaves),
	next => "CREATE TABLE %S_next.t ($columns, PRIMARY KEY (k, j, id));\n"
	  . join('', map { rows_sql('%S_next.t', @$_, 'foreign', 4) } @leaves),
	s1c => "CREATE TABLE %S.s1c ($columns, PRIMARY KEY (k, j, id));\n" . rows_sql('%S.s1c', 1, 3, 'mine', 8),
	s3 => "CREATE TABLE %S.s3 ($columns, PRIMARY KEY (k, j, id));\n" . rows_sql('%S.s3', 3, 1, 'mine', 8),
	s4 => "CREATE TABLE %S.s4 ($columns, PRIMARY KEY (k, j, id)) PARTITION BY LIST (j);\n"
	  . "CREATE TABLE %S.s4a PARTITION OF %S.s4 FOR VALUES IN (1);\n" . rows_sql('%S.s4', 4, 1, 'mine', 8),
	o => "CREATE TABLE %S.o (id int PRIMARY KEY, v varchar(20));\n");

sub columns { return $columns; }

sub new
{
	my ($class, $lane, $place, $statement) = @_;
	my $self = bless {
		lane => $lane, place => $place, statement => $statement,
		S => sprintf('l%d_%d', $lane->{n}, ++$lane->{serial}),
		failures => [], notes => [], held => {}, write_no => 0 }, $class;
	$self->{$_} = $lane->{$_} foreach qw(ctl ddl writer aux);
	return $self;
}

sub fail
{
	my ($self, $what) = @_;
	push @{ $self->{failures} }, $what;
	return;
}

sub sql
{
	my ($self, $sql) = @_;
	$sql =~ s/%S/$self->{S}/g;
	return $sql;
}

# until it is true; false if that takes too long
sub wait_for
{
	my ($self, $cond) = @_;
	my $until = time() + $CrateSync::Steps::patience;
	my $pause = 0.003;

	until ($cond->())
	{
		return 0 if time() > $until;
		# most is over at once, and who asks all the time takes it from the others
		sleep $pause;
		$pause *= 1.4 if $pause < 0.03;
	}
	return 1;
}

# --- holding

sub lock
{
	my ($self, $point) = @_;
	$self->{ctl}->query("SELECT pg_advisory_lock(28531, hashtext('$point'))");
	$self->{held}{$point} = 1;
}

sub unlock
{
	my ($self, @points) = @_;
	foreach my $point (@points ? @points : keys %{ $self->{held} })
	{
		$self->{ctl}->query("SELECT pg_advisory_unlock(28531, hashtext('$point'))");
		delete $self->{held}{$point};
	}
}

sub wait_held
{
	my ($self, $point) = @_;
	my $doing = '';

	$self->wait_for(
		sub {
			$doing = $self->{ctl}->value("SELECT CASE WHEN state = 'active' THEN query ELSE coalesce(state, '') END "
				. "FROM pg_stat_activity WHERE pid = $self->{lane}{worker}");
			return !defined $doing || $doing eq "held at $point";
		}) && defined $doing and return 1;
	$self->fail(defined $doing ? "the worker did not come to \"$point\": $doing" : 'the worker has ended');
	return 0;
}

# --- a writer: changes rows of every leaf there is, whatever the table is called by now

sub write
{
	my ($self) = @_;
	my $i = ++$self->{write_no};
	my $r = $self->{writer}->try(<<"EOQ");
DO \$\$
DECLARE r regclass := (SELECT oid FROM pg_class WHERE oid = $self->{oid});
BEGIN
	IF r IS NULL THEN RETURN; END IF;
	EXECUTE format('UPDATE %s SET n = n + ${i}00 WHERE id = $i', r);
	EXECUTE format('DELETE FROM %s WHERE id = 4 + $i', r);
	EXECUTE format('INSERT INTO %s (k, j, id, v, n) SELECT k, j, 10 + $i, ''mine'', $i FROM %s WHERE id = $i ON CONFLICT DO NOTHING', r, r);
END \$\$
EOQ
	$self->fail("a writer failed: $r->{error}{M}") if $r->{error};
}

# --- statements

# runs one; if it waits for the worker, the worker is let go, and then it has to end
sub execute
{
	my ($self, $session, $sql) = @_;

	$session->start($self->sql($sql));
	while (!$session->ready(0.03))
	{
		$self->let_go_of($session);
	}
	return $session->result;
}

sub let_go_of
{
	my ($self, $session) = @_;
	return unless %{ $self->{held} };
	return unless $self->{ctl}->value("SELECT $self->{lane}{worker} = ANY (pg_blocking_pids($session->{pid}))") eq 't';
	$self->{waited} = 1;
	$self->unlock;
}

sub statement
{
	my ($self, @steps) = @_;
	my $st = $self->{statement};

	foreach my $step (@steps)
	{
		if (ref $step)
		{
			$step->($self);
			next;
		}
		my $r = $self->execute($self->{ddl}, $step);
		next unless $r->{error};
		$self->{ddl}->try('ROLLBACK');
		my $error = "$r->{error}{M}" . ($r->{error}{H} ? " ($r->{error}{H})" : '');
		if (!$st->{may_fail} || $r->{error}{M} !~ $st->{may_fail})
		{
			$self->fail("an error: $error: $step");
			return;
		}
		# what it says is to be done is done, and the statement tried again
		my @todo = statements_in($r->{error}{H} || '');
		$self->fail("an error that does not say what to do: $error") unless @todo;
		foreach my $sql (@todo ? (@todo, $step) : ())
		{
			my $again = $self->execute($self->{ddl}, $sql);
			$self->fail("an error though its hint was followed: $again->{error}{M}: $sql") if $again->{error};
		}
	}
}

# the statements in a hint
sub statements_in
{
	my ($hint) = @_;
	my @found;

	while ($hint =~ /(SELECT crate_sync\.\w+\((?:'(?:[^']|'')*'|[^()'])*\)|ALTER (?:TABLE|EXTENSION) (?:"(?:[^"]|"")*"|[^";])*);?/g)
	{
		push @found, $1;
	}
	return @found;
}

# --- both sides

# what is mirrored: OID, target's schema and table, filter, state, last error, hint, name
sub mirrors
{
	my ($self) = @_;
	return $self->{ctl}->query('SELECT m.relid::oid, m.target_schema, m.target_table, m.row_filter, '
		. "t.state, coalesce(t.last_error, ''), coalesce(t.hint, ''), m.relid "
		. 'FROM crate_sync.mirror m LEFT JOIN crate_sync.tables t ON t.relid = m.relid');
}

# what differs, by a query of one's own on either side; false: nothing
sub difference
{
	my ($self, $m) = @_;
	my ($relid, $schema, $table, $filter) = @$m;
	my $name = $self->{ctl}->value("SELECT oid::regclass FROM pg_class WHERE oid = $relid");
	return 'its relation is gone' unless defined $name;
	my @cols = map { $_->[0] } @{ $self->{ctl}->query(
			"SELECT attname FROM pg_attribute WHERE attrelid = $relid AND attnum > 0 AND NOT attisdropped ORDER BY attnum") };
	my $here = $self->{ctl}->query('SELECT ' . join(', ', map { qq{"$_"::text} } @cols) . " FROM $name"
		. ($filter ? " WHERE $filter" : ''));
	my $there = eval {
		$self->{lane}->target_rows('SELECT ' . join(', ', map { qq{"$_"} } @cols) . ' FROM '
			. $self->{lane}->target_name($schema, $table) . ' LIMIT 100000');
	};
	return "$@" unless $there;
	my $line = sub { join('|', map { defined $_ ? $_ : '-' } @{ $_[0] }) };
	my %here = map { ($line->($_) => 1) } @$here;
	my %there = map { ($line->($_) => 1) } @$there;
	my @missing = grep { !$there{$_} } sort keys %here;
	my @extra = grep { !$here{$_} } sort keys %there;
	return if !@missing && !@extra && @$here == @$there;
	return sprintf '%s: %d rows, in the target %d; not there: %d%s; there and not here: %d%s',
	  $name, scalar @$here, scalar @$there, scalar @missing, (@missing ? " ($missing[0])" : ''),
	  scalar @extra, (@extra ? " ($extra[0])" : '');
}

# another's rows in the table's target, unless the user had the target follow the name
sub foreign_rows
{
	my ($self, $mirrors) = @_;
	my ($schema, $table) = @{ $self->{target} };
	my ($m) = grep { $_->[1] eq $schema && $_->[2] eq $table } @$mirrors;
	$self->{follows} = 1 if $m && $m->[0] != $self->{oid};
	return 0 if $self->{follows};
	my $rows = eval {
		$self->{lane}->target_rows('SELECT count(*) FROM ' . $self->{lane}->target_name($schema, $table)
			. " WHERE v = 'foreign'");
	};
	return $rows ? $rows->[0][0] : 0;
}

# waits until both sides are equal and nothing is said to be wrong, and does what is said to be done
sub settle
{
	my ($self, $when) = @_;
	my $until = time() + $CrateSync::Steps::patience;
	my ($differed_at, $differed, $said_at);
	my $said = '';

	for (;;)
	{
		my $r = $self->{ctl}->try("SELECT crate_sync.wait_for_sync(timeout => '300 ms')");
		return $self->fail("$when: wait_for_sync failed: $r->{error}{M}") if $r->{error};
		my $in_sync = $r->{rows}[0][0] eq 't' && (!$self->{place}{verify} || $self->verified);
		my $mirrors = $self->mirrors;
		my $foreign = $self->foreign_rows($mirrors);
		my @differences = $in_sync ? grep { $_ } map { $self->difference($_) } @$mirrors : ();
		my ($state, $message, $hint) = @{ $self->{ctl}->query(
				"SELECT state, coalesce(message, ''), coalesce(hint, '') FROM crate_sync.status")->[0] };
		my $ok = $state eq 'ok' || !@$mirrors;

		push @differences, "$foreign rows of another relation in the target" if $foreign;
		$self->{foreign} ||= "$when: $differences[-1]" if $foreign;
		if ($in_sync && !@differences && $ok)
		{
			return $self->fail(sprintf '%s: said to be in sync %.2f s before it was: %s', $when,
				time() - $differed_at, $differed)
			  if $differed;
			return;
		}
		if ($in_sync && @differences && $ok)
		{
			$differed_at ||= time();
			$differed ||= $differences[0];
			return $self->fail("$when: said to be in sync, and is not: $differences[0]")
			  if time() - $differed_at > $differs_for;
			sleep 0.02;
			next;
		}

		# what is said to be wrong
		my ($bad) = grep { !defined $_->[4] || $_->[4] !~ /^(?:new|ready|loading|sweeping|verifying)$/ } @$mirrors;
		$hint = $bad->[6] if $bad && $bad->[6] ne '';
		$state .= ": $message" . ($bad ? ": $bad->[5]" : '') . " ($hint)";
		if ($said ne $state)
		{
			$said = $state;
			$said_at = time();
		}
		elsif (time() - $said_at > ($in_sync ? 0 : $hint_after) && !$self->{followed}{$state}++)
		{
			$self->follow($bad, $hint, $state);
		}
		return $self->fail("$when: never in sync: $state" . join('', map { "; $_" } @differences, map { $_->{M} } @{ $r->{notices} }))
		  if time() > $until;
		sleep 0.05 if $bad || $in_sync;
	}
}

# a verify is over, and repaired what it found; else it is asked for once more
sub verified
{
	my ($self) = @_;
	my ($done, $ok) = @{ $self->{ctl}->query('SELECT bool_and(s.verify_done >= m.verify_no), bool_and(t.last_verify_ok) '
			. 'FROM crate_sync.mirror m JOIN crate_sync.mirror_state s USING (mirror_id) JOIN crate_sync.tables t ON t.relid = m.relid '
			. 'WHERE m.verify_no > 0')->[0] };
	return 0 if defined $done && $done ne 't';
	$self->{ctl}->query('SELECT crate_sync.verify(repair => true)')
	  if defined $ok && $ok ne 't' && !$self->{verified_again}++;
	return !defined $ok || $ok eq 't' || $self->{verified_again} > 1;
}

# does what a hint says
sub follow
{
	my ($self, $m, $hint, $state) = @_;
	my $st = $self->{statement};
	my @todo = grep { !/'schema\.table'/ } statements_in($hint);	# that one is an example

	if ($st->{remedy} && $state =~ $st->{remedy}[0])
	{
		@todo = ($st->{remedy}[1]);
	}
	# either of two ways
	@todo = $todo[ $self->{lane}{serial} % @todo ] if @todo > 1 && $hint =~ / or /;
	push @todo, "SELECT crate_sync.add_table($1)"
	  if $hint =~ /then add_table/ && @todo && $todo[0] =~ /remove_table\((.*)\)/;
	if (!@todo && $m && $hint =~ /drop it there/)
	{
		eval { $self->{lane}->target_rows('DROP TABLE ' . $self->{lane}->target_name($m->[1], $m->[2])) };
	}
	foreach my $sql (@todo)
	{
		my $r = $self->{aux}->try($self->sql($sql));
		$self->fail("what is said to be done of \"$state\" fails: $r->{error}{M}: $sql") if $r->{error};
	}
}

# --- all of it

sub run
{
	my ($self) = @_;

	if (!eval { $self->steps; $self->clean_up unless @{ $self->{failures} }; 1 })
	{
		my $error = $@;
		die $error if $error =~ $down;
		$self->fail("it ended: $error");
	}
	if (@{ $self->{failures} })
	{
		eval {
			$self->fail('status: ' . join(' | ', map { defined $_ ? $_ : '' } @{ $self->{ctl}->query(
							'SELECT state, message, hint, last_error FROM crate_sync.status')->[0] }));
		};
	}
	return { failures => $self->{failures}, notes => $self->{notes}, waited => $self->{waited} ? 1 : 0 };
}

sub steps
{
	my ($self) = @_;
	my ($place, $st, $ctl, $S) = @$self{qw(place statement ctl S)};
	my $add = $self->sql("SELECT crate_sync.add_table('%S.t'" . ($st->{add} ? ", $st->{add}" : '') . ')');

	# the table, mirrored and in sync if not said otherwise
	$ctl->query($self->sql($base . $table{ $st->{table} || 'tree' }
				. join('', map { $spare{$_} } 'o', @{ $st->{spare} || [] }) . ($st->{setup} || '')));
	$self->{oid} = $ctl->value("SELECT '$S.t'::regclass::oid");
	$self->{target} = [ $S, 't' ];
	if (!$place->{new})
	{
		$ctl->query($add);
		$self->wait_for(
			sub {
				my $synced = $ctl->value("SELECT crate_sync.wait_for_sync(timeout => '300 ms')");
				return $synced eq 't' unless $st->{parked};
				return $ctl->value("SELECT count(*) FROM crate_sync.tables WHERE state = 'ready' AND n_failed_rows > 0");
			}) or return $self->fail('the first load does not end');
	}
	if ($place->{damage})
	{
		my $t = $self->{lane}->target_name($S, 't');
		$self->{lane}->target_rows($_)
		  foreach "UPDATE $t SET s = 'damaged' WHERE id = 8", "DELETE FROM $t WHERE id = 3 AND j = 1",
		  "INSERT INTO $t (k, j, id, v) VALUES (1, 1, 99, 'damaged')";
		$self->{lane}->target_rows("REFRESH TABLE $t") if $self->{lane}{kind} ne 'sqlite';
	}

	$ctl->query($self->sql($_)) foreach @{ $place->{before} || [] };

	# what is sent and replaced later counts, too
	$self->{lane}{standin}->fault({ args => '"foreign"', times => -1 }) if $self->{lane}{standin};

	# the worker is brought to the place
	my ($first, @later) = @{ $place->{hold} };
	$self->lock($first);
	foreach my $do (@{ $place->{go} })
	{
		if    ($do eq 'write') { $self->write; }
		elsif ($do eq 'add')   { $ctl->query($add); }
		else                   { $ctl->query($self->sql($do)); }
	}
	$self->wait_held($first) or return;
	foreach my $point (@later)
	{
		$self->lock($point);
		$self->unlock($first);
		$self->wait_held($point) or return;
		$first = $point;
	}

	# beside it
	$self->write;
	$self->statement(@{ $st->{sql} });
	$self->write unless $st->{locks};
	$self->unlock;
	$self->statement(@{ $st->{after} || [] });
	$self->write;
	push @{ $self->{finally} }, @{ $place->{after} || [] };
	# nobody else will mend what was changed there by hand
	push @{ $self->{finally} }, q{SELECT crate_sync.resync('%S.t')} if $place->{damage} && $st->{cancels};
	$ctl->query($self->sql($_)) foreach @{ $self->{finally} };

	$self->settle('at the end');
	if (!@{ $self->{failures} })
	{
		$self->write;
		$self->settle('after one more change');
	}
	my $sent = $self->{lane}{standin} ? $self->{lane}{standin}->control->{faults}[0]{hits} : 0;
	$self->{foreign} ||= "$sent requests had rows of another relation" if $sent && !$self->{follows};
	$self->fail($self->{foreign}) if $self->{foreign};
	my $worker = $ctl->value('SELECT pid FROM crate_sync.status');
	$self->fail('the worker has ended, and another one began')
	  unless defined $worker && $worker == $self->{lane}{worker};
}

sub clean_up
{
	my ($self) = @_;
	my $ctl = $self->{ctl};

	$ctl->query('SELECT crate_sync.remove_table(relid, drop_target => true) FROM crate_sync.mirror');
	$ctl->query($self->sql('DROP SCHEMA IF EXISTS %S, %S_next, %S_else, %S_old CASCADE'));
	$self->wait_for(
		sub {
			$ctl->value('SELECT (SELECT count(*) FROM crate_sync.mirror_state) + (SELECT count(*) FROM crate_sync.removal)') == 0;
		}) or $self->fail('what was removed stays');
}

1;
