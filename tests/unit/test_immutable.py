"""Plain data of the core behaves as frozen dataclasses do, but for the check of assignments, which is mypy's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import pytest

from reuseport.core import events
from reuseport.core.immutable import immutable


@immutable
class Point:
    x: int
    y: int = 2
    tags: tuple[str, ...] = field(default_factory=tuple)


@immutable
class Other:
    x: int
    y: int = 2
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usual:
    x: int
    y: int = 2
    tags: tuple[str, ...] = ()


def test_it_is_equal_to_its_like_only():
    assert Point(1) == Point(x=1, y=2) == replace(Point(5), x=1)
    assert Point(1) != Point(1, 3) and Point(1) != Other(1) and Point(1) != (1, 2, ())
    assert len({Point(1), Point(1, 2), Point(2), Other(1)}) == 3
    with pytest.raises(TypeError):
        hash(Point(1, tags=["a list"]))


def test_it_reads_and_comes_apart_as_a_dataclass():
    assert repr(Point(1)) == repr(Usual(1)).replace("Usual", "Point")
    assert asdict(Point(1)) == asdict(Usual(1))
    with pytest.raises(TypeError):
        Point()
    match Point(7):
        case Point(x, y):
            assert (x, y) == (7, 2)


def test_two_events_without_fields_differ_by_their_class():
    assert events.Tick() == events.Tick()
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and kind.__module__ == events.__name__]
    assert len(kinds) > 40
