"""The history of releases: one JSON object per line, in the state directory.

It outlives the master, so that generation numbers go on where they were and `rollback 7` still knows what the seventh
was. A reader passes over a line that it does not understand, such as the last one after a power failure.

Lines are added. When there are KEPT of them, or LARGEST bytes, the file is replaced by one with the newer half. A
reader that has the old one open reads that to its end.

Five kinds of lines, told apart by `event`: "release" (a release ended: `outcome` serving, canary, failed, superseded
or aborted; `seconds` since it was begun, `by` who asked for it, `operator` the facts about that: `uid`, `user`,
`sudo_user`, `host`, `by` (--by)), "drained" (an old generation's last worker has left: `seconds` since its drain began,
`jobs` it waited for, `jobs_before` those that had ended by then, the longest of each; `requests` and `companions`, each
with the `seconds` for which the drain waited for it), "taken back" (it failed its probation), and of the master itself
"started" (`adopted`: the generations that an earlier one left to it) and "stopped". `at` is Unix time in seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from reuseport.ipc import files

FILE = "history.jsonl"
EVENTS = frozenset({"release", "drained", "taken back", "started", "stopped"})
KEPT = 2000  # lines
LARGEST = 16 << 20  # bytes
AGAIN = 100  # lines after which a cut is tried again that has failed
LATEST = 1e11  # Unix time in seconds, beyond the year 5000: no such line is from a clock


class History:
    """The lines, newest last, and the file they are added to. `log(level, text)` hears of a damaged file."""

    def __init__(self, directory: str, *, trim: bool = True, log: files.Log = files.say_nothing) -> None:
        """Read what is there, and `trim` it if it is long. OSError where the directory cannot be written."""
        self.path = os.path.join(directory, FILE)
        self.lines: deque[dict[str, Any]] = deque(maxlen=KEPT)
        try:
            found, strange = _read(self.path, os.geteuid())
        except files.Damaged as error:
            files.tell_damage(
                self.path, error, log, "the releases so far are not known, and nothing can be rolled back"
            )
            found, strange = [], 0
        if strange:
            log("warning", f"{self.path} has {strange} damaged lines, which are passed over")
        self.lines.extend(found)
        self._file = files.appending(self.path)
        self._count = len(found) + strange
        self._size = os.fstat(self._file).st_size
        if trim:
            self._cut_if_long()

    def add(self, line: dict[str, Any]) -> None:
        """Add a line. OSError where it could not be written down; it is remembered all the same."""
        self.lines.append(line)
        data = _encoded(line)
        os.write(self._file, data)
        self._count += 1
        self._size += len(data)
        self._cut_if_long()

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

    def _cut_if_long(self) -> None:
        """Where the disk has no room for it, the file grows until it has."""
        if self._count >= KEPT or self._size >= LARGEST:
            with contextlib.suppress(OSError):
                self._cut()
                return
            self._count, self._size = KEPT - AGAIN, 0

    def _cut(self) -> None:
        """Replace the file by one with the newer half. OSError; then it is as it was."""
        kept: deque[bytes] = deque()
        size = 0
        for line in reversed(self.lines):
            data = _encoded(line)
            if len(kept) >= KEPT // 2 or (kept and size + len(data) > LARGEST // 2):
                break
            kept.appendleft(data)
            size += len(data)
        files.replace(self.path, b"".join(kept).decode())
        file = files.appending(self.path)
        os.close(self._file)
        self._file, self._count, self._size = file, len(kept), size
        while len(self.lines) > len(kept):
            self.lines.popleft()


def shown(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All of it, but for the recipes, which no reader wants. `time` is `at` as RFC 3339 has it, in UTC."""
    return [
        {**{name: value for name, value in line.items() if name != "release"}, "time": rfc3339(line.get("at", 0.0))}
        for line in lines
    ]


def rfc3339(at: float) -> str:
    """Unix time in UTC, with milliseconds: 2026-01-31T12:00:00.000+00:00."""
    return datetime.fromtimestamp(max(0.0, at), UTC).isoformat(timespec="milliseconds")


def read(path: str) -> list[dict[str, Any]]:
    """The lines of a file that may not be there, or be torn. Damaged, OSError."""
    return _read(path)[0]


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _read(path: str, owner: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The lines, and how many are damaged."""
    texts = files.tail(path, 2 * LARGEST, owner).split(b"\n")
    lines = [_parsed(text) for text in texts if text.strip(b" \0\r")]
    return [line for line in lines if line], sum(line is None for line in lines)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """None for what is damaged, {} for a line of another version."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    event = line.get("event")
    if not isinstance(event, str):
        return None
    if event not in EVENTS:
        return {}
    line = {**MISSING, **({"jobs": []} if event == "drained" else {}), **line}
    wanted = {**FIELDS, **(OF_A_RELEASE if event == "release" else {})}
    if event in ("drained", "taken back"):
        wanted["number"] = _is_number
    if event == "release" and line.get("outcome") == "serving":
        wanted["number"] = _is_number
    return line if all(is_right(line.get(name)) for name, is_right in wanted.items()) else None


def _is_number(value: Any) -> bool:
    """Of a generation."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value < LATEST


def _are_jobs(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(_is_job(one) for one in value))


def _are_waits(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(_is_wait(one) for one in value))


def _is_wait(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("name"), str) and _is_amount(value.get("seconds"))


def _is_job(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("tenant"), str | None)
        and _is_amount(value.get("seconds"))
    )


# Readers take these for granted.
MISSING: Mapping[str, Any] = {"number": None, "at": 0.0, "seconds": 0.0, "source": None}
FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "number": lambda value: value is None or _is_number(value),
    "source": lambda value: value in (None, 0) or _is_number(value),
    "at": _is_amount,
    "seconds": _is_amount,
    "error": lambda value: isinstance(value, str | None),
    "name": lambda value: isinstance(value, str | None),
    "label": lambda value: isinstance(value, str | None),
    "jobs": _are_jobs,
    "jobs_before": _are_jobs,
    "requests": _are_waits,
    "companions": _are_waits,
    "by": lambda value: isinstance(value, str | None),
    "operator": lambda value: isinstance(value, dict | None),
}
OF_A_RELEASE: Mapping[str, Callable[[Any], bool]] = {
    "outcome": lambda value: isinstance(value, str),
    "release": lambda value: isinstance(value, dict | None),
}
