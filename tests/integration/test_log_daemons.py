"""Logs that go to a daemon, and what the application prints, through a release and a daemon's new start."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from harness import wait_for

PRINTING = """\
import os, subprocess, sys
print("importing", flush=True)
print("to stderr", file=sys.stderr)

def application(environ, start_response):
    print("serving", environ["PATH_INFO"])
    print("trouble", file=sys.stderr)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Daemon:
    """A datagram socket in the place of syslogd's or the journal's."""

    def __init__(self, path):
        self.path = path
        self.entries = []
        self.start()

    def start(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(self.path))

    def stop(self):
        self.socket.close()
        self.path.unlink()

    def has(self, text):
        with contextlib.suppress(BlockingIOError):
            while True:
                self.entries.append(self.socket.recv(1 << 20).decode())
        return any(text in entry for entry in self.entries)

    def await_(self, text):
        wait_for(lambda: self.has(text), text)


@pytest.fixture
def daemon(tmp_path):
    one = Daemon(tmp_path / "daemon")
    yield one
    one.socket.close()


def test_syslog_gets_the_log_and_the_requests_through_a_release_and_its_own_new_start(serve, daemon):
    place = f"syslog:{daemon.path}"
    server = serve("--log-file", place, "--access-log", place, "--log-syslog-prefix", "shop").start()
    daemon.await_("[master] [info] generation 1 serves")
    server.get("/hello")
    daemon.await_('"GET /hello HTTP/1.1" 200')
    daemon.stop()
    server.get("/unheard")
    daemon.start()
    server.renew()
    assert server.release().exit == 0
    daemon.await_("[master] [info] generation 2 serves")
    server.get("/again")
    daemon.await_('"GET /again HTTP/1.1" 200')
    assert all(entry.startswith("<") and " shop[" in entry for entry in daemon.entries)


def test_the_journal_knows_the_generation_of_a_line_that_the_application_printed(serve, daemon):
    server = serve("--log-file", f"journald:{daemon.path}", "--capture-output", workers=1)
    server.write("one", code=PRINTING)
    server.start()
    daemon.await_("MESSAGE=importing")
    server.get("/hello")
    daemon.await_("MESSAGE=serving /hello")
    (line,) = [entry for entry in daemon.entries if "MESSAGE=serving" in entry]
    for field in ("REUSEPORT_PROCESS=1.1", "REUSEPORT_GENERATION=1", "REUSEPORT_LEVEL=stdout", "PRIORITY=6"):
        assert field in line.splitlines()
    (line,) = [entry for entry in daemon.entries if "MESSAGE=importing" in entry]
    assert "REUSEPORT_GENERATION=1" in line.splitlines()


@pytest.mark.parametrize("how", [(), ("--threads", "2"), ("--preload", "never")], ids=["greenlets", "threads", "alone"])
def test_what_is_printed_says_whose_it_is_also_of_a_worker_that_came_later(serve, how):
    server = serve("--capture-output", "--log-level", "warning", *how, workers=1)
    server.write("one", code=PRINTING)
    server.start()
    server.get("/early")
    (worker,) = server.status().workers("serving")
    assert "[1] [output] importing" in server.log.read_text()
    wait_for(lambda: "[1.1] [stdout] serving /early" in server.log.read_text(), "the line")
    assert "[1.1] [stderr] trouble" in server.log.read_text()
    os.kill(worker["pid"], 9)
    server.wait(lambda s: [one["pid"] for one in s.workers("serving")] not in ([], [worker["pid"]]), "another worker")
    server.get("/late")
    wait_for(lambda: "[1.2] [stdout] serving /late" in server.log.read_text(), "the line")


def test_without_it_what_is_printed_stays_as_it_is(serve):
    server = serve(workers=1)
    server.write("one", code=PRINTING)
    server.start()
    server.get("/x")
    wait_for(lambda: "trouble" in server.log.read_text().splitlines(), "the line")


def test_a_daemon_that_is_not_there_is_said_with_the_option(serve, tmp_path):
    outcome = serve("--log-file", f"syslog:{tmp_path}/none").run()
    assert outcome.exit == 1
    assert "--log-file" in outcome.err and f"{tmp_path}/none" in outcome.err
