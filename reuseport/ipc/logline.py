"""The form of a log line, the same for every process: plain, or one JSON object (`--log-json`)."""

import json
import time
from collections.abc import Callable

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}

Form = Callable[[str, str, str], list[bytes]]


def plain(who: str, level: str, text: str) -> list[bytes]:
    """A line for each of the text's. `who` is "master", "zygote 7" or a worker's id such as "7.2"."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return [
        f"[{stamp}] [{who}] [{level}] {part}\n".encode(errors="backslashreplace")
        for part in text.rstrip("\n").split("\n")
    ]


def as_json(who: str, level: str, text: str) -> list[bytes]:
    """One object of four strings, whatever the text holds: a traceback stays together. `time` is ISO 8601."""
    entry = {"time": iso_time(time.time()), "process": who, "level": level, "message": text.rstrip("\n")}
    return [json.dumps(entry, separators=(",", ":")).encode() + b"\n"]


def form_of(json: bool) -> Form:
    return as_json if json else plain


def iso_time(seconds: float) -> str:
    """Unix time with milliseconds and the local offset: 2026-01-31T12:00:00.000+0100."""
    local = time.localtime(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{int(seconds % 1 * 1000):03d}" + time.strftime("%z", local)
