"""Stories of operators: a rollback while a release boots, two operators at once, an abort, and who is told what.

`core_world.Audit` checks every step too.
"""

from __future__ import annotations

import pytest
from core_world import Story

from reuseport.core import events as ev
from reuseport.core import turn
from reuseport.core.model import (
    ABORTED,
    CANARY,
    DRAINING,
    ENDING,
    LOADING,
    OPENING,
    PROMOTION,
    ROLLBACK,
    SERVING,
    SUPERSEDED,
    WARMING,
    Asker,
    Key,
    Terms,
)


@pytest.fixture
def story() -> Story:
    """Generations 1 and 2 were released a minute ago; 2 serves, and 1 still has a worker that works."""
    made = Story(workers=2, standby=600.0)
    made.release()
    made.serve(1)
    made.release()
    made.serve(2)
    made.let_go()
    made.exit((1, 2))
    made.after(60)
    assert made.states == {1: DRAINING, 2: SERVING}
    return made


@pytest.fixture
def trial(story: Story) -> Story:
    """Generation 3 is on trial beside generation 2, for a minute."""
    story.release(canary={"tenants": ["acme"]})
    story.serve(3)
    story.after(60)
    assert story.states[3] == CANARY
    return story


def told(commands: list[ev.Command]) -> dict[str, tuple[bool, int, str]]:
    return {c.asker.name: (c.ok, c.generation, c.outcome) for c in commands if isinstance(c, ev.Answer)}


def text_of(commands: list[ev.Command]) -> str:
    [text] = [c.text for c in commands if isinstance(c, ev.Answer)]
    return text


def boot(story: Story, state: str, number: int = 3) -> None:
    """Generation 3 boots, and "deploy" waits for it."""
    story.release(Asker("deploy"))
    if state != LOADING:
        story.loads(number)
    if state == OPENING:
        story.readies(*((number, n) for n in sorted(story[number].workers)))
    assert story.states[number] == state
    story.after(1)


def ends(story: Story, number: int) -> list[ev.Command]:
    """The processes of a boot that was given up end."""
    done: list[ev.Command] = []
    for n in sorted(story[number].workers):
        done += story.exit((number, n))
    return done + story.exit((number, 0))


# --- while a release boots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [LOADING, WARMING])
@pytest.mark.parametrize("abort", [True, False])
def test_a_rollback_or_an_abort_ends_the_release_that_boots_and_changes_nothing_else(story, state, abort):
    boot(story, state)
    if abort:
        story.tell(ev.AbortAsked(Asker("ops"), "reuseport abort (alice)"))
    else:
        story.roll_back(Asker("ops"), to=1, by="reuseport rollback (alice)")
    assert story.states == {1: DRAINING, 2: SERVING, 3: ENDING} and story.cluster.last == 3
    assert told(ends(story, 3)) == {"deploy": (False, 3, ABORTED), "ops": (True, 2, "")}
    command = "reuseport abort (alice)" if abort else "reuseport rollback (alice)"
    deployed = story.audit.answers["deploy"].text
    assert deployed == f"generation 3 was aborted by {command}; generation 2 serves on"
    assert "generation 3 was booting, and was aborted; generation 2 serves on" in story.audit.answers["ops"].text
    assert story.audit.answers["ops"].aborted == 3 and story.audit.records[3] == ABORTED
    assert story.states == {1: DRAINING, 2: SERVING}


@pytest.mark.parametrize("number", [0, 2])
def test_a_rollback_to_what_serves_ends_the_release_too(story, number):
    boot(story, LOADING)
    story.roll_back(Asker("ops"), number=number, source=number, refusal="it is what serves now")
    assert told(ends(story, 3))["ops"] == (True, 2, "")


def test_a_rollback_to_another_version_takes_the_place_of_the_release_that_boots(story):
    boot(story, LOADING)
    story.roll_back(Asker("ops"), to=1, number=1, source=1, by="reuseport rollback (alice)")
    assert story.states == {1: DRAINING, 2: SERVING, 3: ENDING, 4: LOADING}
    assert told(ends(story, 3)) == {"deploy": (False, 3, SUPERSEDED)}
    assert "superseded by generation 4, asked for by reuseport rollback (alice)" in story.audit.answers["deploy"].text
    story.serve(4)
    assert told(story.let_go()) == {"ops": (True, 4, "")} and story[4].origin == 1


def test_the_release_that_waits_behind_it_ends_too(story):
    for asker in ("first", "second", "third"):
        story.release(Asker(asker))
    assert told(story.release(Asker("waits"))) == {}
    answered = told(story.tell(ev.AbortAsked(Asker("ops"), "reuseport abort (alice)")))
    assert answered == {"waits": (False, 0, ABORTED)}
    for number in (3, 4, 5):
        story.exit((number, 0))
    assert {n: a.outcome for n, a in story.audit.answers.items()} == {
        "first": SUPERSEDED, "second": SUPERSEDED, "third": ABORTED, "waits": ABORTED, "ops": "",
    }  # fmt: skip
    assert story.states == {1: DRAINING, 2: SERVING} and story.cluster.pending is None


def test_after_an_abort_two_more_releases_may_be_replaced(story):
    for _ in range(3):
        story.release()
    story.tell(ev.AbortAsked())
    for number in (3, 4, 5):
        story.exit((number, 0))
    for _ in range(3):
        story.release()
    assert story.states[8] == LOADING and story.cluster.pending is None


def test_a_release_that_accepts_already_is_not_aborted_but_taken_back_when_it_serves(story):
    boot(story, OPENING)
    assert told(story.tell(ev.AbortAsked(Asker("late")))) == {"late": (False, 0, "")}
    assert "accepts already" in story.audit.answers["late"].text
    assert story.roll_back(Asker("ops"), to=1) == [] and story.states[3] == OPENING
    assert story.roll_back(Asker("other"), to=1) == [], "a second operator waits for the same"
    answered = told(story.accept((3, 1), (3, 2)))
    assert answered == {} and story.states[4] == LOADING and story[4].origin == 2
    commands = story.serve(4)
    assert told(commands) == {} or told(commands)["deploy"]
    story.let_go()
    story.after(turn.LETTING_GO)
    assert {n: a.ok for n, a in story.audit.answers.items() if n in ("ops", "other")} == {"ops": True, "other": True}
    assert story.cluster.change.what == ROLLBACK and story.cluster.change.came_from == 3


def test_what_was_to_be_taken_back_and_failed_needs_no_rollback(story):
    boot(story, OPENING)
    story.roll_back(Asker("ops"), to=1)
    story.exit((3, 1), (3, 2))
    assert told(story.commands)["ops"] == (True, 2, "") and story.cluster.last == 3


def test_a_rollback_that_waits_for_the_version_that_boots_is_told_when_the_old_workers_accept_no_more(story):
    boot(story, OPENING)
    story.roll_back(Asker("ops"), to=3, number=3, source=3)
    assert story.cluster.pending is not None
    assert told(story.accept((3, 1), (3, 2))) == {} and story.cluster.pending is None, "workers of 2 may still accept"
    assert told(story.let_go())["ops"] == (True, 3, "") and story.cluster.last == 3


def test_there_is_nothing_to_abort(story, trial):
    for asked in (ev.AbortAsked(Asker("ops")),):
        assert told(story.tell(asked)) == {"ops": (False, 0, "")}
    assert "no release is under way; generation 2 serves, and 3 is on trial" in story.audit.answers["ops"].text


def test_a_first_boot_cannot_be_aborted():
    story = Story(workers=1)
    story.release(Asker("unit"))
    assert told(story.tell(ev.AbortAsked(Asker("ops")))) == {"ops": (False, 0, "")}
    assert told(story.roll_back(Asker("other"))) == {"other": (False, 0, "")}
    assert story.states == {1: LOADING}


def test_an_abort_of_a_canary_that_boots_leaves_an_older_trial_alone(trial):
    trial.release(Asker("deploy"), canary={"tenants": ["globex"]})
    trial.tell(ev.AbortAsked(Asker("ops")))
    assert told(trial.exit((4, 0))) == {"deploy": (False, 4, ABORTED), "ops": (True, 2, "")}
    assert trial.states == {1: DRAINING, 2: SERVING, 3: CANARY}


def test_an_abort_that_was_asked_for_before_the_boot_began_changes_nothing(story):
    seen = story.now
    story.after(0.2)
    boot(story, LOADING)
    for asked in (ev.AbortAsked(Asker("a"), seen_at=seen), ev.RollbackAsked(None, 2, Asker("b"), seen_at=seen)):
        assert "generation 3 has begun to boot after this was asked" in text_of(story.tell(asked))
    assert story.states[3] == LOADING


def test_one_who_does_not_wait_hears_at_once(story):
    assert told(story.release(Asker("deploy", "none"))) == {"deploy": (True, 0, "")}
    assert text_of(story.commands) == "generation 3 has begun"
    assert told(story.tell(ev.AbortAsked(Asker("ops", "none")))) == {"ops": (True, 0, "")}
    assert story.audit.answers["ops"].aborted == 3
    assert told(story.tell(ev.StopAsked())) == {}
    assert told(story.release(Asker("late", "none"))) == {"late": (False, 0, "")}


def test_two_rollbacks_while_a_release_boots_end_it_and_go_no_further(story):
    boot(story, LOADING)
    seen = story.now
    by = "reuseport rollback (alice)"
    story.after(0.2)
    story.roll_back(Asker("alice"), to=1, session="alice", by=by, seen_at=seen)
    story.after(0.2)
    commands = story.roll_back(Asker("bob"), to=1, session="alice", seen_at=story.now)
    assert told(commands) == {"bob": (True, 2, "")}, "the first one has not been answered yet"
    ends(story, 3)
    commands = story.roll_back(Asker("late"), to=1, session="alice", seen_at=seen + 0.1)
    assert told(commands) == {"late": (True, 2, "")}, "it was started while generation 3 booted"
    assert text_of(commands).startswith(f"generation 3 was aborted already, 0.2 s ago, by {by}; generation 2 serves on")
    story.after(turn.AGAIN - 1)
    for asked in (ev.AbortAsked(Asker("eve"), session="eve", seen_at=story.now),):
        assert told(story.tell(asked)) == {"eve": (True, 2, "")}
    assert told(story.roll_back(Asker("joe"), to=1, session="joe", seen_at=story.now)) == {"joe": (True, 2, "")}
    assert story.states == {1: DRAINING, 2: SERVING} and story.cluster.last == 3
    story.roll_back(Asker("more"), to=1, session="alice", seen_at=story.now)
    assert story.states[4] == LOADING, "the same operator, who knows of it, goes back"


def test_a_rollback_of_a_release_that_has_failed_meanwhile_goes_no_further(story):
    boot(story, LOADING)
    seen = story.now
    story.after(0.1)
    story.tell(ev.Failed(Key(3, 0), "ImportError"))
    commands = story.roll_back(Asker("ops"), to=1, session="alice", seen_at=seen)
    assert told(commands) == {"ops": (True, 2, "")} and story.cluster.last == 3
    assert text_of(commands).startswith("generation 3 has failed by itself, 0.0 s ago; generation 2 serves on")
    assert told(story.tell(ev.AbortAsked(Asker("too"), session="alice", seen_at=seen))) == {"too": (True, 2, "")}
    ends(story, 3)
    story.roll_back(Asker("more"), to=1, session="bob", seen_at=story.now)
    assert story.states[4] == LOADING, "it was begun when nothing booted any more"


def test_a_rollback_after_another_operators_abort_goes_back(story):
    boot(story, LOADING)
    story.tell(ev.AbortAsked(Asker("alice"), "reuseport abort (alice)", "alice", story.now))
    ends(story, 3)
    story.after(5)
    assert told(story.tell(ev.AbortAsked(Asker("eve"), session="eve", seen_at=story.now))) == {"eve": (True, 2, "")}
    story.roll_back(Asker("bob"), to=1, session="bob", seen_at=story.now)
    assert story.states[4] == LOADING and story[4].origin == 1, "no rollback has been made yet"
    story.serve(4)
    assert told(story.let_go())["bob"] == (True, 4, "")


def test_a_rollback_that_was_begun_while_the_aborted_release_booted_goes_no_further(story):
    boot(story, LOADING)
    seen = story.now
    story.after(0.2)
    story.tell(ev.AbortAsked(Asker("alice"), "reuseport abort (alice)", "alice", story.now))
    ends(story, 3)
    story.after(5)
    assert told(story.roll_back(Asker("bob"), to=1, session="bob", seen_at=seen)) == {"bob": (True, 2, "")}
    assert story.cluster.last == 3


def promoting(answered: bool) -> Story:
    """Canary 2 is being promoted, and waits for its companion; Alice has aborted the boot of generation 3 just now."""
    made = Story(workers=1)
    made.release()
    made.serve(1)
    made.release(canary={"tenants": ["acme"]}, companions=(Terms("mail", ready_after=60.0),))
    made.serve(2)
    made.after(60)
    made.release(canary={"tenants": ["acme"]})
    made.tell(ev.AbortAsked(Asker("alice"), "reuseport abort (alice)", "alice", made.now))
    made.after(0.5)
    if answered:
        ends(made, 3)
    made.after(1)
    made.tell(ev.PromoteAsked(Asker("carol"), session="carol", seen_at=made.now))
    made.after(1)
    assert made.states[2] == CANARY and made[2].promote_by is not None
    return made


@pytest.mark.parametrize("answered", [True, False])
def test_an_abort_of_a_promotion_is_none_of_a_boot_that_another_operator_has_ended(answered):
    story = promoting(answered)
    answers = told(story.tell(ev.AbortAsked(Asker("bob"), "reuseport abort (bob)", "bob", story.now)))
    assert answers["bob"] == (True, 1, "") and answers["carol"] == (False, 2, ABORTED)
    assert story.audit.answers["bob"].text == "the promotion was aborted; generation 1 serves on"
    assert story.states[2] == CANARY and story[2].promote_by is None


def test_a_boot_that_began_after_another_operators_abort_is_not_called_aborted(story):
    boot(story, LOADING)
    story.tell(ev.AbortAsked(Asker("alice"), session="alice", seen_at=story.now))
    ends(story, 3)
    story.after(1)
    seen = story.now
    story.after(1)
    story.release(Asker("next"))
    assert told(story.tell(ev.AbortAsked(Asker("bob"), session="bob", seen_at=seen))) == {"bob": (False, 0, "")}
    assert story.audit.answers["bob"].text.startswith("generation 4 has begun to boot after this was asked")
    assert story.states[4] == LOADING


def test_who_names_the_generation_goes_back_from_it_after_an_abort(story):
    boot(story, LOADING)
    seen = story.now
    story.tell(ev.AbortAsked(session="alice", seen_at=seen))
    story.roll_back(Asker("ops"), to=1, came_from=2, seen_at=seen, session="bob")
    assert story.states[4] == LOADING


# --- two operators ----------------------------------------------------------------------------------------------------


def rolled_back(story: Story, session: str = "alice") -> float:
    """Alice rolls back from 2 to 1, as generation 3; returns when she began to."""
    seen = story.now
    story.roll_back(Asker("alice"), to=1, by="reuseport rollback (alice)", session=session, seen_at=seen)
    story.after(0.3)
    story.serve(3)
    assert told(story.let_go())["alice"] == (True, 3, "")
    return seen


def test_a_second_rollback_while_the_first_boots_waits_for_it(story):
    story.roll_back(Asker("alice"), to=1, by="reuseport rollback (alice)", session="alice")
    assert told(story.roll_back(Asker("bob"), to=1, session="bob")) == {} and story.cluster.last == 3
    story.serve(3)
    assert told(story.let_go()) == {"alice": (True, 3, ""), "bob": (True, 3, "")}
    assert any("generation 3 brings back that version already, asked for by reu" in note for note in story.notes)


def test_a_rollback_that_was_begun_before_the_first_one_served_is_told_what_that_did(story):
    """Whoever has given it: even one terminal cannot have seen generation 3."""
    seen = rolled_back(story)
    story.after(2)
    commands = story.roll_back(Asker("bob"), to=0, session="alice", seen_at=seen + 0.1)
    assert told(commands) == {"bob": (True, 3, "")} and story.cluster.last == 3
    expected = "already rolled back from generation 2 to the version of 1, which serves as generation 3, 2.0 s ago, by"
    assert text_of(commands).startswith(f"{expected} reuseport rollback (alice); nothing more was done")


def test_another_operator_within_ten_seconds_is_told_what_the_first_one_did(story):
    rolled_back(story)
    story.after(turn.AGAIN - 1)
    assert told(story.roll_back(Asker("bob"), session="bob", seen_at=story.now))["bob"] == (True, 3, "")
    story.after(1.1)
    assert told(story.roll_back(Asker("eve"), session="bob", seen_at=story.now))["eve"] == (False, 0, "")
    assert story.audit.answers["eve"].text == "there is none before", "it goes on like any other"


def test_until_the_first_one_is_answered_a_second_rollback_is_the_same(story):
    story.roll_back(Asker("alice"), to=1, session="alice", seen_at=story.now)
    story.serve(3)
    assert "alice" not in story.audit.answers, "an old worker may still accept"
    story.after(0.1)
    assert told(story.roll_back(Asker("again"), session="alice", seen_at=story.now)) == {"again": (True, 3, "")}
    assert told(story.let_go()) == {"alice": (True, 3, "")}


def test_the_same_operator_goes_further_back_at_once(story):
    rolled_back(story)
    assert told(story.roll_back(Asker("more"), session="alice", seen_at=story.now))["more"] == (False, 0, "")


def test_who_names_the_generation_that_serves_goes_on(story):
    rolled_back(story)
    commands = story.roll_back(Asker("bob"), session="bob", seen_at=story.now, came_from=3)
    assert told(commands)["bob"] == (False, 0, "") and text_of(commands) == "there is none before"


def test_from_a_generation_that_does_not_serve_nothing_is_done(story):
    rolled_back(story)
    commands = story.roll_back(Asker("bob"), to=1, session="bob", seen_at=story.now, came_from=2)
    assert told(commands)["bob"] == (False, 0, "")
    assert text_of(commands).startswith("--from 2: that generation does not serve, generation 3 does")
    assert "it was rolled back from generation 2 to the version of 1" in text_of(commands)
    commands = story.tell(ev.PromoteAsked(Asker("eve"), came_from=1))
    assert told(commands)["eve"] == (False, 0, "")


def test_another_version_by_its_number_is_another_rollback(story):
    rolled_back(story)
    story.roll_back(Asker("bob"), to=2, number=2, source=2, session="bob", seen_at=story.now)
    assert story.states[4] == LOADING and story[4].origin == 2


def test_a_rollback_that_was_begun_before_a_release_served_changes_nothing(story):
    story.release(Asker("deploy"))
    seen = story.now
    story.after(0.3)
    story.serve(3)
    commands = story.roll_back(Asker("ops"), to=2, seen_at=seen)
    assert told(commands)["ops"] == (False, 0, "") and story.cluster.last == 3
    assert "generation 3 has begun to serve after this was asked" in text_of(commands)
    assert "reuseport rollback --from 3" in text_of(commands)


def test_a_rollback_whose_target_was_looked_up_too_early_changes_nothing(story):
    """Its question came while the generation that was meant still served."""
    story.release()
    story.serve(3)
    story.after(20)
    release = story[2].release
    commands = story.tell(ev.RollbackAsked(release, 2, Asker("ops")))
    assert told(commands)["ops"] == (False, 0, "") and story.cluster.last == 3


def test_another_operators_rollback_of_a_fresh_release_is_a_rollback(story):
    story.release(Asker("deploy"), by="reuseport release (alice)", session="alice")
    story.serve(3)
    story.let_go()
    story.after(1)
    story.roll_back(Asker("ops"), to=2, session="bob", seen_at=story.now)
    assert story.states[4] == LOADING and story[4].origin == 2


def test_what_the_probation_took_back_is_not_taken_back_twice(story):
    story.release(Asker("deploy"), probation=10.0)
    story.serve(3)
    story.tell(ev.Judged(3, "it does worse"))
    assert told(story.roll_back(Asker("ops"), to=2, session="bob", seen_at=story.now)) == {}
    story.serve(4)
    assert told(story.let_go())["ops"] == (True, 4, "")
    commands = story.roll_back(Asker("eve"), to=1, session="eve", seen_at=story.now)
    assert told(commands)["eve"] == (True, 4, "") and "by the probation of generation 3" in text_of(commands)


# --- those who waited -------------------------------------------------------------------------------------------------


def test_a_rollback_during_the_probation_tells_who_waits_for_its_end(story):
    story.release(Asker("deploy"), probation=60.0)
    story.serve(3)
    story.let_go()
    story.after(5)
    story.roll_back(Asker("ops"), to=2, by="reuseport rollback (alice)")
    assert "deploy" not in story.audit.answers, "the rollback may fail, and then the probation goes on"
    assert told(story.serve(4))["deploy"] == (False, 3, SUPERSEDED)
    text = story.audit.answers["deploy"].text
    assert text.startswith("generation 3 served, and was rolled back to the version of 2, asked for by reuseport roll")


def test_a_rollback_tells_who_waits_for_the_drain_of_what_was_there_before(story):
    story.release(Asker("deploy", "drained"))
    story.serve(3)
    story.let_go()
    story.after(5)
    assert story.cluster.drain_askers
    story.roll_back(Asker("ops"), to=2)
    assert told(story.serve(4))["deploy"] == (False, 3, SUPERSEDED) and not story.cluster.drain_askers


def test_a_newer_release_leaves_those_alone_who_wait_for_a_drain(story):
    story.release(Asker("deploy", "drained"))
    story.serve(3)
    story.let_go()
    story.after(5)
    story.release()
    story.serve(4)
    assert "deploy" not in story.audit.answers
    story.exit((1, 1), (1, 0), (2, 1), (2, 2), (2, 0))
    answer = story.audit.answers["deploy"]
    assert answer.ok and answer.text == "generation 3 served, and 4 serves now; every older one has drained"


# --- promotions -------------------------------------------------------------------------------------------------------


def test_a_second_promotion_is_told_what_the_first_one_did(trial):
    seen = trial.now
    trial.tell(ev.PromoteAsked(Asker("alice"), "reuseport promote (alice)", "alice", seen_at=seen))
    trial.after(0.2)
    assert trial.states[3] == OPENING
    assert told(trial.tell(ev.PromoteAsked(Asker("bob"), session="bob"))) == {}, "it is under way"
    trial.accept((3, 1), (3, 2))
    assert {n: a.ok for n, a in told_later(trial).items()} == {"alice": True, "bob": True}
    assert trial.audit.answers["alice"].text.startswith("promoted from generation 2 to 3: generation 3 serves")
    assert trial.cluster.change.what == PROMOTION and trial.cluster.change.came_from == 2
    commands = trial.tell(ev.PromoteAsked(Asker("eve"), session="eve", seen_at=trial.now))
    assert told(commands)["eve"] == (True, 3, "")
    assert text_of(commands).startswith("already promoted from generation 2 to 3, ")
    assert told(trial.tell(ev.PromoteAsked(Asker("late"), session="alice", seen_at=seen)))["late"] == (True, 3, "")
    assert told(trial.tell(ev.PromoteAsked(Asker("again"), session="alice", seen_at=trial.now)))["again"][0] is False


def told_later(story: Story) -> dict[str, ev.Answer]:
    story.let_go()
    story.after(turn.LETTING_GO)
    return story.audit.answers


def test_a_promotion_of_what_came_on_trial_later_is_none(trial):
    seen = trial.now
    trial.after(1)
    trial.release(canary={"tenants": ["globex"]})
    trial.serve(4)
    commands = trial.tell(ev.PromoteAsked(Asker("alice"), seen_at=seen))
    assert told(commands)["alice"] == (False, 0, "") and trial.states[4] == CANARY


def test_a_rollback_that_crosses_a_promotion_changes_nothing(trial):
    seen = trial.now
    trial.after(0.1)
    trial.tell(ev.PromoteAsked(Asker("alice"), "reuseport promote (alice)", "alice"))
    trial.accept((3, 1), (3, 2))
    commands = trial.roll_back(Asker("bob"), to=2, seen_at=seen)
    assert told(commands)["bob"] == (False, 0, "") and "reuseport promote (alice)" in text_of(commands)


def test_an_abort_ends_a_promotion_whose_companions_have_not_started():
    story = Story(workers=1, companions=(Terms("mail", ready_after=5.0),))
    story.release(companions=())
    story.serve(1)
    story.release(canary={"tenants": ["acme"]})
    story.serve(2)
    story.tell(ev.PromoteAsked(Asker("alice")))
    answered = told(story.tell(ev.AbortAsked(Asker("ops"), "reuseport abort (bob)")))
    assert answered == {"alice": (False, 2, ABORTED), "ops": (True, 1, "")}
    assert story.states == {1: SERVING, 2: CANARY}


@pytest.mark.parametrize("came_from", [2, 3])
def test_the_end_of_a_trial_may_name_either_generation(trial, came_from):
    trial.roll_back(Asker("ops"), to=2, came_from=came_from)
    assert trial.states[4] == LOADING and trial[4].origin == 2
    trial.serve(4)
    answer = told_later(trial)["ops"]
    assert answer.ok and answer.text.startswith("the trial of generation 3 is over: generation 4 serves")


def test_a_stop_refuses_all_of_it(story):
    story.tell(ev.StopAsked(delay=5.0))
    for asked in (ev.AbortAsked(Asker("a")), ev.PromoteAsked(Asker("b")), ev.RollbackAsked(None, 2, Asker("c"))):
        assert text_of(story.tell(asked)) == "the server is stopping"
    assert story.states[2] == SERVING


def test_an_abort_that_waits_is_answered_though_the_server_stops(story):
    boot(story, LOADING)
    story.tell(ev.AbortAsked(Asker("ops")))
    story.tell(ev.StopAsked())
    answered = told(story.exit((3, 0)))
    assert answered["deploy"] == (False, 3, ABORTED) and answered["ops"] == (True, 0, "")


def test_a_late_rollback_to_another_version_is_told_that_something_else_serves(story):
    seen = rolled_back(story)
    commands = story.roll_back(Asker("bob"), to=2, number=2, source=2, session="bob", seen_at=seen + 0.1)
    assert told(commands)["bob"] == (False, 0, "") and story.cluster.last == 3
    assert "generation 3 has begun to serve after this was asked, asked for by reuseport rollback" in text_of(commands)
