"""What the demo tells: the releases in order, and why each is worth seeing. It knows nothing of how it is shown."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from proving.accounting import SHORT, Account, Window, percentile
from proving.load import MIXED
from proving.round import Round, version_serving

# A silence longer than this between two answers, with 130 short requests a second, is a stall.
STALL = 1.0


@dataclass(frozen=True)
class Line:
    """Something that happened. `version` colours it; `mood` is "", "good", "bad" or "note"."""

    at: float
    text: str
    version: int = 0
    mood: str = ""


@dataclass
class Export:
    """The one long request that must survive every release."""

    seconds: float
    begun: float = 0.0
    ended: float = 0.0
    version: int = 1
    generation: int = 1


@dataclass
class Story:
    round: Round
    fast: bool = False
    lines: list[Line] = field(default_factory=list)
    failure: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    export: Export = field(default_factory=lambda: Export(27.0))
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)  # each generation as it last was
    gone: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fast:
            self.export.seconds = 11.0
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def begin(self) -> None:
        threading.Thread(target=self._run, name="story", daemon=True).start()

    def _run(self) -> None:
        try:
            self._tell()
        except BaseException as error:  # noqa: BLE001 - kept for the main thread, which raises it
            self.failure = error
        finally:
            self.over.set()

    def say(self, text: str, version: int = 0, mood: str = "") -> None:
        self.lines.append(Line(self.elapsed, text, version, mood))

    def pause(self, seconds: float) -> None:
        """Time for the eye, not for the server: nothing depends on its length."""
        time.sleep(seconds * (0.2 if self.fast else 1.0))

    # --- the story

    def _tell(self) -> None:
        load, workers = self.round.load, self.round.server.workers
        host, port = self.round.server.address
        self.say(f"version 1 serves at http://{host}:{port} with {workers} workers; clients of six kinds begin", 1)
        load.begin(MIXED)
        self.pause(3)
        self.export.begun = time.monotonic()
        load.once("export", f"/slow?seconds={self.export.seconds:g}", planned=self.export.seconds)
        self.say(f"an export begins: one request of {self.export.seconds:g} s. Version 1 has to finish it", 1, "note")
        self.pause(2)
        self._release("HUP", "new code, asked for by `kill -HUP`")
        self.pause(4)
        self._release("release", "new code again, asked for by `reuseport release`; version 1 still drains")
        self.pause(4)
        self._release("release", "this one raises while it is imported", "raises")
        self.pause(4)
        self._release("release", "this one takes 3 s to import", "slow import")
        self.pause(4)
        self._release("HUP", "and one more by `kill -HUP`")
        self._await_export()
        self.round.server.wait(self._one_left, 30, "end its old generations once their work was done")
        self.say("every old generation has finished its work and gone, by itself", mood="good")
        self.pause(3)

    def _release(self, door: str, why: str, variant: str = "good") -> None:
        self.say(f"release of version {self.round.releases.newest + 1}: {why}", self.round.releases.newest + 1)
        release = self.round.release(variant, door=door)
        if release.trouble:
            self.say(f"not as it should be: {release.trouble}", release.version, "bad")
        elif release.outcome == "served":
            worst = max(self._latencies(release.window), default=0.0)
            text = f"version {release.version} serves after {release.seconds:.1f} s; "
            text += f"the slowest short request meanwhile took {worst * 1000:.0f} ms"
            self.say(text, release.version, "good")
        else:
            text = f"refused, with the reason on the asker's terminal: {last_line(release.error)}"
            self.say(text, release.version, "bad")
            self.say(
                "the version before it serves on; nobody noticed", version_serving(self.round.server.status()), "good"
            )

    def _await_export(self) -> None:
        deadline = self.export.begun + self.export.seconds + 10
        while time.monotonic() < deadline:
            with self.round.load.looking() as account:
                if account.sent_by_kind["export"] and not any(s.kind == "export" for s in account.open.values()):
                    break
            time.sleep(0.05)
        self.export.ended = time.monotonic()
        releases = sum(release.outcome == "served" for release in self.round.started)
        self.say(f"the export is finished, by version 1, as begun: {releases} releases went by meanwhile", 1, "good")

    def _one_left(self, status: dict[str, Any]) -> bool:
        return len(status["generations"]) == 1

    def _latencies(self, window: Window) -> list[float]:
        with self.round.load.looking() as account:
            return account.latencies(SHORT, [window])

    # --- what may be shown

    def look(self) -> None:
        """Take in the latest status, so that generations that have gone can still be shown."""
        status = self.round.watch.latest
        present = set()
        for generation in status["generations"]:
            present.add(generation["number"])
            self.seen[generation["number"]] = generation
        for number in self.seen.keys() - present:
            self.gone.setdefault(number, self.elapsed)


def last_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "(no reason was given)"


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
    figures += [(f"v{r.version} refused", f"exit 1: {last_line(r.error)}") for r in refused if r.door == "release"]
    return Verdict(figures, troubles)


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
