"""Stories of a cluster's life, told to the core event by event. `core_world.Audit` checks every step too.

Key(7, 2) is worker 2 of generation 7, Key(7, 0) its zygote.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from core_world import Story

from reuseport.core import events as ev
from reuseport.core import facts, machine, model, turn
from reuseport.core.model import (
    ACCEPTING,
    CANARY,
    DRAINING,
    ENDING,
    FIRST_COMPANION,
    LEAVING,
    LOADING,
    NOTIFY,
    OPENING,
    SERVING,
    STANDBY,
    TOLD,
    TRANSITIONS,
    WARMING,
    Asker,
    Cluster,
    Generation,
    Key,
    Release,
    Terms,
    Worker,
    slots_of,
)


@pytest.fixture
def story() -> Story:
    """Nothing has happened yet. A release has two workers unless it says otherwise."""
    return Story(workers=2)


@pytest.fixture
def serving(story: Story) -> Story:
    """Generation 1 has served for a minute with two workers."""
    story.release()
    story.serve(1)
    story.after(60)
    return story


def answers(commands: list[ev.Command]) -> dict[str, tuple[bool, int]]:
    return {c.asker.name: (c.ok, c.generation) for c in commands if isinstance(c, ev.Answer)}


def only(commands: list[ev.Command], kind: type) -> list[ev.Command]:
    return [c for c in commands if isinstance(c, kind)]


def drained(commands: list[ev.Command]) -> set[tuple[int, int]]:
    return {tuple(c.key) for c in commands if isinstance(c, ev.Drain)}


def forked(commands: list[ev.Command]) -> list[tuple[int, int]]:
    return [tuple(c.key) for c in commands if isinstance(c, ev.Fork)]


# --- the first boot ---------------------------------------------------------------------------------------------------


def test_a_first_boot_from_start_to_serving(story):
    assert story.release() == [ev.OpenSlots(2), ev.StartZygote(1, story[1].release)]
    assert story.loads(1) == [ev.Fork(Key(1, 1), 0), ev.Fork(Key(1, 2), 1)]
    assert story.readies((1, 1)) == [], "one is ready, and waits for the other"
    assert story.readies((1, 2)) == [ev.Accept(Key(1, 1), (0,)), ev.Accept(Key(1, 2), (1,))]
    assert story.accept((1, 1)) == [] and story.states == {1: OPENING}
    story.accept((1, 2))
    assert story.states == {1: SERVING} and story.audit.records == {1: "serving"}


def test_a_first_boot_that_fails_ends_the_master_with_status_1(story):
    story.release()
    story.tell(ev.Started(Key(1, 0), 1000))
    assert story.tell(ev.Failed(Key(1, 0), "ImportError: no module")) == [ev.Quit(Key(1, 0))]
    assert story.exit((1, 0)) == [ev.Finish(1)]
    assert "generation 1 failed: ImportError: no module" in story.notes


def test_an_interpreter_that_cannot_be_executed_is_a_failed_boot(story):
    story.release()
    assert story.tell(ev.Started(Key(1, 0), error="cannot execute")) == [ev.Finish(1)]


def test_a_newer_release_saves_a_first_boot_that_fails(story):
    story.release()
    story.release()
    assert story.exit((1, 0)) == [], "generation 2 still boots"
    story.serve(2)
    assert story.states == {2: SERVING}


def test_the_script_says_how_many_workers_it_wants(story):
    story.release()
    assert story.loads(1, workers=3)[0] == ev.OpenSlots(3)
    assert len(story[1].workers) == 3


# --- a release --------------------------------------------------------------------------------------------------------


def test_the_old_drain_only_when_the_new_accept(serving):
    serving.release(Asker("me"))
    assert not drained(serving.loads(2)) and not drained(serving.readies((2, 1), (2, 2)))
    assert not drained(serving.accept((2, 1)))
    commands = serving.accept((2, 2))
    assert drained(commands) == {(1, 1), (1, 2)}
    assert serving.states == {1: DRAINING, 2: SERVING}


def test_who_asked_hears_of_it_when_nobody_old_accepts_any_more(serving):
    """So whoever connects after that gets the new version."""
    serving.release(Asker("me"))
    assert answers(serving.serve(2)) == {}
    assert answers(serving.tell(ev.LetGo(Key(1, 1)))) == {}
    assert answers(serving.tell(ev.LetGo(Key(1, 2)))) == {"me": (True, 2)}


def test_who_asked_does_not_wait_for_ever_for_an_old_worker_that_is_slow_to_let_go(serving):
    serving.release(Asker("me"))
    serving.serve(2)
    assert serving.sleep() == pytest.approx(turn.LETTING_GO) and answers(serving.commands) == {"me": (True, 2)}


def test_who_asked_does_not_wait_for_an_old_worker_that_is_blocked(serving):
    serving.tell(ev.Blocked(Key(1, 1)))
    serving.release(Asker("me"))
    serving.serve(2)
    serving.tell(ev.LetGo(Key(1, 3)))
    assert answers(serving.tell(ev.LetGo(Key(1, 2)))) == {"me": (True, 2)}


def test_whoever_waits_for_the_drain_hears_when_the_last_old_worker_has_gone(serving):
    serving.release(Asker("me", "drained"))
    assert answers(serving.serve(2)) == {}
    commands = serving.exit((1, 1), (1, 2))
    assert only(commands, ev.Quit) == [ev.Quit(Key(1, 0))], "the zygote goes last"
    assert answers([*commands, *serving.exit((1, 0))]) == {"me": (True, 2)}
    assert serving.states == {2: SERVING}


def test_who_has_waited_for_a_drain_at_another_master_waits_on_and_hears_it_once(story):
    adopt(story, (6, 0, "loaded"), (6, 1, LEAVING), (7, 0, "loaded"), (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    assert answers(story.tell(ev.DrainAwaited(Asker("me", "drained"), 7))) == {}
    commands = [*story.exit((6, 1)), *story.exit((6, 0))]
    assert answers(commands) == {"me": (True, 7)}
    assert answers(story.tell(ev.DrainAwaited(Asker("late", "drained"), 7))) == {"late": (True, 7)}


def test_many_generations_drain_side_by_side(serving):
    for number in (2, 3, 4):
        serving.release()
        serving.serve(number)
    assert serving.states == {1: DRAINING, 2: DRAINING, 3: DRAINING, 4: SERVING}
    assert machine.wake_at(serving.cluster) is None, "a drain has no deadline"


@pytest.mark.parametrize("event", [ev.Failed(Key(2, 0), "SyntaxError"), ev.Exited(Key(2, 0), "exited with status 3")])
def test_a_failed_release_changes_nothing(serving, event):
    before = serving[1]
    serving.release(Asker("me"))
    serving.tell(ev.Started(Key(2, 0), 2000))
    serving.tell(event)
    serving.exit((2, 0))
    assert serving[1] == before and serving.states == {1: SERVING}
    answer = serving.audit.answers["me"]
    assert not answer.ok and "generation 1 serves on" in answer.text


def test_a_worker_that_dies_while_it_starts_fails_the_release(serving):
    serving.release(Asker("me"))
    serving.loads(2)
    serving.tell(ev.Forked(Key(2, 1), 2001))
    assert set(serving.exit((2, 1))) == {ev.Quit(Key(2, 2)), ev.Quit(Key(2, 0))}
    assert answers(serving.exit((2, 0))) == {"me": (False, 2)}
    assert "before it was ready" in serving.audit.answers["me"].text


def test_a_failure_without_a_reason_is_a_failure_all_the_same(serving):
    serving.release(Asker("me"))
    serving.tell(ev.Failed(Key(2, 0), ""))
    assert answers(serving.exit((2, 0))) == {"me": (False, 2)}


def test_an_import_that_hangs_is_aborted_for_its_stack_and_then_killed(serving):
    serving.release(Asker("me"), boot_timeout=10.0)
    serving.tell(ev.Started(Key(2, 0), 2000))
    assert serving.sleep() == 10.0 and serving.commands == [ev.Abort(Key(2, 0))]
    assert serving.sleep() == turn.QUIT_GRACE and serving.commands == [ev.Kill(Key(2, 0))]
    assert answers(serving.exit((2, 0))) == {"me": (False, 2)}


def test_a_warm_up_that_hangs_is_aborted_and_named(serving):
    serving.release(boot_timeout=10.0)
    serving.loads(2)
    serving.readies((2, 1))
    serving.tell(ev.Forked(Key(2, 2), 2002))
    serving.sleep()
    assert set(serving.commands) == {ev.Abort(Key(2, 1)), ev.Abort(Key(2, 2)), ev.Quit(Key(2, 0))}
    assert serving[2].failure.endswith("(--boot-timeout): 2.2")


def test_a_worker_that_dies_when_it_is_told_to_accept_does_not_stop_the_release(serving):
    serving.release(Asker("me"))
    serving.loads(2)
    serving.readies((2, 1), (2, 2))
    serving.exit((2, 1))
    assert forked(serving.accept((2, 2))) == [(2, 3)]
    assert answers(serving.let_go()) == {"me": (True, 2)}


def test_if_all_die_when_they_are_told_to_accept_the_old_serve_on(serving):
    serving.release()
    serving.loads(2)
    serving.readies((2, 1), (2, 2))
    assert not drained(serving.exit((2, 1), (2, 2), (2, 0)))
    assert serving.states == {1: SERVING}


def test_a_release_that_opens_keeps_its_deadline_when_it_loses_its_zygote(serving):
    serving.release(Asker("me"), boot_timeout=10.0)
    serving.loads(2)
    serving.readies((2, 1), (2, 2))
    serving.exit((2, 0))
    serving.sleep()
    assert serving.states[2] == ENDING, "nobody accepted within the deadline"
    assert answers(serving.exit((2, 1), (2, 2))) == {"me": (False, 2)}


# --- releases in a row ------------------------------------------------------------------------------------------------


def test_a_release_replaces_one_that_boots_twice_and_then_waits(serving):
    for number in (2, 3, 4):
        serving.release(Asker(f"asker {number}"))
    assert serving.states == {1: SERVING, 2: ENDING, 3: ENDING, 4: LOADING}
    assert serving.release(Asker("asker 5")) == [], "two replacements in a row are enough"
    assert answers(serving.release(Asker("asker 6"))) == {"asker 5": (False, 0)}, "a newer one waits in its place"
    assert answers(serving.exit((2, 0), (3, 0))) == {"asker 2": (False, 2), "asker 3": (False, 3)}
    assert serving.audit.records[2] == serving.audit.records[3] == "superseded"
    assert {serving.audit.answers[f"asker {n}"].outcome for n in (2, 3, 5)} == {"superseded"}
    serving.serve(4)
    assert answers(serving.let_go()) == {"asker 4": (True, 4)}
    assert serving.states[5] == LOADING and serving[5].release.recipe == {"id": 6}, "the newest of those that waited"
    serving.serve(5)
    assert answers(serving.let_go()) == {"asker 6": (True, 5)}
    assert [n for n, outcome in serving.audit.records.items() if outcome == "serving"] == [1, 4, 5]


@pytest.mark.parametrize("ends_well", [True, False])
def test_after_a_release_has_ended_two_more_may_be_replaced(serving, ends_well):
    for _ in range(3):
        serving.release()
    if ends_well:
        serving.serve(4)
    else:
        serving.tell(ev.Failed(Key(4, 0), "no"))
        serving.exit((2, 0), (3, 0), (4, 0))
    for _ in range(3):
        serving.release()
    assert serving.states[7] == LOADING and serving.cluster.pending is None


def test_a_release_that_waited_starts_when_the_one_before_it_fails(serving):
    for _ in range(4):
        serving.release()
    serving.tell(ev.Failed(Key(4, 0), "no"))
    assert serving.states[4] == ENDING and serving.states[5] == LOADING


def test_a_release_that_opens_is_not_replaced(serving):
    serving.release()
    serving.loads(2)
    serving.readies((2, 1), (2, 2))
    assert serving.release() == []
    serving.accept((2, 1), (2, 2))
    assert serving.states == {1: DRAINING, 2: SERVING, 3: LOADING}


def test_a_stream_of_hups_ends_in_releases(serving):
    """One every second, each boot takes 2.5 seconds."""
    loading: dict[int, float] = {}
    for _ in range(30):
        serving.release()
        for _ in range(10):
            serving.after(0.1)
            for number, g in list(serving.cluster.generations.items()):
                if g.state == ENDING:
                    serving.exit((number, 0))
                elif g.state == LOADING and serving.now - loading.setdefault(number, serving.now) >= 2.5:
                    serving.serve(number)
    assert len(serving.audit.served) >= 5


# --- processes that die -----------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_forked_again_at_once_for_the_same_slots(serving):
    assert serving.exit((1, 2)) == [ev.Fork(Key(1, 3), 1)]
    assert serving.readies((1, 3)) == [ev.Accept(Key(1, 3), (1,))]


def test_a_zygote_that_dies_is_started_again_from_its_own_release(serving):
    assert serving.exit((1, 0)) == [ev.StartZygote(1, serving[1].release)]
    assert serving.states == {1: SERVING} and len(serving[1].having(ACCEPTING)) == 2
    assert serving.exit((1, 1)) == [], "nobody to ask"
    assert serving.loads(1) == [ev.Fork(Key(1, 3), 0)]


def test_a_zygote_that_hangs_while_it_loads_again_is_ended_and_started_again(serving):
    serving.exit((1, 0))
    assert serving.sleep() == 120.0 and serving.commands == [ev.Abort(Key(1, 0))]
    assert serving.exit((1, 0)) == [ev.StartZygote(1, serving[1].release)]


def test_a_zygote_that_keeps_dying_is_started_less_and_less_often(serving):
    """Also one that loads each time: an import over and over would take a core from the workers."""
    waits = []
    for _ in range(12):
        if not only(serving.exit((1, 0)), ev.StartZygote):
            waits.append(serving.sleep())
        serving.loads(1)
    assert waits == sorted(waits) and len(waits) >= 8
    assert waits[0] < 1 and waits[-1] == pytest.approx(turn.LONGEST_BACKOFF)
    serving.after(turn.YOUNG_DEATH)
    assert only(serving.exit((1, 0)), ev.StartZygote), "it lived, so this is another matter"


def test_killing_every_worker_at_once_is_no_crash_loop(serving):
    assert forked(serving.exit((1, 1), (1, 2))) == [(1, 3), (1, 4)]
    serving.readies((1, 3), (1, 4))
    serving.accept((1, 3), (1, 4))
    assert forked(serving.exit((1, 3), (1, 4))) == [(1, 5), (1, 6)], "nor is it when they were young"


def test_a_crash_loop_backs_off_up_to_half_a_minute(serving):
    waits, number = [], 2
    for _ in range(14):
        if not forked(serving.exit((1, number))):
            waits.append(serving.sleep())
        number = serving[1].forked
    assert waits == sorted(waits) and len(waits) >= 10
    assert waits[0] < 1 and waits[-1] == pytest.approx(turn.LONGEST_BACKOFF)
    assert (1, 1) not in drained(serving.commands) and serving[1].workers[1].state == ACCEPTING


def test_workers_that_were_told_to_go_are_no_crash_loop(serving):
    for number in range(2, 12):
        serving.tell(ev.Retire(Key(1, number), "max requests"))
        serving.readies((1, number + 1))
        serving.accept((1, number + 1))
        serving.exit((1, number))
    assert serving[1].deaths == 0 and forked(serving.exit((1, 12))) == [(1, 13)]


def test_a_worker_that_lived_long_ends_the_backoff(serving):
    for _ in range(6):
        if not forked(serving.exit((1, serving[1].forked))):
            serving.sleep()
    serving.exit((1, serving[1].forked))
    assert serving[1].fork_after > serving.now
    assert len(forked(serving.exit((1, 1)))) == 2


def test_a_worker_that_hangs_while_it_starts_is_replaced(serving):
    serving.exit((1, 2))
    serving.tell(ev.Forked(Key(1, 3), 1003))
    assert serving.sleep() == 120.0
    assert serving.commands == [ev.Abort(Key(1, 3)), ev.Fork(Key(1, 4), 1)]


def test_a_zygote_that_hangs_in_a_fork_is_killed(serving):
    serving.exit((1, 2))
    assert serving.sleep() == 120.0, "it was asked for 1.3 and says nothing"
    assert serving.sleep() == turn.QUIT_GRACE and ev.Kill(Key(1, 0)) in serving.commands
    assert only(serving.exit((1, 0)), ev.StartZygote)


def test_a_worker_whose_zygote_died_before_it_could_name_it_is_killed(serving):
    serving.exit((1, 2))
    serving.exit((1, 0))
    assert serving.tell(ev.Forked(Key(1, 3), 1003)) == [ev.Kill(Key(1, 3))], "nobody knows it"


def test_a_worker_that_is_heard_of_late_and_does_not_go_is_killed(serving):
    """SIGKILL went to its zygote, since its own pid was not known."""
    serving.release(boot_timeout=10.0, workers=1)
    serving.loads(2)
    serving.sleep()
    serving.sleep()
    assert serving.commands == [ev.Kill(Key(2, 0))] * 2
    assert serving.tell(ev.Forked(Key(2, 1), 2001)) == [ev.Quit(Key(2, 1))]
    serving.exit((2, 0))
    serving.sleep()
    assert serving.commands == [ev.Kill(Key(2, 1))]


def test_a_worker_that_was_told_to_go_cannot_fail_a_release(serving):
    serving.release(Asker("me"))
    serving.loads(2)
    assert only(serving.tell(ev.ScaleAsked(-1)), ev.Quit) == [ev.Quit(Key(2, 2))]
    serving.tell(ev.Failed(Key(2, 2), "interrupted"))
    serving.exit((2, 2))
    serving.readies((2, 1))
    serving.accept((2, 1))
    assert answers(serving.let_go()) == {"me": (True, 2)}


# --- replacing a worker -----------------------------------------------------------------------------------------------


def test_a_worker_that_retires_goes_when_its_successor_accepts(serving):
    assert serving.tell(ev.Retire(Key(1, 1), "max requests")) == [ev.Fork(Key(1, 3), 0)]
    assert serving.readies((1, 3)) == [ev.Accept(Key(1, 3), (0,))]
    assert serving.accept((1, 3)) == [ev.Drain(Key(1, 1))]


def test_a_blocked_worker_gets_a_substitute_and_lives(serving):
    assert serving.tell(ev.Blocked(Key(1, 1))) == [ev.Fork(Key(1, 3), 0)]
    serving.readies((1, 3))
    assert serving.accept((1, 3)) == [ev.Drain(Key(1, 1))]
    serving.after(3600)
    assert serving[1].workers[1].state == LEAVING, "a job may be what blocks it"


def test_a_blocked_worker_is_killed_if_the_operator_says_so(story):
    story.release(kill_blocked=True)
    story.serve(1)
    assert story.tell(ev.Blocked(Key(1, 1))) == [ev.Kill(Key(1, 1)), ev.Fork(Key(1, 3), 0)]


def test_a_worker_that_turns_again_is_replaced_all_the_same(serving):
    serving.tell(ev.Blocked(Key(1, 1)))
    serving.tell(ev.Unblocked(Key(1, 1)))
    assert not serving[1].workers[1].blocked
    serving.readies((1, 3))
    assert serving.accept((1, 3)) == [ev.Drain(Key(1, 1))]


# --- scale ------------------------------------------------------------------------------------------------------------


def test_more_workers_get_more_slots_which_have_an_owner_at_once(serving):
    commands = serving.tell(ev.ScaleAsked(1))
    assert commands[0] == ev.OpenSlots(3) and forked(commands) == [(1, 3)]
    assert serving.readies((1, 3)) == [ev.Accept(Key(1, 3), (2,))]


def test_fewer_workers_own_the_slots_of_those_who_go(serving):
    commands = serving.tell(ev.ScaleAsked(-1))
    assert commands == [ev.Accept(Key(1, 1), (0, 1)), ev.Drain(Key(1, 2))]
    assert not drained(serving.tell(ev.ScaleAsked(-5))), "one remains"


def test_who_is_too_many_stays_as_long_as_nobody_else_accepts(serving):
    """Worker 1.1 has crashed and its successor cannot start: 1.2 is all there is."""
    serving.exit((1, 1))
    assert not drained(serving.tell(ev.ScaleAsked(-1)))
    serving.readies((1, 3))
    assert drained(serving.accept((1, 3))) == {(1, 2)}


def test_a_generation_that_boots_is_scaled_too(serving):
    serving.release()
    serving.loads(2)
    assert set(forked(serving.tell(ev.ScaleAsked(1)))) == {(1, 3), (2, 3)}
    assert serving[1].wanted == serving[2].wanted == 3


@pytest.mark.parametrize("workers", range(1, 7))
@pytest.mark.parametrize("slots", range(9))
def test_every_slot_has_one_owner(workers, slots):
    owned = [slot for place in range(workers) for slot in slots_of(place, workers, slots)]
    assert sorted(owned) == list(range(slots))


# --- stop -------------------------------------------------------------------------------------------------------------


def test_a_graceful_stop_drains_and_then_leaves(serving):
    commands = serving.tell(ev.StopAsked())
    assert commands[0] == ev.CloseSlots()
    assert ev.Quit(Key(1, 0)) not in commands, "who still works may have to fork a job"
    assert only(commands, ev.Drain) == [ev.Drain(Key(1, 1), last=True), ev.Drain(Key(1, 2), last=True)]
    assert serving.exit((1, 0), (1, 1)) == []
    assert serving.exit((1, 2)) == [ev.Finish(0)]


def test_a_second_term_makes_it_quick(serving):
    serving.tell(ev.StopAsked(insist=True))
    assert serving.tell(ev.StopAsked()) == [], "`reuseport stop` a second time only waits too"
    assert serving.tell(ev.StopAsked(insist=True)) == [ev.Quit(Key(1, n)) for n in (1, 2, 0)]
    serving.sleep()
    assert set(serving.commands) == {ev.Kill(Key(1, n)) for n in range(3)}


def test_the_graceful_timeout_makes_it_quick(serving):
    serving.tell(ev.StopAsked(timeout=30.0))
    serving.exit((1, 0))
    assert serving.sleep() == 30.0
    assert serving.commands == [ev.Quit(Key(1, 1)), ev.Quit(Key(1, 2))]


def test_a_quick_stop_ends_what_drains_too(serving):
    serving.release()
    serving.serve(2)
    commands = serving.tell(ev.StopAsked(quick=True))
    assert {c.key for c in only(commands, ev.Quit)} == {Key(g, n) for g in (1, 2) for n in range(3)}


def test_a_stop_tells_those_who_drain_already_that_nobody_comes_after_them(serving):
    """Whatever they drain for: a release, a scale-down, a retirement."""
    serving.release()
    serving.serve(2)
    serving.tell(ev.ScaleAsked(-1))
    last = only(serving.tell(ev.StopAsked()), ev.Drain)
    assert {c.key for c in last} == {Key(1, 1), Key(1, 2), Key(2, 1), Key(2, 2)} and all(c.last for c in last)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("state", [LOADING, WARMING, OPENING, SERVING])
def test_a_stop_ends_a_release_in_whatever_state_it_is(serving, state, quick):
    serving.release(Asker("me"))
    if state != LOADING:
        serving.loads(2)
    if state in (OPENING, SERVING):
        serving.readies((2, 1), (2, 2))
        serving.accept((2, 1))
    if state == SERVING:
        serving.accept((2, 2))
    assert serving.states[2] == state
    serving.tell(ev.StopAsked(quick=quick))
    serving.end()
    assert serving.audit.finish == [0]
    assert answers(list(serving.audit.answers.values())) == {"me": (state == SERVING, 2)}
    assert serving.audit.records[2] == ("serving" if state == SERVING else "failed")


def test_an_opening_release_may_have_requests_which_a_graceful_stop_lets_finish(serving):
    serving.release(Asker("me"))
    serving.loads(2)
    serving.readies((2, 1), (2, 2))
    serving.accept((2, 1))
    commands = serving.tell(ev.StopAsked())
    assert drained(commands) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert answers(commands) == {"me": (False, 2)}, "who asked need not wait for the drain"


def test_a_stop_answers_whoever_waits_and_refuses_new_releases(serving):
    for number in range(4):
        serving.release(Asker(f"asker {number}"))
    assert answers(serving.tell(ev.StopAsked())) == {"asker 3": (False, 0)}
    assert answers(serving.release(Asker("late"))) == {"late": (False, 0)}


def test_an_announced_stop_changes_nothing_before_its_time_but_what_workers_say(serving):
    commands = serving.tell(ev.StopAsked(delay=10.0, timeout=30.0))
    assert commands == [
        ev.Accept(Key(1, 1), (0,), farewell=True),
        ev.Accept(Key(1, 2), (1,), farewell=True),
    ]
    assert answers(serving.release(Asker("late"))) == {"late": (False, 0)}
    assert serving.tell(ev.StopAsked(delay=10.0)) == [], "asking again does not put it off"
    serving.exit((1, 1))
    assert serving.readies((1, 3)) == [ev.Accept(Key(1, 3), (0,), farewell=True)], "its replacement says so, too"
    serving.accept((1, 3))
    assert not drained(serving.after(9.9))
    assert drained(serving.after(0.2)) == {(1, 2), (1, 3)}
    serving.after(29.7)
    assert serving.cluster.stopping == "graceful"
    serving.after(0.3)
    assert serving.cluster.stopping == "quick", "the graceful timeout counts from the end of the delay"


def test_a_second_term_cuts_the_delay_short(serving):
    serving.tell(ev.StopAsked(insist=True, delay=10.0))
    assert ev.CloseSlots() in serving.tell(ev.StopAsked(insist=True, delay=10.0))
    assert serving.cluster.stopping == "quick"


def test_nobody_is_told_of_a_stop_where_nothing_serves(story):
    story.release()
    story.tell(ev.StopAsked(delay=10.0))
    assert story.cluster.stopping == "graceful"


def test_a_stop_before_anything_has_begun(story):
    assert story.tell(ev.StopAsked()) == [ev.CloseSlots(), ev.Finish(0)]


# --- adoption ---------------------------------------------------------------------------------------------------------


def adopt(story: Story, *survivors: tuple[int, int, str], workers: int = 2) -> list[ev.Command]:
    """An earlier master left these; (7, 0, "loaded") is a zygote."""
    release = Release(recipe={"id": 0}, workers=workers)
    left = tuple(ev.Survivor(Key(g, n), 1000 * g + n, release, state, max(0, n - 1)) for g, n, state in survivors)
    return story.tell(ev.Adopted(left, last=7, slots=workers))


def test_a_generation_that_outlived_its_master_serves_on(story):
    commands = adopt(story, (7, 0, "loaded"), (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    assert not drained(commands) and not forked(commands) and story.states == {7: SERVING}
    story.tell(ev.Loaded(Key(7, 0)))
    assert forked(story.exit((7, 1))) == [(7, 3)], "from its own zygote"


def test_an_address_that_has_too_few_slots_gets_the_others_and_each_has_an_owner(story):
    """A new --bind, or one whose slots died with those who had them."""
    release = Release(recipe={"id": 0}, workers=2)
    left = tuple(ev.Survivor(Key(7, n), 7000 + n, release, ACCEPTING, n - 1) for n in (1, 2))
    commands = story.tell(ev.Adopted(left, last=7, slots=1))
    assert only(commands, ev.OpenSlots) == [ev.OpenSlots(2)]
    assert {c.key.number: c.slots for c in only(commands, ev.Accept)} == {1: (0,), 2: (1,)}


def test_numbers_go_on_from_the_highest_that_anybody_knows(story):
    story.cluster = Cluster(last=9)  # as the history says
    adopt(story, (7, 0, "loaded"), (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    story.release()
    assert story.states == {7: SERVING, 10: LOADING}


def test_who_has_died_in_between_is_replaced(story):
    assert not forked(adopt(story, (7, 0, "loaded"), (7, 2, ACCEPTING))), "nothing can be asked of it before its hello"
    assert forked(story.tell(ev.Loaded(Key(7, 0)))) == [(7, 3)]


def test_a_zygote_that_did_not_outlive_its_master_is_started_again(story):
    commands = adopt(story, (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    assert [c.generation for c in only(commands, ev.StartZygote)] == [7]


def test_drains_go_on_under_a_new_master(story):
    adopt(story, (5, 0, "loaded"), (5, 2, LEAVING), (7, 0, "loaded"), (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    assert story.states == {5: DRAINING, 7: SERVING}
    assert story.exit((5, 2)) == [ev.Quit(Key(5, 0))]
    story.exit((5, 0))
    assert story.states == {7: SERVING}


def test_of_two_workers_at_one_place_the_older_one_goes(story):
    """Their master died when the successor accepted, and nobody else knew why the older one was to be replaced."""
    release = Release(recipe={"id": 0}, workers=2)
    left = [(0, "loaded", 0), (1, ACCEPTING, 0), (2, ACCEPTING, 1), (3, ACCEPTING, 0)]
    survivors = tuple(ev.Survivor(Key(7, n), 7000 + n, release, state, place) for n, state, place in left)
    assert drained(story.tell(ev.Adopted(survivors, last=7, slots=2))) == {(7, 1)}


def test_of_two_generations_that_accept_the_newer_one_serves(story):
    """Their master died between the new one's accept and the old one's SIGTERM."""
    old, new = ((5, 1, ACCEPTING), (5, 2, ACCEPTING)), ((7, 0, "loaded"), (7, 1, ACCEPTING), (7, 2, ACCEPTING))
    commands = adopt(story, *old, *new)
    assert drained(commands) == {(5, 1), (5, 2)} and story.states == {5: DRAINING, 7: SERVING}


def test_a_generation_that_was_only_told_to_accept_does_not_succeed_one_that_does(story):
    """The order may have been lost with the master: it succeeds, or nothing has changed."""
    old, new = ((5, 0, "loaded"), (5, 1, ACCEPTING), (5, 2, ACCEPTING)), ((7, 0, "loaded"), (7, 1, TOLD), (7, 2, TOLD))
    commands = adopt(story, *old, *new)
    assert drained(commands) == {(7, 1), (7, 2)} and story.states == {5: SERVING, 7: DRAINING}


def test_where_nobody_has_survived_who_accepts_the_next_master_begins_with_a_release(story):
    """What it adopts may be nobody at all, if the processes of a boot were all that was left: it does not give up."""
    commands = story.tell(ev.Adopted((), last=7, slots=2, otherwise=Release(recipe={"id": 1}, workers=2)))
    assert [c.generation for c in only(commands, ev.StartZygote)] == [8] and not only(commands, ev.Finish)


def test_who_was_about_to_take_over_from_a_master_that_dies_adopts_and_releases(story):
    release = Release(recipe={"id": 0}, workers=1)
    left = (ev.Survivor(Key(7, 1), 7001, release, ACCEPTING, 0),)
    story.tell(ev.Adopted(left, last=7, slots=1, otherwise=replace(release, recipe={"id": 1}), renew=True))
    assert story.states == {7: SERVING, 8: LOADING}


def test_the_next_release_gets_a_number_that_was_never_used(story):
    adopt(story, (6, 0, "loaded"), (6, 1, ACCEPTING), (6, 2, ACCEPTING))
    story.release()
    assert story.states == {6: SERVING, 8: LOADING}


# --- rollback ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(serving):
    """Generation 2 serves; generation 1 has drained, and its zygote stands by."""
    serving.release(standby=600.0)
    serving.serve(2)
    serving.let_go()
    serving.exit((1, 1), (1, 2))
    assert serving.states == {1: STANDBY, 2: SERVING}
    return serving


def roll_back(story: Story, to: int, asker: Asker | None = None) -> list[ev.Command]:
    release = story.cluster.generations[to].release if to in story.cluster.generations else Release({"id": to}, 2)
    return story.tell(ev.ReleaseAsked(replace(release, source=to, probation=0.0, standby=600.0), asker))


def test_the_last_generations_zygote_stands_by_and_then_leaves(released):
    assert released.sleep() == 600.0 and released.states == {1: ENDING, 2: SERVING}
    released.exit((1, 0))
    assert released.states == {2: SERVING}


def test_only_the_last_one_stands_by(released):
    released.release(standby=600.0)
    commands = released.serve(3)
    assert ev.Quit(Key(1, 0)) in only(commands, ev.Quit) and released.states == {1: ENDING, 2: DRAINING, 3: SERVING}


def test_a_rollback_forks_from_the_zygote_that_stands_by(released):
    commands = roll_back(released, 1, Asker("me"))
    assert only(commands, ev.CopyZygote) == [ev.CopyZygote(3, 1)] and not only(commands, ev.StartZygote)
    released.serve(3)
    assert answers(released.let_go()) == {"me": (True, 3)} and released.states[3] == SERVING
    assert released[3].origin == 1


def test_a_rollback_without_a_zygote_loads_again(released):
    released.exit((1, 0))
    commands = roll_back(released, 1)
    assert [c.generation for c in only(commands, ev.StartZygote)] == [3]


def test_a_rollback_that_must_load_copies_no_zygote(released):
    """As where the zygote that stands by knows tenants in another way."""
    release = replace(released[1].release, source=1, afresh=True)
    commands = released.tell(ev.RollbackAsked(release, 2, source=1))
    assert [c.generation for c in only(commands, ev.StartZygote)] == [3] and not only(commands, ev.CopyZygote)
    released.serve(3)
    released.release(probation=10.0)
    released.serve(4)
    commands = released.tell(ev.Judged(4, "errors"))
    assert only(commands, ev.CopyZygote) == [ev.CopyZygote(5, 3)], "its own zygote has its own rule"


def test_a_donor_that_dies_first_is_replaced_by_loading_again(released):
    roll_back(released, 1)
    assert [c.generation for c in only(released.exit((1, 0)), ev.StartZygote)] == [3]


def test_a_copy_that_cannot_be_forked_is_replaced_by_loading_again(released):
    roll_back(released, 1)
    commands = released.tell(ev.Started(Key(3, 0), error="could not be forked"))
    assert [c.generation for c in only(commands, ev.StartZygote)] == [3]


def test_a_stop_ends_the_zygote_that_stands_by(released):
    assert ev.Quit(Key(1, 0)) in released.tell(ev.StopAsked())


def test_a_generation_that_does_worse_is_taken_back_and_its_release_fails(released):
    released.release(Asker("me"), probation=10.0, standby=600.0)
    assert answers([*released.serve(3), *released.let_go()]) == {}, "its probation is not over"
    commands = released.tell(ev.Judged(3, "9 % of its answers are errors"))
    assert answers(commands) == {"me": (False, 3)} and only(commands, ev.CopyZygote) == [ev.CopyZygote(4, 2)]
    released.serve(4)
    assert released.states[4] == SERVING and released.audit.taken_back == {3}


def test_a_generation_whose_workers_crash_is_taken_back(released):
    released.release(Asker("me"), probation=10.0)
    released.serve(3)
    assert not only(released.exit((3, 1)), ev.CopyZygote), "one may be an accident"
    assert only(released.exit((3, 2)), ev.CopyZygote) == [ev.CopyZygote(4, 2)]


def test_nothing_is_taken_back_once_a_stop_is_announced(released):
    released.release(Asker("me"), probation=10.0)
    released.serve(3)
    released.tell(ev.StopAsked(delay=5.0))
    commands = released.tell(ev.Judged(3, "it does worse"))
    assert answers(commands) == {"me": (False, 3)}
    assert not [c for c in commands if isinstance(c, ev.StartZygote | ev.CopyZygote)]
    released.after(5)
    assert released.states[3] == DRAINING


def probed(story: Story, **terms: Any) -> list[ev.Command]:
    """Generation 3 is on probation, generation 4 boots and waits for its companion, and 3 gets its verdict."""
    story.release(Asker("me"), probation=60.0, **terms)
    story.serve(3)
    story.let_go()
    story.exit((2, 1), (2, 2))
    story.release(Asker("next"), companions=(Terms("mail", ready=NOTIFY, ready_timeout=900.0),))
    story.loads(4)
    story.readies((4, 1), (4, 2))
    story.tell(ev.Started(Key(4, FIRST_COMPANION), 71))
    story.after(10)
    assert story.states[4] == WARMING
    return story.tell(ev.Judged(3, "it does worse"))


def test_a_verdict_is_told_while_a_release_boots(released):
    assert answers(probed(released)) == {"me": (False, 3)}
    assert released.audit.taken_back == {3} and released.states[4] == WARMING
    assert "generation 3 failed its probation: it does worse" in released.audit.answers["me"].text
    assert "when the boot of generation 4 has ended" in released.audit.answers["me"].text


@pytest.mark.parametrize("standby", [0.0, 600.0])
def test_the_taking_back_begins_when_the_boot_has_failed(released, standby):
    probed(released, standby=standby)
    released.after(700)
    assert released.states[2] == STANDBY, "the zygote to go back to is kept"
    commands = released.tell(ev.Exited(Key(4, FIRST_COMPANION), "exited with status 1"))
    assert only(commands, ev.CopyZygote) == [ev.CopyZygote(5, 2)]
    released.exit((4, 1), (4, 2), (4, 0))
    released.serve(5)
    assert released.states[5] == SERVING and released.cluster.last == 5


def test_what_serves_instead_is_not_taken_back(released):
    probed(released)
    released.tell(ev.Said(Key(4, FIRST_COMPANION), 71, ready=True))
    released.after(2)
    released.accept((4, 1), (4, 2))
    released.let_go()
    released.after(2)
    assert released.states[4] == SERVING and released.cluster.last == 4
    assert {name: answer.ok for name, answer in released.audit.answers.items()} == {"me": False, "next": True}


@pytest.mark.parametrize("stop", [ev.StopAsked(), ev.StopAsked(delay=5.0), ev.StopAsked(quick=True)])
def test_a_generation_with_a_verdict_has_not_succeeded_when_the_server_stops(released, stop):
    probed(released)
    released.tell(stop)
    released.after(5)
    released.exit((4, 1), (4, 2), (4, 0), (3, 1), (3, 2), (3, 0))
    assert not released.audit.answers["me"].ok


def test_a_verdict_of_an_older_version_of_the_server_is_no_success_either(released):
    """That version waited with the answer until the boot had ended."""
    probed(released)
    judged = released.cluster.generations[3]
    generations = {**released.cluster.generations, 3: replace(judged, askers=(Asker("old"),), reported=False)}
    state, commands = machine.step(replace(released.cluster, generations=generations), ev.StopAsked(), released.now)
    answer = {c.asker.name: c for c in commands if isinstance(c, ev.Answer)}["old"]
    assert state.stopping and not answer.ok and answer.text == "generation 3 failed its probation: it does worse"


def test_who_stands_its_probation_is_a_success(released):
    released.release(Asker("me"), probation=10.0)
    released.serve(3)
    released.let_go()
    assert answers(released.after(9.9)) == {} and answers(released.after(0.2)) == {"me": (True, 3)}
    assert not released.tell(ev.Judged(3, "too late"))


# --- canaries ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trial(serving):
    """Generation 2 is on trial beside generation 1."""
    serving.release(Asker("me"), canary={"tenants": ["acme"]})
    assert answers(serving.serve(2)) == {"me": (True, 2)}
    assert serving.states == {1: SERVING, 2: CANARY}
    return serving


def test_a_canary_owns_no_slot_and_sends_nobody_away(trial):
    assert {trial.audit.told[Key(2, n)] for n in (1, 2)} == {None}
    assert not trial.audit.left


def test_a_promotion_gives_it_the_slots_and_only_then_the_old_one_drains(trial):
    commands = trial.tell(ev.PromoteAsked(Asker("operator")))
    assert {c.key.number: c.slots for c in only(commands, ev.Accept)} == {1: (0,), 2: (1,)} and not drained(commands)
    assert drained(trial.accept((2, 1), (2, 2))) == {(1, 1), (1, 2)}
    assert answers(trial.let_go()) == {"operator": (True, 2)} and trial.states == {1: DRAINING, 2: SERVING}


def test_a_promotion_goes_on_record_when_a_worker_has_said_that_it_accepts(trial):
    """Until then a next master takes it for the canary that it was, with the workers that served as one."""
    trial.tell(ev.PromoteAsked())
    recorded = trial[2].on_record
    assert trial[2].release.canary is None and recorded.release.canary == {"tenants": ["acme"]}
    assert {w.state for w in recorded.workers.values()} == {ACCEPTING}
    trial.tell(ev.Accepting(Key(2, 1)))
    recorded = trial[2].on_record
    assert recorded.release.canary is None
    assert {n: w.state for n, w in recorded.workers.items()} == {1: ACCEPTING, 2: TOLD}


def test_there_is_nothing_to_promote(serving):
    assert answers(serving.tell(ev.PromoteAsked(Asker("operator")))) == {"operator": (False, 0)}


def test_a_release_takes_the_place_of_both(trial):
    trial.release(Asker("you"))
    assert drained([*trial.serve(3)]) | trial.audit.left >= {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert trial.states == {1: DRAINING, 2: DRAINING, 3: SERVING}


def test_a_second_canary_takes_the_place_of_the_first(trial):
    trial.release(canary={"tenants": ["globex"]})
    trial.serve(3)
    assert trial.states == {1: SERVING, 2: DRAINING, 3: CANARY}


def test_no_promotion_while_a_release_boots(trial):
    trial.release()
    assert answers(trial.tell(ev.PromoteAsked(Asker("operator")))) == {"operator": (False, 0)}


def test_a_canary_that_lost_a_worker_gets_another(trial):
    assert forked(trial.exit((2, 1))) == [(2, 3)]
    trial.readies((2, 3))
    assert trial.audit.told[Key(2, 3)] is None


def test_a_promotion_at_a_moment_without_workers_changes_nothing(trial):
    trial.exit((2, 1), (2, 2))
    assert answers(trial.tell(ev.PromoteAsked(Asker("operator")))) == {"operator": (False, 0)}
    assert trial.states == {1: SERVING, 2: CANARY}
    trial.readies((2, 3), (2, 4))
    trial.accept((2, 3), (2, 4))
    trial.tell(ev.PromoteAsked())
    trial.accept((2, 3), (2, 4))
    assert trial.states == {1: DRAINING, 2: SERVING}


def test_what_was_only_on_trial_neither_stands_by_nor_is_it_gone_back_to(trial):
    trial.release(standby=60.0, probation=30.0)
    trial.serve(3)
    trial.exit((1, 1), (1, 2), (2, 1), (2, 2))
    trial.exit((2, 0))
    assert trial.states == {1: STANDBY, 3: SERVING}
    commands = trial.tell(ev.Judged(3, "it does worse"))
    assert only(commands, ev.CopyZygote) == [ev.CopyZygote(4, 1)] and trial[4].release.canary is None


def test_a_zygote_that_hangs_while_it_copies_itself_is_ended_and_the_version_is_loaded():
    story = Story(workers=1, standby=60.0, boot_timeout=30.0)
    for number in (1, 2):
        story.release()
        story.serve(number)
    story.exit((1, 1))
    version = story[1].release
    commands = story.tell(ev.ReleaseAsked(replace(version, source=1)))
    assert only(commands, ev.CopyZygote) == [ev.CopyZygote(3, 1)]
    assert story.sleep() == turn.COPYING and story.commands == [ev.Quit(Key(1, 0))]
    assert story.sleep() == turn.QUIT_GRACE and story.commands == [ev.Kill(Key(1, 0))]
    assert only(story.exit((1, 0)), ev.StartZygote)[0].generation == 3
    story.serve(3)
    assert story.states[3] == SERVING


def test_a_failed_probation_goes_back_to_what_served_and_not_to_a_canary_that_drains(trial):
    trial.release(probation=30.0)
    trial.serve(3)
    trial.tell(ev.Judged(3, "it does worse"))
    assert trial[4].origin == 1 and trial[4].release.canary is None


def test_a_canary_that_is_replaced_does_not_end_the_standby_of_the_version_before():
    story = Story(workers=1, standby=60.0)
    for number in (1, 2):
        story.release()
        story.serve(number)
    story.exit((1, 1))
    for number in (3, 4):
        story.release(canary={"tenants": ["acme"]})
        story.serve(number)
    assert story.states == {1: STANDBY, 2: SERVING, 3: DRAINING, 4: CANARY}


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_diagram_names_every_state_and_every_trigger():
    """The picture in model.py's docstring is drawn by hand from TRANSITIONS; its words must be the table's."""
    text = model.__doc__ or ""
    diagram = "\n".join(line for line in text.splitlines() if re.search("[─│└┘┴┬>]", line))
    drawn = set(re.findall(r"[a-z]+(?: [a-z]+)*", diagram))
    states = set(TRANSITIONS)
    triggers = {trigger for lines in TRANSITIONS.values() for trigger in lines}
    assert drawn == states | triggers
    assert set(re.findall(r"^- \*(\w+)\*", text, re.MULTILINE)) == states, "each state is explained"


def test_the_words_of_the_diagram_say_how_many_states_there_are():
    words = {6: "six", 7: "seven", 8: "eight"}
    assert f"moves through {words[len(TRANSITIONS)]} states" in (model.__doc__ or "")


def test_every_line_of_the_table_ends_in_a_state():
    assert {target for lines in TRANSITIONS.values() for target in lines.values()} <= set(TRANSITIONS)
    assert TRANSITIONS[ENDING] == {}


def test_a_way_that_the_table_does_not_have_is_a_defect():
    one = turn.Turn(Cluster(), 0.0)
    g = one.put(Generation(1, Release(), 1, SERVING, workers={1: Worker(0, ACCEPTING)}))
    with pytest.raises(turn.IllegalTransition, match="no way out by 'failed'"):
        one.move(g, "failed")


def test_every_event_has_a_handler():
    assert set(facts.HANDLERS) == set(ev.Event.__args__)
