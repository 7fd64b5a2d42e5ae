"""reuseport: the WSGI server that releases on SIGHUP and never interrupts a customer's work.

Names resolve when they are first used (PEP 562): importing this package imports neither gevent nor anything else,
since the master, which must stay clean of both, imports it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.embed import serve as serve
    from reuseport.hooks import on_start as on_start

__all__ = ["__version__", "on_start", "serve"]

_HOMES = {"serve": "reuseport.embed", "on_start": "reuseport.hooks"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'reuseport' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
