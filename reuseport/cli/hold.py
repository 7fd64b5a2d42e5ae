"""`reuseport hold TENANT` and `reuseport move TENANT`: keep one tenant in its version, and let it go again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from reuseport.cli import place
from reuseport.cli.failure import Failure
from reuseport.cli.status import ANSWER_SECONDS
from reuseport.options import Option, kinds
from reuseport.options.manual import manual
from reuseport.options.table import FLAG

TENANT = Option(
    "tenant",
    kinds.Kind("TENANT", str),
    "",
    group="Options",
    positional=True,
    where=frozenset({FLAG}),
    default_text="none: it must be said",
    help="The tenant's name, as --tenant finds it in requests.",
)

ABOUT = """\
Keeps a tenant in the generation that serves it now, whatever is released, until `reuseport move TENANT`. One that \
nobody has heard of yet is kept in the generation that serves now.

Exit status: 0 it is held; 1 it is not; 2 wrong usage; 3 no master there."""

TAKES = (TENANT, *place.WHERE)


def help_text() -> str:
    usage = "reuseport hold TENANT [-n NAME | --run-dir DIR | -c FILE]"
    return manual(TAKES, usage, ABOUT, shutil.get_terminal_size().columns)


def run(argv: Sequence[str]) -> int:
    """Hold the tenant and return the exit status. Raises OptionError and Failure."""
    return ask("hold", argv)


def ask(do: str, argv: Sequence[str]) -> int:
    values, words = place.read(argv, (TENANT,))
    if not values["tenant"]:
        raise Failure(f"which tenant? reuseport {do} TENANT", 2)
    # The tenant's name says nothing about the place of the master.
    typed = [word for word in words if word[0] != "tenant"]
    done = place.find(typed).ask({"do": do, "tenant": values["tenant"]}, timeout=ANSWER_SECONDS)
    if not done.get("ok"):
        raise Failure(f"{do}: {done.get('error') or 'the master gave no reason'}")
    print(done.get("text", ""))
    return 0
