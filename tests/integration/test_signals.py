"""The other signals: workers up and down, the log opened again; and whom no signal of a terminal may reach."""

from __future__ import annotations

import os
import signal
from http.client import HTTPException

from harness import wait_for


def test_ttin_and_ttou_change_the_number_of_workers_without_a_failed_request(server):
    with server.load(one_shot=2) as load:
        for number, count in (
            (signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2), (signal.SIGTTOU, 1),
        ):  # fmt: skip
            server.signal(number)
            status = server.wait(lambda s, count=count: s.is_settled() and len(s.workers()) == count)
            owned = sorted(slot for worker in status.workers() for slot in worker["slots"])
            assert owned == list(range(len(owned))), "every slot has one owner"
            load.more(30)
    assert load.failures == []
    assert server.status()["master"]["workers_wanted"] == 1


def test_the_last_worker_stays_and_owns_the_spare_slots(server):
    for _ in range(3):
        server.signal(signal.SIGTTOU)
        server.status()
    status = server.wait(lambda s: s.is_settled() and len(s.workers()) == 1)
    assert status.workers()[0]["slots"] == [0, 1]
    before = status.workers()[0]["stolen"]
    assert {server.get(timeout=5).status for _ in range(20)} == {200}
    assert server.status().workers()[0]["stolen"] == before, "all were its own"


def test_a_worker_that_is_let_go_finishes_its_request(server):
    requests = [server.get_later("/gate?name=slow") for _ in range(8)]
    gate = server.gate("slow")
    gate.await_entered(8)
    server.signal(signal.SIGTTOU)
    server.wait(lambda s: len(s.workers("serving")) == 1)
    gate.open()
    assert [request.result().status for request in requests] == [200] * 8
    server.settle()


def test_usr1_opens_the_log_again(serve):
    server = serve("--log-file", "main.log").start()
    log, moved = server.root / "main.log", server.root / "main.log.1"
    assert log.exists()
    log.rename(moved)
    server.signal(signal.SIGUSR1)
    wait_for(log.exists, "a new log file")
    pids = [server.pid, *server.status().pids()]

    def everybody_writes_to_the_new_file() -> bool:
        opened = [{os.readlink(entry) for entry in os.scandir(f"/proc/{pid}/fd") if entry.is_symlink()} for pid in pids]
        return all(str(log) in paths and str(moved) not in paths for paths in opened)

    wait_for(everybody_writes_to_the_new_file, "master and workers have the new file open, and not the old one")
    size = moved.stat().st_size
    assert server.release().exit == 0
    assert log.stat().st_size > 0
    assert moved.stat().st_size == size


def test_signals_of_a_terminal_do_not_reach_zygotes_and_workers(server):
    status = server.status()
    pids = [*status.pids(), status.current["zygote"]["pid"]]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2):
        for pid in pids:
            os.kill(pid, number)
    assert {server.get().pid for _ in range(20)} <= set(pids)
    # A zygote that had died would not fork, and a worker that drained would have a successor.
    server.signal(signal.SIGTTIN)
    after = server.wait(lambda s: s.is_settled() and len(s.workers()) == 3)
    assert set(pids) < {*after.pids(), after.current["zygote"]["pid"]}


def test_a_hup_to_the_whole_group_is_one_release(server):
    before = server.status().pids()
    server.write("two")
    os.killpg(server.pid, signal.SIGHUP)
    status = server.settle(2)
    assert not before & status.pids()
    assert server.get().version == "two"


def test_an_int_to_the_whole_group_is_a_quick_stop(server):
    os.killpg(server.pid, signal.SIGINT)
    assert server.await_exit() == 0
    assert list(server.processes()) == []


def test_hups_before_the_first_generation_serves_lose_nothing(serve):
    server = serve()
    server.write("one", "basic.pass_gate('import')\n")
    server.launch()
    server.gate("import").await_entered()
    server.write("two")
    server.hup()
    server.wait(lambda s: s.is_settled() and s.current["directory"].endswith("/two"))
    assert server.get().version == "two"


ALARMS = """\
import signal, threading
import basic
import reuseport

def on_alarm(number, frame):
    alarms.append(number)
    raise TimeoutError("too late")

@reuseport.on_start
def start():
    signal.signal(signal.SIGALRM, on_alarm)

alarms = []
serve = basic.make(VERSION)

def application(environ, start_response):
    if environ["PATH_INFO"] == "/alarms":
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    elif environ["PATH_INFO"] == "/quiet":
        signal.setitimer(signal.ITIMER_REAL, 0)
        basic.extra["alarms"] = len(alarms)
    return serve(environ, start_response)
"""


def get_in_spite_of_alarms(server, path: str) -> None:
    """The alarm may ring in this very request, and end it or its connection."""

    def is_answered() -> bool:
        try:
            return server.get(path).status == 200
        except (OSError, HTTPException):
            return False

    wait_for(is_answered, f"the answer to {path}")


def test_a_handler_that_raises_anywhere_leaves_no_client_waiting(serve):
    """The application's alarm clock rings wherever its worker is: mostly in the server's own code."""
    server = serve(workers=1)
    server.write("one", "VERSION = 'one'\n" + ALARMS)
    server.start().settle()
    get_in_spite_of_alarms(server, "/alarms")
    with server.load(keep_alive=20, one_shot=10) as load:
        wait_for(lambda: load.answers + len(load.failures) > 2000, "answers")
        # Whom it interrupts in the application is told so, or sees that the connection broke. Nobody hears nothing.
        before = list(load.ended)
        wait_for(lambda: all(now > then for now, then in zip(load.ended, before, strict=True)), "each of them goes on")
    get_in_spite_of_alarms(server, "/quiet")
    assert server.get("/quiet").json["alarms"] > 100
    assert server.get("/upload").status == 200
    server.release()
    server.wait(lambda s: s.is_settled())
