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
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reuseport.worker.connection import Connection
from reuseport.worker.loopset import LoopSet

READ, WRITE = 1, 2
BATCH = 200  # connections in one packet; the kernel takes at most 253 descriptors (SCM_MAX_FD)
SHARES = 3  # batches that a worker of the heir gets from one sender, where there are enough connections
REST = 0.005  # seconds after a batch for which a receiver leaves the queue to its siblings
BATCH_BYTES = 1 << 16  # bytes read from the connections of one packet; one connection's may be more
MOST_UNREAD = 1 << 16  # bytes: a connection with more of them is not passed
PACKET = 1 << 18
RETRY = 0.005  # seconds, where the kernel holds too many descriptors in flight (ETOOMANYREFS)

_FD_BYTES = array.array("i").itemsize
_ACCEPTED = b"\1"


@dataclass
class _Batch:
    connections: list[Connection]
    acknowledgement: int
    watcher: Any


class Sender:
    """Gives connections to the heir. `on_refused()` is called when some came back, or there is no heir any more."""

    def __init__(self, loop: Any, loop_set: LoopSet, on_refused: Callable[[], None]) -> None:
        self._loop = loop
        self._loop_set = loop_set
        self._on_refused = on_refused
        self._socket: _socket.socket | None = None
        self._writable: Any = None
        self._waiting: deque[Connection] = deque()
        self._batches: dict[int, _Batch] = {}
        self._retry: Any = None
        self._workers = 1
        self._share = BATCH

    @property
    def has_heir(self) -> bool:
        return self._socket is not None

    def set_heir(self, fd: int, workers: int) -> None:
        """From now on give to the generation whose queue's sending end this is, and which has so many workers."""
        self._drop_heir()
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
            self._waiting.clear()
            self._on_refused()

    def _next_batch(self) -> list[Connection]:
        batch: list[Connection] = []
        size = 0
        while self._waiting and len(batch) < self._share and size < BATCH_BYTES:
            connection = self._waiting.popleft()
            if connection.can_pass and len(connection.unread) <= MOST_UNREAD:
                connection.let_go(self._loop_set)
                batch.append(connection)
                size += len(connection.unread)
        return batch

    def _send(self, batch: list[Connection]) -> bool:
        """False where the batch cannot be sent now; what wakes the pump again is set up then."""
        assert self._socket is not None
        entries = [(c.peer, len(c.unread), c.seconds_left()) for c in batch]
        packet = json.dumps({"v": 1, "connections": entries}, separators=(",", ":")).encode() + b"\n"
        packet += b"".join(bytes(c.unread) for c in batch)
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fds = array.array("i", [theirs, *(c.fileno() for c in batch)])
        try:
            self._socket.sendmsg([packet], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)], _socket.MSG_NOSIGNAL)
        except OSError as error:
            os.close(ours)
            if isinstance(error, BlockingIOError):
                self._writable.start(self._pump)
            elif error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                self._retry = self._loop.timer(RETRY)
                self._retry.start(self._pump)
            elif error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN):
                self._drop_heir()
            else:
                raise
            return False
        finally:
            os.close(theirs)
        watcher = self._loop.io(ours, READ)
        self._batches[ours] = _Batch(batch, ours, watcher)
        watcher.start(self._answered, ours)
        return True

    def _answered(self, acknowledgement: int) -> None:
        """The receiver has spoken, or its end is gone."""
        batch = self._batches.pop(acknowledgement)
        batch.watcher.close()
        accepted = os.read(acknowledgement, 1) == _ACCEPTED
        os.close(acknowledgement)
        for connection in batch.connections:
            if accepted:
                connection.passed()
            else:
                connection.take_back()
        if not accepted:
            self._on_refused()


class Receiver:
    """Takes what other workers give to this generation. `adopt(fd, peer, local, data, seconds)` gets each."""

    def __init__(
        self,
        loop: Any,
        fd: int,
        adopt: Callable[[int, Any, Any, bytes, float | None], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, os.dup(fd))
        os.set_inheritable(self._socket.fileno(), False)
        self._socket.setblocking(False)
        self._adopt = adopt
        self._log = log
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

    def _readable(self) -> None:
        try:
            packet, extra, flags, _ = self._socket.recvmsg(
                PACKET, _socket.CMSG_SPACE((BATCH + 1) * _FD_BYTES), _socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return  # a sibling was quicker
        except ConnectionError:
            return
        fds = array.array("i")
        for level, kind, payload in extra:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % _FD_BYTES])
        if not packet:
            self._watcher.stop()
            return
        if flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC):
            # Some descriptors are lost already. Closing the pipe unanswered gives all of them back.
            for fd in fds:
                os.close(fd)
            self._log("error", "connections could not be taken over: no file descriptors are left")
            return
        self._watcher.stop()
        self._rest.start(self.start)
        head, _, data = packet.partition(b"\n")
        entries = json.loads(head)["connections"]
        acknowledgement = fds[0]
        try:
            os.write(acknowledgement, _ACCEPTED)
        except BrokenPipeError:
            pass  # the sender has died since: the connections have nobody but this worker
        finally:
            os.close(acknowledgement)
        start = 0
        for (peer, length, seconds), fd in zip(entries, fds[1:], strict=True):
            unread, start = data[start : start + length], start + length
            peer = tuple(peer) if isinstance(peer, list) else peer
            self._adopt(fd, peer, _local(fd, peer), unread, seconds)


def _local(fd: int, peer: Any) -> Any:
    if isinstance(peer, str):
        return ""
    sock = _socket.socket(_socket.AF_INET if len(peer) == 2 else _socket.AF_INET6, _socket.SOCK_STREAM, 0, fd)
    try:
        return sock.getsockname()
    finally:
        sock.detach()
