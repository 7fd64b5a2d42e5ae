"""`reuseport abort`: end the release that boots, and the one that waits behind it."""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.release import follow
from reuseport.options import kinds

ABOUT = """\
Ends the release that boots, and the one that waits behind it; also a rollback, a canary that boots, and a promotion \
whose companions have not started. The generation that serves goes on, and nothing else changes. The commands that \
waited for the release exit with status 4.

A release that accepts already cannot be aborted; `reuseport rollback` takes it back as soon as it serves.

Exit status: 0 it has ended; 1 there was nothing to abort, or it could not be; 2 wrong usage; 3 no master there."""

OPTIONS = (
    frame.option(
        "wait",
        kinds.choice("ready", "none"),
        "ready",
        "ready: return when the processes of the release have ended. none: when they have been told to.",
        metavar="UNTIL",
    ),
    frame.BY,
    frame.json_option("the outcome as one JSON object, and no stages"),
)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("abort [--wait UNTIL] [--by TEXT] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Abort and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    return follow(words, {"do": "abort", "wait": values["wait"], "on_behalf": values["by"]}, "abort", values["json"])
