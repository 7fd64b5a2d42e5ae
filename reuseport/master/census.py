"""Which processes of an earlier master live, where no roster can be relied on: they are asked.

On a full disk the roster could not be written, so it lacks what was begun since. Or it is damaged. A zygote, a worker
or a job's process that has lost its master says hello every second to the socket in the run directory. So a master that
begins listens there before it decides. It waits until each process that has the directory's lock
(`RunDir.inhabitants`) has said hello, but not longer than PATIENCE.

A hello comes from the workers' user, so it names no path and no program that root then uses. It only says the number of
its generation. Which version that was is read from the older roster or from the history. A generation that neither of
them knows is adopted as one of the configured version. It serves until that version has been released, and drains.
"""

from __future__ import annotations

import _socket
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from reuseport.core.events import Adopted, Survivor
from reuseport.core.model import ACCEPTING, ATTENDING, LEAVING, NOWHERE, WORKING, ZYGOTE, Key, Release
from reuseport.ipc import channel as channels
from reuseport.ipc.channel import Channel
from reuseport.ipc.inhabitants import start_time
from reuseport.ipc.messages import Hello, Malformed, decoded
from reuseport.ipc.rundir import RunDir
from reuseport.master.listening import Written
from reuseport.master.roster import Remains

PATIENCE = 5.0  # seconds for the processes of an earlier master to say hello
LOOK = 0.1  # seconds between two looks whether those that are silent still live
AHEAD = 1000  # generations that may have been released since the roster or the history was written
MOST = 8192  # connections

# What a process says that it does, and its state for the core. A worker that never served ends without a master.
STATES = {"serving": ACCEPTING, "draining": LEAVING, "working": WORKING, "loaded": "loaded"}


class Heard(NamedTuple):
    """A process that has said hello."""

    pid: int
    key: Key
    state: str
    slots: tuple[tuple[str, int], ...] = ()
    start: int = 0  # see `inhabitants.start_time`


@dataclass
class Census:
    """`heard` are the processes that have said hello at the socket `hellos`, and `silent` the pids of the others. The
    hellos still wait in the `channels`, unread."""

    hellos: _socket.socket
    heard: list[Heard] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)


def ask(run_dir: RunDir, hellos: _socket.socket, trusted: frozenset[int], patience: float = PATIENCE) -> Census:
    """Listen until each process has said hello. `trusted` are the users whose processes are heard."""
    found = Census(hellos)
    awaited = run_dir.inhabitants()
    unheard: dict[int, Channel] = {}
    deadline = time.monotonic() + patience
    while True:
        while len(found.channels) < MOST and (channel := channels.accept(hellos)) is not None:
            if channel.peer()[1] in trusted:
                unheard[channel.fileno()] = channel
                found.channels.append(channel)
            else:
                channel.close()
        for fd, channel in list(unheard.items()):
            data = channel.peek()
            if data is not None:
                del unheard[fd]
                pid = channel.peer()[0]
                awaited.pop(pid, None)
                if heard := _heard(pid, data):
                    found.heard.append(heard)
        awaited = {pid: start for pid, start in awaited.items() if start_time(pid) == start}
        left = deadline - time.monotonic()
        if not awaited or left <= 0:
            found.silent = sorted(awaited)
            return found
        ready = select.poll()
        for fd in (hellos.fileno(), *unheard):
            ready.register(fd, select.POLLIN)
        ready.poll(min(left, LOOK) * 1000)


def _heard(pid: int, data: bytes) -> Heard | None:
    """What a hello says; None for any other message. The descriptors of a hello are not looked at here."""
    try:
        said = decoded(data)
        if said.get("type") != Hello.kind:
            return None
        hello = Hello.parse(said, 2 if said.get("queue") is True else 0)
    except Malformed:
        return None
    if hello.state not in STATES:
        return None
    key = Key(hello.generation, hello.number)
    fits = {"loaded": key.number == ZYGOTE, "working": key.is_job}.get(hello.state, key.number > 0 and not key.is_job)
    if not fits or key.generation == 0 or key.is_companion:
        return None
    slots = tuple((address, index) for address, index, _ in hello.slots)
    return Heard(pid, key, hello.state, slots, start_time(pid))


def joined(
    stale: Remains | None, heard: list[Heard], recorded: Callable[[int], Release | None], otherwise: Release, last: int
) -> tuple[Remains | None, bool]:
    """The remains of an earlier master, from an older roster and from the hellos; None where nothing lives.

    `recorded(generation)` is what the history knows, `otherwise` the configured release, `last` the highest generation
    that the history knows. Also whether a generation was found that only `otherwise` stands for.
    """
    before = stale.adopted if stale else Adopted((), 0, 0)
    survivors = {one.key: one for one in before.survivors}
    rows = dict(stale.rows) if stale else {}
    releases = dict(stale.releases) if stale else {}
    starts = dict(stale.starts) if stale else {}
    unknown = False
    highest = max(before.last, last)
    taken: set[Key] = set()
    for one in sorted(heard):
        key = one.key
        if key in taken or key.generation > highest + AHEAD:
            continue
        taken.add(key)
        known = survivors.get(key)
        if known is not None and known.pid == one.pid:
            if one.state == "draining" and known.state != ATTENDING:
                survivors[key] = replace(known, state=LEAVING)
            continue
        if (release := releases.get(key.generation) or recorded(key.generation)) is None:
            release, unknown = otherwise, True
        releases[key.generation] = release
        survivors[key] = Survivor(key, one.pid, release, STATES[one.state], NOWHERE)
        rows[key] = -1
        starts[one.pid] = one.start
    if not survivors:
        return None, False
    _place(survivors)
    slots = dict.fromkeys((*(stale.slots if stale else ()), *(slot for one in heard for slot in one.slots)))
    adopted = replace(
        before, survivors=tuple(survivors.values()), last=max(highest, *(key.generation for key in survivors))
    )
    known_before = stale.written if stale else Written()
    # The socket of a slot that no roster has is not known by its cookie.
    written = Written({**dict.fromkeys(slots, 0), **known_before.cookies}, known_before.files)
    found = Remains(adopted, rows, tuple(slots), (), {}, releases, starts=starts, written=written)
    if stale:
        found = replace(found, gone=stale.gone, name=stale.name)
    return found, unknown


def _place(survivors: dict[Key, Survivor]) -> None:
    """Give the workers without a place the lowest ones that are free in their generation."""
    taken: dict[int, set[int]] = {}
    for one in survivors.values():
        taken.setdefault(one.key.generation, set()).add(one.place)
    for key, one in sorted(survivors.items()):
        if one.place == NOWHERE and not key.is_job:
            if key.number == ZYGOTE or key.is_companion:
                survivors[key] = replace(one, place=0)
                continue
            place = next(
                n for n in range(len(survivors) + len(taken[key.generation])) if n not in taken[key.generation]
            )
            taken[key.generation].add(place)
            survivors[key] = replace(one, place=place)


def trusted(ids: tuple[int, int] | None) -> frozenset[int]:
    """The users whose processes may be this server's."""
    return frozenset({0, os.geteuid(), ids[0] if ids else os.geteuid()})
