"""The accounting: every request that was sent is answered, failed with its reason, or lost with a killed process.

Pure: no sockets, no clock. Whoever sends requests says what happened and when (CLOCK_MONOTONIC, which all processes of
a machine share), in any order between requests; the account adds up. Nothing is taken on trust:

- A request is *lost* only if its connection was in the hands of a process that was killed on purpose, at that moment.
  Who kills a worker stops it first and reads from the kernel which connections it holds (see `server.kill_worker`), so
  a request that merely waited in a queue cannot hide behind a kill.
- A request that was sent and never ended is a failure, not a gap.
- A kept connection that the server closes while it is idle is a broken promise, and counted as such: the client would
  have had to open a new one.
- A connection opened well after a release was served, yet answered by an older generation, is *stale*. A tenant
  may have been kept there by its jobs: its answers are judged with them (`proving.tenancy`).

Latency is the time beyond the work that was asked for: an answer after 20.01 s to a request for 20 s of work was kept
waiting for 0.01 s.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import NamedTuple

# The kinds whose work takes next to no time: their latency is what a user at a browser would notice.
SHORT = frozenset({"keep-alive", "one-shot", "idle", "work"})

# An old worker may take a few more connections until it has heard of the release; after this it is stale.
STALE_AFTER = 1.0

# A bar of the timeline.
BUCKET = 0.5


@dataclass(slots=True)
class Sent:
    """A request on its way."""

    kind: str
    port: int  # the client's end of the connection; 0 where there was none
    opened: float  # when the connection was opened
    at: float
    planned: float  # seconds of work that were asked for
    tenant: str = ""


class Served(NamedTuple):
    """A tenant's request that was answered."""

    tenant: str
    at: float  # when it was sent
    ended: float
    version: int
    generation: int


@dataclass(slots=True, frozen=True)
class Trouble:
    """A request that was not answered, or not as it should have been."""

    id: int
    kind: str
    port: int
    opened: float
    at: float
    ended: float
    reason: str


@dataclass(slots=True, frozen=True)
class Kill:
    """A process that was killed on purpose, and the clients' ports of the connections it held."""

    pid: int
    ports: frozenset[int]
    at: float


@dataclass(slots=True, frozen=True)
class Window:
    """A span of time, end excluded; a request belongs to it by when it was sent."""

    start: float
    end: float

    def holds(self, at: float) -> bool:
        return self.start <= at < self.end


def percentile(values: Iterable[float], share: float) -> float:
    """The nearest-rank percentile: a value that occurred, never one in between. 0 for no values."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Account:
    """What became of every request. `start` is the zero of its timeline."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.open: dict[int, Sent] = {}
        self.failures: list[Trouble] = []
        self.lost: list[Trouble] = []
        self.stale: list[Trouble] = []
        self.dropped: list[Trouble] = []  # connections closed by the server while idle
        self.dropped_by_kill = 0
        self.moved = 0  # answers on a kept connection by a newer generation than its last
        self.closed = 0  # kept connections that the server ended with an answer
        self.behind = 0  # answers on kept connections by a generation that had been succeeded long before
        self.kills: list[Kill] = []
        self.by_kind: Counter[str] = Counter()  # answered
        self.sent_by_kind: Counter[str] = Counter()
        self.by_version: Counter[int] = Counter()
        self.by_generation: Counter[int] = Counter()
        self.timeline: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._sent: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._latency: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.tenants: list[Served] = []
        self._ends = array("d")  # when each short request was answered
        self._served: list[tuple[float, int]] = []

    # --- what happened

    def send(
        self, request: int, kind: str, port: int, opened: float, at: float, planned: float = 0.0, tenant: str = ""
    ) -> None:
        if request in self.open:
            raise ValueError(f"request {request} was sent twice")
        self.open[request] = Sent(kind, port, opened, at, planned, tenant)
        self.sent_by_kind[kind] += 1

    def answer(
        self, request: int, at: float, version: int, generation: int, before: int = 0, closes: bool = False
    ) -> None:
        """The request was answered well. `before`: the generation that gave the connection's last answer, or 0.
        `closes`: the server wants to end a connection that the client would have kept.
        """
        sent = self.open.pop(request)
        self.moved += 0 < before < generation
        self.closed += closes
        self.by_kind[sent.kind] += 1
        self.by_version[version] += 1
        self.by_generation[generation] += 1
        self.timeline[int((at - self.start) / BUCKET)][version] += 1
        self._sent[sent.kind].append(sent.at)
        self._latency[sent.kind].append(at - sent.at - sent.planned)
        if sent.kind in SHORT:
            self._ends.append(at)
        if sent.tenant:
            self.tenants.append(Served(sent.tenant, sent.at, at, version, generation))
            return
        expected = self._serving_at(sent.opened - STALE_AFTER)
        if generation < expected:
            reason = f"answered by generation {generation}, {STALE_AFTER:g} s and more after {expected} served"
            self.stale.append(self._trouble(request, sent, at, reason))
        elif generation < self._serving_at(sent.at - STALE_AFTER):
            self.behind += 1

    def fail(self, request: int, at: float, reason: str) -> None:
        """The request ended without its answer: lost if a kill explains it, else failed."""
        sent = self.open.pop(request)
        trouble = self._trouble(request, sent, at, reason)
        if self.killed_with(sent.port, sent.opened, at):
            self.lost.append(trouble)
        else:
            self.failures.append(trouble)

    def drop(self, kind: str, port: int, opened: float, at: float) -> None:
        """The server closed a kept connection on which no request was under way."""
        if self.killed_with(port, opened, at):
            self.dropped_by_kill += 1
        else:
            self.dropped.append(Trouble(0, kind, port, opened, opened, at, "closed while idle"))

    def kill(self, pid: int, ports: Iterable[int], at: float) -> None:
        """A process is about to be killed. Said before the signal, so that no failure can come first."""
        self.kills.append(Kill(pid, frozenset(ports), at))

    def serve(self, generation: int, at: float) -> None:
        """From here on this generation serves."""
        self._served.append((at, generation))
        self._served.sort()

    def close(self, at: float) -> None:
        """No more will be said: what is still open was never answered."""
        for request in list(self.open):
            self.fail(request, at, "never ended")

    # --- what it comes to

    @property
    def sent(self) -> int:
        return self.sent_by_kind.total()

    @property
    def answered(self) -> int:
        return self.by_kind.total()

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def clean(self) -> bool:
        """Whether nothing happened to anyone that should not have."""
        return self.clean_so_far and not self.open

    @property
    def clean_so_far(self) -> bool:
        """The same while requests are still under way."""
        return not (self.failures or self.stale or self.dropped)

    def killed_with(self, port: int, opened: float, ended: float) -> bool:
        """Whether the connection was in a process that was killed while the connection lived."""
        return any(port in kill.ports and opened <= kill.at <= ended for kill in self.kills)

    def latencies(self, kinds: Iterable[str] = SHORT, windows: Iterable[Window] | None = None) -> list[float]:
        """The latencies of the answered requests of these kinds that were sent within one of the windows."""
        spans = None if windows is None else list(windows)
        found: list[float] = []
        for kind in kinds:
            if spans is None:
                found.extend(self._latency[kind])
            else:
                pairs = zip(self._sent[kind], self._latency[kind], strict=True)
                found.extend(latency for sent, latency in pairs if any(span.holds(sent) for span in spans))
        return found

    def longest_silence(self, windows: Iterable[Window] | None = None) -> float:
        """The longest time between two answers to short requests: how long the whole service seemed to stand."""
        ends = sorted(self._ends)
        spans = [Window(float("-inf"), float("inf"))] if windows is None else list(windows)
        longest = 0.0
        for span in spans:
            # The answer before the window and the one after it belong to it: a stall may begin or end outside.
            first = max(0, bisect_left(ends, span.start) - 1)
            within = ends[first : bisect_left(ends, span.end) + 1]
            longest = max([longest, *(b - a for a, b in pairwise(within))])
        return longest

    def reasons(self) -> Counter[str]:
        return Counter(trouble.reason for trouble in self.failures)

    def summary(self) -> dict[str, object]:
        """All of it as JSON has it. Every kind's figures add up: sent = answered + failed + lost + open."""
        failed, lost = Counter(t.kind for t in self.failures), Counter(t.kind for t in self.lost)
        in_flight = Counter(sent.kind for sent in self.open.values())
        kinds = {}
        for kind in sorted(self.sent_by_kind):
            latencies = self._latency[kind]
            kinds[kind] = {
                "sent": self.sent_by_kind[kind],
                "answered": self.by_kind[kind],
                "failed": failed[kind],
                "lost": lost[kind],
                "open": in_flight[kind],
                "p50": round(percentile(latencies, 0.5), 6),
                "p99": round(percentile(latencies, 0.99), 6),
                "max": round(max(latencies, default=0.0), 6),
            }
        return {
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "lost": len(self.lost),
            "open": len(self.open),
            "stale": len(self.stale),
            "dropped_while_idle": len(self.dropped),
            "dropped_with_a_killed_worker": self.dropped_by_kill,
            "moved": self.moved,
            "closed": self.closed,
            "behind": self.behind,
            "kills": len(self.kills),
            "clean": self.clean,
            "longest_silence": round(self.longest_silence(), 4),
            "kinds": kinds,
            "versions": {str(version): n for version, n in sorted(self.by_version.items())},
            "generations": {str(generation): n for generation, n in sorted(self.by_generation.items())},
            "reasons": dict(self.reasons()),
            "troubles": [
                {"what": what, **self._described(trouble)}
                for what, troubles in (
                    ("failed", self.failures),
                    ("stale", self.stale),
                    ("dropped", self.dropped),
                    ("lost", self.lost),
                )
                for trouble in troubles
            ],
        }

    def _described(self, trouble: Trouble) -> dict[str, object]:
        return {
            "id": trouble.id,
            "kind": trouble.kind,
            "reason": trouble.reason,
            "port": trouble.port,
            "opened": round(trouble.opened - self.start, 4),
            "sent": round(trouble.at - self.start, 4),
            "ended": round(trouble.ended - self.start, 4),
        }

    @property
    def served(self) -> list[tuple[float, int]]:
        """When which generation was known to serve, ascending."""
        return list(self._served)

    def _serving_at(self, at: float) -> int:
        return max((generation for since, generation in self._served if since <= at), default=0)

    @staticmethod
    def _trouble(request: int, sent: Sent, ended: float, reason: str) -> Trouble:
        return Trouble(request, sent.kind, sent.port, sent.opened, sent.at, ended, reason)
