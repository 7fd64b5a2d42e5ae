"""Jobs that run beside whoever begins them: in a greenlet, a native thread, or a process of their own.

    handle = reuseport.spawn(send_invoices, month, name="invoices", tenant="acme", where="process")

A job in a process of its own is forked from the generation's zygote, through a socket (the door) on which the zygote
waits. The worker that asks for it counts it among its own until a master knows the new process; from then on the job
has nothing to do with that worker, but for the handle.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from reuseport import hooks, jobs, values
from reuseport.deadlines import JobCancelled, for_library, in_library, plain
from reuseport.ipc import line as lines
from reuseport.jobs import GREENLET, PROCESS, THREAD

THREADS = 1000  # native threads that jobs may occupy at once
KNOCK = 0.2  # seconds between the first two attempts to reach a zygote that starts again
SLOW_KNOCK = 1.0  # seconds between two later ones

_threads: Any = None


class JobLost(Exception):
    """The job's process ended before the job did, or could not be had at all."""


class Handle:
    """A spawned job. `job` is what `status` shows of it; `pid` that of its own process, once it has one."""

    def __init__(self, one: jobs.Job) -> None:
        self.job = one
        self.pid: int | None = None
        self._ended = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = JobCancelled(f"job {one.name!r} was cancelled")
        self._greenlet: Any = None
        self._line: socket.socket | None = None
        self._taken = 0  # the pid of the process that has the call and has not begun it
        self._cancelled = False

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned, waiting for it; raises what it raised, JobTimeout, JobCancelled or JobLost.

        TimeoutError if it has not ended after `timeout` seconds, which may be any real number (TypeError, ValueError).
        """
        seconds = None if timeout is None else values.number(timeout, "a timeout is a number of seconds")
        if not self._ended.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX)):
            raise TimeoutError(f"job {self.job.name!r} has not ended within {seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        """Have it end by an exception; False for what has ended. It may take its time, and catch the exception.

        A greenlet gets gevent.GreenletExit where it waits, or JobCancelled where a library waits for it. If that
        greenlet still runs after half of --job-grace, because it caught JobCancelled, it gets GreenletExit. A native
        thread gets JobCancelled at its next line of Python. A process gets JobCancelled as well, and SIGKILL if it has
        not ended within --job-grace.
        """
        if self.done:
            return False
        self._cancelled = True
        if self._greenlet is not None:
            ending = _exit_for(self._greenlet, self.job)
            self._greenlet.kill(ending, block=False)
            if isinstance(ending, Exception):
                self._greenlet.parent.loop.run_callback_threadsafe(self._insist_later)
        elif self.job.limit is not None:
            self.job.limit.end(JobCancelled(f"job {self.job.name!r} was cancelled"))
        elif self._line is not None:
            with contextlib.suppress(OSError):
                os.write(self._line.fileno(), lines.piece(lines.CANCEL))
        return True

    def _insist_later(self) -> None:
        """In the hub of the greenlet: after half the grace, raise what no `except Exception` of the job catches."""
        timer = self._greenlet.parent.loop.timer(jobs.server.grace / 2, ref=False)
        timer.start(lambda: self._greenlet.kill(block=False))

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            try:
                jobs.current.set(self.job)
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
            self._error = plain(error)
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

        A process that ends before it has taken the call has not begun it, so another one is asked for. A process that
        ends between that and the function's first line would most likely end there again, so the job is lost.
        """
        give_up = time.monotonic() + jobs.server.patience
        pause = KNOCK
        try:
            while self.pid is None:
                if self._cancelled:
                    raise JobCancelled(f"job {self.job.name!r} was cancelled")
                error = self._attempt(call)
                if self.pid is not None:
                    break
                if self._taken:
                    self._is_lost("ended before the function began")
                    break
                if time.monotonic() >= give_up or (error and hooks.draining):
                    self._is_lost(f"no process could be forked for it ({error or 'none'})")
                    break
                time.sleep(pause)
                pause = min(2 * pause, SLOW_KNOCK)
        except JobCancelled as error:
            self._error = error
        finally:
            self.settle()

    def _is_lost(self, why: str) -> None:
        """No function has run. The master is told, because it may never have heard of a process."""
        which = f"its process {self._taken} {why}" if self._taken else why
        self._error = JobLost(f"job {self.job.name!r} is lost: {which}")
        if not jobs.lost(self.job, self._taken, why):
            sys.stderr.write(f"{self._error}\n")

    def _attempt(self, call: bytes) -> str:
        """Says why the zygote was not reached, "" if it was. A draining generation gets no other zygote."""
        head = {"name": self.job.name, "tenant": self.job.tenant, "deadline": self.job.deadline}
        self._taken = 0
        try:
            sock = socket.socket(socket.AF_UNIX)
        except OSError as error:
            return error.strerror or str(error)  # no descriptors are left
        with sock:
            try:
                sock.connect(jobs.server.door)
            except OSError as error:
                return error.strerror or str(error)
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid not in (0, os.geteuid()):
                return f"what listens there belongs to user {uid}"  # it would get the pickle, and answer with one
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
        if kind == lines.TAKEN:
            self._taken = json.loads(payload)
        elif kind == lines.AGAIN:
            self._taken = 0
        elif kind == lines.KNOWN:
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

    `name` is the function's by default, `deadline` as with `job`. TypeError for a `function` that cannot be called,
    ValueError for another `where`, and the errors of `Job` for the other values.
    """
    values.function(function, "what reuseport.spawn calls")
    if where not in (GREENLET, THREAD, PROCESS):
        raise ValueError(f"where is {GREENLET!r}, {THREAD!r} or {PROCESS!r}, not {where!r}")
    one = jobs.Job(_name_of(function) if name is None or name == "" else name, tenant, deadline, where)
    handle = Handle(one)
    if where == PROCESS:
        call = _pickled(one.name, function, args, kwargs)
        if _in_server():
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


def _exit_for(greenlet: Any, job: jobs.Job) -> Any:
    """What ends a greenlet: its library's clean-up handles every Exception (see `reuseport.deadlines`)."""
    if in_library(greenlet.gr_frame):
        return for_library(JobCancelled(f"job {job.name!r} was cancelled"))
    return sys.modules["gevent"].GreenletExit


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else "job"


def _pickled(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps((function, args, kwargs))
    except Exception as error:
        raise TypeError(
            f"job {name!r}: where={PROCESS!r} needs a function that can be imported by its name, and arguments that "
            f"can be pickled: {error}"
        ) from error


def _start_process(handle: Handle, call: bytes) -> None:
    if jobs.server.forked:
        raise RuntimeError(
            f"job {handle.job.name!r}: where={PROCESS!r} works in a worker, not in a process that the application has "
            "forked: no drain waits for that process, so the job could be lost. Spawn the job before the fork"
        )
    if not jobs.server.door:
        raise RuntimeError(
            f"job {handle.job.name!r}: where={PROCESS!r} works in a worker, not while the application is imported; "
            "@reuseport.on_start calls a function in each worker"
        )
    if jobs.server.begins_job:
        # Its start hooks are the workers', and would fork for ever. The workers' have spawned this job already.
        handle.settle()
        return
    handle.job.begin(jobs.starting)
    if jobs.server.loop is None or not _is_patched():
        # Where nothing is patched (--threads) the loop would stand still for as long as the job takes.
        threading.Thread(target=handle.converse, args=(call,), daemon=True).start()
    elif jobs.server.in_process:
        _thread_pool().spawn(handle.converse, call)
    else:
        # In the loop's thread, wherever this is called from: another thread's greenlets only run while that waits.
        import gevent

        jobs.server.loop.run_callback_threadsafe(gevent.spawn, handle.converse, call)


def _start(handle: Handle, where: str, run: Callable[[], None]) -> None:
    if not _in_server() or not _is_patched():
        threading.Thread(target=run, name=f"job {handle.job.name}", daemon=True).start()
    elif where == GREENLET:
        import gevent

        handle._greenlet = gevent.spawn(run)
        handle._greenlet.link(lambda _: handle.settle())
    else:
        _thread_pool().spawn(run)


def _in_server() -> bool:
    """Whether this process is the server's. A process that only imports the server's modules is not."""
    entry = sys.modules.get("reuseport.entry")
    return entry is not None and entry.entered


def _is_patched() -> bool:
    return bool(sys.modules["gevent.monkey"].is_module_patched("threading"))


def forget_threads() -> None:
    """In a process that the application has forked: the threads are the parent's."""
    global _threads
    _threads = None


def _thread_pool() -> Any:
    global _threads
    if _threads is None:
        from gevent.threadpool import ThreadPool

        _threads = ThreadPool(THREADS)
    return _threads
