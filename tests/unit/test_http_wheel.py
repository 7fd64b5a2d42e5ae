"""Deadlines: none early, none forgotten, none for what moved on."""

from __future__ import annotations

import time

import gevent
import pytest
from http_harness import wait_for

from reuseport.worker.wheel import NEVER, TICK, Wheel


class Item:
    def __init__(self, seconds: float = 0) -> None:
        self.tick = 0
        self.deadline = time.monotonic() + seconds
        self.expired: list[float] = []

    def expire(self) -> None:
        self.expired.append(time.monotonic() - self.deadline)


@pytest.fixture
def wheel():
    return Wheel(gevent.get_hub().loop)


def test_not_early_and_hardly_late(wheel):
    items = [Item(seconds) for seconds in (0.6, 0.1, 0.3, 0.3, 0.0)]
    for item in items:
        wheel.watch(item)
    wait_for(lambda: all(item.expired for item in items))
    assert all(len(item.expired) == 1 and item.expired[0] >= 0 for item in items)
    assert items[0].expired[0] < TICK + 1  # the machine may be busy


def test_one_that_fails_takes_nobody_along(wheel, monkeypatch):
    raised = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda context, kind, error, tb: raised.append(kind))
    items = [Item() for _ in range(5)]
    items[2].expire = lambda: 1 / 0
    for item in items:
        wheel.watch(item)
    wait_for(lambda: sum(len(item.expired) for item in items) == 4)
    assert raised == [ZeroDivisionError]


def test_a_deadline_that_moves(wheel):
    later, sooner, never, forgotten = Item(0.1), Item(30), Item(0.1), Item(0.1)
    for item in (later, sooner, never, forgotten):
        wheel.watch(item)
    later.deadline += 0.6
    sooner.deadline -= 29.9
    wheel.watch(sooner)
    never.deadline = NEVER
    wheel.forget(forgotten)
    wheel.forget(forgotten)
    wait_for(lambda: sooner.expired)
    assert not later.expired
    wait_for(lambda: later.expired)
    assert (never.expired, forgotten.expired) == ([], [])
    never.deadline = time.monotonic()
    wheel.watch(never)
    wait_for(lambda: never.expired)


def test_what_expires_may_watch_and_forget(wheel):
    one, two, three = Item(0.1), Item(0.1), Item(30)

    def expire():
        two.deadline = NEVER
        wheel.forget(two)
        three.deadline = time.monotonic()
        wheel.watch(three)

    one.expire = expire
    two.expire = expire
    wheel.watch(one)
    wheel.watch(two)
    wheel.watch(three)
    wait_for(lambda: three.expired)
    assert not two.expired
