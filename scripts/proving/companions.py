"""Companions through releases: a Huey consumer (SQLite) that has a long task each time, and a scheduler that may run
only once."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from proving.figures import Result, Tell
from proving.releases import SAMPLE
from proving.round import Round

SHORT_EVERY = 0.25  # seconds between two short tasks
SHORT = 0.05  # seconds that each takes
LET_GO = 1.0  # seconds after a release in which the old consumer may still take one: its threads look once more
CONFIGURATION = """\
[[companion]]
name = "huey"
command = "python -m huey.bin.huey_consumer tasks.huey -w 2 -m 0.2"
stop_signal = "INT"

[[companion]]
name = "beat"
command = ["python", "beat.py"]
exclusive = true
"""


@dataclass
class Task:
    number: int
    seconds: float
    asked: float
    begun: list[dict[str, float]]
    ended: list[dict[str, float]]

    @property
    def whole(self) -> bool:
        """It was begun once, and ended once, for as long as it takes, by whoever began it."""
        if (len(self.begun), len(self.ended)) != (1, 1):
            return False
        first, last = self.begun[0], self.ended[0]
        return first["pid"] == last["pid"] and last["at"] - first["at"] >= self.seconds


class WithQueue(Round):
    """A round whose monolith has tasks, and two companions."""

    def prepare(self) -> None:
        self.asked: list[Task] = []
        configuration = self.root / "reuseport.toml"
        configuration.write_text(CONFIGURATION)
        queue = self.root / "queue.sqlite"
        self._setup["options"] = ("-c", str(configuration))
        self._setup["env"] = {"MONOLITH_QUEUE": str(queue), "MONOLITH_JOURNAL": str(self.journal)}
        self.equip(1)
        self.releases.write("with tasks", version=1)

    def equip(self, version: int) -> None:
        directory = self.releases.directory(version)
        directory.mkdir(parents=True, exist_ok=True)
        code = (SAMPLE.parent / "tasks.py").read_text().replace("VERSION = 1\n", f"VERSION = {version}\n", 1)
        (directory / "tasks.py").write_text(code)
        shutil.copy(SAMPLE.parent / "beat.py", directory)

    def release_tasks(self, door: str) -> float:
        """The next version, with its tasks. When it served."""
        self.equip(self.releases.newest + 1)
        return self.release("with tasks", door=door).ended

    def ask(self, seconds: float) -> Task:
        """Have the monolith ask for a task, as a customer's request would."""
        host, port = self.server.address
        task = Task(len(self.asked) + 1, seconds, time.monotonic(), [], [])
        self.asked.append(task)
        with urlopen(f"http://{host}:{port}/ask?number={task.number}&seconds={seconds}", timeout=10) as response:
            response.read()
        return task

    def lines(self, what: str) -> list[dict[str, float]]:
        text = self.journal.read_text() if self.journal.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["what"] == what]

    def read(self) -> None:
        """What the journal tells of each task by now."""
        for task in self.asked:
            task.begun = [line for line in self.lines("begins") if line["number"] == task.number]
            task.ended = [line for line in self.lines("ends") if line["number"] == task.number]

    def work_until(self, end: float) -> None:
        """Short tasks all the time."""
        while time.monotonic() < end:
            self.ask(SHORT)
            time.sleep(max(0.0, min(SHORT_EVERY, end - time.monotonic())))

    def await_end(self, within: float) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.read()
            if all(task.ended for task in self.asked):
                return
            time.sleep(0.2)


def companions(tell: Tell, seconds: float = 60.0, releases: int = 3) -> Result:
    """A queue's long tasks through releases: each ends where it began; nothing is lost, done twice or interrupted."""
    result = Result("companions")
    with WithQueue(workers=2, tell=tell) as rounds:
        rounds.load.begin({"keep-alive": {"users": 5, "every": 0.1, "requests": 1000}, "one-shot": {"rate": 20}})
        long = [rounds.ask(seconds)]
        start, served = time.monotonic(), []
        for number in range(releases):
            rounds.work_until(start + seconds * (number + 0.5) / (releases + 0.5))
            served.append(rounds.release_tasks(("release", "HUP")[number % 2]))
            rounds.work_until(time.monotonic() + LET_GO)
            long.append(rounds.ask(seconds))
        tell(f"{releases + 1} tasks of {seconds:g} s, in as many generations")
        rounds.work_until(time.monotonic() + 2 * LET_GO)
        rounds.await_end(seconds + 30)
        rounds.server.wait(
            lambda status: {g["state"] for g in status["generations"]} <= {"serving", "standby"},
            30,
            "end the old generations",
        )
        account = rounds.finish()
        log = Path(rounds.server.log).read_text(errors="replace")
        beats, ends = rounds.lines("beats"), rounds.lines("beat no more")
        result.take(rounds)
    good = sum(release.outcome == "served" for release in rounds.started)
    result.add("releases while it works", f"{good} of {releases} served", str(releases), good == releases)
    lasted = [task.ended[0]["at"] - task.begun[0]["at"] for task in long if task.whole]
    versions = [int(task.begun[0]["version"]) for task in long if task.begun]
    figure = f"{len(lasted)} of {len(long)} whole, in versions {', '.join(map(str, versions))}"
    result.add(f"tasks of {seconds:g} s", figure, "all, each in its own", versions == list(range(1, releases + 2)))
    result.add("the longest of them", f"{max(lasted, default=0):.1f} s", f"{seconds:g} s", len(lasted) == len(long))
    short = [task for task in rounds.asked if task not in long]
    once = sum(task.whole for task in short)
    result.add("short tasks", f"{once} of {len(short)} done once", "all", once == len(short))
    late = [task for task in short if task.begun and _is_late(task, served)]
    result.add("begun by an old version, 1 s after", str(len(late)), "0", not late)
    most = rounds.watch.most_draining
    several = most >= min(2, releases)
    short_ones = seconds < 30  # a slow machine takes longer over a release than they do
    result.add("draining at once", f"{most} generations", "told" if short_ones else "several", several or short_ones)
    signals = log.count(".huey got its INT")
    heard = log.count("Received SIGINT")
    result.add("stop signals", f"{signals} sent, {heard} heard", str(releases), signals == heard == releases)
    twice = [beat for beat, end in zip(beats[1:], ends, strict=False) if beat["at"] < end["at"]]
    gaps = [beat["at"] - end["at"] for beat, end in zip(beats[1:], ends, strict=False)]
    figure = f"{len(beats)} in turn, gaps up to {max(gaps, default=0):.1f} s"
    result.add("the scheduler", figure, "never two", len(beats) == releases + 1 and not twice)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    return result


def _is_late(task: Task, served: list[float]) -> bool:
    """Whether an old version began it although the new one had served for a while."""
    newest = 1 + sum(task.begun[0]["at"] > at + LET_GO for at in served)
    return task.begun[0]["version"] < newest
