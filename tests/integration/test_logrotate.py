"""The real logrotate, with what `reuseport init logrotate` prints: no line is lost, and none goes to the old file."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from harness import wait_for

LOGROTATE = shutil.which("logrotate", path=os.environ.get("PATH", "") + ":/usr/sbin")

pytestmark = [
    pytest.mark.skipif(not LOGROTATE, reason="needs logrotate (Debian: apt install logrotate)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="logrotate gives files to their owner: needs root"),
]


def lines(path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_logrotate(serve, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o755)
    server = serve()
    files = ("--log-file", str(logs / "server.log"), "--access-log", str(logs / "access.log"))
    server.options = files
    server.start()
    printed = server.cli("init", "logrotate", server.app, *files)
    assert printed.exit == 0, printed.err
    config = tmp_path / "rotation"
    config.write_text(printed.out)
    config.chmod(0o644)

    server.get()
    wait_for(lambda: lines(logs / "access.log") == 1, "the first request's line")
    rotate = [LOGROTATE, "--force", "--state", str(tmp_path / "state"), str(config)]
    done = subprocess.run(rotate, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

    # Nobody can tell when a worker has heard of it: until then its lines go to the old file, and none is lost.
    asked = 1

    def arrived() -> bool:
        nonlocal asked
        server.get()
        asked += 1
        return lines(logs / "access.log") >= 5

    wait_for(arrived, "lines in the new file")
    wait_for(lambda: lines(logs / "access.log") + lines(logs / "access.log.1") == asked, "every line")
    before = lines(logs / "server.log.1")
    server.renew()
    assert "generation 2 serves" in (logs / "server.log").read_text()
    assert lines(logs / "server.log.1") == before
    assert (logs / "server.log").stat().st_mode & 0o777 == 0o640
