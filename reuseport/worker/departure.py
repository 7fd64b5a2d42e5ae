"""How a process of the application leaves."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from reuseport.worker import exithandlers, said


def leave(status: int) -> NoReturn:
    """As sys.exit would, but without unwinding into frames of the application's script (embedding)."""
    exithandlers.run()
    exithandlers.close_temporary_files()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    said.end_lines()
    os._exit(status)
