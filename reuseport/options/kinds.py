"""What the value of an option may look like, and how it is read.

A kind accepts text (a flag, a variable) as well as a value that TOML, JSON or Python already typed, and returns the one
form that the rest of the server sees. `show` is its inverse for people: what it returns can be written into a file and
read again. A value that does not fit raises ValueError with the second half of a sentence, "'x' is not a whole number":
only the caller knows who said it, and puts that in front.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def as_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Kind:
    """How one value is read.

    `split` breaks the text of a variable into the items of a repeatable option. `anchor(value, directory)` makes a
    relative path absolute; it is not given for what must be resolved afresh at each release.
    """

    metavar: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], Any] = as_is
    split: Callable[[str], list[str]] = str.split
    anchor: Callable[[Any, str], Any] | None = None


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    if "\0" in value:
        raise ValueError(f"{value!r} has a NUL character in it")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # int() would also take "1_000" and digits of other scripts; a file written for it could not be read by others.
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
        return int(value)
    raise ValueError(f"{value!r} is not a whole number")


_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _YES | _NO:
        return value.strip().lower() in _YES
    raise ValueError(f"{value!r} is neither true nor false")


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        found = isinstance(value, str) and re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|)\s*", value, re.ASCII)
        if not found:
            raise ValueError(f"{value!r} is not a time (90, 90s, 15m, 2h)")
        seconds = round(float(found[1]) * _SECONDS[found[2]], 6)
    # Beyond some 30 years a timer overflows somewhere below Python, and nobody meant it.
    if not math.isfinite(seconds) or not 0 <= seconds <= 1e9:
        raise ValueError(f"{value!r} is not a time between 0 and 1000000000 seconds")
    return seconds


def _show_seconds(value: float) -> int | float:
    return int(value) if value == int(value) else value


_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        found = isinstance(value, str) and re.fullmatch(
            r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", value, re.ASCII | re.IGNORECASE
        )
        if not found:
            raise ValueError(f"{value!r} is not a size (65536, 64K, 512M, 2G)")
        unit = _BYTES[found[2].lower()]
        size = int(found[1]) * unit if "." not in found[1] else int(float(found[1]) * unit)
    if not 0 <= size < 1 << 62:
        raise ValueError(f"{value!r} is not a size between 0 and {1 << 62} bytes")
    return size


def _show_size(value: int) -> int | str:
    for suffix in "TGMK":
        unit = _BYTES[suffix.lower()]
        if value and value % unit == 0:
            return f"{value // unit}{suffix}"
    return value


def _share(value: Any) -> float:
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(%?)\s*", str(value), re.ASCII)
    share = float(found[1]) / (100 if found[2] else 1) if found and not isinstance(value, bool) else -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share from 0 to 1 (0.05, 5%)")
    return share


def _umask(value: Any) -> int | None:
    # In TOML `umask = 22` would be 0o26: a mask that looks right and is not. So it has to be text.
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not text: write octal digits in quotes, "022"')
    if value == "":
        return None
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", value) or int(value, 8) > 0o777:
        raise ValueError(f"{value!r} is not an octal mask (022, 0o077)")
    return int(value, 8)


def _show_umask(value: int | None) -> str:
    return "" if value is None else f"{value:#05o}"


def _name(value: Any) -> str:
    value = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError(f"{value!r} is not a name: 1 to 64 of A-Z a-z 0-9 . _ - and not first one of the last three")
    return value


def _token(value: Any) -> str:
    value = _text(value)
    if not re.fullmatch(r"[!#$%&'*+\-.^`|~0-9A-Za-z]{1,100}", value):  # RFC 9110 section 5.1, but no underscore
        raise ValueError(f"{value!r} is not the name of a header")
    return value


def _metric_prefix(value: Any) -> str:
    value = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,200}", value):  # statsd's lines have : | @ # for themselves
        raise ValueError(f"{value!r} is not the beginning of a name: letters, digits, _ - and dots")
    return value


def _metric_tags(value: Any) -> str:
    value = _text(value)
    if not re.fullmatch(r"[^|#@\s]{0,500}", value):
        raise ValueError(f"{value!r} is not a list of tags: they are separated by commas, without blanks, | # and @")
    return value


def _web_path(value: Any) -> str:
    value = _text(value)
    if not re.fullmatch(r"/[!-~]*", value) or "#" in value:
        raise ValueError(f"{value!r} is not the path of a request: it begins with / and is percent-encoded ASCII")
    return value


def _assignment(value: Any) -> tuple[str, str]:
    """KEY=VALUE as text, or (key, value) from a table."""
    if isinstance(value, tuple | list) and len(value) == 2:
        key, content = value
        if isinstance(content, int) and not isinstance(content, bool):
            content = str(content)
        if not isinstance(content, str):
            raise ValueError(f"the value of {key} is not text: put it in quotes")
    else:
        key, equals, content = _text(value).partition("=")
        if not equals:
            raise ValueError(f"{value!r} is not KEY=VALUE")
    if not isinstance(key, str) or not key or "=" in key or "\0" in key + content:
        raise ValueError(f"{key!r} cannot be the name of an environment variable")
    return key, content


def _split_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{text!r} cannot be split into KEY=VALUE words: {str(error).lower()}") from error


def _split_commas(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def split_commas_and_spaces(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _directory(value: Any) -> str:
    value = _text(value)
    if not value:
        raise ValueError("'' is not a directory")
    return value


def _account(value: Any) -> str:
    return str(_whole(value)) if isinstance(value, int) else _text(value)


def _join(path: str, directory: str) -> str:
    """`path` in `directory`, symbolic links untouched: `current` must stay `current`, and `..` means what it says."""
    if path in ("", "-"):
        return path
    return directory if path == "." else os.path.join(directory, path)


_TENANT_TOKEN = re.compile(r"[!#$%&'*+\-.^`|~0-9A-Za-z]+", re.ASCII)  # of a header's or cookie's name; no underscore


def parse_tenant(rule: str) -> tuple[str, str]:
    """(kind, argument) of a --tenant: header, host, label, path, cookie or callable. ValueError if it is none."""
    kind, colon, argument = rule.partition(":")
    if kind in ("header", "cookie"):
        if not (_TENANT_TOKEN.fullmatch(argument.replace("_", "-")) and (kind == "cookie" or "_" not in argument)):
            raise ValueError(f"{rule!r} names no {kind}: it is {kind}:NAME")
        return kind, argument
    if kind == "host" and not colon:
        return "host", ""
    if kind in ("host", "path"):
        if not re.fullmatch(r"[1-9][0-9]?", argument, re.ASCII):
            what = "LABEL" if kind == "host" else "N"
            raise ValueError(f"{rule!r} is not {kind}:{what}, a number from 1 to 99, counted from the left")
        return ("label" if kind == "host" else "path"), argument
    if not colon or not all(part.isidentifier() for part in [*kind.split("."), *argument.split(".")]):
        raise ValueError(f"{rule!r} is none of header:NAME, host, host:LABEL, path:N, cookie:NAME, MODULE:CALLABLE")
    return "callable", argument


def _tenant(value: Any) -> str:
    value = _text(value)
    if value:
        parse_tenant(value)
    return value


def choice(*words: str) -> Kind:
    """One of a few words."""

    def parse(value: Any) -> str:
        word = value.strip().lower() if isinstance(value, str) else value
        if word not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}")
        return word

    return Kind("|".join(words), parse)


TENANT = Kind("RULE", _tenant)
WHOLE = Kind("N", _whole)
SWITCH = Kind("", _switch)
SECONDS = Kind("TIME", _seconds, _show_seconds)
SIZE = Kind("SIZE", _size, _show_size)
PATH = Kind("FILE", _text, anchor=_join)
LATE_PATH = Kind("PATH", _text)
NAME = Kind("NAME", _name)
TEXT = Kind("TEXT", _text)
METRIC_PREFIX = Kind("PREFIX", _metric_prefix)
METRIC_TAGS = Kind("TAGS", _metric_tags)
TOKEN = Kind("NAME", _token)
ACCOUNT = Kind("NAME", _account)
SHARE = Kind("SHARE", _share)
TEXT = Kind("TEXT", _text)
UMASK = Kind("MASK", _umask, _show_umask)
WEB_PATH = Kind("PATH", _web_path)
DIRECTORIES = Kind("DIR", _directory, split=_split_commas)
ASSIGNMENT = Kind("KEY=VALUE", _assignment, split=_split_words)
