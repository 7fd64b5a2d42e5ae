"""Who gives a command, and when: by that the master tells two operators apart, and what each of them saw.

`started` is the time at which the command was typed, as well as it is known: the start of this process. A shell that
replaces itself by the command (exec) has started earlier, so a process older than YOUNG does not count.
"""

from __future__ import annotations

import os
import pwd
import time
from typing import Any

YOUNG = 5.0  # seconds: interpreters start faster, and a user types `sudo`'s password slower
_started: float | None = None


def note_start(*, typed: bool) -> None:
    """The command begins now; `typed` says that it is what this process was started for."""
    global _started
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    began = _start_of_process() if typed else now
    _started = began if now - began < YOUNG else now


def words(on_behalf: str = "") -> dict[str, Any]:
    """What goes with a question that changes something. `on_behalf` is what --by says. `started` is in seconds of
    CLOCK_BOOTTIME (clock_gettime(2)), which all processes of a machine share."""
    uid = os.getuid()
    name, sudo = _name(uid), os.environ.get("SUDO_USER", "")
    by = f"{sudo} as {name}" if sudo and sudo != name else name
    by = f"{on_behalf}, {by}" if on_behalf else by
    started = time.clock_gettime(time.CLOCK_BOOTTIME) if _started is None else _started
    session = f"{uid} {os.environ.get('SUDO_UID', '')} {os.getsid(0)}"
    facts = {"user": name, "sudo_user": sudo, "host": os.uname().nodename, "on_behalf": on_behalf}
    return {"by": by, "session": session, "started": started, **facts}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _start_of_process() -> float:
    """When this process was forked, in seconds of CLOCK_BOOTTIME (proc_pid_stat(5), field 22)."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    # The kernel counts whole ticks: what happened within the same one may have come before.
    return (ticks + 1) / os.sysconf("SC_CLK_TCK")
