"""nginx in front, with the configuration that is documented: releases under load, and not one 502 or 504."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import threading
from collections import Counter

import pytest
from harness import CHECKOUT, PATIENCE, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (Debian: apt install nginx)")

RELEASES = 20
FRAME = """\
{user}
daemon off;
worker_processes 1;
pid {root}/nginx.pid;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi;
    scgi_temp_path {root}/scgi;
    {documented}
}}
"""


@pytest.fixture
def nginx(server, tmp_path):
    """An nginx in front of the server, listening on a Unix socket; its path."""
    documented = (CHECKOUT / "docs" / "nginx.conf").read_text()
    path = server.root / "nginx.sock"  # a short path: tmp_path may be too long for a socket
    for says, means in (("listen 80;", f"listen unix:{path};"), ("127.0.0.1:8000", server.address)):
        assert documented.count(says) == 1
        documented = documented.replace(says, means)
    user = "user root;" if os.geteuid() == 0 else ""  # who may not write into the test's directory otherwise
    (tmp_path / "nginx.conf").write_text(FRAME.format(user=user, root=tmp_path, documented=documented))
    errors = tmp_path / "error.log"
    process = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", str(errors)])
    try:
        wait_for(lambda: path.exists() or process.poll() is not None, "nginx listens")
        assert process.poll() is None, errors.read_text()
        yield f"unix:{path}", errors
    finally:
        process.terminate()
        process.wait()


def test_releases_behind_nginx(server, nginx):
    address, errors = nginx
    ending = threading.Event()
    statuses: Counter[str] = Counter()
    lock = threading.Lock()

    def ask(method: str, path: str, body: bytes | None) -> None:
        connection = server.client(address)
        while not ending.is_set():
            try:
                connection.request(method, path, body)
                answer = connection.getresponse()
                answer.read()
                said = str(answer.status)
            except (OSError, http.client.HTTPException) as error:
                said = repr(error)
                connection.close()
            with lock:
                statuses[f"{method} {said}"] += 1
            ending.wait(0.002)
        connection.close()

    kinds = [("GET", "/", None), ("POST", "/upload", b"x" * 20_000)]
    clients = [threading.Thread(target=ask, args=kind, daemon=True) for kind in kinds * 3]
    for client in clients:
        client.start()
    try:
        for number in range(RELEASES):
            server.write(f"v{number}")
            asked = statuses.total()
            assert server.release().exit == 0
            wait_for(lambda asked=asked: statuses.total() > asked + 10, "answers after the release")
    finally:
        ending.set()
        for client in clients:
            client.join(PATIENCE)
    assert set(statuses) == {"GET 200", "POST 200"}, (statuses, errors.read_text()[-2000:])
    assert "upstream" not in errors.read_text()  # nor anything that nginx repeated in silence


def test_nginx_keeps_its_connections_through_a_release(server, nginx):
    address, _ = nginx

    assert server.get("/", address).status == 200
    before = connections(server)
    server.renew()
    assert server.get("/", address).status == 200
    assert before and connections(server) == before


def connections(server) -> set[int]:
    """The ports of nginx's connections that are open to the server, as the kernel has them."""
    port = int(server.address.rpartition(":")[2])
    found = set()
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            fields = line.split()
            if fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) == port:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found
