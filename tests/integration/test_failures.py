"""What cannot be loaded: as a release it changes nothing, as a first boot it ends the server. Both say why."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from harness import Server, is_gone, wait_for


class Bad(NamedTuple):
    """`says` is in what the asker is told. `traceback`: the application's own traceback is, too."""

    says: str
    code: str = ""
    whole: str | None = None
    traceback: bool = False
    config: str = ""


BAD = {
    "raises": Bad("ZeroDivisionError", "1 / 0\n", traceback=True),
    "hangs": Bad("--boot-timeout", "basic.pass_gate('never')\n", config="boot_timeout = 0.8\n"),
    "computes for ever": Bad("--boot-timeout", "basic.burn('never')\n", None, True, "boot_timeout = 5\n"),
    "calls sys.exit": Bad("sys.exit(7)", "import sys\nsys.exit(7)\n", None, True),
    "calls sys.exit without a status": Bad("sys.exit", "import sys\nsys.exit()\n"),
    "ends the process": Bad("exited with status 9", "import os\nos._exit(9)\n"),
    "ends the process as if all were well": Bad("zygote exited", "import os\nos._exit(0)\n"),
    "has a syntax error": Bad("SyntaxError", "def broken(:\n"),
    "kills its zygote": Bad("SIGKILL", "import os\nos.kill(os.getpid(), 9)\n"),
    "lacks a module of its own": Bad("nosuchthing", "import nosuchthing\n", traceback=True),
    "lacks the attribute": Bad("no 'application'", "del application\n"),
    "is not callable": Bad("not callable", "application = 42\n"),
    "is an ASGI application": Bad("ASGI", "async def application(scope, receive, send):\n    ...\n"),
    "is a factory": Bad("app:application()", "def application(config=None):\n    ...\n"),
    "start hook raises": Bad(
        "RuntimeError: no database",
        "import reuseport\n@reuseport.on_start\ndef connect():\n    raise RuntimeError('no database')\n",
        traceback=True,
    ),
    "start hook exits": Bad("SystemExit", "import reuseport, sys\nreuseport.on_start(lambda: sys.exit(3))\n"),
    "start hook ends the process": Bad("status 3", "import reuseport, os\nreuseport.on_start(lambda: os._exit(3))\n"),
    "start hook hangs": Bad(
        "--boot-timeout", "import reuseport\nreuseport.on_start(lambda: basic.pass_gate('never'))\n",
        config="boot_timeout = 1.5\n",
    ),
    "warm-up is answered with 500": Bad("--warmup /warm", "basic.is_open = lambda name: True\n"),
    "warm-up raises": Bad(
        "MemoryError", "def application(environ, start_response):\n    raise MemoryError('cold')\n", traceback=True,
    ),
}  # fmt: skip

CONFIG = 'warmup = ["/warm"]\n'


class Shared:
    """One server for all failing releases: a failure that did change something shows in the next test at the latest."""

    def __init__(self) -> None:
        self.server: Server | None = None

    def get(self) -> Server:
        if self.server is None or not self.server.alive:
            self.close()
            self.server = Server(("-c", "conf.toml"))
            (self.server.root / "conf.toml").write_text(CONFIG)
            self.server.start()
        return self.server

    def close(self) -> None:
        if self.server is not None:
            self.server.close()


@pytest.fixture(scope="module")
def shared():
    shared = Shared()
    yield shared
    shared.close()


@pytest.mark.parametrize("name", BAD)
def test_a_release_that_fails_changes_nothing_and_says_why(shared, name):
    server, bad = shared.get(), BAD[name]
    config = server.root / "conf.toml"
    before = server.status()
    server.write(f"bad-{name.replace(' ', '-')}", bad.code, whole=bad.whole)
    config.write_text(CONFIG + bad.config)
    try:
        with server.load() as load:
            outcome = server.release("--json")
            load.more(5)
    finally:
        config.write_text(CONFIG)
        server.flip(server.releases / "one")
    assert outcome.exit == 1
    assert outcome.json["ok"] is False
    assert bad.says in outcome.err
    if bad.traceback:
        assert 'app.py", line' in outcome.err, "the application's own lines"
    assert load.failures == []
    assert load.versions == ["one"]
    status = server.settle(before.serving)
    assert status.pids() == before.pids()
    assert status.zygote == before.zygote
    last = status["releases"][-1]
    assert last["outcome"] == "failed"
    assert last["error"]


def test_the_traceback_is_the_application_s_alone(shared):
    server = shared.get()
    server.write("raises", "def f():\n    raise ValueError('mine')\nf()\n")
    outcome = server.release()
    server.flip(server.releases / "one")
    frames = [line for line in outcome.err.splitlines() if line.startswith("  File ")]
    assert [line.rpartition(" in ")[2] for line in frames] == ["<module>", "f"]


def test_after_all_failures_a_good_release_still_works(shared):
    server = shared.get()
    server.write("good")
    server.renew()
    assert server.get().version == "good"


FIRST_BOOT = (
    "raises", "hangs", "calls sys.exit", "ends the process as if all were well", "has a syntax error",
    "kills its zygote", "lacks the attribute", "start hook raises", "warm-up is answered with 500",
)  # fmt: skip


@pytest.mark.parametrize("name", FIRST_BOOT)
def test_a_first_boot_that_fails_ends_the_server_and_says_why(serve, name):
    bad = BAD[name]
    server = serve("-c", "conf.toml")
    (server.root / "conf.toml").write_text(CONFIG + bad.config)
    server.write("bad", bad.code, whole=bad.whole)
    outcome = server.run()
    assert outcome.exit == 1
    assert bad.says in outcome.err
    reasons = [line for line in outcome.err.splitlines() if "failed:" in line]
    assert len(reasons) == 1, "one clear line"
    assert ('app.py", line' in outcome.err) >= bad.traceback
    assert list(server.processes()) == []
    assert not (server.run_dir / "control.sock").exists()


def test_the_log_tells_of_a_first_boot_that_takes_long(serve):
    server = serve("-c", "conf.toml")
    (server.root / "conf.toml").write_text(BAD["hangs"].config)
    server.write("hangs", BAD["hangs"].code)
    assert "generation 1 is not ready after 0.4 s; it is given up after 0.8 s (--boot-timeout)" in server.run().err


def test_a_module_that_is_not_there(serve):
    server = serve(app="nosuch:application")
    outcome = server.run()
    assert outcome.exit == 1
    assert [line for line in outcome.err.splitlines() if "no module 'nosuch'" in line and "failed:" in line]
    assert "Traceback" not in outcome.err


def test_a_release_whose_directory_lost_the_module(server):
    (server.releases / "empty").mkdir()
    server.flip(server.releases / "empty")
    outcome = server.cli("release")
    assert outcome.exit == 1
    assert "no module 'app'" in outcome.err
    assert server.get().version == "one"


def test_who_asked_by_signal_finds_the_failure_in_the_status(server):
    server.write("two", "raise ValueError('not today')\n")
    server.hup()
    status = server.wait(lambda s: s["releases"][-1]["outcome"] == "failed" and s.is_settled())
    assert "not today" in status["releases"][-1]["error"]
    assert status.serving == 1
    assert server.get().version == "one"


def test_what_a_failed_release_had_started_is_ended(server):
    pids = server.root / "pids"
    code = f"open({str(pids)!r}, 'a').write(f'{{basic.os.getpid()}} ')\n"
    server.write("two", code + "import reuseport\nreuseport.on_start(lambda: 1 / 0)\n")
    assert server.release().exit == 1
    started = [int(pid) for pid in pids.read_text().split()]
    wait_for(lambda: all(is_gone(pid) for pid in started), "the failed generation has gone")
    server.settle(1)


def test_a_start_hook_that_fails_in_one_worker_of_two_fails_the_release(server):
    server.write("two", "import reuseport\nreuseport.on_start(lambda: basic.os.mkdir('once'))\n")
    outcome = server.release()
    assert outcome.exit == 1
    assert "FileExistsError" in outcome.err
    server.settle(1)
    assert server.get().version == "one"
