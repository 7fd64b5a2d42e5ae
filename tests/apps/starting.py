"""An application that starts other programs, in every way and at every moment, and tells what they find.

A program's facts: which signals it ignores and blocks, as bit masks (proc_pid_status(5)), and its soft limit of open
files. Python itself ignores SIGPIPE and SIGXFSZ, and glibc's posix_spawn(3) its internal signals 32 and 33. These four
are left out.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
from pathlib import Path
from posix import close

OF_OTHERS = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))
SCRIPT = str(Path(__file__).with_suffix(".sh"))


def parsed(text: str) -> dict:
    blocked, ignored, limit = text.split()
    return {"blocked": int(blocked, 16), "ignored": int(ignored, 16) & ~OF_OTHERS, "limit": int(limit)}


def tell(connection) -> None:
    """What a child process of multiprocessing finds."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connection.send(parsed(f"{status['SigBlk']} {status['SigIgn']} {limit}"))


def by_subprocess() -> dict:
    return parsed(subprocess.run(["sh", SCRIPT], capture_output=True, text=True, check=True).stdout)


def by_shell() -> dict:
    command = f"sh {SCRIPT}"
    return parsed(subprocess.check_output(command, shell=True, text=True, close_fds=False, restore_signals=False))


def by_popen() -> dict:
    with os.popen(f"sh {SCRIPT}") as pipe:
        return parsed(pipe.read())


def into_pipe(start) -> dict:
    """`start(fd)` starts the script with standard output there, and returns its pid, or 0 after its end."""
    reader, writer = os.pipe()
    started = start(writer)
    close(writer)  # gevent's os.close waits for a turn of the loop, which the read below would prevent
    with open(reader) as pipe:
        text = pipe.read()
    if started:
        os.waitpid(started, 0)
    return parsed(text)


def by_fork() -> dict:
    def start(fd: int) -> int:
        pid = os.fork()
        if not pid:
            os.dup2(fd, 1)
            os.execv("/bin/sh", ["sh", SCRIPT])
        return pid

    return into_pipe(start)


def by_posix_spawn(spawn: str = "posix_spawn", program: str = "/bin/sh") -> dict:
    def start(fd: int) -> int:
        actions = [(os.POSIX_SPAWN_DUP2, fd, 1)]
        return getattr(os, spawn)(program, ["sh", SCRIPT], os.environ, file_actions=actions)

    return into_pipe(start)


def by_posix_spawnp() -> dict:
    return by_posix_spawn("posix_spawnp", "sh")


def by_system() -> dict:
    def start(fd: int) -> int:
        os.set_inheritable(fd, True)
        assert os.system(f"sh {SCRIPT} >/dev/fd/{fd}") == 0
        return 0

    return into_pipe(start)


def by_spawnlp() -> dict:
    def start(fd: int) -> int:
        os.set_inheritable(fd, True)
        return os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", f"sh {SCRIPT} >/dev/fd/{fd}")

    return into_pipe(start)


def by_preexec() -> dict:
    run = subprocess.run(["sh", SCRIPT], capture_output=True, text=True, check=True, preexec_fn=int)
    return parsed(run.stdout)


def by_multiprocessing(method: str) -> dict:
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(sending,))
    process.start()
    found = receiving.recv()
    process.join()
    return found


WAYS = {
    name.removeprefix("by_"): function
    for name, function in list(globals().items())
    if name.startswith("by_") and name != "by_multiprocessing"
}
METHODS = ("fork", "spawn", "forkserver")
ALL = WAYS | {f"multiprocessing, {method}": functools.partial(by_multiprocessing, method) for method in METHODS}



def by(ways: dict) -> dict:
    return {name: way() for name, way in ways.items()}


def in_thread() -> dict:
    found: list[dict] = []
    thread = threading.Thread(target=lambda: found.append(by(WAYS)))
    thread.start()
    thread.join()
    return found[0]


def make(version: str, at_import: dict):
    import basic
    from gevent import monkey

    import reuseport

    inner = basic.make(version)
    at_start: dict = {}
    reuseport.on_start(lambda: at_start.update(by(WAYS)))

    def application(environ, start_response):
        if environ["PATH_INFO"] != "/started":
            return inner(environ, start_response)
        found = {"import": at_import, "start hook": at_start, "request": by(ALL), "thread": in_thread()}
        # gevent's subprocess works in the loop's thread only.
        for where in ("greenlet", "process") if monkey.is_module_patched("threading") else ("thread", "process"):
            found[f"job, {where}"] = reuseport.spawn(by, WAYS, name="starts", where=where).result(60)
        body = json.dumps(found).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    return application
