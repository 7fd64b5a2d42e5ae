"""What a person sees: `status --watch` and a release's progress on a real terminal, and what a pipe gets instead."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator

import pytest
from harness import PATIENCE, NotReached, Server, wait_for

ALTERNATE, BACK, SHOW = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
PICTURE = "\x1b[?2026h"  # each picture begins with it
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


JOBBING = "import jobbing\napplication = jobbing.make(VERSION)\n"


def jobbing(serve: Callable[..., Server]) -> Server:
    server = serve()
    server.write("one", JOBBING)
    return server.start()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests in the background ignores it


class Terminal:
    """A command on a terminal of its own; `text` is all that it has written."""

    def __init__(self, server: Server, *words: str, size: tuple[int, int] = (100, 40), **env: str) -> None:
        self.fd, inner = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(inner)
        inherited = {name: value for name, value in server.environment.items() if name != "NO_COLOR"}
        environ = {**inherited, "TERM": "xterm-256color", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reuseport", *words], stdin=inner, stdout=inner, stderr=inner, cwd=server.root,
            env=environ, start_new_session=True, preexec_fn=_take_terminal,
        )  # fmt: skip
        self.inner = inner
        self.text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while select.select([self.fd], [], [])[0]:
                data = os.read(self.fd, 65536)
                if not data:
                    return
                self.text += data.decode(errors="replace")

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    @property
    def last(self) -> list[str]:
        """The lines of the last whole picture, without colours."""
        pictures = [one for one in self.text.split(PICTURE)[1:] if "\x1b[?2026l" in one]
        return COLOUR.sub("", pictures[-1]).replace("\x1b[K", "").split("\r\n") if pictures else []

    def shows(self, fact: str, within: float = PATIENCE) -> list[str]:
        wait_for(lambda: any(fact in line for line in self.last), f"a picture with {fact!r}", within)
        return self.last

    def said(self, fact: str) -> None:
        wait_for(lambda: fact in self.text, f"{fact!r} on the terminal")

    def end(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise NotReached(f"the command has not ended; it said {self.text[-2000:]!r}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.inner)
        self._thread.join(1)
        with contextlib.suppress(OSError):
            os.close(self.fd)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Runs a command against a server: terminal(server, "status", "--watch")."""
    opened = []

    def run(server: Server, *words: str, **how) -> Terminal:
        opened.append(Terminal(server, *words, **how))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


# --- status --watch ---------------------------------------------------------------------------------------------------


def test_watching_follows_what_happens_and_gives_the_terminal_back(server, terminal):
    watch = terminal(server, "status", "--watch", "0.2")
    watch.shows("serving generation 1")
    server.write("two")
    assert server.release().exit == 0
    watch.shows("serving generation 2")
    watch.press(b"q")
    assert watch.end() == 0
    assert watch.text.count(ALTERNATE) == watch.text.count(BACK) == 1
    assert watch.text.rstrip().endswith(BACK) and SHOW in watch.text
    assert "\x1b[2J" not in watch.text, "a picture is drawn over the last one, and nothing is cleared first"
    assert termios.tcgetattr(watch.inner) == watch.before


@pytest.mark.parametrize("how", [b"\x03", signal.SIGTERM])
def test_however_watching_ends_the_terminal_is_as_it_was(how, server, terminal):
    watch = terminal(server, "status", "--watch")
    watch.shows("serving generation 1")
    if isinstance(how, bytes):
        watch.press(how)
        assert watch.end() == 0
    else:
        os.kill(watch.process.pid, how)
        assert watch.end() == 128 + how
    assert watch.text.rstrip().endswith(BACK)
    assert termios.tcgetattr(watch.inner) == watch.before


def test_watching_survives_the_master_and_finds_the_next(server, terminal):
    watch = terminal(server, "status", "--watch", "0.2")
    watch.shows("serving generation 1")
    server.process.kill()
    server.process.wait()
    lines = watch.shows("no master in")
    assert any("serving generation 1" in line for line in lines), "the last that is known stays"
    server.launch()
    server.wait(lambda s: s.serving, "the next master")
    wait_for(lambda: watch.last and not any("no master in" in line for line in watch.last), "the next master is shown")
    assert watch.process.poll() is None


def test_watching_fits_any_terminal_and_follows_its_size(server, terminal):
    watch = terminal(server, "status", "--watch", "60", size=(40, 8))
    lines = watch.shows("more lines")
    assert len(lines) <= 8 and max(map(len, lines)) <= 40 + len("\x1b[J\x1b[?2026l")
    watch.resize(120, 60)
    watch.shows("last release")
    watch.resize(60, 6)
    watch.shows("more lines")
    watch.press(b"\x1b[C" + b" " * 9)  # a key that means nothing, and to the end
    watch.shows("last release")


def test_a_server_that_is_not_there_is_told_before_anything_is_drawn(server, terminal):
    watch = terminal(server, "status", "--watch", "--run-dir", str(server.root / "nobody"))
    assert watch.end() == 3
    assert ALTERNATE not in watch.text and "no master in" in watch.text


def test_without_a_terminal_it_is_one_block_after_the_other(server):
    with subprocess.Popen(
        [sys.executable, "-m", "reuseport", "status", "--watch", "0.1"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.PIPE, cwd=server.root, env={**server.environment, "TERM": "xterm"},
    ) as command:  # fmt: skip
        try:
            blocks = 0
            while blocks < 3:
                line = command.stdout.readline()
                assert line and "\x1b" not in line
                blocks += "serving generation 1" in line
        finally:
            command.kill()


def test_as_json_it_is_one_line_after_the_other(server):
    command = server.begin("status", "--watch", "0.1", "--json")
    for _ in range(3):
        assert json.loads(command.stdout.readline())["serving"] == 1
    command.kill()


# --- the progress of a release ----------------------------------------------------------------------------------------


def test_a_release_shows_its_steps_and_what_its_drain_waits_for(serve, terminal):
    server = jobbing(serve)
    server.get("/begin?name=slow&do=work")
    server.gate("slow").await_entered()
    server.write("two", JOBBING)
    release = terminal(server, "release", "--wait", "drained")
    for fact in ("loaded", "workers ready 2/2", "accepting 2/2", "old workers have let go"):
        release.shows(fact)
    lines = release.shows("generation 1 waits for 1 job")
    job = next(line for line in lines if "export" in line)
    assert "acme" in job and "50%" in job
    server.gate("slow").open()
    assert release.end() == 0
    end = COLOUR.sub("", release.text).rstrip().splitlines()
    assert end[-1].endswith("generation 2 serves; every older one has drained")
    assert any("drained" in line for line in end[-3:-1])
    assert SHOW in release.text and ALTERNATE not in release.text


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {}])
def test_what_the_terminal_can_do_decides_how_it_is_shown(env, server, terminal):
    server.write("two")
    release = terminal(server, "release", **env)
    assert release.end() == 0
    release.said("generation 2 serves with 2 workers")
    assert (PICTURE in release.text) == ("TERM" not in env)
    assert bool(COLOUR.search(release.text)) == (not env)


def test_a_release_that_fails_shows_where_and_why(server, terminal):
    server.write("two", whole="import nothing_of_that_name")
    release = terminal(server, "release")
    assert release.end() == 1
    release.said("ModuleNotFoundError")
    assert "✗ loading" in COLOUR.sub("", release.text)


def test_ctrl_c_leaves_the_release_alone(server, terminal):
    gate = server.gate("import")
    server.write("two", "basic.pass_gate('import')")
    release = terminal(server, "release")
    release.shows("loading")
    release.press(b"\x03")
    assert release.end() == 130
    assert "the release goes on" in release.text and SHOW in release.text
    gate.open()
    server.settle(2)


def test_a_pipe_gets_plain_lines_and_a_sentence(server):
    server.write("two")
    outcome = server.cli("release", "--wait", "drained")
    assert outcome.exit == 0 and "\x1b" not in outcome.out
    assert outcome.out.splitlines()[-1] == "generation 2 serves; every older one has drained"
    stop = server.cli("stop")
    assert stop.exit == 0 and stop.out.splitlines()[-1] == "stopped" and "\x1b" not in stop.out


# --- JSON, and the picture --------------------------------------------------------------------------------------------


def test_every_command_speaks_json(serve):
    server = serve("--tenant", "header:X-Tenant").start()
    server.write("two")
    assert server.cli("release", "--json").json["generation"] == 2
    assert server.cli("status", "--json").json["serving"] == 2
    assert server.cli("hold", "acme", "--json").json["ok"]
    assert [one["tenant"] for one in server.cli("tenants", "--json").json["tenants"]] == ["acme"]
    assert server.cli("move", "acme", "--json").json["ok"]
    refused = server.cli("promote", "--json")
    assert refused.exit == 1 and refused.json["ok"] is False
    assert server.cli("rollback", "--json").json["ok"]
    assert {line["event"] for line in json.loads(server.cli("history", "--json").out)} >= {"started", "release"}
    assert server.cli("stop", "--json").json["ok"]


def test_the_history_of_a_real_server_is_drawn_and_outlives_it(server):
    server.write("two")
    assert server.release("--label", "second").exit == 0
    server.write("three", whole="import nothing_of_that_name")
    assert server.release().exit == 1
    for living in (True, False):
        if not living:
            assert server.cli("stop").exit == 0
        drawn = server.cli("history", "--svg", "h.svg")
        assert drawn.exit == 0, drawn.err
        root = ElementTree.parse(server.root / "h.svg").getroot()
        titles = "\n".join(one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title"))
        assert "generation 2, second" in titles and "ModuleNotFoundError" in titles
        assert ("so far" in titles) == living
    events = [json.loads(line)["event"] for line in (server.run_dir / "history.jsonl").read_text().splitlines()]
    assert events[0] == "started" and events[-1] == "stopped"


def test_the_history_tells_when_each_job_ran(serve):
    server = jobbing(serve)
    begun = time.time()
    server.get("/begin?name=early&do=work")
    server.gate("early").await_entered()
    server.gate("early").open()
    server.gate("early-ended").await_entered()
    server.wait(lambda s: not s.current["waits_for"]["jobs"], "the early job's end")
    server.get("/begin?name=late&do=work")
    server.gate("late").await_entered()
    server.write("two", JOBBING)
    assert server.release().exit == 0
    server.gate("late").open()
    server.wait(lambda s: s.draining == [], "the drain's end")
    lines = json.loads(server.cli("history", "--json").out)
    line = next(line for line in lines if line["event"] == "drained")
    [early], [late] = line["jobs_before"], line["jobs"]
    assert begun - 1 <= early["at"] - early["seconds"] <= early["at"] <= late["at"] <= line["at"] + 1
    assert early["tenant"] == late["tenant"] == "acme"
