"""Tells the master of this worker's jobs, as they begin, get on and end.

Only differences travel, not more often than every REPORT seconds, and only while the channel has room: a job that is
over before that needs no report, and thousands of short ones must neither keep the master busy nor wait in memory for a
master that is stopped. The count in the scoreboard is always true, and what was
begun last stands in shared memory (`ipc/begun.py`), for a master that has to tell what was lost with this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reuseport import jobs
from reuseport.ipc.begun import Row
from reuseport.ipc.scoreboard import JOBS
from reuseport.spawned import Handle
from reuseport.worker.alarm import Alarm
from reuseport.worker.interrupts import is_server

REPORT = 0.05  # seconds
TEXT = 200  # characters of a name or a progress text that are passed on

# Interrupted by what a signal's handler raises, a job that has ended would be counted on, and a drain wait for it.
for _step in (jobs.Job.begin, jobs.Job.end, jobs.job.__enter__, jobs.job.__exit__, Handle.settle):
    is_server(_step)


class Ledger:
    """The state of this process's jobs that the master knows.

    `say(kind, **fields)` speaks to it. `has_room()`: whether a message is sent at once. Where it would have to wait,
    the ledger tells the rest later, as the jobs are then.
    """

    def __init__(self, say: Callable[..., None], has_room: Callable[[], bool]) -> None:
        self._say = say
        self._has_room = has_room
        self._told: dict[int, dict[str, Any]] = {}
        self._repeating = False

    def forget(self) -> None:
        """The process has said hello on a new channel: repeat everything, because the messages that waited in the old
        channel are lost."""
        self._told.clear()
        self._repeating = True

    def tell(self) -> bool:
        """Tell what has changed since the last time. False where the channel has no room for all of it."""
        now = {one.number: _facts(one) for one in list(jobs.active.values())}
        for number in self._told.keys() - now.keys():
            if not self._has_room():
                return False
            self._say("job-ended", number=number)
            del self._told[number]
        for number, facts in now.items():
            if self._told.get(number) != facts:
                if not self._has_room():
                    return False
                self._say("job", number=number, **facts)
                self._told[number] = facts
        if self._repeating:
            if not self._has_room():
                return False
            # The same master may know jobs whose end was never sent. It now forgets each job that was not repeated.
            self._say("jobs-repeated")
            self._repeating = False
        return True


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
    """`say(kind, **fields)` speaks to the master, if `has_room()`; `on_change()` is called in the loop after each
    change."""

    def __init__(
        self,
        loop: Any,
        board: Any,
        begun: Row,
        say: Callable[..., None],
        has_room: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._board = board
        self._begun = begun
        self._ledger = Ledger(say, has_room)
        self._on_change = on_change
        self._alarm = Alarm(loop, REPORT, self.report)
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
        self._alarm.set()
        self._on_change()

    def again(self) -> None:
        """Another master knows nothing yet: tell it everything."""
        self._ledger.forget()
        self.report()

    def report(self) -> bool:
        """Tell what has changed since the last time. False where the channel has no room for all of it: then this has
        to be called again when it has."""
        self._alarm.clear()
        return self._ledger.tell()

