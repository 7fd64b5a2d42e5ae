"""Jobs in processes of their own, and jobs that have deadlines."""

from __future__ import annotations

import os
import signal

import pytest
from harness import is_gone, title_of, wait_for

JOBBING = "import jobbing\napplication = jobbing.make(VERSION)\n"


@pytest.fixture
def jobbing(serve):
    def start(*options: str, **fields):
        server = serve(*options, **fields)
        server.write("one", code=JOBBING)
        return server.start()

    return start


def jobs(status):
    return [job for g in status["generations"] for job in g["waits_for"]["jobs"]]


def refuses(server):
    """Whether nobody holds a slot any more."""
    try:
        server.client().connect()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was closed in this very moment
    return False


def begun(server, query=""):
    """Begin a job; the pid of the worker that was asked, and that of the job's process."""
    worker = server.get(f"/begin?name=work{query}").pid
    (pid,) = server.gate("work").await_entered()
    return worker, pid


def test_a_job_in_a_process_survives_its_worker_and_a_drain_waits_for_it(jobbing):
    server = jobbing()
    worker, pid = begun(server)
    assert pid != worker
    os.kill(worker, signal.SIGKILL)
    server.wait(lambda s: s.pids() and worker not in s.pids(), "the worker to be replaced")
    server.write("two", code=JOBBING)
    assert server.release().exit == 0
    status = server.wait(lambda s: len(s.generation(1)["workers"]) == 1, "everybody else to leave")
    (job,) = jobs(status)
    assert (job["name"], job["tenant"], job["progress"], job["text"]) == ("export", "acme", 0.5, "half")
    assert (job["where"], job["pid"]) == ("process", pid)
    assert status.generation(1)["workers"][0]["memory"]["pss"] > 1 << 20
    assert f"job 1.export tenant acme [{server.name}]" in title_of(pid)
    assert server.get().version == "two"
    server.gate("work").open()
    server.settle(2)
    server.gate("work-draining").await_entered()
    assert is_gone(pid) and not server.status()["lost"]["jobs"]


def test_the_result_and_the_exception_come_back_and_a_draining_worker_can_still_begin_one(jobbing):
    server = jobbing()
    gate = server.gate("held")
    later = server.get_later("/begin?name=held&where=greenlet&do=fail&wait=1")
    gate.await_entered()
    failing = server.get_later("/begin?name=failing&do=fail&wait=1")
    server.gate("failing").await_entered()
    server.write("two", code=JOBBING)
    assert server.release().exit == 0
    gate.open()
    server.gate("failing").open()
    assert "LookupError: one has no held" in later.result().json["result"]
    answer = failing.result().json
    assert "LookupError: one has no failing" in answer["result"]
    assert "in fail" in answer["notes"][0]
    server.settle(2)
    server.gate("fine").open()
    answer = server.get("/begin?name=fine&wait=1").json
    assert answer["result"] == f"two in {answer['process']}"
    assert not server.status()["lost"]["count"]
    # A copy of a zygote, for a rollback, has a door of its own.
    assert server.cli("rollback").exit == 0
    answer = server.get("/begin?name=fine&wait=1").json
    assert answer["result"] == f"one in {answer['process']}"


def test_a_killed_process_is_a_lost_job_in_status_and_nothing_waits_for_it(jobbing):
    server = jobbing()
    _, pid = begun(server)
    server.write("two", code=JOBBING)
    assert server.release().exit == 0
    server.wait(lambda s: len(s.generation(1)["workers"]) == 1, "the drain to wait for the job alone")
    os.kill(pid, signal.SIGKILL)
    server.settle(2)
    (lost,) = server.status()["lost"]["jobs"]
    assert (lost["name"], lost["tenant"], lost["pid"]) == ("export", "acme", pid)
    assert lost["how"] == "was killed by SIGKILL"
    assert "job export, tenant acme" in server.cli("status").out


def test_a_deadline_ends_a_job_that_computes_and_lets_it_clean_up(jobbing):
    server = jobbing("--job-timeout", "0.3")
    answer = server.get("/begin?name=work&do=obey&wait=1").json
    assert answer["result"].startswith("JobTimeout")
    server.gate("work-cleaned").await_entered()
    server.settle()
    # Neither does a greenlet that never yields keep its worker, and a thread is reached as well.
    for where in ("greenlet", "thread"):
        answer = server.get(f"/begin?name={where}&do=obey&wait=1&where={where}").json
        assert answer["result"].startswith("JobTimeout"), where
    assert not server.status()["lost"]["count"]


def test_a_process_that_does_not_heed_its_deadline_is_killed(jobbing):
    server = jobbing("--job-grace", "0.3")
    later = server.get_later("/begin?name=work&do=refuse&deadline=0.2&wait=1")
    server.gate("work-refused").await_entered()
    assert later.result().json["result"].startswith("JobLost")
    status = server.wait(lambda s: s["lost"]["jobs"], "the loss")
    assert status["lost"]["jobs"][0]["how"] == "was killed by SIGKILL (its deadline was 0.2 s)"
    server.settle()


def test_cancelling_a_process_ends_it_by_force_if_need_be(jobbing):
    server = jobbing("--job-grace", "0.3", workers=1)
    _, pid = begun(server, "&do=refuse")
    assert server.get("/cancel-kept?name=work").json["cancelled"] is True
    server.gate("work-refused").await_entered()
    wait_for(lambda: is_gone(pid), "the process to be killed")
    server.settle()


@pytest.mark.parametrize("path", ["/begin?name=work&do=refuse&where=thread&deadline=0.2", "/refuse?name=work"])
def test_what_goes_on_past_its_deadline_has_its_worker_replaced_and_a_neighbour_finishes(jobbing, path):
    server = jobbing("--job-grace", "0.2", workers=1)
    neighbour = server.get_later("/block?name=neighbour")
    (worker,) = server.gate("neighbour").await_entered()
    server.get_later(path)
    server.gate("work-refused").await_entered()
    server.wait(lambda s: s.pids() and worker not in s.pids(), "another worker to take its place")
    assert not is_gone(worker)
    server.gate("neighbour").open()
    assert neighbour.result().pid == worker
    status = server.settle()
    (lost,) = status["lost"]["jobs"]
    assert (lost["name"], lost["pid"]) == ("export" if "begin" in path else "in the request", worker)


def test_the_next_master_adopts_a_process_that_still_computes(jobbing):
    server = jobbing()
    _, pid = begun(server)
    server.process.kill()
    server.process.wait()
    server.launch()
    status = server.wait(lambda s: s.serving and jobs(s), "the job in the new master's status")
    (job,) = jobs(status)
    assert (job["pid"], job["name"], job["text"]) == (pid, "export", "half")
    server.write("two", code=JOBBING)
    assert server.release().exit == 0
    server.wait(lambda s: len(s.generation(1)["workers"]) == 1, "the drain to wait for the job alone")
    server.gate("work").open()
    server.settle(2)
    assert not server.status()["lost"]["count"]


def test_a_job_begins_while_there_is_no_master(jobbing):
    server = jobbing(workers=1)
    server.address  # noqa: B018
    server.process.kill()
    server.process.wait()
    _, pid = begun(server)
    server.launch()
    status = server.wait(lambda s: s.serving and jobs(s), "the job in the new master's status")
    assert jobs(status)[0]["pid"] == pid
    server.gate("work").open()
    server.settle()


@pytest.mark.parametrize("quick", [False, True])
def test_a_graceful_stop_waits_for_a_process_and_a_quick_one_ends_it(jobbing, quick):
    server = jobbing()
    server.address  # noqa: B018
    _, pid = begun(server)
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping" and len(jobs(s)) == 1, "the stop to wait for the job")
    wait_for(lambda: refuses(server), "new clients to be refused")
    if quick:
        server.signal(signal.SIGINT)
    else:
        server.gate("work").open()
    assert server.await_exit() == 0
    assert is_gone(pid)
    assert bool(server.gate("work-ended").entered()) is not quick
    assert ("is lost" in server.log_end()) is quick


def test_a_lost_zygote_is_waited_for(jobbing):
    server = jobbing(workers=1)
    zygote = server.status().current["zygote"]["pid"]
    os.kill(zygote, signal.SIGKILL)
    begun(server)
    server.gate("work").open()
    server.settle()


def test_without_preloading_the_process_imports_for_itself(jobbing):
    server = jobbing("--preload", "never", workers=1)
    server.gate("work").open()
    answer = server.get("/begin?name=work&wait=1").json
    assert answer["result"] == f"one in {answer['process']}"
