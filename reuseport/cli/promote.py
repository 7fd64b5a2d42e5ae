"""`reuseport promote`: what only some try out (`release --canary`) now serves everybody."""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.release import FOLLOWING, follow

ABOUT = """\
Lets the generation that is on trial (release --canary) serve everybody; the one that served the others drains.

Exit status: 0 it serves everybody; 1 nothing has changed, and standard error says why; 2 wrong usage; 3 no master \
there."""

OPTIONS = FOLLOWING
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("promote [--wait UNTIL] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Promote and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    return follow(words, {"do": "promote", "wait": values["wait"]}, "promotion", values["json"])
