"""What a companion prints: a file in the run directory that the master follows into its log.

Not a pipe into the master, whose death would break it, or block it once full. What has been copied is cut out of the
file where it lies (fallocate(2), FALLOC_FL_PUNCH_HOLE), so that a companion may print for a year without filling the
disk, nothing that it prints meanwhile is lost, and the next master goes on exactly where the last one stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections import deque
from collections.abc import Mapping
from typing import Any

NEWS = 1 << 20  # bytes that are copied at once
BACKLOG = 16 << 20  # bytes that may wait to be copied; beyond that the oldest are given up
LONGEST = 1 << 16  # bytes of a line; a longer one is cut
LAST = 20  # lines that are remembered
PAGE = 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2


def _find_fallocate() -> ctypes._NamedFuncPointer:  # type: ignore[name-defined]
    libc = ctypes.CDLL(None, use_errno=True)
    # With 64 bits for an offset on every machine: only where there is no such name are they a matter of course.
    function = getattr(libc, "fallocate64", None) or libc.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate = _find_fallocate()


def _text(line: bytes) -> str:
    return line.decode(errors="backslashreplace")


class Output:
    """`path` is created if it is not there, for the user `uid` where that is not None. OSError where it cannot be."""

    def __init__(self, path: str, uid: int | None = None) -> None:
        self.path = path
        self.last: deque[str] = deque(maxlen=LAST)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if uid is not None:
            os.fchown(self._fd, uid, -1)
        self._rest = b""  # of a line whose end has not been printed yet
        self._offset = 0
        try:
            self._offset = os.lseek(self._fd, 0, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole
                self._offset = os.fstat(self._fd).st_size
        self._resumed = True  # what is left of a page that was cut in its middle reads as NULs

    def estate(self) -> dict[str, Any]:
        """What the master goes on with behind an exec: what it has cut out of the file, and not told yet."""
        return {"offset": self._offset, "rest": self._rest.decode("latin-1"), "last": list(self.last)}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._offset, self._resumed = left["offset"], False
        self._rest = left["rest"].encode("latin-1")
        self.last.extend(left["last"])

    def writer(self) -> int:
        """A descriptor to print to."""
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def news(self, *, end: bool = False) -> list[str]:
        """The lines that have been printed since the last call, as far as they are copied at once.

        `end`: nothing more comes, so all of it is, and what has no end of its own is a line.
        """
        lines: list[str] = []
        size = os.fstat(self._fd).st_size  # somebody whom it has left behind may print on, and faster than this reads
        while self._read(lines) and end and self._offset < size:
            pass
        if end and self._rest:
            lines.append(_text(self._rest))
            self._rest = b""
        self.last.extend(lines)
        return lines

    def _read(self, lines: list[str]) -> bool:
        """Read once; False if there is nothing more."""
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            self._offset = 0  # somebody has truncated it
        if size - self._offset > BACKLOG:
            lines.append(f"({size - NEWS - self._offset} bytes that it printed were given up: too much at once)")
            self._offset, self._rest = size - NEWS, b""
        data = os.pread(self._fd, NEWS, self._offset)
        if data:
            self._cut(self._offset + len(data), size)
        if self._resumed and data:
            data, self._resumed = data.lstrip(b"\0"), False
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            whole.append(self._rest)
            self._rest = b""
        lines += map(_text, whole)
        return bool(data)

    def _cut(self, offset: int, size: int) -> None:
        """What lies before `offset` has been read."""
        start = self._offset - self._offset % PAGE
        self._offset = offset
        if _fallocate(self._fd, PUNCH_HOLE | KEEP_SIZE, start, offset - start) == 0:
            return
        # A file system that cannot: then it is begun anew, and a line that is printed at this very moment is lost.
        if offset == size and size > NEWS:
            os.ftruncate(self._fd, 0)
            self._offset = 0

    def close(self) -> None:
        os.close(self._fd)

    def remove(self) -> None:
        self.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
