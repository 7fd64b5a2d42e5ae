"""Lost jobs: what is said of them, and for how long."""

from __future__ import annotations

import time

from reuseport.cli.overview import render
from reuseport.master.losses import KEPT, Losses

JOB = {
    "name": "export", "tenant": "acme", "age": 12.4, "progress": 0.5, "text": "", "where": "process",
    "deadline": None, "left": None, "overdue": False,
}  # fmt: skip


def test_a_loss_is_said_with_name_tenant_and_age():
    losses = Losses()
    said = losses.add("7.j99", 99, "was killed by SIGKILL", JOB)
    assert said == "job 'export' of acme is lost, 12 s old: its process 99 was killed by SIGKILL"
    late = {**JOB, "where": "thread", "tenant": None, "deadline": 10.0, "left": -2.4}
    said = losses.add("7.2", 98, "exited", late)
    assert said == "job 'export' is lost, 12 s old: worker 7.2 exited (its deadline was 10 s)"
    text = render({"lost": losses.shown()}, time.time())
    assert "2 jobs lost within the last hour" in text
    assert "job export, tenant acme, 12s old, 0s ago: its process 99 was killed by SIGKILL" in text


def test_only_so_many_are_kept_and_for_so_long(monkeypatch):
    losses = Losses()
    for number in range(KEPT + 5):
        losses.add("7.2", number, "exited", JOB)
    shown = losses.shown()
    assert (shown["count"], len(shown["jobs"]), shown["jobs"][-1]["pid"]) == (KEPT + 5, KEPT, KEPT + 4)
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert losses.shown() == {"count": KEPT + 5, "jobs": []}
