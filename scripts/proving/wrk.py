"""wrk, bound to its core, with a script that says what is asked and reports figures instead of prose.

It is a closed loop: each connection asks again when it was answered, so a server that stalls is asked less meanwhile,
and percentiles under it flatter the stalls. `paced.py` has the open loop.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from proving.server import ServerTrouble

MARK = "figures: "
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  local said = {
    requests = summary.requests, micros = summary.duration,
    p50 = latency:percentile(50), p99 = latency:percentile(99), worst = latency.max,
    status = e.status, broken = e.connect + e.read + e.write + e.timeout,
  }
  local parts = {}
  for name, figure in pairs(said) do parts[#parts + 1] = string.format('"%s": %d', name, figure) end
  print("figures: {" .. table.concat(parts, ", ") .. "}")
end
"""
PIPELINE = """
init = function(args)
  local all = {}
  for i = 1, %d do all[i] = wrk.format() end
  pipelined = table.concat(all)
end
request = function() return pipelined end
"""

BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://shop.example.com/customers/1204/orders",
    "Cookie": "session=3f0c8d1e5a7b49e2; csrftoken=b1946ac92492d2347c6235b4d2611184; theme=dark",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Cache-Control": "max-age=0",
}


@dataclass(frozen=True)
class Case:
    """What is asked: a path, with these fields, a body of `post` bytes, `pipelined` requests in one piece."""

    name: str
    title: str
    path: str = "/"
    fields: tuple[tuple[str, str], ...] = ()
    post: int = 0
    pipelined: int = 1
    connections: int = 64

    def script(self) -> str:
        lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in self.fields]
        if self.post:
            lines += ['wrk.method = "POST"', f'wrk.body = string.rep("x", {self.post})']
        if self.pipelined > 1:
            lines.append(PIPELINE % self.pipelined)
        return "\n".join([*lines, REPORT])


@dataclass(frozen=True)
class Run:
    """One run's figures: latencies in seconds; `failed`: answers with an error status; `broken`: connections."""

    requests: int
    rate: float
    p50: float
    p99: float
    worst: float
    failed: int
    broken: int


def find() -> str:
    path = shutil.which("wrk")
    if path is None:
        raise ServerTrouble("wrk is not installed (on Debian and Ubuntu: apt install wrk), and it drives the servers")
    return path


def drive(case: Case, port: int, *, seconds: float, cores: set[int]) -> Run:
    """Drive the server on `port` for so long, at least a second (wrk knows whole ones only)."""
    with tempfile.TemporaryDirectory(prefix="wrk-") as directory:
        script = Path(directory) / "case.lua"
        script.write_text(case.script())
        whole = max(1, round(seconds))
        words = [find(), "-t1", f"-c{case.connections}", f"-d{whole}s", "--timeout", "10s", "-s", str(script)]
        done = subprocess.run(
            [*words, f"http://127.0.0.1:{port}{case.path}"],
            capture_output=True,
            text=True,
            timeout=whole + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            said = json.loads(line.removeprefix(MARK))
            rate = said["requests"] / (said["micros"] / 1e6)
            p50, p99, worst = (said[name] / 1e6 for name in ("p50", "p99", "worst"))
            return Run(said["requests"], rate, p50, p99, worst, said["status"], said["broken"])
    raise ServerTrouble(f"wrk said nothing that could be read: {(done.stderr or done.stdout).strip()[-200:]}")


CASES = [
    Case("wrk", "hello world, wrk's own headers"),
    Case("browser", "hello world, ten browser headers", fields=tuple(BROWSER.items())),
    Case("json", "JSON of 10 kB", "/json"),
    Case("body", "body of 100 kB", "/body"),
    Case("post", "POST of 10 kB", "/post", post=10_000),
    Case("flask", "a Flask view", "/flask", fields=tuple(BROWSER.items())),
    Case("connection", "a connection per request", fields=(("Connection", "close"),)),
    Case("pipelined", "64 pipelined", pipelined=64, connections=16),
]
BY_NAME = {case.name: case for case in CASES}
HEADLINE = BY_NAME["browser"]
