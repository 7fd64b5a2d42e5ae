"""A master of root and processes of --user: logs that only root can open, through everything that opens them again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal

import pytest
from harness import Server, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

CODE = """
import os, sys
import reuseport
inner = application

def work():
    import basic
    print("the job begins")
    basic.pass_gate("job")
    print("the job ends")

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fail":
        raise RuntimeError(f"failed as {os.getuid()} " + environ["QUERY_STRING"])
    if path == "/print":
        print("printed " + environ["QUERY_STRING"])
    if path == "/job":
        reuseport.spawn(work, name="work", where="process")
    return inner(environ, start_response)
"""


class Site:
    """A server whose logs lie where only root can go."""

    def __init__(self, serve, interpreter: str, *options: str, logs: str = "both", **fields) -> None:
        self.serve = serve
        self.server: Server = serve(**fields)
        self.directory = self.server.root / "logs"
        self.directory.mkdir(mode=0o700)
        self.log, self.access = self.directory / "server.log", self.directory / "access.log"
        self.options = ("--user", "nobody", "--python", interpreter, *options)
        self.options += ("--log-file", str(self.log), "--access-log", str(self.access)) if logs == "both" else ()
        self.server.options = self.options
        self.number = 0
        self.write("one")

    def write(self, version: str) -> None:
        self.server.write(version, CODE)

    def start(self) -> Site:
        self.server.start()
        return self

    def another(self, *more: str, **fields) -> Server:
        """A second master of the same run directory."""
        server = self.serve(*self.options, *more, run_dir=self.server.run_dir, **fields)
        server.name = self.server.name
        server.current.symlink_to(self.server.current.resolve())
        return server

    def rotate(self, create: bool = False) -> None:
        """As logrotate: the files get other names, and USR1 has them opened again. `create`: by logrotate itself."""
        for path in (self.log, self.access):
            path.rename(f"{path}.{self.number}")
            if create:
                path.touch(mode=0o600)
        self.number += 1
        self.server.signal(signal.SIGUSR1)

    def has_all(self, server: Server | None = None) -> None:
        """Every worker writes to the files that lie there now: its traceback, and a line per request."""
        server = server or self.server
        self.number += 1
        asked = f"mark{self.number}"

        def arrived() -> bool:
            assert server.get(f"/fail?{asked}").status == 500
            log, access = text(self.log), text(self.access)
            workers = {w["id"] for w in server.status().workers("serving")}
            told = {one for one in workers if f"[{one}]" in log and f"{asked}\n" in log}
            return told == workers and f"RuntimeError: failed as {NOBODY} {asked}" in log and asked in access

        wait_for(arrived, f"{asked} of every worker in both logs")
        assert "could not be opened" not in text(self.log) + server.log.read_text()


NOBODY = 65534


def text(path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def site(serve, interpreter_for_all):
    def make(*options: str, **fields) -> Site:
        return Site(serve, interpreter_for_all, *options, **fields)

    return make


@pytest.mark.parametrize("options", [(), ("--threads", "2"), ("--preload", "never")], ids=" ".join)
@pytest.mark.parametrize("create", [False, True], ids=["made by the master", "made by logrotate"])
def test_both_logs_and_a_rotation(site, options, create):
    one = site(*options).start()
    one.has_all()
    one.rotate(create)
    one.has_all()
    one.write("two")
    one.server.renew()
    one.has_all()
    assert "Traceback" not in one.server.log.read_text()


def test_a_file_that_is_cut(site):
    """copytruncate."""
    one = site().start()
    one.has_all()
    for path in (one.log, one.access):
        shutil.copy(path, f"{path}.1")
        os.truncate(path, 0)
    one.has_all()
    assert not one.log.read_bytes().startswith(b"\0")


def test_an_import_that_leaves_something_behind(site):
    """The zygote starts itself again, as that user already."""
    one = site()
    more = "import threading\nfrom gevent import monkey\n"
    more += "monkey.get_original('_thread', 'start_new_thread')(monkey.get_original('time', 'sleep'), (60,))\n"
    one.server.write("one", CODE + more)
    one.start()
    assert "Each worker imports" in text(one.log)
    one.has_all()
    one.rotate()
    one.has_all()


def test_a_rollback_and_a_replaced_worker_after_a_rotation(site):
    one = site(workers=1).start()
    one.write("two")
    one.server.renew()
    one.rotate()
    os.kill(*one.server.status().pids(), signal.SIGKILL)
    one.server.settle(2)
    one.has_all()
    assert one.server.cli("rollback").exit == 0  # the zygote that stands by has heard of the rotation, too
    one.server.settle(3)
    one.has_all()
    assert one.server.get().version == "one"


def test_a_draining_generation_hears_of_a_rotation(site):
    one = site("--capture-output", workers=1).start()
    with contextlib.closing(one.server.client()) as client:
        client.request("GET", "/stream?name=late")
        one.server.gate("late").await_entered()
        one.write("two")
        assert one.server.release().exit == 0
        assert one.server.status().draining == [1]
        one.rotate()
        one.has_all()
        one.server.gate("late").open()
        client.getresponse().read()
    wait_for(lambda: "/stream?name=late" in text(one.access), "the line of the request that drained")


def test_a_jobs_process_hears_of_a_rotation(site):
    one = site("--capture-output", workers=1).start()
    one.server.get("/job")
    one.server.gate("job").await_entered()
    wait_for(lambda: "the job begins" in text(one.log), "the job's first line")
    one.rotate()
    one.has_all()
    one.server.gate("job").open()
    wait_for(lambda: "the job ends" in text(one.log), "the job's last line in the new file")


def test_captured_output(site):
    one = site("--capture-output").start()
    one.server.get("/print?first")
    wait_for(lambda: "printed first" in text(one.log), "what was printed")
    one.rotate()
    one.has_all()
    one.server.get("/print?second")
    wait_for(lambda: "printed second" in text(one.log), "what was printed")


def test_the_next_master(site):
    """Workers that outlive their master get their files from the next master."""
    one = site().start()
    one.server.signal(signal.SIGKILL)
    one.server.await_exit()
    one.log.rename(one.directory / "server.log.old")
    one.access.rename(one.directory / "access.log.old")
    two = one.another().start()
    one.has_all(two)
    one.log.rename(one.directory / "server.log.older")
    one.access.rename(one.directory / "access.log.older")
    two.signal(signal.SIGUSR1)
    one.has_all(two)


def test_an_upgrade_in_place(site):
    one = site().start()
    outcome = one.server.cli("upgrade")
    assert outcome.exit == 0, outcome.err
    one.has_all()
    one.rotate()
    one.has_all()
    one.write("two")
    one.server.renew()
    one.has_all()


def test_a_takeover(site):
    one = site().start()
    two = one.another("--takeover").launch()
    assert one.server.await_exit() == 0
    two.settle(2)
    one.has_all(two)
    one.log.rename(one.directory / "server.log.old")
    one.access.rename(one.directory / "access.log.old")
    two.signal(signal.SIGUSR1)
    one.has_all(two)


def test_a_release_with_another_access_log(site):
    one = site(logs="in a file")
    config = one.server.root / "reuseport.toml"
    one.server.options += ("-c", str(config), "--log-file", str(one.log))
    config.write_text(f"access_log = {json.dumps(str(one.access))}\n")
    one.start()
    one.has_all()
    one.access = one.directory / "other.log"
    config.write_text(f"access_log = {json.dumps(str(one.access))}\n")
    assert one.server.release("--wait", "drained").exit == 0
    one.has_all()
    one.rotate()
    one.has_all()
    assert not (one.directory / "access.log.0").exists()
    one.directory.joinpath("link").symlink_to(one.server.root / "victim")
    os.chmod(one.directory, 0o777)
    config.write_text(f"access_log = {json.dumps(str(one.directory / 'link'))}\n")
    outcome = one.server.release()
    assert outcome.exit == 1
    assert "access_log: cannot open" in outcome.err.replace("--", "")
    assert "symbolic link" in outcome.err
    assert one.server.status().serving == 2
    assert not (one.server.root / "victim").exists()


# --- links


@pytest.mark.parametrize("option", ["--log-file", "--access-log"])
def test_a_link_in_a_directory_of_the_workers_is_refused(site, option):
    one = site(logs="")
    victim = one.server.root / "victim"
    victim.write_text("untouched")
    link = one.directory / "log"
    link.symlink_to(victim)
    os.lchown(link, NOBODY, NOBODY)
    os.chown(one.directory, NOBODY, NOBODY)
    one.server.options += (option, str(link))
    outcome = one.server.run()
    assert outcome.exit == 1
    assert f"{option}: cannot open {link}: 'log' is a symbolic link in a directory that nobody (uid 65534) owns" in (
        outcome.err
    )
    assert "Traceback" not in outcome.err
    assert victim.read_text() == "untouched"
    checked = one.server.cli("doctor", *one.options, option, str(link), within=60)
    assert checked.exit == 1
    assert "is a symbolic link" in " ".join(checked.out.split())


def test_a_link_that_appears_before_a_rotation_is_refused(site):
    one = site(workers=1)
    os.chown(one.directory, NOBODY, NOBODY)
    one.start()
    one.has_all()
    victim = one.server.root / "victim"
    moved = []
    for path in (one.log, one.access):
        moved.append(path.rename(f"{path}.1"))
        path.symlink_to(victim)
        os.lchown(path, NOBODY, NOBODY)
    one.server.signal(signal.SIGUSR1)
    wait_for(lambda: text(moved[0]).count("could not be opened again") == 3, "an error for each")
    one.server.get("/fail?afterwards")
    wait_for(lambda: "failed as 65534 afterwards" in text(moved[0]) and "afterwards" in text(moved[1]), "the old files")
    assert not victim.exists()
    assert one.server.release().exit == 1  # the next generation would have no access log
    assert one.server.get().version == "one"


# --- the master's own streams


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr"])
@pytest.mark.parametrize("user", [True, False], ids=["another user", "the same user"])
def test_the_masters_streams(serve, interpreter_for_all, path, user):
    options = ("--user", "nobody", "--python", interpreter_for_all) if user else ()
    server = serve("--access-log", path, "--log-file", "/dev/stderr", *options, workers=1)
    server.write("one", CODE)
    reading, writing = os.pipe()
    server.output = writing
    try:
        server.start()
        os.close(writing)
        server.get("/fail?first")
        assert server.release().exit == 0
        server.get("/fail?second")
        error, output = read_until(reading, b"second\n"), server.log
        said = error if path == "/dev/stderr" else None
        wait_for(
            lambda: all(f"/fail?{one}" in (said or output.read_text()) for one in ("first", "second")), "both lines"
        )
        assert "RuntimeError" in error
        assert "generation 2 serves" in error
    finally:
        os.close(reading)


def read_until(fd: int, end: bytes) -> str:
    """All that comes through the pipe up to the first piece with `end`."""
    os.set_blocking(fd, False)
    data = b""

    def seen() -> bool:
        nonlocal data
        with contextlib.suppress(BlockingIOError):
            data += os.read(fd, 65536)
        return end in data

    wait_for(seen, f"{end!r} on the stream")
    with contextlib.suppress(BlockingIOError):
        data += os.read(fd, 65536)
    return data.decode()
