"""The master's log. Writing to it never blocks: a full pipe or a stuck terminal must not hold up a release.

So no line of the master's goes through `logging`, whose handlers are the application's and may wait for anything.
"""

from __future__ import annotations

from reuseport.ipc.logline import LEVELS, form_of
from reuseport.ipc.outlet import Outlet


class Log(Outlet):
    """`path` is a file, or "-" for standard error. When lines were lost, because nobody read them, a line says so."""

    def __init__(self, path: str = "-", level: str = "info", json: bool = False) -> None:
        self._threshold = LEVELS[level]
        self._form = form_of(json)
        super().__init__(path, 2)

    def write(self, level: str, text: str) -> None:
        if LEVELS[level] >= self._threshold:
            for line in self._form("master", level, text):
                self.raw(line)

    def say(self, who: str, text: str) -> None:
        """What somebody else has printed. No level is known of it, so --log-level lets it pass."""
        for line in self._form(who, "info", text):
            self.raw(line)

    def notice(self, lost: int) -> bytes:
        return b"".join(self._form("master", "error", f"{lost} lines of this log were lost: nobody read it"))
