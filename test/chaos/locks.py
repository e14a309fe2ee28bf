"""Locks and rows held by transactions that stay open for a while."""

from server import Failed, lit
from world import Family


class Locks(Family):
    """Has no tables of its own."""
    group = "locks"
    weight = 4
    writing = 0
    check_share = 0

    def create(self, s):
        self.make_schemas(s)

    def operations(self):
        return ((4, self.table), (3, self.catalog), (2, self.started), (1, self.rows), (1, self.added), (1, self.half_altered))

    def any(self, s, r, mirrored=True):
        for i in range(5):
            family = r.choice([f for f in self.world.families if f is not self and f.namespaces])
            found = [n for o, n in family.mirrored(s)] if mirrored else family.relations(s)
            if found:
                return family, r.choice(found)
        raise Failed("there is no table")

    def hold(self, family, statements, seconds, end="COMMIT"):
        self.world.background("BEGIN; %s SELECT pg_sleep(%.1f); %s;" % (statements, seconds, end))
        if family:
            self.world.note(family, "held for %.1f s: %s" % (seconds, statements), quiet=True)

    def table(self, s, r):
        family, name = self.any(s, r, mirrored=r.random() < 0.4)
        seconds = 0.5 + 4 * r.random()
        mode = r.choice(("ACCESS EXCLUSIVE", "ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE"))
        self.hold(family, "LOCK TABLE %s%s IN %s MODE;" % (r.choice(("", "ONLY ")), name, mode), seconds)
        return "%s, %s, %.1f s" % (name, mode, seconds)

    def catalog(self, s, r):
        """A call of ours that is not committed."""
        family, name = self.any(s, r)
        call = r.choice(("resync(%s)", "resync(%s, 'rebuild')", "pause(%s)", "verify(%s)", "cancel(%s)", "resync(NULL, 'upsert')"))
        call = call % lit(name) if "%s" in call else call
        seconds = 1 + 5 * r.random()
        # a pause that stays would be somebody's to end
        end = "ROLLBACK" if "pause" in call or "cancel" in call else r.choice(("COMMIT", "ROLLBACK"))
        self.hold(family, "SELECT crate_sync.%s;" % call, seconds, end)
        return "%s, %.1f s, %s" % (call, seconds, end)

    def started(self, s, r):
        call = r.choice(("start()", "start()", "adopt()"))
        seconds = 2 + 5 * r.random()
        self.hold(None, "SELECT crate_sync.%s;" % call, seconds)
        return "%s, %.1f s" % (call, seconds)

    def rows(self, s, r):
        what = r.choice(("SELECT count(*) FROM (SELECT FROM crate_sync.failed FOR UPDATE) f;",
                         "SELECT count(*) FROM (SELECT FROM crate_sync.mirror FOR UPDATE) m;",
                         "SELECT count(*) FROM (SELECT FROM crate_sync.control FOR UPDATE) c;"))
        seconds = 0.5 + 3 * r.random()
        self.hold(None, what, seconds, "ROLLBACK")
        return "%s %.1f s" % (what, seconds)

    def added(self, s, r):
        """add_table and rows, not committed for a while; then they never were."""
        name = "%s.%s" % (self.name, self.new_name("t"))
        self.hold(None, "CREATE TABLE %s (id int PRIMARY KEY); SELECT crate_sync.add_table(%s); INSERT INTO %s SELECT generate_series(1, 10);"
                  % (name, lit(name), name), 1 + 3 * r.random(), "ROLLBACK")
        return name

    def half_altered(self, s, r):
        """DDL that is undone."""
        family, name = self.any(s, r, mirrored=r.random() < 0.5)
        what = r.choice(("ALTER TABLE {0} ADD COLUMN undone int;", "TRUNCATE {0};", "ALTER TABLE {0} RENAME TO undone;",
                         "ALTER TABLE {0} DISABLE TRIGGER ALL; UPDATE {0} SET n = n + 1;", "DROP TABLE {0} CASCADE;")).format(name)
        seconds = 0.2 + 2 * r.random()
        self.hold(family, what, seconds, "ROLLBACK")
        return "%s %.1f s" % (what, seconds)
