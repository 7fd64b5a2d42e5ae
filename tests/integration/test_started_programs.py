"""What a program that the application starts has of the server: no ignored signal, no blocked one, no raised limit."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from collections.abc import Iterator

import pytest
from harness import APPS, Server, wait_for

MODES = {"greenlets": (), "threads": ("--threads", "4")}
CODE = """
import starting
at_import = starting.by(starting.WAYS)
application = starting.make(VERSION, at_import)
"""
LIMIT = 1000  # above what the process that runs many tests holds open itself
DEFAULT = {"blocked": 0, "ignored": 0, "limit": LIMIT}
COMPANION = """\
[[companion]]
name = "told"
command = ["sh", "-c", 'sh {script} >"$TEST_GATES/companion"; exec sleep 1000']
ready_command = ["sh", "-c", 'sh {script} >"$TEST_GATES/ready_command"']
"""


@contextlib.contextmanager
def started_by_an_odd_parent() -> Iterator[None]:
    """A low soft limit, as a shell has; and signals that are ignored and blocked, as some supervisors leave them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGALRM, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGWINCH, signal.SIGRTMIN + 6])
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def limit_of(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


def told(server: Server, name: str) -> dict:
    """What a companion's command has found."""
    path = server.gates / name
    blocked, ignored, limit = wait_for(lambda: path.exists() and len(t := path.read_text().split()) == 3 and t, name)
    return {"blocked": int(blocked, 16), "ignored": int(ignored, 16), "limit": int(limit)}


@pytest.mark.parametrize("mode", MODES)
def test_what_the_application_starts_begins_as_under_no_server(serve, mode):
    server: Server = serve(*MODES[mode], workers=1)
    (server.root / "reuseport.toml").write_text(COMPANION.format(script=APPS / "starting.sh"))
    server.write("one", code=CODE)
    with started_by_an_odd_parent():
        server.start()
    assert limit_of(server.get().pid) == resource.getrlimit(resource.RLIMIT_NOFILE)[1], "each client is a descriptor"
    found = server.get("/started").json
    odd = {f"{moment}: {way}": facts for moment, ways in found.items() for way, facts in ways.items()
           if facts != DEFAULT}  # fmt: skip
    assert not odd, json.dumps(odd, indent=1)
    for name in ("companion", "ready_command"):
        assert told(server, name) == DEFAULT, name
    if mode == "greenlets":  # the master of another version has the raised limit from its start
        assert server.cli("upgrade").exit == 0
        (server.gates / "companion").unlink()
        assert server.release().exit == 0
        assert told(server, "companion") == DEFAULT
        assert server.get("/started").json["start hook"]["posix_spawn"] == DEFAULT
