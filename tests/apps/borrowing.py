"""What an application sees of the packages that its server provides, in its own process and in those that it starts.

It imports reuseport as any application does, whether or not its environment has it.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import subprocess
import sys

import basic

import reuseport

PATIENCE = 30  # seconds
HERE = os.path.dirname(__file__)


def seen() -> dict:
    """Of the process that calls it: where packages come from, and whether this is one of the server's processes."""
    names = ("reuseport", "gevent", "greenlet", "setproctitle", "pytest")
    return {
        **{name: getattr(importlib.util.find_spec(name), "origin", None) for name in names},
        "path": [entry for entry in sys.path if entry != HERE],
        "pid": os.getpid(),
        "prefix": sys.prefix,
        "patched": "gevent.monkey" in sys.modules and sys.modules["gevent.monkey"].is_module_patched("socket"),
        "is_server": "reuseport.zygote" in sys.modules,
    }


def put(queue) -> None:
    queue.put(seen())


def multiprocess(method: str) -> dict:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=put, args=(queue,))
    process.start()
    try:
        return queue.get(timeout=PATIENCE)
    finally:
        process.join()


def make(version: str):
    plain = basic.make(version)

    def application(environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/seen":
            basic.extra["seen"] = seen()
        elif path == "/job":
            basic.extra["seen"] = reuseport.spawn(seen, where="process").result(PATIENCE)
        elif path in ("/spawn", "/forkserver"):
            basic.extra["seen"] = multiprocess(path[1:])
        elif path == "/subprocess":
            done = subprocess.run([sys.executable, "-c", "import reuseport"], capture_output=True, text=True)
            basic.extra["seen"] = {"status": done.returncode, "said": done.stderr}
        return plain(environ, start_response)

    return application
