# What the tests of faults share: a target that freezes, a disk that is full, another server with
# the same database, writers that wait for each other.
package CrateSync::Faults;

use strict;
use warnings;

use CrateSync;
use File::Basename qw(dirname);
use Test::More;
use Time::HiRes qw(sleep time);

# ---------------------------------------------------------------------------
# a target that can be frozen: the stand-in by SIGSTOP, an SQLite file by another program's lock,
# a CrateDB, as others use it too, by what forwards to it

my $forwarder = <<'EOP';
import os, socket, sys, threading
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen(50)
with open(sys.argv[3] + ".new", "w") as f:
    f.write(str(listener.getsockname()[1]))
os.rename(sys.argv[3] + ".new", sys.argv[3])
def pump(a, b):
    try:
        while True:
            data = a.recv(65536)
            if not data:
                break
            b.sendall(data)
    except OSError:
        pass
    for s in (a, b):
        try:
            s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
while True:
    client, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        server = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        client.close()
        continue
    for pair in ((client, server), (server, client)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
EOP

my $locker = <<'EOP';
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
open(sys.argv[2], "w").close()
time.sleep(600)
EOP

# like CrateSync::on_targets, with targets that freeze() and thaw() know how to treat
sub on_freezable
{
	my ($node, $code, %o) = @_;

	foreach my $kind (@{ delete $o{kinds} || [ CrateSync::kinds() ] })
	{
		my %url;
		my $forward;

		if ($kind eq 'crate')
		{
			my $ports = PostgreSQL::Test::Utils::tempdir() . '/port';
			my ($host, $port) = $ENV{CRATE_URL} =~ m{^http://([^:/,]+):(\d+)};

			if (!$port)
			{
				CrateSync::skipped("a real CrateDB that freezes: only http://host:port can be forwarded to");
				next;
			}
			$forward = IPC::Run::start([ 'python3', '-c', $forwarder, $host, $port, $ports ], '<', \undef);
			CrateSync::wait_until('the forwarder listens', sub { -s $ports }, 60);
			%url = (url => 'http://127.0.0.1:' . PostgreSQL::Test::Utils::slurp_file($ports));
		}
		CrateSync::on_targets($node,
			sub { $_[0]->{forward} = $forward; $code->(@_); thaw($_[0]) if $_[0]->{frozen} },
			%o, %url, kinds => [$kind]);
		$forward->kill_kill if $forward;
	}
}

sub target_pid
{
	my ($m) = @_;
	return $m->{standin} ? $m->{standin}{pid} : $m->{forward}{KIDS}[0]{PID};
}

sub freeze
{
	my ($m) = @_;
	$m->{frozen} = 1;
	if ($m->kind eq 'sqlite')
	{
		my ($path) = $m->{url} =~ /^sqlite:(.*)/;
		my $done = "$path.locked";
		unlink $done;
		$m->{locker} = IPC::Run::start([ 'python3', '-c', $locker, $path, $done ], '<', \undef);
		CrateSync::wait_until('locked', sub { -e $done });
		return;
	}
	kill 'STOP', target_pid($m);
}

sub thaw
{
	my ($m) = @_;
	delete $m->{frozen};
	if ($m->kind eq 'sqlite')
	{
		(delete $m->{locker})->kill_kill;
		return;
	}
	kill 'CONT', target_pid($m);
}

# ---------------------------------------------------------------------------
# servers

sub new_node
{
	my ($name) = @_;
	return PostgreSQL::Test::Cluster->can('new')
	  ? PostgreSQL::Test::Cluster->new($name)
	  : PostgresNode->get_new_node($name);
}

# the same database on another server
sub beside
{
	my ($m, $node) = @_;
	my %copy = (%$m, node => $node);
	delete $copy{standin};
	return bless \%copy, ref $m;
}

# kill -9 of the postmaster alone: what is left of its server has to find out by itself
sub kill_postmaster
{
	my ($node) = @_;
	my @children = split /\n/,
	  $node->safe_psql('postgres', 'SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()');
	$node->kill9;
	# they hold its shared memory until they have noticed
	return CrateSync::wait_until('its children are gone', sub { !grep { kill 0, $_ } @children });
}

# ---------------------------------------------------------------------------
# a disk that is full: a library before the server's own writes says so while a file is there that
# names what is full, for any file whose path has that name and that would grow

my $shim = <<'EOC';
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int
full(int fd, off_t end)
{
	const char *flag = getenv("DISK_FULL_FLAG");
	char		what[1024];
	char		link[64];
	char		path[4096];
	struct stat st;
	ssize_t		n;
	int			f = flag ? open(flag, O_RDONLY) : -1;

	if (f < 0)
		return 0;
	n = read(f, what, sizeof(what) - 1);
	close(f);
	if (n <= 0)
		return 0;
	what[n] = '\0';
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	if (n <= 0)
		return 0;
	path[n] = '\0';
	return strstr(path, what) != NULL && fstat(fd, &st) == 0 && end > st.st_size;
}

#define REFUSE(end) \
	if (full(fd, end)) \
	{ \
		errno = ENOSPC; \
		return -1; \
	}

#define PWRITE(name) \
ssize_t \
name(int fd, const void *buf, size_t n, off_t offset) \
{ \
	ssize_t		(*real) (int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, #name); \
	REFUSE(offset + (off_t) n) \
	return real(fd, buf, n, offset); \
}

#define PWRITEV(name) \
ssize_t \
name(int fd, const struct iovec *iov, int iovcnt, off_t offset) \
{ \
	ssize_t		(*real) (int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, #name); \
	off_t		end = offset; \
	for (int i = 0; i < iovcnt; i++) \
		end += iov[i].iov_len; \
	REFUSE(end) \
	return real(fd, iov, iovcnt, offset); \
}

#define FALLOCATE(name) \
int \
name(int fd, off_t offset, off_t n) \
{ \
	int			(*real) (int, off_t, off_t) = dlsym(RTLD_NEXT, #name); \
	if (full(fd, offset + n)) \
		return ENOSPC; \
	return real(fd, offset, n); \
}

PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)
FALLOCATE(posix_fallocate)
FALLOCATE(posix_fallocate64)
EOC

# -> what tells of it; undef if there is no compiler.  Servers started with disk_env() are subject to it.
sub small_disk
{
	my $dir = PostgreSQL::Test::Utils::tempdir();

	open my $f, '>', "$dir/shim.c" or die "$dir/shim.c: $!";
	print $f $shim;
	close $f;
	my ($cc) = grep { !system("command -v $_ >/dev/null 2>&1") } qw(cc gcc clang);
	return undef unless $cc && !system("$cc -O1 -fPIC -shared -o $dir/shim.so $dir/shim.c -ldl");
	return { lib => "$dir/shim.so", flag => "$dir/full" };
}

sub disk_env
{
	my ($disk) = @_;
	return (LD_PRELOAD => $disk->{lib}, DISK_FULL_FLAG => $disk->{flag});
}

sub disk_full
{
	my ($disk, $what) = @_;
	open my $f, '>', "$disk->{flag}.new" or die "$disk->{flag}: $!";
	print $f $what;
	close $f;
	rename "$disk->{flag}.new", $disk->{flag};
}

sub disk_has_room
{
	my ($disk) = @_;
	unlink $disk->{flag};
}

# ---------------------------------------------------------------------------
# sessions that wait for each other: "SELECT step(3)" goes on once step_to($m, 3) was called

sub steps
{
	my ($m) = @_;
	$m->sql(<<'EOQ');
CREATE TABLE IF NOT EXISTS steps (n int, reached boolean DEFAULT false);
TRUNCATE steps;
CREATE OR REPLACE FUNCTION step(int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	WHILE NOT EXISTS (SELECT FROM steps WHERE n >= $1) LOOP
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
EOQ
}

sub step_to
{
	my ($m, $n) = @_;
	$m->sql("INSERT INTO steps VALUES ($n)");
}

# a session is in "SELECT step(n)"
sub wait_step
{
	my ($m, $n, $sessions) = @_;
	return $m->poll("SELECT count(*) = " . ($sessions || 1)
		. " FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT step($n)%' AND datname = current_database()");
}

1;
