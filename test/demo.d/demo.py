"""The demo itself; started by test/demo, which has PostgreSQL and the target running.

Python's standard library only.  Exit status 0 if everything went as it should.
"""

import argparse
import csv
import io
import json
import os
import random
import re
import secrets
import shlex
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import textwrap
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))
import compare      # noqa: E402

SHOP = os.path.join(os.path.dirname(HERE), "shop")
TABLES = ("customers", "categories", "products", "orders", "order_items")
# customers marked as deleted leave the mirror; elsewhere the mark is a column like any other
SOFT_DELETE = {"customers": "is_deleted"}
QUERIES = ("SELECT count(*) FROM orders",
           "SELECT avg(price) FROM products",
           "SELECT customer_id, count(*) FROM orders GROUP BY customer_id")


class Trouble(Exception):
    """The demo cannot go on."""


# ---------------------------------------------------------------------------
# what a person sees

class Screen:
    def __init__(self, fast):
        self.live = sys.stdout.isatty()
        self.colour = self.live and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.slow = self.live and not fast
        self.width = min(shutil.get_terminal_size((100, 25)).columns, 120)
        self.drawn = 0
        self.number = 0

    def paint(self, text, code):
        return "\033[%sm%s\033[0m" % (code, text) if self.colour else text

    def bold(self, text):
        return self.paint(text, "1")

    def dim(self, text):
        return self.paint(text, "2")

    def good(self, text):
        return self.paint(text, "32")

    def bad(self, text):
        return self.paint(text, "31")

    def pause(self, seconds):
        if self.slow:
            time.sleep(seconds)

    def say(self, text=""):
        self.settle()
        print(text, flush=True)

    def section(self, title):
        self.pause(1.5)
        self.number += 1
        line = "%d. %s" % (self.number, title)
        self.say()
        self.say(self.paint(line, "1;36"))
        self.say(self.dim("-" * len(line)))
        self.pause(0.7)

    def statement(self, sql, prompt="shop=# "):
        lines = sql.strip().split("\n")
        self.say(self.dim(prompt) + self.paint(lines[0], "33"))
        for line in lines[1:]:
            self.say(self.dim(" " * (len(prompt) - 2) + "  ") + self.paint(line, "33"))
        self.pause(0.8)

    def draw(self, lines):
        """Shows lines in place of those drawn before; a terminal only."""
        if not self.live:
            return
        lines = [self.fit(line) for line in lines]
        out = "\033[%dF" % self.drawn if self.drawn else ""
        out += "".join("\033[2K%s\n" % line for line in lines)
        self.drawn = len(lines)
        sys.stdout.write(out)
        sys.stdout.flush()

    def fit(self, line):
        """A line that wrapped could not be redrawn: too long ones lose their end, and their colours."""
        bare = re.sub(r"\033\[[0-9;]*m", "", line)
        return line if len(bare) < self.width else bare[:self.width - 1]

    def settle(self):
        self.drawn = 0

    def bar(self, share, width, code="32"):
        share = max(0.0, min(1.0, share))
        full = int(round(share * width))
        if share > 0 and full == 0:
            full = 1
        return self.paint("█" * full, code) + self.dim("·" * (width - full))


def plain_cells(rows):
    return [["" if c is None else str(c) for c in r] for r in rows]


def table_text(head, rows, right=()):
    cells = [list(head)] + plain_cells(rows)
    widths = [max(len(r[i]) for r in cells) for i in range(len(head))]
    out = []
    for n, r in enumerate(cells):
        out.append("  " + "  ".join(c.rjust(w) if i in right else c.ljust(w)
                                    for i, (c, w) in enumerate(zip(r, widths))).rstrip())
        if n == 0:
            out.append("  " + "  ".join("-" * w for w in widths))
    return out


def thousands(n):
    return format(int(n), ",")


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else float("nan")


# ---------------------------------------------------------------------------
# PostgreSQL, through a psql that stays

class Gone(Exception):
    """The connection was lost, or there is none."""


class SqlError(Exception):
    def __init__(self, sqlstate, message):
        super().__init__("%s (SQLSTATE %s)" % (message, sqlstate))
        self.sqlstate = sqlstate


class Psql:
    NULL = "\x01null\x01"

    def __init__(self, psql, conninfo):
        self.token = "@@" + secrets.token_hex(8)
        self.proc = subprocess.Popen(
            [psql, "-X", "-q", "-t", "--csv", "-P", "null=" + self.NULL, "-d", conninfo],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(os.environ, PGOPTIONS="", PGCLIENTENCODING="UTF8", PGAPPNAME="demo"))
        self.buffer = b""
        self.notices = []
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        for line in self.proc.stderr:
            self.notices.append(line.decode(errors="replace").rstrip())

    def run(self, *statements):
        """Executes them one after the other; rows of the last, cells as text or None."""
        rows = []
        for sql in statements:
            rows = self.one(sql)
        return rows

    def one(self, sql):
        text = "%s\n;\n\\echo %s :ERROR :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE\n" % (sql, self.token)
        try:
            self.proc.stdin.write(text.encode())
            self.proc.stdin.flush()
        except OSError:
            raise Gone(self.last_words())
        mark = self.token.encode()
        while True:
            at = self.buffer.find(mark)
            end = self.buffer.find(b"\n", at) if at >= 0 else -1
            if end >= 0:
                break
            data = os.read(self.proc.stdout.fileno(), 1 << 16)
            if not data:
                self.proc.wait()
                raise Gone(self.last_words())
            self.buffer += data
        out = self.buffer[:at].decode()
        error, sqlstate, message = self.buffer[at + len(mark) + 1:end].decode().split(" ", 2)
        self.buffer = self.buffer[end + 1:]
        if error == "true":
            # an error without a code is the connection's; psql has not noticed yet
            if not sqlstate:
                raise Gone(self.last_words())
            raise SqlError(sqlstate, message)
        # a single empty cell is an empty line
        return [[None if c == self.NULL else c for c in r or [""]] for r in csv.reader(io.StringIO(out))]

    def last_words(self):
        time.sleep(0.05)
        return self.notices[-1] if self.notices else "connection lost"

    def close(self):
        try:
            self.proc.stdin.close()
        except OSError:
            pass
        try:
            self.proc.wait(5)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()


class Database:
    """A connection that comes back after the server restarted."""

    def __init__(self, psql, conninfo):
        self.psql, self.conninfo = psql, conninfo
        self.connection = None

    def run(self, *statements):
        if self.connection is None:
            self.connection = Psql(self.psql, self.conninfo)
        try:
            return self.connection.run(*statements)
        except Gone:
            self.connection.close()
            self.connection = None
            raise

    def patient(self, *statements, seconds=60):
        """For statements that may be repeated: waits until the server is there."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.run(*statements)
            except Gone as e:
                if time.monotonic() > end:
                    raise Trouble("PostgreSQL does not answer: %s" % e)
                time.sleep(0.05)

    def value(self, sql):
        return self.patient(sql)[0][0]

    def record(self, columns, source):
        rows = self.patient("SELECT %s FROM %s" % (", ".join(columns), source))
        return [dict(zip(columns, r)) for r in rows]

    def notices(self):
        if self.connection is None:
            return []
        time.sleep(0.05)
        seen, self.connection.notices[:] = list(self.connection.notices), []
        return seen

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


# ---------------------------------------------------------------------------
# an application that writes all the time

class Writer(threading.Thread):
    def __init__(self, psql, conninfo, rows, first_id, seed):
        super().__init__(daemon=True)
        self.db = Database(psql, conninfo)
        self.rows, self.next_id = rows, first_id
        self.chance = random.Random(seed)
        self.times = []             # (start, ms) of each commit
        self.reconnects = 0
        self.errors = []
        self.over = threading.Event()

    def statement(self):
        r = self.chance.random()
        order = self.chance.randrange(1, self.rows + 1)
        if r < 0.70:
            return ("UPDATE orders SET status = 'paid', total = total + 0.01, updated_at = clock_timestamp() "
                    "WHERE order_id = %d" % order)
        if r < 0.85:
            self.next_id += 1
            return ("INSERT INTO orders (order_id, customer_id, status, total, note) "
                    "VALUES (%d, %d, 'new', %r, 'while it was away 🛒')"
                    % (self.next_id, order, self.chance.randrange(10 ** 6) / 100))
        if r < 0.95:
            return ("UPDATE products SET stock = stock + 1, updated_at = clock_timestamp() "
                    "WHERE product_id = %d" % order)
        # from the generated ones, so that their order_items go too
        return "DELETE FROM orders WHERE order_id = %d" % (self.chance.randrange(1, self.rows // 2) * 2)

    def run(self):
        while not self.over.is_set():
            sql = self.statement()
            start = time.monotonic()
            try:
                self.db.run(sql)
                self.times.append((start, (time.monotonic() - start) * 1000))
            except Gone:
                self.reconnects += 1
                while not self.over.is_set():
                    try:
                        self.db.run("SELECT 1")
                        break
                    except (Gone, SqlError):
                        time.sleep(0.02)
            except SqlError as e:
                # the server says so while it goes down
                if e.sqlstate not in ("57P01", "57P02", "57P03"):
                    self.errors.append(str(e))
            time.sleep(0.002)
        self.db.close()

    def finish(self):
        self.over.set()
        self.join(30)

    def between(self, start, end):
        return [ms for at, ms in self.times if start <= at < end]


# ---------------------------------------------------------------------------
# the demo

class Demo:
    def __init__(self, args):
        self.a = args
        self.screen = Screen(args.fast)
        self.failures = []
        self.conninfo = re.sub(r"dbname=\S+", "dbname=shop", args.conninfo)
        self.admin = Database(args.psql, args.conninfo)
        self.db = Database(args.psql, self.conninfo)
        self.sqlite = args.target.startswith("sqlite:")
        self.foreign = not self.sqlite and not args.crate_pid
        self.schema = "demo_" + secrets.token_hex(4) if self.foreign else "doc"
        self.user = os.environ.get("CRATE_USER") if not self.sqlite else None
        self.password = None
        if self.user and os.environ.get("CRATE_PASSWORD_FILE"):
            with open(os.environ["CRATE_PASSWORD_FILE"]) as f:
                self.password = f.read().strip("\r\n")
        self.target = self.open_target()
        self.outage = 3 if args.fast else 10

    def open_target(self):
        return compare.open_target(self.a.target, self.user, self.password)

    def fail(self, text):
        self.failures.append(text)
        self.screen.say(self.screen.bad("  FAILED: " + text))

    def name(self, table):
        return (self.schema, table)

    def qualified(self, table):
        return self.target.qualified(self.name(table))

    def target_count(self, table):
        return int(self.target.count(self.name(table)))

    def source_count(self, table):
        where = " WHERE NOT " + SOFT_DELETE[table] if table in SOFT_DELETE else ""
        return int(self.db.value("SELECT count(*) FROM %s%s" % (table, where)))

    def status(self):
        columns = ("ok", "state", "message", "hint", "pid", "queued_keys", "queue_bytes",
                   "extract(epoch FROM lag)", "n_failed_rows", "last_error")
        return self.db.record(columns, "crate_sync.status")[0]

    def show_status(self):
        s = self.status()
        text = "status: %s, %s" % (s["state"], s["message"])
        self.screen.say("  " + (self.screen.good(text) if s["ok"] == "t" else self.screen.bad(text))
                        + (self.screen.dim("  hint: " + s["hint"]) if s["hint"] else ""))

    # -- 1

    def versions(self):
        ui = self.screen
        ui.section("What runs here")
        ui.say("  PostgreSQL  %s, private: %s" % (self.admin.value("SHOW server_version"),
                                                  self.a.work))
        self.admin.patient("CREATE DATABASE shop")
        self.db.patient("CREATE EXTENSION crate_sync")
        ui.say("  crate_sync  %s" % self.db.value(
            "SELECT extversion FROM pg_extension WHERE extname = 'crate_sync'"))
        if self.sqlite:
            ui.say("  target      SQLite %s, %s" % (sqlite3.sqlite_version, self.a.target))
        else:
            row = self.target.sql("SELECT version['number'], count(*) FROM sys.nodes GROUP BY 1")["rows"][0]
            ui.say("  target      CrateDB %s, %s, %s node%s" % (row[0], self.a.target, row[1],
                                                                "" if row[1] == 1 else "s"))
        ui.say("  why that    " + self.a.why)
        if self.foreign:
            ui.say("              It is not ours: the shop goes into a schema of its own there, %s" % self.schema)

    # -- 2

    def shop(self):
        ui = self.screen
        ui.section("A shop, the same every time")
        for script in ("schema.sql", "generate.sql"):
            start = time.monotonic()
            command = [self.a.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "rows=%d" % self.a.rows,
                       "-d", self.conninfo, "-f", os.path.join(SHOP, script)]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if done.returncode != 0:
                raise Trouble("%s: %s" % (script, done.stderr.decode(errors="replace").strip()))
        ui.say("  generated in %.1f s" % (time.monotonic() - start))
        self.db.patient("VACUUM ANALYZE")
        self.generated = {t: int(self.db.value("SELECT count(*) FROM " + t)) for t in TABLES}
        for line in table_text(("table", "rows"), [(t, thousands(n)) for t, n in self.generated.items()], (1,)):
            ui.say(line)

    # -- 3

    def attach(self):
        ui = self.screen
        ui.section("Five tables attached, and their load")
        for t in TABLES:
            args = [compare.sql_literal(t)]
            if self.foreign:
                args.append("target => '%s.%s'" % (self.schema, t))
            if t in SOFT_DELETE:
                args.append("soft_delete_column => '%s'" % SOFT_DELETE[t])
            ui.statement("SELECT crate_sync.add_table(%s);" % ", ".join(args))
        ui.settle()
        start = time.monotonic()
        for t in TABLES:
            args = [compare.sql_literal(t)]
            if self.foreign:
                args.append("target => '%s.%s'" % (self.schema, t))
            if t in SOFT_DELETE:
                args.append("soft_delete_column => '%s'" % SOFT_DELETE[t])
            self.db.patient("SELECT crate_sync.add_table(%s)" % ", ".join(args))
        for notice in self.db.notices():
            ui.say("  " + notice)
        self.watch_load(start, TABLES)
        seconds = time.monotonic() - start
        rows = sum(self.generated.values())
        ui.say("  %s rows in %.1f s: %s rows/s" % (thousands(rows), seconds, ui.bold(thousands(rows / seconds))))
        self.show_status()

    def watch_load(self, start, tables, seconds=300):
        """Bars until every table has been loaded; a line each where nothing can be redrawn."""
        ui = self.screen
        done, last = {}, 0
        while len(done) < len(tables):
            loaded = dict(self.db.patient(
                "SELECT relname, last_load_time IS NOT NULL AND state = 'ready' FROM crate_sync.tables"))
            progress = {p["relname"]: p for p in self.db.record(
                ("relname", "phase", "tuples_done", "tuples_total", "rate",
                 "extract(epoch FROM time_left)"), "crate_sync.progress")}
            now = time.monotonic()
            lines, text = [], []
            for t in tables:
                total = self.generated[t]
                if loaded.get(t) == "t":
                    if t not in done:
                        done[t] = now - start
                        if not ui.live:
                            ui.say("  %-12s loaded after %.1f s" % (t, done[t]))
                    n, note = total, ui.good("loaded")
                elif t in progress:
                    p = progress[t]
                    n = int(p["tuples_done"] or 0)
                    total = max(int(float(p["tuples_total"] or 0)), n, 1)
                    rate, left = p["rate"], p["extract(epoch FROM time_left)"]
                    note = "%s rows/s%s" % (thousands(float(rate)) if rate else "-",
                                            ", %.0f s left" % float(left) if left else "")
                    text.append("%s %s of %s, %s" % (t, thousands(n), thousands(total), note))
                else:
                    n, note = 0, ui.dim("waiting")
                width = max(10, min(40, ui.width - 60))
                lines.append("  %-12s %s %9s  %s" % (t, ui.bar(n / total, width), thousands(n), note))
            ui.draw(lines)
            if not ui.live and text and now - last > 2:
                last = now
                ui.say("  " + "; ".join(text))
            if now - start > seconds:
                self.show_status()
                raise Trouble("the tables were not loaded within %d s" % seconds)
            if len(done) < len(tables):
                time.sleep(0.15)
        ui.settle()

    # -- 4

    def until(self, test, seconds=60):
        """Milliseconds until test() is true, or None."""
        start = time.monotonic()
        while not test():
            if time.monotonic() - start > seconds:
                return None
            time.sleep(0.001)
        return (time.monotonic() - start) * 1000

    def lookup(self, table, column, where, args):
        """The column of one row by its whole primary key: CrateDB shows that at once."""
        rows = self.target.select("SELECT %s FROM %s WHERE %s" % (column, self.qualified(table), where), args)
        return rows[0][0] if rows else None

    def item(self, order, line):
        return self.lookup("order_items", '"quantity"', '"order_id" = ? AND "line_no" = ?', [order, line])

    def search(self, table, where):
        """How many rows a search finds: CrateDB's needs a REFRESH first."""
        self.target.refresh(self.name(table))
        return int(self.target.select("SELECT count(*) FROM %s WHERE %s" % (self.qualified(table), where), [])[0][0])

    def change(self, shown, statements, table, test, seconds=60):
        ui = self.screen
        ui.statement(shown)
        self.db.patient(*statements)
        ms = self.until(test, seconds)
        if ms is None:
            self.fail("not visible in the target within %d s" % seconds)
            self.show_status()
            return
        s, t = self.source_count(table), self.target_count(table)
        ui.say("    visible in the target after %s ms; %s: %s rows here, %s there%s" % (
            ui.bold("%.0f" % ms if ms >= 10 else "%.1f" % ms), table, thousands(s), thousands(t),
            "" if s == t else ui.bad(" (!)")))
        if s != t:
            self.fail("%s: %d rows here, %d there" % (table, s, t))
        ui.pause(1)

    def changes(self):
        ui = self.screen
        n = self.a.rows
        ui.section("Changes, and the milliseconds from commit until they are visible")
        ui.say(ui.dim("  Counted from the commit's answer; a single row is looked for by its key, many by a search."))
        ui.say(ui.dim("  Customers marked as deleted leave the mirror: counted here are those that are not."))

        sql = "INSERT INTO customers (customer_id, name, email) VALUES (%d, 'Zoë \"Z\" O''Hara 🚲', 'zoe@example.com')" % (n + 1)
        self.change(sql + ";", [sql], "customers",
                    lambda: self.lookup("customers", '"name"', '"customer_id" = ?', [n + 1]) == 'Zoë "Z" O\'Hara 🚲')

        order = "INSERT INTO orders (order_id, customer_id, status, total) VALUES (%d, %d, 'new', 59.97)" % (n + 1, n + 1)
        items = ("INSERT INTO order_items (order_id, line_no, product_id, quantity, price)\n"
                 "  SELECT %d, i, i, 1, 19.99 FROM generate_series(1, 3) i" % (n + 1))
        self.change("BEGIN;\n%s;\n%s;\nCOMMIT;" % (order, items), ["BEGIN", order, items, "COMMIT"], "order_items",
                    lambda: self.lookup("orders", '"total"', '"order_id" = ?', [n + 1]) is not None and
                    all(self.item(n + 1, i) == 1 for i in (1, 2, 3)))

        sql = "UPDATE products SET price = 123.45 WHERE product_id = 7"
        self.change(sql + ";", [sql], "products",
                    lambda: float(self.lookup("products", '"price"', '"product_id" = ?', [7]) or 0) == 123.45)

        sql = ("INSERT INTO products (product_id, category_id, sku, name, price) VALUES (8, 1, 'x', 'x', 1)\n"
               "  ON CONFLICT (product_id) DO UPDATE SET stock = 4242")
        self.change(sql + ";", [sql], "products",
                    lambda: self.lookup("products", '"stock"', '"product_id" = ?', [8]) == 4242)

        sql = "UPDATE orders SET status = 'archived' WHERE order_id %% 10 = 0;  -- %s rows" % thousands(n // 10)
        want = int(self.db.value("SELECT count(*) FROM orders WHERE order_id % 10 = 0"))
        self.change(sql, [sql], "orders", lambda: self.search("orders", "\"status\" = 'archived'") == want)

        sql = "UPDATE customers SET is_deleted = true WHERE customer_id = 11;  -- a soft delete: gone there"
        self.change(sql, [sql], "customers",
                    lambda: self.lookup("customers", '"customer_id"', '"customer_id" = ?', [11]) is None)

        sql = "UPDATE products SET is_deleted = true WHERE product_id = 11;  -- a column like any other"
        self.change(sql, [sql], "products",
                    lambda: self.lookup("products", '"is_deleted"', '"product_id" = ?', [11]) in (True, 1))

        sql = "UPDATE order_items SET line_no = 77 WHERE order_id = %d AND line_no = 1;  -- the key itself" % (n + 1)
        self.change(sql, [sql], "order_items",
                    lambda: self.item(n + 1, 77) == 1 and self.item(n + 1, 1) is None)

        sql = "DELETE FROM orders WHERE order_id = %d;  -- its items go by ON DELETE CASCADE" % (n + 1)
        self.change(sql, [sql], "order_items",
                    lambda: self.lookup("orders", '"total"', '"order_id" = ?', [n + 1]) is None and
                    all(self.item(n + 1, i) is None for i in (2, 3, 77)))

        sql = "TRUNCATE order_items"
        self.change(sql + ";  -- %s rows" % thousands(self.source_count("order_items")), [sql], "order_items",
                    lambda: self.target_count("order_items") == 0, 180)

        ui.statement("\\i test/shop/generate.sql  -- order_items again")
        done = subprocess.run([self.a.psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "rows=%d" % n,
                               "-v", "only=order_items", "-d", self.conninfo, "-f",
                               os.path.join(SHOP, "generate.sql")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Trouble("generate.sql: " + done.stderr.decode(errors="replace"))
        want = self.source_count("order_items")
        ms = self.until(lambda: self.target_count("order_items") == want, 180)
        if ms is None:
            self.fail("order_items did not come back")
        else:
            ui.say("    visible in the target after %s ms; order_items: %s rows here, %s there"
                   % (ui.bold("%.0f" % ms), thousands(want), thousands(want)))

    # -- 5 and 6

    def drain(self, seconds=120):
        """Until nothing is queued; draws the queue."""
        ui = self.screen
        start, last, top = time.monotonic(), 0, 1
        while True:
            s = self.status()
            n = int(s["queued_keys"])
            top = max(top, n)
            now = time.monotonic()
            if n == 0:
                break
            if ui.live:
                ui.draw(["  draining  %s %s keys" % (ui.bar(n / top, 30, "33"), thousands(n))])
            elif now - last >= 2:
                last = now
                ui.say("  draining: %s keys queued" % thousands(n))
            if now - start > seconds:
                self.fail("the queue did not drain within %d s" % seconds)
                self.show_status()
                return None
            time.sleep(0.1)
        if ui.live:
            ui.draw(["  draining  %s 0 keys" % ui.bar(0, 30)])
        ui.settle()
        return time.monotonic() - start if self.wait_for_sync() else None

    def wait_for_sync(self, table="NULL"):
        if self.db.value("SELECT crate_sync.wait_for_sync(%s, '2min')" % table) == "t":
            return True
        self.fail("wait_for_sync: " + " ".join(self.db.notices()))
        return False

    def watch_writer(self, writer, seconds, from_time):
        """Draws writer and queue for so long."""
        ui = self.screen
        end, last = time.monotonic() + seconds, time.monotonic()
        top, most = 400 * seconds, 0    # about what one writer queues
        while time.monotonic() < end:
            s = self.status()
            now = time.monotonic()
            n = int(s["queued_keys"])
            most, top = max(most, n), max(top, n)
            recent = writer.between(now - 1, now)
            text = "%4.1f s  writer: %s commits, p50 %.2f ms   queue: %s keys, lag %.1f s" % (
                now - from_time, thousands(len(writer.between(from_time, now))),
                percentile(recent, 50), thousands(n), float(s["extract(epoch FROM lag)"]))
            if ui.live:
                ui.draw(["  " + text, "  queue  " + ui.bar(n / top, 40, "33"),
                         "  " + ui.dim("status: %s, %s" % (s["state"], s["message"]))])
            elif now - last >= 2:
                last = now
                ui.say("  " + text)
            time.sleep(0.15)
        ui.settle()
        return most

    def compare_some(self, tables):
        ui = self.screen
        for t in tables:
            r = self.comparison(t).compare()
            ui.say("  %-12s %s rows, %s differing  %s" % (
                t, thousands(r.source_rows), thousands(r.differing),
                ui.good("EQUAL") if r.equal else ui.bad("NOT EQUAL")))
            if not r.equal:
                self.fail("%s is not equal: %s" % (t, r.samples))

    def latencies(self, rows):
        ui = self.screen
        for line in table_text(("writer", "commits", "p50 ms", "p99 ms", "max ms"),
                               [(name, thousands(len(v)), "%.2f" % percentile(v, 50), "%.2f" % percentile(v, 99),
                                 "%.1f" % max(v or [float("nan")])) for name, v in rows], (1, 2, 3, 4)):
            ui.say(line)

    def new_writer(self, seed):
        first = int(self.db.value("SELECT max(order_id) FROM orders"))
        w = Writer(self.a.psql, self.conninfo, self.a.rows, first, seed)
        w.start()
        return w

    def finish_writer(self, writer):
        writer.finish()
        if writer.errors:
            self.fail("the writer got %d errors, the first: %s" % (len(writer.errors), writer.errors[0]))

    def target_outage(self):
        ui = self.screen
        ui.section("The target stopped for %s seconds, while writing goes on"
                   % {3: "three", 10: "ten"}[self.outage])
        writer = self.new_writer(1)
        calm = time.monotonic()
        self.watch_writer(writer, 3, calm)
        stop, go_on = self.stopper()
        down = time.monotonic()
        stop()
        try:
            most = self.watch_writer(writer, self.outage, down)
        finally:
            go_on()
        up = time.monotonic()
        ui.say("  ... and the target is back.  Most keys queued: " + ui.bold(thousands(most)))
        self.watch_writer(writer, 3, up)
        self.finish_writer(writer)
        over = time.monotonic()
        seconds = self.drain()
        self.latencies([("before", writer.between(calm, down)), ("target stopped", writer.between(down, up)),
                        ("target back", writer.between(up, over))])
        if not writer.between(down, up) or most == 0:
            self.fail("nothing was written or queued while the target was stopped")
        if seconds is not None:
            ui.say("  drained %.1f s after the writer's end, and compared row by row:" % seconds)
        self.compare_some(("orders", "products"))

    def stopper(self):
        """How to stop the target and let it go on, told to the person."""
        ui = self.screen
        if self.a.crate_pid:
            ui.say("  " + ui.bold("kill -STOP %d" % self.a.crate_pid) +
                   "  CrateDB's process is frozen: connections stay open and nothing answers")
            return (lambda: os.killpg(self.a.crate_pid, signal.SIGSTOP),
                    lambda: os.killpg(self.a.crate_pid, signal.SIGCONT))
        if self.sqlite:
            ui.say("  " + ui.bold("BEGIN EXCLUSIVE") + "  another program locks the SQLite file: nothing can be written")
            held = sqlite3.connect(self.target.path, timeout=30, isolation_level=None)
            return (lambda: held.execute("BEGIN EXCLUSIVE"),
                    lambda: (held.execute("ROLLBACK"), held.close()))
        ui.say("  This CrateDB is not ours to stop: " + ui.bold("crate_sync.enabled = off") +
               " stops the pushing instead")

        def enable(value):
            self.db.patient("ALTER SYSTEM SET crate_sync.enabled = " + value)
            self.db.patient("SELECT pg_reload_conf()")
        return lambda: enable("off"), lambda: enable("on")

    def worker_killed(self):
        ui = self.screen
        ui.section("The worker killed with -9, while writing goes on")
        writer = self.new_writer(2)
        calm = time.monotonic()
        self.watch_writer(writer, 2, calm)
        pid = int(self.status()["pid"])
        ui.say("  " + ui.bold("kill -9 %d" % pid) +
               "  PostgreSQL then restarts all its processes, as after any crash of one that shares its memory")
        down = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: not os.path.exists("/proc/%d" % pid), 10)
        back = self.until(lambda: self.status()["pid"] not in (None, str(pid)), 60)
        if back is None:
            self.fail("no worker came back within 60 s")
            self.show_status()
            self.finish_writer(writer)
            return
        again = time.monotonic()
        most = self.watch_writer(writer, 3, again)
        self.finish_writer(writer)
        over = time.monotonic()
        gap = max((b[0] - a[0] for a, b in zip(writer.times, writer.times[1:])), default=0)
        ui.say("  worker back after %s ms; the writer had to connect again %d time%s, %.0f ms without a commit"
               % (ui.bold(thousands((again - down) * 1000)), writer.reconnects,
                  "" if writer.reconnects == 1 else "s", gap * 1000))
        ui.say("  most keys queued since: " + thousands(most))
        seconds = self.drain()
        self.latencies([("before", writer.between(calm, down)), ("after", writer.between(down, over))])
        if seconds is not None:
            ui.say("  drained %.1f s after the writer's end, and compared row by row:" % seconds)
        self.compare_some(("orders", "products"))

    # -- 7

    def refused(self):
        ui = self.screen
        n = self.a.rows
        ui.section("A row that the target refuses")
        if self.sqlite:
            ui.say("  CrateDB refuses indexed text of more than 32,766 bytes; a trigger lets this SQLite file do so too.")
            self.target.sql("CREATE TRIGGER too_long BEFORE INSERT ON %s WHEN length(NEW.note) > 32766 BEGIN "
                            "SELECT RAISE(ABORT, 'note: more than 32766 bytes'); END" % self.qualified("orders"))
        first = int(self.db.value("SELECT max(order_id) FROM orders")) + 1
        bad = first + 2
        sql = ("INSERT INTO orders (order_id, customer_id, status, total, note)\n"
               "  SELECT i, 1, 'new', 1.5, CASE WHEN i = %d THEN repeat('x', 40000) ELSE 'a neighbour' END\n"
               "  FROM generate_series(%d, %d) i" % (bad, first, first + 4))
        ui.statement(sql + ";")
        self.db.patient(sql)
        ms = self.until(lambda: self.status()["n_failed_rows"] != "0", 60)
        if ms is None:
            self.fail("the row did not get into failed_rows")
            self.show_status()
            return
        # neighbours, each by its key
        others = [i for i in range(first, first + 5) if i != bad]
        through = self.until(lambda: all(self.lookup("orders", '"note"', '"order_id" = ?', [i]) == "a neighbour"
                                         for i in others), 30)
        ui.say("  in failed_rows after %.0f ms; its four neighbours %s" % (
            ms, "went through" if through is not None else ui.bad("did not get through")))
        if through is None:
            self.fail("neighbours of a refused row did not get through")
        shown = "SELECT relname, key, action, error_code, error_message, attempts FROM crate_sync.failed_rows;"
        ui.statement(shown)
        rows = self.db.record(("relname", "key", "action", "error_code", "error_message", "attempts"),
                              "crate_sync.failed_rows")
        for r in rows:
            for k, v in r.items():
                v = "" if v is None else v
                for i, line in enumerate(textwrap.wrap(v, ui.width - 18)[:6] or [""]):
                    ui.say("  %-14s %s" % (k if i == 0 else "", line))
        if len(rows) != 1 or json.loads(rows[0]["key"]).get("order_id") != bad:
            self.fail("failed_rows should hold order %d alone: %s" % (bad, rows))
        self.show_status()
        ui.pause(1.5)
        mend = "UPDATE orders SET note = left(note, 100) WHERE order_id = %d" % bad
        retry = "SELECT crate_sync.retry_failed('orders')"
        ui.statement("BEGIN;\n%s;\n%s;\nCOMMIT;" % (mend, retry))
        self.db.patient("BEGIN", mend)
        n_retried = self.db.value(retry)
        self.db.patient("COMMIT")
        ms = self.until(lambda: self.lookup("orders", '"note"', '"order_id" = ?', [bad]) == "x" * 100
                        and self.status()["n_failed_rows"] == "0", 60)
        if ms is None:
            self.fail("the mended row did not get through")
            self.show_status()
            return
        ui.say("  %s row retried; in the target, and gone from failed_rows, after %.0f ms" % (n_retried, ms))
        if self.sqlite:
            self.target.sql("DROP TRIGGER too_long")
        self.show_status()

    # -- 8

    def chart(self):
        ui = self.screen
        ui.section("Upserted, deleted and failed so far")
        rows = self.db.record(("relname", "n_tup_upserted", "n_tup_deleted", "n_tup_failed"), "crate_sync.tables")
        order = {t: i for i, t in enumerate(TABLES)}
        rows.sort(key=lambda r: order.get(r["relname"], 99))
        most = max(int(r[k]) for r in rows for k in ("n_tup_upserted", "n_tup_deleted", "n_tup_failed"))
        width = max(10, min(50, ui.width - 40))
        for r in rows:
            for i, (label, key, code) in enumerate((("upserted", "n_tup_upserted", "32"),
                                                    ("deleted", "n_tup_deleted", "33"),
                                                    ("failed", "n_tup_failed", "31"))):
                v = int(r[key])
                ui.say("  %-12s %-8s %s %s" % (r["relname"] if i == 0 else "", label,
                                               ui.bar(v / most if most else 0, width, code), thousands(v)))
        ui.pause(1.5)

    # -- 9

    def benchmark(self):
        ui = self.screen
        ui.section("The same questions to both sides")
        # a search in CrateDB sees the last changes only after a refresh
        ui.statement("SELECT crate_sync.wait_for_sync();")
        self.wait_for_sync()
        self.db.patient("VACUUM ANALYZE")
        iterations = 5 if self.a.fast else 20
        for q in QUERIES:
            args = [compare.sql_literal(q)]
            if iterations != 20:
                args.append("iterations => %d" % iterations)
            ui.statement("SELECT crate_sync.benchmark(%s);" % ", ".join(args))
            match, mismatch, s, t = self.db.patient(
                "SELECT rows_match, mismatch, source_p50_time, target_p50_time FROM crate_sync.benchmark(%s)"
                % ", ".join(args))[0]
            ui.say("    answers %s; p50 %.2f ms here, %.2f ms there" % (
                ui.good("agree") if match == "t" else ui.bad("differ: " + (mismatch or "")), float(s), float(t)))
            if match != "t":
                self.fail("benchmark: the answers to %s differ: %s" % (q, mismatch))
        ui.statement("SELECT crate_sync.benchmark_chart(%d);" % len(QUERIES))
        for row in self.db.patient("SELECT * FROM crate_sync.benchmark_chart(%d)" % len(QUERIES)):
            ui.say("  " + (row[0] or ""))
        ui.pause(2)

    # -- 10

    def comparison(self, table):
        return compare.Pair(compare.Source(self.conninfo, self.a.psql), self.target, table,
                            "%s.%s" % self.name(table), soft_delete=SOFT_DELETE.get(table))

    def compare_tables(self, tables):
        ui = self.screen
        results, lines = [], []
        for t in tables:
            r = self.comparison(t).compare()
            results.append(r)
            lines.append((t, thousands(r.source_rows), thousands(r.target_rows), thousands(r.differing),
                          "EQUAL" if r.equal else "NOT EQUAL"))
        for line in table_text(("table", "rows", "in target", "differing", ""), lines, (1, 2, 3)):
            line = line.replace("NOT EQUAL", ui.bad("NOT EQUAL")) if "NOT EQUAL" in line else \
                line.replace("EQUAL", ui.good("EQUAL"))
            ui.say(line)
        for r in results:
            for s in r.samples:
                ui.say("  %s: %s %s %s" % (r.source, s["kind"], json.dumps(s["key"], default=str), "; ".join(
                    "%s here %s, there %s" % (c, a, b) for c, (a, b) in s.get("columns", {}).items())))
        return results

    def compare_all(self):
        ui = self.screen
        ui.section("Both sides compared row by row, by a check that shares no code with crate_sync")
        self.wait_for_sync()
        ui.say("  First, does it notice anything?  One row changed by hand in the target:")
        # one that is still there after all the deletes
        victim = int(self.db.value("SELECT min(order_id) FROM orders WHERE order_id > 40"))
        stmt = "UPDATE %s SET \"total\" = \"total\" + 0.01 WHERE \"order_id\" = %d" % (self.qualified("orders"), victim)
        ui.statement(stmt, prompt="sqlite> " if self.sqlite else "cr> ")
        self.target.sql(stmt)
        r = self.compare_tables(("orders",))[0]
        if r.differing != 1 or r.different != 1:
            self.fail("the check should have found that one row, and found %d" % r.differing)
        ui.pause(1.5)
        ui.say("  And a resync mends it:")
        ui.statement("SELECT crate_sync.resync('orders');\nSELECT crate_sync.wait_for_sync('orders', '2min');")
        self.db.patient("SELECT crate_sync.resync('orders')")
        start = time.monotonic()
        self.wait_for_sync("'orders'")
        ui.say("    %.1f s" % (time.monotonic() - start))
        for r in self.compare_tables(TABLES):
            if not r.equal:
                self.fail("%s is not equal" % r.source)
        self.show_status()

    # -- 11

    def go_on(self):
        ui = self.screen
        stays = self.a.keep or (ui.live and sys.stdin.isatty())
        ui.section("To go on by hand" if stays else "To go on by hand (with --keep, which leaves the servers running)")
        ui.say("  psql %s" % shlex.quote(self.conninfo))
        ui.say("    SELECT * FROM crate_sync.status;  SELECT * FROM crate_sync.tables;")
        stmt = "SELECT count(*) FROM " + ("orders" if self.sqlite else self.schema + ".orders")
        if self.sqlite:
            if shutil.which("sqlite3"):
                ui.say("  sqlite3 %s %s" % (shlex.quote(self.target.path), shlex.quote(stmt)))
            else:
                ui.say("  python3 -c 'import sqlite3; print(sqlite3.connect(\"%s\").execute(\"%s\").fetchall())'"
                       % (self.target.path, stmt))
        else:
            user = "-u %s " % shlex.quote(self.user) if self.user else ""
            ui.say("  curl -s %s-H 'Content-Type: application/json' -d %s %s/_sql"
                   % (user, shlex.quote(json.dumps({"stmt": stmt})), self.a.target.split(",")[0].rstrip("/")))
        if stays:
            ui.say("  servers' logs: %s/log" % self.a.work)
        if self.a.keep:
            ui.say("  to stop it: " + ui.bold(self.a.stop_command))
            if self.foreign:
                ui.say("  its tables in CrateDB stay: DROP TABLE %s" % ", ".join(self.qualified(t) for t in TABLES))

    def verdict(self):
        ui = self.screen
        ui.say()
        if self.failures:
            ui.say(ui.bad("%d thing%s went wrong:" % (len(self.failures), "" if len(self.failures) == 1 else "s")))
            for f in self.failures:
                ui.say(ui.bad("  " + f))
        else:
            ui.say(ui.good("All five tables are EQUAL, and everything went as it should."))

    def wait_for_enter(self):
        ui = self.screen
        if ui.live and sys.stdin.isatty() and not self.a.keep:
            ui.say(ui.bold("\nEnter stops the servers and removes everything: "))
            sys.stdin.readline()

    def clean(self):
        """What must not be left in somebody else's CrateDB."""
        if self.foreign and not self.a.keep:
            # once more Ctrl-C would leave it there
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.screen.say("taking what is the shop's out of the CrateDB that is not ours ...")
            self.stop_worker()
            try:
                self.clean_target()
            except compare.CompareError as e:
                self.screen.say(self.screen.bad("something of %s may still be there: %s" % (self.schema, e)))
        self.db.close()
        self.admin.close()

    def stop_worker(self):
        """It would make again what is dropped.  The connection may be gone by the same Ctrl-C."""
        db = Database(self.a.psql, self.conninfo)
        try:
            db.run("SELECT crate_sync.stop()")
            gone = lambda: db.run("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'crate_sync worker'"
                                  " AND datname = current_database()")[0][0] == "0"
            if self.until(gone, 20) is None:
                db.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'crate_sync worker'"
                       " AND datname = current_database()")
                self.until(gone, 20)
        except (Gone, SqlError, Trouble):
            pass                    # not made yet, or no server
        finally:
            db.close()

    def clean_target(self):
        """All tables of the schema, those of a rebuild too, and what says whose they are."""
        rows = self.target.sql("SELECT table_name FROM information_schema.tables WHERE table_schema = ?", [self.schema])["rows"]
        for (t,) in rows:
            self.target.sql("DROP TABLE IF EXISTS " + self.qualified(t))
        prefix = '"%s".' % self.schema
        try:
            system = self.admin.value("SELECT system_identifier FROM pg_control_system()")
        except (Gone, SqlError, Trouble):
            system = ""
        for table, where, args in (("claim", "substr(target, 1, ?) = ? OR system_identifier = ?", [len(prefix), prefix, system]),
                                   ("fence", "substr(id, 1, ?) = ?", [len(prefix), prefix])):
            there = self.target.sql("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'crate_sync' AND table_name = ?",
                                    [table])["rows"][0][0]
            if there:
                self.target.sql("REFRESH TABLE crate_sync.%s" % table)
                self.target.sql("DELETE FROM crate_sync.%s WHERE %s" % (table, where), args)

    def run(self):
        start = time.monotonic()
        try:
            for step in (self.versions, self.shop, self.attach, self.changes, self.target_outage,
                         self.worker_killed, self.refused, self.chart, self.benchmark, self.compare_all):
                step()
            self.go_on()
            self.verdict()
            self.screen.say(self.screen.dim("%.0f s in all" % (time.monotonic() - start)))
            self.wait_for_enter()
        except (Trouble, Gone, SqlError, compare.CompareError, sqlite3.Error, OSError) as e:
            self.fail("%s: %s" % (type(e).__name__, e))
            log = os.path.join(self.a.work, "log", "postgresql.log")
            try:
                with open(log, errors="replace") as f:
                    tail = f.readlines()[-15:]
                self.screen.say("the end of the server's log:")
                for line in tail:
                    self.screen.say("  " + line.rstrip())
            except OSError:
                pass
        finally:
            self.clean()
        return 1 if self.failures else 0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--work", required=True)
    p.add_argument("--psql", required=True)
    p.add_argument("--conninfo", required=True)
    p.add_argument("--target", required=True)
    p.add_argument("--why", default="")
    p.add_argument("--rows", type=int, default=100000)
    p.add_argument("--crate-pid", type=lambda s: int(s) if s else None, default=None)
    p.add_argument("--fast", action="store_true")
    p.add_argument("--keep", type=int, default=0)
    p.add_argument("--stop-command", default="")
    demo = Demo(p.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return demo.run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
