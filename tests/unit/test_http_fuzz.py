"""Raw bytes, spoilt in every way, in any pieces, with the client's end at any moment; the application reads all, some
or nothing. No traceback, no hang, no connection or greenlet left, and always valid answers or a close."""

from __future__ import annotations

import gc
import socket
import threading
import time

import gevent
import pytest
from examples import examples
from greenlet import greenlet
from http_harness import Harness, counted_fds, open_fds, parse, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reuseport.ipc.scoreboard import ACTIVE, CONNECTIONS

GOOD = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /some?a=b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /all HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world",
    b"PUT /some HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n",
    b"POST /none HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /yield HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
]
PARTS = [b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"\xff", b"-1"]


@st.composite
def spoilt(draw) -> list[bytes]:
    """A few requests behind each other, with bytes cut out, put in and doubled, and cut into pieces."""
    data = b"".join(draw(st.lists(st.sampled_from(GOOD), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.integers(0, 8))
        match draw(st.sampled_from(["cut", "put", "double", "noise"])):
            case "cut":
                data = data[:at] + data[at + cut :]
            case "put":
                data = data[:at] + draw(st.sampled_from(PARTS)) + data[at:]
            case "double":
                data = data[:at] + data[at : at + cut * 8] + data[at:]
            case "noise":
                data = data[:at] + draw(st.binary(max_size=8)) + data[at + cut :]
    ends = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True) if start < end]


def application(environ, start_response):
    path, body = environ["PATH_INFO"], environ["wsgi.input"]
    if path == "/yield":
        gevent.sleep(0) if threading.current_thread() is threading.main_thread() else time.sleep(0)
    read = body.read(4) if path == "/some" else b"" if path == "/none" else body.read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(read)))])
    return [read]


WAYS = {"greenlets": (0, False), "threads": (2, False), "buffered": (0, True)}


@pytest.fixture(scope="module", params=WAYS)
def harness(request):
    # A client that neither closes nor goes on must be gone before a test's patience is.
    limits = dict.fromkeys(("header_timeout", "body_timeout", "keep_alive", "send_timeout"), 0.5)
    threads, buffered = WAYS[request.param]
    harness = Harness(application, threads=threads, buffer_chunked=buffered, **limits)
    hub = gevent.get_hub()
    # An error in the loop's own callback goes to the hub, which prints it and goes on.
    hub.handle_error = lambda context, kind, value, tb: harness.log.append(("error", f"in the loop: {value!r}"))
    yield harness
    del hub.handle_error
    harness.close()


def greenlets() -> int:
    gc.collect()
    return sum(issubclass(type(kept), greenlet) and not kept.dead for kept in gc.get_objects())


@given(pieces=spoilt(), how=st.sampled_from(["finish", "finish", "finish", "close", "reset"]))
@settings(max_examples=examples(120), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_requests(harness, pieces, how):
    before = counted_fds()
    with harness.connect(tcp=how == "reset") as client:
        for piece in pieces:
            client.send(piece)
        if how == "finish":
            client.finish()
            # The methods are unknown where bytes were spoilt; a HEAD's answer promises bytes that do not come.
            check(client.read_all())
        elif how == "reset":
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: harness.engine.connections == 0 and harness.engine.requests == 0)
    assert not harness.errors()
    assert (harness.counter(CONNECTIONS), harness.counter(ACTIVE)) == (0, 0)
    assert counted_fds() <= before or open_fds() <= before


def check(data: bytes) -> None:
    """Valid answers and nothing else. An answer to HEAD promises a body that the next answer stands in the place of."""
    while data:
        at = data.find(b"HTTP/1.1 ", 1)
        first, data = (data, b"") if at < 0 else (data[:at], data[at:])
        (answer,) = parse(first)
        assert answer.status in (100, 200, 400, 408, 413, 414, 417, 431, 501, 505), answer


def test_the_fuzz_leaves_no_greenlet(harness):
    for data in GOOD * 3:
        harness.talk(data)
    before = greenlets()
    for data in GOOD * 30:
        harness.talk(data[:-1])
        harness.talk(data + data[:9])
    wait_for(lambda: harness.engine.connections == 0)
    assert greenlets() <= before
