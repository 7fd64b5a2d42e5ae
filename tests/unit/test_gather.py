"""Chunked bodies that are buffered: the application sees them whole, with their length, or never."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import threading
from types import SimpleNamespace

import gevent
import pytest
from http_harness import PATIENCE, Harness, echo, parse, turn, wait_for
from tls_harness import TlsClient, TlsHarness

from reuseport import jobs
from reuseport.ipc.scoreboard import ACTIVE, ERRORS, REQUESTS
from reuseport.worker import engine, gather
from reuseport.worker.drain import Drain
from reuseport.worker.snapshot import Snapshots
from reuseport.worker.states import BODY
from reuseport.worker.tls import TlsConnection

HEAD = b"POST /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
WAYS = {"greenlets": (Harness, 0), "threads": (Harness, 1), "TLS": (TlsHarness, 0), "TLS, threads": (TlsHarness, 1)}
BIG = os.urandom(1000) * 300  # beyond gather.MEMORY


def chunks(body: bytes, size: int = 50_000) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nX-Trailer: t\r\n\r\n"


def seen_body(environ, start_response):
    """The body again, with what environ says of its framing as header fields."""
    body = environ["wsgi.input"].read()
    said = [("X-Length", environ.get("CONTENT_LENGTH", "none")), ("X-Ended", str(environ["wsgi.input_terminated"]))]
    if "HTTP_TRANSFER_ENCODING" in environ:
        said.append(("X-Coding", environ["HTTP_TRANSFER_ENCODING"]))
    start_response("200 OK", said)
    return [body]


@pytest.fixture
def make():
    harnesses = []

    def make(application, way="greenlets", **options):
        kind, threads = WAYS[way]
        harnesses.append(kind(application, threads=threads, **{"buffer_chunked": True} | options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    """The file system's blocks, of which enough are free: how full this machine's disk is does not matter."""
    info = SimpleNamespace(f_bavail=50, f_blocks=100, f_frsize=4096, looks=0)

    def look(fd):
        info.looks += 1
        return info

    monkeypatch.setattr(gather.os, "fstatvfs", look)
    return info


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The directory for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def held_in(directory) -> int:
    """How many files of this process lie in the directory, with or without a name."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{directory}/")
    return found


def in_body(harness) -> bool:
    """Whether every connection's body is being buffered."""
    return {connection.state for connection in harness.engine._open} == {BODY}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", [b"", b"abc", b"x" * 60_000, BIG], ids=["empty", "small", "memory", "disk"])
def test_the_application_sees_a_length_and_no_coding(make, way, body):
    harness = make(seen_body, way)
    data = HEAD + chunks(body) + HEAD + chunks(b"again") + LAST
    for pieces in ([data], [data[:20], data[20:120], data[120:-30], data[-30:]]):
        one, two, three = harness.talk(*pieces)
        assert (one.status, one.body, one.whole) == (200, body, True)
        assert one.headers["x-length"] == str(len(body))
        assert one.headers["x-ended"] == "True"
        assert "x-coding" not in one.headers
        assert (two.body, two.headers["x-length"]) == (b"again", "5")
        assert (three.body, three.headers["x-length"]) == (b"", "none")
    assert not harness.errors()


def test_off_leaves_the_body_to_the_application(make):
    seen = []

    def application(environ, start_response):
        seen.append(environ["wsgi.input"].read1(100))
        return seen_body(environ, start_response)

    harness = make(application, buffer_chunked=False)
    with harness.connect() as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: seen == [b"abc"])
        client.send(b"2\r\nde\r\n0\r\n\r\n" + LAST)
        one, _ = parse(client.read_all())
    assert (one.body, one.headers["x-coding"], one.headers["x-length"]) == (b"de", "chunked", "none")


@pytest.mark.parametrize("way", ["greenlets", "threads"])
def test_a_slow_client_holds_neither_thread_nor_greenlet(make, way):
    harness = make(seen_body, way)
    with harness.connect() as slow:
        slow.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        assert harness.engine.requests == harness.counter(ACTIVE) == 0
        assert harness.talk(LAST)[0].status == 200, "the only thread is free"
        slow.send(b"2\r\nde\r\n0\r\n\r\n")
        slow.read_until(b"abcde")
        wait_for(lambda: harness.counter(REQUESTS) == 2)


def test_a_snapshot_has_whose_body_is_still_coming(make):
    harness = make(seen_body)
    taker = Snapshots.__new__(Snapshots)  # without its handlers of signals
    taker._who, taker._turned, taker._job, taker._gathering = "3.1", None, None, harness.engine.gathering

    def bodies():
        return [entry for entry in taker._take(sys._getframe())["running"] if entry["kind"] == BODY]

    with harness.connect(tcp=True) as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: harness.engine._open and in_body(harness))
        [one] = bodies()
        assert (one["request"], one["client"], one["stack"]) == ("POST /up", "127.0.0.1", [])
        assert one["age"] >= 0
        client.send(b"0\r\n\r\n" + LAST)
        client.read_all()
        assert bodies() == []


@pytest.mark.parametrize("way", ["TLS", "TLS, threads"])
def test_a_slow_client_with_tls(make, way):
    harness = make(seen_body, way)
    with TlsClient(harness) as slow:
        slow.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        assert harness.talk(LAST)[0].status == 200
        slow.send(b"2\r\nde\r\n0\r\n\r\n" + LAST)
        assert [answer.body for answer in parse(slow.read_all())] == [b"abcde", b""]


def never(environ, start_response):
    pytest.fail("the application got a request whose body is not whole")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"3\r\nabc\r\n", 400),
        (b"3\r\nabc\r\n0\r\n", 400),
        (b"3\r\nabc\r\n7\r\nabc", 400),
        (b"3\r\nabcd\r\n0\r\n\r\n", 400),
        (b"3\r\nabc\r\n-1\r\n", 400),
        (b"3\r\nabc\r\n0\r\nA : b\r\n\r\n", 400),
        (b"3\r\nabc\r\n8\r\n12345678\r\n0\r\n\r\n", 413),
        (b"ffffffffffffffff\r\nabc", 413),
        (b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_a_body_that_is_refused_never_reaches_the_application(make, way, rest, status):
    harness = make(never, way, limit_request_body=10)
    for pieces in ([HEAD + rest], [HEAD, rest], [HEAD, *(rest[at : at + 1] for at in range(len(rest)))]):
        (one,) = harness.talk(*pieces)
        assert (one.status, one.headers["connection"], one.whole) == (status, "close", True)
    assert not harness.errors()
    assert (harness.counter(REQUESTS), harness.counter(ERRORS)) == (3, 0)


@pytest.mark.parametrize("kind", [Harness, TlsHarness])
def test_a_pause_ends_it(make, kind):
    harness = make(never, "greenlets" if kind is Harness else "TLS", body_timeout=0.3)
    with (harness.connect() if kind is Harness else TlsClient(harness)) as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        (one,) = parse(client.read_all())
    assert one.status == 408


@pytest.mark.parametrize("way", WAYS)
def test_who_waits_to_be_asked_is_asked_once(make, way):
    harness = make(seen_body, way)
    head = HEAD[:-2] + b"Expect: 100-continue\r\n\r\n"
    assert [answer.status for answer in harness.talk(head, chunks(b"abc"), LAST)] == [100, 200, 200]
    # What comes with its head needs no question (RFC 9110 section 10.1.1).
    assert [answer.status for answer in harness.talk(head + chunks(b"abc") + LAST)] == [200, 200]


def test_a_large_body_is_in_a_file_without_a_name(make, temporary):
    harness = make(seen_body)
    with harness.connect() as client:
        client.send(HEAD + chunks(BIG)[: gather.MEMORY + 60_000])
        wait_for(lambda: held_in(temporary) == 1)
        assert not list(temporary.iterdir())
        client.send(chunks(BIG)[gather.MEMORY + 60_000 :] + LAST)
        assert parse(client.read_all())[0].body == BIG
    wait_for(lambda: held_in(temporary) == 0)


@pytest.mark.parametrize("end", ["close", "refusal"])
def test_the_file_goes_with_its_request(make, temporary, end):
    harness = make(never)
    with harness.connect() as client:
        client.send(HEAD + chunks(BIG)[: gather.MEMORY + 60_000])
        wait_for(lambda: held_in(temporary) == 1)
        if end == "close":
            client.sock.close()
        else:
            client.send(b"no chunk\r\n" * 10_000)
            assert b" 400 " in client.read_until(b"\n")
    wait_for(lambda: held_in(temporary) == 0)


def test_the_file_is_closed_although_the_application_keeps_it(make, temporary):
    kept = []

    def application(environ, start_response):
        kept.append(environ["wsgi.input"])
        return seen_body(environ, start_response)

    make(application).talk(HEAD + chunks(BIG) + LAST)
    with pytest.raises(ValueError, match="closed"):
        kept[0].seek(0)


def test_without_room_on_the_disk_it_is_507(make, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    harness = make(seen_body)
    (one,) = harness.talk(HEAD + chunks(BIG) + LAST)
    assert one.status == 507
    assert harness.counter(ERRORS) == 1
    (error,) = harness.errors()
    assert "missing" in error and "TMPDIR" not in error, "no other directory helps against each error"
    assert [answer.body for answer in harness.talk(HEAD + chunks(b"abc") + LAST)] == [b"abc", b""]


@pytest.mark.parametrize(
    ("code", "advises"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False), (errno.EMFILE, False)]
)
def test_a_disk_that_fails_in_the_middle_of_a_body_is_507(make, temporary, monkeypatch, code, advises):
    written = []

    def write(spool, data):
        if len(written) > 2:
            raise OSError(code, os.strerror(code))
        written.append(bytes(data))
        return len(data)

    monkeypatch.setattr(gather.Spool, "write", write)
    harness = make(seen_body)
    (one,) = harness.talk(HEAD + chunks(BIG) + LAST)
    assert (one.status, len(written)) == (507, 3)
    assert harness.counter(ERRORS) == 1
    (error,) = harness.errors()
    assert os.strerror(code) in error
    assert ("TMPDIR" in error) is advises
    assert held_in(temporary) == 0


def test_a_large_disk_may_have_little_of_it_free(make, temporary, disk):
    disk.f_bavail, disk.f_blocks = 1 << 18, 1 << 30
    answers = make(seen_body).talk(HEAD + chunks(BIG) + LAST)
    assert [answer.status for answer in answers] == [200, 200]


@pytest.mark.parametrize("free", [9, 10])
def test_the_last_tenth_of_the_disk_is_not_for_bodies(make, temporary, disk, free):
    disk.f_bavail = free
    harness = make(seen_body)
    for _ in range(2):
        answers = harness.talk(HEAD + chunks(BIG) + LAST)
        assert [answer.status for answer in answers] == ([507] if free < 10 else [200, 200])
    assert harness.talk(HEAD + chunks(b"abc") + LAST)[0].body == b"abc", "this one needs no disk"
    assert held_in(temporary) == 0
    assert len(harness.errors()) == (free < 10)
    for error in harness.errors():
        assert "TMPDIR" in error and "10%" in error and str(temporary) in error


def test_the_disk_is_looked_at_again_while_a_body_grows(make, disk, monkeypatch):
    monkeypatch.setattr(gather, "LOOK", 100_000)
    harness = make(seen_body)
    with harness.connect() as client:
        client.send(HEAD + chunks(BIG)[:200_000])
        wait_for(lambda: disk.looks == 2)
        disk.f_bavail = 0
        client.send(chunks(BIG)[200_000:])
        assert parse(client.read_all())[0].status == 507
    assert disk.looks == 3


def test_a_file_system_without_a_size_is_taken(make, disk):
    disk.f_bavail = disk.f_blocks = 0
    assert make(seen_body).talk(HEAD + chunks(BIG) + LAST)[0].body == BIG


@pytest.mark.parametrize(("limit", "length", "status"), [(0, 100, 200), (0, 101, 413), (50, 51, 413), (200, 200, 200)])
def test_a_body_is_bounded_without_an_option_too(make, monkeypatch, limit, length, status):
    monkeypatch.setattr(gather, "LARGEST", 100)
    harness = make(seen_body, limit_request_body=limit)
    assert harness.talk(HEAD + chunks(b"x" * length, 10) + LAST)[0].status == status
    errors = harness.errors()
    assert len(errors) == (not limit and status == 413), "who has set a limit knows it"
    for error in errors:
        assert "--limit-request-body" in error and "--no-buffer-chunked" in error


def test_no_option_and_no_buffering_is_no_bound(make, monkeypatch):
    monkeypatch.setattr(gather, "LARGEST", 100)
    assert make(seen_body, buffer_chunked=False).talk(HEAD + chunks(b"x" * 101) + LAST)[0].status == 200


@pytest.mark.parametrize("way", WAYS)
def test_many_small_chunks_give_others_their_turn(make, way, monkeypatch):
    monkeypatch.setattr(gather, "SECONDS", -1)  # a turn for each chunk
    turns = []
    harness = make(seen_body, way)
    watcher = gevent.get_hub().loop.prepare()
    watcher.start(lambda: turns.append(1))
    try:
        one, two = harness.talk(HEAD + chunks(b"x" * 500, 1) + LAST)
    finally:
        watcher.close()
    assert (one.body, two.status) == (b"x" * 500, 200)
    assert len(turns) > 500


def test_reading_the_file_gives_others_their_turn(make):
    looks = []

    def application(environ, start_response):
        harness.engine.time_slice = SimpleNamespace(check=lambda *_: None)
        read = list(iter(lambda: environ["wsgi.input"].read(50_000), b""))
        start_response("200 OK", [])
        return [b"%d" % sum(map(len, read))]

    harness = make(application)
    real, harness.engine.time_slice = harness.engine.time_slice, SimpleNamespace(check=lambda *_: looks.append(1))
    one, _ = harness.talk(HEAD + chunks(BIG) + LAST.replace(b"/next", b"/"))[:2]
    harness.engine.time_slice = real
    assert one.body == b"%d" % len(BIG)
    assert len(looks) > len(BIG) // 50_000


@pytest.mark.parametrize("way", ["greenlets", "threads"])
@pytest.mark.parametrize("stop", [False, True])
def test_a_drain_waits_for_the_body(make, way, stop):
    harness = make(seen_body, way)
    with harness.connect() as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        passed = []
        if stop:
            harness.engine.drain()
            harness.engine.close_idle()
        else:
            harness.engine.drain_to(passed.extend)
        turn()
        assert harness.engine.connections == 1
        assert not passed
        client.send(b"0\r\n\r\n")
        client.read_until(b"abc")
        if stop:
            wait_for(lambda: harness.engine.connections == 0)
        else:
            wait_for(lambda: len(passed) == 1)  # between two requests it can go to the heir


@pytest.mark.parametrize("way", ["greenlets", "TLS"])
@pytest.mark.parametrize("stop", [False, True])
def test_a_drain_does_not_wait_for_a_silent_sender_for_ever(make, way, stop, monkeypatch):
    monkeypatch.setattr(engine, "LAST_CALL", 0.2)
    harness = make(never, way, body_timeout=0)
    with TlsClient(harness) if way == "TLS" else harness.connect() as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        (connection,) = harness.engine._open
        assert connection.seconds_left() is None
        if stop:
            harness.engine.drain()
            harness.engine.close_idle()
        else:
            harness.engine.drain_to(lambda connections: None)
        assert connection.seconds_left() <= 0.2
        client.send(b"1\r\nd\r\n")
        assert b" 408 " in client.read_all()


def test_a_drain_leaves_a_body_the_time_that_an_option_gives(make):
    harness = make(never, body_timeout=100.0)
    with harness.connect() as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        (connection,) = harness.engine._open
        harness.engine.drain()
        assert connection.seconds_left() > engine.LAST_CALL


def test_a_stuck_job_does_not_let_its_worker_cut_an_upload(make, monkeypatch):
    harness = make(seen_body)
    left = []
    worker = SimpleNamespace(
        engine=harness.engine, state="draining", board=harness.board, birth=SimpleNamespace(generation=3),
        receiver=SimpleNamespace(empty=lambda: False), exit=lambda: left.append("the worker"),
    )  # fmt: skip
    drain = Drain(worker)
    # One job that cannot be ended, in a request whose client has gone: it has no connection.
    monkeypatch.setattr(jobs, "overdue", lambda: [SimpleNamespace(in_request=True)])
    harness.engine.requests = 1
    try:
        with harness.connect() as client:
            client.send(HEAD + b"3\r\nabc\r\n")
            wait_for(lambda: in_body(harness))
            drain.leave_if_done()
            assert not left
            client.send(b"0\r\n\r\n" + LAST)
            assert parse(client.read_all())[0].body == b"abc"
            wait_for(lambda: not harness.engine.connections and harness.engine.requests == 1)
        drain.leave_if_done()
        assert left == ["the worker"]
    finally:
        harness.engine.requests = harness.board[ACTIVE] = 0


def test_the_loop_sends_nothing_while_a_thread_has_the_connection(make, monkeypatch):
    """What the loop had no room for (100 Continue, say) is the thread's to send: two must not write at once."""
    sent_while_lent = []
    monkeypatch.setattr(TlsConnection, "_flush", lambda connection: sent_while_lent.append(connection._lent))
    entered, leave = threading.Event(), threading.Event()

    def application(environ, start_response):
        entered.set()
        assert leave.wait(PATIENCE)
        return seen_body(environ, start_response)

    harness = make(application, "TLS, threads")
    with TlsClient(harness) as client:
        client.send(HEAD + b"3\r\nabc\r\n")
        wait_for(lambda: in_body(harness))
        (connection,) = harness.engine._open
        connection._flush_later()
        wait_for(lambda: sent_while_lent)
        client.send(b"0\r\n\r\n" + LAST)
        wait_for(entered.is_set)
        for _ in range(5):
            turn()
        leave.set()
        assert [answer.body for answer in parse(client.read_all())] == [b"abc", b""]
    assert set(sent_while_lent) == {False}


def test_the_loops_own_thread_stays_out_of_the_application(make):
    threads = []

    def application(environ, start_response):
        threads.append(threading.current_thread().name)
        return echo(environ, start_response)

    make(application, "threads").talk(HEAD + chunks(b"abc") + LAST)
    assert set(threads) == {"reuseport-1"}


def test_two_that_are_buffered_at_once_do_not_mix(make):
    harness = make(seen_body)
    with harness.connect() as one, harness.connect() as two:
        for client, letter in ((one, b"a"), (two, b"b")):
            client.send(HEAD + b"2\r\n" + letter)
        for client, letter in ((one, b"a"), (two, b"b")):
            client.send(letter + b"\r\n0\r\n\r\n" + LAST)
        assert parse(one.read_all())[0].body == b"aa"
        assert parse(two.read_all())[0].body == b"bb"
    gevent.sleep(0)
