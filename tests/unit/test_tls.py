"""TLS on an engine in this process: how bytes arrive, what waits inside, and which ends are proper ones."""

from __future__ import annotations

import ssl

import pytest
from http_harness import Harness, echo, parse, turn, wait_for
from tls_harness import TlsClient

from reuseport.ipc.scoreboard import CONNECTIONS
from reuseport.worker import tls

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture
def engine():
    harness = Harness(echo)
    yield harness
    harness.close()
    assert harness.errors() == []


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_however_the_bytes_arrive(engine, version, step):
    with TlsClient(engine, version, step) as client:
        client.send(REQUEST.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nbody"))
        client.send(LAST)
        answers = parse(client.read_all())
    assert client.proper
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].echo["body"] == "body"
    assert answers[0].echo["environ"]["HTTPS"] == "on"


def test_what_waits_inside_is_served(engine):
    """More requests than one read takes, in records larger than one read, and then nothing more to wake anybody."""
    with TlsClient(engine) as client:
        client.send(REQUEST * 2000 + LAST)
        assert [answer.status for answer in parse(client.read_all())] == [200] * 2001
        assert client.proper


def test_a_body_in_many_records(engine):
    body = bytes(range(256)) * 4000
    with TlsClient(engine) as client:
        client.send(LAST.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body)))
        client.send(body)
        (answer,) = parse(client.read_all())
    assert answer.echo["body"].encode("latin-1") == body


def test_more_is_decrypted_at_once_than_a_piece(engine):
    """A record that had come all but its last byte, and others behind it, while a chunk's size is waited for."""
    body = bytes(range(256)) * 128
    chunked = b"".join(b"%x\r\n%b\r\n" % (100, body[at : at + 100]) for at in range(0, 25000, 100)) + b"0\r\n\r\n"
    engine.application = lambda environ, start_response: (
        start_response("200 OK", []),
        [b"%d;" % (environ["wsgi.input"].read() == body[:25000])],
    )[1]
    with TlsClient(engine) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        wait_for(lambda: engine.engine.requests)
        for at, size in ((0, 16384), (16384, 8000), (24384, len(chunked) - 24384)):
            client.tls.write(chunked[at : at + size])  # a record
        data = client._out.read()
        client.wire.send(data[:16405])
        client.wire.send(data[16405:])
        wait_for(lambda: client.receive() or client.received.endswith(b";"))
        assert parse(client.received)[0].body == b"1;"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_slow_client_gets_all_of_it_and_a_proper_end(engine, version):
    size = 2_000_000

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", str(size))])
        return [b"x" * size]

    engine.application = application
    with TlsClient(engine, version) as client:
        client.send(LAST)
        (answer,) = parse(client.read_all(10_000))
        assert (len(answer.body), client.proper) == (size, True)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_response_that_ends_with_the_connection(engine, breaks):
    """Only a whole one ends with close_notify: without a length there is nothing else to tell by."""

    def application(environ, start_response):
        start_response("200 OK", [])
        yield b"some"
        if breaks:
            raise ZeroDivisionError

    engine.application = application
    with TlsClient(engine) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        try:
            client.read_all()
        except ConnectionResetError:
            assert breaks
        assert client.proper == (not breaks)
    assert [text for text in engine.errors() if "ZeroDivisionError" in text] or not breaks
    engine.log.clear()


def test_a_drain_answers_what_comes_and_closes_an_idle_connection_a_little_later(engine, monkeypatch):
    monkeypatch.setattr(tls, "LAST_CALL", 0.3)
    passed: list = []
    clients = [TlsClient(engine) for _ in range(4)]
    with clients[0] as idle, clients[1] as busy, clients[2] as begun, clients[3] as late:
        for client in clients:
            client.send(REQUEST)
            wait_for(lambda client=client: client.receive() or b'"body"' in client.received)
            client.received = b""
        begun.send(REQUEST[:10])
        busy.tls.write(REQUEST)
        busy.wire.sock.send(busy._out.read())  # the kernel has it, and the engine has had no turn to read it
        engine.engine.drain_to(passed.extend)
        turn()
        late.send(REQUEST)  # it was under way already
        assert parse(late.read_all())[0].headers["connection"] == "close"
        assert parse(busy.read_all())[0].headers["connection"] == "close"
        begun.send(REQUEST[10:])
        assert parse(begun.read_all())[0].headers["connection"] == "close"
        assert (idle.read_all(), idle.proper) == (b"", True)
    assert passed == []
    wait_for(lambda: engine.counter(CONNECTIONS) == 0)


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 40, -1])
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("moment", ["before", "after", "behind another"])
def test_who_has_sent_part_of_a_record_has_begun_a_request(engine, monkeypatch, cut, stop, moment):
    """Before a drain or after, or together with the request before: it has --header-timeout for the rest."""
    monkeypatch.setattr(tls, "LAST_CALL", 0.01)
    with TlsClient(engine) as client:
        if moment == "behind another":
            client.tls.write(REQUEST)
        first = client._out.read()
        client.tls.write(REQUEST)
        record = client._out.read()
        (connection,) = engine.engine._open
        if moment == "after":
            engine.engine.drain_to([].extend)
        client.wire.send(first + record[:cut])
        if moment == "behind another":
            wait_for(lambda: client.receive() or b'"body"' in client.received)
            client.received = b""
        if stop:
            engine.engine.drain()
            engine.engine.close_idle()
        elif moment != "after":
            engine.engine.drain_to([].extend)
        assert connection.state == "head"
        assert connection.seconds_left() > 9
        client.wire.send(record[cut:])
        assert parse(client.read_all())[0].headers["connection"] == "close"


def test_part_of_a_record_and_nothing_else(engine):
    """It is refused like any head that takes too long, whether something drains or not."""
    engine.engine.header_timeout = 0.3
    with TlsClient(engine) as client:
        client.tls.write(REQUEST)
        client.wire.send(client._out.read()[:-1])
        assert parse(client.read_all())[0].status == 408


def test_who_does_not_speak_tls(engine):
    for data, answers in ((REQUEST, 1), (b"\x16\x03\x01nonsense" * 20, 0), (b"\0" * 100, 0)):
        client = TlsClient(engine)
        client.wire.send(data)
        client.wire.finish()
        received = client.wire.read_all()
        assert received.startswith(b"HTTP/1.1 400") == bool(answers)
        client.wire.sock.close()
    wait_for(lambda: engine.counter(CONNECTIONS) == 0)


def test_a_handshake_has_a_limit():
    harness = Harness(echo, header_timeout=0.1)
    client = TlsClient(harness)
    client.wire.send(b"\x16\x03\x01")
    assert client.wire.read_all() == b""
    client.wire.sock.close()
    harness.close()
