"""Which tenants workers have seen: what a worker tells, and what an operator is told who names another one."""

from __future__ import annotations

import json

import pytest

from reuseport.core.model import (
    ACCEPTING,
    FIRST_JOB,
    NOWHERE,
    SERVING,
    WORKING,
    Cluster,
    Generation,
    Key,
    Release,
    Worker,
)
from reuseport.ipc.channel import PACKET
from reuseport.ipc.messages import Seen
from reuseport.master import seen as master
from reuseport.worker import seen


class FakeTimer:
    def __init__(self) -> None:
        self.call = None

    def start(self, call) -> None:
        self.call = call

    def close(self) -> None:
        self.call = None

    stop = close


class FakeLoop:
    def __init__(self) -> None:
        self.timers: list[FakeTimer] = []

    def timer(self, seconds):
        self.timers.append(FakeTimer())
        return self.timers[-1]

    def turn(self) -> None:
        for timer in list(self.timers):
            if timer.call is not None:
                timer.call()


class Told:
    """A worker's SeenTenants, and what it has said."""

    def __init__(self) -> None:
        self.loop, self.said, self.room = FakeLoop(), [], True
        self.seen = seen.SeenTenants(self.loop, lambda kind, **fields: self.said.append(fields), lambda: self.room)

    @property
    def names(self) -> list[str]:
        return [name for one in self.said for name in one["tenants"]]


@pytest.fixture
def told() -> Told:
    return Told()


def test_the_first_name_is_told_at_once_and_the_next_ones_together(told):
    told.seen.note("acme")
    assert told.names == ["acme"]
    told.seen.note("globex")
    told.seen.note("initech")
    assert told.names == ["acme"]
    told.loop.turn()
    assert told.said[1:] == [{"tenants": ["globex", "initech"], "more": False}]


def test_what_has_no_room_is_told_when_there_is_some(told):
    told.room = False
    told.seen.note("acme")
    assert told.said == [] and not told.seen.tell()
    told.room = True
    assert told.seen.tell() and told.names == ["acme"] and told.seen.tell() and len(told.said) == 1


def test_another_master_is_told_everything_and_that_this_worker_tells(told):
    told.seen.again()
    assert told.said == [{"tenants": [], "more": False}]
    told.seen.note("acme")
    told.loop.turn()
    told.said.clear()
    told.seen.again()
    assert told.names == ["acme"]


def test_a_client_that_makes_up_names_fills_no_memory_and_is_told_once(told, monkeypatch):
    monkeypatch.setattr(seen, "MOST", 3)
    for number in range(9):
        told.seen.note(f"t{number}")
        told.loop.turn()
    assert told.names == ["t0", "t1", "t2"] == sorted(told.seen.names)
    assert [one["more"] for one in told.said].count(True) == 1


def test_the_longest_names_fit_into_messages(told):
    names = ["\U0001f600" * 199 + chr(0x100 + n) for n in range(50)]
    told.seen.names.update(names)
    told.seen.again()
    assert sorted(told.names) == sorted(names)
    for one in told.said:
        assert len(json.dumps({"v": 1, "type": "seen", **one})) < PACKET
        assert Seen.parse(one).tenants == tuple(one["tenants"])


def cluster(*workers: int, **more: Worker) -> Cluster:
    told = {number: Worker(number - 1, ACCEPTING) for number in workers}
    job = {FIRST_JOB + 9: Worker(NOWHERE, WORKING)}
    return Cluster(generations={1: Generation(1, Release(), 2, SERVING, workers={**told, **job})})


def known(*tenants: str, workers: tuple[int, ...] = (1, 2), more: bool = False) -> master.SeenTenants:
    seen = master.SeenTenants()
    for number in workers:
        seen.told(Key(1, number), tenants, more)
    return seen


def test_a_tenant_that_was_never_seen_is_told_with_names_like_it():
    seen = known("acme", "Acme-Labs", "globex")
    assert seen.hints(["acme"], cluster(1, 2)) == []
    [hint] = seen.hints(["acne"], cluster(1, 2))
    assert "no request and no job of tenant acne" in hint and "similar names: acme" in hint and "globex" not in hint
    assert "similar names: acme" in seen.hints(["ACME"], cluster(1, 2))[0]  # another tenant than acme
    assert seen.hints(["nosuch"], cluster(1, 2)) == ["no request and no job of tenant nosuch has been seen so far"]
    assert len(seen.hints([f"x{n}" for n in range(9)], cluster(1, 2))) == master.NAMED + 1


def test_there_is_a_hint_before_the_first_request():
    assert len(known().hints(["acme"], cluster(1, 2))) == 1


def test_nothing_is_said_where_it_is_not_certain(monkeypatch):
    assert known("acme", more=True).hints(["acne"], cluster(1, 2)) == []
    assert known("acme", workers=(1,)).hints(["acne"], cluster(1, 2)) == []  # worker 2 is of an earlier version
    seen = known()
    seen.worker_ends(Key(1, 2))
    assert seen.hints(["acne"], cluster(1)) and not seen.hints(["acne"], cluster(1, 2))
    assert master.SeenTenants(more=True).hints(["acne"], Cluster()) == []  # workers that have left told another master
    monkeypatch.setattr(master, "MOST", 2)
    assert known("a", "b", "c").hints(["acne"], cluster(1, 2)) == []


def test_workers_that_have_ended_take_no_memory():
    seen = master.SeenTenants()
    for number in range(1, 1000):
        seen.told(Key(1, number), ("acme",), False)
        seen.worker_ends(Key(1, number - 1))
    assert seen.estate()["telling"] == [(1, 999)]


def test_it_is_known_behind_an_upgrade_also_of_a_version_that_did_not_know():
    again = master.SeenTenants()
    again.inherit(json.loads(json.dumps(known("acme").estate())))
    assert again.hints(["acne", "acme"], cluster(1, 2)) == known("acme").hints(["acne"], cluster(1, 2)) != []
    again = master.SeenTenants()
    again.inherit({})
    assert again.hints(["acne"], cluster(1, 2)) == []


def test_a_name_that_takes_long_to_compare_is_not_compared():
    assert master.similar("x" * 200, ["x" * 199]) == [] and master.similar("x" * 9, ["x" * 199]) == []
