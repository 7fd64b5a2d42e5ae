"""Runs the commands of a page of documentation, and compares what they print with what the page says.

A page's files are its code blocks whose first line is a comment with a name (`# shop.py`). Its commands are the lines
that begin with `$ ` in its console blocks; what follows each is what it prints, with `...` for any lines, or anything
within a line. All of a page runs in one shell, in an empty directory.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from harness import free_port

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass
class Command:
    text: str
    expected: list[str] = field(default_factory=list)


def steps(page: str) -> list[tuple[str, str] | Command]:
    """The page's files, as (name, text), and its commands, in their order."""
    found: list[tuple[str, str] | Command] = []
    for language, text in BLOCK.findall(page):
        if language == "console":
            for line in text.splitlines():
                if line.startswith("$ "):
                    found.append(Command(line[2:]))
                else:
                    assert isinstance(found[-1], Command), f"an answer without a command: {line}"
                    found[-1].expected.append(line)
        elif name := NAME.match(text):
            found.append((name[1], text))
    return found


def matches(expected: list[str], printed: list[str]) -> bool:
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(matches(expected[1:], printed[n:]) for n in range(len(printed) + 1))
    pattern = ".*".join(map(re.escape, expected[0].split("...")))
    return bool(printed) and re.fullmatch(pattern, printed[0]) is not None and matches(expected[1:], printed[1:])


class Shell:
    """One bash, whose commands are run one by one. `close` ends it with everything that it has started."""

    def __init__(self, directory: Path) -> None:
        scripts = directory / "bin"
        scripts.mkdir()
        (scripts / "reuseport").write_text(f'#!/bin/sh\nexec {sys.executable} -m reuseport "$@"\n')
        (scripts / "pip").write_text("#!/bin/sh\necho installed\n")  # it is, where the tests run
        for script in scripts.iterdir():
            script.chmod(0o755)
        self.port = free_port()
        self._run = tempfile.TemporaryDirectory(prefix="ru-", dir="/tmp")  # a test's own may be too long for a socket
        kept = {k: v for k, v in os.environ.items() if not k.startswith("REUSEPORT_")}
        environment = {
            **kept, "PATH": f"{scripts}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": self._run.name,
            "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb",
        }  # fmt: skip
        (directory / "work").mkdir()
        self.directory = directory / "work"
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-m"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, cwd=self.directory, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, text: str) -> list[str]:
        """Run a command; returns the lines that it has printed."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        text = text.replace("8000", str(self.port))
        self._bash.stdin.write(f"{text}\nprintf '\\n%s\\n' --done--\n")
        self._bash.stdin.flush()
        printed = []
        for line in self._bash.stdout:
            if line == "--done--\n":
                break
            printed.append(line.rstrip("\n"))
        assert self._bash.poll() is None, f"the shell has ended at: {text}"
        return printed[:-1] if printed and not printed[-1] else printed

    def close(self) -> None:
        for pid in [self._bash.pid, *_session(self._bash.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._bash.communicate()
        self._run.cleanup()


def _session(leader: int) -> list[int]:
    """Every process of the session, whatever its group and parent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader:
                found.append(int(entry.name))
    return found
