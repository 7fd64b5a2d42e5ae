"""The servers that `scripts/bench peers` sets side by side: how each is installed, started and ended.

Each is configured as its documentation recommends for production, with keep-alive and without an access log; reuseport
with all its defaults. All run in an environment of their own (`.peers`), which has the checkout too.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from proving.bootstrap import CHECKOUT
from proving.server import ServerTrouble, cpu_seconds, end_with_the_script, proportional_memory, session

ENVIRONMENT = CHECKOUT / ".peers"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "proving.json"
SAMPLE = CHECKOUT / "scripts" / "sample"
START_WITHIN = 20.0  # seconds
STOP_WITHIN = 5.0
DESCRIPTORS = 24_000  # for 10,000 connections and their clients
KEEP_ALIVE = 75  # seconds, wherever it can be said

BJOERN = """
import os, sys, bjoern
from speed import application
bjoern.listen(application, "127.0.0.1", int(sys.argv[1]), reuse_port=True, listen_backlog=1024)
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork():
        break
bjoern.run()
"""


@dataclass(frozen=True)
class Peer:
    """`command` makes its arguments from a port and a number of workers. `package`: on the index, "" for ours."""

    name: str
    package: str
    command: Callable[[int, int], list[str]]
    several: bool = True  # it can have more than one worker


def _module(*words: str) -> list[str]:
    return [str(PYTHON), "-m", *words]


def _gunicorn(port: int, workers: int, *more: str) -> list[str]:
    words = ["speed:application", "-b", f"127.0.0.1:{port}", "-w", str(workers)]
    return _module("gunicorn", *words, "--keep-alive", str(KEEP_ALIVE), "--log-level", "error", *more)


def _granian(port: int, workers: int) -> list[str]:
    words = ["--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    # More connections than its backlog (1,024) would not be served at once.
    words += ["--backlog", "16384"]
    return _module("granian", *words, "--log-level", "error", "--no-access-log", "speed:application")


def _uwsgi(port: int, workers: int) -> list[str]:
    words = ["--http", f"127.0.0.1:{port}", f"--http-keepalive={KEEP_ALIVE}", "--master", "--need-app"]
    words += [
        "--processes",
        str(workers),
        "--enable-threads",
        "--disable-logging",
        "--tcp-nodelay",
        "--die-on-term",
        "--listen",
        "1024",
    ]
    return [str(ENVIRONMENT / "bin" / "uwsgi"), *words, "--wsgi", "speed:application"]


PEERS = [
    Peer(
        "reuseport",
        "",
        lambda port, workers: _module(
            "reuseport", "serve", "speed:application", "-b", f"127.0.0.1:{port}", "-w", str(workers)
        ),
    ),
    Peer(
        "gunicorn gevent",
        "gunicorn[gevent]",  # without its extra the gevent worker lacks `packaging` and does not start
        lambda port, workers: _gunicorn(port, workers, "-k", "gevent", "--worker-connections", "12000"),
    ),
    Peer(
        "gunicorn gthread",
        "gunicorn",
        lambda port, workers: _gunicorn(
            port, workers, "-k", "gthread", "--threads", "4", "--worker-connections", "12000"
        ),
    ),
    Peer("granian", "granian", _granian),
    Peer("bjoern", "bjoern", lambda port, workers: [str(PYTHON), "-c", BJOERN, str(port), str(workers)]),
    Peer("uWSGI", "uWSGI", _uwsgi),
    Peer(
        "waitress",
        "waitress",
        lambda port, workers: _module(
            "waitress", "--host=127.0.0.1", f"--port={port}", "--threads=4", "--connection-limit=12000",
            # Otherwise it ends at 1,024 descriptors, and at bodies of 1 GB.
            "--asyncore-use-poll", "--max-request-body-size=4294967296", "speed:application",
        ),
        several=False,
    ),
]  # fmt: skip
BY_NAME = {peer.name: peer for peer in PEERS}


# --- their environment


def install(peers: list[Peer], tell: Callable[[str], None]) -> list[Peer]:
    """Those of the peers that can be run, installed; a line for each that cannot."""
    stamp = {"setup.cfg": hashlib.sha256((CHECKOUT / "setup.cfg").read_bytes()).hexdigest(), "python": sys.version}
    try:
        made = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        made = {"packages": []}
    if {**made, "packages": []} != {**stamp, "packages": []}:
        tell("making the environment of the peers in .peers (once)")
        _must([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)])
        _must(_pip("--editable", str(CHECKOUT), "flask"))
        made = {**stamp, "packages": []}
    able = []
    for peer in peers:
        if peer.package and peer.package not in made["packages"]:
            tell(f"installing {peer.package}")
            done = subprocess.run(_pip(peer.package), capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line.lower()]
                tell(f"{peer.name} is left out, for it cannot be installed: {(lines or ['pip failed'])[-1].strip()}")
                continue
            made["packages"].append(peer.package)
        able.append(peer)
    STAMP.write_text(json.dumps(made))
    return able


def version(package: str) -> str:
    """Of an installed package; empty if it is not."""
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    done = subprocess.run([str(PYTHON), "-c", code, package], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _pip(*words: str) -> list[str]:
    return _module("pip", "install", "--quiet", "--disable-pip-version-check", *words)


def _must(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ServerTrouble(f"{' '.join(command[:4])} ... failed: {lines[-1] if lines else done.returncode}")


# --- running one


class Running:
    """A peer that serves on `port`, its processes bound to `cores`; every one of them ends with the context."""

    def __init__(self, peer: Peer, *, workers: int = 1, cores: set[int], env: dict[str, str] | None = None) -> None:
        self.peer = peer
        self._files = tempfile.TemporaryDirectory(prefix="peer-")
        self.port = free_port()
        root = Path(self._files.name)
        (root / "run").mkdir(mode=0o700)
        self._log = root / "log"
        self._cores = cores
        command = peer.command(self.port, workers)
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WEB_CONCURRENCY")}
        environment |= {"PYTHONPATH": str(SAMPLE), "REUSEPORT_RUN_DIR": str(root / "run"), **(env or {})}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=root,
                start_new_session=True, preexec_fn=self._begin,
            )  # fmt: skip

    def _begin(self) -> None:
        end_with_the_script()
        os.sched_setaffinity(0, self._cores)
        raise_descriptors()

    def __enter__(self) -> Running:
        try:
            self._await_start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerTrouble(f"{self.peer.name} ended with {self.process.returncode}: {self._said()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.02)
        raise ServerTrouble(f"{self.peer.name} did not answer within {START_WITHIN:g} s: {self._said()}")

    def _said(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"

    def pids(self) -> list[int]:
        return list(session(self.process.pid))

    def cpu(self) -> float:
        """Seconds of CPU, so far, of all its processes."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def memory(self) -> int:
        """Bytes of PSS of all its processes."""
        return sum(proportional_memory(pid) for pid in self.pids())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_WITHIN)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._files.cleanup()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def raise_descriptors() -> None:
    """Allow this process many open files, as many as it may have if that is fewer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
