"""Telling the supervisor (sd_notify(3)): ready, releasing, stopping, alive, and what a drain waits for.

What is said follows from the cluster alone: `what_to_say` compares it with what has been said already. The supervisor
is told and never waited for: one that reads slowly gets it later, and one that has gone is not missed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from reuseport.core.model import CANARY, DRAINING, SERVING, Cluster
from reuseport.master.loop import Loop
from reuseport.master.passed import STORED, Supervision
from reuseport.options.arguments import one_line

STATUS = 480  # bytes of a status line at most
BEAT = 10.0  # seconds between two requests for more time, while a boot, a release or a stop goes on
PATIENCE = 60.0  # seconds that are asked for each time
AGAIN = 0.05  # seconds until what the supervisor's queue had no room for is tried again
FDS = 253  # descriptors in one message at most (SCM_MAX_FD)


class Said(NamedTuple):
    """What the supervisor has been told. `asked` counts the releases that were asked for by then."""

    ready: bool = False
    releasing: bool = False
    stopping: bool = False
    asked: int = 0
    status: str = ""


def what_to_say(cluster: Cluster, asked: int, status: str, before: Said, now: float) -> tuple[Said, list[str]]:
    """What has been said then, and the datagrams that say it. `now` is in seconds of CLOCK_MONOTONIC.

    A release that is refused at once has begun and ended: `systemctl reload` waits for both words (Type=notify-reload).
    One on probation has not ended, as for every other asker.
    """
    if cluster.leaving:
        words = [] if before.stopping else ["STOPPING=1"]
        return _with_status(before._replace(stopping=True), status, words)
    serving = cluster.serving
    ready = before.ready or serving is not None
    under_way = cluster.booting is not None or cluster.pending is not None
    on_probation = before.releasing and serving is not None and serving.on_probation(now)
    releasing = before.ready and (under_way or on_probation)
    words = []
    if before.ready and (asked != before.asked or (releasing and not before.releasing)):
        words.append(f"RELOADING=1\nMONOTONIC_USEC={int(now * 1e6)}")
    if ready and not releasing and (words or before.releasing or not before.ready):
        words.append(f"READY=1\nMAINPID={os.getpid()}")
    return _with_status(before._replace(ready=ready, releasing=releasing, asked=asked), status, words)


def _with_status(said: Said, status: str, words: list[str]) -> tuple[Said, list[str]]:
    if status == said.status:
        return said, words
    # With the last word, in one datagram: who waits for that sees this with it.
    return said._replace(status=status), [*words[:-1], "\n".join([*words[-1:], f"STATUS={status}"])]


def status_line(cluster: Cluster, waits_for: Callable[[int], tuple[int, list[str]]]) -> str:
    """What serves, and what each drain waits for: `waits_for(generation)` gives requests, and jobs in words.

    No ages: it would change with each second. No line break, whatever a job is called: the next line would be another
    word to the supervisor.
    """
    parts = []
    for g in [*cluster.having(SERVING), *cluster.having(CANARY), *reversed(cluster.having(DRAINING))]:
        name = f"generation {g.number}" + (f" ({g.release.recipe['label']})" if g.release.recipe.get("label") else "")
        if g.state != DRAINING:
            parts.append(f"{name} {'serves' if g.state == SERVING else 'is on trial'}")
            continue
        requests, jobs = waits_for(g.number)
        what = [f"{requests} request{'s' if requests != 1 else ''}"] if requests else []
        parts.append(f"{name} drains: {', '.join([*what, *jobs])}" if what or jobs else f"{name} is leaving")
    if g := cluster.booting:
        parts.append(f"generation {g.number} is {g.state}")
    if cluster.leaving:
        parts.insert(0, "stopping")
    line = one_line("; ".join(parts)).encode(errors="replace")
    return line.decode() if len(line) <= STATUS else line[: STATUS - 3].decode(errors="ignore") + "..."


class Notifier:
    """Without a notification socket nothing here does anything."""

    def __init__(self, supervision: Supervision, loop: Loop, log: Callable[[str, str], None]) -> None:
        self._loop = loop
        self._log = log
        self._said = Said()
        self._cluster: Cluster | None = None
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._stored: set[int] | None = None  # None: what an earlier master stored is there
        self._supervision = supervision
        self._socket: socket.socket | None = None
        self._address: str | bytes = supervision.notify
        if not supervision.notify:
            return
        if supervision.notify.startswith("@"):
            self._address = b"\0" + os.fsencode(supervision.notify[1:])
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if supervision.watchdog:
            self._watch(supervision.watchdog / 2)
        loop.later(0.0, self._ask_for_time)

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec; `lend(fd)` lets a descriptor live through it."""
        return {
            "supervision": self._supervision._replace(sockets=())._asdict(),  # they are slots by now
            "said": self._said._asdict(),
            "stored": None if self._stored is None else sorted(self._stored),
            "unsent": [(data.decode("latin-1"), [lend(fd) for fd in fds]) for data, fds in self._unsent],
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        """What was said need not be said again. The slots keep their numbers, by which those in the store are known."""
        self._said = Said(**{name: value for name, value in left["said"].items() if name in Said._fields})
        self._stored = None if left["stored"] is None else set(left["stored"])
        self._unsent.extendleft((data.encode("latin-1"), fds) for data, fds in reversed(left["unsent"]))
        if self._unsent:
            self._flush()

    def look(self, cluster: Cluster, asked: int, status: Callable[[], str], now: float, *, fully: bool = False) -> None:
        """Say what is new. `fully`: look also at what changes without the cluster, such as requests that end."""
        if self._socket is None or (cluster is self._cluster and asked == self._said.asked and not fully):
            return
        self._cluster = cluster
        self._said, words = what_to_say(cluster, asked, status(), self._said, now)
        for word in words:
            self._send(word)

    def store(self, sockets: Iterable[socket.socket]) -> None:
        """Let the supervisor keep these, until the next master, in the place of whatever it has kept before."""
        if self._socket is None or not self._supervision.store:
            return
        if self._stored is None:
            self._stored = set()
            self._send(f"FDSTOREREMOVE=1\nFDNAME={STORED}")
        new = [one.fileno() for one in sockets if one.fileno() not in self._stored]
        self._stored.update(new)
        for start in range(0, len(new), FDS):
            self._send(f"FDSTORE=1\nFDNAME={STORED}", new[start : start + FDS])

    def retire(self, status: str) -> None:
        """Another master has taken over. The unit stays active: while it is not said to stop no clock runs against the
        jobs that it waits for. What the supervisor keeps is the other's to give."""
        if self._socket is None:
            return
        if self._supervision.store:
            self._send(f"FDSTOREREMOVE=1\nFDNAME={STORED}")
        self._said = Said(ready=True, status=status)
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """It leaves as soon as it can, and asks for time until then."""
        if self._socket is not None and not self._said.stopping:
            self._said = self._said._replace(stopping=True)
            self._send("STOPPING=1")

    def _watch(self, seconds: float) -> None:
        """A loop that does not turn any more does not say so, either."""
        self._loop.later(seconds, lambda: self._watch(seconds))
        self._repeat("WATCHDOG=1")

    def _ask_for_time(self) -> None:
        """What goes on has limits of its own (--boot-timeout, --graceful-timeout), and jobs have none."""
        self._loop.later(BEAT, self._ask_for_time)
        quick = self._cluster is not None and self._cluster.stopping == "quick"
        if not quick and (self._said.stopping or self._said.releasing or not self._said.ready):
            self._repeat(f"EXTEND_TIMEOUT_USEC={int(PATIENCE * 1e6)}")

    def _repeat(self, text: str) -> None:
        """What is said again and again need not be kept for somebody who does not listen now."""
        if not self._unsent:
            self._send(text)

    def _send(self, text: str, fds: list[int] | None = None) -> None:
        if text.startswith("STATUS=") and self._unsent:
            self._said = self._said._replace(status="")  # the next one will do
            return
        self._unsent.append((text.encode(errors="replace"), fds or []))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        assert self._socket is not None
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                # Not socket.send_fds, which forgets the address.
                passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                self._socket.sendmsg([data], passed, 0, self._address)
            except BlockingIOError:
                self._loop.later(AGAIN, self._flush)
                return
            except OSError as error:
                self._log("debug", f"the supervisor could not be told {data!r}: {error.strerror}")
            self._unsent.popleft()

    def close(self) -> None:
        """The last word may still lie here; what the supervisor does not take now is not needed any more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._flush()
            self._socket.close()
            self._socket = None
