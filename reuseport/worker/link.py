"""A worker's channel to its master.

The process that owns the run directory is the master. A worker whose channel ends serves on, and says hello to the next
master. Messages that the master does not read at once wait in the channel. The worker sends them when the socket has
room.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

from gevent import monkey

from reuseport.ipc import channel as channels
from reuseport.ipc.messages import TO_WORKER, Message
from reuseport.ipc.rundir import RunDir
from reuseport.worker.alarm import Alarm

READ, WRITE = 1, 2
RETRY = 1.0  # seconds between two attempts to reach a master, and at least between two hellos
LAST_WORDS = 2.0  # seconds for which a worker that leaves waits until everything has been sent

poll = monkey.get_original("select", "poll")


class Link:
    """`hello(channel)`: introduces the worker, first on every channel. `take(message, fds)` gets each message.

    `lost()`: the channel has ended; False if no other channel is wanted. `alone(seconds)`: for how long there has been
    no master. `on_room()`: everything that waited has been sent. `channel` is None while there is no master.
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
        on_room: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._run_dir = run_dir
        self._log = log
        self._hello = hello
        self._take = take
        self._lost = lost
        self._alone = alone
        self._on_room = on_room
        self.channel: channels.Channel | None = None
        self._watcher: Any = None
        self._writer: Any = None  # active while messages wait
        self._stalled = Alarm(loop, channels.STALLED, self._write)
        self._retry = Alarm(loop, RETRY, self._knock)
        self._begun = float("-inf")  # when the last channel was opened, in monotonic seconds
        self._since = 0.0  # when the last master was lost, in monotonic seconds

    def connect(self, within: float = 0.0) -> bool:
        """Say hello to the master that owns the run directory. False where there is none now, or where the backlog of
        its socket has been full for `within` seconds. This blocks for as long."""
        try:
            channel = self._run_dir.reach_master(within)
        except OSError:
            return False
        self.channel = channel
        self._begun = time.monotonic()
        self._watcher = self._loop.io(channel.fileno(), READ)
        self._writer = self._loop.io(channel.fileno(), WRITE)
        channel.on_waiting = self._await_room
        self._hello(channel)
        self._watcher.start(self.hear)
        return True

    def say(self, kind: str, **fields: Any) -> None:
        """Tell the master. Without a master this does nothing: the hello to the next one repeats the state."""
        if self.channel is not None:
            self.channel.send(kind, **fields)

    def has_room(self) -> bool:
        """Whether the next message is sent at once. Reports wait for that, so that a worker does not grow while its
        master does not read."""
        return self.channel is None or not self.channel.unsent

    def hear(self) -> None:
        """Take the messages that the master has sent so far."""
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
            if channel.given_up:
                self._log("error", f"the channel to the master was ended: {channel.given_up}")
            self._drop_watchers()
            channel.close()
            self.channel = None
            self._since = time.monotonic()
            if self._lost():
                # Not at once after a hello that has just failed: its cause lasts, and two processes would be busy.
                self._knock_after(RETRY if channel.fault is not None else self._begun + RETRY - self._since)

    def finish(self, tell: Callable[[], bool]) -> None:
        """Before the process leaves: wait until everything has been sent, for LAST_WORDS seconds at most.

        `tell()` says what has not been said yet, as far as there is room; it returns whether that was all.
        """
        until = time.monotonic() + LAST_WORDS
        while (channel := self.channel) is not None and not channel.given_up:
            channel.flush()
            if tell() and not channel.unsent:
                return
            left = until - time.monotonic()
            if left <= 0:
                return
            ready = poll()
            if not channel.stalled:
                ready.register(channel.fileno(), select.POLLOUT)
            ready.poll((min(left, channels.STALLED) if channel.stalled else left) * 1000)

    def abandon(self) -> None:
        """In a child that the application has forked: the channel is its parent's."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        for watcher in (self._watcher, self._writer, self._stalled, self._retry):
            if watcher is not None:
                watcher.stop()

    def _await_room(self) -> None:
        """Messages wait: send them when the socket has room."""
        if self.channel is not None and self.channel.stalled:
            self._stalled.set()
        elif not self._writer.active:
            self._writer.start(self._write)

    def _write(self) -> None:
        channel = self.channel
        if channel is None:
            return
        channel.flush()
        if not channel.unsent:
            self._on_room()  # which may fill it again
        if not channel.unsent or channel.stalled:
            self._writer.stop()
        if channel.unsent:
            self._await_room()

    def _drop_watchers(self) -> None:
        for watcher in (self._watcher, self._writer):
            watcher.stop()
            watcher.close()
        self._stalled.clear()

    def _knock_after(self, seconds: float) -> None:
        if seconds <= 0:
            self._knock()
        else:
            self._retry.set(seconds)

    def _knock(self) -> None:
        if self.channel is None and not self.connect():
            self._alone(time.monotonic() - self._since)
            self._retry.set()
