"""Greenlets that wait in a pool end quietly when it goes."""

from __future__ import annotations

import pytest
from greenlet import GreenletExit, getcurrent

from reuseport.worker.pool import Pool


@pytest.mark.parametrize("serving", [False, True])
def test_a_greenlet_ends_quietly_whose_pool_was_emptied_by_the_garbage_collector(serving):
    """The collector clears an object's __dict__ before it ends a greenlet that the object holds."""
    left = []

    def serve(job: list, seat: str) -> None:
        job.append(getcurrent())
        if serving:
            hub.switch()

    hub = getcurrent()
    pool = Pool(hub, serve, take=lambda: "seat", leave=left.append)
    job: list = []
    pool.run(job)
    [one] = job
    assert (one in pool._idle) is not serving
    vars(pool).clear()
    one.throw(GreenletExit)
    assert one.dead
    assert left == ["seat"]
