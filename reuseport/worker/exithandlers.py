"""Which exit handlers of the application run in which process.

A handler that a worker or a job's process registers runs at the end of that process. A handler that the import
registers in a zygote runs

- at the end of each worker and job's process, because libraries flush there what that process has collected, and
- at the end of the zygote, and of each copy of it (a rollback makes one).

A handler of the import that removes files runs in one process only: the last zygote that shares the import. Otherwise
the first worker that ends would remove the files that its siblings use, and a zygote those that its copy uses. Such
handlers are `weakref.finalize` (`tempfile.TemporaryDirectory` is one), what `removes_files` recognizes, and the
finalizers of multiprocessing, which remove semaphores and the directory of its sockets.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import shutil
import sys
import tempfile
import types
import weakref
from collections.abc import Callable
from typing import Any

_REMOVERS = (shutil.rmtree, os.remove, os.unlink, os.rmdir, os.removedirs)
_NAMES = frozenset({"rmtree", "unlink", "rmdir", "removedirs"})
_METHODS = frozenset({*_NAMES, "cleanup", "close", "__exit__"})
_HOLDERS = (tempfile.TemporaryDirectory, tempfile._TemporaryFileWrapper, contextlib.ExitStack, os.PathLike)


def drop_removals() -> None:
    """Drop the handlers that remove files, in a process that does not run them."""
    atexit.unregister(_Matching(removes_files))
    for one in list(weakref.finalize._registry):
        one.atexit = False
    _finalizers().clear()


def adopt_removals() -> None:
    """In a copy of a zygote: a finalizer of multiprocessing does nothing in another process than the one it names."""
    for one in list(_finalizers().values()):
        one._pid = os.getpid()


def _finalizers() -> dict[Any, Any]:
    """Those of multiprocessing (`Finalize` in multiprocessing/util.py), which one exit handler runs."""
    util = sys.modules.get("multiprocessing.util")
    return {} if util is None else util._finalizer_registry


def run() -> None:
    """Run all exit handlers of this process. Python prints their exceptions."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()


def run_removals() -> None:
    """Run only the handlers that remove files, and drop the others: the process goes on, without the import."""
    finalize = weakref.finalize._exitfunc
    atexit.unregister(_Matching(lambda handler: handler != finalize and not removes_files(handler, own=True)))
    run()
    close_temporary_files()


def close_temporary_files() -> None:
    """Remove the files of `tempfile.NamedTemporaryFile`. Python does so when it collects the objects at its end, which
    a process that ends by _exit(2) never reaches.

    Objects that a zygote has frozen (`gc.freeze`) are left out, so a worker does not remove the files of the import.
    """
    # Each object refers to its class. To look at all objects in Python takes several times as long: a monolith has
    # millions, and its zygote has little time to end.
    for one in gc.get_referrers(tempfile._TemporaryFileWrapper):
        if type(one) is tempfile._TemporaryFileWrapper:
            with contextlib.suppress(OSError, ValueError):
                one.__exit__(None, None, None)


def removes_files(handler: Any, *, own: bool = False) -> bool:
    """Whether an exit handler removes files that exist when it is registered, as far as it shows.

    A function of Python's is judged by the names that its code uses, functions inside it included. A function
    that asks for the pid is written for several processes, and removes the files of the process that runs it. Such a
    function counts with `own`.
    """
    # By the type: a lazy object of the application's would be woken by isinstance, which asks for its __class__, and by
    # each look at an attribute.
    if issubclass(type(handler), functools.partial):
        return removes_files(handler.func, own=own)
    if any(handler is one for one in _REMOVERS):
        return True
    function = handler
    if type(handler) is types.MethodType:
        if handler == weakref.finalize._exitfunc:
            return False  # it runs those finalizers that have not been dropped
        if issubclass(type(handler.__self__), _HOLDERS):
            return handler.__name__ in _METHODS
        function = handler.__func__
    if type(function) is not types.FunctionType:
        return False
    names = _names_in(function.__code__)
    if "getpid" in names and not own:
        return False
    if names & _NAMES or names >= {"os", "remove"}:
        return True
    used = _used_by(function, names) if "cleanup" in names else ()
    return any(issubclass(type(one), tempfile.TemporaryDirectory) for one in used)


def _names_in(code: types.CodeType) -> set[str]:
    names = {*code.co_names, *code.co_freevars}
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            names |= _names_in(one)
    return names


def _used_by(function: types.FunctionType, names: set[str]) -> list[Any]:
    """The values of the globals and of the enclosing functions' variables that a function uses."""
    used = [function.__globals__[name] for name in names if name in function.__globals__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is empty
            used.append(cell.cell_contents)
    return used


class _Matching:
    """Equal to each handler for which `test` is true: `atexit.unregister` compares by ==, and drops all equal ones."""

    def __init__(self, test: Callable[[Any], bool]) -> None:
        self._test = test

    def __eq__(self, handler: object) -> bool:
        try:
            return self._test(handler)
        except Exception:  # noqa: BLE001 - an object of the application's that cannot be looked at
            return False

    __hash__ = None
