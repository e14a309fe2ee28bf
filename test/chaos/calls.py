"""Our own functions, called at random moments for whatever is mirrored."""

import json
import re

from server import Failed, lit
from world import Family, is_call

# what a hint may ask for
CALL = re.compile(r"SELECT crate_sync\.\w+\((?:'(?:[^']|'')*'|\$\$.*?\$\$|[^()'])*\)")
ALTER = re.compile(r"ALTER TABLE [^;]+;")


def remedies(hint):
    """The statements in a hint; which of them, is the reader's choice."""
    found = CALL.findall(hint or "") + ALTER.findall(hint or "")
    if found and "remove_table" in found[0] and "add_table" in hint and not any("add_table" in x for x in found):
        # so said in words
        found[0] += "; " + found[0].replace("remove_table", "add_table").replace(", drop_target => true", "")
    if "drop it there" in (hint or ""):
        found.append("DROP TABLE there")
    return [x for x in found if "..." not in x]


def follow(world, s, oid, statement):
    """Carries out what a hint says, and notes what is to be expected then."""
    family = next((f for f in world.families if oid in f.expected or oid in f.allowed), None)
    if family:
        world.note(family, "as the hint says: " + statement, quiet=True)
        if "remove_table" in statement or "follow_name" in statement:
            family.expected.discard(oid)
    if statement.startswith("DROP TABLE"):
        schema, table = s.q("SELECT target_schema || '|' || target_table FROM crate_sync.mirror WHERE relid = %d" % oid)[0].split("|")
        world.env.target("DROP TABLE " + world.env.target_name(table, schema))
    else:
        s.q(statement)
    if family and "follow_name" in statement:
        # another one has its place
        family.expected.add(family.oid(s, re.search(r"follow_name\('((?:[^']|'')*)'", statement).group(1)))
    elif family and "add_table" in statement:
        family.expected.add(oid)
    return statement


class Calls(Family):
    """Has no tables of its own."""
    group = "calls"
    weight = 8
    writing = 0
    check_share = 0

    def create(self, s):
        self.make_schemas(s)

    def operations(self):
        return ((8, self.resync), (4, self.cancel), (3, self.pause), (4, self.verify), (2, self.retry), (2, self.adopt),
                (2, self.readd), (2, self.readd_without_copy), (4, self.heed), (1, self.start), (2, self.look), (1, self.race)) + (((5, self.late_upsert),) if self.world.env.kind == "crate" else ())

    def any(self, s, r):
        """A family and one of its mirrored tables."""
        if all(f in self.world.alone for f in self.world.families if f.namespaces and f is not self):
            raise Failed("all are let alone")
        for i in range(5):
            family = r.choice([f for f in self.world.families if f is not self and f.namespaces and f not in self.world.alone])
            found = family.mirrored(s)
            if found:
                return family, *r.choice(found)
        raise Failed("nothing is mirrored")

    @is_call
    def resync(self, s, r):
        family, oid, name = self.any(s, r)
        mode = r.choice(("full", "full", "upsert", "rebuild", "rebuild"))
        filtered = ", 'true'" if mode == "upsert" and r.random() < 0.3 else ""
        s.q("SELECT crate_sync.resync(%s, %s%s)" % (lit(name) if r.random() < 0.98 else "NULL", lit(mode), filtered))
        self.world.note(family, "resync %s of %s" % (mode, name), quiet=True)
        return "%s of %s" % (mode, name)

    @is_call
    def cancel(self, s, r):
        family, oid, name = self.any(s, r)
        if r.random() < 0.6:
            mode = r.choice(("full", "rebuild", "rebuild"))
            s.q("SELECT crate_sync.resync(%s, %s)" % (lit(name), lit(mode)))
            self.world.stop.wait(0.3 * r.random())
        s.q("SELECT crate_sync.cancel(%s)" % lit(name))
        # what is due stays due, and is cancelled by nobody's right but the user's
        self.world.note(family, "cancel of %s" % name, quiet=True)
        s.q("SELECT crate_sync.resync(%s)" % lit(name))
        return "%s, and resync" % name

    @is_call
    def pause(self, s, r):
        family, oid, name = self.any(s, r)
        s.q("SELECT crate_sync.pause(%s)" % lit(name))
        self.world.note(family, "pause of %s" % name, quiet=True)
        self.world.stop.wait(2 * r.random())
        s.q("SELECT crate_sync.resume(%d::regclass)" % oid)
        self.world.note(family, "resume of %s" % name, quiet=True)
        return name

    @is_call
    def verify(self, s, r):
        family, oid, name = self.any(s, r)
        repair = r.choice(("true", "false"))
        s.q("SELECT crate_sync.verify(%s, repair => %s)" % (lit(name), repair))
        self.world.note(family, "verify of %s, repair %s" % (name, repair), quiet=True)
        return "%s, repair %s" % (name, repair)

    @is_call
    def retry(self, s, r):
        return "%s rows" % s.q("SELECT crate_sync.retry_failed()")[0]

    @is_call
    def adopt(self, s, r):
        s.q("SELECT crate_sync.adopt()")
        return "ourselves"

    @is_call
    def start(self, s, r):
        s.q("SELECT crate_sync.start()")
        return "asked for"

    def look(self, s, r):
        """As a monitor does."""
        s.q("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM crate_sync.status; SELECT count(*) FROM crate_sync.tables; "
            "SELECT count(*) FROM crate_sync.progress; COMMIT;")
        return "in a serializable transaction"

    def late_upsert(self, s, r):
        """A request that arrives long after everybody has given up on it, with a rebuild in between."""
        if self.world.env.kind != "crate":
            raise Failed("a file has no wire")
        family, oid, name = self.any(s, r)
        target = s.q("SELECT '\"' || target_schema || '\".\"' || target_table || '\"' FROM crate_sync.mirror WHERE relid = %d" % oid)
        what = r.choice(("INSERT INTO", "INSERT INTO", "DELETE FROM"))
        seconds = 2.5 + 6 * r.random()
        # as it stands in a JSON text
        self.world.env.proxy.keep("%s %s" % (what, target[0].replace('"', '\\"')), seconds)
        change = "UPDATE %s SET n = n + 1 WHERE ctid = (SELECT min(ctid) FROM %s WHERE tableoid = (SELECT min(tableoid::oid) FROM %s))" % (name, name, name)
        if what == "INSERT INTO":
            s.q(change)
        else:
            s.q("DELETE FROM %s WHERE ctid = (SELECT min(ctid) FROM %s)" % (name, name))
        self.world.stop.wait(0.2 + 2 * r.random())
        mode = r.choice(("rebuild", "rebuild", "full"))
        if r.random() < 0.7:
            s.q("SELECT crate_sync.resync(%s, %s)" % (lit(name), lit(mode)))
        s.q(change)
        self.world.note(family, "one %s %s %.1f s late, %s meanwhile" % (what, name, seconds, mode), quiet=True)
        return "%s %s, %.1f s, %s" % (what, name, seconds, mode)

    @is_call
    def readd(self, s, r):
        family, oid, name = self.any(s, r)
        if oid not in family.expected or not family.busy.acquire(blocking=False):
            raise Failed("somebody else has it")
        try:
            row = s.q("SELECT json_build_object('t', quote_ident(target_schema) || '.' || quote_ident(target_table), 'f', row_filter) "
                      "FROM crate_sync.mirror WHERE relid = %d" % oid)
            if not row:
                raise Failed("it is not mirrored")
            as_it_was = json.loads(row[0])
            drop = r.random() < 0.5
            family.remove(s, oid, drop)
            if r.random() < 0.5:
                self.world.stop.wait(0.3 * r.random())
            s.q("SELECT crate_sync.add_table(%d, %s, row_filter => %s, options => '{\"shards\": 1, \"replicas\": 0}')"
                % (oid, lit(as_it_was["t"]), lit(as_it_was["f"]) if as_it_was["f"] else "NULL"))
            family.expected.add(oid)
            self.world.note(family, "%s removed, drop_target %s, and added" % (name, drop), quiet=True)
            return "%s, drop_target %s" % (name, drop)
        finally:
            family.busy.release()

    @is_call
    def readd_without_copy(self, s, r):
        """Equal before, and nobody writes meanwhile: then it is equal after."""
        family, oid, name = self.any(s, r)
        if oid not in family.expected or not family.busy.acquire(blocking=False):
            raise Failed("somebody else has it")
        try:
            row = s.q("SELECT quote_ident(target_schema) || '.' || quote_ident(target_table) FROM crate_sync.mirror WHERE relid = %d AND row_filter IS NULL" % oid)
            if not row or not family.gate.close(10) or s.q("SELECT crate_sync.wait_for_sync(%d, '5s')" % oid) != ["t"] or \
                    s.q("SELECT state FROM crate_sync.tables WHERE relid = %d" % oid) != ["ready"] or \
                    s.q("SELECT count(*) FROM pg_prepared_xacts") != ["0"]:
                raise Failed("it is not quiet enough")
            family.expected.discard(oid)
            s.q("SELECT crate_sync.remove_table(%d); SELECT crate_sync.add_table(%d, %s, copy_data => false, options => '{\"shards\": 1, \"replicas\": 0}')"
                % (oid, oid, lit(row[0])))
            family.expected.add(oid)
            self.world.note(family, "%s removed and added without a copy" % name, quiet=True)
            return name
        finally:
            family.gate.open()
            family.busy.release()

    @is_call
    def race(self, s, r):
        """Failed rows are retried by several while their table is removed."""
        for i in range(3):
            self.world.background("SELECT crate_sync.retry_failed(failed_id => failed_id) FROM crate_sync.failed_rows; "
                                  "SELECT crate_sync.retry_failed(failed_id => g) FROM generate_series(1, 20) g;")
        return "retry_failed"

    @is_call
    def heed(self, s, r):
        """Does what a table's hint says."""
        rows = s.q("SELECT json_build_array(relid::oid::text, hint) FROM crate_sync.tables WHERE state NOT IN ('ready', 'loading', 'sweeping', 'verifying', 'paused') "
                   "AND hint IS NOT NULL ORDER BY 1::text")
        if not rows:
            raise Failed("there is no hint")
        oid, hint = json.loads(r.choice(rows))
        statements = remedies(hint)
        if not statements:
            return "no statement in: " + hint
        return follow(self.world, s, int(oid), r.choice(statements))
