"""A connection's bytes, for the greenlet that answers its request: the body in, the response out.

Every call tries the socket first, and waits for the loop only when the kernel has nothing, or no room: that is all the
backpressure there is, in both directions. A wait has a deadline of its own; none limits how long the application works
between two calls.
"""

from __future__ import annotations

import _socket
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.exceptions import InvalidSwitchError
from gevent.hub import Waiter

from ..ipc.scoreboard import BYTES_OUT
from .body import BodyError
from .wheel import NEVER, TICK

if TYPE_CHECKING:
    from .engine import Engine

WRITE = 2  # of a loop's io watcher
PIECE = 16384  # bytes read at once where it is not known how many there are
SENDFILE_PIECE = 1 << 20


class Disconnected(ConnectionError):
    """The client is gone, or takes nothing any more: nobody is left to answer.

    `left`: bytes of what was being sent that the kernel has not taken; None if it has taken nothing of it.
    """

    left: int | None = None


class _Wait(NamedTuple):
    watcher: Any
    waiter: Waiter
    expired: Exception  # what the greenlet gets when the deadline passes


class Stream:
    """The socket, what was read from it already (`unread`), and the greenlets that wait for it.

    `deadline` and `tick` are as `wheel.Timed` wants them.
    """

    __slots__ = ("_parked", "_reader", "_sock", "_waiting", "_writer", "board", "deadline", "engine", "tick", "unread")

    def __init__(self, engine: Engine, fd: int, family: int) -> None:
        # First: where this fails the descriptor is nobody's yet. Less than a piece is all that a TCP socket had; a unix
        # socket's read also ends where its client has attached descriptors.
        self._reader = engine.readers.watch(fd, self._readable, 1 if family == socket.AF_UNIX else PIECE)
        # SOCK_NONBLOCK: else CPython would apply the application's socket.setdefaulttimeout() to it.
        self._sock = _socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0, fd)
        self.engine = engine
        self.board = engine.board
        self.unread: bytes | bytearray = b""
        self.tick = 0
        self.deadline = NEVER
        self._parked = False  # the loop's own reading is stopped
        self._writer: Any = None
        self._waiting: tuple[_Wait, ...] = ()  # at most one that reads, and one that writes

    def _readable(self) -> None:
        """There may be something to read, and nobody waits for it. (Called by the loop.)"""
        raise NotImplementedError

    def take(self, count: int) -> bytes:
        """Up to `count` of the bytes that were read from the socket already."""
        unread = self.unread
        piece, self.unread = bytes(unread[:count]), unread[count:]
        return piece

    def take_into(self, view: memoryview) -> int:
        """As `take`, into the view; returns how many."""
        # All or nothing: from the first change on there is no call, behind which a signal's handler could raise.
        count = min(len(self.unread), len(view))
        view[:count] = self.unread[:count]
        self.unread = self.unread[count:]
        return count

    def abort(self) -> None:
        """Close so that the client sees that something is missing."""
        raise NotImplementedError

    def read_into(self, view: memoryview) -> int:
        """Read some of the request's body, waiting for it; 0 when the client has finished. BodyError if it is gone."""
        if self.unread:
            return self.take_into(view)
        while True:
            try:
                return self._sock.recv_into(view)
            except BlockingIOError:
                self._await_body()
            except OSError as error:
                raise BodyError(400, f"the client is gone: {error.strerror}") from error
            except BaseException:
                self.abort()  # a signal's handler has raised, and nobody knows how many bytes were taken
                raise

    def read_more(self) -> bool:
        """Add to `unread`, waiting for it; False when the client has finished. BodyError if it is gone."""
        piece = bytearray(PIECE)
        unread, self.unread = self.unread, b""
        count = 0
        try:
            count = self.read_into(memoryview(piece))
        finally:
            self.unread = unread + piece[:count] + self.unread  # TLS may have decrypted more than a piece
        return count > 0

    def send(self, data: bytes) -> None:
        """Hand all of the data to the kernel, waiting while the client is slow. Disconnected if it is gone.

        BodyError while another greenlet sends.
        """
        if self._waiting:
            self._check_alone(self._writer)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise Disconnected(f"the client is gone: {error.strerror}") from error
        self.board[BYTES_OUT] += sent
        if sent != len(data):
            self._send_rest(memoryview(data)[sent:], sent)

    def _send_rest(self, view: memoryview, taken: int) -> None:
        """Go on with what the kernel had no room for, beyond the bytes that it has `taken`."""
        try:
            while view:
                self._await_room()
                try:
                    sent = self._sock.send(view)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Disconnected(f"the client is gone: {error.strerror}") from error
                self.board[BYTES_OUT] += sent
                taken += sent
                view = view[sent:]
        except Disconnected as error:
            error.left = len(view) if taken else None
            raise

    def sendfile(self, fd: int, offset: int, count: int) -> int:
        """Hand up to `count` bytes of a file to the kernel; returns how many, 0 at the file's end.

        Disconnected if the client is gone; another OSError if the file cannot be read.
        """
        while True:
            try:
                sent = os.sendfile(self._sock.fileno(), fd, offset, min(count, SENDFILE_PIECE))
            except BlockingIOError:
                self._await_room()
            except OSError:
                # The error is the file's (not every file system has sendfile: EINVAL) or the client's. Reading and
                # sending tells which.
                data = os.pread(fd, min(count, PIECE), offset)
                if data:
                    self.send(data)
                return len(data)
            else:
                self.board[BYTES_OUT] += sent
                return sent

    def _await_body(self) -> None:
        self._reader.stop()
        self._parked = True
        engine = self.engine
        self._wait(self._reader, engine.body_timeout, BodyError(408, "the client sends nothing of the body"))

    def _await_room(self) -> None:
        if self._sock.fileno() < 0:
            raise Disconnected("the connection was closed")
        if self._writer is None:
            self._writer = self.engine.loop.io(self._sock.fileno(), WRITE)
        self._wait(self._writer, self.engine.send_timeout, Disconnected("the client takes nothing"))

    def _wait(self, watcher: Any, seconds: float, expired: Exception) -> None:
        """Wait until the watcher fires; raises `expired` when `seconds` have passed first."""
        self._check_alone(watcher)
        waiter = Waiter(self.engine.hub)
        wait = _Wait(watcher, waiter, expired)
        self._waiting += (wait,)
        self._set_deadline(seconds)
        watcher.start(partial(waiter.switch, waiter))
        try:
            if waiter.get() is not waiter:
                raise InvalidSwitchError("a greenlet that waits for its client was switched to by somebody else")
        finally:
            watcher.stop()
            self._waiting = tuple(other for other in self._waiting if other is not wait)
            if not self._waiting:
                self.deadline = NEVER

    def _check_alone(self, watcher: Any) -> None:
        """BodyError if another greenlet waits for the watcher, in the middle of what it reads or sends."""
        if any(other.watcher is watcher for other in self._waiting):
            raise BodyError(400, "two greenlets read the body, or write the response, at once")

    def _set_deadline(self, seconds: float) -> None:
        if not seconds:
            self.deadline = NEVER
            return
        self.deadline = deadline = time.monotonic() + seconds
        if not 0 < self.tick * TICK <= deadline:  # else the wheel will look at it in time
            self.engine.wheel.watch(self)

    def _reset_at_close(self) -> None:
        """Let the close be a reset, which also drops what the kernel still holds for the client."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
