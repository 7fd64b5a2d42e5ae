"""When an acceptor takes no connection: the worker has no room for it, or rests."""

from __future__ import annotations

import errno
import os
import socket
import time

import gevent
import pytest
from http_harness import wait_for

from reuseport.ipc.scoreboard import ACCEPTED, FIELDS
from reuseport.worker.listeners import NO_DESCRIPTORS, Acceptor, Listener
from reuseport.worker.loopset import LoopSet


@pytest.fixture
def slot():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def test_no_room_for_another_client(slot):
    """One connection is lost; the others keep in the queue, where a sibling may take them, and are taken later."""
    loop = gevent.get_hub().loop
    board, taken, log, refused = [0] * FIELDS, [], [], []

    def adopt(fd, peer, local):
        if not refused:
            refused.append(time.monotonic())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(time.monotonic())
        os.close(fd)

    acceptor = Acceptor(loop, LoopSet(loop), adopt, board, lambda level, text: log.append(text))
    acceptor.add(Listener(os.dup(slot.fileno()), "127.0.0.1:0", 0, False))
    clients = [socket.create_connection(slot.getsockname()) for _ in range(3)]
    acceptor.own([0])
    wait_for(lambda: len(taken) == 2)
    assert taken[0] - refused[0] >= NO_DESCRIPTORS * 0.9
    assert log == ["cannot accept for the moment: No space left on device"]
    assert board[ACCEPTED] == 2
    acceptor.stop()
    for client in clients:
        client.close()


def test_each_pause_lasts_as_long_as_the_first(slot):
    """Else a worker without descriptors uses a whole CPU to ask for one."""
    loop = gevent.get_hub().loop
    attempts: list[float] = []

    def adopt(fd, peer, local):
        attempts.append(time.monotonic())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    acceptor = Acceptor(loop, LoopSet(loop), adopt, [0] * FIELDS, lambda level, text: None)
    acceptor.add(Listener(os.dup(slot.fileno()), "127.0.0.1:0", 0, False))
    clients = [socket.create_connection(slot.getsockname()) for _ in range(4)]
    acceptor.own([0])
    wait_for(lambda: len(attempts) == 4)
    assert attempts[-1] - attempts[0] >= NO_DESCRIPTORS * 2  # of three pauses
    acceptor.stop()
    for client in clients:
        client.close()


def test_one_that_rests_looks_at_no_siblings_slot(slot):
    """Else each connection there costs the kernel work, and from outside it looks awake."""
    loop = gevent.get_hub().loop
    acceptor = Acceptor(loop, LoopSet(loop), lambda *connection: None, [0] * FIELDS, lambda level, text: None)
    acceptor.add(Listener(os.dup(slot.fileno()), "127.0.0.1:0", 0, False))
    acceptor.own([1])
    acceptor.rest()
    with socket.create_connection(slot.getsockname()):
        assert acceptor._siblings.poll(0, 1) == []
    acceptor.own([1])
    with socket.create_connection(slot.getsockname()):
        assert acceptor._siblings.poll(0, 1) != []
    acceptor.stop()
