"""Clients that do everything to a connection which HTTP allows, while the server releases; see adversary.py."""

from __future__ import annotations

import pytest
from adversary import CODE, run, with_tls

OPTIONS = {
    "plain": (),
    "threads": ("--threads", "3"),
    "proxy": ("--proxy-protocol", "auto"),
    "tls": (),
    "proxy-tls-threads": ("--proxy-protocol", "auto", "--threads", "3"),
}


ONE_BY_ONE = [
    pytest.param(kind, marks=[] if kind in ("plain", "proxy-tls-threads") else pytest.mark.more) for kind in OPTIONS
]


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_every_answer_is_the_right_one(serve, kind):
    server = serve(*OPTIONS[kind])
    context = with_tls(server) if "tls" in kind else None
    server.write("one", whole=CODE)
    server.start()
    account = run(server, 6.0, seed=1, clients=8, release_every=1.5, proxy="proxy" in kind, tls=context)
    assert account.faults == []
    assert account.counts["answers"] > 100
