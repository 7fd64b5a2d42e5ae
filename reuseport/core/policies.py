"""Policies: what follows from the state and the time, whatever has led there.

They run in the order of `POLICIES`, again and again, until none of them finds anything left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from reuseport.core import companions
from reuseport.core import events as ev
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    CANARY,
    DRAINING,
    ENDING,
    FORKING,
    LEAVING,
    LIVELY,
    LOADING,
    OPENING,
    PROMOTION,
    READY,
    RELEASE,
    ROLLBACK,
    SERVING,
    STAFFED,
    STANDBY,
    STARTING,
    SUPERSEDED,
    TOLD,
    WARMING,
    WORKING,
    ZYGOTE,
    Change,
    Cluster,
    Generation,
    Key,
    Worker,
    Zygote,
)
from reuseport.core.turn import (
    COPYING,
    CRASHES,
    LETTING_GO,
    Turn,
    asked_by,
    attendance,
    missing,
    ready,
)


def _stop(t: Turn) -> None:
    """While the server stops, nothing serves; when all are gone, so is the master."""
    if t.state.stop_at is not None and t.now >= t.state.stop_at:
        t.stop("graceful")
    if not t.state.stopping:
        return
    if t.state.stop_by is not None and t.now >= t.state.stop_by:
        t.note("warning", "the graceful timeout has passed: stopping at once")
        t.change(stopping="quick", stop_by=None)
    for g in t.state.having(LOADING, WARMING):
        t.fail(g, "the server was stopped")
    if t.state.stopping == "quick":
        for g in t.state.having(OPENING):
            t.move(g, "failed", failure="the server was stopped", deadline=None)
        for g in t.state.having(*STAFFED, DRAINING):
            t.move(g, "hurried")
    for g in t.state.having(OPENING):
        # It may have requests by now, so it drains; but its release ends here, without success.
        t.do(ev.Record(g.number, "failed", "the server was stopped", t.now - g.born))
        t.answer(g.askers, False, g.number, f"generation {g.number} failed: the server was stopped")
        t.move(g, "stopped", deadline=None, askers=())
    for g in t.state.having(*STAFFED):
        t.move(g, "stopped", deadline=None)


def _renew(t: Turn) -> None:
    """A boot that has all its workers and loses one gets the time for a worker again.

    Its companions may have taken it beyond its deadline. The new worker may be wanted in addition, or in the place of
    another; or one that is too many ends.
    """
    for g in t.state.having(WARMING):
        complete = ready(g)
        if complete != g.all_ready:
            deadline = g.deadline if complete else t.now + g.release.boot_timeout
            t.put(replace(g, all_ready=complete, deadline=deadline))


def _overdue(t: Turn) -> None:
    """Deadlines that have passed."""
    for g in list(t.state.generations.values()):
        if (at := boot_overdue_at(g)) is not None and t.now >= at:
            _boot_overdue(t, g)
        g = t.state.generations[g.number]
        if (at := copy_overdue_at(t.state, g)) is not None and t.now >= at:
            t.note("error", f"the zygote of generation {g.donor} did not fork a copy of itself: it is ended")
            t.quit(Key(g.donor, ZYGOTE))  # its exit makes the version be loaded instead
        if g.state in STAFFED or g.state == DRAINING:
            for number, w in g.having(FORKING, STARTING, READY).items():
                if t.now >= w.since + g.release.boot_timeout:
                    t.note("error", f"worker {g.number}.{number} was not ready within {g.release.boot_timeout:g} s")
                    t.quit(Key(g.number, number), ev.Abort)
        for number, w in g.workers.items():
            if w.kill_at is not None and t.now >= w.kill_at:
                # A worker that nobody knows the pid of can only be stuck in its zygote.
                t.do(ev.Kill(Key(g.number, number if w.pid else ZYGOTE)))
                t.put_worker(Key(g.number, number), kill_at=None)
        g = t.state.generations[g.number]
        if g.zygote is not None and g.zygote.kill_at is not None and t.now >= g.zygote.kill_at:
            t.do(ev.Kill(Key(g.number, ZYGOTE)))
            t.put(replace(g, zygote=replace(g.zygote, kill_at=None)))


def copy_overdue_at(state: Cluster, g: Generation) -> float | None:
    """When its donor, which is to fork its zygote, is given up; None where there is none, or that was done."""
    donor = state.generations.get(g.donor) if g.donor and g.state == LOADING else None
    return g.since + COPYING if donor and donor.zygote and not donor.zygote.leaving else None


def boot_overdue_at(g: Generation) -> float | None:
    """When its boot has taken too long: companions that begin have a time limit of their own."""
    if g.deadline is None or g.state != WARMING or not ready(g):
        return g.deadline
    return None if companions.settled(g) else max(g.deadline, companions.patience(g))


def promotion_overdue_at(g: Generation) -> float | None:
    """When the promotion of a canary has taken too long, likewise."""
    return None if g.promote_by is None else max(g.promote_by, companions.patience(g))


def _boot_overdue(t: Turn, g: Generation) -> None:
    limit = f"{g.release.boot_timeout:g} s (--boot-timeout)"
    if g.state == LOADING:
        t.fail(g, f"the application was not imported within {limit}", ev.Abort)
    elif g.state == WARMING:
        late = [f"{g.number}.{n}" for n, w in sorted(g.workers.items()) if w.state != READY and not w.is_job]
        text = f"not every worker was ready within {limit}: {', '.join(late)}"
        if not late:
            text = f"not every companion had started within {limit}: {', '.join(companions.late(g))}"
        t.fail(g, text, ev.Abort)
    elif g.state == OPENING and not g.having(ACCEPTING):
        t.fail(g, f"no worker accepted within {limit}", ev.Abort)
    elif g.state == OPENING:
        (_try_out if g.release.canary else _serve)(t, g)
    else:
        t.put(replace(g, deadline=None))
        t.quit(Key(g.number, ZYGOTE), ev.Abort)


def _promote(t: Turn) -> None:
    """A canary's companions begin before everybody gets it; if they do not, it stays a canary."""
    for g in list(t.state.generations.values()):
        by = promotion_overdue_at(g)
        if by is None:
            continue
        if t.state.leaving:
            companions.not_promoted(t, g, "the server is stopping")
        elif t.state.booting is not None or g.state != CANARY:
            companions.not_promoted(t, g, "a newer release is on its way", SUPERSEDED)
        elif companions.settled(g) and g.having(READY, TOLD, ACCEPTING):
            trial, release = g.release.canary, replace(g.release, canary=None)
            deadline = t.now + release.boot_timeout
            g = t.move(
                g, "promoted", release=release, trial=trial, deadline=deadline, promote_by=None, promoted=True
            )
            for number, w in g.having(READY, TOLD, ACCEPTING).items():
                t.accept(Key(g.number, number), w)
        elif t.now >= by:
            late = companions.late(g) or ["no worker of it serves"]
            limit = f"{g.release.boot_timeout:g} s (--boot-timeout)"
            companions.not_promoted(t, g, f"not everything had started within {limit}: {', '.join(late)}")


def _boot(t: Turn) -> None:
    """From loaded to serving, one gate after the other."""
    g = t.state.booting
    if g is None or t.state.stopping:
        return
    if g.state == WARMING and ready(g) and (g.release.canary is not None or companions.settled(g)):
        # Its companions may have taken longer than the boot had: what follows is measured from here.
        deadline = t.now + g.release.boot_timeout if g.companions else g.deadline
        g = t.move(g, "all ready", deadline=deadline)
        for number, w in g.having(READY).items():
            t.accept(Key(g.number, number), w)
    elif g.state == OPENING and not g.having(TOLD):
        if not g.having(ACCEPTING):
            t.fail(g, "its workers died when they were told to accept")
        elif g.release.canary:
            _try_out(t, g)
        else:
            _serve(t, g)


def _serve(t: Turn, g: Generation) -> None:
    """The new generation accepts: only now may the old one go."""
    before, trial = t.state.serving, t.state.canary
    for old in t.state.having(*STAFFED):
        t.move(old, "succeeded", deadline=None)
    t.move(g, "all accepting", deadline=None, deaths=0)
    what = ROLLBACK if g.release.source else PROMOTION if g.promoted else RELEASE
    came_from = before.number if before else 0
    change = Change(what, came_from, g.number, g.origin, g.release.by, g.release.session, t.now)
    t.change(replaced=0, served=True, change=change)
    if before is not None:
        _supersede(t, before, change)
    draining = t.state.having(DRAINING)
    for old in draining:
        clients = [number for number, w in old.having(LEAVING).items() if not w.is_job]
        t.do(*(ev.Bequeath(Key(old.number, number)) for number in clients))
    text = f"generation {g.number} serves with {g.wanted} worker{'s' if g.wanted != 1 else ''}"
    if what == PROMOTION:
        text = f"promoted from generation {came_from} to {g.number}: {text}"
    elif what == ROLLBACK and before is not None and before.origin == g.origin:
        text = f"the trial{f' of generation {trial.number}' if trial else ''} is over: {text}"
    elif what == ROLLBACK:
        text = f"rolled back from generation {came_from} to the version of {g.origin}: {text}"
    if draining:
        text += "; draining: " + ", ".join(str(d.number) for d in draining)
    t.do(ev.Record(g.number, "serving", text, t.now - g.born))
    t.do(ev.Note("info", text, silent=True))
    t.put(replace(t.state.generations[g.number], success=text))


def _supersede(t: Turn, before: Generation, change: Change) -> None:
    """Tell those who still waited for the generation that served: for its probation, or, if it is rolled back, for the
    drain of those before it."""
    before = t.state.generations[before.number]
    by = asked_by(change.by)
    text = f"generation {before.number} served, and was superseded by generation {change.number}{by}"
    if change.what == ROLLBACK:
        text = f"generation {before.number} served, and was rolled back to the version of {change.source}{by}"
        mine = tuple(one for one in t.state.drain_askers if one[1] == before.number)
        t.answer(tuple(asker for asker, _ in mine), False, before.number, text, SUPERSEDED)
        t.change(drain_askers=tuple(one for one in t.state.drain_askers if one not in mine))
    t.answer(before.askers, False, before.number, text, SUPERSEDED)
    t.put(replace(before, askers=()))


def _try_out(t: Turn, g: Generation) -> None:
    """A canary is ready: the generation that serves passes on to it whoever is to try it out."""
    if t.state.serving is None:
        t.fail(g, "nothing serves beside it: a canary tries out a release")
        return
    for old in t.state.having(CANARY):
        t.move(old, "succeeded", deadline=None)
    t.move(g, "trial", deadline=None, deaths=0)
    t.change(replaced=0)
    text = f"generation {g.number} is on trial beside {t.state.serving.number}"
    t.do(ev.Record(g.number, "canary", text, t.now - g.born), ev.Note("info", text, silent=True))
    t.put(replace(t.state.generations[g.number], success=text))


def _lingering(t: Turn, g: Generation) -> bool:
    """Whether an older worker may still accept, and so answer a client who comes after `g` was called serving."""
    return any(
        not w.let_go and not w.blocked
        for old in t.state.generations.values()
        if old.number < g.number
        for w in old.having(LEAVING, ATTENDING).values()
    )


def confirmed_at(g: Generation) -> float:
    """When its askers are told at the latest: its probation is over, and nobody is waited for any longer."""
    return g.since + max(LETTING_GO, g.release.probation)


def _confirm(t: Turn) -> None:
    """Tell the askers: whoever connects from now on gets the new version."""
    for g in list(t.state.generations.values()):
        if not g.success or not g.askers:
            continue
        if g.state == SERVING and t.now < confirmed_at(g) and (g.release.probation or _lingering(t, g)):
            continue
        if g.verdict:
            t.answer(g.askers, False, g.number, _failed_probation(g))
            t.put(replace(g, askers=()))
            continue
        # Beside a canary nothing drains.
        patient = tuple(a for a in g.askers if a.wait == "drained" and g.state != CANARY)
        t.answer(tuple(a for a in g.askers if a not in patient), True, g.number, g.success)
        waiting = tuple((a, g.number) for a in patient)
        t.put(replace(g, askers=()))
        t.change(drain_askers=t.state.drain_askers + waiting)


def _judge(t: Turn) -> None:
    """A generation that fails its probation is taken back: a rollback begins by itself, and its askers hear of it.

    They hear at once. The rollback waits while a release boots, which may serve instead.
    """
    g = t.state.serving
    if g is None or t.state.stopping or not g.release.probation:
        return
    if not g.verdict and g.on_probation(t.now) and g.crashes >= CRASHES:
        g = t.put(replace(g, verdict=f"{g.crashes} of its processes have crashed"))
    booting = t.state.booting
    if not g.verdict or (booting is not None and g.reported):
        return
    old = None if t.state.leaving else predecessor(t, g)
    text = _failed_probation(g)
    if t.state.leaving:
        text += "; the server is stopping"
    elif old is None:
        text += "; there is nothing to go back to"
    elif booting is not None:
        text += f"; a rollback to {old.origin} begins when the boot of generation {booting.number} has ended, unless "
        text += "that one serves"
    else:
        text += f"; generation {t.state.last + 1} brings back {old.origin}"
    t.note("error", text)
    if not g.reported:
        t.do(ev.Record(g.number, "taken back", g.verdict, t.now - g.born))
        t.answer(g.askers, False, g.number, text)
        g = t.put(replace(g, askers=(), reported=True))
    if booting is not None:
        return
    # Once is enough: from here on it is a generation like any other, until the rollback serves.
    t.put(replace(g, verdict="", release=replace(g.release, probation=0.0)))
    if old is not None:
        release = replace(
            old.release, source=old.origin, probation=0.0, standby=g.release.standby, afresh=False, operator={}
        )
        t.begin(replace(release, by=f"the probation of generation {g.number}", session="probation"), ())


def _failed_probation(g: Generation) -> str:
    return f"generation {g.number} failed its probation: {g.verdict}"


def predecessor(t: Turn, g: Generation) -> Generation | None:
    """The newest living generation of an earlier version that has served everybody."""
    older = [o for o in _once_served(t, g) if o.origin < g.origin]
    return older[-1] if older else None


def _once_served(t: Turn, serving: Generation) -> list[Generation]:
    """Old generations before this one, oldest first, without those that were only ever on trial."""
    return [o for o in t.state.having(DRAINING, STANDBY) if o.number < serving.number and not o.release.canary]


def _stands_by(t: Turn, g: Generation) -> bool:
    """Whether an old generation's zygote is still kept: that of the last one before the one that serves."""
    serving = t.state.serving
    if serving is None or t.state.stopping:
        return False
    able = g.zygote is not None and not g.zygote.leaving
    # A rollback that waits for the end of a boot needs it, however long that takes.
    within = bool(serving.verdict) or t.now < standby_until(serving)
    return able and within and [g] == _once_served(t, serving)[-1:]


def standby_until(serving: Generation) -> float:
    """Until when its predecessor's zygote is kept."""
    return serving.since + max(serving.release.standby, serving.release.probation)


def _staff(t: Turn) -> None:
    """Every place has its worker; who is to be replaced goes when his successor accepts; who is too many goes."""
    for g in t.state.having(WARMING, *STAFFED):
        acceptors = g.having(ACCEPTING).values()
        # Those who stay may all be dead or starting: then who is too many stays until one of them accepts.
        covered = any(o.place < g.wanted and not o.blocked for o in acceptors)
        for number, w in g.having(*LIVELY).items():
            key = Key(g.number, number)
            too_many = w.place >= g.wanted and (covered or w.state not in (TOLD, ACCEPTING))
            # By a newer one, too: a master that died between the two of them has taken its reason with it.
            relieved = any(
                o.place == w.place and not o.retiring and (w.retiring or n > number)
                for n, o in g.having(ACCEPTING).items()
            )
            if too_many or relieved:
                t.drain(key)
            elif g.state in STAFFED and w.state == READY:
                t.accept(key, w)
        g = t.state.generations[g.number]
        if g.zygote is None:
            if g.state in STAFFED and t.now >= g.zygote_after:
                t.put(replace(g, zygote=Zygote(), deadline=t.now + g.release.boot_timeout))
                t.do(ev.StartZygote(g.number, g.release))
        elif g.zygote.loaded and not g.zygote.leaving and t.now >= g.fork_after:
            for place in missing(g):
                g = t.state.generations[g.number]
                number = g.forked + 1
                t.put(replace(g.with_worker(number, Worker(place, since=t.now)), forked=number))
                t.do(ev.Fork(Key(g.number, number), place))


def _leave(t: Turn) -> None:
    """Old generations go; the empty ones are forgotten, and whoever waited for that is told."""
    for g in t.state.having(DRAINING):
        for number in g.having(WORKING):
            t.drain(Key(g.number, number))
        if g.pinned and not t.state.stopping:
            _attend(t, t.state.generations[g.number])
            continue
        for number in g.having(*LIVELY, ATTENDING):
            t.drain(Key(g.number, number))
        g = t.state.generations[g.number]
        if g.workers or g.company:
            continue
        if _stands_by(t, g):
            t.move(g, "drained")
            _drained(t, g)
        else:
            t.quit(Key(g.number, ZYGOTE))
    for g in t.state.having(STANDBY):
        if not _stands_by(t, g):
            t.move(g, "expired")
    for g in t.state.having(ENDING):
        t.quit_all(g)
        g = t.state.generations[g.number]
        if g.failure and not g.reported and g.zygote is None and not g.workers:
            _report(t, g)  # what its companions still finish is nothing to wait for
    for g in t.state.having(DRAINING, ENDING):
        if g.empty:
            _forget(t, g)
    for asker, number in t.state.drain_askers:
        if not any(old.number < number and old.state != STANDBY for old in t.state.generations.values()):
            text = f"generation {number} serves; every older one has drained"
            if t.state.serving is not None and t.state.serving.number != number:
                now = t.state.serving.number
                text = f"generation {number} served, and {now} serves now; every older one has drained"
            t.answer((asker,), True, number, text)
            t.change(drain_askers=tuple(a for a in t.state.drain_askers if a != (asker, number)))


def _attend(t: Turn, g: Generation) -> None:
    """Some workers of a draining generation stay for the tenants who are kept in it; the others leave."""
    who = attendance(g)
    for number in who.stay:
        if g.workers[number].state != ATTENDING:
            t.attend(Key(g.number, number))
    for number, w in g.having(*LIVELY, ATTENDING).items():
        # One that attends badly is better than none.
        if number not in who.stay and number not in who.coming and (w.state != ATTENDING or not who.wanting):
            t.drain(Key(g.number, number))
    g = t.state.generations[g.number]
    if g.zygote is None or not g.zygote.loaded or g.zygote.leaving:
        if not g.workers:
            t.quit(Key(g.number, ZYGOTE))  # nobody can come any more: who was kept here goes on
    elif t.now >= g.fork_after:
        for place in range(who.short):
            g = t.state.generations[g.number]
            number = g.forked + 1
            t.put(replace(g.with_worker(number, Worker(place, since=t.now)), forked=number))
            t.do(ev.Fork(Key(g.number, number), place))


def _forget(t: Turn, g: Generation) -> None:
    t.change(generations={n: other for n, other in t.state.generations.items() if n != g.number})
    if g.state == DRAINING:
        _drained(t, g)


def _report(t: Turn, g: Generation) -> None:
    """Tell of a boot that has failed, once what it had begun is ended."""
    t.put(replace(g, reported=True, askers=(), aborters=()))
    took = t.now - g.born
    serving = t.state.serving
    after = f"; generation {serving.number} serves on" if serving else ""
    if g.ended_as:
        t.do(ev.Record(g.number, g.ended_as, g.failure, took))
        t.answer(g.askers, False, g.number, f"generation {g.number} was {g.ended_as} {g.failure}{after}", g.ended_as)
        text = f"generation {g.number} was booting, and was aborted{after}, and nothing else has changed"
        t.answer(g.aborters, True, serving.number if serving else 0, text, aborted=g.number)
    else:
        text = f"generation {g.number} failed: {g.failure}{after}"
        t.do(ev.Record(g.number, "failed", g.failure, took))
        t.do(ev.Note("error", text, silent=True))
        t.answer(g.askers, False, g.number, text)
    if g.ended_as != SUPERSEDED:
        t.change(replaced=0 if t.state.booting is None else t.state.replaced)


def _drained(t: Turn, g: Generation) -> None:
    t.do(ev.Drained(g.number, t.now - g.since))
    t.note("info", f"generation {g.number} has drained, within {t.now - g.since:.1f} s")


def _next(t: Turn) -> None:
    """The release that waited starts; without any generation left, the master leaves."""
    if t.state.pending is not None and t.state.booting is None:
        release, askers = t.state.pending, t.state.pending_askers
        t.change(pending=None, pending_askers=(), replaced=0)
        serving = t.state.serving
        if serving is not None and release.source == serving.origin and t.state.canary is None:
            # What was to be taken back has failed before it served; or that version has just begun to serve, and then
            # its askers hear of it when older workers accept no more.
            if t.now < confirmed_at(serving) and serving.success:
                t.put(replace(serving, askers=serving.askers + askers))
            else:
                t.answer(askers, True, serving.number, f"generation {serving.number} serves on with that version")
        else:
            t.begin(release, askers)
    given_up = t.state.last > 0 and not t.state.served
    if not t.state.generations and not t.state.finished and (t.state.stopping or given_up):
        t.change(finished=True)
        t.do(ev.Finish(0 if t.state.stopping else 1))


POLICIES: tuple[Callable[[Turn], None], ...] = (
    companions.expect_readiness,
    _promote,
    _stop,
    _renew,
    _overdue,
    _boot,
    _judge,
    _staff,
    companions.accompany,
    _leave,
    _confirm,
    _next,
)
