"""What one master gives to another that takes over from it: descriptors, and books. What is written here is read here,
by a master that may be of another version.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reuseport.ipc.channel import Channel
from reuseport.ipc.messages import Lock, Message, Queue, Slots, Yours
from reuseport.master.roster import Remains
from reuseport.master.scrape import ScrapedAt
from reuseport.master.socketfile import Identity

if TYPE_CHECKING:
    from reuseport.master.main import Master


class TakeoverError(Exception):
    """Nothing has been taken over, and nothing has changed. `output`: what the application printed."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


def pass_descriptors(master: Master, channel: Channel) -> None:
    """Slots and hand-over queues, the locks of companions, and the socket for metrics. OSError."""
    master.switchboard.pass_everything(channel)
    for key, lock in master.companions.locks.items():
        channel.send("lock", (lock,), generation=key.generation, number=key.number)
    if metrics := master.telling.estate(lambda fd: fd)["scrape"]:
        channel.send("metrics", (metrics["socket"],), path=metrics["path"], file=metrics["file"])


def write_books(master: Master, of_companions: Mapping[str, Any], fd: int) -> None:
    """What this master has counted and noted, and lies nowhere else, into a file in memory."""
    books = {
        "tally": master.tally.estate(lambda fd: fd),
        "losses": master.losses.estate(lambda fd: fd),
        "numbers": master.numbers.estate(lambda fd: fd),
        "telling": master.telling.estate(lambda fd: fd),
        "jobs": master.releases.ended_jobs(),
        "companions": of_companions,
    }
    with open(fd, "w", encoding="utf-8", closefd=False) as file:
        json.dump(books, file)


@dataclass
class Bequest:
    """What the other master gives. `masters` are the pids of the earlier ones that wait for their last process, and
    `theirs` the addresses that belong to a socket unit. `files` are those of unix sockets, by address. `books` is what
    it has counted and noted; `locks` are those of exclusive companions, and `scraped_at` is where metrics are asked
    for. `ends`: how companions have ended, by pid, which their parent alone has seen, and the other master may not have
    heard any more.

    `bereaved`: it gives nothing, since it has died meanwhile; what it left is to be adopted, and this version released.
    """

    channel: Channel
    bereaved: bool = False
    masters: list[int] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)
    files: Mapping[str, Identity] = field(default_factory=dict)
    slots: list[tuple[str, int, bool, int]] = field(default_factory=list)  # address, index, shared, descriptor
    queues: list[tuple[int, list[int]]] = field(default_factory=list)  # generation, receiving and sending end
    locks: list[tuple[int, int, int]] = field(default_factory=list)  # a companion's key, and the descriptor
    scraped_at: ScrapedAt | None = None
    keeps_metrics: bool = False  # the socket for them is the other master's
    books: Mapping[str, Any] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        return list(dict.fromkeys(address for address, *_ in self.slots))

    def take(self, message: Message, fds: list[int]) -> None:
        """What the other master has sent of it."""
        if isinstance(message, Slots):
            self.slots += [(*name, fd) for name, fd in zip(message.slots, fds, strict=True)]
        elif isinstance(message, Queue):
            self.queues.append((message.generation, fds))
        elif isinstance(message, Lock):
            self.locks.append((message.generation, message.number, fds[0]))
        elif isinstance(message, Yours):
            self.masters[:0] = message.masters
            self.theirs = list(message.theirs)
            self.files = message.files
            if fds:
                with open(fds[0], encoding="utf-8") as books:
                    books.seek(0)
                    self.books = json.load(books)

    def settled(self, remains: Remains) -> Remains:
        """What the roster tells. The probation of what serves is over: the other master has waited for that."""
        survivors = tuple(
            replace(one, release=replace(one.release, probation=0.0)) for one in remains.adopted.survivors
        )
        return replace(remains, adopted=replace(remains.adopted, survivors=survivors))

    def enter_early(self, master: Master) -> None:
        """Give a new master its slots, before it binds any, and the companions' part before they are looked at.

        TakeoverError where that cannot be read.
        """
        for slot in self.slots:
            master.slots.adopt(*slot, theirs=slot[0] in self.theirs)
        master.slots.own(self.files)
        with self._reading("companions"):
            master.companions.inherit({"locks": self.locks, **self.books.get("companions", {"outputs": ()})})

    def enter_counts(self, master: Master) -> None:
        """Let a new master go on from what was counted and noted, before it adds anything. TakeoverError likewise."""
        self._enter(tally=master.tally.inherit, losses=master.losses.inherit, jobs=master.releases.know_of)

    def enter(self, master: Master) -> None:
        """Give each of its other parts its own. TakeoverError where one cannot be read."""
        for generation, ends in self.queues:
            master.switchboard.adopt_queue(generation, ends)
        for pid in self.masters:
            master.predecessors.watch(pid)
        self._enter(numbers=master.numbers.go_on_from, telling=master.telling.go_on_from)

    def _enter(self, **readers: Callable[[Any], None]) -> None:
        for name, read in readers.items():
            if name in self.books:
                with self._reading(name):
                    read(self.books[name])

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise TakeoverError(
                f"what master {self.masters[-1]} leaves of its {name} is not what this version reads "
                f"({type(error).__name__}: {error}); it goes on, and has this version of the application by now"
            ) from error

    def accept(self) -> None:
        """Say that this is the master now."""
        self.channel.send("mine", metrics=self.keeps_metrics)  # unheard by one that has died
        self.channel.close()
