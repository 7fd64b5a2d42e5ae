"""A companion as the integration tests need one: it says what happens to it, and ends when its gate is open.

    python companion.py [SIGNAL [STATUS]]

begins, waits for SIGNAL (TERM), then at the gate `NAME-GENERATION`, and exits with STATUS (0). What it says goes to
the file `events` beside the gates, a JSON object in each line, and to standard output for a person.

With READY in its environment it tells of `imports` before all that, and waits at the gate `NAME-GENERATION-imported`,
at which TERM ends it. Then it shows that it is ready in the ways that READY names: `notify`, `child` (a process that
exits at once does so), `detached` (one in a session of its own, that stays), `line`, `file` (NAME-GENERATION-up).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

from basic import GATES, is_open

NAME, GENERATION = os.environ["REUSEPORT_COMPANION"], int(os.environ["REUSEPORT_GENERATION"])
heard: list[str] = []


def tell(what: str, **facts: object) -> None:
    line = json.dumps({"what": what, "name": NAME, "generation": GENERATION, "pid": os.getpid(), **facts})
    fd = os.open(GATES / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)
    print(f"{NAME} {what}")


def hear(number: int, frame: object) -> None:
    heard.append(signal.Signals(number).name)
    tell("signalled", signal=heard[-1], times=len(heard))


def notify(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


CHILD = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import companion; companion.notify('READY=1')"


def become_ready() -> None:
    """And before that take as long as an import may."""
    tell("imports", socket=os.environ.get("NOTIFY_SOCKET"))
    if status := os.environ.get("STATUS"):
        notify(f"STATUS={status}")
    if extend := os.environ.get("EXTEND"):
        notify(f"EXTEND_TIMEOUT_USEC={extend}")
    print("a word before it is ready")
    while not is_open(f"{NAME}-{GENERATION}-imported"):
        if "SIGTERM" in heard:
            sys.exit(1)
        time.sleep(0.01)
    for how in os.environ["READY"].split():
        if how == "notify":
            notify("READY=1\nSTATUS=at work")
        elif how == "child":
            subprocess.run([sys.executable, "-c", CHILD], check=True)
        elif how == "detached":
            stays = CHILD + "; import time; time.sleep(3600)"
            subprocess.Popen([sys.executable, "-c", stays], start_new_session=True)
        elif how == "line":
            print(f"worker@{NAME} is ready.")
        elif how == "file":
            (GATES / f"{NAME}-{GENERATION}-up").touch()


def main(stop: str = "TERM", status: str = "0") -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, hear)
    child = None
    if os.environ.get("CHILD"):
        # In a group of its own, as RQ does it.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], process_group=0).pid
    if os.environ.get("READY"):
        become_ready()
    tell(
        "begins",
        directory=os.getcwd(),
        python=sys.executable,
        venv=os.environ.get("VIRTUAL_ENV"),
        uid=os.getuid(),
        session=os.getsid(0),
        child=child,
        environment={k: v for k, v in os.environ.items() if k.startswith(("REUSEPORT_", "ODD"))},
    )
    while f"SIG{stop}" not in heard:
        time.sleep(0.01)
    while not is_open(f"{NAME}-{GENERATION}"):
        time.sleep(0.01)
    tell("ends")
    sys.exit(int(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
