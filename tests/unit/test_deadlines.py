"""Deadlines and cancelling: an exception is raised in what runs a job, and nowhere else."""

from __future__ import annotations

import threading
import time

import gevent
import pytest

import reuseport
from reuseport import deadlines, jobs
from reuseport.deadlines import Limit

SOON = 0.02  # seconds
LATE = 10.0


@pytest.fixture
def loop(monkeypatch):
    """This thread's greenlets can be reached, as in a worker."""
    import signal

    before = signal.getsignal(deadlines.DEADLINE_SIGNAL)
    deadlines.attach(gevent.get_hub().loop)
    monkeypatch.setattr(jobs, "server", jobs.Server(gevent.get_hub().loop, grace=SOON))
    yield
    deadlines._Home.thread, deadlines._Home.loop = 0, None
    signal.signal(deadlines.DEADLINE_SIGNAL, before)
    assert not deadlines._clock.limits()


def spin(seconds: float = LATE) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("wait", [gevent.sleep, spin])
def test_a_greenlet_gets_it_whether_it_waits_or_computes(loop, wait):
    with pytest.raises(reuseport.JobTimeout), reuseport.job("export", deadline=SOON):
        wait(LATE)


def test_only_the_greenlet_whose_job_it_is_gets_it(loop):
    def late():
        with pytest.raises(reuseport.JobTimeout), reuseport.job("late", deadline=SOON):
            gevent.sleep(LATE)
        return "late"

    def busy():
        for _ in range(20):
            spin(SOON)
            gevent.sleep(0)
        return "busy"

    both = [gevent.spawn(late), gevent.spawn(busy)]
    gevent.joinall(both, raise_error=True)
    assert [one.value for one in both] == ["late", "busy"]


def test_nothing_is_left_of_a_deadline_that_was_not_reached(loop):
    with reuseport.job("export", deadline=SOON) as one:
        pass
    assert one.limit.due < time.monotonic() + LATE
    gevent.sleep(5 * SOON)
    spin(5 * SOON)


def test_what_goes_on_is_overdue_after_the_grace(loop):
    with reuseport.job("export", deadline=SOON) as one:
        while not one.overdue:
            try:
                gevent.sleep(LATE if not jobs.late else 0)
            except reuseport.JobTimeout:
                gevent.sleep(2 * SOON)
        assert list(jobs.late.values()) == [one]
    assert not jobs.late


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_thread_gets_it_at_its_next_line(where):
    handle = reuseport.spawn(spin, where=where, deadline=SOON)
    with pytest.raises(reuseport.JobTimeout):
        handle.result(LATE)


def test_a_thread_can_be_cancelled():
    begun = threading.Event()

    def work():
        begun.set()
        spin()

    handle = reuseport.spawn(work, where="thread")
    assert begun.wait(LATE)
    assert handle.cancel() is True
    with pytest.raises(reuseport.JobCancelled):
        handle.result(LATE)
    assert handle.cancel() is False


def test_what_was_not_raised_yet_is_taken_back():
    def run():
        limit = Limit(None)
        with limit._lock:  # so that the clock's thread is in the middle of it
            limit._raised = True
        limit.close()
        ended.append(True)

    ended = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [True]


def test_being_ended_is_no_exception_that_a_job_would_retry():
    assert not issubclass(reuseport.JobCancelled, Exception)
    assert issubclass(reuseport.JobTimeout, reuseport.JobCancelled)


@pytest.mark.parametrize("deadline", [0, -1.0])
def test_a_deadline_is_above_0(deadline):
    with pytest.raises(ValueError, match="above 0"):
        reuseport.job("export", deadline=deadline)


def test_a_default_deadline_is_for_jobs_without_one_of_their_own(monkeypatch):
    monkeypatch.setattr(jobs, "server", jobs.Server(timeout=60.0))
    assert jobs.Job("export").deadline == 60.0
    assert jobs.Job("export", deadline=5.0).deadline == 5.0
    assert jobs.Job("export", deadline=float("inf")).deadline is None
