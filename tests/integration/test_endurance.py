"""Hundreds of short jobs while the master does not read, and a master without file descriptors, step by step."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator

import pytest
from harness import POLL, Server, ask, is_gone, wait_for

# Many jobs that begin at once, and end together.
JOBS = """
import threading

import reuseport
from reuseport import jobs

end = threading.Event()
plain = application


def end_them():
    basic.pass_gate("end")
    end.set()
    while jobs.active:
        basic.time.sleep(0.01)
    basic.enter("ended")


def application(environ, start_response):
    if environ["PATH_INFO"] == "/begin":
        for number in range(int(environ["QUERY_STRING"])):
            reuseport.spawn(end.wait, name=f"job {number}", tenant="acme")
        threading.Thread(target=end_them).start()
    basic.extra["jobs"] = len(jobs.active)
    return plain(environ, start_response)
"""

COUNT = 400  # more messages than a socket holds: about 280 with the usual net.core.wmem_default


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing, as on a machine that swaps."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def jobs_shown(status) -> int:
    return sum(len(g["waits_for"]["jobs"]) for g in status["generations"])


@pytest.mark.parametrize("options", [("--tenant", "header:X-Tenant"), ("--threads", "4")], ids=["tenants", "threads"])
def test_a_drain_ends_after_hundreds_of_short_jobs(serve, options):
    """The master reads nothing while they begin and while they end, so most of what is told of them has to wait."""
    server = serve(*options, workers=1)
    server.write("one", code=JOBS)
    server.start()
    server.address  # noqa: B018  (asked for now, not when the master is stopped)
    with stopped(server.pid):
        assert server.get(f"/begin?{COUNT}").status == 200
    server.wait(lambda s: jobs_shown(s) == COUNT, "every job shown")
    server.write("two")
    assert server.release().exit == 0
    with stopped(server.pid):
        server.gate("end").open()
        server.gate("ended").await_entered()
    server.settle(2)
    assert server.status()["lost"]["count"] == 0


LOADS_AT_A_GATE = "basic.pass_gate('import')\n"

STARTS_AT_A_GATE = """
import reuseport


@reuseport.on_start
def wait():
    basic.pass_gate("start")
"""


@contextlib.contextmanager
def exhausted(pid: int) -> Iterator[None]:
    """The process cannot open a descriptor: its limit is the lowest number that is free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    time.sleep(POLL)
    # Without a file that it opened just for a moment, to read what a generation prints.
    taken &= {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in range(len(taken) + 1) if number not in taken)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def sockets(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return {name for name in found if name.startswith("socket:")}


def failures(server: Server) -> list[str]:
    lines = server.question(do="history")["history"]
    return [line["error"] for line in lines if line["event"] == "release" and line["outcome"] == "failed"]


def test_a_master_without_descriptors_answers_refuses_and_stops(serve):
    """One server, at each step of its life: asked for a release, in a boot, in a hand-over, with a worker more, at the
    stop."""
    server = serve(workers=1).start()
    with exhausted(server.pid):
        outcome = server.release()
        assert (outcome.exit, server.get().version) == (1, "one")
        assert "file descriptors of the master" in outcome.err and "Too many open files" in outcome.err
        server.hup()
        wait_for(lambda: len(failures(server)) == 2, "both of them in the history")

    server.write("two", code=LOADS_AT_A_GATE)
    asked = server.begin("release")
    server.gate("import").await_entered()
    with exhausted(server.pid):
        server.gate("import").open()
        outcome = server.end(asked)
        assert outcome.exit == 1 and "could not open a channel" in outcome.err, outcome
        assert "could not open a channel" in failures(server)[2]
        # Its worker has no pidfd and no channel. Its end is noticed all the same.
        server.wait(lambda s: s.numbers == [1], "the end of the release that failed")
        assert server.get().version == "one"

    server.write("three", code=STARTS_AT_A_GATE)
    with contextlib.closing(server.client()) as kept:
        assert ask(kept, "/").version == "one"
        before = sockets(server.pid)
        asked = server.begin("release")
        server.gate("start").await_entered()
        # The one that asked, two ends of a hand-over queue, the zygote's channel and, at last, the worker's.
        wait_for(lambda: len(sockets(server.pid) - before) >= 5, "the master has heard the worker's hello")
        with exhausted(server.pid):
            server.gate("start").open()
            outcome = server.end(asked)
            assert outcome.exit == 0, outcome
            server.settle()
            assert ask(kept, "/").version == "three"

    with exhausted(server.pid):
        server.signal(signal.SIGTTIN)
        server.wait(lambda s: len(s.current["workers"]) == 2 and all(w["pid"] for w in s.current["workers"]), "two")
        workers = [w["pid"] for w in server.status().current["workers"]]
        server.signal(signal.SIGTERM)
        assert server.await_exit() == 0
    assert all(map(is_gone, workers))
    assert "Traceback" not in server.log.read_text()


def test_a_zygote_and_a_worker_without_descriptors_come_back(serve):
    """The kernel drops the descriptors that the master passes. Both hang up, and say hello again when they can."""
    server = serve(workers=1)
    server.options = ("--log-file", str(server.root / "of-all.log"))
    server.write("one", code=JOBS)
    server.start()
    kept = server.client()
    ask(kept, "/begin?3")
    server.wait(lambda s: jobs_shown(s) == 3, "every job shown")
    g = server.status().current
    pids = [g["zygote"]["pid"], g["workers"][0]["pid"]]
    before = [sockets(pid) for pid in pids]
    with contextlib.ExitStack() as limits:
        for pid in pids:
            limits.enter_context(exhausted(pid))
        server.signal(signal.SIGUSR1)  # the log files are passed to both
        for pid, had in zip(pids, before, strict=True):
            wait_for(lambda pid=pid, had=had: sockets(pid) != had, "the end of its channel")
        server.gate("end").open()
        wait_for(lambda: ask(kept, "/").json["jobs"] == 0, "the end of all jobs, which no channel tells of")
    kept.close()
    server.wait(lambda s: jobs_shown(s) == 0, "no job shown that has ended")
    assert server.get().pid == pids[1]
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert is_gone(pids[1])
