"""What applications do, and what the client sees of it (PEP 3333)."""

from __future__ import annotations

import sys
from wsgiref.validate import validator

import gevent
import pytest
from http_harness import Harness, echo, parse, turn, wait_for

from reuseport.ipc import scoreboard
from reuseport.ipc.scoreboard import ACTIVE, BYTES_OUT, CONNECTIONS, ERRORS, REQUESTS

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
GET_10 = b"GET / HTTP/1.0\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PLAIN = [("Content-Type", "text/plain")]


@pytest.fixture
def harness():
    harness = Harness(echo)
    yield harness
    harness.close()


def answer(*pieces, status="200 OK", headers=PLAIN):
    """An application that yields the pieces."""

    def application(environ, start_response):
        start_response(status, list(headers))
        return iter(pieces)

    return application


def ask(harness, application, *requests, methods=()):
    harness.application = application
    return harness.talk(b"".join(requests or (GET,)), methods=methods)


# Framing.


def test_one_piece_in_a_list_gets_a_length(harness):
    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        return [b"abc"]

    (one,) = ask(harness, application)
    assert (one.headers["content-length"], one.body, one.whole) == ("3", b"abc", True)
    assert "date" in one.headers


def test_pieces_are_chunked(harness):
    one, two = ask(harness, answer(b"a", b"", b"bc"), GET, NEXT)
    assert (one.headers["transfer-encoding"], one.body, one.whole) == ("chunked", b"abc", True)
    assert "content-length" not in one.headers
    assert two.body == b"abc"


def test_http_10_ends_with_the_connection(harness):
    (one,) = ask(harness, answer(b"a", b"bc"), GET_10)
    assert one.body == b"abc"
    assert one.headers["connection"] == "close"
    assert not {"transfer-encoding", "content-length"} & one.headers.keys()


def test_http_10_keep_alive(harness):
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    one, two = ask(harness, answer(b"abc", headers=[("Content-Length", "3")]), request, GET_10)
    assert (one.headers["connection"], two.headers["connection"]) == ("keep-alive", "close")


def test_http_10_keep_alive_without_a_length(harness):
    (one,) = ask(harness, answer(b"abc"), b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", GET_10)
    assert one.headers["connection"] == "close"


def test_empty_iterable(harness):
    one, two = ask(harness, answer(), GET, NEXT)
    assert (one.headers["content-length"], one.body) == ("0", b"")
    assert two.status == 200


@pytest.mark.parametrize("application", [answer(b"abc"), answer(b"abc", headers=[("Content-Length", "3")])])
def test_head_has_no_body(harness, application):
    head = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
    one, two = ask(harness, application, head, NEXT, methods=("HEAD", "GET"))
    assert (one.status, one.body) == (200, b"")
    assert two.body == b"abc"


def test_head_gets_no_length_that_get_would_not_have(harness):
    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        return [b""]

    (one,) = ask(harness, application, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", methods=("HEAD",))
    assert "content-length" not in one.headers


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_status_without_body(harness, status):
    one, two = ask(harness, answer(b"abc", status=status, headers=[("Content-Length", "3")]), GET, NEXT)
    assert (one.body, "transfer-encoding" in one.headers) == (b"", False)
    assert ("content-length" in one.headers) == (status[:3] == "304")
    assert two.status == one.status


def test_write(harness):
    def application(environ, start_response):
        write = start_response("200 OK", PLAIN)
        write(b"a")
        write(b"b")
        return [b"c"]

    one, two = ask(harness, application, GET, NEXT)
    assert one.body == two.body == b"abc"


def test_start_response_in_a_generator(harness):
    def application(environ, start_response):
        start_response("201 Created", PLAIN)
        yield b"a"

    assert ask(harness, application)[0].status == 201


def test_the_first_piece_leaves_before_the_second_is_made(harness):
    go = gevent.event.Event()

    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        yield b"first"
        go.wait()
        yield b"second"

    harness.application = application
    with harness.connect() as client:
        client.send(NEXT)
        assert b"first" in client.read_until(b"first\r\n")
        assert harness.engine.requests == harness.counter(ACTIVE) == 1
        go.set()
        assert client.read_all().endswith(b"second\r\n0\r\n\r\n")


# What breaks.


def breaks(environ, start_response):
    raise RuntimeError("broken application")


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt, gevent.GreenletExit, gevent.Timeout])
def test_error_before_the_head(harness, error):
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/next":
            return echo(environ, start_response)
        start_response("200 OK", [("Set-Cookie", "secret")])
        raise error

    one, two = ask(harness, application, GET, NEXT)
    assert (one.status, one.whole, "set-cookie" in one.headers) == (500, True, False)
    assert two.status == 200
    assert harness.counter(ERRORS) == 1
    assert len(harness.errors()) == 1
    assert error.__name__ in harness.errors()[0]


@pytest.mark.parametrize("headers", [PLAIN, [("Content-Length", "9")]])
def test_error_after_the_head(harness, headers):
    def application(environ, start_response):
        start_response("200 OK", headers)
        yield b"abc"
        raise RuntimeError

    (one,) = ask(harness, application, GET, NEXT)
    assert (one.status, one.body, one.whole) == (200, b"abc", False)
    assert harness.counter(ERRORS) == 1


def test_error_after_the_head_of_http_10_resets(harness):
    go = gevent.event.Event()

    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        yield b"abc"
        go.wait()
        raise RuntimeError

    harness.application = application
    with harness.connect(tcp=True) as client:
        client.send(GET_10)
        client.read_until(b"abc")
        go.set()
        with pytest.raises(ConnectionResetError):
            client.read_all()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200", PLAIN),
        ("200OK", PLAIN),
        ("20 OK", PLAIN),
        ("100 Continue", PLAIN),
        ("600 \n", PLAIN),
        ("200 OK\r\nA: b", PLAIN),
        (200, PLAIN),
        (b"200 OK", PLAIN),
        ("200 OK", [("A", "b\r\nC: d")]),
        ("200 OK", [("A", "b\n")]),
        ("200 OK", [("A\r\nB", "c")]),
        ("200 OK", [("A:", "c")]),
        ("200 OK", [("", "c")]),
        ("200 OK", [("A", "b\0")]),
        ("200 OK", [("A", "\u20ac")]),
        ("200 OK", [("A", 1)]),
        ("200 OK", [(b"A", b"b")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "3"), ("Content-Length", "3")]),
        ("200 OK", [("Content-Length", "\u0663")]),
        ("200 OK", [("Connection", "a\r\nB: c")]),
        ("200 OK", [("Connection", None)]),
    ],
)
def test_refused_heads(harness, status, headers):
    one, two = ask(harness, answer(b"abc", status=status, headers=headers), GET, NEXT)
    assert (one.status, two.status) == (500, 500)
    assert len(harness.errors()) == 2


@pytest.mark.parametrize("piece", ["abc", None, 1, bytearray(b"abc")])
def test_a_body_is_bytes(harness, piece):
    (one,) = ask(harness, answer(piece), NEXT)
    assert one.status == 500


def test_no_start_response(harness):
    (one,) = ask(harness, lambda environ, start_response: [b"abc"], NEXT)
    assert one.status == 500
    assert "start_response" in harness.errors()[0]


def test_nothing_returned(harness):
    def application(environ, start_response):
        start_response("200 OK", PLAIN)

    assert ask(harness, application, NEXT)[0].status == 500


def test_start_response_twice(harness):
    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        start_response("200 OK", PLAIN)
        return [b""]

    assert ask(harness, application, NEXT)[0].status == 500


def test_exc_info_replaces_the_head(harness):
    def application(environ, start_response):
        start_response("200 OK", [("A", "b")])
        try:
            raise RuntimeError
        except RuntimeError:
            start_response("503 Sorry", [("C", "d")], sys.exc_info())
        return [b"sorry"]

    (one,) = ask(harness, application, NEXT)
    assert (one.status, one.headers["c"], "a" in one.headers, one.body) == (503, "d", False, b"sorry")
    assert harness.counter(ERRORS) == 1


def test_exc_info_after_the_head_is_raised(harness):
    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        yield b"abc"
        try:
            raise RuntimeError("too late")
        except RuntimeError:
            start_response("500 Sorry", [], sys.exc_info())

    (one,) = ask(harness, application)
    assert (one.status, one.whole) == (200, False)
    assert "too late" in harness.errors()[0]


def test_body_longer_than_its_length(harness):
    (one,) = ask(harness, answer(b"ab", b"cdef", headers=[("Content-Length", "3")]), GET, NEXT)
    assert one.body == b"abc"
    assert "longer" in harness.errors()[0]


def test_body_shorter_than_its_length(harness):
    (one,) = ask(harness, answer(b"ab", headers=[("Content-Length", "3")]), GET, NEXT)
    assert (one.body, one.whole) == (b"ab", False)
    assert "shorter" in harness.errors()[0]


class Closing:
    """An iterable that counts its close() calls."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = 0

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("pieces", [[b"abc"], [], [RuntimeError()], [b"abc", RuntimeError()], ["wrong type"]])
def test_close_is_called_once(harness, pieces):
    result = Closing(pieces)

    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        return result

    ask(harness, application)
    assert result.closed == 1


def test_close_is_called_when_the_client_is_gone(harness):
    result = Closing(b"x" * 100_000 for _ in range(1000))

    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        return result

    harness.application = application
    with harness.connect() as client:
        client.send(GET)
        assert harness.engine.requests == 1
    wait_for(lambda: harness.engine.requests == 0)
    assert result.closed == 1
    assert not harness.errors()
    assert harness.counter(ERRORS) == 0


def test_error_in_close_does_not_break_the_response(harness):
    class Result(Closing):
        def close(self):
            raise RuntimeError("in close")

    def application(environ, start_response):
        start_response("200 OK", PLAIN)
        return Result([b"abc"])

    one, two = ask(harness, application, GET, NEXT)
    assert (one.body, one.whole, two.body) == (b"abc", True, b"abc")
    assert "in close" in harness.errors()[0]


def test_the_application_kills_its_own_greenlet(harness):
    def application(environ, start_response):
        if environ["PATH_INFO"] == "/next":
            return echo(environ, start_response)
        gevent.kill(gevent.getcurrent(), block=False)
        gevent.sleep(1)
        raise AssertionError("it lives")

    harness.application = application
    with harness.connect() as client:
        client.send(GET)
        assert parse(client.read_until(b"Error\n"))[0].status == 500
        client.send(NEXT)
        assert parse(client.read_all())[0].status == 200


# The body.


def reads(*calls):
    """An application that answers with the repr of what the calls on wsgi.input return."""

    def application(environ, start_response):
        stream = environ["wsgi.input"]
        seen = [list(stream) if call == "iter" else getattr(stream, call[0])(*call[1:]) for call in calls]
        data = repr(seen).encode()
        start_response("200 OK", [("Content-Length", str(len(data)))])
        return [data]

    return application


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("read",), ("read",)], [b"one\ntwo\r\nthree", b""]),
        ([("read", -1)], [b"one\ntwo\r\nthree"]),
        ([("read", 5), ("read", 100), ("read", 1)], [b"one\nt", b"wo\r\nthree", b""]),
        ([("read", 0), ("readline",), ("read",)], [b"", b"one\n", b"two\r\nthree"]),
        ([("readline",)] * 4, [b"one\n", b"two\r\n", b"three", b""]),
        ([("readline", 2), ("readline", 100)], [b"on", b"e\n"]),
        ([("readlines",)], [[b"one\n", b"two\r\n", b"three"]]),
        ([("readlines", 3), ("read",)], [[b"one\n"], b"two\r\nthree"]),
        (["iter"], [[b"one\n", b"two\r\n", b"three"]]),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_input(harness, calls, expected, chunked, slow):
    harness.application = reads(*calls)
    head = b"POST / HTTP/1.1\r\nHost: x\r\n"
    if chunked:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n5\r\none\nt\r\n9\r\nwo\r\nthree\r\n0\r\n\r\n"
    else:
        data = head + b"Content-Length: 14\r\n\r\none\ntwo\r\nthree"
    data += NEXT.replace(b"GET", b"GET")
    answers = harness.talk(*(data[i : i + 1] for i in range(len(data))) if slow else (data,))
    assert answers[0].body == repr(expected).encode()
    assert len(answers) == 2


def test_input_without_a_body(harness):
    calls = [("read",), ("read", 5), ("readline",), ("readlines",), "iter"]
    (one,) = ask(harness, reads(*calls), NEXT)
    assert one.body == repr([b"", b"", b"", [], []]).encode()


@pytest.mark.parametrize("framing", [b"Content-Length: 10\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"])
@pytest.mark.parametrize("size", [-1, 2, 100])
def test_a_body_cut_short_never_looks_complete(harness, framing, size):
    seen = []

    def application(environ, start_response):
        try:
            while seen[-1:] != [b""]:
                seen.append(environ["wsgi.input"].read(size))
        except OSError as error:
            seen.append(error)
        start_response("200 OK", PLAIN)
        return [b"answered"]

    (one,) = ask(harness, application, b"POST / HTTP/1.1\r\nHost: x\r\n" + framing)
    assert isinstance(seen[-1], OSError)
    assert b"" not in seen
    assert one.body == b"answered"
    assert one.headers["connection"] == "close"


def test_a_body_cut_short_is_the_clients_fault(harness):
    (one,) = ask(harness, echo, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
    assert one.status == 400
    assert not harness.errors()
    assert harness.counter(ERRORS) == 0


def test_100_continue_when_the_application_reads(harness):
    with harness.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc" + NEXT)
        one, two = parse(client.read_all())
        assert (one.echo["body"], two.status) == ("abc", 200)


def test_no_100_continue_when_it_does_not(harness):
    with harness.connect() as client:
        client.send(b"POST /unread HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        client.send(NEXT)
        (one,) = parse(client.read_all())
        assert (one.status, one.headers["connection"]) == (200, "close")


def test_a_large_unread_body_closes_but_the_answer_arrives(harness):
    harness.application = answer(b"no, thanks", headers=[("Content-Length", "10")])
    with harness.connect(tcp=True) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n" + bytes(300_000))
        client.finish()
        (one,) = parse(client.read_all())
        assert (one.body, one.headers["connection"]) == (b"no, thanks", "close")


def test_input_read_by_a_greenlet_that_outlives_the_request(harness):
    outcome = []

    def read(stream):
        try:
            outcome.append(stream.read())
        except OSError as error:
            outcome.append(error)

    def application(environ, start_response):
        gevent.spawn(read, environ["wsgi.input"])
        gevent.sleep(0)
        return answer(b"x")(environ, start_response)

    harness.application = application
    with harness.connect(tcp=True) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        (one,) = parse(client.read_all())
        assert one.body == b"x"
        wait_for(lambda: outcome)
        assert isinstance(outcome[0], OSError)


def test_reading_and_writing_at_once(harness):
    def application(environ, start_response):
        write = start_response("200 OK", PLAIN)

        def copy():
            while piece := environ["wsgi.input"].read(65536):
                write(piece)

        reader = gevent.spawn(copy)
        reader.get()
        return []

    harness.application = application
    with harness.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"5\r\nhello\r\n")
        for _ in range(50):
            client.send(b"10000\r\n%b\r\n" % bytes(65536))
            client.receive()
        client.send(b"0\r\n\r\n")
        (one,) = parse(client.read_all())
        assert one.body == b"hello" + bytes(65536 * 50)


def test_a_body_that_comes_after_the_answer_does_not_destroy_it(harness):
    harness.application = answer(b"no, thanks", headers=[("Content-Length", "10"), ("A", "b")])
    with harness.connect(tcp=True) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert harness.engine.requests == 0
        for _ in range(10):
            client.sock.send(bytes(100_000))  # a reset would be an error here
            turn()
        client.finish()
        assert parse(client.read_all())[0].body == b"no, thanks"


def test_input_after_the_request(harness):
    kept = []

    def application(environ, start_response):
        kept.append(environ["wsgi.input"])
        return answer(b"x")(environ, start_response)

    one, two = ask(harness, application, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", NEXT)
    assert (one.body, two.body) == (b"x", b"x")
    assert kept[0].read() in (b"", b"abc")  # its own bytes if they had come with the head, never the next request's


def test_upload_waits_for_the_application(harness):
    go = gevent.event.Event()

    def application(environ, start_response):
        go.wait()
        size = sum(map(len, iter(lambda: environ["wsgi.input"].read(65536), b"")))
        return answer(b"%d" % size)(environ, start_response)

    harness.application = application
    with harness.connect(tcp=True) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 30000000\r\n\r\n")
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += client.sock.send(bytes(65536))
                turn()
        assert sent < 30_000_000
        go.set()
        while sent < 30_000_000:
            client.send(bytes(min(65536, 30_000_000 - sent)))
            sent += min(65536, 30_000_000 - sent)
        assert parse(client.read_all())[0].body == b"30000000"


# Streams, files, hints.


def test_a_slow_reader_holds_the_application_back(harness):
    made = []

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "30000000")])
        for _ in range(300):
            made.append(1)
            yield bytes(100_000)

    harness.application = application
    with harness.connect() as client:
        client.send(NEXT)
        wait_for(lambda: len(made) > 1)
        for _ in range(20):
            turn()
        assert len(made) < 100
        (one,) = parse(client.read_all())
        assert (len(one.body), one.whole) == (30_000_000, True)
    assert harness.counter(BYTES_OUT) > 30_000_000


def test_early_hints(harness):
    def application(environ, start_response):
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        return answer(b"x")(environ, start_response)

    one, two, three, four = ask(harness, application, GET, NEXT)
    assert [one.status, two.status, three.status, four.status] == [103, 200, 103, 200]
    assert one.headers == {"link": "</a.css>; rel=preload"}
    (only,) = ask(harness, application, GET_10)
    assert only.status == 200


def test_early_hints_cannot_split(harness):
    def application(environ, start_response):
        environ["wsgi.early_hints"]([("Link", "a\r\nB: c")])

    assert [one.status for one in ask(harness, application, NEXT)] == [500]


# environ and the whole.


def test_validator(harness):
    def application(environ, start_response):
        environ["wsgi.input"].read(2)
        environ["wsgi.errors"].write("")
        start_response("200 OK", PLAIN)
        return [b"abc"]

    checked = validator(application)
    post = b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"
    answers = ask(harness, checked, GET, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", post, NEXT)
    assert not harness.errors()
    assert [one.status for one in answers] == [200] * 4


def test_environ(harness):
    seen = {}

    def application(environ, start_response):
        seen.update(environ)
        return answer(b"x")(environ, start_response)

    harness.application = application
    with harness.connect(tcp=True) as client:
        client.send(NEXT)
        client.read_all()
        host, port = client.sock.getsockname()
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (host, str(port))
    assert (seen["SERVER_NAME"], seen["SCRIPT_NAME"], seen["wsgi.url_scheme"]) == ("127.0.0.1", "", "http")
    assert seen["SERVER_PORT"].isdigit()
    assert (seen["wsgi.version"], seen["wsgi.run_once"], seen["wsgi.input_terminated"]) == ((1, 0), False, True)
    assert (seen["reuseport.generation"], seen["reuseport.worker"]) == (3, "3.1")
    assert type(seen) is dict


def test_environ_is_each_requests_own(harness):
    def application(environ, start_response):
        assert "left" not in environ
        environ["left"] = environ["SERVER_NAME"] = "behind"
        return answer(b"x")(environ, start_response)

    assert [one.status for one in ask(harness, application, GET, GET, NEXT)] == [200] * 3


def test_counters(harness):
    with harness.connect() as client:
        assert harness.counter(CONNECTIONS) == harness.engine.connections == 1
        client.send(GET + GET)
        wait_for(lambda: harness.counter(REQUESTS) == 2)  # in one turn of the loop, or in two
        assert (harness.counter(ACTIVE), harness.counter(ERRORS)) == (0, 0)
        client.receive()
        assert harness.counter(BYTES_OUT) == len(client.received)
    wait_for(lambda: harness.counter(CONNECTIONS) == 0)
    ask(harness, breaks)
    assert (harness.counter(REQUESTS), harness.counter(ACTIVE), harness.counter(ERRORS)) == (3, 0, 1)


# --- what is counted


def test_each_request_leaves_its_latency_and_the_class_of_its_status(harness):
    def application(environ, start_response):
        status = environ["PATH_INFO"][1:]
        gevent.sleep(0.05 if status == "302" else 0)
        start_response(f"{status} X", [])
        return [b""]

    harness.application = application
    for code in (200, 204, 302, 404, 503, 500):
        harness.talk(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % code)
    classes = {"redirections": 1, "client_errors": 1, "server_errors": 2, "unfinished": 0, "upgraded": 0}
    assert {name: harness.counter(scoreboard.NAMES[name]) for name in classes} == classes
    assert len(harness.engine.latencies) == 6
    assert min(harness.engine.latencies) >= 0
    assert max(harness.engine.latencies) == harness.engine.latencies[2] >= 0.05


def test_what_the_server_refuses_has_a_status_and_no_latency(harness):
    assert harness.talk(b"GET / HTTP/1.1\r\n\r\n")[0].status == 400
    assert (harness.counter(scoreboard.CLIENT_ERRORS), harness.counter(REQUESTS)) == (1, 1)
    assert harness.engine.latencies == []


def test_a_latency_ends_with_the_last_byte_and_not_with_close(harness):
    class Slow(list):
        def close(self):
            gevent.sleep(0.2)

    def application(environ, start_response):
        start_response("200 OK", [])
        return Slow([b"x", b"y"])

    harness.application = application
    harness.talk(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wait_for(lambda: harness.engine.latencies)
    assert harness.engine.latencies[0] < 0.2
