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

While a release boots, rollback ends that release and changes nothing else; `reuseport abort` does the same. With N, \
the version of generation N takes the place of the release that boots.

Two operators do not go back twice. A rollback that was started before the present generation began to serve changes \
nothing, and neither does one of another user or login session within 10 s of the last: both say what the first \
rollback did, with status 0. The same operator goes further back, and so does --from N.

Exit status: 0 the earlier version serves, or what the text says; 1 nothing has changed, and standard error says why; \
2 wrong usage; 3 no master there; 4 the rollback was aborted, or a release has taken its place."""

NUMBER = frame.option(
    "generation",
    kinds.WHOLE,
    None,
    "The number of a generation that has served (reuseport history).",
    positional=True,
    metavar="N",
    default_text="the version before",
)
FROM = frame.from_option("Then it is made even if another operator has just made one.")
OPTIONS = (NUMBER, FROM, *FOLLOWING)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("rollback [N] [--from N] [--wait UNTIL] [--by TEXT] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Roll back and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    question = {"do": "rollback", "wait": values["wait"], "generation": values["generation"], "from": values["from"]}
    question["on_behalf"] = values["by"]
    return follow(words, question, "rollback", values["json"])
