"""A one-shot timer of gevent's loop that can be set again.

A libev timer that is stopped, or has fired, keeps what is left of its time, and gevent starts it again with just that:
nothing. So a pause that uses one timer twice does not pause, and the loop spins. Each `set` makes a new timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Alarm:
    """Calls `callback()` in the loop, `seconds` after each `set`."""

    def __init__(self, loop: Any, seconds: float, callback: Callable[[], Any]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._callback = callback
        self._timer: Any = None

    @property
    def active(self) -> bool:
        """Whether it is set, and has not called yet."""
        return self._timer is not None

    def set(self, seconds: float | None = None) -> None:
        """Call after so many seconds, by default those of the constructor. An alarm that is set stays as it is."""
        if self._timer is None:
            self._timer = self._loop.timer(self._seconds if seconds is None else seconds)
            self._timer.start(self._fire)

    def clear(self) -> None:
        """Do not call."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def stop(self) -> None:
        """In a child that the application has forked: the loop, and the timer in it, are its parent's."""
        if self._timer is not None:
            self._timer.stop()

    def _fire(self) -> None:
        self.clear()
        self._callback()
