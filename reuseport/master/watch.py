"""Watches that the workers' loops turn.

A worker writes the time into its row of the scoreboard whenever its loop turns. One whose time stands still is blocked:
some code computes, or waits in a way that gevent cannot see. It is asked for its Python stack, by a signal whose
handler is C code and so runs even then.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

from reuseport.core import events as ev
from reuseport.core.model import ACCEPTING, LEAVING, TOLD, Cluster, Key
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.scoreboard import TURNED, Scoreboard
from reuseport.ipc.stacks import STACK_SIGNAL
from reuseport.master import reserve
from reuseport.master.loop import Loop
from reuseport.master.processes import Process, Processes

LATE = 3.0  # seconds between two looks that come every second
LONGEST_STACK = 65536  # bytes
STACK_DELAY = 0.3  # seconds for a blocked worker to write its stack


class Watch:
    """Calls `tell(event)` when a worker gets blocked, or turns again; `log(level, text)` gets its stack."""

    def __init__(
        self,
        run_dir: RunDir,
        loop: Loop,
        processes: Processes,
        board: Scoreboard,
        tell: Callable[[ev.Event], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._run_dir = run_dir
        self._loop = loop
        self._processes = processes
        self._board = board
        self._tell = tell
        self._log = log
        self._last = time.monotonic_ns()

    def look(self, cluster: Cluster, timeout: float) -> None:
        """Compare every worker's time with now. `timeout` in seconds."""
        now = time.monotonic_ns()
        last, self._last = self._last, now
        if now - last > LATE * 1e9:
            return  # the master itself stood still, and most likely the whole machine with it: give everybody a turn
        for g in cluster.generations.values():
            for number, w in g.having(TOLD, ACCEPTING, LEAVING).items():
                key = Key(g.number, number)
                process = self._processes.get(key)
                if process is None or process.row < 0:
                    continue
                turned = self._board.row(process.row)[TURNED]
                stands = (now - turned) / 1e9 if turned else 0.0
                if stands > timeout and not w.blocked:
                    self._report(process, stands)
                    self._tell(ev.Blocked(key))
                elif stands <= timeout and w.blocked:
                    self._tell(ev.Unblocked(key))

    def _report(self, process: Process, stands: float) -> None:
        path = self._run_dir.stacks(str(process.key))
        said = os.lstat(path).st_size if os.path.lexists(path) else 0
        if os.path.lexists(path):
            self._processes.signal(process.key, STACK_SIGNAL)
        head = f"worker {process.key} (pid {process.pid}): its loop has not turned for {stands:.1f} s"
        self._loop.later(STACK_DELAY, lambda: self._log("warning", f"{head}; it is at\n{_stack(path, said)}"))


def _stack(path: str, offset: int) -> str:
    """What was written behind `offset`. The worker's user owns the directory, so no link in it is followed."""
    try:
        fd = reserve.take(lambda: os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return "(it has gone)"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "(it is no file)"
        return os.pread(fd, LONGEST_STACK, offset).decode(errors="replace").rstrip() or "(it has not said where)"
    finally:
        os.close(fd)
        reserve.refill()
