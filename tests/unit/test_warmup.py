"""Warm-up requests: what they count, and which errors of theirs the asker of a release gets to see."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from http_harness import Harness

from reuseport.ipc import scoreboard
from reuseport.ipc.logline import LOGGED
from reuseport.master.bootlog import BootLog, BootLogs
from reuseport.options import load
from reuseport.worker import warmup
from reuseport.worker.said import Said
from reuseport.worker.unheard import Unheard


def fails(environ, start_response):
    raise RuntimeError("cold")


def breaks_off(environ, start_response):
    start_response("200 OK", [])
    yield b"one"
    raise RuntimeError("cold")


def answers(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"one"]


COUNTERS = {name: field for name, field in scoreboard.NAMES.items() if field not in scoreboard.GAUGES}


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(
    ("application", "path", "errors"),
    [(answers, "/", 0), (fails, "/", 1), (breaks_off, "/", 1), (answers, "/ /", 0)],
    ids=["answers", "fails", "breaks off", "is refused"],
)
def test_a_warm_up_request_is_counted_apart(application, path, errors, threads):
    harness = Harness(application, threads=threads)
    try:
        warmup.request(harness.engine, path)
    except warmup.WarmupError:
        assert application is fails
    counted = {name: count for name, field in COUNTERS.items() if (count := harness.counter(field))}
    assert counted == {"warmups": 1} | ({"warmup_errors": errors} if errors else {})
    assert harness.engine.latencies == []
    harness.application = answers
    harness.talk(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    harness.close()
    assert harness.counter(scoreboard.REQUESTS) == 1 and harness.counter(scoreboard.ERRORS) == 0
    assert harness.counter(scoreboard.BYTES_OUT) > 0


def test_the_sums_of_the_dead_keep_warm_ups():
    assert not {scoreboard.WARMUPS, scoreboard.WARMUP_ERRORS} & scoreboard.GAUGES


# --- the asker


@contextmanager
def handlers_of(logger, *handlers, propagate=True):
    before = logger.propagate
    logger.propagate = propagate
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.propagate = before
        for handler in handlers:
            logger.removeHandler(handler)


def raise_and_log(logger, level=logging.ERROR):
    try:
        raise RuntimeError("cold")
    except RuntimeError:
        logger.log(level, "Internal Server Error", exc_info=True)


def never(record):
    return False


def test_a_traceback_that_no_handler_prints_is_collected(tmp_path):
    # As Django logs with DEBUG=False: a console handler with a filter, and a handler that sends mail.
    console = logging.StreamHandler(os.fdopen(2, "w", closefd=False))
    file = logging.FileHandler(tmp_path / "log")
    console.addFilter(never)
    logger = logging.getLogger("some.framework")
    with handlers_of(logger, console, file, propagate=False):
        with Unheard() as unheard:
            raise_and_log(logger)
            raise_and_log(logger, logging.WARNING)
            logger.error("without an exception")
        raise_and_log(logger)
    (text,) = unheard.tracebacks
    assert text.startswith("Traceback") and text.endswith("RuntimeError: cold\n")
    file.close()


def test_a_traceback_that_a_handler_prints_is_not_collected():
    logger = logging.getLogger("some.framework")
    stream = os.fdopen(2, "w", closefd=False)
    with handlers_of(logger, logging.StreamHandler(stream), propagate=False), Unheard() as unheard:
        raise_and_log(logger)
    assert unheard.tracebacks == []


def test_a_filter_is_asked_once_for_each_record():
    """One that limits repetitions drops the record when it sees it for the second time."""
    asked: list[str] = []
    handler = logging.StreamHandler(os.fdopen(2, "w", closefd=False))
    handler.addFilter(lambda record: bool(asked.append(record.getMessage())))
    logger = logging.getLogger("some.framework")
    with handlers_of(logger, handler, propagate=False), Unheard() as unheard:
        raise_and_log(logger)
    assert asked == ["Internal Server Error"] and len(unheard.tracebacks) == 1


def test_an_instrumentation_of_logging_survives(monkeypatch):
    monkeypatch.setattr(logging.Logger, "callHandlers", before := logging.Logger.callHandlers)
    with Unheard():
        inner = logging.Logger.callHandlers
        monkeypatch.setattr(logging.Logger, "callHandlers", wrapper := lambda self, record: inner(self, record))
    assert logging.Logger.callHandlers is wrapper
    monkeypatch.setattr(logging.Logger, "callHandlers", before)
    with Unheard():
        pass
    assert logging.Logger.callHandlers is before


def test_a_failed_warm_up_logs_what_the_application_logged():
    logger = logging.getLogger("some.framework")

    def application(environ, start_response):
        raise_and_log(logger)
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]

    harness = Harness(application)
    with handlers_of(logger, logging.NullHandler(), propagate=False), pytest.raises(warmup.WarmupError, match="500"):
        warmup.request(harness.engine, "/health")
    (text,) = harness.errors()
    assert "--warmup /health" in text and "RuntimeError: cold" in text
    harness.close()


def test_the_log_gets_a_line_that_has_not_ended_and_nothing_twice(tmp_path):
    """An application that prints its progress (`print(".", end="")`) while its workers log."""
    boot = BootLog(str(tmp_path / "boot"))
    fd, errors = boot.open()
    os.close(errors)
    for data in (b".", LOGGED + b"a warning\n", LOGGED + b"another\n", b".", LOGGED + b"a third\n", b"done\n"):
        os.write(fd, data)
    assert boot.news(rest=True) == b".\n.\ndone\n"
    assert "a third" in boot.tail()
    os.close(fd)


def test_a_new_master_removes_both_names_of_a_boot_log(tmp_path):
    """An earlier one died between its link(2) and its unlink(2)."""
    for name in ("boot-7.log", "boot-7.log.errors", "companion-7.log"):
        (tmp_path / name).touch()
    run_dir: Any = SimpleNamespace(base=str(tmp_path))
    BootLogs(run_dir, *[None] * 3).clear()  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["companion-7.log"]


@pytest.mark.parametrize("more", [(), ("--log-json",), ("--capture-output",), ("--log-level", "critical")])
def test_the_boot_log_has_the_errors_that_go_to_a_file(tmp_path, more):
    """The asker sees the end of the boot log; the master copies it into the log, which has the error already."""
    boot = BootLog(str(tmp_path / "boot"))
    fd, errors = boot.open()
    os.close(errors)
    said = Said(load(["a:a", "--name", "shop", "--log-file", str(tmp_path / "log"), *more], {}, "/srv"), "2.1")
    said.boot_output = fd
    os.write(fd, b"printed\n")
    said("error", "GET / failed\nRuntimeError: cold")
    said("info", "nothing of interest")
    assert boot.news(rest=True) == b"printed\n"
    printed, *logged = boot.tail().splitlines()
    assert printed == "printed" and len(logged) == 2 and LOGGED.decode() not in boot.tail()
    assert "[2.1] [error] GET / failed" in logged[0] and "RuntimeError: cold" in logged[1]
    said.boot_output = None
    said("error", "of a worker that serves")
    assert boot.news(rest=True) == b""
    os.close(fd)
