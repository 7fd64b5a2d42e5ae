"""Files of variables (--env-file): each release reads them again, and their values are told to the application only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_runs_nothing_that_a_file_of_the_application_s_user_names(serve, interpreter_for_all):
    """That user can write the file, and with PYTHONPATH it would have root import the user's own modules."""
    options = ("--user", "nobody", "--python", interpreter_for_all, "--env-file", ".env", "--env", "OVER=flag")
    server = serve(*options, workers=1, env={"PLACE": "of the start"})
    theirs, uids = server.root / "theirs", server.root / "uids"
    theirs.mkdir()
    (theirs / "json.py").write_text(f"""
import os, sys
with open({str(uids)!r}, "a") as file:
    file.write(f"{{os.geteuid()}}\\n")
sys.path.remove({str(theirs)!r})
del sys.modules["json"]
import json
""")
    directory = release_directory(server, "one", f"PYTHONPATH={theirs}\nHOME=/of/the/file\nREUSEPORT_GENERATION=7\n")
    os.chown(directory / ".env", 65534, 65534)
    uids.touch()
    uids.chmod(0o666)
    server.start()
    assert found(server) == ["one", None, "flag", TOKEN]
    environment = server.get("/facts").json["facts"]["environment"]
    of_server = ("PYTHONPATH", "HOME", "REUSEPORT_GENERATION")
    assert [environment[name] for name in of_server] == [str(theirs), "/of/the/file", "1"]
    # Where the import does not survive a fork, the zygote executes itself again.
    server.write("one", code="import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    assert server.renew() == 2
    assert found(server) == ["one", None, "flag", TOKEN]
    (directory / "small.py").write_text("def application(environ, start_response): ...")
    outcome = server.cli("doctor", "--json", *options, "--chdir", str(server.current), "small:application")
    assert "the application loads in " in outcome.out, outcome.err + outcome.out
    assert "0" not in uids.read_text().split()
