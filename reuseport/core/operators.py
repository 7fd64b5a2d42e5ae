"""What operators ask for: a release, a promotion, a rollback, the end of a release that boots.

Two operators may ask for the same thing within a second, and each of them means the state that was on the screen when
the command was typed. So these rules hold:

- While a release boots, a rollback ends that release and changes nothing else. While a rollback or a promotion is under
  way, and until its askers are answered, a second one gets its outcome.
- A rollback or an abort means the boot that was under way when it was started. If that has ended meanwhile, nothing
  more is done.
- A rollback that was started before the present generation began to serve changes nothing. If that generation came by a
  rollback, the answer is what that one did; else the answer is an error that names what serves now.
- Within AGAIN seconds after a rollback, an abort or a promotion, the same command of another operator (another user or
  another login session) is answered with what the first one did. An abort is also answered so if a rollback ended the
  boot. A rollback or an abort goes on if another boot or a promotion is under way. A second command of the same
  operator goes on, and so does any that names the generation to go back from (`came_from`).
"""

from __future__ import annotations

from dataclasses import replace

from reuseport.core import companions
from reuseport.core import events as ev
from reuseport.core.model import (
    ABORT,
    ABORTED,
    ACCEPTING,
    OPENING,
    PROMOTION,
    READY,
    ROLLBACK,
    SUPERSEDED,
    TOLD,
    Asker,
    Cluster,
    Ended,
    Generation,
    Release,
)
from reuseport.core.turn import AGAIN, REPLACEMENTS, Turn, asked_by, patient

STOPPING = "the server is stopping"
NOTHING = "nothing was done"


def release_asked(t: Turn, event: ev.ReleaseAsked) -> None:
    askers = _askers(event.asker)
    if t.state.leaving:
        t.answer(askers, False, 0, STOPPING)
    else:
        _begin(t, event.release, askers)


def promote_asked(t: Turn, event: ev.PromoteAsked) -> None:
    askers = _askers(event.asker)
    g, booting = t.state.canary, t.state.booting
    if t.state.leaving:
        t.answer(askers, False, 0, STOPPING)
    elif odds := _does_not_serve(t, event.came_from):
        t.answer(askers, False, 0, odds)
    elif booting is not None and booting.promoted:
        _join(t, booting, askers, event.by)
    elif g is not None and event.seen_at is not None and event.seen_at < g.since:
        t.answer(askers, False, 0, f"generation {g.number} came on trial after this was asked; nothing was done")
    elif g is None and _is_second(t, event, PROMOTION):
        _tell_of_first(t, askers)
    elif g is None:
        t.answer(askers, False, 0, "there is no canary to promote")
    elif booting is not None:
        t.answer(askers, False, 0, f"generation {booting.number} is on its way, and will take the canary's place")
    elif g.promote_by is not None:
        _join(t, g, askers, event.by)
    elif not g.having(READY, TOLD, ACCEPTING):
        # A boot whose workers have all died has failed; this one still has its tenants, and new workers on their way.
        t.answer(askers, False, 0, f"generation {g.number} has no worker that serves just now; nothing has changed")
    else:
        release = replace(g.release, by=event.by, session=event.session, operator=event.operator)
        promote_by = t.now + g.release.boot_timeout
        t.put(replace(g, askers=g.askers + patient(askers), success="", promote_by=promote_by, release=release))
        t.note("info", f"promoting generation {g.number}: it takes over from {_name(t.state.serving)}")
        t.answer_now(askers, f"generation {g.number} is being promoted")


def rollback_asked(t: Turn, event: ev.RollbackAsked) -> None:
    askers = _askers(event.asker)
    serving, booting = t.state.serving, t.state.booting
    if t.state.leaving:
        t.answer(askers, False, 0, STOPPING)
    elif serving is None:
        t.answer(askers, False, 0, "nothing serves yet: there is nothing to go back from")
    elif odds := _does_not_serve(t, event.came_from):
        t.answer(askers, False, 0, odds)
    elif _is_second(t, event, ROLLBACK) and not (booting and _seen(event, booting.born)):
        _tell_of_first(t, askers)
    elif _has_changed(t, event, serving):
        change = t.state.change
        how = asked_by(change.by) if change else ""
        text = f"generation {serving.number} has begun to serve after this was asked{how}; nothing was done"
        t.answer(askers, False, 0, f"{text}: reuseport rollback --from {serving.number} goes back from it")
    elif event.source in (0, serving.origin) and (told := _of_the_end(t, event)):
        t.answer(askers, True, serving.number, f"{told}: reuseport rollback --from {serving.number} goes back from it")
    elif booting is not None and booting.release.source and event.source in (0, booting.release.source):
        _join(t, booting, askers, event.by)
    elif booting is not None and not _seen(event, booting.born):
        t.answer(askers, False, 0, f"generation {booting.number} has begun to boot after this was asked; {NOTHING}")
    elif booting is not None and event.source in (0, serving.origin):
        _end_for_rollback(t, event, serving, booting, askers)
    elif event.release is None:
        t.answer(askers, False, 0, event.refusal)
    else:
        source = event.release.source
        text = f"rolling back from generation {serving.number} to the version of generation {source}"
        if t.state.canary is not None and source == serving.origin:
            text = f"ending the trial of generation {t.state.canary.number}: its tenants go on to a new generation"
        t.note("info", text + asked_by(event.by))
        _begin(t, event.release, askers)


def abort_asked(t: Turn, event: ev.AbortAsked) -> None:
    askers = _askers(event.asker)
    serving, booting, canary = t.state.serving, t.state.booting, t.state.canary
    by = f"by {event.by}" if event.by else "by an operator"
    if t.state.leaving:
        t.answer(askers, False, 0, STOPPING)
        return
    if serving is None:
        t.answer(askers, False, 0, "nothing serves yet: `reuseport stop` ends a server that only boots")
        return
    if told := _of_the_end(t, event):
        t.answer(askers, True, serving.number, told)
        return
    if booting is not None and not _seen(event, booting.born):
        t.answer(askers, False, 0, f"generation {booting.number} has begun to boot after this was asked; {NOTHING}")
        return
    waited = t.give_up_pending(ABORTED, by)
    promoted = canary is not None and canary.promote_by is not None
    if canary is not None and promoted:
        companions.not_promoted(t, canary, f"aborted {by}", ABORTED)
    if booting is not None and booting.state != OPENING:
        _abort(t, event, booting, by, askers)
    elif waited or promoted:
        what = "the release that waited" if waited else "the promotion"
        t.answer(askers, True, serving.number, f"{what} was aborted; generation {serving.number} serves on")
    elif booting is not None:
        text = f"generation {booting.number} accepts already, so it cannot be aborted"
        t.answer(askers, False, 0, f"{text}; reuseport rollback takes it back as soon as it serves")
    else:
        text = f"no release is under way; generation {serving.number} serves"
        if canary is not None:
            text += f", and {canary.number} is on trial (reuseport rollback ends a trial)"
        t.answer(askers, False, 0, text)


def _askers(asker: Asker | None) -> tuple[Asker, ...]:
    return (asker,) if asker else ()


def _begin(t: Turn, release: Release, askers: tuple[Asker, ...]) -> None:
    """Begin a release, in the place of one that boots, or as soon as that one has ended."""
    booting = t.state.booting
    if booting is None:
        t.begin(release, askers)
    elif booting.state != OPENING and t.state.replaced < REPLACEMENTS and t.state.pending is None:
        t.change(replaced=t.state.replaced + 1)
        t.give_up(booting, SUPERSEDED, f"by generation {t.state.last + 1}{asked_by(release.by)}")
        t.note("info", f"generation {booting.number} gives way to a newer release")
        t.begin(release, askers)
    else:
        t.note("info", f"the release waits until generation {booting.number} serves or has failed")
        _wait(t, release, askers, booting)


def _wait(t: Turn, release: Release, askers: tuple[Asker, ...], booting: Generation) -> None:
    t.give_up_pending(SUPERSEDED, f"by a newer one{asked_by(release.by)}")
    t.change(pending=release, pending_askers=patient(askers))
    t.answer_now(askers, f"the release waits until generation {booting.number} serves or has failed")


def _abort(
    t: Turn, event: ev.RollbackAsked | ev.AbortAsked, booting: Generation, by: str, askers: tuple[Asker, ...]
) -> None:
    t.note("info", f"generation {booting.number} is aborted {by}")
    t.give_up(booting, ABORTED, by, askers)
    what = ROLLBACK if isinstance(event, ev.RollbackAsked) else ABORT
    t.change(ended=Ended(booting.number, booting.born, t.now, what, event.by, event.session))


def _of_the_end(t: Turn, event: ev.RollbackAsked | ev.AbortAsked) -> str:
    """What to say where the boot that the operator saw has ended meanwhile, or another operator has just ended it: then
    there is nothing more to do. "" where that is not so.

    A rollback does more than an abort did. An abort asks for no more than either of them did.
    """
    ended, booting, serving = t.state.ended, t.state.booting, t.state.serving
    if ended is None or serving is None or ended.at < serving.since or (booting and _seen(event, booting.born)):
        return ""
    if isinstance(event, ev.RollbackAsked) and event.came_from:
        return ""
    late = event.seen_at is not None and ended.born <= event.seen_at < ended.at
    g, canary = t.generation(ended.number), t.state.canary
    unanswered = bool(g and g.aborters)
    other = bool(event.session and ended.session) and event.session != ended.session
    alike = ended.what == ROLLBACK or (ended.what == ABORT and isinstance(event, ev.AbortAsked))
    under_way = booting is not None or (canary is not None and canary.promote_by is not None)
    second = unanswered or (alike and other and t.now < ended.at + AGAIN)
    if not late and (under_way or not second):
        return ""
    how = "was aborted already" if ended.what else "has failed by itself"
    ago = f"{t.now - ended.at:.1f} s ago{f', by {ended.by}' if ended.by else ''}"
    return f"generation {ended.number} {how}, {ago}; generation {serving.number} serves on, and nothing more was done"


def _end_for_rollback(
    t: Turn, event: ev.RollbackAsked, serving: Generation, booting: Generation, askers: tuple[Asker, ...]
) -> None:
    """A release boots: it ends. One that accepts already may have requests, so it is taken back when it serves."""
    by = f"by {event.by}" if event.by else "by an operator"
    if booting.state != OPENING:
        t.give_up_pending(ABORTED, by)
        _abort(t, event, booting, by, askers)
        return
    pending = t.state.pending
    if pending is not None and pending.source == serving.origin:
        t.change(pending_askers=t.state.pending_askers + patient(askers))
        t.answer_now(askers, f"generation {booting.number} is to be taken back already{asked_by(pending.by)}")
        return
    release = replace(serving.release, source=serving.origin, probation=0.0, afresh=False)
    release = replace(release, by=event.by, session=event.session, operator=event.operator)
    t.note("info", f"generation {booting.number} accepts already: it is taken back as soon as it serves")
    _wait(t, release, askers, booting)


def _join(t: Turn, g: Generation, askers: tuple[Asker, ...], by: str) -> None:
    """The same is under way already: its outcome answers this one, too."""
    what = "promoted" if g.promote_by is not None or g.promoted else "brings back that version"
    text = f"generation {g.number} is being promoted" if what == "promoted" else f"generation {g.number} {what}"
    t.note("info", f"{text} already{asked_by(g.release.by)}; nothing more was begun{asked_by(by)}")
    t.put(replace(g, askers=g.askers + patient(askers)))
    t.answer_now(askers, f"{text} already{asked_by(g.release.by)}; nothing more was begun")


def _seen(event: ev.RollbackAsked | ev.AbortAsked, since: float) -> bool:
    """Whether the operator's command was started later than that."""
    return event.seen_at is None or since <= event.seen_at


def _does_not_serve(t: Turn, came_from: int) -> str:
    """Why nobody can go from that generation; "" if it serves, or is on trial, or none was named."""
    serving, canary = t.state.serving, t.state.canary
    if came_from in (0, serving and serving.number, canary and canary.number):
        return ""
    text = f"--from {came_from}: that generation does not serve, {_name(serving)} does; nothing was done"
    change = t.state.change
    if change is not None and change.came_from == came_from and change.what == ROLLBACK:
        text += f" (it was {_first(t)})"
    return text


def _is_second(t: Turn, event: ev.RollbackAsked | ev.PromoteAsked, what: str) -> bool:
    """Whether the same has been done already, within what the module calls one transition."""
    change = t.state.change
    if change is None or change.what != what or event.came_from or not _serves(t.state, change.number):
        return False
    late = event.seen_at is not None and event.seen_at < change.at
    late = late or bool(t.state.generations[change.number].askers)  # the first one has not been answered yet
    alike = isinstance(event, ev.PromoteAsked) or event.source in (0, change.source)
    if late:
        return alike
    other = bool(event.session and change.session) and event.session != change.session
    return other and alike and t.now < change.at + AGAIN


def _has_changed(t: Turn, event: ev.RollbackAsked, serving: Generation) -> bool:
    """Whether another generation served when the command was started, or when its target was looked up."""
    change = t.state.change
    late = change is not None and event.seen_at is not None and event.seen_at < change.at
    return not event.came_from and (late or event.against != serving.number)


def _serves(cluster: Cluster, number: int) -> bool:
    return cluster.serving is not None and cluster.serving.number == number


def _tell_of_first(t: Turn, askers: tuple[Asker, ...]) -> None:
    change = t.state.change
    assert change is not None
    text = f"already {_first(t)}; nothing more was done"
    if change.what == ROLLBACK:
        text += f": reuseport rollback --from {change.number} goes further back"
    waiting = tuple((asker, change.number) for asker in askers if asker.wait == "drained")
    t.change(drain_askers=t.state.drain_askers + waiting)
    t.answer(tuple(asker for asker in askers if asker.wait != "drained"), True, change.number, text)


def _first(t: Turn) -> str:
    change = t.state.change
    assert change is not None
    ago = f"{t.now - change.at:.1f} s ago{f', by {change.by}' if change.by else ''}"
    if change.what == PROMOTION:
        return f"promoted from generation {change.came_from} to {change.number}, {ago}"
    to = f"to the version of {change.source}, which serves as generation {change.number}"
    return f"rolled back from generation {change.came_from} {to}, {ago}"


def _name(g: Generation | None) -> str:
    return f"generation {g.number}" if g else "nothing"
