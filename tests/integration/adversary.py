"""Clients that do everything to a connection which HTTP allows, and account for every answer.

Requests are cut at random, sent with pauses or all at once, pipelined, with bodies of all sizes that may not be read,
with chunks, with 100-continue; the client's half is closed behind them, or the connection is torn. What must hold:

- an answer is the one to the next request that has none, with the body that was sent, for the peer that sent it;
- a request that has left whole, on a connection that nobody has closed, is answered;
- no request reaches the application twice.

`python adversary.py --help` (with the tests' interpreter) for longer runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import socket
import ssl
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import Server

LONGEST = 30.0  # seconds without any progress after which a connection counts as forgotten


@dataclass
class Request:
    id: str
    data: bytes  # head and body
    head: int  # bytes of the head
    length: int
    checksum: int
    read: str  # all, some or none of the body
    part: int = 0
    expects: bool = False
    chunked: bool = False

    @property
    def may_end_it(self) -> bool:
        """Too much of its body is left unread, which the server learns when its answer has begun (response.SKIP)."""
        return self.chunked and self.read != "all" and self.length - self.part > 65536 - 1000


@dataclass
class Account:
    """What has happened, by all clients."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, by: int = 1) -> None:
        with self.lock:
            self.counts[what] += by

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(f"{time.strftime('%H:%M:%S')} {text}")


def make_request(dice: random.Random, number: str, last: bool) -> Request:
    asked: dict[str, Any] = {"id": number, "read": dice.choice(["all"] * 6 + ["some", "none"])}
    if dice.random() < 0.2:
        asked |= {"pause": round(dice.choice([0.001, 0.01, 0.05, 0.3]) * dice.random(), 4)}
        asked |= {dice.choice(["before", "after", "between"]): "1"}
    if dice.random() < 0.3:
        asked["size"] = dice.choice([1000, 16384, 70000, 400000])
    asked["how"] = dice.choice(["list", "list", "list", "chunks", "file", "pieces"])
    body, fields, expects, chunked = b"", "", False, False
    method = dice.choice(["GET", "GET", "POST", "PUT"])
    if method != "GET":
        size = dice.choice([0, 1, 5, 100, 5000, 16383, 16384, 16385, 40000, 200000])
        body = dice.randbytes(size)
        asked["step"] = dice.choice([100, 4096, 65536, 1 << 20]) if size < 50000 else 1 << 16
        if asked["read"] == "some":
            asked["part"] = dice.randrange(size + 1)
        expects = size > 0 and dice.random() < 0.1
    checksum, length = zlib.crc32(body), len(body)
    closes = last and dice.random() < 0.3
    framed = body
    if method != "GET":
        chunked = dice.random() < 0.4
        if chunked:
            fields += "Transfer-Encoding: chunked\r\n"
            framed, at = b"", 0
            while at < len(body):
                piece = body[at : at + dice.choice([1, 10, 1000, 16384, 100000]) + len(body) // 50]
                framed += b"%x\r\n%b\r\n" % (len(piece), piece)
                at += len(piece)
            framed += b"0\r\n" + dice.choice([b"", b"Trailer: x\r\n"]) + b"\r\n"
        else:
            fields += f"Content-Length: {length}\r\n"
    if closes:
        fields += "Connection: close\r\n"
    if expects:
        fields += "Expect: 100-continue\r\n"
    if dice.random() < 0.1:
        fields += f"X-Filler: {'f' * dice.choice([100, 4000, 8000])}\r\n"
    query = "&".join(f"{key}={value}" for key, value in asked.items())
    head = f"{method} /?{query} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode()
    if dice.random() < 0.05:
        head = b"\r\n" + head
    return Request(
        number, head + framed, len(head), length, checksum, asked["read"], asked.get("part", 0), expects, chunked
    )


class Answers:
    """The answers in what has come so far."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.found: list[tuple[int, dict[str, str], bytes]] = []

    def feed(self, data: bytes) -> None:
        self.data += data
        while self._next():
            pass

    def _next(self) -> bool:
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self.data[:end].decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        at = end + 4
        if status < 200:
            body = b""
        elif "content-length" in headers:
            length = int(headers["content-length"])
            if len(self.data) < at + length:
                return False
            body = bytes(self.data[at : at + length])
            at += length
        elif "transfer-encoding" in headers:
            body = b""
            while True:
                line = self.data.find(b"\r\n", at)
                if line < 0:
                    return False
                size = int(self.data[at:line], 16)
                if len(self.data) < line + 2 + size + 2:
                    return False
                body += self.data[line + 2 : line + 2 + size]
                at = line + 4 + size
                if not size:
                    break
        else:
            raise ValueError(f"an answer without a length: {first}")
        del self.data[:at]
        self.found.append((status, headers, body))
        return True


class Client:
    """One connection's life."""

    def __init__(self, dice: random.Random, account: Account, connect: Callable[[], socket.socket], **how: Any) -> None:
        self.dice = dice
        self.account = account
        self.how = how
        self.raw = connect()
        self.sock = self.raw
        self.peer = [str(part) for part in self.raw.getsockname()[:2]]
        self.out = b""  # in front of everything
        if how.get("proxy"):
            self.peer = [f"10.{dice.randrange(256)}.{dice.randrange(256)}.7", str(dice.randrange(1, 65536))]
            self.out = f"PROXY TCP4 {self.peer[0]} 10.0.0.1 {self.peer[1]} 80\r\n".encode()
        if context := how.get("tls"):
            self.raw.sendall(self.out)
            self.out = b""
            self.raw.settimeout(LONGEST)
            self.sock = context.wrap_socket(self.raw, server_hostname="localhost")
        self.sock.setblocking(False)
        self.answers = Answers()
        self.ended = ""  # how the server's half has
        self.doing = ""  # what a fault tells of it
        self.sent = (0, 0)  # of how many bytes of that
        self.broken = False  # nothing can be sent any more

    def live(self, name: str) -> None:
        dice = self.dice
        count = dice.choice([1, 1, 2, 3, 5, 8, 40, 100])
        requests = [make_request(dice, f"{name}.{n}", n == count - 1) for n in range(count)]
        tears = dice.random() < 0.05
        half_closes = not tears and dice.random() < 0.3
        pipelined = dice.random() < 0.5
        if pipelined:
            for one in requests:
                one.expects = False
                one.data = one.data.replace(b"Expect: 100-continue\r\n", b"", 1)
        try:
            if pipelined:
                data = self.out + b"".join(one.data for one in requests)
                if tears:
                    data = data[: dice.randrange(len(data))]
                self.send(data)
                if half_closes:
                    self.finish()
                if not tears:
                    self.await_answers(count)
            else:
                self.account.count("sequential")
                for number, one in enumerate(requests):
                    self.ask(one, number)
                    if self.closing:
                        break
                    if dice.random() < 0.1:
                        time.sleep(dice.random())
                if half_closes:
                    self.finish()
            if tears:
                self.account.count("torn")
                if dice.random() < 0.5:
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.judge(requests, pipelined, tears, half_closes)
        finally:
            self.sock.close()

    @property
    def final(self) -> list[tuple[int, dict[str, str], bytes]]:
        return [one for one in self.answers.found if one[0] >= 200]

    @property
    def closing(self) -> bool:
        """The server has said that this was the last one, or has ended the connection."""
        return bool(self.ended) or any(one[1].get("connection") == "close" for one in self.final)

    def ask(self, one: Request, number: int) -> None:
        out, self.out = self.out, b""
        self.doing = f"asking {one.data[: one.head]!r} of {len(one.data)}"
        if one.expects:
            before = len(self.answers.found)
            self.send(out + one.data[: one.head])
            if self.dice.random() < 0.7:
                self.until(lambda: len(self.answers.found) > before or bool(self.ended))
            if self.closing:
                return
            self.send(one.data[one.head :])
        else:
            self.send(out + one.data)
        self.await_answers(number + 1)

    def await_answers(self, count: int) -> None:
        self.until(lambda: len(self.final) >= count or self.closing)
        if self.closing and not self.ended:
            self.until(lambda: bool(self.ended))

    def send(self, data: bytes) -> None:
        dice = self.dice
        style = dice.choice(["whole", "few", "many"])
        at = 0
        while at < len(data) and not self.closing and not self.broken:
            size = len(data) if style == "whole" else dice.choice([1, 2, 30, 1000, 20000]) if style == "few" else 0
            size = size or dice.choice([1, 3, 10, 50]) + len(data) // 60
            if style == "few":
                size += len(data) // 10
            piece = data[at : at + size]
            sent = 0
            while sent < len(piece) and not self.closing and not self.broken:
                sent += self.push(piece[sent:])
            at += sent
            self.sent = at, len(data)
            if style != "whole" and dice.random() < 0.3:
                time.sleep(dice.choice([0, 0, 0.001, 0.01, 0.05]) * dice.random())

    def push(self, data: bytes) -> int:
        """Send some, and read what there is."""
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        except OSError:
            self.broken = True
            self.until(lambda: bool(self.ended))
            return 0
        if not sent or self.dice.random() < 0.3:
            self.wait(0.0 if sent else LONGEST, writes=not sent)
        return sent

    def finish(self) -> None:
        self.account.count("half-closed")
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            self.broken = True

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.ended or not self.wait(LONGEST):
                return

    def wait(self, seconds: float, writes: bool = False) -> bool:
        """Read what comes. False when nothing has, for too long."""
        pending = self.how.get("tls") and self.sock.pending()
        readable, writable, _ = select.select([self.sock], [self.sock] if writes else [], [], 0 if pending else seconds)
        if not readable and not writable and not pending:
            if seconds:
                self.ended = "forgotten"
                self.doing += f", sent {self.sent}, as {self.sock.getsockname()}"
            return False
        if readable or pending:
            try:
                data = self.sock.recv(1 << 16)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            except ssl.SSLEOFError:
                data = b""
            except OSError as error:
                self.ended = f"broken: {error!r}"
                return True
            if not data:
                self.ended = "ended"
            self.answers.feed(data)
        return True

    def judge(self, requests: list[Request], pipelined: bool, tears: bool, half_closes: bool) -> None:
        account, where = self.account, f"{requests[0].id} ({'pipelined' if pipelined else 'in turn'})"
        account.count("connections")
        where += ", half-closed" if half_closes else ""
        for request, (status, _, body) in zip(requests, self.final, strict=False):
            if status != 200:
                account.fault(f"{where}: {request.id} was answered {status}: {body[:200]!r}")
                return
            told = json.loads(body.partition(b"\n")[0])
            length = {"none": 0, "some": min(request.part, request.length)}.get(request.read, request.length)
            if told["id"] != request.id:
                account.fault(f"{where}: {request.id} got the answer to {told['id']}")
            elif told["peer"] != self.peer:
                account.fault(f"{where}: {request.id} is {self.peer}, and counted as {told['peer']}")
            elif told["length"] != length or (request.read == "all" and told["checksum"] != request.checksum):
                account.fault(f"{where}: of the body of {request.id} came {told['length']} of {request.length} bytes")
            with account.lock:
                account.answered.append(request.id)
        count = len(self.final)
        account.count("answers", count)
        if len(self.final) > len(requests):
            account.fault(f"{where}: {len(self.final)} answers to {len(requests)} requests")
        if tears:
            return
        said_close = any(one[1].get("connection") == "close" for one in self.final)
        if self.ended == "forgotten":
            account.fault(f"{where}: forgotten, after {count} of {len(requests)} answers; {self.doing}")
        elif said_close:
            account.count("closed by the server")
            if count < len(requests) and self.answers.data:
                account.fault(f"{where}: {len(self.answers.data)} bytes behind the last answer")
        elif count and requests[count - 1].may_end_it:
            account.count("ended behind an unread body")
        elif count < len(requests):
            account.count("lost")
            account.fault(f"{where}: lost ({self.ended}) after {count} of {len(requests)} answers")


def run(
    server: Server,
    seconds: float,
    seed: int,
    *,
    clients: int = 12,
    release_every: float = 2.0,
    kill_every: float = 0.0,
    **how: Any,
) -> Account:
    """Let clients loose on the server for so long, while it releases. What a kill may break is counted, not a fault."""
    account = Account()
    host, _, port = server.address.rpartition(":")
    ends = time.monotonic() + seconds
    prefix = os.urandom(3).hex()

    def connect() -> socket.socket:
        return socket.create_connection((host, int(port)), LONGEST)

    def loop(number: int) -> None:
        dice = random.Random(f"{seed}/{number}")
        turn = 0
        while time.monotonic() < ends:
            turn += 1
            try:
                Client(dice, account, connect, **how).live(f"{prefix}.{number}.{turn}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                account.fault(f"{prefix}.{number}.{turn}: {error!r}")

    threads = [threading.Thread(target=loop, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    dice = random.Random(seed)
    release_at = time.monotonic() + release_every
    kill_at = time.monotonic() + kill_every if kill_every else float("inf")
    while time.monotonic() < ends:
        time.sleep(0.05)
        if time.monotonic() >= release_at:
            server.hup()
            account.count("releases asked for")
            release_at = time.monotonic() + release_every
        if time.monotonic() >= kill_at and (pids := sorted(server.status().pids())):
            os.kill(dice.choice(pids), signal.SIGKILL)
            account.count("kills")
            kill_at = time.monotonic() + kill_every
    for thread in threads:
        thread.join(LONGEST + 30)
        if thread.is_alive():
            account.fault("a client has not come to its end")
    if kill_every:
        lost = [one for one in account.faults if ": lost (" in one or "Refused" in one or "Reset" in one]
        account.faults = [one for one in account.faults if one not in lost]
        if len(lost) > account.counts["kills"] * clients:
            account.fault(f"{len(lost)} connections were lost, to {account.counts['kills']} kills")
    seen = Counter(
        line for path in Path(server.gates).glob("seen.*") for line in path.read_text().splitlines() if prefix in line
    )
    for number, times in seen.items():
        if times > 1:
            account.fault(f"{number} came to the application {times} times")
    for number in account.answered:
        if number not in seen:
            account.fault(f"{number} was answered by nobody")
    account.count("came to the application", len(seen))
    return account


CODE = "from accounting import application\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=0.0)
    parser.add_argument("--release-every", type=float, default=2.0)
    parser.add_argument("--proxy", action="store_true")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("options", nargs="*", help="more options of the server's, behind --")
    told = parser.parse_args()
    server = Server(tuple(told.options), workers=told.workers)
    how: dict[str, Any] = {"proxy": told.proxy}
    if told.proxy:
        server.options += ("--proxy-protocol", "auto")
    if told.tls:
        how["tls"] = with_tls(server)
    try:
        server.write("one", whole=CODE)
        server.start()
        print(f"seed {told.seed}, {server.address}", flush=True)
        account = run(
            server, told.seconds, told.seed,
            clients=told.clients, release_every=told.release_every, kill_every=told.kill_every, **how,
        )  # fmt: skip
        print(dict(account.counts))
        for one in account.faults[:40]:
            print(one)
        print(len(account.faults), "faults")
        if account.faults:
            print(server.log_end(40))
        sys.exit(bool(account.faults))
    finally:
        server.close()


def with_tls(server: Server) -> ssl.SSLContext:
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    certificate, key = server.root / "cert.pem", server.root / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    server.options += ("--certfile", str(certificate), "--keyfile", str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


if __name__ == "__main__":
    main()
