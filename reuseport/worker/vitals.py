"""A worker's vital signs: what its row of the scoreboard and its title say of it."""

from __future__ import annotations

import time
from typing import Any

from reuseport.ipc.memory import proportional, resident
from reuseport.ipc.scoreboard import ACTIVE, CONNECTIONS, JOBS, PSS, RSS, TURNED
from reuseport.ipc.title import set_title

MEMORY = 5.0  # seconds between two looks at the resident memory
PROPORTION = 30.0  # seconds between two looks at the proportional memory, which cost the kernel a walk


class Vitals:
    """`board`: the worker's row. `worker`: its id; `name`: its server's."""

    def __init__(self, board: Any, worker: str, name: str) -> None:
        self._board = board
        self._worker = worker
        self._name = name
        self._memory_at = 0.0
        self._proportion_at = 0.0
        self._title = ""
        self.retitle(draining=False)

    def beat(self) -> None:
        """The loop turns. And now and then, the memory is measured."""
        self._board[TURNED] = time.monotonic_ns()
        if time.monotonic() >= self._memory_at:
            self.measure()

    def measure(self) -> int:
        """The resident memory in bytes, put down."""
        now = time.monotonic()
        self._memory_at = now + MEMORY
        self._board[RSS] = rss = resident()
        if now >= self._proportion_at:
            self._proportion_at = now + PROPORTION
            self._board[PSS] = proportional()
        return rss

    def retitle(self, draining: bool) -> None:
        """Say in the process list who this is, and what its drain waits for."""
        board = self._board
        detail = ""
        if draining:
            counts = (
                (board[JOBS], "job"),
                (board[ACTIVE], "request"),
                (board[CONNECTIONS] - min(board[ACTIVE], board[CONNECTIONS]), "connection"),
            )
            waits = [f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts if count]
            detail = " draining" + (f" ({', '.join(waits)})" if waits else "")
        title = f"reuseport: worker {self._worker}{detail} [{self._name}]"
        if title != self._title:
            self._title = title
            set_title(title)
