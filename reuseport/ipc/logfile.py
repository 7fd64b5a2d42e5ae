"""Log files: how a process opens a log file, and how it gets the files that the master has opened.

The master opens a log file and passes the descriptor on. So a worker of `--user` can write a log that only root can
open, also after a rotation.

A master of root opens no log through a link that another user could have made. With a log directory that the workers
own, such a link would have root write to any file of the system (CWE-59).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from posix import close

from reuseport.ipc import streams
from reuseport.ipc.walk import LINKS, steps
from reuseport.options.logplace import DESCRIPTOR, objection, parse
from reuseport.options.machine import name_of

MODE = 0o640
APPEND = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK means nothing to a file, but to a fifo
DESCRIPTORS = re.compile(r"/proc/\d+(?:/task/\d+)?/fd")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def open_file(path: str, users: Collection[int] = (), owner: tuple[int, int] | None = None, mode: int = MODE) -> int:
    """A descriptor to append to the file, which is made if it is not there. OSError, whose strerror says why.

    Where this is root, `users` are other users whose files may be the log in a directory like /tmp, and a file that is
    made is given to `owner`, a (uid, gid).
    """
    if os.geteuid() != 0:
        try:
            return os.open(path, APPEND | os.O_CREAT, mode)
        except OSError as error:
            return _copied(path, error)
    with contextlib.ExitStack() as stack:
        directory, name, is_descriptor = _walk(path, stack)
        if is_descriptor:
            try:
                return os.open(name, APPEND, dir_fd=directory)
            except OSError as error:
                return _copied(path, error)
        while True:
            try:
                fd = os.open(name, APPEND | os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL, mode, dir_fd=directory)
            except FileExistsError:
                pass
            else:
                if owner is not None:
                    os.fchown(fd, *owner)
                return fd
            try:
                fd = os.open(name, APPEND | os.O_NOFOLLOW, dir_fd=directory)
                break
            except FileNotFoundError:
                continue  # removed in between, by logrotate for example
            except OSError as error:
                why = "it is a symbolic link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
                raise OSError(error.errno, why, path) from None
        try:
            _check(path, os.fstat(fd), os.fstat(directory), users)
        except OSError:
            os.close(fd)
            raise
        return fd


def _copied(path: str, error: OSError) -> int:
    """A copy of the descriptor of this process that the path leads to. A socket cannot be opened again (ENXIO).

    Raises `error` for everything else.
    """
    number = _own_descriptor(path) if error.errno == errno.ENXIO else -1
    if number == -1 or objection(number):
        raise error
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 5)


def _own_descriptor(path: str) -> int:
    """The number of this process's descriptor that a path leads to, through links as well; -1 if it leads elsewhere."""
    for _ in range(LINKS):
        directory = os.path.realpath(os.path.dirname(os.path.abspath(path)))
        name = os.path.basename(path)
        if re.fullmatch(rf"/proc/{os.getpid()}(?:/task/\d+)?/fd", directory) and name.isdigit():
            return int(name)
        try:
            path = os.path.join(directory, os.readlink(os.path.join(directory, name)))
        except OSError:
            return -1
    return -1


def write_file(path: str, text: str) -> None:
    """Give a file that `open_file` would open these contents. OSError."""
    fd = open_file(path, mode=0o644)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
        os.write(fd, text.encode())
    finally:
        close(fd)


def check_file(path: str, users: Collection[int] = ()) -> None:
    """OSError where root's `open_file` would refuse the path. Makes and opens nothing."""
    with contextlib.ExitStack() as stack:
        directory, name, is_descriptor = _walk(path, stack)
        if is_descriptor:
            return
        with contextlib.suppress(FileNotFoundError):
            _check(path, os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(directory), users)


def _walk(path: str, stack: contextlib.ExitStack) -> tuple[int, str, bool]:
    """The directory of a file, as a descriptor, the file's name there, and whether it is a link to a descriptor of a
    process (/proc/PID/fd, proc_pid_fd(5)), which cannot be read. Follows links that only root can have made."""

    for step in steps(path, stack):
        if step.status is None:
            if step.last:
                return step.directory, step.name, False
        elif stat.S_ISLNK(step.status.st_mode):
            if whose := _changed_by(os.fstat(step.directory), step.status):
                text = f"{step.name!r} is a symbolic link in a directory that {whose}, and root follows none there"
                raise OSError(errno.ELOOP, text, path)
            if step.last and DESCRIPTORS.fullmatch(os.readlink(f"/proc/self/fd/{step.directory}")):
                return step.directory, step.name, True
        elif step.last:
            return step.directory, step.name, False
    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def _changed_by(directory: os.stat_result, entry: os.stat_result) -> str:
    """Which other user could have put the entry there, in words; "" for none."""
    if directory.st_uid != 0:
        return f"{name_of(directory.st_uid)} owns"
    # In a directory like /tmp another user cannot replace root's entry, but can have made a hard link to root's file.
    kept = directory.st_mode & stat.S_ISVTX and entry.st_uid == 0 and entry.st_nlink == 1
    return "others can write to" if directory.st_mode & OTHERS_WRITE and not kept else ""


def _check(path: str, status: os.stat_result, directory: os.stat_result, users: Collection[int]) -> None:
    """OSError for what is no log, or a file that another user has put there for root to write to."""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise OSError(errno.EINVAL, "it is no file, pipe or terminal", path)
    whose = _changed_by(directory, status)
    if whose and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        raise OSError(errno.EMLINK, f"it has another name (hard link), in a directory that {whose}", path)
    if directory.st_mode & stat.S_IWOTH and status.st_uid not in (0, directory.st_uid, *users):
        text = f"it belongs to {name_of(status.st_uid)}, in a directory where every user can make files"
        raise OSError(errno.EACCES, text, path)


class Passed:
    """The log files that the master has passed to this process, by their paths. Any thread may `open` one."""

    def __init__(self, fds: Mapping[str, int] | None = None) -> None:
        self._fds = dict(fds or {})
        for fd in self._fds.values():
            os.set_inheritable(fd, False)

    def lent(self) -> dict[str, int]:
        """The descriptors for an exec of this process, which keeps them."""
        for fd in self._fds.values():
            os.set_inheritable(fd, True)
        return dict(self._fds)

    @property
    def fds(self) -> Collection[int]:
        return self._fds.values()

    def take(self, paths: Sequence[str], fds: Sequence[int]) -> None:
        """Keep what a "logs" message brought, in the place of what came before."""
        for path, fd in zip(paths, fds, strict=True):
            if path in streams.PATHS:
                streams.replace(path, fd)
            elif path in self._fds:
                os.dup2(fd, self._fds[path], inheritable=False)  # the number stays, for a thread that opens it just now
                close(fd)
            else:
                self._fds[path] = fd

    def forget(self) -> None:
        """Close them. A master of an earlier version passes none: after a rotation each process opens its own."""
        fds, self._fds = self._fds, {}
        for fd in fds.values():
            close(fd)

    def open(self, path: str) -> int:
        """A descriptor of its own for the caller: of the file that was passed, else of one opened by this process.
        OSError. A master of an earlier version passes none."""
        place = parse(path)
        fd = streams.COPIES.get(place.number, self._fds.get(path))
        if fd is None and place.kind == DESCRIPTOR:
            raise OSError(errno.EBADF, f"the master was started without descriptor {place.number}", path)
        return open_file(path) if fd is None else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5)
