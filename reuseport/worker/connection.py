"""One client connection, from the accepted fd to its close.

Everything here but `request_done` runs in the loop's own callbacks. While a connection waits for a request it is this
object, a socket and its reader: no greenlet and no buffer. When a head is complete the application gets it in a pooled
greenlet. One request of a connection runs at a time, and the loop does not read on behind it: what the client sends
meanwhile stays in the kernel, or in `unread`, at most one piece. What the greenlet reads and writes is in `stream`.

A connection with bytes of the client still unread is not simply closed: see `lingering`.
"""

from __future__ import annotations

import errno
import socket
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..ipc.inflight import NAMELESS
from ..ipc.scoreboard import BYTES_OUT
from . import timeslice
from .body import NO_BODY, Body
from .lingering import Lingering
from .request import CHUNKED, UPGRADE, RequestError
from .response import CONTINUE, refusal
from .states import BODY, CLOSED, HEAD, LINGERING, PASSED, SERVING, WAITING
from .stream import PIECE, Disconnected
from .upgrade import Offer
from .wheel import NEVER, TICK

if TYPE_CHECKING:
    from collections.abc import Callable

    from .engine import Engine
    from .gather import Gathering
    from .response import Response

EMPTY_LINES = 16  # before one request
FIRST = 1.0  # seconds that a stop leaves a client that has just connected for the first byte of its request
LAST_CALL = 5.0  # seconds that a drain leaves a silent client whose connection cannot be passed on


_GONE = socket.socket()  # in the place of one that is somebody else's by now: any use is an OSError
_GONE.close()


def _socket_address(host: str, port: str) -> Any:
    return (host, int(port), 0, 0) if ":" in host else (host, int(port))


class Connection(Lingering):
    """See the module. `peer` is as getpeername gives it, "" for a unix socket; `template` as `wsgi.template`'s.

    `plain`: whoever has the socket can speak with the client.
    """

    plain = True
    __slots__ = (
        "_checked", "_fresh", "_gathering", "_pumping", "forwarded", "name", "remote_addr", "remote_port", "template",
        "tenant",
    )  # fmt: skip

    def __init__(self, engine: Engine, fd: int, peer: Any, template: dict[str, Any]) -> None:
        if isinstance(peer, tuple):
            super().__init__(engine, fd, socket.AF_INET if len(peer) == 2 else socket.AF_INET6)
            self.remote_addr = peer[0]
            self.remote_port = str(peer[1])
        else:
            super().__init__(engine, fd, socket.AF_UNIX)
            self.remote_addr = self.remote_port = ""
        self.template = template
        self.forwarded: Any = None  # applies what a trusted proxy says of its client
        self.state = WAITING
        self.name = NAMELESS  # its request's, see ipc/inflight.py
        # Offset in `unread` up to which a head's lines were judged. Below 0: how many empty lines came before it.
        self._checked = 0
        self._fresh = True  # it has had no request yet
        self._gathering: Gathering | None = None  # in BODY
        self._pumping = False  # `_take` is on the hub's stack
        self.tenant: str | None = None  # whose its last request was, as far as --tenant says so
        self._set_deadline(engine.silence)

    # In the loop: requests in.

    def _readable(self) -> None:
        state = self.state
        if state is SERVING:
            self._reader.stop()
            self._parked = True
            return
        try:
            data = self._sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if len(data) >= self._reader.full:
            self._reader.again()
        if state is LINGERING:
            self._discard(len(data))
        elif not data:
            self._ended()
        elif state is BODY:
            self._gathering.take_in(data)
        elif self.unread:
            self.unread += data
            self._take(self.unread)
        else:
            self._take(data)

    def _ended(self) -> None:
        """The client will send nothing more."""
        if self.state is HEAD and self.unread.strip(b"\r\n"):
            self._refuse(RequestError(400, "the client closed before the end of the header"), self.unread)
        elif self.state is BODY:
            self._refuse(RequestError(400, "the client closed before the end of the body"), self._gathering.head)
        else:
            self.close()

    def _take(self, data: bytes | bytearray) -> None:
        """Serve the requests whose heads are complete in `data`; keep the rest."""
        self._pumping = True
        try:
            self._serve(data)
        except BaseException:
            self.abort()  # a defect: nobody would come to it again, and a drain would wait for it
            raise
        finally:
            self._pumping = False

    def _serve(self, data: bytes | bytearray) -> None:
        engine = self.engine
        began = 0.0  # the first request of this turn
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0 or data[0] == 0x0D:
                if data[:2] == b"\r\n":
                    try:
                        data = self._without_empty_lines(data)
                    except RequestError as error:
                        self._refuse(error, b"")
                        break
                    continue
                self._keep(data)
                break
            head = data[:end]
            self.unread = b"" if end + 4 == len(data) else bytes(data[end + 4 :])
            self._checked = 0
            try:
                environ, length, keep_alive, expects_continue = engine.parser.parse(head, self.template)
                environ["REMOTE_ADDR"] = self.remote_addr
                environ["REMOTE_PORT"] = self.remote_port
                if self.forwarded is not None:
                    self.forwarded(environ, head)
            except RequestError as error:
                self._refuse(error, head)
                break
            self.name = engine.parser.name
            run = engine.run
            if not length:
                body = NO_BODY
            elif length == UPGRADE:
                body = NO_BODY
                if engine.run_upgradable is not None:
                    body = Offer(self, environ)
                    run = engine.run_upgradable
            elif 0 < length <= len(self.unread) and not expects_continue:  # all has come: nothing is to be awaited
                environ["wsgi.input"] = BytesIO(self.unread[:length])
                self.unread = self.unread[length:]
                body = NO_BODY
            else:
                body = Body(self, length, engine.parser.limit_body, engine.parser.limit_fields, expects_continue)
                environ["wsgi.input"] = body.file()
                if length == CHUNKED and engine.run_chunked is not None:
                    body.head = head
                    run = engine.run_chunked
            self.state = SERVING
            self.deadline = NEVER
            response = engine.response(self, environ, keep_alive, body)
            began = began or response.began
            run(response)
            if not self.unread or self.state is not WAITING:
                break
            if response.ended - began > timeslice.SECONDS:
                self._resume_later()
                break
            data = self.unread

    def _without_empty_lines(self, data: bytes | bytearray) -> bytes | bytearray:
        """Drop the empty lines before a request (RFC 9112 section 2.2). RequestError where they do not end."""
        count = 0
        while data.startswith(b"\r\n", 2 * count):
            count += 1
            self._checked -= 1
            if self._checked < -EMPTY_LINES:
                raise RequestError(400, "too many empty lines before a request")
        return data[2 * count :]

    def _keep(self, data: bytes | bytearray) -> None:
        """Keep an incomplete head, unless it can be refused already."""
        if not data:
            self.unread = b""
            return
        try:
            if data != b"\r":  # which can become an empty line
                self._checked = self.engine.parser.check(data, max(self._checked, 0))
        except RequestError as error:
            self._refuse(error, data)
            return
        self.unread = data if type(data) is bytearray else bytearray(data)
        if self.state is WAITING:
            self.state = HEAD
            self._set_deadline(self.engine.head_time())

    def _resume_later(self) -> None:
        """Go on in the loop's next turn. Nothing is read before: the end of the stream must not overtake `unread`."""
        self._reader.stop()
        self._parked = True
        # A timer, because gevent runs many callbacks before its loop looks for I/O again.
        self.engine.loop.timer(0, priority=timeslice.AFTER_CLIENTS).start(self._resume)

    def _resume(self) -> None:
        if self.state is not WAITING and self.state is not BODY:
            return
        if self._parked:
            self._parked = False
            self._reader.start(self._readable)
        if self.state is BODY:
            self._gathering.take_in(b"")
        elif self.unread:
            self._take(self.unread)

    def gather(self, gathering: Gathering) -> None:
        """Buffer the chunked body of the request that was to be served. The gathering has the request answered then."""
        if self.state is not SERVING:  # closed meanwhile
            gathering.drop()
            self.engine.broken_off(gathering.response)
            return
        self.state = BODY
        self._gathering = gathering
        data, self.unread = self.unread, b""
        if self._parked:
            self._parked = False
            self._reader.start(self._readable)
        gathering.begin(data)

    def ask_for_body(self) -> None:
        """Tell the client that its body is wanted, from the loop. OSError if the client is gone."""
        try:
            sent = self._sock.send(CONTINUE)
        except BlockingIOError:
            return  # RFC 9110 section 10.1.1: the client must not wait for it for ever
        self.engine.board[BYTES_OUT] += sent
        if sent != len(CONTINUE):
            raise OSError(errno.EAGAIN, "a part of an interim response is out")

    def gathered(self, run: Callable[[Response], None], response: Response, unread: bytes) -> None:
        """The body is complete, and `unread` came behind it: have the request answered."""
        self._gathering = None
        self.unread = unread
        self.state = SERVING
        self.deadline = NEVER
        run(response)

    def awaits_body(self, in_turn: bool) -> None:
        """More of the body has to come; or, `in_turn`, some of it is to be decoded when others have had their turn."""
        self._set_deadline(self.engine.body_time())
        if in_turn:
            self._resume_later()

    def _drop_body(self) -> Response | None:
        """The response of the request whose body was being buffered, if one was."""
        gathering, self._gathering = self._gathering, None
        if gathering is None:
            return None
        gathering.drop()
        return gathering.response

    def refuse(self, error: RequestError, head: bytes | bytearray) -> None:
        """Answer, instead of the application, the request that was to be served; and close."""
        self._refuse(error, head)

    def _refuse(self, error: RequestError, head: bytes | bytearray) -> None:
        """Answer what is no request that the application could get, as far as its `head` has come, and close."""
        response = self._drop_body()
        self.state = SERVING
        self.engine.refused(self, error, head, response)
        try:
            self.engine.board[BYTES_OUT] += self._sock.send(refusal(error.status, str(error), self.engine.date()))
        except OSError:
            self.close()  # a client that neither reads nor speaks HTTP
            return
        self.linger()

    # In the loop or in a greenlet: the end of a request, and of the connection.

    def request_done(self, keep_alive: bool, body_taken: bool = True) -> None:
        """The response is out. Wait for the next request, or close; `body_taken`: nothing of the body is to come."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self.state is CLOSED:
            return
        if self._waiting:
            self.close()  # a greenlet that outlives its request still reads or writes: that cannot be the next one's
            return
        if not keep_alive:
            if self.unread or self._parked or not body_taken:
                self.linger()
            else:
                self.close()
            return
        self.state = WAITING
        self._fresh = False
        engine = self.engine
        self._set_deadline(engine.keep_alive)
        if engine.pass_on is not None:
            engine.is_idle(self)
        if not self._pumping and (self.unread or self._parked):
            self._resume_later()

    # In the loop: the hand-over to another worker.

    @property
    def can_pass(self) -> bool:
        """Whether it is between two requests, so that another worker can go on."""
        return self.state is WAITING or self.state is HEAD

    @property
    def closes(self) -> bool:
        """Whether a drain makes the next response its last: not where it can go to the heir instead."""
        return self.engine.pass_on is None

    def stays(self) -> None:
        """A drain has begun, and this connection cannot be passed on now."""
        if self.state is LINGERING:
            self.hurry()
        elif self.state is BODY and self.deadline == NEVER:
            self._set_deadline(self.engine.body_time())

    @property
    def peer(self) -> Any:
        """As getpeername gave it, "" for a unix socket."""
        if not self.remote_addr:
            return ""
        return _socket_address(self.remote_addr, self.remote_port)

    @property
    def local(self) -> Any:
        """As getsockname gave it to who accepted it, "" for a unix socket."""
        if not self.remote_addr:
            return ""
        return _socket_address(self.template["SERVER_NAME"], self.template["SERVER_PORT"])

    def fileno(self) -> int:
        return self._sock.fileno()

    def seconds_left(self) -> float | None:
        """Until its deadline; None where it has none."""
        return None if self.deadline == NEVER else max(self.deadline - time.monotonic(), 0.0)

    def let_go(self) -> None:
        """Do not touch it any more: somebody else may be reading it from now on."""
        self.state = PASSED
        self.engine.wheel.forget(self)
        self._reader.stop()

    def put_back(self, head: bytes | bytearray, body: bytes) -> None:
        """The request whose head this was is another worker's: `unread` begins with it again, and with what of its body
        was taken, and nothing else is read until the connection is passed, or goes on here."""
        if self.state is SERVING:
            self.unread = b"%b\r\n\r\n%b%b" % (head, body, self.unread)
            self.state = HEAD
            self._reader.stop()
            self._parked = True

    def go_on(self) -> None:
        """What was put back is to be served here after all."""
        if self.state is HEAD:
            self.state = WAITING
            self._resume_later()

    def take_back(self) -> None:
        """Nobody has taken it: go on as if nothing had been."""
        if self.state is not PASSED:
            return
        self.state = WAITING
        if self.deadline != NEVER:
            self.engine.wheel.watch(self)
        if self.unread:
            self._resume_later()
        else:
            self._parked = False
            self._reader.start(self._readable)

    def abandon(self) -> None:
        """In a child that the application has forked: close the copy, without a word to the client."""
        self.state = CLOSED
        self._reader.stop()
        if self._writer is not None:
            self._writer.stop()
        if self._gathering is not None:
            self._gathering.close()
        self._sock.close()

    def close_if_idle(self) -> None:
        """Close it, unless it has something of a request, read or unread. Who has just connected has one on its way."""
        if self.state is not WAITING or self.unread:
            return
        try:
            waits = bool(self._sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            waits = self._fresh
            if self._fresh:
                self._fresh = False
                self._set_deadline(FIRST)
        except OSError:  # nothing can come any more
            waits = False
        if not waits:
            self.close()

    def surrender(self) -> tuple[Any, bytes]:
        """The socket, and what was read from it already, for the application that has taken the connection."""
        self.state = CLOSED
        self.deadline = NEVER
        self.engine.wheel.forget(self)
        self._reader.leave()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        sock, self._sock = self._sock, _GONE
        unread, self.unread = bytes(self.unread), b""
        return sock, unread

    def passed(self) -> None:
        """Somebody else serves it now."""
        if self.state is PASSED:
            self.state = CLOSED
            self.unread = b""
            self._reader.leave()
            self._sock.close()
            self.engine.connection_closed(self)

    def give_back(self) -> None:
        """It was not to be had: whoever has passed it on still has it, and its client must not notice."""
        self.let_go()
        self.passed()

    def inherit(self, data: bytes, seconds: float | None) -> None:
        """Go on where another worker has left it: `data` was read, and the deadline for the rest of that head, or for
        its beginning, runs on; None for no deadline. What comes of the data sets its own."""
        self.deadline = NEVER if seconds is None else time.monotonic() + seconds
        if seconds is not None:
            self.engine.wheel.watch(self)
        if data:
            self.state = HEAD
            self._take(data)

    def abort(self) -> None:
        """Close so that the client sees that the response is not complete, however its end was to be told."""
        if self.state is not CLOSED:
            self._reset_at_close()
            self.close()

    def close(self) -> None:
        """Close now. A greenlet that waits for the client gets Disconnected."""
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self.deadline = NEVER
        self.engine.wheel.forget(self)
        self.unread = b""
        if (response := self._drop_body()) is not None:
            self.engine.broken_off(response)
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._sock.close()
        for wait in self._waiting:
            self.engine.loop.run_callback(wait.waiter.throw, Disconnected("the connection was closed"))
        self.engine.connection_closed(self)

    def expire(self) -> None:
        """The deadline has passed (called by the wheel)."""
        if self._has_come():
            self._reader.again()
            self._set_deadline(TICK)
        elif self._waiting:
            for wait in self._waiting:
                if type(wait.expired) is Disconnected:
                    self._reset_at_close()
                wait.waiter.throw(wait.expired)
        elif self.state is HEAD:
            self._refuse(RequestError(408, "the header took too long"), self.unread)
        elif self.state is BODY:
            self._refuse(RequestError(408, "the client sends nothing of the body"), self._gathering.head)
        elif self.state is not SERVING:
            self.close()

    def _has_come(self) -> bool:
        """Whether what is awaited is there: a loop that was blocked hears of deadlines before it hears of clients."""
        if self._waiting:
            return any(wait.watcher is self._reader for wait in self._waiting) and self._more_to_read()
        if self.state is LINGERING:
            return self.lingers_on and self._more_to_read()
        if self.state is SERVING or self.state is PASSED:
            return False
        return self._parked or self._more_to_read()

    def _more_to_read(self) -> bool:
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False
