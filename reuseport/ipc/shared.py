"""The files in the run directory that workers map, and how each process reaches them.

With --user the master is root, and the workers are not. A worker can write any byte to each of these files, and it can
cut the files off: ftruncate(2) needs no more than a writable descriptor. A process that has mapped a file gets SIGBUS
when it touches a page behind the end of the file (mmap(2)). So two rules hold:

1. The master maps none of these files. It reads and writes them by system calls (`SharedFile`). Bytes behind the end of
   the file read as zeros. The master works on copies, which cannot change between a check and their use.
2. The files belong to root and have mode 0600. A zygote opens them before it becomes the workers' user (`Held`), and
   its workers map them by these descriptors. So no other process of that user can open them.

The descriptors of a memfd that is sealed against shrinking (F_ADD_SEALS, fcntl(2)) would protect the workers from each
other, too. But such memory has no name, so it ends with its last process, and neither a master nor a zygote of an
earlier version could open it. Processes of one user can end each other with kill(2) in any case.

A zygote of an earlier version opens the files by name, and so do its workers. While one lives, the files belong to the
workers' user.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from reuseport.ipc.rundir import RunDir

# As the attributes of a RunDir. PINNING only exists with --tenant.
MAPPED = ("scoreboard", "latencies", "begun", "inflight")
PINNING = ("pins", "marks")

WORD = 8  # bytes
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class SharedFile:
    """The master's way to such a file: a bytes-like object of a fixed `size` that costs a system call for each access.

    It takes integers and slices without negative indexes, as an mmap does. `reserve`: how many bytes of it have room on
    the disk from the beginning. FileNotFoundError where there is none and `create` is false; OSError for what is no
    file, or where the disk has no room for it.
    """

    def __init__(self, path: str, size: int, *, create: bool = False, reserve: int | None = None) -> None:
        self.path = path
        self.size = size
        self._reserve = size if reserve is None else reserve
        self._fd = os.open(path, _FLAGS | (os.O_CREAT if create else 0), 0o600)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "it is no file", path)
            if create:
                self.restore()
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def restore(self) -> bool:
        """Give the file its size again. Whether it was shorter: a worker had cut it off, or it is new."""
        if os.fstat(self._fd).st_size >= self.size:
            return False
        os.ftruncate(self._fd, self.size)
        # The room on the disk, too: a worker that touches a page without a block gets SIGBUS (mmap(2)).
        self.allocate(0, self._reserve)
        return True

    def allocate(self, at: int, length: int) -> None:
        """Have room on the disk for these bytes. OSError where there is none."""
        os.posix_fallocate(self._fd, at, length)

    def belong_to(self, uid: int, gid: int) -> None:
        """Give the file to that user, unless it has it."""
        now = os.fstat(self._fd)
        if (now.st_uid, now.st_gid) != (uid, gid):
            os.fchown(self._fd, uid, gid)

    def read(self, at: int, length: int) -> bytes:
        return os.pread(self._fd, length, at).ljust(length, b"\0")

    def write(self, at: int, data: bytes) -> None:
        os.pwrite(self._fd, data, at)

    def words(self, at: int, count: int) -> memoryview:
        """A copy of `count` 64-bit numbers that begin at byte `at`."""
        return memoryview(self.read(at, count * WORD)).cast("Q")

    def __getitem__(self, where: int | slice) -> Any:
        if isinstance(where, slice):
            begin, end, step = where.indices(self.size)
            return self.read(begin, max(0, end - begin))[::step]
        return self.read(where, 1)[0]

    def __setitem__(self, where: int | slice, data: Any) -> None:
        if isinstance(where, slice):
            begin, end, step = where.indices(self.size)
            if step != 1 or len(data) != end - begin:
                raise IndexError(f"{len(data)} bytes do not fit into {where}")
            self.write(begin, bytes(data))
        else:
            self.write(where, bytes((data,)))


class Words:
    """64-bit numbers in a SharedFile, by their index."""

    def __init__(self, file: SharedFile) -> None:
        self._file = file

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(self._file.read(index * WORD, WORD), sys.byteorder)

    def __setitem__(self, index: int, value: int) -> None:
        self._file.write(index * WORD, value.to_bytes(WORD, sys.byteorder))


class Held:
    """The descriptors of these files in a zygote, and in the processes that it forks. They stay open for good: record
    locks on a file end when their process closes any descriptor of that file (fcntl(2)). `fds` is what the program that
    this process ran before has `lent`."""

    def __init__(self, fds: Mapping[str, int] | None = None) -> None:
        self._fds = dict(fds or {})
        for fd in self._fds.values():
            os.set_inheritable(fd, False)

    def open(self, run_dir: RunDir, names: Iterable[str]) -> None:
        """Open the files that this process does not hold yet. OSError.

        A master of an earlier version has not made all of them. Once this process is the workers' user, it cannot open
        those that the next master has made since.
        """
        for name in names:
            if name not in self._fds:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    self._fds[name] = os.open(getattr(run_dir, name), _FLAGS)

    def get(self, name: str) -> int | None:
        """The descriptor; None where there was no such file to open."""
        return self._fds.get(name)

    def __getitem__(self, name: str) -> int:
        """FileNotFoundError where there was no such file to open."""
        try:
            return self._fds[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "the zygote has found no such file to open", name) from None

    def lent(self) -> dict[str, int]:
        """The descriptors, for the program that this process executes next."""
        for fd in self._fds.values():
            os.set_inheritable(fd, True)
        return dict(self._fds)


def mapped(fd: int, size: int) -> mmap.mmap:
    """The first `size` bytes of the file as memory, which all processes that map it share. OSError."""
    if os.fstat(fd).st_size < size:
        os.posix_fallocate(fd, 0, size)  # a master of a version with fewer rows has made it
    return mmap.mmap(fd, size)
