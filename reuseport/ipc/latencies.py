"""Latencies: one histogram for each worker, in a file that workers map and the master reads, beside the scoreboard.

Row i belongs to whom row i of the scoreboard belongs to, and only that worker counts in it, under the same rule: an
aligned 64-bit store is atomic. The bounds are those that people ask for (1, 2.5, 5, 10 ms) with so many between them
that each is at most an eighth more than the one before, so a quantile is wrong by less than that. Sums of histograms
are histograms: nothing is lost in a sum over workers.

A request only notes its latency in a list. Once in a while the list is sorted and counted, at a third of what it costs
to find each latency's bucket when it comes; a worker that is killed takes its last list along.

Which bounds a row was counted by is written into it: a worker of a version with other bounds counts for everything but
latencies.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, MutableSequence, Sequence

from reuseport.ipc.scoreboard import ROWS
from reuseport.ipc.shared import SharedFile, mapped

_STEPS = (
    *(100, 110, 120, 130, 140, 155, 170, 185, 200, 225, 250, 275),
    *(300, 330, 360, 400, 450, 500, 550, 600, 660, 730, 800, 900),
)
# Seconds, from 10 us to an hour. Bucket i has what is more than bound i-1 and at most bound i; the last all else.
BOUNDS = (
    *(step * 10**power / 1e9 for power in range(2, 10) for step in _STEPS),
    *(1000.0, 1100.0, 1200.0, 1350.0, 1500.0, 1650.0, 1800.0, 2000.0, 2250.0, 2500.0, 2750.0, 3000.0, 3300.0, 3600.0),
)
BUCKETS = len(BOUNDS) + 1

FIELDS = 256
ROW_BYTES = FIELDS * 8
# Fields 0 to BUCKETS - 1 are the buckets.
NANOSECONDS = 248  # the sum of all latencies
LAYOUT = 249  # which bounds these are: written by the worker
GENERATION = 250  # whose row it is; 0 for nobody's: written by the master

THIS = 1  # the layout of this version


class Latencies:
    """The file, as the master sees it."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.file = SharedFile(path, ROWS * ROW_BYTES, create=create)

    def row(self, index: int) -> memoryview:
        """A copy of row `index`. IndexError if there is none."""
        return self.file.words(_row(index), FIELDS)

    def write(self, index: int, fields: Iterable[int]) -> None:
        """Write a row that belongs to no worker."""
        self.file.write(_row(index), array("Q", fields).tobytes())

    def owners(self) -> list[int]:
        """The generation that each row belongs to, 0 for none. A worker can have written any number there."""
        owners: list[int] = self.file.words(0, ROWS * FIELDS)[GENERATION::FIELDS].tolist()
        return owners

    def give(self, index: int, generation: int) -> None:
        """Zero a row: from now on it is a worker's of that generation, or nobody's (0)."""
        self.write(index, (generation if field == GENERATION else 0 for field in range(FIELDS)))


def my_row(fd: int | None, index: int) -> memoryview:
    """The row of the calling worker; memory of its own if its master is too old to have the file."""
    if fd is None:
        return memoryview(bytearray(ROW_BYTES)).cast("Q")
    at = _row(index)
    row = memoryview(mapped(fd, ROWS * ROW_BYTES))[at : at + ROW_BYTES].cast("Q")
    row[LAYOUT] = THIS
    return row


def _row(index: int) -> int:
    if not 0 <= index < ROWS:
        raise IndexError(f"there are {ROWS} rows, not {index + 1}")
    return index * ROW_BYTES


def count(row: MutableSequence[int] | memoryview, latencies: list[float]) -> None:
    """Take the latencies (seconds) out of the list and into the row."""
    row[NANOSECONDS] += int(sum(latencies) * 1e9)
    latencies.sort()
    done = 0
    while done < len(latencies):
        bucket = bisect_left(BOUNDS, latencies[done])
        end = bisect_right(latencies, BOUNDS[bucket], done) if bucket < len(BOUNDS) else len(latencies)
        row[bucket] += end - done
        done = end
    latencies.clear()


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The latency in seconds that `share` (0 to 1) of the counted ones do not exceed; None if there are none.

    Within its bucket latencies are taken to lie evenly. Of what exceeds the last bound that is all that is known.
    """
    total = sum(buckets)
    if not total:
        return None
    rank = share * total
    below = 0
    for index, count in enumerate(buckets):
        if count and below + count >= rank:
            if index == len(BOUNDS):
                break
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * (rank - below) / count
        below += count
    return BOUNDS[-1]
