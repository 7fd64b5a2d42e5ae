"""`python -m pdb -p PID` in a process that gevent has patched (Python 3.14, PEP 768).

The debugger's script runs where the main thread is. In an idle worker that is a callback of the loop, which must not
wait by gevent, so pdb could not connect. Here pdb gets a `create_connection` that waits without gevent. The process
stands still while the debugger waits for a command, as under any debugger.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from gevent import monkey


def prepare() -> None:
    """Change pdb, now or when it is imported."""
    if sys.version_info < (3, 14) or not monkey.is_module_patched("socket"):
        return
    if "pdb" in sys.modules:
        _change(sys.modules["pdb"])
    else:
        sys.meta_path.insert(0, _Finder())


class _PlainSocket(ModuleType):
    """The module `socket`, but for one function."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.modules["socket"], name)

    @staticmethod
    def create_connection(address: tuple[str, int]) -> Any:
        make, resolve = monkey.get_original("socket", ["socket", "getaddrinfo"])
        import _socket

        refused: OSError | None = None
        for family, kind, protocol, _, where in resolve(*address, 0, _socket.SOCK_STREAM):
            sock = make(family, kind, protocol)
            try:
                sock.connect(where)
            except OSError as error:
                sock.close()
                refused = error
            else:
                return sock
        raise refused or OSError(f"{address[0]} has no address")


def _change(pdb: ModuleType) -> None:
    if hasattr(pdb, "socket"):
        pdb.socket = _PlainSocket("socket")  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    """Finds pdb as it would be found without this, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "pdb" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Changing(spec.loader)
        return spec


class _Changing(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        self._loader.exec_module(module)
        _change(module)
