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
import math
import os
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from posix import close
from typing import Any, NamedTuple

from reuseport.ipc.messages import Group, Heard, Malformed, decoded
from reuseport.ipc.shortage import SHORTAGE

VERSION = 1  # of the messages: they pass between a master and zygotes of other versions of this package

PACKET = 65536  # bytes: the largest message
TURN = 256  # messages that are received at once: a peer that sends without end must not keep its receiver
BACKLOG = 1024  # connections that may wait to be accepted
FDS = 64  # file descriptors in one message; the kernel takes at most 253 (SCM_MAX_FD)

# A state, not an event: only the newest message of each of these types counts, so it replaces one that waits.
STATES = frozenset({"heir", "logs", "routes"})

# Bounds on the messages that wait in one channel. A peer that leaves more unread loses the channel; a new hello then
# repeats the state.
MOST_MESSAGES = 1000
MOST_BYTES = 4 << 20

STALLED = 0.05  # seconds between two attempts where the kernel is short of something that poll(2) does not tell of

_FD_BYTES = array.array("i").itemsize
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))
_ROOM = _socket.CMSG_SPACE(FDS * _FD_BYTES) + _socket.CMSG_SPACE(_CREDENTIALS.size)  # bytes for what comes along
_SO_PEERPIDFD = 77  # asm-generic/socket.h; Python has no name for it
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class ChannelError(Exception):
    """A message has arrived without its file descriptors: this process has no room for them."""


class _Waiting(NamedTuple):
    """A message that waits, with descriptors of its own."""

    type: str
    data: bytes
    fds: tuple[int, ...]


class Channel:
    """One end. `closed` is true once the peer has gone, or has sent what ends the channel: then `fault` says what.

    `sender` is the pid of the process that sent the message which was received last, as the kernel says it
    (SCM_CREDENTIALS); 0 where the kernel was not asked.

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
        self.fault: Malformed | ChannelError | None = None
        self.sender = 0
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

    def peer_pidfd(self) -> int | None:
        """A pidfd of the process that connected, close-on-exec; None where the kernel has none (before Linux 6.5).

        OSError where that process has been reaped, or no descriptors are left.
        """
        try:
            return self._sock.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return None

    def ask_for_senders(self, asked: bool) -> None:
        """Whether the kernel says who sends each message (SO_PASSCRED)."""
        self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, asked)
        self.sender = 0

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

    def receive(self, group: Group, most: int = TURN, seconds: float = math.inf) -> list[Heard]:
        """The messages that have arrived, `most` at most, checked against their declarations, with their descriptors
        (close-on-exec). `group`: what this peer can say. After `seconds` no further message is taken.

        A message that cannot be taken sets `fault` and `closed`. Those before it are returned, those behind it are not.
        """
        heard: list[Heard] = []
        reset = False
        end = time.monotonic() + seconds
        while not self.closed and len(heard) < most:
            if heard and time.monotonic() > end:
                break
            try:
                data, extra, flags, _ = self._sock.recvmsg(
                    PACKET, _ROOM, _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                break
            except ConnectionError:
                # The peer went without having read all that it was sent. The kernel says so once, and before it gives
                # out what the peer itself had said.
                self.closed, reset = reset, True
                continue
            fds = self._take_extra(extra)
            if not data and not fds:
                self.closed = True
                break
            try:
                if flags & _socket.MSG_CTRUNC:
                    raise ChannelError("no file descriptors are left for those that a message brought")
                if flags & _socket.MSG_TRUNC:
                    raise Malformed(f"has more than {PACKET} bytes")
                heard.append(Heard.of(data, fds, group))
            except (ChannelError, Malformed) as error:
                for fd in fds:
                    close(fd)
                self.closed, self.fault = True, error
        return heard

    def _take_extra(self, extra: list[tuple[int, int, bytes]]) -> list[int]:
        """The descriptors that came with a message; notes its sender."""
        fds = array.array("i")
        for level, kind, payload in extra:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
            elif level == _socket.SOL_SOCKET and kind == _socket.SCM_CREDENTIALS:
                self.sender, _, _ = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])
        return list(fds)

    def peek(self) -> bytes | None:
        """The first message that has arrived, unchecked; notes its sender. It stays there with its descriptors. None
        before it has come, b"" at the end of the channel."""
        room = _socket.CMSG_SPACE(_CREDENTIALS.size)  # and none for descriptors, which the kernel would copy
        try:
            data, extra, _, _ = self._sock.recvmsg(PACKET, room, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            self._take_extra(extra)
            return data
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError:
            return b""

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
    _announce(sock)
    sock.listen(BACKLOG)
    return sock


def _announce(listener: _socket.socket) -> None:
    """An accepted socket gets this option from its listener, so that no message comes without its sender."""
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)


def inherited(left: Mapping[str, Any]) -> Channel:
    """The channel of which `Channel.estate` told."""
    channel = Channel(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, left["fd"]))
    for message, fds in left["unsent"]:
        data = message.encode()
        channel._unsent.append(_Waiting(decoded(data)["type"], data, tuple(fds)))
    return channel


def listening(fd: int) -> _socket.socket:
    """What `listen` has made, behind an exec."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
    _announce(sock)
    return sock


def accept(listener: _socket.socket) -> Channel | None:
    """The next channel that waits, or None. OSError where there are no descriptors left."""
    try:
        fd, _ = listener._accept()
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        return None
    return Channel(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd))
