"""How a process of the application leaves."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

from reuseport.worker import said


def leave(status: int) -> NoReturn:
    """As sys.exit would, but without unwinding into frames of the application's script (embedding)."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    said.end_lines()
    os._exit(status)
