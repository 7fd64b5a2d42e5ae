"""How an application is named: MODULE:APP, MODULE:factory() or MODULE alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from reuseport.options.kinds import Kind


class AppSpec(NamedTuple):
    """`attribute` is a dotted path in the module, "" if none was named; `call` says that it is a factory."""

    module: str
    attribute: str
    call: bool


def parse_app(text: str) -> AppSpec:
    """Read an application's name. Raises ValueError that says what is wrong with it. Imports nothing."""
    module, colon, attribute = text.partition(":")
    if "/" in module or module.endswith(".py"):
        better = module.removesuffix(".py").lstrip("./").replace("/", ".") or "MODULE"
        raise ValueError(f"{text!r} names a file; a module is wanted: {better}:{attribute or 'app'}")
    if not _dotted(module):
        raise ValueError(f"{text!r} is not MODULE:APP: {module!r} cannot be the name of a module")
    call = attribute.endswith(")")
    if call:
        attribute, _, arguments = attribute[:-1].partition("(")
        if arguments.strip():
            raise ValueError(f"{text!r} passes arguments; a factory is called without any: {module}:{attribute}()")
    if colon and not _dotted(attribute):
        raise ValueError(f"{text!r} is not MODULE:APP: {attribute!r} cannot be a name in a module")
    return AppSpec(module, attribute, call)


def default_name(app: str | None) -> str:
    """The name of a master that was given none: its application's module, "app" without one."""
    module = parse_app(app).module if app else "app"
    # A module may be called anything that Python takes for an identifier; a name is also a directory and a word in ps.
    plain = "".join(letter if letter.isascii() else "-" for letter in module).lstrip("._-")[:64]
    return plain or "app"


def _dotted(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _parse(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not MODULE:APP")
    parse_app(value)
    return value


APP = Kind("MODULE:APP", _parse)
