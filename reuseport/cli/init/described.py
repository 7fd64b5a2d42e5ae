"""The application as it was described on the command line, and what several targets conclude from that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reuseport.options import OPTIONS, OptionError, Settings, parse_address
from reuseport.options.address import Address
from reuseport.options.arguments import scan
from reuseport.options.option import Option
from reuseport.options.settings import DEFAULT
from reuseport.options.table import BY_NAME, FOREIGN

Rewritten = Callable[[Option, str], str | None]

MARGIN = 30  # seconds that others wait longer than the server itself
LONGEST = 3600  # seconds that a stop gets where nothing limits it, and whoever asks for it wants a number


@dataclass(frozen=True)
class Described:
    """`words` are the options as typed, `program` what runs this installation of reuseport; `user` is whom the
    application runs as where no option says so."""

    settings: Settings
    words: tuple[str, ...]
    program: tuple[str, ...] = ("reuseport",)
    user: str = "root"

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def run_dir(self) -> str:
        """Where the master's run directory is: as said, or that of the unit that `init systemd` prints."""
        return self.settings.run_dir if self.says("run_dir") else f"/run/reuseport/{self.name}"

    @property
    def as_root(self) -> bool:
        """Whether the master is root's, whoever the application runs as."""
        return bool(self.settings.user) or self.user == "root"

    @property
    def addresses(self) -> list[Address]:
        return [parse_address(address) for address in self.settings.bind]

    def says(self, option: str) -> bool:
        return self.settings.sources[option] != DEFAULT

    def variables(self) -> Iterable[tuple[str, str]]:
        """What the environment says about options now must be said again wherever the file takes effect."""
        for name, source in self.settings.sources.items():
            variable = self.settings.places[name]
            if source == "environment" and name in BY_NAME and variable in self.settings.origin.environ:
                yield variable, self.settings.origin.environ[variable]

    def grace(self) -> tuple[int, str]:
        """How many seconds a stop may take before whoever asked for it kills, and why so many."""
        settings = self.settings
        if settings.graceful_timeout:
            return _whole(settings.stop_delay + settings.graceful_timeout), "--graceful-timeout and some more"
        if settings.job_timeout:
            longest = settings.stop_delay + settings.job_timeout + settings.job_grace
            return _whole(longest), "--job-timeout, --job-grace and some more"
        return LONGEST, "an hour; put in as long as your longest job takes, or set --job-timeout"


def _whole(seconds: float) -> int:
    return int(seconds + MARGIN)


def words_without(words: Sequence[str], name: str) -> tuple[str, ...]:
    """The words of a command line but those that say the option."""
    return rewritten(words, lambda option, text: None if option.name == name else text)


def rewritten(words: Sequence[str], change: Rewritten) -> tuple[str, ...]:
    """The words of a command line with other values. `change(option, text)` gives None to leave the option out."""
    made: list[str] = []
    for entry, flag, text in scan(words, OPTIONS, FOREIGN):
        if not isinstance(entry, Option):
            made += [flag] if text is None else [flag, text]
        elif entry.positional:
            if (value := change(entry, flag)) is not None:
                made.append(value)
        elif text is None or entry.is_switch:
            if change(entry, "") is not None:
                made.append(flag)
        elif (value := change(entry, text)) is not None:
            made += [f"{flag}={value}"] if flag.startswith("--") and value.startswith("-") else [flag, value]
    return tuple(made)


def one_line_only(text: str, what: str) -> str:
    """The text, if such a file can hold it. Raises OptionError."""
    if any(letter in text for letter in "\r\n"):
        raise OptionError(f"init: {text!r} has a line break, which {what} cannot hold")
    return text


def quoted(text: str) -> str:
    """A string of JSON, which YAML and a Dockerfile's exec form read as it is meant."""
    return json.dumps(text)


def sequence(words: Iterable[str]) -> str:
    return f"[{', '.join(map(quoted, words))}]"
