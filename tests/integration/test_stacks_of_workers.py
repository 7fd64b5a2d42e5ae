"""`reuseport stacks` of real workers: what they are at, whatever that is, and that they do not mind being asked."""

from __future__ import annotations

import os
import signal
from typing import Any

from harness import Outcome, wait_for

CODE = """\
import ctypes
import os
import reuseport

class Lazy:  # neither the zygote's look at what the import left behind nor a snapshot may wake it
    @property
    def __class__(self):
        raise RuntimeError("nobody may ask")

lazy = Lazy()
fifo = os.pipe()

def in_c():
    basic.enter("c")
    ctypes.PyDLL(None).read(fifo[0], ctypes.create_string_buffer(1), 1)  # and holds the interpreter

def export(name):
    with reuseport.job("export", tenant="acme") as job:
        job.progress(0.25)
        basic.pass_gate(name)

def make(plain):
    def application(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/export":
            export("export")
        elif path == "/spawn":
            for where in ("greenlet", "thread", "process"):
                work = basic.burn if where == "process" else basic.pass_gate
                reuseport.spawn(work, where, name=f"in-{where}", tenant="globex", where=where)
        elif path == "/c":
            in_c()
        return plain(environ, start_response)
    return application

application = make(application)
"""


def stacks(server, *words: str) -> list[dict[str, Any]]:
    done = server.cli("stacks", "--json", *words)
    assert done.exit == 0, done
    return done.json


def running(process: dict[str, Any]) -> list[dict[str, Any]]:
    """What is a request or a job."""
    return [one for one in process["running"] if "request" in one or "job" in one]


def functions(entry: dict[str, Any]) -> list[str]:
    return [name for _, _, name in entry["stack"]]


def with_code(serve, *options: str, workers: int = 1):
    server = serve(*options, workers=workers)
    server.write("one", code=CODE)
    return server.start()


def test_each_request_and_job_with_its_stack_and_its_age(serve):
    server = with_code(serve)
    waiting = [server.get_later(f"/gate?name=slow&number={number}") for number in range(3)]
    server.gate("slow").await_entered(3)
    exporting = server.get_later("/export")
    server.gate("export").await_entered()
    [worker] = stacks(server)
    found = {one["request"]: one for one in running(worker)}
    assert set(found) == {"GET /export", *(f"GET /gate?name=slow&number={number}" for number in range(3))}
    assert all(0 <= one["age"] < 60 and one["client"] == "127.0.0.1" for one in found.values())
    assert {**found["GET /export"]["job"], "age": 0} == {"name": "export", "tenant": "acme", "age": 0, "progress": 0.25}
    assert "pass_gate" in functions(found["GET /export"]) and "export" in functions(found["GET /export"])
    assert worker["jobs"] == [] and worker["more"] == 0
    text = server.cli("stacks", worker["id"]).out
    assert text.count("in pass_gate") == 2, "those at the same place are shown once"
    assert text.startswith(f"worker 1.1 (pid {worker['pid']}): 4 requests, 1 job")
    assert "while not is_open(name):" in text or "time.sleep(0.01)" in text
    for gate in ("slow", "export"):
        server.gate(gate).open()
    assert all(one.result().status == 200 for one in (*waiting, exporting))
    [worker] = stacks(server)
    assert running(worker) == [] and worker["idle"] > 0


def test_jobs_wherever_they_run(serve):
    server = with_code(serve)
    server.get("/spawn")
    for where in ("greenlet", "thread", "process"):
        server.gate(where).await_entered()
    everybody = stacks(server)
    found = {one["job"]["name"]: (process["id"], one) for process in everybody for one in running(process)}
    assert set(found) == {"in-greenlet", "in-thread", "in-process"}
    assert all(one["job"]["tenant"] == "globex" for _, one in found.values())
    assert found["in-greenlet"][0] == found["in-thread"][0] == "1.1"
    assert found["in-process"][0].startswith("1.j")
    assert "burn" in functions(found["in-process"][1])
    assert {"kind": "thread"}.items() <= found["in-thread"][1].items()
    text = server.cli("stacks").out
    assert "job in-process of globex, " in text and "job's process 1.j" in text
    [one] = stacks(server, found["in-process"][0])
    assert one["id"] == found["in-process"][0]
    for where in ("greenlet", "thread", "process"):
        server.gate(where).open()
    server.wait(lambda s: not s.current["waits_for"]["jobs"], "all of them end")


def test_a_loop_that_stands_still(serve):
    server = with_code(serve)
    burning = server.get_later("/burn?name=burn")
    server.gate("burn").await_entered()
    [worker] = wait_for(lambda: [one for one in stacks(server) if one["stands"] > 0.5], "it stands still")
    [one] = running(worker)
    assert (one["request"], one["now"]) == ("GET /burn?name=burn", True)
    assert "burn" in functions(one)
    server.gate("burn").open()
    assert burning.result().status == 200


def test_an_interpreter_that_cannot_answer_and_is_not_disturbed(serve):
    """read(2) goes on after the signals; one that was interrupted would have let the request end."""
    server = with_code(serve, workers=2)
    stuck = server.get_later("/c")
    [pid] = server.gate("c").await_entered()
    done: Outcome = server.cli("stacks", str(pid))
    assert done.exit == 0
    assert "code in C" in done.out and "in in_c" in done.out
    assert not stuck.done
    everybody = {one["pid"]: one for one in stacks(server)}
    assert everybody[pid]["lines"] and "in_c" in everybody[pid]["lines"]
    assert all("running" in one for other, one in everybody.items() if other != pid), "the others answer as ever"
    assert not stuck.done
    os.kill(pid, signal.SIGKILL)


def test_native_threads_with_their_requests(serve):
    server = with_code(serve, "--threads", "2")
    later = [server.get_later("/gate?name=slow"), server.get_later("/burn?name=slow")]
    server.gate("slow").await_entered(2)
    [worker] = stacks(server)
    found = {one["request"]: one for one in running(worker)}
    assert set(found) == {"GET /gate?name=slow", "GET /burn?name=slow"}
    assert all(one["kind"] == "thread" and one["name"].startswith("reuseport-") for one in found.values())
    server.gate("slow").open()
    assert all(one.result().status == 200 for one in later)
    [worker] = stacks(server)
    assert worker["idle"] == 2


def test_without_a_master(serve):
    server = with_code(serve, workers=2)
    waiting = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    pids = {one["pid"] for one in server.status().workers()}
    server.process.kill()
    server.process.wait()
    done = server.cli("stacks")
    assert done.exit == 0
    assert "its workers live on" in done.err
    assert all(f"(pid {pid})" in done.out for pid in pids)
    assert "GET /gate?name=slow" in done.out
    server.gate("slow").open()
    assert waiting.result().status == 200


def test_a_process_that_could_not_bear_the_signal_does_not_get_it(serve):
    """A worker that is still starting has no handler: the signal would be its end."""
    server = serve(workers=1)
    server.write("one", code="import reuseport\nreuseport.on_start(lambda: basic.pass_gate('start'))\n")
    server.launch()
    [pid] = server.gate("start").await_entered()
    done = server.cli("stacks", str(pid))
    assert done.exit == 1
    assert "not ready yet" in done.out
    server.gate("start").open()
    server.settle()
    assert server.status().pids() == {pid}


def test_being_asked_all_the_time_costs_no_request(serve):
    server = with_code(serve, workers=2)
    with server.load(one_shot=2, keep_alive=2) as load:
        for _ in range(8):
            assert len(stacks(server)) == 2
        load.more(20)
    assert load.failures == []
    server.settle(1)
    left = {name.name for name in (server.run_dir / "work").iterdir()}
    server.write("two")
    assert server.release().exit == 0
    server.settle(2)
    gone = {name for name in left if name.startswith(("snapshot-1", "lines-1"))}
    assert gone and not gone & {name.name for name in (server.run_dir / "work").iterdir()}


def test_who_is_not_there(serve):
    server = with_code(serve)
    done = server.cli("stacks", "9.9")
    assert done.exit == 2
    assert "there is no worker '9.9'; these there are: 1.1 (pid " in done.err
