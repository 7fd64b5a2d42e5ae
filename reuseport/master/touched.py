"""Files whose touch is a wish (--release-file, --stop-file), as `touch tmp/restart.txt` is elsewhere.

They are looked at each second, links followed afresh, so that a file in `current` is the one of whatever `current` is
now. What a file says at the first look is the zero; another modification time is a touch, and so is a file that
appears. One that goes away asks for nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any


class Touched:
    """One such file. `path` is asked for at each look: "" for none."""

    def __init__(self, path: Callable[[], str], act: Callable[[str], None], log: Callable[[str, str], None]) -> None:
        self._path = path
        self._act = act
        self._log = log
        self._trouble = ""
        self._named = path()
        self._seen = self._time()

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec, so that a touch in between is seen."""
        return {"named": self._named, "seen": self._seen, "trouble": self._trouble}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._named, self._seen, self._trouble = left["named"], left["seen"], left["trouble"]

    def look(self) -> None:
        """Act if the file has been touched since the last look."""
        path = self._path()
        if path != self._named:
            self._named = path  # the configuration says another name by now
            self._seen = self._time()
            return
        time = self._time()
        if time != self._seen:
            self._seen = time
            if time:
                self._act(path)

    def _time(self) -> int:
        """When it was modified, in nanoseconds; 0 where there is none."""
        if not self._named:
            return 0
        try:
            return os.stat(self._named).st_mtime_ns or 1
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            if error.strerror != self._trouble:
                self._trouble = error.strerror or str(error)
                self._log(
                    "warning", f"{self._named} cannot be looked at, so a touch of it is not seen: {self._trouble}"
                )
            return 0
