"""The access log's lines, what they escape, and that nothing of it is there when it is off; and request ids."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.config
import os
import re
import socket
import struct

import gevent
import pytest
from http_harness import Harness, turn, wait_for

from reuseport.ipc.scoreboard import CLASSES, ERRORS, REQUESTS
from reuseport.options import load
from reuseport.options.accessformat import DEFAULT, JSON, check_format
from reuseport.worker import logs
from reuseport.worker.access import AccessLog, compile_format
from reuseport.worker.connection import Connection
from reuseport.worker.engine import Engine
from reuseport.worker.logs import FileSink
from reuseport.worker.response import Response
from reuseport.worker.states import BODY

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ATOMS = re.compile(r'- - - \[\d\d/\w{3}/\d{4}:[\d:]{8} [+-]\d{4}\] "GET /a\?b=c HTTP/1.1" 200 5 "-" "-"')


def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "5"), ("X-Cache", 'a "hit"')])
    return [b"hello"]


@pytest.fixture
def make():
    harnesses = []

    def make(application=hello, form=DEFAULT, **options):
        lines: list[str] = []
        log: list[str] = []
        access = AccessLog(form, lines.append, lambda level, text: log.append(text))
        harnesses.append(Harness(application, access=access, **options))
        harnesses[-1].lines, harnesses[-1].trouble = lines, log
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


@pytest.fixture(params=[0, 2], ids=["greenlets", "threads"])
def threads(request):
    return request.param


def said(make, form, *pieces, application=hello, **options):
    harness = make(application, form, **options)
    harness.talk(*pieces)
    (line,) = harness.lines
    assert harness.trouble == []
    return line


def test_the_default_is_the_combined_format(make, threads):
    assert ATOMS.fullmatch(said(make, DEFAULT, GET, threads=threads))


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("%(m)s %(U)s %(q)s %(H)s %(s)s", "GET /a b=c HTTP/1.1 200"),
        ("%(B)s %(b)s %(p)s 100%%", "5 5 <PID> 100%"),
        ("%({Host}i)s %({x-absent}i)s %({Content-Type}i)s", "x - -"),
        ("%({x-cache}o)s|%({absent}o)s", 'a \\"hit\\"|-'),
        ("%({reuseport.generation}e)s %({reuseport.worker}e)s %({reuseport.tenant}e)s", "3 3.1 -"),
        ("%%(s)s {k0} k1 %(s)s", "%(s)s {k0} k1 200"),
    ],
)
def test_atoms(make, form, line):
    assert said(make, form, GET) == line.replace("PID", str(os.getpid()))


def test_times(make):
    seconds, milli, micro, exact = said(make, "%(T)s %(M)s %(D)s %(L)s", GET).split()
    assert (seconds, milli) == ("0", milli)
    assert abs(int(micro) - float(exact) * 1e6) < 1.1


def test_the_user_is_that_of_basic_authentication(make):
    credentials = b"Authorization: Basic bWUiOng=\r\n"  # me":x
    assert said(make, "%(u)s", GET.replace(b"Host", credentials + b"Host")) == 'me\\"'
    assert said(make, "%(u)s", GET.replace(b"Host", b"Authorization: Basic !\r\nHost")) == "-"


def test_nobody_can_forge_a_line(make):
    bad = GET.replace(b"Host: x", b'User-Agent: "\t\\ \xff\r\nHost: x').replace(b"/a", b"/%0a%22")
    line = said(make, '%(U)s "%(a)s"', bad)
    assert line == '/\\x0a\\" "\\"\\x09\\\\ \\xff"'
    entry = said(make, JSON, bad)
    assert json.loads(entry)["user_agent"] == '"\t\\ \xff'
    assert entry.isascii() and "\n" not in entry


def test_json_has_fixed_keys(make, threads):
    entry = json.loads(said(make, JSON, GET, threads=threads))
    assert list(entry) == [
        "time", "remote_addr", "method", "uri", "protocol", "host", "status", "bytes", "seconds", "whole", "referrer",
        "user_agent", "generation", "worker", "request_id", "tenant", "refused",
    ]  # fmt: skip
    assert (entry["status"], entry["bytes"], entry["whole"], entry["generation"]) == (200, 5, True, 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}[+-]\d\d:\d\d", entry["time"])


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"GET / x HTTP/1.1\r\n\r\n", "GET / x HTTP/1.1 400 -"),
        (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "GET / HTTP/1.1 400 -"),
        (b'G\x01"T / HTTP/1.1\r\n\r\n', 'G\\x01\\"T / HTTP/1.1 400 -'),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", "GET / HTTP/2.0 505 -"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1 400 -"),
    ],
)
def test_what_the_server_refuses_is_recorded(make, data, line):
    assert said(make, "%(r)s %(s)s %(b)s", data) == line
    assert json.loads(said(make, JSON, data))["refused"]


UPLOAD = (
    b"POST /up HTTP/1.1\r\nHost: x\r\nUser-Agent: UA\r\nX-Request-ID: me\r\nX-Forwarded-For: 203.0.113.9\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
)
WHOSE = '%(h)s "%(r)s" %(s)s ua=%({user-agent}i)s id=%({reuseport.request_id}e)s'


def upload(environ, start_response):
    environ["wsgi.input"].read()
    return hello(environ, start_response)


@pytest.mark.parametrize(
    ("end", "status"), [("silent", 408), ("too large", 413), ("malformed", 400), ("cut", 400), ("reset", 499)]
)
def test_a_chunked_body_that_does_not_come_whole_has_its_line(make, threads, end, status):
    harness = make(
        upload, WHOSE + "|%(L)s", threads=threads, buffer_chunked=True, limit_request_body=1000, request_id="make",
        body_timeout=0.2 if end == "silent" else 60.0,
    )  # fmt: skip
    with harness.connect(tcp=True) as client:
        client.send(UPLOAD)
        if end == "too large":
            client.send(b"FFFFF\r\nx")
        elif end == "malformed":
            client.send(b"no chunk\r\n")
        elif end == "cut":
            client.finish()
        elif end == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sock.close()
        wait_for(lambda: harness.lines)
    (line,) = harness.lines
    line, seconds = line.split("|")
    assert line == f'203.0.113.9 "POST /up HTTP/1.1" {status} ua=UA id=me'
    assert float(seconds) > 0
    assert harness.counter(CLASSES[0 if status == 499 else 4]) == harness.counter(REQUESTS) == 1
    assert harness.counter(ERRORS) == 0


def test_a_connection_that_is_closed_while_a_body_is_buffered_has_one_line(make):
    harness = make(upload, WHOSE, buffer_chunked=True)
    with harness.connect(tcp=True) as client:
        client.send(UPLOAD)
        (connection,) = harness.engine._open
        wait_for(lambda: connection.state is BODY)
        connection.abort()
        connection.close()
    assert harness.lines == ['203.0.113.9 "POST /up HTTP/1.1" 499 ua=UA id=-']
    assert harness.counter(REQUESTS) == 1


def test_a_connection_without_a_request_is_not(make):
    harness = make()
    harness.talk()
    harness.talk(b"\r\n")
    assert harness.lines == []


def test_bytes_are_those_of_the_body(make, tmp_path):
    def chunks(environ, start_response):
        start_response("200 OK", [])
        return [b"12", b"345"]

    def too_long(environ, start_response):
        start_response("200 OK", [("Content-Length", "3")])
        return [b"12345"]

    def file(environ, start_response):
        (tmp_path / "file").write_bytes(b"12345")
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"]((tmp_path / "file").open("rb"))

    for application, status in ((chunks, "200 5"), (too_long, "200 3"), (file, "200 5")):
        assert said(make, "%(s)s %(B)s", GET, application=application) == status
        head = GET.replace(b"GET", b"HEAD")
        harness = make(application, "%(s)s %(B)s")
        harness.talk(head)
        assert harness.lines == ["200 0"]


def test_an_error_of_the_application(make, threads):
    def fail(environ, start_response):
        raise SystemExit(3)

    assert said(make, "%(s)s", GET, application=fail, threads=threads) == "500"


def test_a_client_that_has_gone(make, threads):
    def endless(environ, start_response):
        start_response("200 OK", [])
        while True:
            yield b"x" * 10_000

    harness = make(endless, JSON, threads=threads)
    with harness.connect() as client:
        client.send(GET)
        client.read_until(b"x")
    wait_for(lambda: harness.lines)
    entry = json.loads(harness.lines[0])
    assert (entry["status"], entry["whole"]) == (200, False)
    assert entry["bytes"] >= 10_000


def test_a_client_that_goes_before_it_gets_a_status(make, threads):
    gone = []

    def slow(environ, start_response):
        wait = gevent.sleep if not threads else __import__("time").sleep
        while not gone:
            wait(0.001)
        return hello(environ, start_response)

    harness = make(slow, "%(s)s %(B)s", threads=threads)
    with harness.connect() as client:
        client.send(GET)
        wait_for(lambda: harness.engine.requests == 1)
    gone.append(True)
    wait_for(lambda: harness.lines)
    assert harness.lines == ["499 0"]


@pytest.mark.parametrize(
    ("sent", "line"), [(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x01x", "101 0 true"), (b"", "499 0 false")]
)
def test_a_connection_that_was_taken_over(make, sent, line):
    def take(environ, start_response):
        environ["gunicorn.socket"].send(sent)
        raise StopIteration

    harness = make(take, "json")
    with harness.connect() as client:
        client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert client.read_all() == sent
    (entry,) = map(json.loads, harness.lines)
    assert f"{entry['status']} {entry['bytes']} {str(entry['whole']).lower()}" == line


def test_an_application_that_configures_logging_itself_does_not_silence_the_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.root.manager, "loggerDict", {})
    file = tmp_path / "log.json"
    file.write_text('{"loggers": {"reuseport.error": {"level": "INFO"}}}')
    logs.configure(str(file))
    logging.config.dictConfig({"version": 1})
    assert logs.configured(logs.ERROR_LOGGERS).isEnabledFor(logging.INFO)
    assert logs.configured(logs.ACCESS_LOGGERS) is None


def test_an_odd_environ_hurts_no_request(make):
    def odd(environ, start_response):
        environ["HTTP_AUTHORIZATION"] = 3
        return hello(environ, start_response)

    harness = make(odd)
    assert harness.talk(GET)[0].status == 200
    assert harness.lines == []
    assert "could not be put into the access log" in harness.trouble[0]


@pytest.mark.parametrize("form", ["", "%(z)s", "%(s)d", "%s", "100%", "%({x}z)s", "%({}i)s", "a\nb"])
def test_bad_formats(form):
    with pytest.raises(ValueError, match=r"no atom|one line"):
        check_format(form)


def test_off_is_the_plain_engine():
    harness = Harness(hello)
    engine = harness.engine
    assert (engine.response, engine._connection) == (Response, Connection)
    assert (engine.request_done.__func__, engine.refused.__func__) == (Engine.request_done, Engine.refused)
    harness.close()


# Files.


@pytest.fixture
def trouble():
    return []


def sink_to(path, trouble):
    settings = load(["a:a", "--access-log", str(path)], {}, "/")
    return FileSink(settings, "7.2", gevent.get_hub().loop, lambda level, text: trouble.append(text))


@pytest.fixture
def sink(tmp_path, trouble):
    sink = sink_to(tmp_path / "log", trouble)
    yield sink
    sink.close()


def test_lines_are_written_once_a_turn_and_at_the_end(sink, tmp_path):
    sink.write("one")
    sink.write("two")
    assert (tmp_path / "log").read_text() == ""
    turn()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    sink.write("three")
    sink.close()
    assert (tmp_path / "log").read_text().endswith("three\n")


def test_a_rotation_loses_nothing(sink, tmp_path):
    sink.write("old")
    (tmp_path / "log").rename(tmp_path / "log.1")
    sink.reopen()
    sink.write("new")
    turn()
    assert ((tmp_path / "log.1").read_text(), (tmp_path / "log").read_text()) == ("old\n", "new\n")


def test_a_full_disk_is_told_once_and_when_it_is_over(tmp_path, trouble):
    (tmp_path / "log").symlink_to("/dev/full")
    sink = sink_to(tmp_path / "log", trouble)
    for _ in range(3):
        sink.write("lost")
        turn()
    assert len(trouble) == 1 and "No space left" in trouble[0]
    (tmp_path / "log").unlink()
    sink.reopen()
    sink.write("kept")
    turn()
    assert (tmp_path / "log").read_text().endswith("kept\n")
    assert len(trouble) == 2
    sink.close()


def test_a_reader_that_does_not_read_holds_up_nobody(tmp_path, trouble):
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    sink = sink_to(tmp_path / "log", trouble)
    for _ in range(300):
        sink.write("x" * 1000)
        turn()
    got = bytearray()

    def all_has_come():
        with contextlib.suppress(BlockingIOError):
            got.extend(os.read(reader, 1 << 20))
        return len(got) == 300 * 1001

    wait_for(all_has_come)
    os.close(reader)
    sink.write("nobody reads")
    turn()
    assert "Broken pipe" in trouble[0]
    sink.close()


# Request ids.

ID = GET.replace(b"Host", b"X-Request-ID: abc-1\r\nHost")


def seen(environ, start_response):
    start_response("200 OK", [("X-Seen", repr(environ["reuseport.request_id"]))])
    return [b""]


@pytest.mark.parametrize("value", [b"", b"a b", b'a"b', b"x" * 129, b"\xff"])
def test_what_is_no_id_is_none(make, value):
    bad = ID.replace(b"abc-1", value)
    (answer,) = make(seen, request_id="pass").talk(bad)
    assert (answer.headers["x-seen"], answer.headers.get("x-request-id")) == ("None", None)
    (answer,) = make(seen, request_id="make").talk(bad)
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["x-seen"] == repr(answer.headers["x-request-id"])


def test_an_id_is_passed_to_the_application_the_client_and_the_logs(make, threads):
    harness = make(seen, "%({reuseport.request_id}e)s", request_id="pass", threads=threads)
    (answer,) = harness.talk(ID)
    assert (answer.headers["x-seen"], answer.headers["x-request-id"]) == ("'abc-1'", "abc-1")
    assert harness.lines == ["abc-1"]

    def fail(environ, start_response):
        raise RuntimeError

    harness.application = fail
    (answer,) = harness.talk(ID)
    assert (answer.status, answer.headers["x-request-id"]) == (500, "abc-1")
    assert "(request abc-1) failed" in harness.errors()[0]


def test_the_application_has_the_last_word_on_its_id(make):
    def own(environ, start_response):
        start_response("200 OK", [("x-REQUEST-id", "mine")])
        return [b""]

    (answer,) = make(own, request_id="make").talk(ID)
    assert answer.headers["x-request-id"] == "mine"


def test_another_header(make):
    harness = make(seen, request_id="pass", request_id_header="X-Trace")
    (answer,) = harness.talk(ID.replace(b"X-Request-ID", b"x-trace"))
    assert answer.headers["x-trace"] == "abc-1"


def test_the_log_can_be_compiled_of_every_atom():
    assert compile_format("".join(f"%({atom})s " for atom in "hlutrmUqHsBbfaTMDLp"))({}, 200, 0, 0.0, (), True, None)
