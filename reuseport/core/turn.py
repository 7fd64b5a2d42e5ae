"""One step of the cluster under way, and the moves that all rules are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from reuseport.core import events as ev
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    DRAINING,
    FORKING,
    LEAVING,
    OPENING,
    QUITTING,
    READY,
    STAFFED,
    STARTING,
    TOLD,
    TRANSITIONS,
    WORKING,
    YOUNG,
    ZYGOTE,
    Asker,
    Cluster,
    Companion,
    Ended,
    Generation,
    Key,
    Release,
    Worker,
    Zygote,
    slots_of,
)

QUIT_GRACE = 2.0  # seconds from being told to end at once until SIGKILL
YOUNG_DEATH = 1.0  # a worker that lived for less than these seconds died young
COPYING = 5.0  # seconds for a zygote to fork a copy of itself; one that takes longer hangs, and is ended
CRASHES = 2  # processes that may not crash while a generation is on probation
LETTING_GO = 1.0  # seconds for the old workers to close the slots, before a release is called done all the same
LONGEST_BACKOFF = 30.0  # seconds between two attempts at something that keeps failing
AGAIN = 10.0  # seconds in which another operator's rollback or promotion counts as the one that was just made
ATTENDANTS = 2  # workers that a draining generation keeps for those who are kept in it: one may block
REPLACEMENTS = 2  # boots in a row that a newer release may replace; after that it waits


class IllegalTransition(Exception):
    """A defect of this module: a generation was moved along a line that the table does not have."""


def missing(g: Generation) -> list[int]:
    return [place for place in range(g.wanted) if not g.place_taken(place)]


def ready(g: Generation) -> bool:
    """Whether every worker that is wanted could accept now. A start hook's jobs hold up nothing."""
    return not missing(g) and all(w.state == READY for w in g.workers.values() if not w.is_job)


def patient(askers: tuple[Asker, ...]) -> tuple[Asker, ...]:
    return tuple(asker for asker in askers if asker.wait != "none")


def asked_by(by: str) -> str:
    return f", asked for by {by}" if by else ""


class Attendance(NamedTuple):
    """Workers, by number, of a draining generation in which somebody is kept."""

    stay: tuple[int, ...]  # they attend, or can
    coming: tuple[int, ...]  # they are on their way, and needed
    wanting: int  # how many of those who should attend do not yet
    short: int  # how many of them are not even on their way


def attendance(g: Generation) -> Attendance:
    wanted = min(ATTENDANTS, g.wanted)
    fit = {n: w for n, w in g.having(ATTENDING, ACCEPTING, READY).items() if not w.blocked and not w.retiring}
    order = (ATTENDING, ACCEPTING, READY)
    stay = sorted(fit, key=lambda n: (order.index(fit[n].state), fit[n].place, n))[:wanted]
    wanting = wanted - len(stay)
    coming = sorted(g.having(FORKING, STARTING))[:wanting]
    return Attendance(tuple(stay), tuple(coming), wanting, wanting - len(coming))


def backoff(failures: int) -> float:
    return 0.0 if failures <= 0 else min(0.05 * 2.0 ** min(failures, 10), LONGEST_BACKOFF)


def name_of(key: Key) -> str:
    if key.number == ZYGOTE:
        return f"the zygote of generation {key.generation}"
    return f"job {key}" if key.is_job else f"worker {key}"


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

    def put_companion(self, key: Key, **fields: Any) -> Companion:
        g = self.state.generations[key.generation]
        companion = replace(g.companions[key.number], **fields)
        self.put(g.with_companion(key.number, companion))
        return companion

    def move(self, g: Generation, trigger: str, **fields: Any) -> Generation:
        target = TRANSITIONS[g.state].get(trigger)
        if target is None:
            raise IllegalTransition(f"generation {g.number} is {g.state}: no way out by {trigger!r}")
        return self.put(replace(self.state.generations[g.number], state=target, since=self.now, **fields))

    def begin(self, release: Release, askers: tuple[Asker, ...]) -> None:
        """Start the boot of a new generation: a rollback's from a zygote that is still there, if there is one."""
        number = self.state.last + 1
        self.change(last=number)
        self.answer_now(askers, f"generation {number} has begun")
        self.need_slots(release.workers)
        donor = 0 if release.afresh else self._donor(release.source)
        self.put(
            Generation(
                number,
                release,
                release.workers,
                since=self.now,
                born=self.now,
                deadline=self.now + release.boot_timeout,
                zygote=Zygote(),
                companions=release.seats(),
                askers=patient(askers),
                donor=donor,
            )
        )
        self.do(ev.CopyZygote(number, donor) if donor else ev.StartZygote(number, release))

    def _donor(self, source: int) -> int:
        """A generation of that version whose zygote can fork; 0 where there is none."""
        for g in self.state.generations.values():
            if source and g.origin == source and g.zygote and g.zygote.loaded and not g.zygote.leaving:
                return g.number
        return 0

    def load_instead(self, g: Generation) -> None:
        """No copy of another zygote is to be had: load the version from where it was recorded."""
        g = self.put(replace(g, donor=0, zygote=Zygote()))
        self.do(ev.StartZygote(g.number, g.release))

    def need_slots(self, count: int) -> None:
        if count > self.state.slots:
            self.change(slots=count)
            self.do(ev.OpenSlots(count))
            self.assign()

    def assign(self) -> None:
        """Say again which slots are whose: a slot that is open gets connections at once, so it needs an owner now."""
        for g in self.state.having(OPENING, *STAFFED):
            for number, w in g.having(TOLD, ACCEPTING).items():
                if w.place < g.wanted:
                    self.do(self.order(g, number, w))

    def accept(self, key: Key, w: Worker) -> None:
        g = self.state.generations[key.generation]
        self.put_worker(key, state=TOLD)
        self.do(self.order(g, key.number, w))

    def order(self, g: Generation, number: int, w: Worker) -> ev.Accept:
        """What a worker is told when it may accept."""
        slots = None if g.release.canary else slots_of(w.place, g.wanted, self.state.slots)
        return ev.Accept(Key(g.number, number), slots, farewell=self.state.stop_at is not None)

    def drain(self, key: Key) -> None:
        """Let a worker finish its work and go, whatever it is at now."""
        found = self.worker(key)
        assert found is not None
        state = found[1].state
        if state in (TOLD, ACCEPTING, ATTENDING, WORKING):
            self.put_worker(key, state=LEAVING)
            self.do(ev.Drain(key, last=bool(self.state.stopping)))
        elif state in YOUNG:
            self.quit(key)

    def attend(self, key: Key) -> None:
        """Have a worker of a draining generation stay for those who are kept in it."""
        self.put_worker(key, state=ATTENDING)
        self.do(ev.Attend(key))

    def quit(self, key: Key, command: Callable[[Key], ev.Command] = ev.Quit) -> None:
        """End a process at once; SIGKILL follows if it does not go."""
        kill_at = self.now + QUIT_GRACE
        if key.number == ZYGOTE:
            g = self.generation(key.generation)
            if g is None or g.zygote is None or g.zygote.leaving:
                return
            if g.donor:
                self.put(replace(g, zygote=None))  # its donor has not borne it: there is nobody to end
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

    def stop(self, how: str) -> None:
        """Begin to stop, or to stop "quick" what already does."""
        if not self.state.stopping:
            self.do(ev.CloseSlots())
            for g in self.state.having(*STAFFED, DRAINING):
                self.do(*(ev.Drain(Key(g.number, number), last=True) for number in g.having(LEAVING)))
        self.change(stopping=how, stop_at=None)
        text = "stopping at once" if how == "quick" else "stopping: accepting nothing new, finishing requests and jobs"
        self.note("info", text)

    def fail(self, g: Generation, reason: str, command: Callable[[Key], ev.Command] = ev.Quit) -> None:
        """A boot has failed: end whatever it started. Its askers hear of it when that is done."""
        g = self.move(g, "failed", failure=reason, deadline=None)
        if not g.ended_as:
            self.change(ended=Ended(g.number, g.born, self.now))
        self.quit_all(g, command)

    def give_up(self, g: Generation, ended_as: str, how: str, aborters: tuple[Asker, ...] = ()) -> None:
        """End a boot that an operator, or a newer release, has put an end to."""
        self.put(replace(g, ended_as=ended_as, aborters=patient(aborters)))
        self.answer_now(aborters, f"generation {g.number} is being aborted", aborted=g.number)
        self.fail(self.state.generations[g.number], how)

    def give_up_pending(self, ended_as: str, how: str) -> bool:
        """Drop the release that waits; returns whether there was one. Nobody hears of it where nobody waited."""
        if self.state.pending is None:
            return False
        askers = self.state.pending_askers
        self.change(pending=None, pending_askers=())
        if askers:
            self.do(ev.Record(0, ended_as, how, 0.0))
            text = f"the release was {ended_as} {how}; it had not begun"
            self.answer(askers, False, 0, text, ended_as)
        return True

    def answer(
        self, askers: tuple[Asker, ...], ok: bool, number: int, text: str, outcome: str = "", aborted: int = 0
    ) -> None:
        self.do(*(ev.Answer(asker, ok, number, text, outcome, aborted) for asker in askers))

    def answer_now(self, askers: tuple[Asker, ...], text: str, aborted: int = 0) -> None:
        """Those who do not wait (`patient` has the others). No generation is named: what becomes of it is open."""
        self.answer(tuple(a for a in askers if a.wait == "none"), True, 0, text, aborted=aborted)
