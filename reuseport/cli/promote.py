"""`reuseport promote`: what only some try out (`release --canary`) now serves everybody."""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.release import FOLLOWING, follow

ABOUT = """\
Lets the generation that is on trial (release --canary) serve everybody; the one that served the others drains.

A second promotion, of an operator who could not see the first one, says what the first one did, with status 0; see \
reuseport rollback --help.

Exit status: 0 it serves everybody; 1 nothing has changed, and standard error says why; 2 wrong usage; 3 no master \
there; 4 the promotion was aborted, or a release has taken its place."""

OPTIONS = (frame.from_option("It is the one that the generation on trial takes over from."), *FOLLOWING)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("promote [--from N] [--wait UNTIL] [--by TEXT] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Promote and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    question = {"do": "promote", "wait": values["wait"], "from": values["from"], "on_behalf": values["by"]}
    return follow(words, question, "promotion", values["json"])
