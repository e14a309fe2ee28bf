#!/usr/bin/env python3
"""A stand-in for CrateDB: its HTTP endpoint over tables in memory, which can be told to fail.

    cratedb.py [--port P] [--listeners N] [--control-port P] [--ports-file F]
               [--tls CERT KEY] [--version V] [--user NAME PASSWORD]

Ports that are not given are chosen by the system; --ports-file gets a JSON object
{"ports": [...], "control": p} once all listen.  Every listener is a front to the same
tables, like the nodes of one cluster.

The control port takes POST / with a JSON object; every key is optional:

    reset: true             forget faults, log and held requests; tables stay
    wipe: true              forget the tables
    save: true              remembers the tables as they are; restore: true brings them back
    missing_shards: {"s.t": 2}    what sys.health says of a table from now on
    faults: [...]           replaces the faults; add_faults: [...] appends
    release: true           lets held requests go on
    listening: [true, ...]  opens or closes listeners and their connections
    version: "5.10.10"      answers as that version does
    nodes: ["host:port"]    the nodes' rest_url in sys.nodes, one node each
    user: ["name", "pw"]    asks for Basic authentication; null: no more
    log: true               the answer has the log; clear_log: true empties it

and answers {"requests", "max_concurrent", "connections", "held", "faults", "log"?}.  GET / does too.

A fault holds for requests whose statement matches all it names:

    match: regex            of the statement, case ignored
    args: regex             of the arguments as JSON
    port: 0                 of that listener
    skip: 2, times: 3       after two such requests, for three; times -1 (default 1): all

and does one or more of:

    status, body, headers   that answer, the statement is not carried out
    html, redirect, garbage, wrong_json, not_crate, endless, endless_header: true    the like
    gzip: true              carried out, and answered compressed, though nobody asked for that
    cut: "before" | "middle" | "after"   closes the connection: nothing done; in the middle of
                            the answer; without an answer.  Done in the last two
    delay: 2.5              seconds before the answer, though carried out
    delay_before: 2.5       seconds before it is carried out
    hold: "before" | "fenced"    until released: before anything; once the fence was read.
                            It is then carried out whether or not anybody waits
    drop: [0, 7]            rows of an INSERT ... SELECT that vanish
    refuse: "value"         rows with a cell whose text is that fail, at the shard
    refuse_code, refuse_message     with these words
    error: [code, message, status]  CrateDB's error in its own form
    early: [code, message, status]  the same at once, and carried out when it is released
"""

import argparse
import base64
import copy
import gzip
import hmac
import json
import os
import re
import socket
import ssl
import sys
import threading
import time
import zlib

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True

from engine import Engine, Hooks, Session       # noqa: E402
from sql import SqlError, refuse                # noqa: E402
from values import to_json                      # noqa: E402

MAX_BODY = 100 * 1024 * 1024
MAX_STRING = 20_000_000
EFFECTS = {'status', 'body', 'headers', 'html', 'redirect', 'garbage', 'wrong_json', 'not_crate',
           'endless', 'endless_header', 'gzip', 'cut', 'delay', 'delay_before', 'hold', 'drop', 'refuse', 'refuse_code',
           'refuse_message', 'error', 'early'}
CONDITIONS = {'match', 'args', 'port', 'skip', 'times'}

HTML = ('<!DOCTYPE html><html><head><title>Welcome</title></head><body><h1>Please sign in to the '
        'network</h1></body></html>')


class Closed(Exception):
    """the peer has gone"""


class Standin:
    def __init__(self, options):
        self.options = options
        self.engine = Engine(options.version)
        self.user = tuple(options.user) if options.user else None
        self.mutex = threading.Condition()
        self.faults = []
        self.log = []
        self.requests = 0
        self.running = 0
        self.max_concurrent = 0
        self.connections = set()        # that sent a statement
        self.held = 0
        self.release = 0
        self.sessions = 0
        self.listeners = [Listener(self, i, options.port + i if options.port else 0)
                          for i in range(options.listeners)]

    # faults -----------------------------------------------------------------

    def pick(self, stmt, args, port):
        """the faults that hold for this request, merged"""
        effects = {}
        with self.mutex:
            for f in self.faults:
                if f['times'] == 0 or ('port' in f and f['port'] != port):
                    continue
                if 'match' in f and not re.search(f['match'], stmt, re.I | re.S):
                    continue
                if 'args' in f and not re.search(f['args'], json.dumps(args, ensure_ascii=False)):
                    continue
                if f['skip'] > 0:
                    f['skip'] -= 1
                    continue
                if f['times'] > 0:
                    f['times'] -= 1
                f['hits'] += 1
                effects.update({k: v for k, v in f.items() if k in EFFECTS})
        return effects

    def wait_release(self):
        with self.mutex:
            self.held += 1
            mark = self.release
            self.mutex.notify_all()
            while self.release == mark:
                self.mutex.wait()
            self.held -= 1

    # control ----------------------------------------------------------------

    def control(self, msg):
        unknown = set(msg) - {'reset', 'wipe', 'save', 'restore', 'missing_shards', 'faults', 'add_faults', 'release', 'listening',
                              'version', 'user', 'nodes', 'log', 'clear_log'}
        if unknown:
            raise ValueError('unknown: %s' % ', '.join(sorted(unknown)))
        with self.mutex:
            if msg.get('reset'):
                self.faults = []
                self.forget_log()
            if msg.get('clear_log'):
                self.forget_log()
            if 'faults' in msg:
                self.faults = []
            for f in msg.get('faults', []) + msg.get('add_faults', []):
                wrong = set(f) - EFFECTS - CONDITIONS
                if wrong:
                    raise ValueError('a fault has no %s' % ', '.join(sorted(wrong)))
                self.faults.append(dict(f, times=f.get('times', 1), skip=f.get('skip', 0), hits=0))
            if msg.get('release') or msg.get('reset'):
                self.release += 1
                self.mutex.notify_all()
            if 'user' in msg:
                self.user = tuple(msg['user']) if msg['user'] else None
        if 'version' in msg:
            self.engine.set_version(msg['version'])
        if 'nodes' in msg:
            self.engine.rest_urls = msg['nodes']
        with self.engine.lock:
            if msg.get('save'):
                self.saved = copy.deepcopy(self.engine.tables)
            if msg.get('wipe'):
                self.engine.tables.clear()
            if msg.get('restore'):
                self.engine.tables = copy.deepcopy(self.saved)
            if 'missing_shards' in msg:
                self.engine.missing_shards = msg['missing_shards']
        for listener, on in zip(self.listeners, msg.get('listening', [])):
            if on:
                listener.open()
            else:
                listener.close()
        with self.mutex:
            res = {'requests': self.requests, 'max_concurrent': self.max_concurrent,
                   'connections': len(self.connections), 'held': self.held,
                   'running': self.running, 'faults': self.faults}
            if msg.get('log'):
                res['log'] = self.log
            return res

    def forget_log(self):
        self.log = []
        self.requests = self.max_concurrent = 0
        self.connections = set()


class Listener:
    """one port, its connections and their threads"""

    def __init__(self, standin, index, port):
        self.standin = standin
        self.index = index
        self.port = port
        self.sock = None
        self.conns = set()
        self.lock = threading.Lock()
        self.context = None
        if standin.options.tls:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*standin.options.tls)
        self.open()

    def open(self):
        if self.sock is not None:
            return
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(('127.0.0.1', self.port))
        self.port = sock.getsockname()[1]
        sock.listen(128)
        self.sock = sock
        threading.Thread(target=self.accept, args=(sock,), daemon=True).start()

    def close(self):
        sock, self.sock = self.sock, None
        if sock is None:
            return
        try:
            sock.shutdown(socket.SHUT_RDWR)     # wakes accept()
        except OSError:
            pass
        sock.close()
        with self.lock:
            conns, self.conns = self.conns, set()
        for c in conns:
            try:
                c.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept(self, sock):
        while True:
            try:
                conn, _ = sock.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(conn,), daemon=True).start()

    def serve(self, conn):
        try:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context:
                conn.settimeout(30)
                conn = self.context.wrap_socket(conn, server_side=True)
                conn.settimeout(None)
            with self.lock:
                self.conns.add(conn)
            Connection(self.standin, self, conn).run()
        except (Closed, OSError):
            pass
        finally:
            with self.lock:
                self.conns.discard(conn)
            try:
                conn.close()
            except OSError:
                pass


class Connection:
    """HTTP/1.1 on one socket: one request at a time, kept alive"""

    def __init__(self, standin, listener, conn):
        self.standin = standin
        self.listener = listener
        self.conn = conn
        self.buf = b''
        with standin.mutex:
            standin.sessions += 1
            self.session = Session(standin.sessions)

    # reading ------------------------------------------------------------------

    def fill(self):
        data = self.conn.recv(1 << 18)
        if not data:
            raise Closed
        return data

    def line(self):
        while b'\r\n' not in self.buf:
            if len(self.buf) > 65536:
                raise Closed
            self.buf += self.fill()
        line, self.buf = self.buf.split(b'\r\n', 1)
        return line.decode('latin-1')

    def exactly(self, n):
        parts, have = [self.buf], len(self.buf)
        while have < n:
            parts.append(self.fill())
            have += len(parts[-1])
        data = b''.join(parts)
        self.buf = data[n:]
        return data[:n]

    def request(self):
        first = self.line()
        method, path, _ = (first.split(' ') + ['', ''])[:3]
        headers = {}
        while True:
            line = self.line()
            if not line:
                break
            k, _, v = line.partition(':')
            headers[k.strip().lower()] = v.strip()
        if headers.get('expect', '').lower() == '100-continue':
            self.conn.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        if headers.get('transfer-encoding', '').lower() == 'chunked':
            body = []
            while True:
                n = int(self.line().split(';')[0], 16)
                if n:
                    body.append(self.exactly(n))
                self.line()
                if n == 0:
                    break
            body = b''.join(body)
        else:
            n = int(headers.get('content-length', 0))
            if n > MAX_BODY:
                self.answer(413, b'', close=True)
                raise Closed
            body = self.exactly(n)
        if headers.get('content-encoding', '') in ('gzip', 'deflate'):
            body = gzip.decompress(body) if headers['content-encoding'] == 'gzip' \
                else zlib.decompress(body)
        if len(body) > MAX_BODY:
            self.answer(413, b'', close=True)
            raise Closed
        return method, path, headers, body

    # writing ------------------------------------------------------------------

    REASONS = {200: 'OK', 301: 'Moved Permanently', 302: 'Found', 307: 'Temporary Redirect',
               308: 'Permanent Redirect', 400: 'Bad Request', 401: 'Unauthorized', 403: 'Forbidden',
               404: 'Not Found', 409: 'Conflict', 413: 'Request Entity Too Large',
               429: 'Too Many Requests', 500: 'Internal Server Error', 502: 'Bad Gateway',
               503: 'Service Unavailable', 504: 'Gateway Timeout'}

    def head(self, status, length, kind='application/json; charset=UTF-8', extra=None, close=False):
        lines = ['HTTP/1.1 %d %s' % (status, self.REASONS.get(status, 'Something')),
                 'content-type: ' + kind, 'content-length: %d' % length]
        if close:
            lines.append('connection: close')
        lines += ['%s: %s' % (k, v) for k, v in (extra or {}).items()]
        return ('\r\n'.join(lines) + '\r\n\r\n').encode('latin-1')

    def answer(self, status, body, **kw):
        self.conn.sendall(self.head(status, len(body), **kw) + body)
        if kw.get('close'):
            raise Closed

    def error(self, e):
        body = to_json({'error': {'message': e.text(), 'code': abs(e.code)}})
        return e.status, body.encode('utf-8', 'surrogatepass')

    # one request after the other --------------------------------------------------

    def run(self):
        while True:
            method, path, headers, body = self.request()
            if not self.authorized(headers):
                continue
            where = path.split('?')[0]
            if where == '/_sql' and method in ('POST', 'GET'):
                self.sql(headers, body)
            elif where == '/' and method in ('GET', 'HEAD'):
                self.info()
            else:
                self.answer(403, ('%s method is not allowed for [%s]' % (method, path)).encode(),
                            kind='text/plain; charset=UTF-8')

    def authorized(self, headers):
        want = self.standin.user
        if want is None:
            self.session.user = 'crate'
            return True
        got = headers.get('authorization', '')
        user, password = '', ''
        if got.lower().startswith('basic '):
            try:
                user, _, password = base64.b64decode(got[6:]).decode().partition(':')
            except ValueError:
                pass
        if user == want[0] and hmac.compare_digest(password.encode(), want[1].encode()):
            self.session.user = user
            return True
        with self.standin.mutex:
            self.standin.log.append({'status': 401, 'stmt': None, 'connection': self.session.number,
                                     'user': user})
        self.answer(401, b'password authentication failed for user "%s"\n' % user.encode(),
                    kind='text/plain; charset=UTF-8',
                    extra={'www-authenticate': 'Basic realm="CrateDB Authenticator"'})
        return False

    def info(self):
        faults = self.standin.pick('GET /', None, self.listener.index)
        if self.spoil(faults):
            return
        body = {'ok': True, 'status': 200, 'name': 'standin', 'cluster_name': 'crate',
                'version': {'number': self.standin.engine.version, 'build_hash': 'stand-in',
                            'build_timestamp': 'NA', 'build_snapshot': False,
                            'lucene_version': '10.4.0'}}
        self.answer(200, json.dumps(body, indent=2).encode() + b'\n', kind='application/json')

    def sql(self, headers, body):
        s = self.standin
        entry = {'n': None, 'connection': self.session.number, 'port': self.listener.index,
                 'start': time.time(), 'bytes': len(body)}
        with s.mutex:
            s.requests += 1
            entry['n'] = s.requests
            s.running += 1
            s.max_concurrent = max(s.max_concurrent, s.running)
            s.connections.add(self.session.number)
            s.log.append(entry)
            if len(s.log) > 20000:
                del s.log[:10000]
        try:
            self.sql_logged(headers, body, entry)
        finally:
            with s.mutex:
                s.running -= 1
            entry['end'] = time.time()

    def sql_logged(self, headers, body, entry):
        s = self.standin
        try:
            msg = self.parse_body(body)
        except SqlError as e:
            entry['status'] = e.status
            self.answer(*self.error(e))
            return
        stmt, args, bulk = msg
        entry['stmt'] = stmt[:2000]
        entry['rows'] = len(bulk) if bulk is not None else max(
            [len(a) for a in args or [] if isinstance(a, list)] or [0])
        faults = s.pick(stmt, bulk if bulk is not None else args, self.listener.index)
        if faults:
            entry['faults'] = sorted(faults)
        if 'delay_before' in faults:
            time.sleep(faults['delay_before'])
        if faults.get('hold') == 'before':
            s.wait_release()
        if 'early' in faults:
            # as where one shard fails and another one's part waits
            def later(session=Session(0)):
                s.wait_release()
                try:
                    s.engine.execute(stmt, args, bulk, session, FaultHooks(s, {}))
                except SqlError:
                    pass
            threading.Thread(target=later, daemon=True).start()
            code, message, status = (faults['early'] + [None])[:3]
            name, _, rest = message.rstrip(']').partition('[')
            self.answer(*self.error(SqlError(name, rest, code, status)))
            entry['status'] = status
            return
        if faults.get('cut') == 'before':
            entry['status'] = 'cut'
            raise Closed
        status = self.spoil(faults)
        if status:
            entry['status'] = status
            return
        start = time.time()
        try:
            if 'error' in faults:
                code, message, status = (faults['error'] + [None])[:3]
                name, _, rest = message.rstrip(']').partition('[')
                raise SqlError(name, rest, code, status)
            res = s.engine.execute(stmt, args, bulk, self.session, FaultHooks(s, faults))
            out = {'cols': res.cols}
            if res.results is None:
                out.update(rows=[[]] if res.rows is None else res.rows, rowcount=res.rowcount)
            out['duration'] = round((time.time() - start) * 1000, 6)
            if res.results is not None:
                out['results'] = res.results
            status, data = 200, to_json(out).encode('utf-8', 'surrogatepass')
            entry['rowcount'] = res.rowcount
        except SqlError as e:
            status, data = self.error(e)
        except RecursionError:
            status, data = self.error(SqlError('StackOverflowError', 'too deep', 5000))
        except Exception as e:                  # as CrateDB does with its own
            import traceback
            traceback.print_exc()
            status, data = self.error(SqlError(type(e).__name__, str(e), 5000))
        entry['status'] = status
        if status != 200:
            entry['error'] = data.decode('utf-8', 'replace')[:300]
        entry['done'] = True
        if 'delay' in faults:
            time.sleep(faults['delay'])
        if faults.get('cut') == 'after':
            raise Closed
        if faults.get('cut') == 'middle':
            self.conn.sendall(self.head(status, len(data)) + data[:len(data) // 2])
            raise Closed
        if faults.get('gzip'):
            self.answer(status, gzip.compress(data), extra={'content-encoding': 'gzip'})
            return
        self.answer(status, data)

    def parse_body(self, body):
        if not body:
            raise refuse('Missing request body')

        def no_doubles(pairs):
            d = dict(pairs)
            if len(d) != len(pairs):
                raise ValueError('Duplicate field')
            return d
        wrong = refuse("Can't parse [%s]. Expecting payload with `stmt` string and `args` or "
                       '`bulk_args` arrays' % body[:200].decode('utf-8', 'replace'))
        try:
            msg = json.loads(body, object_pairs_hook=no_doubles, parse_constant=lambda c: 1 / 0)
        except (ValueError, ZeroDivisionError, RecursionError):
            raise wrong from None
        missing = SqlError('SQLParseSourceException', 'Field [stmt] is missing', 5000)
        if not isinstance(msg, dict):
            raise missing
        if set(msg) - {'stmt', 'args', 'bulk_args'}:
            raise wrong
        if 'stmt' not in msg:
            raise missing
        stmt, args, bulk = msg['stmt'], msg.get('args'), msg.get('bulk_args')
        if not isinstance(stmt, str):
            raise missing
        for name in ('args', 'bulk_args'):
            if not isinstance(msg.get(name) or [], list) or isinstance(msg.get(name), dict):
                raise SqlError('SQLParseSourceException', 'Field [%s] has an invalid value' % name,
                               5000)
        if len(body) > MAX_STRING and b'"' in body:
            if any(isinstance(x, str) and len(x) > MAX_STRING
                   for a in args or [] for x in (a if isinstance(a, list) else [a])):
                raise wrong
        if args and bulk:
            raise refuse("request body contains args and bulk_args. It's forbidden to provide both")
        return stmt, args, bulk or (None if args is not None else bulk)

    def spoil(self, faults):
        """answers of no CrateDB; the statement is not carried out.  True if one was given"""
        if 'status' in faults:
            body = faults.get('body', '')
            if not isinstance(body, str):
                body = json.dumps(body)
            self.answer(faults['status'], body.encode(), extra=faults.get('headers'))
            return faults['status']
        if faults.get('html'):
            self.answer(200, HTML.encode(), kind='text/html')
            return 'html'
        if faults.get('redirect'):
            to = faults['redirect']
            self.answer(302, b'', extra={'location': to if isinstance(to, str) else
                                         'http://127.0.0.1:9/_sql'})
            return 'redirect'
        if faults.get('wrong_json'):
            text = faults['wrong_json']
            self.answer(200, text.encode() if isinstance(text, str) else b'{"cols":[],"rows":[[')
            return 'wrong_json'
        if faults.get('not_crate'):
            self.answer(200, b'{"name":"something else","version":{"number":"8.1.0","distribution":'
                        b'"opensearch"},"tagline":"hello"}')
            return 'not_crate'
        if faults.get('garbage'):
            self.conn.sendall(os.urandom(4096).replace(b'\n', b'x'))
            raise Closed
        if faults.get('endless_header'):
            self.conn.sendall(b'HTTP/1.1 200 OK\r\n')
            while True:
                self.conn.sendall(b'x-more: ' + b'x' * 8000 + b'\r\n')
        if faults.get('endless'):
            self.conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n'
                              b'transfer-encoding: chunked\r\n\r\n')
            chunk = b'10000\r\n' + b' ' * 65536 + b'\r\n'
            while True:
                self.conn.sendall(chunk)
        return None


class FaultHooks(Hooks):
    def __init__(self, standin, faults):
        self.standin = standin
        self.hold = faults.get('hold') == 'fenced'
        self.drop = set(faults.get('drop', ()))
        self.refuse = faults.get('refuse')
        self.code = faults.get('refuse_code', 4000)
        self.message = faults.get('refuse_message', 'SQLParseException[refused for the test]')

    def between(self, engine, node):
        if self.hold and node[0] == 'insert':
            self.hold = False
            engine.lock.release()
            try:
                self.standin.wait_release()
            finally:
                engine.lock.acquire()

    def row(self, n, row):
        if n in self.drop:
            raise SqlError('SQLParseException', 'dropped for the test', -1)
        if self.refuse is not None and any(
                x is not None and (x if isinstance(x, str) else to_json(x)) == self.refuse
                for x in row):
            name, _, rest = self.message.rstrip(']').partition('[')
            raise SqlError(name, rest, self.code)


def serve_control(standin, port):
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def reply(self, status, obj):
            data = json.dumps(obj).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(200, standin.control({'log': 'log' in self.path}))

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
            try:
                self.reply(200, standin.control(json.loads(body or b'{}')))
            except (ValueError, TypeError, AttributeError, re.error) as e:
                self.reply(400, {'error': str(e)})

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def main():
    p = argparse.ArgumentParser(description='a stand-in for CrateDB')
    p.add_argument('--port', type=int, default=0)
    p.add_argument('--listeners', type=int, default=1)
    p.add_argument('--control-port', type=int, default=0)
    p.add_argument('--ports-file')
    p.add_argument('--tls', nargs=2, metavar=('CERT', 'KEY'))
    p.add_argument('--version', default='6.4.3')
    p.add_argument('--user', nargs=2, metavar=('NAME', 'PASSWORD'))
    options = p.parse_args()
    sys.setswitchinterval(0.001)
    threading.stack_size(16 << 20)
    standin = Standin(options)
    ports = {'ports': [x.port for x in standin.listeners],
             'control': serve_control(standin, options.control_port)}
    if options.ports_file:
        with open(options.ports_file + '.new', 'w') as f:
            json.dump(ports, f)
        os.rename(options.ports_file + '.new', options.ports_file)
    else:
        print(json.dumps(ports), flush=True)
    parent = os.getppid()
    try:
        while os.getppid() == parent:       # whoever started this is gone: so is its test
            time.sleep(1)
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
