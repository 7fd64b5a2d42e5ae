"""What a drain waits for besides jobs, for the history: requests by their method and path, and companions.

No process tells when one of its requests ends, so the master looks once a second. A request or companion that is there
at one look and not at the next has ended in between, and counts as long as to the first of them. It counts from the
first look at which it was there, or from the drain's begin.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from reuseport.core.model import DRAINING, Cluster, Generation

MOST = 20  # of each kind, those that were waited for longest
KNOWN = 1000  # of each kind, in one drain
LEAST = 0.1  # seconds for which something must have been waited for

REQUESTS, COMPANIONS = "requests", "companions"
Look = Callable[[Generation], Mapping[str, Collection[str]]]


class Waits:
    """`look(generation)` gives the names of its requests and of its companions now."""

    def __init__(self, look: Look) -> None:
        self._look = look
        # By generation and kind: name -> seconds of the drain after which it was seen first, and last.
        self._seen: dict[int, dict[str, dict[str, list[float]]]] = {}
        self._last: dict[int, float] = {}  # by generation: the last look, likewise

    def estate(self) -> dict[str, Any]:
        return {"seen": self._seen, "last": self._last}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._seen = {int(number): kinds for number, kinds in left.get("seen", {}).items()}
        self._last = {int(number): at for number, at in left.get("last", {}).items()}

    def look(self, cluster: Cluster, now: float, *, begun: bool = False) -> None:
        """Look at all generations that drain; with `begun` at those whose drain has just begun."""
        for g in cluster.having(DRAINING):
            if begun and g.number in self._last:
                continue
            after = round(now - g.since, 3)
            first = after if g.number in self._last else 0.0
            self._last[g.number] = after
            kinds = self._seen.setdefault(g.number, {REQUESTS: {}, COMPANIONS: {}})
            for kind, names in self._look(g).items():
                seen = kinds[kind]
                for name in names:
                    if name in seen or len(seen) < KNOWN:
                        seen[name] = [seen.get(name, [first])[0], after]

    def ended(self, number: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
        """What the drain of this generation, which took so many seconds, waited for, the longest of each kind."""
        kinds, last = self._seen.pop(number, {}), self._last.pop(number, 0.0)
        # What was there at the last look was waited for to the end.
        return {kind: _longest(kinds.get(kind, {}), last, seconds) for kind in (REQUESTS, COMPANIONS)}

    def forget_all_but(self, living: Collection[int]) -> None:
        for number in self._last.keys() - set(living):
            del self._last[number]
            self._seen.pop(number, None)


def _longest(seen: Mapping[str, list[float]], last: float, seconds: float) -> list[dict[str, Any]]:
    found = [((seconds if after >= last else after) - since, name) for name, (since, after) in seen.items()]
    found = sorted((one for one in found if one[0] >= LEAST), key=lambda one: (-one[0], one[1]))
    return [{"name": name, "seconds": round(waited, 3)} for waited, name in found[:MOST]]
