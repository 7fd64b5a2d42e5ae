"""The soft limit of open files in the programs that the application starts: the one that the server was started with.

A process that the application forks sets the limit itself (`worker.forked`), also where it executes a program next. No
Python code runs in a child of the functions that are wrapped here, and a limit is inherited. So they lower the limit of
this process while they start the child. That harms nothing while the process has few descriptors: a limit
below the number of the next descriptor is what makes open(2) fail (EMFILE). Where it has many, the limit of the child
is set after its start (prlimit(2)), and the child could see the raised one at first.

What a library starts without Python, by system(3) or by fork(2) in C, has the raised limit.
"""

from __future__ import annotations

import _posixsubprocess
import contextlib
import os
import resource
import subprocess
from collections.abc import Callable
from functools import wraps
from typing import Any

from gevent import monkey

from reuseport.ipc import nofile

SPARE = 64  # descriptors that other threads can open while the limit is low

_getrlimit, _setrlimit = resource.getrlimit, resource.setrlimit
_RLock = monkey.get_original("_thread", "RLock")


class State:
    """`raised` is the limit of this process, `original` that of the programs. They are equal where none was raised."""

    original = raised = 0
    lowered = False
    lock = _RLock()


def guard(original: int | None) -> None:
    """From now on the programs that are started have this limit. None: it is not known, so programs inherit.

    Must be called before the application is imported, and after gevent's patches.
    """
    raised, _ = _getrlimit(resource.RLIMIT_NOFILE)
    if original is None or original >= raised:
        return
    State.original, State.raised = original, raised
    fork_exec = _limited(_posixsubprocess.fork_exec)
    _posixsubprocess.fork_exec = fork_exec  # type: ignore[assignment]
    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
    os.posix_spawn = _limited(os.posix_spawn)
    os.posix_spawnp = _limited(os.posix_spawnp)
    os.system = _limited_system(os.system)


def renew() -> None:
    """In each forked process, before anything else: another thread may have been starting a program."""
    State.lock = _RLock()
    if State.lowered:
        State.lowered = False
        _set(State.raised)


def give_back() -> None:
    """This process is none of the server's any more. An application that has set a limit of its own keeps it."""
    if State.original != State.raised and _getrlimit(resource.RLIMIT_NOFILE)[0] == State.raised:
        _set(State.original)


def _set(soft: int) -> None:
    with contextlib.suppress(ValueError):  # the application has lowered the hard limit
        nofile.set_limit(soft)


def _limited(start: Callable[..., int]) -> Callable[..., int]:
    @wraps(start)
    def limited(*args: Any, **keywords: Any) -> int:
        with State.lock:
            before = _getrlimit(resource.RLIMIT_NOFILE)
            if before[0] != State.raised or State.lowered:
                return start(*args, **keywords)
            if not _has_few_descriptors():
                pid = start(*args, **keywords)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (State.original, before[1]))
                return pid
            _setrlimit(resource.RLIMIT_NOFILE, (State.original, before[1]))
            State.lowered = True
            try:
                return start(*args, **keywords)
            finally:
                State.lowered = False
                _setrlimit(resource.RLIMIT_NOFILE, before)

    return limited


def _has_few_descriptors() -> bool:
    try:
        return len(os.listdir("/proc/self/fd")) + SPARE <= State.original
    except OSError:
        return False


def _limited_system(system: Callable[..., int]) -> Callable[..., int]:
    """It returns when the command has ended, so the shell lowers the limit (ulimit, POSIX)."""

    @wraps(system)
    def limited(command: Any) -> int:
        if _getrlimit(resource.RLIMIT_NOFILE)[0] != State.raised:
            return system(command)
        return system(b"ulimit -S -n %d; %b" % (State.original, os.fsencode(command)))

    return limited
