"""Random faults against a mirror that is being written to; see run."""

import argparse
import glob
import grp
import heapq
import json
import os
import pwd
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import compare                                          # noqa: E402
import proxy                                            # noqa: E402
from writers import Dice, Writer, SCHEMA, TABLES, FILTER, FILTER_SAFE, KEYS, lit    # noqa: E402

REQUEST_TIMEOUT = 2.0
QUIET_LIMIT = 120           # seconds in the end without anything arriving, after which it counts as stuck


class Failed(Exception):
    """A statement of ours did not go through."""


class Environment:
    def __init__(self, options):
        e = os.environ
        self.seed = options.seed
        self.top, self.work, self.user = e["TOP"], e["WORK"], e["RUN_USER"]
        self.bin, self.data, self.sock, self.port = e["PG_BIN"], e["PG_DATA"], e["PG_SOCKET"], e["PG_PORT"]
        self.log_file = os.path.join(self.work, "log", "postgresql.log")
        self.kind = options.target
        self.conninfo = "host=%s port=%s user=postgres dbname=postgres" % (self.sock, self.port)
        self.proxy = None
        self.crate_url = None
        self.crate_up = False
        self.frozen = []
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

    def popen_psql(self):
        return subprocess.Popen([self.bin + "/psql", "-X", "-q", "-A", "-t", "-d", self.conninfo],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                text=True, bufsize=-1)

    def sql(self, statement, timeout=30, lock="3s", database="postgres"):
        """The answer as text; our own limits, whatever a role's are."""
        env = dict(os.environ, PGOPTIONS="-c statement_timeout=%ds -c lock_timeout=%s "
                   "-c client_min_messages=error" % (timeout, lock))
        p = subprocess.run([self.bin + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d",
                            self.conninfo.replace("dbname=postgres", "dbname=" + database), "-f", "-"],
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

    def thaw(self):
        """Workers that were stopped go on: a server waits for them when it stops or starts."""
        for pid in self.frozen:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
        self.frozen = []

    def backends(self, like):
        out = self.sql("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE %s ORDER BY 1" % lit(like))
        return [int(x) for x in out.split()]

    # --- the target

    def crate_start(self):
        # by way of a file: a pipe would stay open as long as CrateDB runs
        answer = self.work + "/log/crate.started"
        script = ('. "$TOP/test/lib/setup.sh"; crate_start >&2; '
                  'printf "%s %s\\n" "$TARGET_URL" "$CRATE_PID" > "$0"')
        open(answer, "w").close()
        with open(self.work + "/log/crate.start.log", "a") as log:
            subprocess.run(["bash", "-c", script, answer], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        with open(answer) as f:
            words = f.read().split()
        if len(words) != 2:
            raise Failed("CrateDB did not start, see " + log.name)
        self.crate_url = words[0]
        self.crate_pid = int(words[1])
        self.proxy.upstream = ("127.0.0.1", int(self.crate_url.rsplit(":", 1)[1]))
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

    def sqlite(self, *statements):
        try:
            db = sqlite3.connect("file:%s?mode=rw" % self.sqlite_file, uri=True, timeout=2, isolation_level=None)
            try:
                for s in statements:
                    db.execute(s)
            finally:
                db.close()
        except sqlite3.Error as e:
            raise Failed(str(e))

    def target(self, statement):
        """By hand: "t" as the target names it comes in by {0}."""
        if self.kind == "crate":
            return self.crate(statement)
        return self.sqlite(statement)

    def target_name(self, table):
        return '"doc"."%s"' % table if self.kind == "crate" else '"%s"' % table


class Faults:
    """Each fault is a method; it may return (seconds, undo), to be called later."""

    def __init__(self, env, rng, writers):
        self.env, self.r, self.writers = env, rng, writers
        self.resync_due = set()             # tables that were changed by hand
        self.verify_due = False
        self.serial = 0
        self.timed = 0

    def table(self):
        return self.r.choice(TABLES)

    def seconds(self, lo, hi):
        return lo + (hi - lo) * self.r.random()

    # --- PostgreSQL's processes

    def kill_worker(self):
        for pid in self.env.backends("crate_sync worker"):
            os.kill(pid, signal.SIGKILL)

    def terminate_worker(self):
        self.env.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'crate_sync worker'")

    def terminate_launcher(self):
        self.env.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'crate_sync launcher'")

    def kill_backend(self):
        x = self.r.random()
        pids = self.env.backends("client backend")
        os.kill(pids[int(x * len(pids))], signal.SIGKILL)

    def kill_postmaster(self):
        os.kill(self.env.postmaster(), signal.SIGKILL)
        time.sleep(0.2)
        self.env.pg_up()

    def immediate_shutdown(self):
        if self.r.random() < 0.5:
            self.env.thaw()
        self.env.pg_ctl("stop", "-m", "immediate")
        time.sleep(self.r.random())
        self.env.pg_up()

    def restart(self):
        self.env.thaw()
        self.env.pg_ctl("restart", "-m", "fast")
        self.env.pg_up()

    def freeze_worker(self):
        for pid in self.env.backends("crate_sync worker"):
            os.kill(pid, signal.SIGSTOP)
            self.env.frozen.append(pid)
        return self.seconds(1, 5), self.env.thaw

    # --- what a user may do

    def pause(self):
        t = self.r.choice(TABLES + (None,))
        self.env.sql("SELECT crate_sync.pause(%s)" % (lit(t) if t else ""))
        return self.seconds(1, 5), lambda: self.env.sql("SELECT crate_sync.resume(%s)" % (lit(t) if t else ""))

    def stop_worker(self):
        self.env.sql("SELECT crate_sync.stop()")
        return self.seconds(0.5, 4), lambda: self.env.sql("SELECT crate_sync.start()")

    def disable(self):
        self.env.sql("ALTER SYSTEM SET crate_sync.enabled = off")
        self.env.sql("SELECT pg_reload_conf()")

        def undo():
            self.env.sql("ALTER SYSTEM RESET crate_sync.enabled")
            self.env.sql("SELECT pg_reload_conf()")
        return self.seconds(0.5, 4), undo

    def settings(self):
        r = self.r
        self.env.sql("ALTER SYSTEM SET crate_sync.connections = %d" % r.choice((1, 2, 3, 5)))
        self.env.sql("ALTER SYSTEM SET crate_sync.batch_rows = %d" % r.choice((10, 50, 700, 5000)))
        self.env.sql("ALTER SYSTEM SET crate_sync.sync_on_commit = %s" % r.choice(("on", "off")))
        self.env.sql("SELECT pg_reload_conf()")

    def resync(self):
        t = self.r.choice(TABLES + (None,))
        mode = self.r.choice(("full", "full", "upsert", "rebuild"))
        self.env.sql("SELECT crate_sync.resync(%s, %s)" % (lit(t) if t else "NULL", lit(mode)))
        return "%s %s" % (mode, t or "all")

    def retry_failed(self):
        self.env.sql("SELECT crate_sync.retry_failed()")

    def verify(self):
        if not have_verify(self.env):
            return "not available"
        self.env.sql("SELECT crate_sync.verify(%s, repair => %s)"
                     % (lit(self.table()), self.r.choice(("true", "false"))))

    def vacuum_full_source(self):
        t = self.table()
        self.env.sql("VACUUM FULL %s" % t)
        return t

    def vacuum_full_queue(self):
        q = self.r.choice(("queue_0", "queue_1", "queue_2", "queue_hold"))
        self.env.sql("VACUUM FULL crate_sync.%s" % q)
        return q

    def lock_queue(self):
        which = self.r.choice(("queue_0", "queue_1", "queue_0, crate_sync.queue_1, crate_sync.queue_2", "queue_hold", "mirror", "mirror_state",
                               "failed"))
        hold = self.seconds(0.3, 2.5)
        self.background("BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE crate_sync.%s IN ACCESS EXCLUSIVE MODE; "
                        "SELECT pg_sleep(%.1f); COMMIT" % (which, hold))
        return which

    def lock_source(self):
        t = self.table()
        self.background("BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE %s IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(%.1f); COMMIT"
                        % (t, self.seconds(0.5, 4)))
        return t

    def background(self, script):
        def run():
            try:
                self.env.sql(script)
            except Failed:
                pass
        threading.Thread(target=run, daemon=True).start()

    def add_column(self):
        t = self.table()
        self.serial += 1
        name = "extra_%d" % self.serial
        self.env.sql("ALTER TABLE %s ADD COLUMN %s %s" % (t, name, self.r.choice((
            "int", "text DEFAULT 'd'", "float8 DEFAULT random()", "bigint DEFAULT 7"))))
        return self.seconds(1, 6), lambda: self.env.sql("ALTER TABLE %s DROP COLUMN IF EXISTS %s" % (t, name))

    def disable_triggers(self):
        t = self.table()
        what = self.r.choice(("ALL", "USER", "crate_sync_capture"))
        self.env.sql("ALTER TABLE %s DISABLE TRIGGER %s" % (t, what))
        return self.seconds(0, 3), lambda: self.env.sql("ALTER TABLE %s ENABLE %sTRIGGER %s"
                                                        % (t, "ALWAYS " if what == "crate_sync_capture" else "", what))

    def drop_trigger(self):
        t = self.table()
        self.env.sql("DROP TRIGGER crate_sync_capture ON %s" % t)
        return t

    def low_timeouts(self):
        self.env.sql("ALTER ROLE postgres SET lock_timeout = '1ms'; ALTER ROLE postgres SET statement_timeout = '5ms'; "
                     "ALTER ROLE postgres SET idle_in_transaction_session_timeout = '5ms'; "
                     "ALTER ROLE postgres SET DateStyle = 'German'; ALTER ROLE postgres SET TimeZone = 'Asia/Kathmandu'; "
                     "ALTER ROLE postgres SET extra_float_digits = -15; ALTER ROLE postgres SET IntervalStyle = 'sql_standard'; "
                     "ALTER ROLE postgres SET default_transaction_isolation = 'serializable'")
        if self.r.random() < 0.5:
            self.terminate_worker()
        return self.seconds(1, 5), lambda: self.env.sql("ALTER ROLE postgres RESET ALL")

    def checkpoint(self):
        self.env.sql("CHECKPOINT")

    # --- the target, either

    def by_hand(self):
        """Rows changed and removed at the target; a resync is asked for, which has to mend it."""
        t = self.table()
        name = self.env.target_name(t)
        column = {"t_big": "v", "t_text": "note", "t_part": "v", "t_doc": "d", "t_filt": "v"}[t]
        self.resync_due.add(t)
        if self.env.kind == "crate":
            self.env.crate("REFRESH TABLE " + name)
        x = self.r.random()
        if x < 0.4:
            self.env.target("DELETE FROM %s" % name + (" WHERE id < 500" if t in ("t_big", "t_part", "t_filt") and self.r.random() < 0.5 else ""))
        elif x < 0.8:
            self.env.target("UPDATE %s SET \"%s\" = NULL" % (name, column))
        else:
            self.env.target("DELETE FROM %s WHERE \"%s\" IS NOT NULL" % (name, column))
        self.ask_resync(t)
        return t

    def ask_resync(self, t):
        self.env.sql("SET synchronous_commit = on; SELECT crate_sync.resync(%s, 'full')" % lit(t))
        self.resync_due.discard(t)

    def drop_target(self):
        t = self.table()
        self.env.target("DROP TABLE %s" % self.env.target_name(t))
        return t

    # --- CrateDB

    def crate_freeze(self):
        self.env.crate_signal(signal.SIGSTOP)
        return self.seconds(1, 3 * REQUEST_TIMEOUT), lambda: self.env.crate_signal(signal.SIGCONT)

    def crate_freeze_kill_worker(self):
        """The worker dies while its requests hang; the next one must not be overtaken by them."""
        self.env.crate_signal(signal.SIGSTOP)
        time.sleep(self.seconds(0.05, 0.5))
        try:
            self.kill_worker()
        except (Failed, ProcessLookupError):
            pass
        return self.seconds(1, 3 * REQUEST_TIMEOUT), lambda: self.env.crate_signal(signal.SIGCONT)

    def crate_kill(self):
        self.env.crate_up = False
        self.env.crate_signal(signal.SIGCONT)
        self.env.crate_signal(signal.SIGKILL)
        time.sleep(self.seconds(0.2, 2))
        # its number is in a file that the next start looks at
        os.unlink(self.env.work + "/crate/pid")
        self.env.crate_start()

    def crate_read_only(self):
        t = self.r.choice(TABLES + ("fence", "claim"))
        return self.blocked([t], "blocks.write")

    def crate_read_only_all(self):
        return self.blocked(TABLES, "blocks.read_only_allow_delete")

    def crate_name(self, t):
        return self.env.target_name(t) if t.startswith("t_") else '"crate_sync"."%s"' % t

    def blocked(self, tables, block):
        """Sets a block; what timed out may have been set all the same, and has to be undone."""
        for t in tables:
            try:
                self.env.crate('ALTER TABLE %s SET ("%s" = true)' % (self.crate_name(t), block))
            except Failed as e:
                self.env.say("      %s of %s: %s" % (block, t, str(e)[:80]))
        return self.seconds(1, 6), lambda: self.unblock(tables, (block,))

    def unblock(self, tables=TABLES + ("fence", "claim"), blocks=("blocks.write", "blocks.read_only_allow_delete")):
        for t in tables:
            for block in blocks:
                try:
                    self.env.crate('ALTER TABLE %s RESET ("%s")' % (self.crate_name(t), block))
                except Failed as e:
                    if "nknown" not in str(e):
                        raise

    def crate_wiped(self):
        """Everything of ours is gone at once, claims and fence included."""
        for schema, table in self.env.crate("SELECT table_schema, table_name FROM information_schema.tables "
                                            "WHERE table_schema IN ('doc', 'crate_sync')")["rows"]:
            self.env.crate('DROP TABLE "%s"."%s"' % (schema, table))

    def crate_drop_ours(self):
        t = self.r.choice(("fence", "claim"))
        self.env.crate('DROP TABLE crate_sync.%s' % t)
        return t

    def crate_breaker(self):
        self.env.crate("SET GLOBAL TRANSIENT \"indices.breaker.query.limit\" = '100kb'")
        return self.seconds(1, 5), lambda: self.env.crate('RESET GLOBAL "indices.breaker.query.limit"')

    def crate_kill_jobs(self):
        self.env.crate("KILL ALL")

    def wire(self, mode):
        share = self.r.choice((0.1, 0.5, 1.0))
        delay = self.seconds(0.5 * REQUEST_TIMEOUT, 3 * REQUEST_TIMEOUT)
        self.env.proxy.set(mode, share, delay)
        return self.seconds(1, 6), lambda: self.env.proxy.set("pass")

    # --- SQLite

    def sqlite_lock(self):
        # never made by us: then it would be ours, and not the server's to write
        try:
            db = sqlite3.connect("file:%s?mode=rw" % self.env.sqlite_file, uri=True, timeout=2, isolation_level=None,
                                 check_same_thread=False)
        except sqlite3.Error as e:
            raise Failed(str(e))
        try:
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as e:
            db.close()
            raise Failed(str(e))
        return self.seconds(0.5, 5), db.close

    def sqlite_read_only(self):
        path = self.env.sqlite_file
        places = [path, os.path.dirname(path)]
        os.chmod(path, 0o444)
        os.chmod(places[1], 0o555)
        if self.r.random() < 0.5:
            self.terminate_worker()

        def undo():
            for p, m in zip(places, (0o644, 0o755)):
                if os.path.exists(p):
                    os.chmod(p, m)
        return self.seconds(0.5, 4), undo

    def sqlite_wiped(self):
        for f in glob.glob(self.env.sqlite_file + "*"):
            os.unlink(f)


ANY = (
    "kill_worker", "kill_worker", "terminate_worker", "terminate_launcher", "kill_backend", "kill_postmaster",
    "immediate_shutdown", "immediate_shutdown", "restart", "freeze_worker", "pause", "stop_worker", "disable", "settings",
    "resync", "resync", "retry_failed", "verify", "vacuum_full_source", "vacuum_full_queue", "lock_queue", "lock_source",
    "add_column", "disable_triggers", "drop_trigger", "low_timeouts", "checkpoint", "by_hand", "drop_target",
)
OF_CRATE = ("crate_freeze", "crate_freeze", "crate_freeze_kill_worker", "crate_freeze_kill_worker", "crate_kill", "crate_read_only",
            "crate_read_only_all", "crate_wiped", "crate_drop_ours", "crate_breaker", "crate_kill_jobs") + tuple(
                "wire_" + m for m in proxy.MODES)
OF_SQLITE = ("sqlite_lock", "sqlite_lock", "sqlite_read_only", "sqlite_wiped")


def have_verify(env):
    return os.path.exists(os.path.join(env.top, "src", "verify.c"))


class Run:
    def __init__(self, options):
        self.o = options
        self.env = Environment(options)
        self.rng = random.Random("%s/faults" % options.seed)
        self.writers = []
        self.undo = []              # heap of (time, number, name, function, tries)
        self.count = 0
        self.serial = 0
        self.idle = None

    # --- before

    def prepare(self):
        env = self.env
        if env.kind == "crate":
            env.proxy = proxy.Proxy(random.Random("%s/proxy" % self.o.seed))
            env.crate_start()
            url = "http://127.0.0.1:%d" % env.proxy.port
        else:
            os.makedirs(os.path.dirname(env.sqlite_file), exist_ok=True)
            if os.getuid() == 0:
                os.chown(os.path.dirname(env.sqlite_file), pwd.getpwnam(env.user).pw_uid, -1)
            url = "sqlite:" + env.sqlite_file
        env.sql("ALTER SYSTEM SET crate_sync.target = %s" % lit(url))
        env.sql("SELECT pg_reload_conf()")
        env.sql(SCHEMA + "CREATE EXTENSION crate_sync;")
        major = int(env.sql("SHOW server_version_num")) // 10000
        for t in TABLES:
            extra = ""
            if t == "t_filt":
                extra = ", row_filter => %s, soft_delete_column => 'deleted_at'" % lit(FILTER)
            env.sql("SELECT crate_sync.add_table('%s'%s)" % (t, extra))
        for i in range(self.o.writers):
            self.writers.append(Writer(env, i, Dice(self.o.seed, i, major >= 15), 0.08))
        # one that stays prepared until the end; it keeps its locks through every crash
        env.sql("BEGIN; INSERT INTO t_text SELECT 'prepared', 'p', i, 'from a prepared transaction', 1 "
                "FROM generate_series(1, 100) i; PREPARE TRANSACTION 'open_all_the_time'")
        for w in self.writers:
            w.start()

    def keep_idle_session(self):
        """A session idle in transaction, with a snapshot, all the time."""
        if self.idle is not None and self.idle.poll() is None:
            return
        self.idle = self.env.popen_psql()
        try:
            self.idle.stdin.write("SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0;\n"
                                  "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id();\n")
            self.idle.stdin.flush()
        except OSError:
            pass

    # --- faults

    def names(self):
        names = ANY + (OF_CRATE if self.o.target == "crate" else OF_SQLITE)
        if self.o.only:
            names = [n for n in names if n in self.o.only]
        return [n for n in names if n not in self.o.without]

    def undo_due(self, now):
        while self.undo and self.undo[0][0] <= now:
            _, no, name, f, tries = heapq.heappop(self.undo)
            try:
                f()
                self.env.say("      end of %d %s" % (no, name))
            except (Failed, OSError) as e:
                # another fault may have to end first
                if tries > 200:
                    raise Failed("fault %d %s cannot be undone: %s" % (no, name, e))
                time.sleep(0.1)
                heapq.heappush(self.undo, (time.time() + 0.5, no, name, f, tries + 1))

    def fault(self, faults, name):
        self.serial += 1
        # what a fault draws must not change what the next ones are
        faults.r = random.Random("%s/fault/%d" % (self.o.seed, self.serial))
        note = ""
        result = None
        try:
            if name.startswith("wire_"):
                result = faults.wire(name[5:])
            else:
                result = getattr(faults, name)()
            self.count += 1
        except (Failed, OSError, ProcessLookupError, IndexError) as e:
            note = "  not possible now: %s" % e
        if isinstance(result, str):
            note = "  " + result
        elif result is not None:
            note = "  for %.1f s" % result[0]
            heapq.heappush(self.undo, (time.time() + result[0], self.serial, name, result[1], 0))
        self.env.say("fault %d %s%s" % (self.serial, name, note))

    def storm(self):
        faults = self.faults = Faults(self.env, self.rng, self.writers)
        names = self.names()
        until = time.time() + self.o.seconds
        while time.time() < until:
            gap = self.rng.expovariate(1.0 / self.o.gap)
            name = self.rng.choice(names)
            due = time.time() + min(gap, 5 * self.o.gap)
            while time.time() < due:
                self.undo_due(time.time())
                time.sleep(0.05)
            self.fault(faults, name)
            self.keep_idle_session()
        self.undo_due(float("inf"))

    # --- after

    def quiet(self):
        env = self.env
        for w in self.writers:
            w.stop.set()
        for w in self.writers:
            w.join(60)
        env.pg_up()
        for name in ("connections", "batch_rows", "sync_on_commit"):
            env.sql("ALTER SYSTEM RESET crate_sync." + name)
        env.sql("SELECT pg_reload_conf()")
        if self.idle is not None:
            self.idle.kill()
        for gid in env.sql("SELECT gid FROM pg_prepared_xacts ORDER BY 1").split():
            env.sql("COMMIT PREPARED " + lit(gid))
        if env.kind == "crate":
            for left in range(30, -1, -1):
                try:
                    self.faults.unblock()
                    break
                except Failed:
                    if not left:
                        raise
                    time.sleep(1)
        for t in sorted(self.faults.resync_due):
            self.faults.ask_resync(t)
        env.say("all is quiet: %d transactions, %d sessions lost" % (
            sum(w.done for w in self.writers), sum(w.lost for w in self.writers)))
        self.settle()
        # rows that their filter could not take, and others: mended, and tried again
        parked = int(env.sql("SELECT count(*) FROM crate_sync.failed_rows"))
        if parked:
            env.say("parked: " + env.sql("SELECT string_agg(x, '; ') FROM (SELECT relname || ' ' || action || ' ' || error_message || ': ' || count(*) AS x "
                                         "FROM crate_sync.failed_rows GROUP BY relname, action, error_message) AS y"))
            env.sql("UPDATE t_filt SET qty = 1 WHERE qty = 0; SELECT crate_sync.retry_failed()")
            self.settle()
        left = int(env.sql("SELECT count(*) FROM crate_sync.failed_rows"))
        if left:
            env.say("still parked: " + env.sql("SELECT string_agg(concat_ws(' ', relname, key, action, error_message), '; ') "
                                               "FROM (SELECT * FROM crate_sync.failed_rows LIMIT 5) AS f"))
        return parked, left

    def settle(self):
        env = self.env
        until = time.time() + QUIET_LIMIT
        last = None
        while True:
            try:
                arrived = env.sql("SELECT sum(queued_keys), sum(n_tup_upserted + n_tup_deleted) FROM crate_sync.tables")
                if arrived != last:
                    last, until = arrived, time.time() + QUIET_LIMIT
                if env.sql("SELECT crate_sync.wait_for_sync(timeout => '10s')", timeout=60) == "t":
                    break
                # false at once where rows are parked: then all the rest has to have arrived
                if env.sql("SELECT bool_and(state = 'ready' AND queued_keys = 0) AND "
                           "(SELECT queued_keys = 0 AND n_failed_rows > 0 FROM crate_sync.status) FROM crate_sync.tables") == "t":
                    break
            except Failed as e:
                env.say("wait_for_sync: %s" % e)
            if time.time() > until:
                env.say("NOT QUIET after %d s: this is how it stands" % QUIET_LIMIT)
                env.say(env.sql("\\x on\nSELECT * FROM crate_sync.status; SELECT * FROM crate_sync.mirror_state; "
                                "SELECT relid::regclass, paused, resync_no FROM crate_sync.mirror"))
                return
            time.sleep(0.5)

    def compare(self):
        env = self.env
        source = compare.Source(env.conninfo, env.bin + "/psql")
        url = env.crate_url if env.kind == "crate" else "sqlite:" + env.sqlite_file
        target = compare.open_target(url)
        rows = lost = stale = extra = 0
        compare.print_header(sys.stderr)
        for t in TABLES:
            pair = compare.Pair(source, target, t, row_filter=FILTER_SAFE if t == "t_filt" else None,
                                soft_delete="deleted_at" if t == "t_filt" else None)
            r = pair.compare()
            compare.print_result(r, sys.stderr)
            rows += r.source_rows
            lost += r.missing
            stale += r.different
            extra += r.extra
        return rows, lost, stale, extra

    def verify_agrees(self, equal):
        env = self.env
        if not have_verify(env):
            print("verify: not available in this build")
            return True
        since = env.sql("SELECT clock_timestamp()")
        env.sql("SELECT crate_sync.verify()")
        until = time.time() + 180
        while time.time() < until:
            if env.sql("SELECT bool_and(coalesce(last_verify_time > %s, false)) FROM crate_sync.tables" % lit(since)) == "t":
                break
            time.sleep(0.5)
        else:
            print("verify: did not finish")
            return False
        ok = env.sql("SELECT bool_and(last_verify_ok) FROM crate_sync.tables") == "t"
        n = env.sql("SELECT string_agg(n::text, ', ') FROM (SELECT concat_ws(' ', relname, kind, count(*)) AS n "
                    "FROM crate_sync.differences GROUP BY relname, kind) AS d")
        print("verify: %s%s" % ("equal" if ok else "NOT equal", " " + n if n else ""))
        return ok == equal

    def crashes(self):
        """What must never be in the server's log."""
        found = {}
        with open(self.env.log_file, errors="replace") as f:
            for line in f:
                m = re.search(r"PANIC|TRAP:|terminated by signal (4|6|7|8|11)\b.*|stays down|worker error|crate_sync worker.*ERROR", line)
                if m:
                    found[m.group(0)] = found.get(m.group(0), 0) + 1
        return found


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--target", choices=("crate", "sqlite"), default="sqlite")
    p.add_argument("--writers", type=int, default=4)
    p.add_argument("--gap", type=float, default=1.5)
    p.add_argument("--only", default="")
    p.add_argument("--without", default="")
    p.add_argument("--list", action="store_true")
    o = p.parse_args()
    o.only = [x for x in o.only.split(",") if x]
    o.without = [x for x in o.without.split(",") if x]
    if o.list:
        for n in sorted(set(ANY + OF_CRATE + OF_SQLITE)):
            print(n)
        return 0
    run = Run(o)
    if not run.names():
        p.error("no fault is left")
    bad = False
    run.prepare()
    try:
        run.storm()
        parked, left = run.quiet()
        rows, lost, stale, extra = run.compare()
        differs = lost + stale + extra > 0
        if not run.verify_agrees(not differs):
            print("verify: DISAGREES with the comparison")
            bad = True
        for what, n in run.crashes().items():
            print("the server's log has: %s, %d times" % (what, n))
            bad = True
    finally:
        for w in run.writers:
            w.stop.set()
        if run.env.kind == "crate" and run.env.crate_up:
            try:
                run.env.crate_signal(signal.SIGCONT)
            except OSError:
                pass
    print("seed=%d faults=%d rows=%d lost=%d stale=%d extra=%d parked=%d%s" % (
        o.seed, run.count, rows, lost, stale, extra, parked, " still_parked=%d" % left if left else ""))
    return 1 if differs or bad or left else 0


if __name__ == "__main__":
    sys.exit(main())
