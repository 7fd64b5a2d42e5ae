"""Values that an application passes to the public functions: converted or refused where it calls."""

from __future__ import annotations

import math
from typing import Any

from reuseport import names

_NO_NUMBERS = frozenset({"bool", "bool_"})  # numpy's, too, which is no subclass of bool


def number(value: Any, what: str) -> float:
    """A float of any real number: int, Decimal, Fraction, a scalar of numpy, everything that has `__float__`.

    `what` begins the error's text. TypeError for a bool, a str, a timedelta and everything else that is no real number;
    ValueError for NaN and for a number that no float can hold.
    """
    kind = type(value)
    is_real = hasattr(kind, "__float__") or hasattr(kind, "__index__")
    if not is_real or kind.__name__ in _NO_NUMBERS:
        hint = ". Pass timedelta.total_seconds()" if hasattr(kind, "total_seconds") else ""
        raise TypeError(f"{what}, not {kind.__name__}: {_shown(value)}{hint}")
    try:
        converted = float(value)
    except OverflowError:
        raise ValueError(f"{what}, and {_shown(value)} is too large") from None
    if math.isnan(converted):
        raise ValueError(f"{what}, not {_shown(value)}")
    return converted


def text(value: Any, what: str) -> str:
    """The value, which must be a str, or an int, whose digits are taken. TypeError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}: {_shown(value)}")
    return str.__str__(value)  # without what a subclass makes of str()


def function(value: Any, what: str) -> None:
    """TypeError for a value that cannot be called."""
    if not callable(value):
        raise TypeError(f"{what} is a function, not {type(value).__name__}: {_shown(value)}")


def _shown(value: Any) -> str:
    try:
        return names.line(repr(value), 80)
    except Exception:  # noqa: BLE001 - the value's own __repr__, or an int that is too long for one
        return "a value without repr()"
