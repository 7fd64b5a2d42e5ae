"""The clients: a process of its own that sends requests of every kind and says what became of each.

A process of its own, so that neither the display nor the releases of the script that started it can make an answer
look late. It reads commands from standard input, one JSON value a line, and ends with it; it writes what happens to
standard output in the words of the account: `["send", ...]`, `["answer", ...]`, `["fail", ...]`, `["drop", ...]`, and
at the end `["done"]`.

The clients are as careful as good clients are and no more: they look whether a kept connection has been closed before
they use it again, they heed `Connection: close`, and they never ask twice. A kept connection that closes under a
request is a failure: the server promised that it would not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from proving.releases import banner, price
from proving.wire import Malformed, Response

# How long a client waits beyond the work it asked for, and for a connection.
PATIENCE = 30.0
FLUSH_EVERY = 0.05


class Ended(Exception):
    """The server closed the connection before the answer was complete."""


@dataclass(slots=True)
class Connection:
    sock: socket.socket
    port: int
    opened: float
    answers: int = 0
    generation: int = 0  # which gave the last answer

    def closed_while_idle(self) -> bool:
        """Whether the server has closed it: what a good client looks at before it uses a kept connection again."""
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


@dataclass(slots=True)
class Ask:
    """One request as it is to be sent."""

    kind: str
    target: str
    planned: float = 0.0
    body: bytes = b""
    pieces: int = 1  # the body is sent in so many, over `over` seconds
    over: float = 0.0
    keep: bool = True
    reading: float = 0.0  # seconds between two reads: a client that is slow to take its answer
    tenant: str = ""


def misfit(number: int, ask: Ask, response: Response) -> str:
    """What is wrong with a complete response; empty if nothing is."""
    if response.status != 200:
        return f"status {response.status}"
    version = response.number("x-version")
    if version < 1:
        return "wrong body: not from the sample monolith"
    if ask.tenant and response.headers.get("x-tenant") != ask.tenant:
        return f"a request of {ask.tenant} served as one of {response.headers.get('x-tenant') or 'nobody'}"
    if ask.target == "/bare":
        return "" if response.body == b"ok" else f"wrong body: {bytes(response.body[:40])!r}"
    if ask.target.startswith("/stream"):
        return _misfit_of_stream(ask, version, bytes(response.body))
    try:
        said = json.loads(response.body)
        told = (said["id"], said["version"], said["price"], said["banner"], said.get("before", version))
    except (ValueError, KeyError, TypeError):
        return f"wrong body: {bytes(response.body[:40])!r}"
    if told != (number, version, price(version, number), banner(version), version):
        return f"wrong body: version {version} answered {told} to {number}"
    if ask.body and said.get("sha256") != hashlib.sha256(ask.body).hexdigest():
        return f"wrong body: {said.get('count')} of {len(ask.body)} bytes arrived, or others"
    return ""


def _misfit_of_stream(ask: Ask, version: int, body: bytes) -> str:
    lines = body.decode(errors="replace").split("\n")
    if len(lines) < 3:
        return f"wrong body: a stream of {body[:40]!r}"
    first, *pieces, last, rest = lines
    announced = f"{len(pieces)} pieces from version {version}"
    if (first, last, rest) != (announced, f"end of {announced}", ""):
        return f"wrong body: a stream of {len(pieces)} pieces between {first[:40]!r} and {last[:40]!r}"
    for number, piece in enumerate(pieces):
        if not piece.startswith(f"{number} {version} ."):
            return f"wrong body: piece {number} of a stream is {piece[:20]!r}"
    return ""


@dataclass
class Clients:
    address: tuple[str, int]
    random: random.Random
    numbers: Any = field(default_factory=lambda: count(1))
    stopping: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    resting: set[asyncio.Task[Any]] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    # --- one request

    async def ask(self, ask: Ask, connection: Connection | None = None) -> Connection | None:
        """Send a request, on this connection or a new one. The connection, if it may be used again."""
        number, at = next(self.numbers), time.monotonic()
        try:
            connection = connection or await self.connect()
        except OSError as error:
            self.say("send", number, ask.kind, 0, at, at, ask.planned, ask.tenant)
            self.say("fail", number, time.monotonic(), reason_of(error, "connecting"))
            return None
        self.say("send", number, ask.kind, connection.port, connection.opened, at, ask.planned, ask.tenant)
        response = Response()
        try:
            async with asyncio.timeout(ask.planned + PATIENCE):
                await self.exchange(connection, ask, number, response)
            problem = misfit(number, ask, response)
            if not problem and response.rest:
                problem = "wrong body: more than it announced"
        except Ended:
            problem = response.broken
        except Malformed as error:
            problem = f"malformed: {error}"
        except OSError as error:
            problem = reason_of(error, response.broken if response.started else "before any answer")
        now = time.monotonic()
        if problem:
            self.say("fail", number, now, problem + (" (kept connection)" if connection.answers else ""))
            connection.sock.close()
            return None
        version, generation = response.number("x-version"), response.number("x-generation")
        self.say("answer", number, now, version, generation, connection.generation, response.closes and ask.keep)
        connection.answers += 1
        connection.generation = generation
        if response.closes or not ask.keep:
            connection.sock.close()
            return None
        return connection

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(sock, self.address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, sock.getsockname()[1], time.monotonic())

    async def exchange(self, connection: Connection, ask: Ask, number: int, response: Response) -> None:
        loop = asyncio.get_running_loop()
        async for piece in self.written(ask, number):
            await loop.sock_sendall(connection.sock, piece)
        while not response.complete:
            data = await loop.sock_recv(connection.sock, 4096 if ask.reading else 65536)
            if not data:
                response.end()
                if not response.complete:
                    raise Ended
                return
            response.feed(data)
            if ask.reading and not response.complete:
                await asyncio.sleep(ask.reading)

    async def written(self, ask: Ask, number: int) -> AsyncIterator[bytes]:
        """The request in the pieces that it is sent in."""
        target = ask.target + ("&" if "?" in ask.target else "?") + f"id={number}"
        lines = [
            f"{'POST' if ask.body else 'GET'} {target} HTTP/1.1",
            f"Host: {self.address[0]}:{self.address[1]}",
            "User-Agent: reuseport-proving",
            "Accept: */*",
        ]
        if ask.body:
            lines.append(f"Content-Length: {len(ask.body)}")
        if not ask.keep:
            lines.append("Connection: close")
        if ask.tenant:
            lines.append(f"X-Tenant: {ask.tenant}")
        head = "\r\n".join([*lines, "", ""]).encode()
        if not ask.body:
            yield head
            return
        size = -(-len(ask.body) // ask.pieces)
        yield head + ask.body[:size]
        for start in range(size, len(ask.body), size):
            await asyncio.sleep(ask.over / (ask.pieces - 1))
            yield ask.body[start : start + size]

    # --- the kinds

    async def visitor(self, make: Callable[[], Ask], every: float, requests: int) -> None:
        """A client that keeps its connection for some requests, resting in between, and then opens another."""
        connection: Connection | None = None
        await self.rest(self.random.uniform(0, every))
        while not self.stopping:
            if connection is not None and connection.closed_while_idle():
                self.say("drop", make().kind, connection.port, connection.opened, time.monotonic())
                connection.sock.close()
                connection = None
            connection = await self.ask(make(), connection)
            if connection is not None and connection.answers >= requests:
                connection.sock.close()
                connection = None
            await self.rest(every * self.random.uniform(0.8, 1.2))
        if connection is not None:
            connection.sock.close()

    async def arrivals(self, make: Callable[[], Ask], rate: float) -> None:
        """New clients at a steady rate, whether or not the earlier ones have been answered: a stall shows in full."""
        due = time.monotonic() + self.random.uniform(0, 1 / rate)
        while not self.stopping:
            await self.rest(max(0.0, due - time.monotonic()))
            if not self.stopping:
                self.start(self.ask(make()))
            due += 1 / rate

    def begin(self, kind: str, plan: dict[str, Any]) -> None:
        """Start the clients of a kind. `plan` says how many, how often, how long and whose; each kind has defaults."""
        tenant = plan.get("tenant", "")
        users = int(plan.get("users", 1))
        seconds = plan.get("seconds", 2.0)
        every = plan.get("every", 0.1)
        rate = plan.get("rate", 0.0)
        requests = int(plan.get("requests", 1 if kind in ("slow", "upload", "stream", "job") else 50))
        make: Callable[[], Ask]
        if kind == "one-shot":
            page = "/bare" if plan.get("bare") else f"/work?ms={plan['ms']:g}" if plan.get("ms") else "/"
            make = lambda: Ask(kind, page, keep=False, tenant=tenant)  # noqa: E731
        elif kind == "keep-alive":
            page = "/rows" if plan.get("rows") else "/"
            make = lambda: Ask(kind, page, tenant=tenant)  # noqa: E731
        elif kind == "work":
            make = lambda: Ask(kind, f"/work?ms={plan.get('ms', 5):g}")  # noqa: E731
        elif kind == "job":
            make = lambda: Ask(kind, self.job_of(seconds), tenant=tenant)  # noqa: E731
        elif kind == "idle":
            make, every = (lambda: Ask(kind, "/", tenant=tenant)), seconds
        elif kind == "slow":
            make = lambda: Ask(kind, f"/slow?seconds={seconds:g}", planned=seconds, tenant=tenant)  # noqa: E731
        elif kind == "upload":
            body, pieces = self.random.randbytes(int(plan.get("bytes", 200_000))), int(plan.get("pieces", 8))
            make = lambda: Ask(kind, "/upload", seconds, body, pieces, seconds)  # noqa: E731
        elif kind == "stream":
            target = f"/stream?pieces={int(plan.get('pieces', 20))}&seconds={seconds:g}"
            make = lambda: Ask(kind, target, planned=seconds, reading=0.02)  # noqa: E731
        else:
            raise ValueError(f"no kind of client is called {kind!r}")
        for _ in range(users):
            self.start(self.arrivals(make, rate / users) if rate else self.visitor(make, every, requests))

    def job_of(self, most: float) -> str:
        """A page that begins a job: most are short, some last for `most` seconds."""
        seconds = most * self.random.random() ** 2
        return f"/job?seconds={seconds:.2f}&where={self.random.choice(('greenlet', 'thread'))}"

    # --- the process

    def start(self, work: Awaitable[object]) -> None:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def rest(self, seconds: float) -> None:
        """Sleep, unless the clients are told to stop."""
        task = asyncio.current_task()
        assert task is not None
        if self.stopping:
            return
        self.resting.add(task)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            task.uncancel()
        finally:
            self.resting.discard(task)

    def say(self, *what: object) -> None:
        self.said.append(json.dumps(what, separators=(",", ":")))

    def flush(self) -> None:
        if self.said:
            lines = "\n".join(self.said) + "\n"
            self.said.clear()
            view = memoryview(lines.encode())
            while view:
                view = view[os.write(1, view) :]

    def command(self, told: dict[str, Any]) -> None:
        match told["do"]:
            case "begin":
                self.begin(told["kind"], told["plan"])
            case "once":
                self.start(self.ask(Ask(**told["ask"])))
            case "stop":
                self.stopping = True
                for task in self.resting:
                    task.cancel()
            case unknown:
                raise ValueError(f"no command is called {unknown!r}")

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        flushing = loop.create_task(self.keep_flushing())
        while line := await reader.readline():
            self.command(json.loads(line))
            if self.stopping:
                while self.tasks:
                    await asyncio.wait(list(self.tasks))
                break
        flushing.cancel()
        if self.stopping:
            self.say("done")
            self.flush()
        for task in self.tasks:
            task.cancel()

    async def keep_flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY)
            self.flush()


def reason_of(error: OSError, where: str) -> str:
    match error:
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError():
            return f"reset {where}"
        case _:
            return f"{os.strerror(error.errno or 0)} {where}"


def main() -> None:
    host, port, seed = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: whoever started the clients decides when they end
    asyncio.run(Clients((host, int(port)), random.Random(int(seed))).run())


if __name__ == "__main__":
    main()
