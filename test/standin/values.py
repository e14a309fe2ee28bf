"""CrateDB's types: casts, what a shard refuses, and how values look in JSON."""

import ipaddress
import json
import math
import re
import struct
import uuid
from decimal import Decimal, InvalidOperation, ROUND_HALF_UP, localcontext

from sql import SqlError, refuse, type_name

INT_RANGES = {'byte': 7, 'smallint': 15, 'integer': 31}
MAX_TERM = 32766


class CastError(Exception):
    pass


def days_from_civil(y, m, d):
    y -= m <= 2
    era = y // 400
    yoe = y - era * 400
    doy = (153 * (m + (-3 if m > 2 else 9)) + 2) // 5 + d - 1
    return era * 146097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719468


STAMP = re.compile(r"""^([+-]?\d{4,9})-(\d\d)-(\d\d)
    (?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?$""", re.X)


def timestamp(v, zone):
    if isinstance(v, bool):
        raise CastError
    if isinstance(v, int):
        return wrap(v)
    if isinstance(v, (float, Decimal)):
        if not math.isfinite(v):
            raise CastError
        return int(v * 1000)            # a float is seconds
    if not isinstance(v, str):
        raise CastError
    if re.fullmatch(r'-?\d+', v) and len(v) > 4:
        return wrap(int(v))
    m = STAMP.match(v)
    if m is None:
        raise CastError
    y, mo, d = (int(m.group(i)) for i in (1, 2, 3))
    if len(m.group(1).lstrip('+-')) > 4 and m.group(1)[0] not in '+-':
        raise CastError
    h, mi, s = (int(m.group(i) or 0) for i in (4, 5, 6))
    if not (1 <= mo <= 12 and 1 <= d <= 31 and h < 24 and mi < 60 and s < 60):
        raise CastError
    ms = ((days_from_civil(y, mo, d) * 24 + h) * 60 + mi) * 60 + s
    ms = ms * 1000 + int((m.group(7) or '0').ljust(3, '0')[:3])
    off = m.group(8)
    if zone and off and off != 'Z':
        digits = off[1:].replace(':', '').ljust(4, '0')
        minutes = int(digits[:2]) * 60 + int(digits[2:])
        ms -= (minutes if off[0] == '+' else -minutes) * 60000
    return ms


def wrap(v):
    return (v + (1 << 63)) % (1 << 64) - (1 << 63)


def real(v):
    f = struct.unpack('f', struct.pack('f', v))[0]
    if not math.isfinite(f):
        if math.isfinite(v):
            raise CastError
        return f
    for digits in range(6, 10):         # the shortest text that reads back as the same
        short = float('%.*g' % (digits, f))
        if struct.unpack('f', struct.pack('f', short))[0] == f:
            return short
    return f


def numeric(v, ty):
    if isinstance(v, bool) or not isinstance(v, (int, float, str, Decimal)):
        raise CastError
    try:
        d = Decimal(str(v))
    except InvalidOperation:
        raise CastError from None
    if not d.is_finite():
        raise CastError
    if len(ty) == 3:
        with localcontext() as ctx:
            ctx.prec = 200
            d = d.quantize(Decimal(1).scaleb(-ty[2]), rounding=ROUND_HALF_UP)
        if d and d.adjusted() + 1 > ty[1] - ty[2]:
            raise CastError
    return d


def cast(v, ty):
    """v as a value of the type; CastError if it has none"""
    if v is None:
        return None
    name = ty[0]
    if name == 'text':
        if isinstance(v, str):
            return v
        if isinstance(v, bool):
            return 'true' if v else 'false'
        if isinstance(v, dict):
            return to_json(v)
        if isinstance(v, list):
            raise CastError
        return str(v)
    if name == 'bigint' and type(v) is int and -(1 << 63) <= v < 1 << 63:
        return v
    if name in INT_RANGES or name == 'bigint':
        if isinstance(v, bool):
            raise CastError
        if isinstance(v, (float, Decimal)):
            if not math.isfinite(v):
                raise CastError
            v = int(v)
        elif isinstance(v, str):
            if not re.fullmatch(r'[+-]?\d+', v):
                raise CastError
            v = int(v)
        elif not isinstance(v, int):
            raise CastError
        bits = INT_RANGES.get(name, 63)
        if not -(1 << bits) <= v < 1 << bits:
            raise CastError
        return v
    if name in ('double precision', 'real'):
        if isinstance(v, bool) or not isinstance(v, (int, float, str, Decimal)):
            raise CastError
        if isinstance(v, str) and not re.fullmatch(
                r'\s*([+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|Infinity|NaN))[dfDF]?\s*', v):
            raise CastError
        v = float(v.strip().rstrip('dfDF') if isinstance(v, str) else v)
        return real(v) if name == 'real' else v
    if name == 'boolean':
        if isinstance(v, bool):
            return v
        if isinstance(v, str) and v.lower() in ('t', 'true', 'f', 'false'):
            return v.lower() in ('t', 'true')
        if isinstance(v, (int, float)) and v in (0, 1):
            return bool(v)
        raise CastError
    if name == 'timestamp with time zone':
        return timestamp(v, True)
    if name == 'timestamp without time zone':
        return timestamp(v, False)
    if name == 'numeric':
        return numeric(v, ty)
    if name == 'array':
        if not isinstance(v, list):
            raise CastError
        return [cast(x, ty[1]) for x in v]
    if name == 'object':
        if isinstance(v, str):
            try:
                v = json.loads(v, parse_float=float)
            except ValueError:
                raise CastError from None
            if isinstance(v, list):     # so it does
                v = {}
        if not isinstance(v, dict):
            raise CastError
        if ty[2]:
            v = {k: cast(x, ty[2][k]) if k in ty[2] else x for k, x in v.items()}
        return v
    if name == 'uuid':
        try:
            if not isinstance(v, str) or len(v) != 36:
                raise ValueError
            return str(uuid.UUID(v))
        except ValueError:
            raise CastError from None
    if name == 'ip':
        try:
            return str(ipaddress.ip_address(v if isinstance(v, (str, int)) else ''))
        except ValueError:
            raise CastError from None
    if name == 'character':
        if isinstance(v, (list, dict)):
            raise CastError
        n = ty[1] if len(ty) > 1 else 1
        v = cast(v, ('text',))
        if len(v.rstrip(' ')) > n:
            raise CastError
        return v[:n].ljust(n)
    if name == 'float_vector':
        if not isinstance(v, list) or any(x is None for x in v):
            raise CastError
        return [real(cast(x, ('double precision',))) for x in v]
    if name == 'geo_point':
        if isinstance(v, str):
            m = re.fullmatch(r'\s*POINT\s*\(\s*(\S+)\s+(\S+)\s*\)\s*', v, re.I)
            if not m:
                raise CastError
            v = [float(m.group(1)), float(m.group(2))]
        if not isinstance(v, list) or len(v) != 2:
            raise CastError
        lon, lat = (cast(x, ('double precision',)) for x in v)
        if lon is None or lat is None or not (-180 <= lon <= 180 and -90 <= lat <= 90):
            raise CastError
        return [lon, lat]
    if name in ('geo_shape', 'bit'):
        return v
    raise CastError


# --------------------------------------------------------------------------
# ARRAY(OBJECT) from arguments: every member has one type for the whole array

RANK = {'text': 0, 'boolean': 1, 'integer': 2, 'bigint': 3, 'double precision': 4}


def infer(v):
    if v is None:
        return None
    if isinstance(v, bool):
        return ('boolean',)
    if isinstance(v, int):
        return ('integer',) if -(1 << 31) <= v < 1 << 31 else ('bigint',)
    if isinstance(v, (float, Decimal)):
        return ('double precision',)
    if isinstance(v, str):
        return ('text',)
    if isinstance(v, list):
        ty = None
        for x in v:
            ty = merge(ty, infer(x))
        return ('array', ty)
    return ('object', 'dynamic', {k: infer(x) for k, x in v.items()})


def merge(a, b):
    if a is None or b is None:
        return a or b
    if a[0] == 'array' and b[0] == 'array':
        return ('array', merge(a[1], b[1]))
    if a[0] == 'object' and b[0] == 'object':
        members = dict(a[2])
        for k, ty in b[2].items():
            members[k] = merge(members.get(k), ty)
        return ('object', 'dynamic', members)
    if a[0] == 'object' or b[0] == 'object':
        return a if a[0] == 'object' else b
    if a[0] == 'array' or b[0] == 'array':
        lo, hi = (a, b) if b[0] == 'array' else (b, a)
        raise refuse('Cannot cast expressions from type `%s` to type `%s`'
                     % (type_name(lo), type_name(full(hi))))
    return a if RANK[a[0]] >= RANK[b[0]] else b


def full(ty):
    if ty is None:
        return ('undefined',)
    return ('array', full(ty[1])) if ty[0] == 'array' else ty


def unify(v, ty, member=''):
    if v is None or ty is None:
        return v
    if ty[0] == 'object' and isinstance(v, dict):
        return {k: unify(x, ty[2].get(k), k) for k, x in v.items()}
    try:
        if ty[0] == 'array' and isinstance(v, list):
            return [unify(x, ty[1], member) if isinstance(x, dict) else
                    ([unify(y, ty[1][1], member) for y in x] if isinstance(x, list) and ty[1]
                     else (x if ty[1] is None else cast(x, ty[1]))) for x in v]
        return cast(v, ty)
    except CastError:
        raise refuse('Cannot cast object element `%s` with value `%s` to type `%s`'
                     % (member, shown(v), type_name(full(ty)))) from None


def shown(v):
    if isinstance(v, list):
        return '[%s]' % ', '.join(shown(x) for x in v)
    if isinstance(v, dict):
        return '{%s}' % ', '.join('%s=%s' % (k, shown(x)) for k, x in v.items())
    if v is None:
        return 'null'
    if isinstance(v, bool):
        return 'true' if v else 'false'
    return str(v)


def cast_or_refuse(v, ty):
    """a cast in a statement: what cannot be refuses the whole request"""
    try:
        if ty[0] == 'array' and isinstance(v, list):
            # a wrong shape among scalars has its own words
            if ty[1][0] not in ('array', 'object', 'float_vector', 'geo_point', 'geo_shape'):
                for x in v:
                    if isinstance(x, list):
                        raise refuse('Cannot cast expressions from type `text` to type '
                                     '`integer_array`')
            res = cast(v, ty)
            if ty[1][0] == 'object':
                merged = None
                for x in res:
                    merged = merge(merged, infer(x))
                res = [unify(x, merged) for x in res]
            return res
        return cast(v, ty)
    except CastError:
        if ty == ('array', ('object', 'dynamic', {})) and isinstance(v, list):
            bad = [x for x in v if x is not None and not isinstance(x, dict)]
            raise refuse('Cannot cast value `%s` to type `object`' % shown(bad[0] if bad else v)) \
                from None
        raise refuse('Cannot cast value `%s` to type `%s`' % (shown(v)[:1000], type_name(ty))) \
            from None


# --------------------------------------------------------------------------
# what a shard refuses

def too_long(v):
    return len(v) * 4 > MAX_TERM and len(v.encode('utf-8', 'surrogatepass')) > MAX_TERM


def immense(col, v):
    data = v.encode('utf-8', 'surrogatepass')
    return SqlError('SQLParseException',
                    'Document contains at least one immense term in field="%s" (whose UTF8 encoding '
                    'is longer than the max length 32766), all of which were skipped.  Please '
                    'correct the analyzer to not produce such terms.  The prefix of the first '
                    "immense term is: '[%s]...', original message: bytes can be at most 32766 in "
                    'length; got %d' % (col, ', '.join(str(b) for b in data[:30]), len(data)), 4000)


def check_row_value(col, v):
    """errors that are found when the row is written; col: engine.Column"""
    ty = col.type
    while ty[0] == 'array':
        ty = ty[1]
    if ty[0] == 'bigint':
        items = [v]
        while items:
            x = items.pop()
            if isinstance(x, list):
                items.extend(x)
            elif x in (-(1 << 63), (1 << 63) - 1):
                raise SqlError('SQLParseException', 'Value %d exceeds allowed range for column of '
                               'type bigint' % x, 4000)
    elif ty[0] == 'text':
        items = [v]
        while items:
            x = items.pop()
            if isinstance(x, list):
                items.extend(x)
            elif x is not None:
                if len(ty) > 1 and len(x) > ty[1]:
                    raise SqlError('SQLParseException', "'%s...' is too long for the text type of "
                                   'length: %d' % (x[:20], ty[1]), 4000)
                if (col.index or col.columnstore) and too_long(x):
                    raise immense(col.number, x)
    elif ty[0] == 'float_vector':
        if v is not None and len(v) != ty[1]:
            raise SqlError('SQLParseException', 'Cannot insert value of length %d into FLOAT_VECTOR'
                           '(%d)' % (len(v), ty[1]), 4000)
    elif ty[0] == 'object' and ty[1] != 'ignored':
        check_object(col, v)


def check_object(col, v):
    """members of a dynamic object become columns of one type each"""
    if isinstance(v, list):
        for x in v:
            check_object(col, x)
        return
    if v is None:
        return
    for k, x in list(v.items()):
        if '.' in k or '[' in k:
            raise SqlError('InvalidColumnNameException', '"%s" contains a dot' % k, 4008)
        if x is None:
            continue
        ty = infer(x)
        if ty[0] == 'integer':
            ty = ('bigint',)
        known = col.members.get(k)
        if known is None:
            col.members[k] = ty
        elif ty[0] != 'object' and known[0] != 'object':
            try:
                v[k] = x = cast(x, full(known))
            except CastError:
                raise SqlError('SQLParseException', "Cannot cast value `%s` to type `%s`"
                               % (shown(x), type_name(full(known))), 4000) from None
        elif ty[0] != known[0]:
            raise SqlError('SQLParseException', "Cannot cast value `%s` to type `%s`"
                           % (shown(x), type_name(full(known))), 4000)
        if isinstance(x, str) and too_long(x):
            raise immense(k, x)


# --------------------------------------------------------------------------
# JSON out

MARK = '\x00#'
MARKED = re.compile(r'"\\u0000#([^"]*)"')


def plain(v):
    """for json.dumps: NaN and infinities as text, numeric as marked text"""
    if isinstance(v, float):
        if math.isfinite(v):
            return v
        return 'NaN' if v != v else ('Infinity' if v > 0 else '-Infinity')
    if isinstance(v, Decimal):
        return MARK + format(v, 'f')
    if isinstance(v, list):
        return [plain(x) for x in v]
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    return v


def to_json(v):
    return MARKED.sub(r'\1', json.dumps(plain(v), ensure_ascii=False, separators=(',', ':')))
