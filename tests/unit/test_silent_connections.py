"""The deadlines of new connections: a silent one has --keep-alive, and --header-timeout begins with the first byte."""

from __future__ import annotations

import socket

import gevent
import pytest
from http_harness import Client, Harness, echo, turn, wait_for
from tls_harness import TlsClient, TlsHarness

from reuseport.worker import connection

HEADER, IDLE = 100.0, 1000.0  # seconds
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PROXY = b"PROXY TCP4 1.2.3.4 10.0.0.1 5000 443\r\n"


@pytest.fixture(params=[0, 1], ids=["greenlets", "threads"])
def make(request):
    harnesses = []

    def make(kind=Harness, **options):
        settings = {"header_timeout": HEADER, "keep_alive": IDLE, "threads": request.param, **options}
        harnesses.append(kind(echo, **settings))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


def accept(harness: Harness) -> Client:
    """A client of a proxy's address, as a slot gives it to the engine."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    fd, address = theirs.detach(), ("127.0.0.1", 4000)
    gevent.get_hub().loop.run_callback(lambda: harness.engine.accept(fd, address, ("127.0.0.1", 8000)))
    turn()
    return Client(ours)


def left(harness: Harness) -> float:
    """Seconds until the deadline of the only connection."""
    (one,) = harness.engine._open
    return one.deadline - connection.time.monotonic()


def has(harness: Harness, seconds: float) -> bool:
    return seconds - 20 < left(harness) <= seconds


def test_a_request(make):
    harness = make()
    with harness.connect() as client:
        assert has(harness, IDLE)
        client.send(REQUEST[:3])
        assert has(harness, HEADER)
        client.send(REQUEST[3:10])
        assert has(harness, HEADER)
        client.send(REQUEST[10:])
        wait_for(lambda: client.receive() and client.received)
        wait_for(lambda: has(harness, IDLE))
        client.send(REQUEST[:3])  # the next one, pipelined in two parts
        assert has(harness, HEADER)
        client.send(REQUEST[3:] + REQUEST[:3])
        wait_for(lambda: has(harness, HEADER) and client.receive() and client.received.count(b"HTTP/1.1 200") == 2)


def test_a_request_whose_first_bytes_came_with_the_connection(make):
    harness = make()
    with harness.connect(data=REQUEST[:3]):
        assert has(harness, HEADER)


@pytest.mark.parametrize(("header", "idle", "silent"), [(HEADER, 0, HEADER), (0, IDLE, IDLE)])
def test_an_option_that_is_0(make, header, idle, silent):
    harness = make(header_timeout=header, keep_alive=idle)
    with harness.connect() as client:
        assert has(harness, silent)
        client.send(REQUEST[:3])
        assert left(harness) == float("inf") if not header else has(harness, header)


def test_without_limits_there_is_none(make):
    harness = make(header_timeout=0, keep_alive=0)
    with harness.connect() as client:
        assert left(harness) == float("inf")
        client.send(REQUEST[:3])
        assert left(harness) == float("inf")


def test_a_handshake(make):
    harness = make(TlsHarness)
    client = TlsClient(harness)
    assert has(harness, IDLE)
    assert not client.shake_hands()  # sends the first part
    wait_for(lambda: has(harness, HEADER))
    with client:
        wait_for(lambda: has(harness, IDLE))
        client.tls.write(REQUEST)
        record = client._out.read()
        client.wire.send(record[:3])
        assert has(harness, HEADER)
        client.wire.send(record[3:])
        wait_for(lambda: client.receive() or client.received)
        wait_for(lambda: has(harness, IDLE))


def test_one_byte_of_a_handshake(make):
    harness = make(TlsHarness)
    client = TlsClient(harness)
    client.wire.send(b"\x16")
    assert has(harness, HEADER)
    (one,) = harness.engine._open
    one.deadline -= 50
    client.wire.send(b"\x03")
    assert has(harness, HEADER - 50)
    client.wire.sock.close()


def test_a_proxy_header(make):
    harness = make(proxy_protocol="auto")
    with accept(harness) as client:
        assert has(harness, IDLE)
        client.send(PROXY[:3])
        assert has(harness, HEADER)
        (one,) = harness.engine._open
        one.deadline -= 50
        client.send(PROXY[3:10])
        assert has(harness, HEADER - 50)
        client.send(PROXY[10:])
        assert has(harness, IDLE)  # of the client behind the proxy nothing has come
        client.send(REQUEST[:3])
        assert has(harness, HEADER)


def test_a_proxy_header_with_the_beginning_of_a_request(make):
    harness = make(proxy_protocol="auto")
    with accept(harness) as client:
        client.send(PROXY + REQUEST[:3])
        assert has(harness, HEADER)


def test_a_connection_that_another_worker_has_handed_over_keeps_its_deadline(make):
    harness = make()
    with harness.connect() as client:
        (one,) = harness.engine._open
        one.inherit(b"", 500.0)
        assert has(harness, 500)
        client.send(REQUEST[:3])
        assert has(harness, HEADER)


# --- a drain waits no longer for a silent connection than before, though it has more time


@pytest.mark.parametrize("kind", ["handshake", "proxy header", "proxy header, then handshake"])
def test_a_release_gives_a_silent_connection_that_cannot_be_passed_on_a_last_call(make, kind):
    harness = make() if kind == "handshake" else make(proxy_protocol="auto")
    tls = TlsClient(harness) if kind != "proxy header" else None
    if tls is not None and kind != "handshake":
        tls.wire.sock.close()  # it has only given the engine its certificate
        wait_for(lambda: not harness.engine._open)
    client = tls.wire if kind == "handshake" else accept(harness)
    with client:
        harness.engine.drain_to([].extend)
        assert has(harness, connection.LAST_CALL)
        if kind == "proxy header, then handshake":
            client.send(PROXY)
            assert has(harness, connection.LAST_CALL)
        client.send(b"\x16" if tls is not None else PROXY[:1])
        assert has(harness, HEADER)


def test_a_handshake_that_ends_while_a_worker_drains(make):
    harness = make(TlsHarness)
    client = TlsClient(harness)
    client.shake_hands()
    harness.engine.drain()
    with client:
        wait_for(lambda: has(harness, connection.LAST_CALL))


def test_a_stop_gives_who_has_just_connected_a_moment_for_the_first_byte(make):
    for one in (make(), make(TlsHarness)):
        before = TlsClient(one).wire if isinstance(one, TlsHarness) else one.connect()
        with before:
            one.engine.close_idle()
            assert has(one, connection.FIRST)
        wait_for(lambda one=one: not one.engine._open)
        after = TlsClient(one).wire if isinstance(one, TlsHarness) else one.connect()
        with after:
            assert has(one, connection.FIRST)  # it waited in a queue that the stop has emptied
            after.send(b"\x16" if isinstance(one, TlsHarness) else REQUEST[:3])
            assert has(one, HEADER)


@pytest.mark.parametrize("kind", ["request", "handshake", "request over tls", "proxy header"])
def test_the_first_byte_does_not_take_the_deadline_of_a_drain_away(make, kind):
    """With --header-timeout 0."""
    harness = make(Harness, header_timeout=0, proxy_protocol="auto" if kind == "proxy header" else "off")
    if kind == "request over tls":
        tls = TlsClient(harness).__enter__()
        client = tls.wire
        tls.tls.write(REQUEST)
        data = tls._out.read()[:3]
    elif kind == "handshake":
        client, data = TlsClient(harness).wire, b"\x16"
    else:
        client, data = (accept(harness), PROXY[:1]) if kind == "proxy header" else (harness.connect(), REQUEST[:3])
    with client:
        harness.engine.drain()
        client.send(data)
        wait_for(lambda: has(harness, connection.LAST_CALL))


def test_a_stop_gives_who_has_just_shaken_hands_or_sent_no_proxy_header_a_moment(make):
    one = make(proxy_protocol="auto")
    with accept(one) as client:
        one.engine.close_idle()
        assert has(one, connection.FIRST)
        client.send(PROXY)
        assert has(one, connection.FIRST)
    one = make(TlsHarness)
    with TlsClient(one) as client:
        wait_for(lambda: has(one, IDLE))
        one.engine.close_idle()
        assert has(one, connection.FIRST)
        client.send(REQUEST)
        wait_for(lambda: client.receive() or client.received.startswith(b"HTTP/1.1 200"))
        one.engine.close_idle()
        wait_for(lambda: not one.engine._open)
