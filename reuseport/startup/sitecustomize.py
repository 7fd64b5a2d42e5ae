"""The server's interpreters import this file instead of the environment's sitecustomize.

It only defers: `run` does what site would have done. The master and the command line never call it. A process that
loads the application calls it after gevent's patches and before the import. This file imports nothing of the package,
because the package may not be importable yet.
"""

from __future__ import annotations

import os
import site
import sys
from importlib.machinery import PathFinder

MARK = "reuseport:startup"  # the name in sys.modules by which `reuseport.startup` finds this module
VARIABLE = "REUSEPORT_STARTUP"

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


def _finds_the_package() -> bool:
    """Whether the environment's sitecustomize must run at once: Nix and Homebrew add site-packages to sys.path there.

    One that PYTHONPATH names is never of this kind: instrumentation uses that way.
    """
    if PathFinder.find_spec("reuseport") is not None:
        return False
    found = PathFinder.find_spec("sitecustomize")
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return found is not None and os.path.dirname(found.origin or "") not in map(os.path.abspath, named)


if __name__ == "sitecustomize":
    sys.modules[MARK] = sys.modules[__name__]
    restore()
    if _finds_the_package():
        run()
        sys.modules.setdefault("sitecustomize", sys.modules[MARK])  # the import system looks for it after this
    else:
        _import_usercustomize = site.execusercustomize
        site.execusercustomize = _defer_usercustomize
