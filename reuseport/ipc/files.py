"""State files, which one process writes for others to read, or for the next master.

A file is replaced as a whole, or lines are added to it. Both survive a loss of power: fsync(2) of the file, and of the
directory that has its name. No link is followed at the last component, and a file that is replaced is made anew.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Callable
from posix import close  # gevent's os.close leaves it to its loop
from typing import Any, TypeVar

from reuseport.ipc.logfile import check_file

Shape = TypeVar("Shape")
Log = Callable[[str, str], None]


def say_nothing(level: str, text: str) -> None:
    """For what has no log."""


LARGEST = 64 << 20  # bytes: more is read of no state file
SEVERAL = 9  # damaged files of one name that are kept

NEW = ".new"


class Damaged(ValueError):
    """A state file does not hold what it should; the message says why."""


def replace(path: str, text: str, mode: int = 0o600, *, sync: bool = True) -> None:
    """Give the file these contents: a reader sees the old ones or the new ones, never half of them. OSError.

    Without `sync` a loss of power may leave an empty file: for contents that mean nothing after a reboot.
    """
    new = path + NEW
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        if sync:
            os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)  # on a full disk it would take the room that the next attempt needs
        raise
    finally:
        close(fd)
    os.replace(new, path)
    if sync:
        sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the name of a file last, after it was made, renamed or removed. OSError."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without it
            raise
    finally:
        close(fd)


def tail(path: str, size: int, owner: int | None = None) -> bytes:
    """The end of a file of lines, at most so many bytes, from the beginning of a line on; b"" for a file that is not
    there. OSError; Damaged, as `read`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _judged(error) from None
    try:
        status = _checked(fd, owner)
        with open(fd, "rb", closefd=False) as file:
            begin = max(0, status.st_size - size)
            file.seek(begin)
            if begin:
                file.readline()
            return file.read(size)
    finally:
        close(fd)


def read(path: str, owner: int | None = None) -> bytes:
    """The contents. OSError; Damaged for what is no regular file, or what another user than root and `owner` has or can
    write to (None: of any user's)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _judged(error) from None
    try:
        _checked(fd, owner)
        with open(fd, "rb", closefd=False) as file:
            data = file.read(LARGEST + 1)
    finally:
        close(fd)
    if len(data) > LARGEST:
        raise Damaged(f"it is larger than {LARGEST} bytes")
    return data


def _checked(fd: int, owner: int | None) -> os.stat_result:
    """The status of a file that no user but root and `owner` can have written. A master executes the versions that it
    reads from a history. Damaged."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("it is no regular file")
    if owner is not None:
        if status.st_uid not in (0, owner):
            raise Damaged(f"it belongs to user {status.st_uid}")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Damaged(f"others can write to it (mode {status.st_mode & 0o7777:04o})")
    return status


def _judged(error: OSError) -> Exception:
    """What a failed open(2) says of the file itself is Damaged. A lack of descriptors or of permission says nothing."""
    if error.errno == errno.ELOOP:
        return Damaged("it is a symbolic link")
    if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENODEV):
        return Damaged(os.strerror(error.errno).lower())
    return error


def read_json(path: str, shape: Callable[[Any], Shape], log: Log, lost: str) -> Shape | None:
    """What `shape` makes of the JSON in a file of the master's; None where there is none.

    A file that cannot be read, or of which `shape` raises a ValueError, TypeError or KeyError, is set aside, and one
    warning names it and what is `lost`.
    """
    try:
        return shape(json.loads(read(path, os.geteuid())))
    except FileNotFoundError:
        return None
    except OSError as error:
        log("error", f"{path} cannot be read ({(error.strerror or str(error)).lower()}), so {lost}")
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        tell_damage(path, error, log, lost)
        return None


def tell_damage(path: str, error: Exception, log: Log, lost: str, shown: str = "") -> None:
    """Set a damaged file aside, and warn. `shown` is its path for people."""
    why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    aside = set_aside(path)
    kept = f"it is kept as {os.path.basename(aside)}" if aside else "it could not be renamed"
    log("warning", f"{shown or path} is damaged ({why}), so {lost}; {kept}")


def set_aside(path: str) -> str:
    """Rename a damaged file, so that a person can look at it; its new path, "" where that is not possible.

    The oldest is overwritten when there are SEVERAL.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S")
    to = f"{path}.damaged-{stamp}"
    try:
        os.rename(path, to)
    except OSError:
        return ""
    directory, name = os.path.split(path)
    with contextlib.suppress(OSError):
        kept = sorted(one for one in os.listdir(directory or ".") if one.startswith(f"{name}.damaged-"))
        for one in kept[:-SEVERAL]:
            os.unlink(os.path.join(directory, one))
    return to


def appending(path: str) -> int:
    """A descriptor to add lines by. A last line that was torn is ended, or the next one would be lost with it.
    OSError, for root also where another user's link is in the path."""
    if os.geteuid() == 0:
        check_file(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
    return fd
