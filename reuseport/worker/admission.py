"""Whether a worker may begin a request: not one that has ended workers (`core/quarantine.py`).

The master alone decides what is in quarantine. A worker only waits for that decision: a request that a dead sibling was
running is *held* until the master has collected that death. A worker looks for dead siblings just before the
application gets a request (`ipc/inflight.py` says why it cannot miss one). An earlier look would not do: a request can
wait for a thread, or behind another of its connection, while siblings die. While nothing has changed, that look is a
comparison of bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from gevent import monkey

from ..ipc.inflight import BEGUN, NAMELESS, InFlight, Row, Seat, nowhere
from ..ipc.scoreboard import ROWS

PATIENCE = 2.0  # seconds that a request is held for a master that does not answer
PAUSE = 0.001  # seconds between two looks of a held request
TRIES = 3  # at a table that changes while it is read

Application = Callable[..., Iterable[bytes]]


class Admission:
    """`alert`: something is suspected, so each request must be looked at.

    `pause(seconds)` waits in the request's greenlet or thread; `has_master()`: whether a death would be collected;
    `refused()` counts. Without `shared` nothing is noted and nothing is refused.
    """

    def __init__(
        self,
        shared: InFlight | None = None,
        index: int = 0,
        generation: int = 0,
        *,
        pause: Callable[[float], Any] = time.sleep,
        has_master: Callable[[], bool] = lambda: True,
        exempt: str | None = None,
    ) -> None:
        self.alert = False
        self._shared = shared
        self._row: Row | None = shared.row(index) if shared else None
        self._generation = generation
        self._pause = pause
        self._has_master = has_master
        self._exempt = exempt
        self._learning = monkey.get_original("_thread", "allocate_lock")()
        # What is compared before each request, see `begin`.
        self.memory: Any = shared.memory if shared else b""
        self.window = slice(0, 0)
        self.known = b""
        self._held: frozenset[bytes] = frozenset()
        self._refused: dict[bytes, float] = {}
        self._suspects: dict[bytes, tuple[int, int]] = {}

    def take(self) -> Seat:
        """Where a greenlet or thread notes the request that it has."""
        return self._row.take() if self._row else nowhere()

    def leave(self, seat: Seat) -> None:
        """It has none any more."""
        if self._row:
            self._row.leave(seat)

    def begin(self) -> None:
        """From now on requests are clients': a warm-up is never refused, or no worker could take a dead one's place."""
        if self._shared is not None:
            self.window = self._shared.window()
            self.learn()

    def look(self) -> None:
        """Notice deaths and decisions."""
        if self.memory[self.window] != self.known:
            self.learn()

    def admit(self, name: bytes, application: Application, environ: dict[str, Any]) -> tuple[bytes, Application]:
        """What to note, and what answers: the application, or a refusal. Waits while the request is held."""
        if self._exempt is not None and environ["PATH_INFO"] == self._exempt:
            return name, application
        deadline = time.monotonic() + PATIENCE
        while name in self._held and self._has_master() and time.monotonic() < deadline:
            self._pause(PAUSE)
            self.look()
        left = self._refused.get(name, 0.0) - time.monotonic()
        return (name, application) if left <= 0 else (NAMELESS, Refusal(left))

    def answered(self, name: bytes) -> None:
        """A request of this name was answered."""
        if self._shared is not None and (found := self._suspects.pop(name, None)):
            self._shared.answer(*found)

    def learn(self) -> None:
        """Read all deaths and decisions: something has changed."""
        # One thread at a time, or a slow one would put back what another has read since.
        with self._learning:
            if self._shared is not None and self.memory[self.window] != self.known:
                self._learn(self._shared)

    def _learn(self, shared: InFlight) -> None:
        for _ in range(TRIES):
            self.window = shared.window()
            known = shared.memory[self.window]
            # In this order: the master publishes what follows from a death before it takes the mark away.
            dead = [index for index in range(min(shared.count, ROWS)) if shared.is_dead(index)]
            held: set[bytes] = set()
            for index in dead:
                owner = shared.owner(index)
                if owner is not None and owner.generation == self._generation:
                    held |= shared.names(index, *BEGUN)
            entries = shared.entries().items()
            settled = shared.is_settled(known) and shared.memory[self.window] == known
            if settled:
                break
        ours = [(index, entry) for index, entry in entries if entry.generation == self._generation]
        # In this order: a thread that sees that its request is not held any more must see whether it is refused.
        self._refused = {entry.name: entry.until for _, entry in ours if entry.until}
        self._held = frozenset(held)
        self._suspects = {entry.name: (index, entry.number) for index, entry in ours if not entry.answered}
        self.alert = bool(self._held or ours)
        self.known = known if settled else b""


class Refusal:
    """The application that answers in the place of the user's: 503, and when to come again."""

    def __init__(self, seconds: float) -> None:
        self._seconds = math.ceil(seconds)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        body = (
            f"503 Service Unavailable: workers have died while they answered this request. It is refused for "
            f"{self._seconds} s.\n".encode()
        )
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
        headers += [("Retry-After", str(self._seconds)), ("Cache-Control", "no-store")]
        start_response("503 Service Unavailable", headers)
        return [body]
