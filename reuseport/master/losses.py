"""Jobs that ended with their process instead of by themselves: which they are, and what `status` shows for an hour.

A process tells of its jobs by message, and not at once. What it had begun in its last moments is known from memory that
it shares with the master (`ipc/begun.py`), and how many jobs it had in all from the scoreboard.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from reuseport.core.model import FIRST_JOB, Key
from reuseport.ipc.begun import Begun, Entry
from reuseport.ipc.messages import JobLost
from reuseport.ipc.scoreboard import JOBS, Scoreboard
from reuseport.master import status
from reuseport.master.history import rfc3339
from reuseport.master.processes import Process

KEPT = 100  # jobs
AT_DEATH = 10_000  # jobs of one worker that are counted: it can have written any number into the scoreboard
REMEMBERED = 1000  # jobs whose processes have come
SHOWN_FOR = 3600.0  # seconds
COMING = 10.0  # seconds for a job's process to say hello, when who asked for it is dead
WITHOUT_MASTER = "died while there was no master"
UNKNOWN = "(name not known)"

Job = dict[str, Any]  # as its process tells of it


def jobs_at_death(told: Collection[Job], entries: Collection[Entry], count: int) -> tuple[list[Job], list[Job]]:
    """The jobs that a worker had when it died, and those that it had told of and that had ended by then.

    `told` is what it has told of, `entries` what it has written down, `count` how many the scoreboard says. All that is
    written down was under way; so was what it has told of, as far as the count goes: its entries are others' by now,
    or it is of a version that writes nothing down. Of what remains of the count not even the names are known.
    """
    count = min(count, AT_DEATH)
    by_number = {job["number"]: job for job in told}
    lost = [by_number.pop(entry.number, None) or _job(entry) for entry in entries]
    others = sorted(by_number.values(), key=lambda job: float(job["started"]))
    more = max(0, count - len(lost))
    nameless = [_nameless() for _ in range(more - len(others))]
    return [*others[:more], *lost, *nameless], others[more:]


def _job(entry: Entry) -> Job:
    return {**_nameless(), **entry._asdict()}


def _nameless() -> Job:
    facts = {"number": 0, "name": UNKNOWN, "tenant": None, "started": time.time(), "asked": False}
    return {**facts, "deadline": None, "fraction": None, "text": "", "where": "", "overdue": False}


class Losses:
    """`log(level, text)`; `later(seconds, call)`; `lost(key, job)` and `ended(key, job)` are told of each job."""

    def __init__(
        self,
        log: Callable[[str, str], None],
        later: Callable[[float, Callable[[], None]], Any],
        lost: Callable[[Key, Job], None],
        ended: Callable[[Key, Job], None],
    ) -> None:
        self._log = log
        self._later = later
        self._lost = lost
        self._ended = ended
        self._count = 0
        self._resting = False
        self._jobs: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._asked: list[tuple[Process, str, Job]] = []  # jobs that are lost unless their processes come
        self._came: dict[tuple[int, float], None] = {}  # generation and beginning of those that have, oldest first
        self._never: dict[tuple[int, float], None] = {}  # likewise, of those that no process has begun

    def of(self, process: Process, how: str, board: Scoreboard, begun: Begun) -> None:
        """A process has ended. What it has told is known by now, and its row is still its own."""
        told = list(process.jobs.values())
        if process.row < 0:
            lost, ended = told, []
        else:
            row = begun.row(process.row)
            # A master of a version without this memory gives rows away without a word in it.
            entries = row.entries() if row.owner == process.key else []
            lost, ended = jobs_at_death(told, entries, board.row(process.row)[JOBS])
            begun.give(process.row, None)
        for job in ended:
            self._ended(process.key, job)
        self._note(process, how, lost)

    def of_the_dead(self, board: Scoreboard, begun: Begun, survivors: Collection[int]) -> None:
        """What those had who died while there was no master. `survivors` are the rows of the others."""
        for index in begun.owned():
            row = begun.row(index)
            owner = row.owner
            if owner is not None and index not in survivors:
                lost, _ = jobs_at_death((), row.entries(), board.row(index)[JOBS])
                begun.give(index, None)
                self._note(Process(owner, row=index), WITHOUT_MASTER, lost)

    def has_come(self, key: Key, job: Job) -> None:
        """A job's process has told of its job: whoever had asked for it, it is not lost with that one."""
        self._came[key.generation, float(job["started"])] = None
        if len(self._came) > REMEMBERED:
            del self._came[next(iter(self._came))]

    def never_begun(self, key: Key, told: JobLost) -> None:
        """A worker had asked for a process of the job's own, and none has begun it."""
        if (key.generation, told.started) in self._came:
            return  # that process has told of the job, so it is lost with it
        self._never[key.generation, told.started] = None
        if len(self._never) > REMEMBERED:
            del self._never[next(iter(self._never))]
        job = _nameless() | {"name": told.name, "tenant": told.tenant, "started": told.started, "where": "process"}
        process = Process(Key(key.generation, FIRST_JOB + told.pid) if told.pid else key, told.pid)
        self._log("error", self.add(process, told.why, job))

    def _note(self, process: Process, how: str, jobs: list[Job]) -> None:
        nameless = 0
        for job in jobs:
            if (process.key.generation, job["started"]) in self._never:
                continue  # who asked for it has told of that
            if not job.get("asked"):
                text = self.add(process, how, job)
                nameless += not job["number"]
                if job["number"]:
                    self._log("error", text)
            elif (process.key.generation, job["started"]) not in self._came:
                self._await(process, how, job)
        if nameless:
            many = f"{nameless} jobs that had just begun are" if nameless > 1 else "1 job that had just begun is"
            self._log("error", f"{many} lost, name not known: worker {process.key} {how}")

    def _await(self, process: Process, how: str, job: Job) -> None:
        asked = process, how, job
        self._asked.append(asked)

        def give_up() -> None:
            if asked not in self._asked:
                return
            if self._resting:
                self._later(COMING, give_up)
                return
            self._asked.remove(asked)
            if (process.key.generation, job["started"]) not in self._came:
                self._log("error", self.add(process, f"{how} while it asked for the job's process", job))

        self._later(COMING, give_up)

    def add(self, process: Process, how: str, job: Job) -> str:
        """Note a lost job; returns what is to be said of it."""
        self._count += 1
        self._lost(process.key, job)
        shown = status.job_of(process, job)
        late = shown["overdue"] or (shown["deadline"] is not None and shown["left"] <= 0)
        why = f" (its deadline was {shown['deadline']:g} s)" if late else ""
        facts = {name: shown[name] for name in ("name", "tenant", "age", "progress", "text", "where")}
        who = str(process.key)
        self._jobs.append({**facts, "at": time.time(), "worker": who, "pid": process.pid, "how": how + why})
        whose = f" of {job['tenant']}" if job["tenant"] else ""
        if job["where"] == "process":
            who = f"its process {process.pid}" if process.key.is_job else ""
        else:
            who = f"worker {who}"
        return f"job {job['name']!r}{whose} is lost, {shown['age']:.0f} s old: {f'{who} {how}'.strip()}{why}"

    def rest(self) -> None:
        """Give up none that is waited for: another master may have been given it, to whom its process comes."""
        self._resting = True

    def go_on(self) -> None:
        """After a rest."""
        self._resting = False

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec, or another one that takes over."""
        asked = [[process.key, process.pid, how, job] for process, how, job in self._asked]
        return {"count": self._count, "jobs": list(self._jobs), "asked": asked, "came": list(self._came)}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._count = left["count"]
        self._jobs.extend(left["jobs"])
        self._came |= {(generation, started): None for generation, started in left.get("came", ())}
        for key, pid, how, job in left.get("asked", ()):
            self._await(Process(Key(*key), pid), how, job)

    def shown(self) -> dict[str, Any]:
        """How many there have been since the master began, and those of the last hour, oldest first."""
        now = time.time()
        jobs = [{**job, "time": rfc3339(job["at"])} for job in self._jobs if now - job["at"] < SHOWN_FOR]
        return {"count": self._count, "jobs": jobs}
