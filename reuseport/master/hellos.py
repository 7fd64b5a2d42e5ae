"""The socket at which processes say hello, and the connections on which none has said it yet.

Any process of the workers' user can connect here, and send what it likes or nothing. So what a connection can cost is
bounded before its first message has been believed: how many there are, of each user and in all; how long the first
message takes; how many are accepted before the loop has another turn; and what comes along with that message.

The first message is believed only from the process that connected. A process can pass its socket on, execute a program
of another user's, or exit and leave its pid to another one. The kernel says who sent the message (SCM_CREDENTIALS), and
gives a pidfd of the process that connected (`peers.py`).
"""

from __future__ import annotations

import _socket
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from reuseport.ipc import channel as channels
from reuseport.ipc.channel import Channel
from reuseport.ipc.messages import HELLOS, Message
from reuseport.master.loop import Loop
from reuseport.master.peers import Peer, peer_of

AT_ONCE = 64  # connections that are accepted in one turn of the loop
TURN = 0.1  # seconds in which their first messages are heard. Those that wait then are heard in the next turns
PER_USER = 128  # connections of one user that may wait for their first message
IN_ALL = 256  # likewise, of all users
FIRST_MESSAGE = 5.0  # seconds from the accept to the first message. A process sends it right after it has connected
REPEATED = 60.0  # seconds in which the log tells once of each reason

# Why a connection was closed. These are the values of a metric's label.
USER = "user"  # another user's
CROWD = "crowd"  # too many waited, and this one for longest
SILENT = "silent"  # it sent nothing in time
MALFORMED = "malformed"  # its first message was none, or brought descriptors that it must not bring
IMPOSTOR = "impostor"  # its first message was not from, or not about, the process that connected
REASONS = (USER, CROWD, SILENT, MALFORMED, IMPOSTOR)


@dataclass(frozen=True)
class _Waiting:
    pid: int
    uid: int
    since: float  # when it was accepted, in seconds of CLOCK_BOOTTIME
    deadline: float  # monotonic seconds


class Hellos:
    """`heard` gets each first message that came from the process which had connected. The channel, the peer's pidfd and
    the descriptors are its own from then on. `trusted` are the users that may connect. `refused` gets the reason
    for each connection that is closed. `cannot_hear` gets the error while no descriptor is left for a connection."""

    def __init__(
        self,
        listener: _socket.socket,
        trusted: Collection[int],
        loop: Loop,
        heard: Callable[[Channel, Peer, Message, list[int]], None],
        log: Callable[[str, str], None],
        refused: Callable[[str], None],
        cannot_hear: Callable[[OSError], None],
    ) -> None:
        self._trusted = trusted
        self._loop = loop
        self._heard = heard
        self._log = log
        self._refused = refused
        self._cannot_hear = cannot_hear
        self._waiting: dict[Channel, _Waiting] = {}  # the oldest first
        self._quiet_until: dict[str, float] = {}  # by reason, monotonic seconds
        self._expiring = False
        self.listen(listener)

    def listen(self, listener: _socket.socket) -> None:
        """Accept from this socket."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._on_connections)

    @property
    def waiting(self) -> int:
        """How many connections wait for their first message."""
        return len(self._waiting)

    def greet(self, channel: Channel) -> None:
        """Wait for the hello of a process that connected to the socket before this object was there. The loop hears it,
        when the survivors of an earlier master have been adopted."""
        self._await(channel)

    def hear_last(self, pid: int) -> None:
        """Hear the hello of a process that has died, wherever it waits."""
        self._accept(channels.BACKLOG)
        for channel, one in list(self._waiting.items()):
            if one.pid == pid and channel in self._waiting:
                self._hear(channel)
        self._make_room()

    def refuse(self, channel: Channel, reason: str, why: str) -> None:
        """Close a connection and count it. `why` goes into the log, unless that has told of this reason lately."""
        self._forget(channel)
        channel.close()
        self._refused(reason)
        now = time.monotonic()
        if now >= self._quiet_until.get(reason, 0.0):
            self._quiet_until[reason] = now + REPEATED
            self._log("warning", f"a connection to hello.sock was closed: {why}")

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """The state that the master needs after an exec; `lend(fd)` lets a descriptor live through it."""
        return {
            "hellos": lend(self._listener.fileno()),
            "strangers": [(channel.estate(lend), one.pid) for channel, one in self._waiting.items()],
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        """Their time begins anew."""
        for one, _ in left["strangers"]:
            self._await(channels.inherited(one))

    def leave(self) -> None:
        """Close the socket and every connection: another master hears them."""
        for channel in list(self._waiting):
            self._forget(channel)
            channel.close()
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()

    # --- accept -------------------------------------------------------------------------------------------------------

    def _on_connections(self) -> None:
        end = math.inf
        for channel in self._accept(AT_ONCE):
            if channel in self._waiting and time.monotonic() < end:
                self._hear(channel)  # the hello has most often arrived together with the connection
                end = min(end, time.monotonic() + TURN)
        self._make_room()

    def _accept(self, most: int) -> list[Channel]:
        accepted: list[Channel] = []
        for _ in range(most):
            try:
                channel = channels.accept(self._listener)
            except OSError as error:
                self._cannot_hear(error)
                self._loop.rest(self._listener.fileno())
                break
            if channel is None:
                break
            self._await(channel)
            accepted.append(channel)
        return accepted

    def _await(self, channel: Channel) -> None:
        pid, uid = channel.peer()
        if uid not in self._trusted:
            self.refuse(channel, USER, f"process {pid} is of user {uid}")
            return
        channel.ask_for_senders(True)
        since = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._waiting[channel] = _Waiting(pid, uid, since, time.monotonic() + FIRST_MESSAGE)
        self._loop.watch(channel.fileno(), lambda: self._hear(channel))
        if not self._expiring:
            self._expiring = True
            self._loop.later(FIRST_MESSAGE, self._expire)

    def _make_room(self) -> None:
        """Close the connections that have waited for longest, those first whose user has the most."""
        while self._waiting:
            uid, most = Counter(one.uid for one in self._waiting.values()).most_common(1)[0]
            if most <= PER_USER and len(self._waiting) <= IN_ALL:
                return
            oldest = next(channel for channel, one in self._waiting.items() if one.uid == uid)
            self._hear(oldest)  # `hear_last` accepts without reading
            if oldest not in self._waiting:
                continue
            self.refuse(oldest, CROWD, f"{most} of user {uid} wait without a first message; at most {PER_USER} may")

    def _expire(self) -> None:
        now = time.monotonic()
        try:
            for channel, one in list(self._waiting.items()):
                if one.deadline > now:
                    break
                self._hear(channel)  # a busy loop may not have read what arrived in time
                if self._waiting.get(channel) is one:
                    self.refuse(channel, SILENT, f"process {one.pid} has sent nothing for {FIRST_MESSAGE:g} s")
        finally:
            self._expiring = bool(self._waiting)
            if self._waiting:
                first = min(one.deadline for one in self._waiting.values())
                self._loop.later(max(0.0, first - now), self._expire)

    # --- hear ---------------------------------------------------------------------------------------------------------

    def _hear(self, channel: Channel) -> None:
        one = self._waiting[channel]
        try:
            # Before the message is taken: without a descriptor for its sender it has to wait.
            peer = peer_of(channel, one.since)
        except OSError as error:
            self._cannot_hear(error)
            self._postpone(channel, one)
            return
        messages = channel.receive(HELLOS, 1)
        if channel.fault is not None:
            peer.close()
            self.refuse(channel, MALFORMED, f"process {one.pid} sent a malformed message: {channel.fault}")
            return
        if not messages:
            peer.close()
            if channel.closed:
                self._forget(channel)
                channel.close()
            return
        self._forget(channel)
        [(hello, fds)] = messages
        if channel.sender != peer.pid:
            peer.close()
            for fd in fds:
                os.close(fd)
            why = f"process {channel.sender} spoke for process {peer.pid}, which had connected"
            self.refuse(channel, IMPOSTOR, why)
            return
        channel.ask_for_senders(False)
        self._heard(channel, peer, hello, fds)

    def _postpone(self, channel: Channel, one: _Waiting) -> None:
        """The master is to blame, so the connection gets its time anew."""
        del self._waiting[channel]
        self._waiting[channel] = replace(one, deadline=time.monotonic() + FIRST_MESSAGE)
        self._loop.rest(channel.fileno())

    def _forget(self, channel: Channel) -> None:
        if self._waiting.pop(channel, None) is not None:
            self._loop.forget(channel.fileno())
