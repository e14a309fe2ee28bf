"""A proxy in front of an HTTP target that can spoil what goes through it.

Requests and answers are read whole, one at a time per connection, as the
extension sends them, so that a fault may strike before the target hears of a
request, after it carried it out, or in the middle of the answer.
"""

import random
import socket
import struct
import threading
import time

HTML = (b"<!DOCTYPE html><html><head><title>Sign in</title></head>"
        b"<body><h1>Please sign in to the network</h1></body></html>")

# what may be done to a request; "pass" is left out
MODES = ("refuse", "cut_before", "cut_middle", "cut_after", "late_answer", "late_request", "garbage",
         "html", "redirect", "endless", "busy", "unavailable", "error500", "blackhole")


class Gone(Exception):
    """One of the two ends closed its connection."""


def reset(sock):
    """Closes with RST, so that what is in flight is lost."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    except OSError:
        pass


class Reader:
    def __init__(self, sock):
        self.sock = sock
        self.buf = b""

    def more(self):
        data = self.sock.recv(65536)
        if not data:
            raise Gone()
        self.buf += data

    def until(self, mark):
        while mark not in self.buf:
            self.more()
        i = self.buf.index(mark) + len(mark)
        out, self.buf = self.buf[:i], self.buf[i:]
        return out

    def exactly(self, n):
        while len(self.buf) < n:
            self.more()
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    def message(self, on_continue=None):
        """A request or an answer as the bytes it came in."""
        head = self.until(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        if fields.get(b"expect") == b"100-continue" and on_continue:
            on_continue()
        if fields.get(b"transfer-encoding") == b"chunked":
            body = b""
            while True:
                size = self.until(b"\r\n")
                body += size
                n = int(size.split(b";")[0], 16)
                body += self.exactly(n + 2)
                if n == 0:
                    return head + body
        return head + self.exactly(int(fields.get(b"content-length", b"0")))


class Proxy:
    def __init__(self, rng):
        self.upstream = None            # (host, port)
        self.rng = rng
        self.mode = "pass"
        self.share = 1.0                # of the requests that it strikes
        self.delay = 3.0
        self.hits = 0
        self.slow_until = 0
        self.kept = None                # (text, seconds): the next request with it is late
        self.lock = threading.Lock()
        self.open = set()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(50)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def set(self, mode, share=1.0, delay=3.0):
        with self.lock:
            self.mode, self.share, self.delay = mode, share, delay
            if mode == "refuse":
                for s in list(self.open):
                    reset(s)

    def slow(self, seconds):
        """Requests take longer for a while, and less than who asks would wait."""
        self.slow_until = time.time() + seconds

    def keep(self, text, seconds):
        """The next request that has the text arrives later, whoever still waits for it."""
        self.kept = (text.encode(), seconds)

    def dawdle(self, request):
        with self.lock:
            kept = self.kept
            if kept is not None and kept[0] in request:
                self.kept = None
                self.hits += 1
            else:
                kept = None
        if kept is not None:
            time.sleep(kept[1])
        elif time.time() < self.slow_until:
            time.sleep(min(1.4, max(0.0, self.slow_until - time.time())))

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            if self.mode == "refuse":
                reset(sock)
                continue
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def pick(self):
        with self.lock:
            if self.mode != "pass" and self.rng.random() < self.share:
                self.hits += 1
                return self.mode, self.delay
            return "pass", 0

    def serve(self, sock):
        up = None
        with self.lock:
            self.open.add(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Reader(sock)
            while True:
                request = client.message(lambda: sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"))
                mode, delay = self.pick()
                if mode in ("refuse", "cut_before"):
                    reset(sock)
                    return
                if mode == "blackhole":
                    time.sleep(delay)
                    return
                canned = self.canned(mode)
                if canned is not None and self.coin():
                    sock.sendall(canned)
                    continue
                if mode == "late_request":
                    # whoever asked has given up long ago; it is carried out all the same
                    time.sleep(delay)
                self.dawdle(request)
                if up is None:
                    up = socket.create_connection(self.upstream, timeout=5)
                    up.settimeout(120)
                    up.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    server = Reader(up)
                up.sendall(request)
                answer = server.message()
                if mode == "late_answer":
                    time.sleep(delay)
                elif mode == "cut_after":
                    reset(sock)
                    return
                elif mode == "cut_middle":
                    sock.sendall(answer[:self.number(len(answer))])
                    time.sleep(0.01)
                    sock.close()
                    return
                elif mode == "endless":
                    self.pour(sock)
                    return
                sock.sendall(canned if canned is not None else answer)
        except (Gone, OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.open.discard(sock)
            for s in (sock, up):
                if s is not None:
                    try:
                        s.close()
                    except OSError:
                        pass

    def coin(self):
        with self.lock:
            return self.rng.random() < 0.5

    def number(self, n):
        with self.lock:
            return self.rng.randrange(1, max(2, n))

    def canned(self, mode):
        def answer(status, body, kind=b"text/html", more=b""):
            return (b"HTTP/1.1 " + status + b"\r\nContent-Type: " + kind + b"\r\n" + more
                    + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        if mode == "html":
            return answer(b"200 OK", HTML)
        if mode == "garbage":
            with self.lock:
                junk = self.rng.randbytes(200)
            return answer(b"200 OK", junk, b"application/json")
        if mode == "redirect":
            return answer(b"302 Found", b"", more=b"Location: http://127.0.0.1:9/\r\n")
        if mode == "busy":
            return answer(b"429 Too Many Requests", b"")
        if mode == "unavailable":
            return answer(b"503 Service Unavailable", b"upstream connect error", b"text/plain")
        if mode == "error500":
            return answer(b"500 Internal Server Error", b"oops", b"text/plain")
        return None

    def pour(self, sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"cols\":[\"")
        until = time.time() + 20
        while time.time() < until:
            sock.sendall(b"x" * 65536)
            time.sleep(0.005)


if __name__ == "__main__":
    # a look by hand: proxy.py HOST PORT [MODE]
    import sys
    p = Proxy(random.Random(1))
    p.upstream = (sys.argv[1], int(sys.argv[2]))
    if len(sys.argv) > 3:
        p.set(sys.argv[3])
    print("http://127.0.0.1:%d" % p.port, flush=True)
    threading.Event().wait()
