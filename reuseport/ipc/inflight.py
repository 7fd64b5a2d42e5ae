"""The requests that each worker has now, and which of them are suspected of ending workers, in shared memory.

A worker that is killed says nothing. So it writes each request's *name* (method, target, Host, tenant) into a seat of
its own row before the application gets the request, and marks the seat when the request has ended. The master reads
the row when it collects the death, decides (`core/quarantine.py`), and publishes its decision in the same file.

A proxy sends a request again within a millisecond of a worker's death, often before the master has run. A worker must
know of a sibling's death without the master. The kernel tells it: each worker holds a robust mutex in this file
(pthread_mutexattr_setrobust(3)), and the kernel marks that mutex (FUTEX_OWNER_DIED, get_robust_list(2)) when it tears
down the memory of the process. It closes the descriptors of the process after that. So a client that has seen its
connection break always sends its next request to a worker that can see the mark.

The file is sparse: the master allocates a row when it gives the row to a worker.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

from reuseport.core.model import Key
from reuseport.ipc.scoreboard import ROWS

NAME_BYTES = 160
SEATS = 255  # requests of one worker that can be named at a time
ROW_BYTES = 64 + SEATS * NAME_BYTES  # behind the owner: generation, number
LOCK_BYTES = 48  # a pthread_mutex_t with glibc: 40 on x86-64, 48 on arm64; with musl 40
ENTRIES = 256  # suspects
ENTRY_BYTES = 256

VERSION, COUNT = 0, 8  # offsets: how often the table was changed, odd during a change; how many rows are in use
LOCKS = 64
TABLE = LOCKS + ROWS * LOCK_BYTES
FIRST_ROW = TABLE + ENTRIES * ENTRY_BYTES
FILE_BYTES = FIRST_ROW + ROWS * ROW_BYTES

# The first byte of a name. SENT: it is running, and the head of its response has gone out. COUNTED: it was running when
# its worker died, and the master has counted that death.
ENDED, ANSWERED, RUNNING, SENT, COUNTED = 0, 1, 2, 3, 4
BEGUN = RUNNING, SENT

_HEAD = struct.Struct("=QQ")
_OWNER = struct.Struct("=QQ")
_ENTRY = struct.Struct("=QQQddQ")  # number, number once it is answered, generation, last death, end, flags
_PROVEN, _HEADED = 1, 2
_ANSWERED = 8  # offset in an entry
_OWNER_DIED, _WAITERS = 0x40000000, 0x80000000  # linux/futex.h
_CUT = b"\0\xff"  # before the checksum of a name that is too long; no other name has these bytes
NO_HOST = b"-"
NAMELESS = bytes(NAME_BYTES)

Seat = tuple[Any, slice, int]  # memory, where the name goes, where its mark goes

# A mapping, because CPython assigns a slice of a mapping three times faster than a slice of a bytearray.
_NOWHERE: Seat = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE), slice(0, NAME_BYTES), 0


class Entry(NamedTuple):
    """A suspect as it is published. Times are seconds of CLOCK_MONOTONIC; `until`: 0 if it is not in quarantine."""

    number: int
    answered: bool
    generation: int
    last: float
    until: float
    proven: bool
    headed: bool
    name: bytes


def named(text: bytes) -> bytes:
    """The name made of "METHOD target", Host and tenant, joined by NUL: whole, or cut and with a checksum."""
    if len(text) < NAME_BYTES:
        return (b"\2" + text).ljust(NAME_BYTES, b"\0")
    return b"\2%b%b%b" % (text[: NAME_BYTES - 7], _CUT, crc32(text).to_bytes(4, "big"))


def of_tenant(name: bytes, tenant: str) -> bytes:
    """The name of the same request of this tenant."""
    return named(b"%b\0%b" % (name[1:].rstrip(b"\0"), tenant.replace("\0", " ").encode(errors="replace")))


def described(name: bytes) -> dict[str, str]:
    """What a name says: `request` ("GET /path?query"), `host`, `tenant`; "" for what it does not say."""
    cut = name[-6:-4] == _CUT
    parts = name[1:-6].split(b"\0") if cut else name[1:].rstrip(b"\0").split(b"\0")
    request, host, tenant = (part.decode(errors="replace") for part in (*parts, b"", b"", b"")[:3])
    return {"request": request + "..." * cut, "host": "" if host == NO_HOST.decode() else host, "tenant": tenant}


class Row:
    """The seats of one worker, which alone takes them. Thread-safe: a list's pop and append are atomic."""

    def __init__(self, memory: Any, at: int) -> None:
        self._memory = memory
        self._free = [
            (memory, slice(begin, begin + NAME_BYTES), begin)
            for begin in range(at + 64 + (SEATS - 1) * NAME_BYTES, at + 63, -NAME_BYTES)
        ]

    def take(self) -> Seat:
        """A seat; beyond the last one, memory that nobody reads."""
        try:
            return self._free.pop()
        except IndexError:
            return nowhere()

    def leave(self, seat: Seat) -> None:
        """Give back a seat, whose request has ended or does not count any more."""
        memory, _, mark = seat
        if memory[mark] in BEGUN:
            memory[mark] = ENDED
        if memory is self._memory:
            self._free.append(seat)


def nowhere() -> Seat:
    """A seat that nobody reads, always the same one."""
    return _NOWHERE


class InFlight:
    """The mapped file. FileNotFoundError where no master has made it."""

    def __init__(self, path: str, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o600)
        try:
            if os.fstat(self._fd).st_size < FILE_BYTES:
                if not create:
                    raise FileNotFoundError(errno.ENOENT, "a file of another version", path)
                os.ftruncate(self._fd, FILE_BYTES)
                os.posix_fallocate(self._fd, 0, FIRST_ROW)
            self.memory = mmap.mmap(self._fd, FILE_BYTES)
        finally:
            if not create:
                os.close(self._fd)
        self._words = memoryview(self.memory)[:FIRST_ROW].cast("Q")

    # --- rows -------------------------------------------------------------------------------------------------------

    def give(self, index: int, owner: Key | None) -> None:
        """Empty a row: from now on it is this worker's, or nobody's. OSError where the disk has no room for it."""
        at = _row(index)
        if owner is not None:
            os.posix_fallocate(self._fd, at, ROW_BYTES)
            self.memory[at : at + ROW_BYTES] = bytes(ROW_BYTES)
            if self._words[COUNT // 8] <= index:
                self._words[COUNT // 8] = index + 1
            _OWNER.pack_into(self.memory, at, *owner)
        elif self.owner(index) is not None:
            self.memory[at : at + 64] = bytes(64)
        self.memory[_lock(index) : _lock(index) + LOCK_BYTES] = bytes(LOCK_BYTES)

    def row(self, index: int) -> Row:
        """The seats of a worker's own row."""
        return Row(self.memory, _row(index))

    def owner(self, index: int) -> Key | None:
        """Whose row it is."""
        if index >= self.count:
            return None
        generation, number = _OWNER.unpack_from(self.memory, _row(index))
        return Key(generation, number) if generation else None

    @property
    def count(self) -> int:
        """How many rows have been in use."""
        return min(self._words[COUNT // 8], ROWS)

    def hold(self, index: int) -> bool:
        """Have the kernel mark the row when the calling thread, the main one, ends. False where it cannot."""
        libc = ctypes.CDLL(None)
        attributes = ctypes.create_string_buffer(64)
        mutex = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.memory, _lock(index))))
        try:
            return not (
                libc.pthread_mutexattr_init(attributes)
                or libc.pthread_mutexattr_setpshared(attributes, 1)  # PTHREAD_PROCESS_SHARED
                or libc.pthread_mutexattr_setrobust(attributes, 1)  # PTHREAD_MUTEX_ROBUST
                or libc.pthread_mutex_init(mutex, attributes)
                or libc.pthread_mutex_trylock(mutex)
            )
        except AttributeError:
            return False

    def is_dead(self, index: int) -> bool:
        """Whether the kernel has marked it, and no master has collected the death yet."""
        # The mutex's word is the first with glibc, the second with musl.
        words = struct.unpack_from("=II", self.memory, _lock(index))
        return any(word & ~_WAITERS == _OWNER_DIED for word in words)

    def count_death(self, index: int) -> None:
        """Mark what the dead worker was running as COUNTED."""
        begin = _row(index) + 64
        for at in range(begin, begin + SEATS * NAME_BYTES, NAME_BYTES):
            if self.memory[at] in BEGUN:
                self.memory[at] = COUNTED

    def names(self, index: int, *wanted: int) -> set[bytes]:
        """The names in the row's seats that have one of these marks; RUNNING is what their first byte says."""
        at = _row(index) + 64
        marks = self.memory[at : at + SEATS * NAME_BYTES : NAME_BYTES]
        found = set()
        for seat, one in enumerate(marks):
            if one in wanted:
                begin = at + seat * NAME_BYTES
                text = self.memory[begin + 1 : begin + NAME_BYTES]
                if text[0]:
                    found.add(b"\2" + text)
        return found

    # --- the table ----------------------------------------------------------------------------------------------------

    def entries(self) -> dict[int, Entry]:
        """The suspects, by their place in the table."""
        found = {}
        for index in range(ENTRIES):
            at = TABLE + index * ENTRY_BYTES
            number, answered, generation, last, until, flags = _ENTRY.unpack_from(self.memory, at)
            if number:
                begin = at + _ENTRY.size
                name = self.memory[begin : begin + NAME_BYTES]
                proven, headed = bool(flags & _PROVEN), bool(flags & _HEADED)
                found[index] = Entry(number, answered == number, generation, last, until, proven, headed, name)
        return found

    def publish(self, entries: Iterable[tuple[int, Entry]], gone: Iterable[int]) -> None:
        """Write these entries, and remove those at `gone`. Only the master does."""
        self._words[VERSION // 8] |= 1
        for index in gone:
            self._words[(TABLE + index * ENTRY_BYTES) // 8] = 0
        for index, entry in entries:
            at = TABLE + index * ENTRY_BYTES
            new = self._words[at // 8] != entry.number
            answered = 0 if new else self._words[(at + _ANSWERED) // 8]
            facts = entry.generation, entry.last, entry.until, _PROVEN * entry.proven | _HEADED * entry.headed
            _ENTRY.pack_into(self.memory, at, entry.number, answered, *facts)
            self.memory[at + _ENTRY.size : at + _ENTRY.size + NAME_BYTES] = entry.name
        self._words[VERSION // 8] += 1

    def answer(self, index: int, number: int) -> None:
        """A request of the suspect's kind has been answered."""
        self._words[(TABLE + index * ENTRY_BYTES + _ANSWERED) // 8] = number

    # --- what has changed ---------------------------------------------------------------------------------------------

    def window(self) -> slice:
        """What changes when a worker dies or the table does."""
        return slice(0, LOCKS + self.count * LOCK_BYTES)

    @staticmethod
    def is_settled(window: bytes) -> bool:
        """Whether the table was whole when this was read."""
        return not _HEAD.unpack_from(window)[0] & 1


def _row(index: int) -> int:
    if not 0 <= index < ROWS:
        raise IndexError(f"there are {ROWS} rows, not {index + 1}")
    return FIRST_ROW + index * ROW_BYTES


def _lock(index: int) -> int:
    if not 0 <= index < ROWS:
        raise IndexError(f"there are {ROWS} rows, not {index + 1}")
    return LOCKS + index * LOCK_BYTES
