"""Partition trees of three levels that are always being rebuilt."""

import re
from collections import namedtuple

from server import Failed, Refused, lit
from world import Family

# lo, hi: the range of k; pending: half detached
Node = namedtuple("Node", "oid parent level kind name lo hi pending")

WIDTHS = (100, 10, 1)       # of a partition of the root, of one of these, of one of those
TOP = 600                   # k is below that

BOUND = re.compile(r"FROM \('?(-?\d+)'?\) TO \('?(-?\d+)'?\)")


class Tree(Family):
    """Beside the tree lie private tables, whose rows have the same keys and other marks."""
    group = "trees"
    weight = 5
    writing = 5
    check_share = 0.45

    def __init__(self, world, name, with_default=False):
        super().__init__(world, name)
        self.schemas = [name, name + "_b"]
        self.with_default = with_default
        self.names = []             # of leaves, private tables and the root, as they were a moment ago
        self.ks = list(range(0, TOP, 37))
        self.ranges = {}            # of detached tables, by OID
        self.more = []              # columns added at the root
        self.root = None

    def create(self, s):
        self.make_schemas(s)
        n = self.name
        s.q("CREATE TABLE %s.root (k int, id int, v text, n int DEFAULT 0, mark text DEFAULT %s, PRIMARY KEY (k, id)) "
            "PARTITION BY RANGE (k)" % (n, lit(n)))
        self.root = self.oid(s, n + ".root")
        if self.with_default:
            s.q("CREATE TABLE %s.rest PARTITION OF %s.root DEFAULT" % (n, n))
        for lo in range(0, TOP, WIDTHS[0]):
            parts = " PARTITION BY RANGE (k)" if lo % 200 else ""
            s.q("CREATE TABLE %s.p%d PARTITION OF %s.root FOR VALUES FROM (%d) TO (%d)%s" % (n, lo, n, lo, lo + WIDTHS[0], parts))
            for i in (0, 1, 3) if parts else ():
                sub = lo + i * WIDTHS[1]
                deeper = " PARTITION BY RANGE (k)" if i == 3 else ""
                s.q("CREATE TABLE %s.p%d_%d PARTITION OF %s.p%d FOR VALUES FROM (%d) TO (%d)%s"
                    % (n, lo, i, n, lo, sub, sub + WIDTHS[1], deeper))
                for j in (0, 1, 5) if deeper else ():
                    s.q("CREATE TABLE %s.p%d_%d_%d PARTITION OF %s.p%d_%d FOR VALUES FROM (%d) TO (%d)"
                        % (n, lo, i, j, n, lo, i, sub + j, sub + j + 1))
        self.look(s)
        s.q("INSERT INTO %s.root (k, id, v) SELECT k, id, repeat('r', 300) FROM unnest(ARRAY[%s]) k, generate_series(1, 12) id"
            % (n, ", ".join(map(str, self.ks))))
        self.add(s, n + ".root", marks=[n])

    # --- how it looks

    def look(self, s):
        """The tree, root first; remembers names and ranges for the writers."""
        nodes = []
        for row in s.q("WITH RECURSIVE t (oid, parent, level, pending) AS (SELECT %d::oid, 0::oid, 0, false UNION ALL "
                       "SELECT i.inhrelid, i.inhparent, level + 1, i.inhdetachpending FROM pg_inherits i JOIN t ON i.inhparent = t.oid) "
                       "SELECT t.oid, parent, level, c.relkind, quote_ident(nspname) || '.' || quote_ident(relname), pending, "
                       "coalesce(pg_get_expr(c.relpartbound, c.oid), '') "
                       "FROM t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY level, 1"
                       % self.root):
            oid, parent, level, kind, name, pending, bound = row.split("|", 6)
            m = BOUND.search(bound)
            lo, hi = (int(m.group(1)), int(m.group(2))) if m else (0, TOP)
            nodes.append(Node(int(oid), int(parent), int(level), kind, name, lo, hi, pending == "t"))
        if not nodes:
            raise Failed("the root is gone")
        leaves = [x for x in nodes if x.kind == "r"]
        ks = set()
        for leaf in leaves:
            if leaf.hi - leaf.lo < TOP:         # not the default partition
                step = max(1, (leaf.hi - leaf.lo) // 3)
                ks.update(range(leaf.lo, leaf.hi, step))
                self.ranges[leaf.oid] = (leaf.lo, leaf.hi)
        self.ks = sorted(ks) or [0]
        self.more = s.q("SELECT quote_ident(attname) || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %d "
                        "AND attname LIKE 'more%%' AND NOT attisdropped" % self.root)
        self.names = [x.name for x in leaves] + [nodes[0].name] * 2
        return nodes

    def privates(self, s, nodes):
        """OID, kind and name of tables outside of the tree."""
        inside = {x.oid for x in nodes}
        found = []
        for row in s.q("SELECT c.oid, c.relkind, c.oid::regclass FROM pg_class c WHERE c.relnamespace IN (%s) AND c.relkind IN ('r', 'p') "
                       "AND NOT c.relispartition ORDER BY c.oid" % ", ".join(self.namespaces)):
            oid, kind, name = row.split("|")
            if int(oid) not in inside:
                found.append((int(oid), kind, name))
        return found

    def slots(self, nodes):
        """Ranges that a partitioned node has no partition for: node, from, to."""
        found = []
        taken = {(x.parent, x.lo) for x in nodes}
        for x in nodes:
            if x.kind == "p" and x.level < len(WIDTHS):
                width = WIDTHS[x.level]
                found += [(x, lo, lo + width) for lo in range(x.lo, x.hi, width) if (x.oid, lo) not in taken]
        return found

    def choose(self, r, nodes, leaf=None):
        """A node below the root; deep ones as often as others."""
        nodes = [x for x in nodes if x.level and (leaf is None or (x.kind == "r") == leaf)]
        if not nodes:
            raise Failed("there is no partition")
        level = r.choice(sorted({x.level for x in nodes}))
        return r.choice([x for x in nodes if x.level == level])

    def choose_slot(self, r, nodes):
        slots = self.slots(nodes)
        if not slots:
            raise Failed("there is no room")
        level = r.choice(sorted({x[0].level for x in slots}))
        return r.choice([x for x in slots if x[0].level == level])

    # --- operations

    def operations(self):
        return ((4, self.make), (7, self.attach), (6, self.detach), (3, self.exchange), (4, self.truncate), (3, self.drop),
                (3, self.rename), (5, self.swap_names), (2, self.persistence), (1, self.rewrite), (1, self.triggers),
                (1, self.columns), (1, self.move), (1, self.attach_mirrored), (1, self.lock_and_detach), (1, self.clear_out),
                (3 if self.world.crashes else 0, self.crash))

    def make(self, s, r):
        parent, lo, hi = self.choose_slot(r, self.look(s))
        name = "%s.%s" % (r.choice(self.schemas), self.new_name())
        unlogged = "UNLOGGED " if r.random() < 0.2 else ""
        script = ""
        if parent.level + 1 < len(WIDTHS) and r.random() < 0.35:
            width = WIDTHS[parent.level + 1]
            script = "CREATE TABLE %s PARTITION OF %s FOR VALUES FROM (%d) TO (%d) PARTITION BY RANGE (k);" % (name, parent.name, lo, hi)
            for i in range(3):
                script += "CREATE %sTABLE %s_%d PARTITION OF %s FOR VALUES FROM (%d) TO (%d);" % (
                    unlogged, name, i, name, lo + i * width, lo + (i + 1) * width)
        else:
            script = "CREATE %sTABLE %s PARTITION OF %s FOR VALUES FROM (%d) TO (%d);" % (unlogged, name, parent.name, lo, hi)
        if r.random() < 0.5:
            script += "INSERT INTO %s (k, id, v) SELECT %d, i, 'made' FROM generate_series(1, 20) i;" % (name, lo)
        s.q("BEGIN; %s COMMIT;" % script)
        self.look(s)
        return "%s%s under %s, level %d, [%d, %d)" % (unlogged, name, parent.name, parent.level + 1, lo, hi)

    def private(self, r, lo, hi, level):
        """A table that is not in the tree, with rows and a mark of its own: name, mark, script."""
        name = "%s.%s" % (r.choice(self.schemas), self.new_name())
        mark = "%s_x%d" % (self.name, self.serial)
        columns = ["k int NOT NULL", "id int NOT NULL", "v text", "n int DEFAULT 0", "mark text DEFAULT " + lit(mark)] + self.more
        if r.random() < 0.5:
            r.shuffle(columns)
        if r.random() < 0.3:
            columns.insert(r.randrange(len(columns)), "junk text")
        unlogged = "UNLOGGED " if r.random() < 0.2 else ""
        sub = level < len(WIDTHS) and r.random() < 0.25
        if sub:
            unlogged = ""
        script = "CREATE %sTABLE %s (%s%s)%s;" % (unlogged, name, ", ".join(columns),
                                                  ", PRIMARY KEY (k, id)" if r.random() < 0.6 else "",
                                                  " PARTITION BY RANGE (k)" if sub else "")
        if any(c.startswith("junk") for c in columns):
            script += "ALTER TABLE %s DROP COLUMN junk;" % name
        if sub:
            width = WIDTHS[level]
            for i in range(4):
                script += "CREATE TABLE %s_%d PARTITION OF %s FOR VALUES FROM (%d) TO (%d);" % (
                    name, i, name, lo + i * width, lo + (i + 1) * width)
            hi = lo + 4 * width
        script += ("INSERT INTO %s (k, id, v) SELECT %d + i %% %d, i, 'private' FROM generate_series(1, %d) i;"
                   % (name, lo, max(1, hi - lo), r.choice((5, 40, 200))))
        return name, mark, script, unlogged

    def attach(self, s, r):
        nodes = self.look(s)
        parent, lo, hi = self.choose_slot(r, nodes)
        again = [(oid, name) for oid, kind, name in self.privates(s, nodes)
                 if self.ranges.get(oid) == (lo, hi) or (kind == "r" and r.random() < 0.1)]
        if again and r.random() < 0.5:
            oid, name = r.choice(again)
            marks = s.q("SELECT DISTINCT mark FROM %s" % name)
            prepare, unlogged = "", "again "
        else:
            name, mark, prepare, unlogged = self.private(r, lo, hi, parent.level + 1)
            marks = [mark]
        self.allowed[self.root].update(marks)
        attach = "ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d);" % (parent.name, name, lo, hi)
        if prepare and r.random() < 0.5:
            s.q(prepare)
            prepare = ""
        s.q("BEGIN; %s %s COMMIT;" % (prepare, attach))
        self.look(s)
        return "%s%s to %s, level %d, [%d, %d)" % (unlogged, name, parent.name, parent.level + 1, lo, hi)

    def disown(self, s, oid, name):
        """A detached table goes its own way: its rows are other rows from now on."""
        mark = "%s_x%d" % (self.name, self.serial + 1)
        self.serial += 1
        s.q("BEGIN; UPDATE %s SET mark = %s, v = 'detached'; ALTER TABLE %s ALTER mark SET DEFAULT %s; COMMIT;"
            % (name, lit(mark), name, lit(mark)))

    def detach(self, s, r):
        nodes = self.look(s)
        pending = [x for x in nodes if x.pending]
        node = pending[0] if pending else self.choose(r, nodes)
        parent = next((x for x in nodes if x.oid == node.parent), nodes[0])
        how = " FINALIZE" if pending else " CONCURRENTLY" if r.random() < 0.35 and (
            not self.with_default or parent.level) and node.hi - node.lo < TOP else ""
        s.q("ALTER TABLE %s DETACH PARTITION %s%s;" % (parent.name, node.name, how))
        did = "%s from %s, level %d, [%d, %d)%s" % (node.name, parent.name, node.level, node.lo, node.hi, how)
        try:
            if r.random() < 0.8:
                self.disown(s, node.oid, node.name)
        except Failed as e:
            did += ", not disowned: %s" % e
        self.look(s)
        return did

    def lock_and_detach(self, s, r):
        """While another partition is locked for a while."""
        leaves = [x for x in self.look(s) if x.kind == "r"]
        if leaves:
            locked = r.choice(leaves).name
            self.world.background("BEGIN; LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(%.1f); COMMIT;"
                                  % (locked, r.choice((0.4, 1.5, 4))))
            return self.detach(s, r) + ", %s locked" % locked

    def exchange(self, s, r):
        """A leaf for another table, in one transaction."""
        nodes = self.look(s)
        node = self.choose(r, nodes, leaf=True)
        if node.hi - node.lo >= TOP:
            raise Failed("the default partition stays")
        parent = next(x for x in nodes if x.oid == node.parent)
        name, mark, prepare, unlogged = self.private(r, node.lo, node.hi, len(WIDTHS))
        self.allowed[self.root].add(mark)
        s.q("BEGIN; %s ALTER TABLE %s DETACH PARTITION %s; ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d); COMMIT;"
            % (prepare, parent.name, node.name, parent.name, name, node.lo, node.hi))
        self.disown(s, node.oid, node.name)
        self.look(s)
        return "%s by %s under %s" % (node.name, name, parent.name)

    def truncate(self, s, r):
        nodes = self.look(s)
        node = nodes[0] if r.random() < 0.1 else self.choose(r, nodes)
        s.q("TRUNCATE %s" % node.name)
        return "%s, level %d" % (node.name, node.level)

    def drop(self, s, r):
        nodes = self.look(s)
        privates = self.privates(s, nodes)
        if len(privates) > 6 or (privates and r.random() < 0.3):
            name = r.choice(privates)[2]
            self.expected -= {oid for oid, kind, n in privates if n == name}
            s.q("DROP TABLE %s" % name)
            return "private %s" % name
        if len(nodes) < 8:
            raise Failed("few are left")
        node = self.choose(r, nodes)
        s.q("DROP TABLE %s" % node.name)
        self.look(s)
        return "%s, level %d" % (node.name, node.level)

    def rename(self, s, r):
        nodes = self.look(s)
        node = nodes[0] if r.random() < 0.15 else self.choose(r, nodes)
        to = self.new_name()
        s.q("ALTER TABLE %s RENAME TO %s" % (node.name, to))
        self.look(s)
        return "%s to %s" % (node.name, to)

    def swap_names(self, s, r):
        """A leaf and a private table, or two leaves: nothing but the names changes."""
        nodes = self.look(s)
        leaf = self.choose(r, nodes, leaf=True)
        others = [(oid, name) for oid, kind, name in self.privates(s, nodes) if kind == "r" and oid not in self.expected]
        if not others and r.random() < 0.8:
            name, mark, prepare, unlogged = self.private(r, leaf.lo, min(leaf.hi, leaf.lo + 100), len(WIDTHS))
            s.q("BEGIN; %s COMMIT;" % prepare)
            others = [(0, name)]
        if not others or r.random() < 0.2:
            others = [(x.oid, x.name) for x in nodes if x.kind == "r" and x.oid != leaf.oid]
        if not others:
            raise Failed("there is no other")
        s.q(swap_script(leaf.name, r.choice(others)[1]))
        self.look(s)
        return "%s, %s" % (leaf.name, others[0][1] if len(others) == 1 else "another")

    def persistence(self, s, r):
        leaf = self.choose(r, self.look(s), leaf=True)
        to = r.choice(("UNLOGGED", "UNLOGGED", "LOGGED"))
        s.q("ALTER TABLE %s SET %s" % (leaf.name, to))
        return "%s %s" % (leaf.name, to)

    def crash(self, s, r):
        """A crash empties what is unlogged."""
        leaf = self.choose(r, self.look(s), leaf=True)
        s.q("ALTER TABLE %s SET UNLOGGED; INSERT INTO %s (k, id, v) SELECT %d, i, 'unlogged' FROM generate_series(1, 30) i ON CONFLICT DO NOTHING;"
            % (leaf.name, self.look(s)[0].name, leaf.lo))
        s.q("SELECT crate_sync.wait_for_sync(%d, '4s')" % self.root)
        for pid in self.world.worker_pids(s):
            self.world.env.kill(pid)
        self.world.env.pg_up()
        return "after %s was made unlogged" % leaf.name

    def rewrite(self, s, r):
        leaf = self.choose(r, self.look(s), leaf=True)
        how = r.choice(("VACUUM FULL %s", "VACUUM FULL %s", "ANALYZE %s"))
        s.q(how % leaf.name)
        return how % leaf.name

    def triggers(self, s, r):
        nodes = self.look(s)
        node = nodes[0] if r.random() < 0.3 else self.choose(r, nodes)
        x = r.random()
        if x < 0.5:
            s.q("ALTER TABLE %s DISABLE TRIGGER ALL; ALTER TABLE %s ENABLE TRIGGER ALL;" % (node.name, node.name))
            return "off and on at %s" % node.name
        trigger = r.choice(("crate_sync_truncate", "crate_sync_capture")) if node.level == 0 else "crate_sync_truncate"
        s.q("DROP TRIGGER IF EXISTS %s ON %s" % (trigger, node.name))
        return "%s dropped at %s" % (trigger, node.name)

    def columns(self, s, r):
        root = self.look(s)[0].name
        extra = s.q("SELECT attname FROM pg_attribute WHERE attrelid = %d AND attname LIKE 'more%%' AND NOT attisdropped" % self.root)
        if extra and r.random() < 0.6:
            s.q("ALTER TABLE %s DROP COLUMN %s" % (root, extra[0]))
            return "dropped " + extra[0]
        name = self.new_name("more")
        s.q("ALTER TABLE %s ADD COLUMN %s %s" % (root, name, r.choice(("text DEFAULT 'd'", "int", "bigint DEFAULT 7"))))
        return "added " + name

    def move(self, s, r):
        nodes = self.look(s)
        node = nodes[0] if r.random() < 0.2 else self.choose(r, nodes)
        schema, table = node.name.split(".")
        to = self.schemas[1] if schema == self.schemas[0] else self.schemas[0]
        s.q("ALTER TABLE %s SET SCHEMA %s" % (node.name, to))
        self.look(s)
        return "%s to %s" % (node.name, to)

    def attach_mirrored(self, s, r):
        """A table that is mirrored by itself comes into the tree."""
        nodes = self.look(s)
        parent, lo, hi = self.choose_slot(r, nodes)
        name, mark, prepare, unlogged = self.private(r, lo, hi, len(WIDTHS))
        if "PRIMARY KEY" not in prepare:
            prepare += "ALTER TABLE %s ADD PRIMARY KEY (k, id);" % name
        s.q("BEGIN; %s COMMIT;" % prepare)
        oid = self.add(s, name, marks=[mark])
        self.expected.discard(oid)              # what becomes of it then is not ours to say
        self.allowed[self.root].add(mark)
        attach = "ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d);" % (parent.name, name, lo, hi)
        removed = ""
        try:
            s.q(attach)
        except Refused as e:
            # refused in so many words, with what to do about it
            if "remove_table" not in e.text:
                raise
            s.q("SELECT crate_sync.remove_table(%s);" % lit(name))
            s.q(attach)
            removed = ", removed before"
        self.look(s)
        return "%s to %s, level %d%s" % (name, parent.name, parent.level + 1, removed)

    def clear_out(self, s, r):
        """Few rows, so that a run does not grow."""
        root = self.look(s)[0].name
        s.q("DELETE FROM %s WHERE id > 40" % root)
        for oid, kind, name in self.privates(s, self.look(s))[6:]:
            self.expected.discard(oid)
            s.q("DROP TABLE %s" % name)
        return "rows beyond 40"

    # --- writers

    def script(self, r):
        k = r.choice(self.ks)
        k2 = r.choice(self.ks)
        name = r.choice(self.names or [self.name + ".root"])
        root = self.names[-1] if self.names else self.name + ".root"
        x = r.random()
        if x < 0.25:
            return ("INSERT INTO %s (k, id, v) SELECT %d, i, 'w%d' FROM generate_series(%d, %d) i ON CONFLICT (k, id) DO UPDATE SET v = excluded.v;"
                    % (root, k, r.randrange(10 ** 6), 1 + r.randrange(20), 20 + r.randrange(25)))
        if x < 0.45:
            return "UPDATE %s SET n = n + 1, v = 'u%d' WHERE k BETWEEN %d AND %d;" % (root, r.randrange(10 ** 6), k, k + 12)
        if x < 0.58:
            return "DELETE FROM %s WHERE k = %d AND id %% 3 = %d;" % (root, k, r.randrange(3))
        if x < 0.70:
            return "UPDATE %s SET k = %d, n = n + 1 WHERE k = %d AND id IN (%d, %d);" % (
                root, k2, k, r.randrange(1, 30), r.randrange(1, 30))
        if x < 0.80:
            return "UPDATE %s SET n = n + 1, v = 'direct %d';" % (name, r.randrange(10 ** 6))
        if x < 0.85:
            return "DELETE FROM %s WHERE id = %d;" % (name, r.randrange(1, 30))
        if x < 0.88:
            return "TRUNCATE %s;" % name if name != root else "SELECT 1;"
        lines = ["BEGIN;"]
        for i in range(r.randrange(2, 5)):
            lines.append("SAVEPOINT s; UPDATE %s SET n = n + 1, v = 'sp %d' WHERE k = %d; %s"
                         % (root, i, r.choice(self.ks), r.choice(("RELEASE s;", "ROLLBACK TO s;"))))
        if r.random() < 0.3:
            lines.append("SELECT pg_sleep(%.2f);" % (0.5 * r.random()))
        lines.append(r.choice(("COMMIT;", "COMMIT;", "COMMIT;", "ROLLBACK;")))
        return "\n".join(lines)


def swap_script(one, two):
    """Two tables change names, and schemas if these differ."""
    (s1, t1), (s2, t2) = one.split("."), two.split(".")
    script = "BEGIN; ALTER TABLE %s RENAME TO swap_tmp;" % one
    if s1 == s2:
        return script + "ALTER TABLE %s RENAME TO %s; ALTER TABLE %s.swap_tmp RENAME TO %s; COMMIT;" % (two, t1, s1, t2)
    return script + ("ALTER TABLE %s SET SCHEMA %s; ALTER TABLE %s.%s RENAME TO %s; ALTER TABLE %s.swap_tmp SET SCHEMA %s; "
                     "ALTER TABLE %s.swap_tmp RENAME TO %s; COMMIT;" % (two, s1, s1, t2, t1, s1, s2, s2, t2))
