"""What companions print, followed in a file: nothing twice, nothing lost, and the disk does not fill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reuseport.master import output
from reuseport.master.output import BACKLOG, NEWS, PAGE, Output


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "companion-1.mail.log")


def write(one: Output, data: bytes) -> None:
    fd = one.writer()
    os.write(fd, data)
    os.close(fd)


def test_lines_come_once_and_whole(path: str) -> None:
    one = Output(path)
    write(one, b"a\nb")
    assert one.news() == ["a"]
    assert one.news() == []
    write(one, b"c\n\xff\n")
    assert one.news() == ["bc", "\\xff"]
    write(one, b"end")
    assert one.news(end=True) == ["end"]
    assert list(one.last) == ["a", "bc", "\\xff", "end"]


def test_the_next_master_goes_on_where_the_last_one_stopped(path: str) -> None:
    first = Output(path)
    write(first, b"copied\n" * 2000)
    assert len(first.news()) == 2000
    write(first, b"meanwhile\n")
    second = Output(path)
    assert second.news() == ["meanwhile"]
    assert Output(path).news() == []


def test_what_was_copied_takes_no_room(path: str) -> None:
    one = Output(path)
    for _ in range(40):
        write(one, b"x" * 9999 + b"\n")
        assert len(one.news()) == 1
    assert Path(path).stat().st_size == 400_000
    assert Path(path).stat().st_blocks * 512 <= 2 * PAGE


def test_in_the_end_all_of_it_is_copied(path: str) -> None:
    one = Output(path)
    write(one, b"line\n" * (NEWS // 2) + b"last")
    assert one.news(end=True) == ["line"] * (NEWS // 2) + ["last"]


def test_somebody_who_prints_on_for_ever_holds_up_nobody(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Output(path)
    write(one, b"line\n" * (NEWS // 2))
    read = one._read

    def and_more(lines: list[str]) -> bool:
        assert len(lines) < 2 * NEWS, "it has not come to an end"
        write(one, b"more\n" * (NEWS // 5))
        return read(lines)

    monkeypatch.setattr(one, "_read", and_more)
    assert one.news(end=True)[: NEWS // 2] == ["line"] * (NEWS // 2)


def test_an_exec_says_nothing_twice_where_nothing_can_be_cut_out(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_fallocate", lambda *_: -1)
    one = Output(path)
    write(one, b"said\nhalf")
    assert one.news() == ["said"]
    another = Output(path)
    another.inherit(one.estate())
    write(one, b" a line\n")
    assert another.news() == ["half a line"]
    assert list(another.last) == ["said", "half a line"]


def test_too_much_at_once_is_given_up_and_said(path: str) -> None:
    one = Output(path)
    write(one, b"old\n" * (BACKLOG // 4 + 1))
    news = one.news()
    assert news[0] == f"({BACKLOG + 4 - NEWS} bytes that it printed were given up: too much at once)"
    assert news[1:] == ["old"] * (NEWS // 4)


def test_where_nothing_can_be_cut_out_the_file_is_begun_anew(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_fallocate", lambda *_: -1)
    one = Output(path)
    write(one, b"x\n" * (NEWS // 2))
    one.news()
    write(one, b"y\n")
    assert one.news() == ["y"]
    assert Path(path).stat().st_size == 0
    write(one, b"z\n")
    assert one.news() == ["z"]


def test_a_line_without_an_end_is_cut(path: str) -> None:
    one = Output(path)
    write(one, b"x" * (output.LONGEST + 1))
    assert [len(line) for line in one.news()] == [output.LONGEST + 1]


def test_a_link_in_its_place_is_not_followed(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(OSError, match="symbolic links"):
        Output(path)
