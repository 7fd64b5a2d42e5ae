"""A canary: some tenants try a release out, and then everybody gets it, or nobody; and no tenant ever goes back."""

from __future__ import annotations

import json
import os
import signal

import pytest
from test_tenants import TENANTED, Customer


@pytest.fixture
def server(serve):
    server = serve("--tenant", "header:X-Tenant")
    server.write("one", code=TENANTED)
    return server.start()


def try_out(server, version: str, who: str) -> int:
    server.write(version, code=TENANTED)
    outcome = server.cli("release", "--canary", who, "--json")
    assert outcome.exit == 0, outcome.err
    return outcome.json["generation"]


def test_some_tenants_try_it_out_and_then_everybody_has_it(server):
    acme, globex, nobody = Customer(server, "acme"), Customer(server, "globex"), Customer(server, None)
    assert {one.version() for one in (acme, globex, nobody)} == {"one"}
    assert try_out(server, "two", "acme,initech") == 2
    status = server.status()
    assert status.serving == 1 and status.generation(2)["state"] == "canary"
    with server.load() as load:  # of no tenant
        for _ in range(20):
            assert (acme.version(), globex.version(), nobody.version()) == ("two", "one", "one")
            assert Customer(server, "initech", keep=False).version() == "two"
            assert Customer(server, "globex", keep=False).version() == "one"
        assert load.versions == ["one"]
        outcome = server.cli("promote")
        assert outcome.exit == 0 and "generation 2 serves" in outcome.out, outcome.err
        for _ in range(20):
            assert {one.version() for one in (acme, globex, nobody)} == {"two"}
        load.more(20)
    assert load.failures == []
    server.settle(2)


def test_a_promotion_that_nobody_waits_for(server):
    try_out(server, "two", "acme")
    outcome = server.cli("promote", "--wait", "none", "--json")
    assert outcome.exit == 0 and outcome.json["generation"] is None
    server.settle(2)


def test_the_command_line_tells_who_tries_it_out(server):
    Customer(server, "acme").get()
    server.write("two", code=TENANTED)
    outcome = server.cli("release", "--canary", "acme,globex")
    assert outcome.exit == 0 and "no job of tenant globex has been seen" in outcome.err and "acme" not in outcome.err
    outcome = server.cli("tenants")
    assert outcome.exit == 0, outcome.err
    trial = {"generation": 2, "tenants": ["acme", "globex"], "more": 0, "percent": 0}
    assert server.question(do="tenants")["canary"] == trial
    assert "canary: generation 2: tenants acme, globex" in outcome.out
    assert "generation 2 is on trial: tenants acme, globex" in server.cli("status").out
    rows = [line.split() for line in outcome.out.splitlines()[1:3]]
    assert rows == [["acme", "2", "canary"], ["globex", "2", "canary"]]


def test_who_has_tried_it_out_goes_forward_when_it_is_given_up(server):
    acme, globex = Customer(server, "acme"), Customer(server, "globex")
    try_out(server, "two", "acme")
    assert (acme.get()["generation"], globex.get()["generation"]) == (2, 1)
    outcome = server.cli("rollback")
    assert outcome.exit == 0 and "from the zygote of generation 1" in outcome.out
    for one in (acme, globex):
        answer = one.get()
        assert (answer["version"], answer["generation"]) == ("one", 3)
    server.settle(3)


def test_a_tenant_with_a_job_tries_it_out_when_the_job_has_ended(server):
    gate = server.gate("job")
    acme = Customer(server, "acme")
    acme.get("/job?name=job")
    gate.await_entered()
    try_out(server, "two", "acme")
    assert acme.version() == "one"
    gate.open()
    server.wait(lambda s: acme.version() == "two", "the tenant to move")


def test_a_share_of_all_tenants_is_always_the_same_one(server):
    tenants = [f"tenant-{number}" for number in range(60)]
    try_out(server, "two", "50%")
    found = {name: Customer(server, name, keep=False).version() for name in tenants}
    assert 10 < sum(version == "two" for version in found.values()) < 50
    assert found == {name: Customer(server, name, keep=False).version() for name in tenants}


def test_a_canary_outlives_its_master_and_is_still_one(server):
    acme, globex = Customer(server, "acme"), Customer(server, "globex")
    try_out(server, "two", "acme")
    assert (acme.version(), globex.version()) == ("two", "one")
    server.process.kill()
    server.process.wait()
    assert (acme.version(), globex.version()) == ("two", "one")
    server.launch()
    server.wait(lambda s: s.serving == 1 and s.generation(2)["state"] == "canary", "the next master")
    for _ in range(10):
        assert (acme.version(), globex.version()) == ("two", "one")
    assert server.cli("promote").exit == 0
    assert (acme.version(), globex.version()) == ("two", "two")
    lines = [json.loads(line) for line in (server.run_dir / "history.jsonl").read_text().splitlines()]
    recipes = {line["number"]: line["release"]["recipe"] for line in lines if line.get("outcome") == "serving"}
    assert recipes[2]["directory"] == str(server.releases / "two"), "what it was is written down, for a rollback"


def test_a_worker_of_the_canary_that_dies_is_replaced_and_stays_one(server):
    acme, globex = Customer(server, "acme", keep=False), Customer(server, "globex", keep=False)
    try_out(server, "two", "acme")
    victims = {w["pid"] for w in server.status().generation(2)["workers"]}
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    server.wait(
        lambda s: (
            [w["state"] for w in s.generation(2)["workers"]] == ["serving"] * 2
            and not victims & {w["pid"] for w in s.generation(2)["workers"]}
        ),
        "two new workers",
    )
    assert (acme.version(), globex.version()) == ("two", "one")


def test_what_cannot_be_is_said(server, serve):
    for words, says in (
        (["promote"], "no canary"),
        (["release", "--canary", "ten%"], "neither tenants nor a share"),
        (["release", "--canary", "200%"], "neither tenants nor a share"),
        (["release", "--canary", ",".join(f"tenant-{n}" for n in range(4000))], "bytes"),
    ):
        outcome = server.cli(*words)
        assert outcome.exit in (1, 2) and says in outcome.err
    other = serve().start()
    outcome = other.cli("release", "--canary", "acme")
    assert outcome.exit == 1 and "--tenant" in outcome.err
    assert other.status().serving == 1
