"""Routes as such, and the promises: arbitrary stories of releases, requests, jobs, crashes, holds and canaries.

The stories run the real `Router`, marks and decisions, with locks that behave as the kernel's record locks do (each
simulated process is an owner; a claim fails if another owner holds a byte of its range). Processes act one after the
other, but a strict request lives on between steps, so that whatever the router decides it decides beside running work.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
from examples import examples
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reuseport.core.routing import CANARY, HELD, JOBS, MOVED, RUNNING, SERVING, Canary, Table, binding, route
from reuseport.ipc.marks import RECORDS, Full, Marks
from reuseport.ipc.marks import Table as Published
from reuseport.ipc.pins import JOBS as PINNING
from reuseport.ipc.pins import REQUESTS, Pins, number_of
from reuseport.worker import router as routing

TABLE = Table(1, 7, (5, 6, 7), {"held": 6, "gone": 3}, None, {5: 100.0})


def at(tenant, **facts):
    return tuple(route(facts.pop("table", TABLE), tenant, **facts))


def test_who_has_nothing_goes_where_everybody_is():
    assert at("acme") == at(None) == at("gone") == (7, SERVING)


def test_the_oldest_generation_with_a_job_keeps_its_tenant_until_pin_max():
    tied = {5, 6}.__contains__
    assert at("acme", tied=tied, now=99.0) == (5, JOBS)
    assert at("acme", tied=tied, now=100.0) == (6, JOBS)
    assert at("acme", tied=tied, moved=6) == (6, JOBS)
    assert at("acme", tied=tied, moved=7) == (7, SERVING)


def test_a_hold_keeps_its_tenant_unless_it_has_moved_on():
    assert at("held") == (6, HELD)
    assert at("held", tied={5}.__contains__) == (5, JOBS)
    assert at("held", moved=7) == (7, MOVED)


def test_a_stay_counts_until_the_next_attempt():
    assert at("acme", stays=6) == (6, RUNNING)
    assert at("acme", stays=6, moved=7) == (7, SERVING)


def test_a_canary_has_its_tenants_and_a_stable_share_of_the_others():
    table = Table(1, 6, (5, 6, 7), canary=Canary(7, frozenset({"acme"}), 12.5))
    assert at("acme", table=table) == (7, CANARY)
    there = sum(at(f"t{n}", table=table, share=n)[0] == 7 for n in range(10_000))
    assert there == 1250
    assert at(None, table=table, share=1249) == (7, CANARY) and at(None, table=table, share=1250) == (6, SERVING)
    assert at("other", table=table, share=9999, moved=7) == (7, MOVED), "who was there does not go back"


def test_if_all_generations_ahead_have_died_the_one_that_serves_answers():
    assert at("acme", moved=9) == (7, SERVING)


def test_a_move_must_find_all_generations_free_but_those_beyond_pin_max():
    assert binding(TABLE, 0, 7, 99.0) == 5 and binding(TABLE, 0, 7, 100.0) == 6
    assert binding(TABLE, 6, 7, 0.0) == 6 and binding(TABLE, 7, 7, 0.0) == 7


def test_a_table_travels_as_json():
    table = Table(3, 6, (5, 6, 7), {"a": 5}, Canary(7, frozenset({"b", "c"}), 2.5), {5: 1.5}, 0.25)
    assert Table.from_json(table.to_json()) == table


def test_marks_only_go_forward_and_make_room_when_they_mean_nothing_any_more(tmp_path):
    marks = Published(str(tmp_path / "marks"))
    other = Marks.of(os.open(tmp_path / "marks", os.O_RDWR), threading.Lock())
    marks.publish(1, 1)
    marks.move(5 + RECORDS, 3)
    marks.move(5 + RECORDS, 2)
    assert other.moved(5 + RECORDS) == 3 and other.moved(5) == 0
    for n in range(2, 257):
        marks.move(5 + n * RECORDS, 3)
    try:
        marks.move(5 + 1000 * RECORDS, 3)
    except Full:
        pass
    else:
        raise AssertionError("there is no room")
    marks.publish(1, 3)  # generation 3 is the oldest now: to have moved there says nothing
    marks.move(5 + 1000 * RECORDS, 4)
    assert marks.moved(5 + 1000 * RECORDS) == 4
    assert marks.wipe()
    assert not marks.moved(5 + 1000 * RECORDS)


def test_jobs_of_one_process_share_one_lock(tmp_path, monkeypatch):
    pins = Pins(os.open(tmp_path / "pins", os.O_RDWR | os.O_CREAT), PINNING, 7, threading.Lock())
    calls = []
    set_lock = pins._set
    monkeypatch.setattr(pins, "_set", lambda *words: calls.append(words) or set_lock(*words))
    for _ in range(3):
        assert pins.take(number_of("acme"), wait=False)
    assert pins.held_in(number_of("acme"), 7) and number_of("acme") in pins
    for _ in range(3):
        pins.drop(number_of("acme"))
    assert len(calls) == 2 and not pins.held_in(number_of("acme"), 7)


# --- stories ----------------------------------------------------------------------------------------------------------


class Kernel:
    """Record locks of one file: (half, tenant, generation) -> the owners that hold it."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int, int], set[int]] = {}


class FakePins:
    """As ipc.pins.Pins, of one simulated process."""

    def __init__(self, kernel: Kernel, half: int, generation: int, owner: int) -> None:
        self.kernel, self.half, self.generation, self.owner = kernel, half, generation, owner
        self.counts: dict[int, int] = {}

    def take(self, tenant: int, *, wait: bool) -> bool:
        self.counts[tenant] = self.counts.get(tenant, 0) + 1
        self.kernel.held.setdefault((self.half, tenant, self.generation), set()).add(self.owner)
        return True

    def drop(self, tenant: int) -> None:
        self.counts[tenant] -= 1
        if not self.counts[tenant]:
            self.kernel.held[self.half, tenant, self.generation].discard(self.owner)

    def held_in(self, tenant: int, generation: int) -> bool:
        return bool(self.kernel.held.get((self.half, tenant, generation)))

    def claim(self, tenant: int, first: int, end: int) -> bool:
        assert end <= self.generation
        return not any(self.held_in(tenant, g) for g in range(first, end))

    def unclaim(self, tenant: int, first: int, end: int) -> None:
        """A claim is over before anybody else acts."""


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class FakeLoop:
    def run_callback(self, function, *arguments):
        function(*arguments)

    def timer(self, seconds):
        return SimpleNamespace(active=False, start=lambda f: None, stop=lambda: None)


class FakeConnection:
    state = ""
    name = b"\2GET /\0a"


class Process:
    """A worker: a real Router between a simulated engine and a simulated world."""

    def __init__(self, story: Story, generation: int, owner: int, strict: bool) -> None:
        self.story, self.generation, self.owner, self.dead = story, generation, owner, False
        self.jobs: list = []
        self.heard = Table()
        engine = self.engine = SimpleNamespace(
            hub=None, loop=FakeLoop(), parser=SimpleNamespace(parse=None), run=self.begin, run_upgradable=None,
            run_chunked=None,
            request_done=None, connection_upgraded=None,
        )  # fmt: skip
        pins = FakePins(story.kernel, PINNING, generation, owner)
        requests = FakePins(story.kernel, REQUESTS, generation, owner) if strict else None
        self.router = routing.Router(
            engine, generation, lambda environ: environ["tenant"], False, story.marks, pins, requests,
            lambda on_refused: None, self.hear, lambda kind, **fields: None, lambda level, text: None,
        )  # fmt: skip
        self.router._pass = self.hand_over
        self.router._refuse = self.refuse

    def hear(self) -> None:
        """What the master has said is read when the router asks for it; it may not have arrived yet."""
        if not self.story.deaf:
            self.router.table = self.story.table

    def ask(self, tenant: str) -> None:
        environ = {"tenant": tenant, "REMOTE_ADDR": "192.0.2.1", routing.HEAD: b""}
        response = SimpleNamespace(environ=environ, connection=FakeConnection(), process=self)
        self.engine.run(response)

    def begin(self, response) -> None:
        number = self.router._working.pop(response.connection, 0)  # given back by the story
        self.story.begins(self, response, response.environ["reuseport.tenant"], number)

    def hand_over(self, request, generation: int) -> bool:
        target = self.story.somebody(generation)
        if target is None:
            return False
        self.story.hops += 1
        assert self.story.hops < 50, "handed over in a circle"
        target.ask(request.tenant)
        return True

    def refuse(self, response, head, error) -> None:
        self.story.answered += 1
        self.story.refused += 1


TENANTS = ("acme", "globex")


class Story(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.published = Published(str(Path(self.directory.name) / "marks"))
        self.marks = Marks.of(self.published.file.fileno(), threading.Lock())
        self.kernel, self.clock = Kernel(), Clock()
        self.real_time, routing.time = routing.time, self.clock
        self.processes: list[Process] = []
        self.running: list[tuple[Process, str, int]] = []  # requests: process, tenant, number of a lock or 0
        self.jobs: list[tuple[Process, str, object]] = []
        self.highest: dict[str, int] = {}  # the newest generation that has begun a request of the tenant
        self.table, self.holds = Table(), {}
        self.canary: Canary | None = None
        self.asked = self.answered = self.refused = self.hops = self.owners = self.last = 0
        self.deaf = False

    @initialize(strict=st.booleans())
    def start(self, strict: bool) -> None:
        self.strict = strict
        self.release()

    # --- the master

    def publish(self, serving: int) -> None:
        living = tuple(sorted({p.generation for p in self.processes if not p.dead}))
        self.table = Table(self.table.version + 1, serving, living, dict(self.holds), self.canary, {}, 0.5)
        self.published.publish(self.table.version if self.table.active else 0, min(living, default=0))
        if not self.table.active:
            assert self.published.wipe()

    @rule()
    def release(self) -> None:
        """A new version (a rollback is one, too). Its workers know the table before they accept; others may not yet."""
        self.last += 1
        self.canary = None
        new = [Process(self, self.last, self._owner(), self.strict) for _ in range(2)]
        self.processes += new
        self.publish(self.last)
        for p in new:
            p.router.set_table(self.table, {}, 2)

    def _owner(self) -> int:
        self.owners += 1
        return self.owners

    @rule(percent=st.sampled_from((0.0, 50.0, 100.0)), tenants=st.sets(st.sampled_from(TENANTS)))
    def release_canary(self, percent: float, tenants: set[str]) -> None:
        self.last += 1
        new = [Process(self, self.last, self._owner(), self.strict)]
        self.processes += new
        self.publish(self.table.serving)  # it is there, and nobody is told yet to go to it
        self.canary = Canary(self.last, frozenset(tenants), percent)
        self.publish(self.table.serving)
        for p in new:
            p.router.set_table(self.table, {}, 2)

    @rule()
    def promote(self) -> None:
        if self.canary is not None:
            generation, self.canary = self.canary.generation, None
            self.publish(generation)
            for p in self.processes:
                if p.generation == generation:
                    p.router.set_table(self.table, {}, 2)

    @rule(tenant=st.sampled_from(TENANTS), hold=st.booleans())
    def hold_or_move(self, tenant: str, hold: bool) -> None:
        self.holds.pop(tenant, None)
        if hold:
            number = number_of(tenant)
            tied = FakePins(self.kernel, PINNING, 0, 0).held_in
            moved = self.marks.moved(number)
            self.holds[tenant] = route(self.table, tenant, moved=moved, tied=lambda g: tied(number, g)).generation
        self.publish(self.table.serving)

    @rule(deaf=st.booleans())
    def channels_are_slow(self, deaf: bool) -> None:
        self.deaf = deaf

    @rule()
    def drain(self) -> None:
        """Old generations without work, pins and holds leave."""
        needed = {self.table.serving, self.last, *self.holds.values()}
        needed |= {self.canary.generation} if self.canary else set()
        needed |= {p.generation for p, *_ in self.running} | {p.generation for p, *_ in self.jobs}
        needed |= {p.generation for p in self.processes if p.router._line}
        leaving = [p for p in self.processes if p.generation not in needed]
        for p in leaving:
            p.dead = True
        self.processes = [p for p in self.processes if not p.dead]
        if leaving:
            self.publish(self.table.serving)

    # --- clients

    def somebody(self, generation: int) -> Process | None:
        return next((p for p in self.processes if p.generation == generation and not p.dead), None)

    @rule(tenant=st.sampled_from(TENANTS), data=st.data())
    def request(self, tenant: str, data: st.DataObject) -> None:
        """It comes to any worker: by a new connection, or by one that was kept."""
        process = data.draw(st.sampled_from(self.processes))
        self.asked, self.hops = self.asked + 1, 0
        process.ask(tenant)

    def begins(self, process: Process, response, tenant: str, number: int) -> None:
        self.answered += 1
        assert not process.dead
        highest = self.highest.get(tenant, 0)
        if any(p.generation >= highest for p in self.processes):
            assert process.generation >= highest, f"{tenant} goes back from {highest} to {process.generation}"
        self.highest[tenant] = max(highest, process.generation)
        if self.strict:
            at_work = {p.generation for p, whose, _ in self.running if whose == tenant}
            at_work |= {p.generation for p, whose, unpin in self.jobs if whose == tenant and unpin is not None}
            assert at_work <= {process.generation}, f"{tenant}: {at_work} work, and {process.generation} begins"
        self.running.append((process, tenant, number))

    @rule(data=st.data(), job=st.booleans())
    def request_ends(self, data: st.DataObject, job: bool) -> None:
        """Having begun a job, or not."""
        if not self.running:
            return
        one = self.running[data.draw(st.integers(0, len(self.running) - 1))]
        process, tenant, number = one
        if job:
            self.jobs.append((process, tenant, process.router.pin(tenant)))
        self.running.remove(one)
        if number:
            process.router._requests.drop(number)

    @rule(data=st.data())
    def job_ends(self, data: st.DataObject) -> None:
        if self.jobs:
            _, _, unpin = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
            if unpin:
                unpin()

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A worker is killed, and another one of its generation comes."""
        process = data.draw(st.sampled_from(self.processes))
        process.dead = True
        self.answered += len(process.router._line)  # lost with their worker, as its clients see
        self.running = [one for one in self.running if one[0] is not process]
        self.jobs = [one for one in self.jobs if one[0] is not process]
        for owners in self.kernel.held.values():
            owners.discard(process.owner)
        heir = Process(self, process.generation, self._owner(), self.strict)
        heir.router.set_table(self.table, {}, 2)
        self.processes[self.processes.index(process)] = heir

    @rule(seconds=st.sampled_from((0.001, 0.6, 6.0)))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds
        for process in list(self.processes):
            self.hops = 0
            process.router._try_again()

    # --- what must hold

    @invariant()
    def no_pin_outlives_its_owner(self) -> None:
        owners = {p.owner for p in self.processes}
        assert all(held <= owners for held in self.kernel.held.values())

    @invariant()
    def no_request_is_lost(self) -> None:
        waiting = sum(len(p.router._line) for p in self.processes)
        assert self.answered + waiting == self.asked

    def teardown(self) -> None:
        """When all work has ended everybody is answered, and everybody is where everybody should be."""
        try:
            if self.table.living:
                self._end_fairly()
        finally:
            routing.time = self.real_time
            self.published.file.close()
            self.directory.cleanup()

    def _end_fairly(self) -> None:
        self.deaf = False
        self.holds.clear()
        self.release()
        for _ in range(10):
            for process, _, number in self.running:
                if number:
                    process.router._requests.drop(number)
            self.running.clear()
            for _, _, unpin in self.jobs:
                if unpin:
                    unpin()
            self.jobs.clear()
            self.time_passes(10.0)
        assert not any(p.router._line for p in self.processes), "a request is never answered"
        for tenant in TENANTS:
            for process in list(self.processes):
                self.running.clear() if not self.strict else self._release_all()
                self.hops = 0
                self.asked += 1
                process.ask(tenant)
                self.time_passes(0.001)
                assert self.running and self.running[-1][0].generation == self.last, "it has not moved"

    def _release_all(self) -> None:
        for process, _, number in self.running:
            process.router._requests.drop(number)
        self.running.clear()


def test_while_nothing_drains_no_lock_is_asked_for_and_strict_takes_one():
    for strict in (False, True):
        story = Story()
        story.strict = strict
        story.release()
        process = story.processes[0]
        process.router._jobs = None  # whoever asks it anything fails
        process.ask("acme")
        process.ask("acme")
        held = [key for key, owners in story.kernel.held.items() if owners]
        assert held == ([(REQUESTS, number_of("acme"), 1)] if strict else [])
        story.running.clear()
        story.table = Table()
        story.teardown()


def test_a_worker_that_has_not_heard_of_a_release_does_not_serve_a_tenant_that_has_moved():
    story = Story()
    story.strict = False
    story.release()
    old = story.processes[0]
    old_table = story.table
    story.release()
    new = story.processes[-1]
    new.ask("acme")
    assert story.marks.moved(number_of("acme")) == 2
    story.deaf = True
    old.router.set_table(old_table, {}, 2)
    old.ask("acme")
    assert story.answered == 1 and len(old.router._line) == 1
    story.deaf = False
    story.time_passes(0.001)
    assert story.running[-1][0].generation == 2
    story.teardown()


class Refused:
    """A response and its connection, of a request that may be refused."""

    class body:
        detach = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.environ = {"tenant": "acme", "REMOTE_ADDR": "192.0.2.1", routing.HEAD: b"HEAD"}
        self.connection, self.state, self.errors = self, "", []
        self.name = FakeConnection.name

    def refuse(self, error, head) -> None:
        assert head == b"HEAD" and self.environ is None
        self.state = routing.CLOSED
        self.errors.append(error.status)


def real_router(story: Story) -> Process:
    process = story.processes[0]
    del process.router._refuse
    return process


def test_who_has_moved_beyond_what_this_worker_ever_hears_of_is_told_so():
    story = Story()
    story.strict = False
    story.release()
    old, old_table = real_router(story), story.table
    story.release()
    story.processes[-1].ask("acme")
    story.deaf = True
    old.router.set_table(old_table, {}, 2)
    others = Refused(), Refused()
    for one in others:
        old.engine.run(one)
    story.clock.now += routing.PATIENCE + 0.1
    old.router._try_again()
    assert [one.errors for one in others] == [[503], [503]] and not old.router._line
    story.processes.clear()
    story.table = Table()
    story.teardown()


def test_a_request_that_cannot_be_routed_is_answered_and_takes_no_other_along(monkeypatch):
    story = Story()
    story.strict = True
    story.release()
    process = real_router(story)
    errors = iter((True, False))
    take = process.router._requests.take

    def scarce(tenant, *, wait):
        if next(errors):
            raise OSError(37, "No locks available")
        return take(tenant, wait=wait)

    monkeypatch.setattr(process.router._requests, "take", scarce)
    one, other = Refused(), Refused()
    for response in (one, other):
        number, environ = number_of("acme"), response.environ
        environ["reuseport.tenant"] = "acme"
        process.router._line.append(
            routing._Request(response, process.begin, environ.pop(routing.HEAD), "acme", number, 0.0)
        )
    process.router._try_again()
    assert one.errors == [500] and not other.errors
    assert [whose for _, whose, _ in story.running] == ["acme"] and not process.router._line
    story.running.clear()
    story.table = Table()
    story.teardown()


def test_a_stay_for_which_there_is_no_room_keeps_the_request_waiting(monkeypatch):
    story = Story()
    story.strict = True
    story.release()
    story.processes[0].ask("acme")
    story.release()
    new = story.processes[-1]
    del new.router._refuse

    def full(*_):
        raise Full("no room")

    monkeypatch.setattr(story.marks, "stay", full)
    one = Refused()
    new.engine.run(one)
    story.clock.now += 6.0
    new.router._try_again()
    assert not one.errors and len(new.router._line) == 1
    process, _, number = story.running.pop()
    process.router._requests.drop(number)
    new.router._try_again()
    assert [p.generation for p, *_ in story.running] == [2] and not one.errors
    story.running.clear()
    story.table = Table()


def test_a_table_of_marks_that_is_full_loses_no_request(monkeypatch):
    """Strict: whoever cannot be made to stay waits until the requests on the older generation have ended."""
    story = Story()
    story.strict = True
    story.release()
    story.asked += 1
    story.processes[0].ask("acme")
    story.release()

    def full(*arguments: object) -> None:
        raise Full("no room")

    monkeypatch.setattr(story.marks, "stay", full)
    new = story.processes[-1]
    story.asked += 1
    new.ask("acme")
    story.time_passes(10.0)
    assert len(new.router._line) == 1
    story._release_all()
    story.time_passes(0.001)
    assert not new.router._line and story.answered == 2
    story.teardown()


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=examples(60), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
