"""`reuseport hold TENANT` and `reuseport move TENANT`: keep one tenant in its version, and let it go again."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reuseport.cli import frame, place
from reuseport.cli.failure import USAGE, Failure
from reuseport.options import kinds
from reuseport.options.arguments import one_line

TENANT = frame.option(
    "tenant",
    kinds.Kind("TENANT", str),
    "",
    "The tenant's name, as --tenant finds it in requests.",
    positional=True,
    default_text="none: it must be said",
)
OPTIONS = (TENANT, frame.JSON)

ABOUT = """\
Keeps a tenant in the generation that serves it now, whatever is released, until `reuseport move TENANT`. A tenant \
that no worker has seen is held in the generation that serves the others, and a warning on standard error says so.

Exit status: 0 it is held; 1 it is not; 2 wrong usage; 3 no master there."""

TAKES = (*OPTIONS, *place.WHERE)


def help_text() -> str:
    return frame.help_of("hold TENANT [--json]", ABOUT, TAKES)


def run(argv: Sequence[str]) -> int:
    """Hold the tenant and return the exit status. Raises OptionError and Failure."""
    return ask("hold", argv)


def ask(do: str, argv: Sequence[str]) -> int:
    values, words = place.read(argv, OPTIONS)
    if not values["tenant"]:
        raise Failure(f"which tenant? reuseport {do} TENANT", USAGE)
    master = place.find(words)
    server = master.server()
    frame.show(server, values["json"])
    done = frame.checked(master.ask({"do": do, "tenant": values["tenant"]}, timeout=frame.ANSWER_SECONDS), do)
    print(json.dumps(frame.with_server(done, server)) if values["json"] else one_line(str(done.get("text", ""))))
    if not values["json"]:
        frame.warn(done)
    return 0
