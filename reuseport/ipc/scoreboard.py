"""The scoreboard: one row of 64-bit counters for each worker, in a file that workers map and the master reads.

Only the worker that owns a row writes it, so no lock is needed: an aligned 64-bit store is atomic on every platform
that Linux and CPython share, and a reader that sees one counter a moment before another does no harm. The row
outlives its worker until the master gives it to another, so that the last figures of a dead worker can still be read.

Counters only ever grow, but for those marked as gauges.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from reuseport.ipc.shared import SharedFile, mapped

ROWS = 2048
FIELDS = 32
ROW_BYTES = FIELDS * 8

TURNED = 0  # gauge: CLOCK_MONOTONIC in nanoseconds when the worker's loop last turned; 0 before its loop runs
REQUESTS = 1  # requests of clients that were answered or failed, whatever the outcome
ACTIVE = 2  # gauge: requests the application is working on now
CONNECTIONS = 3  # gauge: open client connections
ACCEPTED = 4  # connections accepted from the worker's own slots
STOLEN = 5  # connections accepted from a sibling's slot
ERRORS = 6  # responses with a 5xx status, and requests that ended in an exception
RSS = 7  # gauge: resident memory in bytes
PSS = 8  # gauge: proportional memory in bytes
JOBS = 9  # gauge: registered jobs now
BYTES_OUT = 10  # response bytes handed to the kernel
LOOKS = 11  # looks at siblings' slots
TAKEN = 12  # connections handed over to this worker
WAITING = 13  # gauge: requests that wait for a thread (--threads); they are among the active ones
UNFINISHED = 14  # requests that ended before there was a status
UPGRADED = 15  # connections that the application took over (1xx)
REDIRECTIONS = 16  # responses with a 3xx status
CLIENT_ERRORS = 17  # responses with a 4xx status
SERVER_ERRORS = 18  # responses with a 5xx status
SUCCESSES = 19  # responses with a 2xx status, as of the last `settle`
QUARANTINED = 20  # requests refused because their like has ended workers
WARMUPS = 21  # warm-up requests that have ended (--warmup); no other field counts them
WARMUP_ERRORS = 22  # those among them that were answered 5xx or ended in an exception
# Fields 23 to 31 are free. The order is an ABI between a master and the zygotes of other versions: append only.

NAMES = {
    "requests_total": REQUESTS,
    "requests_active": ACTIVE,
    "connections": CONNECTIONS,
    "accepted": ACCEPTED,
    "stolen": STOLEN,
    "errors": ERRORS,
    "rss": RSS,
    "pss": PSS,
    "jobs": JOBS,
    "bytes_out": BYTES_OUT,
    "looks": LOOKS,
    "taken": TAKEN,
    "requests_waiting": WAITING,
    "unfinished": UNFINISHED,
    "upgraded": UPGRADED,
    "redirections": REDIRECTIONS,
    "client_errors": CLIENT_ERRORS,
    "server_errors": SERVER_ERRORS,
    "successes": SUCCESSES,
    "quarantined": QUARANTINED,
    "warmups": WARMUPS,
    "warmup_errors": WARMUP_ERRORS,
}
GAUGES = frozenset({TURNED, ACTIVE, CONNECTIONS, RSS, PSS, JOBS, WAITING})
# By a status's first digit. Successes, the most, are not counted: they are what is left of the requests.
CLASSES = (UNFINISHED, UPGRADED, None, REDIRECTIONS, CLIENT_ERRORS, *(SERVER_ERRORS,) * 5)


class Scoreboard:
    """The file, as the master sees it. FileNotFoundError where no master has made it and `create` is false."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.file = SharedFile(path, ROWS * ROW_BYTES, create=create)

    def row(self, index: int) -> memoryview:
        """A copy of the counters of row `index`. IndexError if there is none."""
        return self.file.words(_row(index), FIELDS)

    def write(self, index: int, counters: Iterable[int]) -> None:
        """Write a row that belongs to no worker."""
        self.file.write(_row(index), array("Q", counters).tobytes())

    def clear(self, index: int) -> None:
        """Zero a row before a new worker gets it."""
        self.file.write(_row(index), bytes(ROW_BYTES))


def my_row(fd: int, index: int) -> memoryview:
    """The row of the calling worker, which every process that maps the file shares: index it with the field numbers
    above."""
    at = _row(index)
    return memoryview(mapped(fd, ROWS * ROW_BYTES))[at : at + ROW_BYTES].cast("Q")


def _row(index: int) -> int:
    if not 0 <= index < ROWS:
        raise IndexError(f"the scoreboard has {ROWS} rows, not {index + 1}")
    return index * ROW_BYTES


def settle(row: Any) -> None:
    """Work out the successes. Only for whose row it is, or when that one is dead: others may see half of a count.

    One that was killed between the halves must not take a success back.
    """
    row[SUCCESSES] = max(row[SUCCESSES], row[REQUESTS] - sum(row[UNFINISHED:SUCCESSES]))

