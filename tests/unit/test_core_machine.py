"""The core in a world where anything may happen, in any order: its rules hold at every step, and all that begins ends.

`core_world.World` plays the processes and the master, `core_world.Audit` checks each step against the rules. This
module says what may happen. REUSEPORT_EXAMPLES=20 in the environment looks longer than a test run should.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace

from core_world import BOOT_TROUBLE, Process, World
from examples import examples
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from reuseport.core import events as ev
from reuseport.core import machine, record
from reuseport.core.model import (
    ACCEPTING,
    COMMAND,
    DRAINING,
    ENDING,
    LEAVING,
    NOTIFY,
    OPENING,
    SERVING,
    TOLD,
    WARMING,
    ZYGOTE,
    Asker,
    Key,
    Release,
    Terms,
)

SEEDS = st.integers(0, 1 << 30)
WAITS = st.sampled_from((None, "ready", "drained", "none"))
SESSIONS = st.sampled_from(("", "alice", "bob"))
RELEASES = st.fixed_dictionaries(
    {
        "trouble": st.sampled_from(("",) * 2 * len(BOOT_TROUBLE) + BOOT_TROUBLE),
        "script_says": st.sampled_from((None, None, 1, 3)),
        "workers": st.integers(1, 3),
        "boot_timeout": st.sampled_from((3.0, 30.0)),
        "kill_blocked": st.booleans(),
        "standby": st.sampled_from((0.0, 0.0, 20.0)),
        "probation": st.sampled_from((0.0, 0.0, 5.0)),
        "canary": st.sampled_from((None, None, {"tenants": ["acme"]})),
        "companions": st.sampled_from(
            (
                (),
                (),
                (Terms("mail", processes=2, ready_after=0.0),),
                (Terms("mail", stop_timeout=5.0), Terms("cron", exclusive=True, ready_after=0.0)),
                (Terms("mail", ready=NOTIFY, ready_after=0.0, ready_timeout=2.0, processes=2),),
                (
                    Terms("mail", ready=COMMAND, ready_timeout=40.0, stop_timeout=5.0),
                    Terms("cron", exclusive=True, ready=NOTIFY, ready_after=0.0, ready_timeout=4.0),
                ),
                (Terms("once", restart="never"), Terms("cron", exclusive=True, restart="on-failure")),
            )
        ),
    }
)


ALIVE = ("serving", "attending", "draining")
COMPANION = ("held", "accompanying")
PHASES = {
    "dies": ("loading", "loaded", "born", "starting", "ready", "working", *ALIVE, *COMPANION),
    "says why and dies": ("loading", "starting", *ALIVE),
    "dies in a fork": ("loaded",),
    "cannot fork": ("loaded",),
    "hangs": ("loading", "loaded", "starting", "ready", *ALIVE),
    "hangs for good": ("loading", "loaded", "starting", "ready", "working", "accompanying", *ALIVE),
    "blocks": ALIVE,
    "is looked at": ("ready", *ALIVE),
    "gets work": (*ALIVE, "accompanying"),
    "ends its work": (*ALIVE, "working", "accompanying"),
    "ends well": ("accompanying",),
    "spawns": ("starting", "ready", "working", *ALIVE),
    "retires": ("ready", "serving", "attending"),
}
MISFORTUNES = tuple(PHASES)


class AnyStory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.asked = 0
        self.seed = 0

    @initialize(release=RELEASES, smooth=st.sampled_from((True, True, True, False)), seed=SEEDS)
    def start(self, release: dict, smooth: bool, seed: int) -> None:
        """Most stories begin with a cluster that serves: those of a first boot are soon over."""
        self.seed = seed
        first = {**release, "canary": None}
        self._ask({**first, "trouble": ""} if smooth else first, None)
        chance = random.Random(seed)
        while smooth and self.world.happen(chance):
            pass

    def _ask(self, drawn: dict, wait: str | None) -> None:
        self.asked += 1
        asker = Asker(f"asker {self.asked}", wait) if wait else None
        self.world.feed(ev.ReleaseAsked(self._made(drawn), asker))

    def _made(self, drawn: dict) -> Release:
        recipe = {"id": self.asked, "trouble": drawn["trouble"], "workers": drawn["script_says"]}
        fields = ("workers", "boot_timeout", "kill_blocked", "standby", "probation", "canary", "companions")
        return Release(recipe, **{name: drawn[name] for name in fields})

    # --- what is asked for ------------------------------------------------------------------------------------------

    @rule(release=RELEASES, wait=WAITS)
    def release(self, release: dict, wait: str | None) -> None:
        self._ask(release, wait)

    @rule(which=st.integers(0, 5), wait=WAITS)
    def roll_back(self, which: int, wait: str | None) -> None:
        """To the version of some generation that lives, or of one that this world has long forgotten."""
        living = list(self.world.cluster.generations.values())
        if not living:
            return
        self.asked += 1
        g = living[which % len(living)]
        asker = Asker(f"asker {self.asked}", wait) if wait else None
        self.world.feed(ev.ReleaseAsked(replace(g.release, source=g.origin, probation=0.0, canary=None), asker))

    def _asker(self, wait: str | None) -> Asker | None:
        self.asked += 1
        return Asker(f"asker {self.asked}", wait) if wait else None

    @rule(wait=WAITS, session=SESSIONS, ago=st.sampled_from((None, 0.0, 0.5, 5.0)), named=st.booleans())
    def promote(self, wait: str | None, session: str, ago: float | None, named: bool) -> None:
        serving = self.world.cluster.serving
        came_from = serving.number if named and serving else 0
        seen = None if ago is None else self.world.now - ago
        self.world.feed(ev.PromoteAsked(self._asker(wait), session, session, came_from, seen))

    @rule(
        which=st.integers(0, 5),
        wait=WAITS,
        session=SESSIONS,
        ago=st.sampled_from((None, 0.0, 0.5, 5.0)),
        named=st.booleans(),
        came_from=st.sampled_from((0, 0, 0, 1, 2, 3)),
    )
    def operator_rolls_back(
        self, which: int, wait: str | None, session: str, ago: float | None, named: bool, came_from: int
    ) -> None:
        """To what served before, or to a version that is named, which this world finds among those that live."""
        living = list(self.world.cluster.generations.values())
        serving = self.world.cluster.serving
        if not living:
            return
        g = living[which % len(living)]
        found = serving is not None and g.origin != serving.origin
        release = replace(g.release, source=g.origin, probation=0.0, canary=None, by=session, session=session)
        self.world.feed(
            ev.RollbackAsked(
                release if found else None,
                serving.number if serving else 0,
                self._asker(wait),
                "there is none before",
                g.number if named else 0,
                g.origin if named else 0,
                came_from,
                session,
                session,
                None if ago is None else self.world.now - ago,
            )
        )

    @rule(wait=WAITS, session=SESSIONS, ago=st.sampled_from((None, 0.0, 5.0)))
    def abort(self, wait: str | None, session: str, ago: float | None) -> None:
        seen = None if ago is None else self.world.now - ago
        self.world.feed(ev.AbortAsked(self._asker(wait), session, session, seen))

    @rule()
    def drain_is_awaited(self) -> None:
        """By who has asked another master before."""
        if serving := self.world.cluster.serving:
            self.asked += 1
            self.world.feed(ev.DrainAwaited(Asker(f"asker {self.asked}", "drained"), serving.number))

    @rule()
    def is_judged(self) -> None:
        if serving := self.world.cluster.serving:
            self.world.feed(ev.Judged(serving.number, "it does worse"))

    @rule(by=st.sampled_from((-2, -1, 1, 2)))
    def scale(self, by: int) -> None:
        self.world.feed(ev.ScaleAsked(by))

    @rule(pinned=st.booleans(), data=st.data())
    def somebody_is_kept(self, pinned: bool, data: st.DataObject) -> None:
        """Jobs of tenants, or an operator's hold, begin or end somewhere."""
        numbers = sorted(self.world.cluster.generations)
        if numbers:
            self.world.feed(ev.Pinned(data.draw(st.sampled_from(numbers)), pinned))

    @rule(
        quick=st.booleans(),
        insist=st.booleans(),
        timeout=st.sampled_from((0.0, 5.0)),
        delay=st.sampled_from((0.0, 3.0)),
        really=st.sampled_from((False,) * 5 + (True,)),
    )
    def stop(self, quick: bool, insist: bool, timeout: float, delay: float, really: bool) -> None:
        if really:
            self.world.feed(ev.StopAsked(quick, insist, timeout, delay))

    # --- what goes well ---------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 40), seed=SEEDS)
    def things_happen(self, steps: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(steps):
            self.world.now += 0.001
            self.world.happen(chance)

    @rule(state=st.sampled_from((WARMING, OPENING, SERVING, DRAINING, ENDING)), more=st.integers(0, 9), seed=SEEDS)
    def things_happen_until(self, state: str, more: int, seed: int) -> None:
        """Go on until a generation enters this state, and a little further: the moments that few stories meet."""
        chance = random.Random(seed)
        before = {g.number for g in self.world.cluster.having(state)}
        while not {g.number for g in self.world.cluster.having(state)} - before and self.world.happen(chance):
            self.world.now += 0.001
        for _ in range(more):
            self.world.happen(chance)

    @rule(release=RELEASES, wait=WAITS, state=st.sampled_from((OPENING, SERVING)), seed=SEEDS)
    def release_goes_well(self, release: dict, wait: str | None, state: str, seed: int) -> None:
        self._ask({**release, "trouble": ""}, wait)
        self.things_happen_until(state, 0, seed)

    @rule(seconds=st.sampled_from((None, None, 0.1, 2.0, 6.0, 60.0)))
    def time_passes(self, seconds: float | None) -> None:
        """So much of it, or until something is due."""
        due = machine.wake_at(self.world.cluster)
        self.world.now = max(self.world.now, due or 0.0) if seconds is None else self.world.now + seconds
        self.world.feed(ev.Tick())

    # --- what goes wrong --------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(MISFORTUNES), data=st.data())
    def misfortune(self, what: str, data: st.DataObject) -> None:
        """One kind of trouble for one process, drawn from those that it can befall."""
        found = [p for p in self.world.living if p.phase in PHASES[what]]
        if not found:
            return
        p = found[data.draw(st.integers(0, len(found) - 1))]
        note(f"{p.key} ({p.phase}): {what}")
        match what:
            case "says why and dies" | "dies":
                self.world.crash(p, what != "dies")
            case "dies in a fork":
                self.world.die_while_forking(p)
            case "cannot fork":
                self.world.unborn(p)
            case "hangs" | "hangs for good":
                p.stuck, p.stubborn = True, what != "hangs"
            case "blocks":
                p.stuck = True
                self._watch(p)
            case "gets work" | "ends its work":
                p.busy = what == "gets work"
            case "spawns":
                self.world.spawn(p)
            case "ends well":
                self.world.end_well(p)
            case "retires":
                p.says.append(ev.Retire(p.key, "it has grown"))
            case "is looked at":
                self._watch(p)

    def _watch(self, p: Process) -> None:
        """The master looks at the worker's loop, and says so if it stands, or turns again."""
        g = self.world.cluster.generations.get(p.key.generation)
        w = g.having(TOLD, ACCEPTING, LEAVING).get(p.key.number) if g else None
        if w and p.stuck != w.blocked:
            self.world.feed(ev.Unblocked(p.key) if w.blocked else ev.Blocked(p.key))

    @precondition(lambda self: not self.world.audit.finish and self.world.cluster.served)
    @rule(release=RELEASES, renew=st.booleans())
    def master_dies(self, release: dict, renew: bool) -> None:
        """If nobody is left who accepts, the next master begins with a release as the first one did; one that was about
        to take over does so in any case. Who takes over from a living master finds no more than from a dead one."""
        self.asked += 1
        self.world.lose_master(self._made({**release, "canary": None}), renew)

    @rule()
    def successor_dies(self) -> None:
        """The master whose version boots: its zygote may well go on."""
        if booting := self.world.cluster.booting:
            self.world.feed(ev.Failed(Key(booting.number, ZYGOTE), "the master that was to take over has gone"))

    @rule()
    def master_is_upgraded(self) -> None:
        """The next one goes on from the very same state, whatever it is at."""
        before = self.world.cluster
        self.world.cluster = record.cluster_of(json.loads(json.dumps(record.to_json(before))))
        assert self.world.cluster == before

    @rule()
    def no_companion_is_to_be_had(self) -> None:
        self.world.no_companion = True

    @rule()
    def every_worker_is_killed(self) -> None:
        for p in self.world.workers.values():
            p.die()

    def teardown(self) -> None:
        """Whatever has happened: once the world is fair, everything ends well."""
        try:
            if self.world.sound and self.asked:
                self.world.be_fair(random.Random(self.seed))
                self.world.check_rest()
        finally:
            note("\n".join(self.world.story))


TestAnyStory = AnyStory.TestCase
TestAnyStory.settings = settings(
    max_examples=examples(70),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
