"""A worker's way to its master, whichever that is.

Whoever owns the run directory is the master. The end of the channel ends nobody: the worker serves on, and knocks until
another master is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from reuseport.ipc import channel as channels
from reuseport.ipc.messages import TO_WORKER, Message
from reuseport.ipc.rundir import RunDir

RETRY = 1.0  # seconds between two attempts to reach a master


class Link:
    """`hello(channel)`: introduces the worker, first on every channel. `take(message, fds)` gets what is said.

    `lost()`: the channel has ended; False if nobody wants another. `alone(seconds)`: so long there has been no master.
    `channel` is None then.
    """

    def __init__(
        self,
        loop: Any,
        run_dir: RunDir,
        log: Callable[[str, str], None],
        *,
        hello: Callable[[channels.Channel], None],
        take: Callable[[Message, list[int]], None],
        lost: Callable[[], bool],
        alone: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._run_dir = run_dir
        self._log = log
        self._hello = hello
        self._take = take
        self._lost = lost
        self._alone = alone
        self.channel: channels.Channel | None = None
        self._watcher: Any = None
        self._retry: Any = None
        self._since = 0.0  # when the last master was lost, in monotonic seconds

    def connect(self) -> bool:
        """Say hello to the master that owns the run directory. False where there is none now."""
        try:
            channel = self._run_dir.reach_master()
        except OSError:
            return False
        self.channel = channel
        self._hello(channel)
        self._watcher = self._loop.io(channel.fileno(), 1)
        self._watcher.start(self.hear)
        return True

    def say(self, kind: str, **fields: Any) -> None:
        """Tell the master; nothing where there is none, who will be told what counts in the hello to the next."""
        if self.channel is not None:
            self.channel.send(kind, **fields)

    def hear(self) -> None:
        """Take what the master has said so far."""
        channel = self.channel
        if channel is None:
            return
        channel.flush()
        for message, fds in channel.receive(TO_WORKER):
            self._take(message, fds)
        if channel.fault is not None:
            # A new hello makes the master repeat what counts: not at once, because it may be the same again.
            self._log("error", f"the master could not be understood: {channel.fault}")
        if channel.closed and self.channel is channel:
            self._watcher.stop()
            self._watcher.close()
            channel.close()
            self.channel = None
            self._since = time.monotonic()
            if not self._lost():
                return
            if channel.fault is None:
                self._knock()
            else:
                self._knock_later()

    def abandon(self) -> None:
        """In a child that the application has forked: the channel is its parent's."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        for watcher in (self._watcher, self._retry):
            if watcher is not None:
                watcher.stop()

    def _knock(self) -> None:
        if self.channel is None and not self.connect():
            self._alone(time.monotonic() - self._since)
            self._knock_later()

    def _knock_later(self) -> None:
        self._retry = self._loop.timer(RETRY)
        self._retry.start(self._knock)
