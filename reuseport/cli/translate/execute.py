"""Run a Gunicorn configuration as Gunicorn would, and tell which names it has set: in a process of its own.

It is a Python file, which may do anything: so nothing of it runs in the command's own process. The descriptor that the
last argument names gets one JSON object; what the file prints stays on the standard streams.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import sys
from typing import Any


def main() -> None:
    location, report = sys.argv[1], int(sys.argv[2])
    sys.path.insert(0, os.getcwd())
    names = load(location)
    with open(report, "w", encoding="utf-8", closefd=False) as file:
        json.dump({name: value for name, value in names.items() if not name.startswith("_")}, file, default=told)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the file's must not hold it


def load(location: str) -> dict[str, Any]:
    """The names of a file, or of a module named as "python:MODULE". Whatever it raises ends this process."""
    if location.startswith("python:"):
        return vars(importlib.import_module(location.removeprefix("python:")))
    path = location.removeprefix("file:")
    # Gunicorn takes any suffix.
    loader = importlib.machinery.SourceFileLoader("__config__", path)
    spec = importlib.util.spec_from_file_location("__config__", path, loader=loader)
    assert spec is not None
    module = sys.modules["__config__"] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return vars(module)


def told(value: Any) -> Any:
    """What JSON has no word for: a hook or a class by its name, a set as a list, and the rest as Python shows it."""
    if callable(value):
        return {"callable": getattr(value, "__qualname__", repr(value))}
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return {"object": repr(value)[:200]}


if __name__ == "__main__":
    main()
