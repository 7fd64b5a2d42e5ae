"""Which zygotes get the terminal, for a debugger."""

from __future__ import annotations

import os
import pty
import termios
from collections.abc import Iterator

import pytest

from reuseport.master import terminal


@pytest.fixture
def stdin(monkeypatch) -> Iterator[int]:
    """A terminal that stands for descriptor 0. It is no process's controlling terminal."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(terminal, "STDIN", theirs)
    yield theirs
    os.close(ours)
    os.close(theirs)


def test_only_in_development_and_at_a_terminal(stdin, monkeypatch):
    assert terminal.is_for({"reload": True})
    assert not terminal.is_for({"reload": False})
    assert not terminal.is_for({})
    with open(os.devnull) as null:
        monkeypatch.setattr(terminal, "STDIN", null.fileno())
        assert not terminal.is_for({"reload": True})


def test_not_in_the_background(stdin, monkeypatch):
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    assert terminal.is_for({"reload": True})
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
    assert not terminal.is_for({"reload": True})


def test_the_terminal_is_as_it_was(stdin, monkeypatch):
    found = terminal.Terminal({"reload": True})
    assert found
    before = termios.tcgetattr(stdin)
    changed = termios.tcgetattr(stdin)
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(stdin, termios.TCSANOW, changed)
    # With TCSADRAIN the call waits for as long as the output is stopped (Ctrl-S).
    when, set_attributes = [], termios.tcsetattr
    monkeypatch.setattr(termios, "tcsetattr", lambda fd, how, to: (when.append(how), set_attributes(fd, how, to)))
    found.restore()
    assert termios.tcgetattr(stdin) == before and when == [termios.TCSANOW]
    assert not terminal.Terminal({})
