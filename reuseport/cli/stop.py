"""`reuseport stop`: ask the master to stop, and wait until its process is gone."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reuseport.cli import frame, place, progress
from reuseport.cli.failure import INTERRUPTED, Failure
from reuseport.options import kinds

# From the master's "done" to its exit there is nothing left to wait for; this only keeps a stuck one from holding us.
EXIT_SECONDS = 30.0

ABOUT = """\
Stops the server: it accepts nothing new, finishes requests and jobs, and exits. Returns when the master has gone.

With --orphans it ends the processes of this run directory that no master knows, and leaves a master and its processes
alone. Workers finish their requests and jobs, as at a stop; --now kills them.

Exit status: 0 it has stopped, or no orphan is left; 1 it has not; 2 wrong usage; 3 no master there."""

OPTIONS = (
    frame.option(
        "now",
        kinds.SWITCH,
        False,
        "End running requests and jobs instead of waiting for them. It may follow a stop that still waits.",
    ),
    frame.option(
        "orphans",
        kinds.SWITCH,
        False,
        "End the processes that a master has left here when it died, and that no master has adopted.",
    ),
    frame.json_option("the outcome as one JSON object, and no stages"),
)
TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("stop [--now] [--orphans] [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Stop the master and return the exit status. Raises OptionError and Failure."""
    values, words = place.read(argv, OPTIONS)
    master = place.find(words)
    if values["orphans"]:
        from reuseport.cli import orphans  # which reads the rosters, and so needs what a master has

        return orphans.end(master, now=values["now"], as_json=values["json"])
    server = master.server()
    frame.show(server, values["json"])
    question = {"do": "stop", "now": values["now"]}
    try:
        with progress.shown(values["json"]) as shown:
            done = master.ask(question, on_event=shown.hear, tick=(progress.TICK, shown.tick), gone_within=EXIT_SECONDS)
            shown.end(bool(done.get("ok")))
    except KeyboardInterrupt:
        raise Failure("no longer waiting; the master goes on stopping (--now ends it)", INTERRUPTED) from None
    frame.checked(done, "stop failed")
    print(json.dumps(frame.with_server(done, server)) if values["json"] else "stopped")
    return 0
