"""Whether anybody whom this process has forked still lives, grandchildren and their forks included.

A pipe that only they hold the writing end of. Whatever ends a process closes it, so there is nothing to be told and
nobody to be counted.
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
