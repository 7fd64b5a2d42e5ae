"""The log files that workers, jobs and zygotes write to. The master opens each once and passes its descriptor on."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reuseport.ipc.logfile import open_file
from reuseport.options import OptionError, Settings, logplace


class LogFiles:
    """`ids`: the user (uid, gid) of the workers, None if that is the master's. `log(level, text)`."""

    def __init__(self, ids: tuple[int, int] | None, log: Callable[[str, str], None]) -> None:
        self._ids = ids
        self._log = log
        self._fds: dict[str, int] = {}

    def check(self, settings: Settings) -> None:
        """Open the access log of a release now, while a failure is the asker's. OptionError.

        No release fails because of --log-file: the master has that file open.
        """
        for name, path in _paths(settings):
            if name == "access_log":
                try:
                    self._open(name, path)
                except OSError as error:
                    raise OptionError(f"{settings.where(name)}: cannot open {path}: {error.strerror}") from None

    def of(
        self, recipe: Mapping[str, Any] | None, *, anew: bool, another: bool = False
    ) -> tuple[list[str], tuple[int, ...]]:
        """The paths of a generation, and their descriptors. A file that cannot be opened is logged and left out.

        `anew`: the files are opened again, because the paths may lead to other files when a generation boots.
        `another`: the generation's zygote is another master's child, and has got that master's descriptors.
        """
        found: dict[str, int] = {}
        for name, path in _paths(Settings.from_json(recipe["settings"])) if recipe else ():
            if another and logplace.parse(path).kind == logplace.DESCRIPTOR:
                continue
            try:
                if anew or path not in self._fds:
                    self._open(name, path)
            except OSError as error:
                self._log("error", f"{path} cannot be opened: {error.strerror}")
            if path in self._fds:
                found[path] = self._fds[path]
        return list(found), tuple(found.values())

    def reopen(self, recipes: Iterable[Mapping[str, Any]]) -> None:
        """Open the files of these recipes again, after a rotation, and close all others."""
        wanted = {path: name for recipe in recipes for name, path in _paths(Settings.from_json(recipe["settings"]))}
        for path, name in wanted.items():
            try:
                self._open(name, path)
            except OSError as error:
                text = f"{path} could not be opened again, and goes on in the old file: {error.strerror}"
                self._log("error", text)
        for path in self._fds.keys() - wanted.keys():
            os.close(self._fds.pop(path))

    def close(self) -> None:
        self.reopen(())

    def _open(self, name: str, path: str) -> None:
        """In the place of the descriptor that there is, if that can be done."""
        place = logplace.parse(path)
        if place.kind == logplace.DESCRIPTOR:
            if why := logplace.objection(place.number):
                raise OSError(errno.EBADF, why)
            fd = fcntl.fcntl(place.number, fcntl.F_DUPFD_CLOEXEC, 5)
        else:
            # The master makes the log for itself, and an access log for the workers' user, as workers did.
            owner = self._ids if name == "access_log" else None
            fd = open_file(path, self._ids[:1] if self._ids else (), owner)
        if path in self._fds:
            os.close(self._fds[path])
        self._fds[path] = fd


def descriptors(recipe: Mapping[str, Any]) -> dict[str, int]:
    """The descriptors of this process that a recipe's logs name, by their paths, but standard output and error."""
    places = [(path, logplace.parse(path)) for _, path in _paths(Settings.from_json(recipe["settings"]))]
    return {
        path: place.number
        for path, place in places
        if place.kind == logplace.DESCRIPTOR and not logplace.objection(place.number)
    }


def _paths(settings: Settings) -> list[tuple[str, str]]:
    """The options that name a file or a descriptor, and its path. Standard output and error are always passed."""
    said = [(name, getattr(settings, name)) for name in ("log_file", "access_log")]
    places = [(name, path, logplace.parse(path)) for name, path in said if path]
    return [
        (name, path)
        for name, path, place in places
        if place.kind == logplace.FILE or (place.kind == logplace.DESCRIPTOR and place.number not in (1, 2))
    ]
