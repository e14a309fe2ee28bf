"""Columns, keys and types that change under a mirror."""

from server import Failed, lit
from names import Plain
from world import Family


class Columns(Plain):
    """Columns come, go, change names with each other and get other types; so does the key."""
    group = "shapes"
    check_share = 0.4
    TYPES = ("int", "bigint", "text", "varchar(40)", "numeric", "smallint")

    def create(self, s):
        self.make_schemas(s)
        self.make_table(s, self.name + ".cols", self.name + "_cols", 400, ", a int DEFAULT 1, b text DEFAULT 'b', c text DEFAULT 'c'")
        self.make_table(s, self.name + ".keys", self.name + "_keys", 400, ", a int NOT NULL DEFAULT 1, b text NOT NULL DEFAULT 'b'")
        self.add(s, self.name + ".cols")
        self.add(s, self.name + ".keys")

    def operations(self):
        return ((3, self.add_column), (3, self.drop_column), (3, self.rename_column), (4, self.swap_columns), (3, self.retype),
                (3, self.key), (1, self.defaults))

    def columns(self, s, table):
        return [row.split("|") for row in s.q(
            "SELECT quote_ident(attname), format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
            "AND NOT attisdropped AND attname NOT IN ('id', 'mark', 'v', 'n') ORDER BY attnum" % lit(table))]

    def a_column(self, s, r):
        table = self.name + r.choice((".cols", ".cols", ".keys"))
        columns = self.columns(s, table)
        if not columns:
            raise Failed("no column is left")
        return table, r.choice(columns)

    def add_column(self, s, r):
        table = self.name + ".cols"
        if len(self.columns(s, table)) > 6:
            raise Failed("there are enough")
        name = self.new_name("d") if r.random() < 0.6 else "d%d" % r.randrange(1, self.serial + 2)    # perhaps one that was
        s.q("ALTER TABLE %s ADD COLUMN %s %s" % (table, name, r.choice((
            "int", "text DEFAULT 'd'", "bigint DEFAULT 7", "text", "int GENERATED ALWAYS AS (n * 2) STORED", "text DEFAULT random()::text"))))
        return "%s.%s" % (table, name)

    def drop_column(self, s, r):
        table, (name, kind) = self.a_column(s, r)
        s.q("ALTER TABLE %s DROP COLUMN %s" % (table, name))
        return "%s.%s" % (table, name)

    def rename_column(self, s, r):
        table, (name, kind) = self.a_column(s, r)
        to = self.new_name("r")
        s.q("ALTER TABLE %s RENAME COLUMN %s TO %s" % (table, name, to))
        return "%s.%s to %s" % (table, name, to)

    def swap_columns(self, s, r):
        """Two columns change names: each is where the other was."""
        table = self.name + ".cols"
        columns = self.columns(s, table)
        pairs = [(a, b) for a, ta in columns for b, tb in columns if a < b and (ta == tb or r.random() < 0.15)]
        if not pairs:
            raise Failed("there are no two")
        a, b = r.choice(pairs)
        s.q("BEGIN; ALTER TABLE %s RENAME COLUMN %s TO tmp; ALTER TABLE %s RENAME COLUMN %s TO %s; ALTER TABLE %s RENAME COLUMN tmp TO %s; COMMIT;"
            % (table, a, table, b, a, table, b))
        return "%s.%s and %s" % (table, a, b)

    def retype(self, s, r):
        table, (name, kind) = self.a_column(s, r)
        to = r.choice(self.TYPES)
        using = {"int": "length({0}::text)", "bigint": "length({0}::text)", "smallint": "length({0}::text)",
                 "numeric": "length({0}::text)"}.get(to, "{0}::text").format(name)
        s.q("BEGIN; ALTER TABLE %s ALTER %s DROP DEFAULT; ALTER TABLE %s ALTER %s TYPE %s USING %s; COMMIT;" % (table, name, table, name, to, using))
        return "%s.%s %s to %s" % (table, name, kind, to)

    def key(self, s, r):
        """Another primary key, or none for a moment."""
        table = self.name + ".keys"
        constraint = s.q("SELECT quote_ident(conname) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'" % lit(table))
        drop = "ALTER TABLE %s DROP CONSTRAINT %s;" % (table, constraint[0]) if constraint else ""
        if self.oid(s, table) not in self.expected and constraint:
            s.q("SELECT crate_sync.add_table(%s, if_not_exists => true)" % lit(table))
            self.expected.add(self.oid(s, table))
            return "mirrored again"
        x = r.random()
        if x < 0.2 and drop:
            s.q(drop)
            return "dropped"
        names = [n for n, k in self.columns(s, table)]
        new = "id" if x < 0.6 or not names else "id, " + r.choice(names)
        s.q("BEGIN; %s ALTER TABLE %s ADD PRIMARY KEY (%s); COMMIT;" % (drop, table, new))
        return "(%s)" % new

    def defaults(self, s, r):
        """What changes no row."""
        table, (name, kind) = self.a_column(s, r)
        what = r.choice(("ALTER TABLE {0} ALTER {1} SET STATISTICS 50", "ALTER TABLE {0} ALTER {1} DROP DEFAULT",
                         "GRANT SELECT ({1}) ON {0} TO pg_monitor", "CREATE INDEX ON {0} ({1})", "COMMENT ON COLUMN {0}.{1} IS 'x'"))
        s.q(what.format(table, name))
        return what.format(table, name)

    def script(self, r):
        return self.write(r, self.name + r.choice((".cols", ".cols", ".keys")), 400)


class Types(Family):
    """Types whose values change while no row is touched."""
    group = "shapes"
    weight = 2
    check_share = 0.7

    def create(self, s):
        self.make_schemas(s)
        n = self.name
        s.q("""BEGIN; CREATE TYPE {0}.mood AS ENUM ('sad', 'so_so', 'happy'); CREATE TYPE {0}.pt AS (x int, y text, m {0}.mood);
            CREATE DOMAIN {0}.short AS text CHECK (length(value) < 100);
            CREATE TABLE {0}.enums (id int, m {0}.mood, v {0}.mood, mark text DEFAULT '{0}', n int DEFAULT 0, PRIMARY KEY (id, m));
            CREATE TABLE {0}.comps (id int PRIMARY KEY, p {0}.pt, d {0}.short, mark text DEFAULT '{0}', n int DEFAULT 0);
            INSERT INTO {0}.enums SELECT i, (enum_range(NULL::{0}.mood))[1 + i % 3], (enum_range(NULL::{0}.mood))[1 + i % 2] FROM generate_series(1, 60) i;
            INSERT INTO {0}.comps SELECT i, ROW(i, 'y', 'sad')::{0}.pt, 'd' FROM generate_series(1, 60) i; COMMIT;""".format(n))
        self.add(s, n + ".enums", marks=[n])
        self.add(s, n + ".comps", marks=[n])

    def operations(self):
        return ((4, self.rename_label), (2, self.add_label), (3, self.attributes), (1, self.domain))

    def labels(self, s):
        return s.q("SELECT enumlabel FROM pg_enum WHERE enumtypid = '%s.mood'::regtype ORDER BY enumsortorder" % self.name)

    def rename_label(self, s, r):
        label = r.choice(self.labels(s))
        to = self.new_name("mood")
        s.q("ALTER TYPE %s.mood RENAME VALUE %s TO %s" % (self.name, lit(label), lit(to)))
        return "%s to %s" % (label, to)

    def add_label(self, s, r):
        if len(self.labels(s)) > 8:
            raise Failed("there are enough")
        label = self.new_name("mood")
        s.q("ALTER TYPE %s.mood ADD VALUE %s BEFORE %s" % (self.name, lit(label), lit(r.choice(self.labels(s)))))
        return label

    def attributes(self, s, r):
        names = s.q("SELECT attname FROM pg_attribute WHERE attrelid = (SELECT typrelid FROM pg_type WHERE oid = '%s.pt'::regtype) "
                    "AND NOT attisdropped ORDER BY attnum" % self.name)
        x = r.random()
        if x < 0.5 and len(names) < 6:
            what = "ADD ATTRIBUTE %s int" % self.new_name("z")
        elif len(names) > 2:
            what = "DROP ATTRIBUTE %s" % r.choice(names[1:])
        else:
            what = "RENAME ATTRIBUTE %s TO %s" % (r.choice(names), self.new_name("q"))
        s.q("ALTER TYPE %s.pt %s CASCADE" % (self.name, what))
        return what

    def domain(self, s, r):
        s.q("ALTER DOMAIN %s.short ADD CONSTRAINT %s CHECK (value <> 'never %d')" % (self.name, self.new_name("chk"), self.serial))
        return "a constraint"

    def script(self, r):
        n = self.name
        i = r.randrange(1, 61)
        mood = "(enum_range(NULL::%s.mood))[%d]" % (n, 1 + r.randrange(3))
        return r.choice((
            "UPDATE %s.enums SET v = %s, n = n + 1 WHERE id = %d;" % (n, mood, i),
            "UPDATE %s.enums SET m = %s, n = n + 1 WHERE id = %d;" % (n, mood, i),
            "UPDATE %s.comps SET d = 'd%d', n = n + 1 WHERE id = %d;" % (n, i, i),
            "DELETE FROM %s.enums WHERE id = %d; INSERT INTO %s.enums (id, m, v) VALUES (%d, %s, %s) ON CONFLICT DO NOTHING;" % (n, i, n, i, mood, mood)))
