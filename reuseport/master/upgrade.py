"""The master replaces itself in place by another version of this package or of Python: same pid, same children.

First a trial: what started this master is started once more, as a child that reads the master's state, says whether it
could go on from there (`rehearsal.py`), and ends. Only then the master execs it. The exec is the point of no return, so
everything that can fail comes before it; whatever does leaves this master as it was.

Signals are blocked from before the exec until the handlers of the new master stand: they wait in the process, which
keeps them (execve(2), signal(7)).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from reuseport import startup
from reuseport.ipc.inherited import SIGNALS, UPGRADE_VARIABLE
from reuseport.master import estate
from reuseport.master.control import Client
from reuseport.master.loop import Loop
from reuseport.master.processes import Processes, high

if TYPE_CHECKING:
    from reuseport.master.main import Master

TAIL = 16384  # bytes of what a failed trial has printed that are shown


class Refused(Exception):
    """The upgrade cannot be; the message says why. `output` is what the new version has printed."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


class Command(NamedTuple):
    """`words` are to be executed; `files`, links of their directories followed, are what that runs now."""

    words: tuple[str, ...]
    files: tuple[str, ...]


def command_of(argv: Sequence[str], orig_argv: Sequence[str], executable: str, cwd: str) -> Command:
    """What has started this process, to be started again: from sys.argv, sys.orig_argv, sys.executable, and the
    directory it was started in, as the user wrote it.

    The paths stay as they were said, so that a virtual environment that was flipped behind a link is the one that the
    link leads to now. A script that names its interpreter in its first line is executed itself: behind such a link both
    are others by now.
    """
    first, *rest = orig_argv
    python = os.path.join(cwd, first) if "/" in first else executable
    at = len(orig_argv) - len(argv)
    if not 0 < at < len(orig_argv) or orig_argv[at] != argv[0]:
        return Command((python, *rest), (_behind_links(python),))  # `-m`, or something of that kind
    script = os.path.join(cwd, orig_argv[at])
    files = (_behind_links(python), _behind_links(script))
    if os.access(script, os.X_OK) and _words_of_first_line(script) == list(orig_argv[1:at]):
        return Command((script, *orig_argv[at + 1 :]), files[1:])
    return Command((python, *orig_argv[1:at], script, *orig_argv[at + 1 :]), files)


def _behind_links(path: str) -> str:
    head, tail = os.path.split(path)
    return os.path.join(os.path.realpath(head), tail)


def _words_of_first_line(script: str) -> list[str] | None:
    """What the kernel puts between the interpreter and the script (execve(2)); None where it names no interpreter."""
    try:
        with open(script, "rb") as file:
            line = file.readline(4096).decode(errors="surrogateescape")
    except OSError:
        return None
    words = line.removeprefix("#!").split()
    if not line.startswith("#!") or not words:
        return None
    if os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word != "-S"]
    return words[1:]


class Upgrade:
    """`due`: the trial has succeeded, and nothing stands between the master and `perform`."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._trial: Trial | None = None
        self._asker = ""
        self.due = False

    @property
    def under_way(self) -> bool:
        return self._trial is not None

    def ask(self, client: Client | None = None) -> None:
        """Try the new version out, and become it if that goes well. Whoever asked is told by it, or why not by us."""
        master = self._master
        if self.under_way:
            self._refuse(client, Refused("an upgrade is under way already"))
            return
        if master.cluster.stopping:
            self._refuse(client, Refused("the server is stopping"))
            return
        if master.succession.under_way:
            self._refuse(client, Refused("another master is taking over (reuseport status)"))
            return
        self._asker = client.name if client else ""
        try:
            command = self._command()
            self._trial = self._try_out(command)
        except Refused as refused:
            self._refuse(client, refused)
            return
        text = f"trying the new version out: {' '.join(command.words[:3])} ..."
        master.log.write("info", text)
        if client:
            client.say(event="stage", text=text)

    def cancel(self) -> None:
        """The server has stopped."""
        if self._trial is not None:
            self._trial.end()
            self._on_trial(Refused("the server was stopped"))

    def perform(self) -> None:
        """Become the new version. Returns only where that failed."""
        master, trial = self._master, self._trial
        assert trial is not None
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            master.catch_up()  # with what those signals say that came until now; one for an upgrade is refused still
            if master.cluster.stopping or master.exit_status is not None:
                raise Refused("the server was stopped")
            if self._command() != trial.command:
                raise Refused(f"{trial.command.words[0]} leads elsewhere by now than when it was tried out")
            self._exec(trial.command)
        except Refused as refused:
            self._refuse(master.control.clients.get(self._asker), refused)
        finally:
            self.due, self._trial = False, None
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _try_out(self, command: Command) -> Trial:
        """Refused where it cannot be executed."""
        master = self._master
        try:
            state, _ = estate.write(master, self._asker)
            try:
                limit = master.releases.settings.boot_timeout
                return Trial(command, state, master.loop, master.processes, limit, self._on_trial)
            finally:
                os.close(state)
        except OSError as error:
            raise Refused(_cannot_execute(command, error)) from None

    def _exec(self, command: Command) -> NoReturn:
        """Refused where the kernel will not."""
        state, lent = -1, []
        try:
            state, lent = estate.write(self._master, self._asker)
            for fd in (state, *lent):
                os.set_inheritable(fd, True)
            os.execve(command.words[0], command.words, _environment(state=state))
        except OSError as error:
            raise Refused(_cannot_execute(command, error)) from None
        finally:
            for fd in lent:
                os.set_inheritable(fd, False)
            if state != -1:
                os.close(state)

    def _command(self) -> Command:
        """Refused where it names a script that has gone, of which its interpreter would tell in its own words."""
        command = command_of(sys.argv, sys.orig_argv, sys.executable, self._master.first.origin.cwd)
        _, *scripts = command.files
        for path in scripts:
            if not os.path.exists(path):
                raise Refused(f"cannot execute {path}: it has gone")
        return command

    def _on_trial(self, refused: Refused | None) -> None:
        client = self._master.control.clients.get(self._asker)
        if refused is not None:
            self._trial = None
            self._refuse(client, refused)
            return
        self.due = True

    def _refuse(self, client: Client | None, refused: Refused) -> None:
        if refused.output:
            self._master.log.write("error", refused.output.rstrip())
        self._master.log.write("error", f"no upgrade, and nothing has changed: {refused}")
        if client:
            client.done(False, error=str(refused), output=refused.output)


class Trial:
    """The new version, once, in a child. `on_end(None)` when it could go on from the state, else why not."""

    def __init__(
        self,
        command: Command,
        state: int,
        loop: Loop,
        processes: Processes,
        limit: float,
        on_end: Callable[[Refused | None], None],
    ) -> None:
        """OSError where it cannot be executed."""
        self.command = command
        self._loop = loop
        self._processes = processes
        self._on_end = on_end
        self._late = ""
        with contextlib.ExitStack() as failing, contextlib.ExitStack() as afterwards:
            self._answer = os.memfd_create("reuseport-answer")
            failing.callback(os.close, self._answer)
            self._output = high(os.memfd_create("reuseport-trial"))
            failing.callback(os.close, self._output)
            null = high(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            afterwards.callback(os.close, null)
            for fd in (state, self._answer):
                os.set_inheritable(fd, True)
            self._pid = os.posix_spawn(
                command.words[0],
                command.words,
                _environment(state=state, answer=self._answer),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, self._output, 1),
                    (os.POSIX_SPAWN_DUP2, self._output, 2),
                ],
                setsigmask=(),
                setsigdef=[signal.SIGPIPE],
            )
            try:
                self._pidfd = os.pidfd_open(self._pid)
            except OSError:
                os.kill(self._pid, signal.SIGKILL)  # a child that has not been reaped: the pid is still its own
                raise
            failing.pop_all()
        os.set_inheritable(self._answer, False)
        loop.watch(self._pidfd, self._ended)
        loop.later(limit, lambda: self._overdue(limit))

    def end(self) -> None:
        """Whatever it is at."""
        if self._pidfd != -1:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _overdue(self, limit: float) -> None:
        self._late = f"has not ended within {limit:g} s (--boot-timeout)"
        self.end()

    def _ended(self) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        how = self._processes.how_ended(self._pid)
        answer, output = _contents(self._answer), _contents(self._output)
        said: dict[str, Any] = json.loads(answer) if answer.endswith("}") else {}
        if said and not said["error"] and how == "exited" and not self._late:
            self._on_end(None)
            return
        if said.get("error"):
            reason = f"reuseport {said['version']} cannot go on from here: {said['error']}"
        else:
            reason = f"the new version {self._late or how}"
            reason += ", and has not said whether it could go on from here" if how == "exited" else ""
        self._on_end(Refused(reason, output[-TAIL:]))


def _environment(**fds: int) -> dict[str, str]:
    return startup.environment({**os.environ, UPGRADE_VARIABLE: json.dumps(fds)})


def _contents(fd: int) -> str:
    """Of a file in memory, which is closed."""
    with open(fd, encoding="utf-8", errors="replace") as file:
        file.seek(0)
        return file.read()


def _cannot_execute(command: Command, error: OSError) -> str:
    return f"cannot execute {command.words[0]}: {error.strerror}"
