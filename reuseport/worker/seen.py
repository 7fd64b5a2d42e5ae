"""Tells the master which tenants this worker has seen, so that an operator who mistypes a name is told so.

A name is told once, and at once if none was told within the last EVERY seconds. A client can make up a name for each
request, so a worker remembers MOST names, and then says that there are more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from reuseport.worker.alarm import Alarm

EVERY = 0.05  # seconds
MOST = 20_000  # names
LETTERS = 4000  # of the names in one message: as JSON each takes 12 bytes at most (`channel.PACKET`)


class SeenTenants:
    """`say(kind, **fields)` speaks to the master. `has_room()`: whether a message is sent at once; if not, `tell` has
    to be called again when there is room. All of it runs in the loop."""

    def __init__(self, loop: Any, say: Callable[..., None], has_room: Callable[[], bool]) -> None:
        self.names: set[str] = set()
        self._say = say
        self._has_room = has_room
        self._untold: deque[str] = deque()
        self._news = False  # something else than names is to be told
        self._more = False
        self._told_at = float("-inf")
        self._alarm = Alarm(loop, EVERY, self.tell)

    def note(self, tenant: str) -> None:
        """A request of a tenant that is not among `names` has come."""
        if len(self.names) < MOST:
            self.names.add(tenant)
            self._untold.append(tenant)
        elif self._more:
            return
        else:
            self._more = self._news = True
        if time.monotonic() >= self._told_at + EVERY:
            self.tell()
        else:
            self._alarm.set()

    def again(self) -> None:
        """The process has said hello: repeat everything. Without a name the message says that this worker tells."""
        self._untold = deque(self.names)
        self._news = True
        self.tell()

    def tell(self) -> bool:
        """Tell what is new. False where the channel has no room for all of it."""
        self._alarm.clear()
        self._told_at = time.monotonic()
        while self._untold or self._news:
            if not self._has_room():
                return False
            batch: list[str] = []
            letters = LETTERS
            while self._untold and letters >= len(self._untold[0]):
                letters -= len(self._untold[0])
                batch.append(self._untold.popleft())
            self._news = False
            self._say("seen", tenants=batch, more=self._more)
        return True

    def abandon(self) -> None:
        """In a child that the application has forked."""
        self._alarm.stop()
