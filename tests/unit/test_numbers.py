"""Latencies, their sums over workers that come and go, and what is kept of them."""

from __future__ import annotations

import inspect
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reuseport.core.model import (
    ACCEPTING,
    DRAINING,
    LEAVING,
    NOWHERE,
    SERVING,
    Cluster,
    Generation,
    Key,
    Release,
    Worker,
)
from reuseport.ipc import latencies, scoreboard
from reuseport.ipc.latencies import BOUNDS, BUCKETS, LAYOUT, NANOSECONDS, ROW_BYTES, Latencies, count, my_row, quantile
from reuseport.ipc.scoreboard import ACTIVE, CLIENT_ERRORS, ERRORS, REQUESTS, RSS, SUCCESSES, Scoreboard, settle
from reuseport.master import numbers as numbers_module
from reuseport.master import samples as samples_module
from reuseport.master.figures import COUNTERS, NOTHING, Look
from reuseport.master.numbers import LINGERING, SERVER, WORKER_ROWS, Numbers
from reuseport.master.samples import COARSE, FINE, Samples, Series
from reuseport.master.tally import CRASHED, REASONS, Tally

SECONDS = st.floats(BOUNDS[0], BOUNDS[-1], exclude_min=True)


def row_of(times: list[float]) -> memoryview:
    row = memoryview(bytearray(ROW_BYTES)).cast("Q")
    count(row, list(times))
    return row


# --- the histogram


def test_each_bound_is_at_most_an_eighth_more_than_the_one_before():
    assert BOUNDS[0] == 1e-5 and BOUNDS[-1] == 3600
    assert all(low < high <= low * 1.1251 for low, high in pairwise(BOUNDS))
    assert BUCKETS <= NANOSECONDS


@given(st.lists(SECONDS, min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_wrong_by_less_than_its_bucket(times: list[float], share: float):
    exact = sorted(times)[math.ceil(share * len(times)) - 1]
    found = quantile(row_of(times)[:BUCKETS].tolist(), share)
    assert found is not None
    assert exact / 1.126 <= found <= exact * 1.126


@given(st.lists(st.floats(0, 1e6), max_size=100))
def test_every_latency_is_in_the_one_bucket_that_has_room_for_it(times: list[float]):
    row = row_of(times)
    for index in range(BUCKETS):
        low = BOUNDS[index - 1] if index else -1.0
        high = BOUNDS[index] if index < len(BOUNDS) else math.inf
        assert row[index] == sum(low < one <= high for one in times)
    assert row[NANOSECONDS] == int(sum(times) * 1e9)


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_counting_twice_is_counting_all_of_it(first: list[float], second: list[float]):
    row = row_of(first)
    taken = list(second)
    count(row, taken)
    assert taken == []
    assert row[:BUCKETS] == row_of(first + second)[:BUCKETS]


def test_there_is_no_quantile_of_nothing_and_none_beyond_the_last_bound():
    assert quantile([0] * BUCKETS, 0.5) is None
    assert quantile(row_of([9999.0])[:BUCKETS].tolist(), 0.99) == 3600


def test_a_worker_counts_for_itself_where_its_master_has_no_such_file(tmp_path):
    row = my_row(str(tmp_path / "none"), 3)
    count(row, [1.0])
    assert sum(row[:BUCKETS]) == 1
    assert not list(tmp_path.iterdir())
    Latencies(str(tmp_path / "latencies"), create=True)
    assert my_row(str(tmp_path / "latencies"), 3)[LAYOUT] == latencies.THIS


# --- their sums


class World:
    """Workers without processes: rows that are counted in."""

    def __init__(self, directory) -> None:
        self.board = Scoreboard(str(directory / "scoreboard"), create=True)
        self.latencies = Latencies(str(directory / "latencies"), create=True)
        self.processes: dict[Key, SimpleNamespace] = {}
        self.generations: set[int] = set()
        self.master()

    def all(self) -> list[SimpleNamespace]:
        return list(self.processes.values())

    def master(self) -> None:
        """Another one, which finds the files and the processes."""
        self.numbers = Numbers(self.board, self.latencies, self, SimpleNamespace(look=lambda look: None))
        self.numbers.adopt({key.generation for key in self.processes})

    def fork(self, generation: int, number: int) -> Key:
        row = next(row for row in range(WORKER_ROWS) if row not in {p.row for p in self.all()})
        self.board.clear(row)
        self.latencies.give(row, generation)
        self.latencies.row(row)[LAYOUT] = latencies.THIS
        key = Key(generation, number)
        self.processes[key] = SimpleNamespace(key=key, row=row)
        self.generations.add(generation)
        return key

    def serve(self, key: Key, times: list[float], *, status: int = 200) -> None:
        board = self.board.row(self.processes[key].row)
        for _ in times:
            if status != 200:
                board[scoreboard.CLASSES[status // 100]] += 1
            board[REQUESTS] += 1
            board[ERRORS] += status >= 500
        board[ACTIVE], board[RSS] = 1, 1 << 20
        count(self.latencies.row(self.processes[key].row), list(times))

    def die(self, key: Key) -> None:
        self.numbers.is_dead(self.processes[key])
        del self.processes[key]

    def end(self, generation: int) -> None:
        for key in [key for key in self.processes if key.generation == generation]:
            self.die(key)
        self.generations.discard(generation)

    def requests(self, generation: int | None = None) -> int:
        look = self.numbers.now()
        figures = look.server if generation is None else look.generations.get(generation, NOTHING)
        assert figures[COUNTERS + REQUESTS] == sum(figures[:BUCKETS])
        return figures[COUNTERS + REQUESTS]


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_a_dead_worker_stays_in_its_generations_figures_and_frees_its_row(world):
    first, second = world.fork(1, 1), world.fork(1, 2)
    world.serve(first, [0.1] * 3)
    world.serve(second, [0.2] * 2, status=404)
    row = world.processes[first].row
    world.die(first)
    assert (world.requests(1), world.requests()) == (5, 5)
    assert sum(world.board.row(row)) == 0
    third = world.fork(1, 3)
    assert world.processes[third].row == row
    world.serve(third, [0.1])
    figures = world.numbers.now().generations[1][COUNTERS:]
    assert (figures[REQUESTS], figures[CLIENT_ERRORS]) == (6, 2)
    # Gauges are those of the living; successes of the dead are known without having been put down.
    assert (figures[ACTIVE], figures[SUCCESSES]) == (2, 3)


def test_a_generation_that_has_gone_is_told_of_for_a_while_and_stays_in_the_total(world, monkeypatch):
    world.serve(world.fork(1, 1), [0.1] * 4)
    world.serve(world.fork(2, 1), [0.1])
    world.end(1)
    world.numbers.look(world.generations)
    assert (world.requests(1), world.requests(2), world.requests()) == (4, 1, 5)
    world.numbers.look(world.generations)
    assert 1 in world.numbers.now().generations
    later = numbers_module.time.monotonic() + LINGERING + 1
    monkeypatch.setattr(numbers_module.time, "monotonic", lambda: later)
    world.numbers.look(world.generations)
    assert set(world.numbers.now().generations) == {2}
    assert world.requests() == 5


def test_another_master_goes_on_where_the_first_was_killed(world):
    alive, dead = world.fork(2, 1), world.fork(2, 2)
    world.serve(world.fork(1, 1), [0.1])
    world.end(1)
    world.numbers.look(world.generations)
    world.serve(alive, [0.1] * 2)
    world.serve(dead, [0.1] * 4)
    world.die(world.fork(2, 3))
    del world.processes[dead]  # it died while there was no master
    world.master()
    assert (world.requests(2), world.requests()) == (6, 7)
    world.serve(alive, [0.1])
    assert (world.requests(2), world.requests()) == (7, 8)
    # And where nobody survived, what there was is the server's; the generation is told of for a last scrape.
    world.processes.clear()
    world.master()
    assert (world.requests(2), world.requests()) == (7, 8)


def test_a_generation_that_lives_without_a_worker_keeps_its_figures(world):
    world.serve(world.fork(1, 1), [0.1] * 3)
    world.serve(world.fork(2, 1), [0.1])
    world.die(Key(1, 1))
    world.numbers = Numbers(world.board, world.latencies, world, world.numbers.samples)
    world.numbers.adopt({1, 2})
    world.serve(world.fork(1, 2), [0.1])
    assert (world.requests(1), world.requests(2), world.requests()) == (4, 1, 5)


def test_behind_an_exec_it_goes_on_with_all_it_had(world, tmp_path):
    world.numbers.samples = Samples(str(tmp_path), lambda *said: None)
    world.serve(world.fork(1, 1), [0.1] * 3)
    world.serve(world.fork(2, 1), [0.1])
    world.serve(world.fork(3, 1), [0.1])
    world.end(1)
    world.die(Key(2, 1))
    world.numbers.look(world.generations)
    another = Numbers(world.board, world.latencies, world, Samples(str(tmp_path), lambda *said: None))
    another.inherit(json.loads(json.dumps(world.numbers.estate(lambda fd: fd))))
    assert another.now()[1:] == world.numbers.now()[1:], "one for a last scrape, one without workers, one with"
    assert another.shown(3) == world.numbers.shown(3)
    assert another.samples.estate() == world.numbers.samples.estate(), "what has been served since counts in the next"


def test_more_generations_than_there_are_rows_for_their_dead(world):
    for generation in range(1, SERVER - WORKER_ROWS + 3):
        world.serve(world.fork(generation, 1), [0.1])
        world.die(Key(generation, 1))
    assert world.requests() == SERVER - WORKER_ROWS + 2


def test_a_worker_with_other_bounds_counts_without_its_latencies(world):
    key = world.fork(1, 1)
    world.serve(key, [0.1])
    world.latencies.row(world.processes[key].row)[LAYOUT] = latencies.THIS + 1
    for _ in range(2):
        figures = world.numbers.now().generations[1]
        assert (figures[COUNTERS + REQUESTS], sum(figures[:BUCKETS])) == (1, 0)
        if world.processes:
            world.die(key)


def test_rates_and_quantiles_are_of_the_last_seconds(world, monkeypatch):
    clock = [numbers_module.time.monotonic()]
    monkeypatch.setattr(numbers_module.time, "monotonic", lambda: clock[0])
    key = world.fork(1, 1)
    world.serve(key, [9.0] * 100)
    for _ in range(12):
        world.numbers.look(world.generations)
        clock[0] += 1
        world.serve(key, [0.010] * 5)
    world.serve(key, [0.010], status=500)
    world.numbers.look(world.generations)
    shown = world.numbers.shown(1)
    assert shown == world.numbers.shown() | {"window": 10.0}
    assert (shown["requests_per_second"], shown["errors_per_second"], shown["in_flight"]) == (5.1, 0.1, 1)
    assert 0.009 <= shown["p50"] <= shown["p99"] <= 0.010
    assert world.numbers.shown(9) == {
        "requests_per_second": 0.0, "errors_per_second": 0.0, "p50": None, "p99": None, "in_flight": 0, "window": 10.0,
    }  # fmt: skip


def test_before_the_second_look_there_are_no_rates(world):
    assert world.numbers.shown()["requests_per_second"] == 0.0
    assert world.numbers.shown()["p99"] is None


class Deaths(RuleBasedStateMachine):
    """Whoever dies when, no request is forgotten or counted twice."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile
        from pathlib import Path

        self.directory = tempfile.TemporaryDirectory()
        self.world = World(Path(self.directory.name))
        self.served: dict[int, int] = {}
        self.number = 0
        self.newest = 1

    @rule(data=st.data(), times=st.lists(SECONDS, max_size=5))
    @precondition(lambda self: self.world.processes)
    def serve(self, data, times):
        key = data.draw(st.sampled_from(sorted(self.world.processes)))
        self.world.serve(key, times)
        self.served[key.generation] = self.served.get(key.generation, 0) + len(times)

    @rule()
    def fork(self):
        self.number += 1
        self.world.fork(self.newest, self.number)

    @rule()
    def release(self):
        self.newest += 1
        self.fork()

    @rule(data=st.data())
    @precondition(lambda self: self.world.processes)
    def die(self, data):
        self.world.die(data.draw(st.sampled_from(sorted(self.world.processes))))

    @rule()
    @precondition(lambda self: self.world.generations)
    def leave(self):
        oldest = min(self.world.generations)
        self.newest = max(self.newest, oldest + 1)  # numbers are given out once
        self.world.end(oldest)
        self.world.numbers.look(self.world.generations)

    @rule(data=st.data())
    @precondition(lambda self: self.world.processes)
    def lose_master(self, data):
        for key in data.draw(st.sets(st.sampled_from(sorted(self.world.processes)))):
            del self.world.processes[key]
        self.world.generations = {key.generation for key in self.world.processes}
        self.newest += 1
        self.world.master()

    @invariant()
    def nothing_is_forgotten(self):
        look = self.world.numbers.now()
        assert look.server[COUNTERS + REQUESTS] == sum(self.served.values())
        for generation in self.world.generations:
            figures = look.generations.get(generation, NOTHING)
            assert figures[COUNTERS + REQUESTS] == sum(figures[:BUCKETS]) == self.served.get(generation, 0)

    def teardown(self):
        self.directory.cleanup()


TestDeaths = Deaths.TestCase
TestDeaths.settings = settings(max_examples=examples(40), stateful_step_count=25, deadline=None)


def test_a_row_full_of_rubbish_is_no_trouble(world):
    for generation in (1, 2):
        row = world.processes[world.fork(generation, 1)].row
        world.board.row(row)[:] = memoryview(b"\xff" * scoreboard.ROW_BYTES).cast("Q")
        world.latencies.row(row)[:BUCKETS] = memoryview(b"\xff" * BUCKETS * 8).cast("Q")
        world.numbers.look(world.generations)
        world.numbers.shown()
    for generation in (1, 2):
        world.end(generation)
    world.numbers.look(world.generations)
    world.numbers.shown()


def test_one_that_is_killed_in_the_middle_of_counting_takes_no_success_back():
    row = memoryview(bytearray(scoreboard.ROW_BYTES)).cast("Q")
    row[CLIENT_ERRORS] = 1  # and its request is not among REQUESTS yet
    settle(row)
    assert row[SUCCESSES] == 0
    row[REQUESTS] = 5
    settle(row)
    row[CLIENT_ERRORS] = 2
    settle(row)
    assert row[SUCCESSES] == 4


def test_successes_are_what_is_left():
    row = memoryview(bytearray(scoreboard.ROW_BYTES)).cast("Q")
    for code in (0, 101, 302, 404, 500, 999):
        row[scoreboard.CLASSES[code // 100]] += 1
    row[REQUESTS] = 10
    settle(row)
    assert row[SUCCESSES] == 4
    settle(row)
    assert row[SUCCESSES] == 4


# --- what is kept of them


def look(time: float, requests: int, errors: int = 0, latency: float = 0.1) -> Look:
    figures = row_of([latency] * requests)[: BUCKETS + 1].tolist() + [0] * scoreboard.FIELDS
    figures[COUNTERS + REQUESTS], figures[COUNTERS + ERRORS] = requests, errors
    return Look(time, figures, {7: figures})


def feed(samples: Samples, seconds: int, begin: int = 0) -> None:
    for second in range(begin, begin + seconds + 1):
        samples.look(look(second, second * 3, second))


def test_a_sample_says_what_was_served_in_its_seconds(tmp_path):
    samples = Samples(str(tmp_path), lambda *said: None)
    feed(samples, 20)
    first, second = json.loads(samples.encoded())
    assert first["at"] > 1e9
    assert 0.09 < first.pop("p50") <= first.pop("p99") <= 0.1
    assert first == {"at": first["at"], "seconds": 10, "requests": 30, "errors": 10, "generations": {"7": 30}}
    assert second["requests"] == 30
    assert (tmp_path / FINE[0]).read_bytes().count(b"\n") == 2


def test_samples_survive_a_restart_and_a_torn_line(tmp_path):
    feed(Samples(str(tmp_path), lambda *said: None), 70)
    path = tmp_path / FINE[0]
    path.write_bytes(path.read_bytes()[:-9])
    samples = Samples(str(tmp_path), lambda *said: None)
    feed(samples, 10, 1000)
    assert len(json.loads(samples.encoded())) == 7
    again = Samples(str(tmp_path), lambda *said: None)
    assert json.loads(again.encoded()) == json.loads(samples.encoded())
    # What was served before this master began is not served again by it.
    assert {one["requests"] for one in json.loads(samples.encoded())} == {30}


def test_the_files_are_bounded_and_the_newest_lines_are_kept(tmp_path):
    series = Series(str(tmp_path / "s.jsonl"), 10.0, 5)
    for at in range(23):
        series.add(at, {"at": at})
    assert [at for at, _ in series.lines] == [18, 19, 20, 21, 22]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl", "s.jsonl.1"]
    assert all(len(path.read_text().splitlines()) <= 5 for path in tmp_path.iterdir())
    again = Series(str(tmp_path / "s.jsonl"), 10.0, 5)
    assert again.lines == series.lines
    again.add(23, {"at": 23})
    assert [at for at, _ in Series(str(tmp_path / "s.jsonl"), 10.0, 5).lines] == [19, 20, 21, 22, 23]


def test_older_ones_are_by_the_minute(tmp_path, monkeypatch):
    monkeypatch.setattr(samples_module, "FINE", (FINE[0], FINE[1], 6))
    samples = Samples(str(tmp_path), lambda *said: None)
    clock = [1e9]
    monkeypatch.setattr(samples_module.time, "time", lambda: clock[0])
    for second in range(301):
        samples.look(look(second, second * 3))
        clock[0] += 1
    shown = json.loads(samples.encoded())
    assert [one["seconds"] for one in shown] == [60] * 4 + [10] * 6
    assert sum(one["requests"] for one in shown) == 900
    assert [one["at"] for one in shown] == sorted(one["at"] for one in shown)


def test_an_answer_with_all_samples_is_one_that_a_client_can_get():
    line = {"at": 1795665538.262, **samples_module.sample_of(look(0, 0), look(10, 10**5, 10**4)), "seconds": 10.015}
    line["generations"] = {str(number): 10**6 for number in (1107, 1108)}
    from reuseport.master.control import UNREAD

    assert (len(json.dumps(line)) + 1) * (FINE[2] + COARSE[2]) < UNREAD


def test_a_full_disk_is_said_once_and_costs_no_sample(tmp_path, monkeypatch):
    said = []
    samples = Samples(str(tmp_path), lambda *one: said.append(one))

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples_module.os, "write", fails)
    feed(samples, 30)
    assert [level for level, _ in said] == ["error"]
    assert "No space left" in said[0][1] and FINE[0] in said[0][1]
    assert len(json.loads(samples.encoded())) == 3


# --- what the master counts itself


def cluster(state: str, worker: Worker) -> Cluster:
    return Cluster({3: Generation(3, Release(), 1, state=state, workers={1: worker})})


def test_a_worker_that_is_replaced_is_counted_by_its_reason():
    tally = Tally()
    tally.worker_ends(cluster(SERVING, Worker(0, ACCEPTING)), Key(3, 1))
    tally.worker_ends(cluster(SERVING, Worker(0, LEAVING, retiring="it has had enough (--max-requests)")), Key(3, 1))
    tally.worker_ends(cluster(SERVING, Worker(0, LEAVING, retiring="for a reason of its own")), Key(3, 1))
    assert tally.restarts == {CRASHED: 1, "max_requests": 1, "other": 1}


def test_who_leaves_as_he_should_is_no_restart():
    tally = Tally()
    tally.worker_ends(cluster(DRAINING, Worker(0, LEAVING)), Key(3, 1))
    tally.worker_ends(cluster(SERVING, Worker(0, LEAVING)), Key(3, 1))
    tally.worker_ends(cluster(SERVING, Worker(NOWHERE, ACCEPTING)), Key(3, 1))
    tally.worker_ends(Cluster(), Key(3, 1))
    assert not tally.restarts


def test_the_reasons_are_words_that_workers_and_the_core_say():
    from reuseport.core import facts
    from reuseport.worker import main, replacement

    said = "".join(map(inspect.getsource, (main, replacement, facts)))
    assert [word for word in REASONS if word not in said] == []


def test_counters_have_their_room_on_disk_before_anybody_counts(tmp_path):
    """A page without a block would be found missing by whoever counts in it, and end that process (SIGBUS)."""
    for kind in (scoreboard.Scoreboard, latencies.Latencies):
        path = tmp_path / kind.__name__
        kind(str(path), create=True)
        assert path.stat().st_blocks * 512 >= path.stat().st_size > 0
