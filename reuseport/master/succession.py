"""The succession: what a master does for another one that takes over from it (`reuseport serve --takeover`).

A takeover is a release and then an orderly death. The release is this master's own, decided by its core like any other;
only the zygote and the companions are started by the successor, as children of its own, from what it brings along. So
whatever fails until the new generation serves has changed nothing. Then the successor gets the slots, the queues, what
this master has counted and the lock of the run directory, reads the roster, and is the master, as it would be if this
one had died.

Whoever has the lock is the master, at each moment. This one stops deciding before it lets go of the lock, and takes it
back if the successor does not say that it has come so far. `takeover.py` is the other side.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reuseport.core import events as ev
from reuseport.core import record
from reuseport.core.model import BOOTING, SERVING, SUPERSEDED, ZYGOTE, Asker, Key, Release
from reuseport.ipc import messages
from reuseport.ipc.channel import PACKET, Channel
from reuseport.ipc.messages import Message, Question, TakeOver
from reuseport.ipc.rundir import RunDirError, not_this
from reuseport.master import bequest
from reuseport.master.attached import attach, part
from reuseport.master.control import Client
from reuseport.master.peers import NotOurs, Peer, child_of
from reuseport.master.processes import Process
from reuseport.options import Settings
from reuseport.options.identity import is_stranger
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master

PROTOCOL = 1  # of what the two masters say
SUCCESSOR = "successor"  # as an asker's name
PROMPT = 10.0  # seconds for the successor to do what needs no more than a fork
OUTPUT = PACKET // 2  # bytes of what a generation printed, as JSON


class Succession:
    """`paused`: the master decides nothing, since another one may own the run directory by now. `heir`: the pid of the
    one that does; 0 while it is this one."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._channel: Channel | None = None
        self._who = ""
        self._recipe: Mapping[str, Any] | None = None  # what the successor has brought: its release is known by it
        self._number = 0  # of the generation that has become of it
        self._awaited: Key | None = None  # the zygote that it has been asked to start
        self._launched: set[Key] = set()  # the companions, likewise
        self._due = False
        self._last: dict[str, Any] | None = None
        self._pid = 0
        self._pidfd = -1  # the successor's
        self._left: dict[str, Any] = {}  # of the companions, for it or for another try of this one
        self._held: list[tuple[Client, Question]] = []  # questions for whoever will be the master
        self.paused = False
        self.heir = 0
        self.metrics_go_on = True  # the successor answers where this master has

    @property
    def under_way(self) -> bool:
        return self._channel is not None

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec, before which no takeover is under way (`Upgrade`)."""
        return {"last": self._last}

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._last = left["last"]

    def shown(self) -> dict[str, Any] | None:
        """The takeover under way, or how the last one failed, for `status`."""
        return self._last

    # --- a master comes -----------------------------------------------------------------------------------------------

    def asked(self, channel: Channel, peer: Peer, question: TakeOver) -> None:
        """Another master, of the same user, wants to take over."""
        pid = peer.pid
        who = f"master {pid} (reuseport {question.version})"
        self._master.log.write("info", f"{who} asks to take over")
        objection = self._objection(peer, question)
        release = Release()
        if not objection:
            try:
                release = record.release_of(question.release)  # as another version puts it
                objection = self._at_odds(release, question)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                objection = f"its release cannot be read here ({type(error).__name__}: {error})"
        # A rollback loads the old version anew: a copy of its zygote would be this master's child, and keep it here.
        release = replace(release, standby=0.0, canary=None)
        if refusal := self._master.releases.begin_for_another(
            release, Asker(SUCCESSOR), objection, f"master {pid} (--takeover)"
        ):
            _refuse(channel, refusal)
            part(self._master.loop, channel)
            peer.close()
            return
        self._pidfd = peer.pidfd
        self._channel, self._pid, self._who, self._recipe, self._number = channel, pid, who, release.recipe, 0
        attach(self._master.loop, channel, self._hear)
        self._last = {"pid": pid, "at": time.time(), "outcome": "under way", "error": ""}
        self._say("accepted", version=__version__, metrics=self._master.telling.address)

    def _objection(self, peer: Peer, question: TakeOver) -> str:
        cluster = self._master.cluster
        if question.protocol != PROTOCOL:
            mine = f"master {os.getpid()} (reuseport {__version__})"
            return f"{mine} takes part in takeovers of protocol {PROTOCOL}, not {question.protocol}"
        if peer.pid <= 0:
            return "the two masters do not see each other's processes: they run in different pid namespaces"
        if peer.pidfd == -1:
            return f"master {peer.pid} has ended"
        if self._channel is not None:
            return f"{self._who} is taking over already"
        if cluster.leaving:
            return "the server is stopping"
        if self._master.upgrade.under_way:
            return "it is being replaced in place by another version (reuseport upgrade): try again when it has been"
        if self._master.roster_failed:
            return "this master cannot write down which processes there are (is a disk full?), as its log says"
        if cluster.serving is None:
            return "nothing serves yet: there is nothing to take over"
        return ""

    def _at_odds(self, release: Release, question: TakeOver) -> str:
        """What the successor's options may not change, since both versions live by it."""
        theirs, mine = Settings.from_json(release.recipe["settings"]), self._master.first
        if is_stranger(theirs, mine.name):
            return not_this(self._master.run_dir.path, mine.name, theirs.name)
        if question.addresses is not None and (why := self._master.slots.differ_from(list(question.addresses))):
            return f"--bind: {why}: other addresses need a new start"
        if os.path.realpath(theirs.state_dir) != os.path.realpath(mine.state_dir):
            return f"--state-dir is {mine.state_dir} in the running master: history and holds must be the same"
        ids = release.recipe["ids"]
        if (tuple(ids) if ids else None) != self._master.ids:
            return "--user and --group must be those of the running master"
        return ""

    # --- its generation boots -----------------------------------------------------------------------------------------

    def starts(self, command: ev.StartZygote) -> bool:
        """Whether this zygote is the successor's to start, which it is asked for."""
        if self._recipe is None or command.release.recipe is not self._recipe:
            return False
        key = Key(command.generation, ZYGOTE)
        if self._channel is None:
            if self._master.cluster.generations[key.generation].state not in BOOTING:
                return False  # it serves: now it is this master's like any other
            self._master.events.append(ev.Started(key, error=f"{self._who} has gone"))
            return True
        self._master.processes.expect(key)
        self._number, self._awaited = key.generation, key
        run_dir = self._master.run_dir
        self._say(
            "start",
            generation=key.generation,
            hello=run_dir.named(run_dir.hello),
            scoreboard=run_dir.named(run_dir.scoreboard),
            boot_log=run_dir.named(run_dir.boot_log(key.generation)),
        )
        self._master.loop.later(PROMPT, lambda: self._lost("does not answer") if self._awaited is key else None)
        return True

    def launches(self, command: ev.Launch) -> bool:
        """Whether this companion is the successor's to start, which it is asked for."""
        key = command.key
        if not self._has_brought(key):
            return False
        self._master.processes.expect(key)
        self._launched.add(key)
        self._say("launch", generation=key.generation, number=key.number)
        self._master.loop.later(PROMPT, lambda: self._lost("does not answer") if key in self._launched else None)
        return True

    def lets_go(self, command: ev.Go) -> bool:
        if not self._has_brought(command.key):
            return False
        self._say("go", generation=command.key.generation, number=command.key.number)
        return True

    def boots(self, generation: int) -> bool:
        """Whether the generation is the successor's, which has started its zygote."""
        return self._has_brought(Key(generation, ZYGOTE))

    def _has_brought(self, key: Key) -> bool:
        g = self._master.cluster.generations.get(key.generation)
        return self._channel is not None and g is not None and g.release.recipe is self._recipe

    def _on_message(self, message: Message) -> None:
        if isinstance(message, messages.Started) and self._awaited is not None:
            key, self._awaited = self._awaited, None
            if message.error or not message.pid:
                self._master.processes.forget(key)
                self._master.events.append(ev.Started(key, error=message.error or f"{self._who} has started nothing"))
                return
            process = self._master.processes.get(key) or self._master.processes.expect(key)
            self._is_running(process, message.pid)
        elif isinstance(message, messages.Launched):
            self._on_launched(Key(message.generation, message.number), message)
        elif isinstance(message, messages.Said):
            key = Key(message.generation, message.number)
            said = ev.Said(key, message.pid, message.ready, message.status, message.extend, message.why)
            self._master.events.append(said)
        elif isinstance(message, messages.Ended):
            self._master.processes.has_ended(Key(message.generation, message.number), message.how)
        elif isinstance(message, messages.Mine) and self.paused:
            self.heir, self.metrics_go_on = self._pid, message.metrics
            self._part()

    def _on_launched(self, key: Key, message: messages.Launched) -> None:
        if key not in self._launched:
            return
        self._launched.discard(key)
        process, error = self._master.processes.get(key), message.error
        if error or process is None or not message.pid:
            self._master.processes.forget(key)
            self._master.events.append(ev.Started(key, error=error))
            return
        self._is_running(process, message.pid, told=True)

    def _is_running(self, process: Process, pid: int, *, told: bool = False) -> None:
        """The successor has started this process, which is its child."""
        try:
            pidfd = child_of(pid, self._pid)
        except (NotOurs, OSError) as error:  # also where no descriptor is left
            self._master.processes.forget(process.key)
            self._master.events.append(ev.Started(process.key, error=f"{self._who}: {error}"))
            return
        self._master.processes.is_running(process, pid, told=told, pidfd=pidfd)
        self._master.events.append(ev.Started(process.key, pid))

    def _lost(self, how: str) -> None:
        """The successor has died, or hangs: its generation is given up, unless it serves by now."""
        self._hang_up()
        if self.paused:
            return  # its death, or the time, decides
        self._fail(f"{self._who} {how}")
        key, self._awaited = self._awaited, None
        if key is not None and not ((process := self._master.processes.get(key)) and process.pid):
            self._master.processes.forget(key)
            self._master.events.append(ev.Started(key, error=f"{self._who} {how}"))
            return
        for launched in self._launched:
            self._master.processes.forget(launched)
            self._master.events.append(ev.Started(launched, error=f"{self._who} {how}"))
        self._launched.clear()
        for g in self._master.cluster.generations.values():
            if g.release.recipe is self._recipe:
                self._master.events.append(ev.Failed(Key(g.number, ZYGOTE), f"{self._who} {how}"))

    # --- and then -----------------------------------------------------------------------------------------------------

    def answer(self, command: ev.Answer) -> None:
        """The successor's release has ended."""
        if self._channel is None:
            return
        g = self._master.cluster.generations.get(command.generation)
        if command.ok and g is not None and g.release.recipe is self._recipe:
            self._due = True
            return
        newer = command.ok or command.outcome == SUPERSEDED
        error = "a newer release has taken its place" if newer else command.text
        if newer and not command.ok:
            error += f": {command.text}"
        self._decline(error, self._master.boot_logs.tail(command.generation))

    def look(self) -> None:
        """Hand over, if that is due: not in the middle of another release, which would be lost."""
        master, cluster = self._master, self._master.cluster
        # A companion that it has been asked for would otherwise be nobody's.
        waits = not cluster.leaving and (cluster.booting is not None or bool(self._launched))
        if not self._due or self._channel is None or waits:
            return
        self._due = False
        g = cluster.serving
        if cluster.leaving or g is None or g.state != SERVING or g.release.recipe is not self._recipe:
            self._decline("the server is stopping" if cluster.leaving else "a newer release has taken its place")
            return
        try:
            bequest.pass_descriptors(master, self._channel)
            if self._channel.given_up:
                self._lost(f"cannot be told what it needs: {self._channel.given_up}")
                return
            books = os.memfd_create("reuseport-books", os.MFD_CLOEXEC)
        except OSError as error:
            self._decline(f"nothing could be handed over: {error.strerror}")
            return
        master.log.write("info", f"handing over to {self._who}")
        master.boot_logs.copy_news()
        master.count()  # what was served until now is told by this master
        # From here on nothing is decided, nor counted: who has the lock decides.
        self.paused = True
        master.processes.rest()
        master.losses.rest()
        master.telling.rest()
        self._left = master.companions.let_go()
        master.run_dir.let_go(master.lock)
        bequest.write_books(master, self._left, books)
        files = master.slots.written().files
        self._say("yours", (books,), masters=master.predecessors.pids, theirs=master.slots.theirs, files=files)
        os.close(books)
        # Its end, and not that of the channel: its lock goes when its process does, a moment later.
        self._master.loop.watch(self._pidfd, self._take_back)
        self._master.loop.later(PROMPT, self._take_back)

    def _take_back(self) -> None:
        """The successor has not said that it is the master. If nobody has the lock this one goes on."""
        if not self.paused or self.heir:
            return
        self._part()
        try:
            self._master.run_dir.take_again(self._master.lock)
        except RunDirError:
            self.heir = self._master.run_dir.owner() or -1
            return
        self.paused = False
        try:
            self._master.run_dir.sign()
        except RunDirError as error:
            self._master.log.write("error", str(error))
        self._master.go_on()
        self._master.companions.inherit(self._left)
        self._fail("it has gone, or hangs; this master goes on")
        held, self._held = self._held, []
        for client, question in held:
            self._master.on_question(client, question)

    def hold(self, client: Client, question: Question) -> None:
        client.asked = False
        self._held.append((client, question))

    # --- talk ---------------------------------------------------------------------------------------------------------

    def _decline(self, error: str, output: str = "") -> None:
        self._fail(error)
        if self._channel is not None:
            _refuse(self._channel, error, output)
            self._hang_up()

    def _fail(self, error: str) -> None:
        if self._last is not None:
            self._last = {**self._last, "at": time.time(), "outcome": "failed", "error": error}
        self._master.log.write("error", f"the takeover by {self._who} has failed: {error}")

    def _say(self, kind: str, fds: tuple[int, ...] = (), **fields: Any) -> None:
        assert self._channel is not None
        self._channel.send(kind, fds, **fields)

    def _hear(self) -> None:
        channel = self._channel
        assert channel is not None
        heard = channel.receive(messages.FROM_SUCCESSOR)
        for message, _ in heard:
            self._on_message(message)
        if channel.fault is not None:
            self._master.log.write("error", f"{self._who} sent a malformed message: {channel.fault}")
        if self._channel is not channel:
            return
        if channel.closed:
            self._lost("has gone")

    def _hang_up(self) -> None:
        self._close_channel()
        if not self.paused:  # else its end decides, see `_take_back`
            self._part()

    def _part(self) -> None:
        """Have nothing to do with the successor any more."""
        self._close_channel()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd != -1:
            self._master.loop.forget(pidfd)
            self._await_end(pidfd)

    def _close_channel(self) -> None:
        """Messages that wait are still sent."""
        if self._channel is not None:
            part(self._master.loop, self._channel)
            self._channel = None
            self._master.processes.nobody_tells()

    def _await_end(self, pidfd: int) -> None:
        """Of the successor that was not to be: what those companions print that it has started is this master's to tell
        from then on, and not before."""
        master, number = self._master, self._number

        def gone() -> None:
            master.loop.forget(pidfd)
            os.close(pidfd)
            if not self.heir:
                g = master.cluster.generations.get(number)
                master.companions.follow(number, g.company if g else {})

        if self.heir or not number:
            os.close(pidfd)
        else:
            master.loop.watch(pidfd, gone)


def _refuse(channel: Channel, error: str, output: str = "") -> None:
    while len(json.dumps(output)) > OUTPUT:
        output = output[len(output) // 2 :]
    channel.send("refused", error=error, output=output)
