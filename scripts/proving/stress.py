"""`scripts/stress`: releases every few seconds, workers killed, workers blocked, every request accounted for.

Without `--scenario` it goes on for as long as asked and mixes everything, in an order that the seed decides. With
`--scenario NAME` it measures one of the project's bars. With `--tenants N` the requests are those of N tenants, and
what clients, application and log say of each of them is compared in the end. Exit status 0: nothing failed that should
not have; 1: something did, and the last lines say what.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

from proving import customers
from proving.accounting import percentile
from proving.ending import orderly
from proving.figures import Scenario, measure
from proving.load import MIXED
from proving.releases import BROKEN
from proving.round import Round
from proving.scenarios import SCENARIOS

BACK = 0.15  # share of the releases that are rollbacks


@dataclass
class Due:
    """Something that comes round every so many seconds; never, if 0."""

    every: float
    at: float = 0.0

    def __post_init__(self) -> None:
        self.at = time.monotonic() + self.every if self.every else float("inf")

    def now(self) -> bool:
        if time.monotonic() < self.at:
            return False
        # From now, not from when it was due: what is late is not made up for in a burst.
        self.at = time.monotonic() + self.every
        return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/stress", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long (60)")
    parser.add_argument("--releases", type=int, metavar="N", help="stop after so many releases instead")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two releases (2)")
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="workers of each generation (3)")
    parser.add_argument("--seed", type=int, metavar="N", help="decides the order of things (random)")
    parser.add_argument("--kill-every", type=float, default=10.0, metavar="S", help="SIGKILL a worker; 0: never (10)")
    parser.add_argument("--block-every", type=float, default=15.0, metavar="S", help="block a worker; 0: never (15)")
    parser.add_argument("--bad", type=float, default=0.2, metavar="SHARE", help="share of broken releases (0.2)")
    parser.add_argument("--slow", type=float, default=10.0, metavar="S", help="length of the slow requests (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there; -: to standard output")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), help="measure one of the bars instead")
    parser.add_argument(
        "--tenants", type=int, default=0, metavar="N", help="the clients are those of N tenants (0: none)"
    )
    parser.add_argument("--jobs", action="store_true", help="the tenants have jobs, in greenlets and threads")
    parser.add_argument(
        "--tenant-isolation",
        choices=(customers.SHARED, customers.STRICT),
        help="with --tenants: which the server keeps (drawn by the seed)",
    )
    parser.add_argument(
        "--job-seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="--scenario long-job, companions: how long the job or task is (60)",
    )
    options = parser.parse_args()
    if options.tenants < 0 or (not options.tenants and (options.jobs or options.tenant_isolation)):
        parser.error("--jobs and --tenant-isolation are about tenants: --tenants N, with N of 1 or more")
    if options.scenario:
        return orderly(lambda: measure({options.scenario: chosen(options)}, options.json))
    return orderly(lambda: stress(options))


def chosen(options: argparse.Namespace) -> Scenario:
    scenario = SCENARIOS[options.scenario]
    more: dict[str, Any]
    if options.scenario == "long-job":
        more = {"seconds": options.job_seconds, "releases": options.releases or 20}
    elif options.scenario == "companions":
        more = {"seconds": options.job_seconds, "releases": options.releases or 3}
    elif options.scenario == "endurance":
        seed = options.seed if options.seed is not None else time.time_ns() % 100_000
        more = {"seconds": options.seconds, "releases": options.releases, "seed": seed}
    else:
        return scenario
    return update_wrapper(partial(scenario, **more), scenario)


def stress(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else time.time_ns() % 100_000
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", file=sys.stderr, flush=True)

    tell(f"seed {seed}")
    tenants, given = options.tenants, ["--boot-timeout", "10"]
    isolation = options.tenant_isolation or random.Random(seed).choice((customers.SHARED, customers.STRICT))
    if tenants:
        tell(f"{tenants} tenants, {isolation} isolation")
        given += ["--tenant-isolation", isolation]
    with Round(workers=options.workers, seed=seed, options=given, tenants=tenants > 0, tell=tell) as rounds:
        if tenants:
            customers.begin(rounds, tenants, options.jobs)
        else:
            rounds.load.begin({**MIXED, "slow": {"users": 2, "seconds": options.slow, "every": 0.5}})
        kill, block = Due(options.kill_every), Due(options.block_every)
        end = float("inf") if options.releases else time.monotonic() + options.seconds
        release = Due(options.every)
        while time.monotonic() < end and len(rounds.started) < (options.releases or float("inf")):
            if kill.now():
                strike = rounds.strike(draining_too=True)
                if strike is not None:
                    tell(f"full strength again after {strike.seconds * 1000:.0f} ms")
            if block.now():
                rounds.block(rounds.random.uniform(1.0, 4.0))
            if release.now():
                next_release(rounds, options.bad)
            time.sleep(max(0.0, min(end, kill.at, block.at, release.at) - time.monotonic()))
        tell("the clients come to their end")
        account = rounds.finish(within=options.slow + 60)
        judgement = customers.judge(rounds, isolation) if tenants else None
        report = {"seed": seed, "seconds": round(time.monotonic() - began, 1), **rounds.report()}
        if judgement:
            report["tenants"] = {"number": tenants, "isolation": isolation, **judgement.figures}
            report["troubles"] = [*rounds.troubles(), *judgement.troubles]
            report["clean"] = not report["troubles"]
            print(customers.told(judgement, tenants, isolation), file=sys.stderr)
        short = account.latencies()
        print(
            f"{account.sent:,} requests: {account.answered:,} answered, {account.failed} failed, "
            f"{len(account.lost)} lost with {len(rounds.strikes)} killed workers; "
            f"p99 of short ones {percentile(short, 0.99) * 1000:.0f} ms\n"
            f"{len(rounds.started)} releases asked for: {sum(r.outcome == 'served' for r in rounds.started)} served, "
            f"{sum(r.outcome == 'failed' and not r.trouble for r in rounds.started)} failed as they should; "
            f"up to {rounds.watch.most_draining} generations drained at once",
            file=sys.stderr,
        )
        if report["troubles"]:
            print("\n".join(["the end of the server's log:", rounds.server.log_end(40)]), file=sys.stderr)
    write(report, options.json)
    for trouble in report["troubles"]:
        print(f"✘ {trouble}", file=sys.stderr)
    print("✔ nothing failed that should not have" if report["clean"] else f"✘ seed {seed}", file=sys.stderr)
    return 0 if report["clean"] else 1


def next_release(rounds: Round, bad: float) -> None:
    """One release, of a kind and through a door that the seed decides."""
    door = rounds.random.choice(("HUP", "release"))
    draw = rounds.random.random()
    back = rounds.rollback() if rounds.random.random() < BACK else None
    if back is not None:
        release = back
    elif draw < bad:
        release = rounds.release(rounds.random.choice(sorted(BROKEN)), door=door)
    elif draw < bad + 0.1:
        release, _ = rounds.hurried("slow import", "good", 1.0)
    elif draw < bad + 0.2:
        release = rounds.release("slow import", door=door)
    else:
        release = rounds.release(door=door)
    rounds.tell(f"version {release.version}: {release.outcome} after {release.seconds:.1f} s {release.trouble}")


def write(report: dict[str, object], file: Path | None) -> None:
    if file is None:
        return
    text = json.dumps(report, indent=2)
    if str(file) == "-":
        print(text)
    else:
        file.write_text(text + "\n")
