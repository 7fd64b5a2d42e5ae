"""Requests in native threads: several at once, in turn, and with the limits that greenlets have."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import threading
import time

import pytest
from http_harness import Harness, parse, wait_for

from reuseport.ipc.scoreboard import ACTIVE, BYTES_OUT, ERRORS, REQUESTS, WAITING

GET = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
SHUT = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
variable = contextvars.ContextVar("variable", default="unset")


class Application:
    """Answers with its thread's name; a path other than / waits until the test has released it."""

    def __init__(self):
        self.running = []
        self.gates = {}

    def gate(self, path):
        return self.gates.setdefault(path, threading.Event())

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        self.running.append(path)
        if path != "/":
            assert self.gate(path).wait(10)
        start_response("200 OK", [])
        return [threading.current_thread().name.encode()]


@pytest.fixture
def make():
    harnesses = []

    def make(application, threads=2, **options):
        harnesses.append(Harness(application, threads=threads, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


def test_as_many_at_once_as_there_are_threads_and_the_others_in_turn(make):
    application = Application()
    harness = make(application)
    paths = [f"/{number}" for number in range(5)]
    clients = []
    for path in paths:
        clients.append(harness.connect())
        clients[-1].send(GET % path.encode())
        wait_for(lambda: harness.engine.requests == len(clients))
    wait_for(lambda: len(application.running) == 2)
    assert (harness.counter(ACTIVE), harness.counter(WAITING)) == (5, 3)
    for path, client in zip(paths, clients, strict=True):
        wait_for(lambda path=path: path in application.running)
        application.gate(path).set()
        client.read_until(b"reuseport-")
    wait_for(lambda: harness.counter(REQUESTS) == 5)
    assert application.running[2:] == paths[2:], "first come, first served"
    assert (harness.counter(ACTIVE), harness.counter(WAITING)) == (0, 0)
    for client in clients:
        client.send(SHUT)
        assert client.read_all().endswith((b"reuseport-1", b"reuseport-2")), "the connection goes on"
        client.sock.close()


def test_the_loop_goes_on_while_every_thread_computes(make):
    stop = []

    def burn(environ, start_response):
        while not stop:
            sum(range(100))
        start_response("200 OK", [])
        return [b""]

    harness = make(burn)
    first, second = harness.connect(), harness.connect()
    first.send(SHUT)
    second.send(SHUT)
    wait_for(lambda: harness.engine.requests == 2)
    assert [answer.status for answer in harness.talk(b"nonsense\r\n\r\n")] == [400]
    stop.append(True)
    for client in (first, second):
        assert parse(client.read_all())[0].status == 200
        client.sock.close()


def test_what_is_thrown_into_a_thread_too_late_harms_no_later_request(make):
    """As libraries do whose timeouts work in threads."""
    idents = []

    def application(environ, start_response):
        idents.append(threading.get_ident())
        start_response("200 OK", [])
        return []

    harness = make(application, threads=1)
    for _ in range(3):
        assert harness.talk(SHUT)[0].status == 200
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(idents[0]), ctypes.py_object(KeyboardInterrupt))
    assert len(set(idents)) == 1 and not harness.errors()


def test_pipelined_requests_are_answered_in_order(make):
    order = []

    def record(environ, start_response):
        order.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    answers = make(record, 4).talk(b"".join(GET % b"/%d" % number for number in range(100)) + SHUT)
    assert [answer.body for answer in answers] == [b"/%d" % number for number in range(100)] + [b"/"]
    assert len(order) == 101


def test_each_request_has_a_context_of_its_own(make):
    def look(environ, start_response):
        before = variable.get()
        variable.set("set")
        start_response("200 OK", [])
        return [before.encode()]

    answers = make(look, 1).talk(GET % b"/" + GET % b"/" + SHUT)
    assert [answer.body for answer in answers] == [b"unset"] * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_is_raised_ends_the_request_and_no_thread(make, error):
    def fail(environ, start_response):
        raise error("no")

    harness = make(fail, 1)
    answers = harness.talk(GET % b"/" + SHUT)
    assert [answer.status for answer in answers] == [500, 500]
    assert harness.counter(ERRORS) == 2


def test_a_slow_reader_gets_all_of_it_and_every_byte_is_counted(make):
    def big(environ, start_response):
        start_response("200 OK", [])
        return (b"%07d\n" % number * 1000 for number in range(500))

    harness = make(big)
    with harness.connect() as client:
        client.send(SHUT)
        wait_for(lambda: harness.engine._open and next(iter(harness.engine._open))._polls)
        data = client.read_all()
    assert parse(data)[0].body == b"".join(b"%07d\n" % number * 1000 for number in range(500))
    wait_for(lambda: harness.counter(BYTES_OUT) == len(data))


def test_a_client_that_takes_nothing_is_given_up(make):
    def big(environ, start_response):
        start_response("200 OK", [])
        while True:
            yield b"x" * 100_000

    harness = make(big, send_timeout=0.05)
    with harness.connect() as client:
        client.send(SHUT)
        wait_for(lambda: harness.engine.requests == 0 and harness.engine.connections == 0)
    assert harness.errors() == []


def test_a_client_that_sends_nothing_of_its_body_gets_408(make):
    def read(environ, start_response):
        environ["wsgi.input"].read()

    harness = make(read, body_timeout=0.05)
    with harness.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        assert parse(client.read_all())[0].status == 408


def test_a_body_that_breaks_off_never_looks_complete(make):
    def broken(environ, start_response):
        start_response("200 OK", [])
        yield b"some"
        raise ValueError

    harness = make(broken)
    with harness.connect(tcp=True) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            client.read_all()


def test_a_drain_waits_for_threads_and_for_the_queue(make):
    application = Application()
    harness = make(application, 1)
    changes = []
    harness.engine.on_change = lambda: changes.append((harness.engine.requests, harness.engine.connections))
    first, second = harness.connect(), harness.connect()
    first.send(GET % b"/a")
    second.send(GET % b"/b")
    wait_for(lambda: harness.engine.requests == 2)
    harness.engine.drain()
    for path, client in (("/a", first), ("/b", second)):
        assert (0, 0) not in changes
        application.gate(path).set()
        (answer,) = parse(client.read_all())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        client.sock.close()
    wait_for(lambda: (0, 0) in changes)


def test_an_idle_connection_is_handed_over_behind_its_request(make):
    application = Application()
    harness = make(application)
    given = []
    with harness.connect() as client:
        client.send(GET % b"/a")
        wait_for(lambda: harness.engine.requests == 1)
        harness.engine.drain_to(given.extend)
        assert given == []
        application.gate("/a").set()
        wait_for(lambda: given)
        assert given[0].can_pass


def test_a_lent_connection_is_closed_only_when_it_comes_back(make):
    application = Application()
    harness = make(application)
    with harness.connect() as client:
        client.send(GET % b"/a")
        wait_for(lambda: application.running)
        (connection,) = harness.engine._open
        fd = connection.fileno()
        harness.close_connections()
        assert connection.fileno() == fd, "its number must not become another connection's meanwhile"
        application.gate("/a").set()
        wait_for(lambda: harness.engine.connections == 0)


def test_a_thread_that_outlives_its_request_costs_it_the_connection(make):
    reading = threading.Event()

    def leave_a_reader(environ, start_response):
        def read():
            reading.set()
            with contextlib.suppress(OSError, ValueError):
                environ["wsgi.input"].raw.read(1)

        threading.Thread(target=read, daemon=True).start()
        reading.wait(10)
        deadline = time.monotonic() + 10
        while not connection._polls and time.monotonic() < deadline:
            time.sleep(0.001)
        start_response("200 OK", [])
        return [b""]

    harness = make(leave_a_reader)
    with harness.connect() as client:
        (connection,) = harness.engine._open
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        client.read_all()
    wait_for(lambda: harness.engine.connections == 0)


def test_a_latency_is_counted_in_the_loop_and_begins_with_the_queue(make):
    application = Application()
    harness = make(application, threads=1)
    clients = [harness.connect() for _ in range(2)]
    for number, client in enumerate(clients):
        client.send(GET % f"/{number}".encode())
    wait_for(lambda: harness.counter(WAITING) == 1)
    since = time.monotonic()
    wait_for(lambda: time.monotonic() > since + 0.05)
    for number in range(2):
        application.gate(f"/{number}").set()
    wait_for(lambda: len(harness.engine.latencies) == 2)
    assert harness.engine.latencies[1] > 0.05
