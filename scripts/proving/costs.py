"""The bars of what things cost: a blocked worker, stealing, memory; each against its like, in the same round."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from proving.accounting import percentile
from proving.figures import Result, Tell, ms, pause
from proving.round import Round
from proving.server import ServerTrouble, Status, cpu_seconds, proportional_memory, session


def blocked(tell: Tell) -> Result:
    """One of three workers is blocked by 5 s of CPU work; new connections meanwhile.

    The same work in a process outside the server is told beside it: what that costs is the machine's want of CPUs, and
    only what goes beyond it is the blocked worker's.
    """
    result, kinds = Result("blocked"), {"one-shot"}
    free, meanwhile, outside = [], [], []
    with Round(tell=tell) as rounds:
        rounds.load.begin({"one-shot": {"rate": 100, "ms": 2}})
        pause(rounds, 1)
        for _ in range(4):
            free.append(pause(rounds, 5))
            rounds.block(5)
            time.sleep(0.1)
            meanwhile.append(pause(rounds, 4.7))
            time.sleep(0.5)
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                time.sleep(0.1)
                outside.append(pause(rounds, 4.7))
                busy.kill()
        account = rounds.finish()
        stolen = sum(worker.get("stolen", 0) for worker in rounds.server.ready(rounds.server.status()))
        result.take(rounds)
    before, after, beside = (percentile(account.latencies(kinds, spans), 0.99) for spans in (free, meanwhile, outside))
    result.add("p99 unblocked", ms(before), "told", True)
    result.add("p99 meanwhile", f"{ms(after)}, {after / before:.2f} x", "within 3 x", after <= 3 * before)
    result.add("p99, the CPU work outside", f"{ms(beside)}, {beside / before:.2f} x", "told", True)
    medians = (percentile(account.latencies(kinds, spans), 0.5) for spans in (free, meanwhile, outside))
    result.add("p50 of the three", ", ".join(map(ms, medians)), "told", True)
    result.add("worst meanwhile", ms(max(account.latencies(kinds, meanwhile), default=0)), "told", True)
    result.add("connections stolen", str(stolen), "some", stolen > 0)
    return result


def steal(tell: Tell) -> Result:
    """CPU per new connection with 8 workers, with stealing and with own listeners only, in turns."""
    result, seconds = Result("steal"), 6.0
    # Few connections, when each of them wakes everybody, and many.
    rates = (50, 400)
    costs: dict[tuple[str, int], list[float]] = {(switch, rate): [] for switch in "10" for rate in rates}
    for _ in range(3):
        for switch in "10":
            with Round(workers=8, env={"REUSEPORT_STEAL": switch}) as rounds:
                offered = 0
                for rate in rates:
                    rounds.load.begin({"one-shot": {"rate": rate - offered, "bare": 1}})
                    offered = rate
                    pause(rounds, 1)
                    costs[switch, rate].append(cost_of_a_connection(rounds, seconds))
                    tell(f"stealing {switch}, {rate}/s: {costs[switch, rate][-1]:.0f} us of CPU for each connection")
                rounds.finish()
                result.take(rounds)
    result.report["costs"] = {f"stealing {switch}, {rate}/s": each for (switch, rate), each in costs.items()}
    for rate in rates:
        with_stealing, own = median(costs["1", rate]), median(costs["0", rate])
        figure = f"{with_stealing:.0f} us against {own:.0f} us, {with_stealing / own:.2f} x"
        result.add(f"{rate} connections/s", figure, "below 2 x", with_stealing < 2 * own)
    return result


def cost_of_a_connection(rounds: Round, seconds: float) -> float:
    """Microseconds of CPU that all workers together use for each connection that is answered."""
    pids = [worker["pid"] for worker in rounds.server.ready(rounds.server.status())]
    before = answered(rounds), sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return (sum(map(cpu_seconds, pids)) - before[1]) / (answered(rounds) - before[0]) * 1e6


def answered(rounds: Round) -> int:
    with rounds.load.looking() as account:
        return account.answered


def memory(tell: Tell) -> Result:
    """4 workers with a 100 MB heap: proportional memory of all processes, against one process that loads it."""
    result = Result("memory")
    with Round(workers=4, heap_mb=100, tell=tell) as rounds:
        alone = one_process(rounds.releases.directory(1), rounds.server.python)
        before = footprint(rounds)
        rounds.load.begin({"keep-alive": {"users": 12, "every": 0.05, "rows": 1}, "one-shot": {"rate": 50}})
        pause(rounds, 15)
        after = footprint(rounds)
        each = {pid: proportional_memory(pid) // 2**20 for pid in processes(rounds.server.status())}
        rounds.finish()
        result.take(rounds)
    result.report["pss_mb"] = each
    result.add("one process that loads it", f"{alone / 2**20:.0f} MB", "told", True)
    for when, bytes_ in (("all processes, at first", before), ("all processes, after 15 s of load", after)):
        result.add(when, f"{bytes_ / 2**20:.0f} MB, {bytes_ / alone:.2f} x", "below 1.5 x", bytes_ < 1.5 * alone)
    return result


def processes(status: Status) -> list[int]:
    pids = [status["master"]["pid"]]
    for generation in status["generations"]:
        pids += [generation["zygote"]["pid"]] if generation.get("zygote") else []
        pids += [worker["pid"] for worker in generation["workers"]]
    return pids


def footprint(rounds: Round) -> int:
    """The proportional memory of the master and everything it started."""
    return sum(map(proportional_memory, session(rounds.server.pid)))


def one_process(directory: Path, python: str) -> int:
    """The proportional memory of one worker's worth: gevent, the parser, and the application, imported once."""
    code = (
        "import sys; from gevent import monkey; monkey.patch_all(); sys.path.insert(0, sys.argv[1])\n"
        "import monolith; print('loaded', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [python, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"loaded\n":
                raise ServerTrouble("the sample monolith could not be loaded by itself")
            return proportional_memory(process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
