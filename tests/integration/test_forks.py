"""A process that the application forks is no server: see reuseport/worker/forked.py for the rule."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from harness import Background, ask, wait_for

MODES = {"greenlets": (), "threads": ("--threads", "9")}
ALIKE = ("process", "fork", "fork_that_returns", "fork_that_exits", "fork_that_fails", "forkpty", "preexec", "thread")
WAYS = [
    *(("greenlets", how) for how in (*ALIKE, "native_thread", "nested_greenlet")),
    *(("threads", how) for how in ALIKE if how != "thread"),
]
BESIDE = ("gate", "event", "queue", "socket", "process", "finally")
CODE = """
import forking
{more}
application = forking.make(VERSION)
"""


def forking(serve, *options: str, more: str = "", **fields):
    server = serve(*options, **fields)
    server.write("one", code=CODE.format(more=more))
    return server


def ledger(server) -> list[tuple[str, int]]:
    try:
        lines = (server.gates / "ledger").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in lines]


def told(server, name: str = "child") -> dict:
    wait_for((server.gates / name).exists, f"the child {name}")
    return json.loads((server.gates / name).read_text())


def has_ended(pid: int) -> bool:
    """It has gone, or only its parent has not asked for its exit status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def sockets_of(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed meanwhile
        if target.startswith("socket:"):
            found.add(target)
    return found


@pytest.mark.parametrize(("mode", "how"), WAYS)
def test_a_fork_in_a_request_does_nothing_of_other_requests(serve, mode, how):
    server = forking(serve, *MODES[mode], workers=1).start()
    kept = server.client()
    parent = ask(kept, "/").pid
    beside = {by: server.get_later(f"/insert?by={by}") for by in BESIDE}
    server.gate("insert").await_entered(len(BESIDE))
    asked = server.get_later(f"/fork?how={how}")
    child = told(server)
    assert child["pid"] != parent
    # All that the requests beside it wait for comes while the child waits, too, in a loop of its own.
    assert server.get("/wake").pid == parent
    server.gate("insert").open()
    for answer in beside.values():
        assert answer.result().pid == parent
    assert ask(kept, "/").pid == parent
    server.gate("child").open()
    assert asked.result().pid == parent
    wait_for(lambda: has_ended(child["pid"]), "the child's end")
    entries = Counter(ledger(server))
    inserted = {entry: pid for entry, pid in entries if entry.startswith(("insert", "finally"))}
    assert inserted == {**{f"insert-{by}": parent for by in BESIDE}, "finally": parent}
    assert set(entries.values()) == {1}, entries
    assert ("child", child["pid"]) in entries
    if how != "preexec":
        assert {entry for entry, _ in entries} >= {*(f"child-thread-{n}" for n in range(3)), "child-grandchild"}
    assert ask(kept, "/").pid == parent


@pytest.mark.parametrize("mode", MODES)
def test_forks_at_random_moments_do_nothing_twice(serve, mode):
    more = """
def busy(name):
    for number in range(3):
        forking.count(f"{name}-{number}")
forking.child = busy
"""
    server = forking(serve, *MODES[mode], more=more, workers=1).start()
    parent = server.get().pid
    ways = [how for one, how in WAYS if one == mode and how not in ("preexec", "forkpty")]

    def clients(number: int) -> None:
        with contextlib.closing(server.client()) as client:
            for turn in range(25):
                assert ask(client, f"/count?entry={number}-{turn}").pid == parent

    def forks(number: int) -> None:
        with contextlib.closing(server.client()) as client:
            for turn in range(10):
                how = random.Random(f"{number} {turn}").choice(ways)
                assert ask(client, f"/fork?how={how}&name=child-{number}-{turn}").pid == parent

    at_work = [Background(partial(clients, n)) for n in range(5)] + [Background(partial(forks, n)) for n in range(2)]
    for one in at_work:
        one.result(60)
    entries = ledger(server)
    ours = [one for one, pid in entries if pid == parent]
    assert sorted(ours) == sorted(f"{n}-{t}" for n in range(5) for t in range(25))
    children = [one for one, pid in entries if pid != parent]
    assert sorted(children) == sorted(f"child-{n}-{t}-{k}" for n in range(2) for t in range(10) for k in range(3))


@pytest.mark.parametrize("mode", MODES)
def test_a_child_holds_nothing_of_the_server_and_ignores_no_signal(serve, mode):
    server = forking(serve, *MODES[mode], workers=1).start()
    kept = server.client()
    parent = ask(kept, "/").pid
    asked = server.get_later("/fork?how=fork")
    child = told(server)
    application_s = 2  # the socket pair
    shared = sockets_of(parent) & set(child["sockets"])
    assert len(shared) <= application_s, shared
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        assert not child["ignored"] >> (number - 1) & 1, number
    server.gate("child").open()
    assert asked.result().pid == parent


MOMENTS = {
    "import": "start()",
    "import, fork": "if os.fork() == 0: forking.child(); os._exit(0)",
    "import, returning": "if os.fork() == 0: forking.child()",
    "start hook": "reuseport.on_start(lambda: start())",
    "start hook, returning": "reuseport.on_start(lambda: os.fork() or forking.child())",
    "warm-up": "WARM = True",
    "job": "JOB = True",
    "drain hook": "reuseport.on_drain(lambda: start())",
}
START = """
import os, reuseport
WARM = JOB = False

def start():
    one = forking.FORK.Process(target=forking.child)
    one.start()
    return one

def job():
    start().join()

{moment}
inner = forking.make
def make(version):
    application = inner(version)
    def outer(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/warm-up" and WARM or path == "/start":
            start()
        elif path == "/job":
            reuseport.spawn(job, name="forks", where=environ["QUERY_STRING"])
        return application(environ, start_response)
    return outer
forking.make = make
"""


# Where each worker imports is another place for the moments of an import only. With threads a usual run tries those in
# which the child begins beside other threads of the server.
CASES = [
    pytest.param(
        *(moment, mode, preload),
        marks=[] if mode == "greenlets" or moment in ("start hook", "warm-up", "job") else pytest.mark.more,
    )
    for moment in MOMENTS
    for mode in MODES
    for preload in ("auto", "never")
    if preload == "auto" or moment.startswith("import")
]


@pytest.mark.parametrize(("moment", "mode", "preload"), CASES)
def test_a_child_of_any_moment_is_no_server(serve, moment, mode, preload):
    options = [*MODES[mode], "--preload", preload]
    if moment == "warm-up":
        options += ["--warmup", "/warm-up"]
    server = forking(serve, *options, more=START.format(moment=MOMENTS[moment]), workers=1).start()
    worker = server.get().pid
    if moment == "job":
        assert server.get("/job?greenlet").status == 200
    if moment == "drain hook":
        slow = server.get_later("/gate?name=slow")
        server.gate("slow").await_entered()
        server.write("two")
        assert server.release().exit == 0
        told(server)
        server.gate("slow").open()
        assert slow.result().status == 200
    child = told(server)["pid"]
    if moment == "import" and preload == "auto":
        wait_for(lambda: worker in {w["pid"] for w in server.settle()["generations"][0]["workers"]}, "settled")
    # The child would read the channel of its parent, or take its clients: then a request or a release would fail.
    with server.load() as load:
        load.more(50)
        server.write("three")
        assert server.release().exit == 0
        load.more(50)
    assert load.failures == []
    assert child not in load.pids
    shared = {one for pid in server_pids(server) for one in sockets_of(pid)} & sockets_of_living(child)
    assert len(shared) <= 2, shared
    server.gate("child").open()
    wait_for(lambda: has_ended(child), "the child's end")
    server.wait(lambda s: len(s.numbers) == 1, "the old generations' end")


def server_pids(server) -> set[int]:
    status = server.status()
    pids = {w["pid"] for g in status["generations"] for w in g["workers"]}
    return {*pids, server.pid, *(g["zygote"]["pid"] for g in status["generations"] if g["zygote"])}


def sockets_of_living(pid: int) -> set[str]:
    try:
        return sockets_of(pid)
    except FileNotFoundError:
        return set()


DAEMON = """
import os, reuseport
if {condition}:
    one = forking.FORK.Process(target=forking.waits, daemon={daemon})
    one.start()
"""


@pytest.mark.parametrize("preload", ["auto", pytest.param("always", marks=pytest.mark.more), "never"])
@pytest.mark.parametrize("mode", MODES)
def test_what_an_import_has_forked_ends_with_its_generation(serve, mode, preload):
    more = DAEMON.format(condition=True, daemon=True)
    server = forking(serve, *MODES[mode], "--preload", preload, "--standby", "0", more=more, workers=1).start()
    for version in ("two", "three"):
        server.write(version, code=CODE.format(more=more))
        assert server.release("--wait", "drained").exit == 0
    address = server.address
    assert server.cli("stop").exit == 0
    server.await_exit()
    wait_for(lambda: not list(server.processes()), "the end of all its processes")
    again = serve(workers=1, bind=(address,)).start()
    assert again.get().status == 200


def test_what_an_import_has_forked_ends_when_its_zygote_is_killed(serve):
    server = forking(serve, "--preload", "always", more=DAEMON.format(condition=True, daemon=False), workers=1).start()
    child = told(server)["pid"]
    os.kill(server.status().current["zygote"]["pid"], signal.SIGKILL)
    wait_for(lambda: has_ended(child), "the child's end")
    assert server.get().status == 200


def test_a_manager_of_an_import_ends_with_its_server(serve):
    more = """
import multiprocessing
manager = forking.FORK.Manager()
numbers = manager.dict()
"""
    server = forking(serve, "--threads", "2", "--standby", "0", more=more, workers=2).start()
    for version in ("two", "three", "four"):
        server.write(version, code=CODE.format(more=more))
        assert server.release("--wait", "drained").exit == 0
    assert server.cli("stop").exit == 0
    server.await_exit()
    wait_for(lambda: not list(server.processes()), "the end of all its processes")


def test_a_version_whose_import_has_started_processes_is_rolled_back_to_by_loading_it(serve):
    more = DAEMON.format(condition=True, daemon=True)
    server = forking(serve, "--preload", "always", more=more, workers=1).start()
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert server.cli("rollback").exit == 0
    assert server.get().version == "one"


JOBS = """
import os, time, threading, gevent, reuseport
from gevent import monkey

# An older gevent does not wake the greenlet of the child that waits for another thread (docs/dependencies.md).
threads_wake = gevent.version_info[:2] >= (26, 8) or not monkey.is_module_patched("threading")

def in_child(name):
    with reuseport.job("beside", tenant="acme", deadline=60) as job:
        job.progress(0.5, "half")
    assert reuseport.spawn(lambda: 3, name="three").result(5) == 3
    if threads_wake:
        assert reuseport.spawn(lambda: 4, name="four", where="thread").result(5) == 4
    try:
        reuseport.spawn(time.sleep, 0, where="process")
    except RuntimeError as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("no process job can be waited for here")
    try:
        with reuseport.job("late", deadline=0.05):
            time.sleep(5)
    except reuseport.JobTimeout:
        forking.write("timeout")
    reuseport.on_start(lambda: forking.write("start hook"))
    reuseport.on_drain(lambda: forking.write("drain hook"))

forking.child = in_child
"""


@pytest.mark.parametrize("mode", MODES)
def test_jobs_in_a_child_are_its_own(serve, mode):
    server = forking(serve, *MODES[mode], more=JOBS, workers=1).start()
    assert server.get("/fork?how=process").status == 200
    assert [entry for entry, _ in ledger(server)] == ["timeout"]
    assert server.status().current["workers"][0]["jobs"] == 0
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert [entry for entry, _ in ledger(server)] == ["timeout"]


def test_a_child_that_waits_for_what_cannot_come_is_told(serve):
    more = """
def waits(name):
    import gevent.exceptions, gevent.event
    try:
        gevent.event.Event().wait()
    except gevent.exceptions.LoopExit:
        forking.write("LoopExit")
forking.child = waits
"""
    server = forking(serve, more=more, workers=1).start()
    for how in ("fork", "fork_that_returns", "thread", "nested_greenlet"):
        assert server.get(f"/fork?how={how}").status == 200
    assert [entry for entry, _ in ledger(server)] == ["LoopExit"] * 4


def test_a_fork_in_a_signals_handler_ends_with_the_handler(serve):
    """In the loop, where nothing can be exchanged below the handler."""
    more = """
import os, signal
def handle(number, frame):
    if os.fork() == 0:
        forking.tell("child")
signal.signal(signal.SIGRTMIN + 1, handle)
"""
    server = forking(serve, more=more, workers=1).start()
    beside = server.get_later("/insert?by=gate")
    server.gate("insert").await_entered()
    os.kill(server.get().pid, signal.SIGRTMIN + 1)
    child = told(server)["pid"]
    server.gate("insert").open()
    assert beside.result().status == 200
    wait_for(lambda: has_ended(child), "the child's end")
    assert [entry for entry, _ in ledger(server)] == ["insert-gate"]
