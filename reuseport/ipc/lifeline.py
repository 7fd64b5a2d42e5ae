"""Whether anybody whom this process has forked still lives, grandchildren and their forks included (`Lifeline`), and
whether a process is the last one that shares an import (`Family`).

Each is a pipe whose writing end these processes hold. Whatever ends a process closes it, so there is nothing to be told
and nobody to be counted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from posix import close  # not gevent's os.close, which leaves it to a loop that never runs in a zygote


class Lifeline:
    def __init__(self) -> None:
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        close(writing)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Whoever is forked meanwhile holds it for life. OSError without a descriptor for it."""
        # Opened anew for each fork (proc_pid_fd(5)): a writing end of our own would look like somebody who lives.
        writing = os.open(f"/proc/self/fd/{self._reading}", os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        forker = os.getpid()
        try:
            yield
        finally:
            if os.getpid() == forker:
                close(writing)

    def anybody(self) -> bool:
        try:
            return os.read(self._reading, 1) != b""
        except BlockingIOError:
            return True  # nothing to read, but somebody could still write


class Family:
    """The processes that share an import: the zygote that makes this object, its copies, and all that they fork.

    OSError without descriptors for it.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # Two that leave at the same time can both find that nobody else is left. The first to read this is the last.
        self._last = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def leave(self) -> bool:
        """The calling process leaves. Whether it is the last one; no two processes of a family get True."""
        close(self._writing)
        try:
            os.read(self._reading, 1)
            os.eventfd_read(self._last)
        except BlockingIOError:
            return False
        return True

    def forget(self) -> None:
        """In a child that the application has forked: it is none of them."""
        for fd in (self._reading, self._writing, self._last):
            close(fd)
