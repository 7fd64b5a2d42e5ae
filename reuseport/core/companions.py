"""Companions: commands that belong to a generation, such as queue workers and schedulers.

One begins when its generation is ready, before the old one is told to go, so that a release whose companions do not
start can still fail and change nothing. It gets its one stop signal when its generation begins to drain, which ends
only when it has. In between it is started again when it ends by itself, as far as its terms say so.

The switch waits until each companion is ready: until its process has shown that (`Terms.ready`), or, for a timer, has
run for a while. A companion that ends before, or is not ready in time, fails the release. After the switch a process
that is late is not ended, because it may have begun tasks. It is `failing`. A rollback to a version that stands by does
not wait: its companions begin with the switch.

An exclusive one begins later: when its generation serves, and the last of its name has ended. A canary has none until
it is promoted: what they take from a queue would be everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from reuseport.core import events as ev
from reuseport.core.model import (
    ALIVE,
    CANARY,
    COMMAND,
    DRAINING,
    ENDED,
    ENDING,
    KILLED,
    LAUNCHED,
    LINE,
    NOTIFY,
    OPENING,
    RUNNING,
    SERVING,
    STAFFED,
    STANDBY,
    STOPPING,
    TIMER,
    WAITING,
    WARMING,
    YOUTH,
    Cluster,
    Companion,
    Generation,
    Key,
    Release,
)
from reuseport.core.turn import QUIT_GRACE, Turn, backoff, ready

STEADY = 10.0  # seconds: a companion that was ready for so long is started again as if it had never ended
LOOPING = 3  # ends in a row, none of them after STEADY, that make a crash loop
UNSEEN = "ended while no master looked"
AGAIN = 1.0  # seconds until the next attempt, where a process could not be had or another one has the lock

LEAVING_STATES = frozenset({DRAINING, STANDBY, ENDING})
# Why a process is not ready, where nothing more is known of it.
SILENT = {
    NOTIFY: "it has not sent READY=1",
    COMMAND: "its ready_command has not exited with status 0",
    LINE: "it has not printed a line that ready_line matches",
}
# Facts about a process that do not hold for the next process of the same companion.
FORGOTTEN = {"said": None, "ready_by": None, "late": False, "unsure": False, "status": ""}


def settled(g: Generation) -> bool:
    """Whether the companions hold up the release no longer."""
    return not awaited(g)


def awaited(g: Generation) -> list[Companion]:
    """The companions that hold up the release. A rollback to a version that stands by waits for none."""
    if g.copied:
        return []
    return [c for c in g.companions.values() if not c.terms.exclusive and c.state not in (RUNNING, ENDED)]


def late(g: Generation) -> list[str]:
    """Likewise, in words: each with its reason."""
    return [f"{g.number}.{c.label}" + (f" ({c.why})" if c.why else "") for c in awaited(g)]


def patience(g: Generation) -> float:
    """Until when a generation's boot may take because of its companions, which have a limit of their own."""
    begun = [c for c in g.companions.values() if c.state == YOUTH and c.terms.ready != TIMER and not c.terms.exclusive]
    times = [c.ready_by if c.said is None else c.since + c.terms.ready_after for c in begun]
    return max((at for at in times if at is not None), default=float("-inf"))


def failing(g: Generation, c: Companion, now: float) -> str:
    """How a companion of a generation that serves fails: "not ready" (in time), "crash-looping", or "failed" (it has
    ended, not well, and is not started again); "" if it does not."""
    if g.state not in STAFFED:
        return ""
    if c.state == ENDED:
        return "failed" if c.failed else ""
    if c.late:
        return "not ready"
    return "crash-looping" if c.losses >= LOOPING and not _steady(c, now) else ""


def expect_readiness(t: Turn) -> None:
    """Policy: a process becomes ready. A process that has not shown that in time fails its release before the switch.

    It comes before all policies that look at the boot's own deadline: a process that is ready has not missed that.
    """
    for number, g in list(t.state.generations.items()):
        for of, c in g.companions.items():
            if c.state != YOUTH:
                continue
            key = Key(number, of)
            if c.ready_by is not None and t.now >= c.ready_by:
                _overdue(t, t.state.generations[number], key, c, c.ready_by - c.since)
            elif (at := _ready_at(c)) is not None and t.now >= at:
                t.put_companion(key, state=RUNNING, late=False, why="")
                if c.terms.ready != TIMER:
                    t.note("info", f"{_name(key, c)} is ready, {t.now - c.since:.1f} s after its start")


def _overdue(t: Turn, g: Generation, key: Key, c: Companion, seconds: float) -> None:
    if _goes(g):
        return  # it gets its stop signal
    if c.unsure:
        t.put_companion(key, said=t.now, ready_by=None, unsure=False)  # the next round makes it ready
        t.note(
            "warning",
            f"{_name(key, c)} counts as ready: it has run for {seconds:g} s, and may have shown that it is ready while "
            "there was no master",
        )
        return
    t.put_companion(key, ready_by=None, late=True)
    g = t.state.generations[g.number]
    text = f"{_name(key, c)} was not ready within {seconds:g} s (ready_timeout): {c.why or SILENT[c.terms.ready]}"
    if g.state == WARMING:
        t.fail(g, text)
    elif g.state == CANARY:
        not_promoted(t, g, text)
    else:
        t.note("error", text)
        _blame(t, g, text)


def _blame(t: Turn, g: Generation, verdict: str) -> None:
    """A generation on probation is taken back for this."""
    if g.on_probation(t.now) and not g.verdict:
        t.put(replace(g, verdict=verdict))


def accompany(t: Turn) -> None:
    """Policy: companions begin with their generation, and leave with it."""
    for g in list(t.state.generations.values()):
        for number, c in g.companions.items():
            key = Key(g.number, number)
            if _goes(g) or c.state == STOPPING:
                _leave(t, key, c)
            elif c.state == WAITING and t.now >= c.start_after and _may_run(t.state, g, c):
                t.put_companion(key, state=LAUNCHED)
                t.do(ev.Launch(key))


def _ready_at(c: Companion) -> float | None:
    """When its process is ready; None while it has not shown that it is."""
    return c.since + c.terms.ready_after if c.terms.ready == TIMER or c.said is not None else None


def _steady(c: Companion, now: float) -> bool:
    """Whether its process was ready for so long that an earlier end does not matter any more."""
    if c.state not in (YOUTH, RUNNING):
        return False
    if c.terms.ready == TIMER:
        return now - c.since >= max(STEADY, c.terms.ready_after)
    return c.said is not None and now - c.said >= STEADY


def _leave(t: Turn, key: Key, c: Companion) -> None:
    if c.state == WAITING and t.state.generations[key.generation].state != CANARY:
        c = t.put_companion(key, state=ENDED)
    elif c.state in (YOUTH, RUNNING):
        limit = c.terms.stop_timeout
        kill_at = t.now + limit if limit else None
        c = t.put_companion(key, state=STOPPING, since=t.now, kill_at=kill_at, ready_by=None, late=False)
        t.do(ev.Stop(key))
    if c.state != STOPPING:
        return
    if t.state.stopping == "quick" and (c.kill_at is None or c.kill_at > t.now + QUIT_GRACE):
        c = t.put_companion(key, kill_at=t.now + QUIT_GRACE)
    if c.kill_at is not None and t.now >= c.kill_at:
        t.put_companion(key, state=KILLED, kill_at=None)
        t.do(ev.Kill(key))
        late = f"{t.now - c.since:.1f} s after its stop signal"
        t.note("warning", f"{_name(key, c)} is killed: it had not ended {late}")


def _goes(g: Generation) -> bool:
    """Whether it has no companions any more: it leaves, or is a canary that is not promoted after all."""
    return g.state in LEAVING_STATES or (g.state == CANARY and g.promote_by is None)


def not_promoted(t: Turn, g: Generation, why: str, outcome: str = "") -> None:
    """The canary stays one; its askers hear why. `outcome` is that of ev.Answer."""
    text = f"generation {g.number} was not promoted: {why}"
    t.answer(g.askers, False, g.number, text, outcome)
    t.put(replace(g, askers=(), promote_by=None))
    t.do(ev.Note("error", text, silent=True))


def _may_run(state: Cluster, g: Generation, c: Companion) -> bool:
    """Whether it may be started, but for the time at which it may."""
    if g.release.canary is not None and g.promote_by is None:
        return False
    if not c.terms.exclusive:
        return g.state in (CANARY, OPENING, SERVING) or (g.state == WARMING and ready(g))
    others = (o for n, other in state.generations.items() if n != g.number for o in other.companions.values())
    return g.state == SERVING and not any(o.terms.name == c.terms.name and o.state in ALIVE for o in others)


def due(state: Cluster, g: Generation) -> Iterator[float]:
    """The times at which the policy finds something to do."""
    for c in g.companions.values():
        if c.kill_at is not None:
            yield c.kill_at
        elif c.state == YOUTH:
            yield from (at for at in (_ready_at(c), c.ready_by) if at is not None)
        elif c.state == WAITING and _may_run(state, g, c):
            yield c.start_after


def _comes_again(c: Companion, clean: bool) -> bool:
    return c.terms.restart == "always" or (c.terms.restart == "on-failure" and not clean)


# --- facts ------------------------------------------------------------------------------------------------------------


def started(t: Turn, event: ev.Started) -> None:
    """Its process is there, and has not begun; or it is not to be had now."""
    key = event.key
    g = t.generation(key.generation)
    c = g.companions.get(key.number) if g else None
    if g is None or c is None or c.state != LAUNCHED:
        if not event.error:
            t.do(ev.Kill(key))
    elif event.error:
        if event.error != c.why:
            t.note("warning", f"{_name(key, c)} is not started yet: {event.error}")
        t.put_companion(key, state=WAITING, why=event.error, start_after=t.now + AGAIN)
    elif _goes(g):
        # It has not executed anything: there is nothing to finish, and nobody who would hear a signal.
        t.put_companion(key, state=KILLED, pid=event.pid, since=t.now, why="")
        t.do(ev.Kill(key))
    else:
        ready_by = None if c.terms.ready == TIMER else t.now + c.terms.ready_timeout
        t.put_companion(key, state=YOUTH, pid=event.pid, since=t.now, why="", **{**FORGOTTEN, "ready_by": ready_by})
        t.do(ev.Go(key))
        t.note("info", f"{_name(key, c)} is started, pid {event.pid}")


def said(t: Turn, event: ev.Said) -> None:
    """A process shows something of itself. After its stop signal only its STATUS= counts."""
    key = event.key
    g = t.generation(key.generation)
    c = g.companions.get(key.number) if g else None
    if g is None or c is None or not c.pid or c.pid != event.pid:
        return
    if event.status is not None:
        c = t.put_companion(key, status=event.status)
    if c.state != YOUTH or c.said is not None or c.terms.ready == TIMER:
        return
    if event.ready:
        t.put_companion(key, said=t.now, ready_by=None, unsure=False)
        return
    if event.why is not None:
        c = t.put_companion(key, why=event.why)
    if c.ready_by is not None and event.extend:
        t.put_companion(key, ready_by=max(c.ready_by, t.now + event.extend))


def exited(t: Turn, event: ev.Exited) -> None:
    key = event.key
    g = t.generation(key.generation)
    c = g.companions.get(key.number) if g else None
    if g is None or c is None or c.state not in ALIVE:
        return
    ran = t.now - c.since
    gone = {"pid": 0, "kill_at": None, "why": event.how, **FORGOTTEN}
    unready = c.terms.ready != TIMER and c.said is None and not c.unsure
    if _goes(g) or c.state in (STOPPING, KILLED):
        t.put_companion(key, state=WAITING if g.state == CANARY else ENDED, **gone)
        after = f", {ran:.1f} s after its stop signal" if c.state == STOPPING else ""
        t.note("info", f"{_name(key, c)} {event.how}{after}")
        return
    again = _comes_again(c, event.clean)
    well = event.clean and not again and not unready
    level = "info" if well else "error"
    text = f"{_name(key, c)} {event.how}, {ran:.1f} s after its start" + (" and before it was ready" if unready else "")
    if g.state == WARMING and level == "error":
        t.put_companion(key, state=ENDED, **gone)
        t.fail(t.state.generations[g.number], text)
    elif g.state == CANARY and level == "error":
        t.put_companion(key, state=WAITING, **gone)
        not_promoted(t, t.state.generations[g.number], text)
    elif not again:
        t.put_companion(key, state=ENDED, failed=not well, **gone)
        t.note(level, f"{text}; it is not started again (restart = {c.terms.restart!r})")
        if not well:
            _blame(t, t.state.generations[g.number], text)
    else:
        losses = 1 if _steady(c, t.now) else c.losses + 1
        delay = backoff(losses)
        fields = {"state": WAITING, "losses": losses, "restarts": c.restarts + 1, "start_after": t.now + delay}
        t.put_companion(key, **fields, **gone)
        t.note(level, f"{text}; it is started again in {delay:g} s")
    g = t.state.generations[g.number]
    # Status 0 before it was ready counts, too: a command that goes into the background ends like that.
    if (not event.clean or (again and c.state == YOUTH)) and g.on_probation(t.now):
        t.put(replace(g, crashes=g.crashes + 1))


def seats_left(t: Turn, release: Release, generation: int, left: ev.Adopted) -> dict[int, Companion]:
    """The companions of a generation that is adopted, before any of them is: those that have ended stay so."""
    seats = release.seats()
    for number, c in seats.items():
        key = Key(generation, number)
        if key in left.ended:
            seats[number] = replace(c, state=ENDED, failed=key in left.failed)
        elif key in left.gone and not _comes_again(c, left.gone[key]):
            seats[number] = replace(c, state=ENDED, why=UNSEEN)
            t.note("warning", f"{_name(key, c)} {UNSEEN}; it is not started again (restart = {c.terms.restart!r})")
    return seats


def adopt(g: Generation, one: ev.Survivor, now: float) -> Generation:
    """One that outlived its master. If it has had its stop signal, the time that it has for it begins again; SIGKILL
    may have been written down and not sent. A process that was not ready may have shown since that it is: a datagram
    that no master received, or a line that the last one read and did not live to act on."""
    c = replace(g.companions[one.key.number], state=one.state, pid=one.pid, since=now)
    if c.state == RUNNING:
        c = replace(c, said=now)
    elif c.state == YOUTH and c.terms.ready != TIMER:
        c = replace(c, ready_by=now + c.terms.ready_timeout, unsure=c.terms.ready != COMMAND)
    elif c.state == KILLED:
        c = replace(c, state=STOPPING, kill_at=now)
    elif c.state == STOPPING and c.terms.stop_timeout:
        c = replace(c, kill_at=now + c.terms.stop_timeout)
    return g.with_companion(one.key.number, c)


def _name(key: Key, c: Companion) -> str:
    return f"companion {key.generation}.{c.label}"
