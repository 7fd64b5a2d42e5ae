"""Which master a command means.

Say to `release`, `status` and `stop` what was said to `serve`, by flags, variables or file, and they find the same run
directory. When nothing is said, the one master that lives in the default place is meant; if there is none, the one
that lives where units have theirs.

The command line wins over the environment, the environment over the file, as a whole (options/identity.py). So a name
is looked for by name when it comes from a stronger source than a run directory does, and a run directory that a weaker
source says is used only if the master in it has that name. The same holds for a run directory and a name of one source.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from reuseport.cli import client
from reuseport.cli.failure import NO_MASTER, USAGE, Failure
from reuseport.cli.words import text
from reuseport.ipc.rundir import RunDir, not_this
from reuseport.options import Option, OptionError, working_directory
from reuseport.options.identity import FOUND_FILE, NAMED_FILE, NOWHERE, TYPED, VARIABLES, last_name
from reuseport.options.machine import run_dirs
from reuseport.options.reading import Words, config_file, from_environment, from_flags, from_table, merge, read_toml
from reuseport.options.spec import default_name
from reuseport.options.table import BY_NAME

# The same declarations as serve's, so that a flag means the same everywhere; of its help only the effect is not ours.
WHERE = tuple(
    replace(BY_NAME[name], group="Which server (as was said to serve; else the only one that lives)", effect="always")
    for name in ("name", "run_dir", "config")
)
UNITS = "/run/reuseport"  # where the RuntimeDirectory= of printed units lies
SOON = 3.0  # seconds for a master to say who it is, while others are looked at
ANSWER = 30.0  # seconds for it to say so before a command acts on it
_DECIDING = tuple(BY_NAME[name] for name in ("app", "name", "run_dir", "state_dir", "config"))
_NAMES = frozenset(option.name for option in _DECIDING)
_KEYS = _NAMES | {alias.lstrip("-").replace("-", "_") for option in _DECIDING for alias in option.aliases}


class Stranger(Failure):
    """One server was named, and the way leads to another."""

    def __init__(self, said: str, run_dir: str, owner: str, wanted: str) -> None:
        super().__init__(f"{said}: {not_this(run_dir, owner, wanted)}", NO_MASTER)


class Server(NamedTuple):
    """Who a master says that it is; what it does not say is "" or 0. `answers_who`: it knows that question."""

    name: str
    pid: int
    run_dir: str
    answers_who: bool

    def __str__(self) -> str:
        return f"server {text(self.name or '?')} (pid {self.pid or '?'}, run directory {text(self.run_dir)})"


@dataclass
class Master:
    """The master in `run_dir`; `said` is the flag, variable or key that named it, "" if it is the only one alive.

    `named` is whether it named this very directory, which then may be another user's. `name` is what the master must
    be called, "" for anything.
    """

    run_dir: str
    said: str
    environ: Mapping[str, str]
    named: bool = False
    name: str = ""

    def ask(self, request: dict[str, Any], **how: Any) -> dict[str, Any]:
        """client.ask, with what helps to find a master that is not there. Raises Failure, also if it is another one."""
        if self.name:
            self.server()
            request = {**request, "server": self.name}
        with self._helping_out():
            return client.ask(self.run_dir, request, of_any_user=self.named, **how)

    def server(self) -> Server:
        """Who it says that it is. Raises Failure if it does not answer, or is called otherwise than it must be."""
        with self._helping_out():
            server = _identity(self.run_dir, self.named, ANSWER)
        if self.name and server.name not in ("", self.name):
            raise Stranger(self.said, self.run_dir, server.name, self.name)
        return server

    @contextlib.contextmanager
    def _helping_out(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            if failure.status != NO_MASTER or not self.said:
                raise
            help_out = f"{failure}, which {self.said} stands for; -n NAME or --run-dir DIR names another"
            others = [name for name, path in _living(self.environ, os.getuid()).items() if path != self.run_dir]
            if others:
                help_out += f" (others that live: {_names(others)})"
            raise Failure(help_out, NO_MASTER) from failure


def read(argv: Sequence[str], options: Sequence[Option]) -> tuple[dict[str, Any], Words]:
    """A command's own values by name, and the words of its command line. Raises OptionError."""
    words = from_flags(argv, (*options, *WHERE), [])
    values = {option.name: option.default for option in options}
    values.update({name: said.value for name, said in words if name in values})
    return values, words


def find(typed: Words, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> Master:
    """The master that is meant. Raises OptionError, and Failure if it takes more to be said."""
    environ = os.environ if environ is None else environ
    cwd = working_directory(environ) if cwd is None else cwd
    return _named(_Sources(typed, environ, cwd)) or _only_one(environ, os.getuid())


def state_dir(typed: Words, holding: str, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    """The state directory of the master that is meant, which need not live: one that is said, or holds the file
    `holding`, the history; "" where there is none. Raises OptionError, and Failure if there are several."""
    environ = os.environ if environ is None else environ
    cwd = working_directory(environ) if cwd is None else cwd
    sources = _Sources(typed, environ, cwd)
    master = _named(sources)
    said = sources.first("state_dir", until=sources.decided)
    if said is None and sources.decided >= VARIABLES:
        said = sources.of_the_supervisor("STATE_DIRECTORY")
    if said is not None:
        return str(said.value)
    if master is not None:
        # A weaker source may lead to the history of another server.
        weaker = sources.first("state_dir") or sources.of_the_supervisor("STATE_DIRECTORY")
        if weaker is not None and master.name and _owner_of_history(weaker.value) == master.name:
            return str(weaker.value)
        return master.run_dir
    home = Path(run_dirs(environ, os.getuid()))
    holders = sorted(path.parent for path in home.glob(f"*/{holding}"))
    if len(holders) > 1:
        names = _names(path.name for path in holders)
        raise Failure(f"no master lives in {home}, and several have left a history there; say which: {names}", USAGE)
    return str(holders[0]) if holders else ""


def _owner_of_history(directory: str) -> str:
    from reuseport.master import history  # a client that asks a master needs none of it

    try:
        return last_name(history.read(os.path.join(directory, history.FILE)))
    except (OSError, ValueError):
        return ""


class _Word(NamedTuple):
    rank: int  # of its source, as in options/identity.py
    place: str
    value: Any


class _Sources:
    """What each source says of the options that decide about places. `decided` is the rank of the one that says which
    server is meant, once that is known."""

    def __init__(self, typed: Words, environ: Mapping[str, str], cwd: str) -> None:
        self.environ = environ
        self.decided = NOWHERE
        self._cwd = cwd
        self._said: dict[int, Words] = {
            TYPED: [word for word in typed if word[0] in _NAMES],
            VARIABLES: from_environment(environ, _DECIDING),
        }
        named = any(name == "config" for name, _ in self._said[TYPED])
        self._unread = NAMED_FILE if named else FOUND_FILE

    def at(self, rank: int, name: str) -> _Word | None:
        """What one source says of an option. The file is read when it is first looked at. OptionError."""
        if rank == self._unread:
            self._unread = NOWHERE
            path, place = config_file(self._said[TYPED], self._said[VARIABLES], self._cwd)
            table = read_toml(path, place) if path else {}
            # A mistake elsewhere in it must not keep anyone from stopping the server: only what decides is read.
            deciding = {key: table[key] for key in table if key.replace("-", "_") in _KEYS}
            self._said[rank] = from_table(deciding, path, [])
        mine = [said for option, said in self._said.get(rank, ()) if option == name]
        return _Word(rank, mine[-1].place, merge(BY_NAME[name], mine, self._cwd)) if mine else None

    def first(self, name: str, until: int = NOWHERE) -> _Word | None:
        """What the strongest source says of an option, among those that are as strong as `until`. OptionError."""
        ranks = range(min(until, FOUND_FILE) + 1)
        return next((word for word in (self.at(rank, name) for rank in ranks) if word is not None), None)

    def of_the_supervisor(self, variable: str) -> _Word | None:
        # systemd separates several directories by colons; the first one is the unit's own.
        given = self.environ.get(variable, "").split(":")[0]
        return _Word(VARIABLES, variable, given) if given else None


def _named(sources: _Sources) -> Master | None:
    """The master that the strongest source with a word about it stands for. Raises OptionError and Failure."""
    app: _Word | None = None
    for rank in range(NOWHERE):
        run_dir, name = sources.at(rank, "run_dir"), sources.at(rank, "name")
        # A file that was named on the command line stands for its application's server.
        if app is None and rank in (NAMED_FILE, FOUND_FILE):
            app = sources.at(rank, "app")
        if run_dir is not None and not (name is None and app is not None and app.rank < rank):
            sources.decided = rank
            must = name.value if name is not None else ""  # both words have the same source
            return Master(run_dir.value, run_dir.place, sources.environ, named=True, name=must)
        if name is not None:
            sources.decided = rank
            return _by_name(sources, name)
        if run_dir is not None:
            break
    app = app or sources.first("app")
    if app is not None:
        sources.decided = app.rank
        return _by_name(sources, _Word(app.rank, app.place, default_name(app.value)))
    if (given := sources.of_the_supervisor("RUNTIME_DIRECTORY")) is not None:
        sources.decided = VARIABLES
        return Master(given.value, given.place, sources.environ)
    return None


def _by_name(sources: _Sources, name: _Word) -> Master:
    """The master of that name: where it lives by default, where units have theirs, or where a weaker source leads, if
    the master there has that name. Raises Stranger."""
    environ, called = sources.environ, str(name.value)
    given = sources.of_the_supervisor("RUNTIME_DIRECTORY")
    if given is not None and name.rank >= VARIABLES:
        return Master(given.value, name.place, environ)
    own = Master(os.path.join(run_dirs(environ, os.getuid()), called), name.place, environ, name=called)
    if client.is_alive(own.run_dir):
        return own
    unit = os.path.join(UNITS, called)
    if unit in _of_units():
        return replace(own, run_dir=unit, named=True)
    try:
        weaker = sources.first("run_dir")
    except OptionError:
        weaker = None  # a file with mistakes leads nowhere
    strange = None
    for word in (weaker, given):
        if word is not None and (owner := _owner(str(word.value))):
            if owner == called:
                return replace(own, run_dir=str(word.value), said=word.place, named=True)
            strange = strange or Stranger(word.place, str(word.value), owner, called)
    if strange is not None and not os.path.isdir(own.run_dir):
        raise strange
    return own


def _owner(run_dir: str) -> str:
    """What the master in a run directory is called, or the one that left it; "" where that is not known."""
    if name := RunDir(run_dir).server():
        return name
    try:
        return _identity(run_dir, True, SOON).name
    except Failure:
        return ""


def _identity(run_dir: str, of_any_user: bool, within: float) -> Server:
    """Who the master there says that it is. Raises Failure if there is none, or it does not answer."""
    done = client.ask(run_dir, {"do": "who"}, timeout=within, of_any_user=of_any_user)
    answers_who = "name" in done
    if not answers_who:
        # One of an older version.
        status = client.ask(run_dir, {"do": "status"}, timeout=within, of_any_user=of_any_user).get("status")
        found = status.get("master") if isinstance(status, dict) else None
        done = found if isinstance(found, dict) else {}
    pid = done.get("pid")
    name, pid = str(done.get("name") or ""), pid if isinstance(pid, int) else 0
    return Server(name, pid, str(done.get("run_dir") or run_dir), answers_who)


def _only_one(environ: Mapping[str, str], uid: int) -> Master:
    home = run_dirs(environ, uid)
    living = _living(environ, uid)
    if not living:
        if units := _of_units():
            # Root says who makes a directory there, so nobody who plays a master listens in one.
            if len(units) > 1:
                raise Failure(f"which master? {', '.join(f'--run-dir {path}' for path in units)}", USAGE)
            return Master(units[0], "", environ, named=True)
        raise Failure(f"no master in {home}; -n NAME, --run-dir DIR or -c FILE says where it is", NO_MASTER)
    if len(living) > 1:
        raise Failure(f"which master? {_names(living)} live in {home}", USAGE)
    [run_dir] = living.values()
    return Master(run_dir, "", environ)


def _of_units() -> list[str]:
    """The run directories of living masters in UNITS, if that is root's alone."""
    home = Path(UNITS)
    try:
        info = home.stat()
        paths = sorted(str(entry) for entry in home.iterdir() if entry.is_dir())
    except OSError:
        return []
    if info.st_uid != 0 or info.st_mode & 0o022:
        return []
    return [path for path in paths if client.is_alive(path, of_any_user=True)]


def _living(environ: Mapping[str, str], uid: int) -> dict[str, str]:
    """Run directories in the default place by name, of those masters that answer."""
    home = Path(run_dirs(environ, uid))
    try:
        names = sorted(entry.name for entry in home.iterdir() if entry.is_dir())
    except OSError:
        # It is not there, or not ours to read: then no master of ours lives in it.
        return {}
    return {name: str(home / name) for name in names if client.is_alive(str(home / name))}


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"-n {name}" for name in names)
