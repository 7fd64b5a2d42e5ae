"""`reuseport history`: what was released when, how it went, and what each drain waited for; as a table or a picture.

It is asked of the master, and where none lives it is read from the file that the last one left.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reuseport.cli import drawing, frame, page, place
from reuseport.cli.failure import NO_MASTER, Failure
from reuseport.cli.ink import Column, Ink, columns, fit, ink_for, table
from reuseport.cli.live import size_of
from reuseport.cli.timeline import timeline
from reuseport.cli.words import duration, objects, text
from reuseport.ipc import files
from reuseport.master import history, samples
from reuseport.options import OptionError, kinds
from reuseport.options.arguments import one_line
from reuseport.options.identity import last_name
from reuseport.options.reading import Words

IN_TABLE, IN_PICTURE = 20, 100  # releases that are shown

ABOUT = """\
Shows the releases, newest first: when they were, what they brought, how they ended, how long the old generation took \
to drain, what it waited for longest (a job, a request or a companion), and who asked for the release. With --html or \
--svg it draws them instead: each generation from its boot to its last job, and what the server did meanwhile.

Where no master lives the history is read from the state directory.

Exit status: 0 done; 1 there is no history to be had; 2 wrong usage; 3 no master there, and no file."""

OPTIONS = (
    frame.option(
        "last",
        kinds.WHOLE,
        None,
        "How many to show.",
        unit="releases; 0: all",
        default_text=f"{IN_TABLE}, or {IN_PICTURE} in a picture",
    ),
    frame.json_option("all lines as one JSON array"),
    frame.option("html", kinds.PATH, "", "Write a page with a picture of it, which needs nothing else; - is standard "
                 "output.", metavar="FILE", default_text="none"),
    frame.option("svg", kinds.PATH, "", "Write the picture alone, likewise.", metavar="FILE", default_text="none"),
    frame.option("state_dir", kinds.PATH, "", "Ask no master, and read the history that is in there.",
                 metavar="DIR", default_text="that of the server, if it does not live"),
)  # fmt: skip

_COLUMNS = (
    Column("GENERATION"), Column("WHEN", left=True, spare=1), Column("VERSION", left=True),
    Column("OUTCOME", left=True), Column("TOOK", spare=2), Column("DRAINED IN", spare=3),
    Column("WAITED FOR", left=True, spare=4), Column("BY", left=True, spare=5, usual=False),
)  # fmt: skip
_ERRORS = (60, 40, 24)  # letters of an error that are shown, as there is room


class Source(NamedTuple):
    """`status` is None where no master was asked."""

    name: str
    lines: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    status: dict[str, Any] | None


TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("history [--last N] [--json | --html FILE | --svg FILE] [--state-dir DIR]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Print or draw the history and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    pictures = {kind: values[kind] for kind in ("html", "svg") if values[kind]}
    if len(pictures) + values["json"] > 1:
        raise OptionError("--json, --html and --svg: one of them")
    source = _left(words) if values["state_dir"] else _source(words, bool(pictures))
    if values["json"]:
        print(json.dumps(source.lines))
        return 0
    wanted = (IN_PICTURE if pictures else IN_TABLE) if values["last"] is None else values["last"]
    for kind, path in pictures.items():
        _write(path, kind, _drawn(source, kind, wanted))
    if not pictures:
        width = size_of(sys.stdout).columns if sys.stdout.isatty() else None
        print("\n".join(_in_table(source.lines, wanted, width, ink_for(sys.stdout))))
    return 0


def _in_table(lines: Sequence[Mapping[str, Any]], wanted: int, width: int | None, ink: Ink) -> list[str]:
    for letters in _ERRORS:
        shown = rows(lines, letters)[: wanted or None]
        whole = table(_COLUMNS, shown, None, ink)
        if not shown:
            return ["no release yet"]
        if width is None or max(map(columns, whole)) <= width:
            return whole
    return fit(table(_COLUMNS, shown, width, ink), width)


def _drawn(source: Source, kind: str, wanted: int) -> str:
    line = timeline(source.lines, source.status, time.time(), wanted)
    if kind == "svg":
        return drawing.svg(line, source.samples, source.name)
    head = [column.head.capitalize() for column in _COLUMNS]
    return page.html(line, source.samples, source.name, rows(source.lines)[: wanted or None], head)


def _source(words: Words, with_samples: bool) -> Source:
    try:
        master = place.find(words)
        question = {"do": "history", "samples": True} if with_samples else {"do": "history"}
        done = frame.checked(master.ask(question, timeout=frame.ANSWER_SECONDS), "no history")
        if not isinstance(done.get("history"), list):
            raise Failure("no history: the master gave none")
        status = master.ask({"do": "status"}, timeout=frame.ANSWER_SECONDS).get("status") if with_samples else None
    except Failure as failure:
        if failure.status != NO_MASTER:
            raise
        return _left(words, failure)
    status = status if isinstance(status, dict) else {}
    name = text(status["master"].get("name")) if isinstance(status.get("master"), dict) else "reuseport"
    return Source(name, objects(done, "history"), objects(done, "samples"), status)


def _left(words: Words, failure: Failure | None = None) -> Source:
    """What the last master left, or the one that lives has written. Raises Failure if there is nothing; `failure` is
    why no master was asked."""
    directory = place.state_dir(words, history.FILE)
    path = os.path.join(directory, history.FILE) if directory else ""
    if not os.path.exists(path):
        none = f"there is no history{f' in {directory}' if directory else ''}"
        raise Failure(f"{failure}, and {none}" if failure else none, NO_MASTER)
    try:
        lines, kept = history.shown(history.read(path)), samples.read(directory)
    except OSError as error:
        raise Failure(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except files.Damaged as error:
        raise Failure(f"{path} is damaged: {error}") from error
    if failure:
        sys.stderr.write(f"reuseport: no master lives here; this is what {one_line(path)} holds\n")
    return Source(text(last_name(lines) or os.path.basename(directory)), lines, kept, None)


def _write(path: str, kind: str, drawn: str) -> None:
    if path == "-":
        sys.stdout.write(drawn)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(drawn)
    except OSError as error:
        raise Failure(f"--{kind}: {path}: {(error.strerror or str(error)).lower()}") from error
    print(f"written to {one_line(path)}")


def rows(lines: Sequence[Mapping[str, Any]], longest: int | None = None) -> list[tuple[str, ...]]:
    """One row for each release, newest first; errors are cut to so many letters."""
    drains = {line["number"]: line for line in lines if line["event"] == "drained"}
    doubts = {line["number"]: line for line in lines if line["event"] == "taken back"}
    return [_row(line, drains, doubts, longest) for line in reversed(lines) if line["event"] == "release"]


def _row(
    line: Mapping[str, Any],
    drains: Mapping[int, Mapping[str, Any]],
    doubts: Mapping[int, Mapping[str, Any]],
    longest: int | None,
) -> tuple[str, ...]:
    number = line.get("number")
    version = text(line.get("label"))
    if line.get("source"):
        version += f" (back to {line['source']})"
    outcome = str(line.get("outcome"))
    error = str(line.get("error") or "")
    if number in doubts:
        outcome, error = "taken back", str(doubts[number].get("error", ""))
    if error:
        outcome += f": {_short(one_line(error), longest)}"
    drain = drains.get(number) if number is not None else None
    return (
        "-" if number is None else str(number),
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["at"])),
        version,
        outcome,
        f"{line['seconds']:.1f}s",
        duration(drain["seconds"]) if drain else "-",
        _waited(drain) if drain else "-",
        text(line.get("by")),
    )


def _waited(drain: Mapping[str, Any]) -> str:
    """What the drain waited for: the longest of it, and how many others. A job counts as long as it ran."""
    jobs, requests, companions = (objects(drain, kind) for kind in ("jobs", "requests", "companions"))
    found = [(job["seconds"], _job(job)) for job in jobs]
    found += [(one["seconds"], f"request {text(one['name'])} ({duration(one['seconds'])})") for one in requests]
    found += [(one["seconds"], f"companion {text(one['name'])} ({duration(one['seconds'])})") for one in companions]
    if not found:
        return "-"
    more = f", {len(found) - 1} more" if len(found) > 1 else ""
    return max(found)[1] + more


def _job(job: Mapping[str, Any]) -> str:
    whose = f" of {text(job['tenant'])}" if job.get("tenant") else ""
    lost = ", lost" if job.get("lost") else ""
    return f"{text(job['name'])}{whose} ({duration(job['seconds'])}{lost})"


def _short(error: str, length: int | None) -> str:
    return error if length is None or len(error) <= length else error[: length - 1] + "…"
