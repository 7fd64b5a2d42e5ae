"""Chunked bodies that are buffered before the application gets their requests (--buffer-chunked).

WSGI has no place for a body whose length is unknown. PEP 3333 takes CONTENT_LENGTH from CGI, and Django, Falcon and
others read nothing without it. So the server decodes the whole body first, as RFC 9112 section 7.1.3 describes: the
application sees CONTENT_LENGTH and no Transfer-Encoding. waitress does the same.

The loop does this, while no greenlet and no thread waits for the client. A body beyond MEMORY bytes goes to a file
without a name in TMPDIR. --limit-request-body bounds it, or LARGEST where that option sets no limit. The file does not
grow any more when its file system has little room left (FREE, ENOUGH), because other programs need that disk, too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from .body import BUFFER, NO_BODY, Body, NoBody
from .request import RequestError
from .timeslice import SECONDS, TimeSlice

if TYPE_CHECKING:
    from .response import Response

MEMORY = 1 << 16  # bytes of one body
LARGEST = 1 << 30  # bytes of one body where no option says so: waitress's max_request_body_size
FREE = 0.1  # of the file system, which must be left
ENOUGH = 1 << 30  # bytes of a file system, of which any size may be left
LOOK = 1 << 20  # bytes of one body between two looks at that
_SCRATCH = memoryview(bytearray(65536))  # only the loop uses it, and it waits nowhere in between


class Spool(io.FileIO):
    """The file of a body. Reading it gives other greenlets their turns, as reading from the client does."""

    def __init__(self, time_slice: TimeSlice) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            fd = os.dup(file.fileno())
        super().__init__(fd, "r+b")
        self._slice = time_slice

    def readinto(self, view: Any, /) -> int | None:
        self._slice.check()
        return super().readinto(view)

    def write_all(self, data: memoryview) -> None:
        """Write all of it. OSError where the disk is full."""
        while data:
            data = data[self.write(data) or 0 :]


class Spooled(NoBody):
    """The body of a request whose wsgi.input is a file. The end of the request closes it."""

    __slots__ = ("ask", "spool")

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def detach(self) -> None:
        # Not through the buffered file: a greenlet that outlives its request may be inside of that.
        self.spool.close()


class Gathering:
    """One body on its way. It looks like a stream whose reads never wait: they raise BlockingIOError.

    `response`: the request's. `head`: its head, for the log. `unread`: what has come and is not decoded yet. `run` has
    the request answered.
    """

    def __init__(self, run: Callable[[Response], None], response: Response) -> None:
        assert isinstance(response.body, Body)
        self.engine = response.connection.engine
        self.unread = b""
        self._run = run
        self.response = response
        self._body = response.body
        self._body.bound(LARGEST)
        self.head = self._body.head
        self._memory = io.BytesIO()
        self._spool: Spool | None = None
        self._length = 0
        self._look_at = 0  # the length at which the file system's room is looked at next

    # As a stream.

    def take(self, count: int) -> bytes:
        piece, self.unread = self.unread[:count], self.unread[count:]
        return piece

    def read_into(self, view: memoryview) -> int:
        if not self.unread:
            raise BlockingIOError
        piece = self.take(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def read_more(self) -> bool:
        raise BlockingIOError

    # For the connection.

    def begin(self, data: bytes | bytearray) -> None:
        """Begin with what came with the head, and ask for the rest if the client waits for that."""
        body = self._body
        asks, body.expects_continue = body.expects_continue and not data, False
        body.read_from(self)
        if asks:
            try:
                self.response.connection.ask_for_body()
            except OSError:
                self.response.connection.close()
                return
        self.take_in(data)

    def take_in(self, data: bytes | bytearray) -> None:
        """Decode `data`, which has come; none where others have had their turn."""
        connection = self.response.connection
        try:
            complete = self._decode(bytes(data))
            if complete:
                connection.gathered(self._run, self._complete(), self.unread)
            else:
                connection.awaits_body(in_turn=complete is None)
        except RequestError as error:
            if error.status == 413 and not self.engine.parser.limit_body:
                self.engine.seldom(
                    "warning",
                    f"a chunked request body of more than {LARGEST} bytes was answered 413: the server takes no larger "
                    "ones as a whole. --limit-request-body sets another limit; with --no-buffer-chunked the "
                    "application reads such bodies as they come",
                )
            connection.refuse(error, self.head)
        except BaseException:
            connection.abort()  # a defect, as in Connection._take
            raise

    def _decode(self, data: bytes) -> bool | None:
        """True when the body is complete, False when more has to come, None when others have their turn.

        RequestError (400, 413, 431, or 507 where the file cannot be written) for a body that must be refused.
        """
        self.unread += data
        ends = monotonic() + SECONDS
        while True:
            try:
                count = self._body.readinto(_SCRATCH)
            except BlockingIOError:
                return False
            if not count:
                return True
            self._keep(_SCRATCH[:count])
            if monotonic() > ends:
                return None

    def _keep(self, piece: memoryview) -> None:
        self._length += len(piece)
        if self._length <= MEMORY:
            self._memory.write(piece)
            return
        try:
            if self._spool is None:
                self._spool = Spool(self.engine.time_slice)
                self._check_room(self._spool)
                self._look_at = self._length + LOOK
                self._spool.write_all(self._memory.getbuffer())
                self._memory = io.BytesIO()
            elif self._length >= self._look_at:
                self._look_at = self._length + LOOK
                self._check_room(self._spool)
            self._spool.write_all(piece)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = ". Set TMPDIR to a directory with room, or bound bodies with --limit-request-body" if full else ""
            self.engine.seldom(
                "error",
                f"a chunked request body cannot be buffered in the directory for temporary files: {error}{advice}",
            )
            raise RequestError(507, "the server has no room for the body") from error

    def _check_room(self, spool: Spool) -> None:
        """RequestError (507) where other programs need the rest of the file system."""
        info = os.fstatvfs(spool.fileno())
        # 0 < 0 where it has no size, as a tmpfs without a limit.
        if info.f_bavail < FREE * info.f_blocks and info.f_bavail * info.f_frsize < ENOUGH:
            self.engine.seldom(
                "error",
                f"a chunked request body was answered 507: less than {FREE:.0%} of the file system of "
                f"{tempfile.gettempdir()}, and less than 1 GiB, is free. Make room, set TMPDIR to another directory, "
                "or bound bodies with --limit-request-body",
            )
            raise RequestError(507, "the server has no room for the body")

    def _complete(self) -> Response:
        """The response, whose request is complete now."""
        response = self.response
        environ = response.environ
        assert environ is not None
        self._body.detach()
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["CONTENT_LENGTH"] = str(self._length)
        if self._spool is None:
            self._memory.seek(0)
            environ["wsgi.input"] = self._memory
            response.body = NO_BODY
        else:
            self._spool.seek(0)
            environ["wsgi.input"] = io.BufferedReader(self._spool, BUFFER)
            response.body = Spooled(self._spool)
        return response

    def drop(self) -> None:
        """The request never begins."""
        self._body.detach()
        self.response.environ = None
        self.close()
        self.engine.request_dropped(self.response.connection)

    def close(self) -> None:
        if self._spool is not None:
            with contextlib.suppress(OSError):
                self._spool.close()


def gather(run: Callable[[Response], None], response: Response) -> None:
    """Buffer the response's request, and then `run` it. Called in the loop."""
    response.connection.gather(Gathering(run, response))
