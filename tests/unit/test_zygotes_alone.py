"""A zygote that no master has told what to load, and whose master is gone, ends. With a recipe it waits."""

from __future__ import annotations

import pytest

from reuseport import zygote as module
from reuseport.worker.door import Door
from reuseport.zygote import UNBOOTED, Zygote


class Ended(Exception):
    pass


class Time:
    """Sleeping takes no time here."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class NoMaster:
    """A run directory without a master until `until`."""

    def __init__(self, time: Time, until: float) -> None:
        self.time = time
        self.until = until

    def reach_master(self):
        if self.time.now < self.until:
            raise ConnectionRefusedError
        raise Ended("a master is there")


@pytest.fixture
def make(monkeypatch):
    def make(until: float, recipe: dict) -> tuple[Zygote, Time]:
        def quit_with(status: int) -> None:
            raise Ended(f"status {status}")

        time = Time()
        monkeypatch.setattr(module, "time", time)
        monkeypatch.setattr(module, "sleep", time.sleep)
        monkeypatch.setattr(module, "quit_with", quit_with)
        zygote = Zygote.__new__(Zygote)
        zygote.run_dir = NoMaster(time, until)
        zygote.recipe = recipe
        zygote.settings = None
        zygote.loaded = False
        zygote.masterless = True
        zygote.door = Door()
        monkeypatch.setattr(zygote.door, "wait", lambda fd, seconds: time.sleep(seconds))
        zygote.orphaned = time.now
        return zygote, time

    return make


def test_before_its_first_hello(make):
    zygote, time = make(float("inf"), {})
    with pytest.raises(Ended, match="status 0"):
        zygote._say_hello()
    assert UNBOOTED <= time.now - 1000.0 < UNBOOTED + 1


def test_a_master_that_comes_in_time_is_met(make):
    zygote, _ = make(1000.0 + UNBOOTED - 1, {})
    with pytest.raises(Ended, match="a master is there"):
        zygote._say_hello()


def test_between_its_hello_and_its_recipe(make):
    zygote, time = make(float("inf"), {})
    with pytest.raises(Ended, match="status 0"):
        while True:
            zygote._listen()
    assert UNBOOTED <= time.now - 1000.0 < UNBOOTED + 1


def test_with_a_recipe_it_waits_for_the_next_master(make):
    zygote, time = make(1000.0 + 100 * UNBOOTED, {"app": "x"})
    with pytest.raises(Ended, match="a master is there"):
        while True:
            zygote._listen()
    assert time.now >= 1000.0 + 100 * UNBOOTED
