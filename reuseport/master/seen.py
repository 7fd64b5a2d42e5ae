"""The tenants that workers have seen. An operator who names another tenant gets a hint.

The master does what the operator asks for all the same, as `systemctl mask` does for a unit that does not exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from reuseport.core.model import ACCEPTING, ATTENDING, LEAVING, Cluster, Key

MOST = 65_536  # names that are remembered
COMPARED = 2000  # the newest names are compared with an unknown one, which takes 30 ms
LONGEST = 64  # characters; longer names are not compared
NAMED = 3  # tenants that are named in each case


class SeenTenants:
    """`more`: workers that have ended may have told another master of tenants that this one does not know."""

    def __init__(self, more: bool = False) -> None:
        self._names: dict[str, None] = {}  # the newest last
        self._telling: set[Key] = set()  # workers that tell; those of an earlier version do not
        self._more = more

    def estate(self) -> dict[str, Any]:
        return {"names": list(self._names), "telling": sorted(self._telling), "more": self._more}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._names = dict.fromkeys(left.get("names", ()))
        self._telling = {Key(*key) for key in left.get("telling", ())}
        self._more = left.get("more", True)  # workers have told an earlier version nothing

    def note(self, tenants: Iterable[str]) -> None:
        for tenant in tenants:
            if tenant not in self._names:
                if len(self._names) >= MOST:
                    self._more = True
                    del self._names[next(iter(self._names))]
                self._names[tenant] = None

    def told(self, worker: Key, tenants: Iterable[str], more: bool) -> None:
        """A worker tells of these tenants. `more`: it has seen others, too, that it does not tell of."""
        self._telling.add(worker)
        self._more |= more
        self.note(tenants)

    def worker_ends(self, worker: Key) -> None:
        self._telling.discard(worker)

    def hints(self, tenants: Iterable[str], cluster: Cluster) -> list[str]:
        """A text for each tenant that no worker has seen; none where the master cannot know."""
        serving = {
            Key(g.number, number)
            for g in cluster.generations.values()
            for number, worker in g.having(ACCEPTING, ATTENDING, LEAVING).items()
            if not worker.is_job
        }
        if self._more or not serving <= self._telling:
            return []
        unseen = [tenant for tenant in tenants if tenant not in self._names]
        hints = [self._hint(tenant) for tenant in unseen[:NAMED]]
        if len(unseen) > NAMED:
            hints.append(f"{len(unseen) - NAMED} more of these tenants have not been seen")
        return hints

    def _hint(self, tenant: str) -> str:
        close = similar(tenant, list(self._names)[-COMPARED:])
        like = f"; similar names: {', '.join(close)}" if close else ""
        return f"no request and no job of tenant {tenant} has been seen so far{like}"


def similar(wanted: str, known: Iterable[str]) -> list[str]:
    """The known names that are like `wanted`, the most similar name first. Case does not count."""
    if len(wanted) > LONGEST:
        return []
    by_folded = {one.casefold(): one for one in known if len(one) <= LONGEST}
    return [by_folded[one] for one in difflib.get_close_matches(wanted.casefold(), by_folded, NAMED)]
