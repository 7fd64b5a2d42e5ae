"""Which request is put into quarantine: the rule, the shared file, and what a worker does about it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reuseport.core.model import Key
from reuseport.core.quarantine import TOGETHER, WITHIN, Death, Suspect, answered, died, later
from reuseport.ipc.inflight import (
    ANSWERED,
    COUNTED,
    ENTRIES,
    LOCK_BYTES,
    LOCKS,
    NAME_BYTES,
    NAMELESS,
    RUNNING,
    SEATS,
    SENT,
    Entry,
    InFlight,
    described,
    named,
    of_tenant,
)
from reuseport.master.loop import Loop
from reuseport.master.processes import Processes, is_ending
from reuseport.master.quarantine import Quarantine
from reuseport.worker.admission import Admission, Refusal

KILL, FRONT, POLL = (named(b"GET /%b\0shop" % path) for path in (b"kill", b"", b"events"))
ONE, TWO, THREE = (Key(1, number) for number in (1, 2, 3))


def death(*running: bytes, answered=(), elsewhere=None, headed=(), generation: int = 1) -> Death:
    return Death(generation, frozenset(running), frozenset(answered), elsewhere or {}, frozenset(headed))


def quarantined(book) -> set[bytes]:
    return {name for (_, name), suspect in book.items() if suspect.until}


def test_what_runs_at_two_deaths_within_a_minute_is_put_into_quarantine():
    book = died({}, death(KILL, FRONT), 100.0, 30.0)
    assert not quarantined(book)
    book = died(book, death(KILL), 100.0 + WITHIN, 30.0)
    assert quarantined(book) == {KILL}
    assert book[1, KILL].until == 100.0 + WITHIN + 30.0


def test_deaths_that_lie_further_apart_have_nothing_to_do_with_each_other():
    book = died(died({}, death(KILL), 100.0, 30.0), death(KILL), 100.1 + WITHIN, 30.0)
    assert not quarantined(book)


def test_deaths_of_two_generations_are_not_added_up():
    book = died(died({}, death(KILL), 0.0, 30.0), death(KILL, generation=2), 1.0, 30.0)
    assert not quarantined(book)


def test_what_is_answered_is_no_suspect():
    book = answered(died({}, death(KILL, FRONT), 0.0, 30.0), [(1, FRONT)])
    assert quarantined(died(book, death(KILL, FRONT), 1.0, 30.0)) == {KILL}


def test_what_a_living_worker_has_run_since_before_the_first_death_is_spared():
    book = died({}, death(KILL, POLL, elsewhere={POLL: frozenset({TWO, THREE})}), 0.0, 30.0)
    book = died(book, death(KILL, POLL, elsewhere={POLL: frozenset({THREE})}), 1.0, 30.0)
    assert quarantined(book) == {KILL}


def test_who_began_after_the_first_death_is_no_witness():
    book = died({}, death(KILL, elsewhere={KILL: frozenset({TWO})}), 0.0, 30.0)
    assert quarantined(died(book, death(KILL, elsewhere={KILL: frozenset({THREE})}), 1.0, 30.0)) == {KILL}


def test_a_killer_that_runs_everywhere_at_once_is_in_quarantine_when_those_workers_have_died():
    book = died({}, death(KILL, elsewhere={KILL: frozenset({TWO, THREE})}), 0.0, 30.0)
    book = died(book, death(KILL, elsewhere={KILL: frozenset({THREE, Key(1, 4)})}), 1.0, 30.0)
    assert not quarantined(book)
    assert quarantined(died(book, death(KILL, elsewhere={KILL: frozenset({Key(1, 4)})}), 2.0, 30.0)) == {KILL}


def test_witnesses_that_die_a_moment_later_belong_to_the_first_death_and_their_substitutes_do_not():
    def dies(book, key: Key, *witnesses: Key, now: float):
        here = {KILL: frozenset(witnesses)}
        one = Death(1, frozenset({KILL}), frozenset(), here, ran={KILL: frozenset({key})})
        return died(book, one, now, 30.0)

    book = dies({}, ONE, TWO, THREE, now=0.0)
    book = dies(book, TWO, THREE, now=0.1)
    together = dies(book, THREE, now=0.2)
    assert not quarantined(together)
    assert quarantined(dies(together, Key(1, 4), now=0.21)) == {KILL}
    assert quarantined(dies(book, THREE, now=0.1 + TOGETHER * 2)) == {KILL}


def test_what_was_seen_to_be_answered_before_is_spared_if_something_else_was_not():
    book = died({}, death(KILL, FRONT, answered=[FRONT]), 0.0, 30.0)
    assert quarantined(died(book, death(KILL, FRONT), 1.0, 30.0)) == {KILL}


def test_what_went_well_before_and_ends_workers_now_is_put_into_quarantine():
    book = died({}, death(KILL, answered=[KILL]), 0.0, 30.0)
    assert quarantined(died(book, death(KILL, answered=[KILL]), 1.0, 30.0)) == {KILL}


@pytest.mark.parametrize("proven", [(), (KILL,), (POLL,)], ids=["none", "killer", "stream"])
def test_what_had_begun_its_response_is_spared_if_something_else_had_not(proven):
    book = died({}, death(KILL, POLL, headed=[POLL], answered=proven), 0.0, 30.0)
    assert quarantined(died(book, death(KILL, POLL, headed=[POLL], answered=proven), 1.0, 30.0)) == {KILL}
    # It has just come back when the second worker dies.
    assert quarantined(died(book, death(KILL, POLL, answered=proven), 1.0, 30.0)) == {KILL}


def test_a_response_that_ends_its_worker_in_the_middle_is_put_into_quarantine():
    book = died({}, death(KILL, headed=[KILL]), 0.0, 30.0)
    assert quarantined(died(book, death(KILL, FRONT, headed=[KILL]), 1.0, 30.0)) == {KILL}


def test_after_its_quarantine_one_death_is_enough():
    book = died(died({}, death(KILL), 0.0, 30.0), death(KILL), 1.0, 30.0)
    assert not quarantined(later(book, 31.0))
    assert quarantined(died(later(book, 31.0), death(KILL), 40.0, 30.0)) == {KILL}
    assert not quarantined(died(later(book, 31.0), death(KILL), 32.0 + WITHIN, 30.0))


NAMES = st.sampled_from([KILL, FRONT, POLL])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("death"), *[st.frozensets(NAMES)] * 4),
        st.tuples(st.just("answer"), NAMES),
        st.tuples(st.just("time"), st.floats(0, 100)),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_request_that_always_ends_its_worker_takes_two_and_one_that_is_answered_is_served(steps):
    """KILL is never answered, nor begun to be, and never runs elsewhere. The others end no worker, and are answered now
    and then."""
    book, now, seconds = {}, 0.0, 30.0
    deaths: dict[bytes, list[float]] = {KILL: [], FRONT: [], POLL: []}
    for kind, *more in steps:
        now += 0.01
        if kind == "time":
            now += more[0]
        elif kind == "answer" and more[0] != KILL:
            book = answered(later(book, now), [(1, more[0])])
            deaths[more[0]].clear()
        elif kind == "death":
            running, proven, elsewhere, headed = more
            running -= quarantined(later(book, now))  # no worker begins these
            book = died(
                later(book, now),
                death(
                    *running,
                    answered=proven - {KILL},
                    elsewhere=dict.fromkeys(elsewhere - {KILL}, frozenset({TWO})),
                    headed=(headed & running) - {KILL},
                ),
                now,
                seconds,
            )
            for name in running:
                deaths[name].append(now)
                if len(deaths[name]) < 2 or now - deaths[name][-2] > WITHIN + seconds:
                    assert not later(book, now)[1, name].until, "one death is no reason"
            if KILL in running and len(deaths[KILL]) > 1 and now - deaths[KILL][-2] <= WITHIN:
                assert KILL in quarantined(book), "two deaths are"
        for suspect in later(book, now).values():
            assert suspect.until > now or now - suspect.last <= WITHIN


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=400).filter(lambda text: not set(text) & {0, 255}))
def test_names_have_one_length_and_differ(text):
    assert len(named(text)) == NAME_BYTES
    assert named(text) != named(text + b"x")
    assert named(text) == named(text)


def test_a_name_says_what_it_is_of():
    name = named(b"GET /a?b=1\0shop.example:8000")
    assert described(name) == {"request": "GET /a?b=1", "host": "shop.example:8000", "tenant": ""}
    assert described(of_tenant(name, "acme"))["tenant"] == "acme"
    assert described(of_tenant(named(b"GET /\0-"), "acme")) == {"request": "GET /", "host": "", "tenant": "acme"}
    long = named(b"GET /" + b"x" * 300 + b"\0shop")
    assert described(long)["request"].startswith("GET /xxx")
    assert described(long)["request"].endswith("...")
    assert of_tenant(long, "one") != of_tenant(long, "two")


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "inflight")


def mapped(path: str) -> InFlight:
    """As a worker sees it."""
    fd = os.open(path, os.O_RDWR)
    try:
        return InFlight.of(fd)
    finally:
        os.close(fd)


@pytest.fixture
def shared(path) -> InFlight:
    found = InFlight.made(path)
    for index, key in enumerate((ONE, TWO, THREE)):
        found.give(index, key)
    return found


def test_a_row_shows_what_runs_and_what_was_answered(shared):
    row = shared.row(1)
    seats = [row.take() for _ in range(3)]
    for (memory, place, _), name in zip(seats, (KILL, FRONT, POLL), strict=True):
        memory[place] = name
    memory, _, mark = seats[1]
    memory[mark] = True
    row.leave(seats[2])
    assert (shared.names(1, RUNNING), shared.names(1, ANSWERED)) == ({KILL}, {FRONT})
    assert shared.names(0, RUNNING) == set()
    shared.give(1, TWO)
    assert shared.names(1, RUNNING) == set()


def test_a_row_shows_whose_response_has_begun_and_what_was_counted(shared):
    row = shared.row(1)
    seats = [row.take() for _ in range(3)]
    for (memory, place, _), name in zip(seats, (KILL, FRONT, POLL), strict=True):
        memory[place] = name
    for (memory, _, at), mark in zip(seats, (RUNNING, ANSWERED, SENT), strict=True):
        memory[at] = mark
    assert (shared.names(1, SENT), shared.names(1, RUNNING, SENT)) == ({POLL}, {KILL, POLL})
    row.leave(seats[2])
    assert shared.names(1, RUNNING, SENT) == {KILL}
    shared.count_death(1)
    assert (shared.names(1, RUNNING, SENT), shared.names(1, COUNTED)) == (set(), {KILL})
    assert shared.names(1, ANSWERED) == {FRONT}


def test_the_requests_beyond_the_last_seat_are_not_seen_and_harm_nobody(shared):
    row = shared.row(0)
    seats = [row.take() for _ in range(SEATS + 2)]
    for number, (memory, place, _) in enumerate(seats):
        memory[place] = named(b"GET /%d\0shop" % number)
    assert len(shared.names(0, RUNNING)) == SEATS
    assert shared.names(1, RUNNING) == set()
    for seat in seats:
        row.leave(seat)
    assert shared.names(0, RUNNING) == set()
    memory, place, _ = row.take()
    memory[place] = KILL
    assert shared.names(0, RUNNING) == {KILL}


def test_the_file_takes_room_only_for_rows_that_were_given(shared, path):
    assert os.stat(path).st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("how", ["killed", "exits", "executes"])
def test_the_kernel_marks_the_row_of_a_process_that_ends(shared, path, how):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mine = mapped(path)
            held = mine.hold(1)
            child = os.fork()  # whose end is not its
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            os.write(writing, b"1" if held else b"0")
            if how == "killed":
                signal.pause()
            elif how == "executes":
                os.execv("/bin/true", ["true"])
        finally:
            os._exit(3)
    try:
        assert os.read(reading, 1) == b"1"
        if how == "killed":
            assert not shared.is_dead(1)
            os.kill(pid, signal.SIGKILL)
    finally:
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(writing)
    assert shared.is_dead(1)
    assert not shared.is_dead(0)
    shared.give(1, None)
    assert not shared.is_dead(1)


def test_entries_are_published_and_answered(shared, path):
    entry = Entry(7, False, 1, 5.0, 65.0, True, True, KILL)
    shared.publish([(3, entry)], [])
    worker = mapped(path)
    assert worker.entries() == {3: entry}
    worker.answer(3, 7)
    assert shared.entries()[3].answered
    shared.publish([(3, entry._replace(until=70.0))], [])  # does not take the answer back
    assert shared.entries()[3].answered
    shared.publish([(3, entry._replace(number=8))], [])
    assert not shared.entries()[3].answered
    shared.publish([], [3])
    assert worker.entries() == {}


# --- a worker ---------------------------------------------------------------------------------------------------------


def serve(environ, start_response):
    return [b""]


class Worker:
    """The third worker, beside one that dies; `master` is called while a request is held."""

    def __init__(self, path: str, **more) -> None:
        self.pauses = 0
        self.master = lambda: None
        self.admission = Admission(mapped(path), 2, 1, pause=self.pause, **more)
        self.admission.begin()

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.master()

    def admit(self, name: bytes, path: str = "/kill"):
        self.admission.look()
        if not self.admission.alert:
            return serve
        noted, application = self.admission.admit(name, serve, {"PATH_INFO": path})
        assert (noted is NAMELESS) == (application is not serve)
        return application


def kill(shared: InFlight, index: int, *names: bytes) -> None:
    """What a death leaves behind."""
    row = shared.row(index)
    for name in names:
        memory, place, _ = row.take()
        memory[place] = name
    at = LOCKS + index * LOCK_BYTES
    shared.memory[at : at + 4] = (0x40000000).to_bytes(4, sys.byteorder)


def test_a_worker_begins_everything_while_nobody_dies(shared, path):
    worker = Worker(path)
    assert worker.admit(KILL) is serve
    assert not worker.admission.alert


def test_what_a_dead_sibling_ran_is_held_until_the_master_has_collected_it(shared, path):
    worker = Worker(path)
    kill(shared, 0, KILL)
    assert worker.admit(FRONT) is serve
    assert worker.pauses == 0

    def master() -> None:
        shared.publish([(0, Entry(1, False, 1, 0.0, 2.0**40, False, False, KILL))], [])
        shared.give(0, None)

    worker.master = master
    assert isinstance(worker.admit(KILL), Refusal)
    assert worker.pauses == 1
    assert worker.admit(FRONT) is serve


def test_what_is_held_is_begun_if_the_master_lets_it_in(shared, path):
    worker = Worker(path)
    kill(shared, 0, KILL)
    worker.master = lambda: shared.give(0, None)
    assert worker.admit(KILL) is serve
    assert worker.pauses == 1


def test_a_slow_thread_does_not_put_back_what_another_has_read_since(shared, path):
    """A thread has read everything, and is slow to note it. Meanwhile the master decides, and another thread looks."""
    worker = Worker(path)
    inflight = worker.admission._shared
    assert inflight is not None
    read = inflight.entries
    looks = threading.Thread(target=worker.admission.look)

    class Slow(dict):
        def items(self):
            inflight.entries = read
            shared.publish([(0, Entry(1, False, 1, 0.0, 2.0**40, False, False, KILL))], [])
            looks.start()
            looks.join(0.1)
            yield from super().items()

    shared.publish([], [])
    inflight.entries = Slow
    worker.admission.look()
    looks.join()
    assert worker.admission.admit(KILL, serve, {"PATH_INFO": "/kill"})[0] is NAMELESS


def test_without_a_master_nothing_is_held(shared, path):
    worker = Worker(path, has_master=lambda: False)
    kill(shared, 0, KILL)
    assert worker.admit(KILL) is serve
    assert worker.pauses == 0


def test_another_generation_s_deaths_and_quarantines_do_not_concern_a_worker(shared, path):
    shared.give(0, Key(2, 1))
    worker = Worker(path)
    kill(shared, 0, KILL)
    shared.publish([(0, Entry(1, False, 2, 0.0, 2.0**40, False, False, KILL))], [])
    assert worker.admit(KILL) is serve
    assert not worker.admission.alert


def test_the_health_path_is_always_answered(shared, path):
    worker = Worker(path, exempt="/health")
    shared.publish([(0, Entry(1, False, 1, 0.0, 2.0**40, False, False, FRONT))], [])
    assert isinstance(worker.admit(FRONT, "/"), Refusal)
    assert worker.admit(FRONT, "/health") is serve


def test_a_quarantine_ends_by_itself(shared, path):
    worker = Worker(path)
    shared.publish([(0, Entry(1, False, 1, 0.0, 0.001, False, False, KILL))], [])
    assert worker.admit(KILL) is serve


def test_an_answered_suspect_is_told_of_once(shared, path):
    worker = Worker(path)
    shared.publish([(4, Entry(9, False, 1, 0.0, 0.0, False, False, FRONT))], [])
    assert worker.admit(FRONT) is serve
    assert worker.admission.alert
    worker.admission.answered(FRONT)
    assert shared.entries()[4].answered


def test_a_table_that_is_being_changed_is_read_again(shared, path):
    worker = Worker(path)
    shared.memory[0] |= 1  # the master is in the middle of it
    shared.memory[8:16] = shared.memory[8:16]
    worker.admit(KILL)
    assert worker.admission.known == b""
    shared.memory[0] &= 0xFE
    shared.publish([(0, Entry(1, False, 1, 0.0, 2.0**40, False, False, KILL))], [])
    assert isinstance(worker.admit(KILL), Refusal)


def test_the_table_has_room_for_a_book_of_suspects(shared):
    names = [named(b"GET /%d\0a" % at) for at in range(ENTRIES)]
    entries = [(at, Entry(at + 1, False, 1, 1.0, 0.0, False, False, name)) for at, name in enumerate(names)]
    shared.publish(entries, [])
    assert len(shared.entries()) == ENTRIES
    assert shared.names(0, RUNNING) == set()
    assert Suspect(1.0).until == 0.0


# --- the master -------------------------------------------------------------------------------------------------------


class Master:
    """With the workers ONE, TWO and THREE."""

    def __init__(self, shared: InFlight) -> None:
        self.processes = Processes(Loop(), lambda process, how: None)
        self.lines: list[str] = []
        self.quarantine = Quarantine(shared, self.processes, lambda: 30.0, lambda level, text: self.lines.append(text))
        for row, key in enumerate((ONE, TWO, THREE)):
            self.processes.expect(key, row).pid = os.getpid()

    def collect(self, *keys: Key) -> None:
        for key in keys:
            process = self.processes.get(key)
            assert process is not None
            self.quarantine.of(process, "was killed")

    def refused(self) -> list[str]:
        return [one["request"] for one in self.quarantine.shown()]


@pytest.fixture
def master(shared):
    return Master(shared)


def test_workers_that_are_dead_when_the_first_is_collected_are_one_death(shared, master):
    for index in range(3):
        kill(shared, index, FRONT)
    master.collect(ONE, TWO, THREE)
    assert master.refused() == []
    assert [line for line in master.lines if "GET /" in line] == master.lines != []
    assert len(master.lines) == 3, "each death is told of"
    kill_again(shared, master, ONE)
    assert master.refused() == ["GET /"]


def kill_again(shared: InFlight, master: Master, key: Key, name: bytes = FRONT) -> None:
    index = (ONE, TWO, THREE).index(key)
    master.quarantine.give(index, key)
    kill(shared, index, name)
    master.collect(key)


def test_workers_that_are_killed_one_by_one_in_a_moment_are_one_death(shared, master, monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    for index in (1, 2):
        memory, place, _ = shared.row(index).take()
        memory[place] = FRONT
    for index, key in enumerate((ONE, TWO, THREE)):
        kill(shared, index, FRONT)
        master.collect(key)
        master.processes.forget(key)
    assert master.refused() == []


def test_workers_that_died_without_a_master_are_one_death(shared, master):
    for index in range(3):
        kill(shared, index, FRONT)
    master.quarantine.of_the_dead([])
    assert master.refused() == []
    kill_again(shared, master, ONE)
    assert master.refused() == ["GET /"]


def test_a_worker_that_dies_after_the_first_was_collected_counts(shared, master):
    kill(shared, 0, KILL)
    master.collect(ONE)
    kill(shared, 1, KILL)
    master.collect(TWO)
    assert master.refused() == ["GET /kill"]


def test_a_suspect_that_a_worker_ran_which_died_beside_another_counts(shared, master):
    kill(shared, 0, KILL)
    master.collect(ONE)
    kill(shared, 1, FRONT)
    kill(shared, 2, KILL)
    master.collect(TWO, THREE)
    assert master.refused() == ["GET /kill"]


def test_what_the_master_has_ended_is_no_death_beside_another(shared, master):
    kill(shared, 0, KILL)
    kill(shared, 1, FRONT)
    ended = master.processes.get(TWO)
    assert ended is not None
    ended.dismissed = True
    master.collect(ONE, TWO)
    kill_again(shared, master, THREE)
    assert master.refused() == []


def test_a_process_that_was_killed_is_ending_before_and_after_its_end():
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        assert not is_ending(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        assert is_ending(pid)
        os.waitpid(pid, 0)
    assert not is_ending(pid)


def test_an_upgrade_goes_on_with_whom_the_master_has_ended():
    loop, child = Loop(), os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        one, another = (Processes(loop, lambda process, how: None) for _ in range(2))
        process = one.expect(ONE, 0)
        one.is_running(process, child)
        process.dismissed = True
        another.inherit(json.loads(json.dumps(one.estate(os.dup))))
        inherited = another.get(ONE)
        assert inherited is not None
        assert inherited.dismissed
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
