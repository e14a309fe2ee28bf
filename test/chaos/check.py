"""Compares both sides by content, and says what differs and what was done before."""

import json
import os
import re
import sqlite3
import threading
import time
from collections import Counter, namedtuple

from server import Failed, Lost, Session, lit

# a table as crate_sync.mirror and tables have it
Mirror = namedtuple("Mirror", "oid name schema table state hint error keys row_filter soft_delete paused")

MIRRORS = """SELECT json_build_array(m.relid::oid, m.relid::regclass, m.target_schema, m.target_table, t.state, t.hint, t.last_error,
    (SELECT json_agg(k) FROM unnest(m.key_columns) k), m.row_filter, m.soft_delete_column, m.paused)
    FROM crate_sync.mirror m LEFT JOIN crate_sync.tables t ON t.relid = m.relid LEFT JOIN pg_class c ON c.oid = m.relid WHERE %s ORDER BY m.relid::oid"""


# states in which the target has what the source has: renamed says that somebody has to say who is meant
WHOLE = ("ready", "renamed", "differences", "verifying")


class Target:
    """Reads rows from the target as text, past the proxy."""

    def __init__(self, env, sqlite_file=None):
        self.env, self.file = env, sqlite_file

    def rows(self, schema, table, columns):
        """None: there is no such table."""
        names = ", ".join('"%s"' % c.replace('"', '""') for c in columns)
        if self.file is None and self.env.kind == "crate":
            name = self.env.target_name(table, schema)
            try:
                self.env.crate("REFRESH TABLE " + name)
                return self.env.crate("SELECT %s FROM %s LIMIT 1000000" % (names, name), timeout=20)["rows"]
            except Failed as e:
                if "nknown" in str(e):
                    return None
                raise
        try:
            # a connection of its own: the file may have been replaced
            db = sqlite3.connect("file:%s?mode=ro" % (self.file or self.env.sqlite_file), uri=True, timeout=5, isolation_level=None)
            try:
                # decoded leniently: what was put there by hand may be anything
                db.text_factory = lambda b: b.decode(errors="replace")
                name = table if schema == "doc" else schema + "." + table
                return db.execute("SELECT %s FROM \"%s\"" % (names, name.replace('"', '""'))).fetchall()
            finally:
                db.close()
        except sqlite3.OperationalError as e:
            if "no such table" in str(e) or "no such column" in str(e):
                return None
            raise Failed(str(e))

    def tables(self):
        """(schema, name) of all that are ours, apart from claims and fences."""
        if self.env.kind == "crate":
            rows = self.env.crate("SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema NOT IN "
                                  "('sys', 'information_schema', 'pg_catalog', 'blob', 'crate_sync')")["rows"]
            return {tuple(x) for x in rows}
        found = set()
        for (name,) in self.env.sqlite("SELECT name FROM sqlite_master WHERE type = 'table'"):
            schema, dot, table = name.partition(".")
            found.add((schema, table) if dot else ("doc", schema))
        return {x for x in found if x[0] != "crate_sync" and x[1] not in ("crate_sync_fence",) and not x[1].startswith("sqlite_")}


class Difference:
    def __init__(self, mirror):
        self.mirror = mirror
        self.rows = self.parked = 0
        self.count = Counter()          # lost, stale, extra, foreign
        self.samples = []

    def add(self, kind, key, source, target):
        self.count[kind] += 1
        if self.count[kind] <= 3:
            def short(row):
                return "no row" if row is None else ", ".join("NULL" if v is None else v[:30] for v in row)
            self.samples.append("    %-7s %s: source has %s; target has %s" % (kind, [str(k)[:40] for k in key], short(source), short(target)))

    def __bool__(self):
        return sum(self.count.values()) > 0

    def __str__(self):
        return " ".join("%s=%d" % (k, self.count[k]) for k in ("lost", "stale", "extra", "foreign"))


def text(value):
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and value == int(value):
        return str(value)
    return value if value is None else str(value)


def compare(s, target, mirror, allowed=None, safe_filter=None):
    """Row by row; allowed: marks that a row of the target may have if it is not another relation's."""
    d = Difference(mirror)
    columns = [c.split("|") for c in s.q("SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %d AND attnum > 0 "
                                         "AND NOT attisdropped ORDER BY attnum" % mirror.oid)]
    names = [c for c, kind in columns]
    nkeys = len(mirror.keys)
    if any(k not in names for k in mirror.keys):
        raise Failed("the key of %s is %s" % (mirror.name, mirror.keys))
    names = mirror.keys + [c for c in names if c not in mirror.keys]
    where = [x for x in (safe_filter or mirror.row_filter, mirror.soft_delete and "%s IS NULL" % mirror.soft_delete) if x]
    source = {}
    for line in s.q("SELECT json_build_array(%s) FROM %s%s" % (
            ", ".join('t."%s"::text' % c for c in names), s.q("SELECT %d::regclass" % mirror.oid)[0] + " t",
            " WHERE " + " AND ".join("(%s)" % w for w in where) if where else "")):
        row = json.loads(line)
        source[tuple(row[:nkeys])] = row
    rows = target.rows(mirror.schema, mirror.table, names)
    if rows is None:
        # no table or not all of its columns
        rows = []
    mark = names.index("mark") if "mark" in names else None
    parked = {tuple(json.loads(x).get(k) for k in mirror.keys) for x in
              s.q("SELECT key FROM crate_sync.failed_rows WHERE relid = %d" % mirror.oid)}
    parked = {tuple(text(v) for v in k) for k in parked}
    d.rows = len(source)
    seen = set()
    for row in rows:
        row = [text(v) for v in row]
        key = tuple(row[:nkeys])
        seen.add(key)
        mine = source.get(key)
        if mine == row:
            continue
        if key in parked:
            d.parked += 1
        elif mark is not None and allowed and row[mark] not in allowed and row[mark] is not None:
            d.add("foreign", key, mine, row)
        else:
            d.add("stale" if mine else "extra", key, mine, row)
    for key, row in source.items():
        if key not in seen:
            if key in parked:
                d.parked += 1
            else:
                d.add("lost", key, row, None)
    return d


class Checker:
    def __init__(self, world, env):
        self.world, self.env = world, env
        self.target = Target(env)
        self.found = Counter()      # rows: lost, stale, extra, foreign
        self.rows = 0
        self.looks = self.skipped = self.early = 0
        self.lock = threading.Lock()
        self.spoiled = set()        # OIDs of tables whose target was changed by hand, and no resync asked for yet

    def mirrors(self, s, family):
        where = "c.relnamespace IN (%s)" % ", ".join(family.namespaces)
        if family.expected:
            where += " OR m.relid IN (%s)" % ", ".join(map(str, sorted(family.expected)))
        return [Mirror(int(x[0]), *x[1:]) for x in (json.loads(line) for line in s.q(MIRRORS % ("(" + where + ")")))]

    def in_sync(self, s, mirror, seconds):
        until = time.time() + seconds
        while time.time() < until:
            if s.q("SELECT crate_sync.wait_for_sync(%d, '4s')" % mirror.oid) == ["t"]:
                return True
        return False

    def look_at(self, family, s, patience=10, last=False):
        """Compares a family's tables while nobody writes to them.  The caller has its lock."""
        if not family.namespaces or (last is False and not self.world.go.is_set()):
            return True
        try:
            if not family.gate.close(40 if last else 25):
                self.skipped += 1
                return False
            mirrors = self.mirrors(s, family)
            clean = True
            if last or not [e for e in self.world.events[-3:] if "outcome unknown" in e.text]:
                self.expect(family, s, mirrors, last)
            until = time.time() + patience
            for m in mirrors:
                clean &= self.look_at_table(family, s, m, max(1, until - time.time()), last)
            if clean and mirrors:
                family.equal_at = time.time()
            return clean
        except (Failed, OSError) as e:
            if last:
                raise
            self.skipped += 1
            self.world.note(family, "not compared: %s" % e)
            return False
        finally:
            family.gate.open()

    def expect(self, family, s, mirrors, last):
        """Nothing that was added may have left the catalog."""
        there = {m.oid for m in mirrors}
        exist = {int(x) for x in s.q("SELECT oid FROM pg_class WHERE oid IN (%s)" % ", ".join(map(str, family.expected | {0})))}
        if last:
            for name in family.follows:
                if s.q("SELECT to_regclass(%s) IS NOT NULL" % lit(name)) == ["t"] and name not in {m.name for m in mirrors}:
                    self.world.complaints["%s is not what is mirrored, as its name says" % name] += 1
        for oid in sorted(family.expected - there):
            family.expected.discard(oid)
            if oid in exist:
                self.world.complaints["a table is not mirrored any more"] += 1
                self.world.note(family, "NOT MIRRORED any more: %s %s" % (oid, family.name_of(s, oid)))
                self.env.say("\n".join(self.world.history(family, family.equal_at)))

    def state(self, s, oid):
        return (s.q("SELECT state FROM crate_sync.tables WHERE relid = %d" % oid) or ["gone"])[0]

    def look_at_table(self, family, s, m, patience, last):
        if m.oid in self.spoiled:
            s.q("SELECT crate_sync.resync(%d)" % m.oid)
            self.spoiled.discard(m.oid)
        if m.state == "dropped" and not last:
            return True
        if m.state == "dropped" or not self.in_sync(s, m, patience) or self.state(s, m.oid) not in WHOLE:
            self.skipped += 1
            state = s.q("SELECT concat_ws(' | ', state, queued_keys, last_error, hint) FROM crate_sync.tables WHERE relid = %d" % m.oid)
            self.world.note(family, "%s not in sync: %s" % (m.name, state))
            if last:
                self.world.complaints["%s is not in sync in the end: %s" % (m.name, state)] += 1
            return False
        self.looks += 1
        for attempt in range(4):
            d = compare(s, self.target, m, family.allowed.get(m.oid), family.safe_filter(m.oid, m.row_filter))
            if last and not attempt:
                self.rows += d.rows
            if not d:
                if attempt:
                    self.early += 1
                    self.world.note(family, "%s: wait_for_sync was %d look(s) too early" % (m.name, attempt))
                return True
            first = d if not attempt else first
            time.sleep((0.3, 1, 2.5, 0)[attempt])
            if attempt < 3:
                self.in_sync(s, m, 3)
        self.differs(family, s, m, d)
        return False

    def differs(self, family, s, m, d):
        with self.lock:
            self.found.update(d.count)
            self.world.findings.append((family.name, m.name, str(d)))
            self.env.say("DIFFERS  %s, %s: %s of %d rows" % (family.name, m.name, d, d.rows))
            said = s.q("SELECT concat_ws(' | ', state, message) FROM crate_sync.status")
            print("\n".join(d.samples + ["    status: %s" % said, "    what was done since they were equal last:"]
                            + self.world.history(family, family.equal_at)), file=os.sys.stderr, flush=True)
        # from here on something new has to be found
        s.q("SELECT crate_sync.resync(%d, 'full')" % m.oid)
        self.world.note(family, "the test resyncs %s" % m.name)


class Memory(threading.Thread):
    """Watches what the workers have in memory of their own."""

    LIMIT = 160 << 10       # kB; work_mem is 16 MB

    def __init__(self, env):
        super().__init__(daemon=True)
        self.env = env
        self.most = 0
        self.stop = threading.Event()

    def run(self):
        while not self.stop.wait(1.0):
            for pid in self.workers():
                try:
                    with open("/proc/%d/status" % pid) as f:
                        m = re.search(r"RssAnon:\s+(\d+)", f.read())
                    if m:
                        self.most = max(self.most, int(m.group(1)))
                except OSError:
                    pass

    def workers(self):
        """By their titles, as the server may be down."""
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    with open("/proc/%s/cmdline" % pid, "rb") as f:
                        title = f.read(200)
                    if b"crate_sync worker" in title and os.readlink("/proc/%s/cwd" % pid) == os.path.realpath(self.env.data):
                        found.append(int(pid))
                except OSError:
                    pass
        return found


class Watch(threading.Thread):
    """How long a table is in trouble while nothing is broken on purpose."""

    def __init__(self, env, world):
        super().__init__(daemon=True)
        self.env, self.world = env, world
        self.longest = {}       # by name: seconds, words
        self.stop = threading.Event()

    def run(self):
        since = {}
        while not self.stop.wait(2.0):
            try:
                rows = self.env.sql("SELECT json_build_array(schemaname || '.' || relname, last_error) FROM crate_sync.tables WHERE state = 'error'")
            except Failed:
                rows = ""
            now = {}
            for line in rows.splitlines():
                if self.world.calm:
                    name, words = json.loads(line)
                    now[name, words] = since.get((name, words), time.time())
                    seconds = time.time() - now[name, words]
                    if seconds > self.longest.get(name, (0,))[0]:
                        self.longest[name] = (seconds, words)
            since = now
