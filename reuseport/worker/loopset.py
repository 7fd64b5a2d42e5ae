"""Taking a descriptor out of the loop's epoll set at once.

libev leaves a stopped watcher's descriptor in its epoll set and counts on close() to remove it. That is not so for an
open file which lives on in another process: a slot, or a connection that was handed over. The set would go on
reporting it under a number that means something else by then (epoll(7), questions 6 and 7).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from gevent import monkey

epoll = monkey.get_original("select", "epoll")


class LoopSet:
    """The loop's epoll set. It must be made after the fork, since a fork gives the loop a new one."""

    def __init__(self, loop: Any) -> None:
        # A descriptor of its own, and now: when it is needed there may be none left.
        self._set = epoll.fromfd(os.dup(loop.fileno()))

    def abandon(self) -> None:
        """In a child that the application has forked: the set is its parent's."""
        self._set.close()

    def forget(self, fd: int) -> None:
        """Take the fd out, before it is closed here. Its watchers must have been stopped."""
        with contextlib.suppress(FileNotFoundError):  # never watched, or libev has noticed by itself
            self._set.unregister(fd)
