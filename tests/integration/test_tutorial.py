"""The pages whose commands a newcomer types work as they stand."""

from __future__ import annotations

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


def test_the_comparison_can_tell():
    assert matches(["one", "...", "t...o"], ["one", "x", "y", "two"])
    assert not matches(["one"], ["one", "two"])
    assert not matches(["one", "..."], [])
    assert matches(["..."], [])
