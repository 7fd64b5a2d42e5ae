"""The recipe of docs/frameworks.md for prometheus_client, and the calls of `reuseport.on_child_exit` that it needs."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from harness import environment, wait_for

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frameworks.md"
APP = """
import os
import metrics
import reuseport
from prometheus_client import Counter, Gauge

COUNTED = Counter("counted", "Requests to /count", ["version"])
ALIVE = Gauge("alive", "Workers", multiprocess_mode="livesum")
reuseport.on_start(lambda: reuseport.draining or ALIVE.set(1))

@reuseport.on_child_exit
def told(pid):
    fd = os.open(os.environ["TEST_GATES"] + "/exits", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, f"{pid}\\n".encode())
    os.close(fd)
    raise RuntimeError("of the application")

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/count":
        COUNTED.labels("any").inc()
        body = b"counted"
    elif path == "/job":
        body = str(reuseport.spawn(os.getpid, where="process", name="pid").result(60)).encode()
    else:
        body = metrics.scrape()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def recipe() -> str:
    [code] = [one for one in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if "MultiProc" in one]
    return code


def scraped(server, name: str) -> float:
    text = server.get("/metrics").body.decode()
    return sum(float(line.split()[1]) for line in text.splitlines() if re.match(name + r"[{ ]", line))


def test_counters_go_on_over_releases_and_dead_workers_are_told(serve, tmp_path):
    python = environment("prometheus_client==0.26.0") / "bin" / "python"
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    server = serve("--python", str(python), "--standby", "0", env=variables, workers=2)

    def write(version: str) -> None:
        (server.write(version, whole=APP) / "metrics.py").write_text(recipe())

    write("one")
    server.start()
    gone: set[int] = set()
    for version in ("two", "three"):
        for _ in range(10):
            assert server.get("/count").body == b"counted"
        status = server.status()
        gone |= {*status.pids(), status.zygote}
        write(version)
        server.renew()
    assert scraped(server, "counted_total") == 20
    # Two generations at a time, each of a zygote and two workers; and perhaps a zygote that is the first to count.
    counters = len(list(tmp_path.glob("counter_*.db")))
    assert counters <= 7, sorted(path.name for path in tmp_path.iterdir())

    def alive(count: int) -> None:
        wait_for(lambda: scraped(server, "alive") == count, f"{count} live workers in the metrics")

    def told() -> set[int]:
        path = server.gates / "exits"
        return {int(line) for line in path.read_text().split()} if path.exists() else set()

    def all_are_told() -> None:
        """A worker that is told of an exit, and ends before the call, takes the call with it."""
        wait_for(lambda: gone <= told(), f"each of {gone} was told")

    alive(2)
    gone.add(int(server.get("/job").body))
    all_are_told()
    victim = min(server.settle().pids())
    gone.add(victim)
    os.kill(victim, signal.SIGKILL)
    server.wait(lambda s: s.is_settled() and victim not in s.pids(), "a worker instead of the one that was killed")
    alive(2)
    all_are_told()
    before = server.status().pids()
    server.signal(signal.SIGTTOU)
    gone |= before - server.wait(lambda s: len(s.pids()) == 1 and s.is_settled(), "one worker").pids()
    alive(1)
    all_are_told()
    assert not told() & server.status().pids()
    line = "an exit hook failed: RuntimeError: of the application"
    wait_for(lambda: line in server.log.read_text(), "the error of the function in the log")
