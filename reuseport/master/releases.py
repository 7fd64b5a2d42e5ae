"""Releases as the master knows them: asking for one, going back to an earlier one, and what became of each.

Every door (a signal, the command line, a touched file) leads to `ask` or `back`. Both end in the core's one event;
what is refused here, for its configuration or for want of room, has changed nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from reuseport import options
from reuseport.core import events as ev
from reuseport.core import record
from reuseport.core.model import DRAINING, ENDING, Asker, Cluster, Generation, Key, Release
from reuseport.ipc.memory import resident
from reuseport.ipc.scoreboard import ERRORS, PSS, REQUESTS, RSS, Scoreboard
from reuseport.master import room
from reuseport.master.control import Client
from reuseport.master.history import History
from reuseport.master.processes import Process, Processes
from reuseport.master.recipe import (
    FROM_FILES,
    differs_on_disk,
    files_gone,
    for_history,
    from_history,
    release_of,
    resolve_script,
    rule_of,
    tenancy,
)
from reuseport.master.status import jobs_of, told
from reuseport.master.tally import Tally
from reuseport.master.tenants import ROOM
from reuseport.master.waits import Waits
from reuseport.options import OptionError, Settings


class Operator(NamedTuple):
    """Who asks, as in core.events.RollbackAsked. `facts` is what the history keeps of that."""

    by: str = ""
    session: str = ""
    seen_at: float | None = None
    facts: Mapping[str, Any] = MappingProxyType({})


UNKNOWN = Operator()
ENOUGH = 20  # answers without which a share of errors says nothing
SHOWN = 50  # ended releases that `status` shows
JOBS = 20  # jobs of each generation that the history keeps, the longest, of those before its drain and of those in it


class Releases:
    """`settings` are those of the newest release that was asked for."""

    def __init__(
        self,
        settings: Settings,
        extra: Mapping[str, Any],
        history: History,
        processes: Processes,
        board: Scoreboard,
        cluster: Callable[[], Cluster],
        tell: Callable[[ev.Event], None],
        log: Callable[[str, str], None],
        tally: Tally,
        waits: Waits,
    ) -> None:
        self.settings = settings
        self.asked = 0  # how many releases were asked for, refused ones included
        self._first = settings  # what only a start can change: name, addresses, places of files
        self._extra = extra
        self.history = history
        self._processes = processes
        self._board = board
        self._cluster = cluster
        self._tell = tell
        self._log = log
        self._tally = tally
        self.waits = waits
        self.check_logs: Callable[[Settings], None] = lambda settings: None  # OptionError where one cannot be opened
        self._begun: dict[int, Release] = {}
        self._jobs: dict[tuple[int, bool], list[dict[str, Any]]] = {}  # ended: by generation, whether in its drain
        self._before = (0, 0)  # answers and errors of the generation before the one that serves

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec."""
        return {
            "settings": self.settings.to_json(),
            "asked": self.asked,
            "begun": {number: asdict(release) for number, release in self._begun.items()},
            "jobs": self.ended_jobs(),
            "before": self._before,
            "waits": self.waits.estate(),
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        self.settings = Settings.from_json(left["settings"])
        self.asked = left["asked"]
        self._begun = {int(number): record.release_of(release) for number, release in left["begun"].items()}
        self.know_of(left["jobs"])
        self.waits.inherit(left.get("waits", {}))
        answers, errors = left["before"]
        self._before = answers, errors

    def first(self) -> Release:
        """The release that a start begins with. OptionError."""
        return complete(release_of(self.settings), self._extra)

    def ask(
        self,
        client: Client | None,
        wait: str = "ready",
        label: str = "",
        canary: Mapping[str, Any] | None = None,
        operator: Operator = UNKNOWN,
    ) -> None:
        """Read the configuration again, and release what it says now: to everybody, or to some as a `canary`."""
        self.asked += 1
        try:
            if canary is not None:
                self._check_canary(canary)
            settings = options.reload(self.settings)
            late = options.changed_at_start_only(self._first, settings)
            settings = settings.keeping(self._first, late)
            release = replace(complete(release_of(settings, label), self._extra), canary=canary)
            release = _asked_for_by(operator, release)
            self._check_room(settings)
            self.check_logs(settings)
        except OptionError as error:
            self._refuse(client, str(error), operator)
            return
        except OSError as error:
            self._refuse(client, f"{error.filename or 'the configuration'}: {error.strerror}", operator)
            return
        for text in options.ways_to_change(late):
            self._log("warning", text)
            if client:
                client.warn(text)
        self.settings = settings
        self._begin(client, wait, release)

    def back(
        self, client: Client, number: int | None, wait: str = "ready", operator: Operator = UNKNOWN, came_from: int = 0
    ) -> None:
        """Release an earlier version again: that of generation `number`, or the one before what serves; or end a
        release that boots. The core decides which (core/operators.py).

        It is never refused for want of room: who goes back has a reason.
        """
        self.asked += 1
        client.goes_back = True
        release, refusal = None, ""
        try:
            release = _asked_for_by(operator, self._earlier(number))
        except OptionError as error:
            refusal = str(error)
        serving = self._cluster().serving
        self._tell(
            ev.RollbackAsked(
                release,
                serving.number if serving else 0,
                self._asker(client, wait),
                refusal,
                number or 0,
                self._version_of(number),
                came_from,
                operator.by,
                operator.session,
                operator.seen_at,
                dict(operator.facts),
            )
        )

    def promote(self, client: Client, wait: str = "ready", operator: Operator = UNKNOWN, came_from: int = 0) -> None:
        """Release the canary to everybody."""
        by, session, seen_at, facts = operator
        self._tell(ev.PromoteAsked(self._asker(client, wait), by, session, came_from, seen_at, dict(facts)))

    def abort(self, client: Client, wait: str = "ready", operator: Operator = UNKNOWN) -> None:
        """End every release that has not begun to accept."""
        client.goes_back = True
        self._tell(ev.AbortAsked(self._asker(client, wait), operator.by, operator.session, operator.seen_at))

    def begin_for_another(self, release: Release, asker: Asker, objection: str, by: str) -> str:
        """Release what a master brings along that takes over from this one. Why not, or ""."""
        self.asked += 1
        try:
            if objection:
                raise OptionError(objection)
            self._check_room(self.settings)
        except OptionError as error:
            self._refuse(None, str(error), Operator(by))
            return str(error)
        self._tell(ev.ReleaseAsked(replace(release, by=by), asker))
        return ""

    def _begin(self, client: Client | None, wait: str, release: Release) -> None:
        self._tell(ev.ReleaseAsked(release, self._asker(client, wait)))

    def _asker(self, client: Client | None, wait: str) -> Asker | None:
        """Who is told the outcome, or the begin (`wait` is "none")."""
        if client:
            client.watching = wait != "none"
        return Asker(client.name, wait) if client else None

    def _refuse(self, client: Client | None, error: str, operator: Operator) -> None:
        self._log("error", f"the release was not begun, and nothing has changed: {error}")
        who = {"by": operator.by, "operator": dict(operator.facts)}
        self._add("release", number=None, outcome="failed", error=error, seconds=0.0, **who)
        if client:
            client.done(False, generation=None, error=error, output="")

    def _check_canary(self, canary: Mapping[str, Any]) -> None:
        if not self._first.tenant:
            raise OptionError("--canary goes by tenants, and this server knows none: --tenant says whose a request is")
        serving = self._cluster().serving
        if serving is None:
            raise OptionError("--canary tries out a release beside a generation that serves, and none does yet")
        if rule_of(serving.release) != tenancy(self._first):
            raise OptionError(
                f"--canary: generation {serving.number} serves with another --tenant or --tenant-isolation than a new "
                "generation gets. Release to everybody first"
            )
        if not canary.get("tenants") and not canary.get("percent"):
            raise OptionError("--canary: nobody would try it out")
        if (size := len(json.dumps(canary))) > ROOM:
            raise OptionError(
                f"--canary: the tenants' names take {size} bytes, and {ROOM} at most; 10%, say, takes few"
            )

    def _check_room(self, settings: Settings) -> None:
        cluster = self._cluster()
        living = [g for g in cluster.generations.values() if g.workers or g.company]
        needed = self._memory(cluster.serving) if settings.check_memory else 0
        words = [self._in_words(g) for g in living]
        if reason := room.refusal(words, settings.max_generations, needed, room.free_memory() if needed else None):
            raise OptionError(reason)
        # A channel and a pidfd for the zygote and each worker, the two ends of the hand-over queue, the boot log.
        if reason := room.descriptors(2 * (settings.workers + 1) + 3):
            raise OptionError(reason)

    def _memory(self, g: Generation | None) -> int:
        """Bytes that a generation uses: what its workers share counts once. A worker that says more than the kernel
        does is not believed, because it could keep releases from beginning."""
        sizes = []
        for process in self._workers(g) if g else ():
            row, most = self._board.row(process.row), _resident(process.pid)
            sizes.append((min(row[PSS], most), min(row[RSS], most)))
        return max([sum(pss for pss, _ in sizes), *(rss for _, rss in sizes)], default=0)

    def _in_words(self, g: Generation) -> str:
        jobs = [told(job) for key in g.workers if (p := self._processes.get(Key(g.number, key))) for job in jobs_of(p)]
        jobs += [f"companion {c.label!r}" for c in g.company.values()]
        waits = f" ({', '.join(jobs[:3])}{', ...' if len(jobs) > 3 else ''})" if jobs else ""
        return f"generation {g.number} is {g.state}, {room.mebibytes(self._memory(g))}{waits}"

    def _workers(self, g: Generation) -> list[Process]:
        processes = [self._processes.get(Key(g.number, number)) for number in g.workers]
        return [p for p in processes if p is not None and p.row >= 0]

    # --- back -------------------------------------------------------------------------------------------------------

    def _earlier(self, number: int | None) -> Release:
        """The release to go back to. OptionError where there is none, or its files have gone."""
        cluster = self._cluster()
        now = cluster.serving
        if now is None:
            raise OptionError("nothing serves yet: there is nothing to go back from")
        served = self.history.served()
        if number is None and cluster.canary is not None:
            number = now.number  # the canary's tenants go forward, to a new generation of what serves the others
        elif number is None:
            older = [n for n, line in served.items() if (line["source"] or n) < now.origin]
            if not older:
                raise OptionError(f"there is no version before that of generation {now.origin}, which serves")
            number = max(older, key=lambda n: (served[n]["source"] or n, n))
        elif number not in served and (number not in cluster.generations or number > now.number):
            known = ", ".join(map(str, sorted(served)[-10:]))
            raise OptionError(f"generation {number} has never served here; these have: {known}")
        living = cluster.generations.get(number)
        release = self._keeping(living.release if living else _told(served[number]), now)
        source = release.source or number
        if source == now.origin and cluster.canary is None:
            raise OptionError(f"the version of generation {number} is what serves now, as generation {now.number}")
        if why := files_gone(release, number):
            raise OptionError(why)
        zygotes = [g for g in cluster.generations.values() if g.origin == source and g.zygote]
        afresh = any(rule_of(g.release) != rule_of(release) for g in zygotes)
        if living is None and zygotes:  # its workers are forked with the values that it has been loaded with
            values = zygotes[0].release.recipe.get(FROM_FILES, {})
            release = replace(release, recipe={**release.recipe, FROM_FILES: values})
        elif living is None:
            release = replace(release, recipe=from_history(release.recipe))
        release = replace(release, source=source, probation=0.0, canary=None, standby=self.settings.standby)
        return replace(release, afresh=afresh)

    def _keeping(self, release: Release, now: Generation) -> Release:
        """An earlier version, with what only a start of the master can change as it is now: an earlier master may have
        known no tenants, say, and workers that do not know them either would break what is promised to them."""
        settings = Settings.from_json(release.recipe["settings"])
        late = options.changed_at_start_only(self._first, settings)
        kept = settings.keeping(self._first, late).to_json()
        return replace(release, recipe={**release.recipe, "settings": kept, "ids": now.release.recipe["ids"]})

    def _version_of(self, number: int | None) -> int:
        """The generation that first brought the version of generation `number`; 0 where that is not known."""
        living = self._cluster().generations.get(number or 0)
        if living is not None:
            return living.origin
        line = self.history.served().get(number or 0)
        return int(line["source"] or line["number"]) if line else 0

    def differs_on_disk(self) -> str:
        """A warning where the next release would load another version than the one that serves, or is being brought
        back; see recipe.differs_on_disk."""
        cluster = self._cluster()
        g, change, ended, left = cluster.serving, cluster.change, cluster.ended, None
        if (booting := cluster.booting) is not None and booting.release.source:
            g, left = booting, g
        elif g is not None and ended is not None and ended.what and ended.at > g.since:
            left = cluster.generations.get(ended.number)
        elif g is not None and change is not None and g.release.source:
            left = cluster.generations.get(change.came_from)
        return differs_on_disk(self.settings, g.release, left and left.release) if g else ""

    # --- what became of them ----------------------------------------------------------------------------------------

    def begins(self, generation: int, release: Release) -> None:
        """The generation that this release became."""
        self._begun[generation] = release

    def record(self, command: ev.Record) -> None:
        """A release has ended, or a generation is taken back."""
        if command.outcome == "taken back":
            self._add("taken back", number=command.generation, error=command.text)
            return
        living = self._cluster().generations.get(command.generation)
        # What lives knows best: its script may have said how many workers, and an earlier master may have begun it.
        release = living.release if living else self._begun.get(command.generation, Release())
        if command.outcome != "canary":
            self._begun.pop(command.generation, None)
        serves = command.outcome == "serving"
        if serves:
            older = [g for n, g in self._cluster().generations.items() if n < command.generation and g.workers]
            self._before = self._answers(older[-1]) if older else (0, 0)
            if release.source and (differs := self.differs_on_disk()):
                self._log("warning", differs)
        self._add(
            "release",
            number=command.generation or None,
            outcome=command.outcome,
            error="" if serves or command.outcome == "canary" else command.text,
            seconds=round(command.seconds, 3),
            source=release.source,
            label=release.recipe.get("label", ""),
            directory=release.recipe.get("directory", ""),
            by=release.by,
            operator=dict(release.operator),
            **({"release": asdict(replace(release, recipe=for_history(release.recipe)))} if serves else {}),
        )

    def drained(self, command: ev.Drained) -> None:
        """The last worker of an old generation has left. An adopted zygote that stands by says so once more."""
        if any(line["event"] == "drained" and line["number"] == command.generation for line in self.history.lines):
            return
        self._add(
            "drained",
            number=command.generation,
            seconds=round(command.seconds, 3),
            jobs=_longest(self._jobs.pop((command.generation, True), [])),
            jobs_before=_longest(self._jobs.pop((command.generation, False), [])),
            **self.waits.ended(command.generation, command.seconds),
        )
        living = self._cluster().generations
        self.waits.forget_all_but(living)
        self._jobs = {key: jobs for key, jobs in self._jobs.items() if key[0] in living}

    def job_ended(self, key: Key, job: Mapping[str, Any], lost: bool = False) -> None:
        """A worker's job is over. Those of a draining generation are what it waited for."""
        g = self._cluster().generations.get(key.generation)
        now = time.time()
        facts = {"name": job["name"], "tenant": job["tenant"], "seconds": round(now - job["started"], 3)}
        jobs = self._jobs.setdefault((key.generation, g is None or g.state in (DRAINING, ENDING)), [])
        jobs.append({**facts, "at": round(now, 3), "lost": lost})
        if len(jobs) > 2 * JOBS:
            jobs[:] = _longest(jobs)

    def ended_jobs(self) -> list[Any]:
        """Those that the history is still to tell of, for the next master."""
        return [[*of, jobs] for of, jobs in self._jobs.items()]

    def know_of(self, ended_jobs: Iterable[Any]) -> None:
        self._jobs = {(number, draining): jobs for number, draining, jobs in ended_jobs}

    def note(self, event: str, **fields: Any) -> None:
        """The master itself has "started" or "stopped"."""
        self._add(event, number=None, **fields)

    def shown(self) -> list[dict[str, Any]]:
        """The ended releases, for `status`."""
        return [line for line in self.history.shown() if line["event"] == "release"][-SHOWN:]

    def _add(self, event: str, **fields: Any) -> None:
        if event != "drained":
            self._tally.release_ends(fields.get("outcome", event), fields.get("seconds", 0.0))
        try:
            self.history.add({"event": event, "at": time.time(), **fields})
        except OSError as error:
            self._log("error", f"the history could not be written to {self.history.path}: {error.strerror}")

    # --- probation --------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Compare the generation on probation with its predecessor."""
        g = self._cluster().serving
        if g is None or not g.on_probation(time.monotonic()) or g.verdict:
            return
        if verdict := compare(self._before, self._answers(g), self.settings.max_error_rate):
            self._tell(ev.Judged(g.number, verdict))

    def _answers(self, g: Generation) -> tuple[int, int]:
        rows = [self._board.row(process.row) for process in self._workers(g)]
        return sum(row[REQUESTS] for row in rows), sum(row[ERRORS] for row in rows)


def _asked_for_by(operator: Operator, release: Release) -> Release:
    return replace(release, by=operator.by, session=operator.session, operator=dict(operator.facts))


def _resident(pid: int) -> int:
    try:
        return resident(pid)
    except OSError:
        return 0  # it has ended


def _longest(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(jobs, key=lambda one: -one["seconds"])[:JOBS]


def recorded(line: Mapping[str, Any]) -> Release:
    """The release of a line of the history, with the values that --env-file has now. OptionError."""
    release = _told(line)
    return replace(release, recipe=from_history(release.recipe))


def _told(line: Mapping[str, Any]) -> Release:
    """As the line has it, which a master of another version may have written, and so without values of files.
    OptionError."""
    try:
        release = record.release_of(line["release"])
        missing = {"settings", "directory", "interpreter", "label"} - release.recipe.keys()
        why = f"no {', '.join(sorted(missing))}" if missing else ""
        if not missing:
            Settings.from_json(release.recipe["settings"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    if why:
        raise OptionError(f"the history does not tell what generation {line['number']} was: {why}")
    return release


def compare(before: tuple[int, int], after: tuple[int, int], allowed: float) -> str:
    """Whether errors have become more: "", or how many there are. Each pair is answers, and errors among them."""
    answers, errors = after
    if answers < ENOUGH:
        return ""
    share, usual = errors / answers, before[1] / before[0] if before[0] else 0.0
    if share <= usual + allowed:
        return ""
    return f"{share:.1%} of its {answers} answers are errors, and {usual:.1%} of its predecessor's were"


def complete(release: Release, extra: Mapping[str, Any]) -> Release:
    """With what an embedding adds to every recipe."""
    return replace(release, recipe={**release.recipe, **resolve_script(extra)})
