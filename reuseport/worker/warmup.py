"""Warm-up: what a worker does before it is ready, so that no client meets it cold.

The functions registered with `reuseport.on_start` run first, then each `--warmup` path is requested, through the very
engine that will serve clients, over a socket pair.
"""

from __future__ import annotations

from typing import Any

from gevent import socket

from reuseport import hooks


class WarmupError(Exception):
    """The worker cannot become ready: one line that says why."""


def call_start_hooks() -> None:
    """Run the application's hooks. Their exceptions are the application's, and fail the release."""
    for function in hooks.start_hooks:
        function()


def request(engine: Any, path: str) -> int:
    """GET the path, or //HOST/PATH, from this worker itself; the status. WarmupError for 500 or above, or no answer."""
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
        if not status or not status[0].isdigit():
            raise WarmupError(f"--warmup {path}: no answer")
        if int(status[0]) >= 500:
            raise WarmupError(f"--warmup {path}: answered with {status[0].decode()}; the log has what the worker said")
        return int(status[0])
