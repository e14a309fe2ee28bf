"""Random writers: what they do is a function of the seed alone."""

import random
import threading
import time

from server import Failed, Session, lit
from world import Family

SCHEMA = r"""
CREATE TABLE t_big (id bigint PRIMARY KEY, v text, n int, f float8, b boolean, ts timestamptz);
CREATE TABLE t_text (a text COLLATE "C", b varchar(40) COLLATE "C", c int, note text, amount numeric(12,2),
	PRIMARY KEY (a, c, b));
CREATE TABLE t_part (id int, region int, v text, amount numeric(12,2), at timestamp DEFAULT '2020-01-01',
	PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE t_part_0 PARTITION OF t_part FOR VALUES IN (0);
CREATE TABLE t_part_1 (junk text, at timestamp DEFAULT '2020-01-01', amount numeric(12,2), id int NOT NULL, region int NOT NULL, v text);
ALTER TABLE t_part_1 DROP COLUMN junk;
ALTER TABLE t_part ATTACH PARTITION t_part_1 FOR VALUES IN (1);
CREATE TABLE t_part_2 PARTITION OF t_part FOR VALUES IN (2) PARTITION BY RANGE (id);
CREATE TABLE t_part_2a PARTITION OF t_part_2 FOR VALUES FROM (MINVALUE) TO (1000);
CREATE TABLE t_part_2b PARTITION OF t_part_2 FOR VALUES FROM (1000) TO (MAXVALUE);
CREATE TABLE t_part_d PARTITION OF t_part DEFAULT;
CREATE TABLE t_doc (k numeric(10,0), u uuid, tags text[], nums bigint[], doc jsonb, at timestamp(3), atz timestamptz(3), d date,
	PRIMARY KEY (k, u));
CREATE TABLE t_filt (id int PRIMARY KEY, state text, qty int, v text, deleted_at timestamptz);
CREATE FUNCTION rstr(seed int) RETURNS text LANGUAGE sql IMMUTABLE AS
	$$ SELECT CASE abs(seed) % 9 WHEN 0 THEN '' WHEN 1 THEN E'q"''\\ ' || seed WHEN 2 THEN E'line\nbreak\t' || seed
		WHEN 3 THEN 'grüße ☃ 𝄞 ' || seed WHEN 4 THEN repeat('x', abs(seed) % 700) ELSE md5(seed::text) END $$;
"""
TABLES = ("t_big", "t_text", "t_part", "t_doc", "t_filt")
# division by zero on some rows, on purpose
FILTER = "state <> 'hidden' AND 100 / qty > 1"
FILTER_SAFE = "state <> 'hidden' AND 100 / nullif(qty, 0) > 1"
KEYS = 3000


class Dice:
    """SQL for one writer, from a random stream of its own."""

    def __init__(self, seed, no, merge):
        self.r = random.Random("%s/writer/%s" % (seed, no))
        self.no = no
        self.merge = merge
        self.gid = 0

    def key(self):
        r = self.r
        # some keys are hot
        return r.randrange(40) if r.random() < 0.3 else r.randrange(KEYS)

    def span(self):
        lo = self.r.randrange(KEYS)
        return lo, lo + self.r.choice((5, 50, 300, 1200))

    def string(self):
        return "rstr(%d)" % self.r.randrange(-10 ** 6, 10 ** 6)

    def ts(self):
        return "timestamptz '2020-01-01' + %d * interval '1 ms'" % self.r.randrange(10 ** 11)

    # expressions over g, a number from a series; s a salt
    def row(self, t, g):
        s = self.r.randrange(10 ** 6)
        if t == "t_big":
            return ("id, v, n, f, b, ts", "%s, rstr(%s + %d), %d, %s / 7.0 + %d, (%s + %d) %% 3 = 0, timestamptz '2021-01-01' + (%s + %d) * interval '1.5 ms'"
                    % (g, g, s, s, g, s, g, s, g, s))
        if t == "t_text":
            return ("a, b, c, note, amount", "rstr(%s * 7919), 'b' || (%s %% 5), %s %% 10, rstr(%s + %d), (%s + %d) / 100.0"
                    % (g, g, g, g, s, g, s))
        if t == "t_part":
            return ("id, region, v, amount", "%s, (%s + %d) %% 5, rstr(%s + %d), %d / 100.0" % (g, g, s % 2, g, s, s))
        if t == "t_doc":
            return ("k, u, tags, nums, doc, at, atz, d",
                    "%s, md5((%s %% 50)::text)::uuid, CASE %s %% 4 WHEN 0 THEN NULL WHEN 1 THEN '{}' ELSE ARRAY[rstr(%s + %d), NULL, 'z'] END, "
                    "ARRAY[%s, %d], jsonb_build_object('a', %d, 'b', jsonb_build_array(%s, NULL, 'x'), 'c', rstr(%d)), "
                    "timestamp '2022-01-01' + %d * interval '1 s', timestamptz '2022-01-01' + %d * interval '1 ms', date '2000-01-01' + %d"
                    % (g, g, g, g, s, g, s, s, g, s, s, s, s % 9999))
        # one row in a few hundred has qty 0, which its filter cannot take
        return ("id, state, qty, v, deleted_at",
                "%s, CASE (%s + %d) %% 6 WHEN 0 THEN 'hidden' ELSE 'open' END, (%s + %d) %% 311, rstr(%s + %d), "
                "CASE WHEN (%s + %d) %% 9 = 0 THEN timestamptz '2024-01-01' END" % (g, g, s, g, s, g, s, g, s))

    def conflict(self, t):
        keys = {"t_big": "id", "t_text": "a, c, b", "t_part": "region, id", "t_doc": "k, u", "t_filt": "id"}[t]
        sets = {"t_big": "v = excluded.v, n = t_big.n + 1, f = excluded.f", "t_text": "note = excluded.note, amount = t_text.amount + 1",
                "t_part": "v = excluded.v, amount = excluded.amount", "t_doc": "doc = excluded.doc, tags = excluded.tags, nums = excluded.nums",
                "t_filt": "state = excluded.state, qty = excluded.qty, v = excluded.v, deleted_at = excluded.deleted_at"}[t]
        return keys, sets

    def pick(self, t, g):
        """a condition that holds for the rows made from g"""
        return {"t_big": "id = %s", "t_text": "a = rstr(%s * 7919)", "t_part": "id = %s", "t_doc": "k = %s", "t_filt": "id = %s"}[t] % g

    def between(self, t, lo, hi):
        if t == "t_text":
            return "c = %d" % (lo % 10)
        return "%s BETWEEN %d AND %d" % ({"t_doc": "k"}.get(t, "id"), lo, hi)

    def sets(self, t):
        s = self.r.randrange(10 ** 6)
        return {"t_big": "v = rstr(n + %d), n = n + 1, b = NOT b" % s, "t_text": "note = rstr(c + %d), amount = amount + 1" % s,
                "t_part": "v = rstr(id + %d), amount = amount + 1" % s,
                "t_doc": "doc = doc || jsonb_build_object('n', %d, 'o', jsonb_build_object('p', %d)), nums = nums || %d::bigint, atz = atz + interval '1 ms'" % (s, s, s)
                if self.r.random() < 0.3 else "doc = jsonb_build_object('n', %d), nums = ARRAY[%d]::bigint[]" % (s, s),
                "t_filt": self.r.choice(("state = CASE state WHEN 'hidden' THEN 'open' ELSE 'hidden' END", "qty = (qty + %d) %% 311" % (s % 311),
                                         "deleted_at = CASE WHEN deleted_at IS NULL THEN timestamptz '2023-01-01' END",
                                         "v = rstr(%d)" % s))}[t]

    def rekey(self, t, where):
        d = self.r.randrange(1, 50)
        return {"t_big": "UPDATE t_big SET id = id + %d WHERE %s AND NOT EXISTS (SELECT FROM t_big x WHERE x.id = t_big.id + %d)",
                "t_text": "UPDATE t_text SET c = c + 10 * (%d - 25) WHERE %s AND NOT EXISTS (SELECT FROM t_text x WHERE (x.a, x.b, x.c) = (t_text.a, t_text.b, t_text.c + 10 * (%d - 25)))",
                "t_part": "UPDATE t_part SET region = (region + %d) %% 5 WHERE %s AND NOT EXISTS (SELECT FROM t_part x WHERE (x.id, x.region) = (t_part.id, (t_part.region + %d) %% 5))",
                "t_doc": "UPDATE t_doc SET u = md5(u::text || %d)::uuid WHERE %s AND k < %d * 1000000",
                "t_filt": "UPDATE t_filt SET id = id + %d WHERE %s AND NOT EXISTS (SELECT FROM t_filt x WHERE x.id = t_filt.id + %d)"}[t] % (d, where, d)

    def statement(self):
        r = self.r
        t = r.choice(TABLES)
        x = r.random()
        g = self.key()
        if x < 0.22:
            cols, vals = self.row(t, str(g))
            keys, sets = self.conflict(t)
            return "INSERT INTO %s (%s) VALUES (%s) ON CONFLICT (%s) DO UPDATE SET %s" % (t, cols, vals, keys, sets)
        if x < 0.42:
            return "UPDATE %s SET %s WHERE %s" % (t, self.sets(t), self.pick(t, g))
        if x < 0.54:
            return "DELETE FROM %s WHERE %s" % (t, self.pick(t, g))
        if x < 0.62:
            where = self.pick(t, g)
            return self.rekey(t, where)
        if x < 0.70:
            lo, hi = self.span()
            cols, vals = self.row(t, "g")
            keys, sets = self.conflict(t)
            return ("INSERT INTO %s (%s) SELECT DISTINCT ON (%s) * FROM (SELECT %s FROM generate_series(%d, %d) g) AS q(%s) "
                    "ON CONFLICT (%s) DO %s" % (t, cols, keys, vals, lo, hi, cols, keys,
                                                "NOTHING" if r.random() < 0.5 else "UPDATE SET " + sets))
        if x < 0.76:
            lo, hi = self.span()
            return "UPDATE %s SET %s WHERE %s" % (t, self.sets(t), self.between(t, lo, hi))
        if x < 0.80:
            lo, hi = self.span()
            return "DELETE FROM %s WHERE %s" % (t, self.between(t, lo, hi))
        if x < 0.83 and self.merge:
            return ("MERGE INTO t_big t USING (SELECT i AS id FROM generate_series(%d, %d) i) s ON t.id = s.id "
                    "WHEN MATCHED AND t.n %% 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = t.n + 1 "
                    "WHEN NOT MATCHED THEN INSERT (id, v, n) VALUES (s.id, rstr(s.id::int), 1)" % (g, g + r.randrange(40)))
        if x < 0.88:
            lo, hi = self.span()
            lo += 10 ** 6 * self.no
            hi += 10 ** 6 * self.no
            # a COPY cannot upsert: a range of this writer's own, emptied before
            rows = "".join("%d\tcopied %d\t%d\n" % (i, r.randrange(1000), r.randrange(1000)) for i in range(lo, min(hi, lo + 400)))
            return "DELETE FROM t_big WHERE id BETWEEN %d AND %d;\nCOPY t_big (id, v, n) FROM STDIN;\n%s\\.\n\\r\nSELECT 1" % (lo, hi, rows)
        if x < 0.885:
            return "TRUNCATE %s" % r.choice(TABLES + ("t_part_1", "t_part_2", "t_part_2a", "t_big, t_filt"))
        if x < 0.93:
            return ("DO $$ BEGIN FOR i IN 1..%d LOOP BEGIN UPDATE t_big SET n = n + 1 WHERE id = i * %d; "
                    "IF i %% 3 = 0 THEN RAISE 'undone'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$"
                    % (r.randrange(2, 20), r.randrange(1, 50)))
        part = r.choice(("t_part_0", "t_part_1", "t_part_2a", "t_part_d"))
        return r.choice(("UPDATE %s SET v = rstr(id)", "DELETE FROM %s WHERE id %% 7 = 3")) % part

    def transaction(self):
        """A script, and whether it waits on purpose."""
        r = self.r
        x = r.random()
        if x < 0.35:
            return self.statement() + ";"
        lines = ["BEGIN%s;" % r.choice(("", "", "", " ISOLATION LEVEL REPEATABLE READ", " ISOLATION LEVEL SERIALIZABLE"))]
        if r.random() < 0.5:
            lines.append("SET LOCAL synchronous_commit = off;")
        if r.random() < 0.05:
            lines.append("SET LOCAL session_replication_role = replica;")
        depth = 0
        for i in range(r.choice((1, 2, 2, 3, 5, 8))):
            y = r.random()
            if y < 0.25:
                depth += 1
                lines.append("SAVEPOINT s%d;" % depth)
            lines.append(self.statement() + ";")
            if depth and r.random() < 0.4:
                lines.append(r.choice(("ROLLBACK TO s%d;", "RELEASE s%d;")) % depth)
                if lines[-1].startswith("RELEASE"):
                    depth -= 1
            if r.random() < 0.04:
                lines.append("SELECT pg_sleep(%.2f);" % (r.random() * 3))
        y = r.random()
        if y < 0.15:
            lines.append("ROLLBACK;")
        elif y < 0.25:
            self.gid += 1
            gid = "w%d_%d" % (self.no, self.gid)
            lines.append("PREPARE TRANSACTION '%s';" % gid)
            if r.random() < 0.3:
                lines.append("SELECT pg_sleep(%.2f);" % r.random())
            # a few stay until the end
            if r.random() < 0.9:
                lines.append("%s PREPARED '%s';" % ("COMMIT" if r.random() < 0.7 else "ROLLBACK", gid))
        else:
            lines.append("COMMIT;")
        return "\n".join(lines)


class Rows(Family):
    """The five tables of SCHEMA, with all kinds of values; what is done to their definitions is in faults.py."""
    group = "rows"
    weight = 0
    writing = 12

    def create(self, s):
        s.q(SCHEMA)
        for t in TABLES:
            more = ", row_filter => %s, soft_delete_column => 'deleted_at'" % lit(FILTER) if t == "t_filt" else ""
            s.q("SELECT crate_sync.add_table('%s'%s)" % (t, more))


class Writer(threading.Thread):
    """Writes to a family, then to another."""

    SETTINGS = "SET lock_timeout = '2s'; SET statement_timeout = '20s'; SET client_min_messages = error;"

    def __init__(self, world, no, merge, pause):
        super().__init__(daemon=True)
        self.world, self.no, self.pause = world, no, pause
        self.dice = Dice(world.seed, no, merge)
        self.session = Session(world.env, self.SETTINGS)
        self.stop = threading.Event()
        self.done = 0
        self.lost = 0

    def run(self):
        r = random.Random("%s/scripts/%d" % (self.world.seed, self.no))
        sleep = random.Random("%s/pause/%s" % (self.world.seed, self.no))
        families = [f for f in self.world.families if f.writing]
        while not self.stop.is_set():
            family = r.choices(families, [f.writing for f in families])[0]
            script = self.dice.transaction() if family.group == "rows" else family.script(r)
            if family.gate.enter():
                try:
                    refused = self.session.run(script)[1]
                    self.done += 1
                    for x in refused:
                        self.world.judge(family, x, script)
                except Failed:
                    self.lost += 1
                    time.sleep(0.2)
                finally:
                    family.gate.leave()
            time.sleep(sleep.random() * self.pause)
        self.session.close()
