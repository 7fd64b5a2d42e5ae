"""The master as process 1, as in a container: in a pid namespace of its own, with a /proc of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import is_gone, parent_of, wait_for

NAMESPACE = ("--pid", "--fork", "--mount-proc", "--kill-child", *(() if os.geteuid() == 0 else ("--map-root-user",)))


def is_permitted() -> bool:
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", *NAMESPACE, "true"], capture_output=True, check=False).returncode
    )


pytestmark = pytest.mark.skipif(not is_permitted(), reason="needs to be allowed a pid namespace (unshare)")


@pytest.fixture
def contain(serve):
    """Launches a server whose master is process 1. Its pids are those of the namespace."""

    def launch(*options, **fields):
        return serve(*options, python="unshare", flags=(*NAMESPACE, sys.executable), **fields).launch()

    return launch


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def master_of(server) -> int:
    """The master's pid outside."""
    (pid,) = wait_for(lambda: children_of(server.pid), "process 1")
    return pid


def zombies_of(pid: int) -> list[int]:
    states = {child: Path(f"/proc/{child}/stat") for child in children_of(pid)}
    return [child for child, stat in states.items() if stat.exists() and ") Z " in stat.read_text()]


def test_a_term_drains_and_a_hup_releases(contain):
    server = contain()
    assert server.settle()["master"]["pid"] == 1
    server.write("two")
    os.kill(master_of(server), signal.SIGHUP)
    server.settle(2)
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    os.kill(master_of(server), signal.SIGTERM)
    server.wait(lambda s: s.draining == [2])
    server.gate("slow").open()
    assert slow.result().version == "two"
    assert server.await_exit() == 0


def test_an_int_stops_at_once(contain):
    server = contain()
    server.settle()
    server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    os.kill(master_of(server), signal.SIGINT)
    assert server.await_exit() == 0


SLOW = """\
import os
if os.getpid() == 1:
    open(os.environ["HELD"]).read()
def setproctitle(title): pass
"""


def test_a_term_that_comes_before_the_master_listens_is_not_lost(contain, tmp_path):
    held = tmp_path / "held"
    os.mkfifo(held)
    (tmp_path / "setproctitle.py").write_text(SLOW)  # imported before the master has any handler
    server = contain(env={"PYTHONPATH": str(tmp_path), "HELD": str(held)})

    def reader() -> int | None:
        try:
            return os.open(held, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None

    fd = wait_for(reader, "the import that takes long")
    os.kill(master_of(server), signal.SIGTERM)
    os.close(fd)
    assert server.await_exit() == 0
    assert "serves" not in server.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="nsenter needs root")
def test_orphans_that_are_not_its_own_are_reaped(contain):
    """What `docker exec` leaves behind is nobody's but process 1's."""
    server = contain()
    server.settle()
    master = master_of(server)
    before = children_of(master)
    fifo = server.root / "fifo"
    os.mkfifo(fifo)
    script = 'for n in 1 2 3; do sh -c "read line < \\"$1\\"" sh "$1" >/dev/null 2>&1 & done'
    inside = ["nsenter", "--target", str(master), "--pid", "--mount", "sh", "-c", script, "sh", str(fifo)]
    subprocess.run(inside, check=True)
    orphans = children_of(master) - before
    assert len(orphans) == 3
    assert {parent_of(pid) for pid in orphans} == {master}
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(is_gone(pid) for pid in orphans), "no orphan is left, not even as a zombie")
    assert zombies_of(master) == []
    assert server.get().status == 200
