"""A master without file descriptors watches, signals, reads and answers all the same, and says why it refuses."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
from collections.abc import Iterator

import pytest

from reuseport.core.model import ZYGOTE, Key
from reuseport.ipc import files
from reuseport.master import peers, processes, reserve, room
from reuseport.master.bootlog import BootLog
from reuseport.master.loop import Loop
from reuseport.master.processes import Processes
from reuseport.worker.door import Door

NONE_LEFT = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """No call can open a descriptor, unless this process closes another descriptor first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(1)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def empty_reserve() -> None:
    while reserve._held:
        os.close(reserve._held.pop())


@pytest.fixture
def held() -> Iterator[None]:
    gc.collect()  # no descriptor of an earlier test is closed below
    empty_reserve()  # an earlier test may have filled it, with higher numbers than the limit
    reserve.refill()
    yield
    empty_reserve()


def test_the_reserve_gives_one_and_takes_it_back(held, tmp_path):
    (tmp_path / "boot").write_text("line\n" * 10)
    with no_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            os.open(tmp_path / "boot", os.O_RDONLY)
        assert reserve.read(str(tmp_path / "boot"), 5, -5) == b"line\n"
        assert len(reserve._held) == reserve.SIZE
        fds = [reserve.take(lambda: os.dup(1), reserve.FOR_ACTS) for _ in range(reserve.SIZE - reserve.FOR_ACTS)]
        with pytest.raises(OSError, match="Too many open files"):
            reserve.take(lambda: os.dup(1), reserve.FOR_ACTS)
        assert reserve.read(str(tmp_path / "boot"), 5, 5) == b"line\n"
        for fd in fds:
            os.close(fd)
        reserve.refill()
        assert len(reserve._held) == reserve.SIZE


def test_what_must_be_written_is_written(held, tmp_path):
    """The roster: without it a next master could not adopt."""
    with no_descriptors():
        reserve.use(lambda: files.replace(str(tmp_path / "roster"), "{}"))
        assert len(reserve._held) == reserve.SIZE
    assert (tmp_path / "roster").read_text() == "{}"


def test_an_answer_needs_no_boot_output(tmp_path):
    """A failed release is answered and recorded even if its output cannot be read."""
    (tmp_path / "boot").write_text("SyntaxError\n")
    log = BootLog(str(tmp_path / "boot"))
    with no_descriptors():
        assert (log.tail(), log.news(rest=True)) == ("", b"")
    assert (log.tail(), log.news(rest=True)) == ("SyntaxError\n", b"SyntaxError\n")


def test_a_release_for_which_there_are_no_descriptors_is_refused():
    with no_descriptors():
        reason = room.descriptors(5)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = "a release takes 5 file descriptors of the master, and 0 are left: Too many open files; its limit is"
    assert reason == f"{told} {limit} (ulimit -n, LimitNOFILE= of a unit)"
    assert room.descriptors(5) == ""


class World:
    """The kernel, as `Processes` asks it: one process, and pidfds that cannot be had for so many calls."""

    def __init__(self, monkeypatch, error: int, refusals: int, *, child: bool = True) -> None:
        self.lives, self.refusals, self.error, self.child = True, refusals, error, child
        self.signals: list[tuple[str, int]] = []
        self.ends: list[int] = []
        monkeypatch.setattr(os, "pidfd_open", self.pidfd_open)
        monkeypatch.setattr(os, "kill", self.kill)
        monkeypatch.setattr(os, "waitid", self.waitid)
        send = lambda fd, number: self.signals.append(("pidfd", number))  # noqa: E731
        monkeypatch.setattr(processes.signal, "pidfd_send_signal", send)
        monkeypatch.setattr(peers, "start_time", lambda pid: 99 if self.lives else 0)
        monkeypatch.setattr(peers, "pid_of", lambda pidfd: 4711)
        monkeypatch.setattr(peers, "exists", lambda pid: False)  # this machine may have a process of that number
        monkeypatch.setattr(processes, "POLL", 0.001)

    def pidfd_open(self, pid: int) -> int:
        if self.refusals:
            self.refusals -= 1
            raise OSError(self.error, os.strerror(self.error))
        if not self.lives:
            raise ProcessLookupError
        reading, writing = os.pipe()
        self.ends.append(writing)
        return reading

    def kill(self, pid: int, number: int) -> None:
        if not self.lives:
            raise ProcessLookupError
        if number:
            self.signals.append(("pid", number))

    def waitid(self, kind, pid, options):
        if not self.child:
            raise ChildProcessError
        return


ZYGOTE_1 = Key(1, ZYGOTE)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_process_without_a_pidfd_is_polled_until_it_ends(monkeypatch, error):
    world, loop, gone = World(monkeypatch, error, 10**6), Loop(), []
    all_of_them = Processes(loop, lambda process, how: gone.append((process.key, how)))
    all_of_them.is_running(all_of_them.expect(ZYGOTE_1), 4711)
    for _ in range(5):
        loop.wait(None)
    assert gone == []
    world.lives = False
    while not gone:
        loop.wait(None)
    assert gone == [(ZYGOTE_1, "has gone")]
    assert all_of_them.get(ZYGOTE_1) is None


def test_it_is_watched_as_soon_as_it_can_be(monkeypatch):
    world, loop, gone = World(monkeypatch, errno.EMFILE, 3), Loop(), []
    all_of_them = Processes(loop, lambda process, how: gone.append((process.key, how)))
    process = all_of_them.expect(ZYGOTE_1)
    all_of_them.is_running(process, 4711)
    while process.pidfd == -1:
        loop.wait(None)
    os.close(world.ends.pop())
    while not gone:
        loop.wait(None)  # a timer of the polling may be due first
    assert gone == [(ZYGOTE_1, "has gone")]


@pytest.mark.parametrize(("refusals", "way"), [(1, "pidfd"), (10**6, "pid")])
def test_it_gets_its_signals(monkeypatch, refusals, way):
    """A child keeps its pid until it is reaped, so a signal by pid cannot reach another process."""
    world, loop = World(monkeypatch, errno.EMFILE, refusals), Loop()
    all_of_them = Processes(loop, lambda process, how: None)
    all_of_them.is_running(all_of_them.expect(ZYGOTE_1), 4711)
    if refusals == 1:
        world.refusals = 0
    assert all_of_them.signal(ZYGOTE_1, 15)
    assert world.signals == [(way, 15)]
    for end in world.ends:
        os.close(end)


def test_a_process_that_is_no_child_is_never_signalled_by_pid(monkeypatch):
    world, loop = World(monkeypatch, errno.EMFILE, 10**6, child=False), Loop()
    all_of_them = Processes(loop, lambda process, how: None)
    all_of_them.is_running(all_of_them.expect(ZYGOTE_1), 4711)
    with pytest.raises(OSError, match="Too many open files"):
        all_of_them.signal(ZYGOTE_1, 15)
    assert world.signals == []


def test_a_descriptor_that_rests_can_rest_again_and_be_closed_meanwhile():
    """The last words of a process are read while the hello socket rests, for want of descriptors."""
    loop, calls = Loop(), []
    reading, writing = os.pipe()
    loop.watch(reading, lambda: calls.append(1))
    loop.rest(reading, 0.001)
    loop.rest(reading, 0.001)
    os.write(writing, b"x")
    while not calls:
        loop.wait(None)
    loop.rest(reading, 0.001)
    loop.forget(reading)
    os.close(reading)
    loop.errors = []
    loop.on_error = loop.errors.append
    loop.later(0.01, lambda: calls.append(2))
    while calls[-1] != 2:
        loop.wait(None)
    os.close(writing)
    assert loop.errors == []


def test_a_zygote_without_descriptors_leaves_its_door_closed_for_a_moment(tmp_path):
    """It neither dies of it nor asks again and again."""

    class Refusing:
        asked = 0

        def fileno(self) -> int:
            return self.reading

        def _accept(self):
            self.asked += 1
            raise NONE_LEFT

    door, sock = Door(), Refusing()
    sock.reading, writing = os.pipe()
    os.write(writing, b"x")
    door._socket = sock
    for _ in range(5):
        assert door.wait(-1, 0.001) is False
    assert sock.asked == 1
    os.close(sock.reading)
    os.close(writing)


def test_what_proc_tells_of_a_process_is_read_by_the_reserve(held):
    with no_descriptors():
        assert peers.parent_of(os.getpid()) == os.getppid()
        assert peers.users_of(os.getpid()) == frozenset(os.getresuid())
        assert peers.start_time(os.getpid()) > 0
        assert processes.is_ending(os.getpid()) is False
        assert str(os.getpid()) in reserve.entries("/proc")
