"""`reuseport rollback`: bring an earlier version back, as a new generation.

Numbers only go forward: what comes back is a release like any other. While the earlier generation's zygote still
stands by nothing has to be loaded, and it takes a moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.release import FOLLOWING, follow
from reuseport.options import kinds

ABOUT = """\
Brings back the version before the one that serves, or that of generation N, as a new generation. Within --standby \
(see reuseport serve --help) of the release nothing is loaded; later the recorded directory and interpreter are.

Exit status: 0 the earlier version serves; 1 nothing has changed, and standard error says why; 2 wrong usage; 3 no \
master there."""

NUMBER = frame.option(
    "generation",
    kinds.WHOLE,
    None,
    "The number of a generation that has served (reuseport history).",
    positional=True,
    metavar="N",
    default_text="the version before",
)
OPTIONS = (NUMBER, *FOLLOWING)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("rollback [N] [--wait UNTIL] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Roll back and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    question = {"do": "rollback", "wait": values["wait"], "generation": values["generation"]}
    return follow(words, question, "rollback", values["json"])
