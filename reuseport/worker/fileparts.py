"""Parts of files: the objects by which libraries hand over one range of a file (RFC 9110 section 14).

Each library has a class of its own, whose `read` or iteration ends at the end of the range. Where such an object stands
before a plain file, sendfile(2) can send the range (`filewrapper`). The bytes that the object would return must be
certain. So this file knows each class by its module, its name and its attributes, and where `read` decides, by all the
names that the code of `read` uses. A subclass, another version or a patched method is read in blocks instead.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, NamedTuple


class Part:
    """The next `remaining` bytes of a file, as a file."""

    def __init__(self, file: Any, remaining: int) -> None:
        self.file = file
        self.remaining = remaining
        if hasattr(file, "close"):
            self.close = file.close

    def read(self, size: int = -1) -> bytes:
        size = self.remaining if size < 0 else min(size, self.remaining)
        data: bytes = self.file.read(size)
        self.remaining -= len(data)
        return data


# The attribute that has the file; `remaining` has the number of bytes.
_BOUNDED = {
    (__name__, "Part"): "file",
    ("falcon.routing.static", "_BoundedFile"): "fh",
    ("whitenoise.responders", "SlicedFile"): "fileobj",
}


def bounded(filelike: Any) -> tuple[Any, int] | None:
    """The file whose bytes `filelike.read()` returns, and how many of them at most. None for other objects."""
    kind = type(filelike)
    attribute = _BOUNDED.get((kind.__module__, kind.__qualname__))
    if attribute is None:
        return None
    known = vars(filelike)
    read = kind.__dict__.get("read")
    if "read" in known or type(read) is not FunctionType:
        return None
    names = {attribute, "read", "remaining"}
    if not names <= set(read.__code__.co_names) <= names | {"len", "min"}:
        return None
    file, remaining = known.get(attribute), known.get("remaining")
    return (file, remaining) if file is not None and type(remaining) is int and remaining >= 0 else None


class Range(NamedTuple):
    """The bytes from `start` on up to `end`, or to the end of the file, of what `iterable` iterates over."""

    iterable: Any
    start: int
    end: int | None


_WERKZEUG = {"byte_range", "end_byte", "end_reached", "iterable", "read_length", "seekable", "start_byte"}


def is_werkzeugs(kind: type) -> bool:
    """Whether this is the class by which werkzeug answers a range."""
    return (kind.__module__, kind.__qualname__) == ("werkzeug.wsgi", "_RangeWrapper")


def werkzeugs_range(wrapper: Any) -> Range | None:
    """The range that werkzeug's `_RangeWrapper` would iterate over. None if it has begun, or has other attributes."""
    known = vars(wrapper)
    if known.keys() != _WERKZEUG or known["read_length"] or known["end_reached"] or not known["seekable"]:
        return None
    start, end = known["start_byte"], known["end_byte"]
    if type(start) is not int or start < 0 or not (end is None or (type(end) is int and end >= start)):
        return None
    return Range(known["iterable"], start, end)
