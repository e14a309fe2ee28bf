"""Tables of the stand-in, and what CrateDB's statements do to them.

What matters to a mirror is kept as in CrateDB: a write is seen at once by a lookup
of the full primary key and by any other query only after REFRESH (never by
itself here, which is the strictest a CrateDB may be); rows that a shard refuses
vanish from INSERT ... SELECT without a word; _seq_no and _primary_term; errors by row in
bulk requests, words for the first ten of a shard only.
"""

import fnmatch
import heapq
import itertools
import math
import re
import threading
import time
import uuid
import zlib
from decimal import Decimal

import sql
from sql import SqlError, parse_error, refuse, type_name
from values import CastError, cast, cast_or_refuse, check_row_value, plain, shown, to_json

SYSTEM_COLUMNS = ('_id _version _score _uid _doc _raw _seq_no _primary_term _tombstone _fetchid '
                  '_docid').split()
READ_ONLY = ('sys', 'information_schema', 'pg_catalog', 'blob')
TERM = 1
ERRORS_PER_SHARD = 10
MAX_LOOKUP = 10000


class Column:
    def __init__(self, d, number):
        self.name = d['name']
        self.type = d['type']
        self.index = d['index']
        self.columnstore = d['columnstore']
        self.notnull = d['notnull'] or d['pk']
        self.default = d['default']
        self.number = number
        self.members = dict(self.type[2]) if self.type[0] == 'object' else {}


class Doc:
    __slots__ = ('values', 'seq', 'shard', 'version')

    def __init__(self, values, seq, shard, version):
        self.values = values
        self.seq = seq
        self.shard = shard
        self.version = version


class Table:
    oids = itertools.count(100)

    def __init__(self, schema, name, columns, pk, shards, clustered, partitioned):
        self.oid = next(Table.oids)
        self.schema = schema
        self.name = name
        self.columns = {c.name: c for c in columns}
        self.numbers = itertools.count(len(columns) + 1)
        self.pk = pk
        self.shards = shards
        self.clustered = clustered
        self.partitioned = partitioned or []
        self.replicas = '0-1'
        self.policy = 'strict'
        self.blocks = set()
        self.docs = {}              # as written: key -> Doc
        self.seen = {}              # as searched
        self.dirty = set()
        self.seqs = [0] * max(shards, 1)

    def full_name(self):
        return '%s.%s' % (self.schema, self.name)

    def refresh(self):
        for key in self.dirty:
            doc = self.docs.get(key)
            if doc is None:
                self.seen.pop(key, None)
            else:
                self.seen[key] = doc
        self.dirty.clear()

    def shard_of(self, key):
        return zlib.crc32(repr(key).encode()) % max(self.shards, 1)

    def put(self, key, values, old=None):
        shard = self.shard_of(key)
        self.docs[key] = Doc(values, self.seqs[shard], shard, old.version + 1 if old else 1)
        self.seqs[shard] += 1
        self.dirty.add(key)

    def remove(self, key):
        doc = self.docs.pop(key)
        self.seqs[doc.shard] += 1
        self.dirty.add(key)

    def column(self, name):
        col = self.columns.get(name)
        if col is None:
            raise SqlError('ColumnUnknownException', 'Column %s unknown' % name, 4043)
        return col

    def check_block(self, what):
        if self.blocks & {'blocks.write', 'blocks.read_only'}:
            raise SqlError('OperationOnInaccessibleRelationException', 'The relation "%s" doesn\'t '
                           'support or allow %s operations' % (self.full_name(), what), 4007)


def disk_block():
    return SqlError('ClusterBlockException', 'blocked by: [RELATION_READ_DELETE_ONLY/12/index '
                    'read-only / allow delete (api)];', 4037)


class Session:
    """of one TCP connection"""

    def __init__(self, number):
        self.number = number
        self.settings = {}
        self.user = 'crate'


class Result:
    def __init__(self, cols=(), rows=None, rowcount=0, results=None):
        self.cols = list(cols)
        self.rows = rows
        self.rowcount = rowcount
        self.results = results


# --------------------------------------------------------------------------
# expressions become functions of a row: a tuple of dicts, one per source

AGGREGATES = {'count', 'sum', 'avg', 'min', 'max', 'array_agg', 'arbitrary', 'any_value',
              'string_agg', 'stddev', 'variance', 'mean', 'hyperloglog_distinct'}


def is_true(v):
    return v is True


def compare(op, a, b):
    if a is None or b is None:
        return None
    if isinstance(a, bool) != isinstance(b, bool) and (isinstance(a, str) or isinstance(b, str)):
        a, b = cast(a, ('boolean',)), cast(b, ('boolean',))
    if isinstance(a, (dict, list)) or isinstance(b, (dict, list)):
        if op == '=':
            return a == b
        if op == '<>':
            return a != b
    if isinstance(a, str) != isinstance(b, str):
        # the literal takes the other's type
        try:
            if isinstance(a, str):
                a = cast(a, num_type(b))
            else:
                b = cast(b, num_type(a))
        except CastError:
            bad, other = (a, b) if isinstance(a, str) else (b, a)
            raise refuse('Cannot cast value `%s` to type `%s`'
                         % (bad, type_name(num_type(other)))) from None
    if isinstance(a, Decimal) and isinstance(b, float):
        a = float(a)
    elif isinstance(b, Decimal) and isinstance(a, float):
        b = float(b)
    if op == '=':
        return a == b
    if op == '<>':
        return a != b
    try:
        return {'<': a < b, '<=': a <= b, '>': a > b, '>=': a >= b}[op]
    except TypeError:
        raise refuse('Cannot compare %s with %s' % (shown(a), shown(b))) from None


def num_type(v):
    if isinstance(v, bool):
        return ('boolean',)
    if isinstance(v, int):
        return ('bigint',)
    if isinstance(v, Decimal):
        return ('numeric',)
    if isinstance(v, float):
        return ('double precision',)
    return ('text',)


def like(v, pattern, icase):
    if v is None or pattern is None:
        return None
    out, i = '', 0
    while i < len(pattern):
        c = pattern[i]
        if c == '\\' and i + 1 < len(pattern):
            i += 1
            out += re.escape(pattern[i])
        else:
            out += {'%': '.*', '_': '.'}.get(c) or re.escape(c)
        i += 1
    return re.fullmatch(out, v, re.S | (re.I if icase else 0)) is not None


def arith(op, a, b):
    if a is None or b is None:
        return None
    if op == '||':
        if isinstance(a, list) or isinstance(b, list):
            return (a if isinstance(a, list) else [a]) + (b if isinstance(b, list) else [b])
        return cast(a, ('text',)) + cast(b, ('text',))
    if isinstance(a, str) or isinstance(b, str):
        a = cast(a, ('bigint',)) if isinstance(a, str) else a
        b = cast(b, ('bigint',)) if isinstance(b, str) else b
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)
    if op == '+':
        return a + b
    if op == '-':
        return a - b
    if op == '*':
        return a * b
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise SqlError('ArithmeticException', '/ by zero', 5000)
        return int(math.copysign(abs(a) // abs(b), a * b)) if op == '/' else int(math.fmod(a, b))
    if isinstance(a, float) and b == 0:
        return math.nan if a == 0 or op == '%' else math.copysign(math.inf, a)
    return a / b if op == '/' else a % b


def call(name, args):
    a = args[0] if args else None
    if name == 'coalesce':
        return next((x for x in args if x is not None), None)
    if name in ('concat',):
        return ''.join('' if x is None else cast(x, ('text',)) for x in args)
    if name in ('current_timestamp', 'now'):
        return int(time.time() * 1000)
    if name in ('current_user', 'session_user', 'user'):
        return 'crate'
    if name in ('current_schema',):
        return 'doc'
    if name == 'nullif':
        return None if compare('=', a, args[1]) else a
    if name in ('greatest', 'least'):
        vals = [x for x in args if x is not None]
        return (max if name == 'greatest' else min)(vals) if vals else None
    if any(x is None for x in args):
        return None
    if name == 'lower':
        return a.lower()
    if name == 'upper':
        return a.upper()
    if name in ('length', 'char_length'):
        return len(a)
    if name == 'octet_length':
        return len(a.encode())
    if name == 'abs':
        return abs(a)
    if name in ('floor', 'ceil', 'ceiling'):
        return math.floor(a) if name == 'floor' else math.ceil(a)
    if name == 'round':
        if len(args) == 2:
            return math.floor(a * 10 ** args[1] + 0.5) / 10 ** args[1]
        return math.floor(a + 0.5)
    if name == 'mod':
        return arith('%', a, args[1])
    if name in ('substr', 'substring'):
        start = args[1] - 1
        return a[max(start, 0):start + args[2]] if len(args) > 2 else a[max(start, 0):]
    if name == 'md5':
        import hashlib
        return hashlib.md5(a.encode()).hexdigest()
    if name == 'array_length':
        return len(a) or None
    if name == 'date_trunc':
        unit = {'second': 1000, 'minute': 60000, 'hour': 3600000, 'day': 86400000,
                'week': 604800000}.get(a)
        if unit is not None:
            shift = 4 * 86400000 if a == 'week' else 0      # weeks begin on Monday
            return (args[1] + shift - (86400000 if shift else 0)) // unit * unit - \
                (shift - (86400000 if shift else 0))
        t = time.gmtime(args[1] // 1000)
        from values import days_from_civil
        return days_from_civil(t.tm_year, t.tm_mon if a == 'month' else 1, 1) * 86400000
    if name == 'extract':
        t = time.gmtime(args[1] // 1000)
        return {'year': t.tm_year, 'month': t.tm_mon, 'day': t.tm_mday, 'hour': t.tm_hour,
                'minute': t.tm_min, 'second': t.tm_sec, 'epoch': args[1] / 1000}[a]
    raise SqlError('UnsupportedFunctionException', 'Unknown function: %s(%s)'
                   % (name, ', '.join(type_name(num_type(x)) for x in args)), 4042, 400)


class Source:
    """what FROM offers: an alias, its columns, and its rows"""

    def __init__(self, alias, schema, columns, rows, table=None, types=None):
        self.alias = alias
        self.schema = schema
        self.columns = columns          # names
        self.rows = rows                # of dicts
        self.table = table
        self.types = types or {}


class Compiler:
    def __init__(self, engine, sources, args, aggs=None, outer=None):
        self.engine = engine
        self.sources = sources
        self.args = args
        self.aggs = aggs                # repr(node) -> place in the group's results
        self.outer = outer

    def resolve(self, parts):
        if len(parts) == 1:
            hits = [i for i, s in enumerate(self.sources) if parts[0] in s.columns]
        elif len(parts) == 2:
            hits = [i for i, s in enumerate(self.sources)
                    if s.alias == parts[0] and parts[1] in s.columns]
            if not hits and not any(s.alias == parts[0] for s in self.sources):
                raise SqlError('RelationUnknown', "Relation '%s' unknown" % parts[0], 4041)
        else:
            hits = [i for i, s in enumerate(self.sources) if s.schema == parts[-3]
                    and s.alias == parts[-2] and parts[-1] in s.columns]
        if not hits:
            raise SqlError('ColumnUnknownException', 'Column %s unknown' % parts[-1], 4043)
        if len(hits) > 1:
            raise SqlError('AmbiguousColumnException', 'Column "%s" is ambiguous' % parts[-1], 4006)
        return hits[0], parts[-1]

    def type_of(self, e):
        if e[0] == 'cast':
            return e[2]
        if e[0] == 'col':
            try:
                i, name = self.resolve(e[1])
            except SqlError:
                return None
            return self.sources[i].types.get(name)
        return None

    def param(self, n):
        if n > len(self.args):
            raise refuse('The query contains a parameter placeholder $%d, but there are only %d '
                         'parameter values' % (n, len(self.args)))
        return self.args[n - 1]

    def expr(self, e):
        kind = e[0]
        if self.aggs is not None and repr(e) in self.aggs:
            i = self.aggs[repr(e)]
            return lambda row: row[-1][i]
        if kind == 'lit':
            v = e[1]
            return lambda row: v
        if kind == 'param':
            v = self.param(e[1])
            return lambda row: v
        if kind == 'col':
            i, name = self.resolve(e[1])
            return lambda row: row[i].get(name)
        if kind == 'and' or kind == 'or':
            a, b = self.expr(e[1]), self.expr(e[2])
            stop = kind == 'or'

            def logic(row):
                x = a(row)
                if x is stop:
                    return stop
                y = b(row)
                if y is stop:
                    return stop
                return None if x is None or y is None else not stop
            return logic
        if kind == 'not':
            a = self.expr(e[1])
            return lambda row: None if a(row) is None else not a(row)
        if kind == 'isnull':
            a = self.expr(e[1])
            return lambda row: a(row) is None
        if kind == 'distinct':
            a, b = self.expr(e[1]), self.expr(e[2])
            return lambda row: a(row) != b(row)
        if kind == 'cmp':
            a, b = self.typed_pair(e[2], e[3])
            op = e[1]
            return lambda row: compare(op, a(row), b(row))
        if kind in ('any', 'all'):
            return self.quantified(e)
        if kind == 'in':
            pairs = [self.typed_pair(e[1], x) for x in e[2]]
            consts = [x for x in e[2] if x[0] in ('lit', 'param')]
            if len(consts) == len(e[2]):
                a = pairs[0][0]
                vals = {}
                for _, f in pairs:
                    v = f(())
                    if v is not None and not isinstance(v, (list, dict)):
                        vals[v] = True

                def member(row):
                    v = a(row)
                    return None if v is None else v in vals
                return member

            def slow(row):
                return True if any(compare('=', a(row), b(row)) for a, b in pairs) else False
            return slow
        if kind in ('like', 'ilike'):
            a, b = self.expr(e[1]), self.expr(e[2])
            return lambda row: like(a(row), b(row), kind == 'ilike')
        if kind == 'arith':
            a, b = self.expr(e[2]), self.expr(e[3])
            return lambda row: arith(e[1], a(row), b(row))
        if kind == 'neg':
            a = self.expr(e[1])
            return lambda row: None if a(row) is None else -a(row)
        if kind in ('cast', 'trycast'):
            a, ty = self.expr(e[1]), e[2]
            if e[1][0] in ('lit', 'param'):
                if kind == 'trycast':
                    try:
                        v = cast(a(()), ty)
                    except CastError:
                        v = None
                else:
                    v = cast_or_refuse(a(()), ty)
                return lambda row: v

            def casting(row):
                try:
                    return cast(a(row), ty)
                except CastError:
                    if kind == 'trycast':
                        return None
                    raise refuse('Cannot cast value `%s` to type `%s`'
                                 % (shown(a(row))[:1000], type_name(ty))) from None
            return casting
        if kind == 'sub':
            return self.subscript(e)
        if kind == 'array':
            items = [self.expr(x) for x in e[1]]
            return lambda row: [f(row) for f in items]
        if kind == 'object':
            members = [(k, self.expr(x)) for k, x in e[1]]
            return lambda row: {k: f(row) for k, f in members}
        if kind == 'case':
            return self.case(e)
        if kind == 'subquery':
            res = []

            def scalar(row):
                if not res:
                    r = self.engine.select(e[1], self.args)
                    if len(r.rows) > 1:
                        raise SqlError('UnsupportedOperationException', 'Subquery returned more '
                                       'than 1 row when it shouldn\'t.', 5000)
                    if len(r.cols) != 1:
                        raise refuse('Subqueries with more than 1 column are not supported')
                    res.append(r.rows[0][0] if r.rows else None)
                return res[0]
            return scalar
        if kind == 'exists':
            return lambda row: bool(self.engine.select(e[1], self.args).rows)
        if kind == 'call':
            if e[1] in AGGREGATES:
                raise refuse('Aggregate functions are not allowed here: %s' % e[1])
            if e[1] == 'version':
                return lambda row: 'CrateDB %s (built stand-in/NA, Linux)' % self.engine.version
            fs = [self.expr(x) for x in e[2]]
            return lambda row: call(e[1], [f(row) for f in fs])
        if kind == 'star':
            raise parse_error("mismatched input '*'")
        raise parse_error('mismatched input')

    def typed_pair(self, left, right):
        """both sides; a constant takes the type of a column beside it"""
        ta, tb = self.type_of(left), self.type_of(right)
        a, b = self.expr(left), self.expr(right)
        if ta and right[0] in ('lit', 'param') and tb is None:
            v = cast_or_refuse(b(()), widen(ta, b(())))
            return a, lambda row: v
        if tb and left[0] in ('lit', 'param') and ta is None:
            v = cast_or_refuse(a(()), widen(tb, a(())))
            return (lambda row: v), b
        return a, b

    def quantified(self, e):
        quant, op, left, right = e
        if right[0] == 'subquery':
            vals = None

            def values(row):
                nonlocal vals
                if vals is None:
                    vals = [r[0] for r in self.engine.select(right[1], self.args).rows]
                return vals
            a = self.expr(left)
        else:
            a, values = self.expr(left), self.expr(right)
            ty = self.type_of(left)
            constant = right[1] if right[0] == 'cast' else right
            if ty and constant[0] in ('lit', 'param', 'array'):
                vs = values(())
                if not isinstance(vs, list):
                    raise refuse('Cannot cast value `%s` to type `%s_array`'
                                 % (shown(vs), type_name(ty)))
                vs = cast_or_refuse(vs, ('array', ty))
                if op == '=' and quant == 'any':
                    known = set(x for x in vs if x is not None)

                    def member(row):
                        v = a(row)
                        return None if v is None else v in known
                    return member

                def values(row):        # noqa: the cast ones
                    return vs

        def run(row):
            v, vs = a(row), values(row)
            if vs is None:
                return None
            found = [compare(op, v, x) for x in vs]
            if quant == 'any':
                return True if True in found else (None if None in found else False)
            return False if False in found else (None if None in found else True)
        return run

    def subscript(self, e):
        base, key = self.expr(e[1]), self.expr(e[2])
        ty = self.type_of(e[1])
        if ty and ty[0] == 'object' and e[1][0] == 'cast' and ty[1] != 'ignored' \
                and e[2][0] == 'lit' and e[2][1] not in ty[2]:
            raise SqlError('ColumnUnknownException', 'The cast of `%s` to return type `OBJECT(%s)` '
                           'does not contain the key `%s`.' % (
                               sql.default_label(e[1], ()), ty[1].upper(), e[2][1]), 4043)
        if ty and ty[0] == 'object' and e[1][0] == 'col' and ty[1] != 'ignored' and e[2][0] == 'lit':
            i, name = self.resolve(e[1][1])
            table = self.sources[i].table
            if table is not None and e[2][1] not in table.columns[name].members:
                raise SqlError('ColumnUnknownException', "Column %s['%s'] unknown"
                               % (name, e[2][1]), 4043)

        def sub(row):
            v, k = base(row), key(row)
            if v is None or k is None:
                return None
            if isinstance(v, dict):
                return v.get(k)
            if isinstance(v, list):
                if isinstance(k, int):
                    return v[k - 1] if 1 <= k <= len(v) else None
                return [x.get(k) if isinstance(x, dict) else None for x in v]
            return None
        return sub

    def case(self, e):
        subject = self.expr(e[1]) if e[1] else None
        arms = [(self.expr(c), self.expr(v)) for c, v in e[2]]
        other = self.expr(e[3])

        def run(row):
            for c, v in arms:
                hit = compare('=', subject(row), c(row)) if subject else c(row)
                if is_true(hit):
                    return v(row)
            return other(row)
        return run


def widen(ty, v):
    """an integer column beside a float constant is compared as float"""
    if ty[0] in ('byte', 'smallint', 'integer', 'bigint') and isinstance(v, (int, float)) \
            and not isinstance(v, bool):
        return ('double precision',) if isinstance(v, float) else ('bigint',)
    if ty[0] == 'numeric':
        return ('numeric',)
    if ty[0] == 'real':
        return ('real',)
    if ty[0] == 'text':
        return ('text',)
    return ty


def hashable(v):
    return to_json(v) if isinstance(v, (list, dict)) else v


def find_aggregates(e, found):
    if isinstance(e, tuple):
        if e and e[0] == 'call' and e[1] in AGGREGATES:
            found[repr(e)] = e
            return
        if e and e[0] in ('subquery', 'exists'):
            return
        for x in e:
            find_aggregates(x, found)
    elif isinstance(e, list):
        for x in e:
            find_aggregates(x, found)


def aggregate(e, comp, group):
    name, args, distinct = e[1], e[2], e[3]
    if args == ['*']:
        return len(group)
    f = comp.expr(args[0])
    vals = [v for v in (f(r) for r in group) if v is not None]
    if distinct:
        vals = list({to_json(v): v for v in vals}.values())
    if name == 'count':
        return len(vals)
    if name == 'array_agg':
        return vals or None
    if not vals:
        return None
    if name == 'sum':
        return sum(vals)
    if name in ('avg', 'mean'):
        if isinstance(vals[0], Decimal):
            return sum(vals) / len(vals)
        return math.fsum(vals) / len(vals) if all(map(math.isfinite, vals)) else sum(vals) / len(vals)
    if name in ('min', 'max'):
        return (min if name == 'min' else max)(vals)
    if name in ('arbitrary', 'any_value'):
        return vals[0]
    if name == 'string_agg':
        return str(comp.expr(args[1])(group[0])).join(vals)
    raise SqlError('UnsupportedFunctionException', 'Unknown function: %s' % name, 4042, 400)


# --------------------------------------------------------------------------

class Engine:
    def __init__(self, version='6.4.3'):
        self.lock = threading.RLock()
        self.tables = {}
        self.missing_shards = {}
        self.jobs = {}
        self.cluster_id = uuid.uuid4().hex[:22]
        self.rest_urls = [None]         # a node each
        self.set_version(version)

    def set_version(self, version):
        self.version = version
        self.version_num = tuple(int(x) for x in version.split('.'))

    # names ---------------------------------------------------------------

    def find(self, name):
        schema, table = name[0] or 'doc', name[1]
        found = self.tables.get((schema, table))
        if found is not None:
            return found
        if schema not in READ_ONLY and schema != 'doc' and \
                not any(s == schema for s, _ in self.tables):
            raise SqlError('SchemaUnknownException', "Schema '%s' unknown" % schema, 4045)
        raise SqlError('RelationUnknown', "Relation '%s.%s' unknown" % (schema, table), 4041)

    # system tables ---------------------------------------------------------

    def system_rows(self, schema, name):
        version = {'number': self.version, 'build_snapshot': False, 'build_hash': 'stand-in',
                   'minimum_index_compatibility_version': '5.0.0',
                   'minimum_wire_compatibility_version': '5.10.1'}
        node = {'name': 'standin', 'id': 'standin'}
        full = schema + '.' + name
        tables = list(self.tables.values())
        if full == 'sys.nodes':
            return ['id', 'name', 'hostname', 'version', 'port', 'rest_url'], [
                {'id': 'standin', 'name': 'standin', 'hostname': 'localhost', 'version': version,
                 'port': None, 'rest_url': url} for url in self.rest_urls]
        if full == 'sys.cluster':
            return ['id', 'name', 'license', 'master_node', 'settings'], [
                {'id': self.cluster_id, 'name': 'crate', 'license': None, 'master_node': 'standin',
                 'settings': {}}]
        if full == 'sys.jobs':
            return ['id', 'node', 'session_id', 'started', 'stmt', 'username'], [
                {'id': i, 'node': node, 'session_id': s.number, 'started': t, 'stmt': stmt,
                 'username': s.user} for i, (stmt, s, t) in list(self.jobs.items())]
        if full in ('sys.privileges', 'sys.users', 'sys.roles'):
            return {'sys.privileges': ['class', 'grantee', 'grantor', 'ident', 'state', 'type'],
                    'sys.users': ['name', 'superuser'], 'sys.roles': ['name', 'granted_roles']}[full], []
        if full in ('sys.shards', 'sys.allocations', 'sys.health', 'sys.checks'):
            cols = {'sys.shards': ['id', 'schema_name', 'table_name', 'primary', 'state',
                                   'routing_state', 'num_docs'],
                    'sys.allocations': ['table_schema', 'table_name', 'shard_id', 'primary',
                                        'current_state', 'explanation'],
                    'sys.health': ['table_schema', 'table_name', 'health', 'severity',
                                   'missing_shards', 'underreplicated_shards'],
                    'sys.checks': ['id', 'passed', 'severity', 'description']}[full]
            rows = []
            for t in tables:
                base = {'schema_name': t.schema, 'table_schema': t.schema, 'table_name': t.name,
                        'primary': True, 'state': 'STARTED', 'routing_state': 'STARTED',
                        'current_state': 'STARTED', 'health': 'GREEN', 'severity': 1,
                        'missing_shards': 0, 'underreplicated_shards': 0}
                missing = self.missing_shards.get(t.schema + '.' + t.name, 0)
                if missing:
                    base.update(health='RED', severity=3, missing_shards=missing)
                for i in range(t.shards if full in ('sys.shards', 'sys.allocations') else 1):
                    rows.append(dict(base, id=i, shard_id=i, num_docs=len(t.seen)))
            return cols, [] if full == 'sys.checks' else rows
        if full == 'pg_catalog.pg_namespace':
            return ['oid', 'nspname'], [{'oid': zlib.crc32(s.encode()), 'nspname': s} for s in sorted(
                {t.schema for t in tables})]
        if full == 'pg_catalog.pg_class':
            return ['oid', 'relname', 'relnamespace', 'relkind', 'relnatts'], [
                {'oid': t.oid, 'relname': t.name, 'relnamespace': zlib.crc32(t.schema.encode()),
                 'relkind': 'r', 'relnatts': len(t.columns)} for t in tables]
        if full == 'information_schema.schemata':
            return ['schema_name'], [{'schema_name': s} for s in sorted(
                {'doc', *READ_ONLY} | {t.schema for t in tables})]
        if full == 'information_schema.tables':
            return ['table_catalog', 'table_schema', 'table_name', 'table_type',
                    'number_of_replicas', 'number_of_shards', 'clustered_by', 'column_policy',
                    'partitioned_by', 'blobs_path', 'closed', 'settings'], [
                {'table_catalog': 'crate', 'table_schema': t.schema, 'table_name': t.name,
                 'table_type': 'BASE TABLE', 'number_of_replicas': t.replicas,
                 'number_of_shards': t.shards, 'column_policy': t.policy,
                 'clustered_by': t.clustered or (t.pk[0] if len(t.pk) == 1 else '_id'),
                 'partitioned_by': t.partitioned or None, 'closed': False,
                 'settings': {'blocks': {
                     b: 'blocks.' + b in t.blocks for b in
                     ('read', 'write', 'metadata', 'read_only', 'read_only_allow_delete')}}}
                for t in tables]
        if full == 'information_schema.columns':
            rows = []
            for t in tables:
                n = 0
                for c in t.columns.values():
                    n += 1
                    ty = c.type
                    row = {'table_catalog': 'crate', 'table_schema': t.schema,
                           'table_name': t.name, 'column_name': told_name(c.name), 'data_type': type_name(ty),
                           'ordinal_position': n,
                           'is_nullable': 'NO' if c.notnull or c.name in t.pk else 'YES',
                           'column_default': None, 'is_generated': 'NEVER',
                           'character_maximum_length': None, 'numeric_precision': None,
                           'numeric_scale': None, 'column_details': {'name': c.name, 'path': []}}
                    if ty[0] == 'numeric' and len(ty) == 3:
                        row['numeric_precision'] = ty[1]    # and no scale
                    elif ty[0] in ('text', 'character') and len(ty) == 2:
                        row['character_maximum_length'] = ty[1]
                    elif ty[0] in PRECISION:
                        row['numeric_precision'] = PRECISION[ty[0]]
                    rows.append(row)
                    if ty[0] == 'object' and ty[1] != 'ignored':
                        for k, m in c.members.items():
                            n += 1
                            rows.append(dict(row, column_name="%s['%s']" % (c.name, k),
                                             data_type=type_name(m) if m else 'undefined',
                                             ordinal_position=n, is_nullable='YES',
                                             column_details={'name': c.name, 'path': [k]}))
            return ['table_catalog', 'table_schema', 'table_name', 'column_name', 'data_type',
                    'ordinal_position', 'is_nullable', 'column_default', 'is_generated',
                    'character_maximum_length', 'numeric_precision', 'numeric_scale',
                    'column_details'], rows
        if full in ('information_schema.key_column_usage', 'information_schema.table_constraints'):
            rows = []
            for t in tables:
                base = {'constraint_catalog': t.schema, 'constraint_schema': t.schema,
                        'table_catalog': t.schema, 'constraint_name': t.name + '_pkey',
                        'table_schema': t.schema, 'table_name': t.name,
                        'constraint_type': 'PRIMARY KEY'}
                if name == 'key_column_usage':
                    rows += [dict(base, column_name=told_name(k), ordinal_position=i + 1)
                             for i, k in enumerate(t.pk)]
                else:
                    if t.pk:
                        rows.append(base)
                    rows += [dict(base, constraint_type='CHECK', constraint_name='%s_%s_%s_not_null'
                                  % (t.schema, t.name, c.name))
                             for c in t.columns.values() if c.notnull or c.name in t.pk]
            return ['constraint_catalog', 'constraint_schema', 'constraint_name', 'table_catalog',
                    'table_schema', 'table_name'] + (
                ['column_name', 'ordinal_position'] if name == 'key_column_usage'
                else ['constraint_type']), rows
        raise SqlError('RelationUnknown', "Relation '%s' unknown" % full, 4041)

    # FROM -------------------------------------------------------------------

    def sources(self, item, args, where):
        """-> (sources, rows of tuples)"""
        if item is None:
            return [], [()]
        if item[0] == 'table':
            schema, name = item[1]
            if schema in READ_ONLY:
                cols, rows = self.system_rows(schema, name)
                return [Source(item[2], schema, cols, rows)], [(r,) for r in rows]
            table = self.find(item[1])
            docs = self.candidates(table, where, args)
            types = {c.name: c.type for c in table.columns.values()}
            types.update(_id=('text',), _seq_no=('bigint',), _primary_term=('bigint',),
                         _version=('bigint',))
            rows = []
            if not self.wants_system(self.asked):
                rows = [doc.values for _, doc in docs]
                docs = ()
            for key, doc in docs:
                row = dict(doc.values)
                row['_seq_no'], row['_primary_term'] = doc.seq, TERM
                row['_version'], row['_id'] = doc.version, shown(key[0]) if len(key) == 1 else repr(key)
                row['_doc'] = doc.values
                rows.append(row)
            cols = list(table.columns)
            src = Source(item[2], table.schema, cols + SYSTEM_COLUMNS, rows, table, types)
            src.star = cols
            return [src], [(r,) for r in rows]
        if item[0] == 'unnest':
            comp = Compiler(self, [], args)
            arrays, types = [], {}
            for i, e in enumerate(item[1]):
                v = comp.expr(e)(())
                if v is None:
                    v = []
                if not isinstance(v, list):
                    raise SqlError('UnsupportedFunctionException', 'Invalid arguments in: unnest(%s)'
                                   % shown(v)[:100], 4042, 400)
                arrays.append(v)
                if e[0] == 'cast' and e[2][0] == 'array':
                    ty = e[2][1]
                    while ty[0] == 'array':     # nested ones are flattened
                        ty = ty[1]
                        arrays[i] = [y for x in arrays[i] if x is not None for y in x]
                    types[i] = ty
            n = max([len(a) for a in arrays] or [0])
            names = item[3] or ['col%d' % (i + 1) for i in range(len(arrays))]
            if len(names) != len(arrays):
                raise refuse('Number of column aliases does not match')
            # the shorter ones are padded with NULL
            rows = [dict(zip(names, vals)) for vals in itertools.zip_longest(*arrays)] if n else []
            src = Source(item[2], None, names, rows, None,
                         {names[i]: t for i, t in types.items()})
            return [src], [(r,) for r in rows]
        if item[0] == 'derived':
            r = self.select(item[1], args)
            rows = [dict(zip(r.cols, v)) for v in r.rows]
            return [Source(item[2], None, list(r.cols), rows)], [(x,) for x in rows]
        how, left, right, on = item[1:]
        ls, lrows = self.sources(left, args, None)
        rs, rrows = self.sources(right, args, None)
        both = ls + rs
        if on is None:
            return both, [a + b for a in lrows for b in rrows]
        if on[0] == 'using':
            def test(row, n=len(ls)):
                return all(next(r[c] for r in row[:n] if c in r) == next(
                    r[c] for r in row[n:] if c in r) for c in on[1])
        else:
            f = Compiler(self, both, args).expr(on)

            def test(row):
                return is_true(f(row))
            pairs = self.equalities(on, ls, rs)
            if pairs and how == 'inner':
                # what comes of a test of every pair, without testing every pair
                found = {}
                for b in rrows:
                    found.setdefault(tuple(hashable(b[j].get(c)) for _, _, j, c in pairs), []).append(b)
                return both, [a + b for a in lrows for b in found.get(
                    tuple(hashable(a[i].get(c)) for i, c, _, _ in pairs), ()) if test(a + b)]
        out = []
        for a in lrows:
            hits = [a + b for b in rrows if test(a + b)]
            if not hits and how == 'left':
                hits = [a + tuple({} for _ in rs)]
            out += hits
        return both, out

    def equalities(self, on, ls, rs):
        """[(source, column, source, column)] if ON is nothing but columns that are equal"""
        pairs, rest = [], [on]
        left, right = Compiler(self, ls, []), Compiler(self, rs, [])
        while rest:
            e = rest.pop()
            if e[0] == 'and':
                rest += [e[1], e[2]]
                continue
            if e[0] != 'cmp' or e[1] != '=' or e[2][0] != 'col' or e[3][0] != 'col':
                return None
            for a, b in ((e[2], e[3]), (e[3], e[2])):
                try:
                    pairs.append(left.resolve(a[1]) + right.resolve(b[1]))
                    break
                except SqlError:
                    pass
            else:
                return None
        return pairs

    def candidates(self, table, where, args):
        """what a query may see: the keys it names if it names them all, else what was refreshed"""
        keys = self.keys_of(table, where, args)
        if keys is None:
            return list(table.seen.items())
        return [(k, table.docs[k]) for k in keys if k in table.docs]

    def keys_of(self, table, where, args):
        if where is None or not table.pk:
            return None
        sets = self.key_sets(table, where, args)
        if sets is None:
            return None
        keys = {}
        for cols in sets:
            n = 1
            for c in table.pk:
                n *= len(cols[c])
            if n + len(keys) > MAX_LOOKUP:
                return None
            for key in itertools.product(*(cols[c] for c in table.pk)):
                keys[key] = True
        return list(keys)

    def key_sets(self, table, e, args):
        """the alternatives of WHERE, each {key column: values}; None if one leaves a column open"""
        if e[0] == 'or':
            a, b = self.key_sets(table, e[1], args), self.key_sets(table, e[2], args)
            return None if a is None or b is None else a + b
        found = {}
        rest = [e]
        while rest:
            x = rest.pop()
            if x[0] == 'and':
                rest += [x[1], x[2]]
                continue
            got = self.key_values(table, x, args)
            if got is not None:
                col, vals = got
                found[col] = [v for v in found[col] if v in vals] if col in found else vals
            elif x[0] == 'or' and len(table.pk) > 1:
                return None
        return [found] if all(c in found for c in table.pk) else None

    def key_values(self, table, e, args):
        if e[0] == 'cmp' and e[1] == '=':
            for a, b in ((e[2], e[3]), (e[3], e[2])):
                if a[0] == 'col' and a[1][-1] in table.pk and b[0] in ('lit', 'param', 'cast'):
                    v = Compiler(self, [], args).expr(b)(())
                    return a[1][-1], [cast_or_refuse(v, table.columns[a[1][-1]].type)]
        if e[0] == 'in' and e[1][0] == 'col' and e[1][1][-1] in table.pk \
                and all(x[0] == 'lit' for x in e[2]):       # with parameters it is a search
            ty = table.columns[e[1][1][-1]].type
            return e[1][1][-1], [cast_or_refuse(x[1], ty) for x in e[2]]
        if e[0] == 'any' and e[1] == '=' and e[2][0] == 'col' and e[2][1][-1] in table.pk \
                and e[3][0] == 'array' and all(x[0] == 'lit' for x in e[3][1]):
            ty = table.columns[e[2][1][-1]].type
            return e[2][1][-1], [cast_or_refuse(x[1], ty) for x in e[3][1]]
        return None

    # SELECT -------------------------------------------------------------------

    @staticmethod
    def wants_system(q):
        """does the query name a column that no table has?  Most do not, and are spared copies"""
        found = q.get('system')
        if found is None:
            text = repr(q)
            found = q['system'] = any("'%s'" % c in text for c in SYSTEM_COLUMNS)
        return found

    def select(self, q, args, by_row=False):
        outer, self.asked = getattr(self, 'asked', None), q
        try:
            sources, rows = self.sources(q['from'], args, q['where'])
        finally:
            self.asked = outer
        comp = Compiler(self, sources, args)
        if q['where'] is not None:
            self.check_versions(sources, q['where'])
            f = comp.expr(q['where'])
            rows = [r for r in rows if is_true(f(r))]
        items = []
        for e, label in q['items']:
            if e[0] != 'star':
                items.append((e, label))
                continue
            if not sources:
                raise refuse('"SELECT *" used in a SELECT without a FROM clause')
            for s in sources:
                if e[1] is None or s.alias == e[1]:
                    items += [(('col', (s.alias, c)) if s.schema is None or len(sources) > 1
                               else ('col', (c,)), c) for c in getattr(s, 'star', s.columns)]
        labels = {label: e for e, label in items}
        order = []
        for e, desc, first in q['order']:
            if e[0] == 'lit' and isinstance(e[1], int):
                e = items[e[1] - 1][0]
            elif e[0] == 'col' and len(e[1]) == 1 and e[1][0] in labels:
                e = labels[e[1][0]]
            order.append((e, desc, first))

        aggs = {}
        find_aggregates([e for e, _ in items] + [q['having']] + [e for e, _, _ in order], aggs)
        if aggs or q['group']:
            groups = {}
            by = []
            for e in q['group'] or []:
                if e[0] == 'lit' and isinstance(e[1], int):
                    e = items[e[1] - 1][0]
                elif e[0] == 'col' and len(e[1]) == 1 and e[1][0] in labels \
                        and not any(e[1][0] in s.columns for s in sources):
                    e = labels[e[1][0]]
                by.append(e)
            fs = [comp.expr(e) for e in by]
            for r in rows:
                vals = [f(r) for f in fs]
                groups.setdefault(to_json(vals), []).append(r)
            if not by and not groups:
                groups['[]'] = []
            agg_list = list(aggs.values())
            places = {repr(e): i for i, e in enumerate(agg_list)}
            out = []
            for members in groups.values():
                results = [aggregate(e, comp, members) for e in agg_list]
                base = members[0] if members else tuple({} for _ in sources)
                out.append(base + (results,))
            rows = out
            plain_cols = {repr(e) for e in by}
            for e, _ in items:
                self.check_grouped(e, plain_cols)
            comp = Compiler(self, sources, args, places)
            if q['having'] is not None:
                f = comp.expr(q['having'])
                rows = [r for r in rows if is_true(f(r))]
        limit = None
        if q['limit'] is not None and not q['distinct']:
            limit = Compiler(self, [], args).expr(q['limit'])(())
            if q['offset'] is not None:
                limit = None
        if order and limit is not None and not any(desc or first for _, desc, first in order):
            # a page of a large table: no need to sort all of it
            fs = [comp.expr(e) for e, _, _ in order]

            def place(r):
                vals = [f(r) for f in fs]
                return [(v is None, sort_key(v)) for v in vals]
            rows = heapq.nsmallest(limit, rows, key=place)
            order = []
        for e, desc, first in reversed(order):
            f = comp.expr(e)
            rows = sorted(rows, key=lambda r: sort_key(f(r)), reverse=desc)
            rows = sorted(rows, key=lambda r: (f(r) is None) != first)
        fs = [comp.expr(e) for e, _ in items]
        if by_row:
            # INSERT ... SELECT: a row that cannot be computed is a row that failed
            out = []
            for r in rows:
                try:
                    out.append([f(r) for f in fs])
                except SqlError as e:
                    out.append(e)
        else:
            out = [[f(r) for f in fs] for r in rows]
        if q['distinct']:
            out = list({to_json(r): r for r in out}.values())
        start = Compiler(self, [], args).expr(q['offset'])(()) if q['offset'] else 0
        out = out[start or 0:]
        if q['limit'] is not None:
            n = Compiler(self, [], args).expr(q['limit'])(())
            if n is not None:
                out = out[:n]
        return Result([label for _, label in items], out, len(out))

    def check_grouped(self, e, by):
        if repr(e) in by or (e[0] == 'call' and e[1] in AGGREGATES):
            return
        if e[0] == 'col':
            raise refuse("'%s' must appear in the GROUP BY clause or be used in an aggregation "
                         "function." % e[1][-1])
        for x in e[1:]:
            for y in x if isinstance(x, list) else [x]:
                if isinstance(y, tuple) and y and isinstance(y[0], str) and not all(
                        isinstance(z, str) for z in y):
                    self.check_grouped(y, by)

    def check_versions(self, sources, where, lenient=False):
        table = sources[0].table if len(sources) == 1 else None
        text = repr(where)
        has = ["('_seq_no',)" in text, "('_primary_term',)" in text]
        if any(has) and table is not None:
            ok = all(has) and self.key_sets(table, where, _AnyArgs()) is not None
            if not ok and all(has) and lenient:
                return
            if all(has) and not ok:
                raise SqlError('UnsupportedFeatureException', '"_seq_no" and "_primary_term" need '
                               'equals comparisons on primary key columns', 4004)
            if not ok:
                raise SqlError('VersioningValidationException', '"_seq_no" and "_primary_term" '
                               'columns can only be used together in the WHERE clause with equals '
                               'comparisons and if there are also equals comparisons on primary '
                               'key columns', 4000)

    # writing ----------------------------------------------------------------

    def prepare_insert(self, node, args):
        """everything up to the writing: -> (table, columns, rows); casts that fail refuse all"""
        _, name, cols, source, conflict, _ = node
        if (name[0] or 'doc') in READ_ONLY:
            raise SqlError('OperationOnInaccessibleRelationException', 'The relation "%s.%s" doesn\'t '
                           'support or allow INSERT operations' % name, 4007)
        table = self.find(name)
        table.check_block('INSERT')
        names = cols or list(table.columns)
        columns = []
        for c in names:
            if c in SYSTEM_COLUMNS:
                raise refuse('Inserting system column is not allowed')
            columns.append(table.column(c))
        if len(set(names)) != len(names):
            raise refuse('reference "%s" repeated' % names[0])
        if conflict:
            self.check_conflict(table, conflict)
        for k in table.pk:
            if k not in names and table.columns[k].default is None:
                raise refuse('Column "%s" is required but is missing from the insert statement' % k)
        if source[0] == 'values':
            comp = Compiler(self, [], args)
            rows = []
            for vals in source[1]:
                if len(vals) != len(columns):
                    raise refuse('Invalid number of values: Got %d columns specified but %d values'
                                 % (len(columns), len(vals)))
                row = []
                for e, c in zip(vals, columns):
                    v = cast_or_refuse(comp.expr(e)(()), c.type)
                    ty = c.type
                    if ty[0] == 'text' and len(ty) > 1 and v is not None:
                        check_row_value(c, v)
                    if v is None and c.name in table.pk:
                        raise refuse('A primary key value must not be NULL')
                    row.append(v)
                rows.append(row)
            return table, columns, rows, True
        r = self.select(source[1], args, True)
        if len(r.cols) != len(columns):
            raise refuse('Number of target columns (%s) of insert statement doesn\'t match number of '
                         'source columns (%s)' % (', '.join(names), ', '.join(r.cols)))
        self.check_source_types(source[1], columns)
        return table, columns, r.rows, False

    def check_source_types(self, q, columns):
        """an object where no object can be is refused before any row is looked at"""
        if q['from'] is None or q['from'][0] != 'unnest':
            return
        types = {}
        names = q['from'][3] or ['col%d' % (i + 1) for i in range(len(q['from'][1]))]
        for n, e in zip(names, q['from'][1]):
            if e[0] == 'cast' and e[2][0] == 'array':
                types[n] = e[2][1]
        for (e, label), c in zip(q['items'], columns):
            if e[0] == 'col' and types.get(e[1][-1], ('',))[0] == 'object' and c.type[0] not in (
                    'object', 'text', 'geo_shape', 'json') or (
                        e[0] == 'col' and e[1][-1] in types and c.type[0] == 'array'
                        and types[e[1][-1]][0] != 'object'):
                raise refuse("The type '%s' of the insert source '%s' is not convertible to the "
                             "type '%s' of target column '%s'" % (
                                 type_name(types[e[1][-1]]), label, type_name(c.type), c.name))

    def check_conflict(self, table, conflict):
        keys, sets = conflict[1], conflict[2]
        if keys is not None:
            if len(keys) != len(table.pk):
                raise refuse('Number of conflict targets (%s) did not match the number of primary '
                             'key columns (%s)' % (shown(['"%s"' % k for k in keys]), shown(table.pk)))
            for k in keys:
                table.column(k)
                if k not in table.pk:
                    raise refuse('Conflict target (%s) did not match the primary key columns (%s)'
                                 % (shown(keys), shown(table.pk)))
        src = Source(table.name, table.schema, list(table.columns), [])
        exc = Source('excluded', None, list(table.columns), [])
        for col, e in sets:
            c = table.column(col)
            if col in table.pk or col == table.clustered or col in table.partitioned:
                raise SqlError('ColumnValidationException', 'Validation failed for %s: Updating a '
                               '%s is not supported' % (col, 'primary key' if col in table.pk else
                                                        'clustered-by column' if col == table.clustered
                                                        else 'partitioned-by column'), 4003)
            del c
            self.conflict_expr(e, src, exc, [None] * 1000)

    def conflict_expr(self, e, src, exc, args):
        """excluded.c is the new value; a bare column the stored one"""
        if e[0] == 'col' and len(e[1]) > 1 and e[1][0] != 'excluded':
            raise refuse('Column reference "%s" has too many parts. A column must not have a schema '
                         'or a table here.' % '.'.join(e[1]))

        def qualify(x):
            if isinstance(x, tuple) and x and x[0] == 'col':
                if len(x[1]) == 1:
                    return ('col', (src.alias, x[1][0]))
                if x[1][0] != 'excluded':
                    raise refuse('Column reference "%s" has too many parts. A column must not have '
                                 'a schema or a table here.' % '.'.join(x[1]))
                return x
            if isinstance(x, tuple):
                return tuple(qualify(y) for y in x)
            if isinstance(x, list):
                return [qualify(y) for y in x]
            return x
        return Compiler(self, [src, exc], args).expr(qualify(e))

    def insert(self, node, args, session, hooks):
        """-> Result, or with bulk: what one row came to"""
        _, _, _, _, conflict, ret = node
        table, columns, rows, plain_values = self.prepare_insert(node, args)
        hooks.between(self, node)
        if self.tables.get((table.schema, table.name)) is not table:
            # swapped or dropped meanwhile
            table = self.find((table.schema, table.name))
            table.check_block('INSERT')
        fail_fast = self.version_num >= (6, 0) and \
            session.settings.get('insert_select_fail_fast') in ('true', 'on', '1', 't')
        written = []
        update = self.conflict_update(table, conflict, args)
        place = {c.name: i for i, c in enumerate(columns)}
        for n, row in enumerate(rows):
            try:
                if 'blocks.read_only_allow_delete' in table.blocks:
                    if not plain_values:
                        break           # no word of it, fail_fast or not
                    raise disk_block()
                if isinstance(row, SqlError):
                    raise row
                hooks.row(n, row)
                doc = self.write_row(table, columns, place, row, conflict, update)
                if doc is not None:
                    written.append(doc)
            except SqlError as e:
                if plain_values and len(rows) == 1:
                    raise
                if fail_fast and not plain_values and e.code != -1:
                    raise
            except CastError:
                pass
        if ret:
            return self.returning(table, ret, written, args)
        return Result((), None, len(written))

    def conflict_update(self, table, conflict, args):
        if not conflict or conflict[0] != 'update':
            return None
        src = Source(table.name, table.schema, list(table.columns), [])
        exc = Source('excluded', None, list(table.columns), [])
        return [(table.columns[col], self.conflict_expr(e, src, exc, args))
                for col, e in conflict[2]]

    def write_row(self, table, columns, place, row, conflict, update):
        new = {}
        for c, v in zip(columns, row):
            try:
                v = cast(v, c.type)
            except CastError:
                raise SqlError('SQLParseException', 'Cannot cast value `%s` to type `%s`'
                               % (shown(v)[:1000], type_name(c.type)), 4000) from None
            new[c.name] = v
        for c in table.columns.values():
            if c.name not in new and c.default is not None:
                new[c.name] = cast(Compiler(self, [], []).expr(c.default)(()), c.type)
        for k in table.pk:
            if new.get(k) is None:
                # not even fail_fast has a word for this one
                raise SqlError('IllegalArgumentException',
                               'A primary key value must not be NULL', -1, 400)
        key = tuple(new[k] for k in table.pk) if table.pk else (uuid.uuid4().hex,)
        old = table.docs.get(key)
        if old is not None:
            if conflict is None:
                raise SqlError('DuplicateKeyException', 'A document with the same primary key '
                               'exists already', 4091)
            if conflict[0] == 'nothing':
                return None
            values = dict(old.values)
            for c, f in update:
                v = f((old.values, new))
                try:
                    values[c.name] = cast(v, c.type)
                except CastError:
                    raise refuse('Cannot cast value `%s` to type `%s`'
                                 % (shown(v)[:1000], type_name(c.type))) from None
        else:
            values = new
        for name, v in values.items():
            c = table.columns.get(name)
            if c is None:
                continue
            if v is None and c.notnull:
                raise SqlError('SQLParseException', '"%s" must not be null' % name, 4000)
            check_row_value(c, v)
        table.put(key, values, old)
        return table.docs[key]

    def returning(self, table, items, docs, args):
        cols = list(table.columns)
        src = Source(table.name, table.schema, cols + SYSTEM_COLUMNS, [], table)
        src.star = cols
        comp = Compiler(self, [src], args)
        out = []
        for e, label in items:
            if e[0] == 'star':
                out += [(('col', (c,)), c) for c in cols]
            else:
                out.append((e, label))
        fs = [comp.expr(e) for e, _ in out]
        rows = []
        for d in docs:
            row = dict(d.values, _seq_no=d.seq, _primary_term=TERM, _version=d.version)
            rows.append([f((row,)) for f in fs])
        return Result([label for _, label in out], rows, len(rows))

    def delete(self, node, args, hooks):
        """-> rows deleted, or an SqlError for a key that was named and is not there"""
        _, name, where = node
        table = self.find(name)
        where, never = self.without_constants(where, args)
        table.check_block('DELETE')
        if 'blocks.read_only_allow_delete' in table.blocks:
            raise disk_block()
        types = {c.name: c.type for c in table.columns.values()}
        types.update(_seq_no=('bigint',), _primary_term=('bigint',))
        src = Source(table.name, table.schema, list(table.columns) + SYSTEM_COLUMNS, [], table, types)
        comp = Compiler(self, [src], args)
        f = comp.expr(where) if where is not None else None
        wanted = None
        if where is not None:
            self.check_versions([src], where)
            if never:
                return 0, 0
            wanted = self.direct_key(table, where, args)
        if wanted is not None:
            key, seq, term = wanted
            label = shown(key[0]) if len(key) == 1 else repr(key)
            doc = table.docs.get(key)
            if seq is not None and (doc is None or (doc.seq, TERM) != (seq, term)):
                tail = 'but no document was found' if doc is None else \
                    'current document has seqNo [%d] and primary term [%d]' % (doc.seq, TERM)
                return SqlError('VersionConflictEngineException', '[%s]: version conflict, required '
                                'seqNo [%d], primary term [%d]. %s' % (label, seq, term, tail),
                                4092), table.shard_of(key)
            if doc is None:
                return SqlError('DocumentMissingException', '[%s]: document missing' % label,
                                40411), table.shard_of(key)
            table.remove(key)
            return 1, 0
        n = 0
        for key, doc in list(table.seen.items()):
            row = dict(doc.values, _seq_no=doc.seq, _primary_term=TERM)
            if f is None or is_true(f((row,))):
                # a newer version is a conflict: it stays
                if table.docs.get(key) is doc:
                    table.remove(key)
                    n += 1
        return n, 0

    def without_constants(self, where, args):
        """what is the same for every row is no condition: (the rest, whether it holds for none)"""
        if where is None or where[0] != 'and':
            return where, False
        (a, never_a), (b, never_b) = (self.without_constants(x, args) for x in where[1:])
        parts = []
        for e in (a, b):
            if e is not None and e[0] == 'cmp' and "('col'" not in repr(e) and "'subquery'" not in repr(e):
                never_a = never_a or not is_true(Compiler(self, [], args).expr(e)(()))
            elif e is not None:
                parts.append(e)
        rest = None if not parts else parts[0] if len(parts) == 1 else ('and', parts[0], parts[1])
        return rest, never_a or never_b

    def direct_key(self, table, where, args):
        """(key, seq_no, primary_term) if WHERE is nothing but the full key, each by ="""
        parts, rest = {}, [where]
        while rest:
            e = rest.pop()
            if e[0] == 'and':
                rest += [e[1], e[2]]
                continue
            if e[0] != 'cmp' or e[1] != '=' or e[2][0] != 'col' or e[3][0] not in (
                    'lit', 'param', 'cast'):
                return None
            parts[e[2][1][-1]] = Compiler(self, [], args).expr(e[3])(())
        if set(parts) - {'_seq_no', '_primary_term'} != set(table.pk) or not table.pk:
            return None
        key = tuple(cast_or_refuse(parts[k], table.columns[k].type) for k in table.pk)
        return key, parts.get('_seq_no'), parts.get('_primary_term')

    def update(self, node, args):
        _, name, sets, where, ret = node
        table = self.find(name)
        table.check_block('UPDATE')
        if 'blocks.read_only_allow_delete' in table.blocks:
            raise disk_block()
        self.check_conflict(table, ('update', None, sets))
        types = {c.name: c.type for c in table.columns.values()}
        src = Source(table.name, table.schema, list(table.columns) + SYSTEM_COLUMNS, [], table, types)
        comp = Compiler(self, [src], args)
        f = comp.expr(where) if where is not None else None
        fs = []
        for col, e in sets:
            c = table.columns[col]
            g = comp.expr(e)
            if e[0] in ('lit', 'param'):
                v = cast_or_refuse(g(()), c.type)
                fs.append((c, lambda row, v=v: v))
            else:
                fs.append((c, g))
        done = []
        wanted = self.direct_key(table, where, args) if where is not None else None
        if wanted is None:
            docs = [(k, d) for k, d in table.seen.items() if table.docs.get(k) is d]
        else:
            docs = [(wanted[0], table.docs[wanted[0]])] if wanted[0] in table.docs else []
        for key, doc in docs:
            row = (dict(doc.values, _seq_no=doc.seq, _primary_term=TERM),)
            if f is not None and not is_true(f(row)):
                continue
            values = dict(doc.values)
            for c, g in fs:
                values[c.name] = cast_or_refuse(g(row), c.type)
                check_row_value(c, values[c.name])
            table.put(key, values, doc)
            done.append(table.docs[key])
        if ret:
            return self.returning(table, ret, done, args)
        return Result((), None, len(done))

    # DDL -------------------------------------------------------------------

    def check_storable(self, ty):
        inner = ty
        while inner[0] == 'array':
            inner = inner[1]
        if inner[0] in ('date', 'interval', 'timetz'):
            raise SqlError('UnsupportedFeatureException',
                           'Type `%s` does not support storage' % inner[0], 4004)
        if inner[0] == 'numeric' and len(inner) != 3:
            raise SqlError('UnsupportedFeatureException', 'NUMERIC storage is only supported if '
                           'precision and scale are specified', 4004)
        if inner[0] == 'uuid' and self.version_num < (6, 2):
            raise refuse('Cannot find data type: uuid')

    def check_column_name(self, name):
        if name in SYSTEM_COLUMNS:
            raise SqlError('InvalidColumnNameException', '"%s" conflicts with system column' % name,
                           4008)
        if '.' in name:
            raise SqlError('InvalidColumnNameException', '"%s" contains a dot' % name, 4008)
        if re.search(r'[\[\t\r\n]', name):
            raise SqlError('InvalidColumnNameException', '"%s" conflicts with subscript pattern, '
                           'square brackets are not allowed' % name, 4008)

    def create_table(self, d, args):
        schema, name = d['name'][0] or 'doc', d['name'][1]
        if schema in READ_ONLY:
            raise refuse('Cannot create relation in read-only schema: %s' % schema)
        for part, what in ((schema, 'schema'), (name, 'Relation')):
            if re.search(r'[ ",*/<>?\\|#.]', part) or part[:1] in ('-', '+'):
                raise SqlError('InvalidRelationName', "Relation name '%s.%s' is invalid. Must not "
                               'contain the following characters [ , ", <, *, ?, >, |, ,, /, \\]'
                               % (schema, name), 4002)
        if len((schema + '.' + name).encode()) > 255:
            raise SqlError('InvalidRelationName', "Relation name '%s.%s' is invalid." % (
                schema, name), 4002)
        names = [c['name'] for c in d['cols']]
        for n in names:
            self.check_column_name(n)
            if names.count(n) > 1:
                raise refuse('column "%s" specified more than once' % n)
        pk = [c['name'] for c in d['cols'] if c['pk']] + [k for k in d['pk'] or []]
        for c in d['cols']:
            self.check_storable(c['type'])
            if not c['index'] and c['type'][0] == 'object':
                raise refuse('Cannot use INDEX OFF on %s' % c['name'])
        for k in pk:
            if k not in names:
                raise SqlError('ColumnUnknownException', 'Column %s unknown' % k, 4043)
            ty = d['cols'][names.index(k)]['type']
            if ty[0] in ('object', 'geo_point', 'geo_shape', 'float_vector'):
                raise SqlError('UnsupportedFeatureException', 'Cannot use columns of type "%s" as '
                               'primary key' % ty[0], 4004)
            if ty[0] == 'array':
                raise SqlError('UnsupportedFeatureException', 'Cannot use column "%s" with type '
                               '"%s" as primary key' % (k, type_name(ty)), 4004)
        if len(set(pk)) != len(pk):
            raise refuse('Columns appears twice in primary key constraint')
        if (schema, name) in self.tables:
            if d['maybe']:
                return Result((), None, 0)
            raise SqlError('RelationAlreadyExists', "Relation '%s.%s' already exists." % (
                schema, name), 4093)
        comp = Compiler(self, [], args)
        shards = comp.expr(d['shards'])(()) if d['shards'] else 4
        if not isinstance(shards, int) or shards < 1:
            raise refuse('num_shards in CLUSTERED clause must be greater than 0')
        if d['clustered'] and pk and d['clustered'] not in pk:
            raise refuse('Clustered by column `%s` must be part of primary key' % d['clustered'])
        t = Table(schema, name, [Column(c, i + 1) for i, c in enumerate(d['cols'])], pk, shards,
                  d['clustered'], d['partitioned'])
        for p in t.partitioned:
            if pk and p not in pk:
                raise refuse('Cannot use non primary key column "%s" in PARTITIONED BY clause if '
                             'primary key is set on table' % p)
        self.table_options(t, d['with'], args)
        self.tables[(schema, name)] = t
        return Result((), None, 1)

    def table_options(self, t, opts, args):
        comp = Compiler(self, [], args)
        for key, e in opts.items():
            if e[0] == 'col':
                e = ('lit', e[1][0])
            v = comp.expr(e)(())
            if key == 'number_of_replicas':
                if not re.fullmatch(r'\d+(-(\d+|all))?', str(v)):
                    raise refuse('The "number_of_replicas" range "%s" isn\'t valid' % v)
                t.replicas = str(v)
            elif key == 'column_policy':
                if v not in ('strict', 'dynamic', 'ignored'):
                    raise refuse("Invalid value for argument 'column_policy'")
                t.policy = v
            elif key.startswith('blocks.'):
                (t.blocks.add if v in (True, 'true') else t.blocks.discard)(key)
            elif key not in KNOWN_OPTIONS and not fnmatch.fnmatch(key, 'allocation.*') and \
                    not fnmatch.fnmatch(key, 'routing.*') and not fnmatch.fnmatch(key, 'merge.*') \
                    and not fnmatch.fnmatch(key, 'translog.*'):
                raise refuse('Invalid property "%s" passed to [ALTER | CREATE] TABLE statement' % key)

    def run_ddl(self, node, args, session):
        kind = node[0]
        if kind == 'create_table':
            return self.create_table(node[1], args)
        if kind == 'drop_table':
            try:
                t = self.find(node[1])
            except SqlError:
                if node[2]:
                    return Result((), None, 0)
                raise
            del self.tables[(t.schema, t.name)]
            return Result((), None, 1)
        if kind == 'add_column':
            t = self.find(node[1])
            t.check_block('ALTER') if 'blocks.read_only' in t.blocks else None
            for c in node[2]:
                self.check_column_name(c['name'])
                self.check_storable(c['type'])
                if c['name'] in t.columns:
                    raise refuse('The table %s already has a column named %s'
                                 % (t.full_name(), c['name']))
                if c['pk'] and t.docs:
                    raise SqlError('UnsupportedFeatureException', 'Cannot add a primary key column '
                                   'to a table that isn\'t empty', 4004)
            for c in node[2]:
                t.columns[c['name']] = Column(c, next(t.numbers))
                if c['pk']:
                    t.pk.append(c['name'])
            return Result((), None, -1)
        if kind == 'drop_column':
            t = self.find(node[1])
            if node[2] not in t.columns:
                if node[3]:
                    return Result((), None, 0)
                raise SqlError('ColumnUnknownException', 'Column %s unknown' % node[2], 4043)
            if node[2] in t.pk:
                raise SqlError('UnsupportedFeatureException', 'Dropping column: %s which is part of '
                               'the PRIMARY KEY is not allowed' % node[2], 4004)
            del t.columns[node[2]]
            for doc in itertools.chain(t.docs.values(), t.seen.values()):
                doc.values.pop(node[2], None)
            return Result((), None, -1)
        if kind == 'rename_column':
            t = self.find(node[1])
            t.column(node[2])
            self.check_column_name(node[3])
            if node[3] in t.columns:
                raise refuse('Cannot rename column to a name that is in use')
            for c in t.columns.values():
                if c.name == node[2]:
                    c.name = node[3]
            t.columns = {c.name: c for c in t.columns.values()}
            t.pk = [node[3] if k == node[2] else k for k in t.pk]
            for doc in {id(d): d for d in itertools.chain(t.docs.values(), t.seen.values())}.values():
                if node[2] in doc.values:
                    doc.values[node[3]] = doc.values.pop(node[2])
            return Result((), None, -1)
        if kind == 'rename_table':
            t = self.find(node[1])
            if (t.schema, node[2]) in self.tables:
                raise SqlError('RelationAlreadyExists', "Relation '%s.%s' already exists."
                               % (t.schema, node[2]), 4093)
            del self.tables[(t.schema, t.name)]
            t.name = node[2]
            self.tables[(t.schema, t.name)] = t
            return Result((), None, -1)
        if kind == 'table_options':
            self.table_options(self.find(node[1]), node[2], args)
            return Result((), None, -1)
        if kind == 'swap':
            a, b = self.find(node[1]), self.find(node[2])
            drop = node[3].get('drop_source') in (('lit', True), ('lit', 'true'))
            self.tables[(b.schema, b.name)], self.tables[(a.schema, a.name)] = a, b
            a.schema, a.name, b.schema, b.name = b.schema, b.name, a.schema, a.name
            if drop:
                del self.tables[(b.schema, b.name)]
            return Result((), None, 1)
        if kind in ('refresh', 'optimize'):
            tables = [self.find(n) for n in node[1]]
            for t in tables:
                t.refresh()
            return Result((), None, len(tables))
        if kind == 'set':
            value = node[2]
            session.settings[node[1]] = None if value is None else str(value)
            if node[1] == 'statement_timeout' and value is not None and not re.fullmatch(
                    r'(\d+\s*(ms|s|min|m|h|d)?\s*)+', str(value)):
                raise refuse('Invalid interval format: %s' % value)
            return Result((), None, 0)
        if kind == 'show':
            return Result([node[1]], [[session.settings.get(node[1]) or 'false']], 1)
        if kind == 'show_create':
            t = self.find(node[1])
            lines = ['   "%s" %s%s' % (c.name, type_ddl(c.type),
                                       ' NOT NULL' if c.name in t.pk or c.notnull else '')
                     for c in t.columns.values()]
            if t.pk:
                lines.append('   PRIMARY KEY (%s)' % ', '.join('"%s"' % k for k in t.pk))
            return Result(['SHOW CREATE TABLE %s' % t.full_name()],
                          [['CREATE TABLE IF NOT EXISTS "%s"."%s" (\n%s\n)' % (
                              t.schema, t.name, ',\n'.join(lines))]], 1)
        if kind == 'kill':
            if node[1] == 'all':
                return Result((), None, 0)
            v = Compiler(self, [], args).expr(node[1])(())
            if v not in self.jobs:
                raise refuse('Can not parse job ID: %s' % v)
            return Result((), None, 1)
        return Result((), None, 0)

    # one request -----------------------------------------------------------

    def execute(self, stmt, args, bulk_args, session, hooks):
        node, _ = parse_cached(stmt)
        job = str(uuid.uuid4())
        self.jobs[job] = (stmt, session, int(time.time() * 1000))
        leaked = False
        try:
            with self.lock:
                if bulk_args is not None:
                    try:
                        return self.execute_bulk(node, bulk_args, session, hooks)
                    except SqlError as e:
                        # what a bulk request is refused for before it runs stays in sys.jobs
                        leaked = e.code in (4000, 4004)
                        raise
                return self.execute_one(node, args or [], session, hooks)
        finally:
            if not leaked:
                self.jobs.pop(job, None)

    def execute_one(self, node, args, session, hooks):
        kind = node[0]
        if kind == 'select':
            return self.select(node[1], args)
        if kind == 'insert':
            return self.insert(node, args, session, hooks)
        if kind == 'delete':
            n, _ = self.delete(node, args, hooks)
            if isinstance(n, SqlError):
                n = 0
            return Result((), None, n)
        if kind == 'update':
            return self.update(node, args)
        return self.run_ddl(node, args, session)

    def execute_bulk(self, node, bulk_args, session, hooks):
        if node[0] not in ('insert', 'delete', 'update') or (
                node[0] == 'insert' and node[5]) or (node[0] == 'update' and node[4]):
            raise SqlError('UnsupportedFeatureException', 'Bulk operations for statements that return '
                           'result sets is not supported', 4004)
        if node[0] == 'insert' and node[3][0] == 'select':
            raise SqlError('UnsupportedFeatureException', 'Bulk operations for INSERT ... SELECT are '
                           'not supported', 4004)
        # whatever is wrong with one row's values refuses all before any is written
        for args in bulk_args:
            if not isinstance(args, list):
                raise refuse('bulk_args must be an array of arrays')
            if node[0] == 'insert':
                self.prepare_insert(node, args)
            elif node[0] == 'delete':
                table = self.find(node[1])
                if node[2] is not None:
                    where = self.without_constants(node[2], args)[0]
                    direct = self.direct_key(table, where, args)
                    self.check_versions([Source('', '', [], [], table)], where, direct is None)
                    src = Source(table.name, table.schema, list(table.columns) + SYSTEM_COLUMNS, [],
                                 table, {c.name: c.type for c in table.columns.values()})
                    Compiler(self, [src], args).expr(node[2])
        hooks.between(self, node)
        results, budget = [], {}
        for args in bulk_args:
            shard = 0
            try:
                if node[0] == 'insert':
                    n, shard = self.insert(node, args, session, _QuietHooks(hooks)).rowcount, 0
                elif node[0] == 'delete':
                    n, shard = self.delete(node, args, hooks)
                else:
                    n, shard = self.update(node, args).rowcount, 0
                if isinstance(n, SqlError):
                    raise n
                results.append({'rowcount': n})
            except SqlError as e:
                if e.code in (4037, 4007) and node[0] == 'delete':
                    raise
                if len(bulk_args) == 1 and self.version_num <= (5, 10, 10):
                    raise
                budget[shard] = budget.get(shard, 0) + 1
                res = {'rowcount': -2}
                if budget[shard] <= ERRORS_PER_SHARD:
                    res['error'] = {'code': abs(e.code), 'message': e.text()}
                results.append(res)
        return Result((), None, 0, results)


def type_ddl(ty):
    if ty[0] == 'array':
        return 'ARRAY(%s)' % type_ddl(ty[1])
    if ty[0] == 'object':
        return 'OBJECT(%s)' % ty[1].upper()
    name = {'text': 'VARCHAR'}.get(ty[0], ty[0]) if len(ty) > 1 else ty[0]
    return name.upper() + ('(%s)' % ', '.join(map(str, ty[1:])) if len(ty) > 1 else '')


class _AnyArgs(list):
    """stands for arguments where only the shape of WHERE matters"""

    def __len__(self):
        return 1 << 30

    def __getitem__(self, i):
        return None


class Hooks:
    """where faults reach into a statement"""

    def between(self, engine, node):
        """after the source of an INSERT was read, the fence included; before the first write"""

    def row(self, n, row):
        """before row n is written; may raise SqlError"""


class _QuietHooks(Hooks):
    def __init__(self, inner):
        self.inner = inner

    def row(self, n, row):
        self.inner.row(n, row)


def told_name(name):
    """as information_schema has a column's name: one that is a type's word in quotes"""
    return '"%s"' % name if name.lower() == 'char' else name


PRECISION = {'byte': 8, 'smallint': 16, 'integer': 32, 'bigint': 64, 'real': 24,
             'double precision': 53}
KNOWN_OPTIONS = {'refresh_interval', 'number_of_shards', 'codec', 'mapping.total_fields.limit',
                 'write.wait_for_active_shards', 'unassigned.node_left.delayed_timeout',
                 'max_ngram_diff', 'max_shingle_diff', 'warmer.enabled', 'store.type'}

PARSED = {}


def parse_cached(stmt):
    if len(stmt) > 262144:
        raise refuse('Statement exceeds `statement_max_length` (262144 allowed, %d provided). Try '
                     'replacing inline values with parameter placeholders (`?`)' % len(stmt))
    # markers at the head of a statement differ all the time
    key = re.sub(r'^\s*(/\*.*?\*/\s*)+', '', stmt, flags=re.S)
    found = PARSED.get(key)
    if found is None:
        found = sql.parse(key)
        if len(PARSED) > 1000:
            PARSED.clear()
        if len(key) < 20000:
            PARSED[key] = found
    return found


def sort_key(v):
    """NULLs are placed apart; this orders what one column may hold"""
    if v is None:
        return (0, 0)
    if isinstance(v, bool):
        return (1, int(v))
    if isinstance(v, float) and v != v:
        return (2, math.inf)
    if isinstance(v, (int, float, Decimal)):
        return (1, v)
    if isinstance(v, str):
        return (1, v.encode('utf-8', 'surrogatepass'))
    return (1, to_json(plain(v)))
