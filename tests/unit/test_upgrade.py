"""Connections that the application takes over."""

from __future__ import annotations

import socket

import gevent
import gevent.event
import pytest
from http_harness import Harness, echo, open_fds, parse, wait_for

from reuseport.ipc.scoreboard import ACTIVE, CONNECTIONS, ERRORS, REQUESTS, UPGRADED
from reuseport.worker.frames import GOING_AWAY, Frames

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.fixture
def engine():
    gevent.sleep(0)  # a hub's own descriptors
    fds = open_fds()
    harness = Harness(echo)
    yield harness
    harness.close()
    wait_for(lambda: open_fds() <= fds)


def raw_echo(environ, start_response):
    """Answers in the client's own bytes, and ends as gunicorn's workers expect it."""
    sock = environ["gunicorn.socket"]
    sock.sendall(SWITCHED)
    while data := sock.recv(100):
        sock.send(data)
    raise StopIteration


def test_a_connection_that_nobody_takes_goes_on(engine):
    with engine.connect() as client:
        client.send(UPGRADE + UPGRADE + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert [answer.status for answer in parse(client.read_all())] == [200, 200, 200]


@pytest.mark.parametrize("request_", [
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\nx",
])  # fmt: skip
def test_what_is_no_wish_for_another_protocol(engine, request_):
    def application(environ, start_response):
        assert "gunicorn.socket" not in environ
        return echo(environ, start_response)

    engine.application = application
    assert engine.talk(request_)[0].status == 200


@pytest.mark.parametrize("tcp", [False, True])
def test_what_came_behind_the_head_comes_first(engine, tcp):
    engine.application = raw_echo
    with engine.connect(tcp=tcp) as client:
        client.send(UPGRADE + b"first")
        client.read_until(SWITCHED + b"first")
        client.send(b"second")
        client.read_until(b"second")
        assert (engine.counter(ACTIVE), engine.counter(CONNECTIONS)) == (0, 1)
        client.finish()
        assert client.read_all() == b""
    assert engine.counter(ERRORS) == 0
    assert engine.errors() == []


@pytest.mark.parametrize("ending", ["list", "response", "ConnectionError", "error", "close"])
def test_whatever_the_handler_ends_with_nothing_of_it_is_sent(engine, ending):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        if ending == "response":
            return echo(environ, start_response)
        if ending == "ConnectionError":
            raise ConnectionError
        if ending == "error":
            raise ZeroDivisionError
        if ending == "close":
            sock.close()
        return []

    engine.application = application
    with engine.connect() as client:
        client.send(UPGRADE)
        assert client.read_all() == SWITCHED
        client.finish()
    wait_for(lambda: engine.counter(CONNECTIONS) == 0)
    assert engine.engine.requests == 0
    assert engine.counter(ERRORS) == len(engine.errors()) == (ending == "error")


def test_without_descriptors_the_connection_is_not_taken_and_the_client_is_told(engine, monkeypatch):
    def scarce(*_):
        raise OSError(24, "Too many open files")

    engine.application = raw_echo
    with engine.connect() as client:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", scarce)
            client.send(UPGRADE + b"first")
        assert parse(client.read_until(b"500 Internal Server Error\n"))[0].status == 500
    wait_for(lambda: engine.engine.connections == 0)
    assert engine.engine.requests == 0


def test_a_large_message_is_sent_whole_and_alone(engine):
    """simple-websocket does not look at what send() returns; and a pong may be sent while it is under way."""
    size = 4_000_000

    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        other = gevent.spawn(gevent.sleep, 0)
        writers = [gevent.spawn(sock.send, one * size) for one in (b"a", b"b")]
        assert [writer.get() for writer in writers] == [size, size]
        other.join()
        return []

    engine.application = application
    with engine.connect() as client:
        client.send(UPGRADE)
        data = client.read_all()[len(SWITCHED) :]
        client.finish()
    assert data in (b"a" * size + b"b" * size, b"b" * size + b"a" * size)


@pytest.mark.parametrize("early", [b"", b"\x81\x01x"])
def test_a_drain_says_that_it_is_going_away(engine, early):
    engine.engine.websocket_drain = 0.05
    engine.application = raw_echo
    with engine.connect() as client:
        client.send(UPGRADE + early)
        client.read_until(SWITCHED)
        engine.engine.drain()
        client.read_until(GOING_AWAY)
        client.send(b"the answer")
        client.finish()
        assert client.read_all() == b""  # and nothing of the echo comes behind a close frame
    wait_for(lambda: engine.counter(CONNECTIONS) == 0)


def test_a_drain_ends_another_protocol(engine):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        seen.append(sock.recv(100))
        return []

    seen: list[bytes] = []
    engine.engine.websocket_drain = 0
    engine.application = application
    with engine.connect() as client:
        client.send(UPGRADE)
        client.read_until(b"\r\n\r\n")
        engine.engine.drain()
        assert client.read_all() == b""
        client.finish()
    assert seen == [b""]


def test_the_socket_is_of_no_use_after_its_request(engine):
    def application(environ, start_response):
        kept.append(environ["gunicorn.socket"])
        return echo(environ, start_response)

    kept: list = []
    engine.application = application
    assert engine.talk(UPGRADE)[0].status == 200
    with pytest.raises(OSError, match="the request is over"):
        kept[0].send(b"x")


def test_a_handler_can_select_on_it(engine):
    def application(environ, start_response):
        from gevent.selectors import DefaultSelector

        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        with DefaultSelector() as selector:
            selector.register(sock, 1)
            assert selector.select(10)
        seen.append(sock.recv(100))
        return []

    seen: list[bytes] = []
    engine.application = application
    with engine.connect() as client:
        client.send(UPGRADE + b"early")
        client.read_until(SWITCHED)
        client.finish()
        client.read_all()
    assert seen == [b"early"]


def frame(opcode: int, size: int, masked: bool = False) -> bytes:
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else (
        b"\x7f" + size.to_bytes(8, "big"))  # fmt: skip
    mask = b"mask" if masked else b""
    return bytes([0x80 | opcode, length[0] | (128 if masked else 0)]) + length[1:] + mask + b"p" * size


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 1 << 20])
def test_frames_are_followed_however_they_are_cut(step):
    pieces = [SWITCHED, frame(1, 0), frame(2, 125), frame(1, 126), frame(9, 4, True), frame(2, 70000)]
    ends = {sum(map(len, pieces[: count + 1])) for count in range(len(pieces))}
    data, frames, at = b"".join(pieces), Frames(), 0
    while at < len(data):
        frames.follow(data[at : at + step])
        at = min(at + step, len(data))
        assert frames.between == (at in ends)
    frames.follow(GOING_AWAY)
    assert frames.closing
    assert not frames.between


def test_a_refusal_is_no_websocket():
    frames = Frames()
    frames.follow(b"HTTP/1.1 400 Bad Request\r\nUpgrade: websocket\r\n\r\n\x81\0")
    assert not frames.between


def test_a_pair_is_not_needed_where_nothing_was_read(engine):
    def application(environ, start_response):
        kinds.append(environ["gunicorn.socket"].family)
        environ["gunicorn.socket"].send(SWITCHED)
        return []

    kinds: list = []
    engine.application = application
    with engine.connect(tcp=True) as client:
        client.send(UPGRADE)
        client.read_all()
    assert kinds == [socket.AF_INET]


def test_a_handler_that_does_not_end_is_not_waited_for_without_limit(engine, monkeypatch):
    from reuseport.worker import upgrade

    monkeypatch.setattr(upgrade, "ANSWER_TIME", 0.02)
    monkeypatch.setattr(upgrade, "HANDLER_TIME", 0.05)
    released = gevent.event.Event()

    def application(environ, start_response):
        environ["gunicorn.socket"].send(SWITCHED)
        released.wait()
        return []

    engine.engine.websocket_drain = 0
    engine.application = application
    with engine.connect() as client:
        client.send(UPGRADE)
        client.read_until(SWITCHED)
        engine.engine.drain()
        wait_for(lambda: engine.counter(CONNECTIONS) == 0)
        assert client.read_all() == GOING_AWAY
        assert any("is not waited for" in text for text in engine.errors())
        released.set()
        wait_for(lambda: not engine.engine.upgraded)
    assert engine.engine.requests == 0


def test_how_long_it_stays_taken_over_is_no_latency(engine):
    engine.application = raw_echo
    with engine.connect() as client:
        client.send(UPGRADE)
        assert client.read_until(b"\r\n\r\n") == SWITCHED
    wait_for(lambda: engine.counter(REQUESTS) == 1)
    assert engine.engine.latencies == []
    assert engine.counter(UPGRADED) == 1
