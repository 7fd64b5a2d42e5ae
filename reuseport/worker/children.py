"""The processes that an import has started in a zygote.

They end with the zygote. A process that the import forked also hears of a zygote that is killed (`worker.forked`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from gevent import monkey

GRACE = 1.0  # seconds from SIGTERM to SIGKILL. The master kills a zygote that takes longer than 2 s to leave
LOOK = 0.01  # seconds between two looks
# It ignores SIGTERM, and leaves by itself when the last process that uses it has left (CPython, resource_tracker.py).
LEAVES_BY_ITSELF = b"multiprocessing.resource_tracker"

_waitpid = monkey.get_original("os", "waitpid")
_sleep = monkey.get_original("time", "sleep")
_close = monkey.get_original("os", "close")


def pids() -> list[int]:
    """The children of this process that live, without multiprocessing's resource tracker."""
    parent = os.getpid()
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_child(pid, parent)]


def _is_child(pid: int, parent: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in parentheses can hold any byte (proc_pid_stat(5)).
            state, ppid = file.read().rpartition(b")")[2].split()[:2]
        if int(ppid) != parent or state == b"Z":
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return LEAVES_BY_ITSELF not in file.read()
    except (FileNotFoundError, ProcessLookupError):
        return False  # it has just ended
    except PermissionError:
        return False  # /proc is mounted with hidepid, and the process is another user's


def end() -> None:
    """Send each of them SIGTERM, and after the grace SIGKILL. Returns when all have ended."""
    left = _signal(pids(), signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while left and time.monotonic() < deadline:
        _sleep(LOOK)
        left = [pid for pid in left if _lives(pid)]
    for pid in _signal(left, signal.SIGKILL):
        with contextlib.suppress(ChildProcessError):
            _waitpid(pid, 0)
    _tell_multiprocessing()


def _tell_multiprocessing() -> None:
    """Its exit handler joins its processes. gevent's waitpid would wait there for a watcher of a loop that never runs.

    It asks a forkserver about the processes of that, in another way.
    """
    process = sys.modules.get("multiprocessing.process")
    for one in () if process is None else list(process._children):
        if getattr(one._popen, "method", "") != "forkserver" and one._popen.returncode is None:
            one._popen.returncode = -signal.SIGTERM


def _signal(some: list[int], number: int) -> list[int]:
    parent = os.getpid()
    for pid in some:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if _is_child(pid, parent):  # a library may have reaped it, and the pid be another process's
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                _close(pidfd)
    return some


def _lives(pid: int) -> bool:
    try:
        return bool(_waitpid(pid, os.WNOHANG) == (0, 0))
    except ChildProcessError:
        return False  # a library of the application's has reaped it
