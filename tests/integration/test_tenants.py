"""Tenants: who has a job stays with the version that runs it, everybody else moves, and nobody ever goes back."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
from collections import defaultdict

import pytest
from harness import Background, ask, wait_for

TENANTED = "import tenanted\napplication = tenanted.make(VERSION)\n"


@pytest.fixture
def make(serve):
    def made(*options: str, **fields):
        options = options if "--tenant" in options else ("--tenant", "header:X-Tenant", *options)
        server = serve(*options, **fields)
        server.write("one", code=TENANTED)
        return server.start()

    return made


class Customer:
    """Asks for one tenant, on one connection that is kept open, or on a new one each time."""

    def __init__(self, server, tenant: str | None, keep: bool = True) -> None:
        self.server, self.tenant, self.keep = server, tenant, keep
        self.connection: http.client.HTTPConnection | None = None

    def get(self, path: str = "/", tenant: str | None = None) -> dict:
        if self.connection is None:
            self.connection = self.server.client()
        tenant = tenant or self.tenant
        self.connection.request("GET", path, headers={"X-Tenant": tenant} if tenant else {})
        response = self.connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        if not self.keep or response.getheader("Connection") == "close":
            self.connection.close()
            self.connection = None
        import json

        return json.loads(body)

    def version(self, path: str = "/") -> str:
        return self.get(path)["version"]


def release(server, version: str) -> None:
    server.write(version, code=TENANTED)
    outcome = server.release()
    assert outcome.exit == 0, outcome


def test_a_tenant_with_a_job_stays_and_moves_in_the_moment_it_ends(make):
    server = make()
    gate = server.gate("job")
    acme, globex = Customer(server, "acme"), Customer(server, "globex")
    assert acme.get("/job?name=job")["tenant"] == "acme"
    assert globex.version() == "one"
    gate.await_entered()
    release(server, "two")
    for _ in range(20):
        assert acme.version() == "one"  # a connection that is kept
        assert Customer(server, "acme", keep=False).version() == "one"  # and a new one
        assert globex.version() == "two"
        assert Customer(server, None, keep=False).version() == "two"
    gate.open()
    wait_for(lambda: acme.version() == "two", "the tenant to move")
    for _ in range(20):
        assert acme.version() == "two"
        assert Customer(server, "acme", keep=False).version() == "two"
    server.settle(2)


def test_requests_of_several_tenants_on_one_connection_each_go_where_they_belong(make):
    server = make()
    gate = server.gate("job")
    shared = Customer(server, "acme")
    shared.get("/job?name=job")
    gate.await_entered()
    release(server, "two")
    for _ in range(10):
        for tenant, version in (("acme", "one"), ("globex", "two"), ("acme", "one"), ("initech", "two")):
            answer = shared.get(tenant=tenant)
            assert (answer["tenant"], answer["version"]) == (tenant, version)
    # Pipelined: all of them are sent before any is answered.
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        order = ["acme", "globex", "globex", "acme", "acme", "globex"] * 3
        client.sendall(b"".join(f"GET / HTTP/1.1\r\nHost: x\r\nX-Tenant: {t}\r\n\r\n".encode() for t in order))
        stream = client.makefile("rb")
        for tenant in order:
            length = 0
            while line := stream.readline().strip():
                name, _, value = line.partition(b": ")
                length = int(value) if name == b"Content-Length" else length
            body = stream.read(length)
            assert f'"tenant": "{tenant}"'.encode() in body, "answered out of order"
            assert (b'"version": "one"' in body) == (tenant == "acme")
    gate.open()
    server.settle(2)


def test_a_body_goes_with_its_request(make):
    server = make()
    gate = server.gate("job")
    Customer(server, "acme").get("/job?name=job")
    gate.await_entered()
    release(server, "two")
    for size in (10, 100_000, 3_000_000):
        with contextlib.closing(server.client()) as connection:
            connection.request("POST", "/upload", body=b"x" * size, headers={"X-Tenant": "acme"})
            body = connection.getresponse().read()
            assert f'"length": {size}'.encode() in body and b'"version": "one"' in body
    gate.open()


def test_a_killed_worker_releases_its_pins(make):
    server = make()
    acme = Customer(server, "acme", keep=False)
    pid = acme.get("/job?name=job")["pid"]
    server.gate("job").await_entered()
    release(server, "two")
    assert acme.version() == "one"
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: acme.version() == "two", "the tenant to move")
    server.settle(2)


def test_a_tenant_that_moved_is_never_pulled_back_by_a_late_job(make):
    server = make()
    gate, late = server.gate("request"), server.gate("late")
    acme = Customer(server, "acme", keep=False)
    slow = Background(lambda: Customer(server, "acme").get("/gate?name=request"))
    gate.await_entered()
    release(server, "two")
    assert acme.version() == "two"  # a request is no job: shared isolation moves at once
    # The old worker attends its queue no more for anybody; what still runs there may begin a job, which pins nobody.
    gate.open()
    assert slow.result()["version"] == "one"
    assert acme.version() == "two"
    late.open()


@pytest.mark.parametrize("rule, headers, path", [
    ("tenanted:whose", {"X-Customer": "acme"}, "/"),
    ("cookie:who", {"Cookie": "a=b; who=acme"}, "/"),
    ("path:2", {}, "/t/acme/x"),
    ("host:1", {"Host": "acme.example.org:80"}, "/"),
    ("host", {"Host": "acme"}, "/"),
])  # fmt: skip
def test_whose_a_request_is(make, rule, headers, path):
    server = make("--tenant", rule, workers=1)
    with contextlib.closing(server.client()) as connection:
        connection.request("GET", path, headers=headers)
        assert b'"tenant": "acme"' in connection.getresponse().read()
        if rule == "tenanted:whose":
            connection.request("GET", "/nobody-knows")
            response = connection.getresponse()
            assert response.status == 500 and response.read()


def test_hold_keeps_a_tenant_across_releases_and_move_lets_it_go(make):
    server = make()
    acme, globex = Customer(server, "acme"), Customer(server, "globex")
    assert acme.version() == "one"
    outcome = server.cli("hold", "acme")
    assert outcome.exit == 0 and "generation 1" in outcome.out and outcome.err == "", outcome
    for command in ("move", "hold"):
        outcome = server.cli(command, "acne")
        assert outcome.exit == 0 and "tenant acne has been seen so far; similar names: acme" in outcome.err, outcome
    assert "warnings" not in server.question(do="move", tenant="acne")  # it is held, so it is known
    release(server, "two")
    release(server, "three")
    for _ in range(5):
        assert (acme.version(), globex.version()) == ("one", "three")
        assert Customer(server, "acme", keep=False).version() == "one"
    server.wait(
        lambda s: s.numbers == [1, 3] and [w["state"] for w in s.generation(1)["workers"]] == ["attending"] * 2,
        "two workers to attend",
    )
    assert server.status().generation(1)["waits_for"]["held"] == ["acme"]
    shown = server.cli("status").out
    assert "tenant acme, which is held here, draining" in shown and "attending: 1." in shown
    assert "is held here" in server.cli("tenants").out
    # A worker that attends and dies is forked again, and the version stays what it was.
    os.kill(server.status().generation(1)["workers"][0]["pid"], signal.SIGKILL)
    acme = Customer(server, "acme")  # the connection may have been the killed one's
    for _ in range(5):
        assert Customer(server, "acme", keep=False).version() == "one"
    rows = {row["tenant"]: row for row in server.cli("tenants", "--json").json["tenants"]}
    assert (rows["acme"]["generation"], rows["acme"]["why"]) == (1, "held")
    assert server.cli("move", "acme").exit == 0
    wait_for(lambda: acme.version() == "three", "the tenant to move")
    server.settle(3)


def test_the_next_master_knows_who_is_held(make):
    server = make()
    acme = Customer(server, "acme", keep=False)
    server.cli("hold", "acme")
    release(server, "two")
    assert acme.version() == "one"
    server.process.kill()
    server.process.wait()
    assert acme.version() == "one" and Customer(server, "globex", keep=False).version() == "two"
    server.launch()
    server.wait(lambda s: s.serving == 2, "the next master")
    # Names that only workers of before knew are lost, so it cannot say of any that it was never seen.
    assert not server.question(do="move", tenant="globes").get("warnings")
    assert acme.version() == "one" and Customer(server, "globex", keep=False).version() == "two"
    assert server.cli("move", "acme").exit == 0
    wait_for(lambda: acme.version() == "two", "the tenant to move")


def test_pin_max_bounds_jobs_that_never_end(make):
    server = make("--pin-max", "0.3")
    gate = server.gate("job")
    acme = Customer(server, "acme")
    acme.get("/job?name=job")
    gate.await_entered()
    release(server, "two")
    wait_for(lambda: acme.version() == "two", "the tenant to move although its job runs")
    assert all(acme.version() == "two" for _ in range(5))
    gate.open()
    server.settle(2)


def test_strict_two_versions_never_work_for_one_tenant_at_the_same_time(make, tmp_path):
    """Under load, with random jobs, releases and killed workers."""
    intervals = tmp_path / "intervals"  # outlives the server, which writes to the last
    server = make("--tenant-isolation", "strict", "--strict-wait", "0.3", env={"TEST_INTERVALS": str(intervals)})
    names = ["acme", "globex", "initech"]
    ending, failures, answers = threading.Event(), [], []

    def customer(tenant: str, keep: bool) -> None:
        mine, seen = Customer(server, tenant, keep), 0
        while not ending.is_set():
            try:
                answer = mine.get("/work")
            except (OSError, http.client.HTTPException) as error:
                mine.connection = None
                if not killing.is_set():
                    failures.append(repr(error))
                continue
            if not keep or not killing.is_set():
                answers.append((tenant, keep, answer["generation"]))
            if keep and answer["generation"] < seen:
                failures.append(f"{tenant} went back from {seen} to {answer['generation']}")
            seen = max(seen, answer["generation"])

    killing = threading.Event()
    threads = [threading.Thread(target=customer, args=(n, keep)) for n in names for keep in (True, False)]
    for thread in threads:
        thread.start()
    try:
        for version in ("two", "three", "four"):
            release(server, version)
            before = len(answers)
            wait_for(lambda before=before: len(answers) > before + 60, "more answers")
        killing.set()
        for version in ("five", "six"):
            release(server, version)
            for g in server.status()["generations"]:
                if g["workers"]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(g["workers"][0]["pid"], signal.SIGKILL)
            before = len(answers)
            wait_for(lambda before=before: len(answers) > before + 20, "more answers")
    finally:
        ending.set()
        for thread in threads:
            thread.join(20)
    assert not failures
    work = defaultdict(list)
    for line in intervals.read_text().splitlines():
        _, tenant, generation, begun, ended = line.split()
        work[tenant].append((int(begun), int(ended), int(generation)))
    assert {g for spans in work.values() for _, _, g in spans} >= {1, 2, 3, 4}
    for tenant, spans in work.items():
        spans.sort()
        latest, of = 0, 0
        for begun, ended, generation in spans:
            assert generation == of or begun >= latest, f"{tenant}: {of} and {generation} overlap"
            assert generation >= of, f"{tenant} went back from {of} to {generation}"
            if ended > latest:
                latest, of = ended, generation


def test_a_tenant_that_is_not_configured_costs_nothing_and_is_refused_by_the_command_line(serve):
    server = serve(workers=1).start()
    outcome = server.cli("tenants")
    assert outcome.exit == 1 and "--tenant" in outcome.err
    assert not (server.run_dir / "marks").exists()
    assert not ask(server.client(), "/").json.get("tenant")
