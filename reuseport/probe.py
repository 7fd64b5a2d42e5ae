"""What loading an application leaves behind, for `reuseport doctor`: loads it as a zygote does, and tells.

It is started like a zygote, by the release's interpreter, and `entry.run` patches it like one. What it finds is one
JSON object, written to the descriptor that its argument names; what the application prints stays on the standard
streams. Nothing is served, and no start hook runs.
"""

if __name__ == "__main__":
    from reuseport import entry

    entry.run("reuseport.probe")

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import reuseport.zygote  # noqa: F401 - a zygote has it in its memory, which is measured here
from reuseport import startup
from reuseport.entry import EARLY_DESCRIPTORS
from reuseport.ipc import packages
from reuseport.options import Settings
from reuseport.version import __version__
from reuseport.worker import application, children, exithandlers, forksafety, ground, logs, patching


def main(born: dict[str, Any]) -> None:
    report = int(sys.argv.pop())
    with open(report, encoding="utf-8", closefd=False) as file:
        order = json.load(file)
    ground.tell_stack_on_signal()
    user = (order["ids"], order["variables"], order["from_files"])
    found = look(Settings.from_json(order["settings"]), order["directory"], *user)
    found["packages"] = packages.used(born.get("lent", ()))
    found["mismatch"] = born.get("mismatch", "")
    with open(report, "w", encoding="utf-8", closefd=False) as file:
        file.seek(0)
        file.truncate()
        json.dump(found, file)
    children.end()
    exithandlers.run_removals()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the application's threads must not hold it


def look(
    settings: Settings,
    directory: str,
    ids: tuple[int, int] | None,
    variables: Mapping[str, str],
    from_files: Mapping[str, str],
) -> dict[str, Any]:
    """Load the application and say what there is then. `variables` are those of --env."""
    found: dict[str, Any] = {"version": __version__, "python": sys.version.split()[0], "error": "", "early": []}
    patched = not settings.threads
    left = forksafety.Look(EARLY_DESCRIPTORS)
    began = time.monotonic()
    try:
        if ids:
            ground.become(ids, directory, variables, from_files)
    except application.LoadError as error:
        # This user can import nothing more, not even of the standard library, so nothing more can be found out.
        return {"error": str(error)}
    try:
        if settings.umask is not None:
            os.umask(settings.umask)
        if settings.threads and startup.is_patched():
            raise application.LoadError(patching.PATCHED_ALREADY)
        application.enter(directory)
        application.prepare(directory, tuple(settings.pythonpath))
        if settings.log_config:
            logs.configure(settings.log_config)
        application.load(settings.app, settings.factory)
        application.settle(settings)
    except application.LoadError as error:
        found["error"] = str(error)
    found["seconds"] = time.monotonic() - began
    found["left_behind"] = left.reasons()
    with open("/proc/self/statm", encoding="ascii") as file:
        found["rss"] = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    found["modules"] = dict(_modules())
    if patched:
        found["early"] = patching.held()
        found["ssl_early"] = "ssl" in startup.EARLY
    found["multiprocessing"] = dict(_users_of_multiprocessing(directory))
    found["start_method"] = _call("multiprocessing", "get_start_method") or ""
    found["psycopg2_waits_green"] = _call("psycopg2.extensions", "get_wait_callback") is not None
    found["django_keeps"] = sorted(_kept_by_django())
    found["django_pools"] = sorted(_unbounded_pools_of_django())
    found["gevent_timeout"] = sorted(_users_of_gevent_timeout(directory))
    found["oracledb_thick"] = _call("oracledb", "is_thin_mode") is False
    return found


def _modules() -> Iterator[tuple[str, str]]:
    """Modules that are not of the standard library, with the versions that packages have."""
    for name, module in sorted(sys.modules.items()):
        top = name.partition(".")[0]
        if top not in patching.OURS and top not in sys.stdlib_module_names:
            yield name, str(getattr(module, "__version__", "")) if name == top else ""


def _own_modules(directory: str) -> Iterator[tuple[str, ModuleType]]:
    """The application's own modules."""
    prefix = directory.rstrip("/") + "/"
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.startswith(prefix) and "/site-packages/" not in path:
            yield name, module


def _users_of_multiprocessing(directory: str) -> Iterator[tuple[str, list[str]]]:
    """The application's own modules that hold parts of multiprocessing, with those parts' names."""
    for name, module in _own_modules(directory):
        parts = sorted({part for value in list(vars(module).values()) if (part := _part_of_multiprocessing(value))})
        if parts:
            yield name, parts


def _users_of_gevent_timeout(directory: str) -> Iterator[str]:
    """The application's own modules that hold gevent.Timeout, or use it through gevent."""
    gevent = sys.modules.get("gevent")
    if gevent is None:
        return
    timeouts = [one for name in ("Timeout", "with_timeout") if (one := getattr(gevent, name, None)) is not None]
    for name, module in _own_modules(directory):
        values = list(vars(module).values())
        direct = any(value is one for value in values for one in timeouts)
        if direct or (any(value is gevent for value in values) and _mentions_timeout(module)):
            yield name


def _mentions_timeout(module: ModuleType) -> bool:
    try:
        with open(str(module.__file__), encoding="utf-8", errors="replace") as file:
            return re.search(r"\.(Timeout|with_timeout|timeout)\b", file.read()) is not None
    except OSError:
        return False


def _part_of_multiprocessing(value: Any) -> str:
    """The name of what may be a module, class, function or method of multiprocessing; "" for anything else."""
    kind = type(value)  # and no attribute of any other object: a lazy one of the application's would be woken
    if kind is ModuleType:
        name = str(value.__name__)
        return name if name.partition(".")[0] == "multiprocessing" else ""
    if kind is FunctionType or kind is MethodType or issubclass(kind, type):
        home = str(value.__module__)
        return value.__name__ if home.startswith(("multiprocessing.", "concurrent.futures.process")) else ""
    return ""


def _kept_by_django() -> Iterator[str]:
    """Databases whose connections Django keeps beyond a request, other than in a pool."""
    settings = getattr(sys.modules.get("django.conf"), "settings", None)
    if settings is not None and settings.configured:
        for alias, terms in settings.DATABASES.items():
            age = terms.get("CONN_MAX_AGE", 0)
            if age != 0 and not (terms.get("OPTIONS") or {}).get("pool"):
                yield f"{alias!r} (CONN_MAX_AGE={age})"


def _unbounded_pools_of_django() -> Iterator[str]:
    """Databases whose pool has psycopg_pool's default size, because none is named."""
    settings = getattr(sys.modules.get("django.conf"), "settings", None)
    if settings is not None and settings.configured:
        for alias, terms in settings.DATABASES.items():
            pool = (terms.get("OPTIONS") or {}).get("pool")
            if pool is True or (isinstance(pool, dict) and not {"min_size", "max_size"} & {*pool}):
                yield repr(alias)


def _call(module: str, function: str) -> Any:
    """What a function of a module says, if that has been imported; None otherwise."""
    found = getattr(sys.modules.get(module), function, None)
    return None if found is None else found()
