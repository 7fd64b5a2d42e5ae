"""Becoming another user, for good, with the environment variables that name a user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Container, Mapping, MutableMapping
from pathlib import PurePath

NAMES = ("HOME", "LOGNAME", "USER", "SHELL")
_STARTERS = ("SUDO_USER", "DOAS_USER", "USER", "LOGNAME")  # they can name who has started the server
_NO_SHELLS = ("nologin", "false", "true", "null", "")  # the names of shells that let nobody log in


def become(uid: int, gid: int) -> None:
    """With all the groups of that user, if the system knows one. OSError for whoever is not root."""
    os.setgid(gid)
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([gid])
    os.setuid(uid)


def variables(uid: int, before: Mapping[str, str], said: Container[str] = ()) -> dict[str, str | None]:
    """What root's HOME, LOGNAME, USER and SHELL must be for this user; None where the variable must go.

    These are the variables of systemd's User= (systemd.exec(5), "Environment variables in spawned processes"). Like
    systemd, it sets no SHELL that lets nobody log in: ssh(1) runs a ProxyCommand with it. An account that the system
    does not know has none of them.

    A variable that the operator has set for this user stays: one in `said` (--env, --env-file), and one that is not of
    root's account or of the account that has started the server (sudo, doas, su).
    """
    own = _account(uid)
    others = [one for one in (_account(0), *(_account(before.get(name)) for name in _STARTERS)) if one]
    others = [one for one in others if one.pw_uid != uid]
    of_others = {
        "HOME": {"/root", "/", *(one.pw_dir for one in others)},
        "LOGNAME": {"root", *(one.pw_name for one in others)},
        "SHELL": {one.pw_shell for one in others},
    }
    of_others["USER"] = of_others["LOGNAME"]
    wanted: dict[str, str | None] = dict.fromkeys(NAMES)
    if own is not None:
        shell = own.pw_shell if PurePath(own.pw_shell).name not in _NO_SHELLS else None
        wanted = {"HOME": own.pw_dir or None, "LOGNAME": own.pw_name, "USER": own.pw_name, "SHELL": shell}
    return {
        name: value
        for name, value in wanted.items()
        if name not in said and (name not in before or before[name] in of_others[name])
    }


def rename(environment: MutableMapping[str, str], uid: int, said: Container[str] = ()) -> None:
    """Change these variables of an environment (see `variables`)."""
    for name, value in variables(uid, environment, said).items():
        if value is not None:
            environment[name] = value
        else:
            environment.pop(name, None)


def _account(which: int | str | None) -> pwd.struct_passwd | None:
    if which is None:
        return None
    try:
        return pwd.getpwuid(which) if isinstance(which, int) else pwd.getpwnam(which)
    except KeyError:
        return None
