"""The pages whose commands a newcomer types work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from console import Command, Shell, matches, steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shell(tmp_path):
    one = Shell(tmp_path)
    yield one
    one.close()


@pytest.mark.parametrize("page", ["docs/tutorial.md"])
def test_every_command_prints_what_the_page_says(shell, page):
    for step in steps((ROOT / page).read_text()):
        if isinstance(step, Command):
            printed = shell.run(step.text)
            log = shell.directory / "server.log"
            assert matches(step.expected, printed), (step.text, printed, log.read_text() if log.exists() else "")
        else:
            name, text = step
            (shell.directory / name).write_text(text)


def test_what_the_readme_lets_try_prints_what_its_comments_say(shell):
    page = (ROOT / "README.md").read_text()
    [(name, text)] = [step for step in steps(page) if isinstance(step, tuple)]
    (shell.directory / name).write_text(text)
    [block] = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    told = 0
    for line in block.splitlines():
        command, _, comment = line.partition("#")
        if (answer := comment.partition(":")[0].strip()) in ("one", "two"):
            assert shell.run(command) == [answer], line
            told += 1
        elif "exit status 1" in comment:
            printed = shell.run(f"{command} 2>&1; echo $?")
            assert "SyntaxError" in printed[-2] and printed[-1] == "1", printed
        else:
            shell.run(command)
    assert told == 3


def test_the_comparison_can_tell():
    assert matches(["one", "...", "t...o"], ["one", "x", "y", "two"])
    assert not matches(["one"], ["one", "two"])
    assert not matches(["one", "..."], [])
    assert matches(["..."], [])
