"""What the cluster is: generations, their processes, and the words for their states.

A generation moves through eight states, and only along these lines (`TRANSITIONS` is the same as data):

      loading ──loaded──> warming ──all ready──> opening ──all accepting──> serving ──succeeded──> draining
         │                   │                    │   │                       │ stopped            │      │
         └──────failed───────┴───────failed───────┘   │ trial                 └──────> draining    │      │ drained
                       │                              └──────> canary ──promoted──> opening        │      └──> standby
                       │                                                                   hurried │              │
                       └──────────────────────────────> ending <───────────────────────────────────┴───expired────┘

- *loading*: its zygote imports the application.
- *warming*: its workers are forked and start up; none of them accepts.
- *opening*: all were ready and have been told to accept; the old generation still accepts too.
- *serving*: it accepts. At most one generation serves.
- *canary*: on trial: it owns no slot and serves those whom the one that serves passes on to it. At most one.
- *draining*: it accepts nothing new and leaves when its work is done. Any number may drain.
- *standby*: its workers have left, and its zygote is kept for a while, so that a rollback need not load anything.
- *ending*: it is being ended whatever it does: a failed or replaced boot, or a quick stop.

A generation disappears when its last process has. Nothing here does I/O or reads a clock: times are seconds of a
monotonic clock that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any, NamedTuple

from reuseport.core.immutable import immutable

ZYGOTE = 0
# Numbers from here on are those of jobs' processes: this and the pid. No worker ever gets so far, and nobody has to
# count them, so a zygote that starts again, or a master that comes later, gives none out twice.
FIRST_JOB = 1 << 32
# And from here on those of companions, in the order in which they were declared.
FIRST_COMPANION = 1 << 33


class Key(NamedTuple):
    """Names a process: worker 2 of generation 7 is (7, 2), shown as 7.2. Number 0 is the generation's zygote.

    The process of a job whose pid is 4711 is (7, FIRST_JOB + 4711), shown as 7.j4711; the first companion's is
    (7, FIRST_COMPANION), shown as 7.c0.
    """

    generation: int
    number: int

    @property
    def is_job(self) -> bool:
        return FIRST_JOB <= self.number < FIRST_COMPANION

    @property
    def is_companion(self) -> bool:
        return self.number >= FIRST_COMPANION

    def __str__(self) -> str:
        if self.is_companion:
            return f"{self.generation}.c{self.number - FIRST_COMPANION}"
        return f"{self.generation}.{f'j{self.number - FIRST_JOB}' if self.is_job else self.number}"


# States of a generation.
LOADING = "loading"
WARMING = "warming"
OPENING = "opening"
SERVING = "serving"
CANARY = "canary"
DRAINING = "draining"
STANDBY = "standby"
ENDING = "ending"

TRANSITIONS: Mapping[str, Mapping[str, str]] = {
    LOADING: {"loaded": WARMING, "failed": ENDING},
    WARMING: {"all ready": OPENING, "failed": ENDING},
    OPENING: {"all accepting": SERVING, "trial": CANARY, "stopped": DRAINING, "failed": ENDING},
    SERVING: {"succeeded": DRAINING, "stopped": DRAINING, "hurried": ENDING},
    CANARY: {"promoted": OPENING, "succeeded": DRAINING, "stopped": DRAINING, "hurried": ENDING},
    DRAINING: {"drained": STANDBY, "hurried": ENDING},
    STANDBY: {"expired": ENDING},
    ENDING: {},
}

# The set of states in which a generation is on its way to serving.
BOOTING = frozenset({LOADING, WARMING, OPENING})
# Those in which it is kept at full strength.
STAFFED = frozenset({SERVING, CANARY})

# States of a worker.
FORKING = "forking"  # the zygote was asked for it
STARTING = "starting"  # it runs, and is not ready yet
READY = "ready"
TOLD = "told"  # it has been told to accept
ACCEPTING = "accepting"
ATTENDING = "attending"  # accepts nothing new, but serves whoever is kept in its draining generation
WORKING = "working"  # a job's process: it accepts nothing, and leaves when its job has ended
LEAVING = "draining"  # it has had its SIGTERM
QUITTING = "quitting"  # it has been told to end at once

NOWHERE = -1  # the place of a job's process: it owns no slot, and nobody replaces it

YOUNG = frozenset({FORKING, STARTING, READY, TOLD})
LIVELY = YOUNG | {ACCEPTING}

# States of a companion.
WAITING = "waiting"  # it has no process, and gets one when it may run
LAUNCHED = "launched"  # a process was asked for
YOUTH = "beginning"  # it runs, and is not ready yet
RUNNING = "running"  # it is ready
STOPPING = "stopping"  # it has had its one stop signal
KILLED = "killed"  # it has had its SIGKILL
ENDED = "ended"  # it has no process, and gets none any more

ALIVE = frozenset({LAUNCHED, YOUTH, RUNNING, STOPPING, KILLED})

# How a companion shows that it is ready.
TIMER = "timer"  # not at all: it counts as ready when it has run for `ready_after`
NOTIFY = "notify"  # it sends READY=1 (sd_notify(3))
COMMAND = "command"  # `ready_command` exits with status 0
LINE = "line"  # it prints a line in which `ready_line` is found

# How a release ended that did not fail by itself.
SUPERSEDED = "superseded"
ABORTED = "aborted"

# How a generation came to serve.
RELEASE = "release"
ROLLBACK = "rollback"
PROMOTION = "promotion"
ABORT = "abort"  # not how one came to serve: what ended a boot


@immutable
class Terms:
    """On what terms a companion keeps a generation company: what is decided by of all that was declared.

    `restart`: after which ends it is started again, "always", "on-failure" or "never". `exclusive`: never beside
    another of the same name. `stop_timeout`: seconds from the stop signal to SIGKILL, 0 for no limit. `ready`: how it
    shows that it is ready, `TIMER` or another; `ready_after`: seconds that it must have run before it counts as ready,
    whatever it shows; `ready_timeout`: seconds from its start within which it must be ready (not for `TIMER`).
    """

    name: str
    processes: int = 1
    exclusive: bool = False
    restart: str = "always"
    stop_timeout: float = 0.0
    ready_after: float = 1.0
    ready: str = TIMER
    ready_timeout: float = 90.0


@immutable
class Companion:
    """A command that belongs to a generation, or one of several processes of it. `copy` counts these from 1."""

    terms: Terms
    copy: int = 1
    state: str = WAITING
    pid: int = 0
    since: float = 0.0  # when its process was started, or was told to stop
    start_after: float = 0.0  # not before this time is it started
    kill_at: float | None = None  # when SIGKILL follows
    losses: int = 0  # ends in a row, each of a process that had not been ready for long
    restarts: int = 0
    why: str = ""  # why it waits, how it ended, or why it is not ready yet
    said: float | None = None  # when its process showed that it is ready
    ready_by: float | None = None  # when its process must be ready; None when that is settled, and for a timer
    late: bool = False  # its process was not ready by then
    unsure: bool = False  # its process may have shown that it is ready while no master looked
    failed: bool = False  # it has ended for good, and not well
    status: str = ""  # what its process says of itself (STATUS=, sd_notify(3))

    @property
    def label(self) -> str:
        """Its name, and which of several it is. No name has a colon in it."""
        return self.terms.name if self.terms.processes == 1 else f"{self.terms.name}:{self.copy}"


@immutable
class Release:
    """A version that somebody asked for. `recipe` is opaque here: whatever the zygote needs in order to load it.

    `boot_timeout` is in seconds and covers everything from the zygote's exec to the last worker's readiness. `standby`
    is for how many seconds after its success its predecessor's zygote is kept, `probation` for how many it is watched
    itself. `source`: the generation whose version a rollback brings back; 0 for what is on disk. `canary`: opaque here;
    who is to be served by it while it is on trial; None if it is to serve everybody. `by` says in words who asked for
    it, and `session` names that operator's login session; both are "" where the master does not know.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    boot_timeout: float = 120.0
    kill_blocked: bool = False
    standby: float = 0.0
    probation: float = 0.0
    source: int = 0
    canary: Mapping[str, Any] | None = None
    companions: tuple[Terms, ...] = ()
    by: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        # What a roster or a history tells of is JSON.
        terms = tuple(one if isinstance(one, Terms) else Terms(**one) for one in self.companions)
        object.__setattr__(self, "companions", terms)

    def seats(self) -> dict[int, Companion]:
        """The companions of a generation that begins, by number: none of them has been started."""
        each = (Companion(terms, copy) for terms in self.companions for copy in range(1, terms.processes + 1))
        return {FIRST_COMPANION + index: companion for index, companion in enumerate(each)}


@immutable
class Asker:
    """A client that waits for an outcome. `wait` is "ready", "drained" or "none" (it is answered at the begin)."""

    name: str
    wait: str = "ready"


@immutable
class Change:
    """How the generation that serves came to serve: `what` is RELEASE, ROLLBACK or PROMOTION.

    `came_from` served before (0 for none), `number` serves now with the version of generation `source`, since `at`.
    `by` and `session` are those of the release.
    """

    what: str
    came_from: int
    number: int
    source: int
    by: str = ""
    session: str = ""
    at: float = 0.0


@immutable
class Ended:
    """The last boot that ended without serving: that of generation `number`, from `born` to `at`. It failed by itself,
    or `what` ended it: a ROLLBACK or an ABORT of the operator of `by` and `session`."""

    number: int
    born: float
    at: float
    what: str = ""
    by: str = ""
    session: str = ""


@immutable
class Worker:
    """A worker as the master knows it. `place` (0, 1, …) decides which slots it owns; a replacement gets the same."""

    place: int
    state: str = FORKING
    pid: int = 0
    since: float = 0.0  # when it entered its state
    kill_at: float | None = None  # when SIGKILL follows
    retiring: str = ""  # why it is to be replaced: its successor accepts first, then it drains
    blocked: bool = False
    let_go: bool = False  # it has closed the slots

    @property
    def is_job(self) -> bool:
        return self.place == NOWHERE


@immutable
class Zygote:
    pid: int = 0
    loaded: bool = False
    since: float = 0.0  # when it had loaded
    leaving: bool = False
    kill_at: float | None = None


@immutable
class Generation:
    number: int
    release: Release
    wanted: int
    state: str = LOADING
    since: float = 0.0
    born: float = 0.0
    deadline: float | None = None  # for the boot, or for a zygote that is loading a second time
    all_ready: bool = False  # while it warms: every worker that is wanted could accept
    zygote: Zygote | None = None
    zygote_after: float = 0.0  # not before this time is a lost zygote replaced
    zygote_losses: int = 0
    workers: Mapping[int, Worker] = field(default_factory=dict)
    companions: Mapping[int, Companion] = field(default_factory=dict)
    forked: int = 0  # the highest worker number given out
    deaths: int = 0  # workers in a row that died young
    fork_after: float = 0.0  # not before this time is another one forked
    askers: tuple[Asker, ...] = ()
    failure: str = ""
    ended_as: str = ""  # SUPERSEDED or ABORTED, if it did not fail by itself; `failure` then says by what
    aborters: tuple[Asker, ...] = ()  # wait until nothing of this aborted boot is left
    reported: bool = False  # its failure, or its verdict, has been recorded, and told to its askers
    success: str = ""  # what its askers will be told
    donor: int = 0  # the generation whose zygote its own is a copy of, until that has begun
    crashes: int = 0  # workers and companions that crashed while it was on probation
    verdict: str = ""  # why it is to be taken back, or was
    promote_by: float | None = None  # a canary is being promoted: by then its companions have to have begun
    pinned: bool = False  # somebody is kept here: while it drains, some of its workers attend
    trial: Mapping[str, Any] | None = None  # its canary, while it is promoted and nobody has said that it accepts
    promoted: bool = False  # it was a canary before

    @property
    def origin(self) -> int:
        """The generation that first brought this version."""
        return self.release.source or self.number

    def on_probation(self, now: float) -> bool:
        return self.state == SERVING and now < self.since + self.release.probation

    @property
    def on_record(self) -> Generation:
        """As the next master should take it for, if this one dies now.

        A canary that is being promoted is one until a worker has said that it accepts: those who were told to may never
        have heard it, and the tenants who have moved to it must not go back.
        """
        release = replace(self.release, workers=self.wanted, canary=self.release.canary or self.trial)
        told = self.having(TOLD) if self.trial else {}
        workers = {n: replace(w, state=ACCEPTING) if n in told else w for n, w in self.workers.items()}
        return replace(self, release=release, workers=workers)

    def having(self, *states: str) -> dict[int, Worker]:
        """The workers in one of these states, by number."""
        return {number: worker for number, worker in self.workers.items() if worker.state in states}

    @property
    def company(self) -> dict[int, Companion]:
        """The companions that have a process, by number."""
        return {number: c for number, c in self.companions.items() if c.state in ALIVE}

    @property
    def empty(self) -> bool:
        return self.zygote is None and not self.workers and not self.company

    def place_taken(self, place: int) -> bool:
        """Whether a worker stands, or is on its way, at this place and is not about to be replaced."""
        return any(w.place == place and w.state in LIVELY and not w.retiring for w in self.workers.values())

    def with_companion(self, number: int, companion: Companion) -> Generation:
        return replace(self, companions={**self.companions, number: companion})

    def with_worker(self, number: int, worker: Worker | None) -> Generation:
        workers = dict(self.workers)
        if worker is None:
            workers.pop(number, None)
        else:
            workers[number] = worker
        return replace(self, workers=workers)


@immutable
class Cluster:
    """The whole state. `stopping` is "", "graceful" or "quick".

    `stop_at` is when a stop that has been announced begins: until then everything goes on, but for new releases.
    """

    generations: Mapping[int, Generation] = field(default_factory=dict)
    last: int = 0  # the highest generation number given out: they only go forward
    slots: int = 0  # slots per address; they only become more
    replaced: int = 0  # boots in a row that a newer release replaced
    pending: Release | None = None
    pending_askers: tuple[Asker, ...] = ()
    drain_askers: tuple[tuple[Asker, int], ...] = ()
    stopping: str = ""
    stop_at: float | None = None
    stop_by: float | None = None
    served: bool = False  # whether any generation has ever served
    change: Change | None = None  # how the generation that serves came to serve, as far as this master knows
    ended: Ended | None = None
    finished: bool = False

    @property
    def leaving(self) -> bool:
        """Whether a stop has begun, or has been announced."""
        return bool(self.stopping) or self.stop_at is not None

    @property
    def serving(self) -> Generation | None:
        return next((g for g in self.generations.values() if g.state == SERVING), None)

    @property
    def canary(self) -> Generation | None:
        return next((g for g in self.generations.values() if g.state == CANARY), None)

    @property
    def booting(self) -> Generation | None:
        return next((g for g in self.generations.values() if g.state in BOOTING), None)

    def having(self, *states: str) -> list[Generation]:
        """The generations in one of these states, oldest first."""
        return [self.generations[n] for n in sorted(self.generations) if self.generations[n].state in states]


def slots_of(place: int, workers: int, slots: int) -> tuple[int, ...]:
    """The slots that the worker at `place` owns among `workers` places: every slot has an owner, spare ones too."""
    return tuple(slot for slot in range(slots) if slot % workers == place)
