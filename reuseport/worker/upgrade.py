"""Connections that the application takes over: WebSockets, through the ecosystem's own door.

A request that asks for another protocol (RFC 9110 section 7.8) finds environ["gunicorn.socket"]: simple-websocket, and
with it flask-sock and Flask-SocketIO, look there. Nothing happens before it is used. From its first use on the
connection is the application's; whatever the WSGI call then returns is not sent, and its end closes the connection.

Nobody waits without a limit for such a connection: a drain closes each within --websocket-drain, spread over that time,
so that the clients do not all come back at once. The server says 1001 "going away" (RFC 6455 section 7.4.1) between two
of the application's frames (`frames`). The client's answer reaches the application like any closing by the client. A
protocol that is no WebSocket sees the end of the stream.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import random
import socket
import time
import traceback
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import gevent
from gevent.socket import socket as GeventSocket
from gevent.socket import wait_read, wait_write

from ..ipc.inflight import NAMELESS
from .admission import Refusal
from .body import NoBody
from .frames import UpgradeSocket
from .interrupts import is_server
from .stream import PIECE, Disconnected
from .wheel import NEVER
from .wsgi import Caller, describe

if TYPE_CHECKING:
    from .connection import Connection
    from .engine import Engine
    from .response import Response

OFFER = "gunicorn.socket"  # in environ
READ = 1
ANSWER_TIME = 5.0  # seconds for the client to answer it
HANDLER_TIME = 10.0  # seconds for the application to end after that; who needs longer registers a job
LINGER_TIME = 2.0  # seconds


def spread(connections: Collection[Upgraded], seconds: float) -> None:
    """Close each at another moment within this time."""
    some = list(connections)
    random.shuffle(some)
    for place, one in enumerate(some):
        one.go_away_in((place + random.random()) / len(some) * seconds)


class Offer(NoBody):
    """The body of a request that would speak another protocol: none, but a connection that may be taken."""

    __slots__ = ("ask", "connection", "taken", "upgraded")

    def __init__(self, connection: Connection, environ: dict[str, Any]) -> None:
        self.connection: Connection | None = connection
        self.upgraded: Upgraded | None = None
        self.taken: Callable[[], None] | None = None  # called when it is
        environ[OFFER] = OfferedSocket(self)

    def take(self) -> GeventSocket:
        """The socket; with the first call the connection is the application's."""
        if self.upgraded is None:
            if self.connection is None or self.connection.fileno() < 0:
                raise OSError(errno.EBADF, "the request is over, or its connection closed")
            self.upgraded = Upgraded(self.connection)
            if self.taken is not None:
                self.taken()
        return self.upgraded.app

    def detach(self) -> None:
        self.connection = None


class OfferedSocket:
    """Looks like the socket that it becomes when one of its public attributes is used."""

    __slots__ = ("_offer",)

    def __init__(self, offer: Offer) -> None:
        self._offer = offer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._offer.take(), name)


class Upgraded:
    """A connection that the application has taken. It counts as open until it is closed and its handler has ended.

    The application's socket is the client's own where it can be. Where bytes were read already, or are encrypted, it
    is one end of a pair, and two greenlets carry the bytes: so it can be selected on like any other.
    """

    can_pass = False

    def __init__(self, connection: Connection) -> None:
        self.engine: Engine = connection.engine
        self.tick = 0
        self.deadline = NEVER
        self._watcher: Any = None
        self._timers: list[Any] = []
        self._handler_ended = self._ended = self._closed = self._counted_out = False
        self._who = connection.remote_addr or "a unix socket"
        # First: without descriptors for it (OSError) the connection stays what it was.
        pair = None if connection.plain and not connection.unread else socket.socketpair()
        self._sock, unread = connection.surrender()
        self._pumps: list[gevent.Greenlet] = []
        if pair is not None:
            ours, theirs = pair
            self._pair = GeventSocket(fileno=ours.detach())
            self.app = UpgradeSocket(self, theirs.detach())
            self._pumps = [gevent.spawn(self._carry_in, unread), gevent.spawn(self._carry_out)]
        else:
            self.app = UpgradeSocket(self, self._sock.detach())
        self.engine.connection_upgraded(connection, self)

    @is_server
    def _carry_in(self, data: bytes) -> None:
        """From the client to the application."""
        try:
            while True:
                if data:
                    self._pair.sendall(data)
                try:
                    data = self._sock.recv(PIECE)
                except BlockingIOError:
                    data = b""
                    wait_read(self._sock.fileno())
                    continue
                if not data:
                    break
        except OSError:
            pass  # either side is gone, which the other learns from the end of the stream
        with contextlib.suppress(OSError):
            self._pair.shutdown(socket.SHUT_WR)

    @is_server
    def _carry_out(self) -> None:
        """From the application to the client."""
        sock = self._sock
        flush = getattr(sock, "flush", lambda: True)
        try:
            while data := self._pair.recv(1 << 16):
                view = memoryview(data)
                while view or not flush():
                    try:
                        view = view[sock.send(view) :]
                    except BlockingIOError:
                        wait_write(sock.fileno())
        except OSError:
            pass
        if not self._closed:
            self._linger()

    def go_away_in(self, seconds: float) -> None:
        self._later(seconds, gevent.spawn, self._go_away)

    def _later(self, seconds: float, function: Any, *arguments: Any) -> None:
        timer = self.engine.loop.timer(seconds)
        timer.start(function, *arguments)
        self._timers.append(timer)

    @is_server
    def _go_away(self) -> None:
        if self._ended:
            self._later(HANDLER_TIME, self._give_up)
            return
        said = False
        # An OSError: the client is gone, which its handler will see.
        with gevent.Timeout(ANSWER_TIME, False), contextlib.suppress(OSError):
            said = self.app.say_going_away()
        self._later(ANSWER_TIME if said else 0, self._end_reading)
        self._later(ANSWER_TIME + HANDLER_TIME, self._give_up)

    def _end_reading(self) -> None:
        if not self._ended:
            with contextlib.suppress(OSError):
                self.app.end_reading()

    def _give_up(self) -> None:
        if not self._handler_ended:
            self.engine.log(
                "warning", f"the handler of an upgraded connection of {self._who} has not ended and is not waited for"
            )
            self._handler_ended = True
        self.close()

    def handler_ends(self) -> None:
        """The WSGI call is over."""
        self._handler_ended = True
        self.end()
        self._leave()

    def end(self) -> None:
        """Send the end of the stream, wait a little for the client's, close. Can be repeated."""
        if self._ended:
            return
        self._ended = True
        app = self.app
        if self._pumps:
            GeventSocket.close(app)  # what it sent is still carried out, and then _linger is called
            self._set_deadline(ANSWER_TIME)
        else:
            # Its waiting greenlets are thrown out of their waits in the loop's next turn, and before _linger.
            family, kind = app._sock.family, app._sock.type
            self._sock = _socket.socket(family, kind, 0, app.detach())
            self.engine.loop.run_callback(self._linger)

    def _linger(self) -> None:
        if self._closed or self._watcher is not None:
            return
        gevent.killall(self._pumps[:1], block=False)
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._ended = True
        self._sock = getattr(self._sock, "raw", self._sock)
        self._watcher = self.engine.loop.io(self._sock.fileno(), READ)
        self._watcher.start(self._discard)
        self._set_deadline(LINGER_TIME)

    def _discard(self) -> None:
        try:
            if self._sock.recv(PIECE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.engine.wheel.watch(self)

    def expire(self) -> None:
        """The deadline has passed (called by the wheel)."""
        self.close()

    def close(self) -> None:
        """Close now."""
        if not self._closed:
            self._closed = True
            self.deadline = NEVER
            self.engine.wheel.forget(self)
            for timer in self._timers:
                timer.close()
            if self._watcher is not None:
                self._watcher.close()
            gevent.killall(self._pumps, block=False)
            if not self._ended:
                self._ended = True
                GeventSocket.close(self.app)
            if self._pumps:
                self._pair.close()
            # Behind the callbacks that throw whoever waits for it out of the wait: libev must not watch a closed fd.
            self.engine.loop.run_callback(self._sock.close)
        self._leave()

    def _leave(self) -> None:
        if self._closed and self._handler_ended and not self._counted_out:
            self._counted_out = True
            self.engine.connection_closed(self)

    def stays(self) -> None:
        """A drain has begun: `spread` has seen to it."""

    def close_if_idle(self) -> None:
        """At a stop: as `stays`."""

    def abandon(self) -> None:
        """In a child that the application has forked: close the copies without a word."""
        for timer in self._timers:
            timer.stop()
        if self._watcher is not None:
            self._watcher.stop()
        gevent.killall(self._pumps, block=False)
        for event in (self.app._read_event, self.app._write_event):
            if event is not None:
                event.stop()
        self.app._sock.close()
        self._sock.close()


class UpgradeCaller(Caller):
    """Calls the application for requests that it may take the connection of."""

    def _answer(self, response: Response, application: Callable[..., Any]) -> None:
        offer: Any = response.body
        # An upgraded connection is no request any more, and may last for days: the seat is left with the upgrade.
        memory, place, _ = seat = self._admission.take()
        memory[place] = NAMELESS if type(application) is Refusal else response.connection.name
        response.seat = seat
        offer.taken = partial(self._admission.leave, seat)
        try:
            super()._answer(response, application)
        except BaseException as error:
            if offer.upgraded is None:
                raise
            # What it returned or raised to say that it has answered already (StopIteration, ConnectionError) is as
            # good as any; nothing of it could be sent.
            self._judge(response, error)
        finally:
            if offer.upgraded is None:
                self._admission.leave(seat)
        if offer.upgraded is not None:
            self._engine.upgrade_ends(offer.upgraded)
            response.was_given(offer.upgraded.app.status)
            offer.upgraded.handler_ends()
            raise Disconnected("the application had taken the connection")

    def _judge(self, response: Response, error: BaseException) -> None:
        if isinstance(error, StopIteration | ConnectionError | AssertionError | gevent.GreenletExit):
            return
        self._engine.log("error", f"{describe(response)} failed\n{traceback.format_exc().rstrip()}")
        self._engine.count_error()
