"""Lazy imports (PEP 810, Python 3.15) are carried out when the application has been imported (--lazy-imports settle).

A lazy import that fails would otherwise pass the release, and each request that uses the name would answer 500. One
that succeeds hours later would read a file that another version may have replaced by then, into the memory of one
worker.

They are carried out behind the import, in the order of the modules, and not during it. A filter
(sys.set_lazy_imports_filter) would make each one an ordinary import statement, and two modules that import each other,
one of them lazily, would fail.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

LAZY: Any = getattr(types, "LazyImportType", None)  # Python 3.15 and later
LIBRARY = os.path.dirname(os.__file__) + os.sep
FOR_TYPE_CHECKERS = "_typeshed"  # exists in no interpreter: annotations name it

_seen: set[str] = set()  # modules that have no lazy import left, or only those that failed


class BrokenImport(Exception):
    """A lazy import of the application's own code failed. `error` is what it raised."""

    def __init__(self, what: str, where: str, error: BaseException) -> None:
        super().__init__(what, where, error)
        self.what, self.where, self.error = what, where, error


def settle(is_own: Callable[[str, str], bool]) -> None:
    """Carry out the lazy imports of all modules that are new since the last call, and of those that this imports.

    `is_own(module, file)` says whether a module is the application's own code. There a failure raises BrokenImport.
    A library's lazy import that fails stays lazy, since it may name a package that the application does not need.
    """
    while LAZY is not None and (new := [name for name in sys.modules if name not in _seen]):
        for module_name in new:
            # Each module is read once: a second look, in a worker, would write reference counts into shared memory.
            _seen.add(module_name)
            for module, name, what in list(_lazy_names(module_name)):
                try:
                    getattr(module, name)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - the imported module may raise anything
                    file = getattr(module, "__file__", None) or ""
                    if what.partition(".")[0] != FOR_TYPE_CHECKERS and is_own(module_name, file):
                        raise BrokenImport(what, file or module_name, error) from None


def is_installed(file: str) -> bool:
    """Whether a module's file came with Python or with a package."""
    parts = file.split(os.sep)
    return not file or "site-packages" in parts or "dist-packages" in parts or file.startswith(LIBRARY)


def _lazy_names(module_name: str) -> Iterator[tuple[types.ModuleType, str, str]]:
    """The module, a name in it, and what that imports."""
    module = sys.modules.get(module_name)
    if module is not None and issubclass(type(module), types.ModuleType):
        # In a function: a global variable that holds a lazy object imports it when it is read.
        for name, value in vars(module).items():
            if type(value) is LAZY:
                yield module, name, repr(value).removeprefix("<lazy_import '").removesuffix("'>")
