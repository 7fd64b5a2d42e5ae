"""Accepting: a worker's own slots at once, a sibling's when its owner is busy, blocked or dead.

A worker watches its own slots like any server. Its siblings' it watches with one-shot triggers in an epoll set of its
own, which the loop watches as one descriptor. When a connection arrives anywhere among them, all triggers are
disarmed and one *look* follows some milliseconds later: what is still in a queue by then has an owner who does not
come, and is taken. If a look finds nothing the next comes after twice the time, up to a limit, since healthy
siblings need nobody; a steal resets that.

So the price of watching is paid once per look and not once per connection. With standing watchers on all siblings each
connection would wake every worker of the machine: libev knows neither EPOLLEXCLUSIVE nor edge triggers.

A slot that was stolen from is *hot*: for a short while it is watched like an own one, so that a blocked owner's
clients do not wait for the next look each time.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gevent import monkey

from reuseport.ipc.channel import FDS, Channel
from reuseport.ipc.scoreboard import ACCEPTED, LOOKS, STOLEN
from reuseport.worker.alarm import Alarm
from reuseport.worker.loopset import LoopSet
from reuseport.worker.seldom import Seldom

epoll = monkey.get_original("select", "epoll")
EPOLLIN, EPOLLONESHOT = 1, 1 << 30

FIRST_LOOK = 0.005  # seconds from a connection's arrival at a sibling's slot until the look
LAST_LOOK = 0.080
HOT = 0.2  # seconds for which a slot stays hot after a steal
BURST = 64  # connections accepted in one go, before the loop turns
NO_DESCRIPTORS = 0.1  # seconds to wait when there are no descriptors left

# Errors that accept(2) passes on from a connection that is broken already; the next one may be well.
OF_THE_CONNECTION = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.EPERM,  # a firewall's word
}

READ = 1

Adopt = Callable[[int, Any, Any], None]


@dataclass
class Listener:
    """A slot as a worker has it: an inherited or received descriptor."""

    fd: int
    address: str
    index: int
    shared: bool

    def open(self) -> _socket.socket:
        # SOCK_NONBLOCK: else CPython would apply the application's socket.setdefaulttimeout() to it.
        family = _socket.AF_UNIX if self.shared else _socket.AF_INET6 if self.address[0] == "[" else _socket.AF_INET
        return _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, 0, self.fd)


def pass_slots(channel: Channel, listeners: list[Listener]) -> None:
    """Give a new master the slots back that an earlier one opened."""
    for start in range(0, len(listeners), FDS):
        some = listeners[start : start + FDS]
        names = [(one.address, one.index, one.shared) for one in some]
        channel.send("slots", tuple(one.fd for one in some), slots=names)


class Slot:
    """A listener that is watched, in one of three ways: own, hot or sibling."""

    __slots__ = ("hot_until", "listener", "local", "own", "socket", "watcher")

    def __init__(self, listener: Listener, loop: Any) -> None:
        self.listener = listener
        self.socket = listener.open()
        self.local = self.socket.getsockname()
        self.watcher = loop.io(listener.fd, READ)
        self.own = False
        self.hot_until = 0.0


class Acceptor:
    """Hands every accepted connection to `adopt(fd, peer, local)`, in the loop. `steal` off: own slots only."""

    def __init__(
        self,
        loop: Any,
        loop_set: LoopSet,
        adopt: Adopt,
        board: Any,
        log: Callable[[str, str], None],
        steal: bool = True,
    ) -> None:
        self._loop = loop
        self._loop_set = loop_set
        self._adopt = adopt
        self._board = board
        self._log = log
        self._complain = Seldom(log)
        self._steal = steal
        self._slots: dict[int, Slot] = {}  # by fd
        self._own: set[int] = set()  # indexes
        self._accepting = False
        self._siblings = epoll()
        self._sibling_watcher = loop.io(self._siblings.fileno(), READ)
        self._look_timer = loop.timer(FIRST_LOOK)
        self._pause_alarm = Alarm(loop, NO_DESCRIPTORS, self._resume)
        self._delay = FIRST_LOOK

    def add(self, listener: Listener) -> None:
        """Know one more slot; it is a sibling's until `own` says otherwise."""
        slot = Slot(listener, self._loop)
        self._slots[listener.fd] = slot
        self._siblings.register(listener.fd, 0)
        if self._accepting:
            self._watch(slot)
            self._arm()

    @property
    def listeners(self) -> list[Listener]:
        return [slot.listener for slot in self._slots.values()]

    def own(self, indexes: Iterable[int]) -> None:
        """Accept: these slots are this worker's own from now on, all others are siblings'."""
        self._own = set(indexes)
        self._accepting = True
        for slot in self._slots.values():
            self._watch(slot)
        if self._steal:
            self._sibling_watcher.start(self._arrived)
        self._arm()

    def rest(self) -> None:
        """Accept nothing until the next `own`, but keep the slots."""
        self._accepting = False
        for watcher in (self._sibling_watcher, self._look_timer):
            watcher.stop()
        self._pause_alarm.clear()
        self._disarm()
        for slot in self._slots.values():
            slot.watcher.stop()

    def stop(self, take_rest: bool = False) -> None:
        """Accept nothing more and let go of the slots. `take_rest`: first take what waits in all the queues."""
        if take_rest:
            for slot in self._slots.values():
                while self._accept(slot, ACCEPTED):
                    pass
        self._accepting = False
        self._look_timer.stop()
        self._pause_alarm.clear()
        self._forget_fd(self._sibling_watcher, self._siblings.fileno())
        self._siblings.close()
        for slot in self._slots.values():
            # The open file lives on in other processes, and so would its place in the loop's epoll set (epoll(7), Q6).
            self._forget_fd(slot.watcher, slot.listener.fd)
            slot.socket.close()
        self._slots.clear()

    def abandon(self) -> None:
        """In a child that the application has forked: neither accept nor hold anything, and leave the parent alone."""
        self._accepting = False
        for watcher in (self._sibling_watcher, self._look_timer, self._pause_alarm):
            watcher.stop()
        self._siblings.close()
        for slot in self._slots.values():
            slot.watcher.stop()
            slot.socket.close()
        self._slots.clear()

    def _forget_fd(self, watcher: Any, fd: int) -> None:
        watcher.stop()
        watcher.close()
        self._loop_set.forget(fd)

    def _watch(self, slot: Slot) -> None:
        slot.own = slot.listener.shared or slot.listener.index in self._own
        if slot.own:
            slot.watcher.start(self._accept_own, slot)
        else:
            slot.watcher.stop()

    # Own slots.

    def _accept_own(self, slot: Slot) -> None:
        for _ in range(BURST):
            if not self._accept(slot, ACCEPTED if slot.own else STOLEN):
                return
            slot.hot_until = self._loop.now() + HOT if not slot.own else 0.0

    def _accept(self, slot: Slot, counter: int) -> bool:
        """Take one connection. False where none waits, or none can be taken now."""
        try:
            fd, peer = slot.socket._accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in OF_THE_CONNECTION:
                return True
            self._pause(error)
            return False
        try:
            os.set_blocking(fd, False)
            self._adopt(fd, "" if slot.listener.shared else peer, slot.local)
        except Exception as error:  # noqa: BLE001
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                os.close(fd)
                self._pause(error)
                return False
            # One odd connection must not cost the slot: gevent stops a watcher whose callback raises.
            self._log("error", f"a connection from {peer!r} could not be taken: {type(error).__name__}: {error}")
            os.close(fd)
        self._board[counter] += 1
        return True

    def _pause(self, error: OSError) -> None:
        """Out of descriptors: the connections keep in the queue, and a sibling may take them."""
        if self._pause_alarm.active:
            return
        self._complain("error", f"cannot accept for the moment: {error.strerror}")
        for slot in self._slots.values():
            slot.watcher.stop()
        self._pause_alarm.set()

    def _resume(self) -> None:
        for slot in self._slots.values():
            self._watch(slot)

    # Siblings' slots.

    def _arm(self) -> None:
        if not self._steal:
            return
        for fd, slot in self._slots.items():
            if not slot.own:
                self._siblings.modify(fd, EPOLLIN | EPOLLONESHOT)

    def _disarm(self) -> None:
        for fd, slot in self._slots.items():
            if not slot.own:
                self._siblings.modify(fd, 0)

    def _arrived(self) -> None:
        """A connection at a sibling's slot: most likely its owner is taking it at this moment. Look later."""
        self._siblings.poll(0, len(self._slots) or 1)
        self._disarm()
        self._look_timer.stop()
        self._look_timer = self._loop.timer(self._delay)
        self._look_timer.start(self._look)

    def _look(self) -> None:
        self._board[LOOKS] += 1
        self._arm()
        stolen = False
        if not self._pause_alarm.active:
            # Most looks find nothing: one call for all slots, which then are armed for the next arrival.
            for fd, _ in self._siblings.poll(0, len(self._slots) or 1):
                slot = self._slots[fd]
                if not slot.watcher.active and self._accept(slot, STOLEN):
                    stolen = True
                    self._heat(slot)
                self._siblings.modify(fd, EPOLLIN | EPOLLONESHOT)
        self._delay = FIRST_LOOK if stolen else min(self._delay * 2, LAST_LOOK)

    def _heat(self, slot: Slot) -> None:
        slot.hot_until = self._loop.now() + HOT
        slot.watcher.start(self._accept_own, slot)
        cooling = self._loop.timer(HOT)
        cooling.start(self._cool, slot, cooling)

    def _cool(self, slot: Slot, timer: Any) -> None:
        timer.close()
        if not self._accepting or slot.own or not slot.watcher.active:
            return
        if slot.hot_until > self._loop.now():
            again = self._loop.timer(slot.hot_until - self._loop.now())
            again.start(self._cool, slot, again)
        else:
            slot.watcher.stop()
