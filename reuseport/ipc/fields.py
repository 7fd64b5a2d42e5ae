"""The types that a field of a message can have, and the check that each of them makes.

`check(value)` takes any value that JSON can hold, and returns it in the declared type. The only exception that it
raises is a ValueError, whose text says what is wrong. A bool is no number, and NaN and infinity are none either.

The functions at the end declare a field in `messages.py`. Each returns a Field, and says Any, so that the attribute
which it declares can have the type of the value.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import isfinite
from typing import Any

from reuseport import names
from reuseport.options import OptionError, parse_address

REQUIRED: Any = object()
PATH_MAX = 4096  # limits.h


class Field:
    """`default` stands for a field that the message lacks: a sender of an earlier version does not know it. `key` is
    the field's name in the message, where that is no name of an attribute."""

    def __init__(self, default: Any = REQUIRED, key: str = "") -> None:
        self.default = default
        self.key = key

    def check(self, value: Any) -> Any:
        raise NotImplementedError


class Flag(Field):
    def check(self, value: Any) -> bool:
        if value is True or value is False:
            return value
        raise ValueError(f"is {_kind(value)}, not true or false")


class Whole(Field):
    """A whole number, both bounds included."""

    def __init__(self, least: int, most: int, default: Any = REQUIRED, key: str = "") -> None:
        super().__init__(default, key)
        self.least, self.most = least, most

    def check(self, value: Any) -> int:
        if type(value) is not int:
            raise ValueError(f"is {_kind(value)}, not a whole number")
        if self.least <= value <= self.most:
            return value
        raise ValueError(f"is not between {self.least} and {self.most}")


class Real(Field):
    """A finite number, both bounds included. `flags`: true and false count as 1 and 0."""

    def __init__(self, least: float, most: float, default: Any = REQUIRED, flags: bool = False) -> None:
        super().__init__(default)
        self.least, self.most, self.flags = least, most, flags

    def check(self, value: Any) -> float:
        if type(value) is not float and type(value) is not int and not (self.flags and type(value) is bool):
            raise ValueError(f"is {_kind(value)}, not a number")
        if self.least <= value <= self.most:  # false for NaN
            return float(value)
        raise ValueError(f"is not between {self.least:g} and {self.most:g}")


class Text(Field):
    """A str as it came, of at most `longest` characters: for what the code compares or matches."""

    def __init__(self, longest: int, default: Any = REQUIRED) -> None:
        super().__init__(default)
        self.longest = longest

    def check(self, value: Any) -> str:
        if type(value) is not str:
            raise ValueError(f"is {_kind(value)}, not a text")
        if len(value) > self.longest:
            raise ValueError(f"has {len(value)} characters, and {self.longest} at most")
        return value


class Path(Text):
    """A path that the operating system takes: no NUL, and no surrogate that os.fsdecode() does not make."""

    def check(self, value: Any) -> str:
        text = super().check(value)
        if not is_path(text):
            raise ValueError("is no path")
        return text


class Address(Text):
    """The name of an address that is served, as `options.parse_address` reads it."""

    def check(self, value: Any) -> str:
        text = super().check(value)
        try:
            parse_address(text)
        except OptionError:
            raise ValueError("is no address") from None
        return text


class Name(Field):
    """The name of a tenant or job, made printable (`names.name`). A whole number is one, too: earlier versions let an
    application give its customer's number."""

    def check(self, value: Any) -> str:
        if type(value) is int and -(1 << 63) <= value < 1 << 63:
            return str(value)
        if type(value) is not str:
            raise ValueError(f"is {_kind(value)}, not a text")
        return names.name(value)


class Shown(Field):
    """A text that is shown, made printable and shortened. `several`: of several lines."""

    def __init__(self, longest: int, several: bool, default: Any = REQUIRED) -> None:
        super().__init__(default)
        self.longest, self.several = longest, several

    def check(self, value: Any) -> str:
        if type(value) is not str:
            raise ValueError(f"is {_kind(value)}, not a text")
        return (names.lines if self.several else names.line)(value, self.longest)


class Maybe(Field):
    """Null, or what the other field takes."""

    def __init__(self, of: Field, default: Any = REQUIRED) -> None:
        super().__init__(default, of.key)
        self.of = of

    def check(self, value: Any) -> Any:
        return None if value is None else self.of.check(value)


class Several(Field):
    """A list of at most `most` entries; its value is a tuple."""

    def __init__(self, of: Field, most: int, default: Any = REQUIRED) -> None:
        super().__init__(default)
        self.of, self.most = of, most

    def check(self, value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ValueError(f"is {_kind(value)}, not a list")
        if len(value) > self.most:
            raise ValueError(f"has {len(value)} entries, and {self.most} at most")
        check = self.of.check
        found = []
        for index, one in enumerate(value):
            try:
                found.append(check(one))
            except ValueError as error:
                raise ValueError(f"[{index}] {error}") from None
        return tuple(found)


class Row(Field):
    """A list with exactly these entries; its value is a tuple."""

    def __init__(self, *of: Field) -> None:
        super().__init__()
        self.of = of

    def check(self, value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(self.of):
            raise ValueError(f"is {_kind(value)}, not a list of {len(self.of)}")
        return tuple(field.check(one) for field, one in zip(self.of, value, strict=True))


class Facts(Field):
    """An object of texts, or of objects of texts, `most` of each at most: all of it is made printable."""

    def __init__(self, most: int, default: Any = REQUIRED) -> None:
        super().__init__(default)
        self.most = most

    def check(self, value: Any) -> dict[str, Any]:
        return self._check(value, deeper=True)

    def _check(self, value: Any, deeper: bool) -> dict[str, Any]:
        if type(value) is not dict:
            raise ValueError(f"is {_kind(value)}, not an object")
        if len(value) > self.most:
            raise ValueError(f"has {len(value)} entries, and {self.most} at most")
        found: dict[str, Any] = {}
        for name, one in value.items():
            if type(one) is str:
                found[names.line(name)] = names.line(one)
            elif deeper:
                found[names.line(name)] = self._check(one, deeper=False)
            else:
                raise ValueError("has an entry that is no text")
        return found


class Made(Field):
    """What `make(value)` makes of an object. An exception of the kinds below means that the object is not as it should
    be. Only what a master or an operator sends is made in this way."""

    def __init__(self, make: Callable[[dict[str, Any]], Any], default: Any = REQUIRED) -> None:
        super().__init__(default)
        self.make = make

    def check(self, value: Any) -> Any:
        if type(value) is not dict:
            raise ValueError(f"is {_kind(value)}, not an object")
        try:
            return self.make(value)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"cannot be read ({type(error).__name__}: {names.line(str(error))})") from None


def is_path(text: str) -> bool:
    """Whether the operating system takes the path."""
    try:
        return b"\0" not in os.fsencode(text) and len(text) <= PATH_MAX
    except UnicodeError:
        return False


_KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


def _kind(value: Any) -> str:
    if type(value) is float and not isfinite(value):
        return "not a finite number"
    return _KINDS.get(type(value), "null")


# --- declarations -----------------------------------------------------------------------------------------------------


def flag(default: Any = REQUIRED) -> Any:
    return Flag(default)


def whole(least: int, most: int, default: Any = REQUIRED, key: str = "") -> Any:
    return Whole(least, most, default, key)


def real(least: float, most: float, default: Any = REQUIRED, *, flags: bool = False) -> Any:
    return Real(least, most, default, flags)


def text(longest: int, default: Any = REQUIRED) -> Any:
    return Text(longest, default)


def path(default: Any = REQUIRED) -> Any:
    return Path(PATH_MAX, default)


def address(longest: int) -> Any:
    return Address(longest)


def name(default: Any = REQUIRED) -> Any:
    return Name(default)


def line(longest: int, default: Any = REQUIRED) -> Any:
    return Shown(longest, False, default)


def lines(longest: int, default: Any = REQUIRED) -> Any:
    return Shown(longest, True, default)


def maybe(of: Any, default: Any = REQUIRED) -> Any:
    return Maybe(of, default)


def several(of: Any, most: int, default: Any = REQUIRED) -> Any:
    return Several(of, most, default)


def row(*of: Any) -> Any:
    return Row(*of)


def facts(most: int, default: Any = REQUIRED) -> Any:
    return Facts(most, default)


def made(make: Callable[[dict[str, Any]], Any], default: Any = REQUIRED) -> Any:
    return Made(make, default)
