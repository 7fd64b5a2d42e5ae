"""What a default or a check needs to know of the machine: cores, directories, users, interpreters.

Only reading, and nothing that could block: the master may call all of it between two events.
"""

from __future__ import annotations

import grp
import math
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def usable_cores(values: Mapping[str, Any] | None = None, origin: Any = None, *, root: str = "/") -> int:
    """Cores that this process may use: its affinity, less what a cgroup's CPU quota takes away. At least 1.

    (Python's own count knows nothing of quotas, and a container with half a core on a machine of 64 is common.)
    """
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(root)
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _cgroup_quota(root: str) -> float | None:
    """The tightest CPU quota in cores, of this process's cgroup and those above it; None without one."""
    path = ""
    for line in _read(os.path.join(root, "proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            path = line.removeprefix("0::").strip("/")
    mount = os.path.join(root, "sys/fs/cgroup")
    quotas = []
    parts = [part for part in path.split("/") if part]
    for depth in range(len(parts) + 1):
        words = _read(os.path.join(mount, *parts[:depth], "cpu.max")).split()
        if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    old = [_read(os.path.join(mount, f"cpu/cpu.cfs_{word}_us")).strip() for word in ("quota", "period")]
    if all(word.isdecimal() and int(word) for word in old):
        quotas.append(int(old[0]) / int(old[1]))
    return min(quotas, default=None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        # No such controller, or a container that hides it: then no quota is known, and affinity alone decides.
        return ""


def default_run_dir(name: str, environ: Mapping[str, str], uid: int) -> str:
    """Where the master called `name` lives when no option says so. Resolves the path only; nothing is made."""
    given = environ.get("REUSEPORT_RUN_DIR", "")
    # systemd separates several directories by colons; the first one is the unit's own.
    given = given or environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return given or os.path.join(run_dirs(environ, uid), name)


def run_dirs(environ: Mapping[str, str], uid: int) -> str:
    """The directory that holds the run directories of one user's masters."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(runtime, "reuseport") if runtime else f"/tmp/reuseport-{uid}"


def run_dir_of(values: Mapping[str, Any], origin: Any) -> str:
    return default_run_dir(values["name"], origin.environ, os.getuid())


def state_dir_of(values: Mapping[str, Any], origin: Any) -> str:
    """Where what must outlive the run directory is kept: systemd's, else the run directory itself."""
    return origin.environ.get("STATE_DIRECTORY", "").split(":")[0] or values["run_dir"]


def directory_of(chdir: str) -> str:
    """The application's directory with every symbolic link followed. Raises ValueError if it is no directory."""
    real = os.path.realpath(chdir)
    if not Path(real).is_dir():
        leads = f" (it leads to {real})" if Path(chdir).is_symlink() else ""
        raise ValueError(f"{chdir!r} is not a directory{leads}")
    if not os.access(real, os.X_OK):
        raise ValueError(f"{chdir!r} cannot be entered: permission denied")
    return real


def interpreter_of(python: str, directory: str) -> str:
    """The interpreter's path, absolute, its own last symbolic link kept. Raises ValueError if it cannot be executed.

    Following that last link would end in the base installation and lose the virtual environment; the links of its
    directory are followed, so that a `current` that is flipped later does not change a living generation.
    """
    if not python:
        # The master's own may lie behind `current` as well.
        found: str | None = sys.executable
    elif "/" in python:
        found = os.path.join(directory, python)
    else:
        found = shutil.which(python)
    if not found:
        raise ValueError(f"{python!r} is not in PATH")
    head, tail = os.path.split(found)
    path = os.path.join(os.path.realpath(head), tail)
    if not Path(path).is_file():
        raise ValueError(f"there is no interpreter {path!r}")
    if not os.access(path, os.X_OK):
        raise ValueError(f"{path!r} is not executable")
    return path


def user_of(user: str) -> tuple[int, int] | None:
    """(uid, gid) of a user's name or number, None for "". Raises ValueError if there is none of that name."""
    if not user:
        return None
    if user.isascii() and user.isdecimal():
        try:
            return int(user), pwd.getpwuid(int(user)).pw_gid
        except (KeyError, OverflowError):
            # A number without an entry is usual in containers; the group then keeps the same number.
            return _number(user, "user"), int(user)
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise ValueError(f"there is no user {user!r}") from error
    return entry.pw_uid, entry.pw_gid


def group_of(group: str) -> int | None:
    """The gid of a group's name or number, None for "". Raises ValueError if there is none of that name."""
    if not group:
        return None
    if group.isascii() and group.isdecimal():
        return _number(group, "group")
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ValueError(f"there is no group {group!r}") from error


def _number(text: str, what: str) -> int:
    number = int(text)
    # The highest is (uid_t)-1, which setresuid(2) takes for "unchanged".
    if number >= 0xFFFFFFFF:
        raise ValueError(f"{text} is not the number of a {what}")
    return number


def name_of(uid: int) -> str:
    """A user for a message: "www-data (uid 33)", "uid 7777" where the system knows no name."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def whose(uid: int) -> str:
    """For a message about something that is another user's."""
    return f"belongs to {name_of(uid)}, and this runs as {name_of(os.geteuid())}"
