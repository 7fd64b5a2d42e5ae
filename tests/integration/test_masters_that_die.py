"""kill -9 of the master in the middle of something: the next one brings it to a sane end, and nobody notices.

While a master dies and another one comes, clients ask all the time, tenants look that they never go back, a request
is under way and a job runs. None of them may fail, or be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from harness import PATIENCE, Background, is_gone, wait_for
from test_companions import await_event, declare, events
from test_tenants import TENANTED, Customer


class Tenants(threading.Thread):
    """Customers of some tenants, who ask in turn, each on a new connection, and note which generation served whom."""

    def __init__(self, server, *names: str) -> None:
        super().__init__(daemon=True)
        self.customers = [Customer(server, name, keep=False) for name in names]
        self.seen: dict[str, list[int]] = {name: [] for name in names}
        self.rounds = 0
        self.error: Exception | None = None
        self._ending = threading.Event()

    def run(self) -> None:
        try:
            while not self._ending.wait(0.005):
                for one in self.customers:
                    seen, generation = self.seen[one.tenant], one.get()["generation"]
                    if seen[-1:] != [generation]:
                        seen.append(generation)
                self.rounds += 1
        except Exception as error:  # noqa: BLE001
            self.error = error

    def more(self, rounds: int = 3) -> None:
        start = self.rounds
        wait_for(lambda: self.error or self.rounds >= start + rounds, "more answers to tenants")

    def end(self) -> None:
        self._ending.set()
        self.join(PATIENCE)
        assert self.error is None
        assert not self.is_alive()
        for name, seen in self.seen.items():
            assert seen == sorted(seen), f"{name} went back"


@contextlib.contextmanager
def everybody(server) -> Iterator[Tenants]:
    """Clients of all kinds, who must not notice anything."""
    tenants = Tenants(server, "acme", "globex")
    with server.load() as load:
        tenants.start()
        try:
            yield tenants
            tenants.more()
            load.more(20)
        finally:
            tenants.end()
    assert load.failures == []


@contextlib.contextmanager
def stopped(pids) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def workers(server, generation: int) -> list[int]:
    return [w["pid"] for w in server.status().generation(generation)["workers"] if w["place"] >= 0]


def lose_master(server) -> None:
    server.process.kill()
    server.process.wait()


def next_master(server):
    """Start it, and wait until nothing is on its way any more."""
    server.launch()
    calm = {"serving", "canary", "draining", "standby"}

    def is_sane(s) -> bool:
        kept = [g for g in s["generations"] if g["state"] in ("serving", "canary")]
        full = all([w["state"] for w in g["workers"]] == ["serving"] * g["wanted"] for g in kept)
        return s.serving is not None and full and {g["state"] for g in s["generations"]} <= calm

    return server.wait(is_sane, "a sane state under the next master")


# --- a promotion ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trial(serve):
    """Generation 1 serves, with a job of globex in it; 2 is on trial with acme."""
    server = serve("--tenant", "header:X-Tenant")
    server.write("one", code=TENANTED)
    server.start()
    Customer(server, "globex", keep=False).get("/job?name=job")
    server.gate("job").await_entered()
    server.write("two", code=TENANTED)
    assert server.release("--canary", "acme").exit == 0
    assert Customer(server, "acme", keep=False).version() == "two"
    return server


def before_its_companion_has_begun(server) -> None:
    declare(server, mail="ready_after = 2")
    server.write("two", code=TENANTED)
    assert server.release("--canary", "acme").exit == 0  # another canary, with the companion
    assert server.cli("promote", "--wait", "none").exit == 0
    await_event(server, what="begins", generation=3)
    lose_master(server)
    server.gate("mail-3").open()  # what it has begun ends: the canary has no companions until it is promoted


def while_nobody_has_heard(server) -> None:
    with stopped(workers(server, 2)):
        assert server.cli("promote", "--wait", "none").exit == 0
        server.wait(lambda s: s.generation(2)["stage"] == "opening", "the order to accept")
        lose_master(server)


def while_one_accepts_and_the_other_has_not_heard(server) -> None:
    with stopped(workers(server, 2)[:1]):
        assert server.cli("promote", "--wait", "none").exit == 0
        server.wait(lambda s: "serving" in [w["state"] for w in s.generation(2)["workers"]], "one of them to accept")
        lose_master(server)


def while_all_accept_and_the_master_has_not_heard(server) -> None:
    pids = workers(server, 2)
    with contextlib.ExitStack() as stack:
        with stopped(pids):
            assert server.cli("promote", "--wait", "none").exit == 0
            server.wait(lambda s: s.generation(2)["stage"] == "opening", "the order to accept")
            os.kill(server.pid, signal.SIGSTOP)
        stack.callback(lose_master, server)
        # A new connection may be taken by either of them now.
        wait_for(lambda: all(accepts(pid) for pid in pids), "both of them to accept")


def accepts(pid: int) -> bool:
    """Whether a worker's loop watches a slot: a listening socket is in one of its epoll sets, with an event to come."""
    listening = listeners_of(pid)
    for entry in os.scandir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(FileNotFoundError), open(entry.path) as file:
            for line in file:
                if line.startswith("tfd:"):
                    words = line.split()
                    if int(words[1]) in listening and int(words[3], 16) & 1:
                        return True
    return False


def listeners_of(pid: int) -> set[int]:
    """Descriptors of listening TCP sockets."""
    with open("/proc/net/tcp") as file:
        inodes = {line.split()[9] for line in file.readlines()[1:] if line.split()[3] == "0A"}
    found = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry.path).removeprefix("socket:[").rstrip("]") in inodes:
                found.add(int(entry.name))
    return found


def before_the_old_ones_have_heard(server) -> None:
    with stopped(workers(server, 1)):
        assert server.cli("promote", "--wait", "none").exit == 0
        server.wait(lambda s: s.serving == 2, "generation 2 to serve")
        lose_master(server)


STEPS = [
    before_its_companion_has_begun,
    while_nobody_has_heard,
    while_one_accepts_and_the_other_has_not_heard,
    while_all_accept_and_the_master_has_not_heard,
    before_the_old_ones_have_heard,
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_promotion_goes_on_under_the_next_master_or_can_be_asked_for_again(trial, step):
    with everybody(trial) as tenants:
        slow = trial.get_later("/gate?name=slow")
        trial.gate("slow").await_entered()
        step(trial)
        tenants.more()
        status = next_master(trial)
        if status.serving == 1:
            canary = status["generations"][-1]
            assert canary["state"] == "canary"
            tenants.more()
            for pid in workers(trial, canary["number"]):
                wait_for(lambda pid=pid: not accepts(pid), f"canary {pid} to leave the slots alone")
            assert trial.cli("promote").exit == 0
        newest = trial.status().serving
        assert newest >= 2
        tenants.more()
        trial.gate("slow").open()
        assert slow.result().status == 200
        trial.gate("job").open()
        trial.settle(newest)
        tenants.more()
    assert {name: seen[-1] for name, seen in tenants.seen.items()} == {"acme": newest, "globex": newest}
    assert not trial.status()["lost"]["count"]
    known = {c["pid"] for c in trial.status().current["companions"]}
    begun = {one["pid"] for one in events(trial, what="begins")}
    wait_for(lambda: all(is_gone(pid) for pid in begun - known), "no companion of nobody's")


# --- a rollback from standby ------------------------------------------------------------------------------------------


CODE = TENANTED + "import reuseport\nreuseport.on_start(lambda: basic.pass_gate('start'))\n"


@pytest.fixture
def returning(serve):
    """Generation 2 serves, with a job of globex in it; 1 stands by."""
    server = serve("--tenant", "header:X-Tenant")
    server.gate("start").open()
    server.write("one", code=CODE)
    server.start()
    server.write("two", code=CODE)
    server.renew()
    Customer(server, "globex", keep=False).get("/job?name=job")
    server.gate("job").await_entered()
    assert [g["state"] for g in server.status()["generations"]] == ["standby", "serving"]
    return server


def before_the_zygote_has_forked(server) -> None:
    with stopped([server.status().generation(1)["zygote"]["pid"]]):
        assert server.cli("rollback", "--wait", "none").exit == 0
        server.wait(lambda s: s.booting, "generation 3 to boot")
        lose_master(server)


def while_its_workers_start(server) -> None:
    server.gate("start").close()
    before = len(server.gate("start").entered())
    assert server.cli("rollback", "--wait", "none").exit == 0
    server.gate("start").await_entered(before + 2)
    lose_master(server)
    server.gate("start").open()


def before_those_it_replaces_have_heard(server) -> None:
    with stopped(workers(server, 2)):
        assert server.cli("rollback", "--wait", "none").exit == 0
        server.wait(lambda s: s.serving == 3, "generation 3 to serve")
        lose_master(server)


RETURNS = [
    before_the_zygote_has_forked,
    while_its_workers_start,
    before_those_it_replaces_have_heard,
]


@pytest.mark.parametrize("step", RETURNS, ids=lambda step: step.__name__)
def test_a_rollback_from_standby_goes_on_under_the_next_master_or_can_be_asked_for_again(returning, step):
    with everybody(returning) as tenants:
        slow: Background = returning.get_later("/gate?name=slow")
        returning.gate("slow").await_entered()
        step(returning)
        tenants.more()
        status = next_master(returning)
        if status.serving == 2:
            outcome = returning.cli("rollback")
            assert outcome.exit == 0, outcome.err
        newest = returning.status().serving
        assert newest >= 3
        tenants.more()
        returning.gate("slow").open()
        assert slow.result().status == 200
        returning.gate("job").open()
        returning.settle(newest)
        assert returning.status().current["source"] == 1
        tenants.more()
    assert {name: seen[-1] for name, seen in tenants.seen.items()} == {"acme": newest, "globex": newest}
    assert not returning.status()["lost"]["count"]
    zygotes = {g["zygote"]["pid"] for g in returning.status()["generations"] if g["zygote"]}
    staff = {w["pid"] for g in returning.status()["generations"] for w in g["workers"]}
    wait_for(lambda: set(returning.processes()) <= {returning.pid, *zygotes, *staff}, "no process of nobody's")
