"""The files that a rule for tenants needs, as the master makes them."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any, cast

from reuseport.core.model import SERVING, Cluster, Generation, Key, Release
from reuseport.ipc import marks
from reuseport.ipc.rundir import RunDir
from reuseport.master.tenants import Tenants
from reuseport.options import load

RULED = load(["shop:app", "--tenant", "host"], {}, "/")
CLUSTER = Cluster(
    generations={1: Generation(1, Release(recipe={"settings": RULED.to_json()}), 1, SERVING)}, last=1, served=True
)


def tenants(tmp_path, log: list[str], *, adopting: bool = False) -> Tenants:
    settings = load(["shop:app", "--state-dir", str(tmp_path)], {}, "/")
    switchboard = SimpleNamespace(queues=frozenset())
    processes = SimpleNamespace(all=list)
    return Tenants(
        settings, RunDir(str(tmp_path)), adopting, cast(Any, processes), cast(Any, switchboard),
        lambda level, text: log.append(text),
    )  # fmt: skip


def test_files_that_cannot_be_made_are_told_once_for_each_cause(tmp_path, monkeypatch):
    log: list[str] = []
    made = tenants(tmp_path, log)

    def failing(number: int):
        def fail(path: str) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(marks, "Table", fail)
        for _ in range(3):
            made.publish(CLUSTER, RULED)

    for number in (errno.ENOSPC, errno.EMFILE, errno.ENOSPC):
        failing(number)
    assert len([text for text in log if "cannot be made" in text]) == 3, log
    monkeypatch.undo()
    made.publish(CLUSTER, RULED)
    assert made.on


def test_a_master_that_adopts_does_not_know_which_tenants_were_seen(tmp_path):
    for adopting, hints in ((False, 1), (True, 0)):
        made = tenants(tmp_path, [], adopting=adopting)
        made.seen.told(Key(1, 1), (), False)
        assert len(made.seen.hints(["acne"], CLUSTER)) == hints
