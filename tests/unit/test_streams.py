"""Descriptors that the application opens while it boots, and the streams of the master that follows."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from reuseport.ipc import streams
from reuseport.master.bootlog import BootLog


@pytest.fixture
def master(tmp_path, monkeypatch) -> Iterator[dict[str, int]]:
    """The master's two streams at numbers that this test may use; 1 and 2 are the tests' own."""
    fds = {name: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out", "err", "copy-1", "copy-2")}
    kept = {number: os.dup(number) for number in (1, 2)}
    os.dup2(fds["out"], fds["copy-1"])
    os.dup2(fds["err"], fds["copy-2"])
    monkeypatch.setattr(streams, "STDOUT_COPY", fds["copy-1"])
    monkeypatch.setattr(streams, "STDERR_COPY", fds["copy-2"])
    monkeypatch.setattr(streams, "COPIES", {1: fds["copy-1"], 2: fds["copy-2"]})
    try:
        yield fds
    finally:
        for number, fd in kept.items():
            os.dup2(fd, number)
        for fd in (*kept.values(), *fds.values()):
            os.close(fd)


def test_what_was_opened_in_a_boot_leads_to_the_masters_streams(tmp_path, master):
    boot = BootLog(str(tmp_path / "boot.log"))
    output, errors = boot.open()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    opened = {
        "/dev/stdout": os.open("/dev/stdout", os.O_WRONLY),
        "/dev/fd/2": os.open("/dev/fd/2", os.O_WRONLY | os.O_APPEND),
        "a copy of 2": os.dup(2),
    }
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.write(opened["/dev/stdout"], b"in the boot\n")
    assert sorted(os.listdir(tmp_path)) == ["boot.log", "copy-1", "copy-2", "err", "other", "out"]
    streams.end_boot(output, errors)
    for name, fd in opened.items():
        os.write(fd, f"{name}\n".encode())
        assert not os.get_inheritable(fd)
    os.write(1, b"1\n")
    os.write(2, b"2\n")
    os.write(other, b"other\n")
    assert boot.tail() == "in the boot\n"
    assert (tmp_path / "out").read_text() == "/dev/stdout\n1\n"
    assert (tmp_path / "err").read_text() == "/dev/fd/2\na copy of 2\n2\n"
    assert (tmp_path / "other").read_text() == "other\n"
    assert os.fstat(output).st_ino == os.fstat(errors).st_ino == os.stat(boot.path).st_ino
    for fd in (output, errors, other, *opened.values()):
        os.close(fd)


def test_a_boot_log_with_one_name(tmp_path, master, monkeypatch):
    """A file system without hard links, or a master of an earlier version: all of it is standard output."""

    def refuse(source: str, target: str) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    output, errors = BootLog(str(tmp_path / "boot.log")).open()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    opened = os.open("/dev/stderr", os.O_WRONLY)
    streams.end_boot(output, errors)
    os.write(opened, b"line\n")
    os.write(2, b"2\n")
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("line\n", "2\n")
    for fd in (output, errors, opened):
        os.close(fd)


def test_the_streams_of_another_master(tmp_path, master):
    os.dup2(master["out"], 1)
    own = os.open(tmp_path / "own", os.O_WRONLY | os.O_CREAT)
    os.dup2(own, 2)  # the application has redirected its standard error
    for path in streams.PATHS:
        streams.replace(path, os.open(tmp_path / f"next{streams.PATHS[path]}", os.O_WRONLY | os.O_CREAT))
    for fd in (1, 2, streams.COPIES[1], streams.COPIES[2]):
        os.write(fd, f"{fd}\n".encode())
    assert (tmp_path / "next1").read_text() == f"1\n{streams.COPIES[1]}\n"
    assert (tmp_path / "next2").read_text() == f"{streams.COPIES[2]}\n"
    assert (tmp_path / "own").read_text() == "2\n"
    os.close(own)
