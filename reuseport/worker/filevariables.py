"""The variables of --env-file in a process that root has started and that another user's code will run in.

The application's user may be able to write such a file. In the environment of an interpreter that starts as root,
PYTHONPATH or LD_PRELOAD would run that user's code as root. So the master keeps these variables out of it, and the
process takes them from its order after the change of user. `bootstrap.py` looks for this module: a reuseport of an
earlier version in the release's environment does not take them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Mapping

from reuseport.ipc.inherited import ZYGOTE_VARIABLE

# The server sets them for each process, and they win over a file. The last two are of bootstrap.py and startup.
_SERVERS = frozenset(
    {"REUSEPORT_RUN_DIR", "REUSEPORT_GENERATION", ZYGOTE_VARIABLE, "REUSEPORT_SERVER", "REUSEPORT_STARTUP"}
)

_TOO_LATE = ("PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD")  # an interpreter reads them as it starts, and never again


def take(variables: Mapping[str, str], over: Container[str]) -> None:
    """Put the variables of the files into os.environ, but those in `over`, which --env has set."""
    for name, value in variables.items():
        if name not in over and name not in _SERVERS:
            os.environ[name] = value
    time.tzset()


def without_effect(variables: Mapping[str, str]) -> str:
    """A warning of the variables that `take` has taken in vain; "" where there are none."""
    names = ", ".join(name for name in _TOO_LATE if name in variables)
    return names and (
        f"{names} of --env-file: root has started the interpreter without it, because the application's user may be "
        "able to write the file. --pythonpath and --env take effect"
    )
