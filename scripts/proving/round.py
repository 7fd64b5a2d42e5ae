"""A round: a server with the sample monolith, clients at work on it, someone who watches, and hands that release,
kill and block. demo, stress and the scenarios differ only in what they do with these hands, and when.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from proving import tenancy
from proving.accounting import Account, Window
from proving.load import Load
from proving.releases import BROKEN, Releases
from proving.server import Outcome, Server, ServerTrouble, Status
from proving.tenancy import Work

WATCH_EVERY = 0.2
FULL_STRENGTH_WITHIN = 20.0


def version_of(generation: Mapping[str, Any]) -> int:
    """The version that a generation runs, or a release brought, from its resolved directory. 0 if it has none yet."""
    name = str(generation.get("directory", "")).rstrip("/").rpartition("/")[2]
    return int(name) if name.isdigit() else 0


def version_serving(status: Status) -> int:
    return next((version_of(g) for g in status["generations"] if g["number"] == status["serving"]), 0)


@dataclass
class Release:
    """A release that was asked for, and what became of it."""

    version: int
    variant: str
    door: str  # "release", "rollback": the commands; "HUP": the signal
    asked: float
    ended: float = 0.0
    outcome: str = ""  # served, failed, superseded
    error: str = ""
    generation: int = 0
    trouble: str = ""  # what was not as it should have been

    @property
    def seconds(self) -> float:
        return self.ended - self.asked

    @property
    def window(self) -> Window:
        return Window(self.asked, self.ended)


@dataclass
class Strike:
    """A worker that was killed, and how long its place stayed empty."""

    pid: int
    worker: str
    at: float
    held: int
    seconds: float = 0.0
    trouble: str = ""


SUPERSEDED = 4  # exit status of a release that another one has superseded


class Watch:
    """Looks at the status five times a second; remembers the latest, and the most that was seen at once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.latest: Status = server.status()
        self.most_draining = 0
        self.most_processes = 0
        self.unanswered: list[str] = []  # the master did not answer, and why
        self.absent = False  # while there is no master, and should be none
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(WATCH_EVERY):
            try:
                status = self.server.status()
            except (OSError, ValueError, ServerTrouble) as error:
                if not self.absent:
                    self.unanswered.append(f"{type(error).__name__}: {error}")
                continue
            self.latest = status
            generations = status["generations"]
            self.most_draining = max(self.most_draining, sum(g["state"] == "draining" for g in generations))
            self.most_processes = max(self.most_processes, 1 + sum(1 + len(g["workers"]) for g in generations))


class Round:
    """Use it as a context: leaving it ends clients and server, whatever happened.

    `tenants`: the server knows them by X-Tenant, and the application keeps a journal of their work.
    """

    def __init__(
        self,
        *,
        workers: int = 3,
        seed: int = 1,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        load: bool = True,
        heap_mb: int = 0,
        tenants: bool = False,
        tell: Callable[[str], None] = lambda line: None,
        **more: Any,
    ) -> None:
        self.random = random.Random(seed)
        self.tell = tell
        self.started: list[Release] = []
        self.strikes: list[Strike] = []
        self.blocks = 0
        self.heap_mb = heap_mb
        self._stack = ExitStack()
        self._setup: dict[str, Any] = {"workers": workers, "options": options, "env": env, **more}
        self._seed, self._with_load, self._with_tenants = seed, load, tenants
        self.account: Account | None = None

    def __enter__(self) -> Round:
        with ExitStack() as stack:
            self.root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="monolith-")))
            self.releases = Releases(self.root)
            self.releases.next(heap_mb=self.heap_mb)
            self.journal = self.root / "journal"
            if self._with_tenants:
                self._setup["options"] = ("--tenant", "header:X-Tenant", *self._setup["options"])
                self._setup["env"] = {**(self._setup["env"] or {}), "MONOLITH_JOURNAL": str(self.journal)}
            self.prepare()
            self.server = stack.enter_context(Server(self.releases.current, **self._setup))
            self.watch = Watch(self.server)
            stack.callback(self.watch.end)
            if self._with_load:
                self.load = stack.enter_context(Load(self.server.address, seed=self._seed))
                self.load.served(self.watch.latest["serving"])
            self.at = time.monotonic()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)

    def prepare(self) -> None:
        """For those who have more to lay out before the server starts."""

    @property
    def serving(self) -> int:
        return int(self.server.status()["serving"])

    # --- hands

    def release(self, variant: str = "good", *, door: str = "release") -> Release:
        """Write the next version, make it current, ask for the release, wait for its outcome, and judge it."""
        before = self.serving
        version = self.releases.next(variant, heap_mb=self.heap_mb)
        release = Release(version, variant, door, time.monotonic())
        self.started.append(release)
        self.tell(f"release of version {version} ({variant}) asked for by {door}")
        if door == "HUP":
            self._by_hup(release)
        else:
            self.judge(release, self.server.release(), before)
        return release

    def rollback(self) -> Release | None:
        """`reuseport rollback`, which has to bring the version before. None if there is none to go back to."""
        status = self.server.status()
        before = int(status["serving"])
        now = version_serving(status)
        older = {version_of(entry) for entry in status["releases"] if entry["outcome"] == "serving"}
        older = {version for version in older if version < now}
        if not older:
            return None
        release = Release(max(older), "rollback", "rollback", time.monotonic())
        self.started.append(release)
        self.tell(f"rollback from version {now} to {release.version}")
        self.judge(release, self.server.release(do="rollback"), before)
        version = version_serving(self.server.status())
        if not release.trouble and version != release.version:
            release.trouble = f"version {version} serves instead"
        return release

    def hurried(self, first: str, second: str, after: float) -> tuple[Release, Release]:
        """Two releases, the second asked for while the first still boots: the newest code wins, both askers know."""
        before = self.serving
        pairs = []
        for variant, pause in ((first, after), (second, 0.0)):
            release = Release(self.releases.next(variant), variant, "release", time.monotonic())
            self.started.append(release)
            self.tell(f"release of version {release.version} ({variant}) asked for by release")
            pairs.append((release, self.server.ask_release()))
            time.sleep(pause)
        for release, asked in pairs:
            output, error = asked.communicate(timeout=120)
            outcome = Outcome(asked.returncode, time.monotonic() - release.asked, output, error)
            # The first one is superseded if the second one came while it booted.
            release.ended = time.monotonic()
            self.judge(release, outcome, before, expected=second if release.seconds > after else first)
        return pairs[0][0], pairs[1][0]

    def judge(self, release: Release, outcome: Outcome, before: int, expected: str | None = None) -> None:
        """Write down how a release ended, and what about that should have been otherwise."""
        release.ended = release.asked + outcome.seconds
        release.error = outcome.error.strip()
        release.generation = self.serving
        if outcome.exit == SUPERSEDED and expected:
            release.outcome = "superseded"  # the other one says what serves
            return
        release.outcome = "served" if outcome.served else "failed"
        self.settle(release, before, expected or release.variant)
        if outcome.exit not in (0, 1):
            command = "rollback" if release.door == "rollback" else "release"
            release.trouble = f"`reuseport {command}` exited {outcome.exit}: {outcome.last_line}"

    def settle(self, release: Release, before: int, variant: str) -> None:
        if release.outcome == "served":
            self.load_served(release.generation)
        word = BROKEN.get(variant)
        if word is None and release.outcome != "served":
            release.trouble = f"a good release failed: {release.error or 'nobody said why'}"
        elif word is None and release.generation <= before:
            release.trouble = f"it served, they say, but generation {release.generation} serves as before"
        elif word is not None and release.outcome == "served":
            release.trouble = f"code that {variant} serves"
        elif word is not None and release.generation != before:
            release.trouble = f"the release failed, yet generation {release.generation} serves instead of {before}"
        elif word is not None and word.lower() not in release.error.lower():
            release.trouble = f"the asker was not shown {word!r}, but: {release.error[-300:]!r}"

    def _by_hup(self, release: Release) -> None:
        """The signal has no answer: its outcome is the next entry of the status's releases."""
        before = self.server.status()
        known = [self._key(entry) for entry in before["releases"]]
        self.server.hup()
        status = self.server.wait(
            lambda status: any(self._key(entry) not in known for entry in status["releases"]),
            120,
            f"end the release of version {release.version}",
        )
        entry = next(entry for entry in reversed(status["releases"]) if self._key(entry) not in known)
        release.ended = time.monotonic()
        release.outcome = "served" if entry["outcome"] == "serving" else entry["outcome"]
        release.error = entry["error"] or ""
        release.generation = status["serving"]
        self.settle(release, before["serving"], release.variant)

    @staticmethod
    def _key(entry: dict[str, Any]) -> tuple[object, ...]:
        return entry["number"], entry["at"]

    def load_served(self, generation: int) -> None:
        if self._with_load:
            self.load.served(generation)

    def strike(self, *, draining_too: bool = False) -> Strike | None:
        """SIGKILL a worker and wait until its place is filled. None if there was none to kill."""
        status = self.server.status()
        workers = self.server.ready(status)
        if draining_too:
            workers += [w for g in status["generations"] if g["state"] == "draining" for w in g["workers"]]
        if not workers:
            return None
        worker = self.random.choice(workers)
        try:
            ports = self.server.hold_worker(worker["pid"])
        except ProcessLookupError:
            return None  # a draining worker that had just finished
        strike = Strike(worker["pid"], worker["id"], time.monotonic(), len(ports))
        self.strikes.append(strike)
        self.load.killed(strike.pid, ports)
        self.server.kill(strike.pid)
        self.tell(f"worker {strike.worker} killed with {strike.held} connections")
        try:
            self.server.wait(lambda status: self._whole(status, strike.pid), FULL_STRENGTH_WITHIN, "fill the place")
        except ServerTrouble as error:
            strike.trouble = str(error).partition("\n")[0]
        strike.seconds = time.monotonic() - strike.at
        return strike

    def _whole(self, status: Status, killed: int) -> bool:
        ready = self.server.ready(status)
        return len(ready) >= self.server.workers and all(worker["pid"] != killed for worker in ready)

    def block(self, seconds: float) -> None:
        """Give some worker CPU work that does not yield."""
        self.blocks += 1
        self.tell(f"a worker is blocked by {seconds:g} s of CPU work")
        self.load.once("burn", f"/burn?seconds={seconds:g}", planned=seconds)

    def finish(self, within: float = 60.0) -> Account:
        """Let the clients come to their end; from here on the account only waits to be read."""
        self.account = self.load.finish(within)
        return self.account

    # --- what it came to

    def work(self) -> list[Work]:
        """What the application's journal says that it has done for tenants so far."""
        with self.journal.open() as lines:
            return tenancy.read(lines, self.kills)

    @property
    def kills(self) -> dict[int, float]:
        """Which process was killed on purpose, and when."""
        return {strike.pid: strike.at for strike in self.strikes}

    def troubles(self) -> list[str]:
        """Everything that should have been otherwise, a line each. Empty: a clean round."""
        lines = [
            f"release of version {r.version} ({r.variant}, {r.door}): {r.trouble}" for r in self.started if r.trouble
        ]
        lines += [f"worker {s.worker}: {s.trouble}" for s in self.strikes if s.trouble]
        lines += [f"the master did not answer: {why}" for why in self.watch.unanswered]
        if self.account is not None:
            lines += [f"{n} requests failed: {reason}" for reason, n in self.account.reasons().most_common()]
            lines += [f"a request was {t.reason}" for t in self.account.stale]
            lines += [f"{len(self.account.dropped)} kept connections closed while idle"] if self.account.dropped else []
        return lines

    def report(self) -> dict[str, object]:
        """All of it, as JSON has it."""
        outcomes = {
            "asked": len(self.started),
            "served": sum(r.outcome == "served" for r in self.started),
            "failed_as_expected": sum(r.outcome == "failed" and not r.trouble for r in self.started),
            "not_as_expected": sum(bool(r.trouble) for r in self.started),
        }
        return {
            "clean": not self.troubles(),
            "troubles": self.troubles(),
            "releases": {
                **outcomes,
                "each": [
                    {
                        "version": r.version,
                        "variant": r.variant,
                        "door": r.door,
                        "at": round(r.asked - self.at, 3),
                        "seconds": round(r.seconds, 3),
                        "outcome": r.outcome,
                        "generation": r.generation,
                        "error": r.error,
                        "trouble": r.trouble,
                    }
                    for r in self.started
                ],
            },
            "most_generations_draining_at_once": self.watch.most_draining,
            "most_processes_at_once": self.watch.most_processes,
            "kills": [{**asdict(strike), "at": round(strike.at - self.at, 3)} for strike in self.strikes],
            "blocks": self.blocks,
            "requests": self.account.summary() if self.account else None,
        }
