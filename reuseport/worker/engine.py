"""The HTTP engine of one worker: accepted client fds in, responses out.

It owns what the connections share: the application and its greenlets, the parser and its limits, the deadlines, the
worker's counters on the scoreboard, and the one decision that changes them all, the drain. Everything here is called
in gevent's loop, but for `request_begins`, `request_done` and `date`, which the request's greenlet calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import gevent

from ..ipc.scoreboard import ACTIVE, CONNECTIONS, ERRORS, REQUESTS
from .connection import Connection
from .pool import Pool
from .request import HeadParser, RequestError
from .wheel import Wheel
from .wsgi import Caller, template


class Engine:
    """Serves the connections it is given to one application.

    `connections`: how many are open. `requests`: how many the application works on. `on_change`: called when either
    went down in a drained engine. `on_request_end`: called after each request.
    `settings` has, in seconds, with 0 for no limit: header_timeout, body_timeout (between two pieces), keep_alive
    (idle), send_timeout (a client that takes nothing); and limit_request_line, limit_request_fields,
    limit_request_field_size, limit_request_body. `board`: the worker's row of the scoreboard. `log(level, text)`.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        settings: Any,
        *,
        generation: int,
        worker: str,
        board: Any,
        log: Callable[[str, str], None],
        multiprocess: bool = True,
    ) -> None:
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.log = log
        self.connections = 0
        self.requests = 0
        self.draining = False
        self.on_change: Callable[[], None] | None = None
        self.on_request_end: Callable[[], None] | None = None
        self.header_timeout = settings.header_timeout
        self.body_timeout = settings.body_timeout
        self.keep_alive = settings.keep_alive
        self.send_timeout = settings.send_timeout
        self.parser = HeadParser(
            limit_line=settings.limit_request_line,
            limit_fields=settings.limit_request_fields,
            limit_field_size=settings.limit_request_field_size,
            limit_body=settings.limit_request_body,
        )
        self.closing = False  # each response is its connection's last
        self.pass_on: Callable[[list[Connection]], None] | None = None
        self._idle: list[Connection] = []
        self.wheel = Wheel(self.loop)
        self.board = board
        self._open: set[Connection] = set()
        self.serve = Caller(application, self).serve  # has a Response made
        self.run = Pool(self.hub, self.serve).run  # the same, in a greenlet; a Router puts itself here
        self._identity = generation, worker, multiprocess
        self._templates: dict[Any, dict[str, Any]] = {}
        self._date = b""
        self._date_at = 0  # seconds since the epoch

    def adopt(self, fd: int, peer: Any, local: Any, *, data: bytes = b"") -> Connection:
        """Take over an accepted, non-blocking client fd; `data` was read from it already."""
        environ = self._templates.get(local)
        if environ is None:
            environ = self._templates[local] = template(local, *self._identity)
        connection = Connection(self, fd, peer, environ)
        self._open.add(connection)
        self.connections += 1
        self.board[CONNECTIONS] = self.connections
        if data:
            connection._take(data)
        return connection

    def drain(self) -> None:
        """From now on each response is its connection's last. Idle connections wait for their next request."""
        self.draining = self.closing = True
        self.pass_on = None

    def drain_to(self, pass_on: Callable[[list[Connection]], None]) -> None:
        """From now on each connection between two requests is given to `pass_on`, in lists, and closed by nobody."""
        self.draining = True
        self.closing = False
        self.pass_on = pass_on
        pass_on([connection for connection in self._open if connection.can_pass])

    def is_idle(self, connection: Connection) -> None:
        """A connection has ended a request while the engine passes them on."""
        if not self._idle:
            self.loop.run_callback(self._pass_idle)
        self._idle.append(connection)

    def _pass_idle(self) -> None:
        idle, self._idle = self._idle, []
        if self.pass_on is not None:
            self.pass_on(idle)

    def close_idle(self) -> None:
        """Close the connections that wait for a request: at a stop, where nobody will answer their next one."""
        for connection in list(self._open):
            connection.close_if_idle()

    def abandon(self) -> None:
        """In a child that the application has forked: the clients are its parent's."""
        self.wheel.abandon()
        for connection in self._open:
            connection.abandon()
        self._open.clear()

    def close_all(self) -> None:
        """Close every connection now, whatever it is doing."""
        self.draining = self.closing = True
        for connection in list(self._open):
            connection.close()

    # For connections and requests.

    def request_begins(self) -> None:
        """The application gets a request."""
        self.requests += 1
        self.board[ACTIVE] = self.requests

    def request_done(self, failed: bool) -> None:
        """The application has answered, or `failed`."""
        board = self.board
        board[REQUESTS] += 1
        if failed:
            board[ERRORS] += 1
        self.requests -= 1
        board[ACTIVE] = self.requests
        if self.on_request_end is not None:
            self.on_request_end()
        if self.draining and self.on_change is not None:
            self.loop.run_callback(self.on_change)

    def refused(self, connection: Connection, error: RequestError) -> None:
        """A request ended before the application could get it."""
        self.board[REQUESTS] += 1
        if error.status >= 500:
            self.board[ERRORS] += 1
        self.log("debug", f"refused a request of {connection.remote_addr or 'a unix socket'}: {error.status} {error}")

    def connection_closed(self, connection: Connection) -> None:
        """The fd is closed."""
        self._open.discard(connection)
        self.connections -= 1
        self.board[CONNECTIONS] = self.connections
        if self.draining and self.on_change is not None:
            self.loop.run_callback(self.on_change)

    def date(self) -> bytes:
        """The Date field's line (RFC 9110 section 6.6.1), made once a second."""
        now = time.time()
        if not self._date_at <= now < self._date_at + 1:
            self._date_at = int(now)
            self._date = f"Date: {formatdate(self._date_at, usegmt=True)}\r\n".encode()
        return self._date
