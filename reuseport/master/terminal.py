"""The terminal that a debugger in the application reads from: only with --reload, and only this process's own.

A debugger (breakpoint(), pdb.set_trace()) reads from descriptor 0, which is /dev/null in a zygote elsewhere. A process
that is in the background must not read from a terminal (termios(3): SIGTTIN stops its whole group).
"""

from __future__ import annotations

import contextlib
import os
import termios
from collections.abc import Mapping
from typing import Any

STDIN = 0


def is_for(values: Mapping[str, Any]) -> bool:
    """Whether zygotes with these values of options get the terminal."""
    return bool(values.get("reload")) and _is_ours()


def _is_ours() -> bool:
    if not os.isatty(STDIN):
        return False
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:  # ENOTTY: it is no controlling terminal, so it has no foreground and background
        return True


class Terminal:
    """The attributes of the terminal, as they were at the start: a debugger whose process is killed leaves its own."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._attributes: list[Any] | None = None
        if is_for(values):
            with contextlib.suppress(termios.error):
                self._attributes = termios.tcgetattr(STDIN)

    def __bool__(self) -> bool:
        return self._attributes is not None

    def restore(self) -> None:
        if self._attributes is not None and _is_ours():
            with contextlib.suppress(termios.error):
                # Not TCSADRAIN, which waits while the output is stopped (Ctrl-S): this is the last that a master does.
                termios.tcsetattr(STDIN, termios.TCSANOW, self._attributes)
