"""Which server is meant: its name and its directories, and which source of the configuration says so.

The command line wins over the environment, the environment over the file, as a whole. A file that the command line
names (-c) ranks with the command line, behind its flags. So a source that names a server is never led to another
server by a weaker source: where the two do not belong together the command is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reuseport.options.settings import DEFAULT, Settings

# Ranks of the sources, the strongest first.
TYPED, NAMED_FILE, VARIABLES, FOUND_FILE, NOWHERE = range(5)


def rank(settings: Settings, option: str) -> int:
    """Which source has said this option."""
    source = settings.sources[option]
    if source == "file":
        return NAMED_FILE if settings.sources["config"] == "flag" else FOUND_FILE
    return {"flag": TYPED, "environment": VARIABLES, DEFAULT: NOWHERE}[source]


def is_stranger(settings: Settings, owner: str, place: str = "run_dir") -> bool:
    """Whether these settings must not use a directory that the server `owner` lives in, or has left its workers in.

    They must not if the source of the directory, or a stronger one, names another server. The application names one,
    too, but only in a stronger source: its module may have been renamed.
    """
    if owner in ("", settings.name):
        return False
    named = settings.sources["name"] != DEFAULT
    by = rank(settings, "name" if named else "app")
    where = rank(settings, place)
    return by < where or (named and by == where)


def place_of_history(settings: Settings) -> str:
    """The option that leads to the state directory."""
    return "state_dir" if settings.sources["state_dir"] != DEFAULT else "run_dir"


def is_borrowed(settings: Settings, owner: str) -> bool:
    """Whether the state directory has the history of another server, and a weaker source than that of the name leads
    there: then `rollback 7` can load the seventh generation of the other server.

    A supervisor's own directory (STATE_DIRECTORY) follows the unit, whatever its server is called.
    """
    if owner in ("", settings.name) or settings.sources["name"] == DEFAULT:
        return False
    where = rank(settings, place_of_history(settings))
    own = place_of_history(settings) == "run_dir" and bool(settings.origin.environ.get("STATE_DIRECTORY"))
    return not own and rank(settings, "name") < where < NOWHERE


def last_name(lines: Iterable[Mapping[str, Any]]) -> str:
    """The name of the server that a history is about; "" where it does not say."""
    names = [str(line["name"]) for line in lines if line.get("event") == "started" and line.get("name")]
    return names[-1] if names else ""
