"""The zygote: one generation's template. It patches, imports the application once, forks workers, and nothing else.

It is a fresh interpreter, exec'd by the master with the release's own Python, so nothing of another generation can be
in it, and code that fails to import only ever kills a process that nobody depends on. A worker of this generation that
dies later is forked again from here, never from what is on disk by then.

The master starts it by `bootstrap.py`. That process patches in `entry.run`, before it imports this module. Importing
this module patches nothing.
"""

from __future__ import annotations

if __name__ == "__main__":
    from reuseport import entry

    entry.run("reuseport.zygote")

import _socket
import gc
import json
import os
import signal
import ssl
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from posix import close  # gevent's os.close leaves it to its loop, which never runs here
from typing import Any, NoReturn

from gevent import monkey

from reuseport import entry, names, startup
from reuseport.core.model import FIRST_JOB
from reuseport.ipc import channel as channels
from reuseport.ipc import messages, packages, streams
from reuseport.ipc.inherited import ZYGOTE_VARIABLE
from reuseport.ipc.lifeline import Family, Lifeline
from reuseport.ipc.logfile import Passed
from reuseport.ipc.rundir import RunDir
from reuseport.ipc.shared import MAPPED, PINNING, Held
from reuseport.ipc.shortage import SHORTAGE
from reuseport.ipc.title import set_title
from reuseport.options import Settings, certificates
from reuseport.worker import (
    application,
    children,
    debugger,
    exithandlers,
    filevariables,
    forked,
    forksafety,
    ground,
    interrupts,
    logs,
    patching,
    programs,
    said,
)
from reuseport.worker import main as worker_main
from reuseport.worker.birth import Birth
from reuseport.worker.departure import leave
from reuseport.worker.door import Door
from reuseport.worker.imports import Imports
from reuseport.worker.listeners import Listener, pass_slots

RETRY = 0.5  # seconds between two attempts to reach a master
UNBOOTED = 60.0  # seconds without a master until a zygote ends that no master has told what to load
# Seconds until a generation that was superseded, and still drains, looks for changed files; and between two looks.
STILL_THERE, LOOK_AGAIN = 5.0, 60.0
# Seconds for its children and exit handlers together. The master kills a zygote that takes 2 s to leave (core,
# QUIT_GRACE).
LEAVING = 1.6

fork = monkey.get_original("os", "fork")
waitpid = monkey.get_original("os", "waitpid")
sleep = monkey.get_original("time", "sleep")


class Zygote:
    """`current` is this process's zygote, while it is one: `reuseport.serve` looks for it."""

    current: Zygote | None = None

    def __init__(self, born: dict[str, Any]) -> None:
        # The master may be of another version: where its files lie is its to say.
        self.run_dir = RunDir(born["run_dir"])
        self.run_dir.locate(born["hello"], born["scoreboard"])
        self.run_dir.inherit(born.get("directory"), born.get("owner", os.geteuid()))
        self.born = {**born, "directory": self.run_dir.fd, "owner": self.run_dir.owner_uid}
        self.environment = dict(os.environ)
        self.generation = born["generation"]
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.recipe: dict[str, Any] = {}
        self.settings: Settings | None = None
        self.name = ""
        self.boot_output, self.boot_errors = 1, 2
        self.copy_errors = -1  # standard error of the next copy, which came before its order
        self.queue = (-1, -1)
        self.passed_logs = Passed(born.get("logs", {}))
        self.shared = Held(born.get("shared"))
        self.door = Door()
        self.imports = Imports(False)
        self.application: Any = None
        self.family: Family | None = None
        self.copied = False  # of a zygote whose workers have served
        self.pems: certificates.Pems | None = None
        self.tls: ssl.SSLContext | None = None
        self.separate = bool(born.get("separate"))
        self.packages = packages.used(born.get("lent", ()))
        self.loaded = False
        self.look_at: float | None = None  # when changed files are looked for next, monotonic seconds
        self.orders: list[tuple[messages.Fork | messages.Copy, list[int]]] = []
        self.masterless = True
        self.orphaned = 0.0  # when the last master went, monotonic seconds
        # It upgrades a master, and `systemctl kill -s USR2` reaches everybody. The application may have it for itself.
        forked.ignore(signal.SIGUSR2)
        self._take_signals()
        set_title(f"reuseport: zygote {self.generation}")
        self.channel = self._say_hello()
        forked.guard(self._release, imports=True)

    def run(self) -> Birth | None:
        """Load and fork until told to go. Returns in each worker with what it is born with; None in the zygote."""
        while not self.recipe:
            self._listen()
        assert self.settings is not None
        self._retitle()
        if not self.separate:
            self._tell_packages()
        self._read_certificates()
        # They belong to the master's user, whom this process leaves here.
        self.shared.open(self.run_dir, (*MAPPED, *PINNING) if self.settings.tenant else MAPPED)
        self._become_user()
        if self.settings.umask is not None:
            os.umask(self.settings.umask)
        self.imports = Imports(self.settings.reload)
        if self.settings.reload:
            # Two saves within a second, of the same size, would look the same to what is kept of the first one.
            sys.dont_write_bytecode = True
        application.enter(self.recipe["directory"])
        self._tell_what_came_early()
        if self.settings.capture_output:
            said.capture()
        if self.settings.preload == "never" or self.separate:
            self.separate = True
            return self.serve_forks()
        self.look = forksafety.Look(entry.EARLY_DESCRIPTORS)
        application.prepare(self.recipe["directory"], tuple(self.settings.pythonpath))
        if self.settings.log_config:
            logs.configure(self.settings.log_config)
        if script := self.recipe.get("script"):
            application.run_script(script)  # comes back through `captured`, and never from here
        else:
            self.application = application.load(self.recipe["app"], self.settings.factory)
        return self.serve_forks()

    def captured(self, app: Any, workers: int | None) -> Birth | None:
        """The script has called `reuseport.serve(app)`: go on from inside that call."""
        application.check(app, "what reuseport.serve was given")
        self.application = app
        return self.serve_forks(workers)

    def serve_forks(self, workers: int | None = None) -> Birth | None:
        forked.end_if_child()
        assert self.settings is not None
        if self.application is not None:
            application.settle(self.settings)
        if self.application is not None and self.settings.preload == "auto" and (reasons := self.look.reasons()):
            self._note(
                "warning",
                f"generation {self.generation}: the import left behind {'; '.join(reasons)}: what does not survive "
                "a fork. Each worker imports the application itself (--preload never says so beforehand)",
            )
            self._start_again()
        self.witness = forksafety.Witness(*self._roots())
        self.lifeline, self.family = Lifeline(), Family()
        gc.collect()
        gc.freeze()
        ground.flush()
        self.boot_output, self.boot_errors = os.dup(1), os.dup(2)
        streams.end_boot(self.boot_output, self.boot_errors)
        self._take_signals()
        self._open_door()
        self.loaded = True
        self.imports.tell(self.channel)
        self.channel.send("loaded", workers=workers)
        while True:
            while self.door.waiting:
                if (birth := self._fork_job()) is not None:
                    return birth
            while self.orders:
                order, fds = self.orders.pop(0)
                if isinstance(order, messages.Copy):
                    self._copy(order, fds)
                elif (birth := self._fork(order)) is not None:
                    return birth
            self._listen()

    def _start_again(self) -> None:
        """A fresh interpreter, in this very process, that forks first and lets each worker import."""
        born = {**self.born, "separate": True, "shared": self.shared.lent(), "logs": self.passed_logs.lent()}
        if self.pems is not None:
            born["pems"] = fd = os.memfd_create("certificates", 0)  # it may be nobody by now who could read the key
            with open(fd, "wb", closefd=False) as file:
                file.write(json.dumps({name: pem.decode("latin-1") for name, pem in self.pems.items()}).encode())
        # Each worker's import starts its own, and creates its own files.
        children.end()
        exithandlers.run_removals()
        ground.flush()
        self.channel.close()
        if self.run_dir.is_held():
            os.set_inheritable(self.run_dir.fd, True)
        else:
            born["directory"] = None
        # The import may have changed os.environ: an instrumentation takes its directory out of PYTHONPATH.
        environment = startup.environment({**self.environment, ZYGOTE_VARIABLE: json.dumps(born)})
        arguments = sys.orig_argv[1:]
        if os.path.basename(arguments[-2]) == "bootstrap.py":
            # The one beside this package: the server's may lie where only root can read it.
            arguments[-2] = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap.py")
        os.execve(sys.executable, [sys.executable, *arguments], environment)

    def _fork(self, order: messages.Fork) -> Birth | None:
        """Fork twice, so that the worker's parent is the master (its subreaper) and not this process."""
        assert self.settings is not None
        self._tell_if_changed()
        number = order.number
        if not self._fork_twice(
            lambda error: self._unborn(self.generation, number, error),
            lambda pid: self.channel.send("forked", number=number, pid=pid),
        ):
            return None
        return self._birth(number, order.row, order.booting)

    def _fork_job(self) -> Birth | None:
        """As a worker, but its number follows from its pid, and it is its hello that tells the master of it."""
        self._tell_if_changed(rest=1.0)
        line = self.door.waiting.pop(0)
        if not self._fork_twice(lambda error: self._note("error", f"a job's process {error}"), lambda pid: None):
            line.close()
            return None
        return self._birth(FIRST_JOB + os.getpid(), -1, False, line)

    def _fork_twice(self, failed: Callable[[str], None], tell: Callable[[int], None]) -> bool:
        """So that the child's parent is the master (its subreaper) and not this process. True in the child."""
        ground.flush()
        try:
            with self.lifeline.held(), forked.own_fork():
                middle = fork()
        except OSError as error:
            failed(f"could not be forked: {error.strerror}")
            return False
        if middle:
            if status := os.waitstatus_to_exitcode(waitpid(middle, 0)[1]):
                why = os.strerror(status) if status > 0 else f"its first process was killed by signal {-status}"
                failed(f"could not be forked: {why}")
            return False
        try:
            with forked.own_fork():
                pid = fork()
            if pid:
                tell(pid)
        except OSError as error:
            os._exit(min(error.errno or 1, 255))
        if pid:
            os._exit(0)
        self.channel.close()
        self.door.close()
        return True

    def _birth(self, number: int, row: int, booting: bool, line: _socket.socket | None = None) -> Birth:
        assert self.settings is not None
        assert self.family is not None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        Zygote.current = None
        if self.application is not None:
            exithandlers.drop_removals()  # they are the zygote's
        return Birth(
            self.generation,
            number,
            row,
            booting,
            self.run_dir,
            self.recipe,
            self.settings,
            self.name,
            self.boot_output,
            self.boot_errors,
            self.queue,
            self.listeners,
            self.passed_logs,
            self.shared,
            self.application,
            self.family,
            self.copied and self.application is not None,
            self.tls,
            line,
        )

    def _copy(self, order: messages.Copy, outputs: list[int]) -> None:
        """Fork a copy that becomes the zygote of another generation: of this very version, without loading anything.

        `outputs`: where its workers print to while they boot, and their standard error if that has another name.
        """
        generation = order.generation
        try:
            # They would end with this zygote, under the workers of the copy.
            why = "the application's import has started processes, which a copy cannot have" if children.pids() else ""
        except OSError as error:
            why = f"its zygote cannot look for processes of the import: {error.strerror}"
        if why:
            self._unborn(generation, 0, why)
            _close_all(outputs)
            return
        self._tell_if_changed()
        if not self._fork_twice(
            lambda error: self._unborn(generation, 0, error),
            lambda pid: self.channel.send("forked", generation=generation, number=0, pid=pid),
        ):
            _close_all(outputs)
            return
        exithandlers.adopt_removals()
        self.generation, self.copied = generation, True
        os.environ["REUSEPORT_GENERATION"] = str(generation)
        os.dup2(outputs[0], self.boot_output, inheritable=False)
        os.dup2(outputs[-1], self.boot_errors, inheritable=False)
        _close_all(outputs)
        self._close_queue()
        self._drop_orders()
        self.born = {**self.born, "generation": generation}
        self.recipe, self.loaded, self.look_at = {}, False, None
        self.lifeline = Lifeline()
        self.channel = self._say_hello()
        while not self.recipe:
            self._listen()
        self._retitle()
        self._open_door()
        self.loaded = True
        self.channel.send("loaded", workers=None)

    def _roots(self) -> list[str]:
        """The directories that the application is imported from, its own first."""
        assert self.settings is not None
        directory = self.recipe["directory"]
        others = [os.path.join(directory, path) for path in self.settings.pythonpath]
        if path := (self.recipe.get("script") or {}).get("path"):
            others.append(os.path.dirname(path))
        return [directory, *others]

    def _tell_if_changed(self, rest: float = 0.0) -> None:
        if changed := self.witness.changed(rest):
            self._note(
                "warning",
                f"generation {self.generation} lives on, but {changed} has changed since it was loaded: a lazy import "
                "or a template may now mix versions. Give each release a directory of its own",
            )

    def _open_door(self) -> None:
        try:
            self.door.open(self.run_dir.door(self.generation))
        except OSError as error:
            door = self.run_dir.named(self.run_dir.door(self.generation))
            self._note("error", f"no job can get a process of its own: {door}: {error.strerror}")

    def _close_queue(self) -> None:
        """No worker of this generation comes any more: what lies in its queue must go back to its senders."""
        for end in self.queue:
            if end != -1:
                close(end)
        self.queue = (-1, -1)

    def _drop_orders(self) -> None:
        for _, fds in self.orders:
            _close_all(fds)
        self.orders.clear()
        self._drop_errors()

    def _drop_errors(self) -> None:
        if self.copy_errors != -1:
            close(self.copy_errors)
            self.copy_errors = -1

    def _release(self) -> None:
        """In a child that the application has forked while it was imported (`worker.forked`)."""
        Zygote.current = None
        self.channel.close()
        self.door.close()
        self._close_queue()
        self._close_listeners()
        self.passed_logs.forget()
        self.run_dir.forget()

    def _close_listeners(self) -> None:
        for one in self.listeners.values():
            close(one.fd)
        self.listeners.clear()

    def _retitle(self) -> None:
        set_title(f"reuseport: zygote {self.generation} [{self.name}]")

    def _listen(self) -> None:
        """Wait for the master's next word, or for somebody at the door."""
        if self.masterless:
            if not self._meet_master():
                self._leave_if_orphaned()
                self.door.wait(-1, RETRY)
            return
        heard = self.door.wait(self.channel.fileno(), self._until_look())
        if self.look_at is not None and time.monotonic() >= self.look_at:
            self._tell_if_changed()
            self.look_at = time.monotonic() + LOOK_AGAIN
        if not heard:
            return
        for message, fds in self.channel.receive(messages.TO_ZYGOTE):
            if isinstance(message, messages.Slots):
                for (address, index, shared), fd in zip(message.slots, fds, strict=True):
                    self.listeners[address, index] = Listener(fd, address, index, shared)
            elif isinstance(message, messages.Boot):
                self.recipe = message.recipe
                self.settings = Settings.from_json(self.recipe["settings"])
                self.name = message.name
                self.queue = (fds[0], fds[1])
            elif isinstance(message, messages.Logs):
                self.passed_logs.take(message.paths, fds)
            elif isinstance(message, messages.Superseded):
                if self.look_at is None and self.loaded and self.settings is not None and not self.settings.reload:
                    self.look_at = time.monotonic() + STILL_THERE
            elif isinstance(message, messages.Standby):
                self.look_at = None
                self._close_queue()
                self.door.close()
            elif isinstance(message, messages.BootErrors):
                self._drop_errors()
                self.copy_errors = fds[0]
            elif isinstance(message, messages.Copy):
                errors, self.copy_errors = self.copy_errors, -1
                self.orders.append((message, fds if errors == -1 else [*fds, errors]))
            elif isinstance(message, messages.Fork):
                self.orders.append((message, fds))
            elif isinstance(message, messages.LetGo):
                self._close_listeners()
            elif isinstance(message, messages.Quit):
                quit_with(0)
        if self.channel.fault is not None:
            # A new hello makes the master repeat what counts.
            sys.stderr.write(f"the master could not be understood: {self.channel.fault}\n")
        if self.channel.closed:
            self.channel.close()
            self.masterless = True
            self.orphaned = time.monotonic()
            self._drop_orders()  # another master counts the workers anew
            self.door.wait(-1, RETRY)

    def _until_look(self) -> float | None:
        return None if self.look_at is None else max(0.0, self.look_at - time.monotonic())

    def _leave_if_orphaned(self) -> None:
        """--orphan-timeout: the workers leave before, for the same reason, and nobody needs this process then.

        Without a recipe it has no workers that it would have to fork again.
        """
        alone = time.monotonic() - self.orphaned
        if not self.recipe:
            if alone >= UNBOOTED:
                quit_with(0)
            return
        patience = self.settings.orphan_timeout if self.settings is not None and self.loaded else 0.0
        if patience and alone >= patience and not self.lifeline.anybody():
            quit_with(0)

    def _say_hello(self) -> channels.Channel:
        """Reach the master; without one, wait for the next."""
        self.orphaned = time.monotonic()
        while not self._meet_master():
            self._leave_if_orphaned()
            sleep(RETRY)
        return self.channel

    def _meet_master(self) -> bool:
        """Say hello to whichever master owns the run directory by now. False where there is none."""
        try:
            channel = self.run_dir.reach_master()
        except OSError:
            return False
        listeners = list(self.listeners.values())
        again = bool(self.recipe)
        has_queue = again and self.queue[0] != -1
        channel.be_patient()
        channel.send(
            "hello",
            self.queue if has_queue else (),
            generation=self.generation,
            number=0,
            state="loaded" if self.loaded else "loading",
            slots=[(one.address, one.index, one.shared) for one in listeners],
            queue=has_queue,
            logs=True,
            shared=True,
            packages=self.packages,
        )
        if again:
            pass_slots(channel, listeners)
        self.masterless = False
        self.channel = channel
        return True

    def _take_signals(self) -> None:
        """Before the import, and again after it: an application may set handlers, meant for another server."""
        forked.ignore(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
        if os.isatty(0):
            # A debugger gets EIO when the server is in the background by now, and no signal that stops every process.
            # Not `forked.ignore`: after a handler has run, the read would be tried again for ever.
            signal.signal(signal.SIGTTIN, signal.SIG_IGN)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with SIG_IGN there would be nobody to wait for
        # The master's own TERM often goes to the whole group; the master will say when it wants this process to go.
        signal.signal(signal.SIGTERM, self._on_term)
        forked.note_handler(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: Any) -> None:
        if self.masterless:
            quit_with(0)

    def _unborn(self, generation: int, number: int, error: str) -> None:
        self.channel.send("unborn", generation=generation, number=number, error=names.lines(error, messages.ERROR))

    def _note(self, level: str, text: str) -> None:
        self.channel.send("note", level=level, text=names.lines(text, messages.ERROR))

    def _tell_packages(self) -> None:
        if packages.is_lent(self.packages):
            self._note("info", f"generation {self.generation} runs on {packages.in_words(self.packages)}")
        if mismatch := self.born.get("mismatch"):
            self._note("warning", f"generation {self.generation}: {mismatch}")

    def _read_certificates(self) -> None:
        """While this is still the master's user. The workers inherit the context, and with it the keys of the session
        tickets: a client resumes its session with any of them."""
        assert self.settings is not None
        try:
            if "pems" in self.born:
                with open(self.born.pop("pems"), "rb") as file:
                    file.seek(0)
                    held = json.loads(file.read())
                self.pems = certificates.Pems({name: pem.encode("latin-1") for name, pem in held.items()})
            else:
                self.pems = certificates.Pems.read(self.settings)
            if self.pems is not None:
                self.tls = certificates.context(self.settings, self.pems)
        except certificates.CertificateError as error:
            raise application.LoadError(f"{self.settings.where(error.option)}: {error}") from None

    def _tell_what_came_early(self) -> None:
        assert self.settings is not None
        if self.settings.threads and startup.is_patched():
            raise application.LoadError(patching.PATCHED_ALREADY)
        if not self.separate and not self.settings.threads and (held := patching.held()):
            self._note("warning", f"generation {self.generation}: {patching.in_words(held)}")

    def _become_user(self) -> None:
        if ids := self.recipe.get("ids"):
            from_files = self.recipe.get("from_files", {})
            if os.geteuid() == 0 and (text := filevariables.without_effect(from_files)):
                self._note("warning", f"generation {self.generation}: {text}")
            ground.become(ids, self.recipe["directory"], self.recipe["environment"], from_files)
            self.environment = dict(os.environ)


def main(born: dict[str, Any]) -> None:
    """Be a zygote, and then in each forked child a worker. `born` is what the master put into ZYGOTE_VARIABLE."""
    interrupts.guard()
    programs.guard(born.get("nofile"))
    debugger.prepare()
    zygote = Zygote.current = Zygote(born)
    ground.tell_stack_on_signal()
    try:
        birth = zygote.run()
    except application.LoadError as error:
        forked.end_if_child(error)
        zygote.imports.tell(zygote.channel, error)
        ground.flush()  # before it is said: who asked is shown what was printed
        zygote.channel.send("failed", error=names.lines(str(error), messages.ERROR))
        quit_with(1)
    except BaseException as error:  # noqa: BLE001
        forked.end_if_child(error)
        # A defect of the server itself: without this, a finally of the application's could still run.
        traceback.print_exc()
        ground.flush()
        quit_with(1)
    live(birth)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        close(fd)


def quit_with(status: int) -> NoReturn:
    """End this zygote, and the processes that its import has started. Run the import's exit handlers: those that
    remove files only if no other process shares the import."""
    forked.ignore(signal.SIGTERM)  # a handler of it may be what has called this
    ground.exit_after(LEAVING, "The end of this zygote takes too long. It is in (most recent call last):")
    try:
        children.end()
    except OSError as error:
        if error.errno not in SHORTAGE:
            raise
        os.closerange(3, 256)  # it needs none of them any more, and /proc cannot be read without one
        children.end()
    family = Zygote.current.family if Zygote.current is not None else None
    if family is None or family.leave():
        gc.unfreeze()  # what the import has left is this process's to remove
    else:
        exithandlers.drop_removals()
    leave(status)


def live(birth: Birth | None) -> None:
    """The end of the road for both kinds of process: neither ever returns into the application's script."""
    if birth is None:
        os._exit(0)
    worker_main.run(birth)
