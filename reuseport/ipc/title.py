"""The title of a process in the process list. Without setproctitle the list shows the command line instead."""

from __future__ import annotations

from reuseport import names

try:
    from setproctitle import setproctitle
except ImportError:

    def setproctitle(title: str) -> None:
        """Do nothing: this environment has no setproctitle."""


LONGEST = 500  # characters


def set_title(title: str) -> None:
    """Show this title. setproctitle refuses a NUL and a surrogate, so those are escaped."""
    setproctitle(names.line(title, LONGEST))
