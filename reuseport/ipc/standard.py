"""Standard input, output and error of a process that was started without them (`reuseport serve 2>&-`).

The kernel gives the lowest free number to what a process opens. So a socket or the run directory would become standard
error, and the next message would go into it. POSIX lets a program start with /dev/null instead (execve(2), NOTES on
set-user-ID programs; glibc does that for those only).
"""

from __future__ import annotations

import os
import sys

STREAMS = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}


def fill() -> None:
    """Open /dev/null in the place of each of the descriptors 0, 1 and 2 that is closed, and make sys's stream of it.

    Called before a process opens anything that stays open. Children and an exec get these descriptors, too. Ends
    the process with status 1 where /dev/null cannot be opened.
    """
    for number, (name, mode) in STREAMS.items():
        try:
            os.fstat(number)
        except OSError:
            try:
                null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            except OSError as error:
                why = f"descriptor {number} is closed, and {os.devnull} cannot be opened"
                sys.exit(f"reuseport: {why}: {error.strerror}")
            os.set_inheritable(null, True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
