"""What a signal's handler of the application's raises, and where.

Python calls handlers in the main thread, between any two bytecodes, so they raise in whatever is at work there. Under
gevent that is seldom the code that they are meant for. In the server's own it could come between a system call and what
follows: a client that was accepted, or whose bytes were taken, would be forgotten, and the loop stops looking at a
descriptor whose callback has raised. No order of statements is safe from that, and nobody there could act on it.

So handlers are called through `Guarded`. What they raise while the application is at work is raised in it, as ever.
Otherwise it is reported like any error in the loop, a moment later, and what was interrupted goes on. Between two
greenlets, in a function of greenlet.settrace, an exception would remove that function. The greenlet that goes on there
gets the exception when it waits next (`raise_later`).
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
_switches: set[CodeType] = set()


def calls_application(function: _Function) -> _Function:
    """Marks what calls the application, within a function of the server's, and copes with whatever comes of it."""
    _applications.add(function.__code__)
    return function


def is_server(function: _Function) -> _Function:
    """Marks what a greenlet of the server's own runs, in which nothing is to be raised."""
    _servers.add(function.__code__)
    return function


def is_switch(function: _Function) -> _Function:
    """Marks a function that greenlet calls at each switch, and removes when it raises."""
    _switches.add(function.__code__)
    return function


def raise_later(target: Any, context: str, error: BaseException) -> None:
    """Raise it in a greenlet of this thread when that waits for something; report it if that works for the server."""
    hub = gevent.hub.get_hub()
    hub.loop.run_callback(_raise_waiting, hub, target, context, error)


def _raise_waiting(hub: gevent.hub.Hub, target: Any, context: str, error: BaseException) -> None:
    if target is hub or target.dead or _innermost(target.gr_frame) is _servers:
        hub.handle_error(context, type(error), error, error.__traceback__)
    else:
        target.throw(error)


class Guarded:
    """A handler, called so that only the application gets what it raises."""

    __slots__ = ("handler",)

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except BaseException as error:
            context = f"the handler of {_name(number)}"
            place = _innermost(frame)
            if isinstance(getcurrent(), gevent.hub.Hub) or place is _servers:
                hub = gevent.hub.get_hub()
                hub.loop.run_callback(hub.handle_error, context, type(error), error, error.__traceback__)
            elif place is _switches:
                raise_later(getcurrent(), context, error)
            else:
                raise


def _innermost(frame: FrameType | None) -> set[CodeType]:
    """Whether the application, the server or a switch is what this frame works for: its set of marked functions."""
    while frame is not None:
        for marked in (_applications, _servers, _switches):
            if frame.f_code in marked:
                return marked
        frame = frame.f_back
    return _applications


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
