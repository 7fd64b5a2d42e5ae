"""nginx in front, with what `reuseport init nginx` prints: releases under load, and not one 502 or 504."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest
import websocket
from harness import CHECKOUT, PATIENCE, Background, Outcome, listens, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx (Debian: apt install nginx)")

RELEASES = 10
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
    {printed}
}}
"""


@pytest.fixture
def nginx(server, tmp_path):
    with in_front_of(server, tmp_path) as (path, errors):
        yield f"unix:{path}", errors


@contextlib.contextmanager
def in_front_of(server, tmp_path, *words, change=lambda printed: printed):
    """An nginx in front of the server: the Unix socket that it listens on, and its log. `words` are more options of
    `init nginx`; `change` what it is told."""
    outcome = server.cli("init", "nginx", server.app, "-b", server.address, *words)
    assert outcome.exit == 0, outcome.err
    path = server.root / "nginx.sock"  # a short path: tmp_path may be too long for a socket
    assert outcome.out.count("listen 80;") == 1
    printed = change(outcome.out.replace("listen 80;", f"listen unix:{path};"))
    user = "user root;" if os.geteuid() == 0 else ""  # who may not write into the test's directory otherwise
    (tmp_path / "nginx.conf").write_text(FRAME.format(user=user, root=tmp_path, printed=printed))
    errors = tmp_path / "error.log"
    process = subprocess.Popen(["nginx", "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", str(errors)])
    try:
        wait_for(lambda: listens(path) or process.poll() is not None, "nginx listens")
        assert process.poll() is None, errors.read_text()
        yield path, errors
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
    # nginx before 1.29 takes an early hint for the response, and would wait for an hour.
    assert server.get("/hints", address).status == 200


KILLER = """\
import os, signal, time
from pathlib import Path

GATES = Path(os.environ["TEST_GATES"])

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/meet":  # so many requests at a time are as many connections of nginx's
        (GATES / f"meets.{time.monotonic_ns()}").touch()
        while not (GATES / "met").exists():
            time.sleep(0.01)
    if path == "/kill":
        with (GATES / "deaths").open("a") as file:
            print(os.getpid(), file=file)
        os.kill(os.getpid(), signal.SIGKILL)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("told", ["off", "error timeout"])
def test_a_request_that_ends_its_worker_takes_two_of_them_at_most(serve, tmp_path, method, told):
    """As printed, nginx does not repeat it. By default nginx sends it again at once over each kept connection."""
    server = serve(workers=4)
    server.write("one", whole=KILLER)
    server.start()

    def change(printed: str) -> str:
        assert printed.count("proxy_next_upstream off;") == 1
        return printed.replace("proxy_next_upstream off;", f"proxy_next_upstream {told};")

    def meet() -> None:
        with contextlib.closing(server.client(f"unix:{path}")) as connection:
            connection.request("GET", "/meet")
            assert connection.getresponse().status == 200

    with in_front_of(server, tmp_path, change=change) as (path, _):
        clients = [threading.Thread(target=meet, daemon=True) for _ in range(32)]
        for client in clients:
            client.start()
        wait_for(lambda: len(list(server.gates.glob("meets.*"))) == 32, "32 connections of nginx's")
        (server.gates / "met").touch()
        for client in clients:
            client.join(PATIENCE)
        with contextlib.closing(server.client(f"unix:{path}")) as connection:
            connection.request(method, "/kill")
            status = connection.getresponse().status
        deaths = {int(pid) for pid in (server.gates / "deaths").read_text().split()}
        assert (status, len(deaths)) == ((502, 1) if told == "off" else (503, 2))
        # Until the kernel has closed all sockets of a killed worker, nginx may choose one of its other connections.
        server.wait(lambda s: s.is_settled() and not deaths & s.pids(), "others in place of the killed workers")
        with contextlib.closing(server.client(f"unix:{path}")) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().status == 200


def test_a_websocket_passes_through_nginx(serve, tmp_path):
    server = serve()
    server.write("one", whole="import sockets\napplication = sockets.make('one')\n")
    server.start()
    with in_front_of(server, tmp_path) as (path, _):
        raw = socket.socket(socket.AF_UNIX)
        raw.settimeout(PATIENCE)
        raw.connect(str(path))
        client = websocket.create_connection("ws://shop/echo", socket=raw)
        assert client.recv() == "one"
        client.send("ping")
        assert client.recv() == "ping"
        client.close()


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


PAGES = """
import json, pathlib
HERE = pathlib.Path(__file__).resolve().parent
NAMES = json.loads((HERE / "static" / "staticfiles.json").read_text())
inner = application
def application(environ, start_response):
    if environ["PATH_INFO"] not in ("/page", "/slow"):
        return inner(environ, start_response)
    if environ["PATH_INFO"] == "/slow":
        basic.pass_gate("slow")
    files = [f"/static/{NAMES['site.css']}", f"/static/{NAMES['app.js']}", f"/own/{HERE.name}/site.css"]
    start_response("200 OK", [])
    return [json.dumps([VERSION, files]).encode()]
"""


def scripts_of(section: str) -> list[str]:
    """The shell scripts of a section of docs/deploying.md."""
    text = (CHECKOUT / "docs" / "deploying.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [part.partition("```")[0] for part in text.split("```sh\n")[1:]]


def build(server, version: str, code: str = "") -> Path:
    """A release as `collectstatic` leaves it: files with a hash in their names, beside those without."""
    directory = server.write(version, code=PAGES + code, flip=False)
    static = directory / "static"
    static.mkdir()
    names = {}
    for name, text in (("site.css", f"/* {version} */"), ("app.js", "// the same in all versions")):
        stem, _, suffix = name.partition(".")
        names[name] = f"{stem}.{hashlib.sha256(text.encode()).hexdigest()[:12]}.{suffix}"
        for one in (name, names[name]):
            (static / one).write_text(text)
    (static / "staticfiles.json").write_text(json.dumps(names))
    return directory


def test_no_page_of_two_living_versions_lacks_a_static_file(server, tmp_path):
    """Over releases with renamed files, one that fails, and a rollback, by the scripts of docs/deploying.md."""
    shared = server.root / "shared"
    shared.mkdir()
    adds, cleans = scripts_of("Static files")
    collects, adds = adds.split("\n", 1)
    assert "collectstatic" in collects

    def script(text: str, new: object = "") -> None:
        text = text.replace("/srv/shop/shared/static", str(shared)).replace("/srv/shop/releases", str(server.releases))
        subprocess.run(["sh", "-euc", text], check=True, env={**os.environ, "new": str(new)})

    def deploy(version: str, code: str = "") -> Outcome:
        directory = build(server, version, code)
        script(adds, new=directory)
        server.flip(directory)
        return server.release()

    assert deploy("one.1").exit == 0
    places = ["--static", str(shared), "--static", f"/own/={server.releases}/{{release}}/static"]
    with in_front_of(server, tmp_path, *places) as (path, _):
        address = f"unix:{path}"
        lacking: list[str] = []
        seen: Counter[str] = Counter()
        ending = threading.Event()

        def look_at(page: str) -> str:
            version, files = server.get(page, address).json
            for file in files:
                answer = server.get(file, address)
                right = "the same" in answer.body.decode() or version in answer.body.decode()
                if answer.status != 200 or not right or "immutable" not in answer.headers.get("cache-control", ""):
                    lacking.append(f"{version}: {file}: {answer}")
            seen[version] += 1
            return version

        def visit() -> None:
            while not ending.is_set():
                look_at("/page")

        def await_pages(version: str) -> None:
            so_far = seen[version]
            wait_for(lambda: lacking or seen[version] >= so_far + 3, f"pages of version {version}")

        visitors = [Background(visit) for _ in range(2)]
        slow = Background(lambda: look_at("/slow"))
        server.gate("slow").await_entered()
        assert deploy("two").exit == 0
        await_pages("two")
        assert deploy("three", "1 / 0\n").exit == 1
        server.flip(server.releases / "two")
        await_pages("two")
        assert server.cli("rollback").exit == 0
        await_pages("one.1")
        server.gate("slow").open()
        assert slow.result() == "one.1"
        ending.set()
        for one in visitors:
            one.result()
        assert lacking == []
        assert server.get("/static/site.css", address).headers["cache-control"] == "no-cache"
    names = {v: json.loads((server.releases / v / "static/staticfiles.json").read_text()) for v in ("one.1", "two")}
    for one in shared.iterdir():
        os.utime(one, (0, 0))  # as a week later
    script(adds, new=build(server, "four"))
    shutil.rmtree(server.releases / "two")
    script(cleans)
    assert (shared / names["two"]["site.css"]).exists(), "a kept release had it within a week"
    for one in shared.iterdir():
        os.utime(one, (0, 0))
    script(cleans)
    assert not (shared / names["two"]["site.css"]).exists(), "no release has it"
    assert (shared / names["one.1"]["site.css"]).exists() and (shared / names["one.1"]["app.js"]).exists()
