"""How far a release is, told to whoever waits for it.

As with a supervisor, what is said follows from the cluster and is compared with what was said before: no event has a
word of its own that could be forgotten. Who waits hears at once when something has changed, and once in a second of
what changes all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from reuseport.core.companions import awaited
from reuseport.core.model import ACCEPTING, BOOTING, CANARY, LOADING, SERVING, STANDBY, TOLD, Cluster, Generation
from reuseport.core.model import READY as IS_READY
from reuseport.core.policies import boot_overdue_at, confirmed_at
from reuseport.master.control import Client

STEADY = ("stage", "generation", "ready", "accepting", "companions", "lingering")  # what is told at once if it changes
SHOWN = 20  # jobs of each generation that are told

# Generation -> what it waits for, as in `status`.
Waits = Callable[[Generation], dict[str, Any]]


def of(cluster: Cluster, asker: str, waits: Waits, now: float) -> dict[str, Any] | None:
    """What to tell the asker of that name; None where nothing is under way for it. All times are in seconds.

    `stage` is "waiting" (another release boots), "loading", "warming", "opening", "letting go", "probation", "draining"
    or "stopping". `since` is how long it has been in it, `deadline` what is left until the boot is given up, and
    `companions` are those whose readiness is waited for.
    """
    if cluster.stopping:
        return {"stage": "stopping", "generations": _all_waits(cluster.generations.values(), waits)}
    if any(one.name == asker for one in cluster.pending_askers):
        booting = cluster.booting
        return {"stage": "waiting", "for": booting.number if booting else None}
    for g in cluster.generations.values():
        if any(one.name == asker for one in g.askers):
            return _boot(cluster, g, now)
    for one, number in cluster.drain_askers:
        if one.name == asker:
            older = [g for n, g in cluster.generations.items() if n < number and g.state != STANDBY]
            return {"stage": "draining", "generation": number, "generations": _all_waits(older, waits)}
    return None


def _boot(cluster: Cluster, g: Generation, now: float) -> dict[str, Any] | None:
    facts: dict[str, Any] = {"generation": g.number, "since": round(now - g.since, 3), "of": g.wanted}
    if g.state in BOOTING:
        accepting, by = len(g.having(ACCEPTING)), boot_overdue_at(g)
        return {
            **facts,
            "stage": g.state,
            "from_standby": bool(g.donor) if g.state == LOADING else None,
            "directory": g.release.recipe.get("directory", ""),
            "ready": len(g.having(IS_READY, TOLD)) + accepting,
            "accepting": accepting,
            "companions": [f"{g.number}.{c.label}" for c in awaited(g) if c.pid],
            "deadline": None if by is None else round(max(0.0, by - now), 3),
        }
    if g.state == SERVING:
        lingering = sum(
            not w.let_go for n, old in cluster.generations.items() if n < g.number for w in old.workers.values()
        )
        left = round(max(0.0, confirmed_at(g) - now), 3)
        if g.release.probation:
            return {**facts, "stage": "probation", "left": left, "lingering": lingering}
        return {**facts, "stage": "letting go", "left": left, "lingering": lingering}
    return {**facts, "stage": g.state} if g.state == CANARY else None


def _all_waits(generations: Iterable[Generation], waits: Waits) -> list[dict[str, Any]]:
    return [{"number": g.number, **_bounded(waits(g))} for g in generations if g.workers or g.company]


def _bounded(facts: dict[str, Any]) -> dict[str, Any]:
    held = facts.get("held", [])
    more = {"more": max(0, len(facts["jobs"]) - SHOWN), "more_held": max(0, len(held) - SHOWN)}
    return {**facts, "jobs": facts["jobs"][:SHOWN], "held": held[:SHOWN], **more}


class Progress:
    """Tells the clients that wait. `waits` is about the generation that it gets."""

    def __init__(self, clients: Callable[[], Iterable[Client]], waits: Waits) -> None:
        self._clients = clients
        self._waits = waits

    def look(self, cluster: Cluster, now: float, *, fully: bool = False) -> None:
        """Tell what has changed; `fully`: also what changes all the time."""
        for client in self._clients():
            if client.watching and (facts := of(cluster, client.name, self._waits, now)) is not None:
                steady = {name: facts.get(name) for name in STEADY}
                if fully or steady != client.told:
                    client.told = steady
                    client.say(event="progress", **facts)
