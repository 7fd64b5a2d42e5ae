"""The roster: who belongs to this run directory, on disk, for the master that comes after this one.

If a master dies (SIGKILL, out of memory) its workers serve on. The next master that owns the run directory reads here
who they are; from their hellos it then gets its channels to them and the slots back.

A pid alone proves nothing, since the kernel uses pids again: the time at which the process started goes with it
(proc_pid_stat(5), field 22).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reuseport.core.events import Adopted, Survivor
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    ENDED,
    LEAVING,
    RUNNING,
    TOLD,
    WORKING,
    YOUTH,
    ZYGOTE,
    Cluster,
    Key,
)
from reuseport.core.record import release_of
from reuseport.ipc.rundir import RunDirError, not_this
from reuseport.master import files, reserve
from reuseport.options import Settings
from reuseport.options.identity import is_stranger

VERSION = 1
TENANCY = ("tenant", "tenant_isolation")  # what workers of one run directory must have in common


@dataclass(frozen=True)
class Remains:
    """What an earlier master left: `adopted` for the core, a row for each survivor, pids that belong nowhere, and
    those of companions that ran when it was last written down, and do not any more."""

    adopted: Adopted
    rows: Mapping[Key, int]
    slots: tuple[tuple[str, int], ...]
    strays: tuple[int, ...]
    gone: Mapping[Key, int]
    name: str = ""  # what that master was called, where it has written it down

    def at_odds(self, settings: Settings, ids: tuple[int, int] | None) -> str:
        """Why a master with these settings cannot have those who survive; "" if it can. `ids` are the workers' own.

        They know tenants as they were told to, and would break what this master promises; and nobody can be told to
        become another user.
        """
        if is_stranger(settings, self.name):
            return f"{settings.where('run_dir')}: {not_this(settings.run_dir, self.name, settings.name)}"
        for one in self.adopted.survivors:
            recipe = one.release.recipe
            theirs = Settings.from_json(recipe["settings"])
            names = [name for name in TENANCY if getattr(theirs, name) != getattr(settings, name)]
            if tuple(recipe.get("ids") or ()) != (ids or ()):
                names.append("group" if theirs.user == settings.user and settings.group else "user")
            for name in names:
                was, now = (getattr(these, name) or "nothing" for these in (theirs, settings))
                return (
                    f"{settings.where(name)}: generation {one.key.generation}, which an earlier master left in "
                    f"{settings.run_dir}, was begun with {was}, and this master says {now}; to change that, start it "
                    f"as it was, stop it (reuseport stop), and start it anew"
                )
        return ""


class Roster:
    def __init__(self, path: str, name: str = "") -> None:
        """`name` is that of the master that writes it."""
        self._path = path
        self._name = name
        self._written: Any = None

    def write(self, cluster: Cluster, rows: Mapping[Key, int], slots: tuple[tuple[str, int], ...]) -> None:
        """Write down who there is, if that has changed."""
        generations = [g.on_record for g in cluster.generations.values()]
        people = [
            (g.number, number, pid, state, place, rows.get(Key(g.number, number), -1))
            for g in generations
            for number, pid, state, place in _people(g)
            if pid
        ]
        forked = {g.number: g.forked for g in generations}
        ended = [(g.number, n) for g in generations for n, c in g.companions.items() if c.state == ENDED]
        failed = [(g.number, n) for g in generations for n, c in g.companions.items() if c.failed]
        now = (people, forked, [(g.wanted, g.release.canary) for g in generations], ended, failed, cluster.last, slots)
        if now == self._written:
            return
        data = {
            "v": VERSION,
            "name": self._name,
            "last": cluster.last,
            "forked": forked,
            "ended": ended,
            "failed": failed,
            "slots": slots,
            "releases": {g.number: asdict(g.release) for g in generations},
            "processes": [
                dict(zip(("generation", "number", "pid", "state", "place", "row"), one, strict=True))
                | {"start": start_time(one[2])}
                for one in people
            ],
        }
        files.replace(self._path, json.dumps(data))
        self._written = now

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def read(self) -> Remains | None:
        """What is left of an earlier master; None where nothing lives. RunDirError if it is damaged."""
        try:
            with open(self._path, encoding="utf-8") as file:
                data = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._damaged(error) from None
        if not isinstance(data, dict) or "v" not in data:
            raise self._damaged("it is no roster")
        if data["v"] != VERSION:
            raise RunDirError(
                f"--run-dir: {self._path} is of another version of reuseport: its number is {data['v']}, and this one "
                f"reads {VERSION}; start and stop that version, or remove the file if no worker is left"
            )
        try:
            return self._remains(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    def _damaged(self, why: object) -> RunDirError:
        return RunDirError(f"--run-dir: {self._path} is damaged ({why}); remove it if no worker is left")

    @staticmethod
    def _remains(data: Mapping[str, Any]) -> Remains | None:
        releases = {int(n): release_of(r) for n, r in data["releases"].items()}
        survivors, rows, strays, gone = [], {}, [], {}
        for p in data["processes"]:
            key = Key(p["generation"], p["number"])
            if not p["start"] or start_time(p["pid"]) != p["start"]:
                if key.is_companion and p["state"] in (YOUTH, RUNNING):
                    gone[key] = p["pid"]
            elif key.is_companion or p["state"] in (ACCEPTING, ATTENDING, LEAVING, TOLD, WORKING, "loaded"):
                survivors.append(Survivor(key, p["pid"], releases[key.generation], p["state"], p["place"]))
                rows[key] = p["row"]
            else:
                strays.append(p["pid"])
        if not survivors and not strays:
            return None
        slots = tuple((address, index) for address, index in data["slots"])
        forked = {int(n): highest for n, highest in data["forked"].items()}
        ended, failed = (tuple(Key(*key) for key in data.get(word, ())) for word in ("ended", "failed"))
        # Nobody who survives has the slots that only strays held; they are bound anew. A companion never had any.
        held = any(not one.key.is_companion for one in survivors)
        return Remains(
            Adopted(tuple(survivors), data["last"], 0, forked, ended=ended, failed=failed),
            rows,
            slots if held else (),
            tuple(strays),
            gone,
            str(data.get("name", "")),
        )


def _people(g: Any) -> list[tuple[int, int, str, int]]:
    people = [(number, w.pid, w.state, w.place) for number, w in sorted(g.workers.items())]
    people += [(number, c.pid, c.state, 0) for number, c in sorted(g.companions.items())]
    if g.zygote is not None:
        people.append((ZYGOTE, g.zygote.pid, "loaded" if g.zygote.loaded else "loading", 0))
    return people


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is none, or only its zombie."""
    try:
        fields = reserve.read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == b"Z" else int(fields[19])
