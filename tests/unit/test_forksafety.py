"""What an import may leave behind: which descriptors two processes can share after a fork."""

from __future__ import annotations

import asyncio
import contextlib
import logging.handlers
import multiprocessing
import os
import pty
import socket
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from reuseport.worker.descriptors import hazard, held
from reuseport.worker.forksafety import Look

Opened = Callable[[contextlib.ExitStack, Path], Any]


def closing(fd: int, stack: contextlib.ExitStack) -> int:
    stack.callback(os.close, fd)
    return fd


def raw(call: str, *arguments: int) -> int:
    """A descriptor that Python has no function for before 3.13, from the C library."""
    import ctypes

    fd = getattr(ctypes.CDLL(None, use_errno=True), call)(*arguments)
    assert fd >= 0
    return fd


def pair(stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    return tuple(stack.enter_context(one) for one in socket.socketpair())  # type: ignore[return-value]


def bound(stack: contextlib.ExitStack, kind: int, name: str) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
    sock.bind(name)
    return sock


def listening(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_server(("127.0.0.1", 0)))


def connected(stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(listening(stack).getsockname()))


def udp(stack: contextlib.ExitStack, connect: bool) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    (sock.connect if connect else lambda address: sock.sendto(b"", address))(("127.0.0.1", 9))
    return sock


def to_syslog(stack: contextlib.ExitStack, directory: Path, answers: bool = False) -> socket.socket:
    bound(stack, socket.SOCK_DGRAM, str(directory / "log"))
    sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    if answers:
        sock.bind(str(directory / "me"))
    sock.connect(str(directory / "log"))
    return sock


def netlink(stack: contextlib.ExitStack, address: bool) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    if address:
        sock.bind((0, 0))
    return sock


def file(stack: contextlib.ExitStack, path: Path, mode: str) -> Any:
    return stack.enter_context(path.open(mode))


def deleted(stack: contextlib.ExitStack) -> None:
    fd, path = tempfile.mkstemp()
    closing(fd, stack)
    os.unlink(path)


def number(stack: contextlib.ExitStack) -> None:
    """multiprocessing keeps it in a file that it has deleted."""
    kept = multiprocessing.get_context("fork").Value("i")
    stack.callback(lambda: kept.value)


def database(stack: contextlib.ExitStack, path: Path, uri: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as first:
        first.execute("create table one (number)")
        first.commit()
    connection = sqlite3.connect(f"file:{path}{uri}", uri=True)
    stack.callback(connection.close)
    connection.execute("select * from one").fetchall()


def fifo(stack: contextlib.ExitStack, directory: Path) -> int:
    os.mkfifo(directory / "fifo")
    return closing(os.open(directory / "fifo", os.O_RDONLY | os.O_NONBLOCK), stack)


def loop(stack: contextlib.ExitStack) -> None:
    stack.callback(asyncio.new_event_loop().close)


def both(stack: contextlib.ExitStack, fds: tuple[int, int]) -> None:
    for fd in fds:
        closing(fd, stack)


HAZARDS: dict[str, Opened] = {
    "pipe": lambda stack, _: both(stack, os.pipe()),
    "socketpair": lambda stack, _: pair(stack),
    "eventfd": lambda stack, _: closing(os.eventfd(0), stack),
    "timerfd": lambda stack, _: closing(raw("timerfd_create", 1, 0), stack),
    "inotify": lambda stack, _: closing(raw("inotify_init1", 0), stack),
    "eventpoll": lambda stack, _: closing(raw("epoll_create1", 0), stack),
    "pidfd": lambda stack, _: closing(os.pidfd_open(os.getpid()), stack),
    "connection to 127.0.0.1:": lambda stack, _: connected(stack),
    "connection to 127.0.0.1:9": lambda stack, _: udp(stack, connect=True),
    "connection to '": lambda stack, directory: to_syslog(stack, directory, answers=True),
    "netlink socket": lambda stack, _: netlink(stack, address=True),
    "SQLite database /": lambda stack, directory: database(stack, directory / "data", ""),
    "named pipe /": lambda stack, directory: fifo(stack, directory),
    "pseudo-terminal": lambda stack, _: both(stack, pty.openpty()),
}
HARMLESS: dict[str, Opened] = {
    "a file that is read": lambda stack, _: file(stack, Path(__file__), "rb"),
    "a log": lambda stack, directory: file(stack, directory / "log", "a"),
    "a file that is written": lambda stack, directory: file(stack, directory / "log", "w"),
    "a file that is mapped": lambda stack, directory: file(stack, directory / "counters", "wb+").write(b"0" * 100),
    "a file that was deleted": lambda stack, _: deleted(stack),
    "memory": lambda stack, _: closing(os.memfd_create("memory"), stack),
    "a shared number": lambda stack, _: number(stack),
    "/dev/null": lambda stack, _: file(stack, Path("/dev/null"), "r+b"),
    "/dev/urandom": lambda stack, _: file(stack, Path("/dev/urandom"), "rb"),
    "a directory": lambda stack, directory: closing(os.open(directory, os.O_RDONLY), stack),
    "a listener": lambda stack, _: listening(stack),
    "a socket": lambda stack, _: stack.enter_context(socket.socket()),
    "metrics by UDP": lambda stack, _: udp(stack, connect=False),
    "syslog": to_syslog,
    "a netlink socket without an address": lambda stack, _: netlink(stack, address=False),
    "a database that is read": lambda stack, directory: database(stack, directory / "data", "?mode=ro"),
}  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[Opened], dict[int, str]]]:
    """What is opened, as {descriptor: link}; it is closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(function: Opened) -> dict[int, str]:
            before = held()
            function(stack, tmp_path)
            return {fd: link for fd, link in held().items() if before.get(fd) != link}

        yield make


@pytest.mark.parametrize("what", HAZARDS)
def test_descriptors_that_processes_cannot_share(opened, what: str):
    found = [hazard(fd, link) for fd, link in opened(HAZARDS[what]).items()]
    assert found
    assert any(one.startswith(what) for one in found), found


@pytest.mark.parametrize("what", HARMLESS)
def test_descriptors_that_processes_can_share(opened, what: str):
    found = [hazard(fd, link) for fd, link in opened(HARMLESS[what]).items()]
    assert not any(found), found


def test_a_named_pipe_that_is_only_written_to_can_be_shared(tmp_path: Path):
    """As logs are written to, by way of a FIFO."""
    with contextlib.ExitStack() as stack:
        fifo(stack, tmp_path)
        fd = closing(os.open(tmp_path / "fifo", os.O_WRONLY), stack)
        assert hazard(fd, held()[fd]) == ""


def test_a_pipe_without_another_end_can_be_shared_once_it_is_empty():
    with contextlib.ExitStack() as stack:
        one, other = os.pipe()
        closing(one, stack)
        os.write(other, b"data")
        os.close(other)
        link = held()[one]
        assert hazard(one, link) == "pipe"
        os.read(one, 10)
        assert hazard(one, link) == ""
        one, other = os.pipe()
        closing(other, stack)
        os.close(one)
        assert hazard(other, held()[other]) == ""


def test_looking_at_a_socket_changes_nothing_about_it():
    """gevent's sockets, and a default timeout, make a descriptor non-blocking for all that use it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        socket.setdefaulttimeout(5)
        try:
            assert hazard(sock.fileno(), held()[sock.fileno()]) == ""
        finally:
            socket.setdefaulttimeout(None)
        assert os.get_blocking(sock.fileno())


def reasons(look: Look) -> list[str]:
    """Those about descriptors: whoever runs the tests may have threads."""
    return [one for one in look.reasons() if "descriptors" in one or "connection" in one]


def test_what_was_there_before_is_no_reason_unless_the_interpreter_s_start_made_it():
    with contextlib.ExitStack() as stack:
        one, other = os.pipe()
        both(stack, (one, other))
        assert reasons(Look({})) == []
        early = {one: held()[one]}
        assert reasons(Look(early)) == ["descriptors that processes cannot share: pipe"]
        assert reasons(Look({one: "pipe:[0]"})) == [], "another one had that number then"


def test_a_number_that_is_used_again_is_another_descriptor():
    one, other = os.pipe()
    look = Look({})
    os.close(one)
    os.close(other)
    with contextlib.ExitStack() as stack:
        both(stack, os.pipe())
        assert reasons(look) == ["descriptors that processes cannot share: pipe (2)"]


def test_the_reason_names_what_made_the_descriptors():
    with contextlib.ExitStack() as stack:
        look = Look({})
        loop(stack)
        [reason] = reasons(look)
        assert reason.endswith("of an asyncio event loop") and "socketpair (2)" in reason
        look = Look({})
        executor = ProcessPoolExecutor(1)
        [reason] = reasons(look)
        assert "a ProcessPoolExecutor" in reason
        executor.shutdown()
        stack.enter_context(connected(stack))
        assert len(reasons(look)) == 1 and "1 open connection (to 127.0.0.1:" in reasons(look)[0]


def test_what_was_closed_is_no_reason():
    look = Look({})
    asyncio.run(asyncio.sleep(0))
    with ProcessPoolExecutor(1):
        pass
    cycle: list[Any] = [asyncio.new_event_loop()]
    cycle[0].kept = cycle
    cycle[0].close()
    garbage = [socket.socketpair()]
    garbage.append(garbage)  # type: ignore[arg-type]
    del garbage, cycle
    assert reasons(look) == []


def test_handlers_of_logs_are_no_reason(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        look = Look({})
        handlers = [
            logging.handlers.SysLogHandler(str(tmp_path / "log")),
            logging.handlers.SysLogHandler(("127.0.0.1", 514)),
            logging.FileHandler(tmp_path / "a.log"),
            logging.handlers.RotatingFileHandler(tmp_path / "b.log"),
            logging.handlers.SocketHandler("127.0.0.1", 9),
            logging.handlers.DatagramHandler("127.0.0.1", 9),
        ]
        record = logging.LogRecord("shop", logging.INFO, "", 1, "opened", None, None)
        for handler in handlers[:4] + handlers[5:]:
            handler.emit(record)
        assert reasons(look) == []
        for handler in handlers:
            handler.close()
