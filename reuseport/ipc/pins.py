"""Pins: which tenant has jobs in which generation, told by file locks alone.

One byte of a file stands for one tenant in one generation. A process with a job of the tenant holds a shared lock on
it; who wants to know asks for the lock (F_GETLK); who moves the tenant takes an exclusive one over the bytes of all
older generations, which the kernel grants only if nobody has a job in any of them. Nothing is ever written to the file,
so offsets cost nothing.

They are POSIX record locks, which die with their process and only with it, even if it has forked (fcntl(2)). The price:
they are all gone as soon as the process closes any descriptor of the file. So each process opens it once, for good. And
a process never conflicts with itself: it asks its own count first, and an exclusive range never holds its own byte.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from hashlib import blake2b
from typing import Any

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid

GENERATION_BITS = 20
TENANT_BITS = 42  # two tenants that share their bytes are only pinned together
JOBS, REQUESTS = 0, 1  # what the halves of the file stand for

_GENERATIONS = 1 << GENERATION_BITS


def number_of(tenant: str) -> int:
    """A stable number of 64 bits for a tenant, the same in every process; never 0 or 1."""
    return int.from_bytes(blake2b(tenant.encode("utf-8", "surrogatepass"), digest_size=8).digest()) | 2


class Pins:
    """This process's shared locks, in `generation`, and its questions about those of others.

    `lock` is a native lock: jobs begin and end in any thread. `half` is JOBS or REQUESTS.
    """

    def __init__(self, fd: int, half: int, generation: int, lock: Any) -> None:
        self._fd = fd
        self._half = half << (GENERATION_BITS + TENANT_BITS)
        self._generation = generation
        self._lock = lock
        self._counts: dict[int, int] = {}

    def __contains__(self, tenant: int) -> bool:
        """Whether this very process holds the tenant's byte."""
        return tenant in self._counts

    def take(self, tenant: int, *, wait: bool) -> bool:
        """Hold the tenant's byte of this generation once more. False where the tenant is being moved at this moment.

        `wait`: until it has been, or not. Whoever moves a tenant does nothing else meanwhile, and waits for nobody.
        """
        with self._lock:
            count = self._counts.get(tenant, 0)
            if not count and not self._set(fcntl.F_RDLCK, self._at(tenant, self._generation), 1, wait):
                return False
            self._counts[tenant] = count + 1
            return True

    def drop(self, tenant: int) -> None:
        """Hold it once less; the byte is free when nobody in this process holds it."""
        with self._lock:
            count = self._counts[tenant] - 1
            if count:
                self._counts[tenant] = count
            else:
                del self._counts[tenant]
                self._set(fcntl.F_UNLCK, self._at(tenant, self._generation), 1, False)

    def held_in(self, tenant: int, generation: int) -> bool:
        """Whether any process of `generation` holds the tenant's byte, this one included."""
        if generation == self._generation and tenant in self._counts:
            return True
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, self._at(tenant, generation), 1, 0)
        kind, _, _, _, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, request))
        return bool(kind == fcntl.F_RDLCK)

    def claim(self, tenant: int, first: int, end: int) -> bool:
        """Keep everybody from the tenant's bytes of the generations from `first` up to, not including, `end`.

        False if anybody holds one. `end` is this process's own generation at most, whose byte it may hold itself.
        """
        assert end <= self._generation
        return first >= end or self._set(fcntl.F_WRLCK, self._at(tenant, first), end - first, False)

    def unclaim(self, tenant: int, first: int, end: int) -> None:
        if first < end:
            self._set(fcntl.F_UNLCK, self._at(tenant, first), end - first, False)

    def _at(self, tenant: int, generation: int) -> int:
        return self._half | ((tenant >> (64 - TENANT_BITS)) << GENERATION_BITS) | (generation % _GENERATIONS)

    def _set(self, kind: int, start: int, length: int, wait: bool) -> bool:
        request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLK, request)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            if not wait:
                return False
            fcntl.fcntl(self._fd, fcntl.F_SETLKW, request)
        return True
