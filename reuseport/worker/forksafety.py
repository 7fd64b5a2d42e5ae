"""What an import may leave behind that does not survive a fork, and what may change under a living generation.

A native task exists only in the parent after a fork; a greenlet (a patched thread is one) would run in parent and
child both; an open connection would be spoken on by both. Each of them is looked for after the import.
"""

from __future__ import annotations

import gc
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import gevent
import gevent.hub
import greenlet
from gevent import monkey

sleep = monkey.get_original("time", "sleep")
LOOKS = 10  # at the number of native threads, within a tenth of a second
FILES, ENTRIES = 5_000, 50_000  # what a `Witness` looks at, at most
FOREIGN = frozenset({"__pycache__", "dist-packages", "node_modules", "site-packages"})
VIRTUAL = frozenset({"pyvenv.cfg", "conda-meta"})  # what shows that a directory is an environment


def check(known_fds: set[int]) -> list[str]:
    """The reasons against forking this process, each as a few words. `known_fds` are the server's own sockets."""
    reasons = []
    # gevent looks names up in native threads of its own, and makes new ones after a fork. Idle ones are no reason.
    pool = gevent.get_hub().threadpool
    if not len(pool):
        pool.kill()
    tasks = _tasks()
    if tasks > 1:
        reasons.append(f"{tasks - 1} native thread{'s' if tasks > 2 else ''}")
    if names := _greenlets():
        reasons.append(
            f"{len(names)} running greenlet{'s' if len(names) > 1 else ''} ({', '.join(sorted(set(names))[:3])})"
        )
    if connections := _connections(known_fds):
        reasons.append(f"{len(connections)} open connection{'s' if len(connections) > 1 else ''} ({connections[0]})")
    return reasons


def _tasks() -> int:
    """Native threads, the main one included. The kernel's task outlives the thread's last Python code by a moment."""
    tasks = 0
    for _ in range(LOOKS):
        tasks = len(os.listdir("/proc/self/task"))
        if tasks == 1:
            break
        sleep(0.1 / LOOKS)
    return tasks


def _greenlets() -> list[str]:
    """Greenlets that have been started or are about to be, but for the main one and gevent's own."""
    found = []
    main = greenlet.getcurrent()
    for thing in gc.get_objects():
        # Not isinstance: it asks an object what it is, and a lazy one of the application's would be made to answer.
        if not issubclass(type(thing), greenlet.greenlet) or thing is main or thing.dead:
            continue
        if isinstance(thing, gevent.hub.Hub) or thing.parent is None:
            continue
        if thing.gr_frame is None and not getattr(thing, "started", False):
            continue  # a greenlet that was made and never started runs nowhere
        run = getattr(thing, "_run", None) or thing
        found.append(getattr(run, "__qualname__", None) or type(thing).__name__)
    return found


def _connections(known: set[int]) -> list[str]:
    """Sockets that are connected to somebody, in words."""
    import socket

    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd in known or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue  # the descriptor of the listing itself has gone by now
        with duplicate:
            try:
                peer = duplicate.getpeername()
            except OSError:
                continue  # a listener, or a socket that nobody is at the other end of
            if fd > 2 and peer:
                found.append(f"to {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"to {peer!r}")
    return found


class Witness:
    """Remembers the application's files as they were when it was loaded.

    These are the modules that were imported from `directory`, and the Python files below it and below `others` that an
    import in a function may still read. `_sources` says which of those count.
    """

    def __init__(self, directory: str, *others: str) -> None:
        self._told = False
        self._looked = time.monotonic()
        self._files: dict[str, tuple[int, int]] = {}
        prefix = directory.rstrip("/") + "/"
        loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        for path in (
            *(path for path in loaded if isinstance(path, str) and path.startswith(prefix)),
            *_sources((directory, *others)),
        ):
            if "/site-packages/" not in path and (seen := _stamp(path)):
                self._files[path] = seen

    def changed(self, rest: float = 0.0) -> str:
        """The first file that is no longer what was there, told once; "" if there is none.

        A look costs about 2 us for each file, so none is made within `rest` seconds of the last one.
        """
        now = time.monotonic()
        if self._told or now < self._looked + rest:
            return ""
        self._looked = now
        for path, seen in self._files.items():
            if _stamp(path) != seen:
                self._told = True
                return path
        return ""


def _sources(roots: Iterable[str]) -> Iterator[str]:
    """Python files below these directories, the uppermost first: FILES at most, found among ENTRIES at most.

    Left out are hidden directories, installed packages, virtual environments, and directories behind links.
    """
    roots = list(dict.fromkeys(roots))
    left = deque(roots)
    files = entries = 0
    while left:
        directory = left.popleft()
        try:
            with os.scandir(directory) as listing:
                found = list(islice(listing, ENTRIES - entries))
        except OSError:
            continue  # it may not be ours to read, and then nothing is imported from there
        entries += len(found)
        if directory not in roots and not VIRTUAL.isdisjoint(entry.name for entry in found):
            continue
        for entry in sorted(found, key=lambda entry: entry.name):
            if entry.name.endswith(".py"):
                if files == FILES:
                    return
                files += 1
                yield entry.path
            elif entry.name[0] != "." and entry.name not in FOREIGN and entry.is_dir(follow_symlinks=False):
                left.append(entry.path)


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size
