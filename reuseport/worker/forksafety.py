"""The leftovers of an import that do not survive a fork, and the files that change under a living generation.

A native task exists only in the parent after a fork. A greenlet (a patched thread is one) would run in parent and child
both. Descriptors are shared by both: `descriptors` says which of them are harmless, and which are not. Each of these is
looked for after the import.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import gevent
import gevent.hub
import greenlet
from gevent import monkey

from reuseport.worker.descriptors import hazard, held, held_by

sleep = monkey.get_original("time", "sleep")
LOOKS = 10  # at the number of native threads, within a tenth of a second
FILES, ENTRIES = 5_000, 50_000  # what a `Witness` looks at, at most
FOREIGN = frozenset({"__pycache__", "dist-packages", "node_modules", "site-packages"})
VIRTUAL = frozenset({"pyvenv.cfg", "conda-meta"})  # what shows that a directory is an environment
TURN = 0.001  # seconds that the loop gets to close what gevent closes late
TITLE = 60  # characters of a command that are told

# What makes descriptors, in words: the first class that fits says it.
MAKERS = (
    ("asyncio", "AbstractEventLoop", "an asyncio event loop"),
    ("multiprocessing.pool", "ThreadPool", "a multiprocessing.pool.ThreadPool"),
    ("multiprocessing.pool", "Pool", "a multiprocessing.Pool"),
    ("concurrent.futures.process", "ProcessPoolExecutor", "a ProcessPoolExecutor"),
    ("multiprocessing.managers", "BaseManager", "a multiprocessing manager"),
    ("multiprocessing.queues", "Queue", "a multiprocessing queue"),
    ("multiprocessing.queues", "SimpleQueue", "a multiprocessing queue"),
    ("multiprocessing.connection", "Connection", "a multiprocessing connection"),
)
PARTS = ("a multiprocessing queue", "a multiprocessing connection")  # others of MAKERS have them inside
FORKSERVER, TRACKER = "multiprocessing.forkserver", "resource_tracker"  # in the command of such a process


class Look:
    """Finds the leftovers of an import. Make one before the import, and ask for `reasons` after it.

    `early` are descriptors that were opened in this process before the server opened any, by sitecustomize or a .pth
    file: they are judged like those of the import.
    """

    def __init__(self, early: Mapping[int, str]) -> None:
        self._known = {fd: link for fd, link in held().items() if early.get(fd) != link}

    def reasons(self) -> list[str]:
        """The reasons against forking this process, each in a few words."""
        reasons = []
        # gevent looks names up in native threads of its own, and makes new ones after a fork. Idle ones are no reason.
        pool = gevent.get_hub().threadpool
        if not len(pool):
            pool.kill()
        tasks = _tasks()
        if tasks > 1:
            reasons.append(f"{tasks - 1} native thread{'s' if tasks > 2 else ''}")
        names = _greenlets()
        if names:
            reasons.append(
                f"{len(names)} running greenlet{'s' if len(names) > 1 else ''} ({', '.join(sorted(set(names))[:3])})"
            )
        found = self._hazards()
        if found:
            # Some may be closed already: in a cycle of garbage, or by gevent, whose os.close waits for the loop.
            gc.collect()
            if not names:  # which would run meanwhile
                gevent.sleep(TURN)
            found = self._hazards()
        return [*reasons, *_in_words(found)]

    def _hazards(self) -> dict[int, str]:
        """The descriptors of the import that processes cannot share, and what each of them is."""
        passed_over = {*_of_hub(gevent.get_hub().loop), *_of_trackers()}
        found = {}
        for fd, link in held().items():
            if self._known.get(fd) != link and fd not in passed_over and (what := hazard(fd, link)):
                found[fd] = what
        return found


def _in_words(found: Mapping[int, str]) -> list[str]:
    connections = [what.removeprefix("connection ") for what in found.values() if what.startswith("connection ")]
    others = Counter(what for what in found.values() if not what.startswith("connection "))
    reasons = []
    if connections:
        reasons.append(f"{len(connections)} open connection{'s' if len(connections) > 1 else ''} ({connections[0]})")
    if others:
        kinds = ", ".join(what if count == 1 else f"{what} ({count})" for what, count in sorted(others.items()))
        makers = " and ".join(_makers(found))
        reasons.append(f"descriptors that processes cannot share: {kinds}{makers and f', of {makers}'}")
    return reasons


def _makers(found: Mapping[int, str]) -> list[str]:
    """The likely makers of these descriptors: objects of known classes, and processes at the other end of a pipe."""
    classes = [(getattr(sys.modules.get(name), kind, None), words) for name, kind, words in MAKERS]
    classes = [(kind, words) for kind, words in classes if isinstance(kind, type)]
    made: set[str] = set()
    for thing in gc.get_objects():
        # Not isinstance, as in `_greenlets`.
        words = next((words for kind, words in classes if issubclass(type(thing), kind)), "")
        if words and not (words == MAKERS[0][2] and thing.is_closed()):
            made.add(words)
    children = {pid: title for pid, title in _children().items() if TRACKER not in title}
    if any(FORKSERVER in title for title in children.values()):
        made.add("a multiprocessing forkserver")
    if whole := sorted(made.difference(PARTS)):
        return whole
    links = {link for fd, link in held().items() if fd in found}
    others = [
        f"process {pid} ({title[:TITLE]})" for pid, title in children.items() if links & set(held_by(pid).values())
    ]
    return others or [words for words in PARTS if words in made][:1]


def _of_hub(loop: Any) -> set[int]:
    """The descriptors of gevent's own loop, which makes itself new ones in each worker: its epoll set, and the eventfd
    that wakes it. A loop that has run has that eventfd in its set (proc_pid_fdinfo(5))."""
    epoll = loop.fileno()
    if epoll is None:
        return set()
    try:
        with open(f"/proc/self/fdinfo/{epoll}", encoding="ascii") as file:
            watched = {int(line.split()[1]) for line in file if line.startswith("tfd:")}
    except OSError:
        watched = set()  # before Linux 5.14 they are root's, with mode 0400, once the process has become another user
    eventfds = sorted(fd for fd, link in held().items() if link == "anon_inode:[eventfd]")
    return {epoll, *([fd for fd in eventfds if fd in watched] or eventfds[:1])}


def _of_trackers() -> set[int]:
    """The pipe to multiprocessing's resource tracker: forked processes share it by design, each sending short lines."""
    links = {link for pid, title in _children().items() if TRACKER in title for link in held_by(pid).values()}
    return {fd for fd, link in held().items() if link.startswith("pipe:") and link in links}


def _children() -> dict[int, str]:
    """The processes that this one has started, each with its command."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                pids = file.read().split()
            for pid in pids:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    found[int(pid)] = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # the task or the process has gone, or this kernel does not tell
    return found


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
