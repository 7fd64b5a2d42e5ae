"""Tells the master of this worker's jobs, as they begin, get on and end.

Only differences travel, and not more often than every REPORT seconds: a job that is over before that needs no report,
and thousands of short ones must not keep the master busy. The count in the scoreboard is always true, and what was
begun last stands in shared memory (`ipc/begun.py`), for a master that has to tell what was lost with this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reuseport import jobs
from reuseport.ipc.begun import Row
from reuseport.ipc.scoreboard import JOBS
from reuseport.spawned import Handle
from reuseport.worker.interrupts import is_server

REPORT = 0.05  # seconds
TEXT = 200  # characters of a name or a progress text that are passed on

# Interrupted by what a signal's handler raises, a job that has ended would be counted on, and a drain wait for it.
for _step in (jobs.Job.begin, jobs.Job.end, jobs.job.__enter__, jobs.job.__exit__, Handle.settle):
    is_server(_step)


class Ledger:
    """What the master has been told of this process's jobs. `say(kind, **fields)` speaks to it."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._told: dict[int, dict[str, Any]] = {}

    def forget(self) -> None:
        """Another master knows nothing yet."""
        self._told.clear()

    def tell(self) -> None:
        """Tell what has changed since the last time."""
        now = {one.number: _facts(one) for one in list(jobs.active.values())}
        for number in self._told.keys() - now.keys():
            self._say("job-ended", number=number)
        for number, facts in now.items():
            if self._told.get(number) != facts:
                self._say("job", number=number, **facts)
        self._told = now


def _facts(one: jobs.Job) -> dict[str, Any]:
    return {
        "name": one.name[:TEXT],
        "tenant": one.tenant,
        "started": one.started,
        "deadline": one.deadline,
        "fraction": one.fraction,
        "text": one.text[:TEXT],
        "where": one.where,
        "overdue": one.overdue,
    }


class JobReporter:
    """`say(kind, **fields)` speaks to the master; `on_change()` is called in the loop after each change."""

    def __init__(
        self, loop: Any, board: Any, begun: Row, say: Callable[..., None], on_change: Callable[[], None]
    ) -> None:
        self._board = board
        self._begun = begun
        self._ledger = Ledger(say)
        self._on_change = on_change
        self._timer = loop.timer(REPORT)
        self._wake = loop.async_()
        self._wake.start(self._changed)
        # What a zygote may have had under way at its import is not this process's.
        jobs.active.clear()
        jobs.starting.clear()
        jobs.changed = self._from_any_thread
        jobs.note = self._note

    def _note(self, one: jobs.Job, begins: bool) -> None:
        if begins:
            self._begun.add(one.number, one.name, one.tenant, one.started, one.where == jobs.PROCESS)
        else:
            self._begun.remove(one.number)

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

