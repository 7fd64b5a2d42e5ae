"""What the processes are: their titles, what the master is free of, whose they are, where their files lie."""

from __future__ import annotations

import os
import pwd
import re
import signal
import stat
import sys
from pathlib import Path

import pytest
from harness import is_gone, parent_of, title_of, wait_for

FOREIGN_TO_A_MASTER = ("gevent", "greenlet", "httptools", "rich", "app", "basic")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_titles(server):
    name = server.name
    status = server.status()
    assert title_of(server.pid) == f"reuseport: master [{name}]"
    assert title_of(status.current["zygote"]["pid"]) == f"reuseport: zygote 1 [{name}]"
    for worker in status.workers():
        assert title_of(worker["pid"]) == f"reuseport: worker {worker['id']} [{name}]"
    request = server.get_later("/gate?name=slow")
    pid = server.gate("slow").await_entered()[0]
    assert server.release().exit == 0
    wait_for(
        lambda: re.fullmatch(rf"reuseport: worker 1\.\d draining \(1 request\) \[{name}\]", title_of(pid)),
        "the title of a draining worker",
    )
    server.gate("slow").open()
    assert request.result().status == 200


def test_the_workers_are_the_master_s_children(server):
    status = server.status()
    for pid in (*status.pids(), status.current["zygote"]["pid"]):
        assert parent_of(pid) == server.pid


def test_the_master_never_imports_what_is_not_its_own(serve):
    """-X importtime makes the master tell of each of its imports. The zygotes' interpreter drops it."""
    server = serve(flags=("-X", "importtime"))
    python = server.root / "python"
    drop = "for word do shift; case $word in -X*|importtime) ;; *) set -- \"$@\" \"$word\" ;; esac; done"
    python.write_text(f"#!/bin/sh\n{drop}\nexec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    server.options += ("--python", str(python))
    server.start()
    server.write("two")
    server.renew()
    server.signal(signal.SIGTTIN)
    server.wait(lambda s: s.is_settled() and len(s.workers()) == 3)
    lines = [line for line in server.log.read_text().splitlines() if line.startswith("import time:")]
    modules = {line.rpartition("|")[2].strip() for line in lines}
    assert "reuseport.master.main" in modules, "the test looks at the right thing"
    assert not [m for m in modules if m.partition(".")[0] in FOREIGN_TO_A_MASTER]
    assert not [m for m in modules if m.startswith(("reuseport.worker", "reuseport.zygote"))]
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    libraries = {line.split()[-1] for line in maps.splitlines() if ".so" in line}
    assert any("setproctitle" in path for path in libraries), "the test looks at the right thing"
    assert not [path for path in libraries for name in FOREIGN_TO_A_MASTER if f"/{name}" in path]


def test_the_run_directory_is_private(server):
    assert mode(server.run_dir) == 0o700
    assert mode(server.run_dir / "work") == 0o700
    assert mode(server.run_dir / "control.sock") == 0o600
    assert (server.run_dir / "master.pid").read_text() == f"{server.pid}\n"


def test_a_run_directory_that_was_open_to_others_is_closed(serve):
    server = serve()
    server.run_dir.mkdir()
    server.run_dir.chmod(0o777)
    server.start()
    assert mode(server.run_dir) == 0o700


def test_variables_for_the_application(serve):
    server = serve("-e", "COLOUR=blue", "-e", "EMPTY=", "-e", "SPACED=a b=c").start()
    environment = server.get("/facts").json["facts"]["environment"]
    assert environment["COLOUR"] == "blue"
    assert environment["EMPTY"] == ""
    assert environment["SPACED"] == "a b=c"
    assert environment["REUSEPORT_GENERATION"] == "1"
    assert "REUSEPORT_ZYGOTE" not in environment


def test_a_release_brings_new_variables(serve):
    server = serve("-c", "conf.toml")
    config = server.root / "conf.toml"
    config.write_text('[env]\nCOLOUR = "blue"\nOLD = "1"\n')
    server.start()
    config.write_text('[env]\nCOLOUR = "red"\n')
    server.renew()
    environment = server.get("/facts").json["facts"]["environment"]
    assert environment["COLOUR"] == "red"
    assert "OLD" not in environment


def test_the_pid_file(serve):
    server = serve("--pid", "server.pid").start()
    file = server.root / "server.pid"
    assert file.read_text() == f"{server.pid}\n"
    server.renew()
    assert file.read_text() == f"{server.pid}\n"
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    assert not file.exists()


def test_the_umask(serve):
    server = serve("--umask", "027").start()
    assert server.get("/facts").json["facts"]["umask"] == 0o027


@needs_root
def test_the_application_runs_as_another_user(serve, interpreter_for_all):
    nobody = pwd.getpwnam("nobody")
    options = ("--user", "nobody", "--python", interpreter_for_all, "--max-requests", "20", "--env", "LOGNAME=shop")
    root = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": pwd.getpwuid(0).pw_shell}
    server = serve(*options, env=root).start()
    facts = server.get("/facts").json["facts"]
    assert (facts["uid"], facts["gid"]) == (nobody.pw_uid, nobody.pw_gid)
    names = {name: facts["environment"].get(name) for name in root}
    assert names == {"HOME": nobody.pw_dir, "USER": "nobody", "LOGNAME": "shop", "SHELL": None}
    assert 0 not in facts["groups"]
    assert os.stat(f"/proc/{server.pid}").st_uid == 0
    assert mode(server.run_dir) == 0o711
    assert (os.stat(server.run_dir).st_uid, os.stat(server.run_dir / "work").st_uid) == (0, nobody.pw_uid)
    # All that a worker says to its master still works: a release, and to be replaced.
    server.write("two", code="import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    server.renew()
    assert server.get().version == "two"
    facts = server.get("/facts").json["facts"]
    assert {name: facts["environment"].get(name) for name in root} == names, "where each worker imports, too"
    first = server.settle(2).pids()
    with server.load() as load:
        server.wait(lambda s: s.pids() and not s.pids() & first)
    assert load.failures == []
    # So does a job's process, through a door that only this user can reach.
    server.write("three", code="import jobbing\napplication = jobbing.make(VERSION)\n")
    server.renew()
    server.gate("work").open()
    answer = server.get("/begin?name=work&wait=1").json
    assert answer["result"] == f"three in {answer['process']}"


@needs_root
def test_the_application_runs_in_another_group(serve):
    server = serve("--group", "65534").start()
    facts = server.get("/facts").json["facts"]
    assert (facts["uid"], facts["gid"]) == (0, 65534)


def test_an_orphan_of_the_application_is_reaped(server):
    fifo = server.root / "fifo"
    os.mkfifo(fifo)
    pid = server.get(f"/orphan?fifo={fifo}").json["orphan"]
    wait_for(lambda: parent_of(pid) == server.pid, "the orphan is the master's child")
    fifo.write_text("end\n")
    wait_for(lambda: is_gone(pid), "the orphan has ended and is no zombie")


def test_many_orphans_that_are_killed_at_once_are_reaped(server):
    fifo = server.root / "fifo"
    os.mkfifo(fifo)
    pids = [server.get(f"/orphan?fifo={fifo}").json["orphan"] for _ in range(10)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(is_gone(pid) for pid in pids), "all have gone")
    assert server.status().is_settled()


def test_no_zombies_are_left_by_releases(serve):
    server = serve("--standby", "0").start()
    for _ in range(2):
        assert server.release("--wait", "drained").exit == 0
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    status = server.settle(3)
    assert {int(pid) for pid in children} == {*status.pids(), status.current["zygote"]["pid"]}


def test_descriptors_of_the_master_do_not_pile_up(server):
    assert server.release("--wait", "drained").exit == 0
    server.settle(2)
    before = len(os.listdir(f"/proc/{server.pid}/fd"))
    for _ in range(2):
        assert server.release("--wait", "drained").exit == 0
    server.settle(4)
    # The status that was asked for last may be counted, too: its connection is closed a moment after its answer.
    wait_for(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= before, "as many as before")


def test_the_application_has_no_descriptors_of_the_server_but_its_own(server):
    """A worker has its slots, its channel, the scoreboard's mapping; nothing of the master's, nothing of a client's."""
    worker = server.status().workers()[0]
    links = [os.readlink(entry) for entry in os.scandir(f"/proc/{worker['pid']}/fd")]
    assert not [link for link in links if "master.lock" in link]


def test_status_has_its_documented_shape(server):
    outcome = server.cli("status", "--json")
    assert outcome.exit == 0
    status = outcome.json
    assert list(status)[:3] == ["master", "serving", "generations"]
    assert next(iter(status["master"])) == "pid"
    assert status["master"]["pid"] == server.pid
    generation = status["generations"][0]
    assert {"number", "state", "directory", "interpreter", "workers", "age", "waits_for"} <= set(generation)
    worker = generation["workers"][0]
    assert {"id", "pid", "slots", "state", "age", "requests", "memory"} <= set(worker)
    assert {"active", "total"} <= set(worker["requests"])
    assert worker["memory"]["rss"] > 1 << 20
    zygote = generation["zygote"]
    assert zygote["memory"]["rss"] > zygote["memory"]["pss"] > 1 << 20
    assert generation["memory"] > zygote["memory"]["pss"] + worker["memory"]["pss"]
    assert server.cli("status").exit == 0


def test_status_counts_requests(server):
    for _ in range(7):
        server.get()
    status = server.wait(lambda s: sum(w["requests"]["total"] for w in s.workers()) == 7)
    assert sum(w["accepted"] + w["stolen"] for w in status.workers()) == 7
    assert sum(w["requests"]["active"] for w in status.workers()) == 0
