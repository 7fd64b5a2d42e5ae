"""The bars: each scenario measures one figure that the project has promised, and sets it against its bar.

They share one machine with the server and the clients, often with two cores. So figures are set against figures of the
same round, taken on both sides of what is measured or in turns with it, and never against a number from elsewhere.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from proving.accounting import SHORT, Window, percentile
from proving.environments import TwoEnvironments
from proving.load import MIXED
from proving.releases import BROKEN
from proving.round import Round
from proving.server import ServerTrouble, Status, cpu_pressure, cpu_seconds, proportional_memory, session

Tell = Callable[[str], None]


@dataclass
class Figure:
    """What was measured, and what it has to be."""

    what: str
    figure: str
    bar: str
    clears: bool


@dataclass
class Result:
    scenario: str
    figures: list[Figure] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    report: dict[str, object] = field(default_factory=dict)

    @property
    def clears(self) -> bool:
        return all(figure.clears for figure in self.figures) and not self.troubles

    def add(self, what: str, figure: str, bar: str, clears: bool) -> None:
        self.figures.append(Figure(what, figure, bar, clears))

    def take(self, rounds: Round) -> None:
        """The round's own report, and what in it should have been otherwise."""
        self.troubles += rounds.troubles()
        self.report = rounds.report()
        if rounds.troubles():
            self.report["log"] = rounds.server.log_end(200)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def pause(rounds: Round, seconds: float) -> Window:
    """Let the clients go on undisturbed, and return the time that was."""
    start = time.monotonic()
    time.sleep(seconds)
    return Window(start, time.monotonic())


# --- the scenarios


def releases(tell: Tell) -> Result:
    """50 releases under mixed load, by signal and by command in turn."""
    result = Result("releases")
    with Round(tell=tell) as rounds:
        rounds.load.begin(MIXED)
        through = 25.0
        for number in range(50):
            if number in (5, 25):
                rounds.load.once("export", f"/slow?seconds={through:g}", planned=through)
            rounds.release(door=("release", "HUP")[number % 2])
            pause(rounds, 0.7)
        account = rounds.finish()
        served = sum(release.outcome == "served" for release in rounds.started)
        result.take(rounds)
    result.add("releases served", f"{served} of 50", "50", served == 50)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    result.add("worst short request", ms(max(account.latencies(), default=0)), "told", True)
    return result


def overlap(tell: Tell) -> Result:
    """A release every 2 s, while each old generation is busy for 20 s."""
    result, busy, every, count = Result("overlap"), 20.0, 2.0, 15
    with Round(workers=2, tell=tell) as rounds:
        rounds.load.begin({kind: MIXED[kind] for kind in ("keep-alive", "one-shot")})
        due = time.monotonic()
        for _ in range(count):
            rounds.load.once("slow", f"/slow?seconds={busy:g}", planned=busy)
            due += every
            time.sleep(max(0.0, due - time.monotonic()))
            rounds.release(door=rounds.random.choice(("release", "HUP")))
        account = rounds.finish()
        served = sum(release.outcome == "served" for release in rounds.started)
        slowest = max(release.seconds for release in rounds.started)
        result.take(rounds)
    result.add("releases served", f"{served} of {count}", str(count), served == count)
    most = rounds.watch.most_draining
    result.add("draining at once", f"{most} generations", "several", most >= 5)
    result.add("slowest release", f"{slowest:.2f} s", "told", True)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def importing(tell: Tell) -> Result:
    """p99 of short requests while a release with a 3-second import runs, against p99 without."""
    result = Result("import")
    quiet, during = [], []
    with Round(tell=tell) as rounds:
        rounds.load.begin({"keep-alive": {"users": 10, "every": 0.1}, "one-shot": {"rate": 100}})
        pause(rounds, 2)
        for _ in range(6):
            # In turns, so that what else the machine does falls on both.
            quiet.append(pause(rounds, 4))
            during.append(rounds.release("slow import").window)
            pause(rounds, 1)
        account = rounds.finish()
        result.take(rounds)
    without, with_import = (percentile(account.latencies(SHORT, spans), 0.99) for spans in (quiet, during))
    stall = account.longest_silence(during)
    result.add("p99 without a release", ms(without), "told", True)
    ratio = with_import / without
    result.add("p99 during it", f"{ms(with_import)}, {ratio:.2f} x", "below 2 x", ratio < 2)
    worst = max(account.latencies(SHORT, during), default=0.0)
    result.add("worst during it", ms(worst), "not near 3 s", worst < 1)
    result.add("longest silence during it", ms(stall), "not near 3 s", stall < 1)
    return result


def handover(tell: Tell) -> Result:
    """Idle kept connections move to the new generation: none is closed, and the next answer is the new version's."""
    result, users = Result("handover"), 500
    with Round(tell=tell) as rounds:
        rounds.load.begin({"idle": {"users": users, "seconds": 3.0, "requests": 1000}})
        pause(rounds, 5)
        for number in range(4):
            rounds.release(door=("release", "HUP")[number % 2])
            pause(rounds, 5)
        account = rounds.finish()
        result.take(rounds)
    ended = account.closed + len(account.dropped)
    result.add("kept connections that were closed", f"{ended} of {users}", "0", ended == 0)
    moves = 4 * users
    result.add("moved to a newer generation", f"{account.moved} in 4 releases", str(moves), account.moved == moves)
    behind = f"{account.behind} of {account.answered:,}"
    result.add("answered by an old one, 1 s after", behind, "0", account.behind == 0)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def broken(tell: Tell) -> Result:
    """Code that cannot serve: the old generation answers all, and the asker is told why."""
    result = Result("broken")
    with Round(tell=tell, options=("--boot-timeout", "5")) as rounds:
        rounds.load.begin(MIXED)
        pause(rounds, 1)
        for variant in BROKEN:
            for door in ("release", "HUP"):
                release = rounds.release(variant, door=door)
                first = release.error.partition("\n")[0].partition(" failed: generation ")[2].partition(": ")[2]
                good = release.outcome == "failed" and not release.trouble
                if door == "release":
                    shown = f"{release.outcome} after {release.seconds:.1f} s: {first[:70]}"
                    result.add(variant, shown, "exit 1, and why", good)
                pause(rounds, 0.5)
        after = rounds.release()
        pause(rounds, 1)
        account = rounds.finish()
        only = sorted(account.by_version) in ([1], [1, after.version])
        result.take(rounds)
    result.add("answered by", ", ".join(f"v{v} {n:,}" for v, n in account.by_version.items()), "the good only", only)
    result.add("a good release then", after.outcome, "served", after.outcome == "served")
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def kill(tell: Tell) -> Result:
    """SIGKILL of a worker under load: only the requests in that worker are lost, and its place is filled at once."""
    result = Result("kill")
    with Round(tell=tell) as rounds:
        rounds.load.begin({**MIXED, "work": {"users": 4, "every": 0.02, "ms": 3}})
        for _ in range(8):
            pause(rounds, 1.5)
            rounds.strike()
        pause(rounds, 1)
        account = rounds.finish()
        result.take(rounds)
    times = [strike.seconds for strike in rounds.strikes]
    result.add("workers killed", str(len(times)), "told", True)
    result.add("lost with their worker", f"{len(account.lost)} of {account.sent:,}", "told", True)
    result.add("failed elsewhere, or in a queue", str(account.failed), "0", account.clean)
    worst = f"median {ms(median(times))}, worst {ms(max(times))}"
    result.add("back to full strength", worst, "at once (below 1 s)", max(times) < 1)
    return result


def adoption(tell: Tell) -> Result:
    """SIGKILL of the master under load: its workers serve on, the next master adopts and releases them."""
    result = Result("adoption")
    with Round(tell=tell) as rounds:
        rounds.load.begin(MIXED)
        rounds.load.once("export", "/slow?seconds=12", planned=12.0)
        pause(rounds, 1)
        for _ in range(2):
            rounds.watch.absent = True
            rounds.server.kill_master()
            tell("master killed")
            pause(rounds, 2)
            rounds.server.start()
            rounds.watch.absent = False
            tell(f"the next master has pid {rounds.server.pid}")
            pause(rounds, 1)
            rounds.release()
            pause(rounds, 1)
        account = rounds.finish()
        result.take(rounds)
    served = sum(release.outcome == "served" for release in rounds.started)
    result.add("releases after an adoption", f"{served} of 2", "2", served == 2)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


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


def old_code(tell: Tell) -> Result:
    """The code on disk has changed, and a worker is killed: its replacement, if it needs one, is the old version."""
    result = Result("old-code")
    with Round(workers=2, tell=tell) as rounds:
        rounds.load.begin({"one-shot": {"rate": 40}, "keep-alive": {"users": 4, "every": 0.1}})
        # First: `current` points elsewhere already, but nobody has asked for the release yet.
        rounds.releases.next()
        for _ in range(2):
            rounds.strike()
            pause(rounds, 1)
        with rounds.load.looking() as account:
            versions = sorted(account.by_version)
        result.add("killed while it serves", f"version {versions} answers", "version [1]", versions == [1])
        # Then: a draining generation loses a worker, with newer code on disk than it has.
        for _ in range(2):
            rounds.load.once("slow", "/slow?seconds=8", planned=8.0)
        old = rounds.serving
        pause(rounds, 0.5)
        release = rounds.release()
        rounds.releases.next()
        status = rounds.server.status()
        draining = next((g for g in status["generations"] if g["number"] == old), None)
        victims = [w for w in draining["workers"] if w["requests"]["active"]] if draining else []
        if victims:
            ports = rounds.server.hold_worker(victims[0]["pid"])
            rounds.load.killed(victims[0]["pid"], ports)
            rounds.server.kill(victims[0]["pid"])
        pause(rounds, 2)
        known = {worker["pid"] for worker in draining["workers"]} if draining else set()
        status = rounds.server.status()
        now = next((g for g in status["generations"] if g["number"] == old), None)
        fresh = [w["pid"] for w in now["workers"] if w["pid"] not in known] if now else []
        same = all(Path(f"/proc/{pid}/cwd").resolve() == rounds.releases.directory(1) for pid in fresh)
        serves = status["serving"] == release.generation
        account = rounds.finish()
        result.take(rounds)
    shown = f"{len(victims[:1])} killed, {len(fresh)} replaced" + (" by the old version" if fresh and same else "")
    result.add("killed while it drains", shown, "the old version, if any", bool(victims) and same and serves)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def virtual_environment(tell: Tell) -> Result:
    """From a release with one virtual environment to one with another, by flipping `current`."""
    result = Result("venv")
    with TwoEnvironments(workers=2, tell=tell, options=("--python", "venv/bin/python")) as rounds:
        rounds.load.begin(MIXED)
        before = fetch(rounds.server.address, "/where")
        version = rounds.releases.write()
        rounds.equip(version, rounds.newest)
        rounds.releases.point(version)
        outcome = rounds.server.release()
        rounds.load.served(rounds.serving)
        after = fetch(rounds.server.address, "/where")
        pause(rounds, 1)
        account = rounds.finish()
        result.take(rounds)
        home = rounds.releases.directory(version) / "venv"
    if not outcome.served:
        result.troubles.append(f"the release failed: {outcome.last_line}")
    result.add("code", f"{before['version']} -> {after['version']}", "1 -> 2", after["version"] == version)
    result.add("package", f"{before['package']} -> {after['package']}", "1 -> 2", after["package"] == version)
    prefix = Path(after["prefix"])
    result.add("sys.prefix", "…/" + "/".join(prefix.parts[-3:]), "release 2's", prefix == home)
    pythons = [".".join(map(str, where["python"])) for where in (before, after)]
    bar = "another" if len(rounds.interpreters) > 1 else "the only one here"
    result.add("interpreter", " -> ".join(pythons), bar, len(set(pythons)) == min(2, len(rounds.interpreters)))
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


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


# --- what they need


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


def fetch(address: tuple[str, int], target: str) -> dict[str, Any]:
    """One request of the script's own, outside the account."""
    connection = HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", target)
        said: dict[str, Any] = json.loads(connection.getresponse().read())
        return said
    finally:
        connection.close()


SCENARIOS: dict[str, Callable[[Tell], Result]] = {
    "releases": releases,
    "handover": handover,
    "overlap": overlap,
    "import": importing,
    "broken": broken,
    "kill": kill,
    "adoption": adoption,
    "blocked": blocked,
    "steal": steal,
    "old-code": old_code,
    "venv": virtual_environment,
    "memory": memory,
}


# --- measuring them


def measure(names: Iterable[str], file: Path | None) -> int:
    """Measure these bars, print each figure against its bar, and say by the exit status whether all were cleared."""
    results = []
    for name in names:
        print(f"\n{name}: {(SCENARIOS[name].__doc__ or '').strip().splitlines()[0]}", flush=True)
        began = time.monotonic()

        def tell(line: str, began: float = began) -> None:
            print(f"  {time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

        waited = cpu_pressure()
        try:
            result = SCENARIOS[name](tell)
        except ServerTrouble as trouble:
            result = Result(name, troubles=[str(trouble)])
        # A figure from a machine that has other things to do is worth less: say so beside it.
        busy = (cpu_pressure() - waited) / (time.monotonic() - began)
        result.report["share_of_time_that_something_waited_for_a_cpu"] = round(busy, 3)
        results.append(result)
        for figure in result.figures:
            mark = "✔" if figure.clears else "✘"
            print(f"  {mark} {figure.what:32} {figure.figure:40} bar: {figure.bar}", flush=True)
        for trouble in result.troubles:
            print(f"  ✘ {trouble}", flush=True)
        print(f"  · something on this machine waited for a CPU {busy:.0%} of the time", flush=True)
    failed = [result.scenario for result in results if not result.clears]
    if len(results) > 1:
        missed = f"; not: {', '.join(failed)}" if failed else ""
        print(f"\n{len(results) - len(failed)} of {len(results)} bars cleared{missed}")
    if file is not None:
        report = {
            result.scenario: {
                "clears": result.clears,
                "figures": [vars(figure) for figure in result.figures],
                "troubles": result.troubles,
                "report": result.report,
            }
            for result in results
        }
        file.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if failed else 0
