"""A batch goes over whole or not at all, and who comes back is served: whatever the kernel has no room for."""

from __future__ import annotations

import errno
import json
import os
import socket
from types import SimpleNamespace

import gevent
import pytest
from http_harness import Harness, open_fds, turn, wait_for

from reuseport.worker.handover import Receiver, Sender
from reuseport.worker.loopset import LoopSet

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLIENTS = 12


class Full:
    """An epoll set in which there is room for so many descriptors more (epoll(7), max_user_watches)."""

    def __init__(self, readers, room: int) -> None:
        self._real = readers.set
        self._room = room
        readers.set = self

    def register(self, fd: int, events: int) -> None:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= 1
        self._real.register(fd, events)

    def __getattr__(self, name: str):
        return getattr(self._real, name)


def answering(name: bytes):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(name)))])
        return [name]

    return application


@pytest.fixture
def sides(monkeypatch):
    """An engine that passes on and one that takes, with the queue between them."""
    defects = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "handle_error", lambda context, kind, error, tb: defects.append(error))
    old, new = Harness(answering(b"old")), Harness(answering(b"new"))
    receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop_set = LoopSet(hub.loop)
    sender = Sender(hub.loop, loop_set, lambda refused: old.engine.drain())
    log = []
    receiver = Receiver(
        hub.loop,
        receiving.fileno(),
        new.engine.adopt,
        lambda connection, data, seconds: connection.inherit(data, seconds),
        lambda level, text: log.append(text),
    )
    receiving.close()
    sender.set_heir(sending.detach(), 1)
    sides = SimpleNamespace(old=old, new=new, sender=sender, receiver=receiver, log=log, defects=defects)
    yield sides
    sender.close()
    receiver.stop(loop_set)
    old.close()
    new.close()
    assert defects == []


@pytest.fixture
def clients(sides):
    some = [sides.old.connect(tcp=number % 2 == 0) for number in range(CLIENTS)]
    yield some
    for client in some:
        client.sock.close()


def answers(clients) -> set[bytes]:
    for client in clients:
        client.sock.send(GET)
    wait_for(lambda: all(client.receive() and client.received[-3:] in (b"old", b"new") for client in clients))
    return {client.received[-3:] for client in clients}


def test_all_go_over(sides, clients):
    sides.receiver.start()
    sides.old.engine.drain_to(sides.sender.give)
    wait_for(lambda: sides.new.engine.connections == CLIENTS and not sides.old.engine.connections)
    assert answers(clients) == {b"new"}


@pytest.mark.parametrize("room", [0, 1, 3])
def test_no_room_in_the_receivers_set(sides, clients, room):
    """It says so before it has taken the batch: its sender has all of it still."""
    Full(sides.new.engine.readers, room)
    before = open_fds()
    sides.receiver.start()
    sides.old.engine.drain_to(sides.sender.give)
    wait_for(lambda: sides.old.engine.closing and not sides.sender._batches, 20)
    assert "No space left on device" in sides.log[0]
    assert room or open_fds() == before
    assert sides.new.engine.connections == len(sides.new.engine.readers.by_fd)
    taken = sides.new.engine.connections
    assert taken + sides.old.engine.connections == CLIENTS
    assert answers(clients) == {b"old", b"new"} if taken else {b"old"}


def sent_as(monkeypatch, change):
    """What the sender says of a batch, as another version of this package would."""
    honest = json.dumps
    words = SimpleNamespace(dumps=lambda said, **form: honest(change(said), **form), loads=json.loads)
    monkeypatch.setattr("reuseport.worker.handover.json", words)


def test_a_newer_version_says_more_of_each(sides, clients, monkeypatch):
    sent_as(monkeypatch, lambda said: {**said, "connections": [[*one, "more"] for one in said["connections"]], "so": 1})
    sides.receiver.start()
    sides.old.engine.drain_to(sides.sender.give)
    wait_for(lambda: sides.new.engine.connections == CLIENTS and not sides.old.engine.connections)
    assert answers(clients) == {b"new"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda said: {**said, "v": 2}, "a batch of number 2, and this version of reuseport reads 1"),
        (lambda said: {"v": 1}, "KeyError: 'connections'"),
        (lambda said: {**said, "connections": [one[:2] for one in said["connections"]]}, "ValueError"),
        (lambda said: {**said, "connections": said["connections"][1:]}, "descriptors"),
    ],
)
def test_a_batch_of_another_version_goes_back_whole(sides, clients, monkeypatch, change, why):
    sent_as(monkeypatch, change)
    before = open_fds()
    sides.receiver.start()
    sides.old.engine.drain_to(sides.sender.give)
    wait_for(lambda: sides.old.engine.closing and not sides.sender._batches, 20)
    assert why in sides.log[0]
    assert open_fds() == before and not sides.new.engine.connections
    assert answers(clients) == {b"old"}


def test_nobody_takes_them_and_there_is_no_room_to_come_back_to(sides, clients):
    """They have never left the sender's set."""
    sides.old.engine.drain_to(sides.sender.give)
    turn()
    assert {connection.state for connection in sides.old.engine._open} == {"passed"}
    Full(sides.old.engine.readers, 0)
    sides.sender.close()
    sides.receiver._socket.close()  # as its process's death would, with what lies in the queue
    assert answers(clients) == {b"old"}


def test_what_comes_while_they_are_under_way(sides, clients):
    """Its edge is its sender's, who may not look; the receiver is told of it anew."""
    sides.old.engine.drain_to(sides.sender.give)
    for client in clients:
        client.sock.send(GET[:20])
    turn()
    assert not any(client.received for client in clients if client.receive())
    sides.receiver.start()
    wait_for(lambda: not sides.old.engine.connections)
    for client in clients:
        client.sock.send(GET[20:])
    wait_for(lambda: all(client.receive() and client.received.endswith(b"new") for client in clients))


def test_one_that_fails_takes_nobody_along(sides, clients):
    run, failing = sides.new.engine.run, [True]

    def fail_once(response):
        if failing:
            failing.clear()
            raise ZeroDivisionError
        run(response)

    sides.new.engine.run = fail_once
    sides.old.engine.drain_to(lambda connections: None)
    for connection in sides.old.engine._open:
        connection.unread = GET  # it was read already, as from a burst of pipelined requests
    sides.sender.give(list(sides.old.engine._open))
    sides.receiver.start()
    wait_for(lambda: sides.new.engine.connections == CLIENTS - 1 and not sides.old.engine.connections)
    assert type(sides.defects.pop()) is ZeroDivisionError
    ended = []
    for client in clients:
        try:
            wait_for(lambda client=client: not client.receive() or client.received.endswith(b"new"))
            ended.append(not client.received)
        except ConnectionResetError:
            ended.append(True)
    assert sum(ended) == 1
