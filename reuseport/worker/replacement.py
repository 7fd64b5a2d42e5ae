"""What makes a worker ask to be replaced: its successor comes first, and then it drains like any other."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from reuseport import jobs, names
from reuseport.ipc.scoreboard import REQUESTS, RSS

TERM = "it got a SIGTERM that the master did not send"
LONGEST = 500  # characters of a reason
NAMED = 5  # jobs that a reason names


class Replacement:
    """`reason`: why it has asked, "" if it has not. `after`: requests until it asks, 0 for any number.

    `board`: the worker's row of the scoreboard. `say(kind, **fields)` speaks to the master.
    """

    def __init__(self, settings: Any, board: Any, say: Callable[..., None]) -> None:
        self.reason = ""
        self.after = settings.max_requests
        if self.after and settings.max_requests_jitter:
            self.after += random.randint(0, settings.max_requests_jitter)
        self._settings = settings
        self._board = board
        self._say = say

    def ask(self, reason: str) -> None:
        self.reason = names.line(reason, LONGEST)
        self._say("retire", reason=self.reason)

    def repeat(self) -> None:
        """To another master."""
        if self.reason:
            self._say("retire", reason=self.reason)

    def count_request(self) -> None:
        if not self.reason and self._board[REQUESTS] >= self.after:
            self.ask(f"it has answered {self._board[REQUESTS]} requests (--max-requests)")

    def look_at_memory(self) -> None:
        limit = self._settings.max_worker_memory
        if limit and self._board[RSS] > limit and not self.reason:
            self.ask(f"it uses {self._board[RSS] >> 20} MiB (--max-worker-memory)")

    def look_at_jobs(self) -> None:
        overdue = jobs.overdue()
        if overdue and not self.reason:
            which = ", ".join(repr(one.name) for one in overdue[:NAMED]) + ", ..." * (len(overdue) > NAMED)
            self.ask(f"what it runs goes on {self._settings.job_grace:g} s after its deadline: job {which}")
