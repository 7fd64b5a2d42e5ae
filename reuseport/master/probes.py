"""Running a companion's `ready_command` until it exits with status 0: one run after the other, each with a time limit.

A run dies with the master (PR_SET_PDEATHSIG). It goes on through the exec of an upgrade. It is killed when the
companion gets its stop signal or ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.master.commands import NOT_EXECUTED, Surroundings, become
from reuseport.master.loop import Loop
from reuseport.master.processes import EXITED, Processes, end_session
from reuseport.options.arguments import one_line

PIPE = 1 << 16  # bytes that a pipe holds (pipe(7))
PRINTED = 4096  # bytes that are kept of a run's output: the last ones
QUOTED = 200  # characters of the last line that the failure message quotes


class Probe:
    """`succeeds` is called once. `fails` gets the reason of a run's failure, if it is another than that of the last."""

    def __init__(
        self,
        declared: Mapping[str, Any],
        around: Surroundings,
        loop: Loop,
        processes: Processes,
        succeeds: Callable[[], None],
        fails: Callable[[str], None],
    ) -> None:
        self._command = declared["ready_command"]
        self._interval: float = declared["ready_interval"]
        self._timeout: float = declared["ready_command_timeout"]
        self._around = around
        self._loop = loop
        self._processes = processes
        self._succeeds = succeeds
        self._fails = fails
        self._runs = 0  # runs so far: a timer that belongs to an earlier run does nothing
        self._over = False
        self._pid = 0
        self._pidfd = self._pipe = -1
        self._printed = b""
        self._killed = False  # it has had its SIGKILL
        self._why = ""

    def start(self) -> None:
        """Run it now."""
        if self._over:
            return
        try:
            self._run()
        except OSError as error:
            self._say(f"its ready_command could not be run: {error.strerror}")
            self._loop.later(self._interval, self.start)

    def end(self) -> None:
        """Kill the run, and start no other."""
        self._over = True
        if self._pid:
            self._kill()
            self._clear()

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """The state that the master needs after an exec; `lend(fd)` lets a descriptor live through it."""
        return {"pid": self._pid, "pidfd": lend(self._pidfd), "pipe": lend(self._pipe), "why": self._why}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._pid, self._pidfd, self._pipe, self._why = (left[name] for name in ("pid", "pidfd", "pipe", "why"))
        if self._pid:
            self._watch()
        else:
            self._loop.later(self._interval, self.start)

    def _run(self) -> None:
        pipe, its = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(its, True)
        master, nofile = os.getpid(), self._processes.nofile
        pid = pidfd = -1
        try:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)  # it is the master's loop that this would wake
                become(self._command, self._around, its, nofile, complain=its, bound_to=master)
            pidfd = os.pidfd_open(pid)
        finally:
            os.close(its)
            if pidfd == -1:
                os.close(pipe)
                if pid > 0:
                    os.kill(pid, signal.SIGKILL)  # a child that nobody has reaped: the number is still its own
        self._pid, self._pidfd, self._pipe = pid, pidfd, pipe
        self._watch()

    def _watch(self) -> None:
        self._runs += 1
        run, self._printed, self._killed = self._runs, b"", False
        self._loop.watch(self._pidfd, self._ended)
        self._loop.watch(self._pipe, self._read)
        self._loop.later(self._timeout, lambda: self._expire(run))

    def _read(self) -> None:
        """Read until the pipe is empty. A process that the run has left behind may print on, so there is a bound."""
        for _ in range(PIPE // PRINTED):
            try:
                data = os.read(self._pipe, PRINTED)
            except BlockingIOError:
                return
            self._printed = (self._printed + data)[-PRINTED:]
            if not data:
                self._loop.forget(self._pipe)
                return

    def _expire(self, run: int) -> None:
        if run == self._runs and self._pid:
            self._kill()

    def _kill(self) -> None:
        """The run's process first, so that it starts and prints nothing more. If it has been reaped, its pid may name
        another session by now."""
        self._killed = True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        end_session(self._pid)

    def _ended(self) -> None:
        how = self._processes.how_ended(self._pid) or "has gone"
        self._read()
        last = self._printed.decode(errors="replace").rstrip().rpartition("\n")[2]
        killed = self._killed
        self._clear()
        if how == EXITED and not killed:
            self._over = True
            self._succeeds()
            return
        if killed:
            how = f"did not end within {self._timeout:g} s"
        elif how == f"exited with status {NOT_EXECUTED}" and last.startswith("cannot "):
            how, last = last, ""
        self._say(f"its ready_command {how}" + (f": {one_line(last)[:QUOTED]}" if last else ""))
        self._loop.later(self._interval, self.start)

    def _say(self, why: str) -> None:
        if why != self._why:
            self._why = why
            self._fails(why)

    def _clear(self) -> None:
        for fd in (self._pidfd, self._pipe):
            self._loop.forget(fd)
            os.close(fd)
        self._pid, self._pidfd, self._pipe = 0, -1, -1
