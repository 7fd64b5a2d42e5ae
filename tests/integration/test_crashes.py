"""Processes that die: workers, zygotes, the master; and what comes in their place."""

from __future__ import annotations

import http.client
import os
import signal

import pytest
from harness import is_gone, wait_for


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_is_replaced(server):
    before = server.status()
    victim = before.workers()[0]
    kill(victim["pid"])
    status = server.wait(lambda s: s.is_settled() and victim["pid"] not in s.pids())
    assert len(status.workers()) == 2
    replacement = next(w for w in status.workers() if w["pid"] not in before.pids())
    assert (replacement["place"], replacement["slots"]) == (victim["place"], victim["slots"])
    assert status.serving == 1
    assert status.zygote == before.zygote
    wait_for(lambda: is_gone(victim["pid"]), "the dead worker is reaped")


def test_all_workers_killed_at_once_are_replaced_at_once(server):
    before = server.status()
    for pid in before.pids():
        kill(pid)
    server.wait(lambda s: s.is_settled() and not s.pids() & before.pids())
    assert server.get().status == 200


def test_only_the_requests_of_a_killed_worker_fail(server):
    gate = server.gate("slow")
    victim_request = server.get_later("/gate?name=slow")
    victim = gate.await_entered()[0]
    other = next(iter(server.status().pids() - {victim}))
    requests = []
    while other not in gate.entered():
        requests.append(server.get_later("/gate?name=slow"))
        gate.await_entered(len(requests) + 1)
    kill(victim)
    with pytest.raises((OSError, http.client.HTTPException)):
        victim_request.result()
    server.wait(lambda s: s.is_settled() and victim not in s.pids())
    gate.open()
    answered = [pid for pid in gate.entered() if pid == other]
    results = []
    for request in requests:
        try:
            results.append(request.result().pid)
        except (OSError, http.client.HTTPException):
            continue
    assert results == answered


def test_connections_that_wait_in_a_killed_worker_s_queue_are_answered(server):
    """Nobody accepts, then the worker that should have is killed: the queue is the master's."""
    pids = server.status().pids()
    zygote = server.status().current["zygote"]["pid"]
    address = server.address
    for pid in (*pids, zygote):
        os.kill(pid, signal.SIGSTOP)
    waiting = [server.client(address) for _ in range(20)]
    for connection in waiting:
        connection.request("GET", "/")
    for pid in pids:
        kill(pid)
    os.kill(zygote, signal.SIGCONT)
    assert [connection.getresponse().status for connection in waiting] == [200] * 20
    for connection in waiting:
        connection.close()


def test_a_killed_zygote_comes_back_and_the_workers_serve_on(server):
    before = server.status()
    zygote = before.current["zygote"]["pid"]
    with server.load() as load:
        kill(zygote)
        status = server.wait(lambda s: s.is_settled() and s.current["zygote"]["pid"] != zygote)
        load.more(10)
        assert load.failures == []
    assert status.pids() == before.pids()
    victim = min(status.pids())
    kill(victim)
    status = server.wait(lambda s: s.is_settled() and victim not in s.pids())
    assert len(status.workers()) == 2
    assert server.get().version == "one"


def test_worker_and_zygote_killed_together(server):
    status = server.status()
    zygote, victim = status.current["zygote"]["pid"], min(status.pids())
    kill(zygote)
    kill(victim)
    assert server.get().status == 200
    server.wait(lambda s: s.is_settled() and victim not in s.pids() and s.current["zygote"]["pid"] != zygote)


def test_a_replacement_is_the_version_that_was_loaded_whatever_is_on_disk(server):
    (server.releases / "one" / "app.py").write_text("raise SystemExit('broken by now')\n")
    server.write("two")
    victims = server.status().pids()
    for pid in victims:
        kill(pid)
    status = server.wait(lambda s: s.is_settled() and not s.pids() & victims)
    assert status.serving == 1
    assert {server.get().version for _ in range(10)} == {"one"}


def test_a_zygote_that_comes_back_loads_its_own_release_and_not_the_current_one(server):
    server.write("two")
    zygote = server.status().current["zygote"]["pid"]
    kill(zygote)
    server.wait(lambda s: s.is_settled() and s.current["zygote"]["pid"] != zygote)
    victims = server.status().pids()
    for pid in victims:
        kill(pid)
    server.wait(lambda s: s.is_settled() and not s.pids() & victims)
    assert {server.get().version for _ in range(10)} == {"one"}


def test_a_worker_killed_in_a_draining_generation_does_not_hold_up_the_drain(server):
    request = server.get_later("/gate?name=slow")
    pid = server.gate("slow").await_entered()[0]
    server.write("two")
    assert server.release().exit == 0
    server.wait(lambda s: s.draining == [1])
    kill(pid)
    with pytest.raises((OSError, http.client.HTTPException)):
        request.result()
    server.settle(2)
    assert server.get().version == "two"


def test_a_release_survives_the_death_of_the_old_generation_s_zygote(server):
    server.write("two", "basic.pass_gate('import')\n")
    release = server.begin("release")
    server.gate("import").await_entered()
    kill(server.status().current["zygote"]["pid"])
    server.gate("import").open()
    assert server.end(release).exit == 0
    server.settle(2)


def test_workers_that_die_at_their_start_are_tried_again_later_and_the_others_serve_on(server):
    code = "import reuseport\nreuseport.on_start(lambda: basic.is_open('poison') and basic.os._exit(1))\n"
    server.write("two", code)
    server.renew()
    before = server.settle(2)
    server.gate("poison").open()
    victim = min(before.pids())
    kill(victim)

    def numbers(s):
        return max(int(w["id"].partition(".")[2]) for w in s.current["workers"])

    with server.load() as load:
        # Numbers are given out in order: so many attempts have been made.
        server.wait(lambda s: numbers(s) >= 6, "a few attempts")
        load.more(10)
    assert load.failures == []
    server.gate("poison").close()
    status = server.wait(lambda s: s.is_settled() and victim not in s.pids())
    assert len(status.workers()) == 2


def test_the_workers_serve_on_without_a_master(server):
    pids, address = server.status().pids(), server.address
    kill(server.pid)
    server.await_exit()
    assert {server.get(address=address).pid for _ in range(20)} <= pids
    assert set(server.processes()) >= pids


def test_the_application_ending_its_worker_costs_that_request_alone(server):
    with server.load() as load:
        for number in range(3):  # three requests: one that ends two workers is put into quarantine
            before = server.settle().pids()
            with pytest.raises((OSError, http.client.HTTPException)):
                server.get(f"/die?status=0&number={number}")
            server.wait(lambda s, before=before: s.is_settled() and s.pids() != before)
    # What else was in that worker at that moment may fail with it, and nothing more.
    assert len(load.failures) <= 6
    assert server.get().status == 200
