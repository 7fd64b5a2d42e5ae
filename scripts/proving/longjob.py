"""A long job through many releases: its tenant stays with the version that runs it, and everybody else moves on."""

from __future__ import annotations

import time

from proving import tenancy
from proving.accounting import Served
from proving.figures import Result, Tell, ms
from proving.round import Round
from proving.server import ServerTrouble
from proving.tenancy import MOVES_WITHIN, Work

TENANT = "acme"
OTHERS = ("globex", "initech")
AFTERWARDS = 3.0  # seconds that are watched behind the job's end


def long_job(tell: Tell, seconds: float = 60.0, releases: int = 20) -> Result:
    """One job through many releases: its tenant stays with its version, moves when it ends; all others move on."""
    result = Result("long-job")
    with Round(workers=2, tenants=True, tell=tell) as rounds:
        for tenant in (TENANT, *OTHERS):
            rounds.load.begin({
                "keep-alive": {"users": 3, "every": 0.15, "requests": 1000, "tenant": tenant},
                "one-shot": {"rate": 10, "tenant": tenant},
            })  # fmt: skip
        rounds.load.begin({"one-shot": {"rate": 10}})
        time.sleep(1)
        rounds.load.once("job", f"/job?seconds={seconds:g}", tenant=TENANT)
        job = await_job(rounds)
        end = job.begun + seconds
        tell(f"a job of {seconds:g} s begins in generation {job.generation}")
        for number in range(releases):
            # Spread so that the last, too, is over well before the job.
            time.sleep(max(0.0, job.begun + seconds * (number + 0.5) / (releases + 0.5) - time.monotonic()))
            rounds.release(door=("release", "HUP")[number % 2])
        within = rounds.started[-1].ended < end
        while time.monotonic() < end + AFTERWARDS:
            time.sleep(0.05)
        account = rounds.finish()
        rounds.server.wait(
            lambda status: not any(g["number"] == 1 and g["workers"] for g in status["generations"]),
            30,
            "end the job's generation",
        )
        work, newest = rounds.work(), rounds.serving
        result.take(rounds)
    job = next(one for one in work if one.kind == "job")
    served = sum(release.outcome == "served" for release in rounds.started)
    result.add("releases while it ran", f"{served} of {releases} served", str(releases), served == releases and within)
    lasted = job.ended - job.begun
    whole = f"{lasted:.1f} s, {'ended' if job.ended < float('inf') else 'never ended'}"
    result.add("the job", whole, f"{seconds:g} s", seconds <= lasted < seconds + 5)
    mine = sorted((one for one in account.tenants if one.tenant == TENANT), key=lambda one: one.at)
    meanwhile = [one for one in mine if one.at > job.begun and one.ended < job.ended]
    seen = sorted({one.generation for one in meanwhile})
    figure = f"{len(meanwhile):,} answers by generation {', '.join(map(str, seen))}"
    result.add("its tenant meanwhile", figure, f"only {job.generation}", seen == [job.generation])
    result.add(*moved(mine, job, newest))
    others = [one for one in account.tenants if one.tenant != TENANT]
    by = {one.generation for one in others}
    late = tenancy.kept_without_reason(others, work, account.served)
    figure = f"{len(others):,} answers by {len(by)} generations, {len(late)} by an old one, 1 s after"
    result.add("other tenants meanwhile", figure, "0, every one", not late and len(by) == releases + 1)
    back = tenancy.went_back(account.tenants)
    result.add("answers that went back", str(len(back)), "0", not back)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    result.troubles += [*back[:5], *late[:5]]
    return result


def await_job(rounds: Round) -> Work:
    """The job, as soon as the journal tells of it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if rounds.journal.exists():
            for work in rounds.work():
                if work.kind == "job":
                    return work
        time.sleep(0.02)
    raise ServerTrouble(f"the job did not begin:\n{rounds.server.log_end()}")


def moved(answers: list[Served], job: Work, newest: int) -> tuple[str, str, str, bool]:
    """The figure of how its tenant moved: in one step, to the newest generation, and how soon."""
    after = [one for one in answers if one.at >= job.ended]
    generations = sorted({one.generation for one in after})
    old = [one.ended for one in after if one.generation != newest]
    took = max(old, default=job.ended) - job.ended
    first = min((one.ended for one in after if one.generation == newest), default=float("inf")) - job.ended
    figure = f"to {', '.join(map(str, generations))}; first after {ms(first)}, the last old after {ms(took)}"
    good = bool(after) and generations in ([newest], [job.generation, newest]) and max(took, first) <= MOVES_WITHIN
    return "its tenant after its end", figure, f"{newest}, within {MOVES_WITHIN:g} s", good
