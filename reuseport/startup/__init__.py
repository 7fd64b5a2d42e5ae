"""Which code of the environment runs in the server's interpreters before the server's own: none.

Instrumentation (opentelemetry-instrument, ddtrace-run, newrelic-admin) puts a directory with a sitecustomize.py on
PYTHONPATH. Every interpreter imports that file before anything else: it patches, imports ssl and starts threads. The
master must have none of that. A zygote must have gevent's patches first.

So the server starts its interpreters with this directory in front of PYTHONPATH. Its sitecustomize.py takes itself out
again and remembers that the environment's is due. `customize` runs it where the application is loaded. Python's options
-E, -I and -S turn this off, and .pth files are not covered. `patched_by` and `reuseport.worker.patching` tell of what
came too early.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from reuseport.startup import sitecustomize

DIRECTORY = os.path.dirname(os.path.abspath(__file__))
EARLY = frozenset(sys.modules)  # imported before the server's own code: by sitecustomize and .pth files


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment for an interpreter of the server's. That interpreter restores PYTHONPATH for its own children."""
    others = variables.get("PYTHONPATH")
    path = DIRECTORY + os.pathsep + others if others else DIRECTORY
    return {**variables, "PYTHONPATH": path, sitecustomize.VARIABLE: DIRECTORY}


def customize() -> None:
    """Run the environment's sitecustomize if it was deferred, once in this process."""
    if (deferred := _deferred()) is not None:
        deferred.run()


def restore() -> None:
    """Take this directory out of PYTHONPATH where its sitecustomize.py could not: Python has -E, -I or -S."""
    if sitecustomize.VARIABLE in os.environ:
        sitecustomize.restore()


def begin_anew() -> None:
    """Execute this process again, without sitecustomize, if one has run. Does not return then.

    An instrumentation takes its directory out of PYTHONPATH for the children of its process. The environment that this
    process was started with still has it (/proc/self/environ, proc(5)).
    """
    if sitecustomize.VARIABLE in os.environ:
        restore()
        return
    spoiled = {"sitecustomize", "usercustomize"} & EARLY or is_patched()
    if _deferred() is None and spoiled and sys.executable and _reads_pythonpath():
        os.execve(sys.executable, sys.orig_argv, environment(_first_environment() or os.environ))


def recovered(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, and in PYTHONPATH the directories of instrumentations that were there at the start."""
    now = variables.get("PYTHONPATH", "").split(os.pathsep)
    first = _first_environment().get("PYTHONPATH", "").split(os.pathsep)
    lost = [
        entry
        for entry in first
        if entry and entry not in (*now, DIRECTORY) and os.path.isfile(os.path.join(entry, "sitecustomize.py"))
    ]
    if not lost:
        return dict(variables)
    return {**variables, "PYTHONPATH": os.pathsep.join([*lost, *(entry for entry in now if entry)])}


def is_patched() -> bool:
    """Whether gevent has patched this process. gevent is not imported for this."""
    return bool(getattr(sys.modules.get("gevent.monkey"), "saved", None))


def unfit_for_a_master() -> str:
    """Why this process cannot become a master, although `begin_anew` has run; "" if it can."""
    if not is_patched():
        return ""
    return (
        "gevent had patched this process before the server began, and a master needs the unpatched standard library. "
        "Remove the patch from the .pth file or the sitecustomize.py that makes it; if Python runs with -E, -I or -S, "
        "remove that option"
    )


def _reads_pythonpath() -> bool:
    return not (sys.flags.ignore_environment or sys.flags.no_site)


def _deferred() -> Any:
    return sys.modules.get(sitecustomize.MARK)


def _first_environment() -> dict[str, str]:
    """What this process was started with; empty where the kernel does not tell."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, equals, value in pairs if equals}
