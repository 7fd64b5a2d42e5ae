"""The PROXY protocol: what is a header, what it says, and that nothing is guessed."""

from __future__ import annotations

import socket
import struct
import time

import gevent
import pytest
from http_harness import Client, Harness, echo, parse, turn, wait_for

from reuseport.worker import proxy

V2 = proxy.SIGNATURE
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
INET = bytes([1, 2, 3, 4, 10, 0, 0, 1]) + struct.pack(">HH", 5000, 443)
INET6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + socket.inet_pton(socket.AF_INET6, "::1")
INET6 += struct.pack(">HH", 5000, 443)
UNIX = b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")


def v2(command: int, family: int, payload: bytes) -> bytes:
    return V2 + bytes([0x20 | command, family]) + struct.pack(">H", len(payload)) + payload


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack(">H", len(value)) + value


def summed(payload: bytes) -> bytes:
    header = v2(1, 0x11, payload + tlv(3, bytes(4)))
    return header[:-4] + proxy.crc32c(header).to_bytes(4, "big")


FOUR = (("1.2.3.4", 5000), ("10.0.0.1", 443))
SIX = (("2001:db8::1", 5000, 0, 0), ("::1", 443, 0, 0))

GOOD = {
    b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n": FOUR,
    b"PROXY TCP6 2001:db8::1 ::1 5000 443\r\n": SIX,
    b"PROXY TCP6 2001:0DB8:0:0:0:0:0:1 0:0:0:0:0:0:0:1 5000 443\r\n": SIX,
    b"PROXY UNKNOWN\r\n": (None, None),
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": (None, None),
    v2(1, 0x11, INET): FOUR,
    v2(1, 0x21, INET6): SIX,
    v2(1, 0x31, UNIX): ("", ""),
    v2(1, 0x00, b""): (None, None),
    v2(1, 0x00, b"whatever"): (None, None),
    v2(0, 0x00, b""): (None, None),
    v2(0, 0x11, INET): (None, None),
    v2(0, 0xFF, b"x"): (None, None),
    v2(1, 0x11, INET + tlv(2, b"example.org") + tlv(4, b"")): FOUR,
    summed(INET + tlv(2, b"example.org")): FOUR,
}

BAD = [
    REQUEST,
    b"PROXY TCP4 1.2.3.4 10.0.0.1 5000\r\n",
    b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443 \r\n",
    b"PROXY TCP4 1.2.3.4  10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\n\r\n",
    b"PROXY TCP4 1.2.3.400 10.0.0.1 5000 443\r\n",
    b"PROXY TCP4 ::1 ::1 5000 443\r\n",
    b"PROXY TCP6 1.2.3.4 ::1 5000 443\r\n",
    b"PROXY TCP4 1.2.3.4 10.0.0.1 65536 443\r\n",
    b"PROXY TCP4 1.2.3.4 10.0.0.1 05000 443\r\n",
    b"PROXY UDP4 1.2.3.4 10.0.0.1 5000 443\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"proxy TCP4 1.2.3.4 10.0.0.1 5000 443\r\n",
    b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
    v2(1, 0x11, INET[:-1]),
    v2(1, 0x21, INET),
    v2(1, 0x12, INET),
    v2(1, 0x13, INET),
    v2(1, 0x41, INET),
    v2(2, 0x11, INET),
    v2(1, 0x11, INET + b"\4"),
    v2(1, 0x11, INET + tlv(4, b"abc")[:-1]),
    v2(1, 0x11, INET + bytes(5000)),
    V2 + b"\x11\x11" + struct.pack(">H", 12) + INET,
    summed(INET)[:-1] + b"\0",
]


@pytest.mark.parametrize("header", GOOD)
def test_a_header_wherever_it_is_cut(header):
    for end in range(1, len(header)):
        assert proxy.parse(header[:end], "auto") is None
    assert proxy.parse(header, "auto") == (len(header), *GOOD[header])
    assert proxy.parse(header + REQUEST, "auto") == (len(header), *GOOD[header])


@pytest.mark.parametrize("header", BAD)
def test_what_is_no_header_is_refused_and_never_waited_on_for_ever(header):
    with pytest.raises(proxy.ProxyError):
        proxy.parse(header, "auto")
    for end in range(1, len(header)):
        try:
            assert proxy.parse(header[:end], "auto") is None
        except proxy.ProxyError:
            break


def test_only_the_version_that_was_asked_for():
    first, second = b"PROXY UNKNOWN\r\n", v2(0, 0, b"")
    assert proxy.parse(first, "v1")
    assert proxy.parse(second, "v2")
    for header, version in ((first, "v2"), (second, "v1")):
        with pytest.raises(proxy.ProxyError):
            proxy.parse(header, version)


def test_the_checksum_is_castagnolis():
    assert proxy.crc32c(b"123456789") == 0xE3069283  # RFC 3720 appendix B.4's polynomial, the usual check value


# --- on connections


@pytest.fixture
def engine():
    harness = Harness(echo, proxy_protocol="auto")
    yield harness
    harness.close()


def accept(harness, peer=("127.0.0.1", 4000)) -> Client:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    engine, fd = harness.engine, theirs.detach()
    gevent.get_hub().loop.run_callback(lambda: engine.accept(fd, peer, ("127.0.0.1", 8000)))
    turn()
    return Client(ours)


@pytest.mark.parametrize("header", [b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n", v2(1, 0x11, INET)])
def test_the_named_addresses_take_the_place_of_the_connections(engine, header):
    for pieces in ([header + REQUEST], [header, REQUEST], [bytes([byte]) for byte in header + REQUEST]):
        with accept(engine) as client:
            for piece in pieces:
                client.send(piece)
            seen = parse(client.read_all())[0].echo["environ"]
        assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("1.2.3.4", "5000")
        assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("10.0.0.1", "443")


def test_a_header_that_ends_with_the_stream_is_not_waited_for(engine):
    """Its beginning and the end come as one event."""
    with accept(engine) as client:
        client.sock.send(b"PROXY TCP4 ")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read_all(patience=5.0) == b""


def test_a_proxys_own_connection(engine):
    with accept(engine) as client:
        client.send(v2(0, 0, b"") + REQUEST)
        assert parse(client.read_all())[0].echo["environ"]["REMOTE_ADDR"] == "127.0.0.1"


def test_whose_forwarded_fields_count_is_asked_of_the_named_address(engine):
    """Behind a proxy that passes bytes on, they are the client's own."""
    with accept(engine) as client:
        client.send(b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n")
        client.send(REQUEST.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"))
        assert parse(client.read_all())[0].echo["environ"]["REMOTE_ADDR"] == "1.2.3.4"


def test_without_a_header_a_trusted_peer_is_closed_and_another_is_served(engine):
    with accept(engine) as client:
        client.send(REQUEST)
        assert client.read_all() == b""
    assert any("no PROXY header" in text for text in engine.errors())
    for peer in (("192.0.2.1", 4000), ("2001:db8::5", 4000, 0, 0)):
        with accept(engine, peer) as client:
            client.send(REQUEST)
            assert parse(client.read_all())[0].echo["environ"]["REMOTE_ADDR"] == peer[0]
    with accept(engine, ("192.0.2.1", 4000)) as client:
        client.send(b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n" + REQUEST)
        assert parse(client.read_all())[0].status == 400


def test_a_header_that_came_in_time_counts_behind_a_blocked_loop():
    engine = Harness(echo, proxy_protocol="auto", header_timeout=0.3)
    with accept(engine) as client:
        client.sock.send(v2(1, 0x11, INET) + REQUEST)
        time.sleep(0.8)
        assert [answer.status for answer in parse(client.read_all())] == [200]
    engine.close()


def test_half_a_header_is_waited_for_as_long_as_the_header_timeout():
    harness = Harness(echo, proxy_protocol="auto", header_timeout=0.1)
    with accept(harness) as client:
        client.send(b"PROXY ")
        assert client.read_all() == b""
    harness.close()


def test_a_drain_passes_it_on_when_the_header_has_come(engine):
    passed: list = []
    with accept(engine) as client:
        engine.engine.drain_to(passed.extend)
        assert passed == []
        client.send(b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n")
        wait_for(lambda: passed)
        assert (passed[0].peer, passed[0].local) == FOUR
