"""An edge is told once: nothing that a client has sent, its end included, may wait for an event that does not come."""

from __future__ import annotations

import array
import os
import socket
import time

import gevent
import pytest
from http_harness import Harness, parse, turn, wait_for

from reuseport.worker import timeslice
from reuseport.worker.connection import Connection
from reuseport.worker.readers import TURN
from reuseport.worker.stream import PIECE

MEGABYTE = 1 << 20
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def sizes(environ, start_response):
    body = b"%d;" % len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Gate:
    """An application that holds each request until it is opened."""

    def __init__(self) -> None:
        self.opened = gevent.event.Event()
        self.inside = 0

    def __call__(self, environ, start_response):
        self.inside += 1
        self.opened.wait()
        return sizes(environ, start_response)


@pytest.fixture
def defects(monkeypatch):
    """What callbacks of the loop have raised."""
    raised = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, error, tb: raised.append(error))
    return raised


@pytest.fixture
def engine(defects):
    harness = Harness(sizes)
    yield harness
    harness.close()
    assert harness.errors() == []
    assert defects == []


@pytest.fixture(params=["tcp", "unix"])
def connect(engine, request):
    return lambda: engine.connect(tcp=request.param == "tcp")


def send_at_once(client, data: bytes) -> None:
    """Before the loop turns."""
    assert client.sock.send(data) == len(data)


def answers(data: bytes) -> list[bytes]:
    return [answer.body for answer in parse(data)]


# What a read leaves behind.


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1])
def test_a_head_that_fills_the_piece(connect, engine, size):
    """The request's end lies in a later piece, and all of it came in one."""
    engine.engine.parser.limit_field_size = 1 << 20
    head = b"GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n"
    data = head.replace(b"A: ", b"A: " + b"a" * (size - len(head)))
    with connect() as client:
        send_at_once(client, data + GET)
        wait_for(lambda: not client.receive() or client.received.count(b"HTTP/1.1 ") == 2)


@pytest.mark.parametrize("length", [PIECE - 500, 2 * PIECE, 5 * PIECE])
def test_a_body_longer_than_a_piece_and_a_request_behind_it(connect, length):
    with connect() as client:
        send_at_once(client, POST % length + b"a" * length + GET)
        client.read_until(b"%d;" % length)
        client.read_until(b"0;")


def test_pipelined_requests_in_many_pieces(connect):
    count = 3 * PIECE // len(GET)
    with connect() as client:
        send_at_once(client, GET * count)
        wait_for(lambda: client.receive() and client.received.count(b"0;") == count)


def test_rest_behind_urgent_data(engine):
    """A read stops at the urgent byte, which is not part of the stream."""
    with engine.connect(tcp=True) as client:
        client.sock.send(GET[:9])
        client.sock.send(b"!", socket.MSG_OOB)
        send_at_once(client, GET[9:])
        client.read_until(b"0;")
        send_at_once(client, GET)
        client.read_until(b"0;")


def test_rest_behind_a_descriptor(engine):
    """A read of a unix socket ends behind what has descriptors attached."""
    with engine.connect() as client:
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.sock.fileno()]))]
        client.sock.sendmsg([GET[:9]], attached)
        send_at_once(client, GET[9:])
        client.read_until(b"0;")


# The end of the stream.


ENDS = [b"", GET, GET * 2, GET * 40, GET[:-2], POST % 5 + b"abcde", POST % PIECE + bytes(PIECE)]


@pytest.mark.parametrize("data", ENDS)
def test_the_end_comes_with_the_bytes(connect, data):
    """One edge for both."""
    with connect() as client:
        send_at_once(client, data) if data else None
        client.sock.shutdown(socket.SHUT_WR)
        client.read_all()
        refused = data == GET[:-2]
        assert len(parse(client.received)) == max(data.count(b"HTTP"), refused)


def test_the_end_comes_while_the_application_works(connect, engine):
    gate = engine.application = Gate()
    with connect() as client:
        client.send(GET)
        client.sock.shutdown(socket.SHUT_WR)
        turn()
        gate.opened.set()
        client.read_all()
        assert answers(client.received) == [b"0;"]


def test_a_reset_with_the_bytes(engine):
    with engine.connect(tcp=True) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        send_at_once(client, GET[:9])
        client.sock.close()
        wait_for(lambda: engine.engine.connections == 0)


# Stopped, and started again.


def test_a_request_comes_while_the_application_works(connect, engine):
    """Its edge meets a connection that may not be read, and keeps nobody busy."""
    gate = engine.application = Gate()
    with connect() as client:
        client.send(GET)
        for _ in range(3):
            client.sock.send(GET)
            turn()
        assert gate.inside == 1
        engine.engine.readers.set.poll(0)  # the last one's edge, if the loop has not come to it
        assert engine.engine.readers.set.poll(0) == []
        gate.opened.set()
        wait_for(lambda: client.receive() and client.received.count(b"0;") == 4)


def test_a_request_comes_while_the_body_is_read(connect, engine):
    """The greenlet that reads the body leaves what follows it in the kernel, and has taken its edge."""
    with connect() as client:
        client.send(POST % 5 + b"ab")
        send_at_once(client, b"cde" + GET)
        client.read_until(b"5;")
        client.read_until(b"0;")


def test_body_comes_before_it_is_asked_for(connect, engine):
    gate = engine.application = Gate()
    with connect() as client:
        client.send(POST % 5)
        client.send(b"abcde" + GET)
        gate.opened.set()
        client.read_until(b"5;")
        client.read_until(b"0;")


def test_what_is_thrown_away_came_before(connect, engine):
    """A refused body: the connection listens for the client's end, which was there already."""
    gate = engine.application = Gate()
    with connect() as client:
        client.send(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n")
        send_at_once(client, b"abcde" + bytes(3 * PIECE))
        client.sock.shutdown(socket.SHUT_WR)
        turn()
        gate.opened.set()
        client.read_all()
        wait_for(lambda: engine.engine.connections == 0)


def test_passed_on_and_taken_back(connect, engine):
    """What came between, when nobody was called, is served."""
    with connect() as client:
        (connection,) = engine.engine._open
        connection.let_go()
        send_at_once(client, GET)
        turn()
        turn()
        assert not client.received
        connection.take_back()
        client.read_until(b"0;")


def test_what_has_left_the_set_is_not_heard_of(engine):
    """Its open file lives on, here as the copy that its receiver would have."""
    with engine.connect() as client:
        (connection,) = engine.engine._open
        connection.let_go()
        copy = os.dup(connection.fileno())
        connection.passed()
        client.sock.send(GET)
        assert engine.engine.readers.set.poll(0) == []
        os.close(copy)


def test_what_the_application_has_taken_is_not_heard_of(connect, engine):
    def take(environ, start_response):
        environ["gunicorn.socket"].sendall(b"taken")
        gate.inside += 1
        gate.opened.wait()
        raise StopIteration

    gate, engine.application = Gate(), take
    with connect() as client:
        client.send(GET[:-2] + b"Connection: upgrade\r\nUpgrade: x\r\n\r\n")
        client.read_until(b"taken")
        client.sock.send(b"for its taker")
        assert engine.engine.readers.set.poll(0) == []
        gate.opened.set()
    wait_for(lambda: engine.engine.connections == 0)


# Stale words of the kernel.


def test_closed_by_another_of_the_same_turn(engine):
    """Both are readable; whoever comes first closes the other."""

    def close_the_other(environ, start_response):
        for connection in list(engine.engine._open):
            if connection.state != "serving":
                connection.close()
        return sizes(environ, start_response)

    engine.application = close_the_other
    clients = [engine.connect(), engine.connect()]
    for client in clients:
        client.sock.send(GET)
    wait_for(lambda: engine.engine.connections == 1)
    heard = []
    for client in clients:
        with client:
            turn()
            try:
                client.receive()
            except ConnectionResetError:
                heard.append(b"")
            else:
                heard.append(client.received[-2:])
    assert sorted(heard) == [b"", b"0;"]


@pytest.mark.parametrize("state", ["waiting", "head", "working", "body", "lingering"])
def test_called_with_nothing_to_read(engine, state):
    """As by an event that was meant for an earlier owner of the number."""
    gate = Gate()
    engine.application = gate if state == "working" else sizes
    with engine.connect(tcp=True) as client:
        (connection,) = engine.engine._open
        client.send({"waiting": b"", "head": GET[:9], "body": POST % 5}.get(state, GET))
        if state == "lingering":
            connection.linger()
        wait_for(lambda: state != "working" or gate.inside)
        wait_for(lambda: state != "body" or engine.engine.requests)
        for _ in range(3):
            gevent.get_hub().loop.run_callback(lambda: (connection._reader.callback or int)())
            gevent.sleep(0.001)
        assert engine.engine.connections == 1
        gate.opened.set()
        client.send({"waiting": GET, "head": GET[9:], "body": b"abcde"}.get(state, b""))
        if state != "lingering":
            client.read_until(b"5;" if state == "body" else b"0;")


# A loop that was blocked.


@pytest.mark.parametrize("state", ["fresh", "kept", "head", "body"])
@pytest.mark.parametrize("clients", [1, 3 * TURN])
def test_what_came_before_its_deadline_is_served_behind_it(engine, state, clients):
    """A view has computed for longer than the deadlines: the loop sees them pass before it sees what has come."""
    before, rest, stands = {
        "fresh": (b"", GET, "waiting"),
        "kept": (GET, GET, "waiting"),
        "head": (GET[:9], GET[9:], "head"),
        "body": (POST % 5, b"abcde", "serving"),
    }[state]
    some = [engine.connect() for _ in range(clients)]
    for client in some:
        client.send(before)
        if state == "kept":
            client.read_until(b"0;")
    wait_for(lambda: {one.state for one in engine.engine._open} == {stands})
    for client in some:
        send_at_once(client, rest)
    for connection in engine.engine._open:
        connection._set_deadline(0.3)
    time.sleep(0.8)
    for client in some:
        wait_for(lambda client=client: not client.receive() or client.received)
        assert answers(client.received) == [b"5;" if state == "body" else b"0;"]
        client.sock.close()


# Everybody's turn.


def test_one_that_sends_without_end_starves_nobody(engine):
    """Its bytes are read piece by piece, and between two pieces the others'."""
    order = []

    def application(environ, start_response):
        order.append(environ["PATH_INFO"])
        return sizes(environ, start_response)

    engine.application = application
    with engine.connect(tcp=True) as greedy, engine.connect(tcp=True) as modest:
        request = b"GET /greedy HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"a" * 500)
        greedy.sock.setblocking(True)
        greedy.sock.sendall(request * 300)
        modest.sock.send(GET)
        modest.read_until(b"0;")
        assert order.index("/") < 100
        wait_for(lambda: greedy.receive() and greedy.received.count(b"0;") == 300)


@pytest.mark.parametrize("way", ["in", "out"])
def test_one_who_is_never_waited_for_starves_nobody(engine, monkeypatch, way):
    """Its body has all come, or it takes all at once, for instance a proxy that has kept the body in a file."""
    done, seen = [], []
    monkeypatch.setattr(timeslice, "SECONDS", -1.0)  # so that bytes can be counted

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/":
            seen.append(len(done))
            return sizes(environ, start_response)
        modest.sock.send(GET)
        while environ["wsgi.input"].read(MEGABYTE):
            done.append(1)
        start_response("200 OK", [])
        return (done.append(1) or bytes(MEGABYTE) for _ in range(200 if way == "out" else 0))

    engine.application = application
    monkeypatch.setattr(Connection, "read_into", lambda self, view: len(view))
    send = Connection.send
    monkeypatch.setattr(Connection, "send", lambda self, data: send(self, data) if len(data) < MEGABYTE else None)
    with engine.connect() as greedy, engine.connect() as modest:
        length = 200 * MEGABYTE if way == "in" else 0
        greedy.sock.send(b"POST /greedy HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
        modest.read_until(b"0;")
        assert seen[0] < 5
        wait_for(lambda: engine.engine.requests == 0)
        assert len(done) == 200


def test_more_at_once_than_a_turn_takes(engine):
    clients = [engine.connect() for _ in range(2 * TURN + 1)]
    for client in clients:
        client.sock.send(GET)
    for client in clients:
        client.read_until(b"0;")
        client.sock.close()


def test_one_that_fails_takes_nobody_along(engine, defects):
    """A defect in one callback: the loop says so, and the others of the same turn are called."""
    with engine.connect() as broken, engine.connect() as client:
        connection = next(one for one in engine.engine._open)
        connection._reader.callback = lambda: 1 / 0
        broken.sock.send(GET)
        client.sock.send(GET)
        wait_for(lambda: (broken.receive(), client.receive()) and b"0;" in broken.received + client.received)
        assert type(defects.pop()) is ZeroDivisionError
        connection.close()


def test_what_raises_between_two_of_them_makes_nobody_deaf(engine, defects):
    """As the handler of a signal of the application's does, wherever the main thread is. The loop would not look at
    the set again, and the edges of those that were still to be called would be lost."""
    readers = engine.engine.readers
    interrupted = []

    class Interrupted(dict):
        def get(self, fd):
            if not interrupted:
                interrupted.append(fd)
                raise TimeoutError
            return super().get(fd)

    clients = [engine.connect() for _ in range(3)]
    readers.by_fd = Interrupted(readers.by_fd)
    for client in clients:
        client.sock.send(GET)
    wait_for(lambda: sum(client.receive() and b"0;" in client.received for client in clients) == 2)
    assert type(defects.pop()) is TimeoutError
    for client in clients:
        client.sock.send(GET)
        client.read_until(b"0;")
        client.sock.close()


def test_a_defect_closes_its_connection(connect, engine, defects):
    """Nobody would come to it again, and a drain would wait for it for ever."""
    run = engine.engine.run
    engine.engine.run = lambda response: 1 / 0
    with connect() as client:
        client.sock.send(GET)
        wait_for(lambda: engine.engine.connections == 0)
        assert type(defects.pop()) is ZeroDivisionError
    engine.engine.run = run


def test_a_forked_child_leaves_the_set_alone(engine):
    with engine.connect() as client:
        pid = os.fork()
        if not pid:
            try:
                engine.engine.abandon()
                os._exit(bool(engine.engine.readers.by_fd))
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        client.send(GET)
        client.read_until(b"0;")
