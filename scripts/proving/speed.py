"""Requests per second and latencies, side by side: rounds in which each server gets its turn, and medians over them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from proving.peers import Peer, Running
from proving.server import ServerTrouble
from proving.wrk import Case, Run, drive

SERVER_CORES, CLIENT_CORES = {0}, {1}


@dataclass
class Measured:
    """One server's runs in one case."""

    runs: list[Run] = field(default_factory=list)
    trouble: str = ""  # why there are none, or not all

    @property
    def rate(self) -> float:
        return median(run.rate for run in self.runs) if self.runs else 0.0

    @property
    def p99(self) -> float:
        return median(run.p99 for run in self.runs) if self.runs else 0.0

    @property
    def p50(self) -> float:
        return median(run.p50 for run in self.runs) if self.runs else 0.0

    @property
    def spread(self) -> float:
        """Half the range of the rates, as a share of their median."""
        rates = [run.rate for run in self.runs]
        return (max(rates) - min(rates)) / 2 / self.rate if len(rates) > 1 and self.rate else 0.0

    @property
    def failed(self) -> int:
        return sum(run.failed for run in self.runs)

    @property
    def broken(self) -> int:
        return sum(run.broken for run in self.runs)

    @property
    def errs(self) -> bool:
        return bool(self.trouble or self.failed or self.broken)


Results = dict[str, dict[str, Measured]]  # by the case's and the server's name


def side_by_side(
    peers: list[Peer],
    cases: list[Case],
    *,
    rounds: int,
    seconds: float,
    workers: int = 1,
    tell: Callable[[str], None],
) -> Results:
    """In each round each server is started alone, on as many cores as it has workers, and driven in each case."""
    results: Results = {case.name: defaultdict(Measured) for case in cases}
    cores = set(range(workers))
    clients = CLIENT_CORES
    if workers > 1:
        clients = clients | cores  # as many cores as there are: the client shares them with the server
    for number in range(rounds):
        # In turns, and each round starts with another: what else the machine does falls on all of them.
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            try:
                with Running(peer, workers=workers, cores=cores) as running:
                    drive(cases[0], running.port, seconds=1, cores=clients)  # warm
                    for case in cases:
                        results[case.name][peer.name].runs.append(
                            drive(case, running.port, seconds=seconds, cores=clients)
                        )
            except (ServerTrouble, OSError) as trouble:
                for case in cases:
                    results[case.name][peer.name].trouble = str(trouble)
                tell(f"{peer.name}: {trouble}")
        done = ", ".join(f"{peer.name} {results[cases[0].name][peer.name].rate:,.0f}" for peer in peers)
        what = f"round {number + 1} of {rounds}, {workers} worker{'s' * (workers > 1)}"
        tell(f"{what}; {cases[0].title}, per second: {done}")
    return results
