"""From where the application has been imported (--reload): whoever imports tells the master, which never does.

Only the directories are told, each once. What comes with Python or was installed does not count: nobody edits it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator

from reuseport.ipc import fields
from reuseport.ipc.channel import Channel

LIBRARY = os.path.dirname(os.__file__)
OURS = os.path.dirname(os.path.dirname(__file__))


class Imports:
    """What one process has told. `active`: whether there is anybody to tell."""

    def __init__(self, active: bool) -> None:
        self._active = active
        self._modules = 0  # how many there were at the last look
        self._told: set[str] = set()
        self._to: Channel | None = None

    def tell(self, channel: Channel | None, error: BaseException | None = None) -> None:
        """Tell what is new; to another master, all of it.

        `error` is what an import failed with: the file at fault is no module, and will be edited next.
        """
        if not self._active or channel is None:
            return
        if channel is not self._to:
            self._to = channel
            self._told.clear()
        elif len(sys.modules) == self._modules and error is None:
            return
        self._modules = len(sys.modules)
        for path in (*_modules(), *_blamed(error)):
            directory = os.path.dirname(path)
            if directory not in self._told and _is_edited(directory):
                self._told.add(directory)
                channel.send("imported", directory=directory)


def _modules() -> Iterator[str]:
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str):
            yield path


def _blamed(error: BaseException | None) -> Iterator[str]:
    """The files that an error points at. Our own errors are raised about others."""
    while error is not None:
        if isinstance(error, SyntaxError) and error.filename:
            yield error.filename
        for frame, _ in traceback.walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        error = error.__cause__ or error.__context__


def _is_edited(directory: str) -> bool:
    parts = directory.split(os.sep)
    installed = "site-packages" in parts or "dist-packages" in parts
    return (
        os.path.isabs(directory)
        and not installed
        and not directory.startswith((LIBRARY, OURS))
        and fields.is_path(directory)  # a file's name is what the code that compiled it says
    )
