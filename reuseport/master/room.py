"""Whether there is room for one more generation: of their number, of memory, and of file descriptors.

Memory is compared with what the serving generation uses, which the new one will need beside it before any page of the
old one is given back. That is a guess, and a good one where releases are alike; `--no-check-memory` is for the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Sequence
from pathlib import Path


def refusal(living: Sequence[str], most: int, needed: int = 0, free: int | None = None) -> str:
    """Why a release cannot begin, with the figures; "" if it can.

    `living`: each living generation in words. `most`: how many there may be, 0 for any number. `needed` and `free`
    are in bytes; None if nobody knows.
    """
    there = "; ".join(living)
    if most and len(living) + 1 > most:
        return (
            f"a release would make it {len(living) + 1} generations, and {most} may live at once (--max-generations): "
            f"{there}"
        )
    if free is not None and needed > free:
        return (
            f"the generation that serves uses {mebibytes(needed)} of memory, and {mebibytes(free)} are free, too "
            f"little for another one (--no-check-memory releases all the same): {there}"
        )
    return ""


def descriptors(count: int) -> str:
    """Why this process cannot open so many descriptors now; "" if it can."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        left = len(opened)
        return f"a release takes {count} file descriptors of the master, and {left} are left: {in_words(error)}"
    finally:
        for fd in opened:
            os.close(fd)
    return ""


def in_words(error: OSError) -> str:
    """The error, and the limit that it comes from (RLIMIT_NOFILE, getrlimit(2))."""
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"{error.strerror}; its limit is {limit} (ulimit -n, LimitNOFILE= of a unit)"
    return str(error.strerror)


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def free_memory(root: str = "/", pid: int | str = "self") -> int | None:
    """Bytes that can be had without swapping, on this machine and in the cgroup of process `pid` and those above it.

    See proc(5) and cgroups(7). None where /proc does not say.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(root, "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    path = ""
    with contextlib.suppress(OSError):
        for line in Path(root, f"proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                path = line.removeprefix("0::").strip("/")
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts) + 1):
        if (left := _left_in(os.path.join(root, "sys/fs/cgroup", *parts[:depth]))) is not None:
            found.append(left)
    return min(found, default=None)


def _left_in(cgroup: str) -> int | None:
    """Bytes up to the cgroup's limit; what the page cache holds can be dropped, and does not count."""
    try:
        limit = int(Path(cgroup, "memory.max").read_text())
        used = int(Path(cgroup, "memory.current").read_text())
        cached = [line.split() for line in Path(cgroup, "memory.stat").read_text().splitlines()]
    except (OSError, ValueError):
        return None  # no such controller, or no limit ("max")
    return max(0, limit - used + sum(int(words[1]) for words in cached if words[0] == "inactive_file"))
