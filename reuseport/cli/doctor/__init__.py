"""`reuseport doctor`: what on this machine, or in this configuration, will hurt; and what to do about it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reuseport.cli import place
from reuseport.cli.failure import FAILED, NO_MASTER, USAGE, Failure
from reuseport.cli.frame import ANSWER_SECONDS, json_option
from reuseport.cli.ink import PLAIN, Ink, ink_for
from reuseport.ipc.logline import printable
from reuseport.options import OPTIONS, OptionError, Settings, load, working_directory
from reuseport.options.manual import manual
from reuseport.options.reading import from_flags
from reuseport.options.settings import make_origin
from reuseport.options.table import FOREIGN

MARKS = {"problem": "problem", "warning": "warning", "fine": "     ok"}
STYLES = {"problem": "bad", "warning": "going", "fine": "good"}

ABOUT = """\
Looks at what could hurt a server with these options: the kernel and its limits, memory for two generations, the run \
directory, addresses that are taken, logs and companions that the workers' user cannot reach, the systemd unit, \
nginx's timeouts, how the application imports, which of its drivers block gevent, and the \
running server, if there is one. Each finding comes with its remedy. Nothing is changed or served: the application is \
loaded in a process of its own, which ends.

Say what you would say to `reuseport serve`, whose options are all taken.

Exit status: 0 there is no problem (warnings there may be); 1 there is one; 2 wrong usage."""

OWN = (json_option("the findings as one JSON array"),)
TAKES = (*OWN, *OPTIONS)


def help_text() -> str:
    usage = "reuseport doctor [--json] [serve's options] [MODULE:APP]"
    return manual(OWN, usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Print the findings; 1 if one of them is a problem. Raises OptionError for wrong usage."""
    from reuseport.cli.doctor.checks import CHECKS
    from reuseport.cli.doctor.facts import gather
    from reuseport.cli.doctor.findings import PROBLEM

    as_json = any(name == "json" and word.value for name, word in from_flags(argv, TAKES, [], FOREIGN))
    words = [word for word in argv if word not in ("--json", "--no-json")]
    settings, refused = _configuration(words)
    facts = gather(settings, refused, _status(words))
    found = [(title, [f for check in checks for f in check(facts)]) for title, checks in CHECKS]
    if as_json:
        print(json.dumps([{"about": title, **asdict(one)} for title, some in found for one in some]))
    else:
        sys.stdout.write(render(found, shutil.get_terminal_size().columns, ink_for(sys.stdout)))
    return FAILED if any(one.grade == PROBLEM for _, some in found for one in some) else 0


def render(found: Sequence[tuple[str, Sequence[Any]]], width: int, ink: Ink = PLAIN) -> str:
    """The findings as text, the worst first within each part, and a line that counts them."""
    width = max(60, min(width, 110))
    order = list(MARKS)
    lines: list[str] = []
    for title, some in found:
        if not some:
            continue
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        for one in sorted(some, key=lambda one: order.index(one.grade)):
            first, *rest = _wrapped(one.text, f"  {MARKS[one.grade]}  ", width)
            lines += [first.replace(MARKS[one.grade], ink.paint(STYLES[one.grade], MARKS[one.grade]), 1), *rest]
            if one.remedy:
                lines += _wrapped(one.remedy, "           -> ", width)
            lines += [f"           | {line}" for line in printable(one.detail).splitlines()]
    counts = [sum(one.grade == grade for _, some in found for one in some) for grade in order]
    said = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in zip(counts, order[:2], strict=False) if n]
    return "\n".join([*lines, "", ", ".join(said) or "nothing will hurt"]) + "\n"


def _wrapped(text: str, head: str, width: int) -> list[str]:
    indent = " " * len(head)
    text = printable(text)
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)


def _configuration(words: Sequence[str]) -> tuple[Settings, list[str]]:
    """The settings; the defaults, and what is wrong, where they are refused."""
    cwd = working_directory(os.environ)
    try:
        return load(words, os.environ, cwd), []
    except OptionError as error:
        return Settings({}, {}, (), make_origin(environ=os.environ, cwd=cwd)), [str(error)]


def _status(words: Sequence[str]) -> Mapping[str, Any] | str:
    """The status of the master that these words name, {} if none runs; or why one that runs does not tell it."""
    try:
        done = place.find(from_flags(words, OPTIONS, [], FOREIGN)).ask({"do": "status"}, timeout=ANSWER_SECONDS)
    except OptionError:
        return {}  # the configuration's own mistake, which is told as such
    except Failure as failure:
        # None may run, or several, of which none was named.
        return {} if failure.status in (NO_MASTER, USAGE) else str(failure)
    status = done.get("status")
    return status if isinstance(status, dict) else "the master did not tell its status"
