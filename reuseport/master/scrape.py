"""Answers who scrapes the metrics (--metrics): as little of HTTP as that takes, in the master's own loop.

A scraper that is slow, or silent, holds up nobody: nothing here waits. It has a few seconds for its request and the
answer, its request may be so long, and when there are too many of them the oldest has to go.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from reuseport.master.loop import READ, WRITE, Loop
from reuseport.master.socketfile import SocketFile, bind
from reuseport.options import OptionError, parse_address

CLIENTS = 16
REQUEST = 8192  # bytes
PATIENCE = 10.0  # seconds for the whole of a scrape

# From the Accept header to (content type, body).
Answer = Callable[[str], tuple[str, bytes]]


class Client:
    def __init__(self, sock: socket.socket, server: Scrape) -> None:
        self._socket = sock
        self._server = server
        self._in = b""
        self._out = b""
        self.deadline = time.monotonic() + PATIENCE
        server.loop.watch(sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._in += data
        head, end, _ = self._in.partition(b"\r\n\r\n")
        if end:
            self._out = respond(head, self._server.answer)
        elif len(self._in) > REQUEST:
            self._out = response("431 Request Header Fields Too Large")
        self._send()

    def _send(self) -> None:
        if self._out:
            self._server.loop.watch(self._socket.fileno(), self._writable, WRITE)
            self._writable()

    def _writable(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            return
        except OSError:
            self._out = b""
        if not self._out:
            self.close()

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        said, answer = self._in.decode("latin-1"), self._out.decode("latin-1")
        return {"socket": lend(self._socket.fileno()), "in": said, "out": answer, "deadline": self.deadline}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._in, self._out = left["in"].encode("latin-1"), left["out"].encode("latin-1")
        self.deadline = left["deadline"]
        self._send()

    def close(self) -> None:
        if self._socket.fileno() != -1:
            self._server.loop.forget(self._socket.fileno())
            self._socket.close()
            self._server.clients.remove(self)


class ScrapedAt(NamedTuple):
    """Where metrics are asked for. `path` is that of a unix socket; `file` is what this master removes."""

    listener: socket.socket
    path: str = ""
    file: SocketFile | None = None


class Scrape:
    """Answers the clients of the listening socket."""

    def __init__(self, at: ScrapedAt, loop: Loop, answer: Answer) -> None:
        self.loop = loop
        self.answer = answer
        self.clients: list[Client] = []  # oldest first
        self._socket, self._path, self._file = at
        self._socket.setblocking(False)
        self.go_on()

    @property
    def address(self) -> str:
        """What is really bound, with the kernel's choice for a port 0."""
        if self._path:
            return f"unix:{self._path}"
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec."""
        clients = [client.estate(lend) for client in self.clients]
        file = self._file.identity if self._file else None
        return {"socket": lend(self._socket.fileno()), "path": self._path, "file": file, "clients": clients}

    def inherit(self, left: Mapping[str, Any]) -> None:
        for one in left["clients"]:
            self._add(socket.socket(fileno=one["socket"])).inherit(one)

    def rest(self) -> None:
        """Answer nobody who comes from now on: another master may do that, at the same socket."""
        self.loop.forget(self._socket.fileno())

    def go_on(self) -> None:
        self.loop.watch(self._socket.fileno(), self._accept, READ)

    def look(self) -> None:
        """Let go of those who have had their time. To be called each second."""
        now = time.monotonic()
        while self.clients and self.clients[0].deadline <= now:
            self.clients[0].close()

    def close(self, *, keep_path: bool = False) -> str:
        """Stop answering. Returns why the socket's file could not be removed; "" if it was removed, or is to stay."""
        while self.clients:
            self.clients[0].close()
        said = ""
        if self._file is not None and keep_path:
            self._file.close()
        elif self._file is not None:
            said = self._file.remove()
        self.loop.forget(self._socket.fileno())
        self._socket.close()
        return said

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            self.loop.rest(self._socket.fileno())  # none are left
            return
        sock.setblocking(False)
        if len(self.clients) == CLIENTS:
            self.clients[0].close()
        self._add(sock)

    def _add(self, sock: socket.socket) -> Client:
        client = Client(sock, self)
        self.clients.append(client)
        return client


def respond(head: bytes, answer: Answer) -> bytes:
    """The answer to a request with this head; the connection is closed behind it."""
    line, *fields = head.lstrip(b"\r\n").decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return response("400 Bad Request")
    method, target, _ = words
    if method not in ("GET", "HEAD"):
        return response("405 Method Not Allowed", extra="Allow: GET, HEAD\r\n")
    if target.partition("?")[0] != "/metrics":
        return response("404 Not Found", body=b"The metrics are at /metrics.\n", silent=method == "HEAD")
    named = [field.partition(":") for field in fields]
    accept = ",".join(value for name, _, value in named if name.strip().lower() == "accept")
    content_type, body = answer(accept)
    return response("200 OK", content_type, body, silent=method == "HEAD")


def response(
    status: str, content_type: str = "text/plain", body: bytes = b"", *, extra: str = "", silent: bool = False
) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())  # no locale is ever set here
    head = (
        f"HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if silent else body)


def inherited(fd: int, path: str, identity: Iterable[int] | None) -> ScrapedAt:
    """What another master has listened at. `identity` is its file's, if that is known."""
    file = None
    if identity is not None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # without its directory it needs no remover
            file = SocketFile(path, identity)
    return ScrapedAt(socket.socket(fileno=fd), path, file)


def listen(address: str, where: str, umask: int) -> ScrapedAt:
    """The socket for an address, which the option `where` has said. OptionError."""
    parsed = parse_address(address)
    shown = address.removeprefix("tcp:")
    try:
        if parsed.path:
            return _listen_unix(parsed.path, umask)
        found = socket.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, at = found[0]
        return ScrapedAt(socket.create_server(at[:2], family=family, backlog=CLIENTS))
    except socket.gaierror as error:
        raise OptionError(f"{where}: {shown}: {error.strerror}") from None
    except OSError as error:
        raise OptionError(f"{where}: cannot listen on {shown}: {(os.strerror(error.errno or 0)).lower()}") from None


def _listen_unix(path: str, umask: int) -> ScrapedAt:
    """OSError, also where somebody listens there, or where something else lies there."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        file = bind(sock, path, umask)
        sock.listen(CLIENTS)
    except OSError:
        sock.close()
        raise
    return ScrapedAt(sock, path, file)
