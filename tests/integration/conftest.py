"""Servers for tests, ended with them; and their logs in the reports of failures."""

from __future__ import annotations

import compileall
import os
from collections.abc import Callable, Iterator

import pytest
from harness import STARTED, Server

import reuseport

spare: list[Server] = []  # the next test's plain server, which boots while this one's test runs


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Makes servers that are not started yet: serve("--timeout", "1", workers=1, …)."""
    made = []

    def make(*options: str, **fields) -> Server:
        made.append(Server(options, **fields))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of two workers that serves version one, from `current`; nobody else's."""
    mine = spare.pop() if spare else Server().launch()
    items = request.session.items
    if any("server" in item.fixturenames for item in items[items.index(request.node) + 1 :]):
        spare.append(Server().launch())
    try:
        mine.settle()
        yield mine
    finally:
        mine.close()


def pytest_sessionstart() -> None:
    # The servers write no bytecode (a release's app.py is rewritten within one second), but start faster with it.
    compileall.compile_dir(os.path.dirname(reuseport.__file__), quiet=2)


def pytest_sessionfinish() -> None:
    for server in list(STARTED):
        server.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.failed:
        for one in STARTED:
            if one not in spare:
                report.sections.append((f"log of the server in {one.root}", one.log_end()))
    return report
