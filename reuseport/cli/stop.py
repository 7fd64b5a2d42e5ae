"""`reuseport stop`: ask the master to stop, and wait until its process is gone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from reuseport.cli import place
from reuseport.cli.failure import INTERRUPTED, Failure
from reuseport.options import Option, kinds
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

# From the master's "done" to its exit there is nothing left to wait for; this only keeps a stuck one from holding us.
EXIT_SECONDS = 30.0

ABOUT = """\
Stops the server: it accepts nothing new, finishes requests and jobs, and exits. Returns when the master has gone.

Exit status: 0 it has stopped; 1 it has not; 2 wrong usage; 3 no master there."""

OPTIONS = (
    Option(
        "now",
        kinds.SWITCH,
        False,
        group="Options",
        where=frozenset({FLAG}),
        help="End running requests and jobs instead of waiting for them. It may follow a stop that still waits.",
    ),
)

TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    usage = "reuseport stop [--now] [-n NAME | --run-dir DIR | -c FILE]"
    return manual(TAKES, usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Stop the master and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    master = place.find(words)
    try:
        done = master.ask(
            {"do": "stop", "now": values["now"]},
            on_stage=lambda text: print(text, flush=True),
            gone_within=EXIT_SECONDS,
        )
    except KeyboardInterrupt:
        raise Failure("no longer waiting; the master goes on stopping (--now ends it)", INTERRUPTED) from None
    if not done.get("ok"):
        raise Failure(f"stop failed: {done.get('error') or 'the master gave no reason'}")
    print("stopped")
    return 0
