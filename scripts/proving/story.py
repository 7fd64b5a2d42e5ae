"""What the demo tells: the releases in order, and why each is worth seeing. It knows nothing of how it is shown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from proving.accounting import SHORT, Served, Window
from proving.load import MIXED
from proving.round import Round, version_serving
from proving.server import ServerTrouble
from proving.tenancy import Work

TENANT, OTHER = "acme", "globex"
IDLE = 300  # connections that are silent most of the time


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
class Job:
    """The work of one tenant, which keeps it where it began while everybody else moves on. Times are monotonic."""

    seconds: float
    begun: float = 0.0
    ended: float = 0.0
    generation: int = 0
    moved: float = 0.0  # when the tenant was first answered by a newer generation


@dataclass
class Story:
    round: Round
    fast: bool = False
    lines: list[Line] = field(default_factory=list)
    failure: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)
    export: Export = field(default_factory=lambda: Export(33.0))
    job: Job = field(default_factory=lambda: Job(20.0))
    handed_over: int = 0
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)  # each generation as it last was
    gone: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fast:
            self.export.seconds, self.job.seconds = 11.0, 4.0
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
        self.say(f"version 1 serves at http://{host}:{port} with {workers} workers; clients of seven kinds begin", 1)
        load.begin({**MIXED, "idle": {"users": IDLE, "seconds": 2.0 if self.fast else 6.0, "requests": 1000}})
        for tenant in (TENANT, OTHER):
            load.begin({"keep-alive": {"users": 2, "every": 0.1, "requests": 40, "tenant": tenant}})
        self.pause(3)
        self._begin_export()
        self._begin_job()
        self.pause(2)
        self._release("HUP", "new code, asked for by `kill -HUP`")
        self._compare_tenants()
        self.pause(4)
        self._release("release", "new code again, asked for by `reuseport release`; version 1 still drains")
        self.pause(4)
        self._release("release", "this one raises while it is imported", "raises")
        self.pause(4)
        self._await_job()
        self.pause(3)
        self._release("release", "this one takes 3 s to import", "slow import")
        self.pause(3)
        self._hand_over()
        self.pause(3)
        self._roll_back()
        self._await_export()
        self.round.server.wait(one_left, 30, "end its old generations once their work was done")
        self.say("every old generation has finished its work and gone, by itself; the last one stands by", mood="good")
        self.pause(3)

    # --- its acts

    def _begin_export(self) -> None:
        self.export.begun = time.monotonic()
        self.round.load.once("export", f"/slow?seconds={self.export.seconds:g}", planned=self.export.seconds)
        self.say(f"an export begins: one request of {self.export.seconds:g} s. Version 1 has to finish it", 1, "note")

    def _begin_job(self) -> None:
        self.round.load.once("job", f"/job?seconds={self.job.seconds:g}", tenant=TENANT)
        found = self._await("the job of the tenant to begin", self._job_in_journal)
        self.job.begun, self.job.generation = found.begun, found.generation
        text = f"{TENANT} begins a job of {self.job.seconds:g} s beside its requests: it stays with version 1 meanwhile"
        self.say(text, 1, "note")

    def _compare_tenants(self) -> None:
        """Behind the first release: the tenant with the job is where it was, another one is not."""
        since = time.monotonic()
        found = self._await("answers to both tenants", lambda: self._versions_since(since))
        mood = "good" if found[TENANT] < found[OTHER] else "bad"
        self.say(f"{TENANT} has a job and is on version {found[TENANT]}; {OTHER} is on version {found[OTHER]}", 0, mood)

    def _await_job(self) -> None:
        done = self._await("the job of the tenant to end", lambda: (w := self._job_in_journal()).ended < inf and w)
        self.job.ended = done.ended
        answer = self._await(f"{TENANT} to move", self._first_newer)
        self.job.moved = answer.ended
        after = answer.ended - done.ended
        if after < 0:
            self.say(
                f"not as it should be: {TENANT} moved {-after:.1f} s before its job was over", answer.version, "bad"
            )
            return
        text = f"the job of {TENANT} is over: it moved from version {done.version} to {answer.version}, "
        self.say(f"{text}{after * 1000:.0f} ms after", answer.version, "good")

    def _hand_over(self) -> None:
        """A release, and where the open connections are afterwards."""
        self._release("HUP", f"and one more by `kill -HUP`, with {IDLE} idle connections open")
        status = self.round.server.wait(idle_is_handed_over, 10, "hand its idle connections over")
        self.handed_over = sum(
            w["connections"] for g in status["generations"] if g["number"] == status["serving"] for w in g["workers"]
        )
        with self.round.load.looking() as account:
            dropped = len(account.dropped)
        version, mood = version_serving(status), "bad" if dropped else "good"
        text = f"{self.handed_over} open connections are with version {version} now; {dropped} were dropped"
        self.say(text, version, mood)

    def _roll_back(self) -> None:
        self.say("the new version is not liked: `reuseport rollback`", mood="note")
        release = self.round.rollback()
        if release is None or release.trouble or release.outcome != "served":
            why = release.trouble if release else "there was nothing to go back to"
            self.say(f"not as it should be: {why}", mood="bad")
            return
        text = f"version {release.version} serves again after {release.seconds:.1f} s: its zygote stood by"
        self.say(text, release.version, "good")

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

    # --- what it looks at

    def _await(self, what: str, look: Callable[[], Any], within: float = 60.0) -> Any:
        """What `look` finds, as soon as it is not nothing. ServerTrouble if it never does."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(0.05)
        raise ServerTrouble(f"waited {within:g} s for {what}:\n{self.round.server.log_end()}")

    def _job_in_journal(self) -> Work | None:
        if not self.round.journal.exists():
            return None
        return next((work for work in self.round.work() if work.kind == "job"), None)

    def _versions_since(self, since: float) -> dict[str, int] | None:
        with self.round.load.looking() as account:
            found = {one.tenant: one.version for one in account.tenants if one.at > since}
        return found if len(found) == 2 else None

    def _first_newer(self) -> Served | None:
        with self.round.load.looking() as account:
            newer = (o for o in account.tenants if o.tenant == TENANT and o.generation > self.job.generation)
            return next(newer, None)

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


def one_left(status: dict[str, Any]) -> bool:
    """Whether only one generation works. Another one may stand by: a zygote without workers."""
    return sum(bool(generation["workers"]) for generation in status["generations"]) == 1


def idle_is_handed_over(status: dict[str, Any]) -> bool:
    """Whether old generations hold no connections but those with a request."""
    return all(
        worker["connections"] <= worker["requests"]["active"]
        for generation in status["generations"]
        if generation["number"] != status["serving"]
        for worker in generation["workers"]
    )


def last_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "(no reason was given)"
