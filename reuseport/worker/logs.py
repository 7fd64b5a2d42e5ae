"""Where a worker's lines go: into files, or through Python's logging where `--log-config` says so.

A file is written without waiting, once per turn of the loop, in whole lines: many workers may share it (O_APPEND). A
handler of `logging` may wait for anything, and the loop must not: a thread of its own (a greenlet, where the standard
library is patched) hands the lines to the logger, in order.
"""

from __future__ import annotations

import json
import logging
import logging.config
import os
import queue
import sys
import threading
import tomllib
from collections.abc import Callable
from typing import Any

from reuseport.ipc.inherited import STDERR_COPY, STDOUT_COPY
from reuseport.ipc.logfile import Passed
from reuseport.ipc.logline import form_of, printable
from reuseport.ipc.outlet import Outlet
from reuseport.options import Settings, logplace
from reuseport.worker.alarm import Alarm

from .application import LoadError
from .said import Said

ERROR_LOGGERS = ("reuseport.error", "gunicorn.error")
ACCESS_LOGGERS = ("reuseport.access", "gunicorn.access")
LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error", "critical")}
AGAIN = 0.05  # seconds until a reader that was slow is tried again
STREAMS = {-1: STDOUT_COPY, 1: STDOUT_COPY, 2: STDERR_COPY}
LAST_WORDS = 1.0  # seconds that an exit waits for a slow reader, or a slow handler
MOST_WAITING = 20_000  # lines that wait for a handler


def configure(path: str) -> None:
    """Apply `--log-config`. LoadError where that is not possible: the release fails, and says why."""
    begin = f"--log-config {path}"
    try:
        if path.endswith((".json", ".toml")):
            with open(path, "rb") as file:
                read = json.load(file) if path.endswith(".json") else tomllib.load(file)
            if not isinstance(read, dict):
                raise LoadError(f"{begin}: holds no object at its top")
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **read})
        else:
            with open(path, encoding="utf-8"):
                pass  # for an error that names the reason: fileConfig has none but "does not exist"
            defaults = {"__file__": path, "here": os.path.dirname(os.path.abspath(path))}
            logging.config.fileConfig(path, defaults, disable_existing_loggers=False)
    except LoadError:
        raise
    except OSError as error:
        whose = f"{error.filename}: " if error.filename and error.filename != path else ""
        raise LoadError(f"{begin}: {whose}{error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - a handler's class may raise anything
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise LoadError(f"{begin}: {type(error).__name__}: {error}{why}") from None


def configured(names: tuple[str, ...]) -> logging.Logger | None:
    """The first of these loggers that the configuration speaks of; None if it speaks of none.

    An application that configures logging too (Django's LOGGING) turns off all loggers but its own, unless it says
    otherwise (disable_existing_loggers): it does not know of these, so they are turned on again.
    """
    for name in names:
        logger = logging.root.manager.loggerDict.get(name)
        if isinstance(logger, logging.Logger) and (logger.handlers or logger.level):
            logger.disabled = False
            return logger
    return None


class FileSink:
    """Lines to where --access-log says. `log(level, text)` is told, once, when it fails, and when it does again."""

    def __init__(
        self, settings: Settings, who: str, loop: Any, log: Callable[[str, str], None], passed: Passed | None = None
    ) -> None:
        path = settings.access_log
        self._passed = passed or Passed()
        place = logplace.parse(path)
        # What the outlet writes to, where that is a descriptor; of all but standard output and error a copy.
        self._standard = STREAMS.get(place.number, -1)
        self._copies = place.kind == logplace.DESCRIPTOR and place.number not in STREAMS
        if self._copies:
            try:
                self._standard = self._passed.open(path)
            except OSError as error:
                # No release fails here, since the master has checked it. But another master may have adopted the
                # generation, which must not lose its workers for that.
                log("error", f"--access-log {path}: {error.strerror}; no request is logged")
                self._standard = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._outlet = Outlet(path, self._standard, opened=self._passed.open)
        except OSError as error:
            raise LoadError(f"--access-log {path}: {error.strerror}") from None
        self._who = who
        self._form = form_of(self._outlet.place, settings, bare=True)
        self._outlet.on_blocked = self._try_later
        self._loop = loop
        self._log = log
        self._lines: list[str] = []
        self._alarm = Alarm(loop, AGAIN, self._retry)
        self._failing = False

    def write(self, line: str) -> None:
        """Write the line in this turn of the loop. Called in the loop's thread."""
        if not self._lines:
            self._loop.run_callback(self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        if self._outlet.place.by_datagrams:
            for line in lines:
                for entry in self._form(self._who, "info", line):
                    self._outlet.raw(entry)
        elif self._outlet.is_file:
            lines.append("")
            self._outlet.raw("\n".join(lines).encode(errors="backslashreplace"))
        else:
            for line in lines:  # a pipe takes up to 4096 bytes whole (PIPE_BUF), and not more
                self._outlet.raw(line.encode(errors="backslashreplace") + b"\n")
        self._judge()

    def reopen(self) -> None:
        self.flush()
        try:
            if self._copies:
                fd = self._passed.open(self._outlet.path)
                os.dup2(fd, self._standard, inheritable=False)
                os.close(fd)
            self._outlet.reopen()
        except OSError as error:
            self._log("error", f"--access-log {self._outlet.path} could not be opened again: {error.strerror}")

    def close(self) -> None:
        self.flush()
        self._outlet.finish(LAST_WORDS)

    def _try_later(self) -> None:
        self._alarm.set()

    def _retry(self) -> None:
        self._outlet.flush()
        self._judge()

    def _judge(self) -> None:
        error = self._outlet.error
        if error is not None and not self._failing:
            self._log(
                "error", f"--access-log {self._outlet.path}: {error.strerror}; lines are lost until it can be written"
            )
        elif error is None and self._failing:
            self._log("warning", f"--access-log {self._outlet.path} can be written again")
        self._failing = error is not None


class LoggerSink:
    """Hands lines to loggers, from a thread of its own. Any thread may write."""

    def __init__(self) -> None:
        self._queue: Any = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lost = 0

    def start(self) -> None:
        """After the fork, in the process that writes."""
        self._thread = threading.Thread(target=self._run, name="reuseport-log", daemon=True)
        self._thread.start()

    def write(self, logger: logging.Logger, level: int, text: str, **extra: Any) -> None:
        if not logger.isEnabledFor(level):
            return
        if self._queue.qsize() >= MOST_WAITING:
            self._lost += 1
            return
        self._queue.put((logger, level, text, extra))

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            logger, level, text, extra = entry
            if self._lost:
                lost, self._lost = self._lost, 0
                sys.stderr.write(f"reuseport: {lost} lines were lost: the handlers of --log-config are too slow\n")
            try:
                logger.log(level, "%s", text, extra=extra)
            except Exception as error:  # noqa: BLE001 - a handler of the application's
                sys.stderr.write(f"reuseport: a handler of --log-config failed: {error!r}: {printable(text)}\n")

    def close(self) -> None:
        """Wait, not for ever, until everything was handed over."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(LAST_WORDS)


class Sinks:
    """Where the lines of one worker go, made after the import in the process that writes. `said` is its log, `passed`
    has the files that the master has opened.

    `access` takes the line of a request; None where there is no access log.
    """

    def __init__(
        self, settings: Settings, generation: int, who: str, loop: Any, said: Said, passed: Passed | None = None
    ) -> None:
        errors = configured(ERROR_LOGGERS) if settings.log_config else None
        requests = configured(ACCESS_LOGGERS) if settings.log_config else None
        self.access: Callable[[str], None] | None = None
        self._file: FileSink | None = None
        self._logger: LoggerSink | None = None
        if errors or requests:
            sink = self._logger = LoggerSink()
            sink.start()
            extra = {"generation": generation, "worker": who}
            if errors:
                said.logger = lambda level, text: sink.write(errors, LEVELS[level], text, **extra)
            if requests:
                self.access = lambda text: sink.write(requests, LEVELS["info"], text, **extra)
        if self.access is None and settings.access_log:
            self._file = FileSink(settings, who, loop, said, passed)
            self.access = self._file.write

    def reopen(self) -> None:
        """As after a rotation."""
        if self._file is not None:
            self._file.reopen()

    def close(self) -> None:
        """At the worker's end. What the file has to say of its own goes through the logger, if there is one."""
        for sink in (self._file, self._logger):
            if sink is not None:
                sink.close()
