"""A master that takes over from a running one, until it is the master itself (`reuseport serve --takeover`).

It knocks where zygotes and workers say hello, with what it wants to release; starts the zygote when it is told to; and
waits. The other master decides everything (`succession.py`), so all that can be done here is to fail, which changes
nothing: at the end of this process, or of the channel, what it has started is given up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from reuseport.core.model import Release
from reuseport.ipc import channel as channels
from reuseport.ipc.channel import Channel
from reuseport.ipc.inherited import SIGNALS
from reuseport.ipc.rundir import RunDir
from reuseport.master.loop import Loop
from reuseport.master.notify import Notifier
from reuseport.master.passed import Supervision
from reuseport.master.processes import spawn_zygote
from reuseport.master.roster import Remains, Roster
from reuseport.master.slots import SlotError, names_of
from reuseport.master.succession import PROMPT, PROTOCOL
from reuseport.options import Settings
from reuseport.options.settings import DEFAULT
from reuseport.version import __version__

# What ends this process like any other until it is a master.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
DYING = 2.0  # seconds between the end of a dying master's sockets and its own


class TakeoverError(Exception):
    """Nothing has been taken over, and nothing has changed. `output`: what the application printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


@dataclass
class Bequest:
    """What the other master gives. `masters` are the pids of the earlier ones that wait for their last process, and
    `theirs` the addresses that belong to a socket unit.

    `bereaved`: it gives nothing, since it has died meanwhile; what it left is to be adopted, and this version released.
    """

    channel: Channel
    bereaved: bool = False
    masters: list[int] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)
    slots: list[tuple[str, int, bool, int]] = field(default_factory=list)  # address, index, shared, descriptor
    queues: list[tuple[int, list[int]]] = field(default_factory=list)  # generation, receiving and sending end

    def settled(self, remains: Remains) -> Remains:
        """What the roster tells. The probation of what serves is over: the other master has waited for that."""
        survivors = tuple(
            replace(one, release=replace(one.release, probation=0.0)) for one in remains.adopted.survivors
        )
        return replace(remains, adopted=replace(remains.adopted, survivors=survivors))

    def accept(self) -> None:
        """Say that this is the master now."""
        self.channel.send("mine")  # unheard by one that has died
        self.channel.close()


def take_over(
    settings: Settings, release: Release, run_dir: RunDir, supervision: Supervision, log: Callable[[str, str], None]
) -> Bequest | None:
    """Have the running master release this version and hand over. Blocks: there is nobody yet who needs this process.

    None where no master runs, and none need (--takeover if-running). TakeoverError.
    """
    _check_owner(settings, run_dir)
    try:
        channel = channels.connect(run_dir.hello)
    except OSError:
        if settings.takeover == "if-running":
            return None
        raise TakeoverError(
            f"no master owns {run_dir.path}, so there is nothing to take over (--run-dir, or -n, says where one is "
            "looked for); start without --takeover, or with --takeover if-running"
        ) from None
    with contextlib.ExitStack() as stack:
        # A HUP waits until this is a master; what ends a process ends this one.
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_DFL))
        return _Candidate(channel, run_dir, release, supervision, log).wait(settings)


def _check_owner(settings: Settings, run_dir: RunDir) -> None:
    """Slots can be shared by one user only, and so can everything else there."""
    with contextlib.suppress(OSError):
        owner = os.stat(run_dir.path).st_uid
        if owner != os.geteuid():
            where = settings.where("run_dir")
            raise TakeoverError(f"{where}: {run_dir.path} belongs to uid {owner}, and this runs as {os.geteuid()}")


class _Candidate:
    def __init__(
        self,
        channel: Channel,
        run_dir: RunDir,
        release: Release,
        supervision: Supervision,
        log: Callable[[str, str], None],
    ) -> None:
        self._channel = channel
        self._run_dir = run_dir
        self._release = release
        self._log = log
        self._loop = Loop()  # for as long as this takes
        self._notifier = Notifier(supervision, self._loop, log)  # asks for time meanwhile
        self._pid, _ = channel.peer()
        self._heard = False
        self._bequest = Bequest(channel)
        channel.be_patient()

    def wait(self, settings: Settings) -> Bequest:
        Roster(self._run_dir.roster).read()  # RunDirError, better now than when it is needed
        with contextlib.ExitStack() as stack:
            other = os.pidfd_open(self._pid)
            stack.callback(os.close, other)
            stack.callback(self._notifier.close)
            try:
                addresses = None if settings.sources["bind"] == DEFAULT else names_of(settings.bind)
            except SlotError as error:
                raise TakeoverError(str(error)) from None
            self._channel.send(
                "takeover", protocol=PROTOCOL, version=__version__, release=asdict(self._release), addresses=addresses
            )
            self._loop.watch(self._channel.fileno(), lambda: None)
            self._loop.later(PROMPT, self._wonder)
            while True:
                self._loop.wait(None)
                for message, fds in self._channel.receive():
                    if self._on_message(message, fds):
                        return self._bequest
                if self._channel.closed:
                    self._mourn(other)
                    return Bequest(self._channel, bereaved=True)

    def _wonder(self) -> None:
        if not self._heard:
            self._channel.closed = True

    def _on_message(self, message: Mapping[str, Any], fds: list[int]) -> bool:
        """Whether that was the last one."""
        self._heard = True
        kind = message["type"]
        if kind == "accepted":
            self._log("info", f"taking over from master {self._pid} (reuseport {message.get('version', 'unknown')})")
        elif kind == "start":
            self._start(message)
        elif kind == "slots":
            self._bequest.slots += [(*name, fd) for name, fd in zip(message["slots"], fds, strict=True)]
        elif kind == "queue":
            self._bequest.queues.append((int(message["generation"]), fds))
        elif kind == "yours":
            self._bequest.masters = [*message["masters"], self._pid]
            self._bequest.theirs = message["theirs"]
            return True
        elif kind == "refused":
            raise TakeoverError(str(message["error"]), str(message.get("output", "")))
        elif kind == "quit":
            raise TakeoverError(f"master {self._pid} is of a version of reuseport that cannot be taken over from")
        return False

    def _start(self, message: Mapping[str, Any]) -> None:
        """The zygote belongs to this master, but talks to the other one until that hands over."""
        generation = int(message["generation"])
        # It may be of another version: where its files lie is its to say.
        self._run_dir.hello, self._run_dir.scoreboard = message["hello"], message["scoreboard"]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, []) - set(SIGNALS)
        self._log("info", f"loading {self._release.recipe['directory']} as generation {generation}")
        try:
            output = os.open(message["boot_log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            pid = spawn_zygote(generation, self._release.recipe, self._run_dir, output, mask)
        except OSError as error:
            interpreter = self._release.recipe["interpreter"]
            self._channel.send("started", error=f"cannot execute {interpreter}: {error.strerror}")
            return
        self._channel.send("started", pid=pid)

    def _mourn(self, other: int) -> None:
        """The channel has ended without a word. If the other master has died this one is the next."""
        # Its lock goes with it, which is a moment later than its sockets.
        if not select.select([other], [], [], DYING)[0]:
            raise TakeoverError(f"master {self._pid} has not answered, or has hung up: its log may say why")
        self._log("warning", f"master {self._pid} died while it was to be taken over from: adopting what it left")
