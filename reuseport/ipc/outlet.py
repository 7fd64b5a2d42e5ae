"""Where lines go: a file, a stream that many processes share, or a log daemon. Writing never blocks.

What the kernel does not take at once waits in a bounded buffer; when that is full, the oldest goes. To get a
non-blocking descriptor without making the one that everybody shares non-blocking, the file behind a stream is opened a
second time through /proc; a socket (journald) cannot be, but has MSG_DONTWAIT.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import select
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.ipc.logfile import open_file
from reuseport.ipc.post import Post
from reuseport.options import logplace

BUFFER = 1 << 20  # bytes


class Outlet:
    """`path` is what `logplace.parse` reads. Of "-", and of one that names a descriptor, `standard` is the stream.
    `opened(path)` gives a descriptor of a file. OSError where it cannot be opened.

    `on_blocked()` is called when something begins to wait: whoever it calls must call `flush` a little later. `error`
    is why the last attempt to write failed, None if it did not; `is_file` says that a write is always taken whole.
    """

    def __init__(
        self, path: str, standard: int, post: Post | None = None, opened: Callable[[str], int] = open_file
    ) -> None:
        """`post` is the way to the daemon, where there is one already."""
        self.path = path
        self.place = logplace.parse(path)
        self._standard = standard
        self._opened = opened
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._told_of = 0  # how many pieces the notice tells of that waits first
        self._socket: _socket.socket | None = None
        self._post = post
        self.fd = -1
        self._told = False
        self.on_blocked: Callable[[], None] | None = None
        self.error: OSError | None = None
        self.is_file = False
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, after logrotate has moved it away, or the stream, which may be another master's by now.
        OSError where that is not possible."""
        if self.place.by_datagrams:
            self._post = self._post or Post(self.place)
            self.fd = self._post.fileno()
            return
        if self.place.kind in (logplace.STREAM, logplace.DESCRIPTOR):
            self._write_to(self._stream())
        else:
            self._write_to(self._opened(self.path))

    def _stream(self) -> int:
        standard = self._standard
        mode = os.fstat(standard).st_mode
        # A file never blocks, and a second description would have an offset of its own. A socket cannot be opened.
        if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
            # OSError: another user's terminal (su), or no /proc. The stream itself blocks only if the terminal does.
            with contextlib.suppress(OSError):
                return os.open(f"/proc/self/fd/{standard}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
        return fcntl.fcntl(standard, fcntl.F_DUPFD_CLOEXEC, 5)

    def _write_to(self, fd: int) -> None:
        if self.fd == -1:
            self.fd = fd
        else:
            # The number stays: another thread may be about to write to it.
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)
        mode = os.fstat(self.fd).st_mode
        self.is_file = stat.S_ISREG(mode)
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        if stat.S_ISSOCK(mode):
            self._socket = _socket.socket(fileno=self.fd)  # not gevent's, which would wait, even in the loop

    def raw(self, data: bytes) -> None:
        """Write bytes as they are, in turn with what was written before."""
        self._waiting.append(data)
        self._size += len(data)
        while self._size > BUFFER and len(self._waiting) > 1:
            self._lose()
        if not self._told:
            self.flush()

    def _lose(self) -> None:
        """Give up the oldest piece. Who is not told of others has lost those, too."""
        self._size -= len(self._waiting.popleft())
        self._lost += self._told_of or 1
        self._told_of = 0

    def notice(self, lost: int) -> bytes:
        """What is written in the place of so many pieces that nobody took; b"" for nothing."""
        return b""

    @property
    def unsent(self) -> bool:
        return bool(self._waiting)

    def flush(self) -> None:
        """Write what the kernel takes now."""
        self._told = False
        while self._waiting:
            if self._lost:
                self._told_of, self._lost = self._lost, 0
                notice = self.notice(self._told_of)
                self._waiting.appendleft(notice)
                self._size += len(notice)
            data = self._waiting[0]
            try:
                sent = self._write(data)
            except BlockingIOError:
                if self.on_blocked and not self._told:
                    self._told = True
                    self.on_blocked()
                return
            except OSError as error:
                # The reader has gone, or the disk is full: what is written here cannot say so, and the server goes on.
                self.error = error
                self._lose()
                return
            self.error = None
            self._size -= sent
            if sent == len(data):
                self._waiting.popleft()
                self._told_of = 0
            else:
                self._waiting[0] = data[sent:]

    def _write(self, data: bytes) -> int:
        if self._post is not None:
            self._post.send(data)
            self.fd = self._post.fileno()
            return len(data)
        return self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self.fd, data)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the process goes on with behind an exec: what nobody has taken yet."""
        return {
            "waiting": [one.decode("latin-1") for one in self._waiting],
            "lost": self._lost,
            "post": self._post.estate(lend) if self._post else None,
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._lost = int(left["lost"])
        for one in left["waiting"]:
            self.raw(one.encode("latin-1"))

    def finish(self, seconds: float) -> None:
        """Write what waits, giving a slow reader so many seconds. For a process's end: this blocks."""
        deadline = time.monotonic() + seconds
        self.on_blocked = None
        while True:
            self.flush()
            left = deadline - time.monotonic()
            if not self._waiting or self.error is not None or left <= 0:
                return
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll(left * 1000)
