"""Faults of the server, of the target and of the wire, and what a superuser may do to the five tables of writers.py."""

import glob
import os
import signal
import sqlite3
import threading
import time

import proxy
from server import Failed, lit
from writers import TABLES

REQUEST_TIMEOUT = 2.0       # as run sets it


class Faults:
    """Each fault is a method; it may return (seconds, undo), to be called later."""

    def __init__(self, env, rng, world):
        self.env, self.r, self.world = env, rng, world
        self.resync_due = set()             # OIDs of tables whose target was changed by hand
        self.serial = 0

    def table(self):
        """Name and OID of a mirrored table: one of the five, or of a family that is not let alone."""
        alone = [str(oid) for f in self.world.alone for oid in f.expected]
        rows = [row.split("|") for row in self.env.sql("SELECT relid::regclass, relid::oid FROM crate_sync.mirror WHERE relid NOT IN (%s) "
                                                       "AND EXISTS (SELECT FROM pg_class WHERE oid = relid) ORDER BY 2"
                                                       % ", ".join(alone + ["0"])).splitlines()]
        five = [x for x in rows if x[0] in TABLES]
        x = self.r.random()
        name, oid = self.r.choice(five if five and x < 0.6 else rows)
        return name, int(oid)

    def any_or_all(self):
        return self.table()[0] if self.r.random() < 0.8 else None

    def later(self, oid, statement):
        """To be done to whatever name the table has then."""
        def do():
            name = self.env.sql("SELECT oid::regclass FROM pg_class WHERE oid = %d" % oid)
            if name:
                self.env.sql(statement % name)
        return do

    def seconds(self, lo, hi):
        return lo + (hi - lo) * self.r.random()

    # --- PostgreSQL's processes

    def kill_worker(self):
        for pid in self.env.backends("crate_sync worker"):
            self.env.kill(pid)

    def terminate_worker(self):
        self.env.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'crate_sync worker'")

    def terminate_launcher(self):
        self.env.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'crate_sync launcher'")

    def kill_backend(self):
        x = self.r.random()
        pids = self.env.backends("client backend")
        self.env.kill(pids[int(x * len(pids))])

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
        self.env.freeze(self.env.backends("crate_sync worker"))
        return self.seconds(1, 5), self.env.thaw

    # --- what a user may do

    def pause(self):
        t = self.any_or_all()
        self.env.sql("SELECT crate_sync.pause(%s)" % (lit(t) if t else ""))
        return self.seconds(1, 5), lambda: self.env.sql("SELECT crate_sync.resume()")

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
        t = self.any_or_all()
        mode = self.r.choice(("full", "full", "upsert", "rebuild"))
        self.env.sql("SELECT crate_sync.resync(%s, %s)" % (lit(t) if t else "NULL", lit(mode)))
        return "%s %s" % (mode, t or "all")

    def retry_failed(self):
        self.env.sql("SELECT crate_sync.retry_failed()")

    def verify(self):
        self.env.sql("SELECT crate_sync.verify(%s, repair => %s)"
                     % (lit(self.table()[0]), self.r.choice(("true", "false"))))

    def vacuum_full_source(self):
        t, oid = self.table()
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
        t, oid = self.table()
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
        t, oid = self.table()
        self.serial += 1
        name = "extra_%d" % self.serial
        self.env.sql("ALTER TABLE %s ADD COLUMN %s %s" % (t, name, self.r.choice((
            "int", "text DEFAULT 'd'", "float8 DEFAULT random()", "bigint DEFAULT 7"))))
        return self.seconds(1, 6), self.later(oid, "ALTER TABLE %s DROP COLUMN IF EXISTS " + name)

    def disable_triggers(self):
        t, oid = self.table()
        what = self.r.choice(("ALL", "USER", "crate_sync_capture"))
        self.env.sql("ALTER TABLE %s DISABLE TRIGGER %s" % (t, what))
        return self.seconds(0, 3), self.later(oid, "ALTER TABLE %s ENABLE " + (
            "ALWAYS " if what == "crate_sync_capture" else "") + "TRIGGER " + what)

    def drop_trigger(self):
        t, oid = self.table()
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
        """Rows changed, removed and put in at the target; a resync is asked for, which has to mend it."""
        t, oid = self.table()
        family = next((f for f in self.world.families if oid in f.expected), None)
        if family and not family.busy.acquire(blocking=False):
            raise Failed("somebody else has it")
        try:
            schema, table, keys = self.env.sql("SELECT target_schema, target_table, array_to_string(key_columns, ',') FROM crate_sync.mirror "
                                               "WHERE relid = %d" % oid).split("|")
            name = self.env.target_name(table, schema)
            column = {"t_big": "v", "t_text": "note", "t_part": "v", "t_doc": "d", "t_filt": "v"}.get(t, "mark")
            self.resync_due.add(oid)
            self.env.refresh(name)
            x = self.r.random()
            if x < 0.3:
                self.env.target("DELETE FROM %s" % name + (" WHERE id < 500" if t in ("t_big", "t_part", "t_filt") and self.r.random() < 0.5 else ""))
            elif x < 0.6:
                self.env.target("UPDATE %s SET \"%s\" = NULL" % (name, column))
            elif x < 0.8:
                self.env.target("DELETE FROM %s WHERE \"%s\" IS NOT NULL" % (name, column))
            else:
                self.strange_rows(name, t, keys.split(","))
            self.ask_resync(oid)
        finally:
            if family:
                family.busy.release()
        return t

    def strange_rows(self, name, t, keys):
        """Keys that nobody here could have written."""
        if t == "t_text":
            for k in ("\0", "a\0b", "\ud7ff\uffff", "'", '"', "\\", "\r\n", ""):
                if "\0" in k and self.env.kind == "sqlite":
                    continue            # what cannot be read back as it is cannot be named
                self.env.target_insert(name, ("a", "c", "b"), (k, self.r.randrange(99), "b" + k))
        elif self.env.kind == "sqlite" and len(keys) == 1:
            # a file takes anything in any column
            for k in (None, "not a number", 1.5, 1 << 62, "9" * 50):
                try:
                    self.env.target_insert(name, keys, (k,))
                except Failed:
                    pass
        else:
            self.env.target("DELETE FROM %s" % name)

    def ask_resync(self, oid):
        self.env.sql("SET synchronous_commit = on; SELECT crate_sync.resync(relid) FROM crate_sync.mirror WHERE relid = %d "
                     "AND EXISTS (SELECT FROM pg_class WHERE oid = relid)" % oid)
        self.resync_due.discard(oid)

    def drop_target(self):
        """Of one that is written to all the time: who would look, otherwise?"""
        t = self.r.choice(TABLES)
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
        if not self.env.standin:
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
                                            "WHERE table_schema NOT IN ('sys', 'information_schema', 'pg_catalog', 'blob')")["rows"]:
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
        db = self.env.sqlite_open()
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
            os.chmod(places[1], 0o755)
            # with what was made beside it meanwhile, in its image
            for p in glob.glob(path + "*"):
                os.chmod(p, 0o644)
        return self.seconds(0.5, 4), undo

    def sqlite_wiped(self):
        for f in glob.glob(self.env.sqlite_file + "*"):
            os.unlink(f)


OF_SERVER = (
    "kill_worker", "kill_worker", "terminate_worker", "terminate_launcher", "kill_backend", "kill_postmaster",
    "immediate_shutdown", "immediate_shutdown", "restart", "freeze_worker", "stop_worker", "disable", "settings", "low_timeouts",
)
# of the five tables, and of ours
OF_TABLES = (
    "pause", "resync", "resync", "retry_failed", "verify", "vacuum_full_source", "vacuum_full_queue", "lock_queue", "lock_source",
    "add_column", "disable_triggers", "drop_trigger", "checkpoint",
)
OF_TARGET = ("by_hand", "drop_target")
OF_CRATE = ("crate_freeze", "crate_freeze", "crate_freeze_kill_worker", "crate_freeze_kill_worker", "crate_kill", "crate_read_only",
            "crate_read_only_all", "crate_wiped", "crate_drop_ours", "crate_breaker", "crate_kill_jobs") + tuple(
                "wire_" + m for m in proxy.MODES)
OF_SQLITE = ("sqlite_lock", "sqlite_lock", "sqlite_read_only", "sqlite_wiped")


def groups(kind):
    """Faults by group; a fault that is named twice comes twice as often."""
    return {"server": OF_SERVER, "tables": OF_TABLES, "target": OF_TARGET + (OF_CRATE if kind == "crate" else OF_SQLITE)}
