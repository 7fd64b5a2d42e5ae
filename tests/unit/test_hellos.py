"""Connections to hello.sock until they are known: how many, for how long, from which process; and what is closed."""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import subprocess
from collections import Counter

import pytest

from reuseport.core.model import Key
from reuseport.ipc import channel as channels
from reuseport.ipc import messages
from reuseport.ipc.inhabitants import start_time
from reuseport.master import hellos as module
from reuseport.master import peers, reserve
from reuseport.master.hellos import AT_ONCE, CROWD, IMPOSTOR, MALFORMED, PER_USER, SILENT, USER, Hellos
from reuseport.master.loop import Loop
from reuseport.master.peers import NotOurs
from reuseport.master.processes import Processes, end_session

SAID = {"v": 1, "type": "hello", "generation": 1, "number": 1, "state": "starting", "slots": []}
HELLO = json.dumps(SAID).encode()


class Door:
    """A master's end: what was heard, what was refused, and its clients."""

    def __init__(self, path: str, trusted: set[int]) -> None:
        self.path = path
        self.loop = Loop()
        self.refused: Counter[str] = Counter()
        self.heard: list[messages.Message] = []
        self.pids: list[int] = []
        self.lines: list[str] = []
        self.errors: list[OSError] = []
        self.clients: list[socket.socket] = []

        def count(reason: str) -> None:
            self.refused[reason] += 1

        def log(level: str, text: str) -> None:
            self.lines.append(text)

        self.hellos = Hellos(channels.listen(path), trusted, self.loop, self.hear, log, count, self.errors.append)

    def hear(self, channel, peer, hello, fds) -> None:
        self.heard.append(hello)
        self.pids.append(peers.pid_of(peer.pidfd))
        for fd in fds:
            os.close(fd)
        peer.close()
        channel.close()

    def connect(self, message: bytes = b"", fds: tuple[int, ...] = ()) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.path)
        if message or fds:
            extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            client.sendmsg([message], extra)
        self.clients.append(client)
        return client

    def turn(self, until: float = 0.0) -> None:
        self.loop.wait(until)


@pytest.fixture
def door(tmp_path):
    reserve.refill()  # or the first hello would, and its descriptors would be counted
    one = Door(str(tmp_path / "hello.sock"), {os.geteuid()})
    yield one
    for client in one.clients:
        client.close()
    one.hellos.leave()


def descriptors() -> int:
    gc.collect()  # what an earlier test has left
    return len(os.listdir("/proc/self/fd"))


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True  # with something unread


@pytest.fixture(params=["SO_PEERPIDFD", "older kernel"])
def kernel(request, monkeypatch):
    """As it is, and as it was before Linux 6.5."""
    if request.param == "older kernel":
        monkeypatch.setattr(channels.Channel, "peer_pidfd", lambda channel: None)


@pytest.mark.usefixtures("kernel")
def test_a_hello_is_heard_in_the_turn_in_which_it_was_accepted(door):
    door.connect(HELLO)
    door.turn()
    assert [type(one) for one in door.heard] == [messages.Hello]
    assert door.pids == [os.getpid()]
    assert door.hellos.waiting == 0


def test_who_says_hello_later_is_heard_later(door):
    client = door.connect()
    door.turn()
    assert (door.hellos.waiting, door.heard) == (1, [])
    client.send(HELLO)
    door.turn()
    assert (door.hellos.waiting, len(door.heard)) == (0, 1)


def test_only_so_many_are_accepted_in_a_turn(door):
    for _ in range(AT_ONCE + 1):
        door.connect()
    door.turn()
    assert door.hellos.waiting == AT_ONCE
    door.turn()
    assert door.hellos.waiting == AT_ONCE + 1


def test_of_too_many_silent_ones_the_oldest_are_closed(door):
    before = descriptors()
    for _ in range(PER_USER + 5):
        door.connect()
        door.turn()
    assert door.hellos.waiting == PER_USER
    assert door.refused == {CROWD: 5}
    assert [is_closed(one) for one in door.clients] == [True] * 5 + [False] * PER_USER
    door.connect(HELLO)
    door.turn()
    assert len(door.heard) == 1, "the crowd keeps no process out"
    assert len(door.lines) == 1, "and fills no log"
    for client in door.clients:
        client.close()
    door.turn()
    assert door.hellos.waiting == 0
    assert descriptors() == before


def test_the_silent_have_a_deadline_and_what_came_in_time_counts(door, monkeypatch):
    monkeypatch.setattr(module, "FIRST_MESSAGE", 0.0)
    silent, slow = door.connect(), door.connect()
    door.hellos._accept(2)
    slow.send(HELLO)  # the loop has been busy, and comes to both at once
    door.hellos._expire()
    assert door.refused == {SILENT: 1}
    assert is_closed(silent)
    assert len(door.heard) == 1


@pytest.mark.parametrize(
    "message",
    [b"x", b"[]", b'{"v": 1}', b'{"v": "1", "type": "hello"}', b'{"type": "hel', b"\xff", b"x" * 70000, b""],
    ids=["text", "array", "no type", "no version", "half", "no UTF-8", "too large", "empty"],
)
def test_a_message_that_is_none_costs_no_descriptor(door, message):
    """The master closes the descriptors that come along, and the connection."""
    client = door.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    before = descriptors()
    door.turn()
    client.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    door.turn()
    assert is_closed(client)
    assert door.refused == {MALFORMED: 1}
    assert descriptors() == before


def test_messages_that_came_before_one_that_is_none_keep_no_descriptor_open():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        channel = channels.Channel(ours)  # type: ignore[arg-type]
        before = descriptors()
        for message in (b'{"v": 1, "type": "of tomorrow"}', b"x"):
            theirs.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
        channel.receive(messages.HELLOS)
        assert isinstance(channel.fault, messages.Malformed)
        assert descriptors() == before


def test_another_user_is_not_heard(tmp_path):
    door = Door(str(tmp_path / "hello.sock"), {os.geteuid() + 1})
    client = door.connect(HELLO)
    door.turn()
    assert (door.refused, door.heard) == ({USER: 1}, [])
    assert is_closed(client)
    client.close()
    door.hellos.leave()


@pytest.mark.usefixtures("kernel")
def test_a_process_speaks_for_itself_only(door):
    """This process connects, and a child of it sends the hello. The master must not mix them up."""
    client = door.connect()
    child = os.fork()
    if not child:
        client.send(HELLO)
        os._exit(0)
    os.waitpid(child, 0)
    before = descriptors()
    door.turn()
    assert (door.refused, door.heard) == ({IMPOSTOR: 1}, [])
    assert descriptors() == before


@pytest.mark.usefixtures("kernel")
def test_a_hello_of_a_process_that_has_been_reaped_leads_to_no_process(door):
    child = os.fork()
    if not child:
        door.connect(HELLO)
        os._exit(0)
    os.waitpid(child, 0)
    told = []
    door.hellos._heard = lambda channel, peer, hello, fds: told.append((peer, channel.close(), peer.close()))
    door.turn()
    (peer, *_) = told[0]
    assert peer.pid == child
    assert peer.users == frozenset(), "the master sends no signal to a process without a user"


def test_a_process_that_has_started_since_is_another_one_with_that_pid(door, monkeypatch):
    """Before Linux 6.5 the pid leads to whichever process has it now."""
    monkeypatch.setattr(channels.Channel, "peer_pidfd", lambda channel: None)
    door.connect()
    channel = channels.accept(door.hellos._listener)
    assert channel is not None
    assert peers.peer_of(channel, 1.0).pidfd == -1
    known = peers.peer_of(channel)
    assert peers.pid_of(known.pidfd) == os.getpid()
    known.close()
    channel.close()


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process():
    one = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield one
    one.kill()
    one.wait()


def test_a_process_is_known_by_its_start_and_its_parent(process):
    start = start_time(process.pid)
    pidfd = peers.started_at(process.pid, start)
    assert peers.pid_of(pidfd) == process.pid
    assert not peers.has_ended(pidfd)
    assert peers.started_at(process.pid, start + 1) == -1
    os.close(peers.child_of(process.pid, os.getpid()))
    with pytest.raises(NotOurs):
        peers.child_of(process.pid, os.getppid())
    process.kill()
    process.wait()
    assert peers.has_ended(pidfd)
    assert peers.pid_of(pidfd) == -1
    os.close(pidfd)
    assert peers.started_at(process.pid, start) == -1
    assert peers.child_of(process.pid, os.getpid()) == -1
    assert peers.users_of(process.pid) == frozenset()


@pytest.mark.parametrize("pid", [-1, 0, 1 << 70])
def test_a_number_that_is_no_pid_is_refused(pid):
    with pytest.raises(NotOurs):
        peers.child_of(pid, 1)


def test_a_process_that_a_zygote_has_not_forked_is_not_taken_for_its(process):
    """The processes in question are all this one's children, as a worker is its master's. Only those that have the
    zygote's session are the zygote's. (This process has itself none, to /proc, where a container's host began it.)"""
    zygote = process.pid
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        with pytest.raises(NotOurs):
            peers.forked_by(zygote, stranger.pid, os.getuid())
        stranger.kill()
    with pytest.raises(NotOurs):
        peers.forked_by(zygote, zygote, os.getuid())


def test_a_process_that_a_zygote_has_forked_twice_is_its_as_one_user_only():
    command = "(sleep 60 & echo $!; wait) & wait"
    with subprocess.Popen(["sh", "-c", command], start_new_session=True, stdout=subprocess.PIPE, text=True) as zygote:
        assert zygote.stdout is not None
        pid = int(zygote.stdout.readline())
        os.close(peers.forked_by(zygote.pid, pid, os.getuid()))
        with pytest.raises(NotOurs):
            peers.forked_by(zygote.pid, pid, os.getuid() + 1)
        end_session(zygote.pid)
        zygote.kill()


def test_no_signal_goes_to_a_process_that_runs_as_another_user_by_now(process):
    lines: list[str] = []
    processes = Processes(Loop(), lambda process, how: None, lambda level, text: lines.append(text))
    one = processes.expect(Key(1, 1))
    processes.is_running(one, process.pid)
    one.user = os.getuid() + 1
    assert not processes.signal(one.key, signal.SIGKILL)
    assert process.poll() is None
    assert len(lines) == 1
    one.user = os.getuid()
    assert processes.signal(one.key, signal.SIGKILL)
    process.wait()
    processes.close()


def test_a_session_is_ended_but_for_its_leader():
    command = "sleep 60 & echo $!; exec sleep 60"
    with subprocess.Popen(["sh", "-c", command], start_new_session=True, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        member = int(leader.stdout.readline())
        pidfd = os.pidfd_open(member)
        end_session(leader.pid)
        assert select.select([pidfd], [], [], 20)[0]
        assert leader.poll() is None
        leader.kill()
        os.close(pidfd)
