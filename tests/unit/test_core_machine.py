"""The core in a world where anything may happen, in any order: its rules hold at every step, and all that begins ends.

`core_world.World` plays the processes and the master, `core_world.Audit` checks each step against the rules. This
module says what may happen. REUSEPORT_EXAMPLES=2000 in the environment looks longer than a test run should.
"""

from __future__ import annotations

import os
import random

from core_world import BOOT_TROUBLE, World
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from reuseport.core import events as ev
from reuseport.core import machine
from reuseport.core.model import (
    ACCEPTING,
    DRAINING,
    ENDING,
    LEAVING,
    OPENING,
    SERVING,
    TOLD,
    WARMING,
    Asker,
    Key,
    Release,
)

SEEDS = st.integers(0, 1 << 30)
RELEASES = st.fixed_dictionaries(
    {
        "trouble": st.sampled_from(("",) * len(BOOT_TROUBLE) + BOOT_TROUBLE),
        "script_says": st.sampled_from((None, None, 1, 3)),
        "workers": st.integers(1, 3),
        "boot_timeout": st.sampled_from((3.0, 30.0)),
        "kill_blocked": st.booleans(),
    }
)


class AnyStory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.asked = 0
        self.seed = 0

    @initialize(release=RELEASES, served=st.booleans(), seed=SEEDS)
    def start(self, release: dict, served: bool, seed: int) -> None:
        self.seed = seed
        self._ask(release, None)
        if served:
            chance = random.Random(seed)
            while self.world.happen(chance):
                pass

    def _ask(self, drawn: dict, wait: str | None) -> None:
        self.asked += 1
        recipe = {"id": self.asked, "trouble": drawn["trouble"], "workers": drawn["script_says"]}
        made = Release(recipe, drawn["workers"], drawn["boot_timeout"], drawn["kill_blocked"])
        asker = Asker(f"asker {self.asked}", wait) if wait else None
        self.world.feed(ev.ReleaseAsked(made, asker))

    # --- what is asked for ------------------------------------------------------------------------------------------

    @rule(release=RELEASES, wait=st.sampled_from((None, "ready", "drained")))
    def release(self, release: dict, wait: str | None) -> None:
        self._ask(release, wait)

    @rule(by=st.sampled_from((-2, -1, 1, 2)))
    def scale(self, by: int) -> None:
        self.world.feed(ev.ScaleAsked(by))

    @rule(quick=st.booleans(), timeout=st.sampled_from((0.0, 5.0)), really=st.integers(0, 3))
    def stop(self, quick: bool, timeout: float, really: int) -> None:
        if really == 0:
            self.world.feed(ev.StopAsked(quick, timeout))

    # --- what goes well ---------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 30), seed=SEEDS)
    def things_happen(self, steps: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(steps):
            self.world.now += 0.001
            if not self.world.happen(chance):
                break

    @rule(state=st.sampled_from((WARMING, OPENING, SERVING, DRAINING, ENDING)), more=st.integers(0, 3), seed=SEEDS)
    def things_happen_until(self, state: str, more: int, seed: int) -> None:
        """Go on until a generation enters this state, and a little further: the moments that few stories meet."""
        chance = random.Random(seed)
        before = {g.number for g in self.world.cluster.having(state)}
        for _ in range(100):
            self.world.now += 0.001
            if not self.world.happen(chance) or {g.number for g in self.world.cluster.having(state)} - before:
                break
        for _ in range(more):
            self.world.happen(chance)

    @rule(seconds=st.sampled_from((0.0, 0.1, 2.0, 6.0, 60.0)))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.feed(ev.Tick())

    @rule()
    def time_passes_until_something_is_due(self) -> None:
        due = machine.wake_at(self.world.cluster)
        if due is not None:
            self.world.now = max(self.world.now, due)
            self.world.feed(ev.Tick())

    # --- what goes wrong --------------------------------------------------------------------------------------------

    def _some(self, data: st.DataObject, *phases: str):
        found = [p for p in self.world.living if not phases or p.phase in phases]
        if not found:
            return None
        chosen = data.draw(st.sampled_from(range(len(found))))
        note(f"{found[chosen].key} ({found[chosen].phase})")
        return found[chosen]

    @rule(data=st.data(), says_why=st.booleans())
    def process_dies(self, data: st.DataObject, says_why: bool) -> None:
        if p := self._some(data):
            self.world.crash(p, says_why and p.phase not in ("born", "loaded"))

    @rule(data=st.data())
    def zygote_dies(self, data: st.DataObject) -> None:
        if z := self._some(data, "loading", "loaded"):
            self.world.die_while_forking(z)

    @rule(data=st.data())
    def zygote_cannot_fork(self, data: st.DataObject) -> None:
        if z := self._some(data, "loaded"):
            self.world.unborn(z)

    @precondition(lambda self: not self.world.audit.finish)
    @rule(release=RELEASES)
    def master_dies(self, release: dict) -> None:
        """If nobody is left who accepts, the next master begins with a release as the first one did."""
        if self.world.cluster.served and not self.world.lose_master():
            self._ask(release, None)

    @rule()
    def every_worker_is_killed(self) -> None:
        for p in self.world.workers.values():
            p.die()

    @rule(data=st.data(), stubborn=st.booleans())
    def process_hangs(self, data: st.DataObject, stubborn: bool) -> None:
        if p := self._some(data, "loading", "loaded", "starting", "ready", "serving", "draining"):
            p.stuck, p.stubborn = True, stubborn

    @rule(data=st.data(), busy=st.booleans())
    def worker_has_work(self, data: st.DataObject, busy: bool) -> None:
        if p := self._some(data, "serving", "draining"):
            p.busy = busy

    @rule(data=st.data())
    def worker_wants_to_be_replaced(self, data: st.DataObject) -> None:
        if p := self._some(data, "ready", "serving"):
            p.says.append(ev.Retire(p.key, "it has grown"))

    @rule(data=st.data())
    def watch_looks(self, data: st.DataObject) -> None:
        """The master looks at one worker's loop, and says so if it stands, or turns again."""
        for g in self.world.cluster.generations.values():
            for number, w in g.having(TOLD, ACCEPTING, LEAVING).items():
                p = self.world.workers[Key(g.number, number)]
                if (p.stuck and not p.dead) != w.blocked:
                    self.world.feed(ev.Unblocked(p.key) if w.blocked else ev.Blocked(p.key))
                    return

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
    max_examples=int(os.environ.get("REUSEPORT_EXAMPLES", "120")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
