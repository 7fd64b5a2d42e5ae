"""asyncio in greenlets: each greenlet has a running event loop of its own, or none.

asyncio keeps the running loop for each native thread, and all greenlets of a worker share one thread. gevent's selector
lets other greenlets run while a loop waits. They found that loop running: `asyncio.run` raised RuntimeError in all
but the first of them, and so did Flask's and Django's async views. Django's ORM raised SynchronousOnlyOperation in
ordinary views.

So while a loop runs in some greenlet, each switch between greenlets takes the running loop and the current task along
(greenlet.settrace). While any loop runs, each greenlet switch of the worker takes about 1.5 us instead of 0.5.
Without a running loop, nothing is traced.

greenlet removes a trace function that raises. A tracer can raise RecursionError, because greenlet calls it on the stack
of the application, or the exception of a signal's handler. So the tracer delivers its errors later. If the call of the
tracer fails before its first line, the hub installs it again (`_Tracer._revive`).

`install` changes asyncio when the application imports it, because many applications never do.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import gevent.hub
import greenlet
from gevent import monkey
from greenlet import getcurrent

from reuseport.worker import interrupts

MODULE = "asyncio.base_events"  # it calls what `_adapt` replaces, through the module that has it


def install() -> None:
    """From now on greenlets of this thread can run event loops side by side. For a process that gevent has patched."""
    if MODULE in sys.modules:
        _adapt()
    elif not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds MODULE as it lies, and has asyncio adapted behind its import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _adapt()


def _adapt() -> None:
    events = sys.modules["asyncio.events"]
    if not isinstance(events._set_running_loop, _SetRunningLoop):
        events._set_running_loop = _SetRunningLoop(events)
    if (package := sys.modules.get("asyncio")) is not None:
        package._set_running_loop = events._set_running_loop


class _SetRunningLoop:
    """asyncio's function of this name, which an event loop calls when it begins to run, and with None at its end."""

    def __init__(self, events: Any) -> None:
        self._events = events
        self._set = events._set_running_loop
        self._get_thread = monkey.get_original("_thread", "get_ident")
        self._tracers: dict[int, _Tracer] = {}  # of the native threads in which loops run

    def __call__(self, loop: Any) -> None:
        self._set(loop)
        thread = self._get_thread()
        tracer = self._tracers.get(thread)
        if loop is not None:
            if tracer is None:
                tracer = self._tracers[thread] = _Tracer(self._events._get_running_loop, self._set)
            tracer.begins(getcurrent())
        elif tracer is not None and tracer.ends(getcurrent()):
            del self._tracers[thread]


class _Tracer:
    """Called at each switch between greenlets of one native thread, behind the switch."""

    def __init__(self, get: Callable[[], Any], set_loop: Callable[[Any], None]) -> None:
        self._get = get
        self._set = set_loop
        # Python 3.14 keeps one current task for each thread; before, there was one for each loop.
        self._swap_task = sys.modules["_asyncio"]._swap_current_task if sys.version_info >= (3, 14) else None
        # Ids of greenlets that run a loop, and exist as long as it runs.
        self._running: set[int] = set()
        self._owner = 0  # the greenlet whose loop is set in the thread, even if a switch was missed
        self._waiting: dict[int, tuple[Any, Any]] = {}  # loop and task of the greenlets that wait
        self._called = False
        self._before: Any = None
        self._hubs_loop: Any = None
        self._watcher: Any = None

    def begins(self, current: Any) -> None:
        self._running.add(id(current))
        self._owner = id(current)
        if not self._is_called():
            self._install()
        loop = gevent.hub.get_hub().loop
        if loop is not self._hubs_loop:  # at first, and in a forked child, whose hub is new
            self._hubs_loop, self._watcher = loop, loop.check(ref=False)
            self._watcher.start(self._revive)

    def ends(self, current: Any) -> bool:
        """Whether this was the last loop of the thread."""
        self._running.discard(id(current))
        self._waiting.pop(id(current), None)
        if self._running:
            return False
        if greenlet.gettrace() is self:
            greenlet.settrace(self._before)
        elif self._is_called():  # another tracer has come, and calls this one
            return False
        if gevent.hub.get_hub().loop is self._hubs_loop:
            self._watcher.stop()
            self._watcher.close()
        return True

    def _is_called(self) -> bool:
        """Whether greenlet calls this tracer, directly or through a tracer that was installed later."""
        self._called = False
        greenlet.greenlet(int).switch()
        return self._called

    def _install(self) -> None:
        self._before = greenlet.gettrace()
        greenlet.settrace(self)

    def _revive(self) -> None:
        """In the hub, at each turn of its loop: greenlet has removed the tracer if the call of it failed."""
        if greenlet.gettrace() is None:
            self._install()
            self._swap(getcurrent())

    @interrupts.is_switch
    def __call__(self, event: str, args: Any) -> None:
        try:
            self._called = True
            if event in ("switch", "throw"):
                self._swap(args[1])
        except BaseException as error:  # noqa: BLE001
            interrupts.raise_later(args[1], "the tracer of event loops", error)
        if self._before is not None:
            try:
                self._before(event, args)
            except BaseException as error:  # noqa: BLE001
                self._before = None  # as greenlet does
                interrupts.raise_later(args[1], "greenlet.settrace", error)

    def _swap(self, target: Any) -> None:
        """An error between any two steps leaves a state from which the next switch goes on."""
        loop, swap = self._get(), self._swap_task
        if loop is not None:
            self._waiting.setdefault(self._owner, (loop, swap(loop, None) if swap else None))
            self._set(None)
        if (waiting := self._waiting.get(id(target))) is not None:
            loop, task = waiting
            self._owner = id(target)
            self._set(loop)
            if task is not None and swap:
                swap(loop, task)
            del self._waiting[id(target)]
