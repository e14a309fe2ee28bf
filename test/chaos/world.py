"""What is there: families of relations, who does something to them, and what was done when."""

import os
import random
import threading
import time
from collections import Counter, namedtuple

from server import Failed, Lost, Refused, Session, SlowMotion, lit

# CrateDB makes a shard as slowly as a table
OPTIONS = """options => '{"shards": 1, "replicas": 0}'"""

# What PostgreSQL itself answers to a writer whose table is altered, locked, dropped or gone under his
# feet, or whose server is shut down.  Anything else is ours to explain.
OWN_ERRORS = {
    "40001", "40P01",                       # serialization failure, deadlock
    "55P03", "57014",                       # lock or statement timeout
    "57P01", "57P02", "57P03", "57P05",     # shutdown, crash, starting up
    "08000", "08003", "08006",
    "25P02", "25001", "3B001",              # in a transaction that has failed; CONCURRENTLY in one; no such savepoint
    "42P01", "42703", "42704", "3F000",     # no such table, column, object, schema
    "42P07", "42701", "42P06",              # it exists already
    "42P10",                                # ON CONFLICT without its index: the key was changed
    "42804", "42883", "22P02", "22003", "22001", "22012", "2BP01", "22023",
    "23505", "23514", "23502", "23503",     # constraints
    "55006", "55000", "0A000", "42P16", "42P17", "42809", "428C9",
}
# internal errors of PostgreSQL's own where definitions change under a statement
OWN_WORDS = ("tuple concurrently", "cache lookup failed for", "could not open relation with OID",
             "could not find tuple for", "deadlock", "relation with OID", "was concurrently dropped",
             "is a generated column", "could not open file", "missing chunk number", "unexpected partition", "attribute number")
# where an error was raised from: files of ours that run in a writer's backend
OUR_FILES = ("capture.c:", "early.c:", "triggers.c:", "detached.c:", "overflow.c:", "queue.c:", "key.c:")


def ours(refused):
    """Did the statement fail for the mirror's sake?"""
    if "crate_sync" in refused.text or any(", " + f in refused.text for f in OUR_FILES):
        # our own lock_queue does that
        return refused.code not in ("55P03", "57014", "57P01", "57P02")
    if refused.code in OWN_ERRORS:
        return False
    return not any(w in refused.text for w in OWN_WORDS)


Event = namedtuple("Event", "time family text")


class Gate:
    """Writers go in and out one script at a time; whoever compares closes it."""

    def __init__(self):
        self.changed = threading.Condition()
        self.inside = 0
        self.closed = False

    def enter(self):
        with self.changed:
            if self.closed:
                return False
            self.inside += 1
            return True

    def leave(self):
        with self.changed:
            self.inside -= 1
            self.changed.notify_all()

    def close(self, seconds):
        """False: somebody is still inside."""
        with self.changed:
            self.closed = True
            return self.changed.wait_for(lambda: self.inside == 0, seconds)

    def open(self):
        with self.changed:
            self.closed = False


class Family:
    """
    Relations that belong together, with schemas of their own.  A row's column
    mark says which relation it was inserted into: its default does.
    """
    group = ""
    weight = 3          # among the families that an actor chooses from
    writing = 3         # among those that a writer chooses from
    check_share = 0.35  # of the operations that are followed by a comparison

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.schemas = [name]
        self.namespaces = []        # their OIDs: the names may change
        self.busy = threading.Lock()
        self.gate = Gate()
        self.serial = 0
        self.count = 0
        self.allowed = {}           # OID of a mirrored relation: marks that rows may have that were ever in it
        self.expected = set()       # OIDs that have to be mirrored
        self.follows = []           # names whose table is mirrored, whichever that is
        self.equal_at = 0

    def create(self, s):
        """Makes what there is in the beginning."""
        raise NotImplementedError

    def script(self, r):
        """What a writer does."""
        raise NotImplementedError

    def operations(self):
        """Pairs of weight and method(s, r); the method says in words what it has done."""
        raise NotImplementedError

    def safe_filter(self, relid, row_filter):
        """The row filter, in a form that fails for no row."""
        return row_filter

    # --- for those who come after

    def make_schemas(self, s):
        for n in self.schemas:
            s.q("CREATE SCHEMA %s" % n)
        self.namespaces = s.q("SELECT oid FROM pg_namespace WHERE nspname IN (%s)" % ", ".join(map(lit, self.schemas)))

    def oid(self, s, name):
        return int(s.q("SELECT %s::regclass::oid" % lit(name))[0])

    def name_of(self, s, oid):
        """As SQL; fails if it is gone."""
        rows = s.q("SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c "
                   "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s" % oid)
        if not rows:
            raise Failed("relation %s is gone" % oid)
        return rows[0]

    def add(self, s, name, more="", marks=()):
        """Mirrors a table, from now on to be compared."""
        oid = self.oid(s, name)
        if marks:
            self.allowed[oid] = set(marks)
        s.q("SELECT crate_sync.add_table(%s, %s%s)" % (lit(name), OPTIONS, more and ", " + more))
        self.expected.add(oid)
        return oid

    def remove(self, s, oid, drop, more=""):
        """Mirrors it no longer; drop: its target is to go, too."""
        target = s.q("SELECT target_schema || '|' || target_table FROM crate_sync.mirror WHERE relid = %d" % oid)
        self.expected.discard(oid)
        s.q("SELECT crate_sync.remove_table(%d, drop_target => %s); %s" % (oid, "true" if drop else "false", more))
        if drop and target:
            self.world.to_go.add(tuple(target[0].split("|")))

    def mirrored(self, s):
        """OID and name of those that are mirrored now."""
        return [(int(x), y) for x, y in (row.split("|") for row in s.q(
            "SELECT m.relid::oid, m.relid::regclass FROM crate_sync.mirror m JOIN pg_class c ON c.oid = m.relid "
            "WHERE c.relnamespace IN (%s) ORDER BY 1" % ", ".join(self.namespaces)))]

    def relations(self, s):
        """Names of all that can be locked."""
        return s.q("SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace IN (%s) AND c.relkind IN ('r', 'p') ORDER BY c.oid"
                   % ", ".join(self.namespaces))

    def new_name(self, prefix="x"):
        self.serial += 1
        return "%s%d" % (prefix, self.serial)


class World:
    def __init__(self, env, seed):
        self.env, self.seed = env, seed
        self.families = []
        self.events = []
        self.count = 0              # operations that were carried out
        self.findings = []
        self.calm = False           # is nothing broken on purpose now?
        self.crashes = False        # is this a time for crashes?
        self.alone = set()          # families that are let alone for a while: no call mends what they have
        self.errors = Counter()     # of writers: PostgreSQL's own
        self.to_go = set()          # targets that were to be dropped: schema, name
        self.complaints = Counter()  # what failed for the mirror's sake
        self.answers = Counter()    # of our functions
        self.stop = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def note(self, family, text, quiet=False):
        self.events.append(Event(time.time(), family.name if family else None, text))
        if not quiet:
            self.env.say("%-9s %s" % (family.name if family else "", text))

    def history(self, family, since, most=45):
        """The events of a family, and of all, as text."""
        lines = [e for e in list(self.events) if e.time >= since and e.family in (None, family.name)]
        return ["        %9.3f  %s%s" % (e.time - self.env.started, "" if e.family else "(all) ", e.text) for e in lines[-most:]]

    def judge(self, family, refused, statement, call=False):
        """Whose fault is it that this did not go through?"""
        if call:
            self.answers["%s %s" % (refused.code, refused.message[:90])] += 1
        elif ours(refused):
            self.complaints["%s %s" % (refused.code, refused.message[:120])] += 1
            self.note(family, "FAILS FOR OUR SAKE: %s\n%s\n   in: %s" % (refused, refused.text, statement[:300]))
        else:
            self.errors[refused.code] += 1

    # --- operations

    def worker_pids(self, s):
        return [int(x) for x in s.q("SELECT pid FROM pg_stat_activity WHERE backend_type = 'crate_sync worker' AND datname = current_database()")]

    def background(self, script):
        def run():
            s = Session(self.env)
            try:
                s.run(script)
            except Failed:
                pass
            s.close()
        threading.Thread(target=run, daemon=True).start()

    def surroundings(self, family, s, r):
        """Something that lasts for a moment, in the middle of which the operation falls."""
        notes = []
        x = [r.random() for i in range(8)]
        mirrored = family.mirrored(s)
        relations = family.relations(s)
        if x[0] < (0.04 if family in self.alone else 0.2) and mirrored:
            mode = r.choice(("full", "full", "upsert", "rebuild", "rebuild"))
            name = r.choice(mirrored)[1]
            # before what slows it down, so that it is under way then
            s.run("SELECT crate_sync.resync(%s, %s);" % (lit(name), lit(mode)))
            notes.append("in %s of %s" % (mode, name))
            time.sleep(0.15 * x[1] if x[2] < 0.7 else 0)
        if x[3] < 0.18:
            SlowMotion(self.worker_pids(s), 0.3 + 2 * x[4])
            notes.append("worker slow")
        elif x[3] < 0.28:
            pids = self.worker_pids(s)
            self.env.freeze(pids)
            threading.Timer(0.1 + 1.2 * x[4], self.env.thaw).start()
            notes.append("worker frozen")
        elif x[3] < 0.40:
            self.env.slow_target(0.2 + 1.5 * x[4])
            notes.append("target slow")
        if x[5] < 0.18 and relations:
            name = r.choice(relations)
            self.background("BEGIN; LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(%.2f); COMMIT;"
                            % (name, 0.2 + 3 * x[6] * x[6]))
            notes.append("%s locked" % name)
            time.sleep(0.05)
            if mirrored and x[7] < 0.4 and (x[7] < 0.1 or family not in self.alone):
                # has the worker look at the definition
                s.run("SELECT crate_sync.resync(%s, 'upsert');" % lit(r.choice(mirrored)[1]))
                time.sleep(0.1 * x[2])
                notes.append("upsert asked for")
        return " (%s)" % ", ".join(notes) if notes else ""

    def perform(self, family, s, checker):
        """One operation of a family; its choice is a function of the seed and of how many came before."""
        family.count += 1
        r = random.Random("%s/%s/%d" % (self.seed, family.name, family.count))
        weights = family.operations()
        method = r.choices([m for w, m in weights], [w for w, m in weights])[0]
        check = r.random() < (max(family.check_share, 0.75) if family in self.alone and self.calm else family.check_share)
        around = ""
        try:
            around = self.surroundings(family, s, r) if family.namespaces else ""
            did = method(s, r)
            self.count += 1
            if did:
                self.note(family, "%s: %s%s" % (method.__name__, did, around))
        except Refused as e:
            self.note(family, "%s: refused: %s%s" % (method.__name__, e, around))
            self.judge(family, e, method.__name__, call=getattr(method, "is_call", False))
        except Lost as e:
            self.note(family, "%s: outcome unknown: %s%s" % (method.__name__, e, around))
            self.env.pg_up()
        except Failed as e:
            self.note(family, "%s: not possible now: %s" % (method.__name__, e))
        if check:
            checker.look_at(family, s)


def is_call(method):
    """Marks an operation that is a call of ours: its refusals are answers."""
    method.is_call = True
    return method


class Actor(threading.Thread):
    """Alters the families, one operation after the other."""

    def __init__(self, world, number, checker, gap):
        super().__init__(daemon=True)
        self.world, self.number, self.checker, self.gap = world, number, checker, gap
        self.session = Session(world.env)

    def run(self):
        r = random.Random("%s/actor/%d" % (self.world.seed, self.number))
        families = [f for f in self.world.families if f.weight]
        while not self.world.stop.is_set():
            time.sleep(min(r.expovariate(1.0 / self.gap), 4 * self.gap))
            self.world.go.wait()
            family = r.choices(families, [f.weight for f in families])[0]
            if not family.busy.acquire(blocking=False):
                continue
            try:
                if self.world.go.is_set() and not self.world.stop.is_set():
                    self.world.perform(family, self.session, self.checker)
            except (Failed, OSError) as e:
                self.world.note(family, "actor: %s" % e)
                time.sleep(0.3)
            except Exception as e:                      # a fault of the test's own
                self.world.note(family, "BROKEN: %r" % e)
                self.world.complaints["the test itself: %r" % e] += 1
                if os.environ.get("CHAOS_DEBUG"):
                    raise
            finally:
                family.busy.release()
        self.session.close()
