"""The master: it waits, hears, decides and acts.

Everything that happens becomes an event; `core.machine.step` says what follows; this module carries that out. It
decides nothing itself and blocks in one place, `Loop.wait`. It never imports gevent, an HTTP parser or the application.
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from reuseport import options
from reuseport.core import events as ev
from reuseport.core import machine
from reuseport.core.model import ACCEPTING, ATTENDING, STANDBY, ZYGOTE, Cluster, Generation, Key
from reuseport.ipc import channel as channels
from reuseport.ipc.begun import Begun
from reuseport.ipc.inflight import InFlight
from reuseport.ipc.latencies import Latencies
from reuseport.ipc.logfile import write_file
from reuseport.ipc.messages import OtherQuestion, Question
from reuseport.ipc.rundir import RunDir, not_this
from reuseport.ipc.scoreboard import Scoreboard
from reuseport.ipc.shared import SharedFile
from reuseport.ipc.title import set_title
from reuseport.master import estate, reserve, status, upgrade
from reuseport.master.acts import ACTS
from reuseport.master.bootlog import BootLogs
from reuseport.master.companions import Companions
from reuseport.master.control import Client, Control
from reuseport.master.exits import Exits
from reuseport.master.history import History
from reuseport.master.log import Log
from reuseport.master.logfiles import LogFiles
from reuseport.master.loop import Loop
from reuseport.master.losses import Losses
from reuseport.master.metrics import Facts, overflows
from reuseport.master.notify import Notifier, status_line
from reuseport.master.numbers import Numbers
from reuseport.master.passed import Supervision
from reuseport.master.processes import Process, Processes
from reuseport.master.progress import Progress
from reuseport.master.quarantine import Quarantine
from reuseport.master.questions import QUESTIONS, whole_status
from reuseport.master.releases import Operator, Releases
from reuseport.master.reload import Reload
from reuseport.master.retirement import Predecessors, remove_pid_file, retire
from reuseport.master.roster import Roster
from reuseport.master.samples import Samples
from reuseport.master.shared import Shared
from reuseport.master.signals import Signals
from reuseport.master.slots import Slots
from reuseport.master.succession import Succession
from reuseport.master.switchboard import Switchboard
from reuseport.master.tally import Tally
from reuseport.master.telling import Telling
from reuseport.master.tenants import Tenants
from reuseport.master.terminal import Terminal
from reuseport.master.touched import Touched
from reuseport.master.waits import Waits
from reuseport.master.watch import Watch
from reuseport.options import OptionError, Settings
from reuseport.options.checks import find_user
from reuseport.options.table import BY_NAME
from reuseport.version import __version__

# What the next master must know of, should this one die over it. Whoever may have begun to accept must not be taken for
# a stray; a companion must not run unknown, nor get a second stop signal.
WRITTEN_FIRST = ev.Fork | ev.Accept | ev.Attend | ev.Drain | ev.Go | ev.Stop


class Master:
    # What a way in brings (`entrance.py`), before anything is heard.
    lock: int
    cluster: Cluster
    slots: Slots

    def __init__(self, settings: Settings, extra: Mapping[str, Any], supervision: Supervision, log: Log) -> None:
        """What can be had without anybody noticing: a log, a loop, and what starts processes. OptionError."""
        self.first = settings  # what only a start can change: name, addresses, places of files
        self.extra = extra
        self.log = log
        self.left: estate.Estate | None = None  # what it goes on from, until it has begun to
        self.started = time.time()
        self.events: deque[ev.Event] = deque()
        self.exit_status: int | None = None
        self.signals = Signals(self)
        reserve.refill()
        self.tally = Tally()
        self.terminal = Terminal({"reload": settings.reload})
        self.ids = find_user(settings)
        self.log_files = LogFiles(self.ids, log.write)
        self.run_dir = RunDir(settings.run_dir)
        self.roster = Roster(self.run_dir, self.first.name)
        self.roster_failed = False  # it could not be written the last time, which is told once
        self.loop = Loop()
        self.loop.on_error = lambda text: log.write("critical", f"a defect of the master, which goes on:\n{text}")
        log.on_blocked = lambda: self.loop.later(0.05, log.flush)
        self.losses = Losses(log.write, self.loop.later, self._on_job_lost, self._on_job_ended)
        self.notifier = Notifier(supervision, self.loop, log.write)
        self.processes = Processes(self.loop, self._on_exit, log.write)
        self.shared = Shared(self.ids, self.processes, log.write)
        self.companions = Companions(self.run_dir, self.loop, self.processes, log, self.events.append)
        self.boot_logs = BootLogs(self.run_dir, self.loop, lambda: self.cluster, log.printed)
        self.telling = Telling(settings, self.loop, self._facts)

    def open_shared(self, samples: Samples) -> None:
        """What workers write into, made if it is not there."""
        self.board = Scoreboard(self.run_dir.scoreboard, create=True)
        self.latencies = Latencies(self.run_dir.latencies, create=True)
        self.begun = Begun(self.run_dir.begun, create=True)
        in_flight = InFlight.made(self.run_dir.inflight)
        self.shared.files += [self.board.file, self.latencies.file, self.begun.file, in_flight.memory]
        self.quarantine = Quarantine(
            in_flight,
            self.processes,
            lambda: self.releases.settings.quarantine,
            self.log.write,
        )
        self.numbers = Numbers(self.board, self.latencies, self.processes, samples)

    def furnish(self, hellos: _socket.socket, questions: socket.socket, history: History, *, adopting: bool) -> None:
        """All other parts. `hellos` and `questions` are the sockets that processes and the command line come to;
        `adopting`: there are processes already."""
        settings, log, tell = self.first, self.log.write, self.events.append
        self.switchboard = Switchboard(
            hellos,
            self.ids[0] if self.ids else os.geteuid(),
            settings.name,
            self.loop,
            self.processes,
            self.slots,
            tell,
            log,
            self._recipe_of,
            self._on_job_ended,
            self.log_files,
            self.tally,
        )
        self.releases = Releases(
            settings, self.extra, history, self.processes, self.board, lambda: self.cluster, tell, log, self.tally,
            Waits(self._works_on),
        )  # fmt: skip
        self.releases.check_logs = self.log_files.check
        self.switchboard.on_zygote = self.shared.look
        self.tenants = Tenants(settings, self.run_dir, adopting, self.processes, self.switchboard, log)
        self.tenants.share = self._share
        self.shared.files += self.tenants.files
        if not adopting:
            self.shared.look()
        self.tenants.tell = tell
        self.exits = Exits(self.switchboard)
        self.control = Control(questions, self.loop, self.on_question)
        self.progress = Progress(
            lambda: list(self.control.clients.values()),
            lambda g: {**status.work_of(g, self.processes, self.board), "held": self.tenants.held_in(g.number)},
        )
        self.touched = (
            Touched(lambda: self._in_directory("release_file"), self._release_by, log),
            Touched(lambda: self._in_directory("stop_file"), self._stop_by, log),
        )
        self.reload: Reload | None = None
        if settings.reload:
            self.reload = Reload(self.loop, self._extra_files, self._release_saved, log)
            self.switchboard.on_import = self.reload.watch
        self.watch = Watch(self.run_dir, self.loop, self.processes, self.board, tell, log)
        self.upgrade = upgrade.Upgrade(self)
        self.predecessors = Predecessors(self)
        self.succession = Succession(self)
        self.switchboard.on_job = self.losses.has_come
        self.switchboard.on_lost = self.losses.never_begun
        self.switchboard.on_successor = self.succession.asked
        self.switchboard.is_anothers = self.succession.boots

    def run(self) -> int:
        self.signals.listen()
        set_title(f"reuseport: master [{self.first.name}]")
        where = ", ".join(self.slots.addresses)
        if self.left is None:
            where += f"; master pid {os.getpid()}; run directory {self.run_dir.path}"
            self.log.write("info", f"reuseport {__version__} on {where}")
        else:
            self._tell_of_upgrade(self.left)
            self.left = None
        if self.telling.address:
            self.log.write("info", f"metrics at {self.telling.address}")
        self.notifier.store(slot.socket for slot in self.slots.storable())
        self.loop.call(self._look_around)
        self.loop.call(self._count)
        gc.freeze()
        self._decide()
        # A process that this master adopts says hello before the core knows of its generation and its log files.
        self.switchboard.pass_logs(rotated=False)
        while self.exit_status is None:
            self.loop.wait(None if self.succession.paused else machine.wake_at(self.cluster))
            if self.succession.heir:
                return retire(self, self.succession.heir)
            if self.succession.paused:
                continue
            self.catch_up()
            if self.upgrade.due:
                self.upgrade.perform()
        self._leave()
        return self.exit_status

    # --- hear -------------------------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """With everything that has happened until now."""
        self.signals.hear()
        self.events.append(ev.Tick())
        self._decide()

    def _on_exit(self, process: Process, how: str) -> None:
        # Whatever goes wrong with what it leaves behind, the core hears of the end; what was said before comes before.
        try:
            if process.key.is_companion:
                how = self.companions.ended(process) or how
            else:
                if process.key.number == ZYGOTE and (why := self.boot_logs.refusal(process.key.generation)):
                    self.events.append(ev.Failed(process.key, why))
                self._clear_up_after(process, how)
        finally:
            self.events.append(ev.Exited(process.key, how, process.clean))

    def _clear_up_after(self, process: Process, how: str) -> None:
        self.switchboard.last_words(process)
        self.losses.of(process, how, self.board, self.begun)
        self.quarantine.of(process, how)
        self.numbers.is_dead(process)
        self.tally.worker_ends(self.cluster, process.key)
        self.tenants.seen.worker_ends(process.key)
        self.exits.add(process.pid)
        for file in (self.run_dir.stacks, self.run_dir.snapshot, self.run_dir.lines):
            # The workers' user owns the directory, and may have put a directory of its own there.
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(file(str(process.key)))
        if process.key.number == ZYGOTE:
            self.shared.look(gone=process)
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(self.run_dir.door(process.key.generation))
            # Whom it had been asked for and did not bring into the world will not come any more.
            for other in self.processes.all():
                if other.key.generation == process.key.generation and not other.pid:
                    self.processes.forget(other.key)

    def on_question(self, client: Client, question: Question) -> None:
        answer = QUESTIONS.get(type(question))
        if self.succession.paused:
            self.succession.hold(client, question)
        elif question.server not in (None, self.first.name):
            # Another master may have come into this run directory since the client looked.
            client.done(False, error=not_this(self.run_dir.path, self.first.name, question.server))
        elif answer is None:
            known = question.named if isinstance(question, OtherQuestion) else question.kind
            client.done(False, error=f"this master ({__version__}) does not know {known!r}")
        else:
            answer(self, client, question)

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
            if any(isinstance(command, WRITTEN_FIRST) for command in commands):
                self.write_roster()
            for command in commands:
                self._act(command)
            self.tenants.look(self.cluster)
        self.switchboard.forget_queues(n for n, g in self.cluster.generations.items() if g.state != STANDBY)
        self.companions.forget_all_but(self.cluster.generations)
        if self.exit_status is None:
            self.write_roster()
        self._notify()
        self.exits.look(self.cluster)
        self.progress.look(self.cluster, time.monotonic())
        self.releases.waits.look(self.cluster, time.monotonic(), begun=True)
        self.succession.look()

    def _act(self, command: ev.Command) -> None:
        try:
            ACTS[type(command)](self, command)
        except Exception:  # noqa: BLE001
            # Out of descriptors or memory, or a defect: the deadlines of the core cover what has not been done.
            self.log.write("critical", f"could not {type(command).__name__}:\n{traceback.format_exc()}")

    def write_roster(self) -> None:
        rows = {process.key: process.row for process in self.processes.all()}
        starts = {process.pid: process.start for process in self.processes.all()}
        slots = tuple((slot.address, slot.index) for slot in self.slots.slots)
        try:
            self.roster.write(self.cluster, rows, slots, starts=starts, written=self.slots.written())
        except OSError as error:
            if not self.roster_failed:
                path = self.run_dir.named(self.run_dir.roster)
                told = f"{path} cannot be written: {error.strerror}. A next master has to ask which processes live"
                self.log.write("error", told)
            self.roster_failed = True
        else:
            if self.roster_failed:
                self.log.write("warning", f"{self.run_dir.named(self.run_dir.roster)} can be written again")
            self.roster_failed = False

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _on_job_ended(self, key: Key, job: dict[str, Any]) -> None:
        self.tally.jobs["ended"] += 1
        self.releases.job_ended(key, job)

    def _on_job_lost(self, key: Key, job: dict[str, Any]) -> None:
        self.tally.jobs["lost"] += 1
        self.releases.job_ended(key, job, lost=True)

    def listen(self) -> _socket.socket:
        """The socket for hellos, at a path where only the master's own user can put anything else."""
        hellos = channels.listen(self.run_dir.hello)
        if self.ids:
            os.chown(self.run_dir.hello, *self.ids, follow_symlinks=False)
        return hellos

    def go_on(self) -> None:
        """Another master had begun to take this one's place, and may have left its own traces."""
        self.switchboard.close()
        self.switchboard.hellos.listen(self.listen())
        self.control.listen_again()
        self.roster = Roster(self.run_dir, self.first.name)
        try:
            history, samples = estate.open_state(self.first, self.log.write, trim=False)
            self.write_pid_file()
        except OptionError as error:
            self.log.write("error", str(error))
        else:
            self.releases.history.close()
            self.numbers.samples.close()
            self.releases.history, self.numbers.samples = history, samples
        self.processes.go_on()
        self.losses.go_on()
        self.quarantine.read_again()
        self.telling.go_on()

    def _look_around(self) -> None:
        """What nothing tells of, at least once in a second."""
        timeout = self.releases.settings.timeout
        if not self.succession.heir:
            # Whatever becomes of this look.
            self.loop.later(min(1.0, timeout / 4) if timeout else 1.0, self._look_around)
        reserve.refill()
        if self.succession.paused:
            return
        for file in self.touched:
            file.look()
        if self.reload is not None:
            self.reload.look()
        self.quarantine.look()
        self._notify(fully=True)
        self.progress.look(self.cluster, time.monotonic(), fully=True)
        self.releases.judge()
        self.releases.waits.look(self.cluster, time.monotonic())
        if timeout and not self.terminal:  # where a debugger may wait for a person
            self.watch.look(self.cluster, timeout)

    def _waits_for(self, number: int) -> tuple[int, list[str]]:
        held = self.tenants.held_in(number)
        return status.waits_for(self.cluster, number, self.processes, self.board, held)

    def _works_on(self, g: Generation) -> dict[str, set[str]]:
        """The requests and companions of a generation, by the names that the history has for them.

        A worker that attends to tenants that stay gets new requests: the drain waits for those tenants.
        """
        requests = set()
        for number, worker in g.workers.items():
            waits = not worker.is_job and worker.state != ATTENDING
            process = self.processes.get(Key(g.number, number)) if waits else None
            if process is not None and status.figures(process, self.board)["requests_active"]:
                requests |= self.quarantine.running(process.row) or {"request"}
        return {"requests": requests, "companions": {f"{g.number}.{c.label}" for c in g.company.values()}}

    def _count(self) -> None:
        if not self.succession.heir:
            self.loop.later(1.0, self._count)
        if not self.succession.paused:
            self.count()

    def count(self) -> None:
        """Look what has been served, and tell of it."""
        look = self.numbers.look(self.cluster.generations)
        self.telling.tell(look, sum(len(g.having(ACCEPTING)) for g in self.cluster.generations.values()))

    def _facts(self) -> Facts:
        return Facts(whole_status(self), self.numbers.now(), self.tally, overflows())

    def _notify(self, *, fully: bool = False) -> None:
        self.notifier.look(
            self.cluster,
            self.releases.asked,
            lambda: status_line(self.cluster, self._waits_for),
            time.monotonic(),
            fully=fully,
        )

    def _in_directory(self, name: str) -> str:
        """The path that an option names; a relative one lies in --chdir, whose links are not followed here."""
        path = getattr(self.releases.settings, name)
        return os.path.join(self.releases.settings.chdir, path) if path else ""

    def _extra_files(self) -> list[str]:
        settings = self.releases.settings
        files = (*settings.reload_extra_file, *(path.removeprefix("-") for path in settings.env_file))
        return [os.path.join(settings.chdir, path) for path in files if path != os.devnull]

    def _release_by(self, path: str) -> None:
        self.log.write("info", f"{path} was touched: releasing")
        self.releases.ask(None, operator=Operator(f"touching {path}"))

    def _release_saved(self) -> None:
        self.releases.ask(None, operator=Operator("saving a file (--reload)"))

    def _stop_by(self, path: str) -> None:
        self.log.write("info", f"{path} was touched: stopping")
        self.events.append(self.stop_asked())

    def stop_asked(self, *, insist: bool = False) -> ev.StopAsked:
        settings = self.releases.settings
        return ev.StopAsked(insist=insist, timeout=settings.graceful_timeout, delay=settings.stop_delay)

    def _tell_of_upgrade(self, left: estate.Estate) -> None:
        text = f"upgraded from {left.before} to {estate.this_version()}"
        self.log.write("info", text)
        warnings = []
        if left.changed:
            flags = ", ".join(BY_NAME[name].flag for name in left.changed)
            warnings.append(f"{flags}: the next release brings the new value. Living generations keep theirs")
        with contextlib.suppress(OptionError, OSError):  # the next release tells of it
            now = options.reload(self.releases.settings)
            warnings += options.ways_to_change(options.changed_at_start_only(self.first, now))
        for warning in warnings:
            self.log.write("warning", warning)
        if client := self.control.clients.get(left.asker):
            for warning in warnings:
                client.warn(warning)
            client.done(True, text=text)

    def _share(self, files: list[SharedFile]) -> None:
        """Workers of a generation that begins map these files, too."""
        self.shared.files += files
        self.shared.look()

    def write_pid_file(self) -> None:
        if not self.first.pid:
            return
        try:
            write_file(self.first.pid, f"{os.getpid()}\n")
        except OSError as error:
            raise OptionError(f"{self.first.where('pid')}: cannot write {self.first.pid}: {error.strerror}") from None

    def _leave(self) -> None:
        """The last acts: whoever waits for the stop is told, and the files go."""
        self.boot_logs.copy_news()
        self.upgrade.cancel()
        self.terminal.restore()
        self.log.write("info", "stopped")
        self.releases.note("stopped")
        for client in list(self.control.clients.values()):
            client.done(True, text="the master has stopped")
        said = [self.telling.close(self.numbers.now())]
        self.roster.remove()
        self.tenants.remove()
        self.control.close()
        self.switchboard.close()
        for text in filter(None, said + self.slots.close()):
            self.log.write("warning", text)
        self.boot_logs.remove()
        self.companions.forget_all_but(())
        for path in (*self.run_dir.shared, self.run_dir.hello, self.run_dir.pid):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        remove_pid_file(self.first.pid)
        self.notifier.close()
        self.log.flush()
