"""One response: what the application says, checked, and framed for the wire.

The status line and the fields are checked when the application gives them, so that the error is raised where it was
made (PEP 3333). The head leaves with the first bytes of the body, in one send. How the body's end is told (RFC 9112
section 6.3) is decided then: a length if one is known, chunks for HTTP/1.1, the connection's end for HTTP/1.0. A body
that breaks off never looks complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..ipc.inflight import SENT, nowhere
from .body import NO_BODY, Body, NoBody
from .stream import Disconnected

if TYPE_CHECKING:
    from .connection import Connection

STATUS = re.compile(r"[2-9][0-9][0-9] [\t\x20-\x7e\x80-\xff]*")
FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
}
NOTHING = b""  # the line of a hop-by-hop field: it is dropped
# What a request has that came through a proxy, in environ.
PROXIED = frozenset(
    {"HTTP_FORWARDED", "HTTP_VIA", *(f"HTTP_X_FORWARDED_{one}" for one in ("FOR", "HOST", "PROTO", "PROTOCOL", "SSL"))}
)
UNCACHED = {"set-cookie", "date"}  # a cookie is one client's, and a Date must be noticed
CACHED = 2048
CACHED_CHARACTERS = 200
SKIP = 65536  # a body with more bytes left unread than this costs the client its connection
AT_ONCE = 65536  # a whole body of so many bytes seldom waits for its client
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOWHERE = nowhere()

_status_lines: dict[str, tuple[int, bytes]] = {}
_field_lines: dict[tuple[str, str], bytes | int] = {}  # an int is a Content-Length


def status_line(status: str) -> tuple[int, bytes]:
    """Code and line of a status such as "200 OK". ValueError if it is malformed or informational."""
    if not isinstance(status, str):
        raise TypeError(f"the status must be str, not {type(status).__name__}")
    if not STATUS.fullmatch(status):
        raise ValueError(f"malformed status {status!r}")
    entry = int(status[:3]), b"HTTP/1.1 %b\r\n" % status.encode("latin-1")
    if len(_status_lines) >= CACHED:
        _status_lines.clear()
    _status_lines[status] = entry
    return entry


def field_line(name: str, value: str) -> bytes | int:
    """The line of one response field; of Content-Length, the number; of a hop-by-hop field, NOTHING.

    ValueError or TypeError for a field that is malformed or could split the response.
    """
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"header name and value must be str: {name!r}: {value!r}")
    if not FIELD_NAME.fullmatch(name):
        raise ValueError(f"malformed header name {name!r}")
    if not FIELD_VALUE.fullmatch(value):
        raise ValueError(f"the value of header {name} holds a control character, or one beyond latin-1: {value!r}")
    lower = name.lower()
    if lower in HOP_BY_HOP:
        return NOTHING  # and not cached: the engine hears of each
    # Joined and not formatted: what was judged is sent, whatever the __str__ of a subclass would say.
    line: bytes | int = "".join((name, ": ", value, "\r\n")).encode("latin-1")
    if lower == "content-length":
        if not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise ValueError(f"malformed Content-Length {value!r}")
        line = int(value)
    if lower not in UNCACHED and len(value) <= CACHED_CHARACTERS:
        if len(_field_lines) >= CACHED:
            _field_lines.clear()
        _field_lines[name, value] = line
    return line


def refusal(status: int, text: str, date: bytes) -> bytes:
    """A whole response that says why there is no other; the connection is closed behind it."""
    phrase = HTTPStatus(status).phrase
    body = f"{status} {phrase}: {text}\n".encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    return b"%b%bConnection: close\r\n\r\n%b" % (head.encode(), date, body)


class Response:
    """The answer to one request. `environ` is set back to None when it is over.

    `head_sent`: the status can no longer change. `complete`: the client has, or will get, all of it. `began`: when the
    request's head had come, in seconds of the monotonic clock; `ended`: when the last byte was out, 0 until then.
    `seat`: where the request is noted (`ipc/inflight.py`).
    """

    __slots__ = (
        "_chunked",
        "_has_date",
        "_is_11",
        "_is_head",
        "_left",
        "_length",
        "_lines",
        "_silent",
        "began",
        "body",
        "complete",
        "connection",
        "ended",
        "environ",
        "head_sent",
        "keep_alive",
        "seat",
        "status",
    )

    def __init__(self, connection: Connection, environ: dict[str, Any], keep_alive: bool, body: Body | NoBody) -> None:
        self.began = monotonic()
        self.ended = 0.0
        self.environ: dict[str, Any] | None = environ
        self.body = body
        self.keep_alive = keep_alive
        self.head_sent = False
        self.complete = False
        self.status = 0
        self.connection = connection
        self.seat = NOWHERE
        self._is_11 = environ["SERVER_PROTOCOL"] != "HTTP/1.0"
        self._is_head = environ["REQUEST_METHOD"] == "HEAD"
        if body is not NO_BODY:
            body.ask = self._ask_for_body

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], None]:
        """PEP 3333's start_response. ValueError or TypeError for a status or field that must not be sent."""
        if exc_info is not None:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status:
            raise AssertionError("start_response was called a second time without exc_info")
        code, line = _status_lines.get(status) or status_line(status)
        lines = [line]
        length = None
        has_date = False
        for field in headers:
            known = _field_lines.get(field)
            if known is None:
                name, value = field
                known = field_line(name, value)
                has_date = has_date or name.lower() == "date"
                if known is NOTHING:
                    self._drop(name)
            if type(known) is bytes:
                lines.append(known)
            elif length is None:
                length = known
            else:
                raise ValueError("Content-Length was given twice")
        self.status = code
        self._lines = lines
        self._length = length
        self._has_date = has_date
        return self._write

    def early_hints(self, headers: Iterable[tuple[str, str]], /) -> None:
        """environ["wsgi.early_hints"]: send a 103 response (RFC 8297) now, where --early-hints lets the client have it.

        Nothing for HTTP/1.0, or after the head. ValueError or TypeError as for start_response.
        """
        self.let_others()
        if self._is_11 and not self.head_sent and self.environ is not None:
            lines = []
            for name, value in headers:
                line = field_line(name, value)
                if line is NOTHING:
                    self._drop(name)
                elif type(line) is bytes:
                    lines.append(line)
            if self._may_hint():
                self._send_whole(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % b"".join(lines))

    def _may_hint(self) -> bool:
        """Whether this client gets early hints. A proxy of some age would take one for the response."""
        asked = self.connection.engine.early_hints
        if asked != "direct":
            return asked == "on"
        return self.connection.forwarded is None and PROXIED.isdisjoint(self.environ or ())

    def _drop(self, name: str) -> None:
        """Drop a hop-by-hop field of the application's. ValueError with --strict-wsgi."""
        self.connection.engine.hop_by_hop(name, (self.environ or {}).get("RAW_URI"))

    def _ask_for_body(self) -> None:
        """Tell a client that waits for it that its body is wanted."""
        if not self.head_sent:
            self._send_whole(CONTINUE)

    def _send_whole(self, data: bytes) -> None:
        """Nothing may follow behind a part of it."""
        try:
            self.connection.send(data)
        except Disconnected:
            raise
        except BaseException:
            # A Timeout, or what a signal's handler raises. A part may be out, and the application may go on behind it.
            self.connection.abort()
            raise

    def _write(self, data: bytes, /) -> None:
        """PEP 3333's write(): an empty string still sends the head."""
        if self.environ is None:
            raise ValueError("the request is over")
        self.write(data)

    def write(self, data: bytes, total: int | None = None) -> None:
        """Send a piece of the body, and the head before the first. `total`: the body's length, if this is all of it.

        Disconnected if the client is gone; ValueError if it is more than the Content-Length allows, or if the request
        has ended meanwhile.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"a body is made of bytes, not {type(data).__name__}")
        if self.head_sent:
            self._wait_between()
        lines = None
        if not self.head_sent:
            lines = self._head(total)
            if total is None or total > AT_ONCE:
                self._note_head()
        excess = 0
        if self._silent:
            data = b""
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                excess, self._left = -self._left, 0
                data = data[:-excess]
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if lines is not None:
            lines.append(data)
            data = b"".join(lines)
        if data:
            self._send_whole(data)
        if excess:
            raise ValueError("the body is longer than its Content-Length")

    def _wait_between(self) -> None:
        """As `let_others`, before a piece is framed: another greenlet may write, or end the response, meanwhile."""
        try:
            self.let_others()
        except BaseException:
            if not self.is_over:  # else the connection is the next request's
                self.connection.abort()  # the application may go on behind the piece that is missing
            raise
        if self.is_over:
            raise ValueError("the request is over")

    @property
    def is_over(self) -> bool:
        """Whether nothing may be written any more."""
        return self.complete or self.environ is None

    def write_file(self, fd: int, offset: int, size: int) -> None:
        """Send a regular file from `offset` on as the body: up to its Content-Length, or `size` bytes.

        The body breaks off where the file has become shorter. One that has grown is sent up to its Content-Length.
        """
        lines = self._head(size)
        self._note_head()
        self.connection.send(b"".join(lines))
        if self._silent:
            return
        while self._left:
            self.let_others()
            sent = self.connection.sendfile(fd, offset, self._left)
            if not sent:
                break
            offset += sent
            self._left -= sent

    def let_others(self) -> None:
        """Let other greenlets run if this one has used its time slice. Called between two pieces of the response."""
        self.connection.engine.time_slice.check()

    @property
    def room(self) -> int | None:
        """How many bytes of the body the client may still get; None where nothing limits them."""
        if self.head_sent:
            return 0 if self._silent else self._left
        return self._length if self.status else None

    def finish(self) -> None:
        """End the body. ValueError if it is shorter than the Content-Length."""
        if not self.head_sent:
            self.connection.send(b"".join(self._head(0)))
        if self._chunked:
            self.connection.send(b"0\r\n\r\n")
        elif self._left and not self._silent:
            raise ValueError(f"the body is {self._left} bytes shorter than its Content-Length")
        self.complete = True
        self.ended = monotonic()

    def fail(self, status: int, text: str) -> None:
        """Answer with an error of the server's own, whatever start_response was told. Not after the head."""
        self.status = 0
        phrase = HTTPStatus(status).phrase
        self.start_response(f"{status} {phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        data = f"{status} {text or phrase}\n".encode()
        self.write(data, len(data))
        self.finish()

    def was_given(self, status: int) -> None:
        """By the application itself, on the connection that it has taken; 0 where it said nothing."""
        self.status = status
        self.complete = status != 0

    @property
    def ends_with_connection(self) -> bool:
        """Whether the client takes the connection's end for the end of the body."""
        return self.head_sent and not self._silent and not self._chunked and self._left is None

    def _note_head(self) -> None:
        """Tell the master that the head is out, while the application or a slow client can still keep the request."""
        memory, _, mark = self.seat
        memory[mark] = SENT

    def _head(self, total: int | None) -> list[bytes]:
        """The head's lines; from here on it counts as sent. `total`: the body's length, if it is known."""
        status = self.status
        if not status:
            raise AssertionError("the application has not called start_response")
        engine = self.connection.engine
        lines = self._lines
        length = self._length
        # Of no body, whatever the application yields, nothing is sent; of a known length, so many bytes are left.
        self._silent = silent = self._is_head or status == 204 or status == 304
        self._chunked = False
        if length is None and not silent:
            length = total
        self._left = length
        if length is not None:
            if status != 204:  # RFC 9110 section 8.6
                lines.append(b"Content-Length: %d\r\n" % length)
        elif not silent:
            if self._is_11:
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self._has_date:
            lines.append(engine.date())
        if self.keep_alive and (
            (engine.closing and self.connection.closes) or not engine.keep_alive or self.body.spoils_connection(SKIP)
        ):
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n\r\n")
        else:
            lines.append(b"\r\n" if self._is_11 else b"Connection: keep-alive\r\n\r\n")
        self.head_sent = True
        return lines
