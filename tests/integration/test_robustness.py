"""What nobody should do to a server, and what must not end its master: nonsense, many deaths, processes that hang."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys

from harness import is_gone, wait_for

from reuseport.ipc.rundir import RunDir


def assert_well(server):
    """The master lives and can do all that it could."""
    status = server.settle()
    server.write(f"after-{status.serving}")
    server.renew()
    assert server.get().version == f"after-{status.serving}"


QUESTIONS = {
    "no JSON": b"release please\n",
    "not an object": b"[1, 2]\n",
    "a question without a verb": b'{"v": 1}\n',
    "a verb that is no text": b'{"v": 1, "do": 7}\n',
    "an unknown verb": b'{"v": 1, "do": "explode"}\n',
    "no UTF-8": b"\xff\xfe\xff\n",
    "deep nesting": b"[" * 60000 + b"\n",
    "an unknown way of waiting": b'{"v": 1, "do": "release", "wait": ["for", "ever"]}\n',
    "no end of the line": b"x" * 200_000,
    "nothing": b"",
}


def test_nonsense_on_the_control_socket(server):
    for name, question in QUESTIONS.items():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(server.run_dir / "control.sock"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(question)
                sock.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))
                for line in answer.splitlines():
                    assert json.loads(line)["v"] == 1, name
        assert server.alive, name
        assert server.status().serving, name
    assert_well(server)


def test_clients_of_the_control_socket_that_say_or_read_nothing_hold_up_nobody(server):
    with contextlib.ExitStack() as stack:
        for number in range(50):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(str(server.run_dir / "control.sock"))
            if number % 2:
                sock.sendall(b'{"v": 1, "do": "status"}\n')
        assert server.release().exit == 0
    assert_well(server)


HELLOS = {
    "no JSON": b"hello",
    "not an object": b"[]",
    "without a type": b'{"v": 1}',
    "another message first": b'{"v": 1, "type": "ready"}',
    "without fields": b'{"v": 1, "type": "hello"}',
    "numbers that are none": b'{"v": 1, "type": "hello", "generation": "x", "number": [], "state": 1, "slots": 7}',
    "a zygote of no generation": b'{"v":1,"type":"hello","generation":99,"number":0,"state":"loading","slots":[]}',
    "too large": b"x" * 100_000,
}


def test_nonsense_where_processes_say_hello(server):
    for name, hello in HELLOS.items():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(RunDir(str(server.run_dir)).hello)
            sock.sendall(hello)
            # The second status comes after the nonsense has been read for certain.
            assert [server.status().serving for _ in range(2)] == [1, 1], name
        server.settle(1)
    assert_well(server)


def test_a_worker_unknown_to_the_master_says_hello_and_goes(server):
    """Its process is the test's own: the master may take it for a stray, but must neither end nor kill anybody."""
    hello = {"v": 1, "type": "hello", "generation": 1, "number": 77, "state": "serving", "slots": [], "row": 0}
    path = RunDir(str(server.run_dir)).hello
    code = "import socket as s, sys; c = s.socket(s.AF_UNIX, s.SOCK_SEQPACKET); "
    code += "c.connect(sys.argv[1]); c.send(sys.argv[2].encode())"
    # The master may hang up at once: whether the hello could be sent does not matter.
    subprocess.run([sys.executable, "-c", code, path, json.dumps(hello)], capture_output=True, timeout=20)
    assert_well(server)


def await_answers_or_end(load, command):
    enough = load.answers + 5
    wait_for(lambda: command.poll() is not None or load.answers > enough, "answers")


def test_a_storm_of_deaths_while_releases_go_on(server):
    chance = random.Random(7)
    with server.load(one_shot=2) as load:
        for number in range(2, 6):
            server.write(f"v{number}")
            release = server.begin("release")
            while release.poll() is None:
                status = server.status()
                pids = [w["pid"] for g in status["generations"] for w in g["workers"] if w["pid"]]
                pids += [g["zygote"]["pid"] for g in status["generations"] if g["zygote"]]
                if pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(pids), signal.SIGKILL)
                # A few answers, so that some releases get through; but each must end in any case.
                await_answers_or_end(load, release)
            assert release.returncode in (0, 1)
    status = server.settle(within=40)
    assert len(status.workers()) == 2
    assert_well(server)


def test_a_stopped_zygote_does_not_hold_up_the_end_of_its_generation(serve):
    server = serve("--standby", "0").start()
    zygote = server.status().current["zygote"]["pid"]
    os.kill(zygote, signal.SIGSTOP)
    server.write("two")
    server.renew()
    assert is_gone(zygote)
    assert server.get().version == "two"


def test_a_stopped_boot_ends_at_its_deadline(serve):
    server = serve("-c", "conf.toml")
    config = server.root / "conf.toml"
    config.write_text("")
    server.start()
    config.write_text("boot_timeout = 2\n")
    server.write("two", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    assert server.release().exit == 1
    server.settle(1)
    assert server.get().version == "one"


def test_a_log_that_nobody_reads_holds_up_nobody(serve):
    """Standard error is a pipe that is full: the master's lines are lost, its work is not."""
    server = serve()
    server.write("one")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    server.output = writer
    server.start()
    os.close(writer)
    for number in range(3):
        server.write(f"v{number}")
        server.renew()
        assert server.get().version == f"v{number}"
    assert server.cli("stop").exit == 0
    os.close(reader)


DEFECTIVE = """\
import sys
from reuseport.cli.main import main
from reuseport.master.companions import Companions
from reuseport.master.releases import Releases
from reuseport.master.touched import Touched

def fail_once(kind, name):
    whole = getattr(kind, name)
    def method(*said, **named):
        setattr(kind, name, whole)
        raise LookupError(f"a defect of {name}")
    setattr(kind, name, method)

for kind, name in ((Releases, "ask"), (Touched, "look"), (Companions, "ended")):
    fail_once(kind, name)
sys.argv = ["reuseport", *sys.argv[3:]]
sys.exit(main(sys.argv[1:]))
"""


def test_a_defect_of_the_master_costs_its_own_event_only(serve):
    """A signal, a look around, and the end of a companion."""
    server = serve("--release-file", "again.txt")
    (server.root / "defective.py").write_text(DEFECTIVE)
    server.flags = (str(server.root / "defective.py"),)
    companion = "name = 'once'\ncommand = 'sleep 0.5'\nready_after = 0.1\nrestart = 'never'\n"
    (server.root / "reuseport.toml").write_text(f"[[companion]]\n{companion}")
    server.start()
    server.wait(lambda s: s.current["companions"][0]["state"] == "ended", "the companion's end is known")
    server.hup()
    for name in ("ask", "look", "ended"):
        wait_for(lambda name=name: f"a defect of {name}" in server.log.read_text(), f"the defect of {name}")
    (server.current / "again.txt").touch()
    server.settle(2)
    assert_well(server)


def test_a_silent_connection_has_the_time_of_an_idle_one_and_half_a_head_has_its_own(serve):
    server = serve("--header-timeout", "0.5", "--keep-alive", "120", workers=1)
    server.write("one")
    server.start()
    host, _, port = server.address.rpartition(":")
    address = host, int(port)
    with socket.create_connection(address, 20) as silent, socket.create_connection(address, 20) as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        assert half.recv(100).startswith(b"HTTP/1.1 408")
        # By now the silent one is older than --header-timeout.
        silent.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert silent.recv(100).startswith(b"HTTP/1.1 200")
