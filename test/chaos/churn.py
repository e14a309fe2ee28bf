"""Tables that come and go, and targets that pass from one to the next."""

import time

from server import Failed, Refused, lit
from names import Plain
from world import OPTIONS, is_call


class Churn(Plain):
    group = "churn"
    weight = 4
    check_share = 0.4
    MOST = 14

    def create(self, s):
        self.make_schemas(s)
        self.hot = []
        self.add_some(s, 3, "", 50)

    def add_some(self, s, n, more, rows):
        """One transaction each, and a row of its own right behind."""
        names = []
        for i in range(n):
            t = self.new_name("c")
            name = "%s.%s" % (self.name, t)
            mark = "%s_%s" % (self.name, t)
            s.q("CREATE TABLE %s (id int PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT %s)%s" % (
                name, lit(mark), "; INSERT INTO %s SELECT i, 'before' FROM generate_series(1, %d) i" % (name, rows) if rows else ""))
            names.append((name, mark))
        for name, mark in names:
            oid = self.oid(s, name)
            self.allowed[oid] = {mark}
            s.q("SELECT crate_sync.add_table(%s, %s%s); INSERT INTO %s (id, v) VALUES (100000, 'right behind');"
                % (lit(name), OPTIONS, more, name))
            self.expected.add(oid)
        self.hot = [n for n, m in names] + self.hot[:10]
        return "%s to %s" % (names[0][0], names[-1][0])

    def operations(self):
        return ((7, self.added_without_copy), (3, self.added), (3, self.made_anew), (2, self.handed_over), (2, self.readded),
                (2, self.dropped), (1, self.added_open), (5, self.cleared))

    def some(self, s, r):
        mirrored = self.mirrored(s)
        if not mirrored:
            raise Failed("there is none")
        return r.choice(mirrored)

    def added_without_copy(self, s, r):
        """Nothing is loaded: the queue alone has what comes."""
        n = 3 if self.world.env.kind == "crate" else 10
        return self.add_some(s, r.randrange(1, n), ", copy_data => false", 0)

    def added(self, s, r):
        return self.add_some(s, r.randrange(1, 4), "", r.choice((0, 5, 800)))

    def added_open(self, s, r):
        """With its first rows in a transaction that takes a while."""
        t = self.new_name("c")
        name, mark = "%s.%s" % (self.name, t), "%s_%s" % (self.name, t)
        copy = r.choice(("true", "false"))
        s.q("BEGIN; CREATE TABLE %s (id int PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT %s); "
            "SELECT crate_sync.add_table(%s, %s, copy_data => %s); INSERT INTO %s VALUES (1, 'in one'); SELECT pg_sleep(%.2f); COMMIT;"
            % (name, lit(mark), lit(name), OPTIONS, copy, name, r.random()))
        oid = self.oid(s, name)
        self.allowed[oid] = {mark}
        self.expected.add(oid)
        self.hot.insert(0, name)
        return "%s, copy_data %s" % (name, copy)

    def made_anew(self, s, r):
        """DROP, CREATE and add_table of one name in one transaction."""
        oid, name = self.some(s, r)
        mark = "%s_%s" % (self.name, self.new_name("c"))
        s.q("BEGIN; DROP TABLE %s; CREATE TABLE %s (id int PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT %s); "
            "INSERT INTO %s VALUES (1, 'anew'), (2, 'anew'); SELECT crate_sync.add_table(%s, %s); COMMIT;"
            % (name, name, lit(mark), name, lit(name), OPTIONS))
        self.expected.discard(oid)
        oid = self.oid(s, name)
        self.allowed[oid] = {mark}
        self.expected.add(oid)
        return name

    @is_call
    def handed_over(self, s, r):
        """Another table gets the target of one that is removed."""
        oid, name = self.some(s, r)
        target = s.q("SELECT quote_ident(target_schema) || '.' || quote_ident(target_table) FROM crate_sync.mirror WHERE relid = %d" % oid)[0]
        drop = r.choice(("true", "false"))
        t = self.new_name("c")
        heir, mark = "%s.%s" % (self.name, t), "%s_%s" % (self.name, t)
        self.make_table(s, heir, mark, r.choice((3, 60)))
        self.expected.discard(oid)
        together = r.random() < 0.5
        s.q("%s SELECT crate_sync.remove_table(%s, drop_target => %s); %s SELECT crate_sync.add_table(%s, %s, %s); %s"
            % ("BEGIN;" if together else "", lit(name), drop, "UPDATE %s SET n = n + 1;" % name if r.random() < 0.5 else "",
               lit(heir), lit(target), OPTIONS, "COMMIT;" if together else ""))
        oid = self.oid(s, heir)
        self.allowed[oid] = {mark}
        self.expected.add(oid)
        self.hot.insert(0, heir)
        return "%s from %s to %s, drop_target %s" % (target, name, heir, drop)

    @is_call
    def readded(self, s, r):
        oid, name = self.some(s, r)
        drop = r.random() < 0.5
        self.remove(s, oid, drop)
        if r.random() < 0.5:
            time.sleep(r.random() * 0.3)
            s.q("DELETE FROM %s WHERE id %% 3 = 1" % name)      # nobody queues that
        s.q("SELECT crate_sync.add_table(%s, %s);" % (lit(name), OPTIONS))
        self.expected.add(oid)
        return "%s, drop_target %s" % (name, drop)

    def dropped(self, s, r):
        oid, name = self.some(s, r)
        self.expected.discard(oid)
        s.q("DROP TABLE %s" % name)
        return name

    def cleared(self, s, r):
        """Removed with their targets, so that there are not more and more."""
        many = self.mirrored(s)
        if len(many) <= self.MOST:
            raise Failed("there are few")
        gone = r.sample(many, len(many) - self.MOST // 2)
        for oid, name in gone:
            self.remove(s, oid, True, "DROP TABLE %s;" % name)
        for name in self.relations(s):
            if name not in (n for o, n in many) and r.random() < 0.5:
                s.q("DROP TABLE %s" % name)
        return "%d tables" % len(gone)

    def script(self, r):
        if not self.hot:
            return "SELECT 1;"
        return self.write(r, r.choice(self.hot), 100)
