"""What there is to say of an option: the form of the entries in `table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reuseport.options import kinds
from reuseport.options.kinds import Kind

FLAG, ENVIRONMENT, FILE = "flag", "environment", "file"
PREFIX = "REUSEPORT_"  # of the environment variables


@dataclass(frozen=True)
class Option:
    """One option.

    `default` is a value, or a function of (the values before it in the table, the origin). `flags` and `aliases` are
    what is typed besides --NAME; only `flags` are shown in the help. `bare` is what the flag alone means, and a remark
    ("" for none).
    `check` sees the whole value, after every source, and raises ValueError like a kind. `keys` are those of a table,
    declared like options themselves. `empty` says what an empty value on the command line means; without it, one is an
    error. An empty variable counts as not set, but it is an error with `decisive`.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    group: str
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    unit: str = ""
    repeatable: bool = False
    positional: bool = False
    check: Callable[[Any], None] | None = None
    effect: str = "release"
    default_text: str = ""
    fallbacks: tuple[str, ...] = ()
    where: frozenset[str] = frozenset({FLAG, ENVIRONMENT, FILE})
    bare: tuple[str, str] | None = None
    keys: tuple[Option, ...] = ()
    empty: str = ""
    decisive: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def is_switch(self) -> bool:
        return self.kind is kinds.SWITCH


@dataclass(frozen=True)
class Foreign:
    """A Gunicorn option that this server has no use for.

    `says` is its one line of explanation. One that the user relies on, so that ignoring it would be wrong, is refused.
    """

    flags: tuple[str, ...]
    says: str
    takes_value: bool = True
    refused: bool = False
    refused_values: Mapping[str, str] | None = None

    @property
    def flag(self) -> str:
        return self.flags[-1]

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


def between(low: int, high: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")

    return check


def positive(value: float) -> None:
    if value <= 0:
        raise ValueError(f"{value:g} is not more than 0")


def filled(value: str) -> None:
    if not value:
        raise ValueError("'' is no path")
