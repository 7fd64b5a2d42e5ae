"""An engine in this process, driven turn by turn, and a client that sees bytes.

Between two pieces that the client sends the loop turns until the engine has read the first, so that a test decides
how bytes arrive. Nothing is patched: the engine needs gevent's loop, not gevent's modules.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import socket
import struct
import termios
import time
from types import SimpleNamespace
from typing import NamedTuple

import gevent

from reuseport.ipc import scoreboard
from reuseport.worker.engine import Engine

SETTINGS = {
    "header_timeout": 10.0,
    "body_timeout": 60.0,
    "keep_alive": 75.0,
    "send_timeout": 60.0,
    "limit_request_line": 8190,
    "limit_request_fields": 100,
    "limit_request_field_size": 8190,
    "limit_request_body": 0,
    "websocket_drain": 30.0,
    "forwarded_allow_ips": ("127.0.0.1", "::1"),
    "proxy_protocol": "off",
    "proxy_allow_ips": ("127.0.0.1", "::1"),
    "threads": 0,
    "buffer_chunked": False,
    "early_hints": "on",
    "strict_wsgi": False,
    "request_id": "off",
    "request_id_header": "X-Request-ID",
}
PATIENCE = 30.0  # seconds until a state that should come is given up


class Answer(NamedTuple):
    """A response as the client saw it. `whole`: its body ended as its head had promised."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def echo(self) -> dict:
        return json.loads(self.body)


class Harness:
    """`application` may be replaced between requests."""

    def __init__(self, application, access=None, **settings) -> None:
        self.application = application
        self.board = memoryview(bytearray(scoreboard.ROW_BYTES)).cast("Q")
        self.log: list[tuple[str, str]] = []
        self.engine = Engine(
            lambda environ, start_response: self.application(environ, start_response),
            SimpleNamespace(**{**SETTINGS, **settings}),
            generation=3,
            worker="3.1",
            board=self.board,
            log=lambda level, text: self.log.append((level, text)),
            access=access,
        )

    def connect(self, *, tcp: bool = False, data: bytes = b"") -> Client:
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = socket.create_connection(listener.getsockname())
                theirs, peer = listener.accept()
            local = theirs.getsockname()
        else:
            ours, theirs = socket.socketpair()
            peer = local = ""
        ours.setblocking(False)
        theirs.setblocking(False)
        gevent.get_hub().loop.run_callback(lambda: self.engine.adopt(theirs.detach(), peer, local, data=data))
        turn()
        return Client(ours)

    def talk(self, *pieces: bytes, tcp: bool = False, methods: tuple[str, ...] = ()) -> list[Answer]:
        """Send the pieces and the end of the stream; all answers until the server's end of the stream."""
        with self.connect(tcp=tcp) as client:
            for piece in pieces:
                client.send(piece)
            client.finish()
            return parse(client.read_all(), methods)

    def errors(self) -> list[str]:
        return [text for level, text in self.log if level != "debug"]

    def counter(self, field: int) -> int:
        return self.board[field]

    def close_connections(self) -> None:
        """Whatever they are doing."""
        for connection in list(self.engine._open):
            connection.close()

    def close(self) -> None:
        self.engine.draining = self.engine.closing = True
        self.close_connections()
        wait_for(lambda: self.engine.requests == 0)
        assert self.engine.connections == self.counter(scoreboard.CONNECTIONS) == 0
        assert self.counter(scoreboard.ACTIVE) == 0
        assert not self.engine.readers.by_fd
        self.engine.readers.close()


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        turn()

    def send(self, data: bytes) -> None:
        """All of it; nothing when the server has closed. Returns when the engine has had a turn to read it."""
        view = memoryview(data)
        deadline = time.monotonic() + PATIENCE
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                assert time.monotonic() < deadline, "the engine does not read"
                gevent.sleep(0.001)
            except (BrokenPipeError, ConnectionResetError):
                return
        self.settle()

    def settle(self) -> None:
        """Wait until the engine has read what was sent, or is not going to: it may be waiting for the application."""
        for _ in range(30):
            turn()
            if self.sock.family == socket.AF_UNIX and not unread_by_peer(self.sock):
                return

    def finish(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        turn()

    def receive(self) -> bool:
        """Read what is there; False at the end of the stream."""
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return True
        self.received += data
        return bool(data)

    def read_all(self, patience: float = PATIENCE) -> bytes:
        """Everything up to the end of the stream."""
        pieces = []

        def ended() -> bool:
            goes_on = self.receive()
            pieces.append(self.received)  # one sum at the end: a sum after each piece takes quadratic time
            self.received = b""
            return not goes_on

        try:
            wait_for(ended, patience)
        finally:
            self.received = b"".join(pieces)
        return self.received

    def read_until(self, ending: bytes) -> bytes:
        wait_for(lambda: self.receive() and ending in self.received)
        at = self.received.index(ending) + len(ending)
        head, self.received = self.received[:at], self.received[at:]
        return head


def turn() -> None:
    """Let the loop see what is readable and run what follows from it. (After a sleep of 0 it would not look.)"""
    gevent.sleep(1e-6)


def unread_by_peer(sock: socket.socket) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return count


def wait_for(condition, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    spins = 0
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        spins += 1
        gevent.sleep(1e-6 if spins < 20 else 0.002)


def parse(data: bytes, methods: tuple[str, ...] = ()) -> list[Answer]:
    """The responses in a byte stream. `methods`: those of their requests, for a HEAD's answer has no body."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        first, *lines = head.decode("latin-1").split("\r\n")
        protocol, status, *_ = first.split(" ", 2)
        assert protocol == "HTTP/1.1", first
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in headers or name.lower() == "set-cookie", line
            headers[name.lower()] = value
        final = [answer for answer in answers if answer.status >= 200]
        is_head = len(final) < len(methods) and methods[len(final)] == "HEAD"
        whole = True
        if int(status) < 200 or status in ("204", "304") or is_head:
            body = b""
        elif "transfer-encoding" in headers:
            assert headers["transfer-encoding"] == "chunked"
            body, data, whole = unchunk(data)
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, data = data[:length], data[length:]
            whole = len(body) == length
        else:
            body, data = data, b""
        answers.append(Answer(int(status), headers, body, whole))
    return answers


def unchunk(data: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while True:
        line, separator, rest = data.partition(b"\r\n")
        if not separator:
            return body, b"", False
        size = int(line, 16)
        if size == 0:
            assert rest[:2] == b"\r\n"
            return body, rest[2:], True
        if len(rest) < size + 2:
            return body + rest[:size], b"", False
        assert rest[size : size + 2] == b"\r\n"
        body, data = body + rest[:size], rest[size + 2 :]


def echo(environ, start_response):
    """What the application saw, as JSON. PATH_INFO /unread leaves the body alone."""
    body = b"" if environ["PATH_INFO"] == "/unread" else environ["wsgi.input"].read()
    seen = {key: value for key, value in environ.items() if isinstance(value, str)}
    data = json.dumps({"environ": seen, "body": body.decode("latin-1")}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
    return [data]


def open_fds() -> int:
    gc.collect()  # a cycle of an earlier test may hold a socket
    return counted_fds()


def counted_fds() -> int:
    """As open_fds, without the collection, which takes 50 ms: for what is asked hundreds of times."""
    return len(os.listdir("/proc/self/fd"))
