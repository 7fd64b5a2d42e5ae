"""Warm-up: what a worker does before it is ready, so that no client meets it cold.

The functions registered with `reuseport.on_start` run first, then the worker requests each `--warmup` path through the
engine that will serve clients, over a socket pair. These requests are no traffic: `counted_apart` keeps them out of
what metrics and the judgement of a release count.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from typing import Any

from gevent import socket

from reuseport import hooks
from reuseport.ipc.scoreboard import ERRORS, FIELDS, REQUESTS, WARMUP_ERRORS, WARMUPS
from reuseport.worker.unheard import Unheard


class WarmupError(Exception):
    """The worker cannot become ready: one line that says why."""


def call_start_hooks() -> None:
    """Run the application's hooks. Their exceptions are the application's, and fail the release."""
    for function in hooks.start_hooks:
        function()


def request(engine: Any, path: str) -> int:
    """GET the path, or //HOST/PATH, from this worker itself; the status. WarmupError for 500 or above, or no answer.

    The tracebacks that the application logged for a failed request go to the engine's log, unless a handler of the
    application's has printed them.
    """
    with counted_apart(engine), Unheard() as unheard:
        status = _get(engine, path)
    if status is None or status >= 500:
        for text in unheard.tracebacks:
            engine.log("error", f"--warmup {path}: the application logged this error:\n{text}")
    if status is None:
        raise WarmupError(f"--warmup {path}: no answer")
    if status >= 500:
        raise WarmupError(f"--warmup {path}: answered with {status}; the log has what the worker said")
    return status


@contextlib.contextmanager
def counted_apart(engine: Any) -> Iterator[None]:
    """The engine counts the requests inside as warm-ups only (WARMUPS, WARMUP_ERRORS)."""
    board = engine.board
    apart = engine.board = array("Q", bytes(8 * FIELDS))
    try:
        yield
    finally:
        engine.board = board
        engine.latencies.clear()
        board[WARMUPS] += apart[REQUESTS]
        board[WARMUP_ERRORS] += apart[ERRORS]


def _get(engine: Any, path: str) -> int | None:
    """The status of the answer; None without one."""
    host, target = "localhost", path
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        target = slash + rest or "/"
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        engine.adopt(theirs.detach(), "", "")
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: reuseport-warmup\r\nConnection: close\r\n\r\n"
        ours.sendall(head.encode())
        answer = b""
        while piece := ours.recv(65536):
            answer = (answer + piece)[:100]
    status = answer.split(b" ", 2)[1:2]
    return int(status[0]) if status and status[0].isdigit() else None
