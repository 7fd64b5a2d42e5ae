"""`reuseport history`: what was released when, how it went, and what each drain waited for."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import place
from reuseport.cli.failure import Failure
from reuseport.cli.frame import ANSWER_SECONDS
from reuseport.cli.ink import Column, table
from reuseport.cli.words import duration
from reuseport.options import Option, kinds
from reuseport.options.arguments import one_line
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

ABOUT = """\
Shows the releases, newest first: when they were, what they brought, how they ended, how long the old generation took \
to drain, and the longest job that it waited for.

Exit status: 0 the master answered; 1 it did not; 2 wrong usage; 3 no master there."""

OPTIONS = (
    Option(
        "last",
        kinds.WHOLE,
        20,
        group="Options",
        where=frozenset({FLAG}),
        unit="releases; 0: all",
        help="How many to show.",
    ),
    Option(
        "json", kinds.SWITCH, False, group="Options", where=frozenset({FLAG}), help="Print all lines as one JSON array."
    ),
)


def help_text() -> str:
    usage = "reuseport history [--last N] [--json] [-n NAME | --run-dir DIR | -c FILE]"
    return manual((*OPTIONS, *place.WHERE), usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the history and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    done = place.find(words).ask({"do": "history"}, timeout=ANSWER_SECONDS)
    lines = done.get("history")
    if not done.get("ok") or not isinstance(lines, list):
        raise Failure(f"no history: {done.get('error') or 'the master gave no reason'}")
    if values["json"]:
        print(json.dumps(lines))
        return 0
    shown = rows(lines)
    shown = shown[: values["last"]] if values["last"] else shown
    if not shown:
        print("no release yet")
        return 0
    head = ("GENERATION", "WHEN", "VERSION", "OUTCOME", "TOOK", "DRAINED IN", "WAITED FOR")
    columns = [Column(name, left=name not in ("GENERATION", "TOOK", "DRAINED IN")) for name in head]
    print("\n".join(table(columns, shown)))
    return 0


def rows(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each release, newest first."""
    drains = {line["number"]: line for line in lines if line["event"] == "drained"}
    doubts = {line["number"]: line for line in lines if line["event"] == "taken back"}
    return [_row(line, drains, doubts) for line in reversed(lines) if line["event"] == "release"]


def _row(
    line: Mapping[str, Any], drains: Mapping[int, Mapping[str, Any]], doubts: Mapping[int, Mapping[str, Any]]
) -> tuple[str, ...]:
    number = line.get("number")
    version = str(line.get("label") or "-")
    if line.get("source"):
        version += f" (back to {line['source']})"
    outcome = str(line.get("outcome"))
    error = str(line.get("error") or "")
    if number in doubts:
        outcome, error = "taken back", str(doubts[number].get("error", ""))
    if error:
        outcome += f": {_short(one_line(error), 60)}"
    drain = drains.get(number) if number is not None else None
    return (
        "-" if number is None else str(number),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["at"])),
        version,
        outcome,
        f"{line['seconds']:.1f}s",
        duration(drain["seconds"]) if drain else "-",
        _waited(drain.get("jobs", [])) if drain else "-",
    )


def _waited(jobs: Sequence[Mapping[str, Any]]) -> str:
    if not jobs:
        return "-"
    longest = max(jobs, key=lambda job: job["seconds"])
    whose = f" of {longest['tenant']}" if longest.get("tenant") else ""
    more = f", {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"{longest['name']}{whose} ({duration(longest['seconds'])}{', lost' if longest.get('lost') else ''}){more}"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
