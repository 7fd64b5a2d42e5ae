"""`scripts/bench`: the bars that a release of this project must clear, and its speed beside its peers'.

    scripts/bench releases [BAR ...]    what is promised about releases, measured (about ten minutes)
    scripts/bench peers                 speed, latency and memory beside six other servers (about ten minutes)
    scripts/bench                       both

Exit status 0: all bars cleared, and not one error of reuseport's beside its peers.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from proving import burdens, peers, report, wrk
from proving.bootstrap import CHECKOUT
from proving.ending import orderly
from proving.figures import measure
from proving.scenarios import SCENARIOS
from proving.server import ServerTrouble, cpu_pressure
from proving.speed import Results, side_by_side

DOCS = CHECKOUT / "docs"
OTHERS = {
    "rate": burdens.fixed_rate,
    "large": burdens.large,
    "idle": burdens.idle,
    "slow": burdens.slow_clients,
}
PARTS = ["speed", "two", *OTHERS, "care"]


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=formatter)
    families = parser.add_subparsers(dest="family", metavar="releases | peers", title="families")
    bars = families.add_parser("releases", help="the bars about releases")
    bars.add_argument("bars", nargs="*", metavar="BAR", help=f"some of: {', '.join(SCENARIOS)} (all)")
    bars.add_argument("--json", type=Path, metavar="FILE", help="write figures and reports there")
    beside = families.add_parser("peers", help="side by side with other servers")
    beside.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each measurement of speed (5)")
    beside.add_argument("--seconds", type=int, default=1, metavar="S", help="seconds of each case in each round (1)")
    names = ", ".join(case.name for case in wrk.CASES)
    beside.add_argument(
        "--cases", type=words([case.name for case in wrk.CASES]), metavar="LIST", help=f"of: {names} (all)"
    )
    servers = [peer.name for peer in peers.PEERS]
    beside.add_argument("--servers", type=words(servers), metavar="LIST", help=f"of: {', '.join(servers)} (all)")
    beside.add_argument("--parts", type=words(PARTS), metavar="LIST", help=f"of: {', '.join(PARTS)} (all)")
    beside.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="where bench.md and bench.svg go (docs)")
    options = parser.parse_args()
    if options.family == "releases":
        for name in options.bars:
            if name not in SCENARIOS:
                bars.error(f"no bar is called {name!r}; there are: {', '.join(SCENARIOS)}")
        return orderly(lambda: measure({name: SCENARIOS[name] for name in options.bars or SCENARIOS}, options.json))
    if options.family == "peers":
        if options.rounds < 1 or options.seconds < 1:
            beside.error("--rounds and --seconds are at least 1")
        return orderly(lambda: compare(options))
    defaults = beside.parse_args([])
    return max(orderly(lambda: measure(SCENARIOS, None)), orderly(lambda: compare(defaults)))


def words(known: list[str]):
    """An argument's type: a list with commas, of these words."""

    def read(text: str) -> list[str]:
        chosen = [word.strip() for word in text.split(",") if word.strip()]
        for word in chosen:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of: {', '.join(known)}")
        return chosen

    return read


def compare(options: argparse.Namespace) -> int:
    began, waited = time.monotonic(), cpu_pressure()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", file=sys.stderr, flush=True)

    try:
        if len(os.sched_getaffinity(0)) < 2:
            raise ServerTrouble("this needs two cores: one for the server, one for its clients")
        wrk.find()
    except ServerTrouble as trouble:
        print(f"scripts/bench: {trouble}", file=sys.stderr)
        return 1
    peers.raise_descriptors()
    chosen = [peer for peer in peers.PEERS if options.servers is None or peer.name in options.servers]
    able = peers.install(chosen, tell)
    cases = [case for case in wrk.CASES if options.cases is None or case.name in options.cases]
    parts = options.parts or PARTS
    families: dict[int, tuple[list[wrk.Case], Results]] = {}
    how = {"rounds": options.rounds, "seconds": options.seconds, "tell": tell}
    if "speed" in parts:
        families[1] = cases, side_by_side(able, cases, **how)
        show(families[1], able, 1)
    several = [peer for peer in able if peer.several]
    if "two" in parts:
        headline = [wrk.HEADLINE]
        families[2] = headline, side_by_side(several, headline, workers=2, **how)
        show(families[2], several, 2)
    tables: list[tuple[str, burdens.Table]] = []
    for name, measurement in OTHERS.items():
        if name in parts:
            tables.append((measurement.__doc__ or "", measurement(able, tell)))
    if "care" in parts:
        tables.append((burdens.care.__doc__ or "", burdens.care(tell)))
    options.docs.mkdir(exist_ok=True)
    busy = (cpu_pressure() - waited) / (time.monotonic() - began)
    text = report.page(able, cases, families, tables, rounds=options.rounds, seconds=options.seconds, busy=busy)
    (options.docs / "bench.md").write_text(text)
    if 1 in families:
        (options.docs / "bench.svg").write_text(report.chart(able, *families[1]))
    for _, (title, columns, rows) in tables:
        print(f"\n{title}: {' | '.join(columns)}")
        for name, cells in rows.items():
            print(f"  {name:24} {' | '.join(cells)}")
    tell(f"written: {options.docs}/bench.md")
    ours = [results[case.name].get(report.OURS) for cases, results in families.values() for case in cases]
    return int(any(measured is not None and measured.errs for measured in ours))


def show(family: tuple[list[wrk.Case], Results], able: list[peers.Peer], workers: int) -> None:
    cases, results = family
    for case in cases:
        print(f"\n{case.title}, {workers} worker{'s' * (workers > 1)}")
        for row in [report.HEADS, *report.rate_rows(case, able, results)]:
            print(f"  {row[0]:18}{row[1]:>28}{row[2]:>8}{row[3]:>22}{row[4]:>9}{row[5]:>9}", flush=True)
