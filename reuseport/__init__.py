"""reuseport: the WSGI server that releases on SIGHUP and never interrupts a customer's work.

Names resolve when they are first used (PEP 562): importing this package imports neither gevent nor anything else,
since the master, which must stay clean of both, imports it too.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.deadlines import JobCancelled as JobCancelled
    from reuseport.deadlines import JobTimeout as JobTimeout
    from reuseport.embed import serve as serve
    from reuseport.hooks import on_child_exit as on_child_exit
    from reuseport.hooks import on_drain as on_drain
    from reuseport.hooks import on_start as on_start
    from reuseport.jobs import Job as Job
    from reuseport.jobs import job as job
    from reuseport.jobs import progress as progress
    from reuseport.spawned import JobLost as JobLost
    from reuseport.spawned import spawn as spawn

    draining: bool

__all__ = [
    "Job",
    "JobCancelled",
    "JobLost",
    "JobTimeout",
    "__version__",
    "draining",
    "job",
    "on_child_exit",
    "on_drain",
    "on_start",
    "progress",
    "serve",
    "spawn",
]

_HOMES = {
    "serve": "reuseport.embed",
    "on_start": "reuseport.hooks",
    "on_child_exit": "reuseport.hooks",
    "on_drain": "reuseport.hooks",
    "Job": "reuseport.jobs",
    "JobCancelled": "reuseport.deadlines",
    "JobLost": "reuseport.spawned",
    "JobTimeout": "reuseport.deadlines",
    "job": "reuseport.jobs",
    "progress": "reuseport.jobs",
    "spawn": "reuseport.spawned",
}


def __getattr__(name: str) -> Any:
    if name == "draining":  # changes, so it is looked up each time
        hooks = sys.modules.get("reuseport.hooks")
        return hooks is not None and hooks.draining
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'reuseport' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
