"""An application that forks, at every moment and in every way; and the requests beside it, which write into a ledger.

A line of the ledger is an entry and the pid of the process that wrote it: what two processes did stands there twice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

import basic
from gevent import monkey

LEDGER = basic.GATES / "ledger"
FORK = multiprocessing.get_context("fork")

PARENT: dict[str, int] = {}
event = threading.Event()
entries: queue.Queue[str] = queue.Queue()
reading, writing = socket.socketpair()


def write(entry: str) -> None:
    fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(fd, f"{entry} {os.getpid()}\n".encode())
    os.close(fd)


def descriptors() -> list[str]:
    """The sockets and pipes that this process holds, by the kernel's name."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # that of the listing
    return [one for one in found if one.startswith("socket:")]


def tell(name: str) -> None:
    """What the process is like, for the test."""
    ignored = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigIgn"))
    facts = {"pid": os.getpid(), "sockets": descriptors(), "ignored": int(ignored.split()[1], 16)}
    (basic.GATES / f"{name}.new").write_text(json.dumps(facts))
    (basic.GATES / f"{name}.new").rename(basic.GATES / name)


def waits(name: str = "child") -> None:
    """A child that only waits."""
    tell(name)
    basic.pass_gate(name)


def child(name: str = "child") -> None:
    """What a child does: it wakes all that waits in its parent, works with threads and processes, waits, and ends."""
    tell(name)
    if monkey.is_module_patched("threading"):
        # A fork beside native threads may find their locks held, in any server.
        event.set()
        entries.put("from the child")
    lock = threading.Lock()

    def work(number: int) -> None:
        with lock:
            time.sleep(0.01)
        write(f"{name}-thread-{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert subprocess.run(["echo", "yes"], capture_output=True, check=True).stdout == b"yes\n"
    grandchild = FORK.Process(target=write, args=(f"{name}-grandchild",))
    grandchild.start()
    grandchild.join()
    assert grandchild.exitcode == 0
    basic.pass_gate(name)
    write(name)


def by_process(name: str) -> int | None:
    process = FORK.Process(target=child, args=(name,))
    process.start()
    process.join()
    return process.exitcode


def by_fork(name: str) -> int:
    pid = os.fork()
    if not pid:
        child(name)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def by_fork_that_returns(name: str) -> int:
    pid = os.fork()
    if not pid:
        child(name)
        return -1
    return os.waitpid(pid, 0)[1]


def by_fork_that_exits(name: str) -> int:
    pid = os.fork()
    if not pid:
        child(name)
        sys.exit()
    return os.waitpid(pid, 0)[1]


def by_fork_that_fails(name: str) -> int:
    pid = os.fork()
    if not pid:
        child(name)
        raise ValueError("of the child")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) - 1


def by_forkpty(name: str) -> int:
    pid, fd = os.forkpty()
    if not pid:
        child(name)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    os.close(fd)
    return status


def by_preexec(name: str) -> int:
    # What runs there must not fork: subprocess waits for its pipe's end, which a grandchild would inherit.
    def before() -> None:
        tell(name)
        basic.pass_gate(name)
        write(name)

    return subprocess.run(["true"], preexec_fn=before, check=True).returncode


def by_thread(name: str) -> int | None:
    """In a thread of the application's, whose child returns from the thread's function."""
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(by_fork_that_returns(name)))
    thread.start()
    thread.join()
    return statuses[0]


def by_native_thread(name: str) -> int:
    """In a native thread beside the loop. gevent's own os.fork works in the loop's thread only."""
    import gevent
    from gevent import monkey

    def fork() -> int:
        pid = monkey.get_original("os", "fork")()
        if not pid:
            child(name)
            os._exit(0)
        return monkey.get_original("os", "waitpid")(pid, 0)[1]

    return gevent.get_hub().threadpool.apply(fork)


def by_nested_greenlet(name: str) -> int:
    """In a greenlet below the request's, as SQLAlchemy's greenlet_spawn makes one."""
    import greenlet

    return greenlet.greenlet(by_fork_that_exits).switch(name)


def wait_by(how: str) -> None:
    """What a request beside the fork waits for."""
    if how == "gate":
        basic.pass_gate("insert")
    elif how == "event":
        basic.enter("insert")
        event.wait()
        basic.pass_gate("insert")
    elif how == "queue":
        basic.enter("insert")
        entries.get()
        basic.pass_gate("insert")
    elif how == "socket":
        basic.enter("insert")
        reading.recv(1)
    elif how == "process":
        # It comes to the gate itself. A fork between its pipe and its exec would hold the pipe, and run() would wait.
        gates = basic.GATES
        script = f"touch {gates}/insert.$$.1.entered; until test -e {gates}/insert.open; do sleep 0.01; done"
        subprocess.run(["sh", "-c", script], check=True)
    elif how == "finally":
        try:
            basic.pass_gate("insert")
        finally:
            write("finally")


def count(entry: str) -> None:
    """An entry after three waits. No SQLite: a fork beside a native thread leaves its locks held."""
    for _ in range(3):
        time.sleep(random.uniform(0, 0.005))
    write(entry)


def make(version: str):
    inner = basic.make(version)

    def application(environ, start_response):
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        path = environ["PATH_INFO"]
        if path == "/insert":
            wait_by(query["by"])
            write(f"insert-{query['by']}")
        elif path == "/fork":
            PARENT["pid"] = os.getpid()
            status = globals()[f"by_{query['how']}"](query.get("name", "child"))
            assert status == (0 if os.getpid() == PARENT["pid"] else -1), status
        elif path == "/count":
            count(query["entry"])
        elif path == "/wake":
            event.set()
            entries.put("from the parent")
            writing.send(b"x")
        return inner(environ, start_response)

    return application
