"""A world for the core to rule, and an audit of how it rules.

`World` is a kernel, a master without judgement and the processes of a cluster: zygotes that load, fail, hang and die,
workers that are forked, accept, get busy, drain and crash. What a process says arrives late and in any order among
processes, but in order for each; its exit comes after its last word. The master carries out every command as the real
one does, with the same blind spots: it reaches a process only once it knows its pid or has its channel.

`Audit` watches each step. It keeps its own books, from nothing but the events that went in and the commands that came
out, and compares. The rules are DESIGN's; each `_check` states the one it holds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from reuseport.core import events as ev
from reuseport.core import machine, turn
from reuseport.core.model import (
    ABORTED,
    ACCEPTING,
    ATTENDING,
    BOOTING,
    CANARY,
    COMMAND,
    DRAINING,
    ENDED,
    ENDING,
    FIRST_JOB,
    FORKING,
    KILLED,
    LEAVING,
    LOADING,
    OPENING,
    RUNNING,
    SERVING,
    STAFFED,
    STANDBY,
    STARTING,
    STOPPING,
    SUPERSEDED,
    TIMER,
    TOLD,
    TRANSITIONS,
    WARMING,
    WORKING,
    YOUTH,
    ZYGOTE,
    Asker,
    Cluster,
    Generation,
    Key,
    Release,
    Terms,
    slots_of,
)

FOREVER = 1e7  # seconds: longer than anything waits
ROUNDS = 3000  # steps within which a fair world must come to rest
BOOT_TROUBLE = ("fails", "exits", "hangs", "does not start", "worker fails", "worker exits", "worker hangs")


def _reachable() -> dict[str, set[str]]:
    """The states to which one step may move a generation, which may take several transitions at once."""
    reach = {state: {state, *lines.values()} for state, lines in TRANSITIONS.items()}
    for _ in reach:
        for targets in reach.values():
            targets |= {far for near in targets for far in reach[near]}
    return reach


REACHABLE = _reachable()


class Audit:
    """The books of one cluster. `check` raises AssertionError for the first rule that a step breaks."""

    def __init__(self) -> None:
        self.loaded: set[int] = set()  # generations whose zygote can fork
        self.forked: dict[int, int] = {}  # the highest worker number by generation
        self.place: dict[Key, int] = {}
        self.ready: set[Key] = set()
        self.told: dict[Key, tuple[int, ...] | None] = {}  # has been told to accept these slots; None for a canary
        self.accepting: set[Key] = set()  # said so, lives, and was not told to go
        self.worked: set[Key] = set()  # has ever accepted: may have requests
        self.ended: dict[Key, float] = {}  # told to end at once, and when
        self.left: set[Key] = set()  # told to drain
        self.attending: set[Key] = set()  # told to stay for those who are kept in their draining generation
        self.let_go: set[Key] = set()  # said that it accepts nothing any more
        self.last: set[Key] = set()  # told that nobody accepts after it
        self.gone: set[Key] = set()
        self.jobs: set[Key] = set()  # jobs' processes that the cluster knows of
        self.company: dict[Key, Terms] = {}  # companions' processes that were asked for, and have not gone
        self.went: dict[Key, float] = {}  # those that execute something, and since when
        self.stopped: dict[Key, float] = {}  # those that have had their stop signal, and when
        self.shown: set[Key] = set()  # those that have shown that they are ready
        self.opened: set[int] = set()  # every worker was ready
        self.served: set[int] = set()
        self.slots = 0
        self.begun: dict[int, int] = {}  # which asked-for release each generation is
        self.last_asked = 0
        self.asked: dict[str, tuple[Asker, int]] = {}
        self.answers: dict[str, ev.Answer] = {}
        self.records: dict[int, str] = {}
        self.taken_back: set[int] = set()
        self.sources: dict[str, int] = {}  # the version that an asker wants back
        self.meddled = False  # an operator has asked for a promotion, a rollback or the end of a boot
        self.drained: set[int] = set()
        self.canaries: set[int] = set()
        self.stops = 0
        self.closed = 0
        self.finish: list[int] = []

    def check(
        self, before: Cluster, event: ev.Event, commands: tuple[ev.Command, ...], after: Cluster, now: float
    ) -> None:
        assert not self.finish, "a step after the master was told to leave"
        self._hear(event)
        if isinstance(event, ev.Adopted):
            before = after  # what was there before is in the event: this cluster began with it
            self._check_adoption(after)
        self._check_numbers(before, after)
        self._check_transitions(before, after)
        self._check_gates(before, event, after, now)
        self._check_late(before, event, after)
        had_acceptor = self._acceptors(after)
        for command in commands:
            self._obey(before, event, command, after, now)
        self._check_acceptor_stays(had_acceptor, after)
        self._check_staffed(after, now)
        self._check_attended(after, now)
        self._check_last(after)
        self._check_company(after)
        self._check_slots(after)
        self._check_clock(after, now)

    # --- the books --------------------------------------------------------------------------------------------------

    def _hear(self, event: ev.Event) -> None:
        match event:
            case ev.Loaded(key):
                if Key(key.generation, ZYGOTE) not in self.ended:
                    self.loaded.add(key.generation)
            case ev.Ready(key):
                self.ready.add(key)
            case ev.Born(key):
                self.jobs.add(key)
            case ev.Accepting(key):
                self.worked.add(key)
                if key not in self.left | self.attending and key not in self.ended:
                    self.accepting.add(key)
            case ev.LetGo(key):
                self.let_go.add(key)
            case ev.Exited(key):
                self.accepting.discard(key)
                if key.number == ZYGOTE:
                    self.loaded.discard(key.generation)
                    self.ended.pop(key, None)
                elif key.is_companion:
                    self._forget_companion(key)
                else:
                    self.gone.add(key)
                    self.jobs.discard(key)
            case ev.Said(key, ready=True) if key in self.went:
                self.shown.add(key)
            case ev.Started(key, error=error) if error and key.is_companion:
                self._forget_companion(key)
            case ev.DrainAwaited(asker, generation):
                self.asked[asker.name] = (asker, generation - 1)
            case ev.PromoteAsked(asker) | ev.RollbackAsked(asker=asker) | ev.AbortAsked(asker):
                self.meddled = True
                if asker:
                    self.asked[asker.name] = (asker, 0)
            case ev.ReleaseAsked(release, asker):
                self.last_asked = release.recipe["id"]
                if asker:
                    self.asked[asker.name] = (asker, max(self.begun, default=0))
                    self.sources[asker.name] = release.source
            case ev.StopAsked():
                self.stops += 1
            case ev.Adopted(survivors, _, slots, forked, release):
                self.slots = slots
                self.forked = dict(forked)
                if release:
                    self.last_asked = release.recipe["id"]
                for one in survivors:
                    self._adopt(one, slots)

    def _forget_companion(self, key: Key) -> None:
        for books in (self.company, self.went, self.stopped):
            books.pop(key, None)
        self.shown.discard(key)

    def _adopt(self, one: ev.Survivor, slots: int) -> None:
        self.begun[one.key.generation] = one.release.recipe["id"]
        if one.release.canary:
            self.canaries.add(one.key.generation)  # it may yet serve everybody, or fail
        else:
            self.records[one.key.generation] = "adopted"
        if one.key.number == ZYGOTE:
            return
        if one.key.is_companion:
            self.company[one.key] = one.release.seats()[one.key.number].terms
            self.went[one.key] = 0.0
            self.stopped |= {one.key: 0.0} if one.state == STOPPING else {}
            self.shown |= {one.key} if one.state == RUNNING else set()
            return
        if one.key.is_job:
            self.jobs.add(one.key)
            self.left |= {one.key} if one.state == LEAVING else set()
            return
        self.forked[one.key.generation] = max(self.forked.get(one.key.generation, 0), one.key.number)
        self.place[one.key] = one.place
        self.ready.add(one.key)
        self.told[one.key] = None if one.release.canary else slots_of(one.place, one.release.workers, slots)
        self.opened.add(one.key.generation)
        if one.state != TOLD:
            self.worked.add(one.key)
            books = {LEAVING: self.left, ATTENDING: self.attending}
            books.get(one.state, self.accepting).add(one.key)

    def _obey(self, before: Cluster, event: ev.Event, command: ev.Command, after: Cluster, now: float) -> None:
        match command:
            case ev.OpenSlots(number):
                assert number > self.slots, "slots only become more"
                self.slots = number
            case ev.CloseSlots():
                self.closed += 1
                assert self.stops and self.closed == 1, "slots are closed once: at the stop"
                assert before.stop_at is None or now >= before.stop_at or after.stopping == "quick", "before its time"
            case ev.StartZygote(generation, release):
                self._check_start(before, generation, release, after)
            case ev.CopyZygote(generation, donor):
                self._check_copy(generation, donor, after)
            case ev.Fork(key, place):
                self._check_fork(key, place, after)
            case ev.Accept(key, slots):
                self._check_accept(key, slots, after)
            case ev.Attend(key):
                self._check_attend(key, event, after)
            case ev.Drain(key, last):
                assert last == bool(after.stopping), "who drains last takes what waits, and nobody else does"
                hello = isinstance(event, ev.Forked | ev.Born) and event.key == key
                again = key in self.left and (hello or key not in self.last)
                if not again:
                    self._check_drain(before, key, after)
                self.last |= {key} if last else set()
            case ev.Bequeath(key):
                leaving = (self.left | self.attending) - self.gone
                assert key in leaving and after.serving, f"{key} has nothing to bequeath, or no heir"
            case ev.Launch(key):
                self._check_launch(key, after)
            case ev.Go(key):
                assert event == ev.Started(key, getattr(event, "pid", 0)) and key in self.company.keys() - self.went
                self.went[key] = now
            case ev.Stop(key):
                self._check_stop(key, after)
                self.stopped[key] = now
            case ev.Kill(key) if key.is_companion:
                self._check_kill(key, event, after, now)
            case ev.Quit(key) | ev.Abort(key) | ev.Kill(key):
                self._check_end(before, event, command, key, after, now)
            case ev.Answer():
                self._check_answer(before, event, command, after, now)
            case ev.Record(generation, "taken back"):
                assert self.records[generation] == "serving" and generation not in self.taken_back
                assert after.generations[generation].state == SERVING, "what does not serve cannot be taken back"
                self.taken_back.add(generation)
            case ev.Record(generation, "canary"):
                assert after.serving and after.serving.number < generation and generation not in self.canaries
                self.canaries.add(generation)
            case ev.Record(0, outcome):
                assert outcome in (SUPERSEDED, ABORTED) and before.pending, "nothing ends that had not begun"
            case ev.Record(generation, outcome):
                assert outcome != ABORTED or self.meddled, "nobody has asked for that"
                assert generation not in self.records, f"generation {generation} ended twice"
                self.records[generation] = outcome
            case ev.Drained(generation):
                assert generation not in self.drained, f"generation {generation} drained twice"
                assert not before.generations[generation].workers or isinstance(event, ev.Exited | ev.Adopted)
                left = [key for key in (*self.jobs, *self.company) if key.generation == generation]
                assert not left, "a job or a companion still runs"
                self.drained.add(generation)
            case ev.Finish(status):
                assert not after.generations and not self.company, "the master leaves before its processes do"
                assert status == (0 if self.stops else 1)
                assert self.stops or not self.served, "the master gave up although something had served"
                self.finish.append(status)

    def _acceptors(self, after: Cluster) -> set[Key]:
        serving = after.serving
        return {key for key in self.accepting if serving and key.generation == serving.number}

    # --- the rules --------------------------------------------------------------------------------------------------

    def _check_adoption(self, after: Cluster) -> None:
        """The newest generation that accepts serves on; one that was only told to might never."""
        accepting = {key.generation for key in self.accepting} - self.canaries
        if accepting:
            assert after.serving and self._acceptors(after), "those who accepted are sent away for those who may not"
            assert after.serving.number == max(accepting)
        if after.serving:
            self.served.add(after.serving.number)
            self.records[after.serving.number] = "serving"

    def _check_numbers(self, before: Cluster, after: Cluster) -> None:
        """Numbers only go forward."""
        assert after.last >= before.last and after.slots >= before.slots
        new = set(after.generations) - set(before.generations)
        assert all(number > before.last for number in new), "a generation's number was used before"
        assert all(number <= after.last for number in after.generations)

    def _check_transitions(self, before: Cluster, after: Cluster) -> None:
        """States change along the table only; at most one generation serves, at most one boots."""
        for number, g in before.generations.items():
            if number in after.generations:
                state = after.generations[number].state
                assert state in REACHABLE[g.state], f"generation {number} went from {g.state} to {state}"
            else:
                assert REACHABLE[g.state] & {DRAINING, ENDING}, f"generation {number} vanished while {g.state}"
        states = [g.state for g in after.generations.values()]
        assert states.count(SERVING) <= 1, "two generations serve"
        assert sum(state in BOOTING for state in states) <= 1, "two generations boot"

    def _check_gates(self, before: Cluster, event: ev.Event, after: Cluster, now: float) -> None:
        """Nobody accepts before all are ready; nobody serves before one accepts; a failed boot changes nothing else."""
        for number, g in after.generations.items():
            old = before.generations.get(number)
            was = old.state if old else LOADING
            if was in (LOADING, WARMING) and g.state in (OPENING, *STAFFED):
                fit = {w.place for n, w in g.workers.items() if Key(number, n) in self.ready - self.gone}
                assert fit >= set(range(g.wanted)), f"generation {number} opened before all its workers were ready"
                self._check_accompanied(g, now)
                self.opened.add(number)
            if was == CANARY and g.state in (OPENING, SERVING):
                self._check_accompanied(g, now)
            if was != SERVING and g.state == SERVING:
                assert any(key.generation == number for key in self.accepting), "it serves, and nobody accepts"
                assert number not in self.served and number > max(self.served, default=0)
                self.served.add(number)
            if was in BOOTING and g.state == ENDING and before.serving and not after.stopping:
                others = {n: other for n, other in before.generations.items() if n != number}
                without, _ = machine.step(replace(before, generations=others, pending=None), event, now)
                assert after.serving == without.serving, "a failed release changed the generation that serves"

    def _check_start(self, before: Cluster, generation: int, release: Release, after: Cluster) -> None:
        """A zygote is started for a new generation, or again for the one that serves, from the same release."""
        assert not (release.source and release.canary), "what is brought back is for everybody"
        if generation in self.begun:
            assert self.begun[generation] == release.recipe["id"], "a generation got another release's code"
            old = before.generations[generation]
            assert after.generations[generation].state in STAFFED or old.donor
            assert old.zygote is None or Key(generation, ZYGOTE) not in self.ended
        else:
            assert generation > max(self.begun, default=0)
            assert release.recipe["id"] == self.last_asked or release.source or not after.leaving
            self.begun[generation] = release.recipe["id"]

    def _check_copy(self, generation: int, donor: int, after: Cluster) -> None:
        """A rollback is forked from a living zygote of the version that was asked for."""
        g = after.generations[generation]
        assert generation > max(self.begun, default=0) and donor in self.loaded
        assert g.release.source == after.generations[donor].origin and not g.release.canary
        self.begun[generation] = g.release.recipe["id"]
        assert self.begun[generation] == self.begun[donor], "a rollback got another release's code"

    def _check_fork(self, key: Key, place: int, after: Cluster) -> None:
        """Only a living zygote that has loaded, and was not told to go, is asked for a worker."""
        assert key.generation in self.loaded, f"{key} was asked of a zygote that cannot fork"
        assert key.number > self.forked.get(key.generation, 0), "a worker's number was used before"
        g = after.generations[key.generation]
        assert g.state in (WARMING, OPENING, *STAFFED) or (g.state == DRAINING and g.pinned and not after.stopping)
        self.forked[key.generation] = key.number
        self.place[key] = place

    def _check_accept(self, key: Key, slots: tuple[int, ...] | None, after: Cluster) -> None:
        """Only a ready worker that stays is told to accept, on slots that have been opened by then."""
        assert key in self.ready - self.gone, f"{key} was told to accept before it was ready"
        assert key not in self.left and key not in self.ended
        assert key.generation in self.opened, f"{key} was told to accept while siblings are not ready"
        assert (slots is None) == bool(after.generations[key.generation].release.canary), "only a canary has no slots"
        assert all(slot < self.slots for slot in slots or ())
        self.told[key] = slots

    def _check_drain(self, before: Cluster, key: Key, after: Cluster) -> None:
        """A worker drains when its generation is succeeded, when it is relieved, when it is too many, or at a stop."""
        told = key in self.told.keys() | self.attending or key in self.jobs
        assert told and key not in self.gone, f"{key} has nothing to drain"
        assert key not in self.left and key not in self.ended, f"{key} was told twice to go"
        if key.is_job:
            assert after.generations[key.generation].state == DRAINING, f"{key} hears of a drain that is none"
            self.left.add(key)
            return
        self._check_succession(before, key, after)
        g = before.generations[key.generation]
        stays = after.generations.get(key.generation)
        if stays and stays.state == SERVING:
            w = g.workers[key.number]
            siblings = [other for other in self.accepting if other.generation == g.number and other != key]
            retiring = stays.workers[key.number].retiring
            relieved = any(self.place[o] == w.place and (retiring or o.number > key.number) for o in siblings)
            assert w.place >= stays.wanted or relieved, f"{key} was sent away"
        self.left.add(key)
        self.accepting.discard(key)

    def _check_attend(self, key: Key, event: ev.Event, after: Cluster) -> None:
        """Only where somebody is kept, only who is ready; said again only to who says hello again."""
        g = after.generations[key.generation]
        assert key in self.ready - self.gone - self.left and key not in self.ended
        again = key in self.attending and event == ev.Forked(key, getattr(event, "pid", 0))
        assert again or (g.pinned and g.state == DRAINING and not after.stopping and key not in self.attending)
        assert len(g.having(ATTENDING)) >= 1
        self.attending.add(key)
        self.accepting.discard(key)

    def _check_attended(self, after: Cluster, now: float) -> None:
        """Where somebody is kept there is a worker for him, or one on its way, or a time at which it gets one."""
        for g in after.having(DRAINING):
            if after.stopping or not g.pinned:
                assert not g.having(ATTENDING), f"generation {g.number} is attended for nobody"
                continue
            zygote = g.zygote is not None and g.zygote.loaded and not g.zygote.leaving
            present = len(g.having(ATTENDING, FORKING, STARTING))
            assert present >= min(turn.ATTENDANTS, g.wanted) or not zygote or g.fork_after > now

    def _check_end(
        self, before: Cluster, event: ev.Event, command: ev.Command, key: Key, after: Cluster, now: float
    ) -> None:
        """Nobody who has accepted is ended at once, unless by a quick stop, kill_blocked or its own failed boot."""
        first = key not in self.ended
        if key.number == ZYGOTE:
            assert isinstance(command, ev.Kill) or first, f"the zygote {key} was told twice to end"
            if not isinstance(command, ev.Kill):
                self.loaded.discard(key.generation)
                self.ended[key] = now
            return
        g = before.generations.get(key.generation)
        if g is None or key.number not in g.workers:
            if key.is_job:
                # It has not begun, and what asked for it is dead, or has to die.
                assert isinstance(command, ev.Quit) and isinstance(event, ev.Born)
                assert g is None or g.state in (STANDBY, ENDING), f"{key} was not wanted"
                if g is not None and g.state == ENDING:
                    self.ended[key] = now
                else:
                    self.jobs.discard(key)
                return
            assert isinstance(command, ev.Kill) and event == ev.Forked(key, getattr(event, "pid", 0))
            return
        if not first:
            late = now - self.ended[key] >= turn.QUIT_GRACE
            again = isinstance(event, ev.Forked | ev.Born) and event.key == key and not isinstance(command, ev.Kill)
            assert again or (isinstance(command, ev.Kill) and late), f"{key} was ended twice"
            return
        stays = after.generations.get(key.generation)
        failed = g.state in BOOTING and (stays is None or stays.failure != "")
        wanted = isinstance(command, ev.Kill) and g.release.kill_blocked and event == ev.Blocked(key)
        hurried = after.stopping == "quick"
        if key in self.worked or key in self.left or key.is_job:
            assert failed or wanted or hurried, f"{key} was ended with requests in it, at {event}"
        if not (failed or wanted or key.is_job):
            self._check_succession(before, key, after)
        if not wanted:  # whoever is killed for being blocked counts as there until it has gone
            self.ended[key] = now
            self.accepting.discard(key)

    def _check_succession(self, before: Cluster, key: Key, after: Cluster) -> None:
        """No worker of the generation that served is sent away by a release before the new one is ready and accepts."""
        if before.serving is None or before.serving.number != key.generation or after.stopping:
            return
        serving = after.serving
        assert serving, "nothing serves any more"
        if serving.number != key.generation:
            assert serving.number > key.generation and serving.number in self.opened
            assert self._acceptors(after), f"{key} has to go, and nobody of generation {serving.number} accepts"

    def _check_confirmed(self, number: int, after: Cluster, now: float) -> None:
        """A success is told when no older worker accepts any more, as far as they can be waited for."""
        g = after.serving
        if g is None or g.number != number or now >= g.since + turn.LETTING_GO:
            return
        for old in after.generations.values():
            late = [n for n, w in old.having(TOLD, ACCEPTING, ATTENDING, LEAVING).items() if not w.blocked]
            late = [n for n in late if Key(old.number, n) not in self.let_go | self.jobs]
            assert old.number >= number or not late, f"{old.number}.{late} may still accept"

    def _check_late(self, before: Cluster, event: ev.Event, after: Cluster) -> None:
        """A command that was started before the present generation began to serve begins and ends nothing; an abort
        leaves nothing on its way that an operator asked for and that has not begun to accept."""
        change = before.change
        late = isinstance(event, ev.RollbackAsked) and change and event.seen_at is not None and not event.came_from
        if late and event.seen_at < change.at and before.serving and change.number == before.serving.number:
            states = {n: g.state for n, g in before.generations.items()}
            assert after.last == before.last and after.pending == before.pending
            assert {n: g.state for n, g in after.generations.items()} == states, "a late rollback changed something"
        if isinstance(event, ev.AbortAsked) and event.seen_at is None and before.serving and not before.leaving:
            booting = after.booting
            # What failed its probation beside the release that was aborted is taken back now.
            taken_back = bool(booting and before.serving.verdict and booting.number > before.last)
            assert after.pending is None and (booting is None or booting.state == OPENING or taken_back)
            assert after.serving is not None and after.serving.number == before.serving.number
            assert after.canary is None or after.canary.promote_by is None
        if isinstance(event, ev.RollbackAsked) and before.booting and before.serving:
            serves = after.serving is not None and after.serving.number == before.serving.number
            assert serves, "a rollback while a release boots changes what serves"

    def _check_answer(self, before: Cluster, event: ev.Event, answer: ev.Answer, after: Cluster, now: float) -> None:
        """Everybody who asked hears once, the truth, about the release they asked for or a newer one."""
        name = answer.asker.name
        assert name in self.asked, f"{name} has not asked"
        assert name not in self.answers, f"{name} was answered twice"
        self.answers[name] = answer
        asker, asked_at = self.asked[name]
        assert asker == answer.asker
        number = answer.generation
        if asker.wait == "none":
            assert not answer.ok or number in (0, *self.served)
            return
        if answer.outcome:
            ends = {0: answer.outcome, **self.records}.get(number)
            ends_late = number in self.served and after.serving and after.serving.number > number
            assert not answer.ok and (ends == answer.outcome or ends_late or number in self.canaries)
            return
        if answer.aborted:
            assert self.records[answer.aborted] == ABORTED and answer.ok
            assert number == (after.serving.number if after.serving else 0)
            return
        brought = after.serving is not None and after.serving.number == number
        brought = brought and after.serving.origin == self.sources.get(name)  # type: ignore[union-attr]
        if number:
            assert number > asked_at or (answer.ok and brought), f"{name} heard of an older release than was asked for"
        else:
            assert not answer.ok
        at_once = isinstance(event, ev.RollbackAsked | ev.PromoteAsked | ev.AbortAsked) and event.asker == asker
        if answer.ok and (at_once or brought):
            assert number in self.served
        elif answer.ok:
            assert number in self.served | self.canaries
            self._check_confirmed(number, after, now)
            if asker.wait == "drained" and number in self.served:
                older = [n for n, old in after.generations.items() if n < number and old.state != STANDBY]
                assert not older, f"{name} hears that all have drained, but {older} have not"
        else:
            assert number not in self.served - self.taken_back, "a release that serves was reported as failed"

    def _check_acceptor_stays(self, had: set[Key], after: Cluster) -> None:
        """While anything serves, the core never sends the last acceptor away."""
        if after.serving and not after.stopping and had:
            assert self._acceptors(after), "the last worker that accepted was sent away"

    def _check_staffed(self, after: Cluster, now: float) -> None:
        """Every place of the serving generation has a worker, or one on its way, or a time at which it gets one."""
        g = after.serving
        if g is None or after.stopping:
            return
        for place in range(g.wanted):
            if g.place_taken(place):
                continue
            if g.zygote is None:
                assert g.zygote_after > now
            elif g.zygote.leaving:
                continue  # another one follows it
            elif not g.zygote.loaded:
                assert g.deadline is not None
            else:
                assert g.fork_after > now, f"place {place} is empty and nobody does anything about it"

    # Companions.

    def _check_launch(self, key: Key, after: Cluster) -> None:
        """Only for a generation that is ready, and stays; an exclusive one only when no other of its name lives."""
        g = after.generations[key.generation]
        terms = g.companions[key.number].terms
        assert key not in self.company and not after.stopping
        assert g.release.canary is None or g.promote_by is not None, f"{key} belongs to a canary"
        assert g.state in ((SERVING,) if terms.exclusive else (WARMING, CANARY, OPENING, SERVING))
        places = {w.place for n, w in g.workers.items() if Key(g.number, n) in self.ready - self.gone}
        assert g.state != WARMING or places >= set(range(g.wanted)), f"{key} began before its generation was ready"
        twins = [other for other, its in self.company.items() if its.name == terms.name and its.processes == 1]
        assert not terms.exclusive or not twins, f"{key} was started beside {twins}"
        self.company[key] = terms

    def _check_accompanied(self, g: Generation, now: float) -> None:
        """Nothing is switched before the new companions are ready, or have ended as they may. A rollback by a copy of a
        zygote waits for none."""
        for number, c in g.companions.items() if g.release.canary is None and not g.copied else ():
            key = Key(g.number, number)
            if not c.terms.exclusive and c.state != ENDED:
                assert now - self.went.get(key, now) >= c.terms.ready_after, f"{key} was not waited for"
                assert c.terms.ready == TIMER or key in self.shown, f"{key} has not shown that it is ready"

    def _check_stop(self, key: Key, after: Cluster) -> None:
        """One stop signal for each process, when its generation leaves."""
        assert key in self.went, f"{key} has not begun"
        assert key not in self.stopped, f"{key} was signalled twice"
        g = after.generations[key.generation]
        given_up = g.state == CANARY and g.promote_by is None
        assert g.state in (DRAINING, ENDING) or given_up, f"{key} has no reason to stop"

    def _check_kill(self, key: Key, event: ev.Event, after: Cluster, now: float) -> None:
        """SIGKILL is for who has had the time that was set, for a quick stop, and for who has not begun."""
        if key not in self.went:
            assert event == ev.Started(key, getattr(event, "pid", 0))
            return
        if isinstance(event, ev.Adopted) and any(s.key == key and s.state == KILLED for s in event.survivors):
            return  # it may not have been sent
        limit = self.company[key].stop_timeout
        late = bool(limit) and now - self.stopped[key] >= limit
        assert late or after.stopping == "quick", f"{key} was killed"

    def _check_company(self, after: Cluster) -> None:
        """Companions of a generation that leaves have their stop signal; it stays until they have ended."""
        for key in self.company:
            assert key.generation in after.generations, f"{key} was left behind"
            state = after.generations[key.generation].state
            assert state not in (DRAINING, STANDBY, ENDING) or key not in self.went or key in self.stopped

    def _check_last(self, after: Cluster) -> None:
        """Once the server stops, whoever drains knows that there is no heir: else it would keep idle connections."""
        for g in after.generations.values() if after.stopping else ():
            assert all(Key(g.number, number) in self.last for number in g.having(LEAVING)), "it waits for an heir"

    def _check_slots(self, after: Cluster) -> None:
        """Every open slot has an owner among the places that are wanted, whatever happened to their number."""
        assert self.slots == after.slots
        for g in after.having(OPENING, SERVING):
            assert after.slots >= g.wanted or after.stopping
            for number, w in g.having(TOLD, ACCEPTING).items():
                if w.place < g.wanted and not g.release.canary:
                    assert self.told[Key(g.number, number)] == slots_of(w.place, g.wanted, after.slots)

    def _check_clock(self, after: Cluster, now: float) -> None:
        """Before `wake_at` a Tick finds nothing to do; at `wake_at` it does something. So nothing is late or busy."""
        due = machine.wake_at(after)
        if after.finished:
            return
        assert due is None or due > now, "wake_at has passed: a busy loop"
        quiet = now + FOREVER if due is None else (now + due) / 2
        if due is None or now < quiet < due:
            assert machine.step(after, ev.Tick(), quiet) == (after, ()), "something was due before wake_at"
        if due is not None:
            later, _ = machine.step(after, ev.Tick(), due)
            again = machine.wake_at(later)
            assert later.finished or again is None or again > due, "a Tick at wake_at changes nothing: a busy loop"


class Story:
    """A cluster that is told what happens, step by step; for tests that read as stories.

    `commands` are those of the last step, without what is only told, which is in `notes` and `audit`.
    """

    def __init__(self, **release: object) -> None:
        self.audit = Audit()
        self.cluster = Cluster()
        self.now = 100.0
        self.commands: list[ev.Command] = []
        self.notes: list[str] = []
        self._ids = count(1)
        self._defaults = release

    def tell(self, event: ev.Event) -> list[ev.Command]:
        before = self.cluster
        self.cluster, commands = machine.step(before, event, self.now)
        self.notes += [c.text for c in commands if isinstance(c, ev.Note)]
        self.commands = [c for c in commands if not isinstance(c, (ev.Note, ev.Record, ev.Drained))]
        self.audit.check(before, event, commands, self.cluster, self.now)
        return self.commands

    def roll_back(self, asker: Asker | None = None, to: int = 0, **fields: Any) -> list[ev.Command]:
        """As the master asks for it: to the version of generation `to`, which must still live; 0 for none."""
        serving = self.cluster.serving
        release = None
        if to:
            by = {"by": fields.get("by", ""), "session": fields.get("session", "")}
            release = replace(self[to].release, source=self[to].origin, probation=0.0, canary=None, **by)
        against = serving.number if serving else 0
        return self.tell(ev.RollbackAsked(release, against, asker, **{"refusal": "there is none before", **fields}))

    def release(self, asker: Asker | None = None, **fields: object) -> list[ev.Command]:
        made = Release(recipe={"id": next(self._ids)}, **{**self._defaults, **fields})  # type: ignore[arg-type]
        return self.tell(ev.ReleaseAsked(made, asker))

    def after(self, seconds: float) -> list[ev.Command]:
        """Time passes, and the clock is all that is heard."""
        self.now += seconds
        return self.tell(ev.Tick())

    def sleep(self) -> float:
        """Sleep as long as the core allows; returns for how many seconds."""
        due = machine.wake_at(self.cluster)
        assert due is not None, "nothing is due"
        slept = due - self.now
        self.now = due
        self.tell(ev.Tick())
        return slept

    def loads(self, number: int, workers: int | None = None) -> list[ev.Command]:
        self.tell(ev.Started(Key(number, ZYGOTE), number * 1000))
        return self.tell(ev.Loaded(Key(number, ZYGOTE), workers))

    def readies(self, *keys: tuple[int, int]) -> list[ev.Command]:
        """These workers are forked and get ready; returns what the last of them brought about."""
        for key in keys:
            self.tell(ev.Forked(Key(*key), key[0] * 1000 + key[1]))
            self.tell(ev.Ready(Key(*key)))
        return self.commands

    def accept(self, *keys: tuple[int, int]) -> list[ev.Command]:
        for key in keys:
            self.tell(ev.Accepting(Key(*key)))
        return self.commands

    def let_go(self) -> list[ev.Command]:
        """Everybody who drains closes the slots; returns all that this brought about."""
        done: list[ev.Command] = []
        for number, g in list(self.cluster.generations.items()):
            for n in g.having(LEAVING):
                done += self.tell(ev.LetGo(Key(number, n)))
        return done

    def exit(self, *keys: tuple[int, int]) -> list[ev.Command]:
        """These processes are gone; returns all that their exits brought about."""
        done: list[ev.Command] = []
        for key in keys:
            done += self.tell(ev.Exited(Key(*key), "was killed by SIGKILL"))
        return done

    def serve(self, number: int) -> list[ev.Command]:
        """The generation that was begun loads, gets ready and accepts, without trouble."""
        self.loads(number)
        workers = [(number, n) for n in sorted(self[number].workers)]
        self.readies(*workers)
        return self.accept(*workers)

    def end(self) -> None:
        """Every process that is left goes."""
        for number, g in list(self.cluster.generations.items()):
            self.exit(*((number, n) for n in g.workers), *([(number, ZYGOTE)] if g.zygote else []))

    def __getitem__(self, number: int) -> Generation:
        return self.cluster.generations[number]

    @property
    def states(self) -> dict[int, str]:
        return {number: g.state for number, g in self.cluster.generations.items()}


# --- the world ------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """A simulated process. Phases: loading, loaded (zygotes); born, starting, ready, serving, draining (workers);
    working (jobs); held, accompanying (companions)."""

    key: Key
    pid: int
    phase: str
    trouble: str = ""  # what goes wrong while it starts
    workers: int | None = None  # what the application's own script says (embedding)
    orders: deque[tuple[str, Key | None]] = field(default_factory=deque)
    says: deque[ev.Event] = field(default_factory=deque)
    term: bool = False
    stuck: bool = False  # heeds nothing but SIGKILL, and SIGABRT unless it is stubborn as well
    stubborn: bool = False
    busy: bool = False  # has a job or a request, and drains only when that ends
    dead: bool = False
    clean: bool = False  # it ended with status 0
    known: bool = False  # the master has its pid
    heard: bool = False  # the master has its channel
    reaped: bool = False
    shows: str = TIMER  # how it shows that it is ready
    shown: bool = False  # it has done so
    asked: list[Process] = field(default_factory=list)  # jobs' processes that the master may not know of yet

    @property
    def waits(self) -> bool:
        """A drain waits for it: for its work, or for the master to know of a job that it has asked for."""
        return self.busy or any(not job.heard and not job.dead for job in self.asked)

    def die(self) -> None:
        self.dead = True
        self.orders.clear()


class World:
    def __init__(self) -> None:
        self.audit = Audit()
        self.cluster = Cluster()
        self.now = 100.0
        self.zygotes: dict[int, Process] = {}
        self.workers: dict[Key, Process] = {}
        self.loose: deque[ev.Event] = deque()  # what the master tells itself
        self.no_companion = False  # the next one that is asked for is not to be had
        self.sound = True  # no step has broken a rule yet
        self.story: list[str] = []  # what happened so far, for whoever has to find out why
        self._pids = count(1)

    # --- the master -------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        if self.audit.finish:
            return
        before, self.sound = self.cluster, False
        self.cluster, commands = machine.step(before, event, self.now)
        self.story.append(f"{self.now:8.3f} {event}")
        self.story += [f"           -> {command}" for command in commands if not isinstance(command, ev.Note)]
        self.audit.check(before, event, commands, self.cluster, self.now)
        self.sound = True
        for command in commands:
            self._carry_out(command)

    def _carry_out(self, command: ev.Command) -> None:
        match command:
            case ev.StartZygote(generation, release):
                self._start(Key(generation, ZYGOTE), release)
            case ev.CopyZygote(generation, donor):
                self._order(self.zygotes.get(donor), "copy", Key(generation, ZYGOTE))
            case ev.Fork(key):
                self._order(self.zygotes.get(key.generation), "fork", key)
            case ev.Accept(key):
                self._order(self.workers.get(key), "accept")
            case ev.Attend(key):
                self._order(self.workers.get(key), "attend")
            case ev.Launch(key):
                self._launch(key)
            case ev.Go(key) if not self.workers[key].dead:
                self.workers[key].phase = "accompanying"
            case ev.Stop(key):
                self._signal(key, "TERM")
            case ev.Drain(key) if key.is_job:
                self._order(self.workers.get(key), "drain")
            case ev.Drain(key, last):
                if last:
                    self._order(self.workers.get(key), "stopping")
                self._signal(key, "TERM")
            case ev.Quit(key):
                if key.number == ZYGOTE or not self._order(self.workers.get(key), "quit"):
                    self._signal(key, "TERM")
            case ev.Abort(key):
                self._signal(key, "ABRT")
            case ev.Kill(key):
                self._signal(key, "KILL")

    def _start(self, key: Key, release: Release) -> None:
        old = self.zygotes.get(key.generation)
        assert old is None or old.reaped, f"{key} was started beside itself"
        trouble = release.recipe.get("trouble", "")
        if trouble == "does not start":
            self.loose.append(ev.Started(key, error="cannot execute"))
            return
        z = Process(key, next(self._pids), "loading", trouble, release.recipe.get("workers"), known=True, heard=True)
        z.stuck = trouble == "hangs"
        z.says.append(ev.Started(key, z.pid))
        self.zygotes[key.generation] = z

    def _launch(self, key: Key) -> None:
        old = self.workers.get(key)
        assert old is None or old.reaped, f"{key} was started beside itself"
        if self.no_companion:
            self.no_companion = False
            self.loose.append(ev.Started(key, error="another one runs"))
            return
        self.workers[key] = Process(key, next(self._pids), "held", known=True, heard=True)
        self.workers[key].shows = self.cluster.generations[key.generation].companions[key.number].terms.ready
        self.loose.append(ev.Started(key, self.workers[key].pid))

    def _order(self, process: Process | None, order: str, key: Key | None = None) -> bool:
        if process is None or process.dead or not process.heard:
            return False
        process.orders.append((order, key))
        return True

    def _signal(self, key: Key, name: str) -> None:
        process = self.zygotes.get(key.generation) if key.number == ZYGOTE else self.workers.get(key)
        if process is None or process.dead or not process.known:
            return
        if name == "KILL" or (name == "ABRT" and not process.stubborn):
            process.die()
        elif name == "TERM":
            process.term = True

    # --- the processes ----------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[Process]:
        return [*self.zygotes.values(), *self.workers.values()]

    @property
    def living(self) -> list[Process]:
        return [p for p in self.processes if not p.dead]

    def possible(self) -> list[tuple[Callable[[Process], None], Process]]:
        """What can happen next, if nothing goes wrong."""
        things: list[tuple[Callable[[Process], None], Process]] = []
        for p in self.processes:
            if p.says:
                things.append((self._hear, p))
            elif p.dead and p.known and not p.reaped and not self._is_announced(p):
                things.append((self._reap, p))
            if not p.dead and not p.stuck and self._has_to_do(p):
                things.append((self._live, p))
        if self.loose:
            things.append((lambda _: self.feed(self.loose.popleft()), Process(Key(0, 0), 0, "")))
        return things

    def _is_announced(self, p: Process) -> bool:
        """Whether its start is still to be heard: the master tells itself of that before it looks for exits."""
        return any(isinstance(event, ev.Started) and event.pid == p.pid for event in self.loose)

    def happen(self, chance: random.Random) -> bool:
        things = self.possible()
        if not things:
            return False
        act, process = chance.choice(things)
        act(process)
        return True

    def _hear(self, p: Process) -> None:
        event = p.says.popleft()
        if self.audit.finish:
            if isinstance(event, ev.Forked):
                self.workers[event.key].die()  # there is no master: who has never accepted ends by itself
            return
        if isinstance(event, ev.Forked | ev.Born):
            child = self.workers[event.key]
            child.known = True
            child.heard = child.heard or child is p or isinstance(event, ev.Born)
            if child.reaped:
                # The master looks for a process that has gone already, and learns just that.
                self.loose.append(ev.Exited(child.key, "has gone"))
        self.feed(event)

    def _reap(self, p: Process) -> None:
        p.reaped = True
        self.feed(ev.Exited(p.key, clean=p.clean))

    def _has_to_do(self, p: Process) -> bool:
        if p.phase in ("held", "accompanying"):
            return p.phase == "accompanying" and ((p.term and not p.busy) or (p.shows != TIMER and not p.shown))
        if p.phase == "working":
            return not p.busy or bool(p.orders) or p.term
        if p.phase == "draining":
            return not p.waits or any(order == "quit" for order, _ in p.orders)
        return p.term or bool(p.orders and p.phase != "starting") or p.phase in ("loading", "born", "starting")

    def _live(self, p: Process) -> None:
        """One step in a process's life."""
        if p.key.number == ZYGOTE:
            self._live_zygote(p)
        elif p.phase == "accompanying" and p.term and not p.busy:
            self.end_well(p)
        elif p.phase == "accompanying":
            p.shown = True
            p.says.append(ev.Said(p.key, p.pid, ready=True))
        elif p.phase == "born":
            # Its first word is the hello, by which the master gets its channel.
            p.says.append(ev.Forked(p.key, p.pid))
            p.phase = "starting"
            p.stuck = p.trouble == "worker hangs"
        elif p.phase == "starting":
            if p.term:
                p.die()
            elif p.trouble:
                self.crash(p, says_why=p.trouble == "worker fails")
            else:
                p.says.append(ev.Ready(p.key))
                p.phase = "ready"
        elif p.phase == "draining" and not p.orders:
            p.die()
        elif p.phase == "working" and not p.orders:
            p.term = False  # while it has a master, that says when to go
            if not p.busy:
                p.die()
        elif p.orders:
            self._heed(p, p.orders.popleft()[0])
        elif p.term:
            self._drain(p)

    def _live_zygote(self, z: Process) -> None:
        if z.term:
            z.die()
        elif z.phase == "loading":
            if z.trouble in ("fails", "exits"):
                self.crash(z, says_why=z.trouble == "fails")
            else:
                z.says.append(ev.Loaded(z.key, z.workers))
                z.phase = "loaded"
        else:
            self._bear(z, silent=False)

    def _bear(self, z: Process, silent: bool) -> None:
        _, key = z.orders.popleft()
        assert key is not None
        trouble = z.trouble if z.trouble.startswith("worker") else ""
        if key.number == ZYGOTE:
            if not silent:  # else its hello will find that another one has taken its place
                copy = Process(key, next(self._pids), "loading", trouble, z.workers, known=True, heard=True)
                self.zygotes[key.generation] = copy
                z.says.append(ev.Started(key, copy.pid))
            return
        self.workers[key] = Process(key, next(self._pids), "born", trouble)
        if not silent:
            z.says.append(ev.Forked(key, self.workers[key].pid))

    def _heed(self, p: Process, order: str) -> None:
        if order == "accept" and p.phase in ("ready", "serving"):
            p.phase = "serving"
            p.says.append(ev.Accepting(p.key))
        elif order == "attend" and p.phase in ("ready", "serving"):
            p.phase = "attending"
            p.says.append(ev.LetGo(p.key))
        elif order == "stopping":
            self._drain(p)
        elif order == "quit":
            p.die()

    def _drain(self, p: Process) -> None:
        if p.phase in ("ready", "serving", "attending"):
            p.phase = "draining"
            p.says.append(ev.LetGo(p.key))

    def spawn(self, p: Process) -> None:
        """A worker, or a job, asks its zygote for a job's process, which says hello by itself."""
        zygote = self.zygotes.get(p.key.generation)
        if zygote is None or zygote.dead or zygote.phase != "loaded":
            return
        pid = next(self._pids)
        job = Process(Key(p.key.generation, FIRST_JOB + pid), pid, "working", busy=True)
        self.workers[job.key] = job
        p.asked.append(job)
        job.says.append(ev.Born(job.key, pid))

    # --- misfortune -------------------------------------------------------------------------------------------------

    def crash(self, p: Process, says_why: bool) -> None:
        if says_why:
            p.says.append(ev.Failed(p.key, f"{p.key} raised"))
        p.die()

    def end_well(self, p: Process) -> None:
        p.clean = True
        p.die()

    def die_while_forking(self, z: Process) -> None:
        """The worker is born, and nobody is left to say so."""
        if z.phase == "loaded" and z.orders:
            self._bear(z, silent=True)
        z.die()

    def unborn(self, z: Process) -> None:
        """There is no memory for another process."""
        if z.phase == "loaded" and z.orders and not z.term:
            _, key = z.orders.popleft()
            assert key is not None
            how = "could not be forked"
            z.says.append(ev.Started(key, error=how) if key.number == ZYGOTE else ev.Exited(key, how))

    def lose_master(self, release: Release, renew: bool = False) -> None:
        """The master dies, and with it all that was on its way; the next one adopts whom it finds, kills the rest."""
        left, last, slots = [], self.cluster.last, self.cluster.slots
        roster = {
            Key(g.number, number): (g, state, place)
            for g in (one.on_record for one in self.cluster.generations.values())
            for number, pid, state, place in (
                *((n, w.pid, w.state, w.place) for n, w in g.workers.items()),
                *((ZYGOTE, z.pid, "loaded" if z.loaded else "loading", 0) for z in (g.zygote,) if z),
                *((n, c.pid, c.state, 0) for n, c in g.companions.items()),
            )
            if pid
        }
        ended = tuple(
            Key(g.number, n)
            for g in self.cluster.generations.values()
            for n, c in g.companions.items()
            if c.state == ENDED
        )
        forked = {g.number: g.forked for g in self.cluster.generations.values()}
        ran = {
            c.pid
            for g in self.cluster.generations.values()
            for c in g.companions.values()
            if c.state in (YOUTH, RUNNING)
        }
        gone = {p.key: p.clean for p in self.processes if p.pid in ran and (p.dead or p.phase == "held")}
        for p in self.processes:
            p.shown = p.shown and p.shows != COMMAND  # the next master runs it again, but hears no word that was lost
            p.orders.clear()
            p.says.clear()
            p.reaped = p.dead
            g, state, place = roster.get(p.key, (None, "", 0))  # a zygote is in it from the moment it runs
            if p.key.is_job and not p.dead and (state in (WORKING, LEAVING) or not g):
                # One that the dead master never heard of says hello to the next one all the same.
                p.known = p.heard = bool(g)
                p.says.append(ev.Born(p.key, p.pid))
                if g:
                    left.append(ev.Survivor(p.key, p.pid, g.release, state, place))
            elif p.phase == "held":
                p.die()  # what it waited for to tell it to go is dead
                p.reaped = True
            elif p.dead or (not g and p.key.number != ZYGOTE):
                p.known = p.heard = False
            elif p.key.is_companion and g:
                left.append(ev.Survivor(p.key, p.pid, g.release, state, place))
            elif state in (ACCEPTING, ATTENDING, LEAVING, TOLD, "loaded"):
                p.known = p.heard = True
                p.says.append(ev.Loaded(p.key) if p.key.number == ZYGOTE else ev.Forked(p.key, p.pid))
                left.append(ev.Survivor(p.key, p.pid, g.release, state, place))
            else:
                p.die()
                p.reaped = True
        self.loose.clear()
        self.cluster, self.audit = Cluster(), Audit()
        self.story.append(f"{self.now:8.3f} the master dies")
        self.feed(ev.Adopted(tuple(left), last, slots, forked, release, ended, renew, gone))

    # --- fairness ---------------------------------------------------------------------------------------------------

    def be_fair(self, chance: random.Random) -> None:
        """From now on nothing new goes wrong, every job ends, and time passes, until the world is at rest.

        What hangs while a deadline of the core's covers it hangs on: the core must cope.
        """
        for number, g in list(self.cluster.generations.items()):
            if g.pinned:
                self.feed(ev.Pinned(number, False))
        for _ in range(ROUNDS):
            for p in self.workers.values():
                p.busy = False
                p.stuck = p.stuck and not p.key.is_companion
                g = self.cluster.generations.get(p.key.generation)
                w = g.workers.get(p.key.number) if g else None
                if g and w and w.state in (TOLD, ACCEPTING, ATTENDING, WORKING, LEAVING) and g.state not in BOOTING:
                    p.stuck = False
            if self.happen(chance):
                continue
            due = machine.wake_at(self.cluster)
            if self.audit.finish or due is None:
                return
            self.now = due
            self.feed(ev.Tick())
        raise AssertionError(f"after {ROUNDS} steps of a fair world: {self.cluster}")

    def check_rest(self) -> None:
        """What must be true of a world at rest: everything that was begun has ended as it should."""
        audit, cluster = self.audit, self.cluster
        unanswered = set(audit.asked) - set(audit.answers)
        assert not unanswered, f"never answered: {sorted(unanswered)}"
        outcomes = audit.records.keys() | audit.canaries
        assert outcomes == set(audit.begun), f"no outcome: {set(audit.begun) - outcomes}"
        assert {n for n, outcome in audit.records.items() if outcome == "serving"} == audit.served
        assert cluster.pending is None and not cluster.drain_askers
        assert all(not p.known for p in self.living if p.key.generation not in cluster.generations), "left behind"
        if audit.stops or not audit.served:
            assert len(audit.finish) == 1, "the master was never told to leave"
            return
        assert not audit.finish
        newest = max(audit.served)
        expected = {newest: SERVING} | ({cluster.canary.number: CANARY} if cluster.canary else {})
        states = {n: g.state for n, g in cluster.generations.items()}
        assert states == expected and newest == min(expected), "only the newest remains, and the canary"
        for n in expected:
            g = cluster.generations[n]
            assert sorted(w.place for w in g.workers.values()) == list(range(g.wanted)), "not at full strength"
            for number, w in g.workers.items():
                p = self.workers[Key(n, number)]
                assert w.state == ACCEPTING and w.pid == p.pid and p.phase == "serving" and not p.dead
            assert g.zygote is not None and g.zygote.loaded and not self.zygotes[n].dead
            for number, c in g.companions.items() if n == newest else ():
                ended = c.state == ENDED and c.terms.restart != "always"
                there = self.workers.get(Key(n, number))
                assert ended or (c.state == RUNNING and there and there.pid == c.pid and not there.dead)
