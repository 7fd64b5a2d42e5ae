"""What the master itself has counted since it began: releases, jobs, workers that had to be replaced."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.core.model import LIVELY, STAFFED, Cluster, Key

RELEASE_BOUNDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds

# Why a worker was replaced, by a word of what it said (see `Worker.retiring`), or of what the core said of it.
REASONS = {
    "--max-requests": "max_requests",
    "--max-worker-memory": "memory",
    "does not turn": "blocked",
    "SIGTERM": "sigterm",
    "deadline": "deadline",
    "raised": "exception",
}
CRASHED, OTHER = "crashed", "other"


class Tally:
    def __init__(self) -> None:
        self.releases: Counter[str] = Counter()  # by outcome
        self.release_buckets = [0] * (len(RELEASE_BOUNDS) + 1)  # of those that ended in a generation that serves
        self.release_seconds = 0.0
        self.jobs: Counter[str] = Counter()  # "ended", or "lost" with their process
        self.restarts: Counter[str] = Counter()  # by reason
        self.hellos: Counter[str] = Counter()  # connections to hello.sock that were closed, by reason (`hellos.py`)

    def hello_refused(self, reason: str) -> None:
        self.hellos[reason] += 1

    def release_ends(self, outcome: str, seconds: float) -> None:
        self.releases[outcome] += 1
        if outcome == "serving":
            self.release_buckets[bisect_left(RELEASE_BOUNDS, seconds)] += 1
            self.release_seconds += seconds

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec."""
        return dict(vars(self))

    def inherit(self, left: Mapping[str, Any]) -> None:
        for name, mine in vars(self).items():
            if name in left:
                setattr(self, name, Counter(left[name]) if isinstance(mine, Counter) else left[name])

    def worker_ends(self, cluster: Cluster, key: Key) -> None:
        """Count it if another takes its place. `cluster`: as it was when it died."""
        g = cluster.generations.get(key.generation)
        w = g.workers.get(key.number) if g else None
        if g is None or w is None or w.is_job or cluster.stopping:
            return
        if w.retiring:
            self.restarts[next((r for word, r in REASONS.items() if word in w.retiring), OTHER)] += 1
        elif g.state in STAFFED and w.state in LIVELY:
            self.restarts[CRASHED] += 1
