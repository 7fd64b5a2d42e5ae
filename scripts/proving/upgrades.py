"""The master becomes another version of itself, under load: one process, the same workers, and nobody notices."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from statistics import median
from typing import Any

import reuseport
from proving.accounting import SHORT
from proving.figures import Result, Tell, ms, pause
from proving.load import MIXED
from proving.round import Round
from proving.server import Outcome, Status

TIMES = 12


class Installed(Round):
    """The server's package is a copy of this one, behind a link that can be flipped."""

    def prepare(self) -> None:
        self.link = self.root / "installed"
        self.install("0.0.0")
        path = os.pathsep.join(filter(None, (str(self.link), os.environ.get("PYTHONPATH"))))
        # Safe: `python -m` would look into the working directory first.
        self._setup["env"] = {**(self._setup["env"] or {}), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}

    def install(self, version: str) -> None:
        home = self.root / f"reuseport-{version}"
        shutil.copytree(Path(reuseport.__file__).parent, home / "reuseport")
        (home / "reuseport" / "version.py").write_text(f'__version__ = "{version}"\n')
        new = self.root / "installed.new"
        new.symlink_to(home)
        new.rename(self.link)

    @property
    def master(self) -> dict[str, Any]:
        about: dict[str, Any] = self.server.status()["master"]
        return about

    def upgrade(self, version: str, door: str) -> Outcome:
        """Install this version and have the master become it."""
        self.install(version)
        self.tell(f"upgrade to {version} asked for by {door}")
        if door == "upgrade":
            return self.server.release(do="upgrade")
        begun = time.monotonic()
        os.kill(self.server.pid, signal.SIGUSR2)
        self.server.wait(lambda status: status["master"]["version"] == version, 60, f"become {version}")
        return Outcome(0, time.monotonic() - begun, "", "")


def upgrade(tell: Tell) -> Result:
    """Twelve upgrades of the master in place, by command and by signal in turn, between releases and during them."""
    result = Result("upgrade")
    with Installed(tell=tell) as rounds:
        rounds.load.begin(MIXED)
        pause(rounds, 1)
        rounds.load.once("export", "/slow?seconds=25", planned=25.0)
        pid, opened = rounds.server.pid, 0
        outcomes, reached = [], 0
        for number in range(1, TIMES + 1):
            version = f"0.0.{number}"
            before = rounds.watch.latest
            outcome = rounds.upgrade(version, ("upgrade", "USR2")[number % 2])
            outcomes.append(outcome)
            master = rounds.master
            reached += master["version"] == version and master["pid"] == pid
            if outcome.exit:
                result.troubles.append(f"upgrade to {version}: {outcome.last_line}")
            if number == 1:
                opened = len(os.listdir(f"/proc/{pid}/fd"))
            if number % 3 == 0:
                rounds.release(door=("release", "HUP")[number % 2])
            elif before["serving"] != rounds.serving:
                result.troubles.append(f"upgrade to {version}: another generation serves")
            pause(rounds, 0.5)
        rounds.server.wait(is_at_rest, 60, "drain")
        left = len(os.listdir(f"/proc/{pid}/fd"))
        account = rounds.finish()
        served = sum(release.outcome == "served" for release in rounds.started)
        result.take(rounds)
    result.add("upgrades, with the same pid", f"{reached} of {TIMES}", str(TIMES), reached == TIMES)
    seconds = [outcome.seconds for outcome in outcomes]
    result.add("from asking to the new version", f"median {ms(median(seconds))}", "told", True)
    result.add("releases between them", f"{served} of {TIMES // 3}", str(TIMES // 3), served == TIMES // 3)
    # By now a zygote stands by, and this script asks for the status all the time.
    result.add("the master's descriptors", f"{opened} -> {left}", "not more than 4 more", left <= opened + 4)
    result.add("requests failed", f"{account.failed} of {account.sent:,}", "0", account.clean)
    result.add("worst short request", ms(max(account.latencies(SHORT), default=0)), "told", True)
    return result


def is_at_rest(status: Status) -> bool:
    return sorted(g["state"] for g in status["generations"]) == ["serving", "standby"]
