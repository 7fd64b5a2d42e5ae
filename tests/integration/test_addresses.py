"""Where it listens: TCP, IPv6, unix sockets, several at once; and addresses that are not to be had."""

from __future__ import annotations

import os
import socket
import stat

import pytest
from harness import Server, wait_for


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def refused(server: Server, exit: int = 1) -> str:
    """The one line with which a server ends that cannot start."""
    outcome = server.run()
    assert outcome.exit == exit, outcome.err
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("reuseport: ")
    assert list(server.processes()) == []
    return lines[0]


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_two_addresses_of_two_families(serve):
    server = serve(bind=("127.0.0.1:0", "[::1]:0")).start()
    addresses = server.status()["master"]["addresses"]
    assert [address.rpartition(":")[0] for address in addresses] == ["127.0.0.1", "[::1]"]
    for address in addresses:
        assert {server.get(address=address).version for _ in range(10)} == {"one"}
    server.write("two")
    server.renew()
    for address in addresses:
        assert {server.get(address=address).version for _ in range(10)} == {"two"}


def test_a_unix_socket(serve):
    server = serve("--umask", "077", bind=("unix:web.sock",)).start()
    path = server.root / "web.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert server.status()["master"]["addresses"] == [f"unix:{path}"]
    with server.load() as load:
        server.write("two")
        server.renew()
        load.more(20)
    assert load.failures == []
    assert server.get().version == "two"
    assert server.cli("stop").exit == 0
    assert not path.exists()


def test_a_unix_socket_beside_a_tcp_address(serve):
    server = serve(bind=("127.0.0.1:0", "unix:web.sock")).start()
    for address in server.status()["master"]["addresses"]:
        assert server.get(address=address).status == 200


def test_a_blocked_worker_holds_up_nobody_at_a_unix_socket(serve):
    server = serve(bind=("unix:web.sock",)).start()
    blocked = server.get_later("/burn?name=burn")
    pid = server.gate("burn").await_entered()[0]
    assert pid not in {server.get(timeout=10).pid for _ in range(10)}
    server.gate("burn").open()
    assert blocked.result().pid == pid


def test_a_unix_socket_that_a_dead_server_left_is_taken_over(serve):
    server = serve(bind=("unix:web.sock",))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(server.root / "web.sock"))
    assert server.start().get().status == 200


def test_a_unix_socket_in_use(serve):
    server = serve(bind=("unix:web.sock",))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(server.root / "web.sock"))
        other.listen()
        assert "in use" in refused(server)
    assert (server.root / "web.sock").exists()


def test_a_file_in_the_place_of_a_unix_socket(serve):
    server = serve(bind=("unix:precious",))
    (server.root / "precious").write_text("data")
    assert "not a socket" in refused(server)
    assert (server.root / "precious").read_text() == "data"


@pytest.mark.parametrize("reuse", [False, True])
def test_an_address_in_use_is_refused_even_if_it_could_be_shared(serve, reuse):
    with socket.socket() as other:
        if reuse:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused(serve(bind=(f"127.0.0.1:{port}",)))
    assert f"127.0.0.1:{port} is in use by another server (pid {os.getpid()}, " in line


def test_the_address_of_another_master_is_refused_and_that_one_serves_on(server, serve):
    line = refused(serve(bind=(server.address,)))
    assert f"(pid {server.pid}, reuseport: master [{server.name}])" in line
    assert server.get().status == 200


def test_the_first_of_two_addresses_is_let_go_when_the_second_cannot_be_had(serve):
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = serve(bind=("unix:web.sock", f"127.0.0.1:{other.getsockname()[1]}"))
        assert "in use" in refused(server)
    assert not (server.root / "web.sock").exists()


def test_addresses_that_cannot_be(serve):
    assert "192.0.2.1:0: cannot assign requested address; no interface" in refused(serve(bind=("192.0.2.1:0",)))
    assert "nosuchhost.invalid" in refused(serve(bind=("nosuchhost.invalid:80",)))
    assert "port" in refused(serve(bind=("127.0.0.1",)), exit=2)
    assert "no directory" in refused(serve(bind=("unix:nowhere/web.sock",)))


def test_an_address_in_the_time_wait_of_another_server_is_free(serve, server):
    address = server.address
    connection = server.client()
    connection.request("GET", "/", headers={"Connection": "close"})
    assert connection.getresponse().read()
    assert server.cli("stop").exit == 0
    assert serve(bind=(address,)).start().get().status == 200


def test_beside_another_server_nobody_waits_for_one_that_loads(serve):
    one = serve().start()
    two = serve("--beside", bind=(one.address,))
    two.write("two", "basic.pass_gate('import')\n")
    two.launch()
    gate = two.gate("import")
    gate.await_entered()
    assert {one.get(timeout=5).version for _ in range(40)} == {"one"}
    gate.open()
    two.settle()
    wait_for(lambda: one.get().version == "two", "an answer of the other one")
    wait_for(lambda: one.get().version == "one", "an answer of the first one")
    assert one.cli("stop").exit == 0
    assert {two.get().version for _ in range(20)} == {"two"}


def test_beside_a_server_that_shares_nothing_is_refused(serve):
    with socket.create_server(("127.0.0.1", 0)) as other:
        line = refused(serve("--beside", bind=(f"127.0.0.1:{other.getsockname()[1]}",)))
    assert "is in use by another server that does not share it" in line
