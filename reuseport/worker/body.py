"""A request's body as the application reads it: wsgi.input.

The body is pulled: bytes stay in the kernel until the application asks for them, so a client that sends faster than
the application reads is slowed down by TCP itself and costs the worker no memory. A `Body` is the raw stream under a
`File`, which has read, readline and iteration in C and reads large pieces straight into their result.

A body that was cut short never looks complete: reading it raises BodyError, an OSError as for any broken stream.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .request import CHUNKED, FIELD, RequestError

if TYPE_CHECKING:
    from .stream import Stream

BUFFER = 16384
CHUNK_LINE = 4096  # bytes of a chunk-size line with its extensions
EXTENSIONS = 65536  # bytes of all chunk extensions of a body (RFC 9112 section 7.1.1 asks for a limit)
# RFC 9112 section 7.1: a size of at most 16 digits, extensions that mean nothing to us but must be well-formed.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
CHUNK = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
# RFC 9110 section 6.5.1: no trailer field may be about framing or routing. Such a field is a smuggled one.
NO_TRAILERS = {b"content-length", b"host", b"transfer-encoding"}
# Looked up once, since super() takes longer than a line does.
_read, _readinto = io.BufferedReader.read, io.BufferedReader.readinto
_readline, _next = io.BufferedReader.readline, io.BufferedReader.__next__


class BodyError(RequestError, OSError):
    """The body cannot be read to its end. `status` is what the client is told if the application does not answer."""


class NoBody:
    """wsgi.input of a request without a body. It holds no state, so all requests share one."""

    __slots__ = ()
    complete = True

    def read(self, size: int | None = -1, /) -> bytes:
        return b""

    def readline(self, size: int | None = -1, /) -> bytes:
        return b""

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """As a file's; nothing to close."""

    def spoils_connection(self, bound: int) -> bool:
        """As a Body's."""
        return False

    def skip(self, bound: int) -> bool:
        """As a Body's."""
        return True

    def detach(self) -> None:
        """As a Body's."""


NO_BODY = NoBody()


class Body(io.RawIOBase):
    """The decoded body of one request. `complete`: its last byte, and the last byte of its framing, was taken.

    `length`: bytes, or CHUNKED. `limit`: bytes at most, 0 for any number. `expects_continue`: the client waits to be
    asked for it (RFC 9110 section 10.1.1).
    """

    def __init__(self, stream: Stream, length: int, limit: int, fields: int, expects_continue: bool) -> None:
        self.complete = False
        self.error: BodyError | None = None
        self.expects_continue = expects_continue
        self._stream = stream
        self._chunked = length == CHUNKED
        self._left = 0 if self._chunked else length  # bytes of the body, or of the current chunk
        self._limit = limit
        self._total = 0
        self._fields = fields
        self._extensions = 0
        self._trailers = -1  # trailer fields that have come; -1 before the last chunk
        self._ends_chunk = False  # the CRLF behind the current chunk is still to be read
        self._torn = False  # what was taken from the stream last has not come to anything yet
        self._given = False  # something of it was read
        self.ask: Callable[[], None] | None = None  # sends 100 Continue
        self.head: bytes | bytearray = b""  # the request's, where it is still needed

    def file(self) -> File:
        """The body as a whole file: wsgi.input."""
        return File(self, BUFFER)

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        """Put the next bytes into `view`; 0 at the body's end. BodyError when there is no way to its end."""
        if self._has_ended() or not len(view):
            return 0
        self._stream.engine.time_slice.check()
        if self._has_ended():  # meanwhile: another greenlet has read the rest, or the request is over
            return 0
        if self.expects_continue:
            self.expects_continue = False
            if not self._stream.unread:
                self.ask()
        try:
            if not self._left and not self._next_chunk():
                self.complete = True
                return 0
            got = self._stream.read_into(view[: self._left])
            if not got:
                raise BodyError(400, "the client closed before the end of the body")
        except BodyError as error:
            self.error = error
            raise
        except BaseException:
            if self._torn:
                self.error = BodyError(400, "reading the body was interrupted")
            raise
        self._given = True
        self._left -= got
        if not self._left and not self._chunked:
            self.complete = True
        return got

    def _has_ended(self) -> bool:
        """Whether nothing is left to read. BodyError when there is no way to the end."""
        if self.error is not None:
            raise self.error
        return self.complete

    def lose(self) -> None:
        """What was read of it may have come to nobody: there is no way to its end any more."""
        if self._given:
            self.error = self.error or BodyError(400, "reading the body was interrupted")

    def readall(self) -> bytes:
        """The rest of the body."""
        pieces = []
        piece = bytearray(min(self._left or BUFFER, 1 << 20))
        view = memoryview(piece)
        while count := self.readinto(view):
            pieces.append(bytes(view[:count]))
        return b"".join(pieces)

    def spoils_connection(self, bound: int) -> bool:
        """Whether the connection cannot go on behind this body, as far as is known before its end.

        It cannot when more than `bound` bytes are left, or when the client was never told to send them: it may, or
        may go on with its next request.
        """
        return self.error is not None or (not self.complete and (self.expects_continue or self._left > bound))

    def skip(self, bound: int) -> bool:
        """Read and forget what is left, at most `bound` bytes; True when that was all of it."""
        if self.complete:
            return True
        scratch = memoryview(bytearray(BUFFER))
        try:
            while not self.complete and not self.spoils_connection(bound):
                bound -= self.readinto(scratch)
        except BodyError:
            return False
        return self.complete

    def bound(self, limit: int) -> None:
        """Let it have so many bytes at most, unless it has a limit."""
        self._limit = self._limit or limit

    def read_from(self, stream: Any) -> None:
        """Take the body from this stream instead."""
        self._stream = stream

    def detach(self) -> None:
        """The request is over: whoever still holds the body must not read from the connection, nor hold it."""
        self.ask = self._stream = None
        if not self.complete:
            self.error = self.error or BodyError(400, "the request is over")

    def _next_chunk(self) -> bool:
        """Read the next chunk's size; False after the last one and the trailers behind it.

        Where the stream raises in between, the next call goes on behind the last whole line.
        """
        if self._ends_chunk:
            if self._line(0):
                raise BodyError(400, "a chunk is longer than its size")
            self._ends_chunk = self._torn = False
        if self._trailers < 0:
            self._judge_size(self._line(CHUNK_LINE))
            if self._left:
                self._ends_chunk, self._torn = True, False
                return True
            self._trailers, self._torn = 0, False
        while line := self._line(BUFFER):  # trailers: validated, and dropped, for WSGI has no place for them
            if self._trailers == self._fields:
                raise BodyError(431, "too many trailer fields")
            if not FIELD.fullmatch(line):
                raise BodyError(400, "malformed trailer field")
            if line.partition(b":")[0].lower() in NO_TRAILERS:
                raise BodyError(400, "a trailer field that says where the message ends or belongs")
            self._trailers += 1
            self._torn = False
        return False

    def _judge_size(self, line: bytes) -> None:
        match = CHUNK.fullmatch(line)
        if match is None:
            raise BodyError(400, "malformed chunk size")
        self._extensions += len(match[2])
        if self._extensions > EXTENSIONS:
            raise BodyError(400, "too many chunk extensions")
        size = int(match[1], 16)
        self._total += size
        if self._limit and self._total > self._limit:
            raise BodyError(413, "the body is too large")
        self._left = size

    def _line(self, limit: int) -> bytes:
        """The next line without its CRLF, of at most `limit` bytes."""
        stream = self._stream
        while (end := stream.unread.find(b"\n", 0, limit + 2)) < 0:
            if len(stream.unread) > limit + 1:
                raise BodyError(400, "a line between chunks is too long")
            if stream.unread.find(b"\r", 0, -1) >= 0:
                raise BodyError(400, "bare CR between chunks")
            if not stream.read_more():
                raise BodyError(400, "the client closed before the end of the body")
        if end == 0 or stream.unread[end - 1] != 0x0D:
            raise BodyError(400, "bare LF between chunks")
        self._torn = True
        return stream.take(end + 1)[:-2]


class File(io.BufferedReader):
    """A body's wsgi.input. Calls that read until they have enough forget all of it over an exception, such as a Timeout
    of the application's: behind them nothing can be read any more. Those that read once (`read1`) can be repeated.
    """

    raw: Body

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return _read(self, size)
        except BaseException:
            self.raw.lose()
            raise

    def readinto(self, buffer: Any, /) -> int:
        try:
            return _readinto(self, buffer)
        except BaseException:
            self.raw.lose()
            raise

    def readline(self, size: int | None = -1, /) -> bytes:
        try:
            return _readline(self, size)
        except BaseException:
            self.raw.lose()
            raise

    def __next__(self) -> bytes:
        try:
            return _next(self)
        except StopIteration:
            raise
        except BaseException:
            self.raw.lose()
            raise
