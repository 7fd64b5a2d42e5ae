"""Jobs that end with their worker, within moments of their beginning: each is reported, by its name."""

from __future__ import annotations

import http.client
import os
import signal

import pytest
from harness import wait_for

CODE = """
import os, signal, time
import reuseport
from urllib.parse import parse_qs

def compute(name):
    basic.burn(name)
    basic.enter(f"{name}-ended")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def application(environ, start_response, plain=application):
    path = environ["PATH_INFO"]
    if path == "/in-request":
        with reuseport.job("brief", tenant="acme"):
            die()
    elif path == "/spawned":
        (where,) = parse_qs(environ["QUERY_STRING"])["where"]
        reuseport.spawn(time.sleep, 60, name="brief", tenant="acme", where=where)
        die()
    elif path == "/asked":
        handle = reuseport.spawn(compute, "work", name="export", tenant="acme", where="process")
        while handle._line is None:
            time.sleep(0.001)
    return plain(environ, start_response)
"""


@pytest.fixture
def brief(serve):
    server = serve()
    server.write("one", code=CODE)
    return server.start()


def dies_over(server, path):
    with pytest.raises((OSError, http.client.HTTPException)):
        server.get(path)


@pytest.mark.parametrize("path", ["/in-request", "/spawned?where=greenlet", "/spawned?where=thread"])
def test_a_job_that_had_just_begun_when_its_worker_was_killed_is_reported_by_name(brief, path):
    dies_over(brief, path)
    status = brief.wait(lambda s: s["lost"]["count"] and s.is_settled(), "the loss to be told")
    (lost,) = status["lost"]["jobs"]
    assert (lost["name"], lost["tenant"], lost["how"]) == ("brief", "acme", "was killed by SIGKILL")
    wait_for(lambda: "job 'brief' of acme is lost" in brief.log.read_text(), "the log to say so")
    assert "job brief, tenant acme" in brief.cli("status").out


def test_it_is_in_the_history_of_its_generation(brief):
    dies_over(brief, "/in-request")
    brief.wait(lambda s: s["lost"]["count"] and s.is_settled(), "the loss to be told")
    brief.write("two")
    brief.renew()
    (drained,) = [line for line in brief.cli("history", "--json").json if line["event"] == "drained"]
    assert [(job["name"], job["lost"]) for job in drained["jobs_before"]] == [("brief", True)]


def test_the_next_master_tells_of_what_was_lost_while_there_was_none(brief):
    address = brief.address
    brief.process.kill()
    brief.process.wait()
    with pytest.raises((OSError, http.client.HTTPException)):
        brief.get("/in-request", address)
    brief.start()
    (lost,) = brief.status()["lost"]["jobs"]
    assert (lost["name"], lost["tenant"], lost["how"]) == ("brief", "acme", "died while there was no master")
    # And of what was lost with the last of them, when nobody was left to be adopted.
    brief.process.kill()
    brief.process.wait()
    pids = list(brief.processes())
    with pytest.raises((OSError, http.client.HTTPException)):
        brief.get("/in-request", address)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_for(lambda: not list(brief.processes()), "all of them to be gone")
    brief.start()
    assert [lost["name"] for lost in brief.status()["lost"]["jobs"]] == ["brief"]


def test_a_job_that_was_asked_for_is_not_lost_with_its_worker_when_its_process_comes_all_the_same(brief):
    zygote = brief.status().current["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    try:
        worker = brief.get("/asked").pid
        os.kill(worker, signal.SIGKILL)
        brief.wait(lambda s: worker not in s.pids(), "the worker to be gone")
    finally:
        os.kill(zygote, signal.SIGCONT)
    brief.gate("work").await_entered()
    brief.gate("work").open()
    brief.gate("work-ended").await_entered()
    assert not brief.settle()["lost"]["count"]
    assert "is lost" not in brief.log.read_text()
