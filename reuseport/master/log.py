"""The master's log. Writing to it never blocks: a full pipe or a stuck terminal must not hold up a release.

Lines that the kernel does not take at once wait in a bounded buffer; when that is full, the oldest go, and a line says
how many. To get a non-blocking descriptor without making the one that everybody shares non-blocking, the file behind
standard error is opened a second time through /proc; a socket (journald) cannot be, but has MSG_DONTWAIT.
"""

from __future__ import annotations

import os
import socket
import stat
from collections import deque
from collections.abc import Callable

from reuseport.ipc.logline import LEVELS, line

BUFFER = 1 << 20  # bytes


class Log:
    """`path` is a file, or "-" for standard error. `on_blocked()` is called when lines begin to wait.

    Whoever it calls must call `flush` a little later.
    """

    def __init__(self, path: str = "-", level: str = "info") -> None:
        self._path = path
        self._threshold = LEVELS[level]
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._socket: socket.socket | None = None
        self.fd = -1
        self._told = False
        self.on_blocked: Callable[[], None] | None = None
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, after logrotate has moved it away. OSError where that is not possible."""
        old = self.fd
        if self._path != "-":
            self.fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        elif old == -1:
            self.fd = self._standard_error()
        if old not in (-1, 2, self.fd):
            os.close(old)

    def _standard_error(self) -> int:
        mode = os.fstat(2).st_mode
        if stat.S_ISREG(mode):
            return 2  # a file never blocks, and a second description would have an offset of its own
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(2))
            return self._socket.fileno()
        try:
            return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            # Another user's terminal (su), or no /proc: then standard error itself, which blocks only if that does.
            return 2

    def write(self, level: str, text: str) -> None:
        if LEVELS[level] >= self._threshold:
            for part in text.rstrip("\n").split("\n"):
                self.raw(line("master", level, part))

    def raw(self, data: bytes) -> None:
        """Write bytes as they are, in turn with the lines."""
        self._waiting.append(data)
        self._size += len(data)
        while self._size > BUFFER and len(self._waiting) > 1:
            self._size -= len(self._waiting.popleft())
            self._lost += 1
        if not self._told:
            self.flush()

    @property
    def unsent(self) -> bool:
        return bool(self._waiting)

    def flush(self) -> None:
        """Write what the kernel takes now."""
        self._told = False
        while self._waiting:
            if self._lost:
                lost, self._lost = self._lost, 0
                self._waiting.appendleft(line("master", "error", f"{lost} lines of this log were lost: nobody read it"))
                self._size += len(self._waiting[0])
            data = self._waiting[0]
            try:
                sent = self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self.fd, data)
            except BlockingIOError:
                if self.on_blocked and not self._told:
                    self._told = True
                    self.on_blocked()
                return
            except OSError:
                # The reader has gone, or the disk is full: there is nowhere to say so, and the server must go on.
                self._size -= len(self._waiting.popleft())
                self._lost += 1
                return
            self._size -= sent
            if sent == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = data[sent:]
