"""The switchboard: a channel to every zygote and worker, and what is said on it.

Whoever owns the run directory is the master, so it is the processes who connect, with a hello that says who they are
and what they have. Boot, recovery from a crash and a zygote that starts again all come in by this one door. What
arrives becomes an event; the file descriptors that processes share (slots, hand-over queues) are passed from here.

Processes run the application, so what they say is checked before it is acted on. A hello is about the process that
connected and no other one (`hellos.py`, `peers.py`). A pid in a message is looked up, and counts only if it is that of
a process which the kernel knows as the zygote's.
"""

from __future__ import annotations

import _socket
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reuseport.core import events as ev
from reuseport.core.model import FIRST_JOB, ZYGOTE, Key
from reuseport.core.turn import name_of
from reuseport.ipc import channel as channels
from reuseport.ipc import messages
from reuseport.ipc.channel import Channel
from reuseport.ipc.messages import Heard, Hello, Malformed, Message, TakeOver
from reuseport.ipc.shortage import SHORTAGE
from reuseport.ipc.streams import PATHS
from reuseport.master import reserve
from reuseport.master.attached import attach, detach, part
from reuseport.master.hellos import IMPOSTOR, MALFORMED, Hellos
from reuseport.master.logfiles import LogFiles
from reuseport.master.loop import Loop
from reuseport.master.peers import NotOurs, Peer, forked_by, has_ended
from reuseport.master.processes import Process, Processes
from reuseport.master.slots import Slot, Slots
from reuseport.master.tally import Tally
from reuseport.version import __version__

AT_ONCE = 64  # messages of one process that are heard in one turn of the loop
TURN = 0.02  # seconds for them: a message of 60 kB takes up to 30 ms to check
LAST_WORDS = 4096  # messages that are heard of a process that has ended; more than a socket's buffer holds

LEVELS = ("debug", "info", "warning", "error", "critical")

PATIENCE = 3.0  # seconds that a process which boots waits for a descriptor of the master's

# What a process says, and the event that it becomes.
EVENTS: dict[type[Message], Callable[[Key, Any], ev.Event]] = {
    messages.Loaded: lambda key, message: ev.Loaded(key, message.workers),
    messages.Ready: lambda key, message: ev.Ready(key),
    messages.Accepting: lambda key, message: ev.Accepting(key),
    messages.LetGo: lambda key, message: ev.LetGo(key),
    messages.Failed: lambda key, message: ev.Failed(key, message.error),
    messages.Retire: lambda key, message: ev.Retire(key, message.reason),
}


def _group_of(key: Key) -> messages.Group:
    """What such a process can say behind its hello."""
    if key.number == ZYGOTE:
        return messages.FROM_ZYGOTE
    return messages.FROM_JOB if key.is_job else messages.FROM_WORKER


class Switchboard:
    """`tell(event)` gets what was said; `recipe_of(generation)` gives what a zygote of it must load, None for none."""

    def __init__(
        self,
        hellos: _socket.socket,
        workers_uid: int,
        name: str,
        loop: Loop,
        processes: Processes,
        slots: Slots,
        tell: Callable[[ev.Event], None],
        log: Callable[[str, str], None],
        recipe_of: Callable[[int], Mapping[str, Any] | None],
        job_ended: Callable[[Key, dict[str, Any]], None],
        log_files: LogFiles,
        tally: Tally | None = None,
    ) -> None:
        self._workers_uid = workers_uid
        # The user that workers must run as to be sent a signal, where it is not the master's own.
        self.foreign = workers_uid if workers_uid != os.geteuid() else None
        self._name = name
        self._loop = loop
        self._processes = processes
        self._slots = slots
        self._tell = tell
        self._log = log
        self._recipe_of = recipe_of
        self._job_ended = job_ended
        self._log_files = log_files
        self.on_stay: Callable[[str, int, float], None] = lambda tenant, generation, seconds: None
        self.on_seen: Callable[[Key, tuple[str, ...], bool], None] = lambda key, tenants, more: None
        self.on_tenant: Callable[[str], None] = lambda tenant: None  # a job of it runs
        self.on_hello: Callable[[Key], None] = lambda key: None  # a worker can be spoken to from now on
        self.on_zygote: Callable[[], None] = lambda: None  # it has said hello
        self.on_job: Callable[[Key, dict[str, Any]], None] = lambda key, job: None  # a process of its own has it
        self.on_import: Callable[[str], None] = lambda directory: None
        # Another master wants to take over, by this question of its.
        self.on_successor: Callable[[Channel, Peer, TakeOver], None] = _turn_away
        self.is_anothers: Callable[[int], bool] = lambda generation: False  # a master that takes over boots it
        self.on_lost: Callable[[Key, messages.JobLost], None] = lambda key, job: None  # no process has begun the job
        self.promised: set[tuple[str, int]] = set()  # slots that somebody has: they come behind the hello
        self._queues: dict[int, tuple[socket.socket, socket.socket]] = {}  # for the hand-over: receiving, sending
        # Since when, and at what time last, no hello could be heard, in monotonic seconds.
        self._deaf_since = self._deaf_at = float("-inf")
        self._unheard: set[Key] = set()  # processes whose boot was given up for that
        refused = (tally or Tally()).hello_refused
        trusted = {os.geteuid(), workers_uid}
        self.hellos = Hellos(hellos, trusted, loop, self._introduce, log, refused, self._cannot_hear)

    def send(self, key: Key, kind: str, fds: tuple[int, ...] = (), **fields: Any) -> bool:
        """False where there is nobody to say it to."""
        process = self._processes.get(key)
        if process is None or process.channel is None:
            return False
        process.channel.send(kind, fds, **fields)
        return True

    def last_words(self, process: Process) -> None:
        """Hear what a process said before it died, and hang up."""
        if process.channel is None:
            # It may have lived for so short a time that not even its hello has been heard.
            self.hellos.hear_last(process.pid)
        if process.channel is not None:
            channel, process.channel = process.channel, None
            # Another process may hold the socket, and write on.
            self._take(process, self._receive(process, channel, LAST_WORDS))
            self._hang_up(channel)

    def pass_logs(self, *, rotated: bool) -> None:
        """Pass every process the log files of its generation. `rotated`: the paths lead to other files by now, so a
        process of an earlier version is told to open its own again."""
        for process in self._processes.all():
            if process.channel is None:
                continue
            if process.takes_logs:
                self._pass_logs(process.channel, process.key.generation)
            elif rotated and process.key.number != ZYGOTE:
                process.channel.send("reopen")

    def announce_slots(self, slots: list[Slot]) -> None:
        """Pass new slots to everybody who may need them."""
        for process in self._processes.all():
            if process.channel is not None and slots and not process.key.is_job:
                self._pass_slots(process.channel, slots)

    def bequeath(self, key: Key, heir: int, workers: int) -> None:
        """Tell a worker whose its connections will be: generation `heir`, with so many workers."""
        if heir in self._queues:
            self.send(key, "heir", (self._queues[heir][1].fileno(),), generation=heir, workers=workers)

    def has_heard(self, key: Key) -> bool:
        """Whether a process has said hello, or will not any more."""
        process = self._processes.get(key)
        return process is None or process.channel is not None

    @property
    def queues(self) -> frozenset[int]:
        """The generations whose hand-over queue is known."""
        return frozenset(self._queues)

    def send_routes(self, key: Key, table: Mapping[str, Any], living: Iterable[int], workers: int) -> None:
        """Tell a worker which generations there are, with the ways to all others' queues."""
        others = [n for n in living if n != key.generation and n in self._queues][-channels.FDS :]
        fds = tuple(self._queues[n][1].fileno() for n in others)
        self.send(key, "routes", fds, table=table, queues=others, workers=workers)

    def forget_queues(self, living: Iterable[int]) -> None:
        """Close the queues of all other generations: what nobody has taken out of them goes back to its senders."""
        for number in set(self._queues).difference(living):
            for end in self._queues.pop(number):
                end.close()

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        return {
            **self.hellos.estate(lend),
            "channels": [(p.key, p.channel.estate(lend)) for p in self._processes.all() if p.channel is not None],
            "take_logs": [p.key for p in self._processes.all() if p.takes_logs],
            "hold_shared": [(p.key, p.holds_shared) for p in self._processes.all() if p.holds_shared is not None],
            "queues": {number: [lend(end.fileno()) for end in ends] for number, ends in self._queues.items()},
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        """Those who said hello to the master before the exec have noticed nothing of it, and are talked to further."""
        for key, one in left["channels"]:
            process = self._processes.get(Key(*key))
            assert process is not None
            process.channel = channels.inherited(one)
            process.takes_logs = list(key) in left.get("take_logs", ())
            self._listen_to(process, process.channel)
        for key, holds in left.get("hold_shared", ()):
            if process := self._processes.get(Key(*key)):
                process.holds_shared = holds
        self.hellos.inherit(left)
        for number, (receiving, sending) in left["queues"].items():
            self._queues[int(number)] = socket.socket(fileno=receiving), socket.socket(fileno=sending)

    def pass_everything(self, channel: Channel) -> None:
        """Slots and hand-over queues, for the master that comes after this one."""
        self._pass_slots(channel, self._slots.slots)
        for generation, ends in self._queues.items():
            channel.send("queue", tuple(end.fileno() for end in ends), generation=generation)

    def adopt_queue(self, generation: int, fds: list[int]) -> None:
        """Take over the hand-over queue of a generation. A second copy is closed, and so is what is no queue."""
        if generation in self._queues or not all(map(_is_queue_end, fds)):
            _close_all(fds)
        else:
            receiving, sending = (socket.socket(fileno=fd) for fd in fds)
            self._queues[generation] = receiving, sending

    def leave(self) -> None:
        """Hang up: everybody says hello to the master that is there now."""
        self.hellos.leave()
        for process in self._processes.all():
            if process.channel is not None:
                self._hang_up(process.channel)
                process.channel = None
        self.forget_queues(())

    def close(self) -> None:
        self.hellos.close()

    # Hellos.

    def _cannot_hear(self, error: OSError) -> None:
        """No descriptors are left for a channel, or to know its peer by. The hello waits, but a boot that goes on so
        long has failed."""
        now = time.monotonic()
        last, self._deaf_at = self._deaf_at, now
        if now > last + PATIENCE:
            self._deaf_since = now
            self._unheard.clear()
            self._log("error", f"processes wait to be heard, because no channel can be opened: {error.strerror}")
        for process in self._processes.all():
            waits = process.pid and process.channel is None and not (process.key.is_companion or process.key.is_job)
            if waits and now >= max(self._deaf_since, process.started) + PATIENCE and process.key not in self._unheard:
                self._unheard.add(process.key)
                why = f"the master could not open a channel to it within {PATIENCE:g} s: {error.strerror}"
                self._tell(ev.Failed(process.key, f"{name_of(process.key)}: {why}"))

    def _introduce(self, channel: Channel, peer: Peer, hello: Message, fds: list[int]) -> None:
        """The first message on a channel says whose it is. By now its sender may be dead."""
        self._deaf_at = float("-inf")
        if isinstance(hello, TakeOver) and peer.runs_as(os.geteuid()):
            self.on_successor(channel, peer, hello)
            return
        if not isinstance(hello, Hello):
            what = repr(hello.named) if isinstance(hello, messages.Unknown) else repr(hello.kind)
            self._refuse(channel, peer, fds, MALFORMED, f"process {peer.pid} sent {what}, which is no hello")
            return
        key = Key(hello.generation, hello.number)
        if why := self._not_its_own(key, peer):
            self._refuse(channel, peer, fds, IMPOSTOR, why)
            return
        expected = self._processes.get(key)
        unknown = expected is None and (
            key.number == ZYGOTE or (key.is_job and self._recipe_of(key.generation) is None)
        )
        if unknown or (expected is not None and expected.pid not in (0, peer.pid)):
            # A zygote that this master does not know belongs to a generation that has been given up. So does a job
            # whose generation has gone: it has not begun yet, and what asked for it is dead.
            _close_all(fds)
            peer.close()
            self._send_away(channel)
            return
        process = expected or self._processes.expect(key)
        is_news = process.pid == 0
        self._processes.is_running(process, peer.pid, pidfd=peer.pidfd)
        if key.number != ZYGOTE or peer.users == {self._workers_uid}:
            process.user = self.foreign
        process.packages = hello.packages
        if key.number == ZYGOTE and hello.state != "loaded" and hello.v != channels.VERSION:
            _close_all(fds)
            self._send_away(channel)
            error = (
                f"its reuseport sends messages of number {hello.v}, and this master is reuseport {__version__}, "
                f"which understands number {channels.VERSION}; install this version in the application's environment, "
                "or remove reuseport from it, and the release runs on the server's"
            )
            self._tell(ev.Failed(key, error))
            return
        if key.number == ZYGOTE:
            process.holds_shared = hello.shared
            self.on_zygote()
        if fds:
            self.adopt_queue(key.generation, fds)
        self.promised.update((address, n) for address, n, _ in hello.slots if self._slots.expects(address, n))
        if process.channel is not None:
            # What it had said on another one comes first: a zygote may have started again.
            earlier, process.channel = process.channel, None
            self._take(process, self._receive(process, earlier, LAST_WORDS))
            self._hang_up(earlier)
        process.unconfirmed = set(process.jobs)
        process.channel = channel
        self._listen_to(process, channel)
        try:
            self._welcome(process, channel, hello)
        except OSError as error:
            # It waits for what it cannot get; after the end of the channel it says hello again, or leaves.
            process.channel = None
            self._hang_up(channel)
            self._tell(ev.Failed(key, f"{name_of(key)} could not be given what it needs: {error.strerror}"))
            return
        if key.number != ZYGOTE and not key.is_job:
            self.on_hello(key)
        if key.is_job:
            self._tell(ev.Born(key, peer.pid))
        elif key.number != ZYGOTE and expected is None and hello.state in ("serving", "draining"):
            # An earlier master let it accept and could not write that down. Nobody waits for it, but it has clients.
            self._processes.signal(key, signal.SIGTERM)
        elif key.number != ZYGOTE:
            self._tell(ev.Forked(key, peer.pid))
            if hello.state == "draining":
                self._tell(ev.LetGo(key))  # its message may have waited in a channel that has ended
        elif is_news:
            self._tell(ev.Started(key, peer.pid))
        if key.number == ZYGOTE and hello.state == "loaded":
            self._tell(ev.Loaded(key))

    def _not_its_own(self, key: Key, peer: Peer) -> str:
        """Why a process cannot be the one that it calls itself; "" if it can."""
        if peer.pid <= 0:
            return f"{key} is in a pid namespace that this master does not see"
        own, workers = os.geteuid(), self._workers_uid
        # A zygote becomes the workers' user while it loads.
        may_be = peer.runs_as(own) or peer.users <= {workers} if key.number == ZYGOTE else peer.runs_as(workers)
        if self.foreign is not None and not may_be:
            return f"process {peer.pid} calls itself {key}, and is not of the workers' user"
        if key.generation < 1 or key.number < 0 or key.is_companion:
            return f"process {peer.pid} calls itself {key}, and no such process says hello"
        if key.is_job and key.number != FIRST_JOB + peer.pid:
            return f"process {peer.pid} calls itself the job's process {key}"
        known = self._processes.known_as(peer.pid)
        if known is not None and known.key != key:
            return f"process {peer.pid} is {known.key}, and calls itself {key}"
        mine = self._processes.get(key)
        watched = mine is not None and mine.pid == peer.pid and mine.pidfd != -1
        if watched and known is None and not has_ended(peer.pidfd):
            return f"process {peer.pid} has the pid of {key}, which has ended"
        return ""

    def _refuse(self, channel: Channel, peer: Peer, fds: list[int], reason: str, why: str) -> None:
        _close_all(fds)
        peer.close()
        self.hellos.refuse(channel, reason, why)

    def _welcome(self, process: Process, channel: Channel, hello: Hello) -> None:
        """Give a process what it has not got yet: a zygote its recipe and queue, everybody the slots. A job waits for
        nothing but to be known: from then on a drain waits for it, whatever becomes of who asked for it."""
        generation = process.key.generation
        process.takes_logs = hello.logs
        if process.takes_logs:
            self._pass_logs(channel, generation, boots=process.key.number == ZYGOTE and hello.state != "loaded")
        if process.key.is_job:
            channel.send("known")
            return
        recipe = self._recipe_of(generation)
        if process.key.number == ZYGOTE and recipe is not None and hello.state != "loaded":
            ends = self._queues.get(generation) or self._new_queue(generation)
            channel.send("boot", tuple(end.fileno() for end in ends), recipe=recipe, name=self._name)
        have = {(address, index) for address, index, _ in hello.slots}
        self._pass_slots(channel, [s for s in self._slots.slots if (s.address, s.index) not in have])

    # Messages.

    def _listen_to(self, process: Process, channel: Channel) -> None:
        attach(self._loop, channel, lambda: self._on_messages(process, channel))

    def _on_messages(self, process: Process, channel: Channel) -> None:
        if channel.closed:
            return
        self._take(process, self._receive(process, channel, AT_ONCE, TURN))
        if channel.given_up:
            self._log("error", f"the channel to {name_of(process.key)} was ended: {channel.given_up}")
        if channel.closed and process.channel is channel:
            # Else a zygote that started again has said hello on another one by now.
            process.channel = None

    def _receive(self, process: Process, channel: Channel, most: int, seconds: float = math.inf) -> list[Heard]:
        heard = channel.receive(_group_of(process.key), most, seconds)
        if channel.fault is not None:
            self._is_broken(process, channel.fault)
        if channel.closed:
            self._hang_up(channel)
        return heard

    def _is_broken(self, sender: Process, fault: Malformed | channels.ChannelError) -> None:
        """A process that sent a malformed message is broken, or hostile, and its next message cannot be believed
        either. So it is ended. A message without its descriptors is no fault of its sender, which says hello again."""
        who = f"{name_of(sender.key)} (pid {sender.pid})"
        if not isinstance(fault, Malformed):
            self._log("error", f"{who} could not be understood: {fault}")
            return
        self._log("error", f"{who} sent a malformed message: {fault}")
        if self._processes.get(sender.key) is sender:
            sender.malformed = True
            self._processes.signal(sender.key, signal.SIGKILL)

    def _send_away(self, channel: Channel) -> None:
        channel.send("quit")
        part(self._loop, channel)

    def _hang_up(self, channel: Channel) -> None:
        detach(self._loop, channel)
        channel.close()

    def _take(self, process: Process, heard: list[Heard]) -> None:
        for message, fds in heard:
            if isinstance(message, messages.Slots):
                for (address, number, _), fd in zip(message.slots, fds, strict=True):
                    self._slots.offered(address, number, fd)
            else:
                self._on_message(process, message)

    def _on_message(self, process: Process, message: Message) -> None:
        key = process.key
        if type(message) in EVENTS:
            process.failed = process.failed or isinstance(message, messages.Failed)
            self._tell(EVENTS[type(message)](key, message))
        elif isinstance(message, messages.Forked):
            if child := self._asked_for(key, message):
                self._on_forked(key, child, message.pid)
        elif isinstance(message, messages.Unborn):
            child = self._asked_for(key, message)
            if child is not None and not child.pid:
                unborn, error = child.key, message.error
                self._processes.forget(unborn)
                self._tell(ev.Started(unborn, error=error) if unborn.number == ZYGOTE else ev.Exited(unborn, error))
        elif isinstance(message, messages.Job):
            self._on_job(process, message)
        elif isinstance(message, messages.JobEnded):
            if job := process.jobs.pop(message.number, None):
                self._job_ended(key, job)
        elif isinstance(message, messages.JobsRepeated):
            for number in process.unconfirmed:
                if job := process.jobs.pop(number, None):
                    self._job_ended(key, job)
            process.unconfirmed = set()
        elif isinstance(message, messages.JobLost):
            self.on_lost(key, message)
        elif isinstance(message, messages.Stays):
            self.on_stay(message.tenant, message.at, message.seconds)
        elif isinstance(message, messages.Seen):
            self.on_seen(key, message.tenants, message.more)
        elif isinstance(message, messages.Imported):
            self.on_import(message.directory)
        elif isinstance(message, messages.Noted):
            self._log(message.level if message.level in LEVELS else "info", message.text)
        elif isinstance(message, messages.Unknown):
            self._log("debug", f"{key} sent {message.named!r}, which this master does not know")

    def _on_job(self, process: Process, job: messages.Job) -> None:
        most = messages.JOBS + min(len(process.unconfirmed), messages.JOBS)
        if job.number not in process.jobs and len(process.jobs) >= most:
            # A worker of this version waits until one of these has ended. One of an earlier version does not.
            process.has_more_jobs = True
            return
        process.jobs[job.number] = vars(job)
        process.unconfirmed.discard(job.number)
        if job.tenant:
            self.on_tenant(job.tenant)
        if process.key.is_job:
            self.on_job(process.key, vars(job))

    def _asked_for(self, zygote: Key, message: messages.Forked | messages.Unborn) -> Process | None:
        """The process that a zygote tells of, if it was asked to fork that one."""
        forked = Key(zygote.generation if message.generation is None else message.generation, message.number)
        of_it = forked.generation == zygote.generation or forked.number == ZYGOTE  # a copy is another generation's
        return self._processes.get(forked) if zygote.number == ZYGOTE and of_it and forked != zygote else None

    def _on_forked(self, zygote: Key, process: Process, pid: int) -> None:
        """It is watched from now on, because it may end before it says hello. If the kernel does not know it as the
        zygote's, it is known when it says hello."""
        parent = self._processes.get(zygote)
        if parent is None or process.pid not in (0, pid):
            return
        if not process.pid:
            if self._processes.known_as(pid) is not None:
                return
            try:
                self._watch_forked(parent, process, pid)
            except (NotOurs, OSError) as error:
                self._log("debug", f"{process.key} has not said hello yet: {error}")
                return
            if process.key.number != ZYGOTE:
                process.user = self.foreign
        self._tell((ev.Started if process.key.number == ZYGOTE else ev.Forked)(process.key, pid))

    def _watch_forked(self, zygote: Process, process: Process, pid: int) -> None:
        """Watch a process that the zygote says it has forked. NotOurs if it has not; OSError."""
        try:
            pidfd = forked_by(zygote.pid, pid, self._workers_uid)
        except OSError as error:
            if error.errno not in SHORTAGE:
                raise
            # It is polled, and this descriptor is held until its start is known.
            pidfd = reserve.take(lambda: forked_by(zygote.pid, pid, self._workers_uid))
            try:
                self._processes.is_running(process, pid, pidfd=None if pidfd != -1 else -1)
            finally:
                if pidfd != -1:
                    os.close(pidfd)
                reserve.refill()
        else:
            self._processes.is_running(process, pid, pidfd=pidfd)

    # Descriptors that processes share.

    def _pass_slots(self, channel: Channel, slots: list[Slot]) -> None:
        for start in range(0, len(slots), channels.FDS):
            some = slots[start : start + channels.FDS]
            names = [(slot.address, slot.index, slot.shared) for slot in some]
            channel.send("slots", tuple(slot.socket.fileno() for slot in some), slots=names)

    def _pass_logs(self, channel: Channel, generation: int, boots: bool = False) -> None:
        another = self.is_anothers(generation)
        paths, fds = self._log_files.of(self._recipe_of(generation), anew=boots, another=another)
        if not another:  # a master that has died may have started it
            paths, fds = [*PATHS, *paths], (*PATHS.values(), *fds)
        if paths:
            channel.send("logs", fds, paths=paths)

    def _new_queue(self, generation: int) -> tuple[socket.socket, socket.socket]:
        """The generation's hand-over queue; the master keeps both ends, so that a new zygote gets the same one."""
        ends = self._queues[generation] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return ends


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _is_queue_end(fd: int) -> bool:
    """Whether it is one end of a socket pair of the kind that `_new_queue` makes."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:
        return False


def _turn_away(channel: Channel, peer: Peer, question: TakeOver) -> None:
    peer.close()
    channel.close()
