"""Stories of companions, as in `test_core_stories`. MAIL is one of generation 1; its process has pid 71."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from core_world import Story

from reuseport.core import events as ev
from reuseport.core.companions import AGAIN, LOOPING, SILENT, STEADY, failing
from reuseport.core.model import (
    CANARY,
    COMMAND,
    DRAINING,
    ENDED,
    ENDING,
    FIRST_COMPANION,
    KILLED,
    LINE,
    NOTIFY,
    RUNNING,
    SERVING,
    STANDBY,
    STOPPING,
    TIMER,
    WAITING,
    WARMING,
    YOUTH,
    Asker,
    Key,
    Release,
    Terms,
)
from reuseport.core.turn import QUIT_GRACE


def first(generation: int) -> Key:
    return Key(generation, FIRST_COMPANION)


def second(generation: int) -> Key:
    return Key(generation, FIRST_COMPANION + 1)


MAIL = first(1)


def staffed(story: Story, number: int) -> list[ev.Command]:
    """The generation's only worker is ready."""
    story.loads(number)
    return story.readies((number, 1))


def begin(story: Story, *keys: Key) -> list[ev.Command]:
    for key in keys:
        story.tell(ev.Started(key, key.generation * 10 + 70 + key.number - FIRST_COMPANION))
    return story.commands


def serve(story: Story, number: int) -> list[ev.Command]:
    """A release whose one companion begins without trouble, to the end."""
    staffed(story, number)
    begin(story, first(number))
    story.after(1.0)
    return story.accept((number, 1))


def make(**terms: object) -> Story:
    story = Story(workers=1, companions=(Terms("mail", **terms),))  # type: ignore[arg-type]
    story.release()
    return story


@pytest.fixture
def serving() -> Story:
    """Generation 1 has served for a minute, with its companion."""
    story = make()
    serve(story, 1)
    story.after(60)
    return story


def state(story: Story, key: Key) -> str:
    return story[key.generation].companions[key.number].state


# --- its beginning ----------------------------------------------------------------------------------------------------


def test_it_begins_when_every_worker_is_ready_and_the_switch_waits_for_it():
    story = make(ready_after=2.0)
    story.loads(1)
    assert ev.Launch(MAIL) not in story.commands
    assert story.readies((1, 1)) == [ev.Launch(MAIL)]
    assert begin(story, MAIL) == [ev.Go(MAIL)]
    assert story.after(1.9) == [] and story[1].state == WARMING
    assert story.after(0.1) == [ev.Accept(Key(1, 1), (0,))] and state(story, MAIL) == RUNNING


@pytest.mark.parametrize("restart", ["always", "on-failure", "never"])
def test_one_that_fails_before_the_switch_fails_the_release(restart: str, serving):
    serving.release(Asker("me"), companions=(Terms("mail", restart=restart),))
    staffed(serving, 2)
    begin(serving, first(2))
    commands = serving.tell(ev.Exited(first(2), "exited with status 1"))
    assert commands == [ev.Quit(Key(2, 1)), ev.Quit(Key(2, 0))]
    serving.exit((2, 1), (2, 0))
    assert serving.audit.answers["me"].text == (
        "generation 2 failed: companion 2.mail exited with status 1, 0.0 s after its start; generation 1 serves on"
    )
    assert serving.states == {1: SERVING} and state(serving, MAIL) == RUNNING


def test_one_that_always_runs_may_not_end_well_before_the_switch_either(serving):
    serving.release()
    staffed(serving, 2)
    begin(serving, first(2))
    serving.tell(ev.Exited(first(2), "exited", clean=True))
    assert serving[2].state == ENDING, "a command that goes into the background looks like this"


def test_one_that_may_end_well_holds_up_nothing():
    story = make(restart="on-failure")
    staffed(story, 1)
    begin(story, MAIL)
    assert story.tell(ev.Exited(MAIL, "exited", clean=True)) == [ev.Accept(Key(1, 1), (0,))]
    assert state(story, MAIL) == ENDED


def test_a_process_that_is_not_to_be_had_is_asked_for_again_until_the_boot_is_over():
    story = make()
    story.notes.clear()
    staffed(story, 1)
    for _ in range(3):
        assert story.tell(ev.Started(MAIL, error="no process for it")) == []
        assert story.sleep() == AGAIN and story.commands == [ev.Launch(MAIL)]
    assert len(story.notes) == 2, "that it loaded, and once that there is no process"
    while story.states == {1: WARMING}:
        story.tell(ev.Started(MAIL, error="no process for it"))
        story.sleep()
    assert story[1].failure == (
        "not every companion had started within 120 s (--boot-timeout): 1.mail (no process for it)"
    )


def test_a_failed_release_is_told_while_its_companions_still_finish(serving):
    serving.release(Asker("me"), companions=(Terms("mail"), Terms("post")))
    staffed(serving, 2)
    begin(serving, first(2), second(2))
    assert ev.Stop(first(2)) in serving.tell(ev.Exited(second(2), "exited with status 1"))
    serving.exit((2, 1), (2, 0))
    assert not serving.audit.answers["me"].ok
    assert serving.states == {1: SERVING, 2: ENDING}
    assert serving.after(3600) == [], "what it has begun it may finish"
    serving.tell(ev.Exited(first(2), "exited", clean=True))
    assert serving.states == {1: SERVING}


# --- it shows that it is ready ----------------------------------------------------------------------------------------

SHOWS = (NOTIFY, COMMAND, LINE)


def shows(story: Story, key: Key, **fields: object) -> list[ev.Command]:
    """Its process says of itself that it is ready, or what the fields say."""
    pid = story[key.generation].companions[key.number].pid
    return story.tell(ev.Said(key, pid, **(fields or {"ready": True})))  # type: ignore[arg-type]


def fails(story: Story, key: Key) -> str:
    g = story[key.generation]
    return failing(g, g.companions[key.number], story.now)


def ready_to_show(ready: str = NOTIFY, **terms: object) -> Story:
    """Generation 1 boots, and its companion has been started."""
    story = make(ready=ready, **{"ready_after": 0.0, "ready_timeout": 20.0, **terms})
    staffed(story, 1)
    begin(story, MAIL)
    return story


@pytest.mark.parametrize("ready", SHOWS)
def test_the_switch_waits_until_it_shows_that_it_is_ready(ready: str):
    story = ready_to_show(ready)
    assert story.after(19.9) == [] and state(story, MAIL) == YOUTH
    assert shows(story, MAIL) == [ev.Accept(Key(1, 1), (0,))] and state(story, MAIL) == RUNNING
    assert "companion 1.mail is ready, 19.9 s after its start" in story.notes


def test_the_old_one_keeps_running_until_the_new_one_is_ready():
    story = ready_to_show()
    shows(story, MAIL)
    story.accept((1, 1))
    story.release()
    staffed(story, 2)
    begin(story, first(2))
    assert story.after(19.0) == [] and state(story, MAIL) == RUNNING
    shows(story, first(2))
    assert ev.Stop(MAIL) in story.accept((2, 1))


@pytest.mark.parametrize("ready", SHOWS)
def test_one_that_is_not_ready_in_time_fails_the_release_and_the_old_one_notices_nothing(ready: str, serving):
    terms = (Terms("mail", ready=ready, ready_timeout=5.0, stop_timeout=3.0), Terms("post"))
    serving.release(Asker("me"), companions=terms)
    staffed(serving, 2)
    begin(serving, first(2), second(2))
    assert serving.after(4.9) == [] or serving[2].state == WARMING
    commands = serving.after(0.1)
    assert {ev.Stop(first(2)), ev.Stop(second(2)), ev.Quit(Key(2, 1)), ev.Quit(Key(2, 0))} == set(commands)
    serving.exit((2, 1), (2, 0))
    assert serving.audit.answers["me"].text == (
        f"generation 2 failed: companion 2.mail was not ready within 5 s (ready_timeout): {SILENT[ready]}; "
        "generation 1 serves on"
    )
    assert state(serving, MAIL) == RUNNING
    assert serving.after(3.0) == [ev.Kill(first(2))]


def test_what_is_known_of_its_lateness_is_told():
    story = ready_to_show(COMMAND)
    shows(story, MAIL, why="its ready_command exited with status 1: no broker")
    assert story[1].companions[MAIL.number].why == "its ready_command exited with status 1: no broker"
    story.after(20.0)
    assert story[1].failure.endswith("(ready_timeout): its ready_command exited with status 1: no broker")


@pytest.mark.parametrize("restart", ["always", "on-failure", "never"])
@pytest.mark.parametrize("clean", [True, False])
def test_one_that_ends_before_it_is_ready_fails_the_release_however_it_ended(restart: str, clean: bool, serving):
    serving.release(Asker("me"), companions=(Terms("mail", restart=restart, ready=NOTIFY),))
    staffed(serving, 2)
    begin(serving, first(2))
    serving.tell(ev.Exited(first(2), "exited", clean=clean))
    serving.exit((2, 1), (2, 0))
    assert serving.audit.answers["me"].text == (
        "generation 2 failed: companion 2.mail exited, 0.0 s after its start and before it was ready; "
        "generation 1 serves on"
    )


def test_one_that_is_ready_and_ends_while_another_is_not_fails_the_release_too():
    story = make(ready=NOTIFY, processes=2)
    staffed(story, 1)
    begin(story, MAIL, second(1))
    shows(story, MAIL)
    story.tell(ev.Exited(MAIL, "exited with status 1"))
    assert story[1].failure.startswith("companion 1.mail:1 exited with status 1")


def test_each_process_of_one_has_to_show_it():
    story = make(ready=NOTIFY, processes=2, ready_after=0.0)
    staffed(story, 1)
    begin(story, MAIL, second(1))
    assert shows(story, MAIL) == [] and state(story, second(1)) == YOUTH
    assert shows(story, second(1)) == [ev.Accept(Key(1, 1), (0,))]


def test_what_a_former_process_said_does_not_count():
    story = ready_to_show()
    shows(story, MAIL)
    story.accept((1, 1))
    pid = story[1].companions[MAIL.number].pid
    story.tell(ev.Exited(MAIL, "exited with status 1"))
    story.sleep()
    story.tell(ev.Started(MAIL, pid + 1))
    story.tell(ev.Said(MAIL, pid, ready=True))
    assert state(story, MAIL) == YOUTH


def test_a_timer_is_not_shortened_by_what_is_said():
    story = make(ready=TIMER, ready_after=2.0)
    staffed(story, 1)
    begin(story, MAIL)
    assert shows(story, MAIL) == [] and state(story, MAIL) == YOUTH


def test_with_ready_after_it_must_also_have_run_for_so_long():
    story = ready_to_show(ready_after=30.0)
    story.after(5.0)
    assert shows(story, MAIL) == []
    assert story.after(24.9) == [] and state(story, MAIL) == YOUTH, "its readiness is shown: it cannot be late any more"
    assert story.after(0.1) == [ev.Accept(Key(1, 1), (0,))]


def test_it_may_ask_for_more_time_again_and_again():
    story = ready_to_show(ready_timeout=5.0)
    story.after(4.0)
    shows(story, MAIL, extend=0.5)
    assert story[1].companions[MAIL.number].ready_by == story.now + 1.0, "it takes no time away"
    for _ in range(5):
        shows(story, MAIL, extend=10.0)
        assert story.after(9.0) == [] and story[1].state == WARMING
    story.after(1.0)
    assert "was not ready within 50 s" in story[1].failure or "was not ready within 49 s" in story[1].failure


def test_what_it_says_of_itself_is_kept_until_it_ends():
    story = ready_to_show()
    shows(story, MAIL, status="loading the model")
    assert story[1].companions[MAIL.number].status == "loading the model" and state(story, MAIL) == YOUTH
    shows(story, MAIL)
    story.accept((1, 1))
    shows(story, MAIL, status="")
    assert story[1].companions[MAIL.number].status == ""
    shows(story, MAIL, status="2 tasks")
    story.tell(ev.Exited(MAIL, "exited"))
    assert story[1].companions[MAIL.number].status == ""


def test_a_companion_may_take_longer_than_the_boot():
    story = Story(workers=1, boot_timeout=10.0, companions=(Terms("mail", ready=NOTIFY, ready_timeout=60.0),))
    story.release()
    staffed(story, 1)
    begin(story, MAIL)
    assert story.after(50.0) == [] and story[1].state == WARMING
    assert shows(story, MAIL) == [ev.Accept(Key(1, 1), (0,))]
    assert story.after(9.9) == []
    story.accept((1, 1))
    assert story[1].state == SERVING


def held(workers: int = 1) -> Story:
    """The boot has ten seconds, and waits for its companion for fifty."""
    terms = (Terms("mail", ready=NOTIFY, ready_after=0.0, ready_timeout=90.0),)
    story = Story(workers=workers, boot_timeout=10.0, companions=terms)
    story.release()
    story.loads(1)
    story.readies(*((1, n + 1) for n in range(workers)))
    begin(story, MAIL)
    story.after(50.0)
    assert story[1].state == WARMING
    return story


def test_a_worker_that_is_wanted_meanwhile_has_its_own_time():
    story = held()
    story.tell(ev.ScaleAsked(1))
    assert story[1].state == WARMING
    assert story.after(9.0) == []
    story.readies((1, 2))
    assert story.after(9.0) == [] and story[1].state == WARMING, "the boot waits for its companion alone again"
    assert len(shows(story, MAIL)) == 2


def test_a_worker_that_is_too_many_meanwhile_may_end():
    story = held(workers=2)
    assert story.tell(ev.ScaleAsked(-1)) == [ev.Quit(Key(1, 2))]
    assert story[1].state == WARMING
    story.exit((1, 2))
    assert shows(story, MAIL) == [ev.Accept(Key(1, 1), (0, 1))]


@pytest.mark.parametrize("why", [ev.Retire(Key(1, 1), "it uses 900 MB"), ev.Blocked(Key(1, 1))])
def test_a_worker_that_is_replaced_meanwhile_has_a_successor_with_its_own_time(why: ev.Event):
    story = held()
    assert story.tell(why) == [ev.Fork(Key(1, 2), 0)]
    assert story.after(9.0) == [] and story[1].state == WARMING
    story.readies((1, 2))
    assert story.after(20.0) == [] and story[1].state == WARMING
    assert ev.Accept(Key(1, 2), (0,)) in shows(story, MAIL)


@pytest.mark.parametrize("event", [ev.Retire(Key(1, 1), "it uses 900 MB"), ev.ScaleAsked(1)])
def test_a_worker_that_is_not_ready_in_its_own_time_fails_the_boot(event: ev.Event):
    story = held()
    story.tell(event)
    story.after(9.9)
    assert story[1].state == WARMING
    story.after(0.1)
    assert story[1].failure == "not every worker was ready within 10 s (--boot-timeout): 1.2"


def test_the_boots_own_time_counts_for_one_that_could_not_be_started():
    story = Story(workers=1, boot_timeout=10.0, companions=(Terms("mail", ready=NOTIFY, ready_timeout=60.0),))
    story.release()
    staffed(story, 1)
    while story.states == {1: WARMING}:
        story.tell(ev.Started(MAIL, error="no process for it"))
        story.sleep()
    assert story[1].failure.startswith("not every companion had started within 10 s (--boot-timeout)")


def test_a_promotion_waits_for_readiness_and_is_none_without_it(trial):
    terms = (Terms("mail", ready=NOTIFY, ready_after=0.0, ready_timeout=300.0),)
    trial.release(companions=terms, canary={"tenants": ["acme"]})
    staffed(trial, 3)
    trial.accept((3, 1))
    trial.tell(ev.PromoteAsked(Asker("me")))
    begin(trial, first(3))
    assert trial.after(299.0) == [] and trial.states[3] == CANARY
    trial.after(1.0)
    assert trial.audit.answers["me"].text == (
        "generation 3 was not promoted: companion 3.mail was not ready within 300 s (ready_timeout): "
        "it has not sent READY=1"
    )
    trial.tell(ev.Exited(first(3), "was killed by SIGTERM"))
    trial.tell(ev.PromoteAsked())
    begin(trial, first(3))
    assert shows(trial, first(3)) == [ev.Accept(Key(3, 1), (0,))]


def test_after_a_stop_signal_nothing_is_late():
    story = ready_to_show()
    story.tell(ev.StopAsked())
    assert state(story, MAIL) == STOPPING
    story.exit((1, 1), (1, 0))
    assert story.after(3600) == []


# --- it fails after the switch ----------------------------------------------------------------------------------------


@pytest.fixture
def shown() -> Story:
    """Generation 1 serves, with a companion that has shown that it is ready."""
    story = ready_to_show()
    shows(story, MAIL)
    story.accept((1, 1))
    return story


def test_one_that_is_started_again_must_be_ready_again_and_is_not_ended_when_it_is_late(shown):
    shown.tell(ev.Exited(MAIL, "exited with status 1"))
    shown.sleep()
    begin(shown, MAIL)
    assert fails(shown, MAIL) == ""
    assert shown.after(20.0) == [] and state(shown, MAIL) == YOUTH
    assert fails(shown, MAIL) == "not ready"
    assert any("companion 1.mail was not ready within 20 s (ready_timeout)" in text for text in shown.notes)
    assert shown.after(3600) == [], "it may have begun tasks"
    assert shows(shown, MAIL) == [] and state(shown, MAIL) == RUNNING
    assert fails(shown, MAIL) == ""


def test_a_crash_loop_is_told_until_it_has_run_for_a_while(shown):
    for loss in range(LOOPING):
        assert fails(shown, MAIL) == ""
        shown.tell(ev.Exited(MAIL, "exited with status 1"))
        assert (fails(shown, MAIL) == "crash-looping") is (loss == LOOPING - 1)
        shown.sleep()
        begin(shown, MAIL)
        shows(shown, MAIL)
    assert fails(shown, MAIL) == "crash-looping"
    shown.after(STEADY)
    assert fails(shown, MAIL) == ""


def test_a_slow_import_that_fails_is_a_crash_loop_too(shown):
    """It runs for longer than what makes a timer's companion steady, and is never ready."""
    for _ in range(LOOPING):
        shown.tell(ev.Exited(MAIL, "exited with status 1"))
        shown.sleep()
        begin(shown, MAIL)
        shown.after(STEADY + 5)
    assert fails(shown, MAIL) == "crash-looping"
    delays = shown[1].companions[MAIL.number].losses
    assert delays == LOOPING


def test_one_that_has_failed_for_good_is_told():
    story = make(restart="never")
    serve(story, 1)
    story.tell(ev.Exited(MAIL, "exited with status 1"))
    assert fails(story, MAIL) == "failed"
    story = make(restart="on-failure")
    serve(story, 1)
    story.tell(ev.Exited(MAIL, "exited", clean=True))
    assert fails(story, MAIL) == ""


def test_nothing_of_an_old_generation_fails(shown):
    for _ in range(LOOPING):
        shown.tell(ev.Exited(MAIL, "exited with status 1"))
        shown.sleep()
        begin(shown, MAIL)
    shows(shown, MAIL)
    assert fails(shown, MAIL) == "crash-looping"
    shown.release(companions=())
    staffed(shown, 2)
    shown.accept((2, 1))
    assert fails(shown, MAIL) == ""


def on_probation(**terms: object) -> Story:
    """Generation 2 serves on probation, with a companion of these terms that has been started."""
    story = Story(workers=1, companions=(Terms("mail", exclusive=bool(terms.get("exclusive"))),))
    story.release()
    staffed(story, 1)
    if not terms.get("exclusive"):
        begin(story, MAIL)
        story.after(1.0)
    story.accept((1, 1))
    if terms.get("exclusive"):
        begin(story, MAIL)
    story.release(probation=60.0, standby=600.0, companions=(Terms("mail", ready_after=0.0, **terms),))  # type: ignore[arg-type]
    staffed(story, 2)
    if not terms.get("exclusive"):
        begin(story, first(2))
        shows(story, first(2))
        story.accept((2, 1))
    else:
        story.accept((2, 1))
        story.tell(ev.Exited(MAIL, "exited", clean=True))
        begin(story, first(2))
    assert story.states[2] == SERVING
    return story


def test_an_exclusive_one_that_is_not_ready_in_time_is_taken_back_on_probation():
    story = on_probation(exclusive=True, ready=NOTIFY, ready_timeout=5.0)
    story.after(5.0)
    assert 2 in story.audit.taken_back
    assert any("failed its probation: companion 2.mail was not ready within 5 s" in text for text in story.notes)


def test_an_exclusive_one_that_ends_before_it_is_ready_is_taken_back_on_probation():
    story = on_probation(exclusive=True, ready=NOTIFY)
    story.tell(ev.Exited(first(2), "exited", clean=True))
    story.sleep()
    begin(story, first(2))
    story.tell(ev.Exited(first(2), "exited", clean=True))
    assert 2 in story.audit.taken_back


def test_without_a_probation_an_exclusive_one_that_is_not_ready_is_told():
    story = make(exclusive=True, ready=NOTIFY, ready_timeout=5.0)
    staffed(story, 1)
    story.accept((1, 1))
    begin(story, MAIL)
    assert story.after(5.0) == [] and fails(story, MAIL) == "not ready"


def test_one_that_ends_for_good_with_a_failure_is_taken_back_on_probation():
    story = on_probation(restart="never", ready=NOTIFY)
    story.tell(ev.Exited(first(2), "exited with status 1"))
    assert 2 in story.audit.taken_back


def test_status_0_of_one_that_was_ready_is_no_crash():
    """Such as a worker that leaves after so many tasks."""
    story = on_probation(ready=NOTIFY)
    for _ in range(4):
        story.tell(ev.Exited(first(2), "exited", clean=True))
        story.sleep()
        begin(story, first(2))
        shows(story, first(2))
    assert 2 not in story.audit.taken_back


# --- a drain ----------------------------------------------------------------------------------------------------------


def test_the_old_one_gets_its_signal_when_the_new_generation_serves_and_is_waited_for(serving):
    serving.release(standby=600.0)
    commands = serve(serving, 2)
    assert commands.count(ev.Stop(MAIL)) == 1
    serving.let_go()
    serving.exit((1, 1))
    assert serving.after(100) == [] and serving.states == {1: DRAINING, 2: SERVING}
    serving.tell(ev.Exited(MAIL, "exited", clean=True))
    assert serving.states == {1: STANDBY, 2: SERVING} and serving.audit.drained == {1}


def test_who_waits_for_the_drain_waits_for_it(serving):
    serving.release(Asker("me", "drained"))
    serve(serving, 2)
    serving.let_go()
    serving.exit((1, 1), (1, 0))
    assert "me" not in serving.audit.answers
    serving.tell(ev.Exited(MAIL, "exited", clean=True))
    assert serving.audit.answers["me"].ok


def test_one_that_drains_is_not_started_again_however_it_ended(serving):
    serving.release()
    serve(serving, 2)
    assert serving.tell(ev.Exited(MAIL, "was killed by SIGSEGV")) == []
    assert state(serving, MAIL) == ENDED
    assert serving.after(3600) == []
    assert "companion 1.mail was killed by SIGSEGV, 0.0 s after its stop signal" in serving.notes
    assert not any("started again" in text for text in serving.notes)


def test_after_stop_timeout_it_is_killed_and_the_log_says_so():
    story = make(stop_timeout=30.0)
    serve(story, 1)
    story.release()
    serve(story, 2)
    assert story.after(29.9) == []
    assert story.after(0.1) == [ev.Kill(MAIL)]
    assert "companion 1.mail is killed: it had not ended 30.0 s after its stop signal" in story.notes
    assert story.after(3600) == []


def test_a_stop_waits_for_it_and_a_quick_one_sends_no_second_signal(serving):
    assert ev.Stop(MAIL) in serving.tell(ev.StopAsked())
    serving.exit((1, 1), (1, 0))
    assert serving.after(3600) == []
    assert serving.tell(ev.StopAsked(insist=True)) == []
    assert serving.sleep() == QUIT_GRACE and serving.commands == [ev.Kill(MAIL)]
    assert serving.tell(ev.Exited(MAIL, "was killed by SIGKILL")) == [ev.Finish(0)]


def test_a_stop_that_comes_while_its_process_is_prepared_ends_that_before_it_begins():
    story = make()
    staffed(story, 1)
    story.tell(ev.StopAsked())
    assert begin(story, MAIL) == [ev.Kill(MAIL)]
    story.exit((1, 1), (1, 0))
    assert story.tell(ev.Exited(MAIL, "was killed by SIGKILL")) == [ev.Finish(0)]


# --- ends by itself ---------------------------------------------------------------------------------------------------


def test_it_is_started_again_ever_later_until_it_has_run_for_a_while(serving):
    delays = []
    for _ in range(4):
        serving.tell(ev.Exited(MAIL, "exited with status 1"))
        delays.append(serving.sleep())
        assert serving.commands == [ev.Launch(MAIL)]
        begin(serving, MAIL)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert "companion 1.mail exited with status 1, 0.0 s after its start; it is started again in 0.8 s" in serving.notes
    serving.after(STEADY)
    serving.tell(ev.Exited(MAIL, "exited with status 1"))
    assert serving.sleep() == pytest.approx(0.1)
    assert serving[1].companions[MAIL.number].restarts == 5


@pytest.mark.parametrize(
    ("restart", "clean", "again"),
    [
        ("always", True, True),
        ("always", False, True),
        ("on-failure", True, False),
        ("on-failure", False, True),
        ("never", True, False),
        ("never", False, False),
    ],
)
def test_after_which_ends_it_is_started_again(restart: str, clean: bool, again: bool):
    story = make(restart=restart)
    serve(story, 1)
    story.tell(ev.Exited(MAIL, "exited", clean=clean))
    assert state(story, MAIL) == (WAITING if again else ENDED)


def test_its_failures_count_in_a_probation():
    story = Story(workers=1, companions=(Terms("mail"),))
    story.release()
    serve(story, 1)
    story.release(probation=60.0, standby=600.0)
    serve(story, 2)
    for _ in range(2):
        story.tell(ev.Exited(first(2), "exited with status 1"))
        if story.states[2] == SERVING and 3 not in story.states:
            story.sleep()
            begin(story, first(2))
    assert 2 in story.audit.taken_back
    assert any("2 of its processes have crashed; generation 3 brings back 1" in text for text in story.notes)


# --- only once --------------------------------------------------------------------------------------------------------


def test_an_exclusive_one_begins_when_its_generation_serves_and_the_last_has_ended():
    story = make(exclusive=True)
    staffed(story, 1)
    assert story.accept((1, 1)) == [ev.Launch(MAIL)]
    begin(story, MAIL)
    story.release()
    staffed(story, 2)
    commands = story.accept((2, 1))
    assert ev.Stop(MAIL) in commands and ev.Launch(first(2)) not in commands
    assert story.after(3600) == []
    assert ev.Launch(first(2)) in story.tell(ev.Exited(MAIL, "exited", clean=True))


def test_of_several_that_drain_the_last_one_makes_way():
    story = make(exclusive=True)
    staffed(story, 1)
    story.accept((1, 1))
    begin(story, MAIL)
    for number in (2, 3):
        story.release()
        staffed(story, number)
        story.accept((number, 1))
    assert state(story, first(2)) == ENDED, "it never had its turn"
    assert story.tell(ev.Exited(MAIL, "exited", clean=True))[0] == ev.Launch(first(3))


# --- canaries and rollbacks -------------------------------------------------------------------------------------------


def test_a_canary_has_none_until_it_is_promoted(serving):
    serving.release(canary={"tenants": ["acme"]})
    staffed(serving, 2)
    serving.accept((2, 1))
    assert serving.states == {1: SERVING, 2: CANARY} and state(serving, first(2)) == WAITING
    assert serving.after(3600) == []
    assert serving.tell(ev.PromoteAsked()) == [ev.Launch(first(2))]
    begin(serving, first(2))
    assert serving.after(1.0) == [ev.Accept(Key(2, 1), (0,))]
    assert ev.Stop(MAIL) in serving.accept((2, 1))


@pytest.fixture
def trial(serving) -> Story:
    """Generation 2 is on trial beside 1."""
    serving.release(canary={"tenants": ["acme"]})
    staffed(serving, 2)
    serving.accept((2, 1))
    return serving


def test_a_canary_whose_companion_does_not_begin_stays_one(trial):
    trial.tell(ev.PromoteAsked(Asker("me")))
    begin(trial, first(2))
    trial.tell(ev.Exited(first(2), "exited with status 1"))
    assert trial.states == {1: SERVING, 2: CANARY}
    assert trial.audit.answers["me"].text == (
        "generation 2 was not promoted: companion 2.mail exited with status 1, 0.0 s after its start"
    )
    assert trial.after(3600) == [] and state(trial, MAIL) == RUNNING
    assert trial.tell(ev.PromoteAsked()) == [ev.Launch(first(2))], "once more"


def test_a_promotion_that_a_release_overtakes_is_none_and_its_companions_go(trial):
    trial.tell(ev.PromoteAsked(Asker("me")))
    begin(trial, first(2))
    assert ev.Stop(first(2)) in trial.release()
    assert not trial.audit.answers["me"].ok
    trial.tell(ev.Exited(first(2), "exited", clean=True))
    assert state(trial, first(2)) == WAITING


def test_a_promotion_ends_at_its_deadline(trial):
    trial.tell(ev.PromoteAsked(Asker("me")))
    while "me" not in trial.audit.answers:
        trial.tell(ev.Started(first(2), error="no process for it"))
        trial.sleep()
    assert trial.audit.answers["me"].text.endswith("within 120 s (--boot-timeout): 2.mail (no process for it)")


def test_a_rollback_brings_back_the_companions_of_that_version(serving):
    serving.release(companions=(Terms("post"),))
    serve(serving, 2)
    serving.tell(ev.ReleaseAsked(replace(serving[1].release, source=1)))
    assert [c.label for c in serving[3].companions.values()] == ["mail"]


@pytest.mark.parametrize("fails_by", ["its end", "its time"])
def test_a_rollback_to_what_stands_by_does_not_wait_and_does_not_fail_by_a_companion(fails_by):
    story = make(ready=NOTIFY, ready_after=0.0, ready_timeout=5.0)
    staffed(story, 1)
    begin(story, MAIL)
    shows(story, MAIL)
    story.accept((1, 1))
    story.release(companions=(Terms("mail"),), standby=600.0)
    serve(story, 2)
    story.let_go()
    story.tell(ev.Exited(MAIL, "exited", clean=True))
    story.exit((1, 1))
    assert story.states == {1: STANDBY, 2: SERVING}
    back = replace(story[1].release, source=1, standby=600.0)
    assert ev.CopyZygote(3, 1) in story.tell(ev.ReleaseAsked(back, Asker("me")))
    commands = staffed(story, 3)
    assert ev.Accept(Key(3, 1), (0,)) in commands and ev.Launch(first(3)) in commands
    begin(story, first(3))
    assert ev.Stop(first(2)) in story.accept((3, 1))
    story.let_go()
    assert story.audit.answers["me"].ok and state(story, first(3)) == YOUTH
    if fails_by == "its end":
        story.tell(ev.Exited(first(3), "exited with status 1"))
    else:
        story.after(5.0)
        assert fails(story, first(3)) == "not ready"
    assert story[3].state == SERVING


# --- another master ---------------------------------------------------------------------------------------------------


def adopt(*survivors: ev.Survivor, terms: Terms = Terms("mail"), **left) -> Story:  # noqa: B008
    story = Story()
    release = Release(recipe={"id": 1}, workers=1, companions=(terms,))
    others = (ev.Survivor(Key(1, 1), 1001, release), ev.Survivor(Key(1, 0), 1000, release, "loaded"))
    mine = tuple(replace(one, release=release) for one in survivors)
    story.tell(ev.Adopted((*others, *mine), 1, 1, {1: 1}, **left))
    return story


def test_the_next_master_adopts_it():
    story = adopt(ev.Survivor(MAIL, 71, Release(), RUNNING))
    assert (story[1].state, state(story, MAIL)) == (SERVING, RUNNING)
    assert story.commands == [ev.Accept(Key(1, 1), (0,))]


def test_one_that_has_had_its_signal_gets_no_second_one_and_its_time_begins_again():
    story = Story()
    release = Release(recipe={"id": 1}, workers=1, companions=(Terms("mail", stop_timeout=30.0),))
    survivor = ev.Survivor(MAIL, 71, release, STOPPING)
    commands = story.tell(ev.Adopted((survivor,), 1, 1, {}, Release(recipe={"id": 2})))
    assert not [c for c in commands if isinstance(c, ev.Stop)]
    assert story[1].state == DRAINING and state(story, MAIL) == STOPPING
    story.after(30)
    assert ev.Kill(MAIL) in story.commands


def test_one_whose_sigkill_may_not_have_been_sent_gets_it_from_the_next_master():
    assert ev.Kill(MAIL) in adopt(ev.Survivor(MAIL, 71, Release(), KILLED)).commands


def test_one_that_had_ended_for_good_is_not_begun_anew_and_one_that_waited_is():
    once = Terms("once", restart="never")
    assert state(adopt(ended=(MAIL,), terms=once), MAIL) == ENDED
    assert ev.Launch(MAIL) in adopt(terms=once).commands


@pytest.mark.parametrize(
    ("restart", "clean", "again"),
    [
        ("never", False, False),
        ("never", True, False),
        ("on-failure", True, False),
        ("on-failure", False, True),
        ("always", True, True),
    ],
)
def test_one_that_ended_while_no_master_looked_is_begun_anew_as_its_terms_say(restart, clean, again):
    story = adopt(gone={MAIL: clean}, terms=Terms("mail", restart=restart))
    assert (ev.Launch(MAIL) in story.commands) is again
    assert (state(story, MAIL) == ENDED) is not again


@pytest.mark.parametrize("ready", SHOWS)
def test_one_that_was_not_ready_may_have_said_so_while_there_was_no_master(ready: str):
    terms = Terms("mail", ready=ready, ready_after=0.0, ready_timeout=5.0)
    story = adopt(ev.Survivor(MAIL, 71, Release(), YOUTH), terms=terms)
    assert story.after(4.9) == [] and state(story, MAIL) == YOUTH
    story.after(0.1)
    if ready == COMMAND:
        assert fails(story, MAIL) == "not ready", "the next master asks it anew"
    else:
        assert state(story, MAIL) == RUNNING and fails(story, MAIL) == ""
        assert any("companion 1.mail counts as ready: it has run for 5 s" in text for text in story.notes)


def test_one_that_says_so_to_the_next_master_is_ready():
    terms = Terms("mail", ready=NOTIFY, ready_after=0.0)
    story = adopt(ev.Survivor(MAIL, 71, Release(), YOUTH), terms=terms)
    shows(story, MAIL)
    assert state(story, MAIL) == RUNNING


def test_terms_survive_json():
    release = Release(recipe={"id": 1}, companions=(Terms("mail", 2, False, "never", 3.0, 4.0, NOTIFY, 5.0),))
    assert Release(**json.loads(json.dumps(asdict(release)))) == release
    assert [c.label for c in release.seats().values()] == ["mail:1", "mail:2"]
