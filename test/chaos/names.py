"""Names that change hands: of tables, and of whole schemas."""

from server import Failed, lit
from trees import swap_script
from world import Family, OPTIONS, is_call

ROWS = 2500


class Plain(Family):
    """Tables of one shape: id, v, n, mark; each with its own mark in all its rows."""

    def make_table(self, s, name, mark, rows=ROWS, more=""):
        s.q("BEGIN; CREATE TABLE %s (id int CONSTRAINT %s_pkey PRIMARY KEY, v text, n int DEFAULT 0, mark text DEFAULT %s%s); "
            "INSERT INTO %s (id, v) SELECT i, 'row of %s ' || repeat('x', 60) FROM generate_series(1, %d) i; COMMIT;"
            % (name, mark, lit(mark), more, name, mark, rows))
        oid = self.oid(s, name)
        self.allowed[oid] = {mark}
        return oid

    def write(self, r, name, keys=ROWS):
        lo = r.randrange(keys)
        x = r.random()
        if x < 0.4:
            return "UPDATE %s SET n = n + 1, v = 'w%d' WHERE id BETWEEN %d AND %d;" % (name, r.randrange(10 ** 6), lo, lo + r.choice((0, 0, 20, 200)))
        if x < 0.6:
            return "DELETE FROM %s WHERE id BETWEEN %d AND %d;" % (name, lo, lo + r.choice((0, 3, 30)))
        if x < 0.92:
            return ("INSERT INTO %s (id, v) SELECT i, 'i%d' FROM generate_series(%d, %d) i ON CONFLICT (id) DO UPDATE SET v = excluded.v;"
                    % (name, r.randrange(10 ** 6), lo, lo + r.choice((0, 5, 60))))
        if x < 0.94:
            return "TRUNCATE %s;" % name
        return ("BEGIN; UPDATE %s SET n = n + 1 WHERE id %% 50 = %d; SAVEPOINT a; DELETE FROM %s WHERE id = %d; ROLLBACK TO a; COMMIT;"
                % (name, lo % 50, name, lo))


class Pair(Plain):
    """Two tables that change places; one is mirrored, or both, each to its own target."""
    group = "names"
    weight = 4
    check_share = 0.5
    NAMES = ("t", "t_new", "t_old")

    def create(self, s):
        self.make_schemas(s)
        for name in self.NAMES[:2]:
            self.make_table(s, "%s.%s" % (self.name, name), "%s_%s" % (self.name, name))
        if self.name == "pair3":
            self.follows = [self.name + ".t"]
            s.q("SELECT crate_sync.add_table('pair3.t', %s, follow => 'name')" % OPTIONS)
            return
        self.add(s, self.name + ".t")
        if self.name == "pair2":
            self.add(s, self.name + ".t_new")

    def operations(self):
        return ((8, self.swap), (3, self.rename), (2, self.take_over), (2, self.refill), (1, self.away_and_back), (1, self.fill_up))

    def two(self, s, r):
        names = self.relations(s)
        if len(names) < 2:
            raise Failed("there is one table only")
        return r.sample(names, 2)

    def swap(self, s, r):
        one, two = self.two(s, r)
        if r.random() < 0.3:
            # what is read then is of the other one
            s.q("UPDATE %s SET n = n + 1 WHERE id %% 10 = %d" % (one, r.randrange(10)))
        s.q(swap_script(one, two))
        return "%s and %s" % (one, two)

    def rename(self, s, r):
        names = self.relations(s)
        one = r.choice(names)
        free = [n for n in self.NAMES + ("t_x",) if "%s.%s" % (self.name, n) not in names]
        to = r.choice(free)
        s.q("ALTER TABLE %s RENAME TO %s" % (one, to))
        return "%s to %s" % (one, to)

    def away_and_back(self, s, r):
        one = r.choice(self.relations(s))
        table = one.split(".")[1]
        s.q("ALTER TABLE %s RENAME TO for_a_moment" % one)
        self.world.stop.wait(r.random())
        s.q("ALTER TABLE %s.for_a_moment RENAME TO %s" % (self.name, table))
        return one

    @is_call
    def take_over(self, s, r):
        """One is dropped, and another gets its name in the same transaction."""
        one, two = self.two(s, r)
        gone = self.oid(s, one)
        mirrored = dict(self.mirrored(s))
        name = "%s.%s" % (self.name, self.new_name("f"))
        s.q("BEGIN; DROP TABLE %s; ALTER TABLE %s RENAME TO %s; COMMIT;" % (one, two, one.split(".")[1]))
        self.expected.discard(gone)
        self.make_table(s, name, "%s_%s" % (self.name, name.split(".")[1]))
        if gone in mirrored and self.oid(s, one) not in mirrored and not self.follows and r.random() < 0.7:
            # the new one under the old name, loaded over what the other has left there
            self.add(s, one)
        return "%s by %s" % (one, two)

    def refill(self, s, r):
        one = r.choice(self.relations(s))
        how = r.choice(("DELETE FROM %s;", "TRUNCATE %s;"))
        s.q("BEGIN; %s INSERT INTO %s (id, v) SELECT i, 'refilled' FROM generate_series(1, %d) i; COMMIT;"
            % (how % one, one, r.choice((10, 500, ROWS))))
        return one

    def fill_up(self, s, r):
        """The other one is emptied: what is read by name would be a reason to delete."""
        one, two = self.two(s, r)
        s.q("DELETE FROM %s; INSERT INTO %s (id, v) SELECT i, 'filled' FROM generate_series(1, %d) i ON CONFLICT DO NOTHING;"
            % (one, two, ROWS))
        return "%s emptied, %s filled" % (one, two)

    def script(self, r):
        return self.write(r, "%s.%s" % (self.name, r.choice(self.NAMES[:2])))


class Schemas(Plain):
    """Two schemas with tables of the same names; one schema's are mirrored."""
    group = "names"
    weight = 3
    check_share = 0.6

    def __init__(self, world, name):
        super().__init__(world, name)
        self.schemas = [name, name + "_next"]

    def create(self, s):
        self.make_schemas(s)
        for schema in self.schemas:
            for t in ("a", "b"):
                self.make_table(s, "%s.%s" % (schema, t), "%s_%s" % (schema, t), 300)
        for t in ("a", "b"):
            self.add(s, "%s.%s" % (self.name, t))

    def operations(self):
        return ((6, self.swap), (1, self.rename), (2, self.move), (2, self.swap_tables))

    def now(self, s):
        return s.q("SELECT nspname FROM pg_namespace WHERE oid IN (%s) ORDER BY oid" % ", ".join(self.namespaces))

    def swap(self, s, r):
        one, two = self.now(s)
        script = "ALTER SCHEMA %s RENAME TO %s_tmp; ALTER SCHEMA %s RENAME TO %s; ALTER SCHEMA %s_tmp RENAME TO %s;" % (
            one, self.name, two, one, self.name, two)
        s.q("BEGIN; %s COMMIT;" % script)
        return "%s and %s" % (one, two)

    def rename(self, s, r):
        one = r.choice(self.now(s))
        s.q("ALTER SCHEMA %s RENAME TO %s_away" % (one, one))
        self.world.stop.wait(r.random())
        s.q("ALTER SCHEMA %s_away RENAME TO %s" % (one, one))
        return "%s away and back" % one

    def move(self, s, r):
        """A table to the other schema, and the other's here."""
        one, two = self.now(s)
        t = r.choice(("a", "b"))
        s.q("BEGIN; ALTER TABLE %s.%s RENAME TO tmp; ALTER TABLE %s.tmp SET SCHEMA %s; ALTER TABLE %s.%s SET SCHEMA %s; "
            "ALTER TABLE %s.tmp RENAME TO %s; COMMIT;" % (one, t, one, two, two, t, one, two, t))
        return "%s.%s and %s.%s" % (one, t, two, t)

    def swap_tables(self, s, r):
        names = self.relations(s)
        one, two = r.sample(names, 2)
        s.q(swap_script(one, two))
        return "%s and %s" % (one, two)

    def script(self, r):
        return self.write(r, "%s.%s" % (r.choice(self.schemas), r.choice(("a", "b"))), 300)
