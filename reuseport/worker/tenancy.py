"""Whose request is it? `--tenant`, made into a function of environ, once at a worker's start."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from reuseport.ipc.marks import Marks
from reuseport.ipc.pins import Pins, number_of
from reuseport.jobs import tenant_now
from reuseport.options.kinds import parse_tenant
from reuseport.worker.application import LoadError

LONGEST = 200  # characters; a longer name is nobody's

Finder = Callable[[dict[str, Any]], Any]


def finder(rule: str) -> tuple[Finder, bool]:
    """The function that gives a request's tenant, or None; and whether it is the application's own, which may block.

    LoadError where the application has no such function.
    """
    kind, argument = parse_tenant(rule)
    if kind == "header":
        key = "HTTP_" + argument.upper().replace("-", "_")
        return (lambda environ: environ.get(key)), False
    if kind == "host":
        return (lambda environ: _host(environ)), False
    if kind == "label":
        number = int(argument) - 1
        return (lambda environ: _nth(_host(environ).split("."), number)), False
    if kind == "path":
        number = int(argument)
        return (lambda environ: _nth(environ["PATH_INFO"].split("/"), number)), False
    if kind == "cookie":
        return (lambda environ: _cookie(environ.get("HTTP_COOKIE", ""), argument)), False
    return _load(rule), True


def pinner(pins: Pins, marks: Marks, generation: int) -> Callable[[str], Callable[[], None] | None]:
    """What is called, in any thread, when a job of a tenant begins in a process of `generation`.

    It returns what to call at the job's end; None if the job pins nobody, for its tenant has moved on already.
    """

    def pin(tenant: str) -> Callable[[], None] | None:
        number = number_of(tenant)
        pins.take(number, wait=True)
        if marks.moved(number) > generation:
            pins.drop(number)
            return None
        return partial(pins.drop, number)

    return pin


def told(application: Callable[..., Any]) -> Callable[..., Any]:
    """The same application, which knows whose request it serves: so do the jobs that it begins."""

    def call(environ: dict[str, Any], start_response: Any) -> Any:
        tenant_now.set(environ.get("reuseport.tenant"))
        return application(environ, start_response)

    return call


def valid(tenant: Any) -> str | None:
    """The name as it counts: text that is neither empty nor too long, else None. TypeError for what is no text."""
    if tenant is None:
        return None
    if not isinstance(tenant, str):
        raise TypeError(f"a tenant is a str or None, not {type(tenant).__name__}")
    return tenant if 0 < len(tenant) <= LONGEST else None


def _host(environ: dict[str, Any]) -> str:
    host = environ.get("HTTP_HOST", "").lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0].rstrip(".")


def _nth(parts: list[str], number: int) -> str | None:
    return parts[number] if number < len(parts) else None


def _cookie(cookies: str, name: str) -> str | None:
    """The first cookie of this name (RFC 6265 section 5.4: the one with the longest path comes first)."""
    for pair in cookies.split(";"):
        key, equals, value = pair.partition("=")
        if equals and key.strip() == name:
            return value.strip().strip('"')
    return None


def _load(rule: str) -> Finder:
    module, _, path = rule.partition(":")
    try:
        value: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise LoadError(f"--tenant {rule}: there is no module {error.name!r}") from None
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise LoadError(f"--tenant {rule}: module {module} has no {path!r}") from None
    if not callable(value):
        raise LoadError(f"--tenant {rule}: {type(value).__name__} is not callable")
    return value  # type: ignore[no-any-return]
