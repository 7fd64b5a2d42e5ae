"""Tells a statsd what is served (--statsd-host): each second what has come to the figures, in a few datagrams.

A datagram that nobody takes, or that the kernel has no room for, is lost, and costs nothing but itself. The names are
Gunicorn's where it has one for the same thing. Latencies are sent as the histogram has them: for each bucket one value
from its middle, with a sample rate that makes it count as often as it should.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reuseport.ipc.latencies import BOUNDS, BUCKETS
from reuseport.ipc.scoreboard import ACTIVE, CONNECTIONS, ERRORS, REQUESTS, RSS
from reuseport.master.figures import COUNTERS, NOTHING, Figures, Look, between, look_of
from reuseport.master.metrics import CODES
from reuseport.options import OptionError, Settings, parse_address

DATAGRAM = 1400  # bytes: one packet of an Ethernet


class Statsd:
    def __init__(self, settings: Settings, left: Mapping[str, Any] | None = None) -> None:
        """Resolve the address, once, for a look-up blocks, unless it is `left`. OptionError where it cannot be."""
        self._prefix = settings.statsd_prefix.rstrip(".") + "." if settings.statsd_prefix else ""
        self._tags = f"|#{settings.dogstatsd_tags}" if settings.dogstatsd_tags else ""
        self._last: Look | None = None
        if left is None:
            self._socket, self._to = _socket(settings)
            return
        self._socket = socket.socket(fileno=left["socket"])
        self._socket.setblocking(False)
        self._to = left["to"] if isinstance(left["to"], str) else tuple(left["to"])
        self._last = look_of(left["last"]) if left["last"] else None

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec: `left` of the next one."""
        return {"socket": lend(self._socket.fileno()), "to": self._to, "last": self._last}

    def go_on_from(self, last: Look) -> None:
        """What another master has told need not be told again. If it counts otherwise: from now on."""
        if len(last.server) == len(NOTHING):
            self._last = last

    def look(self, look: Look, workers: int) -> None:
        """Send what has come to the figures since the last look. To be called each second."""
        last, self._last = self._last, look
        if last is None:
            return
        lines = [self._line(*one) for one in told(between(last.server, look.server), look.server, workers)]
        for datagram in packed(lines):
            try:
                self._socket.sendto(datagram, self._to)
            except OSError:
                return  # nobody is there, or there is no room: the next ones come in a second

    def _line(self, name: str, value: str) -> str:
        return f"{self._prefix}{name}:{value}{self._tags}"


def told(news: Figures, totals: Figures, workers: int) -> Iterator[tuple[str, str]]:
    """Names and values, as statsd has them, without prefix and tags."""

    def counter(name: str, field: int) -> Iterator[tuple[str, str]]:
        if news[COUNTERS + field]:
            yield name, f"{news[COUNTERS + field]}|c"

    yield "gunicorn.workers", f"{workers}|g"
    yield from counter("gunicorn.requests", REQUESTS)
    for code, field in CODES.items():
        yield from counter(f"gunicorn.request.status.{code}", field)
    for bucket, count in enumerate(news[:BUCKETS]):
        if count:
            rate = f"|@{1 / count:.6g}" if count > 1 else ""
            yield "gunicorn.request.duration", f"{middle(bucket) * 1000:.6g}|ms{rate}"
    yield from counter("reuseport.errors", ERRORS)
    for name, field in (("requests_in_flight", ACTIVE), ("connections", CONNECTIONS), ("memory.rss", RSS)):
        yield f"reuseport.{name}", f"{totals[COUNTERS + field]}|g"


def middle(bucket: int) -> float:
    """A latency in seconds that stands for a bucket's."""
    if bucket == len(BOUNDS):
        return BOUNDS[-1]
    return ((BOUNDS[bucket - 1] if bucket else 0.0) + BOUNDS[bucket]) / 2


def packed(lines: list[str]) -> Iterator[bytes]:
    """The lines in as few datagrams as they fit into."""
    datagram = b""
    for line in lines:
        data = line.encode()
        if datagram and len(datagram) + 1 + len(data) > DATAGRAM:
            yield datagram
            datagram = b""
        datagram = datagram + b"\n" + data if datagram else data
    if datagram:
        yield datagram


def _socket(settings: Settings) -> tuple[socket.socket, object]:
    address = parse_address(settings.statsd_host)
    if address.path:
        sock, to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), address.path
        if not os.path.isdir(os.path.dirname(address.path)):
            sock.close()
            raise OptionError(f"{settings.where('statsd_host')}: {os.path.dirname(address.path)} is no directory")
    else:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
        except socket.gaierror as error:
            where = settings.where("statsd_host")
            raise OptionError(f"{where}: {address.host} cannot be resolved: {error.strerror}") from None
        family, kind, protocol, _, to = found[0]
        sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    return sock, to
