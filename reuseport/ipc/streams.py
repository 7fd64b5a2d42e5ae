"""Standard output and error of zygotes, workers and jobs' processes.

These processes have copies of the master's two streams (`inherited.py`). While a process boots, its own 1 and 2 are the
boot log, so what an import prints reaches the asker of a release. A path such as /dev/stdout then leads to the boot log
as well. The process redirects descriptors that were opened there when it has booted.

The two streams are one file, but have two names for the kernel (`BootLog.open`), so that a process can tell which of
them a descriptor was opened through.
"""

from __future__ import annotations

import contextlib
import os
from posix import close  # gevent's os.close leaves it to its loop, which never runs in a zygote

from reuseport.ipc.inherited import STDERR_COPY, STDOUT_COPY

COPIES = {1: STDOUT_COPY, 2: STDERR_COPY}
PATHS = {"/dev/stdout": 1, "/dev/stderr": 2}  # how a "logs" message names the master's streams


def end_boot(output: int, errors: int) -> None:
    """Let 1 and 2 be the master's streams, and redirect to them what was opened or copied from the boot log.

    `output` and `errors` are the boot log's descriptors, which stay.
    """
    os.dup2(STDOUT_COPY, 1)
    os.dup2(STDERR_COPY, 2)
    boot = os.fstat(output)
    # In this order: where both have one name, because the master is an earlier version's, it means standard output.
    copies = {_name(errors): STDERR_COPY, _name(output): STDOUT_COPY}
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd in (output, errors, *COPIES, *COPIES.values()):
            continue
        with contextlib.suppress(OSError):  # another thread has closed it
            if os.path.samestat(os.fstat(fd), boot):
                os.dup2(copies.get(_name(fd), STDOUT_COPY), fd, inheritable=os.get_inheritable(fd))


def replace(path: str, fd: int) -> None:
    """Put `fd` in the place of the master's stream that `PATHS` names, and close `fd`.

    The number that the application prints to follows if it still is that stream.
    """
    number = PATHS[path]
    copy = COPIES[number]
    with contextlib.suppress(OSError):  # the application has closed its own
        if os.path.samestat(os.fstat(number), os.fstat(copy)):
            os.dup2(fd, number)
    os.dup2(fd, copy, inheritable=os.get_inheritable(copy))
    close(fd)


def _name(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
