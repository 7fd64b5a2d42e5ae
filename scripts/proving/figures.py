"""What a scenario comes to: figures, each set against its bar, and how they are shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from proving.accounting import Window
from proving.round import Round
from proving.server import ServerTrouble, cpu_pressure

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


Scenario = Callable[..., Result]  # of a Tell


# --- measuring them


def measure(scenarios: Mapping[str, Scenario], file: Path | None) -> int:
    """Measure these bars, print each figure against its bar, and say by the exit status whether all were cleared."""
    results = []
    for name, scenario in scenarios.items():
        print(f"\n{name}: {(scenario.__doc__ or '').strip().splitlines()[0]}", flush=True)
        began = time.monotonic()

        def tell(line: str, began: float = began) -> None:
            print(f"  {time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

        waited = cpu_pressure()
        try:
            result = scenario(tell)
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
