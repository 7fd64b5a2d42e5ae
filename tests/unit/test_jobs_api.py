"""Jobs outside a server: code that runs, and says what it is."""

from __future__ import annotations

import threading

import pytest

import reuseport
from reuseport import jobs


@pytest.fixture(autouse=True)
def changes(monkeypatch):
    """Counts how often the registry said that it changed; and nothing may be left in it."""
    seen = []
    monkeypatch.setattr(jobs, "changed", lambda: seen.append(len(jobs.active)))
    yield seen
    assert jobs.active == {}


def test_a_block_is_a_job_while_it_runs(changes):
    with reuseport.job("export", tenant="acme") as one:
        assert [(j.name, j.tenant) for j in jobs.active.values()] == [("export", "acme")]
        one.progress(0.25, "page 3")
        assert (one.fraction, one.text) == (0.25, "page 3")
    assert changes == [1, 1, 0]


def test_a_block_that_raises_ends_its_job():
    with pytest.raises(ZeroDivisionError), reuseport.job("export"):
        1 / 0  # noqa: B018


def test_a_decorated_function_is_a_job_each_time_and_may_call_itself():
    depths = []

    @reuseport.job("countdown")
    def countdown(n):
        depths.append(len(jobs.active))
        return countdown(n - 1) if n else "done"

    assert countdown(2) == "done"
    assert depths == [1, 2, 3]
    assert countdown.__name__ == "countdown"


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_progress_lies_between_0_and_1(fraction):
    with reuseport.job("export") as one, pytest.raises(ValueError, match="between 0 and 1"):
        one.progress(fraction)


@pytest.mark.parametrize("where", ["greenlet", "thread"])
def test_a_spawned_job_gives_its_result(where):
    handle = reuseport.spawn(lambda a, b: a + b, 1, b=2, where=where, name="sum", tenant="acme")
    assert handle.result(10) == 3
    assert handle.done
    assert handle.job.name == "sum"


def test_a_spawned_job_is_one_from_the_moment_of_the_call():
    gate = threading.Event()
    handle = reuseport.spawn(gate.wait, name="waiting")
    assert [j.name for j in jobs.active.values()] == ["waiting"]
    assert not handle.done
    with pytest.raises(TimeoutError):
        handle.result(0.001)
    gate.set()
    assert handle.result(10) is True


def test_a_spawned_job_gives_its_exception_and_prints_it(capsys):
    handle = reuseport.spawn(lambda: {}["missing"], name="lookup")
    with pytest.raises(KeyError, match="missing"):
        handle.result(10)
    assert "KeyError: 'missing'" in capsys.readouterr().err


def test_a_job_elsewhere_than_in_a_greenlet_or_thread_is_refused():
    with pytest.raises(ValueError, match="where is"):
        reuseport.spawn(print, where="moon")


def test_a_process_is_a_thread_outside_a_server_but_takes_only_what_a_process_could():
    assert reuseport.spawn(divmod, 7, 2, where="process").result(10) == (3, 1)
    with pytest.raises(TypeError, match="imported by its name"):
        reuseport.spawn(lambda: 1, where="process")


def test_a_function_tells_how_far_its_job_is_without_having_it_at_hand():
    def work():
        reuseport.progress(0.5, "half")
        return "done"

    handle = reuseport.spawn(work)
    assert handle.result(10) == "done"
    assert (handle.job.fraction, handle.job.text) == (0.5, "half")
    assert work() == "done", "outside a job it says nothing"


def test_one_job_object_may_be_in_use_by_many_at_once():
    shared, gates = reuseport.job("export"), [threading.Event() for _ in range(2)]
    ended = []

    def work(gate):
        with shared as one:
            gate.wait(10)
        ended.append(one.number)

    threads = [threading.Thread(target=work, args=(gate,)) for gate in gates]
    for thread in threads:
        thread.start()
    while len(jobs.active) < 2:
        pass
    first, second = jobs.active
    gates[0].set()
    threads[0].join()
    (left,) = jobs.active
    assert [left, *ended] in ([first, second], [second, first])
    gates[1].set()
    threads[1].join()
