"""Files of the master's that others read, or a next master: whole ones, and ones that lines are added to."""

from __future__ import annotations

import os

from reuseport.master import reserve


def replace(path: str, text: str) -> None:
    """Give the file these contents: a reader sees the old ones or the new ones, never half of them. OSError."""
    try:
        with open(path + ".new", "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
    finally:
        reserve.refill()
    os.replace(path + ".new", path)


def appending(path: str) -> int:
    """A descriptor to add lines by. A last line that was torn is ended, or the next one would be lost with it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")
    return fd


def _private(path: str, flags: int) -> int:
    return reserve.take(lambda: os.open(path, flags | os.O_CLOEXEC, 0o600))
