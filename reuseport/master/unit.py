"""Whether systemd keeps descriptors for the unit that this process is the main process of.

systemd 254 and later sets $FDSTORE. Earlier versions set nothing, but keep descriptors as well (FileDescriptorStoreMax=
came with 219). So the master asks. It does not store without an answer, because systemd 252 writes a warning into the
journal for each message whose descriptors it does not keep (service_add_fd_store_set in src/core/service.c).
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 5  # seconds for systemd to answer
MANAGER = re.compile(r"user@\d+\.service")  # a user's own systemd


def keeps_descriptors(environ: Mapping[str, str], pid: int) -> bool:
    """Ask systemd, if it has started this process. False where there is no answer."""
    if environ.get("SYSTEMD_EXEC_PID") != str(pid):  # systemd.exec(5), since 248
        return False
    try:
        command = question(Path("/proc/self/cgroup").read_text())
        if command is None:
            return False
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return is_above_zero(done.stdout)


def question(cgroups: str) -> list[str] | None:
    """What asks systemd for the size of the unit's store; None in no service. `cgroups` is in the form of cgroups(7).

    systemd keeps the processes of a unit in a control group of the unit's name: of version 2, or, in its hybrid and its
    legacy mode, in a hierarchy of its own. In a container the host's hierarchies are there as well, without a unit.
    """
    lines = [line.split(":", 2) for line in cgroups.splitlines() if line.count(":") >= 2]
    paths = [path for number, controllers, path in lines if controllers == "name=systemd" or number == "0"]
    for path in paths:
        units = [part for part in path.split("/") if part.endswith(".service")]
        own = [part for part in units if not MANAGER.fullmatch(part)]
        if own:
            of_user = ["--user"] if len(own) < len(units) else []
            return ["systemctl", *of_user, "show", "--property=FileDescriptorStoreMax", "--", own[-1]]
    return None


def is_above_zero(said: str) -> bool:
    found = re.search(r"^FileDescriptorStoreMax=(\d+)$", said, re.MULTILINE)
    return found is not None and int(found[1]) > 0
