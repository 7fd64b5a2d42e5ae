"""The monolith's tasks, which a Huey consumer works off beside it, and the page that asks for one."""

import json
import os
import time

from huey import SqliteHuey

VERSION = 1

huey = SqliteHuey(filename=os.environ["MONOLITH_QUEUE"])


def note(what, **facts):
    """One line in the journal. CLOCK_MONOTONIC is the same for all processes of a machine."""
    line = json.dumps({"what": what, "version": VERSION, "pid": os.getpid(), "at": time.monotonic(), **facts})
    fd = os.open(os.environ["MONOLITH_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode() + b"\n")
    finally:
        os.close(fd)


@huey.task()
def work(number, seconds):
    note("begins", number=number)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    note("ends", number=number)
