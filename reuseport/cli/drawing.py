"""The history as one SVG: bars in lanes, and below them, on the same axis, what the server did meanwhile.

Generations that drain side by side stand one above the other. They have five colours in turn, and keep theirs in the
traffic, so that one sees it move from one to the next; red is for failures alone. Whatever can be pointed at has a
<title>, which browsers show and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reuseport.cli import style, words
from reuseport.cli import timeline as tl
from reuseport.cli.ink import columns
from reuseport.cli.telling import escaped, moment, period, told, told_job
from reuseport.cli.timeline import Bar, Job, Place, Scale, Timeline
from reuseport.cli.words import duration, latency, rate

WIDTHS = (1120, 1680, 2240, 3360, 4480)
LANES = 12  # more of them, and a wider picture is tried
LEFT, RIGHT = 56, 56
BAR, SHORTEST = 18, 3.0
JOB_ROWS, JOB_ROW = 4, 9
APART = 14  # between two lanes
NAMED = 12  # jobs of a generation up to which their tenants are named
CHART, CHART_GAP = 96, 34
SMALL = 0.86  # of that: a tenant's name
LETTER = 6.8  # the width of a letter of a label, about
COLOURS = 5


def svg(line: Timeline, samples: Sequence[Mapping[str, Any]], name: str, *, alone: bool = True) -> str:
    """The picture, `alone` or in a page that has its style."""
    width, scale, places = layout(line)
    return _Picture(line, samples, name, width, scale, places).whole(alone)


def layout(line: Timeline) -> tuple[int, Scale, list[Place]]:
    """The narrowest width at which the lanes are few enough to be read, its scale, and where each bar goes."""
    events = [at for bar in line.bars for _, begin, end in bar.phases() for at in (begin, end)]
    for width in WIDTHS:
        scale = Scale(line.begin, line.end, events, LEFT, width - RIGHT)
        places = tl.pack(line.bars, scale, width - 4, lambda bar: _wide(label_of(bar)) + _badge(bar) + 12, SHORTEST)
        if width == WIDTHS[-1] or max((place.lane for place in places), default=0) < LANES:
            return width, scale, places
    raise AssertionError("the last width is taken")


def label_of(bar: Bar) -> str:
    """What stands in a bar, or beside it."""
    number = "refused" if bar.number is None else str(bar.number)
    return f"{number} ← {bar.source}" if bar.source else number


class _Picture:
    def __init__(
        self,
        line: Timeline,
        samples: Sequence[Mapping[str, Any]],
        name: str,
        width: int,
        scale: Scale,
        places: Sequence[Place],
    ) -> None:
        self.line, self.name, self.width, self.scale, self.places = line, name, width, scale, places
        self.samples = tl.merge(samples, scale, 2.5)
        self.jobs = [self._rows(bar) for bar in line.bars]
        self.lanes, self.floor = self._lanes(64)
        charts = 2 * (CHART + CHART_GAP) if self.samples else 0
        self.bottom = self.floor + charts
        self.height = self.bottom + 34

    def _lanes(self, top: float) -> tuple[list[float], float]:
        """Where each lane begins, and where the last one ends: each is as high as its jobs need."""
        rows = [0] * (max((place.lane for place in self.places), default=0) + 1)
        for place, jobs in zip(self.places, self.jobs, strict=True):
            rows[place.lane] = max([rows[place.lane], *(row + 1 for _, row, _ in jobs)])
        lanes = []
        for count in rows:
            lanes.append(top)
            top += BAR + (4 + count * JOB_ROW if count else 0) + APART
        return lanes, top

    def _rows(self, bar: Bar) -> list[tuple[Job, int, str]]:
        """The jobs of a bar, each with its row and where its tenant's name stands: "on" its line, "behind" it or ""."""
        rows: list[float] = []
        found = []
        for job in sorted(bar.jobs, key=lambda job: job.begin):
            x0, x1 = self.scale(job.begin), self.scale(job.end)
            wide = _wide(job.tenant) * SMALL + 10
            name = "" if not job.tenant or len(bar.jobs) > NAMED else "on" if x1 - x0 > wide + 8 else "behind"
            if name == "behind" and (x1 + wide > self.scale(bar.end) or job.lost):
                name = ""
            row = next((index for index, taken in enumerate(rows) if taken <= x0), len(rows))
            if row >= JOB_ROWS:
                # They are too many: some lie on others, without a name.
                row, name = min(range(JOB_ROWS), key=rows.__getitem__), ""
            end = max(x1 + (wide if name == "behind" else 0) + 3, rows[row] if row < len(rows) else 0.0)
            rows[row:row + 1] = [end]  # fmt: skip
            found.append((job, row, name))
        return found

    def whole(self, alone: bool) -> str:
        failed = sum(bar.outcome == tl.FAILED for bar in self.line.bars)
        about = f"{words.count(len(self.line.bars), 'release') or 'no release'}, {failed} failed; {period(self.line)}"
        namespace = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
        looks = f"<style>{style.PICTURE}</style>" if alone else ""
        parts = [
            f'<svg{namespace} class="rp" role="img" aria-labelledby="rp-title rp-desc" '
            f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}">',
            f'<title id="rp-title">Releases of {escaped(self.name)}</title>',
            f'<desc id="rp-desc">{escaped(about)}</desc>{looks}',
            f'<rect class="paper" width="{self.width}" height="{self.height}"/>',
            *self._legend(),
            *self._axis(),
            *self._marks(),
        ]
        if self.samples:
            parts += self._traffic(self.floor + CHART_GAP) + self._latencies(self.floor + CHART + 2 * CHART_GAP)
            parts += self._told_samples()
        if not self.line.bars:
            parts.append(_text(LEFT, self.lanes[0] + BAR / 2 + 4, "no release yet"))
        for bar, place, jobs in zip(self.line.bars, self.places, self.jobs, strict=True):
            parts += self._bar(bar, place, jobs)
        return "\n".join([*parts, "</svg>"]) + "\n"

    def _legend(self) -> list[str]:
        parts = [f'<text class="head" x="{LEFT}" y="26">{escaped(self.name)}</text><g class="none">']
        x = LEFT + _wide(self.name) * 1.15 + 28
        for css, what in (("boot", "boot"), ("serve", "serves"), ("drain", "drains")):
            parts.append(f'<rect class="{css}" x="{x:.1f}" y="17" width="18" height="10" rx="2"/>')
            parts.append(f'<text x="{x + 24:.1f}" y="26">{what}</text>')
            x += 24 + _wide(what) + 20
        parts.append(f'<path class="job" d="M{x:.1f} 22h18"/><path class="tick" d="M{x + 18:.1f} 18v8"/>')
        parts.append(f'<text x="{x + 26:.1f}" y="26">job and its end</text></g>')
        x += 26 + _wide("job and its end") + 24
        parts += [_cross(x, 22), f'<text x="{x + 12:.1f}" y="26">failed, taken back, or a job lost</text>']
        return parts

    def _axis(self) -> list[str]:
        parts = []
        for begin, end in self.line.idle:
            x0, x1 = self.scale(begin), self.scale(end)
            if x1 - x0 >= 1:
                title = f"<title>no server for {duration(end - begin)}</title>"
                parts.append(
                    f'<rect class="idle" x="{x0:.1f}" y="{self.lanes[0] - 10}" width="{x1 - x0:.1f}" '
                    f'height="{self.bottom - self.lanes[0] + 10}">{title}</rect>'
                )
                if x1 - x0 > _wide("no server") + 12:
                    parts.append(_text((x0 + x1) / 2, self.lanes[0] - 16, "no server", anchor="middle"))
        for begin, end in self.scale.cuts:
            x0, x1 = self.scale(begin), self.scale(end)
            said = f"{duration(end - begin)}, not to scale"
            parts.append(f'<path class="cut" d="M{x0:.1f} {self.bottom + 6}H{x1:.1f}"><title>{said}</title></path>')
            if x1 - x0 > _wide(said):
                parts.append(_text((x0 + x1) / 2, self.bottom + 22, said, anchor="middle"))
        for at, said in tl.ticks(self.scale, 84):
            x = self.scale(at)
            parts.append(f'<path class="grid" d="M{x:.1f} {self.lanes[0] - 10}V{self.bottom + 4}"/>')
            if not any(self.scale(low) - 40 < x < self.scale(high) + 40 for low, high in self.scale.cuts):
                anchor = "end" if x > self.width - RIGHT - 24 else "middle"
                parts.append(_text(x, self.bottom + 22, said, anchor=anchor))
        return parts

    def _marks(self) -> list[str]:
        """A line through everything below where a generation begins to serve."""
        parts = []
        for bar, place in zip(self.line.bars, self.places, strict=True):
            at = bar.serve if bar.serve is not None else bar.trial
            if at is not None and self.samples:
                y = self.lanes[place.lane] + BAR
                parts.append(f'<path class="mark {_colour(bar)}" d="M{self.scale(at):.1f} {y}V{self.bottom}"/>')
        return parts

    def _bar(self, bar: Bar, place: Place, jobs: Sequence[tuple[Job, int, str]]) -> list[str]:
        y = self.lanes[place.lane]
        failed = bar.outcome == tl.FAILED and bar.serve is None
        parts = [f'<g class="{"failed" if failed else _colour(bar)}"><title>{escaped(told(bar))}</title>']
        for phase, begin, end in bar.phases():
            x0, x1 = max(self.scale(begin), 0.0), self.scale(end)
            if phase == "boot" or bar.end == bar.begin:
                x0 = min(x0, place.x0)
            # One that is too short to be seen is drawn longer, as its place is.
            x1 = max(x1, place.x1) if end == bar.end else x1
            if x1 - x0 >= 0.3:
                css = "failed boot" if failed else phase
                parts.append(f'<rect class="{css}" x="{x0:.1f}" y="{y}" width="{x1 - x0:.1f}" height="{BAR}" rx="2"/>')
        if bar.lives:
            parts.append(f'<path class="serve" d="M{place.x1:.1f} {y}l7 {BAR / 2}l-7 {BAR / 2}z"/>')
        elif bar.unknown:
            parts.append(f'<path class="edge" d="M{place.x1:.1f} {y}l-3 4.5l3 4.5l-3 4.5l3 4.5"/>')
        parts += self._label(bar, place, y)
        parts += self._jobs(jobs, y + BAR + 4)
        return [*parts, "</g>"]

    def _label(self, bar: Bar, place: Place, y: float) -> list[str]:
        text, badge = label_of(bar), _badge(bar)
        middle = y + BAR / 2
        if place.label == "in":
            # It stands where the bar is full, if that is wide enough; on the pale parts it has another colour.
            x, css = place.x0 + 6, "name"
            for phase, begin, end in bar.phases():
                if phase == "serve" and self.scale(end) - self.scale(begin) >= _wide(text) + badge + 10:
                    x, css = self.scale(begin) + 6, "in"
            return [_text(x, middle + 4, text, css), *([_cross(x + _wide(text) + 9, middle)] if badge else [])]
        if place.label == "right":
            x = place.x1 + (10 if bar.lives else 5)
            return [_text(x + badge, middle + 4, text, "name"), *([_cross(x + 6, middle)] if badge else [])]
        x = place.x0 - 5
        return [_text(x - badge, middle + 4, text, "name", "end"), *([_cross(x - 6, middle)] if badge else [])]

    def _jobs(self, jobs: Sequence[tuple[Job, int, str]], y: float) -> list[str]:
        parts = []
        for job, row, name in jobs:
            x0, x1, at = self.scale(job.begin), self.scale(job.end), y + row * JOB_ROW + 4
            css = "lost" if job.lost else "tick"
            end = "" if job.runs else f'<path class="{css}" d="M{x1:.1f} {at - 3:.1f}v6"/>'
            whole = f'<path class="job" d="M{x0:.1f} {at:.1f}H{max(x1, x0 + 1):.1f}"/>{end}'
            parts.append(f"<g><title>{escaped(told_job(job))}</title>{whole}</g>")
            if name == "on":
                # It stands in the middle of its line, on paper, so that it can be read.
                wide = _wide(job.tenant) * SMALL + 6
                paper = f'x="{(x0 + x1 - wide) / 2:.1f}" y="{at - 4}" width="{wide:.1f}" height="8"'
                parts.append(f'<rect class="paper" {paper}/>')
                parts.append(_text((x0 + x1) / 2, at + 3.5, job.tenant, "tenant", "middle"))
            elif name == "behind":
                parts.append(_text(x1 + 4, at + 3.5, job.tenant, "tenant"))
        return parts

    # --- below ------------------------------------------------------------------------------------------------------

    def _traffic(self, y: float) -> list[str]:
        highest = _nice(max((one["requests"] / one["seconds"] for one in self.samples), default=0.0) or 1.0)
        up = self._frame_up(y, highest)
        parts = self._frame(y, "requests/s", highest, rate)
        numbers = sorted({int(n) for one in self.samples for n in one["generations"] if n.isdecimal()})
        below = [0.0] * len(self.samples)
        for number in numbers or [None]:
            if number is None:
                own = [one["requests"] for one in self.samples]
            else:
                own = [one["generations"].get(str(number), 0) for one in self.samples]
            above = [low + mine / one["seconds"] for low, mine, one in zip(below, own, self.samples, strict=True)]
            paths = self._steps(above, up, below)
            title = f"<title>generation {number}</title>" if number is not None else ""
            css = "none" if number is None else f"g{number % COLOURS}"
            parts += [f'<path class="area {css}" d="{path}">{title}</path>' for path in paths]
            below = above
        for one in self.samples:
            if one["errors"]:
                x0, x1 = self.scale(one["begin"]), self.scale(one["end"])
                tall = max(3.0, y + CHART - up(one["errors"] / one["seconds"]))
                parts.append(
                    f'<rect class="errors" x="{x0:.1f}" y="{y + CHART - tall:.1f}" width="{max(1.5, x1 - x0):.1f}" '
                    f'height="{tall:.1f}"/>'
                )
        return parts

    def _latencies(self, y: float) -> list[str]:
        found = [one["p99"] for one in self.samples if one["p99"] is not None]
        if not found:
            return []
        highest = _nice(max(found) * 1000) / 1000
        up = self._frame_up(y, highest)
        parts = self._frame(y, "p99 (pale: p50)", highest, latency)
        for name in ("p50", "p99"):
            path = self._line([one[name] for one in self.samples], up)
            parts.append(f'<path class="{name}" d="{path}"><title>{name}</title></path>')
        return parts

    def _told_samples(self) -> list[str]:
        """What can be pointed at in both charts."""
        y, height = self.floor + CHART_GAP, 2 * CHART + CHART_GAP
        parts = []
        for one in self.samples:
            x0, x1 = self.scale(one["begin"]), self.scale(one["end"])
            quantiles = f"p50 {latency(one['p50'])}, p99 {latency(one['p99'])}"
            said = f"{rate(one['requests'] / one['seconds'])} requests/s, {quantiles}"
            errors = f", {words.count(one['errors'], 'error')}" if one["errors"] else ""
            parts.append(
                f'<rect fill="transparent" x="{x0:.1f}" y="{y}" width="{x1 - x0:.1f}" height="{height}">'
                f"<title>{escaped(moment(one['begin']))}: {escaped(said + errors)}</title></rect>"
            )
        return parts

    def _frame_up(self, y: float, highest: float) -> Callable[[float], float]:
        return lambda value: y + CHART - CHART * min(value, highest) / highest

    def _frame(self, y: float, what: str, highest: float, said: Callable[[float], str]) -> list[str]:
        parts = [_text(LEFT, y - 8, what, "head")]
        for share in (0.0, 0.5, 1.0):
            at = y + CHART * (1 - share)
            parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{self.width - RIGHT}"/>')
            figure = said(highest * share) if share else "0"
            parts.append(_text(LEFT - 8, at + 4, figure, anchor="end"))
            if self.width > WIDTHS[0]:  # it is scrolled, and only one end is in sight
                parts.append(_text(self.width - RIGHT + 8, at + 4, figure))
        return parts

    def _runs(self) -> Iterable[list[int]]:
        """Indexes of samples that follow each other without a gap."""
        run: list[int] = []
        for index, one in enumerate(self.samples):
            if run and one["begin"] - self.samples[run[-1]]["end"] > 0.5 * one["seconds"]:
                yield run
                run = []
            run.append(index)
        if run:
            yield run

    def _steps(self, above: Sequence[float], up: Callable[[float], float], below: Sequence[float]) -> list[str]:
        paths = []
        for run in self._runs():
            inside = [index for index in run if above[index] > below[index]]
            if not inside:
                continue
            run = list(range(inside[0], inside[-1] + 1))
            there = [(x, up(above[i])) for i in run for x in self._sides(i)]
            back = [(x, up(below[i])) for i in reversed(run) for x in reversed(self._sides(i))]
            paths.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in there + back) + "Z")
        return paths

    def _line(self, values: Sequence[float | None], up: Callable[[float], float]) -> str:
        parts, joined = [], False
        starts = {run[0] for run in self._runs()}
        for index, value in enumerate(values):
            joined = joined and index not in starts
            if value is not None:
                for x in self._sides(index):
                    parts.append(f"{'L' if joined else 'M'}{x:.1f} {up(value):.1f}")
                    joined = True
            else:
                joined = False
        return "".join(parts)

    def _sides(self, index: int) -> tuple[float, float]:
        one = self.samples[index]
        return self.scale(one["begin"]), self.scale(one["end"])


def _colour(bar: Bar) -> str:
    return "none" if bar.number is None or bar.outcome in (tl.SUPERSEDED, tl.ABORTED) else f"g{bar.number % COLOURS}"


def _badge(bar: Bar) -> float:
    bad = bar.outcome in (tl.FAILED, tl.TAKEN_BACK) or any(job.lost for job in bar.jobs)
    return 16.0 if bad else 0.0


def _cross(x: float, y: float) -> str:
    return (
        f'<circle class="badge" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
        f'<path class="cross" d="M{x - 2.2:.1f} {y - 2.2:.1f}l4.4 4.4m0 -4.4l-4.4 4.4"/>'
    )


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "") -> str:
    more = (f' class="{css}"' if css else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text{more} x="{x:.1f}" y="{y:.1f}">{escaped(text)}</text>'


def _wide(text: str) -> float:
    return LETTER * columns(words.text(text))


def _nice(value: float) -> float:
    """The next number above that reads well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.9999)
