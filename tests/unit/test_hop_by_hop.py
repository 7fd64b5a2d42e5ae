"""Hop-by-hop fields that an application sends are dropped with one warning, or are errors with --strict-wsgi."""

from __future__ import annotations

import pytest
from http_harness import Harness
from tls_harness import TlsHarness

GET = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
EVENTS = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
FIELDS = [
    ("Connection", "keep-alive"),
    ("connection", "Close"),
    ("Keep-Alive", "timeout=5, max=100"),
    ("TRANSFER-ENCODING", "chunked"),
    ("Upgrade", "h2c"),
    ("Trailer", "X-Sum"),
    ("TE", "trailers"),
    ("Proxy-Authenticate", "Basic"),
]
WAYS = pytest.mark.parametrize("way", [Harness, TlsHarness])
THREADS = pytest.mark.parametrize("threads", [0, 2])


@pytest.fixture
def make():
    harnesses = []

    def make(application, kind=Harness, **options):
        harnesses.append(kind(application, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.close()


def sending(*fields, hints=()):
    """An application that sends events under these fields."""

    def application(environ, start_response):
        if hints:
            environ["wsgi.early_hints"]([*hints, ("Link", "</a.css>; rel=preload")])
        start_response("200 OK", [*EVENTS, *fields])
        return iter([b"data: 1\n\n", b"data: 2\n\n"])

    return application


@WAYS
@THREADS
def test_they_are_dropped_with_one_warning_for_all(make, way, threads):
    harness = make(sending(*FIELDS), way, threads=threads)
    one, two = harness.talk(GET + LAST)
    for answer in (one, two):
        assert (answer.status, answer.body, answer.whole) == (200, b"data: 1\n\ndata: 2\n\n", True)
        assert answer.headers.pop("transfer-encoding") == "chunked"
        assert {"content-type", "cache-control", "date"} <= answer.headers.keys()
        assert not {name.lower() for name, _ in FIELDS[2:]} & answer.headers.keys()
    assert "connection" not in one.headers, "the connection goes on, which is the server's decision"
    assert two.headers["connection"] == "close"
    (warning,) = harness.errors()
    assert "Connection" in warning
    assert "--strict-wsgi" in warning
    assert "/events" in warning
    harness.application = sending(("Upgrade", "x"))
    assert harness.talk(LAST)[0].status == 200
    assert len(harness.errors()) == 1


@THREADS
def test_a_length_still_counts_beside_them(make, threads):
    harness = make(sending(("Transfer-Encoding", "chunked"), ("Content-Length", "18")), threads=threads)
    (one,) = harness.talk(LAST)
    assert "transfer-encoding" not in one.headers
    assert (one.headers["content-length"], one.body, one.whole) == ("18", b"data: 1\n\ndata: 2\n\n", True)


@pytest.mark.parametrize("options", [{"request_id": "make"}, {}])
def test_they_are_dropped_from_a_client_of_http_10(make, options):
    harness = make(sending(*FIELDS), **options)
    (one,) = harness.talk(b"GET / HTTP/1.0\r\n\r\n")
    assert (one.status, one.body, one.headers["connection"]) == (200, b"data: 1\n\ndata: 2\n\n", "close")


@WAYS
@THREADS
def test_strict_answers_500(make, way, threads):
    harness = make(sending(("Connection", "keep-alive")), way, threads=threads, strict_wsgi=True)
    one, two = harness.talk(GET + LAST)
    assert (one.status, two.status) == (500, 500)
    assert len(harness.errors()) == 2, "each is an error"
    harness.application = sending()
    assert harness.talk(LAST)[0].status == 200


def test_strict_raises_where_the_application_says_it(make):
    def application(environ, start_response):
        with pytest.raises(ValueError, match=r"Keep-Alive.*PEP 3333"):
            start_response("200 OK", [("Keep-Alive", "5")])
        start_response("204 No Content", [])
        return []

    assert make(application, strict_wsgi=True).talk(LAST)[0].status == 204


@pytest.mark.parametrize(("strict", "statuses"), [(False, [103, 200]), (True, [500])])
def test_early_hints_are_judged_alike(make, strict, statuses):
    harness = make(sending(hints=[("Connection", "keep-alive")]), strict_wsgi=strict)
    answers = harness.talk(LAST)
    assert [answer.status for answer in answers] == statuses
    assert "connection" not in answers[0].headers or strict


def test_workers_that_share_memory_warn_once(make):
    told = bytearray(1)
    first, second = make(sending(*FIELDS)), make(sending(*FIELDS))
    first.engine._told = second.engine._told = told
    assert first.talk(LAST)[0].status == second.talk(LAST)[0].status == 200
    assert len(first.errors() + second.errors()) == 1
