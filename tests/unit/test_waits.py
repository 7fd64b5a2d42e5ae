"""What a drain waits for besides jobs, as the history tells it."""

from __future__ import annotations

import json

from reuseport.cli.history import rows
from reuseport.core.model import DRAINING, SERVING, Cluster, Generation, Release
from reuseport.master import waits
from reuseport.master.history import FILE, History, shown
from reuseport.master.waits import Waits


class World:
    """A generation that began to drain at 100.0, beside one that serves."""

    def __init__(self) -> None:
        self.requests: set[str] = set()
        self.companions: set[str] = set()
        self.waits = Waits(lambda g: {"requests": self.requests, "companions": self.companions})
        generations = {1: Generation(1, Release(), 2, DRAINING, 100.0), 2: Generation(2, Release(), 2, SERVING, 100.0)}
        self.cluster = Cluster(generations=generations)

    def at(self, now: float, *requests: str, companions: tuple[str, ...] = (), begun: bool = False) -> None:
        self.requests, self.companions = set(requests), set(companions)
        self.waits.look(self.cluster, now, begun=begun)


def test_each_counts_as_long_as_it_was_seen_and_the_last_ones_to_the_end():
    world = World()
    world.at(100.0, "GET /", "GET /report", companions=("1.mail",), begun=True)
    world.at(101.0, "GET /report", companions=("1.mail",))
    world.at(124.0, "GET /report")
    world.at(144.0, "GET /report")
    assert world.waits.ended(1, 144.7 - 100) == {
        "requests": [{"name": "GET /report", "seconds": 44.7}],  # GET / has ended within the first second
        "companions": [{"name": "1.mail", "seconds": 1.0}],
    }
    assert world.waits.ended(1, 0.0) == {"requests": [], "companions": []} == World().waits.ended(7, 3.0)


def test_a_drain_is_looked_at_when_it_begins_and_not_at_each_event():
    world = World()
    world.at(100.2, "GET /slow", begun=True)
    world.at(100.4, "GET /late", begun=True)
    assert world.waits.ended(1, 0.9)["requests"] == [{"name": "GET /slow", "seconds": 0.9}]


def test_what_comes_later_counts_from_then():
    """As where a worker attended to tenants that stayed, and leaves now."""
    world = World()
    world.at(100.0, begun=True)
    world.at(101.0)
    world.at(160.0, "GET /report")
    world.at(170.0, "GET /report")
    assert world.waits.ended(1, 70.5)["requests"] == [{"name": "GET /report", "seconds": 10.5}]


def test_only_the_longest_are_kept(monkeypatch):
    monkeypatch.setattr(waits, "KNOWN", 30)
    world = World()
    world.at(100.0, *(f"GET /{n:03d}" for n in range(99)))
    assert len(world.waits.ended(1, 5.0)["requests"]) == waits.MOST


def test_an_upgrade_goes_on_with_it_and_one_of_an_earlier_version_begins_anew():
    world = World()
    world.at(101.0, "GET /report")
    again = World()
    again.waits.inherit(json.loads(json.dumps(world.waits.estate())))
    assert again.waits.ended(1, 2.0) == world.waits.ended(1, 2.0) != {"requests": [], "companions": []}
    again.waits.inherit({})
    again.waits.forget_all_but({2})
    assert again.waits.ended(1, 2.0)["requests"] == []


def test_the_table_names_what_was_waited_for_longest_and_who_asked():
    release = {"event": "release", "number": 1, "outcome": "serving", "at": 0.0, "seconds": 1.0, "by": "SIGHUP"}
    drained = {"event": "drained", "number": 1, "at": 9.0, "seconds": 50.0}

    def waited(**more) -> str:
        return rows([release, {**drained, **more}])[0][-2]

    requests, companions = [{"name": "GET /report", "seconds": 44.2}], [{"name": "1.mail", "seconds": 24.0}]
    assert waited() == "-"
    assert waited(requests=requests) == "request GET /report (44s)"
    assert waited(companions=companions) == "companion 1.mail (24s)"
    assert waited(requests=requests, companions=companions) == "request GET /report (44s), 1 more"
    jobs = [{"name": "export", "tenant": "acme", "seconds": 70.0}]
    assert waited(requests=requests, jobs=jobs) == "export of acme (1m), 1 more"
    assert rows([release])[0][-1] == "SIGHUP" and rows([{**release, "by": None}])[0][-1] == "-"


def test_a_history_of_an_earlier_version_is_read_and_a_damaged_line_is_not(tmp_path):
    old = {"event": "release", "number": 1, "outcome": "serving", "at": 1.5, "source": 0, "release": {"recipe": {}}}
    drained = {"event": "drained", "number": 1, "at": 2.0, "seconds": 1.0}
    wrong = [{"requests": 1}, {"requests": [{"name": 1}]}, {"companions": [{"name": "x"}]}, {"operator": 7}, {"by": 7}]
    lines = [old, drained, *({**drained, **one} for one in wrong), {**old, "at": -1e11}]
    (tmp_path / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = History(str(tmp_path)).lines
    assert [line["event"] for line in read] == ["release", "drained", "release"]
    assert next(line["time"] for line in shown(read)) == "1970-01-01T00:00:01.500+00:00"
