"""One request's head: bytes in, the request's part of environ out; no I/O.

The rule is to fail closed. What two readers of the same bytes could understand differently (a bare line feed, a
second Host, a space before a colon, a Content-Length beside a Transfer-Encoding) is refused and its connection
closed, for behind that difference hides a smuggled request.

The outcome never depends on how the bytes arrive. Lines are judged in order, each when it is complete or too long;
what concerns the head as a whole (Host, framing) is judged when it has ended. `HeadParser.check` judges the lines of
a head that is still arriving, `HeadParser.parse` those of a whole one, with the same two functions.

The same lines come again and again (User-Agent, Accept, Host), so each distinct line is judged, split and decoded once
and then looked up. That costs less than having each field handed over by a parser in C, and any method and every rule
above is ours to decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from ..ipc.inflight import NAMELESS, NO_HOST, named

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
FIELD = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")  # RFC 9112 section 5; no obs-fold, no control bytes
METHOD = re.compile(TOKEN)
VISIBLE = bytes(range(0x21, 0x7F)).replace(b"#", b"")  # what a request-target may hold; a fragment is never sent
VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
ABSOLUTE = re.compile(r"(?i:https?)://([^/?]+)(.*)")
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
BARE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")  # a CR or LF that is not half of a CRLF

CHUNKED = -1  # as a body's length: its end is told by its chunks
UPGRADE = -2  # as a body's length: there is none, and the client would speak another protocol (RFC 9110 section 7.8)
HEAD_BYTES = 65536  # no head is longer, whatever the limits on its parts would add up to
CACHED_LINES = 4096
CACHED_LINE_BYTES = 320
VERSION_BYTES = len(" HTTP/1.1")
# Fields that only one of may come (RFC 9110 section 5.3): which of two would count is anyone's guess.
SINGLE = {"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE"}
# The key of a line that environ must not get. The template has it and it is set after the fields, so a dropped line
# shows as an environ that grew by less than the number of lines.
DROPPED = "SERVER_PROTOCOL"


class RequestError(Exception):
    """A request that is refused. `status`: the HTTP status that says so; the text is for the client and the log."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Lines(dict[bytes, Any]):
    """What each line means. A line that is missing is judged by `judge`, and kept when it is short."""

    def __init__(self, judge: Callable[[bytes], Any]) -> None:
        self._judge = judge

    def __missing__(self, line: bytes) -> Any:
        meaning = self._judge(line)
        if len(line) <= CACHED_LINE_BYTES:
            if len(self) >= CACHED_LINES:
                self.clear()
            self[line] = meaning
        return meaning


def too_long(line: bytes, limit: int, error: RequestError) -> RequestError:
    """The error of a line beyond its limit: what comes first in the line decides, as when it arrives byte by byte."""
    return RequestError(400, "bare CR or LF") if BARE.search(line, 0, limit) else error


class HeadParser:
    """Judges heads under a worker's limits: bytes of the request line, number of fields, bytes of each field line."""

    def __init__(self, *, limit_line: int, limit_fields: int, limit_field_size: int, limit_body: int) -> None:
        self.limit_line = limit_line or HEAD_BYTES
        self.limit_fields = limit_fields or HEAD_BYTES
        self.limit_body = limit_body
        self.limit_field_size = limit_field_size or HEAD_BYTES
        self.limit_head = max(HEAD_BYTES, self.limit_line + self.limit_field_size + 4)
        self._request_lines = Lines(self._judge_request_line)
        self._field = Lines(self._judge_field).__getitem__
        # By host and request line. A host that is a key has been judged; None is one in HTTP/1.0 only.
        self._names: dict[str | None, dict[bytes, bytes]] = {}
        self._named = 0
        self.name = NAMELESS  # of the request that was parsed last

    def check(self, data: bytes | bytearray, checked: int) -> int:
        """Judge the lines of an incomplete head, those from offset `checked` on.

        Returns the offset from which the next call must go on. RequestError as soon as the head cannot become valid.
        """
        fields = data.count(b"\n", 0, checked) - 1
        while (end := data.find(b"\r\n", checked)) >= 0:
            if end > self.limit_head:
                break
            line = bytes(data[checked:end])
            if fields < 0:
                self._request_lines[line]
            elif fields == self.limit_fields:
                raise RequestError(431, "too many header fields")
            else:
                self._field(line)
            fields += 1
            checked = end + 2
        rest = bytes(data[checked : self.limit_head + 1])
        limit = self.limit_line if fields < 0 else self.limit_field_size
        if fields >= self.limit_fields and rest.strip(b"\r"):
            raise RequestError(431, "too many header fields")
        if BARE.search(rest, 0, limit):
            raise RequestError(400, "bare CR or LF")
        if len(rest) - rest.endswith(b"\r") > limit:
            raise RequestError(414 if fields < 0 else 431, "the request line or a header field is too long")
        if len(data) > self.limit_head:
            raise RequestError(431, "the header is too long")
        return checked

    def parse(self, head: bytes | bytearray, template: dict[str, Any]) -> tuple[dict[str, Any], int, bool, bool]:
        """Judge a whole head (without the empty line that ends it) and fill a copy of `template` from it.

        Returns environ; the body's length in bytes, 0 for none, CHUNKED, or UPGRADE; whether the client would go on;
        whether it waits for 100 Continue. RequestError with 400, 413, 414, 417, 431, 501 or 505.
        """
        if len(head) > self.limit_head:
            self.check(head, 0)
            raise RequestError(431, "the header is too long")
        fields = head.split(b"\r\n") if type(head) is bytes else bytes(head).split(b"\r\n")
        line = fields.pop(0)
        method, protocol, uri, authority, path, query = self._request_lines[line]
        if len(fields) > self.limit_fields:
            for line in fields[: self.limit_fields]:
                self._field(line)
            raise RequestError(431, "too many header fields")
        environ = template.copy()
        environ.update(map(self._field, fields))
        if len(environ) != len(template) + len(fields):
            self._combine(environ, fields)
        environ["REQUEST_METHOD"] = method
        environ["SERVER_PROTOCOL"] = protocol
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri
        environ["PATH_INFO"] = path
        environ["QUERY_STRING"] = query

        get = environ.get
        is_11 = protocol != "HTTP/1.0"
        host = get("HTTP_HOST")
        try:
            self.name = self._names[host][line]
        except KeyError:
            self.name = self._name(host, line, is_11)
        if authority is not None:
            self.name = self._name(authority, line, is_11)
            environ["HTTP_HOST"] = authority
        connection = get("HTTP_CONNECTION")
        keep_alive = is_11 if connection is None else connection == "keep-alive" or _keeps_alive(connection, is_11)
        coding = get("HTTP_TRANSFER_ENCODING")
        size = get("CONTENT_LENGTH")
        length = 0 if coding is None and size is None else self._judge_framing(coding, size, is_11)
        if connection is not None and not length and is_11 and "HTTP_UPGRADE" in environ and _upgrades(connection):
            length = UPGRADE
        expect = get("HTTP_EXPECT")
        if expect is None or not is_11:
            return environ, length, keep_alive, False
        if expect.lower() != "100-continue":
            raise RequestError(417, "an unknown expectation")
        return environ, length, keep_alive, length != 0 and length != UPGRADE

    def _judge_request_line(self, line: bytes) -> tuple[str, str, str, str | None, str, str]:
        """RFC 9112 section 3: single spaces and nothing else, and any method.

        Returns method, protocol, target, and of the target: its authority in absolute-form (which replaces Host,
        section 3.2.2), decoded path, query. The path of "*" is empty, for it means the server (section 3.2.4).
        """
        if len(line) > self.limit_line:
            raise too_long(line, self.limit_line, RequestError(414, "the request line is too long"))
        try:
            name, target, version = line.split(b" ")
        except ValueError:
            raise RequestError(400, "malformed request line") from None
        if not METHOD.fullmatch(name):
            raise RequestError(400, "malformed method")
        if not target or target.translate(None, VISIBLE):
            raise RequestError(400, "malformed request target")
        match = VERSION.fullmatch(version)
        if match is None:
            raise RequestError(400, "malformed HTTP version")
        if match[1] != b"1":
            raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        # RFC 9110 section 2.5: a minor version beyond ours is served as the highest that we know.
        protocol = "HTTP/1.0" if match[2] == b"0" else "HTTP/1.1"
        method = name.decode("ascii")
        if method == "CONNECT":
            raise RequestError(501, "this is no proxy")
        uri = target.decode("ascii")
        authority = None
        origin = uri
        if uri == "*" and method == "OPTIONS":
            origin = ""
        elif uri[0] != "/":
            absolute = ABSOLUTE.fullmatch(uri)
            if absolute is None:
                raise RequestError(400, "malformed request target")
            authority = absolute[1]
            origin = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
        path, _, query = origin.partition("?")
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        return method, protocol, uri, authority, path, query

    def _judge_field(self, line: bytes) -> tuple[str, str]:
        """RFC 9112 section 5: a name, a colon, a value of one line. Returns environ key and value."""
        if len(line) > self.limit_field_size:
            raise too_long(line, self.limit_field_size, RequestError(431, "a header field is too long"))
        match = FIELD.fullmatch(line)
        if match is None:
            raise RequestError(400, "malformed header field")
        name = match[1].decode("ascii").upper()
        if "_" in name:
            key = DROPPED  # "X-Id" and "X_Id" would share a key; who trusts the first must not be sent the second
        elif name in {"CONTENT-TYPE", "CONTENT-LENGTH"}:
            key = name.replace("-", "_")
        else:
            key = "HTTP_" + name.replace("-", "_")
        return key, match[2].strip(b" \t").decode("latin-1")

    def _combine(self, environ: dict[str, Any], fields: list[bytes]) -> None:
        """Join the fields that came more than once (RFC 9110 section 5.3) and drop what must not come at all."""
        seen: dict[str, str] = {}
        for line in fields:
            key, value = self._field(line)
            if key == DROPPED:
                continue
            if key in seen:
                if key in SINGLE:
                    raise RequestError(400, "a header field that may come once came twice")
                value = seen[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
            seen[key] = value
        environ.update(seen)

    def _name(self, host: str | None, line: bytes, is_11: bool) -> bytes:
        """The name of a request that has none yet, after its Host has been judged (RFC 9112 section 3.2)."""
        if host is None:
            if is_11:
                raise RequestError(400, "no Host")
        elif host not in self._names and not HOST.fullmatch(host):
            raise RequestError(400, "malformed Host")
        name = named(b"%b\0%b" % (line[:-VERSION_BYTES], host.encode("ascii") if host else NO_HOST))
        if len(line) <= CACHED_LINE_BYTES:
            if self._named >= CACHED_LINES:
                self._names.clear()
                self._named = 0
            names = self._names.setdefault(host, {})
            self._named += line not in names
            names[line] = name
        return name

    def _judge_framing(self, coding: str | None, size: str | None, is_11: bool) -> int:
        """The body's length, or CHUNKED (RFC 9112 section 6.3). Never both, and no coding but "chunked" (6.1)."""
        if coding is None:
            if not (size.isascii() and size.isdigit()):
                raise RequestError(400, "malformed Content-Length")
            if len(size) > 18 or (self.limit_body and int(size) > self.limit_body):
                raise RequestError(413, "the body is too large")
            return int(size)
        if size is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding")
        if not is_11:
            raise RequestError(400, "Transfer-Encoding in HTTP/1.0")
        codings = [name.strip(" \t").lower() for name in coding.split(",")]
        if codings[-1] != "chunked" or "chunked" in codings[:-1] or "" in codings:
            raise RequestError(400, "the body's end cannot be told")
        if len(codings) > 1:
            raise RequestError(501, "an unknown transfer coding")
        return CHUNKED


def _upgrades(connection: str) -> bool:
    return "upgrade" in {option.strip(" \t") for option in connection.lower().split(",")}


def _keeps_alive(connection: str, is_11: bool) -> bool:
    """RFC 9112 section 9.3: HTTP/1.1 goes on unless told to close, HTTP/1.0 closes unless told to go on."""
    options = {option.strip(" \t") for option in connection.lower().split(",")}
    return "close" not in options and (is_11 or "keep-alive" in options)
