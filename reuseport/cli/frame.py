"""What all commands that ask a master share: their help, `--json`, the question and how its failure is told."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from reuseport.cli import place
from reuseport.cli.failure import Failure
from reuseport.cli.words import a_list
from reuseport.options import Option, kinds
from reuseport.options.arguments import one_line
from reuseport.options.manual import manual
from reuseport.options.reading import Words
from reuseport.options.table import FLAG

ANSWER_SECONDS = 10.0  # a master's loop never blocks, so a longer silence is a fault worth reporting


def option(name: str, kind: kinds.Kind, default: Any, help_text: str, **more: Any) -> Option:
    """An option of a command: typed, and nowhere else."""
    return Option(name, kind, default, help=help_text, group="Options", where=frozenset({FLAG}), **more)


def json_option(what: str) -> Option:
    return option("json", kinds.SWITCH, False, f"Print {what}.")


JSON = json_option("the master's answer as one JSON object")


def help_of(usage: str, about: str, takes: Sequence[Option]) -> str:
    """The help of a command that finds its master as all of them do."""
    whole = f"reuseport {usage} [-n NAME | --run-dir DIR | -c FILE]"
    return manual(takes, whole, about, shutil.get_terminal_size().columns)


BY = option(
    "by",
    kinds.TEXT,
    "",
    "On whose behalf this is done, for the history and the log: a person, a CI job. The user, SUDO_USER and the host "
    "are kept in any case.",
    metavar="TEXT",
    default_text="the user",
)


def from_option(what: str) -> Option:
    """The generation that must serve, for a command that goes from it to another."""
    return option(
        "from",
        kinds.WHOLE,
        None,
        f"Do it only if generation N serves. {what}",
        metavar="N",
        default_text="the generation that served when the command was started",
    )


def check_from(server: place.Server, number: int | None) -> None:
    """Raises Failure where the master is of a version that passes over --from: it answers `who` since the same one."""
    if number is not None and not server.answers_who:
        raise Failure(
            f"--from {number}: this master is of an older version that does not know --from; nothing was done. "
            "Give the command without --from, or run `reuseport upgrade` first"
        )


def show(server: place.Server, as_json: bool) -> None:
    """Say on which server a command acts, before it does."""
    if not as_json:
        print(server, flush=True)


def warn(done: Mapping[str, Any]) -> None:
    """Say on standard error what an answer warns of. It changes no exit status."""
    sys.stdout.flush()
    for text in a_list(done, "warnings"):
        sys.stderr.write(f"reuseport: warning: {one_line(str(text))}\n")


def with_server(done: dict[str, Any], server: place.Server) -> dict[str, Any]:
    """The answer of a command that acts on a server, for --json."""
    return {**done, "server": {"name": server.name, "pid": server.pid, "run_dir": server.run_dir}}


def ask(words: Words, question: dict[str, Any], what: str = "", **how: Any) -> dict[str, Any]:
    """The master's answer, which must come soon. Raises Failure if it is no; `what` begins the message."""
    done = place.find(words).ask(question, **{"timeout": ANSWER_SECONDS, **how})
    return checked(done, what)


def checked(done: dict[str, Any], what: str = "") -> dict[str, Any]:
    """The answer, unless it is no. Raises Failure."""
    if done.get("ok"):
        return done
    reason = str(done.get("error") or "the master gave no reason")
    raise Failure(f"{what}: {reason}" if what else reason)
