"""The way into a process that imports the application: a zygote, or the doctor's probe.

`bootstrap.py` calls `run` before it imports the module that the process is for. Three rules follow from that order.

- Only `run` patches the standard library. A module of this package that any other process imports patches nothing.
- gevent patches the standard library before the rest of the server imports it. With --threads nothing is patched.
- The application finds a `__main__` that is empty, as in an interactive interpreter. Python's multiprocessing (with
  the start methods spawn and forkserver), billiard and loky import the parent's `__main__` in each child again, under
  the name `__mp_main__`. An empty module has no name or file to import, so those children get none of the server. Where
  packages are the server's the file is `bootstrap.py`, so that those children find the packages, too, and nothing more.
  A script that calls `reuseport.serve` becomes `__main__` itself (`worker.application.run_script`).
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
import types
from importlib import metadata
from typing import Any, NoReturn

from gevent import events, monkey

from reuseport import startup
from reuseport.ipc.inherited import ZYGOTE_VARIABLE
from reuseport.worker import eventloops, patching
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
    startup.restore()
    variable = os.environ.pop(ZYGOTE_VARIABLE, None)
    if variable is None:
        sys.exit(f"{module}: only the server starts this module. Use `reuseport serve` to start a server")
    order: dict[str, Any] = json.loads(variable)
    if order.get("threads"):
        patching.refuse()
    else:
        _patch()
    main = types.ModuleType("__main__")
    if order.get("lent"):
        main.__file__ = sys.modules["__main__"].__file__
    sys.modules["__main__"] = main
    entered = True
    importlib.import_module(module).main(order)
    raise AssertionError(f"{module}.main has returned")


def _patch() -> None:
    """Call gevent.monkey.patch_all.

    gevent looks for its plugins at every step, and each look reads the metadata of all installed packages. That takes
    two thirds of the time of the patch, so the metadata is read once.
    """
    if hasattr(events, "iter_entry_points"):
        # gevent before 23.7 asks pkg_resources, which refuses a package whose own requirements it cannot find. It
        # compares names literally, and takes an installed zope_interface for another package than zope.interface.
        events.iter_entry_points = lambda group: metadata.entry_points(group=group)
    entry_points, found = metadata.entry_points, metadata.entry_points()
    metadata.entry_points = lambda **which: found.select(**which)  # type: ignore[assignment]
    try:
        monkey.patch_all()
    finally:
        metadata.entry_points = entry_points
    eventloops.install()
