"""`reuseport quarantine`: which requests are refused because they ended workers, and how to let them in again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import frame, place
from reuseport.cli.ink import Column, Ink, ink_for, table
from reuseport.cli.words import duration, text
from reuseport.options import kinds

ABOUT = """\
Shows the requests that are answered 503 because workers died while they answered them (--quarantine). With --clear \
the server serves them again at once, and forgets the deaths that it has counted.

Exit status: 0 the master answered; 1 it did not; 2 wrong usage; 3 no master there."""

OPTIONS = (
    frame.option("clear", kinds.SWITCH, False, "End every quarantine now."),
    frame.json_option("the answer as one JSON object"),
)
TAKES = (*OPTIONS, *place.WHERE)

_HEAD = (
    Column("REQUEST", left=True, shrinks=20), Column("HOST", left=True, usual=False),
    Column("TENANT", left=True, usual=False), Column("GEN"), Column("LEFT"),
)  # fmt: skip


def help_text() -> str:
    return frame.help_of("quarantine [--clear] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Print what is in quarantine, or end that, and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    if values["clear"]:
        return _clear(place.find(words), values["json"])
    done = frame.ask(words, {"do": "quarantine", "clear": False})
    if values["json"]:
        print(json.dumps({"quarantine": done["quarantine"]}))
    elif found := [one for one in done.get("quarantine", []) if isinstance(one, dict)]:
        print("\n".join(rows(found, None, ink_for(sys.stdout))))
    else:
        print("no request is in quarantine")
    return 0


def _clear(master: place.Master, as_json: bool) -> int:
    server = master.server()
    frame.show(server, as_json)
    done = frame.checked(master.ask({"do": "quarantine", "clear": True}, timeout=frame.ANSWER_SECONDS))
    if as_json:
        print(json.dumps(frame.with_server({"cleared": done["cleared"]}, server)))
    else:
        print(text(done.get("text", "cleared")))
    return 0


def rows(found: Sequence[Mapping[str, Any]], width: int | None, ink: Ink) -> list[str]:
    """The requests in quarantine, a line each, with a head."""
    cells = [
        (
            text(one.get("request")),
            text(one.get("host")),
            text(one.get("tenant")),
            str(one.get("generation", "")),
            duration(one.get("left")),
        )
        for one in found
    ]
    return table(_HEAD, cells, width, ink)
