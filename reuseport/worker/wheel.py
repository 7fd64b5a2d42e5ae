"""Deadlines for thousands of connections with one timer.

A connection's deadline is an attribute that its owner moves freely, at the cost of an assignment; nothing is told to
the wheel when it moves to later. The wheel holds each connection in the bucket of some tick not after its deadline,
and looks at it when that tick comes: if the deadline has moved it is put into a later bucket. So a busy connection
costs one look per timeout and not two timer calls per request. Deadlines are coarse: they pass up to one tick late.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

TICK = 0.25  # seconds
NEVER = float("inf")


class Timed(Protocol):
    """What a wheel can hold. `deadline`: monotonic seconds, or NEVER. `tick`: the wheel's own, 0 at first."""

    deadline: float
    tick: int

    def expire(self) -> None: ...


class Wheel:
    """Calls `expire()` of what it holds soon after its deadline. Its timer runs only while it holds something."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Timed]] = {}
        self._timer = loop.timer(0, ref=False)
        self._next = 0  # the tick that the timer waits for, 0 when it is stopped

    def watch(self, item: Timed) -> None:
        """Make sure that the item is looked at by its deadline. Needed when the deadline came nearer, or was NEVER."""
        # Called for the application, too, in which a signal's handler may raise between any two of these: then the item
        # may be in two buckets, which costs one look more, but never in none, nor in one that no timer comes to.
        tick = int(item.deadline / TICK) + 1
        if 0 < item.tick <= tick:
            return
        bucket = self._buckets.get(tick)
        if bucket is None:
            if not self._next or tick < self._next:
                self._arm(tick)
            bucket = self._buckets[tick] = set()
        bucket.add(item)
        old, item.tick = item.tick, tick
        if old:
            self._buckets[old].discard(item)

    def forget(self, item: Timed) -> None:
        """Hold the item no longer."""
        if item.tick:
            self._buckets[item.tick].discard(item)
            item.tick = 0

    def abandon(self) -> None:
        """Look at nothing any more."""
        self._timer.stop()
        self._buckets.clear()

    def _arm(self, tick: int) -> None:
        self._loop.update_now()
        timer = self._loop.timer(max(tick * TICK - time.monotonic(), 0.001), ref=False)
        timer.start(self._turn)
        old, self._timer, self._next = self._timer, timer, tick
        old.close()

    def _turn(self) -> None:
        self._next = 0
        now = time.monotonic()
        come = []
        for tick in sorted(tick for tick in self._buckets if tick * TICK <= now):
            for item in self._buckets.pop(tick):
                item.tick = 0
                come.append(item)
        for item in come:
            if item.deadline <= now:
                try:
                    item.expire()
                except BaseException:  # noqa: BLE001 - as the loop does; the others are nowhere but in `come` now
                    self._loop.handle_error(item, *sys.exc_info())
            elif item.deadline != NEVER:
                self.watch(item)
        if self._buckets:
            self._arm(min(self._buckets))
