"""The end of a connection whose client still sends.

If it were closed with bytes unread, the kernel would reset it, and the client could lose the response. So the server
sends the end of the stream, and discards what still comes (RFC 9112 section 9.6). A client that sends all of its upload
before it reads can then read a refusal. Time and bytes are bounded, as by nginx's lingering_time and lingering_timeout.
"""

from __future__ import annotations

import socket
import time

from .states import CLOSED, LINGERING
from .stream import Stream

LINGER_TIME = 30.0  # seconds in all
LINGER_PAUSE = 5.0  # seconds between two pieces
LINGER_BYTES = 1 << 30  # of which the loop's share is some 0.5 s
LINGER_IN_DRAIN = 2.0  # seconds in all, because a drain waits for it


class Lingering(Stream):
    """A stream that knows how to end. `state`: see `states`."""

    __slots__ = ("_discards", "_lingers_until", "state")

    def close(self) -> None:
        raise NotImplementedError

    def linger(self) -> None:
        """Send the end of the stream, then wait for the client's before closing."""
        if self.state is CLOSED:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        seconds = LINGER_IN_DRAIN if self.engine.draining else LINGER_TIME
        self._begin_lingering(time.monotonic() + seconds)
        # Even where it is not `_parked`: a signal's handler may have raised between the reader's stop and that note.
        self._parked = False
        self._reader.start(self._readable)
        self._set_deadline(min(seconds, LINGER_PAUSE))

    def _begin_lingering(self, until: float) -> None:
        """`until`: monotonic seconds; 0 where what the client sends does not move the deadline."""
        self._lingers_until = until
        self._discards = LINGER_BYTES
        self.unread = b""
        self.state = LINGERING

    @property
    def lingers_on(self) -> bool:
        """Whether more time is left than the deadline says, if the client sends."""
        return time.monotonic() < self._lingers_until

    def _discard(self, count: int) -> None:
        """So many bytes have come that are thrown away; 0 is the end of the stream."""
        self._discards -= count
        left = self._lingers_until - time.monotonic()
        if not count or self._discards < 0:
            self.close()
        elif left > 0:
            self._set_deadline(min(left, LINGER_PAUSE))

    def hurry(self) -> None:
        """A drain has begun, and waits for the end."""
        now = time.monotonic()
        if self._lingers_until > now + LINGER_IN_DRAIN:
            self._lingers_until = now + LINGER_IN_DRAIN
            self._set_deadline(max(min(self.deadline - now, LINGER_IN_DRAIN), 0.001))
