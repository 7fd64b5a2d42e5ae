"""Figures: what a worker has counted, or a sum of such, in one list that is added and subtracted as a whole."""

from __future__ import annotations

from collections.abc import Iterable
from operator import add, sub
from typing import Any, NamedTuple

from reuseport.ipc.latencies import BUCKETS
from reuseport.ipc.scoreboard import FIELDS

# The buckets of the histogram, the sum of its latencies in nanoseconds, the fields of the scoreboard.
Figures = list[int]
NANOSECONDS = BUCKETS
COUNTERS = BUCKETS + 1
NOTHING: Figures = [0] * (COUNTERS + FIELDS)


class Look(NamedTuple):
    """The totals at one moment of the monotonic clock: of all generations there have ever been, and of each that there
    is or has been until lately."""

    time: float
    server: Figures
    generations: dict[int, Figures]


def look_of(said: Any) -> Look:
    """A look, after a way through JSON."""
    when, server, generations = said
    return Look(when, server, {int(number): figures for number, figures in generations.items()})


def total(many: Iterable[Figures]) -> Figures:
    sums = NOTHING
    for one in many:
        sums = list(map(add, sums, one))
    return sums


def between(before: Figures, after: Figures) -> Figures:
    """What has come to it."""
    return list(map(sub, after, before))
