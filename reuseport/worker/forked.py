"""A process that the application forks is no server.

The application can fork at any moment: while it is imported (in the zygote or in a worker), in a start hook, a warm-up,
a request, a job, a drain hook. multiprocessing's "fork", gevent's subprocess and os.forkpty fork, too. The rule for
such a child, whichever process forked it:

1. It holds no listener, no channel and no client of the server.
2. Only the code that forked goes on in it. Every other greenlet, watcher, timer and loop callback of the parent stays
   in the parent. Otherwise the child would finish requests that the parent finishes, too: an INSERT would happen twice.
3. When the code that forked returns to the server, the child exits.
4. A child of an import gets SIGTERM when the process that imported ends.
5. The signals that the server handles have their defaults in it, and the soft limit of open files is the one that the
   server was started with. The same holds in programs that the application executes (`ignore`, `worker.programs`).

gevent keeps its hub, its loop and all watchers over a fork, which is against rule 2. So the child gets a new hub with a
new loop. The old hub is never run again. The objects of the application that know it (locks, queues, sockets) go on to
the new hub, since the old one says that it is dead. A lock or an event can still name a greenlet of the parent as the
one to wake: a trace function of greenlet's sends each switch to such a greenlet back.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import gevent
import gevent.hub
import greenlet
from gevent import monkey
from gevent._hub_local import get_hub_class, get_hub_if_exists, set_hub

from reuseport import deadlines, jobs, spawned
from reuseport.ipc.stacks import LINES_SIGNAL, SNAPSHOT_SIGNAL, STACK_SIGNAL

from . import programs
from .said import end_lines

PR_SET_PDEATHSIG = 1  # prctl(2)
EVBREAK_CANCEL = 0  # libev: ev_run goes on
DEFECT = 70  # EX_SOFTWARE of sysexits.h: the child could not be made harmless

_get_native_id = monkey.get_original("_thread", "get_native_id")


class State:
    """What this process is.

    `own`: the server itself forks at this moment. `child`: the application has forked this process.
    """

    own = False
    child = False
    release: Callable[[], None] = staticmethod(lambda: None)
    hub: gevent.hub.Hub | None = None  # the main thread's, where it serves
    import_ends = False  # the children that are forked now end with this process
    forker = 0  # the pid that forks, if its main native thread does
    handlers: dict[int, Any] = {}  # noqa: RUF012 - one process has one state
    # What the parent's greenlets hang on. A greenlet that loses its last reference is resumed with GreenletExit, and
    # would run its `finally` blocks here.
    kept: list[Any] = []  # noqa: RUF012
    registered = False


# The signals that a server's process sets, and what they are in a new process. The application's own handlers stay.
_DEFAULTS: dict[int, Any] = {
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGUSR2: signal.SIG_DFL,
}


def guard(release: Callable[[], None], *, hub: gevent.hub.Hub | None = None, imports: bool = False) -> None:
    """From now on, what the application forks from this process follows the rule.

    `release()` is called in each such child. It closes the child's copies of the server's descriptors, and takes the
    server's hooks out of the application's API. `hub`: the main thread's, where requests run in it. `imports`: the
    application is being imported, so its children end with this process. A later call replaces an earlier one.
    """
    State.release, State.hub, State.import_ends = release, hub, imports
    if not State.registered:
        State.registered = True
        os.register_at_fork(before=_before, after_in_child=_after_in_child)


def import_is_over() -> None:
    """From now on the application's children may outlive this process."""
    State.import_ends = False


@contextlib.contextmanager
def own_fork() -> Iterator[None]:
    """What is forked inside is a process of the server's."""
    State.own = True
    parent = os.getpid()
    try:
        yield
    finally:
        State.own = False
        if os.getpid() != parent:
            _forget_siblings()


def _forget_siblings() -> None:
    """multiprocessing's exit handler would end, or wait for, the processes that the parent's import has started. Its
    own children forget them in the same way (multiprocessing/process.py, _bootstrap)."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        keep(*process._children)
        process._children.clear()


def is_child() -> bool:
    """Whether the application has forked this process."""
    return State.child


def end_if_child(error: BaseException | None = None) -> None:
    """The application's code returns to the server, or raises `error`: in a child that it has forked, exit."""
    if State.child:
        end(error)


def end(error: BaseException | None = None) -> NoReturn:
    """Exit as a child does whose function has returned or raised. The parent's exit handlers do not run."""
    status: Any = 0
    if isinstance(error, SystemExit):
        status = error.code
        if status is None:
            status = 0
        elif not isinstance(status, int):
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{status}\n")
            status = 1
    elif error is not None:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    end_lines()
    os._exit(status & 0xFF)


def _before() -> None:
    State.forker = os.getpid() if _get_native_id() == os.getpid() else 0


def _after_in_child() -> None:
    """In the child, before the fork returns to the application. Nothing may be raised from here: Python ignores it."""
    programs.renew()
    if State.own:
        return
    try:
        if not State.child:
            State.child = True
            keep(State.release, dict(jobs.active), dict(jobs.starting))
            State.release()
            _leave_jobs()
            _default_signals()
            if State.import_ends and State.forker:
                _end_with(State.forker)
            State.import_ends = False
        _leave_hub()
        programs.give_back()
    except BaseException:  # noqa: BLE001 - a child that is half a server would lose requests
        traceback.print_exc()
        os._exit(DEFECT)


def _leave_jobs() -> None:
    """The jobs are the parent's. A job that begins here is code that runs, as outside a server."""
    jobs.active.clear()
    jobs.starting.clear()
    jobs.late.clear()
    jobs.changed = _nothing
    jobs.note = jobs.nobody_notes
    jobs.lost = jobs.nobody_hears
    jobs.pin = jobs.pins_nobody
    jobs.server = jobs.Server(forked=True)
    spawned.forget_threads()


def _nothing() -> None:
    """No process wants to hear of a change."""


def keep(*things: Any) -> None:
    """In a child: never drop these. They may hold the last reference to a greenlet of the parent's."""
    State.kept.extend(things)


def note_handler(number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
    """`handler` is the server's: a child gets the default in its place."""
    State.handlers[number] = handler


def ignore(*numbers: int) -> None:
    """Let these signals do nothing in this process, and have their defaults in programs that it executes.

    execve(2) passes SIG_IGN on and resets a handler, in whichever way a library starts the program. A shell's trap
    cannot reset an ignored signal (POSIX, trap). System calls are restarted after such a signal where Linux does that
    (signal(7)).
    """
    for number in numbers:
        signal.signal(number, _ignored)
        signal.siginterrupt(number, False)
        note_handler(number, _ignored)


def _ignored(number: int, frame: FrameType | None) -> None:
    pass


def _default_signals() -> None:
    for number in (STACK_SIGNAL, LINES_SIGNAL):
        faulthandler.unregister(number)
    for number in (STACK_SIGNAL, SNAPSHOT_SIGNAL):
        signal.signal(number, signal.SIG_DFL)
    for number, default in _DEFAULTS.items():
        handler = signal.getsignal(number)
        if handler == State.handlers.get(number):
            signal.signal(number, default)
        elif handler == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)  # libev's handler is none of Python's


def _end_with(parent: int) -> None:
    """Get a SIGTERM when the parent's main thread ends. An exec keeps that setting (PR_SET_PDEATHSIG(2const))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it has ended before the call


# --- the hub --------------------------------------------------------------------------------------------------------


class _Left:
    """What the parent's hub becomes in the child: the objects that know it are sent on to the new one."""

    dead = True  # for gevent's locks, events and queues: they look for another hub then

    def switch(self, *args: Any) -> Any:
        return gevent.hub.get_hub().switch()

    def wait(self, watcher: Any) -> None:
        """For a socket that was made before the fork: its watchers belong to the old loop."""
        hub = gevent.hub.get_hub()
        mine = hub.loop.io(watcher.fd, watcher.events)
        try:
            hub.wait(mine)
        finally:
            mine.close()

    def cancel_wait(self, watcher: Any, error: Any, close_watcher: bool = False) -> None:
        """A greenlet that waits for it is the parent's."""

    def cancel_waits_close_and_then(self, watchers: Any, error: Any, then: Callable[..., Any], *args: Any) -> None:
        then(*args)


class _Trap:
    """A trace function of greenlet's. It sends each switch to a greenlet of the parent's back where it came from."""

    def __init__(self, ours: tuple[greenlet.greenlet, ...], left: tuple[greenlet.greenlet, ...]) -> None:
        self._hub = ours[0]
        self._ours = ours
        self._left = left

    def __call__(self, event: str, args: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        origin, target = args
        one: greenlet.greenlet | None = target
        while one is not None and not _is_one_of(one, self._left):
            if _is_one_of(one, self._ours):
                return
            one = one.parent
        # This runs on the target's stack, before any code of the target. So the target never goes on.
        while True:
            (self._hub if origin.dead else origin).switch()


def _is_one_of(one: greenlet.greenlet, several: tuple[greenlet.greenlet, ...]) -> bool:
    return any(one is other for other in several)


def _leave_hub() -> None:
    """Make a new hub, under which only the code that forked goes on."""
    greenlet.settrace(None)  # the parent's, if that is a child, too
    me = greenlet.getcurrent()
    mine = get_hub_if_exists()
    if me is mine:
        _end_with_callback(mine)
        return
    # In a native thread the main thread's hub is another one, or there is only that.
    left = tuple({id(hub): hub for hub in (mine, State.hub) if hub is not None and hub.loop is not None}.values())
    for hub in left:
        keep(hub, hub.loop)
        hub.__class__ = type(f"Left{type(hub).__name__}", (_Left, type(hub)), {})
        # A fork in a native thread finds the main thread in the middle of its poll, and libev remembers that.
        hub.loop.break_(EVBREAK_CANCEL)
        hub.loop.destroy()
    set_hub(None)
    deadlines.move(None)
    if not left or (mine is None and not monkey.is_module_patched("threading")):
        State.hub = None
        return
    # Only the default loop hears of children (libev, ev_child). Its place is free if the main thread's hub was left.
    new = get_hub_class()(default=True if State.hub in left or mine.main_hub else None)
    set_hub(new)
    for hub in left:
        hub.loop = new.loop
    for _ in range(new.loop.activecnt):
        # libev counts the watchers of a destroyed default loop as those of the next one. They would keep a loop that
        # has nothing to wait for from ending.
        new.loop.unref()
    new.handle_error = partial(_handle_error, new.handle_error)
    top = me
    while top.parent is not None and top.parent is not mine:
        top = top.parent
    ours: tuple[greenlet.greenlet, ...] = (new, top)
    if top.parent is None:
        new.parent = top
    else:
        main = top
        while main.parent is not None:
            main = main.parent
        relay = greenlet.greenlet(_relay, main)
        relay.switch(top, me)
        new.parent = relay
        ours += (relay,)
        # Not by LoopExit alone: gevent's os.close leaves a watcher that keeps an idle loop from ending.
        if isinstance(top, gevent.Greenlet):
            top.parent = new
            top.rawlink(lambda ended: end(ended.exception))
        else:
            over = greenlet.greenlet(_end_after, new)
            over.switch(me)
            top.parent = over
    # A greenlet that ends hands its value to its parent, and a hub that has not begun would take it for an argument.
    new.loop.run_callback(me.switch)
    new.switch()
    greenlet.settrace(_Trap(ours, left))
    State.hub = new
    deadlines.move(new.loop)


def _end_after(me: greenlet.greenlet) -> NoReturn:
    """The parent of the code that forked, where that is a plain greenlet: it goes on here when that code is over."""
    try:
        me.switch()
    except BaseException as error:  # noqa: BLE001 - it ends the process, as in a main greenlet
        end(error)
    end()


def _handle_error(handle: Callable[..., None], context: Any, kind: Any, value: Any, tb: Any) -> None:
    """A queue that was made before the fork wakes its getters by Waiter.switch, which refuses those of the parent."""
    if not (isinstance(value, AssertionError) and "Waiter.switch" in str(value)):
        handle(context, kind, value, tb)


def _relay(top: greenlet.greenlet, me: greenlet.greenlet) -> NoReturn:
    """The parent of the new hub, in the place of the main greenlet: what a hub throws at its parent arrives here."""
    go_on: Callable[[], Any] = me.switch
    while True:
        try:
            go_on()
        except gevent.hub.LoopExit as error:
            # Nothing can wake the child any more. The code that forked hears it, as a main greenlet would.
            waits = top if me.dead else me
            if waits.dead:
                end()
            go_on = partial(waits.throw, error)
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of any greenlet
            end(error)
        else:
            end()


def _end_with_callback(hub: gevent.hub.Hub) -> None:
    """The code that forked is a callback of the loop, so the loop cannot be exchanged below it. The child exits when
    the callback returns, before another greenlet runs."""

    def trap(event: str, args: tuple[greenlet.greenlet, greenlet.greenlet]) -> None:
        if args[1] is not hub:
            end()

    greenlet.settrace(trap)
    hub.loop.run_callback(end)
