"""h11 as an oracle: what the engine accepts, h11 reads the same way. (The engine refuses more: it fails closed.)"""

from __future__ import annotations

import h11
import pytest
from examples import examples
from http_harness import Harness, echo
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st


def mostly(good: list[bytes], bad: list[bytes]) -> st.SearchStrategy[bytes]:
    """One in twenty is bad: a request has many parts, and half of the requests should be good."""
    return st.sampled_from(good * (1 + 19 * len(bad) // len(good)) + bad)


METHODS = mostly([b"GET", b"POST", b"PURGE", b"get"], [b"G@T", b""])
TARGETS = mostly([b"/", b"/a%20b?c", b"//x", b"/" + b"a" * 300], [b"/a b", b"*", b"/\xe9", b"/#"])
VERSIONS = mostly([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"], [b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1"])
NAMES = mostly([b"A", b"x-y", b"X-Y", b"Connection", b"Cookie"], [b"A ", b" A", b"", b"\xe9"])
VALUES = mostly([b"b", b" b ", b"", b"\tb", b"b c", b"close", b"keep-alive", b"\xe9"], [b"\x00", b"\x7f"])
FIELDS = st.tuples(NAMES, VALUES).map(lambda field: field[0] + b":" + field[1])
FRAMING = st.sampled_from(
    [
        [],
        [b"Content-Length: 5"],
        [b"Content-Length: 05"],
        [b"Content-Length: 5", b"Content-Length: 5"],
        [b"Content-Length: 5, 5"],
        [b"Content-Length: +5"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: CHUNKED"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: gzip"],
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        b"hello!",
        b"hell",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b"2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
        b"5\r\nhello\r\n0\r\n",
        b"6\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\n0\n\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
    ]
)
ENDS = mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n"])


@st.composite
def requests(draw) -> bytes:
    end = draw(ENDS)
    fields = [b"Host: x"] * draw(st.sampled_from([1] * 18 + [0, 2]))
    fields += draw(st.lists(FIELDS, max_size=3)) + draw(FRAMING)
    line = b" ".join([draw(METHODS), draw(TARGETS), draw(VERSIONS)])
    data = end.join([line, *draw(st.permutations(fields)), b"", b""]) + draw(BODIES)
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=1)) + data[at:] if draw(st.integers(0, 9)) == 0 else data


def oracle(data: bytes):
    """Method, target, fields and body of the first request as h11 reads it; None if it refuses, or it is not whole."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    connection.receive_data(b"")
    request = None
    body = b""
    try:
        while True:
            match connection.next_event():
                case h11.Request() as request:
                    pass
                case h11.Data(data=piece):
                    body += piece
                case h11.EndOfMessage():
                    return request, body
                case _:
                    return None
    except h11.RemoteProtocolError:
        return None


@pytest.fixture(scope="module", params=[False, True], ids=["streamed", "buffered"])
def harness(request):
    harness = Harness(echo, buffer_chunked=request.param)
    yield harness
    harness.close()


@given(requests())
@settings(max_examples=examples(250), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_engine_accepts_h11_reads_the_same_way(harness, data):
    answers = harness.talk(data)
    assert not harness.errors()
    if not answers or answers[0].status != 200:
        event("refused")
        return
    event("accepted")
    read = oracle(data)
    assert read is not None
    request, body = read
    seen = answers[0].echo
    environ = seen["environ"]
    assert environ["REQUEST_METHOD"].encode() == request.method
    assert environ["RAW_URI"].encode() == request.target
    assert seen["body"].encode("latin-1") == body
    fields: dict[str, list[str]] = {}
    headers = request.headers
    if harness.engine.run_chunked is not None and any(name == b"transfer-encoding" for name, _ in headers):
        # RFC 9112 section 7.1.3: the length instead of the coding.
        headers = [(name, value) for name, value in headers if name != b"transfer-encoding"]
        headers.append((b"content-length", b"%d" % len(body)))
    for name, value in headers:
        key = name.decode().upper().replace("-", "_")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
        fields.setdefault(key, []).append(value.decode("latin-1"))
    for key, values in fields.items():
        assert environ[key].lower() == ("; " if key == "HTTP_COOKIE" else ",").join(values).lower()
    assert {key for key in environ if key.startswith("HTTP_")} == {key for key in fields if key.startswith("HTTP_")}
