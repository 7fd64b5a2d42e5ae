"""Functions that the application has registered, called while the worker serves: each in a greenlet or thread."""

from __future__ import annotations

import _thread
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import application


def call(
    functions: Iterable[Callable[..., Any]],
    what: str,
    log: Callable[[str, str], None],
    arguments: Sequence[tuple[Any, ...]] = ((),),
) -> None:
    """Call each function in a greenlet of its own, or with --threads in a thread: once with each of the arguments, one
    after another. An exception is logged, and `what` says there which kind of function has failed. A function that gets
    no thread is not called, and the log says so."""

    def run(function: Callable[..., Any]) -> None:
        for some in arguments:
            try:
                function(*some)
            except Exception as error:  # noqa: BLE001 - whatever the application raises
                log("error", f"{what} failed: {type(error).__name__}: {error}")
                application.print_traceback(error)

    for function in functions:
        try:
            _thread.start_new_thread(run, (function,))  # gevent's, where threads are patched
        except RuntimeError as error:  # the limit of threads; the caller has more messages to handle
            log("error", f"{what} was not called: {error}")
