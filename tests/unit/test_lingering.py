"""A client whose request is refused can send all of its upload, and read the refusal then."""

from __future__ import annotations

import time

import gevent
import pytest
from http_harness import Harness, echo, parse, wait_for
from tls_harness import TlsClient, TlsHarness

from reuseport.worker import lingering
from reuseport.worker.lingering import LINGER_BYTES, LINGER_IN_DRAIN, LINGER_PAUSE, LINGER_TIME
from reuseport.worker.states import LINGERING

WAYS = {
    "greenlets": (Harness, 0, False),
    "threads": (Harness, 2, False),
    "buffered": (Harness, 0, True),
    "TLS": (TlsHarness, 0, False),
    "TLS, threads, buffered": (TlsHarness, 2, True),
}
LENGTH = b"POST /up HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n"
CHUNKS = b"POST /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"10\r\n0123456789abcdef\r\n"


def unread(environ, start_response):
    """Refuses without a look at the body."""
    start_response("401 Unauthorized", [("Content-Length", "0")])
    return []


# What is refused, by whom, and with which status.
CASES = {
    "a length": (LENGTH, echo, {"limit_request_body": 1000}, 413),
    "chunks": (CHUNKS + PIECE * 100, echo, {"limit_request_body": 1000}, 413),
    "a head": (b"POST /up HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", echo, {}, 400),
    "by the application": (LENGTH, unread, {}, 401),
}


@pytest.fixture
def make():
    harnesses = []

    def make(way, application=echo, **options):
        kind, threads, buffered = WAYS[way]
        harnesses.append(kind(application, threads=threads, buffer_chunked=buffered, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


def connected(harness):
    return TlsClient(harness) if isinstance(harness, TlsHarness) else harness.connect(tcp=True)


def refused(harness, client, data):
    """The connection, once it lingers behind a refusal."""
    client.send(data)
    wait_for(lambda: [one.state for one in harness.engine._open] == [LINGERING])
    (connection,) = harness.engine._open
    return connection


def left(connection) -> float:
    return connection.deadline - time.monotonic()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_while_bytes_come(make, way, case):
    data, application, options, status = CASES[case]
    harness = make(way, application, **options)
    with connected(harness) as client:
        connection = refused(harness, client, data)
        for _ in range(2):
            connection.deadline = time.monotonic() + 1000
            wire = getattr(client, "wire", client)
            wire.send(PIECE * 1000)  # a refusal's TLS is not even decrypted
            wait_for(lambda: left(connection) <= LINGER_PAUSE)
        wire.finish()
        (answer,) = parse(client.read_all())
    assert (answer.status, answer.whole) == (status, True)
    wait_for(lambda: not harness.engine.connections)


def test_an_upload_longer_than_a_drain_would_wait_is_answered(make, monkeypatch):
    monkeypatch.setattr(lingering, "LINGER_PAUSE", LINGER_TIME)  # however slow this machine is
    harness = make("greenlets", limit_request_body=1000)
    with harness.connect(tcp=True) as client:
        client.send(LENGTH)
        ends = time.monotonic() + LINGER_IN_DRAIN + 0.7
        while time.monotonic() < ends:
            client.sock.setblocking(True)
            client.sock.sendall(bytes(20_000))  # a broken pipe, if the server has given up
            client.sock.setblocking(False)
            gevent.sleep(0.05)
        client.finish()
        (answer,) = parse(client.read_all())
    assert (answer.status, answer.whole) == (413, True)


@pytest.mark.parametrize("way", ["greenlets", "TLS"])
def test_a_pause_ends_it(make, way):
    harness = make(way, limit_request_body=1000)
    began = time.monotonic()
    with connected(harness) as client:
        connection = refused(harness, client, LENGTH)
        assert connection.deadline >= began + LINGER_PAUSE
        assert left(connection) <= LINGER_PAUSE
        connection._set_deadline(0.1)
        wait_for(lambda: not harness.engine.connections)


def test_its_time_is_bounded(make):
    harness = make("greenlets", limit_request_body=1000)
    began = time.monotonic()
    with connected(harness) as client:
        connection = refused(harness, client, LENGTH)
        assert began + LINGER_TIME <= connection._lingers_until <= time.monotonic() + LINGER_TIME
        connection._lingers_until = time.monotonic() + 0.3
        wait_for(lambda: client.send(bytes(1000)) or not harness.engine.connections)


def test_its_bytes_are_bounded(make, monkeypatch):
    assert LINGER_BYTES >= 1 << 28, "an upload of some size is sent to its end"
    monkeypatch.setattr(lingering, "LINGER_BYTES", 100_000)
    harness = make("greenlets", limit_request_body=1000)
    with connected(harness) as client:
        refused(harness, client, LENGTH)
        wait_for(lambda: client.send(bytes(10_000)) or not harness.engine.connections)


@pytest.mark.parametrize("way", ["greenlets", "threads", "TLS"])
@pytest.mark.parametrize("first", ["refusal", "drain"])
@pytest.mark.parametrize("heir", [False, True])
def test_a_drain_waits_no_longer_than_before(make, way, first, heir):
    harness = make(way, limit_request_body=1000)

    def drain():
        if heir:
            harness.engine.drain_to(lambda connections: None)
        else:
            harness.engine.drain()
            harness.engine.close_idle()

    with connected(harness) as client:
        if first == "drain":
            client.send(LENGTH[:10])
            drain()
            connection = refused(harness, client, LENGTH[10:])
        else:
            connection = refused(harness, client, LENGTH)
            drain()
        ends = time.monotonic() + LINGER_IN_DRAIN
        assert connection._lingers_until <= ends
        assert connection.deadline <= ends
        getattr(client, "wire", client).send(bytes(20_000))
        assert connection.deadline <= ends, "what comes meanwhile does not prolong it"
        connection._lingers_until = time.monotonic() - 1
        connection._set_deadline(0.01)
        wait_for(lambda: not harness.engine.connections)


def test_a_blocked_loop_does_not_end_it(make):
    harness = make("greenlets", limit_request_body=1000)
    with connected(harness) as client:
        connection = refused(harness, client, LENGTH)
        client.sock.send(bytes(1000))
        connection._set_deadline(0.01)
        time.sleep(0.6)  # in the loop: a view that computes
        wait_for(lambda: left(connection) > LINGER_PAUSE / 2)
        assert harness.engine.connections == 1
