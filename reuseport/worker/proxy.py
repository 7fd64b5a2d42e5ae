"""The PROXY protocol, versions 1 and 2: a proxy's word about whose connection it passes on.

The rules are those of HAProxy's doc/proxy-protocol.txt (revision of 2020/03/05). The header is the first thing on the
connection, before TLS and HTTP. Whether one comes is configuration and never a guess: from a trusted peer it must, and
from anybody else it is an ordinary malformed request. What it says takes the place of the connection's own addresses,
everywhere: whoever sent the bytes behind the header is who the header names, and whether *he* is a proxy whose
X-Forwarded-* count is asked of that address. With LOCAL, UNKNOWN and UNSPEC the connection is the proxy's own.
"""

from __future__ import annotations

import _socket
import ipaddress
import re
import socket
import time
from typing import TYPE_CHECKING, Any

from .connection import FIRST, LAST_CALL
from .wheel import NEVER, TICK

if TYPE_CHECKING:
    from .engine import Engine

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
LONGEST_LINE = 107  # bytes of a version 1 header with its CRLF
LONGEST = 16 + 4096  # bytes of a version 2 header; TLVs can make it 65551, but no proxy sends so many
CRC32C = 0x03  # the TLV with the header's checksum (section 2.2.3)
LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")


class ProxyError(Exception):
    """What came is no PROXY header, or one that must not be believed."""


def parse(data: bytes, version: str) -> tuple[int, Any, Any] | None:
    """The header at the beginning of `data`: its bytes, and the peer's and the local address; None if more must come.

    Addresses are as getpeername gives them, "" for a unix socket's; both None where the connection's own count.
    `version`: "v1", "v2", or "auto" for either. ProxyError as soon as it cannot become a header.
    """
    is_v2 = data[: len(SIGNATURE)] == SIGNATURE[: len(data)]
    if is_v2 and version != "v1":
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)] and version != "v2":
        return _parse_v1(data)
    raise ProxyError("no PROXY header")


def _parse_v1(data: bytes) -> tuple[int, Any, Any] | None:
    end = data.find(b"\r\n", 0, LONGEST_LINE)
    if end < 0:
        if len(data) >= LONGEST_LINE:
            raise ProxyError("a PROXY line that does not end")
        return None
    line = data[:end]
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return end + 2, None, None
    match = LINE.fullmatch(line)
    if match is None:
        raise ProxyError("a malformed PROXY line")
    ports = int(match[4]), int(match[5])
    kind = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        hosts = [str(kind(host.decode("ascii"))) for host in (match[2], match[3])]
    except ValueError:
        raise ProxyError("a PROXY line with a malformed address") from None
    if max(ports) > 65535:
        raise ProxyError("a PROXY line with a malformed port")
    return end + 2, _address(hosts[0], ports[0]), _address(hosts[1], ports[1])


def _parse_v2(data: bytes) -> tuple[int, Any, Any] | None:
    if len(data) > 12 and (data[12] >> 4 != 2 or data[12] & 15 > 1):
        raise ProxyError("a PROXY header of an unknown version or command")
    if len(data) < 16:
        return None
    length = 16 + int.from_bytes(data[14:16], "big")
    if length > LONGEST:
        raise ProxyError(f"a PROXY header of {length} bytes")
    if len(data) < length:
        return None
    family, transport = data[13] >> 4, data[13] & 15
    size = {0: 0, 1: 12, 2: 36, 3: 216}.get(family)
    if data[12] & 15 == 0:  # LOCAL: the rest means nothing
        return length, None, None
    if size is None or transport > 2:
        raise ProxyError("a PROXY header of an unknown address family")
    if family == 0 or transport == 0:
        return length, None, None
    if transport != 1:
        raise ProxyError("a PROXY header for datagrams")
    if length < 16 + size:
        raise ProxyError("a PROXY header without its addresses")
    _check_tlvs(data[:length], 16 + size)
    if family == 3:
        return length, "", ""
    half = (size - 4) // 2
    which = socket.AF_INET if family == 1 else socket.AF_INET6
    hosts = [socket.inet_ntop(which, data[start : start + half]) for start in (16, 16 + half)]
    ports = [int.from_bytes(data[start : start + 2], "big") for start in (16 + 2 * half, 18 + 2 * half)]
    return length, _address(hosts[0], ports[0]), _address(hosts[1], ports[1])


def _check_tlvs(header: bytes, at: int) -> None:
    """The TLVs fill the rest of the header exactly, and its checksum, if it has one, is right."""
    while at < len(header):
        end = at + 3 + int.from_bytes(header[at + 1 : at + 3], "big")
        if at + 3 > len(header) or end > len(header):
            raise ProxyError("a PROXY header with a broken TLV")
        if header[at] == CRC32C:
            told = header[at + 3 : end]
            if crc32c(header[: at + 3] + bytes(len(told)) + header[end:]).to_bytes(4, "big") != told:
                raise ProxyError("a PROXY header whose checksum is wrong")
        at = end


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum (RFC 9260 appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _address(host: str, port: int) -> Any:
    return (host, port, 0, 0) if ":" in host else (host, port)


class Herald:
    """An accepted connection whose PROXY header has not come yet. It ends as a Connection, or closed.

    In the engine's eyes it is a connection that can neither be passed on nor be idle: its client may have been
    waiting at the proxy for long.
    """

    __slots__ = ("_data", "_engine", "_local", "_peer", "_reader", "_sock", "deadline", "tick")
    can_pass = False

    def __init__(self, engine: Engine, fd: int, peer: Any, local: Any) -> None:
        self._reader = engine.readers.watch(fd, self._readable, LONGEST)
        self._sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, 0, fd)
        self._engine = engine
        self._peer = peer
        self._local = local
        self._data = b""
        self.tick = 0
        self._set_deadline(engine.silence)

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds if seconds else NEVER
        if seconds:
            self._engine.wheel.watch(self)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if not self._data:
            self._set_deadline(self._engine.head_time())
        self._data += data
        self._reader.again()
        try:
            found = parse(self._data, self._engine.proxy_protocol)
        except ProxyError as error:
            who = self._peer[0] if self._peer else "a unix socket"
            self._engine.log("warning", f"closed a connection of {who}: {error} (--proxy-protocol)")
            self.close()
            return
        if found is not None:
            length, peer, local = found
            self._reader.stop()
            self._forget()
            fd = self._sock.detach()
            engine = self._engine
            engine.connection_moved(self)
            if peer is None:
                peer, local = self._peer, self._local
            connection = engine.adopt_client(fd, peer, local, plain=not self._peer, data=self._data[length:])
            if engine.pass_on is not None:
                if connection.can_pass:
                    engine.is_idle(connection)
                else:
                    connection.stays()

    def _forget(self) -> None:
        self.deadline = NEVER
        self._engine.wheel.forget(self)

    def stays(self) -> None:
        """A drain has begun. A client that has said nothing has a last moment to begin."""
        if not self._data and self._engine.pass_on is not None:
            self._set_deadline(min(max(self.deadline - time.monotonic(), TICK), LAST_CALL))

    def close_if_idle(self) -> None:
        """Close it, unless something of it has come. Its client has `FIRST` to begin."""
        if self._data:
            return
        try:
            if not self._sock.recv(1, socket.MSG_PEEK):
                self.close()
        except BlockingIOError:
            self._set_deadline(min(max(self.deadline - time.monotonic(), TICK), FIRST))
        except OSError:
            self.close()

    def close(self) -> None:
        """Close now, without a word: what to say it in is not known yet."""
        if self._sock.fileno() >= 0:
            self._forget()
            self._reader.close()
            self._sock.close()
            self._engine.connection_closed(self)

    def abandon(self) -> None:
        """In a child that the application has forked."""
        self._reader.stop()
        self._sock.close()

    def expire(self) -> None:
        """The header took too long (called by the wheel), or the loop was blocked, and it is there."""
        try:
            come = bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            come = False
        if come:
            self._reader.again()
            self._set_deadline(TICK)
        else:
            self.close()
