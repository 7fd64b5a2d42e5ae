"""Which jobs a worker has: written down before anything of a job runs, in a file that workers map and the master reads.

A worker tells the master of its jobs by message, and not at once. One that is killed has told nothing of what it began
within its last moments; what it has written here can still be read. Row i belongs to whom row i of the scoreboard
belongs to. It has room for the jobs that were begun last: older ones have been told of long ago.

A job may begin and end in any thread. Its number decides which entry is its own, so no two that live share one, unless
there are more than entries. An entry's number is stored last, and taken away first: half of an entry is none.
"""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

from reuseport import names
from reuseport.core.model import Key
from reuseport.ipc.scoreboard import ROWS
from reuseport.ipc.shared import WORD, SharedFile, mapped

ENTRIES = 8
ENTRY_BYTES = 160
HEADER_BYTES = 64
ROW_BYTES = HEADER_BYTES + ENTRIES * ENTRY_BYTES
NAME_BYTES, TENANT_BYTES = 96, 44
AHEAD = 86400.0  # seconds: a clock that was set back leaves times in the future behind
# Behind an entry's number: when it began (Unix time), whether it is for a process, has a tenant, and how long both are.
_FACTS = struct.Struct("=d??BB")
_TEXT = 8 + _FACTS.size
# The header: the worker's generation, 0 for nobody's row, and its number. The master writes it.


class Entry(NamedTuple):
    """A job that has begun and not ended. `asked`: it was asked for, and its process was not known yet."""

    number: int
    name: str
    tenant: str | None
    started: float
    asked: bool


class Row:
    """The jobs of one worker, which alone calls `add` and `remove`. The master has a copy that it cannot write to, and
    believes nothing in it: names are made printable, and a time that cannot be is replaced."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._bytes = view.cast("B")

    def add(self, number: int, name: str, tenant: str | None, started: float, asked: bool) -> None:
        at = _at(number)
        self._view[at // 8] = 0
        called = name.encode(errors="replace")[:NAME_BYTES]
        whose = b"" if tenant is None else tenant.encode(errors="replace")[:TENANT_BYTES]
        _FACTS.pack_into(self._bytes, at + 8, started, asked, tenant is not None, len(called), len(whose))
        self._bytes[at + _TEXT : at + _TEXT + len(called)] = called
        self._bytes[at + _TEXT + NAME_BYTES : at + _TEXT + NAME_BYTES + len(whose)] = whose
        self._view[at // 8] = number

    def remove(self, number: int) -> None:
        at = _at(number)
        if self._view[at // 8] == number:
            self._view[at // 8] = 0

    @property
    def owner(self) -> Key | None:
        return Key(self._view[0], self._view[1]) if self._view[0] else None

    def entries(self) -> list[Entry]:
        """Those that had not ended, oldest first. The worker can have written anything, so names are made printable."""
        return sorted(filter(None, map(self._entry, range(ENTRIES))), key=lambda entry: entry.started)

    def _entry(self, index: int) -> Entry | None:
        at = _at(index)
        if not self._view[at // 8]:
            return None
        started, asked, owned, long, wide = _FACTS.unpack_from(self._bytes, at + 8)
        called = bytes(self._bytes[at + _TEXT : at + _TEXT + min(long, NAME_BYTES)])
        whose = self._bytes[at + _TEXT + NAME_BYTES : at + _TEXT + NAME_BYTES + min(wide, TENANT_BYTES)]
        tenant = names.name(bytes(whose).decode(errors="replace")) if owned else None
        now = time.time()
        if not 0 <= started <= now + AHEAD:
            started = now
        return Entry(self._view[at // 8], names.name(called.decode(errors="replace")), tenant, started, asked)


class Begun:
    """The file, as the master sees it. FileNotFoundError where no master has made it and `create` is false."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        self.file = SharedFile(path, ROWS * ROW_BYTES, create=create)

    def row(self, index: int) -> Row:
        """A copy of row `index`. IndexError if there is none."""
        return Row(self.file.words(_row(index), ROW_BYTES // WORD))

    def give(self, index: int, owner: Key | None) -> None:
        """Empty a row: from now on it is that worker's, or nobody's."""
        header = struct.pack("=QQ", *(owner or (0, 0)))
        self.file.write(_row(index), header.ljust(ROW_BYTES, b"\0"))

    def owned(self) -> list[int]:
        """The rows that belong to a worker."""
        owners = self.file.words(0, ROWS * ROW_BYTES // WORD)[:: ROW_BYTES // WORD].tolist()
        return [index for index, owner in enumerate(owners) if owner]


def my_row(fd: int | None, index: int) -> Row:
    """The row of the calling worker; memory of its own if its master is too old to have the file."""
    if fd is None:
        return Row(memoryview(bytearray(ROW_BYTES)).cast("Q"))
    at = _row(index)
    return Row(memoryview(mapped(fd, ROWS * ROW_BYTES))[at : at + ROW_BYTES].cast("Q"))


def _row(index: int) -> int:
    if not 0 <= index < ROWS:
        raise IndexError(f"there are {ROWS} rows, not {index + 1}")
    return index * ROW_BYTES


def _at(number: int) -> int:
    return HEADER_BYTES + number % ENTRIES * ENTRY_BYTES
