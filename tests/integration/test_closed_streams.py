"""Started with closed standard streams, as by `reuseport serve <&- >&- 2>&-` or by a supervisor that gives none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
from harness import PATIENCE, Server

from reuseport.cli.main import COMMANDS

# Runs each command in a fork of an interpreter whose streams are closed, as the console script does.
EACH = """
import json, os, sys
assert (sys.stdin, sys.stdout, sys.stderr) == (None, None, None)
exits = {}
for words in json.loads(sys.argv[1]):
    if not (pid := os.fork()):
        sys.argv = ["reuseport", *words]
        import reuseport.cli.main
        status = 99
        try:
            status = reuseport.cli.main.main()
        finally:
            os._exit(status)
    exits[" ".join(words)] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
with open(sys.argv[2], "w") as file:
    json.dump(exits, file)
"""


@dataclass
class Closed(Server):
    """Its command is started by a shell that closes `streams`, such as "<&- 2>&-"."""

    streams: str = "<&- >&- 2>&-"

    @property
    def command(self) -> list[str]:
        return ["/bin/sh", "-c", f'exec "$@" {self.streams}', "sh", *super().command]


@pytest.fixture
def closed():
    made: list[Server] = []

    def make(*options: str, **fields) -> Closed:
        made.append(Closed(options, **fields))
        return made[-1]

    yield make
    for server in made:
        server.close()


def standard_streams(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]


def test_the_server_and_each_command(closed, tmp_path):
    server = closed("--access-log", str(tmp_path / "access.log"), "--log-file", str(tmp_path / "log"), workers=1)
    server.start()
    assert standard_streams(server.pid) == [os.devnull] * 3
    assert [standard_streams(pid) for pid in server.status().pids()] == [[os.devnull] * 3]
    assert server.get().version == "one"

    said = {
        "serve": ["serve", "--check-config", "app:application", "--chdir", str(server.current)],
        "release": ["release"],
        "rollback": ["rollback"],
        "stacks": ["stacks"],
        "hold": ["hold", "acme"],
        "move": ["move", "acme"],
        "init": ["init", "systemd", "app:application", "--chdir", str(server.current)],
        "translate": ["translate", str(tmp_path / "gunicorn.conf.py")],
        "completion": ["completion", "bash"],
        "upgrade": ["upgrade"],
    }
    (tmp_path / "gunicorn.conf.py").write_text("workers = 2\n")
    # A command of which nothing is said here shows its help.
    commands = [said.get(name, [name] if name in ("status", "history") else [name, "--help"]) for name in COMMANDS]
    script = [sys.executable, "-c", EACH, json.dumps(commands), str(tmp_path / "exits")]
    subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *script],
        env=server.environment, cwd=server.root, check=True, timeout=PATIENCE,
    )  # fmt: skip
    exits = json.loads((tmp_path / "exits").read_text())
    assert len(exits) == len(COMMANDS)
    no_tenants = {"hold acme": 1, "move acme": 1}
    assert {words: status for words, status in exits.items() if status} == no_tenants
    assert server.get().version == "one"
    assert standard_streams(server.pid) == [os.devnull] * 3  # behind the exec of the upgrade
    assert "GET /" in (tmp_path / "access.log").read_text()



def test_an_embedded_server(closed):
    server = closed(script="current/server.py", streams="<&- 2>&-")
    directory = server.releases / "one"
    directory.mkdir(parents=True)
    (directory / "server.py").write_text(SCRIPT.format(name=server.name))
    server.flip(directory)
    server.start()
    assert standard_streams(server.pid)[::2] == [os.devnull] * 2
    assert server.release().exit == 0
    assert server.get().status == 200


SCRIPT = """
import reuseport

def application(environ, start_response):
    start_response("200 OK", [])
    return [b"{{}}"]

if __name__ == "__main__":
    reuseport.serve(application, bind="127.0.0.1:0", workers=1, name={name!r})
"""
