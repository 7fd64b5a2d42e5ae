"""What is written down for the next master, and when."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from reuseport.core.companions import failing
from reuseport.core.machine import step
from reuseport.core.model import (
    ACCEPTING,
    ENDED,
    FIRST_COMPANION,
    OPENING,
    SERVING,
    TOLD,
    Cluster,
    Generation,
    Key,
    Release,
    Terms,
    Worker,
)
from reuseport.ipc.rundir import RunDir
from reuseport.master.roster import Roster


def test_that_a_canary_is_promoted_is_written_down_when_the_first_of_its_workers_accepts(tmp_path):
    """Nothing else changes then: who was told to accept counts as accepting all the time."""
    path = str(tmp_path / "roster.json")
    roster = Roster(RunDir(str(tmp_path)))

    def canary_after(first: str, trial: dict | None) -> dict | None:
        g = Generation(2, Release(), 1, OPENING, workers={1: Worker(0, first, os.getpid())}, trial=trial)
        roster.write(Cluster({2: g}, 2, 1), {}, ())
        with open(path) as file:
            return json.load(file)["releases"]["2"]["canary"]

    trial = {"tenants": ["acme"], "percent": 0}
    assert canary_after(TOLD, trial) == trial
    assert canary_after(ACCEPTING, None) is None


def test_the_next_master_knows_which_companions_have_failed(tmp_path):
    """So `status --check` does not turn good because the master has died."""
    roster = Roster(RunDir(str(tmp_path)))
    release = Release(companions=(Terms("mail", processes=2, restart="never"),))
    mail, well = FIRST_COMPANION, FIRST_COMPANION + 1
    g = Generation(1, release, 1, SERVING, workers={1: Worker(0, ACCEPTING, os.getpid())}, companions=release.seats())
    g = replace(g, companions={n: replace(c, state=ENDED) for n, c in g.companions.items()})
    roster.write(Cluster({1: g}, 1, 1), {}, ())
    g = g.with_companion(mail, replace(g.companions[mail], failed=True))
    roster.write(Cluster({1: g}, 1, 1), {}, ())
    remains = roster.read()
    assert remains and set(remains.adopted.ended) == {Key(1, mail), Key(1, well)}
    state, _ = step(Cluster(), replace(remains.adopted, slots=1), 100.0)
    adopted = state.generations[1]
    assert failing(adopted, adopted.companions[mail], 100.0) == "failed"
    assert failing(adopted, adopted.companions[well], 100.0) == ""


def test_an_older_master_has_not_written_which_companions_have_failed(tmp_path):
    path = tmp_path / "roster.json"
    roster = Roster(RunDir(str(tmp_path)))
    release = Release(companions=(Terms("mail", restart="never"),))
    g = Generation(1, release, 1, SERVING, workers={1: Worker(0, ACCEPTING, os.getpid())}, companions=release.seats())
    g = g.with_companion(FIRST_COMPANION, replace(g.companions[FIRST_COMPANION], state=ENDED))
    roster.write(Cluster({1: g}, 1, 1), {}, ())
    data = json.loads(path.read_text())
    data.pop("failed", None)
    path.write_text(json.dumps(data))
    remains = roster.read()
    assert remains and remains.adopted.ended == (Key(1, FIRST_COMPANION),)
    assert step(Cluster(), remains.adopted, 100.0)[0].generations[1].companions[FIRST_COMPANION].state == ENDED
