"""A process that was started with closed standard streams."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator

import pytest

from reuseport.ipc import standard

NAMES = ("stdin", "stdout", "stderr")


@pytest.fixture
def streams(monkeypatch) -> Iterator[None]:
    """This test may close 0, 1 and 2."""
    kept = [os.dup(number) for number in range(3)]
    for name in NAMES:
        monkeypatch.setattr(sys, name, getattr(sys, name))
        monkeypatch.setattr(sys, f"__{name}__", getattr(sys, f"__{name}__"))
    try:
        yield
    finally:
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
            os.close(fd)


@pytest.mark.parametrize("closed", [c for n in range(4) for c in itertools.combinations(range(3), n)], ids=str)
def test_each_closed_stream_is_the_null_device(streams, closed, tmp_path):
    before = [os.fstat(number) for number in range(3)]
    for number in closed:
        os.close(number)
        setattr(sys, NAMES[number], None)  # as Python does at its start
    standard.fill()
    null = os.stat(os.devnull)
    for number in range(3):
        expected = null if number in closed else before[number]
        assert os.path.samestat(os.fstat(number), expected)
        assert os.get_inheritable(number)
        assert number not in closed or getattr(sys, NAMES[number]).fileno() == number
    with (tmp_path / "later").open("w") as file:
        assert file.fileno() > 2
    if 1 in closed:
        print("goes nowhere", flush=True)
    if 0 in closed:
        assert sys.stdin.read() == ""
