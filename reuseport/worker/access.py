"""The access log: a line for each request, and nothing at all where it is off.

Whether there is one is decided once, when the engine is made: its responses are then of a class that remembers what a
line needs (`Recorded`), and its `request_done` and `refused` also write. A format is compiled once, into one
expression. Whatever a client or the application says is escaped, so that nobody can forge a line or end a field.

What a line says: the status, or 499 where the client went before it could be told one; as bytes those of the body
that the kernel took; as time that from the head's arrival until the kernel had taken the last byte. A request that the
server refused itself has its line too. A connection that the application took over has one when it ends, with the
status that the application sent there.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

from reuseport.ipc.logline import iso_time
from reuseport.options.accessformat import JSON, parse_format

from .response import Response
from .stream import Disconnected

if TYPE_CHECKING:
    from .connection import Connection
    from .request import RequestError

CLIENT_GONE = 499  # as nginx has it: the client has closed before it got a status
LONGEST_LINE = 1024  # bytes of a refused request line that are shown

# (environ, status, bytes of the body, seconds, the application's headers, whole, why it was refused) -> the line
Form = Callable[[dict[str, Any], int, int, float, Iterable[tuple[str, str]], bool, str | None], str]

_ATOMS = {
    "h": 'text(e.get("REMOTE_ADDR") or "-")',
    "l": '"-"',
    "u": "user(e)",
    "t": "clock()",
    "r": "text(request_line(e))",
    "m": 'text(e.get("REQUEST_METHOD"))',
    "U": 'text(e.get("PATH_INFO"))',
    "q": 'text(e.get("QUERY_STRING"))',
    "H": 'text(e.get("SERVER_PROTOCOL"))',
    "s": "status",
    "B": "size",
    "b": 'size or "-"',
    "f": 'text(e.get("HTTP_REFERER", "-"))',
    "a": 'text(e.get("HTTP_USER_AGENT", "-"))',
    "T": "int(seconds)",
    "M": "int(seconds * 1e3)",
    "D": "int(seconds * 1e6)",
    "L": '"%.6f" % seconds',
    "p": "pid",
}

_JSON = (
    ("time", "quoted(iso_time(now()))"),
    ("remote_addr", 'string(e.get("REMOTE_ADDR") or None)'),
    ("method", 'string(e.get("REQUEST_METHOD"))'),
    ("uri", 'string(e.get("RAW_URI"))'),
    ("protocol", 'string(e.get("SERVER_PROTOCOL"))'),
    ("host", 'string(e.get("HTTP_HOST"))'),
    ("status", "status"),
    ("bytes", "size"),
    ("seconds", '"%.6f" % seconds'),
    ("whole", '"true" if whole else "false"'),
    ("referrer", 'string(e.get("HTTP_REFERER"))'),
    ("user_agent", 'string(e.get("HTTP_USER_AGENT"))'),
    ("generation", 'number(e.get("reuseport.generation"))'),
    ("worker", 'string(e.get("reuseport.worker"))'),
    ("request_id", 'string(e.get("reuseport.request_id"))'),
    ("tenant", 'string(e.get("reuseport.tenant"))'),
    ("refused", "string(refused)"),
)


def text(value: Any) -> str:
    """A value as it may stand in a line: what could end a field or a line is written as \\xHH."""
    if type(value) is not str:
        value = "-" if value is None else str(value)
    if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
        return value
    return "".join(_escaped(c) for c in value)


def _escaped(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    if " " <= c < "\x7f":
        return c
    return f"\\x{ord(c):02x}" if c <= "\xff" else f"\\u{ord(c):04x}"


def string(value: Any) -> str:
    """A value as JSON."""
    return "null" if value is None else quoted(value if type(value) is str else str(value))


def number(value: Any) -> Any:
    return value if type(value) is int else string(value)


def request_line(environ: dict[str, Any]) -> str:
    words = environ.get("REQUEST_METHOD"), environ.get("RAW_URI"), environ.get("SERVER_PROTOCOL")
    return " ".join([str(word) for word in words if word]) or "-"


def user(environ: dict[str, Any]) -> str:
    """The user that HTTP's basic authentication names (RFC 7617); "-" for none."""
    scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        name, colon, _ = base64.b64decode(credentials, validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return "-"
    return text(name) if colon and name else "-"


class _Clock:
    """The time as the common log format has it, made once a second."""

    def __init__(self) -> None:
        self._at = 0
        self._text = ""

    def __call__(self) -> str:
        now = int(time.time())
        if now != self._at:
            self._text = time.strftime("[%d/%b/%Y:%H:%M:%S %z]", time.localtime(now))
            self._at = now
        return self._text


def _header_in(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def header_out(headers: Iterable[tuple[str, str]], name: str) -> str:
    """The values of the application's header of that (lower-case) name."""
    return text(",".join([value for key, value in headers if key.lower() == name]) or None)


def compile_format(form: str) -> Form:
    """A function that makes a line, without its end, of a format that `accessformat.check_format` has found good.

    The expression holds none of the format's own text: that comes in as values.
    """
    values: dict[str, Any] = {
        "text": text,
        "string": string,
        "number": number,
        "quoted": quoted,
        "user": user,
        "request_line": request_line,
        "header_out": header_out,
        "clock": _Clock(),
        "iso_time": iso_time,
        "now": time.time,
        "pid": f"<{os.getpid()}>",
    }
    if form == JSON:
        pattern = "{" + ",".join(f'"{key}":%s' for key, _ in _JSON) + "}"
        expressions = [expression for _, expression in _JSON]
    else:
        pattern = ""
        expressions = []
        for piece in parse_format(form):
            if isinstance(piece, str):
                pattern += piece.replace("%", "%%")
                continue
            pattern += "%s"
            atom, name = piece
            key = f"k{len(expressions)}"
            if not name:
                expressions.append(_ATOMS[atom])
            elif atom == "o":
                values[key] = name.lower()
                expressions.append(f"header_out(headers, {key})")
            else:
                values[key] = _header_in(name) if atom == "i" else name
                expressions.append(f"text(e.get({key}))")
    values["pattern"] = pattern
    filled = " ".join(expression + "," for expression in expressions)
    source = f"lambda e, status, size, seconds, headers, whole, refused: pattern % ({filled})"
    function: Form = eval(source, values)
    return function


class Recorded(Response):
    """A response that remembers what its line in the access log needs."""

    __slots__ = ("headers", "request", "sent", "told")

    def __init__(self, connection: Connection, environ: dict[str, Any], keep_alive: bool, body: Any) -> None:
        super().__init__(connection, environ, keep_alive, body)
        self.request = environ
        self.headers: Iterable[tuple[str, str]] = ()
        self.sent = 0  # bytes of the body, without its framing
        self.told = False  # the kernel has taken the status

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], None]:
        headers = list(headers)
        write = super().start_response(status, headers, exc_info)
        self.headers = headers
        return write

    def write(self, data: bytes, total: int | None = None) -> None:
        size = len(data)
        try:
            super().write(data, total)
        except Disconnected as error:
            if error.left is not None:
                self.told = True
                if not self._silent:
                    self.sent += max(0, size - error.left)
            raise
        except ValueError:
            if self.head_sent and not self.is_over:  # what was too much for its Content-Length was not sent
                self.told = True
                self.sent = self._length or 0
            raise
        self.told = True
        if not self._silent:
            self.sent += size

    def write_file(self, fd: int, offset: int, count: int) -> None:
        try:
            super().write_file(fd, offset, count)
            self.told = True
        except Disconnected as error:
            self.told = error.left is not None
            raise
        finally:
            if self.head_sent and not self._silent:
                self.sent = (count if self._length is None else self._length) - self._left
                self.told = self.told or self.sent > 0

    def was_given(self, status: int) -> None:
        super().was_given(status)
        self.told = status != 0

    def finish(self) -> None:
        super().finish()
        self.told = True


class AccessLog:
    """Makes the lines and gives each, without its end, to `write`. `log(level, text)` gets what goes wrong."""

    def __init__(self, form: str, write: Callable[[str], None], log: Callable[[str, str], None]) -> None:
        self._form = compile_format(form)
        self._write = write
        self._log = log

    def record(self, response: Recorded) -> None:
        """The response is over, whole or not."""
        status = response.status if response.told else CLIENT_GONE
        seconds = (response.ended or time.monotonic()) - response.began
        self._line(response.request, status, response.sent, seconds, response.headers, response.complete, None)

    def refused(
        self, connection: Connection, error: RequestError, head: bytes | bytearray, response: Recorded | None
    ) -> None:
        """The server has refused what began with `head`; `response` as in `Engine.refused`."""
        if response is not None:
            seconds = time.monotonic() - response.began
            self._line(response.request, error.status, 0, seconds, (), True, str(error))
            return
        environ = {**connection.template, "REMOTE_ADDR": connection.remote_addr, "REMOTE_PORT": connection.remote_port}
        line = bytes(head.lstrip(b"\r\n").partition(b"\r\n")[0][:LONGEST_LINE]).decode("latin-1")
        words = line.split(" ")
        known = words if len(words) == 3 else (None, line or None, None)  # what it meant is anyone's guess
        environ.update(zip(("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL"), known, strict=True))
        path, _, query = (environ["RAW_URI"] or "").partition("?")
        environ["PATH_INFO"], environ["QUERY_STRING"] = path, query
        self._line(environ, error.status, 0, 0.0, (), True, str(error))

    def _line(self, *facts: Any) -> None:
        try:
            line = self._form(*facts)
        except Exception as error:  # noqa: BLE001 - an environ that the application has filled with odd objects
            self._log("error", f"a request could not be put into the access log: {type(error).__name__}: {error}")
        else:
            self._write(line)


def wrap(engine: Any, access: AccessLog) -> None:
    """Have the engine record its requests."""
    done, refused, broken_off = engine.request_done, engine.refused, engine.broken_off

    def request_done(response: Recorded, failed: bool) -> None:
        access.record(response)
        done(response, failed)

    def refuse(
        connection: Connection, error: RequestError, head: bytes | bytearray, response: Recorded | None = None
    ) -> None:
        access.refused(connection, error, head, response)
        refused(connection, error, head, response)

    def break_off(response: Recorded) -> None:
        access.record(response)
        broken_off(response)

    engine.request_done, engine.refused, engine.broken_off = request_done, refuse, break_off
