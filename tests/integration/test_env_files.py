"""Files of variables (--env-file): each release reads them again, and their values are told to the application only."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness import wait_for

NAMES = ("PLACE", "OTHER", "OVER", "TOKEN")
TOKEN = "s3cr3t-of-the-file"
COMPANION = """
[[companion]]
name = "told"
ready_after = 0.2
command = ["sh", "-c", 'echo "$PLACE $TOKEN" >"$TEST_GATES/companion"; exec sleep 1000']
"""


def release_directory(server, version: str, text: str = "") -> Path:
    directory = server.write(version)
    (directory / ".env").write_text(f"# of {version}\nPLACE='{version}'\nOVER=file\nTOKEN={TOKEN}\n{text}")
    return directory


def found(server) -> list:
    environment = server.get("/facts").json["facts"]["environment"]
    return [environment.get(name) for name in NAMES]


def test_each_release_reads_them_again(serve):
    options = ("--env-file", ".env", "--env-file=-more.env", "--env", "OVER=flag", "--standby", "0")
    server = serve(*options, workers=1, env={"PLACE": "of the start"})
    (server.root / "reuseport.toml").write_text(COMPANION)
    one = release_directory(server, "one")
    server.start()
    assert found(server) == ["one", None, "flag", TOKEN]
    told = server.gates / "companion"
    wait_for(lambda: told.exists() and told.read_text() == f"one {TOKEN}\n", "the companion's variables")
    two = release_directory(server, "two")
    (two / "more.env").write_text("export OTHER = 'more'\n")
    server.renew()
    assert found(server) == ["two", "more", "flag", TOKEN]

    # A mistake changes nothing, and the answer says where it is.
    three = release_directory(server, "three", "\nhidden-value\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert f"--env-file: {three.resolve()}/.env:6: there is no = in it" in outcome.err
    (three / ".env").unlink()
    outcome = server.release()
    assert outcome.exit == 1
    assert f"{three.resolve()}/.env: no such file" in outcome.err
    assert found(server) == ["two", "more", "flag", TOKEN]

    # The history holds no values, so a version that has gone is loaded with those that its file has by now.
    (one / ".env").write_text("PLACE=later\n")
    assert server.cli("rollback", "--wait", "drained").exit == 0
    assert found(server) == ["later", None, "flag", None]

    everything = [server.cli(*words).out for words in (("status", "--json"), ("status",), ("history", "--json"))]
    everything += [server.log.read_text(), json.dumps(server.question(do="history"))]
    everything += [path.read_text() for path in server.run_dir.glob("history*")]
    assert len(everything) >= 6, os.listdir(server.run_dir)
    assert not any(TOKEN in text or "hidden-value" in text for text in everything)


def test_a_file_that_does_not_count_is_named(serve):
    server = serve()
    release_directory(server, "one")
    server.start()
    assert ".env is not read. --env-file .env reads it at each release" in server.log.read_text()
    assert found(server) == [None] * len(NAMES)
    outcome = server.cli("serve", "--check-config", "--chdir", str(server.current), "--env-file", "none", "app:app")
    assert outcome.exit == 1
    assert "--env-file: " in outcome.err
    assert "/none: no such file or directory" in outcome.err
