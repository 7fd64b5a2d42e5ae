"""The end of the demo: figures, and what should have been otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from proving import tenancy
from proving.accounting import SHORT, Account, percentile
from proving.story import IDLE, TENANT, Story, last_line

# A silence longer than this between two answers, with 130 short requests a second, is a stall.
STALL = 1.0


@dataclass(frozen=True)
class Verdict:
    """The end: figures, and what should have been otherwise."""

    figures: list[tuple[str, str]]
    troubles: list[str]

    @property
    def clean(self) -> bool:
        return not self.troubles


def verdict(story: Story, account: Account) -> Verdict:
    rounds = story.round
    served = [release for release in rounds.started if release.outcome == "served"]
    refused = [release for release in rounds.started if release.outcome == "failed"]
    short = account.latencies()
    troubles = rounds.troubles()
    silence = account.longest_silence([rounds.load.busy])
    if silence > STALL:
        troubles.append(f"nobody was answered for {silence:.1f} s")
    if account.sent_by_kind["export"] != account.by_kind["export"]:
        troubles.append("the export was not finished")
    troubles += troubles_of_tenants(story, account)
    if account.moved < IDLE:
        troubles.append(f"only {account.moved} answers came from a newer version on a kept connection")
    figures = [
        ("requests", f"{account.sent:,} sent, {account.answered:,} answered, {account.failed} failed"),
        ("by version", " · ".join(f"v{version} {n:,}" for version, n in sorted(account.by_version.items()))),
        ("releases", f"{len(rounds.started)} asked for: {len(served)} served, {len(refused)} refused"),
        ("short requests", f"p99 {ms(percentile(short, 0.99))}, worst {ms(max(short, default=0.0))}"),
        ("longest silence", f"{ms(silence)} between two answers, in all"),
    ]
    slow = next((release for release in served if release.variant == "slow import"), None)
    if slow is not None:
        during = account.latencies(SHORT, [slow.window])
        figures.append(("3 s import", f"p99 {ms(percentile(during, 0.99))} while it ran"))
    through = [r for r in served if story.export.begun < r.ended < story.export.ended]
    figures += [
        ("the export", f"{story.export.seconds:g} s on version 1, through {len(through)} releases"),
        ("at once", f"up to {rounds.watch.most_draining} old generations drained side by side"),
    ]
    back = next((release for release in served if release.door == "rollback"), None)
    if back is None:
        troubles.append("the rollback did not serve")
    else:
        figures.append(("rollback", f"to v{back.version} in {back.seconds:.1f} s"))
    job = story.job
    figures += [
        (f"{TENANT}'s job", f"{job.seconds:g} s on version 1; {TENANT} moved {ms(job.moved - job.ended)} after it"),
        ("kept connections", f"{account.moved:,} moved to a newer version, {len(account.dropped)} dropped while idle"),
    ]
    figures += [(f"v{r.version} refused", f"exit 1: {last_line(r.error)}") for r in refused if r.door == "release"]
    return Verdict(figures, troubles)


def troubles_of_tenants(story: Story, account: Account) -> list[str]:
    """What was promised to tenants, by the journal and the clients."""
    work, job = story.round.work(), story.job
    elsewhere = [
        one
        for one in account.tenants
        if one.tenant == TENANT and one.at > job.begun and one.ended < job.ended and one.generation != job.generation
    ]
    troubles = [f"{len(elsewhere)} answers to {TENANT} by another generation than its job's"] if elsewhere else []
    if job.moved - job.ended > tenancy.MOVES_WITHIN:
        troubles.append(f"{TENANT} moved only {ms(job.moved - job.ended)} after its job")
    troubles += tenancy.went_back(account.tenants)[:5]
    troubles += tenancy.kept_without_reason(account.tenants, work, account.served)[:5]
    return troubles + tenancy.vanished(work)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
