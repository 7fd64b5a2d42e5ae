"""The master's loop: one blocking call, and nothing else in the master ever blocks.

Whatever can wake the master is a file descriptor (signals by their wake-up fd, exits by pidfds, messages, the control
socket) or a time.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def watch(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call `callback` whenever the fd is ready. A second call for an fd changes what is watched for."""
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def callback(self, fd: int) -> Callable[[], None]:
        """What is called when the fd is ready. KeyError if it is not watched."""
        return self._callbacks[fd]

    def forget(self, fd: int) -> None:
        """Must come before the fd is closed: the kernel watches the open file, not its number (epoll(7), Q6)."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def wait(self, until: float | None) -> None:
        """Sleep until something is ready or it is `until` (monotonic seconds), and call the callbacks that are due."""
        times = [t for t in (until, self._timers[0][0] if self._timers else None) if t is not None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        for fd, _ in self._epoll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this round may have forgotten it
                callback()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
