"""What the master looks at for `status`, and how long."""

from __future__ import annotations

import os

import pytest

from reuseport.core.model import Key
from reuseport.master import memory
from reuseport.master.memory import AGAIN, AGAIN_IN_A_BOOT, Looks
from reuseport.master.processes import Process

NOT_SEEN = {"rss": 0, "pss": 0}


@pytest.fixture
def clock(monkeypatch):
    """The time, which a look takes 30 ms of; what is seen grows with it."""

    class Clock:
        now = 1000.0
        seen = 0

        def monotonic(self) -> float:
            return self.now

        def proportional(self, pid: int) -> int:
            self.now += 0.03
            self.seen += 1
            return self.seen

    clock = Clock()
    monkeypatch.setattr(memory, "time", clock)
    monkeypatch.setattr(memory.memory, "proportional", clock.proportional)
    monkeypatch.setattr(memory.memory, "resident", lambda pid: 9)
    return clock


def test_a_question_looks_at_few_and_the_next_one_at_others(clock) -> None:
    first, second = (Process(Key(1, number), os.getpid()) for number in (1, 2))
    looks = Looks()
    assert looks.at(first) == {"rss": 9, "pss": 1}
    assert looks.at(second) == NOT_SEEN, "nobody is heard while the master looks"
    looks = Looks()
    assert looks.at(first)["pss"] == 1
    assert looks.at(second)["pss"] == 2
    clock.now += AGAIN
    assert Looks().at(first)["pss"] == 3


def test_a_zygote_that_has_loaded_is_looked_at_again_at_once(clock) -> None:
    zygote = Process(Key(1, 0), os.getpid())
    assert Looks().at(zygote, boots=True)["pss"] == 1
    assert Looks().at(zygote, boots=True)["pss"] == 1
    clock.now += AGAIN_IN_A_BOOT
    assert Looks().at(zygote, boots=True)["pss"] == 2
    assert Looks().at(zygote)["pss"] == 3, "the import has made it grow"
    assert Looks().at(zygote)["pss"] == 3


def test_who_is_gone_or_another_users_has_none(monkeypatch) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(memory.memory, "proportional", refuse)
    seen = Looks().at(Process(Key(1, 1), os.getpid()))
    assert seen["rss"] > 1 << 20 and seen["pss"] == 0
    assert Looks().at(Process(Key(1, 2))) == NOT_SEEN
