"""Remedies for the parts of multiprocessing that do not work with gevent.

gevent cannot make os.read and semaphores cooperative. A thread that waits in them, such as those of
`multiprocessing.Pool`, stops all other greenlets of its process. gevent also makes the descriptors of sockets
non-blocking, which `multiprocessing.connection` does not expect: managers raise BlockingIOError, and so does the start
method forkserver from Python 3.14 on. docs/frameworks.md has the whole list.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

from gevent import monkey

INNERMOST = 6  # calls among which the blocking one is looked for
BLOCKING = tuple(os.path.join("multiprocessing", f"{name}.py") for name in ("connection", "queues", "synchronize"))
SPEAKING = tuple(os.path.join("multiprocessing", f"{name}.py") for name in ("connection", "managers", "forkserver"))
INSTEAD = (
    "Use concurrent.futures.ProcessPoolExecutor with mp_context=multiprocessing.get_context('spawn'), or --threads"
)


def of_stack(filenames: Iterable[str]) -> str:
    """The remedy where multiprocessing blocks all greenlets; "" elsewhere. `filenames` are those of the calls that are
    under way, innermost first."""
    if monkey.is_module_patched("threading") and any(name.endswith(BLOCKING) for name in islice(filenames, INNERMOST)):
        return f"multiprocessing waits in a call that stops all greenlets of its process. {INSTEAD}"
    return ""


def of_error(error: BaseException) -> str:
    """The remedy where multiprocessing has raised this because gevent's sockets do not block; "" elsewhere."""
    if not isinstance(error, BlockingIOError) or not monkey.is_module_patched("socket"):
        return ""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith(SPEAKING):
            return f"multiprocessing's managers and forkserver do not work with gevent. {INSTEAD}"
        traceback = traceback.tb_next
    return ""
