"""How a release's interpreter is started, and which packages of the server's environment it can use.

`reuseport/bootstrap.py` runs in that interpreter, and decides which of them it needs. The master finds their
directories without importing them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from reuseport import bootstrap

OLDEST = "3.11"  # the first Python that knows -P
BOOTSTRAP = os.path.abspath(bootstrap.__file__)


def environment() -> dict[str, str]:
    """The variable that tells a release's interpreter where the server's packages lie now."""
    offered = {"python": platform.python_version(), "suffix": bootstrap.suffix(), "places": _places()}
    return {bootstrap.SERVER_VARIABLE: json.dumps(offered)}


def command(recipe: Mapping[str, Any], module: str, *arguments: str) -> list[str]:
    """What runs `main()` of a module of the package in the release's interpreter.

    `-P` keeps the application's directory out of sys.path until the server's own modules are imported, so that an
    application's `json.py` cannot take the place of the standard library's.
    """
    return [recipe["interpreter"], "-P", *recipe.get("flags", ()), BOOTSTRAP, module, *arguments]


def refusal(output: str) -> str:
    """Why an interpreter cannot run the server's code, if that is the last line of what it has printed; else ""."""
    last = output.rstrip().rpartition("\n")[2]
    if last.startswith(bootstrap.PREFIX):
        return last
    if "Unknown option: -P" in output:
        return f"{bootstrap.PREFIX}its Python is too old; reuseport needs {OLDEST} or newer"
    return ""


def _places() -> dict[str, str]:
    """The directory in which each package lies here. One that this environment lacks is left out."""
    found = {}
    for name in bootstrap.WANTED:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec is None:
            continue
        inside = list(spec.submodule_search_locations or ())
        if inside or spec.origin:
            found[name] = os.path.dirname(os.path.abspath(inside[0] if inside else str(spec.origin)))
    return found
