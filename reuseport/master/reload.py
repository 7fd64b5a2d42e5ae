"""--reload: saving a file releases, for development.

The master never imports the application. Its zygotes and workers say from which directories they have imported
(`worker.imports`), and any Python file in one of these counts, also one that nobody has imported yet. A release follows
when nothing has changed for a moment: editors save in several steps, and often several files.

inotify tells of a change at once. Where there is none to be had the files are looked at once in a second, as are the
directories themselves in any case: one that was replaced by another is no longer watched.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reuseport.master.inotify import IGNORED, OVERFLOW, Inotify
from reuseport.master.loop import Loop

DIRECTORIES = 4096  # that are watched at most: processes name them, and may name any number
QUIET = 0.15  # seconds without a change until the release

Stamps = Mapping[str, tuple[int, ...]]


class Reload:
    """`extra` says which other files count (--reload-extra-file), a directory standing for all files in it."""

    def __init__(
        self,
        loop: Loop,
        extra: Callable[[], Iterable[str]],
        release: Callable[[], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._loop = loop
        self._extra = extra
        self._release = release
        self._log = log
        self._code: set[str] = set()  # directories whose Python files count
        self._others: set[str] = set()
        self._known: dict[str, Stamps] = {}  # by directory: what was seen of it at the last look
        self._watches: dict[int, str] = {}
        self._changed_at = 0.0
        self._changed = ""  # what has changed since the last release
        self._inotify: Inotify | None = None
        try:
            self._inotify = Inotify()
            loop.watch(self._inotify.fileno(), self._hear)
        except OSError as error:
            self._do_without(error)
        log("warning", "--reload is for development: each saved file releases")
        self.look()

    def watch(self, directory: str) -> None:
        """Somebody has imported from there."""
        path = os.path.realpath(directory)
        if path not in self._code and len(self._code) < DIRECTORIES:
            self._code.add(path)
            self._known[path] = self._see(path)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec: who has imported says so once, and what is saved meanwhile waits
        in the descriptor, or is not as it was seen last."""
        return {
            "directories": sorted(self._code),
            "inotify": -1 if self._inotify is None else lend(self._inotify.fileno()),
            "watches": list(self._watches.items()),
            "known": self._known,
            "changed": self._changed,
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        fd = left.get("inotify", -1)
        known = {
            directory: {name: tuple(stamp) for name, stamp in stamps.items()}
            for directory, stamps in left.get("known", {}).items()
        }
        if fd != -1:
            self._give_up_inotify()
            self._inotify = Inotify(fd)
            self._loop.watch(fd, self._hear)
            self._watches = dict(left["watches"])
            self._known = {directory: self._see(directory) for directory in self._known}
        for directory in left["directories"]:
            self.watch(directory)
        for directory in known.keys() & self._known.keys():
            if fd != -1:
                self._known[directory] = known[directory]  # one that has been replaced is found at the next look
            elif self._stamps(directory) != known[directory]:
                self._note(directory)
        if left.get("changed"):
            self._note(left["changed"])

    def close(self) -> None:
        """Another master has taken over: what is saved from now on is nothing to this one."""
        self._changed = ""
        self._known.clear()
        self._give_up_inotify()

    def look(self) -> None:
        """What nothing tells of, once in a second."""
        others = {os.path.realpath(path) for path in self._extra()}
        if others != self._others:
            self._others = others
            for path in others:
                directory = path if os.path.isdir(path) else os.path.dirname(path)
                self._known[directory] = self._see(directory)
        for directory in list(self._known):
            watched = self._inotify is not None and self._known[directory]
            now = self._identity(directory) if watched else self._see(directory)
            before = self._known[directory]  # looked up now: inotify may just have been given up
            if now != before:
                self._known[directory] = self._see(directory)
                name = min(now.items() ^ before.items())[0]
                self._note(os.path.join(directory, name) if name else directory)

    def _counts(self, directory: str, name: str) -> bool:
        if name.startswith("."):
            return False  # an editor's own
        code = directory in self._code and name.endswith(".py")
        return code or directory in self._others or os.path.join(directory, name) in self._others

    def _see(self, directory: str) -> Stamps:
        """What would not be the same if something had changed that nobody tells of; empty if there is no directory."""
        if self._inotify is not None:
            try:
                watch = self._inotify.add(directory)
                # Another one of that name may live on elsewhere.
                self._watches = {number: path for number, path in self._watches.items() if path != directory}
                self._watches[watch] = directory
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                return {}
            except OSError as error:  # the user has no watches left, say
                self._do_without(error)
        return self._identity(directory) if self._inotify is not None else self._stamps(directory)

    @staticmethod
    def _identity(directory: str) -> Stamps:
        try:
            info = os.stat(directory)
        except OSError:
            return {}
        return {"": (info.st_dev, info.st_ino)}

    def _stamps(self, directory: str) -> Stamps:
        found = {}
        try:
            names = os.listdir(directory)
        except OSError:
            return {}
        for name in names:
            if self._counts(directory, name):
                with contextlib.suppress(FileNotFoundError):  # gone while we looked, or a link to nowhere
                    info = os.stat(os.path.join(directory, name))
                    found[name] = (info.st_mtime_ns, info.st_size, info.st_ino)
        return found

    def _hear(self) -> None:
        assert self._inotify is not None
        for watch, mask, name in self._inotify.events():
            if mask & OVERFLOW:
                self._note("more than inotify can tell of")
            elif (directory := self._watches.get(watch)) is None:
                continue
            elif mask & IGNORED:
                del self._watches[watch]
                self._known[directory] = {}  # it has gone, and may come again
            elif self._counts(directory, name):
                self._note(os.path.join(directory, name))

    def _do_without(self, error: OSError) -> None:
        self._log("warning", f"--reload: no inotify ({error.strerror}): files are looked at once in a second")
        if self._inotify is not None:
            self._give_up_inotify()
            self._known = {directory: self._stamps(directory) for directory in self._known}

    def _give_up_inotify(self) -> None:
        if self._inotify is not None:
            self._loop.forget(self._inotify.fileno())
            os.close(self._inotify.fileno())
            self._inotify = None

    def _note(self, path: str) -> None:
        self._changed_at = time.monotonic()
        if not self._changed:
            self._changed = path
            self._loop.later(QUIET, self._settle)

    def _settle(self) -> None:
        if not self._changed:
            return
        left = self._changed_at + QUIET - time.monotonic()
        if left > 0:
            self._loop.later(left, self._settle)
            return
        self._log("info", f"{self._changed} has changed: releasing (--reload)")
        self._changed = ""
        self._release()
