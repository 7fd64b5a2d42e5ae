"""A worker's drain: it accepts nothing new, passes on what it can, finishes what it has, and leaves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from reuseport import hooks, jobs
from reuseport.ipc.messages import Heir
from reuseport.ipc.scoreboard import JOBS
from reuseport.worker import callbacks

if TYPE_CHECKING:
    from reuseport.worker.main import Worker


class Drain:
    """`heir`: the generation that gets this worker's connections, 0 while there is none. `told`: the master has said
    that it may begin. `last`: nobody accepts after this worker. `attending`: it drains, but stays for those of its
    generation's tenants who are kept there.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.heir = 0
        self.told = self.last = self.attending = False

    def begin(self, last: bool) -> None:
        """Accept nothing new, finish what there is, leave."""
        worker = self._worker
        self.attending = self.attending and not (last or self.told)
        if worker.state == "draining":
            if last and not self.last:
                self.last = True
                self.keep_connections()
            self.leave_if_done()
            return
        worker.state = "draining"
        self.last = last
        if last:
            worker.farewell = True
            worker.engine.close_idle()  # before the queues are emptied: what waits there has a request
        worker.acceptor.stop(take_rest=last)
        worker.link.say("let-go")
        worker.vitals.retitle(draining=True)
        hooks.draining = True
        callbacks.call(hooks.drain_hooks, "a drain hook", worker.log)
        if last:
            worker.engine.drain()
        elif worker.sender.has_heir:
            self._hand_over()
        else:
            worker.engine.drain()
        self.leave_if_done()

    def set_heir(self, message: Heir, fds: list[int]) -> None:
        """The generation that gets this worker's connections; news for as long as this worker lives."""
        worker = self._worker
        if worker.engine is None or not fds:
            for fd in fds:
                os.close(fd)
            return
        if self.last:
            os.close(fds[0])
            return
        self.heir = message.generation
        worker.sender.set_heir(fds[0], message.workers)
        if worker.state == "draining":
            self._hand_over()

    def _hand_over(self) -> None:
        worker = self._worker
        assert worker.engine is not None
        if self.heir == worker.birth.generation:
            # What it gives to its own generation's queue must not come back to itself.
            worker.receiver.stop(worker.loop_set)
        worker.engine.drain_to(worker.sender.give if worker.router is None else self._give_what_may_go)

    def _give_what_may_go(self, connections: list[Any]) -> None:
        worker = self._worker
        assert worker.router is not None
        if going := worker.router.sort_out(connections):
            worker.sender.give(going)

    def give_free(self) -> None:
        """Pass on the connections of tenants that are kept here no longer."""
        worker = self._worker
        assert worker.engine is not None
        if worker.router is not None and not worker.engine.closing and (free := worker.router.no_longer_kept()):
            worker.sender.give(free)

    def keep_connections(self, refused: Any = None) -> None:
        """Nobody takes them: each is answered once more, and closed. At a stop idle ones are closed at once."""
        engine = self._worker.engine
        assert engine is not None
        engine.drain()
        if self.last:
            engine.close_idle()

    def leave_if_done(self) -> None:
        worker = self._worker
        engine = worker.engine
        if self.attending or worker.state != "draining":
            return
        # Jobs that cannot be ended otherwise end with their worker, as soon as it has no other work.
        overdue = jobs.overdue()
        stuck = sum(one.in_request for one in overdue)
        # The client of a stuck job may have gone, so its place among the connections may be that of an upload.
        requests = engine.requests + (len(engine.gathering()) if stuck else 0)
        if requests <= stuck and engine.connections <= stuck and worker.board[JOBS] <= len(overdue):
            # What waits in the queue would be lost with the answer that it was taken; it goes straight on to the heir.
            if self.heir != worker.birth.generation and worker.receiver.empty():
                return
            worker.exit()
