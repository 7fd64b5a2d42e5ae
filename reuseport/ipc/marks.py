"""Marks: how far each tenant has moved, in a file that workers map and the master reads.

A mark outlives the worker that set it, so that a tenant never goes back. The file is a hash table with open addressing;
its header says whether there is anything to route at all, which is all that a request costs while nothing drains.

Reading takes no lock: a record's words are aligned and written one by one, its key last, and a reader looks at the key
again afterwards. Writing happens under a record lock on the file's first byte. When nothing drains the master wipes the
table; in between a record is used again when its mark says nothing any more: not above the oldest living generation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from reuseport.ipc.shared import WORD, SharedFile, Words, mapped

RECORDS = 1 << 18
PROBES = 256  # records looked at for one tenant
WORDS = 4  # of a record, 64 bits each
HEADER = 8  # words
SIZE = (HEADER + RECORDS * WORDS) * 8

# The header.
VERSION = 0  # of the table that the master has published; 0: there is nothing to route
OLDEST = 1  # the oldest living generation
MADE = 2  # records made since the last wipe

# A record.
_KEY, _MOVED, _STAYS, _UNTIL = range(WORDS)
_EMPTY, _BUSY = 0, 1  # as keys: tenants' numbers begin with 2


class Full(Exception):
    """More tenants have moved since the oldest drain began than the table holds."""


class Numbers(Protocol):
    """64-bit numbers by their index: mapped memory in a worker, a file in the master."""

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Marks:
    """A worker's view of the table. `fd` stays open for good: closing it would drop the write lock.

    `lock` is a native lock that keeps this process's threads apart, which record locks do not.
    """

    def __init__(self, words: Numbers, fd: int, lock: Any) -> None:
        self.words = words
        self._fd = fd
        self._lock = lock

    @classmethod
    def of(cls, fd: int, lock: Any) -> Marks:
        """Map the file. OSError."""
        return cls(memoryview(mapped(fd, SIZE)).cast("Q"), fd, lock)

    def moved(self, tenant: int) -> int:
        """The generation that the tenant has moved to, 0 if it has not."""
        at = self._find(tenant)
        if not at:
            return 0
        moved = self.words[at + _MOVED]
        return moved if self.words[at + _KEY] == tenant else 0

    def stays(self, tenant: int, now: float) -> int:
        """The generation in which the tenant stays for the time being, 0 if it does not. `now`: CLOCK_MONOTONIC."""
        at = self._find(tenant)
        if not at:
            return 0
        stays = self.words[at + _STAYS] if self.words[at + _UNTIL] > now * 1e9 else 0
        return stays if self.words[at + _KEY] == tenant else 0

    def move(self, tenant: int, generation: int) -> None:
        """The tenant has moved to `generation`, unless it was further already. Full if there is no room."""
        with self._writing():
            at = self._find(tenant) or self._make(tenant)
            self.words[at + _MOVED] = max(generation, self.words[at + _MOVED])
            self.words[at + _UNTIL] = 0

    def stay(self, tenant: int, generation: int, until: float) -> None:
        """The tenant stays in `generation` until then (CLOCK_MONOTONIC). Full if there is no room."""
        with self._writing():
            at = self._find(tenant) or self._make(tenant)
            self.words[at + _UNTIL] = 0
            self.words[at + _STAYS] = generation
            self.words[at + _UNTIL] = int(until * 1e9)

    # Inside.

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone. A worker that holds this lock waits for nothing, so others wait for it for microseconds."""
        with self._lock:
            fcntl.lockf(self._fd, fcntl.LOCK_EX, 1)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)

    def _find(self, tenant: int) -> int:
        """Where the tenant's record begins, 0 if it has none."""
        words = self.words
        index = tenant % RECORDS
        for _ in range(PROBES):
            at = HEADER + index * WORDS
            key = words[at]
            if key == tenant:
                return at
            if key == _EMPTY:
                return 0
            index = (index + 1) % RECORDS
        return 0

    def _make(self, tenant: int) -> int:
        words = self.words
        index = tenant % RECORDS
        for _ in range(PROBES):
            at = HEADER + index * WORDS
            # A record that its writer died over counts as stale too.
            if words[at] in (_EMPTY, _BUSY) or (words[at + _MOVED] <= words[OLDEST] and not words[at + _UNTIL]):
                words[at + _KEY] = _BUSY
                words[at + _MOVED] = words[at + _STAYS] = words[at + _UNTIL] = 0
                words[at + _KEY] = tenant
                words[MADE] += 1
                return at
            index = (index + 1) % RECORDS
        raise Full(f"more than {RECORDS} tenants have moved, or too many that lie together")


class Table(Marks):
    """The master's view: it maps nothing, and waits for no worker."""

    def __init__(self, path: str) -> None:
        self.file = SharedFile(path, SIZE, create=True)
        super().__init__(Words(self.file), self.file.fileno(), threading.Lock())

    def publish(self, version: int, oldest: int) -> None:
        """From now on the table of this version counts; 0: there is nothing to route."""
        self.words[OLDEST] = oldest
        self.words[VERSION] = version

    def wipe(self) -> bool:
        """Forget all marks. Only while there is nothing to route. False where a process has the write lock, for which
        the master does not wait: that process may have been stopped, or may never let go of it."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        try:
            if self.words[MADE]:
                self.file.write(HEADER * WORD, bytes(SIZE - HEADER * WORD))
                self.words[MADE] = 0
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1)
        return True
