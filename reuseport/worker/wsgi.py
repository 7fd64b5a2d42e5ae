"""The application's side of a request: PEP 3333, from the call to the iterable's close().

Whatever the application does, raises or returns, the worker lives, the request ends, and the client can tell a whole
response from a broken one: an error before the head is a 500, after it the connection is closed in the middle.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..ipc.inflight import NAMELESS, Seat
from . import forked
from .body import NO_BODY, BodyError
from .filewrapper import KINDS, FileWrapper, region_of
from .interrupts import calls_application
from .request import DROPPED
from .response import SKIP, Response
from .stream import Disconnected

if TYPE_CHECKING:
    from .engine import Engine


def template(local: Any, generation: int, worker: str, multiprocess: bool) -> dict[str, Any]:
    """What the environs of all requests on one local address share.

    It has every key that a request sets for itself, except its header fields: see `request.DROPPED`.
    """
    name, port = (local[0], str(local[1])) if isinstance(local, tuple) else ("localhost", "80")
    environ = dict.fromkeys(("REQUEST_METHOD", DROPPED, "PATH_INFO", "QUERY_STRING", "RAW_URI", "REQUEST_URI"), "")
    return environ | {
        "SCRIPT_NAME": "",
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_SOFTWARE": "reuseport",
        "REMOTE_ADDR": "",
        "REMOTE_PORT": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": NO_BODY,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,  # greenlets interleave as threads do
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.early_hints": None,
        "reuseport.generation": generation,
        "reuseport.worker": worker,
    }


class Caller:
    """Calls the application, one request after another, each in whatever greenlet `serve` is called in."""

    def __init__(self, application: Callable[..., Any], engine: Engine) -> None:
        self._application = application
        self._engine = engine
        self._admission = engine.admission

    def serve(self, response: Response, seat: Seat) -> None:
        """Have the request answered and its connection go on. Never raises. `seat` tells the master which it is."""
        engine, admission = self._engine, self._admission
        memory, place, mark = seat
        engine.request_begins()
        failed = False
        response.seat = seat
        try:
            name, application = response.connection.name, self._application
            # Here, for the request may have waited since it was read.
            if admission.memory[admission.window] != admission.known:
                admission.learn()
            if admission.alert:
                asked, name = name, NAMELESS
                memory[place] = name  # until it may begin
                name, application = admission.admit(asked, application, response.environ)
                if name is NAMELESS:
                    engine.request_quarantined()
            memory[place] = name
            self._answer(response, application)
            if forked.State.child:
                forked.end()
        except Disconnected as error:
            forked.end_if_child()
            engine.log("debug", f"{describe(response)}: {error}")
        except BodyError as error:
            forked.end_if_child()
            self._fail(response, error.status, str(error))
        except BaseException as error:  # noqa: BLE001 - SystemExit, a stray Timeout and a kill end the request only
            forked.end_if_child(error)
            failed = True
            engine.log("error", f"{describe(response)} failed\n{traceback.format_exc().rstrip()}")
            self._fail(response, 500, "")
        memory[mark] = response.complete
        if admission.alert and response.complete:
            admission.answered(name)
        engine.request_done(response, failed or response.status >= 500)
        response.environ = None
        if response.complete and response.body is NO_BODY:
            response.connection.request_done(response.keep_alive)
        else:
            self._settle(response)

    @calls_application
    def _answer(self, response: Response, application: Callable[..., Any]) -> None:
        environ = response.environ
        environ["wsgi.early_hints"] = response.early_hints
        result = application(environ, response.start_response)
        try:
            if type(result) is list and len(result) == 1:
                (data,) = result
                response.write(data, len(data))
            elif type(result) in KINDS and _send_file(response, result):
                pass
            else:
                for data in result:
                    if data or type(data) is not bytes:
                        response.write(data)
                    else:
                        response.let_others()
            response.finish()
        finally:
            if hasattr(result, "close"):
                result.close()

    def _fail(self, response: Response, status: int, text: str) -> None:
        """Say that there is no proper answer: in words while that is possible, else by breaking off."""
        if response.head_sent:
            return
        try:
            response.fail(status, text)
        except OSError as error:
            self._engine.log("debug", f"{describe(response)}: {error}")
        except BaseException:  # noqa: BLE001 - as in serve
            self._engine.log("error", f"{describe(response)}: no answer\n{traceback.format_exc().rstrip()}")

    @staticmethod
    def _settle(response: Response) -> None:
        """Leave the connection at the first byte of the next request, or closed."""
        connection, body = response.connection, response.body
        if not response.complete and response.ends_with_connection:
            connection.abort()
        go_on = response.complete and response.keep_alive
        try:
            taken = body.skip(SKIP) if go_on else body.complete
        except BaseException:  # noqa: BLE001 - a Timeout or a kill that the application has left behind
            taken = False
        body.detach()
        connection.request_done(go_on and taken, taken)


def _send_file(response: Response, result: Any) -> bool:
    """Send a file from its position up to its end, or as many bytes of it as the Content-Length says; or a part of one.

    False where nothing was sent: the result must be iterated over.
    """
    region = None if response.head_sent else region_of(result)
    # Beyond the end of a part the file has bytes that a longer Content-Length must not bring out.
    if region is not None and not (region.bounded and (response.room or 0) > region.size):
        response.write_file(region.fd, region.offset, region.size)
        return True
    if type(result) is not FileWrapper:
        return False
    while response.room != 0 and (block := result.read(response.room)):
        response.write(block)
    return True


def describe(response: Response) -> str:
    """A request in a log line."""
    environ = response.environ or {}
    number = environ.get("reuseport.request_id")
    return f"{environ.get('REQUEST_METHOD')} {environ.get('RAW_URI')}" + (f" (request {number})" if number else "")
