"""Ending a job from outside: at its deadline, or because somebody cancels it.

An exception is raised inside the job, so that it can clean up. How that is done depends on what runs it:

- a greenlet of the loop's thread gets it where it waits. One that does not wait, and so keeps the loop from turning, is
  interrupted by a signal after PRESS seconds: Python runs signal handlers between two bytecodes of the main thread;
- a native thread gets it at its next bytecode (PyThreadState_SetAsyncExc), which comes after what it waits for in C. If
  it waits in a loop of gevent instead, the greenlet that waits there gets it.

Libraries guard their state by `except Exception`: psycopg_pool takes a waiting client out of its queue there, and
pymemcache closes a connection whose answer was not read. An exception of another kind leaves the pool without the
connection, and the client with another request's answer. So code of an installed library gets an exception that is also
an Exception (`_InLibrary`). Code that catches it and goes on gets the plain one after half the grace.

What goes on all the same is overdue after a while, and whoever can do more about it is told.

One native thread keeps the time, since a loop may stand still. It begins with the first deadline. The locks are
those that gevent has not patched: they are held for moments, and never across a switch.
"""

from __future__ import annotations

import _thread  # noqa: F401 - for `original`
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

DEADLINE_SIGNAL = signal.SIGRTMIN + 6
PRESS = 0.1  # seconds for a greenlet to come to a point where it waits
NEVER = float("inf")
LONGEST_WAIT = 3600.0  # seconds that a lock is waited for at once
WAITS_FOR_OTHERS = frozenset({"gevent", "greenlet", "reuseport"})  # packages that say nothing about whose code waits
INSTALLED = ("/site-packages/", "/dist-packages/")


class JobCancelled(BaseException):
    """The job was ended before it had a result: raised inside it, and by `Handle.result`.

    No Exception, as with asyncio.CancelledError: what a job retries or ignores must not be its own end.
    """


class JobTimeout(JobCancelled):
    """The job's deadline has passed."""

    def __init__(self, text: str = "its deadline has passed") -> None:
        super().__init__(text)


class _InLibrary(Exception):
    """What ends a job while it runs code of a library."""


class JobCancelledInLibrary(JobCancelled, _InLibrary):
    """JobCancelled for the clean-up of a library, which handles every Exception."""


class JobTimeoutInLibrary(JobTimeout, _InLibrary):
    """JobTimeout for the clean-up of a library, which handles every Exception."""


def for_library(error: JobCancelled) -> JobCancelled:
    """The same error as an Exception."""
    return (JobTimeoutInLibrary if isinstance(error, JobTimeout) else JobCancelledInLibrary)(*error.args)


def plain(error: JobCancelled) -> JobCancelled:
    """The same error as the code beyond the job knows it: no Exception."""
    if not isinstance(error, _InLibrary):
        return error
    kind = JobTimeout if isinstance(error, JobTimeout) else JobCancelled
    return kind(*error.args).with_traceback(error.__traceback__)


def in_library(frame: Any) -> bool:
    """Whether the code at work in `frame` is a library's: a package that is installed, and not the application's own.

    Modules of the standard library, of gevent and of the server work for their callers, so the innermost other frame
    decides.
    """
    while frame is not None:
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if top not in WAITS_FOR_OTHERS and top not in sys.stdlib_module_names:
            return top != _Home.package and any(part in frame.f_code.co_filename for part in INSTALLED)
        frame = frame.f_back
    return False


def original(module: str, name: str) -> Any:
    """A function of the standard library as it is without gevent's patches."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(sys.modules[module], name)


class _Home:
    """The thread whose greenlets can be reached, with its loop; none outside a server."""

    thread = 0
    loop: Any = None
    package = ""  # the application's, which may be installed


def attach(loop: Any, package: str = "") -> None:
    """Called in the main thread, which runs `loop`: from now on its greenlets can be reached.

    `package` is the application's top-level package: it is no library, wherever it lies.
    """
    _Home.thread, _Home.loop, _Home.package = original("_thread", "get_ident")(), loop, package
    signal.signal(DEADLINE_SIGNAL, _interrupt)


def move(loop: Any) -> None:
    """In a process that the application has forked: the calling thread runs `loop`, None for no loop at all."""
    _Home.thread, _Home.loop = original("_thread", "get_ident")() if loop is not None else 0, loop


class Limit:
    """Bounds what the calling greenlet or thread does from here to `close`.

    `seconds` until JobTimeout is raised in it, None for never; `overdue()` is called, in a thread of its own, if it is
    not closed `grace` seconds after that.
    """

    def __init__(self, seconds: float | None, grace: float = 0.0, overdue: Callable[[], None] | None = None) -> None:
        self._thread = original("_thread", "get_ident")()
        current = sys.modules["greenlet"].getcurrent() if "greenlet" in sys.modules else None
        self._greenlet = current if self._thread == _Home.thread else None
        self._native = current if self._greenlet is None else None  # the thread may have a loop of gevent
        self._lock = original("_thread", "allocate_lock")()
        self._grace = grace
        self._overdue = overdue
        self._error: JobCancelled | None = None  # what is to be raised, and has not been yet
        self._raised = False  # in a native thread
        self._closed = False
        self._landed = False  # the exception was raised
        self.was_in_library = False  # as an Exception, so code may have caught it by accident
        self._insists = False
        self._acts: list[tuple[float, Callable[[], None]]] = []
        if seconds is not None:
            self._schedule(time.monotonic() + seconds, JobTimeout())

    @property
    def due(self) -> float:
        """When the next act is; monotonic seconds."""
        try:
            return self._acts[0][0]
        except IndexError:
            return NEVER

    @property
    def in_request(self) -> bool:
        """Whether it was made in a greenlet that serves requests: those are no greenlets of gevent's class."""
        plain = sys.modules["greenlet"].greenlet if self._greenlet is not None else None
        return plain is not None and type(self._greenlet) is plain and self._greenlet.parent is not None

    def end(self, error: JobCancelled) -> None:
        """Raise this in it now. For any thread."""
        with self._lock:
            if not self._closed:
                self._schedule(time.monotonic(), error)

    def close(self) -> None:
        """It has ended: nothing is raised in it any more. For the greenlet or thread itself."""
        try:
            self._close()
        except JobCancelled:
            self._close()  # it came just now, and for the last time
            raise

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._greenlet = self._native = self._error = None
            if self._raised:
                _raise_in_thread(self._thread, None)
        _clock.drop(self)

    def _schedule(self, at: float, error: JobCancelled) -> None:
        self._acts = [(at, lambda: self._raise(error)), (at + self._grace / 2, lambda: self._insist(error))]
        if self._greenlet is not None:
            self._acts.append((at + min(PRESS, self._grace / 2 or PRESS), self._press))
        if self._overdue is not None:
            self._acts.append((at + self._grace, self._overdue))
        self._acts.sort(key=lambda act: act[0])
        _clock.add(self)

    def act(self, now: float) -> None:
        """Do what is due. In the clock's thread."""
        while not self._closed and self.due <= now:
            self._acts.pop(0)[1]()

    def _raise(self, error: JobCancelled) -> None:
        with self._lock:
            if self._closed:
                return
            if self._greenlet is None:
                frame = sys._current_frames().get(self._thread)
                if (hub := _hub_at(frame)) is not None:
                    hub.loop.run_callback_threadsafe(self._throw_natively, error)
                    return
                self._raised = True
                suited = self._suited(error, frame)
                _raise_in_thread(self._thread, type(suited) if suited is error else self._noting(type(suited)))
                return
            self._error = error
        _Home.loop.run_callback_threadsafe(self._throw)

    def _throw(self) -> None:
        """In the hub: so the greenlet waits for something."""
        if self._error is not None and self._greenlet is not None:
            greenlet, error, self._error = self._greenlet, self._error, None
            greenlet.throw(self._suited(error, greenlet.gr_frame))

    def _throw_natively(self, error: JobCancelled) -> None:
        """In the hub of a native thread: what is raised in the hub itself would end its loop."""
        greenlet = self._native
        if greenlet is not None and not self._closed and greenlet.gr_frame is not None:
            suited = self._suited(error, greenlet.gr_frame)
            self._landed = True
            greenlet.throw(suited)

    def _suited(self, error: JobCancelled, frame: Any) -> JobCancelled:
        """What is to be raised in `frame`."""
        self._landed = self._greenlet is not None
        if self._insists or not in_library(frame):
            return error
        self.was_in_library = True
        return for_library(error)

    def _noting(self, kind: type[JobCancelled]) -> type[JobCancelled]:
        """A thread makes the exception from its class when it comes back from C, which may be much later."""

        def note(one: JobCancelled, *args: Any) -> None:
            kind.__init__(one, *args)
            self._landed = True

        return type(kind.__name__, (kind,), {"__init__": note})

    def _insist(self, error: JobCancelled) -> None:
        """Half the grace has passed: code that has caught the first exception is not to catch this one."""
        now = time.monotonic()
        if self.was_in_library and self._landed:
            self._insists = True
            self._raise(error)
            self._acts.append((now + PRESS, self._press))
        elif self.was_in_library or (self._greenlet is not None and not self._landed):
            self._acts.append((now + max(PRESS, self._grace / 2), lambda: self._insist(error)))
        self._acts.sort(key=lambda act: act[0])

    def _press(self) -> None:
        if self._error is not None:
            signal.pthread_kill(_Home.thread, DEADLINE_SIGNAL)

    def interrupt(self, frame: Any) -> None:
        """In the main thread, at any bytecode of `frame`: raises if this is the greenlet that is at work."""
        if self._error is not None and self._greenlet is sys.modules["greenlet"].getcurrent():
            error, self._error = self._error, None
            raise self._suited(error, frame)


def _hub_at(frame: Any) -> Any:
    """The hub of gevent whose loop the thread of `frame` runs, because its greenlets wait; None for another thread."""
    kind = getattr(sys.modules.get("gevent.hub"), "Hub", None)
    while kind is not None and frame is not None:
        if frame.f_code is kind.run.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _interrupt(number: int, frame: Any) -> None:
    # No lock: the thread may have been interrupted while it held it.
    for limit in _clock.limits():
        limit.interrupt(frame)


def _raise_in_thread(thread: int, error: type[BaseException] | None) -> None:
    """Have it raised there; None takes back what has not been raised yet."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)


class _Clock:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Also in a forked child, where the thread is not, and whose deadlines are its parent's."""
        allocate = original("_thread", "allocate_lock")
        self._lock = allocate()
        self._wake = allocate()
        self._wake.acquire()
        self._limits: set[Limit] = set()
        self._next = NEVER
        self._runs = False

    def limits(self) -> tuple[Limit, ...]:
        return tuple(self._limits)

    def add(self, limit: Limit) -> None:
        with self._lock:
            self._limits.add(limit)
            if not self._runs:
                self._runs = True
                original("_thread", "start_new_thread")(self._run, ())
            elif limit.due < self._next and self._wake.locked():
                self._next = limit.due
                self._wake.release()

    def drop(self, limit: Limit) -> None:
        with self._lock:
            self._limits.discard(limit)

    def _run(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                due = [limit for limit in self._limits if limit.due <= now]
                self._next = min((limit.due for limit in self._limits), default=NEVER)
            for limit in due:
                try:
                    limit.act(now)
                except Exception:  # noqa: BLE001 - a defect, which costs one deadline and not all of them
                    traceback.print_exc()
            if not due:
                self._wake.acquire(timeout=max(0.0, min(self._next - now, LONGEST_WAIT)))


_clock = _Clock()
os.register_at_fork(after_in_child=_clock.reset)
