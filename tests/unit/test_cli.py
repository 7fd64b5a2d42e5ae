"""The commands against a master that is a thread with a socket: what they ask, print and exit with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reuseport.cli import client, place
from reuseport.cli.main import COMMANDS, main
from reuseport.cli.overview import render
from reuseport.cli.words import duration, ranges, size
from reuseport.version import __version__

Answers = list[dict[str, Any] | bytes]


class FakeMaster:
    """Answers each question with what it was given, line by line, and keeps the questions."""

    def __init__(self, run_dir: Path, answers: Answers) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.answers = answers
        self.identity: dict[str, Any] = {"name": run_dir.name, "pid": 4711, "run_dir": str(run_dir)}
        self.asked: list[dict[str, Any]] = []
        self.knows_who = True
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(run_dir / "control.sock"))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if not line:
                    # One that only looked whether somebody lives here.
                    continue
                question = json.loads(line)
                if question["do"] == "end of the test":
                    return
                if question["do"] == "who" and self.knows_who:
                    says = {"v": 1, "event": "done", "ok": True, **self.identity}
                    connection.sendall(json.dumps(says).encode() + b"\n")
                    continue
                self.asked.append(question)
                # A client may well leave before the last answer.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    for answer in self.answers:
                        data = answer if isinstance(answer, bytes) else json.dumps({"v": 1, **answer}).encode() + b"\n"
                        connection.sendall(data)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket.getsockname())
            connection.sendall(b'{"do": "end of the test"}\n')
            self._thread.join(10)
        self._socket.close()


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short XDG_RUNTIME_DIR (a socket's path has 107 bytes) and nothing said by the environment or a file."""
    directory = Path(tempfile.mkdtemp(prefix="reuseport-test-"))
    (directory / "cwd").mkdir()
    for name in list(os.environ):
        if name.startswith("REUSEPORT_") or name == "RUNTIME_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    monkeypatch.setattr(place, "UNITS", str(directory / "none"))
    monkeypatch.chdir(directory / "cwd")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def master(home: Path) -> Iterator[Callable[..., FakeMaster]]:
    started = []

    def start(*answers: dict[str, Any] | bytes, name: str = "shop") -> FakeMaster:
        started.append(FakeMaster(home / "reuseport" / name, list(answers)))
        return started[-1]

    yield start
    for one in started:
        one.close()


SERVES = {"event": "done", "ok": True, "generation": 7, "text": "generation 7 serves"}
FAILS = {
    "event": "done",
    "ok": False,
    "error": "generation 8: ImportError: no",
    "output": "Traceback ...\nImportError: no\n",
}
LOADING = {"event": "stage", "text": "generation 7: loading"}


def test_release_shows_the_stages_and_the_outcome(master, home: Path, capsys) -> None:
    # The last stage is often the outcome itself; saying it once is enough.
    fake = master(LOADING, {"event": "from the future"}, {"event": "stage", "text": SERVES["text"]}, SERVES)
    assert main(["release"]) == 0
    assert capsys.readouterr() == (f"{shown(home)}generation 7: loading\ngeneration 7 serves\n", "")
    [question] = fake.asked
    assert question.items() >= {"v": 1, "do": "release", "wait": "ready", "label": ""}.items()
    assert question["by"] and question["session"] and question["started"] > 0


def shown(home: Path) -> str:
    """The line by which a command says on which server it acts."""
    return f"server shop (pid 4711, run directory {home}/reuseport/shop)\n"


def test_release_that_fails_shows_what_the_application_said(master, home: Path, capsys) -> None:
    master(FAILS)
    assert main(["release", "--wait", "drained"]) == 1
    out, err = capsys.readouterr()
    assert out == shown(home)
    assert err == "Traceback ...\nImportError: no\nreuseport: release failed: generation 8: ImportError: no\n"


@pytest.mark.parametrize(
    "words", [["rollback", "--from", "5"], ["rollback", "3", "--from=5"], ["promote", "--from", "5"]]
)
@pytest.mark.parametrize("more", [[], ["-n", "shop"], ["--json"]])
def test_a_master_that_is_too_old_for_from_is_not_asked(words, more, master, capsys) -> None:
    """It would pass over the field, and go back from whatever serves."""
    old = master({"event": "done", "ok": True, "status": {"master": {"name": "shop", "pid": 7, "run_dir": "/r"}}})
    old.knows_who = False
    assert main([*words, *more]) == 1
    assert {question["do"] for question in old.asked} <= {"who", "status"}
    assert capsys.readouterr().err == (
        "reuseport: --from 5: this master is of an older version that does not know --from; nothing was done. "
        "Give the command without --from, or run `reuseport upgrade` first\n"
    )
    assert main([words[0], *more]) == 0 and old.asked[-1]["do"] == words[0]


@pytest.mark.parametrize(("done", "status"), [(SERVES, 0), (FAILS, 1)])
def test_release_as_json_is_the_done_object_and_the_server(done, status, master, home: Path, capsys) -> None:
    master(LOADING, done)
    assert main(["release", "--json"]) == status
    out, err = capsys.readouterr()
    server = {"name": "shop", "pid": 4711, "run_dir": f"{home}/reuseport/shop"}
    assert json.loads(out) == {"v": 1, **done, "server": server}
    assert ("Traceback" in err) == (status == 1)


@pytest.mark.parametrize("command", ["release", "status", "stop"])
def test_a_master_that_dies_before_done(command: str, master, capsys) -> None:
    master(LOADING, b'{"event": "do')
    assert main([command]) == 1
    assert "died before it had answered" in capsys.readouterr().err


@pytest.mark.parametrize("rubbish", [b"hello\n", b"[]\n", b"\xff\n"])
def test_a_master_that_talks_rubbish(rubbish: bytes, master, capsys) -> None:
    master(rubbish)
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("reuseport: the master in ")


def test_a_master_that_is_silent(home: Path, monkeypatch, capsys) -> None:
    (home / "reuseport/shop").mkdir(parents=True)
    monkeypatch.setattr("reuseport.cli.frame.ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "reuseport/shop/control.sock"))
        listener.listen()
        assert main(["status"]) == 1
    assert "has not answered for 0.1 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["release", "status", "stop"])
def test_no_master(command: str, home: Path, capsys) -> None:
    assert main([command]) == 3
    err = capsys.readouterr().err
    assert err == f"reuseport: no master in {home}/reuseport; -n NAME, --run-dir DIR or -c FILE says where it is\n"
    assert main([command, "-n", "shop"]) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"reuseport: no master in {home}/reuseport/shop, which -n stands for; ")
    assert "--run-dir" in err


def test_a_socket_that_a_dead_master_left_behind(home: Path, capsys) -> None:
    (home / "reuseport/shop").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "reuseport/shop/control.sock"))
    assert main(["release", "--run-dir", str(home / "reuseport/shop")]) == 3
    assert main(["release"]) == 3


def test_a_run_directory_with_too_long_a_path(capsys) -> None:
    assert main(["status", "--run-dir", "/" + "x" * 200]) == 3
    assert "too long for a unix socket" in capsys.readouterr().err


def test_which_master_when_several_live(master, capsys) -> None:
    master(SERVES, name="shop")
    blog = master(SERVES, name="blog")
    assert main(["release"]) == 2
    assert capsys.readouterr().err.startswith("reuseport: which master? -n blog, -n shop live in ")
    assert main(["release", "-n", "blog"]) == 0
    assert len(blog.asked) == 1
    assert main(["release", "-n", "wiki"]) == 3
    assert "(others that live: -n blog, -n shop)" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only what is root's is trusted")
def test_a_units_master_is_found_where_units_have_theirs(master, home: Path, monkeypatch, capsys) -> None:
    units = home / "units"
    units.mkdir(mode=0o755)
    monkeypatch.setattr(place, "UNITS", str(units))
    assert main(["release"]) == 3
    fake = master(SERVES, name="../units/shop")
    assert main(["release"]) == 0
    assert len(fake.asked) == 1
    (units / "blog").symlink_to(units / "shop")
    capsys.readouterr()
    assert main(["release"]) == 2
    assert capsys.readouterr().err == f"reuseport: which master? --run-dir {units}/blog, --run-dir {units}/shop\n"
    units.chmod(0o777)
    assert main(["release"]) == 3, "somebody else could have made it"


def test_the_master_is_found_as_serve_was_told(master, home: Path, monkeypatch, capsys) -> None:
    fake = master(SERVES, name="shop.wsgi")
    master(SERVES, name="other")
    config = Path("reuseport.toml")
    config.write_text("app = 'shop.wsgi:app'\nworkers = 'a mistake that is none of our business'")
    assert main(["release"]) == 0
    config.write_text("name = 'wiki'")
    assert main(["release"]) == 3
    assert f"{home}/cwd/reuseport.toml: name stands for" in capsys.readouterr().err
    monkeypatch.setenv("REUSEPORT_RUN_DIR", str(home / "reuseport/shop.wsgi"))
    config.write_text("a file that is not even read =")
    assert main(["release"]) == 0
    monkeypatch.delenv("REUSEPORT_RUN_DIR")
    assert main(["release"]) == 2
    assert "not valid TOML" in capsys.readouterr().err
    config.unlink()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(home / "reuseport/shop.wsgi"))
    assert main(["release"]) == 0
    Path("there.toml").write_text(f"run-dir = '{home}/reuseport/shop.wsgi'")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert main(["release", "-c", "there.toml"]) == 0
    assert len(fake.asked) == 4


def test_what_another_user_listens_on_is_not_trusted(master, home: Path, monkeypatch, capsys) -> None:
    master(SERVES)
    monkeypatch.setattr(client, "_credentials", lambda connection: (1, 12345, 12345))
    for me in (54321, 0):
        monkeypatch.setattr(os, "geteuid", lambda me=me: me)
        assert main(["release", "-n", "shop"]) == 1
        assert "belongs to user 12345, and is not trusted" in capsys.readouterr().err
    # Root may mean another user's master, but has to name its directory.
    assert main(["release", "--run-dir", f"{home}/reuseport/shop"]) == 0


def test_stop_returns_when_the_process_is_gone(master, home: Path, monkeypatch, capsys) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"]) as process:
        monkeypatch.setattr(client, "_credentials", lambda connection: (process.pid, os.geteuid(), 0))
        fake = master({"event": "stage", "text": "draining"}, {"event": "done", "ok": True})
        assert main(["stop"]) == 0
        assert process.poll() is not None or os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert capsys.readouterr().out == f"{shown(home)}draining\nstopped\n"
    assert fake.asked == [{"v": 1, "do": "stop", "now": False}]


def test_stop_of_a_process_that_does_not_go(master, monkeypatch, capsys) -> None:
    # The fake master is this very process, which does not end.
    monkeypatch.setattr("reuseport.cli.stop.EXIT_SECONDS", 0.1)
    master({"event": "done", "ok": True})
    assert main(["stop", "--now"]) == 1
    assert "has not ended within 0.1 seconds" in capsys.readouterr().err


def test_stop_of_a_process_that_cannot_be_seen_waits_for_the_connection(master, monkeypatch) -> None:
    monkeypatch.setattr(client, "_credentials", lambda connection: (0, os.geteuid(), 0))
    master({"event": "done", "ok": True})
    assert main(["stop"]) == 0


def test_stop_that_is_refused(master, capsys) -> None:
    master({"event": "done", "ok": False, "error": "an upgrade is under way"})
    assert main(["stop"]) == 1
    assert capsys.readouterr().err == "reuseport: stop failed: an upgrade is under way\n"


STATUS: dict[str, Any] = {
    "master": {
        "pid": 402110, "name": "shop", "version": "0.1.0", "started": 1.0, "uptime": 363003.5,
        "run_dir": "/run/user/1000/reuseport/shop", "workers_wanted": 2, "addresses": ["127.0.0.1:8000"],
        "state": "running",
    },
    "serving": 7,
    "generations": [
        {
            "number": 6, "state": "draining", "directory": "/srv/customers/shop/releases/20261121-1",
            "interpreter": "/usr/bin/python3", "zygote": None, "age": 3900.2, "memory": 88 << 20,
            "workers": [
                {"id": "6.2", "pid": 402113, "slots": [], "state": "draining", "age": 3900, "jobs": 1,
                 "requests": {"active": 1, "total": 182340}, "connections": 3, "memory": {"rss": 1, "pss": 53 << 20}},
            ],
            "companions": [
                {"id": "6.mail:1", "pid": 402118, "state": "draining", "age": 61, "restarts": 0, "why": ""},
                {"id": "6.mail:2", "pid": 0, "state": "ended", "age": 0, "restarts": 0, "why": "exited"},
            ],
            "waits_for": {"requests": 1, "connections": 3, "jobs": [{"name": "export", "tenant": "acme", "age": 660}],
                          "companions": ["6.mail:1"]},
        },
        {
            "number": 7, "state": "serving", "directory": "/srv/customers/shop/releases/20261122-1",
            "interpreter": "/usr/bin/python3", "zygote": {"pid": 3}, "age": 720, "memory": 212 << 20,
            "workers": [
                {"id": f"7.{n}", "pid": 402114 + n, "slots": [n, n + 1, n + 5], "state": "serving", "age": 80000,
                 "requests": {"active": 100, "total": 1823400}, "connections": 1200, "jobs": 0,
                 "memory": {"rss": 5 << 20, "pss": 0}}
                for n in (1, 2)
            ],
            "companions": [
                {"id": "7.cron", "pid": 0, "state": "waiting", "age": 0, "restarts": 2, "why": "exited with status 1"},
            ],
            "waits_for": {"requests": 200, "connections": 2400, "jobs": []},
        },
    ],
    "releases": [
        {"number": 8, "outcome": "failed", "error": "ModuleNotFoundError: No module named 'a' " * 4, "at": 1000,
         "seconds": 2.13}
    ],
}  # fmt: skip


def test_status_reads_well_in_80_columns() -> None:
    text = render(STATUS, 1300)
    assert max(map(len, text.splitlines())) <= 80
    lines = text.splitlines()
    assert lines[0] == "shop: running, serving generation 7"
    order = [line.split()[0] for line in lines if line[:2] in ("7 ", "6 ", "7.", "6.")]
    assert order == ["7", "6", "7.1", "7.2", "6.2", "7.cron", "6.mail:1"]
    assert "/20261122-1" in text
    assert "generation 6 waits for 1 request, 3 connections, 1 job, 1 companion\n" in text
    assert next(line.split() for line in lines if "acme" in line)[:3] == ["export", "acme", "11m"]
    assert next(line.split() for line in lines if line.startswith("7.cron"))[2:5] == ["waiting", "-", "2"]
    assert next(line.split() for line in lines if line.startswith("6.mail:1"))[:3] == ["6.mail:1", "402118", "draining"]
    assert "generation 7 waits" not in text
    assert "last release: generation 8, failed, 5m ago, took 2.1s\n  ModuleNotFoundError" in text
    assert "/srv/customers/shop/releases/20261122-1" in render(STATUS, 1300, None)


def test_status_tells_which_packages_of_the_server_a_generation_runs_on() -> None:
    names = ("reuseport", "gevent", "greenlet")
    own = {"python": "3.11.7", **{name: {"version": "1.2", "from": "application"} for name in names}}
    mixed = {**own, "reuseport": {"version": "0.1.0", "from": "server"}}
    older, newer = STATUS["generations"]
    text = render({**STATUS, "generations": [{**older, "packages": own}, {**newer, "packages": mixed}]}, 1300, None)
    assert "generation 6 runs on" not in text
    line = "generation 7 runs on the server's reuseport 0.1.0 and the application's gevent 1.2, greenlet 1.2"
    assert f"\n{line}\n" in text
    assert render({"generations": [{"packages": None}, {"packages": {"gevent": {"from": "server"}, "greenlet": 1}}]}, 0)


def test_status_tells_of_other_masters() -> None:
    takeover = {"pid": 12, "at": 40.0, "outcome": "failed", "error": "no"}
    text = render({"master": {"earlier": [7, 9], "takeover": takeover}}, 100.0)
    assert "  earlier  master 7 leaves with its last process\n  earlier  master 9" in text
    assert "  takeover the last takeover failed, 1m ago, by master 12\n" in text
    assert "master 12 is taking over" in render({"master": {"takeover": {**takeover, "outcome": "under way"}}}, 100.0)


@pytest.mark.parametrize(
    ("state", "failing", "printed", "status"),
    [
        ("running", "", "running", 0),
        ("running", "crash-looping", "degraded", 1),
        ("running", "not ready", "degraded", 1),
        ("booting", "", "booting", 1),
        ("stopping", "crash-looping", "stopping", 1),
    ],
)
def test_status_check_says_whether_a_companion_fails(state, failing, printed, status, master, capsys) -> None:
    mail = {"id": "7.mail", "pid": 1, "state": "starting", "failing": failing, "why": "exited with status 1\x1b[2J"}
    made = {"master": {"state": state}, "serving": 7, "generations": [{"number": 7, "companions": [mail]}]}
    master({"event": "done", "ok": True, "status": made})
    assert main(["status", "--check"]) == status
    out, err = capsys.readouterr()
    assert out == f"{printed}\n"
    expected = f"reuseport: companion 7.mail: {failing} (exited with status 1\\x1b[2J)\n"
    assert err == (expected if printed == "degraded" else "")


def test_status_of_another_version_may_miss_anything() -> None:
    assert render({}, 0)
    assert render({"generations": [{"workers": [{}]}], "releases": [{}], "master": None, "serving": None}, 0)
    never_begun = {"number": None, "outcome": "failed", "at": 0, "seconds": 0.0, "error": "bad file"}
    assert "last release: failed, 1m ago, took 0.0s\n  bad file" in render({"releases": [never_begun]}, 60)
    draining = {**STATUS["generations"][0], "state": "draining", "waits_for": {"jobs": ["export"]}}
    assert "waits for 1 job\n" in render({"generations": [draining]}, 0)
    assert "  export" in render({"generations": [draining]}, 0)


def test_status_prints_text_or_json(master, capsys) -> None:
    fake = master({"event": "done", "ok": True, "status": STATUS})
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert main(["status"]) == 0
    assert "serving generation 7" in capsys.readouterr().out
    assert fake.asked == [{"v": 1, "do": "status"}] * 2


def test_figures_for_a_person() -> None:
    assert [duration(s) for s in (0.4, 59, 60, 3600, 86400, None)] == ["0s", "59s", "1m", "1h 0m", "1d 0h", "-"]
    assert [size(n) for n in (0, 1023, 2048, 53 << 20, 3 << 29, 20 << 30)] == ["0", "1023", "2K", "53M", "1.5G", "20G"]
    assert [ranges(n) for n in ([], [1], [3, 1, 2], [1, 3, 4])] == ["-", "1", "1-3", "1,3-4"]


def test_the_command_line_as_a_whole(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"reuseport {__version__}\n"
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {command} " in overview for command in COMMANDS)
    assert max(map(len, overview.splitlines())) <= 100
    assert main([]) == 2
    assert capsys.readouterr().err == overview
    for argv, message in [
        (["help", "relase"], "unknown command 'relase'; did you mean release?"),
        (["relase"], "unknown command 'relase'; did you mean release?"),
        (["shop:app"], "unknown command 'shop:app'; did you mean reuseport serve shop:app?"),
        (["zzz"], "unknown command 'zzz'; there are " + ", ".join(COMMANDS)),
        (["-w", "3"], "a command comes first: reuseport " + "|".join(COMMANDS) + " [OPTIONS]"),
        (["release", "--wait", "x"], "--wait: 'x' is not one of ready, drained, none"),
        (["stop", "--nwo"], "unknown option --nwo; did you mean --now?"),
        (["status", "shop"], "unexpected argument 'shop'"),
        (["serve"], "serve: which application? name it, as in: reuseport serve MODULE:APP"),
        (["serve", "-w", "x", "a:b"], "-w: 'x' is not a whole number"),
    ]:
        capsys.readouterr()
        assert main(argv) == 2
        assert capsys.readouterr() == ("", f"reuseport: {message}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys) -> None:
    assert main([command, "-w", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: reuseport {command} ")
    assert "Exit status: 0" in out
    assert err == ""
    assert main(["help", command]) == 0
    assert capsys.readouterr() == (out, "")


def test_help_of_the_options_with_a_word(capsys) -> None:
    assert main(["help", "serve", "keep"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("  --keep-alive TIME\n") and out.endswith("key keep_alive.\n")
    assert main(["help", "serve", "--max_requests"]) == 0
    assert capsys.readouterr().out.count("\n\n") == 1, "--max-requests and its jitter"
    assert main(["help", "serve", "PORT"]) == 0
    assert "  -b, --bind ADDRESS\n" in capsys.readouterr().out, "it is in no name, but in a help"
    for words in (["nopenope"], ["keep", "alive"]):
        assert main(["help", "serve", *words]) == 2
        said = " ".join(words)
        assert capsys.readouterr() == ("", f"reuseport: help: serve has no option with {said!r} in its name or help\n")


def test_defaults_are_told_with_their_units(capsys) -> None:
    assert main(["serve", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "Default: no limit (0 requests).",
        "Default: greenlets (0 native threads).",
        "Default: 30 seconds (0: off).",
        "Default: 1 second.",
        "Default: no limit (0; bytes, or 512M).",
        "Default: 0.05 (0 to 1, or 5%).",
        "Default: unchanged (octal digits, in quotes in a file).",
    ):
        assert text in out, text


def test_a_terminal_gets_bold_type_and_a_pipe_does_not(monkeypatch, capsys) -> None:
    assert main(["help", "stop"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["help", "stop"]) == 0
    bold = capsys.readouterr().out
    assert "\033[1m  --now\033[0m\n" in bold and "\033[1mOptions:\033[0m\n" in bold
    assert bold.replace("\033[1m", "").replace("\033[0m", "") == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["help", "stop"]) == 0
    assert capsys.readouterr().out == plain


def test_commands_in_a_help_are_not_broken(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["help", "translate"]) == 0
    line = "    reuseport translate -- gunicorn -c conf/gunicorn.py -w 4 shop:app > reuseport.toml"
    assert line in capsys.readouterr().out.splitlines()


def test_serve_prints_and_checks_its_configuration(capsys) -> None:
    assert main(["serve", "--print-config", "-k", "gevent", "shop:app"]) == 0
    out, err = capsys.readouterr()
    assert 'app = "shop:app"  # flag\n' in out
    assert err.startswith("reuseport: -k gevent means nothing here")
    assert main(["serve", "--check-config", "shop:app"]) == 0
    assert main(["serve", "--check-config", "--chdir", "/nowhere", "--python", "nothing"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_serve_does_not_start_with_a_configuration_that_cannot_work(capsys) -> None:
    assert main(["serve", "--chdir", "/nowhere", "shop:app"]) == 1
    assert capsys.readouterr().err == "reuseport: --chdir: '/nowhere' is not a directory\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "reuseport", "serve", "--help"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environ, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_serve_path_does_not_load_what_a_terminal_needs() -> None:
    code = "import sys, reuseport.cli.main, reuseport.cli.serve; print(*{name.split('.')[0] for name in sys.modules})"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert not {"gevent", "httptools", "rich"} & set(loaded.split())


def test_a_reader_that_goes_away_is_not_taken_for_the_masters_death(master, home: Path) -> None:
    master(LOADING, SERVES)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "reuseport", "release"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environ, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
