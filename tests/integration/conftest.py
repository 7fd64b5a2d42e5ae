"""Servers for tests, ended with them; and their logs in the reports of failures."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import STARTED, Server, make_venv

import reuseport

spare: list[Server] = []  # the next test's plain server, which boots while this one's test runs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the variations of a test that repeat most of another one, unless somebody wants it more thorough."""
    if int(os.environ.get("REUSEPORT_EXAMPLES", "1")) > 1:
        return
    left_out = [item for item in items if item.get_closest_marker("more")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


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


@pytest.fixture
def interpreter_for_all() -> Iterator[str]:
    """An interpreter that another user may run, with reuseport in it: the tests' own may lie in root's home."""
    version = f"python3.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory(prefix="ru-venv-", dir="/tmp") as name:
        os.chmod(name, 0o755)
        for number, candidate in enumerate((sys._base_executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}")):
            if os.path.exists(candidate):
                python = make_venv(Path(name) / str(number), candidate)
                try:
                    subprocess.run([python, "-c", "import reuseport.zygote"], user="nobody", check=True)
                except (subprocess.CalledProcessError, PermissionError):
                    continue
                yield python
                return
        pytest.skip("no interpreter that the user nobody may run")


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
