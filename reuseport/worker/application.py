"""Loading the application: from its name, or by running its own script again (embedding).

Whatever goes wrong here is the application's error: it is told with the application's own traceback, without the
server's frames above it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from reuseport import startup
from reuseport.ipc.logline import printable
from reuseport.options import Settings, parse_app
from reuseport.options.arguments import did_you_mean
from reuseport.worker import firstrequest, lazyimports, remedies

USUAL = ("app", "application", "create_app()", "make_app()")  # what applications are called


class LoadError(Exception):
    """The application could not be loaded: one line that says why. The traceback, if any, is on standard error."""


def enter(directory: str) -> None:
    """Make `directory` the working directory. LoadError where that is not possible."""
    try:
        os.chdir(directory)
    except OSError as error:
        raise LoadError(f"cannot enter {directory}: {error.strerror}") from None


def prepare(directory: str, pythonpath: tuple[str, ...]) -> None:
    """Run the environment's sitecustomize; then make `directory` and `pythonpath` the beginning of sys.path.

    The process that imports the application calls this before the import. A zygote whose workers import does not: what
    an instrumentation starts, such as a thread that exports, then exists once in each worker.
    """
    _guard("running sitecustomize", startup.customize)
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
            hint = _meant(attribute, module)
            raise LoadError(f"module {spec.module} ({module.__file__}) has no {attribute!r}{hint}") from None
    if spec.call or factory:
        if not callable(value):
            raise LoadError(f"{name}: {attribute!r} is no function that could make an application: {value!r}")
        if _takes(value, 2) and _takes(value, 0) is False:
            what = "the () behind it" if spec.call else "--factory"
            raise LoadError(f"{name}: {attribute!r} makes no application, it is one: leave out {what}")
        value = _guard(f"calling {spec.module}:{attribute}()", value)
        check(value, f"{name}: what {attribute!r} returned")
    else:
        check(value, f"{name}: {attribute!r}", f"{spec.module}:{attribute}()")
    return value


def check(app: Any, what: str, made_by: str = "") -> None:
    """LoadError where no request could be served by this, so that a release fails and not each request after it.

    `made_by` is how the application is named if this turns out to make one.
    """
    if not callable(app):
        raise LoadError(f"{what} is no WSGI application: {type(app).__name__} is not callable")
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        kind = "" if inspect.isroutine(app) else f" ({type(app).__name__})"
        raise LoadError(f"{what} is an ASGI application{kind}, and this server speaks WSGI (Django: wsgi.py)")
    if made_by and _takes(app, 0):
        raise LoadError(f"{what} is no WSGI application, but seems to make one: {made_by}, with (), calls it")
    if _takes(app, 2) is False:
        raise LoadError(f"{what} is no WSGI application: it cannot be called with environ and start_response")


def settle(settings: Settings) -> None:
    """Carry out lazy imports, and those of a framework's first request, unless --lazy-imports keeps them. LoadError
    where one of the application's own fails."""
    if settings.lazy_imports == "keep":
        return
    top = parse_app(settings.app).module.partition(".")[0] if settings.app else "__main__"

    def is_own(module: str, file: str) -> bool:
        return not is_ours(file) and (module.partition(".")[0] == top or not lazyimports.is_installed(file))

    try:
        lazyimports.settle(is_own)
    except lazyimports.BrokenImport as broken:
        print_traceback(broken.error)
        raise LoadError(
            f"the lazy import of {broken.what} in {broken.where}: {type(broken.error).__name__}: {broken.error} "
            "(--lazy-imports keep leaves it to the first use)"
        ) from None
    if name := firstrequest.urlconf():
        _guard(f"importing Django's ROOT_URLCONF, {name}", firstrequest.import_urlconf)


def _takes(function: Callable[..., Any], count: int) -> bool | None:
    """Whether it can be called with so many arguments. None where that does not show: a decorator's wrapper takes any
    number, and what is in C, functools.cache for one, does not say."""
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in signature.parameters.values()):
        return None
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _meant(attribute: str, module: Any) -> str:
    """The end of an error about a name that a module has not: what could have been meant, or nothing."""
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    usual = next((f"; did you mean {module.__name__}:{name}?" for name in USUAL if name.rstrip("()") in names), "")
    return did_you_mean(attribute, names, f"{module.__name__}:") or usual


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
        where = next((path for path in ("src", "lib") if _lies_in(path, error.name)), "")
        hint = f"it lies in {where}: --pythonpath {where}" if where else "--chdir says where it lies"
        here = f"in {os.getcwd()} or elsewhere on sys.path"
        raise LoadError(f"there is no module {error.name!r} {here}; {hint}") from None


def _lies_in(directory: str, module: str) -> bool:
    path = os.path.join(directory, *module.split("."))
    return os.path.isdir(path) or os.path.isfile(f"{path}.py")


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
        text = f"{doing}: {type(error).__name__}: {error}"
        raise LoadError(". ".join(filter(None, (text, remedies.of_error(error))))) from None


def print_traceback(error: BaseException) -> None:
    """Without the frames of the server and of the import system, which say nothing about the application."""
    frame = error.__traceback__
    while frame is not None and is_ours(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    if frame is None and not isinstance(error, SyntaxError):
        # Without a frame of the application's it may be a defect of the server: then all of it counts. A syntax error
        # says by itself where it is.
        frame = error.__traceback__
    sys.stderr.write(printable("".join(traceback.format_exception(type(error), error, frame))))
    sys.stderr.flush()


def is_ours(filename: str) -> bool:
    """Whether a frame belongs to the server, or to what it imports applications with."""
    here = os.path.dirname(os.path.dirname(__file__)) + os.sep
    return filename.startswith((here, "<frozen")) or filename in (importlib.__file__, runpy.__file__)
