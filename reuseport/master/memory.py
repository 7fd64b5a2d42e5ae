"""The memory of those who have no row of the scoreboard to put it down in: zygotes, and the processes of jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

from reuseport.ipc import memory
from reuseport.master.processes import Process

AGAIN = 30.0  # seconds between two looks at one process
BUDGET = 0.02  # seconds that one question spends on looks; one at a process of 1 GB takes longer than this


class Looks:
    """Those of one question, until its time is spent, for nobody is heard meanwhile; then what was seen last."""

    def __init__(self) -> None:
        self._end = time.monotonic() + BUDGET

    def at(self, process: Process) -> dict[str, int]:
        """`rss` and `pss` of the process in bytes; 0 where they have not been looked at, or are not to be had."""
        now = time.monotonic()
        if process.pid and now >= process.measured + AGAIN and now < self._end:
            process.measured = now
            process.memory = {
                "rss": _or_nothing(memory.resident, process.pid),
                "pss": _or_nothing(memory.proportional, process.pid),
            }
        return dict(process.memory)


def _or_nothing(look: Callable[[int], int], pid: int) -> int:
    try:
        return look(pid)
    except OSError:
        return 0
