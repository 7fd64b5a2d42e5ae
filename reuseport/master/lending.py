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
from importlib.machinery import PathFinder
from typing import Any

from reuseport import bootstrap

OLDEST = "3.11"  # the first Python that knows -P


def environment() -> dict[str, str]:
    """The variable that tells a release's interpreter where the server's packages lie now."""
    offered = {"python": platform.python_version(), "suffix": bootstrap.suffix(), "places": _places()}
    return {bootstrap.SERVER_VARIABLE: json.dumps(offered)}


def command(recipe: Mapping[str, Any], module: str, *arguments: str) -> list[str]:
    """The command that runs `main()` of a module of the package in the release's interpreter.

    `-P` keeps the application's directory out of sys.path until the server's own modules are imported, so that an
    application's `json.py` cannot take the place of the standard library's.
    """
    file = os.path.realpath(bootstrap.__file__)
    return [recipe["interpreter"], "-P", *recipe.get("flags", ()), file, module, *arguments]


def refusal(output: str) -> str:
    """Why an interpreter cannot run the server's code, if that is the last line of what it has printed; else ""."""
    last = output.rstrip().rpartition("\n")[2]
    if last.startswith(bootstrap.PREFIX):
        return last
    if "Unknown option: -P" in output:
        return f"{bootstrap.PREFIX}its Python is too old; reuseport needs {OLDEST} or newer"
    return ""


def _places() -> dict[str, str]:
    """The directory of each package of this environment. A package that is missing has no entry.

    Links are followed: when one leads to another environment (`reuseport upgrade`), older generations go on importing
    from this one.
    """
    found: dict[str, str] = {}
    inside: dict[str, list[str]] = {}
    for name in bootstrap.WANTED:
        parent = name.rpartition(".")[0]
        # Of a name in a namespace importlib.util would import that namespace.
        spec = PathFinder.find_spec(name, inside.get(parent, [])) if parent else importlib.util.find_spec(name)
        if spec is None or (spec.origin is None and name != bootstrap.NAMESPACE):
            continue
        inside[name] = list(spec.submodule_search_locations or ())
        found[name] = os.path.realpath(os.path.dirname((inside[name] or [str(spec.origin)])[0]))
    return found
