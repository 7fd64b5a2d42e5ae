"""What the application sends on a connection that it has taken is followed, frame by frame.

So the server knows where it can put a close frame of its own between two of the application's, whose library then sees
the client's answer and ends as it would for any client.
"""

from __future__ import annotations

import errno
import fcntl
import re
import socket
import sys
import termios
from collections import deque
from typing import TYPE_CHECKING, Any

from gevent.event import Event
from gevent.socket import socket as GeventSocket

from .interrupts import is_server

if TYPE_CHECKING:
    from .upgrade import Upgraded

GOING_AWAY = b"\x88\x02\x03\xe9"  # an unmasked close frame with the code 1001
LONGEST_HEAD = 65536  # bytes of a response head that is followed
HEAD = re.compile(rb"http/1\.[01] [1-5][0-9][0-9] ")


# Looked up once: super() costs a third of what a small read does.
_recv, _recv_into, _recvmsg = GeventSocket.recv, GeventSocket.recv_into, GeventSocket.recvmsg
_sendmsg = GeventSocket.sendmsg
_recvfrom, _recvfrom_into, _recvmsg_into = GeventSocket.recvfrom, GeventSocket.recvfrom_into, GeventSocket.recvmsg_into


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


class FifoLock:
    """A lock that greenlets get in the order in which they ask for it.

    With gevent's own locks a greenlet that releases one can take it again before the next greenlet is woken.
    """

    __slots__ = ("_held", "_queue")

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[Event] = deque()  # of the greenlets that wait

    @is_server  # an exception in between would leave the lock held for ever
    def __enter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn = Event()
        self._queue.append(turn)
        try:
            turn.wait()
        except BaseException:
            if turn.is_set():  # the lock was handed over to this greenlet in the same turn of the loop
                self.__exit__()
            else:
                self._queue.remove(turn)
            raise

    @is_server
    def __exit__(self, *_: object) -> None:
        if self._queue:
            self._queue.popleft().set()  # it stays held
        else:
            self._held = False


class UpgradeSocket(GeventSocket):
    """A gevent socket of which each `send` sends all, and nothing of another between: libraries make frames of it.

    Each read and each write checks the time slice of the calling greenlet, because gevent's own methods wait only when
    the kernel has nothing, or no room. A write checks it behind its bytes: calls and bytes have the same order.

    Closing it ends the connection in an orderly way, which takes a little longer than the call.
    """

    __slots__ = (
        "_check_slice", "_frames", "_goes_away", "_lock", "_muted", "_read_ended", "_said", "_unread", "_upgraded",
    )  # fmt: skip

    def __init__(self, upgraded: Upgraded, fd: int) -> None:
        super().__init__(fileno=fd)
        self.settimeout(None)
        self._upgraded = upgraded
        self._check_slice = upgraded.engine.time_slice.check
        self._lock = FifoLock()
        self._frames = Frames()
        self._goes_away = False  # the close frame is due, as soon as it may be sent
        self._said = False  # it was sent
        self._muted = False  # everything was said: behind a close frame nothing may follow
        self._read_ended = False
        self._unread = 0  # bytes that had come when reading ended, and are still to be read

    @property
    def status(self) -> int:
        """Of the response that was sent, 0 if none was."""
        return self._frames.status

    def recv(self, *args: Any) -> Any:
        self._check_slice()
        if self._read_ended:
            return self._recv_last(*args)
        while True:
            try:
                return self._sock.recv(*args)
            except BlockingIOError:
                if self.timeout == 0.0:
                    raise
            self._wait(self._read_event)

    def _recv_last(self, *args: Any) -> Any:
        return self._taken(_recv(self, *args), args[1:2]) if self._unread else b""

    def recv_into(self, *args: Any) -> Any:
        self._check_slice()
        if not self._read_ended:
            return _recv_into(self, *args)
        return self._taken(_recv_into(self, *args), args[2:3]) if self._unread else 0

    def recvfrom(self, *args: Any) -> Any:
        self._check_slice()
        if not self._read_ended:
            return _recvfrom(self, *args)
        return self._taken(_recvfrom(self, *args), args[1:2]) if self._unread else (b"", None)

    def recvfrom_into(self, *args: Any) -> Any:
        self._check_slice()
        if not self._read_ended:
            return _recvfrom_into(self, *args)
        return self._taken(_recvfrom_into(self, *args), args[2:3]) if self._unread else (0, None)

    def recvmsg(self, *args: Any) -> Any:
        self._check_slice()
        if not self._read_ended:
            return _recvmsg(self, *args)
        return self._taken(_recvmsg(self, *args), args[2:3]) if self._unread else (b"", [], 0, None)

    def recvmsg_into(self, *args: Any) -> Any:
        self._check_slice()
        if not self._read_ended:
            return _recvmsg_into(self, *args)
        return self._taken(_recvmsg_into(self, *args), args[2:3]) if self._unread else (0, [], 0, None)

    def _taken(self, result: Any, flags: tuple[int, ...]) -> Any:
        """The result of a read behind `end_reading`, which counts unless its `flags` say that it only looks."""
        if not (flags and flags[0] & socket.MSG_PEEK):
            got = result[0] if type(result) is tuple else result
            count = got if type(got) is int else len(got)
            # 0 bytes: another greenlet has read them.
            self._unread = max(self._unread - count, 0) if count else 0
        return result

    def send(self, data: Any, flags: int = 0, timeout: Any = None) -> int:
        data = bytes(data)
        self.sendall(data, flags)
        return len(data)

    def sendmsg(self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None) -> int:
        """As `send`. Ancillary data (descriptors) go to a local client only, and are no part of a frame."""
        if ancdata:
            try:
                with self._lock:
                    sent: int = _sendmsg(self, buffers, ancdata, flags)
            finally:
                self._check_slice()
            return sent
        return self.send(b"".join(buffers), flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        try:
            with self._lock:
                self._send_alone(bytes(data), flags)
        finally:
            self._check_slice()

    def _send_alone(self, data: bytes, flags: int) -> None:
        if self._muted:
            if self._read_ended:
                raise BrokenPipeError(errno.EPIPE, "the server has closed the connection")
            return
        self._send_all(data, flags)
        self._frames.follow(data)
        if self._goes_away:
            self._say_going_away()

    def _send_all(self, data: bytes, flags: int = 0) -> None:
        try:
            sent = self._sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:], flags)

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
        """Send the close frame between two of the application's. False if the application has sent no whole frame."""
        # The greenlet that has the lock sends it, before the frames of those that wait for the lock already.
        self._goes_away = True
        with self._lock:
            return self._say_going_away()

    def _say_going_away(self) -> bool:
        """Send the close frame if it may be sent now; whether it is out."""
        if not self._muted and self._frames.between:
            self._muted = self._said = True
            self._send_all(GOING_AWAY)
        return self._said

    def end_reading(self) -> None:
        """The application gets what has come, and then the end of the stream, even if the client goes on sending.

        Raises OSError.
        """
        self._unread = int.from_bytes(fcntl.ioctl(self._sock.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)
        self._read_ended = True  # Linux goes on delivering to a TCP socket behind this shutdown
        self._sock.shutdown(socket.SHUT_RD)

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            self._muted = True
        self._sock.shutdown(how)

    def close(self) -> None:
        self._upgraded.end()
