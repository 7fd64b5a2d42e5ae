"""The HTTP engine of one worker: accepted client fds in, responses out.

It owns what the connections share: the application and its greenlets, the parser and its limits, the deadlines, the
worker's counters on the scoreboard, and the one decision that changes them all, the drain. Everything here is called
in gevent's loop, but for `request_begins`, `request_done`, `hop_by_hop` and `date`, which the request's greenlet calls.
Of those a request's thread calls only `date` and `hop_by_hop`.

What an option can add to each request (a log line, an id, threads) is decided here, once: it is another class of
responses or connections, or another function, and costs nothing where it is off.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from time import monotonic
from typing import Any

import gevent

from ..ipc.inflight import nowhere
from ..ipc.scoreboard import ACTIVE, CLASSES, CONNECTIONS, ERRORS, QUARANTINED, REQUESTS
from ..options.networks import Peers
from .access import AccessLog, Recorded
from .access import wrap as record
from .admission import Admission
from .connection import FIRST, LAST_CALL, Connection
from .forwarded import Forwarded
from .gather import gather
from .pool import Pool
from .proxy import Herald
from .readers import Readers
from .request import HeadParser, RequestError
from .requestid import with_request_id
from .response import Response
from .seldom import Seldom
from .threads import ThreadedConnection, ThreadedTlsConnection, Threads
from .timeslice import TimeSlice
from .tls import TlsConnection
from .upgrade import UpgradeCaller, Upgraded, spread
from .wheel import Wheel
from .wsgi import Caller, template

MANY_LATENCIES = 256  # no client waits for more of them to be counted: some 50 µs
TEMPLATES = 1024  # local addresses, of which PROXY headers can name any number


class Engine:
    """Serves the connections it is given to one application.

    `connections`: how many are open. `requests`: how many the application works on. `on_change`: called when either
    went down in a drained engine. `on_request_end`: called after each request.
    `settings` has, in seconds, with 0 for no limit: header_timeout, body_timeout (between two pieces), keep_alive
    (idle), send_timeout (a client that takes nothing); and limit_request_line, limit_request_fields,
    limit_request_field_size, limit_request_body; buffer_chunked; early_hints; strict_wsgi (hop-by-hop fields are
    errors); threads; request_id and request_id_header. `board`: the worker's row of the scoreboard. `log(level, text)`.
    `access`: gets each request, if there is an access log. `admission`: knows which requests must not begin. `told`:
    writable memory of at least one byte, which workers can share: the byte at 0 says that the warning about hop-by-hop
    fields was logged.
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
        tls: ssl.SSLContext | None = None,
        access: AccessLog | None = None,
        admission: Admission | None = None,
        told: Any = None,
    ) -> None:
        self.hub = gevent.get_hub()
        self.loop = self.hub.loop
        self.log = log
        self.seldom = Seldom(log)
        self.connections = 0
        self.requests = 0
        self.draining = False
        self.on_change: Callable[[], None] | None = None
        self.on_request_end: Callable[[], None] | None = None
        self.header_timeout = settings.header_timeout
        self.body_timeout = settings.body_timeout
        self.keep_alive = settings.keep_alive
        self.silence = settings.keep_alive or settings.header_timeout  # until the first byte of a new connection
        self.send_timeout = settings.send_timeout
        self.parser = HeadParser(
            limit_line=settings.limit_request_line,
            limit_fields=settings.limit_request_fields,
            limit_field_size=settings.limit_request_field_size,
            limit_body=settings.limit_request_body,
        )
        self.early_hints = settings.early_hints
        self._strict_wsgi = settings.strict_wsgi
        self._told = bytearray(1) if told is None else told
        self.closing = False  # each response is its connection's last
        self.pass_on: Callable[[list[Connection]], None] | None = None
        self._idle: list[Connection] = []
        self.wheel = Wheel(self.loop)
        self.admission = admission or Admission()
        self.readers = Readers(self.hub)
        self.time_slice = TimeSlice(self.hub)
        self.board = board
        self.latencies: list[float] = []  # seconds; whoever counts them takes them out
        self.count_latencies: Callable[[], None] = self.latencies.clear  # is called when there are many
        self._open: set[Connection] = set()
        self.tls = tls
        self.proxy_protocol = settings.proxy_protocol
        self.websocket_drain = settings.websocket_drain
        self._senders_of_proxy = Peers(settings.proxy_allow_ips)
        self._proxies = Peers(settings.forwarded_allow_ips)
        self._forwarded = Forwarded(self._proxies).apply
        self.upgraded: set[Upgraded] = set()
        self.response: type[Response] = Response
        if access is not None:
            self.response = Recorded
            record(self, access)
        if settings.request_id != "off":
            make = settings.request_id == "make"
            self.response = with_request_id(self.response, settings.request_id_header, make)
        self._connection: type[Connection] = Connection
        self._tls_connection: type[TlsConnection] = TlsConnection
        self.threads: Threads | None = None
        self.run_upgradable: Callable[[Response], None] | None = None  # without it nobody may take a connection over
        if settings.threads:
            self._connection, self._tls_connection = ThreadedConnection, ThreadedTlsConnection
            self.threads = Threads(self, application, settings.threads)
            self.run = self.threads.run  # has a Response made, in a thread; a Router puts itself before it
        else:
            take, leave = self.admission.take, self.admission.leave
            self.run = Pool(self.hub, Caller(application, self).serve, take, leave).run  # or in a greenlet
            self.run_upgradable = Pool(self.hub, UpgradeCaller(application, self).serve, nowhere).run
        # Has a Response made when its request's chunked body has come; None where the application reads such bodies.
        self.run_chunked: Callable[[Response], None] | None = None
        if settings.buffer_chunked:
            self.run_chunked = partial(gather, self.run)
        self._identity = generation, worker, multiprocess
        self._templates: dict[Any, dict[str, Any]] = {}
        self._date = b""
        self._date_at = 0.0  # seconds since the epoch

    def adopt(self, fd: int, peer: Any, local: Any, *, data: bytes = b"") -> Connection:
        """Take over an accepted, non-blocking client fd that speaks HTTP; `data` was read from it already."""
        connection = self._connection(self, fd, peer, self._template(local))
        self._adopted(connection)
        if self._proxies.include(connection.remote_addr):
            connection.forwarded = self._forwarded
        if data:
            connection._take(data)
        return connection

    def accept(self, fd: int, peer: Any, local: Any) -> None:
        """Take over a client fd fresh from a slot: what it speaks first is PROXY, TLS or HTTP, as configured."""
        if self.proxy_protocol != "off" and self._senders_of_proxy.include(peer[0] if peer else ""):
            self._adopted(Herald(self, fd, peer, local))
        else:
            self.adopt_client(fd, peer, local, plain=not peer)

    def adopt_client(self, fd: int, peer: Any, local: Any, *, plain: bool, data: bytes = b"") -> Any:
        """As `adopt`, but the client has yet to begin: with TLS where it is configured, unless `plain` (unix)."""
        if self.tls is None or plain:
            return self.adopt(fd, peer, local, data=data)
        connection = self._tls_connection(self, fd, peer, self._template(local), self.tls, data)
        self._adopted(connection)
        if self._proxies.include(connection.remote_addr):
            connection.forwarded = self._forwarded
        return connection

    def _template(self, local: Any) -> dict[str, Any]:
        environ = self._templates.get(local)
        if environ is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            environ = self._templates[local] = template(local, *self._identity)
        return environ

    def _adopted(self, connection: Any) -> None:
        self._open.add(connection)
        self.connections += 1
        self.board[CONNECTIONS] = self.connections

    def connection_moved(self, connection: Any) -> None:
        """It is no more, but its fd lives on in what comes next."""
        self._open.discard(connection)
        self.connections -= 1

    def connection_upgraded(self, connection: Connection, upgraded: Upgraded) -> None:
        """The application has taken it: it is no request any more that anybody would wait for."""
        self.connection_moved(connection)
        self._adopted(upgraded)
        self.upgraded.add(upgraded)
        self.requests -= 1
        self.board[ACTIVE] = self.requests
        if self.draining:
            spread([upgraded], self.websocket_drain)

    def count_error(self) -> None:
        """A handler of an upgraded connection has failed, for which there is no response."""
        self.board[ERRORS] += 1

    def upgrade_ends(self, upgraded: Upgraded) -> None:
        """Its handler has returned, and is a request again for the moment that its end takes."""
        self.upgraded.discard(upgraded)
        self.requests += 1

    def _close_upgraded(self) -> None:
        """A drain has begun."""
        if not self.draining:
            spread(self.upgraded, self.websocket_drain)

    def drain(self) -> None:
        """From now on each response is its connection's last. Idle connections wait for their next request."""
        self._close_upgraded()
        self.draining = self.closing = True
        self.pass_on = None
        for connection in list(self._open):
            connection.stays()

    def drain_to(self, pass_on: Callable[[list[Connection]], None]) -> None:
        """From now on each connection between two requests is given to `pass_on`, in lists, and closed by nobody."""
        self._close_upgraded()
        self.draining = True
        self.closing = self.tls is not None  # connections that cannot be passed on
        self.pass_on = pass_on
        pass_on([connection for connection in self._open if connection.can_pass])
        for connection in list(self._open):
            if not connection.can_pass:
                connection.stays()

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
        """Close the connections that wait for a request: at a stop, where nobody will answer their next one.

        New connections that come out of the queues later have as long as a connection that has just come, and so has a
        client whose response ends later, if it was promised before the stop that the connection stays open.
        """
        self.silence = min(self.silence or FIRST, FIRST)
        self.keep_alive = min(self.keep_alive, FIRST)
        for connection in list(self._open):
            connection.close_if_idle()

    def gathering(self) -> list[Response]:
        """Those of the requests whose bodies are being buffered. Also called in a signal's handler."""
        bodies = [getattr(connection, "_gathering", None) for connection in list(self._open)]
        return [body.response for body in bodies if body is not None]

    def abandon(self) -> None:
        """In a child that the application has forked: the clients are its parent's."""
        self.readers.close()
        self.wheel.abandon()
        if self.threads is not None:
            self.threads.abandon()
        for connection in self._open:
            connection.abandon()
        self._open.clear()

    # For connections and requests.

    def head_time(self) -> float:
        """Seconds from the first byte of a head, a handshake or a PROXY header to its last; 0 for no limit.

        A drain waits for the rest, so in a drain there is always a limit.
        """
        return self.header_timeout or (LAST_CALL if self.draining else 0)

    def body_time(self) -> float:
        """Seconds between two pieces of a body that the server buffers; 0 for no limit. As for a head in a drain."""
        return self.body_timeout or (LAST_CALL if self.draining else 0)

    def request_begins(self) -> None:
        """The application gets a request."""
        self.requests += 1
        self.board[ACTIVE] = self.requests

    def request_quarantined(self) -> None:
        """A request is refused because of the workers that its like has ended."""
        self.board[QUARANTINED] += 1

    def hop_by_hop(self, name: str, uri: str | None) -> None:
        """The application has given a hop-by-hop field, which PEP 3333 forbids. ValueError with --strict-wsgi.

        Called by the request's greenlet or thread.
        """
        if self._strict_wsgi:
            raise ValueError(f"header {name} is hop-by-hop: PEP 3333 leaves it to the server (--strict-wsgi)")
        if not self._told[0]:
            self._told[0] = 1
            self.log(
                "warning",
                f"{uri}: the application sends the hop-by-hop header {name}, which PEP 3333 leaves to the server. "
                "The server drops such headers and does not warn again. --strict-wsgi answers 500 instead",
            )

    def request_done(self, response: Response, failed: bool) -> None:
        """The application has answered, or `failed`."""
        board = self.board
        status = response.status
        if not 200 <= status < 300:
            board[CLASSES[status // 100]] += 1
        board[REQUESTS] += 1
        if failed:
            board[ERRORS] += 1
        if status != 101:  # how long a connection stays taken over is no latency
            latencies = self.latencies
            latencies.append((response.ended or monotonic()) - response.began)
            if len(latencies) >= MANY_LATENCIES:
                self.count_latencies()
        self.requests -= 1
        board[ACTIVE] = self.requests
        if self.on_request_end is not None:
            self.on_request_end()
        if self.draining and self.on_change is not None:
            self.loop.run_callback(self.on_change)

    def request_dropped(self, connection: Connection) -> None:
        """A request that the router let in does not begin, because its body did not come whole."""

    def broken_off(self, response: Response) -> None:
        """The connection of a request was closed while its body was buffered: nobody was told a status."""
        self.board[CLASSES[0]] += 1
        self.board[REQUESTS] += 1

    def refused(
        self,
        connection: Connection,
        error: RequestError,
        head: bytes | bytearray,
        response: Response | None = None,
    ) -> None:
        """A request ended before the application could get it; `head`: what there was of it.

        `response`: that of a request whose head was whole, and whose body was being buffered.
        """
        self.board[CLASSES[error.status // 100]] += 1
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
            # In this order: another thread may look in between.
            self._date = f"Date: {formatdate(int(now), usegmt=True)}\r\n".encode()
            self._date_at = now // 1
        return self._date
