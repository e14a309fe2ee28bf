# shellcheck shell=bash
#
# What test/run, test/demo and test/bench/run share: the packages, the build, a
# private PostgreSQL and the choice of a target.  To be sourced by bash.
#
#	need_packages [tap|clang]	installs what is missing, or says how
#	build_extension			builds, and installs into a private tree: PG_BIN; with
#							SANITIZE=DIR under AddressSanitizer and UBSan, whose
#							reports go there
#	pg_start [SETTING=VALUE ...]	private server: PG_SOCKET, PG_CONNINFO
#	pg_stop
#	crate_find				the target: TARGET_KIND, TARGET_URL, TARGET_WHY
#
# Everything lives in WORK, a directory made here and removed at exit unless
# KEEP=1.  No server, cluster or file of the system's PostgreSQL is touched:
# PostgreSQL finds its libraries and its share directory relative to its own
# binaries, so that a copy of these, with links to the rest, is an installation
# of its own, into which `make install` needs no right.

TOP=${TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
WORK=${WORK:-}
KEEP=${KEEP:-0}
CRATE_PID=${CRATE_PID:-}

setup_say()
{
	printf '%s\n' "$*" >&2
}

setup_die()
{
	printf '%s: %s\n' "$(basename "$0")" "$*" >&2
	exit 1
}

# ---------------------------------------------------------------------------
# packages

# sets PG_CONFIG and PG_MAJOR to an installation with server and headers, or
# PG_MAJOR alone to one that lacks something; both empty: none at all
pg_find()
{
	local dir best=''

	if [ -n "${PG_CONFIG:-}" ]; then
		PG_CONFIG=$(command -v "$PG_CONFIG") || setup_die "PG_CONFIG=$PG_CONFIG is no program"
		PG_MAJOR=$("$PG_CONFIG" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
		return
	fi
	PG_MAJOR=''
	for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V); do
		[ -x "$dir/postgres" ] || continue
		PG_MAJOR=$(basename "$(dirname "$dir")")
		if [ -x "$dir/pg_config" ] && pg_complete "$dir/pg_config"; then
			best=$dir/pg_config
		fi
	done
	if [ -z "$best" ] && [ -z "$PG_MAJOR" ] && command -v pg_config >/dev/null &&
		pg_complete "$(command -v pg_config)"; then
		best=$(command -v pg_config)
	fi
	if [ -n "$best" ]; then
		PG_CONFIG=$best
		PG_MAJOR=$("$best" --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
	fi
}

pg_complete()
{
	[ -x "$("$1" --bindir)/postgres" ] && [ -x "$("$1" --bindir)/initdb" ] &&
		[ -f "$("$1" --pgxs)" ] && [ -f "$("$1" --includedir-server)/postgres.h" ]
}

have_header()
{
	[ -f "/usr/include/$1" ] || [ -f "/usr/local/include/$1" ] ||
		compgen -G "/usr/include/*-linux-*/$1" >/dev/null
}

# prints the missing packages; $1: tap, when the TAP tests will run; clang, for the fuzzers
missing_packages()
{
	local pg=${PG_MAJOR:-}

	if [ -z "${PG_CONFIG:-}" ] || ! pg_complete "$PG_CONFIG"; then
		if [ -z "$pg" ]; then
			pg=$(apt-cache depends postgresql 2>/dev/null |
				sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1)
		fi
		if [ -n "$pg" ]; then
			echo "postgresql-$pg postgresql-server-dev-$pg"
		else
			echo "postgresql postgresql-server-dev-all"
		fi
	fi
	command -v gcc >/dev/null || [ -n "${CC:-}" ] || echo gcc
	have_header stdio.h || echo libc6-dev
	command -v make >/dev/null || echo make
	have_header curl/curl.h || echo libcurl4-openssl-dev
	have_header sqlite3.h || echo libsqlite3-dev
	command -v python3 >/dev/null || echo python3
	command -v curl >/dev/null || echo curl
	command -v ps >/dev/null || echo procps
	command -v setpriv >/dev/null || echo util-linux
	command -v openssl >/dev/null || echo openssl
	if [ "${1:-}" = tap ]; then
		command -v prove >/dev/null || echo perl
		perl -MIPC::Run -e 1 2>/dev/null || echo libipc-run-perl
	fi
	if [ "${1:-}" = clang ]; then
		command -v "${CLANG:-clang}" >/dev/null || echo clang
		# where clang brings no runtime along
		compgen -G "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer_no_main-*" >/dev/null ||
			compgen -G "/usr/lib/clang/*/lib/linux/libclang_rt.fuzzer_no_main-*" >/dev/null || {
				local version
				version=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1)
				echo "libclang-rt-$version-dev"
			}
	fi
}

need_packages()
{
	local missing

	pg_find
	missing=$(missing_packages "$@" | tr '\n' ' ')
	if [ -n "${missing// /}" ]; then
		command -v apt-get >/dev/null ||
			setup_die "missing, and there is no apt-get here to install it: $missing"
		if [ "$(id -u)" != 0 ]; then
			setup_say "Something is missing.  As root:"
			setup_say "    apt-get update && apt-get install -y --no-install-recommends $missing"
			exit 1
		fi
		setup_say "installing $missing"
		install_packages "$@" || exit 1
		unset PG_MAJOR
		pg_find
		missing=$(missing_packages "$@" | tr '\n' ' ')
		[ -z "${missing// /}" ] || setup_die "still missing after the installation: $missing"
	fi
	[ -n "${PG_CONFIG:-}" ] || setup_die "no PostgreSQL with its headers was found; PG_CONFIG may name its pg_config"
}

install_packages()
(
	export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C.UTF-8
	local log conf=/etc/postgresql-common/createcluster.d/zz-crate-sync.conf
	local policy=/usr/sbin/policy-rc.d made_policy=''

	log=$(mktemp)
	# Debian's server package makes a cluster and starts all there are: neither is ours to do
	trap 'rm -f "$conf" "$log"; [ -z "$made_policy" ] || rm -f "$policy"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	mkdir -p "$(dirname "$conf")"
	echo "create_main_cluster = false" > "$conf"
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' > $policy
		chmod 755 $policy
		made_policy=1
	fi

	apt-get -qq update >"$log" 2>&1 || { cat "$log" >&2; setup_die "apt-get update failed"; }
	# now that the lists are there, a default version may be known
	set -- $(missing_packages "$@")
	apt-get -s install --no-install-recommends "$@" >"$log" 2>&1 ||
		{ cat "$log" >&2; setup_die "these packages cannot be installed: $*"; }
	if grep -Eq '^Inst postgresql-[0-9]+ \[' "$log"; then
		setup_die "this would upgrade a PostgreSQL that is installed; do it yourself: apt-get install --no-install-recommends $*"
	fi
	apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >"$log" 2>&1 </dev/null ||
		{ tail -n 30 "$log" >&2; setup_die "apt-get install failed"; }
)

# ---------------------------------------------------------------------------
# the place where everything lives

# makes WORK, owned by RUN_USER: who runs the servers, as none of them runs as root
setup_work()
{
	local base

	[ -z "$WORK" ] || return 0
	RUN_USER=$(id -un)
	if [ "$(id -u)" = 0 ]; then
		RUN_USER=nobody
		if getent passwd postgres >/dev/null; then RUN_USER=postgres; fi
	fi
	# short, for a socket's path is limited; programs must be allowed to run from it
	for base in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
		[ ${#base} -le 60 ] && WORK=$(mktemp -d "$base/crate_sync.XXXXXX" 2>/dev/null) || continue
		printf '#!/bin/sh\nexit 0\n' > "$WORK/x" && chmod 755 "$WORK/x"
		if "$WORK/x" 2>/dev/null; then
			rm -f "$WORK/x"
			break
		fi
		rm -rf "$WORK"
		WORK=''
	done
	[ -n "$WORK" ] || setup_die "no directory to work in: neither TMPDIR, /tmp nor /var/tmp lets programs run"
	mkdir "$WORK/log"
	chmod 755 "$WORK"
	[ "$(id -u)" != 0 ] || chown -R "$RUN_USER:" "$WORK"
	trap setup_cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

setup_cleanup()
{
	local status=$?

	trap - EXIT
	[ -n "$WORK" ] || return $status
	if [ "$KEEP" = 1 ]; then
		return $status
	fi
	pg_stop
	crate_stop
	rm -rf "$WORK"
	return $status
}

# as_user USER COMMAND...: without root, as whoever runs this
as_user()
{
	local user=$1

	shift
	if [ "$(id -u)" = 0 ] && [ "$user" != root ]; then
		(cd "$WORK" && exec env HOME="$WORK" setpriv --reuid="$user" --regid="$(id -g "$user")" \
			--init-groups -- "$@")
	else
		(cd "$WORK" && exec "$@")
	fi
}

# ---------------------------------------------------------------------------
# build

build_extension()
{
	local src=$TOP log tree bindir

	setup_work
	log=$WORK/log/build.log
	if [ ! -w "$TOP" ] || [ -n "${SANITIZE:-}" ]; then
		src=$WORK/src
		mkdir -p "$src"
		(cd "$TOP" && cp -R Makefile ./*.c ./*.control ./*.sql src sql "$src/")
		find "$src" -name '*.o' -delete
	fi
	BUILD_DIR=$src
	# PostgreSQL's makefiles hand COPT to compiler and linker
	[ -z "${SANITIZE:-}" ] || export COPT="-fsanitize=address,undefined -fno-sanitize-recover=undefined \
-fno-omit-frame-pointer -include $TOP/test/lib/sanitize.h"
	# objects made for another major version look up to date to make; they name its headers
	if [ -f "$src/crate_sync.o" ] && ! grep -aFq "$("$PG_CONFIG" --includedir-server)" "$src/crate_sync.o"; then
		make -s -C "$src" PG_CONFIG="$PG_CONFIG" with_llvm=no clean >"$log" 2>&1 || :
	fi
	make -s -j"$(nproc)" -C "$src" PG_CONFIG="$PG_CONFIG" with_llvm=no >"$log" 2>&1 ||
		{ tail -n 40 "$log" >&2; setup_die "the build failed"; }

	# the private tree: binaries copied, everything else linked
	tree=$WORK/pg
	if [ ! -d "$tree" ]; then
		bindir=$("$PG_CONFIG" --bindir)
		mkdir -p "$tree$bindir" "$tree$("$PG_CONFIG" --pkglibdir)" "$tree$("$PG_CONFIG" --sharedir)"
		cp -L "$bindir"/* "$tree$bindir/"
		[ -x "$tree$bindir/pg_config" ] || cp -L "$PG_CONFIG" "$tree$bindir/pg_config"
		cp -as "$("$PG_CONFIG" --pkglibdir)/." "$tree$("$PG_CONFIG" --pkglibdir)/"
		cp -as "$("$PG_CONFIG" --sharedir)/." "$tree$("$PG_CONFIG" --sharedir)/"
		find "$tree" -name 'crate_sync*' -exec rm -rf {} +
		[ -z "${SANITIZE:-}" ] || sanitize_server "$tree$bindir/postgres"
	fi
	PG_BIN=$tree$("$PG_CONFIG" --bindir)
	# not by the copy's pg_config: some packages have one that names fixed directories
	make -s -C "$src" PG_CONFIG="$PG_CONFIG" DESTDIR="$tree" with_llvm=no install >>"$log" 2>&1 ||
		{ tail -n 40 "$log" >&2; setup_die "make install failed"; }
}

# sanitize_server PROGRAM: puts a script in its place that starts it with the sanitizers
sanitize_server()
{
	local asan preload

	asan=$("${CC:-gcc}" -print-file-name=libasan.so)
	[ -f "$asan" ] || setup_die "${CC:-gcc} has no libasan.so"
	preload=$(asan_preload "$asan") || setup_die "the sanitizer cannot be preloaded"
	mkdir -p "$SANITIZE"
	[ "$(id -u)" != 0 ] || chown "$RUN_USER:" "$SANITIZE"
	mv "$1" "$1.real"
	cat > "$1" <<-EOC
		#!/usr/bin/env bash
		export LD_PRELOAD=$preload
		export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=1:log_path=$SANITIZE/report
		export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1:log_path=$SANITIZE/report
		exec -a "\$0" "\$0.real" "\$@"
	EOC
	chmod 755 "$1"
}

# asan_preload RUNTIME: what LD_PRELOAD has to be for a server that loads what was
# built with AddressSanitizer
asan_preload()
{
	"${CC:-gcc}" -shared -fPIC -Wl,-z,initfirst -o "$WORK/asan_first.so" "$TOP/test/lib/asan_first.c" >&2 &&
		echo "$1:$WORK/asan_first.so"
}

# ---------------------------------------------------------------------------
# PostgreSQL

# arguments: settings as they stand in postgresql.conf, without shared_preload_libraries
pg_start()
{
	local setting

	PG_DATA=$WORK/data
	PG_SOCKET=$WORK/sock
	PG_PORT=${PG_PORT:-54321}	# names the socket, nothing else: no TCP
	PG_CONNINFO="host=$PG_SOCKET port=$PG_PORT user=postgres dbname=postgres"
	if [ ! -d "$PG_DATA" ]; then
		as_user "$RUN_USER" mkdir -m 700 "$PG_SOCKET"
		as_user "$RUN_USER" "$PG_BIN/initdb" -D "$PG_DATA" -U postgres -A trust -E UTF8 \
			--locale=C.UTF-8 >"$WORK/log/initdb.log" 2>&1 ||
			{ cat "$WORK/log/initdb.log" >&2; setup_die "initdb failed"; }
		{
			echo "listen_addresses = ''"
			echo "unix_socket_directories = '$PG_SOCKET'"
			echo "port = $PG_PORT"
			echo "shared_preload_libraries = 'crate_sync'"
			echo "log_line_prefix = '%m [%p] %b %q%u@%d '"
			for setting; do
				echo "$setting"
			done
		} >> "$PG_DATA/postgresql.conf"
	fi
	as_user "$RUN_USER" "$PG_BIN/pg_ctl" -D "$PG_DATA" -l "$WORK/log/postgresql.log" -w -t 60 -s start \
		>"$WORK/log/start.log" 2>&1 </dev/null ||
		{ cat "$WORK/log/start.log" >&2; tail -n 20 "$WORK/log/postgresql.log" >&2; setup_die "PostgreSQL did not start"; }
}

pg_stop()
{
	[ -n "${PG_DATA:-}" ] && [ -f "$PG_DATA/postmaster.pid" ] || return 0
	as_user "$RUN_USER" "$PG_BIN/pg_ctl" -D "$PG_DATA" -w -t 60 -s -m fast stop >/dev/null 2>&1 ||
		as_user "$RUN_USER" "$PG_BIN/pg_ctl" -D "$PG_DATA" -w -t 20 -s -m immediate stop >/dev/null 2>&1 || :
}

# ---------------------------------------------------------------------------
# target

# arguments: a target that was asked for, or nothing
# target_answers URL: whether somebody listens at one of its hosts
target_answers()
{
	python3 - "$1" <<-'EOP'
		import socket, sys, urllib.parse
		scheme, _, hosts = sys.argv[1].partition('://')
		for host in hosts.rstrip('/').split(','):
		    u = urllib.parse.urlsplit('//' + host)
		    try:
		        socket.create_connection((u.hostname, u.port or 4200), 5).close()
		        sys.exit(0)
		    except OSError as e:
		        print('%s: %s' % (host, e), file=sys.stderr)
		sys.exit(1)
	EOP
}

crate_find()
{
	local asked=${1:-}

	setup_work
	if [ -n "$asked" ]; then
		TARGET_URL=$asked
		TARGET_WHY='as asked for'
	elif [ -n "${CRATE_URL:-}" ]; then
		TARGET_URL=$CRATE_URL
		TARGET_WHY='CRATE_URL names it'
	elif command -v crate >/dev/null; then
		TARGET_WHY="CRATE_URL is not set; $(command -v crate) is on PATH and was started privately"
		crate_start
		return
	else
		mkdir -p "$WORK/target"
		[ "$(id -u)" != 0 ] || chown "$RUN_USER:" "$WORK/target"
		TARGET_URL=sqlite:$WORK/target/shop.db
		TARGET_WHY='CRATE_URL is not set and there is no crate on PATH: the embedded SQLite target'
	fi
	case $TARGET_URL in
		http://* | https://*) TARGET_KIND=crate ;;
		sqlite:/*) TARGET_KIND=sqlite ;;
		sqlite)
			mkdir -p "$WORK/target"
			[ "$(id -u)" != 0 ] || chown "$RUN_USER:" "$WORK/target"
			TARGET_URL=sqlite:$WORK/target/shop.db
			TARGET_KIND=sqlite
			;;
		crate)
			command -v crate >/dev/null || setup_die "there is no crate on PATH"
			TARGET_WHY="as asked for; $(command -v crate) was started privately"
			crate_start
			;;
		*) setup_die "a target is http://host:4200, https://..., sqlite:/path/file.db, sqlite or crate, not \"$TARGET_URL\"" ;;
	esac
}

# a CrateDB of our own on free loopback ports: TARGET_URL, CRATE_PID (a process group)
crate_start()
{
	local user=$RUN_USER ports dir=$WORK/crate i

	[ "$(id -u)" != 0 ] || ! getent passwd crate >/dev/null || user=crate
	mkdir -p "$dir/data" "$dir/logs"
	[ "$(id -u)" != 0 ] || chown -R "$user:" "$dir"
	read -r -a ports < <(python3 -c '
import socket
s = [socket.socket() for i in range(3)]
for x in s: x.bind(("127.0.0.1", 0))
print(*[x.getsockname()[1] for x in s])')
	TARGET_KIND=crate
	TARGET_URL=http://127.0.0.1:${ports[0]}
	# a process group of its own, named by a file, as the launcher may start others
	as_user "$user" env CRATE_HEAP_SIZE="${CRATE_HEAP_SIZE:-1g}" \
		setsid sh -c 'echo $$ > "$0"; exec crate "$@"' "$dir/pid" \
		-Cpath.data="$dir/data" -Cpath.logs="$dir/logs" -Cnetwork.host=127.0.0.1 \
		-Chttp.port="${ports[0]}" -Ctransport.tcp.port="${ports[1]}" -Cpsql.port="${ports[2]}" \
		-Cdiscovery.type=single-node -Cnode.name=demo -Cauth.host_based.enabled=false \
		-Ccluster.routing.allocation.disk.threshold_enabled=false \
		>"$WORK/log/crate.log" 2>&1 </dev/null &
	for ((i = 0; i < 600; i++)); do
		CRATE_PID=$(cat "$dir/pid" 2>/dev/null) || :
		if curl -sf -m 2 -o /dev/null -H 'Content-Type: application/json' \
			-d '{"stmt":"SELECT 1 FROM sys.cluster"}' "$TARGET_URL/_sql"; then
			return 0
		fi
		[ -z "$CRATE_PID" ] || kill -0 "$CRATE_PID" 2>/dev/null || break
		sleep 0.2
	done
	tail -n 20 "$WORK/log/crate.log" >&2
	setup_die "crate did not start within two minutes"
}

crate_stop()
{
	local i

	[ -n "$CRATE_PID" ] || return 0
	kill -CONT -- "-$CRATE_PID" 2>/dev/null || :
	kill -TERM -- "-$CRATE_PID" 2>/dev/null || return 0
	for ((i = 0; i < 150; i++)); do
		kill -0 -- "-$CRATE_PID" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL -- "-$CRATE_PID" 2>/dev/null || :
	CRATE_PID=''
}

# setup_stop DIR: ends what a run with KEEP=1 left in DIR, and removes it
setup_stop()
{
	local pid

	WORK=$(cd "$1" 2>/dev/null && pwd) || setup_die "there is no directory $1"
	[[ $WORK == */crate_sync.?????? ]] && [ -d "$WORK/pg" ] && [ -d "$WORK/data" ] ||
		setup_die "$1 was not made by this command"
	RUN_USER=$(stat -c %U "$WORK/data")
	[ "$(id -u)" = 0 ] || [ "$RUN_USER" = "$(id -un)" ] || setup_die "only $RUN_USER or root can stop that"
	PG_DATA=$WORK/data
	PG_BIN=$(dirname "$(find "$WORK/pg" -path '*/bin/pg_ctl' | head -n 1)")
	pg_stop
	pid=$(cat "$WORK/crate/pid" 2>/dev/null) || :
	# a process id may have been given to another program since
	if [[ $pid =~ ^[0-9]+$ ]] && tr '\0' '\n' < "/proc/$pid/cmdline" 2>/dev/null |
		grep -Fxq -- "-Cpath.data=$WORK/crate/data"; then
		CRATE_PID=$pid
		crate_stop
	fi
	rm -rf "$WORK"
}
