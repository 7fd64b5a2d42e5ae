"""The switchboard: a channel to every zygote and worker, and what is said on it.

Whoever owns the run directory is the master, so it is the processes who connect, with a hello that says who they are
and what they have. Boot, recovery from a crash and a zygote that starts again all come in by this one door. What
arrives becomes an event; the file descriptors that processes share (slots, hand-over queues) are passed from here.
"""

from __future__ import annotations

import _socket
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reuseport.core import events as ev
from reuseport.core.model import ZYGOTE, Key
from reuseport.core.turn import name_of
from reuseport.ipc import channel as channels
from reuseport.ipc.channel import Channel
from reuseport.master.attached import attach, detach, part
from reuseport.master.logfiles import LogFiles
from reuseport.master.loop import Loop
from reuseport.master.processes import Process, Processes, owner_of
from reuseport.master.slots import Slot, Slots
from reuseport.version import __version__

Message = tuple[dict[str, Any], list[int]]

PATIENCE = 3.0  # seconds that a process which boots waits for a descriptor of the master's

# What a process says, and the event that it becomes.
EVENTS: dict[str, Callable[[Key, Mapping[str, Any]], ev.Event]] = {
    "loaded": lambda key, message: ev.Loaded(key, message.get("workers")),
    "ready": lambda key, message: ev.Ready(key),
    "accepting": lambda key, message: ev.Accepting(key),
    "let-go": lambda key, message: ev.LetGo(key),
    "failed": lambda key, message: ev.Failed(key, str(message["error"])),
    "retire": lambda key, message: ev.Retire(key, str(message["reason"])),
}


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
    ) -> None:
        self._workers_uid = workers_uid
        self._trusted = {0, os.geteuid(), workers_uid}
        self._name = name
        self._loop = loop
        self._processes = processes
        self._slots = slots
        self._tell = tell
        self._log = log
        self._recipe_of = recipe_of
        self._job_ended = job_ended
        self._log_files = log_files
        self._strangers: dict[Channel, int] = {}  # who has connected and not said hello yet, and its pid
        self.on_stay: Callable[[str, int, float], None] = lambda tenant, generation, seconds: None
        self.on_hello: Callable[[Key], None] = lambda key: None  # a worker can be spoken to from now on
        self.on_job: Callable[[Key, dict[str, Any]], None] = lambda key, job: None  # a process of its own has it
        self.on_import: Callable[[str], None] = lambda directory: None
        # Another master wants to take over, by this question of its.
        self.on_successor: Callable[[Channel, Mapping[str, Any]], None] = lambda channel, question: channel.close()
        self.promised: set[tuple[str, int]] = set()  # slots that somebody has: they come behind the hello
        self._queues: dict[int, tuple[socket.socket, socket.socket]] = {}  # for the hand-over: receiving, sending
        # Since when, and at what time last, no channel could be opened, in monotonic seconds.
        self._deaf_since = self._deaf_at = float("-inf")
        self._unheard: set[Key] = set()  # processes whose boot was given up for that
        self.listen(hellos)

    def listen(self, hellos: _socket.socket) -> None:
        """Take hellos from this socket."""
        self._hellos = hellos
        self._loop.watch(hellos.fileno(), self._on_hello)

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
            self._on_hello()
            for channel, pid in list(self._strangers.items()):
                if pid == process.pid:
                    self._introduce(channel, pid)
        if process.channel is not None:
            channel, process.channel = process.channel, None
            self._take(process, self._receive(channel))
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
            "hellos": lend(self._hellos.fileno()),
            "channels": [(p.key, p.channel.estate(lend)) for p in self._processes.all() if p.channel is not None],
            "take_logs": [p.key for p in self._processes.all() if p.takes_logs],
            "strangers": [(channel.estate(lend), pid) for channel, pid in self._strangers.items()],
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
        for one, pid in left["strangers"]:
            self._await_hello(channels.inherited(one), pid)
        for number, (receiving, sending) in left["queues"].items():
            self._queues[int(number)] = socket.socket(fileno=receiving), socket.socket(fileno=sending)

    def pass_everything(self, channel: Channel) -> None:
        """Slots and hand-over queues, for the master that comes after this one."""
        self._pass_slots(channel, self._slots.slots)
        for generation, ends in self._queues.items():
            channel.send("queue", tuple(end.fileno() for end in ends), generation=generation)

    def adopt_queue(self, generation: int, fds: list[int]) -> None:
        """Take over the hand-over queue of a generation. A second copy is closed."""
        if generation in self._queues:
            for fd in fds:
                os.close(fd)
        else:
            receiving, sending = (socket.socket(fileno=fd) for fd in fds)
            self._queues[generation] = receiving, sending

    def leave(self) -> None:
        """Hang up: everybody says hello to the master that is there now."""
        self.close()
        for process in self._processes.all():
            if process.channel is not None:
                self._hang_up(process.channel)
                process.channel = None
        for channel in list(self._strangers):
            self._hang_up(channel)
        self.forget_queues(())

    def close(self) -> None:
        self._loop.forget(self._hellos.fileno())
        self._hellos.close()

    # Hellos.

    def _on_hello(self) -> None:
        while True:
            try:
                channel = channels.accept(self._hellos)
            except OSError as error:
                self._cannot_hear(error)
                return
            if channel is None:
                self._deaf_at = float("-inf")
                return
            pid, uid = channel.peer()
            if uid in self._trusted:
                self._await_hello(channel, pid)
            else:
                channel.close()

    def _cannot_hear(self, error: OSError) -> None:
        """No descriptors are left for a channel. The hello waits, but a boot that goes on so long has failed."""
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
        self._loop.rest(self._hellos.fileno())

    def _await_hello(self, channel: Channel, pid: int) -> None:
        self._strangers[channel] = pid
        attach(self._loop, channel, lambda: self._introduce(channel, pid))

    def _introduce(self, channel: Channel, pid: int) -> None:
        """The first message on a channel says whose it is. By now its sender may be dead, and the channel closed."""
        messages = self._receive(channel)
        if messages or channel.closed:
            self._strangers.pop(channel, None)
        if not messages:
            return
        hello, fds = messages[0]
        if hello["type"] == "takeover" and channel.peer()[1] == os.geteuid() and not channel.closed:
            detach(self._loop, channel)
            self.on_successor(channel, hello)
            return
        key = Key(int(hello.get("generation", 0)), int(hello.get("number", 0)))
        expected = self._processes.get(key)
        unknown = expected is None and (
            key.number == ZYGOTE or (key.is_job and self._recipe_of(key.generation) is None)
        )
        taken = expected is not None and expected.pid not in (0, pid)
        if hello["type"] != "hello" or unknown or taken:
            # A zygote that this master does not know belongs to a generation that has been given up. So does a job
            # whose generation has gone: it has not begun yet, and what asked for it is dead.
            for fd in fds:
                os.close(fd)
            self._send_away(channel)
            return
        process = expected or self._processes.expect(key)
        self._processes.is_running(process, pid)
        process.packages = hello.get("packages")
        if key.number == ZYGOTE and hello["state"] != "loaded" and hello["v"] != channels.VERSION:
            self._send_away(channel)
            error = (
                f"its reuseport sends messages of number {hello['v']}, and this master is reuseport {__version__}, "
                f"which understands number {channels.VERSION}; install this version in the application's environment, "
                "or remove reuseport from it, and the release runs on the server's"
            )
            self._tell(ev.Failed(key, error))
            return
        if hello.get("queue"):
            self.adopt_queue(key.generation, fds[:2])
            del fds[:2]
        self.promised.update((address, index) for address, index, _ in hello["slots"])
        self._adopt_slots(hello["slots"], fds)
        process.unconfirmed = set(process.jobs)
        if not channel.closed:
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
            self._tell(ev.Born(key, pid))
        elif key.number != ZYGOTE and expected is None and hello["state"] in ("serving", "draining"):
            # An earlier master let it accept and could not write that down. Nobody waits for it, but it has clients.
            self._processes.signal(key, signal.SIGTERM)
        elif key.number != ZYGOTE:
            self._tell(ev.Forked(key, pid))
            if hello["state"] == "draining":
                self._tell(ev.LetGo(key))  # its message may have waited in a channel that has ended
        elif hello["state"] == "loaded":
            self._tell(ev.Loaded(key))
        self._take(process, messages[1:])

    def _welcome(self, process: Process, channel: Channel, hello: Mapping[str, Any]) -> None:
        """Give a process what it has not got yet: a zygote its recipe and queue, everybody the slots. A job waits for
        nothing but to be known: from then on a drain waits for it, whatever becomes of who asked for it."""
        generation = process.key.generation
        process.takes_logs = bool(hello.get("logs"))
        if process.takes_logs:
            self._pass_logs(channel, generation, boots=process.key.number == ZYGOTE and hello["state"] != "loaded")
        if process.key.is_job:
            channel.send("known")
            return
        recipe = self._recipe_of(generation)
        if process.key.number == ZYGOTE and recipe is not None and hello["state"] != "loaded":
            ends = self._queues.get(generation) or self._new_queue(generation)
            channel.send("boot", tuple(end.fileno() for end in ends), recipe=recipe, name=self._name)
        have = {(address, index) for address, index, _ in hello["slots"]}
        self._pass_slots(channel, [s for s in self._slots.slots if (s.address, s.index) not in have])

    # Messages.

    def _listen_to(self, process: Process, channel: Channel) -> None:
        attach(self._loop, channel, lambda: self._on_messages(process, channel))

    def _on_messages(self, process: Process, channel: Channel) -> None:
        self._take(process, self._receive(channel))
        if channel.given_up:
            self._log("error", f"the channel to {name_of(process.key)} was ended: {channel.given_up}")
        if channel.closed and process.channel is channel:
            # Else a zygote that started again has said hello on another one by now.
            process.channel = None

    def _receive(self, channel: Channel) -> list[Message]:
        try:
            messages = channel.receive()
        except channels.ChannelError as error:
            self._log("error", f"a process sent nonsense: {error}")
            channel.closed = True
            messages = []
        if channel.closed:
            self._hang_up(channel)
        return messages

    def _send_away(self, channel: Channel) -> None:
        channel.send("quit")
        part(self._loop, channel)

    def _hang_up(self, channel: Channel) -> None:
        detach(self._loop, channel)
        channel.close()

    def _take(self, process: Process, messages: list[Message]) -> None:
        for message, fds in messages:
            if message["type"] == "slots":
                self._adopt_slots(message["slots"], fds)
            else:
                self._on_message(process.key, message)

    def _on_message(self, key: Key, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind in EVENTS:
            self._tell(EVENTS[kind](key, message))
        elif kind == "forked" and key.number == ZYGOTE and owner_of(int(message["pid"])) in (None, self._workers_uid):
            forked = Key(int(message.get("generation", key.generation)), int(message["number"]))
            process = self._processes.get(forked) or self._processes.expect(forked)
            self._processes.is_running(process, int(message["pid"]))
            told = ev.Started if forked.number == ZYGOTE else ev.Forked
            self._tell(told(forked, process.pid))
        elif kind == "unborn":
            unborn, error = (
                Key(int(message.get("generation", key.generation)), int(message["number"])),
                str(message["error"]),
            )
            self._processes.forget(unborn)
            self._tell(ev.Started(unborn, error=error) if unborn.number == ZYGOTE else ev.Exited(unborn, error))
        elif kind == "job":
            if process := self._processes.get(key):
                process.jobs[int(message["number"])] = message
                process.unconfirmed.discard(int(message["number"]))
                if key.is_job:
                    self.on_job(key, message)
        elif kind == "job-ended":
            process = self._processes.get(key)
            if process and (job := process.jobs.pop(int(message["number"]), None)):
                self._job_ended(key, job)
        elif kind == "jobs-repeated":
            process = self._processes.get(key)
            for number in process.unconfirmed if process else ():
                if process and (job := process.jobs.pop(number, None)):
                    self._job_ended(key, job)
            if process:
                process.unconfirmed = set()
        elif kind == "stays":
            self.on_stay(str(message["tenant"]), int(message["at"]), float(message["seconds"]))
        elif kind == "imported":
            self.on_import(str(message["directory"]))
        elif kind == "note":
            self._log(str(message["level"]), str(message["text"]))
        else:
            self._log("debug", f"{key} sent {kind!r}, which this master does not know")

    # Descriptors that processes share.

    def _pass_slots(self, channel: Channel, slots: list[Slot]) -> None:
        for start in range(0, len(slots), channels.FDS):
            some = slots[start : start + channels.FDS]
            names = [(slot.address, slot.index, slot.shared) for slot in some]
            channel.send("slots", tuple(slot.socket.fileno() for slot in some), slots=names)

    def _pass_logs(self, channel: Channel, generation: int, boots: bool = False) -> None:
        paths, fds = self._log_files.of(self._recipe_of(generation), anew=boots)
        if paths:
            channel.send("logs", fds, paths=paths)

    def _adopt_slots(self, names: list[Any], fds: list[int]) -> None:
        for (address, index, shared), fd in zip(names, fds, strict=False):
            self._slots.adopt(address, index, shared, fd)

    def _new_queue(self, generation: int) -> tuple[socket.socket, socket.socket]:
        """The generation's hand-over queue; the master keeps both ends, so that a new zygote gets the same one."""
        ends = self._queues[generation] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return ends
