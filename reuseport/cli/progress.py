"""What a command shows while it waits for the master: steps that are drawn over again on a terminal, else plain lines.

The master says "progress" when something has changed and once in a second, and "stage" for what a log would have too.
One of another version says only the latter.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from reuseport.cli import words
from reuseport.cli.ink import PLAIN, Ink, ink_for, is_terminal
from reuseport.cli.live import Block, size_of
from reuseport.cli.overview import job_table
from reuseport.cli.words import a_list, duration, objects

TICK = 0.1  # seconds between two pictures while nothing is heard
SHOWN = 3  # companions that are named
AGAIN = 30.0  # seconds after which a plain line says once more what is waited for
_SPINNER, _PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_WORDS = 26  # columns for what a step is called
_NAMES = {
    "loading": ("loading", "loaded"),
    "letting go": ("old workers let go", "old workers have let go"),
    "probation": ("on probation", "probation passed"),
    "draining": ("draining", "drained"),
    "stopping": ("stopping", "stopped"),
}


class Steps:
    """The way of one release, as it is heard of. `now` is in seconds of any clock that goes forward."""

    def __init__(self) -> None:
        self._facts: dict[str, dict[str, Any]] = {}  # the last that was heard of each step, in the order they came
        self._entered: dict[str, float] = {}
        self._heard = 0.0
        self._ended: tuple[bool, float] | None = None

    def hear(self, facts: Mapping[str, Any], now: float) -> None:
        stage = str(facts.get("stage"))
        if self._facts and facts.get("generation") != self._generation() and stage != "stopping":
            # A newer release has taken its place, or the one that was waited for has begun.
            self._facts.clear()
            self._entered.clear()
        since = facts.get("since")
        if stage not in self._facts:
            self._entered[stage] = now - (since if isinstance(since, int | float) and stage != "probation" else 0.0)
        self._facts[stage] = dict(facts)
        self._heard = now

    def has(self, stage: str) -> bool:
        """Whether it has been heard of."""
        return stage in self._facts

    def end(self, ok: bool, now: float) -> None:
        """Nothing more is to come."""
        self._ended = (ok, now)

    def waits(self) -> str:
        """In one line what is waited for now, of a drain or a stop; "" where it is something else."""
        if not self._facts:
            return ""
        return "; ".join(
            f"generation {one.get('number')} waits for {words.waiting_for(one, objects(one, 'jobs'))}"
            for one in objects(list(self._facts.values())[-1], "generations")
            if one.get("requests") or one.get("jobs") or one.get("companions") or one.get("held")
        )

    def lines(self, now: float, width: int | None = None, ink: Ink = PLAIN) -> list[str]:
        """A line for each step so far, and below the last one what it waits for."""
        lines: list[str] = []
        came = list(self._facts)
        for index, stage in enumerate(came):
            last = index == len(came) - 1
            until = self._entered[came[index + 1]] if not last else self._ended[1] if self._ended else now
            facts, took = self._facts[stage], max(0.0, until - self._entered[stage])
            goes_on = last and self._ended is None
            done = not last or (self._ended is not None and self._ended[0])
            mark = ink.mark("done" if done else "failed")
            if goes_on:
                signs = _SPINNER if ink.fancy else _PLAIN_SPINNER
                mark = ink.paint("busy", signs[int(now / TICK) % len(signs)])
            line = f"  {mark} {_name(stage, facts, done):<{_WORDS}} {_exactly(took):>6}"
            remark = self._remark(facts, now) if goes_on else ""
            lines.append(f"{line}  {ink.paint('faint', remark)}".rstrip())
            if goes_on:
                lines += self._below(facts, width, ink)
        return lines

    def _generation(self) -> Any:
        return list(self._facts.values())[-1].get("generation")

    def _remark(self, facts: Mapping[str, Any], now: float) -> str:
        passed = now - self._heard
        if isinstance(deadline := facts.get("deadline"), int | float):
            waits = [words.text(one) for one in a_list(facts, "companions")]
            begin = f"waiting for {', '.join(waits[:SHOWN])}{', ...' if len(waits) > SHOWN else ''}, " if waits else ""
            return f"{begin}given up in {duration(deadline - passed)}"
        if facts.get("stage") == "probation" and isinstance(left := facts.get("left"), int | float):
            return f"{duration(left - passed)} left"
        if lingering := facts.get("lingering"):
            return f"{words.count(lingering, 'old worker')} not yet"
        return ""

    def _below(self, facts: Mapping[str, Any], width: int | None, ink: Ink) -> list[str]:
        lines = []
        for one in objects(facts, "generations"):
            jobs = objects(one, "jobs")
            lines.append(f"    generation {one.get('number')} waits for {words.waiting_for(one, jobs)}")
            lines += ["    " + line for line in job_table(jobs, None if width is None else width - 4, ink)]
            if one.get("more"):
                lines.append(f"      and {one['more']} more")
            lines += [f"      {line}" for line in words.held(one)]
        return lines


def _name(stage: str, facts: Mapping[str, Any], done: bool) -> str:
    """What a step is called while it goes on, or has failed, and when it is `done`."""
    of = facts.get("of", "?")
    if stage == "waiting":
        return f"waiting for generation {facts['for']}" if facts.get("for") else "waiting for another release"
    if stage == "warming":
        return f"workers ready {of if done else facts.get('ready')}/{of}"
    if stage == "opening":
        return f"accepting {of if done else facts.get('accepting')}/{of}"
    if stage == "loading" and facts.get("from_standby"):
        return "taken from standby" if done else "taking it from standby"
    going, over = _NAMES.get(stage, (stage, stage))
    return over if done else going


class Quiet:
    """Shows nothing: --json. `last` is the last line that was said."""

    last = ""

    def hear(self, message: Mapping[str, Any]) -> None:
        """A message that is not shown."""

    def tick(self) -> None:
        """Time has passed."""

    def end(self, ok: bool) -> None:
        """The answer is there."""


class Lines(Quiet):
    """A line for each stage, for a pipe, a file or a terminal that cannot do more."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._steps = Steps()
        self._waited = ("", 0.0)

    def hear(self, message: Mapping[str, Any]) -> None:
        if message.get("event") == "stage":
            self._say(words.text(message.get("text")))
        elif message.get("event") == "progress":
            now = time.monotonic()
            if message.get("stage") == "probation" and not self._steps.has("probation"):
                left = message.get("left")
                lasts = f" for {duration(left + 0.5)}" if isinstance(left, int | float) else ""
                self._say(f"generation {message.get('generation')} is on probation{lasts}")
            self._steps.hear(message, now)
            waits = self._steps.waits()
            if waits and (waits != self._waited[0] or now - self._waited[1] >= AGAIN):
                self._waited = (waits, now)
                self._say(waits)

    def _say(self, line: str) -> None:
        self.last = line
        print(line, file=self._out, flush=True)


class Drawn(Quiet):
    """The steps, drawn over again."""

    def __init__(self, out: TextIO, block: Block) -> None:
        self._out = out
        self._block = block
        self._ink = ink_for(out)
        self._steps = Steps()

    def hear(self, message: Mapping[str, Any]) -> None:
        above: list[str] = []
        if message.get("event") == "stage" and message.get("level") != "debug":  # the steps say it
            above.append(words.text(message.get("text")))
        elif message.get("event") == "progress":
            self._steps.hear(message, time.monotonic())
        self._draw(above)

    def tick(self) -> None:
        self._draw()

    def end(self, ok: bool) -> None:
        self._steps.end(ok, time.monotonic())
        self._draw()

    def _draw(self, above: Sequence[str] = ()) -> None:
        width = size_of(self._out).columns
        self._block.draw(self._steps.lines(time.monotonic(), width, self._ink), above=above)


@contextlib.contextmanager
def shown(as_json: bool) -> Iterator[Quiet]:
    """What shows the way of what was asked for on standard output."""
    if as_json:
        yield Quiet()
    elif is_terminal(sys.stdout):
        with Block(sys.stdout).open() as block:
            yield Drawn(sys.stdout, block)
    else:
        yield Lines(sys.stdout)


def _exactly(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 60 else duration(seconds)
