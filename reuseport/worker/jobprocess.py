"""A job's process: forked from the zygote like a worker, it runs one function and leaves.

The main thread runs the function, which may compute for a quarter of an hour without ever yielding. So a native thread
beside it talks: with the master, whichever owns the run directory, to which it tells the job and its progress, and with
whoever asked for the job, who may cancel it and gets the result. Both may die; the job goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from posix import close
from typing import Any, NoReturn

import gevent

from reuseport import deadlines, hooks, jobs
from reuseport.core.model import FIRST_JOB, Key
from reuseport.deadlines import JobCancelled, original
from reuseport.ipc import channel as channels
from reuseport.ipc import line as lines
from reuseport.ipc import messages
from reuseport.ipc.marks import Marks
from reuseport.ipc.pins import JOBS as PINNING
from reuseport.ipc.pins import Pins
from reuseport.ipc.shortage import SHORTAGE
from reuseport.ipc.title import set_title
from reuseport.options import parse_app
from reuseport.spawned import JobLost
from reuseport.worker import application, forked, tenancy, warmup
from reuseport.worker.birth import Birth
from reuseport.worker.departure import leave
from reuseport.worker.executioner import Executioner
from reuseport.worker.reporter import REPORT, Ledger
from reuseport.worker.said import Said, speak_through
from reuseport.worker.snapshot import Snapshots

RETRY = 1.0  # seconds between two attempts to reach a master
OTHERS = 0.05  # seconds between two looks whether jobs that this one has spawned here have ended
TICK = 0.25  # seconds between two turns of an idle loop
LAST_WORDS = 2.0  # seconds for the master to hear that the job has ended


def describe_server(birth: Birth, loop: Any) -> None:
    """Tell the application's side of jobs where it is: in a worker, or in a job's process."""
    settings = birth.settings
    door = birth.run_dir.door(birth.generation)
    limits = settings.boot_timeout, settings.job_timeout, settings.job_grace
    jobs.server = jobs.Server(loop, door, *limits, in_process=birth.line is not None)
    app = settings.app
    deadlines.attach(loop, parse_app(app).module.partition(".")[0] if app else "__main__")


def _log(level: str, text: str) -> None:
    os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def run(process: JobProcess) -> NoReturn:
    """Be a job's process."""
    try:
        process.begin()
    except BaseException:  # noqa: BLE001 - a defect of ours, or no timer to be had: its asker finds the job lost
        traceback.print_exc()
        os._exit(1)


class JobProcess:
    """`engine` is what `reuseport.serve` looks at: whether the application has been found yet."""

    def __init__(self, birth: Birth) -> None:
        assert birth.line is not None
        self.birth = birth
        self.engine: Any = None
        self.line = birth.line
        self.line.setblocking(True)

    def begin(self) -> NoReturn:
        for fd in (*(one.fd for one in self.birth.listeners.values()), *self.birth.queue):
            if fd != -1:
                close(fd)  # a slot that somebody holds takes clients, and nobody here would ever serve them
        said = Said(self.birth.settings, str(Key(self.birth.generation, self.birth.number)), self.birth.logs)
        speak_through(said)
        head, call = lines.receive(self.line), lines.receive(self.line)
        if head is None or call is None:
            os._exit(0)  # who asked for it was killed before it could say for what
        with contextlib.suppress(OSError):
            lines.send(self.line, lines.TAKEN, json.dumps(os.getpid()).encode())
        self.call = call[1]
        facts = json.loads(head[1])
        describe_server(self.birth, gevent.get_hub().loop)
        if self.birth.settings.tenant:
            self._pin_tenants()
        deadline = facts["deadline"] or float("inf")
        self.job = jobs.Job(facts["name"], facts["tenant"], deadline, jobs.PROCESS)
        jobs.active.clear()
        jobs.starting.clear()
        self.executioner = Executioner()
        self.job.begin(started=facts["started"])
        if self.job.deadline is not None:
            left = self.job.started + self.job.deadline - time.time()
            self.executioner.appoint(max(0.0, left) + jobs.server.grace)
        self._retitle()
        self.talker = Talker(self.birth, self.line, self.job, self._cancel, said)
        self._take_signals()
        self._keep_turning()
        forked.guard(self._release, hub=gevent.get_hub(), imports=self.birth.application is None)
        who = str(Key(self.birth.generation, FIRST_JOB + os.getpid()))
        Snapshots(self.birth.run_dir, who, _log, job=self.job)
        self.talker.start()
        with contextlib.suppress(OSError):
            lines.send(self.line, lines.KNOWN, json.dumps(os.getpid()).encode())
        birth = self.birth
        try:
            if birth.application is None:
                application.prepare(birth.recipe["directory"], tuple(birth.settings.pythonpath))
                if script := birth.recipe.get("script"):
                    application.run_script(script)  # comes back through `captured`, and never from here
                application.load(birth.recipe["app"], birth.settings.factory)
        except BaseException as error:  # noqa: BLE001 - the application's own import, which may raise anything
            forked.end_if_child(error)
            self._failed(error)
            self._leave()
        self.get_ready(None)

    def _keep_turning(self) -> None:
        """gevent's os.close leaves a pipe open until the loop's next event (gevent/os.py, since 25.8.1). Code that
        waits for the end of that pipe, like `Process.join(timeout)`, waits for ever in a loop without other events."""
        self._tick = gevent.get_hub().loop.timer(TICK, TICK, ref=False)
        self._tick.start(lambda: None)

    def _pin_tenants(self) -> None:
        """The job ties its tenant to this generation, whoever asked for it, and releases it by dying if need be."""
        lock = original("_thread", "allocate_lock")
        pins = Pins(self.birth.shared["pins"], PINNING, self.birth.generation, lock())
        jobs.pin = tenancy.pinner(pins, Marks.of(self.birth.shared["marks"], lock()), self.birth.generation)

    def get_ready(self, app: Any) -> NoReturn:
        """The application is there: run the start hooks, for what the function may need, and then the function."""
        self.engine = True
        forked.end_if_child()
        forked.import_is_over()
        try:
            try:
                jobs.current.set(self.job)
                self.job.bound(always=True, overdue=False)
                jobs.server.begins_job = True
                application.settle(self.birth.settings)
                warmup.call_start_hooks()
                jobs.server.begins_job = False
                function, args, kwargs = pickle.loads(self.call)
                self.call = b""
                value = function(*args, **kwargs)
                forked.end_if_child()
            finally:
                self.job.unbound()
            self.executioner.call_off()
            self._send(lines.VALUE, pickle.dumps(value))
        except BaseException as error:  # noqa: BLE001 - whatever it is, who asked gets it
            forked.end_if_child(error)
            self.executioner.call_off()
            self._failed(error)
        self._leave()

    def _failed(self, error: BaseException) -> None:
        """Who asked gets the exception, with its traceback as a note, since that cannot be pickled."""
        if isinstance(error, JobCancelled):
            error = deadlines.plain(error)
        else:
            application.print_traceback(error)
        text = "".join(traceback.format_exception(error)).rstrip()
        error.add_note(f"In the job's process {os.getpid()}:\n{text}")
        try:
            data = pickle.dumps(error)
            pickle.loads(data)
        except Exception:  # noqa: BLE001 - it is the application's class that decides what
            told = JobLost(f"job {self.job.name!r} raised what cannot be pickled:\n{text}")
            data = pickle.dumps(told)
        self._send(lines.ERROR, data)

    def _send(self, kind: bytes, payload: bytes) -> None:
        with contextlib.suppress(OSError), self.talker.line_lock:  # nobody may want it any more
            lines.send(self.line, kind, payload)

    def _leave(self) -> NoReturn:
        self.job.end()
        while jobs.starting or len(jobs.active) > len(jobs.late):  # what the function has spawned here
            gevent.sleep(OTHERS)
        self.talker.finish()
        leave(0)

    def _cancel(self, why: str) -> None:
        """In any thread: an exception now, and SIGKILL if that does not help."""
        if self.job.number not in jobs.active:
            return  # it has ended, and only what it spawned here still runs
        self.executioner.appoint(jobs.server.grace)
        if self.job.limit is not None:
            self.job.limit.end(JobCancelled(f"job {self.job.name!r} was cancelled{why}"))

    def _take_signals(self) -> None:
        forked.ignore(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1)
        # The master's own TERM often goes to the whole group; the master will say when it wants this process to go.
        signal.signal(signal.SIGTERM, self._on_term)
        forked.note_handler(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: Any) -> None:
        if not self.talker.has_master:
            self._cancel(": it got a SIGTERM")

    def _release(self) -> None:
        """In a child that the application has forked: it is no job (`worker.forked`)."""
        self.talker.abandon()
        self.birth.logs.forget()
        self.birth.run_dir.forget()
        self.birth.family.forget()

    def _retitle(self) -> None:
        whose = f" tenant {self.job.tenant}" if self.job.tenant else ""
        set_title(f"reuseport: job {self.birth.generation}.{self.job.name}{whose} [{self.birth.name}]")


class Talker:
    """The thread that talks. `cancel(why)` is called when the job is to end; `said` writes what the job prints."""

    def __init__(self, birth: Birth, line: Any, job: jobs.Job, cancel: Any, said: Said) -> None:
        self._birth = birth
        self._line: Any = line
        self._job = job
        self._cancel = cancel
        self._said = said
        self._channel: channels.Channel | None = None
        self._ledger = Ledger(self._say, self._has_room)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._told: Any = (None, "")
        self._begun = float("-inf")  # when the last channel was opened
        self._retry_at = self._report_at = 0.0
        self._news = True
        self._finishing = False
        self._may_begin = False
        allocate = original("_thread", "allocate_lock")
        self.line_lock = allocate()
        self._known, self._finished = allocate(), allocate()

    @property
    def has_master(self) -> bool:
        return self._channel is not None

    def start(self) -> None:
        """Returns when the master knows of this process, or there is none at the moment."""
        self._known.acquire()
        self._finished.acquire()
        jobs.changed = self._nudge
        jobs.lost = self._lost
        original("_thread", "start_new_thread")(self._run, ())
        self._known.acquire()

    def finish(self) -> None:
        """The master hears the last news, if there is one."""
        self._finishing = True
        self._nudge()
        self._finished.acquire(timeout=LAST_WORDS)

    def abandon(self) -> None:
        close(self._wake)
        for end in (self._channel, self._line):
            if end is not None:
                end.close()

    def _lost(self, one: jobs.Job, pid: int, why: str) -> bool:
        """A process that this job has asked for."""
        self._ledger.lost(one, pid, why)
        self._nudge()
        return self.has_master

    def _nudge(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            while not self._finishing:
                self._turn()
            self._news = True  # whether or not its nudge has been felt
            while not self._said_all():
                self._turn()
        except BaseException:  # noqa: BLE001 - a defect, which must not keep the job from its end
            traceback.print_exc()
            self._let_begin()
        self._finished.release()

    def _turn(self) -> None:
        now = time.monotonic()
        if self._channel is None and now >= self._retry_at:
            self._connect()
        if self._news and self._has_room() and (now >= self._report_at or self._finishing):
            self._report_at = now + REPORT
            self._news = not self._ledger.tell()
            self._tell_progress()
        if self._finishing and self._said_all():
            return
        times = [self._retry_at] if self._channel is None else []
        times += [self._report_at] if self._news and self._has_room() else []
        poll = original("select", "poll")()
        poll.register(self._wake, select.POLLIN)
        if self._line is not None:
            poll.register(self._line.fileno(), select.POLLIN)
        channel = self._channel
        if channel is not None:
            if channel.stalled:
                times.append(now + channels.STALLED)
            writes = channel.unsent and not channel.stalled
            poll.register(channel.fileno(), select.POLLIN | (select.POLLOUT if writes else 0))
        for fd, _ in poll.poll(max(0.0, min(times) - now) * 1000 + 1 if times else None):
            if fd == self._wake:
                os.eventfd_read(self._wake)
                self._news = True
            elif channel is not None and fd == channel.fileno():
                self._hear(channel)
            else:
                self._hear_asker()
        if self._channel is not None and self._channel.stalled:
            self._channel.flush()

    def _has_room(self) -> bool:
        return self._channel is None or not self._channel.unsent

    def _said_all(self) -> bool:
        return not self._news and self._has_room()

    def _connect(self) -> None:
        try:
            self._channel = self._birth.run_dir.reach_master()
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY
            if error.errno not in SHORTAGE:  # else there is a master, which has to know of the job before it begins
                self._let_begin()
            return
        self._begun = time.monotonic()
        self._channel.send(
            "hello",
            generation=self._birth.generation,
            number=FIRST_JOB + os.getpid(),
            state="working",
            slots=[],
            queue=False,
            logs=True,
        )
        self._ledger.forget()
        self._news = True

    def _say(self, kind: str, **fields: Any) -> None:
        if self._channel is not None:
            self._channel.send(kind, **fields)

    def _hear(self, channel: channels.Channel) -> None:
        channel.flush()
        for message, fds in channel.receive(messages.TO_JOB):
            if isinstance(message, messages.Logs):
                self._birth.logs.take(message.paths, fds)
                self._said.reopen()
            elif isinstance(message, messages.Reopen):
                self._birth.logs.forget()
                self._said.reopen()
            elif isinstance(message, messages.Known):
                self._let_begin()
            elif isinstance(message, messages.Drain):
                hooks.draining = True
            elif isinstance(message, messages.Quit):
                if not self._may_begin and self._line is not None:  # the job need not be lost
                    with contextlib.suppress(OSError):
                        lines.send(self._line, lines.AGAIN)
                os._exit(1)
        if channel.closed:
            if channel.given_up:
                sys.stderr.write(f"the channel to the master was ended: {channel.given_up}\n")
            channel.close()
            self._channel = None
            # Not at once after a hello that has just failed: its cause lasts, and two processes would be busy.
            self._retry_at = self._begun + RETRY
            if channel.fault is not None:
                sys.stderr.write(f"the master could not be understood: {channel.fault}\n")
                self._retry_at = time.monotonic() + RETRY
            self._let_begin()

    def _let_begin(self) -> None:
        self._may_begin = True
        if self._known.locked():
            with contextlib.suppress(RuntimeError):  # it has begun long ago
                self._known.release()

    def _hear_asker(self) -> None:
        piece = lines.receive(self._line)
        if piece is None:
            self._line = None  # it has died, or forgotten its handle
        elif piece[0] == lines.CANCEL:
            self._cancel("")

    def _tell_progress(self) -> None:
        now = (self._job.fraction, self._job.text)
        if now == self._told or self._line is None:
            return
        self._told = now
        poll = original("select", "poll")()
        poll.register(self._line.fileno(), select.POLLOUT)
        if poll.poll(0) and self.line_lock.acquire(blocking=False):  # an asker that does not listen stops nobody
            try:
                with contextlib.suppress(OSError):
                    lines.send(self._line, lines.PROGRESS, json.dumps(now).encode())
            finally:
                self.line_lock.release()
