"""A companion as the integration tests need one: it says what happens to it, and ends when its gate is open.

    python companion.py [SIGNAL [STATUS]]

begins, waits for SIGNAL (TERM), then at the gate `NAME-GENERATION`, and exits with STATUS (0). What it says goes to
the file `events` beside the gates, a JSON object in each line, and to standard output for a person.
"""

from __future__ import annotations

import json
import os
import signal
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


def main(stop: str = "TERM", status: str = "0") -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, hear)
    child = None
    if os.environ.get("CHILD"):
        # In a group of its own, as RQ does it.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], process_group=0).pid
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
