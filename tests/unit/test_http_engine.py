"""Limits, deadlines, the drain, pipelining, and what is left behind: nothing."""

from __future__ import annotations

import gc
import socket
import threading
import time

import gevent
import pytest
from examples import examples
from gevent.event import Event
from gevent.local import local
from http_harness import Harness, counted_fds, echo, open_fds, parse, turn, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport.ipc.scoreboard import ACTIVE, CONNECTIONS, ERRORS, REQUESTS
from reuseport.worker import connection, engine
from reuseport.worker.engine import MANY_LATENCIES

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


@pytest.fixture
def make():
    harnesses = []

    def make(application=hello, **options):
        harnesses.append(Harness(application, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


# Limits. Each is tested at its last good value and one beyond, whole and byte by byte.


def both(harness, data):
    """The statuses, which are the same however the bytes arrive."""
    whole = [answer.status for answer in harness.talk(data + NEXT)]
    with harness.connect() as client:
        for i in range(len(data)):
            client.send(data[i : i + 1])
        client.send(NEXT)
        client.finish()
        assert [answer.status for answer in parse(client.read_all())] == whole
    return whole


def test_request_line(make):
    harness = make(limit_request_line=100)
    line = b"GET /%b HTTP/1.1" % (b"a" * 86)
    assert len(line) == 100
    assert both(harness, line + b"\r\nHost: x\r\n\r\n") == [200, 200]
    assert both(harness, line.replace(b"/", b"/a", 1) + b"\r\nHost: x\r\n\r\n") == [414]


def test_request_line_without_end(make):
    with make().connect() as client:
        client.send(b"GET /" + b"a" * 10_000)
        assert parse(client.read_all())[0].status == 414


def test_field_size(make):
    harness = make(limit_request_field_size=50)
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"a" * 47)) == [200, 200]
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA: %b\r\n\r\n" % (b"a" * 48)) == [431]
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA:%b\nb: c\r\n\r\n" % (b"a" * 46)) == [400]


@pytest.mark.parametrize("piece", [1, 2, 3, 5000, 1 << 21])
def test_empty_lines_without_end_are_refused(make, piece):
    harness = make(echo)
    data = b"\r\n" * (1 << 20 if piece > 100 else 100)
    with harness.connect() as client:
        for at in range(0, len(data), piece):
            client.send(data[at : at + piece])
            if not client.receive() or client.received:
                break
        assert at < 200_000, "some of it was enough"
        client.finish()
        (answer,) = parse(client.read_all())
    assert (answer.status, answer.headers["connection"]) == (400, "close")


def test_some_empty_lines_before_each_request_are_ignored(make):
    answers = make(echo).talk((b"\r\n" * 16 + GET) * 3, b"\r", b"\n\r", b"\n" + GET)
    assert [answer.status for answer in answers] == [200] * 4


def test_a_later_request_of_a_connection_needs_a_host_too(make):
    """HTTP/1.0 needs none (RFC 9112 section 3.2), and what the first request was does not count for the second."""
    first = b"GET /first HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
    assert [answer.status for answer in make(echo).talk(first + b"GET /second HTTP/1.1\r\n\r\n")] == [200, 400]
    assert [answer.status for answer in make(echo).talk(first + GET)] == [200, 200]


def test_number_of_fields(make):
    harness = make(limit_request_fields=3)
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nA: c\r\n\r\n") == [200, 200]
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\nA: c\r\nA: d\r\n\r\n") == [431]
    assert both(harness, b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\nA: c\r\nA: d\r\n\r\n") == [400]


def test_size_of_the_whole_head(make):
    harness = make()
    fields = b"".join(b"A%d: %b\r\n" % (i, b"a" * 8000) for i in range(20))
    assert [answer.status for answer in harness.talk(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")] == [431]


def test_body_limit(make):
    harness = make(echo, limit_request_body=5)
    post = b"POST / HTTP/1.1\r\nHost: x\r\n"
    assert both(harness, post + b"Content-Length: 5\r\n\r\nabcde") == [200, 200]
    assert both(harness, post + b"Content-Length: 6\r\n\r\nabcdef") == [413]
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert both(harness, chunked + b"2\r\nde\r\n0\r\n\r\n") == [200, 200]
    assert both(harness, chunked + b"3\r\ndef\r\n0\r\n\r\n") == [413]


# Deadlines.


def test_silent_connection_is_closed(make):
    with make(keep_alive=0.3).connect() as client:
        assert client.read_all() == b""


def test_half_a_head(make):
    with make(header_timeout=0.3).connect() as client:
        client.send(GET[:-2])
        assert parse(client.read_all())[0].status == 408


def test_a_trickle_does_not_extend_the_header_timeout(make):
    with make(header_timeout=0.5).connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        begun = time.monotonic()
        while client.receive():
            assert time.monotonic() < begun + 5
            client.send(b"a")
            gevent.sleep(0.05)
        assert parse(client.received)[0].status == 408


def test_idle_connection(make):
    with make(keep_alive=0.3).connect() as client:
        client.send(GET)
        begun = time.monotonic()
        (answer,) = parse(client.read_all())
        assert answer.status == 200
        assert time.monotonic() - begun > 0.25


def test_each_request_starts_the_idle_time_again(make):
    with make(keep_alive=0.6).connect() as client:
        for _ in range(8):
            client.send(GET)
            client.read_until(b"hello")
            gevent.sleep(0.2)


def test_a_shorter_deadline_after_a_longer_one(make):
    with make(echo, header_timeout=0, body_timeout=30, keep_alive=0.3).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
        client.send(b"b")
        (answer,) = parse(client.read_all(patience=2))
        assert answer.status == 200


def test_body_that_stops(make):
    with make(echo, body_timeout=0.3).connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        (answer,) = parse(client.read_all())
        assert (answer.status, answer.headers["connection"]) == (408, "close")


def test_client_that_takes_nothing(make):
    def application(environ, start_response):
        start_response("200 OK", [])
        while True:
            yield bytes(100_000)

    harness = make(application, send_timeout=0.3)
    with harness.connect() as client:
        client.send(GET)
        wait_for(lambda: harness.engine.connections == 0)
    assert not harness.errors()


def test_no_deadline_for_the_application(make):
    def application(environ, start_response):
        gevent.sleep(1.0)
        return hello(environ, start_response)

    harness = make(application, header_timeout=0.2, body_timeout=0.2, keep_alive=0.2, send_timeout=0.2)
    with harness.connect() as client:
        client.send(GET)
        assert client.read_all().endswith(b"hello")


def test_zero_is_no_limit(make):
    harness = make(header_timeout=0, body_timeout=0, keep_alive=0, send_timeout=0)
    with harness.connect() as client:
        client.send(GET[:5])
        client.send(GET[5:])
        client.read_until(b"hello")


# Pipelining and half-closed clients.


def test_pipelined_requests_are_answered_in_order(make):
    def application(environ, start_response):
        if environ["PATH_INFO"].endswith("0"):
            gevent.sleep(0.001)
        return echo(environ, start_response)

    requests = [b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d" % (i, i) for i in range(300)]
    answers = make(application).talk(b"".join(requests))
    assert [answer.echo["body"] for answer in answers] == [f"{i:03}" for i in range(300)]


def test_the_end_of_the_stream_does_not_overtake_a_pipelined_request(make):
    def application(environ, start_response):
        gevent.sleep(0.005)
        return hello(environ, start_response)

    with make(application).connect() as client:
        client.send(GET + GET)
        client.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.02)  # the first request's timer and the end of the stream come out of one poll
        assert len(parse(client.read_all())) == 2


def test_one_request_of_a_connection_at_a_time(make):
    running = []

    def application(environ, start_response):
        running.append(1)
        assert len(running) == 1
        gevent.sleep(0.005)
        running.pop()
        return hello(environ, start_response)

    assert [answer.status for answer in make(application).talk(GET * 5)] == [200] * 5


def test_half_closed_client(make):
    def application(environ, start_response):
        gevent.sleep(0.02)
        return hello(environ, start_response)

    (answer,) = make(application).talk(GET)
    assert answer.body == b"hello"


def test_bytes_read_by_somebody_else(make):
    harness = make()
    with harness.connect(data=GET + NEXT[:10]) as client:
        client.read_until(b"hello")
        client.send(NEXT[10:])
        assert client.read_all().endswith(b"hello")


@pytest.mark.parametrize("rest", [b"", GET[:10]])
def test_a_request_that_another_worker_has_handed_over_leaves_no_connection_without_a_deadline(make, rest):
    """Nothing runs while a request is passed on: so there is no deadline to inherit."""
    harness = make(keep_alive=0.3, header_timeout=0.3)
    with harness.connect() as client:
        (connection,) = harness.engine._open
        gevent.get_hub().loop.run_callback(connection.inherit, GET + rest, None)
        answers = parse(client.read_all())
    assert [answer.status for answer in answers] == ([200, 408] if rest else [200])


@pytest.mark.parametrize("data", [b"", GET[:10]])
def test_the_deadline_of_a_connection_that_was_handed_over_runs_on(make, data):
    harness = make()
    with harness.connect() as client:
        (connection,) = harness.engine._open
        gevent.get_hub().loop.run_callback(connection.inherit, data, 0.3)
        answers = parse(client.read_all())
    assert [answer.status for answer in answers] == ([408] if data else [])


@pytest.mark.parametrize("address", ["::1", "unix"])
def test_address_families(make, address, tmp_path):
    harness = make(echo)
    if address == "unix":
        with harness.connect() as client:
            client.send(NEXT)
            environ = parse(client.read_all())[0].echo["environ"]
        assert (environ["REMOTE_ADDR"], environ["SERVER_PORT"]) == ("", "80")
        return
    with socket.create_server((address, 0), family=socket.AF_INET6) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        accepted, peer = listener.accept()
    accepted.setblocking(False)
    name = accepted.getsockname()
    gevent.get_hub().loop.run_callback(lambda: harness.engine.adopt(accepted.detach(), peer, name))
    with client:
        client.sendall(NEXT)
        turn()
        wait_for(lambda: harness.engine.connections == 0)
        environ = parse(client.recv(65536))[0].echo["environ"]
    assert (environ["REMOTE_ADDR"], environ["SERVER_NAME"]) == ("::1", "::1")


# The drain.


def test_drain(make):
    go = gevent.event.Event()

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            go.wait()
        return hello(environ, start_response)

    harness = make(application)
    changes = []
    harness.engine.on_change = lambda: changes.append((harness.engine.requests, harness.engine.connections))
    with harness.connect() as idle, harness.connect() as busy:
        idle.send(GET)
        idle.read_until(b"hello")
        busy.send(GET.replace(b"/ ", b"/slow "))
        assert not changes
        harness.engine.drain()
        turn()
        assert harness.engine.connections == 2
        go.set()
        (answer,) = parse(busy.read_all())
        assert answer.headers["connection"] == "close"
        assert harness.engine.connections == 1
        idle.send(GET)
        (answer,) = parse(idle.read_all())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
    wait_for(lambda: (0, 0) in changes)


def test_drained_idle_connection_keeps_its_timeout(make):
    harness = make(keep_alive=0.3)
    with harness.connect() as client:
        client.send(GET)
        client.read_until(b"hello")
        harness.engine.drain()
        assert client.read_all() == b""


def test_a_stop_does_not_overtake_the_first_request_of_who_has_just_connected(make, monkeypatch):
    monkeypatch.setattr(connection, "FIRST", 30.0)
    harness = make()
    with harness.connect() as kept, harness.connect() as fresh:
        kept.send(GET)
        kept.read_until(b"hello")
        harness.engine.close_idle()
        harness.engine.drain()
        assert kept.read_all() == b""
        fresh.send(GET)
        (answer,) = parse(fresh.read_all())
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_stop_does_not_wait_for_who_has_connected_and_says_nothing(make, monkeypatch):
    monkeypatch.setattr(connection, "FIRST", 0.1)
    harness = make(keep_alive=3600.0)
    with harness.connect() as client:
        harness.engine.close_idle()
        assert client.read_all() == b""


def test_a_stop_does_not_wait_for_the_next_request_of_who_was_answered_meanwhile(make, monkeypatch):
    """The head, which promises that the connection stays open, was sent before the stop."""
    monkeypatch.setattr(engine, "FIRST", 0.1)
    ends = Event()

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "6")])
        yield b"long,"
        ends.wait()
        yield b"."

    harness = make(application, keep_alive=3600.0)
    with harness.connect() as client:
        client.send(GET)
        client.read_until(b"long,")
        harness.engine.close_idle()
        harness.engine.drain()
        ends.set()
        assert client.read_all() == b"."


def test_closed_from_within(make):
    def application(environ, start_response):
        environ["wsgi.input"].read()

    harness = make(application)
    with harness.connect() as idle, harness.connect() as reading:
        reading.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert harness.engine.requests == 1
        harness.close_connections()
        assert (idle.read_all(), reading.read_all()) == (b"", b"")
    wait_for(lambda: harness.engine.requests == 0)


def test_on_request_end(make):
    harness = make()
    ended = []
    harness.engine.on_request_end = lambda: ended.append(1)
    harness.talk(GET * 3)
    assert len(ended) == 3


# Pooled greenlets.


def idents(harness, count=6):
    """Which greenlets served that many requests in a row."""
    seen = []
    inner = harness.application

    def application(environ, start_response):
        seen.append(id(gevent.getcurrent()))
        return inner(environ, start_response)

    harness.application = application
    harness.talk(GET * count)
    assert len(seen) == count
    return seen


def test_greenlets_are_used_again(make):
    harness = make()
    assert len(set(idents(harness))) == 1


def test_a_blocking_request_gives_its_greenlet_back(make):
    def application(environ, start_response):
        gevent.sleep(0.001)
        return hello(environ, start_response)

    assert len(set(idents(make(application)))) == 1


def test_locals_do_not_survive_a_request(make):
    kept = local()
    gone = []

    class Value:
        def __del__(self):
            gone.append(1)

    def application(environ, start_response):
        assert not hasattr(kept, "value")
        kept.value = Value()
        return hello(environ, start_response)

    harness = make(application)
    assert [answer.status for answer in harness.talk(GET * 5)] == [200] * 5
    gc.collect()
    assert len(gone) == 5


def test_attributes_of_the_greenlet_do_not_survive(make):
    def application(environ, start_response):
        assert not hasattr(gevent.getcurrent(), "mark")
        gevent.getcurrent().mark = 1
        return hello(environ, start_response)

    assert [answer.status for answer in make(application).talk(GET * 5)] == [200] * 5


def test_context_does_not_survive(make):
    import contextvars

    variable = contextvars.ContextVar("variable", default=0)

    def application(environ, start_response):
        assert variable.get() == 0
        variable.set(1)
        return hello(environ, start_response)

    assert [answer.status for answer in make(application).talk(GET * 5)] == [200] * 5


def test_a_stray_timeout_hits_nobody(make):
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/stray":
            gevent.Timeout(0.02).start()
        else:
            gevent.sleep(0.1)
        return hello(environ, start_response)

    harness = make(application)
    with harness.connect() as one:
        one.send(GET.replace(b"/ ", b"/stray ") + GET)
        one.read_until(b"hello")
        one.read_until(b"hello")
    assert not harness.errors()


def test_a_stray_timeout_while_the_rest_of_the_body_is_awaited(make):
    def application(environ, start_response):
        gevent.Timeout(0.05).start()
        return hello(environ, start_response)

    harness = make(application)
    with harness.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
        assert client.read_all().endswith(b"hello")
    wait_for(lambda: harness.engine.connections == 0)
    assert not harness.errors()


def test_a_late_kill_hits_nobody(make):
    greenlets = []

    def application(environ, start_response):
        if environ["PATH_INFO"] == "/known":
            greenlets.append(gevent.getcurrent())
        else:
            gevent.sleep(0.05)
        return hello(environ, start_response)

    harness = make(application)
    with harness.connect() as one:
        one.send(GET.replace(b"/ ", b"/known "))
        one.read_until(b"hello")
        one.send(GET)
        gevent.kill(greenlets[0])
        one.read_until(b"hello")
        assert greenlets[0].dead
        one.send(GET)
        one.read_until(b"hello")
    assert not harness.errors()


def test_a_weak_reference_is_a_reference(make):
    import weakref

    references = []

    def application(environ, start_response):
        references.append(weakref.ref(gevent.getcurrent()))
        return hello(environ, start_response)

    harness = make(application)
    harness.talk(GET * 3)
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_many_at_once(make):
    all_are_there = Event()

    def application(environ, start_response):
        all_are_there.wait()
        return hello(environ, start_response)

    harness = make(application)
    clients = [harness.connect() for _ in range(200)]
    for client in clients:
        client.send(NEXT)
    wait_for(lambda: harness.counter(ACTIVE) == 200)
    all_are_there.set()
    for client in clients:
        assert client.read_all().endswith(b"hello")
        client.sock.close()
    assert harness.counter(REQUESTS) == 200


def test_latencies_are_counted_before_there_are_so_many_that_clients_would_wait_for_it(make):
    harness, counted = make(), []

    def count():
        counted.append(len(harness.engine.latencies))
        harness.engine.latencies.clear()

    harness.engine.count_latencies = count
    client = harness.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * (MANY_LATENCIES + 10))
    wait_for(lambda: harness.counter(REQUESTS) == MANY_LATENCIES + 10)
    client.sock.close()
    assert counted == [MANY_LATENCIES]
    assert len(harness.engine.latencies) == 10


# Rubbish.


FRAGMENTS = """
GET / HTTP/1.1|POST / HTTP/1.0|Host: x||Content-Length: 3|Transfer-Encoding: chunked|0|3|abc|Expect: 100-continue
""".strip().split("|")
PIECES = st.sampled_from([fragment.encode() + b"\r\n" for fragment in FRAGMENTS] + [b"\r", b"\n"])


@given(st.lists(st.binary(max_size=60) | PIECES, max_size=9))
@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish(shared, pieces):
    before = counted_fds()
    answers = shared.talk(*pieces)
    assert all(answer.whole for answer in answers)
    assert all(answer.status < 500 or answer.status in (501, 505) for answer in answers)
    wait_for(lambda: shared.engine.connections == 0)
    assert not shared.errors()
    assert (shared.counter(CONNECTIONS), shared.counter(ACTIVE)) == (0, 0)
    assert counted_fds() <= before or open_fds() <= before


@pytest.fixture(scope="module")
def shared():
    harness = Harness(echo)
    yield harness
    harness.close()


def test_nothing_is_left(make):
    """After thousands of connections of every kind: no object of ours, no fd, no thread more than before."""
    from reuseport.worker.connection import Connection
    from reuseport.worker.response import Response

    harness = make(echo)

    def some():
        harness.talk(GET * 3)
        harness.talk(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        harness.talk(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")
        harness.talk(b"rubbish\r\n\r\n")
        with harness.connect() as client:
            client.send(GET[:7])
        wait_for(lambda: harness.engine.connections == 0)

    def left():
        gc.collect()
        objects = sum(type(kept) in (Connection, Response) for kept in gc.get_objects())
        return objects, open_fds(), threading.active_count()

    some()
    before = left()
    for _ in range(100):
        some()
    assert left() == before
    assert harness.counter(ERRORS) == 0
