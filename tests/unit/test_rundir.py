"""The run directory: which files a master that starts removes, and how its master is reached."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import pytest

from reuseport.ipc.rundir import RunDir


def test_what_the_dead_have_left_is_removed_and_nothing_else(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("7.door", "8.door", "stacks-7.2.txt", "snapshot-7.j99.json.new", "lines-8.1.txt", "notes-7.2.txt"):
        (work / name).touch()
    (work / "6.door").mkdir()  # by the workers' user
    asked = []
    RunDir(str(tmp_path)).clear_up(lambda who: asked.append(who) or who.startswith("8."))
    assert {path.name for path in work.iterdir()} == {"6.door", "8.door", "lines-8.1.txt", "notes-7.2.txt"}
    assert sorted(asked) == ["6.0", "7.0", "7.2", "7.j99", "8.0", "8.1"]


def test_a_process_waits_for_a_master_whose_backlog_is_full(tmp_path, monkeypatch):
    """A flood of connections keeps no new worker away, and a master that is stopped keeps none for ever."""
    run_dir = RunDir(str(tmp_path / "run"))
    os.close(run_dir.own())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as master, contextlib.ExitStack() as clients:
        master.bind(run_dir.hello)
        master.listen(0)
        clients.callback(run_dir.reach_master().close)
        with pytest.raises(BlockingIOError):
            run_dir.reach_master()
        with pytest.raises(BlockingIOError):
            run_dir.reach_master(0.001)
        accept = lambda signals, seconds: master.accept()[0].close()  # noqa: E731
        monkeypatch.setattr(signal, "sigtimedwait", accept)
        clients.callback(run_dir.reach_master(20).close)
