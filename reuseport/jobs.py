"""Jobs: named pieces of work that may outlive their request, and that a drain waits for.

    with reuseport.job("export", tenant="acme") as job:
        for page in pages:
            ...
            job.progress(page / len(pages), f"page {page}")

    handle = reuseport.spawn(send_invoices, month, name="invoices", tenant="acme", where="process")

An old generation leaves when its requests and its jobs have ended; what was not registered it does not know of. Outside
a server a job is just code that runs, so tests and shells need nothing.

Jobs may begin and end in any greenlet or native thread. So the registry is one dict, whose changes the interpreter
makes atomic, and whoever must know of a change is told through `changed`, which has to be safe in any thread.

A job in a process of its own is forked from the generation's zygote, through a socket (the door) on which the zygote
waits. The worker that asks for it counts it among its own until a master knows the new process; from then on the job
has nothing to do with that worker, but for the handle.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from reuseport import hooks
from reuseport.deadlines import JobCancelled as JobCancelled
from reuseport.deadlines import JobTimeout as JobTimeout
from reuseport.deadlines import Limit
from reuseport.ipc import line as lines

F = TypeVar("F", bound=Callable[..., Any])

GREENLET, THREAD, PROCESS = "greenlet", "thread", "process"
THREADS = 1000  # native threads that jobs may occupy at once
KNOCK = 0.2  # seconds between two attempts to reach a zygote that starts again

active: dict[int, Job] = {}
late: dict[int, Job] = {}  # of the active ones, those that run on although their deadline and the grace have passed
starting: dict[int, Job] = {}  # jobs that have been asked for, and whose processes no master knows yet


def changed() -> None:
    """Called after each change, in whichever thread made it. A worker puts its own function here."""


def pins_nobody(tenant: str) -> Callable[[], None] | None:
    """A job of `tenant` begins, in any thread; what this returns is called at its end."""
    return None


pin = pins_nobody  # a worker that knows tenants puts its own function here


def nobody_notes(one: Job, begins: bool) -> None:
    """A job begins, and nothing of it has run; or it has ended. In any thread."""


note = nobody_notes  # a worker writes down here what it had begun if it is killed
tenant_now: ContextVar[str | None] = ContextVar("reuseport.tenant", default=None)  # whose request this code runs for


@dataclass
class Server:
    """What a worker, or a job's process, says about itself: the defaults are those of no server at all."""

    loop: Any = None  # gevent's, of the main thread
    door: str = ""  # where the zygote takes requests for processes
    patience: float = 0.0  # seconds to wait for a zygote that starts again
    timeout: float = 0.0  # seconds for jobs without a deadline of their own; 0: none
    grace: float = 30.0  # seconds between a deadline and force
    in_process: bool = False  # this is a job's process, whose loop may not turn for long
    begins_job: bool = False  # and it still runs its start hooks


server = Server()
current: ContextVar[Job | None] = ContextVar("reuseport_job", default=None)
_numbers = count(1)
_threads: Any = None


def overdue() -> list[Job]:
    """The jobs that run on although their deadline and the grace have passed."""
    return list(late.values())


class JobLost(Exception):
    """The job's process ended before the job did, or could not be had at all."""


class Job:
    """One run of a job, and what `status` shows of it. `started`: Unix time in seconds; `deadline`: seconds from then.

    Whatever must know of jobs in this process hooks in at `begin` and `end`.
    """

    def __init__(self, name: str, tenant: str | None = None, deadline: float | None = None, where: str = "") -> None:
        if deadline is not None and not deadline > 0:
            raise ValueError(f"a job's deadline is a number of seconds above 0, not {deadline!r}")
        limit = server.timeout if deadline is None else deadline
        self.name = name
        self.tenant = tenant_now.get() if tenant is None else tenant
        self._unpin: Callable[[], None] | None = None
        self.deadline = limit if 0 < limit < float("inf") else None
        self.where = where
        self.number = 0
        self.started = 0.0
        self.fraction: float | None = None
        self.text = ""
        self.overdue = False  # it runs on although its deadline and the grace have passed
        self.in_request = False  # what runs it is one of the greenlets that serve requests
        self.limit: Limit | None = None
        self.runner = 0  # the ident of the greenlet or thread whose `with` it is
        self.greenlet: Any = None  # what runs it in a native thread, if gevent is there

    def progress(self, fraction: float, text: str = "") -> None:
        """Say how far it is, from 0 to 1, and in words; `reuseport status` shows both. ValueError beyond 0 and 1."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"a job's progress lies between 0 and 1, not at {fraction!r}")
        self.fraction, self.text = fraction, text
        changed()

    def begin(self, registry: dict[int, Job] | None = None, started: float = 0.0) -> None:
        self.number = next(_numbers)
        self.started = started or time.time()
        if self.tenant is not None:
            self._unpin = pin(self.tenant)
        note(self, True)
        (active if registry is None else registry)[self.number] = self
        changed()

    def end(self) -> None:
        active.pop(self.number, None)
        late.pop(self.number, None)
        starting.pop(self.number, None)
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()
        note(self, False)
        changed()

    def bound(self, always: bool = False, overdue: bool = True) -> None:
        """From here to `unbound` the calling greenlet or thread is what its deadline ends; or `Handle.cancel`."""
        if self.deadline is not None:
            left = max(0.0, self.started + self.deadline - time.time())
            self.limit = Limit(left, server.grace, self._is_overdue if overdue else None)
            self.in_request = self.where == "" and self.limit.in_request
        elif always:
            self.limit = Limit(None)

    def unbound(self) -> None:
        if self.limit is not None:
            self.limit.close()

    def _is_overdue(self) -> None:
        if self.number in active:
            self.overdue = True
            late[self.number] = self
            changed()


def progress(fraction: float, text: str = "") -> None:
    """`Job.progress` of the job that the caller is in: of a spawned or decorated function, which has no Job at hand.

    Does nothing where there is none, so the same function can also be called plainly.
    """
    one = current.get()
    if one is not None:
        one.progress(fraction, text)


class job:
    """Context manager and decorator: the code inside, or the function, is a job of this name.

    `tenant` is the customer it works for, by default the one whose request this is (--tenant). As a context manager it
    gives the Job; a decorated function runs as a new job each time it is called. `deadline`: seconds after which
    JobTimeout is raised inside it; by default --job-timeout, and float("inf") for none whatever that says.
    """

    def __init__(self, name: str, tenant: str | None = None, deadline: float | None = None) -> None:
        self._name = name
        self._tenant = tenant
        self._deadline = deadline
        self._running: dict[int, list[Job]] = {}  # by greenlet or thread: it may be shared by many
        Job(name, tenant, deadline)  # what is wrong with them is said now

    def __enter__(self) -> Job:
        one = Job(self._name, self._tenant, self._deadline)
        one.runner = threading.get_ident()
        self._running.setdefault(one.runner, []).append(one)
        one.begin()
        if one.deadline is not None:
            one.bound()
        return one

    def __exit__(self, *error: object) -> None:
        who = threading.get_ident()
        one = self._running[who].pop()
        if not self._running[who]:
            del self._running[who]
        try:
            if one.limit is not None:
                one.unbound()
        finally:
            one.end()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with job(self._name, self._tenant, self._deadline) as one:
                before = current.set(one)
                try:
                    return function(*args, **kwargs)
                finally:
                    current.reset(before)

        return run  # type: ignore[return-value]


class Handle:
    """A spawned job. `job` is what `status` shows of it; `pid` that of its own process, once it has one."""

    def __init__(self, one: Job) -> None:
        self.job = one
        self.pid: int | None = None
        self._ended = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = JobCancelled(f"job {one.name!r} was cancelled")
        self._greenlet: Any = None
        self._line: socket.socket | None = None
        self._cancelled = False

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned, waiting for it; raises what it raised, JobTimeout, JobCancelled or JobLost.

        TimeoutError if it has not ended after `timeout` seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"job {self.job.name!r} has not ended within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        """Have it end by an exception; False for what has ended. It may take its time, and catch the exception.

        A greenlet gets gevent.GreenletExit where it waits, a native thread JobCancelled at its next line of Python, a
        process JobCancelled as well, and SIGKILL if it has not ended within --job-grace.
        """
        if self.done:
            return False
        self._cancelled = True
        if self._greenlet is not None:
            self._greenlet.kill(block=False)
        elif self.job.limit is not None:
            self.job.limit.end(JobCancelled(f"job {self.job.name!r} was cancelled"))
        elif self._line is not None:
            with contextlib.suppress(OSError):
                os.write(self._line.fileno(), lines.piece(lines.CANCEL))
        return True

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            try:
                current.set(self.job)
                if self.job.where == THREAD and "greenlet" in sys.modules:
                    self.job.greenlet = sys.modules["greenlet"].getcurrent()
                self.job.bound(always=self.job.where == THREAD)
                if self._cancelled:  # before there was anything that could be ended
                    raise JobCancelled(f"job {self.job.name!r} was cancelled")
                self._value = function(*args, **kwargs)
            finally:
                self.job.greenlet = None
                self.job.unbound()
            self._error = None
        except JobCancelled as error:
            self._error = error
        except Exception as error:  # noqa: BLE001
            # Whoever asks for the result gets it; but nobody may ever ask, so it is also printed.
            self._error = error
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            self.settle()

    def settle(self) -> None:
        """The job is over, even if it was cancelled before it could begin."""
        self.job.end()
        self._ended.set()

    # --- in a process of its own ------------------------------------------------------------------------------------

    def converse(self, call: bytes) -> None:
        """Ask the zygote for a process, and listen to it until it ends.

        What has not been heard of has not begun either: so it is asked for again.
        """
        give_up = time.monotonic() + server.patience
        try:
            while self.pid is None:
                if self._cancelled:
                    raise JobCancelled(f"job {self.job.name!r} was cancelled")
                error = self._attempt(call)
                if self.pid is None and (time.monotonic() >= give_up or (error and hooks.draining)):
                    raise JobLost(
                        f"job {self.job.name!r} is lost: no process could be forked for it ({error or 'none'})"
                    )
                if self.pid is None:
                    time.sleep(KNOCK)
        except JobCancelled as error:
            self._error = error
        except JobLost as error:
            self._error = error
            sys.stderr.write(f"{error}\n")  # there is no process that the master could report
        finally:
            self.settle()

    def _attempt(self, call: bytes) -> str:
        """Says why the zygote was not reached, "" if it was. A draining generation gets no other zygote."""
        head = {"name": self.job.name, "tenant": self.job.tenant, "deadline": self.job.deadline}
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(server.door)
            except OSError as error:
                return error.strerror or str(error)
            with contextlib.suppress(ConnectionError):
                lines.send(sock, lines.HEAD, json.dumps({**head, "started": self.job.started}).encode())
                lines.send(sock, lines.CALL, call)
                self._line = sock
                if self._cancelled:
                    lines.send(sock, lines.CANCEL)
                while (piece := lines.receive(sock)) is not None:
                    self._heard(*piece)
            self._line = None
        return ""

    def _heard(self, kind: bytes, payload: bytes) -> None:
        if kind == lines.KNOWN:
            self.pid = json.loads(payload)
            self._error = JobLost(f"job {self.job.name!r} is lost: its process {self.pid} has gone")
            self.job.end()
        elif kind == lines.PROGRESS:
            self.job.fraction, self.job.text = json.loads(payload)
        elif kind in (lines.VALUE, lines.ERROR):
            try:
                said = pickle.loads(payload)
            except Exception as error:  # noqa: BLE001
                self._error = JobLost(f"what job {self.job.name!r} gave cannot be unpickled here: {error!r}")
            else:
                self._value, self._error = (said, None) if kind == lines.VALUE else (None, said)
            self._ended.set()  # and not only when the process has gone


def spawn(
    function: Callable[..., Any],
    *args: Any,
    name: str | None = None,
    tenant: str | None = None,
    deadline: float | None = None,
    where: str = GREENLET,
    **kwargs: Any,
) -> Handle:
    """Call `function(*args, **kwargs)` as a job beside the request; returns at once, with a Handle.

    `where`: "greenlet"; "thread" for code that gevent cannot patch (it waits in C); or "process" for code that
    computes, or must survive its worker: it is forked from the generation's zygote, runs the start hooks, then the
    function.
    Function and arguments are pickled then, so the function must be importable by its name: TypeError if not.
    Outside a server a thread stands in for the process. Under --threads a greenlet is a native thread, too.

    `name` is the function's by default, `deadline` as with `job`. ValueError for another `where`.
    """
    if where not in (GREENLET, THREAD, PROCESS):
        raise ValueError(f"where is {GREENLET!r}, {THREAD!r} or {PROCESS!r}, not {where!r}")
    one = Job(name or getattr(function, "__name__", "job"), tenant, deadline, where)
    handle = Handle(one)
    if where == PROCESS:
        call = _pickled(one.name, function, args, kwargs)
        if "reuseport.zygote" in sys.modules:
            _start_process(handle, call)
            return handle
        one.where = where = THREAD
    one.begin()  # here and not where it runs: a drain that begins in between must see it
    try:
        _start(handle, where, lambda: handle.run(function, args, kwargs))
    except BaseException:
        one.end()
        raise
    return handle


def _pickled(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((function, args, kwargs))
    except Exception as error:
        raise TypeError(
            f"job {name!r}: where={PROCESS!r} needs a function that can be imported by its name, and arguments that "
            f"can be pickled: {error}"
        ) from error


def _start_process(handle: Handle, call: bytes) -> None:
    if not server.door:
        raise RuntimeError(
            f"job {handle.job.name!r}: where={PROCESS!r} works in a worker, not while the application is imported; "
            "@reuseport.on_start calls a function in each worker"
        )
    if server.begins_job:
        # Its start hooks are the workers', and would fork for ever. The workers' have spawned this job already.
        handle.settle()
        return
    handle.job.begin(starting)
    if server.loop is None or not _is_patched():
        # Where nothing is patched (--threads) the loop would stand still for as long as the job takes.
        threading.Thread(target=handle.converse, args=(call,), daemon=True).start()
    elif server.in_process:
        _thread_pool().spawn(handle.converse, call)
    else:
        # In the loop's thread, wherever this is called from: another thread's greenlets only run while that waits.
        import gevent

        server.loop.run_callback_threadsafe(gevent.spawn, handle.converse, call)


def _start(handle: Handle, where: str, run: Callable[[], None]) -> None:
    if "reuseport.zygote" not in sys.modules or not _is_patched():
        threading.Thread(target=run, name=f"job {handle.job.name}", daemon=True).start()
    elif where == GREENLET:
        import gevent

        handle._greenlet = gevent.spawn(run)
        handle._greenlet.link(lambda _: handle.settle())
    else:
        _thread_pool().spawn(run)


def _is_patched() -> bool:
    return bool(sys.modules["gevent.monkey"].is_module_patched("threading"))


def _thread_pool() -> Any:
    global _threads
    if _threads is None:
        from gevent.threadpool import ThreadPool

        _threads = ThreadPool(THREADS)
    return _threads
