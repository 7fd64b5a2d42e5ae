"""The way into a process that imports the application: a zygote, or the doctor's probe.

`python -m reuseport.zygote` calls `run` before that module imports anything else. Three rules follow from that order.

- Only `run` patches the standard library. A module of this package that any other process imports patches nothing.
- gevent patches the standard library before the rest of the server imports it. With --threads nothing is patched.
- The application finds a `__main__` that is empty, as in an interactive interpreter. Python's multiprocessing (with
  the start methods spawn and forkserver), billiard and loky import the parent's `__main__` in each child again, under
  the name `__mp_main__`. An empty module has no name or file to import, so those children get none of the server.
  A script that calls `reuseport.serve` becomes `__main__` itself (`worker.application.run_script`).
"""

# ruff: noqa: E402 - what was imported before must be known first

import sys

EARLY = frozenset(sys.modules)  # sitecustomize and .pth files have imported these, before any patch

import fcntl
import importlib
import json
import os
import types
from importlib import metadata
from typing import Any, NoReturn

from gevent import monkey

from reuseport.ipc.inherited import ZYGOTE_VARIABLE
from reuseport.worker.descriptors import held


def _is_inherited(fd: int) -> bool:
    """Whether it has passed an exec. What Python opens does not (PEP 446)."""
    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:
        return True  # the descriptor of the listing itself, closed by now


# The descriptors that sitecustomize and .pth files have opened.
EARLY_DESCRIPTORS = {fd: link for fd, link in held().items() if not _is_inherited(fd)}

entered = False  # whether this process began in `run`, or was forked by one that did


def run(module: str) -> NoReturn:
    """Patch, empty `__main__`, import `module` under its own name and call its `main` with the parsed variable.

    Ends the process with status 1 and a message where ZYGOTE_VARIABLE is missing: a person, or an application that
    repeats `sys.orig_argv`, has started the module.
    """
    global entered
    variable = os.environ.pop(ZYGOTE_VARIABLE, None)
    if variable is None:
        sys.exit(f"{module}: only the server starts this module. Use `reuseport serve` to start a server")
    order: dict[str, Any] = json.loads(variable)
    if not order.get("threads"):
        _patch()
    sys.modules["__main__"] = types.ModuleType("__main__")
    entered = True
    importlib.import_module(module).main(order)
    raise AssertionError(f"{module}.main has returned")


def _patch() -> None:
    """Call gevent.monkey.patch_all.

    gevent looks for its plugins at every step, and each look reads the metadata of all installed packages. That takes
    two thirds of the time of the patch, so the metadata is read once.
    """
    entry_points, found = metadata.entry_points, metadata.entry_points()
    metadata.entry_points = lambda **which: found.select(**which)  # type: ignore[assignment]
    try:
        monkey.patch_all()
    finally:
        metadata.entry_points = entry_points
