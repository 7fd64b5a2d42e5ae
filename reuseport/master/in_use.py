"""Who listens at a TCP port, for the message about an address that is in use: as far as this user may see."""

from __future__ import annotations

import contextlib
import os

LISTENING = "0A"  # a socket's state in /proc/net/tcp (proc_net(5))


def who(name: str) -> str:
    """HOST:PORT's listener as " (pid 7, nginx: master process)"; "" where it cannot be seen.

    Of several the oldest that lives is named: workers have their master's sockets.
    """
    sockets = _sockets(int(name.rpartition(":")[2]))
    for pid in sorted(int(word) for word in os.listdir("/proc") if word.isdigit()) if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            directory = f"/proc/{pid}/fd"
            if any(os.readlink(f"{directory}/{fd}") in sockets for fd in os.listdir(directory)):
                return f" (pid {pid}, {_title(pid)})"
    return ""


def _sockets(port: int) -> set[str]:
    """How the sockets that listen at the port are called in /proc/PID/fd."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}", encoding="ascii") as file:
            for fields in [line.split() for line in file][1:]:
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _title(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().replace(b"\0", b" ").decode(errors="replace")
    title = "".join(c if c.isprintable() else "?" for c in words).strip()
    return title if len(title) <= 60 else f"{title[:59]}…"
