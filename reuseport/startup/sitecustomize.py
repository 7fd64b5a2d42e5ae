"""The server's interpreters import this file instead of the environment's sitecustomize.

It only defers: `run` does what site would have done. The master and the command line never call it. A process that
loads the application calls it after gevent's patches and before the import. This file imports nothing of the package,
because the package may not be importable yet.
"""

from __future__ import annotations

import json
import os
import site
import sys
from importlib.machinery import PathFinder

MARK = "reuseport:startup"  # the name in sys.modules by which `reuseport.startup` finds this module
VARIABLE = "REUSEPORT_STARTUP"
ZYGOTE_VARIABLE = "REUSEPORT_ZYGOTE"  # as in reuseport.ipc.inherited
BEFORE_PATCHES = os.path.join("ddtrace", "bootstrap")

pending = True  # the environment's sitecustomize has not run yet
_user_is_due = False


def restore() -> None:
    """Remove this directory from sys.path and from PYTHONPATH, which children of this process inherit."""
    directory = os.environ.pop(VARIABLE, os.path.dirname(__file__))
    sys.path[:] = [entry for entry in sys.path if entry != directory]
    first, _, others = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if first == directory:
        if others:
            os.environ["PYTHONPATH"] = others
        else:
            del os.environ["PYTHONPATH"]


def run() -> None:
    """Import the environment's sitecustomize and usercustomize, once, with site's own functions."""
    global pending
    if not pending:
        return
    pending = False
    if sys.modules.get("sitecustomize") is sys.modules.get(MARK):
        sys.modules.pop("sitecustomize", None)
    site.execsitecustomize()
    if _user_is_due:
        _import_usercustomize()


def _defer_usercustomize() -> None:
    global _user_is_due
    _user_is_due = True


def _must_run_at_once() -> bool:
    """Whether the environment's sitecustomize cannot be deferred.

    Nix and Homebrew add site-packages to sys.path there. One that PYTHONPATH names is never of that kind, because
    instrumentation uses that way. Nor is one inside a virtual environment, which may lack reuseport (bootstrap.py).
    That of ddtrace expects to run before gevent's patches: at its end it removes time and threading from sys.modules,
    and an application that imported them behind that would get unpatched ones.
    """
    found = PathFinder.find_spec("sitecustomize")
    if found is None or found.origin is None:
        return False
    directory = os.path.dirname(found.origin)
    if directory.endswith(os.sep + BEFORE_PATCHES):
        zygote = os.environ.get(ZYGOTE_VARIABLE)
        return zygote is not None and not json.loads(zygote).get("threads")
    if sys.prefix != sys.base_prefix and directory.startswith(sys.prefix + os.sep):
        return False
    named = map(os.path.abspath, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return directory not in named and PathFinder.find_spec("reuseport") is None


if __name__ == "sitecustomize":
    sys.modules[MARK] = sys.modules[__name__]
    restore()
    if _must_run_at_once():
        run()
        sys.modules.setdefault("sitecustomize", sys.modules[MARK])  # the import system looks for it after this
    else:
        _import_usercustomize = site.execusercustomize
        site.execusercustomize = _defer_usercustomize
