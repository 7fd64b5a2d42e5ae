"""What a supervisor hands over at the start: listening sockets (sd_listen_fds(3)), and a word about whom to tell.

The variables that say so are meant for this process alone. They are taken out of the environment, or a zygote, and
the application in it, would take descriptors for its own that are not, and speak to the supervisor in our name.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import NamedTuple

from reuseport.master.slots import Passed, SlotError

FIRST = 3  # SD_LISTEN_FDS_START
VARIABLES = (
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
)
STORED = (
    "reuseport-slot"  # FDNAME of the sockets that were put into the supervisor's store, by this or an earlier master
)


class Supervision(NamedTuple):
    """`notify` is the address of the notification socket, "" for none; `watchdog` is in seconds, 0.0 for none.

    `sockets` are the numbers and names of the descriptors that were passed; `store`: it keeps ours for the next master.
    """

    notify: str = ""
    watchdog: float = 0.0
    sockets: tuple[tuple[int, str], ...] = ()
    store: bool = False


def take(environ: MutableMapping[str, str], pid: int) -> Supervision:
    """Read the variables and remove them. SlotError where they contradict themselves.

    What is addressed to another process (LISTEN_PID, WATCHDOG_PID) is not ours, and only removed.
    """
    said = {name: environ.pop(name, "") for name in VARIABLES}
    mine = said["LISTEN_PID"] == str(pid)
    sockets: tuple[tuple[int, str], ...] = ()
    if mine:
        if not _is_number(said["LISTEN_FDS"]) or int(said["LISTEN_FDS"]) > 65536:
            raise SlotError(f"LISTEN_FDS: {said['LISTEN_FDS']!r} is not a number of descriptors")
        names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] else []
        names += [""] * (int(said["LISTEN_FDS"]) - len(names))
        sockets = tuple((FIRST + n, names[n]) for n in range(int(said["LISTEN_FDS"])))
    watched = said["WATCHDOG_PID"] in ("", str(pid)) and _is_number(said["WATCHDOG_USEC"])
    return Supervision(
        said["NOTIFY_SOCKET"] if said["NOTIFY_SOCKET"][:1] in ("/", "@") else "",
        int(said["WATCHDOG_USEC"]) / 1e6 if watched else 0.0,
        sockets,
        # systemd before 254 sets no $FDSTORE: there the store shows by what comes out of it.
        (_is_number(said["FDSTORE"]) and int(said["FDSTORE"]) > 0) or STORED in [name for _, name in sockets],
    )


def sockets_of(supervision: Supervision) -> list[Passed]:
    """The listening sockets that were passed. SlotError, in one line, for anything else that was."""
    found = []
    for fd, name in supervision.sockets:
        what = f"LISTEN_FDS: descriptor {fd}" + (f" ({name})" if name else "")
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise SlotError(f"{what} is no socket: {error.strerror}") from None
        if not listens:
            raise SlotError(f"{what} is not a stream socket that listens: the .socket unit needs ListenStream=")
        sock.setblocking(False)
        found.append(Passed(sock, _address(sock, what), name == STORED))
    return found


def _address(sock: socket.socket, what: str) -> str:
    where = sock.getsockname()
    if sock.family == socket.AF_INET:
        return f"{where[0]}:{where[1]}"
    if sock.family == socket.AF_INET6:
        return f"[{where[0]}]:{where[1]}"
    if sock.family == socket.AF_UNIX and isinstance(where, str) and where.startswith("/"):
        return f"unix:{where}"
    raise SlotError(f"{what} listens neither on an IP address nor on a unix socket with an absolute path: {where!r}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
