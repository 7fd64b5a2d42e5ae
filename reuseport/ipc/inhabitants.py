"""The processes of a run directory, found without a master and without their help: by the descriptor that each has."""

from __future__ import annotations

import os

from reuseport.ipc.inherited import RUN_DIR


def inhabitants(directory: tuple[int, int]) -> dict[int, int]:
    """Each process that has a directory (its device and inode) from a master (`RunDir.lend`), with its `start_time`.

    The descriptor has a known number, and a BSD lock, which /proc/PID/fdinfo shows (proc_pid_fdinfo(5)). A shell or a
    file manager that has the directory open has neither. Processes that this user may not look at are missing.
    """
    found = {}
    for entry in os.listdir("/proc"):
        other = entry.isdigit() and int(entry) != os.getpid()
        if other and _is_inhabitant(entry, directory) and (start := start_time(int(entry))):
            found[int(entry)] = start
    return found


def _is_inhabitant(pid: str, directory: tuple[int, int]) -> bool:
    try:
        status = os.stat(f"/proc/{pid}/fd/{RUN_DIR}")
        if (status.st_dev, status.st_ino) != directory:
            return False
        with open(f"/proc/{pid}/fdinfo/{RUN_DIR}", encoding="ascii") as file:
            return any(line.startswith("lock:") and "FLOCK" in line for line in file)
    except OSError:
        return False


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 if there is none, or only its
    zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == b"Z" else int(fields[19])
