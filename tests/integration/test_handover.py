"""The hand-over: connections move to the new version, and their clients see nothing of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from harness import ask, title_of, wait_for

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def open_idle(server, count):
    connections = [server.client() for _ in range(count)]
    for connection in connections:
        assert ask(connection, "/").status == 200
    return connections


def raw(server) -> socket.socket:
    host, port = server.status()["master"]["addresses"][0].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=20)


def answers(sock, count) -> bytes:
    data = b""
    while data.count(b'"version"') < count:
        piece = sock.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def test_idle_connections_are_answered_by_the_new_version(server):
    connections = open_idle(server, 50)
    ports = [c.sock.getsockname() for c in connections]
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    for connection in connections:
        answer = ask(connection, "/")
        assert (answer.version, answer.headers.get("connection")) == ("two", None)
    assert [c.sock.getsockname() for c in connections] == ports
    assert sum(w["taken"] for w in server.status().workers("serving")) == 50


def test_half_a_request_is_finished_by_the_new_version(server):
    with raw(server) as sock:
        sock.sendall(REQUEST[:20])
        wait_for(lambda: sum(w["connections"] for w in server.status().workers()) == 1, "the connection to be accepted")
        server.write("two")
        assert server.release("--wait", "drained").exit == 0
        sock.sendall(REQUEST[20:])
        assert b'"two"' in answers(sock, 1)


def test_a_pipelined_request_behind_a_running_one_goes_to_the_new_version(server):
    gate = server.gate("slow")
    with raw(server) as sock:
        sock.sendall(REQUEST.replace(b"GET /", b"GET /gate?name=slow", 1) + REQUEST)
        (pid,) = gate.await_entered()
        server.write("two")
        assert server.release().exit == 0
        wait_for(lambda: "draining" in title_of(pid), "the old worker to have got its SIGTERM")
        gate.open()
        data = answers(sock, 2)
        assert data.index(b'"one"') < data.index(b'"two"')
        assert b"Connection: close" not in data
    server.settle(2)


def test_a_connection_moves_on_when_its_request_has_ended(server):
    gate = server.gate("slow")
    connection = server.client()
    connection.request("GET", "/gate?name=slow")
    gate.await_entered()
    server.write("two")
    assert server.release().exit == 0
    server.write("three")
    assert server.release().exit == 0
    gate.open()
    assert b'"one"' in connection.getresponse().read()
    # Not to the version that succeeded it, which drains itself by now, but to the one that serves.
    assert ask(connection, "/").version == "three"
    server.settle(3)


def test_connections_leave_a_worker_that_is_scaled_down(server):
    connections = open_idle(server, 20)
    server.signal(signal.SIGTTOU)
    server.wait(lambda s: len(s["generations"][0]["workers"]) == 1, "one worker left")
    (left,) = server.status().pids()
    assert {ask(c, "/").pid for c in connections} == {left}


def test_connections_that_a_killed_receiver_held_unread_come_back(server):
    """The new workers are stopped (SIGSTOP) when the batches come, and killed before they have read them."""
    connections = open_idle(server, 20)
    # The new workers stop themselves the moment they accept: their sender then has nobody who takes anything.
    old = server.status().pids()
    server.write("two", code=STOP_WHEN_ACCEPTING)
    server.hup()
    status = server.wait(lambda s: s.serving == 2, "generation 2")
    stopped = status.pids()
    wait_for(lambda: all(state_of(pid) == "T" for pid in stopped), "the new workers to stand still")
    assert old <= {w["pid"] for g in server.status()["generations"] if g["number"] == 1 for w in g["workers"]}
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    # Their replacements find the batches in the queue, which belongs to the generation and not to a worker.
    assert {ask(c, "/").version for c in connections} == {"two"}
    server.settle(2)


# The first workers of the generation stop as soon as they have said that they accept.
STOP_WHEN_ACCEPTING = """
import os, signal
from reuseport import on_start
from reuseport.worker import handover

GENERATION = int(os.environ["REUSEPORT_GENERATION"])
MARK = os.path.join(os.environ["TEST_GATES"], "stopped-")

@on_start
def arm():
    real = handover.Receiver.start
    def start(self):
        real(self)
        if len([n for n in os.listdir(os.environ["TEST_GATES"]) if n.startswith("stopped-")]) < 2:
            open(MARK + str(os.getpid()), "w").close()
            from reuseport.worker.main import Worker
            Worker.current.hub.loop.run_callback(os.kill, os.getpid(), signal.SIGSTOP)
    handover.Receiver.start = start
"""


def state_of(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
    return ""


def test_a_receiver_without_descriptors_gives_everything_back(serve):
    """The kernel drops what does not fit (MSG_CTRUNC); the sender still holds it, and answers with a close."""
    server = serve(workers=1).start()
    connections = open_idle(server, 30)
    server.write("two", code=FEW_DESCRIPTORS)
    assert server.release().exit == 0
    # Some move, and the others are answered by the version that has them, until it says that it was the last time.
    left, versions = connections, set()
    while left:
        answered = [(connection, ask(connection, "/")) for connection in left]
        versions |= {answer.version for _, answer in answered}
        left = [c for c, a in answered if a.version == "one" and a.headers.get("connection") != "close"]
    assert versions == {"one", "two"}
    server.wait(lambda s: s.numbers == [2], "the old generation's end")


FEW_DESCRIPTORS = """
import os, resource
from reuseport import on_start

@on_start
def limit():
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 6, used + 6))
"""
