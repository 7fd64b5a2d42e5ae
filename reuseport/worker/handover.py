"""The hand-over: open client connections move to a worker of another generation, and nobody notices.

Each generation has one queue, a pair of SOCK_SEQPACKET sockets whose receiving end all its workers share. A batch is
one packet: the connections' descriptors, the bytes read from each, and the writing end of a pipe, on which the
receiver acknowledges before it reads or serves anything. The sender keeps its own descriptors until then; if the pipe
ends without a word, nobody has taken the batch (the receiver died, or ran out of descriptors, which the kernel then
drops silently: recvmsg(2), MSG_CTRUNC), and the connections are the sender's again. There is no timeout in this: a
receiver that is merely slow may still take them, and a request must never be answered twice.

A connection is passed between two requests, never with a response under way.
"""

from __future__ import annotations

import _socket
import array
import errno
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reuseport.worker.alarm import Alarm
from reuseport.worker.connection import Connection
from reuseport.worker.loopset import LoopSet
from reuseport.worker.seldom import Seldom

VERSION = 1  # of a batch: generations of other versions of this package pass connections to each other
READ, WRITE = 1, 2
BATCH = 200  # connections in one packet; the kernel takes at most 253 descriptors (SCM_MAX_FD)
SHARES = 3  # batches that a worker of the heir gets from one sender, where there are enough connections
REST = 0.005  # seconds after a batch for which a receiver leaves the queue to its siblings
BATCH_BYTES = 1 << 16  # bytes read from the connections of one packet; one connection's may be more
MOST_UNREAD = (1 << 16) + (1 << 14)  # bytes: a connection with more (a head and a piece) is not passed
PACKET = 1 << 18
RETRY = 0.005  # seconds, where the kernel holds too many descriptors in flight (ETOOMANYREFS), or a batch was refused
REFUSALS = 5  # batches that one heir may refuse; while one waits, nobody answers its clients
NO_ROOM = 0.05  # seconds for which a receiver without descriptors leaves the queue to its siblings, or a sender waits

_FD_BYTES = array.array("i").itemsize
_ACCEPTED = b"\1"


@dataclass
class _Batch:
    connections: list[Connection]
    watcher: Any
    heir: int


class Sender:
    """Gives connections to the heir. `on_refused(connections)` gets those that it does not take, or all that wait when
    there is no heir any more."""

    def __init__(self, loop: Any, loop_set: LoopSet, on_refused: Callable[[list[Connection]], None]) -> None:
        self._loop = loop
        self._loop_set = loop_set
        self._on_refused = on_refused
        self._socket: _socket.socket | None = None
        self._writable: Any = None
        self._waiting: deque[Connection] = deque()
        self._batches: dict[int, _Batch] = {}
        self._retry = Alarm(loop, RETRY, self._pump)
        self._workers = 1
        self._share = BATCH
        self._heir = 0  # counts the heirs
        self._refusals = 0  # of the present heir

    @property
    def has_heir(self) -> bool:
        return self._socket is not None

    def set_heir(self, fd: int, workers: int) -> None:
        """From now on give to the generation whose queue's sending end this is, and which has so many workers."""
        self._drop_heir()
        self._heir += 1
        self._refusals = 0
        self._workers = workers
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)
        self._socket.setblocking(False)
        self._writable = self._loop.io(fd, WRITE)
        self._pump()

    def _drop_heir(self) -> None:
        if self._socket is not None:
            self._writable.close()
            self._loop_set.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """There is no heir any more. What is on its way may still be taken, or comes back."""
        self._drop_heir()
        self._pump()

    def abandon(self) -> None:
        """In a child that the application has forked."""
        for acknowledgement, batch in self._batches.items():
            batch.watcher.stop()
            os.close(acknowledgement)
        if self._socket is not None:
            self._writable.stop()
            self._socket.close()
        self._retry.stop()

    def give(self, connections: list[Connection]) -> None:
        """Pass these on, as far as they are between two requests when their turn comes."""
        self._waiting.extend(connections)
        # Several batches for each worker there, so that each gets its share.
        self._share = max(1, min(BATCH, len(self._waiting) // (SHARES * self._workers)))
        self._pump()

    def _pump(self) -> None:
        """Send batches while the queue takes them."""
        if self._writable is not None:
            self._writable.stop()
        while self._waiting and self._socket is not None:
            batch = self._next_batch()
            if not batch:
                continue
            if not self._send(batch):
                for connection in reversed(batch):
                    connection.take_back()
                    self._waiting.appendleft(connection)
                if self._socket is not None:
                    return
        if self._socket is None and self._waiting:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._on_refused(waiting)

    def _next_batch(self) -> list[Connection]:
        batch: list[Connection] = []
        size = 0
        while self._waiting and len(batch) < self._share and size < BATCH_BYTES:
            connection = self._waiting.popleft()
            if connection.can_pass and len(connection.unread) <= MOST_UNREAD:
                connection.let_go()
                batch.append(connection)
                size += len(connection.unread)
        return batch

    def _send(self, batch: list[Connection]) -> bool:
        """False where the batch cannot be sent now; what wakes the pump again is set up then."""
        assert self._socket is not None
        entries = [(c.peer, c.local, len(c.unread), c.seconds_left()) for c in batch]
        packet = json.dumps({"v": VERSION, "connections": entries}, separators=(",", ":")).encode() + b"\n"
        packet += b"".join(bytes(c.unread) for c in batch)
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._retry.set(NO_ROOM)
            return False
        fds = array.array("i", [theirs, *(c.fileno() for c in batch)])
        try:
            self._socket.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)], _socket.MSG_NOSIGNAL)
        except OSError as error:
            os.close(ours)
            if isinstance(error, BlockingIOError):
                self._writable.start(self._pump)
            elif error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                self._retry.set()
            else:
                self._drop_heir()
            return False
        finally:
            os.close(theirs)
        watcher = self._loop.io(ours, READ)
        self._batches[ours] = _Batch(batch, watcher, self._heir)
        watcher.start(self._answered, ours)
        return True

    def _answered(self, acknowledgement: int) -> None:
        """The receiver has spoken, or its end is gone."""
        batch = self._batches.pop(acknowledgement)
        batch.watcher.close()
        accepted = os.read(acknowledgement, 1) == _ACCEPTED
        os.close(acknowledgement)
        if accepted:
            # Only now do they leave the epoll sets: to come back into them could fail (ENOSPC).
            for connection in batch.connections:
                self._loop_set.forget(connection.fileno())  # where it is if it has ever waited for room
                connection.passed()
            return
        for connection in batch.connections:
            connection.take_back()
        if batch.heir == self._heir:
            self._refusals += 1
        if self._socket is not None and self._refusals <= REFUSALS:
            # A former heir's end is no word of the present one's; and where one worker has no room, another may.
            self._waiting.extend(batch.connections)
            self._retry.set()
        else:
            self._on_refused(batch.connections)


class Receiver:
    """Takes what other workers give to this generation.

    `adopt(fd, peer, local)` makes a connection of each, without reading; after an OSError, for want of room, the whole
    batch goes back. `begin(connection, data, seconds)` serves it: what was read from it, and its deadline.
    """

    def __init__(
        self,
        loop: Any,
        fd: int,
        adopt: Callable[[int, Any, Any], Connection],
        begin: Callable[[Connection, bytes, float | None], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, os.dup(fd))
        os.set_inheritable(self._socket.fileno(), False)
        self._socket.setblocking(False)
        self._loop = loop
        self._adopt = adopt
        self._begin = begin
        self._log = Seldom(log)
        self._watcher = loop.io(self._socket.fileno(), READ)
        self._rest = loop.timer(REST)

    def start(self) -> None:
        self._watcher.start(self._readable)

    def stop(self, loop_set: LoopSet) -> None:
        if self._socket.fileno() != -1:
            self._rest.close()
            self._watcher.close()
            loop_set.forget(self._socket.fileno())
            self._socket.close()

    def abandon(self) -> None:
        """In a child that the application has forked."""
        self._watcher.stop()
        self._rest.stop()
        self._socket.close()

    def empty(self) -> bool:
        """Take all that waits in the queue; whether there was anything."""
        some = False
        while self._socket.fileno() != -1 and self._take():
            some = True
        return some

    def _readable(self) -> None:
        self._take()

    def _take(self) -> bool:
        """Take one batch. False where none waits, or there is no room for it."""
        try:
            packet, extra, flags, _ = self._socket.recvmsg(
                PACKET, _socket.CMSG_SPACE((BATCH + 1) * _FD_BYTES), _socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return False  # a sibling was quicker
        except OSError as error:
            self._log("error", f"connections could not be taken over: {error.strerror}")
            self._pause(NO_ROOM)
            return False
        fds = array.array("i")
        for level, kind, payload in extra:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
        if not packet:
            self._watcher.stop()
            return False
        if flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC):
            # Some descriptors are lost already. Closing the pipe unanswered gives all of them back.
            for fd in fds:
                os.close(fd)
            self._log("error", "connections could not be taken over: no file descriptors are left")
            self._pause(NO_ROOM)
            return False
        head, _, data = packet.partition(b"\n")
        acknowledgement, theirs = fds[0], fds[1:]
        try:
            entries = _entries(head, len(theirs))
        except _Unreadable as error:
            for fd in fds:
                os.close(fd)
            self._log("error", f"connections could not be taken over: {error}")
            self._pause(NO_ROOM)
            return False
        try:
            connections = self._adopt_all(entries, theirs)
        except OSError as error:
            os.close(acknowledgement)
            self._log("error", f"connections could not be taken over: {error.strerror}")
            self._pause(NO_ROOM)
            return False
        self._pause(REST)
        try:
            os.write(acknowledgement, _ACCEPTED)
        except BrokenPipeError:
            pass  # the sender has died since: the connections have nobody but this worker
        finally:
            os.close(acknowledgement)
        start = 0
        for connection, (_, _, length, seconds) in zip(connections, entries, strict=True):
            unread, start = data[start : start + length], start + length
            try:
                self._begin(connection, unread, seconds)
            except Exception:  # noqa: BLE001 - one connection's defect must not cost the rest of the batch
                self._loop.handle_error(self, *sys.exc_info())
        return True

    def _adopt_all(self, entries: list[Any], fds: array.array[int]) -> list[Connection]:
        """All of a batch or, with an OSError, none of it."""
        connections: list[Connection] = []
        try:
            for (peer, local, _, _), fd in zip(entries, fds, strict=True):
                connections.append(self._adopt(fd, _address(peer), _address(local)))
        except OSError:
            for connection in connections:
                connection.give_back()
            for fd in fds[len(connections) :]:
                os.close(fd)
            raise
        return connections

    def _pause(self, seconds: float) -> None:
        if self._watcher.active:
            self._watcher.stop()
            self._rest.close()
            self._rest = self._loop.timer(seconds)
            self._rest.start(self.start)


class _Unreadable(Exception):
    """A batch is of another version of this package, and nothing of it has been taken."""


def _entries(head: bytes, count: int) -> list[Any]:
    """Peer, local address, number of unread bytes and deadline of each connection. Raises _Unreadable.

    A newer version may say more of each.
    """
    try:
        said = json.loads(head)
        if said["v"] != VERSION:
            raise _Unreadable(f"a batch of number {said['v']}, and this version of reuseport reads {VERSION}")
        entries = [(peer, local, int(length), seconds) for peer, local, length, seconds, *_ in said["connections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise _Unreadable(f"a batch that is none ({type(error).__name__}: {error})") from error
    if len(entries) != count:
        raise _Unreadable(f"a batch of {len(entries)} connections with {count} descriptors")
    return entries


def _address(value: Any) -> Any:
    """As getpeername gives it; JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
