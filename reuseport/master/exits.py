"""Tells the application of its processes that have ended, so that it can clear up after them (`on_child_exit`).

One worker of the generation that serves is told, and runs the application's functions. A process that was killed cannot
do that itself, the master runs no code of the application's, and a zygote must stay as it was after the import.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reuseport.core.model import ACCEPTING, Cluster, Key
from reuseport.ipc.messages import EXITS

if TYPE_CHECKING:
    from reuseport.master.switchboard import Switchboard


class Exits:
    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        # Those of which no worker knows yet. Older ones are forgotten; the functions must cope with that anyway.
        self._pids: deque[int] = deque(maxlen=EXITS)

    def add(self, pid: int) -> None:
        """A worker, a job's process or a zygote has ended."""
        if pid:
            self._pids.append(pid)

    def look(self, cluster: Cluster) -> None:
        """Tell a worker, if there are news and a worker that accepts."""
        g = cluster.serving
        if not self._pids or g is None:
            return
        for number in g.having(ACCEPTING):
            if self._switchboard.send(Key(g.number, number), "exited", pids=list(self._pids)):
                self._pids.clear()
                return

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        return {"pids": list(self._pids)}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._pids.extend(left["pids"])
