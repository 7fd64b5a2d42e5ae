"""`reuseport upgrade`: the master becomes, in place, the version of reuseport and of Python that is installed now."""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.release import follow

ABOUT = """\
Replaces the running master by the version of reuseport, or of Python, that its command line stands for now; the \
same as SIGUSR2. The new version is tried out first, in a process of its own. Then the master execs it: the process, \
the addresses, the workers and what they do stay, and requests, jobs and releases under way go on. Running generations \
keep the version that they were loaded with; the next release brings the new one.

Exit status: 0 the new version runs; 1 it does not, and standard error says why: nothing has changed, unless the \
master died over it, whose workers serve on until the next start; 2 wrong usage; 3 no master there."""

OPTIONS = (frame.json_option("the outcome as one JSON object, and no stages"),)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("upgrade [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Upgrade and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    return follow(words, {"do": "upgrade"}, "upgrade", values["json"])
