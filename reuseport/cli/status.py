"""`reuseport status`: what lives, what serves, and what each old generation still waits for.

The text fits into 80 columns and is for a person; scripts take --json, whose object only ever gains fields. A master of
another version may leave fields out, so nothing here insists on one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reuseport.cli import place
from reuseport.cli.failure import Failure
from reuseport.options import Option, kinds
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

ANSWER_SECONDS = 10.0  # a master's loop never blocks, so a longer silence is a fault worth reporting
WIDTH = 80
SHOWN = 20  # jobs of a generation that serves that are shown
LOST = 5  # lost jobs that are shown
ABSENT = "-"

ABOUT = """\
Shows the generations, newest first, their workers, what each drain waits for, and how the last release ended.

Exit status: 0 the master answered; 1 it did not; 2 wrong usage; 3 no master there."""

OPTIONS = (
    Option(
        "json",
        kinds.SWITCH,
        False,
        group="Options",
        where=frozenset({FLAG}),
        help="Print the state as one JSON object.",
    ),
)


def help_text() -> str:
    usage = "reuseport status [--json] [-n NAME | --run-dir DIR | -c FILE]"
    return manual((*OPTIONS, *place.WHERE), usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the state and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    master = place.find(words)
    done = master.ask(
        {"do": "status"},
        timeout=ANSWER_SECONDS,
    )
    if not done.get("ok") or not isinstance(done.get("status"), dict):
        raise Failure(f"no status: {done.get('error') or 'the master gave no reason'}")
    status = done["status"]
    if values["json"]:
        print(json.dumps(status))
        return 0
    # A pipe has no width, and what reads it wants whole paths.
    width = shutil.get_terminal_size((WIDTH, 0)).columns if sys.stdout.isatty() else None
    _print(render(status, time.time(), width))
    return 0


def render(status: Mapping[str, Any], now: float, width: int | None = WIDTH) -> str:
    """The state as text. `now` is in seconds of the epoch; `width` in columns, None for as wide as it takes."""
    generations = sorted(_list(status, "generations"), key=lambda one: one.get("number") or 0, reverse=True)
    blocks = [_master(_dict(status, "master"), status.get("serving"), now), _generations(generations, width)]
    workers = [worker for one in generations for worker in _list(one, "workers")]
    if workers:
        blocks.append(_workers(workers))
    waiting = [line for one in generations for line in _waits_for(one)]
    if waiting:
        blocks.append(waiting)
    if lost := _list(_dict(status, "lost"), "jobs"):
        blocks.append(_lost(lost, now))
    releases = _list(status, "releases")
    if releases:
        blocks.append(_last_release(releases[-1], now, width))
    return "\n\n".join("\n".join(block) for block in blocks)


def duration(seconds: Any) -> str:
    """Seconds as a person says them: 42s, 12m, 3h 5m, 4d 2h."""
    if not isinstance(seconds, int | float):
        return ABSENT
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def size(count: Any) -> str:
    """Bytes as a person says them: 0, 512K, 53M, 1.2G (powers of 1024)."""
    if not isinstance(count, int | float):
        return ABSENT
    for unit, suffix in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if count >= unit:
            number = count / unit
            return f"{number:.1f}{suffix}" if suffix == "G" and number < 10 else f"{number:.0f}{suffix}"
    return str(int(count))


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs drawn together: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or ABSENT


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: frozenset[str]) -> list[str]:
    """Lines of columns as wide as their cells; those in `left` are words, the others figures that end in a line."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, width, name in zip(line, widths, head, strict=True)
        ).rstrip()
        for line in lines
    ]


def _master(master: Mapping[str, Any], serving: Any, now: float) -> list[str]:
    serves = f"serving generation {serving}" if serving else "serving no generation yet"
    addresses = ", ".join(map(str, _list(master, "addresses"))) or "nothing"
    return [
        f"{master.get('name', 'master')}: {master.get('state', 'unknown')}, {serves}",
        f"  master   pid {master.get('pid', ABSENT)}, up {duration(master.get('uptime'))}, "
        f"reuseport {master.get('version', ABSENT)}",
        f"  listens  {addresses}",
        f"  run dir  {master.get('run_dir', ABSENT)}",
        f"  workers  {master.get('workers_wanted', ABSENT)} wanted",
        *(f"  earlier  master {pid} leaves with its last process" for pid in _list(master, "earlier")),
        *_takeover(_dict(master, "takeover"), now),
    ]


def _takeover(takeover: Mapping[str, Any], now: float) -> list[str]:
    if not takeover:
        return []
    if takeover.get("outcome") != "failed":
        return [f"  takeover master {takeover.get('pid', ABSENT)} is taking over"]
    when = duration(now - takeover.get("at", now))
    return [f"  takeover the last takeover failed, {when} ago, by master {takeover.get('pid', ABSENT)}"]


def _generations(generations: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    rows = []
    for one in generations:
        workers = _list(one, "workers")
        rows.append(
            (
                str(one.get("number", ABSENT)),
                str(one.get("state", ABSENT)),
                duration(one.get("age")),
                str(len(workers)),
                str(sum(_dict(worker, "requests").get("active") or 0 for worker in workers)),
                str(sum(worker.get("jobs") or 0 for worker in workers)),
                size(one.get("memory")),
                str(one.get("directory") or ABSENT),
            )
        )
    head = ("GENERATION", "STATE", "AGE", "WORKERS", "ACTIVE", "JOBS", "MEMORY", "DIRECTORY")
    words = frozenset({"GENERATION", "STATE", "DIRECTORY"})
    if width is not None:
        # Releases differ in the end of their path, so that is what stays.
        room = max(12, width - max(len(line) for line in table(head[:-1], [row[:-1] for row in rows], words)) - 2)
        rows = [(*row[:-1], _end(row[-1], room)) for row in rows]
    lines = table(head, rows, words)
    interpreters = {one.get("number"): one.get("interpreter") for one in generations if one.get("interpreter")}
    if len(set(interpreters.values())) > 1:
        lines += [f"generation {number} runs {interpreter}" for number, interpreter in interpreters.items()]
    return lines


def _workers(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for one in workers:
        requests, memory = _dict(one, "requests"), _dict(one, "memory")
        waiting = f" ({requests['waiting']} waiting)" if requests.get("waiting") else ""  # for a thread
        rows.append(
            (
                str(one.get("id", ABSENT)),
                str(one.get("pid", ABSENT)),
                str(one.get("state", ABSENT)),
                ranges(_list(one, "slots")),
                duration(one.get("age")),
                f"{requests.get('active', ABSENT)}{waiting}",
                str(requests.get("total", ABSENT)),
                str(one.get("connections", ABSENT)),
                str(one.get("jobs", ABSENT)),
                size(memory.get("pss") or memory.get("rss")),
            )
        )
    head = ("WORKER", "PID", "STATE", "SLOTS", "AGE", "ACTIVE", "TOTAL", "CONNS", "JOBS", "MEMORY")
    return table(head, rows, frozenset({"WORKER", "STATE"}))


def _waits_for(generation: Mapping[str, Any]) -> list[str]:
    """What a drain waits for, one line and one more for each job; of a generation that does not drain, its jobs."""
    waits = _dict(generation, "waits_for")
    jobs = _list(waits, "jobs")
    if generation.get("state") not in ("draining", "ending"):
        if not jobs:
            return []
        more = [f"  and {len(jobs) - SHOWN} more"] if len(jobs) > SHOWN else []
        begin = f"generation {generation.get('number')} runs {_count(len(jobs), 'job')}"
        return [begin, *(f"  job {_job(job)}" for job in jobs[:SHOWN]), *more]
    parts = [
        _count(waits.get("requests"), "request"),
        _count(waits.get("connections"), "connection"),
        _count(len(jobs), "job"),
    ]
    said = ", ".join(part for part in parts if part) or "its processes to end"
    begin = f"generation {generation.get('number')} waits for "
    return [begin + said, *(f"  job {_job(job)}" for job in jobs)]


def _job(job: Any) -> str:
    if not isinstance(job, dict):
        return str(job)
    facts = [str(job.get("name", "?"))]
    if job.get("tenant"):
        facts.append(f"tenant {job['tenant']}")
    if job.get("age") is not None:
        facts.append(duration(job["age"]))
    if job.get("where") == "process":
        facts.append(f"process {job.get('pid')}")
    if isinstance(job.get("progress"), int | float):
        facts.append(f"{job['progress']:.0%}" + (f" {job['text']}" if job.get("text") else ""))
    if isinstance(job.get("left"), int | float):
        facts.append(f"{duration(job['left'])} to its deadline" if job["left"] > 0 else "past its deadline")
    return ", ".join(facts)


def _lost(jobs: Sequence[Any], now: float) -> list[str]:
    """The newest of the jobs that ended with their process."""
    lines = ["1 job lost within the last hour" if len(jobs) == 1 else f"{len(jobs)} jobs lost within the last hour"]
    for job in reversed(jobs[-LOST:]):
        facts = [str(job.get("name", "?")), *([f"tenant {job['tenant']}"] if job.get("tenant") else [])]
        facts += [f"{duration(job.get('age'))} old", f"{duration(now - job.get('at', now))} ago"]
        lines.append(f"  job {', '.join(facts)}: its process {job.get('pid', ABSENT)} {job.get('how', '')}")
    return lines


def _last_release(release: Mapping[str, Any], now: float, width: int | None) -> list[str]:
    at, seconds = release.get("at"), release.get("seconds")
    when = f", {duration(now - at)} ago" if isinstance(at, int | float) else ""
    took = f", took {seconds:.1f}s" if isinstance(seconds, int | float) else ""
    # A release whose configuration could not be read never got a number.
    number = release.get("number")
    which = "" if number is None else f"generation {number}, "
    lines = [f"last release: {which}{release.get('outcome', 'ended')}{when}{took}"]
    if release.get("error"):
        lines += textwrap.wrap(str(release["error"]), (width or sys.maxsize) - 2, break_on_hyphens=False)
    return [lines[0], *("  " + line for line in lines[1:])]


def _end(path: str, room: int) -> str:
    return path if len(path) <= room else "…" + path[len(path) - room + 1 :]


def _count(number: Any, what: str) -> str:
    if not number:
        return ""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    return value if isinstance(value, list) else []


def _dict(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _print(text: str) -> None:
    """With colours for the states where there is a terminal and rich; the same text without."""
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        try:
            from rich.console import Console
            from rich.highlighter import RegexHighlighter
            from rich.theme import Theme
        except ImportError:
            # An optional extra: the text says everything without it.
            pass
        else:

            class States(RegexHighlighter):
                highlights = (
                    r"\b(?P<good>running|serving|ready|serves)\b",
                    r"\b(?P<going>draining|ending|stopping|booting|starting)\b",
                    r"\b(?P<bad>blocked|failed)\b",
                    r"(?m)^(?P<head>(GENERATION|WORKER) .*)$",
                )

            theme = Theme({"good": "green", "going": "yellow", "bad": "bold red", "head": "dim"})
            Console(theme=theme, highlighter=States(), soft_wrap=True, markup=False, emoji=False).print(text)
            return
    print(text)
