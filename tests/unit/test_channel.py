"""Messages between processes: none is lost with its sender, doubled, or cut off from its descriptors. None keeps its
receiver, and none is kept for ever."""

from __future__ import annotations

import _socket
import array
import errno
import json
import os
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reuseport.ipc import channel as channels
from reuseport.ipc import messages
from reuseport.ipc.channel import MOST_BYTES, MOST_MESSAGES, PACKET, STATES, TURN, Channel, ChannelError


@pytest.fixture
def raw():
    """A channel, and the socket at its other end."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def test_a_receiver_that_has_no_time_left_takes_one_message_and_leaves_the_others(raw):
    channel, theirs = raw
    for number in range(3):
        theirs.send(json.dumps({"v": 1, "type": "job-ended", "number": number}).encode())
    heard = [channel.receive(messages.FROM_WORKER, seconds=-1.0) for _ in range(4)]
    assert [[one.message.number for one in some] for some in heard] == [[0], [1], [2], []]


class FakeSocket:
    """Takes `room` messages, and notes each with the files that its descriptors are of at that moment."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.error = 0
        self.gone = False
        self.taken: list[tuple[dict, list[int]]] = []

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def sendmsg(self, buffers, extra, flags) -> None:
        if self.gone:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self.room <= 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.room -= 1
        fds = [fd for _, _, some in extra for fd in some]
        self.taken.append((json.loads(b"".join(buffers)), [os.fstat(fd).st_ino for fd in fds]))

    def shutdown(self, how: int) -> None:
        self.gone = True

    def close(self) -> None:
        pass


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def send(sock: _socket.socket, data: bytes, *fds: int) -> None:
    extra = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], extra)


def test_the_last_words_of_a_peer_that_had_not_read_everything_are_heard():
    ours, theirs = (Channel(sock) for sock in _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET))
    ours.send("slots", slots=[])
    theirs.send("imported", directory="/srv/shop")
    theirs.send("failed", error="SyntaxError")
    theirs.close()
    heard = [type(message) for message, _ in ours.receive(messages.FROM_ZYGOTE)]
    assert heard == [messages.Imported, messages.Failed]
    assert ours.closed and ours.fault is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"{",
        b"null",
        b"[" * 60_000,
        b'{"v": 1, "type": "job", "number": ' + b"9" * 5000 + b"}",
        b'{"type": "ready"}',
        b'{"v": "1", "type": "ready"}',
        b'{"v": true, "type": "ready"}',
        b'{"v": 1, "type": ["ready"]}',
        b'{"v": 1}',
        b'{"v": 1, "type": "retire"}',
        b" " * (PACKET + 1),
    ],
)
def test_a_message_that_is_none_ends_the_channel_and_not_those_before_it(raw, data):
    channel, peer = raw
    send(peer, b'{"v": 1, "type": "ready"}')
    send(peer, data)
    send(peer, b'{"v": 1, "type": "accepting"}')
    heard = channel.receive(messages.FROM_WORKER)
    assert [type(message) for message, _ in heard] == [messages.Ready]
    assert channel.closed and isinstance(channel.fault, messages.Malformed)
    assert len(str(channel.fault)) < 600 and str(channel.fault).isprintable()
    assert channel.receive(messages.FROM_WORKER) == []


def test_descriptors_that_a_message_should_not_bring_are_closed(raw):
    channel, peer = raw
    before = open_files()
    reading, writing = os.pipe()
    send(peer, b'{"v": 1, "type": "a kind of tomorrow"}', reading, writing)
    send(peer, b'{"v": 1, "type": "ready"}', reading)
    heard = channel.receive(messages.FROM_WORKER)
    os.close(reading)
    os.close(writing)
    assert [message.named for message, _ in heard] == ["a kind of tomorrow"]
    assert str(channel.fault) == "'ready' does not come with 1 descriptors"
    assert open_files() == before


def test_a_message_without_the_descriptors_that_it_brought_is_no_fault_of_its_sender(raw):
    channel, peer = raw
    before = open_files()
    reading, writing = os.pipe()
    send(peer, b'{"v": 1, "type": "slots", "slots": []}', *[reading] * 100)
    assert channel.receive(messages.FROM_WORKER) == []
    os.close(reading)
    os.close(writing)
    assert channel.closed and isinstance(channel.fault, ChannelError)
    assert open_files() == before


def test_a_peer_that_never_stops_does_not_keep_its_receiver(raw):
    channel, peer = raw
    peer.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, 4 << 20)
    peer.setblocking(False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            send(peer, b'{"v": 1, "type": "ready"}')
            sent += 1
    first = channel.receive(messages.FROM_WORKER)
    assert len(first) == min(TURN, sent) and not channel.closed
    assert len(channel.receive(messages.FROM_WORKER, 1)) == (sent > TURN)


SHORT = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


class Sending(RuleBasedStateMachine):
    """A channel whose socket takes some messages, none, or fails, against a list of what has to arrive."""

    @initialize()
    def begin(self) -> None:
        self.socket = FakeSocket()
        self.channel = Channel(self.socket)  # type: ignore[arg-type]
        self.called = 0
        self.channel.on_waiting = self.count
        self.expected: list[tuple[int, str, list[int]]] = []
        self.waiting: deque[tuple[int, str, list[int]]] = deque()
        self.number = 0
        self.before = open_files()

    def count(self) -> None:
        self.called += 1

    def flow(self) -> None:
        """Move the messages that the socket must have taken by now."""
        while self.waiting and self.room > 0 and not self.socket.error:
            self.room -= 1
            self.expected.append(self.waiting.popleft())

    @rule(kind=st.sampled_from(["job", "slots", *sorted(STATES)]), count=st.integers(0, 3), close=st.booleans())
    def send(self, kind: str, count: int, close: bool) -> None:
        self.number += 1
        fds = [os.memfd_create("reuseport-test") for _ in range(count)]
        one = self.number, kind, [os.fstat(fd).st_ino for fd in fds]
        self.room = self.socket.room
        waited, calls = bool(self.waiting), self.called
        if not waited and self.room > 0 and not self.socket.error:
            self.expected.append(one)
        else:
            place = next((i for i, (_, type, _) in enumerate(self.waiting) if type == kind and kind in STATES), None)
            if place is None:
                self.waiting.append(one)
            else:
                self.waiting[place] = one
        self.channel.send(kind, tuple(fds), number=self.number)
        for fd in fds:
            os.close(fd)  # they were only lent
        assert self.called - calls == (bool(self.waiting) and not waited), "the owner hears of it once"

    @rule(room=st.integers(0, 4), error=st.sampled_from((0, 0, 0, *SHORT)))
    def becomes_writable(self, room: int, error: int) -> None:
        self.socket.room, self.socket.error = room, error
        self.room = room
        self.channel.flush()
        self.flow()
        assert self.channel.stalled == bool(self.waiting and error)

    @precondition(lambda self: self.waiting)
    @rule()
    def goes_through_an_upgrade(self) -> None:
        """As `estate` tells it, and `inherited` takes it."""
        left = self.channel.estate(lambda fd: fd)
        assert [(json.loads(text)["number"], [os.fstat(fd).st_ino for fd in fds]) for text, fds in left["unsent"]] == [
            (number, inodes) for number, _, inodes in self.waiting
        ]

    @invariant()
    def what_was_taken_is_what_was_sent(self) -> None:
        taken = [(message["number"], message["type"], inodes) for message, inodes in self.socket.taken]
        assert taken == self.expected
        assert self.channel.unsent == bool(self.waiting)

    @invariant()
    def there_are_no_other_copies_of_descriptors(self) -> None:
        assert len(open_files() - self.before) <= sum(len(inodes) for _, _, inodes in self.waiting) + 1  # the listing's

    def teardown(self) -> None:
        if hasattr(self, "socket"):
            self.socket.room, self.socket.error = 1000, 0
            self.room = 1000
            self.channel.flush()
            self.flow()
            self.what_was_taken_is_what_was_sent()
            self.channel.close()
            self.there_are_no_other_copies_of_descriptors()


Sending.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_sending = Sending.TestCase


def test_a_message_that_cannot_keep_its_descriptors_ends_the_channel(monkeypatch):
    """Both ends see the end, and the next hello repeats what counts: better than a message without its descriptors."""
    socket = FakeSocket()
    channel = Channel(socket)  # type: ignore[arg-type]
    before, copies, dup = open_files(), [], os.dup

    def scarce(fd: int) -> int:
        if len(copies) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        copies.append(dup(fd))
        return copies[-1]

    with open("/dev/null") as file:
        fd = file.fileno()
        channel.send("slots", (fd,), slots=[])
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", scarce)
            copies.append(-1)
            channel.send("slots", (fd, fd), slots=[])
        channel.send("quit")
        assert "no descriptors are left" in channel.given_up and socket.gone and not channel.unsent
    assert open_files() == before


@pytest.mark.parametrize(("size", "most"), [(1, MOST_MESSAGES), (60_000, MOST_BYTES // 60_000)])
def test_a_peer_that_never_reads_costs_no_more_than_a_bound(size, most):
    socket = FakeSocket()
    channel = Channel(socket)  # type: ignore[arg-type]
    for count in range(most + 1):
        assert not channel.given_up, count
        channel.send("job", text="x" * size)
    channel.send("job", text="x" * size)
    assert channel.given_up and socket.gone and not channel.unsent


def test_a_patient_end_waits_for_what_poll_does_not_tell_of(monkeypatch):
    """A zygote has no loop that would try again."""
    socket = FakeSocket(room=1)
    socket.error = errno.ETOOMANYREFS
    channel = Channel(socket)  # type: ignore[arg-type]
    channel.be_patient()

    def wait(signals, seconds) -> None:
        socket.error = 0

    monkeypatch.setattr(channels.signal, "sigtimedwait", wait)
    channel.send("forked", number=1)
    assert [message["type"] for message, _ in socket.taken] == ["forked"] and not channel.unsent


def test_a_peer_that_has_gone_is_sent_nothing_more():
    socket = FakeSocket(room=1)
    channel = Channel(socket)  # type: ignore[arg-type]
    channel.send("job", number=1)
    channel.send("job", number=2)
    socket.gone = True
    channel.flush()
    assert not channel.unsent and len(socket.taken) == 1
