"""The history as bars on a time axis: what lived when, where each bar goes, and how the axis is cut. Pure: no drawing.

A generation's bar reaches from the beginning of its boot to its last job. What the history does not say (a master that
was killed says nothing) ends with the last that is known of it, and is marked as such.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from reuseport.cli.words import a_dict, a_list, objects

FAILED, SUPERSEDED, ABORTED, TAKEN_BACK = "failed", "superseded", "aborted", "taken back"
SERVED, CANARY, BOOTING = "served", "canary", "booting"

# A stretch without events that takes more than the first share of the axis is drawn as long as the second of the rest.
LONG, SHORT = 0.75, 0.5
FEW = 6  # stretches up to which nothing is cut


class Job(NamedTuple):
    """`end` is its end, or now if it still runs."""

    begin: float
    end: float
    name: str
    tenant: str
    lost: bool = False
    runs: bool = False


@dataclass
class Bar:
    """A generation, or a release that never became one (`number` is None). Times are seconds of the epoch.

    `trial`, `serve` and `drain` are when it became a canary, served everybody and began to drain. `lives`: its end is
    now. `unknown`: its end is only the last that is known of it.
    """

    number: int | None
    begin: float
    end: float = 0.0
    trial: float | None = None
    serve: float | None = None
    drain: float | None = None
    taken_back: float | None = None
    outcome: str = BOOTING
    label: str = ""
    source: int = 0
    error: str = ""
    jobs: list[Job] = field(default_factory=list)
    waited: int = 0  # jobs that its drain waited for
    lives: bool = False
    unknown: bool = False

    def phases(self) -> list[tuple[str, float, float]]:
        """("boot", "trial", "serve", "drain") that it went through, with begin and end of each."""
        starts = [("boot", self.begin), ("trial", self.trial), ("serve", self.serve), ("drain", self.drain)]
        known = [(name, at) for name, at in starts if at is not None]
        ends = [at for _, at in known[1:]] + [self.end]
        return [(name, at, max(at, end)) for (name, at), end in zip(known, ends, strict=True)]


class Timeline(NamedTuple):
    """`idle`: when no generation lived."""

    bars: list[Bar]
    begin: float
    end: float
    idle: list[tuple[float, float]]


def timeline(lines: Sequence[Mapping[str, Any]], status: Mapping[str, Any] | None, now: float, last: int) -> Timeline:
    """The newest `last` releases of a history (0: all). `status` is the master's, None where there is none to ask."""
    bars: dict[int, Bar] = {}
    never: list[Bar] = []  # never begun
    known = 0.0
    for line in lines:
        if not isinstance(at := line.get("at"), int | float):
            continue
        _add(line, float(at), bars, never, known)
        known = max(known, float(at))
    _present(bars, status, now)
    for bar in bars.values():
        if not bar.end:
            bar.end = max(bar.drain or known, bar.drain or bar.serve or bar.begin)
            bar.unknown = True
    for bar in bars.values():
        bar.end = max([bar.end, *(at for at in (bar.begin, bar.trial, bar.serve, bar.drain) if at is not None)])
    found = sorted([*bars.values(), *never], key=lambda bar: (bar.begin, bar.number or 0))[-last:]
    begin = min((bar.begin for bar in found), default=now)
    end = max((bar.end for bar in found), default=now)
    return Timeline(found, begin, max(end, begin + 1.0), _idle(found))


def _add(line: Mapping[str, Any], at: float, bars: dict[int, Bar], never: list[Bar], known: float) -> None:
    event, number = line.get("event"), line.get("number")
    if event == "started":
        adopted = a_list(line, "adopted")
        for bar in bars.values():
            if not bar.end and bar.number not in adopted:
                bar.end, bar.unknown = max(known, bar.serve or bar.begin), True
    elif event == "stopped":
        for bar in bars.values():
            bar.end = bar.end or at
    elif event == "release":
        _add_release(line, at, bars, never)
    elif not isinstance(number, int) or number not in bars:
        return
    elif event == "taken back":
        bars[number].taken_back, bars[number].outcome = at, TAKEN_BACK
        bars[number].error = str(line.get("error") or "")
    elif event == "drained":
        bar = bars[number]
        bar.end, bar.drain = at, at - _seconds(line)
        waited = objects(line, "jobs")
        bar.waited = len(waited)
        bar.jobs = [_ended(job, at) for job in [*objects(line, "jobs_before"), *waited]]


def _add_release(line: Mapping[str, Any], at: float, bars: dict[int, Bar], never: list[Bar]) -> None:
    number, outcome = line.get("number"), line.get("outcome")
    new = Bar(
        number if isinstance(number, int) else None,
        at - _seconds(line),
        label=str(line.get("label") or ""),
        source=int(line.get("source") or 0),
        error=str(line.get("error") or ""),
    )
    if new.number is None:
        new.end, new.outcome = at, _ended_as(outcome)
        never.append(new)
        return
    bar = bars.setdefault(new.number, new)
    if outcome == "canary":
        bar.trial, bar.outcome = at, CANARY
    elif outcome == "serving":
        for older in bars.values():
            if (older.serve is not None or older.trial is not None) and older.drain is None and not older.end:
                older.drain = at
        bar.serve, bar.drain, bar.outcome = at, None, SERVED
    else:
        bar.end, bar.outcome = at, _ended_as(outcome)
        bar.error = new.error


def _ended_as(outcome: Any) -> str:
    return outcome if outcome in (SUPERSEDED, ABORTED) else FAILED


def _present(bars: dict[int, Bar], status: Mapping[str, Any] | None, now: float) -> None:
    """What a master says that lives."""
    for one in objects(status or {}, "generations"):
        number, age = one.get("number"), one.get("age")
        if not isinstance(number, int) or one.get("state") == "standby":
            continue
        if number not in bars and isinstance(age, int | float):
            bars[number] = Bar(number, now - age, label=str(one.get("label") or ""), source=int(one.get("source") or 0))
        if number not in bars or (bars[number].end and not bars[number].unknown):
            continue
        bar = bars[number]
        bar.end, bar.lives, bar.unknown = now, True, False
        for job in objects(a_dict(one, "waits_for"), "jobs"):
            began = now - float(job.get("age") or 0.0)
            bar.jobs.append(Job(began, now, str(job.get("name", "?")), str(job.get("tenant") or ""), runs=True))


def _ended(job: Mapping[str, Any], drained: float) -> Job:
    end = job.get("at")
    end = float(end) if isinstance(end, int | float) else drained  # an older history does not say
    tenant = str(job.get("tenant") or "")
    return Job(end - _seconds(job), end, str(job.get("name", "?")), tenant, lost=bool(job.get("lost")))


def _seconds(line: Mapping[str, Any]) -> float:
    seconds = line.get("seconds")
    return max(0.0, float(seconds)) if isinstance(seconds, int | float) else 0.0


def _idle(bars: Sequence[Bar]) -> list[tuple[float, float]]:
    gaps, until = [], bars[0].end if bars else 0.0
    for bar in bars:
        if bar.begin > until:
            gaps.append((until, bar.begin))
        until = max(until, bar.end)
    return gaps


class Scale:
    """Times to places between `left` and `right`; `cuts` are the stretches that are drawn shorter than they are."""

    def __init__(self, begin: float, end: float, events: Iterable[float], left: float, right: float) -> None:
        times = sorted({begin, end, *(at for at in events if begin < at < end)})
        real = [later - at for at, later in pairwise(times)]
        drawn = list(real)
        for _ in range(3):
            longest = max(range(len(drawn)), key=drawn.__getitem__)
            rest = sum(drawn) - drawn[longest]
            if len(drawn) <= FEW or drawn[longest] <= LONG * sum(drawn) or not rest:
                break
            drawn[longest] = SHORT * rest
        unit = (right - left) / sum(drawn)
        self._times = times
        self._places = [left]
        for length in drawn:
            self._places.append(self._places[-1] + length * unit)
        self.begin, self.end, self.left, self.right = begin, end, left, right
        self.unit = unit  # columns in a second, where nothing is cut
        self.cuts = [
            (times[index], times[index + 1]) for index in range(len(real)) if drawn[index] < real[index] * 0.999
        ]

    def __call__(self, at: float) -> float:
        at = min(max(at, self.begin), self.end)
        index = min(max(bisect_right(self._times, at) - 1, 0), len(self._times) - 2)
        first, second = self._times[index : index + 2]
        low, high = self._places[index : index + 2]
        return low + (high - low) * (at - first) / (second - first)


class Place(NamedTuple):
    """Where a bar goes: its lane from 0, from where to where, and on which side its label stands, if not in it."""

    lane: int
    x0: float
    x1: float
    label: str  # "in", "right" or "left"


def pack(
    bars: Sequence[Bar], scale: Callable[[float], float], right: float, label: Callable[[Bar], float], least: float
) -> list[Place]:
    """A place for each bar, such that in no lane bars or their labels touch. `label` is a label's width, `least` that
    of the shortest bar. Bars come in the order of their begin."""
    lanes: list[float] = []  # up to where each is taken
    places = []
    for bar in bars:
        x0 = min(scale(bar.begin), right - least)
        x1 = max(scale(bar.end), x0 + least)
        text = label(bar)
        if x1 - x0 >= text:
            side, low, high = "in", x0, x1
        elif x1 + text <= right:
            side, low, high = "right", x0, x1 + text
        else:
            side, low, high = "left", x0 - text, x1
        lane = next((index for index, taken in enumerate(lanes) if taken <= low), len(lanes))
        lanes[lane:lane + 1] = [high + 3.0]  # fmt: skip
        places.append(Place(lane, x0, x1, side))
    return places


def merge(samples: Sequence[Mapping[str, Any]], scale: Scale, least: float) -> list[dict[str, Any]]:
    """Samples drawn together until each takes `least` columns: their sums, and the worst p99."""
    merged: list[dict[str, Any]] = []
    for one in sorted(samples, key=lambda one: one.get("at") or 0):
        at, seconds = one.get("at"), one.get("seconds")
        if not isinstance(at, int | float) or not isinstance(seconds, int | float) or seconds <= 0:
            continue
        begin = at - seconds
        if at <= scale.begin or begin >= scale.end:
            continue
        last = merged[-1] if merged else None
        near = last is not None and begin - last["end"] < 0.5 * seconds + 0.01
        if last is None or not near or scale(last["end"]) - scale(last["begin"]) >= least:
            empty = {"requests": 0, "errors": 0, "p50": None, "p99": None, "generations": {}}
            last = {"begin": last["end"] if last and near else begin, "end": at, "seconds": 0.0, **empty}
            merged.append(last)
        last["end"] = at
        last["seconds"] += seconds
        for name in ("requests", "errors"):
            last[name] += one.get(name) or 0
        for name in ("p50", "p99"):
            worst = [value for value in (last[name], one.get(name)) if isinstance(value, int | float)]
            last[name] = max(worst, default=None)
        for number, requests in a_dict(one, "generations").items():
            last["generations"][str(number)] = last["generations"].get(str(number), 0) + (requests or 0)
    return merged


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def ticks(scale: Scale, apart: float) -> list[tuple[float, str]]:
    """Times at which the axis has a mark, at least `apart` columns from each other, and what stands there."""
    fitting = [step for step in _STEPS if step * scale.unit >= apart]
    step = fitting[0] if fitting else 86400 * max(1, -(-int(apart / scale.unit) // 86400))
    found: list[tuple[float, str]] = []
    before, day = -apart, ""
    # Steps are counted from the local midnight.
    at = (scale.begin + _offset(scale.begin)) // step * step - _offset(scale.begin)
    while at <= scale.end:
        cut = any(low < at < high for low, high in scale.cuts)
        if at >= scale.begin and not cut and scale(at) - before >= apart:
            today = _day(at)
            said = today if step >= 86400 else time.strftime("%H:%M:%S" if step < 60 else "%H:%M", time.localtime(at))
            if step < 86400 and day and today != day:
                said = f"{today} {said}"
            found.append((at, said))
            before, day = scale(at), today
        at += step
        if inside := next((high for low, high in scale.cuts if low < at < high), None):
            at += (inside - at) // step * step
    return found


def _offset(at: float) -> int:
    return time.localtime(at).tm_gmtoff or 0


def _day(at: float) -> str:
    moment = time.localtime(at)
    return f"{moment.tm_mday} {time.strftime('%b', moment)}"
