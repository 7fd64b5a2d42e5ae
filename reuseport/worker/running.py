"""Which requests are being answered at this moment, found in the stacks: so it costs a request nothing.

For the report of a blocked loop. The stack signal has two handlers: one in C, which writes the stacks whatever the
interpreter is doing, and this one, which runs as soon as the interpreter can: at the next instruction of a view that
computes, at the signal's interruption of a system call; not within a library in C that never looks.
"""

from __future__ import annotations

import os
import sys
from types import FrameType

from .wsgi import Caller, describe

_SERVE = Caller.serve.__code__


def requests() -> list[str]:
    """The requests whose code some thread is running, or waiting in: not those of greenlets that wait."""
    found = []
    for ident in sys._current_frames().values():
        frame: FrameType | None = ident
        while frame is not None:
            if frame.f_code is _SERVE:
                environ = frame.f_locals["response"].environ
                if environ:
                    found.append(
                        f"{describe(frame.f_locals['response'])} from {environ.get('REMOTE_ADDR') or 'a unix socket'}"
                    )
                break
            frame = frame.f_back
    return found


def tell(fd: int) -> None:
    """Write them to `fd`, behind the stacks."""
    if answering := requests():
        text = "It is answering " + ", ".join(request[:500] for request in answering) + "\n"
        os.write(fd, text.encode(errors="backslashreplace"))
