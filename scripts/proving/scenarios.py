"""The bars: each scenario measures one figure that the project has promised, and sets it against its bar.

They share one machine with the server and the clients, often with two cores. So figures are set against figures of the
same round, taken on both sides of what is measured or in turns with it, and never against a number from elsewhere.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from proving.accounting import SHORT, percentile
from proving.companions import companions
from proving.costs import blocked, memory, steal
from proving.endurance import endurance
from proving.environments import TwoEnvironments
from proving.figures import Result, Scenario, Tell, ms, pause
from proving.load import MIXED
from proving.longjob import long_job
from proving.releases import BROKEN
from proving.round import Round
from proving.server import Server
from proving.upgrades import upgrade

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


def takeover(tell: Tell) -> Result:
    """Ten masters, each of which takes over from the one before, under mixed load: nobody notices, all leave."""
    result, count, through = Result("takeover"), 10, 20.0
    with Round(tell=tell) as rounds:
        rounds.load.begin(MIXED)
        pause(rounds, 1)
        seconds = []
        for number in range(count):
            if number in (2, 6):
                rounds.load.once("export", f"/slow?seconds={through:g}", planned=through)
            version = rounds.releases.write()
            began = time.monotonic()
            rounds.server.take_over(rounds.releases.directory(version))
            seconds.append(time.monotonic() - began)
            rounds.load.served(rounds.serving)
            tell(f"master {rounds.server.pid} has taken over with version {version}")
            pause(rounds, 2)
        account = rounds.finish()
        serving = rounds.serving
        rounds.server.wait(
            lambda status: not status["master"]["earlier"], through + 10, "see the earlier masters leave"
        )
        left = [earlier.wait(timeout=10) for earlier in rounds.server.superseded]
        result.take(rounds)
    result.add("takeovers", f"{len(seconds)} of {count}, generation {serving} serves", str(count), serving == count + 1)
    result.add("each", f"median {median(seconds):.2f} s, worst {max(seconds):.2f} s", "told", True)
    result.add("masters that left with 0", f"{left.count(0)} of {count}", str(count), left == [0] * count)
    closed = len(account.dropped)
    result.add("idle connections that were closed", f"{closed} ({account.moved} moved)", "0", closed == 0)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def beside(tell: Tell) -> Result:
    """Independent masters, each binding beside the one before and then stopping it: what is lost without a takeover."""
    result, count, users = Result("beside"), 20, 50
    keeps = Path("/proc/sys/net/ipv4/tcp_migrate_req")
    migrates = keeps.exists() and keeps.read_text().strip() == "1"
    with Round(tell=tell) as rounds, ExitStack() as stack:
        rounds.load.begin({"one-shot": {"rate": 400}, "keep-alive": {"users": users, "every": 0.1, "requests": 1000}})
        host, port = rounds.server.address
        server = rounds.server
        rounds.watch.absent = True  # what it looks at is the first to go
        for _ in range(count):
            pause(rounds, 1)
            directory = rounds.releases.directory(rounds.releases.write())
            new = stack.enter_context(Server(directory, options=("--beside",), bind=f"{host}:{port}"))
            server.close()
            server = new
            tell(f"master {server.pid} serves alone")
        account = rounds.finish()
        result.report = rounds.report()
    failed = Counter(trouble.kind for trouble in account.failures)
    result.add("net.ipv4.tcp_migrate_req", "1" if migrates else "0", "told", True)
    result.add("masters that were followed", str(count), "told", True)
    shown = f"{failed['one-shot']} of {account.sent_by_kind['one-shot']:,} failed"
    result.add("new connections", shown, *(("0", not failed["one-shot"]) if migrates else ("told", True)))
    shown = f"{failed['keep-alive']} of {account.sent_by_kind['keep-alive']:,} failed"
    result.add("requests on kept connections", shown, "told", True)
    result.add("kept connections closed while idle", f"{len(account.dropped)}", "told", True)
    return result


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


# --- what they need


def fetch(address: tuple[str, int], target: str) -> dict[str, Any]:
    """One request of the script's own, outside the account."""
    connection = HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", target)
        said: dict[str, Any] = json.loads(connection.getresponse().read())
        return said
    finally:
        connection.close()


SCENARIOS: dict[str, Scenario] = {
    "releases": releases,
    "handover": handover,
    "overlap": overlap,
    "import": importing,
    "broken": broken,
    "kill": kill,
    "adoption": adoption,
    "upgrade": upgrade,
    "takeover": takeover,
    "beside": beside,
    "blocked": blocked,
    "steal": steal,
    "old-code": old_code,
    "venv": virtual_environment,
    "memory": memory,
    "long-job": long_job,
    "companions": companions,
    "endurance": endurance,
}
