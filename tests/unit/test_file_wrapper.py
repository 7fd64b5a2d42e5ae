"""wsgi.file_wrapper: the client gets what `read()` returns, of any object, and sendfile sends plain files."""

from __future__ import annotations

import _pyio
import bz2
import functools
import gzip
import io
import lzma
import mmap
import os
import random
import socket
import tarfile
import tempfile
import threading
import types
import zipfile

import gevent
import pytest
from examples import examples
from gevent.fileobject import FileObjectBlock, FileObjectPosix, FileObjectThread
from http_harness import Harness, echo, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tls_harness import TlsHarness

from reuseport.worker.filewrapper import FileWrapper

DATA = random.Random(32).randbytes(200_000)
GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
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
def sent_by_sendfile(monkeypatch):
    """The bytes that sendfile sent, in a list of its calls."""
    calls = []

    def sendfile(*args):
        calls.append(original(*args))
        return calls[-1]

    original = os.sendfile
    monkeypatch.setattr(os, "sendfile", sendfile)
    return calls


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


def sends(make, *headers, status="200 OK", block=8192):
    """An application that sends what `make()` returns, a file or a pair of a file and its wrapper."""

    def application(environ, start_response):
        file = make()
        start_response(status, [("Content-Type", "application/octet-stream"), *headers])
        return environ["wsgi.file_wrapper"](file, block)

    return application


def ask(harness, application, request=GET):
    harness.application = application
    (answer,) = harness.talk(request, methods=(request.partition(b" ")[0].decode(),))
    return answer


def contents(file, block=8192):
    """What `read` returns, block by block."""
    return b"".join(iter(lambda: file.read(block), b""))


# --- files that sendfile may send


def at(position, file):
    file.seek(position)
    return file


def after(count, file):
    """Some of it was read, so a buffered file's descriptor is further than its position."""
    assert len(file.read(count)) == count
    return file


def peeked(path):
    file = path.open("rb")
    file.peek(100)
    return file


def unflushed(path):
    """Bytes that were written and wait in the buffer, before and behind the position."""
    file = path.open("r+b")
    file.seek(100)
    file.write(b"unflushed")
    return file


def appended(path):
    file = path.open("a+b")
    file.write(b"appended")
    file.seek(-20, os.SEEK_END)
    return file


def temporary(make):
    file = make()
    file.write(DATA)
    file.seek(5)
    return file


def in_memory(path):
    file = os.fdopen(os.memfd_create("data"), "w+b")
    file.write(DATA)
    file.seek(0)
    return file


def django_file(path):
    from django.core.files import File

    return File(path.open("rb"))


class Proxy:
    """As wrapt's ObjectProxy: every attribute is the file's, unless a subclass says otherwise."""

    def __init__(self, file):
        self.wrapped = file

    def __getattr__(self, name):
        return getattr(self.wrapped, name)


SENT = {
    "raw": lambda path: path.open("rb", buffering=0),
    "raw, at a position": lambda path: at(1000, path.open("rb", buffering=0)),
    "buffered": lambda path: path.open("rb"),
    "buffered, at a position": lambda path: at(65537, path.open("rb")),
    "buffered, after a read": lambda path: after(10, path.open("rb")),
    "buffered, after a look ahead": peeked,
    "a large buffer, after a read": lambda path: after(10, path.open("rb", buffering=1 << 20)),
    "read and write": lambda path: after(10, path.open("r+b")),
    "unflushed": unflushed,
    "appended": appended,
    "raw, read and write": lambda path: path.open("r+b", buffering=0),
    "temporary": lambda path: temporary(tempfile.TemporaryFile),
    "named temporary": lambda path: temporary(tempfile.NamedTemporaryFile),
    "in memory": in_memory,
    "django's": django_file,
    "a proxy": lambda path: Proxy(after(10, path.open("rb"))),
    "a proxy whose fileno and position lie": lambda path: Elsewhere(path.open("rb")),
    "sparse": lambda path: sparse(path),
}


class Elsewhere(Proxy):
    """`read` is the file's own, so the rest does not matter."""

    def fileno(self):
        return 1

    def tell(self):
        return 77


def sparse(path):
    file = path.open("r+b")
    file.truncate(3_000_000)
    file.seek(150_000)
    return file


# --- objects that must be read


def compressed(module, path):
    packed = path.with_suffix(".packed")
    with module.open(packed, "wb") as file:
        file.write(DATA)
    return module.open(packed)


def zipped(path, how):
    packed = path.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", how) as archive:
        archive.writestr("first", "x" * 1000)
        archive.write(path, "data")
    return zipfile.ZipFile(packed).open("data")


def tarred(path):
    packed = path.with_suffix(".tar")
    with tarfile.open(packed, "w") as archive:
        archive.add(path, "data")
    return tarfile.open(packed).extractfile("data")


def swapped(data):
    return data.translate(bytes(255 - n for n in range(256)))


class SwappedRead(io.FileIO):
    def read(self, size=-1):
        return swapped(super().read(size))


class SwappedReadinto(io.FileIO):
    def readinto(self, buffer):
        data = swapped(super().read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


class SwappedBuffered(io.BufferedReader):
    def read(self, size=-1):
        return swapped(super().read(size))


class SwappedRandom(io.BufferedRandom):
    def read(self, size=-1):
        return swapped(super().read(size))


class OddLines(io.BufferedReader):
    """Its lines are others than its bytes, and `read` is what counts."""

    def __iter__(self):
        return iter([b"a line"])


class SwappedProxy(Proxy):
    def read(self, size=-1):
        return swapped(self.wrapped.read(size))


def with_attribute(file, name="read"):
    """An instance of `io`'s classes has a __dict__, which its own C code may or may not look at."""
    if name == "read":
        file.read = functools.partial(lambda read, size=-1: swapped(read(size)), file.read)
    else:
        readinto = file.raw.readinto

        def replaced(buffer):
            count = readinto(buffer)
            buffer[:count] = swapped(bytes(buffer[:count]))
            return count

        file.raw.readinto = replaced
    return file


def named_with_attribute(path):
    """Replaced by a function that names the file's own read as the one it wraps."""
    file = temporary(tempfile.NamedTemporaryFile)
    read = file.file.read
    file.read = functools.wraps(read)(lambda size=-1: swapped(read(size)))
    return file


def spooled(path, most):
    file = tempfile.SpooledTemporaryFile(max_size=most)  # noqa: SIM115 - the server closes it
    file.write(DATA)
    file.seek(7)
    return file


def mapped(path):
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Liar:
    """Bytes from elsewhere, and the descriptor of a file that is no business of the client's."""

    def __init__(self, path):
        self.descriptor = path.open("rb")
        self.bytes = io.BytesIO(b"what is meant")

    def fileno(self):
        return self.descriptor.fileno()

    def tell(self):
        return 0

    def read(self, size=-1):
        return self.bytes.read(size)


def piped(path):
    reading, writing = os.pipe()
    os.write(writing, DATA[:50_000])
    os.close(writing)
    return os.fdopen(reading, "rb")


def fifo(path):
    os.mkfifo(name := path.with_suffix(".fifo"))
    file = os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb")
    with open(name, "wb") as writer:
        writer.write(DATA[:50_000])
    return file


def from_socket(path):
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(DATA[:50_000])
    file = ours.makefile("rb")
    ours.close()
    return file


def hole(path):
    """Occupies nothing, as a file of /proc does, and has a size."""
    file = path.with_suffix(".hole").open("w+b")
    file.truncate(100_000)
    return file


READ = {
    "gzip": lambda path: compressed(gzip, path),
    "gzip, after a read": lambda path: after(10, compressed(gzip, path)),
    "bz2": lambda path: compressed(bz2, path),
    "lzma": lambda path: compressed(lzma, path),
    "gzip, buffered": lambda path: io.BufferedReader(compressed(gzip, path)),
    "deflated in zip": lambda path: zipped(path, zipfile.ZIP_DEFLATED),
    "stored in zip": lambda path: zipped(path, zipfile.ZIP_STORED),
    "in tar": tarred,
    "a member of tar, at a position": lambda path: at(12345, tarred(path)),
    "bytes": lambda path: io.BytesIO(DATA),
    "spooled in memory": lambda path: spooled(path, 1 << 20),
    "spooled on disk": lambda path: spooled(path, 100),
    "read overridden": lambda path: SwappedRead(path),
    "readinto overridden, buffered": lambda path: io.BufferedReader(SwappedReadinto(path)),
    "buffered, read overridden": lambda path: SwappedBuffered(io.FileIO(path)),
    "random, read overridden": lambda path: SwappedRandom(io.FileIO(path, "r+")),
    "lines overridden": lambda path: OddLines(io.FileIO(path)),
    "an attribute": lambda path: with_attribute(path.open("rb")),
    "a raw file's attribute": lambda path: with_attribute(path.open("rb"), "readinto"),
    "a named temporary's attribute": named_with_attribute,
    "a proxy that reads": lambda path: SwappedProxy(path.open("rb")),
    "gevent's, with threads": lambda path: FileObjectThread(path.open("rb"), "rb"),
    "gevent's": lambda path: FileObjectPosix(path.open("rb"), "rb"),
    "gevent's blocking one": lambda path: FileObjectBlock(str(path), "rb"),
    "python's own": lambda path: _pyio.open(path, "rb"),
    "mapped": mapped,
    "a liar": Liar,
    "a pipe": piped,
    "a named pipe": fifo,
    "a socket": from_socket,
    "/proc": lambda path: io.BufferedReader(io.FileIO("/proc/self/limits")),
    "/proc, at a position": lambda path: at(5, io.BufferedReader(io.FileIO("/proc/self/limits"))),
    "/sys": lambda path: io.BufferedReader(io.FileIO(IN_SYS)),
    "nothing but a hole": hole,
    "at its end": lambda path: at(len(DATA), path.open("rb")),
    "behind its end": lambda path: at(len(DATA) + 5, path.open("rb")),
    "empty": lambda path: path.with_suffix(".empty").open("w+b"),
}
IN_SYS = "/sys/kernel/mm/transparent_hugepage/enabled"
LOOP_ONLY = {"gevent's, with threads", "gevent's"}  # they belong to the hub of the thread that made them


def made(kind, path):
    if kind == "/sys" and not os.path.exists(IN_SYS):
        pytest.skip("this kernel has no such file in /sys")
    return {**SENT, **READ}[kind](path)


@pytest.mark.parametrize("kind", [*SENT, *READ])
def test_the_client_gets_what_read_returns(harness, path, kind, sent_by_sendfile):
    if kind in LOOP_ONLY and harness.engine.threads:
        pytest.skip("a gevent file belongs to the thread that made it")
    wanted = contents(made(kind, path))
    path.write_bytes(DATA)
    path.with_suffix(".fifo").unlink(missing_ok=True)
    answer = ask(harness, sends(lambda: made(kind, path)))
    assert (answer.status, answer.whole, harness.errors()) == (200, True, [])
    assert answer.body == wanted
    if not isinstance(harness, TlsHarness):
        assert sum(sent_by_sendfile) == (len(wanted) if kind in SENT else 0)
    if kind in SENT:
        assert answer.headers["content-length"] == str(len(wanted))


def test_a_spooled_file_stays_in_memory(greenlets, path):
    file = spooled(path, 1 << 20)
    closed = []
    file.close = lambda: closed.append(file._rolled)
    assert ask(greenlets, sends(lambda: file)).body == DATA[7:]
    assert closed == [False]


def test_a_named_temporary_file_that_was_read_before(greenlets):
    file = temporary(tempfile.NamedTemporaryFile)
    file.read(5)
    assert ask(greenlets, sends(lambda: file)).body == DATA[10:]
    assert not os.path.exists(file.name)


# --- errors


@pytest.mark.parametrize("request_", [GET, HEAD])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_a_file_in_text_mode_is_an_error_that_says_what_to_do(harness, tmp_path, request_, encoding):
    path = tmp_path / "text"
    path.write_text("grün\r\n" * 1000, encoding=encoding)
    answer = ask(harness, sends(lambda: path.open(encoding=encoding)), request_)
    assert answer.status == 500
    assert "read() of TextIOWrapper returns str: open the file in binary mode ('rb')" in harness.errors()[0]


def test_stringio_is_the_same_error(greenlets):
    assert ask(greenlets, sends(lambda: io.StringIO("abc"))).status == 500
    assert "StringIO returns str" in greenlets.errors()[0]


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_a_file_that_cannot_be_read(harness, path, mode, buffering):
    assert ask(harness, sends(lambda: path.open(mode, buffering=buffering))).status == 500


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("end", ["close", "detach"])
def test_a_closed_file(harness, path, buffering, end):
    def make():
        file = path.open("rb", buffering=buffering)
        getattr(file, end if buffering else "close")()
        file.__dict__["close"] = lambda: None
        return file

    assert ask(harness, sends(make)).status == 500
    assert "ValueError" in harness.errors()[0]


def test_an_error_of_the_disk_is_the_servers_to_tell(harness, path, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "sendfile", fails)
    monkeypatch.setattr(os, "pread", fails)
    answer = ask(harness, sends(lambda: path.open("rb")))
    assert (answer.body, answer.whole) == (b"", False)
    assert "Input/output error" in harness.errors()[0]


def test_a_file_system_without_sendfile(harness, path, monkeypatch):
    def refuses(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuses)
    answer = ask(harness, sends(lambda: path.open("rb")))
    assert (answer.body == DATA, answer.whole, harness.errors()) == (True, True, [])


def test_a_client_that_goes_is_no_error(greenlets, path):
    with path.open("r+b") as file:
        file.truncate(50_000_000)
    greenlets.application = sends(lambda: path.open("rb"))
    with greenlets.connect() as client:
        client.send(GET)
        client.read_until(b"\r\n\r\n")
    wait_for(lambda: greenlets.engine.requests == 0)
    assert greenlets.errors() == []


# --- lengths


KINDS = {"sent": lambda path: path.open("rb"), "read": lambda path: compressed(gzip, path)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 1, 8192, 8193, len(DATA) - 1, len(DATA)])
def test_content_length_ends_the_file(harness, path, kind, length):
    application = sends(lambda: KINDS[kind](path), ("Content-Length", str(length)))
    answer = ask(harness, application)
    assert (answer.body == DATA[:length], answer.whole, harness.errors()) == (True, True, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_shorter_than_its_content_length(harness, path, kind):
    answer = ask(harness, sends(lambda: KINDS[kind](path), ("Content-Length", str(len(DATA) + 1))))
    assert (answer.body == DATA, answer.whole) == (True, False)
    assert "1 bytes shorter than its Content-Length" in harness.errors()[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("request_", "status", "length"),
    [
        (HEAD, "200 OK", str(len(DATA))),
        (GET, "304 Not Modified", str(len(DATA))),
        (HEAD, "206 Partial Content", "100"),
        (GET, "204 No Content", None),
        (HEAD, "200 OK", None),
    ],
)
def test_no_body_and_nothing_read_in_vain(harness, path, kind, request_, status, length):
    counted = []

    class Counting(Proxy):
        def read(self, size=-1):
            counted.append(size)
            return self.wrapped.read(size)

    make = KINDS[kind]
    headers = [("Content-Length", length)] if length else []
    answer = ask(harness, sends(lambda: Counting(make(path)), *headers, status=status), request_)
    assert (answer.body, answer.whole, harness.errors()) == (b"", True, [])
    assert answer.headers.get("content-length") == length
    assert len(counted) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_connection_goes_on_behind_a_part_of_a_file(harness, path, kind):
    harness.application = sends(lambda: at(50, KINDS[kind](path)), ("Content-Length", "100"), status="206 Part")
    answers = harness.talk(GET.replace(b"Connection: close\r\n", b"") * 3 + GET)
    assert [answer.body == DATA[50:150] for answer in answers] == [True] * 4


def changes(path, change, *headers):
    """An application that sends a file which changes when the server has just looked at it."""

    def application(environ, start_response):
        start_response("200 OK", list(headers))
        wrapper = environ["wsgi.file_wrapper"](path.open("rb"))
        look = wrapper.region

        def region():
            found = look()
            change()
            return found

        wrapper.region = region
        return wrapper

    return application


def test_a_file_that_shrinks_while_it_is_sent(harness, path):
    answer = ask(harness, changes(path, lambda: os.truncate(path, 70_000)))
    assert (answer.body == DATA[:70_000], answer.whole) == (True, False)
    assert "130000 bytes shorter than its Content-Length" in harness.errors()[0]


def test_a_file_that_grows_is_sent_up_to_its_content_length(harness, path):
    """As read() does: an application may know the length before the last bytes are written."""
    more = random.Random(1).randbytes(100_000)

    def grow():
        with path.open("ab") as file:
            file.write(more)

    answer = ask(harness, changes(path, grow, ("Content-Length", str(len(DATA) + len(more)))))
    assert (answer.body == DATA + more, answer.whole) == (True, True)
    path.write_bytes(DATA)
    answer = ask(harness, changes(path, grow))
    assert (answer.body == DATA, answer.whole) == (True, True)


def test_beyond_two_gibibytes(harness, path):
    far = 3 << 30
    with path.open("r+b") as file:
        file.seek(far)
        file.write(b"the end")
    answer = ask(harness, sends(lambda: at(far - 3, path.open("rb"))))
    assert (answer.body, answer.headers["content-length"]) == (b"\0\0\0the end", "10")
    with path.open("rb") as file:
        assert FileWrapper(file).region() == (file.fileno(), 0, far + 7, False)


def test_a_write_before_the_file(harness, path):
    def application(environ, start_response):
        start_response("200 OK", [])(b"before")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert ask(harness, application).body == b"before" + DATA


@pytest.mark.parametrize("block", [-1, 1])
@pytest.mark.parametrize("length", [None, 100])
def test_odd_block_sizes(harness, block, length):
    headers = [] if length is None else [("Content-Length", str(length))]
    answer = ask(harness, sends(lambda: at(9, io.BytesIO(DATA[:3000])), *headers, block=block))
    assert answer.body == DATA[9:3000][:length]


def test_http_10(harness, path):
    for make in KINDS.values():
        answer = ask(harness, sends(lambda make=make: make(path)), b"GET / HTTP/1.0\r\n\r\n")
        assert answer.body == DATA


# --- the wrapper as an iterable


def test_middleware_iterates_and_the_rest_may_be_sent(greenlets, path, sent_by_sendfile):
    def application(environ, start_response):
        start_response("200 OK", [])
        wrapper = environ["wsgi.file_wrapper"](path.open("rb"), 1000)
        assert next(wrapper) == DATA[:1000]
        assert wrapper.tell() == 1000
        wrapper.seek(500)
        return wrapper

    assert ask(greenlets, application).body == DATA[500:]
    assert sum(sent_by_sendfile) == len(DATA) - 500


def test_what_it_offers(path):
    wrapper = FileWrapper(path.open("rb"), 1000)
    assert iter(wrapper) is wrapper
    assert wrapper.seekable()
    assert wrapper.seek(-1000, os.SEEK_END) == wrapper.tell() == len(DATA) - 1000
    assert list(wrapper) == [DATA[-1000:]]
    wrapper.close()
    assert wrapper.filelike.closed
    reading, writing = os.pipe()
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert not FileWrapper(pipe).seekable()
    without = FileWrapper(Proxy(object()))
    assert not without.seekable()
    assert not hasattr(without, "close")


def test_reading_gives_others_a_turn(greenlets):
    """A middleware that reads all of it before it sends anything, from an object that never waits."""
    turns = []

    class Endless:
        def read(self, size):
            return bytes(size) if len(turns) < 3 else b""

    def application(environ, start_response):
        wrapper = environ["wsgi.file_wrapper"](Endless())
        other = gevent.spawn(lambda: [(turns.append(1), gevent.sleep(0)) for _ in range(5)])
        size = sum(len(block) for block in wrapper)
        other.join()
        start_response("200 OK", [])
        return [str(size).encode()]

    assert int(ask(greenlets, application).body) < 100 << 20


def test_a_native_thread_without_a_hub_may_read(greenlets):
    sizes = []
    wrapper = FileWrapper(io.BytesIO(bytes(5 << 20)))
    thread = threading.Thread(target=lambda: sizes.append(sum(map(len, wrapper))))
    thread.start()
    thread.join()
    assert sizes == [5 << 20]


# --- frameworks


RANGES = ["bytes=0-99", "bytes=100-199", "bytes=199990-", "bytes=-10", "bytes=0-", "bytes=8192-16383", "bytes=199999-"]


def range_of(text):
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        return DATA[-int(last) :]
    return DATA[int(first) : int(last) + 1 if last else None]


def asked(*headers, method="GET"):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode()


def flask_app(make):
    flask = pytest.importorskip("flask")
    app = flask.Flask("files")
    app.route("/")(lambda: flask.send_file(make(), mimetype="x/y", conditional=True, etag="tag", download_name="x"))
    return app


@pytest.mark.parametrize("kind", ["a path", "a file", "gzip", "bytes"])
@pytest.mark.parametrize("range_", RANGES)
def test_flasks_ranges(harness, path, range_, kind):
    make = {
        "a path": lambda: str(path),
        "a file": lambda: path.open("rb"),
        "gzip": lambda: compressed(gzip, path),
        "bytes": lambda: io.BytesIO(DATA),
    }[kind]
    answer = ask(harness, flask_app(make), asked(("Range", range_)))
    # werkzeug knows the length of a path and of bytes only, and answers others as a whole.
    wanted = (206, range_of(range_)) if kind in ("a path", "bytes") else (200, DATA)
    assert (answer.status, answer.body == wanted[1], answer.whole) == (wanted[0], True, True)
    assert harness.errors() == []


def test_flasks_conditional_requests(harness, path):
    app = flask_app(lambda: str(path))
    assert ask(harness, app).body == DATA
    answer = ask(harness, app, asked(("If-None-Match", '"tag"')))
    assert (answer.status, answer.body) == (304, b"")
    assert ask(harness, app, asked(("If-None-Match", '"other"'))).body == DATA
    assert ask(harness, app, asked(("Range", "bytes=5-9"), ("If-Range", '"tag"'))).body == DATA[5:10]
    assert ask(harness, app, asked(("Range", "bytes=5-9"), ("If-Range", '"other"'))).body == DATA
    assert ask(harness, app, asked(("Range", "bytes=900000-"))).status == 416
    answer = ask(harness, app, asked(method="HEAD"))
    assert (answer.body, answer.headers["content-length"]) == (b"", str(len(DATA)))
    assert harness.errors() == []


def test_a_range_at_the_end_of_a_large_file_reads_nothing_before_it(greenlets, path):
    far = 2 << 30
    with path.open("r+b") as file:
        file.seek(far)
        file.write(b"the end")
    read = []

    def application(environ, start_response):
        wrapper = environ["wsgi.file_wrapper"]

        class Counting(wrapper):
            def __next__(self):
                block = super().__next__()
                read.append(len(block))
                return block

        return flask_app(lambda: str(path))({**environ, "wsgi.file_wrapper": Counting}, start_response)

    answer = ask(greenlets, application, asked(("Range", "bytes=-10")))
    assert (answer.status, answer.body) == (206, b"\0\0\0the end")
    assert read == [10]


@pytest.fixture
def django_app():
    """Makes a WSGI application of a view; without middleware, so that nothing else touches the response."""
    pytest.importorskip("django")
    from django.conf import settings as configuration
    from django.core.handlers.wsgi import WSGIHandler
    from django.test.utils import override_settings
    from django.urls import path as route

    if not configuration.configured:
        configuration.configure(SECRET_KEY="x")
        import django

        django.setup()

    def make(view):
        urls = types.ModuleType("urls")
        urls.urlpatterns = [route("", view)]
        options = {"ROOT_URLCONF": urls, "MIDDLEWARE": [], "ALLOWED_HOSTS": ["*"]}
        with override_settings(**options):
            handler = WSGIHandler()

        def application(environ, start_response):
            with override_settings(**options):
                return handler(environ, start_response)

        return application

    return make


@pytest.mark.parametrize(
    "kind", ["buffered", "gzip", "bytes", "django's", "named temporary", "buffered, at a position"]
)
@pytest.mark.parametrize("request_", [GET, HEAD])
def test_djangos_file_response(greenlets, django_app, path, kind, request_):
    from django.http import FileResponse

    closed = []

    def view(request):
        file = made(kind, path)
        close = file.close
        if kind != "named temporary":
            file.close = lambda: (closed.append(kind), close())
        return FileResponse(file, filename="x.bin")

    wanted = contents(made(kind, path))
    answer = ask(greenlets, django_app(view), request_)
    assert greenlets.errors() == []
    assert answer.headers["content-length"] == str(len(wanted))
    assert answer.body == (wanted if request_ is GET else b"")
    assert closed == ([kind] if kind != "named temporary" else [])


def test_djangos_file_response_of_a_part(greenlets, django_app, path):
    """A view that serves a range by itself: it seeks, and says the length."""
    from django.http import FileResponse

    def view(request):
        return FileResponse(at(1000, path.open("rb")), status=206, headers={"Content-Length": "50"})

    def part(request):
        response = view(request)
        response["Content-Length"] = "50"
        return response

    answer = ask(greenlets, django_app(part))
    assert (answer.status, answer.body, greenlets.errors()) == (206, DATA[1000:1050], [])


# --- any kind, position, block and length


SEEKABLE = [
    *("raw", "buffered", "read and write", "a proxy", "named temporary", "in memory", "gzip", "bytes", "stored in zip"),
    *("spooled in memory", "spooled on disk", "readinto overridden, buffered", "lines overridden", "an attribute"),
    *("a raw file's attribute", "a proxy that reads", "in tar", "sparse", "mapped", "nothing but a hole"),
]


@settings(
    max_examples=examples(120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kind=st.sampled_from(SEEKABLE),
    mode=st.sampled_from(sorted(MODES)),
    reads=st.lists(st.integers(1, 20_000), max_size=3),
    position=st.none() | st.integers(0, 210_000),
    block=st.sampled_from([1000, 4096, 8192, 65536, 1 << 20]),
    length=st.none() | st.integers(0, 210_000),
    request_=st.sampled_from([GET, HEAD]),
)
def test_any_file_at_any_position(path, kind, mode, reads, position, block, length, request_):
    def make():
        file = made(kind, path)
        for count in reads:
            file.read(count)
        if position is not None:
            file.seek(min(position, 100_000) if kind == "mapped" else position)
        return file

    path.write_bytes(DATA)
    wanted = contents(make(), block)
    path.write_bytes(DATA)
    harness = MODES[mode]()
    try:
        headers = [] if length is None else [("Content-Length", str(length))]
        answer = ask(harness, sends(make, *headers, block=block), request_)
    finally:
        harness.close()
    if request_ is HEAD:
        assert (answer.status, answer.body) == (200, b"")
    elif length is None:
        assert (answer.body == wanted, answer.whole) == (True, True)
    else:
        assert answer.body == wanted[:length]
        assert answer.whole == (length <= len(wanted))
    assert bool(harness.errors()) == (request_ is GET and length is not None and length > len(wanted))
