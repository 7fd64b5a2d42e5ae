"""The memory of those who have no row of the scoreboard to put it down in: zygotes, and the processes of jobs."""

from __future__ import annotations

import time
from collections.abc import Callable

from reuseport.ipc import memory
from reuseport.master.processes import Process

AGAIN = 30.0  # seconds between two looks at one process
AGAIN_IN_A_BOOT = 1.0  # the same, while the process imports the application and grows
BUDGET = 0.02  # seconds that one question spends on looks; one at a process of 1 GB takes longer than this


class Looks:
    """Those of one question, until its time is spent, for nobody is heard meanwhile; then what was seen last."""

    def __init__(self) -> None:
        self._end = time.monotonic() + BUDGET

    def at(self, process: Process, *, boots: bool = False) -> dict[str, int]:
        """`rss` and `pss` of the process in bytes; 0 where they have not been looked at, or are not to be had.

        `boots`: the process still imports the application. The first call after the boot looks at once.
        """
        now = time.monotonic()
        due = process.measured + (AGAIN_IN_A_BOOT if boots else AGAIN)
        if process.pid and (now >= due or process.measured_in_boot > boots) and now < self._end:
            process.measured, process.measured_in_boot = now, boots
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
