"""Which client connections have something to read: an epoll set of the worker's own, edge-triggered.

The loop watches the set as one descriptor, and `Readers._turn` calls what has become readable. Why not a watcher of the
loop for each connection: libev's set is level-triggered, and the kernel puts a descriptor that such a set has reported
back to the end of its ready list, to look at it once more. A client whose next request is a moment late is dropped
from the list then, and comes last again, so that a few of many busy clients wait for two rounds of all the others.
With an edge a descriptor enters the list when bytes arrive, in the order in which they do. Between two requests of a
connection there is no system call for it, and all that are ready cost the loop one callback.

An edge is told once (epoll(7), question 9). So these are the rules:

- Whoever is called reads, or stops the reader. `start` looks again by itself, whatever has come in between.
- A read of `Reader.full` bytes or more may have left something behind, and is followed by `again`. That puts the
  descriptor at the end of the list, so a client that sends without end has its turn like any other.
- To be called with nothing to read must be harmless: a number in what the kernel reports can be that of a connection
  which was closed a moment ago, and another's by now.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gevent import monkey

epoll = monkey.get_original("select", "epoll")
EPOLLIN, EPOLLPRI, EPOLLRDHUP, EPOLLET = 0x1, 0x2, 0x2000, 1 << 31
EDGES = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET

READ = 1  # of a loop's io watcher
TURN = 64  # connections called before the loop turns, as many as are accepted at once


class Reader:
    """One descriptor's place in the set, with what is called when there is something to read.

    `full`: a read of fewer bytes than this has left nothing behind.
    """

    __slots__ = ("_readers", "callback", "fd", "full")

    def __init__(self, readers: Readers, fd: int, callback: Callable[[], Any], full: int) -> None:
        self._readers = readers
        self.fd = fd
        self.full = full
        self.callback: Callable[[], Any] | None = callback
        try:
            readers.set.register(fd, EDGES)
        except FileExistsError:
            readers.set.modify(fd, EDGES)
        readers.by_fd[fd] = self

    def start(self, callback: Callable[[], Any]) -> None:
        """From now on call this when there is something to read, and if there is something already."""
        self.callback = callback
        self.again()

    def stop(self) -> None:
        """Call nobody."""
        self.callback = None

    def again(self) -> None:
        """Call once more if there is more to read, when the others have had their turn."""
        if self.callback is not None:
            self._readers.set.modify(self.fd, EDGES)  # tells of what is there as if it had just come

    def leave(self) -> None:
        """Take the descriptor out of the set, for good: its open file will live on in other hands."""
        self.callback = None
        if self._readers.by_fd.get(self.fd) is self:
            del self._readers.by_fd[self.fd]
            self._readers.set.unregister(self.fd)

    def close(self) -> None:
        """The descriptor is about to be closed, by which it leaves the set."""
        self.callback = None
        if self._readers.by_fd.get(self.fd) is self:
            del self._readers.by_fd[self.fd]


class Readers:
    """The set. It must be made after the fork: a child would share it."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self.set = epoll()
        self.by_fd: dict[int, Reader] = {}
        self._watcher = hub.loop.io(self.set.fileno(), READ)
        self._watcher.start(self._turn)

    def watch(self, fd: int, callback: Callable[[], Any], full: int) -> Reader:
        """Put the descriptor into the set. OSError when the kernel has no room for it.

        One that is in it has changed hands: from now on its former reader is nobody's.
        """
        return Reader(self, fd, callback, full)

    def close(self) -> None:
        """Call nobody any more. In a forked child this leaves the set, which is the parent's, as it is."""
        self.by_fd.clear()
        self._watcher.stop()
        self.set.close()

    def _turn(self) -> None:
        by_fd = self.by_fd
        ready = iter(self.set.poll(0, TURN))
        while True:
            reader = None
            try:
                for fd, events in ready:
                    reader = by_fd.get(fd)
                    if reader is None or reader.callback is None:
                        continue  # closed, or stopped, since the kernel was asked, or before: `start` looks again
                    if events != EPOLLIN:
                        # The stream ends behind the bytes that are there (RDHUP), which is no edge of its own; or a
                        # read stops short at urgent data (PRI).
                        reader.full = 1
                    reader.callback()
                return
            except BaseException:  # noqa: BLE001 - as the loop does: one connection's defect is not the others'
                # Nor is it the set's, which the loop would not look at again.
                self._hub.handle_error(reader or self, *sys.exc_info())
