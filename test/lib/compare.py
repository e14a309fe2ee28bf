#!/usr/bin/env python3
"""Compares PostgreSQL tables with their mirrors, row by row.

Shares nothing with the extension: source rows come from COPY by way of psql,
column types and keys from PostgreSQL's catalogs, target rows from CrateDB's
/_sql after REFRESH TABLE or from the SQLite file, page by page in key order.
Both sides are merged in the order of the key; where the two do not order a key
alike, by way of a temporary file.  So memory does not grow with the tables.

Values are compared as the target stores them: timestamps to the millisecond
(cut towards the past), doubles exactly, numerics and JSON by value.

    compare.py --source CONNINFO --target URL [options] SOURCE[=TARGET] ...

A line per table: rows on both sides, missing (in the target), extra, different,
and EQUAL or NOT EQUAL; the first differences below it.  Exit status 0 if all
are equal, 1 if not, 2 if the comparison could not be made.
"""

import argparse
import base64
import datetime
import decimal
import http.client
import json
import math
import os
import pickle
import re
import sqlite3
import ssl
import struct
import subprocess
import sys
import tempfile
import urllib.parse
import uuid


class CompareError(Exception):
    """The comparison could not be made."""


# ---------------------------------------------------------------------------
# the source

# base type, looked through domains; for arrays also that of the elements
DESCRIBE = """
WITH RECURSIVE col AS (
    SELECT a.attnum, a.attname, a.atttypid AS typid
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = %(rel)s AND a.attnum > 0 AND NOT a.attisdropped
), base(oid, typid) AS (
    SELECT t.oid, t.oid FROM pg_catalog.pg_type t
    WHERE t.oid IN (SELECT typid FROM col)
    UNION ALL
    SELECT b.oid, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid
    WHERE t.typtype = 'd'
), resolved AS (
    SELECT b.oid, t.typname, CASE WHEN t.typcategory = 'A' THEN e.typname END AS elem
    FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid
        LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
    WHERE t.typtype <> 'd'
), keys AS (
    SELECT i.indkey, i.indnkeyatts FROM pg_catalog.pg_index i
    WHERE i.indrelid = %(rel)s AND i.indisvalid AND i.indisunique AND i.indpred IS NULL
        AND i.indexprs IS NULL AND i.indimmediate
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = i.indrelid AND NOT a.attnotnull
                            AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
    ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid
    LIMIT 1
)
SELECT json_build_object(
    'schema', (SELECT n.nspname FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %(rel)s),
    'table', (SELECT relname FROM pg_catalog.pg_class WHERE oid = %(rel)s),
    'columns', (SELECT json_agg(json_build_object('name', c.attname, 'type', r.typname, 'elem', r.elem)
                                ORDER BY c.attnum) FROM col c JOIN resolved r ON r.oid = c.typid),
    'key', (SELECT json_agg(a.attname ORDER BY k.ord)
            FROM keys, unnest(keys.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
                JOIN pg_catalog.pg_attribute a ON a.attrelid = %(rel)s AND a.attnum = k.attnum
            WHERE k.ord <= keys.indnkeyatts))
"""

SETTINGS = (
    "SET client_encoding = 'UTF8'", "SET TimeZone = 'UTC'", "SET DateStyle = 'ISO, YMD'",
    "SET IntervalStyle = 'postgres'", "SET bytea_output = 'hex'", "SET extra_float_digits = 1",
    "SET statement_timeout = 0", "SET row_security = off", "SET search_path = public, pg_catalog",
)


def sql_literal(text):
    return "'" + text.replace("'", "''") + "'"


def quote(name):
    return '"' + name.replace('"', '""') + '"'


COPY_ESCAPE = re.compile(rb"\\(x[0-9A-Fa-f]{1,2}|[0-7]{1,3}|.)", re.S)
COPY_CHARS = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def copy_unescape(match):
    c = match.group(1)
    if c in COPY_CHARS:
        return COPY_CHARS[c]
    if c[:1] == b"x" and len(c) > 1:
        return bytes([int(c[1:], 16)])
    if c.isdigit():
        return bytes([int(c, 8) & 255])
    return c


class Source:
    def __init__(self, conninfo, psql="psql", search_path=None):
        self.command = [psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", conninfo]
        self.settings = SETTINGS if search_path is None else \
            SETTINGS + ("SET search_path = " + search_path,)

    def popen(self, sql):
        args = list(self.command)
        for statement in self.settings:
            args += ["-c", statement]
        env = dict(os.environ, PGOPTIONS="", PGCLIENTENCODING="UTF8")
        # a long statement may be more than one argument can hold
        proc = subprocess.Popen(args + ["-f", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=env)
        proc.stdin.write(sql.encode() + b";\n")
        proc.stdin.close()
        return proc

    def finish(self, proc):
        message = re.sub(r"^psql:<stdin>:\d+: ", "", proc.stderr.read().decode(errors="replace").strip())
        if proc.wait() != 0:
            raise CompareError("source: " + (message or "psql failed"))

    def query(self, sql):
        proc = self.popen(sql)
        out = proc.stdout.read().decode()
        self.finish(proc)
        return out.strip("\n")

    def describe(self, relation):
        return json.loads(self.query(DESCRIBE % {"rel": sql_literal(relation) + "::regclass"}))

    def copy(self, query):
        """Rows of a query as lists of text or None."""
        proc = self.popen("COPY (%s) TO STDOUT" % query)
        try:
            for line in proc.stdout:
                fields = line[:-1].split(b"\t")
                if b"\\" in line:
                    yield [None if f == b"\\N" else COPY_ESCAPE.sub(copy_unescape, f).decode()
                           if b"\\" in f else f.decode() for f in fields]
                else:
                    yield line[:-1].decode().split("\t")
            self.finish(proc)
        finally:
            if proc.poll() is None:
                proc.kill()
                proc.wait()


# ---------------------------------------------------------------------------
# the targets: columns(), refresh(), page()

class CrateTarget:
    kind = "crate"

    def __init__(self, url, user=None, password=None, ca_file=None, verify=True, timeout=120):
        # several hosts: any of them will do
        u = urllib.parse.urlsplit(url.split(",")[0])
        if u.scheme not in ("http", "https") or not u.hostname:
            raise CompareError("not a target: " + url)
        self.host, self.port = u.hostname, u.port or 4200
        self.context = None
        if u.scheme == "https":
            self.context = ssl.create_default_context(cafile=ca_file)
            if not verify:
                self.context.check_hostname = False
                self.context.verify_mode = ssl.CERT_NONE
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"}
        user = user or u.username
        password = password or u.password
        if user:
            token = base64.b64encode(("%s:%s" % (user, password or "")).encode()).decode()
            self.headers["Authorization"] = "Basic " + token
        self.connection = None
        self.last_size = 0

    def sql(self, stmt, args=None, bulk_args=None):
        body = {"stmt": stmt}
        if args is not None:
            body["args"] = args
        if bulk_args is not None:
            body["bulk_args"] = bulk_args
        for attempt in (1, 2):
            try:
                if self.connection is None:
                    if self.context:
                        self.connection = http.client.HTTPSConnection(
                            self.host, self.port, timeout=self.timeout, context=self.context)
                    else:
                        self.connection = http.client.HTTPConnection(
                            self.host, self.port, timeout=self.timeout)
                self.connection.request("POST", "/_sql", json.dumps(body).encode(), self.headers)
                response = self.connection.getresponse()
                data = response.read()
                break
            except (OSError, http.client.HTTPException) as e:
                self.close()
                # a kept connection may have been closed meanwhile; reading may be repeated
                if attempt == 2 or not stmt.startswith(("SELECT", "REFRESH")):
                    raise CompareError("target: %s" % e)
        self.last_size = len(data)
        try:
            # floats stay text, so that a numeric keeps all its digits
            answer = json.loads(data.decode(), parse_float=JsonFloat)
        except ValueError:
            raise CompareError("target: HTTP %d, no JSON: %r" % (response.status, data[:200]))
        if "error" in answer:
            raise CompareError("target: %s" % answer["error"].get("message", answer["error"]))
        return answer

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def qualified(self, name):
        schema, table = name if isinstance(name, tuple) else ("doc", name)
        return quote(schema) + "." + quote(table)

    def columns(self, name):
        rows = self.sql("SELECT column_name, data_type FROM information_schema.columns "
                        "WHERE table_schema = ? AND table_name = ?", list(name))["rows"]
        # members of objects are listed too: a["b"]; a name that is a type's word comes in quotes
        return {r[0].strip('"') if r[0].lower() == '"char"' else r[0]: r[1] for r in rows if not r[0].endswith("]")}

    def refresh(self, name):
        self.sql("REFRESH TABLE " + self.qualified(name))

    def select(self, sql, args):
        return self.sql(sql, args)["rows"]

    def count(self, name):
        self.refresh(name)
        return self.select("SELECT count(*) FROM " + self.qualified(name), [])[0][0]


class SqliteTarget:
    kind = "sqlite"

    def __init__(self, url, timeout=60):
        self.path = url[len("sqlite:"):]
        self.timeout = timeout
        self.db = None
        self.last_size = 0

    def connect(self):
        if self.db is None:
            if not os.path.exists(self.path):
                raise CompareError("target: there is no file " + self.path)
            try:
                self.db = sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None)
            except sqlite3.Error as e:
                raise CompareError("target: %s" % e)
            self.db.text_factory = lambda b: b.decode()
        return self.db

    def sql(self, stmt, args=()):
        try:
            cursor = self.connect().execute(stmt, args)
            rows = [list(r) for r in cursor.fetchall()]
        except sqlite3.Error as e:
            raise CompareError("target: %s" % e)
        return {"rows": rows, "rowcount": cursor.rowcount}

    def close(self):
        if self.db is not None:
            self.db.close()
            self.db = None

    def qualified(self, name):
        # a file has no schemas: but for doc they are part of the table's name
        schema, table = name
        return quote(table if schema == "doc" else schema + "." + table)

    def columns(self, name):
        rows = self.sql("SELECT name, type FROM pragma_table_info(%s)"
                        % sql_literal(self.qualified(name)[1:-1].replace('""', '"')))["rows"]
        # SQLite's REAL has eight bytes
        return {r[0]: "double precision" if r[1].lower() == "real" else r[1].lower() for r in rows}

    def refresh(self, name):
        pass

    def select(self, sql, args):
        rows = self.sql(sql, args)["rows"]
        self.last_size = sum(len(v) for r in rows for v in r if isinstance(v, str))
        return rows

    def count(self, name):
        return self.select("SELECT count(*) FROM " + self.qualified(name), [])[0][0]


def open_target(url, user=None, password=None, ca_file=None, verify=True):
    if url.startswith("sqlite:"):
        return SqliteTarget(url)
    return CrateTarget(url, user, password, ca_file, verify)


# ---------------------------------------------------------------------------
# values: both sides are brought to one form, chosen by the source's type

class JsonFloat(str):
    """A number with a fraction or an exponent, as it stood in the JSON text."""
    __slots__ = ()


def number(v):
    """int, or text in lowest terms: 15e-1."""
    if isinstance(v, bool):
        return v
    if isinstance(v, int):
        return v
    if isinstance(v, float):
        v = repr(v)
    d = decimal.Decimal(str(v))
    if not d.is_finite():
        return str(d).lower()
    # int() of 1e100000 would be huge: compare those as text
    if d == d.to_integral_value() and d.adjusted() < 400:
        return int(d)
    sign, digits, exponent = d.as_tuple()
    while digits and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    return "%s%se%d" % ("-" if sign else "", "".join(map(str, digits)), exponent)


def float_text(v):
    return {"Infinity": "inf", "-Infinity": "-inf", "inf": "inf", "-inf": "-inf"}.get(v, v)


def to_float8(v):
    f = float(float_text(v) if isinstance(v, str) else v)
    # NaN equals itself here; -0.0 is 0.0, as for every comparison of the target
    return "NaN" if f != f else f


def to_float4(v):
    f = to_float8(v)
    if isinstance(f, str) or math.isinf(f):
        return f
    try:
        return struct.unpack("f", struct.pack("f", f))[0]
    except OverflowError:
        return f


def to_bool(v):
    if isinstance(v, bool):
        return v
    return {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}[str(v).lower()]


TIMESTAMP = re.compile(r"^(\d{4,})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?"
                       r"(Z|[+-]\d\d(?::?\d\d)?)?( BC)?$")


def days_of(y, m, d):
    """Days since 1970-01-01 in the Gregorian calendar, any year."""
    y -= m <= 2
    era = y // 400
    yoe = y - era * 400
    doy = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


def timestamp_us(text):
    """Microseconds since 1970 UTC; infinities as their words."""
    if text in ("infinity", "-infinity"):
        return text
    m = TIMESTAMP.match(text)
    if not m:
        raise ValueError(text)
    year = int(m.group(1))
    if m.group(9):
        year = 1 - year
    us = days_of(year, int(m.group(2)), int(m.group(3))) * 86400
    if m.group(4):
        us += int(m.group(4)) * 3600 + int(m.group(5)) * 60 + int(m.group(6))
    zone = m.group(8)
    if zone and zone != "Z":
        digits = zone[1:].replace(":", "")
        offset = int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60
        us += -offset if zone[0] == "+" else offset
    return us * 1000000 + int((m.group(7) or "0").ljust(6, "0"))


def json_value(v):
    """A form of a JSON document that does not depend on order or notation."""
    if isinstance(v, JsonFloat) or isinstance(v, (int, float)) and not isinstance(v, bool):
        return ("n", number(v))
    if isinstance(v, dict):
        return ("o",) + tuple((k, json_value(v[k])) for k in sorted(v))
    if isinstance(v, list):
        return ("a",) + tuple(json_value(e) for e in v)
    return v


def json_object(v):
    """The same where the target keeps numbers as BIGINT or DOUBLE."""
    if isinstance(v, JsonFloat) or isinstance(v, float):
        return to_float8(v)
    if isinstance(v, int) and not isinstance(v, bool):
        return v if abs(v) < 2 ** 53 else to_float8(v)
    if isinstance(v, dict):
        return ("o",) + tuple((k, json_object(v[k])) for k in sorted(v))
    if isinstance(v, list):
        return ("a",) + tuple(json_object(e) for e in v)
    return v


def parse_json(v):
    return json.loads(v, parse_float=JsonFloat) if type(v) is str else v


INTS = ("int2", "int4", "int8", "oid")


def is_timestamp_type(t):
    return t.startswith("timestamp") or t == "date"


def identity(v):
    return v


def same_ms(v):
    # the source gives µs
    us = timestamp_us(v) if isinstance(v, str) and not re.fullmatch(r"-?\d+", v) else int(v)
    return us if isinstance(us, str) else us // 1000


def target_ms(v):
    if isinstance(v, str) and not isinstance(v, JsonFloat):
        us = timestamp_us(v)
        return us if isinstance(us, str) else us // 1000
    return int(number(v))


def day_us(v):
    return v if v in ("infinity", "-infinity") else int(v) * 86400000000


def converters(typ, elem, ttype, in_array=False):
    """(source, target): functions that bring a non-NULL value to the common form.

    typ: the source's base type; ttype: the target's column type, lower case.
    Source values come as text of COPY, or out of to_json() in an array.
    """
    text_target = ttype.startswith(("text", "varchar", "char", "string", "keyword", "uuid", "ip", "bit"))
    if elem is not None:
        inner = ttype
        if ttype.endswith("_array"):
            inner = re.sub(r"(_array)+$", "", ttype)
        elif ttype.startswith("array("):
            inner = re.sub(r"^(array\()+", "", ttype).rstrip(")")
        elif ttype.startswith("float_vector"):
            inner = "real"
        elif not ttype or text_target or ttype == "json":
            # a target without arrays keeps them as JSON text, elements as CrateDB would get them
            inner = {"timestamp": "timestamp", "timestamptz": "timestamp", "date": "timestamp"}.get(elem, "")
        src, dst = converters(elem, None, inner, True)

        def walk(f):
            def g(v):
                return None if v is None else tuple(map(g, v)) if isinstance(v, list) else f(v)
            return g
        ws, wt = walk(src), walk(dst)
        return (lambda v: ws(parse_json(v))), (lambda v: wt(parse_json(v)))
    if typ in INTS:
        if is_timestamp_type(ttype):
            return int, int
        return int, int
    if typ.startswith("reg") and not text_target:
        return int, int
    if typ == "bool":
        return to_bool, to_bool
    if typ == "float8":
        return (to_float4, to_float4) if ttype == "real" and not in_array and ttype != "" else (to_float8, to_float8)
    if typ == "float4":
        return to_float4, to_float4
    if typ == "numeric":
        if ttype.startswith(("double", "float", "real")):
            f = to_float4 if ttype == "real" else to_float8
            return f, f
        return number, number
    if typ in ("timestamp", "timestamptz"):
        if text_target:
            return (timestamp_us if in_array else lambda v: v if v.endswith("infinity") else int(v)), timestamp_us
        return same_ms, target_ms
    if typ == "date":
        if text_target:
            return (timestamp_us if in_array else day_us), timestamp_us
        if in_array:
            return same_ms, target_ms
        return (lambda v: v if v in ("infinity", "-infinity") else int(v) * 86400000), target_ms
    if typ in ("json", "jsonb"):
        if ttype.startswith("object"):
            return (lambda v: json_object(parse_json(v))), (lambda v: json_object(parse_json(v)))
        return (lambda v: json_value(parse_json(v))), (lambda v: json_value(parse_json(v)))
    if typ == "point":
        def from_text(v):
            return tuple(to_float8(x) for x in v.strip("()").split(","))
        return from_text, lambda v: tuple(to_float8(x) for x in parse_json(v))
    if typ in ("vector", "halfvec"):
        def numbers(v):
            return tuple(to_float4(x) for x in parse_json(v))
        return numbers, numbers
    if typ == "time" and ttype == "bigint":
        def micros(v):
            h, m, s = v.split(":")
            return (int(h) * 3600 + int(m) * 60) * 1000000 + int(decimal.Decimal(s) * 1000000)
        return micros, int
    return identity, identity


def source_expression(column, elem, typ, ttype):
    q = "t." + quote(column)
    if elem is not None:
        return "pg_catalog.to_json(%s)::text" % q
    if typ in ("timestamp", "timestamptz"):
        return ("CASE WHEN isfinite(%s) THEN (extract(epoch FROM %s) * 1000000)::bigint::text "
                "ELSE %s::text END" % (q, q, q))
    if typ == "date":
        return ("CASE WHEN isfinite(%s) THEN (%s - date '1970-01-01')::text ELSE %s::text END" % (q, q, q))
    if typ.startswith("reg") and ttype.startswith(("bigint", "integer")):
        return q + "::oid"
    if typ == "bpchar":
        return q + "::text"
    return q


# ---------------------------------------------------------------------------
# the comparison

# keys that PostgreSQL, CrateDB, SQLite and Python order alike
MERGE_TYPES = INTS + ("text", "varchar", "uuid", "bool", "name")
COLLATED = ("text", "varchar", "bpchar", "name")


class Result:
    def __init__(self, source, target):
        self.source, self.target = source, target
        self.source_rows = self.target_rows = 0
        self.missing = self.extra = self.different = 0
        self.samples = []

    @property
    def equal(self):
        return self.missing == self.extra == self.different == 0

    @property
    def differing(self):
        return self.missing + self.extra + self.different

    def as_dict(self):
        return {"source": self.source, "target": self.target, "source_rows": self.source_rows,
                "target_rows": self.target_rows, "missing": self.missing, "extra": self.extra,
                "different": self.different, "equal": self.equal, "samples": self.samples}


class Pair:
    """One table and its mirror; see main() for the options."""

    def __init__(self, source, target, relation, target_name=None, columns=None, key=None,
                 row_filter=None, soft_delete=None, rename=None, samples=5):
        self.src, self.tgt = source, target
        self.relation = relation
        self.samples = samples
        d = source.describe(relation)
        self.name = relation
        if target_name is None:
            target_name = "%s.%s" % ("doc" if d["schema"] == "public" else d["schema"], d["table"])
        schema, dot, table = target_name.partition(".")
        self.tname = (schema, table) if dot else ("doc", schema)
        key = key or d["key"]
        if not key:
            raise CompareError("%s has no unique key to compare by" % relation)
        types = {c["name"]: c for c in d["columns"]}
        names = [c["name"] for c in d["columns"] if columns is None or c["name"] in columns or c["name"] in key]
        if soft_delete is not None and soft_delete not in types:
            raise CompareError("%s has no column %s" % (relation, soft_delete))
        rename = rename or {}
        self.columns = key + [n for n in names if n not in key]
        self.nkeys = len(key)
        have = target.columns(self.tname)
        if not have:
            raise CompareError("target: there is no table %s.%s" % self.tname)
        self.tcolumns = [rename.get(n, n) for n in self.columns]
        absent = [n for n in self.tcolumns if n not in have]
        if absent:
            raise CompareError("target: %s.%s has no column %s" % (self.tname + (", ".join(absent),)))
        # in PostgreSQL's own terms
        exprs, self.from_source, self.from_target = [], [], []
        for n, t in zip(self.columns, self.tcolumns):
            c = types[n]
            exprs.append(source_expression(n, c["elem"], c["type"], have[t]))
            s, d2 = converters(c["type"], c["elem"], have[t])
            self.from_source.append(s)
            self.from_target.append(d2)
        # CrateDB's UUID knows no order and no cast: all rows at once, sorted by the file
        self.paged = not any(have[t] == "uuid" for t in self.tcolumns[:self.nkeys])
        self.merge = self.paged and all(types[n]["type"] in MERGE_TYPES and types[n]["elem"] is None
                                        for n in key)
        self.exact = [have[t].startswith("numeric") for t in self.tcolumns[:self.nkeys]]
        where = []
        if row_filter:
            where.append("((%s) IS TRUE)" % row_filter)
        if soft_delete is not None:
            where.append(("t.%s IS NOT TRUE" if types[soft_delete]["type"] == "bool"
                          else "t.%s IS NULL") % quote(soft_delete))
        order = ", ".join("t.%s%s" % (quote(n), ' COLLATE "C"' if types[n]["type"] in COLLATED else "")
                          for n in key)
        self.query = "SELECT %s FROM %s AS t%s%s" % (
            ", ".join(exprs), self.regclass_text(), " WHERE " + " AND ".join(where) if where else "",
            " ORDER BY " + order if self.merge else "")

    def regclass_text(self):
        return self.src.query("SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) "
                              "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
                              "WHERE c.oid = %s::regclass" % sql_literal(self.relation))

    def source_stream(self):
        convert = [None if f is identity else f for f in self.from_source]
        for row in self.src.copy(self.query):
            for i, f in enumerate(convert):
                if f is not None and row[i] is not None:
                    try:
                        row[i] = f(row[i])
                    except (ValueError, KeyError, ArithmeticError) as e:
                        raise CompareError("source: %s.%s: %r: %s" % (self.name, self.columns[i], row[i], e))
            yield row

    def target_stream(self):
        table = self.tgt.qualified(self.tname)
        self.tgt.refresh(self.tname)
        cols = ", ".join(map(quote, self.tcolumns))
        keys = [quote(c) for c in self.tcolumns[:self.nkeys]]
        convert = [None if f is identity else f for f in self.from_target]
        order = ", ".join(keys)
        limit, after = 1000, None
        while True:
            args = []
            where = ""
            if after is not None:
                # (a, b) > (x, y), in a form that every target knows
                terms = []
                for i in range(self.nkeys):
                    terms.append("(" + " AND ".join(
                        ["%s = ?" % k for k in keys[:i]] + ["%s > ?" % keys[i]]) + ")")
                    args += after[:i + 1]
                where = " WHERE " + ("%s >= ? AND (%s)" % (keys[0], " OR ".join(terms))
                                     if self.nkeys > 1 else terms[0])
                if self.nkeys > 1:
                    args.insert(0, after[0])
            page = " ORDER BY %s LIMIT %d" % (order, limit) if self.paged else ""
            rows = self.tgt.select("SELECT %s FROM %s%s%s" % (cols, table, where, page), args)
            short = not self.paged or len(rows) < limit
            if rows:
                after = [str(v) if exact else float(v) if isinstance(v, JsonFloat) else v
                         for v, exact in zip(rows[-1], self.exact)]
                # pages of a few MB, whatever the width of a row
                limit = max(1, min(20000, limit * 2, int(8e6 * len(rows) / max(1, self.tgt.last_size))))
            for row in rows:
                for i, f in enumerate(convert):
                    if f is not None and row[i] is not None:
                        try:
                            row[i] = f(row[i])
                        except (ValueError, KeyError, TypeError, ArithmeticError):
                            # not a value of this type at all: a difference, no reason to stop
                            row[i] = ("unexpected", str(row[i]))
                yield row
            if short:
                return

    def ordered(self, stream, side):
        """Checks the order that the merge relies on."""
        last = None
        for row in stream:
            key = tuple(v.encode() if isinstance(v, str) else v for v in row[:self.nkeys])
            if any(v is None or isinstance(v, tuple) for v in key):
                raise CompareError("%s: %s has a key %r" % (side, self.name, row[:self.nkeys]))
            if last is not None and key <= last:
                raise CompareError("%s: rows of %s are not in the order of their key: %r, then %r"
                                   % (side, self.name, last, key))
            last = key
            yield key, row
        yield None, None

    def sorted_by_file(self, stream, db, table):
        """The same for keys of any type: sorted by a temporary file."""
        db.execute("CREATE TABLE %s (k BLOB, row BLOB)" % table)
        db.executemany("INSERT INTO %s VALUES (?, ?)" % table,
                       ((repr(tuple(r[:self.nkeys])).encode(), pickle.dumps(r)) for r in stream))
        db.execute("CREATE INDEX %s_k ON %s (k)" % (table, table))
        last = None
        for k, row in db.execute("SELECT k, row FROM %s ORDER BY k" % table):
            k = bytes(k)
            if k == last:
                raise CompareError("%s: two rows of %s have the key %s" % (table, self.name, k.decode()))
            last = k
            yield k, pickle.loads(row)
        yield None, None

    def note(self, result, kind, row, other=None):
        if len(result.samples) >= self.samples:
            return
        key = {c: v for c, v in zip(self.columns, row[:self.nkeys])}
        sample = {"kind": kind, "key": key}
        if other is not None:
            sample["columns"] = {c: [short(a), short(b)] for c, a, b in zip(self.columns, row, other) if a != b}
        result.samples.append(sample)

    def compare(self):
        result = Result(self.name, "%s.%s" % self.tname)
        if self.merge:
            return self.run(result, self.ordered(self.source_stream(), "source"),
                            self.ordered(self.target_stream(), "target"))
        with tempfile.TemporaryDirectory() as d:
            db = sqlite3.connect(os.path.join(d, "rows"), isolation_level=None)
            db.execute("PRAGMA journal_mode = off")
            db.execute("PRAGMA synchronous = off")
            try:
                return self.run(result, self.sorted_by_file(self.source_stream(), db, "source"),
                                self.sorted_by_file(self.target_stream(), db, "target"))
            finally:
                db.close()

    def run(self, result, source, target):
        sk, srow = next(source)
        tk, trow = next(target)
        while sk is not None or tk is not None:
            if sk == tk:
                result.source_rows += 1
                result.target_rows += 1
                if srow != trow:
                    result.different += 1
                    self.note(result, "different", srow, trow)
                sk, srow = next(source)
                tk, trow = next(target)
            elif tk is None or (sk is not None and sk < tk):
                result.source_rows += 1
                result.missing += 1
                self.note(result, "missing", srow)
                sk, srow = next(source)
            else:
                result.target_rows += 1
                result.extra += 1
                self.note(result, "extra", trow)
                tk, trow = next(target)
        return result


def short(v):
    text = json.dumps(v, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def print_header(out=sys.stdout):
    print("%-28s %12s %12s %9s %9s %9s" % ("table", "rows", "in target", "missing", "extra", "different"),
          file=out)


def print_result(r, out=sys.stdout):
    print("%-28s %12s %12s %9s %9s %9s  %s" % (
        r.source, format(r.source_rows, ","), format(r.target_rows, ","), format(r.missing, ","),
        format(r.extra, ","), format(r.different, ","), "EQUAL" if r.equal else "NOT EQUAL"), file=out)
    for s in r.samples:
        line = "    %s %s" % (s["kind"], json.dumps(s["key"], default=str, ensure_ascii=False))
        for c, (a, b) in s.get("columns", {}).items():
            line += "  %s: source %s, target %s" % (c, a, b)
        print(line, file=out)
    out.flush()


def per_table(values, what):
    """TABLE=X options as a dict; X alone is for every table."""
    result = {}
    for v in values or []:
        table, eq, x = v.partition("=")
        if what != "filter" or re.fullmatch(r'[\w."]+', table):
            result[table if eq else None] = x if eq else table
        else:
            result[None] = v
    return result


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                formatter_class=argparse.RawDescriptionHelpFormatter,
                                epilog=__doc__.split("\n\n", 1)[1])
    p.add_argument("--source", required=True, help="a libpq connection string")
    p.add_argument("--target", required=True, help="http://host:4200, https://..., sqlite:/path/file.db")
    p.add_argument("--user")
    p.add_argument("--password-file")
    p.add_argument("--ca-file")
    p.add_argument("--no-verify", action="store_true", help="do not check the certificate")
    p.add_argument("--psql", default=os.environ.get("PSQL", "psql"))
    p.add_argument("--search-path", help="of the source, for table names without a schema")
    p.add_argument("--soft-delete", action="append", metavar="TABLE=COLUMN",
                   help="rows whose column is true (or a time) are expected to be absent")
    p.add_argument("--filter", action="append", metavar="TABLE=CONDITION",
                   help="only these source rows are expected; their alias is t")
    p.add_argument("--columns", action="append", metavar="TABLE=A,B", help="besides the key; all unless given")
    p.add_argument("--key", action="append", metavar="TABLE=A,B", help="instead of the primary key")
    p.add_argument("--rename", action="append", metavar="TABLE=COLUMN:TARGET_COLUMN")
    p.add_argument("--samples", type=int, default=5, help="differences shown per table (%(default)s)")
    p.add_argument("--json", action="store_true", help="a JSON object per table instead of the report")
    p.add_argument("pairs", nargs="+", metavar="SOURCE[=TARGET]")
    a = p.parse_args()

    soft = per_table(a.soft_delete, "soft")
    filters = per_table(a.filter, "filter")
    columns = per_table(a.columns, "columns")
    keys = per_table(a.key, "key")
    renames = {}
    for r in a.rename or []:
        table, _, names = r.partition("=")
        old, _, new = names.partition(":")
        renames.setdefault(table, {})[old] = new
    try:
        password = None
        if a.password_file:
            with open(a.password_file) as f:
                password = f.read().strip("\r\n")
        source = Source(a.source, a.psql, a.search_path)
        target = open_target(a.target, a.user, password, a.ca_file, not a.no_verify)
        if not a.json:
            print_header()
        equal = True
        for pair in a.pairs:
            rel, _, name = pair.partition("=")

            def option(d):
                return d.get(rel, d.get(None))

            def listed(d):
                return option(d).split(",") if option(d) else None
            r = Pair(source, target, rel, name or None, listed(columns), listed(keys), option(filters),
                     option(soft), renames.get(rel), a.samples).compare()
            equal = equal and r.equal
            if a.json:
                print(json.dumps(r.as_dict(), default=str), flush=True)
            else:
                print_result(r)
        return 0 if equal else 1
    except (CompareError, OSError) as e:
        print("compare: %s" % e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
