"""Reads the part of CrateDB's SQL that the stand-in knows into tuples.

A node is a tuple whose first item names it.  What this does not know is refused
as CrateDB refuses what it does not know: a ParsingException, code 4000.
"""

import re


class SqlError(Exception):
    """An error as CrateDB words it: class name, message, code, HTTP status."""

    def __init__(self, name, message, code, status=None):
        super().__init__(message)
        self.name = name
        self.message = message
        self.code = code
        if status is None:
            status = int(str(code)[:3])
            if status not in (401, 403, 404, 409, 503):
                status = 400 if status < 500 else 500
        self.status = status

    def text(self):
        return '%s[%s]' % (self.name, self.message)


def parse_error(message):
    return SqlError('ParsingException', 'line 1:1: ' + message, 4000, 400)


def refuse(message):
    return SqlError('SQLParseException', message, 4000, 400)


TOKEN = re.compile(r"""
    (?P<space>\s+|--[^\n]*|/\*.*?\*/)
  | (?P<str>[eEbB]?'(?:[^']|'')*')
  | (?P<quoted>"(?:[^"]|"")+")
  | (?P<num>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<param>\?|\$\d+)
  | (?P<op>::|<>|!=|<=|>=|\|\||=>|[-+*/%=<>(),.\[\]{};:])
""", re.X | re.S)

RESERVED = set('''add all alter and any array as asc between by called case cast column
    constraint costs create cross current_date current_role current_schema current_time
    current_timestamp current_user default delete deny desc describe directory distinct drop
    else end escape except exists extract false first for from full function grant group
    having if in index inner input insert intersect into is join last left like limit match
    natural not null nulls object offset on or order outer persistent precision recursive
    reset returns revoke right select session_user set stratify table then transient
    transient true try_cast unbounded union update user using when where with'''.split())
# CrateDB takes "by" as a keyword too; TIME and the like may be names


class Tokens:
    def __init__(self, text):
        self.toks = []
        self.pos = 0
        i = 0
        self.nparams = 0
        while i < len(text):
            m = TOKEN.match(text, i)
            if m is None:
                raise parse_error("token recognition error at: '%s'" % text[i:i + 10])
            i = m.end()
            kind = m.lastgroup
            if kind == 'space':
                continue
            val = m.group()
            if kind == 'str':
                if val[0] in 'bB':
                    val = val[2:-1]
                elif val[0] in 'eE':
                    val = re.sub(r'\\(.)', lambda x: {'n': '\n', 't': '\t', 'r': '\r'}.get(
                        x.group(1), x.group(1)), val[2:-1].replace("''", "'"))
                else:
                    val = val[1:-1].replace("''", "'")
            elif kind == 'quoted':
                val = val[1:-1].replace('""', '"')
            elif kind == 'word':
                val = val.lower()
            self.toks.append((kind, val))
        if self.toks and self.toks[-1] == ('op', ';'):
            self.toks.pop()
        self.toks.append(('end', '<EOF>'))

    # looking
    def peek(self, ahead=0):
        return self.toks[min(self.pos + ahead, len(self.toks) - 1)]

    def at(self, *words):
        """are these words or signs next?"""
        for i, w in enumerate(words):
            kind, val = self.peek(i)
            if kind not in ('word', 'op') or val != w:
                return False
        return True

    # taking
    def take(self, *words):
        if self.at(*words):
            self.pos += len(words)
            return True
        return False

    def need(self, *words):
        for w in words:
            if not self.take(w):
                raise self.unexpected("'%s'" % w)

    def next(self):
        t = self.peek()
        self.pos += 1
        return t

    def unexpected(self, wanted=None):
        msg = "mismatched input '%s'" % self.peek()[1]
        if wanted:
            msg += ' expecting ' + wanted
        return parse_error(msg)

    def name(self):
        kind, val = self.peek()
        if kind == 'quoted' or (kind == 'word' and val not in RESERVED):
            self.pos += 1
            return val
        raise self.unexpected('a name')

    def done(self):
        if self.peek()[0] != 'end':
            raise self.unexpected('<EOF>')


# --------------------------------------------------------------------------
# types: ('bigint',), ('array', t), ('numeric', p, s), ('object', policy, {name: type})

TYPE_WORDS = {
    'boolean': 'boolean', 'bool': 'boolean', 'byte': 'byte', 'char': 'byte',
    'short': 'smallint', 'smallint': 'smallint', 'int2': 'smallint',
    'int': 'integer', 'integer': 'integer', 'int4': 'integer',
    'long': 'bigint', 'bigint': 'bigint', 'int8': 'bigint',
    'float': 'real', 'real': 'real', 'float4': 'real',
    'double': 'double precision', 'float8': 'double precision',
    'text': 'text', 'string': 'text', 'varchar': 'text', 'character': 'character',
    'timestamp': 'timestamp without time zone', 'timestamptz': 'timestamp with time zone',
    'date': 'date', 'numeric': 'numeric', 'decimal': 'numeric', 'uuid': 'uuid', 'ip': 'ip',
    'geo_point': 'geo_point', 'geo_shape': 'geo_shape', 'float_vector': 'float_vector',
    'object': 'object', 'bit': 'bit', 'json': 'json', 'interval': 'interval', 'timetz': 'timetz',
}


def parse_type(t):
    kind, word = t.next()
    if kind == 'op' and word == '[':
        raise t.unexpected()
    if kind == 'word' and word == 'array':
        t.need('(')
        inner = parse_type(t)
        t.need(')')
        return ('array', inner)
    if kind not in ('word', 'quoted'):
        t.pos -= 1
        raise t.unexpected('a type')
    if word not in TYPE_WORDS:
        raise refuse('Cannot find data type: %s' % word)
    name = TYPE_WORDS[word]
    if word == 'double':
        t.need('precision')
    if word == 'timestamp':
        if t.take('with'):
            name = 'timestamp with time zone'
            t.need('time', 'zone')
        elif t.take('without'):
            t.need('time', 'zone')
    if word == 'character' and t.take('varying'):
        name = 'text'
    if name == 'object':
        policy, inner = 'dynamic', {}
        if t.take('('):
            policy = t.next()[1]
            if policy not in ('dynamic', 'strict', 'ignored'):
                t.pos -= 1
                raise t.unexpected('DYNAMIC, STRICT or IGNORED')
            t.need(')')
        if t.take('as'):
            t.need('(')
            while True:
                col = t.name()
                inner[col] = parse_type(t)
                if not t.take(','):
                    break
            t.need(')')
        res = ('object', policy, inner)
    else:
        args = []
        if t.take('('):
            while True:
                kind, val = t.next()
                if kind != 'num':
                    t.pos -= 1
                    raise t.unexpected('a number')
                args.append(int(val))
                if not t.take(','):
                    break
            t.need(')')
        res = (name,) + tuple(args)
    while t.at('[', ']'):
        t.pos += 2
        res = ('array', res)
    return res


def type_name(ty):
    if ty[0] == 'array':
        return type_name(ty[1]) + '_array'
    return ty[0]


# --------------------------------------------------------------------------
# expressions

COMPARE = ('=', '<>', '!=', '<', '<=', '>', '>=')


def expr(t):
    left = expr_and(t)
    while t.take('or'):
        left = ('or', left, expr_and(t))
    return left


def expr_and(t):
    left = expr_not(t)
    while t.take('and'):
        left = ('and', left, expr_not(t))
    return left


def expr_not(t):
    if t.take('not'):
        return ('not', expr_not(t))
    return expr_compare(t)


def expr_compare(t):
    left = expr_add(t)
    while True:
        kind, val = t.peek()
        if kind == 'op' and val in COMPARE:
            t.pos += 1
            if val == '!=':
                val = '<>'
            if t.at('any', '(') or t.at('all', '('):
                quant = t.next()[1]
                t.need('(')
                right = subquery_or_expr(t)
                t.need(')')
                left = (quant, val, left, right)
            else:
                left = ('cmp', val, left, expr_add(t))
            continue
        if t.take('is'):
            neg = t.take('not')
            if t.take('null'):
                left = ('isnull', left)
            elif t.take('distinct'):
                t.need('from')
                left = ('distinct', left, expr_add(t))
            else:
                raise t.unexpected()
            if neg:
                left = ('not', left)
            continue
        neg = t.at('not') and t.peek(1)[1] in ('in', 'like', 'ilike', 'between')
        if neg:
            t.pos += 1
        if t.take('in'):
            t.need('(')
            if t.at('select'):
                left = ('any', '=', left, ('subquery', select(t)))
            else:
                items = [expr(t)]
                while t.take(','):
                    items.append(expr(t))
                left = ('in', left, items)
            t.need(')')
        elif t.at('like') or t.at('ilike'):
            how = t.next()[1]
            left = (how, left, expr_add(t))
        elif t.take('between'):
            lo = expr_add(t)
            t.need('and')
            left = ('and', ('cmp', '>=', left, lo), ('cmp', '<=', left, expr_add(t)))
        elif neg:
            raise t.unexpected()
        else:
            return left
        if neg:
            left = ('not', left)


def expr_add(t):
    left = expr_mul(t)
    while t.peek() in (('op', '+'), ('op', '-'), ('op', '||')):
        op = t.next()[1]
        left = ('arith', op, left, expr_mul(t))
    return left


def expr_mul(t):
    left = expr_unary(t)
    while t.peek() in (('op', '*'), ('op', '/'), ('op', '%')):
        op = t.next()[1]
        left = ('arith', op, left, expr_unary(t))
    return left


def expr_unary(t):
    if t.take('-'):
        inner = expr_unary(t)
        if inner[0] == 'lit' and isinstance(inner[1], (int, float)):
            return ('lit', -inner[1])
        return ('neg', inner)
    if t.take('+'):
        return expr_unary(t)
    return expr_postfix(t)


def expr_postfix(t):
    e = expr_primary(t)
    while True:
        if t.take('::'):
            e = ('cast', e, parse_type(t))
        elif t.take('['):
            e = ('sub', e, expr(t))
            t.need(']')
        else:
            return e


def subquery_or_expr(t):
    if t.at('select'):
        return ('subquery', select(t))
    return expr(t)


def expr_primary(t):
    kind, val = t.peek()
    if kind == 'num':
        t.pos += 1
        return ('lit', float(val) if re.search('[.eE]', val) else int(val))
    if kind == 'str':
        t.pos += 1
        return ('lit', val)
    if kind == 'param':
        t.pos += 1
        if val == '?':
            t.nparams += 1
            return ('param', t.nparams)
        return ('param', int(val[1:]))
    if t.take('('):
        e = subquery_or_expr(t)
        t.need(')')
        return e
    if t.take('['):
        return ('array', expr_list(t, ']'))
    if t.at('array', '['):
        t.pos += 2
        return ('array', expr_list(t, ']'))
    if t.take('{'):
        members = []
        while not t.take('}'):
            k, v = t.next()
            if k not in ('word', 'quoted', 'str'):
                raise t.unexpected()
            if not t.take('='):
                t.need(':')
            members.append((v, expr(t)))
            if not t.at('}'):
                t.need(',')
        return ('object', members)
    if kind == 'word':
        if val in ('true', 'false', 'null'):
            t.pos += 1
            return ('lit', {'true': True, 'false': False, 'null': None}[val])
        if val in ('cast', 'try_cast') and t.peek(1) == ('op', '('):
            t.pos += 2
            e = expr(t)
            t.need('as')
            ty = parse_type(t)
            t.need(')')
            return ('cast' if val == 'cast' else 'trycast', e, ty)
        if val == 'case':
            t.pos += 1
            subject = None if t.at('when') else expr(t)
            arms = []
            while t.take('when'):
                c = expr(t)
                t.need('then')
                arms.append((c, expr(t)))
            other = expr(t) if t.take('else') else ('lit', None)
            t.need('end')
            return ('case', subject, arms, other)
        if val == 'exists' and t.peek(1) == ('op', '('):
            t.pos += 2
            e = ('exists', select(t))
            t.need(')')
            return e
        if val == 'extract' and t.peek(1) == ('op', '('):
            t.pos += 2
            field = t.next()[1]
            t.need('from')
            e = ('call', 'extract', [('lit', field), expr(t)], False)
            t.need(')')
            return e
        if val in ('current_timestamp', 'current_user', 'current_schema', 'session_user',
                   'user') and t.peek(1) != ('op', '('):
            t.pos += 1
            return ('call', val, [], False)
    if kind in ('word', 'quoted'):
        if kind == 'word' and val in RESERVED and val not in (
                'left', 'right', 'index', 'first', 'last'):
            raise t.unexpected()
        t.pos += 1
        if kind == 'word' and t.take('('):
            if t.take('*'):
                t.need(')')
                return ('call', val, ['*'], False)
            distinct = t.take('distinct')
            return ('call', val, expr_list(t, ')'), distinct)
        parts = [val]
        while t.at('.') and t.peek(1)[0] in ('word', 'quoted'):
            t.pos += 1
            parts.append(t.next()[1])
        if t.at('.', '('):
            raise t.unexpected()
        if kind == 'word' and len(parts) == 2 and t.take('('):      # pg_catalog.f(
            return ('call', parts[1], expr_list(t, ')'), False)
        return ('col', tuple(parts))
    raise t.unexpected()


def expr_list(t, end):
    items = []
    if t.take(end):
        return items
    while True:
        items.append(expr(t))
        if t.take(end):
            return items
        t.need(',')


# --------------------------------------------------------------------------
# statements

def table_name(t):
    first = t.name()
    if t.take('.'):
        return (first, t.name())
    return (None, first)


def select_items(t):
    items = []
    while True:
        if t.take('*'):
            items.append((('star', None), None))
        elif t.peek()[0] in ('word', 'quoted') and t.peek(1) == ('op', '.') and \
                t.peek(2) == ('op', '*'):
            items.append((('star', t.next()[1]), None))
            t.pos += 2
        else:
            start = t.pos
            e = expr(t)
            toks = t.toks[start:t.pos]
            if t.take('as'):
                label = t.next()[1]
            elif t.peek()[0] == 'quoted' or (
                    t.peek()[0] == 'word' and t.peek()[1] not in RESERVED):
                label = t.next()[1]
            else:
                label = None
            items.append((e, label or default_label(e, toks)))
        if not t.take(','):
            return items


def default_label(e, toks):
    if e[0] == 'col':
        return e[1][-1]
    if e[0] == 'call' and e[1] not in ('extract',):
        return e[1]
    if e[0] == 'sub':
        return '%s[%s]' % (default_label(e[1], toks),
                           "'%s'" % e[2][1] if isinstance(e[2][1], str) else e[2][1])
    if e[0] == 'lit':
        v = e[1]
        if v is None:
            return 'NULL'
        if isinstance(v, bool):
            return 'true' if v else 'false'
        return "'%s'" % v if isinstance(v, str) else str(v)
    if e[0] == 'param':
        return '$%d' % e[1]
    if e[0] == 'arith':
        return '(%s %s %s)' % (default_label(e[2], ()), e[1], default_label(e[3], ()))
    if e[0] == 'cast':
        return default_label(e[1], ())
    if e[0] == 'array':
        return '[%s]' % ', '.join(default_label(x, ()) for x in e[1])
    return ' '.join(str(v) for _, v in toks)


def from_item(t):
    if t.take('('):
        if not t.at('select'):
            inner = from_list(t)
            t.need(')')
            return inner
        q = select(t)
        t.need(')')
        t.take('as')
        return ('derived', q, t.name())
    if t.at('unnest', '('):
        t.pos += 2
        args = expr_list(t, ')')
        alias, cols = 'unnest', None
        if t.take('as') or t.peek()[0] == 'quoted' or (
                t.peek()[0] == 'word' and t.peek()[1] not in RESERVED):
            alias = t.name()
            if t.take('('):
                cols = [t.name()]
                while t.take(','):
                    cols.append(t.name())
                t.need(')')
        return ('unnest', args, alias, cols)
    name = table_name(t)
    alias = name[1]
    if t.take('as'):
        alias = t.name()
    elif t.peek()[0] == 'quoted' or (t.peek()[0] == 'word' and t.peek()[1] not in RESERVED):
        alias = t.name()
    return ('table', name, alias)


def from_list(t):
    left = from_item(t)
    while True:
        if t.take(',') or t.take('cross', 'join'):
            left = ('join', 'inner', left, from_item(t), None)
            continue
        how = None
        if t.take('left'):
            t.take('outer')
            how = 'left'
            t.need('join')
        elif t.take('inner'):
            how = 'inner'
            t.need('join')
        elif t.take('join'):
            how = 'inner'
        if how is None:
            return left
        right = from_item(t)
        if t.take('on'):
            left = ('join', how, left, right, expr(t))
        else:
            t.need('using', '(')
            cols = [t.name()]
            while t.take(','):
                cols.append(t.name())
            t.need(')')
            left = ('join', how, left, right, ('using', cols))


def select(t):
    t.need('select')
    q = {'distinct': t.take('distinct'), 'from': None, 'where': None, 'group': None,
         'having': None, 'order': [], 'limit': None, 'offset': None}
    t.take('all')
    q['items'] = select_items(t)
    if t.take('from'):
        q['from'] = from_list(t)
    if t.take('where'):
        q['where'] = expr(t)
    if t.take('group', 'by'):
        q['group'] = [expr(t)]
        while t.take(','):
            q['group'].append(expr(t))
    if t.take('having'):
        q['having'] = expr(t)
    if t.take('order', 'by'):
        while True:
            e = expr(t)
            desc = t.take('desc')
            if not desc:
                t.take('asc')
            first = desc                # NULLs sort as the largest
            if t.take('nulls'):
                first = t.next()[1] == 'first'
            q['order'].append((e, desc, first))
            if not t.take(','):
                break
    while True:
        if t.take('limit'):
            q['limit'] = None if t.take('all') else expr(t)
        elif t.take('offset'):
            q['offset'] = expr(t)
        else:
            break
    if t.at('union') or t.at('intersect') or t.at('except') or t.at('window'):
        raise t.unexpected()
    return q


def assignments(t):
    sets = []
    while True:
        kind, col = t.next()
        if kind not in ('word', 'quoted') or (kind == 'word' and col in RESERVED):
            t.pos -= 1
            raise t.unexpected('a column')
        t.need('=')
        sets.append((col, expr(t)))
        if not t.take(','):
            return sets


def returning(t):
    return select_items(t) if t.take('returning') else None


def insert(t):
    t.need('insert', 'into')
    name = table_name(t)
    cols = None
    if t.at('(') and not t.at('(', 'select'):
        t.pos += 1
        cols = [t.name()]
        while t.take(','):
            cols.append(t.name())
        t.need(')')
    if t.take('values'):
        rows = []
        while True:
            t.need('(')
            rows.append(expr_list(t, ')'))
            if not t.take(','):
                break
        source = ('values', rows)
    else:
        paren = t.take('(')
        source = ('select', select(t))
        if paren:
            t.need(')')
    conflict = None
    if t.take('on', 'conflict'):
        keys = None
        if t.take('('):
            keys = [t.name()]
            while t.take(','):
                keys.append(t.name())
            t.need(')')
        t.need('do')
        if t.take('nothing'):
            conflict = ('nothing', keys, [])
        else:
            t.need('update', 'set')
            if keys is None:
                raise t.unexpected()
            conflict = ('update', keys, assignments(t))
    return ('insert', name, cols, source, conflict, returning(t))


def with_options(t):
    opts = {}
    if t.take('with') or t.at('('):
        t.need('(')
        while True:
            key = t.next()[1]
            while t.take('.'):
                key += '.' + t.next()[1]
            t.need('=')
            opts[key] = expr(t)
            if not t.take(','):
                break
        t.need(')')
    return opts


def column_def(t):
    name = t.name()
    col = {'name': name, 'type': parse_type(t), 'pk': False, 'index': True, 'notnull': False,
           'columnstore': True, 'default': None}
    while True:
        if t.take('primary', 'key'):
            col['pk'] = True
        elif t.take('not', 'null'):
            col['notnull'] = True
        elif t.take('null'):
            pass
        elif t.take('index', 'off'):
            col['index'] = False
        elif t.take('index', 'using'):
            t.next()
            with_options(t)
        elif t.take('storage'):
            opts = with_options(t)
            if 'columnstore' in opts:
                col['columnstore'] = opts['columnstore'] in (('lit', True), ('lit', 'true'))
        elif t.take('default'):
            col['default'] = expr(t)
        else:
            return col


def create_table(t):
    t.need('create', 'table')
    maybe = t.take('if', 'not', 'exists')
    d = {'name': table_name(t), 'maybe': maybe, 'cols': [], 'pk': None, 'clustered': None,
         'shards': None, 'partitioned': None}
    t.need('(')
    while True:
        named = t.at('constraint')
        if named:
            t.pos += 1
            t.name()
        if t.take('primary', 'key'):
            t.need('(')
            d['pk'] = [t.name()]
            while t.take(','):
                d['pk'].append(t.name())
            t.need(')')
        else:
            d['cols'].append(column_def(t))
        if not t.take(','):
            break
    t.need(')')
    while True:
        if t.take('clustered'):
            if t.take('by'):
                t.need('(')
                d['clustered'] = t.name()
                t.need(')')
            if t.take('into'):
                d['shards'] = expr_primary(t)
                t.need('shards')
        elif t.take('partitioned', 'by'):
            t.need('(')
            d['partitioned'] = [t.name()]
            while t.take(','):
                d['partitioned'].append(t.name())
            t.need(')')
        else:
            break
    d['with'] = with_options(t)
    return ('create_table', d)


def alter(t):
    t.need('alter')
    if t.take('cluster'):
        t.need('swap', 'table')
        a = table_name(t)
        t.need('to')
        b = table_name(t)
        return ('swap', a, b, with_options(t))
    t.need('table')
    name = table_name(t)
    if t.take('add'):
        cols = []
        while True:
            t.take('column')
            cols.append(column_def(t))
            if not t.take(','):
                break
            t.take('add')
        return ('add_column', name, cols)
    if t.take('drop'):
        t.take('column')
        maybe = t.take('if', 'exists')
        return ('drop_column', name, t.name(), maybe)
    if t.take('rename'):
        if t.take('to'):
            return ('rename_table', name, t.name())
        t.take('column')
        old = t.name()
        t.need('to')
        return ('rename_column', name, old, t.name())
    if t.take('set'):
        return ('table_options', name, with_options(t))
    if t.take('reset'):
        options = {}
        t.need('(')
        while not t.take(')'):
            option = t.next()[1]
            if option.startswith('blocks.'):
                options[option] = ('lit', False)
        return ('table_options', name, options)
    raise t.unexpected()


def parse(text):
    """-> (node, number of parameters)"""
    t = Tokens(text)
    kind, word = t.peek()
    if kind == 'op' and word == '(':
        word = 'select'
    if word == 'select':
        paren = t.take('(')
        node = ('select', select(t))
        if paren:
            t.need(')')
    elif word == 'insert':
        node = insert(t)
    elif word == 'delete':
        t.need('delete', 'from')
        name = table_name(t)
        node = ('delete', name, expr(t) if t.take('where') else None)
    elif word == 'update':
        t.need('update')
        name = table_name(t)
        t.need('set')
        sets = assignments(t)
        where = expr(t) if t.take('where') else None
        node = ('update', name, sets, where, returning(t))
    elif word == 'create':
        if not t.at('create', 'table'):
            raise t.unexpected()
        node = create_table(t)
    elif word == 'alter':
        node = alter(t)
    elif word == 'drop':
        t.need('drop', 'table')
        maybe = t.take('if', 'exists')
        node = ('drop_table', table_name(t), maybe)
    elif word in ('refresh', 'optimize'):
        t.next()
        t.need('table')
        names = [table_name(t)]
        while t.take(','):
            names.append(table_name(t))
        node = (word, names)
    elif word == 'set':
        t.next()
        glob = t.take('global')
        t.take('session') or t.take('local')
        key = t.next()[1]
        while t.take('.'):
            key += '.' + t.next()[1]
        if not t.take('='):
            t.need('to')
        k, v = t.next()
        if k == 'param':
            raise t.unexpected()
        while t.take(','):
            t.next()
        node = ('set', key, v, glob)
    elif word == 'reset':
        t.next()
        t.take('global')
        node = ('set', t.next()[1], None, False)
    elif word == 'show':
        t.next()
        if t.take('create', 'table'):
            node = ('show_create', table_name(t))
        else:
            node = ('show', t.next()[1])
    elif word == 'kill':
        t.next()
        node = ('kill', 'all' if t.take('all') else expr(t))
    elif word in ('analyze', 'grant', 'revoke', 'deny', 'begin', 'commit', 'discard'):
        t.pos = len(t.toks) - 1
        node = ('accept',)
    else:
        raise t.unexpected()
    t.done()
    return node, t.nparams
