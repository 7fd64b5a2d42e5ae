"""How much memory a process takes, as the kernel tells."""

from __future__ import annotations

import os

PAGE = os.sysconf("SC_PAGESIZE")


def resident(pid: int | str = "self") -> int:
    """The resident memory in bytes (proc_pid_statm(5)). OSError if the process is gone."""
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * PAGE


def proportional(pid: int | str = "self") -> int:
    """The same, but of a page that n processes share an n-th (proc_pid_smaps(5), smaps_rollup).

    The kernel walks over all pages for it, which takes milliseconds. OSError if the process is gone, or is another
    user's, whom nobody may look at without CAP_SYS_PTRACE.
    """
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for entry in file:
            if entry.startswith(b"Pss:"):
                return int(entry.split()[1]) * 1024
    return 0
