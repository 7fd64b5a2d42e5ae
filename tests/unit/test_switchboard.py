"""Whom the master takes a process for that says hello, and what a zygote may say of others."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from reuseport.core import events as ev
from reuseport.core.model import FIRST_COMPANION, FIRST_JOB, ZYGOTE, Key
from reuseport.ipc import channel as channels
from reuseport.ipc import messages
from reuseport.master import reserve
from reuseport.master.loop import Loop
from reuseport.master.processes import Process, Processes
from reuseport.master.slots import Slots
from reuseport.master.switchboard import Switchboard
from reuseport.master.tally import Tally

PATIENCE = 20.0  # seconds


class Board:
    """A switchboard that has generation 1, and processes that say what they are told to."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.loop = Loop()
        self.events: list[ev.Event] = []
        self.processes = Processes(self.loop, lambda process, how: None)
        self.tally = Tally()
        self.switchboard = Switchboard(
            channels.listen(path),
            os.geteuid(),
            "test",
            self.loop,
            self.processes,
            Slots([], 16, 0o077),
            self.events.append,
            lambda level, text: None,
            lambda generation: {"settings": {}} if generation == 1 else None,
            lambda key, job: None,
            SimpleNamespace(of=lambda recipe, anew: ((), ())),  # type: ignore[arg-type]
            self.tally,
        )
        self.children: list[int] = []

    def say(self, *said: dict[str, Any]) -> int:
        """Have a process of its own say this, and hear it. The process stays; its pid."""
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(self.path)
                for message in said:
                    own = {name: os.getpid() if value == "pid" else value for name, value in message.items()}
                    sock.send(json.dumps({"v": 1, **own}).encode())
                os.write(tell, b"1")
                signal.pause()
        self.children.append(pid)
        os.close(tell)
        os.read(told, 1)
        os.close(told)
        for _ in range(3):
            self.loop.wait(time.monotonic())
        return pid

    def close(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.switchboard.leave()
        self.processes.close()


@pytest.fixture
def board(tmp_path) -> Iterator[Board]:
    one = Board(str(tmp_path / "hello.sock"))
    yield one
    one.close()


def hello(number: Any, state: str = "starting", generation: int = 1) -> dict[str, Any]:
    return {"type": "hello", "generation": generation, "number": number, "state": state, "slots": [], "queue": False}


def test_a_worker_is_the_process_that_said_hello(board):
    board.processes.expect(Key(1, 1))
    pid = board.say(hello(1))
    assert board.events == [ev.Forked(Key(1, 1), pid)]
    process = board.processes.get(Key(1, 1))
    assert process is not None and process.pid == pid
    assert board.processes.known_as(pid) is process


def test_a_copied_zygote_is_told_of_whichever_message_comes_first(board):
    """Its donor tells of it on another channel, so its hello may be heard before."""
    key = Key(2, ZYGOTE)
    board.processes.expect(key)
    pid = board.say(hello(0, "loading", 2))
    assert board.events == [ev.Started(key, pid)]
    process = board.processes.get(key)
    donor = board.processes.expect(Key(1, ZYGOTE))
    board.switchboard._on_message(donor, messages.Forked.parse({"generation": 2, "number": 0, "pid": pid}))
    assert process is board.processes.get(key) and process.pid == pid


@pytest.mark.parametrize(
    "said",
    [
        hello(FIRST_COMPANION),
        hello(FIRST_COMPANION + 3, "serving"),
        hello(-1),
        hello(1, generation=0),
        hello(FIRST_JOB + 1, "working"),
        hello("1"),
        hello(1) | {"slots": [["unix:/x"]]},
        hello(1) | {"slots": "unix:/x"},
        hello(1) | {"queue": True},
        {"type": "ready"},
        {"type": "takeover", "protocol": 1} | {"queue": True, "type": "hello"},
    ],
    ids=str,
)
def test_a_hello_that_cannot_be_true_leads_to_nothing(board, said):
    board.say(said)
    assert board.events == []
    assert board.processes.all() == []
    assert sum(board.tally.hellos.values()) == 1


def test_a_process_is_one_only(board):
    board.processes.expect(Key(1, 1))
    board.processes.expect(Key(1, 2))
    pid = board.say(hello(1))
    known = board.processes.get(Key(1, 1))
    assert known is not None and known.channel is not None
    other = board.processes.get(Key(1, 2))
    assert other is not None
    # A zygote names the same process once more, or one that is none of its.
    parent = board.processes.expect(Key(1, ZYGOTE))
    board.processes.is_running(parent, os.getpid(), pidfd=os.pidfd_open(os.getpid()))
    for number in (pid, os.getpid(), os.getppid(), 1):
        board.switchboard._on_message(parent, messages.Forked.parse({"number": 2, "pid": number}))
        assert other.pid == 0, number
    assert board.events == [ev.Forked(Key(1, 1), pid)]


def test_a_zygote_tells_of_nobody_it_was_not_asked_for(board):
    pid = board.say(hello(1))
    board.events.clear()
    zygote = Process(Key(1, ZYGOTE))
    for message in (
        messages.Forked.parse({"number": 7, "pid": pid}),
        messages.Forked.parse({"generation": 9, "number": 1, "pid": pid}),
        messages.Unborn.parse({"number": 1, "error": "gone"}),
        messages.Unborn.parse({"number": 7, "error": "gone"}),
    ):
        board.switchboard._on_message(zygote, message)
    assert board.events == []
    assert [process.key for process in board.processes.all()] == [Key(1, 1)]


def test_a_second_hello_of_a_process_leaves_one_channel(board):
    """As of a zygote that has executed itself again; or of a process that collects channels."""
    gc.collect()  # a cycle of an earlier test may hold a socket
    before = len(os.listdir("/proc/self/fd"))
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        socks = []
        for _ in range(20):
            socks.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            socks[-1].connect(board.path)
            socks[-1].send(json.dumps({"v": 1, **hello(1)}).encode())
        os.write(tell, b"1")
        signal.pause()
    board.children.append(pid)
    os.read(told, 1)
    os.close(told)
    os.close(tell)
    for _ in range(3):
        board.loop.wait(time.monotonic())
    assert len(os.listdir("/proc/self/fd")) == before + 2, "the channel and the pidfd"


JOB = {"name": "export", "tenant": "acme", "started": 1.0, "deadline": None, "fraction": None}


def tell_jobs(board: Board, process: Process, *numbers: int) -> None:
    for number in numbers:
        board.switchboard._on_message(process, messages.Job.parse({"number": number, **JOB}))


def test_after_a_second_hello_a_job_counts_if_it_is_repeated(board):
    """Its end may have waited in the channel that has ended."""
    ended: list[dict[str, Any]] = []
    board.switchboard._job_ended = lambda key, job: ended.append(job)
    board.say(hello(1))
    process = board.processes.get(Key(1, 1))
    tell_jobs(board, process, 1, 2, 3)
    process.unconfirmed = set(process.jobs)  # as a second hello sets it
    tell_jobs(board, process, 2, 4)
    assert set(process.jobs) == {1, 2, 3, 4}, "a job that is not repeated yet may still run"
    board.switchboard._on_message(process, messages.JobsRepeated.parse({}))
    assert set(process.jobs) == {2, 4} and [job["number"] for job in ended] == [1, 3]
    tell_jobs(board, process, 2)
    board.switchboard._on_message(process, messages.JobsRepeated.parse({}))
    assert set(process.jobs) == {2, 4}, "without a hello in between it says nothing"


def test_jobs_that_are_not_confirmed_take_no_places(board, monkeypatch):
    """A worker with more jobs than the master keeps can repeat others than it told first."""
    monkeypatch.setattr(messages, "JOBS", 3)
    board.say(hello(1))
    process = board.processes.get(Key(1, 1))
    tell_jobs(board, process, 1, 2, 3, 4)
    assert (set(process.jobs), process.has_more_jobs) == ({1, 2, 3}, True)
    process.unconfirmed = set(process.jobs)
    tell_jobs(board, process, 4, 5, 6)
    board.switchboard._on_message(process, messages.JobsRepeated.parse({}))
    assert set(process.jobs) == {4, 5, 6}
    for first in range(10, 100, 10):  # hellos without end, and nothing is ever confirmed
        process.unconfirmed = set(process.jobs)
        tell_jobs(board, process, *range(first, first + 10))
    assert len(process.jobs) <= 2 * messages.JOBS


def test_a_worker_that_says_hello_in_a_drain_has_let_go(board):
    board.processes.expect(Key(1, 1))
    pid = board.say(hello(1, "draining"))
    assert board.events == [ev.Forked(Key(1, 1), pid), ev.LetGo(Key(1, 1))]


def empty_reserve() -> None:
    while reserve._held:
        os.close(reserve._held.pop())


def test_a_forked_process_is_known_while_the_master_has_no_descriptors(board):
    """It is polled, and its end is noticed; a process that is none of the zygote's is still not believed."""
    gone: list[tuple[Key, str]] = []
    board.processes._on_exit = lambda process, how: gone.append((process.key, how))
    zygote = board.processes.expect(Key(1, ZYGOTE))
    board.processes.is_running(zygote, board.say(hello(ZYGOTE, "loading")))
    one, other = board.processes.expect(Key(1, 1)), board.processes.expect(Key(1, 2))
    child = os.fork()
    if not child:
        signal.pause()
    board.children.append(child)
    gc.collect()  # no descriptor of an earlier test is closed below
    empty_reserve()  # an earlier test may have filled it, with higher numbers than the limit
    reserve.refill()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(1)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        for number, pid in ((1, child), (2, 1), (2, os.getppid())):
            board.switchboard._on_message(zygote, messages.Forked.parse({"number": number, "pid": pid}))
        assert (one.pid, one.pidfd, one.polled, other.pid) == (child, -1, True, 0)
        assert board.processes.signal(one.key, signal.SIGKILL)
        board.children.remove(child)
        until = time.monotonic() + PATIENCE
        while not gone and time.monotonic() < until:
            board.loop.wait(time.monotonic() + 0.1)
        assert gone == [(Key(1, 1), "was killed by SIGKILL")]
        assert len(reserve._held) == reserve.SIZE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        empty_reserve()
