"""inotify(7), as far as it is needed to hear of saved files. The standard library has no call for it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

CLOSE_WRITE, MOVED_FROM, MOVED_TO, DELETE = 0x8, 0x40, 0x80, 0x200
OVERFLOW, IGNORED = 0x4000, 0x8000  # events were lost; the watch is no more
ONLYDIR = 0x1000000

# A file is saved in place, or written beside and renamed. IN_MODIFY would come before it is whole.
SAVED = CLOSE_WRITE | MOVED_FROM | MOVED_TO | DELETE
BUFFER = 65536
_EVENT = struct.Struct("iIII")


class Inotify:
    def __init__(self, fd: int = -1) -> None:
        """`fd`: one that there is already. OSError where the kernel has none to give."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._called(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)) if fd == -1 else fd

    def fileno(self) -> int:
        return self._fd

    def add(self, directory: str) -> int:
        """Watch the files in a directory, and return the watch's number. OSError."""
        return self._called(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), SAVED | ONLYDIR))

    def events(self) -> Iterator[tuple[int, int, str]]:
        """What has happened: the watch's number, the kind, and the file's name."""
        try:
            data = os.read(self._fd, BUFFER)
        except BlockingIOError:
            return
        start = 0
        while start < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, start)
            start += _EVENT.size + length
            yield watch, mask, os.fsdecode(data[start - length : start].rstrip(b"\0"))

    @staticmethod
    def _called(result: int) -> int:
        if result == -1:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return result
