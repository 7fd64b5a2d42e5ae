"""A master that dies interrupts nothing, and the next one that owns the run directory adopts what it left."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
from harness import ask, free_port, is_gone, wait_for


def listening(address: str) -> set[str]:
    """The inodes of the sockets that listen there."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(port) and row[3] == "0A"}


def sockets_of(pid: int) -> set[str]:
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}

TENANTED = "import tenanted\napplication = tenanted.make(VERSION)\n"


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
    assert server.cli("stop").exit == 0
    assert not list(server.run_dir.glob("boot-*.log")), "what either master's generations printed"


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


def test_a_damaged_roster_is_set_aside_and_its_processes_are_asked(server):
    before = server.status()
    for content in ("{", ""):
        lose_master(server)
        (server.run_dir / "roster.json").write_text(content)
        server.start()
        after = server.status()
        assert after.serving == 1 and after.pids() == before.pids()
        assert after["master"]["addresses"] == before["master"]["addresses"]
    kept = sorted(server.run_dir.glob("roster.json.damaged-*"))
    assert kept and all(path.name in server.log.read_text() for path in kept)
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert server.cli("rollback").exit == 0 and server.get().version == "one"


def test_a_roster_of_another_version_says_what_to_do(server):
    lose_master(server)
    path = server.run_dir / "roster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "v": 99}))
    outcome = server.run()
    assert outcome.exit == 1 and "its number is 99" in outcome.err


def test_another_address_is_bound_beside_those_that_are_served_on(serve, tmp_path):
    server = serve().start()
    before, old = server.status(), server.address
    lose_master(server)
    new = f"127.0.0.1:{free_port()}"
    path = f"unix:{tmp_path}/web.sock"
    server.bind = (new, path)
    zygote = before.current["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)  # so that a worker is the first to say hello, before the new address is bound
    try:
        server.launch()
        status = server.wait(lambda s: s.serving == 1 and len(s.workers("serving")) == 2)
    finally:
        os.kill(zygote, signal.SIGCONT)
    assert status.pids() == before.pids()
    assert status["master"]["addresses"] == [old, new, path]
    assert f"{old} is served on" in server.log_end()
    for address in (old, new, path):
        assert {server.get(address=address).pid for _ in range(20)} <= before.pids()
    assert [worker["slots"] for worker in status.workers()] == [[0], [1]], "each slot has an owner"
    slots = listening(new)
    assert len(slots) == 2
    for pid in before.pids():
        wait_for(lambda pid=pid: slots <= sockets_of(pid), f"worker {pid} has both slots of the new address")


def test_an_address_that_cannot_be_had_costs_the_orphans_nothing(serve, tmp_path):
    path = f"unix:{tmp_path}/web.sock"
    server = serve(bind=(path,)).start()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lose_master(server)
        server.bind = (path, f"127.0.0.1:{other.getsockname()[1]}")
        outcome = server.run()
    assert outcome.exit == 1 and "is in use by another server" in outcome.err
    assert server.get(address=path).status == 200
    server.bind = (path,)
    server.start()
    assert server.get(address=path).status == 200


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((), ("--user", "nobody"), "--user: generation 1"),
    ],
)
def test_who_was_begun_as_another_user_is_not_adopted(serve, before, after, says):
    if "--user" in after and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    server = serve(*before).start()
    pids, address = server.status().pids(), server.address
    lose_master(server)
    server.options = after
    outcome = server.run()
    assert outcome.exit == 1
    line = outcome.err.splitlines()[-1]
    assert says in line and "start it as it was, stop it (reuseport stop), and start it anew" in line
    assert (server.run_dir / "work").stat().st_uid == os.geteuid()
    assert server.get(address=address).pid in pids, "they serve on"
    server.options = before
    server.start()
    assert server.status().pids() == pids
    assert server.cli("stop").exit == 0
    server.options = after
    if "--user" not in after:  # whose interpreter may lie where that user cannot go
        server.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_second_master_that_is_refused_has_changed_nothing_in_the_run_directory(server, serve):
    second = serve("--user", "nobody", run_dir=server.run_dir)
    second.name = server.name
    outcome = second.run()
    assert outcome.exit == 1 and "belongs to a running master" in outcome.err
    assert (server.run_dir / "work").stat().st_uid == 0
    assert stat.S_IMODE(server.run_dir.stat().st_mode) == 0o700


def test_a_job_is_adopted_although_nobody_is_left_who_has_a_slot(serve):
    server = serve()
    server.write("one", whole="import jobbing\napplication = jobbing.make('one')\n")
    server.start()
    job = server.get("/begin?name=job").json
    assert job
    (pid,) = server.gate("job").await_entered()
    status = server.status()
    lose_master(server)
    for other in (*status.pids(), status.current["zygote"]["pid"]):
        os.kill(other, signal.SIGKILL)
        wait_for(lambda other=other: is_gone(other), "its end")
    server.write("two")
    server.launch()
    server.wait(lambda s: s.serving == 2 and s.draining == [1])
    assert not is_gone(pid)
    assert server.get(address=server.status()["master"]["addresses"][0]).version == "two"
    server.gate("job").open()
    wait_for(lambda: is_gone(pid), "the job's own end")
    assert server.gate("job-ended").entered() == [pid]
    server.settle(2)


def test_another_rule_for_tenants_comes_with_the_release_after_an_adoption(serve):
    """What was begun goes on by its own rule."""
    server = serve("--tenant", "header:X-A")
    server.write("one", TENANTED)
    server.start()
    address = server.address

    def tenant(header: str) -> str | None:
        with contextlib.closing(server.client(address)) as connection:
            connection.request("GET", "/", headers={header: "acme"})
            return json.loads(connection.getresponse().read())["tenant"]

    assert server.cli("hold", "acme").exit == 0
    lose_master(server)
    server.options = ("--tenant", "header:X-B")
    server.launch()
    server.wait(lambda s: s.is_settled(), "the next master")
    assert (tenant("X-A"), tenant("X-B")) == ("acme", None)
    assert [row["held"] for row in server.question(do="tenants")["tenants"]] == [1]
    server.write("two", TENANTED)
    assert "Release to everybody first" in server.release("--canary", "acme").err
    assert server.renew() == 2  # nothing keeps the old version
    assert (tenant("X-A"), tenant("X-B")) == (None, "acme")
    assert server.question(do="tenants")["tenants"] == []


def test_a_canary_whose_promotion_nobody_has_heard_is_still_a_canary(serve):
    """Its tenants have moved to it, and must not go back."""
    server = serve("--tenant", "header:X-Tenant").start()
    server.write("two")
    assert server.release("--canary", "acme").exit == 0
    workers = [w["pid"] for w in server.status().generation(2)["workers"]]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert server.cli("promote", "--wait", "none").exit == 0
        server.wait(lambda s: s.generation(2)["stage"] == "opening", "the order to accept")
        lose_master(server)
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    server.launch()
    status = server.wait(lambda s: s.serving == 1 and len(s["generations"]) == 2, "the next master")
    assert status.generation(2)["state"] == "canary"
    assert {w["pid"] for w in status.generation(2)["workers"]} == set(workers)
    connection = server.client(status["master"]["addresses"][0])
    connection.request("GET", "/", headers={"X-Tenant": "acme"})
    assert json.loads(connection.getresponse().read())["version"] == "two"
    assert server.cli("promote", "--wait", "drained").exit == 0
    server.settle(2)


def test_what_those_have_left_goes_who_died_without_a_master(server):
    """A draining generation that ends meanwhile, and a worker of the one that serves; then all of them."""
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    status = server.wait(lambda s: len(s.generation(1)["workers"]) == 1, "the other one to have left")
    work, address = server.run_dir / "work", server.address
    victim, survivor = status.workers()
    (old,) = status.generation(1)["workers"]
    lose_master(server)
    for name in (f"snapshot-{old['id']}.json.new", "lines-1.j1.txt", "lines-1.j9999999.txt", "somebody-else.txt"):
        (work / name).touch()
    for pid in (old["pid"], status.generation(1)["zygote"]["pid"], victim["pid"]):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: is_gone(pid), "its end")
    with pytest.raises((OSError, http.client.HTTPException)):
        slow.result()
    server.start()
    living = {"2.door", f"lines-{survivor['id']}.txt", f"stacks-{survivor['id']}.txt", "lines-1.j1.txt"}
    new = {w["id"] for w in server.status().workers()} - {survivor["id"]}
    assert len(new) == 1
    kept = living | {f"{what}-{who}.txt" for who in new for what in ("lines", "stacks")} | {"somebody-else.txt"}
    assert {path.name for path in work.iterdir()} == kept
    assert server.get(address=address).version == "two"
    lose_master(server)
    for pid in list(server.processes()):
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: is_gone(pid), "its end")
    server.start()
    mine = {f"{what}-{w['id']}.txt" for w in server.status().workers() for what in ("lines", "stacks")}
    door = f"{server.status().serving}.door"
    assert {path.name for path in work.iterdir()} == {door, *mine, "lines-1.j1.txt", "somebody-else.txt"}
