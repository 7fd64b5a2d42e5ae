"""Tells the master of this worker's jobs, as they begin, get on and end.

Only differences travel, not more often than every REPORT seconds, and only while the channel has room: a job that is
over before that needs no report, and thousands of short ones must neither keep the master busy nor wait in memory for a
master that is stopped. The count in the scoreboard is always true, and what was
begun last stands in shared memory (`ipc/begun.py`), for a master that has to tell what was lost with this process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from reuseport import jobs, names
from reuseport.ipc import messages
from reuseport.ipc.begun import Row
from reuseport.ipc.messages import JOBS as MOST
from reuseport.ipc.scoreboard import JOBS
from reuseport.spawned import Handle
from reuseport.worker.alarm import Alarm
from reuseport.worker.interrupts import is_server

REPORT = 0.05  # seconds
FOR_TENANTS = MOST // 2  # places that no other job takes
PLACES = frozenset({"", jobs.GREENLET, jobs.THREAD, jobs.PROCESS})
LOST = 100  # lost jobs that wait to be told

# Interrupted by what a signal's handler raises, a job that has ended would be counted on, and a drain wait for it.
for _step in (jobs.Job.begin, jobs.Job.end, jobs.job.__enter__, jobs.job.__exit__, Handle.settle):
    is_server(_step)


class Ledger:
    """The state of this process's jobs that the master knows.

    The master hears of `messages.JOBS` jobs at most at a time, and of the next one when one of these has ended. Half of
    the places are kept for jobs of tenants, because the master must know of such a job while there is one.

    `say(kind, **fields)` speaks to it. `has_room()`: whether a message is sent at once. Where it would have to wait,
    the ledger tells the rest later, as the jobs are then.
    """

    def __init__(self, say: Callable[..., None], has_room: Callable[[], bool]) -> None:
        self._say = say
        self._has_room = has_room
        self._told: dict[int, dict[str, Any]] = {}
        self._lost: deque[tuple[jobs.Job, int, str]] = deque(maxlen=LOST)
        self._repeating = False

    def forget(self) -> None:
        """The process has said hello on a new channel: repeat everything, because the messages that waited in the old
        channel are lost."""
        self._told.clear()
        self._repeating = True

    def lost(self, one: jobs.Job, pid: int, why: str) -> None:
        """A job is lost that no process has begun (`jobs.lost`). In any thread; `tell` passes it on."""
        self._lost.append((one, pid, why))

    def tell(self) -> bool:
        """Tell what has changed since the last time. False where the channel has no room for all of it."""
        now = {one.number: _facts(one) for one in self._chosen(list(jobs.active.values()))}
        for number in self._told.keys() - now.keys():
            if not self._has_room():
                return False
            del self._told[number]
            self._say("job-ended", number=number)
        for number, facts in now.items():
            if self._told.get(number) != facts:
                if not self._has_room():
                    return False
                self._told[number] = facts
                self._say("job", number=number, **facts)
        if self._repeating:
            if not self._has_room():
                return False
            # The same master may know jobs whose end was never sent. It now forgets each job that was not repeated.
            self._repeating = False
            self._say("jobs-repeated")
        while self._lost:
            if not self._has_room():
                return False
            one, pid, why = self._lost.popleft()
            facts = _facts(one)
            self._say("job-lost", pid=pid, why=why, **{name: facts[name] for name in ("name", "tenant", "started")})
        return True

    def _chosen(self, active: list[jobs.Job]) -> list[jobs.Job]:
        """Those that the master is to know of: what it knows already, and the oldest others as far as there is room."""
        if len(active) <= FOR_TENANTS:
            return active
        chosen = [one for one in active if one.number in self._told]
        places = MOST - len(chosen)
        of_nobody = MOST - FOR_TENANTS - sum(not one.tenant for one in chosen)
        for one in active:
            if one.number in self._told or (not one.tenant and of_nobody <= 0):
                continue
            if places <= 0:
                break
            places -= 1
            of_nobody -= not one.tenant
            chosen.append(one)
        return chosen


def _facts(one: jobs.Job) -> dict[str, Any]:
    """`jobs.Job` checks its values. An application can assign others to its attributes. What the message does not allow
    is left out here: the master ends a process that sends it."""
    return {
        "name": names.name(one.name) if isinstance(one.name, str) else type(one.name).__name__,
        "tenant": names.name(one.tenant) if isinstance(one.tenant, str) else None,
        "started": _real(one.started, messages.LATEST) or 0.0,
        "deadline": _real(one.deadline, messages.LONGEST),
        "fraction": _real(one.fraction, 1.0),
        "text": names.line(one.text) if isinstance(one.text, str) else "",
        "where": one.where if isinstance(one.where, str) and one.where in PLACES else "",
        "overdue": one.overdue is True,
    }


def _real(value: Any, most: float) -> float | None:
    """The value as a float, if it is a number from 0 to `most`."""
    return float(value) if type(value) in (float, int) and 0 <= value <= most else None


class JobReporter:
    """`say(kind, **fields)` speaks to the master, if `has_room()`. `has_master()` is whether there is one.
    `on_change()` is called in the loop after each change."""

    def __init__(
        self,
        loop: Any,
        board: Any,
        begun: Row,
        say: Callable[..., None],
        has_room: Callable[[], bool],
        has_master: Callable[[], bool],
        on_change: Callable[[], None],
    ) -> None:
        self._board = board
        self._begun = begun
        self._ledger = Ledger(say, has_room)
        self._has_master = has_master
        self._on_change = on_change
        self._alarm = Alarm(loop, REPORT, self.report)
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
