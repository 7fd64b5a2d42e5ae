"""Servers for tests, ended with them; and their logs in the reports of failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness import STARTED, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Makes servers that are not started yet: serve("--timeout", "1", workers=1, …)."""
    before = list(STARTED)

    def make(*options: str, **fields) -> Server:
        return Server(options, **fields)

    yield make
    for server in [one for one in STARTED if one not in before]:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """A server of two workers that serves version one, from `current`."""
    return serve().start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = yield
    if report.failed:
        for one in STARTED:
            report.sections.append((f"log of the server in {one.root}", one.log_end()))
            for name in sorted(one.root.glob("*.log")):
                if name != one.log:
                    report.sections.append((f"{name}", name.read_text(errors="replace")[-4000:]))
    return report
