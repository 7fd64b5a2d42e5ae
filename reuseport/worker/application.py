"""Loading the application: from its name, or by running its own script again (embedding).

Whatever goes wrong here is the application's error: it is told with the application's own traceback, without the
server's frames above it.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from reuseport.options import parse_app


class LoadError(Exception):
    """The application could not be loaded: one line that says why. The traceback, if any, is on standard error."""


def prepare_path(directory: str, pythonpath: tuple[str, ...]) -> None:
    """Make `directory` the working directory and, with `pythonpath`, the beginning of sys.path."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise LoadError(f"cannot enter {directory}: {error.strerror}") from None
    entries = [directory, *(os.path.join(directory, path) for path in pythonpath)]
    sys.path[:0] = [path for path in entries if path not in sys.path]


def load(name: str, factory: bool) -> Callable[..., Any]:
    """Import MODULE:APP and return the WSGI callable. LoadError where there is none."""
    spec = parse_app(name)
    module = _guard(f"importing {spec.module}", lambda: _import(spec.module))
    attribute = spec.attribute or "application"
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise LoadError(f"module {spec.module} ({module.__file__}) has no {attribute!r}") from None
    if spec.call or factory:
        if not callable(value):
            raise LoadError(f"{name}: {attribute!r} is no function that could make an application: {value!r}")
        value = _guard(f"calling {spec.module}:{attribute}()", value)
    if not callable(value):
        raise LoadError(f"{name}: {attribute!r} is no WSGI application: {type(value).__name__} is not callable")
    return value


def run_script(script: Mapping[str, Any]) -> None:
    """Run the user's script again as __main__, up to its call of `reuseport.serve`, which never returns from here."""
    sys.argv[:] = script["argv"]
    if script.get("module"):
        _guard(
            f"running -m {script['module']}",
            lambda: runpy.run_module(script["module"], run_name="__main__", alter_sys=True),
        )
    else:
        path = script["path"]
        sys.path[:0] = [os.path.dirname(path)]
        _guard(f"running {path}", lambda: runpy.run_path(path, run_name="__main__"))
    raise LoadError("the script ended without calling reuseport.serve")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise LoadError(f"there is no module {error.name!r} in {os.getcwd()} or elsewhere on sys.path") from None


def _guard(doing: str, function: Callable[[], Any]) -> Any:
    """Call the application's code. All that it can raise, SystemExit included, is an error of the release."""
    try:
        return function()
    except LoadError:
        raise
    except SystemExit as error:
        print_traceback(error)
        raise LoadError(f"{doing}: it called sys.exit({error.code!r})") from None
    except BaseException as error:  # noqa: BLE001
        print_traceback(error)
        raise LoadError(f"{doing}: {type(error).__name__}: {error}") from None


def print_traceback(error: BaseException) -> None:
    """Without the frames of the server and of the import system, which say nothing about the application."""
    frame = error.__traceback__
    while frame is not None and is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    if frame is None and not isinstance(error, SyntaxError):
        # Without a frame of the application's it may be a defect of the server: then all of it counts. A syntax error
        # says by itself where it is.
        frame = error.__traceback__
    traceback.print_exception(type(error), error, frame)
    sys.stderr.flush()


def is_ours(filename: str) -> bool:
    """Whether a frame belongs to the server, or to what it imports applications with."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep
    return filename.startswith((here, "<frozen")) or filename in (importlib.__file__, runpy.__file__)
