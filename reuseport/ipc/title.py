"""The title of a process in the process list. Without setproctitle the list shows the command line instead."""

from __future__ import annotations

try:
    from setproctitle import setproctitle as set_title
except ImportError:

    def set_title(title: str) -> None:
        """Do nothing: this environment has no setproctitle."""


__all__ = ["set_title"]
