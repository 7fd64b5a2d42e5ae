"""Endurance: releases without a pause, with jobs and tenants, while processes die and resources run out.

A seed decides what comes next: a good or a broken release; a rollback; a worker or a zygote killed at a random moment
of a release; a stopped master while hundreds of jobs begin and end; a master without file descriptors at a random
moment of a release; a full disk under the state directory. Only requests of killed workers may fail, the master may not
grow, and every drain has to end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from proving import customers
from proving.figures import Result, Tell
from proving.releases import BROKEN
from proving.round import Release, Round
from proving.server import Status, process_state

TENANTS = 8
BURST = 400  # jobs: more messages than a socket holds
LONGEST_DRAIN = 60.0  # seconds; the longest work takes `customers.LONGEST_JOB`
STATE = 16 << 20  # bytes of the state directory's file system; a line of the history takes about 3,000
SETTLE_EVERY = 8  # acts; then every drain has to end before the next one
WARM_UP = 10  # releases before the first look: caches fill, and the allocator keeps what a first large status took
TENTH = 10  # growth is the median of the last tenth of the looks, against that of the first
ANSWER_WITHIN = 90.0  # seconds for a release to be answered, whatever happens


@dataclass
class Look:
    """The resources of the master, at a moment at which no generation boots or drains."""

    descriptors: int
    memory: int  # bytes, resident
    files: int  # in the run directory


@dataclass
class Ordeal:
    """One run. `counts`: how often each thing was done."""

    rounds: Round
    disk: Disk
    tell: Tell
    counts: Counter[str] = field(default_factory=Counter)
    looks: list[Look] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    late: set[int] = field(default_factory=set)  # generations whose drain took too long

    # --- what is done to it

    def release(self) -> None:
        self.rounds.release(door=self.rounds.random.choice(("HUP", "release")))

    def broken(self) -> None:
        variants = sorted(set(BROKEN) - {"hangs"})  # which takes the whole of --boot-timeout
        self.rounds.release(self.rounds.random.choice(variants), door=self.rounds.random.choice(("HUP", "release")))

    def rollback(self) -> None:
        if self.rounds.rollback() is None:
            self.release()

    def kill_worker(self) -> None:
        """At a random moment of a release, a worker that serves or drains."""
        with self._under_way("a worker is killed"):
            self.rounds.strike(draining_too=True)

    def kill_zygote(self) -> None:
        """Of what serves, or of what boots. Then the release may fail, and has to say so."""
        with self._under_way("a zygote is killed"):
            zygotes = [g["zygote"]["pid"] for g in self.rounds.server.status()["generations"] if g["zygote"]]
            pid = self.rounds.random.choice(zygotes)
            self.rounds.tell(f"zygote {pid} killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def burst(self) -> None:
        """Hundreds of jobs begin and end while the master does not read."""
        server, seconds = self.rounds.server, self.rounds.random.uniform(0.3, 1.0)
        self.rounds.watch.absent = True
        os.kill(server.pid, signal.SIGSTOP)
        try:
            self.rounds.load.once("burst", f"/burst?count={BURST}&seconds={seconds:.2f}", planned=seconds)
            time.sleep(seconds * self.rounds.random.uniform(0.5, 2.0))
        finally:
            os.kill(server.pid, signal.SIGCONT)
            server.wait(lambda status: True, 20, "answer after it was stopped")
            self.rounds.watch.absent = False
        self.release()

    def starve(self) -> None:
        """No file descriptors are left to the master, from a random moment of a release on."""
        with self._under_way("the master has no descriptors left") as release, starving(self.rounds.server.pid):
            time.sleep(self.rounds.random.uniform(0.0, 2.0))
            self.rounds.server.status()
        if release.outcome == "failed" and "open files" not in release.error and "channel" not in release.error:
            release.trouble = f"the asker was not told of the descriptors, but: {release.error[-300:]!r}"

    def starve_before(self) -> None:
        """None are left when the release is asked for: it is refused, or it is served."""
        with starving(self.rounds.server.pid), self._under_way("asked for without descriptors", 0.0):
            pass

    def fill_disk(self) -> None:
        """The history and the samples cannot be written; everything else goes on."""
        with self.disk.full():
            self.release()

    @contextlib.contextmanager
    def _under_way(self, what: str, longest: float = 1.5) -> Iterator[Release]:
        """A release that is at a random moment when the body runs. It may be served, or fail and say why."""
        rounds = self.rounds
        before, version = rounds.serving, rounds.releases.next()
        release = Release(version, what, "release", time.monotonic())
        rounds.started.append(release)
        rounds.tell(f"release of version {version}: {what}")
        asked = rounds.server.ask_release()
        try:
            time.sleep(rounds.random.uniform(0.0, longest))
            yield release
            output, error = asked.communicate(timeout=ANSWER_WITHIN)
        except subprocess.TimeoutExpired:
            release.trouble = f"no answer within {ANSWER_WITHIN:g} s"
            return
        finally:
            if asked.poll() is None:
                asked.kill()
                asked.communicate()
        release.ended, release.error = time.monotonic(), (error or output).strip()
        release.generation = rounds.serving
        release.outcome = "served" if asked.returncode == 0 else "failed"
        if release.outcome == "served":
            rounds.load_served(release.generation)
        if (release.outcome == "served") != (release.generation > before):
            release.trouble = f"it {release.outcome}, they say, and generation {release.generation} serves"
        elif asked.returncode not in (0, 1) or (release.outcome == "failed" and not release.error):
            release.trouble = f"exit status {asked.returncode}: {release.error[-300:]!r}"

    # --- what is looked at

    def look(self) -> None:
        """Drains that last too long; and what the master takes, if this is a quiet moment."""
        status = self.rounds.server.status()
        for g in status["generations"]:
            if g["state"] == "draining" and g["since"] > LONGEST_DRAIN and g["number"] not in self.late:
                self.late.add(g["number"])
                self.troubles.append(f"generation {g['number']} drains for {g['since']:.0f} s: {g['waits_for']}")
        if is_quiet(status) and len(self.rounds.started) > WARM_UP:
            self.looks.append(look_at(self.rounds.server.pid, self.rounds.server.run_dir))

    def settle(self) -> float:
        """Wait until every drain has ended; how long that took, in seconds. ServerTrouble."""
        began = time.monotonic()
        self.rounds.server.wait(is_quiet, LONGEST_DRAIN, "end every drain")
        return time.monotonic() - began

    def settle_at_last(self) -> float:
        """When no client is left: also every job has ended, and is shown no longer."""
        began = time.monotonic()
        self.settle()
        self.rounds.server.wait(
            lambda status: not any(g["waits_for"]["jobs"] for g in status["generations"]),
            LONGEST_DRAIN,
            "forget every job that has ended",
        )
        return time.monotonic() - began


# How often each comes, in a hundred.
SHARES: dict[Callable[[Ordeal], None], int] = {
    Ordeal.release: 30,
    Ordeal.broken: 12,
    Ordeal.rollback: 10,
    Ordeal.kill_worker: 14,
    Ordeal.kill_zygote: 8,
    Ordeal.burst: 8,
    Ordeal.starve: 6,
    Ordeal.starve_before: 4,
    Ordeal.fill_disk: 8,
}


def endurance(tell: Tell, seconds: float = 60.0, releases: int | None = None, seed: int = 1) -> Result:
    """Releases with jobs and tenants, kills, no descriptors, full disks: nothing fails, nothing grows, drains end."""
    result = Result("endurance")
    tell(f"seed {seed}")
    with Disk() as disk:
        given = ["--boot-timeout", "60", "--tenant-isolation", customers.SHARED, "--state-dir", str(disk.path)]
        with Round(workers=2, seed=seed, options=given, tenants=True, tell=tell) as rounds:
            ordeal = Ordeal(rounds, disk, tell)
            shares = {act: share for act, share in SHARES.items() if disk.mounted or act is not Ordeal.fill_disk}
            if not disk.mounted:
                tell("no disk is ever full: only root can mount a file system")
            customers.begin(rounds, TENANTS, jobs=True)
            until = float("inf") if releases else time.monotonic() + seconds
            while time.monotonic() < until and len(rounds.started) < (releases or float("inf")):
                act = rounds.random.choices(list(shares), list(shares.values()))[0]
                ordeal.counts[act.__name__] += 1
                act(ordeal)
                if ordeal.counts.total() % SETTLE_EVERY == 0:
                    ordeal.settle()
                ordeal.look()
            tell("the clients come to their end")
            account = rounds.finish(within=30)
            last_drain = ordeal.settle_at_last()
            ordeal.look()
            judgement = customers.judge(rounds, customers.SHARED)
            stopped = stop(rounds)
            result.take(rounds)
        result.report |= {"seed": seed, "counts": dict(ordeal.counts), "looks": [vars(one) for one in ordeal.looks]}
    result.troubles += [*ordeal.troubles, *judgement.troubles]
    outcomes = Counter(release.outcome for release in rounds.started)
    bad = sum(bool(release.trouble) for release in rounds.started)
    figure = f"{len(rounds.started)}: {outcomes['served']} served, {outcomes['failed']} failed, all answered"
    result.add("releases", figure, "each as it should", not bad and not outcomes[""])
    done = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(ordeal.counts.items()))
    result.add("what was done", done, "told", True)
    lost = f", {len(account.lost)} lost with {len(rounds.strikes)} killed workers"
    result.add("requests failed", f"{account.failed} of {account.sent:,}{lost}", "0", account.clean)
    result.add("tenants", customers.told(judgement, TENANTS, customers.SHARED), "no trouble", not judgement.troubles)
    result.add("drains over their time", str(len(ordeal.late)), "0", not ordeal.late)
    result.add("last drain", f"{last_drain:.1f} s after the last client", f"{LONGEST_DRAIN:g} s", True)
    result.add("stop by TERM", stopped, "exit status 0", stopped.startswith("exit status 0"))
    growth(result, ordeal.looks)
    return result


def growth(result: Result, looks: list[Look]) -> None:
    """The first tenth of the looks against the last one."""
    if not looks:
        result.add("growth of the master", "too few releases to tell", "told", True)
        return
    share = max(1, len(looks) // TENTH)
    # Of each release the history keeps a line, in the file and in memory.
    room = {"descriptors": (1.2, 8), "memory": (1.25, 16 << 20), "files": (1.2, 8)}
    for name, (factor, more) in room.items():
        first, last = (median(getattr(one, name) for one in some) for some in (looks[:share], looks[-share:]))
        shown = [f"{value / (1 << 20):.1f} MiB" if name == "memory" else f"{value:g}" for value in (first, last)]
        limit = first * factor + more
        figure = f"{shown[0]} to {shown[1]} (medians of {share} looks of {len(looks)})"
        result.add(f"{name} of the master", figure, "no growth", last <= limit)


def is_quiet(status: Status) -> bool:
    """Nothing boots, and nothing drains."""
    return all(g["state"] in ("serving", "standby") for g in status["generations"])


def look_at(pid: int, run_dir: Path) -> Look:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = sum(len(names) for _, _, names in os.walk(run_dir))
    return Look(len(os.listdir(f"/proc/{pid}/fd")), pages * os.sysconf("SC_PAGESIZE"), files)


@contextlib.contextmanager
def starving(pid: int) -> Iterator[None]:
    """The process can open no descriptor: its limit is the lowest number that is free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    lowest = next(number for number in range(len(taken) + 1) if number not in taken)
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        if process_state(pid):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def stop(rounds: Round) -> str:
    """How the server ends by SIGTERM, when no client is left."""
    assert rounds.server.process is not None
    rounds.watch.absent = True
    began = time.monotonic()
    rounds.server.process.send_signal(signal.SIGTERM)
    try:
        status = rounds.server.process.wait(30)
    except subprocess.TimeoutExpired:
        return "has not ended within 30 s"
    return f"exit status {status} after {time.monotonic() - began:.1f} s"


class Disk:
    """A small file system for the state directory: a tmpfs of its own, which only root can mount.

    `mounted`: whether there is one, which can be full.
    """

    def __init__(self) -> None:
        self._files = tempfile.TemporaryDirectory(prefix="endurance-")
        self.path = Path(self._files.name, "state")
        self.path.mkdir(mode=0o700)
        self.mounted = False

    def __enter__(self) -> Disk:
        command = ["mount", "-t", "tmpfs", "-o", f"size={STATE},mode=0700", "tmpfs", str(self.path)]
        self.mounted = os.geteuid() == 0 and subprocess.run(command, check=False).returncode == 0
        return self

    def __exit__(self, *error: Any) -> None:
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self._files.cleanup()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Not one byte can be written meanwhile."""
        ballast = self.path / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        try:
            yield
        finally:
            ballast.unlink()
