"""Jobs outside a server: code that runs, and says what it is."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

import reuseport
from reuseport import jobs, names
from reuseport.ipc import messages


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


class Odd:
    """A number of a class of its own, as numpy's are."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [
        (30, 30.0),
        (Fraction(1, 4), 0.25),
        (Decimal("2.5"), 2.5),
        (Odd(7.0), 7.0),
        (float("inf"), None),
        (Decimal("Infinity"), None),
        (1e300, None),
    ],
)
def test_a_deadline_is_any_real_number(deadline, seconds):
    with reuseport.job("export", deadline=deadline) as one:
        assert one.deadline == seconds and type(one.deadline) in (float, type(None))


NO_NUMBERS = [True, "30", b"30", timedelta(seconds=30), datetime(2026, 1, 1), [30], 1j]
NO_DEADLINES = [float("nan"), Decimal("NaN"), 10**400, 0, -1]


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [(one, TypeError) for one in NO_NUMBERS] + [(one, ValueError) for one in NO_DEADLINES],
)
def test_another_deadline_is_refused_where_it_is_given(deadline, expected, changes):
    for call in (
        lambda: reuseport.job("export", deadline=deadline),
        lambda: reuseport.spawn(print, deadline=deadline),
        lambda: reuseport.Job("export", deadline=deadline),
    ):
        with pytest.raises(expected, match="a job's deadline is a number of seconds"):
            call()
    assert changes == []


@pytest.mark.parametrize("fraction", [Fraction(1, 2), Decimal("0.5"), Odd(0.5)])
def test_progress_is_any_real_number(fraction):
    with reuseport.job("export") as one:
        one.progress(fraction)
        assert type(one.fraction) is float and one.fraction == 0.5


@pytest.mark.parametrize(
    "fraction", ["0.5", None, timedelta(0), float("nan"), float("inf"), Decimal("NaN"), -0.1]
)
def test_other_progress_is_refused_and_changes_nothing(fraction):
    with reuseport.job("export") as one:
        one.progress(0.25, "page 1")
        with pytest.raises((TypeError, ValueError), match="a job's progress lies between 0 and 1"):
            one.progress(fraction, "page 2")
        with pytest.raises(TypeError, match="the text of a job's progress is a str"):
            one.progress(0.5, b"page 2")
        assert (one.fraction, one.text) == (0.25, "page 1")


@pytest.mark.parametrize("bad", [b"export", ["export"], 1.5, True, object()], ids=lambda value: type(value).__name__)
def test_a_name_is_a_text(bad):
    for call in (
        lambda: reuseport.job(bad),
        lambda: reuseport.job("export", tenant=bad),
        lambda: reuseport.spawn(print, name=bad),
        lambda: reuseport.spawn(print, tenant=bad),
    ):
        with pytest.raises(TypeError, match=r"a job's (name|tenant) is a str"):
            call()


def test_names_are_printable_from_the_beginning():
    with reuseport.job("a\0b", tenant="x" * 70_000) as one:
        assert (one.name, one.tenant) == (names.name("a\0b"), names.name("x" * 70_000))
        one.progress(1, "\x1b[2J" + "y" * 70_000)
        assert one.text.isprintable() and len(one.text) == names.LONGEST
    with reuseport.job(17, tenant=4711) as one:
        assert (one.name, one.tenant) == ("17", "4711")


@pytest.mark.parametrize("what", [None, "f", 1])
def test_what_cannot_be_called_is_refused_where_it_is_given(what):
    for register in (reuseport.spawn, reuseport.on_start, reuseport.on_drain, reuseport.job("export")):
        with pytest.raises(TypeError, match="is a function, not"):
            register(what)


def test_a_timeout_is_any_real_number():
    gate = threading.Event()
    handle = reuseport.spawn(gate.wait, 10)
    with pytest.raises(TimeoutError, match=r"within 0\.001 s"):
        handle.result(Fraction(1, 1000))
    for bad in ("1", timedelta(seconds=1), float("nan")):
        with pytest.raises((TypeError, ValueError)):
            handle.result(bad)
    gate.set()
    assert handle.result(Decimal("1e30")) is True


def test_a_job_whose_deadline_cannot_be_kept_does_not_begin(monkeypatch):
    def refuse(self, **how):
        raise RuntimeError("no thread")

    monkeypatch.setattr(jobs.Job, "bound", refuse)
    with pytest.raises(RuntimeError, match="no thread"), reuseport.job("export", deadline=1):
        pass


# --- what the master is told of them ----------------------------------------------------------------------------------


class Ledger:
    """A worker's, and what the master has heard: the jobs that it knows, and those that are lost."""

    def __init__(self):
        from reuseport.worker.reporter import Ledger

        self.known, self.lost, self.said = {}, [], 0
        self._ledger = Ledger(self._hear, lambda: True)
        self.tell, self.is_lost = self._ledger.tell, self._ledger.lost

    def _hear(self, kind, **fields):
        self.said += 1
        said = json.loads(json.dumps({"v": 1, "type": kind, **fields}, allow_nan=False))
        message = messages.FROM_WORKER[kind].parse(said)
        if kind == "job":
            self.known[message.number] = message
        elif kind == "job-ended":
            del self.known[message.number]
        else:
            self.lost.append(message)


@pytest.mark.parametrize(
    "value",
    [b"x", 5, -1.0, 1.5, 1e300, 10**400, Decimal(1), float("nan"), "\0" * 70_000, None, object()],
    ids=lambda value: f"{value!r:.9}" if isinstance(value, float) else type(value).__name__,
)
def test_one_job_hides_no_other_whatever_the_application_makes_of_it(value):
    ledger = Ledger()
    with reuseport.job("before"), reuseport.job("odd") as odd, reuseport.job("behind"):
        for attribute in ("name", "text", "deadline", "fraction", "started", "where", "overdue"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(odd, attribute, value)
                ledger.tell()
                assert {"before", "behind"} <= {job.name for job in ledger.known.values()}
                assert len(ledger.known) == 3
    ledger.tell()
    assert ledger.known == {}


def test_the_master_is_told_of_so_many_jobs_and_of_each_tenants_in_the_end():
    ledger = Ledger()
    many = messages.JOBS + 500
    plain = [jobs.Job("plain") for _ in range(many)]
    tenants = [jobs.Job("export", f"tenant {number}") for number in range(many)]
    for one in (*plain, *tenants):
        one.begin()
    ledger.tell()
    assert len(ledger.known) == messages.JOBS
    assert sum(job.tenant is not None for job in ledger.known.values()) == messages.JOBS // 2
    first, said = set(ledger.known), ledger.said
    ledger.tell()
    assert (set(ledger.known), ledger.said) == (first, said), "nothing is told twice"
    for one in plain:
        one.end()
    ledger.tell()
    seen = set()
    while tenants:
        assert ledger.known, "a tenant's job is known while there is one"
        seen |= {job.tenant for job in ledger.known.values()}
        for one in [one for one in tenants if one.number in ledger.known]:
            one.end()
            tenants.remove(one)
        ledger.tell()
    assert len(seen) == many and ledger.known == {}


def test_a_job_that_the_master_knows_is_told_as_ended_only_at_its_end():
    ledger = Ledger()
    running = [jobs.Job("export", f"tenant {number}") for number in range(messages.JOBS - 100)]
    running += [jobs.Job("plain") for _ in range(100)]
    for one in running:
        one.begin()
    ledger.tell()
    known = set(ledger.known)
    assert known == {one.number for one in running}
    running += [jobs.Job("one more"), jobs.Job("one more", "acme")]
    for one in running[-2:]:
        one.begin()
        ledger.tell()
    assert set(ledger.known) == known
    for one in running:
        one.end()


def test_a_job_that_no_process_has_begun_is_told_once():
    ledger = Ledger()
    ledger.is_lost(jobs.Job("export", "acme", where="process"), 99, "ended before the function began")
    ledger.tell()
    ledger.tell()
    (lost,) = ledger.lost
    assert (lost.name, lost.tenant, lost.pid, lost.why) == ("export", "acme", 99, "ended before the function began")
