"""Where a log may go: a file, a stream, syslog or the journal of systemd, written as one word.

-                         a standard stream
FILE                      a file; ./syslog is a file of that name
/dev/stdout, /dev/fd/3    a descriptor that the master was started with, in each of its names
journald, journald:/PATH  the journal, in its own protocol; the second is another namespace's
syslog, syslog:/PATH      the syslog daemon of this machine: /dev/log, or another socket of its kind
syslog://HOST[:PORT]      one that listens on UDP, port 514 unless another is named
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass

from . import kinds

STREAM, FILE, DESCRIPTOR, JOURNALD, SYSLOG, REMOTE = "stream", "file", "descriptor", "journald", "syslog", "remote"

STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}

_DESCRIPTOR = re.compile(r"/dev/(?:(stdin|stdout|stderr)|fd/(\d{1,6}))|/proc/(?:thread-)?self/fd/(\d{1,6})")

SOCKETS = {JOURNALD: "/run/systemd/journal/socket", SYSLOG: "/dev/log"}
SYSLOG_PORT = 514  # RFC 5426 section 3.3

# In the order of their numbers, RFC 5424 section 6.2.1.
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "audit", "alert", "clock"),
    *(f"local{number}" for number in range(8)),
)


@dataclass(frozen=True)
class LogPlace:
    """`kind` is one of the words above; `path` a file's or a socket's; `host` and `port` are a remote syslog's;
    `number` is a descriptor's."""

    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    number: int = -1

    @property
    def by_datagrams(self) -> bool:
        """Whether each entry is a datagram of its own form, so that bytes as they come cannot go there."""
        return self.kind in (JOURNALD, SYSLOG, REMOTE)


def _plain(path: str) -> str:
    """The path without repeated slashes and dots, which it is compared by."""
    return re.sub("^//", "/", os.path.normpath(path))


def parse(text: str) -> LogPlace:
    """ValueError, which says what is wrong, for a syslog: or journald: that is none."""
    kind, colon, rest = text.partition(":")
    if text == "-":
        return LogPlace(STREAM)
    if kind not in SOCKETS:
        found = _DESCRIPTOR.fullmatch(_plain(text))
        if found:
            number = STANDARD[found[1]] if found[1] else int(found[2] or found[3])
            return LogPlace(DESCRIPTOR, text, number=number)
        return LogPlace(FILE, text)
    if not colon:
        return LogPlace(kind, SOCKETS[kind])
    if kind == SYSLOG and rest.startswith("//"):
        found = re.fullmatch(r"//(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", rest)
        port = int(found[3] or SYSLOG_PORT) if found else 0
        if found and 0 < port < 65536:
            return LogPlace(REMOTE, host=found[1] or found[2], port=port)
    elif rest.startswith("/") and not rest.startswith("//"):
        return LogPlace(kind, rest)
    also = f", {kind}://HOST or {kind}://HOST:PORT" if kind == SYSLOG else ""
    raise ValueError(f"{text!r} is none of {kind}, {kind}:/PATH{also}")


def objection(number: int) -> str:
    """Why this process cannot log to the descriptor; "" if it can.

    A descriptor that this process has opened itself has close-on-exec (PEP 446). Its parent's have not, or they would
    not be here.
    """
    try:
        if number > 2 and not os.get_inheritable(number):
            return f"the master was started without descriptor {number}"
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return f"descriptor {number} is open for reading only"
    except OSError:
        return f"the master was started without descriptor {number}"
    return ""


def check(text: str) -> None:
    """ValueError as `parse`."""
    parse(text)


def _anchor(text: str, directory: str) -> str:
    """A file's name in `directory`. What is no file stays what it is, and so does what `check` refuses."""
    assert kinds.PATH.anchor is not None
    return text if text.partition(":")[0] in SOCKETS else str(kinds.PATH.anchor(text, directory))


PLACE = kinds.Kind("FILE", kinds.PATH.parse, anchor=_anchor)
FACILITY = kinds.choice(*FACILITIES)
