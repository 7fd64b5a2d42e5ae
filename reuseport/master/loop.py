"""The master's loop: one blocking call, and nothing else in the master ever blocks.

Whatever can wake the master is a file descriptor (signals by their wake-up fd, exits by pidfds, messages, the control
socket) or a time. A callback that raises is a defect, but one that costs its own event and not the whole master.
"""

from __future__ import annotations

import heapq
import select
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

NO_DESCRIPTORS = 0.1  # seconds that whoever wants one waits when there are none left


class Loop:
    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._resting: dict[int, Callable[[], None]] = {}  # descriptors that are not watched for the moment
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.on_error: Callable[[str], None] = sys.stderr.write  # gets the traceback of a callback that raised

    def watch(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call `callback` whenever the fd is ready. A second call for an fd changes what is watched for."""
        self._resting.pop(fd, None)
        if fd in self._callbacks:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        self._resting.pop(fd, None)

    def forget(self, fd: int) -> None:
        """Must come before the fd is closed: the kernel watches the open file, not its number (epoll(7), Q6)."""
        self._resting.pop(fd, None)
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def rest(self, fd: int, seconds: float = NO_DESCRIPTORS) -> None:
        """Do not look at the fd for so long: what it is ready for cannot be had now. An fd that rests goes on resting.

        The fd is one that is watched for reading. It may be closed meanwhile, after `forget`.
        """
        callback = self._callbacks.get(fd)
        if callback is None:
            return
        self.forget(fd)
        self._resting[fd] = callback

        def end() -> None:
            if self._resting.get(fd) is callback:
                self.watch(fd, callback)

        self.later(seconds, end)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), callback))

    def wait(self, until: float | None) -> None:
        """Sleep until something is ready or it is `until` (monotonic seconds), and call the callbacks that are due."""
        times = [t for t in (until, self._timers[0][0] if self._timers else None) if t is not None]
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        for fd, _ in self._epoll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None:  # an earlier callback of this round may have forgotten it
                self.call(callback)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            self.call(heapq.heappop(self._timers)[2])

    def call(self, callback: Callable[[], None]) -> None:
        """As everything is called that comes out of the loop."""
        try:
            callback()
        except Exception:  # noqa: BLE001
            self.on_error(traceback.format_exc())
