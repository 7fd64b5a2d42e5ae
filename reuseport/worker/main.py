"""The worker, from its birth to its exit.

It is born from its zygote with the application in it, makes itself ready, says so, and accepts when it is told to. On
SIGTERM it stops accepting, finishes what it has, and leaves. It lives without a master as well as with one: when the
channel ends it serves on, and says hello to the next master that owns the run directory.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from posix import close  # not gevent's os.close, which leaves it to the loop
from typing import Any

import gevent
import gevent.event
import gevent.hub
import gevent.monkey

from reuseport import hooks, names
from reuseport.ipc import begun, messages, scoreboard, streams
from reuseport.ipc import channel as channels
from reuseport.ipc.inflight import InFlight
from reuseport.ipc.latencies import count, my_row
from reuseport.ipc.messages import Message
from reuseport.ipc.scoreboard import TAKEN, TURNED, settle
from reuseport.ipc.stacks import STACK_SIGNAL
from reuseport.worker import (
    application,
    callbacks,
    forked,
    ground,
    health,
    jobprocess,
    logs,
    remedies,
    running,
    tenancy,
    warmup,
)
from reuseport.worker.access import AccessLog
from reuseport.worker.admission import Admission
from reuseport.worker.birth import Birth
from reuseport.worker.connection import Connection
from reuseport.worker.departure import leave
from reuseport.worker.drain import Drain
from reuseport.worker.engine import Engine
from reuseport.worker.handover import Receiver, Sender
from reuseport.worker.imports import Imports
from reuseport.worker.interrupts import is_server
from reuseport.worker.jobprocess import JobProcess, describe_server
from reuseport.worker.link import Link
from reuseport.worker.listeners import Acceptor, Listener, pass_slots
from reuseport.worker.loopset import LoopSet
from reuseport.worker.replacement import TERM, Replacement
from reuseport.worker.reporter import JobReporter
from reuseport.worker.router import Router, make_router
from reuseport.worker.said import Said, speak_through
from reuseport.worker.snapshot import Snapshots
from reuseport.worker.vitals import Vitals

TURN = 0.25  # seconds between two signs of life
# What a generation's workers log once: its zygote imports this module, and the workers that it forks share the page.
TOLD = mmap.mmap(-1, mmap.PAGESIZE)
FIRST_HELLO = 10.0  # seconds for the master to accept the connection of a new worker


class Worker:
    """`current` is this process's worker, or the job that it is the process of."""

    current: Worker | JobProcess | None = None

    def __init__(self, birth: Birth) -> None:
        self.birth = birth
        self.settings = birth.settings
        self.id = f"{birth.generation}.{birth.number}"
        self.state = "starting"
        self.board = scoreboard.my_row(birth.shared["scoreboard"], birth.row)
        self.latencies = my_row(birth.shared.get("latencies"), birth.row)
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.ended = gevent.event.Event()
        self.engine: Engine | None = None
        self.reporter: JobReporter | None = None
        self.acceptor: Acceptor | None = None
        self.sender: Sender | None = None
        self.receiver: Receiver | None = None
        self.loop_set: LoopSet | None = None
        self.early: list[Message] = []  # what the master said before the engine stood
        self.drain = Drain(self)
        self.farewell = False  # the server is about to stop
        self.router: Router | None = None
        self.routes: tuple[messages.Routes, list[int]] | None = None  # the newest, while there is no router yet
        self._watchers: list[Any] = []
        self.log = Said(self.settings, self.id, birth.logs)
        self.sinks: logs.Sinks | None = None
        self.link = Link(
            self.loop,
            birth.run_dir,
            self.log,
            hello=self._hello,
            take=self._take,
            lost=self._on_master_lost,
            alone=self._on_no_master,
            on_room=self._report,
        )
        self.replacement = Replacement(self.settings, self.board, self.link.say)
        self.vitals = Vitals(self.board, self.id, birth.name)
        self.imports = Imports(self.settings.reload)
        forked.guard(self._release, hub=self.hub, imports=birth.application is None)

    # --- birth ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Meet the master, have the application, get ready. What the application raises here ends the process."""
        birth = self.birth
        if birth.booting:
            os.dup2(birth.boot_output, 1)
            os.dup2(birth.boot_errors, 2)
            self.log.boot_output = birth.boot_output
        else:
            speak_through(self.log)
        if not self.link.connect(FIRST_HELLO):
            os._exit(0)  # its master died meanwhile; another one would not know of it
        if birth.application is not None:
            self.get_ready(birth.application)
            return
        application.prepare(birth.recipe["directory"], tuple(self.settings.pythonpath))
        if self.settings.log_config:
            logs.configure(self.settings.log_config)
        if script := birth.recipe.get("script"):
            application.run_script(script)  # comes back through `captured`, and never from here
        else:
            self.get_ready(application.load(birth.recipe["app"], self.settings.factory))

    def get_ready(self, app: Any) -> None:
        forked.end_if_child()
        forked.import_is_over()
        birth = self.birth
        birth.application = app
        self._accept_signals()
        self.loop_set = LoopSet(self.loop)
        self.reporter = JobReporter(
            self.loop,
            self.board,
            begun.my_row(birth.shared.get("begun"), birth.row),
            self.link.say,
            self.link.has_room,
            lambda: self.link.channel is not None,
            self._jobs_changed,
        )
        describe_server(birth, self.loop)
        steal = os.environ.get("REUSEPORT_STEAL", "1") != "0"
        self.acceptor = Acceptor(self.loop, self.loop_set, self._adopt, self.board, self.log, steal)
        for listener in birth.listeners.values():
            self.acceptor.add(listener)
        self.engine = Engine(
            health.answering(tenancy.told(app) if self.settings.tenant else app, self.settings, lambda: self.farewell),
            self.settings,
            generation=birth.generation,
            worker=self.id,
            board=self.board,
            log=self.log,
            tls=birth.tls,
            access=self._open_logs(),
            admission=self._admission(),
            told=TOLD,
        )
        self.engine.on_change = self.drain.leave_if_done
        self.sender = Sender(self.loop, self.loop_set, self.drain.keep_connections)
        self.receiver = Receiver(self.loop, birth.queue[0], self.engine.adopt, self._inherit, self.log)
        if self.replacement.after:
            self.engine.on_request_end = self.replacement.count_request
        self._beat()
        warmup.call_start_hooks()
        forked.end_if_child()
        # A rollback to what stands by does not wait: its first requests warm it up.
        for path in () if birth.booting and birth.copied else self.settings.warmup:
            status = warmup.request(self.engine, path)
            if status >= 300:
                hint = "what is behind it was not warmed up; //HOST/PATH asks for a host that the application knows"
                self.log("warning", f"--warmup {path}: answered with {status}: {hint}")
        self.engine.count_latencies = partial(count, self.latencies, self.engine.latencies)
        application.settle(self.settings)  # of what this process has imported itself, at the warm-up at the latest
        if self.settings.tenant:
            self._make_router()
        self.engine.admission.begin()
        self.vitals.measure()
        if birth.booting:
            sys.stdout.flush()
            sys.stderr.flush()
            streams.end_boot(birth.boot_output, birth.boot_errors)
            self.log.boot_output = None
            speak_through(self.log)
        self._dump_stacks_on_signal()
        self._put_down()
        self.state = "ready"
        self.link.say("ready")
        early, self.early = self.early, []
        for message in early:
            self._on_message(message)

    def _admission(self) -> Admission:
        """What keeps requests away that have ended workers; of none, where the master is too old to know of it."""
        birth, settings = self.birth, self.settings
        if not settings.quarantine:
            return Admission()
        try:
            shared = InFlight.of(birth.shared["inflight"])
        except FileNotFoundError:
            return Admission()
        if shared.owner(birth.row) != (birth.generation, birth.number):
            return Admission()
        if not shared.hold(birth.row):
            self.log("warning", "the C library has no robust mutexes: a request that ends workers may end some more")
        return Admission(
            shared,
            birth.row,
            birth.generation,
            pause=time.sleep if settings.threads else gevent.sleep,
            has_master=lambda: self.link.channel is not None,
            exempt=None if settings.health_path is None else health.path_of(settings),
        )

    def _make_router(self) -> None:
        assert self.engine is not None
        way = partial(Sender, self.loop, self.loop_set)
        link = self.link
        self.router = make_router(self.birth, self.engine, way, link.hear, link.say, link.has_room, self.log)
        self.router.seen.again()
        if self.routes is not None:
            self._set_routes(*self.routes)

    def _accept_signals(self) -> None:
        """After the import: the application may have set handlers of its own, meant for another server."""
        forked.ignore(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
        for number, callback in ((signal.SIGTERM, self._on_term), (signal.SIGUSR1, self._reopen)):
            watcher = self.loop.signal(number)
            watcher.start(callback)
            self._watchers.append(watcher)

    def _dump_stacks_on_signal(self) -> None:
        path = self.birth.run_dir.stacks(self.id)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        signal.signal(STACK_SIGNAL, lambda number, frame: running.tell(fd))
        faulthandler.unregister(STACK_SIGNAL)
        faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True, chain=True)
        assert self.engine is not None
        gathering = self.engine.gathering
        Snapshots(self.birth.run_dir, self.id, self.log, lambda: self.board[TURNED], gathering=gathering)

    # --- talk -------------------------------------------------------------------------------------------------------

    def _open_logs(self) -> AccessLog | None:
        """After the import, in the process that writes: where lines go from now on."""
        self.sinks = logs.Sinks(self.settings, self.birth.generation, self.id, self.loop, self.log, self.birth.logs)
        write = self.sinks.access
        return None if write is None else AccessLog(self.settings.access_log_format, write, self.log)

    def _reopen(self) -> None:
        if self.sinks is not None:
            self.sinks.reopen()
        self.log.reopen()

    def _hello(self, channel: channels.Channel) -> None:
        listeners = self.acceptor.listeners if self.acceptor else list(self.birth.listeners.values())
        # The master's own slots are news to it only if it is another master than the one that made them.
        again = self.state != "starting"
        channel.send(
            "hello",
            self.birth.queue if again else (),
            generation=self.birth.generation,
            number=self.birth.number,
            state=self.state,
            slots=[(one.address, one.index, one.shared) for one in listeners],
            queue=again,
            logs=True,
        )
        if again:
            pass_slots(channel, listeners)
            assert self.reporter is not None
            self.reporter.again()
            if self.router is not None:
                self.router.seen.again()
            self.replacement.repeat()

    def _take(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, messages.Slots):
            self._add_slots(message.slots, fds)
        elif isinstance(message, messages.Logs):
            self.birth.logs.take(message.paths, fds)
            self._reopen()
        elif isinstance(message, messages.Heir):
            self.drain.set_heir(message, fds)
        elif isinstance(message, messages.Routes):
            self._set_routes(message, fds)
        elif self.engine is None:
            self.early.append(message)
        else:
            self._on_message(message)

    def _on_master_lost(self) -> bool:
        if self.state in ("starting", "ready"):
            self.exit()  # it has never accepted: nobody needs it, and no other master would
            return False
        return True

    def _on_no_master(self, seconds: float) -> None:
        patience = self.settings.orphan_timeout
        if patience and seconds >= patience and not self.drain.last:
            self.log("warning", f"no master has come within {patience:g} s (--orphan-timeout): leaving")
            self.drain.begin(last=True)

    def _on_message(self, message: Message) -> None:
        if isinstance(message, messages.Accept) and self.state in ("ready", "serving"):
            assert self.acceptor is not None
            if message.own is not None:
                self.acceptor.own(message.own)
            else:
                # A canary leaves the slots alone, also one that a master has promoted who died over it.
                self.acceptor.rest()
            if self.state == "ready":
                self.receiver.start()
            # A next master may not know of the stop that its predecessor announced: then there is none any more.
            self.farewell = self.engine.closing = message.farewell
            self.state = "serving"
            self.link.say("accepting")
        elif isinstance(message, messages.Attend) and self.state in ("ready", "serving"):
            self.drain.attending = True
            if self.state == "ready":
                self.receiver.start()
            self.drain.begin(last=False)
        elif isinstance(message, messages.Drain):
            self.drain.told = True
            self.drain.attending = False
            if message.last:
                self.drain.begin(last=True)
        elif isinstance(message, messages.Quit):
            self.exit()
        elif isinstance(message, messages.Exited):
            callbacks.call(hooks.exit_hooks, "an exit hook", self.log, [(pid,) for pid in message.pids])
        elif isinstance(message, messages.Reopen):
            self.birth.logs.forget()
            self._reopen()

    def _add_slots(self, names: Iterable[tuple[str, int, bool]], fds: list[int]) -> None:
        for (address, index, shared), fd in zip(names, fds, strict=True):
            listener = Listener(fd, address, index, shared)
            if self.acceptor is None:
                self.birth.listeners[address, index] = listener
            elif self.state in ("starting", "ready", "serving"):
                self.acceptor.add(listener)
            else:
                os.close(fd)

    # --- serve ------------------------------------------------------------------------------------------------------

    def _adopt(self, fd: int, peer: Any, local: Any) -> None:
        assert self.engine is not None
        self.engine.accept(fd, peer, local)

    def _inherit(self, connection: Connection, data: bytes, seconds: float | None) -> None:
        assert self.engine is not None
        self.board[TAKEN] += 1
        connection.inherit(data, seconds)
        if self.drain.last:
            connection.close_if_idle()
        elif self.engine.pass_on is not None:
            self.engine.is_idle(connection)  # it came to a worker that is leaving, too

    def _set_routes(self, message: messages.Routes, fds: list[int]) -> None:
        """Which generations there are, and the ways to their queues."""
        if self.router is None:
            if self.routes is not None:
                for fd in self.routes[1]:
                    os.close(fd)
            self.routes = message, fds
            return
        self.router.set_table(message.table, dict(zip(message.queues, fds, strict=True)), message.workers)

    def _beat(self) -> None:
        """A sign of life, and whatever else must be looked at now and then."""
        timer = self.loop.timer(TURN, TURN)
        timer.start(self._turn)
        self._watchers.append(timer)
        self._turn()

    def _turn(self) -> None:
        self.vitals.beat()
        self._put_down()
        self.imports.tell(self.link.channel)
        if self.state == "serving":
            self.replacement.look_at_memory()
        elif self.state == "draining":
            self.vitals.retitle(draining=True)
            self.drain.give_free()

    def _put_down(self) -> None:
        """What requests leave to be counted later. How long a warm-up takes is no client's latency."""
        if self.state == "starting":
            self.engine.latencies.clear()
        count(self.latencies, self.engine.latencies)
        settle(self.board)

    # --- leave ------------------------------------------------------------------------------------------------------

    def _on_term(self) -> None:
        """The master's TERM follows its word. Anybody else's is a wish to be replaced, unless it is repeated."""
        self.link.hear()
        if self.drain.told or self.link.channel is None or self.replacement.reason == TERM:
            self.drain.begin(last=False)
        else:
            self.replacement.ask(TERM)

    def _report(self) -> bool:
        """Tell the master of the jobs and the tenants. Whether that was all: a worker that starts has none."""
        told = self.router is None or self.router.seen.tell()
        return (self.reporter is None or self.reporter.report()) and told

    def _jobs_changed(self) -> None:
        self.replacement.look_at_jobs()
        self.drain.leave_if_done()

    def _release(self) -> None:
        """In a child that the application has forked: close its copies of what is the worker's (`worker.forked`)."""
        Worker.current = None
        for watcher in self._watchers:
            watcher.stop()
        self.link.abandon()
        fds = [end for end in self.birth.queue if end != -1]
        if self.acceptor is None:
            fds += [listener.fd for listener in self.birth.listeners.values()]
        if self.router is None and self.routes is not None:
            fds += self.routes[1]
        for fd in fds:
            close(fd)
        self.birth.logs.forget()
        self.birth.run_dir.forget()
        self.birth.family.forget()
        for part in (self.acceptor, self.receiver, self.sender, self.engine, self.router, self.loop_set):
            if part is not None:
                part.abandon()

    def exit(self) -> None:
        """Leave now: in the main greenlet, where exit handlers are called."""
        if self.engine is not None:
            self._put_down()
            self.receiver.stop(self.loop_set)
        self.ended.set()


@is_server
def _wait_for_end(worker: Worker) -> None:
    """Until the worker may leave. What a greenlet of the application throws at the main one (SystemExit) ends nobody
    else's request: the worker is replaced, and drains."""
    while not worker.ended.is_set():
        try:
            worker.ended.wait()
        except gevent.hub.LoopExit:
            raise
        except BaseException as error:  # noqa: BLE001
            worker.log("error", f"a greenlet of the application raised {type(error).__name__}: {error}")
            worker.replacement.ask(f"a greenlet raised {type(error).__name__}")


def run(birth: Birth) -> None:
    """Be a worker, or a job's process; never returns."""
    gevent.reinit()
    if birth.line is not None:
        job = Worker.current = JobProcess(birth)
        jobprocess.run(job)
    worker = Worker.current = Worker(birth)
    _live(worker, worker.begin)


def captured(worker: Worker, app: Any) -> None:
    """The script that this worker runs has called `reuseport.serve(app)`: go on from inside that call, for good."""

    def birth() -> None:
        application.check(app, "what reuseport.serve was given")
        worker.get_ready(app)

    _live(worker, birth)


def _live(worker: Worker, birth: Callable[[], None]) -> None:
    status = 0
    try:
        birth()
        _wait_for_end(worker)
    except (application.LoadError, warmup.WarmupError) as error:
        forked.end_if_child(error)
        worker.imports.tell(worker.link.channel, error)
        ground.flush()  # before it is said: who asked is shown what was printed
        worker.link.say("failed", error=names.lines(str(error), messages.ERROR))
        status = 1
    except BaseException as error:  # noqa: BLE001
        forked.end_if_child(error)
        # The application's, from a start hook, SystemExit included; or a defect of ours. Both end this worker visibly.
        application.print_traceback(error)
        ground.flush()
        text = f"worker {worker.id}: {type(error).__name__}: {error}"
        told = ". ".join(filter(None, (names.lines(text, messages.ERROR), remedies.of_error(error))))
        worker.link.say("failed", error=told)
        status = 1
    worker.link.finish(worker._report)
    if worker.sinks is not None:
        worker.sinks.close()
    leave(status)
