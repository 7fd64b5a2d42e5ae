"""The form of a log entry, the same for every process: a plain line, one JSON object, or what a log daemon wants.

`who` is "master", "7" (what generation 7 printed while it booted), or the id of a worker or job, such as "7.2".
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable

from reuseport import names
from reuseport.options import Settings
from reuseport.options.logplace import FACILITIES, JOURNALD, REMOTE, SYSLOG, LogPlace

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
OUTPUT = ("stdout", "stderr", "output")  # in the place of a level: what the application has printed

# What follows this in a line of a boot log is in the log already. Only the asker of the release still needs it.
LOGGED = b"\x1ereuseport\x1e"

LONGEST = 1 << 20  # characters of an entry

Form = Callable[[str, str, str], list[bytes]]

# syslog(3); what is printed is for whoever reads, not for an alarm.
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_LONGEST = 8000  # bytes of a syslog message: rsyslog cuts at 8 KiB, and RFC 5424 section 6.1 lets others cut earlier


def printable(text: str) -> str:
    """A text for a log or a terminal, whoever it is from: its lines stay, all that would move a cursor is escaped."""
    return names.lines(text, LONGEST)


def plain(who: str, level: str, text: str) -> list[bytes]:
    """A line for each of the text's."""
    stamp = time.strftime("[%Y-%m-%d %H:%M:%S %z] ").encode()
    return [stamp + words + b"\n" for words in _worded(who, level, text)]


def as_json(who: str, level: str, text: str) -> list[bytes]:
    """One object of strings, whatever the text holds: a traceback stays together. `time` is RFC 3339."""
    entry = {"time": iso_time(time.time()), "process": who, "level": level, "message": text.rstrip("\n")}
    if number := generation_of(who):
        entry["generation"] = number
    return [json.dumps(entry, separators=(",", ":")).encode() + b"\n"]


def form_of(place: LogPlace, settings: Settings, *, bare: bool = False) -> Form:
    """How entries for this place look: as --log-json, --log-syslog-facility and --log-syslog-prefix say.

    A daemon files them under the last of these; the journal has fields of its own, and so needs no JSON. `bare`: the
    text says already whose it is (the access log), and a daemon gets it as it is.
    """
    name = settings.log_syslog_prefix or settings.name
    if place.kind == JOURNALD:
        return _journald(name)
    if place.kind in (SYSLOG, REMOTE):
        facility = FACILITIES.index(settings.log_syslog_facility)
        words = _bare if bare else as_json if settings.log_json else _worded
        return _syslog(name, facility, words, remote=place.kind == REMOTE)
    return as_json if settings.log_json else plain


def _bare(who: str, level: str, text: str) -> list[bytes]:
    return [text.encode(errors="backslashreplace")]


def _worded(who: str, level: str, text: str) -> list[bytes]:
    return [f"[{who}] [{level}] {part}".encode() for part in printable(text.rstrip("\n")).split("\n")]


def _syslog(name: str, facility: int, words: Form, *, remote: bool) -> Form:
    """A message for each of the words. Local daemons read what syslog(3) writes; across the network it is RFC 5424."""
    host = socket.gethostname() or "-"

    def form(who: str, level: str, text: str) -> list[bytes]:
        priority = facility * 8 + _PRIORITY.get(level, 6)
        pid = os.getpid()
        if remote:
            stamp = iso_time(time.time())
            head = f"<{priority}>1 {stamp} {host} {name} {pid} - - "
        else:
            # Not strftime, whose %b is the locale's.
            now = time.localtime()
            month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][now.tm_mon - 1]
            head = f"<{priority}>{month} {now.tm_mday:2d} {time.strftime('%H:%M:%S', now)} {name}[{pid}]: "
        return [(head.encode() + part.rstrip(b"\n"))[:_LONGEST] for part in words(who, level, text)]

    return form


def _journald(name: str) -> Form:
    """One entry, whatever the text holds: a traceback stays together (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def form(who: str, level: str, text: str) -> list[bytes]:
        fields = {
            "MESSAGE": printable(text.rstrip("\n")),
            "PRIORITY": str(_PRIORITY.get(level, 6)),
            "SYSLOG_IDENTIFIER": name,
            "REUSEPORT_PROCESS": who,
            "REUSEPORT_LEVEL": level,
        }
        if number := generation_of(who):
            fields["REUSEPORT_GENERATION"] = number
        return [b"".join(_field(key, value.encode(errors="backslashreplace")) for key, value in fields.items())]

    return form


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def generation_of(who: str) -> str:
    """The generation that a process belongs to; "" for the master."""
    number = who.partition(".")[0]
    return number if number.isdecimal() else ""


def iso_time(seconds: float) -> str:
    """Unix time with milliseconds and the local offset, as RFC 3339 has it: 2026-01-31T12:00:00.000+01:00."""
    local = time.localtime(seconds)
    offset = time.strftime("%z", local)  # without the colon that RFC 3339 demands
    fraction = f"{int(seconds % 1 * 1000):03d}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{fraction}{offset[:3]}:{offset[3:]}"
