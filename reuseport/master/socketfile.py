"""The file of a unix socket that this master has bound: made in the place of a dead one's, and removed by its identity.

The path alone does not say whose socket lies there. Another server may have bound it since, and a message or a link may
lead to any other path. So the master remembers the file by device and inode, holds the directory that it lies in, and
removes nothing else. The kernel gives the inode to no other file as long as some process has the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

Identity = tuple[int, int]  # device and inode


class NoSocket(OSError):
    """Something else than a socket lies at the path."""


class SocketFile:
    """The file at `path`, if it is this one still. `close` must be called, or `remove`."""

    def __init__(self, path: str, identity: Iterable[int]) -> None:
        """OSError where there is no such directory."""
        self.path = path
        device, inode = identity
        self.identity: Identity = int(device), int(inode)
        self._name = os.path.basename(path)
        self._directory = _open_directory(path)

    def remove(self) -> str:
        """Remove the file, before the socket is closed. Returns why that was not done; "" if it has been, or if nothing
        lies there."""
        try:
            info = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if _identity(info) != self.identity:
                return f"{self.path} is not the socket that this master has bound, and stays"
            os.unlink(self._name, dir_fd=self._directory)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{self.path} cannot be removed: {(error.strerror or str(error)).lower()}"
        finally:
            self.close()
        return ""

    def close(self) -> None:
        """Leave the file where it is."""
        if self._directory != -1:
            os.close(self._directory)
            self._directory = -1


def bind(sock: socket.socket, path: str, umask: int) -> SocketFile:
    """Bind a stream socket to a path, and remove a dead socket that lies there.

    NoSocket where something else lies there; OSError, with EADDRINUSE if it is in use.
    """
    name = os.path.basename(path)
    with _held(path) as directory:
        _remove_dead(path, name, directory)
        before = os.umask(umask)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        return SocketFile(path, _identity(info))


def _remove_dead(path: str, name: str, directory: int) -> None:
    try:
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(before.st_mode):
        raise NoSocket(errno.EEXIST, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        # Any other answer is that of a living socket: its queue is full, it is of another type, or of another user's.
        if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    with suppress(FileNotFoundError):
        if _identity(os.stat(name, dir_fd=directory, follow_symlinks=False)) == _identity(before):
            os.unlink(name, dir_fd=directory)


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino


def _open_directory(path: str) -> int:
    return os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def _held(path: str) -> Iterator[int]:
    directory = _open_directory(path)
    try:
        yield directory
    finally:
        os.close(directory)
