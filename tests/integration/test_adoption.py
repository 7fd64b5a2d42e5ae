"""A master that dies interrupts nothing, and the next one that owns the run directory adopts what it left."""

from __future__ import annotations

import json
import os
import signal

from harness import ask, wait_for


def lose_master(server) -> None:
    server.process.kill()
    server.process.wait()


def test_workers_serve_on_without_a_master(server):
    before, address = server.status().pids(), server.address
    assert address
    lose_master(server)
    assert {server.get().pid for _ in range(20)} <= before


def test_the_next_master_adopts_generation_workers_and_addresses(server):
    connection = server.client()
    first = ask(connection, "/")
    before, addresses = server.status(), server.status()["master"]["addresses"]
    lose_master(server)
    server.write("two")
    server.start()
    after = server.status()
    assert after.serving == 1
    assert after.pids() == before.pids()
    assert after["master"]["addresses"] == addresses
    # Adoption is no release: the old version serves on, on the very same connection.
    assert (ask(connection, "/").pid, server.get().version) == (first.pid, "one")


def test_an_adopted_generation_is_released_drained_and_replaced_like_any_other(server):
    lose_master(server)
    server.start()
    os.kill(min(server.status().pids()), signal.SIGKILL)
    server.settle(1)
    assert server.get().version == "one"
    connection = server.client()
    assert ask(connection, "/").version == "one"
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert server.status().numbers == [2]
    assert ask(connection, "/").version == "two"


def test_a_request_that_began_under_the_old_master_ends_under_the_new_one(server):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    lose_master(server)
    server.start()
    server.write("two")
    assert server.release().exit == 0
    assert server.status().draining == [1]
    gate.open()
    assert slow.result().version == "one"
    server.settle(2)


def test_adopted_draining_generations_go_on_draining(server):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    lose_master(server)
    server.launch()
    status = server.wait(lambda s: s.serving == 2 and len(s.workers("serving")) == 2, "generation 2 adopted")
    assert status.draining == [1]
    gate.open()
    assert slow.result().version == "one"
    server.settle(2)


def test_a_generation_that_was_booting_when_the_master_died_is_given_up(server):
    server.write("two", code="basic.pass_gate('import')\n")
    gate = server.gate("import")
    server.hup()
    (zygote,) = gate.await_entered()
    lose_master(server)
    server.start()
    assert server.status().numbers == [1]
    wait_for(lambda: not os.path.exists(f"/proc/{zygote}"), "the end of the zygote that nobody waits for")
    gate.open()
    assert server.release().exit == 0
    assert server.get().version == "two"
    # Numbers only go forward: 2 was given out, and is not used again.
    assert server.status().serving == 3


def test_a_stop_leaves_nothing_to_adopt(server):
    assert server.cli("stop").exit == 0
    assert not (server.run_dir / "roster.json").exists()
    server.start()
    assert server.status().serving == 2, "numbers go on where they were"


def test_a_pid_that_belongs_to_somebody_else_by_now_is_not_adopted(server):
    lose_master(server)
    path = server.run_dir / "roster.json"
    roster = json.loads(path.read_text())
    for process in roster["processes"]:
        os.kill(process["pid"], signal.SIGKILL)
    # As if the kernel had given one of the pids to this test.
    roster["processes"][0]["pid"] = os.getpid()
    path.write_text(json.dumps(roster))
    server.start()
    assert server.get().version == "one"


def test_a_damaged_roster_is_one_clear_line(server):
    lose_master(server)
    (server.run_dir / "roster.json").write_text("{")
    outcome = server.run()
    assert outcome.exit == 1
    assert "roster.json is damaged" in outcome.err
