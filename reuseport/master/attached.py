"""A channel in the master's loop: what the peer says is heard, and what waits is sent when the kernel takes it."""

from __future__ import annotations

from collections.abc import Callable

from reuseport.ipc.channel import STALLED, Channel
from reuseport.master.loop import READ, WRITE, Loop

FAREWELL = 10.0  # seconds for a peer to take its last message


def attach(loop: Loop, channel: Channel, hear: Callable[[], None]) -> None:
    """Call `hear` whenever the peer has said something, and send what waits, until `detach`.

    A second call for a channel changes what is called.
    """
    attachment = _Attachment(loop, channel, hear)
    channel.on_waiting = attachment.look
    attachment.look()


def detach(loop: Loop, channel: Channel) -> None:
    """Must come before the channel is closed."""
    channel.on_waiting = _nothing
    if channel.fileno() != -1:
        loop.forget(channel.fileno())


def part(loop: Loop, channel: Channel) -> None:
    """Close the channel as soon as everything has been sent, after FAREWELL seconds at the latest."""

    def close() -> None:
        detach(loop, channel)
        channel.close()

    def hear() -> None:
        channel.receive({})  # messages of no known type: their descriptors are closed
        if channel.closed or not channel.unsent:
            close()

    channel.flush()
    if channel.closed or not channel.unsent:
        close()
    else:
        attach(loop, channel, hear)
        loop.later(FAREWELL, close)


def _nothing() -> None:
    pass


class _Attachment:
    def __init__(self, loop: Loop, channel: Channel, hear: Callable[[], None]) -> None:
        self._loop = loop
        self._channel = channel
        self._hear = hear
        self._events = 0
        self._retries = False

    @property
    def _is_over(self) -> bool:
        """The channel has been closed, or is attached otherwise by now."""
        return self._channel.closed or self._channel.on_waiting != self.look

    def look(self) -> None:
        """Watch for what is needed now."""
        if self._is_over:
            return
        waits = self._channel.unsent
        events = READ | WRITE if waits and not self._channel.stalled else READ
        if events != self._events:
            self._events = events
            self._loop.watch(self._channel.fileno(), self._ready, events)
        if waits and self._channel.stalled and not self._retries:
            self._retries = True
            self._loop.later(STALLED, self._retry)

    def _ready(self) -> None:
        self._channel.flush()
        try:
            self._hear()
        finally:
            self.look()

    def _retry(self) -> None:
        self._retries = False
        if not self._is_over:
            self._channel.flush()
            self.look()
