"""TLS: real clients, certificates that change with a release, and what a drain does to connections."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import subprocess

import httpx
import pytest
import requests
import trustme
import websocket
from test_websockets import CODE, GOING_AWAY

authority = trustme.CA()


class Site:
    """A server with a certificate of the authority's, and its clients."""

    def __init__(self, server, options=()) -> None:
        self.server = server
        self.ca = server.root / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        self.certificate, self.key = server.root / "cert.pem", server.root / "key.pem"
        self.renew()
        server.options = ("--certfile", str(self.certificate), "--keyfile", str(self.key), *options)
        self.write("one")
        server.start()
        self.port = int(server.status()["master"]["addresses"][0].rpartition(":")[2])
        self.url = f"https://localhost:{self.port}"

    def renew(self) -> None:
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(self.key)
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.chmod(0o600)

    def write(self, version) -> None:
        self.server.write(version, whole=CODE.format(make="make", version=version))

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def client(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, context=self.context(), timeout=20)

    def raw(self) -> ssl.SSLSocket:
        return self.context().wrap_socket(
            socket.create_connection(("127.0.0.1", self.port), 20), server_hostname="localhost"
        )

    def serial(self) -> str:
        with self.raw() as sock:
            return sock.getpeercert()["serialNumber"]

    def release(self, version: str):
        self.write(version)
        return self.server.release("--wait", "drained")


@pytest.fixture
def site(serve):
    return Site(serve(), ("--websocket-drain", "1"))


def version_of(connection) -> tuple[str, str | None]:
    connection.request("GET", "/")
    response = connection.getresponse()
    return requests.models.complexjson.loads(response.read())["version"], response.getheader("Connection")


@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_clients(serve, options):
    site = Site(serve(), options)
    facts = requests.get(site.url, verify=str(site.ca), timeout=20).json()
    assert (facts["wsgi.url_scheme"], facts["HTTPS"], facts["SSL_CLIENT_VERIFY"]) == ("https", "on", "NONE")
    with httpx.Client(verify=site.context()) as client:
        assert client.get(site.url).json()["version"] == "one"
        body = os.urandom(20_000_000)
        assert client.post(site.url + "/upload", content=body).text == "20000000"
        assert client.get(site.url + "/download").content == b"x" * 20_000_000
    curl = subprocess.run(["curl", "-sS", "--cacert", site.ca, site.url + "/download"], capture_output=True, check=True)
    assert len(curl.stdout) == 20_000_000
    with site.raw() as sock:
        assert sock.version() == "TLSv1.3"
    plain = requests.get(f"http://localhost:{site.port}", timeout=20)
    assert (plain.status_code, "https" in plain.text) == (400, True)
    assert "Traceback" not in site.server.log.read_text()


def test_requests_that_wait_inside_tls_are_answered(site):
    """Twenty in one record: no event tells of those behind the first."""
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with site.raw() as sock:
        sock.sendall(request * 20)
        data = b""
        while data.count(b'"version"') < 20:
            data += sock.recv(65536)
        # And then half of one, with the end of the stream: closed properly, not cut.
        sock.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        while piece := sock.recv(65536):  # a missing close_notify would be an SSLEOFError
            data += piece
        assert data.count(b'"version"') == 21


def test_a_body_that_is_cut_short_is_not_complete(site):
    with site.raw() as sock:
        sock.sendall(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        under = socket.socket(fileno=os.dup(sock.fileno()))
        with under:
            under.shutdown(socket.SHUT_WR)  # without close_notify
        assert b" 500 " in sock.recv(65536)  # Flask's: reading raised


def test_a_client_certificate(serve):
    server = serve()
    ca = server.root / "ca.pem"
    site = Site(server, ("--ca-certs", str(ca), "--cert-reqs", "required"))
    mine = server.root / "mine.pem"
    authority.issue_cert("me@example.org", common_name="me").private_key_and_cert_chain_pem.write_to_path(mine)
    facts = requests.get(site.url, verify=str(ca), cert=str(mine), timeout=20).json()
    assert facts["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert facts["SSL_CLIENT_S_DN"].startswith("CN=me,")
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(site.url, verify=str(ca), timeout=20)


def test_a_release_brings_the_new_certificate_and_loses_no_request(site):
    old = site.serial()
    idle, busy = [site.client() for _ in range(5)], site.client()
    for connection in idle:
        assert version_of(connection) == ("one", None)
    with contextlib.closing(websocket_of(site)) as ws:
        assert ws.recv() == "one"
        busy.putrequest("POST", "/upload")
        busy.putheader("Content-Length", "10")
        busy.endheaders(b"12345")
        site.server.wait(lambda s: sum(w["requests"]["active"] for w in s.workers()) == 1, "the request to have begun")
        site.renew()
        site.write("two")
        assert site.server.release().exit == 0
        assert site.serial() != old
        for connection in idle[:3]:
            # It cannot move: a request that was under way is answered where it is.
            assert version_of(connection) == ("one", "close")
        for connection in idle[3:]:
            # Where nothing was under way it is closed, and properly: a read sees the end.
            assert connection.sock.recv(1) == b""
            connection.close()
            assert version_of(connection) == ("two", None)
        busy.send(b"67890")
        response = busy.getresponse()
        assert (response.read(), response.getheader("Connection")) == (b"10", "close")
        ws.settimeout(20)
        assert ws.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_CLOSE, GOING_AWAY)
    site.server.settle(2)


def websocket_of(site):
    return websocket.create_connection(
        f"wss://localhost:{site.port}/echo", sslopt={"ca_certs": str(site.ca)}, timeout=60
    )


def test_a_bad_certificate_fails_the_release_and_changes_nothing(site):
    serial, good = site.serial(), (site.certificate.read_bytes(), site.key.read_bytes())
    site.renew()
    site.key.write_bytes(good[1])
    for spoil, words in (
        (lambda: None, ("--keyfile", "key.pem", "is not that of the certificate")),
        (lambda: site.key.write_text("nonsense"), ("--keyfile", "key.pem", "holds no private key")),
        (lambda: site.certificate.write_text("nonsense"), ("--certfile", "cert.pem", "holds no certificate")),
        (site.certificate.unlink, ("--certfile", "cert.pem", "no such file")),
    ):
        spoil()
        outcome = site.release("two")
        assert outcome.exit == 1
        assert all(word in outcome.err for word in words), outcome.err
    assert site.serial() == serial
    with httpx.Client(verify=site.context()) as client:
        assert client.get(site.url).json()["version"] == "one"


def test_a_worker_that_is_replaced_needs_no_file(site):
    """And where each worker imports, its zygote has started again, as a user who may not read the key any more."""
    site.certificate.unlink()
    site.key.unlink()
    (pid, *_) = site.server.status().pids()
    os.kill(pid, 9)
    site.server.wait(lambda s: pid not in s.pids() and s.is_settled(), "the replacement")
    assert {version_of(site.client())[0] for _ in range(8)} == {"one"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_roots_key_and_another_user(serve, interpreter_for_all):
    site = Site(serve(), ("--user", "nobody", "--python", interpreter_for_all))
    assert version_of(site.client())[0] == "one"
    # An import that leaves a thread behind makes the zygote start again, when it is nobody already.
    code = CODE.format(make="make", version="two")
    code += "import threading\nfrom gevent import monkey\n"
    code += "monkey.get_original('_thread', 'start_new_thread')(monkey.get_original('time', 'sleep'), (60,))\n"
    site.server.write("two", whole=code)
    assert site.server.release("--wait", "drained").exit == 0
    assert version_of(site.client())[0] == "two"
    assert "Each worker imports" in site.server.log.read_text()


def test_an_idle_handshake_ends(serve):
    site = Site(serve(), ("--keep-alive", "0.3"))
    with socket.create_connection(("127.0.0.1", site.port), 20) as sock:
        assert sock.recv(100) == b""
