"""The path at which the server itself says whether it wants more requests (--health-path).

It is asked for like any other path, through a slot, a worker and the loop, so an answer also shows that these work. Who
gets 503 is to send nothing more here: a stop has been announced, and connections will soon be refused. A release is
no reason for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

Application = Callable[..., Iterable[bytes]]


def answering(app: Application, settings: Any, leaving: Callable[[], bool]) -> Application:
    """The application, with that path before it, if there is one. `leaving`: whether the server was told to stop."""
    if settings.health_path is None:
        return app
    path = path_of(settings)

    def healthy(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != path:
            return app(environ, start_response)
        status, body = ("503 Service Unavailable", b"stopping\n") if leaving() else ("200 OK", b"serving\n")
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response(status, headers)
        return [body]

    return healthy


def path_of(settings: Any) -> str:
    """That path as PATH_INFO has it (PEP 3333)."""
    return unquote(settings.health_path, "latin-1")
