"""The door: the socket at which a zygote is asked for the processes of jobs.

No master is involved, so it works while there is none. It has a path, by which the workers also find the zygote that
follows a lost one; it lies in the directory that only the workers' user can enter.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import struct
import time
from typing import Any

from gevent import monkey

from reuseport.ipc.shortage import SHORTAGE

poll = monkey.get_original("select", "poll")
BACKLOG = 1024


NO_DESCRIPTORS = 0.1  # seconds for which nobody is let in when there are none left


class Door:
    """`waiting`: the connections of those who have come and wait for a process, oldest first."""

    def __init__(self) -> None:
        self.waiting: list[_socket.socket] = []
        self._socket: _socket.socket | None = None
        self._closed_until = 0.0  # monotonic seconds

    def open(self, path: str) -> None:
        """OSError where that is not possible. What an earlier zygote of the generation has left is replaced."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
        try:
            sock.bind(path)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        self._socket = sock

    def close(self) -> None:
        """Whoever waits finds the end of his line, here, and may ask elsewhere."""
        for line in self.waiting:
            line.close()
        self.waiting.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def wait(self, other: int, seconds: float | None) -> bool:
        """Wait, for so long at most, until somebody comes or the descriptor `other` (-1: none) can be read from.
        Whether the latter is so."""
        ready = poll()
        mine = -1 if self._socket is None else self._socket.fileno()
        rest = self._closed_until - time.monotonic()
        if rest > 0:
            mine = -1
            seconds = rest if seconds is None else min(seconds, rest)
        for fd in (mine, other):
            if fd != -1:
                ready.register(fd, select.POLLIN)
        found = {fd for fd, _ in ready.poll(None if seconds is None else seconds * 1000)}
        if mine in found:
            self._let_in()
        return other in found

    def _let_in(self) -> None:
        assert self._socket is not None
        while True:
            try:
                fd, _ = self._socket._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise
                self._closed_until = time.monotonic() + NO_DESCRIPTORS  # they wait in the queue
                return
            line: Any = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
            _, uid, _ = struct.unpack("3i", line.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
            if uid == os.geteuid():
                self.waiting.append(line)
            else:
                line.close()
