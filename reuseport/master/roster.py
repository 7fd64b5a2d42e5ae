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
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from reuseport.core.events import Adopted, Survivor
from reuseport.core.model import (
    ACCEPTING,
    ATTENDING,
    ENDED,
    LEAVING,
    NOWHERE,
    RUNNING,
    TOLD,
    WORKING,
    YOUTH,
    ZYGOTE,
    Cluster,
    Key,
    Release,
)
from reuseport.core.record import release_of
from reuseport.ipc import files
from reuseport.ipc.rundir import RunDir, RunDirError, not_this
from reuseport.ipc.scoreboard import ROWS
from reuseport.master import reserve
from reuseport.master.listening import Written
from reuseport.master.peers import start_time
from reuseport.options import Settings
from reuseport.options.identity import is_stranger

VERSION = 1


@dataclass(frozen=True)
class Remains:
    """What an earlier master left: `adopted` for the core, a row for each survivor, pids that belong nowhere, and
    those of companions that ran when it was last written down, and do not any more."""

    adopted: Adopted
    rows: Mapping[Key, int]
    slots: tuple[tuple[str, int], ...]
    strays: tuple[int, ...]
    gone: Mapping[Key, int]
    releases: Mapping[int, Release] = field(default_factory=dict)  # by generation
    name: str = ""  # what that master was called, where it has written it down
    starts: Mapping[int, int] = field(default_factory=dict)  # of those that live, by pid (`inhabitants.start_time`)
    written: Written = field(default_factory=Written)  # the sockets of `slots`

    def at_odds(self, settings: Settings, ids: tuple[int, int] | None) -> str:
        """Why a master with these settings cannot have those who survive; "" if it can. `ids` are the workers' own.

        No process can be told to become another user.
        """
        if is_stranger(settings, self.name):
            return f"{settings.where('run_dir')}: {not_this(settings.run_dir, self.name, settings.name)}"
        for one in self.adopted.survivors:
            recipe = one.release.recipe
            theirs = Settings.from_json(recipe["settings"])
            if tuple(recipe.get("ids") or ()) != (ids or ()):
                name = "group" if theirs.user == settings.user and settings.group else "user"
                was, now = (getattr(these, name) or "nothing" for these in (theirs, settings))
                return (
                    f"{settings.where(name)}: generation {one.key.generation}, which an earlier master left in "
                    f"{settings.run_dir}, was begun with {was}, and this master says {now}; to change that, start it "
                    f"as it was, stop it (reuseport stop), and start it anew"
                )
        return ""


class Roster:
    def __init__(self, run_dir: RunDir, name: str = "") -> None:
        """`name` is that of the master that writes it."""
        self._run_dir = run_dir
        self._name = name
        self._written: Any = None

    def write(
        self,
        cluster: Cluster,
        rows: Mapping[Key, int],
        slots: tuple[tuple[str, int], ...],
        *,
        starts: Mapping[int, int] = MappingProxyType({}),
        written: Written | None = None,
    ) -> None:
        """Write down who there is, if that has changed. `starts` are the start times of the processes that the
        master knows by pidfd, by pid."""
        sockets = (written or Written(dict.fromkeys(slots, 0))).to_json()
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
        wanted = [(g.wanted, g.release.canary) for g in generations]
        now = (people, forked, wanted, ended, failed, cluster.last, slots, sockets)
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
            **sockets,
            "releases": {g.number: asdict(g.release) for g in generations},
            "processes": [
                dict(zip(("generation", "number", "pid", "state", "place", "row"), one, strict=True))
                | {"start": starts[one[2]] if one[2] in starts else start_time(one[2])}
                for one in people
            ],
        }
        try:
            # Nobody whom it tells of outlives a loss of power.
            text = json.dumps(data)
            reserve.use(lambda: files.replace(self._run_dir.roster, text, sync=False))
        except OSError:
            # The next master must not end a process because of what is not true any more. A rename needs no room.
            with contextlib.suppress(OSError):
                os.rename(self._run_dir.roster, self._run_dir.stale_roster)
            raise
        self._written = now
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._run_dir.stale_roster)

    def remove(self) -> None:
        for path in (self._run_dir.roster, self._run_dir.stale_roster):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def read(self) -> Remains | None:
        """What is left of an earlier master; None where nothing lives. Damaged; RunDirError for another version's."""
        remains = self._read(self._run_dir.roster)
        return remains if remains and (remains.adopted.survivors or remains.strays) else None

    def read_stale(self) -> Remains | None:
        """A roster that was true until a newer one could not be written, whether or not any of it lives. As `read`."""
        return self._read(self._run_dir.stale_roster)

    def _read(self, path: str) -> Remains | None:
        try:
            data = json.loads(files.read(path, self._run_dir.owner_uid))
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RunDirError(f"--run-dir: {self._run_dir.named(path)} cannot be read: {reason}") from None
        except (ValueError, RecursionError) as error:
            raise files.Damaged(error) from None
        if not isinstance(data, dict) or not _is_count(data.get("v")):
            raise files.Damaged("it is no roster")
        if data["v"] != VERSION:
            raise RunDirError(
                f"--run-dir: {self._run_dir.named(path)} is of another reuseport: its number is {data['v']}, "
                f"and this one reads {VERSION}; start and stop that version, or remove the file if no worker is left"
            )
        try:
            return self._remains(data)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise files.Damaged(f"{type(error).__name__}: {error}") from None

    @staticmethod
    def _remains(data: Mapping[str, Any]) -> Remains:
        releases = {int(n): release_of(r) for n, r in data["releases"].items()}
        survivors, rows, strays, gone, starts = [], {}, [], {}, {}
        if not _is_count(data["last"]) or not isinstance(data["processes"], list):
            raise TypeError(f"the last generation is {data['last']!r:.100}, the processes {data['processes']!r:.100}")
        for p in data["processes"]:
            if not (
                all(_is_count(p[name]) for name in ("generation", "number", "pid", "start"))
                and isinstance(p["state"], str)
                and (p["place"] == NOWHERE or _is_count(p["place"]))
                and (p["row"] == -1 or (_is_count(p["row"]) and p["row"] < ROWS))
            ):
                raise TypeError(f"a process is {p!r:.200}")
            key = Key(p["generation"], p["number"])
            if not p["start"] or start_time(p["pid"]) != p["start"]:
                if key.is_companion and p["state"] in (YOUTH, RUNNING):
                    gone[key] = p["pid"]
                continue
            starts[p["pid"]] = p["start"]
            if key.is_companion or p["state"] in (ACCEPTING, ATTENDING, LEAVING, TOLD, WORKING, "loaded"):
                survivors.append(Survivor(key, p["pid"], releases[key.generation], p["state"], p["place"]))
                rows[key] = p["row"]
            else:
                strays.append(p["pid"])
        slots = tuple((str(address), int(index)) for address, index in data["slots"])
        forked = {int(n): highest for n, highest in data["forked"].items()}
        ended, failed = (tuple(Key(*key) for key in data.get(word, ())) for word in ("ended", "failed"))
        # Nobody who survives has the slots that only strays held; they are bound anew. A companion never had any.
        held = any(not one.key.is_companion for one in survivors)
        cookies = dict.fromkeys(slots, 0)
        for address, index, cookie in data.get("cookies", ()):
            if (address, index) in cookies:
                cookies[address, index] = int(cookie)
        files = {str(address): (int(device), int(inode)) for address, (device, inode) in data.get("files", {}).items()}
        return Remains(
            Adopted(tuple(survivors), data["last"], 0, forked, ended=ended, failed=failed),
            rows,
            slots if held else (),
            tuple(strays),
            gone,
            releases,
            str(data.get("name", "")),
            starts,
            Written(cookies, files) if held else Written(),
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _people(g: Any) -> list[tuple[int, int, str, int]]:
    people = [(number, w.pid, w.state, w.place) for number, w in sorted(g.workers.items())]
    people += [(number, c.pid, c.state, 0) for number, c in sorted(g.companions.items())]
    if g.zygote is not None:
        people.append((ZYGOTE, g.zygote.pid, "loaded" if g.zygote.loaded else "loading", 0))
    return people
