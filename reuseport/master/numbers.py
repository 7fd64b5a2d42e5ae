"""How much is served, and how fast: the counters and histograms of all workers, summed by generation.

A worker's row is read where it lies. When the worker has died its row is added to its generation's, and when the
generation has gone that one to the server's, so no total ever goes back. Those sums are rows of the same two files, the
last ones, which no worker gets: a master that adopts finds them, and whatever rows the dead have left meanwhile.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from reuseport.ipc.latencies import BUCKETS, LAYOUT, NANOSECONDS, THIS, Latencies, quantile
from reuseport.ipc.scoreboard import ACTIVE, ERRORS, FIELDS, GAUGES, REQUESTS, ROWS, Scoreboard, settle
from reuseport.master.figures import COUNTERS, NOTHING, Figures, Look, between, look_of, total
from reuseport.master.processes import Process, Processes
from reuseport.master.samples import Samples, rounded

WORKER_ROWS = ROWS - 128  # those behind are sums
SERVER = ROWS - 1  # the row of all generations that have gone
WINDOW = 10  # looks, a second apart, that rates and quantiles are of
MOST = (1 << 64) - 1
LINGERING = 120.0  # seconds for which a generation that has gone is still told of: a last scrape comes within that time


class Numbers:
    """`look` is called each second."""

    def __init__(self, board: Scoreboard, latencies: Latencies, processes: Processes, samples: Samples) -> None:
        self._board = board
        self._latencies = latencies
        self._processes = processes
        self.samples = samples
        self._sums: dict[int, int] = {}  # the row of a generation's dead
        self._gone: dict[int, tuple[float, Figures]] = {}  # when, and with what; for the last scrape
        self._looks = deque([Look(time.monotonic(), NOTHING, {})], maxlen=WINDOW + 1)

    def adopt(self, living: Collection[int]) -> None:
        """Take over the files as an earlier master left them: the generations that live, of which some may have no
        worker just now, and the processes that there are."""
        survivors = {process.row for process in self._with_rows()}
        owners = self._latencies.owners()
        gone: dict[int, list[Figures]] = {}
        for row, generation in enumerate(owners[WORKER_ROWS:SERVER], WORKER_ROWS):
            if generation in living and generation not in self._sums:
                self._sums[generation] = row
            elif generation:
                gone.setdefault(generation, []).append(self._read(row))
                self._move(row, SERVER)
        for row, generation in enumerate(owners[:WORKER_ROWS]):
            if generation and row not in survivors:
                if generation not in living:
                    counters = self._board.row(row).tolist()
                    settle(counters)
                    self._board.write(row, counters)
                    gone.setdefault(generation, []).append(self._read(row))
                self._move(row, self._sum_of(generation) if generation in living else SERVER)
        now = time.monotonic()
        self._gone |= {generation: (now, total(figures)) for generation, figures in gone.items()}
        self._looks = deque([self.now()], maxlen=WINDOW + 1)  # what was served before is no traffic of this moment

    def estate(self, lend: Callable[[int], int]) -> dict[str, Any]:
        """What the master goes on with behind an exec. Nobody dies unheard over that, so there is nothing to adopt."""
        return {
            "sums": self._sums,
            "gone": self._gone,
            "looks": list(self._looks),
            "samples": self.samples.estate(),
        }

    def inherit(self, left: Mapping[str, Any]) -> None:
        self._sums = {int(generation): row for generation, row in left["sums"].items()}
        self.go_on_from(left)

    def go_on_from(self, left: Mapping[str, Any]) -> None:
        """What a master that has lived until now tells beside the files; not if it counts otherwise than this one."""
        looks = [look_of(look) for look in left["looks"]]
        if any(len(look.server) != len(NOTHING) for look in looks):
            return
        self._gone |= {int(generation): (when, figures) for generation, (when, figures) in left["gone"].items()}
        self._looks.clear()
        self._looks.extend(looks)
        self.samples.inherit(left["samples"])

    def is_dead(self, process: Process) -> None:
        """Its row is free when this returns."""
        if process.row >= 0:
            self._move(process.row, self._sum_of(process.key.generation))

    def look(self, generations: Collection[int]) -> Look:
        """Sum up; `generations` are those that there are."""
        now = time.monotonic()
        there = {*generations, *(process.key.generation for process in self._processes.all())}
        for generation in self._sums.keys() - there:
            row = self._sums.pop(generation)
            self._gone[generation] = now, self._read(row)
            self._move(row, SERVER)
        for generation in [g for g, (when, _) in self._gone.items() if now - when > LINGERING]:
            del self._gone[generation]
        look = self._now(now)
        self._looks.append(look)
        self.samples.look(look)
        return look

    def now(self) -> Look:
        """The totals of this moment."""
        return self._now(time.monotonic())

    def shown(self, generation: int | None = None) -> dict[str, Any]:
        """What `status` says of one generation, or of the server: rates and quantiles of the last seconds."""
        first, last = self._looks[0], self._looks[-1]
        window = last.time - first.time
        if generation is None:
            figures = between(first.server, last.server)
        else:
            figures = between(*(look.generations.get(generation, NOTHING) for look in (first, last)))
        rows = [p.row for p in self._with_rows() if generation in (None, p.key.generation)]
        return {
            "requests_per_second": round(figures[COUNTERS + REQUESTS] / window, 3) if window else 0.0,
            "errors_per_second": round(figures[COUNTERS + ERRORS] / window, 3) if window else 0.0,
            "p50": rounded(quantile(figures[:BUCKETS], 0.5)),
            "p99": rounded(quantile(figures[:BUCKETS], 0.99)),
            "in_flight": sum(self._board.row(row)[ACTIVE] for row in rows),
            "window": round(window, 3),
        }

    def _now(self, now: float) -> Look:
        rows: dict[int, list[int]] = {generation: [row] for generation, row in self._sums.items()}
        for process in self._with_rows():
            rows.setdefault(process.key.generation, []).append(process.row)
        living = {generation: total(map(self._read, of)) for generation, of in rows.items()}
        server = total([self._read(SERVER), *living.values()])
        return Look(now, server, {generation: figures for generation, (_, figures) in self._gone.items()} | living)

    def _with_rows(self) -> Iterable[Process]:
        return (process for process in self._processes.all() if process.row >= 0)

    def _read(self, row: int) -> Figures:
        latencies = self._latencies.row(row)
        if latencies[LAYOUT] == THIS:
            figures: Figures = latencies[:BUCKETS].tolist()
            figures.append(latencies[NANOSECONDS])
        else:
            figures = [0] * COUNTERS
        figures.extend(self._board.row(row).tolist())
        return figures

    def _sum_of(self, generation: int) -> int:
        """The row of a generation's dead. With very many generations alive some go without, and into the server's."""
        row = self._sums.get(generation)
        if row is None:
            taken = set(self._sums.values())
            row = next((one for one in range(WORKER_ROWS, SERVER) if one not in taken), SERVER)
            if row != SERVER:
                self._latencies.give(row, generation)
                self._board.clear(row)
                self._sums[generation] = row
        return row

    def _move(self, row: int, to: int) -> None:
        """Add a row of nobody's to a sum, and empty it. A master that is killed between the two counts it twice."""
        counters = self._board.row(row).tolist()
        if row < WORKER_ROWS:
            settle(counters)
        fields = [field for field in range(FIELDS) if field not in GAUGES]
        self._board.write(to, _sum(self._board.row(to).tolist(), counters, fields))
        self._board.clear(row)
        source, target = self._latencies.row(row).tolist(), self._latencies.row(to).tolist()
        target[LAYOUT] = THIS
        if source[LAYOUT] == THIS:
            target = _sum(target, source, [*range(BUCKETS), NANOSECONDS])
        self._latencies.write(to, target)
        self._latencies.give(row, 0)


def _sum(to: list[int], row: list[int], fields: Iterable[int]) -> list[int]:
    for field in fields:
        to[field] = (to[field] + row[field]) & MOST  # a worker can have written any number
    return to
