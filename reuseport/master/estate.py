"""What a master leaves to the one that it becomes by an exec: the same process, another version of this package.

All of it goes along: the cluster, and of each part of the master (`Heritable`) what it has that is in no file, with
the descriptors that belong to it. So nobody notices: no worker or zygote, whose channel stays open with whatever lies
in it, no client of the command line that waits for a release, and no release that is under way.

It is JSON, and fields are only ever added. `VERSION` changes when an older master's estate cannot be gone on from any
more; the trial before the exec (`rehearsal.py`) then says so, and the older master stays.
"""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from reuseport import options
from reuseport.core import record
from reuseport.core.model import Cluster
from reuseport.ipc import channel as channels
from reuseport.ipc.post import Post, inherited
from reuseport.master.history import History
from reuseport.master.log import Log
from reuseport.master.passed import Supervision
from reuseport.master.samples import Samples
from reuseport.options import OptionError, Settings
from reuseport.options.checks import tenants_at_odds
from reuseport.options.settings import BY_UPGRADE
from reuseport.version import __version__

if TYPE_CHECKING:
    from reuseport.master.main import Master

VERSION = 1

Lend = Callable[[int], int]


class Heritable(Protocol):
    """A part of the master. `inherit` is called once, on a new one, before anything happens to it."""

    def estate(self, lend: Lend) -> dict[str, Any]: ...

    def inherit(self, left: Mapping[str, Any]) -> None: ...


class EstateError(Exception):
    """What an earlier master has left cannot be gone on from; the message says why."""


@dataclass(frozen=True)
class Estate:
    """`fds` are all descriptors that came along; `before` is the version that left it; `asker` is a client's name.
    `changed` are options of `first` that differ from what the earlier master had."""

    before: str
    asker: str
    first: Settings
    extra: Mapping[str, Any]
    cluster: Cluster
    started: float
    lock: int
    run_dir: int
    fds: tuple[int, ...]
    parts: Mapping[str, Mapping[str, Any]]
    changed: tuple[str, ...] = ()

    def renewed(self) -> Estate:
        """The same, with what the configuration says now of the options that an upgrade brings (BY_UPGRADE).
        OptionError, OSError."""
        newest = options.reload(Settings.from_json(self.parts["releases"]["settings"]))
        changed = [name for name in options.changed_at_start_only(self.first, newest) if name in BY_UPGRADE]
        first = self.first.keeping(newest, changed)
        if changed and (problems := tenants_at_odds(newest)):
            raise OptionError(problems[0])
        return replace(self, first=first, changed=tuple(changed))

    @property
    def supervision(self) -> Supervision:
        said = self.parts["notifier"]["supervision"]
        return Supervision(**{name: said[name] for name in Supervision._fields if name in said})

    def doors(self) -> tuple[_socket.socket, socket.socket]:
        """Where processes say hello, and where the command line asks: who came during the exec waits there."""
        hellos, questions = self.parts["switchboard"]["hellos"], self.parts["control"]["socket"]
        return channels.listening(hellos), socket.socket(fileno=questions)

    @property
    def post(self) -> Post | None:
        """The way to the log daemon, which may not be there just now, as a name server may not; None for other logs."""
        said = self.parts["log"].get("post")
        return inherited(said) if said else None

    def enter(self, master: Master) -> None:
        """Give each part of a new master its own. EstateError where one cannot read it."""
        for name, part in _parts(master):
            if name in self.parts:
                with _reading(self.before, name):
                    part.inherit(self.parts[name])


def this_version() -> str:
    """Of this package and of Python, in words."""
    return f"{__version__} (Python {sys.version.split()[0]})"


def write(master: Master, asker: str) -> tuple[int, list[int]]:
    """All that the master has now, in a file in memory: its descriptor, and those that must live through the exec."""
    lent: list[int] = []

    def lend(fd: int) -> int:
        if fd != -1:
            lent.append(fd)
        return fd

    data: dict[str, Any] = {
        "v": VERSION,
        "version": this_version(),
        "asker": asker,
        "first": master.first.to_json(),
        "extra": dict(master.extra),
        "cluster": record.to_json(master.cluster),
        "started": master.started,
        "lock": lend(master.lock),
        "run_dir": lend(master.run_dir.fd),
        "parts": {name: part.estate(lend) for name, part in _parts(master)},
    }
    fd = os.memfd_create("reuseport-estate")
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            json.dump({**data, "fds": lent}, file)
    except BaseException:
        os.close(fd)
        raise
    return fd, lent


def read(fd: int) -> Estate:
    """The inverse of `write`. EstateError where it is of a version that this one cannot go on from."""
    return estate_of(load(fd))


def load(fd: int) -> dict[str, Any]:
    with open(fd, encoding="utf-8") as file:
        file.seek(0)
        data: dict[str, Any] = json.load(file)
    return data


def estate_of(data: Mapping[str, Any]) -> Estate:
    """EstateError, as `read`."""
    if data["v"] != VERSION:
        raise EstateError(f"the state of reuseport {data['version']} is number {data['v']}, this reads {VERSION}")
    with _reading(data["version"], "cluster"):
        cluster = record.cluster_of(data["cluster"])
    return Estate(
        data["version"],
        data["asker"],
        Settings.from_json(data["first"]),
        data["extra"],
        cluster,
        data["started"],
        data["lock"],
        data.get("run_dir", -1),
        tuple(data["fds"]),
        data["parts"],
    )


@contextlib.contextmanager
def _reading(before: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EstateError(
            f"what reuseport {before} leaves of its {name.replace('_', ' ')} is not what this version reads "
            f"({type(error).__name__}: {error})"
        ) from error


def open_log(settings: Settings, post: Post | None = None) -> Log:
    """`post` is the way to its daemon, if that is known. OptionError where it cannot be opened."""
    try:
        return Log(settings, post)
    except OSError as error:
        what = error.filename or settings.log_file
        raise OptionError(f"{settings.where('log_file')}: cannot open {what}: {error.strerror}") from None


def open_state(settings: Settings, log: Callable[[str, str], None], *, trim: bool = True) -> tuple[History, Samples]:
    """OptionError where that is not possible."""
    try:
        return History(settings.state_dir, trim=trim, log=log), Samples(settings.state_dir, log)
    except OSError as error:
        where = settings.where("state_dir")
        raise OptionError(f"{where}: {error.filename}: {(error.strerror or str(error)).lower()}") from None


def _parts(master: Master) -> Iterator[tuple[str, Heritable]]:
    """In the order in which they inherit: the switchboard's channels are those of processes."""
    release_file, stop_file = master.touched
    parts: dict[str, Heritable | None] = {
        "log": master.log,
        "losses": master.losses,
        "slots": master.slots,
        "processes": master.processes,
        "switchboard": master.switchboard,
        "releases": master.releases,
        "tenants": master.tenants,
        "boot_logs": master.boot_logs,
        "companions": master.companions,
        "exits": master.exits,
        "notifier": master.notifier,
        "control": master.control,
        "release_file": release_file,
        "stop_file": stop_file,
        "tally": master.tally,
        "numbers": master.numbers,
        "telling": master.telling,
        "reload": master.reload,
        "predecessors": master.predecessors,
        "succession": master.succession,
    }
    yield from ((name, part) for name, part in parts.items() if part is not None)
