"""Real clients and a real framework, against an engine in a process of its own, patched as a worker is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PLAIN = [("Content-Type", "text/plain")]


def serve() -> None:
    """The process: one engine behind one listener; its port goes to standard output."""
    from gevent import monkey

    monkey.patch_all()
    import _socket

    import gevent

    from reuseport.ipc import scoreboard
    from reuseport.options import from_keywords
    from reuseport.worker.engine import Engine

    settings = from_keywords("clients:application")
    board = memoryview(bytearray(scoreboard.ROW_BYTES)).cast("Q")
    engine = Engine(
        application(board),
        settings,
        generation=1,
        worker="1.1",
        board=board,
        log=lambda level, text: level != "debug" and print(level, text, file=sys.stderr),
    )
    listener = _socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    listener.setblocking(False)

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                fd, peer = listener._accept()
                os.set_blocking(fd, False)
                engine.adopt(fd, peer, listener.getsockname())

    watcher = gevent.get_hub().loop.io(listener.fileno(), 1)
    watcher.start(accept)
    print(listener.getsockname()[1], flush=True)
    gevent.get_hub().join()


def application(board):
    from time import sleep

    import flask

    from reuseport.ipc import scoreboard

    app = flask.Flask("app")

    @app.get("/hello")
    def hello():
        return "hello"

    @app.get("/slow")
    def slow():
        sleep(0.2)
        return "slow"

    @app.post("/digest")
    def digest():
        seen = hashlib.sha256()
        while piece := flask.request.stream.read(100_000):
            seen.update(piece)
        return seen.hexdigest()

    @app.post("/form")
    def form():
        return {"a": flask.request.form["a"], "file": flask.request.files["file"].read().decode()}

    @app.get("/stream")
    def stream():
        return flask.Response(iter([b"one", b"two", b"three"]))

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    @app.get("/broken")
    def broken():
        def generate():
            yield b"some"
            raise RuntimeError("on purpose")

        return flask.Response(generate())

    @app.get("/counters")
    def counters():
        return {name: board[index] for name, index in scoreboard.NAMES.items()}

    return app


@pytest.fixture(scope="module")
def url():
    root = str(Path(__file__).parent.parent.parent)
    process = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_requests_keeps_its_connection(url):
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        assert [session.get(url + "/hello").text for _ in range(5)] == ["hello"] * 5
        with session.get(url + "/stream", stream=True) as response:
            assert response.headers["Transfer-Encoding"] == "chunked"
            assert response.content == b"onetwothree"
        form = session.post(url + "/form", data={"a": "b"}, files={"file": ("name", "content")})
        assert form.json() == {"a": "b", "file": "content"}
        before = session.get(url + "/counters").json()
        assert before["connections"] == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_upload(url, chunked):
    requests = pytest.importorskip("requests")
    data = os.urandom(3_000_000)
    pieces = (data[i : i + 70_000] for i in range(0, len(data), 70_000))
    answer = requests.post(url + "/digest", data=pieces if chunked else data, timeout=30)
    assert answer.text == hashlib.sha256(data).hexdigest()


def test_a_broken_stream_is_an_error_for_the_client(url):
    requests = pytest.importorskip("requests")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(url + "/broken", timeout=30).content  # noqa: B018 - reading it raises


def test_httpx(url):
    httpx = pytest.importorskip("httpx")
    with httpx.Client() as client:
        assert client.get(url + "/hello").text == "hello"
        assert client.head(url + "/hello").headers["content-length"] == "5"
        assert client.get(url + "/file").content == Path(__file__).read_bytes()
        assert client.get(url + "/none").status_code == 404
        assert client.request("PROPFIND", url + "/hello").status_code == 405


def test_requests_that_wait_do_not_hold_others_up(url):
    httpx = pytest.importorskip("httpx")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: httpx.get(url + "/slow"), range(20)))
    assert {answer.text for answer in answers} == {"slow"}
    # One after the other they would have taken 4 s; on a machine however busy each took its 0.2 s beside the others.
    assert min(answer.elapsed.total_seconds() for answer in answers) < 2


def test_clients_that_vanish(url):
    host, port = url.removeprefix("http://").split(":")
    slow = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
    for request in (b"", slow[:7], slow, slow.replace(b"slow", b"stream")):
        for _ in range(20):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(request)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    httpx = pytest.importorskip("httpx")
    gone = threading.Event()
    for _ in range(100):
        counters = httpx.get(url + "/counters").json()
        if counters["connections"] == 1 and counters["requests_active"] == 1:
            break
        gone.wait(0.1)
    assert (counters["connections"], counters["requests_active"]) == (1, 1)


if __name__ == "__main__":
    serve()
