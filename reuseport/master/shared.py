"""The files that workers map, as a whole: their size, and which user they belong to. `ipc/shared.py` has the rules."""

from __future__ import annotations

import os
from collections.abc import Callable

from reuseport.core.model import ZYGOTE
from reuseport.ipc.shared import SharedFile
from reuseport.master.processes import Process, Processes


class Shared:
    """`ids` are the workers' uid and gid, None where they are the master's own. `log(level, text)`."""

    def __init__(
        self, ids: tuple[int, int] | None, processes: Processes, log: Callable[[str, str], None]
    ) -> None:
        self._ids = ids
        self._processes = processes
        self._log = log
        self.files: list[SharedFile] = []

    def restore(self) -> None:
        """Before a worker is forked: give each file its size again, or that worker could not map it."""
        for file in self.files:
            try:
                if file.restore():
                    text = f"{file.path} had been cut off, by a worker. Workers that map it may die of that (SIGBUS)"
                    self._log("error", text)
            except OSError as error:
                self._log("error", f"{file.path} has been cut off, and cannot be restored: {error.strerror}")

    def look(self, gone: Process | None = None) -> None:
        """Give the files to root, or to the workers' user while a zygote lives that opens them by name. `gone` has
        ended."""
        if not self._ids:
            return
        holds = {p.holds_shared for p in self._processes.all() if p.key.number == ZYGOTE and p is not gone}
        if False in holds:
            owner = self._ids
        elif None in holds:
            return  # an earlier master's zygote, which has not said hello to this one yet
        else:
            owner = os.geteuid(), os.getegid()
        for file in self.files:
            try:
                file.belong_to(*owner)
            except OSError as error:
                self._log("error", f"{file.path} cannot be given to uid {owner[0]}: {error.strerror}")
