"""A pause that comes again lasts as long as the first one."""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent.event import Event

from reuseport.worker.alarm import Alarm


class Timer:
    """A one-shot timer as libev has it: started again, it waits for what was left."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self.callback: Callable[[], None] | None = None

    def start(self, callback: Callable[[], None]) -> None:
        self.callback = callback

    def stop(self) -> None:
        self.callback = None

    close = stop

    def fire(self) -> float:
        """Call after the time; how long that was."""
        waited, self.left = self.left, 0.0
        callback, self.callback = self.callback, None
        assert callback is not None
        callback()
        return waited


class Loop:
    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def timer(self, seconds: float) -> Timer:
        self.timers.append(Timer(seconds))
        return self.timers[-1]


def test_each_time_that_it_is_set_it_waits_anew():
    loop, calls = Loop(), []
    alarm = Alarm(loop, 0.1, lambda: calls.append(alarm.active))
    for _ in range(3):
        alarm.set()
        alarm.set()
        assert alarm.active
        assert loop.timers[-1].fire() == 0.1
    assert calls == [False] * 3 and len(loop.timers) == 3
    alarm.set(5)
    assert loop.timers[-1].fire() == 5


def test_an_alarm_that_is_cleared_does_not_call_and_can_be_set_again():
    loop, calls = Loop(), []
    alarm = Alarm(loop, 0.1, lambda: calls.append(1))
    alarm.set()
    alarm.clear()
    assert not alarm.active and loop.timers[0].callback is None
    alarm.set()
    assert loop.timers[-1].fire() == 0.1 and calls == [1]


def test_it_can_be_set_by_its_own_call_in_gevents_loop():
    done, calls = Event(), []

    def call() -> None:
        calls.append(1)
        alarm.set() if len(calls) < 3 else done.set()

    alarm = Alarm(gevent.get_hub().loop, 0.001, call)
    alarm.set()
    assert done.wait(20) and calls == [1] * 3
