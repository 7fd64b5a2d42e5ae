"""The history of releases: one JSON object per line, in the state directory.

It outlives the master, so that generation numbers go on where they were and `rollback 7` still knows what the seventh
was. A line is only ever added; a reader passes over one that it does not understand, such as the last one after a
power failure.

Five kinds of lines, told apart by `event`: "release" (a release ended: `outcome` serving, canary, failed, superseded
or aborted; `seconds` since it was begun, `by` who asked for it), "drained" (an old generation's last worker has left:
`seconds` since its drain began, `jobs` it waited for, `jobs_before` those that had ended by then, the longest of each),
"taken back" (it failed its probation), and of the master itself "started" (`adopted`: the generations that an earlier
one left to it) and "stopped". `at` is Unix time in seconds.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from reuseport.ipc import files

FILE = "history.jsonl"
EVENTS = frozenset({"release", "drained", "taken back", "started", "stopped"})
KEPT = 2000  # lines; a longer file is cut to half of that when a master starts


class History:
    """The lines, newest last, and the file they are added to."""

    def __init__(self, directory: str, *, trim: bool = True) -> None:
        """Read what is there, and `trim` it if it is long. OSError where the directory cannot be written."""
        self.path = os.path.join(directory, FILE)
        self.lines: deque[dict[str, Any]] = deque(read(self.path), maxlen=KEPT)
        if trim and len(self.lines) == KEPT:
            self._shorten()
        self._file = files.appending(self.path)

    def add(self, line: dict[str, Any]) -> None:
        """Add a line. OSError where it could not be written down; it is remembered all the same."""
        self.lines.append(line)
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)

    @property
    def last(self) -> int:
        """The highest generation number there ever was."""
        return max((line["number"] for line in self.lines if line.get("number")), default=0)

    def served(self) -> dict[int, dict[str, Any]]:
        """The releases that succeeded, by generation number, without those that were taken back."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.lines:
            if line["event"] == "release" and line["outcome"] == "serving":
                found[line["number"]] = line
            elif line["event"] == "taken back":
                found.pop(line["number"], None)
        return found

    def shown(self) -> list[dict[str, Any]]:
        return shown(self.lines)

    def _shorten(self) -> None:
        for _ in range(KEPT // 2):
            self.lines.popleft()
        files.replace(self.path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self.lines))


def shown(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All of it, but for the recipes, which nobody wants to read."""
    return [{name: value for name, value in line.items() if name != "release"} for line in lines]


def read(path: str) -> list[dict[str, Any]]:
    """The lines of a file that may not be there, or be torn."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [_parsed(line) for line in file]
    except FileNotFoundError:
        return []
    return [line for line in lines if line is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return dict(line) if isinstance(line, Mapping) and line.get("event") in EVENTS else None
