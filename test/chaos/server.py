"""The private PostgreSQL, sessions with it, and the target."""

import grp
import json
import os
import pwd
import re
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))


class Failed(Exception):
    """A statement of ours did not go through."""


class Refused(Failed):
    """The server's word on a statement: code is its SQLSTATE, text all that it said."""

    def __init__(self, code, message, text):
        super().__init__("%s %s" % (code, message))
        self.code, self.message, self.text = code, message, text


class Lost(Failed):
    """The session is gone; whether the statement was carried out is not known."""


def lit(text):
    return "'" + text.replace("'", "''") + "'"


class Environment:
    def __init__(self, options):
        e = os.environ
        self.seed = options.seed
        self.top, self.work, self.user = e["TOP"], e["WORK"], e["RUN_USER"]
        self.bin, self.data, self.sock, self.port = e["PG_BIN"], e["PG_DATA"], e["PG_SOCKET"], e["PG_PORT"]
        self.log_file = os.path.join(self.work, "log", "postgresql.log")
        self.standin = options.target == "standin"
        self.kind = "crate" if self.standin else options.target
        self.conninfo = "host=%s port=%s user=postgres dbname=postgres" % (self.sock, self.port)
        self.proxy = None
        self.crate_url = None
        self.crate_up = False
        self.frozen = []
        self.kills = 0              # processes that we ended by signal 9
        self.started = time.time()

    def say(self, text):
        print("[%7.1f] %s" % (time.time() - self.started, text), file=sys.stderr, flush=True)

    # --- PostgreSQL

    def as_user(self):
        if os.getuid() != 0:
            return {}
        u = pwd.getpwnam(self.user)
        return {"user": u.pw_uid, "group": u.pw_gid,
                "extra_groups": [g.gr_gid for g in grp.getgrall() if self.user in g.gr_mem], "cwd": self.work}

    def conn(self, database):
        return self.conninfo.replace("dbname=postgres", "dbname=" + database)

    def popen_psql(self, database="postgres", stderr=subprocess.DEVNULL, text=True):
        return subprocess.Popen([self.bin + "/psql", "-X", "-q", "-A", "-t", "-d", self.conn(database)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=text,
                                bufsize=-1 if text else 0)

    def sql(self, statement, timeout=30, lock="3s", database="postgres"):
        """The answer as text; our own limits, whatever a role's are."""
        env = dict(os.environ, PGOPTIONS="-c statement_timeout=%ds -c lock_timeout=%s "
                   "-c client_min_messages=error" % (timeout, lock))
        p = subprocess.run([self.bin + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d",
                            self.conn(database), "-f", "-"],
                           input=statement, capture_output=True, text=True, env=env)
        if p.returncode != 0:
            raise Failed((p.stderr.strip().splitlines() or ["psql failed"])[0])
        return p.stdout.strip("\n")

    def postmaster(self):
        try:
            with open(self.data + "/postmaster.pid") as f:
                return int(f.readline())
        except (OSError, ValueError):
            return 0

    def pg_ctl(self, *args):
        with open(self.work + "/log/ctl.log", "a") as log:
            return subprocess.run([self.bin + "/pg_ctl", "-D", self.data, "-w", "-t", "60", "-s",
                                   "-l", self.log_file, *args], stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=log, **self.as_user()).returncode

    def pg_up(self):
        """Starts it if it is down, and waits until it answers."""
        for attempt in range(120):
            try:
                self.sql("SELECT 1")
                return
            except Failed as e:
                error = e
                self.thaw()
                pid = self.postmaster()
                alive = pid and os.path.exists("/proc/%d" % pid)
                if not alive:
                    self.pg_ctl("start")
                time.sleep(0.25)
        raise Failed("PostgreSQL does not come up again: %s" % error)

    def backends(self, like):
        out = self.sql("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE %s ORDER BY 1" % lit(like))
        return [int(x) for x in out.split()]

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.kills += 1

    def freeze(self, pids):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self.frozen.append(pid)

    def thaw(self):
        """Workers that were stopped go on: a server waits for them when it stops or starts."""
        frozen, self.frozen = self.frozen, []
        for pid in frozen:
            go_on(pid)

    # --- the target

    def crate_start(self):
        if self.standin:
            return self.standin_start()
        # by way of a file: a pipe would stay open as long as CrateDB runs
        answer = self.work + "/log/crate.started"
        script = ('. "$LIB/setup.sh"; crate_start >&2; '
                  'printf "%s %s\\n" "$TARGET_URL" "$CRATE_PID" > "$0"')
        open(answer, "w").close()
        with open(self.work + "/log/crate.start.log", "a") as log:
            subprocess.run(["bash", "-c", script, answer], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with open(answer) as f:
            words = f.read().split()
        if len(words) != 2:
            raise Failed("CrateDB did not start, see " + log.name)
        self.crate_runs(words[0], int(words[1]))

    def standin_start(self):
        ports = self.work + "/log/standin.ports"
        if os.path.exists(ports):
            os.unlink(ports)
        with open(self.work + "/log/standin.log", "a") as log:
            p = subprocess.Popen([sys.executable, os.path.join(os.path.dirname(HERE), "standin", "cratedb.py"), "--ports-file", ports],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        threading.Thread(target=p.wait, daemon=True).start()
        for i in range(300):
            if os.path.exists(ports):
                break
            time.sleep(0.1)
        else:
            raise Failed("the stand-in did not start, see " + log.name)
        with open(ports) as f:
            self.crate_runs("http://127.0.0.1:%d" % json.load(f)["ports"][0], p.pid)

    def crate_runs(self, url, pid):
        self.crate_url, self.crate_pid = url, pid
        self.proxy.upstream = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.crate_up = True

    def crate_signal(self, number):
        os.killpg(self.crate_pid, number)

    def crate(self, stmt, args=None, timeout=4):
        """A statement straight to CrateDB, past the proxy."""
        body = json.dumps({"stmt": stmt, **({"args": args} if args else {})}).encode()
        request = urllib.request.Request(self.crate_url + "/_sql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as e:
            raise Failed(e.read().decode(errors="replace")[:300])
        except (OSError, ValueError) as e:
            raise Failed(str(e))

    @property
    def sqlite_file(self):
        return self.work + "/target/mirror.db"

    def sqlite_open(self):
        # never made by us: then it would be ours, and not the server's to write
        try:
            return sqlite3.connect("file:%s?mode=rw" % self.sqlite_file, uri=True, timeout=2, isolation_level=None,
                                   check_same_thread=False)
        except sqlite3.Error as e:
            raise Failed(str(e))

    def sqlite(self, statement):
        db = self.sqlite_open()
        try:
            return db.execute(statement).fetchall()
        except sqlite3.Error as e:
            raise Failed(str(e))
        finally:
            db.close()

    def target(self, statement):
        """By hand; what it answers, as rows."""
        if self.kind == "crate":
            return self.crate(statement)["rows"]
        return self.sqlite(statement)

    def target_insert(self, name, columns, values):
        statement = "INSERT INTO %s (%s) VALUES (%s)" % (name, ", ".join('"%s"' % c for c in columns), ", ".join("?" for v in values))
        if self.kind == "crate":
            self.crate(statement, list(values))
            return
        db = self.sqlite_open()
        try:
            db.execute(statement, values)
        except (sqlite3.Error, ValueError) as e:
            raise Failed(str(e))
        finally:
            db.close()

    def target_name(self, table, schema="doc"):
        if self.kind == "crate":
            return '"%s"."%s"' % (schema, table)
        # a file has no schemas: but for doc they are part of the table's name
        return '"%s"' % (table if schema == "doc" else schema + "." + table)

    def refresh(self, name):
        if self.kind == "crate":
            self.crate("REFRESH TABLE " + name)

    def slow_target(self, seconds):
        """Requests take long for a while, and succeed."""
        if self.kind == "crate":
            self.proxy.slow(seconds)
            return

        def hold():
            try:
                db = self.sqlite_open()
                try:
                    db.execute("BEGIN EXCLUSIVE")
                    time.sleep(seconds)
                finally:
                    db.close()
            except (Failed, sqlite3.Error):
                pass
        threading.Thread(target=hold, daemon=True).start()


def go_on(pid):
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass


class SlowMotion(threading.Thread):
    """Lets processes run a few milliseconds at a time, so that what they do takes long."""

    def __init__(self, pids, seconds):
        super().__init__(daemon=True)
        self.pids, self.until = pids, time.time() + seconds
        self.start()

    def run(self):
        while time.time() < self.until:
            try:
                for pid in self.pids:
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(0.03)
            except ProcessLookupError:
                self.until = 0
            for pid in self.pids:
                go_on(pid)
            time.sleep(0.004)


ERROR = re.compile(r"(ERROR|FATAL|PANIC):  ([0-9A-Z]{5}): (.*)")
OTHER = re.compile(r"(?:psql:\S* )?(?:WARNING|NOTICE|INFO|LOG):  ")


class Session:
    """A psql that is fed with scripts; comes back after crashes."""

    SETTINGS = ("SET lock_timeout = '2s'; SET statement_timeout = '20s'; SET client_min_messages = error; "
                "SET idle_in_transaction_session_timeout = 0; SET default_transaction_isolation = 'read committed'; "
                "SET DateStyle = ISO; SET TimeZone = 'UTC'; SET IntervalStyle = postgres; SET extra_float_digits = 1;")
    LIMIT = 120         # seconds without an answer, after which it counts as lost

    def __init__(self, env, settings=SETTINGS, database="postgres"):
        self.env, self.settings, self.database = env, settings, database
        self.proc = None
        self.number = 0

    def connect(self):
        self.errors = tempfile.TemporaryFile()
        self.seen = 0
        self.buffer = b""
        self.proc = self.env.popen_psql(self.database, self.errors, text=False)
        self.send("\\set VERBOSITY verbose\n\\set SHOW_CONTEXT errors\n" + self.settings)

    def send(self, script):
        data = (script + "\n").encode()
        while data:
            data = data[self.proc.stdin.write(data):]

    def line(self, until):
        while b"\n" not in self.buffer:
            left = until - time.time()
            if left <= 0 or not select.select([self.proc.stdout], [], [], left)[0]:
                raise Lost("no answer for %d s" % self.LIMIT)
            data = os.read(self.proc.stdout.fileno(), 65536)
            if not data:
                raise Lost("the session was ended")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    def run(self, script):
        """Rows as lines of text, and what was refused."""
        self.number += 1
        mark = "=done %d=" % self.number
        rows = []
        try:
            if self.proc is None:
                self.connect()
            self.send(script + "\n\\echo " + mark)
            until = time.time() + self.LIMIT
            while True:
                line = self.line(until)
                if line == mark:
                    return rows, self.refusals()
                rows.append(line)
        except (OSError, ValueError) as e:
            self.close()
            raise Lost(str(e))
        except Lost:
            self.close()
            raise

    def refusals(self):
        data = os.pread(self.errors.fileno(), 1 << 20, self.seen)
        self.seen += len(data)
        found = []
        block = None
        for line in data.decode(errors="replace").splitlines():
            m = ERROR.search(line)
            if m:
                block = [m.group(2), m.group(3), line]
                found.append(block)
            elif OTHER.match(line):
                block = None
            elif block is not None:
                block[2] += "\n" + line
        return [Refused(*b) for b in found]

    def reading(self, script):
        """The same for what may be repeated: the session may have been lost long ago."""
        try:
            return self.q(script)
        except Lost:
            self.env.pg_up()
            return self.q(script)

    def q(self, script):
        """Rows; the first refusal is an exception, after the transaction's end."""
        rows, refused = self.run(script if script.rstrip().endswith(";") else script + ";")
        if refused:
            self.run("ROLLBACK;")
            raise refused[0]
        return rows

    def close(self):
        if self.proc is None:
            return
        proc, self.proc = self.proc, None
        try:
            proc.stdin.close()
        except OSError:
            pass
        try:
            proc.wait(30)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()
        proc.stdout.close()
        self.errors.close()
