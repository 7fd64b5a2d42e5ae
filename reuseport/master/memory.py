"""The memory of those who have no row of the scoreboard to put it down in: zygotes, and the processes of jobs."""

from __future__ import annotations

from collections.abc import Callable

from reuseport.ipc import memory
from reuseport.master.processes import Process

AGAIN = 30.0  # seconds between two looks at one process


def memory_of(process: Process, now: float) -> dict[str, int]:
    """`rss` and `pss` in bytes, as they were at most AGAIN seconds ago; 0 where that is not to be had."""
    if process.pid and now >= process.measured + AGAIN:
        process.measured = now
        process.memory = {"rss": _or_nothing(memory.resident, process.pid)}
        process.memory["pss"] = _or_nothing(memory.proportional, process.pid)
    return dict(process.memory)


def _or_nothing(look: Callable[[int], int], pid: int) -> int:
    try:
        return look(pid)
    except OSError:
        return 0
