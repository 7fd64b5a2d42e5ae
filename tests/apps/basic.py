"""What the integration tests serve: every answer is JSON, and says which code and which process gave it.

A release of the tests is a directory with an `app.py` that calls `make(VERSION)`. A *gate* is a file that the test
creates when something may go on; what waits at one says so by a file of its own. So no test has to guess how long
anything takes. A gate also opens when the directory of all gates has gone, at a test's end.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs

GATES = Path(os.environ.get("TEST_GATES", "/nonexistent"))
IMPORT_PID = os.getpid()

kept: list[bytearray] = []
extra: dict = {}  # what a release's own code adds to every answer


def is_open(name: str) -> bool:
    return (GATES / f"{name}.open").exists() or not GATES.exists()


def enter(name: str) -> None:
    """Tell the test that this process stands at the gate."""
    (GATES / f"{name}.{os.getpid()}.{time.monotonic_ns()}.entered").touch()


def pass_gate(name: str) -> None:
    """Wait at the gate, in gevent's loop: other greenlets run meanwhile."""
    enter(name)
    while not is_open(name):
        time.sleep(0.01)


def stream(version: str, name: str):
    """Three pieces, the second one behind a gate."""
    yield f"{version} begins\n".encode()
    pass_gate(name)
    yield f"{version} goes on\n".encode()
    yield f"{version} ends\n".encode()


def burn(name: str) -> None:
    """Compute until the gate opens: the loop of this process does not turn."""
    enter(name)
    while not is_open(name):
        sum(range(1000))


def grow(megabytes: int) -> None:
    kept.append(bytearray(b"x") * (megabytes << 20))


def orphan(fifo: str) -> int:
    """Start a process whose parent ends at once, and which itself ends when the pipe is written to."""
    # Its standard streams are not ours: whoever reads ours to their end must not wait for it.
    script = 'sh -c "read line < \\"$1\\"" sh "$1" >/dev/null 2>&1 & echo $!'
    return int(subprocess.check_output(["sh", "-c", script, "sh", fifo]))


def facts() -> dict:
    before = os.umask(0)
    os.umask(before)
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "umask": before,
        "cwd": os.getcwd(),
        "prefix": sys.prefix,
        "argv": sys.argv,
        "environment": dict(os.environ),
    }


def make(version: str):
    """The application of one version."""

    def application(environ, start_response):
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        path = environ["PATH_INFO"]
        status, answer = "200 OK", {"version": version, "pid": os.getpid(), "import_pid": IMPORT_PID, **extra}
        if path == "/gate":
            pass_gate(query["name"])
        elif path == "/burn":
            burn(query["name"])
        elif path == "/upload":
            answer["length"] = len(environ["wsgi.input"].read())
        elif path == "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return stream(version, query["name"])
        elif path == "/hints":
            environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload; as=style")])
        elif path == "/facts":
            answer["facts"] = facts()
        elif path == "/grow":
            grow(int(query["megabytes"]))
        elif path == "/orphan":
            answer["orphan"] = orphan(query["fifo"])
        elif path == "/collect":
            gc.collect()
        elif path == "/die":
            os._exit(int(query.get("status", "1")))
        elif path == "/warm" and is_open("cold"):
            status = "500 Internal Server Error"
        body = json.dumps(answer).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return application
