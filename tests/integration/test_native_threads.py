"""--threads in real processes: nothing is patched, and releases, drains and jobs are what they are without it."""

from __future__ import annotations

import os
import signal

import pytest
from harness import wait_for

CODE = """\
import reuseport
import time

def make(plain):
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/patched":
            from gevent import monkey
            basic.extra["patched"] = monkey.is_module_patched("socket") or monkey.is_module_patched("threading")
        elif environ["PATH_INFO"] == "/job":
            reuseport.spawn(basic.pass_gate, "job", name="export", where=environ["QUERY_STRING"])
        return plain(environ, start_response)
    return application

application = make(application)

@reuseport.on_start
def hook():
    time.sleep(0.001)

@reuseport.on_drain
def drain():
    basic.pass_gate("hook")
"""


@pytest.fixture
def threaded(serve):
    server = serve("--threads", "2", "--warmup", "/", "--access-log", "access.log", workers=1)
    server.write("one", code=CODE)
    return server.start()


def test_threads_through_a_release(threaded):
    server, slow = threaded, threaded.gate("slow")
    assert server.get("/patched").json["patched"] is False
    pid = server.get().pid
    busy = server.get_later("/burn?name=slow")
    slow.await_entered()
    assert server.get().pid == pid, "a thread that computes does not stop the others"
    more = server.get_later("/gate?name=slow")
    slow.await_entered(2)
    queued = [server.get_later(f"/?{number}") for number in range(3)]
    server.wait(lambda s: s.workers()[0]["requests"]["waiting"] == 3, "the queue in the status")
    assert "5 (3 waiting)" in server.cli("status").out
    server.write("two", code=CODE)
    assert server.release().exit == 0
    with server.load() as load:
        server.await_version("two")
        assert not any(request.done for request in (busy, more, *queued))
        assert server.status().draining == [1], "it waits for its threads, and for who waits for them"
        slow.open()
        answers = [request.result() for request in (busy, more, *queued)]
        assert {(answer.version, answer.pid) for answer in answers} == {("one", pid)}
        server.settle(2)
        load.more(20)
    assert load.failures == []
    lines = (server.root / "access.log").read_text().splitlines()
    assert all(line.count('"') == 6 for line in lines)
    assert len([line for line in lines if "reuseport-warmup" in line]) == 2


@pytest.mark.parametrize("where", ["greenlet", "thread"])
def test_a_drain_waits_for_a_job(threaded, where):
    server, gate = threaded, threaded.gate("job")
    server.get(f"/job?{where}")
    gate.await_entered()
    server.write("two", code=CODE)
    assert server.release().exit == 0
    server.wait(lambda s: s.generation(1)["waits_for"]["jobs"], "the drain to wait for the job")
    gate.open()
    server.settle(2)


def test_a_killed_worker_is_replaced_and_a_stop_waits_for_threads(threaded):
    os.kill(threaded.get().pid, signal.SIGKILL)
    threaded.wait(lambda s: s.is_settled() and s.workers()[0]["id"] != "1.1", "a new worker")
    gate = threaded.gate("slow")
    slow = threaded.get_later("/gate?name=slow")
    gate.await_entered()
    threaded.signal(signal.SIGTERM)
    threaded.wait(lambda s: s["master"]["state"] == "stopping")
    gate.open()
    assert slow.result().status == 200
    assert threaded.await_exit() == 0


def test_a_thread_that_was_left_by_the_import_is_no_mistake(serve):
    server = serve("--threads", "1", workers=2)
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    server.write("one", code=code)
    server.start()
    answer = server.get().json
    assert answer["import_pid"] == answer["pid"], "each worker imports for itself"


def test_an_embedded_server_with_threads(serve):
    script = """\
import os, sys
import reuseport
from gevent import monkey

def app(environ, start_response):
    start_response("200 OK", [])
    return [f"{monkey.is_module_patched('socket')}".encode()]

reuseport.serve(app, bind="127.0.0.1:0", workers=1, threads=2, run_dir=os.environ["REUSEPORT_RUN_DIR"])
"""
    server = serve(script="server.py")
    (server.root / "server.py").write_text(script)
    server.start()
    assert server.get().body == b"False"
    wait_for(lambda: server.status().is_settled(), "it settled")


def test_a_job_in_a_process_leaves_the_loop_alone(threaded):
    server = threaded
    server.get("/job?process")
    [pid] = server.gate("job").await_entered()
    worker = server.get().pid
    assert pid != worker, "and it answers meanwhile"
    server.gate("job").open()
    server.wait(lambda s: not s.current["waits_for"]["jobs"], "the job has ended")
    assert server.get().pid == worker
