"""Becoming another user, for good."""

from __future__ import annotations

import os
import pwd


def become(uid: int, gid: int) -> None:
    """With all the groups of that user, if the system knows one. OSError for whoever is not root."""
    os.setgid(gid)
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([gid])
    os.setuid(uid)
