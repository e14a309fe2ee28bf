"""Filters that fail, sleep or loop for some rows; a row that they cannot take is set aside, and no other."""

from names import Plain
from server import lit
from world import is_call


class Filters(Plain):
    group = "filters"
    weight = 2
    writing = 2
    check_share = 0.4

    # column bad: what the filter does with that row
    HARMLESS, DIVIDES, SLOW, LOOPS, CATCHES = range(5)

    def create(self, s):
        self.make_schemas(s)
        n = self.name
        s.q("""CREATE FUNCTION {0}.f(bad int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
            BEGIN
                IF bad = 1 THEN RETURN 1 / (bad - 1) > 0; END IF;
                IF bad = 2 THEN PERFORM pg_sleep(0.05); END IF;
                IF bad = 3 THEN LOOP END LOOP; END IF;
                IF bad = 4 THEN LOOP BEGIN PERFORM pg_sleep(0.01); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END IF;
                RETURN true;
            END $$;""".format(n))
        for t in ("zero", "own"):
            self.make_table(s, "%s.%s" % (n, t), "%s_%s" % (n, t), 300, ", bad int NOT NULL DEFAULT 0")
        self.add(s, n + ".zero", "row_filter => '100 / (n - 3) < 1000'", marks=[n + "_zero"])
        self.add(s, n + ".own", "row_filter => '%s.f(bad)'" % n, marks=[n + "_own"])

    def safe_filter(self, relid, row_filter):
        if row_filter and "100 /" in row_filter:
            return "100 / nullif(n - 3, 0) < 1000"
        return row_filter and "bad <> 1"

    def operations(self):
        return ((3, self.divides), (2, self.slow), (3, self.mended), (2, self.retried), (1, self.other_filter))

    def divides(self, s, r):
        i = r.randrange(290)
        s.q("UPDATE %s.zero SET n = 3 WHERE id BETWEEN %d AND %d; UPDATE %s.own SET bad = 1 WHERE id = %d"
            % (self.name, i, i + r.choice((0, 4)), self.name, i))
        return "rows from %d" % i

    def slow(self, s, r):
        s.q("UPDATE %s.own SET bad = 2 WHERE id %% 60 = %d" % (self.name, r.randrange(60)))
        return "a few"

    def mended(self, s, r):
        s.q("UPDATE %s.zero SET n = 1 WHERE n = 3; UPDATE %s.own SET bad = 0 WHERE bad <> 0" % (self.name, self.name))
        return "all"

    @is_call
    def retried(self, s, r):
        return "%s rows" % s.q("SELECT crate_sync.retry_failed(%s)" % lit(self.name + r.choice((".zero", ".own"))))[0]

    @is_call
    def other_filter(self, s, r):
        """Taken away and added anew, filtered otherwise."""
        name = self.name + ".zero"
        oid = self.oid(s, name)
        self.expected.discard(oid)
        s.q("SELECT crate_sync.remove_table(%s)" % lit(name))
        self.add(s, name, "row_filter => '100 / (n - 3) < 1000'", marks=[self.name + "_zero"])
        return name

    def mend(self, s):
        """Before the last comparison."""
        self.mended(s, None)

    def script(self, r):
        return self.write(r, self.name + r.choice((".zero", ".own")), 300)


class Endless(Filters):
    """Rows whose filter never ends: the others' rows must come all the same."""
    group = "endless"
    weight = 1

    def operations(self):
        return ((2, self.loops), (1, self.slow), (3, self.mended), (1, self.retried))

    def loops(self, s, r):
        bad = r.choice((self.LOOPS, self.CATCHES))
        s.q("UPDATE %s.own SET bad = %d WHERE id = %d" % (self.name, bad, r.randrange(300)))
        return ("one row loops", "one row loops and swallows cancels")[bad - self.LOOPS]

    def safe_filter(self, relid, row_filter):
        if row_filter and "100 /" in row_filter:
            return "100 / nullif(n - 3, 0) < 1000"
        return row_filter and "bad NOT IN (1, 3, 4)"
