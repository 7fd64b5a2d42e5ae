"""What is written down for the next master, and when."""

from __future__ import annotations

import json
import os

from reuseport.core.model import ACCEPTING, OPENING, TOLD, Cluster, Generation, Release, Worker
from reuseport.master.roster import Roster


def test_that_a_canary_is_promoted_is_written_down_when_the_first_of_its_workers_accepts(tmp_path):
    """Nothing else changes then: who was told to accept counts as accepting all the time."""
    path = str(tmp_path / "roster.json")
    roster = Roster(path)

    def canary_after(first: str, trial: dict | None) -> dict | None:
        g = Generation(2, Release(), 1, OPENING, workers={1: Worker(0, first, os.getpid())}, trial=trial)
        roster.write(Cluster({2: g}, 2, 1), {}, ())
        with open(path) as file:
            return json.load(file)["releases"]["2"]["canary"]

    trial = {"tenants": ["acme"], "percent": 0}
    assert canary_after(TOLD, trial) == trial
    assert canary_after(ACCEPTING, None) is None
