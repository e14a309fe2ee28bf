"""Random faults against a mirror that is being written to; see run."""

import argparse
import heapq
import os
import pwd
import random
import re
import shutil
import signal
import sys
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import compare                                          # noqa: E402
import proxy                                            # noqa: E402
from calls import Calls, follow, remedies               # noqa: E402
from check import Checker, Memory, Watch                # noqa: E402
from churn import Churn                                 # noqa: E402
from copies import Copies                               # noqa: E402
from faults import Faults, groups                       # noqa: E402
from filters import Endless, Filters                    # noqa: E402
from keys import Keys                                   # noqa: E402
from locks import Locks                                 # noqa: E402
from names import Pair, Schemas                         # noqa: E402
from server import Environment, Failed, Lost, Session, lit  # noqa: E402
from shapes import Columns, Types                       # noqa: E402
from trees import Tree                                  # noqa: E402
from world import Actor, World                          # noqa: E402
from writers import FILTER_SAFE, Rows, TABLES, Writer   # noqa: E402

QUIET_LIMIT = 120           # seconds in the end without anything arriving, after which it counts as stuck

FAMILIES = ((Rows, "rows"), (Tree, "tree1"), (Tree, "tree2", True), (Pair, "pair1"), (Pair, "pair2"), (Pair, "pair3"), (Schemas, "live"), (Churn, "churn"),
            (Columns, "cols"), (Types, "types"), (Keys, "keys"), (Filters, "filters"), (Endless, "endless"), (Copies, "copies"), (Calls, "calls"), (Locks, "locks"))
NOT_BY_ITSELF = ("endless",)    # has to be asked for by --with
FAMILY_GROUPS = {kind.group for kind, *more in FAMILIES}

# which groups of faults there are for a while, and how often.  Many a fault mends what another
# has done unseen: so there are times of calm, in which only the families are altered.
MOODS = ((5, "calm", ()), (2, "target", ("target",)), (2, "server", ("server",)), (2, "tables", ("tables",)),
         (3, "all", ("server", "tables", "target")))


class Run:
    def __init__(self, options):
        self.o = options
        self.env = Environment(options)
        self.rng = random.Random("%s/faults" % options.seed)
        self.world = World(self.env, options.seed)
        self.checker = Checker(self.world, self.env)
        self.memory = Memory(self.env)
        self.watch = Watch(self.env, self.world)
        self.writers = []
        self.actors = []
        self.undo = []              # heap of (time, number, name, function, tries)
        self.serial = 0
        self.idle = None
        chance = random.Random("%s/families" % options.seed)
        names = FAMILY_GROUPS | {name for kind, name, *more in FAMILIES}
        self.only_faults = not names & set(options.only)
        for kind, name, *more in FAMILIES:
            # a CrateDB is soon busy with making tables alone
            left_out = chance.random() < (0.45 if options.target == "crate" else 0.2) and kind.group not in ("calls", "locks")
            if self.chosen(kind.group, name) and (options.only or options.all or not left_out):
                self.world.families.append(kind(self.world, name, *more))
        self.faults = {mood: [n for g in names for n in groups(self.env.kind)[g] if self.chosen(g, n)]
                       for weight, mood, names in MOODS}

    def chosen(self, group, name):
        o = self.o
        if name in o.without or group in o.without:
            return False
        if o.only and not (group in FAMILY_GROUPS and self.only_faults):
            return name in o.only or group in o.only
        return group not in NOT_BY_ITSELF or group in o.more

    # --- before

    def prepare(self):
        env = self.env
        if env.kind == "crate":
            env.proxy = proxy.Proxy(random.Random("%s/proxy" % self.o.seed))
            env.crate_start()
            url = "http://127.0.0.1:%d" % env.proxy.port
        else:
            os.makedirs(os.path.dirname(env.sqlite_file), exist_ok=True)
            if os.getuid() == 0:
                os.chown(os.path.dirname(env.sqlite_file), pwd.getpwnam(env.user).pw_uid, -1)
            url = "sqlite:" + env.sqlite_file
        env.sql("ALTER SYSTEM SET crate_sync.target = %s" % lit(url))
        env.sql("SELECT pg_reload_conf()")
        env.sql("CREATE EXTENSION crate_sync")
        s = Session(env)
        for f in self.world.families:
            f.create(s)
        merge = int(env.sql("SHOW server_version_num")) // 10000 >= 15
        s.close()
        if any(f.writing for f in self.world.families):
            pause = 0.25 if env.kind == "crate" else 0.08
            self.writers = [Writer(self.world, i, merge, pause) for i in range(self.o.writers)]
        if any(f.weight for f in self.world.families):
            self.actors = [Actor(self.world, i, self.checker, self.o.gap / 2) for i in range(self.o.actors)]
        if any(f.group == "rows" for f in self.world.families):
            # one that stays prepared until the end; it keeps its locks through every crash
            env.sql("BEGIN; INSERT INTO t_text SELECT 'prepared', 'p', i, 'from a prepared transaction', 1 "
                    "FROM generate_series(1, 100) i; PREPARE TRANSACTION 'open_all_the_time'")
        for t in self.writers + self.actors + [self.memory, self.watch]:
            t.start()
        env.say("all is made: %s" % ", ".join(f.name for f in self.world.families))

    def keep_idle_session(self):
        """A session idle in transaction, with a snapshot, all the time."""
        if self.idle is not None and self.idle.poll() is None:
            return
        self.idle = self.env.popen_psql()
        try:
            self.idle.stdin.write("SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0;\n"
                                  "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id();\n")
            self.idle.stdin.flush()
        except OSError:
            pass

    # --- faults

    def undo_due(self, now):
        while self.undo and self.undo[0][0] <= now:
            _, no, name, f, tries = heapq.heappop(self.undo)
            try:
                f()
                self.world.note(None, "      end of %d %s" % (no, name))
            except (Failed, OSError) as e:
                # another fault may have to end first
                if tries > 200:
                    raise Failed("fault %d %s cannot be undone: %s" % (no, name, e))
                time.sleep(0.1)
                heapq.heappush(self.undo, (time.time() + 0.5, no, name, f, tries + 1))

    def fault(self, faults, name):
        self.serial += 1
        # what a fault draws must not change what the next ones are
        faults.r = random.Random("%s/fault/%d" % (self.o.seed, self.serial))
        note = ""
        result = None
        self.world.note(None, "fault %d %s begins" % (self.serial, name), quiet=True)
        try:
            if name.startswith("wire_"):
                result = faults.wire(name[5:])
            else:
                result = getattr(faults, name)()
            self.world.count += 1
        except (Failed, OSError, ProcessLookupError, IndexError) as e:
            note = "  not possible now: %s" % e
        if isinstance(result, str):
            note = "  " + result
        elif result is not None:
            note = "  for %.1f s" % result[0]
            heapq.heappush(self.undo, (time.time() + result[0], self.serial, name, result[1], 0))
        self.world.note(None, "fault %d %s%s" % (self.serial, name, note))

    def storm(self):
        faults = self.faults_now = Faults(self.env, self.rng, self.world)
        self.checker.spoiled = faults.resync_due
        until = time.time() + self.o.seconds
        look = time.time() + self.o.quiet
        moods = [m for m in MOODS if self.faults[m[1]] or not m[2]] or [MOODS[0]]
        mood_end = 0
        while time.time() < until:
            if time.time() > mood_end:
                mood = self.rng.choices(moods, [w for w, m, n in moods])[0][1]
                if not self.actors:
                    mood = "all"
                self.world.calm = mood == "calm"
                self.world.crashes = mood in ("server", "all") and "kill_postmaster" in self.faults[mood]
                mood_end = time.time() + self.o.mood * (0.5 + self.rng.random())
                self.world.alone = {f for f in self.world.families if f.weight and self.rng.random() < 0.6}
                self.world.note(None, "mood: %s; let alone: %s" % (mood, ", ".join(sorted(f.name for f in self.world.alone))))
            gap = self.rng.expovariate(1.0 / self.o.gap)
            name = self.rng.choice(self.faults[mood]) if self.faults[mood] else None
            due = time.time() + min(gap, 5 * self.o.gap)
            while time.time() < due:
                self.undo_due(time.time())
                time.sleep(0.05)
            if name:
                self.fault(faults, name)
            self.keep_idle_session()
            if time.time() > look and until - time.time() > self.o.quiet / 2:
                self.quiet_point()
                look = time.time() + self.o.quiet
        self.undo_due(float("inf"))

    # --- quiet points, and the end

    def quiet_point(self):
        """Everybody holds still, and all tables are compared."""
        began = time.time()
        self.undo_due(float("inf"))
        self.world.go.clear()
        s = Session(self.env)
        try:
            self.env.pg_up()
            for f in self.world.families:
                if f.namespaces and f.weight and f.busy.acquire(timeout=30):
                    try:
                        self.checker.look_at(f, s, patience=20, last=None)
                    finally:
                        f.busy.release()
        except (Failed, OSError) as e:
            self.world.note(None, "quiet point: %s" % e)
        s.close()
        self.world.go.set()
        self.world.note(None, "quiet point: %d looks so far, %.0f s" % (self.checker.looks, time.time() - began))

    def quiet(self):
        env = self.env
        self.world.stop.set()
        self.world.go.set()
        for w in self.writers:
            w.stop.set()
        for w in self.writers + self.actors:
            w.join(90)
        env.pg_up()
        for name in ("connections", "batch_rows", "sync_on_commit"):
            env.sql("ALTER SYSTEM RESET crate_sync." + name)
        env.sql("SELECT pg_reload_conf()")
        if self.idle is not None:
            self.idle.kill()
        for gid in env.sql("SELECT gid FROM pg_prepared_xacts ORDER BY 1").split():
            env.sql("COMMIT PREPARED " + lit(gid))
        if env.kind == "crate":
            for left in range(30, -1, -1):
                try:
                    self.faults_now.unblock()
                    break
                except Failed:
                    if not left:
                        raise
                    time.sleep(1)
        for oid in sorted(self.faults_now.resync_due):
            self.faults_now.ask_resync(oid)
        # what a call may have left: paused by one whose session was lost
        self.patiently("SELECT crate_sync.start(); SELECT crate_sync.resume()")
        env.say("all is quiet: %d transactions, %d sessions lost" % (
            sum(w.done for w in self.writers), sum(w.lost for w in self.writers)))
        self.settle()
        self.heed()
        # rows that their filter could not take, and others: mended, and tried again
        parked = int(env.sql("SELECT count(*) FROM crate_sync.failed_rows"))
        s = Session(env)
        if parked:
            env.say("parked: " + env.sql("SELECT string_agg(x, '; ') FROM (SELECT relname || ' ' || action || ' ' || error_message || ': ' || count(*) AS x "
                                         "FROM crate_sync.failed_rows GROUP BY relname, action, error_message) AS y"))
            if any(f.group == "rows" for f in self.world.families):
                env.sql("UPDATE t_filt SET qty = 1 WHERE qty = 0")
            for f in self.world.families:
                if hasattr(f, "mend"):
                    f.mend(s)
            self.patiently("SELECT crate_sync.retry_failed()")
            self.settle()
        s.close()
        left = int(env.sql("SELECT count(*) FROM crate_sync.failed_rows"))
        if left:
            env.say("still parked: " + env.sql("SELECT string_agg(concat_ws(' ', relname, key, action, error_message), '; ') "
                                               "FROM (SELECT * FROM crate_sync.failed_rows LIMIT 5) AS f"))
        return parked, left

    def patiently(self, statement):
        """Somebody's transaction may still be open."""
        for left in range(20, -1, -1):
            try:
                return self.env.sql(statement)
            except Failed:
                if not left:
                    raise
                time.sleep(0.5)

    def settle(self):
        env = self.env
        until = time.time() + QUIET_LIMIT
        last = None
        said = began = time.time()
        while True:
            if time.time() > said + 15:
                said = time.time()
                try:
                    env.say("%.0f s of waiting: " % (said - began) + env.sql(
                        "SELECT string_agg(concat_ws(' ', relid::regclass, state, queued_keys, last_error), '; ') FROM crate_sync.tables "
                        "WHERE state <> 'ready' OR queued_keys > 0"))
                except Failed as e:
                    env.say("waiting: %s" % e)
            try:
                arrived = env.sql("SELECT sum(queued_keys), sum(n_tup_upserted + n_tup_deleted) FROM crate_sync.tables")
                if arrived != last:
                    last, until = arrived, time.time() + QUIET_LIMIT
                if env.sql("SELECT crate_sync.wait_for_sync(timeout => '10s')", timeout=60) == "t":
                    break
                # false at once where rows are parked or somebody has to say what is to be: then all the rest has to have arrived
                rest = env.sql("SELECT coalesce(bool_and(state <> ALL ('{new,loading,sweeping,verifying,paused}')), true), "
                               "coalesce(bool_and(queued_keys = 0 OR state = ANY ('{error,dropped}')), true), "
                               "coalesce(bool_or(state = ANY ('{error,incomplete,detached}')), false) FROM crate_sync.tables")
                # an error may be over in a moment
                if rest == "t|t|f" or (rest == "t|t|t" and time.time() > until - QUIET_LIMIT + 10):
                    break
            except Failed as e:
                env.say("wait_for_sync: %s" % e)
            if time.time() > until:
                env.say("NOT QUIET after %d s: this is how it stands" % QUIET_LIMIT)
                self.world.complaints["not quiet after %d s" % QUIET_LIMIT] += 1
                env.say(env.sql("\\x on\nSELECT * FROM crate_sync.status; SELECT * FROM crate_sync.mirror_state WHERE state <> 'ready'; "
                                "SELECT relid::regclass, paused, resync_no FROM crate_sync.mirror"))
                return
            time.sleep(0.5)

    def heed(self):
        """Tables that say why not: what they say is to be done is done."""
        s = Session(self.env)
        r = random.Random("%s/heed" % self.o.seed)
        for round in range(6):
            rows = [x.split("|", 3) for x in s.q("SELECT relid::oid, relid::regclass, state, replace(concat_ws(' -- ', last_error, hint), E'\\n', ' ') "
                                                 "FROM crate_sync.tables WHERE state <> 'ready' ORDER BY 1")]
            rows = [x for x in rows if x[2] not in ("loading", "sweeping", "verifying")]
            if not rows:
                break
            for oid, name, state, words in rows:
                statements = remedies(words.split(" -- ")[-1])
                self.env.say("%s is in state %s: %s" % (name, state, words))
                if not statements:
                    self.world.complaints["no statement in the hint of a table in state %s" % state] += 1
                    continue
                try:
                    self.env.say("so: " + follow(self.world, s, int(oid), r.choice(statements)))
                except Failed as e:
                    self.world.complaints["the hint's statement fails: %s" % e] += 1
                    self.env.say("FAILS: %s" % e)
            self.settle()
        s.close()

    # --- judgement

    def compare_rows(self):
        """The five tables, by the comparison that all tests use."""
        env = self.env
        if not any(f.group == "rows" for f in self.world.families):
            return
        source = compare.Source(env.conninfo, env.bin + "/psql")
        url = env.crate_url if env.kind == "crate" else "sqlite:" + env.sqlite_file
        target = compare.open_target(url)
        compare.print_header(sys.stderr)
        for t in TABLES:
            pair = compare.Pair(source, target, t, row_filter=FILTER_SAFE if t == "t_filt" else None,
                                soft_delete="deleted_at" if t == "t_filt" else None)
            d = pair.compare()
            compare.print_result(d, sys.stderr)
            self.checker.rows += d.source_rows
            self.checker.found.update({"lost": d.missing, "stale": d.different, "extra": d.extra})
            if not d.equal:
                print("\n".join(self.world.history(self.world.families[0], 0)), file=sys.stderr)

    def compare_families(self):
        s = Session(self.env)
        for f in self.world.families:
            if f.namespaces and f.weight:
                self.checker.look_at(f, s, patience=40, last=True)
            if hasattr(f, "last_look"):
                f.last_look(s)
        s.close()

    def verify_agrees(self, equal):
        env = self.env
        since = env.sql("SELECT clock_timestamp()")
        env.sql("SELECT crate_sync.verify()")
        until = time.time() + 180
        while time.time() < until:
            if env.sql("SELECT bool_and(coalesce(last_verify_time > %s, false)) FROM crate_sync.tables "
                       "WHERE state IN ('ready', 'verifying')" % lit(since)) == "t":
                break
            time.sleep(0.5)
        else:
            print("verify: did not finish")
            return False
        ok = env.sql("SELECT bool_and(last_verify_ok) FROM crate_sync.tables WHERE state = 'ready'") == "t"
        n = env.sql("SELECT string_agg(n::text, ', ') FROM (SELECT concat_ws(' ', relname, kind, count(*)) AS n "
                    "FROM crate_sync.differences GROUP BY relname, kind) AS d")
        print("verify: %s%s" % ("equal" if ok else "NOT equal", " " + n if n else ""))
        return ok == equal

    def nothing_is_left(self):
        """Of rebuilds that were given up, and of tables whose targets were to go."""
        for i in range(20):
            if self.env.sql("SELECT count(*) FROM crate_sync.removal") == "0":
                break
            time.sleep(0.5)
        else:
            self.world.complaints["removals are not done in the end"] += 1
        mirrored = {tuple(x.split("|")) for x in self.env.sql("SELECT target_schema, target_table FROM crate_sync.mirror").splitlines()}
        for schema, table in sorted(self.checker.target.tables() - mirrored):
            if table.endswith("__crate_sync_new") or (schema, table) in self.world.to_go:
                self.world.complaints["left at the target: %s.%s" % (schema, table)] += 1

    def status_is_ok(self):
        said = self.env.sql("SELECT concat_ws(' | ', ok, state, message, hint) FROM crate_sync.status")
        if not said.startswith("t | ok"):
            self.world.complaints["status in the end: " + said] += 1

    def read_log(self):
        """What must never be in the server's log."""
        killed = 0
        with open(self.env.log_file, errors="replace") as f:
            for line in f:
                m = re.search(r"PANIC|TRAP:|terminated by signal (4|6|7|8|11)\b.*|stays down", line)
                if m:
                    self.world.complaints["the server's log has: " + m.group(0)] += 1
                killed += "was terminated by signal 9" in line
                m = re.search(r"crate_sync worker .*?(ERROR|LOG):  (.*)", line)
                if m:
                    last = m.group(2)
                    if m.group(1) == "ERROR":
                        self.world.complaints["the server's log has: " + m.group(0)[-150:]] += 1
                if "The worker goes on after a second" in line:
                    self.worker_errors.append(last)
        if killed > self.env.kills:
            self.world.complaints["processes ended by signal 9: %d, by us %d" % (killed, self.env.kills)] += 1

    worker_errors = []


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--target", choices=("crate", "standin", "sqlite"), default="sqlite")
    p.add_argument("--writers", type=int, default=4)
    p.add_argument("--actors", type=int, default=4)
    p.add_argument("--gap", type=float, default=1.5)
    p.add_argument("--mood", type=float, default=15)
    p.add_argument("--quiet", type=float, default=120)
    p.add_argument("--only", default="")
    p.add_argument("--without", default="")
    p.add_argument("--with", dest="more", default="")
    p.add_argument("--all", action="store_true", help="all families, whatever the seed leaves out")
    p.add_argument("--list", action="store_true")
    o = p.parse_args()
    for name in ("only", "without", "more"):
        setattr(o, name, [x for x in getattr(o, name).split(",") if x])
    if o.list:
        show_list()
        return 0
    run = Run(o)
    world, checker = run.world, run.checker
    if not world.families:
        p.error("nothing is left to write to")
    run.prepare()
    parked = left = 0
    try:
        run.storm()
        parked, left = run.quiet()
        run.compare_rows()
        run.compare_families()
        if not run.verify_agrees(True):
            world.complaints["verify does not say equal in the end"] += 1
        run.status_is_ok()
        run.nothing_is_left()
    finally:
        world.stop.set()
        for w in run.writers:
            w.stop.set()
        run.memory.stop.set()
        run.watch.stop.set()
        if run.env.kind == "crate" and run.env.crate_up:
            try:
                run.env.crate_signal(signal.SIGCONT)
            except OSError:
                pass
    run.read_log()
    if os.environ.get("CHAOS_LOGS"):
        shutil.copy(run.env.log_file, os.path.join(os.environ["CHAOS_LOGS"], "%s.%d.log" % (o.target, o.seed)))
    if run.memory.most > Memory.LIMIT:
        world.complaints["a worker had %d MB" % (run.memory.most >> 10)] += 1
    return summary(run, parked, left)


def summary(run, parked, left):
    world, checker = run.world, run.checker
    for family, table, what in world.findings:
        print("differs: %s %s: %s" % (family, table, what))
    for what, n in sorted(world.complaints.items()):
        print("wrong: %s%s" % (what, ", %d times" % n if n > 1 else ""))
    for what in sorted(set(run.worker_errors)):
        print("worker error: %s, %d times" % (what, run.worker_errors.count(what)))
    print("writers' errors: %s" % ", ".join("%s %d" % x for x in sorted(world.errors.items())))
    print("answers of calls: %s" % "; ".join("%s (%d)" % x for x in sorted(world.answers.items())))
    for name, (seconds, words) in sorted(run.watch.longest.items(), key=lambda x: -x[1][0])[:3]:
        print("longest trouble in calm: %s, %.0f s: %s" % (name, seconds, words))
    print("worker's memory: %d MB at most" % (run.memory.most >> 10))
    print("seed=%d faults=%d rows=%d looks=%d skipped=%d early=%d wrong=%d worker_errors=%d parked=%d still_parked=%d %s" % (
        run.o.seed, world.count, checker.rows, checker.looks, checker.skipped, checker.early, sum(world.complaints.values()),
        len(run.worker_errors), parked, left, " ".join("%s=%d" % (k, checker.found[k]) for k in ("lost", "stale", "extra", "foreign"))))
    return 1 if sum(checker.found.values()) or world.complaints or left else 0


def show_list():
    print("families: " + ", ".join("%s (%s)" % (name, kind.group) for kind, name, *more in FAMILIES))
    for kind in ("crate", "sqlite"):
        for group, names in groups(kind).items():
            print("%s, %s: %s" % (kind, group, ", ".join(sorted(set(names)))))


if __name__ == "__main__":
    sys.exit(main())
