"""Tenants, as the master knows them: what routers are told, who is kept where, and the command line's questions.

The master routes nothing. It publishes a table (to the workers' channels, with the queues of all other generations;
its version in the marks' header), and tells the core in which draining generations somebody is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from reuseport import names
from reuseport.core import events as ev
from reuseport.core.model import CANARY, DRAINING, OPENING, SERVING, ZYGOTE, Cluster, Generation, Key
from reuseport.core.routing import HELD, JOBS, RUNNING, Canary, Table, route
from reuseport.ipc import files, marks
from reuseport.ipc.channel import PACKET
from reuseport.ipc.marks import VERSION
from reuseport.ipc.pins import number_of
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.shared import SharedFile
from reuseport.master import reserve
from reuseport.master.processes import Processes
from reuseport.master.recipe import rule_of, tenancy
from reuseport.master.seen import SeenTenants
from reuseport.master.switchboard import Switchboard
from reuseport.options import Settings

HOLDS = "holds.json"  # in the state directory
SHOWN = 20  # tenants that `status` names for each generation
STAYS = 10_000  # tenants whose stay is shown
ROOM = (PACKET - 8192) // 2  # bytes of those who are held, and of a canary's tenants: a table must fit into a message
AHEAD = 366 * 86400 * 1_000_000  # microseconds by which an earlier master's clock can have been ahead
REJOINING = 5.0  # seconds for an earlier master's workers to tell this one of their jobs


class Tenants:
    """`adopting`: an earlier master's marks and holds count on. `tell(event)` and `share(files)` are set by the master.

    Generations can have different rules (--tenant, --tenant-isolation): a takeover and an upgrade change them. The rule
    that counts is that of the generation that serves. Only generations of that rule route, and only in these a tenant
    is kept. The others finish their requests and jobs as they do without --tenant.

    `on`: there are the files that a rule needs, since a generation with one lives, or has lived. Else every method does
    nothing.
    """

    def __init__(
        self,
        settings: Settings,
        run_dir: RunDir,
        adopting: bool,
        processes: Processes,
        switchboard: Switchboard,
        log: Callable[[str, str], None],
    ) -> None:
        self.on = False
        self._trouble = ""  # why the files cannot be made, as far as the log has it
        self.files: list[SharedFile] = []
        self._to_wipe = not adopting
        self.tell: Callable[[ev.Event], None] = lambda event: None
        self.share: Callable[[list[SharedFile]], None] = lambda files: None
        self.log = log
        self._run_dir = run_dir
        self._holds_path = os.path.join(settings.state_dir, HOLDS)
        self._processes = processes
        self._switchboard = switchboard
        self._table = Table()
        self._rule = tenancy(settings)
        self._rules: dict[int, tuple[str, str]] = {}  # by generation
        self._follows = False  # a generation has been seen, whose rule counts
        self._workers = 1
        self._alone = True  # at most one generation takes requests
        self._queues: frozenset[int] = frozenset()  # generations whose ways everybody has been told
        self._holds: dict[str, int] = {}
        self.seen = SeenTenants(more=adopting)
        self._stays: dict[str, tuple[int, float]] = {}  # tenant -> generation, until when (CLOCK_MONOTONIC)
        self._pinned: frozenset[int] = frozenset()
        self._quiet_until = time.monotonic() + REJOINING if adopting else 0.0
        if os.path.exists(run_dir.marks) if adopting else settings.tenant:
            self._open()
            if not adopting:
                self._marks.publish(0, 0)
                self._wipe()

    def _open(self) -> None:
        """Have the files. OSError."""
        # An earlier master's workers have the very same files open, so they are never made anew beside them.
        self._marks = marks.Table(self._run_dir.marks)
        self.files = [SharedFile(self._run_dir.pins, 0, create=True), self._marks.file]
        # An earlier master's clock may have been ahead of this one's, but a worker can have written any number there.
        self._version = time.time_ns() // 1000
        if (known := self._marks.words[VERSION]) < self._version + AHEAD:
            self._version = max(self._version, known)
        self._holds = self._read_holds()
        self._switchboard.on_hello = self._welcome
        self._switchboard.on_stay = self._note_stay
        self._switchboard.on_seen = self.seen.told
        self._switchboard.on_tenant = lambda tenant: self.seen.note((tenant,))
        self.on = True

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; the rest is in files, or is told to everybody again."""
        return {"stays": self._stays, "seen": self.seen.estate()}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._stays = {tenant: (generation, until) for tenant, (generation, until) in left["stays"].items()}
        self.seen.inherit(left.get("seen", {}))
        self._quiet_until = 0.0  # everybody's jobs are known

    # --- what routers are told --------------------------------------------------------------------------------------

    def publish(self, cluster: Cluster, settings: Settings) -> None:
        """Tell every worker of the table, if it has changed. Before anybody of a new generation accepts."""
        everybody = cluster.having(OPENING, SERVING, CANARY, DRAINING)
        self._follow_rule(cluster, everybody)
        if not self.on:
            if not any(tenant for tenant, _ in self._rules.values()):
                return
            try:
                self._open()
            except OSError as error:  # the zygote finds no files either, so the release fails
                text = f"--tenant: the files that it needs cannot be made: {error.strerror}"
                if text != self._trouble:
                    self._trouble = text
                    self.log("error", text)
                return
            self._trouble = ""
            self.share(self.files)
        living = [g for g in everybody if self._keeps(g)]
        taking = [g for g in living if g.state != DRAINING and not g.release.canary]
        serving = taking[-1].number if taking else self._table.serving
        untied_at = {g.number: g.since + settings.pin_max for g in living if g.state == DRAINING and settings.pin_max}
        table = Table(
            self._table.version,
            serving,
            tuple(g.number for g in living),
            dict(self._holds),
            _canary_of(cluster.canary),
            untied_at,
            settings.strict_wait,
        )
        queues, alone = self._switchboard.queues, len(everybody) < 2
        if alone and not self._alone and not table.active:
            self._to_wipe = True
        self._alone = alone
        if table == self._table and queues <= self._queues:
            return
        self._queues = queues  # an earlier master's generations bring theirs one by one
        self._version += 1
        self._table = replace(table, version=self._version)
        self._workers = taking[-1].wanted if taking else 1
        for process in self._processes.all():
            if process.key.number != ZYGOTE:
                self._welcome(process.key)
        oldest = min(table.living, default=0)
        self._marks.publish(self._version if table.active else 0, oldest)
        # The marks of another rule count again if the release that changes it fails.
        self._to_wipe = not table.active and alone
        self._wipe()

    def _rules_of(self, cluster: Cluster) -> dict[int, tuple[str, str]]:
        """The rule of each generation."""
        if self._rules.keys() != cluster.generations.keys():
            known = self._rules
            self._rules = {n: known.get(n) or rule_of(g.release) for n, g in cluster.generations.items()}
        return self._rules

    def _follow_rule(self, cluster: Cluster, living: list[Generation]) -> None:
        """That of the generation that serves counts; where none does, that of the newest one."""
        rules = self._rules_of(cluster)
        if not living:
            return
        was, self._rule = self._rule, rules[(cluster.serving or living[-1]).number]
        first, self._follows = not self._follows, True
        if self._rule == was:
            return
        now, before = (" ".join(rule) if rule[0] else "none" for rule in (self._rule, was))
        if first:
            text = f"generation {living[-1].number} goes by --tenant {now}; the next release brings --tenant {before}"
        else:
            text = f"--tenant {now} counts now, not {before}: generations with another rule keep no tenant"
        self.log("warning", text)

    def _keeps(self, g: Generation) -> bool:
        """Whether the generation has the rule that counts, if there is one."""
        return bool(self._rule[0]) and self._rules.get(g.number) == self._rule

    def _wipe(self) -> None:
        """If a worker is writing just now the marks are wiped at the next look: until then they say what they said."""
        if self._to_wipe:
            self._to_wipe = not self._marks.wipe()

    def _welcome(self, key: Key) -> None:
        table = self._table
        if table.version and self._rules.get(key.generation, self._rule)[0]:
            self._switchboard.send_routes(key, table.to_json(), table.living, self._workers)

    # --- what the core is told --------------------------------------------------------------------------------------

    def look(self, cluster: Cluster) -> None:
        """Tell the core in which generations somebody is kept."""
        if self.on:
            self._wipe()
        if not self.on or cluster.stopping or not cluster.generations:  # nothing is known of an earlier master's yet
            return
        self._rules_of(cluster)
        keeping = {number for number, g in cluster.generations.items() if self._keeps(g)}
        left = range(cluster.last + 1)  # an adopting master has not counted so far yet
        if gone := {t: g for t, g in self._holds.items() if g in left and g not in keeping}:
            for tenant, g in gone.items():
                del self._holds[tenant]
                why = "has another rule for tenants (--tenant)" if g in cluster.generations else "has gone"
                self.log("warning", f"tenant {tenant!r} was held in generation {g}, which {why}")
            self._write_holds()
        pinned = frozenset(self._holds.values()) | {g for g, _, _ in self._jobs()}
        pinned |= {p.key.generation for p in self._processes.all() if p.has_more_jobs and p.jobs}
        if time.monotonic() < self._quiet_until:
            pinned |= {g.number for g in cluster.generations.values() if g.pinned}
        for number, g in cluster.generations.items():
            if g.pinned != (number in pinned & keeping):
                self.tell(ev.Pinned(number, not g.pinned))

    def _jobs(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """The jobs of tenants that workers have told of, in generations of the rule that counts."""
        for process in self._processes.all():
            if self._rules.get(process.key.generation, self._rule) != self._rule:
                continue
            for job in process.jobs.values():
                if job["tenant"]:
                    yield process.key.generation, job["tenant"], job

    def _note_stay(self, tenant: str, generation: int, seconds: float) -> None:
        self._stays.pop(tenant, None)
        self._stays[tenant] = generation, time.monotonic() + seconds
        if len(self._stays) > STAYS:
            del self._stays[next(iter(self._stays))]  # it is shown only: what counts is its mark
        self.log(
            "info",
            f"tenant {tenant!r} stays in generation {generation} for {seconds:g} s: its requests there have not ended",
        )

    # --- what the command line asks -----------------------------------------------------------------------------------

    def answer(self, do: str, tenant: str, cluster: Cluster, settings: Settings) -> tuple[bool, dict[str, Any]]:
        if not self._rule[0]:
            return False, {"error": "this server knows no tenants: --tenant says whose a request is"}
        if do == "tenants":
            trial = cluster.canary and {"generation": cluster.canary.number, **(trial_of(cluster.canary) or {})}
            serving = cluster.serving and cluster.serving.number
            return True, {"tenants": self._everybody(), "serving": serving, "canary": trial}
        if not 0 < len(tenant) <= names.LONGEST:
            return False, {"error": f"a tenant's name has 1 to {names.LONGEST} characters"}
        tenant = names.name(tenant)
        hints = [] if tenant in self._holds else self.hints((tenant,), cluster)
        if do == "move":
            text = f"{tenant} is not held; it moves when nothing else keeps it"
            if tenant in self._holds:
                g = self._holds.pop(tenant)
                text = f"{tenant} is no longer held in generation {g}; it moves when it is next free"
                self._write_holds()
            self._stays.pop(tenant, None)
        else:
            if cluster.serving is None:
                return False, {"error": "nothing serves yet"}
            g = self._where(tenant).generation
            holds = {**self._holds, tenant: g}
            if len(json.dumps(holds)) > ROOM:
                return False, {"error": f"{len(self._holds)} tenants are held: there is no room for more"}
            self._holds = holds
            self._write_holds()
            text = f"{tenant} is held in generation {g}"
        self.publish(cluster, settings)
        self.look(cluster)
        said: dict[str, Any] = {"warnings": hints} if hints else {}
        return True, {"text": text, "generation": self._where(tenant).generation, **said}

    def hints(self, tenants: Iterable[str], cluster: Cluster) -> list[str]:
        """What to say of tenants that an operator names, and that no worker has seen; see `SeenTenants.hints`."""
        if not self.on or not self._rule[0]:
            return []
        return self.seen.hints(tenants, cluster)

    def held_in(self, generation: int) -> list[str]:
        """The tenants that an operator holds there."""
        return sorted(tenant for tenant, g in self._holds.items() if g == generation)

    def _where(self, tenant: str) -> Any:
        """Where the tenant is, as far as the master has heard of its jobs."""
        number, now = number_of(tenant), time.monotonic()
        jobs = {g for g, whose, _ in self._jobs() if whose == tenant}
        return route(
            self._table,
            tenant,
            share=number >> 2,
            moved=self._marks.moved(number),
            stays=self._marks.stays(number, now),
            tied=jobs.__contains__,
            now=now,
        )

    def _everybody(self) -> list[dict[str, Any]]:
        """All tenants that are kept somewhere, or have jobs; others are where everybody is."""
        now = time.monotonic()
        self._stays = {tenant: stay for tenant, stay in self._stays.items() if stay[1] > now}
        found = {tenant for _, tenant, _ in self._jobs()} | self._holds.keys() | self._stays.keys()
        if self._table.canary is not None:
            found |= self._table.canary.tenants
        return [self._one(tenant, now) for tenant in sorted(found)]

    def _one(self, tenant: str, now: float) -> dict[str, Any]:
        where = self._where(tenant)
        jobs = [
            {"name": job["name"], "generation": g, "age": round(time.time() - job["started"], 3)}
            for g, whose, job in self._jobs()
            if whose == tenant
        ]
        stay = self._stays.get(tenant)
        return {
            "tenant": tenant,
            "generation": where.generation,
            "why": where.why,
            "held": self._holds.get(tenant),
            "jobs": sorted(jobs, key=lambda job: (job["generation"], -job["age"])),
            "next_attempt": round(max(0.0, stay[1] - now), 3) if stay and where.why == RUNNING else None,
            "keeps": where.why in (JOBS, HELD, RUNNING) and where.generation != self._table.serving,
        }

    # --- files --------------------------------------------------------------------------------------------------------

    def _write_holds(self) -> None:
        path = self._holds_path
        try:
            text = json.dumps({"v": 1, "holds": self._holds})
            reserve.use(lambda: files.replace(path, text))
        except OSError as error:
            self.log("error", f"{path} could not be written; a next master would not know who is held: {error}")

    def _read_holds(self) -> dict[str, int]:
        lost = "it is not known which tenants were held (`reuseport hold`)"
        return files.read_json(self._holds_path, _holds_of, self.log, lost) or {}

    def remove(self) -> None:
        if self.on:
            for path in (self._run_dir.pins, self._run_dir.marks):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def _holds_of(data: Any) -> dict[str, int]:
    """From the file. ValueError, TypeError, KeyError."""
    found = {}
    for tenant, generation in data["holds"].items():
        if isinstance(generation, bool) or not isinstance(generation, int) or generation < 1:
            raise ValueError(f"tenant {tenant!r} is held in {generation!r}")
        found[names.name(str(tenant))] = generation
    return found


def trial_of(g: Generation) -> dict[str, Any] | None:
    """Who tries the generation out: `tenants`, at most SHOWN of them and how many `more`, and a `percent` of all
    others. None for one that is not on trial."""
    who = g.release.canary
    if not who:
        return None
    names = sorted(who["tenants"])
    return {"tenants": names[:SHOWN], "more": max(0, len(names) - SHOWN), "percent": who["percent"]}


def _canary_of(g: Generation | None) -> Canary | None:
    """Who is to try out the generation that is on trial."""
    who = g.release.canary if g else None
    return Canary(g.number, frozenset(who["tenants"]), float(who["percent"])) if g and who else None
