"""A channel: messages between the master and one of its processes, each with the file descriptors that it needs.

A message is one JSON object in one packet of a SOCK_SEQPACKET unix socket, so it arrives whole or not at all, and the
end of the stream is seen as such. Nothing here ever blocks: a message that the kernel does not take waits in the
channel. The channel calls `on_waiting`; its owner then watches the socket for writing, and calls `flush`.

The sockets are those of `_socket`, and `close` is that of `posix`, because gevent replaces the Python class and
`os.close` in the processes that it patches, and a channel must behave the same on both sides of that.
"""

from __future__ import annotations

import _socket
import array
import errno
import json
import os
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from posix import close
from typing import Any, NamedTuple

from reuseport.ipc.shortage import SHORTAGE

VERSION = 1  # of the messages: they pass between a master and zygotes of other versions of this package

PACKET = 65536  # bytes: the largest message
FDS = 64  # file descriptors in one message; the kernel takes at most 253 (SCM_MAX_FD)

# A state, not an event: only the newest message of each of these types counts, so it replaces one that waits.
STATES = frozenset({"heir", "logs", "routes"})

# Bounds on the messages that wait in one channel. A peer that leaves more unread loses the channel; a new hello then
# repeats the state.
MOST_MESSAGES = 1000
MOST_BYTES = 4 << 20

STALLED = 0.05  # seconds between two attempts where the kernel is short of something that poll(2) does not tell of

_FD_BYTES = array.array("i").itemsize
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class ChannelError(Exception):
    """The peer sent something that no version of this package sends."""


class _Waiting(NamedTuple):
    """A message that waits, with descriptors of its own."""

    type: str
    data: bytes
    fds: tuple[int, ...]


class Channel:
    """One end. `closed` is true once the peer has gone.

    `on_waiting()` is called when messages begin to wait. `stalled`: they wait for memory or for descriptors in flight,
    which poll(2) does not report; then `flush` has to be called again after STALLED seconds. `given_up`: why this end
    has ended the channel, "" if it has not.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._unsent: deque[_Waiting] = deque()
        self._patient = False
        self.closed = False
        self.stalled = False
        self.given_up = ""
        self.on_waiting: Callable[[], None] = lambda: None
        self._send_flags = _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL

    def be_patient(self) -> None:
        """From now on `send` waits until the kernel takes the message: for a process that has no loop."""
        self._send_flags = _socket.MSG_NOSIGNAL
        self._sock.setblocking(True)
        self._patient = True

    def fileno(self) -> int:
        return self._sock.fileno()

    def peer(self) -> tuple[int, int]:
        """(pid, uid) of the process that connected, as the kernel knows them (SO_PEERCRED, unix(7))."""
        credentials = self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        return pid, uid

    def send(self, type: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        """Send a message. The fds are only lent: a message that has to wait keeps copies of its own.

        If the message can neither be sent nor wait, this end ends the channel: the peer does not read, or no
        descriptors are left for the copies. Both processes then see the end of the channel.
        """
        message = json.dumps({"v": VERSION, "type": type, **fields}, separators=(",", ":")).encode()
        if len(message) > PACKET:
            raise ValueError(f"a message of {len(message)} bytes is larger than {PACKET}: {type}")
        if self.closed or self.given_up:
            return
        if self._unsent or not self._try(message, fds):
            self._keep(type, message, fds)

    @property
    def unsent(self) -> bool:
        """Whether messages wait for the socket to become writable; then call `flush`."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what waits, as far as the kernel takes it."""
        while self._unsent and self._try(self._unsent[0].data, self._unsent[0].fds):
            _close_all(self._unsent.popleft().fds)

    def _keep(self, type: str, data: bytes, fds: tuple[int, ...]) -> None:
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError as error:
            _close_all(copies)
            if error.errno not in SHORTAGE:
                raise
            self._give_up(f"no descriptors are left to keep a message ({type}) for it")
            return
        message = _Waiting(type, data, tuple(copies))
        if type in STATES:
            for index, earlier in enumerate(self._unsent):
                if earlier.type == type:
                    # In its place: "heir" must stay in front of the "drain" that it was sent for.
                    self._unsent[index] = message
                    _close_all(earlier.fds)
                    return
        self._unsent.append(message)
        if len(self._unsent) > MOST_MESSAGES or sum(len(one.data) for one in self._unsent) > MOST_BYTES:
            self._give_up(f"it does not read, and {len(self._unsent)} messages wait for it")
        elif len(self._unsent) == 1:
            self.on_waiting()

    def _give_up(self, why: str) -> None:
        self.given_up = why
        self._drop()
        try:
            self._sock.shutdown(_socket.SHUT_RDWR)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _try(self, message: bytes, fds: tuple[int, ...]) -> bool:
        """False where the kernel does not take it now, which is also possible for a patient end."""
        extra = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            self.stalled = False
            try:
                self._sock.sendmsg([message], extra, self._send_flags)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno in _GONE:
                    # The peer is gone. What it said before can still be read, and its end shows there.
                    return True
                if error.errno not in SHORTAGE:
                    raise
                self.stalled = True
                if not self._patient:
                    return False
                signal.sigtimedwait((), STALLED)  # gevent's time.sleep needs a loop
            else:
                return True

    def receive(self) -> list[tuple[dict[str, Any], list[int]]]:
        """All messages that have arrived, with the fds that came along (close-on-exec). Sets `closed` at the end."""
        messages: list[tuple[dict[str, Any], list[int]]] = []
        reset = False
        while not self.closed:
            try:
                data, extra, flags, _ = self._sock.recvmsg(
                    PACKET, _socket.CMSG_SPACE(FDS * _FD_BYTES), _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                # The peer went without having read all that it was sent. The kernel says so once, and before it gives
                # out what the peer itself had said.
                self.closed, reset = reset, True
                continue
            fds = array.array("i")
            for level, kind, payload in extra:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                    fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
            if not data:
                self.closed = True
                break
            if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
                for fd in fds:
                    close(fd)
                raise ChannelError("a message was cut short: too large, or no file descriptors were left to receive it")
            messages.append((_decode(data), list(fds)))
        return messages

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the process goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        unsent = [(one.data.decode(), [lend(fd) for fd in one.fds]) for one in self._unsent]
        return {"fd": lend(self.fileno()), "unsent": unsent}

    def close(self) -> None:
        self.closed = True
        self._drop()
        self._sock.close()

    def _drop(self) -> None:
        for one in self._unsent:
            _close_all(one.fds)
        self._unsent.clear()


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        close(fd)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
        if not isinstance(message, dict) or not isinstance(message["type"], str) or not isinstance(message["v"], int):
            raise ValueError(message)
    except (ValueError, KeyError) as error:
        raise ChannelError(f"not a message: {data[:100]!r}") from error
    return message


def connect(path: str) -> Channel:
    """A channel to the master whose socket this is. OSError where there is none.

    BlockingIOError where a master is there whose backlog is full (connect(2)): it is stopped, or has no descriptors.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Channel(sock)


def listen(path: str) -> _socket.socket:
    """The master's side: a non-blocking socket to `accept` from. A path that an earlier master left is taken over."""
    if os.path.lexists(path):
        os.unlink(path)
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
    sock.bind(path)
    sock.listen(1024)
    return sock


def inherited(left: Mapping[str, Any]) -> Channel:
    """The channel of which `Channel.estate` told."""
    channel = Channel(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, left["fd"]))
    for message, fds in left["unsent"]:
        data = message.encode()
        channel._unsent.append(_Waiting(_decode(data)["type"], data, tuple(fds)))
    return channel


def listening(fd: int) -> _socket.socket:
    """What `listen` has made, behind an exec."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def accept(listener: _socket.socket) -> Channel | None:
    """The next channel that waits, or None. OSError where there are no descriptors left."""
    try:
        fd, _ = listener._accept()
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        return None
    return Channel(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd))
