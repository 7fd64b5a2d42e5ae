"""Companions as they are declared: the keys of a [[companion]] table, each with its kind, default, check and help.

    [[companion]]
    name = "mail"
    command = "celery -A shop worker"
    stop_timeout = "15m"

A table is read whole, so that what reaches the rest of the server has every key.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from reuseport.options import kinds
from reuseport.options.arguments import did_you_mean
from reuseport.options.kinds import Kind
from reuseport.options.option import Option, between

NEVER_HEARD = frozenset({"KILL", "STOP"})  # no process can do anything about these (signal(7))


def _command(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"{value!r} cannot be split into words: {str(error).lower()}") from error
    elif isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        words = list(value)
    else:
        raise ValueError(f"{value!r} is neither a command nor an array of its words")
    if not words or not words[0]:
        raise ValueError(f"{value!r} names no program")
    if any("\0" in word for word in words):
        raise ValueError(f"{value!r} has a NUL character in it")
    return tuple(words)


def _signal(value: Any) -> str:
    word = value.strip().upper().removeprefix("SIG") if isinstance(value, str) else ""
    known = {one.name.removeprefix("SIG") for one in signal.Signals} - NEVER_HEARD
    if word not in known:
        more = "; nothing can be finished after it" if word in NEVER_HEARD else did_you_mean(word, known)
        raise ValueError(f"{value!r} is not the name of a signal that a process can hear (TERM, INT){more}")
    return word


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a table of variables")
    return dict(kinds.ASSIGNMENT.parse(item) for item in value.items())


def _pattern(value: Any) -> str:
    text = kinds.TEXT.parse(value)
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    if not text:
        raise ValueError("'' is found in every line")
    return text


_COMMAND = Kind("COMMAND", _command, list)

# fmt: off
KEYS: tuple[Option, ...] = (
    Option(
        "name", kinds.NAME, "", group="", where=frozenset(), default_text="none, it must be given",
        help="What it is called in the log, in `reuseport status` and in REUSEPORT_COMPANION.",
    ),
    Option(
        "command", _COMMAND, "", group="", where=frozenset(),
        default_text="none, it must be given",
        help="What is executed, without a shell: one text that is split like a shell's words, or an array of them. It "
        "has to stay in the foreground. PATH begins with the directory of the generation's interpreter.",
    ),
    Option(
        "processes", kinds.WHOLE, 1, group="", where=frozenset(), check=between(1, 1000),
        help="How many processes of it run.",
    ),
    Option(
        "exclusive", kinds.SWITCH, False, group="", where=frozenset(),
        help="It never runs twice at once (cron, beat): the new one starts when the old one has ended.",
    ),
    Option(
        "restart", kinds.choice("always", "on-failure", "never"), "always", group="", where=frozenset(),
        help="After which ends it is started again, while its generation serves: with on-failure not after an exit "
        "with status 0.",
    ),
    Option(
        "ready", kinds.choice("timer", "notify", "command", "line"), "timer", group="", where=frozenset(),
        default_text="command with ready_command, line with ready_line, else timer",
        help="How a companion shows that it is ready, until when a release waits. notify: it sends READY=1 to "
        "NOTIFY_SOCKET (sd_notify(3)). timer: not at all; it counts as ready when it has run for ready_after.",
    ),
    Option(
        "ready_command", _COMMAND, (), group="", where=frozenset(), default_text="none",
        help="A command that is run again and again, with the companion's user, directory and environment, until it "
        "exits with status 0: then the companion is ready.",
    ),
    Option(
        "ready_line", Kind("REGEX", _pattern), "", group="", where=frozenset(), default_text="none",
        help="A regular expression. The companion is ready when it is found in a line that the companion prints.",
    ),
    Option(
        "ready_timeout", kinds.SECONDS, 90.0, group="", where=frozenset(), unit="seconds", check=between(0.1, 86400),
        help="How long it may take from its start until it is ready (not with timer). After that the release fails. It "
        "may take longer than --boot-timeout, which then bounds the workers only.",
    ),
    Option(
        "ready_interval", kinds.SECONDS, 1.0, group="", where=frozenset(), unit="seconds", check=between(0.1, 3600),
        help="The pause between two runs of ready_command.",
    ),
    Option(
        "ready_command_timeout", kinds.SECONDS, 10.0, group="", where=frozenset(), unit="seconds",
        check=between(0.1, 3600),
        help="How long one run of ready_command may take. SIGKILL follows, and the run counts as failed.",
    ),
    Option(
        "ready_after", kinds.SECONDS, 1.0, group="", where=frozenset(), unit="seconds", check=between(0, 3600),
        default_text="1; 0 where it shows that it is ready",
        help="It must have run for so long before it counts as ready; if it ends before, the release fails. Alone, as "
        "a timer, this proves little: choose more than its imports take.",
    ),
    Option(
        "stop_signal", Kind("SIGNAL", _signal), "TERM", group="", where=frozenset(),
        help="What its main process gets, once, when its generation begins to drain: the signal on which it finishes "
        "what it has begun, and ends. Huey's consumer does that at INT, and is refused without a word about it.",
    ),
    Option(
        "stop_timeout", kinds.SECONDS, 0.0, group="", where=frozenset(), unit="seconds", default_text="0, no limit",
        help="SIGKILL follows then, to it and to all that it has started.",
    ),
    Option(
        "env", Kind("TABLE", _environment, dict), {}, group="", where=frozenset(), default_text="none",
        help="Variables of its environment, beside those of --env.",
    ),
)
# fmt: on

BY_NAME = {key.name: key for key in KEYS}


def _companion(value: Any) -> dict[str, Any]:
    """One table with every key. ValueError that begins with its name and the key."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a table: it begins with [[companion]]")
    said: dict[str, Any] = {}
    title = repr(value["name"]) if isinstance(value.get("name"), str) else "a table"
    for word, item in value.items():
        key = BY_NAME.get(str(word).replace("-", "_"))
        if key is None:
            raise ValueError(f"{title}: unknown key {word!r}{did_you_mean(str(word), BY_NAME)}")
        if key.name in said:
            raise ValueError(f"{title}: {word}: was said before")
        try:
            said[key.name] = key.kind.parse(item)
            if key.check:
                key.check(said[key.name])
        except ValueError as error:
            raise ValueError(f"{title}: {word}: {error}") from error
    for name in ("name", "command"):
        if name not in said:
            raise ValueError(f"{title}: has no {name}")
    whole = {key.name: said.get(key.name, key.default) for key in KEYS}
    whole["ready"] = _readiness(title, said)
    if "ready_after" not in said and whole["ready"] != "timer":
        whole["ready_after"] = 0.0
    if "stop_signal" not in said and (better := _interrupted_by_term(whole["command"])):
        raise ValueError(
            f"{title}: stop_signal: the default, TERM, would interrupt this program's tasks, which {better} finishes: "
            f'say stop_signal = "{better}" (or "TERM", if that is meant)'
        )
    if whole["exclusive"] and whole["processes"] > 1:
        raise ValueError(f"{title}: exclusive: it never runs twice at once, so it cannot have several processes")
    return whole


_NEEDS = {"command": "ready_command", "line": "ready_line"}  # the key that each way of showing readiness needs
_OF_COMMAND = ("ready_interval", "ready_command_timeout")


def _readiness(title: str, said: Mapping[str, Any]) -> str:
    """The one way in which it shows that it is ready. ValueError where several are meant, or a key means nothing."""
    meant = [way for way, key in _NEEDS.items() if said.get(key)]
    if (explicit := said.get("ready")) is not None and explicit not in meant:
        if explicit in _NEEDS:
            raise ValueError(f"{title}: ready: {explicit!r} needs {_NEEDS[explicit]}")
        if not (explicit == "timer" and not meant):
            meant.insert(0, explicit)
    if len(meant) > 1:
        keys = " and ".join(_NEEDS.get(way, f"ready = {way!r}") for way in meant)
        raise ValueError(f"{title}: {keys}: only one of them can show that it is ready")
    way = meant[0] if meant else "timer"
    needless = [*(_OF_COMMAND if way != "command" else ()), *(("ready_timeout",) if way == "timer" else ())]
    for name in needless:
        if said.get(name, BY_NAME[name].default) != BY_NAME[name].default:
            without = "ready_command" if name in _OF_COMMAND else "ready, ready_command or ready_line"
            raise ValueError(f"{title}: {name}: it means nothing without {without}")
    return way


def _interrupted_by_term(command: Iterable[str]) -> str:
    """What to send instead to a program that does not finish its tasks at TERM; "" for all others."""
    text = " ".join(command)
    # Of Huey 3 on, the option exchanges the two.
    return "INT" if "huey_consumer" in text and "--graceful-signal" not in text else ""


def _show(value: Mapping[str, Any]) -> dict[str, Any]:
    # A file has no way to say that there is no command or line.
    return {key.name: key.kind.show(value[key.name]) for key in KEYS if value[key.name] not in ("", ())}


def check_names(companions: Iterable[Mapping[str, Any]]) -> None:
    """Each has a name of its own. ValueError."""
    seen: set[str] = set()
    for one in companions:
        if one["name"] in seen:
            raise ValueError(f"{one['name']!r}: two of this name")
        seen.add(one["name"])


COMPANION = Kind("", _companion, _show)
