"""Stress with tenants: their clients, their jobs, and what must have held for each of them when all is over."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from proving import tenancy
from proving.round import Round

SHARED, STRICT = "shared", "strict"
LONGEST_JOB = 6.0  # seconds
SHOWN = 10  # of each kind of trouble


def name_of(number: int) -> str:
    return f"tenant-{number}"


def begin(rounds: Round, tenants: int, jobs: bool) -> None:
    """Some 150 requests and 8 jobs a second, however many tenants share them."""
    for number in range(1, tenants + 1):
        mix: dict[str, dict[str, float | str]] = {
            "keep-alive": {"users": 1, "every": tenants / 100, "requests": 200},
            "one-shot": {"rate": 50 / tenants},
        }
        if number % 10 == 1:
            # Requests that last make strict isolation wait, and sometimes give up for a while.
            mix["slow"] = {"users": 1, "seconds": 1.5, "every": 1.0}
        if jobs:
            mix["job"] = {"users": 1, "seconds": LONGEST_JOB, "every": tenants / 8}
        rounds.load.begin({kind: {**plan, "tenant": name_of(number)} for kind, plan in mix.items()})


@dataclass
class Judgement:
    """What the witnesses said in the end."""

    figures: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def take(self, what: str, troubles: list[str]) -> None:
        self.figures[what] = len(troubles)
        self.troubles += troubles[:SHOWN]
        if len(troubles) > SHOWN:
            self.troubles.append(f"and {len(troubles) - SHOWN} more like that")


def judge(rounds: Round, isolation: str) -> Judgement:
    """Wait until the last job is over, and compare what clients, application and server say. Before the server ends."""
    assert rounds.account is not None
    deadline = time.monotonic() + LONGEST_JOB + 10
    while tenancy.vanished(work := rounds.work()) and time.monotonic() < deadline:
        time.sleep(0.1)
    answers, served = rounds.account.tenants, rounds.account.served
    told = tenancy.reported(rounds.server.log.read_text(errors="replace").splitlines())
    jobs = [one for one in work if one.kind == "job"]
    by = Counter("lost" if one.killed else "ended" for one in jobs if one.ended < float("inf"))
    figures = {"jobs": len(jobs), "ended": by["ended"], "lost": by["lost"], "reported_lost": len(told)}
    figures["moves"] = tenancy.moves(answers)
    figures["most_generations_at_once_for_one_tenant"] = tenancy.most_at_once(work)
    judgement = Judgement(figures)
    judgement.take("went_back", tenancy.went_back(answers))
    judgement.take("mixed", tenancy.mixed(work))
    judgement.take("done_twice", tenancy.done_twice(work))
    judgement.take("vanished", tenancy.vanished(work))
    judgement.take("lost_in_silence", tenancy.lost_in_silence(work, told))
    judgement.take("lost_by_mistake", tenancy.lost_by_mistake(work, told, rounds.kills))
    if isolation == STRICT:
        judgement.take("at_once", tenancy.at_once(work))
    else:
        # With strict isolation running requests keep a tenant, too, and for a while afterwards.
        judgement.take("kept_without_reason", tenancy.kept_without_reason(answers, work, served))
    return judgement


def told(judgement: Judgement, tenants: int, isolation: str) -> str:
    """The figures in a line."""
    f = judgement.figures
    return (
        f"{tenants} tenants, {isolation} isolation: {f['jobs']:,} jobs, {f['ended']:,} ended, "
        f"{f['lost']} lost with their worker and {f['reported_lost']} reported; {f['moves']:,} moves, none back; "
        f"up to {f['most_generations_at_once_for_one_tenant']} generations at work for one tenant at once"
    ).replace("none back", "none back" if not f["went_back"] else f"{f['went_back']} answers went back")
