"""breakpoint() in development: with --reload, at a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from dataclasses import dataclass

import pytest
from harness import PATIENCE, Server

CODE = """
inner = application

def application(environ, start_response):
    environ["PATH_INFO"] = "/"
    version = "not changed"
    if environ["QUERY_STRING"] == "hook":
        breakpoint()
    elif environ["QUERY_STRING"] == "pdb":
        import pdb
        pdb.set_trace()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [version.encode()]
"""


@dataclass
class AtTerminal(Server):
    """A server whose standard input and output are a terminal."""

    terminal: int = -1

    def launch(self) -> Server:
        self.write("one", CODE)
        self.terminal, other = pty.openpty()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=other, stdout=other, stderr=log, env={**self.environment, "TERM": "dumb"},
                cwd=self.root, start_new_session=True,
            )  # fmt: skip
        os.close(other)
        return self

    def reads(self, pattern: bytes) -> bytes:
        """What the terminal shows, up to this."""
        shown, deadline = b"", time.monotonic() + PATIENCE
        while not re.search(pattern, shown):
            assert time.monotonic() < deadline, shown
            if select.select([self.terminal], [], [], 0.1)[0]:
                shown += os.read(self.terminal, 65536)
        return shown

    def types(self, line: str) -> None:
        os.write(self.terminal, f"{line}\n".encode())


@pytest.mark.parametrize("options", [(), ("--threads", "1", "--preload", "never")], ids=["greenlets", "threads"])
def test_a_view_stops_at_a_breakpoint(options):
    server = AtTerminal(("--reload", "--timeout", "0.1", *options), workers=1)
    try:
        server.start()
        before = termios.tcgetattr(server.terminal)
        workers = server.status().pids()
        for how in ("hook", "pdb"):
            answer = server.get_later(f"/?{how}")
            assert b"-> start_response" in server.reads(rb"\(Pdb\) ")
            server.types("version = 'changed'")
            server.reads(rb"\(Pdb\) ")
            server.types("continue")
            assert answer.result().body == b"changed"
        assert server.status().pids() == workers, "nobody took it for blocked"
        answer = server.get_later("/?hook")
        server.reads(rb"\(Pdb\) ")
        server.signal(signal.SIGINT)
        assert server.await_exit() == 0
        assert termios.tcgetattr(server.terminal) == before
    finally:
        server.close()
        os.close(server.terminal)
