"""The soft limit of open files (RLIMIT_NOFILE, getrlimit(2)).

Each client is a descriptor of a worker. The usual soft limit of 1024 is for programs that call select(2), so the master
raises it to the hard limit, and its processes inherit that. Programs that the application starts get the limit back
that the server was started with: some call select(2), and some close every descriptor below the limit one by one.
"""

from __future__ import annotations

import resource


def raise_limit() -> int:
    """Raise the soft limit to the hard limit. Returns the soft limit before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def set_limit(soft: int) -> None:
    """Set the soft limit. ValueError where it is above the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
