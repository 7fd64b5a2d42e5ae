"""Which master a command means.

Say to `release`, `status` and `stop` what was said to `serve`, by flags, variables or file, and they find the same run
directory. When nothing is said, the one master that lives in the default place is meant; if there is none, the one
that lives where units have theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from reuseport.cli import client
from reuseport.cli.failure import NO_MASTER, USAGE, Failure
from reuseport.options import Option, default_run_dir, working_directory
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
_DECIDING = tuple(BY_NAME[name] for name in ("app", "name", "run_dir", "state_dir", "config"))


class Master(NamedTuple):
    """The master in `run_dir`; `said` is the flag, variable or key that named it, "" if it is the only one alive.

    `named` is whether it named this very directory, which then may be another user's.
    """

    run_dir: str
    said: str
    environ: Mapping[str, str]
    named: bool = False

    def ask(self, request: dict[str, Any], **how: Any) -> dict[str, Any]:
        """client.ask, with what helps to find a master that is not there."""
        try:
            return client.ask(self.run_dir, request, of_any_user=self.named, **how)
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
    return _named(*_said(typed, "run_dir", environ, cwd), environ) or _only_one(environ, os.getuid())


def state_dir(typed: Words, holding: str, environ: Mapping[str, str] | None = None, cwd: str | None = None) -> str:
    """The state directory of the master that is meant, which need not live: one that is said, or holds the file
    `holding`; "" where there is none. Raises OptionError, and Failure if there are several."""
    environ = os.environ if environ is None else environ
    cwd = working_directory(environ) if cwd is None else cwd
    values, places = _said(typed, "state_dir", environ, cwd)
    if found := values.get("state_dir") or environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return found
    if master := _named(values, places, environ):
        return master.run_dir
    home = Path(run_dirs(environ, os.getuid()))
    holders = sorted(path.parent for path in home.glob(f"*/{holding}"))
    if len(holders) > 1:
        names = _names(path.name for path in holders)
        raise Failure(f"no master lives in {home}, and several have left a history there; say which: {names}", USAGE)
    return str(holders[0]) if holders else ""


def _said(typed: Words, enough: str, environ: Mapping[str, str], cwd: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides about places, and where each was said. No file is read if the option `enough` was said without."""
    said = from_environment(environ, _DECIDING) + [word for word in typed if word[0] in BY_NAME]
    if not any(name == enough for name, _ in said):
        # A file with mistakes elsewhere must not keep anyone from stopping the server: only what decides is read.
        path, place = config_file(typed, said, cwd)
        deciding = {option.name for option in _DECIDING}
        table = read_toml(path, place) if path else {}
        said = from_table({key: table[key] for key in table if key.replace("-", "_") in deciding}, path, []) + said
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for option in _DECIDING:
        mine = [word for name, word in said if name == option.name]
        if mine:
            values[option.name] = merge(option, mine, cwd)
            places[option.name] = mine[-1].place
    return values, places


def _named(values: Mapping[str, Any], places: Mapping[str, str], environ: Mapping[str, str]) -> Master | None:
    """The master that these words stand for."""
    uid = os.getuid()
    if "run_dir" in values:
        return Master(values["run_dir"], places["run_dir"], environ, named=True)
    if "name" in values:
        return Master(default_run_dir(values["name"], environ, uid), places["name"], environ)
    if "app" in values or environ.get("RUNTIME_DIRECTORY"):
        name = default_name(values.get("app"))
        return Master(default_run_dir(name, environ, uid), places.get("app", "RUNTIME_DIRECTORY"), environ)
    return None


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
