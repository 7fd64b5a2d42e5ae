"""Which generation a tenant's request belongs to: a pure function of a published table and what the locks say.

The master publishes the table; the facts (how far a tenant has moved, where its jobs run) are on disk and in locks
(`ipc.marks`, `ipc.pins`). Tables reach the workers one after the other, so a table only says what is wished for. What
must hold at every moment (a tenant never goes back; strict: one version at a time) rests on marks and locks alone.

Generations are numbers that only go forward, and so do tenants:

- `moved` is the highest generation that has served the tenant while an older one lived: it never goes below that;
- its goal is the generation that serves, or that of a hold or of the canary;
- on the way there it is tied to the oldest generation in which one of its jobs runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, NamedTuple

from reuseport.core.immutable import immutable

SHARES = 10_000  # a canary's percentage counts in hundredths

JOBS = "jobs"  # one of its jobs runs there
HELD = "held"  # an operator keeps it there
CANARY = "canary"
RUNNING = "requests"  # strict: its requests did not end in time; it stays until the next attempt
MOVED = "moved"  # it is there already, and never goes back
SERVING = "serving"  # nothing keeps it: it is where everybody is


@immutable
class Canary:
    """These tenants, and `percent` of all others, go to `generation`, which is newer than the one that serves."""

    generation: int
    tenants: frozenset[str] = frozenset()
    percent: float = 0.0


@immutable
class Table:
    """What the master publishes. `living`: generations that take requests, ascending; `serving` is one of them.

    `untied_at`: seconds of CLOCK_MONOTONIC, by generation, from which jobs there tie nobody any more (--pin-max).
    """

    version: int = 0
    serving: int = 0
    living: tuple[int, ...] = ()
    holds: Mapping[str, int] = field(default_factory=dict)
    canary: Canary | None = None
    untied_at: Mapping[int, float] = field(default_factory=dict)
    strict_wait: float = 1.0

    @property
    def active(self) -> bool:
        """Whether there is anything to decide: with one generation there is not."""
        return len(self.living) > 1

    def to_json(self) -> dict[str, Any]:
        canary = self.canary
        return {
            "version": self.version,
            "serving": self.serving,
            "living": list(self.living),
            "holds": dict(self.holds),
            "canary": canary and [canary.generation, sorted(canary.tenants), canary.percent],
            "untied_at": {str(g): at for g, at in self.untied_at.items()},
            "strict_wait": self.strict_wait,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """The table of a message, whose sender may be of another version: unknown keys are passed over."""
        canary = data.get("canary")
        return cls(
            int(data["version"]),
            int(data["serving"]),
            tuple(int(g) for g in data["living"]),
            {str(tenant): int(g) for tenant, g in data.get("holds", {}).items()},
            Canary(int(canary[0]), frozenset(canary[1]), float(canary[2])) if canary else None,
            {int(g): float(at) for g, at in data.get("untied_at", {}).items()},
            float(data.get("strict_wait", 1.0)),
        )


class Route(NamedTuple):
    generation: int
    why: str


def goal(table: Table, tenant: str | None, share: int) -> Route:
    """Where the tenant would be if it had no jobs and had never moved. `share`: a stable hash of it, or its client."""
    if tenant is not None:
        held = table.holds.get(tenant)
        if held in table.living:
            return Route(held, HELD)
    canary = table.canary
    if canary and canary.generation in table.living:
        if tenant is not None and tenant in canary.tenants:
            return Route(canary.generation, CANARY)
        if share % SHARES < canary.percent * SHARES / 100:
            return Route(canary.generation, CANARY)
    return Route(table.serving, SERVING)


def route(
    table: Table,
    tenant: str | None,
    *,
    share: int = 0,
    moved: int = 0,
    stays: int = 0,
    tied: Callable[[int], bool] = lambda generation: False,
    now: float = 0.0,
) -> Route:
    """The generation whose request this is, and why.

    `moved`: how far the tenant has moved. `stays`: where it stays until strict isolation's next attempt, or 0.
    `tied(g)`: whether one of its jobs runs in generation g; asked for as few as will do, the oldest first.
    """
    wish = goal(table, tenant, share)
    if tenant is None:
        return wish
    ahead = [g for g in table.living if g >= moved]
    if not ahead:
        # Every generation that it could go to has died. An answer of the one that serves is better than none.
        return Route(table.serving, SERVING)
    for g in ahead:
        if g >= wish.generation:
            break
        if g == stays:
            return Route(g, RUNNING)
        if now < table.untied_at.get(g, now + 1) and tied(g):
            return Route(g, JOBS)
    if wish.generation in ahead:
        return wish
    return Route(ahead[0], MOVED) if ahead[0] == moved else Route(ahead[-1], SERVING)


def binding(table: Table, moved: int, target: int, now: float) -> int:
    """The first of the older generations that a move to `target` must find free of the tenant's jobs; `target` if none.

    Those whose jobs tie nobody any more are the oldest, so that the others are one range, up to `target`.
    """
    return next(
        (g for g in table.living if moved <= g < target and now < table.untied_at.get(g, now + 1)),
        target,
    )
