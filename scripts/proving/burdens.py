"""What is not requests per second: large bodies, idle connections, a fixed rate, slow clients, the price of care."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from proving.peers import PYTHON, Peer, Running, free_port, raise_descriptors
from proving.server import ServerTrouble, cpu_seconds, end_with_the_script
from proving.speed import CLIENT_CORES, SERVER_CORES
from proving.wrk import HEADLINE, drive

HERE = Path(__file__).resolve().parent
GIGABYTE = 1 << 30
IDLE, MORE_IDLE = 4_000, 10_000
IDLE_FOR = 3.0  # seconds
PACE = 5_000  # requests per second, of all that are paced
SLOW = 2_000

Tell = Callable[[str], None]
Table = tuple[str, list[str], dict[str, list[str]]]  # a title, columns, and a row for each server


def each(peers: list[Peer], tell: Tell, measure: Callable[[Peer], list[str]], columns: int) -> dict[str, list[str]]:
    """The row of each peer; one that cannot do it says so in its row."""
    rows = {}
    for peer in peers:
        try:
            rows[peer.name] = measure(peer)
        except (ServerTrouble, OSError, subprocess.SubprocessError) as trouble:
            tell(f"{peer.name}: {trouble}")
            rows[peer.name] = ["failed"] + [""] * (columns - 1)
        tell(f"{peer.name}: {', '.join(rows[peer.name])}")
    return rows


def _client(command: list[str], **more: object) -> subprocess.Popen[str]:
    def begin() -> None:
        end_with_the_script()
        os.sched_setaffinity(0, CLIENT_CORES)
        raise_descriptors()

    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=begin)


def paced(port: int, seconds: float, rate: float = PACE) -> dict[str, float]:
    with _client([sys.executable, str(HERE / "paced.py"), str(port), str(rate), str(seconds), "32"]) as client:
        out, _ = client.communicate(timeout=seconds + 30)
    if not out:
        raise ServerTrouble("the client at a fixed rate could not go on")
    figures: dict[str, float] = json.loads(out)
    return figures


@contextlib.contextmanager
def crowd(port: int, kind: str, count: int) -> Iterator[list[int]]:
    """So many clients of crowd.py; the list gets how many the server has closed on, at the end."""
    closed: list[int] = []
    with _client([sys.executable, str(HERE / "crowd.py"), str(port), kind, str(count)]) as client:
        assert client.stdin is not None and client.stdout is not None
        try:
            if client.stdout.readline().strip() != "ready":
                raise ServerTrouble(f"{count:,} {kind} clients could not connect")
            yield closed
            out, _ = client.communicate("\n", timeout=30)
            closed.append(int(out))
        finally:
            client.kill()


# --- large bodies


def large(peers: list[Peer], tell: Tell, rounds: int = 5) -> Table:
    """1 GB down (sendfile where the server has it) and up, one stream each: seconds, and CPU that the server used.

    Medians of rounds in which each server has its turn, for what a copy costs changes with what else the machine does.
    """
    curl = shutil.which("curl")
    if curl is None:
        raise ServerTrouble("curl is not installed, and it takes the downloads")
    took: dict[str, list[tuple[float, ...]]] = {peer.name: [] for peer in peers}
    bare = []
    with tempfile.NamedTemporaryFile(prefix="bench-") as file:
        block = os.urandom(1 << 20)
        for _ in range(GIGABYTE >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # else the first downloads would share the cores with its writing
        for number in range(rounds):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                try:
                    with Running(peer, cores=SERVER_CORES, env={"BENCH_FILE": file.name}) as running:
                        down = _took(running, _download, curl, running.port)
                        took[peer.name].append((*down, *_took(running, _upload, running.port)))
                except (ServerTrouble, OSError, subprocess.SubprocessError) as trouble:
                    tell(f"{peer.name}: {trouble}")
            bare.append(_loopback(file.name))
    rows = {name: _medians(runs) if len(runs) == rounds else ["failed", "", "", ""] for name, runs in took.items()}
    down, up = _medians(bare)
    rows["no server: a bare socket"] = [down, "", up, ""]
    return "1 GB in one stream", ["download", "its CPU", "upload", "its CPU"], rows


def _medians(runs: list[tuple[float, ...]]) -> list[str]:
    return [f"{median(figures):.2f} s" for figures in zip(*runs, strict=True)]


def _took(running: Running, transfer: Callable[..., None], *arguments: object) -> tuple[float, float]:
    cpu, began = running.cpu(), time.monotonic()
    transfer(*arguments)
    return time.monotonic() - began, running.cpu() - cpu


def _download(curl: str, port: int) -> None:
    words = [curl, "-sf", "-o", "/dev/null", "-w", "%{size_download}", f"http://127.0.0.1:{port}/download"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, preexec_fn=lambda: os.sched_setaffinity(0, CLIENT_CORES)
    )
    if done.returncode or done.stdout != str(GIGABYTE):
        raise ServerTrouble(f"curl got {done.stdout} bytes of 1 GB (exit status {done.returncode})")


def _upload(port: int) -> None:
    with _on(CLIENT_CORES), socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(b"POST /post HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % GIGABYTE)
        piece = bytes(1 << 20)
        for _ in range(GIGABYTE >> 20):
            sock.sendall(piece)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    if not answer.startswith(b"HTTP/1.1 200") or b"%d" % GIGABYTE not in answer:
        raise ServerTrouble(f"the upload was answered {answer[:60]!r}")


SINK = """
import os, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    sock, _ = server.accept()
    if len(sys.argv) > 2:
        with open(sys.argv[2], "rb") as file:
            size, at = os.fstat(file.fileno()).st_size, 0
            while at < size:
                at += os.sendfile(sock.fileno(), file.fileno(), at, 1 << 20)
    else:
        piece = bytearray(65536)
        while sock.recv_into(piece):
            pass
"""


def _loopback(file: str) -> tuple[float, float]:
    """The same two ways between two bare sockets: what the machine allows."""
    took = []
    for path in ([file], []):
        port = free_port()
        words = [sys.executable, "-c", SINK, str(port), *path]
        with (
            subprocess.Popen(
                words, stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, SERVER_CORES)
            ) as sink,
            _on(CLIENT_CORES),
        ):
            assert sink.stdout is not None
            sink.stdout.readline()
            with socket.create_connection(("127.0.0.1", port)) as sock:
                began = time.monotonic()
                if path:
                    piece = bytearray(1 << 17)
                    while sock.recv_into(piece):
                        pass
                else:
                    for _ in range(GIGABYTE >> 20):
                        sock.sendall(bytes(1 << 20))
            sink.wait(30)
            took.append(time.monotonic() - began)
    return took[0], took[1]


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- idle connections


def idle(peers: list[Peer], tell: Tell) -> Table:
    """What a kept connection costs: memory of 4,000 (PSS), CPU of 10,000 and of none (of a core, over 3 s)."""

    def cpu_of(running: Running) -> float:
        cpu = running.cpu()
        time.sleep(IDLE_FOR)
        return (running.cpu() - cpu) / IDLE_FOR

    def measure(peer: Peer) -> list[str]:
        with Running(peer, cores=SERVER_CORES) as running:
            with crowd(running.port, "idle", 200):  # what the first ones cost once is not theirs
                pass
            time.sleep(0.5)
            alone = cpu_of(running)
            before = running.memory()
            with crowd(running.port, "idle", IDLE) as closed:
                memory = (running.memory() - before) / IDLE
            with crowd(running.port, "idle", MORE_IDLE) as closed_too:
                time.sleep(1)
                cpu = cpu_of(running)
        return [f"{memory / 1024:.1f} kB", f"{cpu:.2%}", f"{alone:.2%}", f"{sum(closed) + sum(closed_too):,}"]

    rows = each(peers, tell, measure, 4)
    columns = ["memory each", "CPU of all", "CPU without them", "closed by the server"]
    return f"idle connections, {IDLE:,} and {MORE_IDLE:,}", columns, rows


# --- a fixed rate, and slow clients beside it


def fixed_rate(peers: list[Peer], tell: Tell, rounds: int = 2) -> Table:
    """Latencies at 5,000 requests a second, open loop: each counts from when its request was due."""

    def measure(peer: Peer) -> list[str]:
        with Running(peer, cores=SERVER_CORES) as running:
            runs = [paced(running.port, 2.0) for _ in range(rounds)]
        worst, failed = max(run["worst"] for run in runs), sum(int(run["failed"]) for run in runs)
        if failed and not any(run["p99"] for run in runs):
            raise ServerTrouble("not one request was answered")
        middle = [median(run[name] for run in runs) for name in ("p50", "p99")]
        return [*(f"{seconds * 1000:.2f} ms" for seconds in (*middle, worst)), str(failed)]

    return f"{PACE:,} requests/s, open loop", ["p50", "p99", "worst", "failed"], each(peers, tell, measure, 4)


def slow_clients(peers: list[Peer], tell: Tell, rounds: int = 5) -> Table:
    """p99 of others, at 1,000 requests a second: beside 2,000 slow heads, bodies and readers, and without them.

    Medians of five pairs, the ratio of each pair's: what else the machine does is in both of a pair, or in few pairs.
    """

    def measure(peer: Peer) -> list[str]:
        without, beside, failed, gone = [], [], 0, 0
        with Running(peer, cores=SERVER_CORES) as running:
            for _ in range(rounds):  # in turns
                without.append(paced(running.port, 2.0, 1000))
                with crowd(running.port, "slow", SLOW) as closed:
                    time.sleep(1)  # they have come; what comes from now on is their slowness
                    beside.append(paced(running.port, 3.0, 1000))
                failed += int(beside[-1]["failed"])
                gone += sum(closed)
                if not beside[-1]["p99"]:
                    break
                time.sleep(0.5)
        if not any(run["p99"] for run in beside):
            return [
                f"{median(run['p99'] for run in without) * 1000:.2f} ms",
                "nobody answered",
                "",
                str(failed),
                f"{gone:,}",
            ]
        before, after = (median(run["p99"] for run in runs) for runs in (without, beside))
        ratio = median(two["p99"] / one["p99"] for one, two in zip(without, beside, strict=True))  # seconds apart
        return [f"{before * 1000:.2f} ms", f"{after * 1000:.2f} ms", f"{ratio:.2f} x", str(failed), f"{gone:,}"]

    columns = ["p99 without", "p99 beside them", "ratio", "failed", "slow ones closed"]
    return f"{SLOW:,} slow clients", columns, each(peers, tell, measure, 5)


# --- the price of care


ENGINES = 3  # of each kind: two processes of the same code differ by some percent


def care(tell: Tell, rounds: int = 7) -> Table:
    """Every deadline, every counter and the hook at a request's end, against the same engine with no-ops instead.

    CPU per request, of three processes of each kind; the share is the median of the rounds, each compared with itself.
    """
    kinds = ("whole", "bare")
    engines: list[tuple[str, subprocess.Popen[str], int]] = []
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}  # seconds per request, one for each round
    try:
        for kind in kinds * ENGINES:
            words = [str(PYTHON), str(HERE / "careless.py"), kind]
            engine = subprocess.Popen(
                words, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, SERVER_CORES)
            )
            engines.append((kind, engine, int(engine.stdout.readline() or 0)))  # type: ignore[union-attr]
            if not engines[-1][2]:
                raise ServerTrouble("an engine of its own did not start")
        for number in range(rounds):
            used, requests = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, 0)
            for kind, engine, port in engines[number % len(engines) :] + engines[: number % len(engines)]:
                before = cpu_seconds(engine.pid)
                run = drive(HEADLINE, port, seconds=1, cores=CLIENT_CORES)
                used[kind] += cpu_seconds(engine.pid) - before
                requests[kind] += run.requests
                rates[kind].append(run.rate)
            for kind in kinds:
                costs[kind].append(used[kind] / requests[kind])
    finally:
        for _, engine, _ in engines:
            engine.kill()
            engine.communicate()
    shares = [1 - bare / whole for whole, bare in zip(costs["whole"], costs["bare"], strict=True)]
    rows = {kind: [f"{median(rates[kind]):,.0f}/s", f"{median(costs[kind]) * 1e6:.2f} µs"] for kind in kinds}
    rows["their share"] = ["", f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"]
    tell(f"deadlines, counters and hooks: {median(shares):.1%} of a request's CPU")
    return "the price of deadlines, counters and hooks", ["hello world", "CPU per request"], rows
