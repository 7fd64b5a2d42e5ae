"""What the corpus cannot show of the parser: what it remembers."""

from __future__ import annotations

import pytest

from reuseport.worker.request import CACHED_LINES, CHUNKED, HeadParser, RequestError

TEMPLATE = dict.fromkeys(
    ("REQUEST_METHOD", "SERVER_PROTOCOL", "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"), ""
)


@pytest.fixture
def parser():
    return HeadParser(limit_line=8190, limit_fields=100, limit_field_size=8190, limit_body=0)


def test_parse(parser):
    head = b"POST /a?b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue"
    environ, length, keep_alive, expects_continue = parser.parse(head, TEMPLATE)
    assert (length, keep_alive, expects_continue) == (CHUNKED, True, True)
    assert environ == {
        "REQUEST_METHOD": "POST",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b",
        "RAW_URI": "/a?b",
        "REQUEST_URI": "/a?b",
        "HTTP_HOST": "x",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "HTTP_EXPECT": "100-continue",
    }
    assert set(TEMPLATE.values()) == {""}


def test_a_remembered_line_is_judged_in_each_head(parser):
    one, two = b"GET / HTTP/1.1\r\nHost: x", b"\r\nContent-Length: 5"
    for _ in range(2):
        assert parser.parse(one + two, TEMPLATE)[1] == 5
        with pytest.raises(RequestError):
            parser.parse(one + two + two, TEMPLATE)
        with pytest.raises(RequestError):
            parser.parse(b"GET / HTTP/1.1" + two, TEMPLATE)


def test_the_memory_for_lines_is_bounded(parser):
    for i in range(3 * CACHED_LINES):
        head = b"GET /%d HTTP/1.1\r\nHost: host%d\r\nA: %d\r\nB: %b" % (i, i, i, b"b" * 1000)
        environ = parser.parse(head, TEMPLATE)[0]
        assert (environ["PATH_INFO"], environ["HTTP_HOST"], environ["HTTP_A"]) == (f"/{i}", f"host{i}", str(i))
    lines = parser._field.__self__
    assert max(len(lines), len(parser._request_lines), sum(map(len, parser._names.values()))) <= CACHED_LINES
    assert max(map(len, lines)) < 1000
