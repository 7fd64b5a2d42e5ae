"""Under a supervisor: what it is told, the sockets it passes and keeps; and masters without successors."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PATIENCE, Server, free_port, is_gone, wait_for

# Gives the sockets that it inherited the numbers from 3 on, as systemd does, and becomes the server.
EXEC = """\
import os, sys
names, fds, command = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",")], sys.argv[3:]
high = [os.dup(fd) for fd in fds]
while min(high) < 3 + len(fds):
    high = [os.dup(fd) for fd in high]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""

CODE = """
import os
def application(environ, start_response):
    start_response("200 OK", [])
    known = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
    return [",".join(name for name in known if name in os.environ).encode()]
"""


class Supervisor:
    """A notification socket. It keeps what it is told, and the descriptors that it is given to store."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.told: list[dict[str, str]] = []
        self.stored: list[int] = []

    def hear(self) -> list[dict[str, str]]:
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
            except BlockingIOError:
                return self.told
            told = dict(line.split("=", 1) for line in data.decode().splitlines())
            for _, _, fds in ancillary:
                self.stored += array.array("i", fds)
            if "FDSTOREREMOVE" in told:
                self.forget()
            self.told.append(told)

    def words(self) -> list[str]:
        """What was said about releases and stops, in order."""
        return [word for told in self.hear() for word in told if word in ("READY", "RELOADING", "STOPPING")]

    def await_words(self, *words: str) -> None:
        wait_for(lambda: self.words() == list(words), f"{words}; at last {self.words()}")

    @property
    def status(self) -> str:
        return next((told["STATUS"] for told in reversed(self.hear()) if "STATUS" in told), "")

    def forget(self) -> None:
        while self.stored:
            os.close(self.stored.pop())

    def close(self) -> None:
        self.forget()
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    one = Supervisor(f"@reuseport-test-{os.getpid()}")
    yield one
    one.close()


def launch_with(server: Server, sockets: list[int], names: list[str]) -> Server:
    """Start it with these sockets passed."""
    if not server.current.exists():
        server.write("one")
    fds = ",".join(map(str, sockets))
    with server.log.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-c", EXEC, ":".join(names), fds, *server.command], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, env=server.environment, cwd=server.root, start_new_session=True, pass_fds=sockets,
        )  # fmt: skip
    return server


def listener(reuse: bool = True) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as systemd always does
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(16)
    return sock


def name_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"


def listeners_at(address: str) -> int:
    """How many sockets listen there (proc_pid_net(5), state 0A)."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "0A" for row in rows)


def test_the_supervisor_is_told_of_the_first_generation_each_release_and_the_stop(serve, supervisor):
    server = serve(env={"NOTIFY_SOCKET": supervisor.address})
    server.write("one", "basic.pass_gate('import')\n")
    server.launch()
    server.gate("import").await_entered()
    assert supervisor.words() == []
    server.gate("import").open()
    supervisor.await_words("READY")
    assert server.settle().serving == 1
    assert supervisor.told[-1]["MAINPID"] == str(server.pid)
    server.gate("import").close()

    before = time.monotonic()
    server.hup()
    supervisor.await_words("READY", "RELOADING")
    assert int(next(t for t in supervisor.told if "RELOADING" in t)["MONOTONIC_USEC"]) >= int(before * 1e6)
    assert "generation 1" in supervisor.status and "serves" in supervisor.status
    server.gate("import").open()
    supervisor.await_words("READY", "RELOADING", "READY")
    server.settle(2)

    server.write("broken", whole="raise RuntimeError")
    assert server.release().exit == 1
    supervisor.await_words("READY", *["RELOADING", "READY"] * 2)

    server.flip("nowhere")
    server.hup()  # refused: there is no such directory
    supervisor.await_words("READY", *["RELOADING", "READY"] * 3)

    server.signal(signal.SIGTERM)
    supervisor.await_words("READY", *["RELOADING", "READY"] * 3, "STOPPING")
    assert server.await_exit() == 0


def test_a_status_line_tells_what_a_drain_waits_for(serve, supervisor):
    server = serve(env={"NOTIFY_SOCKET": supervisor.address}).start()
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    assert server.release().exit == 0
    wait_for(lambda: "generation 1 (one) drains: 1 request" in supervisor.status, f"a drain; {supervisor.status}")
    server.gate("slow").open()
    assert slow.result().status == 200
    wait_for(lambda: "drains" not in supervisor.status, "the drain is over")


def test_the_watchdog_is_fed_while_the_loop_turns_and_by_nobody_else(serve, supervisor):
    variables = {"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "100000"}
    server = serve(env=variables).start()
    beats = lambda: sum("WATCHDOG" in told for told in supervisor.hear())  # noqa: E731
    wait_for(lambda: beats() > 3, "beats")
    address = server.address
    server.signal(signal.SIGSTOP)
    wait_for(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "stopped")
    supervisor.hear()
    stopped = beats()
    assert server.get(address=address).status == 200
    assert beats() == stopped
    server.signal(signal.SIGCONT)
    wait_for(lambda: beats() > stopped, "beats again")


def test_a_supervisor_that_is_gone_or_deaf_hinders_nobody(serve, supervisor, tmp_path):
    server = serve(env={"NOTIFY_SOCKET": str(tmp_path / "nobody")}).start()
    assert server.renew() == 2
    deaf = serve(env={"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "2000"}).start()
    assert deaf.renew() == 2  # by now its queue (net.unix.max_dgram_qlen) is full
    supervisor.await_words("READY", "RELOADING", "READY")  # nothing that counts was lost
    assert deaf.cli("stop").exit == 0


def test_what_the_supervisor_says_does_not_reach_the_application(serve, supervisor):
    with listener() as sock:
        variables = {"NOTIFY_SOCKET": supervisor.address, "WATCHDOG_USEC": "60000000", "FDSTORE": "8"}
        server = serve(bind=(), env=variables)
        server.write("one", CODE)
        launch_with(server, [sock.fileno()], ["web"]).settle()
        assert server.get().body == b""


@pytest.mark.parametrize("reuse", [True, False])
def test_a_passed_socket_is_the_address_when_no_other_is_named(serve, reuse):
    with listener(reuse) as sock:
        server = launch_with(serve(bind=(), workers=3), [sock.fileno()], ["web"])
        address = name_of(sock)
        with socket.create_connection(sock.getsockname()) as early:  # it waits in the queue from before the start
            server.settle()
            assert server.status()["master"]["addresses"] == [address]
            early.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert early.recv(100).startswith(b"HTTP/1.1 200")
        assert listeners_at(address) == 3  # each worker has a slot of its own beside it
        server.write("two")
        server.renew()
        assert {server.get().version for _ in range(10)} == {"two"}


def test_a_passed_unix_socket_is_not_removed(serve, tmp_path):
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        server = launch_with(serve(bind=(f"unix:{path}",)), [sock.fileno()], ["web"])
        server.settle()
        assert server.get(address=f"unix:{path}").status == 200
        assert server.cli("stop").exit == 0
        assert path.exists()


def refused(server: Server) -> str:
    assert server.await_exit() == 1
    lines = server.log.read_text().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_sockets_that_cannot_be_served_are_refused_in_one_line(serve):
    with listener() as sock, socket.socket() as silent, open(os.devnull) as file:
        line = refused(launch_with(serve(bind=("127.0.0.1:0",)), [sock.fileno()], ["web"]))
        assert name_of(sock) in line and "--bind" in line
        assert "descriptor 3 (web)" in refused(launch_with(serve(bind=()), [silent.fileno()], ["web"]))
        assert "descriptor 3" in refused(launch_with(serve(bind=()), [file.fileno()], [""]))


def test_stored_slots_come_back_with_what_waits_in_them(serve, supervisor):
    port = free_port()
    first = serve(bind=(f"127.0.0.1:{port}",), env={"NOTIFY_SOCKET": supervisor.address, "FDSTORE": "16"})
    first.start()
    wait_for(lambda: len(supervisor.hear() and supervisor.stored) == 2, "two slots in the store")
    assert first.cli("stop").exit == 0
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        # systemd before 254 sets no $FDSTORE, and passes what it has kept.
        second = serve(bind=(f"127.0.0.1:{port}",), workers=3, env={"NOTIFY_SOCKET": supervisor.address})
        launch_with(second, list(supervisor.stored), ["reuseport-slot"] * 2).settle()
        for client in clients:
            client.settimeout(PATIENCE)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert listeners_at(first.bind[0]) == 3
    wait_for(lambda: len(supervisor.hear() and supervisor.stored) == 3, "three slots in the store")


def test_a_touched_file_releases(serve):
    server = serve("--release-file", "tmp/restart.txt")
    (server.write("one") / "tmp").mkdir()
    server.start()
    file = server.current / "tmp" / "restart.txt"
    file.touch()  # it appears
    server.settle(2)
    os.utime(file, (1, 1))
    server.settle(3)
    file.unlink()
    (server.write("two") / "tmp").mkdir()
    os.utime(server.current)
    (server.current / "tmp" / "restart.txt").touch()  # that of the directory which `current` is now
    server.settle(4)
    assert server.get().version == "two"


def test_a_touched_file_stops_after_what_runs(serve):
    server = serve("--stop-file", "stop.txt").start()
    slow = server.get_later("/gate?name=slow")
    server.gate("slow").await_entered()
    (server.current / "stop.txt").touch()
    server.wait(lambda s: s["master"]["state"] == "stopping", "stopping")
    server.gate("slow").open()
    assert slow.result().status == 200
    assert server.await_exit() == 0


def test_orphans_leave_after_their_time_and_their_requests(serve):
    server = serve("--orphan-timeout", "1").start()
    assert server.renew() == 2
    slow = server.get_later("/gate?name=slow")
    busy = server.gate("slow").await_entered()[0]
    status = server.status()
    standby, zygote = (status.generation(number)["zygote"]["pid"] for number in (1, 2))
    server.process.kill()
    server.process.wait()
    wait_for(lambda: all(is_gone(pid) for pid in status.pids() - {busy} | {standby}), "whoever is idle has left")
    assert not is_gone(busy)
    assert not is_gone(zygote)  # it stays for as long as anybody of its generation
    server.gate("slow").open()
    assert slow.result().status == 200
    wait_for(lambda: is_gone(busy) and is_gone(zygote), "nobody is left")


def test_orphans_that_find_another_master_stay(serve):
    server = serve("--orphan-timeout", "5").start()
    before, address = server.status().pids(), server.address
    server.process.kill()
    server.process.wait()
    server.start()
    wait_for(lambda: server.status()["master"]["uptime"] > 5.5, "longer than orphans would have stayed")
    assert server.status().pids() == before
    assert server.get(address=address).pid in before
