"""Requests in native threads (`--threads`), for code that gevent cannot make cooperative. Nothing is patched then.

The loop accepts, parses and keeps idle connections as ever. A connection with a complete head is *lent* to a thread:
until the thread gives it back the loop does not touch it. The thread runs the application and speaks with the client
through the same `Caller`, `Response` and `Body` as a greenlet would; only its waits are poll(2) with the same timeouts.
What must be done in the loop (counters, the connection's next request) is posted to it.

Requests wait in one queue, first come, first served. They count as active while they wait.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from gevent import monkey

from ..ipc.scoreboard import BYTES_OUT, WAITING
from .body import BodyError
from .connection import Connection
from .response import Response
from .states import SERVING
from .stream import Disconnected
from .tls import TlsConnection
from .wsgi import Caller

if TYPE_CHECKING:
    from .engine import Engine

poll = monkey.get_original("select", "poll")
POLLIN, POLLOUT = 1, 4
# Seconds that a thread may compute before another gets the interpreter, the loop's among them. Python's own 0.005 would
# cost the loop that much at each system call.
SWITCH_INTERVAL = 0.001


class _Threaded:
    """What makes a connection one whose requests are served in threads."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        self._lent = False
        self._aborted = False
        self._polls: list[int] = []  # the waits of threads, as appended and popped by them
        super().__init__(*args)
        self.board = {BYTES_OUT: 0}  # its own, for an increment in another thread could be lost

    # In the loop.

    def lend(self) -> None:
        """From now on it is a thread's."""
        self._lent = True

    def close(self) -> None:
        """As ever; a lent one only ends what the thread has under way, and closes when it comes back. Its descriptor's
        number could be another connection's by the time that the thread uses it."""
        if self._lent:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            super().close()

    def _come_back(self, keep_alive: bool, body_taken: bool) -> None:
        self._lent = False
        self.engine.board[BYTES_OUT] += self.board[BYTES_OUT]
        self.board[BYTES_OUT] = 0
        if self.state is not SERVING:
            return  # abandoned meanwhile
        if self._aborted:
            super().abort()
        elif self._polls:
            # A thread that outlives its request still reads or writes: that cannot be the next one's. As long as it
            # polls it holds the open file, so a close alone would tell nobody.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            super().close()
        else:
            super().request_done(keep_alive, body_taken and (keep_alive or not self._more_waits()))

    def _more_waits(self) -> bool:
        """Whether the client has sent more, which the loop may not have seen yet: a plain close would be a reset."""
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    # In the thread.

    def request_done(self, keep_alive: bool, body_taken: bool = True) -> None:
        """The thread's last word."""
        self.engine.threads.post(self._come_back, keep_alive, body_taken)

    def abort(self) -> None:
        if self._lent:
            self._aborted = True
        else:
            super().abort()

    def _await_body(self) -> None:
        self._poll(POLLIN, self.engine.body_timeout, BodyError(408, "the client sends nothing of the body"))

    def _await_room(self) -> None:
        self._poll(POLLOUT, self.engine.send_timeout, Disconnected("the client takes nothing"))

    def _poll(self, event: int, seconds: float, expired: Exception) -> None:
        fd = self._sock.fileno()
        if fd < 0:
            raise Disconnected("the connection was closed")
        poller = poll()
        poller.register(fd, event)
        self._polls.append(event)
        try:
            if poller.poll(seconds * 1000 if seconds else None):
                return
        finally:
            self._polls.pop()
        if type(expired) is Disconnected:
            self._reset_at_close()
        raise expired


class ThreadedConnection(_Threaded, Connection):
    __slots__ = ("_aborted", "_lent", "_polls")


class ThreadedTlsConnection(_Threaded, TlsConnection):
    __slots__ = ("_aborted", "_lent", "_polls")

    def lend(self) -> None:
        if self._writer is not None:
            self._writer.stop()  # what the loop could not send yet leaves with the response: only the thread writes now
        super().lend()

    def _more_waits(self) -> bool:
        """It is lingered behind in any case: what is still encrypted cannot be looked at."""
        return True


class Threads:
    """Serves requests in `count` threads, which it starts."""

    def __init__(self, engine: Engine, application: Callable[..., Any], count: int) -> None:
        self._engine = engine
        self._count = count
        self._serve = Caller(application, _FromThread(engine, self.post)).serve
        self._queue: deque[Response] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()  # at least as many as wait in the queue
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = engine.loop.async_(ref=False)
        self._wake.start(self._take_posted)
        self._take = engine.admission.take
        self._abandoned = False
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        for number in range(count):
            threading.Thread(target=self._run, name=f"reuseport-{number + 1}", daemon=True).start()

    def run(self, response: Response) -> None:
        """Have a response made by the next free thread. Called in the loop."""
        response.connection.lend()
        self._engine.request_begins()
        self._show_waiting()
        self._queue.append(response)
        self._tokens.put(None)

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the function called in the loop, in the order of the posts. Any thread may post."""
        self._posted.append((function, args))
        self._wake.send()

    def abandon(self) -> None:
        """In a child that the application has forked: the thread that did ends with its request, and the child too."""
        self._abandoned = True
        self._wake.stop()

    def _run(self) -> None:
        queue, tokens, serve = self._queue, self._tokens, self._serve
        seat = self._take()
        while not self._abandoned:
            try:
                while not self._abandoned:
                    tokens.get()
                    response = queue.popleft()
                    Context().run(serve, response, seat)
                    del response
            except IndexError:
                pass  # a token too many
            except BaseException:  # noqa: BLE001 - meant for an earlier request, whose timeout came late
                # PyThreadState_SetAsyncExc reaches a thread that waits only when it gets the next request, which must
                # not pay for it.
                tokens.put(None)

    def _take_posted(self) -> None:
        posted = self._posted
        while posted:
            function, args = posted.popleft()
            try:
                function(*args)
            except Exception:  # noqa: BLE001 - one request's defect must not keep the others from coming back
                self._engine.hub.handle_error(function, *sys.exc_info())
        self._show_waiting()

    def _show_waiting(self) -> None:
        self._engine.board[WAITING] = max(0, self._engine.requests - self._count)


class _FromThread:
    """What a `Caller` in a thread sees of the engine."""

    def __init__(self, engine: Engine, post: Callable[..., None]) -> None:
        self._engine = engine
        self._post = post
        self.log = engine.log
        self.admission = engine.admission

    def request_begins(self) -> None:
        """It was counted when it was put into the queue."""

    def request_quarantined(self) -> None:
        self._post(self._engine.request_quarantined)

    def request_done(self, response: Response, failed: bool) -> None:
        self._post(self._engine.request_done, response, failed)
