"""A generation, a job and a stretch of time in words, for titles that are pointed at or read out."""

from __future__ import annotations

import time
from html import escape
from typing import Any

from reuseport.cli import timeline as tl
from reuseport.cli import words
from reuseport.cli.timeline import Bar, Job, Timeline
from reuseport.cli.words import duration


def told(bar: Bar) -> str:
    """A bar in words, a line each."""
    number = "a release that was not begun" if bar.number is None else f"generation {bar.number}"
    version = f", {words.text(bar.label)}" if bar.label else ""
    lines = [f"{number}{version}" + (f", back to the version of {bar.source}" if bar.source else "")]
    names = {"boot": "booted for", "trial": "on trial for", "serve": "served for", "drain": "drained for"}
    for phase, begin, end in bar.phases():
        if end > begin:
            lines.append(f"{moment(begin)}: {names[phase]} {took(end - begin)}")
    if bar.lives:
        lines[-1] += " so far"
    if bar.waited:
        lines.append(f"its drain waited for {words.count(bar.waited, 'job')}")
    if bar.outcome in (tl.FAILED, tl.TAKEN_BACK, tl.SUPERSEDED, tl.ABORTED):
        lines.append(bar.outcome + (f": {words.text(bar.error)}" if bar.error else ""))
    if bar.unknown:
        lines.append("how it ended is not known")
    return "\n".join(lines)


def told_job(job: Job) -> str:
    whose = f" of {words.text(job.tenant)}" if job.tenant else ""
    how = "runs" if job.runs else "was lost after" if job.lost else "took"
    return f"job {words.text(job.name)}{whose}: {how} {took(job.end - job.begin)}, from {moment(job.begin)}"


def escaped(text: Any) -> str:
    """Text as it may stand in XML: control characters, which may not, are spelled out."""
    return escape("\n".join(words.text(line) if line else "" for line in str(text).split("\n")))


def took(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds < 10 else duration(seconds)


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def period(line: Timeline) -> str:
    begin, end = time.localtime(line.begin), time.localtime(line.end)
    same = begin[:3] == end[:3]
    until = time.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M", end)
    since = time.strftime("%Y-%m-%d %H:%M:%S" if same else "%Y-%m-%d %H:%M", begin)
    return f"{since} to {until} {end.tm_zone or ''}".strip()
