"""Descriptors that the master keeps for the moment when it has no others.

A master without descriptors cannot accept a command line, read the output of a failed release, or signal a process that
has no pidfd yet. The master opens /dev/null some times at its start. `take` closes one of them when a
call fails for want of a descriptor, and repeats the call. `refill` opens them again, as far as there is room.

The descriptors of a process are one table, so there is one reserve.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from reuseport.ipc.shortage import DESCRIPTORS, SHORTAGE

T = TypeVar("T")

SIZE = 8
# Clients of the command line hold theirs until they have been answered, so they must leave some for everything else.
FOR_ACTS = 4

_held: list[int] = []


def refill() -> None:
    """Open what is missing in the reserve. Without room nothing happens."""
    try:
        while len(_held) < SIZE:
            _held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in SHORTAGE:
            raise


def take(call: Callable[[], T], leave: int = 0) -> T:
    """What `call` returns, which may need one descriptor of the reserve. The caller refills it after closing that one.

    OSError as `call` raises it. `leave`: descriptors that stay in the reserve.
    """
    try:
        return call()
    except OSError as error:
        if error.errno not in DESCRIPTORS or len(_held) <= leave:
            raise
    os.close(_held.pop())
    try:
        return call()
    except BaseException:
        refill()
        raise


def read(path: str, size: int = -1, offset: int = 0) -> bytes:
    """The contents of a file, from `offset` (from the end, if negative), `size` bytes at most. OSError."""
    fd = take(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        with open(fd, "rb", closefd=False) as file:
            if offset < 0:
                offset = max(0, os.fstat(fd).st_size + offset)
            if offset:
                file.seek(offset)
            return file.read(size)
    finally:
        os.close(fd)
        refill()


def use(call: Callable[[], T]) -> T:
    """As `take`, for a call that closes its descriptor before it returns."""
    try:
        return take(call)
    finally:
        refill()


def entries(directory: str) -> list[str]:
    """As os.listdir. OSError."""
    return use(lambda: os.listdir(directory))
