"""Single ranges of files, as libraries hand them over: sendfile sends those of plain files, and nothing else."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random

import pytest
from http_harness import Harness, echo
from tls_harness import TlsHarness

from reuseport.worker.fileparts import Part

DATA = random.Random(43).randbytes(200_000)
RANGES = ["bytes=0-99", "bytes=100-199", "bytes=199990-", "bytes=-10", "bytes=0-", "bytes=8192-16383", "bytes=1-199998"]
MODES = {
    "greenlets": lambda: Harness(echo),
    "threads": lambda: Harness(echo, threads=2),
    "tls": lambda: TlsHarness(echo),
    "tls and threads": lambda: TlsHarness(echo, threads=2),
}


@pytest.fixture(params=MODES)
def harness(request):
    harness = MODES[request.param]()
    yield harness
    harness.close()


@pytest.fixture
def greenlets():
    harness = Harness(echo)
    yield harness
    harness.close()


@pytest.fixture
def sent(monkeypatch):
    """The number of bytes that each call of sendfile sent."""
    calls = []
    original = os.sendfile

    def sendfile(*args):
        calls.append(original(*args))
        return calls[-1]

    monkeypatch.setattr(os, "sendfile", sendfile)
    return calls


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


def part(text: str) -> bytes:
    """What this range of DATA has."""
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        return DATA[-int(last) :]
    return DATA[int(first) : int(last) + 1 if last else None]


def ask(harness, application, *fields, method="GET", url="/data.bin"):
    harness.application = application
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    request = f"{method} {url} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n"
    (answer,) = harness.talk(request.encode(), methods=(method,))
    return answer


def flask_app(path):
    flask = pytest.importorskip("flask")
    app = flask.Flask("ranges")
    app.route("/data.bin")(lambda: flask.send_file(path, conditional=True))
    return app


def falcon_app(path):
    falcon = pytest.importorskip("falcon")
    app = falcon.App()
    app.add_static_route("/", str(path.parent))
    return app


def whitenoise_app(path):
    whitenoise = pytest.importorskip("whitenoise")
    return whitenoise.WhiteNoise(echo, root=str(path.parent))


def webob_app(path):
    webob = pytest.importorskip("webob")

    def application(environ, start_response):
        wrapper = environ["wsgi.file_wrapper"](path.open("rb"), 4096)
        response = webob.Response(app_iter=wrapper, conditional_response=True, content_length=path.stat().st_size)
        return response(environ, start_response)

    return application


def wsgidav_app(path):
    app = pytest.importorskip("wsgidav.wsgidav_app")
    return app.WsgiDAVApp({
        "provider_mapping": {"/": str(path.parent)}, "simple_dc": {"user_mapping": {"*": True}}, "verbose": 0,
    })  # fmt: skip


HANDED_OVER = {"flask": flask_app, "falcon": falcon_app, "whitenoise": whitenoise_app, "webob": webob_app}


@pytest.mark.parametrize("library", HANDED_OVER)
def test_ranges_of_plain_files(harness, path, library, sent):
    app = HANDED_OVER[library](path)
    for text in RANGES:
        sent.clear()
        answer = ask(harness, app, ("Range", text))
        wanted = part(text)
        assert (answer.status, answer.body == wanted, answer.whole) == (206, True, True), text
        assert answer.headers["content-length"] == str(len(wanted))
        assert answer.headers["content-range"].endswith("/200000")
        if type(harness) is Harness:
            assert sum(sent) == len(wanted), text
    answer = ask(harness, app, ("Range", "bytes=5-9"), method="HEAD")
    assert (answer.body, answer.headers["content-length"]) == (b"", "5")
    assert harness.errors() == []


def test_ranges_that_no_library_hands_over(harness, path):
    """wsgidav reads by itself, in a generator."""
    app = wsgidav_app(path)
    for text in RANGES:
        answer = ask(harness, app, ("Range", text))
        assert (answer.status, answer.body == part(text), answer.whole) == (206, True, True), text


@pytest.mark.parametrize("library", HANDED_OVER)
def test_a_range_behind_the_end(greenlets, path, library):
    assert ask(greenlets, HANDED_OVER[library](path), ("Range", "bytes=900000-")).status in (200, 416)
    assert greenlets.errors() == []


@pytest.mark.parametrize("library", HANDED_OVER)
def test_the_file_is_closed(greenlets, path, library):
    ask(greenlets, HANDED_OVER[library](path), ("Range", "bytes=5-9"))
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            assert os.readlink(f"/proc/self/fd/{fd}") != str(path)


def sliced(file, first, last):
    responders = pytest.importorskip("whitenoise.responders")
    return responders.SlicedFile(file, first, last)


def werkzeugs(iterable, first, count):
    wsgi = pytest.importorskip("werkzeug.wsgi")
    return wsgi._RangeWrapper(iterable, first, count)


def inverted(data: bytes) -> bytes:
    return data.translate(bytes(255 - n for n in range(256)))


def patched(sliced_file):
    """One whose own `read` is replaced."""
    read = sliced_file.read
    sliced_file.read = lambda size: inverted(read(size))
    return sliced_file


def subclassed(file):
    class Inverted(pytest.importorskip("whitenoise.responders").SlicedFile):
        def read(self, size=-1):
            return inverted(super().read(size))

    return Inverted(file, 1000, 1999)


class Inverting(io.FileIO):
    def read(self, size=-1):
        return inverted(super().read(size))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: patched(sliced(path.open("rb"), 1000, 1999)),
        lambda path: subclassed(path.open("rb")),
        lambda path: sliced(Inverting(path), 1000, 1999),
    ],
    ids=["instance", "subclass", "file"],
)
def test_a_read_of_anybody_elses_counts(greenlets, path, sent, make):
    def application(environ, start_response):
        start_response("206 Partial Content", [("Content-Length", "1000")])
        return environ["wsgi.file_wrapper"](make(path))

    assert ask(greenlets, application).body == inverted(DATA[1000:2000])
    assert not sent


def test_a_patched_class_counts(greenlets, path, sent, monkeypatch):
    responders = pytest.importorskip("whitenoise.responders")
    read = responders.SlicedFile.read
    monkeypatch.setattr(responders.SlicedFile, "read", lambda self, size=-1: inverted(read(self, size)))
    answer = ask(greenlets, whitenoise_app(path), ("Range", "bytes=1000-1999"))
    assert answer.body == inverted(DATA[1000:2000])
    assert not sent


@pytest.mark.parametrize("way", ["a part", "werkzeug's"])
def test_a_longer_content_length_brings_nothing_out_from_behind_the_range(greenlets, path, way):
    def application(environ, start_response):
        start_response("206 Partial Content", [("Content-Length", "2000")])
        wrapper = environ["wsgi.file_wrapper"]
        if way == "a part":
            return wrapper(Part(path.open("rb"), 1000))
        return werkzeugs(wrapper(path.open("rb")), 0, 1000)

    answer = ask(greenlets, application)
    assert (answer.body, answer.whole) == (DATA[:1000], False)
    (error,) = greenlets.errors()
    assert "1000 bytes shorter" in error


def test_a_shorter_content_length_counts(greenlets, path, sent):
    def application(environ, start_response):
        start_response("206 Partial Content", [("Content-Length", "10")])
        return werkzeugs(environ["wsgi.file_wrapper"](path.open("rb")), 500, 1000)

    assert ask(greenlets, application).body == DATA[500:510]
    assert sum(sent) == 10


def test_what_has_begun_goes_on(greenlets, path, sent):
    def application(environ, start_response):
        result = werkzeugs(environ["wsgi.file_wrapper"](path.open("rb"), 100), 500, 1000)
        assert next(result) == DATA[500:600]
        start_response("200 OK", [])
        return result

    assert ask(greenlets, application).body == DATA[600:1500]
    assert not sent


@pytest.mark.parametrize("kind", ["bytes", "gzip"])
def test_werkzeugs_ranges_of_other_objects(greenlets, path, sent, kind):
    if kind == "gzip":
        path.write_bytes(gzip.compress(DATA))

    def application(environ, start_response):
        start_response("206 Partial Content", [])
        file = io.BytesIO(DATA) if kind == "bytes" else gzip.open(path)  # noqa: SIM115
        return werkzeugs(environ["wsgi.file_wrapper"](file, 4096), 5000, 10_000)

    assert ask(greenlets, application).body == DATA[5000:15_000]
    assert not sent


def test_webob_counts_from_the_position(greenlets, path):
    def application(environ, start_response):
        file = path.open("rb")
        file.seek(100)
        wrapper = environ["wsgi.file_wrapper"](file)
        start_response("200 OK", [])
        return wrapper.app_iter_range(10, 30)

    assert ask(greenlets, application).body == DATA[110:130]


def test_webob_reads_from_the_start_what_cannot_seek(greenlets):
    webob = pytest.importorskip("webob")

    class Reading:
        def __init__(self):
            self.read = io.BytesIO(DATA).read

    def application(environ, start_response):
        wrapper = environ["wsgi.file_wrapper"](Reading(), 4096)
        response = webob.Response(app_iter=wrapper, conditional_response=True, content_length=len(DATA))
        return response(environ, start_response)

    assert ask(greenlets, application, ("Range", "bytes=5000-5999")).body == DATA[5000:6000]
    assert greenlets.errors() == []
