"""The log files that workers, jobs and zygotes write to. The master opens each once and passes its descriptor on."""

from __future__ import annotations

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

    def of(self, recipe: Mapping[str, Any] | None, *, anew: bool) -> tuple[list[str], tuple[int, ...]]:
        """The paths of a generation, and their descriptors. A file that cannot be opened is logged and left out.

        `anew`: the files are opened again, because the paths may lead to other files when a generation boots.
        """
        found: dict[str, int] = {}
        for name, path in _paths(Settings.from_json(recipe["settings"])) if recipe else ():
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
            fd = fcntl.fcntl(place.number, fcntl.F_DUPFD_CLOEXEC, 5)
        else:
            # The master makes the log for itself, and an access log for the workers' user, as workers did.
            owner = self._ids if name == "access_log" else None
            fd = open_file(path, self._ids[:1] if self._ids else (), owner)
        if path in self._fds:
            os.close(self._fds[path])
        self._fds[path] = fd


def _paths(settings: Settings) -> list[tuple[str, str]]:
    """The options that name a file, and the file. Workers have copies of standard output and error anyway."""
    said = [(name, getattr(settings, name)) for name in ("log_file", "access_log")]
    places = [(name, path, logplace.parse(path)) for name, path in said if path]
    return [
        (name, path)
        for name, path, place in places
        if place.kind == logplace.FILE or (place.kind == logplace.DESCRIPTOR and place.number not in (1, 2))
    ]
