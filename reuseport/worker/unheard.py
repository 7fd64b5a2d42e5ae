"""The tracebacks that an application logs and that none of its handlers prints.

Frameworks answer 500 for an exception of a view and log it. Django in production has no handler that prints it, so
without this class the operator of a failed release would not see why its warm-up failed.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

MOST = 5  # tracebacks of one request


class Unheard:
    """While it is entered, `tracebacks` collects what is logged as an error with an exception and is not printed."""

    def __init__(self) -> None:
        self.tracebacks: list[str] = []
        self._listens = False

    def __enter__(self) -> Unheard:
        call = logging.Logger.callHandlers

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> Any:
            if self._listens:
                self._note(logger, record)
            return call(logger, record)

        self._call, self._mine = call, call_handlers
        self._listens = True
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self._listens = False
        # An instrumentation that was imported meanwhile has wrapped it, and keeps it.
        if logging.Logger.callHandlers is self._mine:
            logging.Logger.callHandlers = self._call  # type: ignore[method-assign]

    def _note(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR or not record.exc_info or record.exc_info[0] is None:
            return
        if len(self.tracebacks) < MOST and not _is_printed(logger, record):
            self.tracebacks.append("".join(traceback.format_exception(*record.exc_info)))


def _is_printed(logger: logging.Logger, record: logging.LogRecord) -> bool:
    """Whether a handler is sure to write the record to standard output or standard error. A handler with filters is
    not: a filter that limits repetitions must see each record once."""
    any_handler = False
    one: logging.Logger | None = logger
    while one is not None:
        for handler in one.handlers:
            any_handler = True
            if record.levelno >= handler.level and not handler.filters and _goes_to_terminal(handler):
                return True
        one = one.parent if one.propagate else None
    return not any_handler and logging.lastResort is not None  # which prints it


def _goes_to_terminal(handler: logging.Handler) -> bool:
    try:
        return handler.stream.fileno() in (1, 2)  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
