"""Messages between processes: none is lost with its sender."""

from __future__ import annotations

import _socket

from reuseport.ipc.channel import Channel


def test_the_last_words_of_a_peer_that_had_not_read_everything_are_heard():
    ours, theirs = (Channel(sock) for sock in _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET))
    ours.send("slots", slots=[])
    theirs.send("imported", directory="/srv/shop")
    theirs.send("failed", error="SyntaxError")
    theirs.close()
    assert [message["type"] for message, _ in ours.receive()] == ["imported", "failed"]
    assert ours.closed
