"""Which process is at the other end of a connection, or behind a pid.

A pid is a number that the kernel gives out again, and a user id is true only for the moment at which it was read. So
the master knows each process by a pidfd (pidfd_open(2)). It asks /proc for the facts after it has opened the pidfd, and
then makes sure that the process still lives: in between the pid cannot have become another process's.
"""

from __future__ import annotations

import errno
import math
import os
import select
from collections.abc import Callable
from dataclasses import dataclass

from reuseport.ipc import inhabitants
from reuseport.ipc.channel import Channel
from reuseport.master import reserve

# These mean that the kernel cannot give a pidfd of the connecting process because that has been reaped. Which one it is
# depends on the version: EINVAL in 6.5, ESRCH later; ENODATA where the socket has no peer.
_REAPED = frozenset({errno.EINVAL, errno.ESRCH, errno.ENODATA})


UNKNOWN = -1  # the user of a process that lives and that /proc does not show (hidepid in proc(5))


class NotOurs(Exception):
    """A message names another process than its sender may name. The text says why."""


@dataclass(frozen=True)
class Peer:
    """The process that connected.

    `uid` is its effective user at that time (SO_PEERCRED, unix(7)). `pidfd` is -1 if it has been reaped since. `users`
    are its real, effective and saved user ids now; the set is empty if the process has ended.
    """

    pid: int
    uid: int
    pidfd: int
    users: frozenset[int]

    def runs_as(self, uid: int) -> bool:
        """Whether it ran as this user when it connected, and is nothing else by now. A process that has ended is
        believed, because no signal reaches it."""
        return self.uid == uid and self.users <= {uid}

    def close(self) -> None:
        if self.pidfd != -1:
            os.close(self.pidfd)


def peer_of(channel: Channel, since: float = math.inf) -> Peer:
    """The process that connected. OSError where there is no descriptor left to know it by.

    `since`: it had connected by then, in seconds of CLOCK_BOOTTIME. Before Linux 6.5 a process that has started later
    is known by that to be another one with the same pid.
    """
    pid, uid = channel.peer()
    try:
        pidfd = channel.peer_pidfd()
        if pidfd is None:
            pidfd = _opened_before(pid, since)
    except OSError as error:
        if error.errno not in _REAPED:
            raise
        pidfd = -1
    if pidfd == -1:
        return Peer(pid, uid, pidfd, frozenset())
    users = users_of(pid) or frozenset({UNKNOWN})
    # If it has been reaped meanwhile, these may have been the users of another process.
    return Peer(pid, uid, pidfd, users if pid_of(pidfd) == pid else frozenset())


def _opened_before(pid: int, since: float) -> int:
    if pid <= 0:
        return -1
    pidfd = os.pidfd_open(pid)
    if start_time(pid) / os.sysconf("SC_CLK_TCK") <= since:
        return pidfd
    os.close(pidfd)
    return -1


def started_at(pid: int, start: int) -> int:
    """A pidfd of the process that has this pid and has started at this time (see `start_time`); -1 if it has gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    if start and start_time(pid) == start and pid_of(pidfd) == pid:
        return pidfd
    os.close(pidfd)
    return -1


def start_time(pid: int) -> int:
    """As `inhabitants.start_time`, also where no descriptor is left."""
    return reserve.use(lambda: inhabitants.start_time(pid))


def child_of(pid: int, parent: int) -> int:
    """A pidfd of a child of this parent; -1 if it has gone. NotOurs if the process is not its child."""
    return _opened(pid, lambda: parent_of(pid) == parent, f"process {pid} is no child of process {parent}")


def forked_by(zygote: int, pid: int, uid: int) -> int:
    """A pidfd of the process that a zygote says it has forked; -1 if it has gone. NotOurs for any other process.

    A zygote forks twice, so the kernel gives the process to the reaper that the zygote itself has, which is this master
    or the reaper of an earlier one. Until the process in between has ended, that one is the parent.
    """

    def is_so() -> bool:
        parent, session = parent_of(pid), session_of(zygote)
        inherited = parent in {os.getpid(), parent_of(zygote)} - {0} or parent_of(parent) == zygote
        return pid != zygote and inherited and users_of(pid) == {uid} and session in (0, session_of(pid))

    return _opened(pid, is_so, f"process {pid} was not forked by zygote {zygote}")


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended. As long as it is a zombie its pid is still its own."""
    if pidfd == -1:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def users_of(pid: int) -> frozenset[int]:
    """The real, effective and saved user ids that a process has now; empty if there is none (proc_pid_status(5))."""
    try:
        lines = reserve.read(f"/proc/{pid}/status").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
    return frozenset(int(word) for word in next(line for line in lines if line.startswith(b"Uid:")).split()[1:4])


def exists(pid: int) -> bool:
    """Whether some process has this pid, be it a zombie."""
    return os.path.exists(f"/proc/{pid}")


def parent_of(pid: int) -> int:
    """0 where there is no such process."""
    return int((_stat(pid) or _NONE)[1])


def session_of(pid: int) -> int:
    """0 where there is no such process."""
    return int((_stat(pid) or _NONE)[3])


_NONE = (b"X", b"0", b"0", b"0")


def _stat(pid: int) -> list[bytes] | None:
    """The fields behind the name, which can hold any byte, in /proc/PID/stat (proc_pid_stat(5)); from field 3 on."""
    try:
        return reserve.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _opened(pid: int, is_so: Callable[[], bool], otherwise: str) -> int:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    except (OSError, OverflowError) as error:
        if isinstance(error, OverflowError) or error.errno == errno.EINVAL:
            raise NotOurs(f"{pid} is no pid") from None
        raise
    # What /proc says is true of the process behind the pidfd only if that has not been reaped before.
    if is_so() and pid_of(pidfd) == pid:
        return pidfd
    os.close(pidfd)
    raise NotOurs(otherwise)


def pid_of(pidfd: int) -> int:
    """The pid of the process behind a pidfd; -1 once it has been reaped (pidfd_open(2), "fdinfo")."""
    lines = reserve.read(f"/proc/self/fdinfo/{pidfd}").splitlines()
    return int(next(line for line in lines if line.startswith(b"Pid:")).split()[1])
