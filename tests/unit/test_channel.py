"""Messages between processes: none is lost with its sender, and none keeps its receiver."""

from __future__ import annotations

import _socket
import array
import os

import pytest

from reuseport.ipc import messages
from reuseport.ipc.channel import PACKET, TURN, Channel, ChannelError


@pytest.fixture
def raw():
    """A channel, and the socket at its other end."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def descriptors() -> set[str]:
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
    before = descriptors()
    reading, writing = os.pipe()
    send(peer, b'{"v": 1, "type": "a kind of tomorrow"}', reading, writing)
    send(peer, b'{"v": 1, "type": "ready"}', reading)
    heard = channel.receive(messages.FROM_WORKER)
    os.close(reading)
    os.close(writing)
    assert [message.named for message, _ in heard] == ["a kind of tomorrow"]
    assert str(channel.fault) == "'ready' does not come with 1 descriptors"
    assert descriptors() == before


def test_a_message_without_the_descriptors_that_it_brought_is_no_fault_of_its_sender(raw):
    channel, peer = raw
    before = descriptors()
    reading, writing = os.pipe()
    send(peer, b'{"v": 1, "type": "slots", "slots": []}', *[reading] * 100)
    assert channel.receive(messages.FROM_WORKER) == []
    os.close(reading)
    os.close(writing)
    assert channel.closed and isinstance(channel.fault, ChannelError)
    assert descriptors() == before


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
