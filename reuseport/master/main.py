"""The master: it waits, hears, decides and acts.

Everything that happens becomes an event; `core.machine.step` says what follows; this module carries that out. It
decides nothing itself and blocks in one place, `Loop.wait`. It never imports gevent, an HTTP parser or the application.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from setproctitle import setproctitle

from reuseport.core import events as ev
from reuseport.core import machine
from reuseport.core.model import STANDBY, ZYGOTE, Cluster, Key, Release
from reuseport.ipc import channel as channels
from reuseport.ipc.inherited import SIGNALS
from reuseport.ipc.rundir import RunDir, RunDirError
from reuseport.ipc.scoreboard import Scoreboard
from reuseport.master import passed, status
from reuseport.master.acts import ACTS
from reuseport.master.bootlog import BootLogs
from reuseport.master.control import Client, Control
from reuseport.master.history import History
from reuseport.master.log import Log
from reuseport.master.loop import Loop
from reuseport.master.losses import Losses
from reuseport.master.notify import Notifier, status_line
from reuseport.master.processes import Process, Processes, become_subreaper, end
from reuseport.master.questions import QUESTIONS
from reuseport.master.recipe import release_of
from reuseport.master.releases import Releases, complete
from reuseport.master.retirement import Predecessors, retire
from reuseport.master.roster import Remains, Roster
from reuseport.master.slots import SlotError, Slots
from reuseport.master.succession import Succession
from reuseport.master.switchboard import Switchboard
from reuseport.master.takeover import TakeoverError, take_over
from reuseport.master.tenants import Tenants
from reuseport.master.touched import Touched
from reuseport.master.watch import Watch
from reuseport.options import OptionError, Settings
from reuseport.options.checks import find_user
from reuseport.options.settings import DEFAULT
from reuseport.version import __version__

ADOPTION = 10.0  # seconds for an earlier master's processes to hand over the slots


def run(settings: Settings, extra: dict[str, Any] | None = None) -> int:
    """Be the master until it is stopped; returns the exit status. `extra` goes into every recipe (embedding)."""
    try:
        master = Master(settings, extra or {})
    except (OptionError, RunDirError, SlotError) as error:
        sys.stderr.write(f"reuseport: {error}\n")
        return 1
    except TakeoverError as error:
        sys.stderr.write(error.output + f"reuseport: nothing was taken over: {error}\n")
        return 1
    return master.run()


def _raise_descriptor_limit() -> None:
    """Every client is a descriptor in some worker, and the usual soft limit of 1024 is meant for select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Master:
    def __init__(self, settings: Settings, extra: dict[str, Any]) -> None:
        """Take the run directory and the addresses. Raises what `run` reports."""
        # Until the handlers stand, a signal must wait, and not end a master that has just written its pid file.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self.first = settings  # what only a start can change: name, addresses, places of files
        self.started = time.time()
        self.events: deque[ev.Event] = deque()
        self.signals: deque[int] = deque()
        self.exit_status: int | None = None
        self.losses = Losses()

        release = complete(release_of(settings), extra)
        self.ids = ids = find_user(settings)
        self.run_dir = RunDir(settings.run_dir)
        supervision = passed.take(os.environ, os.getpid())
        become_subreaper()
        _raise_descriptor_limit()
        self.log = self._open_log(settings)
        bequest = None
        if settings.takeover != "no":
            bequest = take_over(settings, release, self.run_dir, supervision, self.log.write)
        self.lock = self.run_dir.own(*(ids or (None, None)))
        history = self._open_history(settings)
        self.cluster = Cluster(last=history.last)
        if settings.umask is not None:
            os.umask(settings.umask)
        given = passed.sockets_of(supervision)
        units = tuple(dict.fromkeys(one.address for one in given if not one.stored))
        # Without a word about addresses those that were passed are meant.
        addresses = units if units and settings.sources["bind"] == DEFAULT else settings.bind
        if bequest and not bequest.bereaved:
            addresses = ()  # those that are handed over
        umask = 0 if settings.umask is None else settings.umask
        self.slots = Slots(addresses, settings.backlog, umask, given, beside=settings.beside)
        self.roster = Roster(self.run_dir.roster)
        remains = self.roster.read()
        if bequest:
            for slot in bequest.slots:
                self.slots.adopt(*slot, theirs=slot[0] in bequest.theirs)
            remains = remains and bequest.settled(remains)
        if remains is None:
            self.slots.bind()
        self._write_pid_file()
        self.loop = Loop()
        self.notifier = Notifier(supervision, self.loop, self.log.write)
        self.boot_logs = BootLogs(self.run_dir, self.loop, lambda: self.cluster, self.log.raw)
        self.processes = Processes(self.loop, self._on_exit)
        self.board = Scoreboard(self.run_dir.scoreboard, create=True)
        if ids:
            os.chown(self.run_dir.scoreboard, *ids, follow_symlinks=False)
        self.switchboard = Switchboard(
            self._listen(),
            ids[0] if ids else os.geteuid(),
            settings.name,
            self.loop,
            self.processes,
            self.slots,
            self.events.append,
            self.log.write,
            self._recipe_of,
            self._on_job_ended,
        )
        self.releases = Releases(
            settings,
            extra,
            history,
            self.processes,
            self.board,
            lambda: self.cluster,
            self.events.append,
            self.log.write,
        )
        self.tenants = Tenants(settings, self.run_dir, ids, remains is not None, self.processes, self.switchboard)
        self.tenants.tell, self.tenants.log = self.events.append, self.log.write
        self.control = Control(self.run_dir.control, self.loop, self.on_question)
        self.touched = (
            Touched(lambda: self._in_directory("release_file"), self._release_by, self.log.write),
            Touched(lambda: self._in_directory("stop_file"), self._stop_by, self.log.write),
        )
        self.watch = Watch(self.run_dir, self.loop, self.processes, self.board, self.events.append, self.log.write)
        self.loop.on_error = lambda text: self.log.write("critical", f"a defect of the master, which goes on:\n{text}")
        self.log.on_blocked = lambda: self.loop.later(0.05, self.log.flush)
        self.predecessors = Predecessors(self)
        self.succession = Succession(self)
        self.switchboard.on_successor = self.succession.asked
        if remains is not None:
            self._adopt(remains, release, renew=bequest is not None and bequest.bereaved)
        else:
            self.events.append(ev.ReleaseAsked(release))
        if bequest:
            for queue in bequest.queues:
                self.switchboard.adopt_queue(*queue)
            for pid in bequest.masters:
                self.predecessors.watch(pid)
            bequest.accept()

    def run(self) -> int:
        self._listen_to_signals()
        setproctitle(f"reuseport: master [{self.first.name}]")
        where = ", ".join(self.slots.addresses)
        self.log.write("info", f"reuseport {__version__} on {where}; master pid {os.getpid()}; {self.run_dir.path}")
        self.notifier.store(slot.socket for slot in self.slots.storable())
        self._look_around()
        gc.freeze()
        self._decide()
        while self.exit_status is None:
            self.loop.wait(None if self.succession.paused else machine.wake_at(self.cluster))
            if self.succession.heir:
                return retire(self, self.succession.heir)
            if not self.succession.paused:
                self._hear_signals()
                self.events.append(ev.Tick())
                self._decide()
        self._leave()
        return self.exit_status

    # --- hear -------------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        """Handlers only enqueue; the wake-up fd makes the loop's one blocking call return (signal(7))."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

        def drain() -> None:
            with contextlib.suppress(BlockingIOError):
                while os.read(reader, 4096):
                    pass

        self.loop.watch(reader, drain)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda received, _: self.signals.append(received))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self.processes.original_mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def _hear_signals(self) -> None:
        while self.signals:
            number = self.signals.popleft()
            if number == signal.SIGCHLD:
                self.processes.reap()
            elif number == signal.SIGHUP:
                self.releases.ask(None)
            elif number == signal.SIGTERM:
                self.events.append(ev.StopAsked(insist=True, timeout=self.releases.settings.graceful_timeout))
            elif number in (signal.SIGINT, signal.SIGQUIT):
                self.events.append(ev.StopAsked(quick=True))
            elif number in (signal.SIGTTIN, signal.SIGTTOU):
                self.events.append(ev.ScaleAsked(1 if number == signal.SIGTTIN else -1))
            elif number == signal.SIGUSR1:
                self.reopen_log()
                for process in self.processes.all():
                    if process.key.number != ZYGOTE:
                        self.switchboard.send(process.key, "reopen")
            else:
                self.log.write("warning", f"{signal.Signals(number).name} means nothing to this master")

    def _on_exit(self, process: Process, how: str) -> None:
        self.switchboard.last_words(process)
        for lost in status.jobs_of(process):
            self.log.write("error", self.losses.add(str(process.key), process.pid, how, lost))
        for job in process.jobs.values():
            self.releases.job_ended(process.key, job, lost=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.run_dir.stacks(str(process.key)))
        if process.key.number == ZYGOTE:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.run_dir.door(process.key.generation))
            # Whom it had been asked for and did not bring into the world will not come any more.
            for other in self.processes.all():
                if other.key.generation == process.key.generation and not other.pid:
                    self.processes.forget(other.key)
        self.events.append(ev.Exited(process.key, how))

    def on_question(self, client: Client, question: dict[str, Any]) -> None:
        answer = QUESTIONS.get(question["do"])
        if self.succession.paused:
            self.succession.hold(client, question)
        elif answer is None:
            client.done(False, error=f"this master ({__version__}) does not know {question['do']!r}")
        else:
            answer(self, client, question)

    # --- what an earlier master left ------------------------------------------------------------------------------

    def _adopt(self, remains: Remains, otherwise: Release, *, renew: bool) -> None:
        """Take over the processes and slots of another master. SlotError where the slots do not come back."""
        for pid in remains.strays:
            end(pid)
        for one in remains.adopted.survivors:
            process = self.processes.expect(one.key, remains.rows[one.key])
            self.processes.is_running(process, one.pid)
        wanted = set(remains.slots)
        deadline = time.monotonic() + ADOPTION
        while missing := wanted - {(slot.address, slot.index) for slot in self.slots.slots}:
            if time.monotonic() > deadline:
                names = ", ".join(sorted({address for address, _ in missing}))
                raise SlotError(
                    f"{names}: no process of the earlier master has handed it over within {ADOPTION:g} s; end them: "
                    + ", ".join(str(one.pid) for one in remains.adopted.survivors)
                )
            self.loop.wait(deadline)
        # A master that died while it stopped had let go of them; and the addresses may be others by now.
        self.slots.bind()
        adopted = replace(remains.adopted, slots=self.slots.count, otherwise=otherwise, renew=renew)
        self.events.appendleft(adopted)

    # --- decide -----------------------------------------------------------------------------------------------------

    def _recipe_of(self, generation: int) -> Mapping[str, Any] | None:
        g = self.cluster.generations.get(generation)
        return g.release.recipe if g else None

    def _decide(self) -> None:
        """Feed every event to the core and carry out what it says, in order."""
        self.tenants.look(self.cluster)
        while self.events and self.exit_status is None:
            event = self.events.popleft()
            self.cluster, commands = machine.step(self.cluster, event, time.monotonic())
            # Before anybody of a new generation accepts: its tenants must not go back.
            self.tenants.publish(self.cluster, self.releases.settings)
            if any(isinstance(command, ev.Fork | ev.Accept | ev.Attend | ev.Drain) for command in commands):
                # Written before it is done: whoever may have begun to accept must not be taken for a stray.
                self._write_roster()
            for command in commands:
                self._act(command)
            self.tenants.look(self.cluster)
        self.switchboard.forget_queues(n for n, g in self.cluster.generations.items() if g.state != STANDBY)
        if self.exit_status is None:
            self._write_roster()
        self._notify()
        self.succession.look()

    def _act(self, command: ev.Command) -> None:
        try:
            ACTS[type(command)](self, command)
        except Exception:  # noqa: BLE001
            # Out of descriptors or memory, or a defect: the deadlines of the core cover what has not been done.
            self.log.write("critical", f"could not {type(command).__name__}:\n{traceback.format_exc()}")

    def _write_roster(self) -> None:
        rows = {process.key: process.row for process in self.processes.all()}
        try:
            self.roster.write(self.cluster, rows, tuple((slot.address, slot.index) for slot in self.slots.slots))
        except OSError as error:
            self.log.write("error", f"the roster could not be written; a next master could not adopt: {error}")

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _on_job_ended(self, key: Key, job: dict[str, Any]) -> None:
        self.releases.job_ended(key, job)

    def _listen(self) -> Any:
        """The socket for hellos, at a path where only the master's own user can put anything else."""
        hellos = channels.listen(self.run_dir.hello)
        if self.ids:
            os.chown(self.run_dir.hello, *self.ids, follow_symlinks=False)
        return hellos

    def be_heard_again(self) -> None:
        """Another master had begun to take this one's place, and may have left its own traces."""
        self.switchboard.close()
        self.switchboard.listen(self._listen())
        self.control.listen_again()
        self.roster = Roster(self.run_dir.roster)

    def _look_around(self) -> None:
        """What nothing tells of, at least once in a second."""
        if self.succession.heir:
            return
        for file in self.touched:
            file.look()
        self._notify(fully=True)
        self.releases.judge()
        timeout = self.releases.settings.timeout
        if timeout:
            self.watch.look(self.cluster, timeout)
        self.loop.later(min(1.0, timeout / 4) if timeout else 1.0, self._look_around)

    def _notify(self, *, fully: bool = False) -> None:
        self.notifier.look(
            self.cluster,
            self.releases.asked,
            lambda: status_line(self.cluster, lambda n: status.waits_for(self.cluster, n, self.processes, self.board)),
            time.monotonic(),
            fully=fully,
        )

    def _in_directory(self, name: str) -> str:
        """The path that an option names; a relative one lies in --chdir, whose links are not followed here."""
        path = getattr(self.releases.settings, name)
        return os.path.join(self.releases.settings.chdir, path) if path else ""

    def _release_by(self, path: str) -> None:
        self.log.write("info", f"{path} was touched: releasing")
        self.releases.ask(None)

    def _stop_by(self, path: str) -> None:
        self.log.write("info", f"{path} was touched: stopping")
        self.events.append(ev.StopAsked(timeout=self.releases.settings.graceful_timeout))

    def _open_log(self, settings: Settings) -> Log:
        try:
            return Log(settings.log_file, settings.log_level, settings.log_json)
        except OSError as error:
            raise OptionError(f"{settings.where('log_file')}: cannot open {error.filename}: {error.strerror}") from None

    @staticmethod
    def _open_history(settings: Settings) -> History:
        try:
            return History(settings.state_dir)
        except OSError as error:
            where = settings.where("state_dir")
            raise OptionError(f"{where}: {error.filename}: {(error.strerror or str(error)).lower()}") from None

    def reopen_log(self) -> None:
        try:
            self.log.reopen()
        except OSError as error:
            self.log.write("error", f"the log could not be opened again, and goes on in the old file: {error}")

    def _write_pid_file(self) -> None:
        if not self.first.pid:
            return
        try:
            Path(self.first.pid).write_text(f"{os.getpid()}\n")
        except OSError as error:
            raise OptionError(f"{self.first.where('pid')}: cannot write {self.first.pid}: {error.strerror}") from None

    def _leave(self) -> None:
        """The last acts: whoever waits for the stop is told, and the files go."""
        self.boot_logs.copy_news()
        self.log.write("info", "stopped")
        for client in list(self.control.clients.values()):
            client.done(True, text="the master has stopped")
        self.roster.remove()
        self.tenants.remove()
        self.control.close()
        self.switchboard.close()
        self.slots.close()
        self.boot_logs.remove()
        for path in (self.run_dir.hello, self.run_dir.scoreboard, self.run_dir.pid, self.first.pid):
            if path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        self.notifier.close()
        self.log.flush()
