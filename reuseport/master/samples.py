"""Samples: how much was served when, on disk, for the picture that `reuseport history` draws.

A line of JSON every ten seconds, kept for a day, and one every minute, kept for a week. Each of the two is a file that
is only ever appended to; a full one is renamed, in place of the one that was renamed before. So nothing is read or
written at length while the master runs: a start reads all of it, and an answer joins the lines as they are.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.ipc import files
from reuseport.ipc.latencies import BUCKETS, quantile
from reuseport.ipc.scoreboard import ERRORS, REQUESTS
from reuseport.master.figures import COUNTERS, NOTHING, Look, between, look_of

# file, seconds between two lines, lines kept
FINE = ("samples.jsonl", 10.0, 8640)
COARSE = ("samples-by-minute.jsonl", 60.0, 10080)
LARGEST = 32 << 20  # bytes of a file that are read


class Series:
    """Lines one after another, in a file that is renamed to FILE.1 when it has `kept` of them."""

    def __init__(self, path: str, every: float, kept: int, log: files.Log = files.say_nothing) -> None:
        """Read what is there. OSError where the file cannot be written."""
        self.path = path
        self.every = every
        self._kept = kept
        self.lines: deque[tuple[float, bytes]] = deque(maxlen=kept)  # with the Unix time of their end
        for name in (path + ".1", path):
            try:
                read = _read(name, os.geteuid())
            except files.Damaged as error:
                files.tell_damage(name, error, log, "`reuseport history` does not know what was served then")
                read = []
            self.lines.extend(read)
        self._written = len(read)
        self._file = files.appending(self.path)
        self.since: Look | None = None

    def add(self, at: float, sample: dict[str, Any]) -> None:
        """OSError where it could not be written down; it is remembered all the same."""
        line = json.dumps(sample, separators=(",", ":")).encode()
        self.lines.append((at, line))
        if self._written >= self._kept:
            os.replace(self.path, self.path + ".1")
            os.close(self._file)
            self._file = files.appending(self.path)
            self._written = 0
        os.write(self._file, line + b"\n")
        self._written += 1

    def close(self) -> None:
        os.close(self._file)


class Samples:
    """`log(level, text)` hears of trouble with the disk, once."""

    def __init__(self, directory: str, log: Callable[[str, str], None]) -> None:
        """OSError where the directory cannot be written."""
        self._series = [Series(os.path.join(directory, name), every, kept, log) for name, every, kept in (FINE, COARSE)]
        self._log = log
        self._trouble = ""

    def look(self, look: Look) -> None:
        """Write down what has become due."""
        for series in self._series:
            if series.since is None:
                series.since = look  # what is sampled is what is served from now on
            if look.time - series.since.time < series.every - 0.5:
                continue
            at = round(time.time(), 3)
            sample = {"at": at, **sample_of(series.since, look)}
            series.since = look
            try:
                series.add(at, sample)
                self._trouble = ""
            except OSError as error:
                if error.strerror != self._trouble:
                    self._trouble = error.strerror or str(error)
                    self._log("error", f"samples could not be written to {series.path}: {self._trouble}")

    def estate(self) -> dict[str, Any]:
        """What the master goes on with behind an exec: since when it samples."""
        return {series.path: series.since for series in self._series}

    def inherit(self, left: Mapping[str, Any]) -> None:
        for series in self._series:
            if since := left.get(series.path):
                series.since = look_of(since)

    def close(self) -> None:
        for series in self._series:
            series.close()

    def encoded(self) -> bytes:
        """All of them, oldest first, as one list of JSON: by the minute, then by ten seconds."""
        fine, coarse = (series.lines for series in self._series)
        begin = fine[0][0] if fine else float("inf")
        lines = [line for at, line in coarse if at < begin]
        lines.extend(line for _, line in fine)
        return b"[" + b",".join(lines) + b"]"


def read(directory: str) -> list[dict[str, Any]]:
    """All samples that a master has left in its state directory, oldest first, as `Samples.encoded` has them."""
    paths = [os.path.join(directory, name) for name, _, _ in (FINE, COARSE)]
    fine, coarse = ([*_read(path + ".1"), *_read(path)] for path in paths)
    begin = fine[0][0] if fine else float("inf")
    return [json.loads(line) for at, line in [*(one for one in coarse if one[0] < begin), *fine]]


def sample_of(first: Look, last: Look) -> dict[str, Any]:
    """What was served between two looks."""
    server = between(first.server, last.server)
    served = {}
    for generation, figures in sorted(last.generations.items()):
        before = first.generations.get(generation, NOTHING)
        if requests := figures[COUNTERS + REQUESTS] - before[COUNTERS + REQUESTS]:
            served[str(generation)] = requests
    return {
        "seconds": round(last.time - first.time, 3),
        "requests": server[COUNTERS + REQUESTS],
        "errors": server[COUNTERS + ERRORS],
        "p50": rounded(quantile(server[:BUCKETS], 0.5)),
        "p99": rounded(quantile(server[:BUCKETS], 0.99)),
        "generations": served,
    }


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _read(path: str, owner: int | None = None) -> list[tuple[float, bytes]]:
    """The lines of a file that may not be there, or be torn. Damaged, OSError."""
    found = []
    for line in files.tail(path, LARGEST, owner).split(b"\n"):
        try:
            sample = json.loads(line)
            whole = all(math.isfinite(sample.get(name, 0)) for name in ("at", "seconds", "requests", "errors"))
            if whole and isinstance(sample.get("generations", {}), dict):
                found.append((float(sample["at"]), line))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    return found
