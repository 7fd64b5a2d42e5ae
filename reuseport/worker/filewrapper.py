"""`wsgi.file_wrapper` (PEP 3333): a file as the body of a response, and whether sendfile(2) can send it.

sendfile reads a descriptor; the application means the bytes that `read()` returns. Many objects have a `fileno()`
whose bytes differ from those of `read()`: gzip and zipfile members, text files, proxies, downloads with a cache. So the
question is not which methods an object has, but which code runs when its `read` is called. sendfile is used only where
that code is CPython's own `read` of a plain binary file. Every other object is read in blocks.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from types import BuiltinMethodType
from typing import Any, NamedTuple

from gevent._hub_local import get_hub_if_exists

from .fileparts import Part, bounded, is_werkzeugs, werkzeugs_range
from .timeslice import TimeSlice

PLAIN = (io.FileIO, io.BufferedReader, io.BufferedRandom)
# A buffered file calls these methods of its raw file by name, so an attribute of the instance can replace them.
READING = frozenset({"read", "readall", "readinto", "seek", "tell"})


class Region(NamedTuple):
    """A part of a regular file. `offset` and `size` are in bytes. `bounded`: it may end before the file does."""

    fd: int
    offset: int
    size: int
    bounded: bool


class FileWrapper:
    """An open file as an iterator over its blocks. It has `close` only where the file has one.

    It is its own iterator and offers `seekable`, `seek` and `tell`, because werkzeug's ranges seek what iter() returns.
    """

    def __init__(self, filelike: Any, blksize: int = 65536) -> None:
        self.filelike = filelike
        self.blksize = blksize
        self._slice: TimeSlice | None = None
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        # What iterates may skip blocks, as werkzeug's ranges do. Then no write of the response gives others a turn.
        if self._slice is None:
            hub = get_hub_if_exists()
            self._slice = TimeSlice(hub) if hub is not None else None
        if self._slice is not None:
            self._slice.check()
        block = self.read(None)
        if not block:
            raise StopIteration
        return block

    def read(self, limit: int | None) -> bytes:
        """The next block, at most `limit` bytes of it; b"" at the end. TypeError for a file in text mode."""
        size = self.blksize if limit is None or 0 < self.blksize < limit else limit
        block: bytes = self.filelike.read(size)
        if isinstance(block, str):
            kind = type(self.filelike).__name__
            raise TypeError(f"wsgi.file_wrapper: read() of {kind} returns str: open the file in binary mode ('rb')")
        return block

    def seekable(self) -> bool:
        learn_ranges()  # werkzeug asks this before it answers a range
        if hasattr(self.filelike, "seekable"):
            return bool(self.filelike.seekable())
        return hasattr(self.filelike, "seek") and hasattr(self.filelike, "tell")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position: int = self.filelike.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self.filelike.tell()
        return position

    @property
    def app_iter_range(self) -> Callable[[int, int | None], FileWrapper]:
        """WebOb's and Pyramid's way to a range: the bytes from `start` up to `stop`, counted from the position.

        AttributeError where the file cannot seek. They then iterate from the first byte on, and throw away.
        """
        if not self.seekable():
            raise AttributeError("app_iter_range")
        return self._part

    def _part(self, start: int, stop: int | None) -> FileWrapper:
        self.seek(self.tell() + start)
        return FileWrapper(self.filelike if stop is None else Part(self.filelike, stop - start), self.blksize)

    def region(self, most: int | None = None) -> Region | None:
        """The bytes that `read()` would return up to the end, as a part of a file on a disk. None: they must be read.

        `most`: how many of them at most. Raises the file's own error where `read()` would raise it too: ValueError if
        the file is closed, for example.
        """
        filelike = self.filelike
        if (part := bounded(filelike)) is not None:
            filelike, remaining = part
            most = remaining if most is None else min(most, remaining)
        file = _plain_file(filelike)
        if file is None or not file.readable():
            return None
        if type(file) is io.BufferedRandom:
            file.flush()  # as its read() does; only then the descriptor has what was written
        fd = file.fileno()
        status = os.fstat(fd)
        # Files of /proc and /sys are regular, but have a size of 0 or of a page. They use no blocks.
        if not stat.S_ISREG(status.st_mode) or not status.st_blocks:
            return None
        offset = file.tell()  # the application's position: a buffered file has read the descriptor further than that
        size = status.st_size - offset
        if most is not None:
            size = min(size, most)
        return Region(fd, offset, size, most is not None) if size > 0 else None


def _plain_file(filelike: Any) -> Any:
    """The file of `io` whose own `read` answers `filelike.read()`; None if other code answers it."""
    if type(filelike) is tempfile._TemporaryFileWrapper:
        # It passes `read` on to its file, and remembers that as an attribute. So does an application that replaces it.
        if "read" in vars(filelike):
            return None
        filelike = filelike.file
    read = filelike.read
    # A subclass: that of methods which know their class, as FileIO's does from 3.13 on. A proxy has another type.
    is_builtin = issubclass(type(read), BuiltinMethodType)
    if not is_builtin or read.__name__ != "read" or type(read.__self__) not in PLAIN:
        return None
    file = read.__self__
    raw = file if type(file) is io.FileIO else file.raw
    return file if type(raw) is io.FileIO and READING.isdisjoint(vars(raw)) else None


# What an application can return of which `region_of` may know the file.
KINDS: set[type] = {FileWrapper}


def learn_ranges() -> None:
    """Know werkzeug's class, which is there only when the application has imported werkzeug."""
    module = sys.modules.get("werkzeug.wsgi")
    kind = getattr(module, "_RangeWrapper", None)
    if isinstance(kind, type) and kind not in KINDS and is_werkzeugs(kind):
        KINDS.add(kind)


def region_of(result: Any) -> Region | None:
    """The part of a file that the result, which is one of KINDS, would yield. None: it must be iterated over."""
    if type(result) is FileWrapper:
        return result.region()
    found = werkzeugs_range(result)
    if found is None or type(found.iterable) is not FileWrapper:
        return None
    found.iterable.seek(found.start)  # it does so itself when it begins
    return found.iterable.region(None if found.end is None else found.end - found.start)
