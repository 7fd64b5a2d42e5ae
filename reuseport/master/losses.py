"""Jobs that ended with their process instead of by themselves: what `status` shows of them for an hour."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

KEPT = 100  # jobs
SHOWN_FOR = 3600.0  # seconds


class Losses:
    def __init__(self) -> None:
        self._count = 0
        self._jobs: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def add(self, worker: str, pid: int, how: str, job: Mapping[str, Any]) -> str:
        """Note a job, as `status.jobs_of` shows it; returns what is to be said of it."""
        self._count += 1
        late = job.get("overdue") or (job["deadline"] is not None and job["left"] <= 0)
        why = f" (its deadline was {job['deadline']:g} s)" if late else ""
        facts = {name: job[name] for name in ("name", "tenant", "age", "progress", "text", "where")}
        self._jobs.append({**facts, "at": time.time(), "worker": worker, "pid": pid, "how": how + why})
        whose = f" of {job['tenant']}" if job["tenant"] else ""
        process = f"its process {pid}" if job["where"] == "process" else f"worker {worker}"
        return f"job {job['name']!r}{whose} is lost, {job['age']:.0f} s old: {process} {how}{why}"

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec."""
        return {"count": self._count, "jobs": list(self._jobs)}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._count = left["count"]
        self._jobs.extend(left["jobs"])

    def shown(self) -> dict[str, Any]:
        """How many there have been since the master began, and those of the last hour, oldest first."""
        now = time.time()
        return {"count": self._count, "jobs": [job for job in self._jobs if now - job["at"] < SHOWN_FOR]}
