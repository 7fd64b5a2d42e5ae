"""A master that takes over from a running one, until it is the master itself (`reuseport serve --takeover`).

It knocks where zygotes and workers say hello, with what it wants to release; starts the zygote and the companions when
it is told to, since they are to be its own children; and waits. The other master decides everything (`succession.py`),
so all that can be done here is to fail, which changes nothing: at the end of this process, or of the channel, what it
has started is given up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from reuseport.core import events as ev
from reuseport.core.model import Key, Release
from reuseport.ipc import files, messages
from reuseport.ipc.channel import Channel
from reuseport.ipc.messages import Message
from reuseport.ipc.rundir import RunDir, RunDirError, not_this
from reuseport.master.bequest import Bequest, TakeoverError
from reuseport.master.bootlog import BootLog
from reuseport.master.peers import peer_of
from reuseport.master.processes import spawn_zygote
from reuseport.master.scrape import inherited, listen
from reuseport.master.slots import SlotError, may_be, names_of
from reuseport.master.succession import PROMPT, PROTOCOL
from reuseport.options import Settings
from reuseport.options.identity import is_stranger
from reuseport.options.machine import whose
from reuseport.options.settings import DEFAULT
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master

# What ends this process like any other until it is a master.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
DYING = 2.0  # seconds between the end of a dying master's sockets and its own


def take_over(master: Master, release: Release) -> Bequest | None:
    """Have the running master release this version and hand over. Blocks: there is nobody yet who needs this process.

    `master` is to be one, and has no more than a log, a loop and what starts processes. None where no master runs, and
    none need (--takeover if-running). TakeoverError, OptionError.
    """
    settings, run_dir = master.first, master.run_dir
    _check_owner(settings, run_dir)
    try:
        run_dir.hold(master.ids)
        channel = run_dir.reach_master()
    except BlockingIOError:
        raise TakeoverError(
            f"the master of {run_dir.path} accepts no connections: it is stopped, or has no file descriptors left"
        ) from None
    except OSError:
        if settings.takeover == "if-running":
            return None
        raise TakeoverError(
            f"no master owns {run_dir.path}, so there is nothing to take over (--run-dir, or -n, says where one is "
            "looked for); start without --takeover, or with --takeover if-running"
        ) from None
    refuse_stranger(settings, run_dir)
    with contextlib.ExitStack() as stack:
        # A HUP waits until this is a master; what ends a process ends this one.
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_DFL))
        return _Candidate(master, channel, release).wait()


def _check_owner(settings: Settings, run_dir: RunDir) -> None:
    """Slots can be shared by one user only, and so can everything else there."""
    with contextlib.suppress(OSError):
        owner = os.stat(run_dir.path).st_uid
        if owner != os.geteuid():
            where = settings.where("run_dir")
            raise TakeoverError(f"{where}: {run_dir.path} {whose(owner)}")


def refuse_stranger(settings: Settings, run_dir: RunDir) -> None:
    """RunDirError where a server of another name lives in the run directory that these settings lead to."""
    if is_stranger(settings, name := run_dir.server()):
        raise RunDirError(f"{settings.where('run_dir')}: {not_this(run_dir.path, name, settings.name)}")


class _Candidate:
    def __init__(self, master: Master, channel: Channel, release: Release) -> None:
        self._master = master
        self._channel = channel
        self._release = release
        self._pid, _ = channel.peer()
        self._generation = 0
        self._heard = False
        self._pids: dict[Key, int] = {}  # of the companions that were started last
        self._bequest = Bequest(channel)
        channel.be_patient()

    def wait(self) -> Bequest:
        master = self._master
        with contextlib.suppress(files.Damaged):  # the other master writes it anew
            master.roster.read()  # RunDirError, better now than when it is needed
        with contextlib.ExitStack() as stack:
            other = self._pidfd_of_master()
            stack.callback(os.close, other)
            stack.callback(master.loop.forget, self._channel.fileno())
            try:
                addresses = None if master.first.sources["bind"] == DEFAULT else names_of(master.first.bind)
            except SlotError as error:
                raise TakeoverError(str(error)) from None
            self._channel.send(
                "takeover", protocol=PROTOCOL, version=__version__, release=asdict(self._release), addresses=addresses
            )
            master.loop.watch(self._channel.fileno(), lambda: None)
            master.loop.later(PROMPT, self._wonder)
            while True:
                master.loop.wait(None)
                self._tell_of_companions()
                for message, fds in self._channel.receive(messages.TO_SUCCESSOR):
                    if self._on_message(message, fds):
                        return self._bequest
                if self._channel.fault is not None:
                    why = f"master {self._pid} sent what this version cannot read: {self._channel.fault}"
                    raise TakeoverError(why)
                if self._channel.closed:
                    self._mourn(other)
                    return Bequest(self._channel, bereaved=True, ends=self._bequest.ends)

    def _pidfd_of_master(self) -> int:
        peer = peer_of(self._channel)
        if peer.uid != os.geteuid():
            peer.close()
            raise TakeoverError(f"process {self._pid}, which listens there, {whose(peer.uid)}")
        if peer.pidfd == -1:
            raise TakeoverError(f"master {self._pid} has ended while it was asked")
        return peer.pidfd

    def _wonder(self) -> None:
        if not self._heard:
            self._channel.closed = True

    def _tell_of_companions(self) -> None:
        """They are children of this process, so only it knows how they end, and what they show of themselves."""
        events = self._master.events
        while events:
            event = events.popleft()
            assert isinstance(event, ev.Exited | ev.Said)
            of = {"generation": event.key.generation, "number": event.key.number}
            if isinstance(event, ev.Said):
                said = {name: value for name, value in asdict(event).items() if name != "key"}
                self._channel.send("said", **of, **said)
                continue
            if (pid := self._pids.get(event.key)) is not None:
                self._bequest.ends[pid] = event.how
            self._channel.send("ended", **of, how=event.how)

    def _on_message(self, message: Message, fds: list[int]) -> bool:
        """Whether that was the last one."""
        self._heard = True
        if isinstance(message, messages.Accepted):
            where = f"server {self._master.first.name}, run directory {self._master.run_dir.path}"
            from_whom = f"master {self._pid} (reuseport {message.version})"
            self._master.log.write("info", f"taking over from {from_whom}: {where}")
            self._look_at_metrics(message.metrics)
        elif isinstance(message, messages.Start):
            self._start(message)
        elif isinstance(message, messages.Launch):
            self._launch(Key(message.generation, message.number))
        elif isinstance(message, messages.Go):
            self._master.companions.go(Key(message.generation, message.number))
        elif isinstance(message, messages.Slots | messages.Queue | messages.Lock):
            self._bequest.take(message, fds)
        elif isinstance(message, messages.Metrics):
            self._take_metrics(fds[0], message.path, message.file)
        elif isinstance(message, messages.Yours):
            self._bequest.masters.append(self._pid)
            self._bequest.take(message, fds)
            return True
        elif isinstance(message, messages.Refused):
            raise TakeoverError(message.error, message.output + self._master.companions.tail(self._generation))
        elif isinstance(message, messages.Quit):
            raise TakeoverError(f"master {self._pid} is of a version of reuseport that cannot be taken over from")
        return False

    def _look_at_metrics(self, theirs: str | None) -> None:
        """The other master's address for metrics, if it is to be this one's, is handed over like the slots. Any other
        has to be had now, while a failure changes nothing. OptionError."""
        settings = self._master.first
        if not settings.metrics:
            return
        with contextlib.suppress(SlotError):  # what is wrong with it is said below
            if theirs is not None and may_be(names_of([settings.metrics])[0], theirs):
                self._bequest.keeps_metrics = True
                return
        self._bequest.scraped_at = listen(settings.metrics, settings.where("metrics"), settings.umask or 0)

    def _take_metrics(self, fd: int, path: str, identity: Iterable[int] | None) -> None:
        if self._bequest.keeps_metrics:
            self._bequest.scraped_at = inherited(fd, path, identity)
        else:
            os.close(fd)

    def _start(self, message: messages.Start) -> None:
        """The zygote belongs to this master, but talks to the other one until that hands over."""
        self._generation = message.generation
        run_dir, recipe = self._master.run_dir, self._release.recipe
        # It may be of another version: where its files lie is its to say.
        run_dir.locate(message.hello, message.scoreboard)
        self._master.log.write("info", f"loading {recipe['directory']} as generation {self._generation}")
        try:
            outputs = BootLog(run_dir.here(message.boot_log)).open()
            pid = spawn_zygote(self._generation, recipe, run_dir, outputs, self._master.processes.nofile)
        except OSError as error:
            self._channel.send("started", error=f"cannot execute {recipe['interpreter']}: {error.strerror}")
            return
        self._channel.send("started", pid=pid)

    def _launch(self, key: Key) -> None:
        """Likewise a companion. What it prints is this master's to tell, from the beginning."""
        companion = self._release.seats()[key.number]
        started = self._master.companions.begin(key, companion, self._release.recipe)
        self._pids[key] = started.pid
        self._channel.send(
            "launched", generation=key.generation, number=key.number, pid=started.pid, error=started.error
        )

    def _mourn(self, other: int) -> None:
        """The channel has ended without a word. If the other master has died this one is the next."""
        # Its lock goes with it, which is a moment later than its sockets.
        if not select.select([other], [], [], DYING)[0]:
            raise TakeoverError(f"master {self._pid} has not answered, or has hung up: its log may say why")
        self._master.log.write(
            "warning", f"master {self._pid} died while it was to be taken over from: adopting what it left"
        )
