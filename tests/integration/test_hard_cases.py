"""What applications, operators and accidents do that no specification asks for, and that must cost nobody a request."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

from harness import Background, ask, wait_for

REQUEST = b"GET /{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

ODD = """
import json, os, signal, socket, sys, time
import gevent

{at_import}

inner = application
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fork":
        child = os.fork()
        if child == 0:
            basic.pass_gate("child")
            os._exit(0)
    elif path == "/exit":
        gevent.spawn(sys.exit, 3)
        gevent.sleep(0)
    return inner(environ, start_response)
"""


def odd(serve, at_import="", *options, **fields):
    server = serve(*options, **fields)
    server.write("one", code=ODD.format(at_import=at_import))
    return server.start()


def test_a_child_that_the_application_forks_is_no_server(serve):
    server = odd(serve, workers=1)
    kept = server.client()
    parent = ask(kept, "/").pid
    assert server.get("/fork").pid == parent
    (child,) = server.gate("child").await_entered()
    assert child != parent
    assert {server.get().pid for _ in range(20)} == {parent}
    assert {ask(kept, "/").pid for _ in range(20)} == {parent}
    # Nor does it take its parent's clients along when it ends.
    server.gate("child").open()
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "the child's end")
    assert ask(kept, "/").pid == parent
    server.write("two")
    assert server.release("--wait", "drained").exit == 0
    assert ask(kept, "/").version == "two"


def test_a_default_timeout_for_sockets_is_not_the_servers(serve):
    server = odd(serve, "socket.setdefaulttimeout(3)", workers=1)
    kept = server.client()
    for _ in range(3):
        assert ask(kept, "/").status == 200
        assert server.get().status == 200


def test_an_application_that_ignores_its_children_is_served(serve):
    server = odd(serve, "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_DFL)")
    os.kill(min(server.status().pids()), signal.SIGKILL)
    server.settle(1)
    assert server.get().version == "one"


def test_a_greenlet_that_exits_ends_nobody_elses_request(serve):
    server = odd(serve, workers=1)
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    (pid,) = gate.await_entered()
    assert server.get("/exit").status == 200
    server.wait(lambda s: s.pids() and pid not in s.pids(), "a successor")
    gate.open()
    assert slow.result().pid == pid
    server.settle(1)


def test_a_client_with_an_odd_address_costs_a_unix_slot_nothing(serve, tmp_path):
    path = f"/tmp/ru-{os.getpid()}-{tmp_path.name}.sock"
    server = odd(serve, workers=1, bind=(f"unix:{path}",))
    for name in (f"\0reuseport-{os.getpid()}", "", None):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(20)
            if name is not None:
                client.bind(name)
            client.connect(path)
            client.sendall(REQUEST.replace(b"{}", b""))
            assert client.recv(100).startswith(b"HTTP/1.1 200"), name
    assert server.get(address=f"unix:{path}").status == 200


def test_a_term_from_somebody_else_makes_a_worker_be_replaced_first(server):
    kept = server.client()
    pid = ask(kept, "/").pid
    gate = server.gate("slow")
    slow = [server.get_later("/gate?name=slow") for _ in range(8)]
    gate.await_entered(8)
    with server.load() as load:
        os.kill(pid, signal.SIGTERM)
        server.wait(lambda s: len(s.pids()) == 2 and pid not in s.pids(), "two others that serve")
        load.more(20)
    assert load.failures == []
    assert ask(kept, "/").pid != pid, "its idle connections are handed over"
    gate.open()
    assert {one.result().version for one in slow} == {"one"}
    server.settle(1)


def test_a_graceful_stop_answers_what_waits_in_the_queues(serve):
    """The only worker computes; what the kernel has accepted for it meanwhile is answered before it leaves."""
    server = serve(workers=1).start()
    gate = server.gate("cpu")
    burning = server.get_later("/burn?name=cpu")
    gate.await_entered()
    host, port = server.address.rsplit(":", 1)
    waiting = [socket.create_connection((host, int(port)), timeout=20) for _ in range(10)]
    for one in waiting:
        one.sendall(REQUEST.replace(b"{}", b""))
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping", "the stop")
    gate.open()
    assert burning.result().status == 200
    for one in waiting:
        with one:
            assert one.recv(100).startswith(b"HTTP/1.1 200")
    assert server.await_exit() == 0


def test_asking_for_a_stop_twice_interrupts_nobody(server):
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    askers = [Background(lambda: server.question(do="stop", now=False))]
    server.wait(lambda s: s["master"]["state"] == "stopping", "the stop")
    askers.append(Background(lambda: server.question(do="stop", now=False)))
    assert server.cli("status").exit == 0
    assert server.status()["generations"][0]["waits_for"]["requests"] == 1
    gate.open()
    assert slow.result().status == 200
    assert [one.result()["ok"] for one in askers] == [True, True]


def test_a_master_killed_while_it_stopped_is_followed_by_one_that_serves(server):
    address = server.address
    gate = server.gate("slow")
    slow = server.get_later("/gate?name=slow")
    gate.await_entered()
    server.signal(signal.SIGTERM)
    server.wait(lambda s: s["master"]["state"] == "stopping", "the stop")
    server.process.kill()
    server.process.wait()
    server.bind = (address,)
    server.launch()
    server.wait(lambda s: s.serving == 2, "the next generation")
    assert server.get(address=address).version == "one"
    gate.open()
    assert slow.result().status == 200
    server.settle(2)


def test_a_hup_before_the_handlers_stand_ends_nobody(serve, tmp_path):
    pid_file = tmp_path / "pid"
    server = serve("--pid", str(pid_file)).launch()
    wait_for(pid_file.exists, "the pid file")
    server.hup()
    server.wait(lambda s: s.serving is not None, "somebody to serve")


def test_more_slots_than_one_message_can_carry_are_adopted(serve):
    server = serve(bind=("127.0.0.1:0",) * 40, workers=2).start()
    addresses = server.status()["master"]["addresses"]
    assert len(set(addresses)) == 40
    server.process.kill()
    server.process.wait()
    server.bind = ("127.0.0.1:0",)
    server.start()
    assert server.status()["master"]["addresses"] == addresses
    assert {server.get(address=address).version for address in addresses} == {"one"}


def test_a_former_heir_that_refuses_does_not_end_the_hand_over(server):
    """The heir's workers stand still, another release comes, and the batches come back: they go to the newest."""
    kept = [server.client() for _ in range(20)]
    assert {ask(one, "/").version for one in kept} == {"one"}
    server.write("two", code=STOP_AT_READY)
    server.hup()
    status = server.wait(lambda s: s.serving == 2, "generation 2")
    heirs = status.pids()
    server.write("three")
    assert server.release().exit == 0
    for pid in heirs:
        os.kill(pid, signal.SIGKILL)
    server.settle(3)
    assert {ask(one, "/").version for one in kept} == {"three"}


# A worker of this code stops the moment that it has said that it accepts.
STOP_AT_READY = """
import os, signal
from reuseport import on_start
from reuseport.worker import handover

@on_start
def arm():
    real = handover.Receiver.start
    def start(self):
        real(self)
        from reuseport.worker.main import Worker
        Worker.current.hub.loop.run_callback(os.kill, os.getpid(), signal.SIGSTOP)
    handover.Receiver.start = start
"""
