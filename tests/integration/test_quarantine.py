"""A request that ends its worker is sent again: how many workers it takes, and that nothing else is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from harness import PATIENCE, wait_for

KEPT = 32  # connections, as nginx keeps them

APP = """\
import os, signal, sys, time
from pathlib import Path

DEATHS = Path(os.environ["TEST_GATES"]) / "deaths"

def die(how):
    with DEATHS.open("a") as file:
        print(os.getpid(), file=file)
    if how == "exit":
        os._exit(1)
    if how == "well":
        os._exit(0)
    if how == "block":
        while True:
            pass
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)

def events():
    while True:
        yield f"data: {os.getpid()}\\n\\n".encode()
        time.sleep(0.05)

def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/kill":
        die(query or "SIGKILL")
    if path == "/cured" and VERSION == "one":
        die("SIGKILL")
    if path == "/slow":
        time.sleep(float(query))
    if path == "/wait":
        while not (DEATHS.parent / query).exists():
            time.sleep(0.01)
    if path == "/report" and (DEATHS.parent / "large").exists():
        begun = DEATHS.parent / "begun"
        begun.write_text(str(os.getpid()))
        while begun.exists():
            time.sleep(0.01)
        die("SIGKILL")
    if path == "/events":
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return events()
    body = f"{VERSION} {os.getpid()}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def code(version: str) -> str:
    return f"VERSION = {version!r}\n{APP}"


@pytest.fixture
def start(serve):
    def begin(*options, workers: int = 4, **more):
        server = serve(*options, workers=workers, **more)
        server.write("one", whole=code("one"))
        return server.start()

    return begin


def deaths(server) -> int:
    file = server.gates / "deaths"
    return len(file.read_text().split()) if file.exists() else 0


def requests(server) -> int:
    """How many have begun."""
    return sum(w["requests"]["active"] + w["requests"]["total"] for w in server.status().workers())


class Proxy:
    """Keeps connections, and does with a request whose connection breaks what nginx does: sends it again, at once, over
    the next one that it has kept."""

    def __init__(self, server, count: int = KEPT) -> None:
        host, port = server.address.rsplit(":", 1)
        self._address = host, int(port)
        self._kept = [socket.create_connection(self._address, PATIENCE) for _ in range(count)]
        for one in self._kept:
            one.sendall(head("/"))
        assert all(status(one) == 200 for one in self._kept)

    def send(self, request: bytes) -> tuple[int, bytes]:
        """The status and the answer, and how many connections that took."""
        while True:
            connection = self._kept.pop() if self._kept else socket.create_connection(self._address, PATIENCE)
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
                if answer := connection.recv(65536):
                    return int(answer.split()[1]), answer
            connection.close()

    def close(self) -> None:
        for one in self._kept:
            one.close()


def head(path: str, *fields: str, method: str = "GET", host: str = "shop") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]).encode()


def status(connection: socket.socket) -> int:
    answer = connection.recv(65536)
    return int(answer.split()[1]) if answer else 0


@pytest.fixture
def proxy():
    made = []

    def make(server, count: int = KEPT) -> Proxy:
        made.append(Proxy(server, count))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("options", "how"),
    [((), "SIGKILL"), (("--threads", "4"), "SIGSEGV"), (("--preload", "never"), "exit"), ((), "well")],
    ids=str,
)
def test_a_request_that_ends_its_worker_takes_two_over_32_kept_connections(start, proxy, options, how):
    server = start(*options)
    said, answer = proxy(server).send(head(f"/kill?{how}"))
    assert (said, deaths(server)) == (503, 2)
    assert 0 < int(answer.split(b"Retry-After: ")[1].split(b"\r\n")[0]) <= 60
    [entry] = server.wait(lambda s: s.is_settled())["quarantine"]
    assert (entry["request"], entry["host"], entry["generation"]) == (f"GET /kill?{how}", "shop", 1)
    assert 0 < entry["left"] <= 60
    assert server.get("/").status == 200
    shown = server.cli("quarantine")
    assert f"GET /kill?{how}" in shown.out
    assert f"GET /kill?{how}" in server.cli("status").out


def test_several_clients_that_repeat_it_take_the_workers_that_had_begun_it(start, proxy):
    server = start()
    proxies = [proxy(server, 16) for _ in range(8)]
    said: Counter[int] = Counter()
    senders = [
        threading.Thread(target=lambda one=one: said.update([one.send(head("/kill"))[0]]), daemon=True)
        for one in proxies
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(PATIENCE)
    assert said == {503: 8}
    # All four could have begun one before the first death, and each of their substitutes one before the second.
    assert deaths(server) <= 8
    server.wait(lambda s: s.is_settled())
    assert server.get("/").status == 200


def test_a_sibling_holds_it_until_the_master_has_seen_the_death(start, proxy):
    server = start()
    kept = proxy(server)
    server.signal(signal.SIGSTOP)
    try:
        ended = threading.Event()
        said: list[int] = []

        def send() -> None:
            said.append(kept.send(head("/kill"))[0])
            ended.set()

        threading.Thread(target=send, daemon=True).start()
        wait_for(lambda: deaths(server) == 1, "the first death")
        assert not ended.wait(0.3)
        assert deaths(server) == 1
    finally:
        server.signal(signal.SIGCONT)
    assert ended.wait(PATIENCE)
    assert (said, deaths(server)) == ([503], 2)


@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.05, marks=pytest.mark.more), 2.0])
def test_what_only_ran_beside_it_is_served(start, proxy, seconds):
    server = start()
    target = f"/slow?{seconds}"
    ending = threading.Event()
    answers: Counter[int] = Counter()

    def client() -> None:
        while not ending.is_set():
            with contextlib.suppress(OSError):
                answers[server.get(target).status] += 1

    clients = [threading.Thread(target=client, daemon=True) for _ in range(50)]
    for one in clients:
        one.start()
    try:
        wait_for(lambda: requests(server) > 50, "load")
        assert proxy(server).send(head("/kill"))[0] == 503
        assert [one["request"] for one in server.status()["quarantine"]] == ["GET /kill"]
        before = answers[200]
        wait_for(lambda: answers[200] > before + 50, "answers afterwards")
    finally:
        ending.set()
        for one in clients:
            one.join(PATIENCE)
    assert set(answers) == {200}
    assert deaths(server) == 2


def test_it_is_served_again_after_its_time_and_on_demand(start, proxy):
    server = start("--quarantine", "1")
    assert proxy(server).send(head("/kill"))[0] == 503
    server.wait(lambda s: not s["quarantine"] and s.is_settled(), "the end of the quarantine")
    assert proxy(server).send(head("/kill"))[0] == 503
    assert deaths(server) == 3  # a suspect needs one more death only


def test_clear_ends_it(start, proxy):
    server = start()
    assert proxy(server).send(head("/kill"))[0] == 503
    server.settle()
    outcome = server.cli("quarantine", "--clear")
    assert outcome.exit == 0
    server_line, cleared = outcome.out.splitlines()
    assert f"pid {server.pid}," in server_line
    assert cleared == "1 request cleared"
    said = json.loads(server.cli("quarantine", "--clear", "--json").out)
    assert (said["cleared"], said["server"]["pid"]) == (0, server.pid)
    assert server.cli("quarantine").out == "no request is in quarantine\n"
    assert proxy(server).send(head("/kill"))[0] == 503
    assert deaths(server) == 4


def test_without_quarantine_nothing_is_refused(start, proxy):
    server = start("--quarantine", "0", workers=2)
    kept = proxy(server, 4)

    def send() -> None:
        with contextlib.suppress(OSError):  # until the server is ended
            kept.send(head("/kill"))

    threading.Thread(target=send, daemon=True).start()
    wait_for(lambda: deaths(server) > 3, "deaths")
    assert server.status()["quarantine"] == []


def test_a_release_begins_clean(start, proxy):
    server = start()
    assert proxy(server).send(head("/cured"))[0] == 503
    server.settle()
    server.write("two", whole=code("two"))
    assert server.release().exit == 0
    assert proxy(server).send(head("/cured"))[0] == 200


def test_deaths_and_quarantines_outlive_the_master(start, proxy):
    server = start()
    assert proxy(server).send(head("/kill"))[0] == 503
    server.settle()
    assert server.cli("upgrade").exit == 0
    assert proxy(server).send(head("/kill"))[0] == 503
    assert [one["request"] for one in server.status()["quarantine"]] == ["GET /kill"]
    assert deaths(server) == 2

    server.signal(signal.SIGKILL)
    server.await_exit()
    # While there is no master nothing is held: this one takes another worker, and the next master counts it.
    with contextlib.suppress(OSError):
        server.get("/kill?SIGABRT", timeout=PATIENCE)
    assert deaths(server) == 3
    server.launch()
    server.wait(lambda s: s.is_settled(), "adopted")
    assert "GET /kill" in [one["request"] for one in server.status()["quarantine"]]
    assert proxy(server).send(head("/kill"))[0] == 503
    assert deaths(server) == 3


def test_a_tenant_s_request_is_refused_to_that_tenant_only(start, proxy):
    server = start("--tenant", "header:X-Tenant")
    assert proxy(server).send(head("/slow?0", "X-Tenant: acme"))[0] == 200
    assert proxy(server).send(head("/kill", "X-Tenant: acme"))[0] == 503
    [entry] = server.status()["quarantine"]
    assert (entry["request"], entry["tenant"]) == ("GET /kill", "acme")
    server.settle()
    assert proxy(server).send(head("/kill", "X-Tenant: other"))[0] == 503
    assert deaths(server) == 4


def test_a_request_that_blocks_its_worker_until_it_is_killed_is_one_that_kills(start, proxy):
    server = start("--timeout", "1", "--kill-blocked")
    assert proxy(server).send(head("/kill?block"))[0] == 503
    assert deaths(server) == 2


def test_what_a_stop_or_a_release_ends_is_no_suspect(start):
    server = start("--graceful-timeout", "0.5", workers=2)
    waits = [server.get_later("/slow?60") for _ in range(4)]
    server.wait(lambda s: sum(w["requests"]["active"] for w in s.workers()) == 4, "requests")
    server.signal(signal.SIGTERM)
    assert server.await_exit() == 0
    assert "while it answered" not in server.log.read_text()  # a master that has gone cannot be asked
    for wait in waits:
        with pytest.raises(OSError):
            wait.result()


def test_metrics_and_the_health_path(start, proxy):
    server = start("--health-path", "/health", "--metrics", "127.0.0.1:0")
    kept = proxy(server)
    assert kept.send(head("/kill"))[0] == 503
    assert kept.send(head("/kill"))[0] == 503
    assert server.get("/health").status == 200
    server.wait(lambda s: s.is_settled())

    def text() -> str:
        host, port = server.status()["master"]["metrics"].removeprefix("http://").split("/")[0].rsplit(":", 1)
        with socket.create_connection((host, int(port)), PATIENCE) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n")
            sock.settimeout(PATIENCE)
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    wait_for(lambda: 'reuseport_quarantined_requests_total{generation="1"} 2' in text(), "the counter")
    assert 'reuseport_quarantine_entries{generation="1"} 1' in text()


def pids(server) -> list[int]:
    return [w["pid"] for w in server.status().workers()]


def wait_for_zombies(pids: list[int]) -> None:
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    wait_for(lambda: {state(pid) for pid in pids} == {"Z"}, "the ends of the workers")


def run_everywhere(server, target: str) -> None:
    """Have each worker run a request for the target."""

    def is_everywhere() -> bool:
        if all(w["requests"]["active"] for w in server.status().workers()):
            return True
        server.get_later(target)
        return False

    wait_for(is_everywhere, "a request in each worker")


@pytest.mark.parametrize("options", [(), pytest.param(("--threads", "8"), marks=pytest.mark.more)], ids=str)
@pytest.mark.parametrize("master", ["runs", "late", "dead"])
def test_workers_that_are_killed_together_count_as_one_death(start, master, options):
    server = start(*options)
    run_everywhere(server, "/wait?go")
    killed = pids(server)
    if master == "late":
        server.signal(signal.SIGSTOP)
    if master == "dead":
        server.signal(signal.SIGKILL)
        server.await_exit()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    if master == "late":
        wait_for_zombies(killed)
        server.signal(signal.SIGCONT)
    if master == "dead":
        server.launch()
    server.wait(lambda s: s.is_settled() and not set(killed) & {w["pid"] for w in s.workers()}, "other workers")
    assert server.status()["quarantine"] == []
    (server.gates / "go").touch()
    assert server.get("/wait?go").status == 200


@pytest.mark.parametrize(
    ("options", "pipelined"), [(("--threads", "1"), False), (("--threads", "1"), True), ((), True)], ids=str
)
def test_a_request_that_waits_in_a_worker_is_refused_if_it_is_in_quarantine_by_then(start, options, pipelined):
    server = start(*options)
    connections: dict[int, socket.socket] = {}
    host, port = server.address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:

        def connect() -> tuple[socket.socket, int]:
            connection = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE))
            connection.sendall(head("/"))
            return connection, int(connection.recv(65536).split()[-1])

        waiting: dict[int, socket.socket] = {}

        def is_everywhere() -> bool:
            connection, pid = connect()
            if pid not in connections:
                connections[pid] = connection
            else:
                waiting.setdefault(pid, connection)
            return len(connections) == len(waiting) == 4

        wait_for(is_everywhere, "two connections to each worker")
        for pid, connection in connections.items():
            connection.sendall(head(f"/wait?{pid}") + (head("/kill") if pipelined else b""))
        server.wait(lambda s: all(w["requests"]["active"] == 1 for w in s.workers()), "a request in each")
        if not pipelined:
            for connection in waiting.values():
                connection.sendall(head("/kill"))
            server.wait(lambda s: all(w["requests"]["active"] == 2 for w in s.workers()), "two in each")
        first, second, *others = connections
        for count, pid in enumerate((first, second), 1):
            (server.gates / str(pid)).touch()
            wait_for(lambda count=count: deaths(server) == count, "the death")
            server.wait(lambda s, pid=pid: pid not in {w["pid"] for w in s.workers()}, "that the master knows")
        server.wait(lambda s: s["quarantine"], "the quarantine")
        for pid in others:
            (server.gates / str(pid)).touch()
            answer = b""
            while b"HTTP/1.1 503" not in answer:
                more = (connections if pipelined else waiting)[pid].recv(65536)
                assert more, "the worker has died"
                answer += more
    assert deaths(server) == 2


def test_an_event_stream_is_spared_beside_a_request_that_was_answered_before(start, proxy):
    server = start()
    assert server.get("/report").status == 200
    (server.gates / "large").touch()
    host, port = server.address.rsplit(":", 1)
    begun = server.gates / "begun"
    kept = proxy(server)
    said: list[int] = []
    sender = threading.Thread(target=lambda: said.append(kept.send(head("/report"))[0]), daemon=True)
    sender.start()
    with contextlib.ExitStack() as stack:

        def streams_beside_it() -> bool:
            """The stream's client comes back: to the worker that has the report, after some time."""
            connection = socket.create_connection((host, int(port)), PATIENCE)
            connection.sendall(head("/events"))
            answer = b""
            while b"data: " not in answer:
                answer += connection.recv(65536)
            if answer.split(b"data: ")[1].split()[0] == begun.read_bytes():
                stack.enter_context(connection)
                return True
            connection.close()
            return False

        for count in (1, 2):
            wait_for(lambda: begun.exists() and begun.read_bytes(), "a report")
            wait_for(streams_beside_it, "a stream in the same worker")
            server.wait(lambda s: sorted(w["requests"]["active"] for w in s.workers()) == [0, 0, 0, 2], "no other")
            begun.unlink()
            wait_for(lambda count=count: deaths(server) == count, "the death")
    sender.join(PATIENCE)
    assert (said, deaths(server)) == ([503], 2)
    assert [one["request"] for one in server.status()["quarantine"]] == ["GET /report"]
