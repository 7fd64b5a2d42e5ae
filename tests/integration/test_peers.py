"""Processes of the workers' user that say what is not so where zygotes and workers say hello.

The master is root's, and the processes are another user's, where the test runs as root; else all are one user's, and
the same must hold. Every path and every process that a message names is the test's own.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import textwrap
from collections.abc import Iterator

import pytest
from harness import PATIENCE, Server, is_gone, wait_for

from reuseport.core.model import FIRST_COMPANION, FIRST_JOB
from reuseport.ipc.rundir import RunDir

ROOT = os.geteuid() == 0

# A process that connects, does what the test says, and waits until the test ends it.
LIAR = """
import array, json, os, signal, socket, sys, time
hello, fds, way = json.loads(sys.argv[2]), [], sys.argv[3]
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0liar-%d" % os.getpid())
listener.listen()
def say(message, fds=()):
    extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([json.dumps({"v": 1, **message}).encode()], extra)
def speak():
    say(hello)
    try:
        say({"type": "slots", "slots": hello["slots"]}, [listener.fileno()] * len(hello["slots"]))
    except OSError:
        pass
if way == "passes its socket on":
    if not os.fork():
        speak()
        os._exit(0)
    os.wait()
else:
    if way == "leads a session":
        print(os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600"), flush=True)
    speak()
try:
    while sock.recv(65536):
        pass
except OSError:
    pass
print("hung up", flush=True)
signal.pause()
"""


@pytest.fixture
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter for the workers' user."""
    return request.getfixturevalue("interpreter_for_all") if ROOT else os.sys.executable


@pytest.fixture
def owned(serve, python) -> Server:
    """A server whose workers are another user's, where that can be."""
    return serve(*(("--user", "nobody", "--python", python) if ROOT else ()), bind=("unix:web.sock",))


@contextlib.contextmanager
def user_process(python: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of the workers' user, in a session of its own."""
    who = {"user": "nobody", "group": "nogroup", "extra_groups": []} if ROOT else {}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd="/", **who)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def hello(number: int, state: str = "starting", slots: tuple = (), generation: int = 1) -> str:
    return json.dumps(
        {
            "type": "hello",
            "generation": generation,
            "number": number,
            "state": state,
            "slots": list(slots),
            "queue": False,
            "logs": True,
        }
    )


def master_descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.pid}/fd"))


def test_what_a_process_says_leads_to_no_other_process_and_to_no_path(owned, python, tmp_path):
    server = owned
    victim = server.root / "victim.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(victim))
        other.listen()
        # While it loads, the application tells the master of a process that its zygote has not forked.
        with user_process(python, "sleep", "600") as sleeper:
            server.write(
                "one",
                textwrap.dedent(f"""
                    from reuseport.zygote import Zygote
                    for number in (1, 2, 77):
                        Zygote.current.channel.send("forked", generation=1, number=number, pid={sleeper.pid})
                """),
            )
            server.start()
            path = RunDir(str(server.run_dir)).hello
            for said, way in (
                # A path that no master has bound, of a process that the master may end for its hello.
                (hello(77, "starting", [(f"unix:{victim}", 0, True)]), "speaks"),
                (hello(77, "serving"), "passes its socket on"),
                (hello(78), "passes its socket on"),
                (hello(FIRST_JOB + sleeper.pid, "working"), "speaks"),
                (hello(FIRST_COMPANION, "serving"), "leads a session"),
                (hello(0, "loaded"), "speaks"),
            ):
                with user_process(python, python, "-c", LIAR, path, said, way) as liar:
                    assert liar.stdout is not None
                    companion = int(liar.stdout.readline()) if way == "leads a session" else 0
                    heard = liar.stdout.readline()
                    assert heard in ("hung up\n", ""), said
                    if "victim" not in said:
                        assert (heard, liar.poll()) == ("hung up\n", None), f"{said} ({way}): it was signalled"
                    if companion:
                        assert not is_gone(companion)
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(companion, signal.SIGKILL)
            assert sleeper.poll() is None
            server.settle(1)
            assert server.status()["master"]["addresses"] == [f"unix:{server.root}/web.sock"]
        # Its own path belongs to another server by now.
        web = server.root / "web.sock"
        web.unlink()
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(str(web))
            another.listen()
            assert server.cli("stop").exit == 0
            assert server.await_exit() == 0
        assert victim.exists()
        assert web.exists()


def test_a_crowd_that_says_nothing_or_nonsense_delays_no_command(owned):
    server = owned
    server.bind, server.options = ("127.0.0.1:0",), (*server.options, "--standby", "0")
    server.start()
    before = master_descriptors(server)
    path = RunDir(str(server.run_dir)).hello
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        crowd = []
        for number in range(1200):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            # A connect(2) waits for room in the queue as long as a send(2) may; with Python's timeout it would not.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE), 0))
            sock.connect(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if number % 4 == 1:
                    sock.send(b'{"v": 1, "type": "hel')
                elif number % 4 == 2:
                    fds = array.array("i", [0] * 60)
                    sock.sendmsg([hello(99).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            crowd.append(sock)
        assert server.status()["master"]["unidentified"] <= 128
        assert server.release().exit == 0
        for sock in crowd:
            sock.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b"", "the master has closed it, the last ones at their deadline"
        assert server.status()["master"]["unidentified"] == 0
    server.settle(2)
    wait_for(lambda: master_descriptors(server) <= before, "as few descriptors as before")


SENDING = """
import os
from reuseport.worker.main import Worker

basic_application = application

def application(environ, start_response):
    if environ["PATH_INFO"] == "/send":
        Worker.current.link.channel.send("note", (0, 1, 2), level="info", text="with descriptors")
    return basic_application(environ, start_response)
"""


def test_descriptors_that_come_with_a_message_which_has_none_are_closed_and_so_is_the_channel(serve):
    server = serve("--standby", "0", workers=1)
    server.write("one", SENDING)
    server.start()
    before = master_descriptors(server)
    for _ in range(5):
        assert server.get("/send").status == 200
        server.settle(1)
    assert server.status().workers()[0]["pid"] == server.get().pid
    assert server.release().exit == 0, "the worker has said hello again"
    server.settle(2)
    wait_for(lambda: master_descriptors(server) <= before, "as few descriptors as before")


def test_the_path_of_a_unix_socket_is_removed_by_whichever_master_stops(serve):
    server = serve(bind=("unix:web.sock",)).start()
    web = server.root / "web.sock"
    assert server.cli("upgrade").exit == 0
    assert server.get().status == 200
    server.process.kill()
    server.process.wait()
    server.start()
    assert server.get().status == 200
    heir = serve("--takeover", bind=(f"unix:{web}",), run_dir=server.run_dir)
    heir.name = server.name
    heir.launch()
    assert server.await_exit() == 0
    heir.wait(lambda status: status["master"]["pid"] == heir.pid and status.serving == 2, "the heir serves")
    assert heir.get().status == 200
    assert heir.cli("stop").exit == 0
    assert heir.await_exit() == 0
    assert not web.exists()
