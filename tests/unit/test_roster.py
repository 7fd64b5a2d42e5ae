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
from reuseport.ipc.inhabitants import start_time
from reuseport.ipc.rundir import RunDir
from reuseport.master.listening import Written
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


def test_the_next_master_knows_the_sockets_and_the_processes_by_more_than_names(tmp_path):
    path = tmp_path / "roster.json"
    roster = Roster(RunDir(str(tmp_path)))
    g = Generation(1, Release(), 1, SERVING, workers={1: Worker(0, ACCEPTING, os.getpid())})
    written = Written({("127.0.0.1:80", 0): 7, ("unix:/run/a", 0): 1 << 60}, {"unix:/run/a": (25, 1 << 40)})
    start = start_time(os.getpid())
    roster.write(Cluster({1: g}, 1, 1), {}, tuple(written.cookies), starts={os.getpid(): start}, written=written)
    remains = roster.read()
    assert remains is not None
    assert remains.written == written
    assert remains.starts == {os.getpid(): start}
    data = json.loads(path.read_text())
    del data["cookies"], data["files"]  # as an earlier version has written it
    path.write_text(json.dumps(data))
    remains = roster.read()
    assert remains is not None
    assert remains.written == Written(dict.fromkeys(written.cookies, 0))


def test_a_pid_that_was_another_process_s_when_the_master_knew_it_is_not_adopted(tmp_path):
    """It had died, and its pid was taken, before that was written down."""
    roster = Roster(RunDir(str(tmp_path)))
    g = Generation(1, Release(), 1, SERVING, workers={1: Worker(0, ACCEPTING, os.getpid())})
    roster.write(Cluster({1: g}, 1, 1), {}, (), starts={os.getpid(): start_time(os.getpid()) - 1})
    assert roster.read() is None


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
