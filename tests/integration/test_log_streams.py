"""A path that is one of the master's own descriptors means what it means for the master, in every process."""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Server, wait_for

CODE = """
import logging

import reuseport

handlers = {}
for stream in ("stdout", "stderr"):
    handlers[stream] = logging.FileHandler(f"/dev/{stream}")
late = logging.FileHandler("/dev/stderr", delay=True)

@reuseport.on_start
def open_late():
    late.acquire()
    late.stream = late._open()
    late.release()

inner = application

def application(environ, start_response):
    path = environ["PATH_INFO"]
    for stream, handler in handlers.items():
        handler.emit(logging.makeLogRecord({"msg": f"opened {stream} {path}"}))
    late.emit(logging.makeLogRecord({"msg": f"late {path}"}))
    print(f"printed {path}", flush=True)
    return inner(environ, start_response)
"""


@dataclass
class Streams(Server):
    """A server whose standard output, standard error and descriptor 7 are files of their own, others at each start."""

    starts: int = 0

    def file(self, which: str) -> Path:
        return self.root / f"{which}-{self.starts}"

    def has(self, which: str, line: str) -> bool:
        return line in self.file(which).read_text()

    def has_all(self, path: str) -> None:
        """A request, of which each line is where it belongs."""
        self.get(path)
        wait_for(lambda: self.has("seven", f"GET {path} "), f"the access log of {path}")
        wait_for(lambda: self.has("out", f"opened stdout {path}\n"), f"the line of /dev/stdout, {path}")
        wait_for(lambda: self.has("out", f"printed {path}\n"), f"the printed line, {path}")
        wait_for(lambda: self.has("err", f"opened stderr {path}\n"), f"the line of /dev/stderr, {path}")
        wait_for(lambda: self.has("err", f"late {path}\n"), f"the line of a start hook's handler, {path}")

    def launch(self) -> Server:
        if not self.current.is_symlink():
            self.write("one", CODE)
        self.starts += 1
        self.log = self.file("err")
        with self.file("out").open("ab") as out, self.file("err").open("ab") as err:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", 'exec "$@" 7>>"$SEVEN"', "sh", *self.command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.root, start_new_session=True,
                env={**self.environment, "SEVEN": str(self.file("seven"))},
            )  # fmt: skip
        return self


@pytest.fixture
def streams():
    with contextlib.ExitStack() as stack:

        def make(*options: str, **fields) -> Streams:
            one = Streams(("--access-log", "/dev/fd/7", *options), **fields)
            stack.callback(one.close)
            return one

        yield make


def test_through_the_life_of_a_master(streams):
    server = streams(workers=1)
    server.start()
    server.has_all("/first")
    server.write("two", CODE)
    assert server.release().exit == 0
    server.has_all("/released")
    assert server.begin("rollback").wait() == 0
    server.has_all("/back")
    assert server.begin("upgrade").wait() == 0
    server.has_all("/upgraded")
    server.write("three", CODE)
    assert server.release().exit == 0
    server.has_all("/released-by-the-next-version")

    server.process.kill()
    server.process.wait()
    server.start()
    numbers = iter(range(1000))

    def follows() -> bool:
        """The worker hears of the new streams a little later than the master is known to live."""
        path = f"/adopted-{next(numbers)}"
        server.get(path)
        return server.has("seven", path) and server.has("out", f"printed {path}\n")

    wait_for(follows, "the streams of the master that has adopted the worker")
    server.write("four", CODE)
    assert server.release().exit == 0
    server.has_all("/released-by-the-next-master")


def test_a_master_that_takes_over(streams):
    options = ("--preload", "never", "--threads", "2")
    one = streams(*options, workers=1)
    one.start()
    address = one.address
    two = streams("--takeover", *options, workers=1, run_dir=one.run_dir, bind=(address,))
    two.name = one.name
    two.write("two", CODE + "\nprint('booted')\n")
    two.launch()
    assert one.await_exit() == 0
    two.settle(2)
    two.has_all("/taken-over")
    assert "booted" not in one.file("out").read_text()
