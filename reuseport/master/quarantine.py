"""Requests that end workers: counts deaths, publishes what is in quarantine, and tells of it.

What is known lies in the file that workers map (`ipc/inflight.py`), so that the next master goes on with it, whichever
way it came. `core/quarantine.py` has the rule.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from reuseport.core import quarantine as rule
from reuseport.core.model import Key
from reuseport.core.quarantine import Death, Kind, Suspect
from reuseport.ipc.inflight import ANSWERED, BEGUN, COUNTED, ENTRIES, RUNNING, Entry, InFlight, described
from reuseport.master.losses import WITHOUT_MASTER
from reuseport.master.processes import Process, Processes, is_ending

HIGHEST = 1 << 63  # no number of an entry comes near it
LONGEST = 1e9  # seconds: no option takes a longer time
SHOWN = 5  # requests of a dead worker that the log names


class Quarantine:
    """`seconds()`: how long a quarantine lasts, 0 for none. `log(level, text)`."""

    def __init__(
        self,
        shared: InFlight,
        processes: Processes,
        seconds: Callable[[], float],
        log: Callable[[str, str], None],
    ) -> None:
        self._shared = shared
        self._processes = processes
        self._seconds = seconds
        self._log = log
        self._book: dict[Kind, Suspect] = {}
        self._places: dict[Kind, tuple[int, int]] = {}  # in the table, and the entry's number
        self._last = 0
        self.read_again()

    def read_again(self) -> None:
        """Go on with what is published: another master may have written it, and so may a worker."""
        now = time.monotonic()
        entries = {at: entry for at, entry in self._shared.entries().items() if _is_possible(entry, now)}
        self._places = {(entry.generation, entry.name): (at, entry.number) for at, entry in entries.items()}
        self._book = {
            (entry.generation, entry.name): Suspect(entry.last, frozenset(), entry.proven, entry.headed, entry.until)
            for entry in entries.values()
        }
        self._last = max((entry.number for entry in entries.values()), default=0)

    # --- rows -------------------------------------------------------------------------------------------------------

    def give(self, row: int, key: Key) -> None:
        """The row is that worker's, which is about to be forked."""
        try:
            self._shared.give(row, key)
        except OSError as error:
            self._log("error", f"worker {key}: its requests are not noted for --quarantine: {error.strerror}")

    def of(self, process: Process, how: str) -> None:
        """A process has ended. Its row is still its own."""
        if process.row >= 0 and self._shared.owner(process.row) == process.key:
            if not process.dismissed:
                self._tell_of_death(process.row, process.key, how)
                self._count(process.key.generation, [process.row])
            self._shared.give(process.row, None)  # now, so that workers find the decision when the mark has gone

    def of_the_dead(self, survivors: Collection[int]) -> None:
        """Count those who died while there was no master. `survivors` are the rows of the others."""
        dead: dict[int, list[int]] = {}
        for row in range(self._shared.count):
            owner = self._shared.owner(row)
            if owner is not None and row not in survivors:
                self._tell_of_death(row, owner, WITHOUT_MASTER)
                dead.setdefault(owner.generation, []).append(row)
        for generation, rows in dead.items():
            self._count(generation, rows)
            for row in rows:
                self._shared.give(row, None)

    def _count(self, generation: int, rows: list[int]) -> None:
        """Count the deaths in these rows as one, together with those of this generation that will be collected next."""
        shared, seconds = self._shared, self._seconds()
        if not seconds or not any(shared.names(row, *BEGUN) for row in rows):
            return
        self._hear()
        living = []
        for other in self._processes.all():
            if other.row >= 0 and other.row not in rows and other.key.generation == generation and other.pid:
                if not shared.is_dead(other.row) and not is_ending(other.pid):
                    living.append(other)
                elif not other.dismissed:
                    rows = [*rows, other.row]
        running = names_of(shared, rows, *BEGUN)
        elsewhere: dict[bytes, frozenset[Key]] = {}
        for other in living:
            for name in running & shared.names(other.row, *BEGUN):
                elsewhere[name] = elsewhere.get(name, frozenset()) | {other.key}
        ran: dict[bytes, frozenset[Key]] = {}
        for row in rows:
            if owner := shared.owner(row):
                for name in shared.names(row, *BEGUN):
                    ran[name] = ran.get(name, frozenset()) | {owner}
        death = Death(
            generation,
            running,
            names_of(shared, [*rows, *(other.row for other in living)], ANSWERED),
            elsewhere,
            headed=running - names_of(shared, rows, RUNNING),
            ran=ran,
        )
        before, now = self._book, time.monotonic()
        self._book = rule.died(before, death, now, seconds)
        self._publish()
        for row in rows:
            shared.count_death(row)
        for kind, suspect in self._book.items():
            if suspect.until and not (kind in before and before[kind].until):
                self._log(
                    "error",
                    f"quarantine: workers of generation {kind[0]} died while they answered {in_words(kind[1])}: it is "
                    f"answered 503 for {suspect.until - now:.0f} s (--quarantine)",
                )

    def _tell_of_death(self, row: int, key: Key, how: str) -> None:
        some = sorted(map(in_words, self._shared.names(row, *BEGUN, COUNTED)))
        if not some or not self._seconds():
            return
        more = f", and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
        self._log("warning", f"worker {key} {how} while it answered {', '.join(some[:SHOWN])}{more}")

    # --- the book -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Called each second: requests are answered, and time passes."""
        if not self._book:
            return
        before = self._book
        self._hear()
        self._book = rule.later(self._book, time.monotonic())
        if self._book != before:
            self._publish()
            for kind in before:
                if before[kind].until and not (kind in self._book and self._book[kind].until):
                    self._log("info", f"quarantine: {in_words(kind[1])} is served again in generation {kind[0]}")

    def running(self, row: int) -> set[str]:
        """The requests that a worker has now, as "GET /path of acme". A query is left out: it can hold secrets."""
        found = set()
        for name in names_of(self._shared, [row], *BEGUN):
            facts = described(name)
            whose = f" of {facts['tenant']}" if facts["tenant"] else ""
            found.add(facts["request"].partition("?")[0] + whose)
        return found

    def clear(self) -> int:
        """Forget everything, as an operator wants it; how many requests were in quarantine."""
        count = sum(1 for suspect in self._book.values() if suspect.until)
        self._book = {}
        self._publish()
        return count

    def _hear(self) -> None:
        """What workers have answered meanwhile."""
        entries = self._shared.entries()
        self._book = rule.answered(
            self._book,
            [kind for kind, (at, number) in self._places.items() if at in entries and entries[at].answered],
        )

    def _publish(self) -> None:
        # The table has room for so many: those in quarantine first, and of the others the latest.
        kinds = sorted(self._book, key=lambda kind: (self._book[kind].until, self._book[kind].last), reverse=True)
        kept = kinds[:ENTRIES]
        self._book = {kind: self._book[kind] for kind in kept}
        gone = [self._places.pop(kind)[0] for kind in list(self._places) if kind not in self._book]
        free = iter(sorted(set(range(ENTRIES)) - {at for at, _ in self._places.values()}))
        for kind in kept:
            if kind not in self._places:
                self._last += 1
                self._places[kind] = next(free), self._last
        written = {self._places[kind][0]: self._entry(kind) for kind in kept}
        self._shared.publish(written.items(), [at for at in gone if at not in written])

    def _entry(self, kind: Kind) -> Entry:
        suspect = self._book[kind]
        number = self._places[kind][1]
        return Entry(number, False, kind[0], suspect.last, suspect.until, suspect.proven, suspect.headed, kind[1])

    def shown(self) -> list[dict[str, Any]]:
        """What `status` shows: the requests in quarantine, the next to be served first. `left` is in seconds."""
        now = time.monotonic()
        found = [
            {**described(name), "generation": generation, "left": round(suspect.until - now, 3)}
            for (generation, name), suspect in self._book.items()
            if suspect.until > now
        ]
        return sorted(found, key=lambda one: one["left"])

    def counts(self) -> Counter[int]:
        """How many requests are in quarantine, by generation."""
        return Counter(one["generation"] for one in self.shown())


def _is_possible(entry: Entry, now: float) -> bool:
    """Whether a master can have written this entry."""
    return entry.number < HIGHEST and 0 <= entry.last <= now and 0 <= entry.until <= now + LONGEST


def names_of(shared: InFlight, rows: Collection[int], *wanted: int) -> frozenset[bytes]:
    """The names in these rows that have one of these marks."""
    return frozenset[bytes]().union(*(shared.names(row, *wanted) for row in rows))


def in_words(name: bytes) -> str:
    """A request in a line of the log."""
    facts = described(name)
    more = [f"{what} {facts[key]}" for what, key in (("Host", "host"), ("tenant", "tenant")) if facts[key]]
    return facts["request"] + (f" ({', '.join(more)})" if more else "")
