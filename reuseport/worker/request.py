"""One request's head: bytes in, the request's part of environ out; no I/O.

The rule is to fail closed. What two readers of the same bytes could understand differently (a bare line feed, a
second Host, a space before a colon, a Content-Length beside a Transfer-Encoding) is refused and its connection
closed, for behind that difference hides a smuggled request.

The outcome never depends on how the bytes arrive. Lines are judged in order, each when it is complete or too long;
what concerns the head as a whole (Host, framing) is judged when it has ended. `HeadParser.check` judges the lines of
a head that is still arriving, `HeadParser.parse` those of a whole one, with the same two functions.

The same field lines come again and again (User-Agent, Accept, Host), so each distinct line is validated, split and
decoded once and then looked up: that costs half of what handing each field over from a C parser costs, and any method
and every rule above is ours to decide.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2
FIELD = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)")  # RFC 9112 section 5; no obs-fold, no control bytes
METHOD = re.compile(TOKEN)
VISIBLE = bytes(range(0x21, 0x7F)).replace(b"#", b"")  # what a request-target may hold; a fragment is never sent
VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(.*)")
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")
BARE = re.compile(rb"\r(?!\n|\Z)|(?<!\r)\n")  # a CR or LF that is not half of a CRLF

METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
PROTOCOLS = {b"HTTP/1.1": "HTTP/1.1", b"HTTP/1.0": "HTTP/1.0"}

CHUNKED = -1  # as a body's length: its end is told by its chunks
HEAD_BYTES = 65536  # no head is longer, whatever the limits on its parts would add up to
CACHED_LINES = 4096
CACHED_LINE_BYTES = 320
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


class Head(NamedTuple):
    """What a head says. `length`: bytes of the body, 0 for none, or CHUNKED. `keep_alive`: the client would go on."""

    environ: dict[str, Any]
    length: int
    keep_alive: bool
    expects_continue: bool


class FieldLines(dict[bytes, tuple[str, str]]):
    """Field line -> environ key and value; a line that is missing is judged, and kept when it is short."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __missing__(self, line: bytes) -> tuple[str, str]:
        if len(line) > self.limit:
            raise too_long(line, self.limit, RequestError(431, "a header field is too long"))
        match = FIELD.fullmatch(line)
        if match is None:
            raise RequestError(400, "malformed header field")
        name = match[1].decode("ascii").upper()
        # "X-Id" and "X_Id" would share a key; who trusts the first must not be sent the second.
        key = DROPPED if "_" in name else name.replace("-", "_")
        if key not in {"CONTENT_LENGTH", "CONTENT_TYPE", DROPPED}:
            key = "HTTP_" + key
        entry = key, match[2].strip(b" \t").decode("latin-1")
        if len(line) <= CACHED_LINE_BYTES:
            if len(self) >= CACHED_LINES:
                self.clear()
            self[line] = entry
        return entry


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
        self._field = FieldLines(self.limit_field_size).__getitem__
        self._hosts: set[str] = set()

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
                self._request_line(line)
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

    def parse(self, head: bytes, template: dict[str, Any]) -> Head:
        """Judge a whole head (without the empty line that ends it) and fill a copy of `template` from it.

        RequestError with 400, 413, 414, 417, 431, 501 or 505.
        """
        if len(head) > self.limit_head:
            self.check(head, 0)
            raise RequestError(431, "the header is too long")
        lines = head.split(b"\r\n")
        method, target, protocol = self._request_line(lines[0])
        fields = lines[1 : self.limit_fields + 1]
        environ = template.copy()
        environ.update(map(self._field, fields))
        if len(lines) - 1 > self.limit_fields:
            raise RequestError(431, "too many header fields")
        if len(environ) != len(template) + len(fields):
            self._combine(environ, fields)
        environ["REQUEST_METHOD"] = method
        environ["SERVER_PROTOCOL"] = protocol
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri = target.decode("ascii")
        path, _, environ["QUERY_STRING"] = (uri if uri[0] == "/" else self._other_form(environ, target)).partition("?")
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        return self._meaning(environ, protocol != "HTTP/1.0")

    def _request_line(self, line: bytes) -> tuple[str, bytes, str]:
        """Method, target and protocol (RFC 9112 section 3): single spaces, nothing else; any method."""
        if len(line) > self.limit_line:
            raise too_long(line, self.limit_line, RequestError(414, "the request line is too long"))
        try:
            name, target, version = line.split(b" ")
        except ValueError:
            raise RequestError(400, "malformed request line") from None
        method = METHODS.get(name)
        if method is None:
            if not METHOD.fullmatch(name):
                raise RequestError(400, "malformed method")
            method = name.decode("ascii")
        if not target or target.translate(None, VISIBLE):
            raise RequestError(400, "malformed request target")
        protocol = PROTOCOLS.get(version)
        if protocol is None:
            match = VERSION.fullmatch(version)
            if match is None:
                raise RequestError(400, "malformed HTTP version")
            if match[1] != b"1":
                raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
            protocol = "HTTP/1.1"  # RFC 9110 section 2.5: the highest minor version that we know
        if method == "CONNECT":
            raise RequestError(501, "this is no proxy")
        if target[0] != 0x2F and not (target == b"*" and method == "OPTIONS") and not ABSOLUTE.fullmatch(target):
            raise RequestError(400, "malformed request target")
        return method, target, protocol

    def _other_form(self, environ: dict[str, Any], target: bytes) -> str:
        """The path and query of a target in asterisk-form or absolute-form (RFC 9112 sections 3.2.2 and 3.2.4).

        "*" means the server and not a path, so PATH_INFO is empty. An absolute-form's authority replaces Host.
        """
        match = ABSOLUTE.fullmatch(target)
        if match is None:
            return ""
        authority, rest = match[1].decode("ascii"), match[2].decode("ascii")
        if not authority or not HOST.fullmatch(authority):
            raise RequestError(400, "malformed authority in the request target")
        if "HTTP_HOST" in environ or environ["SERVER_PROTOCOL"] == "HTTP/1.0":
            environ["HTTP_HOST"] = authority
        return rest if rest.startswith("/") else "/" + rest

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

    def _meaning(self, environ: dict[str, Any], is_11: bool) -> Head:
        """The body's framing (RFC 9112 section 6.3), the connection's future (9.3), Host (3.2) and Expect."""
        get = environ.get
        host = get("HTTP_HOST")
        if host is None:
            if is_11:
                raise RequestError(400, "no Host")
        elif host not in self._hosts:
            if not HOST.fullmatch(host):
                raise RequestError(400, "malformed Host")
            if len(self._hosts) >= CACHED_LINES:
                self._hosts.clear()
            self._hosts.add(host)

        coding = get("HTTP_TRANSFER_ENCODING")
        size = get("CONTENT_LENGTH")
        length = 0
        if coding is not None:
            length = CHUNKED
            self._transfer_coding(coding, size, is_11)
        elif size is not None:
            if not (size.isascii() and size.isdigit()):
                raise RequestError(400, "malformed Content-Length")
            if len(size) > 18:
                raise RequestError(413, "the body is too large")
            length = int(size)
            if self.limit_body and length > self.limit_body:
                raise RequestError(413, "the body is too large")

        connection = get("HTTP_CONNECTION")
        keep_alive = is_11
        if connection is not None and connection != "keep-alive":
            options = {option.strip(" \t") for option in connection.lower().split(",")}
            keep_alive = "close" not in options and (is_11 or "keep-alive" in options)
        elif connection is not None:
            keep_alive = True

        expect = get("HTTP_EXPECT")
        if expect is None or not is_11:
            return Head(environ, length, keep_alive, False)
        if expect.lower() != "100-continue":
            raise RequestError(417, "an unknown expectation")
        return Head(environ, length, keep_alive, length != 0)

    @staticmethod
    def _transfer_coding(coding: str, size: str | None, is_11: bool) -> None:
        """Only "chunked" is understood: alone, in HTTP/1.1, without Content-Length (RFC 9112 section 6.1)."""
        if size is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding")
        if not is_11:
            raise RequestError(400, "Transfer-Encoding in HTTP/1.0")
        if coding.lower() == "chunked":
            return
        codings = [name.strip(" \t").lower() for name in coding.split(",")]
        if codings[-1] != "chunked" or "chunked" in codings[:-1] or "" in codings:
            raise RequestError(400, "the body's end cannot be told")
        raise RequestError(501, "an unknown transfer coding")
