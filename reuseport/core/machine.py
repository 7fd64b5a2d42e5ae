"""The cluster's decisions: `step(state, event, now) -> (state, commands)`.

An event only writes down a fact (the handlers, first half). What follows from the facts is then worked out by the
policies (second half), which look at nothing but the state and the time, and run until none of them finds anything
left to do. So it does not matter in which order facts arrive, nor which of them was missed: the same state leads to
the same commands. The master executes these in their order and decides nothing itself.

The rules that must hold whatever happens, and which the tests drive through arbitrary stories:

- a slot with a serving generation always has an acceptor, or one on its way;
- no old worker gets SIGTERM because of a release before every worker of the new generation is ready;
- a failed release changes nothing about the generations that served before it;
- every release ends, and every drain ends when its workers have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reuseport.core import events as ev
from reuseport.core.model import (
    ACCEPTING,
    BOOTING,
    DRAINING,
    ENDING,
    FORKING,
    LEAVING,
    LIVELY,
    LOADING,
    OPENING,
    QUITTING,
    READY,
    SERVING,
    STARTING,
    TOLD,
    TRANSITIONS,
    WARMING,
    YOUNG,
    ZYGOTE,
    Asker,
    Cluster,
    Generation,
    Key,
    Release,
    Worker,
    Zygote,
    slots_of,
)

QUIT_GRACE = 2.0  # seconds from being told to end at once until SIGKILL
YOUNG_DEATH = 1.0  # a worker that lived for less than these seconds died young
LETTING_GO = 1.0  # seconds for the old workers to close the slots, before a release is called done all the same
LONGEST_BACKOFF = 30.0  # seconds between two attempts at something that keeps failing
SUPERSEDED = "superseded by a newer release"
REPLACEMENTS = 2  # boots in a row that a newer release may replace; after that it waits


class IllegalTransition(Exception):
    """A defect of this module: a generation was moved along a line that the table does not have."""


def step(state: Cluster, event: ev.Event, now: float) -> tuple[Cluster, tuple[ev.Command, ...]]:
    """What the cluster becomes by `event` at time `now` (seconds, monotonic), and what must be done, in order."""
    turn = Turn(state, now)
    HANDLERS[type(event)](turn, event)
    while True:
        before = turn.state
        for policy in POLICIES:
            policy(turn)
        if turn.state == before:
            # An answer is the last act: who has it may do anything, kill the master even.
            return turn.state, tuple(sorted(turn.commands, key=lambda command: isinstance(command, ev.Answer)))


def wake_at(state: Cluster) -> float | None:
    """When a Tick is due, if nothing happens before: the earliest of all deadlines, or None."""
    times: list[float] = [] if state.stop_by is None else [state.stop_by]
    for g in state.generations.values():
        if g.deadline is not None:
            times.append(g.deadline)
        if g.state == SERVING:
            if g.askers:
                times.append(g.since + LETTING_GO)
            if g.zygote is None:
                times.append(g.zygote_after)
            elif g.zygote.loaded and _missing(g):
                times.append(g.fork_after)
            times += [w.since + g.release.boot_timeout for w in g.having(FORKING, STARTING, READY).values()]
        times += [w.kill_at for w in g.workers.values() if w.kill_at is not None]
        if g.zygote is not None and g.zygote.kill_at is not None:
            times.append(g.zygote.kill_at)
    return min(times, default=None)


def _missing(g: Generation) -> list[int]:
    return [place for place in range(g.wanted) if not g.place_taken(place)]


def _backoff(failures: int) -> float:
    return 0.0 if failures <= 0 else min(0.05 * 2.0 ** min(failures, 10), LONGEST_BACKOFF)


class Turn:
    """One step under way: the state so far and the commands so far, with the few moves that the rules are made of."""

    def __init__(self, state: Cluster, now: float) -> None:
        self.state = state
        self.now = now
        self.commands: list[ev.Command] = []

    def do(self, *commands: ev.Command) -> None:
        self.commands.extend(commands)

    def note(self, level: str, text: str) -> None:
        self.do(ev.Note(level, text))

    def generation(self, number: int) -> Generation | None:
        return self.state.generations.get(number)

    def worker(self, key: Key) -> tuple[Generation, Worker] | None:
        g = self.generation(key.generation)
        w = g.workers.get(key.number) if g else None
        return (g, w) if g and w else None

    def change(self, **fields: Any) -> None:
        self.state = replace(self.state, **fields)

    def put(self, g: Generation) -> Generation:
        self.change(generations={**self.state.generations, g.number: g})
        return g

    def put_worker(self, key: Key, **fields: Any) -> None:
        found = self.worker(key)
        assert found is not None
        g, w = found
        if "state" in fields and fields["state"] != w.state:
            fields.setdefault("since", self.now)
        self.put(g.with_worker(key.number, replace(w, **fields)))

    def move(self, g: Generation, trigger: str, **fields: Any) -> Generation:
        target = TRANSITIONS[g.state].get(trigger)
        if target is None:
            raise IllegalTransition(f"generation {g.number} is {g.state}: no way out by {trigger!r}")
        return self.put(replace(self.state.generations[g.number], state=target, since=self.now, **fields))

    def begin(self, release: Release, askers: tuple[Asker, ...]) -> None:
        """Start the boot of a new generation."""
        number = self.state.last + 1
        self.change(last=number)
        self.need_slots(release.workers)
        self.put(
            Generation(
                number,
                release,
                release.workers,
                since=self.now,
                born=self.now,
                deadline=self.now + release.boot_timeout,
                zygote=Zygote(),
                askers=askers,
            )
        )
        self.do(ev.StartZygote(number, release))

    def need_slots(self, count: int) -> None:
        if count > self.state.slots:
            self.change(slots=count)
            self.do(ev.OpenSlots(count))
            self.assign()

    def assign(self) -> None:
        """Say again which slots are whose: a slot that is open gets connections at once, so it needs an owner now."""
        for g in self.state.having(OPENING, SERVING):
            for number, w in g.having(TOLD, ACCEPTING).items():
                if w.place < g.wanted:
                    self.do(ev.Accept(Key(g.number, number), slots_of(w.place, g.wanted, self.state.slots)))

    def accept(self, key: Key, w: Worker) -> None:
        g = self.state.generations[key.generation]
        self.put_worker(key, state=TOLD)
        self.do(ev.Accept(key, slots_of(w.place, g.wanted, self.state.slots)))

    def drain(self, key: Key) -> None:
        """Let a worker finish its work and go, whatever it is at now."""
        found = self.worker(key)
        assert found is not None
        state = found[1].state
        if state in (TOLD, ACCEPTING):
            self.put_worker(key, state=LEAVING)
            self.do(ev.Drain(key, last=bool(self.state.stopping)))
        elif state in YOUNG:
            self.quit(key)

    def quit(self, key: Key, command: Callable[[Key], ev.Command] = ev.Quit) -> None:
        """End a process at once; SIGKILL follows if it does not go."""
        kill_at = self.now + QUIT_GRACE
        if key.number == ZYGOTE:
            g = self.generation(key.generation)
            if g is None or g.zygote is None or g.zygote.leaving:
                return
            self.put(replace(g, zygote=replace(g.zygote, leaving=True, kill_at=kill_at)))
        else:
            found = self.worker(key)
            if found is None or found[1].state == QUITTING:
                return
            self.put_worker(key, state=QUITTING, kill_at=kill_at)
        self.do(command(key))

    def quit_all(self, g: Generation, command: Callable[[Key], ev.Command] = ev.Quit) -> None:
        for number in sorted(g.workers):
            self.quit(Key(g.number, number), command)
        # A zygote that has loaded hangs in nothing.
        self.quit(Key(g.number, ZYGOTE), ev.Quit if g.zygote and g.zygote.loaded else command)

    def fail(self, g: Generation, reason: str, command: Callable[[Key], ev.Command] = ev.Quit) -> None:
        """A boot has failed: end whatever it started. Its askers hear of it when that is done."""
        g = self.move(g, "failed", failure=reason, deadline=None)
        self.quit_all(g, command)

    def answer(self, askers: tuple[Asker, ...], ok: bool, number: int, text: str) -> None:
        self.do(*(ev.Answer(asker, ok, number, text) for asker in askers))


# --- facts ----------------------------------------------------------------------------------------------------------


def _tick(t: Turn, event: ev.Tick) -> None:
    """Nothing to write down: the policies look at the time."""


def _release_asked(t: Turn, event: ev.ReleaseAsked) -> None:
    askers = (event.asker,) if event.asker else ()
    if t.state.stopping:
        t.answer(askers, False, 0, "the server is stopping")
        return
    booting = t.state.booting
    if booting is None:
        t.begin(event.release, askers)
    elif booting.state != OPENING and t.state.replaced < REPLACEMENTS and t.state.pending is None:
        t.change(replaced=t.state.replaced + 1)
        inherited = booting.askers
        t.put(replace(booting, askers=()))
        t.fail(t.state.generations[booting.number], SUPERSEDED)
        t.note("info", f"generation {booting.number} gives way to a newer release")
        t.begin(event.release, inherited + askers)
    else:
        t.change(pending=event.release, pending_askers=t.state.pending_askers + askers)
        t.note("info", f"the release waits until generation {booting.number} serves or has failed")


def _started(t: Turn, event: ev.Started) -> None:
    g = t.generation(event.key.generation)
    if g is None or g.zygote is None:
        return
    if not event.error:
        t.put(replace(g, zygote=replace(g.zygote, pid=event.pid)))
        return
    t.put(replace(g, zygote=None))
    if g.state in BOOTING:
        t.fail(t.state.generations[g.number], event.error)
    elif g.state == SERVING:
        _zygote_lost(t, t.state.generations[g.number], event.error)


def _loaded(t: Turn, event: ev.Loaded) -> None:
    g = t.generation(event.key.generation)
    if g is None or g.zygote is None or g.zygote.leaving:
        return
    g = t.put(replace(g, zygote=replace(g.zygote, loaded=True, since=t.now)))
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
    if w is not None and w.state in (LEAVING, QUITTING):
        return
    if g.state in (LOADING, WARMING):
        t.fail(g, event.error or f"{_name(event.key)} failed and did not say why")
    elif g.state in (OPENING, SERVING):
        t.note("error", f"{_name(event.key)}: {event.error}")


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
        t.do(ev.Accept(event.key, slots_of(w.place, found[0].wanted, t.state.slots)))
    elif w.state == LEAVING:
        t.do(ev.Drain(event.key, last=bool(t.state.stopping)))
    elif w.state == QUITTING:
        # Nothing could reach it until now, SIGKILL included, which may have gone to its zygote instead.
        t.put_worker(event.key, kill_at=w.kill_at or t.now + QUIT_GRACE)
        t.do(ev.Quit(event.key))


def _ready(t: Turn, event: ev.Ready) -> None:
    found = t.worker(event.key)
    if found and found[1].state in (FORKING, STARTING):
        t.put_worker(event.key, state=READY)


def _accepting(t: Turn, event: ev.Accepting) -> None:
    found = t.worker(event.key)
    if found and found[1].state == TOLD:
        t.put_worker(event.key, state=ACCEPTING)


def _let_go(t: Turn, event: ev.LetGo) -> None:
    if t.worker(event.key):
        t.put_worker(event.key, let_go=True)


def _retire(t: Turn, event: ev.Retire) -> None:
    found = t.worker(event.key)
    if found and found[1].state in LIVELY and not found[1].retiring:
        t.put_worker(event.key, retiring=event.reason)
        t.note("info", f"{_name(event.key)} will be replaced: {event.reason}")


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
        t.note("info", f"{_name(event.key)}: its loop turns again")


def _exited(t: Turn, event: ev.Exited) -> None:
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
    if w.state in (LEAVING, QUITTING):
        return
    if g.state in (LOADING, WARMING):
        if w.place < g.wanted:
            t.fail(g, f"worker {event.key} {event.how} before it was ready")
        return
    if g.state not in (OPENING, SERVING):
        return
    young = w.state != ACCEPTING or t.now - w.since < YOUNG_DEATH
    deaths = g.deaths + 1 if young else 0
    # As many deaths as there are workers come without a delay: somebody may have killed them all at once.
    delay = _backoff(deaths - g.wanted)
    t.put(replace(g, deaths=deaths, fork_after=t.now + delay))
    later = f"; the next one follows in {delay:g} s" if delay else ""
    t.note("error", f"{_name(event.key)} {event.how}{later}")


def _zygote_exited(t: Turn, g: Generation, how: str) -> None:
    if g.zygote is None:
        return
    zygote = g.zygote
    workers = {n: w for n, w in g.workers.items() if w.pid or w.state not in (FORKING, QUITTING)}
    g = t.put(replace(g, zygote=None, workers=workers))
    if g.state in (LOADING, WARMING):
        t.fail(g, f"its zygote {how} before the workers were ready")
    elif g.state in (OPENING, SERVING) and not zygote.leaving:
        if zygote.loaded and t.now - zygote.since >= YOUNG_DEATH:
            g = replace(g, zygote_losses=0)
        _zygote_lost(t, g, how)


def _zygote_lost(t: Turn, g: Generation, how: str) -> None:
    delay = _backoff(g.zygote_losses)
    # While it opens, the deadline is that of the boot, which goes on without a zygote.
    deadline = g.deadline if g.state == OPENING else None
    t.put(replace(g, zygote_losses=g.zygote_losses + 1, zygote_after=t.now + delay, deadline=deadline))
    t.note("error", f"the zygote of generation {g.number} {how}; its workers serve on, a new zygote follows")


def _scale_asked(t: Turn, event: ev.ScaleAsked) -> None:
    if t.state.stopping:
        return
    for g in t.state.having(LOADING, WARMING, OPENING, SERVING):
        wanted = max(1, g.wanted + event.by)
        if wanted != g.wanted:
            t.put(replace(g, wanted=wanted))
            t.note("info", f"generation {g.number} gets {wanted} workers")
            t.need_slots(wanted)
    t.assign()


def _stop_asked(t: Turn, event: ev.StopAsked) -> None:
    quick = event.quick or (event.insist and bool(t.state.stopping))
    if t.state.stopping and not quick:
        return
    if not t.state.stopping:
        t.do(ev.CloseSlots())
        t.answer(t.state.pending_askers, False, 0, "the server was stopped")
        t.change(pending=None, pending_askers=())
        for g in t.state.having(SERVING, DRAINING):
            t.do(*(ev.Drain(Key(g.number, number), last=True) for number in g.having(LEAVING)))
    t.change(
        stopping="quick" if quick else "graceful",
        stop_by=t.now + event.timeout if event.timeout and not quick else None,
    )
    t.note("info", "stopping at once" if quick else "stopping: accepting nothing new, finishing requests and jobs")


def _adopted(t: Turn, event: ev.Adopted) -> None:
    t.change(last=event.last, slots=event.slots)
    for one in event.survivors:
        number = one.key.generation
        g = t.generation(number) or Generation(
            number, one.release, one.release.workers, DRAINING, since=t.now, born=t.now, first_served=t.now
        )
        if one.key.number == ZYGOTE:
            # It counts as loaded when it has said hello: before that nothing can be asked of it.
            g = replace(g, zygote=Zygote(one.pid), deadline=t.now + one.release.boot_timeout)
        else:
            g = g.with_worker(one.key.number, Worker(one.place, one.state, one.pid, t.now))
            g = replace(g, forked=max(g.forked, one.key.number, event.forked.get(number, 0)))
        t.put(g)
    # Two of them accept if their master died in the middle of a release: the newest serves. One that was only told to
    # accept may never have heard it, and does not succeed one that accepts.
    left = t.state.having(DRAINING)
    accepting = [g for g in left if g.having(ACCEPTING)] or [g for g in left if g.having(TOLD)]
    if accepting:
        newest = accepting[-1]
        t.change(served=True)
        t.put(replace(newest, state=SERVING))
        t.note("info", f"generation {newest.number} of an earlier master is adopted, and serves on")
        t.assign()


def _name(key: Key) -> str:
    return f"the zygote of generation {key.generation}" if key.number == ZYGOTE else f"worker {key}"


HANDLERS: dict[type, Callable[[Turn, Any], None]] = {
    ev.Tick: _tick,
    ev.ReleaseAsked: _release_asked,
    ev.Started: _started,
    ev.Loaded: _loaded,
    ev.Failed: _failed,
    ev.Forked: _forked,
    ev.Ready: _ready,
    ev.Accepting: _accepting,
    ev.LetGo: _let_go,
    ev.Retire: _retire,
    ev.Blocked: _blocked,
    ev.Unblocked: _unblocked,
    ev.Exited: _exited,
    ev.ScaleAsked: _scale_asked,
    ev.StopAsked: _stop_asked,
    ev.Adopted: _adopted,
}


# --- what follows from the facts --------------------------------------------------------------------------------------


def _stop(t: Turn) -> None:
    """While the server stops, nothing serves; when all are gone, so is the master."""
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
        for g in t.state.having(SERVING, DRAINING):
            t.move(g, "hurried")
    for g in t.state.having(OPENING):
        # It may have requests by now, so it drains; but its release ends here, without success.
        t.do(ev.Record(g.number, "failed", "the server was stopped", t.now - g.born))
        t.answer(g.askers, False, g.number, f"generation {g.number} failed: the server was stopped")
        t.move(g, "stopped", deadline=None, askers=())
    for g in t.state.having(SERVING):
        t.move(g, "stopped", deadline=None)
    for g in t.state.having(DRAINING):
        t.quit(Key(g.number, ZYGOTE))


def _overdue(t: Turn) -> None:
    """Deadlines that have passed."""
    for g in list(t.state.generations.values()):
        if g.deadline is not None and t.now >= g.deadline:
            _boot_overdue(t, g)
        g = t.state.generations[g.number]
        if g.state == SERVING:
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


def _boot_overdue(t: Turn, g: Generation) -> None:
    limit = f"{g.release.boot_timeout:g} s (--boot-timeout)"
    if g.state == LOADING:
        t.fail(g, f"the application was not imported within {limit}", ev.Abort)
    elif g.state == WARMING:
        late = ", ".join(f"{g.number}.{n}" for n in sorted(g.having(FORKING, STARTING)))
        t.fail(g, f"not every worker was ready within {limit}: {late}", ev.Abort)
    elif g.state == OPENING and not g.having(ACCEPTING):
        t.fail(g, f"no worker accepted within {limit}", ev.Abort)
    elif g.state == OPENING:
        _serve(t, g)
    else:
        t.put(replace(g, deadline=None))
        t.quit(Key(g.number, ZYGOTE), ev.Abort)


def _boot(t: Turn) -> None:
    """From loaded to serving, one gate after the other."""
    g = t.state.booting
    if g is None or t.state.stopping:
        return
    if g.state == WARMING and all(w.state == READY for w in g.workers.values()) and not _missing(g):
        g = t.move(g, "all ready")
        for number, w in g.having(READY).items():
            t.accept(Key(g.number, number), w)
    elif g.state == OPENING and not g.having(TOLD):
        if g.having(ACCEPTING):
            _serve(t, g)
        else:
            t.fail(g, "its workers died when they were told to accept")


def _serve(t: Turn, g: Generation) -> None:
    """The new generation accepts: only now may the old one go."""
    for old in t.state.having(SERVING):
        t.move(old, "succeeded", deadline=None)
    t.move(g, "all accepting", deadline=None, deaths=0, first_served=t.now)
    t.change(replaced=0, served=True)
    draining = t.state.having(DRAINING)
    for old in draining:
        t.do(*(ev.Bequeath(Key(old.number, number)) for number in old.having(LEAVING)))
    text = f"generation {g.number} serves with {g.wanted} worker{'s' if g.wanted != 1 else ''}"
    if draining:
        text += "; draining: " + ", ".join(str(d.number) for d in draining)
    t.do(ev.Record(g.number, "serving", text, t.now - g.born))
    t.do(ev.Note("info", text, silent=True))
    t.put(replace(t.state.generations[g.number], success=text))


def _lingering(t: Turn, g: Generation) -> bool:
    """Whether an older worker may still accept, and so answer a client who comes after `g` was called serving."""
    return any(
        not w.let_go and not w.blocked
        for old in t.state.generations.values()
        if old.number < g.number
        for w in old.having(LEAVING).values()
    )


def _confirm(t: Turn) -> None:
    """Tell the askers: whoever connects from now on gets the new version."""
    for g in list(t.state.generations.values()):
        if not g.success or not g.askers:
            continue
        if g.state == SERVING and t.now < g.since + LETTING_GO and _lingering(t, g):
            continue
        t.answer(tuple(a for a in g.askers if a.wait != "drained"), True, g.number, g.success)
        waiting = tuple((a, g.number) for a in g.askers if a.wait == "drained")
        t.put(replace(g, askers=()))
        t.change(drain_askers=t.state.drain_askers + waiting)


def _staff(t: Turn) -> None:
    """Every place has its worker; who is to be replaced goes when his successor accepts; who is too many goes."""
    for g in t.state.having(WARMING, SERVING):
        acceptors = g.having(ACCEPTING).values()
        # Those who stay may all be dead or starting: then who is too many stays until one of them accepts.
        covered = any(o.place < g.wanted and not o.blocked for o in acceptors)
        for number, w in g.having(*LIVELY).items():
            key = Key(g.number, number)
            too_many = w.place >= g.wanted and (covered or w.state not in (TOLD, ACCEPTING))
            relieved = w.retiring and any(o.place == w.place and not o.retiring for o in acceptors)
            if too_many or relieved:
                t.drain(key)
            elif g.state == SERVING and w.state == READY:
                t.accept(key, w)
        g = t.state.generations[g.number]
        if g.zygote is None:
            if g.state == SERVING and t.now >= g.zygote_after:
                t.put(replace(g, zygote=Zygote(), deadline=t.now + g.release.boot_timeout))
                t.do(ev.StartZygote(g.number, g.release))
        elif g.zygote.loaded and not g.zygote.leaving and t.now >= g.fork_after:
            for place in _missing(g):
                g = t.state.generations[g.number]
                number = g.forked + 1
                t.put(replace(g.with_worker(number, Worker(place, since=t.now)), forked=number))
                t.do(ev.Fork(Key(g.number, number), place))


def _leave(t: Turn) -> None:
    """Old generations go; the empty ones are forgotten, and whoever waited for that is told."""
    for g in t.state.having(DRAINING):
        for number in g.having(*LIVELY):
            t.drain(Key(g.number, number))
        g = t.state.generations[g.number]
        if not g.workers:
            t.quit(Key(g.number, ZYGOTE))
    for g in t.state.having(ENDING):
        t.quit_all(g)
    for g in t.state.having(DRAINING, ENDING):
        if g.empty:
            _forget(t, g)
    for asker, number in t.state.drain_askers:
        if not any(n < number for n in t.state.generations):
            t.answer((asker,), True, number, f"generation {number} serves; every older one has drained")
            t.change(drain_askers=tuple(a for a in t.state.drain_askers if a != (asker, number)))


def _forget(t: Turn, g: Generation) -> None:
    t.change(generations={n: other for n, other in t.state.generations.items() if n != g.number})
    took = t.now - g.born
    if g.failure == SUPERSEDED and not g.askers:
        t.do(ev.Record(g.number, "superseded", "replaced by a newer release", took))
    elif g.failure:
        serving = t.state.serving
        after = f"; generation {serving.number} serves on" if serving else ""
        text = f"generation {g.number} failed: {g.failure}{after}"
        t.do(ev.Record(g.number, "failed", g.failure, took))
        t.do(ev.Note("error", text, silent=True))
        t.answer(g.askers, False, g.number, text)
        t.change(replaced=0 if t.state.booting is None else t.state.replaced)
    elif g.state == DRAINING:
        t.note("info", f"generation {g.number} has drained, within {t.now - g.since:.1f} s")


def _next(t: Turn) -> None:
    """The release that waited starts; without any generation left, the master leaves."""
    if t.state.pending is not None and t.state.booting is None:
        release, askers = t.state.pending, t.state.pending_askers
        t.change(pending=None, pending_askers=(), replaced=0)
        t.begin(release, askers)
    given_up = t.state.last > 0 and not t.state.served
    if not t.state.generations and not t.state.finished and (t.state.stopping or given_up):
        t.change(finished=True)
        t.do(ev.Finish(0 if t.state.stopping else 1))


POLICIES: tuple[Callable[[Turn], None], ...] = (_stop, _overdue, _boot, _staff, _leave, _confirm, _next)
