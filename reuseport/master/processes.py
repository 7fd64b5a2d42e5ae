"""The master's processes: starting zygotes, learning of exits, sending signals.

Zygotes are the master's children. Workers are forked by a zygote and handed up to the master, which is their subreaper
(PR_SET_CHILD_SUBREAPER, prctl(2)). Every exit is learned from a pidfd, which also works for processes that an earlier
master left behind; that some of them are children only adds the exit code. While no descriptor is left for a pidfd, the
process is polled instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reuseport import startup
from reuseport.core.model import Key
from reuseport.ipc import messages
from reuseport.ipc.channel import Channel
from reuseport.ipc.inherited import RUN_DIR, STDERR_COPY, STDOUT_COPY, ZYGOTE_VARIABLE
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.shortage import SHORTAGE
from reuseport.master import lending, logfiles, peers, reserve, terminal
from reuseport.master.bootlog import BootLog
from reuseport.master.loop import Loop
from reuseport.master.recipe import deferred_variables, exec_variables

PR_SET_CHILD_SUBREAPER = 36
ASK_AGAIN = 20  # times, a hundredth of a second apart, for the exit status of somebody who is dead
_PF_EXITING = 0x4
POLL = 0.1  # seconds between two looks at a process that has no pidfd
FORGOTTEN = 1000  # exits of unknown processes that are remembered, until a message tells that one was a worker


def become_subreaper() -> None:
    """Orphans below this process become its children. OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@dataclass
class Process:
    """What the master knows of a process, beside what the core does."""

    key: Key
    pid: int = 0
    pidfd: int = -1
    polled: bool = False  # no descriptor was left for its pidfd
    channel: Channel | None = None
    row: int = -1
    start: int = 0  # see `inhabitants.start_time`
    user: int | None = None  # the only user that it may run as when it is sent a signal; None for any
    started: float = 0.0  # monotonic seconds
    clean: bool = False  # it has exited with status 0, as far as is known
    holds_shared: bool | None = None  # a zygote has opened what workers map; False: by name, and as their user
    takes_logs: bool = False  # it wants the log files from the master; one of an earlier version opens them itself
    ended: bool = False  # its exit has been noticed: the pid may be another process's by now
    dismissed: bool = False  # the master has told it to end, or ended it
    failed: bool = False  # a zygote has told that it could not load; it leaves by itself
    malformed: bool = False  # it was ended because of a malformed message
    has_more_jobs: bool = False  # than are in `jobs`
    told: bool = False  # it is another master's child, which tells of its end
    asked_again: int = 0  # how often its exit status was not to be had yet
    jobs: dict[int, dict[str, Any]] = field(default_factory=dict)  # as the process tells of them
    unconfirmed: set[int] = field(default_factory=set)  # of these jobs, those that it has not repeated after a hello
    packages: dict[str, Any] | None = None  # a zygote's Python, reuseport, gevent and greenlet, as it tells of them
    memory: dict[str, int] = field(default_factory=lambda: {"rss": 0, "pss": 0})  # see `memory.Looks`
    measured: float = float("-inf")  # monotonic seconds
    measured_in_boot: bool = False


def spawn_zygote(
    generation: int, recipe: Mapping[str, Any], run_dir: RunDir, outputs: tuple[int, int], nofile: int | None
) -> int:
    """Exec the release's interpreter; its pid. OSError where that is not possible.

    It runs the package that its environment has, or this one (`reuseport/bootstrap.py`). `outputs` are its standard
    output and error until it has loaded, and are closed here; `nofile`: see `Processes`.
    """
    variables: dict[str, Any] = {
        "run_dir": run_dir.path,
        "hello": run_dir.named(run_dir.hello),
        "scoreboard": run_dir.named(run_dir.scoreboard),
        "directory": RUN_DIR,
        "owner": os.geteuid(),
        "generation": generation,
        "threads": recipe["settings"]["values"].get("threads", 0),  # it must know before it imports anything
        "logs": {},
        "nofile": nofile,
        **deferred_variables(recipe),
    }
    with contextlib.ExitStack() as stack:
        for fd in outputs:
            stack.callback(os.close, fd)
        output, errors = (_raised(fd, stack) for fd in outputs)
        if terminal.is_for(recipe["settings"]["values"]):
            stdin = _raised(terminal.STDIN, stack)
        else:
            stdin = high(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            stack.callback(os.close, stdin)
        directory = high(run_dir.lend())
        stack.callback(os.close, directory)
        for path, number in logfiles.descriptors(recipe).items():
            variables["logs"][path] = copy = _raised(number, stack)
            os.set_inheritable(copy, True)
        environment = {
            **os.environ,
            **exec_variables(recipe),
            "REUSEPORT_RUN_DIR": run_dir.path,
            "REUSEPORT_GENERATION": str(generation),
            ZYGOTE_VARIABLE: json.dumps(variables),
            **lending.environment(),
        }
        return os.posix_spawn(
            recipe["interpreter"],
            lending.command(recipe, "reuseport.zygote"),
            startup.environment(environment),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, 1, STDOUT_COPY),
                (os.POSIX_SPAWN_DUP2, 2, STDERR_COPY),
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, errors, 2),
                (os.POSIX_SPAWN_DUP2, directory, RUN_DIR),
            ],
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )


def end(pid: int, start: int, within: float = 2.0) -> None:
    """Kill a process that belongs to no generation, and wait for its end: it may hold a lock that is needed next.
    `start` is its start time (`inhabitants.start_time`); a process with another one is left alone."""
    pidfd = peers.started_at(pid, start)
    if pidfd == -1:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], within)
    except ProcessLookupError:
        pass  # it has gone in between
    finally:
        os.close(pidfd)


def is_ending(pid: int) -> bool:
    """Whether the process has been killed or exits, though it may not have ended yet; False if there is none.

    The kernel gives SIGKILL to each thread of a process that a signal ends (proc(5): field 31 of the stat file), and
    then sets PF_EXITING (linux/sched.h; field 9).
    """
    try:
        fields = reserve.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return bool(int(fields[6]) & _PF_EXITING or int(fields[28]) & 1 << (signal.SIGKILL - 1))


def end_session(leader: int) -> None:
    """SIGKILL to everybody in the session but its leader. Not by process group: RQ gives each job one of its own."""
    for entry in reserve.entries("/proc"):
        pid = int(entry) if entry.isdigit() else leader
        if pid == leader or peers.session_of(pid) != leader:
            continue
        with contextlib.suppress(OSError):  # it has gone meanwhile
            pidfd = reserve.take(partial(os.pidfd_open, pid))
            try:
                # Only now is it certain which process is asked for its session.
                if peers.session_of(pid) == leader and peers.pid_of(pidfd) == pid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
                reserve.refill()


def _open(pid: int) -> int:
    """A pidfd; -1 where there is no such process, or no descriptor for it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    except OSError as error:
        if error.errno not in SHORTAGE:
            raise
        return -1


def _is_child(pid: int) -> bool:
    """Whether it is a child that has not been reaped: nobody else gets its pid before that."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _signal(pidfd: int, number: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


EXITED = "exited"  # with status 0


def in_words(info: Any) -> str:
    """How a process ended, from what waitid(2) gives."""
    if info.si_code == os.CLD_EXITED:
        return EXITED if info.si_status == 0 else f"exited with status {info.si_status}"
    try:
        name = signal.Signals(info.si_status).name
    except ValueError:
        name = f"signal {info.si_status}"
    return f"was killed by {name}"


class Processes:
    """`nofile` is the soft limit of open files that the server was started with, which programs of the application's
    get; None where a master of an earlier version did not tell it (`ipc.nofile`)."""

    def __init__(
        self,
        loop: Loop,
        on_exit: Callable[[Process, str], None],
        log: Callable[[str, str], None] = lambda level, text: None,
    ) -> None:
        self._loop = loop
        self._log = log
        self._on_exit = on_exit
        self._by_key: dict[Key, Process] = {}
        self._resting = False
        self._exits: dict[int, str] = {}  # how children ended that were reaped before anybody knew of them
        self.nofile: int | None = None

    def get(self, key: Key) -> Process | None:
        return self._by_key.get(key)

    def all(self) -> list[Process]:
        return list(self._by_key.values())

    def expect(self, key: Key, row: int = -1) -> Process:
        """A process that will exist soon."""
        process = self._by_key[key] = Process(key, row=row)
        return process

    def start_zygote(self, key: Key, recipe: Mapping[str, Any], run_dir: RunDir, boot_log: BootLog) -> Process:
        """See `spawn_zygote`."""
        pid = spawn_zygote(key.generation, recipe, run_dir, boot_log.open(), self.nofile)
        process = self.expect(key)
        self.is_running(process, pid)
        return process

    def is_running(self, process: Process, pid: int, *, told: bool = False, pidfd: int | None = None) -> None:
        """The process has this pid: watch for its exit. If it has gone already, that is reported now.

        `told`: its parent, which is another master, tells of its exit, and knows how it was (`has_ended`). `pidfd` is
        the process's, and is this object's from now on; -1 means that the process has gone. Without it the pid must be
        that of a child which has not been reaped, or of a process that the caller has another pidfd of.
        """
        if process.pid == pid and (process.pidfd != -1 or pidfd is None or pidfd == -1):
            if pidfd is not None and pidfd != -1:
                os.close(pidfd)
            return
        if process.pidfd != -1:
            self._loop.forget(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        process.pid, process.told = pid, told
        process.started = time.monotonic()
        if pidfd is None:
            process.pidfd = _open(pid)
            process.polled = process.pidfd == -1
        else:
            process.pidfd, process.polled = pidfd, False
        process.start = peers.start_time(pid) if process.pidfd != -1 or process.polled else 0
        self._watch(process)

    def known_as(self, pid: int) -> Process | None:
        """The process with this pid, if it is one of these and has not ended."""
        return next((p for p in self._by_key.values() if p.pid == pid and not peers.has_ended(p.pidfd)), None)

    def forget(self, key: Key) -> None:
        """It has never come to be, or is known to have gone."""
        process = self._by_key.pop(key, None)
        if process is not None and process.pidfd != -1:
            self._loop.forget(process.pidfd)
            os.close(process.pidfd)

    def signal(self, key: Key, number: int) -> bool:
        """Send a signal, by pidfd: never to another process that got the same pid. False if it was not sent.

        A worker that has executed a program with the set-user-ID bit runs as another user by now. It gets no signal:
        its own user may not send it one, and must not make the master do so.
        """
        process = self._by_key.get(key)
        if process is None or not process.pid or process.ended:
            return False
        if process.pidfd == -1 and not process.polled:
            return False
        if process.polled:
            self.reap()
            if process.pid in self._exits:
                return False
        if process.user is not None and not peers.users_of(process.pid) <= {process.user}:
            self._log("warning", f"{key} (process {process.pid}) runs as another user by now, and is sent no signal")
            return False
        if process.pidfd != -1:
            return _signal(process.pidfd, number)
        try:
            pidfd = reserve.take(lambda: peers.started_at(process.pid, process.start))
        except OSError as error:
            if error.errno not in SHORTAGE or not _is_child(process.pid):
                raise
            os.kill(process.pid, number)
            return True
        if pidfd == -1:
            return False
        try:
            return _signal(pidfd, number)
        finally:
            os.close(pidfd)
            reserve.refill()

    def reap(self) -> bool:
        """Collect every child that has ended: workers and zygotes, and, as PID 1, whatever else was left to us.

        Whether there are others, that live.
        """
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return False
            if info is None:
                return True
            self._exits[info.si_pid] = in_words(info)
            if len(self._exits) > FORGOTTEN:
                del self._exits[next(iter(self._exits))]

    def how_ended(self, pid: int) -> str:
        """How a child ended that is nobody of a generation; "" if it has not."""
        self.reap()
        return self._exits.pop(pid, "")

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        return {
            "nofile": self.nofile,
            "exits": self._exits,
            "processes": [
                {
                    "key": process.key,
                    "pid": process.pid,
                    "pidfd": lend(process.pidfd),
                    "row": process.row,
                    "start": process.start,
                    "user": process.user,
                    "started": process.started,
                    "dismissed": process.dismissed,
                    "jobs": list(process.jobs.values()),
                    "packages": process.packages,
                }
                for process in self._by_key.values()
            ],
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        self.nofile = left.get("nofile")
        self._exits = {int(pid): how for pid, how in left["exits"].items()}
        for one in left["processes"]:
            process = self.expect(Key(*one["key"]), one["row"])
            process.pid, process.pidfd, process.started = one["pid"], one["pidfd"], one["started"]
            process.jobs = {job["number"]: job for job in map(_job, one["jobs"]) if job is not None}
            process.packages = one.get("packages")
            process.start = one["start"] if "start" in one else peers.start_time(process.pid)
            process.user = one.get("user")
            process.dismissed = one.get("dismissed", False)
            process.polled = process.pidfd == -1
            if process.pid:
                self._watch(process)

    # --- beside another master ----------------------------------------------------------------------------------------

    def has_ended(self, key: Key, how: str) -> None:
        """What its parent tells, see `is_running`."""
        process = self._by_key.get(key)
        if process is not None and process.told:
            process.told = False
            self._exits[process.pid] = how
            self._gone(process)

    def nobody_tells(self) -> None:
        """The parent of those whose ends it would tell has gone. That an exit was clean is not known of them."""
        for process in self._by_key.values():
            if process.told:
                process.told = False
                if not self._resting:
                    self._watch(process)

    def rest(self) -> None:
        """Notice no exits: another master may be there to act on them."""
        self._resting = True
        for process in self._by_key.values():
            if process.pidfd != -1:
                self._loop.forget(process.pidfd)

    def go_on(self) -> None:
        """After a rest."""
        self._resting = False
        for process in self._by_key.values():
            if process.pid:
                self._watch(process)

    def close(self) -> None:
        """Another master watches them from now on."""
        self.rest()
        for process in self._by_key.values():
            if process.pidfd != -1:
                os.close(process.pidfd)
        self._by_key.clear()

    # --- exits --------------------------------------------------------------------------------------------------------

    def _watch(self, process: Process) -> None:
        if process.told:
            return
        if process.pidfd != -1:
            self._loop.watch(process.pidfd, lambda: self._gone(process))
        elif process.polled:
            self._loop.later(0, lambda: self._poll(process, process.pid))
        else:
            self._loop.later(0, lambda: self._gone(process))  # it had gone before it could be watched

    def _poll(self, process: Process, pid: int) -> None:
        """Look whether the process still lives, again and again, until it can be watched. Its start time tells it from
        a later process with the same pid."""
        known = self._by_key.get(process.key) is process and process.pid == pid and process.pidfd == -1
        if not known or self._resting or process.told:
            return
        self.reap()
        try:
            pidfd = -1 if pid in self._exits else peers.started_at(pid, process.start)
        except OSError as error:
            if error.errno not in SHORTAGE:
                raise
            if peers.start_time(pid) == process.start:
                self._loop.later(POLL, lambda: self._poll(process, pid))
                return
            pidfd = -1
        process.pidfd, process.polled = pidfd, False
        self._watch(process)

    def _gone(self, process: Process) -> None:
        if self._by_key.get(process.key) is not process or self._resting:
            return
        self.reap()
        how = self._exits.pop(process.pid, "")
        if process.pidfd != -1:
            self._loop.forget(process.pidfd)
        if not how and process.asked_again < ASK_AGAIN and peers.exists(process.pid):
            # A worker can be dead before its first parent is, and is ours to wait for only after that.
            process.asked_again += 1
            self._loop.later(0.01, lambda: self._gone(process))
            return
        if process.pidfd != -1:
            os.close(process.pidfd)
            process.pidfd = -1
        process.ended = True
        process.clean = how == EXITED
        if process.malformed:
            how = "was killed because it sent a malformed message"
        try:
            self._on_exit(process, how or "has gone")
        finally:
            del self._by_key[process.key]


def _job(left: Mapping[str, Any]) -> dict[str, Any] | None:
    """A job of which an earlier master has heard, None where that master's version let something else pass."""
    try:
        return vars(messages.Job.parse(left))
    except messages.Malformed:
        return None


def _raised(fd: int, stack: contextlib.ExitStack) -> int:
    """As `high`, but `fd` stays, and `stack` closes the other."""
    raised = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
    stack.callback(os.close, raised)
    return raised


def high(fd: int) -> int:
    """The same file at a number that the child's standard streams and their copies do not overwrite."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
    finally:
        os.close(fd)
