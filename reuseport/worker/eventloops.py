"""asyncio in greenlets: each greenlet has a running event loop of its own, or none.

asyncio keeps the running loop for each native thread, and all greenlets of a worker share one thread. gevent's selector
lets other greenlets run while a loop waits. They found that loop running: `asyncio.run` raised RuntimeError in all
but the first of them, and so did Flask's and Django's async views. Django's ORM raised SynchronousOnlyOperation in
ordinary views.

So while a loop runs in some greenlet, each switch between greenlets takes the running loop and the current task along
(greenlet.settrace). Without a running loop, nothing is traced and a switch costs nothing.

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
from weakref import WeakKeyDictionary

import greenlet
from gevent import monkey
from greenlet import getcurrent

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
        self._running: set[int] = set()  # ids of greenlets that run a loop, and exist as long as it runs
        self._waiting: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()  # loop and task of those that wait
        self._before = greenlet.gettrace()
        greenlet.settrace(self)

    def begins(self, current: Any) -> None:
        self._running.add(id(current))

    def ends(self, current: Any) -> bool:
        """Whether this was the last loop of the thread."""
        self._running.discard(id(current))
        if self._running or greenlet.gettrace() is not self:  # another tracer has come, and calls this one
            return False
        greenlet.settrace(self._before)
        return True

    def __call__(self, event: str, args: Any) -> None:
        if event in ("switch", "throw"):
            origin, target = args
            loop, swap = self._get(), self._swap_task
            if loop is not None:
                self._waiting[origin] = (loop, swap(loop, None) if swap else None)
                self._set(None)
            if self._waiting:
                loop, task = self._waiting.pop(target, (None, None))
                if loop is not None:
                    self._set(loop)
                    if task is not None and swap:
                        swap(loop, task)
        if self._before is not None:
            self._before(event, args)
