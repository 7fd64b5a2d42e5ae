"""What a signal's handler of the application's raises, and where.

Python calls handlers in the main thread, between any two bytecodes, so they raise in whatever is at work there. Under
gevent that is seldom the code that they are meant for. In the server's own it could come between a system call and what
follows: a client that was accepted, or whose bytes were taken, would be forgotten, and the loop stops looking at a
descriptor whose callback has raised. No order of statements is safe from that, and nobody there could act on it.

So handlers are called through `Guarded`. What they raise while the application is at work is raised in it, as ever.
Otherwise it is reported like any error in the loop, a moment later, and what was interrupted goes on.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import wraps
from types import CodeType, FrameType
from typing import Any, TypeVar

import gevent.hub
from greenlet import getcurrent

_Function = TypeVar("_Function", bound=Callable[..., Any])

_applications: set[CodeType] = set()
_servers: set[CodeType] = set()


def calls_application(function: _Function) -> _Function:
    """Marks what calls the application, within a function of the server's, and copes with whatever comes of it."""
    _applications.add(function.__code__)
    return function


def is_server(function: _Function) -> _Function:
    """Marks what a greenlet of the server's own runs, in which nothing is to be raised."""
    _servers.add(function.__code__)
    return function


class Guarded:
    """A handler, called so that only the application gets what it raises."""

    __slots__ = ("handler",)

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except BaseException as error:
            if not _in_server(frame):
                raise
            hub = gevent.hub.get_hub()
            context = f"the handler of {_name(number)}"
            hub.loop.run_callback(hub.handle_error, context, type(error), error, error.__traceback__)


def _in_server(frame: FrameType | None) -> bool:
    """Whether the server is what this frame works for."""
    if isinstance(getcurrent(), gevent.hub.Hub):
        return True
    while frame is not None and frame.f_code not in _applications:
        if frame.f_code in _servers:
            return True
        frame = frame.f_back
    return False


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals only the first and the last have a name
        return f"signal {number}"


def guard() -> None:
    """From now on signal.signal sets handlers so. Before the application is imported, and after gevent's patches."""
    set_handler, get_handler = signal.signal, signal.getsignal

    @wraps(set_handler)
    def guarded(signalnum: Any, handler: Any) -> Any:
        if signalnum == signal.SIGINT and _is_debuggers(handler):
            return _bare(get_handler(signalnum))
        return _bare(set_handler(signalnum, Guarded(handler) if callable(handler) else handler))

    @wraps(get_handler)
    def bare(signalnum: Any) -> Any:
        return _bare(get_handler(signalnum))

    signal.signal, signal.getsignal = guarded, bare


def _is_debuggers(handler: Any) -> bool:
    """Whether it is pdb's, which that sets at `continue` (pdb.Pdb, `nosigint`). A Ctrl-C is meant for the master here,
    and would stop in the server's own code instead."""
    bdb = sys.modules.get("bdb")
    return bdb is not None and isinstance(getattr(handler, "__self__", None), bdb.Bdb)


def _bare(handler: Any) -> Any:
    return handler.handler if type(handler) is Guarded else handler
