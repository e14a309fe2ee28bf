"""A second database: dumped and restored elsewhere, copied, and its copy adopted."""

import json
import os
import pwd
import subprocess
import threading
import time

from check import MIRRORS, Mirror, Target, compare
from server import Failed, Session, lit
from world import Family

# a dump that meets a table being altered: PostgreSQL's own
DUMP_ERRORS = ("lock", "canceling statement", "does not exist", "cache lookup", "could not open", "terminating", "shutting down", "recovery", "closed the connection",
               "connection to server")


class Copies(Family):
    group = "copies"
    weight = 1
    writing = 0
    check_share = 0
    DATABASE = "other"

    def create(self, s):
        self.sessions = {}
        # as a user would: in two statements, one right after the other
        s.q("CREATE DATABASE %s" % self.DATABASE)
        o = self.session(self.DATABASE)
        o.q("CREATE EXTENSION crate_sync;")
        for t in ("a", "b"):
            o.q("CREATE SCHEMA IF NOT EXISTS {0}; CREATE TABLE {0}.{1} (id int PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT '{0}_{1}'); "
                "INSERT INTO {0}.{1} (id, v) SELECT i, 'x' FROM generate_series(1, 300) i; "
                "SELECT crate_sync.add_table('{0}.{1}', options => '{{\"shards\": 1, \"replicas\": 0}}')".format(self.name, t))
        o.q("CREATE TABLE {0}.p (id int, k int, v text, n int DEFAULT 0, mark text DEFAULT '{0}_p', PRIMARY KEY (k, id)) PARTITION BY LIST (k); "
            "CREATE TABLE {0}.p1 PARTITION OF {0}.p FOR VALUES IN (1) PARTITION BY LIST (id); CREATE TABLE {0}.p1d PARTITION OF {0}.p1 DEFAULT; "
            "CREATE TABLE {0}.p2 PARTITION OF {0}.p FOR VALUES IN (2); INSERT INTO {0}.p (id, k) SELECT i, 1 + i % 2 FROM generate_series(1, 100) i; "
            "SELECT crate_sync.add_table('{0}.p', options => '{{\"shards\": 1, \"replicas\": 0}}')".format(self.name))

    def session(self, database):
        return self.sessions.setdefault(database, Session(self.world.env, database=database))

    def forget(self, s, database):
        if database in self.sessions:
            self.sessions.pop(database).close()
        for i in range(20):
            try:
                s.q("DROP DATABASE IF EXISTS %s WITH (FORCE)" % database)
                return
            except Failed:
                time.sleep(0.3)

    def operations(self):
        return ((4, self.restored), (2, self.change), (2 if self.world.calm else 0, self.copied_and_adopted))

    def change(self, s, r):
        o = self.session(self.DATABASE)
        t = r.choice(("a", "b"))
        o.q("UPDATE %s.%s SET n = n + 1 WHERE id %% 7 = %d; DELETE FROM %s.%s WHERE id = %d; INSERT INTO %s.%s (id, v) VALUES (%d, 'new') ON CONFLICT DO NOTHING"
            % (self.name, t, r.randrange(7), self.name, t, r.randrange(300), self.name, t, r.randrange(400)))
        return t

    def disturbed_since(self, time):
        """A target that is wiped belongs to whoever comes first."""
        return any(e.time >= time and e.family is None and e.text.startswith("fault") for e in list(self.world.events))

    def judge_equal(self, database, target, what, seconds=30, began=None):
        """All tables of a database against its target, once they are in sync."""
        began = began or time.time()
        o = self.session(database)
        until = time.time() + seconds
        while True:
            waited = o.reading("SELECT crate_sync.wait_for_sync(timeout => '5s')") == ["t"]
            said = o.reading("SELECT concat_ws(' | ', ok, state, message, hint) FROM crate_sync.status")[0]
            if waited and said.startswith("t"):
                break
            if waited and "table error" in said:
                self.world.note(self, "%s: wait_for_sync says true, status: %s" % (what, said))
            if time.time() > until:
                self.world.note(self, "%s: not in sync: %s" % (what, said))
                return False
            time.sleep(0.5)
        for line in o.q(MIRRORS % "true"):
            m = Mirror(*json.loads(line))
            m = m._replace(oid=int(m.oid))
            d = compare(o, target, m)
            if d and self.disturbed_since(began):
                self.world.note(self, "%s: %s: %s, but something was broken meanwhile" % (what, m.name, d))
            elif d:
                self.world.complaints["%s: %s: %s" % (what, m.name, d)] += 1
                self.world.note(self, "DIFFERS  %s: %s: %s\n%s" % (what, m.name, d, "\n".join(d.samples)))
        return True

    def restored(self, s, r):
        """pg_dump | psql into a database that mirrors elsewhere, as a script that stops at the first error."""
        env = self.world.env
        source = r.choice((self.DATABASE, self.DATABASE, "postgres"))
        self.forget(s, "restored")
        path = env.work + "/target/restored.db"
        for f in (path, path + "-wal", path + "-shm"):
            if os.path.exists(f):
                os.unlink(f)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.getuid() == 0:
            os.chown(os.path.dirname(path), pwd.getpwnam(env.user).pw_uid, -1)
        s.q("CREATE DATABASE restored TEMPLATE template0; ")
        s.q("ALTER DATABASE restored SET crate_sync.target = %s" % lit("sqlite:" + path))
        dump = subprocess.run([env.bin + "/pg_dump", "-d", env.conn(source), "--lock-wait-timeout=3000"], capture_output=True, text=True)
        if dump.returncode:
            if not any(w in dump.stderr for w in DUMP_ERRORS):
                self.world.complaints["pg_dump: " + dump.stderr[:150]] += 1
            raise Failed("pg_dump: " + dump.stderr.strip()[:150])
        single = ["-1"] if r.random() < 0.3 else []
        restore = subprocess.run([env.bin + "/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *single, "-d", env.conn("restored"), "-f", "-"],
                                 input=dump.stdout, capture_output=True, text=True)
        if restore.returncode and not any(w in restore.stderr for w in DUMP_ERRORS[-5:]) and (
                # a dump that was taken while names changed may have a trigger under another name
                source == self.DATABASE or "already exists" in restore.stderr):
            self.world.complaints["restore of a dump: " + restore.stderr.strip()[:200]] += 1
        if restore.returncode:
            self.world.note(self, "restore of %s: %s" % (source, restore.stderr.strip()[:400]))
        done = ""
        if not restore.returncode and source == self.DATABASE:
            done = ", equal" if self.judge_equal("restored", Target(env, path), "restored from a dump", 20) else ", not in sync"
        self.forget(s, "restored")
        return "%s%s%s" % (source, " in one transaction" if single else "", done)

    def copied_and_adopted(self, s, r):
        """The copy takes over while the original goes on deleting."""
        env = self.world.env
        began = time.time()
        self.forget(s, "copy")
        o = self.session(self.DATABASE)
        if o.q("SELECT crate_sync.wait_for_sync(timeout => '10s')") != ["t"]:
            raise Failed("it is not in sync")
        o.close()
        for i in range(10):
            try:
                s.q("CREATE DATABASE copy TEMPLATE %s" % self.DATABASE)
                break
            except Failed as e:
                error = e
                time.sleep(0.5)
        else:
            raise error
        original = Session(env, Session.SETTINGS + "SET statement_timeout = '60s';", database=self.DATABASE)
        copy = self.session("copy")
        target = Target(env)
        try:
            copy.q("SELECT crate_sync.start()")
            for i in range(40):
                if "copy" in "".join(copy.q("SELECT message FROM crate_sync.status")):
                    break
                time.sleep(0.5)
            deleting = threading.Thread(target=lambda: original.run("DO $$ BEGIN FOR i IN 1..200 LOOP DELETE FROM %s.a WHERE id = i; COMMIT; "
                                                                    "PERFORM pg_sleep(0.05); END LOOP; END $$;" % self.name))
            deleting.start()
            time.sleep(r.random())
            copy.q("SELECT crate_sync.adopt()")
            deleting.join(60)
            equal = self.judge_equal("copy", target, "adopted by a copy while the original deletes", 40, began)
            time.sleep(2)
            if equal:
                self.judge_equal("copy", target, "adopted by a copy, a while later", 10, began)
        finally:
            original.close()
            self.forget(s, "copy")
        # and back
        o = self.session(self.DATABASE)
        o.q("SELECT crate_sync.adopt()")
        self.judge_equal(self.DATABASE, target, "adopted again by the original", 40, began)
        return "%s, and back" % ("equal" if equal else "not in sync")

    def last_look(self, s):
        """In the end."""
        if not self.judge_equal(self.DATABASE, Target(self.world.env), "the other database", 60):
            self.world.complaints["the other database is not in sync in the end"] += 1
        for o in self.sessions.values():
            o.close()
