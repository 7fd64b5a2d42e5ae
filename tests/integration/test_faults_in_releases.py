"""Processes that are killed, or stand still, at each step of a release: it fails, and nothing has changed."""

from __future__ import annotations

import os
import signal

import pytest
from harness import is_gone, wait_for

STARTS = "import reuseport\nreuseport.on_start(lambda: basic.pass_gate('start'))\n"


def booting(server, where: str):
    """Generation 2 stands at a gate: in its import, or in the start hooks of its workers. Its zygote, and who is at the
    gate."""
    server.write("two", "basic.pass_gate('import')\n" if where == "import" else STARTS)
    asker = server.begin("release")
    pids = server.gate(where).await_entered(1 if where == "import" else 2)
    return asker, server.status().generation(2)["zygote"]["pid"], pids


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("where", "whom"), [("import", "zygote"), ("start", "zygote"), ("start", "worker")])
def test_a_release_fails_in_which_a_process_dies_or_stands_still(serve, fault, where, whom):
    server = serve("--boot-timeout", "4" if fault == signal.SIGSTOP else "60")
    before = server.start().status()
    with server.load() as load:
        asker, zygote, pids = booting(server, where)
        os.kill(zygote if whom == "zygote" else pids[0], fault)
        if fault == signal.SIGSTOP and whom == "worker":
            server.gate("start").open()  # the other one gets ready
        outcome = server.end(asker)
        assert outcome.exit == 1 and "generation 2 failed" in outcome.err, outcome.err
        load.more(20)
    assert load.failures == [] and load.versions == ["one"]
    for pid in {zygote, *pids}:
        wait_for(lambda pid=pid: is_gone(pid), "nobody of the failed generation is left")
    after = server.settle(1)
    assert after.pids() == before.pids() and after.zygote == before.zygote
    server.gate("import").open()
    server.gate("start").open()
    server.write("three")
    assert server.release().exit == 0
    server.await_version("three")


def test_an_old_worker_that_stands_still_holds_up_no_release_and_its_requests_are_answered(server):
    slow = server.get_later("/gate?name=slow")
    (pid,) = server.gate("slow").await_entered()
    os.kill(pid, signal.SIGSTOP)
    try:
        server.write("two")
        assert server.release().exit == 0
        assert server.status().draining == [1]
        # Who waits in its queue is served by the new ones.
        assert {server.get().version for _ in range(20)} == {"two"}
    finally:
        os.kill(pid, signal.SIGCONT)
    server.gate("slow").open()
    assert slow.result().version == "one"
    server.settle(2)
