"""A generation whose files change in place: an import in a function would read another version's code."""

from __future__ import annotations

import os
import signal

import pytest
from harness import Server, wait_for

JOB = """
def application(environ, start_response, plain=application):
    if environ["PATH_INFO"] == "/job":
        import os
        import reuseport
        basic.extra["job"] = reuseport.spawn(os.getpid, name="one", where="process").result(timeout=60)
    return plain(environ, start_response)
"""


def write(server: Server, version: str, code: str = "") -> None:
    """A release with a file that no import has read."""
    (server.write(version, code) / "late.py").write_text(f"VERSION = {version!r}\n")


def change(server: Server, version: str) -> str:
    path = server.releases / version / "late.py"
    path.write_text("VERSION = 'changed in place'\n")
    return f"but {path} has changed since it was loaded"


def told(server: Server, text: str) -> bool:
    return text in server.log.read_text()


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_a_worker_that_is_forked_later_is_told_of(serve, preload):
    server = serve("--preload", preload)
    write(server, "one")
    server.start()
    text = change(server, "one")
    assert not told(server, text)
    os.kill(server.status().workers("serving")[0]["pid"], signal.SIGKILL)
    wait_for(lambda: told(server, text), "the warning")


def test_the_process_of_a_job_is_told_of(serve):
    server = serve(workers=1)
    write(server, "one", JOB)
    server.start()
    # A look costs, so jobs that come close together share one.
    text = change(server, "one")
    wait_for(lambda: server.get("/job").json["job"] and told(server, text), "the warning")


def test_a_generation_that_drains_on_is_told_of(serve):
    server = serve(workers=1)
    write(server, "one")
    server.start()
    request = server.get_later("/gate?name=long")
    server.gate("long").await_entered()
    text = change(server, "one")
    write(server, "two")
    assert server.release().exit == 0
    wait_for(lambda: told(server, text), "the warning")
    assert server.status().draining == [1]
    server.gate("long").open()
    assert request.result().version == "one"
    server.settle(2)
    assert server.log.read_text().count("has changed since it was loaded") == 1


def test_a_rollback_to_a_version_whose_files_have_changed_is_told_of(serve):
    server = serve(workers=1)
    write(server, "one")
    server.start()
    write(server, "two")
    server.renew()
    text = change(server, "one")
    assert server.cli("rollback").exit == 0
    assert server.settle(3).serving == 3
    assert server.get().version == "one"
    assert told(server, text)
