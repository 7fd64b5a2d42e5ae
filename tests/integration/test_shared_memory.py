"""The files that workers map: a worker that cuts them off, and whose they are with --user."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess

import pytest
from harness import Server, wait_for
from test_metrics import scrape
from test_upgrading import Installed
from test_versions import earlier  # noqa: F401 - a fixture

NAMES = ("scoreboard", "latencies", "begun", "inflight", "pins", "marks")
NOBODY = 65534

CODE = """
import errno, os
run_dir = os.environ["REUSEPORT_RUN_DIR"]
inner = application

def outcome(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def held(name):
    '''This process's descriptors of the file.'''
    path = os.path.join(run_dir, name)
    return [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == path]

def application(environ, start_response):
    path, name = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/by-name":
        # At its size, so that nothing is lost where it is allowed.
        text = outcome(lambda: os.truncate(os.path.join(run_dir, name), os.stat(os.path.join(run_dir, name)).st_size))
    elif path == "/cut":
        text = outcome(lambda: [os.ftruncate(fd, 0) for name in name.split(",") for fd in held(name)])
    elif path == "/fill":
        # No word is so high that a worker which counts one more cannot write it.
        text = outcome(lambda: [
            os.pwrite(fd, bytes([int(environ["HTTP_X_BYTE"])]) * os.fstat(fd).st_size, 0)
            for name in name.split(",") for fd in held(name)
        ])
    else:
        return inner(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""
LEAVES_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
"""


def sizes(server: Server) -> dict[str, int]:
    return {name: (server.run_dir / name).stat().st_size for name in NAMES if name != "pins"}


def owners(server: Server) -> set[int]:
    return {path.stat().st_uid for path in server.run_dir.iterdir() if path.name in NAMES}


def cut(server: Server, *names: str) -> None:
    """Have a worker cut them off, through its own descriptors, and wait until they are whole again."""
    whole = sizes(server)
    with contextlib.suppress(http.client.RemoteDisconnected):  # the worker may end before its answer
        assert server.get(f"/cut?{','.join(names)}").body == b"done"
    # The next heartbeat of a worker writes to the scoreboard, and ends that worker (SIGBUS).
    wait_for(lambda: sizes(server) == whole, "the size of the files")
    server.settle()


def by_name(server: Server) -> set[str]:
    """How the workers' attempts end to open the files by their names."""
    names = [path.name for path in server.run_dir.iterdir() if path.name in NAMES]
    return {server.get(f"/by-name?{name}").body.decode() for name in names}


def strict(text: str) -> dict:
    """JSON as RFC 8259 has it, without NaN and Infinity."""
    return json.loads(text, parse_constant=pytest.fail)


def test_a_worker_that_fills_them_with_rubbish_or_cuts_them_off_ends_no_master(serve):
    server = serve("--tenant", "header:X-Tenant", "--metrics", "127.0.0.1:0")
    server.write("one", CODE)
    server.start()
    master = server.pid
    for byte in ("127", "2"):  # 2: each seat for a request says that it is running
        client = server.client()
        client.request("GET", "/fill?scoreboard,latencies,begun,inflight", headers={"X-Byte": byte})
        assert client.getresponse().read() == b"done"
        client.close()
        assert strict(server.cli("status", "--json").out)["master"]["pid"] == master
        assert scrape(server)
        os.kill(server.get().pid, signal.SIGKILL)  # so that the master reads all of a row
        server.settle()
    cut(server, "marks", "inflight", "begun", "latencies", "scoreboard")
    assert server.get().version == "one"
    server.write("two", CODE)
    assert server.release("--wait", "drained").exit == 0
    assert server.get().version == "two"
    strict(server.cli("status", "--json").out)
    assert server.cli("tenants").exit == 0
    assert (server.status()["master"]["pid"], server.alive) == (master, True)
    log = server.log.read_text(errors="replace")
    assert "a defect" not in log and "could not Fork" not in log


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_with_another_user_they_are_root_s_and_no_process_of_that_user_opens_them(serve, interpreter_for_all):
    server = serve("--user", "nobody", "--python", interpreter_for_all, "--tenant", "header:X-Tenant")
    server.write("one", CODE)
    server.start()
    assert owners(server) == {0}
    assert by_name(server) == {"EACCES"}
    for name in NAMES:
        command = ["truncate", "--no-create", "--size", "0", str(server.run_dir / name)]
        assert subprocess.run(command, user=NOBODY, capture_output=True).returncode != 0
    for version, code, options in (
        ("two", CODE, ()),
        ("three", CODE + LEAVES_A_THREAD, ()),  # its zygote executes itself anew, as that user
        ("four", CODE, ("--rollback",)),
    ):
        if options:
            assert server.cli("rollback").exit == 0
        else:
            server.write(version, code)
            assert server.release().exit == 0
        assert by_name(server) == {"EACCES"}
    cut(server, "scoreboard")
    # What the workers count arrives in the master.
    server.get()
    server.wait(lambda s: sum(w["requests"]["total"] for w in s.workers("serving")), "counted requests")
    assert owners(server) == {0}
    assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_an_earlier_version_s_processes_open_them_by_name_while_they_live(serve, earlier, interpreter_for_all):  # noqa: F811
    options = ("--user", "nobody", "--python", interpreter_for_all, "--tenant", "header:X-Tenant", "--standby", "600")
    installed = Installed(serve, *options, source=earlier)
    server = installed.server
    server.write("one", CODE)
    server.start()
    assert (owners(server), by_name(server)) == ({NOBODY}, {"done"})
    with server.load(one_shot=1, keep_alive=1) as load:
        installed.install("0.2.0")
        installed.upgrade()
        server.write("two", CODE)
        assert server.release().exit == 0  # whose zygote is of this version
        load.more(10)
        assert server.cli("rollback", "--wait", "drained").exit == 0  # a copy of the earlier version's zygote
        assert by_name(server) == {"done"}
        load.more(10)
        server.process.kill()
        server.await_exit()
        server.bind = (server.address,)
        server.launch()
        server.settle()
        assert (owners(server), by_name(server)) == ({NOBODY}, {"done"})
        load.more(10)
        for version in ("three", "four"):  # the second one ends the zygote that stands by
            server.write(version, CODE)
            assert server.release().exit == 0
        wait_for(lambda: owners(server) == {0}, "the end of the last zygote that opens them by name")
        assert by_name(server) == {"EACCES"}
    assert load.failures == []
