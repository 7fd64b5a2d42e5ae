"""Time slices: a client that never pauses does not keep a greenlet from letting others run."""

from __future__ import annotations

import io
import socket
import threading

import gevent
import gevent.event
import pytest
from greenlet import getcurrent, greenlet
from http_harness import Harness, parse, wait_for
from test_upgrade import SWITCHED, UPGRADE, frame
from tls_harness import TlsClient, TlsHarness

from reuseport.worker import stream, timeslice, tls, upgrade
from reuseport.worker.frames import GOING_AWAY

COUNT = 50
NEVER_REACHED = 50_000  # reads or writes after which an application takes it that the server gives no turns


def get(path: bytes = b"/", method: bytes = b"GET", last: bool = True) -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\nHost: a\r\n" + (b"Connection: close\r\n\r\n" if last else b"\r\n")


# --- the slice itself, with a clock of the test's own


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(timeslice, "monotonic", clock)
    return clock


def run(function):
    """Call it in a greenlet; its result."""
    return gevent.spawn(function).get(timeout=10)


def turns(function) -> int:
    """How often the loop turns while the function runs."""
    loop = gevent.get_hub().loop
    before = loop.iteration
    function()
    return loop.iteration - before


def test_a_turn_is_given_when_the_slice_is_over_and_not_before(clock):
    def steps():
        one = timeslice.TimeSlice(gevent.get_hub())
        seen = [turns(one.check), turns(one.check)]
        clock.now += timeslice.SECONDS * 0.9
        seen.append(turns(one.check))
        clock.now += timeslice.SECONDS * 0.2
        seen.append(turns(one.check))
        seen.append(turns(one.check))
        clock.now += timeslice.SECONDS * 1.1
        seen.append(turns(one.check))
        return seen

    assert run(steps) == [0, 0, 0, 1, 0, 1]


def test_a_greenlet_that_has_waited_begins_a_new_slice(clock):
    def steps():
        one = timeslice.TimeSlice(gevent.get_hub())
        one.check()
        clock.now += 1.0
        gevent.sleep(0.001)
        return turns(one.check)

    assert run(steps) == 0


def test_greenlets_that_share_a_slice_have_one_each_up_to_a_limit(clock):
    """One greenlet must not use up the time of all, and no number of greenlets may stop the loop."""

    def steps():
        one.check()
        seen = []
        others = [greenlet(one.check) for _ in range(timeslice.SLICES + 1)]  # all live, so each has an id of its own
        for other in others:
            clock.now += timeslice.SECONDS * 1.01
            seen.append(turns(other.switch))
        return seen

    one = timeslice.TimeSlice(gevent.get_hub())
    seen = run(steps)
    assert seen[:5] == [0] * 5
    assert 1 in seen


def test_nothing_waits_in_the_hub_or_in_another_thread(clock, monkeypatch):
    def never(hub):
        raise AssertionError("it must not wait here")

    one = timeslice.TimeSlice(gevent.get_hub())
    seen = []

    def twice():
        try:
            one.check()
            clock.now += 1.0
            one.check()
            seen.append(None)
        except AssertionError as error:
            seen.append(error)

    monkeypatch.setattr(timeslice, "let_others", never)
    gevent.get_hub().loop.run_callback(twice)
    wait_for(lambda: seen)
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    assert seen == [None, None]


# --- each place where a greenlet could go on for ever


@pytest.fixture
def always(monkeypatch):
    """Every check gives a turn, so that a test can count."""
    monkeypatch.setattr(timeslice, "SECONDS", -1.0)


@pytest.fixture
def make():
    harnesses = []

    def make(application, kind=Harness, **options):
        harnesses.append(kind(application, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


def counted(application):
    """The application, and the number of turns of the loop while it runs."""
    seen = []

    def counting(environ, start_response):
        before = gevent.get_hub().loop.iteration
        try:
            yield from application(environ, start_response)
        finally:
            seen.append(gevent.get_hub().loop.iteration - before)

    return counting, seen


def reads(size):
    def application(environ, start_response):
        while environ["wsgi.input"].read(size):
            pass
        start_response("200 OK", [("Content-Length", "0")])
        yield b""

    return application


def reads_lines(environ, start_response):
    for _ in environ["wsgi.input"]:
        pass
    start_response("200 OK", [("Content-Length", "0")])
    yield b""


SIZED = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (COUNT * 2048)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = (b"x" * 63 + b"\n") * (COUNT * 32)


@pytest.mark.parametrize(("application", "request_", "least"), [
    (reads(1), SIZED + bytes(COUNT * 2048), 4),
    (reads(2048), SIZED + bytes(COUNT * 2048), 4),
    (reads_lines, SIZED + LINES, 4),
    (reads(1), CHUNKED + b"1\r\nx\r\n" * COUNT + b"0\r\n\r\n", COUNT),
    (reads(-1), CHUNKED + b"1\r\nx\r\n" * COUNT + b"0\r\n\r\n", COUNT),
    (reads_lines, CHUNKED + b"2\r\nx\n\r\n" * COUNT + b"0\r\n\r\n", COUNT),
])  # fmt: skip
def test_a_body_that_is_always_there(make, always, application, request_, least):
    application, seen = counted(application)
    harness = make(application)
    with harness.connect() as client:
        assert client.sock.send(request_) == len(request_)  # the kernel has all of it before the engine looks
        assert client.read_all().startswith(b"HTTP/1.1 200")
    assert seen[0] >= least


def pieces(piece):
    def application(environ, start_response):
        start_response("200 OK", [])
        for _ in range(COUNT):
            yield piece

    return application


def written(environ, start_response):
    write = start_response("200 OK", [])
    for _ in range(COUNT):
        write(b"x")
    yield b""


def hints(environ, start_response):
    for _ in range(COUNT):
        environ["wsgi.early_hints"]([("Link", "</a>; rel=preload")])
    start_response("200 OK", [])
    yield b""


def skips_a_file(environ, start_response):
    """As werkzeug's ranges do with a file that cannot be sought."""
    start_response("200 OK", [])
    for _ in environ["wsgi.file_wrapper"](io.BytesIO(bytes(COUNT * 10)), 10):
        pass
    yield b"x"


@pytest.mark.parametrize("application", [pieces(b"x"), pieces(b""), written, hints, skips_a_file])
def test_a_response_that_the_client_takes_at_once(make, always, application):
    application, seen = counted(application)
    with make(application).connect() as client:
        client.send(get())
        client.read_all()
    assert seen[0] >= COUNT - 2


def test_a_response_to_head(make, always):
    application, seen = counted(pieces(b"x"))
    with make(application).connect() as client:
        client.send(get(method=b"HEAD"))
        client.read_all()
    assert seen[0] >= COUNT - 2


def test_a_file_that_the_kernel_sends(make, always, monkeypatch, tmp_path):
    monkeypatch.setattr(stream, "SENDFILE_PIECE", 100)
    (tmp_path / "file").write_bytes(bytes(COUNT * 100))

    def application(environ, start_response):
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))

    loop = gevent.get_hub().loop
    with make(application).connect(tcp=True) as client:
        before = loop.iteration
        client.sock.send(get())
        assert client.read_all().endswith(bytes(COUNT * 100))
        assert loop.iteration - before >= COUNT - 2


def test_a_large_piece_over_tls(make, always, monkeypatch):
    monkeypatch.setattr(tls, "SLICE", 100)

    def application(environ, start_response):
        before = loop.iteration
        write = start_response("200 OK", [("Content-Length", str(COUNT * 100))])
        write(bytes(COUNT * 100))
        seen.append(loop.iteration - before)
        return []

    loop = gevent.get_hub().loop
    seen: list[int] = []
    with TlsClient(make(application, TlsHarness)) as client:
        client.send(get())
        assert client.read_all().endswith(bytes(COUNT * 100))
    assert seen[0] >= COUNT - 2


def test_pipelined_requests(make, always):
    def application(environ, start_response):
        seen.append(gevent.get_hub().loop.iteration)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    seen: list[int] = []
    with make(application).connect() as client:
        client.sock.send(get(last=False) * COUNT + get())
        client.read_all()
    assert len(seen) == len(set(seen)) == COUNT + 1


def receives(sock, count):
    for _ in range(count):
        assert sock.recv(10) == b"x" * 10


def receives_into(sock, count):
    buffer = bytearray(10)
    for _ in range(count):
        assert sock.recv_into(buffer) == 10


def receives_from(sock, count):
    for _ in range(count):
        assert sock.recvfrom(10)[0] == b"x" * 10


def receives_messages(sock, count):
    for _ in range(count):
        assert sock.recvmsg(10)[0] == b"x" * 10


def reads_a_file(sock, count):
    with sock.makefile("rb", buffering=0) as file:
        for _ in range(count):
            assert file.read(10) == b"x" * 10


def sends(sock, count):
    for _ in range(count):
        assert sock.send(b"\x81\0") == 2


def sends_all(sock, count):
    for _ in range(count):
        sock.sendall(b"\x81\0")


def sends_messages(sock, count):
    for _ in range(count):
        assert sock.sendmsg([b"\x81", b"\0"]) == 2


@pytest.mark.parametrize("use", [
    receives, receives_into, receives_from, receives_messages, reads_a_file, sends, sends_all, sends_messages,
])  # fmt: skip
@pytest.mark.parametrize("pair", [False, True])
def test_a_connection_that_the_application_has_taken(make, always, use, pair):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        if not pair:
            client.sock.send(b"x" * 10 * COUNT)
        gevent.sleep(0.01)
        before = loop.iteration
        use(sock, COUNT)
        seen.append(loop.iteration - before)
        return []

    loop = gevent.get_hub().loop
    seen: list[int] = []
    with make(application).connect(tcp=True) as client:
        client.send(UPGRADE + (b"x" * 10 * COUNT if pair else b""))
        wait_for(lambda: seen)
        client.finish()
    assert seen[0] >= COUNT - 1


# --- the drain cuts in


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(upgrade, "ANSWER_TIME", 0.05)
    monkeypatch.setattr(upgrade, "LINGER_TIME", 0.05)


def drained(harness, client):
    """Whether a drain ends: the handler, too, by itself."""
    harness.engine.websocket_drain = 0
    gevent.spawn(harness.engine.drain)
    wait_for(lambda: not harness.engine.upgraded and harness.engine.connections == 0)
    client.receive()
    assert not harness.errors()
    return True


@pytest.mark.parametrize("protocol", [SWITCHED, SWITCHED.replace(b"websocket", b"another")])
@pytest.mark.parametrize("answers", [False, True])
def test_a_client_that_goes_on_sending_does_not_hold_up_a_drain(make, soon, protocol, answers):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(protocol)
        for _ in range(NEVER_REACHED):
            client.sock.send(b"x" * 10)  # so that there is always something to read
            data = sock.recv(10)
            if not data:
                return []
            if answers:
                sock.send(frame(1, 0))
                client.receive()
        raise AssertionError("the drain has not cut in")

    harness = make(application)
    with harness.connect(tcp=True) as client:
        client.sock.send(UPGRADE)
        assert drained(harness, client)
        assert (GOING_AWAY in client.received) == (protocol == SWITCHED) or not answers


@pytest.mark.parametrize("reads", [
    lambda sock: sock.recv(10),
    lambda sock: (sock.recv(10, socket.MSG_PEEK), sock.recv(10))[1],
    lambda sock: bytes((buffer := bytearray(10))[: sock.recv_into(buffer)]),
    lambda sock: sock.recvfrom(10)[0],
    lambda sock: bytes((buffer := bytearray(10))[: sock.recvfrom_into(buffer)[0]]),
    lambda sock: sock.recvmsg(10)[0],
    lambda sock: bytes((buffer := bytearray(10))[: sock.recvmsg_into([buffer])[0]]),
])  # fmt: skip
def test_what_a_client_has_sent_before_the_end_is_read(make, soon, reads):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        client.sock.send(before)
        (one,) = harness.engine.upgraded
        wait_for(lambda: one.app._read_ended)
        for _ in range(NEVER_REACHED):
            client.sock.send(b"y" * 10)
            if not (data := reads(sock)):
                return []
            seen.append(data)
        raise AssertionError("the end never comes")

    before = b"x" * 95
    seen: list[bytes] = []
    harness = make(application)
    with harness.connect(tcp=True) as client:
        client.sock.send(UPGRADE)
        assert drained(harness, client)
    data = b"".join(seen)
    assert data.startswith(before)
    assert len(data) < len(before) + 10


def test_a_client_that_takes_everything_does_not_hold_up_a_drain(make, soon):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        for _ in range(NEVER_REACHED):
            sock.send(frame(1, 100))
            client.receive()
        raise AssertionError("the drain has not cut in")

    harness = make(application)
    with harness.connect(tcp=True) as client:
        client.sock.send(UPGRADE)
        assert drained(harness, client)
        assert client.received.endswith(frame(1, 100) + GOING_AWAY)


def test_a_close_frame_is_sent_between_frames_that_follow_each_other_without_a_pause(make, soon):
    """The application's greenlet takes the lock again before the greenlet of the drain is woken."""
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        while True:
            sock.send(big)

    big = frame(2, 5_000_000)
    harness = make(application)
    with harness.connect() as client:
        client.sock.send(UPGRADE)
        wait_for(lambda: client.receive() and len(client.received) > len(big))
        harness.engine.websocket_drain = 0
        harness.engine.drain()
        client.read_all()
        assert client.received.endswith(big + GOING_AWAY)
    wait_for(lambda: harness.engine.connections == 0)


# --- what one greenlet sends while others have their turn


@pytest.fixture
def no_slices(monkeypatch):
    """Nobody's slice ends, so only a client that takes nothing makes a greenlet wait."""
    monkeypatch.setattr(timeslice, "SECONDS", 1000.0)


def sends_in_order(make, count, size, send):
    """Whether the client gets the frames in the order in which two greenlets have called `send`."""

    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        called = bytearray()

        def sends(first):
            for number in range(count):
                called.append(first + number)
                send(sock, bytes([first + number]) * size)

        gevent.joinall([gevent.spawn(sends, 0), gevent.spawn(sends, 100)], raise_error=True)
        order.append(called)
        return []

    order: list[bytearray] = []
    with make(application).connect() as client:
        client.send(UPGRADE)
        data = client.read_all()[len(SWITCHED) :]
        client.finish()
    assert len(data) == 2 * count * size
    return data == b"".join(bytes([one]) * size for one in order[0])


@pytest.mark.parametrize("send", [
    lambda sock, data: sock.send(data),
    lambda sock, data: sock.sendall(data),
    lambda sock, data: sock.sendmsg([data[:1], data[1:]]),
], ids=["send", "sendall", "sendmsg"])  # fmt: skip
def test_frames_are_sent_in_the_order_of_the_calls(make, monkeypatch, send):
    """A library compresses each frame with the context of the last one (RFC 7692 section 7.2.3.2)."""
    calls = []

    def check(one):
        calls.append(one)
        if len(calls) % 2:  # the slice of one greenlet is over, and that of the next is not
            timeslice.let_others(gevent.get_hub())

    monkeypatch.setattr(timeslice.TimeSlice, "check", check)
    assert sends_in_order(make, COUNT, 10, send)


def test_a_greenlet_that_waits_for_a_slow_client_is_not_overtaken(make, no_slices):
    assert sends_in_order(make, 5, 1_000_000, lambda sock, data: sock.send(data))


@pytest.mark.parametrize("kills_next", [False, True])
def test_a_greenlet_that_gives_up_waiting_for_its_turn_holds_up_nobody(make, no_slices, kills_next):
    def application(environ, start_response):
        sock = environ["gunicorn.socket"]
        sock.send(SWITCHED)
        first = gevent.spawn(sock.send, b"1" * size)
        gevent.sleep(0)
        second, third = gevent.spawn(sock.send, b"2" * size), gevent.spawn(sock.send, b"3" * size)
        gevent.sleep(0)
        second.kill()
        first.rawlink(lambda _: third.kill() if kills_next else None)
        first.join()
        sock.send(b"4" * size)
        return []

    size = 2_000_000
    with make(application).connect() as client:
        client.send(UPGRADE)
        data = client.read_all()[len(SWITCHED) :]
        client.finish()
    assert data.startswith(b"1" * size)
    assert data.endswith(b"4" * size)
    assert b"2" not in data


# --- what has changed while a greenlet of a request lets others run


POST = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Gate:
    """Holds greenlets where they let others run, until it is opened."""

    def __init__(self):
        self.greenlets = set()
        self.held = set()
        self.open = gevent.event.Event()

    def check(self, wait=None):
        if getcurrent() in self.greenlets:
            self.held.add(getcurrent())
            self.open.wait()

    def waiting(self, function, *args):
        """A greenlet that has called the function, and is held there."""
        one = gevent.Greenlet(function, *args)
        self.greenlets.add(one)
        one.start()
        wait_for(lambda: one in self.held)
        return one


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(timeslice.TimeSlice, "check", lambda _, wait=None: gate.check(wait))
    yield gate
    gate.open.set()


def chunked(start_response):
    write = start_response("200 OK", [])
    write(b"first")
    return write


@pytest.mark.parametrize("killed", [False, True])
def test_a_piece_does_not_come_behind_its_response(make, gate, killed):
    def application(environ, start_response):
        if not late:
            late.append(gate.waiting(chunked(start_response), b"late"))
            return []
        if killed:
            late[0].kill()
        gate.open.set()
        late[0].join()
        start_response("200 OK", [("Content-Length", "6")])
        return [b"second"]

    late: list[gevent.Greenlet] = []
    with make(application).connect() as client:
        client.sock.send(get(last=False) + get())
        answers = parse(client.read_all())
    assert [answer.body for answer in answers] == [b"first", b"second"]
    assert all(answer.whole for answer in answers)
    assert isinstance(late[0].exception, ValueError) != killed


def test_nothing_is_written_by_a_body_that_is_closed(make):
    """PEP 3333 has close() called behind the last piece."""

    class Body(list):
        def close(self):
            with pytest.raises(ValueError, match="the request is over"):
                write(b"late")
            closed.append(True)

    def application(environ, start_response):
        nonlocal write
        write = start_response("200 OK", [])
        return Body([b"a", b"b"])

    write = None
    closed: list[bool] = []
    with make(application).connect() as client:
        client.send(get())
        assert parse(client.read_all())[0].body == b"ab"
    assert closed


@pytest.mark.parametrize("second", [b"", b"x"])
def test_nothing_comes_into_the_middle_of_a_large_piece_over_tls(make, always, monkeypatch, second):
    monkeypatch.setattr(tls, "SLICE", 100)

    def application(environ, start_response):
        gevent.spawn(chunked(start_response), bytes(1000))
        gevent.sleep(0)
        return [second] if second else []

    with TlsClient(make(application, TlsHarness)) as client:
        client.send(get(last=False))
        body = client.read_all().partition(b"5\r\nfirst\r\n")[2]
    assert (b"3e8\r\n" + bytes(1000) + b"\r\n0\r\n\r\n").startswith(body)


def test_nothing_comes_into_the_middle_of_a_piece_that_a_slow_client_takes(make, no_slices):
    def application(environ, start_response):
        write = chunked(start_response)
        one = gevent.spawn(write, bytes(size))
        gevent.sleep(0)
        client.sock.recv(100_000)  # the kernel has room again, before the loop tells the greenlet
        with pytest.raises(OSError, match="two greenlets"):
            write(b"x")
        refused.append(True)
        one.join()
        return []

    size = 2_000_000
    refused: list[bool] = []
    with make(application).connect() as client:
        client.send(get(last=False))
        assert b"\r\nx" not in client.read_all()
    assert refused


def test_a_body_is_not_read_behind_its_request(make, gate):
    def application(environ, start_response):
        late.append(gate.waiting(environ["wsgi.input"].read, 1))
        start_response("200 OK", [("Content-Length", "0")])
        return []

    late: list[gevent.Greenlet] = []
    with make(application).connect() as client:
        client.sock.send(SIZED)
        client.read_all()
    gate.open.set()
    wait_for(lambda: late[0].ready())
    with pytest.raises(OSError, match="the request is over"):
        late[0].get()


def test_a_reader_that_is_interrupted_does_not_keep_the_client_waiting_for_100(make, gate):
    def application(environ, start_response):
        gate.waiting(environ["wsgi.input"].read1, 1).kill()
        assert environ["wsgi.input"].read1(1) == b"x"
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with make(application).connect() as client:
        client.send(POST)
        assert client.read_until(CONTINUE) == CONTINUE
        client.send(b"x")
        client.read_until(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("informs", [
    lambda environ: environ["wsgi.input"].read1(1),
    lambda environ: environ["wsgi.early_hints"]([("Link", "</a>")]),
])  # fmt: skip
def test_no_informational_response_comes_into_the_middle_of_a_body(make, gate, informs):
    def application(environ, start_response):
        one = gate.waiting(informs, environ)
        start_response("200 OK", [("Content-Length", "2")])(b"a")
        gate.open.set()
        one.join(0.01)  # it has returned, or waits for the body
        one.kill()
        yield b"b"

    with make(application).connect() as client:
        client.send(POST.replace(b"Host", b"Connection: close\r\nHost"))
        data = client.read_all()
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"\r\n\r\nab")
