"""Companions: commands that belong to a generation, such as queue workers and schedulers.

One begins when its generation is ready, before the old one is told to go, so that a release whose companions do not
start can still fail and change nothing. It gets its one stop signal when its generation begins to drain, which ends
only when it has. In between it is started again when it ends by itself, as far as its terms say so.

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
    DRAINING,
    ENDED,
    ENDING,
    KILLED,
    LAUNCHED,
    OPENING,
    RUNNING,
    SERVING,
    STANDBY,
    STOPPING,
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

STEADY = 10.0  # seconds: whoever ran for so long is started again as if it had never ended
UNSEEN = "ended while no master looked"
AGAIN = 1.0  # seconds until the next attempt, where a process could not be had or another one has the lock

LEAVING_STATES = frozenset({DRAINING, STANDBY, ENDING})


def settled(g: Generation) -> bool:
    """Whether the companions hold up the release no longer."""
    return all(c.state in (RUNNING, ENDED) for c in g.companions.values() if not c.terms.exclusive)


def late(g: Generation) -> list[str]:
    """Those that do hold it up, each with its reason."""
    return [
        f"{g.number}.{c.label}" + (f" ({c.why})" if c.why else "")
        for c in g.companions.values()
        if not c.terms.exclusive and c.state not in (RUNNING, ENDED)
    ]


def accompany(t: Turn) -> None:
    """Policy: companions begin with their generation, and leave with it."""
    for g in list(t.state.generations.values()):
        for number, c in g.companions.items():
            key = Key(g.number, number)
            if _goes(g) or c.state == STOPPING:
                _leave(t, key, c)
            elif c.state == YOUTH and t.now >= c.since + c.terms.ready_after:
                t.put_companion(key, state=RUNNING)
            elif c.state == WAITING and t.now >= c.start_after and _may_run(t.state, g, c):
                t.put_companion(key, state=LAUNCHED)
                t.do(ev.Launch(key))


def _leave(t: Turn, key: Key, c: Companion) -> None:
    if c.state == WAITING and t.state.generations[key.generation].state != CANARY:
        c = t.put_companion(key, state=ENDED)
    elif c.state in (YOUTH, RUNNING):
        limit = c.terms.stop_timeout
        c = t.put_companion(key, state=STOPPING, since=t.now, kill_at=t.now + limit if limit else None)
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
            yield c.since + c.terms.ready_after
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
        t.put_companion(key, state=YOUTH, pid=event.pid, since=t.now, why="")
        t.do(ev.Go(key))
        t.note("info", f"{_name(key, c)} is started, pid {event.pid}")


def exited(t: Turn, event: ev.Exited) -> None:
    key = event.key
    g = t.generation(key.generation)
    c = g.companions.get(key.number) if g else None
    if g is None or c is None or c.state not in ALIVE:
        return
    ran = t.now - c.since
    gone = {"pid": 0, "kill_at": None, "why": event.how}
    if _goes(g) or c.state in (STOPPING, KILLED):
        t.put_companion(key, state=WAITING if g.state == CANARY else ENDED, **gone)
        after = f", {ran:.1f} s after its stop signal" if c.state == STOPPING else ""
        t.note("info", f"{_name(key, c)} {event.how}{after}")
        return
    again = _comes_again(c, event.clean)
    level = "info" if event.clean and not again else "error"
    text = f"{_name(key, c)} {event.how}, {ran:.1f} s after its start"
    if g.state == WARMING and level == "error":
        t.put_companion(key, state=ENDED, **gone)
        t.fail(t.state.generations[g.number], text)
    elif g.state == CANARY and level == "error":
        t.put_companion(key, state=WAITING, **gone)
        not_promoted(t, t.state.generations[g.number], text)
    elif not again:
        t.put_companion(key, state=ENDED, **gone)
        t.note(level, f"{text}; it is not started again (restart = {c.terms.restart!r})")
    else:
        losses = 1 if ran >= STEADY else c.losses + 1
        delay = backoff(losses)
        fields = {"state": WAITING, "losses": losses, "restarts": c.restarts + 1, "start_after": t.now + delay}
        t.put_companion(key, **fields, **gone)
        t.note(level, f"{text}; it is started again in {delay:g} s")
    g = t.state.generations[g.number]
    if not event.clean and g.on_probation(t.now):
        t.put(replace(g, crashes=g.crashes + 1))


def seats_left(t: Turn, release: Release, generation: int, left: ev.Adopted) -> dict[int, Companion]:
    """The companions of a generation that is adopted, before any of them is: those that have ended stay so."""
    seats = release.seats()
    for number, c in seats.items():
        key = Key(generation, number)
        if key in left.ended:
            seats[number] = replace(c, state=ENDED)
        elif key in left.gone and not _comes_again(c, left.gone[key]):
            seats[number] = replace(c, state=ENDED, why=UNSEEN)
            t.note("warning", f"{_name(key, c)} {UNSEEN}; it is not started again (restart = {c.terms.restart!r})")
    return seats


def adopt(g: Generation, one: ev.Survivor, now: float) -> Generation:
    """One that outlived its master. If it has had its stop signal, the time that it has for it begins again; SIGKILL
    may have been written down and not sent."""
    c = replace(g.companions[one.key.number], state=one.state, pid=one.pid, since=now)
    if c.state == KILLED:
        c = replace(c, state=STOPPING, kill_at=now)
    elif c.state == STOPPING and c.terms.stop_timeout:
        c = replace(c, kill_at=now + c.terms.stop_timeout)
    return g.with_companion(one.key.number, c)


def _name(key: Key, c: Companion) -> str:
    return f"companion {key.generation}.{c.label}"
