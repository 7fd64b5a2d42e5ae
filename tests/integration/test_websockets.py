"""WebSockets through flask-sock and Flask-SocketIO, over releases and stops, with a real client."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter

import pytest
import socketio
import websocket
from harness import wait_for
from websocket import ABNF

CODE = "import sockets\napplication = sockets.{make}({version!r})\n"
GOING_AWAY = (1001).to_bytes(2, "big")


def write(server, version, make="make"):
    server.write(version, whole=CODE.format(make=make, version=version))


def address(server) -> str:
    return server.status()["master"]["addresses"][0]


@pytest.fixture
def sockets(serve):
    def start(*options, make="make", **fields):
        server = serve(*options, **fields)
        write(server, "one", make)
        return server.start()

    return start


class Clients:
    """Many that echo all the time, and come back when they are told that the server goes away."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._ending = threading.Event()
        self.closings: Counter = Counter()
        self.at: Counter = Counter()  # clients by the version that they are connected to
        self.failures: list[str] = []
        self.echoes = 0
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._talk()
            except Exception as error:  # noqa: BLE001
                self.failures.append(repr(error))
                return

    def _talk(self) -> None:
        client = websocket.create_connection(self._url, timeout=20)
        version = client.recv()
        self.at[version] += 1
        number = 0
        while not self._ending.wait(0.02):
            number += 1
            text = f"{number} " * (5000 if number % 10 == 0 else 1)
            client.send(text)
            opcode, data = client.recv_data(control_frame=True)
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                self.closings[data] += 1
                break
            if data.decode() != text:
                raise AssertionError(f"{text[:20]!r} came back as {data[:20]!r}")
            self.echoes += 1
        self.at[version] -= 1
        client.shutdown()


def test_over_releases_clients_are_told_and_come_back_to_the_new_version(sockets):
    server = sockets("--websocket-drain", "1")
    clients = Clients(f"ws://{address(server)}/echo", 50)
    try:
        wait_for(lambda: clients.at["one"] == 50, "all to be connected")
        for round_, version in enumerate(("two", "three"), 1):
            write(server, version)
            assert server.release("--wait", "drained").exit == 0
            wait_for(lambda version=version: clients.failures or clients.at[version] == 50, f"all to be at {version}")
            assert clients.closings == {GOING_AWAY: 50 * round_}
        before = clients.echoes
        wait_for(lambda: clients.failures or clients.echoes > before + 100, "echoes of the new version")
    finally:
        clients.end()
    assert clients.failures == []
    assert "Traceback" not in server.log.read_text()


def test_they_count_as_connections_and_a_stop_closes_them_each_at_its_time(sockets):
    server = sockets("--websocket-drain", "1", workers=1)
    clients = [websocket.create_connection(f"ws://{address(server)}/echo", timeout=20) for _ in range(8)]
    for client in clients:
        assert client.recv() == "one"
    (worker,) = server.status().workers()
    assert (worker["requests"]["active"], worker["connections"]) == (0, 8)
    arrived: list[int] = []
    lock = threading.Lock()

    def wait(number):
        opcode, data = clients[number].recv_data(control_frame=True)
        with lock:
            arrived.append(number)
        assert (opcode, data) == (websocket.ABNF.OPCODE_CLOSE, GOING_AWAY)
        wait_for(lambda: len(arrived) >= 1, "one")
        clients[number].shutdown()

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    server.signal(15)
    assert server.await_exit() == 0
    for thread in threads:
        thread.join(20)
    assert sorted(arrived) == list(range(8))


class Noisy:
    """A client that sends small frames without any pause, until the server has closed the connection."""

    def __init__(self, url: str) -> None:
        self._client = websocket.create_connection(url, timeout=20)
        self._frames = ABNF.create_frame("hello", ABNF.OPCODE_TEXT).format() * 3000
        self._close = ABNF.create_frame(GOING_AWAY, ABNF.OPCODE_CLOSE).format()
        self._said = False
        self.sent = 0
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._send, self._receive)]
        for thread in self.threads:
            thread.start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._client.sock.sendall(self._frames)
                self.sent += len(self._frames)
                if self._said:
                    self._client.sock.sendall(self._close)
                    self._said = False

    def _receive(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.sock.recv(1 << 20):
                self._said = self._said or data.endswith(b"\x88\x02" + GOING_AWAY)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(20)
        self._client.shutdown()


def test_a_client_that_never_pauses_holds_up_neither_others_nor_a_drain(sockets):
    server = sockets("--websocket-drain", "0", make="make_without_pings", workers=1)
    noisy = Noisy(f"ws://{address(server)}/echo")
    try:
        for _ in range(3):
            before = noisy.sent
            wait_for(lambda before=before: noisy.sent > before, "the noisy client")
            assert server.get().status == 200
        assert all(thread.is_alive() for thread in noisy.threads)
        write(server, "two", "make_without_pings")
        assert server.release("--wait", "drained").exit == 0
    finally:
        noisy.close()


def test_flask_socketio(sockets):
    server = sockets("--websocket-drain", "0", make="make_socketio")
    got: list[str] = []
    client = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=0.1)
    client.on("message", got.append)
    client.connect(f"http://{address(server)}", transports=["websocket"])
    try:
        client.send("hello")
        wait_for(lambda: got == ["one: hello"], "the answer")
        write(server, "two", "make_socketio")
        assert server.release("--wait", "drained").exit == 0
        wait_for(lambda: client.connected, "the client to have come back")

        def ask():
            client.send("again")
            return "two: again" in got

        wait_for(ask, "the new version's answer")
    finally:
        client.disconnect()
