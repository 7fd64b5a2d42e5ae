"""The control socket: the command line's way to the master.

One JSON line asks; JSON lines answer, and the last of them has "event": "done". A client that reads slowly, or not at
all, holds up nobody: what it does not take is kept, up to a bound at which it is let go.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from reuseport.ipc.messages import Malformed, Question, asked
from reuseport.ipc.shortage import SHORTAGE
from reuseport.master import reserve
from reuseport.master.loop import READ, WRITE, Loop

VERSION = 1
QUESTION = 65536  # bytes: the longest
SHORT_OF_MEMORY = 0.05  # seconds until the kernel is asked again to take an answer
UNREAD = 4 << 20  # bytes that a client may leave unread, but for the last answer

Answer = Callable[["Client", Question], None]


class Client:
    """One connection of a command line."""

    def __init__(self, name: str, sock: socket.socket, server: Control) -> None:
        self.name = name
        self._socket = sock
        self._server = server
        self._in = b""
        self._out = b""
        self._last = False
        self.asked = False  # its question has been read
        self.watching = False  # whether it is told the stages of the release under way
        self.told: Any = None  # the progress that it has heard of last
        self.uid: int | None = None  # of the process that asks; None where an earlier version has accepted it
        self.goes_back = False  # it has asked for a rollback, or for the end of a release
        self.warnings: list[str] = []  # what its answer tells it beside the outcome

    def say(self, encoded: Mapping[str, bytes] = MappingProxyType({}), /, **fields: Any) -> None:
        """`encoded`: more fields, whose values are JSON already."""
        parts = [json.dumps({"v": VERSION, **fields}).encode()[:-1]]
        parts.extend(b'"%b": %b' % (name.encode(), value) for name, value in encoded.items())
        self._out += b", ".join(parts) + b"}\n"
        if len(self._out) > UNREAD and not self._last:
            self.close()
        else:
            self.flush()

    def done(self, ok: bool, encoded: Mapping[str, bytes] = MappingProxyType({}), /, **fields: Any) -> None:
        """The last answer; the connection closes behind it."""
        self._last = True
        if self.warnings:
            fields["warnings"] = self.warnings
        self.say(encoded, event="done", ok=ok, **fields)

    def warn(self, text: str) -> None:
        """Have the answer tell this beside the outcome, "" for nothing."""
        if text and text not in self.warnings:
            self.warnings.append(text)

    def readable(self) -> None:
        try:
            data = self._socket.recv(QUESTION)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._in += data
        if not data or len(self._in) > QUESTION:
            self.close()
            return
        line, newline, rest = self._in.partition(b"\n")
        if not newline:
            return
        self._in = rest
        try:
            question = asked(line)
        except Malformed as error:
            self.done(False, error=f"not a question that this master understands: {error}")
            return
        self.asked = True
        try:
            self._server.answer(self, question)
        except Exception:
            self.done(False, error="a defect of the master, which its log tells of")  # better than to wait for ever
            raise

    def flush(self) -> None:
        while self._out:
            try:
                self._out = self._out[self._socket.send(self._out) :]
            except BlockingIOError:
                self._server.loop.watch(self._socket.fileno(), self._ready, READ | WRITE)
                return
            except ConnectionError:
                self.close()
                return
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise
                self._server.loop.later(SHORT_OF_MEMORY, self.flush)
                return
        if self._last:
            self.close()

    def _ready(self) -> None:
        self._server.loop.watch(self._socket.fileno(), self.readable, READ)
        self.flush()

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        return {
            "name": self.name,
            "fd": lend(self._socket.fileno()),
            "in": self._in.decode("latin-1"),
            "out": self._out.decode("latin-1"),
            "last": self._last,
            "asked": self.asked,
            "watching": self.watching,
            "uid": self.uid,
            "goes_back": self.goes_back,
            "warnings": self.warnings,
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._in, self._out = left["in"].encode("latin-1"), left["out"].encode("latin-1")
        self._last, self.watching = left["last"], left["watching"]
        self.asked = left.get("asked", True)
        self.uid = left.get("uid")
        self.goes_back, self.warnings = left.get("goes_back", False), left.get("warnings", [])
        self.flush()

    def close(self) -> None:
        self._out = b""
        if self._socket.fileno() != -1:
            self._server.loop.forget(self._socket.fileno())
            self._socket.close()
            reserve.refill()  # its descriptor may be one of those
        self._server.clients.pop(self.name, None)


def listen(path: str) -> socket.socket:
    """The master's socket there. A path that an earlier master left is taken over."""
    if os.path.lexists(path):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        sock.bind(path)
    finally:
        os.umask(before)
    sock.listen(64)
    return sock


class Control:
    """`sock` listens; only the master's own user and root are heard (SO_PEERCRED, unix(7))."""

    def __init__(self, sock: socket.socket, loop: Loop, answer: Answer) -> None:
        self.loop = loop
        self.answer = answer
        self.clients: dict[str, Client] = {}
        self._named = 0
        self._socket = sock
        loop.watch(sock.fileno(), self._accept)

    def listen_again(self) -> None:
        """Another master may have put a socket of its own in the place of this one."""
        path = self._socket.getsockname()
        self.loop.forget(self._socket.fileno())
        self._socket.close()
        self._socket = listen(path)
        self.loop.watch(self._socket.fileno(), self._accept)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        clients = [client.estate(lend) for client in self.clients.values()]
        return {"socket": lend(self._socket.fileno()), "named": self._named, "clients": clients}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._named = left["named"]
        for one in left["clients"]:
            self._add(one["name"], socket.socket(fileno=one["fd"])).inherit(one)

    def stages(self, text: str, level: str = "info") -> None:
        """Tell everybody who waits for a release how it goes."""
        for client in list(self.clients.values()):
            if client.watching:
                client.say(event="stage", text=text, level=level)

    def leave(self) -> None:
        """Hear nobody any more. The path is another master's."""
        for client in list(self.clients.values()):
            client.close()
        self.loop.forget(self._socket.fileno())
        self._socket.close()

    def close(self) -> None:
        path = self._socket.getsockname()
        self.leave()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def _accept(self) -> None:
        try:
            sock, _ = reserve.take(self._socket.accept, reserve.FOR_ACTS)
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # The reserve is spent on other clients. This one waits until they have been answered, or gives up.
            self.loop.rest(self._socket.fileno())
            return
        sock.setblocking(False)
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            sock.close()
            return
        self._named += 1
        self._add(f"client {self._named}", sock).uid = uid

    def _add(self, name: str, sock: socket.socket) -> Client:
        client = self.clients[name] = Client(name, sock, self)
        self.loop.watch(sock.fileno(), client.readable)
        return client
