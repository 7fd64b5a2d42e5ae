"""Deadlines and cancelling while a library waits: the library's own clean-up, for which it catches Exception, runs."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import time

import gevent
import gevent.event
import gevent.socket
import pytest

import reuseport
import reuseport.spawned
from reuseport import deadlines, jobs

SOON = 0.02  # seconds
LATE = 30.0

# Each guards its state as psycopg_pool and pymemcache do, by `except Exception`.
LIBRARY = """\
import threading, time

class Pool:
    def __init__(self, event):
        self.waiting, self.free, self.event = [], ["connection"], event

    def take(self):
        if self.free:
            return self.free.pop()
        place = object()
        self.waiting.append(place)
        try:
            self.event.wait(60)
            return self.free.pop()
        except Exception:
            self.waiting.remove(place)
            raise

class Client:
    def __init__(self, connect):
        self.connect, self.sock = connect, None

    def get(self, key):
        self.sock = self.sock or self.connect()
        try:
            self.sock.sendall(key + b"\\n")
            return self.sock.recv(100)
        except Exception:
            self.sock.close()
            self.sock = None
            raise

def compute(seconds):
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    except Exception:
        cleaned.append("compute")
        raise

def call(function):
    return function()

cleaned = []
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "guarded_library.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(packages))
    importlib.invalidate_caches()
    yield importlib.import_module("guarded_library")
    del sys.modules["guarded_library"]


@pytest.fixture
def loop(monkeypatch):
    """This thread's greenlets can be reached, as in a worker."""
    before = signal.getsignal(deadlines.DEADLINE_SIGNAL)
    deadlines.attach(gevent.get_hub().loop)
    monkeypatch.setattr(jobs, "server", jobs.Server(gevent.get_hub().loop, grace=2 * SOON))
    yield
    deadlines._Home.thread, deadlines._Home.loop = 0, None
    signal.signal(deadlines.DEADLINE_SIGNAL, before)
    assert not deadlines._clock.limits()


def test_a_greenlet_that_waits_in_a_pool_leaves_its_place(loop, library):
    pool = library.Pool(gevent.event.Event())
    held = pool.take()
    with pytest.raises(reuseport.JobTimeout) as caught, reuseport.job("report", deadline=SOON):
        pool.take()
    assert not isinstance(caught.value, Exception), "nobody beyond the job catches it by accident"
    assert pool.waiting == [] and held


def test_a_client_whose_answer_was_not_read_is_not_used_again(loop, library):
    with gevent.socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        go_on = gevent.event.Event()

        def answer(sock):
            with sock, sock.makefile("rb") as lines:
                for line in lines:
                    if line == b"slow\n":
                        go_on.wait(LATE)
                    sock.sendall(b"value of " + line)

        def accept():
            while True:
                gevent.spawn(answer, listener.accept()[0])

        server = gevent.spawn(accept)
        client = library.Client(lambda: gevent.socket.create_connection(listener.getsockname()))
        with pytest.raises(reuseport.JobTimeout), reuseport.job("report", deadline=SOON):
            client.get(b"slow")
        go_on.set()
        assert client.get(b"quick") == b"value of quick\n"
        client.sock.close()
        server.kill()


def await_true(predicate):
    end = time.monotonic() + LATE
    while not predicate():
        assert time.monotonic() < end
        gevent.sleep(0.001)


def test_a_thread_that_waits_in_a_pool_leaves_its_place(loop, library):
    pool = library.Pool(threading.Event())
    pool.take()
    handle = reuseport.spawn(pool.take, where="thread", deadline=SOON)
    await_true(lambda: handle.job.limit.was_in_library)
    end = time.monotonic() + 3 * jobs.server.grace
    await_true(lambda: time.monotonic() > end)  # the plain exception does not take the place of one that is on its way
    pool.event.set()  # a thread gets it at its next line, which comes behind the wait
    with pytest.raises(reuseport.JobTimeout) as caught:
        handle.result(LATE)
    assert type(caught.value) is reuseport.JobTimeout
    assert pool.waiting == []


@pytest.mark.parametrize("way", ["deadline", "cancel"])
def test_a_native_thread_that_waits_in_a_loop_of_gevent_gets_it_there(loop, library, monkeypatch, way):
    """As code does in `where="thread"`, when gevent's patches make it wait. Its loop lives on."""
    monkeypatch.setattr(jobs.server, "grace", LATE)
    pool = library.Pool(gevent.event.Event())
    pool.take()

    def work():
        try:
            pool.take()
        finally:
            gevent.sleep(0.001)
            after.append(True)

    after = []
    handle = reuseport.spawn(work, where="thread", **({"deadline": SOON} if way == "deadline" else {}))
    if way == "cancel":
        await_true(lambda: pool.waiting)
        handle.cancel()
    with pytest.raises(reuseport.JobCancelled) as caught:
        handle.result(LATE)  # and not only when its wait is over
    assert type(caught.value) is (reuseport.JobTimeout if way == "deadline" else reuseport.JobCancelled)
    assert pool.waiting == [] and after == [True]


def test_library_code_that_computes_cleans_up(loop, library):
    with pytest.raises(reuseport.JobTimeout), reuseport.job("report", deadline=SOON):
        library.compute(LATE)
    assert library.cleaned == ["compute"]


@pytest.mark.parametrize("where", ["greenlet", "thread"])
def test_a_cancelled_job_leaves_its_place(loop, library, monkeypatch, where):
    pool = library.Pool(gevent.event.Event() if where == "greenlet" else threading.Event())
    pool.take()
    monkeypatch.setattr(jobs.server, "grace", LATE)
    if where == "greenlet":
        monkeypatch.setattr(reuseport.spawned, "_in_server", lambda: True)
        monkeypatch.setattr(reuseport.spawned, "_is_patched", lambda: True)
    handle = reuseport.spawn(pool.take, where=where)
    await_true(lambda: pool.waiting)
    assert handle.cancel()
    if where == "thread":
        await_true(lambda: handle.job.limit.was_in_library)
        pool.event.set()
    await_true(lambda: handle.done)
    with pytest.raises(reuseport.JobCancelled) as caught:
        handle.result(LATE)
    assert type(caught.value) is reuseport.JobCancelled
    assert pool.waiting == []


def test_a_cancelled_greenlet_that_catches_every_exception_ends_all_the_same(loop, library, monkeypatch):
    """As a queue's consumer does, which logs each error and polls again."""
    pool = library.Pool(gevent.event.Event())
    pool.take()

    def consume():
        while True:
            try:
                pool.take()
            except Exception as error:  # noqa: BLE001
                caught.append(error)

    caught = []
    monkeypatch.setattr(reuseport.spawned, "_in_server", lambda: True)
    monkeypatch.setattr(reuseport.spawned, "_is_patched", lambda: True)
    handle = reuseport.spawn(consume)
    await_true(lambda: pool.waiting)
    assert handle.cancel()
    await_true(lambda: handle.done)
    with pytest.raises(reuseport.JobCancelled):
        handle.result(LATE)
    assert [isinstance(error, reuseport.JobCancelled) for error in caught] == [True]


def test_a_spawned_job_that_is_late_in_a_library_ends_with_the_plain_error(loop, library):
    handle = reuseport.spawn(library.compute, LATE, where="thread", deadline=SOON)
    with pytest.raises(reuseport.JobTimeout) as caught:
        handle.result(LATE)
    assert type(caught.value) is reuseport.JobTimeout
    assert library.cleaned == ["compute"]


def test_code_that_catches_it_and_goes_on_gets_the_plain_one(loop, library):
    pool = library.Pool(gevent.event.Event())
    pool.take()
    caught = []
    with pytest.raises(reuseport.JobTimeout), reuseport.job("report", deadline=SOON):
        while True:
            try:
                pool.take()
            except Exception as error:  # noqa: BLE001
                caught.append(error)
    assert [isinstance(error, reuseport.JobTimeout) for error in caught] == [True]
    assert pool.waiting != [], "the second one is for what ignores the first one"


def test_the_application_s_own_code_gets_no_exception(loop, library, monkeypatch):
    """Wherever it lies, and also where a library calls it."""

    def wait(function):
        with pytest.raises(reuseport.JobTimeout) as caught, reuseport.job("report", deadline=SOON):
            try:
                function()
            except Exception:  # noqa: BLE001
                pytest.fail("an `except Exception` has caught it")
        assert type(caught.value) is reuseport.JobTimeout

    for function in (lambda: gevent.sleep(LATE), lambda: library.call(lambda: gevent.event.Event().wait(LATE))):
        wait(function)
    monkeypatch.setattr(deadlines._Home, "package", "guarded_library")  # it is the application
    pool = library.Pool(gevent.event.Event())
    pool.take()
    wait(pool.take)


def test_a_job_within_another_s_does_not_take_its_exception_out_of_the_library(loop, library):
    pool = library.Pool(gevent.event.Event())
    pool.take()
    seen = []

    def inner():
        with reuseport.job("inner", deadline=LATE):
            try:
                pool.take()
            except Exception as error:
                seen.append(error)
                raise

    with pytest.raises(reuseport.JobTimeout) as caught, reuseport.job("outer", deadline=SOON):
        try:
            library.call(inner)
        except Exception as error:
            seen.append(error)
            raise
    assert len(seen) == 2 and seen[0] is seen[1]
    assert type(caught.value) is reuseport.JobTimeout
