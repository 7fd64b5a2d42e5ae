"""Jobs: named pieces of work that may outlive their request, and that a drain waits for.

    with reuseport.job("export", tenant="acme") as job:
        for page in pages:
            ...
            job.progress(page / len(pages), f"page {page}")

    handle = reuseport.spawn(send_invoices, month, name="invoices", tenant="acme")

An old generation leaves when its requests and its jobs have ended; what was not registered it does not know of. Outside
a server a job is just code that runs, so tests and shells need nothing.

Jobs may begin and end in any greenlet or native thread. So the registry is one dict, whose changes the interpreter
makes atomic, and whoever must know of a change is told through `changed`, which has to be safe in any thread.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

GREENLET, THREAD = "greenlet", "thread"
THREADS = 1000  # native threads that jobs may occupy at once

active: dict[int, Job] = {}


def changed() -> None:
    """Called after each change, in whichever thread made it. A worker puts its own function here."""


def pins_nobody(tenant: str) -> Callable[[], None] | None:
    """A job of `tenant` begins, in any thread; what this returns is called at its end."""
    return None


pin = pins_nobody  # a worker that knows tenants puts its own function here
tenant_now: ContextVar[str | None] = ContextVar("reuseport.tenant", default=None)  # whose request this code runs for

_numbers = count(1)
_threads: Any = None


class JobCancelled(Exception):
    """The job was ended before it had a result."""


class Job:
    """One run of a job, and what `status` shows of it. `started`: Unix time in seconds."""

    def __init__(self, name: str, tenant: str | None = None) -> None:
        self.name = name
        self.tenant = tenant_now.get() if tenant is None else tenant
        self._unpin: Callable[[], None] | None = None
        self.number = 0
        self.started = 0.0
        self.fraction: float | None = None
        self.text = ""

    def progress(self, fraction: float, text: str = "") -> None:
        """Say how far it is, from 0 to 1, and in words; `reuseport status` shows both. ValueError beyond 0 and 1."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"a job's progress lies between 0 and 1, not at {fraction!r}")
        self.fraction, self.text = fraction, text
        changed()

    def begin(self) -> None:
        self.number = next(_numbers)
        self.started = time.time()
        if self.tenant is not None:
            self._unpin = pin(self.tenant)
        active[self.number] = self
        changed()

    def end(self) -> None:
        active.pop(self.number, None)
        unpin, self._unpin = self._unpin, None
        if unpin is not None:
            unpin()
        changed()


class job:
    """Context manager and decorator: the code inside, or the function, is a job of this name.

    `tenant` is the customer it works for, by default the one whose request this is (--tenant). As a context manager it
    gives the Job; a decorated function runs as a new job each time it is called.
    """

    def __init__(self, name: str, tenant: str | None = None) -> None:
        self._name = name
        self._tenant = tenant
        self._running: list[Job] = []

    def __enter__(self) -> Job:
        one = Job(self._name, self._tenant)
        self._running.append(one)
        one.begin()
        return one

    def __exit__(self, *error: object) -> None:
        self._running.pop().end()

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with job(self._name, self._tenant):
                return function(*args, **kwargs)

        return run  # type: ignore[return-value]


class Handle:
    """A spawned job. `job` is what `status` shows of it."""

    def __init__(self, one: Job) -> None:
        self.job = one
        self._ended = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = JobCancelled(f"job {one.name!r} was cancelled")
        self._greenlet: Any = None

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned, waiting for it; raises what it raised, or JobCancelled.

        TimeoutError if it has not ended after `timeout` seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"job {self.job.name!r} has not ended within {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        """End it by an exception (gevent.GreenletExit) at the point where it waits. False for what has ended, and for
        a native thread, which nothing can end from outside."""
        if self.done or self._greenlet is None:
            return False
        self._greenlet.kill(block=False)
        return True

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._value = function(*args, **kwargs)
            self._error = None
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


def spawn(
    function: Callable[..., Any],
    *args: Any,
    name: str | None = None,
    tenant: str | None = None,
    where: str = GREENLET,
    **kwargs: Any,
) -> Handle:
    """Call `function(*args, **kwargs)` as a job beside the request; returns at once, with a Handle.

    `where`: "greenlet", or "thread" for code that gevent cannot patch (it computes, or waits in C). Under --threads
    nothing is patched, and both are a native thread. `name` is the function's by default. ValueError for another
    `where`.
    """
    if where not in (GREENLET, THREAD):
        raise ValueError(f"where is {GREENLET!r} or {THREAD!r}, not {where!r}")
    one = Job(name or getattr(function, "__name__", "job"), tenant)
    one.begin()  # here and not where it runs: a drain that begins in between must see it
    handle = Handle(one)
    try:
        _start(handle, where, lambda: handle.run(function, args, kwargs))
    except BaseException:
        one.end()
        raise
    return handle


def _start(handle: Handle, where: str, run: Callable[[], None]) -> None:
    if "reuseport.zygote" not in sys.modules or not sys.modules["gevent.monkey"].is_module_patched("threading"):
        threading.Thread(target=run, name=f"job {handle.job.name}", daemon=True).start()
    elif where == GREENLET:
        import gevent

        handle._greenlet = gevent.spawn(run)
        handle._greenlet.link(lambda _: handle.settle())
    else:
        global _threads
        if _threads is None:
            from gevent.threadpool import ThreadPool

            _threads = ThreadPool(THREADS)
        _threads.spawn(run)
