"""What must come behind gevent's patches, and what must not patch at all.

Without --threads: a module that was imported before the patches blocks its worker where it waits. The server defers
sitecustomize (`reuseport.startup`), so only .pth files, and sitecustomize under Python's -E, -I or -S, come that early.

With --threads: nothing may patch. A patched lock or socket suspends a greenlet, and requests run in native threads.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from gevent import monkey

from reuseport import startup

# What is here by the server's own doing, or gevent's.
OURS = frozenset({"reuseport", "gevent", "greenlet", "zope", "setproctitle", "_distutils_hack", "__main__"})
PRIVATE = frozenset({"ddtrace"})  # keeps unpatched modules for itself, and runs in native threads
SHOWN = 3
PATCHED_ALREADY = (
    "--threads: gevent had patched this process before the server began, and requests in native threads need the "
    "unpatched standard library. Remove the patch from the .pth file or the sitecustomize.py that makes it"
)


def refuse() -> None:
    """From now on each gevent.monkey.patch_* of sitecustomize or the application does nothing, and warns."""
    for name in dir(monkey):
        if name.startswith("patch_") and callable(getattr(monkey, name)):
            setattr(monkey, name, _refusing(name))


def _refusing(name: str) -> Callable[..., bool]:
    def refused(*args: Any, **kwargs: Any) -> bool:
        text = f"gevent.monkey.{name} does nothing here: --threads runs requests in native threads, and patches nothing"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return False

    refused.__name__ = refused.__qualname__ = name
    return refused


def held() -> list[str]:
    """Modules with functions, classes or locks that gevent has replaced since, as "requests.adapters (socket.socket)".

    The standard library is left out: gevent changes its modules in place.
    """
    originals = {
        id(value): f"{module}.{name}"
        for module, names in monkey.saved.items()
        for name, value in names.items()
        if callable(value)
    }
    locks = tuple({type(monkey.get_original("_thread", name)()) for name in ("allocate_lock", "RLock")})
    found = []
    for name in sorted(startup.EARLY):
        top = name.partition(".")[0]
        if top in OURS or top in PRIVATE or top in sys.stdlib_module_names or name not in sys.modules:
            continue
        values = vars(sys.modules[name]).values()
        kinds = {originals[id(value)] for value in values if id(value) in originals}
        # Not isinstance: it asks an object for its class, and a lazy one would load what it stands for.
        kinds |= {"a lock" for value in values if issubclass(type(value), locks)}
        if kinds:
            found.append(f"{name} ({', '.join(sorted(kinds)[:SHOWN])})")
    return found


def in_words(found: Sequence[str]) -> str:
    """A warning about what `held` has found, with its remedy."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return (
        f"{', '.join(found[:SHOWN])}{more} came before gevent's patches: a request that waits there blocks its worker, "
        "and HTTPS can fail with a RecursionError. A .pth file or a sitecustomize.py imports them: import them in the "
        "application, or use --threads"
    )
