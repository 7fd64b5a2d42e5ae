"""Greenlets that serve one request after another.

Since Python 3.11 a new greenlet maps and unmaps its own frame stack, which costs four times as much as a switch into
one that waits. So greenlets are pooled. But a request must not find anything of an earlier one, and nobody who still
knows the earlier one's greenlet (a Timeout that was never closed, a late kill(), a thread ident kept in some dict) may
reach the later one. A greenlet is therefore used again only if nobody can tell:

- each request runs in a context (contextvars) of its own;
- greenlet-locals and `threading.local` values live in the greenlet's `__dict__` and hang on weak references to it, so
  a greenlet that has either ends with its request, and takes them along;
- any other reference to it, such as a running timer's, shows in its reference count when it is taken again.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount

from greenlet import getcurrent, greenlet

from .interrupts import is_server

IDLE = 128  # greenlets kept for later: more than run at once on most days

_switch = greenlet.switch


def _nothing(*seat: Any) -> None:
    """What a pool takes and leaves whose greenlets share nothing."""


class Pool:
    """Runs `serve(job, seat)` in a greenlet under the hub, one per call of `run`.

    `seat` is what the greenlet gets from `take()` when it begins; it gives that back by `leave(seat)` when it ends.
    """

    def __init__(
        self,
        hub: greenlet,
        serve: Callable[[Any, Any], None],
        take: Callable[[], Any] = _nothing,
        leave: Callable[[Any], None] = _nothing,
    ) -> None:
        self._hub = hub
        self._serve = serve
        self._take = take
        self._leave = leave
        self._idle: list[greenlet] = []
        self._first: Any = None
        self._references = self._count_references()

    @staticmethod
    def _count_references() -> int:
        """The reference count that `run` sees of a greenlet that nobody else knows; it differs between Pythons."""
        idle = [greenlet(print)]
        candidate = idle.pop()
        return getrefcount(candidate)

    def run(self, job: Any) -> None:
        """Serve the job. Called in the hub; returns when the job is done or waits for something."""
        idle = self._idle
        while idle:
            candidate = idle.pop()
            if getrefcount(candidate) == self._references and not getweakrefcount(candidate):
                candidate.switch(job)
                return
            # Somebody knows it. It ends when they forget it, or by what they throw into it.
        self._first = job
        greenlet(self._main, self._hub).switch()

    @is_server
    def _main(self) -> None:
        # The garbage collector can empty the pool before it ends the greenlets, so nothing is looked up there then.
        leave = self._leave
        seat = self._take()
        try:
            self._work(seat)
        finally:
            leave(seat)

    def _work(self, seat: Any) -> None:
        # A greenlet keeps the arguments that it was started with while it lives: so the first job comes otherwise.
        job, self._first = self._first, None
        serve, idle, hub = self._serve, self._idle, self._hub
        while True:
            serve(job, seat)
            job = None
            me = getcurrent()
            me.gr_context = None
            if me.__dict__ or getweakrefcount(me) or len(idle) >= IDLE:
                return
            idle.append(me)
            del me  # a greenlet whose own frame holds it would never end
            try:
                job = _switch(hub)
            except BaseException:  # noqa: BLE001 - thrown by whoever kept a reference: it was meant for an earlier job
                me = getcurrent()
                if me in idle:
                    idle.remove(me)
                return
