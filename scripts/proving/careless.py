"""An engine alone in a process, whole or without its deadlines, counters and hooks: for what these cost.

    careless.py whole|bare

`bare` puts no-ops in the place of: the deadlines (`Stream._set_deadline`), the counters of requests, errors and bytes,
and the hook at a request's end. What cannot be replaced without copying the code around it stays (an assignment of
NEVER to `deadline`, the count of connections). Prints its port.
"""

# ruff: noqa: E402 - patched first, as a worker is

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "sample")]
from gevent import monkey

monkey.patch_all()

import _socket
from typing import Any

import gevent
from speed import application

from reuseport.ipc import scoreboard
from reuseport.options import from_keywords
from reuseport.worker.connection import Connection
from reuseport.worker.engine import Engine
from reuseport.worker.stream import Stream


class Careless(Engine):
    """Counts nothing."""

    def request_begins(self) -> None:
        pass

    def request_done(self, response: Any, failed: bool) -> None:
        pass


def send_uncounted(self: Any, data: bytes) -> None:
    """As Stream.send for what fits into the kernel's buffer, which is all that is measured here."""
    if self._sock.send(data) != len(data):
        raise AssertionError("hello world does not fit")


def main() -> None:
    board = memoryview(bytearray(scoreboard.ROW_BYTES)).cast("Q")
    bare = sys.argv[1] == "bare"
    if bare:
        Stream._set_deadline = Connection._set_deadline = lambda self, seconds: None
        Stream.send = Connection.send = send_uncounted
    engine = (Careless if bare else Engine)(
        application,
        from_keywords("speed:application"),
        generation=1,
        worker="1.1",
        board=board,
        log=lambda level, text: None,
    )
    engine.on_request_end = None if bare else (lambda: None)
    listener = _socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    listener.setblocking(False)

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                fd, peer = listener._accept()
                os.set_blocking(fd, False)
                engine.adopt(fd, peer, listener.getsockname())

    watcher = gevent.get_hub().loop.io(listener.fileno(), 1)
    watcher.start(accept)
    print(listener.getsockname()[1], flush=True)
    gevent.get_hub().join()


if __name__ == "__main__":
    main()
