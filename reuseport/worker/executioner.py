"""A SIGKILL that the kernel sends to this process at a given time, whatever the process does by then.

A job may be deep in C code that never comes back, and its master may be dead: neither keeps a POSIX timer from firing
(timer_create(2)). A forked child does not inherit it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

SIGEV_SIGNAL = 0
SOONEST = 0.001  # seconds: 0 would mean never
LATEST = 1e9  # seconds: a time_t of any size holds it


class _Event(ctypes.Structure):
    """struct sigevent (sigevent(3type)): 64 bytes on every Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_byte * (64 - ctypes.sizeof(ctypes.c_void_p) - 2 * ctypes.sizeof(ctypes.c_int))),
    )


class _Times(ctypes.Structure):
    """struct itimerspec: no interval, then when."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "in_s", "in_ns"))


class Executioner:
    """One timer. OSError where the kernel gives none."""

    def __init__(self) -> None:
        self._libc = _library()
        self._timer = ctypes.c_void_p()
        event = _Event(None, signal.SIGKILL, SIGEV_SIGNAL)
        self._check(self._libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)))

    def appoint(self, seconds: float) -> None:
        """Kill this process then; a later call replaces an earlier one."""
        self._set(max(min(seconds, LATEST), SOONEST))

    def call_off(self) -> None:
        self._set(0.0)

    def _set(self, seconds: float) -> None:
        whole = int(seconds)
        times = _Times(0, 0, whole, int((seconds - whole) * 1e9))
        self._check(self._libc.timer_settime(self._timer, 0, ctypes.byref(times), None))

    @staticmethod
    def _check(result: int) -> None:
        if result != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def _library() -> Any:
    """The C library: glibc before 2.34 has these functions in another file."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
