"""One worker that accepts is told of each process that has ended, as soon as there is one."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from reuseport.core.model import Key
from reuseport.ipc.messages import EXITS
from reuseport.master.exits import Exits
from reuseport.worker import callbacks


def cluster(*accepting: int) -> Any:
    return SimpleNamespace(serving=SimpleNamespace(number=3, having=lambda state: dict.fromkeys(accepting)))


def test_one_worker_hears_of_them_once():
    told: list[tuple[Key, list[int]]] = []
    gone = {1}

    def send(key: Key, kind: str, pids: list[int]) -> bool:
        assert kind == "exited"
        if key.number not in gone:
            told.append((key, pids))
        return key.number not in gone

    exits = Exits(SimpleNamespace(send=send))
    exits.add(11)
    exits.add(0)  # it was never forked
    exits.look(SimpleNamespace(serving=None))
    exits.look(cluster())
    exits.look(cluster(1))  # its channel has just ended
    assert told == []
    exits.add(12)
    exits.look(cluster(1, 2, 3))
    exits.look(cluster(2))
    assert told == [(Key(3, 2), [11, 12])]
    for pid in range(1, EXITS + 10):
        exits.add(pid)
    after = Exits(SimpleNamespace(send=send))
    after.inherit(exits.estate(lambda fd: fd))
    after.look(cluster(2))
    assert told[-1][1] == list(range(10, EXITS + 10))


def test_a_call_that_gets_no_thread_is_logged(monkeypatch):
    def start(function: object, arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(callbacks._thread, "start_new_thread", start)
    errors: list[str] = []
    callbacks.call([print, print], "an exit hook", lambda level, text: errors.append(text), [(1,)])
    assert errors == ["an exit hook was not called: can't start new thread"] * 2


def test_a_function_that_raises_is_called_for_the_others():
    called, errors, done = [], [], threading.Event()

    def function(pid: int) -> None:
        called.append(pid)
        if pid == 1:
            raise ValueError("one")
        done.set()

    callbacks.call([function], "an exit hook", lambda level, text: errors.append(text), [(1,), (2,)])
    assert done.wait(30)
    assert called == [1, 2]
    assert errors == ["an exit hook failed: ValueError: one"]
