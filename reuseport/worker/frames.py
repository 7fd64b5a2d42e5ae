"""What the application sends on a connection that it has taken is followed, frame by frame.

So the server knows where it can put a close frame of its own between two of the application's, whose library then sees
the client's answer and ends as it would for any client.
"""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Any

from gevent.lock import BoundedSemaphore
from gevent.socket import socket as GeventSocket

if TYPE_CHECKING:
    from .upgrade import Upgraded

GOING_AWAY = b"\x88\x02\x03\xe9"  # an unmasked close frame with the code 1001
LONGEST_HEAD = 65536  # bytes of a response head that is followed
HEAD = re.compile(rb"http/1\.[01] [1-5][0-9][0-9] ")


class Frames:
    """Follows what is sent: a response's head, then, if it says 101 and WebSocket, frames (RFC 6455 section 5.2)."""

    def __init__(self) -> None:
        self.status = 0  # the response's
        self.is_websocket = False
        self.closing = False  # a close frame was among them
        self._head: bytes | None = b""
        self._begun = b""  # of a frame's header
        self._left = 0  # bytes of a frame's payload

    @property
    def between(self) -> bool:
        """Whether another control frame may be sent now."""
        return self.is_websocket and not self.closing and not self._begun and not self._left

    def follow(self, data: bytes) -> None:
        if self._head is not None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0 and len(self._head) < LONGEST_HEAD:
                return
            head = self._head[: max(end, 0)].lower()
            data, self._head = self._head[end + 4 :], None
            self.status = int(head[9:12]) if HEAD.match(head) else 0
            self.is_websocket = head.startswith(b"http/1.1 101") and b"websocket" in head
        at = 0
        while self.is_websocket and at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            header = self._begun + data[at : at + 14]
            length = 0 if len(header) < 2 else header[1] & 127
            size = 2 + {126: 2, 127: 8}.get(length, 0) + (4 if len(header) > 1 and header[1] & 128 else 0)
            if len(header) < size:
                self._begun = header
                return
            if length > 125:
                length = int.from_bytes(header[2 : 4 if length == 126 else 10], "big")
            at += size - len(self._begun)
            self._begun = b""
            self._left = length
            self.closing = self.closing or header[0] & 15 == 8


class UpgradeSocket(GeventSocket):
    """A gevent socket of which each `send` sends all, and nothing of another between: libraries make frames of it.

    Closing it ends the connection in an orderly way, which takes a little longer than the call.
    """

    __slots__ = ("_frames", "_lock", "_muted", "_upgraded")

    def __init__(self, upgraded: Upgraded, fd: int) -> None:
        super().__init__(fileno=fd)
        self.settimeout(None)
        self._upgraded = upgraded
        self._lock = BoundedSemaphore(1)
        self._frames = Frames()
        self._muted = False  # everything was said: behind a close frame nothing may follow

    @property
    def status(self) -> int:
        """Of the response that was sent, 0 if none was."""
        return self._frames.status

    def send(self, data: Any, flags: int = 0, timeout: Any = None) -> int:
        self.sendall(data, flags)
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        with self._lock:
            if self._muted:
                return
            data = bytes(data)
            try:
                sent = self._sock.send(data, flags)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], flags)
            self._frames.follow(data)

    def _send_rest(self, view: memoryview, flags: int) -> None:
        whole = False
        try:
            while view:
                self._wait(self._write_event)
                try:
                    view = view[self._sock.send(view, flags) :]
                except BlockingIOError:
                    continue
            whole = True
        finally:
            if not whole:
                self._frames.is_websocket = False  # cut in the middle of a frame: no other may follow

    def say_going_away(self) -> bool:
        """Send the close frame, when whatever is being sent is out. False where there is no place for one."""
        with self._lock:
            if not self._frames.between:
                return False
            self._sock.send(GOING_AWAY)
            self._muted = True
        return True

    def end_reading(self) -> None:
        """Whoever reads gets the end of the stream."""
        self._sock.shutdown(socket.SHUT_RD)

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._muted = True
        self._sock.shutdown(how)

    def close(self) -> None:
        self._upgraded.end()
