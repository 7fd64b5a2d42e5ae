"""Lost jobs: which they are, what is said of them, and for how long."""

from __future__ import annotations

import json
import time

import pytest

from reuseport.cli.overview import render
from reuseport.core.model import FIRST_JOB, Key
from reuseport.ipc.begun import ENTRIES, NAME_BYTES, TENANT_BYTES, Begun, Entry, my_row
from reuseport.ipc.scoreboard import FIELDS, JOBS, Scoreboard
from reuseport.master.losses import COMING, KEPT, REMEMBERED, UNKNOWN, Losses, jobs_at_death
from reuseport.master.processes import Process

WORKER, ITS_JOB = Key(7, 2), Key(7, FIRST_JOB + 99)


def job(name="export", number=1, **facts):
    known = {"number": number, "name": name, "tenant": "acme", "started": time.time() - 12.4, "deadline": None}
    return {**known, "fraction": 0.5, "text": "", "where": "thread", "overdue": False, **facts}


class World:
    """What a Losses is told by and tells. `pass_time` is that of what is to be done later."""

    def __init__(self, directory):
        self.log, self.lost, self.ended, self.due = [], [], [], []
        self.board = Scoreboard(str(directory / "scoreboard"), create=True)
        self.begun = Begun(str(directory / "begun"), create=True)
        self.losses = self.make()

    def make(self):
        return Losses(
            lambda level, text: self.log.append(text),
            lambda seconds, call: self.due.append((seconds, call)),
            lambda key, job: self.lost.append((key, job["name"])),
            lambda key, job: self.ended.append((key, job["name"])),
        )

    def mine(self, row):
        """As the worker maps it."""
        return my_row(self.begun.file.fileno(), row)

    def worker(self, key=WORKER, row=3, told=(), count=0):
        self.begun.give(row, key)
        self.board.write(row, [count if field == JOBS else 0 for field in range(FIELDS)])
        return Process(key, pid=98, row=row, jobs={one["number"]: one for one in told})

    def dies(self, process, how="was killed by SIGKILL"):
        self.losses.of(process, how, self.board, self.begun)

    def pass_time(self):
        due, self.due = self.due, []
        for seconds, call in due:
            assert seconds == COMING
            call()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_loss_is_said_with_name_tenant_and_age(world):
    world.dies(Process(ITS_JOB, pid=99, jobs={1: job(where="process")}))
    late = job(tenant=None, deadline=10.0)
    world.dies(world.worker(told=[late], count=1), "exited")
    assert world.log == [
        "job 'export' of acme is lost, 12 s old: its process 99 was killed by SIGKILL",
        "job 'export' is lost, 12 s old: worker 7.2 exited (its deadline was 10 s)",
    ]
    assert world.lost == [(ITS_JOB, "export"), (WORKER, "export")]
    text = render({"lost": world.losses.shown()}, time.time())
    assert "2 jobs lost within the last hour" in text
    assert "job export, tenant acme, 12s old, 0s ago: its process 99 was killed by SIGKILL" in text


def test_only_so_many_are_kept_and_for_so_long(world, monkeypatch):
    for number in range(1, KEPT + 6):
        world.dies(Process(ITS_JOB, pid=number, jobs={1: job()}))
    shown = world.losses.shown()
    assert (shown["count"], len(shown["jobs"]), shown["jobs"][-1]["pid"]) == (KEPT + 5, KEPT, KEPT + 5)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert world.losses.shown() == {"count": KEPT + 5, "jobs": []}


def test_what_had_just_begun_is_lost_by_name_and_what_had_ended_is_not_lost(world):
    process = world.worker(told=[job("long", 1), job("ended a moment ago", 2)], count=3)
    row = world.mine(3)
    row.add(1, "long", "acme", 1.0, False)
    row.add(2, "ended a moment ago", None, 2.0, False)
    row.remove(2)
    row.add(3, "new", "globex", 3.0, False)
    row.add(4, "newer", None, 4.0, False)
    world.dies(process)
    assert [name for _, name in world.lost] == ["long", "new", "newer"]
    assert [name for _, name in world.ended] == ["ended a moment ago"]
    assert [(one["name"], one["tenant"], one["progress"]) for one in world.losses.shown()["jobs"]] == [
        ("long", "acme", 0.5), ("new", "globex", None), ("newer", None, None),
    ]  # fmt: skip
    assert (row.owner, row.entries()) == (None, [])


def test_a_worker_that_left_in_order_has_lost_nothing_although_its_last_word_was_not_heard(world):
    world.dies(world.worker(told=[job()]), "exited")
    assert (world.lost, world.log, world.ended) == ([], [], [(WORKER, "export")])


@pytest.mark.parametrize(
    ("told", "expected"), [(0, [UNKNOWN] * 2), (1, ["a", UNKNOWN]), (2, ["a", "b"]), (3, ["a", "b"])]
)
def test_a_worker_of_a_version_that_writes_nothing_down_is_believed_its_count(told, expected):
    jobs = [job(name, number, started=float(number)) for number, name in enumerate("abc"[:told], 1)]
    lost, ended = jobs_at_death(jobs, [], 2)
    assert [one["name"] for one in lost] == expected
    assert len(ended) == max(0, told - 2)


def test_what_lies_in_its_row_of_another_worker_was_not_lost_with_it(world):
    """Which had the row before, under a newer master than the one that gave it to this one."""
    world.worker(Key(6, 1))
    world.mine(3).add(1, "long ago", None, 1.0, False)
    world.dies(Process(WORKER, pid=98, row=3, jobs={}))
    assert (world.lost, world.begun.row(3).entries()) == ([], [])


def test_of_too_many_that_had_just_begun_the_log_says_how_many(world):
    process = world.worker(count=ENTRIES + 2)
    for number in range(1, ENTRIES + 3):
        world.mine(3).add(number, f"job {number}", None, float(number), False)
    world.dies(process)
    assert world.log[-1] == "2 jobs that had just begun are lost, name not known: worker 7.2 was killed by SIGKILL"
    assert len(world.log) == ENTRIES + 1
    assert world.losses.shown()["count"] == len(world.lost) == ENTRIES + 2


def asked_for(world):
    process = world.worker(count=1)
    world.mine(3).add(5, "export", "acme", 5.25, True)
    return process


def test_a_job_that_was_asked_for_is_lost_with_its_worker_unless_its_process_comes(world):
    world.dies(asked_for(world))
    assert world.losses.shown()["count"] == 0
    world.pass_time()
    (said,) = world.log
    assert said.startswith("job 'export' of acme is lost") and "while it asked for the job's process" in said
    # It may have come before, or come now; and one of another generation is another job.
    world.losses.has_come(Key(8, FIRST_JOB + 1), job(started=5.25))
    world.dies(asked_for(world))
    world.losses.has_come(ITS_JOB, job(started=5.25))
    world.pass_time()
    world.dies(asked_for(world))
    assert not world.due and len(world.log) == 1


def test_of_those_that_have_come_only_the_last_are_remembered(world):
    for started in range(REMEMBERED + 1):
        for _ in range(2):  # each tells of its progress, too
            world.losses.has_come(ITS_JOB, job(started=float(started)))
    came = json.loads(json.dumps(world.losses.estate(lambda fd: fd)))["came"]
    assert (len(came), came[0]) == (REMEMBERED, [7, 1.0])


def test_who_is_waited_for_is_waited_for_behind_an_exec(world):
    world.dies(asked_for(world))
    left = json.loads(json.dumps(world.losses.estate(lambda fd: fd)))
    world.due.clear()
    world.losses = world.make()
    world.losses.inherit(left)
    world.pass_time()
    assert [name for _, name in world.lost] == ["export"]


def test_a_master_that_another_one_takes_over_from_gives_nobody_up_until_it_goes_on(world):
    world.dies(asked_for(world))
    world.losses.rest()
    world.pass_time()
    assert world.lost == []
    world.losses.go_on()
    world.pass_time()
    assert [name for _, name in world.lost] == ["export"]


def test_what_the_dead_had_is_found_by_the_next_master(world):
    living, dead = world.worker(Key(7, 1), 0, count=1), world.worker(Key(7, 2), 1, count=2)
    for one in (living, dead):
        world.mine(one.row).add(1, f"of {one.key}", None, 1.0, False)
    world.losses.of_the_dead(world.board, world.begun, {living.row})
    assert world.lost == [(dead.key, "of 7.2"), (dead.key, UNKNOWN)]
    assert "worker 7.2 died while there was no master" in world.log[0]
    assert "worker 7.2 died" in render({"lost": world.losses.shown()}, time.time())
    world.losses.of_the_dead(world.board, world.begun, {living.row})
    assert len(world.lost) == 2


def test_a_row_keeps_what_it_is_given_as_far_as_it_has_room(world):
    world.worker()
    row = world.mine(3)
    row.add(1, "é" * 300, "ü" * 300, 1.5, True)
    row.add(2, "surrogate \udcff", "", 0.5, False)
    row.add(3, "ended", None, 0.1, False)
    row.remove(3)
    row.remove(3 + ENTRIES)
    row.remove(0)
    second, first = row.entries()
    assert first == Entry(1, "é" * (NAME_BYTES // 2), "ü" * (TENANT_BYTES // 2), 1.5, True)
    assert second == Entry(2, "surrogate ?", "", 0.5, False)
    assert row.owner == (7, 2)
    assert world.begun.row(3).entries() == [second, first]


def test_a_worker_without_a_file_has_memory_of_its_own():
    row = my_row(None, 3)
    row.add(1, "export", None, 1.0, False)
    assert [entry.name for entry in row.entries()] == ["export"]
