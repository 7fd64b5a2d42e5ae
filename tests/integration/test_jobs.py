"""Jobs outlive their requests, are seen, and a drain waits for them."""

from __future__ import annotations

import os
import signal

import pytest
from harness import is_gone, title_of, wait_for

JOBBING = "import jobbing\napplication = jobbing.make(VERSION)\n"


@pytest.fixture
def jobbing(serve):
    server = serve()
    server.write("one", code=JOBBING)
    return server.start()


def jobs(status, number):
    return status.generation(number)["waits_for"]["jobs"]


@pytest.mark.parametrize("where", ["greenlet", "thread"])
def test_a_drain_waits_for_a_job_whose_request_is_long_answered(jobbing, where):
    server, gate = jobbing, jobbing.gate("work")
    pid = server.get(f"/spawn?name=work&where={where}").pid
    gate.await_entered()
    server.write("two", code=JOBBING)
    assert server.release().exit == 0
    server.wait(lambda s: len(s.generation(1)["workers"]) == 1, "the worker without a job to leave")
    (job,) = jobs(server.status(), 1)
    assert (job["name"], job["tenant"], job["progress"], job["text"]) == ("export", "acme", 0.5, "half")
    wait_for(lambda: "draining (1 job)" in title_of(pid), "the title to say so")
    assert server.get().version == "two"
    gate.open()
    server.settle(2)
    server.gate("work-ended").await_entered()


def test_a_job_inside_a_request_is_seen_with_its_tenant(jobbing):
    gate = jobbing.gate("work")
    later = jobbing.get_later("/block?name=work")
    gate.await_entered()
    status = jobbing.wait(lambda s: jobs(s, 1), "the job in the status")
    assert [(j["name"], j["tenant"]) for j in jobs(status, 1)] == [("in the request", "globex")]
    gate.open()
    later.result()
    jobbing.wait(lambda s: not jobs(s, 1), "the job to be over")


def test_a_graceful_stop_waits_for_jobs(jobbing):
    gate = jobbing.gate("work")
    jobbing.get("/spawn?name=work")
    gate.await_entered()
    jobbing.signal(signal.SIGTERM)
    jobbing.wait(lambda s: s["master"]["state"] == "stopping" and jobs(s, 1), "the stop to wait for the job")
    gate.open()
    assert jobbing.await_exit() == 0
    jobbing.gate("work-ended").await_entered()


def test_a_killed_worker_loses_its_job_and_nothing_waits_for_it(jobbing):
    gate = jobbing.gate("work")
    pid = jobbing.get("/spawn?name=work").pid
    gate.await_entered()
    jobbing.write("two", code=JOBBING)
    assert jobbing.release().exit == 0
    jobbing.wait(lambda s: jobs(s, 1), "the drain to wait for the job")
    os.kill(pid, signal.SIGKILL)
    jobbing.settle(2)
    assert is_gone(pid)


@pytest.mark.parametrize("begun", ["", "&begun=1"])
def test_a_cancelled_job_is_over_whether_it_had_begun_or_not(jobbing, begun):
    answer = jobbing.get(f"/cancel?name=work{begun}").json
    assert (answer["cancelled"], answer["result"]) == (True, "JobCancelled")
    jobbing.wait(lambda s: not any(w["jobs"] for w in s.workers()), "no job left")


def test_a_request_can_wait_for_a_job_in_a_native_thread_and_the_loop_turns_on(jobbing):
    gate = jobbing.gate("work")
    later = jobbing.get_later("/result?name=work")
    (pid,) = gate.await_entered()
    wait_for(lambda: jobbing.get().pid == pid, "an answer of the very worker whose thread computes")
    gate.open()
    assert later.result().json["result"] == "finished"


def test_drain_hooks_are_called_and_draining_says_so(jobbing):
    gate = jobbing.gate("work")
    assert jobbing.get().json["draining"] is False
    jobbing.get("/spawn?name=work")
    gate.await_entered()
    jobbing.write("two", code=JOBBING)
    assert jobbing.release().exit == 0
    jobbing.gate("drain-hook").await_entered(2)
    gate.open()
    jobbing.settle(2)


def test_jobs_are_known_to_the_next_master_too(jobbing):
    gate = jobbing.gate("work")
    jobbing.get("/spawn?name=work")
    gate.await_entered()
    jobbing.process.kill()
    jobbing.process.wait()
    jobbing.start()
    status = jobbing.wait(lambda s: jobs(s, 1), "the job in the new master's status")
    assert jobs(status, 1)[0]["tenant"] == "acme"
    gate.open()
    jobbing.wait(lambda s: not jobs(s, 1), "the job to be over")
