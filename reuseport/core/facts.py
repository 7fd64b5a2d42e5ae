"""Facts: what each event writes down. Nothing here looks further; what follows is worked out in `policies`.

A fact may come late, twice, or about somebody who has gone: then it changes nothing, or says once more what is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reuseport.core import companions, operators
from reuseport.core import events as ev
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    BOOTING,
    CANARY,
    DRAINING,
    FORKING,
    LEAVING,
    LIVELY,
    LOADING,
    NOWHERE,
    OPENING,
    QUITTING,
    READY,
    SERVING,
    STAFFED,
    STANDBY,
    STARTING,
    TOLD,
    WARMING,
    WORKING,
    ZYGOTE,
    Generation,
    Worker,
    Zygote,
)
from reuseport.core.turn import (
    QUIT_GRACE,
    YOUNG_DEATH,
    Turn,
    backoff,
    name_of,
)


def _tick(t: Turn, event: ev.Tick) -> None:
    """Nothing to write down: the policies look at the time."""


def _started(t: Turn, event: ev.Started) -> None:
    if event.key.is_companion:
        companions.started(t, event)
        return
    g = t.generation(event.key.generation)
    if g is None or g.zygote is None:
        if not event.error:
            t.do(ev.Kill(event.key))
        return
    if not event.error:
        t.put(replace(g, zygote=replace(g.zygote, pid=event.pid), donor=0, copied=g.copied or g.donor > 0))
        return
    if g.donor and g.state == LOADING:
        t.load_instead(g)
        return
    t.put(replace(g, zygote=None))
    if g.state in BOOTING:
        t.fail(t.state.generations[g.number], event.error)
    elif g.state in STAFFED:
        _zygote_lost(t, t.state.generations[g.number], event.error)


def _loaded(t: Turn, event: ev.Loaded) -> None:
    g = t.generation(event.key.generation)
    if g is None or g.zygote is None or g.zygote.leaving:
        return
    zygote = replace(g.zygote, loaded=True, since=t.now)
    g = t.put(replace(g, zygote=zygote, donor=0, copied=g.copied or g.donor > 0))
    if g.state == LOADING:
        if event.workers is not None and event.workers != g.wanted:
            g = t.put(replace(g, wanted=event.workers, release=replace(g.release, workers=event.workers)))
            t.need_slots(event.workers)
        g = t.move(t.state.generations[g.number], "loaded")
        t.note("debug", f"generation {g.number}: loaded, starting {g.wanted} worker{'s' if g.wanted != 1 else ''}")
    else:
        t.put(replace(g, deadline=None))


def _failed(t: Turn, event: ev.Failed) -> None:
    g = t.generation(event.key.generation)
    if g is None:
        return
    w = g.workers.get(event.key.number)
    if w is not None and w.state in (WORKING, LEAVING, QUITTING):
        return
    if g.state in (LOADING, WARMING):
        t.fail(g, event.error or f"{name_of(event.key)} failed and did not say why")
    elif g.state == OPENING or g.state in STAFFED:
        t.note("error", f"{name_of(event.key)}: {event.error}")


def _forked(t: Turn, event: ev.Forked) -> None:
    found = t.worker(event.key)
    if found is None:
        t.do(ev.Kill(event.key))
        return
    w = found[1]
    t.put_worker(event.key, pid=event.pid, state=STARTING if w.state == FORKING else w.state)
    # A worker says hello again to a new master, and may never have heard what the old one decided. All of it can be
    # said twice.
    if w.state in (TOLD, ACCEPTING) and w.place < found[0].wanted:
        t.do(t.order(found[0], event.key.number, w))
    elif w.state == ATTENDING:
        t.do(ev.Attend(event.key))
    elif w.state == LEAVING:
        t.do(ev.Drain(event.key, last=bool(t.state.stopping)))
    elif w.state == QUITTING:
        # Nothing could reach it until now, SIGKILL included, which may have gone to its zygote instead.
        t.put_worker(event.key, kill_at=w.kill_at or t.now + QUIT_GRACE)
        t.do(ev.Quit(event.key))


def _born(t: Turn, event: ev.Born) -> None:
    g = t.generation(event.key.generation)
    if g is None or g.state == STANDBY:
        # Its generation has been counted as drained, and it has not begun: whoever asked for it was killed.
        t.do(ev.Quit(event.key))
    elif event.key.number not in g.workers:
        worker = Worker(NOWHERE, WORKING, event.pid, t.now, let_go=True)
        t.put(g.with_worker(event.key.number, worker))
    elif g.workers[event.key.number].state == LEAVING:
        t.do(ev.Drain(event.key, last=bool(t.state.stopping)))
    elif g.workers[event.key.number].state == QUITTING:
        t.do(ev.Quit(event.key))


def _ready(t: Turn, event: ev.Ready) -> None:
    found = t.worker(event.key)
    if found and found[1].state in (FORKING, STARTING):
        t.put_worker(event.key, state=READY)


def _accepting(t: Turn, event: ev.Accepting) -> None:
    found = t.worker(event.key)
    if found and found[1].state == TOLD:
        t.put(replace(found[0], trial=None))
        t.put_worker(event.key, state=ACCEPTING)


def _let_go(t: Turn, event: ev.LetGo) -> None:
    if t.worker(event.key):
        t.put_worker(event.key, let_go=True)


def _retire(t: Turn, event: ev.Retire) -> None:
    found = t.worker(event.key)
    if found and found[1].state in LIVELY | {ATTENDING} and not found[1].retiring:
        t.put_worker(event.key, retiring=event.reason)
        t.note("info", f"{name_of(event.key)} will be replaced: {event.reason}")


def _blocked(t: Turn, event: ev.Blocked) -> None:
    found = t.worker(event.key)
    if found is None or found[1].blocked or found[1].state == QUITTING:
        return
    g, w = found
    t.put_worker(event.key, blocked=True, retiring=w.retiring or "its loop does not turn")
    if g.release.kill_blocked:
        t.do(ev.Kill(event.key))


def _unblocked(t: Turn, event: ev.Unblocked) -> None:
    found = t.worker(event.key)
    if found and found[1].blocked:
        t.put_worker(event.key, blocked=False)
        t.note("info", f"{name_of(event.key)}: its loop turns again")


def _pinned(t: Turn, event: ev.Pinned) -> None:
    if g := t.generation(event.generation):
        t.put(replace(g, pinned=event.pinned))


def _exited(t: Turn, event: ev.Exited) -> None:
    if event.key.is_companion:
        companions.exited(t, event)
        return
    g = t.generation(event.key.generation)
    if g is None:
        return
    if event.key.number == ZYGOTE:
        _zygote_exited(t, g, event.how)
        return
    w = g.workers.get(event.key.number)
    if w is None:
        return
    g = t.put(g.with_worker(event.key.number, None))
    if w.state in (WORKING, LEAVING, QUITTING):
        return
    if g.state in (LOADING, WARMING):
        if w.place < g.wanted:
            t.fail(g, f"worker {event.key} {event.how} before it was ready")
        return
    if g.state != OPENING and g.state not in STAFFED and not (g.state == DRAINING and g.pinned):
        return
    young = w.state not in (ACCEPTING, ATTENDING) or t.now - w.since < YOUNG_DEATH
    deaths = g.deaths + 1 if young else 0
    # As many deaths as there are workers come without a delay: somebody may have killed them all at once.
    delay = backoff(deaths - g.wanted)
    crashes = g.crashes + (g.on_probation(t.now) and not w.blocked)
    t.put(replace(g, deaths=deaths, crashes=crashes, fork_after=t.now + delay))
    later = f"; the next one follows in {delay:g} s" if delay else ""
    t.note("error", f"{name_of(event.key)} {event.how}{later}")


def _zygote_exited(t: Turn, g: Generation, how: str) -> None:
    if g.zygote is None:
        return
    for heir in t.state.having(LOADING):
        if heir.donor == g.number:
            t.load_instead(heir)
    zygote = g.zygote
    workers = {n: w for n, w in g.workers.items() if w.pid or w.state not in (FORKING, QUITTING)}
    g = t.put(replace(g, zygote=None, workers=workers))
    if g.state in (LOADING, WARMING):
        t.fail(g, f"its zygote {how} before the workers were ready")
    elif (g.state == OPENING or g.state in STAFFED) and not zygote.leaving:
        if zygote.loaded and t.now - zygote.since >= YOUNG_DEATH:
            g = replace(g, zygote_losses=0)
        _zygote_lost(t, g, how)


def _zygote_lost(t: Turn, g: Generation, how: str) -> None:
    delay = backoff(g.zygote_losses)
    # While it opens, the deadline is that of the boot, which goes on without a zygote.
    deadline = g.deadline if g.state == OPENING else None
    t.put(replace(g, zygote_losses=g.zygote_losses + 1, zygote_after=t.now + delay, deadline=deadline))
    t.note("error", f"the zygote of generation {g.number} {how}; its workers serve on, a new zygote follows")


def _judged(t: Turn, event: ev.Judged) -> None:
    g = t.generation(event.generation)
    if g is not None and g.on_probation(t.now) and not g.verdict:
        t.put(replace(g, verdict=event.verdict))


def _drain_awaited(t: Turn, event: ev.DrainAwaited) -> None:
    t.change(drain_askers=(*t.state.drain_askers, (event.asker, event.generation)))


def _scale_asked(t: Turn, event: ev.ScaleAsked) -> None:
    if t.state.stopping:
        return
    for g in t.state.having(LOADING, WARMING, OPENING, *STAFFED):
        wanted = max(1, g.wanted + event.by)
        if wanted != g.wanted:
            t.put(replace(g, wanted=wanted))
            t.note("info", f"generation {g.number} gets {wanted} workers")
            t.need_slots(wanted)
    t.assign()


def _stop_asked(t: Turn, event: ev.StopAsked) -> None:
    quick = event.quick or (event.insist and t.state.leaving)
    if t.state.leaving and not quick:
        return
    t.answer(t.state.pending_askers, False, 0, "the server was stopped")
    t.change(pending=None, pending_askers=())
    delay = event.delay if t.state.serving and not quick else 0.0
    t.change(stop_by=t.now + delay + event.timeout if event.timeout and not quick else None)
    if delay:
        t.change(stop_at=t.now + delay)
        t.note("info", f"stopping in {delay:g} s, and accepting until then")
        t.assign()
    else:
        t.stop("quick" if quick else "graceful")


def _adopted(t: Turn, event: ev.Adopted) -> None:
    t.change(last=max(t.state.last, event.last), slots=event.slots)
    for one in event.survivors:
        number = one.key.generation
        g = t.generation(number) or Generation(
            number,
            one.release,
            one.release.workers,
            DRAINING,
            since=t.now,
            born=t.now,
            companions=companions.seats_left(t, one.release, number, event),
        )
        if one.key.is_companion:
            g = companions.adopt(g, one, t.now)
        elif one.key.number == ZYGOTE:
            # It counts as loaded when it has said hello: before that nothing can be asked of it.
            g = replace(g, zygote=Zygote(one.pid), deadline=t.now + one.release.boot_timeout)
        else:
            worker = Worker(one.place, one.state, one.pid, t.now, let_go=one.key.is_job)
            g = g.with_worker(one.key.number, worker)
            g = replace(g, pinned=g.pinned or one.state == ATTENDING)
            highest = g.forked if one.key.is_job else max(g.forked, one.key.number)
            g = replace(g, forked=max(highest, event.forked.get(number, 0)))
        t.put(g)
    # Two of them accept if their master died in the middle of a release: the newest serves. One that was only told to
    # accept may never have heard it, and does not succeed one that accepts.
    left = [g for g in t.state.having(DRAINING) if not g.release.canary]
    accepting = [g for g in left if g.having(ACCEPTING)] or [g for g in left if g.having(TOLD)]
    if accepting:
        newest = accepting[-1]
        t.change(served=True)
        t.put(replace(newest, state=SERVING))
        trials = [g for g in t.state.having(DRAINING) if g.release.canary and g.having(ACCEPTING)]
        if trials and trials[-1].number > newest.number:
            t.put(replace(trials[-1], state=CANARY))
        t.note("info", f"generation {newest.number} of an earlier master is adopted, and serves on")
        t.need_slots(newest.wanted)  # an address may be new, or have lost some
        t.assign()
    if event.otherwise is not None and (event.renew or not accepting):
        t.begin(event.otherwise, ())


HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    ev.Tick: _tick,
    ev.ReleaseAsked: operators.release_asked,
    ev.PromoteAsked: operators.promote_asked,
    ev.RollbackAsked: operators.rollback_asked,
    ev.AbortAsked: operators.abort_asked,
    ev.Started: _started,
    ev.Loaded: _loaded,
    ev.Failed: _failed,
    ev.Forked: _forked,
    ev.Born: _born,
    ev.Ready: _ready,
    ev.Accepting: _accepting,
    ev.LetGo: _let_go,
    ev.Retire: _retire,
    ev.Blocked: _blocked,
    ev.Unblocked: _unblocked,
    ev.Judged: _judged,
    ev.Pinned: _pinned,
    ev.Exited: _exited,
    ev.Said: companions.said,
    ev.DrainAwaited: _drain_awaited,
    ev.ScaleAsked: _scale_asked,
    ev.StopAsked: _stop_asked,
    ev.Adopted: _adopted,
}
