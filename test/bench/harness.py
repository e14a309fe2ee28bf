"""What the benchmarks stand on: a private server, a target, the sink, the clock.

Python's standard library only.  The servers come from test/lib/setup.sh, held
by one bash process that cleans up when its standard input ends, however this
process ends.
"""

import http.client
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))

PG_SETTINGS = [
    "shared_buffers = 1GB",
    "max_wal_size = 8GB",
    "min_wal_size = 2GB",
    "checkpoint_timeout = 30min",
    "wal_level = replica",
    "max_connections = 40",
    "maintenance_work_mem = 256MB",
    "autovacuum = off",             # runs when the bench says so, not in between
    "max_parallel_workers_per_gather = 0",
    "max_parallel_maintenance_workers = 0",
    "crate_sync.enabled = off",
    "log_min_messages = info",
]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Skip(Exception):
    """This line cannot be measured here; the message says why."""


class Trouble(Exception):
    """Something did not do what it must."""


# --------------------------------------------------------------------- report

class Report:
    """Prints each figure as it is known; counts them for the last line."""

    def __init__(self):
        self.counts = {"ok": 0, "short": 0, "skipped": 0}
        self.shorts = []
        self.reasons = []

    def line(self, name, value, unit, bar="-", verdict="ok"):
        if isinstance(value, float):
            value = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
        print(f"{name}\t{value}\t{unit}\t{bar}\t{verdict}", flush=True)
        self.counts[verdict] += 1
        if verdict == "short":
            self.shorts.append(name)

    def most(self, name, value, unit, bar):
        """A figure that must not be above its bar."""
        self.line(name, value, unit, f"<={bar:g}", "ok" if value <= bar else "short")

    def least(self, name, value, unit, bar):
        """A figure that must not be below its bar."""
        self.line(name, value, unit, f">={bar:g}", "ok" if value >= bar else "short")

    def skip(self, names, reason):
        for name, unit, bar in names:
            self.line(name, "-", unit, bar, "skipped")
        if reason not in self.reasons:
            self.reasons.append(reason)

    def broken(self, name, reason):
        say(f"{name}: {reason}")
        self.line(name, "-", "-", "-", "short")


def median(values):
    return statistics.median(values)


def cpu_seconds(pid):
    """Processor time a process has had: less at the mercy of other programs
    than the clock is."""
    with open(f"/proc/{pid}/schedstat") as f:
        return int(f.read().split()[0]) / 1e9


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))]


# ----------------------------------------------------------- a session, libpq's protocol

class PgError(Exception):
    pass


class Pg:
    """One session; text results, one statement at a time, nothing in between
    but the socket, so that a commit can be timed."""

    def __init__(self, env, dbname, **options):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.path.join(env.socket_dir, f".s.PGSQL.{env.port}"))
        self.file = self.sock.makefile("rb")
        self.pid = None
        opts = " ".join(f"-c {k}={v}" for k, v in options.items())
        params = b""
        for k, v in (("user", "postgres"), ("database", dbname), ("options", opts),
                     ("application_name", "bench")):
            params += k.encode() + b"\0" + v.encode() + b"\0"
        body = struct.pack("!i", 196608) + params + b"\0"
        self.sock.sendall(struct.pack("!i", len(body) + 4) + body)
        self._until_ready()

    def _message(self):
        head = self.file.read(5)
        if len(head) < 5:
            raise PgError("the server closed the connection")
        return head[:1], self.file.read(struct.unpack("!i", head[1:])[0] - 4)

    def _until_ready(self):
        rows, error = [], None
        while True:
            kind, body = self._message()
            if kind == b"D":
                n, at, row = struct.unpack_from("!h", body)[0], 2, []
                for _ in range(n):
                    size = struct.unpack_from("!i", body, at)[0]
                    at += 4
                    row.append(None if size < 0 else body[at:at + size].decode())
                    at += max(size, 0)
                rows.append(row)
            elif kind == b"E":
                fields = dict((f[:1], f[1:].decode()) for f in body.split(b"\0") if f)
                error = fields.get(b"C", "") + " " + fields.get(b"M", "")
                if fields.get(b"S") == "FATAL":
                    raise PgError(error)
            elif kind == b"Z":
                if error:
                    raise PgError(error)
                return rows

    def query(self, sql):
        data = sql.encode() + b"\0"
        self.sock.sendall(b"Q" + struct.pack("!i", len(data) + 4) + data)
        return self._until_ready()

    def one(self, sql):
        rows = self.query(sql)
        return rows[0][0] if rows else None

    def timed(self, sql):
        start = time.monotonic()
        self.query(sql)
        return time.monotonic() - start

    def timed_cpu(self, sql):
        """Seconds by the clock, and of this session's processor time."""
        if self.pid is None:
            self.pid = int(self.one("SELECT pg_backend_pid()"))
        cpu = cpu_seconds(self.pid)
        return self.timed(sql), cpu_seconds(self.pid) - cpu

    def close(self):
        self.file.close()
        self.sock.close()


# ---------------------------------------------------------------- the servers

class Env:
    """Private PostgreSQL with the extension; CrateDB when asked for."""

    def __init__(self):
        script = f"""
            set -uo pipefail
            TOP={TOP!r}
            . "$TOP/test/lib/setup.sh"
            need_packages
            build_extension
            pg_start "$@"
            printf '%s\\n' "$WORK" "$PG_BIN" "$PG_SOCKET" "$PG_PORT" "$PG_CONFIG"
            while read -r word; do
                case $word in
                    crate)
                        if [ -z "${{CRATE_URL:-}}" ] && ! command -v crate >/dev/null; then
                            echo none
                        else
                            crate_find && echo "$TARGET_URL"
                        fi ;;
                esac
            done
        """
        environ = dict(os.environ)
        environ.setdefault("CRATE_HEAP_SIZE", "2g")
        self.keeper = subprocess.Popen(["bash", "-c", script, "run"] + PG_SETTINGS,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=environ, start_new_session=True)
        got = [self.keeper.stdout.readline().strip() for _ in range(5)]
        if not got[4]:
            raise Trouble("the private PostgreSQL did not start")
        self.work, self.pg_bin, self.socket_dir, self.port, pg_config = got
        self.dir = os.path.join(self.work, "bench")
        os.mkdir(self.dir)
        os.chmod(self.dir, 0o777)
        self.crate_url = None
        self.crate_asked = False
        self.children = []
        self._build(pg_config)

    def _build(self, pg_config):
        for name in ("sink", "replay"):
            subprocess.run([os.environ.get("CC", "gcc"), *os.environ.get("CFLAGS", "-O2").split(), "-pthread",
                            "-o", os.path.join(self.dir, name), os.path.join(HERE, name + ".c")], check=True)
        noop = os.path.join(self.dir, "noop")
        shutil.copytree(os.path.join(HERE, "noop"), noop)
        subprocess.run(["make", "-s", "-C", noop, "with_llvm=no",
                        "PG_CONFIG=" + pg_config],
                       check=True, stdout=sys.stderr)
        self.noop = os.path.join(noop, "bench_noop")

    def crate(self):
        """The URL of a real CrateDB; raises Skip where there is none."""
        if not self.crate_asked:
            self.crate_asked = True
            self.keeper.stdin.write("crate\n")
            self.keeper.stdin.flush()
            answer = self.keeper.stdout.readline().strip()
            if not answer:
                raise Trouble("CrateDB did not start")
            if answer.startswith("http://"):
                self.crate_url = answer
                say(f"CrateDB {Crate(answer).version()} at {answer}")
        if self.crate_url is None:
            raise Skip("no CrateDB: CRATE_URL names none over http, and there is no crate on PATH")
        return self.crate_url

    def close(self):
        for child in self.children:
            if child.poll() is None:
                child.terminate()
                child.wait()
        self.keeper.stdin.close()
        self.keeper.wait()

    def log_tail(self, n=15):
        try:
            with open(os.path.join(self.work, "log", "postgresql.log"), errors="replace") as f:
                return "".join(f.readlines()[-n:])
        except OSError:
            return ""

    def pgbench(self, dbname, script, clients, seconds, **options):
        """tps of a script, prepared statements."""
        path = os.path.join(self.dir, "script.sql")
        with open(path, "w") as f:
            f.write(script)
        environ = dict(os.environ, PGOPTIONS=" ".join(f"-c {k}={v}" for k, v in options.items()))
        out = subprocess.run([os.path.join(self.pg_bin, "pgbench"), "-n", "-M", "prepared",
                              "-h", self.socket_dir, "-p", self.port, "-U", "postgres",
                              "-c", str(clients), "-j", "1", "-T", str(seconds), "-f", path, dbname],
                             capture_output=True, text=True, env=environ)
        for line in out.stdout.splitlines():
            if line.startswith("tps ="):
                return float(line.split()[2])
        raise Trouble("pgbench: " + out.stderr[-500:])


class Database:
    """A database with the extension, one target, and a worker of its own."""

    COLUMNS = """id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL,
        price double precision NOT NULL, quantity int NOT NULL,
        updated_at timestamptz NOT NULL, is_deleted boolean NOT NULL"""

    ROWS = """SELECT i, (i * 7919) % 100003, (ARRAY['new','paid','packed','shipped','returned'])[1 + i % 5],
        ((i * 104729) % 1000000) / 100.0, (i % 10)::int,
        timestamptz '2026-01-01 00:00:00+00' + i * interval '1.013 second', i % 50 = 0
        FROM generate_series({first}::bigint, {last}::bigint) i"""

    def __init__(self, env, name, target):
        self.env = env
        self.name = name
        admin = Pg(env, "postgres")
        admin.query(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        admin.query(f"CREATE DATABASE {name}")
        admin.query(f"ALTER DATABASE {name} SET crate_sync.target = '{target}'")
        admin.close()
        self.enabled = None
        self.enable(False)
        self.pg = Pg(env, name)
        self.pg.query("CREATE EXTENSION crate_sync")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.enable(False)
        self.pg.close()
        admin = Pg(self.env, "postgres")
        admin.query(f"DROP DATABASE {self.name} WITH (FORCE)")
        admin.close()

    def session(self, **options):
        return Pg(self.env, self.name, **options)

    def enable(self, on):
        """Lets workers push, or not.  Returns the moment before."""
        moment = time.monotonic()
        if on != self.enabled:
            admin = Pg(self.env, "postgres")
            admin.query(f"ALTER SYSTEM SET crate_sync.enabled = {'on' if on else 'off'}")
            moment = time.monotonic()
            admin.query("SELECT pg_reload_conf()")
            admin.close()
            self.enabled = on
        return moment

    def table(self, name, rows=0, with_=""):
        self.pg.query(f"CREATE TABLE {name} ({self.COLUMNS}) {with_}")
        if rows:
            self.insert(name, 1, rows)
            self.pg.query(f"VACUUM (ANALYZE, FREEZE) {name}")

    def insert(self, name, first, last):
        self.pg.query(f"INSERT INTO {name} " + self.ROWS.format(first=first, last=last))

    def add(self, name, target=None, copy_data=True):
        self.pg.query(f"SELECT crate_sync.add_table('{name}', copy_data => {copy_data}" +
                      (f", target => '{target}'" if target else "") + ")")

    def worker(self):
        for _ in range(500):
            pid = self.pg.one("SELECT pid FROM crate_sync.worker_status()")
            if pid:
                return int(pid)
            time.sleep(0.02)
        raise Trouble("no worker came up\n" + self.env.log_tail())

    def queued(self):
        return int(self.pg.one("SELECT coalesce(sum(queued_keys), 0) FROM crate_sync.queue_stats(false)"))

    def queue_size(self):
        return int(self.pg.one("""SELECT sum(pg_relation_size(c.oid)) FROM pg_class c
            WHERE relnamespace = 'crate_sync'::regnamespace AND relkind = 'r' AND relname LIKE 'queue%'"""))

    def wait(self, what, condition, timeout, pause=0.005):
        """Waits for the condition (a function); returns the moment it held.
        Gives up when the extension has not been well for a while."""
        began = well = looked = time.monotonic()
        while True:
            if condition():
                return time.monotonic()
            now = time.monotonic()
            if now > looked + 2:
                looked = now
                if self.pg.one("SELECT state IN ('ok', 'starting', 'nothing mirrored', 'disabled', 'stopped', 'no worker') FROM crate_sync.status") == "t":
                    well = now
            if now > min(began + timeout, well + 20):
                status = self.pg.query("SELECT * FROM crate_sync.status")
                tables = self.pg.query("SELECT * FROM crate_sync.tables")
                raise Trouble(f"{what}: not within {now - began:.0f} s\n{status}\n{tables}\n" + self.env.log_tail())
            time.sleep(pause)

    def wait_drained(self, timeout=180):
        return self.wait("queue empty", lambda: self.queued() == 0, timeout)

    def wait_ready(self, name, timeout=180):
        """Until the load of a table is over.  Sets load_began, the moment when
        its target table was there and rows began to be read."""
        self.load_began = None

        def ready():
            rows = self.pg.query(f"""SELECT state, load_phase, extract(epoch FROM clock_timestamp() - load_start)
                FROM crate_sync.mirror_state WHERE relid = '{name}'::regclass""")
            if not rows:
                return False
            if rows[0][1] == "load":
                self.load_began = time.monotonic() - float(rows[0][2])
            return rows[0][0] == "ready"

        return self.wait(f"{name} loaded", ready, timeout)

    def failed(self):
        return int(self.pg.one("SELECT count(*) FROM crate_sync.failed"))


# ------------------------------------------------------------- sink and CrateDB

class Sink:
    """The sink, or with upstream (a URL) the recorder."""

    def __init__(self, env, record=None, upstream=None):
        cmd = [os.path.join(env.dir, "sink")]
        if record:
            os.makedirs(record, exist_ok=True)
            cmd += ["-r", record]
        if upstream:
            cmd += ["-u", urllib.parse.urlsplit(upstream).netloc]
        self.process = subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True)
        env.children.append(self.process)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.forwards = upstream is not None
        self.http = http.client.HTTPConnection("127.0.0.1", self.port)

    def stats(self):
        self.http.request("GET", "/_stats")
        return json.loads(self.http.getresponse().read())

    def reset(self):
        self.http.request("GET", "/_reset")
        self.http.getresponse().read()

    def wait_rows(self, db, rows, timeout=180):
        """Until that many rows have come in all; returns when the last one was answered."""
        db.wait(f"{rows} rows in the sink", lambda: self.stats()["rows"] >= rows, timeout)
        return self.stats()["last"]

    def close(self):
        self.http.close()
        self.process.terminate()
        self.process.wait()


class Crate:
    """A kept-alive connection to CrateDB's /_sql."""

    def __init__(self, url):
        self.url = url
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 4200
        self.sock = socket.create_connection((self.host, self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def prepare(self, stmt, args=None):
        body = json.dumps({"stmt": stmt, "args": args or []}).encode()
        return (f"POST /_sql HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode() + body

    def send(self, request):
        """Sends a prepared request; the answer's body, as bytes."""
        self.sock.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                raise Trouble("CrateDB closed the connection")
            data += piece
        head, body = data.split(b"\r\n\r\n", 1)
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        while len(body) < length:
            body += self.sock.recv(1 << 20)
        return body

    def sql(self, stmt, args=None):
        answer = json.loads(self.send(self.prepare(stmt, args)))
        if "error" in answer:
            raise Trouble(f"CrateDB: {answer['error']['message']} in {stmt[:200]}")
        return answer

    def one(self, stmt, args=None):
        return self.sql(stmt, args)["rows"][0][0]

    def version(self):
        return self.one("SELECT version['number'] FROM sys.nodes LIMIT 1")

    def count(self, table):
        self.sql(f"REFRESH TABLE {table}")
        return self.one(f"SELECT count(*) FROM {table}")


class Replay:
    """Recorded bodies, to be sent again to the table they were written for."""

    def __init__(self, env, directory, connections):
        self.env = env
        self.directory = directory
        self.connections = connections
        self.files = sorted(os.listdir(directory))
        self.fences = {}
        for name in self.files:
            with open(os.path.join(directory, name)) as f:
                args = json.load(f)["args"]
            # the fence guards each statement with its last two arguments
            if not isinstance(args[-1], list):
                self.fences[args[-2]] = args[-1]

    def run(self, crate):
        """Rows per second; the fences are set as the bodies expect them."""
        for fence, epoch in self.fences.items():
            crate.sql("INSERT INTO crate_sync.fence (id, epoch) VALUES (?, ?)"
                      " ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch", [fence, epoch])
        out = subprocess.run([os.path.join(self.env.dir, "replay"), crate.host, str(crate.port),
                              str(self.connections), self.directory],
                             capture_output=True, text=True, check=True)
        got = json.loads(out.stdout)
        if got["errors"] or got["rows"] == 0:
            raise Trouble(f"replay: {out.stdout} {out.stderr}")
        return got


# --------------------------------------------------------------------- memory

class MemorySampler:
    """Peak RssAnon of a process, in MB, while the with block runs."""

    def __init__(self, pid, pause=0.003):
        self.path = f"/proc/{pid}/status"
        self.pause = pause
        self.peak = 0
        self.stop = False

    @staticmethod
    def now(pid):
        with open(f"/proc/{pid}/status") as f:
            for line in f:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) / 1024
        raise Trouble("this kernel does not tell RssAnon")

    def _run(self):
        pid = self.path.split("/")[2]
        while not self.stop:
            try:
                self.peak = max(self.peak, self.now(pid))
            except OSError:
                return
            time.sleep(self.pause)

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop = True
        self.thread.join()
