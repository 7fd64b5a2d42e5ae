"""Which packages a process runs on, and whose: the application's environment has its own, or they are the server's.

See `reuseport/bootstrap.py`, which decides that.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Mapping
from typing import Any

SERVER, APPLICATION = "server", "application"
NAMES = ("reuseport", "gevent", "greenlet")


def used(lent: Collection[str]) -> dict[str, Any]:
    """Of this process: the version of Python, and of each package the version and where it is "from"; JSON-able.

    `lent`: the names of the packages that come from the server's environment.
    """
    return {
        "python": platform.python_version(),
        **{
            name: {"version": sys.modules[name].__version__, "from": SERVER if name in lent else APPLICATION}
            for name in NAMES
        },
    }


def is_lent(found: Mapping[str, Any]) -> bool:
    """Whether any of them comes from the server's environment."""
    return any(one.get("from") == SERVER for one in found.values() if isinstance(one, dict))


def in_words(found: Mapping[str, Any]) -> str:
    """The packages with their versions, the server's first."""
    parts = []
    for whose in (SERVER, APPLICATION):
        named = [(name, one) for name in NAMES if isinstance(one := found.get(name), dict)]
        some = [f"{name} {one.get('version')}" for name, one in named if one.get("from") == whose]
        if some:
            parts.append(f"the {whose}'s {', '.join(some)}")
    return " and ".join(parts)
