"""What a master does that another one has taken over from: it stays until its last child has ended.

It decides nothing and owns nothing. But its processes are its children, and those of its unit: a supervisor that saw it
leave would call the service ended, and might end them. So it collects their exits, and leaves with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reuseport.ipc.shortage import SHORTAGE
from reuseport.ipc.title import set_title
from reuseport.master.peers import parent_of
from reuseport.master.processes import POLL, Process
from reuseport.master.signals import MEANINGS

if TYPE_CHECKING:
    from reuseport.master.main import Master


class Predecessors:
    """The earlier masters, as the one that has taken over sees them: each is there until its last process has ended."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._pidfds: dict[int, int] = {}

    @property
    def pids(self) -> list[int]:
        return list(self._pidfds)

    def watch(self, pid: int) -> None:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        except OSError as error:
            if error.errno not in SHORTAGE:
                raise
            self._master.loop.later(POLL, lambda: self.watch(pid))
        else:
            self._watch(pid, pidfd)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        return {"pidfds": [[pid, lend(fd)] for pid, fd in self._pidfds.items()]}

    def inherit(self, left: Mapping[str, Any]) -> None:
        for pid, fd in left["pidfds"]:
            self._watch(pid, fd)

    def have(self, process: Process | None) -> bool:
        """Whether one of them is the parent of this process."""
        return process is not None and bool(self._pidfds) and parent_of(process.pid) in self._pidfds

    def _watch(self, pid: int, fd: int) -> None:
        self._pidfds[pid] = fd
        self._master.loop.watch(fd, lambda: self._gone(pid))

    def _gone(self, pid: int) -> None:
        fd = self._pidfds.pop(pid)
        self._master.loop.forget(fd)
        os.close(fd)
        self._master.log.write("info", f"the earlier master {pid} has left")


def retire(master: Master, heir: int) -> int:
    """Let go of everything, wait for the children to end, and return the exit status."""
    superseded = f"superseded by master {heir}"
    master.log.write("info", f"{superseded}; waiting for what still runs here")
    drains = {asker.name: number for asker, number in master.cluster.drain_askers}
    for client in list(master.control.clients.values()):
        # Who has not been heard asks the other master, which listens by now; and who waits for a drain waits there.
        elsewhere: dict[str, Any] = {} if client.asked else {"superseded": heir}
        if client.name in drains:
            elsewhere = {"superseded": heir, "ask": {"do": "await drain", "generation": drains[client.name]}}
        client.done(False, error=f"{superseded}: ask it", **elsewhere)
    master.boot_logs.remove()
    # The other paths belong to the other master by now.
    master.control.leave()
    master.switchboard.leave()
    master.processes.close()
    master.companions.leave()
    master.slots.leave()
    master.log_files.close()
    master.telling.leave(keep_path=master.succession.metrics_go_on)
    if master.reload is not None:
        master.reload.close()
    remove_pid_file(master.first.pid)
    master.notifier.retire(f"{superseded}; waits for its last processes to end")
    set_title(f"reuseport: master [{master.first.name}] {superseded}")
    _wait(master, superseded)
    master.notifier.close()
    master.log.flush()
    return 0


def _wait(master: Master, superseded: str) -> None:
    stops = 0
    while master.processes.reap():
        master.loop.wait(None)
        for number in master.signals.come():
            if number == signal.SIGHUP:
                master.log.write("error", f"no release here: {superseded}")
            elif number == signal.SIGUSR2:
                master.log.write("error", f"no upgrade here: {superseded}")
            elif number == signal.SIGUSR1:
                MEANINGS[number](master)
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                stops += 1 if number == signal.SIGTERM else 2
            if stops > 1:
                master.log.write("warning", "leaving at once; what still runs goes on under the other master")
                return
            if number == signal.SIGTERM:
                master.notifier.stopping()
                master.log.write("info", "leaving with the last process anyway; a second TERM does not wait for it")
    master.log.write("info", "its last process has ended: leaving")


def remove_pid_file(path: str) -> None:
    """Remove the file of --pid, unless another master has written its own pid there."""
    if path:
        with contextlib.suppress(FileNotFoundError):
            if Path(path).read_bytes().strip() == str(os.getpid()).encode():
                os.unlink(path)
