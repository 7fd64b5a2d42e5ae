"""Stories of jobs' processes, as in `test_core_stories`. JOB is one of generation 1."""

from __future__ import annotations

import pytest
from core_world import Story

from reuseport.core import events as ev
from reuseport.core.model import DRAINING, FIRST_JOB, LEAVING, SERVING, STANDBY, WORKING, Key, Release

PID = 4711
JOB = Key(1, FIRST_JOB + PID)


@pytest.fixture
def serving() -> Story:
    """Generation 1 serves, and a job runs in a process of its own."""
    story = Story(workers=2)
    story.release()
    story.serve(1)
    story.after(60)
    assert story.tell(ev.Born(JOB, PID)) == []
    return story


def test_it_is_named_after_its_pid():
    assert str(JOB) == "1.j4711"


def test_its_generation_drains_until_it_has_ended(serving):
    assert serving[1].workers[JOB.number].state == WORKING
    serving.release()
    commands = serving.serve(2)
    assert ev.Drain(JOB) in commands, "it hears of the drain"
    assert ev.Bequeath(JOB) not in commands
    serving.let_go()
    serving.exit((1, 1), (1, 2))
    assert serving.after(3600) == [] and serving[1].workers[JOB.number].state == LEAVING
    assert serving[1].zygote is not None, "it may want another process"
    assert serving.exit(JOB) == [ev.Quit(Key(1, 0))]


def test_its_death_is_nobodys_failure(serving):
    assert serving.exit(JOB) == []
    assert (serving[1].state, serving[1].deaths, serving[1].crashes) == (SERVING, 0, 0)


def test_one_that_a_start_hook_began_holds_up_no_boot_and_ends_with_it():
    story = Story(workers=1)
    story.release()
    story.loads(1)
    story.tell(ev.Forked(Key(1, 1), 1001))
    story.tell(ev.Born(JOB, PID))
    assert story.tell(ev.Ready(Key(1, 1))) == [ev.Accept(Key(1, 1), (0,))]
    story.accept((1, 1))
    story.release()
    story.loads(2)
    other = Key(2, FIRST_JOB + 5)
    story.tell(ev.Born(other, 5))
    assert ev.Quit(other) in story.tell(ev.Failed(Key(2, 1), "it raised"))


def test_a_stop_waits_for_it_and_a_quick_one_does_not(serving):
    commands = serving.tell(ev.StopAsked())
    assert ev.Drain(JOB, last=True) in commands
    serving.exit((1, 1), (1, 2))
    assert serving.after(3600) == []
    assert ev.Quit(JOB) in serving.tell(ev.StopAsked(quick=True))
    serving.sleep()
    assert ev.Kill(JOB) in serving.commands


def test_one_that_comes_when_all_is_over_is_sent_away():
    story = Story(workers=1, standby=600.0)
    story.release()
    story.serve(1)
    story.release()
    story.serve(2)
    story.let_go()
    story.exit((1, 1))
    assert story[1].state == STANDBY
    assert story.tell(ev.Born(JOB, PID)) == [ev.Quit(JOB)]
    assert story[1].workers == {}


def test_the_next_master_knows_it_from_the_roster_and_counts_workers_as_before():
    story = Story()
    release = Release(recipe={"id": 1}, workers=1)
    workers = [
        ev.Survivor(Key(1, 3), 1003, release),
        ev.Survivor(JOB, PID, release, WORKING, -1),
        ev.Survivor(Key(1, 0), 1000, release, "loaded"),
    ]
    story.tell(ev.Adopted(tuple(workers), 1, 1, {1: 3}))
    assert (story[1].state, story[1].forked) == (SERVING, 3)
    assert story.tell(ev.Born(JOB, PID)) == []
    story.tell(ev.Loaded(Key(1, 0)))
    assert story.exit((1, 3)) == [ev.Fork(Key(1, 4), 0)]


def test_alone_it_is_a_generation_that_drains():
    story = Story()
    release = Release(recipe={"id": 1}, workers=1)
    story.tell(ev.Adopted((ev.Survivor(JOB, PID, release, LEAVING, -1),), 1, 1, {}, Release(recipe={"id": 2})))
    assert story[1].state == DRAINING
    assert story.tell(ev.Born(JOB, PID)) == [ev.Drain(JOB)]
