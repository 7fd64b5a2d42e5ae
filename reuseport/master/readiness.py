"""How companions show that they are ready: by a datagram (sd_notify(3)), a command's exit status, or a printed line.

The master that started a companion learns of it here, and tells the core (`ev.Said`). Each companion has a notification
socket at a path of its own in the run directory. The path stays the same for the life of the companion's process: the
next master binds it again. A datagram that is sent between two masters is lost, and the core allows for that.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reuseport.core.events import Said
from reuseport.core.model import COMMAND, LINE, NOTIFY, TIMER, Key
from reuseport.ipc.rundir import RunDir
from reuseport.master.commands import Surroundings
from reuseport.master.loop import Loop
from reuseport.master.peers import parent_of
from reuseport.master.probes import Probe
from reuseport.master.processes import Processes
from reuseport.options.arguments import one_line

DATAGRAM = 4096  # bytes: the largest notification, as systemd's (NOTIFY_BUFFER_MAX)
AT_ONCE = 64  # notifications that are read before something else has its turn
FDS = 253  # descriptors in one message at most (SCM_MAX_FD)
STATUS = 480  # bytes that are kept of a STATUS=
EXTENSION = 86400.0  # seconds that one EXTEND_TIMEOUT_USEC= can give at most
SEARCHED = 4096  # characters of a line in which ready_line is looked for
ANCESTORS = 64  # parents of a sender that are looked at

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass
class _Watched:
    """One companion. `waits`: its process executes its command, and has not shown that it is ready."""

    declared: Mapping[str, Any]
    around: Surroundings
    socket: socket.socket | None = None
    probe: Probe | None = None
    waits: bool = False
    warned: bool = False  # the log has named a foreign process that sent something
    status: str = ""  # the last STATUS= that the core knows

    @property
    def kind(self) -> str:
        kind: str = self.declared.get("ready", TIMER)
        return kind


class Readiness:
    """`tell` gets what is said. `log` gets a level and a text."""

    def __init__(
        self,
        run_dir: RunDir,
        loop: Loop,
        processes: Processes,
        tell: Callable[[Said], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._run_dir = run_dir
        self._loop = loop
        self._processes = processes
        self._tell = tell
        self._log = log
        self._watched: dict[Key, _Watched] = {}

    def prepare(self, key: Key, declared: Mapping[str, Any], around: Surroundings) -> dict[str, str]:
        """Before its process is forked: what it needs in its environment. OSError where the socket cannot be had."""
        self.forget(key)
        one = self._watched[key] = _Watched(declared, around)
        if one.kind != NOTIFY:
            return {}
        self._bind(key, one)
        return {"NOTIFY_SOCKET": self._run_dir.named(self._run_dir.notify(str(key)))}

    def begin(self, key: Key) -> None:
        """Its process has been told to go, or was adopted and is not ready yet."""
        one = self._watched.get(key)
        if one is None or one.kind == TIMER or one.waits:
            return
        one.waits = True
        if one.kind == COMMAND:
            one.probe = self._probe(key, one)
            one.probe.start()

    def take_over(self, key: Key, declared: Mapping[str, Any], around: Surroundings) -> None:
        """Watch a process that another master started, which is dead or has handed over."""
        if key in self._watched:
            return  # this master has started it, before it became one
        try:
            self.prepare(key, declared, around)
        except OSError as error:
            path = self._run_dir.named(self._run_dir.notify(str(key)))
            self._log("error", f"{path} cannot be bound: {error.strerror}")

    def rest(self, key: Key) -> None:
        """It has its stop signal, so its readiness does not matter any more. Its STATUS= still does."""
        if one := self._watched.get(key):
            one.waits = False
            self._end_probe(one)

    def ended(self, key: Key) -> None:
        """Its process has ended. Datagrams that it had sent before are told first."""
        if (one := self._watched.get(key)) and one.socket is not None:
            self._hear(key, one.socket)
        self.forget(key)

    def forget(self, key: Key) -> None:
        self._close(key)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._run_dir.notify(str(key)))

    def leave(self) -> None:
        """Close everything, and leave the paths: another master listens there from now on."""
        for key in list(self._watched):
            self._close(key)

    def printed(self, key: Key, lines: Iterable[str]) -> None:
        """Its process has printed these lines."""
        one = self._watched.get(key)
        if one is None or not one.waits or one.kind != LINE:
            return
        pattern = re.compile(one.declared["ready_line"])
        if any(pattern.search(line[:SEARCHED]) for line in lines):
            self._is_ready(key, one)

    def estate(self, lend: Callable[[int], int]) -> list[dict[str, Any]]:
        """The state that the master needs after an exec; `lend(fd)` lets a descriptor live through it."""
        return [
            {
                "key": key,
                "declared": dict(one.declared),
                "directory": one.around.directory,
                "environment": dict(one.around.environment),
                "ids": one.around.ids,
                "socket": lend(one.socket.fileno()) if one.socket else -1,
                "waits": one.waits,
                "status": one.status,
                "probe": one.probe.estate(lend) if one.probe else None,
            }
            for key, one in self._watched.items()
        ]

    def inherit(self, left: Iterable[Mapping[str, Any]]) -> None:
        for said in left:
            key = Key(*said["key"])
            ids = tuple(said["ids"]) if said["ids"] else None
            one = _Watched(said["declared"], Surroundings(said["directory"], said["environment"], ids))
            one.waits, one.status = said["waits"], said["status"]
            self._watched[key] = one
            if said["socket"] != -1:
                self._listen(key, one, socket.socket(fileno=said["socket"]))
            if said["probe"] is not None:
                one.probe = self._probe(key, one)
                one.probe.inherit(said["probe"])

    # --- sd_notify ----------------------------------------------------------------------------------------------------

    def _bind(self, key: Key, one: _Watched) -> None:
        """Only the companion's user, and root, may send to it."""
        path = self._run_dir.notify(str(key))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with contextlib.ExitStack() as failing:
            sock = failing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            before = os.umask(0o177)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            if one.around.ids:
                os.chown(path, one.around.ids[0], -1, follow_symlinks=False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            failing.pop_all()
        self._listen(key, one, sock)

    def _listen(self, key: Key, one: _Watched, sock: socket.socket) -> None:
        one.socket = sock
        self._loop.watch(sock.fileno(), lambda: self._hear(key, sock))

    def _hear(self, key: Key, sock: socket.socket) -> None:
        """Descriptors that come along are closed: so BARRIER=1 is answered, and a store is not offered."""
        room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(FDS * 4)
        for _ in range(AT_ONCE):
            try:
                data, extra, flags, _ = sock.recvmsg(DATAGRAM, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            sender = 0
            fds: list[int] = []
            for level, kind, payload in extra:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender, _, _ = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])
                elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds += [fd for (fd,) in struct.iter_unpack("i", payload[: len(payload) - len(payload) % 4])]
            # It is acted on before the sender is told so by the end of its pipe.
            self._on_datagram(key, "" if flags & socket.MSG_TRUNC else data.decode(errors="replace"), sender)
            for fd in fds:
                os.close(fd)

    def _on_datagram(self, key: Key, text: str, sender: int) -> None:
        one, process = self._watched.get(key), self._processes.get(key)
        if one is None or process is None or not text:
            return
        if not _belongs(sender, process.pid):
            if not one.warned:
                one.warned = True
                who = f"process {sender}" if sender else "a process of another pid namespace"
                name = f"companion {key.generation}.{one.declared['name']}"
                self._log("warning", f"{name}: {who} is none of its processes, so {one_line(text)[:100]!r} is ignored")
            return
        said = parse(text)
        ready = said.ready and one.waits
        if ready:
            one.waits = False
        status = said.status if said.status != one.status else None
        one.status = one.status if status is None else status
        if ready or status is not None or said.extend:
            self._tell(Said(key, process.pid, ready, status, said.extend))

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _probe(self, key: Key, one: _Watched) -> Probe:
        def say(why: str) -> None:
            if (process := self._processes.get(key)) and one.waits:
                self._tell(Said(key, process.pid, why=why))

        return Probe(one.declared, one.around, self._loop, self._processes, lambda: self._is_ready(key, one), say)

    def _is_ready(self, key: Key, one: _Watched) -> None:
        one.waits = False
        self._end_probe(one)
        if process := self._processes.get(key):
            self._tell(Said(key, process.pid, ready=True))

    def _end_probe(self, one: _Watched) -> None:
        if one.probe is not None:
            one.probe.end()
            one.probe = None

    def _close(self, key: Key) -> None:
        one = self._watched.pop(key, None)
        if one is None:
            return
        self._end_probe(one)
        if one.socket is not None:
            self._loop.forget(one.socket.fileno())
            one.socket.close()


@dataclass(frozen=True)
class Notification:
    """The words of a datagram (sd_notify(3)) that matter here. `extend` is in seconds."""

    ready: bool = False
    status: str | None = None
    extend: float = 0.0


def parse(text: str) -> Notification:
    """Of a word that comes twice the first counts, as for systemd. Words that are not known are passed over."""
    said: dict[str, str] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            said.setdefault(name, value)
    status = said.get("STATUS")
    if status is not None:
        status = one_line(status).encode(errors="replace")[:STATUS].decode(errors="ignore")
    micros = said.get("EXTEND_TIMEOUT_USEC", "")
    extend = int(micros) / 1e6 if re.fullmatch(r"[0-9]{1,18}", micros, re.ASCII) else 0.0
    return Notification(said.get("READY") == "1", status, min(extend, EXTENSION))


def _belongs(sender: int, leader: int) -> bool:
    """Whether a sender is of the session that a companion leads, or a descendant of it.

    A sender that has gone cannot be asked. It is believed, because only the companion's user can send to this path: a
    `python -c` that a shell runs may have exited before its datagram is read.
    """
    if sender <= 0:
        return False
    try:
        if sender == leader or os.getsid(sender) == leader:
            return True
    except ProcessLookupError:
        return True
    for _ in range(ANCESTORS):
        sender = parent_of(sender)
        if sender == leader:
            return True
        if sender <= 1:
            break
    return False
