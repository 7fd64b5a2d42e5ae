"""`reuseport move TENANT`: no longer hold it."""

from __future__ import annotations

from collections.abc import Sequence

from reuseport.cli import frame, hold

ABOUT = """\
Lets go of a tenant that is held: it moves to the generation that serves when it is next free, which is at its next \
request if none of its jobs keeps it.

Exit status: 0 the master heard it; 1 it did not; 2 wrong usage; 3 no master there."""

TAKES = hold.TAKES


def help_text() -> str:
    return frame.help_of("move TENANT [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Let the tenant go and return the exit status. Raises OptionError and Failure."""
    return hold.ask("move", argv)
