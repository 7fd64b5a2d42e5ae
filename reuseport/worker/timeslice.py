"""Time slices: how long a greenlet may go on without a wait, while its client is faster than it is.

gevent switches greenlets only where one waits. A read for which bytes are always there does not wait, and neither does
a write for which the kernel always has room. So a client that sends or reads without a pause would stop the worker's
other clients, and the worker's drain. Each loop over such reads or writes therefore calls `TimeSlice.check` each time.

The limit is a time, and neither bytes nor calls. A megabyte in one-byte chunks takes seconds; a megabyte in one piece
takes a fraction of a millisecond. The time also includes what the application does between two calls.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from gevent._hub_local import get_hub_if_exists
from greenlet import getcurrent

# Seconds. One turn of the loop takes about 10 µs, so the noisy client loses about 1 %. Each other request waits for one
# slice of each noisy client at most. `threads.SWITCH_INTERVAL` gives native threads the same.
SECONDS = 0.001
SLICES = 100  # that one TimeSlice gives to several greenlets in one turn of the loop
AFTER_CLIENTS = -1  # a watcher's priority: libev calls clients' watchers, which have 0, first


class TimeSlice:
    """The current time slice of the greenlet that calls `check`.

    All connections of a worker share one. So a greenlet that writes to thousands of them has one slice, not thousands.
    """

    __slots__ = ("_began", "_greenlet", "_hub", "_iteration", "_loop", "_turned")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._loop = hub.loop
        self._iteration = -1  # of the loop, when the slice began
        self._turned = 0.0  # monotonic seconds of the first check in that iteration
        self._began = 0.0  # monotonic seconds
        self._greenlet = 0  # the id of its greenlet: a reference would keep the greenlet from being pooled (see `pool`)

    def check(self, wait: Callable[[], None] | None = None) -> None:
        """Let all other greenlets run, and the loop look for I/O, if the current greenlet has used its time slice.

        A slice begins at the earliest with the first call after the loop has turned. In the hub itself, and in other
        threads, nothing ever waits here. `wait` is called where the caller has its own way to wait for the loop.
        """
        if monotonic() - self._began > SECONDS:
            self._next(wait)

    def _next(self, wait: Callable[[], None] | None) -> None:
        hub, current, now = self._hub, getcurrent(), monotonic()
        if self._loop.iteration == self._iteration:  # else something has waited: the others had their turn
            is_over = id(current) == self._greenlet or now - self._turned > SLICES * SECONDS
            if is_over and current is not hub and get_hub_if_exists() is hub:
                if wait is None:
                    let_others(hub)
                else:
                    wait()
                now = monotonic()
        self._greenlet = id(current)
        self._began = now
        if self._loop.iteration != self._iteration:
            self._iteration = self._loop.iteration
            self._turned = now


def let_others(hub: Any) -> None:
    """Wait until the loop has turned once. gevent.sleep(0) would return before the loop has looked for I/O."""
    with hub.loop.timer(0, priority=AFTER_CLIENTS) as timer:
        hub.wait(timer)
