"""Tells the master of this worker's jobs, as they begin, get on and end.

Only differences travel, and not more often than every REPORT seconds: a job that is over before that needs no report,
and thousands of short ones must not keep the master busy. The count in the scoreboard is always true, and what was
begun last stands in shared memory (`ipc/begun.py`), for a master that has to tell what was lost with this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import isfinite
from typing import Any

from reuseport import jobs, names
from reuseport.ipc.begun import Row
from reuseport.ipc.messages import JOBS as MOST
from reuseport.ipc.scoreboard import JOBS
from reuseport.spawned import Handle
from reuseport.worker.interrupts import is_server

REPORT = 0.05  # seconds
LOST = 100  # lost jobs that wait to be told

# Interrupted by what a signal's handler raises, a job that has ended would be counted on, and a drain wait for it.
for _step in (jobs.Job.begin, jobs.Job.end, jobs.job.__enter__, jobs.job.__exit__, Handle.settle):
    is_server(_step)


class Ledger:
    """What the master has been told of this process's jobs. `say(kind, **fields)` speaks to it.

    The master hears of `messages.JOBS` jobs at most at a time, and of the next one when one of these has ended. Half of
    the places are for jobs of tenants, because the master must know of such a job while there is one.
    """

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._told: dict[int, dict[str, Any]] = {}
        self._lost: deque[tuple[jobs.Job, int, str]] = deque(maxlen=LOST)

    def forget(self) -> None:
        """Another master knows nothing yet."""
        self._told.clear()

    def lost(self, one: jobs.Job, pid: int, why: str) -> None:
        """A job is lost that no process has begun (`jobs.lost`). In any thread; `tell` passes it on."""
        self._lost.append((one, pid, why))

    def tell(self) -> None:
        """Tell what has changed since the last time."""
        now = {one.number: _facts(one) for one in self._chosen(list(jobs.active.values()))}
        for number in self._told.keys() - now.keys():
            del self._told[number]
            self._say("job-ended", number=number)
        for number, facts in now.items():
            if self._told.get(number) != facts:
                self._told[number] = facts
                self._say("job", number=number, **facts)
        while self._lost:
            one, pid, why = self._lost.popleft()
            facts = _facts(one)
            self._say("job-lost", pid=pid, why=why, **{name: facts[name] for name in ("name", "tenant", "started")})

    def _chosen(self, active: list[jobs.Job]) -> list[jobs.Job]:
        """Those that the master is to know of: what it knows already, and the oldest others."""
        if len(active) <= MOST:
            return active
        chosen: list[jobs.Job] = []
        for some in ([one for one in active if one.tenant], [one for one in active if not one.tenant]):
            some.sort(key=lambda one: one.number not in self._told)
            chosen += some[: MOST // 2]
        return chosen


def _facts(one: jobs.Job) -> dict[str, Any]:
    """`jobs.Job` checks its values. An application that assigns others to its attributes hides no other job."""
    return {
        "name": names.name(one.name) if isinstance(one.name, str) else type(one.name).__name__,
        "tenant": names.name(one.tenant) if isinstance(one.tenant, str) else None,
        "started": _real(one.started) or 0.0,
        "deadline": _real(one.deadline),
        "fraction": _real(one.fraction),
        "text": names.line(one.text) if isinstance(one.text, str) else "",
        "where": one.where,
        "overdue": one.overdue,
    }


def _real(value: Any) -> float | None:
    return value if type(value) is float and isfinite(value) else None


class JobReporter:
    """`say(kind, **fields)` speaks to the master, and `has_master()` is whether there is one. `on_change()` is called
    in the loop after each change."""

    def __init__(
        self,
        loop: Any,
        board: Any,
        begun: Row,
        say: Callable[..., None],
        has_master: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._board = board
        self._begun = begun
        self._ledger = Ledger(say)
        self._has_master = has_master
        self._on_change = on_change
        self._timer = loop.timer(REPORT)
        self._wake = loop.async_()
        self._wake.start(self._changed)
        # What a zygote may have had under way at its import is not this process's.
        jobs.active.clear()
        jobs.starting.clear()
        jobs.changed = self._from_any_thread
        jobs.note = self._note
        jobs.lost = self._lost

    def _note(self, one: jobs.Job, begins: bool) -> None:
        if begins:
            self._begun.add(one.number, one.name, one.tenant, one.started, one.where == jobs.PROCESS)
        else:
            self._begun.remove(one.number)

    def _lost(self, one: jobs.Job, pid: int, why: str) -> bool:
        self._ledger.lost(one, pid, why)
        self._wake.send()
        return self._has_master()

    def _from_any_thread(self) -> None:
        self._board[JOBS] = len(jobs.active) + len(jobs.starting)
        self._wake.send()

    def _changed(self) -> None:
        self._board[JOBS] = len(jobs.active) + len(jobs.starting)
        if not self._timer.active:
            self._timer.start(self.report)
        self._on_change()

    def again(self) -> None:
        """Another master knows nothing yet: tell it everything."""
        self._ledger.forget()
        self.report()

    def report(self) -> None:
        """Tell what has changed since the last time."""
        self._timer.stop()
        self._ledger.tell()

