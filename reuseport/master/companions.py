"""The processes of companions: from a fork of the master to the command, and what is left when they end.

The fork executes nothing before it is told to go, by when the roster knows it: a master that dies in between leaves
nobody behind of whom the next one has not heard. Each leads a session of its own, so that the terminal's signals, and
the one that asks it to stop, reach nobody but whom they are meant for.

An exclusive one holds a lock (flock(2)) that goes through its exec, and lives on in whatever it forks: so it counts for
a companion whose master has died, and for another master of the same run directory. The master holds the same lock
beside it, because some programs begin with closing every descriptor that they do not know.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from reuseport.core.events import Said, Started, Survivor
from reuseport.core.model import RUNNING, YOUTH, Companion, Key
from reuseport.ipc.rundir import RunDir
from reuseport.master.commands import WORDS, become, surroundings
from reuseport.master.log import Log
from reuseport.master.loop import Loop
from reuseport.master.output import Output
from reuseport.master.peers import start_time
from reuseport.master.processes import Process, Processes, end_session
from reuseport.master.readiness import Readiness

FOLLOW = 0.2  # seconds between two looks at what they print


class LockTaken(Exception):
    """An exclusive companion runs elsewhere: one that is not known here, or another master's."""


class Companions:
    """`tell` gets what they show of themselves."""

    def __init__(
        self, run_dir: RunDir, loop: Loop, processes: Processes, log: Log, tell: Callable[[Said], None]
    ) -> None:
        self._readiness = Readiness(run_dir, loop, processes, tell, log.write)
        self._run_dir = run_dir
        self._loop = loop
        self._processes = processes
        self._log = log
        self._outputs: dict[Key, tuple[str, Output]] = {}  # with the name under which it goes into the log
        self._wires: dict[Key, socket.socket] = {}  # to a fork: it goes when told, and says if it could not
        self._locks: dict[Key, int] = {}
        self._following = False

    def begin(self, key: Key, companion: Companion, recipe: Mapping[str, Any]) -> Started:
        """Fork the process, and say what came of it."""
        try:
            return Started(key, self._launch(key, companion, recipe))
        except LockTaken:
            return Started(key, error="another one runs, and has the lock")
        except OSError as error:
            return Started(key, error=f"no process for it: {error.strerror}")

    def _launch(self, key: Key, companion: Companion, recipe: Mapping[str, Any]) -> int:
        """Fork the process, and return its pid. OSError where that is not possible; LockTaken."""
        declared = declaration(recipe, companion.terms.name)
        around = surroundings(recipe, declared, self._run_dir.path, key.generation, companion.copy)
        with contextlib.ExitStack() as failing, contextlib.ExitStack() as afterwards:
            lock = -1
            if companion.terms.exclusive:
                lock = self._take_lock(companion.terms.name)
                failing.callback(os.close, lock)
            output = self._output(key, companion.label, around.ids[0] if around.ids else None).writer()
            afterwards.callback(os.close, output)
            mine, its = socket.socketpair()
            failing.callback(mine.close)
            afterwards.callback(its.close)
            more = self._readiness.prepare(key, declared, around)
            failing.callback(self._readiness.forget, key)
            around = replace(around, environment={**around.environment, **more})
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)  # it is the master's loop that this would wake
                become(
                    declared["command"],
                    around,
                    output,
                    self._processes.nofile,
                    complain=its.fileno(),
                    inherited=lock,
                    prepare=lambda: _await_go(its),
                )
            # If this fails, its wire is closed, and it ends.
            self._processes.is_running(self._processes.expect(key), pid)
            failing.pop_all()
        self._wires[key] = mine
        if lock != -1:
            self._locks[key] = lock
        return pid

    def go(self, key: Key) -> None:
        wire = self._wires.get(key)  # None: it has ended with the master that had forked it
        with contextlib.suppress(ConnectionError):  # it has died; its exit follows
            if wire is not None:
                wire.send(b"g")
                self._readiness.begin(key)

    def stop(self, key: Key, companion: Companion, recipe: Mapping[str, Any]) -> None:
        """Its main process alone gets the signal: what it has forked is its own business."""
        self._readiness.rest(key)
        name = declaration(recipe, companion.terms.name)["stop_signal"]
        self._processes.signal(key, signal.Signals[f"SIG{name}"])
        self._log.write("info", f"companion {key.generation}.{companion.label} got its {name}, and is waited for")

    def kill(self, key: Key) -> None:
        """End it with everybody whom it has started; who comes between the two is ended when it has."""
        self._readiness.rest(key)
        process = self._processes.get(key)
        if process is not None and self._processes.signal(key, signal.SIGKILL):
            end_session(process.pid)

    def ended(self, process: Process) -> str:
        """Clear up after it. Returns why its command was not executed, "" if it was."""
        if not start_time(process.pid):  # else the number is another process's by now
            end_session(process.pid)
        self._copy_news(process.key, end=True)
        self._readiness.ended(process.key)
        if (lock := self._locks.pop(process.key, -1)) != -1:
            os.close(lock)
        wire = self._wires.pop(process.key, None)
        if wire is None:
            return ""  # an earlier master's
        with wire:
            wire.setblocking(False)
            try:
                return wire.recv(WORDS).decode(errors="replace")
            except (BlockingIOError, ConnectionError):
                return ""

    def tail(self, generation: int) -> str:
        """The last lines that a generation's companions have printed; "" where there are none."""
        for key in self._outputs:
            if key.generation == generation:
                self._copy_news(key)
        found = [(who, output) for key, (who, output) in self._outputs.items() if key.generation == generation]
        return "".join(f"[{who}] {line}\n" for who, output in found for line in output.last)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec."""
        return {
            "wires": [[*key, lend(wire.fileno())] for key, wire in self._wires.items()],
            "locks": [[*key, lend(lock)] for key, lock in self._locks.items()],
            "outputs": [[*key, who, output.estate()] for key, (who, output) in self._outputs.items()],
            "readiness": self._readiness.estate(lend),
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        """What `estate` or `let_go` has told."""
        for *key, fd in left.get("wires", ()):
            self._wires[Key(*key)] = socket.socket(fileno=fd)
        for *key, fd in left.get("locks", ()):
            self._locks[Key(*key)] = fd
        for *key, who, output in left["outputs"]:
            self._follow_output(Key(*key), who, None).inherit(output)
        self._readiness.inherit(left.get("readiness", ()))

    # --- beside another master ----------------------------------------------------------------------------------------

    @property
    def locks(self) -> Mapping[Key, int]:
        """Of the exclusive ones: whoever has one of these descriptors keeps the lock for as long as it is open."""
        return self._locks

    def let_go(self) -> dict[str, Any]:
        """Follow nobody any more, since another master does from now on; what it, or this one, goes on with."""
        for key in self._outputs:
            self._copy_news(key)
        left = {"outputs": [[*key, who, output.estate()] for key, (who, output) in self._outputs.items()]}
        for _, output in self._outputs.values():
            output.close()
        self._outputs.clear()
        return left

    def follow(self, generation: int, companions: Mapping[int, Companion]) -> None:
        """Go on where a master stopped that was to be this one's successor and had started them. `companions` are those
        of the generation that there are."""
        for number, companion in companions.items():
            self._output(Key(generation, number), companion.label, None)
        self._clear_up(f"{generation}.*")

    def leave(self) -> None:
        """They are another master's. Its are the locks, too: it has got them."""
        self.let_go()
        self._readiness.leave()
        for lock in self._locks.values():
            os.close(lock)
        for wire in self._wires.values():
            wire.close()
        self._locks.clear()
        self._wires.clear()

    # --- what they print ----------------------------------------------------------------------------------------------

    def take_over(self, survivors: Iterable[Survivor]) -> None:
        """Go on where an earlier master stopped; what was printed by those who have ended is copied now."""
        survivors = list(survivors)
        for key in self._locks.keys() - {one.key for one in survivors}:
            os.close(self._locks.pop(key))  # handed over, and its holder has died meanwhile
        for one in survivors:
            if one.key.is_companion:
                self._take_over(one, one.release.seats()[one.key.number])
        self._clear_up("*")

    def _take_over(self, one: Survivor, companion: Companion) -> None:
        self._output(one.key, companion.label, None)
        recipe = one.release.recipe
        declared = declaration(recipe, companion.terms.name)
        around = surroundings(recipe, declared, self._run_dir.path, one.key.generation, companion.copy)
        if one.state in (YOUTH, RUNNING):
            self._readiness.take_over(one.key, declared, around)
        if one.state == YOUTH:
            self._readiness.begin(one.key)

    def _clear_up(self, whose: str) -> None:
        """Copy what was printed by those who are no more, and remove what they have left."""
        sockets = {self._run_dir.notify(str(key)) for key in self._outputs}
        for path in Path(self._run_dir.base).glob(self._run_dir.notify(whose).rpartition("/")[2]):
            if str(path) not in sockets:
                path.unlink(missing_ok=True)
        known = {output.path for _, output in self._outputs.values()}
        for path in Path(self._run_dir.base).glob(self._run_dir.companion_log(whose).rpartition("/")[2]):
            if str(path) not in known:
                left = Output(str(path))
                self._say(path.name.removeprefix("companion-").removesuffix(".log"), left.news(end=True))
                left.remove()

    def forget_all_but(self, generations: Container[int]) -> None:
        for key in [key for key in self._outputs if key.generation not in generations]:
            self._copy_news(key, end=True)
            self._outputs.pop(key)[1].remove()
            self._readiness.forget(key)

    def _output(self, key: Key, label: str, uid: int | None) -> Output:
        return self._follow_output(key, f"{key.generation}.{label}", uid)

    def _follow_output(self, key: Key, who: str, uid: int | None) -> Output:
        if key not in self._outputs:
            self._outputs[key] = who, Output(self._run_dir.companion_log(who), uid)
        if not self._following:
            self._following = True
            self._loop.later(FOLLOW, self._follow)
        return self._outputs[key][1]

    def _follow(self) -> None:
        for key in self._outputs:
            self._copy_news(key)
        self._following = bool(self._outputs)
        if self._following:
            self._loop.later(FOLLOW, self._follow)

    def _copy_news(self, key: Key, *, end: bool = False) -> None:
        if key in self._outputs:
            who, output = self._outputs[key]
            lines = output.news(end=end)
            self._say(who, lines)
            self._readiness.printed(key, lines)

    def _say(self, who: str, lines: Iterable[str]) -> None:
        for line in lines:
            self._log.say(who, line)

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _take_lock(self, name: str) -> int:
        fd = os.open(self._run_dir.companion_lock(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise LockTaken from None
        return fd


def declaration(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The companion of this name as the release's configuration has it."""
    declared: Mapping[str, Any] = next(c for c in recipe["settings"]["values"]["companion"] if c["name"] == name)
    return declared


def _await_go(wire: socket.socket) -> None:
    if not wire.recv(1):
        os._exit(0)  # the master has died, or does not want it any more
