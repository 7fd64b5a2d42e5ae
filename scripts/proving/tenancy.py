"""Whose work was done when, and by which generation: what tenants were promised, judged when all is over.

Two witnesses, on one clock (CLOCK_MONOTONIC, which all processes of a machine share). The clients say when each answer
came and from which generation (`accounting.Served`). The application keeps a journal: a line when a request or job of a
tenant begins, a line when it ends. What a killed process did ends with the kill, without a line. Pure, as the account:

- *back*: a request sent after an answer of generation g was answered by one before g;
- *at once*: two generations worked for one tenant at the same time, which strict isolation forbids;
- *kept without a reason*: an older generation answered although no job of the tenant ran there;
- *vanished*: a job that neither ended nor was in a process that was killed on purpose;
- *lost in silence*: one that died with its process, and the server did not say so.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from proving.accounting import Served

# After a release, or the end of a job, workers may need so long to hear of it on a busy machine.
MOVES_WITHIN = 1.0

# A worker tells the master of jobs every 50 ms; of what began or ended just before the kill it may not have been told.
# Nor while the worker's loop stood still: such pages write down when they began and ended, as work of the kind "burn".
TOLD_WITHIN = 0.5
BURN = "burn"

LOST = re.compile(r"job 'invoices (\d+)' of \S+ is lost")


@dataclass(slots=True)
class Work:
    """A request or a job of a tenant, from beginning to end."""

    kind: str
    number: int
    tenant: str
    generation: int
    version: int
    pid: int
    begun: float
    ended: float = float("inf")
    killed: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of {self.tenant} in generation {self.generation}"


def read(lines: Iterable[str], kills: Mapping[int, float]) -> list[Work]:
    """The journal's work by when it began. `kills`: when which process was killed on purpose.

    A torn last line, of a process that died as it wrote, is passed over.
    """
    found: list[Work] = []
    running: dict[tuple[str, int, int], Work] = {}
    for line in lines:
        fields = line.split()
        if len(fields) != 8 or not line.endswith("\n"):
            continue
        event, kind, number, tenant, generation, version, pid, at = fields
        key = kind, int(number), int(pid)
        if event == "begins":
            running[key] = Work(kind, int(number), tenant, int(generation), int(version), int(pid), float(at))
            found.append(running[key])
        elif key in running:
            running.pop(key).ended = float(at)
    for work in found:
        if work.ended == float("inf") and work.pid in kills:
            work.ended, work.killed = max(work.begun, kills[work.pid]), True
    return sorted(found, key=lambda work: work.begun)


def went_back(answers: Iterable[Served]) -> list[str]:
    """The answers by a generation before one that the tenant had already had an answer from when it asked."""
    troubles = []
    ends: defaultdict[str, list[float]] = defaultdict(list)  # ascending, and beside them the highest so far
    highest: defaultdict[str, list[int]] = defaultdict(list)
    for one in sorted(answers, key=lambda answer: answer.ended):
        known = bisect_right(ends[one.tenant], one.at)
        before = highest[one.tenant][known - 1] if known else 0
        if one.generation < before:
            troubles.append(f"{one.tenant} went back: generation {one.generation} answered after {before} had")
        ends[one.tenant].append(one.ended)
        highest[one.tenant].append(max(one.generation, highest[one.tenant][-1] if highest[one.tenant] else 0))
    return troubles


def moves(answers: Iterable[Served]) -> int:
    """How often a tenant was first answered by a newer generation."""
    generations: defaultdict[str, set[int]] = defaultdict(set)
    for one in answers:
        generations[one.tenant].add(one.generation)
    return sum(len(each) - 1 for each in generations.values())


def done_twice(work: Iterable[Work]) -> list[str]:
    """The requests that reached the application more than once: each was sent once."""
    times = Counter((one.kind, one.number) for one in work)
    return [f"{kind} {number} was begun {n} times" for (kind, number), n in times.items() if n > 1]


def mixed(work: Iterable[Work]) -> list[str]:
    """The generations that worked with more than one version."""
    versions: defaultdict[int, set[int]] = defaultdict(set)
    for one in work:
        versions[one.generation].add(one.version)
    return [f"generation {g} was versions {sorted(which)}" for g, which in versions.items() if len(which) > 1]


def at_once(work: Iterable[Work]) -> list[str]:
    """The work that began for a tenant before another generation had ended its own for it."""
    troubles = []
    latest: dict[str, Work] = {}
    for one in sorted((w for w in work if w.kind != BURN), key=lambda work: work.begun):
        before = latest.get(one.tenant)
        if before is not None and one.begun < before.ended and one.generation != before.generation:
            troubles.append(f"{one} began while {before} ran")
        if before is None or one.ended > before.ended:
            latest[one.tenant] = one
    return troubles


def kept_without_reason(
    answers: Iterable[Served], work: Iterable[Work], served: Sequence[tuple[float, int]]
) -> list[str]:
    """The answers of a generation well after a newer one served, though none of the tenant's jobs ran there."""
    jobs: defaultdict[str, list[Work]] = defaultdict(list)
    for one in work:
        if one.kind == "job":
            jobs[one.tenant].append(one)
    troubles = []
    for answer in answers:
        since = answer.at - MOVES_WITHIN
        expected = max((generation for at, generation in served if at <= since), default=0)
        if answer.generation >= expected:
            continue
        if not any(
            job.generation == answer.generation and job.begun <= answer.ended and job.ended >= since
            for job in jobs[answer.tenant]
        ):
            text = f"{answer.tenant} was kept in generation {answer.generation} without a job, "
            troubles.append(f"{text}{MOVES_WITHIN:g} s and more after {expected} served")
    return troubles


def vanished(work: Iterable[Work]) -> list[str]:
    """The jobs that began, in processes that nobody killed, and never ended."""
    return [f"{one} never ended" for one in work if one.kind == "job" and one.ended == float("inf")]


def reported(log: Iterable[str]) -> set[int]:
    """The numbers of the jobs that the server's log says are lost."""
    return {int(found[1]) for line in log if (found := LOST.search(line))}


def lost_in_silence(work: Sequence[Work], told: set[int]) -> list[str]:
    """The jobs that died with a killed process, and of which the server said nothing."""
    lost = [one for one in work if one.kind == "job" and one.killed and one.number not in told]
    return [
        f"{one} was lost with process {one.pid}, and not reported"
        for one in lost
        if not _mute(work, one.pid, one.begun, one.ended)
    ]


def lost_by_mistake(work: Sequence[Work], told: set[int], kills: Mapping[int, float]) -> list[str]:
    """The jobs that were reported lost although they had ended, and their process had time to say so."""
    known = {one.number: one for one in work if one.kind == "job"}
    troubles = [f"job {number} was reported lost, and never began" for number in sorted(told - known.keys())]
    for number in sorted(told & known.keys()):
        one = known[number]
        if not one.killed and not (one.pid in kills and _mute(work, one.pid, one.ended, kills[one.pid])):
            troubles.append(f"{one} was reported lost, and had ended")
    return troubles


def _mute(work: Iterable[Work], pid: int, since: float, killed: float) -> bool:
    """Whether the process had no time to tell of something that happened then, before it was killed."""
    free = since
    for burn in sorted((w for w in work if w.kind == BURN and w.pid == pid), key=lambda work: work.begun):
        if burn.begun < free + TOLD_WITHIN:
            free = max(free, burn.ended)
    return killed < free + TOLD_WITHIN


def most_at_once(work: Iterable[Work]) -> int:
    """How many generations worked for one tenant at the same time, at most."""
    changes = sorted(
        change
        for one in work
        if one.kind != BURN
        for change in ((one.begun, 1, one.tenant, one.generation), (one.ended, 0, one.tenant, one.generation))
    )
    running: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    most = 0
    for _, begins, tenant, generation in changes:
        here = running[tenant]
        here[generation] += 1 if begins else -1
        if not here[generation]:
            del here[generation]
        most = max(most, len(here))
    return most
